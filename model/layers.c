/* The layers, recorded. A block (attention, feed-forward, experts) is a few ops; what an
 * architecture has or lacks shows as a weight that is there or NULL, or as a field of its row of
 * traits. The same blocks are recorded for verify and for prefill; only the row limits differ. */
#include "model/forward_private.h"

#include "base/check.h"

#include <math.h>

/* What a part's layers are, to make no tensor that none needs. */
typedef struct {
    bool attention, mla, recurrent, experts, shared, post_norms;
    uint32_t ff; /* columns of the widest feed-forward */
} needs;

static needs needs_of(const td_forward_params *p)
{
    const td_hparams *h = td_model_hparams(p->model);
    needs n = {.mla = td_model_arch(p->model)->is_mla};
    for (uint32_t k = 0; k < td_part_n_layers(p); k++) {
        td_part_layer l = td_part_layer_at(p, k);
        bool is_recurrent = td_layer_is_recurrent(l.model, l.layer);
        bool has_experts = td_layer_has_experts(l.model, l.layer);
        n.recurrent |= is_recurrent;
        n.attention |= !is_recurrent;
        n.experts |= has_experts;
        uint32_t n_ff = h->n_expert_used * h->n_ff_expert;
        if (!has_experts || td_part_is_dealt(p, k))
            n_ff = has_experts ? 1 : h->n_ff;
        n.ff = td_max_u32(n.ff, n_ff);
    }
    n.shared = n.experts && h->n_ff_shared;
    return n;
}

/* The tensors of a part, in the making. */
typedef struct {
    td_forward *f;
    td_forward_tensor *rows;
    uint32_t n, n_out; /* n_out: rows of outputs */
    needs is;
} tensor_list;

static void add_tensor(tensor_list *l, td_tensor **slot, td_tensor_params params, bool is_wanted)
{
    params.n_rows = params.rows == TD_ROWS_OUT ? l->n_out : TD_PREFILL_ROWS_MAX;
    l->rows[l->n++] = (td_forward_tensor){.slot = slot, .params = params, .is_wanted = is_wanted};
}

