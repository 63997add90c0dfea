/* JSON Lines and whole files: what is read, what lasts, and what happens when the disk says no.
 * Faults come through the hooks of base/io.h. */
#include "base/check.h"
#include "base/io.h"
#include "base/jsonl.h"
#include "base/log.h"
#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define FILE_NAME "lines.jsonl"

static char directory[] = "unit_base_jsonl.XXXXXX";

static int set_up(void **state)
{
    (void)state;
    signal(SIGPIPE, SIG_IGN);
    td_log_set_output(open("/dev/null", O_WRONLY | O_CLOEXEC), false);
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
    td_alloc_fail_at(0);
    unlink(FILE_NAME);
    return 0;
}

static void put_file(const char *text, size_t n_bytes)
{
    FILE *f = fopen(FILE_NAME, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n_bytes, f), n_bytes);
    assert_int_equal(fclose(f), 0);
}

static void check_file(const char *wanted)
{
    char *text;
    size_t n_bytes;
    assert_true(td_io_read_file(FILE_NAME, 1 << 24, &text, &n_bytes, NULL));
    assert_string_equal(text, wanted);
    assert_int_equal(n_bytes, strlen(wanted));
    td_free(text);
}

/* ---- reader ---- */

/* Reads all lines into "NUMBER:TEXT|", "NUMBER!|" for a bad one. */
static void check_lines(const char *text, size_t n_bytes, size_t max_bytes, const char *wanted)
{
    put_file(text, n_bytes);
    td_err err = {0};
    td_jsonl_reader *r = td_jsonl_reader_open(FILE_NAME, max_bytes, &err);
    assert_non_null(r);
    char seen[4096] = "";
    size_t n = 0;
    td_jsonl_line line;
    for (td_jsonl_status s; (s = td_jsonl_read(r, &line, &err)) != TD_JSONL_END;) {
        assert_int_not_equal(s, TD_JSONL_FAILED);
        if (s == TD_JSONL_LINE) {
            assert_int_equal(line.text[line.n_bytes], 0);
            n += (size_t)snprintf(seen + n, sizeof seen - n, "%d:%s|", (int)line.number, line.text);
        } else {
            assert_int_equal(err.code, TD_E_DATA);
            n += (size_t)snprintf(seen + n, sizeof seen - n, "%s|", err.message);
            td_err_clear(&err);
        }
    }
    assert_string_equal(seen, wanted);
    assert_int_equal(td_jsonl_read(r, &line, &err), TD_JSONL_END);
    td_jsonl_reader_close(&r);
    assert_null(r);
}

static void test_reader_takes_lines_as_people_write_them(void **state)
{
    (void)state;
#define CHECK(text, wanted) check_lines(text, sizeof text - 1, 16, wanted)
    CHECK("", "");
    CHECK("\n\n", "");
    CHECK("a\nb\n", "1:a|2:b|");
    CHECK("a\nb", "1:a|2:b|");
    CHECK("a\r\n\r\n \t\nb\r\n", "1:a|4:b|");
    CHECK("a\r", "1:a|");
    CHECK("\xef\xbb\xbf{}\n\xef\xbb\xbf{}\n", "1:{}|2:\xef\xbb\xbf{}|");
    CHECK("\xef\xbb\xbf", "");
    CHECK("\xef\xbb", "1:\xef\xbb|");
    CHECK("a\0b\n", "1:a|");
}

static void test_reader_skips_a_long_line_and_goes_on(void **state)
{
    (void)state;
    CHECK("0123456789abcdef\n0123456789abcdefg\nx\n",
          "1:0123456789abcdef|lines.jsonl: line 2 has 17 bytes; at most 16 are allowed|3:x|");
    CHECK("0123456789abcdef\r\n0123456789abcdef", "1:0123456789abcdef|2:0123456789abcdef|");
    CHECK("0123456789abcdefg", "lines.jsonl: line 1 has 17 bytes; at most 16 are allowed|");
    static char big[400000];
    memset(big, 'x', sizeof big);
    memcpy(big + sizeof big - 6, "\nabcd\n", 6);
    check_lines(big, sizeof big, 16,
                "lines.jsonl: line 1 has 399994 bytes; at most 16 are allowed|2:abcd|");
    check_lines(big, sizeof big - 6, 16,
                "lines.jsonl: line 1 has 399994 bytes; at most 16 are allowed|");
}

