/* td_op_kv_store and td_op_attention together, against an f64 softmax over keys and values that
 * went through the cache types' own encoders on the CPU: every type as keys and as values, odd head
 * sizes, grouped heads, windows, chunks, soft caps, sinks, several sequences with shuffled pages in
 * one batch. With a window of one position the op returns the cached value itself, which shows
 * kv_store's rounding. And law 1: a row has the same bits whatever batch it runs in and wherever
 * its pages lie. */
#include "op_common.h"

#define N_SEQUENCES 2u
#define HEADS_MAX   32u
#define PAGES_MAX   40u /* of a sequence: Vulkan then splits the positions of a verify row */

typedef struct {
    const char *type_k, *type_v;
    uint32_t n_head_kv, group, dim_k, dim_v;
    uint32_t window;
    float softcap;
    uint32_t n_positions; /* of each sequence */
    td_mode mode;
    uint32_t chunk;
    float sink; /* of the first head; the others' are 1 more each. 0: there are none */
} att_case;

typedef struct {
    bench b;
    td_tensor *q, *k, *v, *y, *positions, *slots, *pages;
} att_bench;

typedef struct { /* [N_SEQUENCES][n_positions][heads][dim] each */
    float *q, *k, *v;
    float *k_cached, *v_cached; /* after the cache type */
} att_data;

static uint32_t n_head(const att_case *c) { return c->n_head_kv * c->group; }
static float att_scale(const att_case *c) { return 1.0f / sqrtf((float)c->dim_k); }

/* Every head's row padded to the block, encoded and decoded. */
static float *new_cached(const char *type_name, const float *in, size_t n_rows, uint32_t dim)
{
    const td_type_info *type = td_type_find_name(type_name);
    uint32_t padded = td_round_up(dim, type->block_elements);
    float *row = test_alloc(padded, sizeof(float)), *out = test_alloc(n_rows * dim, sizeof(float));
    void *blocks = test_alloc(1, td_row_bytes(type, padded));
    for (size_t r = 0; r < n_rows; r++) {
        memset(row, 0, padded * sizeof(float));
        memcpy(row, in + r * dim, dim * sizeof(float));
        type->quantize(row, blocks, padded);
        type->dequantize(blocks, row, padded);
        memcpy(out + r * dim, row, dim * sizeof(float));
    }
    free(blocks);
    free(row);
    return out;
}

static void encode_data(const att_case *c, att_data *d)
{
    size_t n = (size_t)N_SEQUENCES * c->n_positions * c->n_head_kv;
    d->k_cached = new_cached(c->type_k, d->k, n, c->dim_k);
    d->v_cached = new_cached(c->type_v, d->v, n, c->dim_v);
}

static att_data new_data(const att_case *c)
{
    size_t n = (size_t)N_SEQUENCES * c->n_positions;
    att_data d = {.q = new_random(n * n_head(c) * c->dim_k, 21),
                  .k = new_random(n * c->n_head_kv * c->dim_k, 22),
                  .v = new_random(n * c->n_head_kv * c->dim_v, 23)};
    for (size_t i = 0; i < n * n_head(c) * c->dim_k; i++)
        d.q[i] *= 4.0f; /* scores far enough apart to matter */
    encode_data(c, &d);
    return d;
}

static void free_data(att_data *d)
{
    free(d->q);
    free(d->k);
    free(d->v);
    free(d->k_cached);
    free(d->v_cached);
}

