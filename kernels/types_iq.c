/* Unpackers of the IQ types with codebooks: an index stands for 8 values (IQ3: 4) of a grid
 * (types_grids.c). IQ2 and IQ3 have magnitudes there and signs beside the index; IQ1 has -1, 0, 1
 * and adds or subtracts an eighth, which makes 8 v +- 1 with an eighth of the scale: exact too. */
#include "kernels/types_unpack.h"

/* Eight signs in 7 bits: the eighth makes their number even. */
static uint32_t eight_signs(uint32_t seven)
{
    seven &= 127;
    return seven | (uint32_t)__builtin_parity(seven) << 7;
}

/* Eight magnitudes, bit j of `signs` set where value j is negative. */
static void put_iq2(uint32_t entry, uint32_t signs, int8_t *q)
{
    static const int8_t levels[4] = {8, 25, 43, 0};
    for (uint32_t j = 0; j < 8; j++) {
        int level = levels[entry >> 2 * j & 3];
        q[j] = (int8_t)(signs >> j & 1 ? -level : level);
    }
}

/* Four magnitudes, as above. */
static void put_iq3(uint32_t entry, uint32_t signs, const int8_t *levels, int8_t *q)
{
    for (uint32_t j = 0; j < 4; j++) {
        int level = levels[entry >> 3 * j & 7];
        q[j] = (int8_t)(signs >> j & 1 ? -level : level);
    }
}

static void put_iq1(uint32_t entry, bool is_minus, int8_t *q)
{
    for (uint32_t j = 0; j < 8; j++)
        q[j] = (int8_t)(((int)(entry >> 2 * j & 3) - 1) * 8 + (is_minus ? -1 : 1));
}

/* IQ2_XXS: {f16 d; 8 times u8 index[4], u32 rest}: of `rest` 4 times 7 bits of signs, then a scale
 * of 4 bits; value = d * (scale + 1/2) / 4 * grid. */
void td_unpack_iq2_xxs(const void *block, td_type_part *parts)
{
    const uint8_t *b = block;
    float d = td_load_f16(b);
    for (uint32_t i = 0; i < 8; i++, parts++) {
        const uint8_t *index = b + 2 + 8 * i;
        uint32_t rest = td_load_u32(index + 4);
        td_part_set(parts, d * (0.5f + (float)(rest >> 28)) * 0.25f, 0);
        for (uint32_t l = 0; l < 4; l++)
            put_iq2(td_grid_iq2_xxs[index[l]], eight_signs(rest >> 7 * l), parts->q + 8 * l);
    }
}

/* IQ2_XS: {f16 d; u16 index[32]; u8 scales[8]}: 9 bits of index, 7 of signs; a nibble of scale per
 * 16; value as IQ2_XXS. */
void td_unpack_iq2_xs(const void *block, td_type_part *parts)
{
    const uint8_t *b = block;
    float d = td_load_f16(b);
    for (uint32_t i = 0; i < 8; i++, parts++) {
        for (uint32_t h = 0; h < 2; h++) {
            parts->scale[h] = d * (0.5f + (float)(b[66 + i] >> 4 * h & 15)) * 0.25f;
            parts->minimum[h] = 0;
        }
        for (uint32_t l = 0; l < 4; l++) {
            uint32_t index = td_load_u16(b + 2 + 8 * i + 2 * l);
            put_iq2(td_grid_iq2_xs[index & 511], eight_signs(index >> 9), parts->q + 8 * l);
        }
    }
}

/* IQ2_S: {f16 d; u8 index[32]; u8 signs[32]; u8 high[8]; u8 scales[8]}: index of 10 bits, the top
 * two of index l of sub-block i being bits 2l of high[i]; the rest as IQ2_XS. */
void td_unpack_iq2_s(const void *block, td_type_part *parts)
{
    const uint8_t *b = block;
    float d = td_load_f16(b);
    for (uint32_t i = 0; i < 8; i++, parts++) {
        for (uint32_t h = 0; h < 2; h++) {
            parts->scale[h] = d * (0.5f + (float)(b[74 + i] >> 4 * h & 15)) * 0.25f;
            parts->minimum[h] = 0;
        }
        for (uint32_t l = 0; l < 4; l++) {
            uint32_t index = b[2 + 4 * i + l] | (b[66 + i] >> 2 * l & 3u) << 8;
            put_iq2(td_grid_iq2_s[index], b[34 + 4 * i + l], parts->q + 8 * l);
        }
    }
}

