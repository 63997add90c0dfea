/* Attention over quantized keys and values, by sums of integers, which are exact. Of a page and a
 * block of 32 elements the quants are decoded once for all queries, as pairs of int16 in a scratch
 * that stays in the first level cache: two elements of a key, or an element of two values. What
 * they are multiplied by are pairs of int16 too: a query, quantized to 15 bits once, or the weights
 * of a page. An instruction adds two products a lane, so this takes half the arithmetic of floats;
 * 15 bits are 2^8 times finer than the quants they meet. arith.h has the formulas. */
#ifndef TD_KERNELS_HOST_BODY_ATTENTION_INTS_H
#define TD_KERNELS_HOST_BODY_ATTENTION_INTS_H

#include "kernels/host/body_attention_many.h"

#define BLOCK      32u
#define PAIRS      (POSITIONS / 2)
#define INT_CHAINS 2u
#define INT_LANES  (INT_CHAINS * VL)
#define INT_QUERIES                                                                                \
    (VL == 16 ? 6u : 4u) /* of a tile: where registers are few, products need some */

/* Unrolled so far: a loop of one pair spends a third of its instructions on copies. */
#define PAIRS_AT_ONCE 4u
#define EACH_PAIR     UNROLL for (uint32_t p = 0; p < PAIRS_AT_ONCE; p++, x += INT_LANES)

#define EACH_INT_CHAIN UNROLL for (uint32_t c = 0; c < INT_CHAINS; c++)

/* Keys [POSITIONS / INT_LANES][BLOCK / 2][INT_LANES]; values [BLOCK / INT_LANES][PAIRS]
 * [INT_LANES]: pairs of one block. */
typedef struct {
    _Alignas(64) int32_t x[BLOCK / 2 * POSITIONS];
} int_scratch;

/* Pairs of the quants at a and at b, which are of element d, and so of its half of a byte. */
INLINE void store_pairs(int32_t *to, const uint8_t *a, const uint8_t *b, uint32_t d,
                        const bool is_q8)
{
    vi pairs = is_q8 ? vi_pairs_i8((const int8_t *)a, (const int8_t *)b)
                     : vi_pairs_i4(a, b, d % BLOCK >= BLOCK / 2);
    vf_store((float *)(void *)to, vf_bits(pairs));
}

INLINE vi load_pair(const int16_t *p)
{
    int32_t two;
    memcpy(&two, p, sizeof two);
    return vi_set1(two);
}

/* What amax is multiplied by to become TD_WIDE_MAX; 0 where all is to be 0. */
INLINE float raise_of(uint32_t amax_bits, float *scale)
{
    float amax = td_arith_from_bits(amax_bits);
    bool is_zero = amax_bits >= 0x7f800000u || amax < TD_WIDE_AMAX_MIN;
    *scale = amax_bits >= 0x7f800000u ? NAN : is_zero ? 0.0f : amax / TD_WIDE_MAX;
    return is_zero ? 0.0f : TD_WIDE_MAX / amax;
}

/* to[i] = x[i] * by * w[i], or x[i] * by without w; n a multiple of 16. By 0 gives 0. */
INLINE void round_wide(const float *x, float by, const float *w, const uint32_t n, int16_t *to)
{
    if (by == 0) {
        memset(to, 0, n * sizeof *to);
        return;
    }
    for (uint32_t i = 0; i < n; i += 16) {
        vi q[VECTORS];
        UNROLL for (uint32_t v = 0; v < VECTORS; v++)
        {
            vf a = vf_mul(vf_load(x + i + v * VL), vf_set1(by));
            q[v] = vi_of_vf(w ? vf_mul(a, vf_load(w + i + v * VL)) : a);
        }
        v16_store_i16(to + i, q);
    }
}

static void quantize_query(const float *q, uint32_t n, wide_query *to)
{
    for (uint32_t d = 0; d < n; d += BLOCK) {
        float x[BLOCK] = {0};
        uint32_t amax;
        memcpy(x, q + d, td_min_u32(n - d, BLOCK) * sizeof *x);
        find_amax(x, 1, &amax);
        float by = raise_of(amax, &to->d[d / BLOCK]);
        round_wide(x, by, NULL, BLOCK, to->q + d);
    }
}

