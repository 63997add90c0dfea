/* Kernels along a row, over the vectors of vec_*.h. Compiled once per SIMD level by isa_*.c; the
 * arithmetic is arith.h's. */
#ifndef TD_KERNELS_HOST_BODY_MATH_H
#define TD_KERNELS_HOST_BODY_MATH_H

#define VECTORS (16 / VL) /* that make up 16 lanes */

/* exp(x) = result * 2^n; n is shifted - magic, which rounds x / ln 2. */
INLINE vf exp_reduced(vf x, vf magic, vf *shifted)
{
    *shifted = vf_fma(x, vf_set1(TD_EXP_LOG2E), magic);
    vf n = vf_sub(*shifted, magic);
    vf r = vf_fnma(n, vf_set1(TD_EXP_LN2_HI), x);
    r = vf_fnma(n, vf_set1(TD_EXP_LN2_LO), r);
    vf p = vf_fma(vf_set1(TD_EXP_C4), r, vf_set1(TD_EXP_C3));
    p = vf_fma(p, r, vf_set1(TD_EXP_C2));
    p = vf_fma(p, r, vf_set1(TD_EXP_C1));
    p = vf_fma(p, r, vf_set1(TD_EXP_C0));
    return vf_add(vf_fma(p, vf_mul(r, r), r), vf_set1(1.0f));
}

INLINE vf vf_exp(vf x)
{
    x = vf_max(vf_set1(TD_EXP_MIN), x);
    x = vf_min(vf_set1(TD_EXP_MAX), x);
    vf magic = vf_set1(TD_EXP_MAGIC);
    vf shifted, p = exp_reduced(x, magic, &shifted);
    vi whole = vi_sub(vi_bits(shifted), vi_bits(magic));
    vi half = vi_sra(whole, 1), offset = vi_set1(127);
    vf first = vf_bits(vi_shl(vi_add(half, offset), 23));
    vf second = vf_bits(vi_shl(vi_add(vi_sub(whole, half), offset), 23));
    return vf_mul(vf_mul(p, first), second);
}

/* vf_exp of x <= 0 or NaN: the last step alone rounds, since 2^(n + 65) is normal there. An even
 * offset in the magic number leaves ties as they are. */
INLINE vf vf_exp_below(vf x)
{
    x = vf_max(vf_set1(TD_EXP_MIN), x);
    vf magic = vf_set1(TD_EXP_MAGIC + 192);
    vf shifted, p = exp_reduced(x, magic, &shifted);
    vf raised = vf_bits(vi_shl(vi_bits(shifted), 23));
    return vf_mul(vf_mul(p, raised), vf_set1(0x1p-65f));
}

INLINE vf vf_tanh(vf x)
{
    vi sign = vi_and(vi_bits(x), vi_set1(INT32_MIN));
    vf a = vf_bits(vi_and(vi_bits(x), vi_set1(INT32_MAX)));
    vf e = vf_exp(vf_add(a, a));
    vf t = vf_sub(vf_set1(1.0f), vf_div(vf_set1(2.0f), vf_add(e, vf_set1(1.0f))));
    return vf_bits(vi_or(vi_and(vi_bits(t), vi_set1(INT32_MAX)), sign));
}

/* part(n_lanes) for each vector of a row of n, i being its first element: whole vectors with a
 * constant count, which leaves no masks in the loop. */
#define EACH_PART(n, part)                                                                         \
    {                                                                                              \
        uint32_t i = 0;                                                                            \
        for (; i + VL <= (n); i += VL)                                                             \
            part(VL);                                                                              \
        if (i < (n))                                                                               \
            part((n)-i);                                                                           \
    }

static void exp_row(const float *x, uint32_t n, float *y){
#define PART(n_lanes) vf_store_n(y + i, vf_exp(vf_load_n(x + i, n_lanes)), n_lanes)
    EACH_PART(n, PART)
#undef PART
}

INLINE vf swiglu_of(vf g, vf up)
{
    vf e = vf_exp(vf_sub(vf_bits(vi_set1(INT32_MIN)), g)); /* -0 - g = -g */
    return vf_mul(vf_div(g, vf_add(vf_set1(1.0f), e)), up);
}

static void swiglu_row(const float *gate, const float *up, uint32_t n, float *y)
{
#define PART(n_lanes)                                                                              \
    vf_store_n(y + i, swiglu_of(vf_load_n(gate + i, n_lanes), vf_load_n(up + i, n_lanes)), n_lanes)
    EACH_PART(n, PART)
#undef PART
}

static void add_row(const float *a, const float *b, uint32_t n, float *y){
#define PART(n_lanes)                                                                              \
    vf_store_n(y + i, vf_add(vf_load_n(a + i, n_lanes), vf_load_n(b + i, n_lanes)), n_lanes)
    EACH_PART(n, PART)
#undef PART
}

