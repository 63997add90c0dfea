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

/* Binds the quants that an op's step makes, or the dummy. False: no memory. */
static bool bind_int8(td_vk_device *d, td_vk_step *s, const td_op *reader, td_err *err)
{
    td_vk_buffer *int8 = reader ? td_vk_int8_of(reader, err) : NULL;
    if (int8)
        bind_out(s, int8);
    else
        bind(s, &d->dummy);
    return int8 || !reader;
}

static bool lower_rms_norm(const td_program *p, uint32_t i_op, td_vk_step *s, td_err *err)
{
    td_vk_device *d = (td_vk_device *)p->dev;
    const td_op *add = p->ops[i_op].kind == TD_OP_ADD ? &p->ops[i_op++] : NULL;
    const td_op *op = &p->ops[i_op], *reader = td_vk_quantizes_for(p, i_op);
    td_view x = add ? add->in[0] : op->in[0], none = {0};
    td_view b = add ? add->in[1] : none, sum = add ? add->out : none;
    s->key.shader = "rms_norm";
    s->key.n_spec = 2;
    s->key.spec[0] = add != NULL;
    s->key.spec[1] = reader != NULL;
    bind_view_in(s, x);
    bind_vector(d, s, op->weight);
    bind_view_out(s, op->out);
    if (add) {
        bind_view_in(s, b);
        bind_view_out(s, sum);
    } else {
        bind(s, &d->dummy);
        bind(s, &d->dummy);
    }
    if (!bind_int8(d, s, reader, err))
        return false;
    struct push_rms_norm push = {
        .n_groups = op->u.rms_norm.n_groups,
        .group_cols = op->in[0].n_cols / op->u.rms_norm.n_groups,
        .has_weight = op->weight != NULL,
        .eps = op->u.rms_norm.eps,
        VIEW(x, x),
        VIEW(y, op->out),
        .b_col0 = b.col0,
        .b_stride = add ? stride(b) : 0,
        .sum_col0 = sum.col0,
        .sum_stride = add ? stride(sum) : 0,
        .n_blocks = reader ? td_vk_int8_blocks(reader) : 0,
    };
    set_push(s, &push, sizeof push);
    s->groups_x = push.n_groups;
    s->work_per_row = TD_VK_WORK_PER_ELEMENT * op->in[0].n_cols;
    return true;
}

static void lower_rope(const td_op *op, td_vk_step *s)
{
    s->key.shader = "rope";
    bind_view_in(s, op->in[0]);
    bind_view_in(s, op->in[1]);
    bind_view_out(s, op->out);
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

static bool lower_glu(const td_program *p, uint32_t i_op, td_vk_step *s, td_err *err)
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
    if (!bind_int8(d, s, reader, err))
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

static void lower_route(td_vk_device *d, const td_op *op, td_vk_step *s)
{
    const td_route_params *r = &op->u.route;
    s->key.shader = "route";
    bind_view_in(s, op->in[0]);
    bind_vector(d, s, op->weight);
    bind_out(s, buffer_of(op->writes[0]));
    bind_view_out(s, op->out);
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
    switch (td_vk_fuse(p, i_op).kind) {
    case TD_VK_FUSE_ADD_NORM:
        return lower_rms_norm(p, i_op, s, err);
    case TD_VK_FUSE_ROPE_STORE:
        td_vk_lower_rope_store(p, i_op, false, s);
        return true;
    case TD_VK_FUSE_NORM_ROPE_STORE:
        td_vk_lower_rope_store(p, i_op, true, s);
        return true;
    case TD_VK_FUSE_NONE:
        break;
    }
    switch (op->kind) {
    case TD_OP_EMBED:
        lower_embed(op, i, s);
        break;
    case TD_OP_RMS_NORM:
        return lower_rms_norm(p, i_op, s, err);
    case TD_OP_MAT_MUL:
        return td_vk_lower_mat_mul(p, i_op, i, s, err);
    case TD_OP_ROPE:
        lower_rope(op, s);
        break;
    case TD_OP_KV_STORE:
        td_vk_lower_kv_store(op, s);
        break;
    case TD_OP_ATTENTION:
        return td_vk_lower_attention(p, i_op, i, s, err);
    case TD_OP_GLU:
        return lower_glu(p, i_op, s, err);
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
        lower_route(d, op, s);
        break;
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
