/* mat_mul over panels (host.h): a tile is VL or a few times VL outputs by a few rows, all of their
 * accumulators in registers. The weights of a tile are read once for its rows. A tile's row count
 * is a constant in each copy, so that the loops over rows unroll; the arithmetic of a row is the
 * same in all of them. */
#ifndef TD_KERNELS_HOST_BODY_MAT_MUL_H
#define TD_KERNELS_HOST_BODY_MAT_MUL_H

#include "kernels/host/body_math.h"

#define ROWS_MAX       8
#define Q_VECTOR       (4 * VL) /* bytes of 4 k of VL outputs */
#define BLOCK_GROUPS   8        /* groups of 4 k in a block of 32 */
#define PREFETCH_BYTES 1024

/* The weights are one stream, but a tile of many rows is too much code between two loads of it for
 * the CPU to look ahead by itself. Past the end nothing is loaded and nothing faults. */
INLINE void prefetch(const uint8_t *at)
{
    __builtin_prefetch((const void *)((uintptr_t)at + PREFETCH_BYTES));
}

/* Where the outputs of a tile are: the weights of vector g (VL outputs) of w. */
INLINE const uint8_t *vector_base(const td_host_weight *w, uint32_t g, size_t lane_bytes)
{
    return w->data + g * VL / 16 * w->panel_bytes + g * VL % 16 * lane_bytes;
}

INLINE void store_tile(const td_host_mat_mul *m, uint32_t g, uint32_t row, vf acc)
{
    uint32_t column = g * VL, n = lanes_left(m->w->base.params.n_rows, column);
    if (!n) /* padding */
        return;
    if (m->bias)
        acc = vf_add(acc, vf_load_n(m->bias + column, n));
    vf_store_n(m->y + row * m->y_stride + column, acc, n);
}

/* -- floats ----------------------------------------------------------------------------------- */

#define FLOAT_VECTORS 4 /* independent accumulators per row, to hide the latency of fma */

INLINE void float_tile(const td_host_mat_mul *m, uint32_t g, uint32_t row, const bool is_f16,
                       const int n_vectors, const int n_rows)
{
    const uint8_t *base[FLOAT_VECTORS];
    vf acc[FLOAT_VECTORS][ROWS_MAX], w[FLOAT_VECTORS];
    const size_t lane_bytes = is_f16 ? 2 : 4;
    UNROLL for (int v = 0; v < n_vectors; v++)
    {
        base[v] = vector_base(m->w, g + (uint32_t)v, lane_bytes);
        UNROLL for (int r = 0; r < n_rows; r++) acc[v][r] = vf_zero();
    }
    const float *x = m->x + row * m->x_stride;
    uint32_t n_k = m->w->base.params.n_cols;
    for (uint32_t k = 0; k < n_k; k++) {
        UNROLL for (int v = 0; v < n_vectors; v++)
        {
            const void *at = base[v] + k * (16 * lane_bytes);
            w[v] = is_f16 ? vf_load_f16(at) : vf_load(at);
            prefetch(at);
        }
        UNROLL for (int r = 0; r < n_rows; r++)
        {
            vf xk = vf_set1(x[(size_t)r * m->x_stride + k]);
            UNROLL for (int v = 0; v < n_vectors; v++) acc[v][r] = vf_fma(w[v], xk, acc[v][r]);
        }
    }
    UNROLL for (int v = 0; v < n_vectors; v++) UNROLL for (int r = 0; r < n_rows; r++)
        store_tile(m, g + (uint32_t)v, row + (uint32_t)r, acc[v][r]);
}

INLINE void float_rows(const td_host_mat_mul *m, uint32_t g, const bool is_f16, const int n_vectors)
{
    uint32_t row = 0;
    for (; VF_ROWS_FLOAT >= 4 && row + 4 <= m->n_rows; row += 4)
        float_tile(m, g, row, is_f16, n_vectors, 4);
    for (; row + 2 <= m->n_rows; row += 2)
        float_tile(m, g, row, is_f16, n_vectors, 2);
    if (row < m->n_rows)
        float_tile(m, g, row, is_f16, n_vectors, 1);
}

