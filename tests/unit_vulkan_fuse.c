/* Ops done together (kernels/vulkan/fuse.c): a layer recorded from ops leaves the same bits in
 * every tensor and in the cache as on a device that does each op by itself, for any number of rows,
 * and takes as few dispatches and barriers as it should. Runs on the first usable Vulkan device of
 * TD_TEST_DEVICES; skips where there is none. With TD_TEST_BRIEF the cases that have every fusion
 * between them, for one number of rows. */
#include "op_common.h"

#include "kernels/vulkan/probe.h"

#define ROWS     5u
#define ROWS_FEW 4u /* a product of no more does what follows it, on a software driver, too */
#define N_EXPERT 6u
#define N_USED   2u
#define N_NOPE   128u /* columns of a head before its product, */
#define N_VALUE  64u  /* and after it */

typedef struct {
    const char *name, *weights, *cache;
    uint32_t n_head, n_head_kv, dim, n_ff;
    bool has_norms, has_experts, has_shared; /* shared expert, with a gate */
    bool is_joined;                          /* an expert's gate and up stand side by side */
    bool is_latent;                          /* col0 columns of a head are the latent, */
    bool is_absorbed;                        /* which products by head make and use up */
    bool is_gated;                           /* attention's heads are normed and gated */
    bool has_gate;                           /* what is attended is gated */
    bool has_post;                           /* what is added to the stream is normed before */
    bool is_last;                            /* nothing is normed at the end */
    bool rotates;                            /* the cache's keys and values */
    td_rope_kind rope;
    uint32_t n_rot, col0;         /* of a head */
    uint32_t n_pages;             /* columns of the table; 32 and more: strands */
    uint32_t n_steps, n_barriers; /* at most, of a run */
    uint32_t n_alone;             /* dispatches of the ops by themselves, at least */
    bool is_brief;                /* with TD_TEST_BRIEF, too */
} layer_case;

enum {
    X,
    NORMED,
    QKV,
    ATTENDED,
    DELTA,
    GATE_UP,
    ROUTER,
    CHOSEN,
    SHARES,
    PARTS,
    SHARED,
    GATED,
    OUT,
    OUT_NORMED,
    Q_NOPE,
    VALUES,
    N_KEPT
};

typedef struct {
    bench b;
    td_tensor *t[N_KEPT];
    td_tensor *cos_sin, *positions, *slots, *pages, *out_rows;
    td_kv *kv;
} layer;

static td_weight *weight(layer *l, const char *type_name, uint32_t n_rows, uint32_t n_cols,
                         uint32_t n_groups, uint64_t seed)
{
    const td_type_info *type = td_type_find_name(type_name);
    unsigned char *rows = new_random_rows(type, n_rows, n_cols, seed);
    td_weight *w = bench_groups(&l->b, type, n_rows, n_cols, n_groups, rows);
    free(rows);
    return w;
}

/* q's latents, of each head's own columns. */
static void record_q_latents(layer *l, const layer_case *c)
{
    td_program *p = l->b.p;
    uint32_t n_embd = c->n_head * c->dim, span = (c->n_head - 1) * c->dim + c->col0;
    td_view q_nope = td_all(l->t[Q_NOPE]);
    td_op_mat_mul(p, weight(l, c->weights, q_nope.n_cols, n_embd, 0, 18), NULL,
                  td_all(l->t[NORMED]), q_nope);
    td_op_mat_mul_groups(p, weight(l, c->weights, c->n_head * c->col0, N_NOPE, c->n_head, 19),
                         q_nope, N_NOPE, td_columns(l->t[QKV], 0, span), c->dim);
}

/* Values of what was attended of the latents. */
static td_view record_values(layer *l, const layer_case *c, td_view attended)
{
    td_view values = td_all(l->t[VALUES]);
    td_op_mat_mul_groups(l->b.p, weight(l, c->weights, c->n_head * N_VALUE, c->col0, c->n_head, 20),
                         attended, c->col0, values, N_VALUE);
    return values;
}

