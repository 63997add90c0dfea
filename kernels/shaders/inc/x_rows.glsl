/* The activations of mat_vec and mat_mul: x as floats and, where a view begins at multiples of 4
 * columns, as vec4s. Needs the push constants p of push_mat_mul. */
layout(set = 0, binding = 0) readonly buffer x_floats { float x[]; };
layout(set = 0, binding = 0) readonly buffer x_vec4s { vec4 x4[]; };

/* Whole runs of vec4s: what a model has, but for odd shapes. Chosen once, outside of loops. */
bool td_x_is_aligned()
{
    return ((p.x_col0 | p.x_stride) & 3u) == 0u && p.n_k % TD_RUN == 0u;
}

/* Columns k..k+3 of a row, k a multiple of 4. Columns from n_k on are zeros: they are padding of
 * the tensor or belong to a neighbour, and a zero weight times their Inf would be NaN. */
vec4 td_load_x(bool is_aligned, uint row, uint k)
{
    uint i = row * p.x_stride + p.x_col0 + k;
    if (is_aligned)
        return x4[i / 4u];
    if (TD_IS_BLOCKED != 0)
        return vec4(x[i], x[i + 1u], x[i + 2u], x[i + 3u]);
    uint n = p.n_k - min(k, p.n_k);
    return vec4(n > 0u ? x[i] : 0.0, n > 1u ? x[i + 1u] : 0.0, n > 2u ? x[i + 2u] : 0.0,
                n > 3u ? x[i + 3u] : 0.0);
}
