/* The arithmetic of draft lengths against values by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/check.h"
#include "base/rng.h"
#include "coordinator/dealing.h"
#include "coordinator/length.h"

#include <math.h>
#include <string.h>

static bool is_near(double a, double b, double part) { return fabs(a - b) <= part * fabs(b); }

static void add_verify(td_times *times, uint32_t n_rows, double us, uint32_t n)
{
    for (uint32_t i = 0; i < n; ++i)
        td_times_add_verify(times, n_rows, us);
}

/* ---- times ---- */

static void test_times_are_unknown_at_first(void **state)
{
    (void)state;
    td_times times;
    td_times_init(&times, NULL, 0);
    assert_true(td_times_verify_us(&times, 1) == 0);
    assert_true(td_times_verify_us(&times, 64) == 0);
    assert_true(td_times_draft_us(&times) == 0);
}

static void test_times_between_measured_widths_are_interpolated(void **state)
{
    (void)state;
    float table[65] = {0};
    td_times times;
    table[1] = 100;
    table[5] = 140;
    table[8] = 200;
    table[9] = 400; /* a cliff */
    td_times_init(&times, table, 7);
    assert_true(is_near(td_times_verify_us(&times, 1), 100, 1e-6));
    assert_true(is_near(td_times_verify_us(&times, 3), 120, 1e-6));
    assert_true(is_near(td_times_verify_us(&times, 3.5), 125, 1e-6));
    assert_true(is_near(td_times_verify_us(&times, 6), 160, 1e-6));
    assert_true(is_near(td_times_verify_us(&times, 8), 200, 1e-6));
    assert_true(is_near(td_times_verify_us(&times, 9), 400, 1e-6));
    /* Beyond: the mean slope (400 - 100) / 8. */
    assert_true(is_near(td_times_verify_us(&times, 13), 400 + 4 * 37.5, 1e-6));
    assert_true(is_near(td_times_verify_us(&times, 64), 400 + 55 * 37.5, 1e-6));
    assert_true(is_near(td_times_verify_us(&times, 1e9), 400 + 55 * 37.5, 1e-6));
    assert_true(is_near(td_times_verify_us(&times, -3), 100, 1e-6));
    assert_true(is_near(td_times_draft_us(&times), 7, 1e-6));
}

static void test_times_of_one_width_grow_by_a_tenth_a_row(void **state)
{
    (void)state;
    td_times times;
    td_times_init(&times, NULL, 0);
    td_times_add_verify(&times, 1, 500);
    assert_true(is_near(td_times_verify_us(&times, 11), 1000, 1e-6));
    td_times_init(&times, NULL, 0);
    td_times_add_verify(&times, 11, 1000);
    assert_true(is_near(td_times_verify_us(&times, 1), 500, 1e-6));
    assert_true(is_near(td_times_verify_us(&times, 21), 1500, 1e-6));
}

/* 4 rows measured cheaper than 3 and 2: the three are pooled, weighted by their samples. */
static void test_times_never_decrease(void **state)
{
    (void)state;
    td_times times;
    td_times_init(&times, NULL, 0);
    add_verify(&times, 1, 100, 4);
    add_verify(&times, 2, 150, 4);
    add_verify(&times, 3, 140, 4);
    add_verify(&times, 4, 130, 4);
    for (uint32_t n = 2; n <= 4; ++n)
        assert_true(is_near(td_times_verify_us(&times, n), 140, 1e-5));
    for (uint64_t seed = 0; seed < 200; ++seed) {
        td_times_init(&times, NULL, 0);
        for (uint32_t i = 0; i < 100; ++i) {
            uint32_t n_rows = 1 + td_noise_bits(seed, i, 0) % 64;
            td_times_add_verify(&times, n_rows, 1 + td_noise_bits(seed, i, 1) % 1000);
            for (uint32_t n = 1; n < 64; ++n)
                assert_true(td_times_verify_us(&times, n) <= td_times_verify_us(&times, n + 1));
            assert_true(td_times_verify_us(&times, 1) > 0);
        }
    }
}

