/* A card has its own memory: its device-local heaps. A small visible one beside a large one is
 * passed over, since with some drivers it is a window on the large one.
 *
 * An integrated GPU has the carve-out and, up to a limit of the kernel's (GTT), the system's
 * memory. A driver cuts the sum of both into heaps as it likes (RADV: two thirds and one), so heaps
 * are added up before anything is compared, and the kernel is asked where it tells (amdgpu's
 * mem_info_*). Where it does not, what the heaps of an AMD GPU have beyond the system's memory must
 * be carve-out. Only what comes of the system is limited by what the system has free. */
#include "kernels/capacity.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define GIB        ((double)(1u << 30))
#define PAGE_BYTES 4096u

static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }
static uint64_t less(uint64_t a, uint64_t b) { return a > b ? a - b : 0; }
static uint64_t share(double part, uint64_t n) { return (uint64_t)(part * (double)n); }

static uint64_t own_reserve(uint64_t n)
{
    return least(share(TD_RESERVE_OWN_SHARE, n), TD_RESERVE_OWN_MAX);
}

bool td_capacity_is_usable_type(uint32_t flags)
{
    return !(flags & (TD_MEMORY_LAZY | TD_MEMORY_PROTECTED | TD_MEMORY_UNCACHED));
}

/* What this process may still take of a heap, as far as its driver tells. */
static uint64_t free_of(const td_memory_facts *f, uint32_t i)
{
    uint64_t n = f->heaps[i].n_bytes;
    if (f->heaps[i].budget_bytes)
        return least(n, less(f->heaps[i].budget_bytes, f->heaps[i].used_bytes));
    return td_capacity_is_shared(f->kind) ? n : share(TD_HEAP_SHARE, n);
}

static bool has_usable_type(const td_memory_facts *f, uint32_t heap)
{
    bool has_any = false;
    for (uint32_t i = 0; i < f->n_types; i++) {
        has_any |= f->types[i].heap == heap;
        if (f->types[i].heap == heap && td_capacity_is_usable_type(f->types[i].flags))
            return true;
    }
    return !has_any && !f->n_types;
}

static bool is_visible(const td_memory_facts *f, uint32_t heap)
{
    const uint32_t both = TD_MEMORY_HOST_VISIBLE | TD_MEMORY_HOST_COHERENT;
    for (uint32_t i = 0; i < f->n_types; i++)
        if (f->types[i].heap == heap && (f->types[i].flags & both) == both)
            return true;
    return !f->n_types;
}

static bool is_window(const td_memory_facts *f, uint32_t heap)
{
    bool is_beside_larger = false;
    for (uint32_t i = 0; i < f->n_heaps; i++)
        is_beside_larger |=
            f->heaps[i].is_device_local && f->heaps[i].n_bytes > f->heaps[heap].n_bytes;
    return is_beside_larger && is_visible(f, heap) && f->heaps[heap].n_bytes <= TD_WINDOW_BYTES;
}

static void find_card(const td_memory_facts *f, td_capacity *c)
{
    uint64_t n_free = 0;
    for (uint32_t i = 0; i < f->n_heaps; i++) {
        c->heaps[i].is_counted =
            f->heaps[i].is_device_local && has_usable_type(f, i) && !is_window(f, i);
        c->heaps[i].most_bytes = free_of(f, i);
        if (c->heaps[i].is_counted) {
            c->total_bytes += f->heaps[i].n_bytes;
            n_free += c->heaps[i].most_bytes;
        }
    }
    if (f->has_amdgpu)
        n_free = least(n_free, less(f->vram_bytes, f->vram_used_bytes));
    c->reserve_bytes = own_reserve(n_free);
    c->own_bytes = c->usable_bytes = n_free - c->reserve_bytes;
    bool is_used = n_free < share(0.9, c->total_bytes);
    c->limit = is_used ? TD_LIMIT_IN_USE : TD_LIMIT_DEVICE;
    snprintf(c->reason, sizeof c->reason,
             "%.1f of the card's %.1f GiB are free, less a reserve of %.1f", (double)n_free / GIB,
             (double)c->total_bytes / GIB, (double)c->reserve_bytes / GIB);
    if (is_used)
        snprintf(c->hint, sizeof c->hint, "other programs use the rest of the card");
}

