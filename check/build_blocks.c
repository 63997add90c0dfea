/* Rigs of a layer's blocks (builders.h): ops in the order and on the tensors that model/forward.c
 * gives them, what lies between them seen by nobody else. A device may fuse them; what comes out
 * must be as if it had not. */
#include "check/builders.h"

#include "base/check.h"

#include <math.h>

#define EPS         1e-6f
#define N_POSITIONS 5u /* of each row's sequence, itself the last */

/* One rounding that falls the other way, of 8-bit activations, goes on to the next products. */
static double block_tolerance(const char *type)
{
    return td_type_find_name(type)->has_int8_activations ? 2e-2 : 1e-4;
}

static td_view input(td_rig *r, uint32_t n_cols, uint64_t seed)
{
    td_tensor *t = td_rig_rows(r, TD_ELEM_F32, TD_ROWS_BATCH, n_cols);
    const float *values = td_rig_random(r, (size_t)r->n_data * n_cols, seed, 1.0f);
    if (r->is_ok)
        td_rig_input_of(r, td_all(t), values);
    return (td_view){t, 0, n_cols};
}

static td_view hidden(td_rig *r, uint32_t n_cols)
{
    return (td_view){td_rig_hidden(r, n_cols), 0, n_cols};
}

static td_weight *norm(td_rig *r, uint32_t n, uint64_t seed)
{
    const float *values = td_rig_random(r, n, seed, 1.0f);
    return td_rig_vector(r, values, n);
}

static td_view output(td_rig *r, const td_case *c)
{
    td_view y = {td_rig_rows(r, TD_ELEM_F32, TD_ROWS_BATCH, c->n[0] + 1), 1, c->n[0]};
    if (r->is_ok)
        td_rig_output_of(r, y, block_tolerance(c->type));
    return y;
}

/* x += delta; y = x + down(glu(gate(norm(x)), up(norm(x)))). */
bool td_build_feed_forward(td_rig *r, td_device *dev, const td_case *c, td_err *err)
{
    uint32_t n = c->n[0], n_ff = c->n[1];
    td_rig_begin(r, dev, c->mode, c->n_data, err);
    td_view x = input(r, n, 201), delta = input(r, n, 202), normed = hidden(r, n);
    td_view gate = hidden(r, n_ff), up = hidden(r, n_ff), down = hidden(r, n), y = output(r, c);
    td_weight *w_norm = norm(r, n, 203);
    td_weight *w_gate = td_rig_weight(r, c->type, n_ff, n, 0, 204);
    td_weight *w_up = td_rig_weight(r, c->type, n_ff, n, 0, 205);
    td_weight *w_down = td_rig_weight(r, c->type, n, n_ff, 0, 206);
    if (!r->is_ok)
        return false;
    td_op_add(r->p, x, delta, x);
    td_op_rms_norm(r->p, x, w_norm, 1, EPS, normed);
    td_op_mat_mul(r->p, w_gate, NULL, normed, gate);
    td_op_mat_mul(r->p, w_up, NULL, normed, up);
    td_op_glu(r->p, TD_GLU_SILU, gate, up, NULL, gate);
    td_op_mat_mul(r->p, w_down, NULL, gate, down);
    td_op_add(r->p, x, down, y);
    return td_rig_end(r);
}

