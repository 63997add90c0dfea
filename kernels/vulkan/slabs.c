/* Weights: rows repacked by pack.c on their way into device memory. A weight larger than a storage
 * buffer may be is cut by rows into slabs, never inside a row; so is one with more rows than a
 * dispatch has workgroups. Groups (experts, heads) begin at panels of their own, and a slab holds
 * whole ones. Where the host sees the memory rows are packed straight into it, else
 * into the staging ring (upload.c). */
#include "kernels/vulkan/vk.h"

#include "base/check.h"
#include "base/mem.h"
#include "kernels/vulkan/pack.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define PACKERS_MAX   16u
#define PACKERS_BYTES (256u << 10)
#define GROUPS_MAX    65535u /* of a slab: what any dispatch may have along z */

static uint64_t slab_limit(const td_vk_device *d)
{
    uint64_t n = d->head.info.max_buffer_bytes;
    return n < TD_VK_BLOCK_BYTES ? n : TD_VK_BLOCK_BYTES;
}

/* What stands in front of a slab's rows, with some types. */
static uint32_t codebook_bytes(const td_type_info *type)
{
    const void *codebook;
    return td_vk_codebook(type, &codebook);
}

static bool has_groups(const td_weight_params *p) { return p->n_groups > 1; }

/* Whole panels, as many as a buffer and a dispatch (one workgroup a panel and pass, at most) can
 * have; of groups, whole ones. */
static void cut(const td_vk_device *d, const td_weight_params *p, td_vk_weight *w)
{
    w->n_units = td_vk_row_units(p->type, p->n_cols);
    w->panel_rows = td_vk_panel_rows(p->n_rows);
    w->panel_bytes = (uint64_t)w->n_units * TD_VK_UNIT_BYTES * w->panel_rows;
    w->group_panels = td_div_up(td_group_rows(p), w->panel_rows);
    uint64_t limit = slab_limit(d), n_codebook = codebook_bytes(p->type);
    uint64_t n_panels = limit < n_codebook ? 0 : (limit - n_codebook) / w->panel_bytes;
    uint64_t panels_max = d->physical.limits.groups_x / TD_VK_PASSES_MAX;
    uint64_t rows;
    if (has_groups(p)) {
        uint64_t n_groups = w->group_panels <= panels_max ? n_panels / w->group_panels : 0;
        n_groups = n_groups < GROUPS_MAX ? n_groups : GROUPS_MAX;
        rows = n_groups * td_group_rows(p);
    } else {
        n_panels = n_panels < panels_max ? n_panels : panels_max;
        rows = n_panels * w->panel_rows;
    }
    w->rows_per_slab = (uint32_t)(rows < p->n_rows ? rows : p->n_rows);
    w->n_slabs = w->rows_per_slab ? td_div_up(p->n_rows, w->rows_per_slab) : 0;
}

uint32_t td_vk_slab_rows(const td_vk_weight *w, uint32_t i_slab)
{
    return td_min_u32(w->rows_per_slab, w->head.params.n_rows - i_slab * w->rows_per_slab);
}

static uint64_t slab_bytes(const td_vk_weight *w, uint32_t i)
{
    uint32_t n_rows = td_vk_slab_rows(w, i), n_codebook = codebook_bytes(w->head.params.type);
    if (has_groups(&w->head.params))
        return n_codebook + (uint64_t)(n_rows / td_group_rows(&w->head.params)) * w->group_panels *
                                w->panel_bytes;
    return n_codebook + td_div_up(n_rows, w->panel_rows) * w->panel_bytes;
}

static bool write_codebook(td_vk_weight *w, td_vk_buffer *slab, td_err *err)
{
    const void *codebook;
    uint64_t n_room, n = td_vk_codebook(w->head.params.type, &codebook);
    td_vk_device *d = (td_vk_device *)w->head.dev;
    void *to = slab->mapped;
    if (!n)
        return true;
    if (!to && !(to = td_vk_upload_begin(d, n, &n_room, err)))
        return false;
    memcpy(to, codebook, n);
    return slab->mapped || td_vk_upload_end(d, slab, 0, &(td_vk_pieces){0, n, 0, 1}, err);
}

