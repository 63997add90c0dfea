/* The table of architectures, and the hyper-parameters of a file. Every value passes a range before
 * it is used as a size, an index or a divisor; then they are checked against each other, and later
 * the tensors against them (weights.c). Sources of the traits: the files' own metadata and the
 * models' papers; golden data confirms them. */
#include "base/check.h"
#include "base/log.h"
#include "model/model_private.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const td_arch archs[] = {
    {.name = "llama", .is_normalized_router = true},
    {.name = "mistral3", .is_normalized_router = true},
    {.name = "llama4",
     .qk_norm = TD_QK_NORM_AFTER,
     .gating = TD_GATING_SIGMOID,
     .local_period = 4,
     .local_chunk = 8192,
     .is_global_nope = true,
     .is_expert_input_scaled = true,
     .has_shared_expert = true},
    {.name = "deepseek2", .is_mla = true},
    {.name = "qwen2", .rope = TD_ROPE_NEOX},
    {.name = "qwen2moe", .rope = TD_ROPE_NEOX},
    {.name = "qwen3", .rope = TD_ROPE_NEOX, .qk_norm = TD_QK_NORM_HEADS},
    {.name = "qwen3moe",
     .rope = TD_ROPE_NEOX,
     .qk_norm = TD_QK_NORM_HEADS,
     .is_normalized_router = true},
    {.name = "qwen3next",
     .rope = TD_ROPE_NEOX,
     .qk_norm = TD_QK_NORM_HEADS,
     .is_normalized_router = true,
     .is_hybrid = true,
     .is_gated_attention = true,
     .is_ffn_norm_post = true,
     .is_grouped_heads = true},
    {.name = "qwen35",
     .rope = TD_ROPE_NEOX,
     .qk_norm = TD_QK_NORM_HEADS,
     .is_hybrid = true,
     .is_gated_attention = true,
     .is_ffn_norm_post = true},
    {.name = "qwen35moe",
     .rope = TD_ROPE_NEOX,
     .qk_norm = TD_QK_NORM_HEADS,
     .is_normalized_router = true,
     .is_hybrid = true,
     .is_gated_attention = true,
     .is_ffn_norm_post = true},
    {.name = "gpt-oss",
     .rope = TD_ROPE_NEOX,
     .glu = TD_GLU_CLAMPED,
     .gating = TD_GATING_SELECTED,
     .local_period = 2,
     .is_ffn_norm_post = true},
    {.name = "minimax-m2",
     .rope = TD_ROPE_NEOX,
     .qk_norm = TD_QK_NORM_ALL,
     .gating = TD_GATING_SIGMOID,
     .is_normalized_router = true,
     .is_expert_ff_dense = true},
    {.name = "glm4moe",
     .rope = TD_ROPE_NEOX,
     .qk_norm = TD_QK_NORM_OPTIONAL,
     .gating = TD_GATING_SIGMOID,
     .is_normalized_router = true,
     .is_ffn_norm_post = true},
    {.name = "gemma2",
     .rope = TD_ROPE_NEOX,
     .glu = TD_GLU_GELU,
     .local_period = 2,
     .has_post_norms = true,
     .is_embd_scaled = true,
     .large_layers = 46},
    {.name = "gemma3",
     .rope = TD_ROPE_NEOX,
     .glu = TD_GLU_GELU,
     .qk_norm = TD_QK_NORM_HEADS,
     .local_period = 6,
     .has_post_norms = true,
     .is_embd_scaled = true,
     .large_layers = 62},
    {.name = "phi3", .rope = TD_ROPE_NEOX, .is_ffn_fused = true},
};

const char *td_arch_names(void)
{
    return "llama, mistral3, llama4, deepseek2, qwen2, qwen2moe, qwen3, qwen3moe, qwen3next, "
           "qwen35, qwen35moe, gpt-oss, minimax-m2, glm4moe, gemma2, gemma3, phi3";
}

/* One row per number. A missing key that is not required leaves the fallback. */
typedef struct {
    const char *key;
    size_t offset;
    double min, max;
    double fallback;
    bool is_float, is_required;
} param;

#define FIELD(name) offsetof(td_hparams, name)
#define U32(key, name, min, max, fallback)                                                         \
    {                                                                                              \
        key, FIELD(name), min, max, fallback, false, false                                         \
    }
#define U32_REQUIRED(key, name, min, max)                                                          \
    {                                                                                              \
        key, FIELD(name), min, max, 0, false, true                                                 \
    }
