/* The coordinator call by call: what it refuses, which actions come out in which order, and the
 * cases the simulations meet too seldom to rely on. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/check.h"
#include "base/mem.h"
#include "coordinator/coordinator.h"
#include "coordinator/stops.h"

#include <stdio.h>
#include <string.h>

#define N_VOCAB 100u
#define END     99u

/* Token i is the letter 'a' + i % 26. */
static const char *letter_of(void *user, uint32_t id, size_t *n_bytes)
{
    (void)user;
    *n_bytes = 1;
    return "abcdefghijklmnopqrstuvwxyz" + id % 26;
}

static bool is_end(void *user, uint32_t id)
{
    (void)user;
    return id == END;
}

static td_coordinator_params params_of(uint32_t n_slots, uint32_t draft_max)
{
    return (td_coordinator_params){.n_slots = n_slots,
                                   .n_batches_max = 1,
                                   .is_draft_fixed = true,
                                   .n_ctx = 100,
                                   .draft_max = draft_max,
                                   .verify_rows_max = 64,
                                   .prefill_rows = 4,
                                   .draft_deadline_us = 1000,
                                   .n_vocab = N_VOCAB,
                                   .token_bytes = letter_of,
                                   .token_is_end = is_end};
}

static td_coordinator *create(const td_coordinator_params *params)
{
    td_err err = {0};
    td_coordinator *c = td_coordinator_create(params, &err);
    if (!c)
        fail_msg("%s", err.message);
    return c;
}

static const uint32_t prompt[] = {1, 2, 3, 4, 5};

static uint32_t add(td_coordinator *c, uint32_t n_predict, uint64_t now_us)
{
    td_sequence_params params = {.prompt = prompt, .n_prompt = 5, .n_predict = n_predict};
    td_err err = {0};
    uint32_t sequence = UINT32_MAX;
    if (!td_coordinator_add(c, &params, now_us, &sequence, &err))
        fail_msg("%s", err.message);
    return sequence;
}

static td_action next_of(td_coordinator *c, td_action_kind kind, int line)
{
    td_action a;
    if (!td_coordinator_next(c, &a))
        fail_msg("line %d: no action, %d expected", line, (int)kind);
    if (a.kind != kind)
        fail_msg("line %d: action %d, %d expected", line, (int)a.kind, (int)kind);
    return a;
}
#define NEXT(c, kind) next_of(c, kind, __LINE__)

static void no_action(td_coordinator *c)
{
    td_action a;
    assert_false(td_coordinator_next(c, &a));
}

/* Takes a new sequence of five prompt tokens, no drafter, to its first token. */
static void prefill(td_coordinator *c, uint32_t first_token)
{
    NEXT(c, TD_ACT_OPEN);
    td_action a = NEXT(c, TD_ACT_FORWARD);
    assert_true(a.is_prefill && a.n_rows == 4 && a.n_out == 0 && a.rows[3].token == 4);
    assert_int_equal(NEXT(c, TD_ACT_COMMIT).length, 4); /* a prompt is certain */
    no_action(c);
    td_coordinator_on_verified(c, a.batch, NULL, NULL, 10);
    a = NEXT(c, TD_ACT_FORWARD);
    assert_true(a.is_prefill && a.n_rows == 1 && a.n_out == 1 && a.rows[0].position == 4);
    assert_int_equal(NEXT(c, TD_ACT_COMMIT).length, 5);
    td_coordinator_on_verified(c, a.batch, &first_token, NULL, 20);
    a = NEXT(c, TD_ACT_TOKENS);
    assert_true(a.n_tokens == 1 && a.tokens[0] == first_token && !a.is_draft[0]);
    assert_int_equal(a.position, 5);
}

static void test_coordinator_round_in_order(void **state)
{
    (void)state;
    td_coordinator_params params = params_of(1, 3);
    td_coordinator *c = create(&params);
    td_coordinator_on_drafter(c, true, 0);
    no_action(c);
    uint32_t q = add(c, 50, 5);
    assert_int_equal(td_coordinator_n_free(c), 0);
    td_action a = NEXT(c, TD_ACT_DRAFT_OPEN);
    uint32_t epoch = a.epoch;
    a = NEXT(c, TD_ACT_DRAFT_FEED);
    assert_true(a.position == 0 && a.n_tokens == 5 && !memcmp(a.tokens, prompt, sizeof(prompt)));
    assert_int_equal(NEXT(c, TD_ACT_OPEN).length, 0);
    a = NEXT(c, TD_ACT_FORWARD);
    NEXT(c, TD_ACT_COMMIT);
    no_action(c); /* one in flight */
    td_coordinator_on_verified(c, a.batch, NULL, NULL, 10);
    a = NEXT(c, TD_ACT_FORWARD);
    NEXT(c, TD_ACT_COMMIT);
    td_coordinator_on_verified(c, a.batch, (uint32_t[]){10}, NULL, 20);
    NEXT(c, TD_ACT_TOKENS);
    a = NEXT(c, TD_ACT_DRAFT_FEED);
    assert_true(a.position == 5 && a.n_tokens == 1 && a.tokens[0] == 10);
    a = NEXT(c, TD_ACT_DRAFT_PROPOSE);
    assert_true(a.position == 6 && a.k == 3 && a.epoch == epoch && a.sequence == q);
    no_action(c);
    assert_int_equal(td_coordinator_deadline_us(c), 1020);
    td_coordinator_on_draft(c, q, epoch, 6, (uint32_t[]){11, 12, 13}, 3, 0, 30);
    assert_int_equal(td_coordinator_deadline_us(c), UINT64_MAX);
    a = NEXT(c, TD_ACT_FORWARD);
    assert_true(!a.is_prefill && a.n_rows == 4 && a.n_out == 4);
    for (uint32_t i = 0; i < 4; ++i)
        assert_true(a.rows[i].position == 5 + i && a.rows[i].token == 10 + i &&
                    a.rows[i].is_output);
    td_coordinator_on_verified(c, a.batch, (uint32_t[]){11, 12, 50, 51}, NULL, 40);
    assert_int_equal(NEXT(c, TD_ACT_TRUNCATE).length, 8);
    assert_int_equal(NEXT(c, TD_ACT_COMMIT).length, 8);
    a = NEXT(c, TD_ACT_TOKENS);
    assert_true(a.n_tokens == 3 && a.position == 6 && a.tokens[2] == 50);
    assert_true(a.is_draft[0] && a.is_draft[1] && !a.is_draft[2]);
    a = NEXT(c, TD_ACT_DRAFT_FEED);
    assert_true(a.position == 6 && a.n_tokens == 3);
    a = NEXT(c, TD_ACT_DRAFT_PROPOSE);
    assert_true(a.position == 9 && a.epoch != epoch);
    td_coordinator_cancel(c, q, 50);
    NEXT(c, TD_ACT_CLOSE);
    NEXT(c, TD_ACT_DRAFT_CLOSE);
    a = NEXT(c, TD_ACT_FINISH);
    assert_int_equal(a.reason, TD_REASON_CANCELLED);
    const td_sequence_info *info = td_coordinator_get_info(c, q);
    assert_true(info->n_rounds == 2 && info->n_drafted == 3 && info->n_accepted == 2);
    assert_true(info->drafted_at[2] == 1 && info->accepted_at[1] == 1 && info->accepted_at[2] == 0);
    assert_true(info->added_us == 5 && info->first_token_us == 20 && info->finished_us == 50);
    assert_string_equal(info->text, "klmy");
    assert_true(td_coordinator_is_idle(c));
    td_coordinator_remove(c, q);
    assert_null(td_coordinator_get_info(c, q));
    assert_int_equal(td_coordinator_n_free(c), 1);
    td_coordinator_destroy(&c);
}