static void test_reader_takes_lines_longer_than_its_buffer(void **state)
{
    (void)state;
    static char text[TD_JSONL_LINE_MAX + 100];
    memset(text, 'y', sizeof text);
    memcpy(text, "a\n", 2);
    memcpy(text + 2 + TD_JSONL_LINE_MAX, "\r\nb", 3);
    put_file(text, 2 + TD_JSONL_LINE_MAX + 3);
    td_jsonl_reader *r = td_jsonl_reader_open(FILE_NAME, TD_JSONL_LINE_MAX, NULL);
    td_jsonl_line line;
    assert_int_equal(td_jsonl_read(r, &line, NULL), TD_JSONL_LINE);
    assert_int_equal(td_jsonl_read(r, &line, NULL), TD_JSONL_LINE);
    assert_int_equal(line.n_bytes, TD_JSONL_LINE_MAX);
    assert_int_equal(td_jsonl_read(r, &line, NULL), TD_JSONL_LINE);
    assert_string_equal(line.text, "b");
    assert_int_equal(line.number, 3);
    td_jsonl_reader_close(&r);
}

static void test_reader_tells_what_it_cannot_read(void **state)
{
    (void)state;
    td_err err = {0};
    assert_null(td_jsonl_reader_open("absent.jsonl", 100, &err));
    assert_int_equal(err.code, TD_E_IO);
    err = (td_err){0};
    assert_null(td_jsonl_reader_open(".", 100, &err));
    assert_int_equal(err.code, TD_E_DATA);
    err = (td_err){0};
    put_file("a\nb\n", 4);
    td_jsonl_line line;
    td_jsonl_reader *r = td_jsonl_reader_open(FILE_NAME, 100, &err);
    td_io_fail_at(TD_IO_READ, 1, EIO, true);
    assert_int_equal(td_jsonl_read(r, &line, &err), TD_JSONL_FAILED);
    assert_string_equal(err.message, "lines.jsonl: line 1: cannot be read: Input/output error");
    td_jsonl_reader_close(&r);
}

static void test_reader_survives_every_failed_allocation(void **state)
{
    (void)state;
    static char text[300000];
    memset(text, 'x', sizeof text);
    put_file(text, sizeof text);
    bool done = false;
    for (uint64_t i = 1; !done; i++) {
        td_err err = {0};
        td_jsonl_line line;
        td_alloc_fail_at(i);
        td_jsonl_reader *r = td_jsonl_reader_open(FILE_NAME, TD_JSONL_LINE_MAX, &err);
        done = r && td_jsonl_read(r, &line, &err) == TD_JSONL_LINE;
        assert_int_equal(err.code, done ? TD_OK : TD_E_NOMEM);
        td_jsonl_reader_close(&r);
        assert_true(done ? i > 5 : i < 20);
    }
}

/* ---- writer ---- */

typedef struct {
    char seen[512];
} scan_log;

/* Lines that start with '{' are good, "stop" stops, all others are bad. */
static td_jsonl_verdict scan(void *context, const td_jsonl_line *line, uint64_t offset, td_err *err)
{
    scan_log *log = context;
    size_t n = strlen(log->seen);
    snprintf(log->seen + n, sizeof log->seen - n, "%d@%d:%s|", (int)line->number, (int)offset,
             line->text);
    if (strcmp(line->text, "stop") == 0) {
        td_err_set(err, TD_E_USAGE, "stopped");
        return TD_JSONL_STOP;
    }
    return strchr(line->text, '}') ? TD_JSONL_KEEP : TD_JSONL_TORN;
}

static td_jsonl_writer *open_writer(scan_log *log, td_err *err)
{
    td_jsonl_writer_params p = {.path = FILE_NAME, .sync_lines = 2};
    memset(log, 0, sizeof *log);
    p.scan = scan;
    p.scan_context = log;
    return td_jsonl_writer_open(&p, err);
}

