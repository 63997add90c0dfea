/* Checks of devices that a coordinator asks a stage worker for: in whatever order they come, they
 * are answered or end the session, and the next coordinator is served. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/rng.h"
#include "target/measured.h"
#include "target/probes.h"
#include "target/target.h"

#include "stage_peer.h"

#include <stdatomic.h>

/* A check that takes as long as a test wants. */
static atomic_bool is_holding, was_stopped;

static bool check(const td_stage_trial *trial, void *bytes, size_t capacity_bytes, size_t *n_bytes,
                  td_err *err)
{
    assert_true(capacity_bytes >= 3);
    for (bool is_on = true; is_on && (is_on = trial->progress(trial->user, "op", "so\nmany"));) {
        if (!atomic_load(&is_holding)) {
            memcpy(bytes, "all", *n_bytes = 3);
            return trial->only == NULL || td_err_set(err, TD_E_USAGE, "--only: %s", trial->only);
        }
        usleep(1000);
    }
    atomic_store(&was_stopped, true);
    return td_err_set(err, TD_E_AGAIN, "stopped");
}

static bool has_failed(const char *spec, char *how, size_t n_how)
{
    snprintf(how, n_how, "%s: \x01%0500d", spec, 7); /* longer than there is room for */
    return true;
}

static void say_check(peer *p, uint8_t device, const char *only)
{
    td_stage_msg m = {.type = TD_STAGE_CHECK, .check.device = device};
    snprintf(m.check.only, sizeof m.check.only, "%s", only);
    say(p, m);
}

static void leave(peer *p)
{
    say(p, (td_stage_msg){.type = TD_STAGE_BYE});
    td_link_close(&p->link, true);
}

static void test_a_check_is_answered_once_and_again(void **state)
{
    (void)state;
    peer p;
    greet(&p, 9400, 1);
    for (uint32_t i = 0; i < 3; i++) {
        p.last = TD_STAGE_HELLO;
        say_check(&p, 0, "");
        hear(&p, TD_STAGE_REPORT, 5000);
        assert_int_equal(p.last, TD_STAGE_REPORT);
    }
    leave(&p);
}

/* Of a device that is not there, of an op that is not, after a PLAN, twice at once, for a draft; of
 * a worker that checks nothing. Each ends the session, and the next one is served. */
static void test_checks_out_of_order_are_refused(void **state)
{
    (void)state;
    for (uint32_t way = 0; way < 5; way++) {
        peer p;
        td_stage_plan plan =
            greet_as(&p, 9500 + way, 1, way == 4 ? TD_STAGE_HELLO_DRAFT : TD_STAGE_HELLO);
        if (way == 2) {
            say(&p, (td_stage_msg){.type = TD_STAGE_PLAN, .plan = plan});
            hear(&p, TD_STAGE_PLANNED, 5000);
        }
        atomic_store(&is_holding, way == 3);
        say_check(&p, way == 0, way == 1 ? "nothing" : "");
        if (way == 3)
            say_check(&p, 0, "");
        hear(&p, TD_STAGE_FAIL, 5000);
        assert_int_equal(p.last, TD_STAGE_FAIL);
        atomic_store(&is_holding, false);
        leave(&p);
    }
}

/* Begins a session that shall be refused. */
static void expect_busy(uint64_t session, td_stage_type hello_type)
{
    peer p = {.session = session};
    p.link = td_link_open(transport, endpoint, TD_LINK_CONNECT, NULL);
    assert_non_null(p.link);
    say(&p, (td_stage_msg){.type = hello_type, .hello = {TD_STAGE_PROTOCOL, "a test"}});
    hear(&p, TD_STAGE_HELLO_OK, 5000);
    assert_int_equal(p.last, TD_STAGE_FAIL);
    td_link_close(&p.link, true);
}

