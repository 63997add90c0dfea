/* y[r][o] = sum_k w[o][k] x[r][k] (+ bias[o]) for a few rows r: every weight is read and decoded
 * once for N_ROWS rows, whose sums stay in registers.
 *
 * x [n_rows][n_k], w [n_o][n_k] packed, y [n_rows][n_o]. Grid: x = outputs / TD_VK_VEC_OUTPUTS,
 * y = rows / N_ROWS. A workgroup is GROUPS groups of LANES invocations; a group computes OUTPUTS
 * neighbouring outputs for all N_ROWS rows. Specialization: 0 N_ROWS. -DQUANT: inc/quant.glsl.
 *
 * Law 1: lane l of a group adds the runs l, l + LANES, ... in ascending k, one fma each; then the
 * LANES sums are added as SEGMENTS runs of neighbouring lanes, and those as a balanced tree. None
 * of this depends on N_ROWS, on the row's index or on the subgroup size. */
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require

#include "inc/push.glsl"

layout(push_constant) uniform push_block { push_mat_mul p; };
layout(constant_id = 0) const uint N_ROWS = 1u;

#include "inc/quant.glsl"
#include "inc/x_rows.glsl"

layout(set = 0, binding = 2) readonly buffer bias_floats { float bias[]; };
layout(set = 0, binding = 3) writeonly buffer y_floats { float y[]; };

const uint LANES = 32u;
const uint GROUPS = 2u;
const uint OUTPUTS = TD_VK_VEC_OUTPUTS / GROUPS;
const uint SEGMENTS = 4u;
const uint SEGMENT = LANES / SEGMENTS;
const uint PITCH = LANES + 1u; /* the rows of a segment sum lie in different banks */

layout(local_size_x = 64) in; /* LANES * GROUPS */

shared float lane_sums[GROUPS * N_ROWS * PITCH];
shared float segment_sums[GROUPS * N_ROWS * SEGMENTS];

float sums[OUTPUTS][TD_VK_VEC_ROWS_MAX];

/* Adds elements 4j..4j+3 of run i for every output and row. */
void add_four(bool is_aligned, td_run runs[OUTPUTS], uint i, uint j, uint row0)
{
    vec4 weights[OUTPUTS];
    [[unroll]] for (uint o = 0u; o < OUTPUTS; o++)
        weights[o] = td_run_vec4(runs[o], j);
    [[unroll]] for (uint r = 0u; r < N_ROWS; r++) {
        /* Rows past the last repeat it; their sums are not stored. */
        vec4 v = td_load_x(is_aligned, min(row0 + r, p.n_rows - 1u), i * TD_RUN + 4u * j);
        [[unroll]] for (uint o = 0u; o < OUTPUTS; o++) {
            precise float sum = sums[o][r];
            sum = fma(weights[o].x, v.x, sum);
            sum = fma(weights[o].y, v.y, sum);
            sum = fma(weights[o].z, v.z, sum);
            sum = fma(weights[o].w, v.w, sum);
            sums[o][r] = sum;
        }
    }
}

void add_runs(bool is_aligned, uint lane, uint out_row0, uint row0)
{
    uint row_words[OUTPUTS];
    [[unroll]] for (uint o = 0u; o < OUTPUTS; o++)
        row_words[o] = min(out_row0 + o, p.n_o - 1u) * p.w_words;
    uint n_runs = (p.n_k + TD_RUN - 1u) / TD_RUN;
    for (uint i = lane; i < n_runs; i += LANES) {
        td_run runs[OUTPUTS];
        [[unroll]] for (uint o = 0u; o < OUTPUTS; o++)
            runs[o] = td_load_run(row_words[o], p.n_k, i);
        /* One row needs many loads in flight; many rows would fill the instruction cache. */
        if (is_aligned && N_ROWS <= 2u) {
            [[unroll]] for (uint j = 0u; j < TD_RUN / 4u; j++)
                add_four(is_aligned, runs, i, j, row0);
        } else {
            [[dont_unroll]] for (uint j = 0u; j < TD_RUN / 4u; j++)
                add_four(is_aligned, runs, i, j, row0);
        }
    }
}

/* Adds the lanes' sums of one out_row of the group and stores N_ROWS results. */
void reduce_and_store(uint o, uint out_row, uint group, uint lane, uint row0)
{
    uint first = group * N_ROWS;
    [[unroll]] for (uint r = 0u; r < N_ROWS; r++)
        lane_sums[(first + r) * PITCH + lane] = sums[o][r];
    barrier();
    for (uint i = lane; i < N_ROWS * SEGMENTS; i += LANES) {
        uint from = (first + i / SEGMENTS) * PITCH + i % SEGMENTS * SEGMENT;
        precise float sum = lane_sums[from];
        [[unroll]] for (uint k = 1u; k < SEGMENT; k++)
            sum += lane_sums[from + k];
        segment_sums[first * SEGMENTS + i] = sum;
    }
    barrier();
    uint row = row0 + lane;
    if (lane < N_ROWS && row < p.n_rows && out_row < p.n_o) {
        uint from = (first + lane) * SEGMENTS;
        precise float sum = (segment_sums[from] + segment_sums[from + 1u]) +
                            (segment_sums[from + 2u] + segment_sums[from + 3u]);
        if (p.has_bias != 0u)
            sum += bias[p.o0 + out_row];
        y[row * p.y_stride + p.y_col0 + p.o0 + out_row] = sum;
    }
}

void main()
{
    uint lane = gl_LocalInvocationID.x % LANES;
    uint group = gl_LocalInvocationID.x / LANES;
    uint out_row0 = gl_WorkGroupID.x * TD_VK_VEC_OUTPUTS + group * OUTPUTS;
    uint row0 = gl_WorkGroupID.y * N_ROWS;
    [[unroll]] for (uint o = 0u; o < OUTPUTS; o++)
        [[unroll]] for (uint r = 0u; r < N_ROWS; r++)
            sums[o][r] = 0.0;
    if (td_x_is_aligned()) /* two loops, so that neither chooses inside */
        add_runs(true, lane, out_row0, row0);
    else
        add_runs(false, lane, out_row0, row0);
    [[unroll]] for (uint o = 0u; o < OUTPUTS; o++)
        reduce_and_store(o, out_row0 + o, group, lane, row0);
}
