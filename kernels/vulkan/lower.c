/* Ops to dispatches: which shader, which buffers in which order, which push constants, how many
 * workgroups. The order of bindings and the push constants are those of inc/push.glsl. */
#include "kernels/vulkan/vk.h"

#include "base/check.h"
#include "kernels/vulkan/pack.h"
#include "kernels/vulkan/shaders.h"

#include <stdio.h>
#include <string.h>

#define PAIR_COLS        256u /* a workgroup's columns of add, swiglu and gather */
#define EMBED_COLS       1024u
#define STORE_UNIT       64u  /* elements an invocation of kv_store encodes */
#define STORE_UNITS      32u  /* invocations of its workgroup */
#define INT8_BLOCKS      64u  /* a workgroup's blocks of quantize */
#define INT8_BYTES       48u  /* of a block of 32 */
#define INT8_QUAD        128u /* elements that rows are padded to */
#define SLICES_MAX       8u
#define ATTENTION_PAGES  64u /* first guess of the pages a row reads */
#define STRAND_PAGES     16u /* of a full cache, at least */
#define STRANDS_MAX      16u
#define WORK_PER_ELEMENT 8.0

static td_vk_buffer *buffer_of(td_tensor *t) { return &((td_vk_tensor *)t)->buffer; }

/* Weights: no program writes them, so nothing waits for anything. */
static void bind(td_vk_step *s, const td_vk_buffer *buffer)
{
    TD_ASSERT(s->key.n_bindings < TD_VK_BINDINGS_MAX);
    s->bindings[s->key.n_bindings++] = buffer;
}

static void bind_in(td_vk_step *s, const td_vk_buffer *buffer)
{
    s->read_mask |= 1u << s->key.n_bindings;
    bind(s, buffer);
}

static void bind_out(td_vk_step *s, const td_vk_buffer *buffer)
{
    s->write_mask |= 1u << s->key.n_bindings;
    bind(s, buffer);
}

/* A vector bound in full, or the dummy. */
static void bind_vector(td_vk_device *d, td_vk_step *s, td_weight *w)
{
    bind(s, w ? &((td_vk_weight *)w)->slabs[0] : &d->dummy);
}

