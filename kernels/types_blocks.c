/* Unpackers of the types whose quants are plain bits, trits or a look-up of 16 values. Where a
 * format gives scale and minimum as small integers times a half, their product is exact in f32. */
#include "kernels/types_unpack.h"

#include "base/check.h"

#include <string.h>

/* Bytes of 16 elements pairs: element j in the low nibble of b[j], j + 16 in the high one. */
static void unpack_pairs(const uint8_t *b, int offset, int8_t *q)
{
    for (int j = 0; j < 16; j++) {
        q[j] = (int8_t)((b[j] & 15) + offset);
        q[j + 16] = (int8_t)((b[j] >> 4) + offset);
    }
}

/* Fifth bits: bit j of `high` is element j's. */
static void add_fifth_bits(uint32_t high, int8_t *q)
{
    for (int j = 0; j < 32; j++)
        q[j] = (int8_t)(q[j] + (int)(high >> j & 1) * 16);
}

/* Q4_0: {f16 d; u8 q[16]}: value = (nibble - 8) * d. */
void td_unpack_q4_0(const void *block, td_type_part *parts)
{
    const uint8_t *b = block;
    td_part_set(parts, td_load_f16(b), 0);
    unpack_pairs(b + 2, -8, parts->q);
}

/* Q4_1: {f16 d, m; u8 q[16]}: value = nibble * d + m. */
void td_unpack_q4_1(const void *block, td_type_part *parts)
{
    const uint8_t *b = block;
    td_part_set(parts, td_load_f16(b), -td_load_f16(b + 2));
    unpack_pairs(b + 4, 0, parts->q);
}

/* Q5_0: {f16 d; u32 high; u8 q[16]}: value = (5 bits - 16) * d. */
void td_unpack_q5_0(const void *block, td_type_part *parts)
{
    const uint8_t *b = block;
    td_part_set(parts, td_load_f16(b), 0);
    unpack_pairs(b + 6, -16, parts->q);
    add_fifth_bits(td_load_u32(b + 2), parts->q);
}

/* Q5_1: {f16 d, m; u32 high; u8 q[16]}: value = 5 bits * d + m. */
void td_unpack_q5_1(const void *block, td_type_part *parts)
{
    const uint8_t *b = block;
    td_part_set(parts, td_load_f16(b), -td_load_f16(b + 2));
    unpack_pairs(b + 8, 0, parts->q);
    add_fifth_bits(td_load_u32(b + 4), parts->q);
}

/* Q6_0: {f16 d; u8 high[8]; u8 q[16]}: value = (6 bits - 32) * d. The high two bits of element j
 * are in high[j % 8], from bit j % 16 / 8 * 4 + j / 16 * 2. */
void td_unpack_q6_0(const void *block, td_type_part *parts)
{
    const uint8_t *b = block;
    td_part_set(parts, td_load_f16(b), 0);
    unpack_pairs(b + 10, -32, parts->q);
    for (int j = 0; j < 32; j++)
        parts->q[j] =
            (int8_t)(parts->q[j] + (b[2 + j % 8] >> (j % 16 / 8 * 4 + j / 16 * 2) & 3) * 16);
}

/* Q8_0: {f16 d; i8 q[32]}: value = q * d. */
void td_unpack_q8_0(const void *block, td_type_part *parts)
{
    const uint8_t *b = block;
    td_part_set(parts, td_load_f16(b), 0);
    memcpy(parts->q, b + 2, 32);
}

/* -- blocks of 256 ----------------------------------------------------------------------------- */

/* Q2_K: {u8 scales[16]; u8 q[64]; f16 d, d_min}: 16 sub-blocks of 16 with a scale of 4 bits and,
 * above it, a minimum; value = d * scale * 2 bits - d_min * minimum. Each half of 128 elements has
 * 32 bytes; group g of 32 in bits 2g of them. */