/* Where element d of the keys of a page lies, position by position. */
INLINE const uint8_t *key_quants_at(const uint8_t *k, uint32_t d, bool is_q8)
{
    return k + (is_q8 ? d : d / BLOCK * (BLOCK / 2) + d % (BLOCK / 2)) * POSITIONS;
}

INLINE void decode_key_block(const uint8_t *k, uint32_t d0, int_scratch *to, const bool is_q8)
{
    int32_t *x = to->x;
    for (uint32_t lane = 0; lane < POSITIONS; lane += INT_LANES)
        for (uint32_t d = d0; d < d0 + BLOCK; d += 2, x += INT_LANES)
            EACH_INT_CHAIN
            {
                const uint8_t *first = key_quants_at(k, d, is_q8) + lane + c * VL;
                store_pairs(x + c * VL, first, first + POSITIONS, d, is_q8);
            }
}

/* s[lane..] += q[d0..] . k, from 0 with d0, for a block. x: [BLOCK / 2][INT_LANES] */
INLINE void score_wide(query *const *qs, const int32_t *x, const uint16_t *scales, uint32_t d0,
                       uint32_t lane, const uint32_t n)
{
    vi acc[TILE_QUERIES][INT_CHAINS];
    const int16_t *q[TILE_QUERIES];
    EACH_QUERY
    {
        q[i] = qs[i]->wide->q + d0;
        EACH_INT_CHAIN acc[i][c] = vi_set1(0);
    }
    for (uint32_t pair = 0; pair < BLOCK / 2; pair += PAIRS_AT_ONCE)
        EACH_PAIR
        {
            vi key[INT_CHAINS];
            EACH_INT_CHAIN key[c] = vi_load(x + c * VL);
            EACH_QUERY
            {
                vi both = load_pair(q[i] + 2 * (pair + p));
                EACH_INT_CHAIN acc[i][c] = vi_dot2(acc[i][c], key[c], both);
            }
        }
    EACH_QUERY
    {
        vf by = vf_set1(qs[i]->wide->d[d0 / BLOCK]);
        EACH_INT_CHAIN
        {
            float *s = qs[i]->s + lane + c * VL;
            vf total = vf_mul(vf_load_f16(scales + lane + c * VL), vf_of_vi(acc[i][c]));
            vf_store(s, vf_fma(total, by, d0 ? vf_load(s) : vf_zero()));
        }
    }
}

static void score_wide_any(query *const *qs, const int32_t *x, const uint16_t *scales, uint32_t d0,
                           uint32_t lane, uint32_t n)
{
#define TILE(n) score_wide(qs, x, scales, d0, lane, n)
    EACH_TILE_SIZE(n, TILE)
#undef TILE
}

/* As score_many, of quantized keys. */
static void score_ints(const td_host_kv *kv, const uint8_t *k, query *const *qs, uint32_t n,
                       fetch *ahead)
{
    int_scratch keys;
    const uint16_t *scales = (const uint16_t *)(const void *)(k + kv->scales_offset_k);
    uint32_t n_k = kv->padded_k;
    bool is_q8 = kv->base.params.type_k->id == TD_TYPE_Q8_0;
    const query_tiles first = first_tile(n, INT_QUERIES);
    cut_fetch(ahead, n_k / BLOCK * (POSITIONS / INT_LANES) * td_div_up(n, INT_QUERIES));
    for (uint32_t d0 = 0; d0 < n_k; d0 += BLOCK, scales += POSITIONS) {
        if (is_q8)
            decode_key_block(k, d0, &keys, true);
        else
            decode_key_block(k, d0, &keys, false);
        for (uint32_t lane = 0; lane < POSITIONS; lane += INT_LANES)
            EACH_TILE(t, first)
            {
                fetch_piece(ahead);
                score_wide_any(qs + t.begin, keys.x + lane * (BLOCK / 2), scales, d0, lane, t.n);
            }
    }
}

