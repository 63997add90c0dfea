/* What `tandem eval` knows, in memory and in a file that a later run goes on from. */
#include "cli/eval.h"

#include "base/check.h"
#include "base/json.h"
#include "base/json_writer.h"
#include "base/jsonl.h"
#include "base/mem.h"
#include "run/identity.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define SYNC_LINES 64u
#define SYNC_US    1000000u
#define SCORED_MAX (TD_JSON_VALUES_MAX - 64u) /* of a line */

struct td_eval_results {
    const eval_params *params;
    const char *identity;
    td_jsonl_writer *writer; /* NULL: no file */
    td_json_writer *json;
    bool has_identity;        /* the file says what it is of */
    eval_score *scores;       /* [n_kvs][n_windows]; n = 0: not there */
    double *bytes;            /* [n_kvs] a position */
    eval_speeds *speeds;      /* [n_kvs] */
    eval_drafting *draftings; /* [n_kvs][n_windows] */
    float *klds;              /* [n_windows * n_scored], of the cache that is judged */
};

static eval_score *at(const td_eval_results *r, uint32_t kv, uint32_t window)
{
    TD_ASSERT(kv < r->params->n_kvs && window < r->params->n_windows);
    return &r->scores[(size_t)kv * r->params->n_windows + window];
}

static eval_drafting *drafting_at(const td_eval_results *r, uint32_t kv, uint32_t window)
{
    return &r->draftings[at(r, kv, window) - r->scores];
}

/* -- reading ----------------------------------------------------------------------------------- */

static const td_json_field fields[] = {
    {.key = "eval", .type = TD_JSON_STRING, .min = 0, .max = TD_IDENTITY_BYTES - 1},
    {.key = "kv", .type = TD_JSON_STRING, .min = 1, .max = 4096},
    {.key = "bytes_per_position", .type = TD_JSON_FLOAT, .f_min = 0, .f_max = 1e15},
    {.key = "window", .type = TD_JSON_INT, .min = 0, .max = UINT32_MAX},
    {.key = "same_top", .type = TD_JSON_INT, .min = 0, .max = UINT32_MAX},
    {.key = "right", .type = TD_JSON_INT, .min = 0, .max = UINT32_MAX},
    {.key = "nll", .type = TD_JSON_FLOAT, .nullable = true, .f_min = 0, .f_max = INFINITY},
    {.key = "nll2", .type = TD_JSON_FLOAT, .nullable = true, .f_min = 0, .f_max = INFINITY},
    {.key = "kld", .type = TD_JSON_FLOAT, .nullable = true, .f_min = 0, .f_max = INFINITY},
    {.key = "dp2", .type = TD_JSON_FLOAT, .nullable = true, .f_min = 0, .f_max = INFINITY},
    {.key = "kld_bits", .type = TD_JSON_INT_LIST, .min = 0, .max = 0x7f800000, .n_max = SCORED_MAX},
    {.key = "decode_ms", .type = TD_JSON_FLOAT, .f_min = 0, .f_max = 1e12},
    {.key = "verify_ms", .type = TD_JSON_FLOAT, .f_min = 0, .f_max = 1e12},
    {.key = "draft", .type = TD_JSON_STRING, .min = 0, .max = 64},
    {.key = "tokens", .type = TD_JSON_INT, .min = 1, .max = 1 << 24},
    {.key = "rounds", .type = TD_JSON_INT, .min = 1, .max = 1 << 24},
    {.key = "drafted", .type = TD_JSON_INT, .min = 0, .max = 1 << 28},
    {.key = "accepted", .type = TD_JSON_INT, .min = 0, .max = 1 << 28},
};

/* What is missing in a line was there: nothing is made up for it. */
static bool has_all(const td_json_object *o, const char *const *keys, td_err *err)
{
    for (; *keys; keys++)
        if (!td_json_has(o, *keys))
            return td_json_fail(o, *keys, err, "is missing; wanted: the line as it was written");
    return true;
}

