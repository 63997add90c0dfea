/* Predicted speeds against the closed forms, the search for a cut against
 * trying all of them, and what is expected of dealt experts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/check.h"
#include "planning/mixture.h"

#include <math.h>
#include <string.h>

#define LAYERS_MAX 12u
#define MIB        (1ull << 20)

/* Devices whose costs and bytes are made up by a seed. */
typedef struct {
    uint32_t n_devices, n_layers;
    td_costs costs[3];
    td_cost layers[3][LAYERS_MAX];
    uint64_t bytes[3][LAYERS_MAX];
    td_place_device places[3];
    td_speed_device devices[3];
} world;

static uint64_t state;

static double uniform(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(state >> 40) / 16777216.0;
}

static td_cost random_cost(double scale)
{
    td_cost c;
    double us = scale * (0.2 + uniform());
    for (uint32_t i = 0; i < TD_COST_WIDTHS; i++)
        c.verify_us[i] = us * (1 + 0.2 * (td_cost_widths[i] - 1));
    c.prefill_us = us * 100;
    c.chunk_us = us * 30;
    return c;
}

static void make_world(world *w, uint64_t seed)
{
    state = seed;
    *w = (world){.n_devices = 2 + (uint32_t)(2 * uniform()),
                 .n_layers = 3 + (uint32_t)(9 * uniform())};
    for (uint32_t d = 0; d < w->n_devices; d++) {
        double speed = 1 + 9 * uniform();
        for (uint32_t i = 0; i < w->n_layers; i++) {
            w->layers[d][i] = random_cost(100 * speed);
            w->bytes[d][i] = (1 + (uint64_t)(4 * uniform())) * MIB;
        }
        w->costs[d] = (td_costs){.pass = random_cost(20),
                                 .first = random_cost(10),
                                 .last = random_cost(80 * speed),
                                 .n_layers = w->n_layers,
                                 .layers = w->layers[d]};
        w->places[d] = (td_place_device){.budget_bytes = (8 + (uint64_t)(40 * uniform())) * MIB,
                                         .fixed_bytes = MIB,
                                         .first_bytes = 2 * MIB,
                                         .last_bytes = 2 * MIB,
                                         .layer_bytes = w->bytes[d]};
        w->devices[d] = (td_speed_device){
            .costs = &w->costs[d], .place = &w->places[d], .memory = d, .unit = d};
    }
}

static const td_speed_use stream = {.use = TD_FOR_STREAM,
                                    .n_sequences = 1,
                                    .n_prompt = 256,
                                    .n_predict = 256,
                                    .hop_us = 15,
                                    .link_us = 30,
                                    .acceptance = 0.7,
                                    .draft_max = 8};

static double verify_us(const world *w, const td_speed_row *r, double n_rows, double *slowest)
{
    double sum = 0;
    *slowest = 0;
    for (uint32_t i = 0; i < r->n_stages; i++) {
        td_cost c =
            td_costs_part(&w->costs[r->stages[i].device], r->stages[i].first, r->stages[i].last);
        sum += td_cost_rows(&c, n_rows) + 15;
        *slowest = fmax(*slowest, td_cost_rows(&c, n_rows));
    }
    return sum;
}

static void assert_near(double a, double b)
{
    if (!(fabs(a - b) <= 1e-9 * fmax(fabs(a), fabs(b))))
        fail_msg("%.17g is not %.17g", a, b);
}

static td_speed_row all_on(uint32_t device, uint32_t n_layers)
{
    td_speed_row r = {.n_stages = 1, .i_draft = -1};
    r.stages[0].device = device;
    r.stages[0].last = n_layers - 1;
    return r;
}

static void test_rows_between_the_widths_are_interpolated(void **state_)
{
    (void)state_;
    td_cost c = {.verify_us = {10, 12, 16, 24, 40, 54, 86, 150}, .prefill_us = 1};
    assert_near(td_cost_rows(&c, 1), 10);
    assert_near(td_cost_rows(&c, 3), 14);
    assert_near(td_cost_rows(&c, 8), 24);
    assert_near(td_cost_rows(&c, 9), 40);
    assert_near(td_cost_rows(&c, 48), 118);
    assert_near(td_cost_rows(&c, 64), 150);
    assert_near(td_cost_rows(&c, 65), 160); /* a full pass and one of a row */
    assert_near(td_cost_rows(&c, 192), 450);
    assert_near(td_cost_rows(&c, 0.5), 10); /* a pass has a row at least */
}

