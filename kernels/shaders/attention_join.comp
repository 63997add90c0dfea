/* y[r][h] out of the strands of attention.comp: each has a maximum m, a sum of weights t and a sum of
 * values v. With M the largest m, y = sum exp(m - M) v / sum exp(m - M) t, strands in ascending
 * order. A strand that saw no position has t = 0 and no part. The head's sink is one more score, of
 * no value.
 *
 * partials [n_rows][n_head][n_strands][2 + head_dim_v], y [n_rows][n_head][head_dim_v], sinks
 * [n_head]. Grid: x = head, y = row. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "inc/push.glsl"

layout(local_size_x = 64) in;
layout(push_constant) uniform push_block { push_attention_join p; };
layout(set = 0, binding = 0) readonly buffer partial_floats { float partials[]; };
layout(set = 0, binding = 1) writeonly buffer y_floats { float y[]; };
layout(set = 0, binding = 2) readonly buffer sink_floats { float sinks[]; };

void main()
{
    uint head = gl_WorkGroupID.x, row = gl_WorkGroupID.y, pitch = p.head_dim_v + 2u;
    uint from = (row * p.n_head + head) * p.n_strands * pitch;
    float top = uintBitsToFloat(0xff800000u); /* -inf */
    for (uint s = 0u; s < p.n_strands; s++)
        top = max(top, partials[from + s * pitch]);
    float sink_weight = 0.0;
    if (p.has_sinks != 0u) {
        top = max(top, sinks[head]);
        sink_weight = exp(sinks[head] - top);
    }
    for (uint i = gl_LocalInvocationID.x; i < p.head_dim_v; i += 64u) {
        precise float sum = 0.0, total = sink_weight;
        for (uint s = 0u; s < p.n_strands; s++) {
            uint at = from + s * pitch;
            if (partials[at + 1u] == 0.0)
                continue;
            precise float factor = exp(partials[at] - top);
            total = fma(factor, partials[at + 1u], total);
            sum = fma(factor, partials[at + 2u + i], sum);
        }
        y[row * p.y_stride + p.y_col0 + head * p.head_dim_v + i] = sum / total;
    }
}
