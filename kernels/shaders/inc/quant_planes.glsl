/* Blocks whose quants are bits in planes (four neighbours come out of a word with a shift and a
 * mask), and all their kinds of scales. TD_LOOKUP: the 4 bits name one of 16 signed bytes, and lie
 * in the order of the elements. */

#ifdef TD_LOOKUP
#define TD_HAS_TABLE

/* By a byte of two quants: what they stand for. */
shared uint td_pairs[256];

void td_begin()
{
    const uvec4 bytes = TD_LOOKUP;
    for (uint i = gl_LocalInvocationIndex; i < 256u; i += gl_WorkGroupSize.x) {
        uint low = bytes[i / 4u % 4u] >> 8u * (i % 4u) & 255u;
        uint high = bytes[i / 64u] >> 8u * (i / 16u % 4u) & 255u;
        td_pairs[i] = low | high << 8;
    }
    barrier();
}

/* The 8 quants of a word of nibbles. */
uvec2 td_look_up(uint nibbles)
{
    return uvec2(td_pairs[nibbles & 255u] | td_pairs[nibbles >> 8 & 255u] << 16,
                 td_pairs[nibbles >> 16 & 255u] | td_pairs[nibbles >> 24] << 16);
}
#else
uvec2 td_look_up(uint nibbles)
{
    return uvec2(nibbles & 0x0f0f0f0fu, nibbles >> 4 & 0x0f0f0f0fu);
}
#endif

/* (word >> from & mask) << to, with one shift. */
uint td_bits(uint word, uint from, uint mask, uint to)
{
    return (from > to ? word >> from - to : word << to - from) & mask << to;
}

/* The signed or unsigned bytes of block j. */
uint[8] td_load_quants(uint base, uint quad, uint j)
{
    uint words[8];
    uint first = td_low(quad);
    if (LOW == 32u) {
        uvec4 a = td_unit(base, first + 2u * j), b = td_unit(base, first + 2u * j + 1u);
        words = uint[8](a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w);
    } else if (LOW == 16u) {
        uvec4 a = td_unit(base, first + j);
        uvec2 x = td_look_up(a.x), y = td_look_up(a.y), z = td_look_up(a.z), u = td_look_up(a.w);
        words = uint[8](x.x, x.y, y.x, y.y, z.x, z.y, u.x, u.y);
    } else if (LOW == 8u) {
        uvec2 a = td_unit_half(base, first + j / 2u, j % 2u);
        [[unroll]] for (uint i = 0u; i < 8u; i++)
            words[i] = a[i / 4u] >> (2u * (i % 4u)) & 0x03030303u;
    } else { /* 0 or 1 for -1 or 1: twice the bit, less the offset */
        uint a = td_unit_word(base, first, j);
        [[unroll]] for (uint i = 0u; i < 8u; i++)
            words[i] = td_bits(a, i, 0x01010101u, 1u);
    }
    if (HIGH == 8u) {
        uvec2 a = td_unit_half(base, td_high(quad) + j / 2u, j % 2u);
        [[unroll]] for (uint i = 0u; i < 8u; i++)
            words[i] |= td_bits(a[i / 4u], 2u * (i % 4u), 0x03030303u, LOW / 4u);
    } else if (HIGH == 4u) {
        uint a = td_unit_word(base, td_high(quad), j);
        [[unroll]] for (uint i = 0u; i < 8u; i++)
            words[i] |= td_bits(a, i, 0x01010101u, LOW / 4u);
    }
    return words;
}

vec4 td_load_scales(uint base, uint n_k, uint quad, uint j)
{
    uint group = td_group(quad), half4 = quad % 2u;
    precise vec4 scales = vec4(0.0);
    if (SCALES == TD_HALF) {
        uvec2 halves = td_unit_half(base, group, half4);
        scales.xy = vec2(unpackHalf2x16(halves[j / 2u])[j % 2u]);
    } else if (SCALES == TD_HALF_PAIR) {
        scales = unpackHalf2x16(td_unit_word(base, group + half4, j)).xxyy;
    } else if (SCALES == TD_FLOAT_TOP) {
        uint halves = td_unit_half(base, group, half4)[j / 2u];
        scales.xy = vec2(uintBitsToFloat(j % 2u == 0u ? halves << 16 : halves & 0xffff0000u));
    } else if (SCALES == TD_TAIL_HALF) {
        scales.xy = vec2(td_tail_half(base, n_k, (4u * quad + j) / (SPAN / 32u)));
    } else if (SCALES == TD_K) {
        uvec4 meta = td_unit(base, group);
        vec2 d = unpackHalf2x16(meta.x); /* d, d_min */
        uint shift = 16u * half4 + 4u * j;
        uint high = meta.w >> shift;
        uint scale = (meta.y >> shift & 15u) | (high & 3u) << 4;
        uint minimum = (meta.z >> shift & 15u) | (high & 12u) << 2;
        scales = vec2(d.x * float(scale), -(d.y * float(minimum))).xxyy;
    } else if (SCALES == TD_BYTES) {
        int both = int(td_unit_half(base, group, half4)[j / 2u] >> 16u * (j % 2u));
        float d = td_tail_half(base, n_k, quad / 2u);
        scales.xy = d * vec2(bitfieldExtract(both, 0, 8), bitfieldExtract(both, 8, 8));
    } else if (SCALES == TD_NIBBLES) {
        uint both = td_unit_half(base, group, half4)[j / 2u] >> 16u * (j % 2u);
        vec2 d = unpackHalf2x16(td_tail_word(base, n_k, quad / 2u));
        scales.xy = d.x * vec2(both & 15u, both >> 8 & 15u);
        scales.zw = -(d.y * vec2(both >> 4 & 15u, both >> 12 & 15u));
    } else if (SCALES == TD_SIX_BITS) {
        uvec4 meta = td_unit(base, group);
        uint low = (half4 == 0u ? meta.x : meta.y) >> 8u * j;
        uint high = meta.z >> (16u * half4 + 4u * j);
        uvec2 sixes = uvec2(low & 15u, low >> 4 & 15u) | uvec2(high & 3u, high >> 2 & 3u) << 4;
        scales.xy = unpackHalf2x16(meta.w).x * vec2(ivec2(sixes) - 32);
    } else if (SCALES == TD_MINIFLOATS) { /* as halves they are smaller by 2^8 */
        uint both = td_unit_half(base, group, half4)[j / 2u] >> 16u * (j % 2u);
        scales.xy = unpackHalf2x16((both & 0x7fu) << 7 | (both & 0x7f00u) << 15) * 128.0;
    } else {
        uvec4 meta = td_unit(base, group);
        int bytes = int(half4 == 0u ? meta.x : meta.y);
        scales.xy = vec2(unpackHalf2x16(meta.z).x * float(bitfieldExtract(bytes, int(8u * j), 8)));
    }
    return scales;
}

td_block td_load_block(uint base, uint n_k, uint quad, uint j)
{
    td_block block;
    block.words = td_load_quants(base, quad, j);
    block.scales = td_load_scales(base, n_k, quad, j);
    return block;
}
