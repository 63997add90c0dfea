/* `tandem report`: one page of figures and plots from what tandem has written. Private to cli/.
 *
 * A kind of input (report.c has the table) writes its part with the calls below: tables, and plots
 * that gnuplot draws where there is one. Whatever comes from a file goes through td_report_text,
 * which escapes it; what gnuplot is given is our own words, numbers, and labels of harmless
 * characters.
 *
 * Writing does not fail: a lack of memory shows when the page is closed. One thread. */
#ifndef TD_CLI_REPORT_H
#define TD_CLI_REPORT_H

#include "base/err.h"
#include "base/json.h"
#include "base/jsonl.h"

#include <stdint.h>
#include <stdio.h>

#define REPORT_FILE_MAX    (16u << 20) /* bytes of a file that is read as a whole */
#define REPORT_TEXT_MAX    400u        /* bytes of a text from outside that are shown */
#define REPORT_LABEL_BYTES 128u
#define REPORT_SERIES_MAX  20u
#define REPORT_POINTS_MAX  2048u /* of a series */
#define REPORT_NAMES_MAX   24u
#define REPORT_BINS        64u
#define REPORT_ROWS_MAX    200u /* of a table that has one for each line of a file */

typedef struct {
    FILE *page;
    const char *gnuplot; /* its path; NULL: there is none, and plots are tables alone */
} report;

/* -- the page (report_page.c) -- */

void td_report_text(report *r, const char *text); /* NULL: nothing */
void td_report_heading(report *r, const char *text);
/* A paragraph; its arguments may come from outside. */
void td_report_note(report *r, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* heads: "a|b|c"; NULL: no row of them. */
void td_report_begin_table(report *r, const char *caption, const char *heads);
void td_report_begin_row(report *r);
void td_report_head(report *r, const char *text);
void td_report_cell(report *r, const char *text); /* a number is set as one */
void td_report_number(report *r, double number);
void td_report_end_row(report *r);
void td_report_end_table(report *r);
/* A row of a name and its figure. */
void td_report_figure(report *r, const char *name, double figure);

/* Members of an object that are no lists and no objects, as a table. */
void td_report_object(report *r, const char *caption, const td_json_object *object);
/* A list of such objects, the columns being the first one's keys. */
bool td_report_list(report *r, const char *caption, const td_json_object *object, const char *key,
                    td_err *err);

/* -- lines (report_page.c) -- */

/* name: "FILE:17". False with err set ends the reading. */
typedef bool (*td_report_on_line)(void *user, const td_jsonl_line *line, const char *name,
                                  td_err *err);
/* A last line that is torn, as a run that was killed leaves it, is left out and told of; r NULL:
 * not told. */
bool td_report_read_lines(report *r, const char *path, size_t line_max, td_report_on_line on_line,
                          void *user, td_err *err);

/* -- plots (report_plot.c) -- */

typedef enum { PLOT_LINES, PLOT_STEPS, PLOT_BARS, PLOT_POINTS } plot_style;

typedef struct {
    char label[REPORT_LABEL_BYTES];
    plot_style style;
    uint32_t n;
    struct {
        double x, y; /* the mean of n_means */
        uint32_t n_means;
    } points[REPORT_POINTS_MAX];
} plot_series;

typedef struct {
    const char *title, *x,
        *y;              /* words of ours; x "s": shown in minutes, hours or days where long */
    plot_style style;    /* of new series */
    bool is_share;       /* y is 0..1 */
    uint64_t n_left_out; /* points for which there was no room */
    char names[REPORT_NAMES_MAX][REPORT_LABEL_BYTES]; /* of x = 1, 2, .. */
    uint32_t n_names;
    uint32_t n;
    plot_series series[REPORT_SERIES_MAX];
} plot;

plot *td_plot_create(const char *title, const char *x, const char *y, plot_style style,
                     td_err *err);
/* The x of a name, in the order in which they come; NAN where there is no room. */
double td_plot_find_name(plot *p, const char *name);
/* Points of one series and one x are averaged, but for PLOT_POINTS. */
void td_plot_add(plot *p, const char *label, double x, double y);
/* Draws it, with its figures as a table; nothing where it has no points. */
void td_plot_write(report *r, plot **p);

/* Sums over time, or over whatever goes up, without knowing how far: the bins grow by doubling. */
typedef struct {
    double width; /* of a bin; 0: nothing was added */
    double last;  /* that was added */
    double sum[REPORT_BINS], n[REPORT_BINS];
} timeline;

typedef enum {
    TIMELINE_RATE,  /* the sum in a unit of time */
    TIMELINE_MEAN,  /* of values at 0, 1, 2, ..: the first, the second */
    TIMELINE_TOTAL, /* of all so far */
} timeline_view;

/* at: 0..1e12, else it is passed over. */
void td_timeline_add(timeline *t, double at, double value);
/* 1 for each unit of [from, to). */
void td_timeline_add_span(timeline *t, double from, double to);
/* Bins as wide as `width` at least, a power of two. */
void td_timeline_widen(timeline *t, double width);
void td_timeline_plot(plot *p, const char *label, const timeline *t, timeline_view view);

/* -- kinds of input -- */

bool td_report_stats(report *r, const char *path, td_err *err);
bool td_report_trace(report *r, const char *path, td_err *err);
bool td_report_results(report *r, const char *path, td_err *err);
bool td_report_job(report *r, const char *url, td_err *err);
bool td_report_csv(report *r, const char *path, td_err *err);
bool td_report_records(report *r, const char *path, td_err *err);      /* a list of objects */
bool td_report_record_lines(report *r, const char *path, td_err *err); /* an object a line */

#endif
