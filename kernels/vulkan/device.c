/* The logical device: makes and destroys it, and is the backend's table. */
#include "kernels/vulkan/vk.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/mem.h"

#include <stdlib.h>

#define BANDWIDTH_COLS  4096u
#define BANDWIDTH_BYTES (256ull << 20)
#define BANDWIDTH_US    500000u

void td_vk_set_name(td_vk_device *d, VkObjectType type, uint64_t handle, const char *name)
{
    if (d->instance.set_name && name && *name)
        d->instance.set_name(d->handle,
                             &(VkDebugUtilsObjectNameInfoEXT){
                                 .sType = VK_STRUCTURE_TYPE_DEBUG_UTILS_OBJECT_NAME_INFO_EXT,
                                 .objectType = type,
                                 .objectHandle = handle,
                                 .pObjectName = name});
}

static bool create_logical(td_vk_device *d, bool is_compile_only, td_err *err)
{
    const char *extensions[3];
    uint32_t n_extensions = 0;
    if (d->physical.limits.has_memory_budget)
        extensions[n_extensions++] = VK_EXT_MEMORY_BUDGET_EXTENSION_NAME;
    if (!is_compile_only && d->physical.limits.host_import)
        extensions[n_extensions++] = VK_EXT_EXTERNAL_MEMORY_HOST_EXTENSION_NAME;
    if (is_compile_only && d->physical.limits.has_executable_info)
        extensions[n_extensions++] = VK_KHR_PIPELINE_EXECUTABLE_PROPERTIES_EXTENSION_NAME;
    VkPhysicalDevicePipelineExecutablePropertiesFeaturesKHR executables = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PIPELINE_EXECUTABLE_PROPERTIES_FEATURES_KHR,
        .pipelineExecutableInfo = VK_TRUE};
    VkPhysicalDeviceVulkan13Features v13 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_FEATURES,
        .pNext = is_compile_only && d->physical.limits.has_executable_info ? &executables : NULL,
        .synchronization2 = VK_TRUE,
        .subgroupSizeControl = d->physical.limits.has_full_subgroups != 0,
        .computeFullSubgroups = d->physical.limits.has_full_subgroups != 0,
        .shaderIntegerDotProduct = VK_TRUE, /* Vulkan 1.3 requires it of every device */
        .maintenance4 = VK_TRUE};
    VkPhysicalDeviceFeatures2 features = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2,
                                          .pNext = &v13};
    float priority = 1;
    VkDeviceQueueCreateInfo queues[] = {
        {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
         .queueFamilyIndex = d->physical.queue_family,
         .queueCount = 1,
         .pQueuePriorities = &priority},
        {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
         .queueFamilyIndex = d->physical.transfer_family,
         .queueCount = 1,
         .pQueuePriorities = &priority},
    };
    VK_TRY(d,
           vkCreateDevice(d->physical.handle,
                          &(VkDeviceCreateInfo){
                              .sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                              .pNext = &features,
                              .queueCreateInfoCount =
                                  queues[0].queueFamilyIndex == queues[1].queueFamilyIndex ? 1 : 2,
                              .pQueueCreateInfos = queues,
                              .enabledExtensionCount = n_extensions,
                              .ppEnabledExtensionNames = extensions},
                          NULL, &d->handle));
    vkGetDeviceQueue(d->handle, d->physical.queue_family, 0, &d->queue);
    return true;
fail:
    return false;
}

static bool create_queue_objects(td_vk_device *d, td_err *err)
{
    VkFenceCreateInfo fence = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    VkCommandPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                    .flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT,
                                    .queueFamilyIndex = d->physical.queue_family};
    VK_TRY(d, vkCreateFence(d->handle, &fence, NULL, &d->fence));
    VK_TRY(d, vkCreateCommandPool(d->handle, &pool, NULL, &d->pool));
    VkCommandBufferAllocateInfo once = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                        .commandPool = d->pool,
                                        .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                        .commandBufferCount = 1};
    VK_TRY(d, vkAllocateCommandBuffers(d->handle, &once, &d->once));
    for (uint32_t i = 0; i < TD_COUNT(d->hops); i++)
        VK_TRY(d, vkAllocateCommandBuffers(d->handle, &once, &d->hops[i]));
    return td_vk_upload_open(d, err) &&
           td_vk_buffer_create(d, 256, TD_VK_USE_DEVICE, "dummy", &d->dummy, err) &&
           td_vk_buffer_clear(d, &d->dummy, err);
fail:
    return false;
}

td_vk_device *td_vk_device_open(const char *which, bool is_compile_only, td_err *err)
{
    td_vk_device *d = td_alloc(1, sizeof *d, err);
    if (!d)
        return NULL;
    const char *lose_after = getenv("TD_VK_LOSE_AFTER");
    d->lose_after = lose_after ? strtoull(lose_after, NULL, 10) : 0;
    if (!td_vk_instance_create(&d->instance, err) ||
        !td_vk_physical_find(&d->instance, which, &d->physical, err))
        goto fail;
    d->head.info = d->physical.info;
    d->head.budget_bytes = d->head.info.capacity.most_bytes;
    if (!d->head.info.is_usable && !is_compile_only) {
        td_err_set(err, TD_E_USAGE, "%s (%s) cannot run ops: %s", d->head.info.spec,
                   d->head.info.name, d->head.info.why_not);
        goto fail;
    }
    if (!create_logical(d, is_compile_only, err) || !td_vk_layouts_create(d, err) ||
        (!is_compile_only && !create_queue_objects(d, err)))
        goto fail;
    return d;
fail:
    td_vk_device_close(d);
    return NULL;
}

/* Hung: work may still read and write the device's objects, so they are left to the process's
 * end. */
