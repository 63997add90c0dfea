/* Attention of queries that read the same kv head of the same sequence, page by page (host.h,
 * arith.h): a lane is a position while the scores are made, and a column of the value while these
 * are summed. Keys and values are read once for all queries, by body_attention_few.h or
 * body_attention_many.h; a query's arithmetic does not depend on its company. The sum of a query's
 * values so far lies in its output row itself. */
#ifndef TD_KERNELS_HOST_BODY_ATTENTION_H
#define TD_KERNELS_HOST_BODY_ATTENTION_H

#include "kernels/host/body_attention_ints.h"
#include "kernels/host/body_rotate.h"

/* Scales and caps the scores, hides those outside [begin, end) and returns the largest. */
static float finish_scores(float *s, uint32_t begin, uint32_t end, float scale, float softcap)
{
    vf largest[VECTORS];
    UNROLL for (uint32_t v = 0; v < VECTORS; v++) largest[v] = vf_set1(-INFINITY);
    for (uint32_t i = 0; i < POSITIONS; i += 16)
        UNROLL for (uint32_t v = 0; v < VECTORS; v++)
        {
            vf a = vf_mul(vf_load(s + i + v * VL), vf_set1(scale));
            if (softcap != 0)
                a = vf_mul(vf_set1(softcap), vf_tanh(vf_div(a, vf_set1(softcap))));
            vf_store(s + i + v * VL, a);
            largest[v] = vf_max(a, largest[v]);
        }
    if (begin == 0 && end == POSITIONS)
        return v16_max(largest);
    UNROLL for (uint32_t v = 0; v < VECTORS; v++) largest[v] = vf_set1(-INFINITY);
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
            vf p = vf_exp_below(vf_sub(vf_load(s + i + v * VL), vf_set1(m)));
            vf_store(s + i + v * VL, p);
            sum[v] = vf_add(sum[v], p);
        }
    return v16_sum(sum);
}

INLINE bool is_quantized(const td_type_info *type) { return type->block_elements > 1; }

/* Where the head begins in page `in_cache` of the cache, in heads. */
static size_t head_at(const td_host_attention *a, uint32_t in_cache)
{
    return (size_t)in_cache * a->kv->base.params.n_head_kv + a->head_kv;
}

/* Page number `page` of the sequence, for the n queries that see any of it. */
static void attend_page(const td_host_attention *a, uint32_t page, bool is_last, query *const *qs,
                        uint32_t n)
{
    const td_host_kv *kv = a->kv;
    uint32_t n_pages = kv->base.params.n_pages, page0 = page * POSITIONS;
    uint32_t in_cache = (uint32_t)a->pages[page];
    uint32_t next = is_last ? n_pages : (uint32_t)a->pages[page + 1]; /* if anyone sees it */
    float c[TD_HOST_QUERIES_MAX] = {0}, top[TD_HOST_QUERIES_MAX] = {0};
    TD_ASSERT(in_cache < n_pages);
    const uint8_t *k = kv->k + head_at(a, in_cache) * kv->head_bytes_k;
    bool is_latent = kv->base.params.is_latent;
    const uint8_t *v = is_latent ? k : kv->v + head_at(a, in_cache) * kv->head_bytes_v;
    fetch values = {v, kv->head_bytes_v / LINE_BYTES, 0}, next_keys = {0};
    if (next < n_pages)
        next_keys =
            (fetch){kv->k + head_at(a, next) * kv->head_bytes_k, kv->head_bytes_k / LINE_BYTES, 0};
    if (is_quantized(kv->base.params.type_k))
        score_ints(kv, k, qs, n, &values);
    else if (n > QUERIES)
        score_many(kv, k, qs, n, &values);
    else
        score_any(kv, k, qs, n, &values);
    for (uint32_t i = 0; i < n; i++) {
        query *q = qs[i];
        q->begin = q->first > page0 ? q->first - page0 : 0;
        q->end = td_min_u32(q->last - page0 + 1, POSITIONS);
        float largest = finish_scores(q->s, q->begin, q->end, a->params->scale, a->params->softcap);
        float m = largest > q->m ? largest : q->m;
        c[i] = q->m - m;
        top[i] = largest - m;
        q->m = m;
    }
    for (uint32_t i = 0; i < n; i += VL) {
        vf_store(c + i, vf_exp_below(vf_load(c + i)));
        vf_store(top + i, vf_exp_below(vf_load(top + i)));
    }
    for (uint32_t i = 0; i < n; i++) {
        qs[i]->c = c[i];
        qs[i]->top = top[i];
        qs[i]->sum = fmaf(qs[i]->sum, c[i], exp_scores(qs[i]->s, qs[i]->m));
    }
    if (is_quantized(kv->base.params.type_v))
        add_ints(kv, v, qs, n, &next_keys);
    else if (n > QUERIES || is_latent)
        add_many(kv, v, qs, n, &next_keys);
    else
        add_page(kv, v, qs, n, &next_keys);
}

/* The sink takes part in the softmax like one more score; it has no value to add. */
static void add_sink(query *q, uint32_t n_v, float sink)
{
    float m = sink > q->m ? sink : q->m, c = td_arith_exp(q->m - m);
    q->sum = fmaf(q->sum, c, td_arith_exp(sink - m));
    scale_row(q->y, n_v, c);
}

static void attention(const td_host_attention *a)
{
    uint32_t n_v = a->kv->base.params.head_dim_v, first = UINT32_MAX, last = 0;
    query queries[TD_HOST_QUERIES_MAX];
    wide_query wide[TD_HOST_QUERIES_MAX];
    const td_kv_params *kv = &a->kv->base.params;
    float rotated[TD_HOST_QUERIES_MAX][TD_HOST_HEAD_DIM_MAX]; /* written where it is read */
    for (uint32_t i = 0; i < a->n_queries; i++) {
        query *q = &queries[i];
        q->q = a->queries[i].q;
        if (kv->rotates_k) {
            rotate_row(q->q, kv->head_dim_k, rotated[i]);
            q->q = rotated[i];
        }
        q->y = a->queries[i].y;
        q->wide = &wide[i];
        if (is_quantized(kv->type_k))
            quantize_query(q->q, kv->head_dim_k, q->wide);
        q->last = a->queries[i].position;
        q->first = td_first_visible(a->params, q->last);
        q->m = -INFINITY;
        q->sum = 0;
        memset(q->y, 0, n_v * sizeof *q->y);
        first = td_min_u32(first, q->first);
        last = q->last > last ? q->last : last;
    }
    for (uint32_t page = first / POSITIONS; page <= last / POSITIONS; page++) {
        query *seeing[TD_HOST_QUERIES_MAX];
        uint32_t n = 0;
        for (uint32_t i = 0; i < a->n_queries; i++)
            if (queries[i].first / POSITIONS <= page && page <= queries[i].last / POSITIONS)
                seeing[n++] = &queries[i];
        if (n)
            attend_page(a, page, page == last / POSITIONS, seeing, n);
    }
    for (uint32_t i = 0; i < a->n_queries; i++) {
        if (a->params->sinks)
            add_sink(&queries[i], n_v, td_host_vector(a->params->sinks)[a->queries[i].head]);
        scale_row(queries[i].y, n_v, 1.0f / queries[i].sum);
        if (kv->rotates_v)
            rotate_row(queries[i].y, n_v, queries[i].y);
    }
}

#endif
