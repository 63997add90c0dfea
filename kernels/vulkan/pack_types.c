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

/* 32 quants live in registers while they are put together. */
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

typedef struct {
    uint64_t eights[4]; /* a byte each, in order */
} quants;

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

/* Bytes of quants, eight at a time in a word of the host, which is little-endian: their order is
 * the same in and out. */
INLINE uint64_t load_eight(const uint8_t *p)
{
    uint64_t eight;
    memcpy(&eight, p, sizeof eight);
    return eight;
}

INLINE void store_four(uint32_t four, uint8_t *p) { memcpy(p, &four, sizeof four); }

#define ONES  0x0101010101010101u
#define PAIRS 0x0303030303030303u
#define FOURS 0x0f0f0f0f0f0f0f0fu

/* Adds a field of every byte of `in` to as many quants from `at` on, n of them, multiples of 8:
 * (byte >> shift & mask) << up; a mask eight times in a word. */
INLINE void add_fields(const uint8_t *in, const uint32_t n, uint32_t shift, uint64_t mask,
                       uint32_t up, quants *q, const uint32_t at)
{
    UNROLL for (uint32_t i = 0; i < n / 8; i++) q->eights[at / 8 + i] |=
        (load_eight(in + 8 * i) >> shift & mask) << up;
}

/* The eight bits as eight bytes of 0 or 1. */
INLINE uint64_t spread_bits(uint8_t bits)
{
    uint64_t each = bits * ONES & 0x8040201008040201u;
    return (each + 0x7f7f7f7f7f7f7f7fu) >> 7 & ONES;
}

/* Bytes of 4 bits, two by two: the first of a pair low. */
INLINE uint32_t join_nibbles(uint64_t q)
{
    q = (q | q >> 4) & 0x00ff00ff00ff00ffu;
    q = (q | q >> 8) & 0x0000ffff0000ffffu;
    return (uint32_t)(q | q >> 16);
}

INLINE void put_nibbles(const quants *q, uint8_t *out)
{
    UNROLL for (int u = 0; u < 4; u++)
        store_four((uint32_t)(q->eights[u] & FOURS) | (uint32_t)((q->eights[u] & FOURS) >> 32) << 4,
                   out + 4 * u);
}

INLINE void put_nibbles_in_order(const quants *q, uint8_t *out)
{
    UNROLL for (int u = 0; u < 4; u++) store_four(join_nibbles(q->eights[u]), out + 4 * u);
}

INLINE void put_pairs(const quants *q, uint32_t shift, uint8_t *out)
{
    UNROLL for (int h = 0; h < 2; h++)
    {
        uint64_t sum = q->eights[2 * h] >> shift & PAIRS;
        sum |= (q->eights[2 * h + 1] >> shift & PAIRS) << 4;
        store_four((uint32_t)sum | (uint32_t)(sum >> 32) << 2, out + 4 * h);
    }
}

INLINE void put_bits(const quants *q, uint32_t shift, uint8_t *out)
{
    uint64_t sum = 0;
    UNROLL for (int i = 0; i < 4; i++) sum |= (q->eights[i] >> shift & ONES) << 2 * i;
    store_four((uint32_t)sum | (uint32_t)(sum >> 32) << 1, out);
}

/* 32 quants of as many bits as the planes have. */
INLINE void put(const td_vk_group *g, uint32_t b, const quants *q)
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
    quants q = {0};
    add_fields(nibbles, 16, 0, FOURS, 0, &q, 0);
    add_fields(nibbles, 16, 4, FOURS, 0, &q, 16);
    if (n_fifth)
        UNROLL for (uint32_t j = 0; j < 4; j++) q.eights[j] |=
            spread_bits((uint8_t)(fifth >> 8 * j)) << 4;
    if (n_scale == 2)
        memcpy(out->head + 2 * b, in, 2);
    else
        memcpy(out->head + 4 * b, in, 4);
    put(out, b, &q);
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
    quants q = {0};
    add_fields(in + 1, 16, 0, FOURS, 0, &q, 0);
    add_fields(in + 1, 16, 4, FOURS, 0, &q, 16);
    put(out, b, &q);
}

/* -- blocks of 64 and 128 -------------------------------------------------------------------- */