void td_unpack_q2_k(const void *block, td_type_part *parts)
{
    const uint8_t *b = block;
    float d = td_load_f16(b + 80), d_min = td_load_f16(b + 82);
    for (uint32_t i = 0; i < 8; i++, parts++) {
        const uint8_t *run = b + 16 + i / 4 * 32;
        for (uint32_t j = 0; j < 32; j++)
            parts->q[j] = (int8_t)(run[j] >> i % 4 * 2 & 3);
        for (uint32_t h = 0; h < 2; h++) {
            parts->scale[h] = d * (float)(b[2 * i + h] & 15);
            parts->minimum[h] = d_min * (float)(b[2 * i + h] >> 4);
        }
    }
}

/* Q3_K: {u8 high[32]; u8 q[64]; u8 scales[12]; f16 d}: 16 sub-blocks of 16;
 * value = d * (scale - 32) * (3 bits - 4). Low two bits as in Q2_K, the third in bit i of high[j],
 * i being the element's group of 32 in the block. Scale s of 6 bits: low four in scales[s % 8],
 * nibble s / 8; high two in scales[8 + s % 4], bits 2 (s / 4). */
void td_unpack_q3_k(const void *block, td_type_part *parts)
{
    const uint8_t *b = block, *scales = b + 96;
    float d = td_load_f16(b + 108);
    for (uint32_t i = 0; i < 8; i++, parts++) {
        const uint8_t *run = b + 32 + i / 4 * 32;
        for (uint32_t j = 0; j < 32; j++)
            parts->q[j] = (int8_t)((run[j] >> i % 4 * 2 & 3) + (b[j] >> i & 1) * 4 - 4);
        for (uint32_t h = 0; h < 2; h++) {
            uint32_t s = 2 * i + h;
            int low = scales[s % 8] >> s / 8 * 4 & 15, high = scales[8 + s % 4] >> s / 4 * 2 & 3;
            parts->scale[h] = d * (float)((low | high << 4) - 32);
            parts->minimum[h] = 0;
        }
    }
}

/* Q4_K and Q5_K: scale and minimum, 6 bits each, of sub-block i. The first four pairs lie in the
 * low 6 bits of s[0..3] and s[4..7]; the last four have their low nibbles in s[8..11] and their
 * high two bits above the first ones. */
static void unpack_scales_k(const uint8_t *b, const uint8_t *s, uint32_t i, td_type_part *part)
{
    int scale = i < 4 ? s[i] & 63 : (s[i + 4] & 15) | s[i - 4] >> 6 << 4;
    int minimum = i < 4 ? s[i + 4] & 63 : s[i + 4] >> 4 | s[i] >> 6 << 4;
    td_part_set(part, td_load_f16(b) * (float)scale, td_load_f16(b + 2) * (float)minimum);
}

/* Q4_K: {f16 d, d_min; u8 scales[12]; u8 q[128]}: 8 sub-blocks of 32;
 * value = d * scale * nibble - d_min * minimum. Each run of 32 bytes of q holds two sub-blocks: low
 * nibbles, then high ones. */
void td_unpack_q4_k(const void *block, td_type_part *parts)
{
    const uint8_t *b = block;
    for (uint32_t i = 0; i < 8; i++, parts++) {
        const uint8_t *run = b + 16 + i / 2 * 32;
        unpack_scales_k(b, b + 4, i, parts);
        for (uint32_t j = 0; j < 32; j++)
            parts->q[j] = (int8_t)(run[j] >> i % 2 * 4 & 15);
    }
}

/* Q5_K: {f16 d, d_min; u8 scales[12]; u8 high[32]; u8 q[128]}: as Q4_K, with a fifth bit in bit i
 * of high[j], i being the sub-block. */
void td_unpack_q5_k(const void *block, td_type_part *parts)
{
    const uint8_t *b = block;
    for (uint32_t i = 0; i < 8; i++, parts++) {
        const uint8_t *run = b + 48 + i / 2 * 32;
        unpack_scales_k(b, b + 4, i, parts);
        for (uint32_t j = 0; j < 32; j++)
            parts->q[j] = (int8_t)((run[j] >> i % 2 * 4 & 15) | (b[16 + j] >> i & 1) << 4);
    }
}

