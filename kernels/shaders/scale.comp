/* y[r][c] = x[r][c] * factor (* factors[r]). y may be x. Grid: columns / 256, rows. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "inc/push.glsl"

layout(local_size_x = 256) in;
layout(push_constant) uniform push_block { push_scale p; };
layout(set = 0, binding = 0) readonly buffer x_floats { float x[]; };
layout(set = 0, binding = 1) readonly buffer factor_floats { float factors[]; };
layout(set = 0, binding = 2) writeonly buffer y_floats { float y[]; };

void main()
{
    uint c = gl_GlobalInvocationID.x, r = gl_WorkGroupID.y;
    if (c >= p.n_cols)
        return;
    precise float value = x[r * p.x_stride + p.x_col0 + c] * p.factor;
    if (p.has_factors != 0u)
        value *= factors[r * p.factors_stride + p.factors_col0];
    y[r * p.y_stride + p.y_col0 + c] = value;
}
