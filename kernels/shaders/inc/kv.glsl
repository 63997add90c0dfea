/* Cache rows: geometry and decoding of one head's row of keys or values, for any cache type (GGUF
 * type id; a specialization constant, so that only one branch survives). Pure functions and no
 * buffers; layouts in inc/README. Encoding: inc/kv_encode.glsl.
 *
 * For a head_dim of n elements:
 *     td_kv_chunk(type)            elements of a chunk (16 bytes of quants)
 *     td_kv_chunks(type, n)        chunks of a row
 *     td_kv_high_words(type, n)    words of a row's side that hold its quants' high bits
 *     td_kv_side_words(type, n)    words of its side: those, then scales
 *     td_kv_scale_word(type, n, c) which of them has chunk c's scale
 * and, cell = td_kv_cell(...) being the first word of a page's rows of one head,
 *     td_kv_k_chunk_at, td_kv_v_chunk_at   uvec4 index of chunk c of slot s
 *     td_kv_k_side_at, td_kv_v_side_at     word index of word i of the side of slot s
 *
 * A unit is 8 elements: what a lane encodes, and a word of 4-bit quants. */

const uint TD_KV_F32 = 0u;
const uint TD_KV_F16 = 1u;
const uint TD_KV_Q4_0 = 2u;
const uint TD_KV_Q4_1 = 3u;
const uint TD_KV_Q5_0 = 6u;
const uint TD_KV_Q5_1 = 7u;
const uint TD_KV_Q8_0 = 8u;
const uint TD_KV_IQ4_NL = 20u;
const uint TD_KV_BF16 = 30u;
const uint TD_KV_Q6_0 = 133u;
const uint TD_KV_SLOTS = 64u; /* TD_PAGE_POSITIONS */

#define TD_KV_IS_HALF(type) ((type) == TD_KV_F16 || (type) == TD_KV_BF16)
#define TD_KV_CHUNK(type)                                                                          \
    ((type) == TD_KV_F32 ? 4u : TD_KV_IS_HALF(type) ? 8u : (type) == TD_KV_Q8_0 ? 16u : 32u)
#define TD_KV_BLOCK(type) ((type) == TD_KV_F32 ? 4u : TD_KV_IS_HALF(type) ? 8u : 32u)
#define TD_KV_CHUNKS(type, n)                                                                      \
    (((n) + TD_KV_BLOCK(type) - 1u) / TD_KV_BLOCK(type) * (TD_KV_BLOCK(type) / TD_KV_CHUNK(type)))
/* Bits of a quant above the lowest 4, and so words of them a block. */
#define TD_KV_HIGH(type)                                                                           \
    ((type) == TD_KV_Q6_0 ? 2u : (type) == TD_KV_Q5_0 || (type) == TD_KV_Q5_1 ? 1u : 0u)
#define TD_KV_HAS_MINIMUM(type) ((type) == TD_KV_Q4_1 || (type) == TD_KV_Q5_1)

bool td_kv_has_scales(uint type) { return TD_KV_BLOCK(type) == 32u; }
uint td_kv_chunk(uint type) { return TD_KV_CHUNK(type); }
uint td_kv_chunks(uint type, uint n) { return TD_KV_CHUNKS(type, n); }
uint td_kv_high_words(uint type, uint n) { return (n + 31u) / 32u * TD_KV_HIGH(type); }
uint td_kv_side_words(uint type, uint n)
{
    if (!td_kv_has_scales(type))
        return 0u;
    return td_kv_high_words(type, n) + (TD_KV_HAS_MINIMUM(type) ? (n + 31u) / 32u : (n + 63u) / 64u);
}
uint td_kv_scale_word(uint type, uint n, uint c)
{
    return td_kv_high_words(type, n) + (TD_KV_HAS_MINIMUM(type) ? c : c * td_kv_chunk(type) / 64u);
}

uint td_kv_cell(uint page, uint n_head_kv, uint head, uint row_words)
{
    return (page * n_head_kv + head) * TD_KV_SLOTS * row_words;
}

