/* Keeps the rows' inputs in the ring of their sequence: row r of position i in ring row
 * i % n_pending, unless a later row of the batch will be there.
 *
 * x [n_rows][n_cols], ring [n_slots][n_pending][n_cols]. Grid: columns / 256, rows. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "inc/push.glsl"

layout(local_size_x = 256) in;
layout(push_constant) uniform push_block { push_state_keep p; };
layout(set = 0, binding = 0) readonly buffer x_floats { float x[]; };
layout(set = 0, binding = 1) readonly buffer position_ints { int positions[]; };
layout(set = 0, binding = 2) readonly buffer slot_ints { int slots[]; };
layout(set = 0, binding = 3) writeonly buffer ring_floats { float ring[]; };

void main()
{
    uint c = gl_GlobalInvocationID.x, r = gl_WorkGroupID.y;
    uint slot = uint(slots[r]), later = r + p.n_pending;
    if (c >= p.n_cols || slot >= p.n_slots || (later < p.n_rows && uint(slots[later]) == slot))
        return;
    uint at = (slot * p.n_pending + uint(positions[r]) % p.n_pending) * p.n_cols;
    ring[at + c] = x[r * p.x_stride + p.x_col0 + c];
}
