/* Repacks rows of a file into the layouts of inc/quant_*.glsl. A row becomes a sequence of units of
 * 16 bytes, one read of a shader's lane: the blocks of 32 elements in order, and the scales of 8
 * blocks together in units of their own. Unit u of a panel's rows lie side by side, as neighbouring
 * lanes read them. Quants are permuted so that four neighbours come out of a word with one shift
 * and one mask:
 *
 *     nibbles: a run of 32 elements is 4 words; byte b of word u holds element 8 u + b in its low
 *              nibble and element 8 u + 4 + b in its high one
 *     2 bits:  a run of 32 elements is 2 words; byte b of word h holds element 16 h + 4 i + b in
 *              its bits 2 i, 2 i + 1
 *
 * A group of 8 blocks is packed for all rows of a panel, then copied out: the destination may be
 * write-combined device memory, written once, front to back. */
#include "kernels/vulkan/pack.h"

#include "base/check.h"

#include <string.h>

#define UNIT        TD_VK_UNIT_BYTES
#define PANEL       TD_VK_PANEL_ROWS
#define GROUP_UNITS 17u /* of the largest group, Q8_0's */

typedef struct {
    uint32_t elements;    /* of a group */
    uint32_t file_blocks; /* of a group */
    uint32_t scale_units; /* units of scales that lead a group */
    uint32_t block_units; /* units of a block of 32, in halves: Q6_K has 3 */
} layout;

static layout describe(const td_type_info *type)
{
    switch (type->id) {
    case TD_TYPE_Q4_0:
        return (layout){256, 8, 1, 2};
    case TD_TYPE_Q8_0:
        return (layout){256, 8, 1, 4};
    case TD_TYPE_Q4_K:
        return (layout){256, 1, 1, 2};
    case TD_TYPE_Q6_K:
        return (layout){256, 1, 1, 3};
    default:
        TD_ASSERT(!"a weight type without groups");
        return (layout){0};
    }
}

/* F32, F16, BF16: a unit is 16 bytes of the file's row. */
static bool is_plain(const td_type_info *type) { return type->block_elements == 1; }

/* Units of the blocks of a row's last group, padded to quads of 4 blocks. */
static uint32_t group_units(const layout *l, uint32_t n_elements)
{
    return l->scale_units + td_div_up(n_elements, 128) * 2 * l->block_units;
}

uint32_t td_vk_row_units(const td_type_info *type, uint32_t n_cols)
{
    TD_ASSERT(n_cols % type->block_elements == 0);
    if (is_plain(type)) /* padded to blocks of 32 elements */
        return td_div_up(n_cols, 32) * (32 * type->block_bytes / UNIT);
    layout l = describe(type);
    uint32_t n_groups = n_cols / l.elements, rest = n_cols % l.elements;
    uint32_t n = n_groups * group_units(&l, l.elements) + (rest ? group_units(&l, rest) : 0);
    return n + (type->id == TD_TYPE_Q6_K ? td_div_up(n_groups, 8) : 0);
}

uint32_t td_vk_panel_rows(uint32_t n_rows) { return n_rows == 1 ? 1 : PANEL; }

uint64_t td_vk_packed_bytes(const td_type_info *type, uint32_t n_rows, uint32_t n_cols)
{
    uint64_t rows = n_rows == 1 ? 1 : (n_rows + (uint64_t)PANEL - 1) / PANEL * PANEL;
    return rows * td_vk_row_units(type, n_cols) * UNIT; /* < 2^33 * 2^34 */
}

/* 32 quants of 4 bits, one a byte, to 16 bytes. */
static void pack_nibbles(const uint8_t q[32], uint8_t *out)
{
    for (int u = 0; u < 4; u++)
        for (int b = 0; b < 4; b++)
            out[4 * u + b] = (uint8_t)(q[8 * u + b] | q[8 * u + 4 + b] << 4);
}

/* 32 quants of 2 bits, one a byte, to 8 bytes. */
static void pack_pairs(const uint8_t q[32], uint8_t *out)
{
    for (int h = 0; h < 2; h++)
        for (int b = 0; b < 4; b++) {
            const uint8_t *p = q + 16 * h + b;
            out[4 * h + b] = (uint8_t)(p[0] | p[4] << 2 | p[8] << 4 | p[12] << 6);
        }
}

/* Group packers: `n` file blocks (of a group, the rest being zeros) to the group's units. `units`
 * is zeroed. */
static void pack_q4_0(const uint8_t *in, uint32_t n, uint8_t *units)
{
    for (uint32_t i = 0; i < n; i++, in += 18) {
        uint8_t q[32];
        for (int j = 0; j < 16; j++) {
            q[j] = in[2 + j] & 0xf;
            q[j + 16] = in[2 + j] >> 4;
        }
        memcpy(units + 2 * i, in, 2);
        pack_nibbles(q, units + UNIT * (1 + i));
    }
}

static void pack_q8_0(const uint8_t *in, uint32_t n, uint8_t *units)
{
    for (uint32_t i = 0; i < n; i++, in += 34) {
        memcpy(units + 2 * i, in, 2);
        memcpy(units + UNIT * (1 + 2 * i), in + 2, 32);
    }
}

