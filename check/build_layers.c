/* Rigs of the ops that take each row for itself (builders.h). Views lie off the edges of their
 * tensors, as fused projections do, so that a write past them shows. */
#include "check/builders.h"

#include "base/check.h"
#include "base/rng.h"

/* Tolerances: of the largest number of a row. Of products: what f32 sums in another order may err
 * by, and, where activations are 8 bits, one of them a step off now and then. */
#define EXACT     0.0
#define ROUNDING  2e-6
#define FUNCTIONS 1e-5 /* exp, tanh, division as a GPU has them */
#define PRODUCT   1e-5
#define PRODUCT_8 2e-3

static double product_tolerance(const char *type)
{
    return td_type_find_name(type)->has_int8_activations ? PRODUCT_8 : PRODUCT;
}

/* A tensor with the view in it, and random rows or what comes out. */
static td_view input(td_rig *r, uint32_t n_cols, uint64_t seed, float scale)
{
    td_tensor *t = td_rig_rows(r, TD_ELEM_F32, TD_ROWS_BATCH, n_cols + 4);
    const float *values = td_rig_random(r, (size_t)r->n_data * n_cols, seed, scale);
    td_view v = {t, 4, n_cols};
    if (r->is_ok)
        td_rig_input_of(r, v, values);
    return v;
}

static td_view output(td_rig *r, uint32_t n_cols, double tolerance)
{
    td_view v = {td_rig_rows(r, TD_ELEM_F32, TD_ROWS_BATCH, n_cols + 3), 1, n_cols};
    if (r->is_ok)
        td_rig_output_of(r, v, tolerance);
    return v;
}

bool td_build_embed(td_rig *r, td_device *dev, const td_case *c, td_err *err)
{
    td_rig_begin(r, dev, c->mode, c->n_data, err);
    td_weight *w = td_rig_weight(r, c->type, c->n[0], c->n[1], 0, 1);
    td_tensor *ids = td_rig_rows(r, TD_ELEM_I32, TD_ROWS_BATCH, 1);
    int32_t *values = td_rig_alloc(r, c->n_data, sizeof *values);
    td_view y = output(r, c->n[1], EXACT);
    if (!r->is_ok)
        return false;
    for (uint32_t i = 0; i < c->n_data; i++)
        values[i] = (int32_t)(i == 0 ? c->n[0] - 1 : td_noise_bits(2, i, 0) % c->n[0]);
    td_rig_input_of(r, td_all(ids), values);
    td_op_embed(r->p, w, td_all(ids), y);
    return td_rig_end(r);
}

bool td_build_rms_norm(td_rig *r, td_device *dev, const td_case *c, td_err *err)
{
    uint32_t n_group = c->n[0] / c->n[1];
    td_rig_begin(r, dev, c->mode, c->n_data, err);
    td_view x = input(r, c->n[0], 11, 3.0f), y = output(r, c->n[0], FUNCTIONS);
    const float *values = td_rig_random(r, n_group, 12, 1.0f);
    td_weight *w = td_rig_vector(r, values, n_group);
    if (!r->is_ok)
        return false;
    td_op_rms_norm(r->p, x, w, c->n[1], 1e-6f, y);
    return td_rig_end(r);
}

bool td_build_mat_mul(td_rig *r, td_device *dev, const td_case *c, td_err *err)
{
    /* Rows of the weight repeat, and so do the outputs: the oracle makes each once. */
    uint32_t n_o = r->is_oracle ? td_min_u32(c->n[0], TD_RIG_PERIOD) : c->n[0];
    td_rig_begin(r, dev, c->mode, c->n_data, err);
    td_view x = input(r, c->n[1], 21, 1.0f), y = output(r, n_o, product_tolerance(c->type));
    td_weight *w = td_rig_weight(r, c->type, n_o, c->n[1], 0, 22), *bias = NULL;
    float *values = td_rig_random(r, n_o, 23, 1.0f);
    for (uint32_t i = TD_RIG_PERIOD; r->is_ok && i < n_o; i++)
        values[i] = values[i - TD_RIG_PERIOD];
    if (c->variant)
        bias = td_rig_vector(r, values, n_o);
    if (!r->is_ok)
        return false;
    td_op_mat_mul(r->p, w, bias, x, y);
    return td_rig_end(r);
}

