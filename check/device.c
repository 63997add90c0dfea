/* All of one device (check.h): the order of the parts, and what becomes of what they found. */
#include "check/check.h"
#include "check/verdict.h"

#define OF_PARTS "models, loss, speeds"

static bool goes_on(const td_check_params *p, const char *spec)
{
    return !p->progress || p->progress(p->user, spec, OF_PARTS);
}

bool td_check_device(const char *spec, const char *other, const td_check_params *params,
                     td_check_report *report, td_err *err)
{
    if (!td_check_ops(spec, params, report, err))
        return false;
    if (td_check_wants(params, TD_CHECK_MODELS) && goes_on(params, spec))
        td_check_golden(spec, report);
    if (td_check_wants(params, TD_CHECK_PAIR) && goes_on(params, spec))
        td_check_pair(spec, other, report);
    if (td_check_wants(params, TD_CHECK_LOSS) && goes_on(params, spec))
        td_check_loss(spec, report);
    if (!params->is_quick && td_check_wants(params, TD_CHECK_SPEEDS) && goes_on(params, spec))
        td_check_speeds(spec, report);
    if (!goes_on(params, spec))
        return td_err_set(err, TD_E_AGAIN, "stopped");
    td_verdict_keep(report, !params->only && !params->is_quick);
    return true;
}
