/* Attention of many queries over one page: its keys, then its values, are decoded in pieces of
 * D_CHUNK elements into a scratch that stays in the first level cache, and tiles of up to
 * TILE_QUERIES queries run over that as products of matrices do. A query's sums are those of
 * body_attention_few.h, in the same order: between two pieces they lie in its scores and its
 * output. */
#ifndef TD_KERNELS_HOST_BODY_ATTENTION_MANY_H
#define TD_KERNELS_HOST_BODY_ATTENTION_MANY_H

#include "kernels/host/body_attention_few.h"

#define D_CHUNK      64u
#define TILE_QUERIES 6u
#define TILE_CHAINS  (VL == 16 ? 4 : 2)
#define TILE_LANES   (TILE_CHAINS * VL)

/* Keys [POSITIONS / TILE_LANES][n_d][TILE_LANES]; values [D_CHUNK / TILE_LANES][POSITIONS]
 * [TILE_LANES]. */
typedef struct {
    _Alignas(64) float x[D_CHUNK * POSITIONS];
} scratch;

INLINE void decode_keys_of(const td_host_kv *kv, const uint8_t *k, uint32_t d0, uint32_t n_d,
                           scratch *to, const td_type type)
{
    const uint16_t *scales = (const uint16_t *)(const void *)(k + kv->scales_offset_k);
    const bool is_quantized = type == TD_TYPE_Q8_0 || type == TD_TYPE_Q4_0;
    float *x = to->x;
    for (uint32_t lane = 0; lane < POSITIONS; lane += TILE_LANES)
        for (uint32_t d = d0; d < d0 + n_d;) {
            vf scale[TILE_CHAINS];
            UNROLL for (uint32_t c = 0; c < TILE_CHAINS; c++) scale[c] =
                is_quantized ? vf_load_f16(scales + d / 32 * POSITIONS + lane + c * VL) : vf_zero();
            for (uint32_t end = td_min_u32(d0 + n_d, d + 32); d < end; d++, x += TILE_LANES)
                UNROLL for (uint32_t c = 0; c < TILE_CHAINS; c++)
                    vf_store(x + c * VL, load_key(k, d, lane + c * VL, scale[c], type));
        }
}

INLINE void decode_values_of(const td_host_kv *kv, const uint8_t *v, uint32_t d0, uint32_t n_d,
                             scratch *to, const td_type type)
{
    for (uint32_t j = 0; j < POSITIONS; j++) {
        const uint8_t *row = v + j * kv->row_bytes_v;
        for (uint32_t d = 0; d < n_d; d += VL)
            vf_store(to->x + d / TILE_LANES * TILE_LANES * POSITIONS + j * TILE_LANES +
                         d % TILE_LANES,
                     load_value(row, d0 + d, lanes_left(n_d, d), type));
    }
}

static void decode_keys(const td_host_kv *kv, const uint8_t *k, uint32_t d0, uint32_t n_d,
                        scratch *to)
{
    switch (kv->base.params.type_k->id) {
    case TD_TYPE_F32:
        decode_keys_of(kv, k, d0, n_d, to, TD_TYPE_F32);
        break;
    case TD_TYPE_F16:
        decode_keys_of(kv, k, d0, n_d, to, TD_TYPE_F16);
        break;
    case TD_TYPE_Q8_0:
        decode_keys_of(kv, k, d0, n_d, to, TD_TYPE_Q8_0);
        break;
    default:
        decode_keys_of(kv, k, d0, n_d, to, TD_TYPE_Q4_0);
    }
}

