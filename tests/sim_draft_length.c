/* The choice of draft lengths on simulated machines and texts: measured step tables, texts of known
 * agreement, noisy times. It is held against plain decoding and against the best fixed length that
 * the same text would have had, which no one can know beforehand.
 *
 * SIM_SHOW=1 prints a line per machine, text and mode. */
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
#include <stdio.h>
#include <stdlib.h>

#define N_TEXT    2000u /* tokens a text */
#define N_RUNS    3u    /* of the mixed set, with other random numbers */
#define K_MAX     24u
#define VERIFY_US 1000.0 /* of one row */

/* ---- machines: c(n), the time of n rows in times of one ---- */

typedef struct {
    const char *name;
    double c[20]; /* by rows 1.., up to the first 0; then on with `slope` a row */
    double slope;
} machine;

static const machine machines[] = {
    {"flat", {1, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06, 1.07}, 0.015}, /* dense, bound by memory */
    {"experts", {1, 1.32, 1.6, 1.89, 2.16, 2.43, 2.7, 2.96, 4.93, 5.1}, 0.2}, /* with a cliff */
    {"compute", {1, 2, 3, 4}, 1},                                             /* c(n) = n */
    {"host", {1, 1.1, 1.2, 1.3, 1.45, 1.6, 1.75, 1.9, 2.1, 2.3, 2.5, 2.7, 2.9, 3.1, 3.3, 3.5}, 0.2},
    {"steps", {1, 1.05, 1.1, 1.15, 1.9, 1.95, 2, 2.05, 2.8, 2.85, 2.9, 2.95}, 0.22},
};

static const double draft_ratios[] = {0.05, 0.1, 0.2, 0.35, 0.6, 1};

static double verify_us(const machine *m, uint32_t n_rows)
{
    uint32_t n = 0;
    while (n < TD_COUNT(m->c) && m->c[n] > 0)
        ++n;
    return VERIFY_US * (n_rows <= n ? m->c[n_rows - 1] : m->c[n - 1] + m->slope * (n_rows - n));
}

/* ---- texts: the agreement at a position ---- */

typedef struct {
    const char *name;
    double a, b;     /* agreement, in turn */
    uint32_t period; /* tokens of a and of b together; 0 = only a */
    uint32_t n_b;    /* of them with b */
} text;

static const text texts[] = {
    {"useless", 0, 0, 0, 0},       {"0.02", 0.02, 0, 0, 0},
    {"0.3", 0.3, 0, 0, 0},         {"0.6", 0.6, 0, 0, 0},
    {"0.8", 0.8, 0, 0, 0},         {"0.95", 0.95, 0, 0, 0},
    {"0/0.8", 0, 0.8, 200, 100},   {"0.3/0.95", 0.3, 0.95, 200, 100},
    {"0/0.95", 0, 0.95, 200, 100}, {"bursts", 0.2, 0.98, 40, 15},
};

static double uniform(uint64_t seed, uint64_t stream, uint32_t i)
{
    return (td_noise_bits(seed * 4 + stream, i, 0) + 0.5) / 4294967296.0;
}

static bool agrees(const text *t, uint64_t seed, uint32_t position)
{
    bool is_b = t->period > 0 && position % t->period >= t->period - t->n_b;
    return uniform(seed, 0, position) < (is_b ? t->b : t->a);
}

/* ---- a run ---- */

typedef struct {
    const machine *machine;
    double draft_us;
    bool is_ahead, is_noisy;
    uint64_t seed;
    uint32_t n_samples;
    td_times times;
    td_acceptance pool;
    bool right[N_TEXT + K_MAX + 1]; /* the positions of the text where a draft agrees */
} world;

/* A time as it is measured: +-20 %, one in twenty three times as long. */
static double measured(world *w, double us)
{
    if (!w->is_noisy)
        return us;
    ++w->n_samples;
    double factor = 0.8 + 0.4 * uniform(w->seed, 1, w->n_samples);
    return us * factor * (uniform(w->seed, 2, w->n_samples) < 0.05 ? 3 : 1);
}

static uint32_t count_agreeing(const text *t, uint64_t seed, uint32_t position, uint32_t k)
{
    uint32_t n = 0;
    while (n < k && agrees(t, seed, position + n))
        ++n;
    return n;
}

