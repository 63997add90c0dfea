/* Jobs and the ordered queues between stages. Private to target/. */
#ifndef TD_TARGET_QUEUE_H
#define TD_TARGET_QUEUE_H

#include "base/err.h"
#include "model/forward.h"
#include "model/sampling.h"
#include "target/target.h"

#include <pthread.h>
#include <stdatomic.h>

typedef enum { JOB_FORWARD, JOB_OPEN, JOB_TRUNCATE, JOB_COMMIT, JOB_CLOSE, JOB_STOP } job_kind;

typedef struct job {
    struct job *next;
    job_kind kind;
    uint32_t slot, length;
    uint32_t from_slot;          /* OPEN: whose first `length` positions the slot begins with */
    uint64_t stream;             /* OPEN */
    td_sampling_params sampling; /* OPEN */
    struct batch *batch;         /* FORWARD */
} job;

/* What a FORWARD job carries; few of them, each with room for a prefill chunk. */
typedef struct batch {
    struct batch *next;
    uint64_t id;
    td_mode mode;
    uint32_t n_rows, n_out;
    td_forward_row rows[TD_PREFILL_ROWS_MAX];
    float *activations; /* [n_rows][n_embd], written by one stage and read by the next */
    /* Stages leave out dead rows (stage.c), and n_rows and rows become less; this says where the
     * token of a row that is left belongs. */
    uint16_t i_out[TD_PREFILL_ROWS_MAX];
    uint32_t chosen[TD_PREFILL_ROWS_MAX]; /* [n_out] */
    uint64_t bad_slots;
    td_err err;
    td_target_span spans[TD_STAGES_MAX];
    bool is_in_flight;        /* the calling thread's: submitted and not finished */
    atomic_bool is_cancelled; /* set by the calling thread at any time */
    bool is_skipped;          /* a stage saw that, and no later one does anything */
} batch;

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t filled;
    job *head, *tail;
    _Atomic uint32_t n_jobs;
    uint32_t spin_us; /* to look for a job, hard, before sleeping; 0 where there is one CPU */
    uint32_t wait_us; /* in all, letting others run */
} queue;

void queue_init(queue *q);
/* For the queues of a split target, where each hop would wait for an idle CPU to wake. */
void queue_stay_awake(queue *q);
void queue_destroy(queue *q);
void queue_push(queue *q, job *j);
job *queue_pop(queue *q);     /* waits: looks for a moment, then sleeps */
job *queue_try_pop(queue *q); /* NULL when empty */

#endif
