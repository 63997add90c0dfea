/* Ops to dispatches: the small ops here, the others in lower_mat_mul.c, lower_attention.c and
 * lower_sequence.c. */
#include "kernels/vulkan/lower.h"

#include "kernels/vulkan/shaders.h"

#include <stdio.h>

#define ELEMENT_COLS TD_VK_ELEMENT_COLS
#define EMBED_COLS   1024u
#define GLU_BLOCKS   32u /* a workgroup's where it quantizes */

const char *td_vk_variant(const char *shader, const td_type_info *type)
{
    char name[64];
    snprintf(name, sizeof name, "%s.%s", shader, type->name);
    const td_shader *found = td_shader_find(name);
    TD_ASSERT(found);
    return found->name;
}

td_vk_buffer *td_vk_side_buffer(td_tensor *t, td_vk_buffer sides[TD_VK_SIDES_MAX], uint64_t n_bytes,
                                td_err *err)
{
    td_vk_device *d = (td_vk_device *)t->dev;
    uint32_t i = 0;
    while (sides[i].handle && sides[i].n_bytes < n_bytes) {
        i++;
        TD_ASSERT(i < TD_VK_SIDES_MAX); /* a model has few kinds of layers */
    }
    if (!sides[i].handle &&
        (!td_vk_buffer_create(d, n_bytes, TD_VK_USE_DEVICE, t->params.name, &sides[i], err) ||
         !td_vk_buffer_clear(d, &sides[i], err)))
        return NULL;
    return &sides[i];
}

static void set_elements(td_vk_step *s, uint32_t n_cols)
{
    s->groups_x = td_div_up(n_cols, ELEMENT_COLS);
    s->work_per_row = TD_VK_WORK_PER_ELEMENT * n_cols;
}

static void lower_embed(const td_op *op, uint32_t i_slab, td_vk_step *s)
{
    const td_vk_weight *w = (const td_vk_weight *)op->weight;
    const td_weight_params *p = &w->head.params;
    s->key.shader = td_vk_variant("embed", p->type);
    bind_view_in(s, op->in[0]);
    bind(s, &w->slabs[i_slab]);
    bind_view_out(s, op->out);
    struct push_embed push = {
        .n_cols = p->n_cols,
        .o0 = i_slab * w->rows_per_slab,
        .n_o = td_vk_slab_rows(w, i_slab),
        .w_units = w->n_units,
        .w_pitch = w->panel_rows,
        VIEW(ids, op->in[0]),
        VIEW(y, op->out),
    };
    set_push(s, &push, sizeof push);
    s->groups_x = td_div_up(p->n_cols, EMBED_COLS);
    s->work_per_row = TD_VK_WORK_PER_ELEMENT * p->n_cols;
}

bool td_vk_bind_int8(td_vk_device *d, td_vk_step *s, const td_op *reader, td_err *err)
{
    td_vk_buffer *int8 = reader ? td_vk_int8_of(reader, err) : NULL;
    if (int8)
        bind_out(s, int8);
    else
        bind(s, &d->dummy);
    return int8 || !reader;
}

/* A view that there may be, or the dummy; and where it lies. */
static void bind_optional(td_vk_device *d, td_vk_step *s, td_view v, bool is_written,
                          uint32_t *col0, uint32_t *row)
{
    if (!v.t)
        bind(s, &d->dummy);
    else if (is_written)
        bind_view_out(s, v);
    else
        bind_view_in(s, v);
    *col0 = v.col0;
    *row = v.t ? stride(v) : 0;
}

/* The experts of a norm's step, bindings 6 to 9. */
static void bind_experts(td_vk_device *d, td_vk_step *s, const td_vk_addition *a,
                         struct push_rms_norm *push)
{
    td_view none = {0}, shares = a->experts ? a->experts->in[1] : none;
    uint32_t col0, row; /* of shares, which have a tensor of their own */
    if (a->post)
        bind_vector(d, s, a->post->weight);
    else
        bind_optional(d, s, a->experts ? a->experts->in[0] : none, false, &push->parts_col0,
                      &push->parts_stride);
    bind_optional(d, s, shares, false, &col0, &row);
    /* it is read too, but being written orders it with both */
    bind_optional(d, s, a->shared ? a->shared->in[1] : none, true, &push->shared_col0,
                  &push->shared_stride);
    bind_optional(d, s, a->gate ? a->gate->in[0] : none, false, &push->gate_col0,
                  &push->gate_stride);
    push->n_used = shares.n_cols;
}

