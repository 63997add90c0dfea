/* tandem check: is this machine to be trusted? */
#include "cli/check.h"
#include "cli/commands.h"
#include "cli/options.h"

#include "base/check.h"
#include "base/files.h"
#include "base/io.h"
#include "base/mem.h"
#include "check/report_bytes.h"
#include "target/remote_check.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    option_list devices;
    option_hosts hosts;
    const char *report, *only, *key;
    bool is_json, is_quick;
} fields;

#define AT(name) offsetof(fields, name)

static const option options[] = {
    {"--device", NULL, OPT_LIST, AT(devices), 0, 0, "SPEC",
     "as in generate; may be given several times (default: all that are usable)"},
    {"--host", NULL, OPT_HOSTS, AT(hosts), 0, 0, "NAME=EP",
     "another machine, whose devices are NAME/SPEC then, or all of them: the `tandem stage` at EP "
     "(as of `generate`), while it is free, tries them there"},
    {"--key", NULL, OPT_TEXT, AT(key), 0, 0, "NAME",
     "our own pair of `tandem keys`, shown there (default: the only one)"},
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
    char text[TD_HOST_NAME_MAX + 1 + sizeof((td_device_info *)0)->id]; /* as shown */
    const char *spec;                                                  /* without the host */
    uint32_t host;                                                     /* of hosts; n_hosts: here */
} place;

typedef struct {
    uint32_t n, n_hosts;
    place places[TD_OPTION_LIST_MAX];
    td_host hosts[TD_OPTION_LIST_MAX];
    td_remote_check *sessions[TD_OPTION_LIST_MAX]; /* NULL: nothing is asked for there */
    td_device_info infos[TD_DEVICES_MAX];          /* of what was found, where none were given */
    td_check_report *reports;                      /* [n] */
    td_check_hop hops[TD_OPTION_LIST_MAX * TD_OPTION_LIST_MAX];
    uint32_t n_hops;
    bool is_shown; /* what is being done, on a terminal */
} session;

static bool show_progress(void *user, const char *op, const char *shape)
{
    (void)user;
    fprintf(stderr, "\r\033[K%s: %s", op, shape);
    return true;
}

static void show_remote(void *user, const char *doing)
{
    const td_host *host = user;
    fprintf(stderr, "\r\033[K%s/%s", host->name, doing);
}

static void hide_progress(const session *s)
{
    if (s->is_shown)
        fputs("\r\033[K", stderr);
}

/* The next device of the same machine; itself where there is no other. */
static const char *find_other(const session *s, uint32_t i)
{
    uint32_t k = (i + 1) % s->n;
    while (s->places[k].host != s->places[i].host)
        k = (k + 1) % s->n;
    return s->places[k].spec;
}

/* What the machine of a place says, of a check or of a hop from it to another one. */
static bool ask(session *s, const place *p, td_remote_check_params *params, const void **bytes,
                size_t *n_bytes, td_err *err)
{
    td_host *host = &s->hosts[p->host];
    params->spec = p->spec;
    params->progress = s->is_shown ? show_remote : NULL;
    params->user = host;
    return td_remote_check_run(s->sessions[p->host], params, bytes, n_bytes, err);
}

/* All of one device; false where it could not even be begun. */
static bool check_one(const fields *f, session *s, uint32_t i, td_err *err)
{
    td_check_report *report = &s->reports[i];
    const place *p = &s->places[i];
    const void *bytes;
    size_t n_bytes;
    bool is_ok;
    if (p->host == s->n_hosts) {
        is_ok = td_check_device(p->spec, find_other(s, i),
                                &(td_check_params){.only = f->only,
                                                   .is_quick = f->is_quick,
                                                   .budget_s = TD_CHECK_BUDGET_S,
                                                   .progress = s->is_shown ? show_progress : NULL},
                                report, err);
    } else {
        td_remote_check_params params = {
            .other = find_other(s, i), .only = f->only, .is_quick = f->is_quick};
        memcpy(report->host, s->hosts[p->host].name, sizeof report->host);
        is_ok = ask(s, p, &params, &bytes, &n_bytes, err) &&
                (td_check_decode(bytes, n_bytes, report, err) ||
                 td_err_prepend(err, "host %s", report->host));
    }
    hide_progress(s);
    return is_ok;
}

