/* td_op_top and td_op_pick: with what they give, the caller chooses exactly the token that
 * td_sample chooses of the whole row, greedy and by race, on every device, for logits of every
 * kind. And td_op_feed: a row of picks becomes the next step's input. */
#include "op_common.h"

#include "model/sampling.h"

enum { N_ROWS = 5 };

typedef struct {
    bench b;
    uint32_t n_vocab;
    td_tensor *logits, *draws, *picks;
} fixture;

static fixture make(td_device *dev, uint32_t n_vocab)
{
    fixture f = {.b = bench_begin(dev, TD_MODE_VERIFY, N_ROWS, N_ROWS), .n_vocab = n_vocab};
    uint32_t n_parts = td_div_up(n_vocab, TD_TOP_CHUNK);
    td_tensor *whole = bench_tensor(&f.b, TD_ELEM_F32, TD_ROWS_OUT, N_ROWS, n_vocab + 3);
    f.logits = whole;
    f.draws = bench_tensor(&f.b, TD_ELEM_I32, TD_ROWS_OUT, N_ROWS, TD_DRAW_WORDS);
    td_tensor *parts =
        bench_tensor(&f.b, TD_ELEM_I32, TD_ROWS_OUT, N_ROWS, n_parts * TD_PART_WORDS);
    f.picks = bench_tensor(&f.b, TD_ELEM_I32, TD_ROWS_OUT, N_ROWS, TD_PICK_WORDS);
    td_op_top(f.b.p, td_columns(whole, 2, n_vocab), f.draws, parts);
    td_op_pick(f.b.p, parts, f.draws, f.picks);
    bench_end(&f.b);
    return f;
}

static float *row_of(fixture *f, uint32_t row)
{
    return view_row(td_columns(f->logits, 2, f->n_vocab), row);
}

static void set_draw(fixture *f, uint32_t row, float temperature, uint64_t stream,
                     uint64_t position)
{
    td_draw d = {.kind = temperature > 0 ? TD_DRAW_RACE : TD_DRAW_GREEDY,
                 .scale = temperature > 0 ? (float)(1.4426950408889634 / (double)temperature) : 0,
                 .stream = {(uint32_t)stream, (uint32_t)(stream >> 32)},
                 .position = {(uint32_t)position, (uint32_t)(position >> 32)}};
    memcpy(i32_data(f->draws) + row * TD_DRAW_WORDS, &d, sizeof d);
}

static const td_pick *pick_of(fixture *f, uint32_t row)
{
    return (const td_pick *)(const void *)(i32_data(f->picks) + row * TD_PICK_WORDS);
}

/* Runs n_out rows and checks each; returns how many were decided by candidates. */
static uint32_t check(fixture *f, td_sampler *s, uint32_t n_out, float temperature, uint64_t stream,
                      uint64_t position, const char *what)
{
    td_sampling_params params = TD_SAMPLING_DEFAULTS;
    params.temperature = temperature;
    for (uint32_t r = 0; r < n_out; r++)
        set_draw(f, r, temperature, stream + r, position + 1000 * r);
    bench_run(&f->b, N_ROWS, n_out);
    uint32_t n_decided = 0;
    for (uint32_t r = 0; r < n_out; r++) {
        const td_pick *pick = pick_of(f, r);
        const float *x = row_of(f, r);
        uint32_t want = td_sample(s, &params, x, NULL, 0, stream + r, position + 1000 * r),
                 got = want;
        bool is_finite = td_logits_finite(x, f->n_vocab);
        if (pick->is_finite != is_finite)
            fail_msg("%s: %s: row %u: finite %u", device_spec(f->b.dev), what, r, pick->is_finite);
        if (pick->n == 0)
            fail_msg("%s: %s: row %u: no candidates", device_spec(f->b.dev), what, r);
        if (pick->n <= TD_TOP_CANDIDATES) {
            uint32_t ids[TD_TOP_CANDIDATES];
            float logits[TD_TOP_CANDIDATES];
            for (uint32_t i = 0; i < pick->n; i++) {
                ids[i] = pick->candidates[i].id;
                logits[i] = pick->candidates[i].logit;
                assert_true(ids[i] < f->n_vocab);
                assert_true(temperature == 0 || is_same_bits(&logits[i], &x[ids[i]], 1));
            }
            got = temperature > 0 ? td_sample_among(&params, pick->max, ids, logits, pick->n,
                                                    stream + r, position + 1000 * r)
                                  : ids[0];
            n_decided++;
            if (pick->n == 1)
                assert_int_equal(pick->token, ids[0]);
        } else {
            assert_true(temperature > 0);
        }
        if (got != want)
            fail_msg("%s: %s: row %u: token %u, td_sample says %u (%u candidates, T %g)",
                     device_spec(f->b.dev), what, r, got, want, pick->n, (double)temperature);
    }
    return n_decided;
}

