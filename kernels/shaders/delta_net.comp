/* The gated delta rule over a sequence's rows (kernels/ops.h, td_op_delta_net). S of the first
 * positions lies in the state; from there on the rows are gone through in ascending order, those
 * before the batch out of the ring, and S is stored on the way where the committed length is.
 *
 * x [n_rows][n_cols], y [n_rows][n_head_v][DIM]; state: inc/push.glsl. Grid: x = block of columns of
 * a head, y = the how-manyeth sequence of the batch. Specialization: 0 DIM.
 *
 * Columns of S are independent of each other. A workgroup has TD_VK_STATE_COLS of a head in its
 * registers, a column in PARTS invocations.
 *
 * Law 1: a row's arithmetic knows nothing of batches. Sums over the rows of S: in a part four, of
 * every fourth row ascending, added as (x + y) + (z + w); then the parts in ascending order. Sums of
 * squares: 16 of every 16th element, ascending, then these. */
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#include "inc/push.glsl"

layout(local_size_x = 128) in; /* COLS * PARTS */
layout(push_constant) uniform push_block { push_delta_net p; };
layout(constant_id = 0) const uint DIM = 128u;
layout(set = 0, binding = 0) readonly buffer x_floats { float x[]; };
layout(set = 0, binding = 1) readonly buffer conv_floats { float conv[]; };
layout(set = 0, binding = 2) readonly buffer a_floats { float a[]; };
layout(set = 0, binding = 3) readonly buffer dt_floats { float dt[]; };
layout(set = 0, binding = 4) readonly buffer position_ints { int positions[]; };
layout(set = 0, binding = 5) readonly buffer slot_ints { int slots[]; };
layout(set = 0, binding = 6) readonly buffer span_ints { int spans[]; };
layout(set = 0, binding = 7) readonly buffer ring_floats { float ring[]; };
layout(set = 0, binding = 8) buffer state_floats { float state[]; };
layout(set = 0, binding = 9) buffer count_uints { uint counts[]; };
layout(set = 0, binding = 10) writeonly buffer y_floats { float y[]; };

const uint COLS = TD_VK_STATE_COLS;
const uint PARTS = 4u;
const uint LANES = COLS * PARTS;
const uint ROWS4 = (DIM + 4u * PARTS - 1u) / (4u * PARTS); /* rows of S in a part, in fours */
const uint SUMS = 16u;
const uint MASKS = 8u; /* of 32 rows each: TD_PREFILL_ROWS_MAX */

shared uint firsts[MASKS];                   /* bits: rows that are the first of a sequence */
shared vec4 k4[PARTS * ROWS4], q4[PARTS * ROWS4]; /* padded with zeros, as S is */
shared float v[COLS];
shared float k_sums[SUMS], q_sums[SUMS];
shared float dots[LANES], outs[LANES];

uint row0, position0, slot; /* the sequence's first row in the batch, its position */
vec4 s4[ROWS4];

/* Finds the i-th sequence of the batch: its rows are row0..end-1. */
bool find_sequence(uint i, uint t, out uint end)
{
    if (t < MASKS)
        firsts[t] = 0u;
    barrier();
    for (uint r = t; r < min(p.n_rows, 32u * MASKS); r += LANES)
        if (r == 0u || slots[r] != slots[r - 1u])
            atomicOr(firsts[r / 32u], 1u << r % 32u);
    barrier();
    row0 = end = p.n_rows;
    uint n = 0u;
    for (uint w = 0u; w < MASKS; w++)
        for (uint bits = firsts[w]; bits != 0u; bits &= bits - 1u) {
            uint r = 32u * w + findLSB(bits);
            if (n == i)
                row0 = r;
            if (n == i + 1u)
                end = r;
            n++;
        }
    return row0 < p.n_rows;
}

/* The input of a channel at a position, from the batch or the ring. */
float input_at(uint position, uint channel)
{
    if (position < position0)
        return ring[(slot * p.n_pending + position % p.n_pending) * p.n_cols + channel];
    return x[(row0 + position - position0) * p.x_stride + p.x_col0 + channel];
}

float convolve(uint position, uint channel)
{
    precise float sum = 0.0;
    uint n_channels = (2u * p.n_head_k + p.n_head_v) * DIM;
    for (uint tap = 0u; tap < p.n_taps; tap++)
        if (position + tap + 1u >= p.n_taps) /* else before the sequence */
            sum = fma(conv[tap * n_channels + channel],
                      input_at(position + tap + 1u - p.n_taps, channel), sum);
    precise float silu = sum / (1.0 + exp(-sum));
    return silu;
}

/* k, q and v of a position, not yet of length 1; the factors that make them so. */
vec2 load_row(uint position, uint head_k, uint channel_v, uint n_own, uint t)
{
    for (uint i = t; i < DIM; i += LANES) {
        q4[i / 4u][i % 4u] = convolve(position, head_k * DIM + i);
        k4[i / 4u][i % 4u] = convolve(position, (p.n_head_k + head_k) * DIM + i);
    }
    if (t < n_own)
        v[t] = convolve(position, channel_v + t);
    barrier();
    if (t < 2u * SUMS) {
        precise float sum = 0.0;
        for (uint i = t % SUMS; i < DIM; i += SUMS) {
            float value = t < SUMS ? q4[i / 4u][i % 4u] : k4[i / 4u][i % 4u];
            sum = fma(value, value, sum);
        }
        if (t < SUMS)
            q_sums[t] = sum;
        else
            k_sums[t - SUMS] = sum;
    }
    barrier();
    precise vec2 sums = vec2(0.0);
    for (uint i = 0u; i < SUMS; i++)
        sums += vec2(k_sums[i], q_sums[i]);
    precise vec2 factors = vec2(1.0) / sqrt(sums + p.eps);
    factors.y /= sqrt(float(DIM));
    return factors;
}

