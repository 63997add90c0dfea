/* y[r][o] = sum_k w[o][k] x[r][k] (+ bias[o]) for N_ROWS rows r a workgroup: every weight is read
 * once for them. An invocation owns OUTPUTS outputs and keeps the sums of all rows in registers;
 * what of x it needs is the same for all lanes of its slice, so that a GPU reads x as scalars.
 *
 * w [n_o][n_k] in panels of 64 rows (inc/README), y [n_rows][n_o]. x: of quantized weights the
 * int8 rows that quantize.comp made, else [n_rows][n_k]. Grid: x = panels / OUTPUTS times groups of
 * N_ROWS rows, which are next to each other, so that a panel is read from memory once and then from
 * a cache. A workgroup is SLICES slices of 64 lanes; a slice takes every SLICES-th quad of
 * k (128 elements of quantized weights, 32 of others). Specialization: 0 N_ROWS, 1 64 * SLICES,
 * 2 OUTPUTS, 3 IS_ALIGNED (x may be read as vec4s and n_k is a multiple of 32), 4 KIND: plain; a
 * product for each group of w (z), heads mostly; or by expert, where the z-th expert that rows chose
 * goes through its choices, N_ROWS at a time, so that its weights are read from memory once;
 * 5 UNROLLED_MAX: up to how many sums an invocation takes a quad without a loop; 6 GLU: 0, or 1 and
 * glu's kind: the workgroup's panel is gates and what they gate, side by side, and it does what glu
 * does; 7 HAS_INT8: what it makes is quantized too, as quantize.comp does it; TD_VK_SPEC_FULL. -DQUANT: inc/quant.glsl.
 *
 * Law 1: an output's slices each add in ascending k (int8: exact integers within a block, blocks by
 * td_fold), then the slices are added in ascending order. SLICES follows from n_k; N_ROWS and
 * OUTPUTS only say which sums an invocation keeps. */
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_ballot : require

#include "inc/exp.glsl"
#include "inc/glu.glsl"
#include "inc/push.glsl"

layout(constant_id = 0) const uint N_ROWS = 1u;
layout(constant_id = 1) const uint GROUP = 64u;
layout(constant_id = 2) const uint OUTPUTS = 1u;
layout(constant_id = 3) const bool IS_ALIGNED = false;
layout(constant_id = 4) const uint KIND = TD_VK_MUL_PLAIN;
layout(constant_id = 5) const uint UNROLLED_MAX = 8u;
layout(constant_id = 6) const uint GLU = 0u;
layout(constant_id = 7) const bool HAS_INT8 = false;
layout(constant_id = TD_VK_SPEC_FULL) const bool IS_FULL = false;
layout(local_size_x_id = 1) in;

layout(set = 0, binding = 6) writeonly buffer gated_floats { float gated[]; };
layout(set = 0, binding = 7) writeonly buffer q_words { uint q[]; };
layout(set = 0, binding = 7) writeonly buffer q_uvec4s { uvec4 q4[]; };

#include "inc/mat_mul.glsl"
#define TD_INT8_LANES 40u /* those that quantize half a panel, and 8 places for all others */
#include "inc/int8_encode.glsl"

const uint SLICES = GROUP / LANES;
const uint BATCH = N_ROWS % 4u == 0u ? 4u : N_ROWS % 2u == 0u ? 2u : 1u; /* rows reduced at once */

const bool IS_SHARED = SLICES > 1u || GLU != 0u || HAS_INT8;

shared float partial[SLICES * BATCH * LANES];

float sums[OUTPUTS][N_ROWS];
uint bases[OUTPUTS]; /* of this lane's weight rows */
uint x_at[N_ROWS];

uint n_active;         /* rows of this pass */

/* By expert, most passes are not full: what a row costs is spared where it is not there. */
bool is_active(uint r) { return KIND != TD_VK_MUL_EXPERT || r == 0u || r < n_active; }

#if TD_IS_INT8
void add_block(uint quad, uint j)
{
    td_block blocks[OUTPUTS];
    [[unroll]] for (uint o = 0u; o < OUTPUTS; o++)
        blocks[o] = td_load_block(bases[o], p.n_k, quad, j);
    [[unroll]] for (uint r = 0u; r < N_ROWS; r++) {
        if (!is_active(r))
            continue;
        uint i = x_at[r] + TD_INT8_UNITS * (4u * quad + j);
        uvec4 a = x[i], b = x[i + 1u], meta = x[i + 2u];
        [[unroll]] for (uint o = 0u; o < OUTPUTS; o++) {
            ivec4 dots = td_start(ivec2(meta.zw));
            [[unroll]] for (uint k = 0u; k < 4u; k++)
                dots.x = td_dot(blocks[o].words[k], a[k], dots.x);
            [[unroll]] for (uint k = 0u; k < 4u; k++)
#ifdef TD_TWO_DOTS
                dots.y = td_dot(blocks[o].words[4u + k], b[k], dots.y);
#else
                dots.x = td_dot(blocks[o].words[4u + k], b[k], dots.x);
#endif
            sums[o][r] = td_fold(sums[o][r], blocks[o].scales, vec4(dots), uintBitsToFloat(meta.x),
                                 uintBitsToFloat(meta.y));
        }
    }
}

