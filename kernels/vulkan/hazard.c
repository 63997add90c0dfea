/* A step's level is how many barriers must lie before it: one more than that of any earlier step it
 * waits for. Steps of a level stand together, in the order they came in, so that there are as few
 * barriers as the longest chain needs. */
#include "kernels/vulkan/hazard.h"

#include "base/check.h"
#include "base/mem.h"

#include <string.h>

#define WINDOW 256u /* steps looked back at; all before them are waited for */

/* Parts of the same heads, beside each other. */
static bool is_interleaved(const td_vk_access *a, const td_vk_access *b)
{
    uint32_t stride = a->stride;
    if (!stride || b->stride != stride)
        return false;
    uint32_t gap = (b->begin % stride + stride - a->begin % stride) % stride;
    return gap >= a->n_part && b->n_part <= stride - gap;
}

static bool meets(const td_vk_access *a, const td_vk_access *b)
{
    return a->buffer == b->buffer && (a->is_write || b->is_write) && a->begin < b->end &&
           b->begin < a->end && !is_interleaved(a, b);
}

bool td_vk_is_conflict(const td_vk_access *a, uint32_t n_a, const td_vk_access *b, uint32_t n_b)
{
    for (uint32_t i = 0; i < n_a; i++)
        for (uint32_t k = 0; k < n_b; k++)
            if (meets(&a[i], &b[k]))
                return true;
    return false;
}

void td_vk_hazard_reset(td_vk_hazard *h) { h->n = 0; }

bool td_vk_hazard_add(td_vk_hazard *h, const td_vk_access *accesses, uint32_t n)
{
    TD_ASSERT(n <= TD_VK_HAZARDS_MAX);
    bool needs_barrier =
        h->n + n > TD_VK_HAZARDS_MAX || td_vk_is_conflict(h->since, h->n, accesses, n);
    if (needs_barrier)
        td_vk_hazard_reset(h);
    memcpy(h->since + h->n, accesses, n * sizeof *accesses);
    h->n += n;
    return needs_barrier;
}

/* highest[i]: the highest level of steps 0..i. */
static void find_levels(const td_vk_accesses *steps, uint32_t n, uint32_t *levels,
                        uint32_t *highest)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t first = i > WINDOW ? i - WINDOW : 0;
        levels[i] = first ? highest[first - 1] + 1 : 0;
        for (uint32_t k = first; k < i; k++)
            if (levels[k] >= levels[i] &&
                td_vk_is_conflict(steps[k].accesses, steps[k].n, steps[i].accesses, steps[i].n))
                levels[i] = levels[k] + 1;
        highest[i] = i && highest[i - 1] > levels[i] ? highest[i - 1] : levels[i];
    }
}

bool td_vk_order(const td_vk_accesses *steps, uint32_t n, uint32_t *order, td_err *err)
{
    uint32_t *levels = td_alloc(n, sizeof *levels, err);
    uint32_t *highest = td_alloc(n, sizeof *highest, err);
    uint32_t *next = td_alloc(n + 1, sizeof *next, err); /* place of a level's next step */
    bool is_ok = levels && highest && next;
    if (is_ok) {
        find_levels(steps, n, levels, highest);
        for (uint32_t i = 0; i < n; i++)
            next[levels[i] + 1]++;
        for (uint32_t i = 1; i <= n; i++)
            next[i] += next[i - 1];
        for (uint32_t i = 0; i < n; i++)
            order[next[levels[i]]++] = i;
    }
    td_free(levels);
    td_free(highest);
    td_free(next);
    return is_ok;
}
