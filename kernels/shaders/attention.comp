/* y[r][h] = sum_j softmax_j(scale q[r][h] . k[j]) v[j] over the visible positions j of row r's
 * sequence, read from the paged cache.
 *
 * q [n_rows][n_head][head_dim_k], y [n_rows][n_head][head_dim_v], positions, slots [n_rows],
 * pages [n_slots][n_pages_max]; K and V as inc/README. Grid: x = head, y = row, z = strand.
 * Specialization: 0 TYPE_K, 1 TYPE_V, 2 HEAD_DIM_K, 3 HEAD_DIM_V.
 *
 * A workgroup is SLICES slices of 64 invocations. It takes groups of SLICES pages, a slice a page,
 * and folds them in ascending order, with a running maximum for each slice (online softmax: Milakov &
 * Gimelshein 2018); the slices are joined at the end. In a page an invocation owns a position for
 * the scores, then a chunk of V and every PARTS-th position for the sum.
 *
 * A few rows over a long cache would leave a GPU idle, so the groups of a head are dealt out to
 * n_strands workgroups, group g to strand g mod n_strands (a constant of the program). Then a
 * workgroup stores its maximum, its sum of weights and its sum of values as partials, and
 * attention_join.comp joins the strands.
 *
 * Law 1: which invocation adds what, and in which order, follows from absolute positions and the
 * shapes alone. */
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require

#include "inc/exp.glsl"
#include "inc/push.glsl"
#include "inc/kv.glsl"

layout(push_constant) uniform push_block { push_attention p; };

layout(constant_id = 0) const uint TYPE_K = 1u;
layout(constant_id = 1) const uint TYPE_V = 1u;
layout(constant_id = 2) const uint HEAD_DIM_K = 64u;
layout(constant_id = 3) const uint HEAD_DIM_V = 64u;

layout(set = 0, binding = 0) readonly buffer q_floats { float q[]; };
layout(set = 0, binding = 1) readonly buffer k_words { uint k[]; };
layout(set = 0, binding = 1) readonly buffer k_uvec4s { uvec4 k4[]; };
layout(set = 0, binding = 2) readonly buffer v_words { uint v[]; };
layout(set = 0, binding = 2) readonly buffer v_uvec4s { uvec4 v4[]; };
layout(set = 0, binding = 3) readonly buffer position_ints { int positions[]; };
layout(set = 0, binding = 4) readonly buffer slot_ints { int slots[]; };
layout(set = 0, binding = 5) readonly buffer page_ints { int pages[]; };
layout(set = 0, binding = 6) writeonly buffer y_floats { float y[]; }; /* or partials */
layout(set = 0, binding = 7) readonly buffer sink_floats { float sinks[]; };

const uint SLICES = 4u;
const uint LANES = TD_KV_SLOTS;
const uint AHEAD = 4u;
#define NOTHING uintBitsToFloat(0xff800000u) /* -inf: no position seen yet */

const uint CHUNK_K = TD_KV_CHUNK(TYPE_K);
const uint CHUNK_V = TD_KV_CHUNK(TYPE_V);
const uint CHUNKS_K = TD_KV_CHUNKS(TYPE_K, HEAD_DIM_K);
const uint CHUNKS_V = TD_KV_CHUNKS(TYPE_V, HEAD_DIM_V);
const uint Q_VEC4S = CHUNKS_K * CHUNK_K / 4u;
/* Lanes of a slice in the V sum: PARTS x CHUNKS_V, or each lane several chunks of a long head. */
const uint PARTS = CHUNKS_V < LANES ? LANES / CHUNKS_V : 1u;
const uint TURNS = (CHUNKS_V + LANES - 1u) / LANES;

layout(local_size_x = 256) in; /* SLICES * LANES */

shared vec4 q_row[Q_VEC4S];             /* padded with zeros, as the cache's rows are */
shared vec4 scores[SLICES * LANES / 4u];
shared vec4 weights[SLICES * LANES / 4u];
shared vec4 quarter_max[SLICES]; /* of 16 scores each */
shared float slice_max[SLICES], slice_sum[SLICES];
shared vec4 partial[SLICES * LANES];

/* The page of the cache behind page i of the sequence; false where the table holds none. */
bool find_page(uint slot, uint i, out uint page)
{
    page = 0u;
    if (slot >= p.n_slots || i >= p.n_pages_max)
        return false;
    page = uint(pages[slot * p.n_pages_max + i]);
    return page < p.n_pages;
}

/* sum + q . k over chunk c. */
float add_chunk(float sum0, uint c, uvec4 quants, uint scale_word)
{
    precise float sum = sum0;
    float d = td_kv_has_scales(TYPE_K) ? td_kv_scale(TYPE_K, scale_word, c) : 0.0;
    [[unroll]] for (uint j = 0u; j < CHUNK_K / 4u; j++) {
        vec4 a = q_row[c * (CHUNK_K / 4u) + j], b = td_kv_decode(TYPE_K, quants, d, j);
        sum = fma(a.x, b.x, sum);
        sum = fma(a.y, b.y, sum);
        sum = fma(a.z, b.z, sum);
        sum = fma(a.w, b.w, sum);
    }
    return sum;
}

