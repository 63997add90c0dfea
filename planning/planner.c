#include "planning/planner.h"

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "kernels/chips.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What is opened on the way. */
typedef struct {
    const td_plan_params *params;
    td_layout *layout; /* planned only */
    char specs[TD_STAGES_MAX][TD_PLAN_SPEC_MAX];
    td_costs costs[TD_STAGES_MAX];
    td_speed_device devices[TD_STAGES_MAX];
    td_speed_draft drafts[TD_PLAN_DRAFTS_MAX];
    bool is_pinned;
    td_measure measure;
} planner;

/* -- which devices are one --------------------------------------------------------------------- */

/* The CPUs of "host:N:0-3,8" as a set; false when none are named. */
static bool read_cpus(const char *spec, cpu_set_t *cpus)
{
    const char *list = strncmp(spec, "host:", 5) ? NULL : strchr(spec + 5, ':');
    CPU_ZERO(cpus);
    for (const char *p = list ? list + 1 : ""; *p;) {
        char *end;
        unsigned long first = strtoul(p, &end, 10), last = first;
        if (*end == '-')
            last = strtoul(end + 1, &end, 10);
        for (unsigned long i = first; i <= last && i < CPU_SETSIZE; i++)
            CPU_SET(i, cpus);
        p = *end == ',' ? end + 1 : "";
    }
    return list;
}

/* One GPU. What several have of the system's memory is counted otherwise (placement.h). */
static bool is_one_memory(const td_device_info *a, const td_device_info *b)
{
    return td_chips_is_one(a, b) && a->kind != TD_DEVICE_HOST;
}

bool td_plan_is_one_unit(const char *spec_a, const td_device_info *a, const char *spec_b,
                         const td_device_info *b)
{
    if (a->kind != TD_DEVICE_HOST || b->kind != TD_DEVICE_HOST)
        return (td_capacity_is_shared(a->kind) && td_capacity_is_shared(b->kind)) ||
               is_one_memory(a, b);
    cpu_set_t of_a, of_b, both;
    if (read_cpus(spec_a, &of_a) && read_cpus(spec_b, &of_b)) {
        CPU_AND(&both, &of_a, &of_b);
        return CPU_COUNT(&both) > 0;
    }
    if (sched_getaffinity(0, sizeof both, &both) != 0)
        return true;
    return a->n_threads + b->n_threads > (uint32_t)CPU_COUNT(&both);
}

static uint32_t find_unit(const planner *p, const char *spec, const td_device_info *info)
{
    for (uint32_t i = 0; i < p->layout->n_parts; i++)
        if (td_plan_is_one_unit(p->specs[i], td_device_get_info(p->layout->parts[i].dev), spec,
                                info))
            return p->devices[i].unit;
    return UINT32_MAX;
}

/* -- opening and measuring --------------------------------------------------------------------- */

static bool open_layout(planner *p, td_err *err)
{
    td_layout_params params = p->params->layout;
    params.draft = NULL;
    p->layout = td_layout_create(&params, err);
    for (uint32_t i = 0; p->layout && i < p->layout->n_parts; i++) {
        td_device_spec spec;
        if (!td_device_spec_parse(params.specs[i], &spec, err))
            return false;
        p->is_pinned |= spec.is_pinned;
        snprintf(p->specs[i], TD_PLAN_SPEC_MAX, "%s", spec.device);
    }
    return p->layout;
}

/* False without an error: not known. */
static bool find_costs(const planner *p, const td_model *model, td_device *dev,
                       td_device *experts_dev, const char *spec, td_costs *out)
{
    bool is_known = false;
    td_err why = {0};
    if (!td_costs_find(&(td_costs_params){.model = model,
                                          .dev = dev,
                                          .experts_dev = experts_dev,
                                          .spec = spec,
                                          .type_k = p->params->layout.type_k,
                                          .type_v = p->params->layout.type_v,
                                          .measure = p->measure},
                       out, &is_known, &why))
        td_log_warn("%s cannot be measured, so layers go by bytes: %s", spec, why.message);
    return is_known;
}