void add_quads(uint slice)
{
    uint n_quads = (p.n_k + TD_QUAD - 1u) / TD_QUAD;
    for (uint quad = slice; quad < n_quads; quad += SLICES) {
        /* Few rows need many loads in flight; many rows would fill the instruction cache. */
        if (N_ROWS * OUTPUTS <= UNROLLED_MAX) {
            [[unroll]] for (uint j = 0u; j < 4u; j++)
                add_block(quad, j);
        } else {
            [[dont_unroll]] for (uint j = 0u; j < 4u; j++)
                add_block(quad, j);
        }
    }
}
#else
void add_unit(uint u)
{
    uvec4 units[OUTPUTS];
    [[unroll]] for (uint o = 0u; o < OUTPUTS; o++)
        units[o] = td_unit(bases[o], u);
    [[unroll]] for (uint r = 0u; r < N_ROWS; r++)
        [[unroll]] for (uint j = 0u; j < TD_UNIT / 4u; j++) {
            if (!is_active(r))
                continue;
            vec4 v = load_x(x_at[r], u * TD_UNIT + 4u * j);
            [[unroll]] for (uint o = 0u; o < OUTPUTS; o++) {
                vec4 weights = td_unit_vec4(units[o], j);
                precise float sum = sums[o][r];
                sum = fma(weights.x, v.x, sum);
                sum = fma(weights.y, v.y, sum);
                sum = fma(weights.z, v.z, sum);
                sum = fma(weights.w, v.w, sum);
                sums[o][r] = sum;
            }
        }
}

void add_quads(uint slice)
{
    const uint UNITS = TD_BLOCK / TD_UNIT;
    uint n_quads = (p.n_k + TD_BLOCK - 1u) / TD_BLOCK;
    for (uint quad = slice; quad < n_quads; quad += SLICES) {
        if (N_ROWS * OUTPUTS <= UNROLLED_MAX) {
            [[unroll]] for (uint j = 0u; j < UNITS; j++)
                add_unit(quad * UNITS + j);
        } else {
            [[dont_unroll]] for (uint j = 0u; j < UNITS; j++)
                add_unit(quad * UNITS + j);
        }
    }
}
#endif

/* The output of a lane; n_o where it has none. */
uint find_output(uint panel, uint lane)
{
    if (GLU == 0u)
        return panel * LANES + lane;
    uint gate = panel * TD_VK_GATES + lane % TD_VK_GATES, n_gates = p.n_o / 2u;
    return gate >= n_gates ? p.n_o : lane < TD_VK_GATES ? gate : n_gates + gate;
}

/* Sum i of partial, of which this invocation alone has made use. */
void keep(uint panel, uint row0, uint i, float sum)
{
    uint o = find_output(panel, i % LANES);
    if (o >= p.n_o)
        return;
    partial[i] = add_bias(o, sum);
    if (row0 + i / LANES < n_rows && (p.is_in_place == 0u || i % LANES >= TD_VK_GATES))
        y[find_y(find_row(row0 + i / LANES)) + o] = partial[i];
}

/* Quantizes, of block `block` of a row, the 4 columns of lane t % 8. All lanes call it, those with
 * !is_there to no effect. */
void quantize(uint t, vec4 v, bool is_there, uint row, uint block)
{
    uvec4 last;
    uint word = td_int8_encode_together(t < 32u ? t : 32u + t % 8u, v, last);
    if (!is_there)
        return;
    uint at = (row * p.n_blocks + block) * TD_INT8_UNITS;
    q[4u * at + t % 8u] = word;
    if (t % 8u == 0u)
        q4[at + 2u] = last;
}

/* The panel of rows row0..row0+BATCH-1, whose outputs are in partial: 2 blocks of a row. 8 lanes
 * make a row's. */
void quantize_panel(uint panel, uint row0)
{
    uint t = gl_LocalInvocationID.x, j = t / 8u;
    uint column = KIND == TD_VK_MUL_GROUPS ? (p.group0 + group) * p.y_group : 0u;
    for (uint in_panel = 0u; in_panel < LANES; in_panel += 32u) {
        uint first = panel * LANES + in_panel, from = j * LANES + in_panel + 4u * (t % 8u);
        bool is_there = j < BATCH && row0 + j < n_rows && first < p.n_o;
        vec4 v = vec4(0.0);
        if (is_there)
            v = vec4(partial[from], partial[from + 1u], partial[from + 2u], partial[from + 3u]);
        quantize(t, v, is_there, row0 + j, (column + first) / 32u);
    }
}

