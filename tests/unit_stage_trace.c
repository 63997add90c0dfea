/* What stages elsewhere did, for a trace: clocks held against each other by round trips, and the
 * ring of a worker that tells only when it is asked, and counts what has no room. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/rng.h"
#include "target/remote_clock.h"
#include "target/trace_seat.h"

#include <string.h>

#define OFFSET_US  7654321u
#define DRIFT_PPM  60u
#define N_PARTS    2u
#define FIRST_PART 3u

/* -- clocks ------------------------------------------------------------------------------------ */

static uint64_t theirs(uint64_t at_us) { return at_us + OFFSET_US + at_us * DRIFT_PPM / 1000000; }

static uint64_t draw(uint32_t i, uint32_t k, uint64_t below)
{
    return td_noise_bits(5, i, k) % below;
}

/* Trips whose ways take unlike times, on clocks that drift: never wrong by more than is said. */
static void test_a_clock_is_never_further_off_than_it_says(void **state)
{
    (void)state;
    td_remote_clock c = {0};
    uint64_t now_us = 1000000, least_us = UINT64_MAX;
    for (uint32_t i = 0; i < 20000; i++) {
        uint64_t there_us = 20 + draw(i, 0, i % 16 ? 5000 : 30);
        uint64_t back_us = 20 + draw(i, 1, i % 16 ? 5000 : 30);
        td_remote_clock_add(&c, now_us, theirs(now_us + there_us), now_us + there_us + back_us);
        now_us += there_us + back_us + draw(i, 2, 1000000);
        td_remote_offset at = td_remote_clock_find(&c, now_us);
        int64_t wrong_us = (int64_t)(theirs(now_us) - now_us) - at.offset_us;
        assert_in_range((uint64_t)(wrong_us < 0 ? -wrong_us : wrong_us), 0, at.uncertainty_us);
        least_us = at.uncertainty_us < least_us ? at.uncertainty_us : least_us;
    }
    assert_int_equal(c.n, 20000);
    assert_in_range(least_us, 1, 100); /* of a trip of 40 us and more */
}

/* The quickest trip counts until the drift since is worse than the next one's uncertainty. */
static void test_the_quickest_trip_counts_until_it_is_old(void **state)
{
    (void)state;
    td_remote_clock c = {0};
    uint64_t unknown_us = td_remote_clock_find(&c, 5).uncertainty_us;
    assert_true(unknown_us > 1000000000u);
    td_remote_clock_add(&c, 1000, 500 + OFFSET_US, 1100);  /* 100 us */
    td_remote_clock_add(&c, 2000, 3000 + OFFSET_US, 6000); /* 4 ms */
    td_remote_clock_add(&c, 7000, 20, 6000);               /* of the future: no answer */
    assert_int_equal(c.n, 2);
    td_remote_offset at = td_remote_clock_find(&c, 6000);
    assert_int_equal(at.trip_us, 100);
    assert_int_equal(at.offset_us, 500 + (int64_t)OFFSET_US - 1050);
    td_remote_clock_add(&c, 60000000, 60000200 + OFFSET_US, 60000400); /* a minute later */
    at = td_remote_clock_find(&c, 60000400);
    assert_int_equal(at.trip_us, 400);
    assert_int_equal(at.offset_us, OFFSET_US);
    for (uint32_t i = 0; i < TD_REMOTE_CLOCK_TRIPS; i++) /* the last few alone are kept */
        td_remote_clock_add(&c, 60001000, 60001500 + OFFSET_US, 60002000);
    assert_int_equal(td_remote_clock_find(&c, 60000400).trip_us, 1000);
}

/* -- a worker's ring --------------------------------------------------------------------------- */

static void note(td_trace_seat *t, uint64_t id)
{
    static micro_batch b;
    b.id = id;
    b.mode = id % 2 ? TD_MODE_PREFILL : TD_MODE_VERIFY;
    b.is_skipped = id % 3 == 0;
    b.n_rows = (uint32_t)(id % 64);
    b.n_in_bytes = 11;
    b.received = (td_target_span){id * 100, id * 100 + 10, 0};
    b.spans[FIRST_PART] = (td_target_span){id * 100 + 20, id * 100 + 50, 0};
    b.spans[FIRST_PART + 1] = (td_target_span){id * 100 + 50, id * 100 + 60, 0};
    td_trace_seat_note(t, &b, FIRST_PART, 22, (td_target_span){id * 100 + 60, id * 100 + 70, 0});
}

/* The next message of the far end; false: there is none. */
static bool hear(td_link *link, td_stage_msg *m)
{
    static uint8_t bytes[TD_WIRE_MESSAGE_MAX];
    size_t n_bytes;
    td_route route;
    td_err err = {0};
    assert_true(td_link_recv(link, bytes, &n_bytes, &route, &err));
    return n_bytes && td_stage_decode(bytes, n_bytes, m, &err);
}

