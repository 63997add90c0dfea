/* Weights: rows repacked by pack.c on their way into device memory. A weight larger than a storage
 * buffer may be is cut by rows into slabs, never inside a row; so is one with more rows than a
 * dispatch has workgroups. Where the host sees the memory rows are packed straight into it, else
 * through a staging buffer of bounded size. */
#include "kernels/vulkan/vk.h"

#include "base/check.h"
#include "base/mem.h"
#include "kernels/vulkan/pack.h"

#include <stdio.h>

static uint64_t slab_limit(const td_vk_device *d)
{
    uint64_t n = d->head.info.max_buffer_bytes;
    return n < TD_VK_BLOCK_BYTES ? n : TD_VK_BLOCK_BYTES;
}

static void cut(const td_vk_device *d, const td_weight_params *p, td_vk_weight *w)
{
    w->row_bytes = td_vk_packed_row_bytes(p->type, p->n_cols);
    uint64_t rows = slab_limit(d) / w->row_bytes;
    uint64_t rows_groups = (uint64_t)d->physical.limits.groups_x * TD_VK_VEC_OUTPUTS;
    rows = rows < rows_groups ? rows : rows_groups;
    w->rows_per_slab = (uint32_t)(rows < p->n_rows ? rows : p->n_rows);
    w->n_slabs = w->rows_per_slab ? td_div_up(p->n_rows, w->rows_per_slab) : 0;
}

static uint32_t slab_rows(const td_vk_weight *w, uint32_t i)
{
    return td_min_u32(w->rows_per_slab, w->head.params.n_rows - i * w->rows_per_slab);
}

bool td_vk_weight_init(td_weight *weight, td_err *err)
{
    td_vk_weight *w = (td_vk_weight *)weight;
    td_vk_device *d = (td_vk_device *)weight->dev;
    cut(d, &weight->params, w);
    if (!w->n_slabs)
        return td_err_set(err, TD_E_NOMEM,
                          "a row of %llu bytes is larger than the device's largest buffer, %llu",
                          (unsigned long long)w->row_bytes, (unsigned long long)slab_limit(d));
    w->slabs = td_alloc(w->n_slabs, sizeof *w->slabs, err);
    if (!w->slabs)
        return false;
    for (uint32_t i = 0; i < w->n_slabs; i++) {
        char name[128];
        snprintf(name, sizeof name, "%.100s rows %u", weight->params.name, i * w->rows_per_slab);
        if (!td_vk_buffer_create(d, slab_rows(w, i) * w->row_bytes, TD_VK_USE_DEVICE, name,
                                 &w->slabs[i], err))
            return false;
    }
    return true;
}

void td_vk_weight_free(td_weight *weight)
{
    td_vk_weight *w = (td_vk_weight *)weight;
    for (uint32_t i = 0; w->slabs && i < w->n_slabs; i++)
        td_vk_buffer_destroy((td_vk_device *)weight->dev, &w->slabs[i]);
    td_free(w->slabs);
}

/* Rows row0.. of one slab. */
static bool write_slab(td_vk_weight *w, td_vk_buffer *slab, uint32_t row0, uint32_t n_rows,
                       const uint8_t *rows, td_err *err)
{
    td_vk_device *d = (td_vk_device *)w->head.dev;
    const td_weight_params *p = &w->head.params;
    if (slab->mapped) {
        td_vk_pack_rows(p->type, rows, n_rows, p->n_cols,
                        (uint8_t *)slab->mapped + row0 * w->row_bytes);
        return true;
    }
    if (!td_vk_staging_reserve(d, w->row_bytes, err))
        return false;
    uint64_t step = d->staging.n_bytes / w->row_bytes;
    for (uint32_t i = 0, n; i < n_rows; i += n) {
        n = step < n_rows - i ? (uint32_t)step : n_rows - i;
        td_vk_pack_rows(p->type, rows, n, p->n_cols, d->staging.mapped);
        if (!td_vk_staging_flush(d, slab, (row0 + i) * w->row_bytes, n * w->row_bytes, err))
            return false;
        rows += n * td_row_bytes(p->type, p->n_cols);
    }
    return true;
}

bool td_vk_weight_write(td_weight *weight, uint32_t row0, uint32_t n_rows, const void *rows,
                        td_err *err)
{
    td_vk_weight *w = (td_vk_weight *)weight;
    const uint8_t *from = rows;
    if (!td_vk_check((td_vk_device *)weight->dev, err))
        return false;
    while (n_rows) {
        uint32_t i = row0 / w->rows_per_slab, first = row0 % w->rows_per_slab;
        uint32_t n = td_min_u32(n_rows, slab_rows(w, i) - first);
        if (!write_slab(w, &w->slabs[i], first, n, from, err))
            return false;
        from += n * td_row_bytes(weight->params.type, weight->params.n_cols);
        row0 += n;
        n_rows -= n;
    }
    return true;
}

uint64_t td_vk_weight_bytes(const td_device *dev, const td_weight_params *params)
{
    (void)dev;
    return params->n_rows * td_vk_packed_row_bytes(params->type, params->n_cols);
}