void td_vk_device_close(td_vk_device *d)
{
    td_pool_destroy(&d->packers);
    if (d->handle && !d->is_hung)
        td_vk_upload_close(d);
    if (d->handle && !d->is_hung) {
        td_vk_buffer_destroy(d, &d->dummy);
        td_vk_buffer_destroy(d, &d->readback);
        vkDestroyCommandPool(d->handle, d->pool, NULL);
        vkDestroyFence(d->handle, d->fence, NULL);
        td_vk_layouts_destroy(d);
        TD_ASSERT(!d->blocks); /* a tensor, weight or cache outlives its device */
        vkDestroyDevice(d->handle, NULL);
    }
    if (!d->is_hung)
        td_vk_instance_destroy(&d->instance);
    td_free(d);
}

static void destroy(td_device *dev) { td_vk_device_close((td_vk_device *)dev); }

/* The op that reads most, timed as it is used: one row times an F32 matrix that no cache holds. */
static bool measure(td_device *dev, double *bytes_per_s, td_err *err)
{
    uint64_t n_bytes = dev->budget_bytes / 8;
    n_bytes = n_bytes < BANDWIDTH_BYTES ? n_bytes : BANDWIDTH_BYTES;
    uint32_t n_rows = td_max_u32((uint32_t)(n_bytes / (4 * BANDWIDTH_COLS)), 1);
    td_weight *w = td_weight_create(dev,
                                    &(td_weight_params){.name = "bandwidth",
                                                        .type = td_type_find(TD_TYPE_F32),
                                                        .n_rows = n_rows,
                                                        .n_cols = BANDWIDTH_COLS},
                                    err);
    td_tensor *x = td_tensor_create(
        dev,
        &(td_tensor_params){"bandwidth x", TD_ELEM_F32, TD_ROWS_BATCH, 1, BANDWIDTH_COLS, false},
        err);
    td_tensor *y = td_tensor_create(
        dev, &(td_tensor_params){"bandwidth y", TD_ELEM_F32, TD_ROWS_BATCH, 1, n_rows, false}, err);
    td_program *p = NULL;
    bool is_ok = w && x && y;
    for (uint32_t i = 0; is_ok && i < ((td_vk_weight *)w)->n_slabs; i++)
        is_ok = td_vk_buffer_clear((td_vk_device *)dev, &((td_vk_weight *)w)->slabs[i], err);
    if (is_ok)
        p = td_program_begin(dev, &(td_program_params){"bandwidth", TD_MODE_VERIFY, 1, 0}, err);
    if (p)
        td_op_mat_mul(p, w, NULL, td_all(x), td_all(y));
    is_ok = p && td_program_end(p, err) && td_program_run(p, 1, 0, err);
    td_clock clock = td_clock_real();
    uint64_t start_us = td_clock_now_us(&clock), best_us = UINT64_MAX;
    for (uint64_t from_us = start_us; is_ok && from_us - start_us < BANDWIDTH_US;) {
        is_ok = td_program_run(p, 1, 0, err);
        uint64_t now_us = td_clock_now_us(&clock);
        best_us = now_us - from_us < best_us ? now_us - from_us : best_us;
        from_us = now_us;
    }
    if (is_ok)
        *bytes_per_s = 4.0 * n_rows * BANDWIDTH_COLS / (1e-6 * (double)(best_us ? best_us : 1));
    td_program_destroy(&p);
    td_tensor_destroy(&y);
    td_tensor_destroy(&x);
    td_weight_destroy(&w);
    return is_ok;
}

/* As TD_VK_LOSE_AFTER, from now on. */
static void lose(td_device *dev)
{
    td_vk_device *d = (td_vk_device *)dev;
    d->lose_after = 1;
    d->n_submissions++;
}

static const td_backend backend = {
    .tensor_size = sizeof(td_vk_tensor),
    .weight_size = sizeof(td_vk_weight),
    .kv_size = sizeof(td_vk_kv),
    .state_size = sizeof(td_vk_state),
    .program_size = sizeof(td_vk_program),
    .home_size = sizeof(td_vk_home),
    .device_destroy = destroy,
    .tensor_init = td_vk_tensor_init,
    .tensor_free = td_vk_tensor_free,
    .home_init = td_vk_home_init,
    .home_free = td_vk_home_free,
    .weight_init = td_vk_weight_init,
    .weight_free = td_vk_weight_free,
    .weight_write = td_vk_weight_write,
    .weight_bytes = td_vk_weight_bytes,
    .side_bytes = td_vk_side_bytes,
    .attention_bytes = td_vk_attention_bytes,
    .weight_piece_bytes = td_vk_weight_piece_bytes,
    .kv_piece_bytes = td_vk_kv_piece_bytes,
    .state_piece_bytes = td_vk_state_piece_bytes,
    .kv_init = td_vk_kv_init,
    .kv_free = td_vk_kv_free,
    .kv_bytes = td_vk_kv_bytes,
    .state_init = td_vk_state_init,
    .state_free = td_vk_state_free,
    .state_bytes = td_vk_state_bytes,
    .cut_ranges = td_vk_cut_ranges,
    .cuts_move = td_vk_cuts_move,
    .program_compile = td_vk_program_compile,
    .program_run = td_vk_program_run,
    .programs_run = td_vk_programs_run,
    .program_expect = td_vk_program_expect,
    .tensor_read = td_vk_tensor_read,
    .program_free = td_vk_program_free,
    .program_profile = td_vk_program_profile,
    .measure_bandwidth = measure,
    .lose = lose,
};

td_device *td_vulkan_create(const char *which, td_err *err)
{
    td_vk_device *d = td_vk_device_open(which, false, err);
    if (!d)
        return NULL;
    d->head.backend = &backend;
    return &d->head;
}
