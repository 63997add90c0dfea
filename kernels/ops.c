/* Records ops: checks every shape against its neighbours, then appends one td_op. Nothing here
 * knows a backend. */
#include "kernels/ops.h"

#include "base/check.h"
#include "base/mem.h"
#include "kernels/backend.h"
#include "kernels/sabotage.h"

td_view td_all(td_tensor *t) { return (td_view){t, 0, t->params.n_cols}; }

td_view td_columns(td_tensor *t, uint32_t col0, uint32_t n_cols)
{
    TD_ASSERT(n_cols > 0 && col0 <= t->params.n_cols && n_cols <= t->params.n_cols - col0);
    return (td_view){t, col0, n_cols};
}

uint32_t td_op_rows(const td_op *op, uint32_t n_rows, uint32_t n_out)
{
    if (op->kind == TD_OP_FEED)
        return n_out ? 1 : 0;
    /* Ops without an output view have the rows of their first input. */
    const td_tensor *t = op->out.t ? op->out.t : op->in[0].t;
    switch (t->params.rows) {
    case TD_ROWS_BATCH:
        return n_rows;
    case TD_ROWS_OUT:
        return n_out;
    case TD_ROWS_FIXED:
        break;
    }
    return t->params.n_rows;
}

static void check_view(const td_program *p, td_view v, td_elem elem)
{
    TD_ASSERT(v.t && v.t->dev == p->dev && v.t->params.elem == elem && v.n_cols > 0);
    TD_ASSERT(v.col0 <= v.t->params.n_cols && v.n_cols <= v.t->params.n_cols - v.col0);
    TD_ASSERT(v.t->params.rows != TD_ROWS_BATCH || v.t->params.n_rows >= p->params.n_rows_max);
    TD_ASSERT(v.t->params.rows != TD_ROWS_OUT || v.t->params.n_rows >= p->params.n_out_max);
}

static void check_rows_alike(td_view a, td_view b)
{
    TD_ASSERT(a.t->params.rows == b.t->params.rows);
}

/* Two views of one tensor are the same columns or share none: an op may then work in place, or
 * on unrelated columns, but never on half of its own input. */
static void check_overlap(td_view in, td_view out)
{
    TD_ASSERT(in.t != out.t || (in.col0 == out.col0 && in.n_cols == out.n_cols) ||
              in.col0 + in.n_cols <= out.col0 || out.col0 + out.n_cols <= in.col0);
}

static void check_vector(const td_program *p, const td_weight *w, uint32_t n)
{
    TD_ASSERT(w->dev == p->dev && w->params.type->id == TD_TYPE_F32);
    TD_ASSERT(w->params.n_rows == 1 && w->params.n_cols == n);
}

static void check_batch(const td_program *p, const td_batch_tensors *b)
{
    check_view(p, td_all(b->positions), TD_ELEM_I32);
    check_view(p, td_all(b->slots), TD_ELEM_I32);
    check_view(p, td_all(b->pages), TD_ELEM_I32);
    TD_ASSERT(b->positions->params.rows == TD_ROWS_BATCH && b->slots->params.rows == TD_ROWS_BATCH);
    TD_ASSERT(b->pages->params.rows == TD_ROWS_FIXED);
}

static void append_one(td_program *p, const td_op *op)
{
    TD_ASSERT(!p->is_compiled && p->n_ops < TD_PROGRAM_OPS_MAX);
    if (p->n_ops == p->capacity && !p->is_out_of_memory) {
        uint32_t capacity = p->capacity ? 2 * p->capacity : 64;
        td_op *grown = td_realloc(p->ops, p->n_ops, capacity, sizeof *grown, NULL);
        if (grown) {
            p->ops = grown;
            p->capacity = capacity;
        } else {
            p->is_out_of_memory = true;
        }
    }
    if (!p->is_out_of_memory)
        p->ops[p->n_ops++] = *op;
}

static void append(td_program *p, const td_op *op)
{
    td_op spoil;
    td_sabotage_place place = td_sabotage_of(p->dev, op, &spoil);
    if (place == TD_SABOTAGE_BEFORE)
        append_one(p, &spoil);
    append_one(p, op);
    if (place == TD_SABOTAGE_AFTER)
        append_one(p, &spoil);
}

void td_op_embed(td_program *p, td_weight *w, td_view ids, td_view y)
{
    check_view(p, ids, TD_ELEM_I32);
    check_view(p, y, TD_ELEM_F32);
    check_rows_alike(ids, y);
    TD_ASSERT(w->dev == p->dev && ids.n_cols == 1 && y.n_cols == w->params.n_cols);
    append(p, &(td_op){.kind = TD_OP_EMBED, .n_in = 1, .in = {ids}, .out = y, .weight = w});
}

