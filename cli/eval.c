/* tandem eval: what a type of the cache costs a model. */
#include "cli/eval.h"
#include "cli/commands.h"

#include "base/check.h"
#include "base/io.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/sha256.h"
#include "base/text.h"
#include "base/utf8.h"
#include "cli/cache_options.h"
#include "model/cache_choice.h"
#include "planning/layout.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    const char *model, *text, *task, *base, *draft;
    const char *out, *config;
    float seconds;
    option_list devices, kvs;
    uint32_t window, n_windows;
    bool is_json;
} fields;

#define AT(name) offsetof(fields, name)

static const option options[] = {
    {"--model", NULL, OPT_READ, AT(model), 0, 0, "M.gguf", "the model (required)"},
    {"--text", NULL, OPT_READ, AT(text), 0, 0, "FILE", "a text in UTF-8 to predict (required)"},
    {"--task", NULL, OPT_TEXT, AT(task), 0, 0, "copy|needle",
     "not the text itself is predicted, but at the end of each window a passage of it again, or a "
     "number hidden in it, at five depths in turns"},
    {"--kv", NULL, OPT_LIST, AT(kvs), 0, 0, "k=T,v=T[,rotate=on]",
     "types of a cache's keys and values, and whether they are rotated (rotate_k, rotate_v: one of "
     "them), as in generate, to hold against the base; keep=first+last:f16 for layers of others; "
     "may be given up to 16 times; auto:KLD=X or auto:BYTES=N finds the smallest with a mean "
     "divergence of at "
     "most X, or the best of at most N bytes a position (2K: 2048), among those given or all"},
    {"--seconds", NULL, OPT_FLOAT, AT(seconds), 1e-3, 1e9, "S",
     "with auto: no window is begun after so long (default: all are used)"},
    {"--write-config", NULL, OPT_WRITE, AT(config), 0, 0, "FILE.json",
     "with auto: the choice as `generate --config` reads it"},
    {"--base", NULL, OPT_TEXT, AT(base), 0, 0, "k=T,v=T",
     "what it is held against (default: k=f32,v=f32)"},
    {"--window", NULL, OPT_U32, AT(window), EVAL_WINDOW_MIN, TD_CTX_MAX, "N",
     "tokens of a window, of which the second half is scored (default: 512)"},
    {"--chunks", NULL, OPT_U32, AT(n_windows), 1, TD_TEXT_MAX, "N",
     "windows at most (default: all that the text fills)"},
    {"--device", NULL, OPT_LIST, AT(devices), 0, 0, "SPEC", "as in generate; several make a split"},
    {"--draft", NULL, OPT_READ, AT(draft), 0, 0, "D.gguf",
     "a small model as in generate: how much of what it proposes is accepted with each cache"},
    {"--out", NULL, OPT_WRITE, AT(out), 0, 0, "FILE.jsonl",
     "what is measured, window by window; a file that is there is resumed"},
    {"--json", NULL, OPT_FLAG, AT(is_json), 0, 0, NULL, "JSON instead of the table"},
};
static const command_help help = {
    "eval", "tandem eval --model M.gguf --text FILE [--kv k=T,v=T]... [options]",
    "Measures what a type of the cache costs: perplexity of a text, and how far the distribution "
    "of\n"
    "the next token is from that with the base's cache.",
    options, TD_COUNT(options)};

/* -- what is asked ----------------------------------------------------------------------------- */

void td_eval_write_name(eval_kv *kv)
{
    snprintf(kv->name, sizeof kv->name, "k=%.16s,v=%.16s", kv->types.k->name, kv->types.v->name);
    for (char *p = kv->name; *p; p++)
        *p = (char)tolower((unsigned char)*p);
    const td_rotate k = kv->types.rotate_k, v = kv->types.rotate_v;
    size_t n = strlen(kv->name);
    if (k == v && k != TD_ROTATE_AUTO)
        snprintf(kv->name + n, sizeof kv->name - n, ",rotate=%s", td_cache_options_mode_name(k));
    else if (k != v)
        snprintf(kv->name + n, sizeof kv->name - n, ",rotate_k=%s,rotate_v=%s",
                 td_cache_options_mode_name(k), td_cache_options_mode_name(v));
    for (uint32_t i = 0; i < kv->types.n_rules; i++) {
        char kept[TD_CACHE_TYPES_TEXT];
        n = strlen(kv->name);
        if (td_cache_types_write_kept(&kv->types, i, "+:", kept, sizeof kept))
            snprintf(kv->name + n, sizeof kv->name - n, ",keep=%s", kept);
    }
}

