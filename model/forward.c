/* The forward pass, recorded. A block (attention, feed-forward) is a few ops; what an architecture
 * has or lacks shows as a weight that is there or NULL, or as a field of its row of traits. The
 * same blocks are recorded twice, for verify and for prefill; only the row limits differ. */
#include "model/forward.h"

#include "base/check.h"
#include "base/mem.h"

#include <math.h>
#include <string.h>

struct td_forward {
    td_forward_params params;
    const td_hparams *h;
    td_weights *weights;
    td_cache *cache;
    /* Inputs, host-visible. */
    td_tensor *ids;      /* I32 [rows][1] */
    td_tensor *x_in;     /* [rows][n_embd], parts after the first */
    td_tensor *out_rows; /* I32 [outs][1] */
    td_tensor *cos_sin;  /* [rows][n_rot] */
    td_batch_tensors batch;
    /* Activations. */
    td_tensor *x;          /* [rows][n_embd] the residual stream */
    td_tensor *normed;     /* [rows][n_embd] */
    td_tensor *q;          /* [rows][n_head * head_dim_k] */
    td_tensor *k, *v;      /* [rows][n_head_kv * head_dim] */
    td_tensor *attended;   /* [rows][n_head * head_dim_v] */
    td_tensor *delta;      /* [rows][n_embd] what a block adds */
    td_tensor *gate, *up;  /* [rows][n_ff] */
    td_tensor *x_out;      /* [outs][n_embd] (last part), or host-visible [rows][n_embd] */
    td_tensor *normed_out; /* [outs][n_embd] */
    td_tensor *logits;     /* [outs][n_vocab], host-visible */
    td_program *verify, *prefill;
};

#define N_TENSORS_MAX 20u

static uint32_t n_out_max(const td_forward_params *p)
{
    return p->is_all_logits ? TD_PREFILL_ROWS_MAX : TD_VERIFY_ROWS_MAX;
}

static bool is_first(const td_forward_params *p) { return p->first == 0; }

static bool is_last(const td_forward_params *p)
{
    return p->last + 1 == td_model_hparams(p->model)->n_layer;
}

/* One table for creating, counting and destroying the tensors of a part. */
typedef struct {
    td_tensor **slot;
    td_tensor_params params;
    bool is_wanted;
} tensor_row;

