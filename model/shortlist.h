/* A token from what a device says of a row of logits (kernels/ops.h, td_op_top and td_op_pick): its
 * largest logits, the sum of all weights, who may have won the race over all tokens, and the logits
 * of those that are penalized. Mostly that decides the chain of sampling.h for certain, and then
 * the row need not be read.
 *
 * Pure; any thread. */
#ifndef TD_MODEL_SHORTLIST_H
#define TD_MODEL_SHORTLIST_H

#include "kernels/ops.h"
#include "model/sampling.h"

/* What to ask of the row before `position`, of n_vocab logits. history: all tokens before it,
 * [position]. has_other_noise: td_sampler_set_noise was given ids, of which devices know nothing.
 * The kind is TD_DRAW_NONE where the row must be read. */
td_draw td_shortlist_draw(const td_sampling_params *params, uint32_t n_vocab, uint64_t stream,
                          uint64_t position, const uint32_t *history, bool has_other_noise);

/* The token that td_sample would choose of the row, with the noise of `s` and the draw's stream and
 * position; false: it takes the row to tell. */
bool td_shortlist_choose(const td_sampler *s, const td_sampling_params *params, uint32_t n_vocab,
                         const td_draw *draw, const td_pick *pick, uint32_t *token);

#endif
