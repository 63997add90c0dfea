/* Device memory. Blocks of one memory type are taken from the driver and cut into buffers, first
 * fit by offset; a buffer that is large beside a block gets one to itself, so that little is wasted
 * at the edges. A block goes back when its last buffer does. Blocks the host can see stay mapped.
 *
 * Where: device-local types for what shaders use, on GPUs that share the system's memory also any
 * other type, once the local heaps are full; for what the host reads, coherent and, if there is
 * one, cached; for what it only writes, local and coherent (of a card what its BAR shows), if there
 * is room. The first type whose heap has budget left and which the driver grants wins; the last
 * refusal is what an error tells. */
#include "kernels/vulkan/vk.h"

#include "base/check.h"
#include "base/mem.h"

#include <stdio.h>
#include <string.h>

#define LARGE_PART       32u   /* of a block: so much of each is wasted at most */
#define BLOCKS_ALONE_MAX 3072u /* drivers promise 4096 allocations */

typedef struct {
    uint64_t offset, n_bytes;
} range;

struct td_vk_block {
    td_vk_block *next;
    VkDeviceMemory memory;
    uint64_t n_bytes;
    uint32_t type, heap;
    uint8_t *mapped;
    range *used; /* [n_used] by ascending offset */
    uint32_t n_used, capacity;
};

static VkMemoryPropertyFlags flags_of(const td_vk_device *d, uint32_t type)
{
    return d->physical.memory.memoryTypes[type].propertyFlags;
}

/* A GPU that draws on the system's memory may use all of its heaps, also where the host does not
 * see all of them. */
int td_vk_memory_score(uint32_t flags, td_vk_use use, td_device_kind kind, bool is_uma)
{
    const uint32_t visible = TD_MEMORY_HOST_VISIBLE | TD_MEMORY_HOST_COHERENT;
    bool is_local = flags & TD_MEMORY_DEVICE_LOCAL;
    bool is_visible = (flags & visible) == visible;
    bool is_cached = flags & TD_MEMORY_HOST_CACHED;
    if (!td_capacity_is_usable_type(flags))
        return 0;
    /* Layers read inputs over and over, through a card's bus if they lie on its other side. */
    if (use == TD_VK_USE_INPUT)
        return is_visible ? 1 + 4 * is_local + 2 * is_cached : 0;
    if (use == TD_VK_USE_HOST)
        return is_visible ? 1 + 4 * is_cached + 2 * (is_local == is_uma) : 0;
    if (!is_local && !td_capacity_is_shared(kind))
        return 0;
    /* Shared memory is written directly, so it should be visible; of a GPU with its own memory
     * the visible part may be small and is left to others. */
    return 1 + 4 * is_local + 2 * (is_visible == is_uma);
}

static int score(const td_vk_device *d, uint32_t type, td_vk_use use)
{
    return td_vk_memory_score(flags_of(d, type), use, d->head.info.kind, d->physical.limits.is_uma);
}

/* In blocks of all heaps that the capacity counts. */
static uint64_t used_of(const td_vk_device *d)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < d->head.info.memory.n_heaps; i++)
        sum += d->head.info.capacity.heaps[i].is_counted ? d->heap_used_bytes[i] : 0;
    return sum;
}

/* Bytes that a heap may still grow by. */
static uint64_t room_of(const td_vk_device *d, uint32_t heap)
{
    const td_capacity *c = &d->head.info.capacity;
    uint64_t used = d->heap_used_bytes[heap], all = used_of(d);
    uint64_t room = c->heaps[heap].most_bytes > used ? c->heaps[heap].most_bytes - used : 0;
    uint64_t of_all = c->most_bytes > all ? c->most_bytes - all : 0;
    return c->heaps[heap].is_counted && of_all < room ? of_all : room;
}

static bool refuse(const td_vk_device *d, uint32_t heap, uint64_t wanted, td_err *why)
{
    const td_capacity *c = &d->head.info.capacity;
    td_err_clear(why);
    td_err_set(why, TD_E_NOMEM,
               "heap %u of %s is full: %llu MiB wanted, %llu of %llu MiB in use, of all heaps %llu "
               "of %llu (%s)%s%s",
               heap, d->head.info.name, (unsigned long long)((wanted + (1 << 20) - 1) >> 20),
               (unsigned long long)(d->heap_used_bytes[heap] >> 20),
               (unsigned long long)(c->heaps[heap].most_bytes >> 20),
               (unsigned long long)(used_of(d) >> 20), (unsigned long long)(c->most_bytes >> 20),
               c->reason, c->hint[0] ? "; " : "", c->hint);
    return false;
}

static void destroy_block(td_vk_device *d, td_vk_block *block)
{
    vkFreeMemory(d->handle, block->memory, NULL); /* unmaps */
    if (block->memory) {
        d->heap_used_bytes[block->heap] -= block->n_bytes;
        d->n_blocks--;
    }
    td_free(block->used);
    td_free(block);
}

