/* tandem job: a batch in a database, which any number of `tandem generate --job URL` work off. */
#include "cli/commands.h"
#include "cli/generate.h"
#include "cli/text_rows.h"

#include "base/check.h"
#include "base/files.h"
#include "base/io.h"
#include "base/json_writer.h"
#include "base/jsonl.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/signals.h"
#include "cli/job_show.h"
#include "run/job_config.h"
#include "run/results.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define FOLLOW_US 1000000u

typedef struct {
    td_run_params run;
    option_list stops;
    const char *config, *in, *out, *order, *worker;
    bool is_same_arithmetic, is_json, is_watching, is_following, is_force, is_errors;
} fields;

#define AT(name) offsetof(fields, name)

static const option options[] = {
    {"--in", "run.in", OPT_READ, AT(in), 0, 0, "FILE.jsonl",
     "create, add: prompts, one JSON object a line as in `tandem generate`; - for stdin"},
    {"--config", NULL, OPT_READ, AT(config), 0, 0, "FILE.json",
     "create: what follows here from a file; a worker brings its own models and devices"},
    TEXT_ROWS,
    {"--same-arithmetic", NULL, OPT_FLAG, AT(is_same_arithmetic), 0, 0, NULL,
     "create: all lines by one kind of device and settings, the first worker's; others are "
     "refused"},
    {"--out", NULL, OPT_WRITE, AT(out), 0, 0, "FILE.jsonl",
     "export: results, as `tandem generate --out` writes them (default: stdout)"},
    {"--order", NULL, OPT_TEXT, AT(order), 0, 0, "input|finish",
     "export: of the input, where --follow waits for each, or as they came (default: input)"},
    {"--follow", NULL, OPT_FLAG, AT(is_following), 0, 0, NULL,
     "export: go on until all lines have ended"},
    {"--force", NULL, OPT_FLAG, AT(is_force), 0, 0, NULL, "export: over a file that is there"},
    {"--errors", NULL, OPT_FLAG, AT(is_errors), 0, 0, NULL,
     "retry: those that are errors, which is what it does without it too"},
    {"--worker", NULL, OPT_TEXT, AT(worker), 0, 0, "NAME",
     "requeue: of which the lines go to others now, without waiting for the lease"},
    {"--json", NULL, OPT_FLAG, AT(is_json), 0, 0, NULL, "status: as JSON"},
    {"--watch", NULL, OPT_FLAG, AT(is_watching), 0, 0, NULL,
     "status: again and again until all lines have ended"},
};
static const command_help help = {
    "job", "tandem job create|add|status|export|retry|requeue|cancel|drop URL [options]",
    "A batch that lies in a database (URL: sqlite:FILE, or postgresql://... as libpq reads it) and "
    "is worked off by any number of `tandem generate --job URL`. `create` makes it, `add` adds "
    "lines, `status` tells how far it is, `export` writes the results, `retry` lets lines that are "
    "errors wait again, `requeue` takes the lines of a worker away, `cancel` ends what has no "
    "result, `drop` removes the job and its results.",
    options, TD_COUNT(options)};

/* -- lines in ---------------------------------------------------------------------------------- */

typedef struct {
    td_prompts *prompts;
    td_prompt *prompt;
} source;

/* Prompts that begin alike are worked off together: the same text, or the same system message. */
static uint64_t prefix_of(const td_prompt *q, const td_jsonl_line *line)
{
    const char *messages = q->chat.messages ? strstr(line->text, "\"messages\"") : NULL;
    const char *from = messages ? messages : q->text ? q->text : "";
    return strlen(from) < TD_JOB_PREFIX_BYTES ? 0 : td_hash64(1, from, TD_JOB_PREFIX_BYTES);
}

static bool next_line(void *user, td_job_new_line *out, td_err *err)
{
    source *s = user;
    td_prompt_destroy(&s->prompt);
    s->prompt = td_prompts_next(s->prompts, err);
    td_prompt *q = s->prompt;
    if (!q)
        return false;
    td_jsonl_line line = td_prompts_line(s->prompts);
    bool is_text = line.text && !q->err.code;
    *out = (td_job_new_line){.id = q->id,
                             .line_id = q->line_id,
                             .input = is_text ? line.text : NULL,
                             .problem = q->err.code ? q->err.message : NULL,
                             .number = q->line,
                             .n_bytes = line.n_bytes,
                             .prefix = is_text ? prefix_of(q, &line) : 0};
    return true;
}

