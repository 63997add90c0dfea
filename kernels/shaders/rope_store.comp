/* q, k and v of a row on their way to attention, in one step: heads of q and k are normed (rms_norm)
 * and rotated (rope) in place, then k and v are stored (kv_store). What each of these computes is
 * what its own shader does, bit for bit. A latent cache stores but keys, as kv_store does: k_words
 * is 0, there are no heads of v, and what is normed is the latent, k's first columns.
 *
 * Grid: heads of q, then of k, then of v; rows. Specialization: 0 TYPE_K, 1 TYPE_V, 2 HEAD_DIM_K,
 * 3 HEAD_DIM_V, 4 N_NORM: columns of a head of k that are normed, or 0; where that is all of
 * them, so are those of q; 5 ROTATED: heads of keys (1) and of values (2) are rotated as they are
 * stored (inc/rotate.glsl), those of q (4) in place, behind rope.
 *
 * Law 1: rms_norm adds 256 sums as a balanced tree; of fewer columns most are zeros, and adding
 * those changes nothing. */
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require

#include "inc/push.glsl"
#include "inc/kv.glsl"
#include "inc/kv_encode.glsl"

layout(constant_id = 0) const uint TYPE_K = TD_KV_F16;
layout(constant_id = 1) const uint TYPE_V = TD_KV_F16;
layout(constant_id = 2) const uint HEAD_DIM_K = 128u;
layout(constant_id = 3) const uint HEAD_DIM_V = 128u;
layout(constant_id = 4) const uint N_NORM = 0u;
layout(constant_id = 5) const uint ROTATED = 0u;

layout(local_size_x = 64) in;
layout(push_constant) uniform push_block { push_rope_store p; };
layout(set = 0, binding = 0) buffer k_floats { float k[]; };
layout(set = 0, binding = 1) readonly buffer v_floats { float v[]; };
layout(set = 0, binding = 2) writeonly buffer cache_k_words { uint cache_k[]; };
layout(set = 0, binding = 2) writeonly buffer cache_k_chunks { uvec4 cache_k4[]; };
layout(set = 0, binding = 3) writeonly buffer cache_v_words { uint cache_v[]; };
layout(set = 0, binding = 3) writeonly buffer cache_v_chunks { uvec4 cache_v4[]; };
layout(set = 0, binding = 4) readonly buffer position_ints { int positions[]; };
layout(set = 0, binding = 5) readonly buffer slot_ints { int slots[]; };
layout(set = 0, binding = 6) readonly buffer page_ints { int pages[]; };
layout(set = 0, binding = 7) readonly buffer cos_sin_floats { float cos_sin[]; };
layout(set = 0, binding = 8) buffer q_floats { float q[]; };
layout(set = 0, binding = 9) readonly buffer q_weight_floats { float q_weight[]; };
layout(set = 0, binding = 10) readonly buffer k_weight_floats { float k_weight[]; };

#include "inc/kv_put.glsl"

const uint HEAD_DIM_MAX = HEAD_DIM_K > HEAD_DIM_V ? HEAD_DIM_K : HEAD_DIM_V;
const uint ROW = (HEAD_DIM_MAX + 63u) / 64u * 64u;

shared float row[ROW]; /* of one head, zeros behind */
shared float sums[256];

#define TD_ROTATE_ROW row
#include "inc/rotate.glsl"

void norm(uint t, bool is_q)
{
    for (uint c = t; c < 256u; c += 64u) {
        precise float sum = 0.0;
        for (uint i = c; i < N_NORM; i += 256u) {
            precise float x = row[i];
            sum = fma(x, x, sum);
        }
        sums[c] = sum;
    }
    barrier();
    for (uint n = N_NORM > 128u ? 128u : 64u; n > 0u; n >>= 1) {
        for (uint c = t; c < n; c += 64u) {
            precise float both = sums[c] + sums[c + n];
            sums[c] = both;
        }
        barrier();
    }
    precise float mean = sums[0] / float(N_NORM);
    precise float scale = 1.0 / sqrt(mean + p.eps);
    for (uint c = t; c < N_NORM; c += 64u) {
        precise float x = row[c] * scale;
        x *= is_q ? q_weight[c] : k_weight[c];
        row[c] = x;
    }
    barrier();
}

