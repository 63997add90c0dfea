/* The queue. Command buffers are submitted together as long as they take little time, so that the
 * driver's watchdog sees short jobs; the last of a run signals the device's fence. (Not a timeline
 * semaphore: the GPU-assisted validation of layers 1.3.239 reports false timeouts with them.)
 * Waiting ends at a deadline: work that takes that long will not come back, and the device is given
 * up as lost and hung. It goes in slices, long ones: some drivers work for each.
 *
 * Test hook: TD_VK_LOSE_AFTER=n makes submission n + 1 and all later ones fail as a lost device. */
#include "kernels/vulkan/vk.h"

#include "base/check.h"

bool td_vk_check(td_vk_device *d, td_err *err)
{
    if (!d->is_lost)
        return true;
    return td_err_set(err, TD_E_DEVICE_LOST, "%s (%s) was lost", d->head.info.spec,
                      d->head.info.name);
}

bool td_vk_fail(td_vk_device *d, VkResult result, const char *call, td_err *err)
{
    int n_name = 0; /* the call without its arguments */
    while (call[n_name] && call[n_name] != '(')
        n_name++;
    td_err_code code = TD_E_UNAVAILABLE;
    if (result == VK_ERROR_DEVICE_LOST) {
        d->is_lost = true;
        code = TD_E_DEVICE_LOST;
    } else if (result == VK_ERROR_OUT_OF_DEVICE_MEMORY || result == VK_ERROR_OUT_OF_HOST_MEMORY ||
               result == VK_ERROR_OUT_OF_POOL_MEMORY || result == VK_ERROR_TOO_MANY_OBJECTS) {
        code = TD_E_NOMEM;
    }
    return td_err_set(err, code, "%s (%s): %.*s: %s", d->head.info.spec, d->head.info.name, n_name,
                      call, td_vk_result_name(result));
}

bool td_vk_queue_submit(td_vk_device *d, VkQueue queue, const VkCommandBuffer *commands,
                        uint32_t n_commands, VkSemaphore wait_for, VkSemaphore signal,
                        VkFence fence, td_err *err)
{
    VkCommandBufferSubmitInfo infos[TD_VK_BATCH_MAX];
    TD_ASSERT(n_commands <= TD_VK_BATCH_MAX);
    for (uint32_t i = 0; i < n_commands; i++)
        infos[i] = (VkCommandBufferSubmitInfo){
            .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_SUBMIT_INFO, .commandBuffer = commands[i]};
    d->n_submissions++;
    d->head.counts.n_submissions++;
    if (d->lose_after && d->n_submissions > d->lose_after)
        return td_vk_fail(d, VK_ERROR_DEVICE_LOST, "vkQueueSubmit2", err);
    VkSemaphoreSubmitInfo before = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_SUBMIT_INFO,
                                    .semaphore = wait_for,
                                    .stageMask = VK_PIPELINE_STAGE_2_ALL_COMMANDS_BIT};
    VkSemaphoreSubmitInfo after = before;
    after.semaphore = signal;
    VK_TRY(d, vkQueueSubmit2(queue, 1,
                             &(VkSubmitInfo2){
                                 .sType = VK_STRUCTURE_TYPE_SUBMIT_INFO_2,
                                 .waitSemaphoreInfoCount = wait_for != VK_NULL_HANDLE,
                                 .pWaitSemaphoreInfos = &before,
                                 .commandBufferInfoCount = n_commands,
                                 .pCommandBufferInfos = infos,
                                 .signalSemaphoreInfoCount = signal != VK_NULL_HANDLE,
                                 .pSignalSemaphoreInfos = &after,
                             },
                             fence));
    return true;
fail:
    return false;
}

