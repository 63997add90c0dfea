/* A part of a model: what it owns, and its runs. layers.c records its programs. */
#include "model/seats.h"

#include "base/check.h"
#include "base/mem.h"

#include <string.h>

static bool is_last(const td_forward_params *p) { return td_part_is_last(p); }
static bool is_first(const td_forward_params *p) { return td_part_is_first(p); }

/* The cache of a part; `kinds` is what params.kinds will point to. */
static td_cache_params cache_params(const td_forward_params *p, td_cache_kind kinds[TD_LAYERS_MAX])
{
    const td_hparams *h = td_model_hparams(p->model);
    const td_arch *arch = td_model_arch(p->model);
    for (uint32_t k = 0; k < td_part_n_layers(p); k++) {
        td_part_layer l = td_part_layer_at(p, k);
        kinds[k] = td_layer_is_recurrent(l.model, l.layer) ? TD_CACHE_RECURRENT
                   : td_layer_is_local(l.model, l.layer)   ? TD_CACHE_LOCAL
                                                           : TD_CACHE_FULL;
    }
    return (td_cache_params){.kv = p->kv,
                             .first_layer = p->first,
                             .n_layers = td_part_n_layers(p),
                             .n_head_kv = h->n_head_kv,
                             .head_dim_k = h->head_dim_k,
                             .head_dim_v = h->head_dim_v,
                             .is_latent = arch->is_mla,
                             .kinds = kinds,
                             .window = arch->local_chunk ? 0 : h->window,
                             .chunk = arch->local_chunk,
                             .n_slots = p->n_slots,
                             .n_ctx = p->n_ctx,
                             .n_pages = p->n_pages,
                             .n_flight = p->n_flight ? p->n_flight : TD_VERIFY_ROWS_MAX,
                             .state = {.n_head_k = h->delta_heads_k,
                                       .n_head_v = h->delta_heads_v,
                                       .dim = h->delta_dim,
                                       .n_taps = h->delta_taps}};
}

/* The part with cache i of those it counts: its own, then those beside it. */
static td_forward_params with_cache(const td_forward_params *params, uint32_t i)
{
    td_forward_params p = *params;
    if (i > 0) {
        p.kv = params->beside[i - 1];
    }
    return p;
}

static uint64_t caches_bytes(const td_forward_params *params)
{
    td_cache_kind kinds[TD_LAYERS_MAX];
    uint64_t n_bytes = 0;
    for (uint32_t i = 0; i <= params->n_beside; i++) {
        td_forward_params p = with_cache(params, i);
        td_cache_params cache = cache_params(&p, kinds);
        n_bytes += td_cache_bytes(p.dev, &cache);
    }
    return n_bytes;
}

uint64_t td_forward_cache_bytes(const td_forward_params *params, uint32_t layer)
{
    td_forward_params p = *params;
    p.first = p.last = layer;
    p.head = NULL;
    return caches_bytes(&p);
}

static td_weight_params table_params(const td_forward *f)
{
    return (td_weight_params){.name = "rope table",
                              .type = td_type_find(TD_TYPE_F32),
                              .n_rows = td_max_u32(f->params.n_ctx, 2), /* one row is a vector */
                              .n_cols = td_rope_cols(f->params.model)};
}

/* Inputs, activations and outputs, of the part's device or of the experts'. */
static uint64_t tensor_bytes(const td_forward_params *params, bool is_far)
{
    td_forward f = {.params = *params, .h = td_model_hparams(params->model)};
    td_forward_tensor rows[TD_FORWARD_TENSORS_MAX];
    uint32_t n = td_forward_tensors(&f, rows);
    uint64_t n_bytes = 0;
    for (uint32_t i = 0; i < n; i++)
        if (rows[i].is_wanted && rows[i].is_far == is_far)
            n_bytes += td_tensor_bytes(is_far ? params->experts_dev : params->dev, &rows[i].params);
    return n_bytes;
}

