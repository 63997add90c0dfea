/* Programs of the host device. Compiling turns the recorded ops into steps: an op, or the
 * quantization of a mat_mul's input, done once for all mat_muls that share it. Steps are gathered
 * into phases, and the pool runs each phase in as many parts as it has threads (pool.h).
 *
 * A phase ends only where it must. How a step is cut into parts is known per access: by columns in
 * units (a part has the same columns of every row), by rows, or otherwise. Two steps share a phase
 * when everything both touch is either only read or cut alike in both, so that a part meets
 * nothing but its own work: gate, up, swiglu and the quantization of its result, or a projection
 * and the residual add. None of this touches the arithmetic: a step's results do not depend on how
 * it is cut. */
#include "kernels/host/experts.h"
#include "kernels/host/host.h"
#include "kernels/host/recurrent.h"
#include "kernels/host/top.h"
#include "kernels/sabotage.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/mem.h"

#define COLUMN_UNIT  32u /* two panels, one activation block */
#define ACCESSES_MAX 96u

typedef enum { CUT_OTHER, CUT_ROWS, CUT_COLUMNS } cut;

typedef struct {
    const void *object; /* a tensor, a cache or an activation buffer */
    uint32_t col0, n_cols;
    bool is_write;
    cut cut;
    uint32_t unit; /* of CUT_COLUMNS */
} access;

typedef struct {
    access items[ACCESSES_MAX];
    uint32_t n;
} access_list;

typedef struct {
    td_view view;
    bool is_valid;
} act_content; /* what an activation buffer holds while compiling */

static access of_view(td_view v, bool is_write, cut how, uint32_t unit)
{
    return (access){v.t, v.col0, v.n_cols, is_write, how, unit};
}

static bool conflicts(const access *a, const access *b)
{
    if (a->object != b->object || (!a->is_write && !b->is_write))
        return false;
    if (a->col0 + a->n_cols <= b->col0 || b->col0 + b->n_cols <= a->col0)
        return false;
    return a->cut == CUT_OTHER || a->cut != b->cut || a->unit != b->unit || a->col0 != b->col0 ||
           a->n_cols != b->n_cols;
}

static void add_access(access_list *list, access a)
{
    TD_ASSERT(list->n < ACCESSES_MAX);
    list->items[list->n++] = a;
}

/* Inputs of which each part may read all. */
static void add_inputs(const td_op *op, access_list *list)
{
    for (uint32_t i = 0; i < op->n_in; i++)
        add_access(list, of_view(op->in[i], false, CUT_OTHER, 0));
}

static void list_mat_mul(const td_op *op, const void *act, access_list *list)
{
    if (act)
        add_access(list, (access){act, 0, op->in[0].n_cols, false, CUT_OTHER, 0});
    else
        add_access(list, of_view(op->in[0], false, CUT_OTHER, 0));
    if (op->u.mat_mul.is_by_expert)
        add_access(list, of_view(op->in[1], false, CUT_OTHER, 0));
    if (op->u.mat_mul.n_groups)
        add_access(list, of_view(op->out, true, CUT_OTHER, 0));
    else
        add_access(list, of_view(op->out, true, CUT_COLUMNS, COLUMN_UNIT));
}

