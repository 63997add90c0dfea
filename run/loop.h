/* The parts of one run, over the session that holds its state: prompts that come in, the event
 * loop, and what becomes of each prompt. Private to run/. The run's thread. */
#ifndef TD_RUN_LOOP_H
#define TD_RUN_LOOP_H

#include "run/setup.h"

/* loop.c: waits a second at most for the draft to join, so that the first tokens are drafted too. A
 * worker that is not there yet joins later. */
bool td_loop_wait_for_draft(session *r, td_err *err);
/* Tells the coordinator that the draft has joined. */
void td_loop_join_draft(session *r);
/* Until all prompts have come to an end, or a signal drained what was begun. */
bool td_loop_run(session *r, td_err *err);
/* The prompt of a sequence that was added and not removed. */
active *td_loop_find_active(session *r, uint32_t sequence);

/* outcome.c: an error line, shown and counted. */
bool td_outcome_error(session *r, const td_prompt *q, const char *message, td_err *err);
/* A sequence that ended: its result, its figures; its slot and its prompt are freed. */
bool td_outcome_finish(session *r, uint32_t sequence, td_err *err);

#endif
