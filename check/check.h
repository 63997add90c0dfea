/* `tandem check`: can a device be trusted? Its ops one by one, law 1, models whose logits are
 * known, races, loss; then how fast it is. What each part found is in the report of a device;
 * cli/check*.c makes a page or JSON of it, verdict.h keeps what was found.
 *
 * A part that finds a fault says so in the report and the others go on, so that a page tells all
 * there is. One thread; td_check_pair makes two of its own. */
#ifndef TD_CHECK_CHECK_H
#define TD_CHECK_CHECK_H

#include "base/err.h"
#include "check/clocks.h"
#include "check/speeds.h"
#include "planning/placement.h"

#define TD_CHECK_OPS_MAX    32u
#define TD_CHECK_PARTS_MAX  16u
#define TD_CHECK_REASON_MAX 640u
#define TD_CHECK_BUDGET_S   120.0 /* that a device is given */

typedef enum {
    TD_CHECK_PASSED,
    TD_CHECK_FAILED,
    TD_CHECK_UNJUDGED, /* what it stands on has failed; or there was nothing to run it on */
} td_check_state;

typedef struct { /* an op, or another part of a check */
    char name[32];
    td_check_state state;
    char reason[TD_CHECK_REASON_MAX]; /* FAILED: with the case; UNJUDGED: why */
    uint32_t n_cases, n_skipped;      /* run; left out when time was up */
    uint32_t parts;                   /* of an op: td_case_parts of the cases run */
    uint32_t n_repeats;               /* least number of runs of a recording */
    double worst;                     /* largest part of a tolerance that was used */
    double seconds;
} td_check_item;

/* What td_check_params.only may name besides an op and TD_CASE_LAYER. */
#define TD_CHECK_MODELS "models"
#define TD_CHECK_PAIR   "beside"
#define TD_CHECK_LOSS   "loss"
#define TD_CHECK_SPEEDS "speeds"

typedef struct {
    const char *only;  /* one op or part alone; NULL: all */
    bool is_quick;     /* small shapes and 20 repeats */
    double budget_s;   /* of all parts together; 0: none. What has begun is ended */
    /* Told before each case and part; false ends the check. May be NULL. */
    bool (*progress)(void *user, const char *op, const char *shape);
    void *user;
} td_check_params;

typedef struct {
    char host[TD_HOST_NAME_MAX]; /* where the device is; "": here */
    td_device_info info;
    uint64_t start_ns;
    double budget_s; /* a software device has twice the time, but in a quick look */
    bool is_small; /* shapes cut, as software devices and quick looks have them */
    td_check_item ops[TD_CHECK_OPS_MAX];
    uint32_t n_ops;
    td_check_item parts[TD_CHECK_PARTS_MAX]; /* golden models, loss, two at once */
    uint32_t n_parts;
    td_clocks clocks;
    td_speeds speeds;
    bool has_speeds;
} td_check_report;

/* Whether a part is to be tried. */
bool td_check_wants(const td_check_params *params, const char *part);
/* Whether this share of the budget is spent. The ops then leave out large shapes, and of a software
 * device all but one case of each; of the other parts each is left out that would begin too late,
 * all but the first model, and says so. */
bool td_check_is_late(const td_check_report *report, double share);

/* All that params want of a device, one part after another; what was found is kept (verdict.h).
 * other: the device that works beside it in td_check_pair. False where nothing could be tried, as
 * of td_check_ops, and where progress ended it (TD_E_AGAIN). */
bool td_check_device(const char *spec, const char *other, const td_check_params *params,
                     td_check_report *report, td_err *err);

/* TD_E_USAGE: `only` is neither op nor part. */
bool td_check_only(const char *only, td_err *err);

/* Every op of the device. False where nothing could be tried at all: the device does not open
 * (err), `only` is neither op nor part (TD_E_USAGE), or progress ended it (TD_E_AGAIN). */
bool td_check_ops(const char *spec, const td_check_params *params, td_check_report *report,
                  td_err *err);

/* Parts of a report, each of which adds its items: golden models with the same rows in every width
 * of batch; another device at work at the same time (or the same one twice); a loss that is told
 * and got over (not of the host). */
void td_check_golden(const char *spec, td_check_report *report);
void td_check_pair(const char *spec, const char *other, td_check_report *report);
void td_check_loss(const char *spec, td_check_report *report);
/* Then how fast it is: a part that fails only where the device does. */
void td_check_speeds(const char *spec, td_check_report *report);

/* The first item that failed, ops first; NULL: none. */
const td_check_item *td_check_find_failed(const td_check_report *report);

#endif
