/* An epoch is the time between two barriers: an access belongs to the present if its epoch is the
 * current one, so that forgetting everything is one increment. */
#include "kernels/vulkan/hazard.h"

#include "base/check.h"
#include "base/mem.h"

#include <string.h>

bool td_vk_hazard_create(td_vk_hazard *h, uint32_t n_buffers, td_err *err)
{
    *h = (td_vk_hazard){.n_buffers = n_buffers, .epoch = 1};
    h->read_epoch = td_alloc(n_buffers, sizeof *h->read_epoch, err);
    h->write_epoch = td_alloc(n_buffers, sizeof *h->write_epoch, err);
    return h->read_epoch && h->write_epoch;
}

void td_vk_hazard_destroy(td_vk_hazard *h)
{
    td_free(h->read_epoch);
    td_free(h->write_epoch);
    *h = (td_vk_hazard){0};
}

void td_vk_hazard_reset(td_vk_hazard *h)
{
    if (++h->epoch == 0) { /* wrapped: old epochs would look new */
        memset(h->read_epoch, 0, h->n_buffers * sizeof *h->read_epoch);
        memset(h->write_epoch, 0, h->n_buffers * sizeof *h->write_epoch);
        h->epoch = 1;
    }
}

bool td_vk_hazard_add(td_vk_hazard *h, const uint32_t *reads, uint32_t n_reads,
                      const uint32_t *writes, uint32_t n_writes)
{
    bool needs_barrier = false;
    for (uint32_t i = 0; i < n_reads; i++) {
        TD_ASSERT(reads[i] < h->n_buffers);
        needs_barrier |= h->write_epoch[reads[i]] == h->epoch;
    }
    for (uint32_t i = 0; i < n_writes; i++) {
        TD_ASSERT(writes[i] < h->n_buffers);
        needs_barrier |= h->write_epoch[writes[i]] == h->epoch;
        needs_barrier |= h->read_epoch[writes[i]] == h->epoch;
    }
    if (needs_barrier)
        td_vk_hazard_reset(h);
    for (uint32_t i = 0; i < n_reads; i++)
        h->read_epoch[reads[i]] = h->epoch;
    for (uint32_t i = 0; i < n_writes; i++)
        h->write_epoch[writes[i]] = h->epoch;
    return needs_barrier;
}
