/* What a run tells of itself: --stats (docs/stats.md has the keys) and --trace. */
#include "cli/report.h"

#include "base/check.h"
#include "base/io.h"
#include "base/jsonl.h"
#include "base/mem.h"

#include <math.h>
#include <string.h>

#define LIST_MAX      256u
#define TRACKS_MAX    256u /* more are left out */
#define HOSTS_MAX     64u
#define ROWS_MAX      64u
#define SEQUENCES_MAX 64u
#define EVENT_MAX     (1u << 20) /* bytes of a line */
#define US_MAX        1000000000000000

static const td_json_schema any = {NULL, 0, true};

/* -- stats ------------------------------------------------------------------------------------- */

static const td_json_field stats_fields[] = {
    {.key = "version", .type = TD_JSON_STRING, .min = 0, .max = 1024},
    {.key = "totals", .type = TD_JSON_OBJECT, .required = true},
    {.key = "acceptance_by_position",
     .type = TD_JSON_OBJECT_LIST,
     .required = true,
     .n_max = LIST_MAX},
    {.key = "losses", .type = TD_JSON_OBJECT_LIST, .n_max = LIST_MAX},
    {.key = "energy", .type = TD_JSON_OBJECT_LIST, .nullable = true, .n_max = LIST_MAX},
    {.key = "stages", .type = TD_JSON_OBJECT_LIST, .required = true, .n_max = LIST_MAX},
    {.key = "coordinator", .type = TD_JSON_OBJECT},
    {.key = "draft", .type = TD_JSON_OBJECT},
    {.key = "config", .type = TD_JSON_OBJECT},
};
static const td_json_schema stats_schema = {stats_fields, TD_COUNT(stats_fields), true};

static bool plot_acceptance(report *r, const td_json_object *root, td_err *err)
{
    static const td_json_field fields[] = {
        {.key = "rate", .type = TD_JSON_FLOAT, .required = true, .f_max = 1}};
    static const td_json_schema schema = {fields, TD_COUNT(fields), true};
    td_json_object o;
    plot *p = td_plot_create("Acceptance by position in the draft", "position in the draft",
                             "accepted / verified", PLOT_BARS, err);
    bool is_ok = p;
    for (size_t i = 0; is_ok && i < td_json_count(root, "acceptance_by_position"); i++) {
        is_ok = td_json_read_element(root, "acceptance_by_position", i, &schema, &o, err);
        if (is_ok)
            td_plot_add(p, "accepted", (double)i, td_json_get_double(&o, "rate", 0));
    }
    if (p)
        p->is_share = true;
    if (is_ok)
        td_plot_write(r, &p);
    td_free(p);
    return is_ok && td_report_list(r, "By position", root, "acceptance_by_position", err);
}

static bool plot_idle(report *r, const td_json_object *root, td_err *err)
{
    static const td_json_field fields[] = {
        {.key = "device", .type = TD_JSON_STRING, .required = true, .min = 0, .max = 4096},
        {.key = "idle", .type = TD_JSON_FLOAT, .required = true, .f_max = 1}};
    static const td_json_schema schema = {fields, TD_COUNT(fields), true};
    char label[REPORT_LABEL_BYTES];
    td_json_object o;
    plot *p = td_plot_create("Idle share by device", "device", "idle share", PLOT_BARS, err);
    size_t n = td_json_count(root, "stages");
    bool is_ok = p;
    for (size_t i = 0; is_ok && i < n; i++) {
        is_ok = td_json_read_element(root, "stages", i, &schema, &o, err);
        if (!is_ok)
            break;
        snprintf(label, sizeof label, "stage %zu %.60s", i, td_json_get_string(&o, "device", ""));
        td_plot_add(p, label, (double)i + 1, td_json_get_double(&o, "idle", 0));
    }
    if (is_ok && td_json_has(root, "draft")) {
        is_ok = td_json_read_member(root, "draft", &schema, &o, err);
        if (is_ok) {
            snprintf(label, sizeof label, "draft %.60s", td_json_get_string(&o, "device", ""));
            td_plot_add(p, label, (double)n + 1, td_json_get_double(&o, "idle", 0));
        }
    }
    if (p)
        p->is_share = true;
    if (is_ok)
        td_plot_write(r, &p);
    td_free(p);
    return is_ok;
}

