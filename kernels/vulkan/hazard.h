/* Which dispatches need a barrier between them. Pure bookkeeping over buffer ids 0..n-1: a step
 * names what it reads and writes; when that meets something read or written since the last
 * barrier (read after write, write after read, write after write), a barrier is needed, and as it
 * orders everything before with everything after, all is forgotten.
 *
 * Owns its two arrays; errors: TD_E_NOMEM of create. One thread. */
#ifndef TD_KERNELS_VULKAN_HAZARD_H
#define TD_KERNELS_VULKAN_HAZARD_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    uint32_t n_buffers;
    uint32_t epoch;        /* counts barriers */
    uint32_t *read_epoch;  /* [n_buffers] epoch of the last read, 0: never */
    uint32_t *write_epoch; /* [n_buffers] */
} td_vk_hazard;

bool td_vk_hazard_create(td_vk_hazard *h, uint32_t n_buffers, td_err *err);
void td_vk_hazard_destroy(td_vk_hazard *h);

/* Forgets all accesses, as after a barrier. */
void td_vk_hazard_reset(td_vk_hazard *h);

/* Adds a step. True: it needs a barrier before it (which is then taken as placed). A buffer may be
 * in both lists. */
bool td_vk_hazard_add(td_vk_hazard *h, const uint32_t *reads, uint32_t n_reads,
                      const uint32_t *writes, uint32_t n_writes);

#endif
