/* Kernels along a row, over the vectors of vec_*.h. Compiled once per SIMD level by isa_*.c; the
 * arithmetic is arith.h's. */
#ifndef TD_KERNELS_HOST_BODY_MATH_H
#define TD_KERNELS_HOST_BODY_MATH_H

#define VECTORS (16 / VL) /* that make up 16 lanes */

INLINE vf vf_exp(vf x)
{
    x = vf_max(vf_set1(TD_EXP_MIN), x);
    x = vf_min(vf_set1(TD_EXP_MAX), x);
    vf magic = vf_set1(TD_EXP_MAGIC);
    vf shifted = vf_fma(x, vf_set1(TD_EXP_LOG2E), magic);
    vf n = vf_sub(shifted, magic);
    vf r = vf_fnma(n, vf_set1(TD_EXP_LN2_HI), x);
    r = vf_fnma(n, vf_set1(TD_EXP_LN2_LO), r);
    vf p = vf_fma(vf_set1(TD_EXP_C4), r, vf_set1(TD_EXP_C3));
    p = vf_fma(p, r, vf_set1(TD_EXP_C2));
    p = vf_fma(p, r, vf_set1(TD_EXP_C1));
    p = vf_fma(p, r, vf_set1(TD_EXP_C0));
    p = vf_add(vf_fma(p, vf_mul(r, r), r), vf_set1(1.0f));
    vi whole = vi_sub(vi_bits(shifted), vi_bits(magic));
    vi half = vi_sra(whole, 1), offset = vi_set1(127);
    vf first = vf_bits(vi_shl(vi_add(half, offset), 23));
    vf second = vf_bits(vi_shl(vi_add(vi_sub(whole, half), offset), 23));
    return vf_mul(vf_mul(p, first), second);
}

INLINE vf vf_tanh(vf x)
{
    vi sign = vi_and(vi_bits(x), vi_set1(INT32_MIN));
    vf a = vf_bits(vi_and(vi_bits(x), vi_set1(INT32_MAX)));
    vf e = vf_exp(vf_add(a, a));
    vf t = vf_sub(vf_set1(1.0f), vf_div(vf_set1(2.0f), vf_add(e, vf_set1(1.0f))));
    return vf_bits(vi_or(vi_and(vi_bits(t), vi_set1(INT32_MAX)), sign));
}

static void exp_row(const float *x, uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i += VL) {
        uint32_t n_left = td_min_u32(n - i, VL);
        vf_store_n(y + i, vf_exp(vf_load_n(x + i, n_left)), n_left);
    }
}

static void swiglu_row(const float *gate, const float *up, uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i += VL) {
        uint32_t n_left = td_min_u32(n - i, VL);
        vf g = vf_load_n(gate + i, n_left);
        vf e = vf_exp(vf_sub(vf_bits(vi_set1(INT32_MIN)), g)); /* -0 - g = -g */
        vf silu = vf_div(g, vf_add(vf_set1(1.0f), e));
        vf_store_n(y + i, vf_mul(silu, vf_load_n(up + i, n_left)), n_left);
    }
}

static void add_row(const float *a, const float *b, uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i += VL) {
        uint32_t n_left = td_min_u32(n - i, VL);
        vf_store_n(y + i, vf_add(vf_load_n(a + i, n_left), vf_load_n(b + i, n_left)), n_left);
    }
}

/* The same halves as td_f32_to_f16. */
static void f16_row(const float *x, uint32_t n, uint16_t *y)
{
    for (uint32_t i = 0; i < n; i += VL) {
        uint32_t n_left = td_min_u32(n - i, VL);
        uint16_t halves[VL];
        vf_store_f16(halves, vf_load_n(x + i, n_left));
        memcpy(y + i, halves, n_left * sizeof *y);
    }
}

INLINE uint32_t lanes_left(uint32_t n, uint32_t i) { return i < n ? td_min_u32(n - i, VL) : 0; }

static void rms_norm_row(const float *x, const float *w, uint32_t n, float eps, float *y)
{
    vf sum[VECTORS];
    for (int v = 0; v < VECTORS; v++)
        sum[v] = vf_zero();
    for (uint32_t i = 0; i < n; i += 16)
        for (uint32_t v = 0; v < VECTORS; v++) {
            uint32_t at = i + v * VL;
            vf a = vf_load_n(x + (at < n ? at : 0), lanes_left(n, at));
            sum[v] = vf_fma(a, a, sum[v]);
        }
    vf s = vf_set1(1.0f / sqrtf(v16_sum(sum) / (float)n + eps));
    for (uint32_t i = 0; i < n; i += VL) {
        uint32_t n_left = td_min_u32(n - i, VL);
        vf a = vf_mul(vf_load_n(x + i, n_left), s);
        if (w)
            a = vf_mul(a, vf_load_n(w + i, n_left));
        vf_store_n(y + i, a, n_left);
    }
}

static void rope_head(float *x, const float *cos_sin, td_rope_kind kind, uint32_t n_rot)
{
    uint32_t n_pairs = n_rot / 2;
    for (uint32_t i = 0; i < n_pairs; i++) {
        float *a = kind == TD_ROPE_NEOX ? x + i : x + 2 * i;
        float *b = kind == TD_ROPE_NEOX ? a + n_pairs : a + 1;
        float c = cos_sin[2 * i], s = cos_sin[2 * i + 1];
        float rotated_a = fmaf(*a, c, -(*b * s));
        *b = fmaf(*a, s, *b * c);
        *a = rotated_a;
    }
}

static void fill_act_sums(td_act_block *b, int32_t low, int32_t high)
{
    b->sum = low + high;
    b->by_128 = -128 * b->sum;
    b->by_8 = -8 * b->sum;
    b->by_32[0] = -32 * low;
    b->by_32[1] = -32 * high;
}

static void quantize_row(const float *x, uint32_t n, td_act_block *out)
{
    for (; n; n -= TD_ACT_BLOCK, x += TD_ACT_BLOCK, out++) {
        /* Bit patterns of magnitudes are ordered like the floats, Inf and NaN above all. */
        vi bits[VECTORS], q[2 * VECTORS];
        vi magnitude = vi_set1(INT32_MAX);
        for (int v = 0; v < VECTORS; v++)
            bits[v] = vi_max(vi_and(vi_bits(vf_load(x + v * VL)), magnitude),
                             vi_and(vi_bits(vf_load(x + 16 + v * VL)), magnitude));
        uint32_t largest = (uint32_t)v16_max_i(bits);
        float amax = td_arith_from_bits(largest);
        if (largest >= 0x7f800000u || amax < TD_ACT_AMAX_MIN) {
            *out = (td_act_block){.d = largest >= 0x7f800000u ? NAN : 0.0f};
            continue;
        }
        vf inverse = vf_set1(127.0f / amax);
        for (int v = 0; v < 2 * VECTORS; v++)
            q[v] = vi_of_vf(vf_mul(vf_load(x + v * VL), inverse));
        v32_store_i8(out->q, q);
        out->d = amax / 127.0f;
        fill_act_sums(out, v16_sum_i(q), v16_sum_i(q + VECTORS));
    }
}

#endif