/* What an op touches. `act` is the buffer of a quantized mat_mul's input, else NULL. */
static void list_accesses(const td_op *op, const void *act, access_list *list)
{
    const td_kv_params *kv = op->kv ? &op->kv->params : NULL;
    switch (op->kind) {
    case TD_OP_EMBED:
    case TD_OP_GATHER:
        add_inputs(op, list);
        add_access(list, of_view(op->out, true, CUT_ROWS, 0));
        break;
    case TD_OP_RMS_NORM: {
        uint32_t n_groups = op->u.rms_norm.n_groups;
        cut how = n_groups == 1 ? CUT_ROWS : CUT_COLUMNS;
        uint32_t unit = n_groups == 1 ? 0 : op->out.n_cols / n_groups;
        add_access(list, of_view(op->in[0], false, how, unit));
        add_access(list, of_view(op->out, true, how, unit));
        break;
    }
    case TD_OP_MAT_MUL:
        list_mat_mul(op, act, list);
        break;
    case TD_OP_ROPE:
        add_access(list, of_view(op->in[1], false, CUT_OTHER, 0));
        add_access(list, of_view(op->out, true, CUT_COLUMNS, op->u.rope.head_dim));
        break;
    case TD_OP_KV_STORE:
        add_access(list, of_view(op->in[0], false, CUT_COLUMNS, kv->head_dim_k));
        add_access(list, of_view(op->in[1], false, CUT_COLUMNS, kv->head_dim_v));
        add_access(list, (access){op->kv, 0, 1, true, CUT_OTHER, 0});
        break;
    case TD_OP_ATTENTION:
        add_access(list, of_view(op->in[0], false, CUT_OTHER, 0));
        add_access(list, (access){op->kv, 0, 1, false, CUT_OTHER, 0});
        add_access(list, of_view(op->out, true, CUT_OTHER, 0));
        break;
    case TD_OP_GLU:
    case TD_OP_ADD:
    case TD_OP_SCALE:
    case TD_OP_SOFTCAP:
        for (uint32_t i = 0; i < op->n_in; i++)
            if (op->in[i].n_cols == op->out.n_cols)
                add_access(list, of_view(op->in[i], false, CUT_COLUMNS, COLUMN_UNIT));
            else
                add_access(list, of_view(op->in[i], false, CUT_OTHER, 0));
        add_access(list, of_view(op->out, true, CUT_COLUMNS, COLUMN_UNIT));
        break;
    case TD_OP_EXPERTS_SUM:
        add_inputs(op, list);
        add_access(list, of_view(op->out, true, CUT_COLUMNS, COLUMN_UNIT));
        break;
    case TD_OP_DELTA_NET:
    case TD_OP_STATE_KEEP:
        add_access(list, of_view(op->in[0], false, CUT_OTHER, 0));
        add_access(list, (access){op->state, 0, 1, true, CUT_OTHER, 0});
        if (op->out.t)
            add_access(list, of_view(op->out, true, CUT_OTHER, 0));
        break;
    case TD_OP_ROUTE:
    case TD_OP_TOP:
    case TD_OP_PICK:
    case TD_OP_FEED:
    case TD_OP_SPOIL:
        add_inputs(op, list);
        for (uint32_t i = 0; i < op->n_writes; i++)
            add_access(list, of_view(td_all(op->writes[i]), true, CUT_OTHER, 0));
        add_access(list, of_view(op->out, true, CUT_OTHER, 0));
        break;
    case TD_OP_COUNT:
        TD_ASSERT(!"no such op");
    }
}

/* Appends a step, to a new phase if it must be; `done` is what the open phase touches. */
static void append_step(td_host_program *p, td_host_step step, const access_list *touches,
                        access_list *done)
{
    bool is_new = p->n_phases == 0 || done->n + touches->n > ACCESSES_MAX;
    for (uint32_t i = 0; i < touches->n && !is_new; i++)
        for (uint32_t j = 0; j < done->n && !is_new; j++)
            is_new = conflicts(&touches->items[i], &done->items[j]);
    if (is_new) {
        p->n_phases++;
        done->n = 0;
    }
    for (uint32_t i = 0; i < touches->n; i++)
        add_access(done, touches->items[i]);
    p->steps[p->n_steps++] = step;
    p->phase_ends[p->n_phases - 1] = p->n_steps;
}

static bool same_view(td_view a, td_view b)
{
    return a.t == b.t && a.col0 == b.col0 && a.n_cols == b.n_cols;
}

/* The quantization of op's input into buffer i_act, cut like the step that made the input where
 * that is known, so that each part quantizes what it has just written. */
static void append_quantize(td_host_program *p, const td_op *op, uint32_t i_act, access_list *done)
{
    td_host_step step = {.op = op, .is_quantize = true, .i_act = (uint8_t)i_act};
    td_view x = op->in[0];
    for (uint32_t i = 0; i < done->n; i++) {
        const access *a = &done->items[i];
        if (a->is_write && a->cut == CUT_ROWS && a->object == x.t && a->col0 == x.col0 &&
            a->n_cols == x.n_cols)
            step.is_by_rows = true;
    }
    cut how = step.is_by_rows ? CUT_ROWS : CUT_COLUMNS;
    uint32_t unit = step.is_by_rows ? 0 : COLUMN_UNIT;
    access_list touches = {.n = 0};
    add_access(&touches, of_view(x, false, how, unit));
    add_access(&touches, (access){&p->acts[i_act], 0, x.n_cols, true, how, unit});
    append_step(p, step, &touches, done);
}