static bool write_member(report *r, const char *caption, const td_json_object *root,
                         const char *key, td_err *err)
{
    td_json_object o;
    if (!td_json_has(root, key))
        return true;
    if (!td_json_read_member(root, key, &any, &o, err))
        return false;
    td_report_object(r, caption, &o);
    return true;
}

bool td_report_stats(report *r, const char *path, td_err *err)
{
    char *text;
    size_t n_bytes;
    td_json_object root;
    if (!td_io_read_file(path, REPORT_FILE_MAX, &text, &n_bytes, err))
        return false;
    td_json *doc = td_json_parse(text, n_bytes, path, err);
    td_free(text);
    bool is_ok = doc && td_json_read_root(doc, &stats_schema, &root, err);
    if (is_ok) {
        td_report_object(r, "Run", &root);
        is_ok = write_member(r, "Totals", &root, "totals", err) && plot_acceptance(r, &root, err) &&
                plot_idle(r, &root, err) && td_report_list(r, "Stages", &root, "stages", err) &&
                write_member(r, "Draft", &root, "draft", err) &&
                td_report_list(r, "Energy", &root, "energy", err) &&
                td_report_list(r, "Losses", &root, "losses", err) &&
                write_member(r, "Coordinator", &root, "coordinator", err) &&
                write_member(r, "Settings", &root, "config", err);
    }
    td_json_destroy(&doc);
    return is_ok;
}

/* -- trace ------------------------------------------------------------------------------------- */

static const td_json_field event_fields[] = {
    {.key = "name", .type = TD_JSON_STRING, .required = true, .min = 1, .max = 1024},
    {.key = "ph", .type = TD_JSON_STRING, .required = true, .min = 1, .max = 1},
    {.key = "pid", .type = TD_JSON_INT, .min = 0, .max = UINT32_MAX},
    {.key = "tid", .type = TD_JSON_INT, .required = true, .min = 0, .max = UINT32_MAX},
    {.key = "ts", .type = TD_JSON_INT, .required = true, .min = 0, .max = US_MAX},
    {.key = "dur", .type = TD_JSON_INT, .min = 0, .max = US_MAX},
    {.key = "args", .type = TD_JSON_OBJECT, .required = true},
};
static const td_json_schema event_schema = {event_fields, TD_COUNT(event_fields), true};
static const td_json_field args_fields[] = {
    {.key = "name", .type = TD_JSON_STRING, .min = 0, .max = 4096},
    {.key = "rows", .type = TD_JSON_INT, .min = 0, .max = UINT32_MAX},
    {.key = "sequence", .type = TD_JSON_INT, .min = 0, .max = UINT32_MAX},
    {.key = "length", .type = TD_JSON_INT, .min = 0, .max = UINT32_MAX},
    {.key = "sequences", .type = TD_JSON_STRING, .min = 0, .max = 1024},
    {.key = "waited_us", .type = TD_JSON_INT, .min = 0, .max = US_MAX},
    {.key = "bytes", .type = TD_JSON_INT, .min = 0, .max = UINT32_MAX},
    {.key = "of", .type = TD_JSON_STRING, .min = 0, .max = 256},
    {.key = "host", .type = TD_JSON_STRING, .min = 0, .max = 256},
    {.key = "offset_us", .type = TD_JSON_INT, .min = -US_MAX, .max = US_MAX},
    {.key = "uncertainty_us", .type = TD_JSON_INT, .min = 0, .max = US_MAX},
    {.key = "round_trip_us", .type = TD_JSON_INT, .min = 0, .max = US_MAX},
    {.key = "round_trips", .type = TD_JSON_INT, .min = 0, .max = US_MAX},
    {.key = "dropped", .type = TD_JSON_INT, .min = 0, .max = US_MAX},
};
static const td_json_schema args_schema = {args_fields, TD_COUNT(args_fields), true};

typedef struct {
    int64_t process, thread;
    char name[REPORT_LABEL_BYTES];
    timeline busy;
    double busy_s, waited_s, n_bytes;
    bool is_of_link; /* what was on its way or waited: no device was busy with it */
    uint64_t n_spans, n_cancelled;
    double verify_ms[ROWS_MAX + 1]; /* by rows */
    uint64_t n_verify[ROWS_MAX + 1];
} track;

