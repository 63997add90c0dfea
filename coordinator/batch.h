/* Micro-batches: which rows the target runs next, and whose its answers are. Private to
 * coordinator/. */
#ifndef TD_COORDINATOR_BATCH_H
#define TD_COORDINATOR_BATCH_H

#include "coordinator/round.h"

/* Puts the next micro-batch in flight, if one is to be run now. */
bool td_batch_begin(td_coordinator *c, td_action *action);
/* Takes the target's choices for it. outcomes: [TD_VERIFY_ROWS_MAX], what they did to the sequence
 * of each part of the batch. */
void td_batch_end(td_coordinator *c, batch *b, const uint32_t *chosen, const td_batch_times *times,
                  td_outcome *outcomes);
/* Rows of a sequence in flight are of no use any more: cancels batches that hold nothing else. */
void td_batch_drop(td_coordinator *c, const sequence *s);

#endif