/* Of what is added, or of a norm alone; glu: what gates it. */
static bool lower_norm(const td_program *p, const td_vk_addition *a, const td_op *glu,
                       td_vk_step *s, td_err *err)
{
    td_vk_device *d = (td_vk_device *)p->dev;
    const td_op *norm = a->norm, *some = norm ? norm : a->post, *last = glu ? glu : norm;
    const td_op *reader = last ? td_vk_quantizes_for(p, (uint32_t)(last - p->ops)) : NULL;
    const td_op *first = a->add ? a->add : a->gather; /* which makes what is normed */
    td_view none = {0}, x = first ? first->in[0] : norm->in[0], y = norm ? norm->out : none;
    td_view sum = first ? first->out : none;
    td_view b = glu ? glu->in[0] : a->experts ? a->experts->out : first ? first->in[1] : none;
    s->key.shader = "rms_norm";
    s->key.n_spec = 3;
    s->key.spec[0] = a->gate      ? TD_VK_NORM_GATED
                     : a->shared  ? TD_VK_NORM_SHARED
                     : a->experts ? TD_VK_NORM_EXPERTS
                     : a->post    ? TD_VK_NORM_POST
                     : a->add     ? TD_VK_NORM_SUM
                     : a->gather  ? TD_VK_NORM_GATHER
                                  : TD_VK_NORM_X;
    s->key.spec[1] = reader != NULL;
    s->key.spec[2] = glu ? TD_VK_NORM_SILU : norm ? TD_VK_NORM_PLAIN : TD_VK_NORM_NONE;
    bind_view_in(s, x);
    bind_vector(d, s, norm ? norm->weight : NULL);
    struct push_rms_norm push = {
        .n_groups = norm ? norm->u.rms_norm.n_groups : 1,
        .has_weight = norm && norm->weight,
        .eps = some ? some->u.rms_norm.eps : 0,
        VIEW(x, x),
        .n_blocks = reader ? td_vk_int8_blocks(reader) : 0,
        .n_rows_x = x.t->params.n_rows,
    };
    push.group_cols = x.n_cols / push.n_groups;
    bind_optional(d, s, y, true, &push.y_col0, &push.y_stride);
    bind_optional(d, s, b, a->experts || a->post, &push.b_col0, &push.b_stride);
    bind_optional(d, s, sum, true, &push.sum_col0, &push.sum_stride);
    if (!td_vk_bind_int8(d, s, reader, err))
        return false;
    bind_experts(d, s, a, &push);
    set_push(s, &push, sizeof push);
    s->groups_x = push.n_groups;
    s->work_per_row = TD_VK_WORK_PER_ELEMENT * x.n_cols * td_max_u32(push.n_used, 1);
    return true;
}

static void lower_rope(const td_op *op, td_vk_step *s)
{
    s->key.shader = "rope";
    bind_parts(s, op->in[0], op->u.rope.head_dim, op->u.rope.col0, op->u.rope.n_rot, false);
    bind_view_in(s, op->in[1]);
    bind_parts(s, op->out, op->u.rope.head_dim, op->u.rope.col0, op->u.rope.n_rot, true);
    struct push_rope push = {
        .n_heads = op->in[0].n_cols / op->u.rope.head_dim,
        .head_dim = op->u.rope.head_dim,
        .col0 = op->u.rope.col0,
        .n_rot = op->u.rope.n_rot,
        .kind = op->u.rope.kind == TD_ROPE_NEOX,
        VIEW(x, op->in[0]),
        VIEW(cos_sin, op->in[1]),
    };
    set_push(s, &push, sizeof push);
    s->groups_x = push.n_heads;
    s->work_per_row = TD_VK_WORK_PER_ELEMENT * op->in[0].n_cols;
}

