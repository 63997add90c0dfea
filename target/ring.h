/* A target as a stage worker has it: some layers of a model, whose jobs come from another machine
 * and go on to one. The worker takes batches out of the pool, fills them in, pushes jobs and takes
 * what is finished, in order, itself; nothing of target.h but open, load, fd, get_stage_info and
 * destroy is called then. Private to target/. */
#ifndef TD_TARGET_RING_H
#define TD_TARGET_RING_H

#include "target/job.h"
#include "target/target.h"
#include "transport/stage_wire.h"

/* NULL: all are in use. */
micro_batch *td_ring_take_batch(td_target *t);
/* False: all jobs are in use, nothing was done. */
bool td_ring_push(td_target *t, const job *what);
/* Pushes what a head is asked, which is copied. False: too much is under way. */
bool td_ring_ask(td_target *t, const draft_batch *what);
/* The next finished job, or NULL. It is the caller's until it is given back, its batch with it. */
job *td_ring_next(td_target *t);
void td_ring_give_back(td_target *t, job *j);
/* Marks a batch that was pushed. */
bool td_ring_cancel(td_target *t, uint64_t batch);
const td_model *td_target_model(const td_target *t);
/* After load and before any job: chunks of prompts are kept in a store. Then the coordinator's
 * questions are answered one by one, and each batch is given what is held for it before it is
 * pushed. TD_E_DATA for what makes no sense. */
bool td_ring_keep(td_target *t, td_prefix_store *store, uint32_t chunk_rows, td_err *err);
bool td_ring_find(td_target *t, const td_stage_find *find, td_err *err);
bool td_ring_found(td_target *t, td_stage_found *out); /* td_target_fd tells when */
bool td_ring_join(td_target *t, micro_batch *b, td_err *err);
/* Of all batches nothing is wanted any more. */
void td_ring_drop(td_target *t);
/* After open, until load: */
const td_layout *td_ring_layout(const td_target *t);
/* After open: fewer cache pages than fit, as another machine has no more. */
void td_ring_set_pages(td_target *t, uint32_t n_pages);

#endif
