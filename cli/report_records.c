/* Records, each a test of `tandem bench` or a run of scripts/sweep.py, whatever they are written
 * in: a table of texts whose columns have names. */
#include "cli/report.h"

#include "base/check.h"
#include "base/io.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/text.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COLUMNS_MAX 200u
#define RECORDS_MAX 10000u
#define SHOWN_MAX   48u /* columns */

typedef struct {
    td_arena *arena;
    const char *columns[COLUMNS_MAX];
    uint32_t n_columns;
    const char **cells; /* [RECORDS_MAX][COLUMNS_MAX], as many as there are; NULL: nothing there */
    uint32_t n, n_room;
} records;

/* -- the table --------------------------------------------------------------------------------- */

static void destroy(records *t)
{
    td_free(t->cells);
    if (t->arena)
        td_arena_destroy(&t->arena);
}

static bool add_row(records *t, const char *path, td_err *err)
{
    if (t->n == RECORDS_MAX)
        return td_err_set(err, TD_E_DATA, "%s: more than %u records; at most as many are allowed",
                          path, RECORDS_MAX);
    if (t->n == t->n_room) {
        uint32_t n = t->n_room ? 2 * t->n_room : 64;
        size_t row = COLUMNS_MAX * sizeof *t->cells;
        const char **cells = td_realloc(t->cells, t->n_room, n, row, err);
        if (!cells)
            return false;
        memset(cells + (size_t)t->n_room * COLUMNS_MAX, 0, (n - t->n_room) * row);
        t->cells = cells;
        t->n_room = n;
    }
    t->n++;
    return true;
}

static const char *get(const records *t, uint32_t row, uint32_t column)
{
    return t->cells[(size_t)row * COLUMNS_MAX + column];
}

static bool put(records *t, uint32_t column, const char *text, td_err *err)
{
    char *copy = td_arena_strndup(t->arena, text, strlen(text), err);
    t->cells[(size_t)(t->n - 1) * COLUMNS_MAX + column] = copy;
    return copy;
}

static bool find_column(const records *t, const char *name, uint32_t *column)
{
    for (uint32_t i = 0; i < t->n_columns; i++)
        if (!strcmp(t->columns[i], name)) {
            *column = i;
            return true;
        }
    return false;
}

static bool add_column(records *t, const char *path, const char *name, uint32_t *column,
                       td_err *err)
{
    if (t->n_columns == COLUMNS_MAX)
        return td_err_set(err, TD_E_DATA, "%s: more than %u columns; at most as many are allowed",
                          path, COLUMNS_MAX);
    *column = t->n_columns;
    t->columns[t->n_columns] = td_arena_strndup(t->arena, name, strlen(name), err);
    return t->columns[t->n_columns++];
}

static double number_at(const records *t, uint32_t row, uint32_t column)
{
    const char *text = get(t, row, column);
    double x = (double)NAN;
    if (text)
        td_text_read_double(text, &x);
    return x;
}

/* -- from CSV (RFC 4180) ----------------------------------------------------------------------- */

/* A cell at *at, its quotes taken off in place. *is_last: of its row. */
static bool read_cell(const char *path, uint64_t line, char **at, char **cell, bool *is_last,
                      td_err *err)
{
    char *in = *at, *out = *at;
    *cell = out;
    if (*in == '"') {
        for (in++; *in && (*in != '"' || in[1] == '"'); in++) {
            in += *in == '"';
            *out++ = *in;
        }
        if (!*in)
            return td_err_set(err, TD_E_DATA, "%s:%llu: a quoted cell has no end", path,
                              (unsigned long long)line);
        in++;
        if (*in && !strchr(",\r\n", *in))
            return td_err_set(err, TD_E_DATA,
                              "%s:%llu: %s behind a quoted cell; allowed: a comma "
                              "or the end of the line",
                              path, (unsigned long long)line, td_text_quote(in, 1).text);
    } else {
        in += strcspn(in, ",\r\n");
        out = in;
    }
    *is_last = *in != ',';
    in += *in == '\r';
    in += *in == '\n' || *in == ',';
    *at = in;
    *out = 0;
    return true;
}