bool td_vk_lower_glu(const td_program *p, uint32_t i_op, td_vk_step *s, td_err *err)
{
    td_vk_device *d = (td_vk_device *)p->dev;
    const td_op *op = &p->ops[i_op], *reader = td_vk_quantizes_for(p, i_op);
    td_view gate = op->in[0], up = op->in[1];
    uint32_t n_scales = op->u.glu.n_scales;
    s->key.shader = "glu";
    s->key.n_spec = 2;
    s->key.spec[0] = op->u.glu.kind;
    s->key.spec[1] = reader != NULL;
    bind_view_in(s, gate);
    bind_view_in(s, up);
    bind_in(s, n_scales ? buffer_of(op->in[2].t) : &d->dummy);
    bind_view_out(s, op->out);
    if (!td_vk_bind_int8(d, s, reader, err))
        return false;
    struct push_glu push = {
        .n_cols = op->out.n_cols,
        .n_gates = gate.n_cols,
        .n_scales = n_scales,
        .n_a_scale = n_scales ? op->out.n_cols / n_scales : 0,
        .n_a_group = op->out.n_cols / op->u.glu.n_groups,
        .group_stride = op->u.glu.stride,
        VIEW(gate, gate),
        VIEW(up, up),
        VIEW(y, op->out),
        .n_k = reader ? reader->weight->params.n_cols : 0,
        .n_blocks = reader ? td_vk_int8_blocks(reader) : 0,
        .n_groups = reader ? td_vk_int8_groups(reader) : 0,
    };
    set_push(s, &push, sizeof push);
    set_elements(s, push.n_cols);
    if (reader)
        s->groups_x = td_div_up(push.n_groups * push.n_blocks, GLU_BLOCKS);
    return true;
}

static void lower_add(const td_op *op, td_vk_step *s)
{
    s->key.shader = "add";
    bind_view_in(s, op->in[0]);
    bind_view_in(s, op->in[1]);
    bind_view_out(s, op->out);
    struct push_add push = {
        .n_cols = op->out.n_cols,
        VIEW(a, op->in[0]),
        VIEW(b, op->in[1]),
        VIEW(y, op->out),
    };
    set_push(s, &push, sizeof push);
    set_elements(s, push.n_cols);
}

static void lower_scale(td_vk_device *d, const td_op *op, td_vk_step *s)
{
    bool has_factors = op->n_in > 1;
    s->key.shader = "scale";
    bind_view_in(s, op->in[0]);
    bind_in(s, has_factors ? buffer_of(op->in[1].t) : &d->dummy);
    bind_view_out(s, op->out);
    struct push_scale push = {
        .n_cols = op->out.n_cols,
        .factor = op->u.scale.factor,
        .has_factors = has_factors,
        .factors_col0 = has_factors ? op->in[1].col0 : 0,
        .factors_stride = has_factors ? stride(op->in[1]) : 0,
        VIEW(x, op->in[0]),
        VIEW(y, op->out),
    };
    set_push(s, &push, sizeof push);
    set_elements(s, push.n_cols);
}

static void lower_softcap(const td_op *op, td_vk_step *s)
{
    s->key.shader = "softcap";
    bind_view_in(s, op->in[0]);
    bind_view_out(s, op->out);
    struct push_softcap push = {
        .n_cols = op->out.n_cols,
        .cap = op->u.scale.factor,
        VIEW(x, op->in[0]),
        VIEW(y, op->out),
    };
    set_push(s, &push, sizeof push);
    set_elements(s, push.n_cols);
}

static bool lower_route(const td_program *p, uint32_t i_op, td_vk_step *s, td_err *err)
{
    td_vk_device *d = (td_vk_device *)p->dev;
    const td_op *op = &p->ops[i_op];
    const td_route_params *r = &op->u.route;
    bool has_list = td_vk_lists_choices(p, i_op);
    td_vk_buffer *lists = has_list ? td_vk_lists_of(op->writes[0], err) : NULL;
    if (has_list && !lists)
        return false;
    s->key.shader = "route";
    s->key.n_spec = 1;
    s->key.spec[0] = has_list;
    bind_view_in(s, op->in[0]);
    bind_vector(d, s, op->weight);
    bind_out(s, buffer_of(op->writes[0]));
    bind_view_out(s, op->out);
    if (lists)
        bind_out(s, lists);
    else
        bind(s, &d->dummy);
    struct push_route push = {
        .n_experts = op->in[0].n_cols,
        .n_used = op->out.n_cols,
        .gating = r->gating,
        .n_groups = r->n_groups,
        .n_groups_used = r->n_groups_used,
        .is_normalized = r->is_normalized,
        .has_bias = op->weight != NULL,
        .scale = r->scale,
        VIEW(x, op->in[0]),
    };
    set_push(s, &push, sizeof push);
    s->groups_x = 1;
    s->work_per_row = TD_VK_WORK_PER_ELEMENT * push.n_experts;
    return true;
}

