/* Starting and ending the tandem program from a test. TANDEM names it. */
#ifndef TD_TESTS_E2E_PROCESS_H
#define TD_TESTS_E2E_PROCESS_H

#include "tests/e2e_common.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

extern char **environ;

#define PATIENCE_MS 60000 /* the end of a wait that should be short; a loaded machine is slow */

static inline const char *tandem_program(void)
{
    const char *path = getenv("TANDEM");
    if (!path)
        printf("skipped: TANDEM does not name the program\n");
    return path;
}

static inline void sleep_ms(long ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&t, NULL);
}

/* argv[0] is filled in; output goes nowhere. */
static inline pid_t start_tandem(const char **argv)
{
    posix_spawn_file_actions_t actions;
    pid_t pid;
    argv[0] = tandem_program();
    /* libzmq looks like races to the thread sanitizer (e2e_common.h), and the program suppresses
     * nothing; it is in this process that the sanitizer's word counts. */
    setenv("TSAN_OPTIONS", "exitcode=0", 0);
    assert_int_equal(posix_spawn_file_actions_init(&actions), 0);
    assert_int_equal(posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0), 0);
    assert_int_equal(posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0), 0);
    assert_int_equal(posix_spawn(&pid, argv[0], &actions, NULL, (char **)(uintptr_t)argv, environ),
                     0);
    posix_spawn_file_actions_destroy(&actions);
    return pid;
}

/* Sends a signal (0: none) and waits for the end: the exit code, or 256 +
 * the signal that killed. */
static inline int stop_process(pid_t pid, int signal)
{
    int status = 0;
    if (signal)
        assert_int_equal(kill(pid, signal), 0);
    for (int i = 0; waitpid(pid, &status, WNOHANG) == 0; i++) {
        if (i == PATIENCE_MS / 10) {
            kill(pid, SIGKILL);
            waitpid(pid, &status, 0);
            fail_msg("the process does not end");
        }
        sleep_ms(10);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

/* A draft worker at an ipc endpoint; returns when its socket is there. */
static inline pid_t start_draft(const char *model, const char *endpoint, const char *n_ctx)
{
    const char *argv[] = {NULL,     "draft", "--model", model, "--bind",
                          endpoint, "--ctx", n_ctx,     NULL};
    const char *path = endpoint + strlen("ipc://");
    struct stat st;
    unlink(path);
    pid_t pid = start_tandem(argv);
    for (int i = 0; stat(path, &st); i++) {
        int status;
        if (i == PATIENCE_MS / 10 || waitpid(pid, &status, WNOHANG))
            fail_msg("the draft worker does not start");
        sleep_ms(10);
    }
    return pid;
}

#endif