/* Up to the first proposal of one sequence; time 20. */
static td_action first_proposal(td_coordinator *c, uint32_t *sequence)
{
    *sequence = add(c, 50, 0);
    prefill(c, 10);
    td_action a = NEXT(c, TD_ACT_FORWARD); /* no drafter yet */
    assert_int_equal(a.n_rows, 1);
    td_coordinator_on_drafter(c, true, 20);
    td_coordinator_on_verified(c, a.batch, (uint32_t[]){11}, NULL, 20);
    NEXT(c, TD_ACT_COMMIT);
    NEXT(c, TD_ACT_TOKENS);
    NEXT(c, TD_ACT_DRAFT_OPEN);
    assert_int_equal(NEXT(c, TD_ACT_DRAFT_FEED).n_tokens, 7);
    return NEXT(c, TD_ACT_DRAFT_PROPOSE);
}

static void test_coordinator_drops_and_counts_bad_drafts(void **state)
{
    (void)state;
    td_coordinator_params params = params_of(2, 3);
    td_coordinator *c = create(&params);
    uint32_t q;
    td_action p = first_proposal(c, &q);
    const td_coordinator_stats *stats = td_coordinator_get_stats(c);
    uint32_t ids[] = {12, 13, 14, 15};
    td_coordinator_on_draft(c, q, p.epoch, p.position, ids, 4, 0, 30);
    assert_int_equal(stats->n_bad_drafts, 1); /* more than asked for */
    td_coordinator_on_draft(c, q, p.epoch, p.position + 9, ids, 3, 0, 30);
    assert_int_equal(stats->n_bad_drafts, 2);
    td_coordinator_on_draft(c, q + 1, p.epoch, p.position, ids, 3, 0, 30);
    assert_int_equal(stats->n_bad_drafts, 3); /* no such sequence */
    td_coordinator_on_draft(c, q, p.epoch + 1, p.position, ids, 3, 0, 30);
    assert_int_equal(stats->n_bad_drafts, 4); /* no such epoch */
    td_coordinator_on_draft(c, q, p.epoch, p.position, (uint32_t[]){1, N_VOCAB}, 2, 0, 30);
    assert_int_equal(stats->n_bad_drafts, 5); /* no such token */
    td_coordinator_on_draft(c, q, p.epoch - 1, p.position, ids, 3, 0, 30);
    assert_int_equal(stats->n_stale_drafts, 1);
    no_action(c);
    td_coordinator_on_draft(c, q, p.epoch, p.position, ids, 2, 0, 30);
    td_action a = NEXT(c, TD_ACT_FORWARD);
    assert_int_equal(a.n_rows, 3);
    td_coordinator_on_draft(c, q, p.epoch, p.position, ids, 2, 0, 30);
    assert_int_equal(stats->n_stale_drafts, 2); /* again */
    td_coordinator_on_verified(c, a.batch + 1, (uint32_t[]){1, 1, 1}, NULL, 30);
    td_coordinator_on_verified(c, a.batch - 1, (uint32_t[]){1, 1, 1}, NULL, 30);
    assert_int_equal(stats->n_stale_batches, 2);
    no_action(c);
    td_coordinator_destroy(&c);
}

static void test_coordinator_silence_mutes_until_an_answer(void **state)
{
    (void)state;
    td_coordinator_params params = params_of(1, 3);
    td_coordinator *c = create(&params);
    uint32_t q;
    td_action p = first_proposal(c, &q), a;
    td_coordinator_on_tick(c, 1019);
    no_action(c);
    td_coordinator_on_tick(c, 1020);
    for (uint32_t i = 0; i < 3; ++i) { /* plain rounds, and not a word to the drafter */
        a = NEXT(c, TD_ACT_FORWARD);
        assert_int_equal(a.n_rows, 1);
        td_coordinator_on_verified(c, a.batch, (uint32_t[]){20 + i}, NULL, 1030);
        NEXT(c, TD_ACT_COMMIT);
        NEXT(c, TD_ACT_TOKENS);
    }
    a = NEXT(c, TD_ACT_FORWARD);
    td_coordinator_on_draft(c, q, p.epoch, p.position, (uint32_t[]){1}, 1, 0, 1040);
    assert_int_equal(td_coordinator_get_stats(c)->n_late_drafts, 1);
    assert_int_equal(td_coordinator_get_stats(c)->n_deadlines, 1);
    no_action(c); /* it is told what it missed when it is asked again */
    td_coordinator_on_verified(c, a.batch, (uint32_t[]){30}, NULL, 1050);
    NEXT(c, TD_ACT_COMMIT);
    NEXT(c, TD_ACT_TOKENS);
    assert_int_equal(NEXT(c, TD_ACT_DRAFT_FEED).n_tokens, 4);
    p = NEXT(c, TD_ACT_DRAFT_PROPOSE);
    /* A late answer to the round that has not begun is used. */
    td_coordinator_on_tick(c, 5000);
    td_coordinator_on_draft(c, q, p.epoch, p.position, (uint32_t[]){1, 2}, 2, 0, 5001);
    assert_int_equal(NEXT(c, TD_ACT_FORWARD).n_rows, 3);
    td_coordinator_destroy(&c);
}

