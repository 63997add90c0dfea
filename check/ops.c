/* Every op of a device (check.h): its cases one after another, each against the scalar device. */
#include "check/check.h"

#include "base/check.h"
#include "base/clock.h"
#include "check/cases.h"
#include "check/trial.h"
#include "kernels/ops.h"

#include <stdio.h>
#include <string.h>

#define REPEATS       100u
#define REPEATS_QUICK 20u
#define SOFTWARE_TIMES 2.0
#define OPS_SHARE     0.6 /* of the budget: the ops */
#define OP_SHARE      0.4 /* of that: the large shapes of one op */

typedef struct {
    td_device *dev, *scalar;
    const td_check_params *params;
    td_check_report *report;
    bool is_stopped;
} tour;

static td_check_item *find_op(td_check_report *report, const char *name)
{
    for (uint32_t i = 0; i < report->n_ops; i++)
        if (!strcmp(report->ops[i].name, name))
            return &report->ops[i];
    return NULL;
}

bool td_check_is_late(const td_check_report *report, double share)
{
    double spent_s = 1e-9 * (double)(td_clock_real_ns() - report->start_ns);
    return report->budget_s > 0 && spent_s > share * report->budget_s;
}

/* With one op asked for, those that its cases need are tried too: else its own tell nothing. */
static bool is_wanted(const tour *t, const td_case *c)
{
    static const char *const pairs[][2] = {
        {"kv_store", "attention"}, {"attention", "kv_store"}, {"state_keep", "delta_net"},
        {"top", "pick"},
    };
    const char *only = t->params->only;
    bool is_wanted = !only || !strcmp(only, c->op);
    for (size_t i = 0; only && i < TD_COUNT(pairs); i++)
        is_wanted |= !strcmp(only, pairs[i][0]) && !strcmp(c->op, pairs[i][1]);
    return is_wanted;
}

/* Time is up, for the op or for all, and the case is one that can be done without. */
static bool is_late(const tour *t, const td_case *c, const td_check_item *op)
{
    bool is_software = t->report->info.kind == TD_DEVICE_SOFTWARE;
    double ops_s = OPS_SHARE * t->report->budget_s;
    if (!c->is_large && !(is_software && (op->parts & c->parts) == c->parts))
        return false;
    return ops_s > 0 &&
           (td_check_is_late(t->report, OPS_SHARE) || op->seconds > OP_SHARE * ops_s);
}

static void note(td_check_item *op, const td_case *c, const td_trial *result)
{
    op->n_cases++;
    op->parts |= c->parts;
    op->seconds += result->seconds;
    op->worst = result->worst > op->worst ? result->worst : op->worst;
    if (c->parts & TD_CASE_ROWS && result->is_ok &&
        (!op->n_repeats || result->n_repeats < op->n_repeats))
        op->n_repeats = result->n_repeats;
    if (!result->is_ok && op->state != TD_CHECK_FAILED) {
        op->state = TD_CHECK_FAILED;
        snprintf(op->reason, sizeof op->reason, "%.95s: %.511s", c->shape, result->reason);
    }
}

static bool visit(const td_case *c, void *user)
{
    tour *t = user;
    td_check_report *report = t->report;
    if (!is_wanted(t, c))
        return true;
    td_check_item *op = find_op(report, c->op);
    if (!op) {
        TD_ASSERT(report->n_ops < TD_CHECK_OPS_MAX);
        op = &report->ops[report->n_ops++];
        snprintf(op->name, sizeof op->name, "%s", c->op);
    }
    const td_check_item *needed = c->needs ? find_op(report, c->needs) : NULL;
    if (op->state == TD_CHECK_FAILED)
        return true; /* named already */
    if (needed && needed->state == TD_CHECK_FAILED) {
        op->state = TD_CHECK_UNJUDGED;
        snprintf(op->reason, sizeof op->reason, "%s, which has failed, is needed to tell",
                 needed->name);
        return true;
    }
    if (is_late(t, c, op)) {
        op->n_skipped++;
        return true;
    }
    td_trial result;
    if (t->params->progress && !t->params->progress(t->params->user, c->op, c->shape)) {
        t->is_stopped = true;
        return false;
    }
    td_trial_run(t->dev, t->scalar, c, t->params->is_quick ? REPEATS_QUICK : REPEATS, &result);
    note(op, c, &result);
    return true;
}

static const char *const parts[] = {TD_CASE_LAYER, TD_CHECK_MODELS, TD_CHECK_PAIR, TD_CHECK_LOSS, TD_CHECK_SPEEDS};

bool td_check_wants(const td_check_params *params, const char *part)
{
    return !params->only || !strcmp(params->only, part);
}

static bool is_known(const char *name)
{
    for (size_t i = 0; i < TD_COUNT(parts); i++)
        if (!strcmp(parts[i], name))
            return true;
    for (uint32_t k = 0; td_op_kind_name(k); k++)
        if (!strcmp(td_op_kind_name(k), name))
            return true;
    return false;
}

bool td_check_only(const char *only, td_err *err)
{
    char names[512] = "";
    size_t n = 0;
    if (!only || is_known(only))
        return true;
    for (uint32_t k = 0; td_op_kind_name(k); k++)
        n += (size_t)snprintf(names + n, sizeof names - n, "%s, ", td_op_kind_name(k));
    for (size_t i = 0; i < TD_COUNT(parts); i++)
        n += (size_t)snprintf(names + n, sizeof names - n, "%s%s", parts[i],
                              i + 1 < TD_COUNT(parts) ? ", " : "");
    return td_err_set(err, TD_E_USAGE, "--only: %.64s; allowed: %s", only, names);
}

bool td_check_ops(const char *spec, const td_check_params *params, td_check_report *report,
                  td_err *err)
{
    const char *gap = td_cases_find_gap();
    if (!td_check_only(params->only, err))
        return false;
    tour t = {.params = params, .report = report};
    report->start_ns = td_clock_real_ns();
    t.dev = td_device_create(spec, err);
    t.scalar = t.dev ? td_device_create("scalar", err) : NULL;
    if (t.scalar) {
        report->info = *td_device_get_info(t.dev);
        td_clocks_read(&report->info, &report->clocks);
        bool is_long = report->info.kind == TD_DEVICE_SOFTWARE && !params->is_quick;
        report->budget_s = params->budget_s * (is_long ? SOFTWARE_TIMES : 1);
        report->is_small = params->is_quick || report->info.kind == TD_DEVICE_SOFTWARE;
        td_cases_visit(report->is_small, visit, &t);
    }
    if (t.scalar && gap) { /* an op that nobody tries is not to be trusted */
        td_check_item *op = &report->ops[report->n_ops++];
        *op = (td_check_item){.state = TD_CHECK_FAILED, .reason = "no case tries it"};
        snprintf(op->name, sizeof op->name, "%s", gap);
    }
    bool is_ok = t.scalar && (!t.is_stopped || td_err_set(err, TD_E_AGAIN, "stopped"));
    td_device_destroy(&t.scalar);
    td_device_destroy(&t.dev);
    return is_ok;
}

const td_check_item *td_check_find_failed(const td_check_report *report)
{
    for (uint32_t i = 0; i < report->n_ops; i++)
        if (report->ops[i].state == TD_CHECK_FAILED)
            return &report->ops[i];
    for (uint32_t i = 0; i < report->n_parts; i++)
        if (report->parts[i].state == TD_CHECK_FAILED)
            return &report->parts[i];
    return NULL;
}