/* scale q . k, capped, of the position in a slot of the cell. Loads are AHEAD chunks ahead. */
float score(uint cell, uint slot)
{
    precise float sum = 0.0;
    [[dont_unroll]] for (uint c = 0u; c < CHUNKS_K; c += AHEAD) {
        uvec4 quants[AHEAD];
        uint scale_words[AHEAD];
        [[unroll]] for (uint a = 0u; a < AHEAD; a++) {
            uint i = min(c + a, CHUNKS_K - 1u);
            quants[a] = k4[td_kv_k_chunk_at(cell, slot, i)];
            scale_words[a] = 0u;
            if (td_kv_has_scales(TYPE_K))
                scale_words[a] = k[td_kv_k_scale_at(cell, CHUNKS_K, slot, i * CHUNK_K / 64u)];
        }
        [[unroll]] for (uint a = 0u; a < AHEAD; a++)
            if (c + a < CHUNKS_K)
                sum = add_chunk(sum, c + a, quants[a], scale_words[a]);
    }
    sum *= p.scale;
    if (p.softcap != 0.0) /* cap tanh(s / cap), in a form that cannot overflow */
        sum = p.softcap * (1.0 - 2.0 / (td_exp(2.0 * (sum / p.softcap)) + 1.0));
    return sum;
}

vec4 sums[8u]; /* [TURNS][CHUNK_V / 4] */

/* Adds the weighted values of the slots first..end-1 that fall to this part. */
void add_values(uint cell, uint slice, uint lane, uint first, uint end)
{
    uint part = lane / CHUNKS_V % PARTS, c0 = PARTS > 1u ? lane % CHUNKS_V : lane;
    if (PARTS > 1u && lane >= PARTS * CHUNKS_V)
        return;
    for (uint slot = part; slot < end; slot += PARTS) {
        if (slot < first)
            continue;
        float weight = weights[slice * (LANES / 4u) + slot / 4u][slot % 4u];
        [[unroll]] for (uint turn = 0u; turn < TURNS; turn++) {
            uint c = c0 + turn * LANES;
            if (c >= CHUNKS_V)
                continue;
            uvec4 quants = v4[td_kv_v_chunk_at(cell, CHUNKS_V, slot, c)];
            float d = 0.0;
            if (td_kv_has_scales(TYPE_V))
                d = td_kv_scale(TYPE_V,
                                v[td_kv_v_scale_at(cell, CHUNKS_V,
                                                   td_kv_scale_words(TYPE_V, HEAD_DIM_V), slot,
                                                   c * CHUNK_V / 64u)],
                                c);
            [[unroll]] for (uint j = 0u; j < CHUNK_V / 4u; j++) {
                uint i = turn * (CHUNK_V / 4u) + j;
                precise vec4 sum = fma(vec4(weight), td_kv_decode(TYPE_V, quants, d, j), sums[i]);
                sums[i] = sum;
            }
        }
    }
}

/* Joins the slices, their parts and the head's sink, and stores the row of this head; as a strand of
 * several without the sink, and not divided. */
void join_and_store(uint slice, uint lane, uint head, uint y0)
{
    bool is_strand = p.n_strands > 1u, has_sink = p.has_sinks != 0u && !is_strand;
    float top = max(max(slice_max[0], slice_max[1]), max(slice_max[2], slice_max[3]));
    float factors[SLICES];
    precise float total = 0.0;
    if (has_sink) {
        top = max(top, sinks[head]);
        total = exp(sinks[head] - top);
    }
    [[unroll]] for (uint s = 0u; s < SLICES; s++) {
        /* A slice that saw nothing has no part, whatever exp(-inf - top) is. */
        factors[s] = slice_sum[s] == 0.0 ? 0.0 : exp(slice_max[s] - top);
        total = fma(factors[s], slice_sum[s], total);
    }
    if (is_strand && gl_LocalInvocationID.x == 0u) {
        y[y0] = top;
        y[y0 + 1u] = total;
    }
    [[unroll]] for (uint i = 0u; i < TURNS * CHUNK_V / 4u; i++) {
        uint turn = i / (CHUNK_V / 4u), e = i % (CHUNK_V / 4u) * 4u;
        partial[slice * LANES + lane] = sums[i];
        barrier();
        uint c = lane + turn * LANES;
        if (slice == 0u && c < CHUNKS_V) {
            precise vec4 sum = vec4(0.0);
            [[dont_unroll]] for (uint s = 0u; s < SLICES; s++) {
                precise vec4 of_slice = vec4(0.0);
                [[dont_unroll]] for (uint part = 0u; part < PARTS; part++)
                    of_slice += partial[s * LANES + part * CHUNKS_V + lane];
                sum = fma(vec4(factors[s]), of_slice, sum);
            }
            uint column = c * CHUNK_V + e;
            [[unroll]] for (uint f = 0u; f < 4u; f++)
                if (column + f < HEAD_DIM_V) {
                    if (is_strand)
                        y[y0 + 2u + column + f] = sum[f];
                    else
                        y[y0 + column + f] = sum[f] / total;
                }
        }
        barrier();
    }
}

