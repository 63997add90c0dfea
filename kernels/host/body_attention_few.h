/* Attention of up to four queries over one page of F32, F16 or BF16: keys and values are decoded
 * on the way, once for all of them. body_attention.h has what is around it. */
#ifndef TD_KERNELS_HOST_BODY_ATTENTION_FEW_H
#define TD_KERNELS_HOST_BODY_ATTENTION_FEW_H

#include "kernels/host/body_mat_mul.h"

#define POSITIONS TD_PAGE_POSITIONS
#define QUERIES   4
#define CHAINS    4 /* independent accumulators of a query, to hide the latency of fma */
/* Of several queries: as many as there are registers for. */
#define CHAINS_OF(n) ((n) == 1 || VL == 16 ? CHAINS : CHAINS / 2)

#define EACH_CHAIN UNROLL for (uint32_t c = 0; c < n_chains; c++)
#define EACH_QUERY UNROLL for (uint32_t i = 0; i < n; i++)

typedef struct { /* a query for quantized keys, in blocks of 32 */
    _Alignas(64) int16_t q[TD_HOST_HEAD_DIM_MAX];
    float d[TD_HOST_HEAD_DIM_MAX / 32];
    float sums[TD_HOST_HEAD_DIM_MAX / 32]; /* of q */
} wide_query;

typedef struct {
    _Alignas(64) float s[POSITIONS]; /* scores, then probabilities, of the current page */
    const float *q;
    wide_query *wide;
    float *y;
    uint32_t first, last; /* visible positions */
    uint32_t begin, end;  /* visible slots of the current page */
    float m, sum, c;
    float top; /* the largest probability of the current page */
} query;

/* What will be read next is fetched piece by piece while there is something to compute: pages lie
 * anywhere, and the CPU cannot guess the next one. */
typedef struct {
    const uint8_t *at;
    size_t n_lines, n_a_piece;
} fetch;

INLINE void cut_fetch(fetch *f, uint32_t n_pieces)
{
    f->n_a_piece = (f->n_lines + n_pieces - 1) / n_pieces;
}

INLINE void fetch_piece(fetch *f)
{
    size_t n = f->n_a_piece < f->n_lines ? f->n_a_piece : f->n_lines;
    for (size_t i = 0; i < n; i++)
        __builtin_prefetch(f->at + i * LINE_BYTES);
    f->at += n * LINE_BYTES;
    f->n_lines -= n;
}

#define STEPS_OF_PIECE 16u /* of a loop for each piece that is fetched */

INLINE vf load_halves(const uint16_t *p, const td_type type)
{
    return type == TD_TYPE_F16 ? vf_load_f16(p) : vf_load_bf16(p);
}

/* Element d of the keys of VL positions from `lane` on. */
INLINE vf load_key(const uint8_t *k, uint32_t d, uint32_t lane, const td_type type)
{
    uint32_t i = d * POSITIONS + lane;
    return type == TD_TYPE_F32 ? vf_load((const float *)(const void *)k + i)
                               : load_halves((const uint16_t *)(const void *)k + i, type);
}

/* s[j] = q . k[j] for all positions of a page, those not written included. */
INLINE void score_page(const td_host_kv *kv, const uint8_t *k, query *const *qs, fetch *ahead,
                       const uint32_t n, const td_type type)
{
    uint32_t n_d = kv->base.params.head_dim_k;
    const uint32_t n_chains = CHAINS_OF(n);
    cut_fetch(ahead, POSITIONS / (n_chains * VL) * td_div_up(n_d, STEPS_OF_PIECE));
    for (uint32_t lane = 0; lane < POSITIONS; lane += n_chains * VL) {
        vf acc[QUERIES][CHAINS];
        EACH_CHAIN EACH_QUERY acc[i][c] = vf_zero();
        for (uint32_t d = 0; d < n_d;) {
            fetch_piece(ahead);
            for (uint32_t end = td_min_u32(d + STEPS_OF_PIECE, n_d); d < end; d++) {
                vf key[CHAINS];
                EACH_CHAIN key[c] = load_key(k, d, lane + c * VL, type);
                EACH_QUERY
                {
                    vf qd = vf_set1(qs[i]->q[d]);
                    EACH_CHAIN acc[i][c] = vf_fma(qd, key[c], acc[i][c]);
                }
            }
        }
        EACH_QUERY EACH_CHAIN vf_store(qs[i]->s + lane + c * VL, acc[i][c]);
    }
}

/* Elements d..d+VL-1 of one position's value. */
INLINE vf load_value(const uint8_t *row, uint32_t d, uint32_t n, const td_type type)
{
    return type == TD_TYPE_F32 ? vf_load_n((const float *)(const void *)row + d, n)
                               : load_halves((const uint16_t *)(const void *)row + d, type);
}