/* "rotate=on", "rotate_k=off": whether it is one of these. */
static bool is_rotation(const char *p, size_t n_bytes, td_cache_types *out, bool *is_ok,
                        td_err *err)
{
    bool is_both = !strncmp(p, "rotate=", 7);
    bool is_k = is_both || !strncmp(p, "rotate_k=", 9),
         is_v = is_both || !strncmp(p, "rotate_v=", 9);
    size_t n_name = is_both ? 7 : 9;
    td_rotate mode = TD_ROTATE_AUTO;
    if (!is_k && !is_v)
        return false;
    *is_ok = td_cache_options_mode("rotate", p + n_name, n_bytes - n_name, &mode, err);
    out->rotate_k = is_k ? mode : out->rotate_k;
    out->rotate_v = is_v ? mode : out->rotate_v;
    return true;
}

static const char kv_allowed[] = "k=TYPE,v=TYPE,rotate=auto|on|off,keep=LAYERS:TYPE";

/* "k=q8_0,v=f16", in any order, with "rotate=on" or "rotate_k=on,rotate_v=off", and
 * "keep=first+last:f16" any number of times. */
static bool read_kv(const char *flag, const char *text, eval_kv *out, td_err *err)
{
    *out = (eval_kv){.name = ""};
    for (const char *p = text; *p;) {
        size_t n_bytes = strcspn(p, ",");
        const td_type_info **type = !strncmp(p, "k=", 2)   ? &out->types.k
                                    : !strncmp(p, "v=", 2) ? &out->types.v
                                                           : NULL;
        char name[TD_TEXT_QUOTE_MAX] = "";
        bool is_ok = true, is_whole = !p[n_bytes] || p[n_bytes + 1]; /* no comma at the end */
        if (is_whole && is_rotation(p, n_bytes, &out->types, &is_ok, err)) {
            if (!is_ok)
                return td_err_prepend(err, "%s", flag);
            p += n_bytes + (p[n_bytes] == ',');
            continue;
        }
        if (is_whole && !strncmp(p, "keep=", 5)) {
            if (!td_cache_options_keep("keep", p + 5, n_bytes - 5, "+:", &out->types, err))
                return td_err_prepend(err, "%s", flag);
            p += n_bytes + (p[n_bytes] == ',');
            continue;
        }
        if (!type || *type || !is_whole)
            return td_err_set(err, TD_E_USAGE, "%s: %s in \"%.96s\"; allowed: %s", flag,
                              td_text_quote(p, n_bytes).text, text, kv_allowed);
        memcpy(name, p + 2, td_min_u32((uint32_t)n_bytes - 2, sizeof name - 1));
        if (!td_options_read_cache_type(flag, name, type, err))
            return false;
        p += n_bytes + (p[n_bytes] == ',');
    }
    if (!out->types.k || !out->types.v)
        return td_err_set(err, TD_E_USAGE, "%s: %s; allowed: %s", flag,
                          td_text_quote(text, strlen(text)).text, kv_allowed);
    return true;
}

