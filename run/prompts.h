/* Prompts: lines of JSON with `prompt` (and `special`) or `messages` (and what belongs to them,
 * chat_input.h) and optionally id, n, temp, top_k, top_p, min_p, repeat_penalty, seed and stop; or
 * one prompt from the command line. A line that cannot be used is a prompt with `err` set, so that
 * it becomes an error line of the results, not the end of the run. One thread. */
#ifndef TD_RUN_PROMPTS_H
#define TD_RUN_PROMPTS_H

#include "job/worker.h"
#include "run/chat_input.h"
#include "run/run.h"

#include "base/jsonl.h"

#define TD_PROMPT_ID_MAX 256u /* bytes */
#define TD_SHA_HEX       16u  /* hex digits of the hashes in results */

typedef struct {
    char id[TD_PROMPT_ID_MAX + 1];
    char line_id[40]; /* "line-<n>-<hash>": the id of a line without one */
    uint64_t line;    /* 1-based; 0: from the command line */
    char *text;       /* owned, 0-terminated; "" where there are messages */
    size_t n_text;
    bool is_special;    /* control tokens in the text are such */
    td_chat_input chat; /* no messages where there is a text */
    uint32_t n_predict;
    td_sampling_params sampling;
    uint64_t stream; /* the line's seed, else a hash of the run's seed and the id */
    uint32_t n_stops;
    char *stops[TD_STOPS_MAX];      /* owned */
    uint32_t *ids;                  /* [n_ids] owned; once it is tokenized (input.h) */
    size_t n_ids, n_bytes;          /* n_bytes: of the line */
    char input_sha[TD_SHA_HEX + 1]; /* of everything above that the line or the run set */
    td_err err;                     /* TD_OK: usable */
} td_prompt;

typedef struct td_prompts td_prompts;

/* From a job, or (NULL) params->in_path, or the one params->prompt. */
td_prompts *td_prompts_open(const td_run_params *params, td_worker *job, td_err *err);
void td_prompts_close(td_prompts **p);
/* Lines in all, if they can be counted (of a regular file, which is read for it; or one prompt);
 * 0 if not. */
uint64_t td_prompts_count(const td_prompts *p);
/* What messages are written by: a template and a day, which are part of the input's name. */
void td_prompts_set_chat(td_prompts *p, const char *identity, const char *date);
/* Once fd is readable, no line is waited for any more: the reading fails with TD_E_AGAIN. */
void td_prompts_stop_at(td_prompts *p, int fd);
/* The next prompt (to be freed by td_prompt_destroy); NULL at the end (err TD_OK) or on failure. */
td_prompt *td_prompts_next(td_prompts *p, td_err *err);
/* The line of the file that the last one came of, until the next. */
td_jsonl_line td_prompts_line(const td_prompts *p);
void td_prompt_destroy(td_prompt **prompt);

#endif
