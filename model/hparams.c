/* The hyper-parameters of a file. Every value passes a range before it is used as a size, an index
 * or a divisor; then they are checked against each other, and later the tensors against them
 * (tensors.c). Files differ in how they say a thing: a key may be missing, hold zero for "none", be
 * of another width, or give a value per layer; all of that is one way of reading (read_params).
 * What follows from a shape or from an absence is in derive(); docs/models.md lists it. */
#include "base/check.h"
#include "base/log.h"
#include "model/model_private.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* How a number is said. Zero is how converters write "none", so it leaves an optional one at its
 * fallback; a VALUE's fallback is no "none" but a value derived from others, and zero is refused.
 */
typedef enum { REQUIRED, OPTIONAL, VALUE } saying;

/* One row per number. A missing key that is not required leaves what its family means by that
 * (arch.c), else the fallback. */
typedef struct {
    const char *key;
    size_t offset;
    saying saying;
    bool is_float;
    double min, max;
    double fallback;
    uint32_t reads; /* td_reads of the architectures that have it */
} param;

#define AT(name) offsetof(td_hparams, name)

/* The first two say how many values a list by layers has. rope.scale_linear is the old name of
 * rope.scaling.factor, which wins: read_rope(). Of key_length_mla a part turns: derive_mla(). */
