/* Which rows of the batch chose which expert (inc/push.glsl, push_list_experts): counts, then their
 * sums from expert 0 on as places, then each choice goes to the next place of its expert. In which
 * order the rows of an expert stand is left to chance; no row's result depends on it.
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
const uint OWN = TD_VK_LIST_EXPERTS / LANES; /* experts of a lane */

shared uint counts[TD_VK_LIST_EXPERTS];  /* then the next place of each expert */
shared uvec2 sums[LANES];                /* choices and experts touched, up to and with a lane's */

void main()
{
    uint t = gl_LocalInvocationID.x, n = p.n_rows * p.n_used;
    for (uint e = t; e < TD_VK_LIST_EXPERTS; e += LANES)
        counts[e] = 0u;
    barrier();
    for (uint i = t; i < n; i += LANES)
        if (uint(experts[i]) < TD_VK_LIST_EXPERTS)
            atomicAdd(counts[experts[i]], 1u);
    barrier();
    uvec2 own = uvec2(0u);
    for (uint j = 0u; j < OWN; j++)
        own += uvec2(counts[OWN * t + j], counts[OWN * t + j] != 0u ? 1u : 0u);
    sums[t] = own;
    barrier();
    for (uint step = 1u; step < LANES; step *= 2u) {
        uvec2 before = t >= step ? sums[t - step] : uvec2(0u);
        barrier();
        sums[t] += before;
        barrier();
    }
    uvec2 at = sums[t] - own;
    for (uint j = 0u; j < OWN; j++) {
        uint e = OWN * t + j, count = counts[e];
        counts[e] = at.x;
        if (count != 0u) {
            lists[4u + 3u * at.y] = e;
            lists[5u + 3u * at.y] = at.x;
            lists[6u + 3u * at.y] = count;
        }
        at += uvec2(count, count != 0u ? 1u : 0u);
    }
    if (t == LANES - 1u)
        lists[0] = at.y;
    barrier();
    for (uint i = t; i < n; i += LANES)
        if (uint(experts[i]) < TD_VK_LIST_EXPERTS)
            lists[TD_VK_LIST_WORDS + atomicAdd(counts[experts[i]], 1u)] = i;
}
