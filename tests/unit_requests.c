/* Requests: what comes in is worked off in order within a sequence, proposals of different
 * sequences together; each is answered once; what is overtaken is not computed; and nothing that a
 * peer can say makes it hold more than its bound. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/check.h"
#include "base/mem.h"
#include "draft/requests.h"

#include "dies.h"

#include <string.h>

static td_requests *in;
static td_work work;

static void put_open(uint32_t sequence)
{
    td_requests_put(in, &(td_wire_msg){.type = TD_WIRE_OPEN, .open = {.sequence = sequence}});
}

static void put_close(uint32_t sequence)
{
    td_requests_put(in, &(td_wire_msg){.type = TD_WIRE_CLOSE, .close = {sequence}});
}

static void put_feed(uint32_t sequence, uint32_t epoch, uint32_t position, uint32_t n)
{
    static uint32_t ids[TD_WIRE_IDS_MAX];
    for (uint32_t i = 0; i < n; i++)
        ids[i] = position + i;
    td_requests_put(
        in, &(td_wire_msg){.type = TD_WIRE_FEED, .feed = {sequence, epoch, position, n, ids}});
    memset(ids, 0xff, n * sizeof *ids); /* it was copied */
}

static void put_propose(uint32_t sequence, uint32_t epoch, uint32_t position, uint32_t k)
{
    td_requests_put(
        in, &(td_wire_msg){.type = TD_WIRE_PROPOSE, .propose = {sequence, epoch, position, k}});
}

/* The next work is of a kind; false for none. */
static void next_is(td_work_kind kind)
{
    assert_true(td_requests_next(in, &work));
    assert_int_equal(work.kind, kind);
}

static void next_is_message(td_wire_type type, uint32_t sequence)
{
    next_is(TD_WORK_MESSAGE);
    assert_int_equal(work.message->type, type);
    uint32_t seen = type == TD_WIRE_OPEN   ? work.message->open.sequence
                    : type == TD_WIRE_FEED ? work.message->feed.sequence
                                           : work.message->close.sequence;
    assert_int_equal(seen, sequence);
    td_requests_done(in);
}

static void next_begins(uint32_t sequence, uint32_t position)
{
    next_is(TD_WORK_BEGIN);
    assert_int_equal(work.n_jobs, 1);
    assert_int_equal(work.jobs[0]->sequence, sequence);
    assert_int_equal(work.jobs[0]->position, position);
    assert_int_equal(work.jobs[0]->n, 0);
    assert_false(work.jobs[0]->is_done);
    td_requests_done(in);
}

/* One token for every proposal under way: its position. */
static void step(uint32_t n_jobs)
{
    next_is(TD_WORK_STEP);
    assert_int_equal(work.n_jobs, n_jobs);
    for (uint32_t i = 0; i < n_jobs; i++) {
        td_proposal *p = work.jobs[i];
        p->ids[p->n] = p->position + p->n;
        p->is_done = ++p->n == p->k;
        p->busy_us += 10;
    }
    td_requests_done(in);
}

static void nothing_to_do(void)
{
    assert_false(td_requests_next(in, &work));
    assert_int_equal(td_requests_n_waiting(in), 0);
}

static void answer_is(uint32_t sequence, uint32_t epoch, uint32_t position, uint32_t n)
{
    const td_proposal *p = td_requests_answer(in);
    assert_non_null(p);
    assert_int_equal(p->sequence, sequence);
    assert_int_equal(p->epoch, epoch);
    assert_int_equal(p->position, position);
    assert_int_equal(p->n, n);
    assert_int_equal(p->busy_us, 10 * n);
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(p->ids[i], position + i);
    td_requests_pop(in);
}

static void no_answer(void) { assert_null(td_requests_answer(in)); }

/* -- order ------------------------------------------------------------------------------------- */

