/* Plots. gnuplot is a child process of its own: the script comes from a file in memory and the
 * picture goes to one, so nothing is waited for but its end, and it has limits of time and size. */
#include "cli/report.h"

#include "base/check.h"
#include "base/mem.h"
#include "base/text.h"
#include "base/utf8.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define SVG_BYTES_MAX (4u << 20)
#define DRAW_S_MAX    60u
#define WIDTH_FIRST   (1.0 / 1024)
#define AT_MAX        1e12
#define LABEL_COLUMNS 64u

/* -- series ------------------------------------------------------------------------------------ */

plot *td_plot_create(const char *title, const char *x, const char *y, plot_style style, td_err *err)
{
    plot *p = td_alloc(1, sizeof *p, err);
    if (p) {
        p->title = title;
        p->x = x;
        p->y = y;
        p->style = style;
    }
    return p;
}

static plot_series *find_series(plot *p, const char *label)
{
    char cut[REPORT_LABEL_BYTES];
    snprintf(cut, sizeof cut, "%s", label);
    for (uint32_t i = 0; i < p->n; i++)
        if (!strcmp(p->series[i].label, cut))
            return &p->series[i];
    if (p->n == REPORT_SERIES_MAX)
        return NULL;
    plot_series *s = &p->series[p->n++];
    memcpy(s->label, cut, sizeof cut);
    s->style = p->style;
    return s;
}

double td_plot_find_name(plot *p, const char *name)
{
    char cut[REPORT_LABEL_BYTES];
    snprintf(cut, sizeof cut, "%s", name);
    uint32_t i = 0;
    while (i < p->n_names && strcmp(p->names[i], cut) != 0)
        i++;
    if (i == REPORT_NAMES_MAX)
        return (double)NAN;
    if (i == p->n_names)
        memcpy(p->names[p->n_names++], cut, sizeof cut);
    return i + 1;
}

void td_plot_add(plot *p, const char *label, double x, double y)
{
    if (!isfinite(x) || !isfinite(y))
        return;
    plot_series *s = find_series(p, label);
    for (uint32_t i = 0; s && i < s->n && s->style != PLOT_POINTS; i++)
        if (s->points[i].x == x) {
            s->points[i].y += (y - s->points[i].y) / ++s->points[i].n_means;
            return;
        }
    if (!s || s->n == REPORT_POINTS_MAX) {
        p->n_left_out++;
        return;
    }
    s->points[s->n].x = x;
    s->points[s->n].y = y;
    s->points[s->n++].n_means = 1;
}

/* -- gnuplot ----------------------------------------------------------------------------------- */

/* Between single quotes nothing is special to gnuplot but these, and line breaks; and only
 * characters that mean nothing anywhere are let through. */
static void write_label(FILE *out, const char *label)
{
    size_t n = strlen(label), columns = 0;
    fputc('\'', out);
    for (size_t i = 0; i < n && columns < LABEL_COLUMNS; columns++) {
        uint32_t c;
        size_t n_bytes = td_utf8_next(label + i, n - i, &c);
        bool is_plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
                        (c >= 'A' && c <= 'Z') ||
                        (c < 0x80 && c && strchr(" .:+-=,/()[]%#_", (int)c));
        bool is_letter = c >= 0xc0 && c < 0x2000; /* of the scripts that have no own signs here */
        if (is_plain || is_letter)
            fwrite(label + i, 1, n_bytes, out);
        else
            fputc('?', out);
        i += n_bytes;
    }
    fputc('\'', out);
}

