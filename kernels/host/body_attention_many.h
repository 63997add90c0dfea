/* Attention of many queries over one page of F32, F16 or BF16: its keys, then its values, are
 * decoded in pieces of D_CHUNK elements into a scratch that stays in the first level cache, and
 * tiles of up to TILE_QUERIES queries run over that as products of matrices do. A query's sums are
 * those of body_attention_few.h, in the same order: between two pieces they lie in its scores and
 * its output. */
#ifndef TD_KERNELS_HOST_BODY_ATTENTION_MANY_H
#define TD_KERNELS_HOST_BODY_ATTENTION_MANY_H

#include "kernels/host/body_attention_few.h"

#define D_CHUNK      64u
#define TILE_QUERIES 6u
#define TILE_CHAINS  (VL == 16 ? 4 : 2)
#define TILE_LANES   (TILE_CHAINS * VL)

#define EACH_TILE_CHAIN UNROLL for (uint32_t c = 0; c < TILE_CHAINS; c++)

/* Keys [POSITIONS / TILE_LANES][n_d][TILE_LANES]; values [D_CHUNK / TILE_LANES][POSITIONS]
 * [TILE_LANES]. */
typedef struct {
    _Alignas(64) float x[D_CHUNK * POSITIONS];
} scratch;

INLINE void decode_keys_of(const uint8_t *k, uint32_t d0, uint32_t n_d, scratch *to,
                           const td_type type)
{
    float *x = to->x;
    for (uint32_t lane = 0; lane < POSITIONS; lane += TILE_LANES)
        for (uint32_t d = d0; d < d0 + n_d; d++, x += TILE_LANES)
            UNROLL for (uint32_t c = 0; c < TILE_CHAINS; c++)
                vf_store(x + c * VL, load_key(k, d, lane + c * VL, type));
}

static void decode_keys(const td_host_kv *kv, const uint8_t *k, uint32_t d0, uint32_t n_d,
                        scratch *to){
    EACH_PLAIN_TYPE(kv->base.params.type_k->id, decode_keys_of, k, d0, n_d, to)}

INLINE void decode_values_of(const td_host_kv *kv, const uint8_t *v, uint32_t d0, uint32_t n_d,
                             scratch *to, const td_type type)
{
    float *x = to->x;
    for (uint32_t d = 0; d < n_d; d += TILE_LANES) {
        uint32_t n_lanes[TILE_CHAINS];
        EACH_TILE_CHAIN n_lanes[c] = lanes_left(n_d, d + c * VL);
        const uint8_t *row = v;
        for (uint32_t j = 0; j < POSITIONS; j++, row += kv->row_bytes_v, x += TILE_LANES)
            EACH_TILE_CHAIN if (n_lanes[c])
                vf_store(x + c * VL, load_value(row, d0 + d + c * VL, n_lanes[c], type));
    }
}

/* Four by four words, from rows of n_from to rows of n_to. */
INLINE void transpose(const void *from, uint32_t n_from, void *to, uint32_t n_to)
{
    typedef float quad __attribute__((vector_size(16), aligned(4), may_alias));
    const float *x = from;
    float *y = to;
    quad a = *(const quad *)x, b = *(const quad *)(x + n_from);
    quad c = *(const quad *)(x + 2 * n_from), d = *(const quad *)(x + 3 * n_from);
    typedef int order __attribute__((vector_size(16)));
    const order low = {0, 4, 1, 5}, high = {2, 6, 3, 7}, lows = {0, 1, 4, 5}, highs = {2, 3, 6, 7};
    quad ab0 = __builtin_shuffle(a, b, low), ab1 = __builtin_shuffle(a, b, high);
    quad cd0 = __builtin_shuffle(c, d, low), cd1 = __builtin_shuffle(c, d, high);
    *(quad *)y = __builtin_shuffle(ab0, cd0, lows);
    *(quad *)(y + n_to) = __builtin_shuffle(ab0, cd0, highs);
    *(quad *)(y + 2 * n_to) = __builtin_shuffle(ab1, cd1, lows);
    *(quad *)(y + 3 * n_to) = __builtin_shuffle(ab1, cd1, highs);
}

/* The values of a latent cache, which are columns of its keys. */
INLINE void decode_latents(const td_host_kv *kv, const uint8_t *k, uint32_t d0, uint32_t n_d,
                           scratch *to, const td_type type)
{
    _Alignas(64) float four[4 * POSITIONS]; /* columns */
    for (uint32_t d = 0; d < n_d; d += 4) {
        for (uint32_t i = 0; i < 4; i++) {
            uint32_t column = td_min_u32(d0 + d + i, kv->base.params.head_dim_k - 1);
            for (uint32_t lane = 0; lane < POSITIONS; lane += VL)
                vf_store(four + i * POSITIONS + lane, load_key(k, column, lane, type));
        }
        float *x = to->x + d / TILE_LANES * TILE_LANES * POSITIONS + d % TILE_LANES;
        for (uint32_t j = 0; j < POSITIONS; j += 4)
            transpose(four + j, POSITIONS, x + j * TILE_LANES, TILE_LANES);
    }
}

