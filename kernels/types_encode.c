/* Encoders of the cache's types of 4, 5 and 6 bits. A block's scale (and minimum) is searched for:
 * each of a few candidates, around what makes the extremes fit, is rounded to, and the scale of
 * least squares for the integers that gives, as the half it is stored as, is what competes. The
 * quants are those nearest to the values with the scale that was kept.
 *
 * Everything is f32 arithmetic in this order, which a lane for each block or four lanes for its
 * quarters can do too: sums run over the 8 elements of a quarter in ascending order by fma from 0,
 * and are then (a + b) + (c + d). Integers are rounded half to even. */
#include "kernels/types_unpack.h"

#include "base/check.h"

#include <math.h>
#include <string.h>

#define F16_NAN 0x7e00u
#define N       32

/* Of a scale's integers: from `low` to `high`, or the levels of IQ4. */
typedef struct {
    float low, high;
    bool is_levels;
    float step; /* of candidates */
} grid;

typedef struct {
    float d, m;
    float error; /* of squares, less the sum of the squares themselves */
} fit;

typedef struct {
    float xq, q, qq; /* of products of values and integers, of integers, of their squares */
} sums;

static void store_f16(uint8_t *p, float f)
{
    uint16_t h = td_f32_to_f16(f);
    p[0] = (uint8_t)(h & 0xff);
    p[1] = (uint8_t)(h >> 8);
}

static float rounded(float f) { return td_f16_to_f32(td_f32_to_f16(f)); }

/* 1 / d, or 0 where that overflows. */
static float inverse_of(float d)
{
    float inverse = d != 0 ? 1.0f / d : 0.0f;
    return isfinite(inverse) ? inverse : 0.0f;
}

/* The number of the level nearest to v. */
static uint32_t find_level(float v)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < 15; i++)
        n += v > 0.5f * (float)(td_levels_iq4[i] + td_levels_iq4[i + 1]);
    return n;
}

static float round_to(const grid *g, float v)
{
    if (g->is_levels)
        return (float)td_levels_iq4[find_level(v)];
    v = rintf(v);
    v = v > g->low ? v : g->low;
    return v < g->high ? v : g->high;
}

/* x: less the offset from which integers count. */
static sums sum_up(const grid *g, const float *x, float from, float inverse)
{
    sums quarter[4];
    for (int k = 0; k < 4; k++) {
        sums s = {0};
        for (int j = 8 * k; j < 8 * k + 8; j++) {
            float q = round_to(g, (x[j] - from) * inverse);
            s.xq = fmaf(x[j], q, s.xq);
            s.q += q;
            s.qq = fmaf(q, q, s.qq);
        }
        quarter[k] = s;
    }
    const sums *a = quarter;
    return (sums){(a[0].xq + a[1].xq) + (a[2].xq + a[3].xq), (a[0].q + a[1].q) + (a[2].q + a[3].q),
                  (a[0].qq + a[1].qq) + (a[2].qq + a[3].qq)};
}

static bool is_finite(const float *x)
{
    bool r = true;
    for (int j = 0; j < N; j++)
        r = r && isfinite(x[j]);
    return r;
}

/* The element of largest magnitude, the first of equals. */
static float extreme_of(const float *x)
{
    float extreme = 0;
    for (int j = 0; j < N; j++)
        extreme = fabsf(x[j]) > fabsf(extreme) ? x[j] : extreme;
    return extreme;
}

static void keep_better(fit f, fit *best)
{
    if (f.error < best->error)
        *best = f;
}

#define CANDIDATES 4 /* to either side */

static fit fit_scale(const grid *g, const float *x)
{
    if (!is_finite(x))
        return (fit){.d = NAN};
    float inverse = inverse_of(extreme_of(x));
    fit best = {.d = rounded(extreme_of(x) / g->low)};
    sums plain = sum_up(g, x, 0, g->low * inverse);
    best.error = best.d * fmaf(best.d, plain.qq, -2 * plain.xq);
    for (int i = -CANDIDATES; i <= CANDIDATES; i++) {
        sums s = sum_up(g, x, 0, fmaf((float)i, g->step, g->low) * inverse);
        fit f = {.d = rounded(s.xq * inverse_of(s.qq))};
        f.error = f.d * fmaf(f.d, s.qq, -2 * s.xq);
        keep_better(f, &best);
    }
    return best;
}

/* x: about 0. `middle` is what was taken from it. */
static fit fit_line(const sums *s, float x_sum, float middle)
{
    float by = inverse_of(fmaf(N, s->qq, -s->q * s->q));
    fit f = {.d = rounded(fmaf(N, s->xq, -x_sum * s->q) * by)};
    f.m = rounded(middle + fmaf(-f.d, s->q, x_sum) * (1.0f / N));
    return f;
}