/* A block of exactly n_bytes, or NULL with `why` set. */
static td_vk_block *create_block(td_vk_device *d, uint32_t type, uint64_t n_bytes, td_err *why)
{
    uint32_t heap = d->physical.memory.memoryTypes[type].heapIndex;
    if (n_bytes > room_of(d, heap)) {
        refuse(d, heap, n_bytes, why);
        return NULL;
    }
    td_vk_block *block = td_alloc(1, sizeof *block, why);
    if (!block)
        return NULL;
    *block = (td_vk_block){.type = type, .heap = heap, .n_bytes = n_bytes};
    VkResult result =
        vkAllocateMemory(d->handle,
                         &(VkMemoryAllocateInfo){.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                                                 .allocationSize = n_bytes,
                                                 .memoryTypeIndex = type},
                         NULL, &block->memory);
    if (result != VK_SUCCESS) {
        block->memory = VK_NULL_HANDLE;
        if (result == VK_ERROR_OUT_OF_DEVICE_MEMORY || result == VK_ERROR_OUT_OF_HOST_MEMORY)
            refuse(d, heap, n_bytes, why);
        else
            td_vk_fail(d, result, "vkAllocateMemory", why);
        destroy_block(d, block);
        return NULL;
    }
    d->heap_used_bytes[heap] += n_bytes;
    d->n_blocks++;
    if (flags_of(d, type) & VK_MEMORY_PROPERTY_HOST_COHERENT_BIT) {
        void *mapped;
        result = vkMapMemory(d->handle, block->memory, 0, VK_WHOLE_SIZE, 0, &mapped);
        if (result != VK_SUCCESS) {
            td_vk_fail(d, result, "vkMapMemory", why);
            destroy_block(d, block);
            return NULL;
        }
        block->mapped = mapped;
    }
    block->next = d->blocks;
    d->blocks = block;
    return block;
}

/* The first gap of a block that fits: its offset, and where it goes in the list. */
static bool find_gap(const td_vk_block *block, uint64_t n_bytes, uint64_t alignment,
                     uint64_t *offset, uint32_t *index)
{
    uint64_t at = 0;
    for (uint32_t i = 0; i <= block->n_used; i++) {
        uint64_t end = i < block->n_used ? block->used[i].offset : block->n_bytes;
        at = (at + alignment - 1) & ~(alignment - 1);
        if (at <= end && n_bytes <= end - at) {
            *offset = at;
            *index = i;
            return true;
        }
        if (i < block->n_used)
            at = block->used[i].offset + block->used[i].n_bytes;
    }
    return false;
}

static bool take(td_vk_block *block, uint64_t n_bytes, uint64_t alignment, uint64_t *offset,
                 td_err *err)
{
    uint32_t index;
    if (!find_gap(block, n_bytes, alignment, offset, &index))
        return false;
    if (block->n_used == block->capacity) {
        uint32_t capacity = block->capacity ? 2 * block->capacity : 16;
        range *grown = td_realloc(block->used, block->n_used, capacity, sizeof *grown, err);
        if (!grown)
            return false;
        block->used = grown;
        block->capacity = capacity;
    }
    memmove(block->used + index + 1, block->used + index,
            (block->n_used - index) * sizeof *block->used);
    block->used[index] = (range){*offset, n_bytes};
    block->n_used++;
    return true;
}

static void give_back(td_vk_device *d, td_vk_block *block, uint64_t offset)
{
    for (uint32_t i = 0; i < block->n_used; i++)
        if (block->used[i].offset == offset) {
            memmove(block->used + i, block->used + i + 1,
                    (block->n_used - i - 1) * sizeof *block->used);
            block->n_used--;
            break;
        }
    if (block->n_used)
        return;
    td_vk_block **link = &d->blocks;
    while (*link != block)
        link = &(*link)->next;
    *link = block->next;
    destroy_block(d, block);
}

/* Space in a block of `type`: in one there is, else in a new one. */
static td_vk_block *place(td_vk_device *d, uint32_t type, td_vk_use use,
                          const VkMemoryRequirements *needs, uint64_t *offset, td_err *why)
{
    uint32_t heap = d->physical.memory.memoryTypes[type].heapIndex;
    uint64_t block_bytes = d->head.info.memory.heaps[heap].n_bytes / 16;
    uint64_t most_bytes = use == TD_VK_USE_DEVICE ? TD_VK_BLOCK_BYTES : TD_VK_HOST_BYTES;
    block_bytes = block_bytes < most_bytes ? block_bytes : most_bytes;
    if (block_bytes > d->physical.limits.allocation_bytes)
        block_bytes = d->physical.limits.allocation_bytes;
    bool is_large = needs->size > block_bytes / LARGE_PART && d->n_blocks < BLOCKS_ALONE_MAX;
    for (td_vk_block *b = d->blocks; b && !is_large; b = b->next)
        if (b->type == type && take(b, needs->size, needs->alignment, offset, why))
            return b;
    td_vk_block *block = NULL;
    if (!is_large)
        block = create_block(d, type, block_bytes, why);
    if (!block) {
        td_err_clear(why);
        block = create_block(d, type, needs->size, why);
    }
    if (block && !take(block, needs->size, needs->alignment, offset, why)) {
        give_back(d, block, UINT64_MAX);
        return NULL;
    }
    return block;
}

