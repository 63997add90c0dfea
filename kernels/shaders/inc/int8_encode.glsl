/* Encodes a block of 32 activations; inc/int8.glsl says how. */
void td_int8_encode(vec4 v[8], out uvec4 encoded[3])
{
    bool is_finite = true;
    vec4 tops = vec4(0.0);
    [[unroll]] for (uint j = 0u; j < 8u; j++) {
        /* By bits: comparisons with NaN and Inf are the driver's to define. */
        uvec4 size = floatBitsToUint(v[j]) & 0x7fffffffu;
        is_finite = is_finite && all(lessThan(size, uvec4(0x7f800000u)));
        tops = max(tops, uintBitsToFloat(size));
    }
    float top = max(max(tops.x, tops.y), max(tops.z, tops.w));
    bool is_coded = is_finite && top >= uintBitsToFloat(0x03800000u); /* 2^-120 */
    precise float inverse = is_coded ? 127.0 / top : 0.0;
    precise float d = is_coded ? top / 127.0 : is_finite ? 0.0 : uintBitsToFloat(0x7fc00000u);
    uint words[8];
    ivec2 sums = ivec2(0);
    [[unroll]] for (uint j = 0u; j < 8u; j++) {
        precise vec4 scaled = v[j] * inverse;
        ivec4 i = is_coded ? ivec4(roundEven(scaled)) : ivec4(0);
        sums[j / 4u] += (i.x + i.y) + (i.z + i.w);
        uvec4 bytes = uvec4(i) & 0xffu;
        words[j] = bytes.x | bytes.y << 8 | bytes.z << 16 | bytes.w << 24;
    }
    encoded[0] = uvec4(words[0], words[1], words[2], words[3]);
    encoded[1] = uvec4(words[4], words[5], words[6], words[7]);
    encoded[2] = uvec4(floatBitsToUint(d), floatBitsToUint(float(sums.x + sums.y)), uvec2(sums));
}

#ifdef TD_INT8_LANES
/* The same by 8 lanes of a workgroup of TD_INT8_LANES, t being this one's index in it: v are its 4
 * elements. All lanes call it. The word is this lane's of the block's 8; the last unit is only told
 * to the first of them. */
shared uint td_int8_tops[TD_INT8_LANES];
shared int td_int8_sums[TD_INT8_LANES];

uint td_int8_encode_together(uint t, vec4 v, out uvec4 last)
{
    uvec4 size = floatBitsToUint(v) & 0x7fffffffu;
    td_int8_tops[t] = max(max(size.x, size.y), max(size.z, size.w));
    barrier();
    uint first = t / 8u * 8u, top_bits = 0u;
    [[unroll]] for (uint j = 0u; j < 8u; j++)
        top_bits = max(top_bits, td_int8_tops[first + j]);
    bool is_finite = top_bits < 0x7f800000u, is_coded = is_finite && top_bits >= 0x03800000u;
    float top = uintBitsToFloat(top_bits);
    precise float inverse = is_coded ? 127.0 / top : 0.0;
    precise float d = is_coded ? top / 127.0 : is_finite ? 0.0 : uintBitsToFloat(0x7fc00000u);
    precise vec4 scaled = v * inverse;
    ivec4 i = is_coded ? ivec4(roundEven(scaled)) : ivec4(0);
    td_int8_sums[t] = (i.x + i.y) + (i.z + i.w);
    barrier();
    ivec2 sums = ivec2(0);
    if (t == first)
        [[unroll]] for (uint j = 0u; j < 8u; j++)
            sums[j / 4u] += td_int8_sums[first + j];
    last = uvec4(floatBitsToUint(d), floatBitsToUint(float(sums.x + sums.y)), uvec2(sums));
    uvec4 bytes = uvec4(i) & 0xffu;
    return bytes.x | bytes.y << 8 | bytes.z << 16 | bytes.w << 24;
}
#endif
