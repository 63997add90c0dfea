/* Repacks rows of a file into the layouts of inc/quant_*.glsl. A block in a file keeps its scales
 * beside its quants, at offsets that are no multiple of 16 or even 4; here every kind of field of
 * a row gets a plane of its own, and quants are permuted so that a shader takes four neighbours
 * out of a word with one shift and one mask:
 *
 *     nibbles: a run of 32 elements is 4 words; byte b of word u holds element 8 u + b in its low
 *              nibble and element 8 u + 4 + b in its high one
 *     2 bits:  a run of 32 elements is 2 words; byte b of word h holds element 16 h + 4 i + b in
 *              its bits 2 i, 2 i + 1
 *
 * Rows are written once, front to back: the destination may be write-combined device memory. */
#include "kernels/vulkan/pack.h"

#include "base/check.h"

#include <string.h>

#define ROW_ALIGNMENT 16u /* a uvec4 */

typedef struct { /* bytes of one block in each plane of a packed row, in plane order */
    uint32_t planes[4];
} packed_block;

static packed_block describe(const td_type_info *type)
{
    switch (type->id) {
    case TD_TYPE_F32:
        return (packed_block){{4}};
    case TD_TYPE_F16:
        return (packed_block){{2}};
    case TD_TYPE_Q4_0:
        return (packed_block){{16, 2}};
    case TD_TYPE_Q8_0:
        return (packed_block){{32, 2}};
    case TD_TYPE_Q4_K:
        return (packed_block){{128, 16}};
    case TD_TYPE_Q6_K:
        return (packed_block){{128, 64, 16, 2}};
    default:
        TD_ASSERT(!"a weight type without a packed layout");
        return (packed_block){{0}};
    }
}

static uint64_t round_row(uint64_t n_bytes)
{
    return (n_bytes + ROW_ALIGNMENT - 1) / ROW_ALIGNMENT * ROW_ALIGNMENT;
}

uint64_t td_vk_packed_row_bytes(const td_type_info *type, uint32_t n_cols)
{
    packed_block b = describe(type);
    TD_ASSERT(n_cols % type->block_elements == 0);
    uint64_t n_blocks = n_cols / type->block_elements;
    return round_row(n_blocks * (b.planes[0] + b.planes[1] + b.planes[2] + b.planes[3]));
}

uint64_t td_vk_packed_bytes(const td_type_info *type, uint32_t n_rows, uint32_t n_cols)
{
    return n_rows * td_vk_packed_row_bytes(type, n_cols); /* < 2^32 * 2^34 */
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

static void pack_q4_0(const uint8_t *in, uint8_t *const planes[4])
{
    uint8_t q[32];
    for (int j = 0; j < 16; j++) {
        q[j] = in[2 + j] & 0xf;
        q[j + 16] = in[2 + j] >> 4;
    }
    pack_nibbles(q, planes[0]);
    memcpy(planes[1], in, 2);
}

/* Stored with 128 added: bytes then convert without a sign extension. */
static void pack_q8_0(const uint8_t *in, uint8_t *const planes[4])
{
    uint8_t q[32];
    for (int j = 0; j < 32; j++)
        q[j] = in[2 + j] ^ 0x80;
    memcpy(planes[0], q, 32);
    memcpy(planes[1], in, 2);
}

/* {d, d_min} stays; the 6-bit scales and minima become three words: low nibbles of the 8 scales,
 * low nibbles of the 8 minima, and a nibble for each sub-block with the two high bits of its scale
 * (below) and of its minimum (above). */
static void pack_q4_k(const uint8_t *in, uint8_t *const planes[4])
{
    const uint8_t *scales = in + 4, *quants = in + 16;
    uint8_t meta[12] = {0};
    for (int s = 0; s < 8; s++) {
        int scale, minimum;
        if (s < 4) {
            scale = scales[s] & 63;
            minimum = scales[s + 4] & 63;
        } else {
            scale = (scales[s + 4] & 0xf) | (scales[s - 4] >> 6) << 4;
            minimum = scales[s + 4] >> 4 | (scales[s] >> 6) << 4;
        }
        int shift = 4 * (s % 2);
        meta[s / 2] |= (uint8_t)((scale & 15) << shift);
        meta[4 + s / 2] |= (uint8_t)((minimum & 15) << shift);
        meta[8 + s / 2] |= (uint8_t)((scale >> 4 | minimum >> 4 << 2) << shift);
    }
    for (int s = 0; s < 8; s++) {
        uint8_t q[32];
        for (int j = 0; j < 32; j++)
            q[j] = s & 1 ? quants[32 * (s / 2) + j] >> 4 : quants[32 * (s / 2) + j] & 0xf;
        pack_nibbles(q, planes[0] + 16 * s);
    }
    memcpy(planes[1], in, 4);
    memcpy(planes[1] + 4, meta, 12);
}

static void pack_q6_k(const uint8_t *in, uint8_t *const planes[4])
{
    for (int run = 0; run < 8; run++) {
        int half = run / 4, g = run % 4; /* as dequantize_q6_k in kernels/types.c */
        const uint8_t *low = in + 64 * half + 32 * (g & 1), *high = in + 128 + 32 * half;
        uint8_t q_low[32], q_high[32];
        for (int j = 0; j < 32; j++) {
            q_low[j] = low[j] >> 4 * (g / 2) & 0xf;
            q_high[j] = high[j] >> 2 * g & 3;
        }
        pack_nibbles(q_low, planes[0] + 16 * run);
        pack_pairs(q_high, planes[1] + 8 * run);
    }
    memcpy(planes[2], in + 192, 16);
    memcpy(planes[3], in + 208, 2);
}

typedef void pack_fn(const uint8_t *in, uint8_t *const planes[4]);

static pack_fn *find_packer(const td_type_info *type)
{
    switch (type->id) {
    case TD_TYPE_Q4_0:
        return pack_q4_0;
    case TD_TYPE_Q8_0:
        return pack_q8_0;
    case TD_TYPE_Q4_K:
        return pack_q4_k;
    case TD_TYPE_Q6_K:
        return pack_q6_k;
    default:
        return NULL; /* plain elements: the row is copied */
    }
}

void td_vk_pack_rows(const td_type_info *type, const void *src, uint32_t n_rows, uint32_t n_cols,
                     void *dst)
{
    const packed_block layout = describe(type);
    const size_t n_blocks = n_cols / type->block_elements;
    const size_t src_bytes = td_row_bytes(type, n_cols);
    const size_t dst_bytes = (size_t)td_vk_packed_row_bytes(type, n_cols);
    pack_fn *pack = find_packer(type);
    const uint8_t *in = src;
    uint8_t *out = dst;
    for (uint32_t row = 0; row < n_rows; row++, in += src_bytes, out += dst_bytes) {
        uint8_t *planes[4] = {out};
        if (!pack) {
            memcpy(out, in, src_bytes);
            planes[0] = out + src_bytes;
        } else {
            for (int i = 1; i < 4; i++)
                planes[i] = planes[i - 1] + n_blocks * layout.planes[i - 1];
            for (size_t b = 0; b < n_blocks; b++) {
                pack(in + b * type->block_bytes, planes);
                for (int i = 0; i < 4; i++)
                    planes[i] += layout.planes[i];
            }
        }
        uint8_t *end = out;
        for (int i = 0; i < 4; i++)
            end += n_blocks * layout.planes[i];
        memset(end, 0, (size_t)(out + dst_bytes - end));
    }
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
