/* More kernels along a row: gated units, the sum of experts, the gated delta rule. */
#ifndef TD_KERNELS_HOST_BODY_MIX_H
#define TD_KERNELS_HOST_BODY_MIX_H

#include "kernels/host/body_math.h"

INLINE vf vf_neg(vf x) { return vf_bits(vi_xor(vi_bits(x), vi_set1(INT32_MIN))); }

/* 1 + exp(-x) */
INLINE vf vf_one_and_exp(vf x) { return vf_add(vf_set1(1.0f), vf_exp(vf_neg(x))); }

INLINE vf glu_of(const td_glu_kind kind, vf g, vf u)
{
    if (kind == TD_GLU_GELU) {
        vf cubic = vf_fma(vf_mul(vf_set1(0.044715f), g), g, vf_set1(1.0f));
        vf t = vf_tanh(vf_mul(vf_mul(vf_set1(TD_GELU_C), g), cubic));
        return vf_mul(vf_mul(vf_mul(vf_set1(0.5f), g), vf_add(vf_set1(1.0f), t)), u);
    }
    if (kind == TD_GLU_CLAMPED) { /* min and max pass a second operand that is NaN through */
        g = vf_min(vf_set1(7.0f), g);
        u = vf_max(vf_set1(-7.0f), vf_min(vf_set1(7.0f), u));
        vf e = vf_add(vf_set1(1.0f), vf_exp(vf_mul(vf_set1(-1.702f), g)));
        return vf_mul(vf_div(g, e), vf_add(u, vf_set1(1.0f)));
    }
    if (kind == TD_GLU_SIGMOID)
        return vf_mul(vf_div(vf_set1(1.0f), vf_one_and_exp(g)), u);
    return vf_mul(vf_div(g, vf_one_and_exp(g)), u);
}

INLINE void glu_kind_row(const td_glu_kind kind, const float *gate, uint32_t gate_step,
                         const float *up, const float *scale, uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i += VL) {
        uint32_t n_lanes = td_min_u32(n - i, VL);
        vf g = gate_step ? vf_load_n(gate + i, n_lanes) : vf_set1(*gate);
        vf u = vf_load_n(up + i, n_lanes);
        if (scale) {
            g = vf_mul(g, vf_set1(*scale));
            u = vf_mul(u, vf_set1(*scale));
        }
        vf_store_n(y + i, glu_of(kind, g, u), n_lanes);
    }
}

static void glu_row(td_glu_kind kind, const float *gate, uint32_t gate_step, const float *up,
                    const float *scale, uint32_t n, float *y)
{
    switch (kind) {
    case TD_GLU_SILU:
        if (!scale && gate_step)
            swiglu_row(gate, up, n, y);
        else
            glu_kind_row(TD_GLU_SILU, gate, gate_step, up, scale, n, y);
        break;
    case TD_GLU_GELU:
        glu_kind_row(TD_GLU_GELU, gate, gate_step, up, scale, n, y);
        break;
    case TD_GLU_CLAMPED:
        glu_kind_row(TD_GLU_CLAMPED, gate, gate_step, up, scale, n, y);
        break;
    case TD_GLU_SIGMOID:
        glu_kind_row(TD_GLU_SIGMOID, gate, gate_step, up, scale, n, y);
        break;
    }
}

static void scaled_row(const float *x, float factor, const float *by, uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i += VL) {
        uint32_t n_lanes = td_min_u32(n - i, VL);
        vf a = vf_mul(vf_load_n(x + i, n_lanes), vf_set1(factor));
        vf_store_n(y + i, by ? vf_mul(a, vf_set1(*by)) : a, n_lanes);
    }
}

static void softcap_row(const float *x, float cap, uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i += VL) {
        uint32_t n_lanes = td_min_u32(n - i, VL);
        vf t = vf_tanh(vf_div(vf_load_n(x + i, n_lanes), vf_set1(cap)));
        vf_store_n(y + i, vf_mul(vf_set1(cap), t), n_lanes);
    }
}

