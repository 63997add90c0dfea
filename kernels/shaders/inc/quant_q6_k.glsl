/* Q6_K: value = (d scale) (6 bits - 32), over two halves of 16 a block; d scale and its 32-fold are
 * exact. A group of 8 blocks is a unit of 16 scales, then twice 4 units of low nibbles and 2 of high
 * pairs; behind the groups come units of 8 halves d. */
#define TD_IS_INT8 1
#define TD_TWO_DOTS

td_block td_load_block(uint base, uint n_k, uint quad, uint j)
{
    uint i_group = quad / 2u, group = i_group * 13u, half4 = quad % 2u;
    uint first = group + 1u + half4 * 6u;
    uvec4 a = td_unit(base, first + j);
    uvec2 high = td_unit_half(base, first + 4u + j / 2u, j % 2u);
    uint scales = td_unit_half(base, group, half4)[j / 2u] >> (16u * (j % 2u));
    uint halves = td_unit_word(base, n_k / 256u * 13u + i_group / 8u, i_group / 2u % 4u);
    float d = unpackHalf2x16(halves)[i_group % 2u];
    td_block block;
    [[unroll]] for (uint i = 0u; i < 8u; i++)
        block.words[i] = (a[i / 2u] >> (4u * (i % 2u)) & 0x0f0f0f0fu) |
                         (high[i / 4u] >> (2u * (i % 4u)) & 0x03030303u) << 4;
    precise vec2 both = d * vec2(bitfieldExtract(int(scales), 0, 8),
                                 bitfieldExtract(int(scales), 8, 8));
    block.scales = both;
    return block;
}

ivec2 td_start(ivec2 sums) { return -32 * sums; }

float td_fold(float sum, vec2 scales, ivec2 dots, float d, float q_sum)
{
    precise float folded =
        fma(fma(scales.y, float(dots.y), scales.x * float(dots.x)), d, sum);
    return folded;
}

vec4 td_block_vec4(td_block block, uint j)
{
    float step = block.scales[j / 4u];
    precise vec4 v = fma(td_signed_bytes(block.words[j]), vec4(step), vec4(-32.0 * step));
    return v;
}
