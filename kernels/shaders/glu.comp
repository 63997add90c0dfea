/* y = glu(gate, up), element by element (kernels/ops.h says of which kinds). gate may be one column
 * for all of up's. With scales, both are first multiplied by the scale of their group of columns.
 * y may be gate or up.
 *
 * gate, up, y [n_rows][n_cols], scales [n_rows][n_scales]. Grid: columns / 256, rows.
 * Specialization: 0 KIND. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "inc/exp.glsl"
#include "inc/push.glsl"

layout(local_size_x = 256) in;
layout(push_constant) uniform push_block { push_glu p; };
layout(constant_id = 0) const uint KIND = 0u;
layout(set = 0, binding = 0) readonly buffer gate_floats { float gate[]; };
layout(set = 0, binding = 1) readonly buffer up_floats { float up[]; };
layout(set = 0, binding = 2) readonly buffer scale_floats { float scales[]; };
layout(set = 0, binding = 3) writeonly buffer y_floats { float y[]; };

const uint SILU = 0u, GELU = 1u, CLAMPED = 2u; /* else sigmoid */

void main()
{
    uint c = gl_GlobalInvocationID.x, r = gl_WorkGroupID.y;
    if (c >= p.n_cols)
        return;
    precise float g = gate[r * p.gate_stride + p.gate_col0 + (p.n_gates == 1u ? 0u : c)];
    precise float u = up[r * p.up_stride + p.up_col0 + c];
    if (p.n_scales != 0u) {
        float scale = scales[r * p.n_scales + c / p.n_a_scale];
        g *= scale;
        u *= scale;
    }
    precise float value;
    if (KIND == SILU) {
        value = g / (1.0 + exp(-g)) * u;
    } else if (KIND == GELU) { /* (1 + tanh(z)) / 2 = 1 / (1 + exp(-2 z)) */
        precise float z = 0.79788456080286535588 * (g * fma(0.044715 * g, g, 1.0));
        value = g / (1.0 + exp(-2.0 * z)) * u;
    } else if (KIND == CLAMPED) { /* in a form that keeps a NaN */
        g = g > 7.0 ? 7.0 : g;
        u = u > 7.0 ? 7.0 : u < -7.0 ? -7.0 : u;
        value = g / (1.0 + exp(-1.702 * g)) * (u + 1.0);
    } else {
        value = 1.0 / (1.0 + td_exp(-g)) * u;
    }
    y[r * p.y_stride + p.y_col0 + c] = value;
}
