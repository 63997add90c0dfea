/* Result lines: of a file, or of a job, which also knows when each came and of which worker. */
#include "cli/report.h"

#include "base/check.h"
#include "base/mem.h"
#include "base/order.h"
#include "job/job.h"
#include "run/prompts.h"

#include <math.h>
#include <string.h>

#define WORKERS_MAX 12u /* with a plot each; the others are one */
#define VALUES_MAX  (1u << 20)
#define SHOWN_MAX   10u

static const char *const statuses[] = {"ok", "error", NULL};
static const td_json_field fields[] = {
    {.key = "id", .type = TD_JSON_STRING, .required = true, .min = 1, .max = TD_PROMPT_ID_MAX},
    {.key = "status", .type = TD_JSON_ENUM, .required = true, .names = statuses},
    {.key = "text", .type = TD_JSON_STRING, .min = 0, .max = TD_JSONL_RESULT_MAX},
    {.key = "tokens", .type = TD_JSON_INT_LIST, .max = UINT32_MAX, .n_max = TD_JSON_VALUES_MAX},
    {.key = "reason", .type = TD_JSON_STRING, .nullable = true, .min = 0, .max = 64},
    {.key = "error", .type = TD_JSON_STRING, .nullable = true, .min = 0, .max = 65536},
    {.key = "placement", .type = TD_JSON_STRING, .nullable = true, .min = 0, .max = 65536},
    {.key = "drafted", .type = TD_JSON_INT, .max = UINT32_MAX},
    {.key = "accepted", .type = TD_JSON_INT, .max = UINT32_MAX},
    {.key = "rounds", .type = TD_JSON_INT, .max = UINT32_MAX},
    {.key = "prompt_tokens", .type = TD_JSON_INT, .max = UINT32_MAX},
    {.key = "ttft_ms", .type = TD_JSON_FLOAT, .f_max = 1e12},
    {.key = "ms", .type = TD_JSON_FLOAT, .f_max = 1e12},
    {.key = "finished_s", .type = TD_JSON_FLOAT, .f_max = 1e12},
};
static const td_json_schema schema = {fields, TD_COUNT(fields), true};

typedef struct {
    char id[64], text[REPORT_TEXT_MAX + 8], reason[REPORT_TEXT_MAX];
    double n_tokens, ms, acceptance;
} shown_line;

typedef struct {
    char name[TD_JOB_WORKER_MAX + 1];
    timeline lines;
} worker;

typedef struct {
    uint64_t n, n_ok, n_values;
    double n_tokens, n_prompt, n_drafted, n_accepted, n_rounds;
    float *rates, *ttfts; /* [n_values], room for n_room */
    size_t n_room;
    timeline rate, acceptance; /* over the lines */
    shown_line shown[SHOWN_MAX], errors[SHOWN_MAX];
    uint32_t n_shown, n_errors;
    timeline tokens; /* by when their lines ended */
    double start;    /* when the first of them began, by the same clock; 0: not known */
    bool is_timed;   /* the lines themselves say when they ended */
    /* of a job */
    worker workers[WORKERS_MAX];
    uint32_t n_workers;
} lines;

/* -- a line ------------------------------------------------------------------------------------ */

static void keep_shown(const td_json_object *o, shown_line *out, bool is_ok)
{
    const char *text = td_json_get_string(o, is_ok ? "text" : "error", "");
    snprintf(out->id, sizeof out->id, "%s", td_json_get_string(o, "id", ""));
    snprintf(out->text, sizeof out->text, "%s", text);
    snprintf(out->reason, sizeof out->reason, "%s", td_json_get_string(o, "reason", ""));
    out->n_tokens = (double)td_json_count(o, "tokens");
    out->ms = td_json_get_double(o, "ms", 0);
    double n_drafted = (double)td_json_get_int(o, "drafted", 0);
    out->acceptance =
        n_drafted > 0 ? (double)td_json_get_int(o, "accepted", 0) / n_drafted : (double)NAN;
}

static bool keep_values(lines *l, double rate, double ttft, td_err *err)
{
    if (l->n_values == l->n_room && l->n_room < VALUES_MAX) {
        size_t n = l->n_room ? 2 * l->n_room : 1024;
        float *rates = td_realloc(l->rates, l->n_room, n, sizeof *rates, err);
        l->rates = rates ? rates : l->rates;
        float *ttfts = rates ? td_realloc(l->ttfts, l->n_room, n, sizeof *ttfts, err) : NULL;
        l->ttfts = ttfts ? ttfts : l->ttfts;
        if (!ttfts)
            return false;
        l->n_room = n;
    }
    if (l->n_values < l->n_room) {
        l->rates[l->n_values] = (float)rate;
        l->ttfts[l->n_values++] = (float)ttft;
    }
    return true;
}

