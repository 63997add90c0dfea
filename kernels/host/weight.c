/* Weights of the host device: the file's blocks taken apart into panels (host.h) as rows arrive,
 * and put together again where a single row is wanted (embeddings). pack and unpack are exact
 * inverses block by block, so a row read back decodes to the very same floats. */
#include "kernels/host/host.h"

#include "base/check.h"
#include "base/mem.h"

#define Q4_K_SCALES 320u /* bytes per super-block of a panel: d, d_min, 8 scales, 8 minima */
#define Q6_K_SCALES 288u /* d, 16 scales */
#define BLOCK_BYTES_MAX 256u

typedef struct { /* where a row lies in its panel */
    uint8_t *quants, *scales; /* of the panel */
    uint32_t lane;
} place;

static void panel_sizes(const td_weight_params *p, size_t *scales_offset, size_t *n_bytes)
{
    size_t n = p->n_cols, quants = 0, scales = 0;
    switch (p->type->id) {
    case TD_TYPE_F32: quants = n * 64; break;
    case TD_TYPE_F16: quants = n * 32; break;
    case TD_TYPE_Q8_0: quants = n * 16, scales = n / 32 * 32; break;
    case TD_TYPE_Q4_0: quants = n * 8, scales = n / 32 * 32; break;
    case TD_TYPE_Q4_K: quants = n * 8, scales = n / 256 * Q4_K_SCALES; break;
    case TD_TYPE_Q6_K: quants = n * 12, scales = n / 256 * Q6_K_SCALES; break;
    default: TD_ASSERT(!"a type without a host layout");
    }
    *scales_offset = quants;
    *n_bytes = (quants + scales + 63) / 64 * 64;
}

static bool is_vector(const td_weight_params *p)
{
    return p->type->id == TD_TYPE_F32 && p->n_rows == 1;
}

uint64_t td_host_weight_bytes(const td_device *dev, const td_weight_params *params)
{
    (void)dev;
    if (is_vector(params))
        return (uint64_t)params->n_cols * sizeof(float);
    size_t scales_offset, n_bytes;
    panel_sizes(params, &scales_offset, &n_bytes);
    return (uint64_t)td_div_up(params->n_rows, TD_PANEL_ROWS) * n_bytes;
}

bool td_host_weight_init(td_weight *base, td_err *err)
{
    td_host_weight *w = (td_host_weight *)base;
    uint64_t n_bytes = td_host_weight_bytes(base->dev, &base->params);
    w->is_vector = is_vector(&base->params);
    panel_sizes(&base->params, &w->scales_offset, &w->panel_bytes);
    if (!td_host_reserve(base->dev, n_bytes, err))
        return false;
    w->n_bytes = n_bytes;
    w->data = td_alloc(n_bytes, 1, err);
    return w->data != NULL;
}

void td_host_weight_free(td_weight *base)
{
    td_host_weight *w = (td_host_weight *)base;
    td_host_release(base->dev, w->n_bytes);
    td_free(w->data);
}

static place find_place(const td_host_weight *w, uint32_t row)
{
    uint8_t *panel = w->data + row / TD_PANEL_ROWS * w->panel_bytes;
    return (place){panel, panel + w->scales_offset, row % TD_PANEL_ROWS};
}

/* The row's half in the 16 at `offset` of the scales. */
static uint8_t *half_at(place p, size_t offset) { return p.scales + offset + 2 * p.lane; }

