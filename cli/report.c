/* tandem report: one page, whole in itself, of whatever tandem has written. What an input is tells
 * its content: the character it begins with, and the keys that its kind always has. */
#include "cli/report.h"
#include "cli/commands.h"
#include "cli/options.h"

#include "base/check.h"
#include "base/files.h"
#include "base/io.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/text.h"
#include "job/db.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define INPUTS_MAX 64u
#define HEAD_BYTES (64u << 10) /* of a file, that its kind is told from */

typedef struct {
    const char *out;
} fields;

static const option options[] = {
    {"--out", NULL, OPT_WRITE, offsetof(fields, out), 0, 0, "FILE.html",
     "the page (required); - for stdout"},
};
static const command_help help = {
    "report", "tandem report FILE... --out FILE.html",
    "A page of figures and plots, for any browser, without scripts and whatever lies elsewhere. A "
    "FILE is what `tandem generate` writes (results, --stats, --trace), what `tandem bench` prints "
    "(--json, --format json, jsonl or csv), the CSV or JSON of a sweep (scripts/sweep.sh), or the "
    "URL of a job. gnuplot draws the plots; where it is not installed there are tables alone.",
    options, TD_COUNT(options)};

/* A kind that is a part of another comes behind it. */
static const struct kind {
    const char *name;
    char begins;          /* with it, blanks passed over; 0: whatever else */
    const char *marks[2]; /* what there is in it; of CSV in its first line */
    bool (*write)(report *r, const char *path, td_err *err);
} kinds[] = {
    {"stats of a run", '{', {"\"totals\"", "\"config_sha\""}, td_report_stats},
    {"trace of a run", '[', {"\"ph\"", "\"tid\""}, td_report_trace},
    {"results", '{', {"\"id\"", "\"status\""}, td_report_results},
    {"bench", '{', {"\"model_filename\"", "\"test\""}, td_report_record_lines},
    {"bench", '[', {"\"model_filename\"", "\"test\""}, td_report_records},
    {"sweep", '[', {"\"repeat\"", "\"status\""}, td_report_records},
    {"sweep", 0, {"repeat", "status"}, td_report_csv},
    {"bench", 0, {"model_filename", "test"}, td_report_csv},
    {"job", 'S', {"SQLite format 3", "SQLite format 3"}, td_report_job},
};
static const struct kind *const job = &kinds[TD_COUNT(kinds) - 1];
static const char allowed[] =
    "allowed: a job's URL (sqlite:FILE, postgresql://..), results, --stats or --trace of `tandem "
    "generate`, --json or --format json, jsonl, csv of `tandem bench`, the CSV or JSON of a sweep";

/* -- kinds ------------------------------------------------------------------------------------- */

static bool read_head(const char *path, char head[HEAD_BYTES + 1], size_t *n, td_err *err)
{
    struct stat st;
    int fd = td_io_open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0);
    if (fd < 0)
        return td_err_set(err, TD_E_IO, "%s: cannot be opened: %s", path, strerror(errno));
    bool is_ok = fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
    if (!is_ok)
        td_err_set(err, TD_E_DATA, "%s: is no regular file; %s", path, allowed);
    *n = 0;
    for (ssize_t got = 1; is_ok && got > 0 && *n<HEAD_BYTES; *n += got> 0 ? (size_t)got : 0) {
        got = td_io_read(fd, head + *n, HEAD_BYTES - *n);
        if (got < 0)
            is_ok = td_err_set(err, TD_E_IO, "%s: cannot be read: %s", path, strerror(errno));
    }
    head[*n] = 0;
    close(fd);
    return is_ok;
}

