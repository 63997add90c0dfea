/* Q6_K: a run is two sub-blocks of 16: value = (d scale) (6 bits - 32). d scale and its 32-fold
 * are exact, so the fma rounds once, as the product does. */
#define TD_RUN        32u
#define TD_IS_BLOCKED 1

struct td_run {
    uvec4 q;
    uvec2 high;
    vec2 step; /* of elements 0..15 and 16..31 */
};

td_run td_load_run(uint row_word, uint n_k, uint i_run)
{
    uint high_word = row_word + n_k / 8u + 2u * i_run;
    uint scales = w[row_word + n_k / 16u * 3u + i_run / 2u] >> (16u * (i_run & 1u));
    float d = td_half_at(row_word + n_k / 64u * 13u, i_run / 8u);
    vec2 sub = vec2(bitfieldExtract(int(scales), 0, 8), bitfieldExtract(int(scales), 8, 8));
    return td_run(w4[row_word / 4u + i_run], uvec2(w[high_word], w[high_word + 1u]), d * sub);
}

vec4 td_run_vec4(td_run run, uint j)
{
    uint low = run.q[j / 2u] >> (4u * (j & 1u)) & 0x0f0f0f0fu;
    uint high = run.high[j / 4u] >> (2u * (j & 3u)) & 0x03030303u;
    float step = run.step[j / 4u];
    precise vec4 v = fma(td_bytes(low | high << 4), vec4(step), vec4(-32.0 * step));
    return v;
}
