/* Whole models of a few kilobytes for tests: every key and tensor may be changed, dropped or added
 * before the file is written. Weights are random, but wide enough that logits differ. */
#ifndef TD_TESTS_TOY_MODEL_H
#define TD_TESTS_TOY_MODEL_H

#include "gguf_writer.h"

#include "base/check.h"
#include "kernels/types.h"
#include "model/model.h"

#include <math.h>
#include <stdbool.h>

#define TOY_VOCAB 259u /* <unk> <s> </s> and 256 bytes, SentencePiece */

typedef struct {
    char key[64];
    uint32_t type; /* GW_U32, GW_F32 or GW_STRING */
    uint32_t bits;
    const char *text;
} toy_key;

typedef struct {
    char name[64];
    uint32_t n_dims, type;
    uint64_t ne[4];
    float offset, scale; /* values: offset + scale * uniform(-1, 1) */
    float poison;        /* written to elements poison_first.. */
    uint64_t poison_first, n_poison;
} toy_tensor;

typedef struct {
    char arch[16];
    uint64_t seed;
    uint32_t n_vocab;
    toy_key keys[32];
    uint32_t n_keys;
    toy_tensor tensors[128];
    uint32_t n_tensors;
} toy;

/* The key "ARCH.name", or a place for it. A name with "general." is taken as it is. */
static inline toy_key *toy_at(toy *t, const char *name)
{
    char key[64];
    snprintf(key, sizeof key, "%s%s%s", strncmp(name, "general.", 8) ? t->arch : "",
             strncmp(name, "general.", 8) ? "." : "", name);
    for (uint32_t i = 0; i < t->n_keys; i++)
        if (!strcmp(t->keys[i].key, key))
            return &t->keys[i];
    toy_key *k = &t->keys[t->n_keys++];
    snprintf(k->key, sizeof k->key, "%s", key);
    return k;
}

static inline void toy_u32(toy *t, const char *name, uint32_t value)
{
    toy_key *k = toy_at(t, name);
    k->type = GW_U32;
    k->bits = value;
}

static inline void toy_f32(toy *t, const char *name, float value)
{
    toy_key *k = toy_at(t, name);
    k->type = GW_F32;
    memcpy(&k->bits, &value, sizeof value);
}

static inline void toy_str(toy *t, const char *name, const char *text)
{
    toy_key *k = toy_at(t, name);
    k->type = GW_STRING;
    k->text = text;
}

static inline void toy_drop_key(toy *t, const char *name)
{
    toy_key *k = toy_at(t, name);
    *k = t->keys[--t->n_keys];
}

static inline toy_tensor *toy_find(toy *t, const char *name)
{
    for (uint32_t i = 0; i < t->n_tensors; i++)
        if (!strcmp(t->tensors[i].name, name))
            return &t->tensors[i];
    gw_fail(name);
    return NULL;
}

static inline void toy_drop_tensor(toy *t, const char *name)
{
    toy_tensor *x = toy_find(t, name);
    *x = t->tensors[--t->n_tensors];
}

static inline toy_tensor *toy_add(toy *t, const char *name, uint64_t n_cols, uint64_t n_rows)
{
    toy_tensor *x = &t->tensors[t->n_tensors++];
    *x = (toy_tensor){.n_dims = n_rows > 1 ? 2 : 1,
                      .ne = {n_cols, n_rows, 1, 1},
                      .scale = n_rows > 1 ? 1.7f / sqrtf((float)n_cols) : 0.1f};
    snprintf(x->name, sizeof x->name, "%s", name);
    return x;
}

static inline toy_tensor *toy_add_layer(toy *t, uint32_t layer, const char *name, uint64_t n_cols,
                                        uint64_t n_rows)
{
    char full[64];
    snprintf(full, sizeof full, "blk.%u.%s", layer, name);
    return toy_add(t, full, n_cols, n_rows);
}

typedef struct {
    uint32_t n_embd, n_head, n_head_kv, head_dim, n_layer, n_ff, n_ctx;
    bool is_untied, has_biases;
} toy_shape;

#define TOY_SHAPE ((toy_shape){64, 4, 2, 16, 4, 96, 256, true, false})

static inline void toy_add_layers(toy *t, const toy_shape *s)
{
    const uint32_t n_q = s->n_head * s->head_dim, n_kv = s->n_head_kv * s->head_dim;
    for (uint32_t i = 0; i < s->n_layer; i++) {
        toy_add_layer(t, i, "attn_norm.weight", s->n_embd, 1)->offset = 1;
        toy_add_layer(t, i, "attn_q.weight", s->n_embd, n_q);
        toy_add_layer(t, i, "attn_k.weight", s->n_embd, n_kv);
        toy_add_layer(t, i, "attn_v.weight", s->n_embd, n_kv);
        toy_add_layer(t, i, "attn_output.weight", n_q, s->n_embd);
        if (!strcmp(t->arch, "qwen3")) {
            toy_add_layer(t, i, "attn_q_norm.weight", s->head_dim, 1)->offset = 1;
            toy_add_layer(t, i, "attn_k_norm.weight", s->head_dim, 1)->offset = 1;
        }
        if (s->has_biases) {
            toy_add_layer(t, i, "attn_q.bias", n_q, 1);
            toy_add_layer(t, i, "attn_k.bias", n_kv, 1);
            toy_add_layer(t, i, "attn_v.bias", n_kv, 1);
        }
        toy_add_layer(t, i, "ffn_norm.weight", s->n_embd, 1)->offset = 1;
        toy_add_layer(t, i, "ffn_gate.weight", s->n_embd, s->n_ff);
        toy_add_layer(t, i, "ffn_up.weight", s->n_embd, s->n_ff);
        toy_add_layer(t, i, "ffn_down.weight", s->n_ff, s->n_embd);
    }
}