static bool is_quantized(const td_op *op)
{
    return op->kind == TD_OP_MAT_MUL && op->weight->params.type->has_int8_activations;
}

static void make_steps(td_host_program *p)
{
    act_content content[TD_HOST_ACTS] = {0};
    access_list done = {.n = 0};
    uint32_t i_next = 0; /* the buffer to use next: they take turns, so that filling one need not
                          * wait for the readers of the other */
    for (uint32_t i = 0; i < p->base.n_ops; i++) {
        const td_op *op = &p->base.ops[i];
        uint32_t i_act = TD_HOST_ACTS;
        if (is_quantized(op)) {
            for (i_act = 0; i_act < TD_HOST_ACTS; i_act++)
                if (content[i_act].is_valid && same_view(content[i_act].view, op->in[0]))
                    break;
            if (i_act == TD_HOST_ACTS) {
                i_act = i_next;
                i_next = (i_next + 1) % TD_HOST_ACTS;
                append_quantize(p, op, i_act, &done);
                content[i_act] = (act_content){op->in[0], true};
            }
        }
        access_list touches = {.n = 0};
        list_accesses(op, i_act < TD_HOST_ACTS ? &p->acts[i_act] : NULL, &touches);
        td_host_step step = {.op = op, .i_act = (uint8_t)i_act};
        append_step(p, step, &touches, &done);
        for (uint32_t a = 0; a < TD_HOST_ACTS; a++)
            if (op->out.t == content[a].view.t)
                content[a].is_valid = false;
    }
}

bool td_host_program_compile(td_program *base, td_err *err)
{
    td_host_program *p = (td_host_program *)base;
    uint64_t act_bytes = 0;
    uint32_t n_quantized = 0;
    for (uint32_t i = 0; i < base->n_ops; i++) {
        const td_op *op = &base->ops[i];
        if (!is_quantized(op))
            continue;
        n_quantized++;
        uint64_t n_blocks = (uint64_t)op->in[0].t->params.n_rows * op->in[0].n_cols / TD_ACT_BLOCK;
        if (n_blocks * sizeof(td_act_block) > act_bytes)
            act_bytes = n_blocks * sizeof(td_act_block);
    }
    p->steps = td_alloc(base->n_ops + n_quantized, sizeof *p->steps, err);
    p->phase_ends = td_alloc(base->n_ops + n_quantized, sizeof *p->phase_ends, err);
    if (!p->steps || !p->phase_ends || !td_host_reserve(base->dev, TD_HOST_ACTS * act_bytes, err))
        return false;
    p->n_bytes = TD_HOST_ACTS * act_bytes;
    for (uint32_t a = 0; a < TD_HOST_ACTS; a++) {
        p->acts[a] = td_alloc(act_bytes, 1, err);
        if (!p->acts[a])
            return false;
    }
    make_steps(p);
    return td_host_gather_init(p, err);
}

void td_host_program_free(td_program *base)
{
    td_host_program *p = (td_host_program *)base;
    td_host_release(base->dev, p->n_bytes);
    td_free(p->gather);
    for (uint32_t a = 0; a < TD_HOST_ACTS; a++)
        td_free(p->acts[a]);
    td_free(p->phase_ends);
    td_free(p->steps);
}

/* -- running -------------------------------------------------------------------------------- */

typedef struct {
    const td_host_kernels *kernels;
    td_host_program *p;
    uint32_t i, n;   /* which part, of how many */
    uint32_t n_rows; /* of the step */
} part;

typedef struct {
    uint32_t begin, end;
} range;

/* This part's share of n things. Fewer things than parts go to the first parts. */
static range share(const part *t, uint32_t n)
{
    uint64_t up = t->n - 1;
    return (range){(uint32_t)(((uint64_t)n * t->i + up) / t->n),
                   (uint32_t)(((uint64_t)n * (t->i + 1) + up) / t->n)};
}

/* Its share of columns, in units; CUT_COLUMNS. */
static range share_columns(const part *t, uint32_t n_cols, uint32_t unit)
{
    range r = share(t, td_div_up(n_cols, unit));
    return (range){r.begin * unit, td_min_u32(r.end * unit, n_cols)};
}

