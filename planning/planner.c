#include "planning/planner.h"

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "kernels/chips.h"

#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A device: of the layout, or on another machine. */
typedef struct {
    char host[TD_HOST_NAME_MAX]; /* "": here */
    const td_device_info *info;
    td_layout_part *part; /* here; else NULL */
    td_far_device far;
    td_place_device place;
} place;

#define CTX_STEP 256u /* as of a layout */

/* What is opened on the way. */
typedef struct {
    const td_plan_params *params;
    td_layout *layout; /* of the devices here, planned only; NULL: there is none */
    uint32_t n, n_ctx, n_pages;
    bool is_far; /* some device is */
    place places[TD_STAGES_MAX];
    char specs[TD_STAGES_MAX][TD_PLAN_SPEC_MAX];
    td_costs costs[TD_STAGES_MAX];
    td_speed_device devices[TD_STAGES_MAX];
    td_speed_draft drafts[TD_PLAN_DRAFTS_MAX];
    uint64_t draft_bytes[TD_PLAN_DRAFTS_MAX]; /* all that it takes there */
    td_speed_hop hops[TD_STAGES_MAX];
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

/* The same of two devices that may be elsewhere, where the worker has n_cpus. */
static bool is_one_unit_of(const place *a, const char *spec_a, const place *b, const char *spec_b)
{
    if (strcmp(a->host, b->host) != 0)
        return false;
    bool is_host = a->info->kind == TD_DEVICE_HOST && b->info->kind == TD_DEVICE_HOST;
    if (!a->host[0] || !is_host)
        return td_plan_is_one_unit(spec_a, a->info, spec_b, b->info);
    return a->info->n_threads + b->info->n_threads > a->far.n_cpus;
}

static uint32_t find_unit(const planner *p, const place *of, const char *spec)
{
    for (uint32_t i = 0; i < p->n; i++)
        if (is_one_unit_of(&p->places[i], p->specs[i], of, spec))
            return p->devices[i].unit;
    return UINT32_MAX;
}

void td_far_device_free(td_far_device *d)
{
    td_costs_free(&d->costs);
    td_free(d->layer_bytes);
    *d = (td_far_device){0};
}

/* -- opening and measuring --------------------------------------------------------------------- */

/* All devices are here: where layers would go by bytes says the layout. */
static bool open_here(planner *p, td_err *err)
{
    td_layout_params params = p->params->layout;
    params.draft = NULL;
    p->layout = td_layout_create(&params, err);
    if (!p->layout)
        return false;
    p->n_ctx = p->layout->n_ctx;
    p->n_pages = p->layout->n_pages;
    for (uint32_t i = 0; i < p->n; i++) {
        p->places[i].part = &p->layout->parts[i];
        p->places[i].info = td_device_get_info(p->layout->parts[i].dev);
        p->places[i].place = p->layout->places[i];
    }
    return true;
}

/* Devices of one machine that draw on its system's memory have even parts of it. */
static uint32_t count_sharing(const planner *p, const place *of)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->n; i++)
        n += !strcmp(p->places[i].host, of->host) && td_capacity_is_shared(p->places[i].info->kind);
    return n;
}

/* What devices have, and what layers take there with n_ctx positions. */
static bool describe_all(planner *p, uint32_t n_ctx, td_measure measure, td_err *err)
{
    td_layout_params params = p->params->layout;
    const char *here[TD_STAGES_MAX];
    params.draft = NULL;
    params.specs = here;
    params.n_specs = 0;
    params.n_ctx = n_ctx;
    params.is_unplaced = true;
    for (uint32_t i = 0; i < p->n; i++)
        if (!p->places[i].host[0])
            here[params.n_specs++] = p->specs[i];
    td_layout_destroy(&p->layout);
    if (params.n_specs && !(p->layout = td_layout_create(&params, err)))
        return false;
    for (uint32_t i = 0, k = 0; i < p->n; i++) {
        place *at = &p->places[i];
        if (!at->host[0]) {
            at->part = &p->layout->parts[k];
            at->info = td_device_get_info(at->part->dev);
            at->place = p->layout->places[k++];
            continue;
        }
        td_far_device far;
        if (!p->params->far->look(p->params->far->user, p->specs[i], params.model, n_ctx, measure,
                                  &far, err))
            return false;
        td_far_device_free(&at->far);
        at->far = far;
        at->info = &at->far.info;
        at->place = far.place;
    }
    for (uint32_t i = 0; i < p->n; i++) {
        td_device_spec spec;
        place *at = &p->places[i];
        if (!td_device_spec_parse(p->params->layout.specs[i], &spec, err))
            return false;
        at->place.is_pinned = spec.is_pinned;
        at->place.first = spec.first;
        at->place.last = spec.last;
        if (!at->host[0])
            continue;
        at->place.budget_bytes -= at->place.shared_bytes;
        if (at->place.shared_bytes)
            at->place.budget_bytes += at->place.shared_bytes / count_sharing(p, at);
        at->place.shared_bytes = 0; /* nobody's here */
    }
    return true;
}

