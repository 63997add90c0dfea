/* y[r][c] = a[r][c] + b[r][c]. y may be a or b. Grid: columns / 256, rows. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "inc/push.glsl"

layout(local_size_x = 256) in;
layout(push_constant) uniform push_block { push_add p; };
layout(set = 0, binding = 0) readonly buffer a_floats { float a[]; };
layout(set = 0, binding = 1) readonly buffer b_floats { float b[]; };
layout(set = 0, binding = 2) writeonly buffer y_floats { float y[]; };

void main()
{
    uint c = gl_GlobalInvocationID.x, r = gl_WorkGroupID.y;
    if (c >= p.n_cols)
        return;
    precise float sum = a[r * p.a_stride + p.a_col0 + c] + b[r * p.b_stride + p.b_col0 + c];
    y[r * p.y_stride + p.y_col0 + c] = sum;
}