static void run_quantize(const part *t, const td_host_step *step)
{
    td_view x = step->op->in[0];
    td_act_block *act = t->p->acts[step->i_act];
    uint32_t n_blocks = x.n_cols / TD_ACT_BLOCK;
    range rows = {0, t->n_rows}, columns = {0, x.n_cols};
    if (step->is_by_rows)
        rows = share(t, t->n_rows);
    else
        columns = share_columns(t, x.n_cols, COLUMN_UNIT);
    if (columns.begin >= columns.end)
        return;
    for (uint32_t r = rows.begin; r < rows.end; r++)
        t->kernels->quantize(td_host_row(x, r) + columns.begin, columns.end - columns.begin,
                             act + (size_t)r * n_blocks + columns.begin / TD_ACT_BLOCK);
}

static void run_embed(const part *t, const td_op *op)
{
    range rows = share(t, t->n_rows);
    for (uint32_t r = rows.begin; r < rows.end; r++) {
        int32_t id = *(const int32_t *)(const void *)td_host_row(op->in[0], r);
        TD_ASSERT(id >= 0 && (uint32_t)id < op->weight->params.n_rows);
        td_host_weight_read((const td_host_weight *)op->weight, (uint32_t)id,
                            td_host_row(op->out, r));
    }
}

static void run_rms_norm(const part *t, const td_op *op)
{
    uint32_t n_groups = op->u.rms_norm.n_groups, n = op->out.n_cols / n_groups;
    range rows = {0, t->n_rows}, groups = {0, n_groups};
    if (n_groups == 1)
        rows = share(t, t->n_rows);
    else
        groups = share(t, n_groups);
    for (uint32_t r = rows.begin; r < rows.end; r++)
        for (uint32_t g = groups.begin; g < groups.end; g++)
            t->kernels->rms_norm(td_host_row(op->in[0], r) + g * n,
                                 op->weight ? td_host_vector(op->weight) : NULL, n,
                                 op->u.rms_norm.eps, td_host_row(op->out, r) + g * n);
}

static void run_mat_mul(const part *t, const td_host_step *step)
{
    const td_op *op = step->op;
    if (op->u.mat_mul.n_groups) {
        td_host_gather g = {t->p, op, t->kernels, step->i_act, t->i, t->n, t->n_rows};
        td_host_mat_mul_gathered(&g);
        return;
    }
    range columns = share_columns(t, op->out.n_cols, COLUMN_UNIT);
    td_host_mat_mul m = {
        .w = (const td_host_weight *)op->weight,
        .bias = op->bias ? td_host_vector(op->bias) : NULL,
        .x = td_host_row(op->in[0], 0),
        .act = step->i_act < TD_HOST_ACTS ? t->p->acts[step->i_act] : NULL,
        .y = td_host_row(op->out, 0),
        .x_stride = op->in[0].t->params.n_cols,
        .y_stride = op->out.t->params.n_cols,
        .n_rows = t->n_rows,
        .panel_begin = columns.begin / TD_PANEL_ROWS,
        .panel_end = td_div_up(columns.end, TD_PANEL_ROWS),
    };
    t->kernels->mat_mul(&m);
}

static void run_rope(const part *t, const td_op *op)
{
    uint32_t head_dim = op->u.rope.head_dim;
    range heads = share(t, op->out.n_cols / head_dim);
    for (uint32_t r = 0; r < t->n_rows; r++)
        for (uint32_t h = heads.begin; h < heads.end; h++)
            t->kernels->rope(td_host_row(op->out, r) + h * head_dim + op->u.rope.col0,
                             td_host_row(op->in[1], r), op->u.rope.kind, op->u.rope.n_rot);
}

static void run_kv_store(const part *t, const td_op *op)
{
    td_host_kv *kv = (td_host_kv *)op->kv;
    const td_kv_params *params = &op->kv->params;
    const int32_t *positions = op->batch.positions->data;
    range heads = share(t, params->n_head_kv);
    if (heads.begin == heads.end)
        return;
    for (uint32_t r = 0; r < t->n_rows; r++) {
        const td_host_place at = {.page = td_host_find_page(op->kv, &op->batch, r),
                                  .slot = (uint32_t)positions[r] % TD_PAGE_POSITIONS,
                                  .head = heads.begin,
                                  .n_heads = heads.end - heads.begin};
        td_host_kv_write(kv, &at, td_host_row(op->in[0], r) + at.head * params->head_dim_k,
                         td_host_row(op->in[1], r) + at.head * params->head_dim_v);
    }
}