void td_op_rms_norm(td_program *p, td_view x, td_weight *w, uint32_t n_groups, float eps, td_view y)
{
    check_view(p, x, TD_ELEM_F32);
    check_view(p, y, TD_ELEM_F32);
    check_rows_alike(x, y);
    check_overlap(x, y);
    TD_ASSERT(x.n_cols == y.n_cols && n_groups > 0 && x.n_cols % n_groups == 0);
    if (w)
        check_vector(p, w, x.n_cols / n_groups);
    append(p, &(td_op){.kind = TD_OP_RMS_NORM,
                       .n_in = 1,
                       .in = {x},
                       .out = y,
                       .weight = w,
                       .u.rms_norm = {n_groups, eps}});
}

/* What the three kinds of mat_mul have in common; n_cols of x and y are checked by each. */
static td_op mat_mul(td_program *p, td_weight *w, td_weight *bias, td_view x, td_view y)
{
    check_view(p, x, TD_ELEM_F32);
    check_view(p, y, TD_ELEM_F32);
    check_rows_alike(x, y);
    TD_ASSERT(x.t != y.t || x.col0 + x.n_cols <= y.col0 || y.col0 + y.n_cols <= x.col0);
    TD_ASSERT(w->dev == p->dev);
    if (bias)
        check_vector(p, bias, w->params.n_rows);
    return (td_op){
        .kind = TD_OP_MAT_MUL, .n_in = 1, .in = {x}, .out = y, .weight = w, .bias = bias};
}

void td_op_mat_mul(td_program *p, td_weight *w, td_weight *bias, td_view x, td_view y)
{
    TD_ASSERT(x.n_cols == w->params.n_cols && y.n_cols == w->params.n_rows);
    TD_ASSERT(w->params.n_groups <= 1);
    td_op op = mat_mul(p, w, bias, x, y);
    append(p, &op);
}

void td_op_mat_mul_groups(td_program *p, td_weight *w, td_view x, uint32_t x_stride, td_view y,
                          uint32_t y_stride)
{
    uint32_t n = td_max_u32(w->params.n_groups, 1), m = td_group_rows(&w->params);
    TD_ASSERT(x.n_cols == (n - 1) * x_stride + w->params.n_cols);
    TD_ASSERT(y_stride >= m && y.n_cols == (n - 1) * y_stride + m);
    TD_ASSERT(n <= TD_EXPERTS_MAX && (!x_stride || x_stride == w->params.n_cols));
    td_op op = mat_mul(p, w, NULL, x, y);
    op.u.mat_mul.n_groups = n;
    op.u.mat_mul.x_stride = x_stride;
    op.u.mat_mul.y_stride = y_stride;
    append(p, &op);
}

static void check_experts(const td_program *p, td_tensor *experts, td_elem elem, td_view x)
{
    check_view(p, td_all(experts), elem);
    check_rows_alike(td_all(experts), x);
    TD_ASSERT(experts->params.n_cols <= TD_EXPERTS_USED_MAX);
}

void td_op_mat_mul_experts(td_program *p, td_weight *w, td_weight *bias, td_tensor *experts,
                           td_view x, td_view y)
{
    uint32_t n_used = experts->params.n_cols, n_cols = w->params.n_cols;
    check_experts(p, experts, TD_ELEM_I32, x);
    TD_ASSERT(w->params.n_groups > 0 && w->params.n_groups <= TD_EXPERTS_MAX);
    TD_ASSERT(y.n_cols == n_used * td_group_rows(&w->params));
    TD_ASSERT(x.n_cols == n_cols || x.n_cols == n_used * n_cols);
    td_op op = mat_mul(p, w, bias, x, y);
    op.n_in = 2;
    op.in[1] = td_all(experts);
    op.u.mat_mul.n_groups = n_used;
    op.u.mat_mul.x_stride = x.n_cols == n_cols ? 0 : n_cols;
    op.u.mat_mul.y_stride = td_group_rows(&w->params);
    op.u.mat_mul.is_by_expert = true;
    append(p, &op);
}

