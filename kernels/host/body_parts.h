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
    uint32_t n_parts, part0;   /* in the row */
    uint32_t column;           /* of y, the panel's first */
    uint32_t n_lanes[VECTORS]; /* that are outputs */
    bool is_first, is_last;
    const uint8_t *ahead; /* the weights to be fetched meanwhile, */
    uint32_t n_lines;     /* this many cache lines of them at each part */
} piece;

#define EACH_PANEL_VECTOR UNROLL for (int v = 0; v < VECTORS; v++)

/* Whether both halves of a part have sums of their own: they must, or there are registers for it
 * and two chains of dots in turns hide their latency. */
#define HAS_HALVES(kind) ((kind).is_by_16 || VL == 16)

typedef vi part_sums[2][VECTORS][ROWS_MAX];

/* What the sum of half h starts from, so that it ends as that of the weights themselves; without
 * halves h = 0 is the whole part. */
INLINE vi start_sum(const td_act_block *x, const int h, const part_kind kind)
{
    if (!kind.is_small)
        return HAS_HALVES(kind) ? w8_start_half(x, h) : w8_start(x);
    if (!kind.offset)
        return vi_set1(0);
    return vi_set1(HAS_HALVES(kind) ? x->by_32[h] * kind.offset >> 5 : x->by_8 * kind.offset >> 3);
}

/* sum[h][v][r]: part i of vector v times row r's. */
INLINE void dot_part(const piece *t, uint32_t i, const td_act_block *x, const size_t stride,
                     const part_kind kind, const int n_rows, part_sums sum)
{
    /* How many groups are added up before their sums are widened. */
    const int n_narrow = VF_HAS_NARROW ? kind.n_narrow : 1;
    vi dots[VECTORS][ROWS_MAX];
    EACH_PANEL_VECTOR EACH_ROW sum[0][v][r] = start_sum(x + (size_t)r * stride, 0, kind);
    if (HAS_HALVES(kind))
        EACH_PANEL_VECTOR EACH_ROW sum[1][v][r] = start_sum(x + (size_t)r * stride, 1, kind);
    UNROLL for (int j = 0; j < BLOCK_GROUPS; j++)
    {
        const int g = VL == 16 ? j / 2 + j % 2 * 4 : j, h = HAS_HALVES(kind) ? g / 4 : 0;
        vb u[VECTORS];
        w8 w[VECTORS];
        EACH_PANEL_VECTOR
        {
            const uint8_t *at = &t->w->q[i][g][v * VL][0];
            if (kind.is_small)
                u[v] = vb_load(at);
            else
                w[v] = w8_load(at);
        }
        EACH_ROW
        {
            q4 q = q4_load(x[(size_t)r * stride].q + 4 * g);
            EACH_PANEL_VECTOR
            {
                if (!kind.is_small)
                    sum[h][v][r] = w8_dot4(sum[h][v][r], w[v], q);
                else if (n_narrow == 1)
                    sum[h][v][r] = vi_dot4(sum[h][v][r], u[v], q);
                else
                    dots[v][r] = vi_dot4_narrow(j % n_narrow ? dots[v][r] : vi_set1(0), u[v], q);
                if (n_narrow > 1 && j % n_narrow == n_narrow - 1)
                    sum[h][v][r] = vi_add(sum[h][v][r], vi_widen(dots[v][r]));
            }
        }
    }
}

/* total = what part i adds to an output of row x, but for the row's scale. */
INLINE vf scale_part(const piece *t, uint32_t i, const td_act_block *x, const part_kind kind,
                     const int v, const vi sum0, const vi sum1)
{
    const float *scale = &t->w->scale[i][0][v * VL], *minimum = &t->w->minimum[i][0][v * VL];
    if (!kind.is_by_16) {
        vf total = vf_mul(vf_load(scale), vf_of_vi(HAS_HALVES(kind) ? vi_add(sum0, sum1) : sum0));
        return kind.has_minimum ? vf_fnma(vf_load(minimum), vf_set1(x->sum), total) : total;
    }
    vf total = vf_mul(vf_load(scale), vf_of_vi(sum0));
    total = vf_fma(vf_load(scale + TD_PANEL_ROWS), vf_of_vi(sum1), total);
    if (!kind.has_minimum)
        return total;
    total = vf_fnma(vf_load(minimum), vf_set1((float)(x->by_32[0] / -32)), total);
    return vf_fnma(vf_load(minimum + TD_PANEL_ROWS), vf_set1((float)(x->by_32[1] / -32)), total);
}

