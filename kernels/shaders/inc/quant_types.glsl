/* The quantized types. Their rows, with n elements (inc/README says more):
 *
 *     n / 256 groups {HEAD units of scales | twice: a quad of 4 blocks {low planes | high planes}},
 *     then TAIL bytes for every SPAN elements
 *
 * value = (quant - OFFSET) scale + addend, over blocks of 32 or, with TD_TWO_DOTS, their halves.
 * All products of a scale are exact in f32; the addition rounds once. LOW, HIGH: bytes of a block
 * in the planes, which are bits of the quants or, of types with a codebook, indices and signs;
 * TD_CODEBOOK: its entries, two a word, which stand in front of the weight's rows. */
#define TD_IS_INT8 1

#define TD_ROW(low, high, head, tail, span, offset, scales)                                      \
    const uint LOW = low, HIGH = high, HEAD = head, TAIL = tail, SPAN = span;                     \
    const int OFFSET = offset;                                                                    \
    const uint SCALES = scales

/* What the scales are. */
const uint TD_HALF = 0u;       /* 8 halves d */
const uint TD_HALF_PAIR = 1u;  /* 8 pairs of halves d, addend */
const uint TD_FLOAT_TOP = 2u;  /* 8 upper halves of floats */
const uint TD_TAIL_HALF = 3u;  /* a half d in the tail */
const uint TD_K = 4u;          /* d, d_min, 8 scales and minima of 6 bits */
const uint TD_BYTES = 5u;      /* 16 signed bytes; d in the tail */
const uint TD_NIBBLES = 6u;    /* 16 bytes: scale low, minimum high; d, d_min in the tail */
const uint TD_SIX_BITS = 7u;   /* 16 scales of 6 bits + 32, d */
const uint TD_MINIFLOATS = 8u; /* 16 bytes of 4 bits exponent, 3 bits mantissa */
const uint TD_BYTES_D = 9u;    /* 8 signed bytes, d */

#if QUANT == 2 /* Q4_0 */
TD_ROW(16u, 0u, 1u, 0u, 256u, 8, TD_HALF);
#elif QUANT == 3 /* Q4_1 */
TD_ROW(16u, 0u, 2u, 0u, 256u, 0, TD_HALF_PAIR);
#elif QUANT == 6 /* Q5_0 */
TD_ROW(16u, 4u, 1u, 0u, 256u, 16, TD_HALF);
#elif QUANT == 7 /* Q5_1 */
TD_ROW(16u, 4u, 2u, 0u, 256u, 0, TD_HALF_PAIR);
#elif QUANT == 8 /* Q8_0 */
TD_ROW(32u, 0u, 1u, 0u, 256u, 0, TD_HALF);
#elif QUANT == 10 /* Q2_K */
TD_ROW(8u, 0u, 1u, 4u, 256u, 0, TD_NIBBLES);
#define TD_TWO_DOTS
#elif QUANT == 11 /* Q3_K */
TD_ROW(8u, 4u, 1u, 0u, 256u, 4, TD_SIX_BITS);
#define TD_TWO_DOTS
#elif QUANT == 12 /* Q4_K */
TD_ROW(16u, 0u, 1u, 0u, 256u, 0, TD_K);
#elif QUANT == 13 /* Q5_K */
TD_ROW(16u, 4u, 1u, 0u, 256u, 0, TD_K);
#elif QUANT == 14 /* Q6_K */
TD_ROW(16u, 8u, 1u, 2u, 256u, 32, TD_BYTES);
#define TD_TWO_DOTS
#elif QUANT == 16 /* IQ2_XXS */
TD_ROW(8u, 0u, 0u, 2u, 256u, 0, TD_TAIL_HALF);
#define TD_CODEBOOK 256
#elif QUANT == 17 /* IQ2_XS */
TD_ROW(8u, 0u, 1u, 0u, 256u, 0, TD_HALF);
#define TD_CODEBOOK 512
#define TD_TWO_DOTS
#elif QUANT == 18 /* IQ3_XXS */
TD_ROW(8u, 4u, 0u, 2u, 256u, 0, TD_TAIL_HALF);
#define TD_CODEBOOK 256
#elif QUANT == 19 /* IQ1_S */
TD_ROW(4u, 0u, 1u, 2u, 256u, 9, TD_TAIL_HALF);
#define TD_CODEBOOK 2048
#elif QUANT == 20 /* IQ4_NL */
TD_ROW(16u, 0u, 1u, 0u, 256u, 0, TD_HALF);
#define TD_LOOKUP uvec4(0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u)
#elif QUANT == 21 /* IQ3_S */
TD_ROW(8u, 4u, 1u, 0u, 256u, 0, TD_HALF);
#define TD_CODEBOOK 512
#elif QUANT == 22 /* IQ2_S */
TD_ROW(8u, 0u, 1u, 2u, 256u, 0, TD_TAIL_HALF);
#define TD_CODEBOOK 1024
#define TD_TWO_DOTS
#elif QUANT == 23 /* IQ4_XS */
TD_ROW(16u, 0u, 1u, 0u, 256u, 0, TD_BYTES_D);
#define TD_LOOKUP uvec4(0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u)
#elif QUANT == 29 /* IQ1_M */
TD_ROW(4u, 0u, 1u, 8u, 256u, 9, TD_TAIL_HALF);
#define TD_CODEBOOK 2048
#define TD_TWO_DOTS
#elif QUANT == 34 || QUANT == 35 /* TQ1_0, TQ2_0 */
TD_ROW(8u, 0u, 0u, 2u, 256u, 1, TD_TAIL_HALF);
#elif QUANT == 39 /* MXFP4: twice e2m1 */
TD_ROW(16u, 0u, 1u, 0u, 256u, 0, TD_FLOAT_TOP);
#define TD_LOOKUP uvec4(0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu)
#elif QUANT == 40 /* NVFP4: twice e2m1 */
TD_ROW(16u, 0u, 1u, 0u, 256u, 0, TD_MINIFLOATS);
#define TD_LOOKUP uvec4(0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu)
#define TD_TWO_DOTS
#elif QUANT == 41 /* Q1_0: -1 or 1 */
TD_ROW(4u, 0u, 0u, 2u, 128u, 1, TD_TAIL_HALF);
#elif QUANT == 42 /* Q2_0 */
TD_ROW(8u, 0u, 0u, 2u, 64u, 1, TD_TAIL_HALF);
#else
#error QUANT is not the id of a weight type
#endif

