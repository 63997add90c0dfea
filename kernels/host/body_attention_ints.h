/* Attention over quantized keys and values, by sums of integers, which are exact. Of a page and a
 * block of 32 elements the quants are decoded once for all queries, as pairs of int16 in a scratch
 * that stays in the first level cache: two elements of a key, or an element of two values. What
 * they are multiplied by are pairs of int16 too: a query, quantized to 15 bits once, or the weights
 * of a page. An instruction adds two products a lane, so this takes half the arithmetic of floats;
 * 15 bits are 2^8 times finer than the quants they meet. arith.h has the formulas. */
#ifndef TD_KERNELS_HOST_BODY_ATTENTION_INTS_H
#define TD_KERNELS_HOST_BODY_ATTENTION_INTS_H

#include "kernels/host/body_attention_quants.h"

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

INLINE void store_pairs(int32_t *to, const int8_t *a, const int8_t *b)
{
    vf_store((float *)(void *)to, vf_bits(vi_pairs_i8(a, b)));
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
        int32_t sum = 0;
        for (uint32_t i = 0; i < BLOCK; i++)
            sum += to->q[d + i];
        to->sums[d / BLOCK] = (float)sum;
    }
}

/* quants: [BLOCK][POSITIONS] */
static void decode_key_block(const int8_t *quants, int_scratch *to)
{
    int32_t *x = to->x;
    for (uint32_t lane = 0; lane < POSITIONS; lane += INT_LANES)
        for (uint32_t d = 0; d < BLOCK; d += 2, x += INT_LANES)
            EACH_INT_CHAIN
            {
                const int8_t *first = quants + d * POSITIONS + lane + c * VL;
                store_pairs(x + c * VL, first, first + POSITIONS);
            }
}

/* s[lane..] += q[d0..] . k, from 0 with d0, for a block. x: [BLOCK / 2][INT_LANES] */
INLINE void score_wide(query *const *qs, const int32_t *x, const uint16_t *scales, uint32_t d0,
                       uint32_t lane, const bool has_minimum, const uint32_t n)
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
            if (has_minimum)
                total = vf_fma(vf_load_f16(scales + POSITIONS + lane + c * VL),
                               vf_set1(qs[i]->wide->sums[d0 / BLOCK]), total);
            vf_store(s, vf_fma(total, by, d0 ? vf_load(s) : vf_zero()));
        }
    }
}

static void score_wide_any(query *const *qs, const int32_t *x, const uint16_t *scales, uint32_t d0,
                           uint32_t lane, bool has_minimum, uint32_t n)
{
#define TILE(n) score_wide(qs, x, scales, d0, lane, has_minimum, n)
    EACH_TILE_SIZE(n, TILE)
#undef TILE
}

/* As score_many, of quantized keys. */
static void score_ints(const td_host_kv *kv, const uint8_t *k, query *const *qs, uint32_t n,
                       fetch *ahead)
{
    int_scratch keys;
    block_bytes bytes;
    uint32_t n_k = kv->padded_k;
    bool has_minimum = kv->base.params.type_k->has_minimum;
    const query_tiles first = first_tile(n, INT_QUERIES);
    cut_fetch(ahead, n_k / BLOCK * (POSITIONS / INT_LANES) * td_div_up(n, INT_QUERIES));
    for (uint32_t d0 = 0; d0 < n_k; d0 += BLOCK) {
        const uint16_t *scales = key_scales(kv, k, d0 / BLOCK);
        decode_key_block(key_quants(kv, k, d0 / BLOCK, &bytes), &keys);
        for (uint32_t lane = 0; lane < POSITIONS; lane += INT_LANES)
            EACH_TILE(t, first)
            {
                fetch_piece(ahead);
                score_wide_any(qs + t.begin, keys.x + lane * (BLOCK / 2), scales, d0, lane,
                               has_minimum, t.n);
            }
    }
}

/* A block of the values of a page: its scales and minimums, f32, and its quants. */
typedef struct {
    int_scratch quants;
    _Alignas(64) float scales[POSITIONS], minimums[POSITIONS];
} value_block;

static void decode_value_block(const td_host_kv *kv, const uint8_t *v, value_block *to)
{
    block_bytes bytes;
    size_t row_bytes;
    uint16_t halves[2][POSITIONS];
    uint32_t n_halves = td_host_scale_bytes(kv->base.params.type_v) / 2;
    const int8_t *q = value_quants(kv, v, &bytes, &row_bytes);
    for (uint32_t j = 0; j < POSITIONS; j++, v += kv->row_bytes_v)
        for (uint32_t i = 0; i < n_halves; i++)
            memcpy(&halves[i][j], v + 2 * i, sizeof halves[i][j]);
    for (uint32_t j = 0; j < POSITIONS; j += VL) {
        vf_store(to->scales + j, vf_load_f16(halves[0] + j));
        if (n_halves == 2)
            vf_store(to->minimums + j, vf_load_f16(halves[1] + j));
    }
    for (uint32_t j = 0; j < POSITIONS; j += 2, q += 2 * row_bytes)
        UNROLL for (uint32_t d = 0; d < BLOCK; d += VL) store_pairs(
            to->quants.x + d / INT_LANES * INT_LANES * PAIRS + j / 2 * INT_LANES + d % INT_LANES,
            q + d, q + row_bytes + d);
}