static uint32_t tensor_table(td_forward *f, tensor_row rows[N_TENSORS_MAX])
{
    const td_forward_params *p = &f->params;
    const td_hparams *h = f->h;
    const uint32_t n_rows = TD_PREFILL_ROWS_MAX, n_out = n_out_max(p);
    const bool last = is_last(p);
    uint32_t n = 0;
#define ROW(field, elem_, rows_, n_cols_, is_host, wanted)                                         \
    rows[n++] = (tensor_row){                                                                      \
        &f->field,                                                                                 \
        {#field, elem_, rows_, (rows_) == TD_ROWS_OUT ? n_out : n_rows, n_cols_, is_host},         \
        wanted}
    ROW(ids, TD_ELEM_I32, TD_ROWS_BATCH, 1, true, is_first(p));
    ROW(x_in, TD_ELEM_F32, TD_ROWS_BATCH, h->n_embd, true, !is_first(p));
    ROW(out_rows, TD_ELEM_I32, TD_ROWS_OUT, 1, true, last);
    ROW(cos_sin, TD_ELEM_F32, TD_ROWS_BATCH, h->n_rot, true, true);
    ROW(batch.positions, TD_ELEM_I32, TD_ROWS_BATCH, 1, true, true);
    ROW(batch.slots, TD_ELEM_I32, TD_ROWS_BATCH, 1, true, true);
    ROW(x, TD_ELEM_F32, TD_ROWS_BATCH, h->n_embd, false, true);
    ROW(normed, TD_ELEM_F32, TD_ROWS_BATCH, h->n_embd, false, true);
    ROW(q, TD_ELEM_F32, TD_ROWS_BATCH, h->n_head * h->head_dim_k, false, true);
    ROW(k, TD_ELEM_F32, TD_ROWS_BATCH, h->n_head_kv * h->head_dim_k, false, true);
    ROW(v, TD_ELEM_F32, TD_ROWS_BATCH, h->n_head_kv * h->head_dim_v, false, true);
    ROW(attended, TD_ELEM_F32, TD_ROWS_BATCH, h->n_head * h->head_dim_v, false, true);
    ROW(delta, TD_ELEM_F32, TD_ROWS_BATCH, h->n_embd, false, true);
    ROW(gate, TD_ELEM_F32, TD_ROWS_BATCH, h->n_ff, false, true);
    ROW(up, TD_ELEM_F32, TD_ROWS_BATCH, h->n_ff, false, true);
    ROW(x_out, TD_ELEM_F32, last ? TD_ROWS_OUT : TD_ROWS_BATCH, h->n_embd, !last, true);
    ROW(normed_out, TD_ELEM_F32, TD_ROWS_OUT, h->n_embd, false, last);
    ROW(logits, TD_ELEM_F32, TD_ROWS_OUT, h->n_vocab, true, last);
#undef ROW
    return n;
}

static td_cache_params cache_params(const td_forward_params *p)
{
    const td_hparams *h = td_model_hparams(p->model);
    return (td_cache_params){.type_k = p->type_k,
                             .type_v = p->type_v,
                             .n_layers = p->last - p->first + 1,
                             .n_head_kv = h->n_head_kv,
                             .head_dim_k = h->head_dim_k,
                             .head_dim_v = h->head_dim_v,
                             .n_slots = p->n_slots,
                             .n_ctx = p->n_ctx};
}

uint64_t td_forward_bytes(const td_forward_params *params)
{
    td_forward f = {.params = *params, .h = td_model_hparams(params->model)};
    tensor_row rows[N_TENSORS_MAX];
    uint32_t n = tensor_table(&f, rows);
    uint64_t n_bytes = 0;
    for (uint32_t i = 0; i < n; i++)
        if (rows[i].is_wanted)
            n_bytes += 4ull * rows[i].params.n_rows * rows[i].params.n_cols;
    td_cache_params cache = cache_params(params);
    n_bytes += td_cache_bytes(params->dev, &cache);
    n_bytes += td_weights_end_bytes(params->model, params->dev, params->first, params->last);
    for (uint32_t i = params->first; i <= params->last; i++)
        n_bytes += td_weights_layer_bytes(params->model, params->dev, i);
    return n_bytes;
}

/* x -> delta: norm, projections, rope, cache, attention, output projection. */
static void record_attention(td_forward *f, td_program *p, td_weight **w, td_kv *kv, td_view x)
{
    const td_hparams *h = f->h;
    const td_arch *arch = td_model_arch(f->params.model);
    td_view normed = td_all(f->normed), q = td_all(f->q), k = td_all(f->k), v = td_all(f->v);
    td_op_rms_norm(p, x, w[TD_W_ATTN_NORM], 1, h->rms_eps, normed);
    td_op_mat_mul(p, w[TD_W_Q], w[TD_W_BQ], normed, q);
    td_op_mat_mul(p, w[TD_W_K], w[TD_W_BK], normed, k);
    td_op_mat_mul(p, w[TD_W_V], w[TD_W_BV], normed, v);
    if (arch->has_qk_norm) {
        td_op_rms_norm(p, q, w[TD_W_Q_NORM], h->n_head, h->rms_eps, q);
        td_op_rms_norm(p, k, w[TD_W_K_NORM], h->n_head_kv, h->rms_eps, k);
    }
    td_op_rope(p, q, f->cos_sin, arch->rope, h->head_dim_k, h->n_rot);
    td_op_rope(p, k, f->cos_sin, arch->rope, h->head_dim_k, h->n_rot);
    td_op_kv_store(p, kv, k, v, &f->batch);
    td_attention_params params = {.n_head = h->n_head,
                                  .scale = (float)(1.0 / sqrt((double)h->head_dim_k))};
    td_op_attention(p, kv, q, td_all(f->attended), &params, &f->batch);
    td_op_mat_mul(p, w[TD_W_O], w[TD_W_BO], td_all(f->attended), td_all(f->delta));
}

/* x -> delta: norm, gate and up, SwiGLU (Shazeer 2020), down. */
static void record_feed_forward(td_forward *f, td_program *p, td_weight **w, td_view x)
{
    td_view normed = td_all(f->normed), gate = td_all(f->gate), up = td_all(f->up);
    td_op_rms_norm(p, x, w[TD_W_FFN_NORM], 1, f->h->rms_eps, normed);
    td_op_mat_mul(p, w[TD_W_GATE], w[TD_W_B_GATE], normed, gate);
    td_op_mat_mul(p, w[TD_W_UP], w[TD_W_B_UP], normed, up);
    td_op_swiglu(p, gate, up, gate);
    td_op_mat_mul(p, w[TD_W_DOWN], w[TD_W_B_DOWN], gate, td_all(f->delta));
}

static td_program *record(td_forward *f, td_mode mode, td_err *err)
{
    const td_forward_params *params = &f->params;
    bool is_verify = mode == TD_MODE_VERIFY;
    uint32_t n_rows = is_verify ? TD_VERIFY_ROWS_MAX : TD_PREFILL_ROWS_MAX;
    uint32_t n_out = td_min_u32(n_rows, n_out_max(params));
    td_program *p = td_program_begin(params->dev,
                                     &(td_program_params){.name = is_verify ? "verify" : "prefill",
                                                          .mode = mode,
                                                          .n_rows_max = n_rows,
                                                          .n_out_max = n_out},
                                     err);
    if (!p)
        return NULL;
    td_view x = td_all(f->x), delta = td_all(f->delta), in = x;
    if (is_first(params))
        td_op_embed(p, f->weights->ends[TD_W_EMBD], td_all(f->ids), x);
    else
        in = td_all(f->x_in); /* read in place; the stream goes on in x */
    for (uint32_t i = params->first; i <= params->last; i++) {
        td_weight **w = f->weights->layers[i - params->first];
        record_attention(f, p, w, td_cache_kv(f->cache, i - params->first), in);
        td_op_add(p, in, delta, x);
        record_feed_forward(f, p, w, x);
        bool is_handed_over = i == params->last && !is_last(params);
        td_op_add(p, x, delta, is_handed_over ? td_all(f->x_out) : x);
        in = x;
    }
    if (is_last(params)) {
        td_weight **ends = f->weights->ends;
        td_op_gather(p, x, f->out_rows, td_all(f->x_out));
        td_op_rms_norm(p, td_all(f->x_out), ends[TD_W_OUT_NORM], 1, f->h->rms_eps,
                       td_all(f->normed_out));
        td_op_mat_mul(p, ends[f->h->is_tied ? TD_W_EMBD : TD_W_OUT], NULL, td_all(f->normed_out),
                      td_all(f->logits));
    }
    if (!td_program_end(p, err))
        td_program_destroy(&p);
    return p;
}

td_forward *td_forward_create(const td_forward_params *params, td_err *err)
{
    td_forward *f = td_alloc(1, sizeof *f, err);
    if (!f)
        return NULL;
    f->params = *params;
    f->h = td_model_hparams(params->model);
    f->weights = td_weights_load(params->model, params->dev, params->first, params->last,
                                 params->progress, params->user, err);
    if (!f->weights)
        goto fail;
    td_cache_params cache = cache_params(params);
    f->cache = td_cache_create(params->dev, &cache, err);
    if (!f->cache)
        goto fail;
    f->batch.pages = td_cache_pages(f->cache);
    tensor_row rows[N_TENSORS_MAX];
    uint32_t n = tensor_table(f, rows);
    for (uint32_t i = 0; i < n; i++)
        if (rows[i].is_wanted &&
            !(*rows[i].slot = td_tensor_create(params->dev, &rows[i].params, err)))
            goto fail;
    f->verify = record(f, TD_MODE_VERIFY, err);
    f->prefill = f->verify ? record(f, TD_MODE_PREFILL, err) : NULL;
    if (!f->prefill)
        goto fail;
    return f;
fail:
    td_err_prepend(err, "%s: layers %u..%u", td_device_get_info(params->dev)->spec, params->first,
                   params->last);
    td_forward_destroy(&f);
    return NULL;
}

void td_forward_destroy(td_forward **f)
{
    if (!*f)
        return;
    td_program_destroy(&(*f)->verify);
    td_program_destroy(&(*f)->prefill);
    tensor_row rows[N_TENSORS_MAX];
    uint32_t n = tensor_table(*f, rows);
    for (uint32_t i = 0; i < n; i++)
        td_tensor_destroy(rows[i].slot);
    td_cache_destroy(&(*f)->cache);
    td_weights_destroy(&(*f)->weights);
    td_free(*f);
    *f = NULL;
}

td_cache *td_forward_cache(td_forward *f) { return f->cache; }
bool td_forward_is_first(const td_forward *f) { return is_first(&f->params); }
bool td_forward_is_last(const td_forward *f) { return is_last(&f->params); }
float *td_forward_input(td_forward *f) { return td_tensor_data(f->x_in); }

void td_forward_copy_input(td_forward *f, const float *x, uint32_t n_rows)
{
    memcpy(td_forward_input(f), x, (size_t)n_rows * f->h->n_embd * sizeof *x);
}

const float *td_forward_output(td_forward *f)
{
    return td_tensor_data(is_last(&f->params) ? f->logits : f->x_out);
}

bool td_forward_run(td_forward *f, td_mode mode, const td_forward_row *rows, uint32_t n_rows,
                    td_err *err)
{
    const td_hparams *h = f->h;
    int32_t *ids = is_first(&f->params) ? td_tensor_data(f->ids) : NULL;
    int32_t *out_rows = is_last(&f->params) ? td_tensor_data(f->out_rows) : NULL;
    int32_t *positions = td_tensor_data(f->batch.positions);
    int32_t *slots = td_tensor_data(f->batch.slots);
    float *cos_sin = td_tensor_data(f->cos_sin);
    uint32_t n_out = 0;
    for (uint32_t i = 0; i < n_rows; i++) {
        const td_forward_row *r = &rows[i];
        TD_ASSERT(r->token < h->n_vocab && r->position == td_cache_length(f->cache, r->slot));
        if (!td_cache_reserve(f->cache, r->slot, r->position + 1, err))
            return false;
        if (ids)
            ids[i] = (int32_t)r->token;
        positions[i] = (int32_t)r->position;
        slots[i] = (int32_t)r->slot;
        td_rope_cos_sin(f->params.model, r->position, cos_sin + (size_t)i * h->n_rot);
        if (r->is_output && out_rows)
            out_rows[n_out++] = (int32_t)i;
    }
    return td_program_run(mode == TD_MODE_VERIFY ? f->verify : f->prefill, n_rows, n_out, err);
}
