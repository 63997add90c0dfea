/* The forward pass, recorded. A block (attention, feed-forward) is a few ops; what an architecture
 * has or lacks shows as a weight that is there or NULL, or as a field of its row of traits. The
 * same blocks are recorded twice, for verify and for prefill; only the row limits differ. */
#include "model/forward.h"

#include "base/check.h"
#include "base/mem.h"

#include <math.h>
#include <string.h>

#define LOG2_E          1.4426950408889634
#define TEMPERATURE_MIN 0.001f

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
    /* Choosing tokens. */
    td_tensor *draws, *picks; /* I32 [outs][..], host-visible: td_draw, td_pick */
    td_tensor *parts;         /* I32 [outs][..] */
    uint32_t n_out;           /* of the last run */
    const float *read;        /* [n_out][n_vocab] its logits, when a token took them; else NULL */
    /* Drafting: steps that feed each other. */
    td_weight *table;     /* [n_ctx][n_rot] rows of cos_sin by position */
    td_tensor *trail;     /* I32 [n_steps_max][..], host-visible: td_pick of each step */
    td_tensor *step_rows; /* I32 [1][1] the out_rows of a step: its only row */
    td_program *draft;    /* verify, and then feed */
    td_program *step;     /* the same for one row */
};

#define N_TENSORS_MAX 26u

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
    ROW(logits, TD_ELEM_F32, TD_ROWS_OUT, h->n_vocab, !p->is_choosing, last);
    const bool chooses = last && p->is_choosing, steps = chooses && p->n_steps_max;
    const uint32_t n_parts = td_div_up(h->n_vocab, TD_TOP_CHUNK);
    ROW(draws, TD_ELEM_I32, TD_ROWS_OUT, TD_DRAW_WORDS, true, chooses);
    ROW(parts, TD_ELEM_I32, TD_ROWS_OUT, n_parts * TD_PART_WORDS, false, chooses);
    ROW(picks, TD_ELEM_I32, TD_ROWS_OUT, TD_PICK_WORDS, true, chooses);
    ROW(step_rows, TD_ELEM_I32, TD_ROWS_OUT, 1, true, steps);
    ROW(trail, TD_ELEM_I32, TD_ROWS_FIXED, TD_PICK_WORDS, true, steps);
    rows[n - 1].params.n_rows = p->n_steps_max;
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