/* Query j of the n_rows * group ones of a kv head: heads of a row first. */
static void add_query(const td_op *op, uint32_t head_kv, uint32_t group, uint32_t j,
                      td_host_attention *a)
{
    const td_kv_params *kv = &op->kv->params;
    const int32_t *positions = op->batch.positions->data;
    uint32_t r = j / group, h = head_kv * group + j % group;
    a->queries[a->n_queries].q = td_host_row(op->in[0], r) + h * kv->head_dim_k;
    a->queries[a->n_queries].y = td_host_row(op->out, r) + h * kv->head_dim_v;
    a->queries[a->n_queries].position = (uint32_t)positions[r];
    a->queries[a->n_queries].head = h;
    a->n_queries++;
}

/* Queries [begin, end) of the n_rows * group ones of a kv head that attend together: a piece of
 * those of one sequence, which end at `run_end`. */
typedef struct {
    uint32_t begin, end, run_end, n_at_most;
    uint64_t cost; /* pages, by what each takes: its own decoding and each query's products */
} attention_item;

#define DECODE_COST 4u /* of a page, in products of a query with it */

static uint64_t count_pages(const td_op *op, uint32_t row_begin, uint32_t row_end)
{
    const int32_t *positions = op->batch.positions->data;
    uint32_t window = op->u.attention.window, chunk = op->u.attention.chunk, n = 0;
    for (uint32_t r = row_begin; r < row_end; r++)
        n = td_max_u32(n, (uint32_t)positions[r] + 1);
    n = window ? td_min_u32(n, window) : n;
    n = chunk ? td_min_u32(n, chunk) : n;
    return n / TD_PAGE_POSITIONS + 1;
}

/* The item behind the last; false at the end. A sequence's queries are cut into pieces of nearly
 * equal size, n_together at most. */
static bool next_item(const part *t, const td_op *op, uint32_t group, uint32_t n_together,
                      attention_item *item)
{
    const int32_t *slots = op->batch.slots->data;
    item->begin = item->end;
    if (item->begin == item->run_end) {
        uint32_t row = item->begin / group, end = row;
        while (end < t->n_rows && slots[end] == slots[row])
            end++;
        item->run_end = end * group;
        uint32_t n_queries = item->run_end - item->begin;
        if (!n_queries)
            return false;
        item->n_at_most = td_div_up(n_queries, td_div_up(n_queries, n_together));
    }
    item->end = td_min_u32(item->begin + item->n_at_most, item->run_end);
    item->cost = count_pages(op, item->begin / group, td_div_up(item->end, group)) *
                 (item->end - item->begin + DECODE_COST);
    return true;
}

static void attend(const part *t, const td_op *op, uint32_t head_kv, uint32_t group,
                   const attention_item *item)
{
    const int32_t *slots = op->batch.slots->data, *pages = op->batch.pages->data;
    td_host_attention a = {
        .kv = (const td_host_kv *)op->kv,
        .params = &op->u.attention,
        .pages =
            pages + (size_t)(uint32_t)slots[item->begin / group] * op->batch.pages->params.n_cols,
        .head_kv = head_kv,
    };
    for (uint32_t j = item->begin; j < item->end; j++) {
        td_host_find_page(op->kv, &op->batch, j / group); /* called for its assertions */
        add_query(op, head_kv, group, j, &a);
    }
    t->kernels->attention(&a);
}

/* Costs of the items of a kv head summed, and their number. */
static uint64_t sum_items(const part *t, const td_op *op, uint32_t group, uint32_t n_together,
                          uint32_t *n_items)
{
    uint64_t cost = 0;
    *n_items = 0;
    for (attention_item item = {0}; next_item(t, op, group, n_together, &item);) {
        cost += item.cost;
        ++*n_items;
    }
    return cost;
}

/* As many queries together as leave each thread its share: keys and values are read once an item.
 * A part takes the items whose middle, by cost, lies in its share. */
