/* The coordinator's end of stages on other machines: a session with each worker, and for each run
 * of neighbouring workers a queue like a stage's, whose jobs go to the first of them and come back
 * from the last. One thread owns all links (remotes_main); before it is started the caller's does.
 *
 * Order is kept as between threads: jobs wait in transit until the batches before them have come
 * back, then go on to the next stage here. When a worker is lost, everything in transit and
 * everything that comes fails with TD_E_UNAVAILABLE, at once.
 *
 * Private to target/. Errors: TD_E_UNAVAILABLE for a worker that is not there, refuses or is
 * lost. */
#ifndef TD_TARGET_REMOTE_H
#define TD_TARGET_REMOTE_H

#include "planning/layout.h"
#include "target/job.h"
#include "transport/link.h"
#include "transport/stage_wire.h"

typedef struct td_remotes td_remotes;

/* Begins to greet the hosts' workers. */
td_remotes *td_remotes_create(const td_host *hosts, uint32_t n_hosts, const char *key, td_err *err);
/* The same with one host, for a draft model there. */
td_remotes *td_remotes_create_draft(const td_host *host, const char *key, td_err *err);
/* Waits until all have said who they are; an error after TD_TARGET_PATIENCE_US. */
bool td_remotes_join(td_remotes *r, td_err *err);
/* Waits until the first n_needed have, but no longer than so. */
void td_remotes_await(td_remotes *r, uint32_t n_needed, uint64_t within_us);
/* What a worker said that is there and free; NULL: why not. */
const td_stage_hello_ok *td_remotes_find(td_remotes *r, uint32_t worker, td_err *why);
void td_remotes_destroy(td_remotes **remotes); /* says goodbye; stops the thread */
const td_stage_hello_ok *td_remotes_hello(const td_remotes *r, uint32_t worker);

/* Asks all workers at the same time and waits for the answers; plans[n_hosts]. Those that have not
 * the model (borrowed until td_remotes_destroy) are sent what they need of it, which the progress
 * of params is told. */
bool td_remotes_plan(td_remotes *r, const td_stage_plan *plans, const td_layout_params *params,
                     td_stage_planned *out, td_err *err);

/* A run: n neighbouring workers from `first` on, its queue, and where its jobs go on. */
typedef struct {
    uint32_t first, n;
    td_queue *in, *out;
    void (*wake)(void *user); /* after a batch on `out` */
    void *user;
} td_remote_run;

/* Has the workers load what was planned last, and the thread serve them from now on. */
bool td_remotes_load(td_remotes *r, uint32_t n_ctx, uint32_t n_pages, const td_remote_run *runs,
                     uint32_t n_runs, const td_stage_limits *limits, uint32_t n_stages,
                     td_err *err);
/* Has a draft loaded that was planned last, for the connection that the ticket tells. */
void td_remotes_load_draft(td_remotes *r, uint32_t n_ctx, uint64_t ticket);
/* Waits until all have; bytes loaded so far to `progress`, if any. */
bool td_remotes_wait(td_remotes *r, bool (*progress)(void *user, uint64_t done, uint64_t total),
                     void *user, td_err *err);
const td_stage_ready *td_remotes_ready(const td_remotes *r, uint32_t worker);
void td_remotes_stop(td_remotes *r); /* after a JOB_STOP in every run's queue: joins */

/* From when all are loaded on: what workers did is asked for (target.h). */
bool td_remotes_trace(td_remotes *r, td_err *err);
bool td_remotes_next_event(td_remotes *r, td_target_event *out);
/* Waits for events of what was done before the first call; false: all were told and taken. */
bool td_remotes_await_events(td_remotes *r, uint64_t within_us);
void td_remotes_get_clock(td_remotes *r, uint32_t worker, td_target_clock *out);

/* Once all are loaded and before any job: has the workers keep chunks of so many positions. False
 * where one is lost; *without: the name of a host that has no folder for them, or NULL. */
bool td_remotes_keep(td_remotes *r, uint32_t chunk_rows, const char **without, td_err *err);
/* Asks all workers for a chunk; found_chunk() waits until they have said whether they have it:
 * false where one has not, or is lost. *damaged: of one whose file is, or NULL; *late: of one that
 * has not said it for so long that nobody waits any more, or NULL. One thread, in turns. */
void td_remotes_find_chunk(td_remotes *r, const td_stage_find *find);
bool td_remotes_found_chunk(td_remotes *r, const char **damaged, const char **late);

/* Tells the thread that a queue has a batch, or that one was cancelled. Any thread. */
void td_remotes_wake(void *remotes);

#endif