static void test_nobody_else_is_served_during_a_check(void **state)
{
    (void)state;
    peer p;
    greet(&p, 9600, 1);
    atomic_store(&is_holding, true);
    say_check(&p, 0, "");
    hear(&p, TD_STAGE_CHECKING, 5000);
    assert_int_equal(p.last, TD_STAGE_CHECKING);
    expect_busy(9601, TD_STAGE_HELLO);
    expect_busy(9602, TD_STAGE_HELLO_DRAFT);
    for (uint32_t i = 0; i < 3; i++) /* it answers meanwhile */
        say(&p, (td_stage_msg){.type = TD_STAGE_PING, .ping.echo_us = i});
    atomic_store(&was_stopped, false);
    leave(&p); /* nobody wants it any more */
    greet(&p, 9603, 1);
    assert_true(atomic_load(&was_stopped));
    atomic_store(&is_holding, false);
    leave(&p);
}

static void test_nothing_is_checked_beside_a_draft(void **state)
{
    (void)state;
    peer draft, p;
    join_draft(&draft, 9700);
    greet(&p, 9701, 1);
    say_check(&p, 0, "");
    hear(&p, TD_STAGE_REPORT, 5000);
    assert_int_equal(p.last, TD_STAGE_FAIL);
    td_link_close(&p.link, true);
    leave(&draft);
}

static void test_a_device_that_has_failed_is_not_taken(void **state)
{
    (void)state;
    static const char *const specs[] = {"w/host:1"};
    td_host host = {.name = "w", .endpoint = endpoint};
    td_layout_params params = {
        .model = model,
        .specs = specs,
        .n_specs = 1,
        .hosts = &host,
        .n_hosts = 1,
        .kv = {.k = td_type_find(TD_TYPE_F16), .v = td_type_find(TD_TYPE_F16)},
        .n_slots = 1,
        .n_ctx = 200};
    td_err err = {0};
    assert_null(td_target_open(&params, &err));
    assert_int_equal(err.code, TD_E_UNAVAILABLE);
    assert_non_null(strstr(err.message, "has failed `tandem check` there: host:1: ?0000"));
    assert_non_null(strstr(err.message, "--trust"));
    params.is_trusting = true;
    td_err_clear(&err);
    td_target *t = td_target_open(&params, &err);
    assert_non_null(t);
    td_target_destroy(&t);
}

/* -- measuring, and probes of the link --------------------------------------------------------- */

/* It is busy for a while, and then free for another; probes are answered all the while. */
static void test_a_measurement_leaves_the_worker_free(void **state)
{
    (void)state;
    static const uint8_t bytes[TD_STAGE_DATA_MAX];
    peer p;
    td_stage_plan plan = greet(&p, 9800, 1);
    plan.measure = 1 + TD_MEASURE_MISSING;
    for (uint32_t i = 0; i < 2; i++) {
        p.last = TD_STAGE_HELLO;
        say(&p, (td_stage_msg){.type = TD_STAGE_PLAN, .plan = plan});
        for (uint32_t k = 0; k < 4; k++) {
            td_stage_probe probe = {
                .n_back = k ? TD_STAGE_DATA_MAX : 1, .n = 1 + k * 20000, .bytes = bytes};
            say(&p, (td_stage_msg){.type = TD_STAGE_PROBE, .probe = probe});
        }
        hear(&p, TD_STAGE_REPORT, 60000);
        assert_int_equal(p.last, TD_STAGE_REPORT);
    }
    plan.measure = 0;
    say(&p, (td_stage_msg){.type = TD_STAGE_PLAN, .plan = plan});
    hear(&p, TD_STAGE_PLANNED, 5000);
    assert_int_equal(p.last, TD_STAGE_PLANNED);
    leave(&p);
}

/* A device that is not there, a PLAN during another, layers that the model has not, a draft's. */
static void test_senseless_measurements_are_refused(void **state)
{
    (void)state;
    for (uint32_t way = 0; way < 4; way++) {
        peer p;
        td_stage_plan plan =
            greet_as(&p, 9900 + way, 1, way == 3 ? TD_STAGE_HELLO_DRAFT : TD_STAGE_HELLO);
        plan.measure = 1 + TD_MEASURE_AGAIN;
        plan.parts[0].device = way == 0 ? 3 : 0;
        plan.hash[0] = (uint8_t)(plan.hash[0] + (way == 2)); /* of no model there */
        say(&p, (td_stage_msg){.type = TD_STAGE_PLAN, .plan = plan});
        if (way == 1)
            say(&p, (td_stage_msg){.type = TD_STAGE_PLAN, .plan = plan});
        hear(&p, TD_STAGE_FAIL, 60000);
        assert_int_equal(p.last, TD_STAGE_FAIL);
        leave(&p);
    }
}

