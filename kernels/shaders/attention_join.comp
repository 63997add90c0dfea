/* y[r][h] out of the strands of attention.comp: each has a maximum m, a sum of weights t and a sum of
 * values v. With M the largest m, y = sum exp(m - M) v / sum exp(m - M) t, strands in ascending
 * order. A strand that saw no position has t = 0 and no part. The head's sink is one more score, of
 * no value.
 *
 * partials [n_rows][n_head][n_strands][2 + head_dim_v], y [n_rows][n_head][head_dim_v], sinks
 * [n_head]. Grid: x = head, y = row. Specialization: 0 HAS_INT8: y is quantized too, as quantize.comp
 * does it; heads are of whole blocks and rows of whole quads of them then. 1 IS_GATED: y is glu of
 * its gate and that. 2 ROTATED_DIM: columns of heads that are rotated back (inc/rotate.glsl), which
 * comes before both; 0: they are not. Of 0 strands y has what they make, for that. */
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require

#include "inc/exp.glsl"
#include "inc/glu.glsl"
#include "inc/push.glsl"
#include "inc/int8.glsl"

layout(local_size_x = 64) in;
layout(push_constant) uniform push_block { push_attention_join p; };
layout(set = 0, binding = 0) readonly buffer partial_floats { float partials[]; };
layout(set = 0, binding = 1) buffer y_floats { float y[]; };
layout(set = 0, binding = 2) readonly buffer sink_floats { float sinks[]; };
layout(set = 0, binding = 3) writeonly buffer q_words { uint q[]; };
layout(set = 0, binding = 3) writeonly buffer q_uvec4s { uvec4 q4[]; };
layout(set = 0, binding = 4) readonly buffer gate_floats { float gates[]; };
layout(constant_id = 0) const bool HAS_INT8 = false;
layout(constant_id = 1) const bool IS_GATED = false;
layout(constant_id = 2) const uint ROTATED_DIM = 0u;

#define TD_INT8_LANES 64u
#include "inc/int8_encode.glsl"

const bool IS_ROTATED = ROTATED_DIM != 0u;
const uint AT_ONCE = ROTATED_DIM > TD_VK_JOIN_DIM ? ROTATED_DIM : TD_VK_JOIN_DIM; /* columns */

shared float joined[AT_ONCE];

#define TD_ROTATE_ROW joined
#include "inc/rotate.glsl"

/* The blocks of columns begin..end-1 of a head, out of shared memory. */
void quantize(uint row, uint head, uint begin, uint end)
{
    uint t = gl_LocalInvocationID.x, i = t % 8u, n_blocks = p.head_dim_v / 32u;
    for (uint first = begin / 32u; first < end / 32u; first += 8u) {
        uint b = first + t / 8u, c = 32u * b + 4u * i - begin;
        uint at = ((row * p.n_head + head) * n_blocks + b) * TD_INT8_UNITS;
        vec4 v = vec4(0.0);
        if (b < end / 32u)
            v = vec4(joined[c], joined[c + 1u], joined[c + 2u], joined[c + 3u]);
        uvec4 last;
        uint word = td_int8_encode_together(t, v, last);
        if (b >= end / 32u)
            continue;
        q[4u * at + i] = word;
        if (i == 0u)
            q4[at + 2u] = last;
    }
}

/* Column i of the head, of the strands. */
float join_column(uint row, uint head, uint from, uint i, float top, float sink_weight)
{
    if (IS_ROTATED && p.n_strands == 0u)
        return y[row * p.y_stride + p.y_col0 + head * p.head_dim_v + i];
    precise float sum = 0.0, total = sink_weight;
    for (uint s = 0u; s < p.n_strands; s++) {
        uint at = from + s * (p.head_dim_v + 2u);
        if (partials[at + 1u] == 0.0)
            continue;
        precise float factor = exp(partials[at] - top);
        total = fma(factor, partials[at + 1u], total);
        sum = fma(factor, partials[at + 2u + i], sum);
    }
    precise float value = sum / total;
    return value;
}

void main()
{
    uint head = gl_WorkGroupID.x, row = gl_WorkGroupID.y, pitch = p.head_dim_v + 2u;
    uint from = (row * p.n_head + head) * p.n_strands * pitch, t = gl_LocalInvocationID.x;
    float top = uintBitsToFloat(0xff800000u); /* -inf */
    for (uint s = 0u; s < p.n_strands; s++)
        top = max(top, partials[from + s * pitch]);
    float sink_weight = 0.0;
    if (p.has_sinks != 0u) {
        top = max(top, sinks[head]);
        sink_weight = exp(sinks[head] - top);
    }
    uint n_at_once = HAS_INT8 || IS_ROTATED ? AT_ONCE : p.head_dim_v;
    for (uint begin = 0u; begin < p.head_dim_v; begin += n_at_once) {
        uint end = min(begin + n_at_once, p.head_dim_v);
        if (IS_ROTATED) { /* a head is as many columns as are joined at once, at most */
            for (uint i = t; i < end; i += 64u)
                joined[i] = join_column(row, head, from, i, top, sink_weight);
            td_rotate(t, ROTATED_DIM);
        }
        for (uint i = begin + t; i < end; i += 64u) {
            precise float value = IS_ROTATED
                                      ? joined[i]
                                      : join_column(row, head, from, i, top, sink_weight);
            uint column = head * p.head_dim_v + i;
            if (IS_GATED)
                value = td_glu(SIGMOID, gates[row * p.gate_stride + p.gate_col0 + column], value);
            y[row * p.y_stride + p.y_col0 + column] = value;
            if (HAS_INT8)
                joined[i - begin] = value;
        }
        if (HAS_INT8) {
            barrier();
            quantize(row, head, begin, end); /* whose barriers come after its last read */
        }
    }
}
