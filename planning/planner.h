/* Choosing a placement: opens the devices, has them measured (costs.h), and looks for the cut that
 * does most for the use in hand (speed.h). Where a device cannot be measured, or shall not be,
 * layers go by bytes alone.
 *
 *     td_plan plan;
 *     if (td_plan_choose(&(td_plan_params){.layout = params, .use = TD_FOR_STREAM}, &plan, err))
 *         ... plan.specs[0..plan.n_specs), to be given to td_layout_create or td_target_create
 *
 * SPECs with layers ("host@0-7") are kept as they are and only predicted. Devices may be left out.
 * Owns nothing that lasts; errors as td_layout_create. One thread. */
#ifndef TD_PLANNING_PLANNER_H
#define TD_PLANNING_PLANNER_H

#include "planning/far.h"
#include "planning/layout.h"
#include "planning/speed.h"

#define TD_PLAN_SPEC_MAX   144u
#define TD_PLAN_DRAFTS_MAX 8u

typedef struct {
    td_layout_params layout; /* of the target; what it says of a draft is not read */
    td_use use;
    td_measure measure;
    uint32_t n_sequences;         /* at once; 0: as many as there are slots */
    uint32_t n_prompt, n_predict; /* of a sequence; 0: 256 */
    const td_model *draft;        /* NULL: none */
    const char *const
        *draft_specs; /* where it may run; none given: any device of the target, host:1 */
    uint32_t n_draft_specs;
    uint32_t draft_max;     /* 0: 8 */
    bool is_draft_fixed;    /* always so many */
    double acceptance;      /* 0: TD_SPEED_ACCEPTANCE */
    const double *survival; /* measured (td_speed_use); NULL: it is not */
    double link_us;         /* to the draft and back; 0: two hops */
    bool uses_all;          /* no device is left out */
    const td_far *far;      /* who reaches other machines that SPECs name; NULL: nobody */
} td_plan_params;

/* Where layers of the placement chosen are. */
typedef struct {
    char spec[128]; /* "strix2/host:1", without layers */
    char name[256]; /* of the device */
    uint32_t first, last;
    uint64_t n_bytes, budget_bytes;
    uint64_t experts_bytes; /* elsewhere, on a device of that name */
    char experts_name[256];
} td_plan_part;

typedef struct {
    bool is_measured;
    uint32_t n_ctx, n_pages; /* as td_layout has them */
    double hop_us;
    /* Of the placement chosen, where it was measured: a verification of i rows; a step of the draft
     * for a token of each sequence, and all that the draft takes where it is. */
    double verify_us[TD_SPEED_DRAFT_MAX + 2], step_us;
    uint64_t draft_bytes;
    /* The placement chosen, each with its layers: "host:1@0-11". */
    uint32_t n_specs;
    char specs[TD_STAGES_MAX][TD_PLAN_SPEC_MAX];
    char draft_spec[TD_PLAN_SPEC_MAX]; /* "" where there is no draft */
    /* Measured: what was compared, the best first; the placement chosen is
     * rows[i_chosen]. The devices of a row's stages are those of params.layout.specs;
     * i_draft is of draft_specs below. */
    uint32_t n_rows, i_chosen;
    td_speed_row rows[TD_SPEED_ROWS_MAX];
    /* With devices on other machines, which no td_layout can tell: the placement chosen, and the
     * links to them and from one to the next. */
    uint32_t n_parts, n_links, n_hops;
    td_plan_part parts[TD_STAGES_MAX];
    td_far_link links[TD_STAGES_MAX];
    td_far_hop hops[TD_STAGES_MAX];
    uint32_t n_drafts;
    char draft_specs[TD_PLAN_DRAFTS_MAX][TD_PLAN_SPEC_MAX];
} td_plan;

bool td_plan_choose(const td_plan_params *params, td_plan *out, td_err *err);

/* What a plan predicts for, where a hop takes so long. */
td_speed_use td_plan_use(const td_plan_params *params, double hop_us);

/* Whether two SPECs (without layers) of opened devices take turns: one GPU, devices that read the
 * system's memory over one bus, or host threads for which there are not enough CPUs. */
bool td_plan_is_one_unit(const char *spec_a, const td_device_info *a, const char *spec_b,
                         const td_device_info *b);

/* Writes a row's stages as "host:1@0-11 + vulkan:0@12-23". */
void td_plan_write_row(const char *const *specs, const td_speed_row *row, char *out,
                       size_t n_bytes);

#endif