#define ROW(field, elem_, rows_, n_cols_, host, wanted)                                            \
    add_tensor(l, &l->f->field, (td_tensor_params){#field, elem_, rows_, 0, n_cols_, host}, wanted)
#define ACT(field, n_cols_, wanted)                                                                \
    ROW(field, TD_ELEM_F32, TD_ROWS_BATCH, n_cols_, TD_HOST_NONE, wanted)
/* Inputs are written by the host, outputs read; what is said of a row says which. */
#define READS(is_so) ((is_so) ? TD_HOST_READS : TD_HOST_NONE)

static void list_stream(tensor_list *l)
{
    const td_forward_params *p = &l->f->params;
    const td_hparams *h = l->f->h;
    const bool last = td_part_is_last(p), first = td_part_is_first(p), head = td_part_has_head(p);
    ROW(ids, TD_ELEM_I32, TD_ROWS_BATCH, 1, TD_HOST_WRITES, first || head);
    ROW(x_in, TD_ELEM_F32, TD_ROWS_BATCH, h->n_embd, TD_HOST_WRITES, !first);
    ROW(out_rows, TD_ELEM_I32, TD_ROWS_OUT, 1, TD_HOST_WRITES, last);
    ROW(constants, TD_ELEM_F32, TD_ROWS_BATCH, td_rope_cols(p->model), TD_HOST_WRITES, true);
    ROW(batch.positions, TD_ELEM_I32, TD_ROWS_BATCH, 1, TD_HOST_WRITES, true);
    ROW(batch.slots, TD_ELEM_I32, TD_ROWS_BATCH, 1, TD_HOST_WRITES, true);
    ACT(x, h->n_embd, true);
    ACT(normed, h->n_embd, true);
    ACT(delta, h->n_embd, true);
    ROW(x_out, TD_ELEM_F32, last ? TD_ROWS_OUT : TD_ROWS_BATCH, h->n_embd, READS(!last), true);
    ROW(normed_out, TD_ELEM_F32, TD_ROWS_OUT, h->n_embd, READS(head), last);
    ROW(hidden, TD_ELEM_F32, TD_ROWS_BATCH, h->n_embd, TD_HOST_READS, head);
    ROW(head_in, TD_ELEM_F32, TD_ROWS_BATCH, h->n_embd, TD_HOST_WRITES, head);
    ACT(head_pairs, 2 * h->n_embd, head);
    ROW(logits, TD_ELEM_F32, TD_ROWS_OUT, h->n_vocab, READS(!p->is_choosing), last);
}

/* Whether a layer's experts are all on the part's device. */
static bool has_near_experts(const td_forward_params *p)
{
    return !p->experts_dev && !td_part_is_dealt(p, td_part_n_layers(p) - 1);
}

static void list_layers(tensor_list *l)
{
    const td_hparams *h = l->f->h;
    const td_arch *arch = td_model_arch(l->f->params.model);
    const needs is = l->is;
    const td_state_params state = {
        .n_head_k = h->delta_heads_k, .n_head_v = h->delta_heads_v, .dim = h->delta_dim};
    const uint32_t n_q = h->n_head * h->head_dim_k, n_k = h->n_head_kv * h->head_dim_k;
    const uint32_t n_gates = arch->is_gated_attention ? n_q : 0;
    ACT(qkv, n_q + n_k + h->n_head_kv * h->head_dim_v + n_gates, is.attention && !is.mla);
    ACT(q, n_q, is.mla);
    ACT(latents, h->lora_q + n_k, is.mla); /* of q, and k */
    ACT(attended, h->n_head * h->head_dim_v, is.attention);
    ACT(q_nope, h->n_head * h->mla_nope, is.mla);
    ACT(values, h->n_head * h->mla_v, is.mla);
    ACT(gate_up, 2 * is.ff, true);
    ACT(gated, h->n_expert_used * h->n_ff_expert, is.experts && has_near_experts(&l->f->params));
    ACT(shared, h->n_embd, is.shared);
    /* of its own, so that it need not wait until the routed experts are done with theirs */
    ACT(shared_gate_up, 2 * h->n_ff_shared, is.shared);
    /* z, and what the delta net reads */
    ACT(state_in, h->delta_heads_v * h->delta_dim + td_state_cols(&state), is.recurrent);
    ACT(state_out, h->delta_heads_v * h->delta_dim, is.recurrent);
}

static void list_experts(tensor_list *l)
{
    const td_forward_params *p = &l->f->params;
    const td_hparams *h = l->f->h;
    const needs is = l->is;
    ACT(router, h->n_expert + 1, is.experts); /* and the gate of the shared expert */
    const bool far = is.experts && p->experts_dev, dealt = is.experts && p->dealing;
    const td_host_access seen = READS(far || dealt);
    ROW(experts, TD_ELEM_I32, TD_ROWS_BATCH, h->n_expert_used, seen, is.experts);
    ROW(expert_weights, TD_ELEM_F32, TD_ROWS_BATCH, h->n_expert_used, seen, is.experts);
    ROW(expert_out, TD_ELEM_F32, TD_ROWS_BATCH, h->n_expert_used * h->n_embd,
        dealt ? TD_HOST_WRITES : TD_HOST_NONE, is.experts && !far);
    ACT(expert_factor, 1, is.experts && has_near_experts(p));
    ROW(handed, TD_ELEM_F32, TD_ROWS_BATCH, h->n_embd, TD_HOST_READS, far || dealt);
    ROW(returned, TD_ELEM_F32, TD_ROWS_BATCH, h->n_embd, TD_HOST_WRITES, far);
    const uint32_t first_far = l->n;
    ROW(far_in, TD_ELEM_F32, TD_ROWS_BATCH, h->n_embd, TD_HOST_WRITES, far);
    ROW(far_experts, TD_ELEM_I32, TD_ROWS_BATCH, h->n_expert_used, TD_HOST_WRITES, far);
    ROW(far_weights, TD_ELEM_F32, TD_ROWS_BATCH, h->n_expert_used, TD_HOST_WRITES, far);
    ACT(far_gate_up, 2 * h->n_expert_used * h->n_ff_expert, far);
    ACT(far_gated, h->n_expert_used * h->n_ff_expert, far);
    ACT(far_parts, h->n_expert_used * h->n_embd, far);
    ACT(far_factor, 1, far);
    ROW(far_out, TD_ELEM_F32, TD_ROWS_BATCH, h->n_embd, TD_HOST_READS, far);
    for (uint32_t i = first_far; i < l->n; i++)
        l->rows[i].is_far = true;
}

static void list_choice(tensor_list *l)
{
    const td_forward_params *p = &l->f->params;
    const bool chooses = td_part_is_last(p) && p->is_choosing;
    const bool steps = chooses && p->n_steps_max;
    const uint32_t n_parts = td_div_up(l->f->h->n_vocab, TD_TOP_CHUNK);
    ROW(draws, TD_ELEM_I32, TD_ROWS_OUT, TD_DRAW_WORDS, TD_HOST_WRITES, chooses);
    ROW(parts, TD_ELEM_I32, TD_ROWS_OUT, n_parts * TD_PART_WORDS, TD_HOST_NONE, chooses);
    ROW(picks, TD_ELEM_I32, TD_ROWS_OUT, TD_PICK_WORDS, TD_HOST_READS, chooses);
    ROW(step_rows, TD_ELEM_I32, TD_ROWS_OUT, 1, TD_HOST_WRITES, steps);
    ROW(trail, TD_ELEM_I32, TD_ROWS_FIXED, TD_PICK_WORDS, TD_HOST_READS, steps);
    l->rows[l->n - 1].params.n_rows = p->n_steps_max;
}

#undef READS
#undef ACT
#undef ROW

uint32_t td_forward_tensors(td_forward *f, td_forward_tensor rows[TD_FORWARD_TENSORS_MAX])
{
    tensor_list l = {.f = f,
                     .rows = rows,
                     .n_out = f->params.is_all_logits ? TD_PREFILL_ROWS_MAX : TD_VERIFY_ROWS_MAX,
                     .is = needs_of(&f->params)};
    list_stream(&l);
    list_layers(&l);
    list_experts(&l);
    list_choice(&l);
    TD_ASSERT(l.n <= TD_FORWARD_TENSORS_MAX);
    return l.n;
}

typedef struct { /* a layer being recorded */
    td_forward *f;
    td_recorder *r;
    td_program *p; /* r's */
    td_weight **w;
    const float *factors; /* of the products of w */
    const td_model *m;
    uint32_t layer; /* of m */
    uint32_t index; /* in the part and its cache */
    td_kv *kv;
    const td_batch_tensors *batch;
} block;

static td_view constants(const block *b, td_rope_part part)
{
    return td_columns(b->f->constants, part.col0, part.n_cols);
}

/* y = w x (+ bias), times the file's factor of the matrix; bias 0: none. */
static void project(const block *b, td_layer_weight w, td_layer_weight bias, td_view x, td_view y)
{
    td_op_mat_mul(b->p, b->w[w], bias ? b->w[bias] : NULL, x, y);
    if (b->factors[w] != 1.0f)
        td_op_scale(b->p, y, b->factors[w], (td_view){NULL, 0, 0}, y);
}

/* The same of n matrices, whose outputs stand side by side in y from its first column on. Of one
 * whose rows stand behind an earlier one's there is no weight (tensors.c joins them). */
static void project_all(const block *b, const td_layer_weight *w, const td_layer_weight *biases,
                        const uint32_t *n_cols, uint32_t n, td_view x, td_view y)
{
    for (uint32_t i = 0, col0 = y.col0; i < n; col0 += n_cols[i++])
        if (b->w[w[i]])
            project(b, w[i], biases[i], x,
                    td_columns(y.t, col0, td_weight_get_params(b->w[w[i]])->n_rows));
}

static void rope(const block *b, td_view x, uint32_t col0)
{
    td_rope_part part = td_rope_of_layer(b->m, b->layer);
    if (part.n_cols)
        td_op_rope(b->p, x, constants(b, part), td_model_arch(b->f->params.model)->rope,
                   b->f->h->head_dim_k, col0);
}

/* q *= a scale by position: on all layers, or on those without rope where there are such. */
static void scale_q(const block *b, td_view q)
{
    td_rope_part part = td_rope_q_scale(b->f->params.model);
    bool has_rope = td_rope_of_layer(b->m, b->layer).n_cols;
    if (part.n_cols && !(b->f->h->nope_period && has_rope))
        td_op_scale(b->p, q, 1.0f, constants(b, part), q);
}

static void norm_q_k(const block *b, td_view q, td_view k, bool is_after)
{
    const td_hparams *h = b->f->h;
    td_qk_norm kind = h->qk_norm;
    if (kind == TD_QK_NORM_NONE || (kind == TD_QK_NORM_AFTER) != is_after)
        return;
    if (is_after ? !td_rope_of_layer(b->m, b->layer).n_cols : !b->w[TD_W_Q_NORM])
        return;
    bool is_all = kind == TD_QK_NORM_ALL;
    td_op_rms_norm(b->p, q, b->w[TD_W_Q_NORM], is_all ? 1 : h->n_head, h->rms_eps, q);
    td_op_rms_norm(b->p, k, b->w[TD_W_K_NORM], is_all ? 1 : h->n_head_kv, h->rms_eps, k);
}

static void attend(const block *b, td_view q, td_view k, td_view v)
{
    const td_hparams *h = b->f->h;
    td_op_kv_store(b->p, b->kv, k, v, b->batch);
    bool is_local = td_layer_is_local(b->m, b->layer);
    uint32_t chunk = td_model_arch(b->f->params.model)->local_chunk;
    td_attention_params params = {.n_head = h->n_head,
                                  .scale = h->attention_scale,
                                  .window = is_local && !chunk ? h->window : 0,
                                  .chunk = is_local ? chunk : 0,
                                  .softcap = h->attention_softcap,
                                  .sinks = b->w[TD_W_SINKS]};
    td_op_attention(b->p, b->kv, q, td_all(b->f->attended), &params, b->batch);
}

/* normed -> delta: projections, rope, cache, attention, output projection. */
static void attention(const block *b)
{
    td_forward *f = b->f;
    const td_hparams *h = f->h;
    const uint32_t n_q = h->n_head * h->head_dim_k;
    const bool has_gate = td_model_arch(f->params.model)->is_gated_attention;
    const uint32_t n_cols[] = {n_q, h->n_head_kv * h->head_dim_k, h->n_head_kv * h->head_dim_v,
                               n_q};
    static const td_layer_weight of[] = {TD_W_Q, TD_W_K, TD_W_V, TD_W_Q_GATE};
    static const td_layer_weight biases[] = {TD_W_BQ, TD_W_BK, TD_W_BV, 0};
    td_view normed = td_all(f->normed), q = td_columns(f->qkv, 0, n_cols[0]);
    td_view k = td_columns(f->qkv, n_cols[0], n_cols[1]);
    td_view v = td_columns(f->qkv, n_cols[0] + n_cols[1], n_cols[2]);
    project_all(b, of, biases, n_cols, has_gate ? 4 : 3, normed, td_all(f->qkv));
    norm_q_k(b, q, k, false);
    rope(b, q, 0);
    rope(b, k, 0);
    norm_q_k(b, q, k, true);
    scale_q(b, q);
    attend(b, q, k, v);
    td_view attended = td_all(f->attended);
    if (has_gate)
        td_op_glu(b->p, TD_GLU_SIGMOID, td_columns(f->qkv, v.col0 + v.n_cols, n_q), attended, NULL,
                  attended);
    project(b, TD_W_O, TD_W_BO, attended, td_all(f->delta));
}

/* The same by latent attention (DeepSeek-V2, 2024), its projections absorbed: the cache has one
 * head [latent | rope], whose latent is the value too. */
static void latent_attention(const block *b)
{
    td_forward *f = b->f;
    const td_hparams *h = f->h;
    td_weight **w = b->w;
    td_view normed = td_all(f->normed), q_in = normed, q = td_all(f->q);
    td_view k = td_columns(f->latents, h->lora_q, h->head_dim_k);
    static const td_layer_weight of[] = {TD_W_Q_A, TD_W_KV_A}, none[] = {0, 0};
    project_all(b, of, none, (const uint32_t[]){h->lora_q, h->head_dim_k}, 2, normed,
                td_all(f->latents));
    if (w[TD_W_Q_A]) {
        q_in = td_columns(f->latents, 0, h->lora_q);
        td_op_rms_norm(b->p, q_in, w[TD_W_Q_A_NORM], 1, h->rms_eps, q_in);
    }
    uint32_t stride = h->head_dim_k, span = (h->n_head - 1) * stride;
    project(b, TD_W_Q_NOPE, 0, q_in, td_all(f->q_nope));
    td_op_mat_mul_groups(b->p, w[TD_W_K_B], td_all(f->q_nope), h->mla_nope,
                         td_columns(f->q, 0, span + h->lora_kv), stride);
    td_op_mat_mul_groups(b->p, w[TD_W_Q_ROPE], q_in, 0,
                         td_columns(f->q, h->lora_kv, span + h->n_rot), stride);
    td_view latent = td_columns(f->latents, k.col0, h->lora_kv);
    td_op_rms_norm(b->p, latent, w[TD_W_KV_A_NORM], 1, h->rms_eps, latent);
    rope(b, q, h->lora_kv);
    rope(b, k, h->lora_kv);
    scale_q(b, q);
    attend(b, q, k, latent);
    td_op_mat_mul_groups(b->p, w[TD_W_V_B], td_all(f->attended), h->lora_kv, td_all(f->values),
                         h->mla_v);
    project(b, TD_W_O, 0, td_all(f->values), td_all(f->delta));
}

/* normed -> delta: projections, the gated delta rule, a gated norm, output projection. */
static void delta_net(const block *b)
{
    td_forward *f = b->f;
    const td_hparams *h = f->h;
    td_weight **w = b->w;
    uint32_t n_v = h->delta_heads_v, n_k = h->delta_heads_k * h->delta_dim;
    uint32_t n_all_v = n_v * h->delta_dim;
    td_view normed = td_all(f->normed), out = td_all(f->state_out);
    td_view z = td_columns(f->state_in, 0, n_all_v);
    td_view in = td_columns(f->state_in, n_all_v, 2 * n_k + n_all_v + 2 * n_v);
    static const td_layer_weight of[] = {TD_W_Z,       TD_W_QKV,   TD_W_DELTA_Q, TD_W_DELTA_K,
                                         TD_W_DELTA_V, TD_W_ALPHA, TD_W_BETA};
    static const td_layer_weight none[TD_COUNT(of)] = {0};
    /* q, k and v are one matrix, or three in its place */
    project_all(b, of, none, (const uint32_t[]){n_all_v, 0, n_k, n_k, n_all_v, n_v, n_v},
                TD_COUNT(of), normed, td_all(f->state_in));
    bool is_grouped = td_model_arch(f->params.model)->is_grouped_heads;
    td_delta_net_params params = {.conv = w[TD_W_CONV],
                                  .a = w[TD_W_A],
                                  .dt = w[TD_W_DT],
                                  .order = is_grouped ? TD_HEADS_GROUPED : TD_HEADS_TILED,
                                  .eps = h->rms_eps};
    td_state *state = td_cache_state(f->cache, b->index);
    td_op_delta_net(b->p, state, in, &params, b->batch, out);
    td_op_state_keep(b->p, state, in, b->batch);
    td_op_rms_norm(b->p, out, w[TD_W_DELTA_NORM], n_v, h->rms_eps, out);
    td_op_glu(b->p, TD_GLU_SILU, z, out, NULL, out);
    project(b, TD_W_DELTA_OUT, 0, out, td_all(f->delta));
}

/* normed -> y: gate and up, side by side in a tensor, their gated product, down. */
static void feed_forward(const block *b, const td_layer_weight *of, td_tensor *gate_up,
                         uint32_t n_ff, td_view y)
{
    td_forward *f = b->f;
    td_view normed = td_all(f->normed);
    td_view gate = td_columns(gate_up, 0, n_ff), up = td_columns(gate_up, n_ff, n_ff);
    project_all(b, of, of + 3, (const uint32_t[]){n_ff, n_ff}, 2, normed, td_all(gate_up));
    td_op_glu(b->p, td_model_arch(f->params.model)->glu, gate, up, NULL, gate);
    project(b, of[2], of[5], gate, y);
}

/* y's columns of each chosen expert, times that expert's factor. */
static void scale_experts(td_program *p, const td_expert_tensors *t, td_weight *factors, td_view y)
{
    uint32_t n = y.n_cols / t->n_used;
    for (uint32_t i = 0; factors && i < t->n_used; i++) {
        td_view part = td_columns(y.t, y.col0 + i * n, n);
        td_op_embed(p, factors, td_columns(t->experts, i, 1), td_all(t->factor));
        td_op_scale(p, part, 1.0f, td_all(t->factor), part);
    }
}

void td_forward_record_experts(td_program *p, const td_model *m, td_weight *const *w,
                               const td_expert_tensors *t)
{
    const td_arch *arch = td_model_arch(m);
    uint32_t n = t->n_used, n_ff = td_model_hparams(m)->n_ff_expert;
    td_view in = td_all(t->in), parts = td_all(t->parts), gated = td_all(t->gated);
    td_tensor *scales = arch->is_expert_input_scaled ? t->weights : NULL;
    td_view gate = td_columns(t->gate_up, 0, n * n_ff),
            up = td_columns(t->gate_up, n * n_ff, n * n_ff);
    bool is_joined = !w[TD_W_EX_UP]; /* an expert's gate and up stand side by side then */
    if (is_joined)
        gate = td_columns(t->gate_up, 0, 2 * n * n_ff);
    td_op_mat_mul_experts(p, w[TD_W_EX_GATE], w[TD_W_EX_B_GATE], t->experts, in, gate);
    if (!is_joined)
        td_op_mat_mul_experts(p, w[TD_W_EX_UP], w[TD_W_EX_B_UP], t->experts, in, up);
    scale_experts(p, t, w[TD_W_EX_S_GATE], gate);
    scale_experts(p, t, w[TD_W_EX_S_UP], up);
    /* Gate and up are linear in their input: a router weight that scales the input may as well
     * scale them. */
    uint32_t span = (n - 1) * 2 * n_ff + n_ff;
    if (is_joined)
        td_op_glu_groups(p, arch->glu, td_columns(t->gate_up, 0, span),
                         td_columns(t->gate_up, n_ff, span), n, 2 * n_ff, scales, gated);
    else
        td_op_glu(p, arch->glu, gate, up, scales, gated);
    td_op_mat_mul_experts(p, w[TD_W_EX_DOWN], w[TD_W_EX_B_DOWN], t->experts, gated, parts);
    scale_experts(p, t, w[TD_W_EX_S_DOWN], parts);
}

/* parts -> out: added up in each row's order, weighed unless they are already. */
static void add_experts(const block *b, td_tensor *parts, td_tensor *weights, td_tensor *out)
{
    uint32_t n = b->f->h->n_embd, n_used = b->f->h->n_expert_used;
    td_view sum = td_columns(parts, 0, n);
    if (!td_model_arch(b->f->params.model)->is_expert_input_scaled) {
        td_op_experts_sum(b->p, td_all(parts), weights, td_all(out));
        return;
    }
    for (uint32_t i = 1; i < n_used; i++) {
        td_op_add(b->p, sum, td_columns(parts, i * n, n), td_all(out));
        sum = td_all(out);
    }
}

/* Whether the one part of a row is what the experts add. */
static bool is_part_sum(const td_forward *f)
{
    return f->h->n_expert_used == 1 && td_model_arch(f->params.model)->is_expert_input_scaled;
}

/* in -> out: the experts that were chosen, weighed. */
static void run_experts(const block *b, const td_expert_tensors *t, td_tensor *out)
{
    td_expert_tensors own = *t;
    if (is_part_sum(b->f))
        own.parts = out;
    td_forward_record_experts(b->p, b->f->params.model, b->w, &own);
    if (!is_part_sum(b->f))
        add_experts(b, t->parts, t->weights, out);
}

static bool cut(block *b, td_device *dev)
{
    bool is_ok = td_recorder_cut(b->r, dev);
    b->p = b->r->p;
    return is_ok;
}

/* The same on another device, in a program of its own. */
static bool run_far_experts(block *b)
{
    td_forward *f = b->f;
    const td_view none = {NULL, 0, 0};
    td_op_scale(b->p, td_all(f->normed), 1.0f, none, td_all(f->handed));
    if (!cut(b, f->params.experts_dev))
        return false;
    const td_expert_tensors far = {.n_used = f->h->n_expert_used,
                                   .in = f->far_in,
                                   .experts = f->far_experts,
                                   .weights = f->far_weights,
                                   .gate_up = f->far_gate_up,
                                   .gated = f->far_gated,
                                   .parts = f->far_parts,
                                   .factor = f->far_factor};
    run_experts(b, &far, f->far_out);
    if (!cut(b, f->params.dev))
        return false;
    td_op_scale(b->p, td_all(f->returned), 1.0f, none, td_all(f->delta));
    return true;
}

static void run_shared(const block *b)
{
    static const td_layer_weight of[6] = {TD_W_SH_GATE, TD_W_SH_UP, TD_W_SH_DOWN};
    if (b->f->h->n_ff_shared)
        feed_forward(b, of, b->f->shared_gate_up, b->f->h->n_ff_shared, td_all(b->f->shared));
}

/* The same where they are dealt: the program ends where the seats begin, beside which one with the
 * shared expert runs, if there is one; and the next goes on with what they have left in expert_out
 * (seats.h). */
static bool run_dealt_experts(block *b)
{
    td_forward *f = b->f;
    const td_view none = {NULL, 0, 0};
    td_op_scale(b->p, td_all(f->normed), 1.0f, none, td_all(f->handed));
    if (!cut(b, f->params.dev))
        return false;
    run_shared(b);
    if (f->h->n_ff_shared && !cut(b, f->params.dev))
        return false;
    if (is_part_sum(f))
        td_op_scale(b->p, td_all(f->expert_out), 1.0f, none, td_all(f->delta));
    else
        add_experts(b, f->expert_out, f->expert_weights, f->delta);
    return true;
}

/* normed -> delta: the experts that the router chooses, and the one that is always asked. */
static bool experts(block *b)
{
    td_forward *f = b->f;
    const td_hparams *h = f->h;
    td_weight **w = b->w;
    td_view normed = td_all(f->normed), delta = td_all(f->delta);
    td_view logits = td_columns(f->router, 0, h->n_expert);
    static const td_layer_weight routers[] = {TD_W_ROUTER, TD_W_SH_ROUTER};
    static const td_layer_weight biases[] = {TD_W_B_ROUTER, 0};
    project_all(b, routers, biases, (const uint32_t[]){h->n_expert, 1}, 2, normed,
                td_all(f->router));
    td_op_route(b->p, logits, w[TD_W_ROUTER_CHOICE], &h->route, f->experts, f->expert_weights);
    const td_expert_tensors near = {.n_used = h->n_expert_used,
                                    .in = f->normed,
                                    .experts = f->experts,
                                    .weights = f->expert_weights,
                                    .gate_up = f->gate_up,
                                    .gated = f->gated,
                                    .parts = f->expert_out,
                                    .factor = f->expert_factor};
    bool is_dealt = td_part_is_dealt(&f->params, b->index);
    if (!is_dealt) /* first, so that what is left to add stands together */
        run_shared(b);
    if (is_dealt ? !run_dealt_experts(b) : f->params.experts_dev && !run_far_experts(b))
        return false;
    if (!is_dealt && !f->params.experts_dev)
        run_experts(b, &near, f->delta);
    if (!h->n_ff_shared)
        return true;
    td_view shared = td_all(f->shared), gate = td_columns(f->router, h->n_expert, 1);
    if (w[TD_W_SH_ROUTER] || td_weight_get_params(w[TD_W_ROUTER])->n_rows > h->n_expert)
        td_op_glu(b->p, TD_GLU_SIGMOID, gate, shared, NULL, shared);
    td_op_add(b->p, delta, shared, delta);
    return true;
}

static void post_norm(const block *b, td_weight *w)
{
    td_view delta = td_all(b->f->delta);
    if (w)
        td_op_rms_norm(b->p, delta, w, 1, b->f->h->rms_eps, delta);
}

/* in -> out, each the residual stream. */
static bool record_layer(block *b, td_view in, td_view out)
{
    td_forward *f = b->f;
    td_weight **w = b->w;
    td_view normed = td_all(f->normed), x = td_all(f->x), delta = td_all(f->delta);
    td_op_rms_norm(b->p, in, w[TD_W_ATTN_NORM], 1, f->h->rms_eps, normed);
    if (td_layer_is_recurrent(b->m, b->layer))
        delta_net(b);
    else if (td_model_arch(f->params.model)->is_mla)
        latent_attention(b);
    else
        attention(b);
    post_norm(b, w[TD_W_POST_ATTN_NORM]);
    td_op_add(b->p, in, delta, x);
    td_op_rms_norm(b->p, x, w[TD_W_FFN_NORM], 1, f->h->rms_eps, normed);
    static const td_layer_weight dense[6] = {TD_W_GATE,   TD_W_UP,   TD_W_DOWN,
                                             TD_W_B_GATE, TD_W_B_UP, TD_W_B_DOWN};
    if (!td_layer_has_experts(b->m, b->layer))
        feed_forward(b, dense, f->gate_up, f->h->n_ff, delta);
    else if (!experts(b))
        return false;
    post_norm(b, w[TD_W_POST_FFN_NORM]);
    td_op_add(b->p, x, delta, out);
    return true;
}

/* Logits of the stream, and of them what it takes to choose tokens. The head has a norm and a
 * matrix of its own, or the model's. */
static void record_end(const td_recorder *r, td_tensor *out_rows, td_weight **head,
                       const float *head_factors)
{
    td_forward *f = r->f;
    td_program *p = r->p;
    td_weight **ends = f->weights->ends, *norm = ends[TD_W_OUT_NORM], *bias = ends[TD_W_B_OUT];
    td_weight *out = ends[f->h->is_tied ? TD_W_EMBD : TD_W_OUT];
    float factor = f->h->is_tied ? 1.0f : f->weights->end_factors[TD_W_OUT];
    td_view logits = td_all(f->logits);
    if (head && head[TD_W_HEAD_OUT_NORM])
        norm = head[TD_W_HEAD_OUT_NORM];
    if (head && head[TD_W_HEAD_OUT]) {
        out = head[TD_W_HEAD_OUT];
        factor = head_factors[TD_W_HEAD_OUT];
        bias = NULL;
    }
    td_op_gather(p, td_all(f->x), out_rows, td_all(f->x_out));
    td_op_rms_norm(p, td_all(f->x_out), norm, 1, f->h->rms_eps, td_all(f->normed_out));
    td_op_mat_mul(p, out, bias, td_all(f->normed_out), logits);
    if (factor != 1.0f)
        td_op_scale(p, logits, factor, (td_view){NULL, 0, 0}, logits);
    if (f->h->final_softcap > 0)
        td_op_softcap(p, logits, f->h->final_softcap, logits);
    if (!f->params.is_choosing)
        return;
    td_op_top(p, logits, f->draws, f->parts);
    td_op_pick(p, logits, f->parts, f->draws, f->picks);
}

static block block_at(td_recorder *r, uint32_t k)
{
    td_forward *f = r->f;
    bool is_local = td_cache_layer_kind(f->cache, k) == TD_CACHE_LOCAL;
    td_part_layer l = td_part_layer_at(&f->params, k);
    return (block){.f = f,
                   .r = r,
                   .p = r->p,
                   .w = f->weights->layers[k],
                   .factors = f->weights->factors[k],
                   .m = l.model,
                   .layer = l.layer,
                   .index = k,
                   .kv = td_cache_kv(f->cache, k),
                   .batch = is_local ? &f->local_batch : &f->batch};
}

bool td_forward_record(td_recorder *r, td_tensor *out_rows)
{
    td_forward *f = r->f;
    const td_forward_params *params = &f->params;
    td_view x = td_all(f->x), in = x;
    if (td_part_is_first(params)) {
        td_op_embed(r->p, f->weights->ends[TD_W_EMBD], td_all(f->ids), x);
        if (td_model_arch(params->model)->is_embd_scaled)
            td_op_scale(r->p, x, sqrtf((float)f->h->n_embd), (td_view){NULL, 0, 0}, x);
    } else {
        in = td_all(f->x_in); /* read in place; the stream goes on in x */
    }
    for (uint32_t k = 0; k <= params->last - params->first; k++) {
        block b = block_at(r, k);
        bool is_handed_over = b.layer == params->last && !td_part_is_last(params);
        if (!record_layer(&b, in, is_handed_over ? td_all(f->x_out) : x))
            return false;
        in = x;
    }
    if (td_part_has_head(params))
        td_op_rms_norm(r->p, x, f->weights->ends[TD_W_OUT_NORM], 1, f->h->rms_eps,
                       td_all(f->hidden));
    if (td_part_is_last(params))
        record_end(r, out_rows, NULL, NULL);
    return true;
}

/* eh_proj [rms(embedding) * enorm ; rms(hidden) * hnorm], then a layer as the model's own are. */
bool td_forward_record_head(td_recorder *r, td_tensor *out_rows)
{
    td_forward *f = r->f;
    const uint32_t n_embd = f->h->n_embd;
    block b = block_at(r, td_part_n_layers(&f->params) - 1);
    td_weight **w = b.w, *embd = w[TD_W_HEAD_EMBD];
    td_view x = td_all(f->x), pairs = td_all(f->head_pairs);
    td_op_embed(r->p, embd ? embd : f->weights->ends[TD_W_EMBD], td_all(f->ids), x);
    td_op_rms_norm(r->p, x, w[TD_W_HEAD_E_NORM], 1, f->h->rms_eps,
                   td_columns(f->head_pairs, 0, n_embd));
    td_op_rms_norm(r->p, td_all(f->head_in), w[TD_W_HEAD_H_NORM], 1, f->h->rms_eps,
                   td_columns(f->head_pairs, n_embd, n_embd));
    project(&b, TD_W_HEAD_PROJ, 0, pairs, x);
    if (!record_layer(&b, x, x))
        return false;
    record_end(r, out_rows, w, b.factors);
    return true;
}
