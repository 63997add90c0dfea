/* One sequence: its tokens, its text and its stop rules. Private to coordinator/. */
#ifndef TD_COORDINATOR_SEQUENCE_H
#define TD_COORDINATOR_SEQUENCE_H

#include "coordinator/state.h"

/* Takes all the memory it will ever need. Errors: TD_E_DATA (a prompt), TD_E_NOMEM. */
bool td_sequence_begin(sequence *s, const td_coordinator *c, const td_sequence_params *params,
                       td_err *err);
/* Frees the slot; the tokens stay if its cache may serve others. */
void td_sequence_end(sequence *s);
void td_sequence_forget(sequence *s); /* what the slot has kept of the sequence before */
/* Commits one token under the stop rules; the reason if it was the last one. */
td_reason td_sequence_append(sequence *s, const td_coordinator *c, uint32_t token, bool is_draft);

#endif
