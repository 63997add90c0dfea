/* td_op_delta_net and td_op_state_keep together, against the recurrence in f64 from a sequence's
 * first row on: head counts, sizes, both orders of heads, taps. Then what must not change a bit:
 * how rows are cut into batches, when they count as committed, rows that are rolled back (in place:
 * the next batch simply begins earlier), other sequences in the batch, a slot used before, a batch
 * run twice. */
#include "op_common.h"

#define N_SLOTS      3u
#define POSITIONS    48u /* of each sequence */
#define ROWS_MAX     64u
#define N_PENDING    70u
#define SEGMENTS_MAX 3u

typedef struct {
    uint32_t n_head_k, n_head_v, dim, n_taps;
    td_heads_order order;
    td_mode mode;
} net_case;

typedef struct {
    float *conv, *a, *dt;
    float *x; /* [N_SLOTS][POSITIONS][n_cols] */
} net_data;

typedef struct {
    bench b;
    td_tensor *positions, *slots, *pages, *spans;
    td_view x, y;
} net_bench;

typedef struct { /* rows of a sequence in a batch */
    uint32_t slot, sequence, position, n;
    uint32_t n_right; /* the others' inputs are of a draft that was wrong */
    uint32_t committed;
} segment;

static uint32_t n_channels(const net_case *c) { return (2 * c->n_head_k + c->n_head_v) * c->dim; }
static uint32_t n_cols(const net_case *c) { return n_channels(c) + 2 * c->n_head_v; }
static uint32_t y_cols(const net_case *c) { return c->n_head_v * c->dim; }

static net_data new_data(const net_case *c)
{
    net_data d = {.conv = new_random((size_t)n_channels(c) * c->n_taps, 81),
                  .a = new_random(c->n_head_v, 82),
                  .dt = new_random(c->n_head_v, 83),
                  .x = new_random((size_t)N_SLOTS * POSITIONS * n_cols(c), 84)};
    for (uint32_t h = 0; h < c->n_head_v; h++)
        d.a[h] = h % 5 == 4 ? -8.0f : -0.02f - fabsf(d.a[h]) * 0.3f; /* some forget at once */
    for (size_t i = 0; i < (size_t)N_SLOTS * POSITIONS * n_cols(c); i++)
        d.x[i] *= 2.0f;
    return d;
}

static void free_data(net_data *d)
{
    free(d->x);
    free(d->dt);
    free(d->a);
    free(d->conv);
}

static net_bench begin_case(td_device *dev, const net_case *c, const net_data *d)
{
    net_bench m = {.b = bench_begin(dev, c->mode, ROWS_MAX, 0)};
    m.x = td_columns(bench_tensor(&m.b, TD_ELEM_F32, TD_ROWS_BATCH, ROWS_MAX, n_cols(c) + 5), 3,
                     n_cols(c));
    m.y = td_columns(bench_tensor(&m.b, TD_ELEM_F32, TD_ROWS_BATCH, ROWS_MAX, y_cols(c) + 2), 1,
                     y_cols(c));
    m.positions = bench_tensor(&m.b, TD_ELEM_I32, TD_ROWS_BATCH, ROWS_MAX, 1);
    m.slots = bench_tensor(&m.b, TD_ELEM_I32, TD_ROWS_BATCH, ROWS_MAX, 1);
    m.pages = bench_tensor(&m.b, TD_ELEM_I32, TD_ROWS_FIXED, N_SLOTS, 1);
    m.spans = bench_tensor(&m.b, TD_ELEM_I32, TD_ROWS_FIXED, N_SLOTS, 2);
    td_state *state = bench_state(&m.b, &(td_state_params){.n_slots = N_SLOTS,
                                                           .n_head_k = c->n_head_k,
                                                           .n_head_v = c->n_head_v,
                                                           .dim = c->dim,
                                                           .n_taps = c->n_taps,
                                                           .n_pending = N_PENDING});
    const td_batch_tensors batch = {m.positions, m.slots, m.pages, m.spans};
    const td_delta_net_params params = {
        .conv = bench_vector(&m.b, d->conv, n_channels(c) * c->n_taps),
        .a = bench_vector(&m.b, d->a, c->n_head_v),
        .dt = bench_vector(&m.b, d->dt, c->n_head_v),
        .order = c->order,
        .eps = 1e-6f,
    };
    td_op_delta_net(m.b.p, state, m.x, &params, &batch, m.y);
    td_op_state_keep(m.b.p, state, m.x, &batch);
    bench_end(&m.b);
    return m;
}