static void test_expected_tokens_are_the_closed_form(void **state_)
{
    (void)state_;
    assert_near(td_speed_expected(0.8, 4), (1 - pow(0.8, 5)) / (1 - 0.8));
    assert_near(td_speed_expected(0, 7), 1);
    assert_near(td_speed_expected(1, 7), 8);
    assert_near(td_speed_expected(0.5, 0), 1);
}

static void test_stream_without_a_draft_is_the_sum_of_the_stages(void **state_)
{
    (void)state_;
    world w;
    make_world(&w, 3);
    td_speed_row r = {.n_stages = 2, .i_draft = -1};
    r.stages[0].last = 1;
    r.stages[1].device = 1;
    r.stages[1].first = 2;
    r.stages[1].last = w.n_layers - 1;
    double slowest;
    td_speed_predict(w.devices, NULL, &stream, &r);
    assert_near(r.decode_per_s, 1e6 / verify_us(&w, &r, 1, &slowest));
    assert_int_equal(r.k, 0);
    /* A prompt of four chunks: once through both stages, then the slowest one three times. */
    td_speed_use use = stream;
    use.n_prompt = 4 * TD_PREFILL_ROWS_MAX;
    td_cost a = td_costs_part(&w.costs[0], 0, 1);
    td_cost b = td_costs_part(&w.costs[1], 2, w.n_layers - 1);
    td_speed_predict(w.devices, NULL, &use, &r);
    assert_near(r.prefill_per_s,
                1e6 * use.n_prompt /
                    (a.prefill_us + b.prefill_us + 30 + 3 * fmax(a.prefill_us, b.prefill_us)));
}

static void test_draft_on_the_same_device_takes_turns_on_another_it_overlaps(void **state_)
{
    (void)state_;
    world w;
    make_world(&w, 5);
    td_speed_row r = all_on(0, w.n_layers);
    double slowest, a = 0.7;
    td_speed_draft draft = {.unit = 0, .device = -1};
    for (uint32_t k = 1; k <= 8; k++) {
        td_speed_use use = stream;
        use.draft_max = k;
        use.is_draft_fixed = true;
        double tv = verify_us(&w, &r, k + 1, &slowest), e = (1 - pow(a, k + 1)) / (1 - a);
        for (uint32_t i = 0; i < TD_COST_WIDTHS; i++)
            draft.step.verify_us[i] = tv / 3;
        double td = tv / 3, h = pow(a, k + 1), apart = k * td + 30 + tv;
        draft.unit = 0;
        td_speed_predict(w.devices, &draft, &use, &r);
        assert_near(r.decode_per_s, 1e6 * e / apart);
        assert_true(r.takes_turns);
        assert_int_equal(r.k, k);
        draft.unit = 7;
        td_speed_predict(w.devices, &draft, &use, &r);
        assert_near(r.decode_per_s, 1e6 * e / (h * fmax((k + 1) * td, tv) + (1 - h) * apart));
        assert_false(r.takes_turns);
    }
    /* A draft that costs more than it brings is not used, and no slower than none. */
    for (uint32_t i = 0; i < TD_COST_WIDTHS; i++)
        draft.step.verify_us[i] = 1e7;
    td_speed_predict(w.devices, &draft, &stream, &r);
    assert_int_equal(r.k, 0);
    assert_near(r.decode_per_s, 1e6 / verify_us(&w, &r, 1, &slowest));
}

