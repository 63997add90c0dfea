#include "target/remote_measure.h"

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "target/cache_wire.h"
#include "target/measured.h"
#include "target/models.h"
#include "target/remote_impl.h"
#include "target/split.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N_MODELS 2u        /* a target and a draft */
#define MEET_US  10000000u /* a worker ends it sooner */

typedef struct {
    td_host host;
    td_remotes *remotes;
} machine;

struct td_remote_measure {
    td_layout_params params;
    uint32_t n;
    machine machines[TD_STAGES_MAX];
    struct {
        const td_model *model;
        uint8_t id[TD_STAGE_HASH_BYTES];
    } models[N_MODELS];
    uint32_t n_models;
};

td_remote_measure *td_remote_measure_create(const td_layout_params *params, td_err *err)
{
    td_split *split; /* what cannot be a split is not worth measuring */
    td_remote_measure *m =
        td_split_create(params, &split, err) ? td_alloc(1, sizeof *m, err) : NULL;
    td_split_destroy(&split);
    if (m)
        m->params = *params;
    return m;
}

void td_remote_measure_destroy(td_remote_measure **measure)
{
    td_remote_measure *m = *measure;
    for (uint32_t i = 0; m && i < m->n; i++)
        td_remotes_destroy(&m->machines[i].remotes);
    td_free(m);
    *measure = NULL;
}

/* The session with a machine, begun where there is none. */
static td_remotes *find_machine(td_remote_measure *m, const char *name, td_err *err)
{
    for (uint32_t i = 0; i < m->n; i++)
        if (!strcmp(m->machines[i].host.name, name))
            return m->machines[i].remotes;
    machine *k = &m->machines[m->n];
    if (m->n == TD_STAGES_MAX) {
        td_err_set(err, TD_E_USAGE, "more than %u other machines", TD_STAGES_MAX);
        return NULL;
    }
    if (!td_split_find_host(&m->params, name, &k->host, err) ||
        !(k->remotes = td_remotes_create(&k->host, 1, m->params.host_key, err)))
        return NULL;
    if (!td_remotes_join(k->remotes, err))
        td_remotes_destroy(&k->remotes);
    else
        m->n++;
    return k->remotes;
}

static const uint8_t *find_id(td_remote_measure *m, const td_model *model, td_err *err)
{
    uint32_t i = 0;
    while (i < m->n_models && m->models[i].model != model)
        i++;
    TD_ASSERT(i < N_MODELS);
    if (i == m->n_models) {
        if (!td_models_id(model, m->models[i].id, err))
            return NULL;
        m->models[m->n_models++].model = model;
    }
    return m->models[i].id;
}

static bool show(void *user, const session *s)
{
    (void)user;
    if (s->loading.total)
        td_log_progress("%s is sent what it measures: %.2f of %.2f GB", s->name,
                        (double)s->loading.done * 1e-9, (double)s->loading.total * 1e-9);
    return true;
}

/* Has the session's thread do what it finds in the state. */
static bool ask(td_remotes *r, session_state state, td_err *err)
{
    session *s = &r->sessions[0];
    if (s->state != SESSION_LOST)
        s->state = state;
    td_remotes_wake(r);
    return td_remote_wait_idle(r, show, NULL, err);
}

