/* Shared by the files of `tandem plan`. Private to cli/. */
#ifndef TD_CLI_PLAN_H
#define TD_CLI_PLAN_H

#include "planning/hardware.h"

/* --hardware: prints what a file's machines would do with its models. */
bool td_plan_hardware(const char *path, bool is_json, td_err *err);

/* And what the file at that path has to be compared; changes its link. */
bool td_plan_links(td_hardware *h, const char *path, td_err *err);

/* --machine: prints what the devices of a described machine can hold and where layers would go.
 * target, draft: a model of configs/hardware/models.json by its name, or a file; NULL: all of them,
 * a usual one. */
bool td_plan_machine(const char *path, const char *target, const char *draft, bool is_json,
                     td_err *err);

#endif