/* clang-format off */
static const param params[] = {
    {"block_count", AT(n_layer), REQUIRED, false, 1, TD_LAYERS_MAX, 0, TD_READS_ALL},
    {"nextn_predict_layers", AT(n_nextn), OPTIONAL, false, 0, TD_LAYERS_MAX - 1, 0, TD_READS_ALL},
    {"context_length", AT(n_ctx_train), REQUIRED, false, 1, TD_CTX_MAX, 0, TD_READS_ALL},
    {"embedding_length", AT(n_embd), REQUIRED, false, 1, TD_EMBD_MAX, 0, TD_READS_ALL},
    {"feed_forward_length", AT(n_ff), OPTIONAL, false, 1, TD_FF_MAX, 0, TD_READS_ALL},
    {"attention.head_count", AT(n_head), REQUIRED, false, 1, TD_HEADS_MAX, 0, TD_READS_ALL},
    {"attention.head_count_kv", AT(n_head_kv), VALUE, false, 1, TD_HEADS_MAX, 0, TD_READS_ALL},
    {"attention.key_length", AT(head_dim_k), VALUE, false, 1, TD_HEAD_DIM_MAX, 0, TD_READS_ALL},
    {"attention.value_length", AT(head_dim_v), VALUE, false, 1, TD_HEAD_DIM_MAX, 0, TD_READS_ALL},
    {"attention.sliding_window", AT(window), OPTIONAL, false, 1, TD_CTX_MAX, 0, TD_READS_LOCAL},
    {"rope.dimension_count", AT(n_rot), VALUE, false, 2, TD_HEAD_DIM_MAX, 0, TD_READS_ALL},
    {"rope.scaling.original_context_length", AT(rope_orig_ctx), OPTIONAL, false, 1, TD_CTX_MAX, 0, TD_READS_ALL},
    {"attention.layer_norm_rms_epsilon", AT(rms_eps), REQUIRED, true, 1e-12, 1, 0, TD_READS_ALL},
    {"attn_logit_softcapping", AT(attention_softcap), OPTIONAL, true, 1e-3, 1e6, 0, TD_READS_ATTENTION_CAP},
    {"final_logit_softcapping", AT(final_softcap), OPTIONAL, true, 1e-3, 1e6, 0, TD_READS_FINAL_CAP},
    {"attention.temperature_scale", AT(q_scale), OPTIONAL, true, 0, 1e3, 0, TD_READS_TEMPERATURE},
    {"rope.freq_base", AT(rope_base), VALUE, true, 1, 1e12, 10000, TD_READS_ALL},
    {"rope.freq_base_swa", AT(rope_base_local), OPTIONAL, true, 1, 1e12, 0, TD_READS_LOCAL},
    {"rope.scale_linear", AT(rope_factor), OPTIONAL, true, 1e-3, 1e6, 1, TD_READS_ALL},
    {"rope.scaling.attn_factor", AT(rope_magnitude), OPTIONAL, true, 1e-3, 1e3, 1, TD_READS_ALL},
    {"rope.scaling.yarn_log_multiplier", AT(yarn_log_multiplier), OPTIONAL, true, 0, 1e3, 0, TD_READS_YARN_LOG},
    {"rope.scaling.yarn_beta_fast", AT(yarn_beta_fast), OPTIONAL, true, 1e-3, 1e6, 32, TD_READS_YARN_BETAS},
    {"rope.scaling.yarn_beta_slow", AT(yarn_beta_slow), OPTIONAL, true, 1e-3, 1e6, 1, TD_READS_YARN_BETAS},
    {"expert_count", AT(n_expert), OPTIONAL, false, 0, TD_EXPERTS_MAX, 0, TD_READS_ALL},
    {"expert_used_count", AT(n_expert_used), OPTIONAL, false, 0, TD_EXPERTS_USED_MAX, 0, TD_READS_ALL},
    {"expert_feed_forward_length", AT(n_ff_expert), OPTIONAL, false, 1, TD_FF_MAX, 0, TD_READS_ALL},
    {"expert_shared_feed_forward_length", AT(n_ff_shared), OPTIONAL, false, 0, TD_FF_MAX, 0, TD_READS_ALL},
    {"expert_shared_count", AT(n_expert_shared), OPTIONAL, false, 0, TD_EXPERTS_USED_MAX, 0, TD_READS_ALL},
    {"expert_group_count", AT(route.n_groups), OPTIONAL, false, 0, TD_EXPERTS_MAX, 0, TD_READS_ALL},
    {"expert_group_used_count", AT(route.n_groups_used), OPTIONAL, false, 0, TD_EXPERTS_MAX, 0, TD_READS_ALL},
    {"expert_weights_scale", AT(route.scale), OPTIONAL, true, 1e-6, 1e6, 1, TD_READS_ROUTER},
    {"leading_dense_block_count", AT(n_dense), OPTIONAL, false, 0, TD_LAYERS_MAX, 0, TD_READS_LEADING},
    {"interleave_moe_layer_step", AT(moe_every), OPTIONAL, false, 0, TD_LAYERS_MAX, 0, TD_READS_INTERLEAVED},
    {"attention.q_lora_rank", AT(lora_q), OPTIONAL, false, 1, TD_EMBD_MAX, 0, TD_READS_MLA},
    {"attention.kv_lora_rank", AT(lora_kv), REQUIRED, false, 1, TD_HEAD_DIM_MAX, 0, TD_READS_MLA},
    {"attention.key_length_mla", AT(mla_nope), OPTIONAL, false, 1, TD_HEAD_DIM_MAX, 0, TD_READS_MLA},
    {"attention.value_length_mla", AT(mla_v), OPTIONAL, false, 1, TD_HEAD_DIM_MAX, 0, TD_READS_MLA},
    {"attention.temperature_length", AT(q_scale_every), OPTIONAL, false, 1, TD_CTX_MAX, 0, TD_READS_MLA},
    {"full_attention_interval", AT(full_interval), VALUE, false, 1, TD_LAYERS_MAX, 4, TD_READS_HYBRID},
    {"ssm.conv_kernel", AT(delta_taps), REQUIRED, false, 1, 16, 0, TD_READS_HYBRID},
    {"ssm.state_size", AT(delta_dim), REQUIRED, false, 1, TD_STATE_DIM_MAX, 0, TD_READS_HYBRID},
    {"ssm.time_step_rank", AT(delta_heads_v), REQUIRED, false, 1, TD_HEADS_MAX, 0, TD_READS_HYBRID},
    {"ssm.group_count", AT(delta_heads_k), REQUIRED, false, 1, TD_HEADS_MAX, 0, TD_READS_HYBRID},
};
/* clang-format on */

/* The full name of a key, and whether the file has it. */
static bool find_key(const td_model *m, const char *name, char key[TD_NAME_MAX])
{
    snprintf(key, TD_NAME_MAX, "%s.%s", m->arch->name, name);
    return td_gguf_has(m->gguf, key);
}