static const uint32_t sizes[] = {1, 3, 5, 4095, 4096, 4097, 20000};
static const float temperatures[] = {0, 0.01f, 0.8f, 5, 100};

static void test_random_logits_give_the_sampler_s_token(void **state)
{
    (void)state;
    td_err err = {0};
    for (size_t d = 0; d < n_test_devices; d++)
        for (size_t i = 0; i < TD_COUNT(sizes); i++) {
            fixture f = make(test_devices[d], sizes[i]);
            td_sampler *s = td_sampler_create(sizes[i], &err);
            uint32_t n = 0, n_decided = 0;
            for (uint64_t seed = 0; seed < 12; seed++) {
                float spread = seed % 4 == 0 ? 0 : seed % 4 == 1 ? 1 : seed % 4 == 2 ? 12 : 3e4f;
                for (uint32_t r = 0; r < N_ROWS; r++)
                    for (uint32_t k = 0; k < sizes[i]; k++)
                        row_of(&f, r)[k] = spread * test_random(seed * 100 + r, k) - 7;
                float t = temperatures[seed % TD_COUNT(temperatures)];
                n += N_ROWS;
                n_decided += check(&f, s, N_ROWS, t, seed * 0x9e3779b97f4a7c15u, seed << 31 | seed,
                                   "random");
            }
            assert_true(n_decided == n); /* a race too close to call is rarer than that */
            td_sampler_destroy(&s);
            bench_destroy(&f.b);
        }
}

/* Values that sit at the edges: ties, signed zeros, subnormals, NaN and infinities. */
static void fill_hostile(float *x, uint32_t n, uint32_t kind)
{
    static const float odd[] = {0.0f, -0.0f, 1e-45f, -1e-45f, 1e-39f, 2e-39f};
    for (uint32_t i = 0; i < n; i++)
        x[i] = kind == 0   ? 1.5f
               : kind == 1 ? odd[(i * 7 + 1) % 6]
               : kind == 2 ? -1e-45f * (float)(1 + i % 3)
               : kind == 3 ? (float)(i % 5)
               : kind == 4 ? -3.4e38f + 1e37f * (float)(i % 4)
               : kind == 5 ? NAN
               : kind == 6 ? -INFINITY
                           : (float)(i % 11) - 5;
    uint32_t middle = n / 2, last = n - 1;
    if (kind == 7)
        x[middle] = NAN;
    if (kind == 8)
        x[middle] = -INFINITY;
    if (kind == 9)
        x[last] = INFINITY;
    if (kind == 10) {
        x[last] = INFINITY;
        x[middle] = INFINITY;
        x[0] = -NAN;
    }
    if (kind == 11)
        for (uint32_t i = 0; i < n; i++)
            x[i] = i == last ? -INFINITY : NAN;
    if (kind == 12)
        x[0] = 3.4e38f;
}

static void test_hostile_logits_give_the_sampler_s_token(void **state)
{
    (void)state;
    td_err err = {0};
    for (size_t d = 0; d < n_test_devices; d++)
        for (size_t i = 0; i < TD_COUNT(sizes); i++) {
            fixture f = make(test_devices[d], sizes[i]);
            td_sampler *s = td_sampler_create(sizes[i], &err);
            for (uint32_t kind = 0; kind <= 12; kind++) {
                char what[32];
                snprintf(what, sizeof what, "hostile %u of %u", kind, sizes[i]);
                for (uint32_t r = 0; r < N_ROWS; r++)
                    fill_hostile(row_of(&f, r), sizes[i], r == 0 ? kind : (kind + r) % 13);
                for (size_t t = 0; t < TD_COUNT(temperatures); t++)
                    check(&f, s, N_ROWS, temperatures[t], 77 + kind, 5 + t, what);
            }
            td_sampler_destroy(&s);
            bench_destroy(&f.b);
        }
}

/* Many positions of one flat distribution: the noise decides, and now and then two tokens are too
 * close for the device, which then names both. */