static bool find_target_costs(planner *p)
{
    for (uint32_t i = 0; i < p->layout->n_parts; i++) {
        const td_layout_part *part = &p->layout->parts[i];
        const td_device_info *info = td_device_get_info(part->dev);
        td_speed_device *d = &p->devices[i];
        *d = (td_speed_device){.costs = &p->costs[i],
                               .place = &p->layout->places[i],
                               .memory = i,
                               .unit = i,
                               .is_host = info->kind == TD_DEVICE_HOST};
        for (uint32_t k = i; k-- > 0;) {
            const td_device_info *other = td_device_get_info(p->layout->parts[k].dev);
            if (is_one_memory(info, other))
                d->memory = p->devices[k].memory;
            if (td_plan_is_one_unit(p->specs[i], info, p->specs[k], other))
                d->unit = p->devices[k].unit;
        }
        if (!find_costs(p, p->params->layout.model, part->dev, part->experts_dev, p->specs[i],
                        &p->costs[i]))
            return false;
    }
    return true;
}

static bool list_draft_specs(const planner *p, td_plan *out, td_err *err)
{
    const td_plan_params *q = p->params;
    if (q->n_draft_specs > TD_PLAN_DRAFTS_MAX)
        return td_err_set(err, TD_E_USAGE, "%u places for the draft; allowed: 1..%u",
                          q->n_draft_specs, TD_PLAN_DRAFTS_MAX);
    bool has_host = false;
    for (uint32_t i = 0; i < q->n_draft_specs; i++)
        snprintf(out->draft_specs[out->n_drafts++], TD_PLAN_SPEC_MAX, "%s", q->draft_specs[i]);
    for (uint32_t i = 0; !q->n_draft_specs && i < p->layout->n_parts; i++) {
        bool is_there = false;
        for (uint32_t k = 0; k < i; k++)
            is_there |= !strcmp(p->specs[i], p->specs[k]);
        has_host |= !strncmp(p->specs[i], "host", 4);
        if (!is_there && out->n_drafts + 1 < TD_PLAN_DRAFTS_MAX)
            snprintf(out->draft_specs[out->n_drafts++], TD_PLAN_SPEC_MAX, "%s", p->specs[i]);
    }
    if (!q->n_draft_specs && !has_host)
        snprintf(out->draft_specs[out->n_drafts++], TD_PLAN_SPEC_MAX, "host:1");
    return true;
}

/* One place of the draft. False: not known, or an error. */
static bool describe_draft(planner *p, const char *spec, td_speed_draft *d, td_err *err)
{
    const td_model *model = p->params->draft;
    const td_hparams *h = td_model_hparams(model);
    td_device *dev = td_device_create(spec, err);
    if (!dev)
        return td_err_prepend(err, "the draft");
    td_costs costs = {0};
    bool is_known = find_costs(p, model, dev, NULL, spec, &costs);
    const td_device_info *info = td_device_get_info(dev);
    *d = (td_speed_draft){.unit = find_unit(p, spec, info), .device = -1};
    for (uint32_t i = 0; is_known && i < p->layout->n_parts; i++)
        if (d->device < 0 && is_one_memory(info, td_device_get_info(p->layout->parts[i].dev)))
            d->device = (int32_t)i;
    if (is_known) {
        d->step = td_costs_part(&costs, 0, h->n_layer - 1);
        td_forward_params forward = td_forward_drafting(
            model, dev, p->params->layout.type_k, p->params->layout.type_v,
            p->params->layout.n_slots, td_min_u32(p->layout->n_ctx, h->n_ctx_train));
        d->n_bytes = td_forward_bytes(&forward);
        uint64_t own = td_capacity_is_shared(info->kind) ? info->capacity.own_bytes : UINT64_MAX;
        if (d->device < 0) /* only what it takes of the system's memory is missed elsewhere */
            d->n_bytes -= own < d->n_bytes ? own : d->n_bytes;
    }
    td_costs_free(&costs);
    td_device_destroy(&dev);
    return is_known;
}

static bool find_draft_costs(planner *p, td_plan *out, td_err *err)
{
    if (!p->params->draft)
        return true;
    if (!list_draft_specs(p, out, err))
        return false;
    for (uint32_t i = 0; i < out->n_drafts; i++)
        if (!describe_draft(p, out->draft_specs[i], &p->drafts[i], err))
            return false;
    return true;
}

/* -- choosing ---------------------------------------------------------------------------------- */

static td_speed_use use_of(const td_plan_params *q, double hop_us)
{
    return (td_speed_use){.use = q->use,
                          .n_sequences = q->n_sequences ? q->n_sequences : q->layout.n_slots,
                          .n_prompt = q->n_prompt ? q->n_prompt : 256,
                          .n_predict = q->n_predict ? q->n_predict : 256,
                          .hop_us = hop_us,
                          .link_us = q->link_us > 0 ? q->link_us : 2 * hop_us,
                          .acceptance = q->acceptance > 0 ? q->acceptance : TD_SPEED_ACCEPTANCE,
                          .draft_max = q->draft_max ? q->draft_max : 8,
                          .is_draft_fixed = q->is_draft_fixed,
                          .n_stages_min = q->uses_all ? q->layout.n_specs : 0};
}

