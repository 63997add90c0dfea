/* Results that wait for a database which cannot be reached, on the disk: in the cache folder
 * (td_io_cache_path), a file for each worker of this machine, locked while that runs. What a worker
 * left there, the next one of the same job hands in. Lost files cost time, not lines.
 *
 * One thread. Errors: those of base/jsonl.h. */
#ifndef TD_JOB_SPOOL_H
#define TD_JOB_SPOOL_H

#include "job/job.h"

#define TD_SPOOL_FILES_MAX 64u /* workers of one job on one machine that keep one */

typedef struct td_spool td_spool;

/* A result that was kept, valid in the call. */
typedef bool (*td_spool_on_result)(void *user, const td_job_result *result, td_err *err);

/* Nothing is opened before it is needed. */
td_spool *td_spool_create(const char *url, td_err *err);
/* Everything that no living worker holds is handed over and taken off the disk. */
bool td_spool_adopt(td_spool *s, td_spool_on_result on_result, void *user, td_err *err);
bool td_spool_add(td_spool *s, const td_job_result *result, td_err *err);
bool td_spool_is_empty(const td_spool *s);
const char *td_spool_path(const td_spool *s);
/* All that was added has been handed in. */
void td_spool_clear(td_spool *s);
/* What is in it stays. */
void td_spool_destroy(td_spool **s);

#endif
