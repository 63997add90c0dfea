/* y[r][c] = silu(gate[r][c]) * up[r][c], silu(x) = x / (1 + exp(-x)). y may be gate or up.
 * Grid: columns / 256, rows. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "inc/push.glsl"

layout(local_size_x = 256) in;
layout(push_constant) uniform push_block { push_pair p; };
layout(set = 0, binding = 0) readonly buffer gate_floats { float gate[]; };
layout(set = 0, binding = 1) readonly buffer up_floats { float up[]; };
layout(set = 0, binding = 2) writeonly buffer y_floats { float y[]; };

void main()
{
    uint c = gl_GlobalInvocationID.x, r = gl_WorkGroupID.y;
    if (c >= p.n_cols)
        return;
    precise float x = gate[r * p.a_stride + p.a_col0 + c];
    precise float silu = x / (1.0 + exp(-x));
    precise float value = silu * up[r * p.b_stride + p.b_col0 + c];
    y[r * p.y_stride + p.y_col0 + c] = value;
}