/* Measured agreement that is the powers of one number says what that does; else it is summed. */
static void test_measured_agreement_takes_the_place_of_powers(void **state_)
{
    (void)state_;
    world w;
    make_world(&w, 6);
    double survival[TD_SPEED_DRAFT_MAX + 1], slowest;
    td_speed_row a = all_on(0, w.n_layers), b = a;
    td_speed_draft draft = {.unit = 7, .device = -1};
    for (uint32_t i = 0; i < TD_COST_WIDTHS; i++)
        draft.step.verify_us[i] = verify_us(&w, &a, 1, &slowest) / 20;
    for (uint32_t tenths = 0; tenths < 10; tenths++) {
        td_speed_use use = stream, measured = stream;
        use.acceptance = tenths / 10.0;
        measured.survival = survival;
        for (uint32_t i = 0; i <= TD_SPEED_DRAFT_MAX; i++)
            survival[i] = pow(use.acceptance, i + 1);
        td_speed_predict(w.devices, &draft, &use, &a);
        td_speed_predict(w.devices, &draft, &measured, &b);
        assert_int_equal(a.k, b.k);
        assert_near(a.decode_per_s, b.decode_per_s);
    }
    td_speed_use use = stream; /* two tokens that are right half of the time, and never a third */
    use.survival = survival;
    use.draft_max = 2;
    use.is_draft_fixed = true;
    for (uint32_t i = 0; i <= TD_SPEED_DRAFT_MAX; i++)
        survival[i] = i < 2 ? 0.5 : 0;
    td_speed_predict(w.devices, &draft, &use, &a);
    double td = draft.step.verify_us[0], tv = verify_us(&w, &a, 3, &slowest);
    assert_near(td_speed_verify_us(w.devices, &use, &a, 3), tv);
    assert_near(a.decode_per_s, 2e6 / (2 * td + 30 + tv));
}

static void test_batch_is_bound_by_the_slowest_stage(void **state_)
{
    (void)state_;
    world w;
    make_world(&w, 8);
    td_speed_use use = stream;
    use.use = TD_FOR_BATCH;
    use.n_sequences = 16;
    td_speed_row r = {.n_stages = 2, .i_draft = -1};
    r.stages[0].last = w.n_layers / 2;
    r.stages[1].device = 1;
    r.stages[1].first = w.n_layers / 2 + 1;
    r.stages[1].last = w.n_layers - 1;
    double slowest, sum = verify_us(&w, &r, 8, &slowest);
    td_speed_predict(w.devices, NULL, &use, &r);
    assert_near(r.decode_per_s, 16e6 / fmax(2 * slowest, sum));
    /* Two stages of one device take turns: nothing is won. */
    w.devices[1].unit = w.devices[0].unit;
    td_speed_predict(w.devices, NULL, &use, &r);
    assert_near(r.decode_per_s, 16e6 / fmax(2 * (sum - 30), sum));
}

/* All cuts of layers first.. over the devices d.., by counting in base n_devices. */
static double best_of_all(const world *w, const td_speed_use *use, double *alone)
{
    double best = 0;
    uint64_t n_ways = 1;
    for (uint32_t i = 0; i < w->n_layers; i++)
        n_ways *= w->n_devices;
    *alone = 0;
    for (uint64_t way = 0; way < n_ways; way++) {
        td_speed_row r = {.i_draft = -1};
        uint64_t rest = way;
        bool is_ordered = true;
        for (uint32_t i = 0, previous = 0; i < w->n_layers && is_ordered; i++) {
            uint32_t d = (uint32_t)(rest % w->n_devices);
            rest /= w->n_devices;
            is_ordered = i == 0 || d >= previous;
            if (is_ordered && (i == 0 || d > previous)) {
                r.stages[r.n_stages].device = d;
                r.stages[r.n_stages++].first = i;
            }
            if (is_ordered)
                r.stages[r.n_stages - 1].last = i;
            previous = d;
        }
        if (!is_ordered || !td_speed_fits(w->devices, w->n_devices, NULL, &r))
            continue;
        td_speed_predict(w->devices, NULL, use, &r);
        best = fmax(best, r.decode_per_s);
        if (r.n_stages == 1)
            *alone = fmax(*alone, r.decode_per_s);
    }
    return best;
}

static void check_rows(const world *w, const td_speed_row *rows, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t next = 0;
        assert_true(td_speed_fits(w->devices, w->n_devices, NULL, &rows[i]));
        assert_true(i == 0 || rows[i].tokens_per_s <= rows[i - 1].tokens_per_s);
        for (uint32_t k = 0; k < rows[i].n_stages; k++) {
            assert_int_equal(rows[i].stages[k].first, next);
            assert_true(rows[i].stages[k].last >= next);
            assert_true(k == 0 || rows[i].stages[k].device > rows[i].stages[k - 1].device);
            next = rows[i].stages[k].last + 1;
        }
        assert_int_equal(next, w->n_layers);
    }
}

