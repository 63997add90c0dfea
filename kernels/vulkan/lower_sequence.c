/* Lowering of the ops that know of sequences: caches, attention, recurrent states. */
#include "kernels/vulkan/lower.h"

#include "kernels/vulkan/pack.h"

#define STORE_UNIT      64u /* elements, of which a workgroup of kv_store */
#define STORE_UNITS     8u  /* encodes so many */
#define ATTENTION_PAGES 64u /* first guess of the pages a row reads */
#define STRAND_PAGES    16u /* of a full cache, at least */
#define STRANDS_MAX     16u
#define STRANDS_A_ROW   512u /* of all heads: enough to do for any GPU */

static void set_cache_types(td_vk_step *s, const td_kv_params *p)
{
    s->key.n_spec = 4;
    s->key.spec[0] = p->type_k->id;
    s->key.spec[1] = p->type_v->id;
    s->key.spec[2] = p->head_dim_k;
    s->key.spec[3] = p->head_dim_v;
}

void td_vk_lower_kv_store(const td_op *op, td_vk_step *s)
{
    const td_vk_kv *kv = (const td_vk_kv *)op->kv;
    const td_kv_params *p = &kv->head.params;
    s->key.shader = "kv_store";
    set_cache_types(s, p);
    bind_view_in(s, op->in[0]);
    bind_view_in(s, op->in[1]);
    bind_out(s, &kv->k);
    bind_out(s, &kv->v);
    bind_batch(s, &op->batch);
    struct push_kv_store push = {
        .n_head_kv = p->n_head_kv,
        .head_dim_k = p->head_dim_k,
        .head_dim_v = p->head_dim_v,
        .k_words = kv->k_words,
        .v_words = kv->v_words,
        VIEW(k, op->in[0]),
        VIEW(v, op->in[1]),
        .n_pages_max = op->batch.pages->params.n_cols,
        .n_slots = op->batch.pages->params.n_rows,
        .n_pages = p->n_pages,
    };
    set_push(s, &push, sizeof push);
    uint32_t units = td_div_up(td_max_u32(p->head_dim_k, p->head_dim_v), STORE_UNIT);
    s->groups_x = td_div_up(units * p->n_head_kv, STORE_UNITS);
    s->groups_z = 2;
    s->work_per_row = 4 * TD_VK_WORK_PER_ELEMENT * (op->in[0].n_cols + op->in[1].n_cols);
}

void td_vk_lower_rope_store(const td_program *program, uint32_t i_op, bool has_norms, td_vk_step *s)
{
    const td_op *first = &program->ops[i_op], *q = has_norms ? first + 2 : first;
    const td_op *rope_k = q + 1, *store = q + 2;
    const td_vk_kv *kv = (const td_vk_kv *)store->kv;
    const td_kv_params *p = &kv->head.params;
    td_vk_device *d = (td_vk_device *)program->dev;
    td_view k = rope_k->out, v = store->in[1], cos_sin = q->in[1];
    s->key.shader = "rope_store";
    set_cache_types(s, p);
    s->key.spec[s->key.n_spec++] = has_norms;
    bind_view_out(s, k); /* it is read too, but being written orders it with both */
    bind_view_in(s, v);
    bind_out(s, &kv->k);
    bind_out(s, &kv->v);
    bind_batch(s, &store->batch);
    bind_view_in(s, cos_sin);
    bind_view_out(s, q->out);
    bind_vector(d, s, has_norms ? first->weight : NULL);
    bind_vector(d, s, has_norms ? first[1].weight : NULL);
    struct push_rope_store push = {
        .n_head = q->out.n_cols / p->head_dim_k,
        .n_head_kv = p->n_head_kv,
        .k_words = kv->k_words,
        .v_words = kv->v_words,
        VIEW(q, q->out),
        VIEW(k, k),
        VIEW(v, v),
        .n_pages_max = store->batch.pages->params.n_cols,
        .n_slots = store->batch.pages->params.n_rows,
        .n_pages = p->n_pages,
        .col0 = q->u.rope.col0,
        .n_rot = q->u.rope.n_rot,
        .kind = q->u.rope.kind == TD_ROPE_NEOX,
        VIEW(cos_sin, cos_sin),
        .eps = has_norms ? first->u.rms_norm.eps : 0,
    };
    set_push(s, &push, sizeof push);
    s->groups_x = push.n_head + 2 * push.n_head_kv;
    s->work_per_row = 2 * TD_VK_WORK_PER_ELEMENT * (q->out.n_cols + k.n_cols + v.n_cols);
}

