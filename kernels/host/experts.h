/* mat_mul by groups of a weight: heads, or the experts that rows have chosen. The rows of a group
 * are gathered, so that the kernels see a small batch of their own. Private to kernels/host. */
#ifndef TD_KERNELS_HOST_EXPERTS_H
#define TD_KERNELS_HOST_EXPERTS_H

#include "kernels/host/host.h"

/* Scratch for each thread, as the program's ops need it. */
bool td_host_gather_init(td_host_program *p, td_err *err);

typedef struct {
    const td_host_program *p;
    const td_op *op; /* a mat_mul of groups */
    const td_host_kernels *kernels;
    uint8_t i_act; /* the buffer with op's input, TD_HOST_ACTS when none */
    uint32_t thread, n_threads, n_rows;
} td_host_gather;

/* This thread's share. */
void td_host_mat_mul_gathered(const td_host_gather *g);

#endif