static void test_writer_appends_one_write_per_line_and_syncs_on_schedule(void **state)
{
    (void)state;
    scan_log log;
    td_err err = {0};
    td_jsonl_writer *w = open_writer(&log, &err);
    assert_non_null(w);
    assert_int_equal(td_io_count(TD_IO_SYNC), 1); /* of the directory: the file is new */
    assert_true(td_jsonl_write(w, "{1}", 3, &err));
    assert_int_equal(td_io_count(TD_IO_SYNC), 1);
    assert_true(td_jsonl_write(w, "{2}", 3, &err));
    assert_int_equal(td_io_count(TD_IO_SYNC), 2);
    assert_true(td_jsonl_write(w, "{3}", 3, &err));
    assert_int_equal(td_io_count(TD_IO_WRITE), 3);
    check_file("{1}\n{2}\n{3}\n");
    assert_true(td_jsonl_writer_close(&w, &err));
    assert_null(w);
    assert_int_equal(td_io_count(TD_IO_SYNC), 3);
    struct stat st;
    assert_true(stat(FILE_NAME, &st) == 0 && (st.st_mode & 0777 & ~0644u) == 0);
    /* A second run goes on behind the lines of the first. */
    w = open_writer(&log, &err);
    assert_non_null(w);
    assert_string_equal(log.seen, "1@0:{1}|2@4:{2}|3@8:{3}|");
    assert_true(td_jsonl_write(w, "{4}", 3, &err));
    assert_true(td_jsonl_writer_close(&w, &err));
    check_file("{1}\n{2}\n{3}\n{4}\n");
}

static void test_writer_syncs_by_time(void **state)
{
    (void)state;
    td_clock clock = td_clock_simulated(1000);
    td_jsonl_writer_params p = {.path = FILE_NAME, .sync_us = 500, .clock = &clock};
    td_jsonl_writer *w = td_jsonl_writer_open(&p, NULL);
    assert_non_null(w);
    td_io_reset_faults();
    assert_true(td_jsonl_write(w, "{}", 2, NULL));
    td_clock_advance(&clock, 499);
    assert_true(td_jsonl_writer_poll(w, NULL));
    assert_int_equal(td_io_count(TD_IO_SYNC), 0);
    td_clock_advance(&clock, 1);
    assert_true(td_jsonl_writer_poll(w, NULL));
    assert_int_equal(td_io_count(TD_IO_SYNC), 1);
    td_clock_advance(&clock, 5000);
    assert_true(td_jsonl_writer_poll(w, NULL)); /* nothing unsynced, nothing to do */
    assert_true(td_jsonl_writer_sync(w, NULL));
    assert_int_equal(td_io_count(TD_IO_SYNC), 1);
    assert_true(td_jsonl_writer_close(&w, NULL));
}

static void test_second_writer_of_a_file_is_refused(void **state)
{
    (void)state;
    scan_log log;
    td_err err = {0};
    td_jsonl_writer *w = open_writer(&log, &err);
    assert_null(open_writer(&log, &err));
    assert_int_equal(err.code, TD_E_AGAIN);
    assert_non_null(strstr(err.message, FILE_NAME));
    err = (td_err){0};
    assert_true(td_jsonl_writer_close(&w, &err));
    w = open_writer(&log, &err);
    assert_true(w && td_jsonl_writer_close(&w, &err));
}

static void check_open(const char *before, size_t n_bytes, td_err_code code, const char *part,
                       const char *after)
{
    scan_log log;
    td_err err = {0};
    put_file(before, n_bytes);
    td_jsonl_writer *w = open_writer(&log, &err);
    assert_int_equal(err.code, code);
    if (!strstr(err.message, part))
        fail_msg("\"%s\" does not say \"%s\"", err.message, part);
    assert_true((w != NULL) == (code == TD_OK));
    if (w) {
        assert_true(td_jsonl_write(w, "{new}", 5, &err));
        assert_true(td_jsonl_writer_close(&w, &err));
    }
    if (after)
        check_file(after);
}

static void test_open_removes_a_torn_tail_only(void **state)
{
    (void)state;
#define OPENS(before, after) check_open(before, sizeof before - 1, TD_OK, "", after)
#define REFUSES(before, code, part)                                                                \
    check_open(before, sizeof before - 1, code, part, sizeof before > 1 ? before : NULL)
    OPENS("", "{new}\n");
    OPENS("{a}\n{b", "{a}\n{new}\n");
    OPENS("{a}\n{b}", "{a}\n{new}\n"); /* without its line break nobody knows it is whole */
    OPENS("{a}\n{b\n", "{a}\n{new}\n");
    OPENS("{a}\n{b\n\n \n", "{a}\n{new}\n");
    OPENS("{a", "{new}\n");
    OPENS("{a}\n\0\0\0\0", "{a}\n{new}\n");
    OPENS("{a}\r\n\n{b}\n", "{a}\r\n\n{b}\n{new}\n");
    REFUSES("{a}\n{b\n{c}\n", TD_E_DATA, "line 2 is no result");
    REFUSES("{a}\n{b\n{c", TD_E_DATA, "line 2 is no result");
    REFUSES("{a}\nstop\n{c}\n", TD_E_USAGE, "stopped");
    REFUSES("{a}\nDear diary", TD_E_DATA, "line 2 (byte 4) is no result and is left alone");
    REFUSES("Dear diary\n", TD_E_DATA, "is this the right file?");
    REFUSES("\x7f"
            "ELF",
            TD_E_DATA, "is this the right file?");
}