bool td_forward_check(const td_forward_params *p, td_err *err)
{
    td_forward f = {.params = *p, .h = td_model_hparams(p->model)};
    td_forward_tensor rows[TD_FORWARD_TENSORS_MAX];
    uint32_t n = td_forward_tensors(&f, rows);
    for (uint32_t i = 0; i < n; i++) {
        if (!rows[i].is_wanted) /* those of experts elsewhere, where there is no elsewhere */
            continue;
        const td_device_info *info = td_device_get_info(rows[i].is_far ? p->experts_dev : p->dev);
        uint64_t n_bytes = 4ull * rows[i].params.n_rows * rows[i].params.n_cols;
        if (info->max_buffer_bytes && n_bytes > info->max_buffer_bytes)
            return td_err_set(err, TD_E_NOMEM,
                              "tensor %s needs %llu bytes, above the largest buffer of %s, %llu",
                              rows[i].params.name, (unsigned long long)n_bytes, info->spec,
                              (unsigned long long)info->max_buffer_bytes);
    }
    for (uint32_t i = 0; i <= p->n_beside; i++) {
        td_cache_kind kinds[TD_LAYERS_MAX];
        td_forward_params one = with_cache(p, i);
        td_cache_params cache = cache_params(&one, kinds);
        if (!td_cache_check(p->dev, &cache, err))
            return false;
    }
    const td_model *head = td_part_has_head(p) ? p->head : NULL;
    for (uint32_t i = 1; p->dealing && i < p->dealing->n_seats; i++)
        if (!td_weights_check_pieces(p->model, NULL, p->dev, p->seats[i], p->first, p->last, err))
            return false;
    return td_weights_check_pieces(p->model, head, p->dev, p->experts_dev ? p->experts_dev : p->dev,
                                   p->first, p->last, err);
}

/* On the part's device. */
static td_weights_params weights_params(const td_forward_params *p)
{
    return (td_weights_params){.model = p->model,
                               .head = td_part_has_head(p) ? p->head : NULL,
                               .dev = p->dev,
                               .first = p->first,
                               .last = p->last,
                               .share = p->experts_dev ? TD_SHARE_OTHERS : TD_SHARE_ALL,
                               .dealing = p->dealing};
}

uint64_t td_forward_bytes(const td_forward_params *params)
{
    td_forward f = {.params = *params, .h = td_model_hparams(params->model)};
    uint64_t n_bytes = tensor_bytes(params, false) + caches_bytes(params);
    n_bytes += td_attention_bytes(params->dev, TD_PREFILL_ROWS_MAX, f.h->n_head, f.h->head_dim_v,
                                  params->n_ctx);
    td_weight_params table = table_params(&f);
    if (params->n_steps_max)
        n_bytes += td_weight_bytes(params->dev, &table);
    n_bytes += td_weights_end_bytes(params->model, td_part_has_head(params) ? params->head : NULL,
                                    params->dev, params->first, params->last);
    td_weights_params weights = weights_params(params);
    for (uint32_t k = 0; k < td_part_n_layers(params); k++) {
        td_part_layer l = td_part_layer_at(params, k);
        n_bytes += td_weights_bytes_of(&weights, l.model, l.layer);
    }
    return n_bytes + (params->dealing ? td_seats_bytes(params, 0) : 0);
}

uint64_t td_forward_experts_bytes(const td_forward_params *params)
{
    uint64_t n_bytes = params->experts_dev ? tensor_bytes(params, true) : 0;
    for (uint32_t k = 0; params->experts_dev && k < td_part_n_layers(params); k++) {
        td_part_layer l = td_part_layer_at(params, k);
        n_bytes += td_weights_layer_bytes(l.model, params->experts_dev, l.layer, TD_SHARE_EXPERTS);
    }
    return n_bytes;
}

uint64_t td_forward_seat_bytes(const td_forward_params *params, uint32_t seat)
{
    return td_seats_bytes(params, seat);
}

td_forward_params td_forward_drafting(const td_model *model, td_device *dev,
                                      const td_cache_types *kv, uint32_t n_slots, uint32_t n_ctx)
{
    bool is_host = td_device_get_info(dev)->kind == TD_DEVICE_HOST; /* submits nothing */
    return (td_forward_params){.model = model,
                               .dev = dev,
                               .last = td_model_hparams(model)->n_layer - 1,
                               .kv = *kv,
                               .n_slots = n_slots,
                               .n_ctx = n_ctx,
                               .n_flight = TD_DRAFT_AHEAD_MAX + TD_DRAFT_STEPS,
                               .is_choosing = true,
                               .n_steps_max = is_host ? 0 : TD_DRAFT_STEPS};
}