/* `shift` turns the page order, so that the same positions lie elsewhere. */
static att_bench begin_case(td_device *dev, const att_case *c, uint32_t n_rows, uint32_t shift)
{
    att_bench m = {.b = bench_begin(dev, c->mode, n_rows, 0)};
    uint32_t n_pages = N_SEQUENCES * PAGES_MAX + 1;
    m.q = bench_tensor(&m.b, TD_ELEM_F32, TD_ROWS_BATCH, n_rows, n_head(c) * c->dim_k);
    m.k = bench_tensor(&m.b, TD_ELEM_F32, TD_ROWS_BATCH, n_rows, c->n_head_kv * c->dim_k + 3);
    m.v = bench_tensor(&m.b, TD_ELEM_F32, TD_ROWS_BATCH, n_rows, c->n_head_kv * c->dim_v);
    m.y = bench_tensor(&m.b, TD_ELEM_F32, TD_ROWS_BATCH, n_rows, n_head(c) * c->dim_v + 1);
    m.positions = bench_tensor(&m.b, TD_ELEM_I32, TD_ROWS_BATCH, n_rows, 1);
    m.slots = bench_tensor(&m.b, TD_ELEM_I32, TD_ROWS_BATCH, n_rows, 1);
    m.pages = bench_tensor(&m.b, TD_ELEM_I32, TD_ROWS_FIXED, N_SEQUENCES, PAGES_MAX);
    for (uint32_t i = 0; i < N_SEQUENCES * PAGES_MAX; i++) /* 7 and n_pages = 81 are coprime */
        i32_data(m.pages)[i] = (int32_t)((i * 7 + shift) % n_pages);
    td_kv *kv = bench_kv(&m.b, &(td_kv_params){td_type_find_name(c->type_k),
                                               td_type_find_name(c->type_v), c->n_head_kv, c->dim_k,
                                               c->dim_v, n_pages, false, false, false});
    const td_batch_tensors batch = {m.positions, m.slots, m.pages, NULL};
    float sinks[HEADS_MAX];
    for (uint32_t h = 0; h < n_head(c); h++)
        sinks[h] = c->sink + (float)h;
    const td_attention_params params = {.n_head = n_head(c),
                                        .scale = att_scale(c),
                                        .window = c->window,
                                        .chunk = c->chunk,
                                        .softcap = c->softcap,
                                        .sinks = c->sink != 0 ? bench_vector(&m.b, sinks, n_head(c))
                                                              : NULL};
    td_op_kv_store(m.b.p, kv, td_columns(m.k, 3, c->n_head_kv * c->dim_k), td_all(m.v), &batch);
    td_op_attention(m.b.p, kv, td_all(m.q), td_columns(m.y, 1, n_head(c) * c->dim_v), &params,
                    &batch);
    bench_end(&m.b);
    return m;
}

static void set_row(att_bench *m, const att_case *c, const att_data *d, uint32_t row,
                    uint32_t sequence, uint32_t position)
{
    size_t at = (size_t)sequence * c->n_positions + position;
    size_t n_q = (size_t)n_head(c) * c->dim_k, n_k = (size_t)c->n_head_kv * c->dim_k;
    size_t n_v = (size_t)c->n_head_kv * c->dim_v;
    memcpy(view_row(td_all(m->q), row), d->q + at * n_q, n_q * sizeof(float));
    memcpy(view_row(td_all(m->k), row) + 3, d->k + at * n_k, n_k * sizeof(float));
    memcpy(view_row(td_all(m->v), row), d->v + at * n_v, n_v * sizeof(float));
    i32_data(m->positions)[row] = (int32_t)position;
    i32_data(m->slots)[row] = (int32_t)sequence;
}

/* Pages that no row from `position` on can see are forgotten, as a cache with a window does. */
static void forget_pages(att_bench *m, const att_case *c, uint32_t position)
{
    uint32_t first = 0;
    if (c->window && position + 1 > c->window)
        first = position + 1 - c->window;
    if (c->chunk)
        first = td_max_u32(first, position / c->chunk * c->chunk);
    for (uint32_t s = 0; s < N_SEQUENCES; s++)
        for (uint32_t i = 0; i < first / TD_PAGE_POSITIONS; i++)
            i32_data(m->pages)[s * PAGES_MAX + i] = i % 2 ? INT32_MAX : 0;
}

typedef struct { /* where a row of a batch stands */
    uint32_t sequence, position;
} place;

/* All positions of both sequences, in the order they are fed: taking turns position by position, or
 * (together) two thirds of each batch from one sequence and the rest from the other, as long as
 * both last. Of two batches one begins with either. */
static place *new_places(const att_case *c, uint32_t width, bool is_together)
{
    uint32_t n = 0, n_all = N_SEQUENCES * c->n_positions, next[N_SEQUENCES] = {0};
    place *places = test_alloc(n_all, sizeof *places);
    for (uint32_t i = 0; n < n_all; i++) {
        uint32_t s = is_together ? (i + 1) / 2 % 2 : i % 2;
        uint32_t want = !is_together ? 1
                        : i % 2      ? width - td_div_up(2 * width, 3)
                                     : td_div_up(2 * width, 3);
        for (uint32_t k = 0; k < want && next[s] < c->n_positions; k++)
            places[n++] = (place){s, next[s]++};
        if (next[s] == c->n_positions)
            for (s = 0; s < N_SEQUENCES; s++)
                while (is_together && next[s] < c->n_positions)
                    places[n++] = (place){s, next[s]++};
    }
    return places;
}