#define F32(key, name, min, max, fallback)                                                         \
    {                                                                                              \
        key, FIELD(name), min, max, fallback, true, false                                          \
    }

/* clang-format off */
static const param params[] = {
    U32_REQUIRED("context_length", n_ctx_train, 1, TD_CTX_MAX),
    U32_REQUIRED("embedding_length", n_embd, 1, TD_EMBD_MAX),
    U32_REQUIRED("block_count", n_layer, 1, TD_LAYERS_MAX),
    U32("nextn_predict_layers", n_nextn, 0, TD_LAYERS_MAX - 1, 0),
    U32("feed_forward_length", n_ff, 1, TD_FF_MAX, 0),
    U32_REQUIRED("attention.head_count", n_head, 1, TD_HEADS_MAX),
    U32("attention.head_count_kv", n_head_kv, 1, TD_HEADS_MAX, 0),
    U32("attention.key_length", head_dim_k, 1, TD_HEAD_DIM_MAX, 0),
    U32("attention.value_length", head_dim_v, 1, TD_HEAD_DIM_MAX, 0),
    U32("attention.sliding_window", window, 1, TD_CTX_MAX, 0),
    U32("rope.dimension_count", n_rot, 2, TD_HEAD_DIM_MAX, 0),
    U32("rope.scaling.original_context_length", rope_orig_ctx, 1, TD_CTX_MAX, 0),
    {"attention.layer_norm_rms_epsilon", FIELD(rms_eps), 1e-12, 1, 0, true, true},
    F32("attention.scale", attention_scale, 1e-6, 1e6, 0),
    F32("attn_logit_softcapping", attention_softcap, 1e-3, 1e6, 0),
    F32("final_logit_softcapping", final_softcap, 1e-3, 1e6, 0),
    F32("attention.temperature_scale", q_scale, 0, 1e3, 0),
    F32("rope.freq_base", rope_base, 1, 1e12, 10000),
    F32("rope.scaling.factor", rope_factor, 1e-3, 1e6, 1),
    F32("rope.scaling.attn_factor", rope_magnitude, 1e-3, 1e3, 1),
    F32("rope.scaling.yarn_log_multiplier", yarn_log_multiplier, 0, 1e3, 0),
    U32("expert_count", n_expert, 0, TD_EXPERTS_MAX, 0),
    U32("expert_used_count", n_expert_used, 0, TD_EXPERTS_USED_MAX, 0),
    U32("expert_feed_forward_length", n_ff_expert, 1, TD_FF_MAX, 0),
    U32("expert_shared_feed_forward_length", n_ff_shared, 0, TD_FF_MAX, 0),
    U32("expert_group_count", route.n_groups, 0, TD_EXPERTS_MAX, 0),
    U32("expert_group_used_count", route.n_groups_used, 0, TD_EXPERTS_MAX, 0),
    F32("expert_weights_scale", route.scale, 0, 1e6, 0),
    U32("leading_dense_block_count", n_dense, 0, TD_LAYERS_MAX, 0),
    U32("interleave_moe_layer_step", moe_every, 0, TD_LAYERS_MAX, 0),
};

static const param mla_params[] = {
    U32("attention.q_lora_rank", lora_q, 1, TD_EMBD_MAX, 0),
    U32_REQUIRED("attention.kv_lora_rank", lora_kv, 1, TD_HEAD_DIM_MAX),
    U32("attention.key_length_mla", mla_nope, 1, TD_HEAD_DIM_MAX, 0), /* rope included: derive() */
    U32("attention.value_length_mla", mla_v, 1, TD_HEAD_DIM_MAX, 0),
};

static const param hybrid_params[] = {
    U32("full_attention_interval", full_interval, 1, TD_LAYERS_MAX, 4),
    U32_REQUIRED("ssm.conv_kernel", delta_taps, 1, 16),
    U32_REQUIRED("ssm.state_size", delta_dim, 1, TD_STATE_DIM_MAX),
    U32_REQUIRED("ssm.time_step_rank", delta_heads_v, 1, TD_HEADS_MAX),
    U32_REQUIRED("ssm.group_count", delta_heads_k, 1, TD_HEADS_MAX),
};
/* clang-format on */

