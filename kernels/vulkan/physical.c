/* What a GPU can do: fills td_device_info and the limits in force, decides whether the device can
 * run ops at all, and finds the one a spec names.
 *
 * A driver may list devices that compile shaders but have no memory (RADV's null devices, made for
 * testing compilers): they have no memory heap, which is how they are told. */
#include "kernels/vulkan/vk.h"

#include "base/check.h"
#include "kernels/chips.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXTENSIONS_MAX 512u
#define FAMILIES_MAX   32u

static td_device_kind kind_of(VkPhysicalDeviceType type)
{
    switch (type) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU:
        return TD_DEVICE_DISCRETE;
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU:
        return TD_DEVICE_INTEGRATED;
    case VK_PHYSICAL_DEVICE_TYPE_CPU:
        return TD_DEVICE_SOFTWARE;
    default:
        return TD_DEVICE_VIRTUAL;
    }
}

static void find_extensions(td_vk_physical *p, bool *has_coopmat, bool *has_pci)
{
    static const char budget[] = VK_EXT_MEMORY_BUDGET_EXTENSION_NAME;
    static const char executables[] = VK_KHR_PIPELINE_EXECUTABLE_PROPERTIES_EXTENSION_NAME;
    VkExtensionProperties extensions[EXTENSIONS_MAX];
    uint32_t n = EXTENSIONS_MAX;
    VkResult result = vkEnumerateDeviceExtensionProperties(p->handle, NULL, &n, extensions);
    if (result != VK_SUCCESS && result != VK_INCOMPLETE)
        return;
    for (uint32_t i = 0; i < n; i++) {
        const char *name = extensions[i].extensionName;
        p->limits.has_memory_budget |= !strcmp(name, budget);
        p->limits.has_executable_info |= !strcmp(name, executables);
        p->limits.host_import |= !strcmp(name, VK_EXT_EXTERNAL_MEMORY_HOST_EXTENSION_NAME);
        *has_coopmat |= !strcmp(name, "VK_KHR_cooperative_matrix");
        *has_pci |= !strcmp(name, VK_EXT_PCI_BUS_INFO_EXTENSION_NAME);
    }
}

/* The family with compute that does the least else: it has its own queue on most GPUs. Uploads go
 * to one that only copies, where there is one. */
static bool find_family(td_vk_physical *p)
{
    VkQueueFamilyProperties families[FAMILIES_MAX];
    uint32_t n = FAMILIES_MAX;
    vkGetPhysicalDeviceQueueFamilyProperties(p->handle, &n, families);
    bool is_found = false, is_pure = false;
    for (uint32_t i = 0; i < n; i++) {
        bool graphics = families[i].queueFlags & VK_QUEUE_GRAPHICS_BIT;
        if (!(families[i].queueFlags & VK_QUEUE_COMPUTE_BIT) || (is_found && (graphics || is_pure)))
            continue;
        is_found = true;
        is_pure = !graphics;
        p->queue_family = i;
        p->limits.timestamp_bits = families[i].timestampValidBits;
    }
    p->transfer_family = p->queue_family;
    const VkQueueFlags works = VK_QUEUE_GRAPHICS_BIT | VK_QUEUE_COMPUTE_BIT;
    for (uint32_t i = 0; i < n; i++)
        if ((families[i].queueFlags & VK_QUEUE_TRANSFER_BIT) && !(families[i].queueFlags & works) &&
            p->transfer_family == p->queue_family)
            p->transfer_family = i;
    return is_found;
}

