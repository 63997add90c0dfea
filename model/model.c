/* Opening a model. Every hyper-parameter passes one table of ranges before it is used as a size, an
 * index or a divisor; then they are checked against each other, and the tensors against them. */
#include "model/model.h"

#include "base/check.h"
#include "base/mem.h"
#include "model/model_private.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const td_arch archs[] = {
    {.name = "llama", .rope = TD_ROPE_NORM},
    {.name = "qwen2", .rope = TD_ROPE_NEOX},
    {.name = "qwen3", .rope = TD_ROPE_NEOX, .has_qk_norm = true},
};

const char *td_arch_names(void) { return "llama, qwen2, qwen3"; }

/* One row per integer hyper-parameter. A missing key without a default is an error. */
typedef struct {
    const char *key;
    size_t offset;
    uint32_t min, max;
    uint32_t fallback; /* 0: the key is required */
} u32_param;

#define FIELD(name)    offsetof(td_hparams, name)
#define OPTIONAL_LATER UINT32_MAX /* filled in by derive() */

static const u32_param u32_params[] = {
    {"context_length", FIELD(n_ctx_train), 1, TD_CTX_MAX, 0},
    {"embedding_length", FIELD(n_embd), 1, TD_EMBD_MAX, 0},
    {"block_count", FIELD(n_layer), 1, TD_LAYERS_MAX, 0},
    {"feed_forward_length", FIELD(n_ff), 1, TD_FF_MAX, 0},
    {"attention.head_count", FIELD(n_head), 1, TD_HEADS_MAX, 0},
    {"attention.head_count_kv", FIELD(n_head_kv), 1, TD_HEADS_MAX, OPTIONAL_LATER},
    {"attention.key_length", FIELD(head_dim_k), 1, 1024, OPTIONAL_LATER},
    {"attention.value_length", FIELD(head_dim_v), 1, 1024, OPTIONAL_LATER},
    {"rope.dimension_count", FIELD(n_rot), 2, 1024, OPTIONAL_LATER},
    {"rope.scaling.original_context_length", FIELD(rope_orig_ctx), 1, TD_CTX_MAX, OPTIONAL_LATER},
};

static bool read_u32(const td_gguf *g, const char *arch, const u32_param *row, td_hparams *h,
                     td_err *err)
{
    char key[TD_NAME_MAX];
    snprintf(key, sizeof key, "%s.%s", arch, row->key);
    uint32_t value = 0;
    if (!td_gguf_has(g, key) && row->fallback) {
        value = row->fallback == OPTIONAL_LATER ? 0 : row->fallback;
    } else {
        if (!td_gguf_get_u32(g, key, &value, err))
            return false;
        if (value < row->min || value > row->max)
            return td_err_set(err, TD_E_DATA, "%s is %u; allowed: %u..%u", key, value, row->min,
                              row->max);
    }
    memcpy((char *)h + row->offset, &value, sizeof value);
    return true;
}

static bool read_f32(const td_gguf *g, const char *arch, const char *name, float min, float max,
                     float fallback, float *out, td_err *err)
{
    char key[TD_NAME_MAX];
    snprintf(key, sizeof key, "%s.%s", arch, name);
    *out = fallback;
    if (!td_gguf_has(g, key) && fallback > 0)
        return true;
    if (!td_gguf_get_f32(g, key, out, err))
        return false;
    if (!(*out >= min && *out <= max)) /* NaN fails too */
        return td_err_set(err, TD_E_DATA, "%s is %g; allowed: %g..%g", key, (double)*out,
                          (double)min, (double)max);
    return true;
}