/* A number, or an array that says the same number for each layer. */
static bool get_number(const td_gguf *g, const char *key, bool is_float, double *out, td_err *err)
{
    td_gguf_array array;
    if (td_gguf_get_int_array(g, key, &array, NULL)) {
        for (uint32_t i = 0; i < array.n; i++) {
            double value = (double)td_gguf_array_int(&array, i);
            if (i && value != *out)
                return td_err_set(
                    err, TD_E_DATA,
                    "%s differs between layers: %g, and %g for layer %u; not supported", key, *out,
                    value, i);
            *out = value;
        }
        return array.n > 0 || td_err_set(err, TD_E_DATA, "%s is an empty array", key);
    }
    if (is_float) {
        float value;
        if (!td_gguf_get_f32(g, key, &value, err))
            return false;
        *out = (double)value;
        return true;
    }
    uint32_t value;
    if (!td_gguf_get_u32(g, key, &value, err))
        return false;
    *out = value;
    return true;
}

static bool read_params(td_model *m, const param *rows, size_t n, td_err *err)
{
    for (size_t i = 0; i < n; i++) {
        const param *p = &rows[i];
        char key[TD_NAME_MAX];
        snprintf(key, sizeof key, "%s.%s", m->arch->name, p->key);
        double value = p->fallback;
        if (p->is_required || td_gguf_has(m->gguf, key)) {
            if (!get_number(m->gguf, key, p->is_float, &value, err))
                return false;
            if (!(value >= p->min && value <= p->max)) /* NaN fails too */
                return td_err_set(err, TD_E_DATA, "%s is %.10g; allowed: %.10g..%.10g", key, value,
                                  p->min, p->max);
        }
        char *at = (char *)&m->hparams + p->offset;
        if (p->is_float)
            memcpy(at, &(float){(float)value}, sizeof(float));
        else
            memcpy(at, &(uint32_t){(uint32_t)value}, sizeof(uint32_t));
    }
    return true;
}

/* The full name of a key, and whether the file has it. */
static bool find_key(const td_model *m, const char *name, char key[TD_NAME_MAX])
{
    snprintf(key, TD_NAME_MAX, "%s.%s", m->arch->name, name);
    return td_gguf_has(m->gguf, key);
}

/* Settings of YaRN that are not read; the usual values are what is computed anyway. */
static void warn_of_yarn(const td_model *m)
{
    static const struct {
        const char *key;
        float usual;
    } settings[] = {{"rope.scaling.yarn_ext_factor", 1},
                    {"rope.scaling.yarn_attn_factor", 1},
                    {"rope.scaling.yarn_beta_fast", 32},
                    {"rope.scaling.yarn_beta_slow", 1}};
    for (size_t i = 0; i < TD_COUNT(settings); i++) {
        char key[TD_NAME_MAX];
        float value;
        if (find_key(m, settings[i].key, key) && td_gguf_get_f32(m->gguf, key, &value, NULL) &&
            value != settings[i].usual)
            td_log_warn("%s: %s is %g; not used, as if it were %g", m->path, key, (double)value,
                        (double)settings[i].usual);
    }
}

static bool read_rope(td_model *m, td_err *err)
{
    td_hparams *h = &m->hparams;
    char key[TD_NAME_MAX];
    const char *type = "none";
    if (find_key(m, "rope.scaling.type", key)) {
        if (!td_gguf_get_str(m->gguf, key, &type, NULL, err))
            return false;
    } else if (find_key(m, "rope.scale_linear", key)) {
        /* The key of older files: the factor alone, meaning linear. */
        static const param old = F32("rope.scale_linear", rope_factor, 1e-3, 1e6, 1);
        if (!read_params(m, &old, 1, err))
            return false;
        type = "linear";
    } else if (h->rope_factor != 1.0f) {
        type = "linear";
    }
    if (!strcmp(type, "none") || !strcmp(type, "longrope"))
        h->rope_scaling = TD_ROPE_SCALING_NONE;
    else if (!strcmp(type, "linear"))
        h->rope_scaling = TD_ROPE_SCALING_LINEAR;
    else if (!strcmp(type, "yarn"))
        h->rope_scaling = TD_ROPE_SCALING_YARN;
    else
        return td_err_set(err, TD_E_DATA, "%s is \"%.64s\"; allowed: none, linear, yarn, longrope",
                          key, type);
    warn_of_yarn(m);
    if (!strcmp(m->arch->name, "gemma3")) { /* others turn local layers as they do all */
        static const param local = F32("rope.freq_base_swa", rope_base_local, 1, 1e12, 10000);
        if (!read_params(m, &local, 1, err))
            return false;
    }
    return true;
}