uint td_kv_k_chunk_at(uint cell, uint slot, uint c) { return cell / 4u + c * TD_KV_SLOTS + slot; }
uint td_kv_v_chunk_at(uint cell, uint n_chunks, uint slot, uint c)
{
    return cell / 4u + slot * n_chunks + c;
}
uint td_kv_k_side_at(uint cell, uint n_chunks, uint slot, uint i)
{
    return cell + n_chunks * (4u * TD_KV_SLOTS) + i * TD_KV_SLOTS + slot;
}
uint td_kv_v_side_at(uint cell, uint n_chunks, uint n_side_words, uint slot, uint i)
{
    return cell + n_chunks * (4u * TD_KV_SLOTS) + slot * n_side_words + i;
}

/* -- decoding ------------------------------------------------------------------------------- */

/* What a quant of 0 stands for, in scales. */
float td_kv_lowest(uint type)
{
    return type == TD_KV_Q8_0 ? -128.0 : type == TD_KV_Q6_0 ? -32.0 : type == TD_KV_Q5_0 ? -16.0 : -8.0;
}

/* The scale of chunk c and what is added, out of its scale word. */
vec2 td_kv_scale(uint type, uint word, uint c)
{
    vec2 both = unpackHalf2x16(word);
    if (TD_KV_HAS_MINIMUM(type))
        return both;
    float d = (c * td_kv_chunk(type) / 32u & 1u) == 0u ? both.x : both.y;
    return vec2(d, td_kv_lowest(type) * d);
}

vec4 td_kv_bytes(uint word)
{
    return vec4(word & 0xffu, word >> 8 & 0xffu, word >> 16 & 0xffu, word >> 24);
}

/* Which of a block's words of high bits has those of unit u. */
uint td_kv_high_word(uint type, uint u) { return TD_KV_HIGH(type) == 2u ? u & 1u : 0u; }

/* Its bit from where they are: elements 4j.. from bit j * TD_KV_HIGH of each byte on. */
uint td_kv_high_at(uint type, uint u)
{
    return TD_KV_HIGH(type) == 2u ? u << 1 & 4u : u << 1 & 6u;
}

/* The 16 values of IQ4_NL: a polynomial that is nowhere 0.44 away from them takes less than a table
 * on a GPU. */
vec4 td_kv_level(vec4 n)
{
    vec4 y = fma(n, vec4(0.00158604), vec4(0.0310864));
    y = fma(n, y, vec4(-1.37193));
    y = fma(n, y, vec4(24.1738));
    return roundEven(fma(n, y, vec4(-126.567)));
}

/* Elements 4j..4j+3 of a chunk; high: the high bits of their unit, from bit 0 on; scale: td_kv_scale
 * (unused by floats). The products of the quantized types are exact, so the fma gives what adding would. */
vec4 td_kv_decode(uint type, uvec4 q, uint high, vec2 scale, uint j)
{
    if (type == TD_KV_F32)
        return uintBitsToFloat(q);
    if (type == TD_KV_F16)
        return vec4(unpackHalf2x16(q[2u * j]), unpackHalf2x16(q[2u * j + 1u]));
    if (type == TD_KV_BF16) {
        uvec2 two = uvec2(q[2u * j], q[2u * j + 1u]);
        return uintBitsToFloat(uvec4(two << 16, two & 0xffff0000u).xzyw);
    }
    if (type == TD_KV_Q8_0)
        return fma(td_kv_bytes(q[j]), vec4(scale.x), vec4(scale.y));
    uint word = q[j / 2u] >> (4u * (j & 1u)) & 0x0f0f0f0fu;
    if (TD_KV_HIGH(type) == 1u)
        word |= (high >> (j & 1u) & 0x01010101u) << 4;
    if (TD_KV_HIGH(type) == 2u)
        word |= (high >> (2u * (j & 1u)) & 0x03030303u) << 4;
    if (type == TD_KV_IQ4_NL)
        return td_kv_level(td_kv_bytes(word)) * scale.x;
    return fma(td_kv_bytes(word), vec4(scale.x), vec4(scale.y));
}