/* A number, or a list with one for each layer of the file: those of the layers that are run must
 * agree, but for zeros, which say that a layer has none. */
static bool get_number(const td_model *m, const char *key, double *out, td_err *err)
{
    td_gguf_array array;
    if (!td_gguf_get_any_array(m->gguf, key, &array, NULL))
        return td_gguf_get_f64(m->gguf, key, out, err);
    const td_hparams *h = &m->hparams;
    if (!td_gguf_get_number_array(m->gguf, key, &array, err))
        return false;
    if (array.n != 1 && (!array.n || array.n != h->n_layer))
        return td_err_set(err, TD_E_DATA, "%s is a list of %u values; allowed: 1, block_count %u",
                          key, array.n, h->n_layer);
    *out = 0;
    for (uint32_t i = 0; i < (array.n == 1 ? 1 : h->n_layer - h->n_nextn); i++) {
        double value = td_gguf_array_number(&array, i);
        if (value != 0 && *out != 0 && value != *out)
            return td_err_set(err, TD_E_DATA,
                              "%s differs between layers: %g, and %g for layer %u; not supported",
                              key, *out, value, i);
        *out = value != 0 ? value : *out;
    }
    return true;
}

static bool read_param(td_model *m, const param *p, td_err *err)
{
    char key[TD_NAME_MAX];
    double value = td_arch_absent(m->arch, p->key, p->fallback);
    if (find_key(m, p->key, key) || p->saying == REQUIRED || isnan(value)) {
        if (!get_number(m, key, &value, err))
            return false;
        bool is_none = value == 0 && p->saying == OPTIONAL;
        if (!is_none && !(value >= p->min && value <= p->max)) /* NaN fails too */
            return td_err_set(err, TD_E_DATA, "%s is %.10g; allowed: %.10g..%.10g", key, value,
                              p->min, p->max);
        if (!p->is_float && value != floor(value))
            return td_err_set(err, TD_E_DATA, "%s is %.10g; an integer is needed", key, value);
        value = is_none ? p->fallback : value;
    }
    char *at = (char *)&m->hparams + p->offset;
    if (p->is_float)
        memcpy(at, &(float){(float)value}, sizeof(float));
    else
        memcpy(at, &(uint32_t){(uint32_t)value}, sizeof(uint32_t));
    return true;
}

static bool read_params(td_model *m, td_err *err)
{
    for (size_t i = 0; i < TD_COUNT(params); i++) {
        if ((m->arch->reads & params[i].reads) == params[i].reads &&
            !read_param(m, &params[i], err))
            return false;
        if (m->hparams.n_nextn >= m->hparams.n_layer)
            return td_err_set(err, TD_E_DATA,
                              "nextn_predict_layers is %u; allowed: below block_count %u",
                              m->hparams.n_nextn, m->hparams.n_layer);
    }
    return true;
}

/* Settings of YaRN that are not read; the usual values are what is computed anyway. */
static void warn_of_yarn(const td_model *m)
{
    static const struct {
        const char *key;
        double usual;
    } settings[] = {{"rope.scaling.yarn_ext_factor", 1},
                    {"rope.scaling.yarn_attn_factor", 1},
                    {"rope.scaling.yarn_beta_fast", 32},
                    {"rope.scaling.yarn_beta_slow", 1}};
    uint32_t n = m->arch->reads & TD_READS_YARN_BETAS ? 2 : TD_COUNT(settings);
    for (uint32_t i = 0; i < n; i++) {
        char key[TD_NAME_MAX];
        double value;
        if (find_key(m, settings[i].key, key) && td_gguf_get_f64(m->gguf, key, &value, NULL) &&
            value != settings[i].usual)
            td_log_warn("%s: %s is %g; not used, as if it were %g", m->path, key, value,
                        settings[i].usual);
    }
}