static void record_feed(td_forward *f, td_program *p)
{
    td_feed_tensors feed = {.picks = f->picks,
                            .draws = f->draws,
                            .ids = f->ids,
                            .positions = f->batch.positions,
                            .cos_sin = f->constants,
                            .trail = f->trail,
                            .table = f->table};
    td_op_feed(p, &feed);
}

typedef enum { VERIFY, PREFILL, DRAFT, STEP, HEAD, HEAD_PREFILL } program_kind;

bool td_recorder_end(td_recorder *r)
{
    bool is_ok = td_program_end(r->p, r->err);
    r->p = NULL; /* its pass holds it already */
    return is_ok;
}

bool td_recorder_cut(td_recorder *r, td_device *dev)
{
    if (r->p && !td_recorder_end(r))
        return false;
    TD_ASSERT(r->pass->n < r->pass->capacity);
    r->p = td_program_begin(dev, &r->params, r->err);
    if (r->p)
        r->pass->items[r->pass->n++] = r->p;
    return r->p;
}

static void destroy_pass(td_pass *pass)
{
    for (uint32_t i = 0; i < pass->n; i++)
        td_program_destroy(&pass->items[i]);
    td_free(pass->items);
}

static bool record(td_forward *f, program_kind kind, td_pass *pass, td_err *err)
{
    static const char *const names[] = {"verify", "prefill", "draft",
                                        "step",   "head",    "head prefill"};
    const td_forward_params *params = &f->params;
    bool is_prefill = kind == PREFILL || kind == HEAD_PREFILL;
    bool is_head = kind == HEAD || kind == HEAD_PREFILL;
    td_mode mode = is_prefill ? TD_MODE_PREFILL : TD_MODE_VERIFY;
    uint32_t n_rows = kind == STEP ? 1 : is_prefill ? TD_PREFILL_ROWS_MAX : TD_VERIFY_ROWS_MAX;
    uint32_t n_out = td_min_u32(kind == DRAFT           ? 1
                                : params->is_all_logits ? n_rows
                                                        : TD_VERIFY_ROWS_MAX,
                                n_rows);
    td_recorder r = {
        .f = f,
        .params = {.name = names[kind], .mode = mode, .n_rows_max = n_rows, .n_out_max = n_out},
        .pass = pass,
        .err = err};
    bool is_cut = params->experts_dev || params->dealing;
    pass->capacity = is_cut ? 2 * td_part_n_layers(params) + 1 : 1;
    pass->items = td_alloc(pass->capacity, sizeof(td_program *), err);
    td_tensor *out_rows = kind == STEP ? f->step_rows : f->out_rows;
    if (!pass->items || !td_recorder_cut(&r, params->dev) ||
        !(is_head ? td_forward_record_head : td_forward_record)(&r, out_rows))
        return false;
    if (kind == DRAFT || kind == STEP)
        record_feed(f, r.p);
    return td_recorder_end(&r);
}

/* What td_rope_row gives at each position, so that a step finds it on the device. */
static bool load_table(td_forward *f, td_err *err)
{
    td_weight_params params = table_params(f);
    float *rows = td_alloc((size_t)params.n_rows * params.n_cols, sizeof *rows, err);
    if (rows)
        f->table = td_weight_create(f->params.dev, &params, err);
    for (uint32_t i = 0; f->table && i < params.n_rows; i++)
        td_rope_row(f->rope, i, rows + (size_t)i * params.n_cols);
    bool is_ok = f->table && td_weight_write(f->table, 0, params.n_rows, rows, err);
    td_free(rows);
    return is_ok;
}

static bool record_all(td_forward *f, td_err *err)
{
    if (!record(f, VERIFY, &f->verify, err) || !record(f, PREFILL, &f->prefill, err))
        return false;
    if (td_part_has_head(&f->params) &&
        (!record(f, HEAD, &f->head_verify, err) || !record(f, HEAD_PREFILL, &f->head_prefill, err)))
        return false;
    td_weight_params table = table_params(f);
    uint64_t table_bytes = td_weight_bytes(f->params.dev, &table);
    uint64_t max_bytes = td_device_get_info(f->params.dev)->max_buffer_bytes;
    bool is_too_large = max_bytes && table_bytes > max_bytes; /* not worth a shader */
    if (!f->params.n_steps_max || f->params.experts_dev || f->params.dealing || is_too_large)
        return true; /* step by step */
    return load_table(f, err) && record(f, DRAFT, &f->draft, err) && record(f, STEP, &f->step, err);
}