static void test_times_resist_outliers(void **state)
{
    (void)state;
    td_times times;
    td_times_init(&times, NULL, 0);
    td_times_add_verify(&times, 1, 3000); /* the very first one */
    td_times_add_verify(&times, 1, 1000);
    assert_true(is_near(td_times_verify_us(&times, 1), 1000, 1e-6));
    for (uint32_t i = 0; i < 300; ++i)
        td_times_add_verify(&times, 1, i % 10 == 5 ? 3000 : 950 + 100 * (i % 2));
    assert_true(is_near(td_times_verify_us(&times, 1), 1000, 0.06));
    td_times_add_draft(&times, 4, 2, 3 * 8 * 50);
    td_times_add_draft(&times, 4, 2, 8 * 50);
    assert_true(is_near(td_times_draft_us(&times), 50, 1e-6));
}

/* A longer context slows all widths; only one of them is measured meanwhile. */
static void test_times_move_together(void **state)
{
    (void)state;
    td_times times;
    td_times_init(&times, NULL, 0);
    add_verify(&times, 1, 100, 20);
    add_verify(&times, 4, 150, 20);
    for (uint32_t i = 0; i < 400; ++i)
        td_times_add_verify(&times, 1, 100 + 0.25 * i);
    double c = td_times_verify_us(&times, 4) / td_times_verify_us(&times, 1);
    assert_true(is_near(td_times_verify_us(&times, 1), 200, 0.06));
    assert_true(c > 1.35 && c < 1.55);
    for (uint32_t i = 0; i < 400; ++i) { /* in turn: each keeps its own */
        td_times_add_verify(&times, 1, 200);
        td_times_add_verify(&times, 4, 240);
    }
    assert_true(is_near(td_times_verify_us(&times, 4), 240, 0.01));
    assert_true(is_near(td_times_verify_us(&times, 1), 200, 0.01));
}

static void test_times_ignore_nonsense(void **state)
{
    (void)state;
    td_times times;
    float table[65] = {0};
    table[1] = NAN;
    table[2] = -5;
    table[3] = INFINITY;
    td_times_init(&times, table, NAN);
    static const double bad[] = {0, -1, 1e300};
    for (uint32_t i = 0; i < TD_COUNT(bad); ++i) {
        td_times_add_verify(&times, 1, bad[i]);
        td_times_add_draft(&times, 1, 1, bad[i]);
    }
    td_times_add_verify(&times, 1, NAN);
    td_times_add_verify(&times, 1, INFINITY);
    td_times_add_verify(&times, 0, 10);
    td_times_add_verify(&times, 65, 10);
    td_times_add_draft(&times, 0, 1, 10);
    td_times_add_draft(&times, 1, 0, 10);
    assert_true(td_times_verify_us(&times, 1) == 0 && td_times_draft_us(&times) == 0);
}

/* ---- acceptance ---- */

static void add_rounds(td_acceptance *a, double agreement, uint32_t k, uint32_t n, uint64_t seed)
{
    for (uint32_t i = 0; i < n; ++i) {
        uint32_t n_right = 0;
        while (n_right < k && td_noise_bits(seed, i, n_right) < agreement * 4294967296.0)
            ++n_right;
        td_acceptance_add(a, TD_SOURCE_MODEL, k, n_right);
    }
}

static void test_acceptance_is_learnt(void **state)
{
    (void)state;
    static const double agreements[] = {0.05, 0.3, 0.6, 0.8, 0.95};
    for (uint32_t i = 0; i < TD_COUNT(agreements); ++i) {
        double a = agreements[i], mean[4] = {0};
        for (uint64_t seed = 0; seed < 40; ++seed) {
            float survival[4];
            td_acceptance acceptance;
            td_acceptance_init(&acceptance, NULL);
            add_rounds(&acceptance, a, 4, 60, seed);
            td_acceptance_survival(&acceptance, TD_SOURCE_MODEL, survival, 4);
            for (uint32_t j = 0; j < 4; ++j)
                mean[j] += (double)survival[j] / 40;
        }
        assert_true(fabs(mean[0] - a) < 0.05);
        assert_true(fabs(mean[3] - pow(a, 4)) < 0.08);
    }
}