/* "KLD=0.01" or "BYTES=2K". */
static bool read_goal(const char *text, eval_goal *goal, td_err *err)
{
    static const char allowed[] = "allowed: KLD=X above 0, or BYTES=N with K or M for 1024 of them";
    bool is_bytes = !strncmp(text, "BYTES=", 6);
    char number[32];
    double unit = 1;
    size_t n_name = is_bytes ? 6 : 4, n = strlen(text);
    if ((!is_bytes && strncmp(text, "KLD=", 4) != 0) || n - n_name >= sizeof number)
        return td_err_set(err, TD_E_USAGE, "--kv auto: %s; %s", td_text_quote(text, n).text,
                          allowed);
    memcpy(number, text + n_name, n - n_name + 1);
    char *last = number + n - n_name - (n > n_name);
    if (is_bytes && (*last == 'K' || *last == 'M')) {
        unit = *last == 'K' ? 1 << 10 : 1 << 20;
        *last = 0;
    }
    *goal = (eval_goal){.is_bytes = is_bytes};
    if (!td_text_read_double(number, &goal->bound) || !(goal->bound > 0))
        return td_err_set(err, TD_E_USAGE, "--kv auto: %s; %s", td_text_quote(text, n).text,
                          allowed);
    goal->bound *= unit;
    return true;
}

/* kvs[*n], the base first; *is_auto: one is to be chosen by the goal. */
static bool read_kvs(const fields *f, eval_kv kvs[1 + TD_OPTION_LIST_MAX], uint32_t *n,
                     bool *is_auto, eval_goal *goal, td_err *err)
{
    static const char prefix[] = "auto:";
    *n = 1;
    *is_auto = false;
    if (!read_kv("--base", f->base, &kvs[0], err))
        return false;
    for (uint32_t i = 0; i < f->kvs.n; i++) {
        const char *text = f->kvs.items[i];
        bool is_goal = !strncmp(text, prefix, strlen(prefix));
        if (is_goal && *is_auto)
            return td_err_set(err, TD_E_USAGE, "--kv auto: given twice; allowed: once");
        *is_auto |= is_goal;
        if (is_goal ? !read_goal(text + strlen(prefix), goal, err)
                    : !read_kv("--kv", text, &kvs[(*n)++], err))
            return false;
    }
    if (!*is_auto && (f->seconds > 0 || f->config))
        return td_err_set(err, TD_E_USAGE, "%s needs --kv auto:KLD=X or --kv auto:BYTES=N",
                          f->config ? "--write-config" : "--seconds");
    return true;
}

/* Latent attention caches a value as part of its key: a type of its own would tell of nothing. */
static bool check_latent(const eval_params *p, td_err *err)
{
    for (uint32_t i = 0; td_model_arch(p->model)->is_mla && i < p->n_kvs; i++)
        if (p->kvs[i].types.k != p->kvs[i].types.v)
            return td_err_set(err, TD_E_USAGE,
                              "%s %s: this model has latent attention, whose values have the type "
                              "of keys; allowed: the same type for both",
                              i ? "--kv" : "--base", p->kvs[i].name);
    return true;
}

/* What was asked for, by the layers of the model. */
static bool choose_layers(const td_model *model, eval_kv *kvs, uint32_t n, td_err *err)
{
    for (uint32_t i = 0; i < n; i++) {
        if (!td_cache_choose(&kvs[i].types, model, err))
            return td_err_prepend(err, i ? "--kv" : "--base");
        td_eval_write_name(&kvs[i]);
    }
    return true;
}

static void name_text(eval_params *p, size_t n_ids)
{
    uint8_t digest[32];
    td_sha256 s;
    td_sha256_begin(&s);
    td_sha256_add(&s, p->ids, n_ids * sizeof *p->ids);
    td_sha256_end(&s, digest);
    td_sha256_hex(digest, p->text_sha, 16);
}