/* {u8 scales[4]; u8 nibbles[4][8]}: runs of 16, halves of 8. A scale of 0x7f means 0. */
static void split_nvfp4(const uint8_t *in, uint32_t b, const td_vk_group *out)
{
    for (uint32_t i = 0; i < 4; i++)
        out->head[2 * b + i] = in[i] == 0x7f ? 0 : in[i] & 0x7f;
    for (uint32_t i = 0; i < 2; i++) {
        quants q = {0};
        UNROLL for (uint32_t j = 0; j < 4; j++)
            add_fields(in + 4 + 16 * i + j / 2 * 8, 8, j % 2 * 4, FOURS, 0, &q, 8 * j);
        put(out, b + i, &q);
    }
}

static void split_q1_0(const uint8_t *in, uint32_t b, const td_vk_group *out)
{
    for (uint32_t i = 0; i < 4; i++) {
        quants q;
        UNROLL for (uint32_t j = 0; j < 4; j++) q.eights[j] = spread_bits(in[2 + 4 * i + j]);
        put(out, b + i, &q);
    }
}

static void split_q2_0(const uint8_t *in, uint32_t b, const td_vk_group *out)
{
    for (uint32_t i = 0; i < 2; i++) {
        quants q;
        UNROLL for (uint32_t j = 0; j < 4; j++)
        {
            const uint8_t *two = in + 2 + 8 * i + 2 * j;
            uint64_t both = two[0] | (uint64_t)two[1] << 32;
            q.eights[j] = (both | both << 6 | both << 12 | both << 18) & PAIRS;
        }
        put(out, b + i, &q);
    }
}

/* -- blocks of 256 --------------------------------------------------------------------------- */

/* {d, d_min} stays; the 6-bit scales and minima become three words: low nibbles of the 8 scales,
 * low nibbles of the 8 minima, and a nibble for each block of 32 with the two high bits of its
 * scale (below) and of its minimum (above). */
static void split_k_scales(const uint8_t *in, uint8_t *head)
{
    const uint64_t low = 0x0f0f0f0fu, six = 0x3f3f3f3fu, top = 0x03030303u;
    uint64_t a = td_load_u32(in + 4), b = td_load_u32(in + 8), c = td_load_u32(in + 12);
    uint64_t scales = (a & six) | ((c & low) | (a >> 6 & top) << 4) << 32;
    uint64_t minima = (b & six) | ((c >> 4 & low) | (b >> 6 & top) << 4) << 32;
    memcpy(head, in, 4);
    store_four(join_nibbles(scales & FOURS), head + 4);
    store_four(join_nibbles(minima & FOURS), head + 8);
    store_four(join_nibbles((scales >> 4 & PAIRS) | (minima >> 4 & PAIRS) << 2), head + 12);
}

/* {d, d_min; u8 scales[12]; Q5_K: u8 fifth bits[32]; u8 nibbles[128]}. */
static void split_q4_k_q5_k(const uint8_t *in, uint32_t b, const td_vk_group *out)
{
    TD_ASSERT(b == 0);
    const uint8_t *fifth = in + 16, *nibbles = in + 16 + (out->layout->high ? 32 : 0);
    split_k_scales(in, out->head);
    for (uint32_t s = 0; s < 8; s++) {
        quants q = {0};
        add_fields(nibbles + 32 * (s / 2), 32, 4 * (s % 2), FOURS, 0, &q, 0);
        if (out->layout->high)
            add_fields(fifth, 32, s, ONES, 4, &q, 0);
        put(out, s, &q);
    }
}

static void split_q6_k(const uint8_t *in, uint32_t b, const td_vk_group *out)
{
    TD_ASSERT(b == 0);
    memcpy(out->head, in + 192, 16);
    for (uint32_t run = 0; run < 8; run++) {
        uint32_t half = run / 4, g = run % 4;
        const uint8_t *low = in + 64 * half + 32 * (g & 1), *high = in + 128 + 32 * half;
        quants q = {0};
        add_fields(low, 32, 4 * (g / 2), FOURS, 0, &q, 0);
        add_fields(high, 32, 2 * g, PAIRS, 4, &q, 0);
        put(out, run, &q);
    }
}

