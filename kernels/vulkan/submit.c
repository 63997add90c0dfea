/* The queue. Every command buffer is a submission of its own, so that the driver's watchdog sees
 * short jobs; the last of a run signals the device's fence. (Not a timeline semaphore: the
 * GPU-assisted validation of layers 1.3.239 reports false timeouts with them.) Waiting goes in
 * slices and ends at a deadline: work that takes that long will not come back, and the device is
 * given up as lost and hung.
 *
 * Test hook: TD_VK_LOSE_AFTER=n makes submission n + 1 and all later ones fail as a lost device. */
#include "kernels/vulkan/vk.h"

#include "base/check.h"

bool td_vk_check(td_vk_device *d, td_err *err)
{
    if (!d->is_lost)
        return true;
    return td_err_set(err, TD_E_DEVICE_LOST, "%s (%s) was lost; restart to use it again",
                      d->head.info.spec, d->head.info.name);
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

static VkResult submit(td_vk_device *d, VkCommandBuffer commands, VkFence fence)
{
    d->n_submissions++;
    if (d->lose_after && d->n_submissions > d->lose_after)
        return VK_ERROR_DEVICE_LOST;
    return vkQueueSubmit2(
        d->queue, 1,
        &(VkSubmitInfo2){
            .sType = VK_STRUCTURE_TYPE_SUBMIT_INFO_2,
            .commandBufferInfoCount = 1,
            .pCommandBufferInfos =
                &(VkCommandBufferSubmitInfo){.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_SUBMIT_INFO,
                                             .commandBuffer = commands},
        },
        fence);
}

/* Waits for the fence of the last submission, and so for all before it. */
static bool wait_fence(td_vk_device *d, td_err *err)
{
    VkResult result = VK_TIMEOUT;
    /* A software driver shares its processor: on a busy machine it is slow, not lost. */
    const uint64_t deadline_ns =
        TD_VK_DEADLINE_NS * (d->head.info.kind == TD_DEVICE_SOFTWARE ? 10 : 1);
    for (uint64_t ns = 0; result == VK_TIMEOUT && ns < deadline_ns; ns += TD_VK_WAIT_SLICE_NS)
        result = vkWaitForFences(d->handle, 1, &d->fence, VK_TRUE, TD_VK_WAIT_SLICE_NS);
    if (result == VK_TIMEOUT) {
        d->is_lost = true;
        d->is_hung = true;
        return td_err_set(err, TD_E_DEVICE_LOST, "%s (%s): no answer for %llu s", d->head.info.spec,
                          d->head.info.name, deadline_ns / 1000000000ull);
    }
    VK_TRY(d, result);
    VK_TRY(d, vkResetFences(d->handle, 1, &d->fence));
    return true;
fail:
    return false;
}

bool td_vk_submit(td_vk_device *d, const td_vk_chunk *chunks, uint32_t n_chunks, td_err *err)
{
    VkResult result = VK_SUCCESS;
    for (uint32_t i = 0; i < n_chunks && result == VK_SUCCESS; i++)
        result = submit(d, chunks[i].commands, i + 1 == n_chunks ? d->fence : VK_NULL_HANDLE);
    if (result != VK_SUCCESS) {
        td_vk_fail(d, result, "vkQueueSubmit2", err);
        /* What was submitted before may be running, and its objects must outlive it. */
        if (vkQueueSubmit2(d->queue, 0, NULL, d->fence) == VK_SUCCESS)
            wait_fence(d, NULL);
        return false;
    }
    return n_chunks == 0 || wait_fence(d, err);
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
    /* The staging buffer is written anew each time: order the copies with earlier ones. */
    vkCmdPipelineBarrier2(
        d->once, &(VkDependencyInfo){.sType = VK_STRUCTURE_TYPE_DEPENDENCY_INFO,
                                     .memoryBarrierCount = 1,
                                     .pMemoryBarriers = &(VkMemoryBarrier2){
                                         .sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER_2,
                                         .srcStageMask = VK_PIPELINE_STAGE_2_ALL_COMMANDS_BIT,
                                         .srcAccessMask = VK_ACCESS_2_MEMORY_WRITE_BIT,
                                         .dstStageMask = VK_PIPELINE_STAGE_2_ALL_TRANSFER_BIT,
                                         .dstAccessMask = VK_ACCESS_2_TRANSFER_READ_BIT |
                                                          VK_ACCESS_2_TRANSFER_WRITE_BIT,
                                     }});
    return true;
fail:
    return false;
}

bool td_vk_submit_once(td_vk_device *d, td_err *err)
{
    VK_TRY(d, vkEndCommandBuffer(d->once));
    return td_vk_submit(d, &(td_vk_chunk){.commands = d->once}, 1, err);
fail:
    return false;
}
