/* What travels between stages. Private to target/. */
#ifndef TD_TARGET_JOB_H
#define TD_TARGET_JOB_H

#include "base/err.h"
#include "base/queue.h"
#include "draft/proposal.h"
#include "model/forward.h"
#include "model/prefix.h"
#include "model/sampling.h"
#include "target/target.h"

#include <stdatomic.h>

typedef enum {
    JOB_FORWARD,
    JOB_OPEN,
    JOB_TRUNCATE,
    JOB_COMMIT,
    JOB_CLOSE,
    JOB_DRAFT,
    JOB_STOP
} job_kind;

/* Whoever is behind looks at its queue at once; others wait there for one that is. */
static inline bool job_is_awaited(job_kind kind)
{
    return kind == JOB_FORWARD || kind == JOB_DRAFT || kind == JOB_STOP;
}

typedef struct {
    td_queue_item item; /* first: what a queue gives back is the job */
    job_kind kind;
    uint32_t slot, length;
    uint32_t from_slot;          /* OPEN: whose first `length` positions the slot begins with */
    uint64_t stream;             /* OPEN */
    td_sampling_params sampling; /* OPEN */
    struct micro_batch *batch;   /* FORWARD */
    struct draft_batch *drafts;  /* DRAFT */
} job;

/* Proposals that a head is asked for at once, of different sequences. */
typedef struct draft_batch {
    struct draft_batch *next;
    uint32_t n, n_taken; /* taken: handed out */
    bool is_sent;        /* to a stage elsewhere, which answers */
    td_proposal proposals[TD_VERIFY_ROWS_MAX];
    uint32_t slots[TD_VERIFY_ROWS_MAX];
    uint32_t tokens[TD_VERIFY_ROWS_MAX]; /* the last before the proposal */
} draft_batch;

/* What a FORWARD job carries; few of them, each with room for a prefill chunk. */
typedef struct micro_batch {
    struct micro_batch *next;
    uint64_t id;
    td_mode mode;
    uint32_t n_rows, n_out;
    td_forward_row rows[TD_PREFILL_ROWS_MAX];
    /* [n_rows][n_embd], written by one stage and read by the next: at first where the batch has
     * room for them, then where the stage has its home (stage.h), at home_offset. */
    float *activations, *room;
    uint64_t home_offset;
    /* Stages leave out dead rows (stage.c), and n_rows and rows become less; this says where the
     * token of a row that is left belongs. */
    uint16_t i_out[TD_PREFILL_ROWS_MAX];
    uint32_t chosen[TD_PREFILL_ROWS_MAX];     /* [n_out] */
    uint32_t bad[TD_PREFILL_ROWS_MAX], n_bad; /* td_target_result */
    td_err err;
    uint64_t came_us; /* to the stage that it is at */
    td_target_span spans[TD_STAGES_MAX];
    td_target_span received; /* by a worker: from its first message to its last, */
    uint32_t n_in_bytes;     /* with so many of activations */
    /* A full chunk of a prompt on its way from the disk or to it; NULL: none. Stages have put or
     * taken chunk_at bytes of it. */
    td_prefix_blob *chunk;
    uint64_t chunk_at;
    bool is_restored;         /* nothing was computed of it */
    bool is_in_flight;        /* the calling thread's: submitted and not finished */
    atomic_bool is_cancelled; /* set by the calling thread at any time */
    bool is_skipped;          /* a stage saw that, and no later one does anything */
    bool is_sent;             /* to stages elsewhere, which answer */
    bool is_cancel_sent;
} micro_batch;

#endif