/* A text that is being made: what was committed behind its prompt. */
typedef struct {
    bool is_used;
    uint32_t sequence;
    double length; /* that was counted; at first the prompt's */
} growing;

/* How far the clock of another machine may be wrong. */
typedef struct {
    char name[REPORT_LABEL_BYTES];
    double offset_us, uncertainty_us, trip_us, n_trips, n_dropped;
} clock_of_host;

typedef struct {
    track tracks[TRACKS_MAX];
    uint32_t n_tracks, n_hosts;
    clock_of_host hosts[HOSTS_MAX];
    growing growing[SEQUENCES_MAX];
    timeline tokens;
    uint64_t n_events, n_finished;
    double n_tokens, end_s, stopped_s; /* < 0: to the end */
    plot *idle;                        /* NULL: not told, the run was killed */
} trace;

static growing *find_growing(trace *t, uint32_t sequence)
{
    for (uint32_t i = 0; i < SEQUENCES_MAX; i++)
        if (t->growing[i].is_used && t->growing[i].sequence == sequence)
            return &t->growing[i];
    return NULL;
}

/* "3@120+4 7@9+1": a sequence's first verification begins behind its prompt. */
static void note_verified(trace *t, const char *text)
{
    unsigned sequence, position, n_rows;
    int n_read = 0;
    for (; sscanf(text, "%u@%u+%u%n", &sequence, &position, &n_rows, &n_read) == 3;
         text += n_read) {
        if (find_growing(t, sequence))
            continue;
        for (uint32_t i = 0; i < SEQUENCES_MAX; i++)
            if (!t->growing[i].is_used) {
                t->growing[i] = (growing){true, sequence, position};
                break;
            }
    }
}

static void note_span(trace *t, track *k, const td_json_object *o, const td_json_object *args)
{
    const char *name = td_json_get_string(o, "name", "");
    double from = (double)td_json_get_int(o, "ts", 0) * 1e-6;
    double s = (double)td_json_get_int(o, "dur", 0) * 1e-6;
    k->n_spans++;
    k->busy_s += s;
    k->n_cancelled += strstr(name, "(cancelled)") || strstr(name, "(stale)");
    td_timeline_add_span(&k->busy, from, from + s);
    t->end_s = fmax(t->end_s, from + s);
    k->is_of_link = !strcmp(name, "receive") || !strcmp(name, "wait") || !strcmp(name, "send");
    k->waited_s += (double)td_json_get_int(args, "waited_us", 0) * 1e-6;
    k->n_bytes += (double)td_json_get_int(args, "bytes", 0);
    if (strcmp(name, "verify") != 0)
        return;
    int64_t n_rows = td_json_get_int(args, "rows", 0);
    if (n_rows >= 1 && n_rows <= ROWS_MAX) {
        k->verify_ms[n_rows] += s * 1e3;
        k->n_verify[n_rows]++;
    }
    note_verified(t, td_json_get_string(args, "sequences", ""));
}

static bool note_idle(trace *t, const td_json_object *event, td_err *err)
{
    const char *names[TRACKS_MAX];
    td_json_field fields[TRACKS_MAX];
    td_json_object o;
    if (!td_json_read_member(event, "args", &any, &o, err))
        return false;
    size_t n = td_json_list_keys(&o, names, TD_COUNT(names));
    for (size_t i = 0; i < n; i++)
        fields[i] = (td_json_field){.key = names[i], .type = TD_JSON_FLOAT, .f_max = 1};
    const td_json_schema schema = {fields, n, true};
    t->idle = td_plot_create("Idle share by device", "device", "idle share", PLOT_BARS, err);
    if (!t->idle || !td_json_read_member(event, "args", &schema, &o, err))
        return false;
    t->idle->is_share = true;
    for (size_t i = 0; i < n; i++)
        td_plot_add(t->idle, names[i], (double)i + 1, td_json_get_double(&o, names[i], 0));
    return true;
}