static void test_survival_falls(void **state)
{
    (void)state;
    td_acceptance a;
    td_acceptance_init(&a, NULL);
    for (uint32_t i = 0; i < 2000; ++i) {
        float survival[64];
        uint32_t n_drafted = td_noise_bits(1, i, 0) % 90;
        td_acceptance_add(&a, TD_SOURCE_MODEL, n_drafted, td_noise_bits(1, i, 1) % 100);
        td_acceptance_survival(&a, TD_SOURCE_MODEL, survival, 64);
        for (uint32_t j = 0; j < 64; ++j) {
            assert_true(survival[j] > 0 && survival[j] < 1);
            assert_true(j == 0 || survival[j] < survival[j - 1]);
        }
    }
}

/* Four rounds without a token after a long good time, and four with all after a bad one. */
static void test_acceptance_sees_a_change_soon(void **state)
{
    (void)state;
    float survival;
    td_acceptance a;
    td_acceptance_init(&a, NULL);
    add_rounds(&a, 0.95, 4, 200, 1);
    td_acceptance_survival(&a, TD_SOURCE_MODEL, &survival, 1);
    assert_true(survival > 0.9f);
    add_rounds(&a, 0, 4, 4, 1);
    td_acceptance_survival(&a, TD_SOURCE_MODEL, &survival, 1);
    assert_true(survival < 0.35f);
    add_rounds(&a, 0, 4, 200, 1);
    td_acceptance_survival(&a, TD_SOURCE_MODEL, &survival, 1);
    assert_true(survival < 0.04f);
    add_rounds(&a, 1, 4, 4, 1);
    td_acceptance_survival(&a, TD_SOURCE_MODEL, &survival, 1);
    assert_true(survival > 0.6f);
}

static void test_acceptance_begins_with_what_the_run_was_like(void **state)
{
    (void)state;
    float good, bad, unknown;
    td_acceptance pool, a;
    td_acceptance_init(&pool, NULL);
    for (uint64_t i = 0; i < 3; ++i) {
        td_acceptance_init(&a, &pool);
        add_rounds(&a, 0.9, 4, 100, i);
        td_acceptance_merge(&pool, &a);
    }
    td_acceptance_init(&a, &pool);
    td_acceptance_survival(&a, TD_SOURCE_MODEL, &good, 1);
    td_acceptance_survival(&a, TD_SOURCE_MATCH_9, &unknown, 1);
    assert_true(good > 0.8f && unknown > 0.4f && unknown < 0.7f);
    for (uint64_t i = 0; i < 2000; ++i) { /* and forgets what was long ago; nothing overflows */
        td_acceptance_init(&a, &pool);
        add_rounds(&a, 0.05, 4, 20, i);
        td_acceptance_merge(&pool, &a);
    }
    td_acceptance_init(&a, &pool);
    td_acceptance_survival(&a, TD_SOURCE_MODEL, &bad, 1);
    assert_true(bad < 0.2f);
}

/* The third to seventh tokens agree half as often as the first two: no level of agreement says so,
 * the ratio by index does. */
static void test_acceptance_by_index_is_corrected(void **state)
{
    (void)state;
    double mean = 0, mean_4 = 0;
    td_acceptance a;
    td_acceptance_init(&a, NULL);
    for (uint32_t i = 0; i < 1000; ++i) {
        uint32_t n_right = 0;
        while (n_right < 7 &&
               td_noise_bits(3, i, n_right) < (n_right < 3 ? 0.9 : 0.3) * 4294967296.0)
            ++n_right;
        td_acceptance_add(&a, TD_SOURCE_MODEL, 7, n_right);
        float survival[4];
        td_acceptance_survival(&a, TD_SOURCE_MODEL, survival, 4);
        mean += i < 200 ? 0 : (double)survival[2] / 800;
        mean_4 += i < 200 ? 0 : (double)survival[3] / 800;
    }
    assert_true(fabs(mean - 0.729) < 0.1);
    assert_true(mean_4 / mean < 0.5); /* 0.3 in truth */
}