static void write_script(FILE *out, const plot *p)
{
    static const char *const styles[] = {"linespoints pointtype 7 pointsize 0.4", "steps",
                                         "boxes fill solid 0.6",
                                         "points pointtype 7 pointsize 0.5"};
    static const char *const colours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                          "#e69f00", "#56b4e9", "#666666", "#8b4513"};
    char number[TD_TEXT_DOUBLE_MAX];
    uint32_t n_columns = 8; /* of a label at least */
    for (uint32_t i = 0; i < p->n; i++)
        n_columns = td_max_u32(n_columns, (uint32_t)strlen(p->series[i].label));
    uint32_t n_keys = td_max_u32(1, 90 / (td_min_u32(n_columns, LABEL_COLUMNS) + 8)); /* in a row */
    fprintf(out, "set terminal svg size 760,%u dynamic noenhanced font 'sans-serif,12'\n",
            320 + 20 * td_div_up(p->n, n_keys));
    fputs("set encoding utf8\nset border 3\nset tics nomirror\nset grid ytics lc rgb '#dddddd'\n"
          "set key outside below horizontal noenhanced\n",
          out);
    for (size_t i = 0; i < TD_COUNT(colours); i++)
        fprintf(out, "set linetype %zu lc rgb '%s' lw 1.5\n", i + 1, colours[i]);
    fprintf(out, "set linetype cycle %zu\nset xlabel '%s' offset 0,0.4\nset ylabel '%s'\n",
            TD_COUNT(colours), p->x, p->y);
    fputs(p->is_share ? "set yrange [0:1]\n" : "set yrange [0:*]\n", out);
    fputs(p->style == PLOT_BARS ? "set xtics 1\nset autoscale xfix\nset offsets 0.2, 0.2, 0, 0\n"
                                : "set xrange [0:*]\n",
          out);
    for (uint32_t i = 0; i < p->n_names; i++) {
        fputs(i ? ", " : p->n_names > 6 ? "set xtics rotate by -20 (" : "set xtics (", out);
        write_label(out, p->names[i]);
        fprintf(out, " %u%s", i + 1, i + 1 == p->n_names ? ")\n" : "");
    }
    if (p->n == 1)
        fputs("unset key\n", out);
    for (uint32_t i = 0; i < p->n; i++) {
        fprintf(out, "$s%u << END\n", i);
        for (uint32_t k = 0; k < p->series[i].n; k++) {
            td_text_write_double(p->series[i].points[k].x, number);
            fprintf(out, "%s ", number);
            td_text_write_double(p->series[i].points[k].y, number);
            fprintf(out, "%s\n", number);
        }
        fputs("END\n", out);
    }
    double width = 0.8 / (p->n_names ? p->n : 1); /* bars of one name stand side by side */
    fprintf(out, "set boxwidth %.6f\n", width);
    for (uint32_t i = 0; i < p->n; i++) {
        double aside = p->n_names ? width * (i - (p->n - 1) / 2.0) : 0;
        fprintf(out, "%s$s%u using ($1+(%.6f)):2 with %s title ", i ? ", " : "plot ", i, aside,
                styles[p->series[i].style]);
        write_label(out, p->series[i].label);
    }
    fputc('\n', out);
}

static void limit(int resource, rlim_t most)
{
    struct rlimit old;
    if (getrlimit(resource, &old) == 0 && (old.rlim_max == RLIM_INFINITY || old.rlim_max > most))
        setrlimit(resource, &(struct rlimit){most, most});
}