/* Its own, or the lender's. */
static bool create_tensors(td_forward *f, td_err *err)
{
    td_forward_tensor rows[TD_FORWARD_TENSORS_MAX], lent[TD_FORWARD_TENSORS_MAX];
    uint32_t n = td_forward_tensors(f, rows);
    if (f->params.lender)
        td_forward_tensors(f->params.lender, lent);
    for (uint32_t i = 0; i < n; i++) {
        if (!rows[i].is_wanted)
            continue;
        td_device *dev = rows[i].is_far ? f->params.experts_dev : f->params.dev;
        *rows[i].slot =
            f->params.lender ? *lent[i].slot : td_tensor_create(dev, &rows[i].params, err);
        if (!*rows[i].slot)
            return false;
    }
    return true;
}

td_forward *td_forward_create(const td_forward_params *params, td_err *err)
{
    td_forward *f = td_alloc(1, sizeof *f, err);
    if (!f)
        return NULL;
    TD_ASSERT(!params->n_steps_max || (params->is_choosing && is_first(params) && is_last(params)));
    f->params = *params;
    f->h = td_model_hparams(params->model);
    td_forward *lender = params->lender;
    TD_ASSERT(!lender || !params->n_steps_max);
    TD_ASSERT(!params->head || (!lender && !params->n_steps_max));
    td_weights_params weights = weights_params(params);
    weights.share = TD_SHARE_ALL;
    weights.experts_dev = params->experts_dev;
    weights.progress = params->progress;
    weights.user = params->user;
    f->weights = lender ? lender->weights : td_weights_load(&weights, err);
    if (!f->weights)
        goto fail;
    td_cache_kind kinds[TD_LAYERS_MAX];
    td_cache_params cache = cache_params(params, kinds);
    f->cache = td_cache_create(params->dev, &cache, err);
    if (!f->cache)
        goto fail;
    f->rope = lender ? lender->rope : td_rope_create(params->model, params->n_ctx, err);
    if (!f->rope)
        goto fail;
    f->batch.pages = td_cache_pages(f->cache, TD_CACHE_FULL);
    f->batch.spans = td_cache_spans(f->cache);
    if (!create_tensors(f, err))
        goto fail;
    f->local_batch = f->batch;
    f->local_batch.pages = td_cache_pages(f->cache, TD_CACHE_LOCAL);
    if (params->dealing)
        f->seats = lender ? lender->seats : td_seats_create(f, err);
    if ((params->dealing && !f->seats) || !record_all(f, err))
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
    destroy_pass(&(*f)->verify);
    destroy_pass(&(*f)->prefill);
    destroy_pass(&(*f)->draft);
    destroy_pass(&(*f)->step);
    destroy_pass(&(*f)->head_verify);
    destroy_pass(&(*f)->head_prefill);
    td_weight_destroy(&(*f)->table);
    td_cache_destroy(&(*f)->cache);
    if (!(*f)->params.lender) {
        td_seats_destroy(&(*f)->seats);
        td_forward_tensor rows[TD_FORWARD_TENSORS_MAX];
        uint32_t n = td_forward_tensors(*f, rows);
        for (uint32_t i = 0; i < n; i++)
            td_tensor_destroy(rows[i].slot);
        td_rope_destroy(&(*f)->rope);
        td_weights_destroy(&(*f)->weights);
    }
    td_free(*f);
    *f = NULL;
}

void td_forward_get_load(const td_forward *f, uint64_t *n_file_bytes, uint64_t *us)
{
    *n_file_bytes = f->weights->n_file_bytes;
    *us = f->weights->load_us;
    if (f->seats)
        td_seats_add_load(f->seats, n_file_bytes);
}

bool td_forward_profile(td_forward *f, bool is_on, td_err *err)
{
    const td_pass *passes[] = {&f->verify, &f->prefill};
    for (size_t i = 0; i < TD_COUNT(passes); i++)
        for (uint32_t k = 0; k < passes[i]->n; k++)
            if (!td_program_profile(passes[i]->items[k], is_on, err))
                return false;
    return true;
}

