/* Blocks whose planes are indices into a codebook of 8 (IQ3: 4) elements, with signs beside them.
 * The codebook stands in front of the weight: for every element the number of its level, 2 bits or,
 * with IQ3, 3. It is copied to shared memory in the form that takes least to decode. */
#define TD_HAS_TABLE
#define TD_IS_IQ1 (QUANT == 19 || QUANT == 29)
#define TD_IS_IQ3 (QUANT == 18 || QUANT == 21)

#if TD_IS_IQ1 || TD_IS_IQ3
shared uint td_entries[TD_CODEBOOK];
#else
shared uvec2 td_entries[TD_CODEBOOK];
#endif

#if !TD_IS_IQ1
/* By 8 signs, or by 7 of which an eighth makes the number of minuses even: bytes of 0 or -1. */
const uint N_SIGNS = QUANT == 21 || QUANT == 22 ? 256u : 128u;
shared uvec2 td_signs[N_SIGNS];

uint td_spread_signs(uint bits) { return ((bits & 15u) * 0x00204081u & 0x01010101u) * 255u; }

uvec2 td_negate(uvec2 bytes, uint signs) /* none of them is 0, so that nothing is carried */
{
    uvec2 mask = td_signs[signs & N_SIGNS - 1u];
    return (bytes ^ mask) + (mask & 0x01010101u);
}
#endif

/* Four fields of 2 bits to the low bits of bytes. */
uint td_spread(uint bits)
{
    bits &= 255u;
    return (bits | bits << 6 | bits << 12 | bits << 18) & 0x03030303u;
}

/* Entries. IQ1: level numbers, first 4 in the low nibbles, last 4 in the high ones. IQ2: magnitudes
 * 8, 25, 43 in bytes. IQ3_XXS: magnitudes 4, 12, .. 52, 62; IQ3_S: 1, 3, .. 15. */
void td_begin()
{
    for (uint i = gl_LocalInvocationIndex; i < TD_CODEBOOK; i += gl_WorkGroupSize.x) {
        uint entry = w[i / 2u] >> 16u * (i % 2u) & 0xffffu;
#if TD_IS_IQ1
        td_entries[i] = td_spread(entry) | td_spread(entry >> 8) << 4;
#elif TD_IS_IQ3
        uint levels = (entry & 7u) | (entry & 0x38u) << 5 | (entry & 0x1c0u) << 10 |
                      (entry & 0xe00u) << 15;
#if QUANT == 18
        uint sevens = levels & levels >> 1 & levels >> 2 & 0x01010101u;
        td_entries[i] = levels * 8u + 0x04040404u + sevens * 2u;
#else
        td_entries[i] = levels * 2u + 0x01010101u;
#endif
#else
        uvec2 levels = uvec2(td_spread(entry), td_spread(entry >> 8));
        td_entries[i] = levels * 17u + (levels >> 1 & 0x01010101u) + 0x08080808u;
#endif
    }
#if !TD_IS_IQ1
    for (uint i = gl_LocalInvocationIndex; i < N_SIGNS; i += gl_WorkGroupSize.x) {
        uint signs = N_SIGNS == 256u ? i : i | (uint(bitCount(i)) & 1u) << 7;
        td_signs[i] = uvec2(td_spread_signs(signs), td_spread_signs(signs >> 4));
    }
#endif
    barrier();
}

uint td_byte(uvec2 bytes, uint i) { return bytes[i / 4u] >> 8u * (i % 4u) & 255u; }

td_block td_load_block(uint base, uint n_k, uint quad, uint j)
{
    td_block block;
    uint half4 = quad % 2u;
    precise vec2 scales;
#if QUANT == 16 /* 4 indices, 4 x 7 signs, scale */
    uvec2 a = td_unit_half(base, td_low(quad) + j / 2u, j % 2u);
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        uvec2 eight = td_negate(td_entries[a.x >> 8u * i & 255u], a.y >> 7u * i);
        block.words[2u * i] = eight.x;
        block.words[2u * i + 1u] = eight.y;
    }
    scales = vec2(td_tail_half(base, n_k, quad / 2u) * (0.5 + float(a.y >> 28)) * 0.25);
#elif QUANT == 17 /* 4 times 9 bits of index, 7 signs; nibbles of scales, d */
    uvec2 a = td_unit_half(base, td_low(quad) + j / 2u, j % 2u);
    uvec4 meta = td_unit(base, td_group(quad));
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        uint index = a[i / 2u] >> 16u * (i % 2u);
        uvec2 eight = td_negate(td_entries[index & 511u], index >> 9);
        block.words[2u * i] = eight.x;
        block.words[2u * i + 1u] = eight.y;
    }
    uint both = (half4 == 0u ? meta.x : meta.y) >> 8u * j;
    scales = unpackHalf2x16(meta.z).x * (0.5 + vec2(both & 15u, both >> 4 & 15u)) * 0.25;
