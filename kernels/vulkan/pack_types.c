/* Blocks of the file to planes of quants. 32 quants are permuted so that four neighbours come out
 * of a word with one shift and one mask:
 *
 *     4 bits: byte b of word u holds element 8 u + b in its low nibble, 8 u + 4 + b in its high
 *             one;
 *             where a codebook is looked up: byte i holds elements 2 i and 2 i + 1
 *     2 bits: byte b of word h holds element 16 h + 4 i + b in its bits 2 i, 2 i + 1
 *     1 bit:  byte b holds element 4 i + b in its bit i
 *
 * Types with a codebook keep their indices and signs as the file has them. */
#include "kernels/vulkan/pack_types.h"

#include "base/check.h"
#include "kernels/types_unpack.h"

#include <string.h>

static uint8_t *low_of(const td_vk_group *g, uint32_t b)
{
    uint32_t quad_bytes = 4u * (g->layout->low + g->layout->high);
    return g->quads + b / 4 * quad_bytes + b % 4 * g->layout->low;
}

static uint8_t *high_of(const td_vk_group *g, uint32_t b)
{
    uint32_t quad_bytes = 4u * (g->layout->low + g->layout->high);
    return g->quads + b / 4 * quad_bytes + 4u * g->layout->low + b % 4 * g->layout->high;
}

/* Bytes of quants, four at a time; their order is the same in and out. */
static uint32_t load_four(const uint8_t *p)
{
    uint32_t four;
    memcpy(&four, p, sizeof four);
    return four;
}

static void store_four(uint32_t four, uint8_t *p) { memcpy(p, &four, sizeof four); }

/* Adds a field of every byte of `in`, n of them: (byte >> shift & mask) << up; a mask four times in
 * a word. */
static void add_fields(const uint8_t *in, uint32_t n, uint32_t shift, uint32_t mask, uint32_t up,
                       uint8_t *q)
{
    for (uint32_t i = 0; i < n; i += 4)
        store_four(load_four(q + i) | (load_four(in + i) >> shift & mask) << up, q + i);
}

#define ONES  0x01010101u
#define PAIRS 0x03030303u
#define FOURS 0x0f0f0f0fu

static void put_nibbles(const uint8_t q[32], uint8_t *out)
{
    for (int u = 0; u < 4; u++)
        store_four((load_four(q + 8 * u) & FOURS) | (load_four(q + 8 * u + 4) & 0x0f0f0f0fu) << 4,
                   out + 4 * u);
}

static void put_nibbles_in_order(const uint8_t q[32], uint8_t *out)
{
    for (int i = 0; i < 8; i++) {
        uint32_t four = load_four(q + 4 * i), both = four | four >> 4;
        out[2 * i] = (uint8_t)(both & 255);
        out[2 * i + 1] = (uint8_t)(both >> 16 & 255);
    }
}

static void put_pairs(const uint8_t q[32], uint32_t shift, uint8_t *out)
{
    for (int h = 0; h < 2; h++) {
        uint32_t word = 0;
        for (int i = 0; i < 4; i++)
            word |= (load_four(q + 16 * h + 4 * i) >> shift & 0x03030303u) << 2 * i;
        store_four(word, out + 4 * h);
    }
}

static void put_bits(const uint8_t q[32], uint32_t shift, uint8_t *out)
{
    uint32_t word = 0;
    for (int i = 0; i < 8; i++)
        word |= (load_four(q + 4 * i) >> shift & 0x01010101u) << i;
    store_four(word, out);
}

/* 32 quants of as many bits as the planes have. */
static void put(const td_vk_group *g, uint32_t b, const uint8_t q[32])
{
    uint8_t *low = low_of(g, b), *high = high_of(g, b);
    uint32_t n_low_bits = g->layout->low / 4u;
    if (g->layout->is_in_order)
        put_nibbles_in_order(q, low);
    else if (n_low_bits == 4)
        put_nibbles(q, low);
    else if (n_low_bits == 2)
        put_pairs(q, 0, low);
    else
        put_bits(q, 0, low);
    if (g->layout->high == 8)
        put_pairs(q, n_low_bits, high);
    else if (g->layout->high == 4)
        put_bits(q, n_low_bits, high);
}