static bool read_csv(records *t, const char *path, char *text, td_err *err)
{
    uint64_t line = 1;
    bool is_ok = true;
    for (char *at = text; is_ok && *at; line++) {
        bool is_last = false;
        uint32_t n = 0;
        if (*at == '\n') { /* an empty line */
            at++;
            continue;
        }
        if (line > 1)
            is_ok = add_row(t, path, err);
        while (is_ok && !is_last) {
            char *cell;
            uint32_t column = n;
            is_ok = read_cell(path, line, &at, &cell, &is_last, err);
            if (is_ok && line == 1 && find_column(t, cell, &column))
                return td_err_set(err, TD_E_DATA, "%s:1: two columns %s", path,
                                  td_text_quote(cell, strlen(cell)).text);
            if (is_ok && line == 1)
                is_ok = add_column(t, path, cell, &column, err);
            else if (is_ok && n >= t->n_columns)
                return td_err_set(err, TD_E_DATA,
                                  "%s:%llu: more than %u cells; the first line has "
                                  "as many",
                                  path, (unsigned long long)line, t->n_columns);
            else if (is_ok && *cell)
                is_ok = put(t, column, cell, err);
            n++;
        }
        if (is_ok && n != t->n_columns)
            return td_err_set(err, TD_E_DATA, "%s:%llu: %u cells; the first line has %u", path,
                              (unsigned long long)line, n, t->n_columns);
    }
    return is_ok;
}

/* -- from JSON --------------------------------------------------------------------------------- */

static bool add_record(records *t, const char *path, const td_json_object *o, td_err *err)
{
    const char *keys[COLUMNS_MAX + 1];
    char number[TD_TEXT_DOUBLE_MAX];
    size_t n = td_json_list_keys(o, keys, TD_COUNT(keys));
    if (!add_row(t, path, err))
        return false;
    for (size_t i = 0; i < n; i++) {
        uint32_t column;
        const char *text = td_json_get_text(o, keys[i], number);
        if (!find_column(t, keys[i], &column) && !add_column(t, path, keys[i], &column, err))
            return false;
        if (text && !put(t, column, text, err))
            return false;
    }
    return true;
}

static const td_json_schema any = {NULL, 0, true};
static const td_json_field list_fields[] = {
    {.key = "tests", .type = TD_JSON_OBJECT_LIST, .n_max = RECORDS_MAX}};
static const td_json_schema list_schema = {list_fields, TD_COUNT(list_fields), true};

static bool add_list(records *t, const char *path, const td_json_object *root, td_err *err)
{
    bool is_ok = true;
    for (size_t i = 0; is_ok && i < td_json_count(root, "tests"); i++) {
        td_json_object o;
        is_ok =
            td_json_read_element(root, "tests", i, &any, &o, err) && add_record(t, path, &o, err);
    }
    return is_ok;
}

/* -- plots ------------------------------------------------------------------------------------- */

/* With is_setting records that lack it do not count: plain decoding has no draft. */
static bool varies(const records *t, uint32_t column, bool is_setting)
{
    const char *first = t->n ? get(t, 0, column) : NULL;
    for (uint32_t row = 1; row < t->n; row++) {
        const char *text = get(t, row, column);
        if (is_setting && (!first || !text))
            first = first ? first : text;
        else if ((first || text) && (!first || !text || strcmp(first, text) != 0))
            return true;
    }
    return false;
}

/* What tells settings apart: columns before a sweep's `repeat`, and bench's own; of these, those
 * that are not the same in all records. */
static uint32_t find_settings(const records *t, uint32_t *columns, uint32_t max)
{
    static const char *const own[] = {"model_filename", "device",      "beside",
                                      "type_k",         "type_v",      "n_depth",
                                      "draft_filename", "draft_device"};
    uint32_t repeat = 0, n = 0, column = 0;
    find_column(t, "repeat", &repeat);
    for (uint32_t i = 0; i < repeat + TD_COUNT(own) && n < max; i++) {
        bool is_there = i < repeat;
        column = i;
        if (!is_there)
            is_there = find_column(t, own[i - repeat], &column) && column >= repeat;
        if (is_there && varies(t, column, true))
            columns[n++] = column;
    }
    return n;
}