/* Q6_K: {u8 low[128]; u8 high[64]; i8 scales[16]; f16 d}: 16 sub-blocks of 16;
 * value = d * scale * (6 bits - 32). Per half of 128 elements, group g of 32 takes its low 4 bits
 * from low[32 * (g % 2) + j], nibble g / 2, and its high 2 bits from bits 2g of high[j]. */
void td_unpack_q6_k(const void *block, td_type_part *parts)
{
    const uint8_t *b = block;
    float d = td_load_f16(b + 208);
    for (uint32_t i = 0; i < 8; i++, parts++) {
        uint32_t g = i % 4;
        const uint8_t *low = b + i / 4 * 64 + g % 2 * 32, *high = b + 128 + i / 4 * 32;
        for (uint32_t j = 0; j < 32; j++)
            parts->q[j] = (int8_t)(((low[j] >> g / 2 * 4 & 15) | (high[j] >> 2 * g & 3) << 4) - 32);
        for (uint32_t h = 0; h < 2; h++) {
            parts->scale[h] = d * (float)(int8_t)b[192 + 2 * i + h];
            parts->minimum[h] = 0;
        }
    }
}

/* -- one or two bits and trits ----------------------------------------------------------------- */

/* Q1_0: {f16 d; u8 q[16]}: 128 elements; value = bit ? d : -d. */
void td_unpack_q1_0(const void *block, td_type_part *parts)
{
    const uint8_t *b = block;
    for (uint32_t i = 0; i < 4; i++, parts++) {
        td_part_set(parts, td_load_f16(b), 0);
        for (uint32_t j = 0; j < 32; j++)
            parts->q[j] = (int8_t)((b[2 + 4 * i + j / 8] >> j % 8 & 1) * 2 - 1);
    }
}

/* Q2_0: {f16 d; u8 q[16]}: 64 elements, four to a byte; value = (2 bits - 1) * d. */
void td_unpack_q2_0(const void *block, td_type_part *parts)
{
    const uint8_t *b = block;
    for (uint32_t i = 0; i < 2; i++, parts++) {
        td_part_set(parts, td_load_f16(b), 0);
        for (uint32_t j = 0; j < 32; j++)
            parts->q[j] = (int8_t)((b[2 + 8 * i + j / 4] >> j % 4 * 2 & 3) - 1);
    }
}

/* TQ1_0: {u8 q[48]; u8 last[4]; f16 d}: value = (trit - 1) * d. A byte holds five trits as a
 * fraction of 256 in base 3: trit n is the integer part of 3 * ((byte * 3^n) mod 256) / 256. The
 * first 32 bytes hold 5 runs of 32 elements, the next 16 five runs of 16, the last 4 four of 4. */
void td_unpack_tq1_0(const void *block, td_type_part *parts)
{
    static const struct {
        uint8_t begin, n_bytes, n_trits;
    } runs[] = {{0, 32, 5}, {32, 16, 5}, {48, 4, 4}};
    const uint8_t *b = block;
    uint32_t e = 0;
    for (uint32_t r = 0; r < TD_COUNT(runs); r++)
        for (uint32_t n = 0, power = 1; n < runs[r].n_trits; n++, power *= 3)
            for (uint32_t j = 0; j < runs[r].n_bytes; j++, e++) {
                uint32_t fraction = b[runs[r].begin + j] * power & 255;
                parts[e / 32].q[e % 32] = (int8_t)((int)(fraction * 3 >> 8) - 1);
            }
    for (uint32_t i = 0; i < 8; i++)
        td_part_set(&parts[i], td_load_f16(b + 52), 0);
}