static void test_one_sequence_in_order(void **state)
{
    (void)state;
    put_open(7);
    put_feed(7, 1, 0, 3);
    put_propose(7, 1, 3, 2);
    put_propose(7, 1, 5, 1); /* ahead */
    put_feed(7, 1, 3, 2);    /* of the same epoch: both stay wanted */
    put_close(8);
    next_is_message(TD_WIRE_OPEN, 7);
    next_is(TD_WORK_MESSAGE);
    assert_int_equal(work.message->feed.n, 3);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(work.message->feed.ids[i], i);
    td_requests_done(in);
    next_begins(7, 3);
    next_is_message(TD_WIRE_CLOSE, 8); /* nobody else's turn is waited for */
    step(1);
    no_answer();
    step(1);
    answer_is(7, 1, 3, 2);
    next_begins(7, 5);
    step(1);
    answer_is(7, 1, 5, 1);
    next_is_message(TD_WIRE_FEED, 7);
    nothing_to_do();
    no_answer();
}

static void test_proposals_of_all_sequences_go_together(void **state)
{
    (void)state;
    for (uint32_t q = 0; q < 3; q++)
        put_propose(q, 1, 10, 3 - q);
    put_propose(1, 1, 12, 1);
    for (uint32_t q = 0; q < 3; q++)
        next_begins(q, 10);
    step(3);
    answer_is(2, 1, 10, 1); /* at once, though others go on */
    put_propose(3, 1, 10, 1);
    next_begins(3, 10); /* joins between two steps */
    step(3);
    answer_is(1, 1, 10, 2);
    answer_is(3, 1, 10, 1);
    next_begins(1, 12);
    step(2);
    answer_is(0, 1, 10, 3);
    answer_is(1, 1, 12, 1);
    nothing_to_do();
}

static void test_done_at_once_is_answered_at_once(void **state)
{
    (void)state;
    put_propose(1, 4, 9, 300); /* more than an answer takes */
    put_propose(1, 4, 9, 5);
    next_is(TD_WORK_BEGIN);
    assert_int_equal(work.jobs[0]->k, TD_WIRE_DRAFT_MAX);
    work.jobs[0]->is_done = true;
    td_requests_done(in);
    answer_is(1, 4, 9, 0);
    next_begins(1, 9);
    for (uint32_t i = 0; i < 5; i++)
        step(1);
    answer_is(1, 4, 9, 5);
    nothing_to_do();
}

/* -- overtaking -------------------------------------------------------------------------------- */

static void test_another_epoch_overtakes(void **state)
{
    (void)state;
    put_propose(1, 5, 20, 4);
    put_propose(1, 5, 24, 4);
    put_propose(2, 5, 20, 2);
    next_begins(1, 20);
    next_begins(2, 20);
    step(2);
    put_feed(1, 6, 21, 1); /* the text went another way */
    put_propose(1, 6, 22, 1);
    next_is_message(TD_WIRE_FEED, 1); /* at once */
    answer_is(1, 5, 20, 1);
    answer_is(1, 5, 24, 0);
    next_begins(1, 22);
    step(2);
    answer_is(2, 5, 20, 2);
    answer_is(1, 6, 22, 1);
    nothing_to_do();
}

/* The answer to a round's last row was another than its guess: the epoch stays. */
static void test_other_tokens_than_those_found_overtake(void **state)
{
    (void)state;
    const uint32_t other = 999;
    put_propose(1, 5, 20, 4);
    next_begins(1, 20);
    step(1);
    put_feed(1, 5, 18, 4); /* 18..21: as found, as far as it was */
    step(1);
    td_requests_put(
        in, &(td_wire_msg){.type = TD_WIRE_FEED, .feed = {1, 5, 22, 1, &other}}); /* not yet */
    step(1);
    next_is_message(TD_WIRE_FEED, 1); /* now it is known to be wrong */
    answer_is(1, 5, 20, 3);
    next_is_message(TD_WIRE_FEED, 1);
    put_propose(1, 5, 23, 1);
    put_propose(2, 5, 22, 2);
    next_begins(1, 23);
    next_begins(2, 22);
    td_requests_put(in, &(td_wire_msg){.type = TD_WIRE_FEED, .feed = {1, 5, 22, 1, &other}});
    step(2); /* of another sequence, or before what it found: nothing */
    answer_is(1, 5, 23, 1);
    next_is_message(TD_WIRE_FEED, 1);
    step(1);
    answer_is(2, 5, 22, 2);
    nothing_to_do();
}

