/* Rounds of one sequence: what is guessed for it, and what an answer means. Private to
 * coordinator/. */
#ifndef TD_COORDINATOR_ROUND_H
#define TD_COORDINATOR_ROUND_H

#include "coordinator/sequence.h"

void td_round_begin(td_coordinator *c, sequence *s);
/* May the drafter be told of it and asked now? */
bool td_round_may_draft(const td_coordinator *c, const sequence *s);
/* What the drafter would take, about, to read what it has not been told of the sequence. */
double td_round_read_us(const td_coordinator *c, const sequence *s);
/* The target's head is to be asked for the guesses of the round that is being prepared: head_k. */
bool td_round_is_head_due(const td_coordinator *c, const sequence *s);
bool td_round_is_awaiting_head(const td_coordinator *c, const sequence *s);
void td_round_take_head(td_coordinator *c, sequence *s, uint32_t epoch, uint32_t position,
                        const uint32_t *ids, uint32_t n_ids, uint64_t busy_us, uint64_t now_us);
/* Awaits guesses, the head's or the drafter's, for the round that is being prepared. */
bool td_round_is_awaiting(const td_coordinator *c, const sequence *s);
/* The next proposal to ask for: position and length. */
bool td_round_next_ask(const td_coordinator *c, const sequence *s, ask *out);
void td_round_take_draft(td_coordinator *c, sequence *s, uint32_t epoch, uint32_t position,
                         const uint32_t *ids, uint32_t n_ids, uint64_t busy_us, uint64_t now_us);
/* While rounds do not wait for a drafter: something has come of it, or it owes something now. */
void td_round_note_owed(td_coordinator *c);
void td_round_mind_owed(td_coordinator *c); /* time has passed */
/* Would an ask be answered before all else? */
bool td_round_is_first_ask(const td_coordinator *c, const sequence *s);
/* Has the drafter an answer to give, of any sequence? */
bool td_round_is_any_asked(const td_coordinator *c);
bool td_round_is_quiet(const td_coordinator *c); /* nor the head */
td_source td_round_source(const sequence *s);    /* of its guesses */
/* Commits what the target chose, chosen: [n_rows]. */
td_outcome td_round_take_answers(td_coordinator *c, sequence *s, uint32_t n_rows,
                                 const uint32_t *chosen);
void td_round_new_epoch(td_coordinator *c, sequence *s);
void td_round_drop_guesses(td_coordinator *c, sequence *s); /* those not in flight; a new epoch */
/* Whatever was sent behind the committed tokens did not hold, or is not wanted any more. True if
 * there was something: rows of it may be in flight. */
bool td_round_roll_back(sequence *s);

#endif