/* Whether all layers have room somewhere; if so, by bytes. */
static bool place_by_bytes(planner *p, td_err *err)
{
    td_place_device all[TD_STAGES_MAX];
    for (uint32_t i = 0; i < p->n; i++)
        all[i] = p->places[i].place;
    if (!td_place_layers(all, p->n, td_model_hparams(p->params->layout.model)->n_layer, err))
        return false;
    for (uint32_t i = 0; i < p->n; i++) {
        p->places[i].place.first = all[i].first;
        p->places[i].place.last = all[i].last;
    }
    return true;
}

/* The context: as asked for, or the model's, or the largest that there is room for. */
static bool open_far(planner *p, td_err *err)
{
    const td_layout_params *l = &p->params->layout;
    p->n_ctx = l->n_ctx ? l->n_ctx : td_model_hparams(l->model)->n_ctx_train;
    for (td_measure measure = p->params->measure;; measure = TD_MEASURE_NEVER) {
        td_err why = {0};
        if (!describe_all(p, p->n_ctx, measure, err))
            return false;
        bool has_room = place_by_bytes(p, &why);
        if (has_room && measure == p->params->measure)
            return true;
        if (has_room) /* with times that were measured before */
            return describe_all(p, p->n_ctx,
                                p->params->measure == TD_MEASURE_NEVER ? TD_MEASURE_NEVER
                                                                       : TD_MEASURE_MISSING,
                                err) &&
                   place_by_bytes(p, err);
        if (l->n_ctx || why.code != TD_E_NOMEM || p->n_ctx <= CTX_STEP)
            return td_err_set(err, why.code, "%s", why.message);
        p->n_ctx = td_max_u32(p->n_ctx / 4 * 3 / CTX_STEP * CTX_STEP, CTX_STEP);
    }
}

static bool open_devices(planner *p, td_err *err)
{
    const td_layout_params *l = &p->params->layout;
    p->n = l->n_specs;
    for (uint32_t i = 0; i < l->n_specs && i < TD_STAGES_MAX; i++) {
        td_device_spec spec;
        if (!td_device_spec_parse(l->specs[i], &spec, err))
            return false;
        bool is_far = p->params->far && spec.host[0];
        p->is_pinned |= spec.is_pinned;
        p->is_far |= is_far;
        snprintf(p->specs[i], TD_PLAN_SPEC_MAX, "%.31s%s%.100s", is_far ? spec.host : "",
                 is_far ? "/" : "", spec.device);
        if (is_far)
            memcpy(p->places[i].host, spec.host, sizeof spec.host);
    }
    if (td_place_is_dealt(l->place))
        return td_err_set(err, TD_E_USAGE,
                          "place \"%.64s\": dealt experts are compared without it; allowed: "
                          "experts=DEVICE",
                          l->place);
    if (!p->is_far)
        return open_here(p, err);
    if (l->n_specs > TD_STAGES_MAX)
        return td_err_set(err, TD_E_USAGE, "%u target devices; allowed: 1..%u", l->n_specs,
                          TD_STAGES_MAX);
    if (l->place)
        return td_err_set(err, TD_E_USAGE, "--place: not with devices of other machines here");
    return open_far(p, err);
}

/* Of activations, between machines. */
static double row_bytes_of(const td_layout_params *params)
{
    return (params->wire && params->wire->id == TD_TYPE_F16 ? 2.0 : 4.0) *
           td_model_hparams(params->model)->n_embd;
}