static void test_a_worker_tells_what_it_is_asked_and_no_more(void **state)
{
    (void)state;
    td_clock clock = td_clock_simulated(1);
    td_link *ends[2];
    td_err err = {0};
    td_stage_msg m;
    td_trace_seat t = {0};
    assert_true(td_link_pair(&clock, NULL, ends, &err));
    td_stage_way way = {.link = ends[0], .session = 9};
    note(&t, 1); /* nobody asked: nothing is kept, nothing is told */
    td_trace_seat_answer(&t, &way);
    assert_false(hear(ends[1], &m));
    assert_null(t.events);

    assert_true(td_trace_seat_take(&t, N_PARTS, &err));
    assert_false(td_trace_seat_take(&t, N_PARTS, &err)); /* before it was answered */
    assert_int_equal(err.code, TD_E_DATA);
    td_trace_seat_answer(&t, &way);
    assert_true(hear(ends[1], &m));
    assert_int_equal(m.type, TD_STAGE_EVENTS);
    assert_int_equal(m.events.n, 0);
    td_trace_seat_answer(&t, &way);
    assert_false(hear(ends[1], &m));

    const uint32_t n_noted = TD_TRACE_SEAT_MAX + 100;
    for (uint32_t i = 0; i < n_noted; i++)
        note(&t, 1000 + i);
    uint64_t next = 1000;
    for (uint32_t n_left = TD_TRACE_SEAT_MAX; n_left;) {
        assert_true(td_trace_seat_take(&t, N_PARTS, &err));
        td_trace_seat_answer(&t, &way);
        assert_true(hear(ends[1], &m));
        assert_int_equal(m.events.n_dropped, 100);
        assert_int_equal(m.events.n, TD_STAGE_EVENTS_MAX);
        assert_int_equal(m.events.n_left, n_left - m.events.n);
        n_left = m.events.n_left;
        td_cursor c = td_cursor_begin("EVENTS", m.events.bytes, m.events.n_bytes, &err);
        for (uint32_t i = 0; i < m.events.n; i++, next++) {
            td_stage_event e;
            assert_true(td_stage_read_event(&c, N_PARTS, &e));
            assert_int_equal(e.batch, next);
            assert_int_equal(e.is_prefill, next % 2);
            assert_int_equal(e.is_skipped, next % 3 == 0);
            assert_int_equal(e.n_rows, next % 64);
            assert_int_equal(e.n_in_bytes + e.n_out_bytes, 33);
            assert_int_equal(e.received.start_us, next * 100);
            assert_int_equal(e.parts[0].end_us, next * 100 + 50);
            assert_int_equal(e.parts[1].start_us, next * 100 + 50);
            assert_int_equal(e.sent.end_us, next * 100 + 70);
        }
        assert_int_equal(td_cursor_left(&c), 0);
    }
    assert_int_equal(next, 1000 + TD_TRACE_SEAT_MAX);
    td_trace_seat_end(&t);
    assert_null(t.events);
    td_link_close(&ends[0], false);
    td_link_close(&ends[1], false);
}

/* Times out of order, a part too many, another length: refused as a whole. */
static void test_events_that_make_no_sense_are_refused(void **state)
{
    (void)state;
    uint8_t bytes[400], message[TD_WIRE_MESSAGE_MAX];
    const td_stage_event sound = {.batch = 1,
                                  .n_rows = TD_STAGE_ROWS_MAX,
                                  .received = {10, 20},
                                  .parts = {{20, 30}, {31, 31}},
                                  .sent = {40, 50}};
    for (uint32_t way = 0; way < 8; way++) {
        td_stage_event e = sound;
        e.parts[0].start_us -= way == 1;
        e.parts[1].start_us -= way == 2 ? 2 : 0;
        e.sent.start_us -= way == 3 ? 10 : 0;
        e.received.start_us = way == 4 ? UINT64_MAX - 3 : e.received.start_us;
        e.received.end_us = way == 4 ? UINT64_MAX + 7 : e.received.end_us;
        e.n_rows = (uint16_t)(e.n_rows + (way == 5));
        td_err err = {0};
        td_cursor_out c = td_cursor_out_begin("EVENTS", bytes, sizeof bytes, &err);
        td_stage_write_event(&c, N_PARTS, &e);
        assert_int_equal(c.pos, td_stage_event_bytes(N_PARTS));
        td_stage_msg m = {.type = TD_STAGE_EVENTS,
                          .session = 1,
                          .seq = 1,
                          .events = {.n_parts = (uint8_t)(N_PARTS + (way == 6)),
                                     .n = (uint16_t)(1 + (way == 7)),
                                     .bytes = bytes,
                                     .n_bytes = (size_t)c.pos}};
        size_t n;
        bool is_ok = td_stage_encode(&m, message, sizeof message, &n, &err);
        if (is_ok != !way)
            fail_msg("way %u: %s", way, err.message);
        assert_true(is_ok || (err.code == TD_E_DATA && strstr(err.message, "allowed: ")) ||
                    way == 4);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_clock_is_never_further_off_than_it_says),
        cmocka_unit_test(test_the_quickest_trip_counts_until_it_is_old),
        cmocka_unit_test(test_a_worker_tells_what_it_is_asked_and_no_more),
        cmocka_unit_test(test_events_that_make_no_sense_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
