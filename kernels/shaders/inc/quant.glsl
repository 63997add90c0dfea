/* The weight of a shader, whatever its type: compiled once per type with -DQUANT=<GGUF type id>.
 * A row of a weight is a sequence of units of 16 bytes; unit u of the 64 rows of a panel lie side by
 * side, so that lanes that own a row each read neighbouring units (inc/README). Gives:
 *
 *     td_row_base(row, row_units, pitch)   where a row's unit 0 is, in units; pitch is the panel's
 *                                          height: 64, or 1 where the weight is a vector
 *     vec4 td_weight_vec4(base, n_k, i)    elements 4i..4i+3 of a row
 *
 * F32, F16, BF16 (TD_IS_INT8 0): TD_UNIT elements a unit, units padded with zeros to 32 elements:
 *     vec4 td_unit_vec4(unit, j)           elements 4j..4j+3 of a unit
 *
 * Others (TD_IS_INT8 1, a row of quant_types.glsl each): blocks of 32 elements, rows padded with
 * zeros to quads of 4 blocks:
 *     td_block                             32 quants as signed bytes in 8 words, and their scales
 *     td_load_block(base, n_k, quad, j)    block j of a quad
 *     td_start, td_fold                    a block's product with int8 activations: the dot products
 *                                          start at td_start(sums of the activations' halves), then
 *                                          td_fold adds them to the row's sum. TD_TWO_DOTS: the
 *                                          halves of the block have dot products of their own
 *
 * and of all types td_begin(), which every invocation calls before it reads a weight. */
layout(set = 0, binding = 1) readonly buffer weight_words { uint w[]; };
layout(set = 0, binding = 1) readonly buffer weight_uvec2s { uvec2 w2[]; };
layout(set = 0, binding = 1) readonly buffer weight_uvec4s { uvec4 w4[]; };

const uint TD_BLOCK = 32u;
const uint TD_QUAD = 128u;

uint td_pitch; /* set once by main: td_row_base's */

uvec4 td_unit(uint base, uint u) { return w4[base + u * td_pitch]; }
uvec2 td_unit_half(uint base, uint u, uint half_) { return w2[2u * (base + u * td_pitch) + half_]; }
uint td_unit_word(uint base, uint u, uint word) { return w[4u * (base + u * td_pitch) + word]; }

struct td_block {
    uint words[8];
    vec4 scales; /* of the halves of 16, then what is added to their values */
};

/* The four bytes of a word, signed, as floats. */
vec4 td_signed_bytes(uint word)
{
    int i = int(word);
    return vec4(bitfieldExtract(i, 0, 8), bitfieldExtract(i, 8, 8), bitfieldExtract(i, 16, 8),
                i >> 24);
}

#if QUANT == 0
#include "quant_f32.glsl"
#elif QUANT == 1
#include "quant_f16.glsl"
#elif QUANT == 30
#include "quant_bf16.glsl"
#else
#include "quant_types.glsl"
#endif

#ifndef TD_HAS_TABLE
void td_begin() {}
#endif

uint td_row_base(uint row, uint row_units)
{
#ifdef TD_CODEBOOK
    const uint FIRST = TD_CODEBOOK / 8u;
#else
    const uint FIRST = 0u;
#endif
    if (td_pitch == 1u)
        return FIRST + row * row_units;
    return FIRST + row / TD_VK_PANEL * TD_VK_PANEL * row_units + row % TD_VK_PANEL;
}

vec4 td_weight_vec4(uint base, uint n_k, uint i)
{
#if TD_IS_INT8
    return td_block_vec4(td_load_block(base, n_k, i / 32u, i / 8u % 4u), i % 8u);
#else
    return td_unit_vec4(td_unit(base, i / (TD_UNIT / 4u)), i % (TD_UNIT / 4u));
#endif
}
