/* The arithmetic of the chain that sampling.c, over a whole row, and shortlist.c, over the few
 * tokens that a device names, share to the bit. Private to model. */
#ifndef TD_MODEL_SAMPLING_PRIVATE_H
#define TD_MODEL_SAMPLING_PRIVATE_H

#include "model/sampling.h"

#include <math.h>

#define TD_SAMPLING_MASS_ONE 0x1p43 /* of weight 1; 2^20 tokens of it are below 2^64 */

/* The largest weighs 1. */
static inline double td_sampling_weight(const td_sampling_params *params, double logit, double max)
{
    return exp((logit - max) / (double)params->temperature);
}

/* What a token counts in top-p. A token is kept while the mass before it, of more probable ones, is
 * below top_p times that of all: (double)mass < top_p * (double)total. */
static inline uint64_t td_sampling_mass(double weight)
{
    return (uint64_t)(weight * TD_SAMPLING_MASS_ONE);
}

static inline double td_sampling_penalized(double logit, double penalty)
{
    return logit > 0 ? logit / penalty : logit * penalty;
}

typedef struct { /* the race so far */
    uint64_t stream, position;
    const uint32_t *noise_ids; /* NULL: the tokens' own */
    double best;               /* smallest E / weight */
    uint32_t id;
} td_race;

/* Nobody has entered. */
td_race td_sampler_race(const td_sampler *s, uint64_t stream, uint64_t position);

/* Did it win so far? weight is above 0. */
bool td_race_enter(td_race *r, uint32_t id, double weight);

#endif