/* -- blocks of 32 ---------------------------------------------------------------------------- */

/* {d or d, m; u8 nibbles[16]}, of 5 bits {d or d, m; u32 fifth bits; u8 nibbles[16]}: element j in
 * the low nibble of byte j, j + 16 in the high one. */
static void split_32(const uint8_t *in, uint32_t b, const td_vk_group *out)
{
    uint32_t n_scale = out->layout->head / 8u, n_fifth = out->layout->high;
    uint32_t fifth = n_fifth ? td_load_u32(in + n_scale) : 0;
    const uint8_t *nibbles = in + n_scale + n_fifth;
    uint8_t q[32] = {0};
    add_fields(nibbles, 16, 0, FOURS, 0, q);
    add_fields(nibbles, 16, 4, FOURS, 0, q + 16);
    if (n_fifth)
        for (uint32_t j = 0; j < 32; j++)
            q[j] |= (uint8_t)((fifth >> j & 1u) << 4);
    if (n_scale == 2)
        memcpy(out->head + 2 * b, in, 2);
    else
        memcpy(out->head + 4 * b, in, 4);
    put(out, b, q);
}

static void split_q8_0(const uint8_t *in, uint32_t b, const td_vk_group *out)
{
    memcpy(out->head + 2 * b, in, 2);
    memcpy(low_of(out, b), in + 2, 32);
}

/* The scale 2^(e - 128) as the upper half of a float; the lookup's values
 * are twice the format's. */
static void split_mxfp4(const uint8_t *in, uint32_t b, const td_vk_group *out)
{
    uint32_t e = in[0], upper = e < 2 ? 0x20u << e : (e - 1) << 7;
    out->head[2 * b] = (uint8_t)(upper & 255u);
    out->head[2 * b + 1] = (uint8_t)(upper >> 8);
    uint8_t q[32] = {0};
    add_fields(in + 1, 16, 0, FOURS, 0, q);
    add_fields(in + 1, 16, 4, FOURS, 0, q + 16);
    put(out, b, q);
}

/* -- blocks of 64 and 128 -------------------------------------------------------------------- */

/* {u8 scales[4]; u8 nibbles[4][8]}: runs of 16, halves of 8. A scale of 0x7f means 0. */
static void split_nvfp4(const uint8_t *in, uint32_t b, const td_vk_group *out)
{
    for (uint32_t i = 0; i < 4; i++)
        out->head[2 * b + i] = in[i] == 0x7f ? 0 : in[i] & 0x7f;
    for (uint32_t i = 0; i < 2; i++) {
        uint8_t q[32] = {0};
        for (uint32_t j = 0; j < 4; j++)
            add_fields(in + 4 + 16 * i + j / 2 * 8, 8, j % 2 * 4, FOURS, 0, q + 8 * j);
        put(out, b + i, q);
    }
}

static void split_q1_0(const uint8_t *in, uint32_t b, const td_vk_group *out)
{
    for (uint32_t i = 0; i < 4; i++) {
        uint8_t q[32];
        for (uint32_t j = 0; j < 32; j++)
            q[j] = in[2 + 4 * i + j / 8] >> j % 8 & 1;
        put(out, b + i, q);
    }
}

static void split_q2_0(const uint8_t *in, uint32_t b, const td_vk_group *out)
{
    for (uint32_t i = 0; i < 2; i++) {
        uint8_t q[32];
        for (uint32_t j = 0; j < 32; j++)
            q[j] = in[2 + 8 * i + j / 4] >> 2 * (j % 4) & 3;
        put(out, b + i, q);
    }
}

/* -- blocks of 256 --------------------------------------------------------------------------- */

/* {d, d_min} stays; the 6-bit scales and minima become three words: low nibbles of the 8 scales,
 * low nibbles of the 8 minima, and a nibble for each block of 32 with the two high bits of its
 * scale (below) and of its minimum (above). */
static void split_k_scales(const uint8_t *in, uint8_t *head)
{
    const uint8_t *scales = in + 4;
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
    memcpy(head, in, 4);
    memcpy(head + 4, meta, 12);
}

