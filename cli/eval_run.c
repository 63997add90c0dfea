/* The runs of `tandem eval`: every cache over the same weights, one chunk of a window after
 * another. Those that are held against the base come in groups, as many as have room beside it. */
#include "cli/eval.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/order.h"
#include "run/identity.h"
#include "run/show.h"
#include "target/chain.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define REDRAW_US 200000u
#define GROUP_MAX (1 + EVAL_BESIDE_MAX)
/* Of speeds, after one round that warms up: at least so many, more while there is time. Their lower
 * quartile is told, since what else the machine does only adds. */
#define ROUNDS_MIN 7u
#define ROUNDS_MAX 51u
#define ROUNDS_US  30000u

/* A cache with the chain that computes with it. */
typedef struct {
    uint32_t kv;
    td_chain *chain;
    eval_score score; /* of the window that is computed */
} member;

struct td_eval_runner {
    const eval_params *params;
    uint32_t n_vocab;
    uint32_t bos; /* takes the place of a window's first token; TD_NO_TOKEN: none does */
    td_layout_params layout_params;
    td_cache_types beside[EVAL_BESIDE_MAX];
    td_layout *layout; /* until it is loaded */
    char identity[TD_IDENTITY_BYTES];
    member members[GROUP_MAX]; /* [n_members], the base first; 0: nothing is loaded */
    uint32_t n_members;
    float *base_logits;   /* [TD_PREFILL_ROWS_MAX][n_vocab] of this chunk */
    eval_row *base_rows;  /* [TD_PREFILL_ROWS_MAX] */
    uint64_t done, total; /* chunks, of all caches */
    double base_nll;      /* of the windows so far, */
    uint32_t n_base;      /* and positions */
    td_clock clock;
    uint64_t start_us, drawn_us;
    uint64_t end_us; /* when no window is begun any more; 0: never */
};

/* -- the group --------------------------------------------------------------------------------- */

static void leave(td_eval_runner *r, uint32_t n_left)
{
    for (; r->n_members > n_left; r->n_members--) { /* the lender last */
        member *m = &r->members[r->n_members - 1];
        td_chain_destroy(&m->chain);
        td_free(m->score.klds);
        *m = (member){.kv = 0};
    }
}

static bool join(td_eval_runner *r, uint32_t kv, td_err *err)
{
    member *m = &r->members[r->n_members++]; /* what it has is taken back by leave() */
    td_loading loading = {.clock = r->clock, .start_us = td_clock_now_us(&r->clock)};
    td_layout_params params = r->layout_params;
    *m = (member){.kv = kv};
    if (kv == 0) {
        params.made = r->layout ? &r->layout : NULL;
        params.progress = td_show_loading;
        params.user = &loading;
        m->chain = td_chain_create(&params, err);
        td_log_progress_end();
    } else {
        params.beside = &r->params->kvs[kv].types;
        params.n_beside = 1;
        m->chain = td_chain_create_beside(r->members[0].chain, &params, 0, err);
    }
    m->score.klds = td_alloc(r->params->n_scored, sizeof *m->score.klds, m->chain ? err : NULL);
    return m->chain && m->score.klds;
}

/* Makes the group the base and caches kvs[n], n <= EVAL_BESIDE_MAX. */
static bool gather(td_eval_runner *r, const uint32_t *kvs, uint32_t n, td_err *err)
{
    uint32_t n_same = 0;
    while (n_same < n && n_same + 1 < r->n_members && r->members[n_same + 1].kv == kvs[n_same])
        n_same++;
    leave(r, r->n_members ? 1 + n_same : 0);
    if (!r->n_members && !join(r, 0, err))
        return false;
    for (uint32_t i = n_same; i < n; i++)
        if (!join(r, kvs[i], err))
            return false;
    return true;
}

static double position_bytes(const td_chain *chain)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < chain->layout->n_parts; i++)
        for (uint32_t k = 0; k <= chain->layout->parts[i].last - chain->layout->parts[i].first; k++)
            n += td_cache_position_bytes(td_forward_cache(chain->forwards[i]), k);
    return (double)n;
}

/* -- windows ----------------------------------------------------------------------------------- */