/* An answer of the plain target after us, while nothing is heard of the drafter. */
static void plain_round(td_coordinator *c, uint64_t now_us)
{
    td_action a;
    bool is_begun = false;
    while (!is_begun && td_coordinator_next(c, &a))
        is_begun = a.kind == TD_ACT_FORWARD;
    assert_true(is_begun && a.n_rows == 1);
    td_coordinator_on_verified(c, a.batch, (uint32_t[]){20}, NULL, now_us);
}

/* Rounds wait for nobody where the drafter is far. What it owes is due all the same: by when it was
 * asked, or last heard, whichever sequence it was of and whatever rounds there were since. */
static void test_coordinator_far_silence_has_a_deadline(void **state)
{
    (void)state;
    for (uint32_t is_elsewhere = 0; is_elsewhere < 2; ++is_elsewhere) {
        td_coordinator_params params = params_of(1, 3);
        params.is_ahead = true;
        params.is_draft_elsewhere = is_elsewhere;
        params.draft_us = 10;
        params.verify_us[1] = 100;
        td_coordinator *c = create(&params);
        uint32_t q;
        td_action p = first_proposal(c, &q), a;
        uint64_t now_us = 30;
        const uint32_t ids[] = {1, 2, 3, 4};
        for (uint32_t i = 0; i < 4; ++i) { /* each takes long, and is wrong */
            now_us += 200;
            td_coordinator_on_draft(c, q, p.epoch, p.position, ids, p.k, 10 * p.k, now_us);
            while (td_coordinator_next(c, &a) && a.kind != TD_ACT_FORWARD)
                ;
            assert_true(a.kind == TD_ACT_FORWARD && a.n_rows > 1);
            td_coordinator_on_verified(c, a.batch, (uint32_t[]){20, 20, 20, 20}, NULL,
                                       now_us += 100);
            while (td_coordinator_next(c, &a) && a.kind != TD_ACT_DRAFT_PROPOSE)
                ;
            p = a;
        }
        assert_int_equal(p.goes_on, is_elsewhere);
        uint64_t due_us = now_us + params.draft_deadline_us;
        assert_int_equal(td_coordinator_deadline_us(c), due_us);
        if (is_elsewhere) {
            plain_round(c, now_us + 100);
            plain_round(c, now_us + 200);
            assert_int_equal(td_coordinator_deadline_us(c), due_us);
            td_coordinator_on_draft(c, q, p.epoch, p.position, ids, 0, 0, now_us + 250);
            plain_round(c, now_us + 300); /* and it has been asked for more by now */
            assert_int_equal(td_coordinator_deadline_us(c), due_us += 250);
        }
        td_coordinator_on_tick(c, due_us - 1);
        assert_int_equal(td_coordinator_get_stats(c)->n_deadlines, 0);
        td_coordinator_on_tick(c, due_us);
        assert_int_equal(td_coordinator_get_stats(c)->n_deadlines, 1);
        assert_int_equal(td_coordinator_deadline_us(c), UINT64_MAX);
        while (td_coordinator_next(c, &a)) /* not a word to it any more */
            assert_true(a.kind != TD_ACT_DRAFT_PROPOSE && a.kind != TD_ACT_DRAFT_FEED);
        td_coordinator_on_tick(c, due_us + 5000);
        assert_int_equal(td_coordinator_get_stats(c)->n_deadlines, 1);
        td_coordinator_on_drafter(c, false, due_us + 5000);
        td_coordinator_destroy(&c);
    }
}

static void test_coordinator_lost_drafter_leaves_plain_decoding(void **state)
{
    (void)state;
    td_coordinator_params params = params_of(1, 3);
    td_coordinator *c = create(&params);
    uint32_t q;
    td_action p = first_proposal(c, &q);
    td_coordinator_on_drafter(c, false, 30);
    assert_int_equal(td_coordinator_deadline_us(c), UINT64_MAX);
    td_action a = NEXT(c, TD_ACT_FORWARD);
    assert_int_equal(a.n_rows, 1);
    td_coordinator_on_draft(c, q, p.epoch, p.position, (uint32_t[]){1}, 1, 0, 40);
    assert_int_equal(td_coordinator_get_stats(c)->n_stale_drafts, 1);
    td_coordinator_on_drafter(c, true, 50);
    NEXT(c, TD_ACT_DRAFT_OPEN);
    assert_int_equal(NEXT(c, TD_ACT_DRAFT_FEED).n_tokens, 7);
    td_coordinator_on_drafter(c, true, 60); /* restarted: all anew */
    NEXT(c, TD_ACT_DRAFT_OPEN);
    assert_int_equal(NEXT(c, TD_ACT_DRAFT_FEED).n_tokens, 7);
    td_coordinator_on_verified(c, a.batch, (uint32_t[]){END}, NULL, 70);
    NEXT(c, TD_ACT_CLOSE);
    NEXT(c, TD_ACT_TOKENS);
    td_coordinator_on_drafter(c, false, 80); /* nobody to close it for */
    assert_int_equal(NEXT(c, TD_ACT_FINISH).reason, TD_REASON_EOS);
    const td_sequence_info *info = td_coordinator_get_info(c, q);
    assert_true(info->n_tokens == 3 && info->tokens[2] == END);
    assert_string_equal(info->text, "kl"); /* the end token has no text */
    td_coordinator_destroy(&c);
}

