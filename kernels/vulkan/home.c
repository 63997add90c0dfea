/* Homes: memory between devices. A home is memory of the process, imported, where the driver does
 * that (VK_EXT_external_memory_host); else a buffer that the host sees. Kernels never touch it: a
 * run begins and ends with copies between a home and the tensors that lie there, in the submission
 * that the run takes anyway, so that recordings and descriptors know nothing of homes, and a card
 * moves rows over its bus once. The copies' command buffers are made anew for each run: they are
 * two commands. */
#include "kernels/vulkan/vk.h"

#include "base/check.h"
#include "base/mem.h"

#define USAGE        (VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT)
#define HOST_POINTER VK_EXTERNAL_MEMORY_HANDLE_TYPE_HOST_ALLOCATION_BIT_EXT

bool td_vk_can_import(const td_vk_physical *p)
{
    VkExternalBufferProperties said = {.sType = VK_STRUCTURE_TYPE_EXTERNAL_BUFFER_PROPERTIES};
    vkGetPhysicalDeviceExternalBufferProperties(
        p->handle,
        &(VkPhysicalDeviceExternalBufferInfo){
            .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_EXTERNAL_BUFFER_INFO,
            .usage = USAGE,
            .handleType = HOST_POINTER},
        &said);
    return said.externalMemoryProperties.externalMemoryFeatures &
           VK_EXTERNAL_MEMORY_FEATURE_IMPORTABLE_BIT;
}

static bool fits(const td_vk_device *d, const td_home *home)
{
    VkPhysicalDeviceExternalMemoryHostPropertiesEXT host = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_EXTERNAL_MEMORY_HOST_PROPERTIES_EXT};
    VkPhysicalDeviceProperties2 properties = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2, .pNext = &host};
    const td_vk_limits *limits = &d->physical.limits;
    if (!limits->host_import || home->n_bytes > limits->buffer_bytes ||
        home->n_bytes > limits->allocation_bytes)
        return false;
    vkGetPhysicalDeviceProperties2(d->physical.handle, &properties);
    VkDeviceSize alignment = host.minImportedHostPointerAlignment;
    return alignment && TD_HOME_ALIGNMENT % alignment == 0;
}

/* The first coherent one of `types`; UINT32_MAX: there is none. */
static uint32_t find_type(const td_vk_device *d, uint32_t types)
{
    const VkMemoryPropertyFlags wanted =
        VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
    for (uint32_t i = 0; i < d->physical.memory.memoryTypeCount; i++)
        if (types >> i & 1 && (d->physical.memory.memoryTypes[i].propertyFlags & wanted) == wanted)
            return i;
    return UINT32_MAX;
}

/* False, with nothing made that home_free would not free: there is another way. */
static bool import(td_vk_device *d, td_vk_home *h)
{
    PFN_vkGetMemoryHostPointerPropertiesEXT get_properties =
        (PFN_vkGetMemoryHostPointerPropertiesEXT)vkGetDeviceProcAddr(
            d->handle, "vkGetMemoryHostPointerPropertiesEXT");
    VkMemoryHostPointerPropertiesEXT pointer = {
        .sType = VK_STRUCTURE_TYPE_MEMORY_HOST_POINTER_PROPERTIES_EXT};
    VkExternalMemoryBufferCreateInfo external = {
        .sType = VK_STRUCTURE_TYPE_EXTERNAL_MEMORY_BUFFER_CREATE_INFO, .handleTypes = HOST_POINTER};
    if (!fits(d, &h->head) || !get_properties ||
        get_properties(d->handle, HOST_POINTER, h->head.data, &pointer) != VK_SUCCESS ||
        vkCreateBuffer(d->handle,
                       &(VkBufferCreateInfo){.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
                                             .pNext = &external,
                                             .size = h->head.n_bytes,
                                             .usage = USAGE,
                                             .sharingMode = VK_SHARING_MODE_EXCLUSIVE},
                       NULL, &h->handle) != VK_SUCCESS)
        return false;
    VkMemoryRequirements needs;
    vkGetBufferMemoryRequirements(d->handle, h->handle, &needs);
    VkImportMemoryHostPointerInfoEXT from = {
        .sType = VK_STRUCTURE_TYPE_IMPORT_MEMORY_HOST_POINTER_INFO_EXT,
        .handleType = HOST_POINTER,
        .pHostPointer = h->head.data};
    uint32_t type = find_type(d, needs.memoryTypeBits & pointer.memoryTypeBits);
    return type != UINT32_MAX && needs.size <= h->head.n_bytes &&
           vkAllocateMemory(d->handle,
                            &(VkMemoryAllocateInfo){.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                                                    .pNext = &from,
                                                    .allocationSize = h->head.n_bytes,
                                                    .memoryTypeIndex = type},
                            NULL, &h->memory) == VK_SUCCESS &&
           vkBindBufferMemory(d->handle, h->handle, h->memory, 0) == VK_SUCCESS;
}

bool td_vk_home_init(td_home *home, td_err *err)
{
    td_vk_home *h = (td_vk_home *)home;
    td_vk_device *d = (td_vk_device *)home->dev;
    if (import(d, h)) {
        td_vk_set_name(d, VK_OBJECT_TYPE_BUFFER, (uint64_t)(uintptr_t)h->handle, "home");
        return true;
    }
    td_vk_home_free(home);
    if (!td_vk_buffer_create(d, home->n_bytes, TD_VK_USE_HOST, "home", &h->own, err))
        return false;
    h->handle = h->own.handle;
    home->data = h->own.mapped;
    return td_vk_buffer_clear(d, &h->own, err);
}

