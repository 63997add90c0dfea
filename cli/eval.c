/* tandem eval: what a type of the cache costs a model. */
#include "cli/eval.h"
#include "cli/commands.h"

#include "base/check.h"
#include "base/io.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/text.h"
#include "base/utf8.h"
#include "planning/layout.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    const char *model, *text, *base, *draft;
    const char *out;
    option_list devices, kvs;
    uint32_t window, n_windows;
    bool is_json;
} fields;

#define AT(name) offsetof(fields, name)

static const option options[] = {
    {"--model", NULL, OPT_READ, AT(model), 0, 0, "M.gguf", "the model (required)"},
    {"--text", NULL, OPT_READ, AT(text), 0, 0, "FILE", "a text in UTF-8 to predict (required)"},
    {"--kv", NULL, OPT_LIST, AT(kvs), 0, 0, "k=T,v=T",
     "types of a cache's keys and values, as in generate, to hold against the base; may be given "
     "up to 16 times"},
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

static void write_name(eval_kv *kv)
{
    snprintf(kv->name, sizeof kv->name, "k=%.16s,v=%.16s", kv->types.k->name, kv->types.v->name);
    for (char *p = kv->name; *p; p++)
        *p = (char)tolower((unsigned char)*p);
}

/* "k=q8_0,v=f16", in either order. */
static bool read_kv(const char *flag, const char *text, eval_kv *out, td_err *err)
{
    *out = (eval_kv){.name = ""};
    for (const char *p = text; *p;) {
        size_t n_bytes = strcspn(p, ",");
        const td_type_info **type = !strncmp(p, "k=", 2)   ? &out->types.k
                                    : !strncmp(p, "v=", 2) ? &out->types.v
                                                           : NULL;
        char name[TD_TEXT_QUOTE_MAX] = "";
        if (!type || *type || (p[n_bytes] && !p[n_bytes + 1]))
            return td_err_set(err, TD_E_USAGE, "%s: %s in \"%.96s\"; allowed: k=TYPE,v=TYPE", flag,
                              td_text_quote(p, n_bytes).text, text);
        memcpy(name, p + 2, td_min_u32((uint32_t)n_bytes - 2, sizeof name - 1));
        if (!td_options_read_cache_type(flag, name, type, err))
            return false;
        p += n_bytes + (p[n_bytes] == ',');
    }
    if (!out->types.k || !out->types.v)
        return td_err_set(err, TD_E_USAGE, "%s: %s; allowed: k=TYPE,v=TYPE", flag,
                          td_text_quote(text, strlen(text)).text);
    write_name(out);
    return true;
}

static bool read_kvs(const fields *f, eval_kv kvs[1 + TD_OPTION_LIST_MAX], td_err *err)
{
    if (!read_kv("--base", f->base, &kvs[0], err))
        return false;
    for (uint32_t i = 0; i < f->kvs.n; i++)
        if (!read_kv("--kv", f->kvs.items[i], &kvs[1 + i], err))
            return false;
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
    p->n_ids = n_ids;
    p->window = f->window;
    p->n_windows = td_min_u32((uint32_t)(n_ids / f->window), f->n_windows);
    return is_ok;
}

/* -- what is done ------------------------------------------------------------------------------ */

/* All caches over all windows. *runner is given back when it is not needed any more. */
static bool measure(td_eval_runner **runner, td_eval_results *results, const eval_params *p,
                    eval_line *lines, int *signal, td_err *err)
{
    uint32_t others[TD_OPTION_LIST_MAX];
    for (uint32_t i = 1; i < p->n_kvs; i++)
        others[i - 1] = i;
    bool is_ok =
        td_eval_run_windows(*runner, results, others, p->n_kvs - 1, 0, p->n_windows, err) &&
        td_eval_run_speeds(*runner, results, others, p->n_kvs - 1, err);
    td_eval_runner_destroy(runner);
    if (is_ok && p->draft)
        is_ok = td_eval_run_drafts(p, results, others, p->n_kvs - 1, signal, err);
    for (uint32_t i = 0; is_ok && i < p->n_kvs; i++)
        lines[i] = (eval_line){&p->kvs[i], td_eval_results_judge(results, i, p->n_windows)};
    return is_ok;
}

static bool name_draft(const fields *f, eval_params *p, td_err *err)
{
    td_model *draft = f->draft ? td_model_open(f->draft, err) : NULL;
    if (draft)
        snprintf(p->draft_sha, sizeof p->draft_sha, "%016llx",
                 (unsigned long long)td_gguf_hash(td_model_gguf(draft)));
    p->draft = f->draft;
    td_model_close(&draft);
    return !f->draft || *p->draft_sha;
}

static bool evaluate(const fields *f, eval_params *p, int *signal, td_err *err)
{
    uint32_t *ids = NULL, n_trained = td_model_hparams(p->model)->n_ctx_train;
    eval_line lines[1 + TD_OPTION_LIST_MAX];
    td_default_specs defaults;
    td_layout_default_specs(&defaults);
    p->specs = f->devices.n ? f->devices.items : defaults.specs;
    p->n_specs = f->devices.n ? f->devices.n : defaults.n;
    bool is_ok = check_latent(p, err) && name_draft(f, p, err) && read_text(f, p, &ids, err);
    if (is_ok && p->window > n_trained)
        td_log_warn("--window is %u, but the model's context %u", p->window, n_trained);
    td_eval_runner *runner = is_ok ? td_eval_runner_create(p, err) : NULL;
    td_eval_results *results =
        runner ? td_eval_results_open(p, f->out, td_eval_runner_identity(runner), err) : NULL;
    is_ok = results && measure(&runner, results, p, lines, signal, err);
    is_ok = td_eval_results_close(&results, is_ok ? err : NULL) && is_ok;
    td_eval_runner_destroy(&runner);
    if (is_ok && !*signal && f->is_json)
        is_ok = td_eval_print_json(lines, p->n_kvs, err);
    else if (is_ok && !*signal)
        td_eval_print_table(p, lines, p->n_kvs);
    td_free(ids);
    return is_ok;
}

int td_command_eval(int argc, char **argv, td_err *err)
{
    fields f = {.base = "k=f32,v=f32", .window = 512, .n_windows = TD_TEXT_MAX};
    eval_kv kvs[1 + TD_OPTION_LIST_MAX];
    bool is_help;
    int signal = 0;
    if (!td_options_parse(&help, argc, argv, &f, &is_help, err))
        return 0;
    if (is_help) {
        td_options_print_help(&help);
        return 0;
    }
    if (!f.model || !f.text) {
        td_err_set(err, TD_E_USAGE, "usage: %s", help.usage);
        return 0;
    }
    if (f.out && !strcmp(f.out, "-")) {
        td_err_set(err, TD_E_USAGE, "--out: -; allowed: a file");
        return 0;
    }
    if (!td_options_check_files(&help, &f, NULL, true, err) || !read_kvs(&f, kvs, err))
        return 0;
    td_model *model = td_model_open(f.model, err);
    if (model)
        evaluate(&f, &(eval_params){.model = model, .n_kvs = 1 + f.kvs.n, .kvs = kvs}, &signal,
                 err);
    td_model_close(&model);
    return signal ? 128 + signal : 0;
}