void main()
{
    uint slice = gl_LocalInvocationID.x / LANES, lane = gl_LocalInvocationID.x % LANES;
    uint head = gl_WorkGroupID.x, row = gl_WorkGroupID.y;
    uint head_kv = head / (p.n_head / p.n_head_kv);
    int position = positions[row];
    uint slot = uint(slots[row]);
    uint n_visible = uint(max(position + 1, 0)); /* positions first..n_visible-1 */
    uint first = p.window != 0u && n_visible > p.window ? n_visible - p.window : 0u;
    if (p.chunk != 0u && n_visible != 0u)
        first = max(first, (n_visible - 1u) / p.chunk * p.chunk);

    uint q0 = row * p.q_stride + p.q_col0 + head * HEAD_DIM_K;
    for (uint i = gl_LocalInvocationID.x; i < Q_VEC4S * 4u; i += SLICES * LANES)
        q_row[i / 4u][i % 4u] = i < HEAD_DIM_K ? q[q0 + i] : 0.0;
    [[unroll]] for (uint i = 0u; i < TURNS * CHUNK_V / 4u; i++)
        sums[i] = vec4(0.0);
    float top = NOTHING; /* of the slice */
    precise float total = 0.0; /* of the weights of this lane's positions */
    barrier();

    uint strand = gl_WorkGroupID.z, group0 = first / (LANES * SLICES);
    uint n_groups = (n_visible + LANES * SLICES - 1u) / (LANES * SLICES);
    group0 += (strand + p.n_strands - group0 % p.n_strands) % p.n_strands;
    for (uint group = group0; group < n_groups; group += p.n_strands) {
        uint page, i = group * SLICES + slice; /* page i holds the positions 64 i .. 64 i + 63 */
        uint begin = clamp(first, i * LANES, i * LANES + LANES) - i * LANES;
        uint end = clamp(n_visible, i * LANES, i * LANES + LANES) - i * LANES;
        bool is_active = begin < end && find_page(slot, i, page);
        uint cell_k = td_kv_cell(page, p.n_head_kv, head_kv, p.k_words);
        uint cell_v = td_kv_cell(page, p.n_head_kv, head_kv, p.v_words);
        uint at = slice * (LANES / 4u);

        bool is_visible = is_active && lane >= begin && lane < end;
        float own = NOTHING;
        if (is_visible)
            own = score(cell_k, lane);
        scores[at + lane / 4u][lane % 4u] = own;
        barrier();
        if (lane < 4u) {
            vec4 tops = scores[at + 4u * lane];
            [[unroll]] for (uint j = 1u; j < 4u; j++)
                tops = max(tops, scores[at + 4u * lane + j]);
            quarter_max[slice][lane] = max(max(tops.x, tops.y), max(tops.z, tops.w));
        }
        barrier();
        float before = top;
        if (is_active) {
            vec4 tops = quarter_max[slice];
            top = max(top, max(max(tops.x, tops.y), max(tops.z, tops.w)));
        }
        float weight = is_visible ? td_exp(own - top) : 0.0;
        weights[at + lane / 4u][lane % 4u] = weight;
        barrier();
        if (is_active) {
            precise float factor = before == NOTHING ? 0.0 : exp(before - top);
            total = fma(total, factor, weight);
            [[unroll]] for (uint j = 0u; j < TURNS * CHUNK_V / 4u; j++) {
                precise vec4 scaled = sums[j] * factor;
                sums[j] = scaled;
            }
            add_values(cell_v, slice, lane, begin, end);
        }
    }
    barrier(); /* the weights have been read */
    weights[slice * (LANES / 4u) + lane / 4u][lane % 4u] = total;
    barrier();
    if (lane == 0u) {
        precise vec4 added = weights[slice * (LANES / 4u)];
        for (uint j = 1u; j < LANES / 4u; j++)
            added += weights[slice * (LANES / 4u) + j];
        slice_max[slice] = top;
        slice_sum[slice] = (added.x + added.y) + (added.z + added.w);
    }
    barrier();
    uint y0 = row * p.y_stride + p.y_col0 + head * HEAD_DIM_V;
    if (p.n_strands > 1u)
        y0 = ((row * p.n_head + head) * p.n_strands + strand) * (HEAD_DIM_V + 2u);
    join_and_store(slice, lane, head, y0);
}