static bool look(void *user, const char *text, const td_model *model, uint32_t n_ctx,
                 td_measure measure, td_far_device *out, td_err *err)
{
    td_remote_measure *m = user;
    td_device_spec spec;
    const uint32_t n_layer = td_model_hparams(model)->n_layer;
    const uint8_t *id = find_id(m, model, err);
    *out = (td_far_device){0};
    td_remotes *r =
        id && td_device_spec_parse(text, &spec, err) ? find_machine(m, spec.host, err) : NULL;
    td_stage_plan p = {.n_parts = 1,
                       .experts_device = TD_STAGE_ANY,
                       .n_slots = (uint8_t)m->params.n_slots,
                       .kv = td_cache_to_wire(td_layout_kv(&m->params, model)),
                       .wire = TD_STAGE_F32,
                       .n_ctx = n_ctx,
                       .measure = (uint8_t)(measure + 1),
                       .head = model == m->params.head,
                       .parts = {{0, 0, (uint16_t)(n_layer - 1)}}};
    if (!r || !td_split_find_device(spec.host, spec.device, td_remotes_hello(r, 0),
                                    m->params.is_trusting, &out->info, &p.parts[0].device, err))
        return false;
    session *s = &r->sessions[0];
    td_models_describe(model, id, &p);
    pthread_mutex_lock(&r->lock);
    r->gguf = td_model_gguf(model);
    s->loading = (td_stage_loading){0};
    s->due = (td_stage_msg){.type = TD_STAGE_PLAN, .plan = p};
    s->is_due = true;
    bool is_ok = ask(r, SESSION_MEASURING, err);
    td_log_progress_end();
    pthread_mutex_unlock(&r->lock);
    is_ok = is_ok && (td_measured_decode(s->report.bytes, s->report.n_bytes, n_layer, out, err) ||
                      td_err_prepend(err, "host %s", spec.host));
    if (!is_ok)
        td_far_device_free(out);
    return is_ok;
}

static bool measure_link(void *user, const char *host, td_far_link *out, td_err *err)
{
    td_remotes *r = find_machine(user, host, err);
    if (!r)
        return false;
    pthread_mutex_lock(&r->lock);
    td_probes_begin(&r->sessions[0].probes, false);
    bool is_ok = ask(r, SESSION_PROBING, err);
    *out = r->sessions[0].probes.found;
    pthread_mutex_unlock(&r->lock);
    snprintf(out->host, sizeof out->host, "%s", host);
    return is_ok;
}

typedef struct {
    td_remotes *r;
    uint64_t end_us;
} limit;

static bool is_in_time(void *user, const session *s)
{
    const limit *l = user;
    (void)s;
    return td_remote_now_us(l->r) < l->end_us;
}

static bool meet(td_remotes *r, const td_stage_meet *what, td_stage_met *out, td_err *err)
{
    session *s = &r->sessions[0];
    limit l = {r, td_remote_now_us(r) + MEET_US};
    td_err why = {0};
    pthread_mutex_lock(&r->lock);
    s->due = (td_stage_msg){.type = TD_STAGE_MEET, .meet = *what};
    s->is_due = true;
    if (s->state != SESSION_LOST)
        s->state = SESSION_MEETING;
    td_remotes_wake(r);
    bool is_ok = td_remote_wait_idle(r, is_in_time, &l, &why);
    *out = s->met;
    pthread_mutex_unlock(&r->lock);
    if (!is_ok && !is_in_time(&l, s))
        return td_err_set(err, TD_E_UNAVAILABLE,
                          "host %s (%s): no word of its way to the next within %u s", s->name,
                          s->endpoint, MEET_US / 1000000);
    return is_ok || td_err_set(err, why.code, "%s", why.message);
}

static bool measure_hop(void *user, const char *from, const char *to, td_far_hop *out, td_err *err)
{
    td_remotes *a = find_machine(user, from, err), *b = a ? find_machine(user, to, err) : NULL;
    td_stage_meet here = {0}, way;
    td_stage_met met;
    if (!b || !td_remote_draw(&here.ticket, err))
        return false;
    way = here;
    if (!td_remote_write_next(&b->sessions[0], way.next, err))
        return td_err_prepend(err, "host %s", to);
    if (!meet(b, &here, &met, err) || !meet(a, &way, &met, err))
        return false;
    if (met.why[0])
        return td_err_set(err, TD_E_UNAVAILABLE, "host %s (%s) cannot reach host %s at %s: %s",
                          from, a->sessions[0].endpoint, to, b->sessions[0].endpoint, met.why);
    *out = (td_far_hop){.idle_us = met.idle_ns * 1e-3,
                        .loaded_us = met.loaded_ns * 1e-3,
                        .bytes_per_s = (double)met.bytes_per_s};
    snprintf(out->from, sizeof out->from, "%s", from);
    snprintf(out->to, sizeof out->to, "%s", to);
    return true;
}

td_far td_remote_measure_far(td_remote_measure *m)
{
    return (td_far){.look = look, .link = measure_link, .hop = measure_hop, .user = m};
}