/* From each machine to the next in the order given, which all placements over several keep. */
static bool measure_hops(planner *p, td_plan *out, td_err *err)
{
    const td_far *far = p->params->far;
    for (uint32_t i = 1; i < p->n; i++) {
        const char *from = p->places[i - 1].host, *to = p->places[i].host;
        td_far_hop *hop = &out->hops[out->n_hops];
        if (!from[0] || !to[0] || !strcmp(from, to))
            continue;
        if (!far->hop(far->user, from, to, hop, err))
            return false;
        p->hops[out->n_hops++] = (td_speed_hop){.from = p->devices[i - 1].machine,
                                                .to = p->devices[i].machine,
                                                .way_us = hop->idle_us / 2,
                                                .row_us = row_bytes_of(&p->params->layout) * 1e6 /
                                                          fmax(1, hop->bytes_per_s)};
    }
    return true;
}

/* The link to each machine, once; then those between them. */
static bool measure_links(planner *p, td_plan *out, td_err *err)
{
    double row_bytes = row_bytes_of(&p->params->layout);
    for (uint32_t i = 0; i < p->n; i++) {
        td_speed_device *d = &p->devices[i];
        const char *host = p->places[i].host;
        uint32_t k = 0;
        if (!host[0])
            continue;
        while (k < out->n_links && strcmp(out->links[k].host, host) != 0)
            k++;
        if (k == out->n_links) {
            if (!p->params->far->link(p->params->far->user, host, &out->links[k], err))
                return false;
            out->n_links++;
        }
        const td_far_link *l = &out->links[k];
        d->machine = k + 1;
        d->way_us = l->idle_us / 2;
        d->row_us = row_bytes * 1e6 / fmax(1, fmin(l->there_bytes_per_s, l->back_bytes_per_s));
    }
    return measure_hops(p, out, err);
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
                                          .kv = *td_layout_kv(&p->params->layout, model),
                                          .measure = p->measure},
                       out, &is_known, &why))
        td_log_warn("%s cannot be measured, so layers go by bytes: %s", spec, why.message);
    return is_known;
}

