/* The protocol's speed under a simulated clock against closed forms: what it should gain with given
 * step times and agreement, it gains. a: agreement of each drafted token, td: time of a draft step,
 * tv: of a verification, k: tokens drafted a round, E = (1 - a^(k+1)) / (1 - a) tokens a round
 * (Leviathan et al. 2023, eq. 1).
 *
 * In turns: E / (k td + tv).
 *
 * Ahead: while a round is verified, the drafter goes on with the guess of the round's last answer
 * and the next k tokens, k + 1 steps that begin when the verification does. The rounds are a
 * renewal process: what a round takes, from the start of its verification to that of the next, and
 * how many tokens it gives depend on its own agreement only; so the speed is the mean of the one
 * over the mean of the other. All k + 1 agree with probability h = a^(k+1): then the next draft is
 * there as soon as it is made, after max((k+1) td, tv). Else the drafter begins anew when it has
 * heard: tv + k td; and as a step is not interrupted, the rest of the one under way comes on top if
 * it is still at it: r = ceil(tv / td) td - tv if (k+1) td > tv, else 0.
 *
 *     E / (h max((k+1) td, tv) + (1-h) (tv + r + k td))
 *
 * It is the form commonly given, but for r, which is the price of steps that cannot be stopped (up
 * to one td a miss). A miss includes that all k agree and only the guess of the last answer does
 * not; the drafter must stop then too, although no epoch has changed: if it finished its k + 1
 * tokens first, that would cost up to a tenth.
 *
 * A pipeline of s stages takes m chunks in m + s - 1 steps: m s / (m + s - 1) times as fast as one
 * stage that has the work of all. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "sim_protocol.h"

#include <math.h>

#define N_TOKENS  3000u
#define N_RUNS    3u
#define VERIFY_US 980u

static world w;

/* One sequence, one stage. */
static world_params make_params(double a, uint32_t k, uint64_t draft_us, bool is_ahead)
{
    return (world_params){.n_prompts = 1,
                          .n_slots = 1,
                          .n_stages = 1,
                          .n_ctx = N_CTX_MAX,
                          .draft_max = k,
                          .verify_rows_max = 64,
                          .prefill_rows = 16,
                          .n_prompt_max = 16,
                          .n_predict_max = N_TOKENS,
                          .is_exact = true,
                          .ignore_end = true,
                          .is_ahead = is_ahead,
                          .has_drafter = k > 0,
                          .agreement = a,
                          .stage_us = VERIFY_US,
                          .draft_us = draft_us,
                          .deadline_us = 1000000};
}

/* Microseconds from the first token to the last. */
static double run(const world_params *params)
{
    world_run(&w, params);
    const td_sequence_info *info = &w.prompts[0].info;
    assert_int_equal(info->n_tokens, params->n_predict_max);
    return (double)(info->finished_us - info->first_token_us);
}

/* The rounds of the text just run, by what the drafter guesses right, and those of which all of k
 * tokens and the one after them agree. */
static void count_rounds(uint32_t k, uint32_t *n_rounds, uint32_t *n_hits)
{
    uint32_t first = w.prompts[0].n_prompt + 1, end = w.prompts[0].n_prompt + N_TOKENS;
    *n_rounds = *n_hits = 0;
    for (uint32_t at = first; at < end; ++*n_rounds) {
        uint32_t n = 0;
        while (n < k && guesses_right(&w, 0, at + n))
            ++n;
        *n_hits += n == k && guesses_right(&w, 0, at + k);
        at += n + 1;
    }
}

static void check_near(const world_params *p, const char *what, double us, double expected_us,
                       double most)
{
    if (fabs(us / expected_us - 1) > most)
        fail_msg("a %g, k %u, td %u, tv %u: %.0f us, by %s %.0f: %+.1f %%", p->agreement,
                 p->draft_max, (uint32_t)p->draft_us, VERIFY_US, us, what, expected_us,
                 100 * (us / expected_us - 1));
}

/* hit_us, miss_us: what a round takes. Against the rounds of each text to 1 %, against the mean
 * that the closed form is to 3 %. */
static void check_speed(double a, uint32_t k, uint64_t draft_us, bool is_ahead, double hit_us,
                        double miss_us)
{
    world_params params = make_params(a, k, draft_us, is_ahead);
    double sum_us = 0, n_tokens = 0, h = pow(a, k + 1);
    for (uint32_t i = 0; i <= k; ++i)
        n_tokens += pow(a, i);
    for (uint32_t i = 0; i < N_RUNS; ++i) {
        uint32_t n_rounds, n_hits;
        params.seed = 1 + i + N_RUNS * (k + 100 * draft_us);
        double us = run(&params);
        count_rounds(k, &n_rounds, &n_hits);
        check_near(&params, "its rounds", us, n_hits * hit_us + (n_rounds - n_hits) * miss_us,
                   0.01);
        sum_us += us;
    }
    check_near(&params, "the closed form", sum_us / (N_RUNS * (N_TOKENS - 1)),
               (h * hit_us + (1 - h) * miss_us) / n_tokens, 0.03);
}

