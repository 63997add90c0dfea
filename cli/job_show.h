/* `tandem job status`. Private to cli/. */
#ifndef TD_CLI_JOB_SHOW_H
#define TD_CLI_JOB_SHOW_H

#include "job/job.h"

/* Prints how far the job is, and its workers; is_watching: until all lines have ended. *code is 1
 * where lines are errors. */
bool td_job_show(td_db *db, bool is_json, bool is_watching, int *code, td_err *err);

#endif