static uint64_t key_of(const records *t, uint32_t row, const uint32_t *settings, uint32_t n)
{
    uint64_t key = 1;
    for (uint32_t i = 0; i < n; i++) {
        const char *text = get(t, row, settings[i]);
        key = td_hash64(key, text ? text : "", text ? strlen(text) + 1 : 0);
    }
    return key;
}

static void write_label(const records *t, uint32_t row, const uint32_t *settings, uint32_t n,
                        const char *name, char label[REPORT_LABEL_BYTES])
{
    snprintf(label, REPORT_LABEL_BYTES, "%s", name);
    for (uint32_t i = 0; i < n; i++) {
        const char *text = get(t, row, settings[i]);
        if (!text)
            continue;
        const char *slash = strrchr(text, '/');
        size_t used = strlen(label);
        snprintf(label + used, REPORT_LABEL_BYTES - used, "%s%.30s=%.40s", used ? " " : "",
                 t->columns[settings[i]], slash ? slash + 1 : text);
    }
    if (strlen(label) == REPORT_LABEL_BYTES - 1) /* cut, and still not another's */
        snprintf(label + REPORT_LABEL_BYTES - 10, 10, "#%08x",
                 (unsigned)key_of(t, row, settings, n));
    if (!*label)
        snprintf(label, REPORT_LABEL_BYTES, "all");
}

static const struct {
    const char *title, *x_title, *y_title;
    const char *x, *y; /* columns */
    double x_min;      /* NAN: names, and each test has a curve of its own */
} curves[] = {
    {"Cost of a verification, c(n)", "rows", "c(n)", "n_rows", "c", 1},
    {"Speed by draft length", "tokens of a draft", "tokens/s", "k", "median_ts", 0},
    {"Acceptance by draft length", "tokens of a draft", "acceptance", "k", "acceptance", 1},
    {"Speed by prompt", "prompt", "tokens/s", "prompt", "median_ts", NAN},
    {"Acceptance by prompt", "prompt", "acceptance", "prompt", "acceptance", NAN},
};

static bool write_curve(report *r, const records *t, const uint32_t *settings, uint32_t n_settings,
                        size_t i_curve, td_err *err)
{
    uint32_t x, y, test = 0;
    bool is_named = isnan(curves[i_curve].x_min), has_test = find_column(t, "test", &test);
    if (!find_column(t, curves[i_curve].x, &x) || !find_column(t, curves[i_curve].y, &y))
        return true;
    plot *p = td_plot_create(curves[i_curve].title, curves[i_curve].x_title,
                             curves[i_curve].y_title, is_named ? PLOT_BARS : PLOT_LINES, err);
    for (uint32_t row = 0; p && row < t->n; row++) {
        char label[REPORT_LABEL_BYTES];
        const char *name = has_test ? get(t, row, test) : NULL, *at = get(t, row, x);
        if (!at || (!is_named && !(number_at(t, row, x) >= curves[i_curve].x_min)) ||
            (!is_named && name && strstr(name, "chosen"))) /* no one length */
            continue;
        write_label(t, row, settings, n_settings, is_named && name ? name : "", label);
        td_plot_add(p, label, is_named ? td_plot_find_name(p, at) : number_at(t, row, x),
                    number_at(t, row, y));
    }
    bool is_ok = p;
    td_plot_write(r, &p);
    return is_ok;
}

static bool write_curves(report *r, const records *t, const uint32_t *settings, uint32_t n_settings,
                         td_err *err)
{
    uint32_t column;
    bool is_ok = true, has_prompts = find_column(t, "prompt", &column);
    for (size_t i = 0; is_ok && i < TD_COUNT(curves); i++)
        if (isnan(curves[i].x_min) == has_prompts)
            is_ok = write_curve(r, t, settings, n_settings, i, err);
    return is_ok;
}

/* -- the front of a sweep ---------------------------------------------------------------------- */