/* The values of a latent cache, which are columns of its keys. */
static void decode_latent_block(const td_host_kv *kv, const uint8_t *k, uint32_t b, value_block *to)
{
    block_bytes bytes;
    const uint16_t *scales = key_scales(kv, k, b);
    const int8_t *quants = key_quants(kv, k, b, &bytes);
    for (uint32_t j = 0; j < POSITIONS; j += VL) {
        vf_store(to->scales + j, vf_load_f16(scales + j));
        if (kv->base.params.type_k->has_minimum)
            vf_store(to->minimums + j, vf_load_f16(scales + POSITIONS + j));
    }
    for (uint32_t d = 0; d < BLOCK; d += 4) {
        _Alignas(64) int16_t columns[4][POSITIONS];
        for (uint32_t i = 0; i < 4; i++)
            for (uint32_t j = 0; j < POSITIONS; j += 16) {
                vi q[VECTORS];
                UNROLL for (uint32_t v = 0; v < VECTORS; v++) q[v] =
                    vi_load_i8(quants + (d + i) * POSITIONS + j + v * VL);
                v16_store_i16(&columns[i][j], q);
            }
        int32_t *x = to->quants.x + d / INT_LANES * INT_LANES * PAIRS + d % INT_LANES;
        for (uint32_t pair = 0; pair < PAIRS; pair += 4)
            transpose(&columns[0][2 * pair], PAIRS, x + pair * INT_LANES, INT_LANES);
    }
}

/* to = x at positions [begin, end), else 0. */
INLINE void copy_visible(const float *x, uint32_t begin, uint32_t end, float *to)
{
    memcpy(to, x, POSITIONS * sizeof *to);
    memset(to, 0, begin * sizeof *to);
    memset(to + end, 0, (POSITIONS - end) * sizeof *to);
}

/* What a page's weights are multiplied by for a block's scales, for a query that sees [begin,
 * end): up to TD_WIDE_MAX, and `scale` undoes that. */
static void raise_scales(const float *scales, uint32_t begin, uint32_t end, float *raised,
                         float *scale)
{
    uint32_t amax[2];
    copy_visible(scales, begin, end, raised);
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
    float minimum; /* of all columns of the block */
} wide_weights;

/* What the minimums of visible positions add to each column. */
static float weigh_minimums(const query *q, const float *minimums)
{
    _Alignas(64) float visible[POSITIONS];
    vf sum[VECTORS];
    copy_visible(minimums, q->begin, q->end, visible);
    UNROLL for (uint32_t v = 0; v < VECTORS; v++) sum[v] = vf_zero();
    for (uint32_t j = 0; j < POSITIONS; j += 16)
        UNROLL for (uint32_t v = 0; v < VECTORS; v++) sum[v] =
            vf_fma(vf_load(q->s + j + v * VL), vf_load(visible + j + v * VL), sum[v]);
    return v16_sum(sum);
}

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
                     uint32_t n_v, const bool has_minimum, const uint32_t n)
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
            if (has_minimum)
                old = vf_add(old, vf_set1(weights[i].minimum));
            vf_store_n(y, vf_fma(vf_of_vi(acc[i][c]), by, old), n_lanes);
        }
    }
}

static void add_wide_any(query *const *qs, const wide_weights *weights, const int32_t *x,
                         uint32_t d0, uint32_t n_v, bool has_minimum, uint32_t n)
{
#define TILE(n) add_wide(qs, weights, x, d0, n_v, has_minimum, n)
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
            decode_latent_block(kv, v, b, &values);
        else
            decode_value_block(kv, v + b * type->block_bytes, &values);
        weigh(qs, n, values.scales, weights);
        for (uint32_t i = 0; type->has_minimum && i < n; i++)
            weights[i].minimum = weigh_minimums(qs[i], values.minimums);
        for (uint32_t d = 0; d < BLOCK; d += INT_LANES)
            EACH_TILE(t, first)
            {
                fetch_piece(ahead);
                add_wide_any(qs + t.begin, weights + t.begin, values.quants.x + d * PAIRS,
                             b * BLOCK + d, n_v, type->has_minimum, t.n);
            }
    }
}

#endif