static void lower_experts_sum(const td_op *op, td_vk_step *s)
{
    s->key.shader = "experts_sum";
    bind_view_in(s, op->in[0]);
    bind_view_in(s, op->in[1]);
    bind_view_out(s, op->out);
    struct push_experts_sum push = {
        .n_cols = op->out.n_cols,
        .n_used = op->in[1].n_cols,
        VIEW(x, op->in[0]),
        VIEW(y, op->out),
    };
    set_push(s, &push, sizeof push);
    set_elements(s, push.n_cols);
    s->work_per_row *= push.n_used;
}

static void lower_gather(const td_op *op, td_vk_step *s)
{
    s->key.shader = "gather";
    bind_view_in(s, op->in[0]);
    bind_view_in(s, op->in[1]);
    bind_view_out(s, op->out);
    struct push_gather push = {
        .n_cols = op->out.n_cols,
        .n_rows_x = op->in[0].t->params.n_rows,
        VIEW(x, op->in[0]),
        VIEW(y, op->out),
    };
    set_push(s, &push, sizeof push);
    set_elements(s, push.n_cols);
}

static void lower_top(const td_op *op, td_vk_step *s)
{
    s->key.shader = "top";
    bind_view_in(s, op->in[0]);
    bind_view_in(s, op->in[1]);
    bind_view_out(s, op->out);
    struct push_top push = {
        .n_cols = op->in[0].n_cols,
        VIEW(x, op->in[0]),
        .y_stride = stride(op->out),
    };
    set_push(s, &push, sizeof push);
    s->groups_x = td_div_up(push.n_cols, TD_TOP_CHUNK);
    s->work_per_row = TD_VK_WORK_PER_ELEMENT * push.n_cols;
}

static void lower_pick(const td_op *op, td_vk_step *s)
{
    s->key.shader = "pick";
    bind_view_in(s, op->in[0]);
    bind_view_in(s, op->in[1]);
    bind_view_in(s, op->in[2]);
    bind_view_out(s, op->out);
    struct push_pick push = {
        .n_parts = op->in[0].n_cols / TD_PART_WORDS,
        .parts_stride = stride(op->in[0]),
        .n_cols = op->in[2].n_cols,
        VIEW(x, op->in[2]),
    };
    set_push(s, &push, sizeof push);
    s->groups_x = 1;
    s->work_per_row = TD_VK_WORK_PER_ELEMENT * op->in[0].n_cols;
}

static void lower_feed(const td_op *op, td_vk_step *s)
{
    const td_vk_weight *w = (const td_vk_weight *)op->weight;
    s->key.shader = "feed";
    bind_view_in(s, op->in[0]);
    bind(s, &w->slabs[0]);
    bind_view_out(s, op->out);
    /* they are read too, but being written orders them with both */
    for (uint32_t i = 0; i < op->n_writes; i++)
        bind_out(s, buffer_of(op->writes[i]));
    struct push_feed push = {
        .n_steps_max = op->out.t->params.n_rows,
        .n_positions = td_vk_slab_rows(w, 0), /* a table larger than a buffer may be is cut */
        .table_units = w->n_units,
        .table_pitch = w->panel_rows,
        .n_rot = w->head.params.n_cols,
    };
    set_push(s, &push, sizeof push);
    s->groups_x = 1;
    s->work_per_row = TD_VK_WORK_PER_ELEMENT * push.n_rot;
}

static void lower_spoil(const td_op *op, td_vk_step *s)
{
    s->key.shader = "spoil";
    bind_view_out(s, op->out);
    bind_out(s, buffer_of(op->writes[0]));
    struct push_spoil push = {
        .n_rows_max = op->out.t->params.n_rows,
        .n_cols = op->out.n_cols,
        .how = op->u.spoil,
        VIEW(y, op->out),
    };
    set_push(s, &push, sizeof push);
    s->groups_x = 1;
    s->groups_y_max = 1;
    s->work_per_row = TD_VK_WORK_PER_ELEMENT * push.n_cols;
}