/* {d, d_min; u8 scales[12]; Q5_K: u8 fifth bits[32]; u8 nibbles[128]}. */
static void split_q4_k_q5_k(const uint8_t *in, uint32_t b, const td_vk_group *out)
{
    TD_ASSERT(b == 0);
    const uint8_t *fifth = in + 16, *nibbles = in + 16 + (out->layout->high ? 32 : 0);
    split_k_scales(in, out->head);
    for (uint32_t s = 0; s < 8; s++) {
        uint8_t q[32] = {0};
        add_fields(nibbles + 32 * (s / 2), 32, 4 * (s % 2), FOURS, 0, q);
        if (out->layout->high)
            add_fields(fifth, 32, s, ONES, 4, q);
        put(out, s, q);
    }
}

static void split_q6_k(const uint8_t *in, uint32_t b, const td_vk_group *out)
{
    TD_ASSERT(b == 0);
    memcpy(out->head, in + 192, 16);
    for (uint32_t run = 0; run < 8; run++) {
        uint32_t half = run / 4, g = run % 4;
        const uint8_t *low = in + 64 * half + 32 * (g & 1), *high = in + 128 + 32 * half;
        uint8_t q[32] = {0};
        add_fields(low, 32, 4 * (g / 2), FOURS, 0, q);
        add_fields(high, 32, 2 * g, PAIRS, 4, q);
        put(out, run, q);
    }
}

/* Quants of 2 bits of a superblock: run g of a half of 128 has bits 2g of 32 bytes. */
static void split_pairs(const uint8_t *in, uint32_t run, uint8_t q[32])
{
    memset(q, 0, 32);
    add_fields(in + 32 * (run / 4), 32, 2 * (run % 4), PAIRS, 0, q);
}

static void split_q2_k(const uint8_t *in, uint32_t b, const td_vk_group *out)
{
    TD_ASSERT(b == 0);
    memcpy(out->head, in, 16);
    for (uint32_t run = 0; run < 8; run++) {
        uint8_t q[32];
        split_pairs(in + 16, run, q);
        put(out, run, q);
    }
}

/* {u8 third bits[32]; u8 pairs[64]; u8 scales[12]; d}. The 16 scales of 6 bits become words of 8
 * low nibbles, then one of 16 high pairs, then d. */
static void split_q3_k(const uint8_t *in, uint32_t b, const td_vk_group *out)
{
    TD_ASSERT(b == 0);
    const uint8_t *scales = in + 96;
    for (uint32_t s = 0; s < 16; s++) {
        uint32_t low = scales[s % 8] >> 4 * (s / 8) & 15, high = scales[8 + s % 4] >> s / 4 * 2 & 3;
        out->head[s / 2] |= (uint8_t)(low << 4 * (s % 2));
        out->head[8 + s / 4] |= (uint8_t)(high << 2 * (s % 4));
    }
    memcpy(out->head + 12, in + 108, 2);
    for (uint32_t run = 0; run < 8; run++) {
        uint8_t q[32];
        split_pairs(in + 32, run, q);
        add_fields(in, 32, run, ONES, 2, q);
        put(out, run, q);
    }
}

static void split_tq2_0(const uint8_t *in, uint32_t b, const td_vk_group *out)
{
    TD_ASSERT(b == 0);
    for (uint32_t run = 0; run < 8; run++) {
        uint8_t q[32];
        split_pairs(in, run, q);
        put(out, run, q);
    }
}

/* Five elements a byte, as fractions of 3^5 = 243 in units of 1/256: the upper digit is the integer
 * part of byte * 3 / 256, the next one that of the rest. 32 bytes, then 16, then 4 of four. Kept as
 * pairs: a fifth more than in the file. */