static void decode_values(const td_host_kv *kv, const uint8_t *v, uint32_t d0, uint32_t n_d,
                          scratch *to)
{
    const td_kv_params *p = &kv->base.params;
    if (p->is_latent)
        EACH_PLAIN_TYPE(p->type_k->id, decode_latents, kv, v, d0, n_d, to)
    else
        EACH_PLAIN_TYPE(p->type_v->id, decode_values_of, kv, v, d0, n_d, to)
}

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

/* tile(n) with n constant, from 1 to TILE_QUERIES. */
#define EACH_TILE_SIZE(n, tile)                                                                    \
    switch (n) {                                                                                   \
    case 1:                                                                                        \
        tile(1);                                                                                   \
        break;                                                                                     \
    case 2:                                                                                        \
        tile(2);                                                                                   \
        break;                                                                                     \
    case 3:                                                                                        \
        tile(3);                                                                                   \
        break;                                                                                     \
    case 4:                                                                                        \
        tile(4);                                                                                   \
        break;                                                                                     \
    case 5:                                                                                        \
        tile(5);                                                                                   \
        break;                                                                                     \
    default:                                                                                       \
        tile(6);                                                                                   \
    }

static void score_tile_any(query *const *qs, const float *x, uint32_t d0, uint32_t n_d,
                           uint32_t lane, uint32_t n)
{
#define TILE(n) score_tile(qs, x, d0, n_d, lane, n)
    EACH_TILE_SIZE(n, TILE)
#undef TILE
}

static void add_tile_any(query *const *qs, const float *x, uint32_t d0, uint32_t n_d,
                         uint32_t begin, uint32_t end, bool is_first, uint32_t n)
{
#define TILE(n) add_tile(qs, x, d0, n_d, begin, end, is_first, n)
    EACH_TILE_SIZE(n, TILE)
#undef TILE
}

/* Queries in tiles of nearly equal size, larger ones first. */
typedef struct {
    uint32_t begin, n, n_left, n_larger;
} query_tiles;

static query_tiles first_tile(uint32_t n, uint32_t n_most)
{
    uint32_t n_tiles = td_div_up(n, n_most);
    return (query_tiles){0, td_div_up(n, n_tiles), n_tiles, n % n_tiles};
}

INLINE void next_query_tile(query_tiles *t)
{
    t->begin += t->n;
    t->n_left--;
    if (t->n_larger && !--t->n_larger)
        t->n--;
}

#define EACH_TILE(t, first) for (query_tiles t = first; t.n_left; next_query_tile(&t))

/* As score_any, for any number of queries. */
static void score_many(const td_host_kv *kv, const uint8_t *k, query *const *qs, uint32_t n,
                       fetch *ahead)
{
    scratch keys;
    uint32_t n_k = kv->base.params.head_dim_k;
    const query_tiles first = first_tile(n, TILE_QUERIES);
    cut_fetch(ahead,
              td_div_up(n_k, D_CHUNK) * (POSITIONS / TILE_LANES) * td_div_up(n, TILE_QUERIES));
    for (uint32_t d0 = 0; d0 < n_k; d0 += D_CHUNK) {
        uint32_t n_d = td_min_u32(n_k - d0, D_CHUNK);
        decode_keys(kv, k, d0, n_d, &keys);
        for (uint32_t lane = 0; lane < POSITIONS; lane += TILE_LANES)
            EACH_TILE(t, first)
            {
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
    const query_tiles first = first_tile(n, TILE_QUERIES);
    bool is_whole = true;
    for (uint32_t i = 0; i < n; i++)
        is_whole = is_whole && qs[i]->begin == 0 && qs[i]->end == POSITIONS;
    cut_fetch(ahead, td_div_up(n_v, TILE_LANES) * td_div_up(n, TILE_QUERIES));
    for (uint32_t d0 = 0; d0 < n_v; d0 += D_CHUNK) {
        uint32_t n_chunk = td_min_u32(n_v - d0, D_CHUNK);
        decode_values(kv, v, d0, n_chunk, &values);
        for (uint32_t d = 0; d < n_chunk; d += TILE_LANES)
            EACH_TILE(t, first)
            {
                const float *x = values.x + d * POSITIONS;
                uint32_t n_lanes = td_min_u32(n_chunk - d, TILE_LANES);
                fetch_piece(ahead);
                if (is_whole)
                    add_tile_any(qs + t.begin, x, d0 + d, n_lanes, 0, POSITIONS, true, t.n);
                else
                    add_visible(qs + t.begin, x, d0 + d, n_lanes, t.n);
            }
    }
}

#endif