static void show_progress(td_eval_runner *r, uint32_t window)
{
    uint64_t now = td_clock_now_us(&r->clock);
    r->done++;
    if (now - r->drawn_us < REDRAW_US)
        return;
    r->drawn_us = now;
    double s_each = (double)(now - r->start_us) * 1e-6 / (double)r->done;
    td_log_progress("window %u of %u, perplexity of %s so far %.4f, %.0f s left", window + 1,
                    r->params->n_windows, r->params->kvs[0].name,
                    r->n_base ? exp(r->base_nll / r->n_base) : 0,
                    s_each * (double)(r->total - r->done));
}

/* Logits after positions first..first+n_out-1 of a window, with one cache; the base's before. */
static bool score(td_eval_runner *r, member *m, uint32_t window, uint32_t first, uint32_t n_out,
                  td_err *err)
{
    const eval_params *p = r->params;
    const float *logits = td_chain_logits(m->chain);
    const uint32_t *next = p->ids + (size_t)window * p->window + first + 1;
    if (m->kv == 0) { /* whose own are overwritten by the next cache's */
        memcpy(r->base_logits, logits, (size_t)n_out * r->n_vocab * sizeof *logits);
        logits = r->base_logits;
    }
    for (uint32_t i = 0; i < n_out; i++) {
        eval_row other, *row = m->kv ? &other : &r->base_rows[i];
        if (!td_eval_read_row(logits + (size_t)i * r->n_vocab, r->n_vocab, row))
            return td_err_set(err, TD_E_DATA,
                              "%s: window %u, position %u: logits are not finite with %s",
                              td_model_path(p->model), window, first + i, p->kvs[m->kv].name);
        td_eval_add(&m->score, &r->base_rows[i], row, next[i]);
    }
    return true;
}

/* Rows of positions begin..end-1 of a window; outputs from `first` on. */
static void make_rows(const td_eval_runner *r, uint32_t window, uint32_t begin, uint32_t end,
                      uint32_t first, td_forward_row *rows)
{
    const uint32_t *ids = r->params->ids + (size_t)window * r->params->window;
    for (uint32_t i = begin; i < end; i++)
        rows[i - begin] =
            (td_forward_row){.position = i,
                             .token = i == 0 && r->bos != TD_NO_TOKEN ? r->bos : ids[i],
                             .is_output = i >= first};
}

/* Positions begin..end-1 of a window, with each cache. What follows its last token is not known. */
static bool run_chunk(td_eval_runner *r, uint32_t window, uint32_t begin, uint32_t end, td_err *err)
{
    uint32_t first = td_max_u32(begin, r->params->window - 1 - r->params->n_scored);
    td_forward_row rows[TD_PREFILL_ROWS_MAX];
    make_rows(r, window, begin, end, first, rows);
    for (uint32_t i = 0; i < r->n_members; i++) {
        member *m = &r->members[i];
        if (!td_chain_run(m->chain, TD_MODE_PREFILL, rows, end - begin, err) ||
            (end > first && !score(r, m, window, first, end - first, err)))
            return false;
        show_progress(r, window);
    }
    return true;
}

static bool run_window(td_eval_runner *r, td_eval_results *results, uint32_t window, td_err *err)
{
    uint32_t n = r->params->window - 1;
    for (uint32_t i = 0; i < r->n_members; i++) {
        member *m = &r->members[i];
        m->score = (eval_score){.klds = m->score.klds};
        td_chain_rewind(m->chain, 0, 0);
    }
    for (uint32_t i = 0; i < n; i += TD_PREFILL_ROWS_MAX)
        if (!run_chunk(r, window, i, td_min_u32(i + TD_PREFILL_ROWS_MAX, n), err))
            return false;
    for (uint32_t i = 0; i < r->n_members; i++) {
        const member *m = &r->members[i];
        if (!td_eval_results_put(results, m->kv, window, &m->score, position_bytes(m->chain), err))
            return false;
    }
    r->base_nll += r->members[0].score.nll;
    r->n_base += r->members[0].score.n;
    return true;
}

/* Whether the results lack something of a window. */
static bool lacks(const td_eval_results *results, const uint32_t *kvs, uint32_t n, uint32_t window)
{
    bool is_whole = td_eval_results_has(results, 0, window);
    for (uint32_t i = 0; is_whole && i < n; i++)
        is_whole = td_eval_results_has(results, kvs[i], window);
    return !is_whole;
}

