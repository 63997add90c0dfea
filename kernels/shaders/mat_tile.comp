/* The product of mat_vec.comp for many rows, bit for bit: weights are read and unpacked once for
 * TILE_ROWS rows, through shared memory. A workgroup takes a panel of 64 outputs; an invocation
 * keeps the sums of N_ROWS rows and OUTPUTS outputs in registers, so that what it reads serves as
 * many products as registers allow.
 *
 * Shapes and buffers as in mat_vec.comp. Grid: x = panels times groups of TILE_ROWS rows, those of a
 * panel side by side. Specialization: 0 N_ROWS, 1 invocations, 2 OUTPUTS, 3 IS_ALIGNED, 4 KIND as
 * there; 5 SLICES of k; 6 SUBGROUP: 0 on a GPU. A software driver takes longer to load for a
 * subgroup, lane by lane, than to multiply, and has no instruction for products of four bytes. There
 * SUBGROUP is the size of its subgroups, each lane of which loads rows of its own and hands them to
 * the others, and bytes are multiplied as floats: exact as well, as sums of 32 products of bytes
 * stay below 2^24.
 *
 * Law 1: mat_vec.comp adds the quads of each slice in ascending order, then the slices. Here a
 * workgroup goes through the slices one after another, so that every sum has the same terms in the
 * same order. */
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_shuffle : require

#include "inc/push.glsl"

layout(constant_id = 0) const uint N_ROWS = 4u;
layout(constant_id = 1) const uint GROUP = 256u;
layout(constant_id = 2) const uint OUTPUTS = 4u;
layout(constant_id = 3) const bool IS_ALIGNED = false;
layout(constant_id = 4) const uint KIND = TD_VK_MUL_PLAIN;
layout(constant_id = 5) const uint SLICES = 1u;
layout(constant_id = 6) const uint SUBGROUP = 0u;
layout(local_size_x_id = 1) in;

#include "inc/mat_mul.glsl"

const uint OUT_LANES = LANES / OUTPUTS; /* invocations beside each other take other outputs, */
const uint ROW_LANES = GROUP / OUT_LANES; /* those behind them other rows */
const uint TILE_ROWS = N_ROWS * ROW_LANES;

/* What lies in shared memory at a time: 2 blocks of 32, their scales behind them, a quad of k being
 * two such STEPS; or a quad of 32 elements. */
#if TD_IS_INT8
const uint STEPS = 2u, K_QUAD = TD_QUAD, W_UNITS = 2u * TD_INT8_UNITS, X_UNITS = W_UNITS;
#define x_unit uvec4
#else
const uint STEPS = 1u, K_QUAD = TD_BLOCK, W_UNITS = TD_BLOCK / TD_UNIT, X_UNITS = 8u;
#define x_unit vec4
#endif
const uint ROW_PITCH = TILE_ROWS + 1u; /* odd: writers of a row use other banks */
/* Rows that a lane loads for its subgroup. */
const uint LOADS = SUBGROUP == 0u ? 1u : (N_ROWS + SUBGROUP - 1u) / SUBGROUP;

shared uvec4 w_tile[W_UNITS * LANES];                                /* [unit][output] */
shared x_unit x_tile[SUBGROUP == 0u ? X_UNITS * ROW_PITCH : 1u]; /* [unit][row] */
shared uint x_at[TILE_ROWS];

float sums[OUTPUTS][N_ROWS];
float totals[OUTPUTS][N_ROWS]; /* of the slices before */
uint base;                     /* of the weight row that this invocation unpacks */
uint n_active;                 /* rows of this pass */
uint out_lane, row_lane;       /* of this invocation */
uint own_rows[LOADS];          /* where the rows are that this lane loads */

bool is_active(uint r) { return KIND != TD_VK_MUL_EXPERT || r == 0u || r * ROW_LANES < n_active; }

#if TD_IS_INT8
void fill_tiles(uint quad, uint step_, uint panel)
{
    for (uint i = gl_LocalInvocationID.x; i < 2u * LANES; i += GROUP) {
        uint at = i / LANES * TD_INT8_UNITS * LANES + i % LANES;
        if (GROUP % LANES != 0u)
            base = find_base(panel * LANES + i % LANES);
        td_block block = td_load_block(base, p.n_k, quad, 2u * step_ + i / LANES);
        w_tile[at] = uvec4(block.words[0], block.words[1], block.words[2], block.words[3]);
        w_tile[at + LANES] = uvec4(block.words[4], block.words[5], block.words[6], block.words[7]);
        w_tile[at + 2u * LANES] = floatBitsToUint(block.scales);
    }
    if (SUBGROUP != 0u)
        return;
    for (uint i = gl_LocalInvocationID.x; i < X_UNITS * TILE_ROWS; i += GROUP)
        x_tile[i % X_UNITS * ROW_PITCH + i / X_UNITS] =
            x[x_at[i / X_UNITS] + TD_INT8_UNITS * 4u * quad + X_UNITS * step_ + i % X_UNITS];
}

