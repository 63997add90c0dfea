/* Cuts the rows of a batch into tiles for attention.comp: up to p.tile_rows rows that stand together
 * and belong to one sequence. A lane is a row; maxima and sums from the first row on tell where its
 * sequence begins and how many tiles begin before it.
 *
 * positions, slots [n_rows]. Grid: 1. Out: inc/push.glsl, push_list_tiles. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "inc/push.glsl"

layout(local_size_x = TD_VK_TILE_ROWS) in;
layout(push_constant) uniform push_block { push_list_tiles p; };
layout(set = 0, binding = 0) readonly buffer position_ints { int positions[]; };
layout(set = 0, binding = 1) readonly buffer slot_ints { int slots[]; };
layout(set = 0, binding = 2) writeonly buffer tile_uints { uint tiles[]; };

const uint LANES = TD_VK_TILE_ROWS;

shared uint scan[LANES];
shared uint counts[LANES], lasts[LANES], firsts[LANES]; /* of tiles: rows, positions + 1 */

/* The largest, or the sum, of what lanes up to and with t have. */
uint up_to(uint t, uint own, bool is_sum)
{
    scan[t] = own;
    barrier();
    for (uint step = 1u; step < LANES; step *= 2u) {
        uint before = t >= step ? scan[t - step] : 0u;
        barrier();
        scan[t] = is_sum ? scan[t] + before : max(scan[t], before);
        barrier();
    }
    uint result = scan[t];
    barrier();
    return result;
}

void main()
{
    uint t = gl_LocalInvocationID.x;
    bool is_row = t < p.n_rows;
    bool is_first = is_row && (t == 0u || slots[t] != slots[t - 1u]);
    uint begin = up_to(t, is_first ? t : 0u, false);
    bool is_leader = is_row && (t - begin) % p.tile_rows == 0u;
    uint tile = up_to(t, is_leader ? 1u : 0u, true) - 1u;
    counts[t] = lasts[t] = 0u;
    firsts[t] = 0xffffffffu;
    barrier();
    if (is_row) {
        uint n_visible = uint(max(positions[t] + 1, 0));
        atomicAdd(counts[tile], 1u);
        atomicMin(firsts[tile], n_visible);
        atomicMax(lasts[tile], n_visible);
    }
    barrier();
    if (is_leader) {
        uint at = TD_VK_TILE_HEAD + TD_VK_TILE_WORDS * tile;
        tiles[at] = t;
        tiles[at + 1u] = counts[tile];
        tiles[at + 2u] = uint(slots[t]);
        tiles[at + 3u] = firsts[tile];
        tiles[at + 4u] = lasts[tile];
    }
    if (t == p.n_rows - 1u)
        tiles[0] = tile + 1u;
}