static void put_goes_on(uint32_t sequence, uint32_t epoch, uint32_t position, uint32_t k)
{
    td_requests_put(in, &(td_wire_msg){.type = TD_WIRE_PROPOSE,
                                       .propose = {sequence, epoch, position, k, true}});
}

/* Asked for long before it is due: tokens that are told come before it, whatever has been found. */
static void test_what_goes_on_makes_way_for_what_is_told(void **state)
{
    (void)state;
    put_goes_on(1, 5, 20, 2);
    put_goes_on(1, 5, 22, 2);
    put_goes_on(1, 5, 24, 2);
    next_begins(1, 20);
    step(1);
    put_feed(1, 5, 19, 1);
    put_feed(1, 5, 20, 1); /* before those that wait, in their own order */
    put_propose(2, 5, 7, 1);
    next_is(TD_WORK_MESSAGE);
    assert_int_equal(work.message->feed.position, 19);
    td_requests_done(in);
    next_is(TD_WORK_MESSAGE);
    assert_int_equal(work.message->feed.position, 20);
    td_requests_done(in);
    no_answer();
    next_is(TD_WORK_BEGIN); /* again: it finds what still holds, and begins where it must */
    assert_int_equal(work.jobs[0]->sequence, 1);
    assert_int_equal(work.jobs[0]->n, 0);
    work.jobs[0]->position = 19;
    work.jobs[0]->ids[0] = 19;
    work.jobs[0]->n = 1;
    td_requests_done(in);
    next_begins(2, 7);
    step(2);
    const td_proposal *p = td_requests_answer(in);
    assert_non_null(p);
    assert_int_equal(p->position, 19);
    assert_int_equal(p->n, 2);
    td_requests_pop(in);
    answer_is(2, 5, 7, 1);
    put_feed(1, 6, 21, 1); /* of another epoch: they are overtaken all the same */
    next_is_message(TD_WIRE_FEED, 1);
    answer_is(1, 5, 22, 0);
    answer_is(1, 5, 24, 0);
    nothing_to_do();
}

static void test_a_proposal_of_another_epoch_overtakes_too(void **state)
{
    (void)state;
    put_propose(1, 5, 20, 4);
    put_propose(1, 4, 20, 2); /* another, not a higher one */
    next_begins(1, 20);
    answer_is(1, 5, 20, 0);
    step(1);
    step(1);
    answer_is(1, 4, 20, 2);
    nothing_to_do();
}

static void test_open_and_close_overtake(void **state)
{
    (void)state;
    put_propose(1, 5, 20, 4);
    put_propose(2, 5, 20, 4);
    put_propose(2, 5, 24, 4);
    next_begins(1, 20);
    next_begins(2, 20);
    put_open(1);
    put_close(2);
    put_propose(1, 5, 1, 1); /* of the new one: the same epoch means nothing here */
    next_is_message(TD_WIRE_OPEN, 1);
    next_is_message(TD_WIRE_CLOSE, 2);
    next_begins(1, 1);
    answer_is(1, 5, 20, 0);
    answer_is(2, 5, 20, 0);
    answer_is(2, 5, 24, 0);
    step(1);
    answer_is(1, 5, 1, 1);
    nothing_to_do();
}

static void test_overtaken_in_the_middle_of_a_step(void **state)
{
    (void)state;
    put_propose(1, 5, 20, 4);
    next_begins(1, 20);
    next_is(TD_WORK_STEP);
    put_feed(1, 6, 20, 1);
    work.jobs[0]->ids[0] = 20;
    work.jobs[0]->n = 1;
    work.jobs[0]->busy_us = 10;
    td_requests_done(in);
    no_answer(); /* not before somebody asks what is next */
    next_is_message(TD_WIRE_FEED, 1);
    answer_is(1, 5, 20, 1);
    nothing_to_do();
}

/* -- resets ------------------------------------------------------------------------------------ */