static bool read_rope(td_model *m, td_err *err)
{
    static const param factor = {
        "rope.scaling.factor", AT(rope_factor), OPTIONAL, true, 1e-3, 1e6, 1, TD_READS_ALL};
    td_hparams *h = &m->hparams;
    char key[TD_NAME_MAX];
    const char *type = "linear";
    if (find_key(m, factor.key, key) && !read_param(m, &factor, err))
        return false;
    if (find_key(m, "rope.scaling.type", key) && !td_gguf_get_str(m->gguf, key, &type, NULL, err))
        return false;
    h->is_yarn = !strcmp(type, "yarn");
    if (!strcmp(type, "none"))
        h->rope_factor = 1.0f;
    else if (!h->is_yarn && strcmp(type, "linear") && strcmp(type, "longrope"))
        return td_err_set(err, TD_E_DATA, "%s is \"%.64s\"; allowed: none, linear, yarn, longrope",
                          key, type);
    if (!(m->arch->reads & TD_READS_YARN_BETAS)) {
        h->yarn_beta_fast = 32.0f;
        h->yarn_beta_slow = 1.0f;
    }
    warn_of_yarn(m);
    return true;
}

/* By how much cos and sin are to grow, beside what YaRN's rotation brings by itself (rope.c): by
 * the log multiplier, less that; and the scale of latent attention, which has that growth too. */
static void derive_magnitude(td_model *m)
{
    td_hparams *h = &m->hparams;
    double log_factor = 0.1 * log((double)h->rope_factor), grown = fmax(log_factor, 0);
    double all = (double)h->yarn_log_multiplier / (m->arch->is_mla ? 0.1 : 1.0);
    double one = m->arch->is_mla && all != 0 ? all : 1.0, magnitude = (double)h->rope_magnitude;
    if (h->is_yarn)
        magnitude *= (1 + one * grown) / (1 + all * grown) / (1 + log_factor);
    h->rope_magnitude = (float)magnitude;
    double scale = magnitude * (1 + log_factor) * (1 + all * log_factor);
    if (m->arch->is_mla)
        h->attention_scale = (float)(scale * scale / sqrt((double)h->mla_nope + h->n_rot));
}

/* Files of before expert_gating_func are those of softmax routers, but for GLM-4.7-Flash. */
#define FLASH_TOKENS 154880u

static td_gating default_gating(const td_model *m)
{
    const td_hparams *h = &m->hparams;
    td_gguf_array tokens;
    char key[TD_NAME_MAX];
    double n_vocab = 0;
    if (!m->arch->is_mla)
        return m->arch->gating;
    if (find_key(m, "vocab_size", key))
        td_gguf_get_f64(m->gguf, key, &n_vocab, NULL);
    else if (td_gguf_get_any_array(m->gguf, "tokenizer.ggml.tokens", &tokens, NULL))
        n_vocab = tokens.n;
    bool is_flash = (h->n_layer == 47 || h->n_layer == 48) && n_vocab == FLASH_TOKENS;
    return is_flash ? TD_GATING_SIGMOID : TD_GATING_SOFTMAX;
}

static bool read_route(td_model *m, td_err *err)
{
    td_hparams *h = &m->hparams;
    char key[TD_NAME_MAX];
    double gating = 0;
    bool reads_all = (m->arch->reads & TD_READS_ROUTER) == TD_READS_ROUTER;
    h->route.gating = default_gating(m);
    h->route.is_normalized = m->arch->is_normalized_router;
    if (!reads_all)
        h->route.scale = 1.0f;
    if (reads_all && find_key(m, "expert_weights_norm", key) &&
        !td_gguf_get_bool(m->gguf, key, &h->route.is_normalized, err))
        return false;
    if (!(m->arch->reads & TD_READS_GATING) || !find_key(m, "expert_gating_func", key))
        return true;
    if (!get_number(m, key, &gating, err))
        return false;
    if (gating == 1)
        h->route.gating = TD_GATING_SOFTMAX;
    else if (gating == 2)
        h->route.gating = TD_GATING_SIGMOID;
    else if (gating == 3)
        h->route.gating = TD_GATING_SELECTED;
    else if (gating != 0)
        return td_err_set(err, TD_E_DATA,
                          "%s is %g; allowed: 1 (softmax), 2 (sigmoid), 3 (softmax of those "
                          "selected)",
                          key, gating);
    return true;
}

