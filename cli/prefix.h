/* The prompts that a run keeps on the disk, as the command line names them. */
#ifndef TD_CLI_PREFIX_H
#define TD_CLI_PREFIX_H

#include "base/err.h"
#include "model/prefix_store.h"

#include <limits.h>
#include <stdint.h>

/* DIR[:SIZE], SIZE with K, M, G or T (thousands) behind it; 20G where there is none. TD_E_USAGE. */
bool td_prefix_option_read(const char *text, char path[PATH_MAX], uint64_t *n_bytes, td_err *err);
/* The folder that it names. */
td_prefix_store *td_prefix_option_open(const char *text, td_err *err);

#endif