static void describe_memory(td_vk_physical *p)
{
    VkPhysicalDeviceMemoryBudgetPropertiesEXT budget = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT};
    VkPhysicalDeviceMemoryProperties2 memory = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2, .pNext = &budget};
    td_memory_facts *f = &p->info.memory;
    vkGetPhysicalDeviceMemoryProperties(p->handle, &p->memory);
    /* A null device has no heaps, and crashes when asked for their budget (RADV of Mesa 22.3). */
    if (p->limits.has_memory_budget && p->memory.memoryHeapCount)
        vkGetPhysicalDeviceMemoryProperties2(p->handle, &memory);
    f->n_heaps = td_min_u32(p->memory.memoryHeapCount, TD_HEAPS_MAX);
    f->n_types = td_min_u32(p->memory.memoryTypeCount, TD_MEMORY_TYPES_MAX);
    for (uint32_t i = 0; i < f->n_heaps; i++) {
        f->heaps[i].n_bytes = p->memory.memoryHeaps[i].size;
        f->heaps[i].budget_bytes = budget.heapBudget[i];
        f->heaps[i].used_bytes = budget.heapUsage[i];
        f->heaps[i].is_device_local =
            p->memory.memoryHeaps[i].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT;
    }
    for (uint32_t i = 0; i < f->n_types; i++) {
        f->types[i].heap = p->memory.memoryTypes[i].heapIndex;
        f->types[i].flags = p->memory.memoryTypes[i].propertyFlags;
    }
    td_host_read_memory(&f->system_bytes, &f->available_bytes);
    p->limits.is_uma = td_capacity_is_shared(p->info.kind) && f->n_heaps > 0;
    td_capacity_find(f, &p->info.capacity);
    for (uint32_t i = 0; i < f->n_heaps; i++)
        p->limits.is_uma &= p->info.capacity.heaps[i].is_host_visible;
}

/* The first reason against the device, or "". */
static const char *why_not(const td_vk_physical *p, uint32_t api, bool has_compute,
                           const VkPhysicalDeviceVulkan11Properties *v11)
{
    VkPhysicalDeviceVulkan13Features v13 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_FEATURES};
    VkPhysicalDeviceFeatures2 features = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2,
                                          .pNext = &v13};
    uint64_t local_bytes = 0;
    if (api < VK_API_VERSION_1_3)
        return "it has no Vulkan 1.3 (a newer driver may)";
    if (!has_compute)
        return "it has no compute queue";
    for (uint32_t i = 0; i < p->info.memory.n_heaps; i++)
        local_bytes += p->info.memory.heaps[i].n_bytes;
    if (!local_bytes)
        return "compile-only (null device, no memory)";
    const VkSubgroupFeatureFlags needed =
        VK_SUBGROUP_FEATURE_BALLOT_BIT | VK_SUBGROUP_FEATURE_SHUFFLE_BIT;
    if ((v11->subgroupSupportedOperations & needed) != needed ||
        !(v11->subgroupSupportedStages & VK_SHADER_STAGE_COMPUTE_BIT))
        return "it has no subgroup ballots and shuffles in compute shaders";
    vkGetPhysicalDeviceFeatures2(p->handle, &features);
    if (!v13.synchronization2 || !v13.maintenance4)
        return "it has no synchronization2 or maintenance4";
    return "";
}

/* Which chip it is. */
static void identify(td_vk_physical *p, bool has_pci, const uint8_t uuid[VK_UUID_SIZE])
{
    VkPhysicalDevicePCIBusInfoPropertiesEXT pci = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PCI_BUS_INFO_PROPERTIES_EXT};
    VkPhysicalDeviceProperties2 properties = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2, .pNext = &pci};
    td_chips_write_uuid(uuid, p->info.uuid);
    /* A null device reports no memory and whatever address. */
    if (has_pci && p->info.memory.n_heaps) {
        vkGetPhysicalDeviceProperties2(p->handle, &properties);
        td_chips_write_pci(pci.pciDomain, pci.pciBus, pci.pciDevice, pci.pciFunction, p->info.pci);
    }
}