static void test_search_finds_the_best_cut_of_all(void **state_)
{
    (void)state_;
    uint32_t n_tried = 0;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        world w;
        make_world(&w, seed);
        if (pow(w.n_devices, w.n_layers) > 60000)
            continue;
        td_speed_use use = stream;
        use.n_prompt = 1; /* decoding decides */
        use.n_predict = 1000000;
        for (uint32_t is_batch = 0; is_batch < 2; is_batch++) {
            use.use = is_batch ? TD_FOR_BATCH : TD_FOR_STREAM;
            use.n_sequences = is_batch ? 24 : 1;
            td_speed_row rows[TD_SPEED_ROWS_MAX];
            uint32_t n = 99;
            td_err err = {0};
            double alone, best = best_of_all(&w, &use, &alone);
            assert_true(
                td_speed_search(w.devices, w.n_devices, NULL, 0, w.n_layers, &use, rows, &n, &err));
            assert_true((n == 0) == (best == 0));
            check_rows(&w, rows, n);
            if (n)
                assert_near(rows[0].decode_per_s, best);
            double seen = 0;
            for (uint32_t i = 0; i < n; i++)
                if (rows[i].n_stages == 1)
                    seen = fmax(seen, rows[i].decode_per_s);
            assert_true(seen == alone); /* one device is always among the alternatives */
            n_tried++;
        }
    }
    assert_true(n_tried > 60);
}

static void test_shared_memory_is_counted_once(void **state_)
{
    (void)state_;
    world w;
    make_world(&w, 11);
    w.n_devices = 2;
    td_speed_row r = {.n_stages = 2, .i_draft = -1};
    r.stages[0].last = 0;
    r.stages[1].device = 1;
    r.stages[1].first = 1;
    r.stages[1].last = w.n_layers - 1;
    w.devices[1].memory = w.devices[0].memory;
    w.places[0].budget_bytes = w.places[1].budget_bytes = 1000 * MIB; /* each its half of 2000 */
    assert_true(td_speed_fits(w.devices, 2, NULL, &r));
    td_speed_draft draft = {.unit = 9, .device = 0, .n_bytes = 990 * MIB};
    assert_false(td_speed_fits(w.devices, 2, &draft, &r));
    td_speed_row alone = all_on(0, w.n_layers);
    assert_true(td_speed_fits(w.devices, 2, &draft, &alone)); /* all of it for one stage */
}

/* An integrated GPU with 100 MiB of its own and the host: 500 MiB of the system for both. */
static void test_the_systems_memory_is_counted_once(void **state_)
{
    (void)state_;
    world w;
    make_world(&w, 11);
    w.n_devices = 2;
    for (uint32_t d = 0; d < 2; d++) {
        w.places[d] = (td_place_device){.budget_bytes = (d ? 500 : 600) * MIB,
                                        .shared_bytes = 500 * MIB,
                                        .system_bytes = 500 * MIB,
                                        .layer_bytes = w.bytes[d]};
        for (uint32_t i = 0; i < w.n_layers; i++)
            w.bytes[d][i] = 0;
    }
    td_speed_row r = {.n_stages = 2, .i_draft = -1};
    r.stages[1].device = 1;
    r.stages[1].first = 1;
    r.stages[1].last = w.n_layers - 1;
    w.bytes[0][0] = 300 * MIB;
    w.bytes[1][1] = 300 * MIB;
    assert_true(td_speed_fits(w.devices, 2, NULL, &r)); /* 200 + 300 */
    w.bytes[1][1] = 301 * MIB;
    assert_false(td_speed_fits(w.devices, 2, NULL, &r));
    /* A draft draws on it too, on another device of the system's or on the GPU. */
    w.bytes[1][1] = 200 * MIB;
    td_speed_draft draft = {.unit = 9, .device = -1, .n_bytes = 100 * MIB};
    assert_true(td_speed_fits(w.devices, 2, &draft, &r));
    draft.n_bytes++;
    assert_false(td_speed_fits(w.devices, 2, &draft, &r));
    draft = (td_speed_draft){.unit = 9, .device = 0, .n_bytes = 100 * MIB};
    assert_true(td_speed_fits(w.devices, 2, &draft, &r));
    w.bytes[0][0]++;
    assert_false(td_speed_fits(w.devices, 2, &draft, &r));
    /* The draft on a GPU without layers has that GPU's own memory first. */
    td_speed_row alone = all_on(1, w.n_layers);
    w.bytes[1][0] = 0;
    w.bytes[1][1] = 400 * MIB;
    draft.n_bytes = 200 * MIB;
    assert_true(td_speed_fits(w.devices, 2, &draft, &alone)); /* 100 own, 100 + 400 */
    draft.n_bytes++;
    assert_false(td_speed_fits(w.devices, 2, &draft, &alone));
}

