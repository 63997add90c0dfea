/* The coordinator's end of `tandem check --device NAME/SPEC`: a session with a worker that is free,
 * in which it tries devices of its own. What was found comes as the bytes that the worker's `check`
 * wrote (worker.h); that they are a report is for the caller to see.
 *
 *     td_remote_check *c = td_remote_check_open(&host, key, &err);
 *     td_remote_check_run(c, &(td_remote_check_params){.spec = "vulkan:0"}, &bytes, &n, &err);
 *
 * One thread. Errors: TD_E_UNAVAILABLE (no worker there, a busy one, a check that could not be
 * begun), TD_E_DEVICE_LOST (lost meanwhile), TD_E_USAGE (a device that is not there), TD_E_AGAIN
 * (a signal). */
#ifndef TD_TARGET_REMOTE_CHECK_H
#define TD_TARGET_REMOTE_CHECK_H

#include "planning/placement.h"

typedef struct td_remote_check td_remote_check;

typedef struct {
    const char *spec, *other; /* without the host; other: NULL: spec */
    const char *only;         /* NULL: all */
    bool is_quick, is_hop;
    void (*progress)(void *user, const char *doing); /* or NULL */
    void *user;
} td_remote_check_params;

/* key: our own pair; NULL: the only one. Waits until the worker is free, for TD_TARGET_PATIENCE_US
 * at most. */
td_remote_check *td_remote_check_open(const td_host *host, const char *key, td_err *err);
void td_remote_check_close(td_remote_check **check);

/* The devices that the worker has: *n of specs[], which live as long as the session. */
void td_remote_check_list(const td_remote_check *check, const char **specs, uint32_t n_max,
                          uint32_t *n);
/* bytes: until the next one. */
bool td_remote_check_run(td_remote_check *check, const td_remote_check_params *params,
                         const void **bytes, size_t *n_bytes, td_err *err);

#endif