const bool HAS_ADDEND = SCALES == TD_HALF_PAIR || SCALES == TD_K || SCALES == TD_NIBBLES;
const uint QUAD_UNITS = (LOW + HIGH) / 4u;
const uint GROUP_UNITS = HEAD + 2u * QUAD_UNITS;

/* The first unit of the quad's group, of its low planes and of its high planes. */
uint td_group(uint quad) { return quad / 2u * GROUP_UNITS; }
uint td_low(uint quad) { return td_group(quad) + HEAD + quad % 2u * QUAD_UNITS; }
uint td_high(uint quad) { return td_low(quad) + LOW / 4u; }

/* Word i of the tail of a row. */
uint td_tail_word(uint base, uint n_k, uint i)
{
    uint n_quads = (n_k + TD_QUAD - 1u) / TD_QUAD;
    uint first = n_quads * QUAD_UNITS + (n_quads + 1u) / 2u * HEAD;
    return td_unit_word(base, first + i / 4u, i % 4u);
}

float td_tail_half(uint base, uint n_k, uint i)
{
    return unpackHalf2x16(td_tail_word(base, n_k, i / 2u))[i % 2u];
}

#ifdef TD_CODEBOOK
#include "quant_codebook.glsl"
#else
#include "quant_planes.glsl"
#endif

/* zw: the sums themselves, for addends. */
ivec4 td_start(ivec2 sums)
{
#ifdef TD_TWO_DOTS
    return ivec4(-OFFSET * sums, sums);
#else
    return ivec4(-OFFSET * (sums.x + sums.y), 0, sums);
#endif
}

float td_fold(float sum, vec4 scales, vec4 dots, float d, float q_sum)
{
    precise float block = scales.x * dots.x;
#ifdef TD_TWO_DOTS
    block = fma(scales.y, dots.y, block);
    if (HAS_ADDEND)
        block = fma(scales.w, dots.w, fma(scales.z, dots.z, block));
#else
    if (HAS_ADDEND)
        block = fma(scales.z, q_sum, block);
#endif
    precise float folded = fma(block, d, sum);
    return folded;
}

vec4 td_block_vec4(td_block block, uint j)
{
    vec4 quants = td_signed_bytes(block.words[j]) - float(OFFSET);
    precise vec4 v = fma(quants, vec4(block.scales[j / 4u]), vec4(block.scales[2u + j / 4u]));
    return v;
}
