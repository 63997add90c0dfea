/* Writes k[r] ([n_head_kv][head_dim_k]) and v[r] into the page slot of the row's position, in the
 * cache's types. An invocation encodes one unit of 64 elements of one head (inc/kv.glsl).
 * Grid: units of a row / 32, rows, K or V. Rows whose slot, position or page does not exist are
 * left alone. Specialization: 0 TYPE_K, 1 TYPE_V. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "inc/push.glsl"
#include "inc/kv.glsl"

layout(constant_id = 0) const uint TYPE_K = TD_KV_F16;
layout(constant_id = 1) const uint TYPE_V = TD_KV_F16;

layout(local_size_x = 32) in;
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

const uint UNIT = 64u; /* elements */

void store_k(uint i_k, uint page, uint head, uint slot, uint first)
{
    float elements[64];
    for (uint i = 0u; i < UNIT; i++)
        elements[i] = first + i < p.head_dim_k ? k[i_k + first + i] : 0.0;
    td_kv_unit unit = td_kv_encode(TYPE_K, elements);
    uint cell = td_kv_cell(page, p.n_head_kv, head, p.k_words);
    uint n_chunks = td_kv_chunks(TYPE_K, p.head_dim_k);
    uint c0 = first / td_kv_chunk(TYPE_K);
    for (uint c = 0u; c < UNIT / td_kv_chunk(TYPE_K); c++)
        if (c0 + c < n_chunks)
            cache_k4[td_kv_k_chunk_at(cell, slot, c0 + c)] = unit.q[c];
    if (td_kv_has_scales(TYPE_K))
        cache_k[td_kv_k_scale_at(cell, n_chunks, slot, first / UNIT)] = unit.scales;
}

void store_v(uint i_v, uint page, uint head, uint slot, uint first)
{
    float elements[64];
    for (uint i = 0u; i < UNIT; i++)
        elements[i] = first + i < p.head_dim_v ? v[i_v + first + i] : 0.0;
    td_kv_unit unit = td_kv_encode(TYPE_V, elements);
    uint cell = td_kv_cell(page, p.n_head_kv, head, p.v_words);
    uint n_chunks = td_kv_chunks(TYPE_V, p.head_dim_v);
    uint n_scale_words = td_kv_scale_words(TYPE_V, p.head_dim_v);
    uint c0 = first / td_kv_chunk(TYPE_V);
    for (uint c = 0u; c < UNIT / td_kv_chunk(TYPE_V); c++)
        if (c0 + c < n_chunks)
            cache_v4[td_kv_v_chunk_at(cell, n_chunks, slot, c0 + c)] = unit.q[c];
    if (td_kv_has_scales(TYPE_V))
        cache_v[td_kv_v_scale_at(cell, n_chunks, n_scale_words, slot, first / UNIT)] = unit.scales;
}

void main()
{
    uint r = gl_WorkGroupID.y;
    bool is_k = gl_WorkGroupID.z == 0u;
    uint head_dim = is_k ? p.head_dim_k : p.head_dim_v;
    uint n_units = (head_dim + UNIT - 1u) / UNIT;
    uint head = gl_GlobalInvocationID.x / n_units, i_unit = gl_GlobalInvocationID.x % n_units;
    if (head >= p.n_head_kv)
        return;
    uint position = uint(positions[r]), sequence = uint(slots[r]);
    if (sequence >= p.n_slots || position / TD_KV_SLOTS >= p.n_pages_max)
        return;
    uint page = uint(pages[sequence * p.n_pages_max + position / TD_KV_SLOTS]);
    if (page >= p.n_pages)
        return;
    uint slot = position % TD_KV_SLOTS, first = i_unit * UNIT;
    if (is_k)
        store_k(r * p.k_stride + p.k_col0 + head * head_dim, page, head, slot, first);
    else
        store_v(r * p.v_stride + p.v_col0 + head * head_dim, page, head, slot, first);
}
