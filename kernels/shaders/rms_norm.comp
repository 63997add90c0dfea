/* y[r][i] = x[r][i] / sqrt(mean_j x[r][j]^2 + eps) * weight[i], for each group of group_cols
 * columns on its own. y may be x. Grid: groups, rows. Source: Zhang & Sennrich 2019.
 *
 * Law 1: invocation t adds the squares of columns t, t + 256, ... by fma; the 256 sums are added
 * as a balanced tree in shared memory, whatever the subgroup size. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "inc/push.glsl"

layout(local_size_x = 256) in;
layout(push_constant) uniform push_block { push_rms_norm p; };
layout(set = 0, binding = 0) readonly buffer x_floats { float x[]; };
layout(set = 0, binding = 1) readonly buffer weight_floats { float weight[]; };
layout(set = 0, binding = 2) writeonly buffer y_floats { float y[]; };

shared float sums[256];

void main()
{
    uint t = gl_LocalInvocationID.x, r = gl_WorkGroupID.y;
    uint first = gl_WorkGroupID.x * p.group_cols;
    uint i_x = r * p.x_stride + p.x_col0 + first, i_y = r * p.y_stride + p.y_col0 + first;
    precise float sum = 0.0;
    for (uint i = t; i < p.group_cols; i += 256u) {
        float v = x[i_x + i];
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
    for (uint i = t; i < p.group_cols; i += 256u) {
        precise float v = x[i_x + i] * scale;
        if (p.has_weight != 0u)
            v *= weight[i];
        y[i_y + i] = v;
    }
}
