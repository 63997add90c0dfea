/* Lists which rows of the batch chose which expert (push.glsl, push_list_experts): counts, then
 * their sums from expert 0 on as places, then each choice goes to the next place of its expert. In
 * which order the rows of an expert stand is left to chance; no row's result depends on it. The
 * shader declares before: experts, lists, workgroups of LANES, and in shared memory ints
 * counts[TD_VK_LIST_EXPERTS], then the next place of each expert, and sums[2 * LANES]: choices, and
 * from LANES on experts touched, up to and with a lane's. */

const uint OWN = TD_VK_LIST_EXPERTS / LANES; /* experts of a lane */

/* By all lanes, of the n choices of the batch. */
void list(uint t, uint n)
{
    for (uint e = t; e < TD_VK_LIST_EXPERTS; e += LANES)
        counts[e] = 0;
    barrier();
    for (uint i = t; i < n; i += LANES)
        if (uint(experts[i]) < TD_VK_LIST_EXPERTS)
            atomicAdd(counts[experts[i]], 1);
    barrier();
    uvec2 own = uvec2(0u);
    for (uint j = 0u; j < OWN; j++)
        own += uvec2(counts[OWN * t + j], counts[OWN * t + j] != 0 ? 1u : 0u);
    uvec2 sum = own;
    for (uint step = 1u; step < LANES; step *= 2u) {
        sums[t] = int(sum.x);
        sums[LANES + t] = int(sum.y);
        barrier();
        if (t >= step)
            sum += uvec2(sums[t - step], sums[LANES + t - step]);
        barrier();
    }
    uvec2 at = sum - own;
    for (uint j = 0u; j < OWN; j++) {
        uint e = OWN * t + j, count = uint(counts[e]);
        counts[e] = int(at.x);
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
            lists[TD_VK_LIST_WORDS + atomicAdd(counts[experts[i]], 1)] = i;
}
