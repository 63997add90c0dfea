/* The list of cases (cases.h). Every op is tried at a small shape in all its variants and types
 * with 64 rows, and at the shapes of real models in fewer. A software driver has the models' shapes
 * divided by four and fewer rows where its compiler would take minutes. */
#include "check/cases.h"

#include "base/check.h"
#include "check/builders.h"
#include "check/inputs.h"

#include <stdio.h>
#include <string.h>

typedef struct { /* of a layer */
    const char *name;
    uint32_t n_embd, n_ff, n_head_kv, group, head_dim;
    uint32_t n_expert, n_used; /* 0: dense */
} model;

static const model models[] = {
    {"0.6B", 1024, 3072, 8, 2, 128, 0, 0},
    {"8B", 4096, 12288, 8, 4, 128, 0, 0},
    {"MoE", 2048, 768, 4, 8, 128, 32, 8},
};
#define SMALL_DIVIDES 4u

typedef struct {
    bool is_small, is_going;
    bool (*visit)(const td_case *c, void *user);
    void *user;
} walk;

static void add(walk *w, td_case c)
{
    c.parts = c.parts ? c.parts : TD_CASE_ALL;
    if (w->is_going)
        w->is_going = w->visit(&c, w->user);
}

#define SHAPE(c, ...) snprintf((c).shape, sizeof(c).shape, __VA_ARGS__)

static uint32_t scaled(const walk *w, uint32_t n) { return w->is_small ? n / SMALL_DIVIDES : n; }

static void add_embed(walk *w)
{
    for (uint32_t t = 0; t < TD_INPUT_WEIGHT_TYPES; t++) {
        td_case c = {.op = "embed",
                     .build = td_build_embed,
                     .type = td_input_weight_types[t],
                     .n = {301, 1024},
                     .n_data = t < TD_INPUT_PLAIN_TYPES ? 64 : 16};
        SHAPE(c, "%s %ux%u", c.type, c.n[0], c.n[1]);
        add(w, c);
    }
}

static td_case product(const model *m, const char *type, uint32_t n_o, uint32_t n_k,
                       uint32_t n_data)
{
    td_case c = {.op = "mat_mul",
                 .build = td_build_mat_mul,
                 .type = type,
                 .n = {n_o, n_k},
                 .n_data = n_data,
                 .is_large = n_o >= 1024};
    SHAPE(c, "%s %s %ux%u", m ? m->name : "small", type, n_o, n_k);
    return c;
}

/* All types in few rows; of each kind of kernel one in all widths; the models' matrices. */
static void add_mat_mul(walk *w)
{
    static const char *const wide[] = {"F32", "F16", "Q8_0", "Q4_K"};
    static const char *const large[] = {"F16", "Q8_0", "Q4_0", "Q4_K", "Q6_K", "MXFP4"};
    for (uint32_t t = 0; t < TD_INPUT_WEIGHT_TYPES; t++)
        add(w, product(NULL, td_input_weight_types[t], 200, 512, 3));
    for (uint32_t t = 0; t < TD_COUNT(wide); t++) {
        td_case c = product(NULL, wide[t], 150, 512, 64);
        c.variant = 1; /* a bias */
        add(w, c);
        c.mode = TD_MODE_PREFILL;
        c.n_data = w->is_small ? 100 : TD_PREFILL_ROWS_MAX;
        SHAPE(c, "prefill of %u rows, %s %ux%u", c.n_data, c.type, c.n[0], c.n[1]);
        add(w, c);
    }
    for (uint32_t m = 0; m < TD_COUNT(models); m++)
        for (uint32_t t = 0; t < (m ? TD_COUNT(large) : TD_INPUT_WEIGHT_TYPES); t++) {
            const char *type = m ? large[t] : td_input_weight_types[t];
            uint32_t n_embd = models[m].n_embd, n_ff = models[m].n_ff;
            if (w->is_small)
                continue;
            add(w, product(&models[m], type, n_ff, n_embd, 9));
            add(w, product(&models[m], type, n_embd, n_ff, 2));
        }
}

static void add_experts(walk *w)
{
    static const char *const types[] = {"Q4_K", "Q8_0", "F16", "MXFP4"};
    const model *m = &models[2];
    for (uint32_t t = 0; t < (w->is_small ? 1 : TD_COUNT(types)); t++)
        for (int is_own = 0; is_own < (w->is_small ? 1 : 2); is_own++) {
            uint32_t n_ff = scaled(w, m->n_ff), n_embd = w->is_small ? 256 : m->n_embd;
            td_case c = {.op = "mat_mul",
                         .build = td_build_experts,
                         .type = types[t],
                         .n = {m->n_expert, m->n_used, is_own ? n_embd : n_ff,
                               is_own ? n_ff : n_embd},
                         .variant = is_own,
                         .n_data = w->is_small ? 9 : 24,
                         .is_large = true};
            SHAPE(c, "MoE %s, %u of %u experts %ux%u", c.type, c.n[1], c.n[0], c.n[2], c.n[3]);
            c.is_large = !w->is_small;
            add(w, c);
        }
    td_case c = {.op = "mat_mul",
                 .build = td_build_groups,
                 .type = "F16",
                 .n = {4, 40, 64},
                 .n_data = 9};
    SHAPE(c, "heads F16, %u of %ux%u", c.n[0], c.n[1], c.n[2]);
    add(w, c);
}

