/* The gated delta rule over a sequence's rows (kernels/ops.h, td_op_delta_net). S of the first
 * positions lies in the state; from there on the rows are gone through in ascending order, those
 * before the batch out of the ring, and S is stored on the way where the committed length is.
 *
 * x [n_rows][n_cols], y [n_rows][n_head_v][DIM]; state: inc/push.glsl. Grid: x = block of columns of
 * a head, y = the how-manyeth sequence of the batch.
 * Specialization: 0 DIM, 1 TAPS.
 *
 * Columns of S are independent of each other. A workgroup has TD_VK_STATE_COLS of a head in its
 * registers, a column in PARTS invocations. What an invocation convolves of q, k and v it keeps as
 * well, TAPS rows of it, and loads the next row's while it works on one.
 *
 * Law 1: a row's arithmetic knows nothing of batches. Sums over the rows of S, and sums of squares: in
 * a part four, of every fourth row ascending, added as (x + y) + (z + w); then the parts in ascending
 * order. */
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#include "inc/exp.glsl"
#include "inc/push.glsl"

layout(local_size_x = 128) in; /* COLS * PARTS */
layout(push_constant) uniform push_block { push_delta_net p; };
layout(constant_id = 0) const uint DIM = 128u;
layout(constant_id = 1) const uint TAPS = 4u;
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
const bool IS_FULL = DIM == 4u * PARTS * ROWS4; /* no row to be left out */
const uint MASKS = 8u; /* of 32 rows each: TD_PREFILL_ROWS_MAX */
const uint OWN = (DIM + LANES - 1u) / LANES; /* elements of q, and of k, of an invocation */
const uint CHANNELS = 2u * OWN + 1u;         /* of q, of k, one of v */

shared uint firsts[MASKS];                        /* bits: rows that are the first of a sequence */
shared vec4 k4[PARTS * ROWS4], q4[PARTS * ROWS4]; /* padded with zeros, as S is */
shared float v[COLS];
shared vec3 seen[LANES]; /* of a part: S^T k; squares of k, of q */
shared float outs[LANES];

uint row0, position0, slot; /* the sequence's first row in the batch, its position */
vec4 s4[ROWS4];
uint channels[CHANNELS];
float inputs[CHANNELS][TAPS], conv_weights[CHANNELS][TAPS];

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

/* Channels of this invocation, their convolution, and their inputs before a position. */
void begin_channels(uint position, uint t, uint head_k, uint channel_v, uint n_own)
{
    uint n_channels = (2u * p.n_head_k + p.n_head_v) * DIM;
    [[unroll]] for (uint c = 0u; c < CHANNELS; c++) {
        uint i = min(t + c % OWN * LANES, DIM - 1u); /* those beyond are not used */
        channels[c] = c == 2u * OWN ? channel_v + min(t, n_own - 1u)
                      : c >= OWN    ? (p.n_head_k + head_k) * DIM + i
                                    : head_k * DIM + i;
        [[unroll]] for (uint j = 0u; j < TAPS; j++) {
            conv_weights[c][j] = conv[j * n_channels + channels[c]];
            inputs[c][j] = 0.0; /* the first falls out with the next row */
            if (j > 0u && position + j >= TAPS)
                inputs[c][j] = input_at(position + j - TAPS, channels[c]);
        }
    }
}

/* The convolution of a channel, the row's own input being the last. */
float convolve(uint c, float next)
{
    precise float sum = 0.0;
    [[unroll]] for (uint j = 0u; j < TAPS; j++) {
        inputs[c][j] = j + 1u < TAPS ? inputs[c][min(j + 1u, TAPS - 1u)] : next;
        sum = fma(conv_weights[c][j], inputs[c][j], sum);
    }
    precise float silu = sum / (1.0 + exp(-sum));
    return silu;
}

void convolve_all(uint t, uint n_own, float next[CHANNELS])
{
    [[unroll]] for (uint c = 0u; c < CHANNELS; c++) {
        uint i = t + c % OWN * LANES;
        float value = convolve(c, next[c]);
        if (c < OWN && i < DIM)
            q4[i / 4u][i % 4u] = value;
        else if (c >= OWN && c < 2u * OWN && i < DIM)
            k4[i / 4u][i % 4u] = value;
        else if (c == 2u * OWN && t < n_own)
            v[t] = value;
    }
}

/* How S decays, and how much of the row it takes: of alpha and beta. */
vec2 gates(vec2 raw, float rate, float bias)
{
    precise float x = raw.x + bias;
    precise float soft = x > 20.0 ? x : log(1.0 + td_exp(x));
    precise vec2 both = vec2(td_exp(rate * soft), 1.0 / (1.0 + td_exp(-raw.y)));
    return both;
}

float add4(vec4 v4)
{
    precise float sum = (v4.x + v4.y) + (v4.z + v4.w);
    return sum;
}