/* The tokens of the text, *ids by td_alloc, and how many windows they fill. */
static bool read_text(const fields *f, eval_params *p, uint32_t **ids, td_err *err)
{
    char *text;
    size_t n_bytes, n_ids = 0, i_bad;
    if (!td_io_read_file(f->text, TD_TEXT_MAX, &text, &n_bytes, err))
        return false;
    bool is_ok = td_utf8_valid(text, n_bytes, &i_bad) ||
                 td_err_set(err, TD_E_DATA, "%s: byte %zu is 0x%02x, no UTF-8; allowed: UTF-8",
                            f->text, i_bad, (unsigned char)text[i_bad]);
    is_ok = is_ok && (td_tokenize(td_model_tokenizer(p->model), text, n_bytes, TD_ADD_FOR_PROMPT,
                                  false, ids, &n_ids, err) ||
                      td_err_prepend(err, "%s", f->text));
    td_free(text);
    if (is_ok && n_ids < f->window)
        is_ok = td_err_set(err, TD_E_DATA,
                           "%s: %zu tokens, which fill no window of %u; allowed: at least as many, "
                           "or a smaller --window",
                           f->text, n_ids, f->window);
    p->ids = *ids;
    p->window = f->window;
    p->n_windows = td_min_u32((uint32_t)(n_ids / f->window), f->n_windows);
    p->n_scored = f->window - f->window / 2 - 1;
    if (is_ok)
        name_text(p, n_ids);
    p->task = f->task;
    return is_ok && (!f->task || td_eval_make_task(td_model_tokenizer(p->model), f->task, *ids,
                                                   p->window, p->n_windows, &p->n_scored, err));
}

/* -- what is done ------------------------------------------------------------------------------ */

/* What is asked, with all that it takes. */
typedef struct {
    const fields *f;
    eval_params params;
    bool is_auto;
    eval_goal goal;
    eval_line *lines;         /* [params.n_kvs] */
    uint32_t choice, nearest; /* of a search */
    int signal;
} evaluation;

/* All caches over all windows. */
static bool measure_all(evaluation *e, td_eval_runner *runner, td_eval_results *results,
                        td_err *err)
{
    const eval_params *p = &e->params;
    uint32_t others[TD_OPTION_LIST_MAX];
    for (uint32_t i = 1; i < p->n_kvs; i++)
        others[i - 1] = i;
    if (!td_eval_run_windows(runner, results, others, p->n_kvs - 1, 0, p->n_windows, err) ||
        !td_eval_run_speeds(runner, results, others, p->n_kvs - 1, err))
        return false;
    for (uint32_t i = 0; i < p->n_kvs; i++)
        e->lines[i] =
            (eval_line){&p->kvs[i], td_eval_results_judge(results, i, p->n_windows), EVAL_PLAIN};
    return true;
}

/* Of those all, or of the choice, which are lines of the table already. */
static bool draft_for(evaluation *e, td_eval_results *results, td_err *err)
{
    const eval_params *p = &e->params;
    for (uint32_t i = 0; !e->signal && i < p->n_kvs; i++) {
        uint32_t kv = (uint32_t)(e->lines[i].kv - p->kvs);
        if (e->is_auto && kv && kv != e->choice)
            continue;
        if (!td_eval_run_drafts(p, results, kv, &e->signal, err))
            return false;
        td_eval_results_judge_drafting(results, kv, &e->lines[i].figures);
    }
    return true;
}

static bool measure(evaluation *e, td_err *err)
{
    eval_params *p = &e->params;
    td_eval_runner *runner = td_eval_runner_create(p, err);
    td_eval_results *results =
        runner ? td_eval_results_open(p, e->f->out, td_eval_runner_identity(runner), err) : NULL;
    if (runner)
        td_eval_runner_limit(runner, (double)e->f->seconds);
    bool is_ok = results && (e->is_auto ? td_eval_search(runner, results, p, &e->goal, e->lines,
                                                         &e->choice, &e->nearest, err)
                                        : measure_all(e, runner, results, err));
    td_eval_runner_destroy(&runner); /* the draft's target is loaded apart */
    is_ok = is_ok && (!p->draft || draft_for(e, results, err));
    return td_eval_results_close(&results, is_ok ? err : NULL) && is_ok;
}