INLINE void mat_mul_float(const td_host_mat_mul *m, const bool is_f16)
{
    uint32_t g = m->panel_begin * VECTORS, end = m->panel_end * VECTORS;
    for (; g + FLOAT_VECTORS <= end; g += FLOAT_VECTORS)
        float_rows(m, g, is_f16, FLOAT_VECTORS);
    for (; g < end; g++)
        float_rows(m, g, is_f16, 1);
}

/* -- quantized --------------------------------------------------------------------------------- */

typedef struct {
    const uint8_t *panel;
    const td_act_block *x; /* [rows][n_blocks] */
    uint32_t n_blocks;     /* of 32 */
    uint32_t lane0;        /* the tile's first lane in the panel */
} tile;

/* Block b of Q8_0 and Q4_0. */
INLINE const uint8_t *small_quants(const tile *t, uint32_t b, size_t quant_bytes)
{
    return t->panel + b / 2 * (TD_SMALL_SCALES + 2 * quant_bytes) + TD_SMALL_SCALES +
           b % 2 * quant_bytes + t->lane0 * 4;
}

INLINE vf small_scale(const tile *t, uint32_t b, size_t quant_bytes)
{
    const uint8_t *chunk = t->panel + b / 2 * (TD_SMALL_SCALES + 2 * quant_bytes);
    return vf_load_f16((const uint16_t *)(const void *)chunk + b % 2 * 16 + t->lane0);
}

INLINE void q8_0_tile(const tile *t, const int n_rows, vf *acc)
{
    for (uint32_t b = 0; b < t->n_blocks; b++) {
        const td_act_block *x = t->x + b;
        const uint8_t *quants = small_quants(t, b, TD_Q8_0_QUANTS);
        vi sum[ROWS_MAX];
        UNROLL for (int r = 0; r < n_rows; r++) sum[r] = w8_start(&x[(size_t)r * t->n_blocks]);
        UNROLL for (int g = 0; g < BLOCK_GROUPS; g++)
        {
            w8 w = w8_load(quants + g * 64);
            prefetch(quants + g * 64);
            UNROLL for (int r = 0; r < n_rows; r++) sum[r] =
                w8_dot4(sum[r], w, x[(size_t)r * t->n_blocks].q + 4 * g);
        }
        vf d = small_scale(t, b, TD_Q8_0_QUANTS);
        UNROLL for (int r = 0; r < n_rows; r++)
        {
            vf scale = vf_mul(d, vf_set1(x[(size_t)r * t->n_blocks].d));
            acc[r] = vf_fma(scale, vf_of_vi(sum[r]), acc[r]);
        }
    }
}

/* sum[r] += nibbles of a block * q */
INLINE void dot_nibbles(const uint8_t *quants, const td_act_block *x, size_t x_stride,
                        const int n_rows, vi *sum)
{
    UNROLL for (int g = 0; g < BLOCK_GROUPS / 2; g++)
    {
        vb pair = vb_load(quants + g * 64);
        prefetch(quants + g * 64);
        vb low = vb_and(pair, 0x0f), high = vb_and(vb_shr(pair, 4), 0x0f);
        UNROLL for (int r = 0; r < n_rows; r++)
        {
            const int8_t *q = x[(size_t)r * x_stride].q + 4 * g;
            sum[r] = vi_dot4(vi_dot4(sum[r], low, q), high, q + 16);
        }
    }
}

INLINE void q4_0_tile(const tile *t, const int n_rows, vf *acc)
{
    for (uint32_t b = 0; b < t->n_blocks; b++) {
        const td_act_block *x = t->x + b;
        const uint8_t *quants = small_quants(t, b, TD_Q4_QUANTS);
        vi sum[ROWS_MAX];
        UNROLL for (int r = 0; r < n_rows; r++) sum[r] = vi_set1(x[(size_t)r * t->n_blocks].by_8);
        dot_nibbles(quants, x, t->n_blocks, n_rows, sum);
        vf d = small_scale(t, b, TD_Q4_QUANTS);
        UNROLL for (int r = 0; r < n_rows; r++)
        {
            vf scale = vf_mul(d, vf_set1(x[(size_t)r * t->n_blocks].d));
            acc[r] = vf_fma(scale, vf_of_vi(sum[r]), acc[r]);
        }
    }
}