/* A Vulkan 1.2 driver knows no 1.3 structs: they stay zero and why_not says so. */
static void describe(td_vk_physical *p, uint32_t index)
{
    VkPhysicalDeviceVulkan13Properties v13 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_PROPERTIES};
    VkPhysicalDeviceVulkan12Properties v12 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_PROPERTIES, .pNext = &v13};
    VkPhysicalDeviceVulkan11Properties v11 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_PROPERTIES, .pNext = &v12};
    VkPhysicalDeviceProperties2 properties = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2, .pNext = &v11};
    VkPhysicalDeviceVulkan12Features f12 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES};
    VkPhysicalDeviceFeatures2 features = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2,
                                          .pNext = &f12};
    vkGetPhysicalDeviceProperties2(p->handle, &properties);
    vkGetPhysicalDeviceFeatures2(p->handle, &features);
    const VkPhysicalDeviceProperties *basic = &properties.properties;
    td_device_info *info = &p->info;
    snprintf(info->spec, sizeof info->spec, "vulkan:%u", index);
    snprintf(info->name, sizeof info->name, "%s", basic->deviceName);
    snprintf(info->vendor, sizeof info->vendor, "%s", td_chips_vendor(basic->vendorID));
    snprintf(info->driver, sizeof info->driver, "%.100s%s%.150s", v12.driverName,
             v12.driverInfo[0] ? " " : "", v12.driverInfo);
    info->vendor_id = basic->vendorID;
    info->driver_id = (uint32_t)v12.driverID;
    info->kind = kind_of(basic->deviceType);
    info->subgroup_size = v11.subgroupSize;
    info->has_f16 = f12.shaderFloat16;
    info->has_int8_dot = v13.integerDotProduct4x8BitPackedSignedAccelerated;

    bool has_pci = false, has_compute = find_family(p);
    find_extensions(p, &info->has_coopmat, &has_pci);
    describe_memory(p);
    identify(p, has_pci, v11.deviceUUID);
    td_vk_limits *limits = &p->limits;
    td_vk_limits_read(p, basic, &v11, &v13);
    limits->quirks = td_vk_quirks_find(basic->vendorID, v12.driverID, basic->driverVersion,
                                       info->quirks, sizeof info->quirks);
    if (limits->host_import && !(limits->quirks & TD_VK_QUIRK_IMPORTS))
        limits->host_import = info->memory.n_heaps && td_vk_can_import(p); /* no null device */
    info->has_coopmat &= !(limits->quirks & TD_VK_QUIRK_NO_COOPMAT);
    const char *reason = why_not(p, basic->apiVersion, has_compute, &v11);
    snprintf(info->why_not, sizeof info->why_not, "%s", reason);
    info->is_usable = !*reason;
}

static void set_max_buffer(td_vk_physical *p)
{
    uint64_t n = p->limits.storage_range_bytes;
    n = n < p->limits.buffer_bytes ? n : p->limits.buffer_bytes;
    p->info.max_buffer_bytes = n < p->limits.allocation_bytes ? n : p->limits.allocation_bytes;
}

uint32_t td_vk_physical_list(const td_vk_instance *instance, td_vk_physical *out, uint32_t max)
{
    VkPhysicalDevice handles[TD_DEVICES_MAX];
    uint32_t n = td_min_u32(max, TD_DEVICES_MAX);
    VkResult result = vkEnumeratePhysicalDevices(instance->handle, &n, handles);
    if (result != VK_SUCCESS && result != VK_INCOMPLETE)
        return 0;
    td_device_info infos[TD_DEVICES_MAX];
    for (uint32_t i = 0; i < n; i++) {
        out[i] = (td_vk_physical){.handle = handles[i]};
        describe(&out[i], i);
        td_vk_limits_lower(&out[i], getenv("TD_VK_LIMIT"), NULL);
        set_max_buffer(&out[i]);
        infos[i] = out[i].info;
    }
    td_chips_mark(infos, n);
    for (uint32_t i = 0; i < n; i++)
        out[i].info = infos[i];
    return n;
}

bool td_vk_physical_find(const td_vk_instance *instance, const char *which, td_vk_physical *out,
                         td_err *err)
{
    td_vk_physical devices[TD_DEVICES_MAX];
    td_device_info infos[TD_DEVICES_MAX];
    uint32_t n = td_vk_physical_list(instance, devices, TD_DEVICES_MAX), index;
    for (uint32_t i = 0; i < n; i++)
        infos[i] = devices[i].info;
    if (!td_chips_find(infos, n, which, &index, err))
        return false;
    *out = devices[index];
    return td_vk_limits_lower(out, getenv("TD_VK_LIMIT"), err);
}

bool td_vulkan_find(const char *which, td_device_info *out, td_err *err)
{
    td_vk_instance instance;
    td_vk_physical physical;
    if (!td_vk_instance_create(&instance, err))
        return false;
    bool is_found = td_vk_physical_find(&instance, which, &physical, err);
    td_vk_instance_destroy(&instance);
    if (is_found)
        *out = physical.info;
    return is_found;
}

uint32_t td_vulkan_list(td_device_info *out, uint32_t max)
{
    td_vk_instance instance;
    td_vk_physical devices[TD_DEVICES_MAX];
    if (!td_vk_instance_create(&instance, NULL))
        return 0;
    uint32_t n = td_vk_physical_list(&instance, devices, td_min_u32(max, TD_DEVICES_MAX));
    for (uint32_t i = 0; i < n; i++)
        out[i] = devices[i].info;
    td_vk_instance_destroy(&instance);
    return n;
}