static void make_text(world *w, const text *t)
{
    for (uint32_t i = 0; i < TD_COUNT(w->right); ++i)
        w->right[i] = agrees(t, w->seed, i);
}

static uint32_t count_right(const world *w, uint32_t position, uint32_t k)
{
    uint32_t n = 0;
    while (n < k && w->right[position + n])
        ++n;
    return n;
}

/* Drafts k_fixed tokens a round, or by control if it is UINT32_MAX. Returns the time of the text.
 * When the drafter goes on while the target verifies, a round in which all agreed, and the guess of
 * the token after them too, has the next draft begun. */
static double run_text(world *w, uint32_t k_fixed)
{
    td_acceptance acceptance;
    td_length_state length;
    td_acceptance_init(&acceptance, &w->pool);
    td_length_init(&length);
    double us = 0, last_us = 0; /* last: what the verification before took */
    bool is_hit = false;
    for (uint32_t position = 0; position < N_TEXT;) {
        uint32_t k = k_fixed;
        if (k_fixed == UINT32_MAX)
            k = td_length_of_draft(&length, &acceptance, &w->times, K_MAX, NULL, w->is_ahead);
        us += is_hit ? fmax((k + 1) * w->draft_us - last_us, 0) : k * w->draft_us;
        uint32_t n = count_right(w, position, k);
        last_us = verify_us(w->machine, k + 1);
        us += last_us;
        is_hit = w->is_ahead && k > 0 && n == k && w->right[position + k];
        position += n + 1;
        if (k_fixed != UINT32_MAX)
            continue;
        td_times_add_verify(&w->times, k + 1, measured(w, last_us));
        if (k > 0) {
            td_times_add_draft(&w->times, k, 1, measured(w, k * w->draft_us));
            td_acceptance_add(&acceptance, TD_SOURCE_MODEL, k, n);
        }
    }
    if (k_fixed == UINT32_MAX)
        td_acceptance_merge(&w->pool, &acceptance);
    return us;
}

static const uint32_t fixed[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24};

/* Times of the texts of the mixed set, one text after the other, over N_RUNS runs. */
typedef struct {
    double us, fixed_us[TD_COUNT(fixed)];
} totals;

static void run_mixed_set(const machine *m, double draft_us, bool is_ahead, bool is_noisy,
                          uint64_t seed, totals *sums)
{
    world w = {.machine = m,
               .draft_us = draft_us,
               .is_ahead = is_ahead,
               .is_noisy = is_noisy,
               .seed = seed * TD_COUNT(texts)};
    td_times_init(&w.times, NULL, 0);
    td_acceptance_init(&w.pool, NULL);
    for (size_t i = 0; i < TD_COUNT(texts); ++i, ++w.seed) {
        make_text(&w, &texts[i]);
        for (size_t j = 0; j < TD_COUNT(fixed); ++j)
            sums[i].fixed_us[j] += run_text(&w, fixed[j]);
        sums[i].us += run_text(&w, UINT32_MAX);
    }
}

static void check_mixed_set(bool is_ahead, bool is_noisy, double most_over_plain,
                            double most_over_best)
{
    bool is_shown = getenv("SIM_SHOW") != NULL;
    double worst_plain = 0, worst_best = 0;
    for (size_t m = 0; m < TD_COUNT(machines); ++m)
        for (size_t r = 0; r < TD_COUNT(draft_ratios); ++r) {
            totals sums[TD_COUNT(texts)] = {0};
            for (uint64_t run = 0; run < N_RUNS; ++run)
                run_mixed_set(&machines[m], draft_ratios[r] * VERIFY_US, is_ahead, is_noisy,
                              1 + (m * 10 + r) * N_RUNS + run, sums);
            for (size_t i = 0; i < TD_COUNT(texts); ++i) {
                uint32_t best = 0;
                for (uint32_t j = 1; j < TD_COUNT(fixed); ++j)
                    best = sums[i].fixed_us[j] < sums[i].fixed_us[best] ? j : best;
                double over_plain = sums[i].us / sums[i].fixed_us[0];
                double over_best = sums[i].us / sums[i].fixed_us[best];
                if (is_shown)
                    printf("%-8s td %.2f %-9s %s%s  x %.3f of plain, %.3f of the best (k %u)\n",
                           machines[m].name, draft_ratios[r], texts[i].name,
                           is_ahead ? "ahead" : "turns", is_noisy ? " noisy" : "", over_plain,
                           over_best, fixed[best]);
                worst_plain = fmax(worst_plain, over_plain);
                worst_best = fmax(worst_best, over_best);
            }
        }
    printf("%s%s: at most %.3f of plain decoding's time, %.3f of the best fixed length's\n",
           is_ahead ? "ahead" : "turns", is_noisy ? ", noisy" : "", worst_plain, worst_best);
    assert_true(worst_plain < most_over_plain);
    assert_true(worst_best < most_over_best);
}