static bool read_rope(const td_gguf *g, const char *arch, td_hparams *h, td_err *err)
{
    if (!read_f32(g, arch, "rope.freq_base", 1.0f, 1e12f, 10000.0f, &h->rope_base, err) ||
        !read_f32(g, arch, "rope.scaling.factor", 1e-3f, 1e6f, 1.0f, &h->rope_factor, err))
        return false;
    char key[TD_NAME_MAX];
    snprintf(key, sizeof key, "%s.rope.scaling.type", arch);
    const char *type = "none";
    if (td_gguf_has(g, key)) {
        if (!td_gguf_get_str(g, key, &type, NULL, err))
            return false;
    } else {
        /* The key of older files: the factor alone, meaning linear. */
        char old_key[TD_NAME_MAX];
        snprintf(old_key, sizeof old_key, "%s.rope.scale_linear", arch);
        if (td_gguf_has(g, old_key)) {
            if (!read_f32(g, arch, "rope.scale_linear", 1e-3f, 1e6f, 1.0f, &h->rope_factor, err))
                return false;
            type = "linear";
        } else if (h->rope_factor != 1.0f) {
            type = "linear";
        }
    }
    if (!strcmp(type, "none"))
        h->rope_scaling = TD_ROPE_SCALING_NONE;
    else if (!strcmp(type, "linear"))
        h->rope_scaling = TD_ROPE_SCALING_LINEAR;
    else if (!strcmp(type, "yarn"))
        h->rope_scaling = TD_ROPE_SCALING_YARN;
    else
        return td_err_set(err, TD_E_DATA, "%s is \"%.64s\"; allowed: none, linear, yarn", key,
                          type);
    return true;
}

/* Fills what the file may leave out and checks the parameters against each other. */
static bool derive(td_hparams *h, td_err *err)
{
    if (!h->n_head_kv)
        h->n_head_kv = h->n_head;
    if (h->n_head % h->n_head_kv)
        return td_err_set(err, TD_E_DATA,
                          "attention.head_count %u is no multiple of head_count_kv %u", h->n_head,
                          h->n_head_kv);
    if (!h->head_dim_k) {
        if (h->n_embd % h->n_head)
            return td_err_set(err, TD_E_DATA,
                              "embedding_length %u is no multiple of attention.head_count %u",
                              h->n_embd, h->n_head);
        h->head_dim_k = h->n_embd / h->n_head;
    }
    if (!h->head_dim_v)
        h->head_dim_v = h->head_dim_k;
    if (!h->n_rot)
        h->n_rot = h->head_dim_k;
    if (h->n_rot > h->head_dim_k || h->n_rot % 2)
        return td_err_set(
            err, TD_E_DATA,
            "rope.dimension_count is %u; allowed: an even number up to the head size %u", h->n_rot,
            h->head_dim_k);
    if (!h->rope_orig_ctx)
        h->rope_orig_ctx = h->n_ctx_train;
    return true;
}

static bool read_hparams(td_model *m, td_err *err)
{
    const td_gguf *g = m->gguf;
    const char *name;
    if (!td_gguf_get_str(g, "general.architecture", &name, NULL, err))
        return false;
    for (size_t i = 0; i < TD_COUNT(archs); i++)
        if (!strcmp(archs[i].name, name))
            m->arch = &archs[i];
    if (!m->arch)
        return td_err_set(err, TD_E_DATA, "general.architecture is \"%.64s\"; known ones: %s", name,
                          td_arch_names());
    td_hparams *h = &m->hparams;
    for (size_t i = 0; i < TD_COUNT(u32_params); i++)
        if (!read_u32(g, name, &u32_params[i], h, err))
            return false;
    char key[TD_NAME_MAX];
    snprintf(key, sizeof key, "%s.expert_count", name);
    uint32_t n_expert = 0;
    if (td_gguf_has(g, key) && !td_gguf_get_u32(g, key, &n_expert, err))
        return false;
    if (n_expert)
        return td_err_set(err, TD_E_DATA, "%s is %u: mixtures of experts are not supported yet",
                          key, n_expert);
    return read_f32(g, name, "attention.layer_norm_rms_epsilon", 1e-12f, 1.0f, 0.0f, &h->rms_eps,
                    err) &&
           read_rope(g, name, h, err) && derive(h, err);
}

