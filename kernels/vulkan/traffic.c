/* What a dispatch asks of memory, counted from its shape: bytes of weights, keys and values that
 * its workgroups load, and how many there are to be loaded. The quotient says how often a matrix
 * or a cache is streamed; where it is 1 nothing is read twice. Who changes what a workgroup takes
 * (lower*.c) changes this. */
#include "kernels/vulkan/lower.h"

/* The workgroups of a pass take rows of their own and read all of the weight. By expert it is not
 * known here who was chosen: as many as can be, each once. */
static td_traffic mat_mul_traffic(const td_vk_step *s, const td_vk_dispatch *dispatch)
{
    double n_bytes = (double)s->bindings[1]->n_bytes;
    if (s->n_used)
        n_bytes *= (double)dispatch->z / s->n_experts;
    return (td_traffic){n_bytes * dispatch->n_passes, n_bytes};
}

typedef struct { /* of the positions of a sequence */
    int32_t slot;
    uint32_t first, end;
} range;

/* Adds what a row sees to the ranges, one for each sequence; returns their new number. */
static uint32_t add_row(const td_op *op, uint32_t row, range *ranges, uint32_t n)
{
    const int32_t *positions = op->batch.positions->data, *slots = op->batch.slots->data;
    uint32_t last = (uint32_t)positions[row], first = td_first_visible(&op->u.attention, last),
             i = 0;
    while (i < n && ranges[i].slot != slots[row])
        i++;
    if (i == n)
        ranges[n++] = (range){slots[row], first, last + 1};
    ranges[i].first = td_min_u32(ranges[i].first, first);
    ranges[i].end = td_max_u32(ranges[i].end, last + 1);
    return n;
}

static double count_positions(const range *ranges, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += ranges[i].end - ranges[i].first;
    return sum;
}

/* The workgroups' slices take units one after another, a unit being a tile (list_tiles.comp) and a
 * block of query heads; what slices of a workgroup see of one sequence they read together. There
 * is, for each sequence, what any of its rows sees. */
static td_traffic attention_traffic(const td_vk_step *s, uint32_t n_rows, uint32_t n_slices)
{
    const td_vk_kv *kv = (const td_vk_kv *)s->op->kv;
    const int32_t *slots = s->op->batch.slots->data;
    range all[TD_VK_TILE_ROWS], of_group[TD_VK_TILE_ROWS];
    uint32_t n_all = 0, n_of_group = 0, n_units = 0;
    uint32_t n_words = kv->k_words + (kv->head.params.is_latent ? 0 : kv->v_words);
    double head_bytes = 4.0 * n_words * kv->head.params.n_head_kv, issued = 0;
    for (uint32_t r = 0, end; r < n_rows; r = end) {
        end = r;
        while (end < n_rows && end - r < s->tiling.tile_rows && slots[end] == slots[r])
            n_all = add_row(s->op, end++, all, n_all);
        for (uint32_t block = 0; block < s->tiling.n_blocks; block++) {
            for (uint32_t i = r; i < end; i++)
                n_of_group = add_row(s->op, i, of_group, n_of_group);
            if (++n_units % n_slices == 0 || (end == n_rows && block + 1 == s->tiling.n_blocks)) {
                issued += count_positions(of_group, n_of_group);
                n_of_group = 0;
            }
        }
    }
    return (td_traffic){head_bytes * issued, head_bytes * count_positions(all, n_all)};
}

td_traffic td_vk_step_traffic(const td_vk_step *s, uint32_t n_rows)
{
    td_vk_dispatch dispatch = td_vk_step_dispatch(s, n_rows);
    if (s->n_row_variants)
        return mat_mul_traffic(s, &dispatch);
    if (s->tiling.n_group)
        return attention_traffic(s, n_rows, dispatch.n_passes);
    return (td_traffic){0};
}