bool td_vk_weight_init(td_weight *weight, td_err *err)
{
    td_vk_weight *w = (td_vk_weight *)weight;
    td_vk_device *d = (td_vk_device *)weight->dev;
    cut(d, &weight->params, w);
    if (!w->n_slabs)
        return td_err_set(
            err, TD_E_NOMEM, "%llu bytes of %s are more than the device's largest buffer, %llu",
            (unsigned long long)(has_groups(&weight->params) ? w->group_panels * w->panel_bytes
                                                             : w->panel_bytes),
            has_groups(&weight->params) ? "an expert or head" : "64 rows",
            (unsigned long long)slab_limit(d));
    w->slabs = td_alloc(w->n_slabs, sizeof *w->slabs, err);
    if (!w->slabs)
        return false;
    for (uint32_t i = 0; i < w->n_slabs; i++) {
        char name[128];
        snprintf(name, sizeof name, "%.100s rows %u", weight->params.name, i * w->rows_per_slab);
        if (!td_vk_buffer_create(d, slab_bytes(w, i), TD_VK_USE_DEVICE, name, &w->slabs[i], err) ||
            !write_codebook(w, &w->slabs[i], err))
            return false;
    }
    return true;
}

void td_vk_weight_free(td_weight *weight)
{
    td_vk_weight *w = (td_vk_weight *)weight;
    td_vk_upload_drain((td_vk_device *)weight->dev, NULL); /* a load that failed halfway */
    for (uint32_t i = 0; w->slabs && i < w->n_slabs; i++)
        td_vk_buffer_destroy((td_vk_device *)weight->dev, &w->slabs[i]);
    td_free(w->slabs);
}

typedef struct { /* a call of pack */
    const td_vk_weight *w;
    const uint8_t *rows;
    uint32_t lane0, n_rows, n_parts;
    uint8_t *to;
} packing;

/* A part's share: whole panels. */
static void pack_part(void *arg, uint32_t phase, uint32_t i)
{
    (void)phase;
    const packing *p = arg;
    const td_weight_params *params = &p->w->head.params;
    uint32_t height = p->w->panel_rows, n_panels = td_div_up(p->lane0 + p->n_rows, height);
    uint32_t panel = (uint32_t)((uint64_t)n_panels * i / p->n_parts);
    uint32_t last = (uint32_t)((uint64_t)n_panels * (i + 1) / p->n_parts);
    for (; panel < last; panel++) {
        uint32_t row = panel ? panel * height - p->lane0 : 0; /* among the rows of this call */
        uint32_t lane0 = panel ? 0 : p->lane0;
        uint32_t n = td_min_u32(p->n_rows - row, height - lane0);
        td_vk_pack_rows(params->type, p->rows + row * td_row_bytes(params->type, params->n_cols), n,
                        params->n_cols, height, lane0, p->to + panel * p->w->panel_bytes);
    }
}

/* By the device's packers, made when there is something worth their waking: repacking is slower
 * than disks. */
static void pack(const td_vk_weight *w, const uint8_t *rows, uint32_t lane0, uint32_t n_rows,
                 uint8_t *to)
{
    td_vk_device *d = (td_vk_device *)w->head.dev;
    packing p = {w, rows, lane0, n_rows, 1, to};
    bool is_large = td_div_up(lane0 + n_rows, w->panel_rows) * w->panel_bytes >= PACKERS_BYTES;
    if (is_large && !d->packers) {
        long n_cpus = sysconf(_SC_NPROCESSORS_ONLN);
        d->packers =
            td_pool_create(n_cpus < 1 ? 1 : td_min_u32((uint32_t)n_cpus, PACKERS_MAX), NULL);
    }
    if (!is_large || !d->packers) {
        pack_part(&p, 0, 0);
        return;
    }
    p.n_parts = td_pool_count(d->packers);
    td_pool_run(d->packers, 1, pack_part, &p);
}