static void test_torn_tail_that_cannot_be_cut_is_an_error(void **state)
{
    (void)state;
    td_io_fail_at(TD_IO_TRUNCATE, 1, EIO, false);
    check_open("{a}\n{b", 6, TD_E_IO, "ftruncate", "{a}\n{b");
}

/* Opens, writes three lines, closes; how far did it come? */
static bool write_three(td_err *err)
{
    scan_log log;
    td_jsonl_writer *w = open_writer(&log, err);
    bool ok = w != NULL;
    for (int i = 0; ok && i < 3; i++)
        ok = td_jsonl_write(w, "{123456789}", 11, err);
    td_err of_close = {0};
    bool closed = td_jsonl_writer_close(&w, &of_close);
    if (!closed && ok)
        td_err_set(err, of_close.code, "%s", of_close.message);
    return ok && closed;
}

/* Whatever failed: only whole lines are there, and a later run goes on behind them. */
static void check_whole_lines(void)
{
    char *text;
    size_t n_bytes;
    td_err err = {0};
    if (access(FILE_NAME, F_OK) != 0)
        return;
    assert_true(td_io_read_file(FILE_NAME, 1 << 24, &text, &n_bytes, NULL));
    assert_int_equal(n_bytes % 12, 0);
    td_free(text);
    assert_true(write_three(&err));
}

static void test_every_failing_call_is_an_error_and_leaves_whole_lines(void **state)
{
    (void)state;
    static const struct {
        td_io_call call;
        int error;
    } rows[] = {{TD_IO_OPEN, EACCES}, {TD_IO_WRITE, ENOSPC}, {TD_IO_WRITE, EIO},
                {TD_IO_SYNC, EIO},    {TD_IO_READ, EIO},     {TD_IO_OPEN, EROFS}};
    for (size_t i = 0; i < TD_COUNT(rows); i++) {
        bool done = false;
        for (uint64_t n = 1; !done; n++) {
            td_err err = {0};
            unlink(FILE_NAME);
            td_io_reset_faults();
            td_io_fail_at(rows[i].call, n, rows[i].error, true);
            done = write_three(&err);
            td_io_reset_faults();
            assert_int_equal(err.code, done ? TD_OK : TD_E_IO);
            if (!done && !strstr(err.message, strerror(rows[i].error)))
                fail_msg("\"%s\"", err.message);
            check_whole_lines();
            assert_true(done ? n > 1 : n < 20);
        }
    }
}

static void test_short_write_is_cut_back(void **state)
{
    (void)state;
    for (size_t n_taken = 0; n_taken < 12; n_taken++) {
        td_err err = {0};
        unlink(FILE_NAME);
        td_io_reset_faults();
        td_io_short_write_at(2, n_taken);
        assert_false(write_three(&err));
        assert_int_equal(err.code, TD_E_IO);
        assert_non_null(strstr(err.message, "of 12 bytes could be written"));
        check_file("{123456789}\n");
    }
    /* The cut fails too: it says so, and the next run repairs it. */
    td_err err = {0};
    unlink(FILE_NAME);
    td_io_reset_faults();
    td_io_short_write_at(2, 5);
    td_io_fail_at(TD_IO_TRUNCATE, 1, EIO, true);
    assert_false(write_three(&err));
    assert_non_null(strstr(err.message, "a torn line is left"));
    check_file("{123456789}\n{1234");
    td_io_reset_faults();
    err = (td_err){0};
    assert_true(write_three(&err));
    check_file("{123456789}\n{123456789}\n{123456789}\n{123456789}\n");
}

static void test_failed_sync_is_not_tried_again(void **state)
{
    (void)state;
    scan_log log;
    td_err err = {0};
    td_jsonl_writer *w = open_writer(&log, &err);
    td_io_reset_faults();
    td_io_fail_at(TD_IO_SYNC, 1, EIO, false); /* the second would succeed */
    assert_true(td_jsonl_write(w, "{1}", 3, &err));
    assert_false(td_jsonl_write(w, "{2}", 3, &err));
    assert_int_equal(err.code, TD_E_IO);
    assert_false(td_jsonl_write(w, "{3}", 3, NULL));
    assert_false(td_jsonl_writer_sync(w, NULL));
    assert_false(td_jsonl_writer_poll(w, NULL));
    err = (td_err){0};
    assert_false(td_jsonl_writer_close(&w, &err));
    assert_int_equal(err.code, TD_E_IO);
    assert_int_equal(td_io_count(TD_IO_SYNC), 1);
    assert_int_equal(td_io_count(TD_IO_WRITE), 2);
}

