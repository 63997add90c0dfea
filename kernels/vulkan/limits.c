/* What the kernels need of a GPU, and what they can live with less of: one table, by Vulkan's
 * names. A device below a need says so when devices are listed, not when a pipeline fails to
 * compile. Vulkan promises less than some needs (128 invocations, 16 KiB shared); every GPU that is
 * meant has more.
 *
 * TD_VK_LIMIT lowers the limits, so that a test can be a lesser GPU. */
#include "kernels/vulkan/vk.h"

#include "base/check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TIMESTAMP_BITS_MIN 36u         /* what Vulkan promises of a queue that has them */
#define SUBGROUP_MAX       TD_VK_PANEL /* lanes of a slice of mat_vec.comp */

typedef struct {
    const char *name;
    size_t offset;
    uint64_t needed; /* 0: less only means smaller pieces, or another way */
    const char *by;
} limit;

#define LIMIT(field) offsetof(td_vk_limits, field)
#define EVERY        "every shader"
#define ATTENTION    "attention"

static const limit table[] = {
    {"maxStorageBufferRange", LIMIT(storage_range_bytes), 0, NULL},
    {"maxBufferSize", LIMIT(buffer_bytes), 0, NULL},
    {"maxMemoryAllocationSize", LIMIT(allocation_bytes), 0, NULL},
    {"directWriteBytes", LIMIT(direct_write_bytes), 0, NULL},
    {"directInputBytes", LIMIT(direct_input_bytes), 0, NULL},
    {"timestampValidBits", LIMIT(timestamp_bits), 0, NULL},
    {"computeFullSubgroups", LIMIT(has_full_subgroups), 0, NULL},
    {"fusedOps", LIMIT(fused_ops), 0, NULL},
    {"rowVariants", LIMIT(row_variants), 0, NULL},
    {"loadsByLane", LIMIT(loads_by_lane), 0, NULL},
    {"hostImport", LIMIT(host_import), 0, NULL},
    {"maxComputeWorkGroupCount", LIMIT(groups_x), TD_VK_PASSES_MAX, "rows of a chunk"},
    {"maxComputeWorkGroupCount[1]", LIMIT(groups_y), TD_PREFILL_ROWS_MAX, "rows of a chunk"},
    {"maxComputeWorkGroupCount[2]", LIMIT(groups_z), TD_VK_LIST_EXPERTS, "experts of mat_vec"},
    {"maxComputeWorkGroupInvocations", LIMIT(invocations), TD_VK_GROUP_MIN, ATTENTION},
    {"maxComputeWorkGroupSize", LIMIT(size_x), TD_VK_GROUP_MIN, ATTENTION},
    {"maxComputeSharedMemorySize", LIMIT(shared_bytes), TD_VK_SHARED_BYTES, "mat_tile.IQ2_S"},
    {"maxPushConstantsSize", LIMIT(push_bytes), TD_VK_PUSH_BYTES_MAX, EVERY},
    {"maxPerStageDescriptorStorageBuffers", LIMIT(n_stage_buffers), TD_VK_BINDINGS_MAX,
     "delta_net"},
    {"maxDescriptorSetStorageBuffers", LIMIT(n_set_buffers), TD_VK_BINDINGS_MAX, "delta_net"},
    {"maxPerStageResources", LIMIT(n_stage_resources), TD_VK_BINDINGS_MAX, "delta_net"},
};

static uint64_t *value_of(td_vk_limits *limits, const limit *l)
{
    return (uint64_t *)(void *)((char *)limits + l->offset);
}