/* Feeds both sequences in batches of `width` rows and gives y
 * [N_SEQUENCES][n_positions][n_head][dim_v]. */
static float *new_fed(td_device *dev, const att_case *c, const att_data *d, uint32_t width,
                      uint32_t shift, bool is_together)
{
    size_t n_y = (size_t)n_head(c) * c->dim_v;
    uint32_t n_rows = N_SEQUENCES * c->n_positions;
    float *out = test_alloc(n_rows * n_y, sizeof(float));
    place *places = new_places(c, width, is_together);
    att_bench m = begin_case(dev, c, width, shift);
    for (uint32_t first = 0; first < n_rows; first += width) {
        uint32_t n = td_min_u32(width, n_rows - first), lowest = UINT32_MAX;
        for (uint32_t r = 0; r < n; r++) {
            set_row(&m, c, d, r, places[first + r].sequence, places[first + r].position);
            lowest = td_min_u32(lowest, places[first + r].position);
        }
        if (!is_together) /* else the other sequence may be far behind */
            forget_pages(&m, c, lowest);
        bench_run(&m.b, n, 0);
        for (uint32_t r = 0; r < n; r++) {
            place at = places[first + r];
            memcpy(out + ((size_t)at.sequence * c->n_positions + at.position) * n_y,
                   view_row(td_all(m.y), r) + 1, n_y * sizeof(float));
        }
    }
    bench_destroy(&m.b);
    free(places);
    return out;
}

static float *new_results(td_device *dev, const att_case *c, const att_data *d, uint32_t width,
                          uint32_t shift)
{
    return new_fed(dev, c, d, width, shift, false);
}

static bool is_quantized(const char *type_name)
{
    return td_type_find_name(type_name)->block_elements > 1;
}

/* One head of one row in f64. *error bounds what f32 scores may do to the weights, *error_wide what
 * the 15 bits of queries and weights may on the host (arith.h). */
static void attend(const att_case *c, const att_data *d, uint32_t sequence, uint32_t position,
                   uint32_t head, double *y, double *error, double *error_wide)
{
    static double weights[PAGES_MAX * TD_PAGE_POSITIONS];
    uint32_t head_kv = head / c->group, first = 0;
    if (c->window && position + 1 > c->window)
        first = position + 1 - c->window;
    if (c->chunk)
        first = td_max_u32(first, position / c->chunk * c->chunk);
    size_t base = (size_t)sequence * c->n_positions;
    const float *q = d->q + ((base + position) * n_head(c) + head) * c->dim_k;
    double top = -INFINITY, total = 0, longest = 0;
    for (uint32_t j = first; j <= position; j++) {
        const float *k = d->k_cached + ((base + j) * c->n_head_kv + head_kv) * c->dim_k;
        double s = 0, size = 0;
        for (uint32_t i = 0; i < c->dim_k; i++) {
            s += (double)q[i] * (double)k[i];
            size += fabs((double)q[i] * (double)k[i]);
        }
        s *= (double)att_scale(c);
        if (c->softcap != 0)
            s = (double)c->softcap * tanh(s / (double)c->softcap);
        longest = fmax(longest, size * (double)att_scale(c));
        weights[j] = s;
        top = fmax(top, s);
    }
    double sink = (double)c->sink + head;
    if (c->sink != 0) {
        top = fmax(top, sink);
        total = exp(sink - top);
    }
    for (uint32_t j = first; j <= position; j++)
        total += weights[j] = exp(weights[j] - top);
    memset(y, 0, c->dim_v * sizeof *y);
    for (uint32_t j = first; j <= position; j++)
        for (uint32_t i = 0; i < c->dim_v; i++)
            y[i] += weights[j] / total *
                    (double)d->v_cached[((base + j) * c->n_head_kv + head_kv) * c->dim_v + i];
    *error = 1e-5 + 16 * 0x1p-24 * longest + 4e-7 * (double)c->softcap;
    *error_wide = (is_quantized(c->type_k) ? 0x1p-16 * longest : 0) +
                  (is_quantized(c->type_v) ? 0x1p-12 : 0); /* values are up to 1 or so */
}