/* A block of the values of a page: its scales, f32, and its quants. */
typedef struct {
    int_scratch quants;
    _Alignas(64) float scales[POSITIONS];
} value_block;

INLINE void decode_value_block(const td_host_kv *kv, const uint8_t *v, value_block *to,
                               const bool is_q8)
{
    for (uint32_t j = 0; j < POSITIONS; j += 2, v += 2 * kv->row_bytes_v) {
        const uint8_t *next = v + kv->row_bytes_v;
        uint16_t halves[2];
        memcpy(&halves[0], v, sizeof halves[0]);
        memcpy(&halves[1], next, sizeof halves[1]);
        to->scales[j] = f32_of_f16(halves[0]);
        to->scales[j + 1] = f32_of_f16(halves[1]);
        UNROLL for (uint32_t d = 0; d < BLOCK; d += VL) store_pairs(
            to->quants.x + d / INT_LANES * INT_LANES * PAIRS + j / 2 * INT_LANES + d % INT_LANES,
            v + 2 + (is_q8 ? d : d % 16), next + 2 + (is_q8 ? d : d % 16), d, is_q8);
    }
}

/* Element d of the keys of VL positions from `lane` on. */
INLINE vi key_quants(const uint8_t *k, uint32_t d, uint32_t lane, bool is_q8)
{
    const uint8_t *at = key_quants_at(k, d, is_q8) + lane;
    if (is_q8)
        return vi_load_i8(at);
    vi pair = vi_load_u8(at);
    return vi_sub(d % 32 < 16 ? vi_and(pair, vi_set1(15)) : vi_srl(pair, 4), vi_set1(8));
}

/* The values of a latent cache, which are columns of its keys. */
static void decode_latent_block(const td_host_kv *kv, const uint8_t *k, uint32_t d0,
                                value_block *to)
{
    const uint16_t *scales = (const uint16_t *)(const void *)(k + kv->scales_offset_k);
    bool is_q8 = kv->base.params.type_k->id == TD_TYPE_Q8_0;
    for (uint32_t j = 0; j < POSITIONS; j += VL)
        vf_store(to->scales + j, vf_load_f16(scales + d0 / BLOCK * POSITIONS + j));
    for (uint32_t d = 0; d < BLOCK; d += 4) {
        _Alignas(64) int16_t columns[4][POSITIONS];
        for (uint32_t i = 0; i < 4; i++)
            for (uint32_t j = 0; j < POSITIONS; j += 16) {
                vi q[VECTORS];
                UNROLL for (uint32_t v = 0; v < VECTORS; v++) q[v] =
                    key_quants(k, d0 + d + i, j + v * VL, is_q8);
                v16_store_i16(&columns[i][j], q);
            }
        int32_t *x = to->quants.x + d / INT_LANES * INT_LANES * PAIRS + d % INT_LANES;
        for (uint32_t pair = 0; pair < PAIRS; pair += 4)
            transpose(&columns[0][2 * pair], PAIRS, x + pair * INT_LANES, INT_LANES);
    }
}

/* What a page's weights are multiplied by for a block's scales, for a query that sees [begin,
 * end): up to TD_WIDE_MAX, and `scale` undoes that. */
static void raise_scales(const float *scales, uint32_t begin, uint32_t end, float *raised,
                         float *scale)
{
    uint32_t amax[2];
    memcpy(raised, scales, POSITIONS * sizeof *raised);
    memset(raised, 0, begin * sizeof *raised);
    memset(raised + end, 0, (POSITIONS - end) * sizeof *raised);
    find_amax(raised, 2, amax);
    float by = raise_of(td_max_u32(amax[0], amax[1]), scale);
    for (uint32_t j = 0; by != 0 && j < POSITIONS; j += VL)
        vf_store(raised + j, vf_mul(vf_load(raised + j), vf_set1(by)));
    if (by == 0)
        memset(raised, 0, POSITIONS * sizeof *raised);
}

