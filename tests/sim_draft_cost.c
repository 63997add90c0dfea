/* What a draft costs at most, and what it brings, through all of the protocol under a simulated
 * clock: runs of few and many prompts, short and long texts, drafts that agree or do not, that have
 * a processor of their own or share the target's, where both take longer while they overlap. The
 * time of a whole run is held against the same run without a draft.
 *
 * SIM_SHOW=1 prints a line per run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "sim_protocol.h"

#include <math.h>
#include <stdlib.h>

#define VERIFY_US  1000u
#define OVER_PLAIN 1.03

static world w;

typedef struct {
    const char *name;
    uint32_t draft_us, row_us, latency_us;
    double read_us, contention;
    bool is_ahead, is_noisy;
} machine;

static const machine machines[] = {
    {"own core, small draft", 50, 20, 0, 5, 1, true, false},
    {"own core, slow to wake", 80, 60, 300, 8, 1.1, true, false},
    {"own core, large draft", 600, 100, 20, 60, 1, true, false},
    {"a worker far away", 60, 60, 3000, 6, 1, true, false},
    {"shared, small draft", 60, 60, 30, 6, 1.5, false, false},
    {"shared, slow to wake", 100, 100, 250, 10, 2, false, false},
    {"shared, large draft", 400, 150, 50, 40, 2, false, false},
    {"shared, ruinous", 900, 400, 200, 90, 3, false, false},
    {"shared and ahead", 150, 100, 100, 15, 2, true, false},
};

static const machine noisy[] = {
    {"own core, noisy", 60, 30, 50, 6, 1, true, true},
    {"shared, noisy", 60, 60, 50, 6, 1.5, false, true},
    {"shared, noisy, large", 300, 100, 50, 30, 2, false, true},
};

static const struct {
    uint32_t n_prompts, n_slots, n_tokens;
} lengths[] = {{1, 1, 8},   {1, 1, 24},  {1, 1, 64},  {1, 1, 300},  {1, 1, 2000},
               {4, 1, 16},  {4, 1, 96},  {12, 1, 48}, {12, 1, 128}, {4, 4, 48},
               {12, 4, 96}, {12, 8, 96}, {12, 4, 400}};

static const double agreements[] = {0, 0.3, 0.6, 0.9};

static double run(const machine *m, uint32_t i_length, uint32_t n_prompt, double a, bool has_draft,
                  uint64_t seed)
{
    world_params params = {.seed = 1 + i_length + 100 * seed,
                           .n_prompts = lengths[i_length].n_prompts,
                           .n_slots = lengths[i_length].n_slots,
                           .n_stages = 1,
                           .n_ctx = N_CTX_MAX,
                           .draft_max = 16,
                           .verify_rows_max = 64,
                           .prefill_rows = 64,
                           .n_prompt_max = n_prompt,
                           .n_predict_max = lengths[i_length].n_tokens,
                           .is_exact = lengths[i_length].n_slots == 1,
                           .ignore_end = true,
                           .is_free = true,
                           .is_ahead = m->is_ahead,
                           .is_one_unit = m->contention > 1.2,
                           .has_drafter = has_draft,
                           .agreement = a,
                           .stage_us = VERIFY_US - m->row_us,
                           .row_us = m->row_us,
                           .draft_us = m->draft_us,
                           .read_us = m->read_us,
                           .contention = m->contention,
                           .is_noisy = m->is_noisy,
                           .deadline_us = 2000000};
    params.link.delay_min_us = params.link.delay_max_us = m->latency_us;
    world_run(&w, &params);
    uint64_t first_us = UINT64_MAX, last_us = 0;
    for (uint32_t i = 0; i < params.n_prompts; ++i) {
        const td_sequence_info *info = &w.prompts[i].info;
        first_us = info->added_us < first_us ? info->added_us : first_us;
        last_us = info->finished_us > last_us ? info->finished_us : last_us;
    }
    return (double)(last_us - first_us);
}

static void test_no_run_takes_3_percent_longer(void **state)
{
    (void)state;
    static const uint32_t n_prompts[] = {12, 500};
    bool is_shown = getenv("SIM_SHOW") != NULL;
    for (size_t m = 0; m < TD_COUNT(machines); ++m) {
        double worst = 0, best = INFINITY;
        for (uint32_t i = 0; i < TD_COUNT(lengths); ++i)
            for (size_t p = 0; p < TD_COUNT(n_prompts); ++p) {
                double plain_us = run(&machines[m], i, n_prompts[p], 0, false, 0);
                for (size_t a = 0; a < TD_COUNT(agreements); ++a) {
                    double us = run(&machines[m], i, n_prompts[p], agreements[a], true, 0);
                    if (is_shown)
                        printf("%-24s %2u x %4u tokens, %u at once, prompts of %3u, %.1f agree: "
                               "%.3f\n",
                               machines[m].name, lengths[i].n_prompts, lengths[i].n_tokens,
                               lengths[i].n_slots, n_prompts[p], agreements[a], us / plain_us);
                    worst = fmax(worst, us / plain_us);
                    best = fmin(best, us / plain_us);
                }
            }
        printf("%-24s at best %.3f, at worst %.3f of plain decoding's time\n", machines[m].name,
               best, worst);
        assert_true(worst <= OVER_PLAIN || is_shown);
    }
}

/* Where drafting pays clearly and the drafter has a processor of its own, nearly all is had. */
static void test_what_pays_is_kept(void **state)
{
    (void)state;
    static const uint32_t some[] = {3, 4, 6, 7, 8};
    for (uint32_t i = 0; i < TD_COUNT(some); ++i)
        for (size_t m = 0; m < 2; ++m) {
            double plain_us = run(&machines[m], some[i], 12, 0, false, 0);
            double us = run(&machines[m], some[i], 12, 0.9, true, 0);
            printf("%-24s %2u x %4u tokens: %.2f times as fast\n", machines[m].name,
                   lengths[some[i]].n_prompts, lengths[some[i]].n_tokens, plain_us / us);
            assert_true(plain_us / us >= 1.3 || m > 0);
        }
}

/* A single noisy run says nothing; many do. */
static void test_nor_do_noisy_ones_on_the_whole(void **state)
{
    (void)state;
    for (size_t m = 0; m < TD_COUNT(noisy); ++m)
        for (size_t a = 0; a < TD_COUNT(agreements); ++a) {
            double us = 0, plain_us = 0;
            for (uint32_t i = 0; i < TD_COUNT(lengths); ++i)
                for (uint64_t seed = 1; seed <= 5; ++seed) {
                    plain_us += run(&noisy[m], i, 40, 0, false, seed);
                    us += run(&noisy[m], i, 40, agreements[a], true, seed);
                }
            printf("%-24s %.1f agree: %.3f of plain decoding's time\n", noisy[m].name,
                   agreements[a], us / plain_us);
            assert_true(us / plain_us <= OVER_PLAIN);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_run_takes_3_percent_longer),
        cmocka_unit_test(test_what_pays_is_kept),
        cmocka_unit_test(test_nor_do_noisy_ones_on_the_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