static bool add_line(lines *l, const char *text, size_t n_bytes, const char *name, td_err *err)
{
    td_json_object o;
    td_json *doc = td_json_parse(text, n_bytes, name, err);
    bool is_ok = doc && td_json_read_root(doc, &schema, &o, err);
    if (is_ok) {
        bool is_good = td_json_get_enum(&o, "status", 1) == 0;
        double n_tokens = (double)td_json_count(&o, "tokens"), ms = td_json_get_double(&o, "ms", 0);
        double n_drafted = (double)td_json_get_int(&o, "drafted", 0);
        double n_accepted = (double)td_json_get_int(&o, "accepted", 0);
        l->n_ok += is_good;
        l->n_tokens += n_tokens;
        l->n_prompt += (double)td_json_get_int(&o, "prompt_tokens", 0);
        l->n_rounds += (double)td_json_get_int(&o, "rounds", 0);
        l->n_drafted += n_drafted;
        l->n_accepted += n_accepted;
        if (is_good && ms > 0) {
            td_timeline_add(&l->rate, (double)l->n, n_tokens / ms * 1e3);
            is_ok = keep_values(l, n_tokens / ms * 1e3, td_json_get_double(&o, "ttft_ms", 0), err);
        }
        if (l->is_timed)
            td_timeline_add(&l->tokens, td_json_get_double(&o, "finished_s", 0) - l->start,
                            n_tokens);
        if (n_drafted > 0)
            td_timeline_add(&l->acceptance, (double)l->n, n_accepted / n_drafted);
        if (is_good && l->n_shown < SHOWN_MAX)
            keep_shown(&o, &l->shown[l->n_shown++], true);
        if (!is_good && l->n_errors < SHOWN_MAX)
            keep_shown(&o, &l->errors[l->n_errors++], false);
        l->n++;
    }
    td_json_destroy(&doc);
    return is_ok;
}

/* -- what they come to ------------------------------------------------------------------------- */

static void write_quantiles(report *r, const char *name, float *values, size_t n)
{
    static const double parts[] = {0, 0.1, 0.5, 0.9, 1};
    td_sort_floats(values, n);
    td_report_begin_row(r);
    td_report_cell(r, name);
    for (size_t i = 0; i < TD_COUNT(parts); i++)
        td_report_number(r, (double)values[(size_t)(parts[i] * (double)(n - 1) + 0.5)]);
    td_report_end_row(r);
}

static void write_shown(report *r, const char *caption, const shown_line *shown, uint32_t n)
{
    td_report_begin_table(r, caption, "id|tokens|ms|acceptance|end|text");
    for (uint32_t i = 0; i < n; i++) {
        td_report_begin_row(r);
        td_report_cell(r, shown[i].id);
        td_report_number(r, shown[i].n_tokens);
        td_report_number(r, shown[i].ms);
        td_report_number(r, shown[i].acceptance);
        td_report_cell(r, shown[i].reason);
        td_report_cell(r, shown[i].text);
        td_report_end_row(r);
    }
    td_report_end_table(r);
}

static bool write_plot(report *r, const char *title, const char *x, const char *y, plot_style style,
                       const timeline *t, timeline_view view, td_err *err)
{
    plot *p = td_plot_create(title, x, y, style, err);
    if (p)
        td_timeline_plot(p, y, t, view);
    bool is_ok = p;
    td_plot_write(r, &p);
    return is_ok;
}

static bool write_progress(report *r, const lines *l, td_err *err)
{
    if (!l->n_workers)
        return true;
    plot *p = td_plot_create("Lines that have ended, by worker", "s", "lines", PLOT_STEPS, err);
    for (uint32_t i = 0; p && i < l->n_workers; i++)
        td_timeline_plot(p, l->workers[i].name, &l->workers[i].lines, TIMELINE_TOTAL);
    bool is_ok = p;
    td_plot_write(r, &p);
    return is_ok;
}

