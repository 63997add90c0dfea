/* Which device has which experts of a mixture, where those of a layer are dealt over several: seat
 * 0 is the device of the layers, which routes too; others ("expert seats") have nothing else. */
#ifndef TD_MODEL_DEALING_H
#define TD_MODEL_DEALING_H

#include <stdint.h>

#define TD_SEATS_MAX 8u

typedef struct {
    uint32_t n_seats, n_layer, n_expert;
    uint8_t *seats; /* [n_layer][n_expert] < n_seats; each seat has one or more of every layer */
} td_dealing;

/* The seats of a layer's experts, [n_expert]. */
static inline const uint8_t *td_dealing_layer(const td_dealing *d, uint32_t layer)
{
    return d->seats + (uint64_t)layer * d->n_expert;
}

static inline uint32_t td_dealing_count(const td_dealing *d, uint32_t layer, uint32_t seat)
{
    uint32_t n = 0;
    for (uint32_t e = 0; e < d->n_expert; e++)
        n += td_dealing_layer(d, layer)[e] == seat;
    return n;
}

#endif