static bool read_score(td_eval_results *r, const td_json_object *o, uint32_t kv, td_err *err)
{
    static const char *const keys[] = {"window", "bytes_per_position", "same_top", "right", NULL};
    static const char *const counts[] = {"same_top", "right"};
    uint32_t window = (uint32_t)td_json_get_int(o, "window", 0);
    uint32_t n = r->params->n_scored;
    if (!has_all(o, keys, err))
        return false;
    if (td_json_count(o, "kld_bits") != n)
        return td_json_fail(o, "kld_bits", err, "%zu positions; wanted: the %u of a window",
                            td_json_count(o, "kld_bits"), n);
    for (size_t i = 0; i < TD_COUNT(counts); i++)
        if (td_json_get_int(o, counts[i], 0) > n)
            return td_json_fail(o, counts[i], err,
                                "%lld positions; allowed: 0..%u, as a window has",
                                (long long)td_json_get_int(o, counts[i], 0), n);
    r->bytes[kv] = td_json_get_double(o, "bytes_per_position", 0);
    if (window >= r->params->n_windows || at(r, kv, window)->n)
        return true;
    float *klds = td_alloc(n, sizeof *klds, err);
    for (uint32_t i = 0; klds && i < n; i++) {
        uint32_t bits = (uint32_t)td_json_get_int_at(o, "kld_bits", i);
        memcpy(&klds[i], &bits, sizeof bits);
    }
    if (klds)
        *at(r, kv, window) = (eval_score){.n = n,
                                          .n_same_top = (uint32_t)td_json_get_int(o, "same_top", 0),
                                          .n_right = (uint32_t)td_json_get_int(o, "right", 0),
                                          .nll = td_json_get_double(o, "nll", INFINITY),
                                          .nll2 = td_json_get_double(o, "nll2", INFINITY),
                                          .kld = td_json_get_double(o, "kld", INFINITY),
                                          .dp2 = td_json_get_double(o, "dp2", INFINITY),
                                          .klds = klds};
    return klds;
}

static bool read_drafting(td_eval_results *r, const td_json_object *o, uint32_t kv, td_err *err)
{
    static const char *const keys[] = {"window", "tokens", "rounds", "drafted", "accepted", NULL};
    if (!has_all(o, keys, err))
        return false;
    uint32_t window = (uint32_t)td_json_get_int(o, "window", 0);
    if (window < r->params->n_windows &&
        !strcmp(td_json_get_string(o, "draft", ""), r->params->draft_sha))
        *drafting_at(r, kv, window) = (eval_drafting){(uint32_t)td_json_get_int(o, "tokens", 0),
                                                      (uint32_t)td_json_get_int(o, "rounds", 0),
                                                      (uint32_t)td_json_get_int(o, "drafted", 0),
                                                      (uint32_t)td_json_get_int(o, "accepted", 0)};
    return true;
}

static bool read_identity(td_eval_results *r, const td_json_object *o, td_err *err)
{
    char what[600];
    const char *there = td_json_get_string(o, "eval", "");
    r->has_identity = true;
    if (!strcmp(there, r->identity))
        return true;
    td_identity_compare(there, r->identity, what, sizeof what);
    return td_json_fail(o, "eval", err,
                        "the figures there are of another kind (%s); allowed: the "
                        "same, or another --out",
                        *what ? what : there);
}

/* Of a cache that is not asked for, or a window, nothing is taken: its lines stay. */
static bool read_line(td_eval_results *r, const td_json_object *o, td_err *err)
{
    if (td_json_has(o, "eval"))
        return read_identity(r, o, err);
    if (!r->has_identity)
        return td_json_fail(o, "kv", err,
                            "no file of `tandem eval`: its first line does not say "
                            "what it is of");
    static const char *const speeds[] = {"verify_ms", NULL};
    const char *name = td_json_get_string(o, "kv", "");
    for (uint32_t kv = 0; kv < r->params->n_kvs; kv++) {
        if (strcmp(name, r->params->kvs[kv].name) != 0)
            continue;
        if (td_json_has(o, "decode_ms") && has_all(o, speeds, err))
            r->speeds[kv] = (eval_speeds){td_json_get_double(o, "decode_ms", NAN),
                                          td_json_get_double(o, "verify_ms", NAN)};
        if (td_json_has(o, "draft") && !read_drafting(r, o, kv, err))
            return false;
        if (td_json_has(o, "kld_bits") && !read_score(r, o, kv, err))
            return false;
    }
    return true;
}

static td_jsonl_verdict scan(void *context, const td_jsonl_line *line, uint64_t offset_bytes,
                             td_err *err)
{
    const td_eval_results *r = context;
    const td_json_schema schema = {fields, TD_COUNT(fields), !r->has_identity};
    char name[64];
    snprintf(name, sizeof name, "line %llu at byte %llu", (unsigned long long)line->number,
             (unsigned long long)offset_bytes);
    td_err bad = {0};
    td_json *doc = td_json_parse(line->text, line->n_bytes, name, &bad);
    td_json_object o;
    if (!doc && bad.code == TD_E_DATA)
        return TD_JSONL_TORN;
    if (!doc)
        td_err_set(err, bad.code, "%s", bad.message);
    bool is_ok = doc && td_json_read_root(doc, &schema, &o, err) && read_line(context, &o, err);
    td_json_destroy(&doc);
    return is_ok ? TD_JSONL_KEEP : TD_JSONL_STOP;
}

