/* The arithmetic of the host, stated once. The `scalar` device computes it in plain C and the
 * `host` device in SIMD, bit-equal to it at every level (generic to avx512), for any number of
 * threads, any number of rows and any row index. Law 1 rests on it: nothing below mentions how
 * many rows a batch has.
 *
 * fma(a, b, c) rounds once; + - * / and sqrt round once each; nothing is reassociated.
 *
 * mat_mul. One f32 accumulator per output, from 0, folded in ascending k; K is never split.
 *   F32, F16, BF16   acc = fma(w[k], x[k], acc)
 *   otherwise        x is quantized (below) in blocks of 32, which meet parts of 32 weights
 *       (types.h): integers w with a scale and a minimum m. isum = sum of w q and qsum = sum of q,
 *       exact in int32 and as f32; dx is the scale of x. Per part:
 *     total = scale * isum
 *     with a minimum   total = fma(-m, qsum, total)
 *     acc = fma(total, dx, acc)
 *     by 16 (types whose halves differ in scale, 0 and 1 being the halves)
 *       total = fma(scale1, isum1, scale0 * isum0)
 *       with a minimum   total = fma(-m1, qsum1, fma(-m0, qsum0, total))
 *   A bias is added last.
 *
 * Quantizing x, per block of 32. amax = max |x|:
 *   an x is Inf or NaN    d = NaN, q = 0
 *   amax < 2^-120         d = 0, q = 0
 *   otherwise             d = amax / 127, q = x * (127 / amax) rounded half to even
 *
 * sum16: the sum of terms t[0..n): 16 lanes from 0; lane j takes t[j], t[j + 16], ... in ascending
 *   order; then lane[j] += lane[j + 8], += lane[j + 4], += lane[j + 2], += lane[j + 1]. Where the
 *   terms are products they enter by fma; a tail shorter than 16 is filled with zeros.
 *
 * rms_norm. s = 1 / sqrt(sum16(x x) / n + eps); y = (x * s) * w.
 * rope. (a, b) -> (fma(a, cos, -(b * sin)), fma(a, sin, b * cos)).
 * glu. silu: (g / (1 + exp(-g))) * u. gelu: ((0.5 g) * (1 + tanh(C g fma(0.044715 g, g, 1)))) * u.
 *   clamped: (g / (1 + exp(-1.702 g))) * (u + 1). sigmoid: (1 / (1 + exp(-g))) * u. Scaled: g and u
 *   are first multiplied by the scale.
 * scale. (x * factor) * factors. softcap: cap * tanh(x / cap). experts_sum: acc = w0 x0, then
 *   acc = fma(w[i], x[i], acc).
 * route. softmax: m the largest, p = exp(l - m) / sum of exp(l - m) in ascending order. Sums of
 *   groups and of weights in the order of their choice.
 *
 * delta_net. c = fma chain of the taps in ascending order from 0; c / (1 + exp(-c)). x of q and k:
 *   (x * (1 / sqrt(sum16(x x) + eps))) * scale. g = exp(a * softplus(alpha + dt)), softplus in
 *   double, rounded once. Row by row, i the key's elements ascending, j the value's:
 *   s[i][j] *= g; u[j] = fma(k[i], s[i][j], u[j]); u = beta * (v - u);
 *   s[i][j] = fma(k[i], u[j], s[i][j]); y[j] = fma(q[i], s[i][j], y[j])
 *
 * attention, one query head: m = -inf, sum = 0, acc = 0; for each page of 64 positions that holds
 * a visible one, ascending, with keys and values decoded from the cache's type:
 *   s[j] = scale * (fma chain of q[d] k[j][d] in ascending d); softcap: s = cap * tanh(s / cap)
 *   m' = max(m, visible s); a NaN is passed over here and comes in below; c = exp(m - m')
 *   p[j] = exp(s[j] - m'), 0 where j is not visible
 *   sum = fma(sum, c, sum16(p)); acc = acc * c, then acc = fma(p[j], v[j], acc), visible j
 *   ascending
 * y = acc * (1 / sum).
 * Keys in blocks of 32 with a scale meet q quantized to 15 bits by the same blocks,
 * the head filled up with zeros: amax = max |q|; where one is Inf or NaN, d = NaN and the quants 0;
 * amax < 2^-100: both 0; else d = amax / 32767, quants q * (32767 / amax) rounded half to even.
 * s = fma(scale * isum, d, s), isum exact as f32, by ascending blocks from 0. With a minimum m, to
 * which quants are added, fma(m, sum of the quants of q, scale * isum) in the place of the product.
 * Such values, by blocks, take weights of 15 bits: t = exp(max visible s - m'), g = 1 / t, or 0 for
 * t < 2^-100; D = max visible |scale|, D and what is not finite as amax above;
 *   w[j] = (p[j] * g) * (scale[j] * (32767 / D)) rounded half to even, visible j
 *   acc = fma(isum of w v, t * (D / 32767), acc * c); with minimums m acc * c + sum16(p m), visible
 *   j, in the place of acc * c
 * A rotated cache (td_kv_params) has keys and values rotated before they are encoded; q is rotated
 * before all of this, y after it.
 * rotate, of n elements: groups, each the largest power of two that fits into what is left (96 is
 * 64 and 32). In a group of g elements, for h = 1, 2, 4, ... g / 2: (x[i], x[i + h]) -> (x[i] +
 * x[i + h], x[i] - x[i + h]) where i has not the bit h; then x * (1 / sqrt(g)).
 * A sink z: m' = max(m, z), c = exp(m - m'); sum = fma(sum, c, exp(z - m')), acc = acc * c.
 *
 * exp. x clamped to [-105, 89]; n = x / ln 2 rounded to an integer by adding and subtracting
 * 1.5 * 2^23; r = x - n ln 2 in two fmas; a polynomial of degree 6; 2^n multiplied in two steps, so
 * that subnormal results round once. exp(-inf) = 0, overflow gives inf, NaN stays NaN.
 * tanh(x) = copysign(1 - 2 / (exp(2 |x|) + 1), x).
 *
 * Which NaN a NaN is, is not part of the claim. */