/* Quants of 2 bits of a superblock: run g of a half of 128 has bits 2g of 32 bytes. */
INLINE quants split_pairs(const uint8_t *in, uint32_t run)
{
    quants q = {0};
    add_fields(in + 32 * (run / 4), 32, 2 * (run % 4), PAIRS, 0, &q, 0);
    return q;
}

static void split_q2_k(const uint8_t *in, uint32_t b, const td_vk_group *out)
{
    TD_ASSERT(b == 0);
    memcpy(out->head, in, 16);
    for (uint32_t run = 0; run < 8; run++) {
        quants q = split_pairs(in + 16, run);
        put(out, run, &q);
    }
}

/* {u8 third bits[32]; u8 pairs[64]; u8 scales[12]; d}. The 16 scales of 6 bits become words of 8
 * low nibbles, then one of 16 high pairs, then d. */
static void split_q3_k(const uint8_t *in, uint32_t b, const td_vk_group *out)
{
    TD_ASSERT(b == 0);
    const uint8_t *scales = in + 96;
    uint64_t low = load_eight(scales);
    uint32_t high = 0;
    store_four(join_nibbles(low & FOURS), out->head);
    store_four(join_nibbles(low >> 4 & FOURS), out->head + 4);
    UNROLL for (uint32_t i = 0; i < 4; i++)
    {
        uint32_t four = td_load_u32(scales + 8) >> 2 * i & (uint32_t)PAIRS;
        high |= ((four | four >> 6 | four >> 12 | four >> 18) & 255u) << 8 * i;
    }
    store_four(high, out->head + 8);
    memcpy(out->head + 12, in + 108, 2);
    for (uint32_t run = 0; run < 8; run++) {
        quants q = split_pairs(in + 32, run);
        add_fields(in, 32, run, ONES, 2, &q, 0);
        put(out, run, &q);
    }
}

static void split_tq2_0(const uint8_t *in, uint32_t b, const td_vk_group *out)
{
    TD_ASSERT(b == 0);
    for (uint32_t run = 0; run < 8; run++) {
        quants q = split_pairs(in, run);
        put(out, run, &q);
    }
}

/* A digit of each of eight bytes: (byte * power & 255) * 3 >> 8. */
INLINE uint64_t find_digits(uint64_t eight, uint32_t power)
{
    const uint64_t bytes = 0x00ff00ff00ff00ffu; /* in lanes of 16 bits, even ones and odd ones */
    uint64_t even = ((eight & bytes) * power & bytes) * 3 >> 8 & bytes;
    uint64_t odd = ((eight >> 8 & bytes) * power & bytes) * 3 >> 8 & bytes;
    return even | odd << 8;
}

/* Five elements a byte, as fractions of 3^5 = 243 in units of 1/256: the upper digit is the integer
 * part of byte * 3 / 256, the next one that of the rest. 32 bytes, then 16, then 4 of four. Kept as
 * pairs: a fifth more than in the file. */
static void split_tq1_0(const uint8_t *in, uint32_t b, const td_vk_group *out)
{
    TD_ASSERT(b == 0);
    uint64_t q[32];
    uint32_t power = 1;
    for (uint32_t digit = 0; digit < 5; digit++, power *= 3) {
        UNROLL for (uint32_t j = 0; j < 4; j++) q[4 * digit + j] =
            find_digits(load_eight(in + 8 * j), power);
        UNROLL for (uint32_t j = 0; j < 2; j++) q[20 + 2 * digit + j] =
            find_digits(load_eight(in + 32 + 8 * j), power);
    }
    uint64_t last = td_load_u32(in + 48);
    q[30] = find_digits(last, 1) | find_digits(last, 3) << 32;
    q[31] = find_digits(last, 9) | find_digits(last, 27) << 32;
    for (uint32_t run = 0; run < 8; run++) {
        quants one;
        memcpy(one.eights, q + 4 * run, sizeof one.eights);
        put(out, run, &one);
    }
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
        quants q = {0};
        add_fields(in + 8 + 16 * s, 16, 0, FOURS, 0, &q, 0);
        add_fields(in + 8 + 16 * s, 16, 4, FOURS, 0, &q, 16);
        put(out, s, &q);
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
