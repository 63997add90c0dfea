/* Q4_0: value = (nibble - 8) d. A group of 8 blocks is a unit of 8 halves d, then a unit a block. */
#define TD_IS_INT8 1

td_block td_load_block(uint base, uint n_k, uint quad, uint j)
{
    uint group = quad / 2u * 9u, half4 = quad % 2u;
    uvec4 a = td_unit(base, group + 1u + half4 * 4u + j);
    uvec2 halves = td_unit_half(base, group, half4);
    td_block block;
    block.words = uint[8](a.x & 0x0f0f0f0fu, a.x >> 4 & 0x0f0f0f0fu, a.y & 0x0f0f0f0fu,
                          a.y >> 4 & 0x0f0f0f0fu, a.z & 0x0f0f0f0fu, a.z >> 4 & 0x0f0f0f0fu,
                          a.w & 0x0f0f0f0fu, a.w >> 4 & 0x0f0f0f0fu);
    block.scales = vec2(unpackHalf2x16(halves[j / 2u])[j % 2u], 0.0);
    return block;
}

ivec2 td_start(ivec2 sums) { return ivec2(-8 * (sums.x + sums.y), 0); }

float td_fold(float sum, vec2 scales, ivec2 dots, float d, float q_sum)
{
    precise float folded = fma(scales.x * float(dots.x), d, sum);
    return folded;
}

/* Both products are exact, so the fma gives what the subtraction first would. */
vec4 td_block_vec4(td_block block, uint j)
{
    precise vec4 v =
        fma(td_signed_bytes(block.words[j]), vec4(block.scales.x), vec4(-8.0 * block.scales.x));
    return v;
}