static const double agreements[] = {0, 0.5, 0.8, 1};
static const uint32_t lengths[] = {1, 3, 8};
static const uint64_t draft_times[] = {50, 240, 490, 980};

static void test_turns_take_drafts_and_verifications(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < TD_COUNT(agreements); ++i)
        for (uint32_t j = 0; j < TD_COUNT(lengths); ++j)
            for (uint32_t t = 0; t < TD_COUNT(draft_times); ++t) {
                double us = (double)(lengths[j] * draft_times[t]) + VERIFY_US;
                check_speed(agreements[i], lengths[j], draft_times[t], false, us, us);
            }
}

static void test_ahead_hides_the_shorter_in_the_longer(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < TD_COUNT(agreements); ++i)
        for (uint32_t j = 0; j < TD_COUNT(lengths); ++j)
            for (uint32_t t = 0; t < TD_COUNT(draft_times); ++t) {
                uint32_t k = lengths[j];
                /* One less, so that a step ends before the answer that stops the next comes. */
                uint64_t draft_us = draft_times[t] - 1;
                double td = (double)draft_us, tv = VERIFY_US;
                double rest = (k + 1) * td > tv ? ceil(tv / td) * td - tv : 0;
                check_speed(agreements[i], k, draft_us, true, fmax((k + 1) * td, tv),
                            tv + rest + k * td);
            }
}

/* Lengths chosen through all of the protocol: a useless text costs at most 3 % more than plain
 * decoding, and no fixed length is more than 8 % better on any text: the rounds are in it that are
 * silent at first and now and then, to see what plain decoding takes. */
static void test_chosen_lengths_are_near_the_best_fixed_one(void **state)
{
    (void)state;
    static const double kinds[] = {0, 0.6, 0.9};
    static const uint32_t fixed[] = {0, 1, 2, 4, 7, 12};
    static const uint64_t times[] = {50, 250, 700};
    for (uint32_t i = 0; i < TD_COUNT(kinds) * TD_COUNT(times) * 4; ++i) {
        double a = kinds[i % 3], best = INFINITY, plain = 0;
        uint64_t draft_us = times[i / 3 % 3], row_us = i / 9 % 2 ? 150 : 10;
        bool is_ahead = i / 18;
        for (uint32_t j = 0; j <= TD_COUNT(fixed); ++j) {
            bool is_free = j == TD_COUNT(fixed);
            world_params params = make_params(a, is_free ? 12 : fixed[j], draft_us, is_ahead);
            params.seed = 1 + i;
            params.row_us = row_us;
            params.is_free = is_free;
            double us = run(&params);
            plain = j == 0 ? us : plain;
            if (!is_free && us < best)
                best = us;
            if (is_free && a == 0)
                check_near(&params, "plain decoding", fmax(us, plain), plain, 0.03);
            if (is_free)
                check_near(&params, "the best fixed length", fmax(us, best), best, 0.08);
        }
    }
}

/* A head of the target's, whose steps are the target's time, beside a draft with a device of its
 * own, both right in seven tokens of ten: both at once are never 3 % below plain decoding, nor 5 %
 * below the better of them alone; where both are dear they are above it, as a chain. */
static void test_a_head_and_a_draft_are_as_good_as_the_better(void **state)
{
    (void)state;
    static const uint64_t head_steps[] = {50, 150, 300}, draft_steps[] = {50, 150, 300};
    for (uint32_t i = 0; i < TD_COUNT(head_steps) * TD_COUNT(draft_steps) * 2; ++i) {
        double us[4] = {0};
        bool is_useless = i >= TD_COUNT(head_steps) * TD_COUNT(draft_steps);
        uint64_t head_us = head_steps[i / 3 % 3], draft_us = draft_steps[i % 3];
        for (uint32_t seed = 1; seed <= N_RUNS; ++seed)
            for (uint32_t j = 0; j < 4; ++j) { /* plain, model, head, both */
                world_params params = make_params(is_useless ? 0.05 : 0.7, 12, draft_us, true);
                params.seed = seed;
                params.is_free = true;
                params.row_us = 10;
                params.head_agreement = params.agreement;
                params.head_us = head_us;
                params.has_drafter = j % 2;
                params.has_head = j / 2;
                params.draft_max = j ? 12 : 0;
                us[j] += run(&params);
            }
        double better_us = fmin(us[0], fmin(us[1], us[2]));
        print_message("a %.2f, head %u us, draft %u us a token: model %.2f, head %.2f, both %.2f "
                      "of plain; both %.3f of the better\n",
                      is_useless ? 0.05 : 0.7, (uint32_t)head_us, (uint32_t)draft_us, us[0] / us[1],
                      us[0] / us[2], us[0] / us[3], better_us / us[3]);
        assert_true(us[3] < 1.03 * us[0]);
        assert_true(us[3] < 1.05 * better_us);
        if (!is_useless && head_us == 150 && draft_us == 150)
            assert_true(us[3] < better_us);
    }
}

