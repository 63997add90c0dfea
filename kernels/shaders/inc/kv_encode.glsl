/* Encoding of cache rows, 8 elements a lane: two vectors lo, hi of them. Rounds as kernels/types.c
 * does, so that a cache on any device holds the same bytes: divisions are corrected to nearest, and
 * conversions to half are our own, because the driver's may round otherwise. A block
 * of 32 elements is four lanes', which tell each other their extremes (the shader's affair). No
 * branches by element: all of a vector go the same way. */

bool td_kv_is_finite(float f) { return (floatBitsToUint(f) & 0x7fffffffu) < 0x7f800000u; }

/* To nearest even; NaN stays NaN, as td_f32_to_f16 in kernels/types.c has it. A power of two is added
 * whose last place is the half's, so that the sum rounds; what is too large for a half is 2^16. */
uvec4 td_kv_half(vec4 f)
{
    uvec4 bits = floatBitsToUint(f), size = bits & 0x7fffffffu;
    uvec4 bounded = min(size, uvec4(0x47800000u));
    vec4 power = uintBitsToFloat(max(bounded & 0x7f800000u, uvec4(0x38800000u)) + 0x07800000u);
    precise vec4 sum = uintBitsToFloat(bounded) * 4.0 + power;
    uvec4 rounded = floatBitsToUint(sum);
    uvec4 half_bits = (rounded >> 13 & 0x7c00u) + (rounded & 0xfffu);
    uvec4 nan = 0x7e00u | (bits >> 13 & 0x1ffu);
    half_bits = mix(half_bits, nan, greaterThan(size, uvec4(0x7f800000u)));
    return (bits >> 16 & 0x8000u) | half_bits;
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

/* The one of largest size, of equals the first. By bits: Inf and NaN are larger than all. */
float td_kv_extreme(float a, float b)
{
    return (floatBitsToUint(b) & 0x7fffffffu) > (floatBitsToUint(a) & 0x7fffffffu) ? b : a;
}

float td_kv_extreme(vec4 v)
{
    return td_kv_extreme(td_kv_extreme(v.x, v.y), td_kv_extreme(v.z, v.w));
}

/* The scale of a block whose extreme is this. */
float td_kv_block_scale(uint type, float extreme)
{
    return type == TD_KV_Q8_0 ? td_kv_div_127(abs(extreme)) : extreme * -0.125;
}

/* The same as it is stored. A block that holds Inf or NaN gets NaN. */
uint td_kv_scale_bits(float extreme, float d)
{
    return td_kv_is_finite(extreme) ? td_kv_half(vec4(d)).x : 0x7e00u;
}

/* Quants as they are stored, of a block of finite numbers; inverse is that of its scale. */
uvec4 td_kv_quants(uint type, vec4 v, float inverse)
{
    precise vec4 scaled = v * inverse;
    if (type == TD_KV_Q8_0) { /* to nearest, halves away from zero, as roundf */
        vec4 whole = trunc(scaled);
        ivec4 up = mix(ivec4(0), ivec4(sign(scaled)),
                       greaterThanEqual(abs(scaled - whole), vec4(0.5)));
        return uvec4(clamp(ivec4(whole) + up, -128, 127) + 128);
    }
    scaled += 8.5;
    return uvec4(clamp(ivec4(scaled), 0, 15));
}

uint td_kv_pack(uvec4 bytes) { return bytes.x | bytes.y << 8 | bytes.z << 16 | bytes.w << 24; }