#elif QUANT == 22 /* 4 low bytes of indices, 4 x 8 signs; high pairs of indices, scales */
    uvec2 a = td_unit_half(base, td_low(quad) + j / 2u, j % 2u);
    uvec4 meta = td_unit(base, td_group(quad));
    uint high = (half4 == 0u ? meta.x : meta.y) >> 8u * j;
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        uint index = (a.x >> 8u * i & 255u) | (high >> 2u * i & 3u) << 8;
        uvec2 eight = td_negate(td_entries[index], a.y >> 8u * i);
        block.words[2u * i] = eight.x;
        block.words[2u * i + 1u] = eight.y;
    }
    uint both = (half4 == 0u ? meta.z : meta.w) >> 8u * j;
    scales = td_tail_half(base, n_k, quad / 2u) * (0.5 + vec2(both & 15u, both >> 4 & 15u)) * 0.25;
#elif QUANT == 18 /* 8 indices | 4 x 7 signs, scale */
    uvec2 a = td_unit_half(base, td_low(quad) + j / 2u, j % 2u);
    uint rest = td_unit_word(base, td_high(quad), j);
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        uvec2 entries =
            uvec2(td_entries[td_byte(a, 2u * i)], td_entries[td_byte(a, 2u * i + 1u)]);
        uvec2 eight = td_negate(entries, rest >> 7u * i);
        block.words[2u * i] = eight.x;
        block.words[2u * i + 1u] = eight.y;
    }
    scales = vec2(td_tail_half(base, n_k, quad / 2u) * (0.5 + float(rest >> 28)) * 0.5);
#elif QUANT == 21 /* 8 low bytes of indices | 8 x 4 signs; high bits of indices, scales, d */
    uvec2 a = td_unit_half(base, td_low(quad) + j / 2u, j % 2u);
    uint signs = td_unit_word(base, td_high(quad), j);
    uvec4 meta = td_unit(base, td_group(quad));
    uint high = (half4 == 0u ? meta.x : meta.y) >> 8u * j;
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        uvec2 bits = uvec2(high >> 2u * i & 1u, high >> (2u * i + 1u) & 1u);
        uvec2 index = uvec2(td_byte(a, 2u * i), td_byte(a, 2u * i + 1u)) | bits << 8;
        uvec2 eight = td_negate(uvec2(td_entries[index.x], td_entries[index.y]), signs >> 8u * i);
        block.words[2u * i] = eight.x;
        block.words[2u * i + 1u] = eight.y;
    }
    uint scale = meta.z >> (16u * half4 + 4u * j) & 15u;
    scales = vec2(unpackHalf2x16(meta.w).x * float(2u * scale + 1u));
#else /* IQ1: 4 low bytes of indices; 16 bits of high bits and shifts */
    uint a = td_unit_word(base, td_low(quad), j);
    uint high = td_unit_half(base, td_group(quad), half4)[j / 2u] >> 16u * (j % 2u);
#if QUANT == 19 /* 4 x 3 bits of indices, scale, shift */
    const uint HIGH_BITS = 3u;
    scales = vec2(td_tail_half(base, n_k, quad / 2u) * float(2u * (high >> 12 & 7u) + 1u) * 0.125);
#else /* 4 x 3 bits of index and shift; 16 scales of 3 bits with d's nibbles in between */
    const uint HIGH_BITS = 4u;
    uvec2 rest = uvec2(td_tail_word(base, n_k, quad / 2u * 2u),
                       td_tail_word(base, n_k, quad / 2u * 2u + 1u));
    uint d = (rest.x >> 12 & 0xfu) | (rest.x >> 24 & 0xf0u) | (rest.y >> 4 & 0xf00u) |
             (rest.y >> 16 & 0xf000u);
    uint both = rest[half4] >> (16u * (j / 2u) + 6u * (j % 2u));
    scales = unpackHalf2x16(d).x * vec2(2u * uvec2(both & 7u, both >> 3 & 7u) + 1u) * 0.125;
#endif
    [[unroll]] for (uint i = 0u; i < 4u; i++) {
        uint entry = td_entries[(a >> 8u * i & 255u) | (high >> HIGH_BITS * i & 7u) << 8];
        uint shift = (QUANT == 19 ? high >> 15 : high >> (4u * i + 3u)) & 1u;
        /* 8 (level - 1) +- 1, and the offset */
        uint both_shifts = shift == 0u ? 0x02020202u : 0u;
        block.words[2u * i] = (entry << 3 & 0x18181818u) | both_shifts;
        block.words[2u * i + 1u] = (entry >> 1 & 0x18181818u) | both_shifts;
    }
#endif
    block.scales = vec4(scales, 0.0, 0.0);
    return block;
}