/* While the link's latency fits into what is hidden, it costs nothing on a hit; a miss pays the
 * way there and back. */
static void test_latency_is_hidden_in_the_overlap(void **state)
{
    (void)state;
    for (uint32_t delay_us = 100; delay_us <= 5000; delay_us += 700)
        for (uint32_t k = 2; k <= 8; k += 3) {
            world_params params = make_params(1, k, 20, true), here = params;
            params.seed = here.seed = k;
            params.stage_us = here.stage_us = 12000; /* a large model's */
            params.link.delay_min_us = params.link.delay_max_us = delay_us;
            params.n_predict_max = here.n_predict_max = 500;
            double us = run(&params), us_here = run(&here);
            assert_true(us < us_here * 1.03 + 4.0 * delay_us);
        }
}

/* With a draft that is right in some: exactly one round trip a miss, and none a hit, so that a
 * draft 5 ms away is as good as one here within a twentieth where a verification takes 16 of
 * them. */
static void test_a_miss_pays_one_round_trip(void **state)
{
    (void)state;
    static const uint64_t verify_us[] = {12000, 25000, 80000, 200000};
    for (uint32_t i = 0; i < TD_COUNT(verify_us); i++)
        for (uint32_t k = 2; k <= 6; k += 2) {
            world_params params = make_params(0.8, k, 500, true), here = params;
            uint32_t n_rounds, n_hits;
            params.seed = here.seed = 7 + k;
            params.stage_us = here.stage_us = verify_us[i];
            params.link.delay_min_us = params.link.delay_max_us = 2500; /* each way */
            double us = run(&params);
            count_rounds(k, &n_rounds, &n_hits);
            double tv = (double)verify_us[i], miss_us = tv + k * 500 + 5000;
            check_near(&params, "its rounds", us, n_hits * tv + (n_rounds - n_hits) * miss_us,
                       0.01);
            if (verify_us[i] >= 80000)
                assert_true(run(&here) > 0.95 * us);
        }
}

/* 5 ms away, there and back. */
static world_params make_far_params(uint32_t verify_us, uint32_t draft_us, bool is_free)
{
    world_params params = make_params(0.8, is_free ? 16 : 4, draft_us, true);
    params.seed = 3;
    params.is_elsewhere = true;
    params.is_free = is_free;
    params.row_us = 300;
    params.stage_us = verify_us - 300;
    params.link.delay_min_us = params.link.delay_max_us = 2500;
    return params;
}

/* A drafter 5 ms away, of which verifications take two or one: rounds go on without it until its
 * words are there, so that it is a gain all the same. By a model of such a wait: a text is at hand
 * again when for the length of a way there and back no plain token was another than its guess. */
static void test_a_far_draft_is_a_gain(void **state)
{
    (void)state;
    static const struct {
        uint32_t verify_us, draft_us;
        double over_plain[2], of_near[2]; /* fixed, chosen */
    } machines[] = {{2740, 750, {1.3, 1.29}, {0.84, 0.81}},
                    {5500, 1700, {1.45, 1.43}, {0.92, 0.84}}};
    for (uint32_t i = 0; i < TD_COUNT(machines); ++i)
        for (uint32_t is_free = 0; is_free < 2; ++is_free) {
            world_params params =
                make_far_params(machines[i].verify_us, machines[i].draft_us, is_free);
            double far_us = run(&params);
            params.link.delay_min_us = params.link.delay_max_us = 0;
            double near_us = run(&params);
            params.has_drafter = false;
            params.draft_max = 0;
            double plain_us = run(&params);
            printf("verifications of %u us, lengths %s: %.2f of plain decoding's speed, %.2f of a "
                   "near draft's\n",
                   machines[i].verify_us, is_free ? "chosen" : "fixed", plain_us / far_us,
                   near_us / far_us);
            assert_true(plain_us / far_us > machines[i].over_plain[is_free]);
            assert_true(near_us / far_us > machines[i].of_near[is_free]);
        }
}

/* One that hung for far longer than its deadline is as good as ever when it goes on, for the text
 * that was written meanwhile and for those behind it: nothing that was measured, nothing that it
 * still had to answer stands in its way. */