static void test_writer_survives_every_failed_allocation(void **state)
{
    (void)state;
    bool done = false;
    for (uint64_t i = 1; !done; i++) {
        td_err err = {0};
        unlink(FILE_NAME);
        td_alloc_fail_at(i);
        done = write_three(&err);
        td_alloc_fail_at(0);
        assert_int_equal(err.code, done ? TD_OK : TD_E_NOMEM);
        check_whole_lines();
        assert_true(done ? i > 4 : i < 20);
    }
}

static void test_pipe_is_only_written_to_and_its_end_is_an_error(void **state)
{
    (void)state;
    assert_int_equal(mkfifo(FILE_NAME, 0600), 0);
    int in = open(FILE_NAME, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    td_err err = {0};
    scan_log log;
    td_jsonl_writer *w = open_writer(&log, &err);
    assert_non_null(w);
    td_io_reset_faults();
    td_io_short_write_at(1, 1); /* a pipe may take a part: the rest follows */
    td_io_fail_at(TD_IO_WRITE, 2, EINTR, false);
    assert_true(td_jsonl_write(w, "{1}", 3, &err));
    char got[8] = "";
    assert_int_equal(read(in, got, sizeof got), 4);
    assert_string_equal(got, "{1}\n");
    assert_int_equal(td_io_count(TD_IO_SYNC) + td_io_count(TD_IO_TRUNCATE), 0);
    close(in);
    assert_false(td_jsonl_write(w, "{2}", 3, &err));
    assert_int_equal(err.code, TD_E_IO);
    assert_non_null(strstr(err.message, "Broken pipe"));
    assert_false(td_jsonl_writer_close(&w, NULL));
}

static void test_stdout_is_not_locked_cut_or_closed(void **state)
{
    (void)state;
    int saved = dup(STDOUT_FILENO);
    fflush(stdout);
    int fd = open(FILE_NAME, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    assert_true(fd >= 0 && dup2(fd, STDOUT_FILENO) >= 0);
    td_jsonl_writer_params p = {.path = "-", .sync_lines = 1};
    td_jsonl_writer *w = td_jsonl_writer_open(&p, NULL);
    bool ok = w && td_jsonl_write(w, "{1}", 3, NULL) && td_jsonl_writer_close(&w, NULL);
    bool is_open = fcntl(STDOUT_FILENO, F_GETFD) >= 0;
    dup2(saved, STDOUT_FILENO);
    close(saved);
    close(fd);
    assert_true(ok && is_open);
    assert_int_equal(td_io_count(TD_IO_SYNC), 0);
    check_file("{1}\n");
}

static void test_too_long_line_is_refused_and_writing_goes_on(void **state)
{
    (void)state;
    scan_log log;
    td_err err = {0};
    td_jsonl_writer *w = open_writer(&log, &err);
    char *text = malloc(TD_JSONL_RESULT_MAX + 1);
    assert_non_null(text);
    memset(text, '{', TD_JSONL_RESULT_MAX + 1);
    assert_false(td_jsonl_write(w, text, TD_JSONL_RESULT_MAX + 1, &err));
    assert_int_equal(err.code, TD_E_DATA);
    free(text);
    assert_true(td_jsonl_write(w, "{1}", 3, NULL));
    assert_true(td_jsonl_writer_close(&w, NULL));
    check_file("{1}\n");
}

/* Writes lines of growing length until it is killed. */
static _Noreturn void write_forever(int to_parent)
{
    td_err err = {0};
    char line[3000];
    scan_log log;
    td_jsonl_writer *w = open_writer(&log, &err);
    if (!w)
        _exit(1);
    for (size_t n = 2;; n = n % 2900 + 1) {
        memset(line, 'x', sizeof line);
        line[0] = '{';
        line[n] = '}';
        if (!td_jsonl_write(w, line, n + 1, &err) || write(to_parent, "", 1) != 1)
            _exit(2);
    }
}

static void test_killed_runs_lose_no_line_they_were_told_of(void **state)
{
    (void)state;
    uint64_t n_told = 0;
    for (int round = 0; round < 20; round++) {
        int fds[2];
        assert_int_equal(pipe(fds), 0);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0)
            write_forever(fds[1]);
        close(fds[1]);
        char byte;
        for (int i = 0; i <= round * 3; i++)
            assert_int_equal(read(fds[0], &byte, 1), 1);
        assert_int_equal(kill(child, SIGKILL), 0);
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        n_told += (uint64_t)round * 3 + 1;
        while (read(fds[0], &byte, 1) == 1)
            n_told++;
        close(fds[0]);
    }
    /* Every line is whole, and none that was acknowledged is missing. */
    td_err err = {0};
    scan_log log;
    td_jsonl_writer *w = open_writer(&log, &err);
    assert_true(w && td_jsonl_writer_close(&w, &err));
    td_jsonl_reader *r = td_jsonl_reader_open(FILE_NAME, 4096, &err);
    td_jsonl_line line;
    uint64_t n_lines = 0;
    while (td_jsonl_read(r, &line, &err) == TD_JSONL_LINE) {
        assert_true(line.text[0] == '{' && line.text[line.n_bytes - 1] == '}');
        n_lines++;
    }
    td_jsonl_reader_close(&r);
    assert_int_equal(err.code, TD_OK);
    assert_true(n_lines >= n_told && n_lines <= n_told + 20);
}

/* ---- whole files ---- */

static void test_replaced_file_is_old_or_new_whatever_fails(void **state)
{
    (void)state;
    static const td_io_call calls[] = {TD_IO_OPEN, TD_IO_WRITE, TD_IO_SYNC, TD_IO_RENAME};
    for (size_t i = 0; i < TD_COUNT(calls); i++) {
        for (uint64_t n = 1; n <= 2; n++) {
            td_err err = {0};
            put_file("old", 3);
            td_io_reset_faults();
            td_io_fail_at(calls[i], n, EIO, false);
            bool ok = td_io_replace_file(FILE_NAME, "new", 3, &err);
            td_io_reset_faults();
            assert_int_equal(err.code, ok ? TD_OK : TD_E_IO);
            /* Once renamed it is the new one, even if the directory could not be synced. */
            bool is_late = n == 2 && (calls[i] == TD_IO_OPEN || calls[i] == TD_IO_SYNC);
            check_file(ok || is_late ? "new" : "old");
            assert_true(ok == (n == 2 && !is_late));
        }
    }
    for (uint64_t n = 1; n <= 2; n++) {
        td_err err = {0};
        put_file("old", 3);
        td_alloc_fail_at(n);
        assert_false(td_io_replace_file(FILE_NAME, "new", 3, &err));
        td_alloc_fail_at(0);
        assert_int_equal(err.code, TD_E_NOMEM);
        check_file(n == 1 ? "old" : "new");
    }
    td_io_short_write_at(1, 1);
    assert_true(td_io_replace_file(FILE_NAME, "newer", 5, NULL));
    check_file("newer");
    assert_true(td_io_replace_file("/dev/null", "x", 1, NULL));
    struct stat st;
    assert_true(stat("/dev/null", &st) == 0 && S_ISCHR(st.st_mode));
    td_err err = {0};
    assert_false(td_io_replace_file("no/such/directory", "x", 1, &err));
    assert_int_equal(err.code, TD_E_IO);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_teardown(name, clean)
    const struct CMUnitTest tests[] = {
        TEST(test_reader_takes_lines_as_people_write_them),
        TEST(test_reader_skips_a_long_line_and_goes_on),
        TEST(test_reader_takes_lines_longer_than_its_buffer),
        TEST(test_reader_tells_what_it_cannot_read),
        TEST(test_reader_survives_every_failed_allocation),
        TEST(test_writer_appends_one_write_per_line_and_syncs_on_schedule),
        TEST(test_writer_syncs_by_time),
        TEST(test_second_writer_of_a_file_is_refused),
        TEST(test_open_removes_a_torn_tail_only),
        TEST(test_torn_tail_that_cannot_be_cut_is_an_error),
        TEST(test_every_failing_call_is_an_error_and_leaves_whole_lines),
        TEST(test_short_write_is_cut_back),
        TEST(test_failed_sync_is_not_tried_again),
        TEST(test_writer_survives_every_failed_allocation),
        TEST(test_pipe_is_only_written_to_and_its_end_is_an_error),
        TEST(test_stdout_is_not_locked_cut_or_closed),
        TEST(test_too_long_line_is_refused_and_writing_goes_on),
        TEST(test_killed_runs_lose_no_line_they_were_told_of),
        TEST(test_replaced_file_is_old_or_new_whatever_fails),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