/* -- writing ----------------------------------------------------------------------------------- */

static bool end_line(td_eval_results *r, td_err *err)
{
    const char *line;
    size_t n_bytes;
    td_json_end_object(r->json);
    return td_json_writer_end(r->json, &line, &n_bytes, err) &&
           td_jsonl_write(r->writer, line, n_bytes, err);
}

static bool write_score(td_eval_results *r, uint32_t kv, uint32_t window, td_err *err)
{
    const eval_score *s = at(r, kv, window);
    td_json_begin_object(r->json);
    td_json_put_string(r->json, "kv", r->params->kvs[kv].name);
    td_json_put_double(r->json, "bytes_per_position", r->bytes[kv]);
    td_json_put_u64(r->json, "window", window);
    td_json_put_u64(r->json, "same_top", s->n_same_top);
    td_json_put_u64(r->json, "right", s->n_right);
    td_json_put_double(r->json, "nll", s->nll);
    td_json_put_double(r->json, "nll2", s->nll2);
    td_json_put_double(r->json, "kld", s->kld);
    td_json_put_double(r->json, "dp2", s->dp2);
    td_json_write_key(r->json, "kld_bits");
    td_json_begin_array(r->json);
    for (uint32_t i = 0; i < s->n; i++) {
        uint32_t bits;
        memcpy(&bits, &s->klds[i], sizeof bits);
        td_json_write_u64(r->json, bits);
    }
    td_json_end_array(r->json);
    return end_line(r, err);
}

/* -- public ------------------------------------------------------------------------------------ */

static bool open_file(td_eval_results *r, const char *path, td_err *err)
{
    if (r->params->n_scored > SCORED_MAX)
        return td_err_set(err, TD_E_USAGE, "--out: windows of %u tokens; allowed: 8..%u",
                          r->params->window, 2 * SCORED_MAX);
    r->writer = td_jsonl_writer_open(&(td_jsonl_writer_params){.path = path,
                                                               .sync_lines = SYNC_LINES,
                                                               .sync_us = SYNC_US,
                                                               .scan = scan,
                                                               .scan_context = r},
                                     err);
    if (!r->writer)
        return td_err_prepend(err, "%s", path);
    if (r->has_identity)
        return true;
    td_json_begin_object(r->json);
    td_json_put_string(r->json, "eval", r->identity);
    return end_line(r, err);
}

td_eval_results *td_eval_results_open(const eval_params *params, const char *path,
                                      const char *identity, td_err *err)
{
    size_t n = (size_t)params->n_kvs * params->n_windows;
    td_eval_results *r = td_alloc(1, sizeof *r, err);
    if (!r)
        return NULL;
    r->params = params;
    r->identity = identity;
    bool is_ok =
        (r->json = td_json_writer_create(false, err)) &&
        (r->scores = td_alloc(n, sizeof *r->scores, err)) &&
        (r->bytes = td_alloc(params->n_kvs, sizeof *r->bytes, err)) &&
        (r->speeds = td_alloc(params->n_kvs, sizeof *r->speeds, err)) &&
        (r->draftings = td_alloc(n, sizeof *r->draftings, err)) &&
        (r->klds = td_alloc((size_t)params->n_windows * params->n_scored, sizeof *r->klds, err));
    for (uint32_t i = 0; is_ok && i < params->n_kvs; i++)
        r->speeds[i] = (eval_speeds){NAN, NAN};
    if (!is_ok || (path && !open_file(r, path, err)))
        td_eval_results_close(&r, NULL);
    else
        r->identity = NULL; /* the caller's */
    return r;
}

bool td_eval_results_close(td_eval_results **results, td_err *err)
{
    td_eval_results *r = *results;
    if (!r)
        return true;
    bool is_ok = !r->writer || td_jsonl_writer_close(&r->writer, err);
    for (size_t i = 0; r->scores && i < (size_t)r->params->n_kvs * r->params->n_windows; i++)
        td_free(r->scores[i].klds);
    td_free(r->scores);
    td_free(r->bytes);
    td_free(r->speeds);
    td_free(r->draftings);
    td_free(r->klds);
    td_json_writer_destroy(&r->json);
    td_free(r);
    *results = NULL;
    return is_ok;
}

bool td_eval_results_has(const td_eval_results *r, uint32_t kv, uint32_t window)
{
    return at(r, kv, window)->n > 0;
}