static void check_results(td_device *dev, const att_case *c, const att_data *d, const float *y)
{
    char what[128];
    snprintf(what, sizeof what, "attention %s %s, %u heads x %u, dims %u %u, window %u, mode %d",
             c->type_k, c->type_v, c->n_head_kv, c->group, c->dim_k, c->dim_v, c->window,
             (int)c->mode);
    double *want = test_alloc(c->dim_v, sizeof(double)), error, error_wide;
    for (uint32_t s = 0; s < N_SEQUENCES; s++)
        for (uint32_t p = 0; p < c->n_positions; p++)
            for (uint32_t h = 0; h < n_head(c); h++) {
                size_t row = ((size_t)s * c->n_positions + p) * n_head(c) + h;
                attend(c, d, s, p, h, want, &error, &error_wide);
                error += is_vulkan(dev) ? 0 : error_wide;
                for (uint32_t i = 0; i < c->dim_v; i++)
                    check_close(y[row * c->dim_v + i], want[i], error, row * c->dim_v + i, what,
                                dev);
            }
    free(want);
}

static void check_case(const att_case *c)
{
    size_t n = (size_t)N_SEQUENCES * c->n_positions * n_head(c) * c->dim_v;
    att_data d = new_data(c);
    float *scalar = NULL;
    for (size_t i = 0; i < n_test_devices; i++) {
        float *y = new_results(test_devices[i], c, &d, c->mode == TD_MODE_VERIFY ? 33 : 100, 3);
        check_results(test_devices[i], c, &d, y);
        if (!scalar) {
            scalar = y;
            continue;
        }
        if (is_bit_equal_to_scalar(test_devices[i]))
            check_same_bits(y, scalar, n, "attention against scalar", test_devices[i]);
        free(y);
    }
    free(scalar);
    free_data(&d);
}

/* In brief, the first n_brief: tables begin with those that together take every path. */
static void check_cases(const att_case *cases, size_t n, size_t n_brief)
{
    for (size_t i = 0; i < (wants_brief() ? n_brief : n); i++)
        check_case(&cases[i]);
}

/* A software GPU compiles each pair anew: there every type is keys once and values once, and in
 * brief either. */
static void test_attention_reads_every_pair_of_cache_types(void **state)
{
    const size_t n = TD_COUNT(cache_types);
    (void)state;
    for (size_t k = 0; k < n; k++)
        for (size_t v = 0; v < n; v++) {
            bool is_common = td_max_u32((uint32_t)k, (uint32_t)v) < TD_INPUT_CACHE_COMMON;
            bool is_one = v == (k + 1) % n && (!wants_brief() || k % 2 == 0);
            if (is_one || (is_common && !is_software(test_devices[n_test_devices - 1])))
                check_case(&(att_case){cache_types[k], cache_types[v], 2, 2, 40, 96, 0, 0, 66,
                                       (k + v / 2) % 2 ? TD_MODE_VERIFY : TD_MODE_PREFILL, 0, 0});
        }
}

static void test_attention_takes_odd_heads_and_groups(void **state)
{
    (void)state;
    const att_case cases[] = {
        {"Q8_0", "Q4_0", 1, 8, 128, 128, 0, 0, 66, TD_MODE_VERIFY, 0, 0},
        {"F32", "F32", 2, 4, 5, 3, 0, 0, 66, TD_MODE_VERIFY, 0, 0},
        {"F16", "F32", 1, 1, 256, 300, 0, 0, 20, TD_MODE_VERIFY, 0, 0},
        {"F16", "F16", 3, 1, 24, 24, 0, 0, 40, TD_MODE_VERIFY, 0, 0},
        {"F16", "Q8_0", 2, 1, 20, 100, 0, 0, 66, TD_MODE_VERIFY, 0, 0},
        {"Q4_0", "F16", 1, 4, 64, 12, 0, 0, 66, TD_MODE_PREFILL, 0, 0},
    };
    check_cases(cases, TD_COUNT(cases), 3);
}

