/* y[r][c] = cap tanh(x[r][c] / cap). y may be x. Grid: columns / 256, rows. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "inc/exp.glsl"
#include "inc/push.glsl"

layout(local_size_x = 256) in;
layout(push_constant) uniform push_block { push_softcap p; };
layout(set = 0, binding = 0) readonly buffer x_floats { float x[]; };
layout(set = 0, binding = 1) writeonly buffer y_floats { float y[]; };

void main()
{
    uint c = gl_GlobalInvocationID.x, r = gl_WorkGroupID.y;
    if (c >= p.n_cols)
        return;
    precise float v = x[r * p.x_stride + p.x_col0 + c] / p.cap;
    precise float size = 1.0 - 2.0 / (td_exp(2.0 * abs(v)) + 1.0); /* cannot overflow */
    precise float value = p.cap * (v < 0.0 ? -size : size);
    y[r * p.y_stride + p.y_col0 + c] = value;
}
