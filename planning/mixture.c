#include "planning/mixture.h"

#include "base/check.h"
#include "base/mem.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define BATCH  8u                    /* sequences, where no more than one is asked for */
#define WIDTHS (TD_COST_WIDTHS + 2u) /* all times of a td_cost */

const char *const td_mixture_names[TD_MIXTURE_WAYS] = {"layers split", "experts dealt",
                                                       "experts apart"};

/* -- dealt experts ----------------------------------------------------------------------------- */

typedef struct {
    const td_model *model;
    const td_hparams *h;
    const td_dealing *dealing;
    uint32_t n;
    td_device *devs[TD_SEATS_MAX];
    td_costs costs[TD_SEATS_MAX]; /* of whole layers */
    uint32_t units[TD_SEATS_MAX]; /* the first seat that it takes turns with, or itself */
    double hop_us;
} dealt;

static double *time_of(td_cost *cost, uint32_t i)
{
    return i < TD_COST_WIDTHS    ? &cost->verify_us[i]
           : i == TD_COST_WIDTHS ? &cost->chunk_us
                                 : &cost->prefill_us;
}

static uint32_t rows_of(uint32_t i)
{
    return i < TD_COST_WIDTHS    ? td_cost_widths[i]
           : i == TD_COST_WIDTHS ? TD_HOST_CHUNK_ROWS
                                 : TD_PREFILL_ROWS_MAX;
}

/* Of a layer with experts, the i-th time. */
static double layer_us(dealt *d, uint32_t layer, uint32_t i)
{
    double n_expert = d->h->n_expert, n_used = d->h->n_expert_used, n_rows = rows_of(i);
    double asked = n_expert * (1 - pow(1 - n_used / n_expert, n_rows));
    double shared = (double)d->h->n_ff_shared / d->h->n_ff_expert; /* as experts */
    double most = i < TD_COST_WIDTHS ? TD_VERIFY_ROWS_MAX : TD_PREFILL_ROWS_MAX;
    td_seat_load loads[TD_SEATS_MAX] = {0};
    double us = 2 * d->hop_us;
    for (uint32_t k = 0; k < d->n; k++) {
        double experts =
            (double)td_weights_layer_bytes(d->model, d->devs[k], layer, TD_SHARE_EXPERTS);
        double all = (double)td_weights_layer_bytes(d->model, d->devs[k], layer, TD_SHARE_ALL);
        double whole = fmax(1e-3, *time_of(&d->costs[k].layers[layer], i));
        bool is_host = td_device_get_info(d->devs[k])->kind == TD_DEVICE_HOST;
        double pass = is_host ? 0 : *time_of(&d->costs[k].pass, i), one = experts / n_expert;
        double each = whole * one / (all - experts + asked * one);
        uint32_t count = td_dealing_count(d->dealing, layer, k);
        td_seat_load *l = &loads[d->units[k]];
        if (!k)
            us += fmax(0, whole - (asked + shared) * each) + pass;
        l->us_fixed += pass * fmax(1, ceil(n_rows * n_used * count / n_expert / most)) +
                       (k ? 0 : shared * each);
        if (count)
            l->us_each = (l->us_each * l->n_experts + each * count) / (l->n_experts + count);
        l->n_experts += count;
    }
    uint32_t n = 0; /* of units */
    for (uint32_t k = 0; k < d->n; k++)
        if (loads[k].n_experts)
            loads[n++] = loads[k];
    return us + td_dealing_expected_us(loads, n, asked);
}

/* Costs of the first seat with what it waits for. Layers of a kind are computed once. */
static bool write_costs(dealt *d, td_costs *out, td_err *err)
{
    *out = d->costs[0];
    out->layers = td_alloc(out->n_layers, sizeof *out->layers, err);
    for (uint32_t i = 0; out->layers && i < out->n_layers; i++) {
        uint32_t same = 0;
        const td_cost *from = d->costs[0].layers;
        bool has_experts = td_layer_has_experts(d->model, i);
        while (same < i && (td_layer_has_experts(d->model, same) != has_experts ||
                            memcmp(&from[same], &from[i], sizeof *from) != 0))
            same++;
        out->layers[i] = same < i ? out->layers[same] : from[i];
        for (uint32_t k = 0; same == i && has_experts && k < WIDTHS; k++)
            *time_of(&out->layers[i], k) = layer_us(d, i, k);
    }
    return out->layers;
}