bool td_vk_home_free(td_home *home)
{
    td_vk_home *h = (td_vk_home *)home;
    td_vk_device *d = (td_vk_device *)home->dev;
    if (!d->is_hung && h->handle != h->own.handle)
        vkDestroyBuffer(d->handle, h->handle, NULL);
    if (!d->is_hung)
        vkFreeMemory(d->handle, h->memory, NULL);
    td_vk_buffer_destroy(d, &h->own);
    h->handle = VK_NULL_HANDLE;
    h->memory = VK_NULL_HANDLE;
    return !d->is_hung;
}

/* Adds a view's tensor to the list, which has room, if it may have a home. */
static void add_visitor(td_vk_program *p, td_tensor *t, bool is_written)
{
    if (!t || t->params.host == TD_HOST_NONE || t->params.rows == TD_ROWS_FIXED)
        return;
    uint32_t i = 0;
    while (i < p->n_visitors && p->visitors[i].t != t)
        i++;
    p->visitors[i].t = t;
    p->visitors[i].is_read |= !is_written;
    p->visitors[i].is_written |= is_written;
    p->n_visitors = td_max_u32(p->n_visitors, i + 1);
}

bool td_vk_find_visitors(td_vk_program *p, td_err *err)
{
    size_t n = 0;
    for (uint32_t i = 0; i < p->head.n_ops; i++) {
        const td_op *op = &p->head.ops[i];
        n += op->out.t && op->out.t->params.host != TD_HOST_NONE;
        for (uint32_t k = 0; k < op->n_in; k++)
            n += op->in[k].t && op->in[k].t->params.host != TD_HOST_NONE;
    }
    p->visitors = td_alloc(n, sizeof *p->visitors, err);
    for (uint32_t i = 0; p->visitors && i < p->head.n_ops; i++) {
        const td_op *op = &p->head.ops[i];
        add_visitor(p, op->out.t, true);
        for (uint32_t k = 0; k < op->n_in; k++)
            add_visitor(p, op->in[k].t, false);
    }
    return p->visitors != NULL;
}

static bool begin(td_vk_device *d, VkCommandBuffer hop, td_err *err)
{
    VK_TRY(d, vkBeginCommandBuffer(hop, &(VkCommandBufferBeginInfo){
                                            .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                            .flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT}));
    td_vk_barrier(hop, VK_PIPELINE_STAGE_2_ALL_COMMANDS_BIT,
                  VK_ACCESS_2_MEMORY_READ_BIT | VK_ACCESS_2_MEMORY_WRITE_BIT,
                  VK_PIPELINE_STAGE_2_COPY_BIT,
                  VK_ACCESS_2_TRANSFER_READ_BIT | VK_ACCESS_2_TRANSFER_WRITE_BIT);
    return true;
fail:
    return false;
}

/* What a call reads (or writes) of homes. */
static bool record_hop(td_vk_device *d, const td_program_call *call, bool is_end,
                       VkCommandBuffer *hop, td_err *err)
{
    const td_vk_program *p = (const td_vk_program *)call->p;
    for (uint32_t i = 0; i < p->n_visitors; i++) {
        const td_vk_tensor *t = (const td_vk_tensor *)p->visitors[i].t;
        const td_vk_home *home = (const td_vk_home *)t->head.home;
        if (!home || !(is_end ? p->visitors[i].is_written : p->visitors[i].is_read))
            continue;
        uint64_t n_rows = t->head.params.rows == TD_ROWS_OUT ? call->n_out : call->n_rows;
        VkBufferCopy region = {.srcOffset = is_end ? 0 : t->head.home_offset,
                               .dstOffset = is_end ? t->head.home_offset : 0,
                               .size = 4 * n_rows * t->head.params.n_cols};
        if (!region.size)
            continue;
        if (!*hop && !begin(d, d->hops[is_end], err))
            return false;
        *hop = d->hops[is_end];
        vkCmdCopyBuffer(*hop, is_end ? t->buffer.handle : home->handle,
                        is_end ? home->handle : t->buffer.handle, 1, &region);
    }
    return true;
}

bool td_vk_record_hops(td_vk_device *d, const td_program_call *calls, uint32_t n_calls,
                       VkCommandBuffer hops[2], td_err *err)
{
    hops[0] = hops[1] = VK_NULL_HANDLE;
    for (uint32_t i = 0; i < 2 * n_calls; i++)
        if (!record_hop(d, &calls[i / 2], i % 2, &hops[i % 2], err))
            return false;
    if (hops[1])
        td_vk_barrier(hops[1], VK_PIPELINE_STAGE_2_COPY_BIT, VK_ACCESS_2_TRANSFER_WRITE_BIT,
                      VK_PIPELINE_STAGE_2_HOST_BIT, VK_ACCESS_2_HOST_READ_BIT);
    for (uint32_t i = 0; i < 2; i++)
        if (hops[i])
            VK_TRY(d, vkEndCommandBuffer(hops[i]));
    return true;
fail:
    return false;
}
