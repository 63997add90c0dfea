/* A run's timeline (--trace FILE) in the Chrome trace event format (the "JSON Array Format" of
 * "Trace Event Format", Google 2016), which Perfetto and chrome://tracing open: a track for the
 * coordinator's decisions, one for the draft, one for each stage of the target.
 *
 *     td_trace *t = td_trace_open(&params, &err);
 *     td_trace_action(t, &action, now);       // each action, as it is performed
 *     td_trace_verified(t, &result);          // each result of the target
 *     td_trace_draft(t, sequence, epoch, position, n, busy_us, now);
 *     td_trace_take(t, target, 0);            // now and then: what stages elsewhere told
 *     td_trace_close(&t, now, &err);
 *
 * Spans are the devices' busy times; what was cancelled or came too late says so. Each other
 * machine is a process of its own, with tracks of what its link brought and took and of how long
 * batches waited there; its clock is held against ours, and how far that may be wrong stands in an
 * event "clock". The last event has each device's idle share between the first action and the last.
 *
 * Written as it goes, in blocks, so a run that is killed leaves what viewers still open, and memory
 * is bounded. After TD_TRACE_BYTES_MAX nothing more is written; the file says where that was, and
 * so does a warning.
 *
 * All calls take NULL for "no trace". One thread. Errors: td_trace_open TD_E_IO, TD_E_NOMEM; later
 * ones are kept, nothing is written after the first, and td_trace_close tells it. */
#ifndef TD_RUN_TRACE_H
#define TD_RUN_TRACE_H

#include "coordinator/coordinator.h"
#include "target/target.h"

#define TD_TRACE_BYTES_MAX (256ull << 20) /* viewers want several times that as memory */

typedef struct td_trace td_trace;

typedef struct {
    const char *path;
    td_target *target;    /* stages elsewhere tell what they do from then on */
    const char *draft;    /* device or endpoint of the draft; NULL: there is none */
    uint64_t start_us;    /* the file's time 0, by the real clock, as all times here */
    uint64_t n_bytes_max; /* 0: TD_TRACE_BYTES_MAX */
} td_trace_params;

td_trace *td_trace_open(const td_trace_params *params, td_err *err);
/* Closes the file, which is whole JSON then. False: something was not written. */
bool td_trace_close(td_trace **trace, uint64_t now_us, td_err *err);

void td_trace_action(td_trace *t, const td_action *a, uint64_t now_us);
void td_trace_verified(td_trace *t, const td_target_result *result, uint64_t now_us);
/* What stages elsewhere told since; within_us: waits so long for what they have not told yet. */
void td_trace_take(td_trace *t, td_target *target, uint64_t within_us);
/* The target was loaded again, maybe on other devices. */
void td_trace_set_target(td_trace *t, td_target *target);
/* An answer of the draft: n tokens for `position`, which took its device busy_us. */
void td_trace_draft(td_trace *t, uint32_t sequence, uint32_t epoch, uint32_t position, uint32_t n,
                    uint32_t busy_us, uint64_t now_us);

#endif
