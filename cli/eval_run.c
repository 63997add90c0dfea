/* The runs of `tandem eval`: every cache over the same weights, one chunk of a window after
 * another. */
#include "cli/eval.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "run/show.h"
#include "target/chain.h"

#include <math.h>
#include <string.h>

#define REDRAW_US 200000u

typedef struct {
    const eval_params *params;
    uint32_t n_vocab;
    uint32_t bos; /* takes the place of a window's first token; TD_NO_TOKEN: none does */
    td_chain *chains[EVAL_KVS_MAX];
    eval_score scores[EVAL_KVS_MAX];
    float *base_logits;   /* [TD_PREFILL_ROWS_MAX][n_vocab] of this chunk */
    eval_row *base_rows;  /* [TD_PREFILL_ROWS_MAX] */
    uint64_t done, total; /* chunks, of all caches */
    td_clock clock;
    uint64_t start_us, drawn_us;
} runner;

static void show_progress(runner *r, uint32_t window)
{
    uint64_t now = td_clock_now_us(&r->clock);
    r->done++;
    if (now - r->drawn_us < REDRAW_US)
        return;
    r->drawn_us = now;
    double s_each = (double)(now - r->start_us) * 1e-6 / (double)r->done;
    const eval_score *base = &r->scores[0];
    td_log_progress("window %u of %u, perplexity of %s so far %.4f, %.0f s left", window + 1,
                    r->params->n_windows, r->params->kvs[0].name,
                    base->n ? exp(base->nll / base->n) : 0, s_each * (double)(r->total - r->done));
}

/* Logits after positions first..first+n_out-1 of a window, with one cache; the base's before. */
static bool score(runner *r, uint32_t kv, uint32_t window, uint32_t first, uint32_t n_out,
                  td_err *err)
{
    const eval_params *p = r->params;
    const float *logits = td_chain_logits(r->chains[kv]);
    const uint32_t *next = p->ids + (size_t)window * p->window + first + 1;
    if (kv == 0) { /* whose own are overwritten by the next cache's */
        memcpy(r->base_logits, logits, (size_t)n_out * r->n_vocab * sizeof *logits);
        logits = r->base_logits;
    }
    for (uint32_t i = 0; i < n_out; i++) {
        eval_row other, *row = kv ? &other : &r->base_rows[i];
        if (!td_eval_read_row(logits + (size_t)i * r->n_vocab, r->n_vocab, row))
            return td_err_set(err, TD_E_DATA,
                              "%s: window %u, position %u: logits are not finite with %s",
                              td_model_path(p->model), window, first + i, p->kvs[kv].name);
        td_eval_add(&r->scores[kv], &r->base_rows[i], row, next[i]);
    }
    return true;
}

/* Positions begin..end-1 of a window, with each cache. What follows its last token is not known. */
static bool run_chunk(runner *r, uint32_t window, uint32_t begin, uint32_t end, td_err *err)
{
    const uint32_t *ids = r->params->ids + (size_t)window * r->params->window;
    uint32_t first = td_max_u32(begin, r->params->window / 2);
    td_forward_row rows[TD_PREFILL_ROWS_MAX];
    for (uint32_t i = begin; i < end; i++)
        rows[i - begin] =
            (td_forward_row){.position = i,
                             .token = i == 0 && r->bos != TD_NO_TOKEN ? r->bos : ids[i],
                             .is_output = i >= first};
    for (uint32_t kv = 0; kv < r->params->n_kvs; kv++) {
        if (!td_chain_run(r->chains[kv], TD_MODE_PREFILL, rows, end - begin, err) ||
            (end > first && !score(r, kv, window, first, end - first, err)))
            return false;
        show_progress(r, window);
    }
    return true;
}

