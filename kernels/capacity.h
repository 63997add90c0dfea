/* How many bytes a device can hold, why, and what limits it. The allocators, the planner, `tandem
 * devices` and every error about memory ask here, so that they agree. A pure function of described
 * facts: of a driver that is here, or of a machine in a file (planning/machine.h).
 *
 * Memory is a device's own (a card's, or what the firmware carves out of the system's for an
 * integrated GPU: the system does not see that part, so its free memory says nothing of it) or the
 * system's, on which the host, integrated GPUs and software drivers draw together. A reserve of
 * both is kept: for the desktop, for what drivers allocate unasked and for the edges of blocks.
 *
 * Any thread. Nothing fails: what is not told is estimated, on the safe side. */
#ifndef TD_KERNELS_CAPACITY_H
#define TD_KERNELS_CAPACITY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TD_HEAPS_MAX        16u
#define TD_MEMORY_TYPES_MAX 32u

#define TD_RESERVE_OWN_SHARE    0.04 /* of a device's own free memory, but at most */
#define TD_RESERVE_OWN_MAX      (512ull << 20)
#define TD_RESERVE_SYSTEM_SHARE 0.05 /* of the system's available memory */
#define TD_HEAP_SHARE           0.85 /* of a card's heap, where the driver does not tell a budget */
#define TD_WINDOW_BYTES         (256ull << 20) /* the largest BAR without its resizing */

typedef enum {
    TD_DEVICE_HOST,
    TD_DEVICE_DISCRETE,
    TD_DEVICE_INTEGRATED,
    TD_DEVICE_VIRTUAL,
    TD_DEVICE_SOFTWARE, /* a Vulkan driver that runs on the CPU; never chosen by itself */
} td_device_kind;

/* Properties of a memory type, with the values of VkMemoryPropertyFlagBits. */
enum {
    TD_MEMORY_DEVICE_LOCAL = 1,
    TD_MEMORY_HOST_VISIBLE = 2,
    TD_MEMORY_HOST_COHERENT = 4,
    TD_MEMORY_HOST_CACHED = 8,
    TD_MEMORY_LAZY = 16,
    TD_MEMORY_PROTECTED = 32,
    TD_MEMORY_DEVICE_COHERENT = 64,
    TD_MEMORY_UNCACHED = 128,
};

typedef struct {
    td_device_kind kind;
    bool is_amd;               /* of PCI vendor 0x1002 */
    uint32_t n_heaps, n_types; /* Vulkan's; 0 on the host */
    struct {
        uint64_t n_bytes;
        uint64_t budget_bytes, used_bytes; /* as VK_EXT_memory_budget tells this process; 0: not */
        bool is_device_local;
    } heaps[TD_HEAPS_MAX];
    struct {
        uint32_t heap, flags; /* TD_MEMORY_*; a heap without a type counts as visible */
    } types[TD_MEMORY_TYPES_MAX];
    bool has_amdgpu; /* the kernel driver's numbers are known: */
    uint64_t vram_bytes, vram_used_bytes, gtt_bytes, gtt_used_bytes;
    uint64_t system_bytes, available_bytes; /* MemTotal, MemAvailable; 0: not told */
} td_memory_facts;

typedef enum {
    TD_LIMIT_DEVICE, /* there is no more */
    TD_LIMIT_IN_USE, /* by others */
    TD_LIMIT_GTT,    /* what the kernel lets a GPU map of the system's memory */
    TD_LIMIT_SYSTEM, /* free memory of the system */
    TD_LIMIT_DRIVER, /* what the driver offers */
} td_capacity_limit;

typedef struct {
    uint64_t usable_bytes; /* what may be planned with: own + shared */
    uint64_t total_bytes;  /* all there is, used or not */
    uint64_t reserve_bytes;
    uint64_t own_bytes;    /* of usable: the device's alone */
    uint64_t shared_bytes; /* of usable: of the system's memory */
    uint64_t system_bytes; /* what all who draw on the system's memory may take together */
    uint64_t most_bytes; /* what an allocator grants: half of the reserve is for edges of blocks */
    struct {
        uint64_t most_bytes; /* what an allocator grants of the heap */
        bool is_counted;     /* in the sums above */
        bool is_host_visible;
    } heaps[TD_HEAPS_MAX];
    td_capacity_limit limit;
    char reason[288]; /* "carve-out 95.7 of 96.0 GiB free + 14.9 GiB of the system's, ..." */
    char hint[288];   /* how to have more; "" where there is no way */
} td_capacity;

void td_capacity_find(const td_memory_facts *facts, td_capacity *out);

/* Whether a memory type is of use to tandem at all. */
bool td_capacity_is_usable_type(uint32_t flags);

/* Whether a device draws on the system's memory. */
static inline bool td_capacity_is_shared(td_device_kind kind)
{
    return kind == TD_DEVICE_HOST || kind == TD_DEVICE_INTEGRATED || kind == TD_DEVICE_SOFTWARE;
}

/* Reads amdgpu's mem_info_* of the card at a PCI address ("0000:c1:00.0") below `root`, which is
 * /sys where it is NULL. False: there is no such card or it is another driver's. */
bool td_capacity_read_amdgpu(const char *root, const char *pci, td_memory_facts *facts);

#endif