uint32_t td_forward_op_times(const td_forward *f, td_op_time *out, uint32_t n, uint32_t max)
{
    td_op_time times[TD_OP_NAMES_MAX];
    const td_pass *passes[] = {&f->verify, &f->prefill};
    for (size_t i = 0; i < TD_COUNT(passes); i++)
        for (uint32_t j = 0; j < passes[i]->n; j++) {
            uint32_t n_times = td_program_op_times(passes[i]->items[j], times, TD_OP_NAMES_MAX);
            for (uint32_t k = 0; k < n_times; k++)
                n = td_op_times_add(out, n, max, &times[k]);
        }
    return n;
}

/* Runs are the passes'; all else adds up over their programs. */
static void add_counts(const td_pass *pass, td_program_counts *sum)
{
    *sum = (td_program_counts){0};
    for (uint32_t i = 0; i < pass->n; i++) {
        td_program_counts c;
        td_program_get_counts(pass->items[i], &c);
        td_program_counts_add(sum, &c);
        sum->n_runs = c.n_runs;
    }
}

void td_forward_get_counts(const td_forward *f, td_program_counts *verify,
                           td_program_counts *prefill)
{
    add_counts(&f->verify, verify);
    add_counts(&f->prefill, prefill);
}

td_cache *td_forward_cache(td_forward *f) { return f->cache; }
bool td_forward_is_first(const td_forward *f) { return is_first(&f->params); }
bool td_forward_is_last(const td_forward *f) { return is_last(&f->params); }
float *td_forward_input(td_forward *f) { return td_tensor_data(f->x_in); }

void td_forward_copy_input(td_forward *f, const float *x, uint32_t n_rows)
{
    memcpy(td_forward_input(f), x, (size_t)n_rows * f->h->n_embd * sizeof *x);
}

void td_forward_place(td_forward *f, td_home *in, td_home *out, uint64_t offset)
{
    if (!is_first(&f->params))
        td_tensor_place(f->x_in, in, offset);
    if (!is_last(&f->params))
        td_tensor_place(f->x_out, out, offset);
}

const float *td_forward_output(td_forward *f)
{
    return td_tensor_data(is_last(&f->params) ? f->logits : f->x_out);
}

bool td_forward_touched(td_forward *f, uint32_t n_rows, uint32_t *n_touched, td_err *err)
{
    bool is_touched[TD_EXPERTS_MAX] = {false};
    *n_touched = 0;
    if (!f->experts)
        return true;
    const int32_t *experts = td_tensor_read(f->experts, 0, n_rows, err);
    if (!experts)
        return false;
    for (uint32_t i = 0; i < n_rows * f->h->n_expert_used; i++) {
        TD_ASSERT(experts[i] >= 0 && (uint32_t)experts[i] < f->h->n_expert);
        *n_touched += !is_touched[experts[i]];
        is_touched[experts[i]] = true;
    }
    return true;
}

const uint64_t *td_forward_asked(const td_forward *f)
{
    return f->seats ? td_seats_asked(f->seats) : NULL;
}

const uint64_t *td_forward_dealt(const td_forward *f)
{
    return f->seats ? td_seats_done(f->seats) : NULL;
}

static td_draw draw_of(const td_forward *f, const td_forward_row *r)
{
    TD_ASSERT(r->sampling && (r->history || r->sampling->repeat_penalty == 1.0f));
    return td_shortlist_draw(r->sampling, f->h->n_vocab, r->stream, (uint64_t)r->position + 1,
                             r->history, r->has_other_noise);
}

bool td_forward_choose(td_forward *f, uint32_t i, const td_forward_row *r, td_sampler *sampler,
                       uint32_t *token, bool *is_finite, td_err *err)
{
    const td_pick *pick = (const td_pick *)td_tensor_data(f->picks) + i;
    td_draw draw = draw_of(f, r); /* not read back: that memory may be slow to read */
    if (is_finite)
        *is_finite = pick->is_finite;
    if (!td_shortlist_choose(sampler, r->sampling, f->h->n_vocab, &draw, pick, token)) {
        if (!f->read) /* all rows at once: their samplers are mostly of one kind */
            f->read = td_tensor_read(f->logits, 0, f->n_out, err);
        if (!f->read)
            return false;
        f->n_read++;
        *token = td_sample(sampler, r->sampling, f->read + (size_t)i * f->h->n_vocab, r->history,
                           r->position + 1, r->stream, (uint64_t)r->position + 1);
    }
    TD_ASSERT(*token < f->h->n_vocab);
    return true;
}