/* {d, d_min} stays; the 6-bit scales and minima become three words: low nibbles of the 8 scales,
 * low nibbles of the 8 minima, and a nibble for each sub-block with the two high bits of its scale
 * (below) and of its minimum (above). */
static void pack_q4_k(const uint8_t *in, uint32_t n, uint8_t *units)
{
    (void)n;
    const uint8_t *scales = in + 4, *quants = in + 16;
    uint8_t meta[12] = {0};
    for (uint32_t s = 0; s < 8; s++) {
        uint32_t scale, minimum;
        if (s < 4) {
            scale = scales[s] & 63u;
            minimum = scales[s + 4] & 63u;
        } else {
            scale = (scales[s + 4] & 0xfu) | (scales[s - 4] >> 6 & 3u) << 4;
            minimum = (scales[s + 4] >> 4 & 15u) | (scales[s] >> 6 & 3u) << 4;
        }
        uint32_t shift = 4 * (s % 2);
        meta[s / 2] |= (uint8_t)((scale & 15) << shift);
        meta[4 + s / 2] |= (uint8_t)((minimum & 15) << shift);
        meta[8 + s / 2] |= (uint8_t)((scale >> 4 | minimum >> 4 << 2) << shift);
    }
    for (uint32_t s = 0; s < 8; s++) {
        uint8_t q[32];
        for (uint32_t j = 0; j < 32; j++)
            q[j] = s & 1 ? quants[32 * (s / 2) + j] >> 4 : quants[32 * (s / 2) + j] & 0xf;
        pack_nibbles(q, units + UNIT * (1 + s));
    }
    memcpy(units, in, 4);
    memcpy(units + 4, meta, 12);
}

/* Its d follows the row's last group. */
static void pack_q6_k(const uint8_t *in, uint32_t n, uint8_t *units)
{
    (void)n;
    memcpy(units, in + 192, 16);
    for (uint32_t run = 0; run < 8; run++) {
        uint32_t half = run / 4, g = run % 4; /* as dequantize_q6_k in kernels/types.c */
        const uint8_t *low = in + 64 * half + 32 * (g & 1), *high = in + 128 + 32 * half;
        uint8_t q_low[32], q_high[32];
        for (int j = 0; j < 32; j++) {
            q_low[j] = low[j] >> 4 * (g / 2) & 0xf;
            q_high[j] = high[j] >> 2 * g & 3;
        }
        uint8_t *quad = units + UNIT * (1 + 6 * half);
        pack_nibbles(q_low, quad + UNIT * g);
        pack_pairs(q_high, quad + UNIT * 4 + 8 * g);
    }
}

typedef void pack_fn(const uint8_t *in, uint32_t n, uint8_t *units);

static pack_fn *find_packer(const td_type_info *type)
{
    switch (type->id) {
    case TD_TYPE_Q4_0:
        return pack_q4_0;
    case TD_TYPE_Q8_0:
        return pack_q8_0;
    case TD_TYPE_Q4_K:
        return pack_q4_k;
    default:
        return pack_q6_k;
    }
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

/* The d of Q6_K's superblocks, 8 a unit. */
static void pack_q6_k_scales(window *w, const uint8_t *src, size_t row_bytes)
{
    uint8_t units[PANEL * UNIT];
    for (size_t at = 0; at < row_bytes; at += 8 * 210) {
        memset(units, 0, sizeof units);
        for (uint32_t r = 0; r < w->n_rows; r++)
            for (size_t i = 0; i < 8 && at + i * 210 < row_bytes; i++)
                memcpy(units + r * UNIT + 2 * i, src + r * row_bytes + at + i * 210 + 208, 2);
        put(w, units, 1);
    }
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
    const layout l = describe(type);
    const size_t group_bytes = (size_t)l.file_blocks * type->block_bytes;
    pack_fn *pack = find_packer(type);
    uint8_t units[PANEL * GROUP_UNITS * UNIT];
    for (uint32_t k = 0; k < n_cols; k += l.elements) {
        uint32_t n = td_min_u32(l.elements, n_cols - k), n_units = group_units(&l, n);
        const uint8_t *in = (const uint8_t *)src + k / l.elements * group_bytes;
        memset(units, 0, (size_t)n_rows * n_units * UNIT);
        for (uint32_t r = 0; r < n_rows; r++)
            pack(in + r * row_bytes, n / type->block_elements, units + (size_t)r * n_units * UNIT);
        put(&w, units, n_units);
    }
    if (type->id == TD_TYPE_Q6_K)
        pack_q6_k_scales(&w, src, row_bytes);
}

uint32_t td_vk_kv_row_words(const td_type_info *type, uint32_t head_dim)
{
    switch (type->id) {
    case TD_TYPE_F32:
        return td_round_up(head_dim, 4);
    case TD_TYPE_F16:
        return td_round_up(head_dim, 8) / 2;
    case TD_TYPE_Q8_0: /* two blocks share a word of scales */
        return td_div_up(head_dim, 32) * 8 + td_div_up(head_dim, 64);
    case TD_TYPE_Q4_0:
        return td_div_up(head_dim, 32) * 4 + td_div_up(head_dim, 64);
    default:
        TD_ASSERT(!"not a cache type");
        return 0;
    }
}