static void run_batch(net_bench *m, const net_case *c, const net_data *d, const segment *segments,
                      uint32_t n_segments)
{
    uint32_t row = 0;
    for (uint32_t k = 0; k < n_segments; k++) {
        const segment *s = &segments[k];
        i32_data(m->spans)[2 * s->slot] = (int32_t)s->committed;
        i32_data(m->spans)[2 * s->slot + 1] = (int32_t)(s->position + s->n);
        for (uint32_t i = 0; i < s->n; i++, row++) {
            size_t at = (size_t)s->sequence * POSITIONS + s->position + i;
            i32_data(m->positions)[row] = (int32_t)(s->position + i);
            i32_data(m->slots)[row] = (int32_t)s->slot;
            if (i < s->n_right)
                memcpy(view_row(m->x, row), d->x + at * n_cols(c), n_cols(c) * sizeof(float));
            else
                fill_random(view_row(m->x, row), n_cols(c), at + 1000);
        }
    }
    bench_run(&m->b, row, 0);
}

/* Keeps the right rows' results in y [N_SLOTS][POSITIONS][y_cols], by sequence. */
static void keep_results(net_bench *m, const net_case *c, const segment *segments,
                         uint32_t n_segments, float *y)
{
    uint32_t row = 0;
    for (uint32_t k = 0; k < n_segments; k++)
        for (uint32_t i = 0; i < segments[k].n; i++, row++)
            if (i < segments[k].n_right)
                memcpy(y + ((size_t)segments[k].sequence * POSITIONS + segments[k].position + i) *
                               y_cols(c),
                       view_row(m->y, row), y_cols(c) * sizeof(float));
}

static float *new_y(const net_case *c)
{
    return test_alloc((size_t)N_SLOTS * POSITIONS * y_cols(c), sizeof(float));
}

/* All sequences one after another in batches of `width`; committed: the rows before the last `lag`
 * ones (lag 0 in verify: all before the batch), or with the batch where `lag` is UINT32_MAX. */
static float *new_results(td_device *dev, const net_case *c, const net_data *d, uint32_t width,
                          uint32_t lag)
{
    net_bench m = begin_case(dev, c, d);
    float *y = new_y(c);
    for (uint32_t s = 0; s < N_SLOTS; s++)
        for (uint32_t p = 0; p < POSITIONS; p += width) {
            uint32_t n = td_min_u32(width, POSITIONS - p);
            const segment part = {.slot = (s + 1) % N_SLOTS,
                                  .sequence = s,
                                  .position = p,
                                  .n = n,
                                  .n_right = n,
                                  .committed = lag == UINT32_MAX ? p + n : p - td_min_u32(p, lag)};
            run_batch(&m, c, d, &part, 1);
            keep_results(&m, c, &part, 1, y);
        }
    bench_destroy(&m.b);
    return y;
}

/* -- f64 ------------------------------------------------------------------------------------- */

static double convolve(const net_case *c, const net_data *d, const float *x, uint32_t position,
                       uint32_t channel)
{
    double sum = 0;
    for (uint32_t t = 0; t < c->n_taps; t++)
        if (position + t + 1 >= c->n_taps)
            sum += (double)d->conv[t * n_channels(c) + channel] *
                   (double)x[(size_t)(position + t + 1 - c->n_taps) * n_cols(c) + channel];
    return sum / (1 + exp(-sum));
}