static inline toy toy_begin(const char *arch, toy_shape s)
{
    toy t = {.seed = 1, .n_vocab = TOY_VOCAB};
    snprintf(t.arch, sizeof t.arch, "%s", arch);
    toy_str(&t, "general.architecture", arch);
    toy_u32(&t, "context_length", s.n_ctx);
    toy_u32(&t, "embedding_length", s.n_embd);
    toy_u32(&t, "block_count", s.n_layer);
    toy_u32(&t, "feed_forward_length", s.n_ff);
    toy_u32(&t, "attention.head_count", s.n_head);
    toy_u32(&t, "attention.head_count_kv", s.n_head_kv);
    if (s.head_dim * s.n_head != s.n_embd) {
        toy_u32(&t, "attention.key_length", s.head_dim);
        toy_u32(&t, "attention.value_length", s.head_dim);
    }
    toy_f32(&t, "attention.layer_norm_rms_epsilon", 1e-5f);
    toy_f32(&t, "rope.freq_base", 10000.0f);
    toy_add(&t, "token_embd.weight", s.n_embd, t.n_vocab)->scale = 1.0f;
    toy_add_layers(&t, &s);
    toy_add(&t, "output_norm.weight", s.n_embd, 1)->offset = 1;
    if (s.is_untied)
        toy_add(&t, "output.weight", s.n_embd, t.n_vocab)->scale = 0.5f;
    return t;
}

static inline uint64_t toy_bytes(const toy_tensor *x, uint64_t *n_elements)
{
    *n_elements = 1;
    for (uint32_t i = 0; i < x->n_dims; i++)
        *n_elements *= x->ne[i];
    const td_type_format *f = td_type_find_format(x->type);
    return f ? (*n_elements + f->block_elements - 1) / f->block_elements * f->block_bytes : 0;
}

static inline void toy_write_tensor(gw *w, const toy_tensor *x, uint64_t state)
{
    uint64_t n, n_bytes = toy_bytes(x, &n);
    const td_type_info *type = td_type_find(x->type);
    float *values = malloc((n + 256) * sizeof *values);
    uint8_t *blocks = calloc(1, n_bytes + 256);
    if (!values || !blocks)
        gw_fail("malloc");
    for (uint64_t i = 0; i < n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        values[i] = x->offset + x->scale * ((float)(state >> 40) / 8388608.0f - 1.0f);
        if (i >= x->poison_first && i < x->poison_first + x->n_poison)
            values[i] = x->poison;
    }
    if (type && type->quantize && n % type->block_elements == 0)
        type->quantize(values, blocks, n); /* other types stay zero */
    gw_bytes(w, blocks, n_bytes);
    gw_bytes(w, NULL, (32 - w->n % 32) % 32);
    free(values);
    free(blocks);
}

static inline void toy_write_vocab(gw *w, uint32_t n_vocab)
{
    gw_kv_str(w, "tokenizer.ggml.model", "llama");
    gw_kv_array(w, "tokenizer.ggml.tokens", GW_STRING, n_vocab);
    for (uint32_t i = 0; i < n_vocab; i++) {
        static const char *const firsts[] = {"<unk>", "<s>", "</s>"};
        char text[16];
        snprintf(text, sizeof text, i < 259 ? "<0x%02X>" : "extra%u", i < 259 ? i - 3 : i);
        gw_str(w, i < 3 ? firsts[i] : text);
    }
    gw_kv_array(w, "tokenizer.ggml.token_type", GW_I32, n_vocab);
    for (uint32_t i = 0; i < n_vocab; i++)
        gw_u32(w, i == 0 ? 2 : i < 3 ? 3 : i < 259 ? 6 : 1);
    gw_kv_array(w, "tokenizer.ggml.scores", GW_F32, n_vocab);
    for (uint32_t i = 0; i < n_vocab; i++)
        gw_u32(w, 0);
}

/* The file's bytes; to be freed by gw_free. */
static inline gw toy_write(const toy *t)
{
    gw w = gw_begin(3);
    for (uint32_t i = 0; i < t->n_keys; i++) {
        const toy_key *k = &t->keys[i];
        if (k->type == GW_STRING)
            gw_kv_str(&w, k->key, k->text);
        else
            gw_kv(&w, k->key, k->type, k->bits, 4);
    }
    toy_write_vocab(&w, t->n_vocab);
    uint64_t offset = 0, n;
    for (uint32_t i = 0; i < t->n_tensors; i++) {
        const toy_tensor *x = &t->tensors[i];
        gw_tensor(&w, x->name, x->n_dims, x->ne, x->type, offset);
        offset += (toy_bytes(x, &n) + 31) / 32 * 32;
    }
    gw_end(&w, 32, 0);
    gw_bytes(&w, NULL, (32 - w.n % 32) % 32);
    for (uint32_t i = 0; i < t->n_tensors; i++)
        toy_write_tensor(&w, &t->tensors[i], t->seed * 1000003 + i);
    return w;
}

/* Opens the model through a file without a name; NULL with err set. */
static inline td_model *toy_open(const toy *t, td_err *err)
{
    gw w = toy_write(t);
    gw_file f = gw_file_create();
    gw_file_set(&f, w.bytes, w.n);
    td_model *m = td_model_open(f.path, err);
    gw_free(&w);
    close(f.fd);
    return m;
}

/* Writes the model to a new file; path ends in XXXXXX. */
static inline void toy_save(const toy *t, char *path)
{
    gw w = toy_write(t);
    int fd = mkstemp(path);
    if (fd < 0)
        gw_fail(path);
    close(fd);
    gw_save(&w, path);
    gw_free(&w);
}

#endif