float sum_parts(vec4 of_part, uint column, uint part, bool is_out)
{
    precise float sum = (of_part.x + of_part.y) + (of_part.z + of_part.w);
    if (is_out)
        outs[part * COLS + column] = sum;
    else
        dots[part * COLS + column] = sum;
    barrier();
    sum = is_out ? outs[column] : dots[column];
    [[unroll]] for (uint i = 1u; i < PARTS; i++)
        sum += is_out ? outs[i * COLS + column] : dots[i * COLS + column];
    return sum;
}

/* How S decays at a position, and how much of the row it takes. */
vec2 gates(uint position, uint head)
{
    uint channel = (2u * p.n_head_k + p.n_head_v) * DIM + head;
    precise float rate = input_at(position, channel) + dt[head];
    precise float soft = rate > 20.0 ? rate : log(1.0 + exp(rate));
    precise float beta = 1.0 / (1.0 + exp(-input_at(position, channel + p.n_head_v)));
    precise vec2 both = vec2(exp(a[head] * soft), beta);
    return both;
}

void load_state(uint at, uint part, bool is_own, bool is_new)
{
    [[unroll]] for (uint i = 0u; i < ROWS4; i++)
        [[unroll]] for (uint j = 0u; j < 4u; j++) {
            uint row = 4u * (part * ROWS4 + i) + j;
            s4[i][j] = is_own && !is_new && row < DIM ? state[at + row * DIM] : 0.0;
        }
}

void store_state(uint at, uint part, bool is_own)
{
    [[unroll]] for (uint i = 0u; i < ROWS4; i++)
        [[unroll]] for (uint j = 0u; j < 4u; j++) {
            uint row = 4u * (part * ROWS4 + i) + j;
            if (is_own && row < DIM)
                state[at + row * DIM] = s4[i][j];
        }
}

void main()
{
    const uint BLOCKS = (DIM + COLS - 1u) / COLS;
    uint t = gl_LocalInvocationID.x, column = t % COLS, part = t / COLS;
    uint head = gl_WorkGroupID.x / BLOCKS, column0 = gl_WorkGroupID.x % BLOCKS * COLS;
    uint head_k = p.is_grouped != 0u ? head / (p.n_head_v / p.n_head_k) : head % p.n_head_k;
    uint end, n_own = min(COLS, DIM - column0);
    if (!find_sequence(gl_WorkGroupID.y, t, end))
        return;
    slot = uint(slots[row0]);
    position0 = uint(positions[row0]);
    if (slot >= p.n_slots || position0 > 0x7fffffffu)
        return;
    uint i_count = (slot * p.n_head_v + head) * BLOCKS + gl_WorkGroupID.x % BLOCKS;
    uint count = position0 == 0u ? 0u : counts[i_count], committed = uint(spans[2u * slot]);
    uint at = (slot * p.n_head_v + head) * DIM * DIM + column0 + column;
    bool is_own = column < n_own;
    for (uint i = t; i < 4u * PARTS * ROWS4; i += LANES)
        if (i >= DIM)
            k4[i / 4u][i % 4u] = q4[i / 4u][i % 4u] = 0.0;
    load_state(at, part, is_own, count == 0u);
    barrier(); /* all have read the count */
    if (position0 == 0u && t == 0u)
        counts[i_count] = 0u;

    for (uint position = count; position < position0 + (end - row0); position++) {
        vec2 factors = load_row(position, head_k, (2u * p.n_head_k + head) * DIM + column0, n_own, t);
        vec2 gate = gates(position, head);
        precise vec4 dot4 = vec4(0.0), out4 = vec4(0.0);
        [[unroll]] for (uint i = 0u; i < ROWS4; i++)
            dot4 = fma(s4[i], k4[part * ROWS4 + i], dot4);
        precise float dot = sum_parts(dot4, column, part, false) * (gate.x * factors.x);
        precise float u = gate.y * ((is_own ? v[column] : 0.0) - dot) * factors.x;
        [[unroll]] for (uint i = 0u; i < ROWS4; i++) {
            precise vec4 s = fma(vec4(u), k4[part * ROWS4 + i], s4[i] * gate.x);
            s4[i] = s;
            out4 = fma(s, q4[part * ROWS4 + i], out4);
        }
        precise float sum = sum_parts(out4, column, part, true) * factors.y;
        if (position >= position0 && part == 0u && is_own)
            y[(row0 + position - position0) * p.y_stride + p.y_col0 + head * DIM + column0 +
              column] = sum;
        if (position + 1u == committed) {
            store_state(at, part, is_own);
            if (t == 0u)
                counts[i_count] = committed;
        }
    }
}