static void test_near_the_best_fixed_length_in_turns(void **state)
{
    (void)state;
    check_mixed_set(false, false, 1.03, 1.05);
}

static void test_near_the_best_fixed_length_ahead(void **state)
{
    (void)state;
    check_mixed_set(true, false, 1.03, 1.05);
}

/* Times that are wrong by a fifth, and now and then by three times, cost a little more. */
static void test_noise_changes_little(void **state)
{
    (void)state;
    check_mixed_set(false, true, 1.035, 1.06);
    check_mixed_set(true, true, 1.035, 1.06);
}

static void init_world(world *w, const machine *m, double draft_ratio, uint64_t seed)
{
    *w = (world){.machine = m, .draft_us = draft_ratio * VERIFY_US, .seed = seed};
    td_times_init(&w->times, NULL, 0);
    td_acceptance_init(&w->pool, NULL);
}

/* A run whose texts are all useless, whatever they cost: probes and all stay below 3 %. */
static void test_useless_texts_cost_no_more_than_3_percent(void **state)
{
    (void)state;
    double worst = 0;
    for (size_t m = 0; m < TD_COUNT(machines); ++m)
        for (size_t r = 0; r < TD_COUNT(draft_ratios); ++r)
            for (uint32_t mode = 0; mode < 4; ++mode) {
                world w;
                init_world(&w, &machines[m], draft_ratios[r], m * 10 + r);
                w.is_ahead = mode % 2;
                w.is_noisy = mode / 2;
                double us = 0, plain = 0;
                for (uint32_t i = 0; i < 4; ++i, ++w.seed) {
                    make_text(&w, &texts[i % 2]);
                    us += run_text(&w, UINT32_MAX);
                    plain += run_text(&w, 0);
                }
                worst = fmax(worst, us / plain);
            }
    printf("useless texts: at most %.3f of plain decoding's time\n", worst);
    assert_true(worst < 1.03);
}

/* Tokens until half of the last 16 rounds drafted, after a useless text of n tokens has become
 * predictable; and tokens drafted in vain after it has become useless again. */
static void find_recovery(world *w, uint32_t n, uint32_t *n_late, uint32_t *n_vain)
{
    const text t = {.a = 0, .b = 0.95, .period = 2 * n, .n_b = n};
    td_acceptance acceptance;
    td_length_state length;
    td_acceptance_init(&acceptance, &w->pool);
    td_length_init(&length);
    uint32_t recent = 0;
    *n_late = UINT32_MAX;
    *n_vain = 0;
    for (uint32_t position = 0; position < 3 * n;) {
        uint32_t k = td_length_of_draft(&length, &acceptance, &w->times, K_MAX, NULL, w->is_ahead);
        uint32_t n_right = count_agreeing(&t, w->seed, position, k);
        td_times_add_verify(&w->times, k + 1, measured(w, verify_us(w->machine, k + 1)));
        td_times_add_draft(&w->times, k, 1, measured(w, k * w->draft_us));
        td_acceptance_add(&acceptance, TD_SOURCE_MODEL, k, n_right);
        recent = (recent << 1 | (k > 0)) & 0xffff;
        if (position >= n && position < 2 * n && *n_late == UINT32_MAX &&
            __builtin_popcount(recent) >= 8)
            *n_late = position - n;
        *n_vain += position >= 2 * n ? k : 0;
        position += n_right + 1;
    }
}

