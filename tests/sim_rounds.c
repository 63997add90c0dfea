/* The scheduler against the closed forms of speculative decoding: how many rounds, how many tokens
 * a round, for every draft length. Leviathan et al., "Fast inference from transformers via
 * speculative decoding", 2023, eq. 1: with independent agreement a and k drafted tokens a round
 * commits (1 - a^(k+1)) / (1 - a) tokens on average. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "sim_world.h"

#include <math.h>

static world w;

static const uint32_t draft_lengths[] = {0, 1, 2, 4, 8, 16, 63};

static void run_one(uint64_t seed, uint32_t k, double agreement, uint32_t n_predict)
{
    world_params params = {.seed = seed,
                           .drafter = DRAFTER_PROMPT,
                           .agreement = agreement,
                           .n_prompts = 1,
                           .n_slots = 1,
                           .n_ctx = N_CTX_MAX,
                           .draft_max = k,
                           .verify_rows_max = 64,
                           .prefill_rows = 32,
                           .n_prompt_max = 33,
                           .n_predict_max = n_predict,
                           .is_exact = true,
                           .ignore_end = true};
    world_run(&w, &params);
    assert_int_equal(w.prompts[0].info.n_tokens, n_predict);
    assert_int_equal(w.prompts[0].info.reason, TD_REASON_LENGTH);
}

/* The prompt's last row gives one token, each round k + 1, the last round what is left. */
static void test_perfect_drafter_takes_the_fewest_rounds(void **state)
{
    (void)state;
    for (size_t i = 0; i < TD_COUNT(draft_lengths); ++i)
        for (uint32_t n = 1; n <= 200; n += n < 70 ? 1 : 43) {
            uint32_t k = draft_lengths[i];
            run_one(n, k, 1, n);
            const td_sequence_info *info = &w.prompts[0].info;
            uint32_t n_rounds = td_div_up(n - 1, k + 1);
            assert_int_equal(info->n_rounds, 1 + n_rounds);
            assert_int_equal(info->n_accepted, n - 1 - n_rounds);
            assert_int_equal(info->n_drafted, info->n_accepted); /* none beyond the last token */
        }
}

static void test_wrong_drafter_has_nothing_accepted(void **state)
{
    (void)state;
    for (size_t i = 0; i < TD_COUNT(draft_lengths); ++i) {
        run_one(i, draft_lengths[i], 0, 150);
        const td_sequence_info *info = &w.prompts[0].info;
        assert_int_equal(info->n_rounds, 150);
        assert_int_equal(info->n_accepted, 0);
        for (uint32_t j = 0; j <= TD_DRAFT_MAX; ++j)
            assert_int_equal(info->accepted_at[j], 0);
    }
}

static void check_expectation(double a, uint32_t k)
{
    enum { n_predict = 8000 };
    run_one(k * 100 + (uint32_t)(a * 10), k, a, n_predict);
    const td_sequence_info *info = &w.prompts[0].info;
    double n_rounds = info->n_rounds - 1, mean = 0, square = 0;
    for (uint32_t j = 0; j <= k; ++j) { /* a round commits j + 1 tokens with this probability */
        double p = pow(a, j) * (j < k ? 1 - a : 1);
        mean += p * (j + 1);
        square += p * (j + 1) * (j + 1);
    }
    assert_true(fabs(mean - (1 - pow(a, k + 1)) / (1 - a)) < 1e-9);
    double error = sqrt((square - mean * mean) / n_rounds);
    /* The last rounds draft less than k: at most one round's worth of bias. */
    assert_true(fabs((n_predict - 1) / n_rounds - mean) < 4 * error + mean / n_rounds * mean);
    for (uint32_t j = 0; j < k; ++j) { /* and at each index of the draft a^(j+1) of those tried */
        double n = info->drafted_at[j], p = pow(a, j + 1);
        assert_true(fabs(info->accepted_at[j] - n * p) < 4.5 * sqrt(n * p * (1 - p)) + 2);
    }
}

static void test_tokens_per_round_follow_the_closed_form(void **state)
{
    (void)state;
    static const double agreements[] = {0.2, 0.5, 0.69, 0.8, 0.95};
    for (size_t i = 0; i < TD_COUNT(agreements); ++i)
        for (size_t j = 1; j < TD_COUNT(draft_lengths); ++j)
            check_expectation(agreements[i], draft_lengths[j]);
}

/* Drafts that do not fit a batch are cut; then as many rows as fit are used, fairly. */
static void test_cut_drafts_share_the_batch(void **state)
{
    (void)state;
    for (uint32_t n_rows = 1; n_rows <= 64; n_rows += 3) {
        world_params params = {.seed = n_rows,
                               .drafter = DRAFTER_PROMPT,
                               .agreement = 1,
                               .n_prompts = 8,
                               .n_slots = 8,
                               .n_ctx = 400,
                               .draft_max = 16,
                               .verify_rows_max = n_rows,
                               .prefill_rows = 16,
                               .n_prompt_max = 16,
                               .n_predict_max = 256,
                               .is_exact = true,
                               .ignore_end = true};
        world_run(&w, &params);
        uint32_t least = UINT32_MAX, most = 0;
        for (uint32_t i = 0; i < 8; ++i) {
            uint32_t n = w.prompts[i].info.n_rounds;
            least = td_min_u32(least, n);
            most = td_max_u32(most, n);
        }
        /* Every batch was full but the last: 255 tokens of each after the prompt's. */
        assert_int_equal(w.stats.n_batches - 8, td_div_up(8 * 255, n_rows));
        assert_true(most - least <= 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_perfect_drafter_takes_the_fewest_rounds),
        cmocka_unit_test(test_wrong_drafter_has_nothing_accepted),
        cmocka_unit_test(test_tokens_per_round_follow_the_closed_form),
        cmocka_unit_test(test_cut_drafts_share_the_batch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
