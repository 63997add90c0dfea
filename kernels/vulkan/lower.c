/* Ops to dispatches: which shader, which buffers in which order, which push constants, how many
 * workgroups. The order of bindings and the push constants are those of inc/push.glsl. */
#include "kernels/vulkan/vk.h"

#include "base/check.h"
#include "kernels/vulkan/shaders.h"

#include <stdio.h>
#include <string.h>

#define PAIR_COLS        256u /* a workgroup's columns of add, swiglu and gather */
#define EMBED_COLS       1024u
#define STORE_UNIT       64u /* elements an invocation of kv_store encodes */
#define STORE_UNITS      32u /* invocations of its workgroup */
#define MUL_ROWS_MIN     9u  /* rows from which prefill uses mat_mul */
#define ATTENTION_PAGES  64u /* first guess of the pages a row reads */
#define WORK_PER_ELEMENT 8.0

static td_vk_buffer *buffer_of(td_tensor *t) { return &((td_vk_tensor *)t)->buffer; }

static void bind(td_vk_step *s, const td_vk_buffer *buffer)
{
    TD_ASSERT(s->key.n_bindings < TD_VK_BINDINGS_MAX);
    s->bindings[s->key.n_bindings++] = buffer;
}

/* A vector bound in full, or the dummy. */
static void bind_vector(td_vk_device *d, td_vk_step *s, td_weight *w)
{
    bind(s, w ? &((td_vk_weight *)w)->slabs[0] : &d->dummy);
}

static void bind_batch(td_vk_step *s, const td_batch_tensors *batch)
{
    bind(s, buffer_of(batch->positions));
    bind(s, buffer_of(batch->slots));
    bind(s, buffer_of(batch->pages));
}

static void set_push(td_vk_step *s, const void *push, size_t n_bytes)
{
    TD_ASSERT(n_bytes <= sizeof s->push && n_bytes % 4 == 0);
    memcpy(s->push, push, n_bytes);
    s->n_push = (uint32_t)n_bytes;
}

static uint32_t stride(td_view v) { return v.t->params.n_cols; }

/* The name of a shader's variant for a type, in static storage. */
static const char *variant(const char *shader, const td_type_info *type)
{
    char name[64];
    snprintf(name, sizeof name, "%s.%s", shader, type->name);
    const td_shader *found = td_shader_find(name);
    TD_ASSERT(found);
    return found->name;
}

static uint32_t slab_rows(const td_vk_weight *w, uint32_t i)
{
    return td_min_u32(w->rows_per_slab, w->head.params.n_rows - i * w->rows_per_slab);
}

static void lower_embed(const td_op *op, uint32_t i_slab, td_vk_step *s)
{
    const td_vk_weight *w = (const td_vk_weight *)op->weight;
    const td_weight_params *p = &w->head.params;
    s->key.shader = variant("embed", p->type);
    bind(s, buffer_of(op->in[0].t));
    bind(s, &w->slabs[i_slab]);
    bind(s, buffer_of(op->out.t));
    struct push_embed push = {
        .n_cols = p->n_cols,
        .o0 = i_slab * w->rows_per_slab,
        .n_o = slab_rows(w, i_slab),
        .w_words = (uint32_t)(w->row_bytes / 4),
        .ids_col0 = op->in[0].col0,
        .ids_stride = stride(op->in[0]),
        .y_col0 = op->out.col0,
        .y_stride = stride(op->out),
    };
    set_push(s, &push, sizeof push);
    s->groups_x = td_div_up(p->n_cols, EMBED_COLS);
    s->work_per_row = WORK_PER_ELEMENT * p->n_cols;
}

static void lower_rms_norm(td_vk_device *d, const td_op *op, td_vk_step *s)
{
    s->key.shader = "rms_norm";
    bind(s, buffer_of(op->in[0].t));
    bind_vector(d, s, op->weight);
    bind(s, buffer_of(op->out.t));
    struct push_rms_norm push = {
        .n_groups = op->u.rms_norm.n_groups,
        .group_cols = op->in[0].n_cols / op->u.rms_norm.n_groups,
        .has_weight = op->weight != NULL,
        .eps = op->u.rms_norm.eps,
        .x_col0 = op->in[0].col0,
        .x_stride = stride(op->in[0]),
        .y_col0 = op->out.col0,
        .y_stride = stride(op->out),
    };
    set_push(s, &push, sizeof push);
    s->groups_x = push.n_groups;
    s->work_per_row = WORK_PER_ELEMENT * op->in[0].n_cols;
}

/* Verify always takes mat_vec. Prefill takes mat_mul for its batch once there are rows enough: that
 * depends on n_rows alone. Rows of outputs always take mat_vec, whatever their number. */
