/* Of a chunk of TOP_CHUNK logits of a row the largest; by RACE the tokens whose score is within
 * TOP_WINDOW of the chunk's best; its mass, and the largest of each eight logits (kernels/ops.h,
 * td_op_top). Grid: chunks, rows.
 *
 * An invocation has 16 logits: four groups of four tokens, which share a block of noise. The first
 * and the third are one group of eight, the second and the fourth the other. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "inc/push.glsl"
#include "inc/top.glsl"

layout(local_size_x = 256) in;
layout(push_constant) uniform push_block { push_top p; };
layout(set = 0, binding = 0) readonly buffer x_floats { float x[]; };
layout(set = 0, binding = 1) readonly buffer draw_ints { int draws[]; };
layout(set = 0, binding = 2) buffer part_ints { int parts[]; };

#define LANES    256u
#define GROUPS   4u
#define FAR_DOWN -1e30
#define MASS_ONE 524288.0 /* 2^19 */

/* Largest and least of all lanes come by atomics, which need a barrier each, not one a level. */
shared int key_max, score_max;
shared uint mass; /* in units, whose sum has no order; of TOP_CHUNK terms, none above 1 */
shared uint marks[TOP_CHUNK / 32u]; /* recent tokens */
shared uint id_max, n_odd, n_found;

/* A score that cannot win: 2^-33 <= E < 23, and the chunk's largest logit scores above -5. */
#define NO_CHANCE -40.0
#define SLACK     0.0625 /* far above what scores and a logarithm err by */

/* What min-p or top-p takes away need not race. The row's largest weight is no less than the
 * chunk's; of n tokens the last one that top-p keeps weighs at least an n-th of the 1 - p behind
 * it. */
float least_logit(uint i_draw)
{
    float top_p = intBitsToFloat(draws[i_draw + DRAW_TOP_P]);
    float min_p = intBitsToFloat(draws[i_draw + DRAW_MIN_P]);
    float least = max(max(min_p, (1.0 - top_p) / float(p.n_cols)), exp2(NO_CHANCE));
    return log2(least) - SLACK;
}

