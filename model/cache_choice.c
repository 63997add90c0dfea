#include "model/cache_choice.h"

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/order.h"
#include "model/tensors.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* -- what is known of families ----------------------------------------------------------------- */

/* Of docs/models.md, those of which there is a figure. The first that fits. */
static const struct {
    const char *arch;    /* NULL: any with sinks */
    uint64_t params_max; /* 0: any */
    uint32_t k, v;
    const char *name, *figure;
} advices[] = {
    {"gpt-oss", 0, TD_TYPE_F16, TD_TYPE_F16, "gpt-oss",
     "gpt-oss-20b with q8_0 at 8k: median divergence 0.055, same top token 74.9 %"},
    {NULL, 0, TD_TYPE_F16, TD_TYPE_F16, "a model with attention sinks",
     "gpt-oss-20b, which has them too, with q8_0 at 8k: median divergence 0.055, same top token "
     "74.9 %"},
    {"gemma3", 0, TD_TYPE_F16, TD_TYPE_Q8_0, "Gemma 3",
     "Gemma 4 31B with q8_0: mean divergence 0.108; Gemma 3 is milder"},
    {"qwen3", 700000000, TD_TYPE_Q8_0, TD_TYPE_Q5_0, "a small Qwen3",
     "Qwen3 0.6B with q4_0, rotated: perplexity 47.8"},
    {"qwen3next", 0, TD_TYPE_Q5_0, TD_TYPE_Q4_0, "a hybrid Qwen3",
     "Qwen3.6 with q4_0: divergence 0.087-0.117, in long documents 0.581"},
    {"qwen35", 0, TD_TYPE_Q5_0, TD_TYPE_Q4_0, "a hybrid Qwen3",
     "Qwen3.6 with q4_0: divergence 0.087-0.117, in long documents 0.581"},
    {"qwen35moe", 0, TD_TYPE_Q5_0, TD_TYPE_Q4_0, "a hybrid Qwen3",
     "Qwen3.6 with q4_0: divergence 0.087-0.117, in long documents 0.581"},
};

static uint64_t n_params(const td_model *m)
{
    const td_gguf *g = td_model_gguf(m);
    uint64_t n = 0;
    for (uint32_t i = 0; i < td_gguf_n_tensors(g); i++) {
        const td_gguf_tensor *t = td_gguf_tensor_at(g, i);
        n += t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3];
    }
    return n;
}

static bool has_sinks(const td_model *m)
{
    return td_gguf_find_tensor(td_model_gguf(m), "blk.0.attn_sinks.weight") != NULL;
}

bool td_cache_find_advice(const td_model *m, td_cache_advice *out)
{
    for (size_t i = 0; i < TD_COUNT(advices); i++) {
        bool is_it =
            advices[i].arch ? !strcmp(advices[i].arch, td_model_arch(m)->name) : has_sinks(m);
        if (!is_it || (advices[i].params_max && n_params(m) > advices[i].params_max))
            continue;
        *out = (td_cache_advice){.name = advices[i].name,
                                 .figure = advices[i].figure,
                                 .k = td_type_find(advices[i].k),
                                 .v = td_type_find(advices[i].v)};
        return true;
    }
    return false;
}

void td_cache_warn(const td_cache_types *t, const td_model *m)
{
    td_cache_advice a;
    if (td_cache_find_advice(m, &a) && (td_cache_is_less(t->k, a.k) || td_cache_is_less(t->v, a.v)))
        td_log_warn("%s: cache K %s, V %s; advised for %s: K %s, V %s or better (%s)",
                    td_model_name(m), t->k->name, t->v->name, a.name, a.k->name, a.v->name,
                    a.figure);
}

bool td_cache_is_less(const td_type_info *type, const td_type_info *than)
{
    return (uint64_t)type->block_bytes * than->block_elements <
           (uint64_t)than->block_bytes * type->block_elements;
}

/* -- biases of keys ---------------------------------------------------------------------------- */

#define OUTLYING_TIMES 8.0f /* the median */
#define OUTLYING_RMS   4.0f /* of an element; keys without a bias are of about 1 */