static void test_coordinator_cancelled_rows_do_not_reach_the_next_sequence(void **state)
{
    (void)state;
    td_coordinator_params params = params_of(1, 0);
    td_coordinator *c = create(&params);
    uint32_t first = add(c, 50, 0);
    prefill(c, 10);
    td_action in_flight = NEXT(c, TD_ACT_FORWARD);
    td_coordinator_cancel(c, first, 30);
    td_coordinator_cancel(c, first, 31);
    assert_int_equal(NEXT(c, TD_ACT_CANCEL).batch, in_flight.batch);
    NEXT(c, TD_ACT_CLOSE);
    NEXT(c, TD_ACT_FINISH);
    td_coordinator_remove(c, first);
    uint32_t second = add(c, 50, 40);
    assert_true(second != first);
    no_action(c); /* the old batch is still in flight */
    td_coordinator_on_verified(c, in_flight.batch, (uint32_t[]){77}, NULL, 50);
    assert_int_equal(td_coordinator_get_info(c, second)->n_tokens, 0);
    NEXT(c, TD_ACT_OPEN);
    td_action a = NEXT(c, TD_ACT_FORWARD);
    assert_true(a.is_prefill && a.rows[0].position == 0 && a.rows[0].sequence == second);
    td_coordinator_cancel(c, 12345, 60); /* unknown: nothing */
    td_coordinator_destroy(&c);
}

static void test_coordinator_cancelled_sequence_takes_no_more_tokens(void **state)
{
    (void)state;
    td_coordinator_params params = params_of(1, 0);
    td_coordinator *c = create(&params);
    uint32_t q = add(c, 50, 0);
    prefill(c, 10);
    td_action a = NEXT(c, TD_ACT_FORWARD);
    td_coordinator_cancel(c, q, 30);
    td_coordinator_on_verified(c, a.batch, (uint32_t[]){11}, NULL, 40);
    NEXT(c, TD_ACT_CLOSE);
    assert_int_equal(NEXT(c, TD_ACT_FINISH).reason, TD_REASON_CANCELLED);
    no_action(c);
    const td_sequence_info *info = td_coordinator_get_info(c, q);
    assert_true(info->n_tokens == 1 && info->finished_us == 30);
    td_coordinator_destroy(&c);
}

/* Four sequences, two rows: nobody is served twice while another waits. */
static void test_coordinator_serves_those_who_waited_first(void **state)
{
    (void)state;
    td_coordinator_params params = params_of(4, 0);
    params.verify_rows_max = 2;
    td_coordinator *c = create(&params);
    for (uint32_t i = 0; i < 4; ++i)
        add(c, 50, 0);
    uint32_t n_verified = 0, served = 0;
    td_action a;
    while (n_verified < 12 && td_coordinator_next(c, &a)) {
        if (a.kind != TD_ACT_FORWARD)
            continue;
        if (!a.is_prefill && td_coordinator_get_info(c, 3)->n_tokens > 0) { /* all decode */
            uint32_t now = 1u << a.rows[0].slot | 1u << a.rows[1].slot;
            assert_int_equal(a.n_rows, 2);
            assert_int_equal(served & now, 0);
            served = (served | now) == 0xf ? 0 : served | now;
            ++n_verified;
        }
        td_coordinator_on_verified(c, a.batch, (uint32_t[]){10, 11}, NULL, 0);
    }
    assert_int_equal(n_verified, 12);
    td_coordinator_destroy(&c);
}

static void test_coordinator_cancel_before_open_says_nothing_to_the_target(void **state)
{
    (void)state;
    td_coordinator_params params = params_of(1, 4);
    td_coordinator *c = create(&params);
    td_coordinator_on_drafter(c, true, 0);
    uint32_t q = add(c, 50, 0);
    td_coordinator_cancel(c, q, 0);
    NEXT(c, TD_ACT_FINISH);
    no_action(c);
    td_coordinator_destroy(&c);
}

/* Takes a new sequence whose prompt is n times `token` to its first token, the target's work done
 * at once. Returns how much of the prompt was taken over. */
static uint32_t begin_like(td_coordinator *c, uint32_t token, uint32_t *sequence)
{
    uint32_t ids[9], n_shared = 0;
    for (uint32_t i = 0; i < TD_COUNT(ids); ++i)
        ids[i] = token;
    assert_true(td_coordinator_add(
        c, &(td_sequence_params){.prompt = ids, .n_prompt = TD_COUNT(ids), .n_predict = 50}, 0,
        sequence, NULL));
    td_action a = {0};
    while (a.kind != TD_ACT_TOKENS || a.sequence != *sequence) {
        assert_true(td_coordinator_next(c, &a));
        if (a.kind == TD_ACT_OPEN)
            n_shared = a.length;
        if (a.kind == TD_ACT_FORWARD)
            td_coordinator_on_verified(c, a.batch, (uint32_t[]){token, token}, NULL, 0);
    }
    return n_shared;
}

static void end(td_coordinator *c, uint32_t sequence)
{
    td_coordinator_cancel(c, sequence, 0);
    for (td_action a = {0}; a.kind != TD_ACT_FINISH;) {
        assert_true(td_coordinator_next(c, &a));
        if (a.kind == TD_ACT_FORWARD) /* of others */
            td_coordinator_on_verified(c, a.batch, (uint32_t[]){0, 0}, NULL, 0);
    }
    td_coordinator_remove(c, sequence);
}

/* What ended last is kept, although it began first: when a slot is chosen for a new prompt, and
 * when pages are wanted for one. */
static void test_coordinator_keeps_the_prefix_that_ended_last(void **state)
{
    (void)state;
    for (uint32_t is_by_pages = 0; is_by_pages < 2; ++is_by_pages) {
        td_coordinator_params params = params_of(2 + is_by_pages, 0);
        params.can_share = true;
        params.page_positions = 4;
        params.n_pages = is_by_pages ? 33 : 0; /* a sequence of 59 takes 15, what stays of it 3 */
        td_coordinator *c = create(&params);
        uint32_t q[2], other;
        begin_like(c, 1, &q[0]);
        begin_like(c, 2, &q[1]);
        end(c, q[1]);
        end(c, q[0]);
        assert_int_equal(begin_like(c, 3, &other), 0);
        assert_int_equal(begin_like(c, 1, &q[0]), 8);
        td_coordinator_destroy(&c);
    }
}