static bool add_lines(td_db *db, fields *f, const td_job_settings *settings, td_err *err)
{
    source s = {0};
    td_job_added added = {0};
    f->run.in_path = f->in;
    s.prompts = td_prompts_open(&f->run, NULL, err);
    bool is_ok = s.prompts && (settings ? td_job_create(db, settings, next_line, &s, &added, err)
                                        : td_job_add(db, next_line, &s, &added, err));
    td_prompt_destroy(&s.prompt);
    td_prompts_close(&s.prompts);
    if (is_ok)
        td_log_info("%llu lines added%s", (unsigned long long)added.n_added,
                    added.n_there ? "; the others were there already" : "");
    return is_ok;
}

static bool create(td_db *db, fields *f, td_err *err)
{
    char date[TD_DATE_BYTES] = "1970-01-01";
    time_t now = time(NULL);
    struct tm day;
    if (localtime_r(&now, &day))
        strftime(date, sizeof date, "%Y-%m-%d", &day);
    td_job_settings settings = {.is_same_arithmetic = f->is_same_arithmetic,
                                .attempts_max = TD_JOB_ATTEMPTS};
    bool is_ok = td_job_config_write(&f->run, date, &settings.config, err) &&
                 add_lines(db, f, &settings, err);
    td_job_settings_free(&settings);
    return is_ok;
}

/* -- results out ------------------------------------------------------------------------------- */

static bool write_result(void *user, const char *result, size_t n_bytes, td_err *err)
{
    return td_jsonl_write(user, result, n_bytes, err);
}

static bool wait_a_while(void)
{
    for (uint32_t us = 0; us < FOLLOW_US && !td_signals_pending(); us += 50000)
        usleep(50000);
    return !td_signals_pending();
}

/* A result may come while the others are read, so it is asked first whether lines are open. */
static bool export_all(td_db *db, const fields *f, td_jsonl_writer *w, td_err *err)
{
    td_job_reading at = {.is_finish_order = f->order && !strcmp(f->order, "finish"),
                         .is_gapless = f->is_following};
    uint64_t n_open = 0;
    do {
        if (!td_job_count_open(db, &n_open, err))
            return false;
        do {
            if (!td_job_read_results(db, &at, write_result, w, err))
                return false;
        } while (at.n_read && !td_signals_pending());
        if (!td_jsonl_writer_sync(w, err))
            return false;
    } while (f->is_following && n_open && wait_a_while());
    return true;
}

static bool export_results(td_db *db, const fields *f, td_err *err)
{
    const char *path = f->out ? f->out : "-";
    td_job_settings settings;
    if (!td_job_open(db, &settings, err))
        return false;
    td_job_settings_free(&settings);
    if (f->out && strcmp(f->out, "-") != 0 && access(f->out, F_OK) == 0) {
        if (!f->is_force)
            return td_err_set(err, TD_E_USAGE, "%s: is there already; --force writes over it",
                              f->out);
        if (!td_io_replace_file(f->out, "", 0, err))
            return false;
    }
    td_jsonl_writer *w = td_jsonl_writer_open(&(td_jsonl_writer_params){.path = path}, err);
    bool is_ok = w && export_all(db, f, w, err);
    return w && td_jsonl_writer_close(&w, is_ok ? err : NULL) && is_ok;
}

/* -- the command ------------------------------------------------------------------------------- */

static const char text_flags[] = "-n --temp --top-k --top-p --min-p --repeat-penalty --seed --stop "
                                 "--ignore-eos ";
static const struct verb {
    const char *name;
    const char *flags; /* with a blank behind each; text_flags too where is_new */
    bool is_new;
    const char *changed; /* what is said of the lines that it changed */
} verbs[] = {{"create", "--in --config --same-arithmetic ", true, NULL},
             {"add", "--in ", false, NULL},
             {"status", "--json --watch ", false, NULL},
             {"export", "--out --order --follow --force ", false, NULL},
             {"retry", "--errors ", false, "wait again"},
             {"requeue", "--worker ", false, "wait again"},
             {"cancel", "", false, "are cancelled"},
             {"drop", "", false, NULL}};

static bool has_word(const char *list, const char *word)
{
    size_t n = strlen(word);
    for (const char *at = list; (at = strstr(at, word)); at += n)
        if ((at == list || at[-1] == ' ') && at[n] == ' ')
            return true;
    return false;
}

/* Flags are those of the verb. */
static bool check_flags(const struct verb *v, int argc, char **argv, td_err *err)
{
    for (int i = 0; i < argc; i++)
        for (size_t k = 0; k < TD_COUNT(options); k++) {
            if (strcmp(argv[i], options[k].flag) != 0)
                continue;
            if (!has_word(v->flags, argv[i]) && !(v->is_new && has_word(text_flags, argv[i])))
                return td_err_set(err, TD_E_USAGE, "%s does not go with `tandem job %s`", argv[i],
                                  v->name);
            i += options[k].kind != OPT_FLAG; /* its value */
            break;
        }
    return true;
}