static bool has_layer(const td_layer_set *set, uint32_t layer)
{
    return set->words[layer / 64] >> layer % 64 & 1;
}

static bool is_quantized(const td_type_info *type) { return type->block_elements > 1; }

/* *norm is left where the layer has none. */
static bool read_norm(const td_model *m, uint32_t layer, float *norm, uint32_t *n, td_err *err)
{
    td_wanted list[TD_WANTED_MAX];
    uint32_t n_wanted = td_tensors_wanted(m, layer, list);
    for (uint32_t i = 0; i < n_wanted; i++) {
        const td_wanted *w = &list[i];
        const td_gguf_tensor *t = w->tensor;
        if (w->slot != TD_W_BK)
            continue;
        uint8_t *bytes = td_alloc(1, t->n_bytes, err);
        float *values = bytes ? td_alloc(w->n_cols, sizeof *values, err) : NULL;
        bool is_ok = values && td_gguf_read(td_model_gguf(m), t, 0, t->n_bytes, bytes, err);
        double sum = 0;
        if (is_ok)
            t->type->dequantize(bytes + td_row_bytes(t->type, w->offset), values, w->n_cols);
        for (uint32_t k = 0; is_ok && k < w->n_cols; k++)
            sum += (double)values[k] * (double)values[k];
        *norm = (float)sqrt(sum);
        *n = w->n_cols;
        td_free(values);
        td_free(bytes);
        return is_ok;
    }
    return true;
}

bool td_cache_find_outliers(const td_model *m, float *norms, td_layer_set *outlying, float *median,
                            td_err *err)
{
    uint32_t n_layer = td_model_hparams(m)->n_layer, n = 0, n_cols = 0;
    double sorted[TD_LAYERS_MAX];
    *outlying = (td_layer_set){.words = {0}};
    *median = 0;
    for (uint32_t i = 0; i < n_layer; i++) {
        norms[i] = 0;
        if (!read_norm(m, i, &norms[i], &n_cols, err))
            return false;
        if (norms[i] > 0)
            sorted[n++] = (double)norms[i];
    }
    if (!n)
        return true;
    td_sort_doubles(sorted, n);
    *median = (float)sorted[(n - 1) / 2];
    for (uint32_t i = 0; i < n_layer; i++)
        if (norms[i] > OUTLYING_TIMES * *median && norms[i] > OUTLYING_RMS * sqrtf((float)n_cols))
            outlying->words[i / 64] |= 1ull << i % 64;
    return true;
}

void td_cache_write_outliers(const td_cache_types *t, const td_model *m, char *out, size_t n_bytes)
{
    float norms[TD_LAYERS_MAX], median;
    td_layer_set outlying;
    size_t n = 0;
    out[0] = 0;
    if (!is_quantized(t->k) || !td_cache_find_outliers(m, norms, &outlying, &median, NULL))
        return;
    for (uint32_t i = 0; i < td_model_hparams(m)->n_layer && n < n_bytes; i++)
        if (has_layer(&outlying, i))
            n +=
                (size_t)snprintf(out + n, n_bytes - n, "%s layer %u %.3g",
                                 n ? "," : "outlying biases of keys (norms):", i, (double)norms[i]);
    if (n && n < n_bytes)
        snprintf(out + n, n_bytes - n, "; median %.3g", (double)median);
}

/* -- the rules --------------------------------------------------------------------------------- */

#define KEPT "layers kept otherwise (--kv-keep, --kv-layers or keep=): "

typedef struct {
    const td_type_info *k, *v;
} pair;

static uint32_t resolve(const td_model *m, uint32_t layer)
{
    uint32_t n = td_model_hparams(m)->n_layer, i = 0;
    if (layer != TD_CACHE_LAYER_FIRST && layer != TD_CACHE_LAYER_LAST)
        return layer;
    bool is_first = layer == TD_CACHE_LAYER_FIRST;
    while (i + 1 < n && td_layer_is_recurrent(m, is_first ? i : n - 1 - i))
        i++;
    return is_first ? i : n - 1 - i;
}