/* A head of a sequence: y [POSITIONS][dim]. */
static void walk_head(const net_case *c, const net_data *d, const float *x, uint32_t h, double *y)
{
    static double s[128][128], q[128], k[128], v[128];
    uint32_t n = c->dim, head_k = c->order == TD_HEADS_TILED ? h % c->n_head_k
                                                             : h / (c->n_head_v / c->n_head_k);
    memset(s, 0, sizeof s);
    for (uint32_t p = 0; p < POSITIONS; p++) {
        const float *gates = x + (size_t)p * n_cols(c) + n_channels(c);
        double q_size = 1e-6, k_size = 1e-6;
        for (uint32_t i = 0; i < n; i++) {
            q[i] = convolve(c, d, x, p, head_k * n + i);
            k[i] = convolve(c, d, x, p, (c->n_head_k + head_k) * n + i);
            v[i] = convolve(c, d, x, p, (2 * c->n_head_k + h) * n + i);
            q_size += q[i] * q[i];
            k_size += k[i] * k[i];
        }
        double g = exp((double)d->a[h] * log1p(exp((double)gates[h] + (double)d->dt[h])));
        double beta = 1 / (1 + exp(-(double)gates[c->n_head_v + h]));
        for (uint32_t j = 0; j < n; j++) {
            double seen = 0, out = 0;
            for (uint32_t i = 0; i < n; i++)
                seen += g * s[i][j] * k[i] / sqrt(k_size);
            for (uint32_t i = 0; i < n; i++) {
                s[i][j] = g * s[i][j] + k[i] / sqrt(k_size) * beta * (v[j] - seen);
                out += s[i][j] * q[i] / sqrt(q_size * n);
            }
            y[(size_t)p * n + j] = out;
        }
    }
}

static void check_results(const td_device *dev, const net_case *c, const net_data *d,
                          const float *got)
{
    double *want = test_alloc((size_t)POSITIONS * c->dim, sizeof(double));
    char what[96];
    snprintf(what, sizeof what, "delta_net %u/%u heads of %u, %u taps, order %d", c->n_head_k,
             c->n_head_v, c->dim, c->n_taps, (int)c->order);
    for (uint32_t s = 0; s < N_SLOTS; s++)
        for (uint32_t h = 0; h < c->n_head_v; h++) {
            walk_head(c, d, d->x + (size_t)s * POSITIONS * n_cols(c), h, want);
            for (uint32_t p = 0; p < POSITIONS; p++)
                for (uint32_t j = 0; j < c->dim; j++) {
                    size_t at = ((size_t)s * POSITIONS + p) * y_cols(c) + h * c->dim + j;
                    double w = want[(size_t)p * c->dim + j];
                    check_close(got[at], w, 4e-6 * (1 + fabs(w)), at, what, dev);
                }
        }
    free(want);
}

/* -- tests ----------------------------------------------------------------------------------- */

static void test_rows_follow_the_recurrence(void **state)
{
    (void)state;
    const net_case cases[] = {
        {1, 1, 8, 4, TD_HEADS_TILED, TD_MODE_VERIFY},
        {2, 4, 16, 4, TD_HEADS_TILED, TD_MODE_VERIFY},
        {2, 6, 20, 3, TD_HEADS_GROUPED, TD_MODE_VERIFY},
        {1, 2, 128, 4, TD_HEADS_TILED, TD_MODE_VERIFY},
        {3, 3, 33, 1, TD_HEADS_GROUPED, TD_MODE_PREFILL},
    };
    for (size_t k = 0; k < TD_COUNT(cases); k++) {
        net_data d = new_data(&cases[k]);
        float *scalar = NULL;
        for (size_t i = 0; i < n_test_devices; i++) {
            bool is_prefill = cases[k].mode == TD_MODE_PREFILL;
            float *y = new_results(test_devices[i], &cases[k], &d, is_prefill ? 20 : 5,
                                   is_prefill ? UINT32_MAX : 0);
            check_results(test_devices[i], &cases[k], &d, y);
            if (scalar && is_bit_equal_to_scalar(test_devices[i]))
                check_same_bits(y, scalar, (size_t)N_SLOTS * POSITIONS * y_cols(&cases[k]),
                                "against scalar", test_devices[i]);
            if (scalar)
                free(y);
            else
                scalar = y;
        }
        free(scalar);
        free_data(&d);
    }
}

static const net_case small = {2, 4, 36, 4, TD_HEADS_TILED, TD_MODE_VERIFY};

static void check_same(td_device *dev, const float *got, const float *want, const char *what)
{
    check_same_bits(got, want, (size_t)N_SLOTS * POSITIONS * y_cols(&small), what, dev);
}

static void test_cuts_and_commits_do_not_matter(void **state)
{
    (void)state;
    static const uint32_t widths[] = {1, 2, 3, 7, 17, 48}, lags[] = {0, 1, 5, UINT32_MAX};
    net_data d = new_data(&small);
    for (size_t i = 0; i < n_test_devices; i++) {
        float *want = new_results(test_devices[i], &small, &d, 1, 0);
        for (size_t w = 0; w < TD_COUNT(widths); w++)
            for (size_t l = 0; l < TD_COUNT(lags); l++) {
                float *y = new_results(test_devices[i], &small, &d, widths[w], lags[l]);
                check_same(test_devices[i], y, want, "cut into batches");
                free(y);
            }
        free(want);
    }
    free_data(&d);
}

