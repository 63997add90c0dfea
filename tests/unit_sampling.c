/* The sampler against exact probabilities (chi-square), against a plain computation of the chain
 * written here from its definition, and at the edges of floating point. */
#include "model/sampling.h"

#include "base/check.h"
#include "base/mem.h"
#include "base/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define N_MAX 4099u /* tokens of the largest vocabulary here; odd, so that no block is full */

static uint64_t random_state;

static uint64_t random_u64(void)
{
    uint64_t z = (random_state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static double random_uniform(void)
{
    return ((double)(random_u64() >> 11) + 0.5) / 9007199254740992.0;
}

static double random_normal(void)
{
    return sqrt(-2 * log(random_uniform())) * cos(6.283185307179586 * random_uniform());
}

static void fill_logits(float *logits, uint32_t n, double spread)
{
    for (uint32_t i = 0; i < n; ++i)
        logits[i] = (float)(random_normal() * spread);
}

static const td_sampling_params plain = {
    .temperature = 1.0f, .top_p = 1.0f, .repeat_penalty = 1.0f, .repeat_last_n = 64};

static const td_sampling_params chains[] = {
    {.temperature = 1.0f, .top_p = 1.0f, .repeat_penalty = 1.0f, .repeat_last_n = 64},
    {.temperature = 0.7f, .top_p = 1.0f, .repeat_penalty = 1.0f, .repeat_last_n = 64},
    {.temperature = 1.0f, .top_k = 7, .top_p = 1.0f, .repeat_penalty = 1.0f, .repeat_last_n = 64},
    {.temperature = 0.8f, .top_p = 0.95f, .repeat_penalty = 1.0f, .repeat_last_n = 64},
    {.temperature = 1.0f, .top_p = 1.0f, .min_p = 0.05f, .repeat_penalty = 1.0f},
    {.temperature = 1.0f, .top_p = 1.0f, .repeat_penalty = 1.3f, .repeat_last_n = 4},
    {.temperature = 1.4f,
     .top_k = 12,
     .top_p = 0.9f,
     .min_p = 0.02f,
     .repeat_penalty = 1.1f,
     .repeat_last_n = 64},
    {.temperature = 100.0f, .top_p = 1.0f, .repeat_penalty = 1.0f},
    {.temperature = 1.0f, .top_k = 1, .top_p = 1.0f, .repeat_penalty = 1.0f},
    {.temperature = 1.0f, .top_p = 1e-6f, .repeat_penalty = 1.0f},
    {.temperature = 0.0f, .top_k = 3, .top_p = 0.5f, .repeat_penalty = 1.2f, .repeat_last_n = 8},
};

/* The chain from its definition: sort everything, go through it in order. */
typedef struct {
    double x, w;
    uint32_t id;
} entry;

static int compare_entries(const void *a, const void *b)
{
    const entry *ea = a, *eb = b;
    if (ea->x != eb->x)
        return ea->x > eb->x ? -1 : 1;
    return ea->id < eb->id ? -1 : 1;
}

static void expected_distribution(const td_sampling_params *params, const float *logits, uint32_t n,
                                  const uint32_t *history, uint32_t n_history, double *p)
{
    static entry e[N_MAX];
    for (uint32_t i = 0; i < n; ++i) {
        e[i] = (entry){.x = (double)logits[i], .id = i};
        for (uint32_t j = 0; j < n_history; ++j) {
            if (j + params->repeat_last_n < n_history || history[j] != i)
                continue;
            double penalty = (double)params->repeat_penalty;
            e[i].x = e[i].x > 0 ? e[i].x / penalty : e[i].x * penalty;
            break;
        }
        p[i] = 0;
    }
    qsort(e, n, sizeof(*e), compare_entries);
    if (params->temperature == 0.0f) {
        p[e[0].id] = 1;
        return;
    }
    uint32_t n_kept = params->top_k && params->top_k < n ? params->top_k : n;
    double total = 0, mass = 0, kept = 0;
    for (uint32_t i = 0; i < n_kept; ++i)
        total += e[i].w = exp((e[i].x - e[0].x) / (double)params->temperature);
    for (uint32_t i = 0;
         i < n_kept && (params->top_p == 1.0f || mass < (double)params->top_p * total); ++i) {
        mass += e[i].w;
        if (e[i].w >= (double)params->min_p * e[0].w)
            kept += p[e[i].id] = e[i].w;
    }
    for (uint32_t i = 0; i < n; ++i)
        p[i] /= kept;
}

static uint32_t expected_token(const double *p, uint32_t n, uint64_t stream, uint64_t position)
{
    uint32_t best = UINT32_MAX;
    double best_time = HUGE_VAL;
    for (uint32_t i = 0; i < n; ++i) {
        double time = p[i] > 0 ? td_noise_exponential(stream, position, i) / p[i] : HUGE_VAL;
        if (time < best_time) {
            best_time = time;
            best = i;
        }
    }
    return best;
}

static const uint32_t history[] = {3, 5, 5, 9, 3, 1, 0, 5, 11, 5};

static void test_sampling_matches_plain_computation(void **state)
{
    (void)state;
    static float logits[N_MAX];
    static double p[N_MAX], q[N_MAX];
    static const uint32_t sizes[] = {1, 2, 3, 4, 5, 63, 1000, N_MAX};
    random_state = 1;
    for (size_t i_size = 0; i_size < TD_COUNT(sizes); ++i_size) {
        uint32_t n = sizes[i_size];
        td_sampler *s = td_sampler_create(n, NULL);
        assert_non_null(s);
        for (uint32_t trial = 0; trial < (n > 100 ? 10u : 100u); ++trial) {
            fill_logits(logits, n, trial % 3 == 0 ? 1 : trial % 3 == 1 ? 4 : 0.1);
            for (uint32_t i = 0; trial % 4 == 0 && i < n; ++i) /* many ties */
                logits[i] = roundf(logits[i]);
            for (size_t i = 0; i < TD_COUNT(chains); ++i) {
                td_sample_distribution(s, &chains[i], logits, history, TD_COUNT(history), p);
                expected_distribution(&chains[i], logits, n, history, TD_COUNT(history), q);
                double total = 0;
                for (uint32_t j = 0; j < n; ++j) {
                    assert_int_equal(p[j] > 0, q[j] > 0);
                    assert_true(fabs(p[j] - q[j]) <= 1e-12);
                    total += p[j];
                }
                assert_true(fabs(total - 1) < 1e-9);
                uint64_t stream = random_u64(), position = random_u64() >> (trial % 60);
                assert_int_equal(
                    td_sample(s, &chains[i], logits, history, TD_COUNT(history), stream, position),
                    expected_token(q, n, stream, position));
            }
        }
        td_sampler_destroy(&s);
        assert_null(s);
    }
}

/* Wilson and Hilferty's normal deviate of a chi-square value. */
static double chi_square_deviate(double chi2, double df)
{
    double a = 2 / (9 * df);
    return (cbrt(chi2 / df) - (1 - a)) / sqrt(a);
}

static void test_sampling_draws_follow_exact_probabilities(void **state)
{
    (void)state;
    enum { n = 24, n_draws = 120000 };
    float logits[n];
    double p[n];
    random_state = 2;
    fill_logits(logits, n, 1.5);
    td_sampler *s = td_sampler_create(n, NULL);
    assert_non_null(s);
    for (size_t i = 0; i < TD_COUNT(chains); ++i) {
        uint32_t counts[n] = {0};
        expected_distribution(&chains[i], logits, n, history, TD_COUNT(history), p);
        for (uint32_t position = 0; position < n_draws; ++position)
            ++counts[td_sample(s, &chains[i], logits, history, TD_COUNT(history), 77 + i,
                               position)];
        double chi2 = 0, rest_p = 0, rest = 0;
        int n_cells = 0;
        for (uint32_t j = 0; j < n; ++j) {
            if (p[j] == 0)
                assert_int_equal(counts[j], 0);
            if (p[j] * n_draws < 10) { /* too few for a cell of its own */
                rest_p += p[j];
                rest += counts[j];
                continue;
            }
            double d = counts[j] - p[j] * n_draws;
            chi2 += d * d / (p[j] * n_draws);
            ++n_cells;
        }
        if (rest_p * n_draws >= 5) {
            chi2 += (rest - rest_p * n_draws) * (rest - rest_p * n_draws) / (rest_p * n_draws);
            ++n_cells;
        }
        if (n_cells > 1)
            assert_true(chi_square_deviate(chi2, n_cells - 1) < 4);
        else
            assert_true(chi2 == 0);
    }
    td_sampler_destroy(&s);
}

/* Independence of neighbouring positions: pairs of draws follow p x p. */
static void test_sampling_draws_are_independent_over_positions(void **state)
{
    (void)state;
    enum { n = 5, n_draws = 100000 };
    const float logits[n] = {0.3f, -0.2f, 0.9f, 0.0f, -1.0f};
    double p[n], chi2 = 0;
    static uint32_t counts[n][n];
    memset(counts, 0, sizeof(counts));
    td_sampler *s = td_sampler_create(n, NULL);
    assert_non_null(s);
    expected_distribution(&plain, logits, n, NULL, 0, p);
    for (uint32_t i = 0; i < n_draws; ++i)
        ++counts[td_sample(s, &plain, logits, NULL, 0, 5, 2 * i)]
                [td_sample(s, &plain, logits, NULL, 0, 5, 2 * i + 1)];
    for (int a = 0; a < n; ++a)
        for (int b = 0; b < n; ++b) {
            double e = p[a] * p[b] * n_draws, d = counts[a][b] - e;
            chi2 += d * d / e;
        }
    assert_true(chi_square_deviate(chi2, n * n - 1) < 4);
    td_sampler_destroy(&s);
}

static void test_sampling_ties_go_to_the_lower_id(void **state)
{
    (void)state;
    const float logits[] = {1, 5, 5, 2, 5, 1};
    double p[6];
    td_sampler *s = td_sampler_create(6, NULL);
    assert_non_null(s);
    td_sampling_params params = plain;
    params.temperature = 0;
    assert_int_equal(td_sample(s, &params, logits, NULL, 0, 1, 1), 1);
    const uint32_t recent[] = {1};
    params.repeat_penalty = 1.01f; /* 1 falls behind 2 */
    assert_int_equal(td_sample(s, &params, logits, recent, 1, 1, 1), 2);
    params = plain;
    params.top_k = 2;
    td_sample_distribution(s, &params, logits, NULL, 0, p);
    assert_true(p[1] == 0.5 && p[2] == 0.5 && p[4] == 0);
    params.top_k = 5; /* the first of the two 1s */
    td_sample_distribution(s, &params, logits, NULL, 0, p);
    assert_true(p[0] > 0 && p[5] == 0);
    params.top_k = 0;
    params.top_p = 0.5f; /* two of three equals */
    td_sample_distribution(s, &params, logits, NULL, 0, p);
    assert_true(p[1] > 0 && p[2] > 0 && p[4] == 0);
    td_sampler_destroy(&s);
}

static void check_only(td_sampler *s, const float *logits, uint32_t n, uint32_t allowed)
{
    double p[8];
    for (size_t i = 0; i < TD_COUNT(chains); ++i) {
        td_sampling_params params = chains[i];
        params.repeat_last_n = 0;
        td_sample_distribution(s, &params, logits, NULL, 0, p);
        double total = 0;
        for (uint32_t j = 0; j < n; ++j) {
            assert_true(p[j] >= 0 && p[j] <= 1);
            if (!(allowed >> j & 1))
                assert_true(p[j] == 0);
            total += p[j];
        }
        assert_true(fabs(total - 1) < 1e-12);
        for (uint32_t position = 0; position < 50; ++position)
            assert_true(allowed >> td_sample(s, &params, logits, NULL, 0, 3, position) & 1);
    }
}

static void test_sampling_survives_nan_and_infinities(void **state)
{
    (void)state;
    const float inf = HUGE_VALF;
    td_sampler *s = td_sampler_create(5, NULL);
    assert_non_null(s);
    check_only(s, (float[]){NAN, 1, NAN, 2, NAN}, 5, 0x0a);
    check_only(s, (float[]){-inf, 1, NAN, -inf, NAN}, 5, 0x02);
    check_only(s, (float[]){NAN, -inf, NAN, -inf, NAN}, 5, 0x0a);
    check_only(s, (float[]){NAN, NAN, NAN, NAN, NAN}, 5, 0x1f);
    check_only(s, (float[]){-inf, -inf, -inf, -inf, -inf}, 5, 0x1f);
    check_only(s, (float[]){0, inf, NAN, inf, 7}, 5, 0x0a);
    check_only(s, (float[]){3e38f, -3e38f, 3e38f, 0, 1}, 5, 0x05);
    check_only(s, (float[]){0, 0, 0, -1e30f, -3e38f}, 5, 0x07);
    const uint32_t recent[] = {0, 1, 2, 3, 4, 5, UINT32_MAX};
    td_sampling_params params = plain;
    params.repeat_penalty = 100;
    assert_int_equal(td_sample(s, &params, (float[]){NAN, inf, NAN, -inf, 0}, recent, 7, 3, 4), 1);
    assert_true(td_logits_finite((float[]){0, 3e38f, -3e38f}, 3));
    assert_false(td_logits_finite((float[]){0, NAN}, 2));
    assert_false(td_logits_finite((float[]){-inf, 0}, 2));
    td_sampler_destroy(&s);
}

static void test_sampling_temperature_extremes(void **state)
{
    (void)state;
    enum { n = 64 };
    float logits[n];
    double p[n];
    random_state = 3;
    fill_logits(logits, n, 3);
    logits[17] = 20;
    td_sampler *s = td_sampler_create(n, NULL);
    assert_non_null(s);
    td_sampling_params params = plain;
    const float cold[] = {1e-3f, 1e-30f, 1e-45f};
    for (size_t i = 0; i < TD_COUNT(cold); ++i) {
        params.temperature = cold[i];
        for (uint32_t position = 0; position < 200; ++position)
            assert_int_equal(td_sample(s, &params, logits, NULL, 0, 9, position), 17);
        td_sample_distribution(s, &params, logits, NULL, 0, p);
        assert_true(p[17] == 1);
    }
    params.temperature = 100; /* nearly uniform: exp(25 / 100) at most between any two */
    td_sample_distribution(s, &params, logits, NULL, 0, p);
    for (uint32_t i = 0; i < n; ++i)
        assert_true(p[i] > 0.7 / n && p[i] < 1.4 / n);
    td_sampler_destroy(&s);
}

static void test_sampling_shares_noise(void **state)
{
    (void)state;
    enum { n = 2003, n_positions = 400 };
    static float logits[n_positions][n], near[n];
    static uint32_t chosen[n_positions];
    random_state = 4;
    td_sampler *target = td_sampler_create(n, NULL), *draft = td_sampler_create(n, NULL);
    assert_non_null(target);
    assert_non_null(draft);
    double overlap = 0, n_agreed = 0, n_agreed_elsewhere = 0;
    static double p[n], q[n];
    for (uint32_t i = 0; i < n_positions; ++i) {
        fill_logits(logits[i], n, 2.5);
        chosen[i] = td_sample(target, &plain, logits[i], NULL, 0, 42, i);
    }
    for (uint32_t i = n_positions; i-- > 0;) { /* backwards, by another sampler: the same */
        assert_int_equal(td_sample(draft, &plain, logits[i], NULL, 0, 42, i), chosen[i]);
        for (uint32_t j = 0; j < n; ++j)
            near[j] = logits[i][j] + (float)(0.3 * random_normal());
        td_sample_distribution(target, &plain, logits[i], NULL, 0, p);
        td_sample_distribution(draft, &plain, near, NULL, 0, q);
        for (uint32_t j = 0; j < n; ++j)
            overlap += fmin(p[j], q[j]) / n_positions;
        n_agreed += td_sample(draft, &plain, near, NULL, 0, 42, i) == chosen[i];
        n_agreed_elsewhere += td_sample(draft, &plain, near, NULL, 0, 43, i) == chosen[i];
    }
    /* Exponential races agree with probability >= overlap / (2 - overlap) (Daliri et al. 2024);
     * four standard errors of slack. */
    double bound = overlap / (2 - overlap);
    assert_true(overlap > 0.8 && overlap < 0.95);
    assert_true(n_agreed / n_positions > bound - 4 * sqrt(bound * (1 - bound) / n_positions));
    assert_true(n_agreed_elsewhere / n_positions < 0.2);
    td_sampler_destroy(&target);
    td_sampler_destroy(&draft);
}

/* A renumbered vocabulary at other positions draws the same tokens from the other's noise. */
static void test_sampling_draws_the_noise_of_another_vocabulary(void **state)
{
    (void)state;
    static float logits[N_MAX], renumbered[N_MAX];
    static uint32_t ids[N_MAX]; /* new id -> old id */
    td_err err = {0};
    td_sampler *a = td_sampler_create(N_MAX, &err), *b = td_sampler_create(N_MAX, &err);
    uint32_t n_unlike = 0;
    assert_true(a && b);
    random_state = 77;
    for (uint32_t i = 0; i < N_MAX; ++i)
        ids[i] = (uint32_t)((uint64_t)i * 1009 + 17) % N_MAX; /* 1009 and N_MAX are prime */
    td_sampler_set_noise(b, ids, -5);
    for (uint32_t i = 0; i < 300; ++i) {
        const td_sampling_params *params = &chains[i % 5]; /* the ones without a penalty */
        fill_logits(logits, N_MAX, 2);
        for (uint32_t k = 0; k < N_MAX; ++k)
            renumbered[k] = logits[ids[k]];
        uint32_t wanted = td_sample(a, params, logits, NULL, 0, 9, i);
        assert_int_equal(ids[td_sample(b, params, renumbered, NULL, 0, 9, i + 5)], wanted);
        td_sampler_set_noise(b, NULL, 0);
        n_unlike += ids[td_sample(b, params, renumbered, NULL, 0, 9, i)] != wanted;
        td_sampler_set_noise(b, ids, -5);
    }
    assert_true(n_unlike > 100); /* or there is nothing to be seen here */
    td_sampler_destroy(&a);
    td_sampler_destroy(&b);
}

static void test_sampling_penalty_counts_a_token_once_and_forgets(void **state)
{
    (void)state;
    td_sampler *s = td_sampler_create(3, NULL);
    assert_non_null(s);
    td_sampling_params params = plain;
    params.repeat_penalty = 2;
    params.repeat_last_n = 3;
    const float logits[] = {4, -1, 1};
    double p[3];
    td_sample_distribution(s, &params, logits, (uint32_t[]){2, 0, 0, 1}, 4, p);
    double w[] = {exp(2), exp(-2), exp(1)}; /* 2 is out of the window */
    for (int i = 0; i < 3; ++i)
        assert_true(fabs(p[i] - w[i] / (w[0] + w[1] + w[2])) < 1e-12);
    td_sample_distribution(s, &params, logits, NULL, 0, p); /* nothing is left of it */
    double v[] = {exp(4), exp(-1), exp(1)};
    for (int i = 0; i < 3; ++i)
        assert_true(fabs(p[i] - v[i] / (v[0] + v[1] + v[2])) < 1e-12);
    td_sampler_destroy(&s);
}

static void test_sampling_allocates_nothing(void **state)
{
    (void)state;
    static float logits[N_MAX];
    random_state = 5;
    fill_logits(logits, N_MAX, 3);
    td_sampler *s = td_sampler_create(N_MAX, NULL);
    assert_non_null(s);
    uint64_t before = td_alloc_count();
    for (size_t i = 0; i < TD_COUNT(chains); ++i)
        td_sample(s, &chains[i], logits, history, TD_COUNT(history), 1, 2);
    assert_int_equal(td_alloc_count(), before);
    td_sampler_destroy(&s);
}

static void test_sampling_create_survives_no_memory(void **state)
{
    (void)state;
    for (uint64_t i = 1; i <= 6; ++i) {
        td_err err = {0};
        td_alloc_fail_at(i);
        assert_null(td_sampler_create(100, &err));
        assert_int_equal(err.code, TD_E_NOMEM);
    }
    td_alloc_fail_at(0);
    td_err err = {0};
    assert_null(td_sampler_create(0, &err));
    assert_int_equal(err.code, TD_E_DATA);
    td_err_clear(&err);
    assert_null(td_sampler_create(TD_SAMPLER_VOCAB_MAX + 1, &err));
    assert_int_equal(err.code, TD_E_DATA);
}

static void test_sampling_rejects_parameters_out_of_range(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        td_sampling_params params;
    } cases[] = {
        {"temperature", {.temperature = -0.1f, .top_p = 1, .repeat_penalty = 1}},
        {"temperature", {.temperature = 101, .top_p = 1, .repeat_penalty = 1}},
        {"temperature", {.temperature = NAN, .top_p = 1, .repeat_penalty = 1}},
        {"top_p", {.temperature = 1, .top_p = 0, .repeat_penalty = 1}},
        {"top_p", {.temperature = 1, .top_p = 1.01f, .repeat_penalty = 1}},
        {"top_p", {.temperature = 1, .top_p = NAN, .repeat_penalty = 1}},
        {"min_p", {.temperature = 1, .top_p = 1, .min_p = 1, .repeat_penalty = 1}},
        {"min_p", {.temperature = 1, .top_p = 1, .min_p = -1, .repeat_penalty = 1}},
        {"repeat_penalty", {.temperature = 1, .top_p = 1, .repeat_penalty = 0}},
        {"repeat_penalty", {.temperature = 1, .top_p = 1, .repeat_penalty = HUGE_VALF}},
    };
    td_err err = {0};
    assert_true(td_sampling_check(&TD_SAMPLING_DEFAULTS, &err));
    for (size_t i = 0; i < TD_COUNT(chains); ++i)
        assert_true(td_sampling_check(&chains[i], &err));
    for (size_t i = 0; i < TD_COUNT(cases); ++i) {
        td_err_clear(&err);
        assert_false(td_sampling_check(&cases[i].params, &err));
        assert_int_equal(err.code, TD_E_USAGE);
        assert_non_null(strstr(err.message, cases[i].name));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sampling_matches_plain_computation),
        cmocka_unit_test(test_sampling_draws_follow_exact_probabilities),
        cmocka_unit_test(test_sampling_draws_are_independent_over_positions),
        cmocka_unit_test(test_sampling_ties_go_to_the_lower_id),
        cmocka_unit_test(test_sampling_survives_nan_and_infinities),
        cmocka_unit_test(test_sampling_temperature_extremes),
        cmocka_unit_test(test_sampling_shares_noise),
        cmocka_unit_test(test_sampling_draws_the_noise_of_another_vocabulary),
        cmocka_unit_test(test_sampling_penalty_counts_a_token_once_and_forgets),
        cmocka_unit_test(test_sampling_allocates_nothing),
        cmocka_unit_test(test_sampling_create_survives_no_memory),
        cmocka_unit_test(test_sampling_rejects_parameters_out_of_range),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