void td_op_rope(td_program *p, td_view x, td_view cos_sin, td_rope_kind kind, uint32_t head_dim,
                uint32_t col0)
{
    uint32_t n_rot = cos_sin.n_cols;
    check_view(p, x, TD_ELEM_F32);
    check_view(p, cos_sin, TD_ELEM_F32);
    check_rows_alike(x, cos_sin);
    TD_ASSERT(head_dim > 0 && x.n_cols % head_dim == 0);
    TD_ASSERT(n_rot >= 2 && n_rot % 2 == 0 && col0 <= head_dim && n_rot <= head_dim - col0);
    append(p, &(td_op){.kind = TD_OP_ROPE,
                       .n_in = 2,
                       .in = {x, cos_sin},
                       .out = x,
                       .u.rope = {kind, head_dim, col0, n_rot}});
}

void td_op_kv_store(td_program *p, td_kv *kv, td_view k, td_view v, const td_batch_tensors *batch)
{
    check_view(p, k, TD_ELEM_F32);
    check_view(p, v, TD_ELEM_F32);
    check_batch(p, batch);
    check_rows_alike(k, td_all(batch->positions));
    check_rows_alike(k, v);
    TD_ASSERT(kv->dev == p->dev && k.n_cols == kv->params.n_head_kv * kv->params.head_dim_k);
    TD_ASSERT(v.n_cols == kv->params.n_head_kv * kv->params.head_dim_v);
    append(p, &(td_op){.kind = TD_OP_KV_STORE, .n_in = 2, .in = {k, v}, .kv = kv, .batch = *batch});
}

void td_op_attention(td_program *p, td_kv *kv, td_view q, td_view y,
                     const td_attention_params *params, const td_batch_tensors *batch)
{
    check_view(p, q, TD_ELEM_F32);
    check_view(p, y, TD_ELEM_F32);
    check_batch(p, batch);
    check_rows_alike(q, td_all(batch->positions));
    check_rows_alike(q, y);
    TD_ASSERT(q.t != y.t);
    TD_ASSERT(kv->dev == p->dev && params->n_head % kv->params.n_head_kv == 0);
    TD_ASSERT(q.n_cols == params->n_head * kv->params.head_dim_k);
    TD_ASSERT(y.n_cols == params->n_head * kv->params.head_dim_v);
    if (params->sinks)
        check_vector(p, params->sinks, params->n_head);
    append(p, &(td_op){.kind = TD_OP_ATTENTION,
                       .n_in = 1,
                       .in = {q},
                       .out = y,
                       .kv = kv,
                       .batch = *batch,
                       .u.attention = *params});
}

/* Inputs of an op that goes element by element. */
static void check_element(const td_program *p, td_view x, td_view y)
{
    check_view(p, x, TD_ELEM_F32);
    check_view(p, y, TD_ELEM_F32);
    check_rows_alike(x, y);
    check_overlap(x, y);
}

static void append_glu(td_program *p, td_op *op, td_tensor *scales)
{
    if (scales) {
        check_experts(p, scales, TD_ELEM_F32, op->out);
        TD_ASSERT(op->in[0].n_cols == op->in[1].n_cols &&
                  op->out.n_cols % scales->params.n_cols == 0);
        op->in[op->n_in++] = td_all(scales);
        op->u.glu.n_scales = scales->params.n_cols;
    }
    append(p, op);
}

void td_op_glu(td_program *p, td_glu_kind kind, td_view gate, td_view up, td_tensor *scales,
               td_view y)
{
    check_element(p, gate, y);
    check_element(p, up, y);
    TD_ASSERT(up.n_cols == y.n_cols);
    TD_ASSERT(gate.n_cols == y.n_cols || (kind == TD_GLU_SIGMOID && gate.n_cols == 1));
    append_glu(p,
               &(td_op){.kind = TD_OP_GLU,
                        .n_in = 2,
                        .in = {gate, up},
                        .out = y,
                        .u.glu = {.kind = kind, .n_groups = 1}},
               scales);
}

void td_op_glu_groups(td_program *p, td_glu_kind kind, td_view gate, td_view up, uint32_t n_groups,
                      uint32_t stride, td_tensor *scales, td_view y)
{
    check_element(p, gate, y);
    check_element(p, up, y);
    TD_ASSERT(n_groups > 0 && y.n_cols % n_groups == 0 && gate.n_cols == up.n_cols);
    TD_ASSERT(gate.n_cols == (n_groups - 1) * stride + y.n_cols / n_groups);
    TD_ASSERT(gate.t != y.t && up.t != y.t);
    append_glu(p,
               &(td_op){.kind = TD_OP_GLU,
                        .n_in = 2,
                        .in = {gate, up},
                        .out = y,
                        .u.glu = {.kind = kind, .n_groups = n_groups, .stride = stride}},
               scales);
}

