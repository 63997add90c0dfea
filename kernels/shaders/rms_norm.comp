/* y[r][i] = x[r][i] / sqrt(mean_j x[r][j]^2 + eps) * weight[i], for each group of group_cols
 * columns on its own. y may be x. Grid: groups, rows. Source: Zhang & Sennrich 2019.
 *
 * Specialization: 0 OF: what is normed is x; or x + b, which is kept in `sum` (which may be either);
 * or the rows of x that b names, kept as well; or x + the norm of b, in whose place that is kept; or,
 * as experts_sum, glu and add do it, x and what experts add to it, b being their sum: of `parts` by
 * their shares; then the shared expert's output, too, which a gate may scale. 1 HAS_INT8: y is
 * quantized too, as quantize.comp does it. 2 TO: y is the norm; or nothing is normed; or, as glu
 * does it, y is glu(b, norm).
 *
 * Law 1: invocation t adds the squares of columns t, t + 256, ... by fma; the 256 sums are added
 * as a balanced tree in shared memory, whatever the subgroup size. */
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require

#include "inc/exp.glsl"
#include "inc/push.glsl"
#include "inc/int8.glsl"

layout(local_size_x = 256) in;
layout(push_constant) uniform push_block { push_rms_norm p; };
layout(constant_id = 0) const uint OF = TD_VK_NORM_X;
layout(constant_id = 1) const bool HAS_INT8 = false;
layout(constant_id = 2) const uint TO = TD_VK_NORM_PLAIN;
layout(set = 0, binding = 0) readonly buffer x_floats { float x[]; };
layout(set = 0, binding = 1) readonly buffer weight_floats { float weight[]; };
layout(set = 0, binding = 2) writeonly buffer y_floats { float y[]; };
layout(set = 0, binding = 3) buffer b_floats { float b[]; };
layout(set = 0, binding = 3) readonly buffer row_ints { int rows[]; };
layout(set = 0, binding = 4) writeonly buffer sum_floats { float sum_x[]; };
layout(set = 0, binding = 5) writeonly buffer q_words { uint q[]; };
layout(set = 0, binding = 5) writeonly buffer q_uvec4s { uvec4 q4[]; };
layout(set = 0, binding = 6) readonly buffer part_floats { float parts[]; };
layout(set = 0, binding = 6) readonly buffer b_weight_floats { float b_weight[]; };
layout(set = 0, binding = 7) readonly buffer share_floats { float shares[]; };
layout(set = 0, binding = 8) buffer shared_floats { float shared_y[]; };
layout(set = 0, binding = 9) readonly buffer gate_floats { float gates[]; };

#define TD_INT8_LANES 256u
#include "inc/int8_encode.glsl"

shared float sums[256];

const bool IS_KEPT = OF != TD_VK_NORM_X, HAS_SUM = IS_KEPT && OF != TD_VK_NORM_GATHER;
const bool HAS_EXPERTS = OF >= TD_VK_NORM_EXPERTS, HAS_SHARED = OF >= TD_VK_NORM_SHARED;

bool is_there; /* of a row that is gathered; else it is zeros */
uint i_x, i_b, i_sum, i_y, i_parts, i_shares, i_shared, i_gate; /* where the group begins */
float b_scale;                                                   /* of b's norm */

/* What the shared expert adds in column i. */
float shared_output(uint i)
{
    precise float value = shared_y[i_shared + i];
    if (OF == TD_VK_NORM_GATED) {
        precise float g = gates[i_gate];
        value = 1.0 / (1.0 + td_exp(-g)) * value;
    }
    return value;
}

/* What is added to column i of x, and of it the shared expert's. */
vec2 added(uint i)
{
    if (OF == TD_VK_NORM_POST) {
        precise float own = b[i_b + i] * b_scale;
        own *= b_weight[i];
        return vec2(own, 0.0);
    }
    if (!HAS_EXPERTS)
        return vec2(HAS_SUM ? b[i_b + i] : 0.0, 0.0);
    precise float sum = shares[i_shares] * parts[i_parts + i];
    for (uint k = 1u; k < p.n_used; k++)
        sum = fma(shares[i_shares + k], parts[i_parts + k * p.group_cols + i], sum);
    float own = 0.0;
    if (HAS_SHARED) {
        own = shared_output(i);
        sum += own;
    }
    return vec2(sum, own);
}

float total(uint i, vec2 more)
{
    precise float value = is_there ? x[i_x + i] : 0.0;
    if (HAS_SUM)
        value += more.x;
    return value;
}