/* y = y * c + sum of p[j] v[j], j in [begin, end) */
INLINE void add_values(const td_host_kv *kv, const uint8_t *v, query *const *qs, uint32_t begin,
                       uint32_t end, fetch *ahead, const uint32_t n, const td_type type)
{
    uint32_t n_d = kv->base.params.head_dim_v;
    const uint32_t n_chains = CHAINS_OF(n);
    cut_fetch(ahead, td_div_up(n_d, n_chains * VL) * (POSITIONS / STEPS_OF_PIECE));
    for (uint32_t d = 0; d < n_d; d += n_chains * VL) {
        vf acc[QUERIES][CHAINS];
        uint32_t n_lanes[CHAINS];
        EACH_CHAIN
        {
            n_lanes[c] = lanes_left(n_d, d + c * VL);
            EACH_QUERY acc[i][c] =
                n_lanes[c] ? vf_mul(vf_load_n(qs[i]->y + d + c * VL, n_lanes[c]), vf_set1(qs[i]->c))
                           : vf_zero();
        }
        for (uint32_t j = begin; j < end;) {
            fetch_piece(ahead);
            for (uint32_t piece_end = td_min_u32(j + STEPS_OF_PIECE, end); j < piece_end; j++) {
                const uint8_t *row = v + j * kv->row_bytes_v;
                EACH_CHAIN if (n_lanes[c])
                {
                    vf value = load_value(row, d + c * VL, n_lanes[c], type);
                    EACH_QUERY acc[i][c] = vf_fma(vf_set1(qs[i]->s[j]), value, acc[i][c]);
                }
            }
        }
        EACH_QUERY EACH_CHAIN if (n_lanes[c])
            vf_store_n(qs[i]->y + d + c * VL, acc[i][c], n_lanes[c]);
    }
}

/* run(..., type) with the type constant. */
#define EACH_PLAIN_TYPE(id, run, ...)                                                              \
    switch (id) {                                                                                  \
    case TD_TYPE_F16:                                                                              \
        run(__VA_ARGS__, TD_TYPE_F16);                                                             \
        break;                                                                                     \
    case TD_TYPE_BF16:                                                                             \
        run(__VA_ARGS__, TD_TYPE_BF16);                                                            \
        break;                                                                                     \
    default:                                                                                       \
        run(__VA_ARGS__, TD_TYPE_F32);                                                             \
    }

/* tile(n, type) with both constant, n from 1 to QUERIES. */
#define EACH_COUNT(n, tile, type)                                                                  \
    switch (n) {                                                                                   \
    case 1:                                                                                        \
        tile(1, type);                                                                             \
        break;                                                                                     \
    case 2:                                                                                        \
        tile(2, type);                                                                             \
        break;                                                                                     \
    case 3:                                                                                        \
        tile(3, type);                                                                             \
        break;                                                                                     \
    default:                                                                                       \
        tile(4, type);                                                                             \
    }

static void score_any(const td_host_kv *kv, const uint8_t *k, query *const *qs, uint32_t n,
                      fetch *ahead)
{
#define TILE(n, type) score_page(kv, k, qs, ahead, n, type)
    EACH_PLAIN_TYPE(kv->base.params.type_k->id, EACH_COUNT, n, TILE)
#undef TILE
}

static void add_range(const td_host_kv *kv, const uint8_t *v, query *const *qs, uint32_t begin,
                      uint32_t end, uint32_t n, fetch *ahead)
{
#define TILE(n, type) add_values(kv, v, qs, begin, end, ahead, n, type)
    EACH_PLAIN_TYPE(kv->base.params.type_v->id, EACH_COUNT, n, TILE)
#undef TILE
}

/* Adds each query's visible slots in ascending order. Slots that all queries see are added for all
 * of them at once, those before and after them query by query. */
static void add_page(const td_host_kv *kv, const uint8_t *v, query *const *qs, uint32_t n,
                     fetch *ahead)
{
    uint32_t begin = 0, end = POSITIONS;
    for (uint32_t i = 0; i < n; i++) {
        begin = qs[i]->begin > begin ? qs[i]->begin : begin;
        end = td_min_u32(qs[i]->end, end);
    }
    if (begin >= end) { /* windows that do not meet */
        for (uint32_t i = 0; i < n; i++)
            add_range(kv, v, &qs[i], qs[i]->begin, qs[i]->end, 1, ahead);
        return;
    }
    for (uint32_t i = 0; i < n; i++)
        if (qs[i]->begin < begin) {
            add_range(kv, v, &qs[i], qs[i]->begin, begin, 1, ahead);
            qs[i]->c = 1;
        }
    add_range(kv, v, qs, begin, end, n, ahead);
    for (uint32_t i = 0; i < n; i++)
        if (end < qs[i]->end) {
            qs[i]->c = 1;
            add_range(kv, v, &qs[i], end, qs[i]->end, 1, ahead);
        }
}

#endif
