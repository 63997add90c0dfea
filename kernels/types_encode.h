/* How the cache's types of 4 to 6 bits are encoded (types_encode.c), for those who do it in lanes.
 * Immutable; any thread. */
#ifndef TD_KERNELS_TYPES_ENCODE_H
#define TD_KERNELS_TYPES_ENCODE_H

#include "kernels/types.h"

typedef struct {
    float low, high; /* of a block's integers, or of the levels of IQ4 */
    bool is_levels, has_minimum;
    uint8_t high_bits; /* above the nibbles */
} td_grid;

/* NULL: the type is not searched for. */
const td_grid *td_grid_find(const td_type_info *type);

/* The first candidates make the extreme element `low` plus so many steps of the grid, the others
 * `high` plus so many. The first of all is what an encoder without a search takes. */
#define TD_GRID_STEPS 10u
extern const float td_grid_steps[TD_GRID_STEPS];
/* With a minimum: how far the ends of the range are moved inwards, in steps of the grid. */
#define TD_GRID_ENDS 11u
extern const float td_grid_ends[TD_GRID_ENDS][2];

/* How much larger the stored scale may be than that of least squares. */
#define TD_GRID_GROWTH_MAX 1.25f

/* A block of a scale, a minimum if there is one, and the numbers of its 32 quants, `stride` from
 * one to the next: 0 is `low`. */
void td_grid_pack(const td_grid *g, float d, float m, const int32_t *n, size_t stride,
                  uint8_t *block);

#endif
