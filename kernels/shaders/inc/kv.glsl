/* Cache rows: geometry and decoding of one head's row of keys or values, for any cache type (GGUF
 * type id; a specialization constant, so that only one branch survives). Pure functions and no
 * buffers; layouts in inc/README. Encoding: inc/kv_encode.glsl.
 *
 * For a head_dim of n elements:
 *     td_kv_chunk(type)            elements of a chunk (16 bytes of quants)
 *     td_kv_chunks(type, n)        chunks of a row
 *     td_kv_scale_words(type, n)   words of scales of a row
 * and, cell = td_kv_cell(...) being the first word of a page's rows of one head,
 *     td_kv_k_chunk_at, td_kv_v_chunk_at   uvec4 index of chunk c of slot s
 *     td_kv_k_scale_at, td_kv_v_scale_at   word index of scale word i of slot s */

const uint TD_KV_F32 = 0u;
const uint TD_KV_F16 = 1u;
const uint TD_KV_Q4_0 = 2u;
const uint TD_KV_Q8_0 = 8u;
const uint TD_KV_SLOTS = 64u; /* TD_PAGE_POSITIONS */

#define TD_KV_CHUNK(type)                                                                          \
    ((type) == TD_KV_F32 ? 4u : (type) == TD_KV_F16 ? 8u : (type) == TD_KV_Q8_0 ? 16u : 32u)
#define TD_KV_BLOCK(type) ((type) == TD_KV_F32 ? 4u : (type) == TD_KV_F16 ? 8u : 32u)
#define TD_KV_CHUNKS(type, n)                                                                      \
    (((n) + TD_KV_BLOCK(type) - 1u) / TD_KV_BLOCK(type) * (TD_KV_BLOCK(type) / TD_KV_CHUNK(type)))

bool td_kv_has_scales(uint type) { return type == TD_KV_Q4_0 || type == TD_KV_Q8_0; }
uint td_kv_chunk(uint type) { return TD_KV_CHUNK(type); }
uint td_kv_chunks(uint type, uint n) { return TD_KV_CHUNKS(type, n); }
uint td_kv_scale_words(uint type, uint n) { return td_kv_has_scales(type) ? (n + 63u) / 64u : 0u; }

uint td_kv_cell(uint page, uint n_head_kv, uint head, uint row_words)
{
    return (page * n_head_kv + head) * TD_KV_SLOTS * row_words;
}

uint td_kv_k_chunk_at(uint cell, uint slot, uint c) { return cell / 4u + c * TD_KV_SLOTS + slot; }
uint td_kv_v_chunk_at(uint cell, uint n_chunks, uint slot, uint c)
{
    return cell / 4u + slot * n_chunks + c;
}
uint td_kv_k_scale_at(uint cell, uint n_chunks, uint slot, uint i)
{
    return cell + n_chunks * (4u * TD_KV_SLOTS) + i * TD_KV_SLOTS + slot;
}
uint td_kv_v_scale_at(uint cell, uint n_chunks, uint n_scale_words, uint slot, uint i)
{
    return cell + n_chunks * (4u * TD_KV_SLOTS) + slot * n_scale_words + i;
}

/* -- decoding ------------------------------------------------------------------------------- */

/* The scale of chunk c out of its scale word (word c * chunk / 64 of the row). */
float td_kv_scale(uint type, uint word, uint c)
{
    vec2 both = unpackHalf2x16(word);
    return (c * td_kv_chunk(type) / 32u & 1u) == 0u ? both.x : both.y;
}

vec4 td_kv_bytes(uint word)
{
    return vec4(word & 0xffu, word >> 8 & 0xffu, word >> 16 & 0xffu, word >> 24);
}

/* Elements 4j..4j+3 of a chunk; d is its scale (unused by F32 and F16). The products of the
 * quantized types are exact, so the fma gives what the subtraction first would. */
vec4 td_kv_decode(uint type, uvec4 q, float d, uint j)
{
    if (type == TD_KV_F32)
        return uintBitsToFloat(q);
    if (type == TD_KV_F16)
        return vec4(unpackHalf2x16(q[2u * j]), unpackHalf2x16(q[2u * j + 1u]));
    precise vec4 v;
    if (type == TD_KV_Q8_0)
        v = fma(td_kv_bytes(q[j]), vec4(d), vec4(-128.0 * d));
    else
        v = fma(td_kv_bytes(q[j / 2u] >> (4u * (j & 1u)) & 0x0f0f0f0fu), vec4(d), vec4(-8.0 * d));
    return v;
}