static const struct kind *find_kind(const char *path, td_err *err)
{
    size_t n = 0;
    char *head = td_alloc(HEAD_BYTES + 1, 1, err);
    const struct kind *found = NULL;
    if (head && read_head(path, head, &n, err)) {
        const char *at = head + (strncmp(head, "\xef\xbb\xbf", 3) ? 0 : 3);
        at += strspn(at, " \t\r\n");
        const char *end = at + strcspn(at, "\r\n");
        for (size_t i = 0; i < TD_COUNT(kinds) && !found; i++) {
            const char *a = strstr(at, kinds[i].marks[0]), *b = strstr(at, kinds[i].marks[1]);
            bool is_it = a && b && (kinds[i].begins ? *at == kinds[i].begins : a < end && b < end);
            found = is_it ? &kinds[i] : NULL;
        }
        if (!found && n == 0)
            td_err_set(err, TD_E_DATA, "%s: is empty; %s", path, allowed);
        else if (!found)
            td_err_set(err, TD_E_DATA, "%s: begins %s, which is nothing that tandem writes; %s",
                       path, td_text_quote(head, n < 40 ? n : 40).text, allowed);
    }
    td_free(head);
    return found;
}

/* The program in PATH, where its folders are named from the root. */
static const char *find_gnuplot(char path[PATH_MAX])
{
    const char *at = getenv("PATH");
    for (size_t n; at && *at; at += n + (at[n] == ':')) {
        struct stat st;
        n = strcspn(at, ":");
        if (*at == '/' && snprintf(path, PATH_MAX, "%.*s/gnuplot", (int)n, at) < PATH_MAX &&
            stat(path, &st) == 0 && S_ISREG(st.st_mode) && access(path, X_OK) == 0)
            return path;
    }
    return NULL;
}

/* -- the page ---------------------------------------------------------------------------------- */

/* The policy forbids what a browser might be talked into loading or running. */
static const char page_head[] =
    "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
    "'unsafe-inline'\">\n<meta name=\"viewport\" content=\"width=device-width\">\n"
    "<title>tandem report</title>\n<style>\n"
    "body{font:15px/1.45 sans-serif;color:#222;max-width:1000px;margin:1.5em auto;padding:0 1em}\n"
    "h1{font-size:1.5em}h2{font-size:1.2em;border-top:2px solid #ccc;padding-top:.8em;"
    "margin-top:2em;overflow-wrap:anywhere}\n"
    ".table{overflow-x:auto;margin:.8em 0}table{border-collapse:collapse;font-size:13px}\n"
    "caption{text-align:left;white-space:nowrap;font-weight:bold;font-size:15px;padding:.2em 0}\n"
    "td,th{border-bottom:1px solid #ddd;padding:.15em .7em .15em 0;text-align:left;"
    "vertical-align:top;max-width:32em;overflow-wrap:break-word}th{white-space:nowrap}\n"
    "td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}\n"
    "figure{margin:1.2em 0}figcaption{font-weight:bold}figure svg{display:block;width:100%;"
    "max-width:760px;height:auto;pointer-events:none}\n"
    "details{font-size:13px;color:#555}\n</style>\n</head>\n<body>\n<h1>tandem report</h1>\n";

static void begin_page(report *r, char **inputs, uint32_t n)
{
    char date[64] = "";
    time_t now = time(NULL);
    struct tm t;
    if (localtime_r(&now, &t))
        strftime(date, sizeof date, "%Y-%m-%d %H:%M %Z", &t);
    fputs(page_head, r->page);
    fprintf(r->page, "<p>By tandem %s, %s.</p>\n", TD_VERSION, date);
    if (!r->gnuplot)
        fputs("<p>The plots are missing, their figures are not: gnuplot is not installed here "
              "(Debian, Ubuntu: gnuplot-nox; Fedora, Arch: gnuplot).</p>\n",
              r->page);
    for (uint32_t i = 0; n > 1 && i < n; i++) {
        fprintf(r->page, "%s<a href=\"#part%u\">", i ? "<br>\n" : "<p>", i + 1);
        td_report_text(r, inputs[i]);
        fputs(i + 1 < n ? "</a>" : "</a></p>\n", r->page);
    }
}