/* Four by four, from rows of POSITIONS to rows of TILE_LANES. */
INLINE void transpose(const float *from, float *to)
{
    typedef float quad __attribute__((vector_size(16), aligned(4)));
    quad a = *(const quad *)from, b = *(const quad *)(from + POSITIONS);
    quad c = *(const quad *)(from + 2 * POSITIONS), d = *(const quad *)(from + 3 * POSITIONS);
    typedef int order __attribute__((vector_size(16)));
    const order low = {0, 4, 1, 5}, high = {2, 6, 3, 7}, lows = {0, 1, 4, 5}, highs = {2, 3, 6, 7};
    quad ab0 = __builtin_shuffle(a, b, low), ab1 = __builtin_shuffle(a, b, high);
    quad cd0 = __builtin_shuffle(c, d, low), cd1 = __builtin_shuffle(c, d, high);
    *(quad *)to = __builtin_shuffle(ab0, cd0, lows);
    *(quad *)(to + TILE_LANES) = __builtin_shuffle(ab0, cd0, highs);
    *(quad *)(to + 2 * TILE_LANES) = __builtin_shuffle(ab1, cd1, lows);
    *(quad *)(to + 3 * TILE_LANES) = __builtin_shuffle(ab1, cd1, highs);
}

/* The values of a latent cache, which are columns of its keys. */
INLINE void decode_latents_of(const td_host_kv *kv, const uint8_t *k, uint32_t d0, uint32_t n_d,
                              scratch *to, const td_type type)
{
    const uint16_t *scales = (const uint16_t *)(const void *)(k + kv->scales_offset_k);
    const bool is_quantized = type == TD_TYPE_Q8_0 || type == TD_TYPE_Q4_0;
    _Alignas(64) float four[4 * POSITIONS]; /* columns */
    for (uint32_t d = 0; d < n_d; d += 4) {
        for (uint32_t i = 0; i < 4; i++) {
            uint32_t column = td_min_u32(d0 + d + i, kv->base.params.head_dim_k - 1);
            for (uint32_t lane = 0; lane < POSITIONS; lane += VL) {
                vf scale =
                    is_quantized ? vf_load_f16(scales + column / 32 * POSITIONS + lane) : vf_zero();
                vf_store(four + i * POSITIONS + lane, load_key(k, column, lane, scale, type));
            }
        }
        float *x = to->x + d / TILE_LANES * TILE_LANES * POSITIONS + d % TILE_LANES;
        for (uint32_t j = 0; j < POSITIONS; j += 4)
            transpose(four + j, x + j * TILE_LANES);
    }
}

static void decode_latents(const td_host_kv *kv, const uint8_t *k, uint32_t d0, uint32_t n_d,
                           scratch *to)
{
    switch (kv->base.params.type_k->id) {
    case TD_TYPE_F32:
        decode_latents_of(kv, k, d0, n_d, to, TD_TYPE_F32);
        break;
    case TD_TYPE_F16:
        decode_latents_of(kv, k, d0, n_d, to, TD_TYPE_F16);
        break;
    case TD_TYPE_Q8_0:
        decode_latents_of(kv, k, d0, n_d, to, TD_TYPE_Q8_0);
        break;
    default:
        decode_latents_of(kv, k, d0, n_d, to, TD_TYPE_Q4_0);
    }
}

static void decode_values(const td_host_kv *kv, const uint8_t *v, uint32_t d0, uint32_t n_d,
                          scratch *to)
{
    if (kv->base.params.is_latent) {
        decode_latents(kv, v, d0, n_d, to);
        return;
    }
    switch (kv->base.params.type_v->id) {
    case TD_TYPE_F32:
        decode_values_of(kv, v, d0, n_d, to, TD_TYPE_F32);
        break;
    case TD_TYPE_F16:
        decode_values_of(kv, v, d0, n_d, to, TD_TYPE_F16);
        break;
    case TD_TYPE_Q8_0:
        decode_values_of(kv, v, d0, n_d, to, TD_TYPE_Q8_0);
        break;
    default:
        decode_values_of(kv, v, d0, n_d, to, TD_TYPE_Q4_0);
    }
}

#define EACH_TILE_CHAIN UNROLL for (uint32_t c = 0; c < TILE_CHAINS; c++)