void rotate(uint t, uint r)
{
    uint angle = r * p.cos_sin_stride + p.cos_sin_col0, n_pairs = p.n_rot / 2u;
    for (uint i = t; i < n_pairs; i += 64u) {
        uint i_a = p.col0 + (p.kind == 0u ? 2u * i : i);
        uint i_b = p.kind == 0u ? i_a + 1u : i_a + n_pairs;
        precise float c = cos_sin[angle + 2u * i];
        precise float s = cos_sin[angle + 2u * i + 1u];
        precise float a = row[i_a], b = row[i_b];
        precise float bs = b * s, bc = b * c;
        row[i_a] = fma(a, c, -bs);
        row[i_b] = fma(a, s, bc);
    }
    barrier();
}

/* Lanes' elements, 512 of the row at a time. */
void store_row(uint type, uint n, uint t, bool is_there, uint cell, uint slot)
{
    uint n_lanes = (n + 63u) / 64u * LANES;
    for (uint first = 0u; first < n_lanes; first += 64u) {
        uint lane = first + t, c = min(8u * lane, ROW - 8u);
        lo = vec4(row[c], row[c + 1u], row[c + 2u], row[c + 3u]);
        hi = vec4(row[c + 4u], row[c + 5u], row[c + 6u], row[c + 7u]);
        if (first > 0u)
            barrier(); /* the last turn's extremes have been read */
        store(type, n, lane, is_there && lane < n_lanes, cell, slot);
    }
}

void main()
{
    uint t = gl_LocalInvocationID.x, r = gl_WorkGroupID.y, i = gl_WorkGroupID.x;
    bool is_q = i < p.n_head;
    is_k = !is_q && i < p.n_head + p.n_head_kv;
    uint head = is_q ? i : is_k ? i - p.n_head : i - p.n_head - p.n_head_kv;
    int position = positions[r], sequence = slots[r];
    if (is_q || is_k) {
        uint at = (is_q ? r * p.q_stride + p.q_col0 : r * p.k_stride + p.k_col0) + head * HEAD_DIM_K;
        bool has_norm = N_NORM != 0u && (!is_q || N_NORM == HEAD_DIM_K);
        bool is_whole = has_norm || (is_q && (ROTATED & 4u) != 0u);
        uint begin = is_whole ? 0u : p.col0, end = is_whole ? HEAD_DIM_K : p.col0 + p.n_rot;
        for (uint c = t; c < ROW; c += 64u) {
            row[c] = 0.0;
            if (!is_q && c < HEAD_DIM_K)
                row[c] = k[at + c];
            else if (is_q && begin <= c && c < end) /* others may be writing beside it */
                row[c] = q[at + c];
        }
        barrier();
        if (has_norm)
            norm(t, is_q);
        rotate(t, r);
        if (!is_q)
            for (uint c = begin + t; c < end; c += 64u)
                k[at + c] = row[c];
        if ((ROTATED & (is_q ? 4u : 1u)) != 0u)
            td_rotate(t, HEAD_DIM_K);
        if (is_q) {
            for (uint c = begin + t; c < end; c += 64u)
                q[at + c] = row[c];
            return;
        }
    } else {
        uint at = r * p.v_stride + p.v_col0 + head * HEAD_DIM_V;
        for (uint c = t; c < ROW; c += 64u)
            row[c] = c < HEAD_DIM_V ? v[at + c] : 0.0;
        barrier();
        if ((ROTATED & 2u) != 0u)
            td_rotate(t, HEAD_DIM_V);
    }
    is_k = is_k && p.k_words != 0u;
    uint page = td_kv_page(position, sequence, p.n_slots, p.n_pages_max, p.n_pages);
    uint cell = td_kv_cell(page, p.n_head_kv, head, is_k ? p.k_words : p.v_words);
    uint slot = uint(position) % TD_KV_SLOTS;
    if (is_k || (TYPE_K == TYPE_V && HEAD_DIM_K == HEAD_DIM_V))
        store_row(TYPE_K, HEAD_DIM_K, t, page < p.n_pages, cell, slot);
    else
        store_row(TYPE_V, HEAD_DIM_V, t, page < p.n_pages, cell, slot);
}