static void test_attention_keeps_windows_and_caps(void **state)
{
    (void)state;
    const att_case cases[] = {
        {"F16", "F16", 1, 2, 32, 32, 64, 0, 200, TD_MODE_VERIFY, 0, 0},
        {"F16", "F16", 1, 2, 32, 32, 0, 5.0f, 130, TD_MODE_VERIFY, 0, 0},
        {"F32", "F16", 1, 1, 16, 16, 0, 0, 8 * TD_PAGE_POSITIONS, TD_MODE_VERIFY, 0, 0},
        {"F16", "F16", 1, 2, 32, 32, 1, 0, 70, TD_MODE_VERIFY, 0, 0},
        {"Q8_0", "Q8_0", 1, 2, 32, 32, 100, 0, 330, TD_MODE_PREFILL, 0, 0},
    };
    check_cases(cases, TD_COUNT(cases), 3);
}

static void test_attention_keeps_chunks(void **state)
{
    (void)state;
    const att_case cases[] = {
        {"F16", "Q8_0", 1, 2, 32, 32, 0, 0, 330, TD_MODE_VERIFY, 100, 0},
        {"F16", "F16", 1, 1, 32, 32, 50, 0, 200, TD_MODE_PREFILL, 70, 0},
        {"F16", "F16", 1, 2, 32, 32, 0, 0, 200, TD_MODE_VERIFY, 64, 0},
        {"F32", "F32", 1, 1, 8, 8, 0, 0, 20, TD_MODE_VERIFY, 1, 0},
    };
    check_cases(cases, TD_COUNT(cases), 2);
}

/* Sinks below, among and above all scores; the last by so much that nothing else counts. */
static void test_attention_takes_sinks_into_the_sum(void **state)
{
    (void)state;
    const att_case cases[] = {
        {"Q8_0", "F16", 1, 4, 32, 32, 128, 0, 300, TD_MODE_PREFILL, 0, 2.0f},
        {"F16", "F16", 1, 2, 32, 32, 0, 0, 520, TD_MODE_VERIFY, 0, 1.0f},
        {"F16", "F16", 2, 2, 32, 32, 0, 0, 130, TD_MODE_VERIFY, 0, -20.0f},
        {"F32", "F32", 2, 4, 16, 24, 0, 0, 70, TD_MODE_VERIFY, 0, 0.5f},
        {"F16", "F16", 1, 2, 32, 32, 0, 0, 70, TD_MODE_VERIFY, 0, 300.0f},
    };
    check_cases(cases, TD_COUNT(cases), 2);
}

/* A window of one position: the softmax is 1 and y the cached value. The pairs are those above. */
static void test_kv_store_rounds_as_the_encoders_do(void **state)
{
    (void)state;
    for (size_t t = 0; t < TD_COUNT(cache_types); t++) {
        const char *type_k = cache_types[(t + TD_COUNT(cache_types) - 1) % TD_COUNT(cache_types)];
        const att_case c = {type_k, cache_types[t], 2, 1, 40, 96, 1, 0, 60, TD_MODE_VERIFY, 0, 0};
        bool has_minimum = td_type_find_name(cache_types[t])->has_minimum;
        att_data d = new_data(&c);
        size_t n = (size_t)N_SEQUENCES * c.n_positions * c.n_head_kv * c.dim_v;
        for (size_t i = 0; i < n; i++) { /* sizes from the subnormal halves up, ties, zeros */
            size_t row = i / c.dim_v;
            d.v[i] = ldexpf(d.v[i], (int)(row % 40) - 30);
            if (row % 5 == 0) /* d = 1 in Q8_0: halves of a quant */
                d.v[i] = i % 32 ? (float)(i % 9) - 4.5f : 127.0f;
            if (row % 7 == 0) /* halves of the last bit of a half */
                d.v[i] = 1.0f + (float)(2 * (i % 50) + 1) * 0x1p-11f;
            if (row % 11 == 0)
                d.v[i] = 0;
        }
        free(d.v_cached);
        d.v_cached = new_cached(c.type_v, d.v, n / c.dim_v, c.dim_v);
        for (size_t i = 0; i < n_test_devices; i++) {
            float *y = new_results(test_devices[i], &c, &d, 40, 0);
            for (size_t j = 0; j < n; j++) { /* one step of a quant would be 2^-11 of it or more */
                double size = fabs((double)d.v_cached[j]);
                for (size_t e = j / 32 * 32; has_minimum && e < j / 32 * 32 + 32; e++)
                    size = fmax(size, fabs((double)d.v_cached[e])); /* with it, 2^-5 of its block */
                check_close(y[j], (double)d.v_cached[j], 0x1p-20 * size, j, cache_types[t],
                            test_devices[i]);
            }
            free(y);
        }
        free_data(&d);
    }
}