/* Three sequences of 65 positions, and room for one and a half of them once the target was lost:
 * one after another gets the tokens that were still wanted. A token is its position's number. */
static void test_coordinator_goes_on_with_fewer_pages(void **state)
{
    (void)state;
    td_coordinator_params params = params_of(3, 0);
    params.page_positions = 4;
    td_coordinator *c = create(&params);
    uint32_t n_tokens[3] = {0}, n_open = 0, n_finished = 0;
    bool is_lost = false;
    td_action a;
    for (uint32_t i = 0; i < 3; ++i)
        add(c, 60, 0);
    while (n_finished < 3) {
        assert_true(td_coordinator_next(c, &a));
        n_open += a.kind == TD_ACT_OPEN;
        if (a.kind == TD_ACT_CLOSE)
            --n_open;
        assert_true(!is_lost || n_open <= 1);
        if (a.kind == TD_ACT_TOKENS)
            for (uint32_t i = 0; i < a.n_tokens; ++i, ++n_tokens[a.sequence])
                assert_int_equal(a.tokens[i], 5 + n_tokens[a.sequence]);
        n_finished += a.kind == TD_ACT_FINISH;
        if (a.kind != TD_ACT_FORWARD)
            continue;
        if (!is_lost && n_tokens[0] > 20) {
            td_coordinator_on_target_lost(c, 0);
            td_coordinator_set_pages(c, 25);
            is_lost = true;
            n_open = 0;
            continue;
        }
        uint32_t chosen[8], n = 0;
        for (uint32_t i = 0; i < a.n_rows; ++i)
            if (a.rows[i].is_output)
                chosen[n++] = a.rows[i].position + 1;
        td_coordinator_on_verified(c, a.batch, chosen, NULL, 0);
    }
    for (uint32_t i = 0; i < 3; ++i)
        assert_int_equal(n_tokens[i], 60);
    assert_int_equal(td_coordinator_get_stats(c)->n_waits, 2);
    td_coordinator_destroy(&c);
}

/* A prompt that is cancelled while chunks of it are under way, at every place where that can be:
 * what is taken over of it has been sent to the target, is never cancelled there, and is committed
 * before it is taken over, in the order of the one queue. */
static void test_coordinator_shares_of_a_cancelled_prompt_only_what_is_computed(void **state)
{
    (void)state;
    uint32_t ids[13] = {0}, n_shared_most = 0;
    for (uint32_t n_actions = 1; n_actions <= 8; ++n_actions) {
        td_coordinator_params params = params_of(2, 0);
        params.can_share = true;
        params.page_positions = 4;
        params.n_batches_max = 3;
        td_coordinator *c = create(&params);
        td_sequence_params begun = {.prompt = ids, .n_prompt = TD_COUNT(ids), .n_predict = 5};
        uint64_t in_flight[3];
        uint32_t q[2], n_in_flight = 0, n_sent = 0, n_committed = 0;
        td_action a = {0};
        assert_true(td_coordinator_add(c, &begun, 0, &q[0], NULL));
        for (uint32_t i = 0;; ++i) {
            if (i == n_actions) {
                td_coordinator_cancel(c, q[0], 0);
                assert_true(td_coordinator_add(c, &begun, 0, &q[1], NULL));
            }
            if (!td_coordinator_next(c, &a)) { /* the oldest batch is answered */
                assert_true(n_in_flight > 0);
                td_coordinator_on_verified(c, in_flight[0], (uint32_t[]){7}, NULL, 0);
                memmove(in_flight, in_flight + 1, --n_in_flight * sizeof *in_flight);
                continue;
            }
            assert_int_not_equal(a.kind, TD_ACT_CANCEL);
            assert_false(a.kind == TD_ACT_CLOSE && n_sent > 0);
            if (a.kind == TD_ACT_OPEN && i >= n_actions)
                break;
            if (a.kind == TD_ACT_FORWARD) {
                in_flight[n_in_flight++] = a.batch;
                n_sent = a.rows[a.n_rows - 1].position + 1;
            } else if (a.kind == TD_ACT_COMMIT) {
                assert_true(a.length <= n_sent);
                n_committed = a.length;
            }
        }
        assert_int_equal(a.sequence, q[1]);
        assert_true(a.length <= n_committed);
        assert_true(a.length == 0 || a.from_slot != a.slot);
        n_shared_most = td_max_u32(n_shared_most, a.length);
        td_coordinator_destroy(&c);
    }
    assert_int_equal(n_shared_most, 12); /* of 13, the last of which is always run */
}

static void test_coordinator_alternates_prompts_and_rounds(void **state)
{
    (void)state;
    td_coordinator_params params = params_of(2, 0);
    params.prefill_rows = 1;
    td_coordinator *c = create(&params);
    add(c, 50, 0);
    NEXT(c, TD_ACT_OPEN);
    for (uint32_t i = 0; i < 5; ++i) {
        td_action a = NEXT(c, TD_ACT_FORWARD);
        NEXT(c, TD_ACT_COMMIT);
        td_coordinator_on_verified(c, a.batch, (uint32_t[]){9}, NULL, i);
    }
    NEXT(c, TD_ACT_TOKENS);
    add(c, 50, 10);
    for (uint32_t i = 0; i < 10; ++i) { /* five prompt rows among five rounds */
        if (i == 1)
            NEXT(c, TD_ACT_OPEN);
        td_action a = NEXT(c, TD_ACT_FORWARD);
        assert_int_equal(a.is_prefill, i % 2);
        if (a.is_prefill)
            NEXT(c, TD_ACT_COMMIT);
        td_coordinator_on_verified(c, a.batch, (uint32_t[]){9}, NULL, 20 + i);
        if (!a.is_prefill)
            NEXT(c, TD_ACT_COMMIT);
        if (!a.is_prefill || i == 9)
            NEXT(c, TD_ACT_TOKENS);
    }
    td_coordinator_destroy(&c);
}

