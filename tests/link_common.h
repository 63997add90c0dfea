/* A private directory for sockets, and waiting with an end, for the link tests. */
#ifndef TD_TESTS_LINK_COMMON_H
#define TD_TESTS_LINK_COMMON_H

#include "transport/link.h"
#include "transport/wire.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* libzmq is not built with the thread sanitizer, which therefore does not see the atomics by which
 * its threads hand over a message, and takes every hand-over for a race. Our own are still seen. */
const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void)
{
    return "called_from_lib:libzmq.so\nrace:libzmq.so\nrace:^recv_one$\n";
}

/* The end of a wait that should be short; a loaded machine is slow. */
#define PATIENCE_US 20000000

typedef struct {
    char dir[64];
    char path[96];
    char endpoint[104]; /* ipc://DIR/s */
} socket_dir;

static inline void socket_dir_make(socket_dir *d)
{
    snprintf(d->dir, sizeof d->dir, P_tmpdir "/tandem-test-XXXXXX");
    assert_non_null(mkdtemp(d->dir)); /* mode 0700 */
    snprintf(d->path, sizeof d->path, "%s/s", d->dir);
    snprintf(d->endpoint, sizeof d->endpoint, "ipc://%s", d->path);
}

static inline void socket_dir_remove(socket_dir *d)
{
    unlink(d->path);
    rmdir(d->dir);
}

static inline td_link *must_open(td_transport *t, const char *endpoint, td_link_side side)
{
    td_err err = {0};
    td_link *l = td_link_open(t, endpoint, side, &err);
    if (!l)
        fail_msg("%s", err.message);
    return l;
}

/* Waits for the next message; its length. */
static inline size_t must_recv(td_link *l, uint8_t *buffer, td_route *route)
{
    td_clock clock = td_clock_real();
    uint64_t end_us = td_clock_now_us(&clock) + PATIENCE_US;
    td_err err = {0};
    for (;;) {
        size_t n;
        if (!td_link_recv(l, buffer, &n, route, &err))
            fail_msg("%s", err.message);
        if (n)
            return n;
        if (td_clock_now_us(&clock) > end_us)
            fail_msg("nothing came");
        td_link_poll_item item = {.link = l};
        if (!td_link_poll(&item, 1, 100000, &err))
            fail_msg("%s", err.message);
    }
}

/* Sends until the peer is there to take it. */
static inline void must_send(td_link *l, td_route route, const void *bytes, size_t n)
{
    for (int i = 0; i < PATIENCE_US / 1000; i++) {
        if (td_link_try_send(l, route, bytes, n, NULL))
            return;
        usleep(1000);
    }
    fail_msg("nobody takes it");
}

#endif