static void test_a_row_does_not_depend_on_its_batch(void **state)
{
    (void)state;
    static const uint32_t widths[] = {1, 2, 5, 16, 17, 33, 64};
    const att_case cases[] = {{"Q8_0", "Q4_0", 1, 4, 64, 64, 70, 0, 150, TD_MODE_VERIFY, 0, 0},
                              {"F16", "F16", 1, 2, 32, 32, 0, 0, 600, TD_MODE_VERIFY, 0, 1.0f},
                              {"F16", "F16", 1, 2, 32, 32, 0, 0, 150, TD_MODE_VERIFY, 50, 1.0f},
                              {"F16", "F16", 2, 2, 40, 40, 0, 0, 150, TD_MODE_VERIFY, 0, 0}};
    for (size_t k = 0; k < (wants_brief() ? 2 : TD_COUNT(cases)); k++) {
        const att_case *c = &cases[k];
        att_data d = new_data(c);
        size_t n = (size_t)N_SEQUENCES * c->n_positions * n_head(c) * c->dim_v;
        for (size_t i = 0; i < n_test_devices; i++) {
            float *want = new_results(test_devices[i], c, &d, wants_brief() ? 5 : 1, 0);
            for (size_t w = wants_brief() ? TD_COUNT(widths) - 1 : 1; w < TD_COUNT(widths); w++) {
                float *y = new_results(test_devices[i], c, &d, widths[w], (uint32_t)w);
                check_same_bits(y, want, n, "row invariance", test_devices[i]);
                free(y);
            }
            free(want);
        }
        free_data(&d);
    }
}

#define BAD_KEY 5u

/* A NaN in a key alone is seen in what comes of it, with a cap and without. */
static void check_a_bad_key_shows(td_device *dev, const att_case *clean)
{
    att_case c = *clean;
    att_data d = new_data(&c);
    d.k[BAD_KEY * c.dim_k] = NAN;
    for (int is_capped = 0; is_capped < 2; is_capped++) {
        c.softcap = is_capped ? 20.0f : 0.0f;
        float *y = new_results(dev, &c, &d, 20, 0);
        assert_true(isnan(y[BAD_KEY * n_head(&c) * c.dim_v]) != 0);
        free(y);
    }
    free_data(&d);
}

/* Rows of a sequence that stand together share their keys' and values' loads: pairs of a row and a
 * head around every size of a tile, groups that do and do not divide it, and tiles of two sequences
 * in a batch. Each row is as it is alone, and as f64 has it. A software GPU, which compiles each
 * group's shaders anew, takes one of each kind: alone, odd, dividing a tile, larger than it. */
static void test_rows_that_stand_together_are_as_alone(void **state)
{
    (void)state;
    static const uint32_t groups[] = {1, 2, 3, 4, 8, 5, 17, 16},
                          widths[] = {3, 18, 64, 2, 6, 9, 26};
    size_t n_widths = wants_brief() ? 3 : TD_COUNT(widths);
    for (size_t g = 0; g < TD_COUNT(groups); g++) {
        const att_case c = {"F16",
                            "F16",
                            1,
                            groups[g],
                            32,
                            32,
                            g % 3 == 1 ? 50 : 0,
                            0,
                            90,
                            TD_MODE_VERIFY,
                            g % 3 == 2 ? 40 : 0,
                            0};
        att_data d = new_data(&c);
        size_t n = (size_t)N_SEQUENCES * c.n_positions * n_head(&c) * c.dim_v;
        for (size_t i = 0; i < n_test_devices; i++) {
            if (is_software(test_devices[i]) && g % 2)
                continue;
            float *want = new_fed(test_devices[i], &c, &d, 1, 0, false);
            check_results(test_devices[i], &c, &d, want);
            for (size_t w = 0; w < n_widths; w++) {
                float *y = new_fed(test_devices[i], &c, &d, widths[w], (uint32_t)w, true);
                check_same_bits(y, want, n, "rows together", test_devices[i]);
                free(y);
            }
            free(want);
        }
        free_data(&d);
    }
}