/* The ops around products, at each model's width. */
static void add_elements(walk *w)
{
    static const char *const glus[] = {"silu", "gelu", "clamped", "sigmoid"};
    for (uint32_t i = 0; i < TD_COUNT(models); i++) {
        const model *m = &models[i];
        uint32_t n = scaled(w, m->n_embd), n_ff = scaled(w, m->n_ff), heads = m->n_head_kv;
        td_case c[] = {
            {.op = "rms_norm", .build = td_build_rms_norm, .n = {n, 1}},
            {.op = "rms_norm", .build = td_build_rms_norm, .n = {heads * m->head_dim, heads}},
            {.op = "rope", .build = td_build_rope, .n = {heads, m->head_dim, m->head_dim}},
            {.op = "rope", .build = td_build_rope, .n = {heads, m->head_dim, 64}, .variant = 1},
            {.op = "glu", .build = td_build_glu, .n = {n_ff, 0}, .variant = (int)i},
            {.op = "glu", .build = td_build_glu, .n = {n_ff, 4}, .variant = TD_GLU_SILU},
            {.op = "glu", .build = td_build_glu, .n = {n, 0}, .variant = TD_GLU_SIGMOID},
            {.op = "add", .build = td_build_element, .n = {n}, .variant = TD_ELEMENT_ADD},
            {.op = "scale", .build = td_build_element, .n = {n}, .variant = TD_ELEMENT_SCALE},
            {.op = "softcap", .build = td_build_element, .n = {n}, .variant = TD_ELEMENT_SOFTCAP},
            {.op = "gather", .build = td_build_gather, .n = {n}},
        };
        for (uint32_t k = 0; k < TD_COUNT(c); k++) {
            c[k].n_data = i ? 16 : 64;
            if (!strcmp(c[k].op, "glu"))
                SHAPE(c[k], "%s %s %u", m->name, glus[c[k].variant], c[k].n[0]);
            else if (!strcmp(c[k].op, "rope"))
                SHAPE(c[k], "%s %u of %u columns, %u heads", m->name, c[k].n[2], c[k].n[1],
                      c[k].n[0]);
            else
                SHAPE(c[k], "%s %u", m->name, c[k].n[0]);
            add(w, c[k]);
        }
    }
    for (int gating = 0; gating < 3; gating++) {
        td_case c = {.op = "route",
                     .build = td_build_route,
                     .n = {128, 8},
                     .variant = gating,
                     .n_data = 64};
        SHAPE(c, "MoE 8 of 128, gating %d", gating);
        add(w, c);
    }
    td_case c = {.op = "experts_sum",
                 .build = td_build_experts_sum,
                 .n = {scaled(w, models[2].n_embd), models[2].n_used},
                 .n_data = 64};
    SHAPE(c, "MoE %u of %u", c.n[1], c.n[0]);
    add(w, c);
}

static td_case attention(const model *m, const char *k, const char *v, uint32_t n_positions)
{
    td_case c = {.op = "attention",
                 .build = td_build_attention,
                 .type = k,
                 .type_v = v,
                 .n = {m->n_head_kv, m->group, m->head_dim, m->head_dim, n_positions},
                 .n_data = 8};
    SHAPE(c, "%s %s/%s, %u positions", m->name, k, v, n_positions);
    return c;
}

static void add_attention_as(walk *w, td_case_parts parts, const char *needs)
{
    const model small = {"small", 0, 0, 2, 2, 64, 0, 0};
    static const char *const variants[] = {"plain", "window", "sinks", "softcap", "chunk"};
    for (uint32_t i = 0; i < TD_INPUT_CACHE_TYPES; i++) { /* each as keys and as values */
        const char *k = td_input_cache_types[i];
        td_case c = attention(&small, k, td_input_cache_types[(i + 1) % TD_INPUT_CACHE_TYPES], 150);
        c.n_data = i == 1 ? 64 : 8; /* F16 */
        c.parts = parts;
        c.needs = needs;
        add(w, c);
    }
    for (int variant = 1; variant < (int)TD_COUNT(variants); variant++) {
        td_case c = attention(&small, "F16", "F16", 300);
        c.variant = variant;
        c.parts = parts;
        c.needs = needs;
        SHAPE(c, "%s, F16/F16, 300 positions", variants[variant]);
        add(w, c);
    }
    for (uint32_t m = 0; !w->is_small && m < TD_COUNT(models); m++) {
        td_case c = attention(&models[m], "F16", m ? "F16" : "Q8_0", 2100);
        c.parts = parts;
        c.needs = needs;
        c.is_large = true;
        add(w, c);
    }
}

/* Attention by itself first: that its rows agree tells nothing of what kv_store wrote. Then
 * kv_store, read by it; then attention's numbers, of a cache that is known to be right. */
