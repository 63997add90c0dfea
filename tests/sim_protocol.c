/* The whole protocol under faults, by seed. SIM_COUNT runs so many seeds from SIM_SEED on
 * (scripts/simulate.sh); a failure prints how to replay it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "sim_protocol.h"

#include <stdlib.h>

#define N_SEEDS 1000u

static world w;

static uint64_t read_number(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text && *text ? strtoull(text, NULL, 10) : otherwise;
}

/* Which faults there are, how bad, and what else is particular about a run. */
static world_params draw_params(uint64_t seed)
{
    uint64_t state = mix(seed + 77);
#define DRAW(n) ((uint32_t)((state = mix(state + 0x9e3779b97f4a7c15u)) % (n)))
    world_params p = {.seed = seed,
                      .n_prompts = 1 + DRAW(N_PROMPTS_MAX),
                      .n_slots = 1 + DRAW(N_SLOTS_MAX),
                      .n_stages = 1 + DRAW(N_STAGES_MAX),
                      .n_ctx = 96 + DRAW(160),
                      .draft_max = 1 + DRAW(12),
                      .prefill_rows = 4 << DRAW(3),
                      .n_prompt_max = 4 + DRAW(60),
                      .n_predict_max = 20 + DRAW(80),
                      .has_stops = DRAW(4) == 0,
                      .ignore_end = DRAW(2),
                      .is_free = DRAW(2),
                      .is_ahead = DRAW(4) != 0,
                      .can_share = DRAW(2),
                      .has_lookup = DRAW(4) == 0,
                      .has_drafter = DRAW(10) != 0,
                      .stage_us = 100 + DRAW(2000),
                      .row_us = DRAW(100),
                      .draft_us = 20 + DRAW(1000),
                      .deadline_us = 500 + DRAW(20000)};
    static const double agreements[] = {0, 0.3, 0.6, 0.8, 0.95, 1};
    p.agreement = agreements[DRAW(6)];
    p.has_head = DRAW(2);
    p.head_agreement = agreements[DRAW(6)];
    p.head_us = 10 + DRAW(300);
    p.verify_rows_max = p.n_slots + DRAW(30);
    p.n_prefix = DRAW(2) ? DRAW(p.n_prompt_max) : 0;
    p.n_pages = DRAW(2) ? td_div_up(p.n_ctx, PAGE_POSITIONS) + 2 + DRAW(100) : 0;
    p.link.seed = seed;
    p.link.delay_max_us = DRAW(3) ? DRAW(5000) : 0;
    p.link.delay_min_us = p.link.delay_max_us / (1 + DRAW(4));
    if (DRAW(2)) {
        p.link.drop_permille = DRAW(3) ? 0 : DRAW(50);
        p.link.duplicate_permille = DRAW(3) ? 0 : DRAW(100);
        p.link.overtake_permille = DRAW(3) ? 0 : DRAW(50);
        p.link.overtake_us = 1 + DRAW(8000);
    }
    p.slow_permille = DRAW(3) ? 0 : DRAW(100);
    p.forged_permille = DRAW(3) ? 0 : DRAW(300);
    p.death_us = DRAW(3) ? 0 : 5000 + DRAW(200000);
    p.silence_us = DRAW(3) ? 0 : 5000 + DRAW(200000);
    p.cut_us = DRAW(4) ? 0 : 10000 + DRAW(200000);
    p.loss_us = DRAW(4) ? 0 : 5000 + DRAW(200000);
    p.cancel_us = DRAW(4) ? 0 : 5000 + DRAW(100000);
    if (DRAW(3) == 0) { /* one sequence at a time, and a drafter that is far */
        p.n_slots = p.n_stages = 1;
        p.is_ahead = p.is_elsewhere = p.has_drafter = true;
        p.has_lookup = false;
        p.link.delay_max_us = (uint32_t)p.stage_us + DRAW(4000);
        p.link.delay_min_us = p.link.delay_max_us - DRAW((uint32_t)p.stage_us / 4);
        p.draft_us = 20 + DRAW(300);
    }
#undef DRAW
    return p;
}

static void test_faults_never_change_the_text(void **state)
{
    (void)state;
    uint64_t first = read_number("SIM_SEED", 1), n = read_number("SIM_COUNT", N_SEEDS);
    uint64_t n_tokens = 0, n_joins = 0, n_deaths = 0, n_answers = 0, n_cancelled = 0, n_ahead = 0;
    uint64_t n_continued = 0, n_batches = 0, n_deadlines = 0, n_stale = 0, n_bad = 0, n_waits = 0;
    uint64_t n_losses = 0, n_replayed = 0, n_going_on = 0;
    uint64_t n_heads = 0, n_told = 0, n_head_accepted = 0;
    for (uint64_t seed = first; seed < first + n; ++seed) {
        world_params params = draw_params(seed);
        world_run(&w, &params);
        for (uint32_t i = 0; i < params.n_prompts; ++i) {
            n_tokens += w.prompts[i].info.n_tokens;
            n_head_accepted += w.prompts[i].info.n_head_accepted;
        }
        n_heads += w.n_heads;
        n_told += w.n_told;
        n_joins += w.n_joins;
        n_deaths += w.n_deaths;
        n_answers += w.n_answers;
        n_going_on += w.n_going_on;
        n_cancelled += w.stats.n_cancelled;
        n_ahead += w.stats.n_ahead;
        n_continued += w.stats.n_continued;
        n_batches += w.stats.n_batches;
        n_deadlines += w.stats.n_deadlines;
        n_stale += w.stats.n_stale_drafts;
        n_bad += w.stats.n_bad_drafts;
        n_waits += w.stats.n_waits;
        n_losses += w.stats.n_target_losses;
        n_replayed += w.stats.n_replayed;
        if ((seed - first + 1) % 10000 == 0) {
            printf("%llu seeds\n", (unsigned long long)(seed - first + 1));
            fflush(stdout);
        }
    }
    printf("%llu seeds: %llu tokens, %llu micro-batches, %llu of them cancelled, %llu "
           "continuations, %llu drafts answered, %llu asked of a far drafter, %llu rounds drafted "
           "ahead, %llu sessions, %llu "
           "deaths, %llu deadlines, %llu stale and %llu bad drafts, %llu waits for memory, %llu "
           "losses of the target, %llu positions computed again, %llu proposals of the head, %llu "
           "of its guesses accepted and %llu told to the drafter\n",
           (unsigned long long)n, (unsigned long long)n_tokens, (unsigned long long)n_batches,
           (unsigned long long)n_cancelled, (unsigned long long)n_continued,
           (unsigned long long)n_answers, (unsigned long long)n_going_on,
           (unsigned long long)n_ahead, (unsigned long long)n_joins, (unsigned long long)n_deaths,
           (unsigned long long)n_deadlines, (unsigned long long)n_stale, (unsigned long long)n_bad,
           (unsigned long long)n_waits, (unsigned long long)n_losses,
           (unsigned long long)n_replayed, (unsigned long long)n_heads,
           (unsigned long long)n_head_accepted, (unsigned long long)n_told);
    if (n < N_SEEDS)
        return;
    /* All of it was tried. */
    assert_true(n_cancelled > n / 10 && n_continued > n / 10 && n_ahead > n);
    assert_true(n_joins > n && n_deaths > n / 10 && n_deadlines > n / 10);
    assert_true(n_stale > n && n_bad > n / 10 && n_waits > n / 10);
    assert_true(n_going_on > n);
    assert_true(n_losses > n / 10 && n_replayed > n);
    assert_true(n_heads > n && n_head_accepted > n && n_told > n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_faults_never_change_the_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
