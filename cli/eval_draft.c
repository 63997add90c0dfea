/* What a cache costs speculation: how much of what a draft proposes the target accepts when both
 * have that cache.
 *
 * At a few places of the text the target goes on from the first half of a window, greedily, as
 * `tandem generate` would, in a run of the same machinery: so the text is what the target with this
 * cache writes itself, and acceptance is what a user of this cache sees. A run loads target and
 * draft with one cache; drafts have as many tokens as make a verification of EVAL_VERIFY_ROWS rows,
 * always, so that the figures do not depend on times. */
#include "cli/eval.h"

#include "base/check.h"
#include "base/io.h"
#include "base/json_writer.h"
#include "base/mem.h"
#include "base/text.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PLACES_MAX  8u
#define PREDICT_MAX 64u
#define DEADLINE_US 600000000u

typedef struct {
    const eval_params *params;
    td_eval_results *results;
    uint32_t kv;
    char problem[256]; /* of the last prompt that gave no text */
} drafted;

static uint32_t n_places(const eval_params *p) { return td_min_u32(PLACES_MAX, p->n_windows); }

static uint32_t window_of(const eval_params *p, uint32_t place)
{
    return (uint32_t)((uint64_t)place * p->n_windows / n_places(p));
}

static bool on_finish(void *user, const char *id, const td_sequence_info *info, td_err *err)
{
    drafted *d = user;
    uint64_t window = 0;
    const eval_drafting counts = {info->n_tokens, info->n_rounds, info->n_drafted,
                                  info->n_accepted};
    TD_ASSERT(td_text_read_u64(id, &window) && window < d->params->n_windows);
    return td_eval_results_put_drafting(d->results, d->kv, (uint32_t)window, counts, err);
}

static void on_error(void *user, const char *id, const char *message)
{
    drafted *d = user;
    snprintf(d->problem, sizeof d->problem, "window %.16s: %.200s", id, message);
}

bool td_eval_write_prompt(int fd, const td_tokenizer *t, const uint32_t *ids, uint32_t n_ids,
                          uint32_t number, td_err *err)
{
    char id[16], *text = td_alloc((size_t)n_ids + 1, TD_DETOKENIZE_MAX, err);
    td_json_writer *w = td_json_writer_create(false, err);
    td_detokenizer d = {.n_held = 0};
    size_t n_bytes = 0, n;
    const char *line;
    bool is_ok = text && w;
    for (uint32_t i = 0; is_ok && i < n_ids; i++) {
        td_detokenize(&d, t, ids[i], text + n_bytes, TD_DETOKENIZE_MAX, &n);
        n_bytes += n;
    }
    snprintf(id, sizeof id, "%u", number);
    if (is_ok) {
        td_json_begin_object(w);
        td_json_put_string(w, "id", id);
        td_json_write_key(w, "prompt");
        td_json_write_bytes(w, text, n_bytes);
        td_json_end_object(w);
    }
    is_ok = is_ok && td_json_writer_end(w, &line, &n, err) &&
            td_io_write_all(fd, "prompts", line, n, err) &&
            td_io_write_all(fd, "prompts", "\n", 1, err);
    td_json_writer_destroy(&w);
    td_free(text);
    return is_ok;
}

td_run_params td_eval_run_params(const td_model *target, const char *draft, uint32_t n_draft,
                                 const char *prompts)
{
    td_run_params r = {.target_path = td_model_path(target),
                       .draft_path = draft,
                       .draft_max = n_draft,
                       .draft_fixed = n_draft,
                       .measure = TD_MEASURE_NEVER,
                       .is_trusting = true, /* nothing of the texts is kept */
                       .is_quiet = true,
                       .in_path = prompts,
                       .out_path = "/dev/null",
                       .sampling = TD_SAMPLING_DEFAULTS,
                       .n_parallel = 1,
                       .draft_deadline_us = DEADLINE_US};
    r.sampling.temperature = 0;
    return r;
}

/* Writes a line for each place that the results lack; their number. */
static bool write_prompts(const drafted *d, int fd, uint32_t *n, td_err *err)
{
    const eval_params *p = d->params;
    bool is_ok = true;
    *n = 0;
    for (uint32_t i = 0; is_ok && i < n_places(p); i++) {
        uint32_t window = window_of(p, i);
        if (td_eval_results_drafting(d->results, d->kv, window).n_rounds)
            continue;
        is_ok =
            td_eval_write_prompt(fd, td_model_tokenizer(p->model),
                                 p->ids + (size_t)window * p->window, p->window / 2, window, err);
        ++*n;
    }
    return is_ok;
}

static td_run_params run_params(drafted *d, const char *path)
{
    const eval_params *p = d->params;
    td_run_params r = td_eval_run_params(p->model, p->draft, EVAL_VERIFY_ROWS - 1, path);
    r.n_predict = td_min_u32(PREDICT_MAX, p->window / 4);
    r.kv = p->kvs[d->kv].types;
    r.draft_kv.k = r.kv.k; /* layers of other types are the target's own */
    r.draft_kv.v = r.kv.v;
    r.n_ctx = p->window; /* a text may take more tokens by itself than it did */
    r.on_finish = on_finish;
    r.on_error = on_error;
    r.user = d;
    r.n_specs = p->n_specs;
    memcpy(r.specs, p->specs, p->n_specs * sizeof *p->specs);
    return r;
}

bool td_eval_run_drafts(const eval_params *p, td_eval_results *results, uint32_t kv, int *signal,
                        td_err *err)
{
    char path[64];
    uint32_t n;
    drafted d = {.params = p, .results = results, .kv = kv};
    int fd = memfd_create("prompts", MFD_CLOEXEC);
    if (fd < 0)
        return td_err_set(err, TD_E_IO, "prompts cannot be written to memory");
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    td_run_params params = run_params(&d, path);
    td_run_totals totals = {0};
    bool is_ok = write_prompts(&d, fd, &n, err) && (!n || td_run(&params, &totals, signal, err));
    if (is_ok && !*signal && (totals.n_error || (n && !totals.n_drafted)))
        is_ok = td_err_set(err, TD_E_DATA, "--draft: %s: %s", p->kvs[kv].name,
                           totals.n_error ? d.problem : "nothing was drafted");
    close(fd);
    return is_ok;
}
