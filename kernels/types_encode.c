/* Encoders of the cache's types of 4, 5 and 6 bits. A block's scale (and minimum) is searched for:
 * a candidate, at or near what makes the extremes fit, gives integers; the scale of least squares
 * for those, as the half it is stored as, competes by the error it leaves. The best is refined once
 * in the same way. The quants are those nearest to the values with it.
 *
 * Least squares make a block smaller than it was, by as much as its error: a sum over many rows,
 * as attention makes of values, averages errors out but not that. So the scale that is stored is
 * larger by what makes the block's product with its values that of the values with themselves.
 *
 * Everything is f32 arithmetic in this order, which lanes of a block each or four lanes for its
 * quarters do too (host/body_encode.h): sums run over the 8 elements of a quarter in ascending
 * order from 0, and are then (a + b) + (c + d); integers are rounded half to even. Products are
 * rounded before they are added: a GPU may have no fma. */
#include "kernels/types_encode.h"
#include "kernels/types_unpack.h"

#include "base/check.h"

#include <math.h>
#include <string.h>

#define N 32

const float td_grid_steps[TD_GRID_STEPS] = {0, -0.8f, -0.4f, 0.4f, 0.8f,
                                            0, -0.8f, -0.4f, 0.4f, 0.8f};
const float td_grid_ends[TD_GRID_ENDS][2] = {
    {0, 0},        {0.4f, 0},     {0, 0.4f},   {0.3f, 0.3f}, {0.2f, -0.8f}, {-0.8f, 0.2f},
    {-0.2f, 0.6f}, {0.6f, -0.2f}, {-1, -0.2f}, {-0.2f, -1},  {-1, -1}};

typedef struct {
    float d, m;
    float error; /* of squares, less the sum of the values' own */
    float stored_d, stored_m;
} fit;

typedef struct {
    float xq, q, qq; /* of values times integers, integers, their squares */
} sums;

static float mul_add(float a, float b, float c) { return a * b + c; }

static float rounded(float f) { return td_f16_to_f32(td_f32_to_f16(f)); }

/* 1 / d, or 0 where that is not finite. */
static float inverse_of(float d)
{
    float inverse = 1.0f / d;
    return fabsf(inverse) < INFINITY ? inverse : 0.0f;
}

/* The number of the level nearest to v. */
static int find_level(float v)
{
    int n = 0;
    for (int i = 0; i < 15; i++)
        n += v > 0.5f * (float)(td_levels_iq4[i] + td_levels_iq4[i + 1]);
    return n;
}

/* NaN becomes `low`. */
static float round_to(const td_grid *g, float v)
{
    if (g->is_levels)
        return (float)td_levels_iq4[find_level(v)];
    v = v > g->low ? v : g->low;
    return rintf(v < g->high ? v : g->high);
}

static float sum_quarters(const float *a) { return (a[0] + a[1]) + (a[2] + a[3]); }

/* `from` is what becomes the integer 0. */
static sums sum_up(const td_grid *g, const float *x, float from, float inverse)
{
    float xq[4] = {0}, sum_q[4] = {0}, qq[4] = {0};
    for (int j = 0; j < N; j++) {
        float q = round_to(g, (x[j] - from) * inverse);
        xq[j / 8] = mul_add(x[j], q, xq[j / 8]);
        sum_q[j / 8] += q;
        qq[j / 8] = mul_add(q, q, qq[j / 8]);
    }
    return (sums){sum_quarters(xq), sum_quarters(sum_q), sum_quarters(qq)};
}

static void keep_better(fit f, fit *best)
{
    if (f.error < best->error)
        *best = f;
}

static float scale_error(const sums *s, float d) { return d * mul_add(d, s->qq, -2 * s->xq); }

static void try_scale(const sums *s, fit *best)
{
    fit f = {.d = rounded(s->xq * inverse_of(s->qq))};
    f.error = scale_error(s, f.d);
    keep_better(f, best);
}

/* What is stored, so that the block is as large as it was. Values are less `middle`, as the error
 * is: `x_sum` and `squares` of them. */
static void grow(fit *f, float squares, float x_sum, float middle)
{
    float apart = x_sum * x_sum * (1.0f / N), mean = mul_add(x_sum, 1.0f / N, middle);
    float growth = (squares - apart) * inverse_of(-f->error - apart);
    growth = growth > 1 ? growth : 1;
    growth = growth < TD_GRID_GROWTH_MAX ? growth : TD_GRID_GROWTH_MAX;
    f->stored_d = f->d * growth;
    f->stored_m = mul_add(growth, f->m - mean, mean);
}

static float sum_squares(const float *x)
{
    float squares[4] = {0};
    for (int j = 0; j < N; j++)
        squares[j / 8] = mul_add(x[j], x[j], squares[j / 8]);
    return sum_quarters(squares);
}

static fit fit_scale(const td_grid *g, const float *x)
{
    float extreme = 0;
    for (int j = 0; j < N; j++)
        extreme = fabsf(extreme) < fabsf(x[j]) ? x[j] : extreme;
    float inverse = inverse_of(extreme), unit = g->is_levels ? 8 : 1;
    fit best;
    for (uint32_t i = 0; i < TD_GRID_STEPS; i++) {
        float end = i < TD_GRID_STEPS / 2 ? g->low : g->high;
        sums s = sum_up(g, x, 0, mul_add(td_grid_steps[i], unit, end) * inverse);
        if (i == 0) {
            best = (fit){.d = rounded(extreme * (1 / g->low))};
            best.error = scale_error(&s, best.d);
        }
        try_scale(&s, &best);
    }
    sums s = sum_up(g, x, 0, inverse_of(best.d));
    try_scale(&s, &best);
    grow(&best, sum_squares(x), 0, 0);
    return best;
}