/* How wide the experts are, and the one that is always asked. */
static bool derive_expert_widths(td_model *m, td_err *err)
{
    td_hparams *h = &m->hparams;
    if (m->arch->is_expert_ff_dense)
        h->n_ff_expert = h->n_ff;
    else if (!h->n_ff_expert)
        h->n_ff_expert = h->n_ff / h->n_expert_used;
    if (!h->n_ff_expert)
        return td_err_set(err, TD_E_DATA, "expert_feed_forward_length is missing");
    uint32_t n_shared = m->arch->shared == TD_SHARED_ONE     ? 1
                        : m->arch->shared == TD_SHARED_COUNT ? h->n_expert_shared
                                                             : 0;
    if (h->n_ff_expert > TD_FF_MAX / td_max_u32(n_shared, 1))
        return td_err_set(err, TD_E_DATA, "expert_shared_count is %u; allowed: %u columns in all",
                          n_shared, TD_FF_MAX);
    if (m->arch->shared != TD_SHARED_WIDTH)
        h->n_ff_shared = n_shared * h->n_ff_expert;
    else if (!h->n_ff_shared)
        h->n_ff_shared = h->n_ff;
    if (m->arch->shared == TD_SHARED_WIDTH && !h->n_ff_shared)
        return td_err_set(err, TD_E_DATA, "expert_shared_feed_forward_length is missing");
    return true;
}

static bool derive_experts(td_model *m, td_err *err)
{
    td_hparams *h = &m->hparams;
    if (!h->n_expert)
        return true;
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
    return derive_expert_widths(m, err);
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
    uint32_t of = h->n_layer == m->arch->large_layers ? h->n_embd / h->n_head : h->head_dim_k;
    h->attention_scale = (float)(1.0 / sqrt((double)td_max_u32(of, 1)));
    h->qk_norm = m->arch->qk_norm;
    if (h->qk_norm == TD_QK_NORM_AFTER && h->n_expert == 128) /* Maverick */
        h->qk_norm = TD_QK_NORM_NONE;
    return true;
}

