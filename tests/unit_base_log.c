/* Log lines, the progress line, and signals. */
#include "base/check.h"
#include "base/jsonl.h"
#include "base/log.h"
#include "base/signals.h"

#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static FILE *file;

static void begin_log(bool is_terminal)
{
    file = tmpfile();
    assert_non_null(file);
    td_log_set_level(TD_LOG_INFO);
    td_log_set_output(fileno(file), is_terminal);
}

/* What was written since begin_log. */
static const char *end_log(void)
{
    static char text[1 << 20];
    td_log_set_output(STDERR_FILENO, false);
    rewind(file);
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    return text;
}

static void test_log_writes_one_plain_line_per_call(void **state)
{
    (void)state;
    begin_log(false);
    td_log_warn("%s has %d", "x", 3);
    td_log_debug("not shown");
    td_log_info("a\nb\x1b[2J\xc3\xa9");
    td_log_progress("50 %%");
    td_log_progress_end();
    td_log_set_level(TD_LOG_ERROR);
    td_log_warn("not shown");
    td_log_error("shown");
    assert_string_equal(end_log(), "tandem: warning: x has 3\n"
                                   "tandem: info: a\\x0ab\\x1b[2J\xc3\xa9\n"
                                   "tandem: error: shown\n");
}

static void test_log_cuts_and_marks_long_lines(void **state)
{
    (void)state;
    begin_log(false);
    char longer[2 * TD_LOG_LINE_MAX];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    td_log_info("%s", longer);
    memset(longer, '\n', sizeof longer - 1);
    td_log_info("%s", longer);
    const char *text = end_log();
    const char *second = strchr(text, '\n') + 1;
    assert_memory_equal(second - 4, "...\n", 4);
    assert_memory_equal(text + strlen(text) - 4, "...\n", 4);
    assert_true(strlen(second) <= TD_LOG_LINE_MAX + 32);
    assert_ptr_equal(strchr(second, '\n'), text + strlen(text) - 1);
}

static void test_levels_have_names(void **state)
{
    (void)state;
    td_log_level level = TD_LOG_INFO;
    assert_true(td_log_find_level("debug", &level) && level == TD_LOG_DEBUG);
    assert_true(td_log_find_level("warn", &level) && level == TD_LOG_WARN);
    assert_false(td_log_find_level("WARN", &level));
    assert_false(td_log_find_level("", &level));
    td_log_set_level(TD_LOG_DEBUG);
    assert_int_equal(td_log_get_level(), TD_LOG_DEBUG);
    td_log_set_level(TD_LOG_INFO);
}

static void test_log_lines_move_the_progress_line_aside(void **state)
{
    (void)state;
    setenv("NO_COLOR", "1", 1);
    begin_log(true);
    td_log_progress("1 of 2");
    td_log_info("line");
    td_log_progress("2 of 2\n");
    td_log_progress_end();
    td_log_info("last");
    unsetenv("NO_COLOR");
    td_log_error("red");
    assert_string_equal(end_log(), "\r\x1b[K1 of 2"
                                   "\r\x1b[Ktandem: info: line\n1 of 2"
                                   "\r\x1b[K2 of 2\\x0a"
                                   "\r\x1b[K"
                                   "tandem: info: last\n"
                                   "\x1b[1;31mtandem: error:\x1b[0m red\n");
}

static void *log_many(void *argument)
{
    for (int i = 0; i < 200; i++)
        td_log_info("%s", (const char *)argument);
    return NULL;
}

static void test_lines_of_threads_do_not_mix(void **state)
{
    (void)state;
    begin_log(false);
    pthread_t threads[4];
    char *texts[] = {"aaaaaaaaaaaaaaaaaaaaaaaa", "b", "cccccccccccc", "dddd"};
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, log_many, texts[i]), 0);
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    int n_lines = 0;
    for (const char *p = end_log(); *p; n_lines++) {
        assert_memory_equal(p, "tandem: info: ", 14);
        p += 14;
        const char *text = texts[*p - 'a'];
        assert_memory_equal(p, text, strlen(text));
        p += strlen(text);
        assert_int_equal(*p++, '\n');
    }
    assert_int_equal(n_lines, 800);
}

static bool is_readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

static void test_signal_sets_the_flag_and_wakes_the_descriptor(void **state)
{
    (void)state;
    td_err err = {0};
    assert_int_equal(td_signals_fd(), -1);
    assert_true(td_signals_open(&err));
    assert_true(td_signals_open(&err));
    assert_int_equal(td_signals_pending(), 0);
    assert_false(is_readable(td_signals_fd()));
    assert_int_equal(raise(SIGTERM), 0);
    assert_int_equal(raise(SIGTERM), 0); /* more of these do nothing */
    assert_int_equal(td_signals_pending(), SIGTERM);
    assert_true(is_readable(td_signals_fd()));
    /* SIGPIPE is ignored: the write fails instead. */
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    close(fds[0]);
    assert_int_equal(write(fds[1], "x", 1), -1);
    close(fds[1]);
    td_signals_close();
    assert_int_equal(td_signals_pending(), 0);
    assert_int_equal(td_signals_fd(), -1);
}

static void test_second_interrupt_exits_at_once(void **state)
{
    (void)state;
    static const int first[] = {SIGINT, SIGTERM};
    for (size_t i = 0; i < TD_COUNT(first); i++) {
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            if (!td_signals_open(NULL) || raise(first[i]) != 0 || !td_signals_pending())
                _exit(1);
            raise(SIGINT);
            _exit(2);
        }
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 130);
    }
}

static void test_signal_ends_a_blocked_read_of_lines(void **state)
{
    (void)state;
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    int saved = dup(STDIN_FILENO);
    assert_true(dup2(fds[0], STDIN_FILENO) >= 0);
    assert_true(td_signals_open(NULL));
    td_err err = {0};
    td_jsonl_line line;
    td_jsonl_reader *r = td_jsonl_reader_open("-", 100, &err);
    assert_int_equal(write(fds[1], "a\nb", 3), 3);
    assert_int_equal(td_jsonl_read(r, &line, &err), TD_JSONL_LINE);
    raise(SIGINT); /* it comes before the read that would block for ever */
    assert_int_equal(td_jsonl_read(r, &line, &err), TD_JSONL_FAILED);
    assert_int_equal(err.code, TD_E_AGAIN);
    td_jsonl_reader_close(&r);
    td_signals_close();
    dup2(saved, STDIN_FILENO);
    close(saved);
    close(fds[0]);
    close(fds[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_log_writes_one_plain_line_per_call),
        cmocka_unit_test(test_log_cuts_and_marks_long_lines),
        cmocka_unit_test(test_levels_have_names),
        cmocka_unit_test(test_log_lines_move_the_progress_line_aside),
        cmocka_unit_test(test_lines_of_threads_do_not_mix),
        cmocka_unit_test(test_signal_sets_the_flag_and_wakes_the_descriptor),
        cmocka_unit_test(test_second_interrupt_exits_at_once),
        cmocka_unit_test(test_signal_ends_a_blocked_read_of_lines),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