/* s[lane..] += q[d0..d0 + n_d) . x, from 0 with d0. x: [n_d][TILE_LANES] */
INLINE void score_tile(query *const *qs, const float *x, uint32_t d0, uint32_t n_d, uint32_t lane,
                       const uint32_t n)
{
    vf acc[TILE_QUERIES][TILE_CHAINS];
    const float *q[TILE_QUERIES];
    EACH_QUERY
    {
        q[i] = qs[i]->q + d0;
        EACH_TILE_CHAIN acc[i][c] = d0 ? vf_load(qs[i]->s + lane + c * VL) : vf_zero();
    }
    for (uint32_t d = 0; d < n_d; d++, x += TILE_LANES) {
        vf key[TILE_CHAINS];
        EACH_TILE_CHAIN key[c] = vf_load(x + c * VL);
        EACH_QUERY
        {
            vf qd = vf_set1(q[i][d]);
            EACH_TILE_CHAIN acc[i][c] = vf_fma(qd, key[c], acc[i][c]);
        }
    }
    EACH_QUERY EACH_TILE_CHAIN vf_store(qs[i]->s + lane + c * VL, acc[i][c]);
}

/* y[d0..] = y * by + sum of s[j] x[j], j in [begin, end), n_d <= TILE_LANES of them; by is the
 * query's c or 1. x: [POSITIONS][TILE_LANES] */
INLINE void add_tile(query *const *qs, const float *x, uint32_t d0, uint32_t n_d, uint32_t begin,
                     uint32_t end, bool is_first, const uint32_t n)
{
    vf acc[TILE_QUERIES][TILE_CHAINS];
    const float *p[TILE_QUERIES];
    EACH_QUERY
    {
        vf by = vf_set1(is_first ? qs[i]->c : 1.0f);
        const float *y = qs[i]->y + d0;
        p[i] = qs[i]->s;
        if (n_d == TILE_LANES)
            EACH_TILE_CHAIN acc[i][c] = vf_mul(vf_load(y + c * VL), by);
        else
            EACH_TILE_CHAIN acc[i][c] =
                vf_mul(vf_load_n(y + (n_d > c * VL ? c * VL : 0), lanes_left(n_d, c * VL)), by);
    }
    for (uint32_t j = begin; j < end; j++) {
        vf value[TILE_CHAINS];
        EACH_TILE_CHAIN value[c] = vf_load(x + j * TILE_LANES + c * VL);
        EACH_QUERY
        {
            vf pj = vf_set1(p[i][j]);
            EACH_TILE_CHAIN acc[i][c] = vf_fma(pj, value[c], acc[i][c]);
        }
    }
    EACH_QUERY
    {
        float *y = qs[i]->y + d0;
        if (n_d == TILE_LANES)
            EACH_TILE_CHAIN vf_store(y + c * VL, acc[i][c]);
        else
            EACH_TILE_CHAIN if (n_d > c * VL)
                vf_store_n(y + c * VL, acc[i][c], lanes_left(n_d, c * VL));
    }
}

static void score_tile_any(query *const *qs, const float *x, uint32_t d0, uint32_t n_d,
                           uint32_t lane, uint32_t n)
{
    switch (n) {
    case 1:
        score_tile(qs, x, d0, n_d, lane, 1);
        break;
    case 2:
        score_tile(qs, x, d0, n_d, lane, 2);
        break;
    case 3:
        score_tile(qs, x, d0, n_d, lane, 3);
        break;
    case 4:
        score_tile(qs, x, d0, n_d, lane, 4);
        break;
    case 5:
        score_tile(qs, x, d0, n_d, lane, 5);
        break;
    default:
        score_tile(qs, x, d0, n_d, lane, 6);
    }
}

static void add_tile_any(query *const *qs, const float *x, uint32_t d0, uint32_t n_d,
                         uint32_t begin, uint32_t end, bool is_first, uint32_t n)
{
    switch (n) {
    case 1:
        add_tile(qs, x, d0, n_d, begin, end, is_first, 1);
        break;
    case 2:
        add_tile(qs, x, d0, n_d, begin, end, is_first, 2);
        break;
    case 3:
        add_tile(qs, x, d0, n_d, begin, end, is_first, 3);
        break;
    case 4:
        add_tile(qs, x, d0, n_d, begin, end, is_first, 4);
        break;
    case 5:
        add_tile(qs, x, d0, n_d, begin, end, is_first, 5);
        break;
    default:
        add_tile(qs, x, d0, n_d, begin, end, is_first, 6);
    }
}

