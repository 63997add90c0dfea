/* The trials of a drafter, round by round. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/check.h"
#include "coordinator/trial.h"

#include <math.h>

#define PLAIN_US 1000.0

/* One sequence: a silent round takes PLAIN_US and gives a token; one with a draft takes draft_us
 * and gives n_tokens. Returns the time of `n_all` tokens by that of plain decoding. */
static double run(td_trial *t, double draft_us, uint32_t n_tokens, uint32_t n_all)
{
    double us = 0;
    for (uint32_t n = 0; n < n_all;) {
        bool is_drafting = td_trial_is_drafting(t);
        td_trial_round round = {.n_sequences = 1,
                                .n_tokens = is_drafting ? n_tokens : 1,
                                .has_drafts = is_drafting,
                                .is_quiet = !is_drafting,
                                .us = is_drafting ? draft_us : PLAIN_US};
        td_trial_add_round(t, &round);
        n += round.n_tokens;
        us += round.us;
    }
    return us / (n_all * PLAIN_US);
}

static void test_begins_in_silence(void **state)
{
    (void)state;
    td_trial t;
    td_trial_init(&t, 0.1, true);
    assert_false(td_trial_is_drafting(&t));
    assert_int_equal(td_trial_patience_us(&t), 0);
    run(&t, 500, 1, 10);
    assert_false(td_trial_is_drafting(&t)); /* its price is not there yet */
    assert_true(td_trial_patience_us(&t) > 0);
    run(&t, 500, 1, 100);
    assert_true(td_trial_is_drafting(&t));
}

static void test_losses_are_bounded_whatever_the_length(void **state)
{
    (void)state;
    static const double costs[] = {1.05, 1.2, 1.5, 2};
    for (uint32_t i = 0; i < 4; ++i)
        for (uint32_t is_one = 0; is_one < 2; ++is_one)
            for (uint32_t n = 50; n < 100000; n *= 3) {
                td_trial t;
                td_trial_init(&t, 0.5, is_one);
                double ratio = run(&t, costs[i] * PLAIN_US, 1, n);
                assert_true(ratio <= 1.03);
                assert_true(n < 1000 || ratio <= 1.012); /* the account, and a round */
            }
}

static void test_what_pays_goes_on(void **state)
{
    (void)state;
    td_trial t;
    td_trial_init(&t, 0.1, true);
    assert_true(run(&t, 1500, 2, 3000) < 0.8); /* 0.75 if there were no silent rounds */
    assert_true(td_trial_is_drafting(&t) && t.is_proven && t.n_trials == 1 && t.n_checks > 3);
    assert_true(t.sum_saved_us > 500 * PLAIN_US);
}

/* With a unit of its own the drafter reads beside rounds, which may vary by more than a trial may
 * lose: that and the time threads take to wake are not what it costs. Waits for it are. */
static void test_what_rounds_differ_by_ends_no_trial(void **state)
{
    (void)state;
    static const struct {
        double us, wait_us;
        bool goes_on;
    } cases[] = {{1300, 0, true}, {1300, 40, true}, {1000, 40, true}, {1700, 400, false}};
    for (size_t i = 0; i < TD_COUNT(cases); ++i) {
        td_trial t;
        td_trial_init(&t, 0.25, false);
        while (!td_trial_is_drafting(&t))
            run(&t, PLAIN_US, 1, 1);
        td_trial_round round = {
            .n_sequences = 1, .n_tokens = 1, .us = cases[i].us, .wait_us = cases[i].wait_us};
        for (uint32_t n = 0; n < 6; ++n)
            td_trial_add_round(&t, &round);
        assert_int_equal(td_trial_is_drafting(&t), cases[i].goes_on);
    }
}

/* It stops soon after drafts have ceased to pay, and begins again when they do. */
static void test_follows_a_change(void **state)
{
    (void)state;
    td_trial t;
    td_trial_init(&t, 0.1, true);
    run(&t, 1500, 2, 2000);
    double ratio = run(&t, 1500, 1, 2000);
    print_message("after drafts have ceased to pay: %.3f of plain decoding's time\n", ratio);
    assert_true(ratio < 1.06); /* of what was saved before */
    assert_true(t.phase == TD_TRIAL_SILENT || !t.is_proven);
    run(&t, 1500, 2, 3000);
    assert_true(td_trial_is_drafting(&t) && t.is_proven);
}

/* The machine becomes twice as slow for both: what drafts save stays. */
static void test_plain_rounds_are_measured_again(void **state)
{
    (void)state;
    td_trial t;
    td_trial_init(&t, 0.1, true);
    run(&t, 1500, 2, 500);
    for (uint32_t i = 0; i < 3000; ++i) {
        bool is_drafting = td_trial_is_drafting(&t);
        td_trial_add_round(&t, &(td_trial_round){.n_sequences = 1,
                                                 .n_tokens = is_drafting ? 2 : 1,
                                                 .has_drafts = is_drafting,
                                                 .is_quiet = !is_drafting,
                                                 .us = is_drafting ? 3000 : 2 * PLAIN_US});
    }
    assert_true(td_trial_is_drafting(&t) && t.is_proven);
}

/* Where they share a unit, a long text is read only if it promises to be worth it. */
static void test_reading_must_be_afforded(void **state)
{
    (void)state;
    td_trial t;
    td_trial_init(&t, 0.1, true);
    run(&t, 1500, 2, 1000);
    assert_true(t.is_proven);
    assert_true(td_trial_affords(&t, 20 * PLAIN_US, 1000));
    assert_false(td_trial_affords(&t, 1000 * PLAIN_US, 100));
    t.is_one_unit = false;
    assert_true(td_trial_affords(&t, 1000 * PLAIN_US, 100));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_begins_in_silence),
        cmocka_unit_test(test_losses_are_bounded_whatever_the_length),
        cmocka_unit_test(test_what_pays_goes_on),
        cmocka_unit_test(test_what_rounds_differ_by_ends_no_trial),
        cmocka_unit_test(test_follows_a_change),
        cmocka_unit_test(test_plain_rounds_are_measured_again),
        cmocka_unit_test(test_reading_must_be_afforded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
