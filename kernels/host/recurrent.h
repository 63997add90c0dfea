/* Recurrent state on the host, and the walk over a sequence's rows, for the scalar device and for
 * the fast one. Private to kernels/host. */
#ifndef TD_KERNELS_HOST_RECURRENT_H
#define TD_KERNELS_HOST_RECURRENT_H

#include "kernels/host/host.h"

typedef struct {
    td_state base;
    float *s;         /* [n_slots][n_head_v][dim][dim]: keys down, values across */
    uint32_t *counts; /* [n_slots][n_head_v]: positions that s holds */
    float *inputs;    /* [n_slots][n_pending][td_state_cols] */
    float *scratch;   /* [threads][td_host_scratch_floats] */
    uint64_t n_bytes;
} td_host_state;

bool td_host_state_init(td_state *s, td_err *err);
void td_host_state_free(td_state *s);
uint64_t td_host_state_bytes(const td_device *dev, const td_state_params *params);

/* td_op_delta_net of v head h for the sequence whose rows begin at `row` (of n_rows). */
void td_host_delta_net(const td_op *op, uint32_t row, uint32_t n_rows, uint32_t h, uint32_t thread,
                       const td_host_delta_kernels *kernels);
/* Whether a sequence's rows begin at `row`. */
bool td_host_is_leader(const td_op *op, uint32_t row);
/* td_op_state_keep of one row. */
void td_host_state_keep(const td_op *op, uint32_t row);

#endif
