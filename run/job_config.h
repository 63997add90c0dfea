/* What a job says of all its lines: what decides their texts beside themselves, as it was when the
 * job was made, so that every worker gives the same. JSON in the database; a worker's own settings
 * say where and how fast. Private to run/ and cli/. One thread. */
#ifndef TD_RUN_JOB_CONFIG_H
#define TD_RUN_JOB_CONFIG_H

#include "base/json.h"
#include "run/run.h"

/* From n_predict, sampling, seed, ignore_eos and stops; date: the day that chat templates are told.
 * *text to be freed by td_free. */
bool td_job_config_write(const td_run_params *params, const char *date, char **text, td_err *err);
/* Into the same params, which must not say otherwise already (TD_E_USAGE). Stops and *date point
 * into *document. */
bool td_job_config_read(const char *text, td_run_params *params, const char **date,
                        td_json **document, td_err *err);

#endif
