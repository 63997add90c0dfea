/* Q4_K: value = (d scale) nibble - d_min minimum, over blocks of 32. All products are exact in f32
 * (11 + 6 + 4 bits). A group of 8 blocks is a unit of scales, then a unit a block. */
#define TD_IS_INT8 1

td_block td_load_block(uint base, uint n_k, uint quad, uint j)
{
    uint group = quad / 2u * 9u, half4 = quad % 2u;
    uvec4 meta = td_unit(base, group), a = td_unit(base, group + 1u + half4 * 4u + j);
    vec2 d = unpackHalf2x16(meta.x); /* d, d_min */
    uint shift = 16u * half4 + 4u * j;
    uint high = meta.w >> shift;
    uint scale = (meta.y >> shift & 15u) | (high & 3u) << 4;
    uint minimum = (meta.z >> shift & 15u) | (high & 12u) << 2;
    td_block block;
    block.words = uint[8](a.x & 0x0f0f0f0fu, a.x >> 4 & 0x0f0f0f0fu, a.y & 0x0f0f0f0fu,
                          a.y >> 4 & 0x0f0f0f0fu, a.z & 0x0f0f0f0fu, a.z >> 4 & 0x0f0f0f0fu,
                          a.w & 0x0f0f0f0fu, a.w >> 4 & 0x0f0f0f0fu);
    precise vec2 scales = vec2(d.x * float(scale), -(d.y * float(minimum)));
    block.scales = scales;
    return block;
}

ivec2 td_start(ivec2 sums) { return ivec2(0); }

float td_fold(float sum, vec2 scales, ivec2 dots, float d, float q_sum)
{
    precise float folded = fma(fma(scales.y, q_sum, scales.x * float(dots.x)), d, sum);
    return folded;
}

vec4 td_block_vec4(td_block block, uint j)
{
    precise vec4 v =
        fma(td_signed_bytes(block.words[j]), vec4(block.scales.x), vec4(block.scales.y));
    return v;
}