static bool write_lines(report *r, lines *l, td_err *err)
{
    td_report_begin_table(r, "Lines", NULL);
    td_report_figure(r, "ok", (double)l->n_ok);
    td_report_figure(r, "errors", (double)(l->n - l->n_ok));
    td_report_figure(r, "tokens", l->n_tokens);
    td_report_figure(r, "prompt tokens", l->n_prompt);
    td_report_figure(r, "verifications", l->n_rounds);
    td_report_figure(r, "drafted", l->n_drafted);
    td_report_figure(r, "accepted", l->n_accepted);
    if (l->n_drafted > 0)
        td_report_figure(r, "acceptance", l->n_accepted / l->n_drafted);
    if (l->n_rounds > 0)
        td_report_figure(r, "tokens per verification", l->n_tokens / l->n_rounds);
    td_report_end_table(r);
    if (l->n_values) {
        td_report_begin_table(
            r, l->n_values < l->n_ok ? "The first lines that are ok" : "Lines that are ok",
            "|least|10 %|median|90 %|most");
        write_quantiles(r, "tokens/s of a line", l->rates, l->n_values);
        write_quantiles(r, "ms to the first token", l->ttfts, l->n_values);
        td_report_end_table(r);
    }
    if (l->n_errors)
        write_shown(r, l->n - l->n_ok > l->n_errors ? "The first errors" : "Errors", l->errors,
                    l->n_errors);
    bool is_ok =
        (l->start <= 0 || write_plot(r, "Throughput over time, by when lines ended", "s",
                                     "tokens/s", PLOT_LINES, &l->tokens, TIMELINE_RATE, err)) &&
        write_progress(r, l, err) &&
        write_plot(r, "Speed of the lines, in their order", "line", "tokens/s of a line",
                   PLOT_LINES, &l->rate, TIMELINE_MEAN, err) &&
        write_plot(r, "Acceptance of the lines, in their order", "line", "acceptance", PLOT_LINES,
                   &l->acceptance, TIMELINE_MEAN, err);
    if (l->n_shown)
        write_shown(r, "The first lines", l->shown, l->n_shown);
    return is_ok;
}

static void destroy(lines **of)
{
    if (*of) {
        td_free((*of)->rates);
        td_free((*of)->ttfts);
    }
    td_free(*of);
    *of = NULL;
}

static lines *create(td_err *err)
{
    lines *l = td_alloc(1, sizeof *l, err);
    if (l) {
        td_timeline_widen(&l->rate, 1);
        td_timeline_widen(&l->acceptance, 1);
    }
    return l;
}

/* -- of a file --------------------------------------------------------------------------------- */

static bool read_line(void *user, const td_jsonl_line *line, const char *name, td_err *err)
{
    return add_line(user, line->text, line->n_bytes, name, err);
}

/* The first line need not be the one begun first: a job is exported in the order of its input. */
static bool note_first(void *user, const td_jsonl_line *line, const char *name, td_err *err)
{
    lines *l = user;
    td_json_object o;
    td_json *doc = td_json_parse(line->text, line->n_bytes, name, err);
    bool is_ok = doc && td_json_read_root(doc, &schema, &o, err);
    double end = is_ok ? td_json_get_double(&o, "finished_s", 0) : 0;
    if (end > 0) {
        double start = end - td_json_get_double(&o, "ms", 0) * 1e-3;
        l->start = l->is_timed ? fmin(l->start, start) : start;
        l->is_timed = true;
    }
    td_json_destroy(&doc);
    return is_ok;
}

bool td_report_results(report *r, const char *path, td_err *err)
{
    lines *l = create(err);
    bool is_ok = l && td_report_read_lines(NULL, path, TD_JSONL_RESULT_MAX, note_first, l, err) &&
                 td_report_read_lines(r, path, TD_JSONL_RESULT_MAX, read_line, l, err) &&
                 write_lines(r, l, err);
    destroy(&l);
    return is_ok;
}

/* -- of a job ---------------------------------------------------------------------------------- */

typedef struct {
    lines *lines;
    td_job_reading at;
    const char *name;
} job_reading;

static worker *find_worker(lines *l, const char *name)
{
    uint32_t i = 0;
    while (i < l->n_workers && strcmp(l->workers[i].name, name) != 0)
        i++;
    if (i == WORKERS_MAX)
        return &l->workers[WORKERS_MAX - 1];
    worker *w = &l->workers[i];
    if (i == l->n_workers) {
        snprintf(w->name, sizeof w->name, "%s", i == WORKERS_MAX - 1 ? "all others" : name);
        l->n_workers++;
    }
    return w;
}