static bool measure_hop(session *s, uint32_t i, uint32_t k, double *us)
{
    const place *from = &s->places[i], *to = &s->places[k];
    const void *bytes;
    size_t n_bytes;
    if (i == k || from->host != to->host || !s->reports[i].has_speeds || !s->reports[k].has_speeds)
        return false;
    if (from->host == s->n_hosts)
        return td_speeds_hop(from->spec, to->spec, us, NULL);
    td_remote_check_params params = {.other = to->spec, .is_hop = true};
    return ask(s, from, &params, &bytes, &n_bytes, NULL) &&
           td_check_decode_hop(bytes, n_bytes, us, NULL);
}

/* Both ways between any two devices of a machine that passed; one that fails now has no hop. */
static void measure_hops(session *s)
{
    for (uint32_t i = 0; i < s->n; i++)
        for (uint32_t k = 0; k < s->n; k++) {
            td_check_hop *hop = &s->hops[s->n_hops];
            *hop = (td_check_hop){.from = s->places[i].text, .to = s->places[k].text};
            s->n_hops += measure_hop(s, i, k, &hop->us);
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

static bool add(session *s, uint32_t host, const char *spec)
{
    if (s->n == TD_OPTION_LIST_MAX)
        return false;
    place *p = &s->places[s->n++];
    bool is_here = host == s->n_hosts;
    *p = (place){.spec = spec, .host = host};
    snprintf(p->text, sizeof p->text, "%s%s%.95s", is_here ? "" : s->hosts[host].name,
             is_here ? "" : "/", spec);
    return true;
}

/* A device that was asked for. */
static bool add_given(const fields *f, session *s, const char *text, td_err *err)
{
    td_device_spec spec;
    uint32_t host = 0;
    if (!td_device_spec_parse(text, &spec, err))
        return false;
    if (!spec.host[0])
        return add(s, s->n_hosts, text);
    while (host < s->n_hosts && strcmp(s->hosts[host].name, spec.host) != 0)
        host++;
    if (host == s->n_hosts || spec.is_pinned)
        return td_err_set(err, TD_E_USAGE,
                          "--device %s: allowed: NAME/SPEC without layers, NAME of a --host "
                          "NAME=EP",
                          text);
    if (!s->sessions[host] &&
        !(s->sessions[host] = td_remote_check_open(&s->hosts[host], f->key, err)))
        return false;
    return add(s, host, strchr(text, '/') + 1);
}

/* The devices asked for; else all of the hosts; else all here that are usable. */
static bool list_places(const fields *f, session *s, td_err *err)
{
    if (!td_options_read_hosts(&f->hosts, f->key, s->hosts, err))
        return false;
    s->n_hosts = f->hosts.n;
    for (uint32_t i = 0; i < f->devices.n; i++)
        if (!add_given(f, s, f->devices.items[i], err))
            return false;
    for (uint32_t i = 0; i < s->n_hosts && !f->devices.n; i++) {
        const char *specs[TD_DEVICES_MAX];
        uint32_t n;
        s->sessions[i] = td_remote_check_open(&s->hosts[i], f->key, err);
        if (!s->sessions[i])
            return false;
        td_remote_check_list(s->sessions[i], specs, TD_DEVICES_MAX, &n);
        for (uint32_t k = 0; k < n; k++)
            add(s, i, specs[k]);
    }
    uint32_t n_infos = s->n ? 0 : td_device_list(s->infos, TD_DEVICES_MAX);
    for (uint32_t i = 0; i < n_infos; i++)
        if (s->infos[i].is_usable)
            add(s, s->n_hosts, s->infos[i].spec);
    return true;
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
    if (!td_options_check_files(&help, &f, NULL, true, err) || !td_check_only(f.only, err))
        return 0;
    session *s = td_alloc(1, sizeof *s, err);
    if (s) {
        s->is_shown = isatty(STDERR_FILENO);
        bool is_ok = list_places(&f, s, err);
        s->reports = is_ok ? td_alloc(s->n, sizeof *s->reports, err) : NULL;
        is_trusted = s->reports && check_all(&f, s, err);
        for (uint32_t i = 0; i < s->n_hosts; i++)
            td_remote_check_close(&s->sessions[i]);
        td_free(s->reports);
    }
    td_free(s);
    return is_trusted ? 0 : 1;
}
