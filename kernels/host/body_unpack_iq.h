/* body_unpack.h for the types with codebooks: entries of the grids (types_grids.c) are gathered, a
 * lane being a row, and their level numbers spread to bytes. Beside each, at bit 3, goes its sign
 * (IQ1: whether the eighth is subtracted), and a look-up of 16 makes the value of both. */
#ifndef TD_KERNELS_HOST_BODY_UNPACK_IQ_H
#define TD_KERNELS_HOST_BODY_UNPACK_IQ_H

#include "kernels/host/body_unpack.h"
#include "kernels/types_unpack.h"

/* Values plus 128: eight levels, then their negatives. */
static const uint8_t iq2_levels[16] = {136, 153, 171, 0, 0, 0, 0, 0, 120, 103, 85, 0, 0, 0, 0, 0};
static const uint8_t iq3_xxs_levels[16] = {132, 140, 148, 156, 164, 172, 180, 190,
                                           124, 116, 108, 100, 92,  84,  76,  66};
static const uint8_t iq3_s_levels[16] = {129, 131, 133, 135, 137, 139, 141, 143,
                                         127, 125, 123, 121, 119, 117, 115, 113};
/* 8 v + 1, then 8 v - 1, of v = -1, 0, 1 */
static const uint8_t iq1_levels[16] = {121, 129, 137, 0, 0, 0, 0, 0, 119, 127, 135, 0, 0, 0, 0, 0};

/* Eight signs of 7 bits from bit i: the eighth makes their number even. */
INLINE vi eight_signs(vi word, const uint32_t i)
{
    vi seven = vi_and(vi_srl(word, i), vi_set1(127));
    vi odd = vi_xor(seven, vi_srl(seven, 4));
    odd = vi_xor(odd, vi_srl(odd, 2));
    odd = vi_and(vi_xor(odd, vi_srl(odd, 1)), vi_set1(1));
    return vi_or(seven, vi_shl(odd, 7));
}

/* Bits n_bits from bit i. */
INLINE vi field(vi word, const uint32_t i, const uint32_t n_bits)
{
    return vi_and(vi_srl(word, i), vi_set1((1 << n_bits) - 1));
}

/* Two groups of four: eight values of an entry. */
INLINE void put_iq2(vi entry, vi signs, uint8_t (*q)[TD_PANEL_ROWS][4], uint32_t lane0)
{
    UNROLL for (uint32_t h = 0; h < 2; h++)
    {
        vi u = vi_or(spread_twos(entry, 8 * h), vi_shl(spread_bits(signs, 4 * h), 3));
        vb_store(&q[h][lane0][0], vb_look_up(iq2_levels, vb_of_vi(u)));
    }
}

/* Four values of an entry, with the signs from bit i. */
INLINE void put_iq3(vi entry, vi signs, const uint32_t i, const uint8_t *levels,
                    uint8_t (*q)[TD_PANEL_ROWS][4], uint32_t lane0)
{
    vi u = vi_or(spread_threes(entry), vi_shl(spread_bits(signs, i), 3));
    vb_store(&q[0][lane0][0], vb_look_up(levels, vb_of_vi(u)));
}

/* Eight values; is_minus is 0 or 1. */
INLINE void put_iq1(vi entry, vi is_minus, uint8_t (*q)[TD_PANEL_ROWS][4], uint32_t lane0)
{
    vi minus = vi_mul(is_minus, vi_set1(0x08080808));
    UNROLL for (uint32_t h = 0; h < 2; h++) vb_store(
        &q[h][lane0][0], vb_look_up(iq1_levels, vb_of_vi(vi_or(spread_twos(entry, 8 * h), minus))));
}

/* d * (s + 1/2) * by; every product is exact. */
INLINE vf half_step(vf d, vi s, const float by)
{
    return vf_mul(vf_mul(d, vf_add(vf_of_vi(s), vf_set1(0.5f))), vf_set1(by));
}

/* d * (2 s + 1) * by */
INLINE vf odd_step(vf d, vi s, const float by)
{
    vi odd = vi_add(vi_shl(s, 1), vi_set1(1));
    return vf_mul(vf_mul(d, vf_of_vi(odd)), vf_set1(by));
}

static void unpack_iq2_xxs(const uint8_t *block, td_host_parts *out, uint32_t part)
{
    EACH_LANE0 for (uint32_t i = 0; i < 8; i++)
    {
        vi index = vi_of(block, 2 * i, lane0), rest = vi_of(block, 2 * i + 1, lane0);
        UNROLL for (uint32_t l = 0; l < 4; l++)
            put_iq2(vi_gather(td_grid_iq2_xxs, field(index, 8 * l, 8)), eight_signs(rest, 7 * l),
                    &out->q[part + i][2 * l], lane0);
        vf_store(out->scale[part + i][0] + lane0,
                 half_step(odd_half(block, 16, lane0), vi_srl(rest, 28), 0.25f));
    }
}