bool td_eval_run_windows(td_eval_runner *r, td_eval_results *results, const uint32_t *kvs,
                         uint32_t n, uint32_t first, uint32_t end, td_err *err)
{
    uint32_t n_chunks = td_div_up(r->params->window - 1, TD_PREFILL_ROWS_MAX);
    bool is_ok = true;
    r->done = r->total = 0;
    for (uint32_t at = 0; at < n || at == 0; at += EVAL_BESIDE_MAX) {
        uint32_t n_here = td_min_u32(n - at, EVAL_BESIDE_MAX);
        for (uint32_t w = first; w < end; w++)
            r->total += lacks(results, kvs + at, n_here, w) * (1 + n_here) * n_chunks;
    }
    for (uint32_t at = 0; is_ok && (at < n || at == 0); at += EVAL_BESIDE_MAX) {
        uint32_t n_here = td_min_u32(n - at, EVAL_BESIDE_MAX);
        for (uint32_t w = first; is_ok && w < end; w++) {
            if (!lacks(results, kvs + at, n_here, w) ||
                (r->end_us && td_clock_now_us(&r->clock) >= r->end_us))
                continue;
            is_ok = gather(r, kvs + at, n_here, err);
            if (!r->done)
                r->start_us = r->drawn_us = td_clock_now_us(&r->clock);
            is_ok = is_ok && run_window(r, results, w, err);
        }
    }
    td_log_progress_end();
    return is_ok;
}

/* -- speeds ------------------------------------------------------------------------------------ */

/* The first window up to `length` in the member's cache. */
static bool fill(td_eval_runner *r, const member *m, uint32_t length, td_err *err)
{
    td_forward_row rows[TD_PREFILL_ROWS_MAX];
    for (uint32_t i = td_chain_rewind(m->chain, 0, length); i < length;) {
        uint32_t end = td_min_u32(i + TD_PREFILL_ROWS_MAX, length);
        make_rows(r, 0, i, end, end, rows);
        if (!td_chain_run(m->chain, TD_MODE_PREFILL, rows, end - i, err))
            return false;
        i = end;
    }
    return true;
}

/* A pass of so many rows, the last of a window. */
static bool time_pass(td_eval_runner *r, const member *m, uint32_t n_rows, double *ms, td_err *err)
{
    td_forward_row rows[EVAL_VERIFY_ROWS];
    uint32_t n = r->params->window, length = n - EVAL_VERIFY_ROWS;
    if (!fill(r, m, length, err))
        return false;
    make_rows(r, 0, length, length + n_rows, 0, rows);
    uint64_t begin_ns = td_clock_real_ns();
    bool is_ok = td_chain_run(m->chain, TD_MODE_VERIFY, rows, n_rows, err);
    *ms = (double)(td_clock_real_ns() - begin_ns) * 1e-6;
    return is_ok;
}

static bool is_over(const td_eval_runner *r, uint32_t n_rounds, uint64_t begin_us)
{
    return n_rounds == ROUNDS_MAX ||
           (n_rounds >= ROUNDS_MIN && td_clock_now_us(&r->clock) - begin_us > ROUNDS_US);
}

bool td_eval_run_speeds(td_eval_runner *r, td_eval_results *results, const uint32_t *kvs,
                        uint32_t n, td_err *err)
{
    static const uint32_t n_rows[] = {1, EVAL_VERIFY_ROWS};
    double samples[GROUP_MAX][TD_COUNT(n_rows)][ROUNDS_MAX];
    bool is_known = !isnan(td_eval_results_speeds(results, 0).decode_ms);
    for (uint32_t i = 0; i < n; i++)
        is_known &= !isnan(td_eval_results_speeds(results, kvs[i]).decode_ms);
    TD_ASSERT(n <= EVAL_BESIDE_MAX);
    if (is_known)
        return true;
    if (!gather(r, kvs, n, err))
        return false;
    uint64_t begin_us = td_clock_now_us(&r->clock);
    uint32_t n_rounds = 0;
    for (bool is_warm = false; !is_over(r, n_rounds, begin_us); n_rounds += is_warm, is_warm = true)
        for (uint32_t n_done = 0; n_done < r->n_members; n_done++) {
            /* whoever else runs here may do so in a rhythm */
            uint32_t i = (n_done + n_rounds) % r->n_members;
            for (uint32_t k = 0; k < TD_COUNT(n_rows); k++)
                if (!time_pass(r, &r->members[i], n_rows[k], &samples[i][k][n_rounds], err))
                    return false;
        }
    for (uint32_t i = 0; i < r->n_members; i++) {
        td_sort_doubles(samples[i][0], n_rounds);
        td_sort_doubles(samples[i][1], n_rounds);
        const eval_speeds speeds = {samples[i][0][n_rounds / 4], samples[i][1][n_rounds / 4]};
        if (!td_eval_results_put_speeds(results, r->members[i].kv, speeds, err))
            return false;
    }
    return true;
}

