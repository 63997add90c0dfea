/* mat_mul over panels (host.h): a tile is VL or a few times VL outputs by a few rows, all of their
 * accumulators in registers. The weights of a tile are read once for its rows. A tile's row count
 * is a constant in each copy, so that the loops over rows unroll; the arithmetic of a row is the
 * same in all of them. */
#ifndef TD_KERNELS_HOST_BODY_MAT_MUL_H
#define TD_KERNELS_HOST_BODY_MAT_MUL_H

#include "kernels/host/body_parts.h"

/* -- floats ----------------------------------------------------------------------------------- */

#define FLOATS_MAX 4 /* vectors of a tile, */
#define FEW_ROWS   2 /* which so few rows need to hide the latency of fma */

INLINE vf load_float(const void *at, const td_type type)
{
    return type == TD_TYPE_F32   ? vf_load(at)
           : type == TD_TYPE_F16 ? vf_load_f16(at)
                                 : vf_load_bf16(at);
}

INLINE void float_tile(const td_host_mat_mul *m, uint32_t g, uint32_t row, const td_type type,
                       const int n_vectors, const int n_rows)
{
    const uint8_t *base[FLOATS_MAX];
    vf acc[FLOATS_MAX][ROWS_MAX], w[FLOATS_MAX];
    const size_t lane_bytes = type == TD_TYPE_F32 ? 4 : 2;
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
            w[v] = load_float(at, type);
            prefetch(at, n_rows);
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

INLINE void float_rows(const td_host_mat_mul *m, uint32_t g, const td_type type,
                       const int n_vectors, const int n_max)
{
    for (row_tiles t = {0}; next_tile(m, (uint32_t)n_max, &t);) {
        switch (t.n) {
        case 1:
            float_tile(m, g, t.row, type, n_vectors, 1);
            break;
        case 2:
            float_tile(m, g, t.row, type, n_vectors, 2);
            break;
        case 3:
            float_tile(m, g, t.row, type, n_vectors, n_max < 3 ? 1 : 3);
            break;
        case 4:
            float_tile(m, g, t.row, type, n_vectors, n_max < 4 ? 1 : 4);
            break;
        case 5:
            float_tile(m, g, t.row, type, n_vectors, n_max < 5 ? 1 : 5);
            break;
        default:
            float_tile(m, g, t.row, type, n_vectors, n_max < 6 ? 1 : 6);
        }
    }
}

INLINE void mat_mul_float(const td_host_mat_mul *m, const td_type type)
{
    uint32_t g = m->panel_begin * VECTORS, end = m->panel_end * VECTORS;
    if (VF_FLOATS < FLOATS_MAX && m->n_rows <= FEW_ROWS)
        for (; g + FLOATS_MAX <= end; g += FLOATS_MAX)
            float_rows(m, g, type, FLOATS_MAX, FEW_ROWS);
    for (; g + VF_FLOATS <= end; g += VF_FLOATS)
        float_rows(m, g, type, VF_FLOATS, VF_ROWS_FLOAT);
    for (; g < end; g++)
        float_rows(m, g, type, 1, VF_ROWS_FLOAT);
}

/* -- quantized --------------------------------------------------------------------------------- */

typedef struct {
    const uint8_t *panel[VF_VECTORS_INT]; /* by vector of outputs */
    const td_act_block *x;                /* [rows][n_blocks] */
    uint32_t n_blocks;                    /* of 32 */
    uint32_t lane0[VF_VECTORS_INT];       /* the vector's first lane in its panel */
    const uint8_t *ahead;                 /* the weights to be fetched meanwhile, */
    uint32_t n_lines;                     /* this many cache lines of them at each block */
} tile;

/* The panels are read from memory in the first pass of their row tiles only. So that memory is not
 * idle in the others, each pass fetches its share of the next panels, into the second level cache;
 * here block b's part of it. */
INLINE void fetch_ahead(const tile *t, uint32_t b)
{
    const uint8_t *at = t->ahead + (size_t)b * t->n_lines * LINE_BYTES;
    for (uint32_t i = 0; i < t->n_lines; i++)
        __builtin_prefetch(at + i * LINE_BYTES, 0, 2);
}

/* Sums of a tile: [vector][row]. */
typedef vi tile_sums[VF_VECTORS_INT][ROWS_MAX];
typedef vf tile_accs[VF_VECTORS_INT][ROWS_MAX];

#define EACH_VECTOR UNROLL for (int v = 0; v < n_vectors; v++)

/* Row r's block. */
INLINE const td_act_block *act_of(const tile *t, uint32_t b, int r)
{
    return t->x + b + (size_t)r * t->n_blocks;
}

/* Block b of Q8_0 and Q4_0. */
INLINE const uint8_t *small_quants(const tile *t, int v, uint32_t b, size_t quant_bytes)
{
    return t->panel[v] + b / 2 * (TD_SMALL_SCALES + 2 * quant_bytes) + TD_SMALL_SCALES +
           b % 2 * quant_bytes + t->lane0[v] * 4;
}

/* acc[v][r] += scale of block b * sum[v][r] * row r's scale */
INLINE void fold_small(const tile *t, uint32_t b, size_t quant_bytes, const int n_vectors,
                       const int n_rows, tile_sums sum, tile_accs acc)
{
    EACH_VECTOR
    {
        const uint8_t *chunk = t->panel[v] + b / 2 * (TD_SMALL_SCALES + 2 * quant_bytes);
        vf d = vf_load_f16((const uint16_t *)(const void *)chunk + b % 2 * 16 + t->lane0[v]);
        EACH_ROW acc[v][r] =
            vf_fma(vf_mul(d, vf_of_vi(sum[v][r])), vf_set1(act_of(t, b, r)->d), acc[v][r]);
    }
}

/* With one vector of outputs there are registers for two chains of dots a row, and both are needed:
 * a single chain in each of eight rows does not hide the latency of a dot. */
#define IS_TWO_CHAINS (VL == 16 && n_vectors == 1)

INLINE void join_chains(const int n_vectors, const int n_rows, tile_sums sum, const vi *other)
{
    if (IS_TWO_CHAINS)
        EACH_ROW sum[0][r] = vi_add(sum[0][r], other[r]);
}

INLINE void q8_0_tile(const tile *t, const int n_vectors, const int n_rows, tile_accs acc)
{
    for (uint32_t b = 0; b < t->n_blocks; b++) {
        fetch_ahead(t, b);
        tile_sums sum;
        vi other[ROWS_MAX];
        EACH_ROW other[r] = vi_set1(0);
        EACH_VECTOR EACH_ROW sum[v][r] = w8_start(act_of(t, b, r));
        UNROLL for (uint32_t g = 0; g < BLOCK_GROUPS; g++)
        {
            w8 w[VF_VECTORS_INT];
            EACH_VECTOR
            {
                const uint8_t *at = small_quants(t, v, b, TD_Q8_0_QUANTS) + g * 64;
                w[v] = w8_load(at);
                prefetch(at, n_rows);
            }
            EACH_ROW
            {
                q4 q = q4_load(act_of(t, b, r)->q + 4 * g);
                if (IS_TWO_CHAINS && g % 2)
                    other[r] = w8_dot4(other[r], w[0], q);
                else
                    EACH_VECTOR sum[v][r] = w8_dot4(sum[v][r], w[v], q);
            }
        }
        join_chains(n_vectors, n_rows, sum, other);
        fold_small(t, b, TD_Q8_0_QUANTS, n_vectors, n_rows, sum, acc);
    }
}

/* sum[v][r] += nibbles of a block * q; `quants` by vector. Where 16 bits are to be widened, they
 * are summed apart. */
INLINE void dot_nibbles(const tile *t, uint32_t b, const uint8_t *const *quants,
                        const int n_vectors, const int n_rows, tile_sums sum)
{
    tile_sums narrow;
    vi(*dots)[ROWS_MAX] = VF_HAS_NARROW ? narrow : sum;
    vi other[ROWS_MAX];
    if (VF_HAS_NARROW)
        EACH_VECTOR EACH_ROW narrow[v][r] = vi_set1(0);
    EACH_ROW other[r] = vi_set1(0);
    UNROLL for (uint32_t g = 0; g < BLOCK_GROUPS / 2; g++)
    {
        vb low[VF_VECTORS_INT], high[VF_VECTORS_INT];
        EACH_VECTOR
        {
            vb pair = vb_load(quants[v] + g * 64);
            prefetch(quants[v] + g * 64, n_rows);
            low[v] = vb_and(pair, 0x0f);
            high[v] = vb_and(vb_shr(pair, 4), 0x0f);
        }
        EACH_ROW
        {
            q4 q = q4_load(act_of(t, b, r)->q + 4 * g);
            EACH_VECTOR dots[v][r] = vi_dot4_narrow(dots[v][r], low[v], q);
        }
        EACH_ROW
        {
            q4 q = q4_load(act_of(t, b, r)->q + 4 * g + 16);
            if (IS_TWO_CHAINS)
                other[r] = vi_dot4(other[r], high[0], q);
            else
                EACH_VECTOR dots[v][r] = vi_dot4_narrow(dots[v][r], high[v], q);
        }
    }
    if (VF_HAS_NARROW)
        EACH_VECTOR EACH_ROW sum[v][r] = vi_add(sum[v][r], vi_widen(narrow[v][r]));
    join_chains(n_vectors, n_rows, sum, other);
}

INLINE void q4_0_tile(const tile *t, const int n_vectors, const int n_rows, tile_accs acc)
{
    for (uint32_t b = 0; b < t->n_blocks; b++) {
        fetch_ahead(t, b);
        tile_sums sum;
        const uint8_t *quants[VF_VECTORS_INT];
        EACH_VECTOR quants[v] = small_quants(t, v, b, TD_Q4_QUANTS);
        EACH_VECTOR EACH_ROW sum[v][r] = vi_set1(act_of(t, b, r)->by_8);
        dot_nibbles(t, b, quants, n_vectors, n_rows, sum);
        fold_small(t, b, TD_Q4_QUANTS, n_vectors, n_rows, sum, acc);
    }
}

INLINE void q4_k_tile(const tile *t, const int n_vectors, const int n_rows, tile_accs acc)
{
    for (uint32_t b = 0; b < t->n_blocks; b++) {
        fetch_ahead(t, b);
        const uint8_t *scale[VF_VECTORS_INT], *quants[VF_VECTORS_INT];
        uint32_t s = b % 8; /* of the chunk's 8 blocks */
        EACH_VECTOR
        {
            const uint8_t *chunk = t->panel[v] + b / 8 * (size_t)(TD_K_SCALES + 8 * TD_Q4_QUANTS);
            scale[v] = chunk;
            quants[v] = chunk + TD_K_SCALES + s * TD_Q4_QUANTS + t->lane0[v] * 4;
        }
        tile_sums sum;
        EACH_VECTOR EACH_ROW sum[v][r] = vi_set1(0);
        dot_nibbles(t, b, quants, n_vectors, n_rows, sum);
        EACH_VECTOR
        {
            const uint16_t *halves = (const uint16_t *)(const void *)scale[v] + t->lane0[v];
            const uint8_t *steps = scale[v] + 64 + s * 16 + t->lane0[v];
            vf step = vf_mul(vf_load_f16(halves), vf_of_vi(vi_load_u8(steps)));
            vf minimum = vf_mul(vf_load_f16(halves + 16), vf_of_vi(vi_load_u8(steps + 128)));
            EACH_ROW
            {
                const td_act_block *x = act_of(t, b, r);
                vf total = vf_mul(step, vf_of_vi(sum[v][r]));
                total = vf_fnma(minimum, vf_set1(x->sum), total);
                acc[v][r] = vf_fma(total, vf_set1(x->d), acc[v][r]);
            }
        }
    }
}

INLINE void q6_k_tile(const tile *t, const int n_vectors, const int n_rows, tile_accs acc)
{
    for (uint32_t b = 0; b < t->n_blocks; b++) {
        fetch_ahead(t, b);
        const uint8_t *chunk[VF_VECTORS_INT];
        uint32_t s = b % 8;
        EACH_VECTOR chunk[v] = t->panel[v] + b / 8 * (size_t)(TD_K_SCALES + 8 * TD_Q6_K_QUANTS);
        tile_accs total;
        UNROLL for (uint32_t h = 0; h < 2; h++) /* halves of the block */
        {
            tile_sums sum;
            tile_sums narrow; /* of two groups: as many as fit into 16 bits */
            vi(*dots)[ROWS_MAX] = VF_HAS_NARROW ? narrow : sum;
            EACH_VECTOR EACH_ROW
            {
                narrow[v][r] = vi_set1(0);
                sum[v][r] = vi_set1(act_of(t, b, r)->by_32[h]);
            }
            UNROLL for (uint32_t g = 0; g < BLOCK_GROUPS / 2; g++)
            {
                vb u[VF_VECTORS_INT];
                EACH_VECTOR
                {
                    const uint8_t *quants =
                        chunk[v] + TD_K_SCALES + s * TD_Q6_K_QUANTS + t->lane0[v] * 4;
                    vb tops = vb_load(quants + TD_Q4_QUANTS + h * 64);
                    u[v] = sixes(vb_load(quants + g * 64), tops, h, g);
                    if (h == 0 || g < 2) /* each of the block's six lines once */
                        prefetch_from(quants + h * TD_Q4_QUANTS + g * 64, VF_AHEAD_SIX(n_rows));
                }
                EACH_ROW
                {
                    q4 q = q4_load(act_of(t, b, r)->q + 16 * h + 4 * g);
                    EACH_VECTOR dots[v][r] = vi_dot4_narrow(dots[v][r], u[v], q);
                    if (VF_HAS_NARROW && g % 2)
                        EACH_VECTOR
                        {
                            sum[v][r] = vi_add(sum[v][r], vi_widen(dots[v][r]));
                            dots[v][r] = vi_set1(0);
                        }
                }
            }
            EACH_VECTOR
            {
                const uint8_t *at = chunk[v] + t->lane0[v];
                vf d = vf_load_f16((const uint16_t *)(const void *)chunk[v] + t->lane0[v]);
                vf step = vf_mul(d, vf_of_vi(vi_load_i8(at + 32 + s * 32 + h * 16)));
                EACH_ROW
                {
                    vf isum = vf_of_vi(sum[v][r]);
                    total[v][r] = h ? vf_fma(step, isum, total[v][r]) : vf_mul(step, isum);
                }
            }
        }
        EACH_VECTOR EACH_ROW acc[v][r] =
            vf_fma(total[v][r], vf_set1(act_of(t, b, r)->d), acc[v][r]);
    }
}

/* Whether a tile of vectors g.. has others behind it, and these are worth fetching. */
INLINE void plan_ahead(const td_host_mat_mul *m, uint32_t g, uint32_t row, const int n_rows,
                       const int n_vectors, tile *t)
{
    uint32_t next = g + (uint32_t)n_vectors;
    size_t n_bytes = m->w->panel_bytes * (size_t)n_vectors / VECTORS;
    if ((uint32_t)n_rows == m->n_rows || next >= m->panel_end * VECTORS ||
        n_bytes > AHEAD_BYTES_MAX)
        return;
    /* Passes may differ in rows; the share goes by the row. */
    size_t begin = n_bytes * row / m->n_rows, end = n_bytes * (row + (uint32_t)n_rows) / m->n_rows;
    t->ahead = m->w->data + (size_t)next * m->w->panel_bytes / VECTORS + begin;
    t->n_lines =
        (uint32_t)((end - begin + t->n_blocks * LINE_BYTES - 1) / (t->n_blocks * LINE_BYTES));
}

INLINE void quant_tile(const td_host_mat_mul *m, uint32_t g, uint32_t row, const td_type type,
                       const int n_vectors, const int n_rows)
{
    uint32_t n_blocks = m->w->base.params.n_cols / TD_ACT_BLOCK;
    tile t = {.x = m->act + (size_t)row * n_blocks, .n_blocks = n_blocks};
    plan_ahead(m, g, row, n_rows, n_vectors, &t);
    tile_accs acc;
    EACH_VECTOR
    {
        t.panel[v] = vector_base(m->w, g + (uint32_t)v, 0);
        t.lane0[v] = (g + (uint32_t)v) * VL % 16;
        EACH_ROW acc[v][r] = vf_zero();
    }
    if (type == TD_TYPE_Q8_0)
        q8_0_tile(&t, n_vectors, n_rows, acc);
    else if (type == TD_TYPE_Q4_0)
        q4_0_tile(&t, n_vectors, n_rows, acc);
    else if (type == TD_TYPE_Q4_K)
        q4_k_tile(&t, n_vectors, n_rows, acc);
    else
        q6_k_tile(&t, n_vectors, n_rows, acc);
    EACH_VECTOR EACH_ROW store_tile(m, g + (uint32_t)v, row + (uint32_t)r, acc[v][r]);
}

INLINE void quant_rows(const td_host_mat_mul *m, uint32_t g, const td_type type,
                       const int n_vectors)
{
    const uint32_t n_max = n_vectors == 1 ? vf_rows(type).alone : vf_rows(type).shared;
    for (row_tiles t = {0}; next_tile(m, n_max, &t);) {
        switch (t.n) {
        case 1:
            quant_tile(m, g, t.row, type, n_vectors, 1);
            break;
        case 2:
            quant_tile(m, g, t.row, type, n_vectors, 2);
            break;
        case 3:
            quant_tile(m, g, t.row, type, n_vectors, 3);
            break;
        case 4:
            quant_tile(m, g, t.row, type, n_vectors, 4);
            break;
        case 5:
            quant_tile(m, g, t.row, type, n_vectors, n_max < 5 ? 1 : 5);
            break;
        case 6:
            quant_tile(m, g, t.row, type, n_vectors, n_max < 6 ? 1 : 6);
            break;
        case 7:
            quant_tile(m, g, t.row, type, n_vectors, n_max < 7 ? 1 : 7);
            break;
        default:
            quant_tile(m, g, t.row, type, n_vectors, n_max < 8 ? 1 : 8);
        }
    }
}

/* Several vectors of outputs at once share the loads of the activations, one at a time takes more
 * rows: where that saves a pass, it is better. For one row there is nothing to share, and memory
 * gives more where a panel is read as one stream: so a panel at a time, whatever its vectors. */
INLINE void mat_mul_quant(const td_host_mat_mul *m, const td_type type)
{
    uint32_t g = m->panel_begin * VECTORS, end = m->panel_end * VECTORS;
    const td_host_rows rows = vf_rows(type);
    bool is_shared = m->n_rows > 1 || VF_VECTORS_INT == VECTORS;
    if (is_shared && (m->n_rows <= rows.shared || m->n_rows > rows.alone))
        for (; g + VF_VECTORS_INT <= end; g += VF_VECTORS_INT)
            quant_rows(m, g, type, VF_VECTORS_INT);
    for (; g < end; g++)
        quant_rows(m, g, type, 1);
}

static void mat_mul_f32(const td_host_mat_mul *m) { mat_mul_float(m, TD_TYPE_F32); }
static void mat_mul_f16(const td_host_mat_mul *m) { mat_mul_float(m, TD_TYPE_F16); }
static void mat_mul_bf16(const td_host_mat_mul *m) { mat_mul_float(m, TD_TYPE_BF16); }
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
    const td_type_info *type = m->w->base.params.type;
    if (m->n_rows > vf_rows(type->id).direct) {
        mat_mul_parts(m);
        return;
    }
    switch (type->id) {
    case TD_TYPE_F32:
        mat_mul_f32(m);
        break;
    case TD_TYPE_F16:
        mat_mul_f16(m);
        break;
    case TD_TYPE_BF16:
        mat_mul_bf16(m);
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
        mat_mul_parts(m);
    }
}

#endif