/* Two equal devices of the host: any cut of a stream's rows does as well as any other. */
static world make_twins(void)
{
    world w;
    make_world(&w, 7);
    w.n_devices = 2;
    w.n_layers = 8;
    for (uint32_t d = 0; d < 2; d++) {
        for (uint32_t i = 0; i < w.n_layers; i++) {
            for (uint32_t k = 0; k < TD_COST_WIDTHS; k++)
                w.layers[d][i].verify_us[k] = 100 + 10 * k - 0.001 * d; /* noise of measuring */
            w.layers[d][i].chunk_us = 1000;
            w.layers[d][i].prefill_us = 4000;
            w.bytes[d][i] = MIB;
        }
        w.costs[d] = (td_costs){.n_layers = w.n_layers, .layers = w.layers[d]};
        w.places[d] = (td_place_device){.budget_bytes = 100 * MIB, .layer_bytes = w.bytes[d]};
        w.devices[d] = (td_speed_device){.memory = d, .unit = d, .is_host = true};
    }
    return w;
}

static void point_at_itself(world *w)
{
    for (uint32_t d = 0; d < w->n_devices; d++) {
        w->costs[d].layers = w->layers[d];
        w->places[d].layer_bytes = w->bytes[d];
        w->devices[d].costs = &w->costs[d];
        w->devices[d].place = &w->places[d];
    }
}

static void test_cuts_as_fast_as_each_other_are_balanced(void **state_)
{
    (void)state_;
    world w = make_twins();
    point_at_itself(&w);
    static const uint32_t prompts[] = {1, 100, 1900, 30000};
    for (size_t i = 0; i < TD_COUNT(prompts); i++) {
        td_speed_row rows[TD_SPEED_ROWS_MAX];
        uint32_t n = 0;
        td_speed_use use = stream;
        use.n_prompt = prompts[i];
        use.n_predict = 8;
        use.n_stages_min = 2;
        assert_true(td_speed_search(w.devices, 2, NULL, 0, w.n_layers, &use, rows, &n, NULL));
        const td_speed_row *r = &rows[td_speed_choose(rows, n, 2)];
        assert_int_equal(r->n_stages, 2);
        assert_int_equal(r->stages[0].last, 3); /* 4 + 4 */
        assert_true(r->busiest < 0.501);
    }
}

static void test_chunks_are_as_long_as_the_devices_use_them(void **state_)
{
    (void)state_;
    world w = make_twins();
    point_at_itself(&w);
    td_speed_use use = stream;
    use.n_prompt = 1920; /* 30 chunks of 64, 7.5 of 256 */
    td_speed_row r = {.n_stages = 2, .i_draft = -1};
    r.stages[0].last = 3;
    r.stages[1].device = 1;
    r.stages[1].first = 4;
    r.stages[1].last = 7;
    td_speed_predict(w.devices, NULL, &use, &r);
    assert_near(r.prefill_per_s, 1e6 * 1920 / (8000 + 30 + 29 * 4000));
    w.devices[1].is_host = false;
    td_speed_predict(w.devices, NULL, &use, &r);
    assert_near(r.prefill_per_s, 1e6 * 1920 / (32000 + 30 + 6.5 * 16000));
}

/* A link costs its way on each side of a stage, and the time of the rows that cross it, which of
 * many in flight is that of a stage of its own. */