/* Of a machine the last one counts. */
static void note_clock(trace *t, const td_json_object *args)
{
    char name[REPORT_LABEL_BYTES];
    uint32_t i = 0;
    snprintf(name, sizeof name, "%.90s", td_json_get_string(args, "host", ""));
    while (i < t->n_hosts && strcmp(t->hosts[i].name, name) != 0)
        i++;
    if (i == HOSTS_MAX)
        return;
    t->n_hosts += i == t->n_hosts;
    clock_of_host *h = &t->hosts[i];
    memcpy(h->name, name, sizeof name);
    h->offset_us = (double)td_json_get_int(args, "offset_us", 0);
    h->uncertainty_us = (double)td_json_get_int(args, "uncertainty_us", 0);
    h->trip_us = (double)td_json_get_int(args, "round_trip_us", 0);
    h->n_trips = (double)td_json_get_int(args, "round_trips", 0);
    h->n_dropped = (double)td_json_get_int(args, "dropped", 0);
}

static void note_moment(trace *t, const char *name, double at, const td_json_object *args)
{
    t->end_s = fmax(t->end_s, at);
    if (!strcmp(name, "answer") && !strcmp(td_json_get_string(args, "of", ""), "verify"))
        note_verified(t, td_json_get_string(args, "sequences", ""));
    growing *g = find_growing(t, (uint32_t)td_json_get_int(args, "sequence", 0));
    if (!strcmp(name, "the trace stops here")) {
        t->stopped_s = at;
    } else if (!strcmp(name, "finish")) {
        t->n_finished++;
        if (g)
            g->is_used = false;
    } else if (g && !strcmp(name, "commit")) {
        double n_new = (double)td_json_get_int(args, "length", 0) - g->length;
        if (n_new > 0) {
            g->length += n_new;
            t->n_tokens += n_new;
            td_timeline_add(&t->tokens, at, n_new);
        }
    }
}

static track *find_track(trace *t, const td_json_object *o)
{
    int64_t process = td_json_get_int(o, "pid", 0), thread = td_json_get_int(o, "tid", 0);
    for (uint32_t i = 0; i < t->n_tracks; i++)
        if (t->tracks[i].process == process && t->tracks[i].thread == thread)
            return &t->tracks[i];
    if (t->n_tracks == TRACKS_MAX)
        return NULL;
    track *k = &t->tracks[t->n_tracks++];
    k->process = process;
    k->thread = thread;
    return k;
}

static bool note_event(trace *t, const td_json_object *o, td_err *err)
{
    const char *name = td_json_get_string(o, "name", ""), *phase = td_json_get_string(o, "ph", "");
    td_json_object args;
    t->n_events++;
    if (!strcmp(name, "idle share") && !t->idle)
        return note_idle(t, o, err);
    track *k = find_track(t, o);
    if (!k || !td_json_read_member(o, "args", &args_schema, &args, err))
        return err->code == TD_OK;
    if (phase[0] == 'M' && !strcmp(name, "clock"))
        note_clock(t, &args);
    else if (phase[0] == 'M' && !strcmp(name, "thread_name"))
        snprintf(k->name, sizeof k->name, "%.90s", td_json_get_string(&args, "name", ""));
    else if (phase[0] == 'X')
        note_span(t, k, o, &args);
    else if (phase[0] == 'i')
        note_moment(t, name, (double)td_json_get_int(o, "ts", 0) * 1e-6, &args);
    return true;
}

/* An event a line, "[" before the first and "]" behind the last. */
static bool read_event(void *user, const td_jsonl_line *line, const char *name, td_err *err)
{
    const char *from = line->text, *end = line->text + line->n_bytes;
    from += *from == '[';
    if (end > from && end[-1] == ']')
        end--;
    if (end > from && end[-1] == ',')
        end--;
    if (end == from)
        return true;
    td_json_object o;
    td_json *doc = td_json_parse(from, (size_t)(end - from), name, err);
    bool is_ok = doc && td_json_read_root(doc, &event_schema, &o, err) && note_event(user, &o, err);
    td_json_destroy(&doc);
    return is_ok;
}