static void record_attention(layer *l, const layer_case *c)
{
    td_program *p = l->b.p;
    uint32_t n_embd = c->n_head * c->dim, n_kv = c->n_head_kv * c->dim;
    const td_batch_tensors batch = {l->positions, l->slots, l->pages, NULL};
    td_view normed = td_all(l->t[NORMED]), q = td_columns(l->t[QKV], 0, n_embd);
    td_view k = td_columns(l->t[QKV], n_embd, n_kv), v = td_columns(l->t[QKV], n_embd + n_kv, n_kv);
    td_view attended = td_all(l->t[ATTENDED]);
    if (c->is_latent) {
        v = td_columns(l->t[QKV], n_embd, c->col0);
        attended = td_columns(l->t[ATTENDED], 0, c->n_head * c->col0);
    }
    td_view cos_sin = td_all(l->cos_sin);
    td_op_rms_norm(p, td_all(l->t[X]), weight(l, "F32", 1, n_embd, 0, 1), 1, 1e-5f, normed);
    td_op_mat_mul(p, weight(l, c->weights, n_embd + 2 * n_kv, n_embd, 0, 2), NULL, normed,
                  td_all(l->t[QKV]));
    if (c->is_absorbed)
        record_q_latents(l, c);
    if (c->has_norms && c->is_latent) {
        td_op_rms_norm(p, v, weight(l, "F32", 1, c->col0, 0, 5), 1, 1e-5f, v);
    } else if (c->has_norms) {
        td_op_rms_norm(p, q, weight(l, "F32", 1, c->dim, 0, 5), c->n_head, 1e-5f, q);
        td_op_rms_norm(p, k, weight(l, "F32", 1, c->dim, 0, 6), c->n_head_kv, 1e-5f, k);
    }
    td_op_rope(p, q, cos_sin, c->rope, c->dim, c->col0);
    td_op_rope(p, k, cos_sin, c->rope, c->dim, c->col0);
    td_op_kv_store(p, l->kv, k, v, &batch);
    td_op_attention(p, l->kv, q, attended,
                    &(td_attention_params){.n_head = c->n_head, .scale = 0.2f}, &batch);
    if (c->is_gated) {
        td_op_rms_norm(p, attended, weight(l, "F32", 1, c->dim, 0, 13), c->n_head, 1e-5f, attended);
        td_op_glu(p, TD_GLU_SILU, q, attended, NULL, attended);
    }
    if (c->has_gate)
        td_op_glu(p, TD_GLU_SIGMOID, q, attended, NULL, attended);
    if (c->is_absorbed)
        attended = record_values(l, c, attended);
    td_op_mat_mul(p, weight(l, c->weights, n_embd, attended.n_cols, 0, 7), NULL, attended,
                  td_all(l->t[DELTA]));
}

/* The gated columns of a row's experts. */
static td_view record_experts(layer *l, const layer_case *c, td_view normed)
{
    td_program *p = l->b.p;
    td_tensor *chosen = l->t[CHOSEN];
    uint32_t n_embd = c->n_head * c->dim, n = c->n_ff, n_span = (N_USED - 1) * 2 * n + n;
    td_view gate = td_columns(l->t[GATE_UP], 0, N_USED * n), gated = td_all(l->t[GATED]);
    td_view up = td_columns(l->t[GATE_UP], N_USED * n, N_USED * n);
    if (c->is_joined) {
        td_op_mat_mul_experts(p, weight(l, c->weights, 2 * N_EXPERT * n, n_embd, N_EXPERT, 10),
                              weight(l, "F32", 1, 2 * N_EXPERT * n, 0, 15), chosen, normed,
                              td_all(l->t[GATE_UP]));
        td_op_glu_groups(p, TD_GLU_CLAMPED, td_columns(l->t[GATE_UP], 0, n_span),
                         td_columns(l->t[GATE_UP], n, n_span), N_USED, 2 * n, NULL, gated);
        return gated;
    }
    td_op_mat_mul_experts(p, weight(l, c->weights, N_EXPERT * n, n_embd, N_EXPERT, 10), NULL,
                          chosen, normed, gate);
    td_op_mat_mul_experts(p, weight(l, c->weights, N_EXPERT * n, n_embd, N_EXPERT, 11), NULL,
                          chosen, normed, up);
    td_op_glu(p, TD_GLU_SILU, gate, up, NULL, gate);
    return gate;
}

static void record_post_norm(layer *l, const layer_case *c, uint64_t seed)
{
    td_view delta = td_all(l->t[DELTA]);
    if (c->has_post)
        td_op_rms_norm(l->b.p, delta, weight(l, "F32", 1, delta.n_cols, 0, seed), 1, 1e-5f, delta);
}