static void test_a_reset_voids_everything(void **state)
{
    (void)state;
    for (int when = 0; when < 3; when++) { /* between works, in a step, in a message's work */
        put_propose(1, 5, 20, 1);
        put_propose(2, 5, 20, 2);
        next_begins(1, 20);
        next_begins(2, 20);
        step(2); /* an answer waits */
        put_feed(3, 1, 0, 2);
        put_feed(3, 1, 2, 2);
        put_propose(4, 1, 2, 2);
        if (when == 1) {
            next_is_message(TD_WIRE_FEED, 3);
            next_is_message(TD_WIRE_FEED, 3);
            next_begins(4, 2);
            next_is(TD_WORK_STEP);
        }
        if (when == 2)
            next_is(TD_WORK_MESSAGE);
        td_requests_reset(in);
        no_answer();
        put_open(9);
        if (when) {
            for (uint32_t i = 0; i < work.n_jobs; i++)
                work.jobs[i]->is_done = true;
            td_requests_done(in);
        }
        next_is(TD_WORK_RESET);
        td_requests_done(in);
        next_is_message(TD_WIRE_OPEN, 9);
        nothing_to_do();
        no_answer();
    }
    td_requests_reset(in); /* twice is once */
    td_requests_reset(in);
    next_is(TD_WORK_RESET);
    td_requests_reset(in); /* while the first is performed: once more */
    td_requests_done(in);
    next_is(TD_WORK_RESET);
    td_requests_done(in);
    nothing_to_do();
}

/* -- bounds ------------------------------------------------------------------------------------ */

static uint32_t fill(void (*one)(uint32_t i))
{
    uint32_t n = 0;
    for (; td_requests_has_room(in); n++)
        one(n);
    return n;
}

static void propose_of_one(uint32_t i) { put_propose(1, 1, i, 1); }
static void propose_of_many(uint32_t i) { put_propose(i, 1, i, 1); }
static void feed_of_one(uint32_t i) { put_feed(1, i, i, TD_WIRE_IDS_MAX); }
static void put_too_many(void *unused)
{
    (void)unused;
    put_close(1);
}

static void test_it_holds_its_bound_and_no_more(void **state)
{
    (void)state;
    assert_int_equal(fill(propose_of_one), TD_REQUESTS_MAX);
    assert_true(dies(put_too_many, NULL));
    for (uint32_t i = 0; i < TD_REQUESTS_MAX; i++) {
        next_begins(1, i);
        step(1);
        assert_false(td_requests_has_room(in)); /* an answer takes the place until it is sent */
    }
    nothing_to_do();
    for (uint32_t i = 0; i < TD_REQUESTS_MAX; i++)
        answer_is(1, 1, i, 1);
    assert_int_equal(fill(propose_of_many), TD_REQUESTS_MAX);
    for (uint32_t i = 0; i < TD_REQUESTS_MAX; i++)
        next_begins(i, i);
    step(TD_REQUESTS_MAX);
    for (uint32_t i = 0; i < TD_REQUESTS_MAX; i++)
        answer_is(i, 1, i, 1);
    assert_int_equal(fill(feed_of_one), TD_REQUESTS_MAX);
    td_requests_reset(in);
    assert_int_equal(fill(propose_of_one), TD_REQUESTS_MAX); /* before the reset is performed */
    td_requests_reset(in);
    next_is(TD_WORK_RESET);
    td_requests_done(in);
    nothing_to_do();
}

static void test_other_messages_are_passed_over(void **state)
{
    (void)state;
    static const td_wire_type types[] = {TD_WIRE_HELLO, TD_WIRE_DRAFT, TD_WIRE_PING, TD_WIRE_BYE,
                                         TD_WIRE_TYPE_END};
    for (size_t i = 0; i < TD_COUNT(types); i++)
        td_requests_put(in, &(td_wire_msg){.type = types[i]});
    nothing_to_do();
}

/* -- everything at random ---------------------------------------------------------------------- */

#define N_SEQUENCES 5u

typedef struct {
    uint32_t epoch, position;
    bool is_overtaken;
} asked;

/* Unanswered proposals of a sequence. */
static struct {
    asked items[TD_REQUESTS_MAX];
    uint32_t n;
} pending[N_SEQUENCES];

static uint64_t random_state = 11;

static uint32_t random_below(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % n;
}

static void overtake(uint32_t q, bool has_epoch, uint32_t epoch)
{
    for (uint32_t i = 0; i < pending[q].n; i++)
        if (!has_epoch || pending[q].items[i].epoch != epoch)
            pending[q].items[i].is_overtaken = true;
}