static void lower_mat_mul(td_vk_device *d, const td_op *op, td_mode mode, uint32_t i_slab,
                          td_vk_step *s)
{
    const td_vk_weight *w = (const td_vk_weight *)op->weight;
    const td_weight_params *p = &w->head.params;
    s->key.shader = variant("mat_vec", p->type);
    s->n_row_variants = td_vk_row_variants(p->type->id);
    bind(s, buffer_of(op->in[0].t));
    bind(s, &w->slabs[i_slab]);
    bind_vector(d, s, op->bias);
    bind(s, buffer_of(op->out.t));
    struct push_mat_mul push = {
        .n_k = p->n_cols,
        .n_o = slab_rows(w, i_slab),
        .o0 = i_slab * w->rows_per_slab,
        .w_words = (uint32_t)(w->row_bytes / 4),
        .has_bias = op->bias != NULL,
        .x_col0 = op->in[0].col0,
        .x_stride = stride(op->in[0]),
        .y_col0 = op->out.col0,
        .y_stride = stride(op->out),
    };
    set_push(s, &push, sizeof push);
    s->groups_x = td_div_up(push.n_o, TD_VK_VEC_OUTPUTS);
    if (mode == TD_MODE_PREFILL && op->out.t->params.rows == TD_ROWS_BATCH) {
        s->key_mul = (td_vk_pipeline_key){.shader = variant("mat_mul", p->type),
                                          .n_bindings = s->key.n_bindings};
        s->mul_groups_x = td_div_up(push.n_o, TD_VK_MUL_OUTPUTS);
    }
    s->work_per_row = (double)push.n_o * p->n_cols;
}

static void lower_rope(const td_op *op, td_vk_step *s)
{
    s->key.shader = "rope";
    bind(s, buffer_of(op->in[0].t));
    bind(s, buffer_of(op->in[1].t));
    bind(s, buffer_of(op->out.t));
    struct push_rope push = {
        .n_heads = op->in[0].n_cols / op->u.rope.head_dim,
        .head_dim = op->u.rope.head_dim,
        .n_rot = op->u.rope.n_rot,
        .kind = op->u.rope.kind == TD_ROPE_NEOX,
        .x_col0 = op->in[0].col0,
        .x_stride = stride(op->in[0]),
    };
    set_push(s, &push, sizeof push);
    s->groups_x = push.n_heads;
    s->work_per_row = WORK_PER_ELEMENT * op->in[0].n_cols;
}

static void set_cache_types(td_vk_step *s, const td_kv_params *p)
{
    s->key.n_spec = 4;
    s->key.spec[0] = p->type_k->id;
    s->key.spec[1] = p->type_v->id;
    s->key.spec[2] = p->head_dim_k;
    s->key.spec[3] = p->head_dim_v;
}

static void lower_kv_store(const td_op *op, td_vk_step *s)
{
    const td_vk_kv *kv = (const td_vk_kv *)op->kv;
    const td_kv_params *p = &kv->head.params;
    s->key.shader = "kv_store";
    set_cache_types(s, p);
    bind(s, buffer_of(op->in[0].t));
    bind(s, buffer_of(op->in[1].t));
    bind(s, &kv->k);
    bind(s, &kv->v);
    bind_batch(s, &op->batch);
    struct push_kv_store push = {
        .n_head_kv = p->n_head_kv,
        .head_dim_k = p->head_dim_k,
        .head_dim_v = p->head_dim_v,
        .k_words = kv->k_words,
        .v_words = kv->v_words,
        .k_col0 = op->in[0].col0,
        .k_stride = stride(op->in[0]),
        .v_col0 = op->in[1].col0,
        .v_stride = stride(op->in[1]),
        .n_pages_max = op->batch.pages->params.n_cols,
        .n_slots = op->batch.pages->params.n_rows,
        .n_pages = p->n_pages,
    };
    set_push(s, &push, sizeof push);
    uint32_t units = td_div_up(td_max_u32(p->head_dim_k, p->head_dim_v), STORE_UNIT);
    s->groups_x = td_div_up(units * p->n_head_kv, STORE_UNITS);
    s->groups_z = 2;
    s->work_per_row = 4 * WORK_PER_ELEMENT * (op->in[0].n_cols + op->in[1].n_cols);
}