/* The rotation speed of each pair in radians per position, in double precision. */
static bool init_rope(td_model *m, td_err *err)
{
    const td_hparams *h = &m->hparams;
    uint32_t n_pairs = h->n_rot / 2;
    m->rope_speed = td_alloc(n_pairs, sizeof *m->rope_speed, err);
    float *factors = td_alloc(n_pairs, sizeof *factors, err);
    if (!m->rope_speed || !factors)
        goto fail;
    const td_gguf_tensor *t = td_gguf_find_tensor(m->gguf, "rope_freqs.weight");
    for (uint32_t i = 0; i < n_pairs; i++)
        factors[i] = 1.0f;
    if (t) {
        if (!t->type || t->type->id != TD_TYPE_F32 || t->n_dims != 1 || t->ne[0] != n_pairs) {
            td_err_set(err, TD_E_DATA, "rope_freqs.weight must be F32 with %u entries", n_pairs);
            goto fail;
        }
        if (!td_gguf_read(m->gguf, t, 0, t->n_bytes, factors, err))
            goto fail;
    }
    /* YaRN: pairs that turn often keep their speed, slow ones are interpolated, a ramp between. */
    double log_base = log((double)h->rope_base), low = 0, high = 0;
    if (h->rope_scaling == TD_ROPE_SCALING_YARN) {
        low = floor(h->n_rot * log(h->rope_orig_ctx / (32.0 * 2 * M_PI)) / (2 * log_base));
        high = ceil(h->n_rot * log(h->rope_orig_ctx / (1.0 * 2 * M_PI)) / (2 * log_base));
        low = fmax(0, low);
        high = fmin(h->n_rot - 1, high);
        m->rope_magnitude = 1.0 + 0.1 * log((double)h->rope_factor);
    }
    for (uint32_t i = 0; i < n_pairs; i++) {
        if (!(factors[i] >= 1e-6f && factors[i] <= 1e6f)) {
            td_err_set(err, TD_E_DATA, "rope_freqs.weight[%u] is %g; allowed: 1e-6..1e6", i,
                       (double)factors[i]);
            goto fail;
        }
        double fast = pow((double)h->rope_base, -2.0 * i / h->n_rot) / (double)factors[i];
        double slow = fast / (double)h->rope_factor;
        double ramp = 1.0 - fmin(1, fmax(0, (i - low) / fmax(0.001, high - low)));
        m->rope_speed[i] = h->rope_scaling == TD_ROPE_SCALING_NONE ? fast
                           : h->rope_scaling == TD_ROPE_SCALING_LINEAR
                               ? slow
                               : slow * (1 - ramp) + fast * ramp;
    }
    td_free(factors);
    return true;
fail:
    td_free(factors);
    return false;
}

void td_rope_cos_sin(const td_model *m, uint32_t position, float *cos_sin)
{
    for (uint32_t i = 0; i < m->hparams.n_rot / 2; i++) {
        double angle = position * m->rope_speed[i];
        cos_sin[2 * i] = (float)(m->rope_magnitude * cos(angle));
        cos_sin[2 * i + 1] = (float)(m->rope_magnitude * sin(angle));
    }
}

static bool open_parts(td_model *m, const char *path, td_err *err)
{
    m->path = td_strndup(path, strlen(path), err);
    m->gguf = m->path ? td_gguf_open(path, err) : NULL;
    if (!m->gguf || !read_hparams(m, err))
        return false;
    m->tokenizer = td_tokenizer_create(m->gguf, NULL, err);
    if (!m->tokenizer)
        return false;
    m->hparams.n_vocab = td_tokenizer_get_info(m->tokenizer)->n_vocab;
    m->hparams.is_tied = !td_gguf_find_tensor(m->gguf, "output.weight");
    m->rope_magnitude = 1.0;
    return td_weights_check(m, err) && init_rope(m, err);
}

td_model *td_model_open(const char *path, td_err *err)
{
    td_model *m = td_alloc(1, sizeof *m, err);
    if (!m)
        return NULL;
    if (!open_parts(m, path, err)) {
        td_err_prepend(err, "%s", path);
        td_model_close(&m);
    }
    return m;
}

void td_model_close(td_model **m)
{
    if (!*m)
        return;
    td_tokenizer_destroy(&(*m)->tokenizer);
    td_gguf_close(&(*m)->gguf);
    td_free((*m)->rope_speed);
    td_free((*m)->path);
    td_free(*m);
    *m = NULL;
}

const td_gguf *td_model_gguf(const td_model *m) { return m->gguf; }
const td_arch *td_model_arch(const td_model *m) { return m->arch; }
const td_hparams *td_model_hparams(const td_model *m) { return &m->hparams; }
const td_tokenizer *td_model_tokenizer(const td_model *m) { return m->tokenizer; }
const char *td_model_path(const td_model *m) { return m->path; }

const char *td_model_name(const td_model *m)
{
    const char *name;
    if (td_gguf_has(m->gguf, "general.name") &&
        td_gguf_get_str(m->gguf, "general.name", &name, NULL, NULL))
        return name;
    const char *slash = strrchr(m->path, '/');
    return slash ? slash + 1 : m->path;
}