/* 1: no cache reaches the goal. */
static int tell_choice(const evaluation *e, td_err *err)
{
    const eval_kv *kv = &e->params.kvs[e->choice ? e->choice : e->nearest];
    const eval_line *line = e->lines;
    while (line->kv != kv)
        line++;
    char what[EVAL_NAME_BYTES + 112];
    snprintf(what, sizeof what, "%s with a mean divergence of %.6f and %.0f bytes a position",
             kv->name, line->figures.kld_mean, line->figures.bytes_per_position);
    if (!e->choice)
        td_log_error("--kv auto: no cache has %s%.6g; nearest is %s",
                     e->goal.is_bytes ? "so few bytes a position as " : "so small a divergence as ",
                     e->goal.bound, what);
    else if (!e->f->is_json)
        printf("\nchosen: %s\n", what);
    if (e->choice && e->f->config)
        td_eval_write_config(e->f->config, kv, err);
    return e->choice ? 0 : 1;
}

static bool name_draft(const fields *f, eval_params *p, td_err *err)
{
    const char *head = td_head_name(f->draft), *path = !head ? f->draft : *head ? head : f->model;
    td_gguf *draft = f->draft ? td_gguf_open(path, err) : NULL;
    if (draft)
        snprintf(p->draft_sha, sizeof p->draft_sha, "%016llx",
                 (unsigned long long)td_gguf_hash(draft));
    p->draft = f->draft;
    td_gguf_close(&draft);
    return !f->draft || *p->draft_sha;
}

static int evaluate(evaluation *e, td_err *err)
{
    const fields *f = e->f;
    eval_params *p = &e->params;
    uint32_t *ids = NULL, n_trained = td_model_hparams(p->model)->n_ctx_train;
    eval_kv *all = NULL; /* to choose from, where none is named */
    int code = 0;
    td_default_specs defaults;
    td_layout_default_specs(&defaults);
    p->specs = f->devices.n ? f->devices.items : defaults.specs;
    p->n_specs = f->devices.n ? f->devices.n : defaults.n;
    if (e->is_auto && p->n_kvs == 1)
        p->kvs = all = td_eval_list(p, p->kvs, &p->n_kvs, err);
    bool is_ok =
        p->kvs && check_latent(p, err) && name_draft(f, p, err) && read_text(f, p, &ids, err);
    if (is_ok && p->window > n_trained)
        td_log_warn("--window is %u, but the model's context %u", p->window, n_trained);
    e->lines = td_alloc(p->n_kvs, sizeof *e->lines, is_ok ? err : NULL);
    is_ok = is_ok && e->lines && measure(e, err);
    if (is_ok && !e->signal) {
        if (f->is_json)
            is_ok = td_eval_print_json(e->lines, p->n_kvs, err);
        else
            td_eval_print_table(p, e->lines, p->n_kvs);
        code = is_ok && e->is_auto ? tell_choice(e, err) : 0;
    }
    td_free(e->lines);
    td_free(all);
    td_free(ids);
    return e->signal ? 128 + e->signal : code;
}

static bool check(const fields *f, td_err *err)
{
    if (!f->model || !f->text)
        return td_err_set(err, TD_E_USAGE, "usage: %s", help.usage);
    if (f->out && !strcmp(f->out, "-"))
        return td_err_set(err, TD_E_USAGE, "--out: -; allowed: a file");
    if (f->task && f->draft)
        return td_err_set(err, TD_E_USAGE, "--draft does not go with --task");
    return td_options_check_files(&help, (void *)f, NULL, true, err);
}

int td_command_eval(int argc, char **argv, td_err *err)
{
    fields f = {.base = "k=f32,v=f32", .window = 512, .n_windows = TD_TEXT_MAX};
    evaluation e = {.f = &f};
    eval_kv given[1 + TD_OPTION_LIST_MAX];
    bool is_help;
    int code = 0;
    if (!td_options_parse(&help, argc, argv, &f, &is_help, err))
        return 0;
    if (is_help) {
        td_options_print_help(&help);
        return 0;
    }
    if (!check(&f, err) || !read_kvs(&f, given, &e.params.n_kvs, &e.is_auto, &e.goal, err))
        return 0;
    td_model *model = td_model_open(f.model, err);
    e.params.model = model;
    e.params.kvs = given;
    if (model && choose_layers(model, given, e.params.n_kvs, err))
        code = evaluate(&e, err);
    td_model_close(&model);
    return code;
}
