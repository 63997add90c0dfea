/* Repacks rows of a file into the layouts of inc/README. A row becomes a sequence of units of 16
 * bytes, one read of a shader's lane: groups of 8 blocks of 32 elements, their scales in front,
 * then what the table of pack_types.c sends behind the row's last group. Unit u of a panel's rows
 * lie side by side, as neighbouring lanes read them.
 *
 * A group is packed for all rows of a panel, then copied out: the destination may be write-combined
 * device memory, written once, front to back. */
#include "kernels/vulkan/pack.h"

#include "base/check.h"
#include "kernels/vulkan/pack_types.h"

#include <string.h>

#define UNIT           TD_VK_UNIT_BYTES
#define PANEL          TD_VK_PANEL_ROWS
#define GROUP_ELEMENTS 256u
#define QUAD_ELEMENTS  128u
#define GROUP_UNITS    17u /* of the largest group, Q8_0's */

/* F32, F16, BF16: a unit is 16 bytes of the file's row. */
static bool is_plain(const td_type_info *type) { return type->block_elements == 1; }

static const td_vk_layout *find_layout(const td_type_info *type)
{
    const td_vk_layout *l = td_vk_layout_find(type->id);
    TD_ASSERT(l && GROUP_ELEMENTS % type->block_elements == 0);
    return l;
}

/* Units of a group of so many elements, its blocks padded to quads of 4. */
static uint32_t group_units(const td_vk_layout *l, uint32_t n_elements)
{
    uint32_t quad_bytes = 4u * (l->low + l->high);
    return (l->head + td_div_up(n_elements, QUAD_ELEMENTS) * quad_bytes) / UNIT;
}

uint32_t td_vk_row_units(const td_type_info *type, uint32_t n_cols)
{
    TD_ASSERT(n_cols % type->block_elements == 0);
    if (is_plain(type)) /* padded to blocks of 32 elements */
        return td_div_up(n_cols, 32) * (32 * type->block_bytes / UNIT);
    const td_vk_layout *l = find_layout(type);
    uint32_t n_groups = n_cols / GROUP_ELEMENTS, rest = n_cols % GROUP_ELEMENTS;
    uint32_t n = n_groups * group_units(l, GROUP_ELEMENTS) + (rest ? group_units(l, rest) : 0);
    return n + td_div_up(n_cols / type->block_elements * l->tail, UNIT);
}

uint32_t td_vk_panel_rows(uint32_t n_rows) { return n_rows == 1 ? 1 : PANEL; }

uint64_t td_vk_packed_bytes(const td_type_info *type, uint32_t n_rows, uint32_t n_cols)
{
    uint64_t rows = n_rows == 1 ? 1 : (n_rows + (uint64_t)PANEL - 1) / PANEL * PANEL;
    return rows * td_vk_row_units(type, n_cols) * UNIT; /* < 2^33 * 2^34 */
}

uint32_t td_vk_codebook(const td_type_info *type, const void **codebook)
{
    const td_vk_layout *l = is_plain(type) ? NULL : find_layout(type);
    *codebook = l ? l->codebook : NULL;
    return l ? l->n_codebook * (uint32_t)sizeof *l->codebook : 0;
}

typedef struct { /* where the rows of a window go */
    uint8_t *dst;
    uint32_t height, lane0, n_rows;
    uint32_t unit; /* next of the rows */
} window;

/* Units of the rows, [row][n_units], to the panel. */
static void put(window *w, const uint8_t *units, uint32_t n_units)
{
    for (uint32_t u = 0; u < n_units; u++, w->unit++) {
        uint8_t *out = w->dst + ((size_t)w->unit * w->height + w->lane0) * UNIT;
        for (uint32_t r = 0; r < w->n_rows; r++)
            memcpy(out + r * UNIT, units + ((size_t)r * n_units + u) * UNIT, UNIT);
    }
}

static void pack_plain(window *w, const uint8_t *src, size_t row_bytes, uint32_t n_units)
{
    uint8_t units[PANEL * UNIT];
    for (size_t at = 0, n; n_units; n_units--, at += UNIT) {
        n = at < row_bytes ? row_bytes - at : 0;
        n = n < UNIT ? n : UNIT;
        memset(units, 0, sizeof units);
        for (uint32_t r = 0; r < w->n_rows && n; r++)
            memcpy(units + r * UNIT, src + r * row_bytes + at, n);
        put(w, units, 1);
    }
}

