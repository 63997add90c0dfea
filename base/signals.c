/* The handler may do almost nothing, so it does almost nothing: it sets an atomic flag and adds to
 * an eventfd, both safe in a signal handler. The rest happens in the event loop. */
#include "base/signals.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

static atomic_int pending;
static atomic_int event_fd = -1;

static const int handled[] = {SIGINT, SIGTERM, SIGPIPE};
#define N_HANDLED (sizeof handled / sizeof handled[0])
static struct sigaction before[N_HANDLED];

static void on_signal(int number)
{
    int saved_errno = errno;
    int expected = 0;
    if (!atomic_compare_exchange_strong(&pending, &expected, number) && number == SIGINT)
        _exit(128 + SIGINT); /* the user insists */
    int fd = atomic_load(&event_fd);
    const uint64_t one = 1;
    if (fd >= 0) {
        /* It can only fail when the counter is full, and then the descriptor is readable. */
        ssize_t n = write(fd, &one, sizeof one);
        (void)n;
    }
    errno = saved_errno;
}

bool td_signals_open(td_err *err)
{
    if (atomic_load(&event_fd) >= 0)
        return true;
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (fd < 0)
        return td_err_set(err, TD_E_IO, "signals: eventfd: %s", strerror(errno));
    atomic_store(&event_fd, fd);
    for (size_t i = 0; i < N_HANDLED; i++) {
        /* No SA_RESTART: a blocked read must come back and look at the flag. */
        struct sigaction action = {.sa_handler = handled[i] == SIGPIPE ? SIG_IGN : on_signal};
        sigemptyset(&action.sa_mask);
        if (sigaction(handled[i], &action, &before[i]) != 0) {
            td_err_set(err, TD_E_IO, "signals: sigaction of %d: %s", handled[i], strerror(errno));
            while (i-- > 0)
                sigaction(handled[i], &before[i], NULL);
            atomic_store(&event_fd, -1);
            close(fd);
            return false;
        }
    }
    return true;
}

void td_signals_close(void)
{
    int fd = atomic_load(&event_fd);
    if (fd < 0)
        return;
    for (size_t i = 0; i < N_HANDLED; i++)
        sigaction(handled[i], &before[i], NULL);
    atomic_store(&event_fd, -1);
    atomic_store(&pending, 0);
    close(fd);
}

int td_signals_fd(void) { return atomic_load(&event_fd); }

int td_signals_pending(void) { return atomic_load(&pending); }