static void add_sequence(walk *w)
{
    add_attention_as(w, TD_CASE_ROWS, NULL);
    for (uint32_t t = 0; t < TD_INPUT_CACHE_TYPES; t++) {
        td_case c = {.op = "kv_store",
                     .build = td_build_kv_store,
                     .needs = "attention",
                     .type = "F16",
                     .type_v = td_input_cache_types[t],
                     .n = {w->is_small ? 2 : 8, 2, scaled(w, 256), scaled(w, 256)},
                     .n_data = t == 1 ? 64 : 16};
        SHAPE(c, "%u heads of %u, %s", c.n[0], c.n[3], c.type_v);
        add(w, c);
    }
    add_attention_as(w, TD_CASE_VALUES, "kv_store");
    for (int order = 0; order < 2; order++) {
        td_case c = {.op = "delta_net",
                     .build = td_build_delta_net,
                     .n = {w->is_small ? 2 : 16, w->is_small ? 4 : 32, w->is_small ? 64 : 128, 4},
                     .variant = order,
                     .n_data = w->is_small ? 16 : order ? 64 : 24};
        SHAPE(c, "%u k heads, %u v heads of %u", c.n[0], c.n[1], c.n[2]);
        add(w, c);
    }
    td_case c = {.op = "state_keep",
                 .build = td_build_state_keep,
                 .needs = "delta_net",
                 .n = {2, 4, 64, 4},
                 .n_data = w->is_small ? 16 : 64};
    SHAPE(c, "%u k heads, %u v heads of %u", c.n[0], c.n[1], c.n[2]);
    add(w, c);
}

/* The blocks of layers: a device may fuse what stands together there, so that an op by itself tells
 * little of it. Named "layer", as no op alone is to blame. */
static void add_blocks(walk *w)
{
    static const char *const types[] = {"Q4_K", "F16", "Q8_0"};
    static const uint32_t n_types[] = {3, 1, 2}; /* of each model: the scalar device is slow */
    for (uint32_t i = 0; i < TD_COUNT(models); i++)
        for (uint32_t t = 0; t < (w->is_small ? 1 : n_types[i]); t++) {
            const model *m = &models[i];
            bool has_experts = m->n_expert > 0, is_large = !w->is_small;
            uint32_t n = w->is_small ? 256 : m->n_embd, n_ff = w->is_small ? 512 : m->n_ff;
            td_case feed = {.op = TD_CASE_LAYER,
                            .build = has_experts ? td_build_mixture : td_build_feed_forward,
                            .type = types[t],
                            .n = {n, n_ff},
                            .n_data = i ? 3 : 9,
                            .is_large = is_large};
            td_case attend = {.op = TD_CASE_LAYER,
                              .build = td_build_attention_block,
                              .type = types[t],
                              .type_v = "F16",
                              .n = {n, scaled(w, m->n_head_kv), m->group, w->is_small ? 64 : m->head_dim},
                              .n_data = i ? 3 : 9,
                              .is_large = is_large};
            if (has_experts) {
                feed.n[1] = m->n_expert;
                feed.n[2] = m->n_used;
                feed.n[3] = w->is_small ? 256 : m->n_ff;
            }
            SHAPE(feed, "%s feed-forward, %s", m->name, types[t]);
            SHAPE(attend, "%s attention, %s", m->name, types[t]);
            if (w->is_small && i == 1)
                continue; /* small, it is the first */
            add(w, feed);
            add(w, attend);
        }
}

static void add_tokens(walk *w)
{
    uint32_t n_vocab = w->is_small ? 20000 : 151936;
    td_case pick = {.op = "pick", .build = td_build_pick, .n = {n_vocab}, .n_data = 8};
    td_case top = {
        .op = "top", .build = td_build_top, .needs = "pick", .n = {n_vocab}, .n_data = 8};
    td_case feed = {.op = "feed", .build = td_build_feed, .n = {500, 128}, .n_data = 1};
    SHAPE(pick, "%u tokens", n_vocab);
    SHAPE(top, "%u tokens", n_vocab);
    SHAPE(feed, "128 columns of rope");
    add(w, pick);
    add(w, top);
    add(w, feed);
}

void td_cases_visit(bool is_small, bool (*visit)(const td_case *c, void *user), void *user)
{
    walk w = {is_small, true, visit, user};
    add_embed(&w);
    add_elements(&w);
    add_mat_mul(&w);
    add_experts(&w);
    add_sequence(&w);
    add_tokens(&w);
    add_blocks(&w);
}

static bool note_kind(const td_case *c, void *user)
{
    bool *is_covered = user;
    for (uint32_t k = 0; td_op_kind_name(k); k++)
        is_covered[k] |= !strcmp(td_op_kind_name(k), c->op);
    return true;
}

#define KINDS_MAX 64u

const char *td_cases_find_gap(void)
{
    bool is_covered[KINDS_MAX] = {false};
    td_cases_visit(true, note_kind, is_covered);
    for (uint32_t k = 0; td_op_kind_name(k); k++) {
        TD_ASSERT(k < KINDS_MAX);
        if (!is_covered[k])
            return td_op_kind_name(k);
    }
    return NULL;
}