static bool open_dealt(dealt *d, const td_layout *l, const td_plan_params *params, td_err *err)
{
    for (uint32_t i = 0; i < d->n; i++) {
        const char *spec = i ? l->deal.seats[i].spec : l->parts[0].spec;
        bool is_known;
        d->devs[i] = i ? l->deal.seats[i].dev : l->parts[0].dev;
        d->units[i] = i;
        for (uint32_t k = i; k-- > 0;)
            if (td_plan_is_one_unit(spec, td_device_get_info(d->devs[i]),
                                    k ? l->deal.seats[k].spec : l->parts[0].spec,
                                    td_device_get_info(d->devs[k])))
                d->units[i] = d->units[k];
        if (!td_costs_find(&(td_costs_params){.model = d->model,
                                              .dev = d->devs[i],
                                              .spec = spec,
                                              .kv = params->layout.kv,
                                              .measure = params->measure},
                           &d->costs[i], &is_known, err))
            return false;
        if (!is_known)
            return td_err_set(err, TD_E_AGAIN, "%s is not measured", spec);
    }
    return true;
}

/* For each use, whose params are given. */
static bool predict_dealt(const td_plan_params params[2], double hop_us, td_mixture_row *row,
                          td_err *err)
{
    td_layout_params laid = params[TD_FOR_STREAM].layout;
    laid.place = "experts=auto";
    td_layout *l = td_layout_create(&laid, err);
    if (!l)
        return false;
    dealt d = {.model = laid.model,
               .h = td_model_hparams(laid.model),
               .dealing = l->deal.dealing,
               .n = l->deal.dealing->n_seats,
               .hop_us = hop_us};
    td_costs costs = {0};
    bool is_ok = open_dealt(&d, l, params, err) && write_costs(&d, &costs, err);
    for (td_use use = TD_FOR_STREAM; is_ok && use <= TD_FOR_BATCH; use++) {
        td_speed_use how = td_plan_use(&params[use], hop_us);
        td_speed_device first = {.costs = &costs,
                                 .is_host = td_device_get_info(d.devs[0])->kind == TD_DEVICE_HOST};
        td_speed_row whole = {.n_stages = 1, .i_draft = -1};
        whole.stages[0].last = d.h->n_layer - 1;
        td_speed_predict(&first, NULL, &how, &whole);
        row->tokens_per_s[use] = whole.tokens_per_s;
    }
    memcpy(row->dealt, l->deal.text, sizeof row->dealt);
    td_costs_free(&costs);
    for (uint32_t i = 0; i < d.n; i++)
        td_costs_free(&d.costs[i]);
    td_layout_destroy(&l);
    return is_ok;
}

/* -- the others -------------------------------------------------------------------------------- */

/* By the planner, which knows them. */
static bool predict_planned(const td_plan_params params[2], double *hop_us, td_mixture_row *row,
                            td_err *err)
{
    td_plan *plan = td_alloc(1, sizeof *plan, err);
    bool is_ok = plan;
    for (td_use use = TD_FOR_STREAM; is_ok && use <= TD_FOR_BATCH; use++) {
        is_ok = td_plan_choose(&params[use], plan, err);
        if (is_ok && !plan->n_rows)
            is_ok = td_err_set(err, TD_E_AGAIN,
                               plan->is_measured ? "there is no room"
                                                 : "not measured, as with --measure");
        if (is_ok)
            row->tokens_per_s[use] = plan->rows[plan->i_chosen].tokens_per_s;
        *hop_us = is_ok ? plan->hop_us : *hop_us;
    }
    td_free(plan);
    return is_ok;
}