static void bind_batch(td_vk_step *s, const td_batch_tensors *batch)
{
    bind_in(s, buffer_of(batch->positions));
    bind_in(s, buffer_of(batch->slots));
    bind_in(s, buffer_of(batch->pages));
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
    bind_in(s, buffer_of(op->in[0].t));
    bind(s, &w->slabs[i_slab]);
    bind_out(s, buffer_of(op->out.t));
    struct push_embed push = {
        .n_cols = p->n_cols,
        .o0 = i_slab * w->rows_per_slab,
        .n_o = slab_rows(w, i_slab),
        .w_units = w->n_units,
        .w_pitch = w->panel_rows,
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
    bind_in(s, buffer_of(op->in[0].t));
    bind_vector(d, s, op->weight);
    bind_out(s, buffer_of(op->out.t));
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

/* -- mat_mul --------------------------------------------------------------------------------- */

static bool has_int8(const td_op *op)
{
    return op->kind == TD_OP_MAT_MUL && op->weight->params.type->has_int8_activations;
}

static bool is_same_view(td_view a, td_view b)
{
    return a.t == b.t && a.col0 == b.col0 && a.n_cols == b.n_cols;
}

/* Whether the rows that op i reads are quantized already: by an earlier op of the same view, with
 * no other view of the tensor quantized and nothing written to it since. */
static bool is_quantized(const td_program *p, uint32_t i)
{
    td_view x = p->ops[i].in[0];
    while (i-- > 0) {
        const td_op *op = &p->ops[i];
        if (op->out.t == x.t)
            return false;
        if (has_int8(op) && op->in[0].t == x.t)
            return is_same_view(op->in[0], x);
    }
    return false;
}

static bool is_aligned(td_view x) { return (x.col0 | stride(x)) % 4 == 0 && x.n_cols % 32 == 0; }

static uint32_t int8_blocks(td_view x) { return td_round_up(x.n_cols, INT8_QUAD) / 32; }

/* The int8 rows of a tensor, of whichever view; made on first use. */
static td_vk_buffer *int8_of(td_tensor *tensor, td_err *err)
{
    td_vk_tensor *t = (td_vk_tensor *)tensor;
    td_vk_device *d = (td_vk_device *)tensor->dev;
    const td_tensor_params *p = &tensor->params;
    uint64_t n_blocks = td_round_up(p->n_cols, INT8_QUAD) / 32;
    if (!t->int8.handle && (!td_vk_buffer_create(d, p->n_rows * n_blocks * INT8_BYTES,
                                                 TD_VK_USE_DEVICE, p->name, &t->int8, err) ||
                            !td_vk_buffer_clear(d, &t->int8, err)))
        return NULL;
    return &t->int8;
}

static bool lower_quantize(const td_op *op, td_vk_step *s, td_err *err)
{
    td_view x = op->in[0];
    td_vk_buffer *int8 = int8_of(x.t, err);
    if (!int8)
        return false;
    s->key.shader = "quantize";
    s->key.n_spec = 1;
    s->key.spec[0] = is_aligned(x);
    bind_in(s, buffer_of(x.t));
    bind_out(s, int8);
    struct push_quantize push = {
        .n_k = x.n_cols,
        .n_blocks = int8_blocks(x),
        .x_col0 = x.col0,
        .x_stride = stride(x),
    };
    set_push(s, &push, sizeof push);
    s->groups_x = td_div_up(push.n_blocks, INT8_BLOCKS);
    s->work_per_row = WORK_PER_ELEMENT * x.n_cols;
    return true;
}

/* Slices cut k among the subgroups of a workgroup, as many as have something to do: on a GPU memory
 * is slow and units are many. A software driver runs a workgroup on one thread. Part of law 1's
 * arithmetic: it must not depend on rows. */
void td_vk_mat_vec_shape(const td_vk_device *d, uint32_t n_k, uint32_t n_o, td_vk_step *s)
{
    s->is_software = d->head.info.kind == TD_DEVICE_SOFTWARE;
    uint32_t n = n_k / (s->is_software ? 2048 : INT8_QUAD), n_slices = 1;
    while (2 * n_slices <= n && n_slices < SLICES_MAX)
        n_slices *= 2;
    s->n_panels = td_div_up(n_o, TD_VK_PANEL);
    s->key.n_spec = 4;
    s->key.spec[1] = TD_VK_PANEL * n_slices;
    s->key.spec[2] = 1;
    s->key.spec[3] = 1;
}

static bool lower_mat_mul(td_vk_device *d, const td_op *op, uint32_t i_slab, td_vk_step *s,
                          td_err *err)
{
    const td_vk_weight *w = (const td_vk_weight *)op->weight;
    const td_weight_params *p = &w->head.params;
    td_view x = op->in[0];
    const td_vk_buffer *int8 = NULL;
    if (has_int8(op)) {
        int8 = int8_of(x.t, err);
        if (!int8)
            return false;
    }
    s->key.shader = variant("mat_vec", p->type);
    s->n_row_variants = TD_VK_ROW_VARIANTS;
    bind_in(s, int8 ? int8 : buffer_of(x.t));
    bind(s, &w->slabs[i_slab]);
    bind_vector(d, s, op->bias);
    bind_out(s, buffer_of(op->out.t));
    struct push_mat_mul push = {
        .n_k = p->n_cols,
        .n_o = slab_rows(w, i_slab),
        .o0 = i_slab * w->rows_per_slab,
        .w_units = w->n_units,
        .w_pitch = w->panel_rows,
        .has_bias = op->bias != NULL,
        .x_col0 = int8 ? 0 : x.col0,
        .x_stride = int8 ? int8_blocks(x) * (INT8_BYTES / 16) : stride(x),
        .y_col0 = op->out.col0,
        .y_stride = stride(op->out),
    };
    set_push(s, &push, sizeof push);
    td_vk_mat_vec_shape(d, p->n_cols, push.n_o, s);
    s->key.spec[3] = int8 || is_aligned(x);
    s->work_per_row = (double)push.n_o * p->n_cols;
    return true;
}

uint32_t td_vk_variant_rows(uint32_t i)
{
    static const uint32_t rows[TD_VK_ROW_VARIANTS] = {1, 2, 4, 6, 8, 10, 12, 16};
    return rows[i];
}

/* Outputs of an invocation. One, on a GPU: many small workgroups hide its latency. A software
 * driver loads lane by lane, which makes what of x it loads worth sharing among outputs. */
static uint32_t variant_outputs(const td_vk_step *s, uint32_t i)
{
    if (!s->is_software)
        return 1;
    uint32_t rows = td_vk_variant_rows(i), n = rows >= 4 ? 8 : 4;
    while (n > 1 && s->n_panels < 2 * n) /* there is a second thread */
        n /= 2;
    return n;
}

void td_vk_row_variant(const td_vk_step *s, uint32_t i, td_vk_pipeline_key *key)
{
    *key = s->key;
    key->spec[0] = td_vk_variant_rows(i);
    key->spec[2] = variant_outputs(s, i);
}

static void lower_rope(const td_op *op, td_vk_step *s)
{
    s->key.shader = "rope";
    bind_in(s, buffer_of(op->in[0].t));
    bind_in(s, buffer_of(op->in[1].t));
    bind_out(s, buffer_of(op->out.t));
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
    bind_in(s, buffer_of(op->in[0].t));
    bind_in(s, buffer_of(op->in[1].t));
    bind_out(s, &kv->k);
    bind_out(s, &kv->v);
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

/* Into how many workgroups a head's positions are dealt: by what the cache can hold, so that it is
 * the same for every row and round. Prefill has rows enough. */
static uint32_t n_strands(const td_program *p, const td_op *op)
{
    if (p->params.mode == TD_MODE_PREFILL)
        return 1;
    return td_max_u32(td_min_u32(op->batch.pages->params.n_cols / STRAND_PAGES, STRANDS_MAX), 1);
}

/* The strands' results, for the tensor they will end up in. */
static td_vk_buffer *partials_of(const td_program *p, const td_op *op, td_err *err)
{
    td_vk_tensor *t = (td_vk_tensor *)op->out.t;
    td_vk_device *d = (td_vk_device *)p->dev;
    uint32_t n_rows = td_min_u32(op->out.t->params.n_rows, TD_VERIFY_ROWS_MAX);
    uint64_t n_floats = (uint64_t)n_rows * op->u.attention.n_head * n_strands(p, op) *
                        (op->kv->params.head_dim_v + 2);
    if (t->partials.n_bytes < 4 * n_floats) {
        TD_ASSERT(!t->partials.handle); /* as large for every program that writes the tensor */
        if (!td_vk_buffer_create(d, 4 * n_floats, TD_VK_USE_DEVICE, "partials", &t->partials, err))
            return NULL;
    }
    return &t->partials;
}

static bool lower_attention_join(const td_program *p, const td_op *op, td_vk_step *s, td_err *err)
{
    td_vk_buffer *partials = partials_of(p, op, err);
    if (!partials)
        return false;
    s->key.shader = "attention_join";
    bind_in(s, partials);
    bind_out(s, buffer_of(op->out.t));
    struct push_attention_join push = {
        .n_head = op->u.attention.n_head,
        .head_dim_v = op->kv->params.head_dim_v,
        .n_strands = n_strands(p, op),
        .y_col0 = op->out.col0,
        .y_stride = stride(op->out),
    };
    set_push(s, &push, sizeof push);
    s->groups_x = push.n_head;
    s->work_per_row = WORK_PER_ELEMENT * op->out.n_cols;
    return true;
}

static bool lower_attention(const td_program *program, const td_op *op, td_vk_step *s, td_err *err)
{
    const td_vk_kv *kv = (const td_vk_kv *)op->kv;
    const td_kv_params *p = &kv->head.params;
    s->key.shader = "attention";
    set_cache_types(s, p);
    bind_in(s, buffer_of(op->in[0].t));
    bind_in(s, &kv->k);
    bind_in(s, &kv->v);
    bind_batch(s, &op->batch);
    const td_vk_buffer *partials = &((td_vk_device *)program->dev)->dummy;
    uint32_t strands = n_strands(program, op);
    if (strands > 1) {
        partials = partials_of(program, op, err);
        if (!partials)
            return false;
        bind(s, buffer_of(op->out.t)); /* written by attention_join */
        bind_out(s, partials);
    } else {
        bind_out(s, buffer_of(op->out.t));
        bind(s, partials);
    }
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
        .n_strands = strands,
    };
    set_push(s, &push, sizeof push);
    s->groups_x = push.n_head;
    s->groups_z = strands;
    uint32_t n_pages = td_min_u32(push.n_pages_max, ATTENTION_PAGES);
    s->work_per_row =
        (double)push.n_head * (p->head_dim_k + p->head_dim_v) * TD_PAGE_POSITIONS * n_pages;
    return true;
}

static void lower_pair(const td_op *op, const char *shader, td_vk_step *s)
{
    s->key.shader = shader;
    bind_in(s, buffer_of(op->in[0].t));
    bind_in(s, buffer_of(op->in[1].t));
    bind_out(s, buffer_of(op->out.t));
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
    bind_in(s, buffer_of(op->in[0].t));
    bind_in(s, buffer_of(op->in[1].t));
    bind_out(s, buffer_of(op->out.t));
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

static void lower_top(const td_op *op, td_vk_step *s)
{
    s->key.shader = "top";
    bind_in(s, buffer_of(op->in[0].t));
    bind_in(s, buffer_of(op->in[1].t));
    bind_out(s, buffer_of(op->out.t));
    struct push_top push = {
        .n_cols = op->in[0].n_cols,
        .x_col0 = op->in[0].col0,
        .x_stride = stride(op->in[0]),
        .y_stride = stride(op->out),
    };
    set_push(s, &push, sizeof push);
    s->groups_x = td_div_up(push.n_cols, TD_TOP_CHUNK);
    s->work_per_row = WORK_PER_ELEMENT * push.n_cols;
}

static void lower_pick(const td_op *op, td_vk_step *s)
{
    s->key.shader = "pick";
    bind_in(s, buffer_of(op->in[0].t));
    bind_in(s, buffer_of(op->in[1].t));
    bind_out(s, buffer_of(op->out.t));
    struct push_pick push = {.n_parts = op->in[0].n_cols / TD_PART_WORDS,
                             .x_stride = stride(op->in[0])};
    set_push(s, &push, sizeof push);
    s->groups_x = 1;
    s->work_per_row = WORK_PER_ELEMENT * op->in[0].n_cols;
}

static void lower_feed(const td_op *op, td_vk_step *s)
{
    const td_vk_weight *w = (const td_vk_weight *)op->weight;
    s->key.shader = "feed";
    bind_in(s, buffer_of(op->in[0].t));
    bind(s, &w->slabs[0]);
    bind_out(s, buffer_of(op->out.t));
    for (uint32_t i = 0; i < op->n_writes; i++) /* read as well: a write orders both */
        bind_out(s, buffer_of(op->writes[i]));
    struct push_feed push = {
        .n_steps_max = op->out.t->params.n_rows,
        .n_positions = slab_rows(w, 0), /* a table beyond the largest buffer ends there */
        .table_units = w->n_units,
        .table_pitch = w->panel_rows,
        .n_rot = w->head.params.n_cols,
    };
    set_push(s, &push, sizeof push);
    s->groups_x = 1;
    s->work_per_row = WORK_PER_ELEMENT * push.n_rot;
}

static uint32_t n_slabs(const td_op *op)
{
    bool has_slabs = op->kind == TD_OP_EMBED || op->kind == TD_OP_MAT_MUL;
    return has_slabs ? ((const td_vk_weight *)op->weight)->n_slabs : 1;
}

static bool needs_quantize(const td_program *p, uint32_t i_op)
{
    return has_int8(&p->ops[i_op]) && !is_quantized(p, i_op);
}

uint32_t td_vk_lower_count(const td_program *p, uint32_t i_op)
{
    const td_op *op = &p->ops[i_op];
    bool has_join = op->kind == TD_OP_ATTENTION && n_strands(p, op) > 1;
    return n_slabs(op) + needs_quantize(p, i_op) + has_join;
}

bool td_vk_lower(td_program *p, uint32_t i_op, uint32_t i, td_vk_step *s, td_err *err)
{
    const td_op *op = &p->ops[i_op];
    td_vk_device *d = (td_vk_device *)p->dev;
    *s = (td_vk_step){.op = op, .groups_z = 1};
    if (op->kind == TD_OP_MAT_MUL) {
        bool has_pass = needs_quantize(p, i_op);
        return has_pass && i == 0 ? lower_quantize(op, s, err)
                                  : lower_mat_mul(d, op, i - has_pass, s, err);
    }
    switch (op->kind) {
    case TD_OP_EMBED:
        lower_embed(op, i, s);
        break;
    case TD_OP_RMS_NORM:
        lower_rms_norm(d, op, s);
        break;
    case TD_OP_ROPE:
        lower_rope(op, s);
        break;
    case TD_OP_KV_STORE:
        lower_kv_store(op, s);
        break;
    case TD_OP_ATTENTION:
        return i ? lower_attention_join(p, op, s, err) : lower_attention(p, op, s, err);
    case TD_OP_SWIGLU:
        lower_pair(op, "swiglu", s);
        break;
    case TD_OP_ADD:
        lower_pair(op, "add", s);
        break;
    case TD_OP_GATHER:
        lower_gather(op, s);
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
    case TD_OP_MAT_MUL:
    case TD_OP_COUNT:
        TD_ASSERT(!"not an op");
    }
    return true;
}

/* Rows are spread evenly over as few workgroups as can be, each the least variant that takes its
 * share: 17 rows are 9 and 8, which is twice 12, not 16 and 1. */
td_vk_dispatch td_vk_step_dispatch(const td_vk_step *s, uint32_t n_rows)
{
    if (!s->n_row_variants)
        return (td_vk_dispatch){s->pipelines[0], s->groups_x, n_rows, s->groups_z};
    uint32_t n_groups = td_div_up(n_rows, td_vk_variant_rows(s->n_row_variants - 1)), i = 0;
    while (td_vk_variant_rows(i) < td_div_up(n_rows, n_groups))
        i++;
    return (td_vk_dispatch){s->pipelines[i], td_div_up(s->n_panels, variant_outputs(s, i)),
                            td_div_up(n_rows, td_vk_variant_rows(i)), 1};
}