static void test_sources_by_match_length(void **state)
{
    (void)state;
    assert_int_equal(td_source_of_match(3), TD_SOURCE_MATCH_3);
    assert_int_equal(td_source_of_match(4), TD_SOURCE_MATCH_3);
    assert_int_equal(td_source_of_match(5), TD_SOURCE_MATCH_5);
    assert_int_equal(td_source_of_match(8), TD_SOURCE_MATCH_5);
    assert_int_equal(td_source_of_match(9), TD_SOURCE_MATCH_9);
    assert_int_equal(td_source_of_match(16), TD_SOURCE_MATCH_9);
    assert_int_equal(td_source_of_match(17), TD_SOURCE_MATCH_17);
    assert_int_equal(td_source_of_match(UINT32_MAX), TD_SOURCE_MATCH_17);
}

/* ---- length ---- */

/* All widths known exactly: us[n] = first + (n - 1) * slope, and a cliff from 9 rows on. */
static void make_times(td_times *times, double first, double slope, double cliff, double draft_us)
{
    td_times_init(times, NULL, 0);
    for (uint32_t n = 1; n <= 64; ++n)
        add_verify(times, n, first + (n - 1) * slope + (n > 8 ? cliff : 0), 40);
    for (uint32_t i = 0; i < 40; ++i)
        td_times_add_draft(times, 1, 1, draft_us);
}

/* The mode of what is chosen at this agreement, by its definition. */
static uint32_t best_by_hand(double a, double tv, double slope, double cliff, double td,
                             bool is_ahead)
{
    double best = 0, n_tokens = 0;
    uint32_t k_best = 0;
    for (uint32_t k = 0; k <= 16; ++k) {
        double verify = tv + k * slope + (k >= 8 ? cliff : 0), h = pow(a, k + 1);
        double us = k * td + verify;
        n_tokens += pow(a, k);
        if (is_ahead && k > 0)
            us = h * fmax((k + 1) * td, verify) + (1 - h) * us;
        if (n_tokens / us > best) {
            best = n_tokens / us;
            k_best = k;
        }
    }
    return k_best;
}

static uint32_t choose(double a, const td_times *times, bool is_ahead)
{
    td_acceptance acceptance;
    td_length_state length;
    uint32_t counts[17] = {0}, best = 0;
    td_acceptance_init(&acceptance, NULL);
    td_length_init(&length);
    for (uint32_t i = 0; i < 600; ++i) {
        uint32_t k = td_length_of_draft(&length, &acceptance, times, 16, NULL, is_ahead),
                 n_right = 0;
        assert_true(k <= 16);
        while (n_right < k && td_noise_bits(9, i, n_right) < a * 4294967296.0)
            ++n_right;
        td_acceptance_add(&acceptance, TD_SOURCE_MODEL, k, n_right);
        counts[k] += i >= 100;
    }
    for (uint32_t k = 1; k <= 16; ++k)
        best = counts[k] > counts[best] ? k : best;
    return best;
}