uint64_t td_forward_rows_read(const td_forward *f) { return f->n_read; }

/* Tells the recurrent layers what of a sequence is committed, its rows up to
 * `end` now in flight. */
static void fill_span(td_forward *f, td_mode mode, const td_forward_row *last)
{
    td_tensor *spans = td_cache_spans(f->cache);
    uint32_t end = last->position + 1, committed = td_cache_committed(f->cache, last->slot);
    if (!spans)
        return;
    int32_t *span = (int32_t *)td_tensor_data(spans) + 2 * (size_t)last->slot;
    span[0] = (int32_t)(mode == TD_MODE_PREFILL ? end : committed);
    span[1] = (int32_t)end;
}

/* Fills the inputs for the rows. */
static void fill_rows(td_forward *f, const td_forward_row *rows, uint32_t n_rows)
{
    int32_t *ids = f->ids ? td_tensor_data(f->ids) : NULL;
    int32_t *out_rows = is_last(&f->params) ? td_tensor_data(f->out_rows) : NULL;
    int32_t *positions = td_tensor_data(f->batch.positions);
    int32_t *slots = td_tensor_data(f->batch.slots);
    float *constants = td_tensor_data(f->constants);
    td_draw *draws = f->draws ? td_tensor_data(f->draws) : NULL;
    uint32_t n_out = 0, n_constants = td_rope_cols(f->params.model);
    for (uint32_t i = 0; i < n_rows; i++) {
        const td_forward_row *r = &rows[i];
        TD_ASSERT(r->token < f->h->n_vocab);
        if (ids)
            ids[i] = (int32_t)r->token;
        positions[i] = (int32_t)r->position;
        slots[i] = (int32_t)r->slot;
        td_rope_row(f->rope, r->position, constants + (size_t)i * n_constants);
        if (!r->is_output || !out_rows)
            continue;
        if (draws)
            draws[n_out] = draw_of(f, r);
        out_rows[n_out++] = (int32_t)i;
    }
    f->n_out = n_out;
    f->read = NULL;
}

/* The same; the cache grows by them. */
static bool fill_inputs(td_forward *f, td_mode mode, const td_forward_row *rows, uint32_t n_rows,
                        td_err *err)
{
    for (uint32_t i = 0; i < n_rows; i++) {
        const td_forward_row *r = &rows[i];
        TD_ASSERT(r->position == td_cache_length(f->cache, r->slot));
        if (!td_cache_reserve(f->cache, r->slot, r->position + 1, err))
            return false;
        if (i + 1 == n_rows || rows[i + 1].slot != r->slot)
            fill_span(f, mode, r);
    }
    fill_rows(f, rows, n_rows);
    return true;
}

static void hand_over(td_tensor *from, td_tensor *to, uint32_t n_rows)
{
    memcpy(td_tensor_data(to), td_tensor_data(from),
           (size_t)n_rows * td_tensor_get_params(from)->n_cols * 4);
}

void td_forward_expect(td_forward *f, td_mode mode, uint32_t n_rows, uint32_t n_out)
{
    f->expected = mode == TD_MODE_VERIFY ? &f->verify : &f->prefill;
    f->n_expected_rows = n_rows;
    f->n_expected_out = is_last(&f->params) ? n_out : 0;
}

static bool run_one(td_forward *f, const td_pass *pass, uint32_t i, uint32_t n_rows, td_err *err)
{
    if (f->expected)
        td_program_expect(f->expected->items[i], f->n_expected_rows, f->n_expected_out);
    return td_program_run(pass->items[i], n_rows, f->n_out, err);
}

/* Where experts are dealt the seats' turn comes after each program but the last; beside it runs
 * that of a shared expert. */
static bool run_dealt_pass(td_forward *f, const td_pass *pass, uint32_t n_rows, td_err *err)
{
    td_mode mode = pass == &f->verify ? TD_MODE_VERIFY : TD_MODE_PREFILL;
    uint32_t n_each = f->h->n_ff_shared ? 2 : 1;
    for (uint32_t i = 0; i < pass->n; i += n_each) {
        td_program *beside = n_each > 1 && i + 1 < pass->n ? pass->items[i + 1] : NULL;
        if (!run_one(f, pass, i, n_rows, err) ||
            (i + 1 < pass->n && !td_seats_run(f, mode, i / n_each, beside, n_rows, err)))
            return false;
    }
    f->expected = NULL;
    return true;
}