/* Heads of the sizes whose tiles differ: a lane has one part of a value, several, and all of it. */
static void test_tiles_of_all_head_sizes_keep_rows_apart(void **state)
{
    (void)state;
    static const uint32_t widths[] = {7, 20};
    const att_case cases[] = {{"Q8_0", "F16", 1, 4, 80, 80, 0, 0, 70, TD_MODE_VERIFY, 0, 0},
                              {"Q4_0", "Q8_0", 1, 5, 20, 300, 0, 0, 66, TD_MODE_VERIFY, 0, 0},
                              {"F16", "F16", 1, 16, 576, 512, 0, 0, 66, TD_MODE_VERIFY, 0, 0},
                              {"F16", "Q4_0", 2, 3, 256, 256, 0, 0, 70, TD_MODE_VERIFY, 0, 1.0f},
                              {"F32", "F32", 1, 2, 8, 520, 0, 0, 66, TD_MODE_VERIFY, 0, 0}};
    for (size_t k = 0; k < (wants_brief() ? 3 : TD_COUNT(cases)); k++) {
        const att_case *c = &cases[k];
        att_data d = new_data(c);
        size_t n = (size_t)N_SEQUENCES * c->n_positions * n_head(c) * c->dim_v;
        for (size_t i = 0; i < n_test_devices; i++) {
            float *want = new_fed(test_devices[i], c, &d, 1, 0, false);
            check_results(test_devices[i], c, &d, want);
            for (size_t w = 0; w < TD_COUNT(widths); w++) {
                float *y = new_fed(test_devices[i], c, &d, widths[w], 1, true);
                check_same_bits(y, want, n, "tiles", test_devices[i]);
                free(y);
            }
            free(want);
        }
        free_data(&d);
    }
}

/* Sequence 1 is poisoned from its first position, sequence 0 at a position
 * that leaves the window. */
static void test_hostile_positions_reach_only_rows_that_see_them(void **state)
{
    (void)state;
    static const float hostile[] = {NAN, INFINITY, -INFINITY, 1e30f};
    enum { BAD = 5, WINDOW = 10 };
    for (size_t t = 0; t < TD_COUNT(cache_types); t += wants_brief() ? 2 : 1) {
        const char *type_v = cache_types[(t + 1) % TD_COUNT(cache_types)];
        const att_case c = {cache_types[t], type_v, 1, 2, 40, 96, WINDOW, 0, 80,
                            TD_MODE_VERIFY, 0,      0};
        att_data clean = new_data(&c);
        size_t n_y = (size_t)n_head(&c) * c.dim_v;
        for (size_t i = 0; i < n_test_devices; i++) {
            check_a_bad_key_shows(test_devices[i], &c);
            float *want = new_results(test_devices[i], &c, &clean, 20, 0);
            for (size_t h = 0; h < TD_COUNT(hostile); h++) {
                att_data d = new_data(&c);
                for (size_t j = 0; j < (size_t)c.n_positions * c.dim_k; j++)
                    d.k[(size_t)c.n_positions * c.dim_k + j] = hostile[h];
                for (uint32_t j = 0; j < c.dim_k; j++)
                    d.k[BAD * c.dim_k + j] = d.v[BAD * c.dim_v + j] = hostile[h];
                float *y = new_fed(test_devices[i], &c, &d, 20, 0, h % 2 == 0);
                for (uint32_t p = 0; p < c.n_positions; p++) {
                    if (p < BAD || p >= BAD + WINDOW)
                        check_same_bits(y + p * n_y, want + p * n_y, n_y, "beside hostile rows",
                                        test_devices[i]);
                    else if (h == 0)
                        assert_true(isnan(y[p * n_y]) != 0);
                }
                free(y);
                free_data(&d);
            }
            free(want);
        }
        free_data(&clean);
    }
}