static bool names_host(const char *spec) { return !strncmp(spec, "host", 4); }

/* All layers on the first device that is not the host, their experts on the host, the one named
 * where there is one; of hosts alone: on the first two. */
static bool predict_apart(const td_plan_params params[2], td_mixture_row *row, td_err *err)
{
    const td_layout_params *laid = &params[0].layout;
    uint32_t layers = 0, i = 0;
    td_device_spec of_layers, of_experts = {.device = "host"};
    char place[TD_PLAN_SPEC_MAX];
    for (uint32_t k = laid->n_specs; k-- > 0;)
        layers = names_host(laid->specs[k]) ? layers : k;
    while (i < laid->n_specs && (i == layers || !names_host(laid->specs[i])))
        i++;
    if (!td_device_spec_parse(laid->specs[layers], &of_layers, err) ||
        (i < laid->n_specs && !td_device_spec_parse(laid->specs[i], &of_experts, err)))
        return false;
    snprintf(place, sizeof place, "experts=%.100s", of_experts.device);
    snprintf(row->flags, sizeof row->flags, "--device %.100s --place %s", of_layers.device, place);
    const char *specs[] = {of_layers.device};
    td_plan_params apart[2] = {params[0], params[1]};
    for (uint32_t use = 0; use < 2; use++) {
        apart[use].layout.specs = specs;
        apart[use].layout.n_specs = 1;
        apart[use].layout.place = place;
    }
    double hop_us;
    return predict_planned(apart, &hop_us, row, err);
}

static void note(td_mixture_row *row, bool is_ok, td_err *why)
{
    if (!is_ok)
        snprintf(row->why_not, sizeof row->why_not, "%s", why->message);
    td_err_clear(why);
}

void td_mixture_compare(const td_plan_params *params, td_mixture *out)
{
    td_plan_params uses[2] = {*params, *params};
    td_err why = {0};
    double hop_us = 0;
    td_mixture_row *rows = out->rows;
    *out = (td_mixture){.n_sequences = params->layout.n_slots > 1 ? params->layout.n_slots : BATCH};
    for (td_use use = TD_FOR_STREAM; use <= TD_FOR_BATCH; use++) {
        uses[use].use = use;
        uses[use].n_sequences = 0;
        uses[use].layout.n_slots = use == TD_FOR_BATCH ? out->n_sequences : 1;
        uses[use].layout.head = NULL;
        uses[use].draft = NULL;
        if (params->measure == TD_MEASURE_AGAIN) /* just now, whole layers were */
            uses[use].measure = TD_MEASURE_MISSING;
    }
    bool is_ok = predict_planned(uses, &hop_us, &rows[TD_MIXTURE_LAYERS], &why);
    note(&rows[TD_MIXTURE_LAYERS], is_ok, &why);
    snprintf(rows[TD_MIXTURE_DEALT].flags, sizeof rows->flags, "--place experts=auto");
    is_ok = is_ok ? predict_dealt(uses, hop_us, &rows[TD_MIXTURE_DEALT], &why)
                  : td_err_set(&why, TD_E_AGAIN, "layers split are not");
    note(&rows[TD_MIXTURE_DEALT], is_ok, &why);
    uses[TD_FOR_STREAM].measure = params->measure;
    note(&rows[TD_MIXTURE_APART], predict_apart(uses, &rows[TD_MIXTURE_APART], &why), &why);
}

td_mixture_way td_mixture_choose(const td_mixture_row rows[TD_MIXTURE_WAYS], td_use use)
{
    td_mixture_way best = TD_MIXTURE_WAYS;
    for (td_mixture_way way = TD_MIXTURE_LAYERS; way < TD_MIXTURE_WAYS; way++)
        if (!rows[way].why_not[0] &&
            (best == TD_MIXTURE_WAYS ||
             rows[way].tokens_per_s[use] * (best ? 1 : 1 - TD_SPEED_ERROR) >
                 rows[best].tokens_per_s[use]))
            best = way;
    return best;
}