/* Rows row0.. of a slab the host cannot see, as many as a staging slot takes; their number, 0 with
 * err set. Part of a panel is a piece of every unit. */
static uint32_t stage(td_vk_weight *w, td_vk_buffer *slab, uint32_t row0, uint32_t n_rows,
                      const uint8_t *rows, td_err *err)
{
    uint32_t lane0 = row0 % w->panel_rows, n = td_min_u32(n_rows, w->panel_rows - lane0);
    td_vk_pieces pieces = {lane0 * TD_VK_UNIT_BYTES, n * TD_VK_UNIT_BYTES,
                           w->panel_rows * TD_VK_UNIT_BYTES, w->n_units};
    uint64_t n_room;
    uint8_t *staging =
        td_vk_upload_begin((td_vk_device *)w->head.dev, w->panel_bytes, &n_room, err);
    if (!staging)
        return 0;
    if (n == w->panel_rows) {
        uint64_t n_panels = td_min_u32(n_rows / n, (uint32_t)(n_room / w->panel_bytes));
        pieces = (td_vk_pieces){0, n_panels * w->panel_bytes, 0, 1};
        n *= (uint32_t)n_panels;
    }
    pack(w, rows, lane0, n, staging);
    uint64_t offset = codebook_bytes(w->head.params.type) + row0 / w->panel_rows * w->panel_bytes;
    return td_vk_upload_end((td_vk_device *)w->head.dev, slab, offset, &pieces, err) ? n : 0;
}

/* Rows row0.. of one slab. */
static bool write_slab(td_vk_weight *w, td_vk_buffer *slab, uint32_t row0, uint32_t n_rows,
                       const uint8_t *rows, td_err *err)
{
    const td_weight_params *p = &w->head.params;
    if (slab->mapped) {
        pack(w, rows, row0 % w->panel_rows, n_rows,
             (uint8_t *)slab->mapped + codebook_bytes(p->type) +
                 row0 / w->panel_rows * w->panel_bytes);
        return true;
    }
    for (uint32_t n; n_rows; row0 += n, n_rows -= n) {
        n = stage(w, slab, row0, n_rows, rows, err);
        if (!n)
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
        uint32_t n = td_min_u32(n_rows, td_vk_slab_rows(w, i) - first), packed = first;
        uint32_t m = td_group_rows(&weight->params);
        /* no further than to the padding behind the group */
        if (has_groups(&weight->params) && m % w->panel_rows) {
            packed = first / m * w->group_panels * w->panel_rows + first % m;
            n = td_min_u32(n, m - first % m);
        }
        if (!write_slab(w, &w->slabs[i], packed, n, from, err))
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
    uint64_t n_codebook = codebook_bytes(params->type);
    if (!has_groups(params))
        return n_codebook + td_vk_packed_bytes(params->type, params->n_rows, params->n_cols);
    uint64_t n_panels =
        (uint64_t)params->n_groups * td_div_up(td_group_rows(params), TD_VK_PANEL_ROWS);
    return n_codebook + n_panels * TD_VK_PANEL_ROWS *
                            td_vk_row_units(params->type, params->n_cols) * TD_VK_UNIT_BYTES;
}

/* A slab has a panel at least, of groups a whole one. */
uint64_t td_vk_weight_piece_bytes(const td_weight_params *p)
{
    uint64_t panel = (uint64_t)td_vk_row_units(p->type, p->n_cols) * TD_VK_UNIT_BYTES *
                     td_vk_panel_rows(p->n_rows);
    uint64_t n = has_groups(p) ? td_div_up(td_group_rows(p), td_vk_panel_rows(p->n_rows)) : 1;
    return codebook_bytes(p->type) + n * panel;
}