static bool add_result(void *user, const char *result, size_t n_bytes, td_err *err)
{
    job_reading *j = user;
    lines *l = j->lines;
    double n_before = l->n_tokens;
    char name[TD_DB_URL_MAX + 64];
    snprintf(name, sizeof name, "%s: line %lld", j->name, (long long)j->at.n);
    if (!add_line(l, result, n_bytes, name, err))
        return false;
    if (l->start == 0) /* all are so new that none was settled */
        l->start = j->at.finished;
    td_timeline_add(&l->tokens, j->at.finished - l->start, l->n_tokens - n_before);
    td_timeline_add(&find_worker(l, j->at.worker ? j->at.worker : "none")->lines,
                    j->at.finished - l->start, 1);
    return true;
}

static bool write_worker(void *user, const td_job_worker_status *w, td_err *err)
{
    (void)err;
    report *r = user;
    td_report_begin_row(r);
    td_report_cell(r, w->name);
    td_report_number(r, (double)w->n_ok);
    td_report_number(r, (double)w->n_error);
    td_report_number(r, (double)w->n_held);
    td_report_number(r, (double)w->n_tokens);
    td_report_number(r, w->seconds > 0 ? (double)w->n_tokens / w->seconds : 0);
    td_report_number(r, w->seen_s);
    td_report_cell(r, w->has_left ? "yes" : "no");
    td_report_cell(r, w->arithmetic);
    td_report_end_row(r);
    return true;
}

/* When the line began that was the first to end. */
static bool note_start(void *user, const char *result, size_t n_bytes, td_err *err)
{
    job_reading *j = user;
    td_json_object o;
    if (j->lines->start > 0)
        return true;
    td_json *doc = td_json_parse(result, n_bytes, j->name, err);
    bool is_ok = doc && td_json_read_root(doc, &schema, &o, err);
    if (is_ok)
        j->lines->start = j->at.finished - td_json_get_double(&o, "ms", 0) * 1e-3;
    td_json_destroy(&doc);
    return is_ok;
}

/* In the order of the input, which a long job can be read in quickly. */
static bool read_all(td_db *db, job_reading *j, td_err *err)
{
    j->at = (td_job_reading){.is_finish_order = true};
    bool is_ok = td_job_read_results(db, &j->at, note_start, j, err);
    j->at = (td_job_reading){0};
    do
        is_ok = is_ok && td_job_read_results(db, &j->at, add_result, j, err);
    while (is_ok && j->at.n_read);
    return is_ok;
}

static void write_status(report *r, const td_job_status *t)
{
    static const char *const names[TD_LINE_STATES] = {"waiting", "running", "ok", "failed",
                                                      "cancelled"};
    td_report_begin_table(r, t->is_cancelled ? "Job, cancelled" : "Job", NULL);
    for (int i = 0; i < TD_LINE_STATES; i++)
        td_report_figure(r, names[i], (double)t->n_lines[i]);
    td_report_figure(r, "tokens", (double)t->n_tokens);
    td_report_figure(r, "tokens/s of the workers at it", t->tokens_per_s);
    if (t->seconds_left >= 0)
        td_report_figure(r, "seconds left", t->seconds_left);
    td_report_figure(r, "results that differ", (double)t->n_differences);
    td_report_end_table(r);
}

bool td_report_job(report *r, const char *url, td_err *err)
{
    td_job_settings settings;
    td_job_status status;
    td_db *db = td_db_open(url, false, err);
    job_reading j = {.lines = create(err)};
    bool is_ok = db && j.lines && td_job_open(db, &settings, err);
    if (is_ok) {
        td_job_settings_free(&settings);
        j.name = td_db_name(db);
        is_ok = td_job_get_status(db, &status, err);
    }
    if (is_ok) {
        write_status(r, &status);
        td_report_begin_table(
            r, "Workers", "name|ok|failed|held|tokens|tokens/s|seen, s ago|has left|arithmetic");
        is_ok = td_job_list_workers(db, write_worker, r, err);
        td_report_end_table(r);
    }
    is_ok = is_ok && read_all(db, &j, err) && write_lines(r, j.lines, err);
    td_db_close(&db);
    destroy(&j.lines);
    return is_ok;
}