static void test_a_far_draft_that_hung_drafts_as_before(void **state)
{
    (void)state;
    for (uint32_t is_free = 0; is_free < 2; ++is_free) {
        world_params params = make_far_params(2740, 750, is_free);
        uint32_t drafted[4];
        params.seed = 5;
        params.n_prompts = TD_COUNT(drafted);
        params.n_predict_max = 1000;
        params.deadline_us = 100000;
        params.ping_us = 1000000;
        world_run(&w, &params);
        assert_int_equal(w.stats.n_deadlines, 0);
        for (uint32_t i = 0; i < TD_COUNT(drafted); ++i)
            drafted[i] = w.prompts[i].info.n_drafted;
        params.hang_at_us = 300000;
        params.hang_us = 800000;
        world_run(&w, &params);
        assert_int_equal(w.n_joins, 1);
        assert_true(w.stats.n_deadlines > 0);
        for (uint32_t i = 0; i < TD_COUNT(drafted); ++i) {
            double share = (double)w.prompts[i].info.n_drafted / drafted[i];
            printf("%u drafts, %.2f of those without the silence\n", drafted[i], share);
            assert_true(share > (i == 0 ? 0.5 : 0.9));
        }
    }
}

/* Where a way there and back takes a dozen rounds, words are seldom in time: for as many tokens the
 * draft has to be right. Nothing is lost by it: rounds go on as if there were no draft. */
static void test_a_far_draft_costs_nothing_where_its_words_are_late(void **state)
{
    (void)state;
    for (uint32_t is_free = 0; is_free < 2; ++is_free) {
        world_params params = make_far_params(400, 60, is_free);
        params.row_us = 20;
        params.stage_us = 380;
        double far_us = run(&params);
        double share = w.prompts[0].info.n_drafted / (double)N_TOKENS;
        params.has_drafter = false;
        params.draft_max = 0;
        double plain_us = run(&params);
        printf("%.2f drafts a token, %.2f of plain decoding's speed\n", share, plain_us / far_us);
        assert_true(share < 0.1 && plain_us / far_us > 0.98);
    }
}

/* m chunks of a prompt pass s stages in m + s - 1 steps. */
static void test_chunks_pass_the_stages_one_behind_the_other(void **state)
{
    (void)state;
    for (uint32_t n_stages = 1; n_stages <= N_STAGES_MAX; ++n_stages)
        for (uint32_t m = 1; m <= 32; m += m < 8 ? 1 : 8) {
            world_params params = make_params(0, 0, 0, false);
            params.n_stages = n_stages;
            params.n_prompt_max = m * params.prefill_rows;
            params.n_predict_max = 1;
            world_run(&w, &params);
            const td_sequence_info *info = &w.prompts[0].info;
            assert_int_equal(info->first_token_us - info->added_us,
                             (uint64_t)(m + n_stages - 1) * VERIFY_US);
        }
}

/* As many sequences as stages, or twice as many: each stage always has a group. */
static void test_groups_of_sequences_fill_the_stages(void **state)
{
    (void)state;
    for (uint32_t n_stages = 1; n_stages <= N_STAGES_MAX; ++n_stages)
        for (uint32_t n_each = 1; n_each <= 2; ++n_each) {
            world_params params = make_params(0, 0, 0, false);
            params.n_stages = n_stages;
            params.n_prompts = params.n_slots = n_stages * n_each;
            params.n_predict_max = 600;
            params.seed = n_stages;
            world_run(&w, &params);
            uint64_t first = 0, last = 0;
            for (uint32_t i = 0; i < params.n_prompts; ++i) {
                const td_sequence_info *info = &w.prompts[i].info;
                first = info->first_token_us > first ? info->first_token_us : first;
                last = info->finished_us > last ? info->finished_us : last;
            }
            double us = (double)(last - first) / 599; /* of a token of every sequence */
            check_near(&params, "groups", us, n_stages * (double)VERIFY_US, 0.03);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_turns_take_drafts_and_verifications),
        cmocka_unit_test(test_ahead_hides_the_shorter_in_the_longer),
        cmocka_unit_test(test_chosen_lengths_are_near_the_best_fixed_one),
        cmocka_unit_test(test_a_head_and_a_draft_are_as_good_as_the_better),
        cmocka_unit_test(test_latency_is_hidden_in_the_overlap),
        cmocka_unit_test(test_a_miss_pays_one_round_trip),
        cmocka_unit_test(test_a_far_draft_is_a_gain),
        cmocka_unit_test(test_a_far_draft_that_hung_drafts_as_before),
        cmocka_unit_test(test_a_far_draft_costs_nothing_where_its_words_are_late),
        cmocka_unit_test(test_chunks_pass_the_stages_one_behind_the_other),
        cmocka_unit_test(test_groups_of_sequences_fill_the_stages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