INLINE void scale_row(float *x, uint32_t n, float by)
{
#define PART(n_lanes) vf_store_n(x + i, vf_mul(vf_load_n(x + i, n_lanes), vf_set1(by)), n_lanes)
    EACH_PART(n, PART)
#undef PART
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
    uint32_t n_whole = n / 16 * 16;
    for (uint32_t i = 0; i < n_whole; i += 16)
        UNROLL for (uint32_t v = 0; v < VECTORS; v++)
        {
            vf a = vf_load(x + i + v * VL);
            sum[v] = vf_fma(a, a, sum[v]);
        }
    for (uint32_t v = 0; v < VECTORS; v++) {
        uint32_t n_left = lanes_left(n, n_whole + v * VL);
        vf a = vf_load_n(x + (n_left ? n_whole + v * VL : 0), n_left);
        sum[v] = vf_fma(a, a, sum[v]);
    }
    float s = 1.0f / sqrtf(v16_sum(sum) / (float)n + eps);
    if (!w) {
        memmove(y, x, n * sizeof *y);
        scale_row(y, n, s);
        return;
    }
#define PART(n_lanes)                                                                              \
    vf_store_n(y + i,                                                                              \
               vf_mul(vf_mul(vf_load_n(x + i, n_lanes), vf_set1(s)), vf_load_n(w + i, n_lanes)),   \
               n_lanes)
    EACH_PART(n, PART)
#undef PART
}

/* (a, b) of a pair turned by (c, s). */
INLINE void turn(vf *a, vf *b, vf c, vf s)
{
    vf a0 = *a, minus_bs = vf_bits(vi_xor(vi_bits(vf_mul(*b, s)), vi_set1(INT32_MIN)));
    vf bc = vf_mul(*b, c);
    *a = vf_fma(a0, c, minus_bs);
    *b = vf_fma(a0, s, bc);
}

static void rope_head(float *x, const float *cos_sin, td_rope_kind kind, uint32_t n_rot)
{
    uint32_t n_pairs = n_rot / 2, i = 0;
    for (; i + VL <= n_pairs; i += VL) {
        vf a, b, c, s;
        vf_unzip(vf_load(cos_sin + 2 * i), vf_load(cos_sin + 2 * i + VL), &c, &s);
        if (kind == TD_ROPE_NEOX) {
            a = vf_load(x + i);
            b = vf_load(x + n_pairs + i);
            turn(&a, &b, c, s);
            vf_store(x + i, a);
            vf_store(x + n_pairs + i, b);
        } else {
            vf_unzip(vf_load(x + 2 * i), vf_load(x + 2 * i + VL), &a, &b);
            turn(&a, &b, c, s);
            vf_zip(a, b, &c, &s);
            vf_store(x + 2 * i, c);
            vf_store(x + 2 * i + VL, s);
        }
    }
    for (; i < n_pairs; i++) {
        float *a = kind == TD_ROPE_NEOX ? x + i : x + 2 * i;
        float *b = kind == TD_ROPE_NEOX ? a + n_pairs : a + 1;
        float c = cos_sin[2 * i], s = cos_sin[2 * i + 1];
        float turned_a = fmaf(*a, c, -(*b * s));
        *b = fmaf(*a, s, *b * c);
        *a = turned_a;
    }
}

#define QUANTIZE_BLOCKS 32u /* at a time, so that neither latencies nor divisions add up */

/* out[b]: the bits of block b's amax. Those of magnitudes are ordered like the floats, Inf and NaN
 * above all. */
INLINE void find_amax(const float *x, uint32_t n_blocks, uint32_t *out)
{
    for (uint32_t b = 0; b < n_blocks; b++, x += TD_ACT_BLOCK) {
        vi bits[VECTORS];
        vi magnitude = vi_set1(INT32_MAX);
        UNROLL for (int v = 0; v < VECTORS; v++) bits[v] =
            vi_max(vi_and(vi_bits(vf_load(x + v * VL)), magnitude),
                   vi_and(vi_bits(vf_load(x + 16 + v * VL)), magnitude));
        out[b] = (uint32_t)v16_max_i(bits);
    }
}

static void quantize_row(const float *x, uint32_t n, td_act_block *out)
{
    for (uint32_t n_left = n / TD_ACT_BLOCK, n_blocks; n_left; n_left -= n_blocks) {
        uint32_t bits[QUANTIZE_BLOCKS];
        float d[QUANTIZE_BLOCKS], inverse[QUANTIZE_BLOCKS];
        n_blocks = td_min_u32(n_left, QUANTIZE_BLOCKS);
        find_amax(x, n_blocks, bits);
        for (uint32_t b = 0; b < n_blocks; b++) {
            float amax = td_arith_from_bits(bits[b]);
            bool is_zero = bits[b] >= 0x7f800000u || amax < TD_ACT_AMAX_MIN;
            inverse[b] = is_zero ? 0.0f : 127.0f / amax;
            d[b] = bits[b] >= 0x7f800000u ? NAN : is_zero ? 0.0f : amax / 127.0f;
        }
        for (uint32_t b = 0; b < n_blocks; b++, x += TD_ACT_BLOCK, out++) {
            if (inverse[b] == 0.0f) {
                *out = (td_act_block){.d = d[b]};
                continue;
            }
            vi q[2 * VECTORS];
            vf by = vf_set1(inverse[b]);
            UNROLL for (int v = 0; v < 2 * VECTORS; v++) q[v] =
                vi_of_vf(vf_mul(vf_load(x + v * VL), by));
            v32_store_i8(out->q, q);
            int32_t low, high;
            v32_sums(q, &low, &high);
            out->d = d[b];
            out->sum = (float)(low + high);
            out->by_128 = -128 * (low + high);
            out->by_8 = -8 * (low + high);
            out->by_32[0] = -32 * low;
            out->by_32[1] = -32 * high;
            out->half_by_128[0] = -128 * low;
            out->half_by_128[1] = -128 * high;
        }
    }
}

#endif