static td_weight_params table_params(const td_forward *f)
{
    return (td_weight_params){.name = "rope table",
                              .type = td_type_find(TD_TYPE_F32),
                              .n_rows = td_max_u32(f->params.n_ctx, 2), /* one row is a vector */
                              .n_cols = f->h->n_rot};
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
    td_weight_params table = table_params(&f);
    if (params->n_steps_max)
        n_bytes += td_weight_bytes(params->dev, &table);
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

/* Logits, and of them what it takes to choose tokens. */
static void record_end(td_forward *f, td_program *p, td_tensor *out_rows)
{
    td_weight **ends = f->weights->ends;
    td_op_gather(p, td_all(f->x), out_rows, td_all(f->x_out));
    td_op_rms_norm(p, td_all(f->x_out), ends[TD_W_OUT_NORM], 1, f->h->rms_eps,
                   td_all(f->normed_out));
    td_op_mat_mul(p, ends[f->h->is_tied ? TD_W_EMBD : TD_W_OUT], NULL, td_all(f->normed_out),
                  td_all(f->logits));
    if (!f->params.is_choosing)
        return;
    td_op_top(p, td_all(f->logits), f->draws, f->parts);
    td_op_pick(p, f->parts, f->draws, f->picks);
}

static void record_feed(td_forward *f, td_program *p)
{
    td_feed_tensors feed = {.picks = f->picks,
                            .draws = f->draws,
                            .ids = f->ids,
                            .positions = f->batch.positions,
                            .cos_sin = f->cos_sin,
                            .trail = f->trail,
                            .table = f->table};
    td_op_feed(p, &feed);
}

typedef enum { VERIFY, PREFILL, DRAFT, STEP } program_kind;

static td_program *record(td_forward *f, program_kind kind, td_err *err)
{
    static const char *const names[] = {"verify", "prefill", "draft", "step"};
    const td_forward_params *params = &f->params;
    td_mode mode = kind == PREFILL ? TD_MODE_PREFILL : TD_MODE_VERIFY;
    uint32_t n_rows = kind == STEP ? 1 : kind == PREFILL ? TD_PREFILL_ROWS_MAX : TD_VERIFY_ROWS_MAX;
    uint32_t n_out = td_min_u32(kind == DRAFT ? 1 : n_rows, n_out_max(params));
    td_program *p = td_program_begin(
        params->dev,
        &(td_program_params){
            .name = names[kind], .mode = mode, .n_rows_max = n_rows, .n_out_max = n_out},
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
    if (is_last(params))
        record_end(f, p, kind == STEP ? f->step_rows : f->out_rows);
    if (kind == DRAFT || kind == STEP)
        record_feed(f, p);
    if (!td_program_end(p, err))
        td_program_destroy(&p);
    return p;
}

/* What td_rope_cos_sin gives at each position, so that a step finds it on the device. */
static bool load_table(td_forward *f, td_err *err)
{
    td_weight_params params = table_params(f);
    float *rows = td_alloc((size_t)params.n_rows * params.n_cols, sizeof *rows, err);
    if (rows)
        f->table = td_weight_create(f->params.dev, &params, err);
    for (uint32_t i = 0; f->table && i < params.n_rows; i++)
        td_rope_cos_sin(f->params.model, i, rows + (size_t)i * params.n_cols);
    bool is_ok = f->table && td_weight_write(f->table, 0, params.n_rows, rows, err);
    td_free(rows);
    return is_ok;
}

static bool record_all(td_forward *f, td_err *err)
{
    f->verify = record(f, VERIFY, err);
    f->prefill = f->verify ? record(f, PREFILL, err) : NULL;
    td_weight_params table = table_params(f);
    uint64_t table_bytes = td_weight_bytes(f->params.dev, &table);
    uint64_t max_bytes = td_device_get_info(f->params.dev)->max_buffer_bytes;
    if (!f->prefill || !f->params.n_steps_max || (max_bytes && table_bytes > max_bytes))
        return f->prefill; /* a table in pieces is not worth a shader: then step by step */
    if (!load_table(f, err))
        return false;
    f->draft = record(f, DRAFT, err);
    f->step = f->draft ? record(f, STEP, err) : NULL;
    return f->step;
}

td_forward *td_forward_create(const td_forward_params *params, td_err *err)
{
    td_forward *f = td_alloc(1, sizeof *f, err);
    if (!f)
        return NULL;
    TD_ASSERT(!params->n_steps_max || (params->is_choosing && is_first(params) && is_last(params)));
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
    if (!record_all(f, err))
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
    td_program_destroy(&(*f)->draft);
    td_program_destroy(&(*f)->step);
    td_weight_destroy(&(*f)->table);
    tensor_row rows[N_TENSORS_MAX];
    uint32_t n = tensor_table(*f, rows);
    for (uint32_t i = 0; i < n; i++)
        td_tensor_destroy(rows[i].slot);
    td_cache_destroy(&(*f)->cache);
    td_weights_destroy(&(*f)->weights);
    td_free(*f);
    *f = NULL;
}

void td_forward_get_load(const td_forward *f, uint64_t *n_file_bytes, uint64_t *us)
{
    *n_file_bytes = f->weights->n_file_bytes;
    *us = f->weights->load_us;
}

bool td_forward_profile(td_forward *f, bool is_on, td_err *err)
{
    return td_program_profile(f->verify, is_on, err) && td_program_profile(f->prefill, is_on, err);
}

uint32_t td_forward_op_times(const td_forward *f, td_op_time *out, uint32_t n, uint32_t max)
{
    td_op_time times[TD_OP_NAMES_MAX];
    const td_program *programs[] = {f->verify, f->prefill};
    for (size_t i = 0; i < TD_COUNT(programs); i++) {
        uint32_t n_times = td_program_op_times(programs[i], times, TD_OP_NAMES_MAX);
        for (uint32_t k = 0; k < n_times; k++)
            n = td_op_times_add(out, n, max, &times[k]);
    }
    return n;
}

void td_forward_get_counts(const td_forward *f, td_program_counts *verify,
                           td_program_counts *prefill)
{
    td_program_get_counts(f->verify, verify);
    td_program_get_counts(f->prefill, prefill);
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

static td_draw draw_of(const td_forward *f, const td_forward_row *r)
{
    TD_ASSERT(r->sampling);
    uint64_t position = (uint64_t)r->position + 1; /* of the token that is chosen */
    float t = r->sampling->temperature;
    bool is_plain = td_sampling_is_plain(r->sampling, f->h->n_vocab);
    bool is_race = t >= TEMPERATURE_MIN; /* else scores lose their meaning in f32 */
    return (td_draw){.kind = !is_plain   ? TD_DRAW_NONE
                             : t == 0.0f ? TD_DRAW_GREEDY
                             : is_race   ? TD_DRAW_RACE
                                         : TD_DRAW_NONE,
                     .scale = t > 0 ? (float)(LOG2_E / (double)t) : 0,
                     .stream = {(uint32_t)r->stream, (uint32_t)(r->stream >> 32)},
                     .position = {(uint32_t)position, (uint32_t)(position >> 32)}};
}

/* The token of a pick; false when it takes the logits to tell. */
static bool decide(const td_forward_row *r, const td_pick *pick, uint64_t position, uint32_t *token)
{
    uint32_t ids[TD_TOP_CANDIDATES];
    float logits[TD_TOP_CANDIDATES];
    if (pick->n < 1 || pick->n > TD_TOP_CANDIDATES)
        return false;
    *token = pick->candidates[0].id;
    if (pick->n == 1)
        return true;
    for (uint32_t i = 0; i < pick->n; i++) {
        ids[i] = pick->candidates[i].id;
        logits[i] = pick->candidates[i].logit;
    }
    *token = td_sample_among(r->sampling, pick->max, ids, logits, pick->n, r->stream, position);
    return true;
}

bool td_forward_choose(td_forward *f, uint32_t i, const td_forward_row *r, const uint32_t *history,
                       td_sampler *sampler, uint32_t *token, bool *is_finite, td_err *err)
{
    const td_pick *pick = (const td_pick *)td_tensor_data(f->picks) + i;
    if (is_finite)
        *is_finite = pick->is_finite;
    if (!decide(r, pick, (uint64_t)r->position + 1, token)) {
        if (!f->read) /* all rows at once: their samplers are mostly of one kind */
            f->read = td_tensor_read(f->logits, 0, f->n_out, err);
        if (!f->read)
            return false;
        *token = td_sample(sampler, r->sampling, f->read + (size_t)i * f->h->n_vocab, history,
                           r->position + 1, r->stream, (uint64_t)r->position + 1);
    }
    TD_ASSERT(*token < f->h->n_vocab);
    return true;
}

/* Fills the inputs for the rows; the cache grows by them. */
static bool fill_inputs(td_forward *f, const td_forward_row *rows, uint32_t n_rows, td_err *err)
{
    const td_hparams *h = f->h;
    int32_t *ids = is_first(&f->params) ? td_tensor_data(f->ids) : NULL;
    int32_t *out_rows = is_last(&f->params) ? td_tensor_data(f->out_rows) : NULL;
    int32_t *positions = td_tensor_data(f->batch.positions);
    int32_t *slots = td_tensor_data(f->batch.slots);
    float *cos_sin = td_tensor_data(f->cos_sin);
    td_draw *draws = f->draws ? td_tensor_data(f->draws) : NULL;
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
        if (!r->is_output || !out_rows)
            continue;
        if (draws)
            draws[n_out] = draw_of(f, r);
        out_rows[n_out++] = (int32_t)i;
    }
    f->n_out = n_out;
    f->read = NULL;
    return true;
}

bool td_forward_run(td_forward *f, td_mode mode, const td_forward_row *rows, uint32_t n_rows,
                    td_err *err)
{
    return fill_inputs(f, rows, n_rows, err) &&
           td_program_run(mode == TD_MODE_VERIFY ? f->verify : f->prefill, n_rows, f->n_out, err);
}

bool td_forward_draft(td_forward *f, const td_forward_row *rows, uint32_t n_rows, uint32_t n_steps,
                      uint32_t *tokens, uint32_t *n_tokens, td_err *err)
{
    const td_forward_row *last = &rows[n_rows - 1];
    TD_ASSERT(n_steps >= 1 && n_steps <= f->params.n_steps_max && last->is_output);
    *n_tokens = 0;
    if (!f->step)
        return true;
    if (!fill_inputs(f, rows, n_rows, err) ||
        !td_cache_reserve(f->cache, last->slot, last->position + n_steps, err))
        return false;
    TD_ASSERT(f->n_out == 1);
    const td_program_call calls[] = {{f->draft, n_rows, 1, 1}, {f->step, 1, 1, n_steps - 1}};
    if (!td_programs_run(calls, n_steps > 1 ? 2 : 1, err))
        return false;
    const td_pick *trail = td_tensor_data(f->trail);
    for (uint32_t i = 0; i < n_steps; i++) {
        if (!decide(last, &trail[i], (uint64_t)last->position + 1 + i, &tokens[i]))
            break;
        ++*n_tokens;
        if (tokens[i] != trail[i].token)
            break; /* the device went on with another */
    }
    td_cache_truncate(f->cache, last->slot, last->position + *n_tokens);
    return true;
}
