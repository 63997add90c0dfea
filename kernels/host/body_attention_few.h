/* Attention of up to four queries over one page: keys and values are decoded on the way, once for
 * all of them. body_attention.h has what is around it. */
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

typedef struct {
    _Alignas(64) float s[POSITIONS]; /* scores, then probabilities, of the current page */
    const float *q;
    float *y;
    uint32_t first, last; /* visible positions */
    uint32_t begin, end;  /* visible slots of the current page */
    float m, sum, c;
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

/* Element d of the keys of VL positions from `lane` on. `scale` is theirs for d's block of 32. */
INLINE vf load_key(const uint8_t *k, uint32_t d, uint32_t lane, vf scale, const td_type type)
{
    if (type == TD_TYPE_F32)
        return vf_load((const float *)(const void *)k + d * POSITIONS + lane);
    if (type == TD_TYPE_F16)
        return vf_load_f16((const uint16_t *)(const void *)k + d * POSITIONS + lane);
    if (type == TD_TYPE_Q8_0)
        return vf_mul(vf_of_vi(vi_load_i8(k + d * POSITIONS + lane)), scale);
    vi pair = vi_load_u8(k + (d / 32 * 16 + d % 16) * POSITIONS + lane);
    vi q = d % 32 < 16 ? vi_and(pair, vi_set1(15)) : vi_srl(pair, 4);
    return vf_mul(vf_of_vi(vi_sub(q, vi_set1(8))), scale);
}

/* s[j] = q . k[j] for all positions of a page, those not written included. */
INLINE void score_page(const td_host_kv *kv, const uint8_t *k, query *const *qs, const uint32_t n,
                       const td_type type)
{
    const uint16_t *scales = (const uint16_t *)(const void *)(k + kv->scales_offset_k);
    uint32_t n_d = kv->base.params.head_dim_k;
    const bool is_quantized = type == TD_TYPE_Q8_0 || type == TD_TYPE_Q4_0;
    const uint32_t n_chains = CHAINS_OF(n);
    for (uint32_t lane = 0; lane < POSITIONS; lane += n_chains * VL) {
        vf acc[QUERIES][CHAINS], scale[CHAINS];
        EACH_CHAIN
        {
            scale[c] = vf_zero();
            EACH_QUERY acc[i][c] = vf_zero();
        }
        for (uint32_t d0 = 0; d0 < n_d; d0 += 32) {
            if (is_quantized)
                EACH_CHAIN scale[c] = vf_load_f16(scales + d0 / 32 * POSITIONS + lane + c * VL);
            for (uint32_t d = d0, end = td_min_u32(n_d, d0 + 32); d < end; d++) {
                vf key[CHAINS];
                EACH_CHAIN key[c] = load_key(k, d, lane + c * VL, scale[c], type);
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
    if (type == TD_TYPE_F32)
        return vf_load_n((const float *)(const void *)row + d, n);
    if (type == TD_TYPE_F16)
        return vf_load_f16((const uint16_t *)(const void *)row + d);
    uint16_t half;
    const uint8_t *block = row + d / 32 * (type == TD_TYPE_Q8_0 ? 34 : 18);
    memcpy(&half, block, sizeof half);
    vf scale = vf_set1(f32_of_f16(half));
    if (type == TD_TYPE_Q8_0)
        return vf_mul(vf_of_vi(vi_load_i8(block + 2 + d % 32)), scale);
    vi pair = vi_load_u8(block + 2 + d % 16);
    vi q = d % 32 < 16 ? vi_and(pair, vi_set1(15)) : vi_srl(pair, 4);
    return vf_mul(vf_of_vi(vi_sub(q, vi_set1(8))), scale);
}

/* y = y * c + sum of p[j] v[j], j in [begin, end) */
INLINE void add_values(const td_host_kv *kv, const uint8_t *v, query *const *qs, uint32_t begin,
                       uint32_t end, const uint32_t n, const td_type type)
{
    uint32_t n_d = kv->base.params.head_dim_v;
    const uint32_t n_chains = CHAINS_OF(n);
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
        for (uint32_t j = begin; j < end; j++) {
            const uint8_t *row = v + j * kv->row_bytes_v;
            EACH_CHAIN if (n_lanes[c])
            {
                vf value = load_value(row, d + c * VL, n_lanes[c], type);
                EACH_QUERY acc[i][c] = vf_fma(vf_set1(qs[i]->s[j]), value, acc[i][c]);
            }
        }
        EACH_QUERY EACH_CHAIN if (n_lanes[c])
            vf_store_n(qs[i]->y + d + c * VL, acc[i][c], n_lanes[c]);
    }
}

INLINE void score_count(const td_host_kv *kv, const uint8_t *k, query *const *qs, uint32_t n,
                        const td_type type)
{
    switch (n) {
    case 1:
        score_page(kv, k, qs, 1, type);
        break;
    case 2:
        score_page(kv, k, qs, 2, type);
        break;
    case 3:
        score_page(kv, k, qs, 3, type);
        break;
    default:
        score_page(kv, k, qs, 4, type);
    }
}

static void score_any(const td_host_kv *kv, const uint8_t *k, query *const *qs, uint32_t n)
{
    switch (kv->base.params.type_k->id) {
    case TD_TYPE_F32:
        score_count(kv, k, qs, n, TD_TYPE_F32);
        break;
    case TD_TYPE_F16:
        score_count(kv, k, qs, n, TD_TYPE_F16);
        break;
    case TD_TYPE_Q8_0:
        score_count(kv, k, qs, n, TD_TYPE_Q8_0);
        break;
    default:
        score_count(kv, k, qs, n, TD_TYPE_Q4_0);
    }
}

INLINE void add_count(const td_host_kv *kv, const uint8_t *v, query *const *qs, uint32_t begin,
                      uint32_t end, uint32_t n, const td_type type)
{
    switch (n) {
    case 1:
        add_values(kv, v, qs, begin, end, 1, type);
        break;
    case 2:
        add_values(kv, v, qs, begin, end, 2, type);
        break;
    case 3:
        add_values(kv, v, qs, begin, end, 3, type);
        break;
    default:
        add_values(kv, v, qs, begin, end, 4, type);
    }
}

static void add_range(const td_host_kv *kv, const uint8_t *v, query *const *qs, uint32_t begin,
                      uint32_t end, uint32_t n)
{
    switch (kv->base.params.type_v->id) {
    case TD_TYPE_F32:
        add_count(kv, v, qs, begin, end, n, TD_TYPE_F32);
        break;
    case TD_TYPE_F16:
        add_count(kv, v, qs, begin, end, n, TD_TYPE_F16);
        break;
    case TD_TYPE_Q8_0:
        add_count(kv, v, qs, begin, end, n, TD_TYPE_Q8_0);
        break;
    default:
        add_count(kv, v, qs, begin, end, n, TD_TYPE_Q4_0);
    }
}

/* Adds each query's visible slots in ascending order. Slots that all queries see are added for all
 * of them at once, those before and after them query by query. */
static void add_page(const td_host_kv *kv, const uint8_t *v, query *const *qs, uint32_t n)
{
    uint32_t begin = 0, end = POSITIONS;
    for (uint32_t i = 0; i < n; i++) {
        begin = qs[i]->begin > begin ? qs[i]->begin : begin;
        end = td_min_u32(qs[i]->end, end);
    }
    if (begin >= end) { /* windows that do not meet */
        for (uint32_t i = 0; i < n; i++)
            add_range(kv, v, &qs[i], qs[i]->begin, qs[i]->end, 1);
        return;
    }
    for (uint32_t i = 0; i < n; i++)
        if (qs[i]->begin < begin) {
            add_range(kv, v, &qs[i], qs[i]->begin, begin, 1);
            qs[i]->c = 1;
        }
    add_range(kv, v, qs, begin, end, n);
    for (uint32_t i = 0; i < n; i++)
        if (end < qs[i]->end) {
            qs[i]->c = 1;
            add_range(kv, v, &qs[i], end, qs[i]->end, 1);
        }
}

#endif
