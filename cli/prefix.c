/* tandem prefix: what is in a folder of kept prompts. */
#include "cli/prefix.h"
#include "cli/commands.h"
#include "cli/options.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/json_writer.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/text.h"
#include "model/prefix_store.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define DEFAULT_BYTES 20000000000ull
#define MODELS_MAX    256u /* told apart in a folder */

bool td_prefix_option_read(const char *text, char path[PATH_MAX], uint64_t *n_bytes, td_err *err)
{
    static const char units[] = "KMGT";
    char number[24];
    const char *colon = strrchr(text, ':'), *unit = NULL;
    size_t n = strlen(text), n_digits = colon ? strspn(colon + 1, "0123456789") : 0;
    *n_bytes = DEFAULT_BYTES;
    if (colon && !strchr(colon, '/')) { /* else it is in a folder's name */
        char last = colon[1 + n_digits];
        unit = last ? strchr(units, last) : NULL;
        bool is_size = n_digits > 0 && n_digits < sizeof number && unit && !colon[2 + n_digits];
        if (!is_size)
            return td_err_set(err, TD_E_USAGE,
                              "--prefix-cache: size %s; allowed: a whole number with K, M, G or T "
                              "behind it (a folder with ':' in its name: with '/' behind it)",
                              td_text_quote(colon + 1, strlen(colon + 1)).text);
        snprintf(number, sizeof number, "%.*s", (int)n_digits, colon + 1);
        bool is_ok = td_text_read_u64(number, n_bytes);
        for (const char *u = units; u <= unit; u++) {
            is_ok &= *n_bytes <= UINT64_MAX / 4000;
            *n_bytes *= 1000;
        }
        if (!is_ok || !*n_bytes)
            return td_err_set(err, TD_E_USAGE, "--prefix-cache: size %.32s; allowed: 1K..1000000T",
                              colon + 1);
        n = (size_t)(colon - text);
    }
    if (n < 1 || n >= PATH_MAX)
        return td_err_set(err, TD_E_USAGE, "--prefix-cache: a path of %zu bytes; allowed: 1..%d", n,
                          PATH_MAX - 1);
    snprintf(path, PATH_MAX, "%.*s", (int)n, text);
    return true;
}

td_prefix_store *td_prefix_option_open(const char *text, td_err *err)
{
    char path[PATH_MAX];
    uint64_t n_bytes;
    td_prefix_store *s = td_prefix_option_read(text, path, &n_bytes, err)
                             ? td_prefix_store_open(path, n_bytes, err)
                             : NULL;
    if (!s && err->code == TD_E_IO)
        td_err_prepend(err, "--prefix-cache");
    return s;
}

typedef struct {
    const char *model;
    bool is_json;
} fields;

static const option options[] = {
    {"--model", NULL, OPT_TEXT, offsetof(fields, model), 0, 0, "NAME",
     "drop: only what is of a model of this name, as `list` shows it"},
    {"--json", NULL, OPT_FLAG, offsetof(fields, is_json), 0, 0, NULL, "list: as JSON"},
};
static const command_help help = {
    "prefix", "tandem prefix list DIR [--json] | verify DIR | drop DIR [--model NAME]",
    "The prompts that --prefix-cache DIR keeps. `list` shows what is there by "
    "model, "
    "`verify` reads every file and names those that are damaged (exit code 65 if any is), `drop` "
    "removes files.",
    options, TD_COUNT(options)};

typedef struct { /* of one model with one kind of cache */
    char model[TD_PREFIX_MODEL_BYTES], what[TD_PREFIX_WHAT_BYTES];
    uint64_t n_files, n_positions, n_bytes;
    double oldest_s, newest_s; /* when they were used last */
} group;

typedef struct {
    int folder;
    td_prefix_entry *entries;
    uint32_t n;
    uint64_t n_bytes;
} listing;

