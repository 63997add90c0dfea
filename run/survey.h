/* What a run's prompts are like, before anything is loaded: the placement of layers goes by it.
 * Only a look at the first lines of a regular file; a pipe, or a file that cannot be read, is not
 * known. Private to run/. One thread. */
#ifndef TD_RUN_SURVEY_H
#define TD_RUN_SURVEY_H

#include "run/run.h"

typedef struct {
    uint64_t n_prompts; /* 0: not known */
    /* Tokens of a prompt and the most that it generates, in the mean of those looked at; 0: not
     * known. */
    uint32_t n_prompt, n_predict;
} td_survey;

td_survey td_survey_prompts(const td_run_params *params, const td_model *model);

#endif