INLINE void part_tile(const piece *t, uint32_t row, const part_kind kind, const int n_rows)
{
    const td_host_mat_mul *m = t->m;
    const size_t stride = m->w->base.params.n_cols / TD_ACT_BLOCK;
    const td_act_block *x = m->act + row * stride + t->part0;
    float *y = m->y + row * m->y_stride + t->column;
    vf acc[VECTORS][ROWS_MAX];
    EACH_PANEL_VECTOR EACH_ROW acc[v][r] =
        t->is_first ? vf_zero() : vf_load_n(y + (size_t)r * m->y_stride + v * VL, t->n_lanes[v]);
    for (uint32_t i = 0; i < t->n_parts; i++, x++) {
        if (row == 0) /* so once for each piece */
            for (uint32_t j = 0; j < t->n_lines; j++)
                __builtin_prefetch(t->ahead + (i * t->n_lines + j) * LINE_BYTES);
        part_sums sum;
        dot_part(t, i, x, stride, kind, n_rows, sum);
        EACH_ROW
        {
            const td_act_block *xr = x + (size_t)r * stride;
            EACH_PANEL_VECTOR
            {
                vf total = scale_part(t, i, xr, kind, v, sum[0][v][r],
                                      HAS_HALVES(kind) ? sum[1][v][r] : sum[0][v][r]);
                acc[v][r] = vf_fma(total, vf_set1(xr->d), acc[v][r]);
            }
        }
    }
    EACH_PANEL_VECTOR
    {
        bool has_bias = t->is_last && m->bias;
        vf bias = has_bias ? vf_load_n(m->bias + t->column + v * VL, t->n_lanes[v]) : vf_zero();
        EACH_ROW vf_store_n(y + (size_t)r * m->y_stride + v * VL,
                            has_bias ? vf_add(acc[v][r], bias) : acc[v][r], t->n_lanes[v]);
    }
}

INLINE void part_rows(const piece *t, const part_kind kind)
{
    const uint32_t n_max = VF_ROWS_PARTS;
    for (row_tiles rows = {0}; next_tile(t->m, n_max, &rows);) {
        switch (rows.n) {
        case 1:
            part_tile(t, rows.row, kind, 1);
            break;
        case 2:
            part_tile(t, rows.row, kind, 2);
            break;
        case 3:
            part_tile(t, rows.row, kind, n_max < 3 ? 1 : 3);
            break;
        case 4:
            part_tile(t, rows.row, kind, n_max < 4 ? 1 : 4);
            break;
        case 5:
            part_tile(t, rows.row, kind, n_max < 5 ? 1 : 5);
            break;
        case 6:
            part_tile(t, rows.row, kind, n_max < 6 ? 1 : 6);
            break;
        case 7:
            part_tile(t, rows.row, kind, n_max < 7 ? 1 : 7);
            break;
        default:
            part_tile(t, rows.row, kind, n_max < 8 ? 1 : 8);
        }
    }
}

/* The kinds of parts there are; a type names one of them. */
#define EACH_KIND(X)                                                                               \
    X(plain, KIND_PLAIN)                                                                           \
    X(plain_by_16, KIND_PLAIN_BY_16)                                                               \
    X(nibbles, KIND_NIBBLES)                                                                       \
    X(nibbles_minimum, KIND_NIBBLES_MINIMUM)                                                       \
    X(fives, KIND_FIVES)                                                                           \
    X(fives_minimum, KIND_FIVES_MINIMUM)                                                           \
    X(threes_by_16, KIND_THREES_BY_16)                                                             \
    X(twos_by_16_minimum, KIND_TWOS_BY_16_MINIMUM)                                                 \
    X(sixes_by_16, KIND_SIXES_BY_16)

#define RUN_KIND(name, id)                                                                         \
    static void part_rows_##name(const piece *t) { part_rows(t, part_kinds[id]); }
EACH_KIND(RUN_KIND)
#undef RUN_KIND

static void mat_mul_parts(const td_host_mat_mul *m)
{
#define RUN_ROW(name, id) [id] = part_rows_##name,
    static void (*const by_kind[])(const piece *) = {EACH_KIND(RUN_ROW)};
#undef RUN_ROW
    const td_type_info *type = m->w->base.params.type;
    const part_source *source = find_source(type);
    uint32_t n_block_parts =
        source->n_parts ? source->n_parts : type->block_elements / TD_PART_ELEMENTS;
    uint32_t n_parts = m->w->base.params.n_cols / TD_PART_ELEMENTS;
    size_t block_bytes = m->w->panel_bytes / td_div_up(n_parts, n_block_parts);
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
                source->unpack(block, &w, j);
                block += block_bytes;
            }
            t.ahead = block + AHEAD_PIECES * n_lines * TD_PARTS_MAX * LINE_BYTES;
            t.column = (panel - m->panel0) * TD_PANEL_ROWS;
            EACH_PANEL_VECTOR t.n_lanes[v] =
                lanes_left(m->w->group_rows, t.column + (uint32_t)v * VL);
            by_kind[source->kind](&t);
        }
}

#endif
