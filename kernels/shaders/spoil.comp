/* Sabotage: what kernels/sabotage.c does on the host. Grid: 1. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "inc/push.glsl"

layout(local_size_x = 64) in;
layout(push_constant) uniform push_block { push_spoil p; };
layout(set = 0, binding = 0) buffer y_words { uint y[]; };
layout(set = 0, binding = 1) buffer count_words { uint count[]; };

#define BIT  1u
#define RACE 2u
#define ROW  3u

void main()
{
    uint t = gl_LocalInvocationID.x;
    uint last = (p.n_rows - 1u) * p.y_stride + p.y_col0;
    uint other = (p.n_rows < p.n_rows_max ? p.n_rows : 0u) * p.y_stride + p.y_col0;
    if (p.how == ROW) {
        for (uint i = t; i < p.n_cols; i += 64u) {
            uint word = y[last + i];
            y[last + i] = y[other + i];
            y[other + i] = word;
        }
        return;
    }
    if (t != 0u)
        return;
    uint run = count[0];
    count[0] = run + 1u;
    if (p.how == BIT || run % 7u == 5u)
        y[last] ^= 1u << 30;
}
