/* The timeline of a run: whole JSON whatever ends it, spans of a device that never overlap, what
 * was cancelled or came too late told apart. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "base/mem.h"
#include "run/trace.h"

#include "toy_model.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#define N_STAGES 2u
enum { COORDINATOR = 1, DRAFT, STAGES };

static td_model *model;
static td_target *target;
static char path[64];

static td_trace *open_trace(uint64_t n_bytes_max)
{
    const td_clock clock = td_clock_real();
    td_err err = {0};
    td_trace *t = td_trace_open(&(td_trace_params){.path = path,
                                                   .target = target,
                                                   .draft = "host:1 \"a\\b\"",
                                                   .start_us = td_clock_now_us(&clock),
                                                   .n_bytes_max = n_bytes_max},
                                &err);
    if (!t)
        fail_msg("%s", err.message);
    return t;
}

static uint64_t now_us(void)
{
    const td_clock clock = td_clock_real();
    return td_clock_now_us(&clock);
}

static void act(td_trace *t, td_action action) { td_trace_action(t, &action, now_us()); }

/* A batch of a sequence through the target and into the trace. */
static void submit(td_trace *t, uint64_t batch, uint32_t position, uint32_t n, bool is_prefill)
{
    td_row told[TD_PREFILL_ROWS_MAX];
    td_forward_row rows[TD_PREFILL_ROWS_MAX];
    for (uint32_t i = 0; i < n; i++) {
        told[i] = (td_row){.sequence = 7, .position = position + i};
        rows[i] = (td_forward_row){.position = position + i, .is_output = i + 1 == n};
    }
    act(t, (td_action){.kind = TD_ACT_FORWARD,
                       .batch = batch,
                       .is_prefill = is_prefill,
                       .rows = told,
                       .n_rows = n,
                       .n_out = 1});
    td_target_forward(target, batch, is_prefill, rows, n);
}

static void take(td_trace *t, uint32_t n)
{
    td_target_result result;
    while (n > 0) {
        struct pollfd p = {.fd = td_target_fd(target), .events = POLLIN};
        assert_int_equal(poll(&p, 1, 60000), 1);
        for (; n > 0 && td_target_poll(target, &result); n--) {
            assert_int_equal(result.err.code, TD_OK);
            td_trace_verified(t, &result, now_us());
        }
    }
}

/* Batches in a pipeline, the last of a row cancelled, and a draft. */
static void play(td_trace *t, uint32_t n_rounds)
{
    static const td_sampling_params sampling = TD_SAMPLING_DEFAULTS;
    act(t, (td_action){.kind = TD_ACT_OPEN, .sequence = 7});
    td_target_open_sequence(target, 0, 0, 0, 1, &sampling);
    uint32_t length = 100;
    submit(t, 1, 0, length, true);
    act(t, (td_action){.kind = TD_ACT_COMMIT, .sequence = 7, .length = length});
    td_target_commit(target, 0, length);
    take(t, 1);
    uint64_t batch = 2;
    for (uint32_t round = 0; round < n_rounds; round++) {
        act(t, (td_action){.kind = TD_ACT_DRAFT_PROPOSE,
                           .sequence = 7,
                           .epoch = round,
                           .position = length,
                           .k = 4});
        submit(t, batch++, length, 8, false);
        submit(t, batch++, length + 8, 8, false);
        submit(t, batch++, length + 16, 8, false);
        act(t, (td_action){.kind = TD_ACT_CANCEL, .batch = batch - 1});
        td_target_cancel(target, batch - 1);
        take(t, 3);
        /* Two answers that were computed together, and a stale one; longer than the link took. */
        td_trace_draft(t, 7, round, length, 4, 3000, now_us());
        td_trace_draft(t, 7, round, length + 4, 0, 3000, now_us());
        td_trace_draft(t, 7, round + 1, length, 4, 500, now_us());
        act(t, (td_action){.kind = TD_ACT_TRUNCATE, .sequence = 7, .length = length});
        td_target_truncate(target, 0, length);
    }
    act(t, (td_action){.kind = TD_ACT_FINISH, .sequence = 7, .reason = TD_REASON_LENGTH});
    td_target_close_sequence(target, 0);
}