static void split_tq1_0(const uint8_t *in, uint32_t b, const td_vk_group *out)
{
    TD_ASSERT(b == 0);
    static const struct {
        uint32_t n_bytes, n_digits;
    } parts[] = {{32, 5}, {16, 5}, {4, 4}};
    uint8_t q[256];
    uint32_t n = 0;
    for (uint32_t p = 0; p < TD_COUNT(parts); in += parts[p++].n_bytes)
        for (uint32_t digit = 0, power = 1; digit < parts[p].n_digits; digit++, power *= 3)
            for (uint32_t j = 0; j < parts[p].n_bytes; j++)
                q[n++] = (uint8_t)((in[j] * power & 255u) * 3 >> 8);
    for (uint32_t run = 0; run < 8; run++)
        put(out, run, q + 32 * run);
}

/* {d; u16 high pairs of the scales; u8 low nibbles[4]; u8 nibbles[8][16]}. The scales become bytes,
 * less 32; then d. */
static void split_iq4_xs(const uint8_t *in, uint32_t b, const td_vk_group *out)
{
    TD_ASSERT(b == 0);
    memcpy(out->head + 8, in, 2);
    for (uint32_t s = 0; s < 8; s++) {
        uint32_t low = in[4 + s / 2] >> 4 * (s % 2) & 15;
        uint32_t scale = low | (td_load_u16(in + 2) >> 2 * s & 3u) << 4;
        out->head[s] = (uint8_t)(scale - 32);
        uint8_t q[32] = {0};
        add_fields(in + 8 + 16 * s, 16, 0, FOURS, 0, q);
        add_fields(in + 8 + 16 * s, 16, 4, FOURS, 0, q + 16);
        put(out, s, q);
    }
}

/* -- codebooks: indices into tables of 4 or 8 elements ----------------------------------------- */

/* {d; per block of 32: u8 indices[4]; u32 signs and scale}. */
static void split_iq2_xxs(const uint8_t *in, uint32_t b, const td_vk_group *out)
{
    TD_ASSERT(b == 0);
    for (uint32_t s = 0; s < 8; s++)
        memcpy(low_of(out, s), in + 2 + 8 * s, 8);
}

/* {d; per block: u16 index and signs[4]; u8 scales[8]}. */
static void split_iq2_xs(const uint8_t *in, uint32_t b, const td_vk_group *out)
{
    split_iq2_xxs(in, b, out);
    memcpy(out->head, in + 66, 8);
    memcpy(out->head + 8, in, 2);
}

/* {d; u8 indices[32]; u8 signs[32]; u8 high bits of the indices[8]; u8 scales[8]}. */
static void split_iq2_s(const uint8_t *in, uint32_t b, const td_vk_group *out)
{
    TD_ASSERT(b == 0);
    for (uint32_t s = 0; s < 8; s++) {
        memcpy(low_of(out, s), in + 2 + 4 * s, 4);
        memcpy(low_of(out, s) + 4, in + 34 + 4 * s, 4);
    }
    memcpy(out->head, in + 66, 16);
}

/* {d; u8 indices[64]; u32 signs and scale[8]}. */
static void split_iq3_xxs(const uint8_t *in, uint32_t b, const td_vk_group *out)
{
    TD_ASSERT(b == 0);
    for (uint32_t s = 0; s < 8; s++) {
        memcpy(low_of(out, s), in + 2 + 8 * s, 8);
        memcpy(high_of(out, s), in + 66 + 4 * s, 4);
    }
}

/* {d; u8 indices[64]; u8 high bits of the indices[8]; u8 signs[32]; u8 scales[4]}. */
static void split_iq3_s(const uint8_t *in, uint32_t b, const td_vk_group *out)
{
    TD_ASSERT(b == 0);
    for (uint32_t s = 0; s < 8; s++) {
        memcpy(low_of(out, s), in + 2 + 8 * s, 8);
        memcpy(high_of(out, s), in + 74 + 4 * s, 4);
    }
    memcpy(out->head, in + 66, 8);
    memcpy(out->head + 8, in + 106, 4);
    memcpy(out->head + 12, in, 2);
}

/* IQ1_S: {d; u8 indices[32]; u16 high bits, scale and sign of the shift[8]}.
 * IQ1_M: {u8 indices[32]; u8 high bits and signs of the shifts[16]; scales with d in between}. */
