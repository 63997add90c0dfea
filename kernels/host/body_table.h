/* The level's table; KERNELS is its name. */
#ifndef TD_KERNELS_HOST_BODY_TABLE_H
#define TD_KERNELS_HOST_BODY_TABLE_H

#include "kernels/host/body_attention.h"
#include "kernels/host/body_encode.h"
#include "kernels/host/body_mat_mul.h"
#include "kernels/host/body_math.h"
#include "kernels/host/body_mix.h"

const td_host_kernels KERNELS = {
    .name = ISA_NAME,
    .quantize = quantize_row,
    .mat_mul = mat_mul,
    .rms_norm = rms_norm_row,
    .rope = rope_head,
    .glu = glu_row,
    .add = add_row,
    .scale = scaled_row,
    .softcap = softcap_row,
    .experts_sum = experts_sum_row,
    .delta = {conv_row, unit_row, delta_step},
    .to_f16 = f16_row,
    .rotate = rotate_row,
    .encode = encode_blocks,
    .attention = attention,
    .exp = exp_row,
};

#endif