void td_vk_limits_read(td_vk_physical *p, const VkPhysicalDeviceProperties *basic,
                       const VkPhysicalDeviceVulkan11Properties *v11,
                       const VkPhysicalDeviceVulkan13Properties *v13)
{
    VkPhysicalDeviceVulkan13Features f13 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_FEATURES};
    VkPhysicalDeviceFeatures2 features = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2,
                                          .pNext = &f13};
    const VkPhysicalDeviceLimits *from = &basic->limits;
    td_vk_limits *to = &p->limits;
    vkGetPhysicalDeviceFeatures2(p->handle, &features);
    to->storage_range_bytes = from->maxStorageBufferRange & ~15u;
    to->buffer_bytes = v13->maxBufferSize ? v13->maxBufferSize : to->storage_range_bytes;
    to->allocation_bytes = v11->maxMemoryAllocationSize;
    to->direct_write_bytes = UINT64_MAX;
    to->direct_input_bytes = UINT64_MAX;
    to->fused_ops = UINT64_MAX;
    to->row_variants = UINT64_MAX;
    to->groups_x = from->maxComputeWorkGroupCount[0];
    to->groups_y = from->maxComputeWorkGroupCount[1];
    to->groups_z = from->maxComputeWorkGroupCount[2];
    to->invocations = from->maxComputeWorkGroupInvocations;
    to->size_x = from->maxComputeWorkGroupSize[0];
    to->shared_bytes = from->maxComputeSharedMemorySize;
    to->push_bytes = from->maxPushConstantsSize;
    to->n_stage_buffers = from->maxPerStageDescriptorStorageBuffers;
    to->n_set_buffers = from->maxDescriptorSetStorageBuffers;
    to->n_stage_resources = from->maxPerStageResources;
    /* SPIR-V 1.6 lets a driver choose any of its sizes for a shader. */
    to->has_full_subgroups = f13.subgroupSizeControl && f13.computeFullSubgroups &&
                             v13->maxSubgroupSize && v13->maxSubgroupSize <= SUBGROUP_MAX;
    to->loads_by_lane = p->info.kind == TD_DEVICE_SOFTWARE;
    if (isfinite(from->timestampPeriod))
        to->timestamp_ns = (double)from->timestampPeriod;
}

/* The first limit that is too low, unless something else is against the device. */
static void find_why_not(td_vk_physical *p)
{
    for (size_t i = 0; i < TD_COUNT(table) && p->info.is_usable; i++) {
        uint64_t value = *value_of(&p->limits, &table[i]);
        if (value >= table[i].needed)
            continue;
        p->info.is_usable = false;
        snprintf(p->info.why_not, sizeof p->info.why_not, "%s is %llu, %llu needed (%s)",
                 table[i].name, (unsigned long long)value, (unsigned long long)table[i].needed,
                 table[i].by);
    }
}

static bool not_understood(const char *item, const char *end, td_err *err)
{
    char names[768] = "";
    for (size_t i = 0; i < TD_COUNT(table); i++) {
        size_t n = strlen(names);
        snprintf(names + n, sizeof names - n, "%s, ", table[i].name);
    }
    return td_err_set(err, TD_E_USAGE,
                      "TD_VK_LIMIT: \"%.*s\" is not understood; allowed are %sheapBudget = a "
                      "number above 0; computeFullSubgroups, loadsByLane and hostImport = 0",
                      (int)(end - item < 64 ? end - item : 64), item, names);
}

/* Lowers what name=value of item[0..end) says. */
static bool lower(td_vk_physical *p, const char *item, const char *end, uint64_t *heap)
{
    const char *equals = memchr(item, '=', (size_t)(end - item));
    uint64_t *value = NULL;
    char *stop;
    size_t n = equals ? (size_t)(equals - item) : 0;
    if (n == strlen("heapBudget") && !memcmp(item, "heapBudget", n))
        value = heap;
    for (size_t i = 0; i < TD_COUNT(table); i++)
        if (n == strlen(table[i].name) && !memcmp(item, table[i].name, n))
            value = value_of(&p->limits, &table[i]);
    if (!value || equals[1] < '0' || equals[1] > '9')
        return false;
    uint64_t wanted = strtoull(equals + 1, &stop, 10);
    bool can_be_0 = value == &p->limits.has_full_subgroups || value == &p->limits.loads_by_lane ||
                    value == &p->limits.host_import;
    if (stop != end || (!wanted && !can_be_0))
        return false;
    *value = wanted < *value ? wanted : *value;
    return true;
}

bool td_vk_limits_lower(td_vk_physical *p, const char *text, td_err *err)
{
    uint64_t heap = UINT64_MAX;
    for (const char *item = text; item && *item;) {
        const char *end = item + strcspn(item, ",");
        if (!lower(p, item, end, &heap))
            return not_understood(item, end, err);
        item = end + (*end == ',');
    }
    p->limits.storage_range_bytes &= ~15ull;
    p->info.has_host_import = p->limits.host_import;
    if (p->limits.timestamp_bits < TIMESTAMP_BITS_MIN)
        p->limits.timestamp_ns = 0;
    td_memory_facts *f = &p->info.memory;
    for (uint32_t i = 0; i < f->n_heaps && heap < UINT64_MAX; i++)
        if (!f->heaps[i].budget_bytes || heap + f->heaps[i].used_bytes < f->heaps[i].budget_bytes)
            f->heaps[i].budget_bytes = heap + f->heaps[i].used_bytes;
    td_capacity_read_amdgpu(getenv("TD_SYSFS"), p->info.pci, f);
    td_device_weigh(&p->info);
    find_why_not(p);
    return true;
}
