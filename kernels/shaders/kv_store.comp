/* Writes k[r] ([n_head_kv][head_dim_k]) and v[r] into the page slot of the row's position, in the
 * cache's types. An invocation encodes one unit of 64 elements of one head (inc/kv.glsl).
 * Grid: units of a row / 32, rows, K or V. Rows whose slot, position or page does not exist are
 * left alone. Specialization: 0 TYPE_K, 1 TYPE_V. */
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require

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

bool is_k;                 /* what this invocation stores */
uint i_source, n_elements; /* where the head's row begins in k or v, and its length */

float td_kv_element(uint i)
{
    if (i >= n_elements)
        return 0.0;
    return is_k ? k[i_source + i] : v[i_source + i];
}

#include "inc/kv_encode.glsl"

void put_chunk(uint cell, uint n_chunks, uint slot, uint c, uvec4 chunk)
{
    if (is_k)
        cache_k4[td_kv_k_chunk_at(cell, slot, c)] = chunk;
    else
        cache_v4[td_kv_v_chunk_at(cell, n_chunks, slot, c)] = chunk;
}

/* Encodes the elements first..first+63 of the row, a block of 32 at a time. */
void store_unit(uint type, uint cell, uint slot, uint first)
{
    uint n_chunks = td_kv_chunks(type, n_elements), scales = 0u;
    uint per_block = 32u / td_kv_chunk(type);
    [[dont_unroll]] for (uint b = 0u; b < 2u; b++) {
        td_kv_block block = td_kv_block(true, 0.0, 0u);
        if (td_kv_has_scales(type))
            block = td_kv_measure(type, first + 32u * b);
        scales |= block.half_bits << (16u * b);
        uint c0 = first / td_kv_chunk(type) + b * per_block;
        [[dont_unroll]] for (uint c = c0; c < min(c0 + per_block, n_chunks); c++)
            put_chunk(cell, n_chunks, slot, c, td_kv_encode_chunk(type, block, c));
    }
    if (!td_kv_has_scales(type))
        return;
    uint i = first / UNIT;
    if (is_k)
        cache_k[td_kv_k_scale_at(cell, n_chunks, slot, i)] = scales;
    else
        cache_v[td_kv_v_scale_at(cell, n_chunks, td_kv_scale_words(type, n_elements), slot, i)] =
            scales;
}

void main()
{
    uint r = gl_WorkGroupID.y;
    is_k = gl_WorkGroupID.z == 0u;
    n_elements = is_k ? p.head_dim_k : p.head_dim_v;
    uint n_units = (n_elements + UNIT - 1u) / UNIT;
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
    if (is_k) {
        i_source = r * p.k_stride + p.k_col0 + head * n_elements;
        store_unit(TYPE_K, td_kv_cell(page, p.n_head_kv, head, p.k_words), slot, first);
    } else {
        i_source = r * p.v_stride + p.v_col0 + head * n_elements;
        store_unit(TYPE_V, td_kv_cell(page, p.n_head_kv, head, p.v_words), slot, first);
    }
}
