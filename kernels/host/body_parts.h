/* mat_mul of the types that are stored as words (host.h). Up to 256 elements of a panel are taken
 * apart into a piece that stays in the first level cache, and one tile for all types runs over it
 * with every row of the batch. So the work of decoding is done once for all rows, and a type costs
 * an unpacker but no tile of its own. The accumulators wait in y from piece to piece. */
#ifndef TD_KERNELS_HOST_BODY_PARTS_H
#define TD_KERNELS_HOST_BODY_PARTS_H

#include "kernels/host/body_tiles.h"
#include "kernels/host/body_unpack_iq.h"

/* Pieces are too short for the CPU to see where the weights go on, and memory would be idle while
 * one is multiplied: the next but one is fetched meanwhile. Past the end nothing is read and
 * nothing faults. */
#define AHEAD_PIECES 1u

typedef struct { /* a piece and where it goes */
    const td_host_mat_mul *m;
    const td_host_parts *w;
    uint32_t n_parts, part0; /* in the row */
    uint32_t lane0, column;  /* of the vector: in the panel, of y */
    uint32_t n_lanes;        /* of the vector that are outputs */
    bool is_first, is_last;
    const uint8_t *ahead; /* the weights to be fetched meanwhile, */
    uint32_t n_lines;     /* this many cache lines of them at each part */
} piece;

/* sum[h][r]: both halves of part i times row r's. */
INLINE void dot_part(const piece *t, uint32_t i, const td_act_block *x, const size_t stride,
                     const int n_rows, vi sum[2][ROWS_MAX])
{
    EACH_ROW sum[0][r] = w8_start_half(x + (size_t)r * stride, 0);
    EACH_ROW sum[1][r] = w8_start_half(x + (size_t)r * stride, 1);
    UNROLL for (int j = 0; j < BLOCK_GROUPS; j++)
    {
        /* With many registers the halves take turns, which hides the latency of a dot. */
        const int g = VL == 16 ? j / 2 + j % 2 * 4 : j;
        w8 w = w8_load(&t->w->q[i][g][t->lane0][0]);
        EACH_ROW
        {
            q4 q = q4_load(x[(size_t)r * stride].q + 4 * g);
            sum[g / 4][r] = w8_dot4(sum[g / 4][r], w, q);
        }
    }
}

INLINE void part_tile(const piece *t, uint32_t row, const bool is_by_16, const bool has_minimum,
                      const int n_rows)
{
    const td_host_mat_mul *m = t->m;
    const size_t stride = m->w->base.params.n_cols / TD_ACT_BLOCK;
    const td_act_block *x = m->act + row * stride + t->part0;
    float *y = m->y + row * m->y_stride + t->column;
    vf acc[ROWS_MAX];
    EACH_ROW acc[r] = t->is_first ? vf_zero() : vf_load_n(y + (size_t)r * m->y_stride, t->n_lanes);
    for (uint32_t i = 0; i < t->n_parts; i++, x++) {
        vi sum[2][ROWS_MAX];
        if (row == 0 && t->lane0 == 0) /* so once for each piece */
            for (uint32_t j = 0; j < t->n_lines; j++)
                __builtin_prefetch(t->ahead + (i * t->n_lines + j) * LINE_BYTES);
        dot_part(t, i, x, stride, n_rows, sum);
        vf scale = vf_load(t->w->scale[i][0] + t->lane0);
        vf scale1 = vf_load(t->w->scale[i][1] + t->lane0);
        vf minimum = vf_load(t->w->minimum[i][0] + t->lane0);
        vf minimum1 = vf_load(t->w->minimum[i][1] + t->lane0);
        EACH_ROW
        {
            const td_act_block *xr = x + (size_t)r * stride;
            vf total;
            if (is_by_16) {
                total = vf_mul(scale, vf_of_vi(sum[0][r]));
                total = vf_fma(scale1, vf_of_vi(sum[1][r]), total);
                if (has_minimum) {
                    total = vf_fnma(minimum, vf_set1((float)(xr->by_32[0] / -32)), total);
                    total = vf_fnma(minimum1, vf_set1((float)(xr->by_32[1] / -32)), total);
                }
            } else {
                total = vf_mul(scale, vf_of_vi(vi_add(sum[0][r], sum[1][r])));
                if (has_minimum)
                    total = vf_fnma(minimum, vf_set1(xr->sum), total);
            }
            acc[r] = vf_fma(total, vf_set1(xr->d), acc[r]);
        }
    }
    vf bias = t->is_last && m->bias ? vf_load_n(m->bias + t->column, t->n_lanes) : vf_zero();
    EACH_ROW
    {
        if (t->is_last && m->bias)
            acc[r] = vf_add(acc[r], bias);
        vf_store_n(y + (size_t)r * m->y_stride, acc[r], t->n_lanes);
    }
}