/* The job is no file of results or prompts, and these are none of each other. */
static bool check_files(const fields *f, const char *url, td_err *err)
{
    td_file_use uses[] = {{.name = "the job", .path = td_db_file(url), .is_written = true},
                          {.name = "--in", .path = f->in},
                          {.name = "--config", .path = f->config},
                          {.name = "--out", .path = f->out, .is_written = true}};
    return td_files_check(uses, TD_COUNT(uses), err);
}

static bool do_verb(const struct verb *v, const char *url, fields *f, int *code, td_err *err)
{
    uint64_t n = 0;
    bool needs_in = v->is_new || !strcmp(v->name, "add");
    if (needs_in && !f->in)
        return td_err_set(err, TD_E_USAGE, "`tandem job %s` needs --in FILE.jsonl", v->name);
    if (!strcmp(v->name, "requeue") && !f->worker)
        return td_err_set(err, TD_E_USAGE,
                          "`tandem job requeue` needs --worker NAME; `tandem job "
                          "status` has the names");
    if (f->order && strcmp(f->order, "input") != 0 && strcmp(f->order, "finish") != 0)
        return td_err_set(err, TD_E_USAGE, "--order: %.64s; allowed: input, finish", f->order);
    if (!td_signals_open(err))
        return false;
    td_db *db = td_db_open(url, v->is_new, err);
    if (!db)
        return false;
    td_job_settings settings;
    bool is_ok = v->is_new || !strcmp(v->name, "drop") || td_job_open(db, &settings, err);
    if (is_ok && !v->is_new && strcmp(v->name, "drop") != 0)
        td_job_settings_free(&settings);
    if (!is_ok)
        ;
    else if (v->is_new)
        is_ok = create(db, f, err);
    else if (!strcmp(v->name, "add"))
        is_ok = add_lines(db, f, NULL, err);
    else if (!strcmp(v->name, "status"))
        is_ok = td_job_show(db, f->is_json, f->is_watching, code, err);
    else if (!strcmp(v->name, "export"))
        is_ok = export_results(db, f, err);
    else if (!strcmp(v->name, "retry"))
        is_ok = td_job_retry(db, &n, err);
    else if (!strcmp(v->name, "requeue"))
        is_ok = td_job_requeue(db, f->worker, &n, err);
    else if (!strcmp(v->name, "cancel"))
        is_ok = td_job_cancel(db, &n, err);
    else
        is_ok = td_job_drop(db, err);
    td_db_close(&db);
    if (is_ok && v->changed)
        td_log_info("%llu lines %s", (unsigned long long)n, v->changed);
    if (td_signals_pending())
        *code = 128 + td_signals_pending();
    return is_ok;
}

int td_command_job(int argc, char **argv, td_err *err)
{
    fields f = {.run = {.n_predict = TD_N_PREDICT_DEFAULT, .sampling = TD_SAMPLING_DEFAULTS}};
    td_json *document = NULL;
    const struct verb *v = NULL;
    bool is_help = false;
    int code = 0, n_words = argc > 1 && argv[1][0] != '-' ? 2 : argc > 0 && argv[0][0] != '-';
    for (size_t i = 0; i < TD_COUNT(verbs) && n_words; i++)
        if (!strcmp(argv[0], verbs[i].name))
            v = &verbs[i];
    const char *config = td_options_find_config(&help, argc, argv);
    if (n_words && !v)
        td_err_set(err, TD_E_USAGE,
                   "tandem job: \"%.64s\"; allowed: create, add, status, export, retry, requeue, "
                   "cancel, drop",
                   argv[0]);
    else if (v && !check_flags(v, argc - n_words, argv + n_words, err))
        ;
    else if (config && !td_options_read_config(&help, config, &f, &document, err))
        ;
    else if (!td_options_parse(&help, argc - n_words, argv + n_words, &f, &is_help, err))
        ;
    else if (is_help)
        td_options_print_help(&help);
    else if (n_words < 2)
        td_err_set(err, TD_E_USAGE, "usage: %s", help.usage);
    else if (td_db_check_url(argv[1], err) && check_files(&f, argv[1], err) &&
             td_generate_check_texts(&f.run, &f.stops, err))
        do_verb(v, argv[1], &f, &code, err);
    td_json_destroy(&document);
    return code;
}