static void record_feed_forward(layer *l, const layer_case *c)
{
    td_program *p = l->b.p;
    uint32_t n_embd = c->n_head * c->dim;
    td_view x = td_all(l->t[X]), normed = td_all(l->t[NORMED]), delta = td_all(l->t[DELTA]);
    td_view gate = td_columns(l->t[GATE_UP], 0, c->n_ff);
    td_view up = td_columns(l->t[GATE_UP], c->n_ff, c->n_ff);
    record_post_norm(l, c, 16);
    td_op_add(p, x, delta, x);
    td_op_rms_norm(p, x, weight(l, "F32", 1, n_embd, 0, 8), 1, 1e-5f, normed);
    if (c->has_experts) {
        td_op_mat_mul(p, weight(l, "F32", N_EXPERT + 1, n_embd, 0, 9), NULL, normed,
                      td_all(l->t[ROUTER]));
        if (c->has_shared)
            td_op_mat_mul(p, weight(l, c->weights, n_embd, n_embd, 0, 14), NULL, normed,
                          td_all(l->t[SHARED]));
        td_op_route(p, td_columns(l->t[ROUTER], 0, N_EXPERT), NULL, &(td_route_params){.scale = 1},
                    l->t[CHOSEN], l->t[SHARES]);
        td_view gated = record_experts(l, c, normed);
        td_op_mat_mul_experts(p, weight(l, c->weights, N_EXPERT * n_embd, c->n_ff, N_EXPERT, 12),
                              NULL, l->t[CHOSEN], gated, td_all(l->t[PARTS]));
        td_op_experts_sum(p, td_all(l->t[PARTS]), l->t[SHARES], delta);
        if (c->has_shared) {
            td_view shared = td_all(l->t[SHARED]);
            td_op_glu(p, TD_GLU_SIGMOID, td_columns(l->t[ROUTER], N_EXPERT, 1), shared, NULL,
                      shared);
            td_op_add(p, delta, shared, delta);
        }
    } else {
        td_op_mat_mul(p, weight(l, c->weights, 2 * c->n_ff, n_embd, 0, 10), NULL, normed,
                      td_all(l->t[GATE_UP]));
        td_op_glu(p, TD_GLU_GELU, gate, up, NULL, gate);
        td_op_mat_mul(p, weight(l, c->weights, n_embd, c->n_ff, 0, 12), NULL, gate, delta);
    }
    record_post_norm(l, c, 17);
    td_op_add(p, x, delta, x);
    if (!c->is_last) {
        td_op_rms_norm(p, x, NULL, 1, 1e-5f, normed);
        return;
    }
    td_op_gather(p, x, l->out_rows, td_all(l->t[OUT]));
    td_op_rms_norm(p, td_all(l->t[OUT]), NULL, 1, 1e-5f, td_all(l->t[OUT_NORMED]));
}

