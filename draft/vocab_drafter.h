/* A drafter that is spoken to in the target's tokens: the verbs of drafter.h, in between a
 * vocabulary map where there is one. A target's token may be several of the draft's or none, so
 * positions are translated too. Of the draft's own text each token is one of the target's; it ends
 * at one that the target does not have.
 *
 * The draft draws from the target's noise, that of the twins of its tokens at the target's
 * positions, so that the two agree as often as with one vocabulary.
 *
 * Borrows drafter and map. One thread. Errors as the drafter's. */
#ifndef TD_DRAFT_VOCAB_DRAFTER_H
#define TD_DRAFT_VOCAB_DRAFTER_H

#include "draft/drafter.h"
#include "model/vocab_map.h"

typedef struct td_vocab_drafter td_vocab_drafter;

/* map: NULL for one vocabulary on both sides; then all verbs go straight through. */
td_vocab_drafter *td_vocab_drafter_create(td_drafter *drafter, const td_vocab_map *map,
                                          td_err *err);
void td_vocab_drafter_destroy(td_vocab_drafter **t);

bool td_vocab_drafter_open(td_vocab_drafter *t, uint32_t sequence, uint64_t stream,
                           const td_sampling_params *sampling, td_err *err);
bool td_vocab_drafter_feed(td_vocab_drafter *t, uint32_t sequence, uint32_t position,
                           const uint32_t *ids, uint32_t n_ids, td_err *err);
/* p->epoch and busy_us are kept; the rest is as in drafter.h, in the target's tokens. */
bool td_vocab_drafter_begin(td_vocab_drafter *t, td_proposal *p, td_err *err);
bool td_vocab_drafter_step(td_vocab_drafter *t, td_proposal *const *jobs, uint32_t n_jobs,
                           td_err *err);
void td_vocab_drafter_close(td_vocab_drafter *t, uint32_t sequence);
void td_vocab_drafter_reset(td_vocab_drafter *t);

#endif