void td_op_add(td_program *p, td_view a, td_view b, td_view y)
{
    check_element(p, a, y);
    check_element(p, b, y);
    TD_ASSERT(a.n_cols == y.n_cols && b.n_cols == y.n_cols);
    append(p, &(td_op){.kind = TD_OP_ADD, .n_in = 2, .in = {a, b}, .out = y});
}

void td_op_scale(td_program *p, td_view x, float factor, td_view factors, td_view y)
{
    check_element(p, x, y);
    TD_ASSERT(x.n_cols == y.n_cols);
    td_op op = {.kind = TD_OP_SCALE, .n_in = 1, .in = {x}, .out = y, .u.scale = {factor}};
    if (factors.t) {
        check_element(p, factors, y);
        TD_ASSERT(factors.n_cols == 1);
        op.in[op.n_in++] = factors;
    }
    append(p, &op);
}

void td_op_softcap(td_program *p, td_view x, float cap, td_view y)
{
    check_element(p, x, y);
    TD_ASSERT(x.n_cols == y.n_cols && cap > 0);
    append(p, &(td_op){.kind = TD_OP_SOFTCAP, .n_in = 1, .in = {x}, .out = y, .u.scale = {cap}});
}

void td_op_route(td_program *p, td_view logits, td_weight *bias, const td_route_params *params,
                 td_tensor *experts, td_tensor *weights)
{
    uint32_t n_groups = td_max_u32(params->n_groups, 1);
    check_view(p, logits, TD_ELEM_F32);
    check_experts(p, experts, TD_ELEM_I32, logits);
    check_experts(p, weights, TD_ELEM_F32, logits);
    TD_ASSERT(logits.n_cols <= TD_EXPERTS_MAX && logits.n_cols % n_groups == 0);
    TD_ASSERT(params->n_groups_used <= n_groups && (n_groups == 1 || params->n_groups_used > 0));
    TD_ASSERT(experts->params.n_cols == weights->params.n_cols);
    TD_ASSERT(experts->params.n_cols <=
              (n_groups > 1 ? params->n_groups_used : 1) * (logits.n_cols / n_groups));
    if (bias)
        check_vector(p, bias, logits.n_cols);
    append(p, &(td_op){.kind = TD_OP_ROUTE,
                       .n_in = 1,
                       .in = {logits},
                       .out = td_all(weights),
                       .weight = bias,
                       .n_writes = 1,
                       .writes = {experts},
                       .u.route = *params});
}

void td_op_experts_sum(td_program *p, td_view x, td_tensor *weights, td_view y)
{
    check_view(p, x, TD_ELEM_F32);
    check_view(p, y, TD_ELEM_F32);
    check_rows_alike(x, y);
    check_experts(p, weights, TD_ELEM_F32, x);
    TD_ASSERT(x.t != y.t && x.n_cols == weights->params.n_cols * y.n_cols);
    append(p, &(td_op){.kind = TD_OP_EXPERTS_SUM, .n_in = 2, .in = {x, td_all(weights)}, .out = y});
}

static void check_state(const td_program *p, const td_state *s, td_view x,
                        const td_batch_tensors *batch)
{
    check_view(p, x, TD_ELEM_F32);
    check_batch(p, batch);
    check_view(p, td_all(batch->spans), TD_ELEM_I32);
    check_rows_alike(x, td_all(batch->positions));
    TD_ASSERT(s->dev == p->dev && x.n_cols == td_state_cols(&s->params));
    TD_ASSERT(batch->spans->params.rows == TD_ROWS_FIXED && batch->spans->params.n_cols == 2);
    TD_ASSERT(batch->spans->params.n_rows == s->params.n_slots);
}

void td_op_delta_net(td_program *p, td_state *state, td_view x, const td_delta_net_params *params,
                     const td_batch_tensors *batch, td_view y)
{
    const td_state_params *s = &state->params;
    check_state(p, state, x, batch);
    check_view(p, y, TD_ELEM_F32);
    check_rows_alike(x, y);
    check_vector(p, params->conv, (2 * s->n_head_k + s->n_head_v) * s->dim * s->n_taps);
    check_vector(p, params->a, s->n_head_v);
    check_vector(p, params->dt, s->n_head_v);
    TD_ASSERT(x.t != y.t && y.n_cols == s->n_head_v * s->dim);
    append(p, &(td_op){.kind = TD_OP_DELTA_NET,
                       .n_in = 1,
                       .in = {x},
                       .out = y,
                       .state = state,
                       .batch = *batch,
                       .u.delta_net = *params});
}

