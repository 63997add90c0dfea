/* y[i][c] = x[rows[i]][c]; zeros for a row that is not there. Grid: columns / 256, outputs. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "inc/push.glsl"

layout(local_size_x = 256) in;
layout(push_constant) uniform push_block { push_gather p; };
layout(set = 0, binding = 0) readonly buffer x_floats { float x[]; };
layout(set = 0, binding = 1) readonly buffer row_ints { int rows[]; };
layout(set = 0, binding = 2) writeonly buffer y_floats { float y[]; };

void main()
{
    uint c = gl_GlobalInvocationID.x, i = gl_WorkGroupID.y;
    if (c >= p.n_cols)
        return;
    uint r = uint(rows[i]); /* a negative row becomes a large one */
    y[i * p.y_stride + p.y_col0 + c] = r < p.n_rows_x ? x[r * p.x_stride + p.x_col0 + c] : 0.0;
}