/* What there is of other machines: links, waiting, clocks. */
static void write_machines(report *r, const trace *t)
{
    if (!t->n_hosts)
        return;
    td_report_begin_table(r, "Between machines", "track|spans|s|ms each|bytes");
    for (uint32_t i = 0; i < t->n_tracks; i++) {
        const track *k = &t->tracks[i];
        if (!k->n_spans || !k->is_of_link)
            continue;
        double s = k->waited_s > 0 ? k->waited_s : k->busy_s;
        td_report_begin_row(r);
        td_report_cell(r, k->name);
        td_report_number(r, (double)k->n_spans);
        td_report_number(r, s);
        td_report_number(r, s * 1e3 / (double)k->n_spans);
        td_report_number(r, k->n_bytes);
        td_report_end_row(r);
    }
    td_report_end_table(r);
    td_report_begin_table(r, "Clocks",
                          "machine|ahead of ours, us|uncertain by, us|round trip, us|round trips|"
                          "batches it had no room to tell of");
    for (uint32_t i = 0; i < t->n_hosts; i++) {
        const clock_of_host *h = &t->hosts[i];
        td_report_begin_row(r);
        td_report_cell(r, h->name);
        td_report_number(r, h->offset_us);
        td_report_number(r, h->uncertainty_us);
        td_report_number(r, h->trip_us);
        td_report_number(r, h->n_trips);
        td_report_number(r, h->n_dropped);
        td_report_end_row(r);
    }
    td_report_end_table(r);
}

static bool write_trace(report *r, trace *t, td_err *err)
{
    td_report_begin_table(r, "Trace", NULL);
    td_report_figure(r, "events", (double)t->n_events);
    td_report_figure(r, "seconds", t->end_s);
    td_report_figure(r, "lines that ended", (double)t->n_finished);
    td_report_figure(r, "tokens committed", t->n_tokens);
    if (t->stopped_s >= 0)
        td_report_figure(r, "the trace was full at, s", t->stopped_s);
    td_report_end_table(r);
    td_report_begin_table(r, "Tracks", "track|spans|for nothing|busy, s|busy share");
    for (uint32_t i = 0; i < t->n_tracks; i++) {
        const track *k = &t->tracks[i];
        if (!k->n_spans || k->is_of_link)
            continue;
        td_report_begin_row(r);
        td_report_cell(r, k->name);
        td_report_number(r, (double)k->n_spans);
        td_report_number(r, (double)k->n_cancelled);
        td_report_number(r, k->busy_s);
        td_report_number(r, t->end_s > 0 ? k->busy_s / t->end_s : 0);
        td_report_end_row(r);
    }
    td_report_end_table(r);
    write_machines(r, t);
    plot *tokens = td_plot_create("Throughput over time", "s", "tokens/s", PLOT_LINES, err);
    plot *busy = td_plot_create("Busy share over time", "s", "busy share", PLOT_LINES, err);
    plot *rows =
        td_plot_create("Time of a verification, mean", "rows", "ms on the device", PLOT_LINES, err);
    bool is_ok = tokens && busy && rows;
    if (is_ok)
        td_timeline_plot(tokens, "tokens/s", &t->tokens, TIMELINE_RATE);
    for (uint32_t i = 0; is_ok && i < t->n_tracks; i++) {
        const track *k = &t->tracks[i];
        if (!k->n_spans || k->is_of_link)
            continue;
        td_timeline_plot(busy, k->name, &k->busy, TIMELINE_RATE);
        for (uint32_t n = 1; n <= ROWS_MAX; n++)
            if (k->n_verify[n])
                td_plot_add(rows, k->name, n, k->verify_ms[n] / (double)k->n_verify[n]);
    }
    if (busy)
        busy->is_share = true;
    td_plot_write(r, &tokens);
    td_plot_write(r, &busy);
    td_plot_write(r, &t->idle);
    td_plot_write(r, &rows);
    return is_ok;
}

bool td_report_trace(report *r, const char *path, td_err *err)
{
    trace *t = td_alloc(1, sizeof *t, err);
    if (!t)
        return false;
    t->stopped_s = -1;
    bool is_ok = td_report_read_lines(r, path, EVENT_MAX, read_event, t, err);
    if (is_ok && !t->idle)
        td_report_note(r, "The trace has no end, as a run that was killed leaves it.");
    is_ok = is_ok && write_trace(r, t, err);
    td_free(t->idle);
    td_free(t);
    return is_ok;
}
