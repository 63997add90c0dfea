/* Cache rows: geometry, decoding and encoding of one head's row of keys or values, for any cache
 * type (GGUF type id; a specialization constant, so that only one branch survives). Pure functions
 * and no buffers; layouts in inc/README. Encoding rounds as kernels/types.c does, so that a cache
 * on any device holds the same bytes: divisions are corrected to nearest, conversions to half are
 * integer arithmetic, because the driver's own may round otherwise.
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

/* -- encoding: a unit of 64 elements (two quantized blocks, which share a scale word) --------- */

struct td_kv_unit {
    uvec4 q[16]; /* the unit's 64 / td_kv_chunk(type) chunks */
    uint scales;
};

bool td_kv_is_finite(float f) { return (floatBitsToUint(f) & 0x7fffffffu) < 0x7f800000u; }

/* To nearest even; NaN stays NaN. See td_f32_to_f16 in kernels/types.c. */
uint td_kv_half(float f)
{
    uint bits = floatBitsToUint(f);
    uint sign = bits >> 16 & 0x8000u;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u)
        return sign | 0x7e00u | (bits >> 13 & 0x1ffu);
    if (bits >= 0x477ff000u)
        return sign | 0x7c00u;
    if (bits >= 0x38800000u)
        return sign | (bits - 0x38000000u + 0xfffu + (bits >> 13 & 1u)) >> 13;
    uint exponent = bits >> 23;
    if (exponent < 102u)
        return sign;
    uint shift = 126u - exponent;
    uint mantissa = (bits & 0x7fffffu) | 0x800000u;
    uint half_bits = mantissa >> shift;
    uint rest = mantissa & ((1u << shift) - 1u);
    uint tie = 1u << (shift - 1u);
    if (rest > tie || (rest == tie && (half_bits & 1u) != 0u))
        half_bits++;
    return sign | half_bits;
}

/* a / 127 to nearest: Vulkan's division may be 2.5 ulp off. Two corrections by the exact residual
 * (Markstein 1990); 1/127 is rounded by the compiler. */
float td_kv_div_127(float a)
{
    const float inverse = 1.0 / 127.0;
    precise float q = a * inverse;
    q = fma(fma(-q, 127.0, a), inverse, q);
    q = fma(fma(-q, 127.0, a), inverse, q);
    return q;
}

/* 1 / d to nearest, or 0 where that overflows: then d is zero as a half. */
float td_kv_inverse(float d)
{
    precise float y = 1.0 / d;
    if (d == 0.0 || !td_kv_is_finite(y))
        return 0.0;
    y = fma(fma(-d, y, 1.0), y, y);
    y = fma(fma(-d, y, 1.0), y, y);
    return y;
}

/* To the nearest integer, halves away from zero, as roundf. */
int td_kv_round(float f)
{
    float whole = trunc(f);
    return int(whole) + (abs(f - whole) >= 0.5 ? (f < 0.0 ? -1 : 1) : 0);
}

/* The quants of elements first..first+31 as 32 bytes or nibbles; the half d in the low bits. A
 * block that holds Inf or NaN gets a NaN scale. */
uint td_kv_encode_block(uint type, float v[64], uint first, out uint quants[32])
{
    float largest = 0.0, extreme = 0.0;
    bool is_finite = true;
    for (uint i = 0u; i < 32u; i++) {
        float f = v[first + i];
        is_finite = is_finite && td_kv_is_finite(f);
        if (abs(f) > largest) {
            largest = abs(f);
            extreme = f;
        }
    }
    float d = type == TD_KV_Q8_0 ? td_kv_div_127(largest) : extreme * -0.125;
    float inverse = td_kv_inverse(d);
    for (uint i = 0u; i < 32u; i++) {
        precise float scaled = v[first + i] * inverse;
        if (type == TD_KV_Q8_0) {
            quants[i] = is_finite ? uint(clamp(td_kv_round(scaled), -128, 127) + 128) : 128u;
        } else {
            scaled += 8.5;
            quants[i] = is_finite ? uint(clamp(int(scaled), 0, 15)) : 8u;
        }
    }
    return is_finite ? td_kv_half(d) : 0x7e00u;
}

/* Elements past the head's end must be zeros. */
td_kv_unit td_kv_encode(uint type, float v[64])
{
    td_kv_unit unit;
    unit.scales = 0u;
    for (uint i = 0u; i < 16u; i++)
        unit.q[i] = uvec4(0u);
    if (type == TD_KV_F32) {
        for (uint i = 0u; i < 64u; i++)
            unit.q[i / 4u][i % 4u] = floatBitsToUint(v[i]);
        return unit;
    }
    if (type == TD_KV_F16) {
        for (uint i = 0u; i < 64u; i++)
            unit.q[i / 8u][i % 8u / 2u] |= td_kv_half(v[i]) << (16u * (i % 2u));
        return unit;
    }
    for (uint b = 0u; b < 2u; b++) {
        uint quants[32];
        unit.scales |= td_kv_encode_block(type, v, 32u * b, quants) << (16u * b);
        for (uint i = 0u; i < 32u; i++) {
            if (type == TD_KV_Q8_0)
                unit.q[2u * b + i / 16u][i % 16u / 4u] |= quants[i] << (8u * (i % 4u));
            else /* byte i % 4 of word i / 8, low or high nibble */
                unit.q[b][i / 8u] |= quants[i] << (8u * (i % 4u) + 4u * (i / 4u % 2u));
        }
    }
    return unit;
}
