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

#define OPS_BUDGET_S 60.0 /* of a device's two minutes */

typedef struct {
    option_list devices;
    const char *report, *only;
    bool is_json, is_quick;
} fields;

#define AT(name) offsetof(fields, name)

static const option options[] = {
    {"--device", NULL, OPT_LIST, AT(devices), 0, 0, "SPEC",
     "as in generate; may be given several times (default: all that are usable)"},
    {"--only", NULL, OPT_TEXT, AT(only), 0, 0, "OP",
     "one op and nothing else, say mat_mul (and the ops that are needed to judge it)"},
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

static void show_progress(const char *op, const char *shape)
{
    fprintf(stderr, "\r\033[K%s: %s", op, shape);
}

/* All of one device; false where it could not even be begun. */
static bool check_one(const fields *f, const char *spec, td_check_report *report, td_err *err)
{
    bool is_shown = isatty(STDERR_FILENO);
    const td_check_params params = {.only = f->only,
                                    .is_quick = f->is_quick,
                                    .budget_s = OPS_BUDGET_S,
                                    .progress = is_shown ? show_progress : NULL};
    bool is_ok = td_check_ops(spec, &params, report, err);
    if (is_shown)
        fprintf(stderr, "\r\033[K");
    if (is_ok)
        td_verdict_keep(report, !f->only && !f->is_quick);
    return is_ok;
}

static bool write_report(const fields *f, const td_check_report *reports, uint32_t n, td_err *err)
{
    const char *text;
    size_t n_bytes;
    td_json_writer *w = td_json_writer_create(true, err);
    bool is_ok = w;
    if (is_ok) {
        td_check_write(w, reports, n);
        is_ok = td_json_writer_end(w, &text, &n_bytes, err);
    }
    if (is_ok && f->is_json)
        puts(text);
    if (is_ok && f->report)
        is_ok = td_io_replace_file(f->report, text, n_bytes, err);
    td_json_writer_destroy(&w);
    return is_ok;
}

/* The devices asked for, else all that are usable. */
static uint32_t list_specs(const fields *f, td_device_info infos[TD_DEVICES_MAX],
                           const char *specs[TD_OPTION_LIST_MAX])
{
    uint32_t n = 0;
    for (; n < f->devices.n; n++)
        specs[n] = f->devices.items[n];
    uint32_t n_infos = n ? 0 : td_device_list(infos, TD_DEVICES_MAX);
    for (uint32_t i = 0; i < n_infos; i++)
        if (infos[i].is_usable && n < TD_OPTION_LIST_MAX)
            specs[n++] = infos[i].spec;
    return n;
}

int td_command_check(int argc, char **argv, td_err *err)
{
    fields f = {.is_json = false};
    bool is_help, is_ok = true, is_trusted = true;
    td_device_info infos[TD_DEVICES_MAX];
    const char *specs[TD_OPTION_LIST_MAX];
    if (!td_options_parse(&help, argc, argv, &f, &is_help, err))
        return 0;
    if (is_help) {
        td_options_print_help(&help);
        return 0;
    }
    if (!td_options_check_files(&help, &f, NULL, true, err) ||
        (f.report && !td_files_check_writable(f.report, err)))
        return 0;
    uint32_t n = list_specs(&f, infos, specs);
    td_check_report *reports = td_alloc(n, sizeof *reports, err);
    for (uint32_t i = 0; reports && is_ok && i < n; i++) {
        is_ok = check_one(&f, specs[i], &reports[i], err);
        if (is_ok && !f.is_json)
            td_check_print(&reports[i]);
        is_trusted &= is_ok && !td_check_find_failed(&reports[i]);
    }
    if (reports && is_ok && (f.is_json || f.report))
        write_report(&f, reports, n, err);
    td_free(reports);
    return is_trusted ? 0 : 1;
}
