/* What bench found, as a Markdown table, CSV, JSON records (whose keys are llama-bench's where the
 * thing is the same) or the object of --json. A row is a list of cells; each format shows those it
 * can, so that a figure is named once. */
#include "cli/bench.h"

#include "base/check.h"
#include "base/json_writer.h"
#include "base/order.h"
#include "base/text.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define CELLS_MAX 64u

typedef enum { CELL_TEXT, CELL_COUNT, CELL_NUMBER, CELL_FLAG, CELL_LIST } cell_kind;

typedef struct {
    const char *key;   /* in records; NULL: only in tables */
    const char *title; /* in tables; NULL: not there */
    cell_kind kind;
    char text[160]; /* or `borrowed` */
    const char *borrowed;
    double number; /* NaN: null */
    const bench_samples *list;
    double list_scale; /* what is shown is scale / item if negative, else scale * item */
} cell;

typedef struct {
    cell cells[CELLS_MAX];
    uint32_t n;
} row;

static double value_at(const cell *c, uint32_t i)
{
    double v = c->list->values[i];
    return c->list_scale < 0 ? -c->list_scale / v : c->list_scale * v;
}

/* -- figures ----------------------------------------------------------------------------------- */

bench_summary td_bench_summarize(const bench_samples *s)
{
    if (s->n == 0)
        return (bench_summary){NAN, NAN, NAN, NAN, NAN};
    bench_samples sorted = *s;
    td_sort_doubles(sorted.values, s->n);
    bench_summary r = {.median = s->n % 2
                                     ? sorted.values[s->n / 2]
                                     : (sorted.values[s->n / 2 - 1] + sorted.values[s->n / 2]) / 2,
                       .min = sorted.values[0],
                       .max = sorted.values[s->n - 1]};
    for (uint32_t i = 0; i < s->n; i++)
        r.mean += sorted.values[i] / s->n;
    for (uint32_t i = 0; i < s->n; i++)
        r.deviation += (sorted.values[i] - r.mean) * (sorted.values[i] - r.mean);
    r.deviation = s->n > 1 ? sqrt(r.deviation / (s->n - 1)) : 0;
    return r;
}

static bench_samples rates_of(const bench_test *t)
{
    bench_samples rates = {.n = t->seconds.n};
    for (uint32_t i = 0; i < rates.n; i++)
        rates.values[i] = (t->n_tokens - t->n_untimed) / t->seconds.values[i];
    return rates;
}

/* Four digits that matter, as people write numbers. */
static void write_short(char *out, size_t n_bytes, double x)
{
    double size = fabs(x);
    int digits = size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : 3;
    snprintf(out, n_bytes, "%.*f", digits, x);
}

/* -- rows -------------------------------------------------------------------------------------- */

static cell *add(row *r, const char *key, const char *title, cell_kind kind)
{
    TD_ASSERT(r->n < CELLS_MAX);
    r->cells[r->n] = (cell){.key = key, .title = title, .kind = kind, .number = NAN};
    return &r->cells[r->n++];
}

static void add_text(row *r, const char *key, const char *title, const char *text)
{
    add(r, key, title, CELL_TEXT)->borrowed = text;
}

static void add_number(row *r, const char *key, const char *title, double number)
{
    add(r, key, title, CELL_NUMBER)->number = number;
}