static void run_attention(const part *t, const td_op *op)
{
    const td_kv_params *kv = &op->kv->params;
    uint32_t group = op->u.attention.n_head / kv->n_head_kv, n_together = TD_HOST_QUERIES_MAX;
    uint32_t n_items;
    uint64_t cost = sum_items(t, op, group, n_together, &n_items);
    while (n_together > 1) {
        uint32_t n_all = n_items * kv->n_head_kv, n_rounds = td_div_up(n_all, t->n);
        /* Four queries cost little less than one: below that only for threads with nothing. */
        if (n_together > 4 ? 8 * n_all >= 7 * n_rounds * t->n : n_all >= t->n)
            break;
        n_together /= 2;
        cost = sum_items(t, op, group, n_together, &n_items);
    }
    uint64_t all = cost * kv->n_head_kv, before = 0;
    for (uint32_t head_kv = 0; head_kv < kv->n_head_kv; head_kv++)
        for (attention_item item = {0}; next_item(t, op, group, n_together, &item);) {
            uint64_t middle = before + item.cost / 2;
            before += item.cost;
            if (middle * t->n / all == t->i)
                attend(t, op, head_kv, group, &item);
        }
}

static void run_glu(const part *t, const td_op *op, uint32_t r, range c)
{
    const float *gate = td_host_row(op->in[0], r), *up = td_host_row(op->in[1], r);
    float *y = td_host_row(op->out, r);
    uint32_t step = op->in[0].n_cols > 1 || op->out.n_cols == 1, n_scales = op->u.glu.n_scales;
    uint32_t scaled = n_scales ? op->out.n_cols / n_scales : op->out.n_cols;
    uint32_t group = op->out.n_cols / op->u.glu.n_groups;
    for (uint32_t i = c.begin, end; i < c.end; i = end) {
        end = td_min_u32(td_min_u32((i / scaled + 1) * scaled, (i / group + 1) * group), c.end);
        const float *scale = n_scales ? td_host_row(op->in[2], r) + i / scaled : NULL;
        uint32_t at = i / group * op->u.glu.stride + i % group;
        t->kernels->glu(op->u.glu.kind, gate + at * step, step, up + at, scale, end - i, y + i);
    }
}

/* Ops that go element by element. */
static void run_elements(const part *t, const td_op *op)
{
    range c = share_columns(t, op->out.n_cols, COLUMN_UNIT);
    if (c.begin >= c.end)
        return;
    uint32_t n = c.end - c.begin;
    for (uint32_t r = 0; r < t->n_rows; r++) {
        const float *a = td_host_row(op->in[0], r) + c.begin;
        const float *b = op->n_in > 1 ? td_host_row(op->in[1], r) : NULL;
        float *y = td_host_row(op->out, r) + c.begin;
        if (op->kind == TD_OP_ADD)
            t->kernels->add(a, b + c.begin, n, y);
        else if (op->kind == TD_OP_GLU)
            run_glu(t, op, r, c);
        else if (op->kind == TD_OP_SCALE)
            t->kernels->scale(a, op->u.scale.factor, b, n, y);
        else if (op->kind == TD_OP_SOFTCAP)
            t->kernels->softcap(a, op->u.scale.factor, n, y);
        else
            t->kernels->experts_sum(a, op->out.n_cols, b, op->in[1].n_cols, n, y);
    }
}

static void run_route(const part *t, const td_op *op)
{
    range rows = share(t, t->n_rows);
    for (uint32_t r = rows.begin; r < rows.end; r++)
        td_host_route(op, r);
}

static void run_delta_net(const part *t, const td_op *op)
{
    uint32_t n_heads = op->state->params.n_head_v;
    range heads = share(t, n_heads);
    for (uint32_t r = 0; r < t->n_rows; r++)
        for (uint32_t h = heads.begin; td_host_is_leader(op, r) && h < heads.end; h++)
            td_host_delta_net(op, r, t->n_rows, h, t->i, &t->kernels->delta);
}

static void run_state_keep(const part *t, const td_op *op)
{
    range rows = share(t, t->n_rows);
    for (uint32_t r = rows.begin; r < rows.end; r++)
        td_host_state_keep(op, r);
}

