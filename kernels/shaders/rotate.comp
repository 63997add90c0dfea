/* Rotates heads in place (inc/rotate.glsl): queries on their way to rotated keys, where no rope_store
 * has done it. y [n_rows][heads][head_dim]. Grid: heads, rows. Specialization: 0 HEAD_DIM. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "inc/push.glsl"

layout(constant_id = 0) const uint HEAD_DIM = 128u;

layout(local_size_x = 64) in;
layout(push_constant) uniform push_block { push_rotate p; };
layout(set = 0, binding = 0) buffer y_floats { float y[]; };

shared float row[HEAD_DIM];
#define TD_ROTATE_ROW row
#include "inc/rotate.glsl"

void main()
{
    uint t = gl_LocalInvocationID.x;
    uint at = gl_WorkGroupID.y * p.y_stride + p.y_col0 + gl_WorkGroupID.x * HEAD_DIM;
    for (uint c = t; c < HEAD_DIM; c += 64u)
        row[c] = y[at + c];
    td_rotate(t, HEAD_DIM);
    for (uint c = t; c < HEAD_DIM; c += 64u)
        y[at + c] = row[c];
}
