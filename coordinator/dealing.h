/* Which drafted rows go into a verify batch, where several sequences share it.
 *
 *     n_rows = td_deal_rows(&times, deals, n, 64, spent_us, n_kept);
 *
 * A cut draft changes how many tokens a round commits, never which (law 1). No state, no errors. */
#ifndef TD_COORDINATOR_DEALING_H
#define TD_COORDINATOR_DEALING_H

#include "coordinator/times.h"

#include <stdint.h>

typedef struct {
    const float *survival; /* [n_draft], falling */
    uint32_t n_draft;
} td_deal;

/* Which drafted rows go into a verify batch beside the pending row of each of the n_sequences
 * (1..n_rows_max): the most probable ones first, as many as give the most expected tokens per time.
 * spent_us: time already spent on this round, on drafts. n_kept: [n_sequences], how many of each
 * draft's first tokens are taken. Returns the rows, pending ones included. */
uint32_t td_deal_rows(const td_times *times, const td_deal *deals, uint32_t n_sequences,
                      uint32_t n_rows_max, double spent_us, uint32_t *n_kept);

#endif