typedef struct { /* of one query and a block of values */
    _Alignas(64) int16_t w[POSITIONS];
    float scale;
} wide_weights;

static void weigh(query *const *qs, uint32_t n, const float *scales, wide_weights *to)
{
    _Alignas(64) float raised[POSITIONS];
    float scale = 0;
    for (uint32_t i = 0; i < n; i++) {
        const query *q = qs[i];
        if (i == 0 || q->begin != qs[i - 1]->begin || q->end != qs[i - 1]->end)
            raise_scales(scales, q->begin, q->end, raised, &scale);
        to[i].scale = q->top * scale;
        round_wide(q->s, q->top < TD_WIDE_AMAX_MIN ? 0.0f : 1.0f / q->top, raised, POSITIONS,
                   to[i].w);
    }
}

/* y[d0..] = y * c + weights . values, of INT_LANES columns. x: [PAIRS][INT_LANES] */
INLINE void add_wide(query *const *qs, const wide_weights *weights, const int32_t *x, uint32_t d0,
                     uint32_t n_v, const uint32_t n)
{
    vi acc[TILE_QUERIES][INT_CHAINS];
    EACH_QUERY EACH_INT_CHAIN acc[i][c] = vi_set1(0);
    for (uint32_t pair = 0; pair < PAIRS; pair += PAIRS_AT_ONCE)
        EACH_PAIR
        {
            vi value[INT_CHAINS];
            EACH_INT_CHAIN value[c] = vi_load(x + c * VL);
            EACH_QUERY
            {
                vi both = load_pair(weights[i].w + 2 * (pair + p));
                EACH_INT_CHAIN acc[i][c] = vi_dot2(acc[i][c], value[c], both);
            }
        }
    EACH_QUERY
    {
        vf by = vf_set1(weights[i].scale), before = vf_set1(qs[i]->c);
        EACH_INT_CHAIN
        {
            uint32_t n_lanes = lanes_left(n_v, d0 + c * VL);
            float *y = qs[i]->y + (n_lanes ? d0 + c * VL : 0);
            vf old = vf_mul(vf_load_n(y, n_lanes), before);
            vf_store_n(y, vf_fma(vf_of_vi(acc[i][c]), by, old), n_lanes);
        }
    }
}

static void add_wide_any(query *const *qs, const wide_weights *weights, const int32_t *x,
                         uint32_t d0, uint32_t n_v, uint32_t n)
{
#define TILE(n) add_wide(qs, weights, x, d0, n_v, n)
    EACH_TILE_SIZE(n, TILE)
#undef TILE
}

/* As add_many, of quantized values. */
static void add_ints(const td_host_kv *kv, const uint8_t *v, query *const *qs, uint32_t n,
                     fetch *ahead)
{
    value_block values;
    wide_weights weights[TD_HOST_QUERIES_MAX];
    const td_type_info *type = kv->base.params.type_v;
    uint32_t n_v = kv->base.params.head_dim_v, n_blocks = td_div_up(n_v, BLOCK);
    const query_tiles first = first_tile(n, INT_QUERIES);
    cut_fetch(ahead, n_blocks * (BLOCK / INT_LANES) * td_div_up(n, INT_QUERIES));
    for (uint32_t b = 0; b < n_blocks; b++) {
        if (kv->base.params.is_latent)
            decode_latent_block(kv, v, b * BLOCK, &values);
        else if (type->id == TD_TYPE_Q8_0)
            decode_value_block(kv, v + b * type->block_bytes, &values, true);
        else
            decode_value_block(kv, v + b * type->block_bytes, &values, false);
        weigh(qs, n, values.scales, weights);
        for (uint32_t d = 0; d < BLOCK; d += INT_LANES)
            EACH_TILE(t, first)
            {
                fetch_piece(ahead);
                add_wide_any(qs + t.begin, weights + t.begin, values.quants.x + d * PAIRS,
                             b * BLOCK + d, n_v, t.n);
            }
    }
}

#endif