static bool write_part(report *r, const char *path, uint32_t number, td_err *err)
{
    char url[PATH_MAX + 8];
    const struct kind *kind = td_db_is_url(path) ? job : find_kind(path, err);
    if (!kind)
        return false;
    fprintf(r->page, "<section id=\"part%u\">\n<h2>%s: ", number, kind->name);
    td_report_text(r, path);
    fputs("</h2>\n", r->page);
    snprintf(url, sizeof url, "%s%s", kind == job && !td_db_is_url(path) ? "sqlite:" : "", path);
    if (!kind->write(r, url, err)) /* a URL may hold a password */
        return td_db_is_url(path) ? false : td_err_prepend(err, "%s", path);
    fputs("</section>\n", r->page);
    return true;
}

static bool write_page(const fields *f, char **inputs, uint32_t n, td_err *err)
{
    char *text = NULL, gnuplot[PATH_MAX];
    size_t n_bytes = 0;
    report r = {.page = open_memstream(&text, &n_bytes), .gnuplot = find_gnuplot(gnuplot)};
    if (!r.page)
        return td_err_set(err, TD_E_NOMEM, "no memory for the page");
    begin_page(&r, inputs, n);
    bool is_ok = true;
    for (uint32_t i = 0; is_ok && i < n; i++)
        is_ok = write_part(&r, inputs[i], i + 1, err);
    fputs("</body>\n</html>\n", r.page);
    bool has_failed = ferror(r.page);
    if ((fclose(r.page) != 0 || has_failed) && is_ok)
        is_ok = td_err_set(err, TD_E_NOMEM, "no memory for the page");
    if (is_ok && strcmp(f->out, "-") == 0)
        fwrite(text, 1, n_bytes, stdout); /* main tells of a failure */
    else if (is_ok)
        is_ok = td_io_replace_file(f->out, text, n_bytes, err);
    free(text);
    if (is_ok && !r.gnuplot)
        td_log_warn("gnuplot is not installed, so the page has tables alone; Debian: gnuplot-nox");
    return is_ok;
}

/* -- the command ------------------------------------------------------------------------------- */

static bool check_files(const fields *f, char **inputs, uint32_t n, td_err *err)
{
    td_file_use uses[INPUTS_MAX + 1];
    for (uint32_t i = 0; i < n; i++) {
        const char *path = inputs[i];
        path = td_db_is_url(path) ? td_db_file(path) : path;
        uses[i] = (td_file_use){.name = "the file", .path = path};
    }
    uses[n] = (td_file_use){.name = "--out", .path = f->out, .is_written = true};
    return td_files_check(uses, n + 1, err) && td_files_check_writable(f->out, err);
}

/* Files come before and behind the options. */
int td_command_report(int argc, char **argv, td_err *err)
{
    fields f = {0};
    char *inputs[INPUTS_MAX], *flags[INPUTS_MAX];
    uint32_t n = 0, n_flags = 0;
    bool is_help = false;
    for (int i = 0; i < argc; i++) {
        bool is_flag = argv[i][0] == '-' && argv[i][1], has_value = !strcmp(argv[i], "--out");
        for (int k = 0; k < 1 + (is_flag && has_value && i + 1 < argc); k++) {
            if ((is_flag ? n_flags : n) == INPUTS_MAX) {
                td_err_set(err, TD_E_USAGE, "more than %u files; at most as many are allowed",
                           INPUTS_MAX);
                return 0;
            }
            *(is_flag ? &flags[n_flags++] : &inputs[n++]) = argv[i + k];
        }
        i += is_flag && has_value;
    }
    if (!td_options_parse(&help, (int)n_flags, flags, &f, &is_help, err))
        return 0;
    if (is_help)
        td_options_print_help(&help);
    else if (n == 0 || !f.out)
        td_err_set(err, TD_E_USAGE, "%s; usage: %s", n ? "--out is missing" : "no file is named",
                   help.usage);
    else if (check_files(&f, inputs, n, err))
        write_page(&f, inputs, n, err);
    return 0;
}
