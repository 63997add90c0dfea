/* Rotates, in place, columns col0..col0+n_rot-1 of each head: pair i of row r by the angle whose
 * cosine and sine are cos_sin[r][2i], cos_sin[r][2i+1]:
 * (a, b) -> (a cos - b sin, a sin + b cos). Pairs: (2i, 2i+1) or (i, i + n_rot/2).
 * y [n_rows][x_stride], cos_sin [n_rows][n_rot]. Grid: heads, rows. Binding 0 is y as well. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "inc/push.glsl"

layout(local_size_x = 64) in;
layout(push_constant) uniform push_block { push_rope p; };
layout(set = 0, binding = 1) readonly buffer cos_sin_floats { float cos_sin[]; };
layout(set = 0, binding = 2) buffer y_floats { float y[]; };

void main()
{
    uint r = gl_WorkGroupID.y;
    uint head = r * p.x_stride + p.x_col0 + gl_WorkGroupID.x * p.head_dim + p.col0;
    uint angle = r * p.cos_sin_stride + p.cos_sin_col0;
    uint n_pairs = p.n_rot / 2u;
    for (uint i = gl_LocalInvocationID.x; i < n_pairs; i += gl_WorkGroupSize.x) {
        uint i_a = head + (p.kind == 0u ? 2u * i : i);
        uint i_b = p.kind == 0u ? i_a + 1u : i_a + n_pairs;
        precise float c = cos_sin[angle + 2u * i];
        precise float s = cos_sin[angle + 2u * i + 1u];
        precise float a = y[i_a], b = y[i_b];
        precise float bs = b * s, bc = b * c;
        y[i_a] = fma(a, c, -bs);
        y[i_b] = fma(a, s, bc);
    }
}