/* Keeps what others may read of it. */
void keep(uint i, float value, vec2 more)
{
    if (IS_KEPT)
        sum_x[i_sum + i] = value;
    if (HAS_EXPERTS || OF == TD_VK_NORM_POST)
        b[i_b + i] = more.x;
    if (OF == TD_VK_NORM_GATED)
        shared_y[i_shared + i] = more.y;
}

/* Of column i, whose x this is. */
float norm(uint i, float value, float scale)
{
    precise float y = value * scale;
    if (p.has_weight != 0u)
        y *= weight[i];
    if (TO == TD_VK_NORM_SILU) {
        precise float g = b[i_b + i];
        y = g / (1.0 + exp(-g)) * y;
    }
    return y;
}

/* Columns i..i+3, loaded together: a store in between would part the loads. */
vec4 finish(uint i, float scale)
{
    vec2 more[4];
    vec4 v, normed;
    [[unroll]] for (uint k = 0u; k < 4u; k++) {
        more[k] = added(i + k);
        v[k] = total(i + k, more[k]);
    }
    [[unroll]] for (uint k = 0u; k < 4u; k++)
        normed[k] = norm(i + k, v[k], scale);
    [[unroll]] for (uint k = 0u; k < 4u; k++) {
        keep(i + k, v[k], more[k]);
        y[i_y + i + k] = normed[k];
    }
    return normed;
}

/* The columns, 4 a lane, and their quants. */
void finish_blocks(uint t, uint r, float scale)
{
    uint b0 = gl_WorkGroupID.x * p.group_cols / 32u, i = t % 8u;
    bool is_last = gl_WorkGroupID.x + 1u == p.n_groups; /* pads with zeros */
    uint n_blocks = is_last ? p.n_blocks - b0 : p.group_cols / 32u;
    for (uint first = 0u; first < n_blocks; first += 32u) {
        uint b = first + t / 8u, k = 32u * b + 4u * i;
        uint at = (r * p.n_blocks + b0 + b) * TD_INT8_UNITS;
        vec4 v = vec4(0.0);
        if (k < p.group_cols)
            v = finish(k, scale);
        uvec4 last;
        uint word = td_int8_encode_together(t, v, last);
        if (b >= n_blocks)
            continue;
        q[4u * at + i] = word;
        if (i == 0u)
            q4[at + 2u] = last;
    }
}

/* 1 / the root of the mean of squares, of which `sum` are a lane's. */
float scale_of(uint t, float sum)
{
    sums[t] = sum;
    barrier();
    for (uint n = 128u; n > 0u; n >>= 1) {
        if (t < n) {
            precise float both = sums[t] + sums[t + n];
            sums[t] = both;
        }
        barrier();
    }
    /* sqrt and a division, which are more accurate than inversesqrt where it matters. */
    precise float mean = sums[0] / float(p.group_cols);
    precise float scale = 1.0 / sqrt(mean + p.eps);
    return scale;
}

void main()
{
    uint t = gl_LocalInvocationID.x, r = gl_WorkGroupID.y;
    uint first = gl_WorkGroupID.x * p.group_cols;
    uint row = OF == TD_VK_NORM_GATHER ? uint(rows[r]) : r; /* a negative one becomes large */
    is_there = OF != TD_VK_NORM_GATHER || row < p.n_rows_x;
    i_x = row * p.x_stride + p.x_col0 + first;
    i_y = r * p.y_stride + p.y_col0 + first;
    i_b = r * p.b_stride + p.b_col0 + first;
    i_sum = r * p.sum_stride + p.sum_col0 + first;
    i_parts = r * p.parts_stride + p.parts_col0;
    i_shares = r * p.n_used;
    i_shared = r * p.shared_stride + p.shared_col0;
    i_gate = r * p.gate_stride + p.gate_col0;
    if (OF == TD_VK_NORM_POST) {
        precise float sum = 0.0;
        for (uint i = t; i < p.group_cols; i += 256u)
            sum = fma(b[i_b + i], b[i_b + i], sum);
        b_scale = scale_of(t, sum);
        barrier(); /* all have it */
    }
    if (TO == TD_VK_NORM_NONE) {
        for (uint i = t; i < p.group_cols; i += 256u) {
            vec2 more = added(i);
            keep(i, total(i, more), more);
        }
        return;
    }
    precise float sum = 0.0;
    for (uint i = t; i < p.group_cols; i += 256u) {
        float v = total(i, added(i));
        sum = fma(v, v, sum);
    }
    float scale = scale_of(t, sum);
    if (HAS_INT8) {
        finish_blocks(t, r, scale);
        return;
    }
    for (uint i = t; i < p.group_cols; i += 256u) {
        vec2 more = added(i);
        float v = total(i, more), normed = norm(i, v, scale);
        keep(i, v, more);
        y[i_y + i] = normed;
    }
}
