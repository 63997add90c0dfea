/* y[r][c] = sum_i weights[r][i] x[r][i * n_cols + c], i ascending. x [n_rows][n_used * n_cols],
 * weights [n_rows][n_used], y [n_rows][n_cols]. Grid: columns / 256, rows. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "inc/push.glsl"

layout(local_size_x = 256) in;
layout(push_constant) uniform push_block { push_experts_sum p; };
layout(set = 0, binding = 0) readonly buffer x_floats { float x[]; };
layout(set = 0, binding = 1) readonly buffer weight_floats { float weights[]; };
layout(set = 0, binding = 2) writeonly buffer y_floats { float y[]; };

void main()
{
    uint c = gl_GlobalInvocationID.x, r = gl_WorkGroupID.y;
    if (c >= p.n_cols)
        return;
    uint at = r * p.x_stride + p.x_col0 + c;
    precise float sum = weights[r * p.n_used] * x[at];
    for (uint i = 1u; i < p.n_used; i++)
        sum = fma(weights[r * p.n_used + i], x[at + i * p.n_cols], sum);
    y[r * p.y_stride + p.y_col0 + c] = sum;
}
