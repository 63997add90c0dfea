/* Writes k[r] ([n_head_kv][head_dim_k]) and v[r] into the page slot of the row's position, in the
 * cache's types. A lane encodes 8 elements of one head; four lanes that share a block of 32 tell
 * each other what they know of it in shared memory.
 * Grid: units of 64 elements of a row / 8, rows, K or V. Rows whose slot, position or page does not
 * exist are left alone. Specialization: 0 TYPE_K, 1 TYPE_V, 2 HEAD_DIM_K, 3 HEAD_DIM_V.
 * A latent cache stores but keys, laid out as values: they come as v, and k_words is 0. */
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

layout(local_size_x = 64) in;
layout(push_constant) uniform push_block { push_kv_store p; };
layout(set = 0, binding = 0) readonly buffer k_floats { float k[]; };
layout(set = 0, binding = 1) readonly buffer v_floats { float v[]; };
layout(set = 0, binding = 2) writeonly buffer cache_k_words { uint cache_k[]; };
layout(set = 0, binding = 2) writeonly buffer cache_k_chunks { uvec4 cache_k4[]; };
layout(set = 0, binding = 3) writeonly buffer cache_v_words { uint cache_v[]; };
layout(set = 0, binding = 3) writeonly buffer cache_v_chunks { uvec4 cache_v4[]; };
layout(set = 0, binding = 4) readonly buffer position_ints { int positions[]; };
layout(set = 0, binding = 5) readonly buffer slot_ints { int slots[]; };
layout(set = 0, binding = 6) readonly buffer page_ints { int pages[]; };

#include "inc/kv_put.glsl"

/* Rows of either are whole vectors, so that a lane reads vectors or nothing. */
const bool IS_WHOLE = HEAD_DIM_K % 4u == 0u && HEAD_DIM_V % 4u == 0u;

#define VECTOR(x, i) vec4(x[i], x[(i) + 1u], x[(i) + 2u], x[(i) + 3u])
#define PART(x, i, n)                                                                              \
    vec4((n) > 0u ? x[i] : 0.0, (n) > 1u ? x[(i) + 1u] : 0.0, (n) > 2u ? x[(i) + 2u] : 0.0,        \
         (n) > 3u ? x[(i) + 3u] : 0.0)

/* The lane's 8 elements of the row of n elements at `at`. */
void load(uint n, uint lane, uint at)
{
    uint first = 8u * lane, i = at + first;
    if (IS_WHOLE) {
        uint end = at + n - 4u; /* where the last vector begins */
        if (is_k) {
            lo = VECTOR(k, min(i, end));
            hi = VECTOR(k, min(i + 4u, end));
        } else {
            lo = VECTOR(v, min(i, end));
            hi = VECTOR(v, min(i + 4u, end));
        }
        lo = first < n ? lo : vec4(0.0);
        hi = first + 4u < n ? hi : vec4(0.0);
        return;
    }
    uint n_lo = n - min(first, n), n_hi = n - min(first + 4u, n);
    lo = is_k ? PART(k, i, n_lo) : PART(v, i, n_lo);
    hi = is_k ? PART(k, i + 4u, n_hi) : PART(v, i + 4u, n_hi);
}

void main()
{
    uint r = gl_WorkGroupID.y;
    is_k = gl_WorkGroupID.z == 0u && p.k_words != 0u;
    uint n = is_k ? HEAD_DIM_K : HEAD_DIM_V, n_lanes = (n + 63u) / 64u * LANES;
    uint head = gl_GlobalInvocationID.x / n_lanes, lane = gl_GlobalInvocationID.x % n_lanes;
    int position = positions[r], sequence = slots[r];
    uint source = (is_k ? r * p.k_stride + p.k_col0 : r * p.v_stride + p.v_col0);
    load(n, lane, source + min(head, p.n_head_kv - 1u) * n);
    uint page = td_kv_page(position, sequence, p.n_slots, p.n_pages_max, p.n_pages);
    bool is_there = page < p.n_pages && head < p.n_head_kv;
    uint slot = uint(position) % TD_KV_SLOTS;
    uint cell = td_kv_cell(page, p.n_head_kv, head, is_k ? p.k_words : p.v_words);
    if (is_k || (TYPE_K == TYPE_V && HEAD_DIM_K == HEAD_DIM_V)) /* mostly one code for both */
        store(TYPE_K, HEAD_DIM_K, lane, is_there, cell, slot);
    else
        store(TYPE_V, HEAD_DIM_V, lane, is_there, cell, slot);
}