/* Whoever asks for more than he takes loses the session, not the worker. */
static void test_probes_without_end_are_survived(void **state)
{
    (void)state;
    static const uint8_t bytes[1];
    peer p;
    greet(&p, 9950, 1);
    for (uint32_t i = 0; i < 5000; i++) {
        td_stage_probe probe = {.n_back = TD_STAGE_DATA_MAX, .n = 1, .bytes = bytes};
        say(&p, (td_stage_msg){.type = TD_STAGE_PROBE, .probe = probe});
    }
    hear(&p, TD_STAGE_FAIL, 200);
    leave(&p);
    greet(&p, 9951, 1);
    leave(&p);
}

/* -- the way to another worker ----------------------------------------------------------------- */

static void say_meet(peer *p, uint64_t ticket, const char *next)
{
    td_stage_msg m = {.type = TD_STAGE_MEET, .meet.ticket = ticket};
    snprintf(m.meet.next, sizeof m.meet.next, "%s", next);
    p->last = TD_STAGE_HELLO;
    say(p, m);
}

/* Another's path, or key file; a process's own. Nothing is dialled, and that is said. */
static void test_a_way_that_no_run_would_take_is_not_taken(void **state)
{
    (void)state;
    static const char *const nexts[] = {"ipc:///tmp/elsewhere.sock", "inproc://x", "x",
                                        "tcp://127.0.0.1:5,/etc/passwd"};
    char outside[160];
    peer p;
    snprintf(outside, sizeof outside, "ipc://%s/../w.sock", folder);
    greet(&p, 9970, 1);
    for (uint32_t i = 0; i <= TD_COUNT(nexts); i++) {
        say_meet(&p, 7, i < TD_COUNT(nexts) ? nexts[i] : outside);
        hear(&p, TD_STAGE_MET, 5000);
        assert_int_equal(p.last, TD_STAGE_MET);
        assert_non_null(strstr(p.met.why, "allowed: tcp://, or a socket beside this worker's"));
    }
    leave(&p);
}

/* Before or while it does something else; a draft's. */
static void test_meetings_out_of_order_are_refused(void **state)
{
    (void)state;
    char beside[160];
    snprintf(beside, sizeof beside, "ipc://%s/nobody.sock", folder);
    for (uint32_t way = 0; way < 3; way++) {
        peer p;
        td_stage_plan plan =
            greet_as(&p, 9980 + way, 1, way == 2 ? TD_STAGE_HELLO_DRAFT : TD_STAGE_HELLO);
        if (way == 0)
            say(&p, (td_stage_msg){.type = TD_STAGE_PLAN, .plan = plan});
        say_meet(&p, 7, beside);
        if (way == 1)
            say_meet(&p, 8, "");
        hear(&p, TD_STAGE_FAIL, 5000);
        assert_int_equal(p.last, TD_STAGE_FAIL);
        assert_non_null(strstr(p.reason, "a MEET at the wrong time"));
        leave(&p);
    }
}

