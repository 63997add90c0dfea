/* Which rows of the batch chose which expert, where `route` has not listed it (inc/list.glsl).
 *
 * experts [n_rows][n_used]. Grid: 1. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "inc/push.glsl"

layout(local_size_x = 256) in;
layout(push_constant) uniform push_block { push_list_experts p; };
layout(set = 0, binding = 0) readonly buffer expert_ints { int experts[]; };
layout(set = 0, binding = 1) writeonly buffer list_uints { uint lists[]; };

const uint LANES = 256u;

shared int counts[TD_VK_LIST_EXPERTS];
shared int sums[2u * LANES];

#include "inc/list.glsl"

void main() { list(gl_LocalInvocationID.x, p.n_rows * p.n_used); }