/* -d: without the user's own settings. */
static bool run(const char *gnuplot, int in, int out)
{
    pid_t pid = fork();
    if (pid == 0) {
        char *const arguments[] = {"gnuplot", "-d", "-", NULL};
        char *const environment[] = {"LC_ALL=C.UTF-8", "PATH=/usr/bin:/bin", NULL};
        int nothing = open("/dev/null", O_WRONLY | O_CLOEXEC);
        limit(RLIMIT_FSIZE, SVG_BYTES_MAX);
        limit(RLIMIT_CPU, DRAW_S_MAX);
        limit(RLIMIT_CORE, 0);
        alarm(DRAW_S_MAX); /* ends it, however it hangs */
        if (dup2(in, STDIN_FILENO) >= 0 && dup2(out, STDOUT_FILENO) >= 0 &&
            dup2(nothing, STDERR_FILENO) >= 0)
            execve(gnuplot, arguments, environment);
        _exit(127);
    }
    int status = -1;
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return pid > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* The picture without the prolog of a file; false where there is none. */
static bool copy_svg(report *r, int fd)
{
    struct stat st;
    if (fstat(fd, &st) != 0 || st.st_size <= 0 || st.st_size > SVG_BYTES_MAX)
        return false;
    char *svg = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (svg == MAP_FAILED)
        return false;
    size_t n = (size_t)st.st_size;
    const char *begin = memmem(svg, n, "<svg", 4), *end = memmem(svg, n, "</svg>", 6);
    bool is_ok = begin && end > begin && !memmem(svg, n, "<script", 7);
    if (is_ok)
        fwrite(begin, 1, (size_t)(end - begin) + 6, r->page);
    munmap(svg, n);
    return is_ok;
}

static bool draw(report *r, const plot *p)
{
    int in = memfd_create("script", MFD_CLOEXEC), out = memfd_create("picture", MFD_CLOEXEC);
    FILE *script = in >= 0 ? fdopen(dup(in), "w") : NULL;
    bool is_ok = script && out >= 0;
    if (is_ok)
        write_script(script, p);
    if (script)
        is_ok &= fclose(script) == 0;
    is_ok = is_ok && lseek(in, 0, SEEK_SET) == 0 && run(r->gnuplot, in, out) && copy_svg(r, out);
    if (in >= 0)
        close(in);
    if (out >= 0)
        close(out);
    return is_ok;
}

/* -- the figure -------------------------------------------------------------------------------- */

static void write_points(report *r, const plot *p)
{
    char heads[256];
    snprintf(heads, sizeof heads, "%s|%s%s", p->x, p->n > 1 ? "of|" : "", p->y);
    td_report_begin_table(r, NULL, heads);
    for (uint32_t i = 0; i < p->n; i++)
        for (uint32_t k = 0; k < p->series[i].n; k++) {
            td_report_begin_row(r);
            if (p->n_names)
                td_report_cell(r, p->names[(uint32_t)p->series[i].points[k].x - 1]);
            else
                td_report_number(r, p->series[i].points[k].x);
            if (p->n > 1)
                td_report_cell(r, p->series[i].label);
            td_report_number(r, p->series[i].points[k].y);
            td_report_end_row(r);
        }
    td_report_end_table(r);
}

/* Seconds, in a unit that leaves numbers of a few digits. */
static void scale_time(plot *p)
{
    static const struct {
        const char *name;
        double s;
    } units[] = {{"days", 86400}, {"h", 3600}, {"min", 60}};
    double longest = 0;
    for (uint32_t i = 0; i < p->n; i++)
        for (uint32_t k = 0; k < p->series[i].n; k++)
            longest = fmax(longest, p->series[i].points[k].x);
    size_t i_unit = 0;
    while (i_unit < TD_COUNT(units) && longest < 5 * units[i_unit].s)
        i_unit++;
    if (i_unit == TD_COUNT(units))
        return;
    p->x = units[i_unit].name;
    for (uint32_t i = 0; i < p->n; i++)
        for (uint32_t k = 0; k < p->series[i].n; k++)
            p->series[i].points[k].x /= units[i_unit].s;
}

void td_plot_write(report *r, plot **plot_of)
{
    plot *p = *plot_of;
    if (p && p->n) {
        if (!strcmp(p->x, "s"))
            scale_time(p);
        fprintf(r->page, "<figure><figcaption>%s</figcaption>\n", p->title);
        bool is_drawn = r->gnuplot && draw(r, p);
        if (r->gnuplot && !is_drawn)
            td_report_note(r, "%s could not draw this", r->gnuplot);
        if (p->n_left_out)
            td_report_note(r, "%llu points are left out; shown: up to %u series of %u",
                           (unsigned long long)p->n_left_out, REPORT_SERIES_MAX, REPORT_POINTS_MAX);
        fprintf(r->page, "<details%s><summary>Figures</summary>\n", is_drawn ? "" : " open");
        write_points(r, p);
        fputs("</details></figure>\n", r->page);
    }
    td_free(p);
    *plot_of = NULL;
}

/* -- over time --------------------------------------------------------------------------------- */

void td_timeline_widen(timeline *t, double width)
{
    t->width = t->width > 0 ? t->width : WIDTH_FIRST;
    for (; t->width < width; t->width *= 2)
        for (uint32_t i = 0; i < REPORT_BINS; i++) {
            bool is_there = 2 * i < REPORT_BINS;
            t->sum[i] = is_there ? t->sum[2 * i] + t->sum[2 * i + 1] : 0;
            t->n[i] = is_there ? t->n[2 * i] + t->n[2 * i + 1] : 0;
        }
}

static uint32_t bin_of(timeline *t, double at)
{
    td_timeline_widen(t, WIDTH_FIRST);
    while (at >= t->width * REPORT_BINS)
        td_timeline_widen(t, 2 * t->width);
    return (uint32_t)(at / t->width);
}

void td_timeline_add(timeline *t, double at, double value)
{
    if (!(at >= 0 && at <= AT_MAX))
        return;
    uint32_t i = bin_of(t, at);
    t->last = fmax(t->last, at);
    t->sum[i] += value;
    t->n[i]++;
}

void td_timeline_add_span(timeline *t, double from, double to)
{
    if (!(from >= 0 && to <= AT_MAX && from < to))
        return;
    uint32_t last = bin_of(t, to);
    t->last = fmax(t->last, to);
    for (uint32_t i = bin_of(t, from); i <= last; i++) {
        double begin = fmax(from, i * t->width), end = fmin(to, (i + 1) * t->width);
        t->sum[i] += fmax(end - begin, 0);
        t->n[i]++;
    }
}

/* The last bin is hardly ever full: a rate takes it together with the one before. */
void td_timeline_plot(plot *p, const char *label, const timeline *t, timeline_view view)
{
    uint32_t n = REPORT_BINS;
    double sum = 0;
    while (n && t->n[n - 1] == 0)
        n--;
    uint32_t n_full = view == TIMELINE_RATE ? n - (n >= 2 ? 2 : n) : n;
    if (n && view == TIMELINE_TOTAL)
        td_plot_add(p, label, 0, 0);
    for (uint32_t i = 0; i < n_full; i++) {
        sum += t->sum[i];
        if (view == TIMELINE_TOTAL)
            td_plot_add(p, label, (i + 1) * t->width, sum);
        else if (view == TIMELINE_RATE)
            td_plot_add(p, label, (i + 0.5) * t->width, t->sum[i] / t->width);
        else if (t->n[i] > 0)
            td_plot_add(p, label, (i + 0.5) * t->width + 0.5, t->sum[i] / t->n[i]);
    }
    sum = 0;
    for (uint32_t i = n_full; i < n; i++)
        sum += t->sum[i];
    double begin = n_full * t->width;
    if (n_full < n && t->last > begin)
        td_plot_add(p, label, (begin + t->last) / 2, sum / (t->last - begin));
}