/* Drafts of which a few rows are right; the next batch begins behind those, in place. All sequences
 * take turns and share batches, in another slot each time around. */
static void check_rollback(td_device *dev, const net_data *d, const float *want, uint64_t seed)
{
    net_bench m = begin_case(dev, &small, d);
    for (uint32_t turn = 0; turn < 2; turn++) { /* the slots are used anew */
        uint32_t at[N_SLOTS] = {0}, n_batches = 0;
        float *y = new_y(&small);
        while (at[0] < POSITIONS || at[1] < POSITIONS || at[2] < POSITIONS) {
            segment segments[SEGMENTS_MAX];
            uint32_t n_segments = 0;
            for (uint32_t s = 0; s < N_SLOTS; s++) {
                uint32_t bits = td_noise_bits(seed + turn, n_batches, s);
                uint32_t n = td_min_u32(1 + bits % 9, POSITIONS - at[s]);
                uint32_t n_right = n ? 1 + (bits >> 8) % n : 0, back = (bits >> 16) % 4;
                bool is_absent = (bits >> 20) % 4 == 0;
                if (!n || is_absent)
                    continue;
                segments[n_segments++] = (segment){.slot = (s + turn) % N_SLOTS,
                                                   .sequence = s,
                                                   .position = at[s],
                                                   .n = n,
                                                   .n_right = n_right,
                                                   .committed = at[s] - td_min_u32(at[s], back)};
                at[s] += n_right;
            }
            n_batches++;
            if (!n_segments)
                continue;
            run_batch(&m, &small, d, segments, n_segments);
            if (n_batches % 3 == 0) /* once more: nothing may have changed */
                run_batch(&m, &small, d, segments, n_segments);
            keep_results(&m, &small, segments, n_segments, y);
        }
        check_same(dev, y, want, "rolled back");
        free(y);
    }
    bench_destroy(&m.b);
}

static void test_rejected_rows_leave_no_trace(void **state)
{
    (void)state;
    net_data d = new_data(&small);
    for (size_t i = 0; i < n_test_devices; i++) {
        float *want = new_results(test_devices[i], &small, &d, 1, 0);
        for (uint64_t seed = 0; seed < 6; seed++)
            check_rollback(test_devices[i], &d, want, 100 * seed);
        free(want);
    }
    free_data(&d);
}

/* A sequence of NaN beside another does not touch it. */
static void test_hostile_sequences_stay_alone(void **state)
{
    (void)state;
    net_data d = new_data(&small), bad = new_data(&small);
    for (size_t i = 0; i < (size_t)POSITIONS * n_cols(&small); i++)
        bad.x[i] = i % 2 ? NAN : INFINITY; /* sequence 0 */
    for (size_t k = 0; k < n_test_devices; k++) {
        float *want = new_results(test_devices[k], &small, &d, 1, 0), *y = new_y(&small);
        net_bench m = begin_case(test_devices[k], &small, &bad);
        for (uint32_t p = 0; p < POSITIONS; p += 4) {
            const segment segments[] = {
                {.slot = 0, .sequence = 1, .position = p, .n = 4, .n_right = 4, .committed = p},
                {.slot = 1, .sequence = 0, .position = p, .n = 4, .n_right = 4, .committed = p},
                {.slot = 2, .sequence = 2, .position = p, .n = 4, .n_right = 4, .committed = p},
            };
            run_batch(&m, &small, &bad, segments, 3);
            keep_results(&m, &small, segments, 3, y);
        }
        size_t n = (size_t)POSITIONS * y_cols(&small);
        check_same_bits(y + n, want + n, 2 * n, "beside NaN", test_devices[k]);
        assert_true(isnan(y[n - 1]) != 0);
        bench_destroy(&m.b);
        free(y);
        free(want);
    }
    free_data(&bad);
    free_data(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows_follow_the_recurrence),
        cmocka_unit_test(test_cuts_and_commits_do_not_matter),
        cmocka_unit_test(test_rejected_rows_leave_no_trace),
        cmocka_unit_test(test_hostile_sequences_stay_alone),
    };
    return TEST_MAIN(tests);
}
