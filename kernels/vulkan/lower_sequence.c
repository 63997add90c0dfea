/* Lowering of the ops that know of sequences: caches and recurrent states. Attention has a file of
 * its own. */
#include "kernels/vulkan/lower.h"

#include "kernels/vulkan/pack.h"

#define STORE_UNIT  64u /* elements, of which a workgroup of kv_store */
#define STORE_UNITS 8u  /* encodes so many */

/* The rows of a latent cache are keys that lie as values do (inc/README). */
static uint32_t rotated(const td_kv_params *p, bool has_q)
{
    return (p->rotates_k ? 1u : 0u) | (p->rotates_v ? 2u : 0u) | (has_q ? 4u : 0u);
}

/* A head is a workgroup's, as rope_store has it, of q too; there is no more for it to do. */
static void lower_rotated_store(const td_program *program, uint32_t i_op, td_vk_step *s)
{
    td_vk_device *d = (td_vk_device *)program->dev;
    const td_op *op = &program->ops[i_op];
    const td_vk_kv *kv = (const td_vk_kv *)op->kv;
    const td_kv_params *p = &kv->head.params;
    bool has_q = td_vk_rotates_q(program, i_op);
    td_view k = op->in[0], v = op->in[1], q = has_q ? op[1].in[0] : (td_view){0};
    s->key.shader = "rope_store";
    set_cache_types(s, p);
    if (p->is_latent)
        s->key.spec[3] = p->head_dim_k;
    s->key.spec[s->key.n_spec++] = 0;
    s->key.spec[s->key.n_spec++] = rotated(p, has_q);
    bind_view_in(s, k);
    bind_view_in(s, v);
    bind_out(s, &kv->k);
    bind_out(s, p->is_latent ? &kv->k : &kv->v);
    bind_batch(s, &op->batch);
    bind(s, &d->dummy); /* angles */
    if (has_q)
        bind_view_out(s, q);
    else
        bind(s, &d->dummy);
    bind(s, &d->dummy); /* weights of norms */
    bind(s, &d->dummy);
    struct push_rope_store push = {
        .n_head = q.n_cols / p->head_dim_k,
        .n_head_kv = p->n_head_kv,
        .q_col0 = q.col0,
        .q_stride = has_q ? stride(q) : 0,
        .k_words = p->is_latent ? 0 : kv->k_words,
        .v_words = kv->v_words,
        VIEW(k, k),
        VIEW(v, v),
        .n_pages_max = op->batch.pages->params.n_cols,
        .n_slots = op->batch.pages->params.n_rows,
        .n_pages = p->n_pages,
    };
    set_push(s, &push, sizeof push);
    s->groups_x = push.n_head + (p->is_latent ? 1 : 2) * p->n_head_kv;
    s->work_per_row = 4 * TD_VK_WORK_PER_ELEMENT * (q.n_cols + k.n_cols + v.n_cols);
}

void td_vk_lower_kv_store(const td_program *program, uint32_t i_op, td_vk_step *s)
{
    const td_op *op = &program->ops[i_op];
    const td_vk_kv *kv = (const td_vk_kv *)op->kv;
    const td_kv_params *p = &kv->head.params;
    if (p->rotates_k || p->rotates_v) {
        lower_rotated_store(program, i_op, s);
        return;
    }
    td_view v = op->in[p->is_latent ? 0 : 1];
    s->key.shader = "kv_store";
    set_cache_types(s, p);
    if (p->is_latent)
        s->key.spec[3] = p->head_dim_k;
    bind_view_in(s, op->in[0]);
    bind_view_in(s, v);
    bind_out(s, &kv->k);
    bind_out(s, p->is_latent ? &kv->k : &kv->v);
    bind_batch(s, &op->batch);
    struct push_kv_store push = {
        .n_head_kv = p->n_head_kv,
        .head_dim_k = p->head_dim_k,
        .head_dim_v = p->head_dim_v,
        .k_words = p->is_latent ? 0 : kv->k_words,
        .v_words = kv->v_words,
        VIEW(k, op->in[0]),
        VIEW(v, v),
        .n_pages_max = op->batch.pages->params.n_cols,
        .n_slots = op->batch.pages->params.n_rows,
        .n_pages = p->n_pages,
    };
    set_push(s, &push, sizeof push);
    uint32_t units = td_div_up(td_max_u32(p->head_dim_k, p->head_dim_v), STORE_UNIT);
    s->groups_x = td_div_up(units * p->n_head_kv, STORE_UNITS);
    s->groups_z = p->is_latent ? 1 : 2;
    s->work_per_row = 4 * TD_VK_WORK_PER_ELEMENT * (op->in[0].n_cols + op->in[1].n_cols);
}

void td_vk_lower_rope_store(const td_program *program, uint32_t i_op, uint32_t n_norms,
                            td_vk_step *s)
{
    const td_op *first = &program->ops[i_op], *q = first + n_norms;
    const td_op *rope_k = q + 1, *store = q + 2;
    const td_vk_kv *kv = (const td_vk_kv *)store->kv;
    const td_kv_params *p = &kv->head.params;
    td_vk_device *d = (td_vk_device *)program->dev;
    td_view k = rope_k->out, v = store->in[1], cos_sin = q->in[1];
    s->key.shader = "rope_store";
    set_cache_types(s, p);
    if (p->is_latent)
        s->key.spec[3] = p->head_dim_k;
    s->key.spec[s->key.n_spec++] = n_norms == 1   ? first->out.n_cols
                                   : n_norms == 2 ? p->head_dim_k
                                                  : 0;
    bool has_q = td_vk_rotates_q(program, i_op + n_norms + 2);
    s->key.spec[s->key.n_spec++] = rotated(p, has_q);
    bind_view_out(s, k); /* it is read too, but being written orders it with both */
    bind_view_in(s, v);
    bind_out(s, &kv->k);
    bind_out(s, p->is_latent ? &kv->k : &kv->v);
    bind_batch(s, &store->batch);
    bind_view_in(s, cos_sin);
    if (n_norms == 2 || has_q)
        bind_view_out(s, q->out);
    else
        bind_parts(s, q->out, p->head_dim_k, q->u.rope.col0, q->u.rope.n_rot, true);
    bind_vector(d, s, n_norms ? first->weight : NULL);
    bind_vector(d, s, n_norms ? q[-1].weight : NULL);
    struct push_rope_store push = {
        .n_head = q->out.n_cols / p->head_dim_k,
        .n_head_kv = p->n_head_kv,
        .k_words = p->is_latent ? 0 : kv->k_words,
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
        .eps = n_norms ? first->u.rms_norm.eps : 0,
    };
    set_push(s, &push, sizeof push);
    s->groups_x = push.n_head + (p->is_latent ? 1 : 2) * push.n_head_kv;
    s->work_per_row = 2 * TD_VK_WORK_PER_ELEMENT * (q->out.n_cols + k.n_cols + v.n_cols);
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