/* What an integrated GPU may have of each kind of memory, before limits are compared. */
typedef struct {
    uint64_t carved, carved_free; /* its own */
    uint64_t gtt, gtt_free;       /* UINT64_MAX: no limit is known */
    uint64_t driver_free, driver; /* of all heaps */
} shared_parts;

static shared_parts find_parts(const td_memory_facts *f)
{
    shared_parts p = {.gtt = UINT64_MAX, .gtt_free = UINT64_MAX};
    for (uint32_t i = 0; i < f->n_heaps; i++)
        if (has_usable_type(f, i)) {
            p.driver_free += free_of(f, i);
            p.driver += f->heaps[i].n_bytes;
        }
    if (f->kind != TD_DEVICE_INTEGRATED)
        return p;
    if (f->has_amdgpu) {
        p.carved = f->vram_bytes;
        p.carved_free = less(f->vram_bytes, f->vram_used_bytes);
        p.gtt = f->gtt_bytes;
        p.gtt_free = less(f->gtt_bytes, f->gtt_used_bytes);
    } else if (f->is_amd && f->system_bytes && p.driver > f->system_bytes) {
        p.carved = p.driver - f->system_bytes;
        p.carved_free = less(p.carved, p.driver - p.driver_free);
    }
    return p;
}

static void grant_heaps(const td_memory_facts *f, const shared_parts *p, td_capacity *c)
{
    uint64_t of_system = least(p->gtt_free, f->available_bytes ? f->available_bytes : UINT64_MAX);
    for (uint32_t i = 0; i < f->n_heaps; i++) {
        c->heaps[i].is_counted = has_usable_type(f, i);
        c->heaps[i].most_bytes = free_of(f, i);
        /* A local heap of such a GPU is no place but a wish: the kernel fills the carve-out and
         * goes on in the system's memory. The other one is of the system's alone. */
        if (f->has_amdgpu)
            c->heaps[i].most_bytes = f->heaps[i].is_device_local
                                         ? p->driver_free
                                         : least(c->heaps[i].most_bytes, of_system);
    }
}

static void explain_shared(const td_memory_facts *f, const shared_parts *p, td_capacity *c)
{
    char carved[96] = "", gtt[64] = "";
    if (p->carved)
        snprintf(carved, sizeof carved, "%.1f of a carve-out of %.1f GiB are free + ",
                 (double)p->carved_free / GIB, (double)p->carved / GIB);
    if (p->gtt != UINT64_MAX)
        snprintf(gtt, sizeof gtt, ", GTT limit %.1f", (double)p->gtt / GIB);
    snprintf(c->reason, sizeof c->reason,
             "%s%.1f GiB of the system's memory (%.1f available%s)%s, reserve %.1f", carved,
             (double)c->shared_bytes / GIB, (double)f->available_bytes / GIB, gtt,
             c->limit == TD_LIMIT_DRIVER ? ", as much as the driver offers" : "",
             (double)c->reserve_bytes / GIB);
    if (c->limit == TD_LIMIT_GTT || (c->limit == TD_LIMIT_DRIVER && f->is_amd))
        snprintf(c->hint, sizeof c->hint,
                 "raise the kernel's GTT limit: ttm.pages_limit=%" PRIu64 " (older kernels: "
                 "amdgpu.gttsize=%" PRIu64 ") on the kernel's command line gives the GPU nearly "
                 "all of the system's memory",
                 f->system_bytes / 16 * 15 / PAGE_BYTES, f->system_bytes / 16 * 15 >> 20);
    else if (c->limit == TD_LIMIT_SYSTEM && f->available_bytes < share(0.8, f->system_bytes))
        snprintf(c->hint, sizeof c->hint, "other programs use %.1f GiB of the system's memory",
                 (double)less(f->system_bytes, f->available_bytes) / GIB);
}