/* Two scales of 4 bits from bit i of a word. */
INLINE void put_iq2_scales(const uint8_t *block, const uint32_t n_words, vi word, const uint32_t i,
                           float (*scale)[TD_PANEL_ROWS], uint32_t lane0)
{
    vf d = odd_half(block, n_words, lane0);
    UNROLL for (uint32_t h = 0; h < 2; h++)
        vf_store(scale[h] + lane0, half_step(d, field(word, i + 4 * h, 4), 0.25f));
}

static void unpack_iq2_xs(const uint8_t *block, td_host_parts *out, uint32_t part)
{
    EACH_LANE0 UNROLL for (uint32_t i = 0; i < 8; i++)
    {
        UNROLL for (uint32_t l = 0; l < 4; l++)
        {
            vi both = vi_of(block, 2 * i + l / 2, lane0);
            put_iq2(vi_gather(td_grid_iq2_xs, field(both, l % 2 * 16, 9)),
                    eight_signs(both, l % 2 * 16 + 9), &out->q[part + i][2 * l], lane0);
        }
        put_iq2_scales(block, 18, vi_of(block, 16 + i / 4, lane0), i % 4 * 8, out->scale[part + i],
                       lane0);
    }
}

static void unpack_iq2_s(const uint8_t *block, td_host_parts *out, uint32_t part)
{
    EACH_LANE0 UNROLL for (uint32_t i = 0; i < 8; i++)
    {
        vi low = vi_of(block, i, lane0), signs = vi_of(block, 8 + i, lane0);
        vi high = vi_of(block, 16 + i / 4, lane0);
        UNROLL for (uint32_t l = 0; l < 4; l++)
        {
            vi top = vi_shl(field(high, i % 4 * 8 + 2 * l, 2), 8);
            put_iq2(vi_gather(td_grid_iq2_s, vi_or(field(low, 8 * l, 8), top)),
                    field(signs, 8 * l, 8), &out->q[part + i][2 * l], lane0);
        }
        put_iq2_scales(block, 20, vi_of(block, 18 + i / 4, lane0), i % 4 * 8, out->scale[part + i],
                       lane0);
    }
}

static void unpack_iq3_xxs(const uint8_t *block, td_host_parts *out, uint32_t part)
{
    EACH_LANE0 for (uint32_t i = 0; i < 8; i++)
    {
        vi rest = vi_of(block, 16 + i, lane0);
        UNROLL for (uint32_t l = 0; l < 8; l++)
        {
            vi index = field(vi_of(block, 2 * i + l / 4, lane0), l % 4 * 8, 8);
            put_iq3(vi_gather(td_grid_iq3_xxs, index), eight_signs(rest, l / 2 * 7), l % 2 * 4,
                    iq3_xxs_levels, &out->q[part + i][l], lane0);
        }
        vf_store(out->scale[part + i][0] + lane0,
                 half_step(odd_half(block, 24, lane0), vi_srl(rest, 28), 0.5f));
    }
}

static void unpack_iq3_s(const uint8_t *block, td_host_parts *out, uint32_t part)
{
    EACH_LANE0 UNROLL for (uint32_t i = 0; i < 8; i++)
    {
        vi high = vi_of(block, 16 + i / 4, lane0), signs = vi_of(block, 18 + i, lane0);
        UNROLL for (uint32_t l = 0; l < 8; l++)
        {
            vi low = field(vi_of(block, 2 * i + l / 4, lane0), l % 4 * 8, 8);
            vi top = vi_shl(field(high, i % 4 * 8 + l, 1), 8);
            put_iq3(vi_gather(td_grid_iq3_s, vi_or(low, top)), signs, 4 * l, iq3_s_levels,
                    &out->q[part + i][l], lane0);
        }
        vf_store(out->scale[part + i][0] + lane0,
                 odd_step(odd_half(block, 27, lane0), field(vi_of(block, 26, lane0), 4 * i, 4), 1));
    }
}

static void unpack_iq1_s(const uint8_t *block, td_host_parts *out, uint32_t part)
{
    EACH_LANE0 UNROLL for (uint32_t i = 0; i < 8; i++)
    {
        vi low = vi_of(block, i, lane0), rest = vi_srl(vi_of(block, 8 + i / 2, lane0), i % 2 * 16);
        UNROLL for (uint32_t l = 0; l < 4; l++)
        {
            vi index = vi_or(field(low, 8 * l, 8), vi_shl(field(rest, 3 * l, 3), 8));
            put_iq1(vi_gather(td_grid_iq1, index), field(rest, 15, 1), &out->q[part + i][2 * l],
                    lane0);
        }
        vf_store(out->scale[part + i][0] + lane0,
                 odd_step(odd_half(block, 12, lane0), field(rest, 12, 3), 0.125f));
    }
}