void main()
{
    uint t = gl_LocalInvocationID.x, r = gl_WorkGroupID.y;
    uint first = gl_WorkGroupID.x * TOP_CHUNK;
    uint i_x = r * p.x_stride + p.x_col0, i_part = r * p.y_stride + gl_WorkGroupID.x * PART_WORDS;
    uint i_draw = r * DRAW_WORDS;
    float values[4u * GROUPS];
    int maxima[2] = {KEY_NONE, KEY_NONE};
    int key = KEY_NONE;
    uint id = 0xffffffffu, taking = 0u; /* bit i: value i takes part */
    bool is_odd = false;
    if (t == 0u) {
        n_odd = 0u;
        n_found = 0u;
        mass = 0u;
        id_max = 0xffffffffu;
        key_max = KEY_NONE;
        score_max = KEY_NONE;
    }
    if (t < TOP_CHUNK / 32u)
        marks[t] = 0u;
    barrier();
    if (t < uint(draws[i_draw + DRAW_N_RECENT])) {
        uint i = uint(draws[i_draw + DRAW_RECENT + t]) - first;
        if (i < TOP_CHUNK)
            atomicOr(marks[i / 32u], 1u << (i % 32u));
    }
    barrier();
    for (uint g = 0u; g < GROUPS; g++) {
        uint i_quad = t + LANES * g;
        uint marked = marks[i_quad / 8u] >> (4u * (i_quad % 8u));
        for (uint k = 0u; k < 4u; k++) {
            uint i = first + 4u * i_quad + k;
            float v = i < p.n_cols ? x[i_x + i] : 0.0;
            values[4u * g + k] = v;
            is_odd = is_odd || !top_is_finite(v);
            if (i >= p.n_cols || (marked >> k & 1u) != 0u || top_is_nan(v))
                continue;
            taking |= 1u << (4u * g + k);
            int here = top_key(v);
            maxima[g % 2u] = max(maxima[g % 2u], here);
            if (here > key) { /* ids ascend */
                key = here;
                id = i;
            }
        }
    }
    if (draws[i_draw + DRAW_N_LIST] != 0) {
        parts[i_part + PART_MAXIMA + t] = maxima[0];
        parts[i_part + PART_MAXIMA + LANES + t] = maxima[1];
    }
    if (is_odd)
        atomicAdd(n_odd, 1u);
    atomicMax(key_max, key);
    barrier();
    if (key == key_max)
        atomicMin(id_max, id);
    bool is_good = n_odd == 0u && key_max != KEY_NONE;
    bool is_race = draws[i_draw] == KIND_RACE && is_good;
    bool has_mass = draws[i_draw + DRAW_HAS_MASS] != 0 && is_good;
    float largest = top_value(key_max), scale = intBitsToFloat(draws[i_draw + DRAW_SCALE]);
    float best = FAR_DOWN, sum = 0.0;
    if (is_race || has_mass) {
        uvec2 stream = uvec2(draws[i_draw + DRAW_STREAM], draws[i_draw + DRAW_STREAM + 1u]);
        uvec2 position = uvec2(draws[i_draw + DRAW_POSITION], draws[i_draw + DRAW_POSITION + 1u]);
        float least = least_logit(i_draw);
        for (uint g = 0u; g < GROUPS; g++) {
            uint i = first + 4u * (t + LANES * g);
            vec4 logit = vec4(values[4u * g], values[4u * g + 1u], values[4u * g + 2u],
                              values[4u * g + 3u]);
            logit = (logit - largest) * scale;
            for (uint k = 0u; k < 4u; k++)
                logit[k] = (taking >> (4u * g + k) & 1u) != 0u ? logit[k] : FAR_DOWN;
            if (has_mass)
                sum += (exp2(logit[0]) + exp2(logit[1])) + (exp2(logit[2]) + exp2(logit[3]));
            vec4 score = vec4(FAR_DOWN);
            if (is_race && any(greaterThan(logit, vec4(least)))) {
                uvec4 bits = top_noise(uvec4(i / 4u, position, 0u), stream);
                for (uint k = 0u; k < 4u; k++)
                    if (logit[k] > least)
                        score[k] = logit[k] - top_log2_noise(bits[k]);
            }
            for (uint k = 0u; k < 4u; k++) {
                best = max(best, score[k]);
                values[4u * g + k] = score[k];
            }
        }
    }
    if (is_race)
        atomicMax(score_max, top_key(best));
    if (has_mass)
        atomicAdd(mass, uint(sum * MASS_ONE + 0.5));
    barrier();
    float own = best;
    best = is_race ? top_value(score_max) : FAR_DOWN;
    if (is_race) /* a loop that most pass over, which no software driver does with a branch */
        for (uint i = own >= best - TOP_WINDOW ? 0u : 4u * GROUPS; i < 4u * GROUPS; i++)
            if (values[i] > FAR_DOWN && values[i] >= best - TOP_WINDOW) {
                uint token = first + 4u * (t + LANES * (i / 4u)) + i % 4u;
                uint slot = atomicAdd(n_found, 1u);
                if (slot < TOP_CANDIDATES) {
                    uint at = i_part + PART_CANDIDATES + 3u * slot;
                    parts[at] = int(token);
                    parts[at + 1u] = floatBitsToInt(values[i]);
                    parts[at + 2u] = floatBitsToInt(x[i_x + token]);
                }
            }
    barrier();
    if (t == 0u) {
        parts[i_part] = key_max;
        parts[i_part + PART_ID] = key_max == KEY_NONE ? 0 : int(id_max);
        parts[i_part + PART_FINITE] = n_odd == 0u ? 1 : 0;
        parts[i_part + PART_N] = int(n_found);
        parts[i_part + PART_BEST] = floatBitsToInt(best);
        parts[i_part + PART_MASS] = floatBitsToInt(float(mass) / MASS_ONE);
    }
}
