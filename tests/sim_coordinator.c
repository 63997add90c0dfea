/* Law 1 and the coordinator's invariants over thousands of seeded runs: whatever the drafter does,
 * tokens, text and reason are those of plain decoding. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "sim_world.h"

static world w;

static const uint32_t draft_lengths[] = {0, 1, 4, 8, 16, 63};

/* Everything about a run follows from the seed. */
static world_params params_of(uint64_t seed, drafter_kind kind)
{
    uint64_t r = mix(seed * 977 + 5);
    static const uint32_t rows[] = {1, 2, 5, 16, 33, 64};
    static const uint32_t prefill[] = {1, 3, 8, 32, 256};
    static const double agreements[] = {0, 0.3, 0.7, 0.95, 1};
    world_params p = {.seed = seed, .drafter = kind};
    p.draft_max = draft_lengths[seed % TD_COUNT(draft_lengths)];
    p.n_slots = 1 + (uint32_t)(r % N_SLOTS_MAX);
    p.n_prompts = p.n_slots + (uint32_t)(r >> 8) % 5;
    p.verify_rows_max = rows[(r >> 16) % TD_COUNT(rows)];
    p.prefill_rows = prefill[(r >> 24) % TD_COUNT(prefill)];
    p.agreement = agreements[(r >> 32) % TD_COUNT(agreements)];
    p.n_prompt_max = 40;
    p.n_predict_max = 60;
    p.n_ctx = (r >> 40) % 3 == 0 ? 48 : 128; /* the small one is often reached */
    p.ignore_end = (r >> 44) % 2 == 0;
    p.has_stops = (r >> 45) % 2 == 0;
    p.has_cancels = (r >> 46) % 4 == 0;
    p.is_ahead = (r >> 48) % 2 == 0;
    p.n_stages = 1 + (uint32_t)(r >> 49) % N_STAGES_MAX;
    p.is_free = (r >> 52) % 2 == 0;
    p.n_prefix = (r >> 53) % 2 == 0 ? 32 : 0;
    p.can_share = (r >> 54) % 2 == 0;
    p.has_losses = mix(r) % 4 == 0;
    p.has_head = (mix(r) >> 8) % 2 == 0;
    uint32_t n_least = td_div_up(p.n_ctx, PAGE_POSITIONS);
    p.n_pages = (r >> 55) % 2 == 0 ? n_least + (uint32_t)(r >> 56) % n_least : 0;
    return p;
}

static void test_any_drafter_gives_the_text_of_plain_decoding(void **state)
{
    (void)state;
    uint64_t n_by_reason[TD_REASON_CANCELLED + 1] = {0};
    td_coordinator_stats total = {0};
    uint32_t n_heads = 0, n_told = 0, n_by_head = 0, n_accepted = 0;
    for (uint64_t seed = 0; seed < 1800; ++seed) {
        world_params params = params_of(seed, (drafter_kind)(seed / 6 % DRAFTER_KIND_COUNT));
        world_run(&w, &params);
        for (uint32_t i = 0; i < params.n_prompts; ++i) {
            const td_sequence_info *info = &w.prompts[i].info;
            ++n_by_reason[info->reason];
            assert_true(info->n_head_accepted <= info->n_by_head);
            assert_true(info->n_by_head <= info->n_drafted);
            n_by_head += info->n_by_head;
            n_accepted += info->n_head_accepted;
        }
        n_heads += w.n_heads;
        n_told += w.n_told;
        total.n_late_drafts += w.stats.n_late_drafts;
        total.n_stale_drafts += w.stats.n_stale_drafts;
        total.n_bad_drafts += w.stats.n_bad_drafts;
        total.n_deadlines += w.stats.n_deadlines;
        total.n_target_losses += w.stats.n_target_losses;
        total.n_replayed += w.stats.n_replayed;
        assert_int_equal(w.stats.n_stale_batches, 0);
    }
    /* The runs reached what they were made for. */
    for (int i = TD_REASON_EOS; i <= TD_REASON_CANCELLED; ++i)
        assert_true(n_by_reason[i] > 100);
    assert_true(total.n_late_drafts > 100 && total.n_stale_drafts > 100);
    assert_true(total.n_bad_drafts > 100 && total.n_deadlines > 100);
    assert_true(total.n_target_losses > 1000 && total.n_replayed > 10000);
    assert_true(n_heads > 10000 && n_told > 1000 && n_by_head > 10000 && n_accepted > 1000);
}

static void test_silent_drafter_costs_one_deadline_a_sequence(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 50; ++seed) {
        world_params params = params_of(seed, DRAFTER_SILENT);
        params.has_cancels = false;
        world_run(&w, &params);
        assert_true(w.stats.n_deadlines <= params.n_prompts);
        assert_int_equal(w.stats.n_bad_drafts, 0);
    }
}

static void test_duplicates_and_garbage_are_counted(void **state)
{
    (void)state;
    world_params params = params_of(4, DRAFTER_DUPLICATE);
    params.draft_max = 4;
    params.agreement = 0.7;
    params.has_cancels = false;
    world_run(&w, &params);
    assert_true(w.stats.n_stale_drafts >= w.n_answers / 2);
    assert_int_equal(w.stats.n_bad_drafts, 0);
    params.drafter = DRAFTER_GARBAGE;
    world_run(&w, &params);
    assert_true(w.stats.n_bad_drafts > 0);
}

static void test_long_prompt_ends_at_the_context(void **state)
{
    (void)state;
    world_params params = {.seed = 3,
                           .drafter = DRAFTER_PROMPT,
                           .agreement = 0.8,
                           .n_prompts = 1,
                           .n_slots = 1,
                           .n_ctx = N_CTX_MAX,
                           .draft_max = 8,
                           .verify_rows_max = 64,
                           .prefill_rows = 256,
                           .n_prompt_max = N_CTX_MAX - 100,
                           .n_predict_max = 500,
                           .is_exact = true,
                           .ignore_end = true};
    world_run(&w, &params);
    assert_int_equal(w.prompts[0].info.reason, TD_REASON_CONTEXT);
    assert_int_equal(w.prompts[0].info.n_tokens, 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_drafter_gives_the_text_of_plain_decoding),
        cmocka_unit_test(test_silent_drafter_costs_one_deadline_a_sequence),
        cmocka_unit_test(test_duplicates_and_garbage_are_counted),
        cmocka_unit_test(test_long_prompt_ends_at_the_context),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
