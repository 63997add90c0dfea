/* Attention of one query head over its pages (host.h, arith.h): a lane is a position while the
 * scores are made, and a column of the value while these are summed. The sum of the values so far
 * lies in the output row itself. */
#ifndef TD_KERNELS_HOST_BODY_ATTENTION_H
#define TD_KERNELS_HOST_BODY_ATTENTION_H

#include "kernels/host/body_mat_mul.h"

#define POSITIONS TD_PAGE_POSITIONS
#define CHAINS    4 /* independent accumulators, to hide the latency of fma */

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
INLINE void score_page(const td_host_kv *kv, const uint8_t *k, const float *q, float *s,
                       const td_type type)
{
    const uint16_t *scales = (const uint16_t *)(const void *)(k + kv->scales_offset_k);
    uint32_t n = kv->base.params.head_dim_k;
    const bool is_quantized = type == TD_TYPE_Q8_0 || type == TD_TYPE_Q4_0;
    for (uint32_t lane = 0; lane < POSITIONS; lane += CHAINS * VL) {
        vf acc[CHAINS], scale[CHAINS];
        UNROLL for (uint32_t c = 0; c < CHAINS; c++) acc[c] = scale[c] = vf_zero();
        for (uint32_t d0 = 0; d0 < n; d0 += 32) {
            if (is_quantized)
                UNROLL for (uint32_t c = 0; c < CHAINS; c++) scale[c] =
                    vf_load_f16(scales + d0 / 32 * POSITIONS + lane + c * VL);
            for (uint32_t d = d0, end = td_min_u32(n, d0 + 32); d < end; d++) {
                vf qd = vf_set1(q[d]);
                UNROLL for (uint32_t c = 0; c < CHAINS; c++) acc[c] =
                    vf_fma(qd, load_key(k, d, lane + c * VL, scale[c], type), acc[c]);
            }
        }
        UNROLL for (uint32_t c = 0; c < CHAINS; c++) vf_store(s + lane + c * VL, acc[c]);
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
INLINE void add_values(const td_host_kv *kv, const uint8_t *v, const float *p, uint32_t begin,
                       uint32_t end, float c, float *y, const td_type type)
{
    uint32_t n = kv->base.params.head_dim_v;
    for (uint32_t d = 0; d < n; d += CHAINS * VL) {
        vf acc[CHAINS];
        uint32_t n_lanes[CHAINS];
        UNROLL for (uint32_t i = 0; i < CHAINS; i++)
        {
            n_lanes[i] = lanes_left(n, d + i * VL);
            acc[i] =
                n_lanes[i] ? vf_mul(vf_load_n(y + d + i * VL, n_lanes[i]), vf_set1(c)) : vf_zero();
        }
        for (uint32_t j = begin; j < end; j++) {
            vf pj = vf_set1(p[j]);
            const uint8_t *row = v + j * kv->row_bytes_v;
            UNROLL for (uint32_t i = 0; i < CHAINS; i++) if (n_lanes[i]) acc[i] =
                vf_fma(pj, load_value(row, d + i * VL, n_lanes[i], type), acc[i]);
        }
        UNROLL for (uint32_t i = 0; i < CHAINS; i++) if (n_lanes[i])
            vf_store_n(y + d + i * VL, acc[i], n_lanes[i]);
    }
}

static void score_any(const td_host_kv *kv, const uint8_t *k, const float *q, float *s)
{
    switch (kv->base.params.type_k->id) {
    case TD_TYPE_F32:
        score_page(kv, k, q, s, TD_TYPE_F32);
        break;
    case TD_TYPE_F16:
        score_page(kv, k, q, s, TD_TYPE_F16);
        break;
    case TD_TYPE_Q8_0:
        score_page(kv, k, q, s, TD_TYPE_Q8_0);
        break;
    default:
        score_page(kv, k, q, s, TD_TYPE_Q4_0);
    }
}

static void add_any(const td_host_kv *kv, const uint8_t *v, const float *p, uint32_t begin,
                    uint32_t end, float c, float *y)
{
    switch (kv->base.params.type_v->id) {
    case TD_TYPE_F32:
        add_values(kv, v, p, begin, end, c, y, TD_TYPE_F32);
        break;
    case TD_TYPE_F16:
        add_values(kv, v, p, begin, end, c, y, TD_TYPE_F16);
        break;
    case TD_TYPE_Q8_0:
        add_values(kv, v, p, begin, end, c, y, TD_TYPE_Q8_0);
        break;
    default:
        add_values(kv, v, p, begin, end, c, y, TD_TYPE_Q4_0);
    }
}

/* Scales and caps the scores, hides those outside [begin, end) and returns the largest. */
static float finish_scores(float *s, uint32_t begin, uint32_t end, float scale, float softcap)
{
    vf largest[VECTORS];
    UNROLL for (uint32_t v = 0; v < VECTORS; v++) largest[v] = vf_set1(-INFINITY);
    for (uint32_t i = 0; i < POSITIONS; i += VL) {
        vf a = vf_mul(vf_load(s + i), vf_set1(scale));
        if (softcap != 0)
            a = vf_mul(vf_set1(softcap), vf_tanh(vf_div(a, vf_set1(softcap))));
        vf_store(s + i, a);
    }
    for (uint32_t i = 0; i < begin; i++)
        s[i] = -INFINITY;
    for (uint32_t i = end; i < POSITIONS; i++)
        s[i] = -INFINITY;
    for (uint32_t i = 0; i < POSITIONS; i += 16)
        UNROLL for (uint32_t v = 0; v < VECTORS; v++) largest[v] =
            vf_max(vf_load(s + i + v * VL), largest[v]);
    return v16_max(largest);
}

/* p = exp(s - m) in place; returns their sum. Hidden positions give exp(-inf) = 0, or NaN when m
 * is not finite: so is the sum then. */
static float exp_scores(float *s, float m)
{
    vf sum[VECTORS];
    UNROLL for (uint32_t v = 0; v < VECTORS; v++) sum[v] = vf_zero();
    for (uint32_t i = 0; i < POSITIONS; i += 16)
        UNROLL for (uint32_t v = 0; v < VECTORS; v++)
        {
            vf p = vf_exp(vf_sub(vf_load(s + i + v * VL), vf_set1(m)));
            vf_store(s + i + v * VL, p);
            sum[v] = vf_add(sum[v], p);
        }
    return v16_sum(sum);
}

static void attention(const td_host_attention *a)
{
    const td_kv_params *kv = &a->kv->base.params;
    uint32_t n_v = kv->head_dim_v, last = a->position, first = 0;
    if (a->params->window && last >= a->params->window)
        first = last - a->params->window + 1;
    float m = -INFINITY, sum = 0;
    _Alignas(64) float s[POSITIONS];
    memset(a->y, 0, n_v * sizeof *a->y);
    for (uint32_t i = first / POSITIONS; i <= last / POSITIONS; i++) {
        uint32_t page0 = i * POSITIONS, page = (uint32_t)a->pages[i];
        TD_ASSERT(page < kv->n_pages);
        uint32_t begin = first > page0 ? first - page0 : 0;
        uint32_t end = td_min_u32(last - page0 + 1, POSITIONS);
        size_t head = (size_t)page * kv->n_head_kv + a->head_kv;
        score_any(a->kv, a->kv->k + head * a->kv->head_bytes_k, a->q, s);
        float largest = finish_scores(s, begin, end, a->params->scale, a->params->softcap);
        float m_new = largest > m ? largest : m;
        float c = td_arith_exp(m - m_new);
        sum = fmaf(sum, c, exp_scores(s, m_new));
        add_any(a->kv, a->kv->v + head * a->kv->head_bytes_v, s, begin, end, c, a->y);
        m = m_new;
    }
    vf inverse = vf_set1(1.0f / sum);
    for (uint32_t d = 0; d < n_v; d += VL) {
        uint32_t n = td_min_u32(n_v - d, VL);
        vf_store_n(a->y + d, vf_mul(vf_load_n(a->y + d, n), inverse), n);
    }
}

#endif
