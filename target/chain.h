/* A layout (planning/layout.h) with its parts loaded. A target (target.h) runs them as threads;
 * td_chain_run runs them one after another in the caller's thread, for logits and measurements.
 * They are loaded by a thread for each device; progress is told by one of them at a time.
 *
 * Owns devices, weights and caches; borrows the model. Errors: as forward.h and layout.h. */
#ifndef TD_TARGET_CHAIN_H
#define TD_TARGET_CHAIN_H

#include "base/err.h"
#include "model/forward.h"
#include "planning/layout.h"

typedef struct {
    td_layout *layout;
    td_forward *forwards[TD_STAGES_MAX]; /* of its parts */
    bool is_beside;                      /* the layout is the lender's */
} td_chain;

td_chain *td_chain_create(const td_layout_params *params, td_err *err);
/* The same parts with cache params->beside[i] and all else the lender's, made for these params
 * (td_forward_params.lender). */
td_chain *td_chain_create_beside(td_chain *lender, const td_layout_params *params, uint32_t i,
                                 td_err *err);
void td_chain_destroy(td_chain **chain);

/* Runs the rows through every part. Logits: td_forward_output of the last part. */
bool td_chain_run(td_chain *chain, td_mode mode, const td_forward_row *rows, uint32_t n_rows,
                  td_err *err);
const float *td_chain_logits(const td_chain *chain);
/* A cache's verbs, on every part. rewind: truncates to `length` where that can be, else clears; the
 * length that is left (length or 0). */
uint32_t td_chain_rewind(td_chain *chain, uint32_t slot, uint32_t length);
void td_chain_commit(td_chain *chain, uint32_t slot, uint32_t length);
bool td_chain_forgets(const td_chain *chain);

/* device.h's profile over all parts: times of ops of one name add up, of both programs. */
bool td_chain_profile(td_chain *chain, bool is_on, td_err *err);
uint32_t td_chain_op_times(const td_chain *chain, td_op_time *out, uint32_t max);
/* Sums over the devices, each counted once. */
td_device_counts td_chain_device_counts(const td_chain *chain);
/* Sums over the parts, of verify runs and of prefill runs. */
void td_chain_get_counts(const td_chain *chain, td_program_counts *verify,
                         td_program_counts *prefill);

#endif