/* The host, integrated GPUs and software drivers. */
static void find_shared(const td_memory_facts *f, td_capacity *c)
{
    shared_parts p = find_parts(f);
    bool is_host = f->kind == TD_DEVICE_HOST;
    uint64_t available = f->available_bytes ? f->available_bytes : p.driver_free;
    uint64_t kept = share(TD_RESERVE_SYSTEM_SHARE, available),
             kept_own = own_reserve(p.carved_free);
    c->system_bytes = available - kept;
    c->own_bytes = p.carved_free - kept_own;
    c->shared_bytes = c->system_bytes;
    c->reserve_bytes = kept_own + kept;
    c->limit = TD_LIMIT_SYSTEM;
    if (p.gtt_free - own_reserve(p.gtt_free) < c->shared_bytes) {
        kept = own_reserve(p.gtt_free);
        c->shared_bytes = p.gtt_free - kept;
        c->reserve_bytes = kept_own + kept;
        c->limit = TD_LIMIT_GTT;
    }
    c->usable_bytes = c->own_bytes + c->shared_bytes;
    c->total_bytes = is_host ? f->system_bytes : p.driver;
    uint64_t offered = p.driver_free - own_reserve(p.driver_free);
    if (!is_host && offered < c->usable_bytes) {
        c->usable_bytes = offered;
        c->own_bytes = least(c->own_bytes, offered);
        c->shared_bytes = offered - c->own_bytes;
        c->reserve_bytes = p.driver_free - offered;
        /* What the kernel would give is within the reserve of what the driver offers. */
        if (c->limit != TD_LIMIT_GTT || offered < share(0.9, p.carved_free + p.gtt_free))
            c->limit = TD_LIMIT_DRIVER;
    }
    grant_heaps(f, &p, c);
    explain_shared(f, &p, c);
}

void td_capacity_find(const td_memory_facts *f, td_capacity *c)
{
    *c = (td_capacity){.limit = TD_LIMIT_DEVICE};
    if (td_capacity_is_shared(f->kind))
        find_shared(f, c);
    else
        find_card(f, c);
    c->most_bytes = c->usable_bytes + c->reserve_bytes / 2;
    for (uint32_t i = 0; i < f->n_heaps; i++) {
        c->heaps[i].is_host_visible = is_visible(f, i);
        if (c->heaps[i].is_counted)
            c->heaps[i].most_bytes = least(c->heaps[i].most_bytes, c->most_bytes);
    }
}

/* -- reading ----------------------------------------------------------------------------------- */

static bool read_number(const char *root, const char *pci, const char *name, uint64_t *out)
{
    char path[512];
    int n = snprintf(path, sizeof path, "%s/bus/pci/devices/%s/%s", root, pci, name);
    FILE *f = n > 0 && (size_t)n < sizeof path ? fopen(path, "re") : NULL;
    bool is_ok = f && fscanf(f, "%" SCNu64, out) == 1;
    if (f)
        fclose(f);
    return is_ok;
}

bool td_capacity_read_amdgpu(const char *root, const char *pci, td_memory_facts *f)
{
    if (!root)
        root = "/sys";
    f->has_amdgpu = pci[0] && read_number(root, pci, "mem_info_vram_total", &f->vram_bytes) &&
                    read_number(root, pci, "mem_info_vram_used", &f->vram_used_bytes) &&
                    read_number(root, pci, "mem_info_gtt_total", &f->gtt_bytes) &&
                    read_number(root, pci, "mem_info_gtt_used", &f->gtt_used_bytes);
    return f->has_amdgpu;
}
