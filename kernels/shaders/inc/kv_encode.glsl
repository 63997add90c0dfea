/* Encoding of cache rows, word by word. Rounds as kernels/types.c does, so that a cache on any
 * device holds the same bytes: divisions are corrected to nearest, and conversions to half are
 * integer arithmetic, because the driver's own may round otherwise.
 *
 * The shader defines, before it includes this, float td_kv_element(uint i): element i of the
 * head's row, 0 from head_dim on. No arrays and no unrolled loops: a software driver would compile
 * them for most of a minute. */

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

struct td_kv_block {
    bool is_finite;
    float inverse;  /* of the scale */
    uint half_bits; /* the scale as it is stored */
};

/* The scale of the block of 32 elements from `first` on. A block that holds Inf or NaN gets NaN. */
td_kv_block td_kv_measure(uint type, uint first)
{
    float largest = 0.0, extreme = 0.0;
    bool is_finite = true;
    [[dont_unroll]] for (uint i = 0u; i < 32u; i++) {
        float f = td_kv_element(first + i);
        is_finite = is_finite && td_kv_is_finite(f);
        if (abs(f) > largest) {
            largest = abs(f);
            extreme = f;
        }
    }
    float d = type == TD_KV_Q8_0 ? td_kv_div_127(largest) : extreme * -0.125;
    return td_kv_block(is_finite, td_kv_inverse(d), is_finite ? td_kv_half(d) : 0x7e00u);
}

/* The quant of an element as it is stored. */
uint td_kv_quant(uint type, td_kv_block block, uint i)
{
    precise float scaled = td_kv_element(i) * block.inverse;
    if (type == TD_KV_Q8_0)
        return block.is_finite ? uint(clamp(td_kv_round(scaled), -128, 127) + 128) : 128u;
    scaled += 8.5;
    return block.is_finite ? uint(clamp(int(scaled), 0, 15)) : 8u;
}

/* The word of quants that begins with element `first`: td_kv_chunk(type) / 4 elements. `block` is
 * theirs (unused by F32 and F16). */
uint td_kv_encode_word(uint type, td_kv_block block, uint first)
{
    if (type == TD_KV_F32)
        return floatBitsToUint(td_kv_element(first));
    if (type == TD_KV_F16)
        return td_kv_half(td_kv_element(first)) | td_kv_half(td_kv_element(first + 1u)) << 16;
    uint word = 0u;
    [[dont_unroll]] for (uint b = 0u; b < 4u; b++) {
        uint quant = td_kv_quant(type, block, first + b);
        if (type == TD_KV_Q4_0)
            quant |= td_kv_quant(type, block, first + 4u + b) << 4;
        word |= quant << (8u * b);
    }
    return word;
}

/* Chunk c of the row. */
uvec4 td_kv_encode_chunk(uint type, td_kv_block block, uint c)
{
    uvec4 chunk = uvec4(0u);
    uint n = td_kv_chunk(type) / 4u;
    [[dont_unroll]] for (uint i = 0u; i < 4u; i++)
        chunk[i] = td_kv_encode_word(type, block, (4u * c + i) * n);
    return chunk;
}
