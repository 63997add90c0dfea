/* One proposal under way: what was asked, and the tokens found so far. requests.c makes it out of a
 * message, a drafter fills it piece by piece (drafter.h), and its answer is sent when it is done.
 */
#ifndef TD_DRAFT_PROPOSAL_H
#define TD_DRAFT_PROPOSAL_H

#include "base/check.h"
#include "transport/wire.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    uint32_t sequence, epoch;
    uint32_t position; /* tokens that come before; what goes on may begin at a lower one */
    uint32_t k;        /* wanted, at most TD_WIRE_DRAFT_MAX; and those known, where it goes on */
    uint32_t n;        /* found */
    uint32_t busy_us;  /* time of the device; of work for several at once, each has its share */
    bool goes_on;      /* as wire.h says of it */
    bool is_done;      /* nothing more will come, be it k tokens or fewer */
    uint32_t ids[TD_WIRE_DRAFT_MAX];
} td_proposal;

/* Where one that goes on begins: n_known tokens are known, n_told of them were told, and told_other
 * is the position of the first of these that was another than proposed (UINT32_MAX: none). */
static inline void td_proposal_resume(td_proposal *p, uint32_t n_known, uint32_t n_told,
                                      uint32_t told_other)
{
    p->position = td_min_u32(p->position, td_min_u32(n_known, told_other));
    if (p->position < n_told)
        p->k = td_min_u32(p->k + n_told - p->position, TD_WIRE_DRAFT_MAX);
}

#endif
