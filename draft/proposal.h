/* One proposal under way: what was asked, and the tokens found so far. requests.c makes it out of a
 * message, a drafter fills it piece by piece (drafter.h), and its answer is sent when it is done.
 * No behaviour here. */
#ifndef TD_DRAFT_PROPOSAL_H
#define TD_DRAFT_PROPOSAL_H

#include "transport/wire.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    uint32_t sequence, epoch;
    uint32_t position; /* tokens that come before */
    uint32_t k;        /* wanted, at most TD_WIRE_DRAFT_MAX */
    uint32_t n;        /* found */
    uint32_t busy_us;  /* time of the device; of work for several at once, each has its share */
    bool is_done;      /* nothing more will come, be it k tokens or fewer */
    uint32_t ids[TD_WIRE_DRAFT_MAX];
} td_proposal;

#endif
