/* Encoding of cache rows, 8 elements a lane: two vectors lo, hi of them. Rounds as the encoders of
 * kernels/ do, so that a cache on any device holds the same bytes: divisions are corrected to nearest,
 * and conversions to half are our own, because the driver's may round otherwise. A block of 32
 * elements is four lanes', which tell each other what they know of it (the shader's affair). No
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

/* The same to the upper half of a float. */
uvec4 td_kv_bf16(vec4 f)
{
    uvec4 bits = floatBitsToUint(f);
    uvec4 rounded = bits + 0x7fffu + (bits >> 16 & 1u) >> 16;
    return mix(rounded, bits >> 16 | 0x40u, greaterThan(bits & 0x7fffffffu, uvec4(0x7f800000u)));
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
    if (d == 0.0 || !td_kv_is_finite(y) || !td_kv_is_finite(d))
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

/* What a lane tells of its elements: the extreme, twice, or with a minimum the ends; NaN where one is not
 * finite. */
vec2 td_kv_ends(uint type, vec4 lo, vec4 hi)
{
    float extreme = td_kv_extreme(td_kv_extreme(lo), td_kv_extreme(hi));
    if (!TD_KV_HAS_MINIMUM(type))
        return vec2(extreme);
    vec4 low = min(lo, hi), high = max(lo, hi);
    vec2 ends = vec2(min(min(low.x, low.y), min(low.z, low.w)),
                     max(max(high.x, high.y), max(high.z, high.w)));
    return td_kv_is_finite(extreme) ? ends : vec2(uintBitsToFloat(0x7fc00000u));
}

vec2 td_kv_join(uint type, vec2 a, vec2 b)
{
    if (!TD_KV_HAS_MINIMUM(type))
        return vec2(td_kv_extreme(a.x, b.x));
    bool is_finite = td_kv_is_finite(a.x) && td_kv_is_finite(b.x);
    return is_finite ? vec2(min(a.x, b.x), max(a.y, b.y)) : vec2(uintBitsToFloat(0x7fc00000u));
}

uint td_kv_pack(uvec4 bytes) { return bytes.x | bytes.y << 8 | bytes.z << 16 | bytes.w << 24; }

/* -- Q8_0 ----------------------------------------------------------------------------------- */

/* To nearest, halves away from zero, as roundf; + 128. */
uvec4 td_kv_bytes_of(vec4 v, float inverse)
{
    precise vec4 scaled = v * inverse;
    vec4 whole = trunc(scaled);
    ivec4 up = mix(ivec4(0), ivec4(sign(scaled)), greaterThanEqual(abs(scaled - whole), vec4(0.5)));
    return uvec4(clamp(ivec4(whole) + up, -128, 127) + 128);
}

/* -- types of 4, 5 and 6 bits: the arithmetic of kernels/types_encode.c --------------------- */

/* What quants stand for, in scales: the least and the largest. */
vec2 td_kv_range(uint type)
{
    if (type == TD_KV_IQ4_NL)
        return vec2(-127.0, 113.0);
    float n = TD_KV_HIGH(type) == 2u ? 64.0 : TD_KV_HIGH(type) == 1u ? 32.0 : 16.0;
    return TD_KV_HAS_MINIMUM(type) ? vec2(0.0, n - 1.0) : vec2(-0.5 * n, 0.5 * n - 1.0);
}

/* Candidates for the scale of a block (or for scale and minimum), and sums that lanes tell of each. */
const uint TD_KV_STEPS = 10u, TD_KV_INWARD = 11u;
const float TD_KV_GROWTH_MAX = 1.25;
#define TD_KV_TRIES(type)                                                                          \
    (TD_KV_BLOCK(type) != 32u || (type) == TD_KV_Q8_0 ? 0u                                         \
     : TD_KV_HAS_MINIMUM(type)                        ? TD_KV_INWARD                               \
                                                      : TD_KV_STEPS)
#define TD_KV_SUMS(type) (TD_KV_HAS_MINIMUM(type) ? 3u : 2u)

float td_kv_rounded(float f) { return unpackHalf2x16(td_kv_half(vec4(f)).x).x; }

/* The number of the level of IQ4_NL that is nearest. */
vec4 td_kv_number(vec4 v)
{
    const float between[15] = float[15](-115.5, -93.5, -74.0, -57.0, -42.0, -28.5, -16.0, -4.5, 7.0,
                                        19.0, 31.5, 45.5, 61.0, 79.0, 101.0);
    vec4 n = vec4(0.0);
    [[unroll]] for (uint i = 0u; i < 15u; i++)
        n += mix(vec4(0.0), vec4(1.0), greaterThan(v, vec4(between[i])));
    return n;
}

vec4 td_kv_round(uint type, vec4 v)
{
    vec2 range = td_kv_range(type);
    return type == TD_KV_IQ4_NL ? td_kv_level(td_kv_number(v))
                                : clamp(roundEven(v), range.x, range.y);
}

float td_kv_mad(float a, float b, float c)
{
    precise float product = a * b, sum = product + c;
    return sum;
}

/* Of candidate i: from where quants count, less the middle, and the inverse of the scale that makes
 * them. */
vec2 td_kv_try(uint type, vec2 ends, float middle, uint i)
{
    vec2 range = td_kv_range(type);
    if (!TD_KV_HAS_MINIMUM(type)) {
        const float steps[5] = float[5](0.0, -0.8, -0.4, 0.4, 0.8);
        precise float top = td_kv_mad(steps[i % 5u], type == TD_KV_IQ4_NL ? 8.0 : 1.0,
                                      i < 5u ? range.x : range.y);
        precise float inverse = top * td_kv_inverse(ends.x);
        return vec2(0.0, inverse);
    }
    const vec2 inward[TD_KV_INWARD] =
        vec2[TD_KV_INWARD](vec2(0.0), vec2(0.4, 0.0), vec2(0.0, 0.4), vec2(0.3), vec2(0.2, -0.8),
                           vec2(-0.8, 0.2), vec2(-0.2, 0.6), vec2(0.6, -0.2), vec2(-1.0, -0.2),
                           vec2(-0.2, -1.0), vec2(-1.0));
    precise float width = ends.y - ends.x, low = ends.x - middle, high = ends.y - middle;
    precise float unit = width * (1.0 / range.y);
    low = td_kv_mad(inward[i].x, unit, low);
    high = td_kv_mad(-inward[i].y, unit, high);
    precise float size = high - low, inverse = range.y * td_kv_inverse(size);
    return vec2(low, inverse);
}

/* Of a quarter of a block: products of values and quants, squares of quants, quants. */
vec3 td_kv_sums(uint type, vec4 lo, vec4 hi, vec2 by)
{
    precise vec4 a = (lo - by.x) * by.y, b = (hi - by.x) * by.y;
    a = td_kv_round(type, a);
    b = td_kv_round(type, b);
    precise vec3 sum = vec3(0.0);
    [[unroll]] for (uint i = 0u; i < 8u; i++) {
        float x = (i < 4u ? lo : hi)[i % 4u], q = (i < 4u ? a : b)[i % 4u];
        sum = vec3(td_kv_mad(x, q, sum.x), td_kv_mad(q, q, sum.y), sum.z + q);
    }
    return sum;
}

/* d, m and how large the sum of squares of what they miss is, beside that of the values. The values'
 * sum is of what they are more than the middle. */
vec3 td_kv_judge(uint type, vec3 sum, float x_sum, float middle, float d, float m)
{
    precise float error = d * td_kv_mad(d, sum.y, -2.0 * sum.x);
    if (!TD_KV_HAS_MINIMUM(type))
        return vec3(d, 0.0, error);
    precise float above = m - middle;
    error = td_kv_mad(2.0 * above, td_kv_mad(d, sum.z, -x_sum), td_kv_mad(32.0 * above, above, error));
    return vec3(d, m, error);
}

/* With the scale, and minimum, of plain rounding. */
vec3 td_kv_plain(uint type, vec2 ends, vec3 sum, float x_sum, float middle)
{
    vec2 range = td_kv_range(type);
    precise float width = ends.y - ends.x;
    precise float d = TD_KV_HAS_MINIMUM(type) ? width * (1.0 / range.y) : ends.x * (1.0 / range.x);
    return td_kv_judge(type, sum, x_sum, middle, td_kv_rounded(d), td_kv_rounded(ends.x));
}

/* With those of least squares for these quants. */
vec3 td_kv_fit(uint type, vec3 sum, float x_sum, float middle)
{
    precise float d = sum.x * td_kv_inverse(sum.y), m = 0.0;
    if (TD_KV_HAS_MINIMUM(type)) {
        precise float by = td_kv_mad(32.0, sum.y, -sum.z * sum.z), top = td_kv_mad(32.0, sum.x, -x_sum * sum.z);
        d = top * td_kv_inverse(by);
    }
    d = td_kv_rounded(d);
    m = middle + td_kv_mad(-d, sum.z, x_sum) * 0.03125;
    return td_kv_judge(type, sum, x_sum, middle, d, td_kv_rounded(m));
}

/* Scale and minimum to store, so that the block is as large as its values; `best`: d, m, error. */
vec2 td_kv_grown(vec3 best, float squares, float x_sum, float middle)
{
    precise float apart = x_sum * x_sum * 0.03125, mean = td_kv_mad(x_sum, 0.03125, middle);
    precise float met = -best.z - apart, all = squares - apart;
    precise float growth = all * td_kv_inverse(met);
    growth = growth > 1.0 ? growth : 1.0;
    growth = growth < TD_KV_GROWTH_MAX ? growth : TD_KV_GROWTH_MAX;
    precise float d = best.x * growth, below = best.y - mean;
    return vec2(d, td_kv_mad(growth, below, mean));
}

/* Quants as they are stored. */
uvec4 td_kv_quants(uint type, vec4 v, float d, float m)
{
    float inverse = td_kv_inverse(d);
    precise vec4 scaled = TD_KV_HAS_MINIMUM(type) ? (v - m) * inverse : v * inverse;
    scaled = inverse == 0.0 ? vec4(0.0) : scaled;
    if (type == TD_KV_IQ4_NL)
        return uvec4(td_kv_number(scaled));
    return uvec4(td_kv_round(type, scaled) - td_kv_range(type).x);
}
