/* What the shaders of products share: push constants, bindings, which rows a workgroup takes, where
 * they are read and written. Before it: KIND and IS_ALIGNED. After find_group: group, n_rows. */
layout(push_constant) uniform push_block { push_mat_mul p; };

#include "quant.glsl"
#include "int8.glsl"
#if TD_IS_INT8
layout(set = 0, binding = 0) readonly buffer x_uvec4s { uvec4 x[]; };
#else
layout(set = 0, binding = 0) readonly buffer x_floats { float x[]; };
layout(set = 0, binding = 0) readonly buffer x_vec4s { vec4 x4[]; };
#endif
layout(set = 0, binding = 2) readonly buffer bias_floats { float bias[]; };
layout(set = 0, binding = 3) writeonly buffer y_floats { float y[]; };
layout(set = 0, binding = 4) readonly buffer expert_ints { int experts[]; };
layout(set = 0, binding = 5) readonly buffer list_uints { uint lists[]; };

const uint LANES = TD_VK_PANEL;

uint group;           /* of the slab */
uint n_rows, choices; /* by expert: how many rows chose it, and where in lists they are */

/* The r-th row: of the batch, or n_used * row + i, the expert being the i-th choice of the row. */
uint find_row(uint r)
{
    if (KIND != TD_VK_MUL_EXPERT)
        return r;
    return p.n_rows == 1u ? gl_WorkGroupID.z : lists[choices + r];
}
uint find_x(uint row)
{
    if (KIND == TD_VK_MUL_EXPERT)
        return row / p.n_used * p.x_stride + p.x_col0 + row % p.n_used * p.x_group;
    return row * p.x_stride + p.x_col0 + (KIND == TD_VK_MUL_GROUPS ? group * p.x_group : 0u);
}
uint find_y(uint row)
{
    if (KIND == TD_VK_MUL_EXPERT)
        return row / p.n_used * p.y_stride + p.y_col0 + row % p.n_used * p.y_group;
    uint y_at = row * p.y_stride + p.y_col0 + p.o0;
    return KIND == TD_VK_MUL_GROUPS ? y_at + (p.group0 + group) * p.y_group : y_at;
}

#if !TD_IS_INT8
vec4 load_x(uint i, uint k)
{
    if (IS_ALIGNED)
        return x4[(i + k) / 4u];
    /* Columns from n_k on are padding or a neighbour's, and 0 times their Inf would be NaN. */
    uint n = p.n_k - min(k, p.n_k);
    return vec4(n > 0u ? x[i + k] : 0.0, n > 1u ? x[i + k + 1u] : 0.0,
                n > 2u ? x[i + k + 2u] : 0.0, n > 3u ? x[i + k + 3u] : 0.0);
}
#endif

float add_bias(uint o, float sum0)
{
    precise float sum = sum0;
    if (p.has_bias != 0u)
        sum += bias[p.o0 + (KIND == TD_VK_MUL_PLAIN ? 0u : (p.group0 + group) * p.n_o) + o];
    return sum;
}

void store(uint o, uint r, float sum)
{
    if (r < n_rows && o < p.n_o)
        y[find_y(find_row(r)) + o] = add_bias(o, sum);
}

/* Where the weight row of output o is; past the last one it is the last. */
uint find_base(uint o)
{
    uint row_of_group = group * ((p.n_o + LANES - 1u) / LANES * LANES);
    return td_row_base(row_of_group + min(o, p.n_o - 1u), p.w_units);
}

/* Finds the group of the workgroup, and by expert its rows; false where there is nothing to do. */
bool find_group()
{
    group = KIND == TD_VK_MUL_PLAIN ? 0u : gl_WorkGroupID.z;
    n_rows = p.n_rows;
    if (KIND != TD_VK_MUL_EXPERT)
        return true;
    uint expert;
    if (p.n_rows == 1u) {
        expert = uint(experts[gl_WorkGroupID.z]);
    } else {
        uint at = 4u + 3u * gl_WorkGroupID.z;
        if (gl_WorkGroupID.z >= lists[0])
            return false;
        expert = lists[at];
        choices = TD_VK_LIST_WORDS + lists[at + 1u];
        n_rows = lists[at + 2u];
    }
    group = expert - p.group0; /* wraps for those of slabs before */
    return group < p.n_groups;
}