#ifndef TD_KERNELS_HOST_ARITH_H
#define TD_KERNELS_HOST_ARITH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define TD_ACT_BLOCK    32u
#define TD_ACT_AMAX_MIN 0x1p-120f

#define TD_WIDE_MAX      32767.0f
#define TD_WIDE_AMAX_MIN 0x1p-100f

#define TD_EXP_MIN    (-105.0f)
#define TD_EXP_MAX    89.0f
#define TD_EXP_LOG2E  0x1.715476p+0f
#define TD_EXP_MAGIC  0x1.8p23f
#define TD_EXP_LN2_HI 0x1.62e4p-1f
#define TD_EXP_LN2_LO 0x1.7f7d1cp-20f
/* (exp(r) - 1 - r) / r^2 on [-ln 2 / 2, ln 2 / 2], interpolated at the Chebyshev points; the
 * relative error of exp is below 1.1e-8 before rounding. */
#define TD_EXP_C0 0x1p-1f
#define TD_EXP_C1 0x1.5554dcp-3f
#define TD_EXP_C2 0x1.55551ap-5f
#define TD_EXP_C3 0x1.120b6ep-7f
#define TD_EXP_C4 0x1.6d110ap-10f

static inline float td_arith_from_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint32_t td_arith_bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static inline float td_arith_exp(float x)
{
    x = TD_EXP_MIN > x ? TD_EXP_MIN : x; /* a NaN fails the comparison and passes through */
    x = TD_EXP_MAX < x ? TD_EXP_MAX : x;
    float shifted = fmaf(x, TD_EXP_LOG2E, TD_EXP_MAGIC);
    float n = shifted - TD_EXP_MAGIC;
    float r = fmaf(-n, TD_EXP_LN2_HI, x);
    r = fmaf(-n, TD_EXP_LN2_LO, r);
    float p = fmaf(TD_EXP_C4, r, TD_EXP_C3);
    p = fmaf(p, r, TD_EXP_C2);
    p = fmaf(p, r, TD_EXP_C1);
    p = fmaf(p, r, TD_EXP_C0);
    p = fmaf(p, r * r, r) + 1.0f;
    /* Unsigned, since the bits of a NaN make no sensible n. */
    uint32_t whole = td_arith_bits(shifted) - td_arith_bits(TD_EXP_MAGIC);
    uint32_t half = (uint32_t)((int32_t)whole >> 1);
    return p * td_arith_from_bits((half + 127u) << 23) *
           td_arith_from_bits((whole - half + 127u) << 23);
}

static inline float td_arith_tanh(float x)
{
    float a = fabsf(x);
    return copysignf(1.0f - 2.0f / (td_arith_exp(a + a) + 1.0f), x);
}

#define TD_GELU_C 0.79788456080286535588f /* sqrt(2 / pi) */

static inline float td_arith_decay(float alpha, float a, float dt)
{
    double x = (double)(alpha + dt);
    return td_arith_exp(a * (float)(x > 30 ? x : log1p(exp(x))));
}

/* Of the first group of n elements that are rotated. */
static inline uint32_t td_arith_rotation_size(uint32_t n)
{
    uint32_t size = 1;
    while (size <= n / 2)
        size *= 2;
    return size;
}

static inline float td_arith_rotation_scale(uint32_t size) { return 1.0f / sqrtf((float)size); }

static inline void td_arith_rotate_group(float *x, uint32_t size)
{
    for (uint32_t h = 1; h < size; h *= 2)
        for (uint32_t i = 0; i < size; i++)
            if (!(i & h)) {
                float a = x[i], b = x[i + h];
                x[i] = a + b;
                x[i + h] = a - b;
            }
    for (uint32_t i = 0; i < size; i++)
        x[i] *= td_arith_rotation_scale(size);
}

static inline void td_arith_rotate(float *x, uint32_t n)
{
    for (uint32_t size; n; x += size, n -= size) {
        size = td_arith_rotation_size(n);
        td_arith_rotate_group(x, size);
    }
}

/* A quantized activation block: 64 bytes, so that one cache line holds one. The sums are those a
 * kernel needs to undo the offset that made its weights unsigned. */
typedef struct {
    int8_t q[TD_ACT_BLOCK];
    float d;
    float sum;            /* of q */
    int32_t by_128, by_8; /* -128 sum, -8 sum */
    int32_t by_32[2];     /* -32 times the sums of the two halves */
    int32_t half_by_128[2];
} td_act_block;

_Static_assert(sizeof(td_act_block) == 64, "one cache line");

#endif