/* How many answers come to so many probes; other_seq: the first has that number. */
static uint32_t count_answers(td_link *link, uint64_t ticket, uint32_t n, uint64_t other_seq,
                              uint32_t n_back)
{
    static uint8_t bytes[TD_WIRE_MESSAGE_MAX];
    static const uint8_t zeros[1];
    uint32_t n_answers = 0;
    for (uint32_t i = 0; i < n; i++) {
        size_t n_bytes;
        td_stage_msg m = {.type = TD_STAGE_PROBE,
                          .session = ticket,
                          .seq = i + other_seq,
                          .probe = {.n_back = n_back, .n = 1, .bytes = zeros}};
        assert_true(td_stage_encode(&m, bytes, sizeof bytes, &n_bytes, NULL));
        td_link_send(link, 0, bytes, n_bytes, NULL);
        for (uint32_t k = 0; k < 4; k++) {
            td_link_poll_item item = {.link = link};
            td_route route;
            td_link_poll(&item, 1, 5000, NULL);
            assert_true(td_link_recv(link, bytes, &n_bytes, &route, NULL));
            if (!n_bytes)
                continue;
            assert_true(td_stage_decode(bytes, n_bytes, &m, NULL));
            assert_int_equal(m.type, TD_STAGE_PROBED);
            n_answers++;
            break;
        }
    }
    return n_answers;
}

/* Without its ticket, by a second who has it, for more bytes or more often than a worker asks. */
static void test_who_meets_a_worker_is_answered_within_bounds(void **state)
{
    (void)state;
    peer p;
    greet(&p, 9990, 1);
    td_link *a = td_link_open(transport, endpoint, TD_LINK_CONNECT, NULL);
    td_link *b = td_link_open(transport, endpoint, TD_LINK_CONNECT, NULL);
    assert_true(a && b);
    assert_int_equal(count_answers(a, 77, 3, 1, 1), 0); /* nobody is expected */
    say_meet(&p, 77, "");
    hear(&p, TD_STAGE_MET, 5000);
    assert_int_equal(p.last, TD_STAGE_MET);
    assert_string_equal(p.met.why, "");
    assert_int_equal(count_answers(a, 78, 3, 1, 1), 0);
    assert_int_equal(count_answers(a, 77, 3, 2, 1), 0);
    assert_int_equal(count_answers(a, 77, 3, 1, TD_STAGE_DATA_MAX), 0);
    assert_int_equal(count_answers(a, 77, TD_PROBES_ALL_MAX - 5, 1, 1), TD_PROBES_ALL_MAX - 5);
    assert_int_equal(count_answers(b, 77, 3, TD_PROBES_ALL_MAX - 4, 1), 0);
    assert_int_equal(count_answers(a, 77, 9, TD_PROBES_ALL_MAX - 4, 1), 5);
    say_meet(&p, 79, ""); /* the one before is over */
    hear(&p, TD_STAGE_MET, 5000);
    assert_int_equal(count_answers(a, 77, 3, 1, 1), 0);
    assert_int_equal(count_answers(b, 79, 3, 1, 1), 3);
    leave(&p);
    greet(&p, 9991, 1);
    assert_int_equal(count_answers(b, 79, 3, 4, 1), 0); /* it was another session's */
    td_link_close(&a, true);
    td_link_close(&b, true);
    leave(&p);
}

enum { NOBODY, MUTE, NONSENSE, TOO_OFTEN, ONCE, N_NEXTS };

/* What another worker says to a probe. */
static void answer_probe(td_link *next, td_route route, const td_stage_msg *probe, uint32_t way,
                         uint64_t *n_said)
{
    static uint8_t bytes[TD_WIRE_MESSAGE_MAX];
    static const uint8_t zeros[TD_STAGE_DATA_MAX];
    uint32_t n = way == TOO_OFTEN ? 30 : way == MUTE || (way == ONCE && *n_said) ? 0 : 1;
    assert_in_range(probe->seq, 1, TD_PROBES_ALL_MAX);
    for (uint32_t i = 0; i < n; i++) {
        size_t n_bytes;
        bool is_none = way == NONSENSE;
        td_stage_msg m = {.type = is_none && probe->seq % 2 ? TD_STAGE_PING : TD_STAGE_PROBED,
                          .session = probe->session + is_none,
                          .seq = ++*n_said};
        if (m.type == TD_STAGE_PROBED)
            m.probe = (td_stage_probe){.n = TD_STAGE_DATA_MAX, .bytes = zeros};
        assert_true(td_stage_encode(&m, bytes, sizeof bytes, &n_bytes, NULL));
        bytes[0] ^= (uint8_t)(is_none && probe->seq % 3 == 0);
        td_link_send(next, route, bytes, n_bytes, NULL);
    }
}

