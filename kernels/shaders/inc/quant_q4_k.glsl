/* Q4_K: a run is a sub-block of 32: value = (d scale) nibble - d_min minimum. All products are
 * exact in f32 (11 + 6 + 4 bits), so the only rounding is the subtraction's. */
#define TD_RUN        32u
#define TD_IS_BLOCKED 1

struct td_run {
    uvec4 q;
    float step, offset;
};

td_run td_load_run(uint row_word, uint n_k, uint i_run)
{
    uvec4 meta = w4[row_word / 4u + n_k / 32u + i_run / 8u];
    vec2 d = unpackHalf2x16(meta.x); /* d, d_min */
    uint shift = 4u * (i_run & 7u);
    uint high = meta.w >> shift;
    uint scale = (meta.y >> shift & 15u) | (high & 3u) << 4;
    uint minimum = (meta.z >> shift & 15u) | (high & 12u) << 2;
    return td_run(w4[row_word / 4u + i_run], d.x * float(scale), -(d.y * float(minimum)));
}

vec4 td_run_vec4(td_run run, uint j)
{
    uint nibbles = run.q[j / 2u] >> (4u * (j & 1u)) & 0x0f0f0f0fu;
    precise vec4 v = fma(td_bytes(nibbles), vec4(run.step), vec4(run.offset));
    return v;
}
