/* The parts of a row of logits to its candidates (kernels/ops.h, td_op_pick). Grid: 1, rows. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "inc/push.glsl"
#include "inc/top.glsl"

layout(local_size_x = 64) in;
layout(push_constant) uniform push_block { push_pick p; };
layout(set = 0, binding = 0) readonly buffer part_ints { int parts[]; };
layout(set = 0, binding = 1) readonly buffer draw_ints { int draws[]; };
layout(set = 0, binding = 2) buffer pick_ints { int picks[]; };

#define LANES    64u
#define FAR_DOWN -1e30

shared int keys[LANES];
shared uint ids[LANES];
shared float bests[LANES];
shared uint tokens[LANES];
shared uint n_odd, n_found;

void main()
{
    uint t = gl_LocalInvocationID.x, r = gl_WorkGroupID.y;
    uint i_pick = r * PICK_WORDS, i_draw = r * DRAW_WORDS;
    int kind = draws[i_draw], key = KEY_NONE;
    uint id = 0xffffffffu;
    if (t == 0u) {
        n_odd = 0u;
        n_found = 0u;
    }
    barrier();
    for (uint i = t; i < p.n_parts; i += LANES) {
        uint at = r * p.x_stride + i * PART_WORDS;
        if (parts[at + PART_FINITE] == 0)
            atomicAdd(n_odd, 1u);
        if (parts[at] > key) { /* ids ascend */
            key = parts[at];
            id = uint(parts[at + PART_ID]);
        }
    }
    keys[t] = key;
    ids[t] = id;
    barrier();
    for (uint n = LANES / 2u; n > 0u; n >>= 1) {
        if (t < n && (keys[t + n] > keys[t] || (keys[t + n] == keys[t] && ids[t + n] < ids[t]))) {
            keys[t] = keys[t + n];
            ids[t] = ids[t + n];
        }
        barrier();
    }
    key = keys[0];
    id = key == KEY_NONE ? 0u : ids[0];
    float largest = key == KEY_NONE ? 0.0 : top_value(key);
    bool is_race = kind == KIND_RACE && n_odd == 0u;
    float scale = intBitsToFloat(draws[i_draw + DRAW_SCALE]), best = FAR_DOWN;
    if (is_race)
        for (uint i = t; i < p.n_parts; i += LANES) {
            uint at = r * p.x_stride + i * PART_WORDS;
            best = max(best, intBitsToFloat(parts[at + PART_BEST]) +
                                 (top_value(parts[at]) - largest) * scale);
        }
    bests[t] = best;
    barrier();
    for (uint n = LANES / 2u; n > 0u; n >>= 1) {
        if (t < n)
            bests[t] = max(bests[t], bests[t + n]);
        barrier();
    }
    float least = bests[0] - TOP_WINDOW;
    barrier();
    best = FAR_DOWN;
    uint token = 0xffffffffu;
    if (is_race)
        for (uint i = t; i < p.n_parts; i += LANES) {
            uint at = r * p.x_stride + i * PART_WORDS, n = uint(parts[at + PART_N]);
            float offset = (top_value(parts[at]) - largest) * scale;
            if (n > TOP_CANDIDATES && intBitsToFloat(parts[at + PART_BEST]) + offset >= least)
                atomicAdd(n_found, TOP_CANDIDATES + 1u);
            for (uint k = 0u; k < n && n <= TOP_CANDIDATES; k++) {
                uint from = at + PART_CANDIDATES + 3u * k;
                float score = intBitsToFloat(parts[from + 1u]) + offset;
                if (score < least)
                    continue;
                if (score > best || (score == best && uint(parts[from]) < token)) {
                    best = score;
                    token = uint(parts[from]);
                }
                uint slot = atomicAdd(n_found, 1u);
                if (slot < TOP_CANDIDATES) {
                    picks[i_pick + PICK_CANDIDATES + 2u * slot] = parts[from];
                    picks[i_pick + PICK_CANDIDATES + 2u * slot + 1u] = parts[from + 2u];
                }
            }
        }
    bests[t] = best;
    tokens[t] = token;
    barrier();
    for (uint n = LANES / 2u; n > 0u; n >>= 1) {
        if (t < n && (bests[t + n] > bests[t] ||
                      (bests[t + n] == bests[t] && tokens[t + n] < tokens[t]))) {
            bests[t] = bests[t + n];
            tokens[t] = tokens[t + n];
        }
        barrier();
    }
    if (t != 0u)
        return;
    uint n = is_race ? min(n_found, TOP_CANDIDATES + 1u) : TOP_CANDIDATES + 1u;
    if (kind == KIND_GREEDY) {
        n = 1u;
        picks[i_pick + PICK_CANDIDATES] = int(id);
        picks[i_pick + PICK_CANDIDATES + 1u] = floatBitsToInt(largest);
    }
    picks[i_pick] = int(n);
    picks[i_pick + 1u] = n_odd == 0u ? 1 : 0;
    picks[i_pick + 2u] = int(id);
    picks[i_pick + 3u] = floatBitsToInt(largest);
    picks[i_pick + 4u] = is_race && tokens[0] != 0xffffffffu ? int(tokens[0]) : int(id);
}