/* The placement by bytes, or as the user pinned it. */
static td_speed_row given_row(const planner *p)
{
    td_speed_row row = {.n_stages = p->layout->n_parts, .i_draft = -1};
    for (uint32_t i = 0; i < p->layout->n_parts; i++) {
        row.stages[i].device = i;
        row.stages[i].first = p->layout->parts[i].first;
        row.stages[i].last = p->layout->parts[i].last;
    }
    return row;
}

static bool search(planner *p, td_plan *out, td_err *err)
{
    td_speed_use use = use_of(p->params, out->hop_us);
    uint32_t n_layer = td_model_hparams(p->params->layout.model)->n_layer;
    if (!p->is_pinned)
        return td_speed_search(p->devices, p->layout->n_parts, p->drafts, out->n_drafts, n_layer,
                               &use, out->rows, &out->n_rows, err);
    for (uint32_t i = 0; i < td_max_u32(out->n_drafts, 1); i++) {
        td_speed_row row = given_row(p), *best = &out->rows[0];
        row.i_draft = out->n_drafts ? (int32_t)i : -1;
        td_speed_predict(p->devices, out->n_drafts ? &p->drafts[i] : NULL, &use, &row);
        out->rows[out->n_rows++] = row;
        if (row.tokens_per_s > best->tokens_per_s) {
            out->rows[out->n_rows - 1] = *best;
            *best = row;
        }
    }
    return true;
}

static void write_choice(const planner *p, td_plan *out)
{
    td_speed_row by_bytes = given_row(p);
    const td_speed_row *row = out->n_rows ? &out->rows[out->i_chosen] : &by_bytes;
    out->n_specs = row->n_stages;
    for (uint32_t i = 0; i < row->n_stages; i++)
        snprintf(out->specs[i], TD_PLAN_SPEC_MAX, "%.120s@%u-%u", p->specs[row->stages[i].device],
                 row->stages[i].first, row->stages[i].last);
    if (out->n_drafts)
        memcpy(out->draft_spec, out->draft_specs[row->i_draft >= 0 ? row->i_draft : 0],
               TD_PLAN_SPEC_MAX);
}

bool td_plan_choose(const td_plan_params *params, td_plan *out, td_err *err)
{
    td_err why = {0};
    *out = (td_plan){0};
    planner *p = td_alloc(1, sizeof *p, err);
    if (!p)
        return false;
    p->params = params;
    bool is_ok = open_layout(p, &why);
    p->measure = params->measure;
    /* A software driver takes long to measure and is there for tests: only when asked to. */
    for (uint32_t i = 0; is_ok && i < p->layout->n_parts; i++)
        if (td_device_get_info(p->layout->parts[i].dev)->kind == TD_DEVICE_SOFTWARE &&
            p->measure == TD_MEASURE_MISSING)
            p->measure = TD_MEASURE_NEVER;
    if (is_ok) {
        out->n_ctx = p->layout->n_ctx;
        out->n_pages = p->layout->n_pages;
        out->is_measured = find_target_costs(p) && find_draft_costs(p, out, &why) &&
                           td_costs_measure_hop(&out->hop_us, &why);
        is_ok = why.code == TD_OK && (!out->is_measured || search(p, out, &why));
    }
    if (is_ok && out->n_rows && !p->is_pinned)
        out->i_chosen =
            td_speed_choose(out->rows, out->n_rows, params->uses_all ? params->layout.n_specs : 0);
    if (is_ok)
        write_choice(p, out);
    else
        td_err_set(err, why.code, "%s", why.message);
    for (uint32_t i = 0; i < TD_STAGES_MAX; i++)
        td_costs_free(&p->costs[i]);
    td_layout_destroy(&p->layout);
    td_free(p);
    return is_ok;
}

void td_plan_write_row(const char *const *specs, const td_speed_row *row, char *out, size_t n_bytes)
{
    size_t n = 0;
    out[0] = 0;
    for (uint32_t i = 0; i < row->n_stages && n < n_bytes; i++) {
        const char *spec = specs[row->stages[i].device], *at = strrchr(spec, '@');
        int n_spec = at ? (int)(at - spec) : (int)strlen(spec);
        n += (size_t)snprintf(out + n, n_bytes - n, "%s%.*s@%u-%u", i ? " + " : "", n_spec, spec,
                              row->stages[i].first, row->stages[i].last);
    }
}