static bool read_route(td_model *m, td_err *err)
{
    td_hparams *h = &m->hparams;
    char key[TD_NAME_MAX];
    uint32_t gating = 0;
    h->route.gating = m->arch->gating;
    h->route.is_normalized = m->arch->is_normalized_router;
    if (find_key(m, "expert_weights_norm", key) &&
        !td_gguf_get_bool(m->gguf, key, &h->route.is_normalized, err))
        return false;
    if (!find_key(m, "expert_gating_func", key))
        return true;
    if (!td_gguf_get_u32(m->gguf, key, &gating, err))
        return false;
    if (gating < 1 || gating > 3)
        return td_err_set(err, TD_E_DATA,
                          "%s is %u; allowed: 1 (softmax), 2 (sigmoid), 3 (softmax of those "
                          "selected)",
                          key, gating);
    h->route.gating = gating == 1   ? TD_GATING_SOFTMAX
                      : gating == 2 ? TD_GATING_SIGMOID
                                    : TD_GATING_SELECTED;
    return true;
}

static bool derive_experts(td_model *m, td_err *err)
{
    td_hparams *h = &m->hparams;
    uint32_t n_shared = m->arch->has_shared_expert;
    static const char *const key = "expert_shared_count";
    char full_key[TD_NAME_MAX];
    if (!h->n_expert)
        return true;
    if (find_key(m, key, full_key) && !td_gguf_get_u32(m->gguf, full_key, &n_shared, err))
        return false;
    if (m->arch->is_expert_ff_dense || !h->n_ff_expert)
        h->n_ff_expert = h->n_ff;
    if (!h->n_ff_expert)
        return td_err_set(err, TD_E_DATA, "expert_feed_forward_length is missing");
    if (n_shared > TD_EXPERTS_USED_MAX || h->n_ff_expert > TD_FF_MAX / td_max_u32(n_shared, 1))
        return td_err_set(err, TD_E_DATA, "%s is %u; allowed: 0..%u, and %u in all", full_key,
                          n_shared, TD_EXPERTS_USED_MAX, TD_FF_MAX);
    if (!h->n_ff_shared)
        h->n_ff_shared = n_shared * h->n_ff_expert;
    if (!h->n_expert_used || h->n_expert_used > h->n_expert)
        return td_err_set(err, TD_E_DATA, "expert_used_count is %u; allowed: 1..expert_count %u",
                          h->n_expert_used, h->n_expert);
    td_route_params *r = &h->route;
    r->n_groups = td_max_u32(r->n_groups, 1);
    if (r->n_groups == 1)
        r->n_groups_used = 1;
    if (h->n_expert % r->n_groups || r->n_groups_used < 1 || r->n_groups_used > r->n_groups ||
        h->n_expert_used > h->n_expert / r->n_groups * r->n_groups_used)
        return td_err_set(err, TD_E_DATA,
                          "expert_group_count %u, expert_group_used_count %u: no groups of %u "
                          "experts, of which %u are used",
                          r->n_groups, r->n_groups_used, h->n_expert, h->n_expert_used);
    if (r->scale == 0)
        r->scale = 1.0f;
    h->moe_every = td_max_u32(h->moe_every, 1);
    return true;
}

static bool derive_heads(td_model *m, td_err *err)
{
    td_hparams *h = &m->hparams;
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
    double of = h->n_layer == m->arch->large_layers ? h->n_embd / (double)h->n_head : h->head_dim_k;
    if (h->attention_scale == 0)
        h->attention_scale = (float)(1.0 / sqrt(of));
    return true;
}

/* The file describes the compressed cache or, if it is old, the heads; we keep the former. */
static bool derive_mla(td_model *m, td_err *err)
{
    td_hparams *h = &m->hparams;
    uint32_t dim_k = h->mla_nope ? h->mla_nope : h->head_dim_k;
    h->mla_v = h->mla_v ? h->mla_v : h->head_dim_v;
    if (dim_k <= h->n_rot)
        return td_err_set(err, TD_E_DATA,
                          "the head size %u (key_length_mla) must exceed rope.dimension_count %u",
                          dim_k, h->n_rot);
    h->mla_nope = dim_k - h->n_rot;
    h->n_head_kv = 1;
    h->head_dim_k = h->lora_kv + h->n_rot;
    h->head_dim_v = h->lora_kv;
    if (h->head_dim_k > TD_HEAD_DIM_MAX)
        return td_err_set(err, TD_E_DATA, "kv_lora_rank %u and rope.dimension_count %u: above %u",
                          h->lora_kv, h->n_rot, TD_HEAD_DIM_MAX);
    double factor = h->rope_scaling == TD_ROPE_SCALING_YARN ? (double)h->rope_factor : 1.0;
    double magnitude = 1.0 + (double)h->yarn_log_multiplier * log(factor);
    magnitude *= (double)h->rope_magnitude;
    h->attention_scale = (float)(magnitude * magnitude / sqrt((double)dim_k));
    return true;
}