static void split_iq1(const uint8_t *in, uint32_t b, const td_vk_group *out)
{
    TD_ASSERT(b == 0);
    const uint8_t *indices = in + out->layout->tail % 8; /* behind d, if that comes first */
    for (uint32_t s = 0; s < 8; s++)
        memcpy(low_of(out, s), indices + 4 * s, 4);
    memcpy(out->head, indices + 32, 16);
}

#define CODEBOOK(grid) grid, TD_COUNT(grid)

static const td_vk_layout layouts[] = {
    /* type, is_in_order, low, high, head, tail, tail_at */
    {TD_TYPE_Q4_0, false, 16, 0, 16, 0, 0, split_32, NULL, 0},
    {TD_TYPE_Q4_1, false, 16, 0, 32, 0, 0, split_32, NULL, 0},
    {TD_TYPE_Q5_0, false, 16, 4, 16, 0, 0, split_32, NULL, 0},
    {TD_TYPE_Q5_1, false, 16, 4, 32, 0, 0, split_32, NULL, 0},
    {TD_TYPE_Q8_0, false, 32, 0, 16, 0, 0, split_q8_0, NULL, 0},
    {TD_TYPE_Q2_K, false, 8, 0, 16, 4, 80, split_q2_k, NULL, 0},
    {TD_TYPE_Q3_K, false, 8, 4, 16, 0, 0, split_q3_k, NULL, 0},
    {TD_TYPE_Q4_K, false, 16, 0, 16, 0, 0, split_q4_k_q5_k, NULL, 0},
    {TD_TYPE_Q5_K, false, 16, 4, 16, 0, 0, split_q4_k_q5_k, NULL, 0},
    {TD_TYPE_Q6_K, false, 16, 8, 16, 2, 208, split_q6_k, NULL, 0},
    {TD_TYPE_IQ2_XXS, false, 8, 0, 0, 2, 0, split_iq2_xxs, CODEBOOK(td_grid_iq2_xxs)},
    {TD_TYPE_IQ2_XS, false, 8, 0, 16, 0, 0, split_iq2_xs, CODEBOOK(td_grid_iq2_xs)},
    {TD_TYPE_IQ3_XXS, false, 8, 4, 0, 2, 0, split_iq3_xxs, CODEBOOK(td_grid_iq3_xxs)},
    {TD_TYPE_IQ1_S, false, 4, 0, 16, 2, 0, split_iq1, CODEBOOK(td_grid_iq1)},
    {TD_TYPE_IQ4_NL, true, 16, 0, 16, 0, 0, split_32, NULL, 0},
    {TD_TYPE_IQ3_S, false, 8, 4, 16, 0, 0, split_iq3_s, CODEBOOK(td_grid_iq3_s)},
    {TD_TYPE_IQ2_S, false, 8, 0, 16, 2, 0, split_iq2_s, CODEBOOK(td_grid_iq2_s)},
    {TD_TYPE_IQ4_XS, true, 16, 0, 16, 0, 0, split_iq4_xs, NULL, 0},
    {TD_TYPE_IQ1_M, false, 4, 0, 16, 8, 48, split_iq1, CODEBOOK(td_grid_iq1)},
    {TD_TYPE_TQ1_0, false, 8, 0, 0, 2, 52, split_tq1_0, NULL, 0},
    {TD_TYPE_TQ2_0, false, 8, 0, 0, 2, 64, split_tq2_0, NULL, 0},
    {TD_TYPE_MXFP4, true, 16, 0, 16, 0, 0, split_mxfp4, NULL, 0},
    {TD_TYPE_NVFP4, true, 16, 0, 16, 0, 0, split_nvfp4, NULL, 0},
    {TD_TYPE_Q1_0, false, 4, 0, 0, 2, 0, split_q1_0, NULL, 0},
    {TD_TYPE_Q2_0, false, 8, 0, 0, 2, 0, split_q2_0, NULL, 0},
};

const td_vk_layout *td_vk_layout_find(uint32_t type_id)
{
    for (size_t i = 0; i < TD_COUNT(layouts); i++)
        if (layouts[i].id == type_id)
            return &layouts[i];
    return NULL;
}
