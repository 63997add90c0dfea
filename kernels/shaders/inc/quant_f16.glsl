/* F16: a run is 8 halves. */
#define TD_RUN        8u
#define TD_IS_BLOCKED 0

struct td_run {
    uvec4 q;
};

td_run td_load_run(uint row_word, uint n_k, uint i_run)
{
    return td_run(w4[row_word / 4u + i_run]);
}

vec4 td_run_vec4(td_run run, uint j)
{
    return vec4(unpackHalf2x16(run.q[2u * j]), unpackHalf2x16(run.q[2u * j + 1u]));
}