static void test_length_is_that_of_the_closed_form(void **state)
{
    (void)state;
    static const struct {
        double a, slope, cliff, td;
    } cases[] = {{0.02, 20, 0, 100},  {0.3, 10, 0, 50},      {0.6, 20, 0, 100},
                 {0.8, 20, 0, 100},   {0.94, 20, 0, 100},    {0.94, 20, 900, 20},
                 {0.8, 280, 0, 50},   {0.94, 280, 2000, 50}, {0.5, 1000, 0, 100},
                 {0.94, 1000, 0, 10}, {0.8, 20, 0, 1000},    {0.88, 20, 0, 400}};
    for (uint32_t i = 0; i < TD_COUNT(cases); ++i)
        for (uint32_t is_ahead = 0; is_ahead < 2; ++is_ahead) {
            td_times times;
            make_times(&times, 1000, cases[i].slope, cases[i].cliff, cases[i].td);
            uint32_t by_hand = best_by_hand(cases[i].a, 1000, cases[i].slope, cases[i].cliff,
                                            cases[i].td, is_ahead);
            uint32_t k = choose(cases[i].a, &times, is_ahead);
            /* Flat around the best; no further off than a quarter. */
            uint32_t most = by_hand + 1 + by_hand / 4;
            assert_in_range(k + 1 + by_hand / 4, by_hand, UINT32_MAX);
            assert_true(k <= most);
            if (by_hand == 0)
                assert_int_equal(k, 0);
            if (cases[i].cliff > 0)
                assert_true(k <= 7);
        }
}

static void test_length_is_bounded(void **state)
{
    (void)state;
    td_times times;
    td_acceptance a;
    td_length_state length;
    make_times(&times, 1000, 1, 0, 1);
    td_acceptance_init(&a, NULL);
    td_length_init(&length);
    add_rounds(&a, 1, 8, 100, 1);
    for (uint32_t k_max = 0; k_max < 70; ++k_max)
        assert_true(td_length_of_draft(&length, &a, &times, k_max, NULL, k_max % 2) <=
                    td_min_u32(k_max, TD_ACCEPTANCE_DRAFT_MAX));
    td_others others = {.n_rows = 60, .n_tokens = 30, .draft_us = 100, .n_sequences = 20};
    for (uint32_t i = 0; i < 100; ++i)
        assert_true(td_length_of_draft(&length, &a, &times, 63, &others, false) <= 3);
    others.n_rows = 1000;
    assert_int_equal(td_length_of_draft(&length, &a, &times, 63, &others, false), 0);
    td_times_init(&times, NULL, 0); /* nothing known: no nonsense */
    for (uint32_t i = 0; i < 100; ++i)
        assert_true(td_length_of_draft(&length, &a, &times, 8, &others, i % 2) <= 8);
}

/* First how long a plain round takes, then widths at most twice those known. */
static void test_unknown_widths_are_tried_by_doubling(void **state)
{
    (void)state;
    td_times times;
    td_acceptance a;
    td_length_state length;
    uint32_t widest = 1;
    td_times_init(&times, NULL, 0);
    td_acceptance_init(&a, NULL);
    td_length_init(&length);
    for (uint32_t i = 0; i < 40; ++i) {
        uint32_t k = td_length_of_draft(&length, &a, &times, 63, NULL, false);
        assert_true(i >= 2 || k == 0);
        assert_true(k + 1 <= 2 * widest);
        widest = td_max_u32(widest, k + 1);
        td_times_add_verify(&times, k + 1, 1000 + k);
        td_times_add_draft(&times, k, 1, k);
        td_acceptance_add(&a, TD_SOURCE_MODEL, k, k);
    }
    assert_true(widest >= 32);
}

/* What probes cost on a text where nothing agrees. */
static void test_probes_stay_within_their_share(void **state)
{
    (void)state;
    static const double ratios[] = {0.05, 0.2, 0.5, 0.9};
    for (uint32_t i = 0; i < TD_COUNT(ratios); ++i) {
        td_times times;
        td_acceptance a;
        td_length_state length;
        make_times(&times, 1000, 50, 0, 1000 * ratios[i]);
        td_acceptance_init(&a, NULL);
        td_length_init(&length);
        add_rounds(&a, 0, 2, 50, 1);
        double us = 0;
        uint32_t n_probes = 0;
        for (uint32_t round = 0; round < 5000; ++round) {
            uint32_t k = td_length_of_draft(&length, &a, &times, 16, NULL, false);
            assert_true(k <= 1);
            us += 1000 + k * (50 + 1000 * ratios[i]);
            n_probes += k;
            td_acceptance_add(&a, TD_SOURCE_MODEL, k, 0);
        }
        assert_true(us < 1.025 * 5000 * 1000);
        assert_true(n_probes >= 50);
    }
}