/* Gates the panel of rows row0..row0+BATCH-1, whose outputs are in partial. 8 lanes make a row's. */
void gate_panel(uint panel, uint row0)
{
    uint t = gl_LocalInvocationID.x, j = t / 8u, i = t % 8u;
    uint row = find_row(min(row0 + j, n_rows - 1u)), n_gates = p.n_o / 2u;
    uint first = panel * TD_VK_GATES + 4u * i;
    bool is_there = j < BATCH && row0 + j < n_rows;
    uint at = KIND == TD_VK_MUL_EXPERT
                  ? row / p.n_used * p.gated_stride + row % p.n_used * n_gates
                  : row * p.gated_stride;
    vec4 v = vec4(0.0);
    [[unroll]] for (uint k = 0u; k < 4u; k++)
        if (is_there && first + k < n_gates) { /* else padding */
            uint from = j * LANES + 4u * i + k;
            v[k] = td_glu(GLU - 1u, partial[from], partial[from + TD_VK_GATES]);
            gated[at + p.gated_col0 + first + k] = v[k];
        }
    if (HAS_INT8)
        quantize(t, v, is_there && panel < p.n_blocks, row, panel);
}

/* Adds the slices of rows r0..r0+BATCH-1 of one panel and stores them. */
void reduce_and_store(uint o, uint r0, uint panel, uint slice, uint lane, uint row0)
{
    [[unroll]] for (uint j = 0u; j < BATCH; j++)
        partial[(slice * BATCH + j) * LANES + lane] = sums[o][r0 + j];
    barrier();
    for (uint i = gl_LocalInvocationID.x; i < BATCH * LANES; i += GROUP) {
        precise float sum = partial[i];
        [[unroll]] for (uint s = 1u; s < SLICES; s++)
            sum += partial[s * BATCH * LANES + i];
        if (GLU == 0u && !HAS_INT8)
            store(find_output(panel, i % LANES), row0 + r0 + i / LANES, sum);
        else
            keep(panel, row0 + r0, i, sum);
    }
    barrier();
    if (GLU != 0u)
        gate_panel(panel, row0 + r0);
    else if (HAS_INT8)
        quantize_panel(panel, row0 + r0);
    if (GLU != 0u || HAS_INT8)
        barrier();
}

/* Rows row0..row0+N_ROWS-1; those past the last repeat it, unstored. */
void multiply(uint row0, uint panel0, uint slice, uint lane)
{
    n_active = n_rows - row0;
    [[unroll]] for (uint r = 0u; r < N_ROWS; r++)
        x_at[r] = find_x(find_row(min(row0 + r, n_rows - 1u)));
    [[unroll]] for (uint o = 0u; o < OUTPUTS; o++)
        [[unroll]] for (uint r = 0u; r < N_ROWS; r++)
            sums[o][r] = 0.0;
    add_quads(slice);
    [[unroll]] for (uint o = 0u; o < OUTPUTS; o++) {
        if (!IS_SHARED) {
            [[unroll]] for (uint r = 0u; r < N_ROWS; r++)
                store(find_output(panel0 + o, lane), row0 + r, sums[o][r]);
        } else {
            [[unroll]] for (uint r = 0u; r < N_ROWS; r += BATCH)
                reduce_and_store(o, r, panel0 + o, slice, lane, row0);
        }
    }
}

void main()
{
    uint lane = gl_LocalInvocationID.x % LANES;
    uint slice = SLICES > 1u ? gl_LocalInvocationID.x / LANES : 0u;
    /* The same for all lanes of a subgroup, where those are full and no wider than LANES; the
     * compiler cannot know. */
    if (SLICES > 1u && IS_FULL)
        slice = subgroupBroadcastFirst(slice);
    uint n_row_groups = KIND == TD_VK_MUL_EXPERT ? 1u : (p.n_rows + N_ROWS - 1u) / N_ROWS;
    uint panel0 = gl_WorkGroupID.x / n_row_groups * OUTPUTS;
    if (!find_group())
        return;
    td_pitch = p.w_pitch;
    td_begin();
    [[unroll]] for (uint o = 0u; o < OUTPUTS; o++)
        bases[o] = find_base(find_output(panel0 + o, lane));
    for (uint row0 = gl_WorkGroupID.x % n_row_groups * N_ROWS;; row0 += N_ROWS) {
        multiply(row0, panel0, slice, lane);
        if (KIND != TD_VK_MUL_EXPERT || row0 + N_ROWS >= n_rows)
            break;
    }
}