static void test_comes_back_when_a_text_becomes_predictable(void **state)
{
    (void)state;
    uint32_t most_late = 0, n_runs = 0;
    double mean_late = 0, mean_vain = 0;
    for (size_t m = 0; m < TD_COUNT(machines); ++m)
        for (size_t r = 0; r < 3; ++r) /* where it is sure to pay */
            for (uint32_t seed = 0; seed < 20 && m != 2; ++seed) {
                uint32_t n_late, n_vain;
                world w;
                init_world(&w, &machines[m], draft_ratios[r], seed);
                w.is_noisy = seed % 2;
                find_recovery(&w, 1000, &n_late, &n_vain);
                most_late = td_max_u32(most_late, n_late);
                mean_late += n_late;
                mean_vain += n_vain;
                ++n_runs;
            }
    mean_late /= n_runs;
    mean_vain /= n_runs;
    printf("drafts again after %.0f tokens, at most %u; drafts %.0f tokens of 1000 in vain\n",
           mean_late, most_late, mean_vain);
    assert_true(mean_late < 100 && most_late < 600);
    assert_true(mean_vain < 200);
}

/* Eight sequences in one batch, half of them predictable: rows of all share the width's time, and
 * what is drafted is dealt again when the batch is made. */
static double run_batch(world *w, uint32_t k_fixed, uint32_t n_each)
{
    enum { n = 8 };
    static const text kinds[] = {{.a = 0.9}, {.a = 0.1}};
    td_acceptance acceptance[n];
    td_length_state lengths[n];
    uint32_t position[n] = {0}, k[n];
    double mean_rows = n, mean_tokens = n, us = 0;
    for (uint32_t i = 0; i < n; ++i) {
        td_acceptance_init(&acceptance[i], NULL);
        td_length_init(&lengths[i]);
    }
    for (uint32_t n_done = 0; n_done < n * n_each;) {
        float survival[n][K_MAX];
        td_deal deals[n];
        uint32_t n_rows = n, n_tokens = n, n_drafted = 0;
        td_others others = {.n_rows = mean_rows * (n - 1) / n,
                            .n_tokens = mean_tokens * (n - 1) / n};
        others.draft_us = (mean_rows - n) * w->draft_us;
        others.n_sequences = n - 1;
        for (uint32_t i = 0; i < n; ++i) {
            k[i] = k_fixed;
            if (k_fixed == UINT32_MAX)
                k[i] =
                    td_length_of_draft(&lengths[i], &acceptance[i], &w->times, 7, &others, false);
            td_acceptance_survival(&acceptance[i], TD_SOURCE_MODEL, survival[i], k[i]);
            deals[i] = (td_deal){.survival = survival[i], .n_draft = k[i]};
            n_drafted += k[i];
        }
        us += n_drafted * w->draft_us;
        if (k_fixed == UINT32_MAX)
            td_deal_rows(&w->times, deals, n, 64, n_drafted * w->draft_us, k);
        for (uint32_t i = 0; i < n; ++i) {
            uint32_t n_right = count_agreeing(&kinds[i % 2], w->seed * n + i, position[i], k[i]);
            td_acceptance_add(&acceptance[i], TD_SOURCE_MODEL, k[i], n_right);
            position[i] += n_right + 1;
            n_tokens += n_right;
            n_rows += k[i];
        }
        us += verify_us(w->machine, n_rows);
        td_times_add_verify(&w->times, n_rows, verify_us(w->machine, n_rows));
        td_times_add_draft(&w->times, n_drafted, 1, n_drafted * w->draft_us);
        mean_rows += 0.1 * (n_rows - mean_rows);
        mean_tokens += 0.1 * (n_tokens - mean_tokens);
        n_done += n_tokens;
    }
    return us;
}