static void run_gather(const part *t, const td_op *op)
{
    range rows = share(t, t->n_rows);
    for (uint32_t r = rows.begin; r < rows.end; r++) {
        int32_t from = *(const int32_t *)(const void *)td_host_row(op->in[1], r);
        TD_ASSERT(from >= 0 && (uint32_t)from < op->in[0].t->params.n_rows);
        memcpy(td_host_row(op->out, r), td_host_row(op->in[0], (uint32_t)from),
               op->out.n_cols * sizeof(float));
    }
}

static void run_top(const part *t, const td_op *op)
{
    uint32_t n_chunks = td_host_n_chunks(op);
    range items = share(t, t->n_rows * n_chunks);
    for (uint32_t i = items.begin; i < items.end; i++)
        td_host_top(op, i / n_chunks, i % n_chunks, t->kernels->exp);
}

static void run_feed(const td_op *op)
{
    uint32_t row = td_host_feed(op);
    if (row != UINT32_MAX)
        td_host_weight_read((const td_host_weight *)op->weight, row, op->writes[3]->data);
}

static void run_step(const part *t, const td_host_step *step)
{
    if (step->is_quantize) {
        run_quantize(t, step);
        return;
    }
    switch (step->op->kind) {
    case TD_OP_EMBED:
        run_embed(t, step->op);
        break;
    case TD_OP_RMS_NORM:
        run_rms_norm(t, step->op);
        break;
    case TD_OP_MAT_MUL:
        run_mat_mul(t, step);
        break;
    case TD_OP_ROPE:
        run_rope(t, step->op);
        break;
    case TD_OP_KV_STORE:
        run_kv_store(t, step->op);
        break;
    case TD_OP_ATTENTION:
        run_attention(t, step->op);
        break;
    case TD_OP_GLU:
    case TD_OP_ADD:
    case TD_OP_SCALE:
    case TD_OP_SOFTCAP:
    case TD_OP_EXPERTS_SUM:
        run_elements(t, step->op);
        break;
    case TD_OP_ROUTE:
        run_route(t, step->op);
        break;
    case TD_OP_DELTA_NET:
        run_delta_net(t, step->op);
        break;
    case TD_OP_STATE_KEEP:
        run_state_keep(t, step->op);
        break;
    case TD_OP_GATHER:
        run_gather(t, step->op);
        break;
    case TD_OP_TOP:
        run_top(t, step->op);
        break;
    case TD_OP_PICK: {
        range rows = share(t, t->n_rows);
        for (uint32_t r = rows.begin; r < rows.end; r++)
            td_host_pick(step->op, r);
        break;
    }
    case TD_OP_FEED:
        if (t->i == 0)
            run_feed(step->op);
        break;
    case TD_OP_SPOIL:
        if (t->i == 0)
            td_sabotage_run(step->op, t->n_rows);
        break;
    case TD_OP_COUNT:
        break;
    }
}

typedef struct {
    td_host_program *p;
    uint32_t n_rows, n_out;
} run_job;

static void run_phase(void *arg, uint32_t phase, uint32_t i_part)
{
    const run_job *job = arg;
    td_host_program *p = job->p;
    td_host_device *dev = (td_host_device *)p->base.dev;
    part t = {dev->kernels, p, i_part, td_pool_count(dev->pool), 0};
    for (uint32_t i = phase ? p->phase_ends[phase - 1] : 0; i < p->phase_ends[phase]; i++) {
        t.n_rows = td_op_rows(p->steps[i].op, job->n_rows, job->n_out);
        if (!t.n_rows)
            continue;
        bool is_timed = p->base.is_profiled && i_part == 0;
        uint64_t start_ns = is_timed ? td_clock_real_ns() : 0;
        run_step(&t, &p->steps[i]);
        if (is_timed)
            td_program_count_op(&p->base, p->steps[i].op, !p->steps[i].is_quantize,
                                1e-9 * (double)(td_clock_real_ns() - start_ns), (td_traffic){0});
    }
}

bool td_host_program_run(td_program *base, uint32_t n_rows, uint32_t n_out, td_err *err)
{
    (void)err;
    run_job job = {(td_host_program *)base, n_rows, n_out};
    td_pool *pool = ((td_host_device *)base->dev)->pool;
    td_pool_pin_caller(pool); /* only now: a thread that loads may go on to load other devices */
    td_pool_run(pool, job.p->n_phases, run_phase, &job);
    return true;
}