/* -- public ------------------------------------------------------------------------------------ */

/* As run/identity.c has it for a run. */
static void write_identity(td_eval_runner *r)
{
    const eval_params *p = r->params;
    snprintf(r->identity, sizeof r->identity,
             "tandem=%s; model=%016llx; text=%s; window=%u; task=%s; base=%s", TD_VERSION,
             (unsigned long long)td_gguf_hash(td_model_gguf(p->model)), p->text_sha, p->window,
             p->task ? p->task : "none", p->kvs[0].name);
    char kind[TD_DEVICE_KIND_BYTES], previous[TD_DEVICE_KIND_BYTES] = "";
    for (uint32_t i = 0; i < r->layout->n_parts; i++) {
        size_t n = strlen(r->identity);
        td_device_write_kind(td_device_get_info(r->layout->parts[i].dev), kind, sizeof kind);
        if (strcmp(kind, previous) != 0)
            snprintf(r->identity + n, sizeof r->identity - n, "%s%u on %s",
                     i ? ", " : "; layers=", r->layout->parts[i].first, kind);
        memcpy(previous, kind, sizeof previous);
    }
}

td_eval_runner *td_eval_runner_create(const eval_params *p, td_err *err)
{
    const td_tokenizer_info *t = td_tokenizer_get_info(td_model_tokenizer(p->model));
    td_eval_runner *r = td_alloc(1, sizeof *r, err);
    if (!r)
        return NULL;
    r->params = p;
    r->n_vocab = td_model_hparams(p->model)->n_vocab;
    r->bos = t->add_bos ? t->bos : TD_NO_TOKEN;
    r->clock = td_clock_real();
    uint32_t n_beside = td_min_u32(p->n_kvs - 1, EVAL_BESIDE_MAX);
    for (uint32_t i = 0; i < n_beside; i++)
        r->beside[i] = p->kvs[1 + i].types;
    r->layout_params = (td_layout_params){.model = p->model,
                                          .specs = p->specs,
                                          .n_specs = p->n_specs,
                                          .kv = p->kvs[0].types,
                                          .beside = r->beside,
                                          .n_beside = n_beside,
                                          .n_slots = 1,
                                          .n_ctx = p->window,
                                          .is_all_logits = true};
    bool is_ok = (r->base_logits = td_alloc((size_t)TD_PREFILL_ROWS_MAX * r->n_vocab,
                                            sizeof *r->base_logits, err)) &&
                 (r->base_rows = td_alloc(TD_PREFILL_ROWS_MAX, sizeof *r->base_rows, err)) &&
                 (r->layout = td_layout_create(&r->layout_params, err));
    if (is_ok)
        write_identity(r);
    else
        td_eval_runner_destroy(&r);
    return r;
}

void td_eval_runner_destroy(td_eval_runner **r)
{
    if (!*r)
        return;
    leave(*r, 0);
    td_layout_destroy(&(*r)->layout);
    td_free((*r)->base_rows);
    td_free((*r)->base_logits);
    td_free(*r);
    *r = NULL;
}

void td_eval_runner_limit(td_eval_runner *r, double seconds)
{
    r->end_us = seconds > 0 ? td_clock_now_us(&r->clock) + (uint64_t)(seconds * 1e6) : 0;
}

const char *td_eval_runner_identity(const td_eval_runner *r) { return r->identity; }
