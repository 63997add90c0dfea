/* q[r] = x[r] in signed bytes with a scale per block of 32 (inc/int8.glsl), once per input of
 * products with quantized weights.
 *
 * x [n_rows][n_groups][n_k], groups at a stride; q [n_rows][n_groups][n_blocks][3] uvec4s. An
 * invocation makes a block. Grid: blocks of a row / 64, rows. Specialization: 0 IS_ALIGNED, x may be read as vec4s. */
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require

#include "inc/push.glsl"
#include "inc/int8.glsl"

layout(local_size_x = 64) in;
layout(push_constant) uniform push_block { push_quantize p; };
layout(constant_id = 0) const bool IS_ALIGNED = false;
layout(set = 0, binding = 0) readonly buffer x_floats { float x[]; };
layout(set = 0, binding = 0) readonly buffer x_vec4s { vec4 x4[]; };
layout(set = 0, binding = 1) writeonly buffer q_uvec4s { uvec4 q[]; };

#include "inc/int8_encode.glsl"

void main()
{
    uint b = gl_GlobalInvocationID.x, r = gl_WorkGroupID.y;
    if (b >= p.n_groups * p.n_blocks)
        return;
    uint group = b / p.n_blocks, k = 32u * (b % p.n_blocks);
    uint at = r * p.x_stride + p.x_col0 + group * p.x_group + k;
    vec4 v[8];
    [[unroll]] for (uint j = 0u; j < 8u; j++) {
        v[j] = vec4(0.0);
        if (k < p.n_k) /* else padding */
            v[j] = IS_ALIGNED ? x4[at / 4u + j]
                              : vec4(x[at + 4u * j], x[at + 4u * j + 1u], x[at + 4u * j + 2u],
                                     x[at + 4u * j + 3u]);
    }
    uvec4 encoded[3];
    td_int8_encode(v, encoded);
    uint out_at = (r * p.n_groups * p.n_blocks + b) * TD_INT8_UNITS;
    [[unroll]] for (uint j = 0u; j < TD_INT8_UNITS; j++)
        q[out_at + j] = encoded[j];
}