static json_t *parse(void)
{
    json_error_t error;
    json_t *events = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    if (!events)
        fail_msg("line %d: %s", error.line, error.text);
    assert_true(json_is_array(events));
    return events;
}

static json_int_t number(const json_t *event, const char *key)
{
    const json_t *value = json_object_get(event, key);
    assert_true(json_is_integer(value));
    return json_integer_value(value);
}

static const char *string(const json_t *event, const char *key)
{
    const char *value = json_string_value(json_object_get(event, key));
    assert_non_null(value);
    return value;
}

/* Events of a name; name NULL: all. Spans of each track in the order of the file never overlap. */
static uint32_t count(const json_t *events, const char *name)
{
    json_int_t ends[STAGES + N_STAGES] = {0};
    uint32_t n = 0;
    size_t i;
    json_t *event;
    json_array_foreach(events, i, event)
    {
        json_int_t track = number(event, "tid"), start = number(event, "ts");
        assert_in_range(track, COORDINATOR, STAGES + N_STAGES - 1);
        assert_true(json_is_object(json_object_get(event, "args")));
        n += !name || !strcmp(string(event, "name"), name);
        if (strcmp(string(event, "ph"), "X") != 0)
            continue;
        assert_true(track != COORDINATOR);
        assert_true(start >= ends[track]);
        assert_true(number(event, "dur") >= 0);
        ends[track] = start + number(event, "dur");
    }
    return n;
}

static void close_trace(td_trace **t)
{
    td_err err = {0};
    if (!td_trace_close(t, now_us(), &err))
        fail_msg("%s", err.message);
    assert_null(*t);
}

static void test_a_trace_has_every_busy_time(void **state)
{
    (void)state;
    td_trace *t = open_trace(0);
    play(t, 20);
    close_trace(&t);
    json_t *events = parse();
    assert_int_equal(count(events, "thread_name"), 2 + N_STAGES);
    assert_int_equal(count(events, "prefill"), N_STAGES);
    assert_int_equal(count(events, "verify"), 40 * N_STAGES);
    assert_int_equal(count(events, "verify (cancelled)"), 20 * N_STAGES);
    assert_int_equal(count(events, "cancel"), 20);
    assert_int_equal(count(events, "ask"), 20);
    assert_int_equal(count(events, "draft"), 20);
    assert_int_equal(count(events, "draft (none)"), 20);
    assert_int_equal(count(events, "draft (stale)"), 20);
    assert_int_equal(count(events, "finish"), 1);
    const json_t *last = json_array_get(events, json_array_size(events) - 1);
    assert_string_equal(string(last, "name"), "idle share");
    const json_t *shares = json_object_get(last, "args");
    assert_int_equal(json_object_size(shares), 1 + N_STAGES);
    const char *name;
    json_t *share;
    json_object_foreach((json_t *)(uintptr_t)shares, name, share)
    {
        assert_true(json_real_value(share) >= 0 && json_real_value(share) <= 1);
    }
    const json_t *prefill = NULL;
    for (size_t i = 0; !prefill && i < json_array_size(events); i++)
        if (!strcmp(string(json_array_get(events, i), "name"), "prefill"))
            prefill = json_object_get(json_array_get(events, i), "args");
    assert_int_equal(number(prefill, "rows"), 100);
    assert_string_equal(string(prefill, "sequences"), "7@0+100");
    json_decref(events);
}