static bool run_windows(runner *r, td_err *err)
{
    uint32_t n = r->params->window - 1;
    bool is_ok = true;
    r->start_us = r->drawn_us = td_clock_now_us(&r->clock);
    r->total =
        (uint64_t)r->params->n_windows * td_div_up(n, TD_PREFILL_ROWS_MAX) * r->params->n_kvs;
    for (uint32_t w = 0; is_ok && w < r->params->n_windows; w++) {
        for (uint32_t kv = 0; kv < r->params->n_kvs; kv++)
            td_chain_rewind(r->chains[kv], 0, 0);
        for (uint32_t i = 0; is_ok && i < n; i += TD_PREFILL_ROWS_MAX)
            is_ok = run_chunk(r, w, i, td_min_u32(i + TD_PREFILL_ROWS_MAX, n), err);
    }
    td_log_progress_end();
    return is_ok;
}

static bool load(runner *r, td_err *err)
{
    const eval_params *p = r->params;
    td_cache_types beside[EVAL_KVS_MAX];
    for (uint32_t i = 1; i < p->n_kvs; i++)
        beside[i - 1] = p->kvs[i].types;
    td_loading loading = {.clock = r->clock, .start_us = td_clock_now_us(&r->clock)};
    const td_layout_params params = {.model = p->model,
                                     .specs = p->specs,
                                     .n_specs = p->n_specs,
                                     .type_k = p->kvs[0].types.k,
                                     .type_v = p->kvs[0].types.v,
                                     .beside = beside,
                                     .n_beside = p->n_kvs - 1,
                                     .n_slots = 1,
                                     .n_ctx = p->window,
                                     .is_all_logits = true,
                                     .progress = td_show_loading,
                                     .user = &loading};
    r->chains[0] = td_chain_create(&params, err);
    bool is_ok = r->chains[0];
    for (uint32_t i = 1; is_ok && i < p->n_kvs; i++) {
        r->chains[i] = td_chain_create_beside(r->chains[0], &params, i - 1, err);
        is_ok = r->chains[i];
    }
    td_log_progress_end();
    return is_ok;
}

static bool create_scores(runner *r, td_err *err)
{
    size_t n = (size_t)r->params->n_windows * td_eval_n_scored(r->params->window);
    r->base_logits =
        td_alloc((size_t)TD_PREFILL_ROWS_MAX * r->n_vocab, sizeof *r->base_logits, err);
    r->base_rows = td_alloc(TD_PREFILL_ROWS_MAX, sizeof *r->base_rows, err);
    bool is_ok = r->base_logits && r->base_rows;
    for (uint32_t i = 0; is_ok && i < r->params->n_kvs; i++) {
        r->scores[i].klds = td_alloc(n, sizeof(float), err);
        is_ok = r->scores[i].klds;
    }
    return is_ok;
}

static double position_bytes(const td_chain *chain)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < chain->layout->n_parts; i++)
        for (uint32_t k = 0; k <= chain->layout->parts[i].last - chain->layout->parts[i].first; k++)
            n += td_cache_position_bytes(td_forward_cache(chain->forwards[i]), k);
    return (double)n;
}

bool td_eval_run(const eval_params *params, eval_figures *out, td_err *err)
{
    const td_tokenizer_info *t = td_tokenizer_get_info(td_model_tokenizer(params->model));
    runner r = {.params = params,
                .n_vocab = td_model_hparams(params->model)->n_vocab,
                .bos = t->add_bos ? t->bos : TD_NO_TOKEN,
                .clock = td_clock_real()};
    bool is_ok = create_scores(&r, err) && load(&r, err) && run_windows(&r, err);
    for (uint32_t i = 0; is_ok && i < params->n_kvs; i++) {
        out[i] = td_eval_judge(&r.scores[i]);
        out[i].bytes_per_position = position_bytes(r.chains[i]);
    }
    for (uint32_t i = params->n_kvs; i > 0; i--) { /* the lender last */
        td_chain_destroy(&r.chains[i - 1]);
        td_free(r.scores[i - 1].klds);
    }
    td_free(r.base_rows);
    td_free(r.base_logits);
    return is_ok;
}
