/* Q8_0: a run is half a block: 16 bytes that hold quant + 128; value = (byte - 128) d. Both
 * products are exact, so the fma gives what the subtraction first would. */
#define TD_RUN        16u
#define TD_IS_BLOCKED 1

struct td_run {
    uvec4 q;
    float d, offset;
};

td_run td_load_run(uint row_word, uint n_k, uint i_run)
{
    float d = td_half_at(row_word + n_k / 4u, i_run / 2u);
    return td_run(w4[row_word / 4u + i_run], d, -128.0 * d);
}

vec4 td_run_vec4(td_run run, uint j)
{
    precise vec4 v = fma(td_bytes(run.q[j]), vec4(run.d), vec4(run.offset));
    return v;
}
