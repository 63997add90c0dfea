/* The weight of a shader, whatever its type: compiled once per type with -DQUANT=<GGUF type id>.
 * Gives, for a weight bound as words w[] and uvec4s w4[] (binding 1):
 *
 *     TD_RUN                     elements of a run: one 16-byte read of quants
 *     TD_IS_BLOCKED              0 where a row may end inside a run (F32, F16: padded with zeros)
 *     td_run                     a run in registers, scales included
 *     td_run td_load_run(row_word, n_k, i_run)   run i_run of the row at word row_word
 *     vec4 td_run_vec4(run, j)   elements 4j..4j+3 of the run
 *     vec4 td_weight_vec4(row_word, n_k, i)      elements 4i..4i+3 of a row
 *     float td_weight_at(row_word, n_k, i)       element i of a row
 *
 * row_word = row * w_words, a multiple of 4; n_k is the row's length. Layouts: inc/README. */
layout(set = 0, binding = 1) readonly buffer weight_words { uint w[]; };
layout(set = 0, binding = 1) readonly buffer weight_uvec4s { uvec4 w4[]; };

/* The four bytes of a word as floats. */
vec4 td_bytes(uint word)
{
    return vec4(word & 0xffu, word >> 8 & 0xffu, word >> 16 & 0xffu, word >> 24);
}

/* Half i of the plane of halves that begins at `word`. */
float td_half_at(uint word, uint i)
{
    vec2 both = unpackHalf2x16(w[word + (i >> 1)]);
    return (i & 1u) == 0u ? both.x : both.y;
}

#if QUANT == 0
#include "quant_f32.glsl"
#elif QUANT == 1
#include "quant_f16.glsl"
#elif QUANT == 2
#include "quant_q4_0.glsl"
#elif QUANT == 8
#include "quant_q8_0.glsl"
#elif QUANT == 12
#include "quant_q4_k.glsl"
#elif QUANT == 14
#include "quant_q6_k.glsl"
#else
#error QUANT is not the id of a weight type
#endif

vec4 td_weight_vec4(uint row_word, uint n_k, uint i)
{
    return td_run_vec4(td_load_run(row_word, n_k, i / (TD_RUN / 4u)), i % (TD_RUN / 4u));
}

float td_weight_at(uint row_word, uint n_k, uint i)
{
    return td_weight_vec4(row_word, n_k, i / 4u)[i % 4u];
}