static bool find_target_costs(planner *p)
{
    for (uint32_t i = 0; i < p->n; i++) {
        const place *at = &p->places[i];
        td_speed_device *d = &p->devices[i];
        *d = (td_speed_device){.costs = at->part ? &p->costs[i] : &at->far.costs,
                               .place = &at->place,
                               .memory = i,
                               .unit = i,
                               .is_host = at->info->kind == TD_DEVICE_HOST};
        for (uint32_t k = i; k-- > 0;) {
            const place *other = &p->places[k];
            if (!strcmp(at->host, other->host) && is_one_memory(at->info, other->info))
                d->memory = p->devices[k].memory;
            if (is_one_unit_of(at, p->specs[i], other, p->specs[k]))
                d->unit = p->devices[k].unit;
        }
        if (at->part ? !find_costs(p, p->params->layout.model, at->part->dev, at->part->experts_dev,
                                   p->specs[i], &p->costs[i])
                     : !at->far.is_known)
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
    for (uint32_t i = 0; !q->n_draft_specs && i < p->n; i++) {
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

/* A place of the draft on another machine. Where it may be in the way of layers, it takes of what
 * their device has. */
static bool describe_far_draft(planner *p, const td_device_spec *spec, const char *text,
                               td_speed_draft *d, uint64_t *n_bytes, td_err *err)
{
    const td_far *far = p->params->far;
    const td_hparams *h = td_model_hparams(p->params->draft);
    place at = {.host = ""};
    td_far_link link;
    memcpy(at.host, spec->host, sizeof at.host);
    if (!far)
        return td_err_set(err, TD_E_USAGE,
                          "%s is on another machine; allowed here: devices of "
                          "this one",
                          text);
    if (!far->look(far->user, text, p->params->draft, td_min_u32(p->n_ctx, h->n_ctx_train),
                   p->measure, &at.far, err))
        return false;
    at.info = &at.far.info;
    *d = (td_speed_draft){.unit = find_unit(p, &at, text), .device = -1};
    for (uint32_t i = 0; i < p->n && d->device < 0; i++)
        if (!strcmp(p->places[i].host, at.host) &&
            (!strcmp(p->places[i].info->spec, at.info->spec) ||
             (td_capacity_is_shared(at.info->kind) &&
              td_capacity_is_shared(p->places[i].info->kind))))
            d->device = (int32_t)i;
    bool is_known = at.far.is_known;
    if (is_known) {
        d->step = td_costs_part(&at.far.costs, 0, h->n_layer - 1);
        d->n_bytes = at.far.place.fixed_bytes + at.far.place.first_bytes + at.far.place.last_bytes;
        for (uint32_t i = 0; i < h->n_layer; i++)
            d->n_bytes += at.far.layer_bytes[i];
        *n_bytes = d->n_bytes;
        if (d->n_bytes > at.far.place.budget_bytes)
            td_err_set(err, TD_E_NOMEM, "the draft: %llu MiB on %s, where %llu MiB are there",
                       (unsigned long long)(d->n_bytes >> 20), text,
                       (unsigned long long)(at.far.place.budget_bytes >> 20));
        if (d->device < 0)
            d->n_bytes = 0; /* it is not the memory of this machine */
    }
    td_far_device_free(&at.far);
    if (!is_known || err->code != TD_OK || !far->link(far->user, spec->host, &link, err))
        return false;
    d->link_us = link.idle_us;
    return true;
}

/* One place of the draft. False: not known, or an error. */
static bool describe_draft(planner *p, const char *text, td_speed_draft *d, uint64_t *n_bytes,
                           td_err *err)
{
    const td_model *model = p->params->draft;
    const td_hparams *h = td_model_hparams(model);
    td_device_spec spec;
    if (!td_device_spec_parse(text, &spec, err))
        return td_err_prepend(err, "the draft");
    if (spec.host[0])
        return describe_far_draft(p, &spec, text, d, n_bytes, err);
    td_device *dev = td_device_create(text, err);
    if (!dev)
        return td_err_prepend(err, "the draft");
    td_costs costs = {0};
    bool is_known = find_costs(p, model, dev, NULL, text, &costs);
    const place at = {.info = td_device_get_info(dev)};
    *d = (td_speed_draft){.unit = find_unit(p, &at, text), .device = -1};
    for (uint32_t i = 0; is_known && i < p->n; i++)
        if (d->device < 0 && !p->places[i].host[0] && is_one_memory(at.info, p->places[i].info))
            d->device = (int32_t)i;
    if (is_known) {
        d->step = td_costs_part(&costs, 0, h->n_layer - 1);
        td_forward_params forward =
            td_forward_drafting(model, dev, td_layout_kv(&p->params->layout, model),
                                p->params->layout.n_slots, td_min_u32(p->n_ctx, h->n_ctx_train));
        *n_bytes = d->n_bytes = td_forward_bytes(&forward);
        uint64_t own =
            td_capacity_is_shared(at.info->kind) ? at.info->capacity.own_bytes : UINT64_MAX;
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
        if (!describe_draft(p, out->draft_specs[i], &p->drafts[i], &p->draft_bytes[i], err))
            return false;
    return true;
}

/* -- choosing ---------------------------------------------------------------------------------- */

td_speed_use td_plan_use(const td_plan_params *q, double hop_us)
{
    return (td_speed_use){.use = q->use,
                          .n_sequences = q->n_sequences ? q->n_sequences : q->layout.n_slots,
                          .n_prompt = q->n_prompt ? q->n_prompt : 256,
                          .n_predict = q->n_predict ? q->n_predict : 256,
                          .hop_us = hop_us,
                          .link_us = q->link_us > 0 ? q->link_us : 2 * hop_us,
                          .acceptance = q->acceptance > 0 ? q->acceptance : TD_SPEED_ACCEPTANCE,
                          .survival = q->survival,
                          .draft_max = q->draft_max ? q->draft_max : 8,
                          .is_draft_fixed = q->is_draft_fixed,
                          .n_stages_min = q->uses_all ? q->layout.n_specs : 0};
}

/* The placement by bytes, or as the user pinned it. */
static td_speed_row given_row(const planner *p)
{
    td_speed_row row = {.n_stages = p->n, .i_draft = -1};
    for (uint32_t i = 0; i < p->n; i++) {
        row.stages[i].device = i;
        row.stages[i].first = p->places[i].place.first;
        row.stages[i].last = p->places[i].place.last;
    }
    return row;
}

static bool search(planner *p, td_plan *out, td_err *err)
{
    td_speed_use use = td_plan_use(p->params, out->hop_us);
    use.hops = p->hops;
    use.n_hops = out->n_hops;
    uint32_t n_layer = td_model_hparams(p->params->layout.model)->n_layer;
    if (!p->is_pinned)
        return td_speed_search(p->devices, p->n, p->drafts, out->n_drafts, n_layer, &use, out->rows,
                               &out->n_rows, err);
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

static td_plan_part part_of(const planner *p, uint32_t i, uint32_t first, uint32_t last)
{
    const td_place_device *d = &p->places[i].place;
    td_plan_part part = {.first = first, .last = last, .budget_bytes = d->budget_bytes};
    uint32_t n_layer = td_model_hparams(p->params->layout.model)->n_layer;
    snprintf(part.spec, sizeof part.spec, "%.127s", p->specs[i]);
    memcpy(part.name, p->places[i].info->name, sizeof part.name);
    part.n_bytes = d->fixed_bytes + (first == 0 ? d->first_bytes : 0) +
                   (last + 1 == n_layer ? d->last_bytes : 0);
    for (uint32_t k = first; k <= last; k++)
        part.n_bytes += d->layer_bytes[k];
    return part;
}

static void write_choice(const planner *p, td_plan *out)
{
    td_speed_row by_bytes = given_row(p);
    const td_speed_row *row = out->n_rows ? &out->rows[out->i_chosen] : &by_bytes;
    out->n_specs = row->n_stages;
    for (uint32_t i = 0; i < row->n_stages; i++) {
        snprintf(out->specs[i], TD_PLAN_SPEC_MAX, "%.120s@%u-%u", p->specs[row->stages[i].device],
                 row->stages[i].first, row->stages[i].last);
        if (p->is_far)
            out->parts[out->n_parts++] =
                part_of(p, row->stages[i].device, row->stages[i].first, row->stages[i].last);
    }
    uint32_t i_draft = row->i_draft >= 0 ? (uint32_t)row->i_draft : 0;
    if (out->n_drafts)
        memcpy(out->draft_spec, out->draft_specs[i_draft], TD_PLAN_SPEC_MAX);
    if (!out->n_rows)
        return;
    td_speed_use use = td_plan_use(p->params, out->hop_us);
    use.hops = p->hops;
    use.n_hops = out->n_hops;
    for (uint32_t i = 1; i <= TD_SPEED_DRAFT_MAX + 1; i++)
        out->verify_us[i] = td_speed_verify_us(p->devices, &use, row, i);
    if (out->n_drafts) {
        out->step_us = td_cost_rows(&p->drafts[i_draft].step, use.n_sequences);
        out->draft_bytes = p->draft_bytes[i_draft];
    }
}

bool td_plan_choose(const td_plan_params *params, td_plan *out, td_err *err)
{
    td_err why = {0};
    *out = (td_plan){0};
    planner *p = td_alloc(1, sizeof *p, err);
    if (!p)
        return false;
    p->params = params;
    bool is_ok = open_devices(p, &why);
    p->measure = params->measure;
    /* A software driver takes long to measure and is there for tests: only when asked to. */
    for (uint32_t i = 0; is_ok && i < p->n; i++)
        if (p->places[i].info->kind == TD_DEVICE_SOFTWARE && p->measure == TD_MEASURE_MISSING)
            p->measure = TD_MEASURE_NEVER;
    if (is_ok) {
        out->n_ctx = p->n_ctx;
        out->n_pages = p->n_pages;
        out->is_measured = find_target_costs(p) && measure_links(p, out, &why) &&
                           find_draft_costs(p, out, &why) &&
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
    for (uint32_t i = 0; i < TD_STAGES_MAX; i++) {
        td_costs_free(&p->costs[i]);
        td_far_device_free(&p->places[i].far);
    }
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