static layer begin_layer(td_device *dev, const layer_case *c)
{
    layer l = {.b = bench_begin(dev, TD_MODE_VERIFY, ROWS, ROWS)};
    uint32_t n_embd = c->n_head * c->dim, n_used = c->has_experts ? N_USED : 1;
    const td_type_info *type = td_type_find_name(c->cache);
    const uint32_t n_cols[N_KEPT] = {[X] = n_embd,
                                     [NORMED] = n_embd,
                                     [QKV] = (c->n_head + 2 * c->n_head_kv) * c->dim,
                                     [ATTENDED] = n_embd,
                                     [DELTA] = n_embd,
                                     [GATE_UP] = 2 * n_used * c->n_ff,
                                     [ROUTER] = N_EXPERT + 1,
                                     [SHARED] = n_embd,
                                     [SHARES] = N_USED,
                                     [GATED] = N_USED * c->n_ff,
                                     [OUT] = n_embd,
                                     [OUT_NORMED] = n_embd,
                                     [Q_NOPE] = c->n_head * N_NOPE,
                                     [VALUES] = c->n_head * N_VALUE,
                                     [PARTS] = N_USED * n_embd};
    for (uint32_t i = 0; i < N_KEPT; i++) {
        bool is_out = i == OUT || i == OUT_NORMED;
        bool is_there = i >= Q_NOPE ? c->is_absorbed
                        : is_out    ? c->is_last
                                    : c->has_experts || i < ROUTER;
        if (i == CHOSEN)
            l.t[i] = bench_tensor(&l.b, TD_ELEM_I32, TD_ROWS_BATCH, ROWS, N_USED);
        else if (is_there)
            l.t[i] = bench_tensor(&l.b, TD_ELEM_F32, is_out ? TD_ROWS_OUT : TD_ROWS_BATCH, ROWS,
                                  n_cols[i]);
    }
    /* no more than BENCH_OBJECTS_MAX: the cosines and the batch are of columns of others' rows */
    static td_tensor *inputs[5];
    td_err err = {0};
    for (uint32_t i = 0; i < TD_COUNT(inputs); i++) {
        inputs[i] = td_tensor_create(dev,
                                     &(td_tensor_params){"in", i ? TD_ELEM_I32 : TD_ELEM_F32,
                                                         i == 3   ? TD_ROWS_FIXED
                                                         : i == 4 ? TD_ROWS_OUT
                                                                  : TD_ROWS_BATCH,
                                                         i == 3 ? 1 : ROWS,
                                                         i == 0   ? c->n_rot
                                                         : i == 3 ? c->n_pages
                                                                  : 1,
                                                         TD_HOST_WRITES},
                                     &err);
        must(inputs[i] != NULL, &err);
    }
    l.cos_sin = inputs[0];
    l.positions = inputs[1];
    l.slots = inputs[2];
    l.pages = inputs[3];
    l.out_rows = inputs[4];
    l.kv = bench_kv(&l.b, &(td_kv_params){type, type, c->n_head_kv, c->dim,
                                          c->is_latent ? c->col0 : c->dim, c->n_pages, c->is_latent,
                                          c->rotates, c->rotates});
    record_attention(&l, c);
    record_feed_forward(&l, c);
    bench_end(&l.b);
    for (uint32_t i = 0; i < c->n_pages; i++)
        i32_data(l.pages)[i] = (int32_t)(c->n_pages - 1 - i);
    return l;
}

static void end_layer(layer *l)
{
    bench_destroy(&l->b);
    td_tensor_destroy(&l->cos_sin);
    td_tensor_destroy(&l->positions);
    td_tensor_destroy(&l->slots);
    td_tensor_destroy(&l->pages);
    td_tensor_destroy(&l->out_rows);
}

/* Rows row0.. of a text of ROWS positions, so that a later run reads what an earlier one stored. */
static void run_layer(layer *l, const layer_case *c, uint32_t row0, uint32_t n_rows)
{
    uint32_t n_embd = c->n_head * c->dim;
    for (uint32_t r = 0; r < n_rows; r++) {
        fill_random(f32_data(l->t[X]) + r * n_embd, n_embd, 100 + row0 + r);
        fill_random(f32_data(l->cos_sin) + r * c->n_rot, c->n_rot, 200 + row0 + r);
        i32_data(l->positions)[r] = (int32_t)(row0 + r);
        i32_data(l->slots)[r] = 0;
        /* the others way round, and one that is not there; or, to be compared, in order */
        i32_data(l->out_rows)[r] = (int32_t)(n_rows != ROWS_FEW ? r : r ? ROWS_FEW - r : ROWS);
    }
    bench_run(&l->b, n_rows, n_rows);
}

static void check_same(const layer *a, const layer *b, const layer_case *c, uint32_t row_a,
                       uint32_t n_rows)
{
    for (uint32_t i = 0; i < N_KEPT; i++) {
        if (!a->t[i])
            continue;
        uint32_t n = td_tensor_get_params(a->t[i])->n_cols;
        for (uint32_t k = 0; k < n_rows * n; k++) {
            int32_t got = i32_data(a->t[i])[row_a * n + k], want = i32_data(b->t[i])[k];
            if (got != want)
                fail_msg("%s: tensor %u, row %u, column %u: %08x, alone %08x", c->name, i, k / n,
                         k % n, (unsigned)got, (unsigned)want);
        }
    }
}

static void check_rows(layer *a, layer *b, const layer_case *c, uint32_t n_rows)
{
    run_layer(a, c, 0, n_rows);
    run_layer(b, c, 0, n_rows);
    check_same(a, b, c, 0, n_rows);
}

static const char *device_spec_wanted(void)
{
    const char *wanted = getenv("TD_TEST_DEVICES");
    return wanted && !strncmp(wanted, "vulkan:", 7) && !strchr(wanted, ',') ? wanted : "vulkan:0";
}