/* Whatever the other says, it is over in time, and the worker free for the next question. */
static void test_a_way_is_measured_in_time(void **state)
{
    (void)state;
    static uint8_t bytes[TD_WIRE_MESSAGE_MAX];
    peer p;
    char at[160];
    greet(&p, 9995, 1);
    for (uint32_t way = NOBODY; way < N_NEXTS; way++) {
        snprintf(at, sizeof at, "ipc://%s/next-%u.sock", folder, way);
        td_link *next = way == NOBODY ? NULL : td_link_open(transport, at, TD_LINK_BIND, NULL);
        const td_clock clock = td_clock_real();
        uint64_t begun_us = td_clock_now_us(&clock), n_said = 0;
        assert_true(next || way == NOBODY);
        say_meet(&p, 500 + way, at);
        while (p.last != TD_STAGE_MET && p.last != TD_STAGE_FAIL &&
               td_clock_now_us(&clock) < begun_us + 60000000) {
            size_t n = next != NULL;
            td_route route;
            td_stage_msg m;
            hear(&p, TD_STAGE_MET, 5);
            while (n && td_link_recv(next, bytes, &n, &route, NULL) && n)
                if (td_stage_decode(bytes, n, &m, NULL) && m.type == TD_STAGE_PROBE)
                    answer_probe(next, route, &m, way, &n_said);
        }
        assert_int_equal(p.last, TD_STAGE_MET);
        assert_int_equal(p.met.why[0] != 0, way < TOO_OFTEN);
        assert_int_equal(p.met.bytes_per_s > 0, way >= TOO_OFTEN);
        assert_true(way < TOO_OFTEN || (p.met.idle_ns > 0 && p.met.loaded_ns > 0));
        td_link_close(&next, false);
    }
    leave(&p);
}

/* -- what is told ------------------------------------------------------------------------------ */

static void test_a_report_of_layers_is_read_within_bounds(void **state)
{
    (void)state;
    static uint8_t bytes[TD_STAGE_REPORT_MAX];
    const uint32_t n_layer = td_model_hparams(model)->n_layer;
    const td_stage_plan plan = {.kv = {.type_k = TD_TYPE_F16, .type_v = TD_TYPE_F16},
                                .n_slots = 1,
                                .n_ctx = 200,
                                .measure = 1 + TD_MEASURE_MISSING};
    td_far_device d;
    td_err err = {0};
    size_t n;
    if (!td_measured_run(&plan, model, "host:1", bytes, sizeof bytes, &n, &err))
        fail_msg("%s", err.message);
    for (size_t k = 0; k <= n + 1; k++) {
        d = (td_far_device){0};
        bool is_ok = td_measured_decode(bytes, k, n_layer, &d, NULL);
        assert_true(is_ok == (k == n));
        assert_true(!is_ok ||
                    (d.is_known && d.place.budget_bytes && d.costs.layers[1].chunk_us >= 0));
        td_far_device_free(&d);
    }
    d = (td_far_device){0};
    assert_false(td_measured_decode(bytes, n, n_layer + 1, &d, NULL));
    td_far_device_free(&d);
    for (uint32_t i = 0; i < 2000; i++) {
        uint8_t *at = &bytes[td_noise_bits(3, i, 0) % n], was = *at;
        *at = (uint8_t)td_noise_bits(3, i, 1);
        d = (td_far_device){0};
        if (td_measured_decode(bytes, n, n_layer, &d, NULL))
            assert_true(d.place.shared_bytes <= d.place.budget_bytes &&
                        d.place.budget_bytes <= TD_STAGE_FILE_MAX);
        td_far_device_free(&d);
        *at = was;
    }
}

/* -- room for a draft -------------------------------------------------------------------------- */

#define WIDE_CTX (1u << 24)