/* ---- matches in the text ---- */

static uint32_t match_length(double a_match, double a_model, uint32_t k_model, double draft_us)
{
    td_times times;
    td_acceptance a;
    td_length_state length;
    make_times(&times, 1000, 30, 0, draft_us);
    td_acceptance_init(&a, NULL);
    td_length_init(&length);
    for (uint32_t i = 0; i < 300; ++i) {
        uint32_t n_right = 0;
        while (n_right < 8 && td_noise_bits(4, i, n_right) < a_match * 4294967296.0)
            ++n_right;
        td_acceptance_add(&a, TD_SOURCE_MATCH_5, 8, n_right);
    }
    add_rounds(&a, a_model, 4, 300, 5);
    return td_length_of_match(&length, &a, &times, 7, 12, k_model, NULL, false);
}

static void test_matches_are_weighed_against_the_model(void **state)
{
    (void)state;
    assert_true(match_length(0.95, 0.8, 4, 200) >= 8);   /* better, and free */
    assert_int_equal(match_length(0.3, 0.9, 4, 100), 0); /* the model knows better */
    assert_true(match_length(0.7, 0.75, 3, 400) >= 2); /* the model is a little better, but slow */
    assert_true(match_length(0.6, 0, 0, 0) >= 1);      /* no model */
    assert_true(match_length(0.01, 0, 0, 0) <= 1);     /* a probe at most */
}

/* ---- a head beside the model ---- */

typedef enum { NOBODY, MODEL, HEAD, CHAIN, N_KINDS } plan_kind;

static plan_kind kind_of(const td_length_plan *plan)
{
    return plan->n_head ? (plan->k ? CHAIN : HEAD) : plan->k ? MODEL : NOBODY;
}

/* What is planned most often once both are known, of a plain round of 1000 us. */
static plan_kind usual_plan(double a_model, double model_us, double a_head, double head_us,
                            bool is_ahead, bool has_model)
{
    uint32_t n[N_KINDS] = {0}, usual = 0;
    td_times times;
    td_acceptance a;
    td_length_state length;
    make_times(&times, 1000, 10, 0, model_us);
    for (uint32_t i = 0; i < 4; ++i)
        td_times_add_head(&times, 2, 2 * head_us, 0);
    td_acceptance_init(&a, NULL);
    td_length_init(&length);
    for (uint32_t i = 0; i < 400; ++i) {
        td_length_plan plan =
            td_length_of_sources(&length, &a, &times, 12, NULL, is_ahead, has_model);
        assert_true(plan.n_head <= 12 && plan.k <= 12 && (has_model || plan.k == 0));
        assert_true(!plan.n_head || !plan.k || (is_ahead && plan.n_head == 1));
        uint32_t k = plan.n_head ? plan.n_head : plan.k, n_right = 0;
        double agreement = plan.n_head ? a_head : a_model;
        while (n_right < k && td_noise_bits(8, i, n_right) < agreement * 4294967296.0)
            ++n_right;
        td_acceptance_add(&a, plan.n_head ? TD_SOURCE_HEAD : TD_SOURCE_MODEL, k, n_right);
        if (kind_of(&plan) == CHAIN && n_right == 1) { /* the model's draft is at hand then */
            for (n_right = 0;
                 n_right < plan.k && td_noise_bits(9, i, n_right) < a_model * 4294967296.0;)
                ++n_right;
            td_acceptance_add(&a, TD_SOURCE_MODEL, plan.k, n_right);
        }
        n[kind_of(&plan)] += i >= 100;
    }
    for (uint32_t i = 0; i < N_KINDS; ++i)
        usual = n[i] > n[usual] ? i : usual;
    return (plan_kind)usual;
}

