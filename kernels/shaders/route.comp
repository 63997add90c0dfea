/* Chooses the experts of a row and their weights (kernels/ops.h, td_op_route). An expert's place is
 * the number of those before it, by score and then index; so is a group's.
 *
 * logits [n_rows][n_experts], bias [n_experts], experts and weights [n_rows][n_used]. Grid: x = 1,
 * y = row. Specialization: 0 HAS_LIST: of several rows the workgroup that is done last, by a count
 * in word 1 of lists that is 0 before and after, lists who chose whom.
 *
 * Law 1: invocation t sums experts t, t + 256, ... in ascending order, and the 256 sums are added as
 * a balanced tree; sums of the chosen are in the order of their choice. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "inc/exp.glsl"
#include "inc/push.glsl"

layout(local_size_x = 256) in;
layout(push_constant) uniform push_block { push_route p; };
layout(set = 0, binding = 0) readonly buffer logit_floats { float logits[]; };
layout(set = 0, binding = 1) readonly buffer bias_floats { float bias[]; };
layout(set = 0, binding = 2) coherent buffer expert_ints { int experts[]; };
layout(set = 0, binding = 3) writeonly buffer weight_floats { float weights[]; };
layout(set = 0, binding = 4) coherent buffer list_uints { uint lists[]; };

layout(constant_id = 0) const bool HAS_LIST = false;

const uint LANES = 256u;
const uint SOFTMAX = 0u, SIGMOID = 1u; /* gating; else of the selected */
const int OUT = 0x80000000, NONE = OUT + 1; /* keys: of experts of other groups; of a NaN */

shared float probs[TD_VK_LIST_EXPERTS]; /* of SELECTED, logits */
shared int keys[TD_VK_LIST_EXPERTS];    /* of scores, in their order */
shared int group_keys[TD_VK_LIST_EXPERTS];
shared float tree[LANES];
shared uint chosen[LANES];
shared bool is_last;

#define counts keys /* which are done with by then */
#define sums group_keys
#include "inc/list.glsl"

int key_of(float score)
{
    int bits = floatBitsToInt(score);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return NONE;
    bits = bits == 0x80000000 ? 0 : bits;
    return bits ^ ((bits >> 31) & 0x7fffffff);
}
float value_of(int key) { return intBitsToFloat(key ^ ((key >> 31) & 0x7fffffff)); }

/* Of the values of all invocations, their sum or the largest. */
float reduce(uint t, float value, bool is_sum)
{
    barrier(); /* the last one's result has been read */
    tree[t] = value;
    barrier();
    for (uint n = LANES / 2u; n > 0u; n >>= 1) {
        if (t < n) {
            precise float sum = tree[t] + tree[t + n];
            tree[t] = is_sum ? sum : max(tree[t], tree[t + n]);
        }
        barrier();
    }
    return tree[0];
}

/* Probabilities and scores of all experts. */
void score(uint t, uint row)
{
    uint at = row * p.x_stride + p.x_col0;
    float top = uintBitsToFloat(0xff800000u); /* -inf */
    precise float sum = 0.0;
    if (p.gating == SOFTMAX) {
        for (uint e = t; e < p.n_experts; e += LANES)
            top = max(top, logits[at + e]);
        top = reduce(t, top, false);
        for (uint e = t; e < p.n_experts; e += LANES)
            sum += td_exp(logits[at + e] - top);
        sum = reduce(t, sum, true);
    }
    for (uint e = t; e < p.n_experts; e += LANES) {
        precise float prob = logits[at + e];
        if (p.gating == SOFTMAX)
            prob = td_exp(prob - top) / sum;
        else if (p.gating == SIGMOID)
            prob = 1.0 / (1.0 + td_exp(-prob));
        precise float key = p.has_bias != 0u ? prob + bias[e] : prob;
        probs[e] = prob;
        keys[e] = key_of(key);
    }
    barrier();
}

/* A group counts by the sum of its two best; the experts of all but the best groups are out. */
void drop_groups(uint t)
{
    uint n = p.n_experts / p.n_groups;
    for (uint g = t; g < p.n_groups; g += LANES) {
        int first = OUT, second = OUT;
        for (uint e = g * n; e < g * n + n; e++) {
            second = max(second, min(first, keys[e]));
            first = max(first, keys[e]);
        }
        precise float sum = value_of(first);
        if (n > 1u)
            sum += value_of(second);
        group_keys[g] = first == NONE || second == NONE ? NONE : key_of(sum);
    }
    barrier();
    for (uint e = t; e < p.n_experts; e += LANES) {
        uint group = e / n, place = 0u;
        for (uint g = 0u; g < p.n_groups; g++)
            place += group_keys[g] > group_keys[group] ||
                             (group_keys[g] == group_keys[group] && g < group)
                         ? 1u
                         : 0u;
        if (place >= p.n_groups_used)
            keys[e] = OUT;
    }
    barrier();
}

void choose(uint t, uint row)
{
    score(t, row);
    if (p.n_groups > 1u)
        drop_groups(t);
    for (uint e = t; e < p.n_experts; e += LANES) {
        uint place = 0u;
        for (uint i = 0u; i < p.n_experts; i++)
            place += keys[i] > keys[e] || (keys[i] == keys[e] && i < e) ? 1u : 0u;
        if (keys[e] != OUT && place < p.n_used)
            chosen[place] = e;
    }
    barrier();
}

void weigh(uint t, uint row)
{
    float top = probs[chosen[0]];
    for (uint i = 1u; i < p.n_used; i++)
        top = max(top, probs[chosen[i]]);
    bool is_selected = p.gating != SOFTMAX && p.gating != SIGMOID;
    precise float sum = 0.0, exp_sum = 0.0, weight = probs[chosen[t]];
    if (is_selected) {
        for (uint i = 0u; i < p.n_used; i++)
            exp_sum += td_exp(probs[chosen[i]] - top);
        weight = td_exp(weight - top) / exp_sum;
    }
    if (p.is_normalized != 0u) {
        for (uint i = 0u; i < p.n_used; i++) {
            precise float prob = probs[chosen[i]];
            sum += is_selected ? td_exp(prob - top) / exp_sum : prob;
        }
        weight /= sum < 0.00006103515625 ? 0.00006103515625 : sum; /* 2^-14 */
    }
    weight *= p.scale;
    experts[row * p.n_used + t] = int(chosen[t]);
    weights[row * p.n_used + t] = weight;
}

void main()
{
    uint t = gl_LocalInvocationID.x, row = gl_WorkGroupID.y;
    choose(t, row);
    if (t < p.n_used)
        weigh(t, row);
    if (!HAS_LIST || p.n_rows < 2u)
        return;
    memoryBarrierBuffer();
    barrier();
    if (t == 0u)
        is_last = atomicAdd(lists[1], 1u) + 1u == p.n_rows;
    barrier();
    if (!is_last)
        return;
    memoryBarrierBuffer();
    list(t, p.n_rows * p.n_used);
    if (t == 0u)
        lists[1] = 0u;
}