/* The file describes the compressed cache or, if it is old, the heads; we keep the former. */
static bool derive_mla(td_model *m, td_err *err)
{
    td_hparams *h = &m->hparams;
    uint32_t dim_k = h->mla_nope ? h->mla_nope : h->head_dim_k;
    h->mla_v = h->mla_v ? h->mla_v : h->head_dim_v;
    if (!h->n_rot || h->n_rot % 2)
        return td_err_set(err, TD_E_DATA,
                          "rope.dimension_count is %u; allowed: even numbers from 2", h->n_rot);
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
static bool derive_q_scale(td_model *m, td_err *err)
{
    td_hparams *h = &m->hparams;
    if (m->arch->local_chunk && h->window) {
        h->q_scale = 0.1f;
        h->q_scale_every = m->arch->local_chunk;
        h->q_scale_offset = 1;
    } else if (!m->arch->is_mla) {
        h->q_scale_every = h->rope_orig_ctx;
    } else if (h->q_scale > 0 && !h->q_scale_every) {
        return td_err_set(err, TD_E_DATA,
                          "attention.temperature_length is missing, but temperature_scale is %g",
                          (double)h->q_scale);
    }
    return true;
}

static void add_layer(td_layer_set *set, uint32_t layer)
{
    set->words[layer / 64] |= 1ull << layer % 64;
}

/* Layers by a key that is a list of them, or one number: *number, negative without one. */
static bool read_layers(td_model *m, const char *name, td_layer_set *set, double *number,
                        bool *is_list, td_err *err)
{
    char key[TD_NAME_MAX];
    td_gguf_array list;
    *number = -1;
    *is_list = false;
    if (!find_key(m, name, key))
        return true;
    *is_list = td_gguf_get_any_array(m->gguf, key, &list, NULL);
    if (!*is_list)
        return td_gguf_get_f64(m->gguf, key, number, err);
    if (!td_gguf_get_number_array(m->gguf, key, &list, err))
        return false;
    for (uint32_t i = 0; i < list.n && i < m->hparams.n_layer; i++)
        if (td_gguf_array_number(&list, i) != 0)
            add_layer(set, i);
    return true;
}

static bool derive_local(td_model *m, td_err *err)
{
    td_hparams *h = &m->hparams;
    double period;
    bool is_list;
    h->nope_period = m->arch->nope_period;
    if (m->arch->local_chunk && !h->window) /* rope everywhere but on the last one */
        h->nope_period = h->n_layer;
    if (!h->window)
        h->rope_base_local = 0;
    if (!(m->arch->reads & TD_READS_LOCAL) || !h->window)
        return true;
    if (!read_layers(m, "attention.sliding_window_pattern", &h->local, &period, &is_list, err))
        return false;
    period = period < 0 ? m->arch->local_period : period;
    for (uint32_t i = 0; !is_list && i < h->n_layer; i++)
        if (period == 0 || fmod(i, period) < period - 1)
            add_layer(&h->local, i);
    return true;
}

static bool derive_recurrent(td_model *m, td_err *err)
{
    td_hparams *h = &m->hparams;
    double all;
    bool is_list;
    if (!m->arch->is_hybrid)
        return true;
    if (!read_layers(m, "attention.recurrent_layers", &h->recurrent, &all, &is_list, err))
        return false;
    for (uint32_t i = 0; !is_list && i < h->n_layer; i++)
        if (all < 0 ? (i + 1) % h->full_interval != 0 : all != 0)
            add_layer(&h->recurrent, i);
    return derive_hybrid(h, err);
}

/* Which layers have experts; false with no error where one has not. */
static bool derive_routed(td_model *m)
{
    td_hparams *h = &m->hparams;
    uint32_t n = 0;
    uint32_t n_all = h->n_layer + (h->n_nextn ? 1 : 0); /* with the head that may be run */
    for (uint32_t i = h->n_dense; h->n_expert && i < n_all; i++) {
        char name[TD_NAME_MAX];
        bool has = !(m->arch->reads & TD_READS_INTERLEAVED);
        snprintf(name, sizeof name, "blk.%u.ffn_gate_inp.weight", i);
        if (!has) /* without a step, those of which the file has a router */
            has = h->moe_every ? (i + 1) % h->moe_every == 0
                               : td_gguf_find_tensor(m->gguf, name) != NULL;
        if (!has)
            continue;
        add_layer(&h->routed, i);
        n += i < h->n_layer;
    }
    return n == h->n_layer;
}

static bool derive(td_model *m, td_err *err)
{
    const td_arch *arch = m->arch;
    td_hparams *h = &m->hparams;
    h->n_layer -= h->n_nextn;
    if (!h->rope_orig_ctx)
        h->rope_orig_ctx = h->n_ctx_train;
    if (!read_route(m, err) || !derive_local(m, err) || !derive_recurrent(m, err) ||
        !derive_q_scale(m, err))
        return false;
    if (!(arch->is_mla ? derive_mla(m, err) : derive_heads(m, err)))
        return false;
    derive_magnitude(m);
    if (!derive_experts(m, err))
        return false;
    if (!derive_routed(m) && !h->n_ff)
        return td_err_set(err, TD_E_DATA, "%s.feed_forward_length is 0 or missing", arch->name);
    return true;
}

bool td_hparams_read(td_model *m, td_err *err)
{
    const char *name;
    if (!td_gguf_get_str(m->gguf, "general.architecture", &name, NULL, err))
        return false;
    m->arch = td_arch_find(name);
    if (!m->arch)
        return td_err_set(err, TD_E_DATA, "general.architecture is \"%.64s\"; known ones: %s", name,
                          td_arch_names());
    return read_params(m, err) && read_rope(m, err) && derive(m, err);
}

static bool has_layer(const td_layer_set *set, uint32_t layer)
{
    return set->words[layer / 64] >> layer % 64 & 1;
}

bool td_layer_is_recurrent(const td_model *m, uint32_t layer)
{
    return has_layer(&m->hparams.recurrent, layer);
}

bool td_layer_is_local(const td_model *m, uint32_t layer)
{
    return has_layer(&m->hparams.local, layer);
}

bool td_layer_has_experts(const td_model *m, uint32_t layer)
{
    return has_layer(&m->hparams.routed, layer);
}
