/* The texts of the simulated worlds: a toy target whose choice after a row is a hash of the last
 * tokens in its cache, so that a cache that was rolled back wrongly gives another text, and what
 * plain decoding gives with it, from its definition. */
#ifndef TD_TESTS_SIM_TEXT_H
#define TD_TESTS_SIM_TEXT_H

#include "base/check.h"
#include "coordinator/coordinator.h"

#include <string.h>

#define N_VOCAB   40u
#define END_TOKEN 7u
#define N_CTX_MAX 8192u

/* What plain decoding gives. */
typedef struct {
    uint32_t prompt[N_CTX_MAX], n_prompt, n_predict;
    bool ignore_end;
    char stops[4][12];
    uint32_t n_stops;
    uint64_t stream;
    uint32_t tokens[N_CTX_MAX], n_tokens; /* expected */
    char text[N_CTX_MAX * 4];
    size_t n_text;
    td_reason reason;
    uint32_t sequence, n_seen; /* tokens announced so far */
    bool is_added, is_cancelled, is_done;
    td_sequence_info info; /* after FINISH; its pointers are gone */
} prompt;

static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Tokens of 0..3 bytes over a tiny alphabet, so that stop strings occur and straddle tokens. */
static const char *toy_bytes(void *user, uint32_t id, size_t *n_bytes)
{
    static const char letters[] = "aabaabbbabababbaaabbabaaabbbbaababaabbbaab";
    (void)user;
    *n_bytes = id % 4;
    return letters + id % 38;
}

static bool toy_is_end(void *user, uint32_t id)
{
    (void)user;
    return id == END_TOKEN;
}

/* The target: the token after tokens[0..n). */
static uint32_t toy_choose(uint64_t stream, const uint32_t *tokens, uint32_t n)
{
    uint64_t h = mix(stream + n);
    for (uint32_t i = n > 3 ? n - 3 : 0; i < n; ++i)
        h = mix(h * 31 + tokens[i] + 1);
    return (uint32_t)(h % N_VOCAB);
}

/* ---- plain decoding, from its definition ---- */

/* Appends a token's text and cuts it before the first stop string that is complete. */
static bool append_plain(prompt *p, uint32_t token)
{
    size_t n_bytes;
    const char *bytes = toy_bytes(NULL, token, &n_bytes);
    for (size_t i = 0; i < n_bytes; ++i) {
        p->text[p->n_text++] = bytes[i];
        size_t n_cut = 0;
        for (uint32_t j = 0; j < p->n_stops; ++j) {
            size_t n = strlen(p->stops[j]);
            if (n > n_cut && n <= p->n_text && !memcmp(p->text + p->n_text - n, p->stops[j], n))
                n_cut = n;
        }
        p->n_text -= n_cut;
        if (n_cut)
            return true;
    }
    return false;
}

static void decode_plain(prompt *p, uint32_t n_ctx)
{
    static uint32_t all[N_CTX_MAX];
    uint32_t n = p->n_prompt;
    memcpy(all, p->prompt, n * sizeof(*all));
    while (p->reason == TD_REASON_NONE) {
        uint32_t token = toy_choose(p->stream, all, n);
        all[n++] = p->tokens[p->n_tokens++] = token;
        if (token == END_TOKEN && !p->ignore_end)
            p->reason = TD_REASON_EOS;
        else if (append_plain(p, token))
            p->reason = TD_REASON_STOP;
        else if (p->n_tokens == p->n_predict)
            p->reason = TD_REASON_LENGTH;
        else if (n == n_ctx)
            p->reason = TD_REASON_CONTEXT;
    }
}

/* Token `i` of prompt and expected text. */
static uint32_t expected_at(const prompt *p, uint32_t i)
{
    if (i < p->n_prompt)
        return p->prompt[i];
    return i - p->n_prompt < p->n_tokens ? p->tokens[i - p->n_prompt] : N_VOCAB - 1;
}

#endif