INLINE void part_rows(const piece *t, const bool is_by_16, const bool has_minimum)
{
    const uint32_t n_max = VF_ROWS_ALONE;
    for (row_tiles rows = {0}; next_tile(t->m, n_max, &rows);) {
        switch (rows.n) {
        case 1:
            part_tile(t, rows.row, is_by_16, has_minimum, 1);
            break;
        case 2:
            part_tile(t, rows.row, is_by_16, has_minimum, 2);
            break;
        case 3:
            part_tile(t, rows.row, is_by_16, has_minimum, n_max < 3 ? 1 : 3);
            break;
        case 4:
            part_tile(t, rows.row, is_by_16, has_minimum, n_max < 4 ? 1 : 4);
            break;
        case 5:
            part_tile(t, rows.row, is_by_16, has_minimum, n_max < 5 ? 1 : 5);
            break;
        case 6:
            part_tile(t, rows.row, is_by_16, has_minimum, n_max < 6 ? 1 : 6);
            break;
        case 7:
            part_tile(t, rows.row, is_by_16, has_minimum, n_max < 7 ? 1 : 7);
            break;
        default:
            part_tile(t, rows.row, is_by_16, has_minimum, n_max < 8 ? 1 : 8);
        }
    }
}

static void part_rows_32(const piece *t) { part_rows(t, false, false); }
static void part_rows_32_minimum(const piece *t) { part_rows(t, false, true); }
static void part_rows_16(const piece *t) { part_rows(t, true, false); }
static void part_rows_16_minimum(const piece *t) { part_rows(t, true, true); }

static void mat_mul_parts(const td_host_mat_mul *m)
{
    const td_type_info *type = m->w->base.params.type;
    void (*run)(const piece *) = type->is_by_16
                                     ? (type->has_minimum ? part_rows_16_minimum : part_rows_16)
                                     : (type->has_minimum ? part_rows_32_minimum : part_rows_32);
    const unpack_block unpack = find_unpack(type);
    uint32_t n_block_parts = type->block_elements / TD_PART_ELEMENTS;
    uint32_t n_parts = m->w->base.params.n_cols / TD_PART_ELEMENTS;
    size_t block_bytes = (size_t)TD_PANEL_ROWS * type->block_bytes;
    uint32_t n_lines = td_div_up((uint32_t)block_bytes / n_block_parts, LINE_BYTES);
    _Alignas(64) td_host_parts w;
    for (uint32_t panel = m->panel_begin; panel < m->panel_end; panel++)
        for (uint32_t i = 0; i < n_parts; i += TD_PARTS_MAX) {
            const uint8_t *block =
                m->w->data + panel * m->w->panel_bytes + i / n_block_parts * block_bytes;
            piece t = {.m = m, .w = &w, .part0 = i, .n_lines = n_lines};
            t.n_parts = td_min_u32(n_parts - i, TD_PARTS_MAX);
            t.is_first = i == 0;
            t.is_last = i + t.n_parts == n_parts;
            for (uint32_t j = 0; j < t.n_parts; j += n_block_parts) {
                unpack(block, &w, j);
                block += block_bytes;
            }
            t.ahead = block + AHEAD_PIECES * n_lines * TD_PARTS_MAX * LINE_BYTES;
            for (t.lane0 = 0; t.lane0 < TD_PANEL_ROWS; t.lane0 += VL) {
                t.column = (panel - m->panel0) * TD_PANEL_ROWS + t.lane0;
                t.n_lanes = lanes_left(m->w->group_rows, t.column);
                if (t.n_lanes)
                    run(&t);
            }
        }
}

#endif
