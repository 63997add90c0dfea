/* The level's table; KERNELS is its name. */
#ifndef TD_KERNELS_HOST_BODY_TABLE_H
#define TD_KERNELS_HOST_BODY_TABLE_H

#include "kernels/host/body_attention.h"
#include "kernels/host/body_mat_mul.h"
#include "kernels/host/body_math.h"

const td_host_kernels KERNELS = {
    .name = ISA_NAME,
    .quantize = quantize_row,
    .mat_mul = mat_mul,
    .rms_norm = rms_norm_row,
    .rope = rope_head,
    .swiglu = swiglu_row,
    .add = add_row,
    .to_f16 = f16_row,
    .attention = attention,
    .exp = exp_row,
};

#endif