static float line_error(const sums *s, float x_sum, float d, float m)
{
    float e = d * fmaf(d, s->qq, -2 * s->xq);
    return fmaf(2 * m, fmaf(d, s->q, -x_sum), fmaf(N * m, m, e));
}

static fit fit_both(const grid *g, const float *in)
{
    if (!is_finite(in))
        return (fit){.d = NAN, .m = NAN};
    float low = in[0], high = in[0], x[N], quarter[4] = {0};
    for (int j = 1; j < N; j++) {
        low = in[j] < low ? in[j] : low;
        high = in[j] > high ? in[j] : high;
    }
    float middle = 0.5f * low + 0.5f * high, width = high - low;
    for (int j = 0; j < N; j++) {
        x[j] = in[j] - middle;
        quarter[j / 8] += x[j];
    }
    float x_sum = (quarter[0] + quarter[1]) + (quarter[2] + quarter[3]);
    float unit = width / g->high;
    fit best = {.d = rounded(unit), .m = rounded(low)};
    sums plain = sum_up(g, x, low - middle, inverse_of(unit));
    best.error = line_error(&plain, x_sum, best.d, best.m - middle);
    /* Ends that lie further in or out. */
    static const float ends[][2] = {{0, 0},    {.5f, 0},  {0, .5f},     {.5f, .5f}, {1, 0},  {0, 1},
                                    {-.3f, 0}, {0, -.3f}, {.25f, .25f}, {1, .5f},   {.5f, 1}};
    for (size_t i = 0; i < TD_COUNT(ends); i++) {
        float from = fmaf(ends[i][0], unit, low - middle);
        float to = fmaf(-ends[i][1], unit, high - middle);
        sums s = sum_up(g, x, from, g->high * inverse_of(to - from));
        fit f = fit_line(&s, x_sum, middle);
        f.error = line_error(&s, x_sum, f.d, f.m - middle);
        keep_better(f, &best);
    }
    return best;
}

/* -- blocks ------------------------------------------------------------------------------------ */

/* A block's scale, and its minimum if it has one; n: the numbers of the quants. */
static uint8_t *encode_block(const grid *g, bool has_minimum, const float *x, uint8_t *b,
                             uint8_t *n)
{
    fit f = has_minimum ? fit_both(g, x) : fit_scale(g, x);
    store_f16(b, f.d);
    if (has_minimum)
        store_f16(b + 2, f.m);
    float inverse = inverse_of(f.d);
    inverse = isnan(f.d) ? 0 : inverse;
    for (int j = 0; j < N; j++) {
        float v = inverse != 0 ? (x[j] - f.m) * inverse : 0;
        n[j] = (uint8_t)(g->is_levels ? (int)find_level(v) : (int)(round_to(g, v) - g->low));
    }
    return b + (has_minimum ? 4 : 2);
}

static void pack_nibbles(const uint8_t *n, uint8_t *b)
{
    for (int j = 0; j < 16; j++)
        b[j] = (uint8_t)((n[j] & 15) | (n[j + 16] & 15) << 4);
}

static uint8_t *pack_fifth_bits(const uint8_t *n, uint8_t *b)
{
    memset(b, 0, 4);
    for (int j = 0; j < N; j++)
        b[j / 8] |= (uint8_t)((n[j] >> 4) << j % 8);
    return b + 4;
}

static uint8_t *pack_high_twos(const uint8_t *n, uint8_t *b)
{
    memset(b, 0, 8);
    for (int j = 0; j < N; j++)
        b[j % 8] |= (uint8_t)((n[j] >> 4) << (j % 16 / 8 * 4 + j / 16 * 2));
    return b + 8;
}

static uint8_t *pack_none(const uint8_t *n, uint8_t *b)
{
    (void)n;
    return b;
}

#define ENCODER(type, low, high, is_levels, step, has_minimum, n_bytes, pack_high)                 \
    void td_quantize_##type(const float *in, void *blocks, size_t n_elements)                      \
    {                                                                                              \
        static const grid g = {low, high, is_levels, step};                                        \
        uint8_t *b = blocks, n[N];                                                                 \
        for (size_t i = 0; i < n_elements; i += N, b += n_bytes)                                   \
            pack_nibbles(n, pack_high(n, encode_block(&g, has_minimum, in + i, b, n)));            \
    }
ENCODER(q4_0, -8, 7, false, 0.2f, false, 18, pack_none)
ENCODER(q4_1, 0, 15, false, 0, true, 20, pack_none)
ENCODER(q5_0, -16, 15, false, 0.2f, false, 22, pack_fifth_bits)
ENCODER(q5_1, 0, 31, false, 0, true, 24, pack_fifth_bits)
ENCODER(q6_0, -32, 31, false, 0.2f, false, 26, pack_high_twos)
ENCODER(iq4_nl, -127, 113, true, 1.6f, false, 18, pack_none)