static void lower_attention(const td_op *op, td_vk_step *s)
{
    const td_vk_kv *kv = (const td_vk_kv *)op->kv;
    const td_kv_params *p = &kv->head.params;
    s->key.shader = "attention";
    set_cache_types(s, p);
    bind(s, buffer_of(op->in[0].t));
    bind(s, &kv->k);
    bind(s, &kv->v);
    bind_batch(s, &op->batch);
    bind(s, buffer_of(op->out.t));
    struct push_attention push = {
        .n_head = op->u.attention.n_head,
        .n_head_kv = p->n_head_kv,
        .head_dim_k = p->head_dim_k,
        .head_dim_v = p->head_dim_v,
        .k_words = kv->k_words,
        .v_words = kv->v_words,
        .scale = op->u.attention.scale,
        .window = op->u.attention.window,
        .softcap = op->u.attention.softcap,
        .q_col0 = op->in[0].col0,
        .q_stride = stride(op->in[0]),
        .y_col0 = op->out.col0,
        .y_stride = stride(op->out),
        .n_pages_max = op->batch.pages->params.n_cols,
        .n_slots = op->batch.pages->params.n_rows,
        .n_pages = p->n_pages,
    };
    set_push(s, &push, sizeof push);
    s->groups_x = push.n_head;
    uint32_t n_pages = td_min_u32(push.n_pages_max, ATTENTION_PAGES);
    s->work_per_row =
        (double)push.n_head * (p->head_dim_k + p->head_dim_v) * TD_PAGE_POSITIONS * n_pages;
}

static void lower_pair(const td_op *op, const char *shader, td_vk_step *s)
{
    s->key.shader = shader;
    bind(s, buffer_of(op->in[0].t));
    bind(s, buffer_of(op->in[1].t));
    bind(s, buffer_of(op->out.t));
    struct push_pair push = {
        .n_cols = op->out.n_cols,
        .a_col0 = op->in[0].col0,
        .a_stride = stride(op->in[0]),
        .b_col0 = op->in[1].col0,
        .b_stride = stride(op->in[1]),
        .y_col0 = op->out.col0,
        .y_stride = stride(op->out),
    };
    set_push(s, &push, sizeof push);
    s->groups_x = td_div_up(push.n_cols, PAIR_COLS);
    s->work_per_row = WORK_PER_ELEMENT * push.n_cols;
}

static void lower_gather(const td_op *op, td_vk_step *s)
{
    s->key.shader = "gather";
    bind(s, buffer_of(op->in[0].t));
    bind(s, buffer_of(op->in[1].t));
    bind(s, buffer_of(op->out.t));
    struct push_gather push = {
        .n_cols = op->out.n_cols,
        .n_rows_x = op->in[0].t->params.n_rows,
        .x_col0 = op->in[0].col0,
        .x_stride = stride(op->in[0]),
        .y_col0 = op->out.col0,
        .y_stride = stride(op->out),
    };
    set_push(s, &push, sizeof push);
    s->groups_x = td_div_up(push.n_cols, PAIR_COLS);
    s->work_per_row = WORK_PER_ELEMENT * push.n_cols;
}

uint32_t td_vk_lower_count(const td_op *op)
{
    bool has_slabs = op->kind == TD_OP_EMBED || op->kind == TD_OP_MAT_MUL;
    return has_slabs ? ((const td_vk_weight *)op->weight)->n_slabs : 1;
}

void td_vk_lower(td_vk_device *d, const td_op *op, td_mode mode, uint32_t i_slab, td_vk_step *s)
{
    *s = (td_vk_step){.op = op, .groups_z = 1};
    switch (op->kind) {
    case TD_OP_EMBED:
        lower_embed(op, i_slab, s);
        break;
    case TD_OP_RMS_NORM:
        lower_rms_norm(d, op, s);
        break;
    case TD_OP_MAT_MUL:
        lower_mat_mul(d, op, mode, i_slab, s);
        break;
    case TD_OP_ROPE:
        lower_rope(op, s);
        break;
    case TD_OP_KV_STORE:
        lower_kv_store(op, s);
        break;
    case TD_OP_ATTENTION:
        lower_attention(op, s);
        break;
    case TD_OP_SWIGLU:
        lower_pair(op, "swiglu", s);
        break;
    case TD_OP_ADD:
        lower_pair(op, "add", s);
        break;
    case TD_OP_GATHER:
        lower_gather(op, s);
        break;
    case TD_OP_COUNT:
        TD_ASSERT(!"not an op");
    }
}

uint32_t td_vk_row_variants(uint32_t type_id)
{
    return type_id == TD_TYPE_Q6_K ? TD_VK_ROW_VARIANTS - 1 : TD_VK_ROW_VARIANTS;
}

td_vk_dispatch td_vk_step_dispatch(const td_vk_step *s, uint32_t n_rows)
{
    if (s->pipeline_mul && n_rows >= MUL_ROWS_MIN)
        return (td_vk_dispatch){s->pipeline_mul, s->mul_groups_x, td_div_up(n_rows, TD_VK_MUL_ROWS),
                                1};
    if (!s->n_row_variants)
        return (td_vk_dispatch){s->pipelines[0], s->groups_x, n_rows, s->groups_z};
    uint32_t i = 0; /* the least variant that takes all rows at once, or the largest */
    while (i + 1 < s->n_row_variants && 1u << i < n_rows)
        i++;
    return (td_vk_dispatch){s->pipelines[i], s->groups_x, td_div_up(n_rows, 1u << i), 1};
}