/* TQ2_0: {u8 q[64]; f16 d}: value = (2 bits - 1) * d, bits as in Q2_K. */
void td_unpack_tq2_0(const void *block, td_type_part *parts)
{
    const uint8_t *b = block;
    for (uint32_t i = 0; i < 8; i++, parts++) {
        td_part_set(parts, td_load_f16(b + 64), 0);
        for (uint32_t j = 0; j < 32; j++)
            parts->q[j] = (int8_t)((b[i / 4 * 32 + j] >> i % 4 * 2 & 3) - 1);
    }
}

/* -- look-up of nibbles ------------------------------------------------------------------------ */

/* Twice the values of a 4-bit float (E2M1). */
static const int8_t e2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
/* The levels of IQ4, denser near zero. */
const int8_t td_levels_iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                  1,    13,   25,  38,  53,  69,  89,  113};

static void unpack_look_up(const uint8_t *b, const int8_t *levels, uint32_t n_pairs, int8_t *q)
{
    for (uint32_t j = 0; j < n_pairs; j++) {
        q[j] = levels[b[j] & 15];
        q[j + n_pairs] = levels[b[j] >> 4];
    }
}

/* MXFP4: {u8 e; u8 q[16]}: value = 2^(e - 127) * E2M1; here 2^(e - 128), since e2m1 is doubled. As
 * in the reference, e = 255 is no NaN. */
void td_unpack_mxfp4(const void *block, td_type_part *parts)
{
    const uint8_t *b = block;
    uint32_t bits = b[0] < 2 ? 0x200000u << b[0] : (b[0] - 1u) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    td_part_set(parts, scale, 0);
    unpack_look_up(b + 1, e2m1, 16, parts->q);
}

/* A scale of NVFP4, halved: E4M3 whose sign is not looked at; 0x7f is 0. */
static float half_of_e4m3(uint8_t bits)
{
    uint32_t exponent = bits >> 3 & 15, mantissa = bits & 7;
    if (bits == 0x7f)
        return 0;
    if (exponent == 0)
        return (float)mantissa * 0x1p-10f;
    uint32_t f32_bits = (exponent + 119) << 23 | mantissa << 20;
    float scale;
    memcpy(&scale, &f32_bits, sizeof scale);
    return scale;
}

/* NVFP4: {u8 scales[4]; u8 q[32]}: 64 elements in 4 sub-blocks of 16, each 8 bytes of nibbles: low
 * ones first; value = E4M3 * E2M1. */
void td_unpack_nvfp4(const void *block, td_type_part *parts)
{
    const uint8_t *b = block;
    for (uint32_t s = 0; s < 4; s++) {
        td_type_part *part = &parts[s / 2];
        part->scale[s % 2] = half_of_e4m3(b[s]);
        part->minimum[s % 2] = 0;
        unpack_look_up(b + 4 + 8 * s, e2m1, 8, part->q + s % 2 * 16);
    }
}

/* IQ4_NL: {f16 d; u8 q[16]}: value = d * level. */
void td_unpack_iq4_nl(const void *block, td_type_part *parts)
{
    const uint8_t *b = block;
    td_part_set(parts, td_load_f16(b), 0);
    unpack_look_up(b + 2, td_levels_iq4, 16, parts->q);
}

/* IQ4_XS: {f16 d; u16 high; u8 low[4]; u8 q[128]}: 8 sub-blocks of 32 as in IQ4_NL;
 * value = d * (scale - 32) * level. Scale i: low four bits in low[i / 2], nibble i % 2; high two in
 * bits 2i of `high`. */
void td_unpack_iq4_xs(const void *block, td_type_part *parts)
{
    const uint8_t *b = block;
    float d = td_load_f16(b);
    uint32_t high = td_load_u16(b + 2);
    for (uint32_t i = 0; i < 8; i++, parts++) {
        uint32_t low = b[4 + i / 2] >> i % 2 * 4 & 15;
        uint32_t scale = low | (high >> 2 * i & 3) << 4;
        td_part_set(parts, d * (float)((int)scale - 32), 0);
        unpack_look_up(b + 8 + 16 * i, td_levels_iq4, 16, parts->q);
    }
}
