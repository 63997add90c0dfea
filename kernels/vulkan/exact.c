/* SPIR-V is a header of five words and a stream of instructions, each led by a word with its length
 * (high half) and opcode (low half). Annotations form one section ahead of all types. Source:
 * Khronos SPIR-V specification 1.6, sections 2.3 and 2.4. */
#include "kernels/vulkan/exact.h"

#include "base/mem.h"

#include <stdbool.h>
#include <string.h>

/* Opcodes. */
enum {
    OP_EXT_INST = 12,
    OP_DECORATE = 71,
    OP_MEMBER_DECORATE = 72,
    OP_F_NEGATE = 127,
    OP_F_ADD = 129,
    OP_F_SUB = 131,
    OP_F_MUL = 133,
    OP_F_DIV = 136,
    OP_VECTOR_TIMES_SCALAR = 142,
    OP_DOT = 148,
};

#define MAGIC          0x07230203u
#define HEADER_WORDS   5u
#define DECORATE_WORDS 3u
#define NO_CONTRACTION 42u
#define IDS_MAX        65536u /* glslang and spirv-opt number ids densely; ours have thousands */

static bool is_arithmetic(uint32_t opcode)
{
    switch (opcode) {
    case OP_EXT_INST: /* fma, exp, sqrt, ...; on integer ones the decoration says nothing */
    case OP_F_NEGATE:
    case OP_F_ADD:
    case OP_F_SUB:
    case OP_F_MUL:
    case OP_F_DIV:
    case OP_VECTOR_TIMES_SCALAR:
    case OP_DOT:
        return true;
    default:
        return false;
    }
}

typedef struct {
    uint8_t *state; /* [id]: 1 arithmetic, 2 decorated already */
    uint32_t n_ids;
    size_t n_add;     /* ids to decorate */
    size_t insert_at; /* word behind the last annotation */
} survey;

/* Walks the stream once: annotations come before the instructions they name. */
static bool take_stock(const uint32_t *words, size_t n_words, survey *s)
{
    for (size_t i = HEADER_WORDS; i < n_words;) {
        uint32_t opcode = words[i] & 0xffff, length = words[i] >> 16;
        if (!length || length > n_words - i)
            return false;
        if (opcode == OP_DECORATE || opcode == OP_MEMBER_DECORATE) {
            s->insert_at = i + length;
            if (opcode == OP_DECORATE && length >= DECORATE_WORDS && words[i + 1] < s->n_ids &&
                words[i + 2] == NO_CONTRACTION)
                s->state[words[i + 1]] = 2;
        } else if (is_arithmetic(opcode)) {
            if (length < 3 || words[i + 2] >= s->n_ids)
                return false;
            if (s->state[words[i + 2]] == 0) {
                s->state[words[i + 2]] = 1;
                s->n_add++;
            }
        }
        i += length;
    }
    return s->insert_at != 0;
}

uint32_t *td_vk_exact_module(const uint32_t *words, size_t n_words, size_t *n_out, td_err *err)
{
    survey s = {0};
    uint32_t *out = NULL;
    if (n_words < HEADER_WORDS || words[0] != MAGIC || words[3] > IDS_MAX) {
        td_err_set(err, TD_E_BUG, "a shader is not SPIR-V or has more than %u ids", IDS_MAX);
        goto fail;
    }
    s.n_ids = words[3];
    s.state = td_alloc(s.n_ids, 1, err);
    if (!s.state)
        goto fail;
    if (!take_stock(words, n_words, &s)) {
        td_err_set(err, TD_E_BUG, "a shader is not well-formed SPIR-V");
        goto fail;
    }
    out = td_alloc(n_words + s.n_add * DECORATE_WORDS, sizeof *out, err);
    if (!out)
        goto fail;
    memcpy(out, words, s.insert_at * sizeof *out);
    size_t at = s.insert_at;
    for (uint32_t id = 0; id < s.n_ids; id++)
        if (s.state[id] == 1) {
            out[at++] = DECORATE_WORDS << 16 | OP_DECORATE;
            out[at++] = id;
            out[at++] = NO_CONTRACTION;
        }
    memcpy(out + at, words + s.insert_at, (n_words - s.insert_at) * sizeof *out);
    *n_out = n_words + s.n_add * DECORATE_WORDS;
fail:
    td_free(s.state);
    return out;
}