void td_op_state_keep(td_program *p, td_state *state, td_view x, const td_batch_tensors *batch)
{
    check_state(p, state, x, batch);
    append(p, &(td_op){
                  .kind = TD_OP_STATE_KEEP, .n_in = 1, .in = {x}, .state = state, .batch = *batch});
}

void td_op_gather(td_program *p, td_view x, td_tensor *rows, td_view y)
{
    check_view(p, x, TD_ELEM_F32);
    check_view(p, td_all(rows), TD_ELEM_I32);
    check_view(p, y, TD_ELEM_F32);
    TD_ASSERT(x.t != y.t && x.n_cols == y.n_cols && rows->params.n_cols == 1);
    TD_ASSERT(rows->params.rows == TD_ROWS_OUT && y.t->params.rows == TD_ROWS_OUT);
    append(p, &(td_op){.kind = TD_OP_GATHER, .n_in = 2, .in = {x, td_all(rows)}, .out = y});
}

static void check_draws(const td_program *p, td_tensor *draws)
{
    check_view(p, td_all(draws), TD_ELEM_I32);
    TD_ASSERT(draws->params.rows == TD_ROWS_OUT && draws->params.n_cols == TD_DRAW_WORDS);
}

void td_draw_push(td_draw *d, uint32_t token)
{
    if (!d->n_recent_max)
        return;
    d->recent[d->i_next] = token;
    d->i_next = (d->i_next + 1) % d->n_recent_max;
    d->n_recent = td_min_u32(d->n_recent + 1, d->n_recent_max);
}

void td_op_top(td_program *p, td_view logits, td_tensor *draws, td_tensor *parts)
{
    check_view(p, logits, TD_ELEM_F32);
    check_view(p, td_all(parts), TD_ELEM_I32);
    check_draws(p, draws);
    TD_ASSERT(logits.t->params.rows == TD_ROWS_OUT && parts->params.rows == TD_ROWS_OUT);
    TD_ASSERT(parts->params.n_cols == td_div_up(logits.n_cols, TD_TOP_CHUNK) * TD_PART_WORDS);
    append(p,
           &(td_op){
               .kind = TD_OP_TOP, .n_in = 2, .in = {logits, td_all(draws)}, .out = td_all(parts)});
}

void td_op_pick(td_program *p, td_view logits, td_tensor *parts, td_tensor *draws, td_tensor *picks)
{
    check_view(p, logits, TD_ELEM_F32);
    check_view(p, td_all(parts), TD_ELEM_I32);
    check_view(p, td_all(picks), TD_ELEM_I32);
    check_draws(p, draws);
    TD_ASSERT(parts->params.rows == TD_ROWS_OUT && picks->params.rows == TD_ROWS_OUT);
    TD_ASSERT(parts->params.n_cols == td_div_up(logits.n_cols, TD_TOP_CHUNK) * TD_PART_WORDS);
    TD_ASSERT(picks->params.n_cols == TD_PICK_WORDS);
    append(p, &(td_op){.kind = TD_OP_PICK,
                       .n_in = 3,
                       .in = {td_all(parts), td_all(draws), logits},
                       .out = td_all(picks)});
}

void td_op_feed(td_program *p, const td_feed_tensors *f)
{
    check_draws(p, f->draws);
    check_view(p, td_all(f->picks), TD_ELEM_I32);
    check_view(p, td_all(f->ids), TD_ELEM_I32);
    check_view(p, td_all(f->positions), TD_ELEM_I32);
    check_view(p, td_all(f->cos_sin), TD_ELEM_F32);
    check_view(p, td_all(f->trail), TD_ELEM_I32);
    TD_ASSERT(f->picks->params.n_cols == TD_PICK_WORDS && f->trail->params.rows == TD_ROWS_FIXED);
    TD_ASSERT(f->trail->params.n_cols == TD_PICK_WORDS);
    TD_ASSERT(f->table->dev == p->dev && f->table->params.type->id == TD_TYPE_F32);
    TD_ASSERT(f->table->params.n_rows > 1 && f->table->params.n_cols == f->cos_sin->params.n_cols);
    append(p, &(td_op){.kind = TD_OP_FEED,
                       .n_in = 1,
                       .in = {td_all(f->picks)},
                       .out = td_all(f->trail),
                       .weight = f->table,
                       .n_writes = 4,
                       .writes = {f->draws, f->ids, f->positions, f->cos_sin}});
}