static bool allocate(td_vk_device *d, const VkMemoryRequirements *needs, td_vk_use use,
                     td_vk_buffer *out, td_err *err)
{
    td_err why = {0};
    td_err_set(&why, TD_E_NOMEM, "no memory type suits");
    uint32_t tried = 0;
    if (needs->size > d->physical.limits.allocation_bytes)
        return td_err_set(err, TD_E_NOMEM, "%llu bytes, above maxMemoryAllocationSize of %llu",
                          (unsigned long long)needs->size,
                          (unsigned long long)d->physical.limits.allocation_bytes);
    for (uint32_t n = 0; n < d->physical.memory.memoryTypeCount; n++) {
        int best = 0;
        uint32_t type = 0;
        for (uint32_t i = 0; i < d->physical.memory.memoryTypeCount; i++)
            if ((needs->memoryTypeBits & ~tried) >> i & 1 && score(d, i, use) > best) {
                best = score(d, i, use);
                type = i;
            }
        if (!best)
            break;
        tried |= 1u << type;
        out->block = place(d, type, use, needs, &out->offset, &why);
        if (out->block) {
            out->n_reserved = needs->size;
            if (out->block->mapped)
                out->mapped = out->block->mapped + out->offset;
            return true;
        }
    }
    return td_err_set(err, why.code, "%s", why.message);
}

bool td_vk_buffer_create(td_vk_device *d, uint64_t n_bytes, td_vk_use use, const char *name,
                         td_vk_buffer *out, td_err *err)
{
    const td_vk_limits *limits = &d->physical.limits;
    *out = (td_vk_buffer){.n_bytes = (n_bytes + 15) & ~15ull};
    const uint32_t families[] = {d->physical.queue_family, d->physical.transfer_family};
    uint32_t n_families = families[0] == families[1] ? 1 : 2;
    if (!td_vk_check(d, err))
        return false;
    if (out->n_bytes > limits->storage_range_bytes || out->n_bytes > limits->buffer_bytes) {
        bool is_range = limits->storage_range_bytes <= limits->buffer_bytes;
        return td_err_set(
            err, TD_E_NOMEM, "%llu bytes, above %s of %llu", (unsigned long long)n_bytes,
            is_range ? "maxStorageBufferRange" : "maxBufferSize",
            (unsigned long long)(is_range ? limits->storage_range_bytes : limits->buffer_bytes));
    }
    VK_TRY(d, vkCreateBuffer(d->handle,
                             &(VkBufferCreateInfo){
                                 .sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
                                 .size = out->n_bytes,
                                 .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT |
                                          VK_BUFFER_USAGE_TRANSFER_SRC_BIT |
                                          VK_BUFFER_USAGE_TRANSFER_DST_BIT,
                                 .sharingMode = n_families > 1 ? VK_SHARING_MODE_CONCURRENT
                                                               : VK_SHARING_MODE_EXCLUSIVE,
                                 .queueFamilyIndexCount = n_families > 1 ? n_families : 0,
                                 .pQueueFamilyIndices = families,
                             },
                             NULL, &out->handle));
    VkMemoryRequirements needs;
    vkGetBufferMemoryRequirements(d->handle, out->handle, &needs);
    if (!allocate(d, &needs, use, out, err))
        goto fail;
    if (use == TD_VK_USE_DEVICE && n_bytes > limits->direct_write_bytes)
        out->mapped = NULL;
    if (d->head.info.capacity.heaps[out->block->heap].is_counted)
        d->head.used_bytes += out->n_reserved;
    VK_TRY(d, vkBindBufferMemory(d->handle, out->handle, out->block->memory, out->offset));
    td_vk_set_name(d, VK_OBJECT_TYPE_BUFFER, (uint64_t)(uintptr_t)out->handle, name);
    return true;
fail:
    td_vk_buffer_destroy(d, out);
    return false;
}

bool td_vk_buffer_is_local(const td_vk_device *d, const td_vk_buffer *buffer)
{
    return flags_of(d, buffer->block->type) & VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT;
}

void td_vk_buffer_destroy(td_vk_device *d, td_vk_buffer *buffer)
{
    if (!d->is_hung) {
        vkDestroyBuffer(d->handle, buffer->handle, NULL);
        if (buffer->block) {
            if (d->head.info.capacity.heaps[buffer->block->heap].is_counted)
                d->head.used_bytes -= buffer->n_reserved;
            give_back(d, buffer->block, buffer->offset);
        }
    }
    *buffer = (td_vk_buffer){0};
}

bool td_vk_buffer_clear(td_vk_device *d, td_vk_buffer *buffer, td_err *err)
{
    if (buffer->mapped) {
        memset(buffer->mapped, 0, buffer->n_bytes);
        return true;
    }
    if (!td_vk_once_begin(d, err))
        return false;
    vkCmdFillBuffer(d->once, buffer->handle, 0, VK_WHOLE_SIZE, 0);
    return td_vk_submit_once(d, err);
}