static bool open_listing(const char *path, listing *l, td_err *err)
{
    *l = (listing){.folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    if (l->folder < 0)
        return td_err_set(err, TD_E_IO, "%.300s: %s", path, strerror(errno));
    return td_prefix_store_list(l->folder, &l->entries, &l->n, &l->n_bytes, err) ||
           td_err_prepend(err, "%.300s", path);
}

static void close_listing(listing *l)
{
    td_free(l->entries);
    if (l->folder >= 0)
        close(l->folder);
}

static void count(group *groups, uint32_t *n, const td_prefix_head *h, const td_prefix_entry *e)
{
    uint32_t i = 0;
    while (i < *n && (strcmp(groups[i].model, h->model) || strcmp(groups[i].what, h->what)))
        i++;
    if (i == MODELS_MAX)
        i--;
    group *g = &groups[i];
    if (i == *n) {
        memcpy(g->model, h->model, sizeof g->model);
        memcpy(g->what, h->what, sizeof g->what);
        g->oldest_s = e->used_s;
        ++*n;
    }
    g->n_files++;
    g->n_positions += h->n_tokens;
    g->n_bytes += e->n_bytes;
    g->newest_s = e->used_s; /* they come in this order */
}

static void put_json(td_json_writer *w, const group *g, double now_s)
{
    td_json_begin_object(w);
    td_json_put_string(w, "model", g->model);
    td_json_put_string(w, "cache", g->what);
    td_json_put_u64(w, "chunks", g->n_files);
    td_json_put_u64(w, "positions", g->n_positions);
    td_json_put_u64(w, "bytes", g->n_bytes);
    td_json_put_double(w, "oldest_use_s", now_s - g->oldest_s);
    td_json_put_double(w, "latest_use_s", now_s - g->newest_s);
    td_json_end_object(w);
}

static bool print_json(const group *groups, uint32_t n, td_err *err)
{
    td_json_writer *w = td_json_writer_create(true, err);
    const char *text;
    size_t n_bytes;
    if (!w)
        return false;
    td_json_begin_array(w);
    for (uint32_t i = 0; i < n; i++)
        put_json(w, &groups[i], td_clock_utc_s());
    td_json_end_array(w);
    bool is_ok = td_json_writer_end(w, &text, &n_bytes, err);
    if (is_ok)
        printf("%s\n", text);
    td_json_writer_destroy(&w);
    return is_ok;
}

static bool list(const char *path, const fields *f, int *code, td_err *err)
{
    listing l;
    uint32_t n = 0, n_bad = 0;
    group *groups = td_alloc(MODELS_MAX, sizeof *groups, err);
    bool is_ok = groups && open_listing(path, &l, err);
    for (uint32_t i = 0; is_ok && i < l.n; i++) {
        td_prefix_head head;
        if (td_prefix_file_read_head(l.folder, l.entries[i].name, &head, NULL))
            count(groups, &n, &head, &l.entries[i]);
        else
            n_bad++;
    }
    if (is_ok && f->is_json)
        is_ok = print_json(groups, n, err);
    for (uint32_t i = 0; is_ok && !f->is_json && i < n; i++)
        printf("%-24s  %-24s  %6llu chunks  %9llu positions  %10.1f MB  used %.1f to %.1f h ago\n",
               groups[i].model, groups[i].what, (unsigned long long)groups[i].n_files,
               (unsigned long long)groups[i].n_positions, (double)groups[i].n_bytes * 1e-6,
               (td_clock_utc_s() - groups[i].newest_s) / 3600,
               (td_clock_utc_s() - groups[i].oldest_s) / 3600);
    if (is_ok && n_bad)
        td_log_warn("%s: %u files are of no use (`tandem prefix verify` names them)", path, n_bad);
    *code = is_ok && n_bad ? td_err_exit_code(TD_E_DATA) : 0;
    if (groups)
        close_listing(&l);
    td_free(groups);
    return is_ok;
}

static bool verify(const char *path, const fields *f, int *code, td_err *err)
{
    (void)f;
    listing l;
    uint32_t n_bad = 0;
    bool is_ok = open_listing(path, &l, err);
    for (uint32_t i = 0; is_ok && i < l.n; i++) {
        td_prefix_head head;
        td_err why = {0};
        bool is_there;
        if (td_prefix_file_read(l.folder, l.entries[i].name, &head, NULL, 0, &is_there, &why))
            continue;
        printf("%s/%s: %s\n", path, l.entries[i].name, why.message);
        n_bad++;
    }
    if (is_ok)
        td_log_info("%s: %u files, %.1f MB, %u damaged", path, l.n, (double)l.n_bytes * 1e-6,
                    n_bad);
    *code = is_ok && n_bad ? td_err_exit_code(TD_E_DATA) : 0;
    close_listing(&l);
    return is_ok;
}

/* Of one model: what does not even say so stays. */
static bool drop(const char *path, const fields *f, int *code, td_err *err)
{
    (void)code;
    listing l;
    uint32_t n = 0;
    bool is_open = open_listing(path, &l, err), is_ok = is_open;
    for (uint32_t i = 0; is_open && i < l.n; i++) {
        td_prefix_head head;
        const char *name = l.entries[i].name;
        if (f->model && (!td_prefix_file_read_head(l.folder, name, &head, NULL) ||
                         strcmp(head.model, f->model) != 0))
            continue;
        if (unlinkat(l.folder, name, 0) == 0 || errno == ENOENT)
            n++;
        else
            is_ok = td_err_set(err, TD_E_IO, "%.300s/%s: %s", path, name, strerror(errno));
    }
    if (is_open)
        td_log_info("%s: %u of %u files removed", path, n, l.n);
    close_listing(&l);
    return is_ok;
}

int td_command_prefix(int argc, char **argv, td_err *err)
{
    static const struct {
        const char *verb;
        bool (*run)(const char *path, const fields *f, int *code, td_err *err);
    } verbs[] = {{"list", list}, {"verify", verify}, {"drop", drop}};
    fields f = {0};
    bool is_help = false;
    int code = 0, n_words = 0;
    while (n_words < argc && n_words < 2 && argv[n_words][0] != '-')
        n_words++;
    if (!td_options_parse(&help, argc - n_words, argv + n_words, &f, &is_help, err))
        return 0;
    if (is_help) {
        td_options_print_help(&help);
        return 0;
    }
    for (size_t i = 0; i < TD_COUNT(verbs) && n_words == 2; i++)
        if (!strcmp(argv[0], verbs[i].verb)) {
            if (f.model && verbs[i].run != drop)
                td_err_set(err, TD_E_USAGE, "--model goes with `tandem prefix drop`");
            else if (f.is_json && verbs[i].run != list)
                td_err_set(err, TD_E_USAGE, "--json goes with `tandem prefix list`");
            else
                verbs[i].run(argv[1], &f, &code, err);
            return code;
        }
    td_err_set(err, TD_E_USAGE, "usage: %s", help.usage);
    return 0;
}
