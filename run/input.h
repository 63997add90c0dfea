/* Prompts on their way in, on a thread of their own: lines are read as they come, looked up in the
 * results so far, and turned into tokens; the event loop takes what is ready. So neither a program
 * that is slow to write its lines nor a long text to tokenize ever holds up what is generated.
 *
 *     poll(td_input_fd(in)) ... while (td_input_take(in, &prompt)) ...
 *
 * A few prompts are read ahead. A signal that asks for a drain ends the reading. Borrows all that
 * it is given; while it lives, it alone uses `prompts` and claims results. One thread takes. */
#ifndef TD_RUN_INPUT_H
#define TD_RUN_INPUT_H

#include "run/results.h"

#define TD_INPUT_AHEAD_MAX   64u        /* prompts that are ready */
#define TD_INPUT_AHEAD_BYTES (4u << 20) /* of their lines, after which no other is read */

typedef struct td_input td_input;

typedef struct {
    td_prompts *prompts;
    td_results *results;
    const td_model *model;
    const td_chat *chat;
    const char *date; /* chat_input.h */
    const td_run_params *run;
    const char *config_sha;
} td_input_params;

typedef struct {
    uint64_t n_skipped;    /* their results were there already; of them */
    uint64_t n_old_errors; /* errors */
} td_input_counts;

/* Errors: TD_E_IO, TD_E_NOMEM. */
td_input *td_input_create(const td_input_params *params, td_err *err);
void td_input_destroy(td_input **input);

/* Readable when there is something to take, and until td_input_take said that there is nothing. */
int td_input_fd(const td_input *input);
/* The next prompt, with its tokens or with `err` set (td_prompt_destroy); false when none is ready.
 */
bool td_input_take(td_input *input, td_prompt **prompt);
/* All has been taken, and *err tells what ended it before its end, if something did: TD_E_IO;
 * TD_E_DATA for a result of another input or configuration; TD_E_NOMEM. */
bool td_input_is_done(td_input *input, td_err *err);
td_input_counts td_input_get_counts(td_input *input);

#endif