static void test_a_link_is_on_the_way_and_may_be_the_slowest_stage(void **state_)
{
    (void)state_;
    world w = make_twins();
    point_at_itself(&w);
    td_speed_row r = {.n_stages = 2, .i_draft = -1}, here = r;
    r.stages[0].last = 3;
    r.stages[1].device = 1;
    r.stages[1].first = 4;
    r.stages[1].last = 7;
    here = r;
    td_speed_predict(w.devices, NULL, &stream, &here);
    w.devices[1].machine = 1;
    w.devices[1].way_us = 500;
    w.devices[1].row_us = 40;
    td_speed_predict(w.devices, NULL, &stream, &r); /* two hops of 15 less, there and back more */
    assert_near(r.verify_us, here.verify_us - 2 * 15 + 2 * 500 + 40);
    /* The first stage there: tokens go to it, and its rows come back. */
    td_speed_row first = {.n_stages = 2, .i_draft = -1};
    first.stages[0].device = 1;
    first.stages[0].last = 3;
    first.stages[1].first = 4;
    first.stages[1].last = 7;
    td_speed_predict(w.devices, NULL, &stream, &first);
    assert_near(first.verify_us, here.verify_us - 2 * 15 + 2 * 500 + 40 + 15);
    /* Both there: no rows cross it. */
    w.devices[0].machine = 1;
    w.devices[0].way_us = 500;
    w.devices[0].row_us = 40;
    td_speed_predict(w.devices, NULL, &stream, &r);
    assert_near(r.verify_us, here.verify_us - 15 + 2 * 500);
    /* Of two machines the slower link counts. */
    w.devices[0].machine = 2;
    w.devices[0].row_us = 100;
    td_speed_predict(w.devices, NULL, &stream, &r);
    assert_near(r.verify_us, here.verify_us - 2 * 15 + 3 * 500 + 100);
    td_speed_use use = stream;
    use.n_prompt = 1920;
    td_speed_predict(w.devices, NULL, &use, &r);
    assert_near(r.prefill_per_s,
                1e6 * 1920 / (8000 + 3 * 500 + 64 * 100 + 29 * fmax(4000, 64 * 100)));
}

/* Two machines may be nearer to each other than to here, or farther; the way back is not that. */
static void test_a_hop_that_is_known_counts_in_place_of_the_slower_link(void **state_)
{
    (void)state_;
    world w = make_twins();
    point_at_itself(&w);
    td_speed_row r = {.n_stages = 2, .i_draft = -1}, back;
    r.stages[0].last = 3;
    r.stages[1].device = 1;
    r.stages[1].first = 4;
    r.stages[1].last = 7;
    for (uint32_t i = 0; i < 2; i++) {
        w.devices[i].machine = i + 1;
        w.devices[i].way_us = 500;
        w.devices[i].row_us = 40;
    }
    const td_speed_hop hop = {.from = 1, .to = 2, .way_us = 20000, .row_us = 7};
    td_speed_use use = stream;
    use.n_prompt = 1920;
    td_speed_predict(w.devices, NULL, &use, &r);
    double without_us = r.verify_us;
    use.hops = &hop;
    use.n_hops = 1;
    td_speed_predict(w.devices, NULL, &use, &r);
    assert_near(r.verify_us, without_us - 500 - 40 + 20000 + 7);
    assert_near(r.prefill_per_s,
                1e6 * 1920 / (8000 + 2 * 500 + 20000 + 64 * 7 + 29 * fmax(4000, 64 * 7)));
    /* The other way round nothing is known. */
    back = r;
    back.stages[0].device = 1;
    back.stages[1].device = 0;
    td_speed_predict(w.devices, NULL, &use, &back);
    assert_near(back.verify_us, without_us);
}

/* All subsets of asked experts, as bits. */
static double try_all(const td_seat_load *loads, uint32_t n, uint32_t n_asked)
{
    uint32_t n_all = 0, n_ways = 0;
    double sum = 0;
    for (uint32_t k = 0; k < n; k++)
        n_all += loads[k].n_experts;
    for (uint32_t way = 0; way < 1u << n_all; way++) {
        double most = 0;
        uint32_t bits = way, n_bits = 0;
        for (uint32_t k = 0; k < n; bits >>= loads[k].n_experts, k++) {
            uint32_t own = 0;
            for (uint32_t e = 0; e < loads[k].n_experts; e++)
                own += bits >> e & 1;
            most = fmax(most, loads[k].us_fixed + own * loads[k].us_each);
            n_bits += own;
        }
        n_ways += n_bits == n_asked;
        sum += n_bits == n_asked ? most : 0;
    }
    return sum / n_ways;
}