/* Queries in tiles of nearly equal size. */
typedef struct {
    uint32_t begin, n, i, n_tiles;
} query_tiles;

static query_tiles first_tile(uint32_t n)
{
    uint32_t n_tiles = td_div_up(n, TILE_QUERIES);
    return (query_tiles){0, n / n_tiles, 0, n_tiles};
}

static bool next_query_tile(query_tiles *t, uint32_t n)
{
    t->begin += t->n;
    t->i++;
    t->n = n * (t->i + 1) / t->n_tiles - t->begin;
    return t->i < t->n_tiles;
}

/* As score_any, for any number of queries. */
static void score_many(const td_host_kv *kv, const uint8_t *k, query *const *qs, uint32_t n,
                       fetch *ahead)
{
    scratch keys;
    uint32_t n_k = kv->base.params.head_dim_k;
    cut_fetch(ahead,
              td_div_up(n_k, D_CHUNK) * (POSITIONS / TILE_LANES) * td_div_up(n, TILE_QUERIES));
    for (uint32_t d0 = 0; d0 < n_k; d0 += D_CHUNK) {
        uint32_t n_d = td_min_u32(n_k - d0, D_CHUNK);
        decode_keys(kv, k, d0, n_d, &keys);
        for (uint32_t lane = 0; lane < POSITIONS; lane += TILE_LANES)
            for (query_tiles t = first_tile(n); t.i < t.n_tiles; next_query_tile(&t, n)) {
                fetch_piece(ahead);
                score_tile_any(qs + t.begin, keys.x + lane * n_d, d0, n_d, lane, t.n);
            }
    }
}

/* Positions that all queries of the tile see are added for all of them at once, those before and
 * after them query by query. */
static void add_visible(query *const *qs, const float *x, uint32_t d0, uint32_t n_d, uint32_t n)
{
    uint32_t begin = 0, end = POSITIONS;
    for (uint32_t i = 0; i < n; i++) {
        begin = td_max_u32(qs[i]->begin, begin);
        end = td_min_u32(qs[i]->end, end);
    }
    if (begin >= end) { /* windows that do not meet */
        for (uint32_t i = 0; i < n; i++)
            add_tile(&qs[i], x, d0, n_d, qs[i]->begin, qs[i]->end, true, 1);
        return;
    }
    bool is_edge = false;
    for (uint32_t i = 0; i < n; i++)
        is_edge = is_edge || qs[i]->begin < begin;
    for (uint32_t i = 0; is_edge && i < n; i++)
        add_tile(&qs[i], x, d0, n_d, qs[i]->begin, begin, true, 1);
    add_tile_any(qs, x, d0, n_d, begin, end, !is_edge, n);
    for (uint32_t i = 0; i < n; i++)
        if (end < qs[i]->end)
            add_tile(&qs[i], x, d0, n_d, end, qs[i]->end, false, 1);
}

/* As add_page, for any number of queries. */
static void add_many(const td_host_kv *kv, const uint8_t *v, query *const *qs, uint32_t n,
                     fetch *ahead)
{
    scratch values;
    uint32_t n_v = kv->base.params.head_dim_v;
    cut_fetch(ahead, td_div_up(n_v, TILE_LANES) * td_div_up(n, TILE_QUERIES));
    for (uint32_t d0 = 0; d0 < n_v; d0 += D_CHUNK) {
        uint32_t n_chunk = td_min_u32(n_v - d0, D_CHUNK);
        decode_values(kv, v, d0, n_chunk, &values);
        for (uint32_t d = 0; d < n_chunk; d += TILE_LANES)
            for (query_tiles t = first_tile(n); t.i < t.n_tiles; next_query_tile(&t, n)) {
                fetch_piece(ahead);
                add_visible(qs + t.begin, values.x + d * POSITIONS, d0 + d,
                            td_min_u32(n_chunk - d, TILE_LANES), t.n);
            }
    }
}

#endif