/* Each row is the last of a sequence of its own, as its heads' norms, rope and cache want it. */
bool td_build_attention_block(td_rig *r, td_device *dev, const td_case *c, td_err *err)
{
    uint32_t n = c->n[0], n_kv = c->n[1], n_head = n_kv * c->n[2], dim = c->n[3];
    td_rig_begin(r, dev, c->mode, c->n_data, err);
    int32_t *positions = td_rig_alloc(r, c->n_data, sizeof *positions);
    int32_t *slots = td_rig_alloc(r, c->n_data, sizeof *slots);
    for (uint32_t i = 0; r->is_ok && i < c->n_data; i++) {
        positions[i] = N_POSITIONS - 1;
        slots[i] = (int32_t)i;
    }
    td_batch_tensors batch = td_build_batch(r, positions, slots, c->n_data, 1);
    td_kv *kv = td_rig_kv(r, &(td_kv_params){td_type_find_name(c->type_v),
                                             td_type_find_name(c->type_v), n_kv, dim, dim,
                                             c->n_data, false, false, false});
    td_view x = input(r, n, 211), cos_sin = input(r, dim, 212), normed = hidden(r, n);
    td_view q = hidden(r, n_head * dim), k = hidden(r, n_kv * dim), v = hidden(r, n_kv * dim);
    td_view attended = hidden(r, n_head * dim), out = hidden(r, n), y = output(r, c);
    td_weight *w_norm = norm(r, n, 213), *q_norm = norm(r, dim, 214), *k_norm = norm(r, dim, 215);
    td_weight *w_q = td_rig_weight(r, c->type, n_head * dim, n, 0, 216);
    td_weight *w_k = td_rig_weight(r, c->type, n_kv * dim, n, 0, 217);
    td_weight *w_v = td_rig_weight(r, c->type, n_kv * dim, n, 0, 218);
    td_weight *w_o = td_rig_weight(r, c->type, n, n_head * dim, 0, 219);
    td_build_fill(r, kv, batch.pages, c->n_data, N_POSITIONS - 1);
    if (!r->is_ok)
        return false;
    td_op_rms_norm(r->p, x, w_norm, 1, EPS, normed);
    td_op_mat_mul(r->p, w_q, NULL, normed, q);
    td_op_mat_mul(r->p, w_k, NULL, normed, k);
    td_op_mat_mul(r->p, w_v, NULL, normed, v);
    td_op_rms_norm(r->p, q, q_norm, n_head, EPS, q);
    td_op_rms_norm(r->p, k, k_norm, n_kv, EPS, k);
    td_op_rope(r->p, q, cos_sin, TD_ROPE_NEOX, dim, 0);
    td_op_rope(r->p, k, cos_sin, TD_ROPE_NEOX, dim, 0);
    td_op_kv_store(r->p, kv, k, v, &batch);
    td_op_attention(
        r->p, kv, q, attended,
        &(td_attention_params){.n_head = n_head, .scale = 1 / sqrtf((float)dim)}, &batch);
    td_op_mat_mul(r->p, w_o, NULL, attended, out);
    td_op_add(r->p, x, out, y);
    return td_rig_end(r);
}

bool td_build_mixture(td_rig *r, td_device *dev, const td_case *c, td_err *err)
{
    uint32_t n = c->n[0], n_expert = c->n[1], n_used = c->n[2], n_ff = c->n[3];
    td_rig_begin(r, dev, c->mode, c->n_data, err);
    td_view x = input(r, n, 221), normed = hidden(r, n), logits = hidden(r, n_expert);
    td_view gate = hidden(r, n_used * n_ff), up = hidden(r, n_used * n_ff);
    td_view parts = hidden(r, n_used * n), sum = hidden(r, n), y = output(r, c);
    td_tensor *experts = td_rig_rows(r, TD_ELEM_I32, TD_ROWS_BATCH, n_used);
    td_tensor *weights = td_rig_rows(r, TD_ELEM_F32, TD_ROWS_BATCH, n_used);
    td_weight *w_norm = norm(r, n, 222);
    td_weight *w_router = td_rig_weight(r, "F32", n_expert, n, 0, 223);
    td_weight *w_gate = td_rig_weight(r, c->type, n_expert * n_ff, n, n_expert, 224);
    td_weight *w_up = td_rig_weight(r, c->type, n_expert * n_ff, n, n_expert, 225);
    td_weight *w_down = td_rig_weight(r, c->type, n_expert * n, n_ff, n_expert, 226);
    if (!r->is_ok)
        return false;
    td_op_rms_norm(r->p, x, w_norm, 1, EPS, normed);
    td_op_mat_mul(r->p, w_router, NULL, normed, logits);
    td_op_route(r->p, logits, NULL,
                &(td_route_params){
                    .gating = TD_GATING_SOFTMAX, .is_normalized = true, .scale = 1.0f},
                experts, weights);
    td_op_mat_mul_experts(r->p, w_gate, NULL, experts, normed, gate);
    td_op_mat_mul_experts(r->p, w_up, NULL, experts, normed, up);
    td_op_glu(r->p, TD_GLU_SILU, gate, up, NULL, gate);
    td_op_mat_mul_experts(r->p, w_down, NULL, experts, gate, parts);
    td_op_experts_sum(r->p, parts, weights, sum);
    td_op_add(r->p, x, sum, y);
    return td_rig_end(r);
}