/* More of y is better, and less of x. */
static const struct {
    const char *title, *x_title, *y_title, *x, *y;
} fronts[] = {
    {"Pareto front: throughput against waiting", "ms to the first token", "tokens/s",
     "ttft_ms_mean", "tokens_per_second"},
    {"Pareto front: throughput against energy", "J/token", "tokens/s", "joules_per_token",
     "tokens_per_second"},
};

typedef struct {
    uint64_t key; /* a hash of its settings */
    uint32_t row; /* the first of them */
    double x, y, n;
} outcome;

static int by_key(const void *a, const void *b)
{
    const outcome *p = a, *q = b;
    return p->key != q->key ? (p->key > q->key) - (p->key < q->key)
                            : (p->row > q->row) - (p->row < q->row);
}

static int by_x(const void *a, const void *b)
{
    const outcome *p = a, *q = b;
    return p->x != q->x ? (p->x > q->x) - (p->x < q->x) : (p->y < q->y) - (p->y > q->y);
}

/* Repeats of the same settings become their mean. */
static uint32_t merge_repeats(outcome *outcomes, uint32_t n)
{
    uint32_t n_merged = 0;
    qsort(outcomes, n, sizeof *outcomes, by_key);
    for (uint32_t i = 0; i < n; i++) {
        outcome *last = n_merged ? &outcomes[n_merged - 1] : NULL;
        if (last && last->key == outcomes[i].key) {
            last->n++;
            last->x += (outcomes[i].x - last->x) / last->n;
            last->y += (outcomes[i].y - last->y) / last->n;
        } else {
            outcomes[n_merged++] = outcomes[i];
        }
    }
    return n_merged;
}

static bool write_front(report *r, const records *t, const uint32_t *settings, uint32_t n_settings,
                        size_t i_front, td_err *err)
{
    uint32_t x, y, n = 0, n_front = 0;
    if (t->n == 0 || !find_column(t, fronts[i_front].x, &x) ||
        !find_column(t, fronts[i_front].y, &y))
        return true;
    outcome *outcomes = td_alloc(t->n, sizeof *outcomes, err);
    plot *p = td_plot_create(fronts[i_front].title, fronts[i_front].x_title,
                             fronts[i_front].y_title, PLOT_POINTS, err);
    bool is_ok = outcomes && p;
    for (uint32_t row = 0; is_ok && row < t->n; row++) {
        outcome o = {key_of(t, row, settings, n_settings), row, number_at(t, row, x),
                     number_at(t, row, y), 1};
        if (isfinite(o.x) && isfinite(o.y))
            outcomes[n++] = o;
    }
    if (is_ok && n) {
        n = merge_repeats(outcomes, n);
        qsort(outcomes, n, sizeof *outcomes, by_x);
        for (uint32_t i = 0; i < n; i++)
            td_plot_add(p, "settings", outcomes[i].x, outcomes[i].y);
        p->style = PLOT_LINES;
        for (uint32_t i = 0; i < n; i++)
            if (n_front == 0 || outcomes[i].y > outcomes[n_front - 1].y)
                outcomes[n_front++] = outcomes[i]; /* the places before i are no longer needed */
        for (uint32_t i = 0; i < n_front; i++)
            td_plot_add(p, "front", outcomes[i].x, outcomes[i].y);
        td_plot_write(r, &p);
        td_report_begin_table(r, "Settings of the front", NULL);
        td_report_begin_row(r);
        for (uint32_t k = 0; k < n_settings; k++)
            td_report_head(r, t->columns[settings[k]]);
        td_report_head(r, fronts[i_front].x_title);
        td_report_head(r, fronts[i_front].y_title);
        td_report_end_row(r);
        for (uint32_t i = 0; i < n_front && i < REPORT_ROWS_MAX; i++) {
            td_report_begin_row(r);
            for (uint32_t k = 0; k < n_settings; k++)
                td_report_cell(r, get(t, outcomes[i].row, settings[k]));
            td_report_number(r, outcomes[i].x);
            td_report_number(r, outcomes[i].y);
            td_report_end_row(r);
        }
        td_report_end_table(r);
    }
    td_free(p);
    td_free(outcomes);
    return is_ok;
}