static bool run_pass(td_forward *f, const td_pass *pass, uint32_t n_rows, td_err *err)
{
    if (f->params.dealing && (pass == &f->verify || pass == &f->prefill))
        return run_dealt_pass(f, pass, n_rows, err);
    for (uint32_t i = 0; i < pass->n; i++) {
        if (i % 2) {
            hand_over(f->handed, f->far_in, n_rows);
            hand_over(f->experts, f->far_experts, n_rows);
            hand_over(f->expert_weights, f->far_weights, n_rows);
        } else if (i) {
            hand_over(f->far_out, f->returned, n_rows);
        }
        if (!run_one(f, pass, i, n_rows, err))
            return false;
    }
    f->expected = NULL;
    return true;
}

bool td_forward_run(td_forward *f, td_mode mode, const td_forward_row *rows, uint32_t n_rows,
                    td_err *err)
{
    const td_pass *pass = mode == TD_MODE_VERIFY ? &f->verify : &f->prefill;
    if (!fill_inputs(f, mode, rows, n_rows, err) || !run_pass(f, pass, n_rows, err))
        return false;
    if (mode == TD_MODE_PREFILL && td_cache_forgets(f->cache))
        td_cache_commit(f->cache, rows[0].slot, rows[n_rows - 1].position + 1);
    return true;
}

const float *td_forward_hidden(td_forward *f) { return td_tensor_data(f->hidden); }
const float *td_forward_head_hidden(td_forward *f) { return td_tensor_data(f->normed_out); }

bool td_forward_run_head(td_forward *f, td_mode mode, const td_forward_row *rows,
                         const float *hidden, uint32_t n_rows, td_err *err)
{
    TD_ASSERT(td_part_has_head(&f->params));
    memcpy(td_tensor_data(f->head_in), hidden, (size_t)n_rows * f->h->n_embd * sizeof *hidden);
    for (uint32_t i = 0; i < n_rows; i++)
        TD_ASSERT(rows[i].position < td_cache_length(f->cache, rows[i].slot));
    fill_rows(f, rows, n_rows);
    f->expected = NULL;
    return run_pass(f, mode == TD_MODE_VERIFY ? &f->head_verify : &f->head_prefill, n_rows, err);
}

bool td_forward_draft(td_forward *f, const td_forward_row *rows, uint32_t n_rows, uint32_t n_steps,
                      const td_sampler *sampler, uint32_t *tokens, uint32_t *n_tokens, td_err *err)
{
    const td_forward_row *last = &rows[n_rows - 1];
    td_draw draw = draw_of(f, last);
    TD_ASSERT(n_steps >= 1 && n_steps <= f->params.n_steps_max && last->is_output);
    *n_tokens = 0;
    if (!f->step.n || draw.kind == TD_DRAW_NONE)
        return true;
    if (!fill_inputs(f, TD_MODE_VERIFY, rows, n_rows, err) ||
        !td_cache_reserve(f->cache, last->slot, last->position + n_steps, err))
        return false;
    TD_ASSERT(f->n_out == 1);
    const td_program_call calls[] = {{f->draft.items[0], n_rows, 1, 1},
                                     {f->step.items[0], 1, 1, n_steps - 1}};
    if (!td_programs_run(calls, n_steps > 1 ? 2 : 1, err))
        return false;
    const td_pick *trail = td_tensor_data(f->trail);
    for (uint32_t i = 0; i < n_steps; i++) {
        uint64_t position = (uint64_t)last->position + 1 + i;
        draw.position[0] = (uint32_t)position;
        draw.position[1] = (uint32_t)(position >> 32);
        if (!td_shortlist_choose(sampler, last->sampling, f->h->n_vocab, &draw, &trail[i],
                                 &tokens[i]))
            break;
        ++*n_tokens;
        if (tokens[i] != trail[i].token)
            break; /* the device continued from another token */
        td_draw_push(&draw, tokens[i]);
    }
    td_cache_truncate(f->cache, last->slot, last->position + *n_tokens);
    return true;
}
