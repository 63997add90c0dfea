/* Where a run's layers and its draft go: as the params say, as the results file that is resumed has
 * it, or as is fastest by measured times (planning/planner.h). Private to run/. */
#ifndef TD_RUN_RUN_PLACEMENT_H
#define TD_RUN_RUN_PLACEMENT_H

#include "planning/planner.h"
#include "run/run.h"
#include "target/target.h"

#define TD_PLACEMENT_BYTES (TD_STAGES_MAX * (TD_PLAN_SPEC_MAX + 3u) + TD_PLACE_BYTES)

typedef struct {
    const td_model
        *head; /* set before: the last layers shall have it (td_layout_params); or NULL */
    td_plan plan;
    char specs[TD_STAGES_MAX][TD_PLAN_SPEC_MAX]; /* what params->specs point to afterwards */
    char place[TD_PLACE_BYTES]; /* what params->place points to, where a record says it */
    bool is_planned;
} td_run_placement;

/* is_default: the user named no devices, so some may be left out. Fills in params->specs and
 * draft_spec where they were left open. recorded: what an earlier run wrote
 * (td_run_placement_write), used if its devices are among those of the params; or NULL. */
bool td_run_placement_choose(td_run_placement *p, td_run_params *params, const td_model *model,
                             bool is_default, const char *recorded, td_err *err);
/* Tokens/s predicted for the placement chosen: of a stream while it generates, of a batch with its
 * prompts. is_planned only. */
double td_run_placement_expected(const td_run_placement *p, td_use use);
/* "host:1@0-11 + vulkan:0@12-23", "host:1@0-23 with experts=20,12 on host:1 + host:1" */
void td_run_placement_write(const td_target *target, char *out, size_t n_bytes);
/* Experts that were dealt by measured times are dealt so whenever the target is loaded again. */
void td_run_placement_keep(td_run_placement *p, const td_target *target, td_run_params *params);

#endif
