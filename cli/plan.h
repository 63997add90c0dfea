/* Shared by the files of `tandem plan`. Private to cli/. */
#ifndef TD_CLI_PLAN_H
#define TD_CLI_PLAN_H

#include "planning/hardware.h"
#include "planning/planner.h"

/* --hardware: prints what a file's machines would do with its models. */
bool td_plan_hardware(const char *path, bool is_json, td_err *err);

/* And what the file at that path has to be compared; changes its link. */
bool td_plan_links(td_hardware *h, const char *path, td_err *err);

/* --machine: prints what the devices of a described machine can hold and where layers would go.
 * target, draft: a model of configs/hardware/models.json by its name, or a file; NULL: all of them,
 * a usual one. */
bool td_plan_machine(const char *path, const char *target, const char *draft, bool is_json,
                     td_err *err);

typedef struct {
    const char *folder;    /* --drafts */
    const char *text;      /* --text: a path; NULL: prompts of our own */
    const char *config;    /* --write-config, or NULL */
    td_plan_params params; /* without a draft */
    bool is_json;
} plan_drafts;

/* --drafts: prints the folder's drafts for the target, the best first (plan_drafts.c). *signal: of
 * one that ended it early, else 0. TD_E_UNAVAILABLE: none can be used. */
bool td_plan_drafts(const plan_drafts *p, int *signal, td_err *err);

#endif
