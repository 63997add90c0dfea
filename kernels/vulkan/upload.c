/* Uploads: a ring of staging buffers between the host, which repacks rows into one, and the device,
 * which meanwhile copies the others away, on a queue of its own where there is one. A slot is
 * waited for only when its turn comes again. What is submitted for computing after uploads waits
 * for them by a semaphore, on the device. */
#include "kernels/vulkan/vk.h"

#include "base/check.h"

static td_vk_slot *next_slot(td_vk_device *d) { return &d->slots[d->i_slot]; }

bool td_vk_upload_open(td_vk_device *d, td_err *err)
{
    VkCommandPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                    .flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT,
                                    .queueFamilyIndex = d->physical.transfer_family};
    VkSemaphoreCreateInfo semaphore = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO};
    VkFenceCreateInfo fence = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    vkGetDeviceQueue(d->handle, d->physical.transfer_family, 0, &d->transfer_queue);
    VK_TRY(d, vkCreateCommandPool(d->handle, &pool, NULL, &d->transfer_pool));
    VK_TRY(d, vkCreateSemaphore(d->handle, &semaphore, NULL, &d->uploaded));
    for (uint32_t i = 0; i < TD_VK_SLOTS; i++) {
        VkCommandBufferAllocateInfo commands = {.sType =
                                                    VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                                .commandPool = d->transfer_pool,
                                                .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                                .commandBufferCount = 1};
        VK_TRY(d, vkAllocateCommandBuffers(d->handle, &commands, &d->slots[i].commands));
        VK_TRY(d, vkCreateFence(d->handle, &fence, NULL, &d->slots[i].fence));
    }
    return true;
fail:
    return false;
}

void td_vk_upload_close(td_vk_device *d)
{
    td_vk_upload_drain(d, NULL);
    if (d->is_hung)
        return;
    for (uint32_t i = 0; i < TD_VK_SLOTS; i++) {
        td_vk_buffer_destroy(d, &d->slots[i].buffer);
        vkDestroyFence(d->handle, d->slots[i].fence, NULL);
    }
    vkDestroySemaphore(d->handle, d->uploaded, NULL);
    vkDestroyCommandPool(d->handle, d->transfer_pool, NULL);
}

static bool wait_slot(td_vk_device *d, td_vk_slot *slot, td_err *err)
{
    if (!slot->is_in_flight)
        return true;
    slot->is_in_flight = false;
    return td_vk_wait(d, slot->fence, err);
}

bool td_vk_upload_drain(td_vk_device *d, td_err *err)
{
    bool is_ok = true;
    for (uint32_t i = 0; i < TD_VK_SLOTS; i++)
        is_ok &= wait_slot(d, &d->slots[i], err);
    return is_ok;
}

void *td_vk_upload_begin(td_vk_device *d, uint64_t n_bytes, uint64_t *n_room, td_err *err)
{
    td_vk_slot *slot = next_slot(d);
    n_bytes = n_bytes > TD_VK_SLOT_BYTES ? n_bytes : TD_VK_SLOT_BYTES;
    if (!td_vk_check(d, err) || !wait_slot(d, slot, err))
        return NULL;
    if (slot->buffer.n_bytes < n_bytes) {
        td_vk_buffer_destroy(d, &slot->buffer);
        if (!td_vk_buffer_create(d, n_bytes, TD_VK_USE_HOST, "staging", &slot->buffer, err))
            return NULL;
    }
    *n_room = slot->buffer.n_bytes;
    return slot->buffer.mapped;
}

static void record_copies(const td_vk_slot *slot, const td_vk_buffer *to, uint64_t offset,
                          const td_vk_pieces *pieces)
{
    VkBufferCopy regions[64];
    uint64_t at = pieces->first;
    for (uint32_t i = 0, n; i < pieces->n; i += n) {
        n = td_min_u32(pieces->n - i, TD_COUNT(regions));
        for (uint32_t k = 0; k < n; k++, at += pieces->pitch)
            regions[k] = (VkBufferCopy){at, offset + at, pieces->n_bytes};
        vkCmdCopyBuffer(slot->commands, slot->buffer.handle, to->handle, n, regions);
    }
}

bool td_vk_upload_end(td_vk_device *d, td_vk_buffer *to, uint64_t offset,
                      const td_vk_pieces *pieces, td_err *err)
{
    td_vk_slot *slot = next_slot(d);
    uint64_t end = pieces->first + (pieces->n - 1) * pieces->pitch + pieces->n_bytes;
    TD_ASSERT(end <= slot->buffer.n_bytes && offset + end <= to->n_bytes);
    VK_TRY(d, vkBeginCommandBuffer(slot->commands,
                                   &(VkCommandBufferBeginInfo){
                                       .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                       .flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT}));
    /* Rows may be written twice, and a slot of this size is written again and again: copies are
     * ordered with those before them. */
    td_vk_barrier(slot->commands, VK_PIPELINE_STAGE_2_COPY_BIT, VK_ACCESS_2_TRANSFER_WRITE_BIT,
                  VK_PIPELINE_STAGE_2_COPY_BIT, VK_ACCESS_2_TRANSFER_WRITE_BIT);
    record_copies(slot, to, offset, pieces);
    VK_TRY(d, vkEndCommandBuffer(slot->commands));
    if (!td_vk_queue_submit(d, d->transfer_queue, &slot->commands, 1, VK_NULL_HANDLE,
                            VK_NULL_HANDLE, slot->fence, err))
        return false;
    slot->is_in_flight = true;
    d->has_uploads = true;
    d->i_slot = (d->i_slot + 1) % TD_VK_SLOTS;
    return true;
fail:
    return false;
}

bool td_vk_upload_fence(td_vk_device *d, VkSemaphore *wait_for, td_err *err)
{
    *wait_for = VK_NULL_HANDLE;
    if (d->has_uploads && d->is_signaled) { /* a submission that should have waited has failed */
        if (!td_vk_upload_drain(d, err))
            return false;
    } else if (d->has_uploads) {
        if (!td_vk_queue_submit(d, d->transfer_queue, NULL, 0, VK_NULL_HANDLE, d->uploaded,
                                VK_NULL_HANDLE, err))
            return false;
        d->is_signaled = true;
    }
    d->has_uploads = false;
    if (d->is_signaled)
        *wait_for = d->uploaded;
    return true;
}