/* One row into S, and what the column then gives, the same in all parts. */
float take_row(uint column, uint part, vec2 gate)
{
    precise vec4 dot4 = vec4(0.0), kk = vec4(0.0), qq = vec4(0.0), out4 = vec4(0.0);
    [[unroll]] for (uint i = 0u; i < ROWS4; i++) {
        vec4 k = k4[part * ROWS4 + i], q = q4[part * ROWS4 + i];
        dot4 = fma(s4[i], k, dot4);
        kk = fma(k, k, kk);
        qq = fma(q, q, qq);
    }
    seen[part * COLS + column] = vec3(add4(dot4), add4(kk), add4(qq));
    barrier();
    precise vec3 sums = seen[column];
    [[unroll]] for (uint i = 1u; i < PARTS; i++)
        sums += seen[i * COLS + column];
    precise vec2 factors = vec2(1.0) / sqrt(sums.yz + p.eps); /* make k and q of length 1 */
    precise float u = gate.y * (v[column] - sums.x * (gate.x * factors.x)) * factors.x;
    [[unroll]] for (uint i = 0u; i < ROWS4; i++) {
        precise vec4 s = fma(vec4(u), k4[part * ROWS4 + i], s4[i] * gate.x);
        s4[i] = s;
        out4 = fma(s, q4[part * ROWS4 + i], out4);
    }
    outs[part * COLS + column] = add4(out4);
    barrier();
    precise float sum = outs[column];
    [[unroll]] for (uint i = 1u; i < PARTS; i++)
        sum += outs[i * COLS + column];
    sum *= factors.y / sqrt(float(DIM));
    return sum;
}

void load_state(uint at, uint part, bool is_own, bool is_new)
{
    [[unroll]] for (uint i = 0u; i < ROWS4; i++)
        [[unroll]] for (uint j = 0u; j < 4u; j++) {
            uint row = 4u * (part * ROWS4 + i) + j;
            s4[i][j] = 0.0;
            if (is_own && !is_new && (IS_FULL || row < DIM))
                s4[i][j] = state[at + row * DIM];
        }
}

void store_state(uint at, uint part, bool is_own)
{
    [[unroll]] for (uint i = 0u; i < ROWS4; i++)
        [[unroll]] for (uint j = 0u; j < 4u; j++) {
            uint row = 4u * (part * ROWS4 + i) + j;
            if (is_own && (IS_FULL || row < DIM))
                state[at + row * DIM] = s4[i][j];
        }
}

void main()
{
    const uint BLOCKS = (DIM + COLS - 1u) / COLS;
    uint t = gl_LocalInvocationID.x, column = t % COLS, part = t / COLS;
    uint head = gl_WorkGroupID.x / BLOCKS, column0 = gl_WorkGroupID.x % BLOCKS * COLS;
    uint head_k = p.is_grouped != 0u ? head / (p.n_head_v / p.n_head_k) : head % p.n_head_k;
    uint channel_v = (2u * p.n_head_k + head) * DIM + column0;
    uint channel_gates = (2u * p.n_head_k + p.n_head_v) * DIM + head; /* alpha; then beta */
    uint end_row, n_own = min(COLS, DIM - column0);
    if (!find_sequence(gl_WorkGroupID.y, t, end_row))
        return;
    slot = uint(slots[row0]);
    position0 = uint(positions[row0]);
    if (slot >= p.n_slots || position0 > 0x7fffffffu)
        return;
    uint i_count = (slot * p.n_head_v + head) * BLOCKS + gl_WorkGroupID.x % BLOCKS;
    uint count = position0 == 0u ? 0u : counts[i_count], end = position0 + (end_row - row0);
    uint committed = uint(spans[2u * slot]);
    uint at = (slot * p.n_head_v + head) * DIM * DIM + column0 + column;
    bool is_own = DIM % COLS == 0u || column < n_own;
    for (uint i = t; i < 4u * PARTS * ROWS4; i += LANES)
        if (i >= DIM)
            k4[i / 4u][i % 4u] = q4[i / 4u][i % 4u] = 0.0;
    if (t < COLS)
        v[t] = 0.0;
    load_state(at, part, is_own, count == 0u);
    barrier(); /* all have read the count */
    if (position0 == 0u && t == 0u)
        counts[i_count] = 0u;
    if (count >= end)
        return;

    float rate = a[head], bias = dt[head], next[CHANNELS];
    begin_channels(count, t, head_k, channel_v, n_own);
    [[unroll]] for (uint c = 0u; c < CHANNELS; c++)
        next[c] = input_at(count, channels[c]);
    vec2 next_gates =
        vec2(input_at(count, channel_gates), input_at(count, channel_gates + p.n_head_v));
    for (uint position = count; position < end; position++) {
        vec2 raw = next_gates;
        convolve_all(t, n_own, next);
        uint ahead = min(position + 1u, end - 1u);
        [[unroll]] for (uint c = 0u; c < CHANNELS; c++)
            next[c] = input_at(ahead, channels[c]);
        next_gates =
            vec2(input_at(ahead, channel_gates), input_at(ahead, channel_gates + p.n_head_v));
        barrier();
        float sum = take_row(column, part, gates(raw, rate, bias));
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
