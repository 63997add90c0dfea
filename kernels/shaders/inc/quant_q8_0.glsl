/* Q8_0: value = quant d. A group of 8 blocks is a unit of 8 halves d, then 2 units a block. */
#define TD_IS_INT8 1

td_block td_load_block(uint base, uint n_k, uint quad, uint j)
{
    uint group = quad / 2u * 17u, half4 = quad % 2u;
    uint first = group + 1u + half4 * 8u + 2u * j;
    uvec4 a = td_unit(base, first), b = td_unit(base, first + 1u);
    uvec2 halves = td_unit_half(base, group, half4);
    td_block block;
    block.words = uint[8](a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w);
    block.scales = vec2(unpackHalf2x16(halves[j / 2u])[j % 2u], 0.0);
    return block;
}

ivec2 td_start(ivec2 sums) { return ivec2(0); }

float td_fold(float sum, vec2 scales, ivec2 dots, float d, float q_sum)
{
    precise float folded = fma(scales.x * float(dots.x), d, sum);
    return folded;
}

vec4 td_block_vec4(td_block block, uint j)
{
    precise vec4 v = td_signed_bytes(block.words[j]) * block.scales.x;
    return v;
}