/* In what follows values are less `middle`, a minimum is not. */
static float line_error(const sums *s, float x_sum, float d, float m)
{
    return mul_add(2 * m, mul_add(d, s->q, -x_sum), mul_add(N * m, m, scale_error(s, d)));
}

static void try_line(const sums *s, float x_sum, float middle, fit *best)
{
    float by = inverse_of(mul_add(N, s->qq, -(s->q * s->q)));
    fit f = {.d = rounded(mul_add(N, s->xq, -(x_sum * s->q)) * by)};
    f.m = rounded(mul_add(mul_add(-f.d, s->q, x_sum), 1.0f / N, middle));
    f.error = line_error(s, x_sum, f.d, f.m - middle);
    keep_better(f, best);
}

static fit fit_line(const td_grid *g, const float *in)
{
    float low = in[0], high = in[0], x[N], x_sums[4] = {0};
    for (int j = 1; j < N; j++) {
        low = in[j] < low ? in[j] : low;
        high = in[j] > high ? in[j] : high;
    }
    float middle = mul_add(0.5f, low, 0.5f * high), unit = (high - low) * (1 / g->high);
    for (int j = 0; j < N; j++) {
        x[j] = in[j] - middle;
        x_sums[j / 8] += x[j];
    }
    float x_sum = sum_quarters(x_sums);
    fit best;
    for (uint32_t i = 0; i < TD_GRID_ENDS; i++) {
        float from = mul_add(td_grid_ends[i][0], unit, low - middle);
        float to = mul_add(-td_grid_ends[i][1], unit, high - middle);
        sums s = sum_up(g, x, from, g->high * inverse_of(to - from));
        if (i == 0) {
            best = (fit){.d = rounded(unit), .m = rounded(low)};
            best.error = line_error(&s, x_sum, best.d, best.m - middle);
        }
        try_line(&s, x_sum, middle, &best);
    }
    sums s = sum_up(g, x, best.m - middle, inverse_of(best.d));
    try_line(&s, x_sum, middle, &best);
    grow(&best, sum_squares(x), x_sum, middle);
    return best;
}

/* -- blocks ------------------------------------------------------------------------------------ */

static void encode_block(const td_grid *g, const float *x, uint8_t *block)
{
    fit f = g->has_minimum ? fit_line(g, x) : fit_scale(g, x);
    float inverse = inverse_of(f.d), poison = 0;
    int32_t n[N];
    for (int j = 0; j < N; j++) {
        float v = (x[j] - f.m) * inverse;
        n[j] = g->is_levels ? find_level(v) : (int32_t)(round_to(g, v) - g->low);
        poison = mul_add(0, x[j], poison); /* NaN, if one of them is not finite */
    }
    td_grid_pack(g, f.stored_d + poison, f.stored_m, n, 1, block);
}

static void store_f16(uint8_t *p, float f)
{
    uint16_t h = td_f32_to_f16(f);
    p[0] = (uint8_t)(h & 0xff);
    p[1] = (uint8_t)(h >> 8);
}

void td_grid_pack(const td_grid *g, float d, float m, const int32_t *n, size_t stride,
                  uint8_t *block)
{
    store_f16(block, d);
    if (g->has_minimum)
        store_f16(block + 2, m);
    uint8_t *high = block + (g->has_minimum ? 4 : 2), *low = high + 4 * g->high_bits;
    memset(high, 0, 4u * g->high_bits);
    for (size_t j = 0; j < N / 2; j++) {
        uint32_t a = (uint32_t)n[j * stride], b = (uint32_t)n[(j + 16) * stride];
        low[j] = (uint8_t)((a & 15) | (b & 15) << 4);
        if (g->high_bits == 1) {
            high[j / 8] |= (uint8_t)(a >> 4 << j % 8);
            high[2 + j / 8] |= (uint8_t)(b >> 4 << j % 8);
        } else if (g->high_bits == 2) {
            high[j % 8] |= (uint8_t)((a >> 4 | b >> 4 << 2) << j / 8 * 4);
        }
    }
}

#define EACH_GRID(X)                                                                               \
    X(Q4_0, q4_0, -8, 7, false, false, 0)                                                          \
    X(Q4_1, q4_1, 0, 15, false, true, 0)                                                           \
    X(Q5_0, q5_0, -16, 15, false, false, 1)                                                        \
    X(Q5_1, q5_1, 0, 31, false, true, 1)                                                           \
    X(Q6_0, q6_0, -32, 31, false, false, 2)                                                        \
    X(IQ4_NL, iq4_nl, -127, 113, true, false, 0)

#define GRID(id, type, ...)                                                                        \
    static const td_grid grid_##type = {__VA_ARGS__};                                              \
    void td_quantize_##type(const float *in, void *blocks, size_t n_elements)                      \
    {                                                                                              \
        uint8_t *b = blocks;                                                                       \
        size_t n_bytes = td_type_find(TD_TYPE_##id)->block_bytes;                                  \
        for (size_t i = 0; i < n_elements; i += N, b += n_bytes)                                   \
            encode_block(&grid_##type, in + i, b);                                                 \
    }
EACH_GRID(GRID)

const td_grid *td_grid_find(const td_type_info *type)
{
    switch (type->id) {
#define CASE(id, type, ...)                                                                        \
    case TD_TYPE_##id:                                                                             \
        return &grid_##type;
        EACH_GRID(CASE)
    default:
        return NULL;
    }
}
