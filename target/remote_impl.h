/* What the halves of the coordinator's end share: sessions (remote.c) and runs (remote_run.c). For
 * target/remote*.c alone. All of it is the thread's, under the lock; others look under the lock. */
#ifndef TD_TARGET_REMOTE_IMPL_H
#define TD_TARGET_REMOTE_IMPL_H

#include "target/remote.h"

#include "base/clock.h"
#include "target/fetch.h"
#include "target/probes.h"
#include "target/remote_clock.h"
#include "target/stage_stream.h"

#include <pthread.h>

typedef struct {
    size_t n_bytes;
    uint8_t bytes[TD_STAGE_REPORT_MAX];
} td_remote_report;

typedef enum {
    SESSION_GREETING,
    SESSION_CHECKING, /* then, as when it was at one of the next three, it is idle again */
    SESSION_MEASURING,
    SESSION_PROBING,
    SESSION_MEETING,
    SESSION_IDLE,
    SESSION_PLANNING,
    SESSION_PLANNED,
    SESSION_LOADING,
    SESSION_READY,
    SESSION_LOST
} session_state;

typedef struct {
    char name[TD_HOST_NAME_MAX], endpoint[TD_STAGE_ENDPOINT_MAX + 1];
    td_link *link;
    td_stage_way way;
    uint64_t n_seen, heard_us, next_us; /* next_us: the next greeting or ping */
    session_state state;
    td_stage_msg due;                  /* a PLAN, LOAD, CHECK, MEET, KEEP or FIND to be sent, */
    bool is_due;                       /* if so */
    char busy[TD_WIRE_REASON_MAX + 1]; /* why it is not free, by its last word; or "" */
    td_stage_hello_ok hello;
    td_stage_plan plan;
    td_stage_planned planned;
    td_stage_ready ready;
    td_stage_loading loading;
    char checking[TD_STAGE_TEXT_MAX]; /* as far as it is, */
    td_remote_report report;          /* and what was found, there or of layers */
    td_probes probes;
    td_stage_met met;
    td_lend lend;
    td_remote_clock clock; /* by pings; */
    int64_t clock_us;      /* its clock less ours, left alone as long as it may be right */
    /* Of a trace: a TRACE is not answered; when it was sent, and the last that was answered with
     * all there was; what the worker had no room for. */
    bool is_asked;
    uint64_t asked_us, told_us, n_dropped;
    /* Of chunks of prompts: a KEEP or FIND is not answered; what was answered last. */
    bool is_keep_asked, is_kept, is_find_asked;
    td_stage_found found;
    uint64_t progress;
    uint32_t n_pending; /* by its last word: batches done, and held */
    td_err err;         /* of a lost one */
} session;

typedef struct {
    td_remote_run at;
    uint32_t first_stage, end_stage;
    bool is_first, is_last; /* of the model's layers */
    job *head, *tail;       /* in transit, in order */
    job *unsent;            /* of those the first that the stream did not take yet; or NULL */
    uint64_t moved_us;      /* when something last got on, or nothing was in transit */
    td_stage_out out;
    td_stage_in in;
    td_remotes *all;
} run;

struct td_remotes {
    td_transport *transport;
    td_clock clock;
    int fd; /* wakes the thread */
    pthread_t thread;
    bool is_thread;
    atomic_bool is_stopping;
    pthread_mutex_t lock;
    pthread_cond_t changed; /* what is below did */
    bool is_draft;          /* the one session is for a draft model */
    uint32_t n_sessions, n_runs;
    session sessions[TD_STAGES_MAX];
    run *runs;           /* [n_runs] */
    const td_gguf *gguf; /* of the model: lent to workers that have not got it */
    td_err err;          /* of the first that was lost */
    /* Of a trace: a ring; NULL: there is none. wanted_us: when all until then was asked for. */
    td_target_event *events;
    uint32_t first_event, n_events;
    uint64_t wanted_us;
    uint8_t bytes[TD_WIRE_MESSAGE_MAX];
};

static inline uint64_t td_remote_now_us(const td_remotes *r) { return td_clock_now_us(&r->clock); }

/* A session is over; everything under way fails with the reason: TD_E_DEVICE_LOST where the worker
 * had greeted and may be there again, TD_E_UNAVAILABLE where it is not there or refuses. */
void td_remote_lose(td_remotes *r, session *s, const char *reason);

/* Under the lock: waits until the one session is idle again; on every change, and now and then, it
 * is shown. False from tell, and a signal, end it (TD_E_AGAIN). */
bool td_remote_wait_idle(td_remotes *r, bool (*tell)(void *user, const session *s), void *user,
                         td_err *err);

/* Under the lock: waits until something changes, but no longer than so. */
void td_remote_wait(td_remotes *r, uint64_t us);

/* A number that nobody guesses, not 0. */
bool td_remote_draw(uint64_t *out, td_err *err);
/* Where a worker's neighbour finds it: with the key itself where we have a name or a file for it,
 * which mean nothing there. */
bool td_remote_write_next(const session *s, char out[TD_STAGE_ENDPOINT_MAX + 1], td_err *err);

/* Has a worker tell what it did, if that is wanted and there is room for the answer. */
void td_remote_ask_events(td_remotes *r, session *s);
void td_remote_take_events(td_remotes *r, session *s, const td_stage_events *told);

void td_remote_take_kept(td_remotes *r, session *s, bool is_kept);
void td_remote_take_found(td_remotes *r, session *s, const td_stage_found *found);

/* Sets up a run whose sessions have been planned. */
void td_remote_begin_run(td_remotes *r, run *at, const td_remote_run *params,
                         const td_stage_limits *limits, uint32_t n_stages);
/* Takes and sends jobs and cancels, and minds that it gets on. */
void td_remote_step_run(run *at);
/* Gives the next stages what nothing waits for any more. */
void td_remote_pass_on(td_remotes *r);
/* Takes a STREAM or PIECE of the run's last worker. */
void td_remote_take_stream(td_remotes *r, session *s, const td_stage_msg *m);
bool td_remote_is_sending(const run *at); /* its link had no room */

#endif