INLINE void q4_k_tile(const tile *t, const int n_rows, vf *acc)
{
    const uint8_t *chunk = t->panel;
    for (uint32_t b = 0; b < t->n_blocks; chunk += TD_K_SCALES + 8 * TD_Q4_QUANTS) {
        const uint8_t *quants = chunk + TD_K_SCALES + t->lane0 * 4;
        const uint16_t *halves = (const uint16_t *)(const void *)chunk + t->lane0;
        vf d = vf_load_f16(halves), d_min = vf_load_f16(halves + 16);
        const uint8_t *scale = chunk + 64 + t->lane0;
        for (uint32_t s = 0; s < 8; s++, b++, quants += TD_Q4_QUANTS, scale += 16) {
            const td_act_block *x = t->x + b;
            vi sum[ROWS_MAX];
            UNROLL for (int r = 0; r < n_rows; r++) sum[r] = vi_set1(0);
            dot_nibbles(quants, x, t->n_blocks, n_rows, sum);
            /* Products of these are exact as floats, being below 2^24. */
            vf step = vf_of_vi(vi_load_u8(scale)), minimum = vf_of_vi(vi_load_u8(scale + 128));
            UNROLL for (int r = 0; r < n_rows; r++)
            {
                const td_act_block *xr = &x[(size_t)r * t->n_blocks];
                vf dx = vf_set1(xr->d);
                vf total = vf_mul(step, vf_of_vi(sum[r]));
                vf offset = vf_mul(minimum, vf_of_vi(vi_set1(xr->sum)));
                acc[r] = vf_fma(vf_mul(d, dx), total, acc[r]);
                acc[r] = vf_fnma(vf_mul(d_min, dx), offset, acc[r]);
            }
        }
    }
}

/* sum[r] += 6-bit quants of half a block * q; i_half 0: low nibbles, 1: high ones. */
INLINE void dot_sixes(const uint8_t *quants, const td_act_block *x, size_t x_stride,
                      const int i_half, const int n_rows, vi *sum)
{
    vb tops = vb_load(quants + TD_Q4_QUANTS + i_half * 64);
    UNROLL for (int g = 0; g < BLOCK_GROUPS / 2; g++)
    {
        vb pair = vb_load(quants + g * 64);
        prefetch(quants + g * 64);
        vb low = vb_and(i_half ? vb_shr(pair, 4) : pair, 0x0f);
        vb high = g == 0   ? vb_shl(tops, 4)
                  : g == 1 ? vb_shl(tops, 2)
                  : g == 2 ? tops
                           : vb_shr(tops, 2);
        vb u = vb_or(low, vb_and(high, 0x30));
        UNROLL for (int r = 0; r < n_rows; r++) sum[r] =
            vi_dot4(sum[r], u, x[(size_t)r * x_stride].q + 16 * i_half + 4 * g);
    }
}

INLINE void q6_k_tile(const tile *t, const int n_rows, vf *acc)
{
    const uint8_t *chunk = t->panel;
    for (uint32_t b = 0; b < t->n_blocks; chunk += TD_K_SCALES + 8 * TD_Q6_K_QUANTS) {
        const uint8_t *quants = chunk + TD_K_SCALES + t->lane0 * 4;
        vf d = vf_load_f16((const uint16_t *)(const void *)chunk + t->lane0);
        const uint8_t *scale = chunk + 32 + t->lane0;
        for (uint32_t s = 0; s < 8; s++, b++, quants += TD_Q6_K_QUANTS, scale += 32) {
            const td_act_block *x = t->x + b;
            vf total[ROWS_MAX];
            UNROLL for (int i_half = 0; i_half < 2; i_half++)
            {
                vi sum[ROWS_MAX];
                UNROLL for (int r = 0; r < n_rows; r++) sum[r] =
                    vi_set1(x[(size_t)r * t->n_blocks].by_32[i_half]);
                dot_sixes(quants, x, t->n_blocks, i_half, n_rows, sum);
                vf step = vf_of_vi(vi_load_i8(scale + 16 * i_half)); /* exact, as in q4_k_tile */
                UNROLL for (int r = 0; r < n_rows; r++)
                {
                    vf part = vf_mul(step, vf_of_vi(sum[r]));
                    total[r] = i_half ? vf_add(total[r], part) : part;
                }
            }
            UNROLL for (int r = 0; r < n_rows; r++)
            {
                vf scale_r = vf_mul(d, vf_set1(x[(size_t)r * t->n_blocks].d));
                acc[r] = vf_fma(scale_r, total[r], acc[r]);
            }
        }
    }
}

