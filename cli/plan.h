/* Shared by the files of `tandem plan`. Private to cli/. */
#ifndef TD_CLI_PLAN_H
#define TD_CLI_PLAN_H

#include "base/err.h"

/* --hardware: prints what a file's machines would do with its models. */
bool td_plan_hardware(const char *path, bool is_json, td_err *err);

#endif