/* Four elements at a time: a row's share of a 64-byte vector. */
static uint32_t load4(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static void store4(uint8_t *p, uint32_t v) { memcpy(p, &v, sizeof v); }

#define BYTES4(b) ((b) * 0x01010101u) /* the byte b four times */

/* The row's four bytes of vector i, at `offset` of the panel. */
static uint8_t *four_at(place p, size_t offset, uint32_t i)
{
    return p.quants + offset + i * 64u + p.lane * 4;
}

static void pack_q8_0(place p, uint32_t b, const uint8_t *block)
{
    memcpy(half_at(p, b * (size_t)32), block, 2);
    for (uint32_t i = 0; i < 8; i++)
        store4(four_at(p, b * (size_t)512, i), load4(block + 2 + 4 * i) ^ BYTES4(0x80u));
}

static void unpack_q8_0(place p, uint32_t b, uint8_t *block)
{
    memcpy(block, half_at(p, b * (size_t)32), 2);
    for (uint32_t i = 0; i < 8; i++)
        store4(block + 2 + 4 * i, load4(four_at(p, b * (size_t)512, i)) ^ BYTES4(0x80u));
}

/* The format pairs elements e and e + 16 as we do. */
static void pack_q4_0(place p, uint32_t b, const uint8_t *block)
{
    memcpy(half_at(p, b * (size_t)32), block, 2);
    for (uint32_t i = 0; i < 4; i++)
        store4(four_at(p, b * (size_t)256, i), load4(block + 2 + 4 * i));
}

static void unpack_q4_0(place p, uint32_t b, uint8_t *block)
{
    memcpy(block, half_at(p, b * (size_t)32), 2);
    for (uint32_t i = 0; i < 4; i++)
        store4(block + 2 + 4 * i, load4(four_at(p, b * (size_t)256, i)));
}

/* Scales and minima of 6 bits: types.c has the layout. */
static void pack_q4_k_scales(place p, size_t at, const uint8_t *packed)
{
    for (uint32_t s = 0; s < 8; s++) {
        uint32_t scale, minimum;
        if (s < 4) {
            scale = packed[s] & 63u;
            minimum = packed[s + 4] & 63u;
        } else {
            scale = (packed[s + 4] & 15u) | (uint32_t)(packed[s - 4] >> 6) << 4;
            minimum = (uint32_t)(packed[s + 4] >> 4) | (uint32_t)(packed[s] >> 6) << 4;
        }
        p.scales[at + 64 + s * 16 + p.lane] = (uint8_t)scale;
        p.scales[at + 192 + s * 16 + p.lane] = (uint8_t)minimum;
    }
}

static void unpack_q4_k_scales(place p, size_t at, uint8_t *packed)
{
    memset(packed, 0, 12);
    for (uint32_t s = 0; s < 8; s++) {
        uint32_t scale = p.scales[at + 64 + s * 16 + p.lane];
        uint32_t minimum = p.scales[at + 192 + s * 16 + p.lane];
        if (s < 4) {
            packed[s] = (uint8_t)scale;
            packed[s + 4] = (uint8_t)minimum;
        } else {
            packed[s + 4] = (uint8_t)((scale & 15u) | (minimum & 15u) << 4);
            packed[s - 4] = (uint8_t)(packed[s - 4] | scale >> 4 << 6);
            packed[s] = (uint8_t)(packed[s] | minimum >> 4 << 6);
        }
    }
}

/* Sub-block s has its nibbles in run s / 2 of 32 bytes, low nibbles for even s. */
static void pack_q4_k(place p, uint32_t b, const uint8_t *block)
{
    size_t at = b * (size_t)Q4_K_SCALES;
    memcpy(half_at(p, at), block, 2);
    memcpy(half_at(p, at + 32), block + 2, 2);
    pack_q4_k_scales(p, at, block + 4);
    for (uint32_t s = 0; s < 8; s++) {
        const uint8_t *run = block + 16 + s / 2 * 32;
        uint32_t shift = s % 2 * 4;
        for (uint32_t i = 0; i < 4; i++) {
            uint32_t low = (load4(run + 4 * i) >> shift) & BYTES4(15u);
            uint32_t high = (load4(run + 16 + 4 * i) >> shift) & BYTES4(15u);
            store4(four_at(p, b * (size_t)2048 + s * 256, i), low | high << 4);
        }
    }
}

static void unpack_q4_k(place p, uint32_t b, uint8_t *block)
{
    size_t at = b * (size_t)Q4_K_SCALES;
    memset(block, 0, 144);
    memcpy(block, half_at(p, at), 2);
    memcpy(block + 2, half_at(p, at + 32), 2);
    unpack_q4_k_scales(p, at, block + 4);
    for (uint32_t s = 0; s < 8; s++) {
        uint8_t *run = block + 16 + s / 2 * 32;
        uint32_t shift = s % 2 * 4;
        for (uint32_t i = 0; i < 4; i++) {
            uint32_t pair = load4(four_at(p, b * (size_t)2048 + s * 256, i));
            uint8_t *low = run + 4 * i, *high = run + 16 + 4 * i;
            store4(low, load4(low) | (pair & BYTES4(15u)) << shift);
            store4(high, load4(high) | ((pair >> 4) & BYTES4(15u)) << shift);
        }
    }
}

/* In each half of 128 elements, group g of 32 has its low bits in low[32 (g % 2) + j], nibble
 * g / 2, and its high bits in high[j], bits 2g. Our block s of 32 is group s % 4 of half s / 4. */
static void pack_q6_k(place p, uint32_t b, const uint8_t *block)
{
    size_t at = b * (size_t)Q6_K_SCALES;
    memcpy(half_at(p, at), block + 208, 2);
    for (uint32_t i = 0; i < 16; i++)
        p.scales[at + 32 + i * 16 + p.lane] = block[192 + i];
    for (uint32_t s = 0; s < 8; s++) {
        uint32_t g = s % 4, shift = g / 2 * 4;
        const uint8_t *low = block + s / 4 * 64 + g % 2 * 32, *high = block + 128 + s / 4 * 32;
        size_t quants = b * (size_t)3072 + s * 384;
        uint32_t tops[2] = {0, 0};
        for (uint32_t i = 0; i < 4; i++) {
            uint32_t first = (load4(low + 4 * i) >> shift) & BYTES4(15u);
            uint32_t second = (load4(low + 16 + 4 * i) >> shift) & BYTES4(15u);
            store4(four_at(p, quants, i), first | second << 4);
            for (uint32_t h = 0; h < 2; h++)
                tops[h] |= ((load4(high + 16 * h + 4 * i) >> 2 * g) & BYTES4(3u)) << 2 * i;
        }
        store4(four_at(p, quants, 4), tops[0]);
        store4(four_at(p, quants, 5), tops[1]);
    }
}

static void unpack_q6_k(place p, uint32_t b, uint8_t *block)
{
    size_t at = b * (size_t)Q6_K_SCALES;
    memset(block, 0, 210);
    memcpy(block + 208, half_at(p, at), 2);
    for (uint32_t i = 0; i < 16; i++)
        block[192 + i] = p.scales[at + 32 + i * 16 + p.lane];
    for (uint32_t s = 0; s < 8; s++) {
        uint32_t g = s % 4, shift = g / 2 * 4;
        uint8_t *low = block + s / 4 * 64 + g % 2 * 32, *high = block + 128 + s / 4 * 32;
        size_t quants = b * (size_t)3072 + s * 384;
        for (uint32_t i = 0; i < 8; i++) { /* groups of four elements */
            uint32_t pair = load4(four_at(p, quants, i % 4)) >> i / 4 * 4;
            uint32_t top = load4(four_at(p, quants, 4 + i / 4)) >> i % 4 * 2;
            store4(low + 4 * i, load4(low + 4 * i) | (pair & BYTES4(15u)) << shift);
            store4(high + 4 * i, load4(high + 4 * i) | (top & BYTES4(3u)) << 2 * g);
        }
    }
}

static void pack_row(const td_host_weight *w, uint32_t row, const uint8_t *src)
{
    const td_type_info *type = w->base.params.type;
    place p = find_place(w, row);
    uint32_t n_blocks = w->base.params.n_cols / type->block_elements;
    for (uint32_t b = 0; b < n_blocks; b++, src += type->block_bytes) {
        switch (type->id) {
        case TD_TYPE_F32: memcpy(p.quants + b * (size_t)64 + p.lane * 4, src, 4); break;
        case TD_TYPE_F16: memcpy(p.quants + b * (size_t)32 + p.lane * 2, src, 2); break;
        case TD_TYPE_Q8_0: pack_q8_0(p, b, src); break;
        case TD_TYPE_Q4_0: pack_q4_0(p, b, src); break;
        case TD_TYPE_Q4_K: pack_q4_k(p, b, src); break;
        default: pack_q6_k(p, b, src);
        }
    }
}

static void unpack_block(const td_host_weight *w, place p, uint32_t b, uint8_t *block)
{
    switch (w->base.params.type->id) {
    case TD_TYPE_F32: memcpy(block, p.quants + b * (size_t)64 + p.lane * 4, 4); break;
    case TD_TYPE_F16: memcpy(block, p.quants + b * (size_t)32 + p.lane * 2, 2); break;
    case TD_TYPE_Q8_0: unpack_q8_0(p, b, block); break;
    case TD_TYPE_Q4_0: unpack_q4_0(p, b, block); break;
    case TD_TYPE_Q4_K: unpack_q4_k(p, b, block); break;
    default: unpack_q6_k(p, b, block);
    }
}

bool td_host_weight_write(td_weight *base, uint32_t row0, uint32_t n_rows, const void *rows,
                          td_err *err)
{
    (void)err;
    td_host_weight *w = (td_host_weight *)base;
    size_t row_bytes = td_row_bytes(base->params.type, base->params.n_cols);
    if (w->is_vector) {
        memcpy(w->data, rows, n_rows * row_bytes);
        return true;
    }
    const uint8_t *src = rows;
    for (uint32_t r = 0; r < n_rows; r++, src += row_bytes)
        pack_row(w, row0 + r, src);
    return true;
}

void td_host_weight_read(const td_host_weight *w, uint32_t row, float *out)
{
    const td_type_info *type = w->base.params.type;
    if (w->is_vector) {
        memcpy(out, w->data, w->base.params.n_cols * sizeof *out);
        return;
    }
    place p = find_place(w, row);
    uint32_t n_blocks = w->base.params.n_cols / type->block_elements;
    uint8_t block[BLOCK_BYTES_MAX];
    for (uint32_t b = 0; b < n_blocks; b++, out += type->block_elements) {
        unpack_block(w, p, b, block);
        type->dequantize(block, out, type->block_elements);
    }
}