static bool apply_rule(const td_cache_rule *r, const td_model *m, pair *layers, td_err *err)
{
    uint32_t first = resolve(m, r->first), last = resolve(m, r->last);
    uint32_t n = td_model_hparams(m)->n_layer, n_kept = 0;
    if (last >= n)
        return td_err_set(err, TD_E_USAGE, KEPT "layer %u of %s; allowed: 0..%u, first, last", last,
                          td_model_name(m), n - 1);
    for (uint32_t i = first; i <= last; i++) {
        if (td_layer_is_recurrent(m, i))
            continue;
        layers[i].k = r->k ? r->k : layers[i].k;
        layers[i].v = r->v ? r->v : layers[i].v;
        n_kept++;
    }
    return n_kept ||
           td_err_set(err, TD_E_USAGE,
                      KEPT "layer %u of %s is recurrent and has no keys; allowed: those of "
                           "attention, the first of which is %u and the last %u",
                      first, td_model_name(m), resolve(m, TD_CACHE_LAYER_FIRST),
                      resolve(m, TD_CACHE_LAYER_LAST));
}

/* Runs of layers that are kept otherwise; layers without keys in between do not end one. */
static bool write_rules(td_cache_types *t, const td_model *m, const pair *layers,
                        const td_layer_set *outlying, td_err *err)
{
    td_cache_rule *open = NULL;
    bool is_latent = td_model_arch(m)->is_mla;
    t->n_rules = 0;
    for (uint32_t i = 0; i < td_model_hparams(m)->n_layer; i++) {
        const td_type_info *k = layers[i].k != t->k || has_layer(outlying, i) ? layers[i].k : NULL;
        const td_type_info *v = layers[i].v != t->v && !is_latent ? layers[i].v : NULL;
        if (td_layer_is_recurrent(m, i))
            continue;
        if (!k && !v) {
            open = NULL;
        } else if (open && open->k == k && open->v == v) {
            open->last = (uint16_t)i;
        } else if (t->n_rules == TD_CACHE_RULES_MAX) {
            return td_err_set(err, TD_E_USAGE,
                              KEPT "their types change more often; allowed: %u runs of layers",
                              TD_CACHE_RULES_MAX);
        } else {
            open = &t->rules[t->n_rules++];
            *open = (td_cache_rule){(uint16_t)i, (uint16_t)i, k, v};
        }
    }
    return true;
}

bool td_cache_choose(td_cache_types *t, const td_model *m, td_err *err)
{
    uint32_t n_layer = td_model_hparams(m)->n_layer;
    float norms[TD_LAYERS_MAX], median;
    td_layer_set outlying = {.words = {0}};
    pair *layers = td_alloc(n_layer, sizeof *layers, err);
    bool is_ok = layers &&
                 (!is_quantized(t->k) || td_cache_find_outliers(m, norms, &outlying, &median, err));
    for (uint32_t i = 0; is_ok && i < n_layer; i++) {
        layers[i] = (pair){has_layer(&outlying, i) ? td_type_find(TD_TYPE_F16) : t->k, t->v};
    }
    for (uint32_t i = 0; is_ok && i < t->n_rules; i++)
        is_ok = apply_rule(&t->rules[i], m, layers, err);
    is_ok = is_ok && write_rules(t, m, layers, &outlying, err);
    td_free(layers);
    return is_ok;
}

static const td_type_info *inherit(const td_type_info *of_target, bool is_small,
                                   const td_type_info *least)
{
    if (is_small)
        least = td_type_find(TD_TYPE_F16);
    return least && td_cache_is_less(of_target, least) ? least : of_target;
}

bool td_cache_choose_draft(td_cache_types *draft, const td_cache_types *target, const td_model *m,
                           td_err *err)
{
    td_cache_advice advice = {.k = NULL};
    bool is_small = n_params(m) < TD_CACHE_SMALL_PARAMS;
    td_cache_find_advice(m, &advice);
    draft->k = draft->k ? draft->k : inherit(target->k, is_small, advice.k);
    draft->v = draft->v ? draft->v : inherit(target->v, is_small, advice.v);
    draft->rotate_k = target->rotate_k;
    draft->rotate_v = target->rotate_v;
    return td_cache_choose(draft, m, err);
}