static bool derive_hybrid(const td_hparams *h, td_err *err)
{
    if (h->delta_heads_v % h->delta_heads_k)
        return td_err_set(err, TD_E_DATA,
                          "ssm.time_step_rank %u is no multiple of ssm.group_count %u",
                          h->delta_heads_v, h->delta_heads_k);
    return true;
}

/* Scales of q by position: those of llama4 are constants of the model. */
static void derive_q_scale(td_model *m)
{
    td_hparams *h = &m->hparams;
    h->q_scale_every = td_max_u32(h->rope_orig_ctx, 1);
    if (m->arch->is_global_nope) {
        h->q_scale = h->q_scale > 0 ? h->q_scale : 0.1f;
        h->q_scale_every = m->arch->local_chunk;
        h->q_scale_offset = 1;
    }
}

static bool derive(td_model *m, td_err *err)
{
    const td_arch *arch = m->arch;
    td_hparams *h = &m->hparams;
    char key[TD_NAME_MAX];
    if (h->n_nextn >= h->n_layer)
        return td_err_set(err, TD_E_DATA,
                          "nextn_predict_layers is %u; allowed: below block_count %u", h->n_nextn,
                          h->n_layer);
    h->n_layer -= h->n_nextn;
    h->local_period = h->window || arch->local_chunk ? arch->local_period : 0;
    td_gguf_array array;
    if (h->local_period && find_key(m, "attention.sliding_window_pattern", key) &&
        !td_gguf_get_any_array(m->gguf, key, &array, NULL) &&
        !td_gguf_get_u32(m->gguf, key, &h->local_period, err))
        return false;
    if (!h->rope_orig_ctx)
        h->rope_orig_ctx = h->n_ctx_train;
    derive_q_scale(m);
    if (arch->is_mla && (!h->n_rot || h->n_rot % 2))
        return td_err_set(err, TD_E_DATA,
                          "rope.dimension_count is %u; allowed: even numbers from 2", h->n_rot);
    if (!(arch->is_mla ? derive_mla(m, err) : derive_heads(m, err)))
        return false;
    if (arch->is_hybrid && !derive_hybrid(h, err))
        return false;
    if (!derive_experts(m, err))
        return false;
    bool has_dense = !h->n_expert || h->n_dense || h->moe_every > 1;
    if (has_dense && !h->n_ff)
        return td_err_set(err, TD_E_DATA, "feed_forward_length is missing");
    return true;
}

bool td_hparams_read(td_model *m, td_err *err)
{
    const char *name;
    if (!td_gguf_get_str(m->gguf, "general.architecture", &name, NULL, err))
        return false;
    for (size_t i = 0; i < TD_COUNT(archs); i++)
        if (!strcmp(archs[i].name, name))
            m->arch = &archs[i];
    if (!m->arch)
        return td_err_set(err, TD_E_DATA, "general.architecture is \"%.64s\"; known ones: %s", name,
                          td_arch_names());
    return read_params(m, params, TD_COUNT(params), err) &&
           (!m->arch->is_mla || read_params(m, mla_params, TD_COUNT(mla_params), err)) &&
           (!m->arch->is_hybrid || read_params(m, hybrid_params, TD_COUNT(hybrid_params), err)) &&
           read_rope(m, err) && read_route(m, err) && derive(m, err);
}

bool td_layer_is_recurrent(const td_model *m, uint32_t layer)
{
    return m->arch->is_hybrid && (layer + 1) % m->hparams.full_interval != 0;
}

bool td_layer_is_local(const td_model *m, uint32_t layer)
{
    uint32_t period = m->hparams.local_period;
    return period && layer % period + 1 < period;
}

bool td_layer_has_experts(const td_model *m, uint32_t layer)
{
    const td_hparams *h = &m->hparams;
    return h->n_expert && layer >= h->n_dense && (layer + 1) % h->moe_every == 0;
}
