#include "run/run_placement.h"

#include "base/check.h"
#include "base/log.h"
#include "base/signals.h"
#include "run/draft_client.h"
#include "run/survey.h"
#include "target/remote_measure.h"

#include <stdio.h>
#include <string.h>

#define SEPARATOR  " + "
#define DEALT      " with " /* "experts=20,12 on host:1 + host:1" */
#define PLAN_TRIES 3u

/* Two SPECs mean one device by one driver, whatever they say of layers. A GPU may have been named
 * in another way, or have had another index. */
static bool is_same_device(const td_device_spec *a, const td_device_spec *b)
{
    td_device_info info_a, info_b;
    if (strcmp(a->host, b->host) != 0)
        return false;
    if (!strcmp(a->device, b->device))
        return true;
    if (a->host[0])
        return false;
    return td_device_find(a->device, &info_a, NULL) && info_a.kind != TD_DEVICE_HOST &&
           td_device_find(b->device, &info_b, NULL) && !strcmp(info_a.id, info_b.id);
}

/* The SPEC of the params that means the n-th recorded device, with the recorded layers. In the
 * place of one on another machine may be any: that is how a machine that was lost is replaced. */
static bool find_given(const td_run_params *params, uint32_t n, uint32_t n_recorded,
                       const char *recorded, char out[TD_PLAN_SPEC_MAX])
{
    td_device_spec there, given;
    if (!td_device_spec_parse(recorded, &there, NULL) || !there.is_pinned)
        return false;
    uint32_t i = 0;
    while (i < params->n_specs && !(td_device_spec_parse(params->specs[i], &given, NULL) &&
                                    is_same_device(&there, &given)))
        i++;
    bool is_replaced = i == params->n_specs && there.host[0] && n_recorded == params->n_specs;
    if ((i == params->n_specs && !is_replaced) ||
        (is_replaced && !td_device_spec_parse(params->specs[n], &given, NULL)))
        return false;
    snprintf(out, TD_PLAN_SPEC_MAX, "%.31s%s%.90s@%u-%u", given.host, given.host[0] ? "/" : "",
             given.device, there.first, there.last);
    return true;
}

/* Whether a device is on another machine. */
static bool is_elsewhere(const td_run_params *params)
{
    bool is_so = false;
    td_device_spec spec;
    for (uint32_t i = 0; i < params->n_specs; i++)
        is_so |= td_device_spec_parse(params->specs[i], &spec, NULL) && spec.host[0];
    return is_so;
}

static bool is_pinned(const td_run_params *params)
{
    bool is_so = false;
    for (uint32_t i = 0; i < params->n_specs; i++)
        is_so |= strchr(params->specs[i], '@') != NULL;
    return is_so;
}

/* False where it names a device that is not among those given: then it was another set-up's. */
static bool take_recorded(td_run_placement *p, td_run_params *params, const char *recorded)
{
    uint32_t n = 0, n_recorded = 1;
    for (const char *at = recorded; (at = strstr(at, SEPARATOR)); at += strlen(SEPARATOR))
        n_recorded++;
    for (const char *at = recorded; *at && n < TD_STAGES_MAX; n++) {
        const char *end = strstr(at, SEPARATOR);
        size_t n_bytes = end ? (size_t)(end - at) : strlen(at);
        char spec[TD_PLAN_SPEC_MAX];
        if (n_bytes >= sizeof spec)
            return false;
        memcpy(spec, at, n_bytes);
        spec[n_bytes] = 0;
        if (!find_given(params, n, n_recorded, spec, p->specs[n]))
            return false;
        at += n_bytes + (end ? strlen(SEPARATOR) : 0);
    }
    for (uint32_t i = 0; i < n; i++)
        params->specs[i] = p->specs[i];
    params->n_specs = n;
    return n > 0;
}

static bool plan(td_run_placement *p, td_run_params *params, const td_model *model, bool is_default,
                 td_err *err)
{
    td_survey survey = td_survey_prompts(params, model);
    uint64_t n_at_once = survey.n_prompts ? survey.n_prompts : params->n_parallel;
    if (n_at_once > params->n_parallel)
        n_at_once = params->n_parallel;
    td_model *draft = NULL;
    td_far far;
    td_remote_measure *remote = NULL;
    bool is_far = is_elsewhere(params);
    bool is_planned = params->draft_path && (is_far || !td_draft_client_is_on_host(params));
    if (is_planned && !(draft = td_model_open(params->draft_path, err)))
        return td_err_prepend(err, "draft");
    td_plan_params q = {.layout = {.model = model,
                                   .head = p->head,
                                   .specs = params->specs,
                                   .n_specs = params->n_specs,
                                   .place = params->place,
                                   .hosts = params->hosts,
                                   .n_hosts = params->n_hosts,
                                   .host_key = params->key,
                                   .wire = params->wire,
                                   .is_trusting = params->is_trusting,
                                   .kv = params->kv,
                                   .draft_kv = &params->draft_kv,
                                   .n_slots = params->n_parallel,
                                   .n_ctx = params->n_ctx},
                        .use = n_at_once > 1 ? params->use : TD_FOR_STREAM,
                        .n_sequences = (uint32_t)n_at_once,
                        .n_prompt = survey.n_prompt,
                        .measure = params->measure,
                        .n_predict = survey.n_predict ? survey.n_predict : params->n_predict,
                        .draft = draft,
                        .draft_specs =
                            is_planned && params->draft_spec ? &params->draft_spec : NULL,
                        .n_draft_specs = is_planned && params->draft_spec ? 1 : 0,
                        .draft_max = params->draft_fixed ? params->draft_fixed : params->draft_max,
                        .is_draft_fixed = params->draft_fixed > 0,
                        .uses_all = !is_default};
    bool is_ok = !is_far || (remote = td_remote_measure_create(&q.layout, err));
    if (remote) {
        far = td_remote_measure_far(remote);
        q.far = &far;
    }
    is_ok = is_ok && td_plan_choose(&q, &p->plan, err);
    td_remote_measure_destroy(&remote); /* the workers are free for what was chosen */
    bool has_draft = draft != NULL;
    td_model_close(&draft);
    if (!is_ok)
        return false;
    p->is_planned = p->plan.is_measured && p->plan.n_rows > 0;
    if (!p->is_planned || is_pinned(params))
        return true;
    params->n_specs = p->plan.n_specs;
    for (uint32_t i = 0; i < p->plan.n_specs; i++) {
        memcpy(p->specs[i], p->plan.specs[i], sizeof p->specs[i]);
        params->specs[i] = p->specs[i];
    }
    if (has_draft && !params->draft_spec && p->plan.draft_spec[0])
        params->draft_spec = p->plan.draft_spec;
    return true;
}

