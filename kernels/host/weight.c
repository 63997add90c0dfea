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

/* Copies a half between a block and place i of an array of 16 per entry. */
static uint8_t *half_at(place p, size_t offset) { return p.scales + offset + 2 * p.lane; }

/* Byte of k group g (of 4), element i, in a run of 64-byte vectors. */
static uint8_t *byte_at(place p, uint8_t *vectors, uint32_t e)
{
    return vectors + e / 4 * 64 + p.lane * 4 + e % 4;
}

static void pack_q8_0(place p, uint32_t b, const uint8_t *block)
{
    memcpy(half_at(p, b * 32u), block, 2);
    for (uint32_t e = 0; e < 32; e++)
        *byte_at(p, p.quants + b * (size_t)512, e) = block[2 + e] ^ 0x80;
}

static void unpack_q8_0(place p, uint32_t b, uint8_t *block)
{
    memcpy(block, half_at(p, b * 32u), 2);
    for (uint32_t e = 0; e < 32; e++)
        block[2 + e] = *byte_at(p, p.quants + b * (size_t)512, e) ^ 0x80;
}

static void pack_q4_0(place p, uint32_t b, const uint8_t *block)
{
    memcpy(half_at(p, b * 32u), block, 2);
    for (uint32_t e = 0; e < 16; e++)
        *byte_at(p, p.quants + b * (size_t)256, e) = block[2 + e];
}

static void unpack_q4_0(place p, uint32_t b, uint8_t *block)
{
    memcpy(block, half_at(p, b * 32u), 2);
    for (uint32_t e = 0; e < 16; e++)
        block[2 + e] = *byte_at(p, p.quants + b * (size_t)256, e);
}

/* Q4_K: sub-block s has its nibbles in run s / 2 of 32 bytes, low nibbles for even s. */
static void pack_q4_k(place p, uint32_t b, const uint8_t *block)
{
    const uint8_t *packed = block + 4, *q = block + 16;
    size_t at = b * (size_t)Q4_K_SCALES;
    memcpy(half_at(p, at), block, 2);
    memcpy(half_at(p, at + 32), block + 2, 2);
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
        uint8_t *vectors = p.quants + b * (size_t)2048 + s * 256;
        uint32_t shift = s % 2 * 4;
        for (uint32_t e = 0; e < 16; e++) {
            uint32_t low = q[s / 2 * 32 + e] >> shift & 15u;
            uint32_t high = q[s / 2 * 32 + e + 16] >> shift & 15u;
            *byte_at(p, vectors, e) = (uint8_t)(low | high << 4);
        }
    }
}

static void unpack_q4_k(place p, uint32_t b, uint8_t *block)
{
    uint8_t *packed = block + 4, *q = block + 16;
    size_t at = b * (size_t)Q4_K_SCALES;
    memset(block, 0, 144);
    memcpy(block, half_at(p, at), 2);
    memcpy(block + 2, half_at(p, at + 32), 2);
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
        uint8_t *vectors = p.quants + b * (size_t)2048 + s * 256;
        uint32_t shift = s % 2 * 4;
        for (uint32_t e = 0; e < 16; e++) {
            uint32_t pair = *byte_at(p, vectors, e);
            uint8_t *at_q = q + s / 2 * 32 + e;
            at_q[0] = (uint8_t)(at_q[0] | (pair & 15u) << shift);
            at_q[16] = (uint8_t)(at_q[16] | pair >> 4 << shift);
        }
    }
}

/* Q6_K: in each half of 128 elements, group g of 32 has its low bits in low[32 (g % 2) + j],
 * nibble g / 2, and its high bits in high[j], bits 2g. Our block of 32 is one such group. */
static void pack_q6_k(place p, uint32_t b, const uint8_t *block)
{
    size_t at = b * (size_t)Q6_K_SCALES;
    memcpy(half_at(p, at), block + 208, 2);
    for (uint32_t i = 0; i < 16; i++)
        p.scales[at + 32 + i * 16 + p.lane] = block[192 + i];
    for (uint32_t s = 0; s < 8; s++) {
        uint32_t g = s % 4;
        const uint8_t *low = block + s / 4 * 64 + g % 2 * 32, *high = block + 128 + s / 4 * 32;
        uint8_t *nibbles = p.quants + b * (size_t)3072 + s * 384, *tops = nibbles + 256;
        for (uint32_t e = 0; e < 32; e++) {
            uint32_t nibble = low[e] >> g / 2 * 4 & 15u, top = high[e] >> 2 * g & 3u;
            uint8_t *n = byte_at(p, nibbles, e % 16);
            *n = (uint8_t)((*n & ~(15u << e / 16 * 4)) | nibble << e / 16 * 4);
            uint8_t *t = tops + e / 16 * 64 + p.lane * 4 + e % 4;
            uint32_t shift = e / 4 % 4 * 2;
            *t = (uint8_t)((*t & ~(3u << shift)) | top << shift);
        }
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
        uint32_t g = s % 4;
        uint8_t *low = block + s / 4 * 64 + g % 2 * 32, *high = block + 128 + s / 4 * 32;
        uint8_t *nibbles = p.quants + b * (size_t)3072 + s * 384, *tops = nibbles + 256;
        for (uint32_t e = 0; e < 32; e++) {
            uint32_t nibble = *byte_at(p, nibbles, e % 16) >> e / 16 * 4 & 15u;
            uint32_t top = tops[e / 16 * 64 + p.lane * 4 + e % 4] >> e / 4 % 4 * 2 & 3u;
            low[e] = (uint8_t)(low[e] | nibble << g / 2 * 4);
            high[e] = (uint8_t)(high[e] | top << 2 * g);
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