/* -- the report -------------------------------------------------------------------------------- */

/* What is the same in all is said once. */
static void write_table(report *r, const records *t)
{
    uint32_t shown[SHOWN_MAX], n = 0;
    td_report_begin_table(r, "The same in all records", NULL);
    for (uint32_t i = 0; t->n && i < t->n_columns; i++) {
        if (varies(t, i, false)) {
            if (n < SHOWN_MAX)
                shown[n++] = i;
        } else if (get(t, 0, i)) {
            td_report_begin_row(r);
            td_report_cell(r, t->columns[i]);
            td_report_cell(r, get(t, 0, i));
            td_report_end_row(r);
        }
    }
    td_report_end_table(r);
    td_report_begin_table(r, "Records", NULL);
    td_report_begin_row(r);
    for (uint32_t i = 0; i < n; i++)
        td_report_head(r, t->columns[shown[i]]);
    td_report_end_row(r);
    for (uint32_t row = 0; row < t->n && row < REPORT_ROWS_MAX; row++) {
        td_report_begin_row(r);
        for (uint32_t i = 0; i < n; i++)
            td_report_cell(r, get(t, row, shown[i]));
        td_report_end_row(r);
    }
    td_report_end_table(r);
    if (t->n > REPORT_ROWS_MAX)
        td_report_note(r, "%u more records are not shown.", t->n - REPORT_ROWS_MAX);
}

static bool write_records(report *r, const records *t, td_err *err)
{
    uint32_t settings[COLUMNS_MAX], n = find_settings(t, settings, COLUMNS_MAX);
    bool is_ok = write_curves(r, t, settings, n, err);
    for (size_t i = 0; is_ok && i < TD_COUNT(fronts); i++)
        is_ok = write_front(r, t, settings, n, i, err);
    if (is_ok)
        write_table(r, t);
    return is_ok;
}

bool td_report_csv(report *r, const char *path, td_err *err)
{
    char *text;
    size_t n_bytes;
    if (!td_io_read_file(path, REPORT_FILE_MAX, &text, &n_bytes, err))
        return false;
    records t = {.arena = td_arena_create(err)};
    bool is_ok = t.arena;
    if (is_ok && strlen(text) != n_bytes)
        is_ok = td_err_set(err, TD_E_DATA, "%s: byte %zu is 0; allowed: text", path, strlen(text));
    is_ok = is_ok && read_csv(&t, path, text + (strncmp(text, "\xef\xbb\xbf", 3) ? 0 : 3), err) &&
            write_records(r, &t, err);
    td_free(text);
    destroy(&t);
    return is_ok;
}

bool td_report_records(report *r, const char *path, td_err *err)
{
    char *text;
    size_t n_bytes;
    td_json_object root;
    if (!td_io_read_file(path, REPORT_FILE_MAX, &text, &n_bytes, err))
        return false;
    records t = {.arena = td_arena_create(err)};
    td_json *doc = t.arena ? td_json_parse(text, n_bytes, path, err) : NULL;
    td_free(text);
    bool is_ok = doc && td_json_read_root_list(doc, &list_schema, &root, err) &&
                 add_list(&t, path, &root, err) && write_records(r, &t, err);
    td_json_destroy(&doc);
    destroy(&t);
    return is_ok;
}

/* A record, or the object of `bench --json`, which has them as a list. */
static bool read_line(void *user, const td_jsonl_line *line, const char *name, td_err *err)
{
    td_json_object o;
    td_json *doc = td_json_parse(line->text, line->n_bytes, name, err);
    bool is_ok = doc && td_json_read_root(doc, &list_schema, &o, err) &&
                 (td_json_has(&o, "tests") ? add_list(user, name, &o, err)
                                           : add_record(user, name, &o, err));
    td_json_destroy(&doc);
    return is_ok;
}

bool td_report_record_lines(report *r, const char *path, td_err *err)
{
    records t = {.arena = td_arena_create(err)};
    bool is_ok = t.arena && td_report_read_lines(r, path, REPORT_FILE_MAX, read_line, &t, err) &&
                 write_records(r, &t, err);
    destroy(&t);
    return is_ok;
}