static void test_of_head_and_model_the_one_that_promises_most_is_taken(void **state)
{
    (void)state;
    assert_int_equal(usual_plan(0.7, 50, 0.7, 200, true, true), MODEL); /* cheaper */
    assert_int_equal(usual_plan(0.7, 300, 0.7, 40, true, true), HEAD);
    assert_int_equal(usual_plan(0.9, 150, 0.3, 150, true, true), MODEL); /* knows better */
    assert_int_equal(usual_plan(0.3, 150, 0.9, 150, true, true), HEAD);
    assert_int_equal(usual_plan(0.7, 150, 0.7, 150, true, true), CHAIN);  /* both are dear */
    assert_int_equal(usual_plan(0.7, 100, 0.7, 200, false, true), MODEL); /* in turns: no chain */
    assert_int_equal(usual_plan(0.9, 50, 0.7, 100, true, false), HEAD);   /* no model is there */
    assert_int_equal(usual_plan(0.02, 300, 0.02, 300, true, true), NOBODY);
}

/* ---- rows of a batch ---- */

static void test_rows_are_dealt_by_survival(void **state)
{
    (void)state;
    static const float good[] = {0.9f, 0.81f, 0.73f, 0.66f}, bad[] = {0.3f, 0.09f, 0.03f};
    const td_deal deals[] = {{bad, 3}, {good, 4}, {NULL, 0}};
    uint32_t n_kept[3];
    td_times times;
    make_times(&times, 1000, 1, 0, 100); /* rows for nothing: all */
    assert_int_equal(td_deal_rows(&times, deals, 3, 64, 0, n_kept), 10);
    assert_int_equal(n_kept[0], 3);
    assert_int_equal(n_kept[1], 4);
    assert_int_equal(n_kept[2], 0);
    assert_int_equal(td_deal_rows(&times, deals, 3, 6, 0, n_kept), 6); /* the three best */
    assert_int_equal(n_kept[0], 0);
    assert_int_equal(n_kept[1], 3);
    assert_int_equal(td_deal_rows(&times, deals, 3, 3, 0, n_kept), 3);
    make_times(&times, 1000, 1000, 0, 100); /* a row costs as much as the first: none */
    assert_int_equal(td_deal_rows(&times, deals, 3, 64, 0, n_kept), 3);
    /* 3 tokens in 1000 + 2 s, s a row: the i-th row of survival p pays while
     * p > (tokens so far) s / (us so far). With s = 200: 0.9 > 0.43, 0.81 > 0.49, 0.73 > 0.52,
     * 0.66 > 0.54, 0.3 < 0.56. */
    make_times(&times, 1000, 200, 0, 100);
    assert_int_equal(td_deal_rows(&times, deals, 3, 64, 0, n_kept), 7);
    assert_int_equal(n_kept[0], 0);
    assert_int_equal(n_kept[1], 4);
    /* Time already spent makes the round worth more rows: 0.3 > 6.1 * 200 / (2200 + 3000). */
    assert_int_equal(td_deal_rows(&times, deals, 3, 64, 3000, n_kept), 8);
    assert_int_equal(n_kept[0], 1);
}

/* Over a cliff only if what lies behind it pays for it. */
static void test_rows_get_over_a_cliff_or_stay_before_it(void **state)
{
    (void)state;
    float survival[16];
    uint32_t n_kept;
    for (uint32_t i = 0; i < 16; ++i)
        survival[i] = (float)pow(0.97, i + 1);
    const td_deal deal = {survival, 16};
    td_times times;
    make_times(&times, 1000, 10, 1500, 100);
    assert_int_equal(td_deal_rows(&times, &deal, 1, 64, 0, &n_kept), 8);
    assert_int_equal(n_kept, 7);
    make_times(&times, 1000, 10, 300, 100);
    assert_int_equal(td_deal_rows(&times, &deal, 1, 64, 0, &n_kept), 17);
}

