/* y = glu(gate, up), element by element (kernels/ops.h says of which kinds). gate may be one column
 * for all of up's, and of both groups of columns may stand apart. With scales, both are first multiplied by the scale of their group of columns.
 * y may be gate or up.
 *
 * gate, up, y [n_rows][n_cols], scales [n_rows][n_scales]. Grid: columns / 256, rows.
 * Specialization: 0 KIND, 1 HAS_INT8: y is quantized too, as quantize.comp does it. 8 lanes make a
 * block then. Grid: blocks / 32, rows. */
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require

#include "inc/exp.glsl"
#include "inc/glu.glsl"
#include "inc/push.glsl"
#include "inc/int8.glsl"

layout(local_size_x = 256) in;
layout(push_constant) uniform push_block { push_glu p; };
layout(constant_id = 0) const uint KIND = 0u;
layout(constant_id = 1) const bool HAS_INT8 = false;
layout(set = 0, binding = 0) readonly buffer gate_floats { float gate[]; };
layout(set = 0, binding = 1) readonly buffer up_floats { float up[]; };
layout(set = 0, binding = 2) readonly buffer scale_floats { float scales[]; };
layout(set = 0, binding = 3) writeonly buffer y_floats { float y[]; };
layout(set = 0, binding = 4) writeonly buffer q_words { uint q[]; };
layout(set = 0, binding = 4) writeonly buffer q_uvec4s { uvec4 q4[]; };

#define TD_INT8_LANES 256u
#include "inc/int8_encode.glsl"

float glu(uint r, uint c)
{
    uint at = c / p.n_a_group * p.group_stride + c % p.n_a_group;
    precise float g = gate[r * p.gate_stride + p.gate_col0 + (p.n_gates == 1u ? 0u : at)];
    precise float u = up[r * p.up_stride + p.up_col0 + at];
    if (p.n_scales != 0u) {
        float scale = scales[r * p.n_scales + c / p.n_a_scale];
        g *= scale;
        u *= scale;
    }
    return td_glu(KIND, g, u);
}

void glu_quads(uint r)
{
    uint t = gl_LocalInvocationID.x, b = gl_GlobalInvocationID.x / 8u, i = t % 8u;
    uint n_blocks = p.n_groups * p.n_blocks, at = (r * n_blocks + b) * TD_INT8_UNITS;
    uint k = 32u * (b % p.n_blocks) + 4u * i, c = b / p.n_blocks * p.n_k + k;
    vec4 v = vec4(0.0);
    if (b < n_blocks && k < p.n_k) { /* else padding */
        v = vec4(glu(r, c), glu(r, c + 1u), glu(r, c + 2u), glu(r, c + 3u));
        [[unroll]] for (uint j = 0u; j < 4u; j++)
            y[r * p.y_stride + p.y_col0 + c + j] = v[j];
    }
    uvec4 last;
    uint word = td_int8_encode_together(t, v, last);
    if (b >= n_blocks)
        return;
    q[4u * at + i] = word;
    if (i == 0u)
        q4[at + 2u] = last;
}

void main()
{
    uint c = gl_GlobalInvocationID.x, r = gl_WorkGroupID.y;
    if (HAS_INT8)
        glu_quads(r);
    else if (c < p.n_cols)
        y[r * p.y_stride + p.y_col0 + c] = glu(r, c);
}
