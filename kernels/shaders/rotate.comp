/* y[r][h] = x[r][h], rotated (inc/rotate.glsl): queries on their way to rotated keys, and what
 * attention has made of rotated values, in place.
 * x, y [n_rows][heads][head_dim]. Grid: heads, rows. Specialization: 0 HEAD_DIM. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "inc/push.glsl"

layout(constant_id = 0) const uint HEAD_DIM = 128u;

layout(local_size_x = 64) in;
layout(push_constant) uniform push_block { push_rotate p; };
layout(set = 0, binding = 0) readonly buffer x_floats { float x[]; };
layout(set = 0, binding = 1) writeonly buffer y_floats { float y[]; };

shared float row[HEAD_DIM];
#define TD_ROTATE_ROW row
#include "inc/rotate.glsl"

void main()
{
    uint t = gl_LocalInvocationID.x, r = gl_WorkGroupID.y, head = gl_WorkGroupID.x * HEAD_DIM;
    for (uint c = t; c < HEAD_DIM; c += 64u)
        row[c] = x[r * p.x_stride + p.x_col0 + head + c];
    td_rotate(t, HEAD_DIM);
    for (uint c = t; c < HEAD_DIM; c += 64u)
        y[r * p.y_stride + p.y_col0 + head + c] = row[c];
}