/* Where lengths are chosen nothing is said to the drafter until plain rounds have been timed. */
static void test_coordinator_begins_in_silence(void **state)
{
    (void)state;
    td_coordinator_params params = params_of(1, 4);
    params.is_draft_fixed = false;
    params.is_one_unit = true;
    td_coordinator *c = create(&params);
    td_coordinator_on_drafter(c, true, 0);
    add(c, 90, 0);
    uint64_t now_us = 0;
    uint32_t n_rounds = 0;
    bool is_told = false;
    for (td_action a; n_rounds < 80 && !is_told && td_coordinator_next(c, &a);) {
        is_told = a.kind >= TD_ACT_DRAFT_OPEN && a.kind <= TD_ACT_DRAFT_CLOSE;
        if (a.kind != TD_ACT_FORWARD)
            continue;
        ++n_rounds;
        now_us += 1000;
        td_coordinator_on_verified(c, a.batch, (uint32_t[]){9}, NULL, now_us);
    }
    assert_true(n_rounds > 20 && n_rounds == td_coordinator_get_stats(c)->n_batches);
    assert_true(!is_told || td_coordinator_get_stats(c)->n_trials == 1);
    td_coordinator_destroy(&c);
}

static void test_coordinator_feeds_long_prompts_in_pieces(void **state)
{
    (void)state;
    enum { n = 2 * TD_FEED_TOKENS_MAX + 1 };
    static uint32_t long_prompt[n];
    for (uint32_t i = 0; i < n; ++i)
        long_prompt[i] = i % N_VOCAB;
    td_coordinator_params params = params_of(1, 4);
    params.n_ctx = n + 10;
    td_coordinator *c = create(&params);
    td_coordinator_on_drafter(c, true, 0);
    uint32_t q;
    assert_true(td_coordinator_add(
        c, &(td_sequence_params){.prompt = long_prompt, .n_prompt = n, .n_predict = 5}, 0, &q,
        NULL));
    NEXT(c, TD_ACT_DRAFT_OPEN);
    for (uint32_t at = 0; at < n;) {
        td_action a = NEXT(c, TD_ACT_DRAFT_FEED);
        assert_true(a.position == at && a.n_tokens <= TD_FEED_TOKENS_MAX);
        assert_memory_equal(a.tokens, long_prompt + at, a.n_tokens * sizeof(uint32_t));
        at += a.n_tokens;
    }
    NEXT(c, TD_ACT_OPEN);
    NEXT(c, TD_ACT_FORWARD);
    td_coordinator_destroy(&c);
}

static void check_stop(const char *const *stops, uint32_t n_stops, const char *text,
                       const char *expected, uint32_t n_expected_tokens)
{
    td_coordinator_params params = params_of(1, 0);
    td_coordinator *c = create(&params);
    td_sequence_params p = {
        .prompt = prompt, .n_prompt = 5, .n_stops = n_stops, .n_predict = (uint32_t)strlen(text)};
    for (uint32_t j = 0; j < n_stops; ++j)
        p.stops[j] = stops[j];
    uint32_t q, i = 0;
    assert_true(td_coordinator_add(c, &p, 0, &q, NULL));
    td_action a;
    while (td_coordinator_next(c, &a))
        if (a.kind == TD_ACT_FORWARD)
            td_coordinator_on_verified(
                c, a.batch, a.n_out ? (uint32_t[]){(uint32_t)(text[i++] - 'a')} : NULL, NULL, 0);
    const td_sequence_info *info = td_coordinator_get_info(c, q);
    assert_string_equal(info->text, expected);
    assert_int_equal(info->n_text, strlen(expected));
    assert_int_equal(info->n_tokens, n_expected_tokens);
    assert_int_equal(info->reason, strlen(text) == n_expected_tokens && !strcmp(text, expected)
                                       ? TD_REASON_LENGTH
                                       : TD_REASON_STOP);
    td_coordinator_destroy(&c);
}

static void test_coordinator_stop_strings(void **state)
{
    (void)state;
    check_stop((const char *[]){"xyz"}, 1, "abxyxyzq", "abxy", 7);
    check_stop((const char *[]){"aab"}, 1, "aaaabc", "aa", 5);
    check_stop((const char *[]){"abab", "b"}, 2, "ababc", "a", 2); /* complete first */
    check_stop((const char *[]){"b", "cab"}, 2, "xcabq", "x", 4);  /* longer of two */
    check_stop((const char *[]){"cab", "b"}, 2, "xcabq", "x", 4);
    check_stop((const char *[]){"abcd"}, 1, "abcabcabd", "abcabcabd", 9); /* never complete */
    check_stop((const char *[]){"z"}, 1, "abz", "ab", 3); /* by the last token: stop, not length */
    check_stop((const char *[]){"a"}, 1, "abc", "", 1);
    check_stop(NULL, 0, "abc", "abc", 3);
}

/* Random strings over two letters against a search from scratch at every byte. */
static void test_stops_match_naive_search(void **state)
{
    (void)state;
    uint64_t r = 1;
    for (int trial = 0; trial < 300; ++trial) {
        char strings[4][16] = {{0}}, text[200];
        const char *pointers[4];
        for (int i = 0; i < 4; ++i) {
            r = r * 6364136223846793005u + 1442695040888963407u;
            int n = 1 + (int)((r >> 33) % 12);
            for (int j = 0; j < n; ++j)
                strings[i][j] = "ab"[r >> (40 + j) & 1];
            pointers[i] = strings[i];
        }
        td_arena *arena = td_arena_create(NULL);
        td_stops *stops = td_stops_create(arena, pointers, 4, NULL);
        assert_non_null(stops);
        for (uint32_t n = 1; n <= sizeof(text); ++n) {
            r = r * 6364136223846793005u + 1442695040888963407u;
            text[n - 1] = "ab"[r >> 50 & 1];
            uint32_t longest = 0;
            for (int i = 0; i < 4; ++i) {
                uint32_t m = (uint32_t)strlen(strings[i]);
                if (m <= n && m > longest && !memcmp(text + n - m, strings[i], m))
                    longest = m;
            }
            assert_int_equal(td_stops_push(stops, text[n - 1]), longest);
        }
        td_arena_destroy(&arena);
    }
}

