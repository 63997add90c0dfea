/* Records ops: checks every shape against its neighbours, then appends one td_op. Nothing here
 * knows a backend. */
#include "kernels/ops.h"

#include "base/check.h"
#include "base/mem.h"
#include "kernels/backend.h"

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
    /* kv_store has no output view: its rows are those of k. */
    const td_tensor *t = op->kind == TD_OP_KV_STORE ? op->in[0].t : op->out.t;
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

static void append(td_program *p, const td_op *op)
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

void td_op_mat_mul(td_program *p, td_weight *w, td_weight *bias, td_view x, td_view y)
{
    check_view(p, x, TD_ELEM_F32);
    check_view(p, y, TD_ELEM_F32);
    check_rows_alike(x, y);
    TD_ASSERT(x.t != y.t || x.col0 + x.n_cols <= y.col0 || y.col0 + y.n_cols <= x.col0);
    TD_ASSERT(w->dev == p->dev && x.n_cols == w->params.n_cols && y.n_cols == w->params.n_rows);
    if (bias)
        check_vector(p, bias, w->params.n_rows);
    append(
        p,
        &(td_op){.kind = TD_OP_MAT_MUL, .n_in = 1, .in = {x}, .out = y, .weight = w, .bias = bias});
}

void td_op_rope(td_program *p, td_view x, td_tensor *cos_sin, td_rope_kind kind, uint32_t head_dim,
                uint32_t n_rot)
{
    check_view(p, x, TD_ELEM_F32);
    check_view(p, td_all(cos_sin), TD_ELEM_F32);
    check_rows_alike(x, td_all(cos_sin));
    TD_ASSERT(head_dim > 0 && x.n_cols % head_dim == 0);
    TD_ASSERT(n_rot >= 2 && n_rot % 2 == 0 && n_rot <= head_dim);
    TD_ASSERT(cos_sin->params.n_cols == n_rot);
    append(p, &(td_op){.kind = TD_OP_ROPE,
                       .n_in = 2,
                       .in = {x, td_all(cos_sin)},
                       .out = x,
                       .u.rope = {kind, head_dim, n_rot}});
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
    append(p, &(td_op){.kind = TD_OP_ATTENTION,
                       .n_in = 1,
                       .in = {q},
                       .out = y,
                       .kv = kv,
                       .batch = *batch,
                       .u.attention = *params});
}

static void append_pair(td_program *p, td_op_kind kind, td_view a, td_view b, td_view y)
{
    check_view(p, a, TD_ELEM_F32);
    check_view(p, b, TD_ELEM_F32);
    check_view(p, y, TD_ELEM_F32);
    check_rows_alike(a, y);
    check_rows_alike(b, y);
    check_overlap(a, y);
    check_overlap(b, y);
    TD_ASSERT(a.n_cols == y.n_cols && b.n_cols == y.n_cols);
    append(p, &(td_op){.kind = kind, .n_in = 2, .in = {a, b}, .out = y});
}

void td_op_swiglu(td_program *p, td_view gate, td_view up, td_view y)
{
    append_pair(p, TD_OP_SWIGLU, gate, up, y);
}

void td_op_add(td_program *p, td_view a, td_view b, td_view y)
{
    append_pair(p, TD_OP_ADD, a, b, y);
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

void td_op_pick(td_program *p, td_tensor *parts, td_tensor *draws, td_tensor *picks)
{
    check_view(p, td_all(parts), TD_ELEM_I32);
    check_view(p, td_all(picks), TD_ELEM_I32);
    check_draws(p, draws);
    TD_ASSERT(parts->params.rows == TD_ROWS_OUT && picks->params.rows == TD_ROWS_OUT);
    TD_ASSERT(parts->params.n_cols % TD_PART_WORDS == 0 && picks->params.n_cols == TD_PICK_WORDS);
    append(p, &(td_op){.kind = TD_OP_PICK,
                       .n_in = 2,
                       .in = {td_all(parts), td_all(draws)},
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