INLINE void quant_tile(const td_host_mat_mul *m, uint32_t g, uint32_t row, const td_type type,
                       const int n_rows)
{
    vf acc[ROWS_MAX];
    UNROLL for (int r = 0; r < n_rows; r++) acc[r] = vf_zero();
    uint32_t n_blocks = m->w->base.params.n_cols / TD_ACT_BLOCK;
    tile t = {.panel = vector_base(m->w, g, 0),
              .x = m->act + (size_t)row * n_blocks,
              .n_blocks = n_blocks,
              .lane0 = g * VL % 16};
    if (type == TD_TYPE_Q8_0)
        q8_0_tile(&t, n_rows, acc);
    else if (type == TD_TYPE_Q4_0)
        q4_0_tile(&t, n_rows, acc);
    else if (type == TD_TYPE_Q4_K)
        q4_k_tile(&t, n_rows, acc);
    else
        q6_k_tile(&t, n_rows, acc);
    UNROLL for (int r = 0; r < n_rows; r++) store_tile(m, g, row + (uint32_t)r, acc[r]);
}

INLINE void mat_mul_quant(const td_host_mat_mul *m, const td_type type)
{
    for (uint32_t g = m->panel_begin * VECTORS; g < m->panel_end * VECTORS; g++) {
        uint32_t row = 0;
        for (; VF_ROWS_INT >= 8 && row + 8 <= m->n_rows; row += 8)
            quant_tile(m, g, row, type, 8);
        for (; row + 4 <= m->n_rows; row += 4)
            quant_tile(m, g, row, type, 4);
        for (; row + 2 <= m->n_rows; row += 2)
            quant_tile(m, g, row, type, 2);
        if (row < m->n_rows)
            quant_tile(m, g, row, type, 1);
    }
}

static void mat_mul_f32(const td_host_mat_mul *m) { mat_mul_float(m, false); }
static void mat_mul_f16(const td_host_mat_mul *m) { mat_mul_float(m, true); }
static void mat_mul_q8_0(const td_host_mat_mul *m) { mat_mul_quant(m, TD_TYPE_Q8_0); }
static void mat_mul_q4_0(const td_host_mat_mul *m) { mat_mul_quant(m, TD_TYPE_Q4_0); }
static void mat_mul_q4_k(const td_host_mat_mul *m) { mat_mul_quant(m, TD_TYPE_Q4_K); }
static void mat_mul_q6_k(const td_host_mat_mul *m) { mat_mul_quant(m, TD_TYPE_Q6_K); }

/* A weight of one row, kept as it is. */
static void mat_mul_vector(const td_host_mat_mul *m)
{
    const float *w = (const float *)(const void *)m->w->data;
    for (uint32_t r = 0; r < m->n_rows; r++) {
        const float *x = m->x + r * m->x_stride;
        float acc = 0;
        for (uint32_t k = 0; k < m->w->base.params.n_cols; k++)
            acc = fmaf(w[k], x[k], acc);
        m->y[r * m->y_stride] = m->bias ? acc + m->bias[0] : acc;
    }
}

static void mat_mul(const td_host_mat_mul *m)
{
    if (m->panel_begin >= m->panel_end)
        return;
    if (m->w->is_vector) {
        mat_mul_vector(m);
        return;
    }
    switch (m->w->base.params.type->id) {
    case TD_TYPE_F32:
        mat_mul_f32(m);
        break;
    case TD_TYPE_F16:
        mat_mul_f16(m);
        break;
    case TD_TYPE_Q8_0:
        mat_mul_q8_0(m);
        break;
    case TD_TYPE_Q4_0:
        mat_mul_q4_0(m);
        break;
    case TD_TYPE_Q4_K:
        mat_mul_q4_k(m);
        break;
    case TD_TYPE_Q6_K:
        mat_mul_q6_k(m);
        break;
    default:
        TD_ASSERT(!"a type without a host kernel");
    }
}

#endif