/* Two answers at one moment: the first was computed before the second. */
static void test_draft_spans_are_laid_one_after_another(void **state)
{
    (void)state;
    td_trace *t = open_trace(0);
    uint64_t now = now_us() + 100000;
    for (uint32_t i = 0; i < 40; i++) {
        td_trace_draft(t, 1, 0, i, 1, 300, now + 1000 * (i / 3)); /* three at a time */
        td_trace_draft(t, 1, 0, i, 1, 0, now + 1000 * (i / 3));
    }
    close_trace(&t);
    json_t *events = parse();
    json_int_t busy_us = 0;
    size_t i;
    json_t *event;
    json_array_foreach(events, i, event)
    {
        if (number(event, "tid") == DRAFT && !strcmp(string(event, "ph"), "X"))
            busy_us += number(event, "dur");
    }
    count(events, NULL);
    assert_int_equal(busy_us, 40 * 300); /* none was cut */
    json_decref(events);
}

static void test_a_trace_stops_at_its_limit(void **state)
{
    (void)state;
    for (uint64_t limit = 1; limit < 20000; limit = 2 * limit + 777) {
        td_trace *t = open_trace(limit);
        play(t, 20);
        close_trace(&t);
        json_t *events = parse();
        assert_int_equal(count(events, "the trace stops here"), 1);
        assert_int_equal(count(events, "idle share"), 1);
        const json_t *mark = json_array_get(events, json_array_size(events) - 2);
        assert_int_equal(number(json_object_get(mark, "args"), "limit_bytes"), limit);
        json_decref(events);
        char *text;
        size_t n_bytes;
        assert_true(td_io_read_file(path, 1 << 20, &text, &n_bytes, NULL));
        assert_true(n_bytes <= limit + 4096);
        td_free(text);
    }
}

static void test_a_trace_that_cannot_be_written_says_so(void **state)
{
    (void)state;
    td_trace *t = open_trace(0);
    play(t, 300); /* more than a block */
    td_io_fail_at(TD_IO_WRITE, 1, ENOSPC, true);
    td_err err = {0};
    assert_false(td_trace_close(&t, now_us(), &err));
    td_io_reset_faults();
    assert_null(t);
    assert_int_equal(err.code, TD_E_IO);
    assert_non_null(strstr(err.message, path));
    td_err_clear(&err);
    assert_null(
        td_trace_open(&(td_trace_params){.path = "nowhere/at/all.json", .target = target}, &err));
    assert_int_equal(err.code, TD_E_IO);
    assert_non_null(strstr(err.message, "trace: nowhere/at/all.json"));
}

static void test_no_trace_is_no_call(void **state)
{
    (void)state;
    td_trace *t = NULL;
    td_trace_action(t, &(td_action){.kind = TD_ACT_OPEN}, 1);
    td_trace_verified(t, &(td_target_result){.batch = 1}, 1);
    td_trace_take(t, target, 0);
    td_trace_set_target(t, target);
    td_trace_draft(t, 1, 1, 1, 1, 1, 1);
    assert_true(td_trace_close(&t, 1, NULL));
}

int main(void)
{
    toy t = toy_begin("llama", TOY_SHAPE);
    td_err err = {0};
    model = toy_open(&t, &err);
    const char *const specs[N_STAGES] = {"host:1", "host:1"};
    if (model)
        target = td_target_create(&(td_layout_params){.model = model,
                                                      .specs = specs,
                                                      .n_specs = N_STAGES,
                                                      .kv = {.k = td_type_find(TD_TYPE_F16),
                                                             .v = td_type_find(TD_TYPE_F16)},
                                                      .n_slots = 1},
                                  &err);
    snprintf(path, sizeof path, "trace-test-%d.json", (int)getpid());
    if (!target) {
        print_error("%s\n", err.message);
        return 1;
    }
    td_log_set_level(TD_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_trace_has_every_busy_time),
        cmocka_unit_test(test_draft_spans_are_laid_one_after_another),
        cmocka_unit_test(test_a_trace_stops_at_its_limit),
        cmocka_unit_test(test_a_trace_that_cannot_be_written_says_so),
        cmocka_unit_test(test_no_trace_is_no_call),
    };
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    td_target_destroy(&target);
    td_model_close(&model);
    return rc;
}
