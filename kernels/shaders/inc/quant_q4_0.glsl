/* Q4_0: a run is one block of 32: value = (nibble - 8) d. Both products are exact, so the fma
 * gives what the subtraction first would. */
#define TD_RUN        32u
#define TD_IS_BLOCKED 1

struct td_run {
    uvec4 q;
    float d, offset;
};

td_run td_load_run(uint row_word, uint n_k, uint i_run)
{
    float d = td_half_at(row_word + n_k / 8u, i_run);
    return td_run(w4[row_word / 4u + i_run], d, -8.0 * d);
}

vec4 td_run_vec4(td_run run, uint j)
{
    uint nibbles = run.q[j / 2u] >> (4u * (j & 1u)) & 0x0f0f0f0fu;
    precise vec4 v = fma(td_bytes(nibbles), vec4(run.d), vec4(run.offset));
    return v;
}
