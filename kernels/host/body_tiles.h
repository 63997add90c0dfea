/* What the tiles of mat_mul share: walking rows and outputs, and fetching ahead. */
#ifndef TD_KERNELS_HOST_BODY_TILES_H
#define TD_KERNELS_HOST_BODY_TILES_H

#include "kernels/host/body_math.h"

#define ROWS_MAX        8
#define BLOCK_GROUPS    8 /* groups of 4 k in a block of 32 */
#define LINE_BYTES      64u
#define AHEAD_BYTES_MAX 131072u /* a share of the second level cache */

/* The weights are one stream, but a tile of many rows is too much code between two loads of it for
 * the CPU to look ahead by itself; with one row it does, and to look far only disturbs it: how far
 * is best there is the level's (VF_AHEAD_ONE, 0: not at all). Past the end nothing is loaded and
 * nothing faults. */
INLINE void prefetch_from(const uint8_t *at, const uint32_t ahead)
{
    if (ahead)
        __builtin_prefetch((const void *)((uintptr_t)at + ahead));
}

INLINE void prefetch(const uint8_t *at, const int n_rows)
{
    prefetch_from(at, n_rows == 1 ? VF_AHEAD_ONE : 4096);
}

/* Where the outputs of a tile are: the weights of vector g (VL outputs) of w. */
INLINE const uint8_t *vector_base(const td_host_weight *w, uint32_t g, size_t lane_bytes)
{
    return w->data + g * VL / 16 * w->panel_bytes + g * VL % 16 * lane_bytes;
}

/* The rows of a batch in as few tiles as can be, alike in size: a rest of one row would cost almost
 * what a full tile does. */
typedef struct {
    uint32_t row, n; /* of the current tile */
} row_tiles;

INLINE bool next_tile(const td_host_mat_mul *m, const uint32_t n_max, row_tiles *t)
{
    t->row += t->n;
    uint32_t n_left = m->n_rows - t->row;
    t->n = n_left ? td_div_up(n_left, td_div_up(n_left, n_max)) : 0;
    return n_left > 0;
}

INLINE void store_tile(const td_host_mat_mul *m, uint32_t g, uint32_t row, vf acc)
{
    uint32_t column = g * VL - m->panel0 * 16, n = lanes_left(m->w->group_rows, column);
    if (!n) /* padding */
        return;
    if (m->bias)
        acc = vf_add(acc, vf_load_n(m->bias + column, n));
    vf_store_n(m->y + row * m->y_stride + column, acc, n);
}

#define EACH_ROW UNROLL for (int r = 0; r < n_rows; r++)

#endif