static void test_sequences_share_a_batch_by_what_their_rows_are_worth(void **state)
{
    (void)state;
    double worst = 0;
    for (size_t m = 0; m < TD_COUNT(machines); ++m)
        for (size_t r = 0; r < TD_COUNT(draft_ratios); ++r) {
            double best = INFINITY;
            world w;
            for (uint32_t k = 0; k <= 7; ++k) {
                init_world(&w, &machines[m], draft_ratios[r] / 4, m);
                best = fmin(best, run_batch(&w, k, 1000));
            }
            init_world(&w, &machines[m], draft_ratios[r] / 4, m);
            worst = fmax(worst, run_batch(&w, UINT32_MAX, 1000) / best);
        }
    printf("eight sequences: at most %.3f of the best fixed length's time\n", worst);
    assert_true(worst < 1.05);
}

/* Drafts found in the text beside the model's, or alone: of long matches most tokens agree where
 * the text repeats itself, of short ones few anywhere. Returns the time. */
static double run_matches(world *w, double a_long, double a_short, double a_model, bool has_model,
                          bool has_matches)
{
    td_acceptance a;
    td_length_state length;
    td_acceptance_init(&a, &w->pool);
    td_length_init(&length);
    double us = 0;
    for (uint32_t position = 0; position < N_TEXT;) {
        bool is_long = position % 200 >= 120, is_match = has_matches && position % 3 > 0;
        uint32_t k = 0, n = 0, n_match = is_long ? 12 : 3, k_match = 0;
        if (has_model)
            k = td_length_of_draft(&length, &a, &w->times, K_MAX, NULL, false);
        if (is_match)
            k_match = td_length_of_match(&length, &a, &w->times, n_match, K_MAX, k, NULL, false);
        double agreement = k_match == 0 ? a_model : is_long ? a_long : a_short;
        us += k_match == 0 ? k * w->draft_us : 0;
        if (k > 0 && k_match == 0)
            td_times_add_draft(&w->times, k, 1, k * w->draft_us);
        td_source source = k_match == 0 ? TD_SOURCE_MODEL : td_source_of_match(n_match);
        k = k_match == 0 ? k : k_match;
        while (n < k && uniform(w->seed, 3 - (k_match == 0), position + n) < agreement)
            ++n;
        us += verify_us(w->machine, k + 1);
        td_times_add_verify(&w->times, k + 1, verify_us(w->machine, k + 1));
        td_acceptance_add(&a, source, k, n);
        position += n + 1;
    }
    return us;
}

/* Together never worse than the better one alone, and where the text repeats itself much better;
 * alone never worse than plain decoding. */
static void test_matches_and_the_model_together(void **state)
{
    (void)state;
    static const double cases[][3] = {
        {0.95, 0.3, 0.6}, {0.95, 0.05, 0.8}, {0.5, 0.02, 0.9}, {0, 0, 0.7}, {0.9, 0.1, 0}};
    double worst = 0, worst_alone = 0, best = INFINITY;
    for (size_t m = 0; m < TD_COUNT(machines); ++m)
        for (size_t i = 0; i < TD_COUNT(cases); ++i) {
            double us[4] = {0}; /* by what there is: model, matches */
            for (uint32_t has = 0; has < 4; ++has)
                for (uint64_t seed = 0; seed < 4; ++seed) {
                    world w;
                    init_world(&w, &machines[m], 0.2, seed);
                    us[has] +=
                        run_matches(&w, cases[i][0], cases[i][1], cases[i][2], has & 1, has & 2);
                }
            worst = fmax(worst, us[3] / fmin(us[1], us[2]));
            best = fmin(best, us[3] / us[1]);
            worst_alone = fmax(worst_alone, us[2] / us[0]);
        }
    printf("matches with the model: %.3f to %.3f of the better one's time; matches alone: at most "
           "%.3f of plain decoding's\n",
           best, worst, worst_alone);
    assert_true(worst < 1.05 && best < 0.8);
    assert_true(worst_alone < 1.03);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_near_the_best_fixed_length_in_turns),
        cmocka_unit_test(test_near_the_best_fixed_length_ahead),
        cmocka_unit_test(test_noise_changes_little),
        cmocka_unit_test(test_useless_texts_cost_no_more_than_3_percent),
        cmocka_unit_test(test_comes_back_when_a_text_becomes_predictable),
        cmocka_unit_test(test_sequences_share_a_batch_by_what_their_rows_are_worth),
        cmocka_unit_test(test_matches_and_the_model_together),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
