/* y[r] = weight row ids[r], decoded. One dispatch per slab of the weight: rows whose id lies in
 * another slab (or in none) are left alone. Grid: columns / 1024, rows. -DQUANT: inc/quant.glsl. */
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#include "inc/push.glsl"

layout(local_size_x = 256) in;
layout(push_constant) uniform push_block { push_embed p; };
layout(set = 0, binding = 0) readonly buffer id_ints { int ids[]; };
#include "inc/quant.glsl"
layout(set = 0, binding = 2) writeonly buffer y_floats { float y[]; };

void main()
{
    td_begin();
    uint c = 4u * gl_GlobalInvocationID.x, r = gl_WorkGroupID.y;
    uint row = uint(ids[r * p.ids_stride + p.ids_col0]) - p.o0; /* wraps for rows below o0 */
    if (row >= p.n_o || c >= p.n_cols)
        return;
    td_pitch = p.w_pitch;
    vec4 v = td_weight_vec4(td_row_base(row, p.w_units), p.n_cols, c / 4u);
    uint i_y = r * p.y_stride + p.y_col0 + c;
    for (uint i = 0u; i < min(4u, p.n_cols - c); i++)
        y[i_y + i] = v[i];
}