bool td_build_groups(td_rig *r, td_device *dev, const td_case *c, td_err *err)
{
    uint32_t n = c->n[0], m = c->n[1], n_k = c->n[2], y_stride = m;
    td_rig_begin(r, dev, c->mode, c->n_data, err);
    td_view x = input(r, n * n_k, 31, 1.0f);
    td_view y = output(r, n * m, product_tolerance(c->type));
    td_weight *w = td_rig_weight(r, c->type, n * m, n_k, n, 32);
    if (!r->is_ok)
        return false;
    td_op_mat_mul_groups(r->p, w, x, n_k, y, y_stride);
    return td_rig_end(r);
}

bool td_build_experts(td_rig *r, td_device *dev, const td_case *c, td_err *err)
{
    uint32_t n = c->n[0], n_used = c->n[1], m = c->n[2], n_k = c->n[3];
    td_rig_begin(r, dev, c->mode, c->n_data, err);
    td_view x = input(r, c->variant ? n_used * n_k : n_k, 41, 1.0f);
    td_view y = output(r, n_used * m, product_tolerance(c->type));
    td_weight *w = td_rig_weight(r, c->type, n * m, n_k, n, 42);
    td_tensor *experts = td_rig_rows(r, TD_ELEM_I32, TD_ROWS_BATCH, n_used);
    int32_t *chosen = td_rig_alloc(r, (size_t)c->n_data * n_used, sizeof *chosen);
    if (!r->is_ok)
        return false;
    for (uint32_t i = 0; i < c->n_data; i++) /* n_used different ones; of some rows the same */
        for (uint32_t k = 0; k < n_used; k++)
            chosen[i * n_used + k] = (int32_t)((td_noise_bits(43, i / 3, 0) % n + k) % n);
    td_rig_input_of(r, td_all(experts), chosen);
    td_op_mat_mul_experts(r->p, w, NULL, experts, x, y);
    return td_rig_end(r);
}

bool td_build_rope(td_rig *r, td_device *dev, const td_case *c, td_err *err)
{
    td_rig_begin(r, dev, c->mode, c->n_data, err);
    td_view x = input(r, c->n[0] * c->n[1], 51, 1.0f), cos_sin = input(r, c->n[2], 52, 1.0f);
    if (!r->is_ok)
        return false;
    td_rig_output_of(r, x, ROUNDING);
    td_op_rope(r->p, x, cos_sin, (td_rope_kind)c->variant, c->n[1], 0);
    return td_rig_end(r);
}

bool td_build_glu(td_rig *r, td_device *dev, const td_case *c, td_err *err)
{
    td_rig_begin(r, dev, c->mode, c->n_data, err);
    td_view gate = input(r, c->n[0], 61, 6.0f), up = input(r, c->n[0], 62, 4.0f);
    td_view y = output(r, c->n[0], FUNCTIONS);
    td_tensor *scales = c->n[1] ? td_rig_rows(r, TD_ELEM_F32, TD_ROWS_BATCH, c->n[1]) : NULL;
    const float *values = td_rig_random(r, (size_t)c->n_data * (c->n[1] + 1), 63, 1.0f);
    if (!r->is_ok)
        return false;
    if (scales)
        td_rig_input_of(r, td_all(scales), values);
    td_op_glu(r->p, (td_glu_kind)c->variant, gate, up, scales, y);
    return td_rig_end(r);
}