static void test_coordinator_refuses_bad_sequences(void **state)
{
    (void)state;
    td_coordinator_params params = params_of(1, 4);
    td_coordinator *c = create(&params);
    static char long_stop[TD_STOP_BYTES_MAX + 2];
    memset(long_stop, 'x', TD_STOP_BYTES_MAX + 1);
    static uint32_t ids[100];
    static const uint32_t beyond[] = {1, N_VOCAB};
    const struct {
        td_sequence_params params;
        const char *hint;
    } cases[] = {
        {{.prompt = ids, .n_prompt = 0, .n_predict = 1}, "1..99"},
        {{.prompt = ids, .n_prompt = 100, .n_predict = 1}, "100 tokens"},
        {{.prompt = ids, .n_prompt = 9, .n_predict = 0}, "generate"},
        {{.prompt = beyond, .n_prompt = 2, .n_predict = 1}, "token 1 is 100"},
        {{.prompt = ids, .n_prompt = 9, .n_predict = 1, .n_stops = 1, .stops = {""}}, "empty"},
        {{.prompt = ids, .n_prompt = 9, .n_predict = 1, .n_stops = 2, .stops = {"a", long_stop}},
         "string 1 is too long"},
        {{.prompt = ids, .n_prompt = 9, .n_predict = 1, .n_stops = TD_STOPS_MAX + 1}, "0..16"},
    };
    uint32_t q;
    for (size_t i = 0; i < TD_COUNT(cases); ++i) {
        td_err err = {0};
        assert_false(td_coordinator_add(c, &cases[i].params, 0, &q, &err));
        assert_int_equal(err.code, TD_E_DATA);
        assert_non_null(strstr(err.message, cases[i].hint));
        assert_int_equal(td_coordinator_n_free(c), 1);
        no_action(c);
    }
    add(c, UINT32_MAX, 0); /* bounded by the context */
    td_err err = {0};
    assert_false(td_coordinator_add(c, &cases[0].params, 0, &q, &err));
    assert_int_equal(err.code, TD_E_AGAIN);
    td_coordinator_destroy(&c);
}

static const char *huge_token(void *user, uint32_t id, size_t *n_bytes)
{
    (void)user;
    *n_bytes = id == 50 ? TD_TOKEN_BYTES_MAX + 1 : 1;
    return "";
}

static void test_coordinator_refuses_bad_parameters(void **state)
{
    (void)state;
    const td_coordinator_params good = params_of(2, 4);
    td_coordinator_params bad[9];
    for (size_t i = 0; i < TD_COUNT(bad); ++i)
        bad[i] = good;
    bad[0].n_slots = 0;
    bad[1].n_slots = TD_SEQUENCES_MAX + 1;
    bad[2].n_ctx = 1;
    bad[3].draft_max = TD_DRAFT_MAX + 1;
    bad[4].verify_rows_max = 0;
    bad[5].verify_rows_max = TD_VERIFY_ROWS_MAX + 1;
    bad[6].prefill_rows = 0;
    bad[7].prefill_rows = TD_BATCH_ROWS_MAX + 1;
    bad[8].n_vocab = 0;
    for (size_t i = 0; i < TD_COUNT(bad); ++i) {
        td_err err = {0};
        assert_null(td_coordinator_create(&bad[i], &err));
        assert_int_equal(err.code, TD_E_USAGE);
        assert_non_null(strstr(err.message, "allowed: "));
    }
    td_err err = {0};
    bad[0] = good;
    bad[0].token_bytes = huge_token;
    assert_null(td_coordinator_create(&bad[0], &err));
    assert_int_equal(err.code, TD_E_DATA);
    assert_non_null(strstr(err.message, "token 50"));
}

static void test_coordinator_survives_no_memory(void **state)
{
    (void)state;
    td_coordinator_params params = params_of(1, 4);
    td_err err = {0};
    td_alloc_fail_at(1);
    assert_null(td_coordinator_create(&params, &err));
    assert_int_equal(err.code, TD_E_NOMEM);
    td_alloc_fail_at(0);
    params.n_ctx = 100000; /* more than one block of the arena */
    td_coordinator *c = create(&params);
    td_sequence_params p = {
        .prompt = prompt, .n_prompt = 5, .n_predict = 99000, .n_stops = 2, .stops = {"a", "b"}};
    uint32_t q;
    bool is_added = false;
    uint64_t n = 0;
    while (!is_added) {
        td_err_clear(&err);
        td_alloc_fail_at(++n);
        is_added = td_coordinator_add(c, &p, 0, &q, &err);
        td_alloc_fail_at(0);
        assert_int_equal(err.code, is_added ? TD_OK : TD_E_NOMEM);
    }
    assert_true(n > 3);
    prefill(c, 3);
    td_coordinator_destroy(&c);
    td_coordinator_destroy(&c);
}

static void test_reasons_have_names(void **state)
{
    (void)state;
    assert_string_equal(td_reason_name(TD_REASON_EOS), "eos");
    assert_string_equal(td_reason_name(TD_REASON_STOP), "stop");
    assert_string_equal(td_reason_name(TD_REASON_LENGTH), "length");
    assert_string_equal(td_reason_name(TD_REASON_CONTEXT), "context");
    assert_string_equal(td_reason_name(TD_REASON_CANCELLED), "cancelled");
}

/* Performs actions until a batch is to be run, and answers that. */
static td_action run_batch(td_coordinator *c, td_row *rows)
{
    static const uint32_t chosen[64] = {7, 8};
    td_action a, forward = {0};
    while (td_coordinator_next(c, &a))
        if (a.kind == TD_ACT_FORWARD) {
            forward = a;
            memcpy(rows, a.rows, a.n_rows * sizeof *rows);
        }
    assert_int_equal(forward.kind, TD_ACT_FORWARD);
    td_coordinator_on_verified(c, forward.batch, chosen, NULL, 10);
    return forward;
}