/* Block b of an output. */
td_block load_tile(uint b, uint o)
{
    uint at = b * TD_INT8_UNITS * LANES + o * OUT_LANES + out_lane;
    uvec4 low = w_tile[at], high = w_tile[at + LANES];
    return td_block(uint[8](low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w),
                    uintBitsToFloat(w_tile[at + 2u * LANES]));
}

void add_block(uint b)
{
    td_block blocks[OUTPUTS];
    [[unroll]] for (uint o = 0u; o < OUTPUTS; o++)
        blocks[o] = load_tile(b, o);
    [[unroll]] for (uint r = 0u; r < N_ROWS; r++) {
        if (!is_active(r))
            continue;
        uint at = b * TD_INT8_UNITS * ROW_PITCH + r * ROW_LANES + row_lane;
        uvec4 low = x_tile[at], high = x_tile[at + ROW_PITCH], meta = x_tile[at + 2u * ROW_PITCH];
        [[unroll]] for (uint o = 0u; o < OUTPUTS; o++) {
            ivec4 dots = td_start(ivec2(meta.zw));
            [[unroll]] for (uint k = 0u; k < 4u; k++)
                dots.x = td_dot(blocks[o].words[k], low[k], dots.x);
            [[unroll]] for (uint k = 0u; k < 4u; k++)
#ifdef TD_TWO_DOTS
                dots.y = td_dot(blocks[o].words[4u + k], high[k], dots.y);
#else
                dots.x = td_dot(blocks[o].words[4u + k], high[k], dots.x);
#endif
            sums[o][r] = td_fold(sums[o][r], blocks[o].scales, vec4(dots), uintBitsToFloat(meta.x),
                                 uintBitsToFloat(meta.y));
        }
    }
}

/* The same in floats, the rows from the lanes that loaded block i_block of them. */
void add_float_block(uint b, uint i_block)
{
    td_block blocks[OUTPUTS];
    vec4 weights[OUTPUTS][8], values[LOADS][8], starts[LOADS];
    vec2 scales[LOADS];
    [[unroll]] for (uint o = 0u; o < OUTPUTS; o++) {
        blocks[o] = load_tile(b, o);
        [[unroll]] for (uint k = 0u; k < 8u; k++)
            weights[o][k] = td_signed_bytes(blocks[o].words[k]);
    }
    [[unroll]] for (uint i = 0u; i < LOADS; i++) {
        uint at = own_rows[i] + TD_INT8_UNITS * i_block;
        uvec4 low = x[at], high = x[at + 1u], meta = x[at + 2u];
        [[unroll]] for (uint k = 0u; k < 8u; k++)
            values[i][k] = td_signed_bytes(k < 4u ? low[k % 4u] : high[k % 4u]);
        scales[i] = uintBitsToFloat(meta.xy);
        starts[i] = vec4(td_start(ivec2(meta.zw)));
    }
    [[unroll]] for (uint r = 0u; r < N_ROWS; r++) {
        const uint i = r / max(SUBGROUP, 1u), lane = r % max(SUBGROUP, 1u);
        vec4 start = subgroupShuffle(starts[i], lane);
        vec2 scale = subgroupShuffle(scales[i], lane);
        vec4 dots[OUTPUTS];
        [[unroll]] for (uint o = 0u; o < OUTPUTS; o++)
            dots[o] = start;
        [[unroll]] for (uint k = 0u; k < 8u; k++) {
            vec4 v = subgroupShuffle(values[i][k], lane);
#ifdef TD_TWO_DOTS
            const uint half_ = k / 4u;
#else
            const uint half_ = 0u;
#endif
            [[unroll]] for (uint o = 0u; o < OUTPUTS; o++) {
                vec4 u = weights[o][k];
                float dot_ = fma(u.y, v.y, fma(u.x, v.x, dots[o][half_]));
                dots[o][half_] = fma(u.w, v.w, fma(u.z, v.z, dot_));
            }
        }
        [[unroll]] for (uint o = 0u; o < OUTPUTS; o++)
            sums[o][r] = td_fold(sums[o][r], blocks[o].scales, dots[o], scale.x, scale.y);
    }
}

void add_tiles(uint quad, uint step_)
{
    [[dont_unroll]] for (uint b = 0u; b < 2u; b++) {
        if (SUBGROUP == 0u)
            add_block(b);
        else
            add_float_block(b, 4u * quad + 2u * step_ + b);
    }
}
#else
void fill_tiles(uint quad, uint step_, uint panel)
{
    for (uint i = gl_LocalInvocationID.x; i < W_UNITS * LANES; i += GROUP) {
        if (GROUP % LANES != 0u)
            base = find_base(panel * LANES + i % LANES);
        w_tile[i] = td_unit(base, quad * W_UNITS + i / LANES);
    }
    if (SUBGROUP != 0u)
        return;
    for (uint i = gl_LocalInvocationID.x; i < X_UNITS * TILE_ROWS; i += GROUP)
        x_tile[i % X_UNITS * ROW_PITCH + i / X_UNITS] =
            load_x(x_at[i / X_UNITS], quad * TD_BLOCK + i % X_UNITS * 4u);
}

