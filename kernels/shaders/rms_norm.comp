/* y[r][i] = x[r][i] / sqrt(mean_j x[r][j]^2 + eps) * weight[i], for each group of group_cols
 * columns on its own. y may be x. Grid: groups, rows. Source: Zhang & Sennrich 2019.
 * Specialization: 0 HAS_SUM: x is not there yet, but the sum of a and b, which is kept in `sum`
 * (which may be either); 1 HAS_INT8: y is quantized too, as quantize.comp does it.
 *
 * Law 1: invocation t adds the squares of columns t, t + 256, ... by fma; the 256 sums are added
 * as a balanced tree in shared memory, whatever the subgroup size. */
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require

#include "inc/push.glsl"
#include "inc/int8.glsl"

layout(local_size_x = 256) in;
layout(push_constant) uniform push_block { push_rms_norm p; };
layout(constant_id = 0) const bool HAS_SUM = false;
layout(constant_id = 1) const bool HAS_INT8 = false;
layout(set = 0, binding = 0) readonly buffer x_floats { float x[]; };
layout(set = 0, binding = 1) readonly buffer weight_floats { float weight[]; };
layout(set = 0, binding = 2) writeonly buffer y_floats { float y[]; };
layout(set = 0, binding = 3) readonly buffer b_floats { float b[]; };
layout(set = 0, binding = 4) writeonly buffer sum_floats { float sum_x[]; };
layout(set = 0, binding = 5) writeonly buffer q_words { uint q[]; };
layout(set = 0, binding = 5) writeonly buffer q_uvec4s { uvec4 q4[]; };

#define TD_INT8_LANES 256u
#include "inc/int8_encode.glsl"

shared float sums[256];

uint i_x, i_b, i_sum, i_y; /* where the group begins */

float load(uint i)
{
    precise float value = x[i_x + i];
    if (HAS_SUM)
        value += b[i_b + i];
    return value;
}

/* The norm of column i, whose x this is. */
float norm(uint i, float value, float scale)
{
    precise float y = value * scale;
    if (p.has_weight != 0u)
        y *= weight[i];
    return y;
}

/* Columns i..i+3, loaded together: a store in between would part the loads. */
vec4 finish(uint i, float scale)
{
    vec4 v = vec4(load(i), load(i + 1u), load(i + 2u), load(i + 3u));
    vec4 normed = vec4(norm(i, v.x, scale), norm(i + 1u, v.y, scale), norm(i + 2u, v.z, scale),
                       norm(i + 3u, v.w, scale));
    [[unroll]] for (uint k = 0u; k < 4u; k++) {
        if (HAS_SUM)
            sum_x[i_sum + i + k] = v[k];
        y[i_y + i + k] = normed[k];
    }
    return normed;
}

/* The columns, 4 a lane, and their quants. */
void finish_blocks(uint t, uint r, float scale)
{
    uint b0 = gl_WorkGroupID.x * p.group_cols / 32u, i = t % 8u;
    bool is_last = gl_WorkGroupID.x + 1u == p.n_groups; /* pads with zeros */
    uint n_blocks = is_last ? p.n_blocks - b0 : p.group_cols / 32u;
    for (uint first = 0u; first < n_blocks; first += 32u) {
        uint b = first + t / 8u, k = 32u * b + 4u * i;
        uint at = (r * p.n_blocks + b0 + b) * TD_INT8_UNITS;
        vec4 v = vec4(0.0);
        if (k < p.group_cols)
            v = finish(k, scale);
        uvec4 last;
        uint word = td_int8_encode_together(t, v, last);
        if (b >= n_blocks)
            continue;
        q[4u * at + i] = word;
        if (i == 0u)
            q4[at + 2u] = last;
    }
}

void main()
{
    uint t = gl_LocalInvocationID.x, r = gl_WorkGroupID.y;
    uint first = gl_WorkGroupID.x * p.group_cols;
    i_x = r * p.x_stride + p.x_col0 + first;
    i_y = r * p.y_stride + p.y_col0 + first;
    i_b = r * p.b_stride + p.b_col0 + first;
    i_sum = r * p.sum_stride + p.sum_col0 + first;
    precise float sum = 0.0;
    for (uint i = t; i < p.group_cols; i += 256u) {
        float v = load(i);
        sum = fma(v, v, sum);
    }
    sums[t] = sum;
    barrier();
    for (uint n = 128u; n > 0u; n >>= 1) {
        if (t < n) {
            precise float both = sums[t] + sums[t + n];
            sums[t] = both;
        }
        barrier();
    }
    /* sqrt and a division, which are more accurate than inversesqrt where it matters. */
    precise float mean = sums[0] / float(p.group_cols);
    precise float scale = 1.0 / sqrt(mean + p.eps);
    if (HAS_INT8) {
        finish_blocks(t, r, scale);
        return;
    }
    for (uint i = t; i < p.group_cols; i += 256u) {
        float v = load(i);
        if (HAS_SUM)
            sum_x[i_sum + i] = v;
        y[i_y + i] = norm(i, v, scale);
    }
}
