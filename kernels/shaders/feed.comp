/* A draft's pick becomes the input of its next step (kernels/ops.h, td_op_feed). Grid: 1. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "inc/push.glsl"
#include "inc/top.glsl"

layout(local_size_x = 64) in;
layout(push_constant) uniform push_block { push_feed p; };
layout(set = 0, binding = 0) readonly buffer pick_ints { int picks[]; };
layout(set = 0, binding = 1) readonly buffer table_floats { float table[]; };
layout(set = 0, binding = 2) buffer trail_ints { int trail[]; };
layout(set = 0, binding = 3) buffer draw_ints { int draws[]; };
layout(set = 0, binding = 4) buffer id_ints { int ids[]; };
layout(set = 0, binding = 5) buffer position_ints { int positions[]; };
layout(set = 0, binding = 6) buffer cos_sin_floats { float cos_sin[]; };

shared uint position, i_step;

void main()
{
    uint t = gl_LocalInvocationID.x;
    if (t == 0u) { /* it alone touches the draw */
        position = uint(draws[DRAW_POSITION]);
        i_step = uint(draws[DRAW_STEP]);
    }
    barrier();
    for (uint i = t; i < PICK_WORDS && i_step < p.n_steps_max; i += 64u)
        trail[i_step * PICK_WORDS + i] = picks[i];
    uint panel = position / p.table_pitch * p.table_units * p.table_pitch;
    if (position < p.n_positions) /* units of 4 floats, interleaved (inc/README) */
        for (uint i = t; i < p.n_rot; i += 64u) {
            uint unit = panel + i / 4u * p.table_pitch + position % p.table_pitch;
            cos_sin[i] = table[4u * unit + i % 4u];
        }
    if (t != 0u)
        return;
    draws[DRAW_STEP] = int(i_step + 1u);
    draws[DRAW_POSITION] = int(position + 1u);
    if (position == 0xffffffffu)
        draws[DRAW_POSITION + 1u] += 1;
    int n_max = draws[DRAW_N_RECENT_MAX], i_next = draws[DRAW_I_NEXT];
    if (n_max > 0) { /* as td_draw_push */
        draws[DRAW_RECENT + i_next] = picks[4];
        draws[DRAW_I_NEXT] = (i_next + 1) % n_max;
        draws[DRAW_N_RECENT] = min(draws[DRAW_N_RECENT] + 1, n_max);
    }
    if (position < p.n_positions) {
        ids[0] = picks[4];
        positions[0] = int(position);
    }
}