void add_tiles(uint quad, uint step_)
{
    [[dont_unroll]] for (uint u = 0u; u < W_UNITS; u++) {
        uvec4 units[OUTPUTS];
        [[unroll]] for (uint o = 0u; o < OUTPUTS; o++)
            units[o] = w_tile[u * LANES + o * OUT_LANES + out_lane];
        [[unroll]] for (uint j = 0u; j < TD_UNIT / 4u; j++) {
            uint unit = u * (TD_UNIT / 4u) + j;
            vec4 weights[OUTPUTS], values[LOADS];
            [[unroll]] for (uint o = 0u; o < OUTPUTS; o++)
                weights[o] = td_unit_vec4(units[o], j);
            [[unroll]] for (uint i = 0u; i < LOADS && SUBGROUP != 0u; i++)
                values[i] = load_x(own_rows[i], quad * TD_BLOCK + 4u * unit);
            [[unroll]] for (uint r = 0u; r < N_ROWS; r++) {
                if (!is_active(r))
                    continue;
                vec4 v = SUBGROUP == 0u
                             ? x_tile[unit * ROW_PITCH + r * ROW_LANES + row_lane]
                             : subgroupShuffle(values[r / max(SUBGROUP, 1u)], r % max(SUBGROUP, 1u));
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
    }
}
#endif

/* The sums of one slice of k. */
void add_slice(uint slice, uint panel)
{
    uint n_quads = (p.n_k + K_QUAD - 1u) / K_QUAD;
    [[unroll]] for (uint o = 0u; o < OUTPUTS; o++)
        [[unroll]] for (uint r = 0u; r < N_ROWS; r++)
            sums[o][r] = 0.0;
    [[dont_unroll]] for (uint i = STEPS * slice; i < STEPS * n_quads;
                         i += i % STEPS == STEPS - 1u ? STEPS * SLICES - (STEPS - 1u) : 1u) {
        barrier(); /* what was there is used */
        fill_tiles(i / STEPS, i % STEPS, panel);
        barrier();
        add_tiles(i / STEPS, i % STEPS);
    }
}

/* Rows row0..row0+TILE_ROWS-1; those past the last repeat it, unstored. */
void multiply(uint row0, uint panel)
{
    n_active = n_rows - row0;
    for (uint r = gl_LocalInvocationID.x; r < TILE_ROWS; r += GROUP)
        x_at[r] = find_x(find_row(min(row0 + r, n_rows - 1u)));
    if (SUBGROUP != 0u)
        [[unroll]] for (uint i = 0u; i < LOADS; i++) {
            uint r = min(i * SUBGROUP + gl_SubgroupInvocationID, N_ROWS - 1u);
            own_rows[i] = find_x(find_row(min(row0 + r * ROW_LANES + row_lane, n_rows - 1u)));
        }
    [[dont_unroll]] for (uint slice = 0u; slice < SLICES; slice++) {
        add_slice(slice, panel);
        [[unroll]] for (uint o = 0u; o < OUTPUTS; o++)
            [[unroll]] for (uint r = 0u; r < N_ROWS; r++) {
                precise float sum = totals[o][r] + sums[o][r];
                totals[o][r] = slice == 0u ? sums[o][r] : sum;
            }
    }
    [[unroll]] for (uint o = 0u; o < OUTPUTS; o++)
        [[unroll]] for (uint r = 0u; r < N_ROWS; r++)
            store(panel * LANES + o * OUT_LANES + out_lane, row0 + r * ROW_LANES + row_lane, totals[o][r]);
    barrier(); /* x_at is used */
}

void main()
{
    uint lane = gl_LocalInvocationID.x;
    if (!find_group())
        return;
    uint n_row_groups = KIND == TD_VK_MUL_EXPERT ? 1u : (p.n_rows + TILE_ROWS - 1u) / TILE_ROWS;
    uint panel = gl_WorkGroupID.x / n_row_groups;
    td_pitch = p.w_pitch;
    td_begin();
    base = find_base(panel * LANES + lane % LANES);
    out_lane = lane % OUT_LANES;
    row_lane = lane / OUT_LANES;
    for (uint row0 = gl_WorkGroupID.x % n_row_groups * TILE_ROWS;; row0 += TILE_ROWS) {
        multiply(row0, panel);
        if (KIND != TD_VK_MUL_EXPERT || row0 + TILE_ROWS >= n_rows)
            break;
    }
}
