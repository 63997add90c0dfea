#include "run/show.h"

#include "base/log.h"
#include "base/mem.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define REDRAW_US    200000u
#define COLOUR_DRAFT "\x1b[32m" /* drafted and accepted */
#define COLOUR_OFF   "\x1b[0m"

struct td_show {
    const td_run_params *params;
    const td_tokenizer *tokenizer;
    uint64_t n_lines, drawn_us, start_us;
    bool is_text;     /* one prompt, to stdout */
    bool is_streamed; /* as it grows; stop strings are only known afterwards */
    bool is_coloured, is_in_colour;
    td_detokenizer detokenizer;
};

td_show *td_show_create(const td_run_params *params, const td_tokenizer *tokenizer,
                        uint64_t n_lines, td_err *err)
{
    td_show *s = td_alloc(1, sizeof *s, err);
    if (!s)
        return NULL;
    s->params = params;
    s->tokenizer = tokenizer;
    s->n_lines = n_lines;
    s->is_text = !params->in_path && !params->out_path && !params->job;
    s->is_streamed = s->is_text && !params->n_stops;
    s->is_coloured = s->is_streamed && (params->is_marked || isatty(STDOUT_FILENO));
    s->detokenizer.is_begun = true; /* the text goes on from the prompt: its first space counts */
    return s;
}

void td_show_destroy(td_show **s)
{
    td_free(*s);
    *s = NULL;
}

void td_show_begin(td_show *s, const char *prompt)
{
    if (!s->is_text)
        return;
    fputs(prompt, stdout);
    fflush(stdout);
}

static void set_colour(td_show *s, bool is_on)
{
    if (!s->is_coloured || is_on == s->is_in_colour)
        return;
    fputs(is_on ? COLOUR_DRAFT : COLOUR_OFF, stdout);
    s->is_in_colour = is_on;
}

void td_show_tokens(td_show *s, const uint32_t *ids, const bool *is_draft, uint32_t n)
{
    if (!s->is_streamed)
        return;
    char text[3 * TD_TOKEN_MAX + 4];
    size_t n_text;
    for (uint32_t i = 0; i < n; i++) {
        td_detokenize(&s->detokenizer, s->tokenizer, ids[i], text, sizeof text, &n_text);
        set_colour(s, is_draft[i]);
        fwrite(text, 1, n_text, stdout);
    }
    set_colour(s, false);
    fflush(stdout);
}

void td_show_finish(td_show *s, const td_sequence_info *info)
{
    if (!s->is_text)
        return;
    char text[16];
    size_t n_text = 0;
    if (s->is_streamed) {
        td_detokenize_end(&s->detokenizer, text, sizeof text, &n_text);
        fwrite(text, 1, n_text, stdout);
    } else {
        fwrite(info->text, 1, info->n_text, stdout);
    }
    fputc('\n', stdout);
    fflush(stdout);
}

void td_show_error(td_show *s, const char *id, const char *message)
{
    (void)s;
    td_log_error("%s: %s", id, message);
}

void td_show_progress(td_show *s, const td_run_totals *t, uint64_t now_us)
{
    if (!s->start_us)
        s->start_us = now_us;
    if (s->is_text || now_us - s->drawn_us < REDRAW_US)
        return;
    s->drawn_us = now_us;
    double seconds = (double)(now_us - s->start_us) * 1e-6;
    uint64_t n_done = t->n_ok + t->n_error, n_seen = n_done + t->n_skipped;
    char left[64] = "";
    if (s->n_lines > n_seen && n_done) {
        double eta = seconds / (double)n_done * (double)(s->n_lines - n_seen);
        snprintf(left, sizeof left, ", %.0f s left", eta);
    }
    td_log_progress("%llu of %llu done, %llu failed, %.1f tokens/s%s", (unsigned long long)n_seen,
                    (unsigned long long)s->n_lines, (unsigned long long)t->n_error,
                    seconds > 0 ? (double)t->n_tokens / seconds : 0, left);
}

void td_show_end(td_show *s)
{
    (void)s;
    td_log_progress_end();
}

bool td_show_loading(void *loading, uint64_t done, uint64_t total)
{
    td_loading *l = loading;
    uint64_t now = td_clock_now_us(&l->clock);
    if (l->drawn_us && now - l->drawn_us < REDRAW_US)
        return true;
    l->drawn_us = now;
    double seconds = (double)(now - l->start_us) * 1e-6, per_s = (double)done / (seconds + 1e-6);
    td_log_progress("loading: %.2f of %.2f GB, %.2f GB/s, %.0f s left", (double)done * 1e-9,
                    (double)total * 1e-9, per_s * 1e-9,
                    per_s > 0 ? (double)(total - done) / per_s : 0);
    return true;
}