/* The same one, once doing ops together and once each by itself: for all cases, so that what two of
 * them run is compiled once. */
static td_device *fusing, *plain;

static td_device *open_with(const char *limit)
{
    td_err err = {0};
    setenv("TD_VK_LIMIT", limit, 1);
    td_device *dev = td_device_create(device_spec_wanted(), &err);
    unsetenv("TD_VK_LIMIT");
    if (!dev)
        printf("skipped: %s\n", err.message);
    return dev;
}

/* Of steps whose accesses are whole buffers there are more barriers than of columns. */
static bool is_told_of_columns(void)
{
    const char *validation = getenv("TD_VK_VALIDATION");
    return !validation || strcmp(validation, "sync") != 0;
}

static void check_case(const layer_case *c)
{
    layer fused = begin_layer(fusing, c), alone = begin_layer(plain, c);
    check_rows(&fused, &alone, c, ROWS_FEW);
    /* of a first run: those that follow may be cut, by what it took */
    uint32_t n_steps = td_vulkan_count_dispatches(fused.b.p, ROWS_FEW, ROWS_FEW);
    uint32_t n_alone = td_vulkan_count_dispatches(alone.b.p, ROWS_FEW, ROWS_FEW);
    uint32_t n_barriers = td_vulkan_count_barriers(fused.b.p, ROWS_FEW, ROWS_FEW);
    printf("%s%s: %u dispatches and %u barriers; alone %u and %u\n", c->name,
           c->rotates ? ", rotated" : "", n_steps, n_barriers, n_alone,
           td_vulkan_count_barriers(alone.b.p, ROWS_FEW, ROWS_FEW));
    assert_in_range(n_steps, 1, c->n_steps);
    if (is_told_of_columns())
        assert_in_range(n_barriers, 1, c->n_barriers);
    else
        printf("of at most %u barriers nothing is asserted: TD_VK_VALIDATION=sync knows of whole "
               "buffers only\n",
               c->n_barriers);
    assert_in_range(n_alone, c->n_alone, 1000);
    if (!wants_brief()) { /* the shaders of other numbers of rows */
        check_rows(&fused, &alone, c, ROWS);
        for (uint32_t r = 0; r < ROWS; r++) { /* row by row: law 1 */
            run_layer(&alone, c, r, 1);
            check_same(&fused, &alone, c, r, 1);
        }
    }
    end_layer(&fused);
    end_layer(&alone);
}