/* IQ3_XXS: {f16 d; u8 index[64]; u32 rest[8]}: `rest` as in IQ2_XXS, two indices to a byte of
 * signs; value = d * (scale + 1/2) / 2 * grid. */
void td_unpack_iq3_xxs(const void *block, td_type_part *parts)
{
    static const int8_t levels[8] = {4, 12, 20, 28, 36, 44, 52, 62};
    const uint8_t *b = block;
    float d = td_load_f16(b);
    for (uint32_t i = 0; i < 8; i++, parts++) {
        uint32_t rest = td_load_u32(b + 66 + 4 * i);
        td_part_set(parts, d * (0.5f + (float)(rest >> 28)) * 0.5f, 0);
        for (uint32_t l = 0; l < 8; l++) {
            uint32_t signs = eight_signs(rest >> l / 2 * 7) >> l % 2 * 4;
            put_iq3(td_grid_iq3_xxs[b[2 + 8 * i + l]], signs, levels, parts->q + 4 * l);
        }
    }
}

/* IQ3_S: {f16 d; u8 index[64]; u8 high[8]; u8 signs[32]; u8 scales[4]}: index of 9 bits, the top
 * one of index l of sub-block i being bit l of high[i]; a nibble of scale per 32; value = d * (2
 * scale + 1) * grid. */
void td_unpack_iq3_s(const void *block, td_type_part *parts)
{
    static const int8_t levels[8] = {1, 3, 5, 7, 9, 11, 13, 15};
    const uint8_t *b = block;
    float d = td_load_f16(b);
    for (uint32_t i = 0; i < 8; i++, parts++) {
        int scale = b[106 + i / 2] >> i % 2 * 4 & 15;
        td_part_set(parts, d * (float)(2 * scale + 1), 0);
        for (uint32_t l = 0; l < 8; l++) {
            uint32_t index = b[2 + 8 * i + l] | (b[66 + i] >> l & 1u) << 8;
            uint32_t signs = (uint32_t)b[74 + 4 * i + l / 2] >> l % 2 * 4;
            put_iq3(td_grid_iq3_s[index], signs, levels, parts->q + 4 * l);
        }
    }
}

/* IQ1_S: {f16 d; u8 index[32]; u16 rest[8]}: of `rest` 4 times the top 3 bits of an index, a scale
 * of 3 bits, and whether the eighth is subtracted; value = d * (2 scale + 1) * (grid +- 1/8). */
void td_unpack_iq1_s(const void *block, td_type_part *parts)
{
    const uint8_t *b = block;
    float d = td_load_f16(b);
    for (uint32_t i = 0; i < 8; i++, parts++) {
        uint32_t rest = td_load_u16(b + 34 + 2 * i);
        td_part_set(parts, d * (float)(2 * (rest >> 12 & 7) + 1) * 0.125f, 0);
        for (uint32_t l = 0; l < 4; l++) {
            uint32_t index = b[2 + 4 * i + l] | (rest >> 3 * l & 7) << 8;
            put_iq1(td_grid_iq1[index], rest >> 15, parts->q + 8 * l);
        }
    }
}

/* IQ1_M: {u8 index[32]; u8 rest[16]; u16 scales[4]}: a nibble of `rest` per index: its top 3 bits
 * and whether the eighth is subtracted. The top nibbles of `scales` make the half d; below them
 * are four scales of 3 bits, one per 16 elements. */
void td_unpack_iq1_m(const void *block, td_type_part *parts)
{
    const uint8_t *b = block;
    uint32_t half = 0;
    for (uint32_t i = 0; i < 4; i++)
        half |= (td_load_u16(b + 48 + 2 * i) >> 12) << 4 * i;
    float d = td_f16_to_f32((uint16_t)half);
    for (uint32_t i = 0; i < 8; i++, parts++) {
        uint32_t scales = td_load_u16(b + 48 + i / 2 * 2) >> i % 2 * 6;
        for (uint32_t h = 0; h < 2; h++) {
            parts->scale[h] = d * (float)(2 * (scales >> 3 * h & 7) + 1) * 0.125f;
            parts->minimum[h] = 0;
        }
        for (uint32_t l = 0; l < 4; l++) {
            uint32_t rest = (uint32_t)b[32 + 2 * i + l / 2] >> l % 2 * 4;
            uint32_t index = b[4 * i + l] | (rest & 7) << 8;
            put_iq1(td_grid_iq1[index], rest >> 3 & 1, parts->q + 8 * l);
        }
    }
}
