/* tandem eval: what a type of the cache costs a model. */
#include "cli/eval.h"
#include "cli/commands.h"

#include "base/check.h"
#include "base/io.h"
#include "base/json_writer.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/text.h"
#include "base/utf8.h"
#include "planning/layout.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    const char *model, *text, *base;
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

static bool read_kvs(const fields *f, eval_params *p, td_err *err)
{
    if (!read_kv("--base", f->base, &p->kvs[0], err))
        return false;
    p->n_kvs = 1;
    for (uint32_t i = 0; i < f->kvs.n; i++)
        if (!read_kv("--kv", f->kvs.items[i], &p->kvs[p->n_kvs++], err))
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
    p->window = f->window;
    p->n_windows = td_min_u32((uint32_t)(n_ids / f->window), f->n_windows);
    return is_ok;
}

/* -- what is shown ----------------------------------------------------------------------------- */

static const struct {
    const char *key, *title;
    size_t offset;
    int n_decimals; /* in the table, where a share is shown in percent */
    bool is_share;
} columns[] = {
    {"ppl", "perplexity", offsetof(eval_figures, ppl), 4, false},
    {"ppl_err", "+-", offsetof(eval_figures, ppl_err), 4, false},
    {"kld_mean", "KLD mean", offsetof(eval_figures, kld_mean), 6, false},
    {"kld_median", "median", offsetof(eval_figures, kld_median), 6, false},
    {"kld_99", "99 %", offsetof(eval_figures, kld_99), 6, false},
    {"kld_99_9", "99.9 %", offsetof(eval_figures, kld_99_9), 6, false},
    {"kld_max", "most", offsetof(eval_figures, kld_max), 6, false},
    {"same_top", "same top", offsetof(eval_figures, same_top), 2, true},
    {"rms_dp", "RMS dp", offsetof(eval_figures, rms_dp), 3, true},
    {"bytes_per_position", "bytes/position", offsetof(eval_figures, bytes_per_position), 0, false},
};

static double figure(const eval_figures *figures, size_t column)
{
    double value;
    memcpy(&value, (const char *)figures + columns[column].offset, sizeof value);
    return value;
}

static int width(size_t column)
{
    return (int)td_max_u32(10, (uint32_t)strlen(columns[column].title));
}

static void print_table(const eval_params *p, const eval_figures *figures)
{
    printf("%u windows of %u tokens, %u positions scored; divergence from %s\n\n", p->n_windows,
           p->window, p->n_windows * td_eval_n_scored(p->window), p->kvs[0].name);
    printf("| %-13s |", "cache");
    for (size_t c = 0; c < TD_COUNT(columns); c++)
        printf(" %*s |", width(c), columns[c].title);
    printf("\n|---------------|");
    for (size_t c = 0; c < TD_COUNT(columns); c++)
        printf("%.*s:|", width(c) + 1, "--------------------");
    putchar('\n');
    for (uint32_t i = 0; i < p->n_kvs; i++) {
        printf("| %-13s |", p->kvs[i].name);
        for (size_t c = 0; c < TD_COUNT(columns); c++) {
            bool is_share = columns[c].is_share;
            printf(" %*.*f%s |", width(c) - 2 * is_share, columns[c].n_decimals,
                   figure(&figures[i], c) * (is_share ? 100 : 1), is_share ? " %" : "");
        }
        putchar('\n');
    }
}

static bool print_json(const eval_params *p, const eval_figures *figures, td_err *err)
{
    const char *text;
    size_t n_bytes;
    td_json_writer *w = td_json_writer_create(true, err);
    if (!w)
        return false;
    td_json_begin_array(w);
    for (uint32_t i = 0; i < p->n_kvs; i++) {
        td_json_begin_object(w);
        td_json_put_string(w, "kv", p->kvs[i].name);
        for (size_t c = 0; c + 1 < TD_COUNT(columns); c++)
            td_json_put_double(w, columns[c].key, figure(&figures[i], c));
        td_json_put_u64(w, "bytes_per_position", (uint64_t)figures[i].bytes_per_position);
        td_json_end_object(w);
    }
    td_json_end_array(w);
    bool is_ok = td_json_writer_end(w, &text, &n_bytes, err);
    if (is_ok)
        puts(text);
    td_json_writer_destroy(&w);
    return is_ok;
}

static void evaluate(const fields *f, eval_params *p, td_err *err)
{
    uint32_t *ids = NULL, n_trained = td_model_hparams(p->model)->n_ctx_train;
    eval_figures figures[EVAL_KVS_MAX];
    td_default_specs defaults;
    td_layout_default_specs(&defaults);
    p->specs = f->devices.n ? f->devices.items : defaults.specs;
    p->n_specs = f->devices.n ? f->devices.n : defaults.n;
    bool is_ok = check_latent(p, err) && read_text(f, p, &ids, err);
    if (is_ok && p->window > n_trained)
        td_log_warn("--window is %u, but the model's context %u", p->window, n_trained);
    is_ok = is_ok && td_eval_run(p, figures, err);
    if (is_ok && f->is_json)
        print_json(p, figures, err);
    else if (is_ok)
        print_table(p, figures);
    td_free(ids);
}

int td_command_eval(int argc, char **argv, td_err *err)
{
    fields f = {.base = "k=f32,v=f32", .window = 512, .n_windows = TD_TEXT_MAX};
    eval_params params = {.n_kvs = 0};
    bool is_help;
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
    if (!td_options_check_files(&help, &f, NULL, true, err) || !read_kvs(&f, &params, err))
        return 0;
    td_model *model = td_model_open(f.model, err);
    params.model = model;
    if (model)
        evaluate(&f, &params, err);
    td_model_close(&model);
    return 0;
}