/* After a loss the oldest sequence goes alone as far as a token. Then what the others had generated
 * is computed again in batches of all of them, once their prompts are there. */
static void test_a_replay_fills_its_batches_over_sequences(void **state)
{
    (void)state;
    enum { N = 4 };
    td_coordinator_params params = params_of(N, 3);
    params.prefill_rows = 8;
    td_coordinator *c = create(&params);
    td_row rows[64];
    uint32_t ids[N], n_rows = 0, n_done = 0;
    for (uint32_t i = 0; i < N; i++)
        ids[i] = add(c, 50, 0);
    while (td_coordinator_get_info(c, ids[N - 1])->n_tokens < 4)
        run_batch(c, rows);
    td_coordinator_on_target_lost(c, 10);
    for (uint32_t i = 1; i < N; i++)
        n_rows += td_coordinator_get_info(c, ids[i])->n_tokens - 1; /* the last one was not run */
    uint32_t n_first = td_coordinator_get_info(c, ids[0])->n_tokens - 1;
    td_action a = run_batch(c, rows);
    assert_true(a.is_prefill && a.n_rows == 5 && rows[0].sequence == ids[0]);
    a = run_batch(c, rows);
    assert_true(!a.is_prefill && a.n_rows == n_first && a.n_out == 0);
    a = run_batch(c, rows);
    assert_true(!a.is_prefill && a.n_rows == 1 && a.n_out == 1 && rows[0].sequence == ids[0]);
    do
        a = run_batch(c, rows);
    while (a.is_prefill || a.n_out > 0);
    assert_int_equal(a.n_rows, n_rows);
    for (uint32_t i = 0; i < n_rows; i++) {
        bool is_next = i > 0 && rows[i].sequence == rows[i - 1].sequence;
        assert_int_equal(rows[i].position, is_next ? rows[i - 1].position + 1 : 5);
        n_done += !is_next;
    }
    assert_int_equal(n_done, N - 1);
    a = run_batch(c, rows);
    assert_true(!a.is_prefill && a.n_rows == N && a.n_out == N);
    td_coordinator_destroy(&c);
}

/* A target that is lost as every n_batches-th batch is begun, with so many in flight. */
static void run_with_losses(uint32_t n_batches, uint32_t n_batches_max)
{
    enum { N = 4, N_PREDICT = 12 };
    static const uint32_t chosen[64] = {7};
    td_coordinator_params params = params_of(N, 0);
    params.prefill_rows = 8;
    params.n_batches_max = n_batches_max;
    td_coordinator *c = create(&params);
    uint64_t in_flight[TD_BATCHES_MAX];
    uint32_t n_in_flight = 0, n_begun = 0, n_ended = 0;
    for (uint32_t i = 0; i < N; i++)
        add(c, N_PREDICT, 0);
    while (n_ended < N) {
        td_action a;
        if (!td_coordinator_next(c, &a)) {
            assert_true(n_in_flight > 0);
            td_coordinator_on_verified(c, in_flight[0], chosen, NULL, 10);
            memmove(in_flight, in_flight + 1, --n_in_flight * sizeof *in_flight);
            continue;
        }
        n_ended += a.kind == TD_ACT_FINISH;
        if (a.kind != TD_ACT_FORWARD)
            continue;
        in_flight[n_in_flight++] = a.batch;
        if (++n_begun < n_batches)
            continue;
        td_coordinator_on_target_lost(c, 10);
        n_begun = n_in_flight = 0;
        if (td_coordinator_get_stats(c)->n_target_losses > N * N_PREDICT)
            fail_msg("lost every %u batches, %u in flight: nothing is done between", n_batches,
                     n_batches_max);
    }
    td_coordinator_destroy(&c);
}

/* A prompt, what was generated behind it, a row that is answered: with room for as many there is
 * a token between two losses. */
static void test_a_target_that_is_lost_again_and_again_gets_on(void **state)
{
    (void)state;
    for (uint32_t n_batches_max = 1; n_batches_max <= 3; n_batches_max++)
        for (uint32_t n_batches = 3 + n_batches_max; n_batches <= 12; n_batches++)
            run_with_losses(n_batches, n_batches_max);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_coordinator_round_in_order),
        cmocka_unit_test(test_a_replay_fills_its_batches_over_sequences),
        cmocka_unit_test(test_a_target_that_is_lost_again_and_again_gets_on),
        cmocka_unit_test(test_coordinator_drops_and_counts_bad_drafts),
        cmocka_unit_test(test_coordinator_silence_mutes_until_an_answer),
        cmocka_unit_test(test_coordinator_far_silence_has_a_deadline),
        cmocka_unit_test(test_coordinator_lost_drafter_leaves_plain_decoding),
        cmocka_unit_test(test_coordinator_cancelled_rows_do_not_reach_the_next_sequence),
        cmocka_unit_test(test_coordinator_cancelled_sequence_takes_no_more_tokens),
        cmocka_unit_test(test_coordinator_serves_those_who_waited_first),
        cmocka_unit_test(test_coordinator_cancel_before_open_says_nothing_to_the_target),
        cmocka_unit_test(test_coordinator_keeps_the_prefix_that_ended_last),
        cmocka_unit_test(test_coordinator_goes_on_with_fewer_pages),
        cmocka_unit_test(test_coordinator_shares_of_a_cancelled_prompt_only_what_is_computed),
        cmocka_unit_test(test_coordinator_alternates_prompts_and_rounds),
        cmocka_unit_test(test_coordinator_begins_in_silence),
        cmocka_unit_test(test_coordinator_feeds_long_prompts_in_pieces),
        cmocka_unit_test(test_coordinator_stop_strings),
        cmocka_unit_test(test_stops_match_naive_search),
        cmocka_unit_test(test_coordinator_refuses_bad_sequences),
        cmocka_unit_test(test_coordinator_refuses_bad_parameters),
        cmocka_unit_test(test_coordinator_survives_no_memory),
        cmocka_unit_test(test_reasons_have_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
