/* What a configuration file says to `tandem generate`, for commands that read the same files.
 * Private to cli/. */
#ifndef TD_CLI_GENERATE_H
#define TD_CLI_GENERATE_H

#include "cli/options.h"
#include "run/run.h"

typedef struct {
    td_run_params run; /* with its defaults; devices are below */
    option_list devices;
    option_hosts hosts;
    const char *use; /* "stream", "batch" or NULL */
    bool is_no_measure;
} td_generate_config;

/* *document must be destroyed after the last use of what was read. */
bool td_generate_read_config(const char *path, td_generate_config *out, td_json **document,
                             td_err *err);

/* What the table of TEXT_ROWS cannot say; the stops get into run. TD_E_USAGE. */
bool td_generate_check_texts(td_run_params *run, const option_list *stops, td_err *err);

#endif