static const layer_case cases[] = {
    {.name = "dense, strands",
     .weights = "Q8_0",
     .cache = "F16",
     .n_head = 4,
     .n_head_kv = 2,
     .dim = 32,
     .n_ff = 160, /* a row of quants is padded */
     .has_gate = true,
     .has_post = true,
     .rope = TD_ROPE_NORM,
     .n_rot = 32,
     .n_pages = 40,
     .is_brief = true,
     .n_alone = 23,
     .n_steps = 11,
     .n_barriers = 9},
    {.name = "norms of heads, part of a head rotated",
     .weights = "Q4_0",
     .cache = "Q8_0",
     .n_head = 3,
     .n_head_kv = 1,
     .dim = 96,
     .n_ff = 96,
     .has_norms = true,
     .rope = TD_ROPE_NEOX,
     .n_rot = 32,
     .col0 = 64,
     .n_pages = 4,
     .n_alone = 20,
     .n_steps = 11,
     .n_barriers = 9},
    {.name = "experts, wide heads",
     .weights = "Q8_0",
     .cache = "Q4_0",
     .n_head = 2,
     .n_head_kv = 1,
     .dim = 192,
     .n_ff = 64,
     .has_norms = true,
     .has_experts = true,
     .is_joined = true,
     .rope = TD_ROPE_NEOX,
     .n_rot = 192,
     .n_pages = 33,
     .n_alone = 26,
     .n_steps = 13,
     .n_barriers = 11},
    {.name = "a shared expert, heads gated",
     .weights = "Q8_0",
     .cache = "F16",
     .n_head = 4,
     .n_head_kv = 2,
     .dim = 64,
     .n_ff = 96,
     .has_experts = true,
     .has_shared = true,
     .is_gated = true,
     .rope = TD_ROPE_NEOX,
     .n_rot = 64,
     .n_pages = 4,
     .is_brief = true,
     .n_alone = 29,
     .n_steps = 16,
     .n_barriers = 12},
    {.name = "the last layer, unquantized",
     .weights = "F32",
     .cache = "F16",
     .n_head = 2,
     .n_head_kv = 1,
     .dim = 20,
     .n_ff = 36,
     .has_experts = true,
     .is_joined = true,
     .has_shared = true,
     .is_gated = true,
     .is_last = true,
     .rope = TD_ROPE_NORM,
     .n_rot = 20,
     .n_pages = 4,
     .is_brief = true,
     .n_alone = 24,
     .n_steps = 15,
     .n_barriers = 12},
    {.name = "latent attention",
     .weights = "F32",
     .cache = "F16",
     .n_head = 3,
     .n_head_kv = 1,
     .dim = 352,
     .n_ff = 32,
     .has_norms = true,
     .is_latent = true,
     .rope = TD_ROPE_NORM,
     .n_rot = 32,
     .col0 = 320,
     .n_pages = 4,
     .n_alone = 15,
     .n_steps = 10,
     .n_barriers = 8},
    {.name = "latent attention, a quantized cache",
     .weights = "Q8_0",
     .cache = "Q8_0",
     .n_head = 2,
     .n_head_kv = 1,
     .dim = 416,
     .n_ff = 32,
     .has_norms = true,
     .has_experts = true,
     .is_latent = true,
     .is_absorbed = true,
     .rope = TD_ROPE_NEOX,
     .n_rot = 32,
     .col0 = 384, /* more than join's at once */
     .n_pages = 40,
     .is_brief = true,
     .n_alone = 31,
     .n_steps = 18,
     .n_barriers = 13},
    {.name = "unquantized",
     .weights = "F16",
     .cache = "F32",
     .n_head = 2,
     .n_head_kv = 2,
     .dim = 20, /* no whole blocks */
     .n_ff = 36,
     .has_post = true,
     .is_last = true,
     .rope = TD_ROPE_NEOX,
     .n_rot = 20,
     .n_pages = 4,
     .n_alone = 17,
     .n_steps = 11,
     .n_barriers = 9},
};

static void test_layers_are_the_same_in_fewer_dispatches(void **state)
{
    (void)state;
    for (size_t i = 0; i < TD_COUNT(cases); i++)
        if (!wants_brief() || cases[i].is_brief)
            check_case(&cases[i]);
}

/* Of a rotated cache q is turned by what stores k, and what is attended by the join; without
 * strands there is a join for that. */
static void test_rotation_has_no_dispatch_of_its_own(void **state)
{
    (void)state;
    for (size_t i = 0; i < TD_COUNT(cases); i++) {
        layer_case c = cases[i];
        if (wants_brief() && !c.has_gate && !c.is_absorbed)
            continue;
        c.rotates = true;
        bool had_strands = c.n_pages >= 8;
        c.n_steps += !had_strands;
        c.n_barriers += !had_strands || c.is_absorbed; /* q's head is whole when it is turned */
        c.n_alone++;                                   /* q's */
        check_case(&c);
    }
}

/* As on a card without a window into its memory: what the host writes is copied when a run begins,
 * and no step reads the host's copy. */
static void test_inputs_are_copied_once_where_they_would_be_far(void **state)
{
    (void)state;
    const layer_case *c = &cases[0];
    td_device *card = open_with("fusedOps=1,directInputBytes=1");
    assert_non_null(card);
    layer near = begin_layer(plain, c), far = begin_layer(card, c);
    for (uint32_t n = wants_brief() ? ROWS_FEW : 1; n <= ROWS; n += 2) { /* other rows each time */
        run_layer(&near, c, n, n);
        run_layer(&far, c, n, n);
        check_same(&far, &near, c, 0, n);
    }
    assert_int_equal(td_vulkan_count_far_reads(far.b.p), 0);
    end_layer(&near);
    end_layer(&far);
    td_device_destroy(&card);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layers_are_the_same_in_fewer_dispatches),
        cmocka_unit_test(test_rotation_has_no_dispatch_of_its_own),
        cmocka_unit_test(test_inputs_are_copied_once_where_they_would_be_far),
    };
    fusing = open_with("fusedOps=9");
    plain = open_with("fusedOps=1");
    bool is_there = fusing && plain;
    int result = is_there ? cmocka_run_group_tests(tests, NULL, NULL) : TEST_SKIPPED;
    td_device_destroy(&fusing);
    td_device_destroy(&plain);
    return result;
}