static void test_close_races_are_left_to_the_caller(void **state)
{
    (void)state;
    td_err err = {0};
    for (size_t d = 0; d < n_test_devices; d++) {
        fixture f = make(test_devices[d], 300);
        td_sampler *s = td_sampler_create(300, &err);
        uint32_t n_close = 0, n = is_vulkan(test_devices[d]) ? 400 : 1000;
        for (uint32_t r = 0; r < N_ROWS; r++)
            fill_random(row_of(&f, r), 300, r);
        for (uint32_t i = 0; i < n; i++) {
            check(&f, s, N_ROWS, 1.0f, 9, i, "flat");
            for (uint32_t r = 0; r < N_ROWS; r++)
                n_close += pick_of(&f, r)->n > 1;
        }
        assert_true(n_close >= 1 && n_close < n / 10);
        td_sampler_destroy(&s);
        bench_destroy(&f.b);
    }
}

static void test_rows_that_are_not_drawn_are_to_be_read(void **state)
{
    (void)state;
    for (size_t d = 0; d < n_test_devices; d++) {
        fixture f = make(test_devices[d], 100);
        memset(td_tensor_data(f.draws), 0, N_ROWS * TD_DRAW_WORDS * 4);
        fill_random(row_of(&f, 0), 100, 1);
        bench_run(&f.b, N_ROWS, 1);
        assert_true(pick_of(&f, 0)->n > TD_TOP_CANDIDATES && pick_of(&f, 0)->is_finite);
        td_err err = {0};
        const float *row = td_tensor_read(f.logits, 0, 1, &err);
        must(row != NULL, &err);
        check_same_bits(row + 2, row_of(&f, 0), 100, "read", f.b.dev);
        bench_destroy(&f.b);
    }
}

static void test_feed_makes_the_next_step(void **state)
{
    (void)state;
    enum { N_POSITIONS = 6, N_ROT = 70, N_STEPS = 3 };
    for (size_t d = 0; d < n_test_devices; d++) {
        bench b = bench_begin(test_devices[d], TD_MODE_VERIFY, 2, 2);
        float *table = new_random(N_POSITIONS * N_ROT, 3);
        td_feed_tensors f = {
            .picks = bench_tensor(&b, TD_ELEM_I32, TD_ROWS_OUT, 2, TD_PICK_WORDS),
            .draws = bench_tensor(&b, TD_ELEM_I32, TD_ROWS_OUT, 2, TD_DRAW_WORDS),
            .ids = bench_tensor(&b, TD_ELEM_I32, TD_ROWS_BATCH, 2, 1),
            .positions = bench_tensor(&b, TD_ELEM_I32, TD_ROWS_BATCH, 2, 1),
            .cos_sin = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, 2, N_ROT),
            .trail = bench_tensor(&b, TD_ELEM_I32, TD_ROWS_FIXED, N_STEPS, TD_PICK_WORDS),
            .table = bench_weight(&b, td_type_find(TD_TYPE_F32), N_POSITIONS, N_ROT, table),
        };
        td_op_feed(b.p, &f);
        bench_end(&b);
        td_pick *pick = td_tensor_data(f.picks);
        td_draw *draw = td_tensor_data(f.draws);
        const td_pick *trail = td_tensor_data(f.trail);
        *draw = (td_draw){.kind = TD_DRAW_GREEDY, .position = {3, 8}, .stream = {1, 2}};
        for (uint32_t step = 0; step < 5; step++) { /* past the trail and the table */
            pick->n = 1;
            pick->token = 40 + step;
            pick->candidates[3].id = 90 + step;
            bench_run(&b, 1, 1);
            assert_int_equal(draw->step, step + 1);
            assert_int_equal(draw->position[0], 4 + step);
            assert_true(draw->position[1] == 8 && draw->stream[1] == 2 && draw->kind == 1);
            uint32_t at = td_min_u32(3 + step, N_POSITIONS - 1);
            assert_int_equal(i32_data(f.positions)[0], at);
            assert_int_equal(i32_data(f.ids)[0], 40 + at - 3);
            check_same_bits(f32_data(f.cos_sin), table + at * N_ROT, N_ROT, "cos_sin", b.dev);
        }
        for (uint32_t step = 0; step < N_STEPS; step++)
            assert_true(trail[step].token == 40 + step &&
                        trail[step].candidates[3].id == 90 + step);
        free(table);
        bench_destroy(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_logits_give_the_sampler_s_token),
        cmocka_unit_test(test_hostile_logits_give_the_sampler_s_token),
        cmocka_unit_test(test_close_races_are_left_to_the_caller),
        cmocka_unit_test(test_rows_that_are_not_drawn_are_to_be_read),
        cmocka_unit_test(test_feed_makes_the_next_step),
    };
    return TEST_MAIN(tests);
}
