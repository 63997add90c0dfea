#include "cli/report.h"

#include "base/check.h"
#include "base/io.h"
#include "base/text.h"
#include "base/utf8.h"

#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#define KEYS_MAX          64u
#define REPORT_NAME_BYTES 4200u
#define NUMBER_LONGEST    12u /* characters of a number that is shown as it is written */

/* Control characters and what is no UTF-8 become U+FFFD; a long text is cut. */
void td_report_text(report *r, const char *text)
{
    static const struct {
        char c;
        const char *entity;
    } entities[] = {{'<', "&lt;"}, {'>', "&gt;"}, {'&', "&amp;"}, {'"', "&quot;"}, {'\'', "&#39;"}};
    size_t n = text ? strlen(text) : 0, i = 0;
    while (i < n && i < REPORT_TEXT_MAX) {
        uint32_t c;
        size_t n_bytes = td_utf8_next(text + i, n - i, &c);
        const char *entity = NULL;
        for (size_t k = 0; k < TD_COUNT(entities); k++)
            entity = c == (uint32_t)entities[k].c ? entities[k].entity : entity;
        bool is_shown = c < TD_UTF8_CUT && c >= 0x20 && (c < 0x7f || c > 0x9f);
        if (c == '\n' || c == '\t')
            fputc(' ', r->page);
        else if (entity || !is_shown)
            fputs(entity ? entity : "\xef\xbf\xbd", r->page);
        else
            fwrite(text + i, 1, n_bytes, r->page);
        i += n_bytes;
    }
    if (i < n)
        fputs("…", r->page);
}

void td_report_heading(report *r, const char *text)
{
    fputs("<h3>", r->page);
    td_report_text(r, text);
    fputs("</h3>\n", r->page);
}

void td_report_note(report *r, const char *format, ...)
{
    char text[REPORT_TEXT_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fputs("<p>", r->page);
    td_report_text(r, text);
    fputs("</p>\n", r->page);
}

/* -- tables ------------------------------------------------------------------------------------ */

void td_report_begin_table(report *r, const char *caption, const char *heads)
{
    fputs("<div class=\"table\"><table>", r->page);
    if (caption) {
        fputs("<caption>", r->page);
        td_report_text(r, caption);
        fputs("</caption>", r->page);
    }
    fputs("\n", r->page);
    for (const char *at = heads; at && *at;) {
        size_t n = strcspn(at, "|");
        fprintf(r->page, "%s<th>%.*s</th>", at == heads ? "<tr>" : "", (int)n, at);
        at += n + (at[n] == '|');
    }
    if (heads)
        fputs("</tr>\n", r->page);
}

void td_report_begin_row(report *r) { fputs("<tr>", r->page); }
void td_report_end_row(report *r) { fputs("</tr>\n", r->page); }
void td_report_end_table(report *r) { fputs("</table></div>\n", r->page); }

void td_report_number(report *r, double x)
{
    if (!isfinite(x))
        fputs("<td></td>", r->page);
    else
        fprintf(r->page, "<td class=\"n\">%.*g</td>", x == round(x) && fabs(x) < 1e15 ? 15 : 6, x);
}

void td_report_head(report *r, const char *text)
{
    fputs("<th>", r->page);
    td_report_text(r, text);
    fputs("</th>", r->page);
}

void td_report_cell(report *r, const char *text)
{
    double x;
    bool is_number = text && td_text_read_double(text, &x);
    if (is_number && strlen(text) > NUMBER_LONGEST) {
        td_report_number(r, x);
        return;
    }
    fputs(is_number ? "<td class=\"n\">" : "<td>", r->page);
    td_report_text(r, text);
    fputs("</td>", r->page);
}

void td_report_figure(report *r, const char *name, double figure)
{
    td_report_begin_row(r);
    td_report_cell(r, name);
    td_report_number(r, figure);
    td_report_end_row(r);
}

/* -- JSON -------------------------------------------------------------------------------------- */

void td_report_object(report *r, const char *caption, const td_json_object *object)
{
    const char *keys[KEYS_MAX];
    char number[TD_TEXT_DOUBLE_MAX];
    size_t n = td_json_list_keys(object, keys, KEYS_MAX);
    td_report_begin_table(r, caption, NULL);
    for (size_t i = 0; i < n; i++) {
        const char *text = td_json_get_text(object, keys[i], number);
        if (!text)
            continue;
        td_report_begin_row(r);
        td_report_cell(r, keys[i]);
        td_report_cell(r, text);
        td_report_end_row(r);
    }
    td_report_end_table(r);
}

bool td_report_list(report *r, const char *caption, const td_json_object *object, const char *key,
                    td_err *err)
{
    static const td_json_schema any = {NULL, 0, true};
    const char *keys[KEYS_MAX];
    char number[TD_TEXT_DOUBLE_MAX];
    size_t n_keys = 0, n = td_json_has(object, key) ? td_json_count(object, key) : 0;
    for (size_t i = 0; i < n; i++) {
        td_json_object item;
        if (!td_json_read_element(object, key, i, &any, &item, err))
            return false;
        if (i == 0) {
            n_keys = td_json_list_keys(&item, keys, KEYS_MAX);
            td_report_begin_table(r, caption, NULL);
            td_report_begin_row(r);
            for (size_t k = 0; k < n_keys; k++)
                td_report_head(r, keys[k]);
            td_report_end_row(r);
        }
        td_report_begin_row(r);
        for (size_t k = 0; k < n_keys; k++)
            td_report_cell(r, td_json_get_text(&item, keys[k], number));
        td_report_end_row(r);
    }
    if (n)
        td_report_end_table(r);
    return true;
}

/* -- lines ------------------------------------------------------------------------------------- */

static bool ends_within_line(const char *path)
{
    char last = '\n';
    int fd = td_io_open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0);
    bool is_read = fd >= 0 && lseek(fd, -1, SEEK_END) >= 0 && td_io_read(fd, &last, 1) == 1;
    if (fd >= 0)
        close(fd);
    return is_read && last != '\n';
}

bool td_report_read_lines(report *r, const char *path, size_t line_max, td_report_on_line on_line,
                          void *user, td_err *err)
{
    td_jsonl_reader *reader = td_jsonl_reader_open(path, line_max, err);
    td_jsonl_line line;
    td_jsonl_status status = TD_JSONL_FAILED;
    td_err bad = {0};
    while (reader && bad.code == TD_OK &&
           (status = td_jsonl_read(reader, &line, err)) == TD_JSONL_LINE) {
        char name[REPORT_NAME_BYTES];
        snprintf(name, sizeof name, "%.4095s:%llu", path, (unsigned long long)line.number);
        on_line(user, &line, name, &bad);
    }
    bool is_torn = bad.code == TD_E_DATA && line.number > 1 && ends_within_line(path) &&
                   td_jsonl_read(reader, &line, err) == TD_JSONL_END;
    if (is_torn && r)
        td_report_note(r, "The last line is cut off, as a run that was killed leaves it.");
    else if (!is_torn && bad.code != TD_OK)
        td_err_set(err, bad.code, "%s", bad.message);
    td_jsonl_reader_close(&reader);
    return err->code == TD_OK && (is_torn || status == TD_JSONL_END);
}
