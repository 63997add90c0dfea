/* Lines on a thread of their own: all of them arrive in order, the caller never waits for who reads
 * or for the disk, and what goes wrong is told. */
#include "base/check.h"
#include "base/io.h"
#include "base/line_writer.h"
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define FILE_NAME "lines.jsonl"

static char directory[] = "unit_line_writer.XXXXXX";

static int set_up(void **state)
{
    (void)state;
    signal(SIGPIPE, SIG_IGN);
    const char *parent = getenv("TMPDIR") ? getenv("TMPDIR") : P_tmpdir;
    return chdir(parent) || !mkdtemp(directory) || chdir(directory);
}

static int tear_down(void **state)
{
    (void)state;
    return chdir("..") || rmdir(directory);
}

static int clean(void **state)
{
    (void)state;
    td_io_reset_faults();
    unlink(FILE_NAME);
    return 0;
}

static td_line_writer *open_writer(uint32_t sync_lines)
{
    td_err err = {0};
    td_line_writer *w = td_line_writer_open(
        &(td_jsonl_writer_params){.path = FILE_NAME, .sync_lines = sync_lines, .sync_us = 1000},
        &err);
    if (!w)
        fail_msg("%s", err.message);
    return w;
}

static size_t make_line(char *text, uint32_t i, size_t n_bytes)
{
    int n = sprintf(text, "{\"i\":%u,\"x\":\"", i);
    memset(text + n, 'x', n_bytes);
    memcpy(text + n + n_bytes, "\"}", 3);
    return strlen(text);
}

/* Reads lines first.. until `n` have come, and checks that they are those. */
static void check_lines(FILE *f, uint32_t n)
{
    char *text = NULL;
    size_t capacity = 0;
    for (uint32_t i = 0; i < n; i++) {
        char wanted[32];
        int n_wanted = sprintf(wanted, "{\"i\":%u,", i);
        assert_true(getline(&text, &capacity, f) > n_wanted);
        assert_memory_equal(text, wanted, (size_t)n_wanted);
        assert_int_equal(text[strlen(text) - 2], '}');
    }
    free(text);
}

static void test_all_lines_arrive_in_order_and_are_synced(void **state)
{
    (void)state;
    td_line_writer *w = open_writer(64);
    static char text[70000];
    for (uint32_t i = 0; i < 500; i++)
        assert_true(td_line_writer_put(w, text, make_line(text, i, i % 60 * 1000), NULL));
    assert_true(td_line_writer_close(&w, NULL));
    assert_true(td_io_count(TD_IO_SYNC) >= 500 / 64);
    FILE *f = fopen(FILE_NAME, "r");
    assert_non_null(f);
    check_lines(f, 500);
    assert_int_equal(fgetc(f), EOF);
    fclose(f);
}

static void wait_for_failure(td_line_writer *w, const char *needle)
{
    struct pollfd p = {.fd = td_line_writer_fd(w), .events = POLLIN};
    td_err err = {0};
    assert_int_equal(poll(&p, 1, 60000), 1);
    assert_false(td_line_writer_poll(w, &err));
    assert_int_equal(err.code, TD_E_IO);
    assert_non_null(strstr(err.message, needle));
    assert_false(td_line_writer_put(w, "{}", 2, &err)); /* from then on, and at the end too */
    err = (td_err){0};
    assert_false(td_line_writer_close(&w, &err));
    assert_non_null(strstr(err.message, needle));
}

static void test_a_failed_write_or_sync_is_told(void **state)
{
    (void)state;
    td_io_fail_at(TD_IO_SYNC, 2, EIO, false); /* the first is the directory's */
    td_line_writer *w = open_writer(1);
    assert_true(td_line_writer_put(w, "{}", 2, NULL));
    wait_for_failure(w, "fdatasync");
    clean(state);
    td_io_fail_at(TD_IO_SYNC, 2, EIO, false);
    w = open_writer(0); /* by time, with no other line to come */
    assert_true(td_line_writer_put(w, "{}", 2, NULL));
    wait_for_failure(w, "fdatasync");
    clean(state);
    td_io_fail_at(TD_IO_WRITE, 1, ENOSPC, false);
    w = open_writer(1);
    assert_true(td_line_writer_put(w, "{}", 2, NULL));
    wait_for_failure(w, strerror(ENOSPC));
    struct stat st;
    assert_int_equal(stat(FILE_NAME, &st), 0);
    assert_int_equal(st.st_size, 0);
}

/* A FIFO that nobody reads takes 64 KiB; the rest waits here, and the caller goes on. */
static void test_a_reader_that_is_slow_holds_nobody_up(void **state)
{
    (void)state;
    assert_int_equal(mkfifo(FILE_NAME, 0600), 0);
    int reader = open(FILE_NAME, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    assert_true(reader >= 0);
    td_line_writer *w = open_writer(1);
    static char text[70000];
    uint32_t n = 0;
    while (td_line_writer_has_room(w))
        assert_true(td_line_writer_put(w, text, make_line(text, n++, 60000), NULL));
    assert_true(n >= TD_LINE_WRITER_ROOM / 61000);
    assert_true(td_line_writer_poll(w, NULL));
    assert_int_equal(fcntl(reader, F_SETFL, 0), 0);
    FILE *f = fdopen(reader, "r");
    check_lines(f, n);
    struct pollfd p = {.fd = td_line_writer_fd(w), .events = POLLIN};
    assert_int_equal(poll(&p, 1, 60000), 1); /* there is room again */
    assert_true(td_line_writer_poll(w, NULL) && td_line_writer_has_room(w));
    assert_true(td_line_writer_close(&w, NULL));
    fclose(f);
}

int main(void)
{
    td_log_set_level(TD_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_all_lines_arrive_in_order_and_are_synced, clean),
        cmocka_unit_test_teardown(test_a_failed_write_or_sync_is_told, clean),
        cmocka_unit_test_teardown(test_a_reader_that_is_slow_holds_nobody_up, clean),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