bool td_eval_results_put(td_eval_results *r, uint32_t kv, uint32_t window, const eval_score *score,
                         double bytes_per_position, td_err *err)
{
    eval_score *to = at(r, kv, window);
    if (to->n)
        return true;
    float *klds = td_alloc(score->n, sizeof *klds, err);
    if (!klds)
        return false;
    memcpy(klds, score->klds, score->n * sizeof *klds);
    *to = *score;
    to->klds = klds;
    r->bytes[kv] = bytes_per_position;
    return !r->writer || write_score(r, kv, window, err);
}

eval_speeds td_eval_results_speeds(const td_eval_results *r, uint32_t kv) { return r->speeds[kv]; }

bool td_eval_results_put_speeds(td_eval_results *r, uint32_t kv, eval_speeds speeds, td_err *err)
{
    r->speeds[kv] = speeds;
    if (!r->writer)
        return true;
    td_json_begin_object(r->json);
    td_json_put_string(r->json, "kv", r->params->kvs[kv].name);
    td_json_put_double(r->json, "decode_ms", speeds.decode_ms);
    td_json_put_double(r->json, "verify_ms", speeds.verify_ms);
    return end_line(r, err);
}

eval_drafting td_eval_results_drafting(const td_eval_results *r, uint32_t kv, uint32_t window)
{
    return *drafting_at(r, kv, window);
}

bool td_eval_results_put_drafting(td_eval_results *r, uint32_t kv, uint32_t window,
                                  eval_drafting counts, td_err *err)
{
    *drafting_at(r, kv, window) = counts;
    if (!r->writer)
        return true;
    td_json_begin_object(r->json);
    td_json_put_string(r->json, "kv", r->params->kvs[kv].name);
    td_json_put_string(r->json, "draft", r->params->draft_sha);
    td_json_put_u64(r->json, "window", window);
    td_json_put_u64(r->json, "tokens", counts.n_tokens);
    td_json_put_u64(r->json, "rounds", counts.n_rounds);
    td_json_put_u64(r->json, "drafted", counts.n_drafted);
    td_json_put_u64(r->json, "accepted", counts.n_accepted);
    return end_line(r, err);
}

void td_eval_results_judge_drafting(const td_eval_results *r, uint32_t kv, eval_figures *figures)
{
    double n_tokens = 0, n_rounds = 0, n_drafted = 0, n_accepted = 0;
    for (uint32_t w = 0; w < r->params->n_windows; w++) {
        const eval_drafting *d = drafting_at(r, kv, w);
        n_tokens += d->n_tokens;
        n_rounds += d->n_rounds;
        n_drafted += d->n_drafted;
        n_accepted += d->n_accepted;
    }
    figures->acceptance = n_drafted > 0 ? n_accepted / n_drafted : NAN;
    figures->tokens_per_verification = n_rounds > 0 ? n_tokens / n_rounds : NAN;
}

static void judge_task(const td_eval_results *r, uint32_t kv, uint32_t n_windows,
                       eval_figures *figures)
{
    uint32_t n_right = 0, n_whole = 0, right_at[EVAL_DEPTHS] = {0}, n_at[EVAL_DEPTHS] = {0};
    for (uint32_t w = 0; w < n_windows; w++) {
        const eval_score *s = at(r, kv, w);
        n_right += s->n_right;
        n_whole += s->n_right == s->n;
        right_at[w % EVAL_DEPTHS] += s->n_right;
        n_at[w % EVAL_DEPTHS] += s->n;
    }
    bool is_task = r->params->task;
    figures->right = is_task ? (double)n_right / ((double)n_windows * r->params->n_scored) : NAN;
    figures->whole = is_task ? (double)n_whole / n_windows : NAN;
    for (uint32_t i = 0; i < EVAL_DEPTHS; i++)
        figures->right_at[i] = is_task && n_at[i] ? (double)right_at[i] / n_at[i] : NAN;
}

eval_figures td_eval_results_judge(td_eval_results *r, uint32_t kv, uint32_t n_windows)
{
    eval_score sum = {.klds = r->klds};
    for (uint32_t w = 0; w < n_windows; w++) {
        const eval_score *s = at(r, kv, w);
        TD_ASSERT(s->n);
        memcpy(sum.klds + sum.n, s->klds, s->n * sizeof *s->klds);
        sum.n += s->n;
        sum.n_same_top += s->n_same_top;
        sum.nll += s->nll;
        sum.nll2 += s->nll2;
        sum.kld += s->kld;
        sum.dp2 += s->dp2;
    }
    eval_figures figures = td_eval_judge(&sum);
    judge_task(r, kv, n_windows, &figures);
    figures.n_windows = NAN;
    figures.bytes_per_position = r->bytes[kv];
    figures.speeds = r->speeds[kv];
    figures.acceptance = figures.tokens_per_verification = NAN;
    return figures;
}
