/* y[r][o] = sum_k w[o][k] x[r][k] (+ bias[o]) for many rows (prefill): a tile of
 * TD_VK_MUL_OUTPUTS x TD_VK_MUL_ROWS results a workgroup, weights decoded into shared memory once
 * for all rows of the tile.
 *
 * x [n_rows][n_k], w [n_o][n_k] packed, y [n_rows][n_o]. Grid: x = outputs / TD_VK_MUL_OUTPUTS,
 * y = rows / TD_VK_MUL_ROWS. -DQUANT: inc/quant.glsl.
 *
 * Every result is one chain of fmas in ascending k. */
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require

#include "inc/push.glsl"

layout(push_constant) uniform push_block { push_mat_mul p; };

#include "inc/quant.glsl"
#include "inc/x_rows.glsl"

layout(set = 0, binding = 2) readonly buffer bias_floats { float bias[]; };
layout(set = 0, binding = 3) writeonly buffer y_floats { float y[]; };

const uint THREADS = 128u;
const uint DEPTH = 32u;           /* k of a tile */
const uint SHARE = 16u;           /* weights a thread decodes for a tile: half a row of it */
const uint COLUMNS = TD_VK_MUL_OUTPUTS / 4u;         /* threads along the outputs, 4 each */
const uint PART = TD_VK_MUL_ROWS / (THREADS / COLUMNS); /* rows of a thread, a multiple of 4 */
const uint PITCH_W = TD_VK_MUL_OUTPUTS / 4u + 1u;    /* vec4s; the odd pitch spreads the banks */
const uint PITCH_X = TD_VK_MUL_ROWS / 4u + 1u;

layout(local_size_x = 128) in; /* THREADS = TD_VK_MUL_OUTPUTS * DEPTH / SHARE */

/* [k][output] and [k][row]: a thread reads 4 outputs and 4 rows at a time. */
shared vec4 tile_w[DEPTH * PITCH_W];
shared vec4 tile_x[DEPTH * PITCH_X];

void load_weights(uint thread, uint k0)
{
    uint i = thread / 2u, part = thread % 2u * SHARE;
    uint o = gl_WorkGroupID.x * TD_VK_MUL_OUTPUTS + i;
    uint row_word = min(o, p.n_o - 1u) * p.w_words;
    const uint PIECE = min(SHARE, TD_RUN);
    [[unroll]] for (uint j = 0u; j < SHARE; j += PIECE) {
        uint k = k0 + part + j;
        /* Past the end of a row whose length is no multiple of DEPTH there may be no memory. */
        bool is_inside = k < p.n_k;
        td_run run = td_load_run(row_word, p.n_k, is_inside ? k / TD_RUN : 0u);
        [[unroll]] for (uint e = 0u; e < PIECE; e += 4u) {
            vec4 v = is_inside ? td_run_vec4(run, (k + e) % TD_RUN / 4u) : vec4(0.0);
            [[unroll]] for (uint c = 0u; c < 4u; c++)
                tile_w[(part + j + e + c) * PITCH_W + i / 4u][i % 4u] = v[c];
        }
    }
}

void load_x(bool is_aligned, uint thread, uint k0)
{
    [[unroll]] for (uint i = thread; i < TD_VK_MUL_ROWS * DEPTH / 4u; i += THREADS) {
        uint r = i / (DEPTH / 4u), k = i % (DEPTH / 4u) * 4u;
        uint row = min(gl_WorkGroupID.y * TD_VK_MUL_ROWS + r, p.n_rows - 1u);
        vec4 v = k0 + k < p.n_k ? td_load_x(is_aligned, row, k0 + k) : vec4(0.0);
        [[unroll]] for (uint c = 0u; c < 4u; c++)
            tile_x[(k + c) * PITCH_X + r / 4u][r % 4u] = v[c];
    }
}

vec4 sums[PART]; /* [row]: 4 outputs */

void add_products(uint k, uint column, uint part)
{
    vec4 weights = tile_w[k * PITCH_W + column];
    [[unroll]] for (uint r = 0u; r < PART; r += 4u) {
        vec4 v = tile_x[k * PITCH_X + (part * PART + r) / 4u];
        [[unroll]] for (uint c = 0u; c < 4u; c++) {
            precise vec4 sum = fma(weights, vec4(v[c]), sums[r + c]);
            sums[r + c] = sum;
        }
    }
}

void main()
{
    uint thread = gl_LocalInvocationID.x;
    uint column = thread % COLUMNS, part = thread / COLUMNS;
    bool is_aligned = td_x_is_aligned();
    [[unroll]] for (uint r = 0u; r < PART; r++)
        sums[r] = vec4(0.0);
    for (uint k0 = 0u; k0 < p.n_k; k0 += DEPTH) {
        load_weights(thread, k0);
        if (is_aligned)
            load_x(true, thread, k0);
        else
            load_x(false, thread, k0);
        barrier();
        [[dont_unroll]] for (uint k = 0u; k < DEPTH; k += 4u)
            [[unroll]] for (uint d = 0u; d < 4u; d++)
                add_products(k + d, column, part);
        barrier();
    }
    uint o = gl_WorkGroupID.x * TD_VK_MUL_OUTPUTS + column * 4u;
    [[unroll]] for (uint r = 0u; r < PART; r++) {
        uint row = gl_WorkGroupID.y * TD_VK_MUL_ROWS + part * PART + r;
        [[unroll]] for (uint c = 0u; c < 4u; c++)
            if (row < p.n_rows && o + c < p.n_o) {
                precise float sum = sums[r][c];
                if (p.has_bias != 0u)
                    sum += bias[p.o0 + o + c];
                y[row * p.y_stride + p.y_col0 + p.o0 + o + c] = sum;
            }
    }
}