static void experts_sum_row(const float *x, size_t stride, const float *w, uint32_t n_used,
                            uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i += VL) {
        uint32_t n_lanes = td_min_u32(n - i, VL);
        vf acc = vf_mul(vf_set1(w[0]), vf_load_n(x + i, n_lanes));
        for (uint32_t e = 1; e < n_used; e++)
            acc = vf_fma(vf_set1(w[e]), vf_load_n(x + e * stride + i, n_lanes), acc);
        vf_store_n(y + i, acc, n_lanes);
    }
}

/* -- the gated delta rule: a lane is an element of the value ----------------------------------- */

#define DELTA_VECTORS 4u /* at once, to hide the latency of fma */

static void conv_row(const float *const *taps, uint32_t n_taps, const float *w, size_t stride,
                     uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i += VL) {
        uint32_t n_lanes = td_min_u32(n - i, VL);
        vf acc = vf_zero();
        for (uint32_t t = 0; t < n_taps; t++)
            acc = vf_fma(vf_load_n(w + t * stride + i, n_lanes), vf_load_n(taps[t] + i, n_lanes),
                         acc);
        vf_store_n(y + i, vf_div(acc, vf_one_and_exp(acc)), n_lanes);
    }
}

static void unit_row(float *x, uint32_t n, float eps, float scale)
{
    vf sum[VECTORS];
    for (int v = 0; v < VECTORS; v++)
        sum[v] = vf_zero();
    for (uint32_t i = 0; i < n; i += 16)
        for (uint32_t v = 0; v < VECTORS; v++) {
            uint32_t n_left = lanes_left(n, i + v * VL);
            vf a = vf_load_n(x + (n_left ? i + v * VL : 0), n_left);
            sum[v] = vf_fma(a, a, sum[v]);
        }
    scale_row(x, n, 1.0f / sqrtf(v16_sum(sum) + eps));
    if (scale != 1.0f)
        scale_row(x, n, scale);
}

/* Columns j.. of a step, n_vectors of them; whole vectors but for the last, of n_last lanes. */
INLINE void delta_columns(float *s, uint32_t n, uint32_t j, const float *q, const float *k,
                          const float *v, float g, float beta, float *y, const uint32_t n_vectors,
                          const uint32_t n_last)
{
    vf u[DELTA_VECTORS], said[DELTA_VECTORS];
#define LANES(c)    ((c) + 1 == n_vectors ? n_last : VL)
#define EACH_COLUMN UNROLL for (uint32_t c = 0; c < n_vectors; c++)
    EACH_COLUMN
    {
        u[c] = vf_zero();
        said[c] = vf_zero();
    }
    for (uint32_t i = 0; i < n; i++) {
        vf ki = vf_set1(k[i]);
        EACH_COLUMN
        {
            float *at = s + (size_t)i * n + j + c * VL;
            vf a = vf_mul(vf_load_n(at, LANES(c)), vf_set1(g));
            vf_store_n(at, a, LANES(c));
            u[c] = vf_fma(ki, a, u[c]);
        }
    }
    EACH_COLUMN u[c] = vf_mul(vf_set1(beta), vf_sub(vf_load_n(v + j + c * VL, LANES(c)), u[c]));
    for (uint32_t i = 0; i < n; i++) {
        vf ki = vf_set1(k[i]), qi = vf_set1(y ? q[i] : 0.0f);
        EACH_COLUMN
        {
            float *at = s + (size_t)i * n + j + c * VL;
            vf a = vf_fma(ki, u[c], vf_load_n(at, LANES(c)));
            vf_store_n(at, a, LANES(c));
            said[c] = vf_fma(qi, a, said[c]);
        }
    }
    if (y)
        EACH_COLUMN vf_store_n(y + j + c * VL, said[c], LANES(c));
#undef EACH_COLUMN
#undef LANES
}

static void delta_step(float *s, uint32_t n, const float *q, const float *k, const float *v,
                       float g, float beta, float *u, float *y)
{
    (void)u;
    uint32_t j = 0;
    for (; j + DELTA_VECTORS * VL <= n; j += DELTA_VECTORS * VL)
        delta_columns(s, n, j, q, k, v, g, beta, y, DELTA_VECTORS, VL);
    for (; j + VL <= n; j += VL)
        delta_columns(s, n, j, q, k, v, g, beta, y, 1, VL);
    if (j < n)
        delta_columns(s, n, j, q, k, v, g, beta, y, 1, n - j);
}

#endif
