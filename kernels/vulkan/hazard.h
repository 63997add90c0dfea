/* Which dispatches need a barrier between them, and in which order there are fewest. Pure
 * bookkeeping over what steps access: columns of a buffer's rows, read or written. When that meets
 * something accessed since the last barrier (read after write, write after read, write after
 * write), a barrier is needed, and as it orders everything before with everything after, all is
 * forgotten. Steps that write different columns of one tensor do not wait for each other.
 *
 * One thread; no errors but td_vk_order's TD_E_NOMEM. */
#ifndef TD_KERNELS_VULKAN_HAZARD_H
#define TD_KERNELS_VULKAN_HAZARD_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

#define TD_VK_HAZARDS_MAX 128u /* accesses between two barriers; with more there is one earlier */

typedef struct { /* columns begin..end-1 */
    const void *buffer;
    uint32_t begin, end;
    bool is_write;
    uint32_t stride, n_part; /* of each `stride` columns only the first n_part; stride 0: all */
} td_vk_access;

typedef struct {
    td_vk_access since[TD_VK_HAZARDS_MAX]; /* the last barrier */
    uint32_t n;
} td_vk_hazard;

/* Whether one of them must wait for the other. */
bool td_vk_is_conflict(const td_vk_access *a, uint32_t n_a, const td_vk_access *b, uint32_t n_b);

/* Forgets all accesses, as after a barrier. */
void td_vk_hazard_reset(td_vk_hazard *h);

/* Adds a step. True: it needs a barrier before it (which is then taken as placed). */
bool td_vk_hazard_add(td_vk_hazard *h, const td_vk_access *accesses, uint32_t n);

typedef struct { /* of a step */
    const td_vk_access *accesses;
    uint32_t n;
} td_vk_accesses;

/* Puts steps 0..n-1 in an order in which those that wait for nothing of each other stand together:
 * order[i] is the i-th. A step follows all those before it that it waits for. */
bool td_vk_order(const td_vk_accesses *steps, uint32_t n, uint32_t *order, td_err *err);

#endif
