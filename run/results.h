/* Results: one JSON line each, appended and kept through a crash; what is already in the file is
 * read first, so that a run goes on where it stopped. The line's fields are those of docs/cli.md.
 * One thread, but that claims may come from one other. */
#ifndef TD_RUN_RESULTS_H
#define TD_RUN_RESULTS_H

#include "run/prompts.h"

typedef struct {
    const char *id;
    bool is_ok;
    const char *text; /* raw bytes; mended to UTF-8 when written */
    size_t n_text;
    const uint32_t *tokens; /* [n_tokens] */
    uint32_t n_tokens;
    td_reason reason;
    const char *error; /* NULL when ok */
    uint32_t n_drafted, n_accepted, n_rounds, n_prompt_tokens;
    double ttft_ms, ms;
    double finished_s; /* since 1970, UTC */
    const char *input_sha, *config_sha, *model_sha;
    const char *placement; /* run_placement.h */
    const char *date;      /* that chat templates were told; "": none asked */
} td_result;

#define TD_DATE_BYTES 11 /* "2026-11-28" and a 0 */

typedef struct td_results td_results;

typedef enum {
    TD_RESULT_NONE,  /* not there: run it */
    TD_RESULT_DONE,  /* there and good: skip it */
    TD_RESULT_ERROR, /* there, an error */
    TD_RESULT_OTHER, /* there, but of another input or configuration */
    TD_RESULT_TWICE, /* the id was used by an earlier line of this run */
} td_result_state;

/* Opens (and resumes) params->out_path; without one, JSON goes to stdout if there is an in_path. Of
 * a job (else NULL) they go there, and what is known of an id is known there. */
td_results *td_results_open(const td_run_params *params, td_worker *job, td_err *err);
/* Where the layers were for the last line of the file, or NULL. */
const char *td_results_placement(const td_results *r);
/* The day of its first line that has one, or NULL. */
const char *td_results_date(const td_results *r);
/* The day that a job says. */
void td_results_set_date(td_results *r, const char *date);
/* What the run is (identity.h), for the lines to come and for messages; NULL: not said. Copied. */
void td_results_set_identity(td_results *r, const char *text);
bool td_results_close(td_results **r, td_err *err);

/* What is known of an id; *why gets a message for TD_RESULT_OTHER. Marks the id as used. */
td_result_state td_results_claim(td_results *r, const char *id, const char *input_sha,
                                 const char *config_sha, char *why, size_t why_bytes, td_err *err);
/* Hands a line over to the thread that writes (base/line_writer.h). */
bool td_results_write(td_results *r, const td_result *result, td_err *err);
/* Readable when td_results_poll has to be called; -1: never. */
int td_results_fd(const td_results *r);
/* What went wrong with lines that were handed over. */
bool td_results_poll(td_results *r, td_err *err);
/* False while too much waits to be written: no new prompt is to begin. */
bool td_results_has_room(const td_results *r);

#endif
