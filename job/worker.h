/* A worker of a job: a thread of its own talks to the database, so that neither a slow server nor
 * one that is gone holds up what is generated. It takes lines ahead, holds their leases, hands in
 * results in batches and keeps them on the disk (spool.h) while they cannot be handed in.
 *
 *     w = td_worker_open(...); td_worker_begin(w, sha, identity)
 *     reading thread:  while (td_worker_next(w, &line)) ...
 *     event loop:      td_worker_put(w, ...); poll(td_worker_fd(w))
 *
 * td_worker_next is for one thread, all else for one other. Errors: those of job/job.h; what the
 * thread met is told by td_worker_poll and td_worker_put. */
#ifndef TD_JOB_WORKER_H
#define TD_JOB_WORKER_H

#include "job/job.h"

#define TD_WORKER_ROOM (64u << 20) /* bytes of results that may wait before no line is begun */

typedef struct {
    const char *url;
    uint32_t n_hold; /* lines held at once, begun or not */
    double lease_s;
} td_worker_params;

typedef struct td_worker td_worker;

/* Connects; the job must be there. */
td_worker *td_worker_open(const td_worker_params *params, td_err *err);
const td_job_settings *td_worker_settings(const td_worker *w);
/* For messages. */
const char *td_worker_name(const td_worker *w);
/* From here on lines are taken. sha, identity: of the arithmetic. TD_E_DATA where the job demands
 * another; *demanded then gets the identity of that (or ""). */
bool td_worker_begin(td_worker *w, const char *sha, const char *identity, char *demanded,
                     size_t n_demanded, td_err *err);

/* Waits for a line; it is to be freed by td_job_line_free. False when all lines of the job have
 * ended, once stop_fd is readable or a signal asks for a drain, or with err set. */
bool td_worker_next(td_worker *w, td_job_line *line, int stop_fd, td_err *err);

/* The result of a line that was given out, by its id; copied. */
bool td_worker_put(td_worker *w, const char *id, const td_job_result *result, td_err *err);
bool td_worker_has_room(td_worker *w);
int td_worker_fd(const td_worker *w);
bool td_worker_poll(td_worker *w, td_err *err);

/* Hands in what it can within `patience_s`, gives lines back that have no result. TD_E_AGAIN where
 * results are left on the disk. */
bool td_worker_close(td_worker **w, double patience_s, td_err *err);

#endif