static void random_message(uint32_t serial)
{
    uint32_t q = random_below(N_SEQUENCES), epoch = random_below(12) ? 1 : 2;
    switch (random_below(6)) {
    case 0:
        overtake(q, true, epoch);
        put_feed(q, epoch, serial, 1 + random_below(5));
        break;
    case 1:
        overtake(q, false, 0);
        random_below(2) ? put_open(q) : put_close(q);
        break;
    default:
        overtake(q, true, epoch);
        put_propose(q, epoch, serial, 1 + random_below(4));
        pending[q].items[pending[q].n++] = (asked){epoch, serial, false};
    }
}

/* An answer is the oldest one's of its sequence, whole unless it was overtaken. */
static void take_answer(void)
{
    const td_proposal *p = td_requests_answer(in);
    if (!p)
        return;
    assert_in_range(p->sequence, 0, N_SEQUENCES - 1);
    assert_true(pending[p->sequence].n > 0);
    asked *a = pending[p->sequence].items;
    assert_int_equal(p->position, a->position);
    assert_int_equal(p->epoch, a->epoch);
    assert_true(a->is_overtaken || p->n == p->k);
    memmove(a, a + 1, --pending[p->sequence].n * sizeof *a);
    td_requests_pop(in);
}

static bool is_pending(const td_proposal *p)
{
    for (uint32_t i = 0; i < pending[p->sequence].n; i++)
        if (pending[p->sequence].items[i].position == p->position)
            return true;
    return false;
}

static void random_work(void)
{
    if (!td_requests_next(in, &work))
        return;
    bool is_seen[N_SEQUENCES] = {false};
    for (uint32_t i = 0; i < work.n_jobs; i++) {
        td_proposal *p = work.jobs[i];
        assert_false(is_seen[p->sequence]);
        is_seen[p->sequence] = true;
        assert_true(is_pending(p));
        if (work.kind != TD_WORK_STEP)
            continue;
        p->ids[p->n] = p->position + p->n; /* what a feed would say: nothing is contradicted */
        p->is_done = ++p->n == p->k;
    }
    if (work.kind == TD_WORK_RESET)
        memset(pending, 0, sizeof pending);
    td_requests_done(in);
}

static void test_every_proposal_is_answered_once_in_order(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 200000; i++) {
        uint32_t draw = random_below(100);
        if (draw < 30 && td_requests_has_room(in))
            random_message(i);
        else if (draw < 80)
            random_work();
        else
            take_answer();
    }
    while (td_requests_n_waiting(in) || td_requests_answer(in)) {
        random_work();
        take_answer();
    }
    for (uint32_t q = 0; q < N_SEQUENCES; q++)
        assert_int_equal(pending[q].n, 0);
}

static void test_create_survives_every_failing_allocation(void **state)
{
    (void)state;
    for (uint64_t n = 1; n <= 2; n++) {
        td_err err = {0};
        td_alloc_fail_at(n);
        assert_null(td_requests_create(&err));
        td_alloc_fail_at(0);
        assert_int_equal(err.code, TD_E_NOMEM);
    }
}

static int set_up(void **state)
{
    (void)state;
    td_err err = {0};
    in = td_requests_create(&err);
    return !in;
}

static int tear_down(void **state)
{
    (void)state;
    td_requests_destroy(&in);
    return in != NULL;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_one_sequence_in_order),
        TEST(test_proposals_of_all_sequences_go_together),
        TEST(test_done_at_once_is_answered_at_once),
        TEST(test_another_epoch_overtakes),
        TEST(test_other_tokens_than_those_found_overtake),
        TEST(test_what_goes_on_makes_way_for_what_is_told),
        TEST(test_a_proposal_of_another_epoch_overtakes_too),
        TEST(test_open_and_close_overtake),
        TEST(test_overtaken_in_the_middle_of_a_step),
        TEST(test_a_reset_voids_everything),
        TEST(test_it_holds_its_bound_and_no_more),
        TEST(test_other_messages_are_passed_over),
        TEST(test_every_proposal_is_answered_once_in_order),
        TEST(test_create_survives_every_failing_allocation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