/* The best of all choices, by trying them. */
static void test_rows_are_the_best_choice(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 300; ++seed) {
        float survival[3][4];
        td_deal deals[3];
        uint32_t n_kept[3], n[3];
        td_times times;
        td_times_init(&times, NULL, 0);
        double us = 100;
        for (uint32_t i = 1; i <= 64; ++i)
            add_verify(&times, i, us += td_noise_bits(seed, 100 + i, 0) % 60, 4);
        for (uint32_t i = 0; i < 3; ++i) {
            float p = 1;
            for (uint32_t j = 0; j < 4; ++j)
                survival[i][j] = p *= (float)td_noise_bits(seed, i, j) / 4294967296.0f;
            deals[i] = (td_deal){survival[i], td_noise_bits(seed, i, 9) % 5};
        }
        uint32_t n_max = 3 + td_noise_bits(seed, 7, 7) % 10;
        uint32_t n_rows = td_deal_rows(&times, deals, 3, n_max, 50, n_kept);
        assert_int_equal(n_rows, 3 + n_kept[0] + n_kept[1] + n_kept[2]);
        assert_true(n_rows <= n_max);
        double best = 0, mine = 0;
        for (n[0] = 0; n[0] <= deals[0].n_draft; ++n[0])
            for (n[1] = 0; n[1] <= deals[1].n_draft; ++n[1])
                for (n[2] = 0; n[2] <= deals[2].n_draft; ++n[2]) {
                    double n_tokens = 3;
                    for (uint32_t i = 0; i < 3; ++i)
                        for (uint32_t j = 0; j < n[i]; ++j)
                            n_tokens += (double)survival[i][j];
                    uint32_t n_all = 3 + n[0] + n[1] + n[2];
                    double goodput = n_tokens / (50 + td_times_verify_us(&times, n_all));
                    if (n_all <= n_max)
                        best = fmax(best, goodput);
                    if (!memcmp(n, n_kept, sizeof(n)))
                        mine = goodput;
                }
        assert_true(mine >= best * (1 - 1e-9));
    }
}

static void test_rows_without_known_times_are_all(void **state)
{
    (void)state;
    static const float survival[] = {0.5f, 0.2f};
    const td_deal deals[] = {{survival, 2}, {survival, 1}};
    uint32_t n_kept[2];
    td_times times;
    td_times_init(&times, NULL, 0);
    assert_int_equal(td_deal_rows(&times, deals, 2, 64, 0, n_kept), 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_times_are_unknown_at_first),
        cmocka_unit_test(test_times_between_measured_widths_are_interpolated),
        cmocka_unit_test(test_times_of_one_width_grow_by_a_tenth_a_row),
        cmocka_unit_test(test_times_never_decrease),
        cmocka_unit_test(test_times_resist_outliers),
        cmocka_unit_test(test_times_move_together),
        cmocka_unit_test(test_times_ignore_nonsense),
        cmocka_unit_test(test_acceptance_is_learnt),
        cmocka_unit_test(test_survival_falls),
        cmocka_unit_test(test_acceptance_sees_a_change_soon),
        cmocka_unit_test(test_acceptance_begins_with_what_the_run_was_like),
        cmocka_unit_test(test_acceptance_by_index_is_corrected),
        cmocka_unit_test(test_sources_by_match_length),
        cmocka_unit_test(test_length_is_that_of_the_closed_form),
        cmocka_unit_test(test_length_is_bounded),
        cmocka_unit_test(test_unknown_widths_are_tried_by_doubling),
        cmocka_unit_test(test_probes_stay_within_their_share),
        cmocka_unit_test(test_matches_are_weighed_against_the_model),
        cmocka_unit_test(test_of_head_and_model_the_one_that_promises_most_is_taken),
        cmocka_unit_test(test_rows_are_dealt_by_survival),
        cmocka_unit_test(test_rows_get_over_a_cliff_or_stay_before_it),
        cmocka_unit_test(test_rows_are_the_best_choice),
        cmocka_unit_test(test_rows_without_known_times_are_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
