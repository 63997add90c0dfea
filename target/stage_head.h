/* The drafter that is a head of the target's own model: it lives in the last stage, on its device
 * and in its thread, so that hidden rows are handed over in memory and jobs keep their order. What
 * it may propose is asked for by a job (target.h: td_target_propose). Private to target/.
 *
 * Proposals change no text, so what goes wrong here ends drafting, and nothing else (law 3). */
#ifndef TD_TARGET_STAGE_HEAD_H
#define TD_TARGET_STAGE_HEAD_H

#include "target/stage.h"

/* For a last stage whose forward has a head: sets s->head. TD_E_NOMEM. */
bool td_stage_head_create(stage *s, uint32_t n_ctx, td_err *err);
void td_stage_head_destroy(stage *s);

/* What befalls a sequence's cache; td_target_open_sequence says what `length` is. */
void td_stage_head_open(stage *s, uint32_t slot, uint32_t from_slot, uint32_t length);
void td_stage_head_truncate(stage *s, uint32_t slot, uint32_t length);
/* After a run of these rows, when their tokens have been chosen. */
void td_stage_head_take(stage *s, td_mode mode, const td_forward_row *rows, uint32_t n_rows);

/* The hidden row of a position, [n_embd], behind which a sequence goes on: to be kept with a chunk
 * that ends there, and told when that comes back. */
const float *td_stage_head_row(stage *s, uint32_t slot, uint32_t position);
void td_stage_head_restore(stage *s, uint32_t slot, uint32_t length, const void *row);

/* Fills in what was asked for. */
void td_stage_head_propose(stage *s, struct draft_batch *b);

#endif
