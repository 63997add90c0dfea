#include "cli/job_show.h"

#include "base/json_writer.h"
#include "base/signals.h"

#include <stdio.h>
#include <unistd.h>

#define WATCH_US 1000000u

typedef struct {
    td_json_writer *json; /* NULL: a table */
    uint32_t n_lines;     /* printed, to be drawn over */
} showing;

static bool show_worker(void *user, const td_job_worker_status *w, td_err *err)
{
    (void)err;
    showing *s = user;
    double per_s = w->seconds > 0 ? (double)w->n_tokens / w->seconds : 0;
    if (!s->json) {
        printf("  %-40s %8llu ok %6llu failed %6llu held %10.1f tokens/s  %s %.0f s ago\n", w->name,
               (unsigned long long)w->n_ok, (unsigned long long)w->n_error,
               (unsigned long long)w->n_held, per_s, w->has_left ? "left" : "seen", w->seen_s);
        s->n_lines++;
        return true;
    }
    td_json_begin_object(s->json);
    td_json_put_string(s->json, "name", w->name);
    td_json_put_u64(s->json, "ok", w->n_ok);
    td_json_put_u64(s->json, "failed", w->n_error);
    td_json_put_u64(s->json, "held", w->n_held);
    td_json_put_u64(s->json, "tokens", w->n_tokens);
    td_json_put_double(s->json, "tokens_per_s", per_s);
    td_json_put_double(s->json, "seen_s", w->seen_s);
    td_json_put_bool(s->json, "left", w->has_left);
    td_json_put_string(s->json, "arithmetic", w->arithmetic);
    td_json_end_object(s->json);
    return true;
}

static void show_table(showing *s, const td_job_status *t)
{
    printf("%llu ok, %llu failed, %llu running, %llu waiting",
           (unsigned long long)t->n_lines[TD_LINE_OK],
           (unsigned long long)t->n_lines[TD_LINE_ERROR],
           (unsigned long long)t->n_lines[TD_LINE_TAKEN],
           (unsigned long long)t->n_lines[TD_LINE_WAITING]);
    if (t->n_lines[TD_LINE_CANCELLED])
        printf(", %llu cancelled", (unsigned long long)t->n_lines[TD_LINE_CANCELLED]);
    printf("; %llu tokens", (unsigned long long)t->n_tokens);
    if (t->tokens_per_s > 0 && t->seconds_left != 0)
        printf(", %.1f tokens/s", t->tokens_per_s);
    if (t->seconds_left > 0)
        printf(", %.0f:%02d:%02d left", (double)(long)(t->seconds_left / 3600),
               (int)((long)t->seconds_left / 60 % 60), (int)((long)t->seconds_left % 60));
    printf("%s\n", t->is_cancelled ? "; cancelled" : "");
    if (t->n_differences)
        printf("%llu results differ between workers of one arithmetic: a device is broken (`tandem "
               "check`)\n",
               (unsigned long long)t->n_differences);
    s->n_lines = 1 + (t->n_differences > 0);
}

static void put_status(td_json_writer *w, const td_job_status *t)
{
    static const char *const names[TD_LINE_STATES] = {"waiting", "running", "ok", "failed",
                                                      "cancelled"};
    for (int i = 0; i < TD_LINE_STATES; i++)
        td_json_put_u64(w, names[i], t->n_lines[i]);
    td_json_put_u64(w, "tokens", t->n_tokens);
    td_json_put_double(w, "tokens_per_s", t->tokens_per_s);
    td_json_write_key(w, "seconds_left");
    if (t->seconds_left >= 0)
        td_json_write_double(w, t->seconds_left);
    else
        td_json_write_null(w);
    td_json_put_u64(w, "differences", t->n_differences);
    td_json_put_bool(w, "is_cancelled", t->is_cancelled);
    td_json_write_key(w, "workers");
    td_json_begin_array(w);
}

static bool show_once(td_db *db, showing *s, td_job_status *t, td_err *err)
{
    if (!td_job_get_status(db, t, err))
        return false;
    if (!s->json) {
        for (bool is_over = isatty(STDOUT_FILENO) && s->n_lines; is_over; is_over = false)
            printf("\033[%uA\033[J", s->n_lines);
        show_table(s, t);
        return td_job_list_workers(db, show_worker, s, err);
    }
    const char *text;
    size_t n_bytes;
    td_json_begin_object(s->json);
    put_status(s->json, t);
    if (!td_job_list_workers(db, show_worker, s, err))
        return false;
    td_json_end_array(s->json);
    td_json_end_object(s->json);
    if (!td_json_writer_end(s->json, &text, &n_bytes, err))
        return false;
    printf("%s\n", text);
    return true;
}

bool td_job_show(td_db *db, bool is_json, bool is_watching, int *code, td_err *err)
{
    showing s = {0};
    td_job_status t = {0};
    if (is_json && !(s.json = td_json_writer_create(!is_watching, err)))
        return false;
    bool is_ok, is_over = false;
    while ((is_ok = show_once(db, &s, &t, err))) {
        fflush(stdout);
        is_over = t.n_lines[TD_LINE_WAITING] + t.n_lines[TD_LINE_TAKEN] == 0;
        if (!is_watching || is_over || td_signals_pending())
            break;
        usleep(WATCH_US);
    }
    *code = is_ok && t.n_lines[TD_LINE_ERROR] ? 1 : 0;
    td_json_writer_destroy(&s.json);
    return is_ok;
}
