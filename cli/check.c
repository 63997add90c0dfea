/* tandem check: is this machine to be trusted? */
#include "cli/check.h"
#include "cli/commands.h"
#include "cli/options.h"

#include "base/check.h"
#include "base/files.h"
#include "base/io.h"
#include "base/mem.h"
#include "check/verdict.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define BUDGET_S 120.0 /* of a device */

typedef struct {
    option_list devices;
    const char *report, *only;
    bool is_json, is_quick;
} fields;

#define AT(name) offsetof(fields, name)

static const option options[] = {
    {"--device", NULL, OPT_LIST, AT(devices), 0, 0, "SPEC",
     "as in generate; may be given several times (default: all that are usable)"},
    {"--only", NULL, OPT_TEXT, AT(only), 0, 0, "PART",
     "one op, say mat_mul (and those that are needed to judge it), or layer, models, beside, loss, "
     "speeds"},
    {"--quick", NULL, OPT_FLAG, AT(is_quick), 0, 0, NULL,
     "small shapes, 20 repeats, no speeds: some seconds"},
    {"--report", NULL, OPT_WRITE, AT(report), 0, 0, "FILE.json",
     "write the JSON there too, to go with a bug report"},
    {"--json", NULL, OPT_FLAG, AT(is_json), 0, 0, NULL, "JSON instead of the page"},
};
static const command_help help = {
    "check", "tandem check [--device SPEC]... [--report FILE.json] [options]",
    "Tells whether devices can be trusted, by trying all that they do, and how fast they are. Exit "
    "code 1: one of them cannot, and generate refuses it until its driver changes or it passes.",
    options, TD_COUNT(options)};

typedef struct {
    const char *specs[TD_OPTION_LIST_MAX];
    uint32_t n;
    td_device_info infos[TD_DEVICES_MAX]; /* of what was found, where none were given */
    td_check_report *reports;             /* [n] */
    td_check_hop hops[TD_OPTION_LIST_MAX * TD_OPTION_LIST_MAX];
    uint32_t n_hops;
    bool is_shown; /* what is being done, on a terminal */
} session;

static void show_progress(const char *op, const char *shape)
{
    fprintf(stderr, "\r\033[K%s: %s", op, shape);
}

static void hide_progress(const session *s)
{
    if (s->is_shown)
        fputs("\r\033[K", stderr);
}

/* All of one device; false where it could not even be begun. */
static bool check_one(const fields *f, session *s, uint32_t i, td_err *err)
{
    td_check_report *report = &s->reports[i];
    const char *spec = s->specs[i];
    const td_check_params params = {.only = f->only,
                                    .is_quick = f->is_quick,
                                    .budget_s = BUDGET_S,
                                    .progress = s->is_shown ? show_progress : NULL};
    bool is_ok = td_check_ops(spec, &params, report, err);
    if (is_ok && s->is_shown)
        show_progress(spec, "models, loss, speeds");
    if (is_ok && td_check_wants(&params, TD_CHECK_MODELS))
        td_check_golden(spec, report);
    if (is_ok && td_check_wants(&params, TD_CHECK_PAIR))
        td_check_pair(spec, s->specs[(i + 1) % s->n], report);
    if (is_ok && td_check_wants(&params, TD_CHECK_LOSS))
        td_check_loss(spec, report);
    if (is_ok && !f->is_quick && td_check_wants(&params, TD_CHECK_SPEEDS))
        td_check_speeds(spec, report);
    hide_progress(s);
    if (is_ok)
        td_verdict_keep(report, !f->only && !f->is_quick);
    return is_ok;
}

/* Both ways between any two devices that passed; one that fails now has no hop. */
static void measure_hops(session *s)
{
    for (uint32_t i = 0; i < s->n; i++)
        for (uint32_t k = 0; k < s->n; k++) {
            td_check_hop *hop = &s->hops[s->n_hops];
            *hop = (td_check_hop){.from = s->specs[i], .to = s->specs[k]};
            if (i != k && s->reports[i].has_speeds && s->reports[k].has_speeds &&
                td_speeds_hop(hop->from, hop->to, &hop->us, NULL))
                s->n_hops++;
        }
}

static bool write_report(const fields *f, const session *s, td_err *err)
{
    const char *text;
    size_t n_bytes;
    td_json_writer *w = td_json_writer_create(true, err);
    bool is_ok = w;
    if (is_ok) {
        td_check_write(w, s->reports, s->n, s->hops, s->n_hops);
        is_ok = td_json_writer_end(w, &text, &n_bytes, err);
    }
    bool is_printed = f->report && !strcmp(f->report, "-");
    if (is_ok && (f->is_json || is_printed))
        puts(text);
    if (is_ok && f->report && !is_printed)
        is_ok = td_io_replace_file(f->report, text, n_bytes, err);
    td_json_writer_destroy(&w);
    return is_ok;
}

/* The devices asked for, else all that are usable. */
static void list_specs(const fields *f, session *s)
{
    for (uint32_t i = 0; i < f->devices.n; i++)
        s->specs[s->n++] = f->devices.items[i];
    uint32_t n_infos = s->n ? 0 : td_device_list(s->infos, TD_DEVICES_MAX);
    for (uint32_t i = 0; i < n_infos; i++)
        if (s->infos[i].is_usable && s->n < TD_OPTION_LIST_MAX)
            s->specs[s->n++] = s->infos[i].spec;
}

/* False: a device is not to be trusted, or err is set. */
static bool check_all(const fields *f, session *s, td_err *err)
{
    bool is_trusted = true;
    for (uint32_t i = 0; i < s->n; i++) {
        if (!check_one(f, s, i, err))
            return false;
        if (!f->is_json)
            td_check_print(&s->reports[i]);
        is_trusted &= !td_check_find_failed(&s->reports[i]);
    }
    measure_hops(s);
    if (!f->is_json)
        td_check_print_hops(s->hops, s->n_hops);
    return (!(f->is_json || f->report) || write_report(f, s, err)) && is_trusted;
}

int td_command_check(int argc, char **argv, td_err *err)
{
    fields f = {.is_json = false};
    bool is_help, is_trusted = false;
    if (!td_options_parse(&help, argc, argv, &f, &is_help, err))
        return 0;
    if (is_help) {
        td_options_print_help(&help);
        return 0;
    }
    if (!td_options_check_files(&help, &f, NULL, true, err) ||
        (f.report && strcmp(f.report, "-") && !td_files_check_writable(f.report, err)))
        return 0;
    session *s = td_alloc(1, sizeof *s, err);
    if (s) {
        s->is_shown = isatty(STDERR_FILENO);
        list_specs(&f, s);
        s->reports = td_alloc(s->n, sizeof *s->reports, err);
        is_trusted = s->reports && check_all(&f, s, err);
        td_free(s->reports);
    }
    td_free(s);
    return is_trusted ? 0 : 1;
}