bool td_build_element(td_rig *r, td_device *dev, const td_case *c, td_err *err)
{
    td_rig_begin(r, dev, c->mode, c->n_data, err);
    td_view a = input(r, c->n[0], 71, 3.0f);
    td_view b = input(r, c->variant == TD_ELEMENT_ADD ? c->n[0] : 1, 72, 2.0f);
    td_view y = output(r, c->n[0], c->variant == TD_ELEMENT_SOFTCAP ? FUNCTIONS : ROUNDING);
    if (!r->is_ok)
        return false;
    if (c->variant == TD_ELEMENT_ADD)
        td_op_add(r->p, a, b, y);
    else if (c->variant == TD_ELEMENT_SCALE)
        td_op_scale(r->p, a, 1.5f, b, y);
    else
        td_op_softcap(r->p, a, 2.0f, y);
    return td_rig_end(r);
}

bool td_build_gather(td_rig *r, td_device *dev, const td_case *c, td_err *err)
{
    r->is_out = true;
    td_rig_begin(r, dev, c->mode, c->n_data, err);
    td_tensor *x = td_rig_rows(r, TD_ELEM_F32, TD_ROWS_BATCH, c->n[0]);
    td_tensor *rows = td_rig_rows(r, TD_ELEM_I32, TD_ROWS_OUT, 1);
    td_tensor *y = td_rig_rows(r, TD_ELEM_F32, TD_ROWS_OUT, c->n[0] + 2);
    float *values = td_rig_random(r, (size_t)c->n_data * c->n[0], 81, 1.0f);
    int32_t *ids = td_rig_alloc(r, c->n_data, sizeof *ids);
    if (!r->is_ok)
        return false;
    for (uint32_t i = 0; i < c->n_data; i++)
        ids[i] = (int32_t)(c->n_data - 1 - i);
    for (size_t i = 0; i < (size_t)c->n_data * c->n[0]; i++) /* read from wherever rows say */
        ((float *)td_tensor_data(x))[i] = values[i];
    td_rig_input_of(r, td_all(rows), ids);
    td_rig_output_of(r, td_columns(y, 1, c->n[0]), EXACT);
    td_op_gather(r->p, td_all(x), rows, td_columns(y, 1, c->n[0]));
    return td_rig_end(r);
}

bool td_build_route(td_rig *r, td_device *dev, const td_case *c, td_err *err)
{
    uint32_t n = c->n[0], n_used = c->n[1];
    bool has_groups = c->variant == TD_GATING_SIGMOID; /* and a bias, as DeepSeek's */
    td_rig_begin(r, dev, c->mode, c->n_data, err);
    td_view logits = input(r, n, 91, 12.0f);
    td_tensor *experts = td_rig_rows(r, TD_ELEM_I32, TD_ROWS_BATCH, n_used);
    td_tensor *weights = td_rig_rows(r, TD_ELEM_F32, TD_ROWS_BATCH, n_used);
    const float *values = td_rig_random(r, n, 92, 0.1f);
    td_weight *bias = has_groups ? td_rig_vector(r, values, n) : NULL;
    if (!r->is_ok)
        return false;
    td_rig_output_of(r, td_all(weights), FUNCTIONS);
    td_rig_output_of(r, td_all(experts), EXACT);
    td_op_route(r->p, logits, bias,
                &(td_route_params){.gating = (td_gating)c->variant,
                                   .n_groups = has_groups ? 4 : 0,
                                   .n_groups_used = has_groups ? 2 : 0,
                                   .is_normalized = c->variant == TD_GATING_SOFTMAX,
                                   .scale = 1.5f},
                experts, weights);
    return td_rig_end(r);
}

bool td_build_experts_sum(td_rig *r, td_device *dev, const td_case *c, td_err *err)
{
    td_rig_begin(r, dev, c->mode, c->n_data, err);
    td_view x = input(r, c->n[0] * c->n[1], 95, 1.0f), y = output(r, c->n[0], ROUNDING);
    td_tensor *weights = td_rig_rows(r, TD_ELEM_F32, TD_ROWS_BATCH, c->n[1]);
    const float *values = td_rig_random(r, (size_t)c->n_data * c->n[1], 96, 1.0f);
    if (!r->is_ok)
        return false;
    td_rig_input_of(r, td_all(weights), values);
    td_op_experts_sum(r->p, x, weights, y);
    return td_rig_end(r);
}