/* A worker may be lost while it measures, as later: again, or else without times. */
static bool plan_in_time(td_run_placement *p, td_run_params *params, const td_model *model,
                         bool is_default, td_err *err)
{
    td_err lost = {0};
    bool is_ok = plan(p, params, model, is_default, &lost);
    bool is_lost = is_elsewhere(params) && lost.code == TD_E_DEVICE_LOST;
    for (uint32_t i = 1; !is_ok && is_lost && i < PLAN_TRIES && !td_signals_pending(); i++) {
        td_log_warn("%s; measuring again", lost.message);
        td_err_clear(&lost);
        is_ok = plan(p, params, model, is_default, &lost);
    }
    if (is_ok || !is_lost || td_signals_pending())
        return is_ok || td_err_set(err, lost.code, "%s", lost.message);
    td_log_warn("%s; layers go by bytes", lost.message);
    return true;
}

/* What experts=auto was at first stays. */
static void take_dealing(td_run_placement *p, td_run_params *params, const char *recorded)
{
    const char *dealt = recorded ? strstr(recorded, DEALT) : NULL;
    if (!dealt || strcmp(params->place, "experts=auto") != 0)
        return;
    dealt += strlen(DEALT);
    snprintf(p->place, sizeof p->place, "%.*s", (int)strcspn(dealt, " "), dealt);
    if (!td_place_is_dealt(p->place))
        return;
    params->place = p->place;
    td_log_info("experts as in the results so far: %s", p->place);
}

bool td_run_placement_choose(td_run_placement *p, td_run_params *params, const td_model *model,
                             bool is_default, const char *recorded, td_err *err)
{
    if (td_place_is_dealt(params->place)) {
        take_dealing(p, params, recorded);
        return true; /* where is said, or found when devices are opened */
    }
    if (recorded && !is_pinned(params) && take_recorded(p, params, recorded)) {
        td_log_info("layers as in the results so far: %s", recorded);
        return true;
    }
    bool is_on_gpu = false; /* else the draft goes to the host as well, wherever */
    for (uint32_t i = 0; i < params->n_specs; i++)
        is_on_gpu |= strncmp(params->specs[i], "host", 4) != 0;
    bool is_open = (params->n_specs > 1 && !is_pinned(params)) ||
                   (params->draft_path && !params->draft_spec && is_on_gpu);
    /* A cut where activations are rounded is part of the text: not by what a link does today. */
    bool is_rounded = params->wire && params->wire->id != TD_TYPE_F32;
    bool is_by_bytes = is_elsewhere(params) && (params->place || is_pinned(params) || is_rounded);
    return params->measure == TD_MEASURE_NEVER || !is_open || is_by_bytes ||
           plan_in_time(p, params, model, is_default, err);
}

double td_run_placement_expected(const td_run_placement *p, td_use use)
{
    const td_speed_row *row = &p->plan.rows[p->plan.i_chosen];
    return use == TD_FOR_BATCH ? row->tokens_per_s : row->decode_per_s;
}

void td_run_placement_write(const td_target *target, char *out, size_t n_bytes)
{
    size_t n = 0;
    out[0] = 0;
    for (uint32_t i = 0; i < td_target_n_stages(target) && n < n_bytes; i++) {
        td_stage_info info;
        td_target_get_stage_info(target, i, &info);
        /* Of the host, whose SPEC may name CPUs; and of another machine, by its name. */
        bool is_host = info.device->kind == TD_DEVICE_HOST || info.host;
        n += (size_t)snprintf(out + n, n_bytes - n, "%s%s@%u-%u", i ? SEPARATOR : "",
                              is_host ? info.spec : info.device->id, info.first, info.last);
        const td_layout_deal *deal = info.deal;
        for (uint32_t k = 0; deal && k < deal->dealing->n_seats && n < n_bytes; k++)
            n += (size_t)snprintf(out + n, n_bytes - n, "%s%s%s%s", k ? SEPARATOR : DEALT,
                                  k ? "" : deal->text, k ? "" : " on ", deal->seats[k].spec);
    }
}

void td_run_placement_keep(td_run_placement *p, const td_target *target, td_run_params *params)
{
    td_stage_info info;
    td_target_get_stage_info(target, 0, &info);
    if (!info.deal)
        return;
    memcpy(p->place, info.deal->text, sizeof p->place);
    params->place = p->place;
}