/* What follows the groups: `tail` bytes of each of the file's blocks. */
static void pack_tails(window *w, const td_type_info *type, const td_vk_layout *l,
                       const uint8_t *src, size_t row_bytes)
{
    const size_t n_blocks = row_bytes / type->block_bytes, n_per_unit = UNIT / l->tail;
    uint8_t units[PANEL * UNIT];
    for (size_t i0 = 0; i0 < n_blocks; i0 += n_per_unit) {
        size_t n = n_blocks - i0 < n_per_unit ? n_blocks - i0 : n_per_unit;
        memset(units, 0, sizeof units);
        for (uint32_t r = 0; r < w->n_rows; r++) {
            const uint8_t *in = src + r * row_bytes + i0 * type->block_bytes + l->tail_at;
            uint8_t *out = units + r * UNIT;
            for (size_t i = 0; i < n; i++, in += type->block_bytes, out += l->tail)
                if (l->tail == 2)
                    memcpy(out, in, 2);
                else if (l->tail == 4)
                    memcpy(out, in, 4);
                else
                    memcpy(out, in, 8);
        }
        put(w, units, 1);
    }
}

/* n elements, a group or less, to its units, which are zeroed first. */
static void pack_group(const td_type_info *type, const td_vk_layout *l, const uint8_t *in,
                       uint32_t n, uint8_t *units)
{
    const td_vk_group group = {l, units, units + l->head};
    memset(units, 0, (size_t)group_units(l, n) * UNIT);
    for (uint32_t i = 0; i < n; i += type->block_elements, in += type->block_bytes)
        l->split(in, i / 32, &group);
}

void td_vk_pack_rows(const td_type_info *type, const void *src, uint32_t n_rows, uint32_t n_cols,
                     uint32_t height, uint32_t lane0, void *dst)
{
    TD_ASSERT(n_rows <= height - lane0 && height <= PANEL);
    const size_t row_bytes = td_row_bytes(type, n_cols);
    window w = {dst, height, lane0, n_rows, 0};
    if (is_plain(type)) {
        pack_plain(&w, src, row_bytes, td_vk_row_units(type, n_cols));
        return;
    }
    const td_vk_layout *l = find_layout(type);
    uint8_t units[PANEL * GROUP_UNITS * UNIT];
    for (uint32_t k = 0; k < n_cols; k += GROUP_ELEMENTS) {
        uint32_t n = td_min_u32(GROUP_ELEMENTS, n_cols - k), n_units = group_units(l, n);
        const uint8_t *in = (const uint8_t *)src + td_row_bytes(type, k);
        for (uint32_t r = 0; r < n_rows; r++)
            pack_group(type, l, in + r * row_bytes, n, units + (size_t)r * n_units * UNIT);
        put(&w, units, n_units);
    }
    if (l->tail)
        pack_tails(&w, type, l, src, row_bytes);
}

uint32_t td_vk_kv_row_words(const td_type_info *type, uint32_t head_dim)
{
    uint32_t n_blocks = td_div_up(head_dim, 32), n_halves = td_div_up(head_dim, 64);
    switch (type->id) {
    case TD_TYPE_F32:
        return td_round_up(head_dim, 4);
    case TD_TYPE_F16:
    case TD_TYPE_BF16:
        return td_round_up(head_dim, 8) / 2;
    case TD_TYPE_Q8_0: /* two blocks share a word of scales */
        return 8 * n_blocks + n_halves;
    case TD_TYPE_Q4_0:
    case TD_TYPE_IQ4_NL:
        return 4 * n_blocks + n_halves;
    case TD_TYPE_Q5_0:
        return 5 * n_blocks + n_halves;
    case TD_TYPE_Q6_0:
        return 6 * n_blocks + n_halves;
    case TD_TYPE_Q4_1:
        return 5 * n_blocks;
    case TD_TYPE_Q5_1:
        return 6 * n_blocks;
    default:
        TD_ASSERT(!"not a cache type");
        return 0;
    }
}