static void unpack_iq1_m(const uint8_t *block, td_host_parts *out, uint32_t part)
{
    EACH_LANE0
    {
        vi tail[2] = {vi_of(block, 12, lane0), vi_of(block, 13, lane0)};
        vi half = vi_or(field(tail[0], 12, 4), vi_shl(field(tail[0], 28, 4), 4));
        half = vi_or(half, vi_shl(field(tail[1], 12, 4), 8));
        vf d = vf_of_f16(vi_or(half, vi_shl(field(tail[1], 28, 4), 12)));
        UNROLL for (uint32_t i = 0; i < 8; i++)
        {
            vi low = vi_of(block, i, lane0), rest = vi_of(block, 8 + i / 2, lane0);
            UNROLL for (uint32_t l = 0; l < 4; l++)
            {
                const uint32_t at = i % 2 * 16 + 4 * l;
                vi index = vi_or(field(low, 8 * l, 8), vi_shl(field(rest, at, 3), 8));
                put_iq1(vi_gather(td_grid_iq1, index), field(rest, at + 3, 1),
                        &out->q[part + i][2 * l], lane0);
            }
            UNROLL for (uint32_t h = 0; h < 2; h++) vf_store(
                out->scale[part + i][h] + lane0,
                odd_step(d, field(tail[i / 4], i / 2 % 2 * 16 + i % 2 * 6 + 3 * h, 3), 0.125f));
        }
    }
}

/* Where the parts of a type come from. */
static const part_source *find_source(const td_type_info *type)
{
    static const part_source by_id[] = {
        [TD_TYPE_Q4_0] = {unpack_q4_0, KIND_NIBBLES, 2},
        [TD_TYPE_Q4_K] = {unpack_q4_k, KIND_NIBBLES_MINIMUM, 8},
        [TD_TYPE_Q6_K] = {unpack_q6_k, KIND_SIXES_BY_16, 8},
        [TD_TYPE_Q4_1] = {unpack_q4_1, KIND_NIBBLES_MINIMUM, 0},
        [TD_TYPE_Q5_0] = {unpack_q5_0, KIND_FIVES, 0},
        [TD_TYPE_Q5_1] = {unpack_q5_1, KIND_FIVES_MINIMUM, 0},
        [TD_TYPE_Q2_K] = {unpack_q2_k, KIND_TWOS_BY_16_MINIMUM, 0},
        [TD_TYPE_Q3_K] = {unpack_q3_k, KIND_THREES_BY_16, 0},
        [TD_TYPE_Q5_K] = {unpack_q5_k, KIND_FIVES_MINIMUM, 0},
        [TD_TYPE_IQ2_XXS] = {unpack_iq2_xxs, KIND_PLAIN, 0},
        [TD_TYPE_IQ2_XS] = {unpack_iq2_xs, KIND_PLAIN_BY_16, 0},
        [TD_TYPE_IQ3_XXS] = {unpack_iq3_xxs, KIND_PLAIN, 0},
        [TD_TYPE_IQ1_S] = {unpack_iq1_s, KIND_PLAIN, 0},
        [TD_TYPE_IQ4_NL] = {unpack_iq4_nl, KIND_PLAIN, 0},
        [TD_TYPE_IQ3_S] = {unpack_iq3_s, KIND_PLAIN, 0},
        [TD_TYPE_IQ2_S] = {unpack_iq2_s, KIND_PLAIN_BY_16, 0},
        [TD_TYPE_IQ4_XS] = {unpack_iq4_xs, KIND_PLAIN, 0},
        [TD_TYPE_IQ1_M] = {unpack_iq1_m, KIND_PLAIN_BY_16, 0},
        [TD_TYPE_TQ1_0] = {unpack_tq1_0, KIND_PLAIN, 0},
        [TD_TYPE_TQ2_0] = {unpack_tq2_0, KIND_PLAIN, 0},
        [TD_TYPE_MXFP4] = {unpack_mxfp4, KIND_PLAIN, 0},
        [TD_TYPE_NVFP4] = {unpack_nvfp4, KIND_PLAIN_BY_16, 0},
        [TD_TYPE_Q1_0] = {unpack_q1_0, KIND_PLAIN, 0},
        [TD_TYPE_Q2_0] = {unpack_q2_0, KIND_PLAIN, 0},
    };
    TD_ASSERT(type->id < TD_COUNT(by_id) && by_id[type->id].unpack);
    const part_source *source = &by_id[type->id];
    TD_ASSERT(part_kinds[source->kind].is_by_16 == type->is_by_16 &&
              part_kinds[source->kind].has_minimum == type->has_minimum);
    return source;
}

#endif
