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
 * 5 UNROLLED_MAX: up to how many sums an invocation takes a quad without a loop; TD_VK_SPEC_FULL.
 * -DQUANT: inc/quant.glsl.
 *
 * Law 1: an output's slices each add in ascending k (int8: exact integers within a block, blocks by
 * td_fold), then the slices are added in ascending order. SLICES follows from n_k; N_ROWS and
 * OUTPUTS only say which sums an invocation keeps. */
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_ballot : require

#include "inc/push.glsl"

layout(push_constant) uniform push_block { push_mat_mul p; };
layout(constant_id = 0) const uint N_ROWS = 1u;
layout(constant_id = 1) const uint GROUP = 64u;
layout(constant_id = 2) const uint OUTPUTS = 1u;
layout(constant_id = 3) const bool IS_ALIGNED = false;
layout(constant_id = 4) const uint KIND = TD_VK_MUL_PLAIN;
layout(constant_id = 5) const uint UNROLLED_MAX = 8u;
layout(constant_id = TD_VK_SPEC_FULL) const bool IS_FULL = false;
layout(local_size_x_id = 1) in;

#include "inc/quant.glsl"
#if TD_IS_INT8
#include "inc/int8.glsl"
layout(set = 0, binding = 0) readonly buffer x_uvec4s { uvec4 x[]; };
#else
layout(set = 0, binding = 0) readonly buffer x_floats { float x[]; };
layout(set = 0, binding = 0) readonly buffer x_vec4s { vec4 x4[]; };
#endif
layout(set = 0, binding = 2) readonly buffer bias_floats { float bias[]; };
layout(set = 0, binding = 3) writeonly buffer y_floats { float y[]; };
layout(set = 0, binding = 4) readonly buffer expert_ints { int experts[]; };
layout(set = 0, binding = 5) readonly buffer list_uints { uint lists[]; };

const uint LANES = TD_VK_PANEL;
const uint SLICES = GROUP / LANES;
const uint BATCH = N_ROWS % 4u == 0u ? 4u : N_ROWS % 2u == 0u ? 2u : 1u; /* rows reduced at once */

shared float partial[SLICES > 1u ? SLICES * BATCH * LANES : 1u];

float sums[OUTPUTS][N_ROWS];
uint bases[OUTPUTS]; /* of this lane's weight rows */
uint x_at[N_ROWS];

uint group;            /* of the slab */
uint n_rows, choices;  /* by expert: how many rows chose it, and where in lists they are */
uint n_active;         /* rows of this pass */

/* By expert, most passes are not full: what a row costs is spared where it is not there. */
bool is_active(uint r) { return KIND != TD_VK_MUL_EXPERT || r == 0u || r < n_active; }

/* The r-th row: of the batch, or n_used * row + i, the expert being the i-th choice of the row. */
uint find_row(uint r)
{
    if (KIND != TD_VK_MUL_EXPERT)
        return r;
    return p.n_rows == 1u ? gl_WorkGroupID.z : lists[choices + r];
}
uint find_x(uint row)
{
    if (KIND == TD_VK_MUL_EXPERT)
        return row / p.n_used * p.x_stride + p.x_col0 + row % p.n_used * p.x_group;
    return row * p.x_stride + p.x_col0 + (KIND == TD_VK_MUL_GROUPS ? group * p.x_group : 0u);
}
uint find_y(uint row)
{
    if (KIND == TD_VK_MUL_EXPERT)
        return row / p.n_used * p.y_stride + p.y_col0 + row % p.n_used * p.y_group;
    uint y_at = row * p.y_stride + p.y_col0 + p.o0;
    return KIND == TD_VK_MUL_GROUPS ? y_at + (p.group0 + group) * p.y_group : y_at;
}

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
            sums[o][r] = td_fold(sums[o][r], blocks[o].scales, dots, uintBitsToFloat(meta.x),
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
vec4 load_x(uint i, uint k)
{
    if (IS_ALIGNED)
        return x4[(i + k) / 4u];
    /* Columns from n_k on are padding or a neighbour's, and 0 times their Inf would be NaN. */
    uint n = p.n_k - min(k, p.n_k);
    return vec4(n > 0u ? x[i + k] : 0.0, n > 1u ? x[i + k + 1u] : 0.0,
                n > 2u ? x[i + k + 2u] : 0.0, n > 3u ? x[i + k + 3u] : 0.0);
}

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

void store(uint panel, uint lane, uint r, float sum0)
{
    uint o = panel * LANES + lane;
    if (r >= n_rows || o >= p.n_o)
        return;
    precise float sum = sum0;
    if (p.has_bias != 0u)
        sum += bias[p.o0 + (KIND == TD_VK_MUL_PLAIN ? 0u : (p.group0 + group) * p.n_o) + o];
    y[find_y(find_row(r)) + o] = sum;
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
        store(panel, i % LANES, row0 + r0 + i / LANES, sum);
    }
    barrier();
}

/* Finds the group of the workgroup, and by expert its rows; false where there is nothing to do. */
bool find_group()
{
    group = KIND == TD_VK_MUL_PLAIN ? 0u : gl_WorkGroupID.z;
    n_rows = p.n_rows;
    if (KIND != TD_VK_MUL_EXPERT)
        return true;
    uint expert;
    if (p.n_rows == 1u) {
        expert = uint(experts[gl_WorkGroupID.z]);
    } else {
        uint at = 4u + 3u * gl_WorkGroupID.z;
        if (gl_WorkGroupID.z >= lists[0])
            return false;
        expert = lists[at];
        choices = TD_VK_LIST_WORDS + lists[at + 1u];
        n_rows = lists[at + 2u];
    }
    group = expert - p.group0; /* wraps for those of slabs before */
    return group < p.n_groups;
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
        if (SLICES == 1u) {
            [[unroll]] for (uint r = 0u; r < N_ROWS; r++)
                store(panel0 + o, lane, row0 + r, sums[o][r]);
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
    uint row_of_group = group * ((p.n_o + LANES - 1u) / LANES * LANES);
    td_pitch = p.w_pitch;
    td_begin();
    [[unroll]] for (uint o = 0u; o < OUTPUTS; o++)
        bases[o] = td_row_base(row_of_group + min((panel0 + o) * LANES + lane, p.n_o - 1u),
                               p.w_units);
    for (uint row0 = gl_WorkGroupID.x % n_row_groups * N_ROWS;; row0 += N_ROWS) {
        multiply(row0, panel0, slice, lane);
        if (KIND != TD_VK_MUL_EXPERT || row0 + N_ROWS >= n_rows)
            break;
    }
}
