/* top, pick, feed and route on the host (ops.h). Private to kernels/host. */
#ifndef TD_KERNELS_HOST_TOP_H
#define TD_KERNELS_HOST_TOP_H

#include "base/check.h"
#include "kernels/host/host.h"

typedef void td_host_exp_row(const float *x, uint32_t n, float *y); /* y may be x */

void td_host_top(const td_op *op, uint32_t row, uint32_t i_chunk, td_host_exp_row *exp_row);
void td_host_pick(const td_op *op, uint32_t row);
void td_host_route(const td_op *op, uint32_t row);
/* All but the row of cos_sin, which the device reads from its own kind of weight: row `position`,
 * UINT32_MAX when it lies outside the table. */
uint32_t td_host_feed(const td_op *op);

static inline uint32_t td_host_n_chunks(const td_op *op)
{
    return td_div_up(op->in[0].n_cols, TD_TOP_CHUNK);
}

#endif