static void test_the_busier_device_has_more_than_its_share_of_experts(void **unused)
{
    (void)unused;
    const td_seat_load halves[] = {{32, 1, 0}, {32, 1, 0}};
    assert_true(fabs(td_dealing_expected_us(halves, 2, 8) - 5.0225387) < 1e-6);
    assert_near(td_dealing_expected_us(halves, 2, 64), 32);
    const td_seat_load alone[] = {{64, 3, 5}};
    assert_near(td_dealing_expected_us(alone, 1, 8), 29);
    const td_seat_load uneven[][3] = {{{6, 1, 0}, {4, 2.5, 0}},
                                      {{5, 2, 1.5}, {4, 3, 0}, {3, 0.7, 4}},
                                      {{10, 1, 0}, {1, 100, 0}, {1, 1, 30}}};
    for (uint32_t i = 0; i < TD_COUNT(uneven); i++)
        for (uint32_t n_asked = 0; n_asked <= 10; n_asked++)
            assert_near(td_dealing_expected_us(uneven[i], i ? 3 : 2, n_asked),
                        try_all(uneven[i], i ? 3 : 2, n_asked));
    const td_seat_load many[] = {{600, 1, 0}, {424, 1, 0}}; /* of the most there may be */
    double us = td_dealing_expected_us(many, 2, 512);
    assert_true(us > 300 && us < 301);
}

static void test_of_three_ways_the_fastest_that_is_predicted_is_taken(void **unused)
{
    (void)unused;
    td_mixture_row rows[TD_MIXTURE_WAYS] = {
        {.tokens_per_s = {10, 100}}, {.tokens_per_s = {12, 104}}, {.tokens_per_s = {11, 120}}};
    assert_int_equal(td_mixture_choose(rows, TD_FOR_STREAM), TD_MIXTURE_DEALT);
    assert_int_equal(td_mixture_choose(rows, TD_FOR_BATCH), TD_MIXTURE_APART);
    rows[TD_MIXTURE_APART].why_not[0] = '?';
    assert_int_equal(td_mixture_choose(rows, TD_FOR_BATCH), TD_MIXTURE_LAYERS); /* within 5 % */
    rows[TD_MIXTURE_LAYERS].why_not[0] = '?';
    assert_int_equal(td_mixture_choose(rows, TD_FOR_BATCH), TD_MIXTURE_DEALT);
    rows[TD_MIXTURE_DEALT].why_not[0] = '?';
    assert_int_equal(td_mixture_choose(rows, TD_FOR_STREAM), TD_MIXTURE_WAYS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows_between_the_widths_are_interpolated),
        cmocka_unit_test(test_expected_tokens_are_the_closed_form),
        cmocka_unit_test(test_stream_without_a_draft_is_the_sum_of_the_stages),
        cmocka_unit_test(test_draft_on_the_same_device_takes_turns_on_another_it_overlaps),
        cmocka_unit_test(test_measured_agreement_takes_the_place_of_powers),
        cmocka_unit_test(test_batch_is_bound_by_the_slowest_stage),
        cmocka_unit_test(test_search_finds_the_best_cut_of_all),
        cmocka_unit_test(test_shared_memory_is_counted_once),
        cmocka_unit_test(test_the_systems_memory_is_counted_once),
        cmocka_unit_test(test_cuts_as_fast_as_each_other_are_balanced),
        cmocka_unit_test(test_chunks_are_as_long_as_the_devices_use_them),
        cmocka_unit_test(test_a_link_is_on_the_way_and_may_be_the_slowest_stage),
        cmocka_unit_test(test_a_hop_that_is_known_counts_in_place_of_the_slower_link),
        cmocka_unit_test(test_the_busier_device_has_more_than_its_share_of_experts),
        cmocka_unit_test(test_of_three_ways_the_fastest_that_is_predicted_is_taken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