static void add_count(row *r, const char *key, const char *title, double count)
{
    add(r, key, title, CELL_COUNT)->number = round(count);
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static void test_name(const bench_test *t, char *out, size_t n_bytes)
{
    static const char *const formats[] = {"pp%.0f", "tg%.0f", "verify%.0f"};
    if (t->kind == BENCH_PROMPT)
        snprintf(out, n_bytes, t->k && !t->is_chosen ? "%s k=%u" : "%s",
                 t->is_ngram ? "n-gram"
                 : t->k      ? "draft"
                             : "plain",
                 t->k);
    else if (t->kind == BENCH_PAIR && t->is_chosen)
        snprintf(out, n_bytes, "draft k chosen");
    else if (t->kind == BENCH_PAIR && t->k)
        snprintf(out, n_bytes, "draft k=%u", t->k);
    else if (t->kind == BENCH_PAIR)
        snprintf(out, n_bytes, "plain");
    else
        snprintf(out, n_bytes, formats[t->kind], t->n_tokens);
}

static void add_case(row *r, const bench_output *o, const bench_case *c)
{
    bool is_prompts = o->params->is_prompts; /* their table has a line above it instead */
    add_text(r, "tandem", NULL, TD_VERSION);
    add_text(r, "model_filename", NULL, c->model);
    add_text(r, NULL, is_prompts ? NULL : "model", base_name(c->model));
    add_count(r, "model_size", NULL, (double)c->model_bytes);
    add_text(r, "device", is_prompts ? NULL : "device", c->device);
    add_text(r, "beside", o->params->is_together ? "beside" : NULL, c->beside);
    add_text(r, "type_k", is_prompts ? NULL : "K", c->type_k);
    add_text(r, "type_v", is_prompts ? NULL : "V", c->type_v);
    if (!o->is_pair)
        add_count(r, "n_depth", "depth", c->depth);
}

/* Joules of a token by all sources that could be read. */
static double joules_per_token(const bench_output *o, const bench_case *c, const bench_test *t)
{
    double sum = 0;
    uint32_t n = o->energy && !c->beside ? td_energy_count(o->energy) : 0;
    for (uint32_t i = 0; i < n; i++)
        sum += t->joules[i];
    return n ? sum / (t->n_tokens * t->seconds.n) : NAN;
}

static void add_times(row *r, const bench_output *o, const bench_test *t)
{
    bench_samples all_rates = rates_of(t);
    bench_summary s = td_bench_summarize(&t->seconds), rate = td_bench_summarize(&all_rates);
    char low[32], high[32];
    add_count(r, "repeats", NULL, t->seconds.n);
    add_count(r, "avg_ns", NULL, s.mean * 1e9);
    add_count(r, "stddev_ns", NULL, s.deviation * 1e9);
    add_count(r, "median_ns", NULL, s.median * 1e9);
    add_count(r, "min_ns", NULL, s.min * 1e9);
    add_count(r, "max_ns", NULL, s.max * 1e9);
    add_number(r, "avg_ts", NULL, rate.mean);
    add_number(r, "stddev_ts", NULL, rate.deviation);
    add_number(r, "median_ts", "tokens/s", rate.median);
    add_number(r, "min_ts", NULL, rate.min);
    add_number(r, "max_ts", NULL, rate.max);
    write_short(low, sizeof low, rate.min);
    write_short(high, sizeof high, rate.max);
    snprintf(add(r, NULL, "min..max", CELL_TEXT)->text, sizeof r->cells->text,
             t->seconds.n ? "%s..%s" : "", low, high);
    if (!o->is_pair)
        add_number(r, NULL, "ms", s.median * 1e3);
}

static void add_samples(row *r, const bench_test *t)
{
    cell *ns = add(r, "samples_ns", NULL, CELL_LIST);
    ns->list = &t->seconds;
    ns->list_scale = 1e9;
    cell *ts = add(r, "samples_ts", NULL, CELL_LIST);
    ts->list = &t->seconds;
    ts->list_scale = -(t->n_tokens - t->n_untimed);
}

static void add_model_test(row *r, const bench_output *o, const bench_test *t)
{
    double seconds = td_bench_summarize(&t->seconds).median;
    add_count(r, "n_prompt", NULL, t->kind == BENCH_PREFILL ? t->n_tokens : 0);
    add_count(r, "n_gen", NULL, t->kind == BENCH_DECODE ? t->n_tokens : 0);
    add_count(r, "n_rows", NULL, t->kind == BENCH_VERIFY ? t->n_tokens : 0);
    add_times(r, o, t);
    add_number(r, "c", "c(n)", t->c);
    add_number(r, "host_us", "host, us", td_bench_summarize(&t->host_us).median);
    add_count(r, "recordings", NULL, (double)t->made.n_recordings);
    add_count(r, "recorded_ahead", NULL, (double)t->made.n_recorded_ahead);
    add_number(r, "experts", "experts", t->n_experts);
    add_number(r, "bytes_per_token", NULL, t->n_bytes / t->n_tokens);
    add_number(r, "gb_per_s", "GB/s", t->n_bytes / seconds * 1e-9);
    add_number(r, "bandwidth_share", o->params->is_measure ? "of bandwidth" : NULL,
               t->limit_seconds / seconds);
}

static void add_pair_test(row *r, const bench_output *o, const bench_case *c, const bench_test *t)
{
    const bench_params *p = o->params;
    bool is_plain = t->k == 0;
    bench_summary speedup = td_bench_summarize(&t->speedups);
    add_text(r, "draft_filename", NULL, is_plain ? NULL : p->draft);
    add_text(r, "draft_device", "draft on", is_plain ? NULL : c->draft_device);
    add_count(r, "k", NULL, t->k);
    add_count(r, "n_gen", NULL, t->n_tokens);
    add_times(r, o, t);
    double n_drafted = (double)t->n_drafted, n_rounds = (double)t->n_rounds;
    add_number(r, "acceptance", "accepted", (double)t->n_accepted / n_drafted);
    /* The word stands in every row that is not the draft's own doing. */
    bool is_synthetic = p->accept >= 0 && !is_plain;
    add_text(r, "acceptance_is", p->accept >= 0 ? "acceptance is" : NULL,
             is_plain       ? NULL
             : is_synthetic ? "synthetic"
                            : "real");
    add_number(r, "synthetic_acceptance", NULL, is_synthetic ? (double)p->accept : NAN);
    add_number(r, "tokens_per_verification", "tokens/verification",
               t->n_tokens * t->seconds.n / n_rounds);
    add_number(r, "speedup", "speed-up", speedup.median);
    add_number(r, "speedup_min", NULL, speedup.min);
    add_number(r, "speedup_max", NULL, speedup.max);
    /* Where the time went. Stages of a split, and a draft that runs ahead,
     * work at the same time. */
    double us = td_bench_summarize(&t->seconds).mean * t->seconds.n * 1e6;
    double draft_us = is_plain ? NAN : (double)t->draft_us;
    add_number(r, "verify_ms", "verify, ms", (double)t->verify_us * 1e-3 / n_rounds);
    add_number(r, "draft_us_per_token", "draft, us/token", draft_us / (double)t->n_proposed);
    add_number(r, "prefill_share", NULL, (double)t->prefill_us / us);
    add_number(r, "verify_share", NULL, (double)t->verify_us / us);
    add_number(r, "draft_share", NULL, draft_us / us);
    add(r, "same_text", NULL, CELL_FLAG)->number = is_plain ? NAN : t->is_same_text;
}

/* Drafted and accepted are those of one run; how many are drafted is chosen by times, which differ
 * from run to run. */
static void add_prompt_test(row *r, const bench_output *o, const bench_case *c, const bench_test *t)
{
    bool is_plain = t->k == 0, is_drafted = !is_plain && !t->is_ngram;
    double n_runs = o->params->n_repeats, n_drafted = (double)t->n_drafted;
    bench_summary speedup = td_bench_summarize(&t->speedups);
    add_text(r, "chat_template", NULL, c->chat);
    add_text(r, "draft_filename", NULL, is_drafted ? o->params->draft : NULL);
    add_text(r, "draft_device", NULL, is_drafted ? c->draft_device : NULL);
    add_count(r, "k", NULL, t->k);
    add_count(r, "n_prompt", "prompt tokens", t->n_prompt_tokens);
    add_count(r, "n_gen", "predicted", t->n_tokens);
    add_count(r, "n_drafted", "drafted", is_plain ? NAN : n_drafted / n_runs);
    add_count(r, "n_accepted", "accepted", is_plain ? NAN : (double)t->n_accepted / n_runs);
    add_number(r, "acceptance", "rate", (double)t->n_accepted / n_drafted);
    add_number(r, "tokens_per_verification", "tokens/verification",
               t->n_tokens * n_runs / (double)t->n_rounds);
    add_times(r, o, t);
    add_number(r, "speedup", "speed-up", speedup.median);
    add_number(r, "speedup_min", NULL, speedup.min);
    add_number(r, "speedup_max", NULL, speedup.max);
}

static void build_row(row *r, const bench_output *o, const bench_case *c, const bench_test *t)
{
    r->n = 0;
    add_case(r, o, c);
    if (t->kind == BENCH_PROMPT)
        add_text(r, "prompt", "prompt", t->prompt);
    test_name(t, add(r, "test", "test", CELL_TEXT)->text, sizeof r->cells->text);
    if (t->kind == BENCH_PROMPT)
        add_prompt_test(r, o, c, t);
    else if (o->is_pair)
        add_pair_test(r, o, c, t);
    else
        add_model_test(r, o, t);
    double joules = joules_per_token(o, c, t);
    add_number(r, "joules_per_token", isnan(joules) ? NULL : "J/token", joules);
    add_samples(r, t);
}

/* -- tables ------------------------------------------------------------------------------------ */

static void print_short(double x)
{
    char text[32] = "";
    if (isfinite(x))
        write_short(text, sizeof text, x);
    fputs(text, stdout);
}

/* Upright strokes would end a cell. */
static void print_table_text(const char *text)
{
    for (; *text; text++)
        fputs(*text == '|' ? "\\|" : (char[2]){*text, 0}, stdout);
}

static void print_table_row(const row *r, bool is_first)
{
    for (uint32_t line = is_first ? 0 : 2; line < 3; line++) {
        for (uint32_t i = 0; i < r->n; i++) {
            const cell *c = &r->cells[i];
            if (!c->title)
                continue;
            fputs("| ", stdout);
            if (line == 0)
                fputs(c->title, stdout);
            else if (line == 1)
                fputs(c->kind == CELL_NUMBER || c->kind == CELL_COUNT ? "---:" : "---", stdout);
            else if (c->kind == CELL_COUNT)
                printf(isfinite(c->number) ? "%.0f" : "", c->number);
            else if (c->kind == CELL_NUMBER)
                print_short(c->number);
            else
                print_table_text(c->borrowed ? c->borrowed : c->text);
            putchar(' ');
        }
        puts("|");
    }
}

/* GB/s of an op that reads a matrix ("mat_mul Q4_K 2816x1024"), once a call; NaN for others. */
static double op_rate(const td_op_time *op)
{
    char type_name[16];
    unsigned n_rows, n_cols;
    const char *at = strchr(op->name, ' ');
    const td_type_info *type = at && !strncmp(op->name, "mat_mul", 7) &&
                                       sscanf(at, " %15s %ux%u", type_name, &n_rows, &n_cols) == 3
                                   ? td_type_find_name(type_name)
                                   : NULL;
    return type ? (double)n_rows * (double)td_row_bytes(type, n_cols) * (double)op->n_calls /
                      op->seconds * 1e-9
                : NAN;
}

/* Times of one run, longest first; what lies between the ops is the rest of the run. */
static void print_ops(const bench_test *t)
{
    char name[32];
    double n = t->n_profiled, whole = t->counts.run_seconds;
    test_name(t, name, sizeof name);
    printf("\n%s by op, ms of a run while profiled (%.3f in all):\n\n| op | calls | ms | share | "
           "GB/s | issued |\n"
           "| --- | ---: | ---: | ---: | ---: | ---: |\n",
           name, whole / n * 1e3);
    for (uint32_t i = 0; i < t->n_ops; i++) {
        printf("| %s | %.0f | %.4f | %.1f %% | ", t->ops[i].name, (double)t->ops[i].n_calls / n,
               t->ops[i].seconds / n * 1e3, 100 * t->ops[i].seconds / whole);
        print_short(op_rate(&t->ops[i]));
        fputs(" | ", stdout);
        print_short(t->ops[i].traffic.issued / t->ops[i].traffic.there);
        puts(" |");
    }
    printf("| (between ops) | | %.4f | %.1f %% | | |\n", (whole - t->counts.busy_seconds) / n * 1e3,
           100 * (whole - t->counts.busy_seconds) / whole);
    if (t->counts.n_dispatches)
        printf("\nOf a run: %.0f dispatches in %.1f submissions, %.0f barriers, %.4f ms of gaps on "
               "the device.\n",
               (double)t->counts.n_dispatches / n, (double)t->counts.n_submissions / n,
               (double)t->counts.n_barriers / n, t->counts.gap_seconds / n * 1e3);
}

/* -- CSV --------------------------------------------------------------------------------------- */

static void print_csv_text(const char *text)
{
    putchar('"');
    for (; *text; text++)
        fputs(*text == '"' ? "\"\"" : (char[2]){*text, 0}, stdout);
    putchar('"');
}

static void print_csv_row(const row *r, bool is_first)
{
    for (uint32_t line = is_first ? 0 : 1; line < 2; line++) {
        uint32_t n = 0;
        for (uint32_t i = 0; i < r->n; i++) {
            const cell *c = &r->cells[i];
            char number[TD_TEXT_DOUBLE_MAX];
            if (!c->key || c->kind == CELL_LIST)
                continue;
            if (n++)
                putchar(',');
            if (line == 0) {
                fputs(c->key, stdout);
            } else if (c->kind == CELL_TEXT) {
                if (c->borrowed || c->text[0])
                    print_csv_text(c->borrowed ? c->borrowed : c->text);
            } else if (isfinite(c->number)) {
                td_text_write_double(c->number, number);
                if (c->kind == CELL_COUNT)
                    printf("%.0f", c->number);
                else
                    fputs(c->kind == CELL_FLAG ? c->number > 0 ? "true" : "false" : number, stdout);
            }
        }
        putchar('\n');
    }
}

/* -- JSON -------------------------------------------------------------------------------------- */

static void write_ops(td_json_writer *w, const bench_test *t)
{
    double n = t->n_profiled;
    td_json_write_key(w, "ops");
    td_json_begin_array(w);
    for (uint32_t i = 0; i < t->n_ops; i++) {
        td_json_begin_object(w);
        td_json_put_string(w, "op", t->ops[i].name);
        td_json_put_double(w, "calls", (double)t->ops[i].n_calls / n);
        td_json_put_double(w, "ms", t->ops[i].seconds / n * 1e3);
        td_json_put_double(w, "share", t->ops[i].seconds / t->counts.run_seconds);
        td_json_put_double(w, "gb_per_s", op_rate(&t->ops[i]));
        td_json_put_double(w, "issued", t->ops[i].traffic.issued / n);
        td_json_put_double(w, "there", t->ops[i].traffic.there / n);
        td_json_end_object(w);
    }
    td_json_end_array(w);
    td_json_put_double(w, "profiled_ms", t->counts.run_seconds / n * 1e3);
    td_json_put_double(w, "ops_ms", t->counts.busy_seconds / n * 1e3);
    td_json_put_double(w, "gap_ms", t->counts.gap_seconds / n * 1e3);
    td_json_put_double(w, "dispatches", (double)t->counts.n_dispatches / n);
    td_json_put_double(w, "submissions", (double)t->counts.n_submissions / n);
    td_json_put_double(w, "barriers", (double)t->counts.n_barriers / n);
}

/* null where the system shows none. */
static void write_energy(td_json_writer *w, const bench_output *o, const bench_case *c,
                         const bench_test *t)
{
    uint32_t n = o->energy && !c->beside ? td_energy_count(o->energy) : 0;
    td_json_write_key(w, "joules_per_token_by_device");
    if (!n) {
        td_json_write_null(w);
        return;
    }
    td_json_begin_object(w);
    for (uint32_t i = 0; i < n; i++)
        td_json_put_double(w, td_energy_source_at(o->energy, i)->name,
                           t->joules[i] / (t->n_tokens * t->seconds.n));
    td_json_end_object(w);
}

static void write_record(td_json_writer *w, const row *r, const bench_output *o,
                         const bench_case *c, const bench_test *t)
{
    td_json_begin_object(w);
    for (uint32_t i = 0; i < r->n; i++) {
        const cell *x = &r->cells[i];
        if (!x->key)
            continue;
        td_json_write_key(w, x->key);
        if (x->kind == CELL_LIST) {
            td_json_begin_array(w);
            for (uint32_t k = 0; k < x->list->n; k++)
                td_json_write_double(w, value_at(x, k));
            td_json_end_array(w);
        } else if (x->kind == CELL_TEXT) {
            td_json_write_string(w, x->borrowed ? x->borrowed : x->text[0] ? x->text : NULL);
        } else if (!isfinite(x->number)) {
            td_json_write_null(w);
        } else if (x->kind == CELL_FLAG) {
            td_json_write_bool(w, x->number > 0);
        } else if (x->kind == CELL_COUNT) {
            td_json_write_u64(w, (uint64_t)x->number);
        } else {
            td_json_write_double(w, x->number);
        }
    }
    write_energy(w, o, c, t);
    if (t->n_ops)
        write_ops(w, t);
    td_json_end_object(w);
}

/* The object of --json: its keys never change, more may come. */
static void write_object(td_json_writer *w, const bench_output *o, const bench_case *c,
                         const bench_test *tests, uint32_t n_tests)
{
    char key[32];
    td_json_begin_object(w);
    td_json_put_string(w, "model", c->model);
    td_json_put_string(w, "device", c->device);
    td_json_put_string(w, "beside", c->beside);
    td_json_put_string(w, "kv_k", c->type_k);
    if (*c->kept)
        td_json_put_string(w, "kv_keep", c->kept);
    td_json_put_string(w, "kv_v", c->type_v);
    td_json_put_u64(w, "depth", c->depth);
    for (uint32_t i = 0; i < n_tests; i++) {
        bench_samples rates = rates_of(&tests[i]);
        if (tests[i].kind == BENCH_VERIFY || tests[i].kind == BENCH_PROMPT)
            continue;
        test_name(&tests[i], key, sizeof key);
        td_json_put_double(w, key, td_bench_summarize(&rates).median);
    }
    if (!o->is_pair)
        td_json_write_key(w, "verify");
    if (!o->is_pair)
        td_json_begin_object(w);
    for (uint32_t i = 0; i < n_tests; i++) {
        bench_summary s = td_bench_summarize(&tests[i].seconds);
        if (tests[i].kind != BENCH_VERIFY)
            continue;
        snprintf(key, sizeof key, "%.0f", tests[i].n_tokens);
        td_json_write_key(w, key);
        td_json_begin_object(w);
        td_json_put_double(w, "ms", s.median * 1e3);
        td_json_put_double(w, "c", tests[i].c);
        td_json_end_object(w);
    }
    if (!o->is_pair)
        td_json_end_object(w);
    td_json_write_key(w, "tests");
    td_json_begin_array(w);
    for (uint32_t i = 0; i < n_tests; i++) {
        row r;
        build_row(&r, o, c, &tests[i]);
        write_record(w, &r, o, c, &tests[i]);
    }
    td_json_end_array(w);
    td_json_end_object(w);
}

static bool print_json(td_json_writer *w, td_err *err)
{
    const char *text;
    size_t n_bytes;
    bool is_ok = td_json_writer_end(w, &text, &n_bytes, err);
    if (is_ok)
        fputs(text, stdout);
    return is_ok;
}

/* What is the same in all rows. */
static void print_prompts_head(const bench_output *o, const bench_case *c)
{
    printf("%s on %s, K %s, V %s", base_name(c->model), c->device, c->type_k, c->type_v);
    if (*c->kept)
        printf(", layers %s", c->kept);
    if (o->params->draft)
        printf("; draft %s on %s", base_name(o->params->draft), c->draft_device);
    printf("; chat template: %s\n\n", c->chat);
}

/* -- a case ------------------------------------------------------------------------------------ */

static bool print_case_json(bench_output *o, const bench_case *c, const bench_test *tests,
                            uint32_t n_tests, td_err *err)
{
    td_json_writer *w = td_json_writer_create(false, err);
    bool is_ok = w;
    if (is_ok && o->format == BENCH_OBJECT) {
        write_object(w, o, c, tests, n_tests);
        is_ok = print_json(w, err);
        putchar('\n');
    }
    for (uint32_t i = 0; is_ok && o->format != BENCH_OBJECT && i < n_tests; i++) {
        row r;
        build_row(&r, o, c, &tests[i]);
        write_record(w, &r, o, c, &tests[i]);
        if (o->format == BENCH_JSON)
            fputs(o->n_rows++ ? ",\n" : "[\n", stdout);
        is_ok = print_json(w, err);
        if (o->format == BENCH_JSONL)
            putchar('\n');
    }
    td_json_writer_destroy(&w);
    return is_ok;
}

bool td_bench_output_case(bench_output *o, const bench_case *c, const bench_test *tests,
                          uint32_t n_tests, td_err *err)
{
    bool is_ok = true;
    if (o->format == BENCH_TABLE && o->params->is_prompts)
        print_prompts_head(o, c);
    if (o->format != BENCH_TABLE && o->format != BENCH_CSV)
        is_ok = print_case_json(o, c, tests, n_tests, err);
    for (uint32_t i = 0; i < n_tests && (o->format == BENCH_TABLE || o->format == BENCH_CSV); i++) {
        row r;
        build_row(&r, o, c, &tests[i]);
        if (o->format == BENCH_TABLE)
            print_table_row(&r, o->n_rows++ == 0);
        else
            print_csv_row(&r, o->n_rows++ == 0);
    }
    for (uint32_t i = 0; i < n_tests && o->format == BENCH_TABLE; i++)
        if (tests[i].n_ops) {
            print_ops(&tests[i]);
            o->n_rows = 0; /* so that the next table gets a head of its own */
        }
    if (o->format == BENCH_TABLE && o->n_rows == 0)
        putchar('\n');
    fflush(stdout); /* a long bench shows what it has */
    return is_ok;
}

void td_bench_output_end(bench_output *o)
{
    if (o->format == BENCH_JSON)
        puts(o->n_rows ? "\n]" : "[]");
}