/* What the worker says of one layer set with so many positions. */
static td_stage_type plan_layers(uint64_t session, uint32_t n_ctx, char *reason)
{
    peer p;
    td_stage_plan plan = greet(&p, session, 1);
    plan.n_slots = 1;
    plan.n_ctx = n_ctx;
    say(&p, (td_stage_msg){.type = TD_STAGE_PLAN, .plan = plan});
    hear(&p, TD_STAGE_PLANNED, 10000);
    memcpy(reason, p.reason, sizeof p.reason);
    leave(&p);
    return p.last;
}

/* A draft that is planned and not loaded yet takes its room from layers that are planned then. */
static void test_layers_leave_room_for_a_draft(void **state)
{
    (void)state;
    char reason[TD_WIRE_REASON_MAX + 1];
    td_device_info info;
    peer draft;
    assert_true(td_device_find("host:1", &info, NULL));
    /* 64 sequences of it take several times what is there; one of the target a small part. */
    uint64_t n_ctx = info.capacity.usable_bytes / 8192;
    if (n_ctx > WIDE_CTX) {
        print_message("more memory than %u positions take: skipped\n", WIDE_CTX);
        skip();
    }
    assert_int_equal(plan_layers(9960, (uint32_t)n_ctx, reason), TD_STAGE_PLANNED);
    td_stage_plan plan = greet_as(&draft, 9961, 1, TD_STAGE_HELLO_DRAFT);
    plan.n_slots = 64;
    plan.n_ctx = (uint32_t)n_ctx;
    say(&draft, (td_stage_msg){.type = TD_STAGE_PLAN, .plan = plan});
    hear(&draft, TD_STAGE_PLANNED, 10000);
    assert_int_equal(draft.last, TD_STAGE_PLANNED);
    assert_int_equal(plan_layers(9962, (uint32_t)n_ctx, reason), TD_STAGE_FAIL);
    assert_non_null(strstr(reason, "the draft: "));
    assert_int_equal(plan_layers(9963, 256, reason), TD_STAGE_PLANNED); /* its context is theirs */
    leave(&draft);
    assert_int_equal(plan_layers(9964, (uint32_t)n_ctx, reason), TD_STAGE_PLANNED);
}

static int begin_wide(void **state)
{
    toy_n_ctx = WIDE_CTX;
    hooks = (td_stage_worker_params){0};
    return begin(state);
}

static int begin_checking(void **state)
{
    hooks = (td_stage_worker_params){.check = check, .has_failed = has_failed};
    return begin(state);
}

static int begin_unable(void **state)
{
    hooks = (td_stage_worker_params){0};
    return begin(state);
}

int main(void)
{
    const struct CMUnitTest able[] = {
        cmocka_unit_test(test_a_check_is_answered_once_and_again),
        cmocka_unit_test(test_checks_out_of_order_are_refused),
        cmocka_unit_test(test_nobody_else_is_served_during_a_check),
        cmocka_unit_test(test_nothing_is_checked_beside_a_draft),
        cmocka_unit_test(test_a_device_that_has_failed_is_not_taken),
        cmocka_unit_test(test_a_measurement_leaves_the_worker_free),
        cmocka_unit_test(test_senseless_measurements_are_refused),
        cmocka_unit_test(test_probes_without_end_are_survived),
        cmocka_unit_test(test_a_way_that_no_run_would_take_is_not_taken),
        cmocka_unit_test(test_meetings_out_of_order_are_refused),
        cmocka_unit_test(test_who_meets_a_worker_is_answered_within_bounds),
        cmocka_unit_test(test_a_way_is_measured_in_time),
        cmocka_unit_test(test_a_report_of_layers_is_read_within_bounds),
    };
    const struct CMUnitTest unable[] = {cmocka_unit_test(test_checks_out_of_order_are_refused)};
    const struct CMUnitTest wide[] = {cmocka_unit_test(test_layers_leave_room_for_a_draft)};
    return cmocka_run_group_tests(able, begin_checking, end) ||
           cmocka_run_group_tests(unable, begin_unable, end) ||
           cmocka_run_group_tests(wide, begin_wide, end);
}