/* Bytes of keys and values that a run of rows at a depth asks for, and those there are. */
static td_traffic traffic_of(td_device *dev, const att_case *c, uint32_t n_rows, uint32_t depth)
{
    td_err err = {0};
    att_bench m = begin_case(dev, c, n_rows, 0);
    for (uint32_t r = 0; r < n_rows; r++) {
        memset(view_row(td_all(m.q), r), 0, (size_t)n_head(c) * c->dim_k * sizeof(float));
        memset(view_row(td_all(m.k), r), 0, ((size_t)c->n_head_kv * c->dim_k + 3) * sizeof(float));
        memset(view_row(td_all(m.v), r), 0, (size_t)c->n_head_kv * c->dim_v * sizeof(float));
        i32_data(m.positions)[r] = (int32_t)(depth + r);
        i32_data(m.slots)[r] = 1;
    }
    must(td_program_profile(m.b.p, true, &err), &err);
    bench_run(&m.b, n_rows, 0);
    td_op_time times[TD_OP_NAMES_MAX];
    uint32_t n = td_program_op_times(m.b.p, times, TD_OP_NAMES_MAX);
    td_traffic sum = {0};
    for (uint32_t i = 0; i < n; i++) {
        sum.issued += times[i].traffic.issued;
        sum.there += times[i].traffic.there;
    }
    bench_destroy(&m.b);
    return sum;
}

/* Up to 64 pairs of a row and a head of a group, keys and values are asked for once; a chunk of a
 * prompt, once for each 64. A row of f16 keys or values of 128 is 256 bytes. */
static void test_keys_and_values_are_read_once_for_a_tile(void **state)
{
    (void)state;
    static const struct {
        uint32_t n_head_kv, group, n_rows, depth;
        td_mode mode;
        double most;
    } cases[] = {
        {8, 4, 1, 0, TD_MODE_VERIFY, 1.0},       {8, 4, 1, 2000, TD_MODE_VERIFY, 1.0},
        {8, 4, 5, 700, TD_MODE_VERIFY, 1.0},     {8, 4, 8, 2000, TD_MODE_VERIFY, 1.0},
        {8, 4, 16, 100, TD_MODE_VERIFY, 1.0},    {8, 4, 16, 2500, TD_MODE_VERIFY, 1.0},
        {8, 4, 64, 1000, TD_MODE_VERIFY, 4.0},   {2, 8, 8, 300, TD_MODE_VERIFY, 1.0},
        {4, 1, 64, 300, TD_MODE_VERIFY, 1.0},    {8, 4, 256, 0, TD_MODE_PREFILL, 16.0},
        {8, 4, 100, 1000, TD_MODE_PREFILL, 7.0},
    };
    if (wants_brief()) /* the counting is the host's: one driver is enough */
        return;
    for (size_t i = 0; i < n_test_devices; i++)
        for (size_t k = 0; is_vulkan(test_devices[i]) && k < TD_COUNT(cases); k++) {
            const att_case c = {.type_k = "F16",
                                .type_v = "F16",
                                .n_head_kv = cases[k].n_head_kv,
                                .group = cases[k].group,
                                .dim_k = 128,
                                .dim_v = 128,
                                .mode = cases[k].mode};
            td_traffic t = traffic_of(test_devices[i], &c, cases[k].n_rows, cases[k].depth);
            double there = 512.0 * c.n_head_kv * (cases[k].depth + cases[k].n_rows);
            assert_true(t.there == there);
            assert_true(t.issued >= t.there && t.issued <= cases[k].most * t.there);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention_reads_every_pair_of_cache_types),
        cmocka_unit_test(test_attention_takes_odd_heads_and_groups),
        cmocka_unit_test(test_attention_keeps_windows_and_caps),
        cmocka_unit_test(test_attention_keeps_chunks),
        cmocka_unit_test(test_attention_takes_sinks_into_the_sum),
        cmocka_unit_test(test_kv_store_rounds_as_the_encoders_do),
        cmocka_unit_test(test_a_row_does_not_depend_on_its_batch),
        cmocka_unit_test(test_rows_that_stand_together_are_as_alone),
        cmocka_unit_test(test_tiles_of_all_head_sizes_keep_rows_apart),
        cmocka_unit_test(test_keys_and_values_are_read_once_for_a_tile),
        cmocka_unit_test(test_hostile_positions_reach_only_rows_that_see_them),
    };
    return TEST_MAIN(tests);
}
