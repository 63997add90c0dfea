/* Cuts of a Vulkan device's caches (kernels/cut.h): through memory that the host sees, many of them
 * in one submission. */
#include "kernels/vulkan/vk.h"

#include "base/check.h"
#include "kernels/vulkan/push.h"

#define STAGING_BYTES (16u << 20) /* of a submission; one cut may be larger */

static uint32_t state_ranges(const td_cut *cut, td_cut_range *out)
{
    td_vk_state *s = (td_vk_state *)cut->state;
    const td_state_params *p = &cut->state->params;
    uint64_t s_bytes = 4ull * p->n_head_v * p->dim * p->dim;
    uint64_t counts_bytes = 4ull * p->n_head_v * td_div_up(p->dim, TD_VK_STATE_COLS);
    uint64_t row_bytes = 4ull * td_state_cols(p);
    uint32_t n = 0;
    out[n++] = (td_cut_range){&s->s, cut->index * s_bytes, s_bytes, false, 0};
    out[n++] =
        (td_cut_range){&s->counts, cut->index * counts_bytes, counts_bytes, true, cut->position};
    for (uint32_t i = 1; i < p->n_taps; i++) {
        uint64_t row = (uint64_t)cut->index * p->n_pending + (cut->position - i) % p->n_pending;
        out[n++] = (td_cut_range){&s->ring, row * row_bytes, row_bytes, false, 0};
    }
    return n;
}

uint32_t td_vk_cut_ranges(const td_cut *cut, td_cut_range *out)
{
    td_vk_kv *kv = (td_vk_kv *)cut->kv;
    if (!kv)
        return state_ranges(cut, out);
    uint64_t n_rows = (uint64_t)kv->head.params.n_head_kv * TD_PAGE_POSITIONS;
    uint64_t k_bytes = 4 * n_rows * kv->k_words, v_bytes = 4 * n_rows * kv->v_words;
    out[0] = (td_cut_range){&kv->k, cut->index * k_bytes, k_bytes, false, 0};
    out[1] = (td_cut_range){&kv->v, cut->index * v_bytes, v_bytes, false, 0};
    return kv->head.params.is_latent ? 1 : 2;
}

static void record(td_vk_device *d, const td_cut *cut, uint64_t at, bool is_read)
{
    td_cut_range ranges[TD_CUT_RANGES_MAX];
    for (uint32_t i = 0, n = td_vk_cut_ranges(cut, ranges); i < n; i++) {
        const td_cut_range *r = &ranges[i];
        VkBuffer there = ((const td_vk_buffer *)r->where)->handle, here = d->readback.handle;
        if (r->is_fill && !is_read)
            vkCmdFillBuffer(d->once, there, r->offset, r->n_bytes, r->word);
        if (r->is_fill)
            continue;
        VkBufferCopy region = {is_read ? r->offset : at, is_read ? at : r->offset, r->n_bytes};
        vkCmdCopyBuffer(d->once, is_read ? there : here, is_read ? here : there, 1, &region);
        at += r->n_bytes;
    }
}

static void copy(const td_vk_device *d, const td_cut *cuts, uint32_t n, bool is_read)
{
    uint8_t *staged = d->readback.mapped;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t n_bytes = td_cut_bytes(&cuts[i]);
        memcpy(is_read ? cuts[i].bytes : staged, is_read ? staged : cuts[i].bytes, n_bytes);
        staged += n_bytes;
    }
}

static bool move_some(td_vk_device *d, const td_cut *cuts, uint32_t n, uint64_t n_bytes,
                      bool is_read, td_err *err)
{
    if (d->readback.n_bytes < n_bytes) {
        td_vk_buffer_destroy(d, &d->readback);
        if (!td_vk_buffer_create(d, n_bytes, TD_VK_USE_HOST, "readback", &d->readback, err))
            return false;
    }
    if (!is_read)
        copy(d, cuts, n, false);
    if (!td_vk_once_begin(d, err))
        return false;
    uint64_t at = 0;
    for (uint32_t i = 0; i < n; at += td_cut_bytes(&cuts[i++]))
        record(d, &cuts[i], at, is_read);
    if (is_read)
        td_vk_barrier(d->once, VK_PIPELINE_STAGE_2_COPY_BIT, VK_ACCESS_2_TRANSFER_WRITE_BIT,
                      VK_PIPELINE_STAGE_2_HOST_BIT, VK_ACCESS_2_HOST_READ_BIT);
    else
        td_vk_barrier(d->once, VK_PIPELINE_STAGE_2_ALL_TRANSFER_BIT, VK_ACCESS_2_TRANSFER_WRITE_BIT,
                      VK_PIPELINE_STAGE_2_ALL_COMMANDS_BIT,
                      VK_ACCESS_2_MEMORY_READ_BIT | VK_ACCESS_2_MEMORY_WRITE_BIT);
    if (!td_vk_submit_once(d, err))
        return false;
    if (is_read)
        copy(d, cuts, n, true);
    return true;
}

bool td_vk_cuts_move(const td_cut *cuts, uint32_t n, bool is_read, td_err *err)
{
    td_vk_device *d = (td_vk_device *)(cuts->kv ? cuts->kv->dev : cuts->state->dev);
    if (!td_vk_check(d, err))
        return false;
    for (uint32_t i = 0, k; i < n; i = k) {
        uint64_t n_bytes = td_cut_bytes(&cuts[i]);
        for (k = i + 1; k < n; k++) {
            uint64_t more = td_cut_bytes(&cuts[k]);
            if (n_bytes + more > STAGING_BYTES)
                break;
            n_bytes += more;
        }
        if (!move_some(d, cuts + i, k - i, n_bytes, is_read, err))
            return false;
    }
    return true;
}