/* Pages a row can see. */
static uint32_t visible_pages(const td_op *op)
{
    const td_attention_params *a = &op->u.attention;
    uint32_t n = op->batch.pages->params.n_cols;
    if (a->window)
        n = td_min_u32(n, td_div_up(a->window, TD_PAGE_POSITIONS) + 1);
    if (a->chunk)
        n = td_min_u32(n, td_div_up(a->chunk, TD_PAGE_POSITIONS) + 1);
    return n;
}

/* Into how many workgroups a head's positions are dealt: by what a row can see at most, so that it
 * is the same for every row and round. Prefill has rows enough. */
static uint32_t strands_of(uint32_t n_head, uint32_t n_pages)
{
    uint32_t n = td_min_u32(STRANDS_MAX, td_div_up(STRANDS_A_ROW, n_head));
    return td_max_u32(td_min_u32(n_pages / STRAND_PAGES, n), 1);
}

static uint32_t n_strands(const td_program *p, const td_op *op)
{
    return p->params.mode == TD_MODE_PREFILL
               ? 1
               : strands_of(op->u.attention.n_head, visible_pages(op));
}

uint64_t td_vk_attention_bytes(uint32_t n_rows, uint32_t n_head, uint32_t head_dim_v,
                               uint32_t n_ctx)
{
    uint64_t n_strands = strands_of(n_head, td_div_up(n_ctx, TD_PAGE_POSITIONS));
    return 4 * td_min_u32(n_rows, TD_VERIFY_ROWS_MAX) * n_head * n_strands * (head_dim_v + 2ull);
}

/* The strands' results, for the tensor they will end up in. */
static td_vk_buffer *partials_of(const td_program *p, const td_op *op, td_err *err)
{
    td_vk_tensor *t = (td_vk_tensor *)op->out.t;
    uint64_t n_rows = td_min_u32(op->out.t->params.n_rows, TD_VERIFY_ROWS_MAX);
    uint64_t n_floats =
        n_rows * op->u.attention.n_head * n_strands(p, op) * (op->kv->params.head_dim_v + 2);
    return td_vk_side_buffer(op->out.t, t->partials, 4 * n_floats, err);
}

static bool lower_attention_join(const td_program *p, uint32_t i_op, td_vk_step *s, td_err *err)
{
    const td_op *op = &p->ops[i_op], *reader = td_vk_quantizes_for(p, i_op);
    td_vk_buffer *partials = partials_of(p, op, err), *int8 = NULL;
    if (!partials || (reader && !(int8 = td_vk_int8_of(reader, err))))
        return false;
    s->key.shader = "attention_join";
    s->key.n_spec = 1;
    s->key.spec[0] = int8 != NULL;
    bind_in(s, partials);
    bind_view_out(s, op->out);
    bind_vector((td_vk_device *)p->dev, s, op->u.attention.sinks);
    if (int8)
        bind_out(s, int8);
    else
        bind(s, &((td_vk_device *)p->dev)->dummy);
    struct push_attention_join push = {
        .n_head = op->u.attention.n_head,
        .head_dim_v = op->kv->params.head_dim_v,
        .n_strands = n_strands(p, op),
        .has_sinks = op->u.attention.sinks != NULL,
        VIEW(y, op->out),
    };
    set_push(s, &push, sizeof push);
    s->groups_x = push.n_head;
    s->work_per_row = TD_VK_WORK_PER_ELEMENT * op->out.n_cols;
    return true;
}

