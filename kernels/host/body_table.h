/* The level's table; KERNELS is its name. */
const td_host_kernels KERNELS = {
    .name = ISA_NAME,
    .quantize = quantize_row,
    .mat_mul = mat_mul,
    .rms_norm = rms_norm_row,
    .rope = rope_head,
    .swiglu = swiglu_row,
    .add = add_row,
    .attention = attention,
    .exp = exp_row,
};
