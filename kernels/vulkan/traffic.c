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

/* The first position that a row sees. */
static uint32_t first_visible(const td_attention_params *a, uint32_t position)
{
    uint32_t first = 0;
    if (a->window && position >= a->window)
        first = position - a->window + 1;
    if (a->chunk)
        first = td_max_u32(first, position / a->chunk * a->chunk);
    return first;
}

/* Each row and query head reads what it sees; there is, for each sequence, what any of its rows
 * sees. */
static td_traffic attention_traffic(const td_vk_step *s, uint32_t n_rows)
{
    const td_op *op = s->op;
    const td_vk_kv *kv = (const td_vk_kv *)op->kv;
    const int32_t *positions = op->batch.positions->data, *slots = op->batch.slots->data;
    double head_bytes = 4.0 * (kv->k_words + kv->v_words);
    td_traffic t = {0};
    for (uint32_t r = 0; r < n_rows; r++) {
        uint32_t last = (uint32_t)positions[r], first = first_visible(&op->u.attention, last);
        bool is_first_of_slot = true;
        t.issued += head_bytes * op->u.attention.n_head * (last - first + 1);
        for (uint32_t i = 0; i < r; i++)
            is_first_of_slot &= slots[i] != slots[r];
        for (uint32_t i = r + 1; is_first_of_slot && i < n_rows; i++)
            if (slots[i] == slots[r]) {
                first = td_min_u32(first, first_visible(&op->u.attention, (uint32_t)positions[i]));
                last = td_max_u32(last, (uint32_t)positions[i]);
            }
        if (is_first_of_slot)
            t.there += head_bytes * kv->head.params.n_head_kv * (last - first + 1);
    }
    return t;
}

td_traffic td_vk_step_traffic(const td_vk_step *s, uint32_t n_rows)
{
    td_vk_dispatch dispatch = td_vk_step_dispatch(s, n_rows);
    if (s->n_row_variants)
        return mat_mul_traffic(s, &dispatch);
    if (!strcmp(s->key.shader, "attention"))
        return attention_traffic(s, n_rows);
    return (td_traffic){0};
}