static bool lower_attention(const td_program *program, const td_op *op, td_vk_step *s, td_err *err)
{
    const td_vk_kv *kv = (const td_vk_kv *)op->kv;
    const td_kv_params *p = &kv->head.params;
    s->key.shader = "attention";
    set_cache_types(s, p);
    bind_view_in(s, op->in[0]);
    bind_in(s, &kv->k);
    bind_in(s, &kv->v);
    bind_batch(s, &op->batch);
    uint32_t strands = n_strands(program, op);
    td_vk_buffer *partials = strands > 1 ? partials_of(program, op, err) : NULL;
    if (strands > 1 && !partials)
        return false;
    if (partials)
        bind_out(s, partials);
    else
        bind_view_out(s, op->out);
    bind_vector((td_vk_device *)program->dev, s, op->u.attention.sinks);
    struct push_attention push = {
        .n_head = op->u.attention.n_head,
        .n_head_kv = p->n_head_kv,
        .head_dim_k = p->head_dim_k,
        .head_dim_v = p->head_dim_v,
        .k_words = kv->k_words,
        .v_words = kv->v_words,
        .scale = op->u.attention.scale,
        .window = op->u.attention.window,
        .chunk = op->u.attention.chunk,
        .softcap = op->u.attention.softcap,
        .has_sinks = op->u.attention.sinks != NULL,
        VIEW(q, op->in[0]),
        VIEW(y, op->out),
        .n_pages_max = op->batch.pages->params.n_cols,
        .n_slots = op->batch.pages->params.n_rows,
        .n_pages = p->n_pages,
        .n_strands = strands,
    };
    set_push(s, &push, sizeof push);
    s->groups_x = push.n_head;
    s->groups_z = strands;
    uint32_t n_pages = td_min_u32(visible_pages(op), ATTENTION_PAGES);
    s->work_per_row =
        (double)push.n_head * (p->head_dim_k + p->head_dim_v) * TD_PAGE_POSITIONS * n_pages;
    return true;
}

uint32_t td_vk_count_attention(const td_program *p, const td_op *op)
{
    return n_strands(p, op) > 1 ? 2 : 1;
}

bool td_vk_lower_attention(const td_program *p, uint32_t i_op, uint32_t i, td_vk_step *s,
                           td_err *err)
{
    return i ? lower_attention_join(p, i_op, s, err) : lower_attention(p, &p->ops[i_op], s, err);
}

void td_vk_lower_delta_net(const td_op *op, td_vk_step *s)
{
    const td_vk_state *state = (const td_vk_state *)op->state;
    const td_state_params *p = &state->head.params;
    const td_delta_net_params *d = &op->u.delta_net;
    td_vk_device *dev = (td_vk_device *)state->head.dev;
    s->key.shader = "delta_net";
    s->key.n_spec = 2;
    s->key.spec[0] = p->dim;
    s->key.spec[1] = p->n_taps;
    bind_view_in(s, op->in[0]);
    bind_vector(dev, s, d->conv);
    bind_vector(dev, s, d->a);
    bind_vector(dev, s, d->dt);
    bind_in(s, buffer_of(op->batch.positions));
    bind_in(s, buffer_of(op->batch.slots));
    bind_in(s, buffer_of(op->batch.spans));
    bind_in(s, &state->ring);
    bind_out(s, &state->s); /* it is read too, but being written orders it with both */
    bind_out(s, &state->counts);
    bind_view_out(s, op->out);
    struct push_delta_net push = {
        .n_slots = p->n_slots,
        .n_head_k = p->n_head_k,
        .n_head_v = p->n_head_v,
        .n_pending = p->n_pending,
        .n_cols = td_state_cols(p),
        .is_grouped = d->order == TD_HEADS_GROUPED,
        .eps = d->eps,
        VIEW(x, op->in[0]),
        VIEW(y, op->out),
    };
    set_push(s, &push, sizeof push);
    s->groups_x = p->n_head_v * td_div_up(p->dim, TD_VK_STATE_COLS);
    s->groups_y_max = p->n_slots;
    s->work_per_row = 4.0 * p->n_head_v * p->dim * p->dim;
}

void td_vk_lower_state_keep(const td_op *op, td_vk_step *s)
{
    const td_vk_state *state = (const td_vk_state *)op->state;
    const td_state_params *p = &state->head.params;
    s->key.shader = "state_keep";
    bind_view_in(s, op->in[0]);
    bind_in(s, buffer_of(op->batch.positions));
    bind_in(s, buffer_of(op->batch.slots));
    bind_out(s, &state->ring);
    struct push_state_keep push = {
        .n_slots = p->n_slots,
        .n_pending = p->n_pending,
        .n_cols = td_state_cols(p),
        VIEW(x, op->in[0]),
    };
    set_push(s, &push, sizeof push);
    s->groups_x = td_div_up(push.n_cols, TD_VK_ELEMENT_COLS);
    s->work_per_row = TD_VK_WORK_PER_ELEMENT * push.n_cols;
}