uint32_t td_vk_lower_count(const td_program *p, uint32_t i_op)
{
    const td_op *op = &p->ops[i_op];
    switch (op->kind) {
    case TD_OP_EMBED:
        return ((const td_vk_weight *)op->weight)->n_slabs;
    case TD_OP_MAT_MUL:
        return td_vk_count_mat_mul(p, i_op);
    case TD_OP_ATTENTION:
        return td_vk_count_attention(p, i_op);
    default:
        return 1;
    }
}

bool td_vk_lower(td_program *p, uint32_t i_op, uint32_t i, td_vk_step *s, td_err *err)
{
    const td_op *op = &p->ops[i_op];
    td_vk_device *d = (td_vk_device *)p->dev;
    *s = (td_vk_step){.op = op, .groups_z = 1};
    td_vk_fusion fusion = td_vk_fuse(p, i_op);
    switch (fusion.kind) {
    case TD_VK_FUSE_ADD_NORM: {
        td_vk_addition a = td_vk_find_addition(p, i_op);
        return lower_norm(p, &a, NULL, s, err);
    }
    case TD_VK_FUSE_NORM_GATE:
        return lower_norm(p, &(td_vk_addition){.norm = op}, op + 1, s, err);
    case TD_VK_FUSE_ROPE_STORE:
        td_vk_lower_rope_store(p, i_op, fusion.n_ops - 3, s);
        return true;
    case TD_VK_FUSE_MUL_GLU: /* a product, or a join, and what it does besides */
    case TD_VK_FUSE_ATTEND_GATE:
    case TD_VK_FUSE_NONE:
        break;
    }
    switch (op->kind) {
    case TD_OP_EMBED:
        lower_embed(op, i, s);
        break;
    case TD_OP_RMS_NORM:
        return lower_norm(p, &(td_vk_addition){.norm = op}, NULL, s, err);
    case TD_OP_MAT_MUL:
        return td_vk_lower_mat_mul(p, i_op, i, s, err);
    case TD_OP_ROPE:
        lower_rope(op, s);
        break;
    case TD_OP_KV_STORE:
        td_vk_lower_kv_store(p, i_op, s);
        break;
    case TD_OP_ATTENTION:
        return td_vk_lower_attention(p, i_op, i, s, err);
    case TD_OP_GLU:
        return td_vk_lower_glu(p, i_op, s, err);
    case TD_OP_ADD:
        lower_add(op, s);
        break;
    case TD_OP_SCALE:
        lower_scale(d, op, s);
        break;
    case TD_OP_SOFTCAP:
        lower_softcap(op, s);
        break;
    case TD_OP_GATHER:
        lower_gather(op, s);
        break;
    case TD_OP_ROUTE:
        return lower_route(p, i_op, s, err);
    case TD_OP_EXPERTS_SUM:
        lower_experts_sum(op, s);
        break;
    case TD_OP_DELTA_NET:
        td_vk_lower_delta_net(op, s);
        break;
    case TD_OP_STATE_KEEP:
        td_vk_lower_state_keep(op, s);
        break;
    case TD_OP_TOP:
        lower_top(op, s);
        break;
    case TD_OP_PICK:
        lower_pick(op, s);
        break;
    case TD_OP_FEED:
        lower_feed(op, s);
        break;
    case TD_OP_SPOIL:
        lower_spoil(op, s);
        break;
    case TD_OP_COUNT:
        TD_ASSERT(!"not an op");
    }
    return true;
}

td_vk_dispatch td_vk_step_dispatch(const td_vk_step *s, uint32_t n_rows)
{
    if (s->n_row_variants)
        return td_vk_mat_mul_dispatch(s, n_rows);
    if (s->tiling.n_group)
        return td_vk_attention_dispatch(s, n_rows);
    uint32_t y = s->groups_y_max ? td_min_u32(n_rows, s->groups_y_max) : n_rows;
    return (td_vk_dispatch){s->pipelines[0], s->groups_x, y, s->groups_z, 1};
}