bool td_vk_wait(td_vk_device *d, VkFence fence, td_err *err)
{
    VkResult result = VK_TIMEOUT;
    d->head.counts.n_waits++;
    /* A software driver shares its processor: on a busy machine it is slow, not lost. */
    const uint64_t deadline_ns =
        TD_VK_DEADLINE_NS * (d->head.info.kind == TD_DEVICE_SOFTWARE ? 10 : 1);
    for (uint64_t ns = 0; result == VK_TIMEOUT && ns < deadline_ns; ns += TD_VK_WAIT_SLICE_NS)
        result = vkWaitForFences(d->handle, 1, &fence, VK_TRUE, TD_VK_WAIT_SLICE_NS);
    if (result == VK_TIMEOUT) {
        d->is_lost = true;
        d->is_hung = true;
        return td_err_set(err, TD_E_DEVICE_LOST, "%s (%s): no answer for %llu s", d->head.info.spec,
                          d->head.info.name, deadline_ns / 1000000000ull);
    }
    if (result != VK_SUCCESS)
        return td_vk_fail(d, result, "vkWaitForFences", err);
    VK_TRY(d, vkResetFences(d->handle, 1, &fence));
    return true;
fail:
    return false;
}

/* The submission that is being gathered. */
typedef struct {
    VkCommandBuffer commands[TD_VK_BATCH_MAX];
    uint32_t n;
    double us;
    VkSemaphore wait_for; /* of the first submission */
} gathering;

static bool flush(td_vk_device *d, gathering *g, VkFence fence, td_err *err)
{
    bool is_ok =
        td_vk_queue_submit(d, d->queue, g->commands, g->n, g->wait_for, VK_NULL_HANDLE, fence, err);
    if (is_ok && g->wait_for) {
        d->is_signaled = false;
        g->wait_for = VK_NULL_HANDLE;
    }
    g->n = 0;
    g->us = 0;
    return is_ok;
}

static bool gather(td_vk_device *d, gathering *g, const td_vk_work *w, td_err *err)
{
    for (uint32_t k = 0; k < w->n_times; k++)
        for (uint32_t i = 0; i < w->n_chunks; i++) {
            if (g->n && (g->n == TD_VK_BATCH_MAX || g->us + w->chunk_us > TD_VK_CHUNK_US) &&
                !flush(d, g, VK_NULL_HANDLE, err))
                return false;
            g->commands[g->n++] = w->chunks[i].commands;
            g->us += w->chunk_us;
        }
    return true;
}

bool td_vk_submit(td_vk_device *d, const td_vk_work *work, uint32_t n_work, td_err *err)
{
    gathering g = {.n = 0};
    if (!td_vk_upload_fence(d, &g.wait_for, err))
        return false;
    for (uint32_t i = 0; i < n_work; i++)
        if (!gather(d, &g, &work[i], err))
            goto fail;
    if (!g.n)
        return true;
    if (!flush(d, &g, d->fence, err))
        goto fail;
    d->is_running = true;
    return true;
fail:
    /* What was submitted before may be running, and its objects must outlive it. */
    if (vkQueueSubmit2(d->queue, 0, NULL, d->fence) == VK_SUCCESS)
        td_vk_wait(d, d->fence, NULL);
    return false;
}

bool td_vk_finish(td_vk_device *d, td_err *err)
{
    if (!d->is_running) /* there was nothing to do */
        return true;
    d->is_running = false;
    return td_vk_wait(d, d->fence, err);
}

bool td_vk_once_begin(td_vk_device *d, td_err *err)
{
    if (!td_vk_check(d, err))
        return false;
    VK_TRY(d,
           vkBeginCommandBuffer(d->once, &(VkCommandBufferBeginInfo){
                                             .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                             .flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT,
                                         }));
    td_vk_barrier(d->once, VK_PIPELINE_STAGE_2_ALL_COMMANDS_BIT, VK_ACCESS_2_MEMORY_WRITE_BIT,
                  VK_PIPELINE_STAGE_2_ALL_TRANSFER_BIT,
                  VK_ACCESS_2_TRANSFER_READ_BIT | VK_ACCESS_2_TRANSFER_WRITE_BIT);
    return true;
fail:
    return false;
}

bool td_vk_submit_once(td_vk_device *d, td_err *err)
{
    VK_TRY(d, vkEndCommandBuffer(d->once));
    const td_vk_chunk chunk = {.commands = d->once};
    return td_vk_submit(d, &(td_vk_work){&chunk, 1, 1, 0}, 1, err) && td_vk_finish(d, err);
fail:
    return false;
}
