/* The protocol half of a draft worker: messages go in, the next piece of work comes out, answers go
 * out. No thread, no clock, no I/O, no model: a worker puts threads around it and a drafter under
 * it (worker.c), a simulation a toy.
 *
 *     while (td_requests_has_room(in) && recv(&msg)) td_requests_put(in, &msg);
 *     while (td_requests_next(in, &work)) { perform(&work); td_requests_done(in); }
 *     while ((p = td_requests_answer(in)) && send(p)) td_requests_pop(in);
 *
 * Messages of one sequence are worked off in the order in which they came; those of different
 * sequences need not wait for each other, so all sequences' oldest proposals are computed together,
 * step by step, and new ones join between two steps.
 *
 * Every proposal is answered exactly once, in order within its sequence. It is overtaken as soon as
 * there is a later message of its sequence of another epoch, or that opens or closes it, or
 * feeds tokens other than those found: then nothing more is computed for it, and its answer has the
 * tokens found so far, mostly none. One that goes on (wire.h) is not overtaken by a FEED: that
 * comes before it, and it begins again. A reset (a coordinator came or was lost) drops everything,
 * answers too.
 *
 * Bounds: TD_REQUESTS_MAX messages, proposals and answers held together. Allocates in create only.
 * Two threads may use it when a lock is held in every call: what next hands out is touched
 * by nobody until done. Errors: none but in create; what makes no sense in a message is for who
 * performs it to find. */
#ifndef TD_DRAFT_REQUESTS_H
#define TD_DRAFT_REQUESTS_H

#include "base/err.h"
#include "draft/proposal.h"
#include "transport/wire.h"

#define TD_REQUESTS_MAX 256u /* 64 sequences with a FEED and their proposals */

typedef struct td_requests td_requests;

typedef enum {
    TD_WORK_RESET,   /* forget all sequences */
    TD_WORK_MESSAGE, /* OPEN, FEED or CLOSE of a sequence that has no proposal under way */
    TD_WORK_BEGIN,   /* jobs[0] begins: nothing of it is computed yet; it may be done at once */
    TD_WORK_STEP,    /* go on with all jobs[], of as many sequences, by one step */
} td_work_kind;

/* Valid until done. */
typedef struct {
    td_work_kind kind;
    const td_wire_msg *message;
    td_proposal *jobs[TD_REQUESTS_MAX]; /* their n, ids, busy_us and is_done are to be filled */
    uint32_t n_jobs;
} td_work;

td_requests *td_requests_create(td_err *err);
void td_requests_destroy(td_requests **in);

/* May another message be put? */
bool td_requests_has_room(const td_requests *in);
/* OPEN, FEED, PROPOSE or CLOSE, copied; others are passed over. There must be room. */
void td_requests_put(td_requests *in, const td_wire_msg *msg);
/* Everything so far is void. Needs no room. */
void td_requests_reset(td_requests *in);

/* False when there is nothing to do. done comes before the next call. */
bool td_requests_next(td_requests *in, td_work *work);
void td_requests_done(td_requests *in);

/* The oldest answer, or NULL; pop removes it. */
const td_proposal *td_requests_answer(const td_requests *in);
void td_requests_pop(td_requests *in);

/* Messages and proposals not yet done. */
uint32_t td_requests_n_waiting(const td_requests *in);

#endif
