/* SPECs without layers share what the others leave by the sizes of layers in the file against the
 * memory that devices have; then each machine counts what its part takes, and the least context and
 * the fewest cache pages hold for all. */
#include "target/split.h"

#include "base/check.h"
#include "base/mem.h"
#include "target/cache_wire.h"
#include "target/models.h"
#include "target/target.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define ROUNDS_MAX 8u /* of asking for a context */

/* -- who is where ------------------------------------------------------------------------------ */

bool td_split_find_host(const td_layout_params *p, const char *name, td_host *out, td_err *err)
{
    for (uint32_t i = 0; i < p->n_hosts; i++)
        if (!strcmp(p->hosts[i].name, name)) {
            *out = p->hosts[i];
            return true;
        }
    return td_err_set(
        err, TD_E_USAGE,
        "no host \"%s\" is known; name it: --host %s=tcp://ADDRESS:PORT, or \"hosts\" "
        "of a configuration",
        name, name);
}

/* Adds the stage to the last worker, or begins a worker, or a run of them. */
static bool add_remote(td_split *s, const td_layout_params *p, uint32_t i, td_err *err)
{
    td_split_stage *stage = &s->stages[i];
    uint32_t w = s->n_workers - 1;
    bool is_behind = i > 0 && s->stages[i - 1].is_remote;
    stage->is_remote = true;
    if (is_behind && !strcmp(s->workers[w].host.name, stage->spec.host)) {
        s->workers[w].n_stages++;
    } else {
        for (uint32_t k = 0; k < s->n_workers; k++)
            if (!strcmp(s->workers[k].host.name, stage->spec.host))
                return td_err_set(err, TD_E_USAGE,
                                  "stages of host %s stand apart; allowed: one run of them",
                                  stage->spec.host);
        w = s->n_workers++;
        if (!td_split_find_host(p, stage->spec.host, &s->workers[w].host, err))
            return false;
        s->workers[w].first_stage = i;
        s->workers[w].n_stages = 1;
        if (!is_behind)
            s->runs[s->n_runs++] = (td_split_run){.first_worker = w};
        s->runs[s->n_runs - 1].n_workers++;
    }
    stage->worker = w;
    stage->run = s->n_runs - 1;
    s->runs[s->n_runs - 1].end_stage = i + 1;
    return true;
}

bool td_split_create(const td_layout_params *p, td_split **out, td_err *err)
{
    *out = NULL;
    if (p->n_specs < 1 || p->n_specs > TD_STAGES_MAX)
        return true; /* the layout says so */
    td_split *s = td_alloc(1, sizeof *s, err);
    if (!s)
        return false;
    bool is_ok = true;
    uint32_t n_local = 0;
    s->n_stages = p->n_specs;
    for (uint32_t i = 0; is_ok && i < p->n_specs; i++) {
        is_ok = td_device_spec_parse(p->specs[i], &s->stages[i].spec, err);
        if (is_ok && s->stages[i].spec.host[0])
            is_ok = add_remote(s, p, i, err);
        else
            s->stages[i].local = n_local++;
    }
    if (is_ok && s->n_workers && td_place_is_dealt(p->place))
        is_ok = td_err_set(err, TD_E_USAGE,
                           "place \"%.64s\": \"%.64s\" is on another machine; allowed: devices "
                           "of this one",
                           p->place, p->specs[s->workers[0].first_stage]);
    /* Before anybody is connected to, for it may take a while. */
    is_ok = is_ok && (!s->n_workers || td_models_id(p->model, s->model_id, err));
    if (is_ok && s->n_workers)
        *out = s;
    else
        td_split_destroy(&s);
    return is_ok;
}

void td_split_destroy(td_split **split)
{
    td_free(*split);
    *split = NULL;
}

uint32_t td_split_stage_of(const td_split *s, uint32_t local)
{
    uint32_t i = 0;
    while (s->stages[i].is_remote || s->stages[i].local != local)
        i++;
    return i;
}

/* -- devices ----------------------------------------------------------------------------------- */

/* "host" also means "host:8"; "vulkan:radeon" one with that in its name. */
static bool is_meant(const char *spec, const td_stage_device *d)
{
    size_t n = strlen(spec);
    bool is_kind = !strncmp(d->spec, spec, n) && d->spec[n] == ':';
    bool is_named =
        !strncmp(spec, "vulkan:", 7) && spec[7] && strcasestr(d->name, spec + 7) != NULL;
    return !strcmp(spec, d->spec) || !strcmp(spec, d->id) || is_kind || is_named;
}

static bool find_any(const char *host, const char *spec, const td_stage_hello_ok *hello,
                     uint8_t *out, td_err *err)
{
    char list[640] = "";
    uint32_t n_found = 0;
    for (uint8_t i = 0; i < hello->n_devices; i++) {
        const td_stage_device *d = &hello->devices[i];
        size_t n = strlen(list);
        snprintf(list + n, sizeof list - n, "%s%s (%.40s)", i ? ", " : "", d->spec, d->name);
        if (!strcmp(spec, d->spec)) { /* to the letter: no other can be meant */
            *out = i;
            return true;
        }
        if (is_meant(spec, d)) {
            *out = i;
            n_found++;
        }
    }
    return n_found == 1 || td_err_set(err, TD_E_USAGE, "device %s/%s: %s meant; that host has: %s",
                                      host, spec, n_found ? "several are" : "none is", list);
}

/* The same, and it is not known to fail. */
static bool find_device(const char *host, const char *spec, const td_stage_hello_ok *hello,
                        bool is_trusting, uint8_t *out, td_err *err)
{
    if (!find_any(host, spec, hello, out, err))
        return false;
    const td_stage_device *d = &hello->devices[*out];
    return is_trusting || !d->failed[0] ||
           td_err_set(err, TD_E_UNAVAILABLE,
                      "%s/%s (%s, driver %s) has failed `tandem check` there: %s; take another "
                      "--device, check it again after a change, or go on with --trust",
                      host, d->spec, d->name, d->driver, d->failed);
}

static td_device_info info_of(const td_stage_device *d)
{
    td_device_info info = {
        .kind = (td_device_kind)d->kind,
        .n_threads = d->n_threads,
        .is_usable = true,
        .capacity = {.usable_bytes = d->usable_bytes, .total_bytes = d->total_bytes}};
    snprintf(info.spec, sizeof info.spec, "%.31s", d->spec);
    snprintf(info.id, sizeof info.id, "%.95s", d->id);
    snprintf(info.name, sizeof info.name, "%s", d->name);
    snprintf(info.driver, sizeof info.driver, "%s", d->driver);
    return info;
}

bool td_split_find_device(const char *host, const char *spec, const td_stage_hello_ok *hello,
                          bool is_trusting, td_device_info *info, uint8_t *out, td_err *err)
{
    if (!find_device(host, spec, hello, is_trusting, out, err))
        return false;
    *info = info_of(&hello->devices[*out]);
    return true;
}

bool td_target_host_devices(const td_host *host, const char *key, td_target_device *out,
                            uint32_t *n, td_err *err)
{
    td_remotes *r = td_remotes_create(host, 1, key, err);
    bool is_ok = r && td_remotes_join(r, err);
    const td_stage_hello_ok *hello = is_ok ? td_remotes_hello(r, 0) : NULL;
    *n = is_ok ? td_min_u32(hello->n_devices, TD_DEVICES_MAX) : 0;
    for (uint32_t i = 0; i < *n; i++) {
        out[i].info = info_of(&hello->devices[i]);
        snprintf(out[i].failed, sizeof out[i].failed, "%s", hello->devices[i].failed);
    }
    td_remotes_destroy(&r);
    return is_ok;
}

/* The hosts that the SPECs name, each once, those of the first SPECs first. */
static bool list_hosts(const td_layout_params *p, const td_target_look *looks, uint32_t n,
                       td_host *hosts, uint32_t *n_hosts, td_err *err)
{
    *n_hosts = 0;
    for (uint32_t i = 0; i < n; i++) {
        td_device_spec spec;
        uint32_t k = 0;
        if (!td_device_spec_parse(looks[i].spec, &spec, err))
            return false;
        while (k < *n_hosts && strcmp(hosts[k].name, spec.host) != 0)
            k++;
        if (!spec.host[0] || k < *n_hosts)
            continue;
        if (k == TD_STAGES_MAX)
            return td_err_set(err, TD_E_USAGE, "more than %u other machines", TD_STAGES_MAX);
        if (!td_split_find_host(p, spec.host, &hosts[(*n_hosts)++], err))
            return false;
    }
    return true;
}

static void look_at(td_target_look *look, td_remotes *r, const td_host *hosts, bool is_trusting)
{
    td_device_spec spec;
    uint32_t k = 0;
    uint8_t device;
    look->why = (td_err){0};
    if (!td_device_spec_parse(look->spec, &spec, &look->why))
        return;
    if (!spec.host[0]) {
        look->is_there = td_device_find(spec.device, &look->info, &look->why);
        return;
    }
    while (strcmp(hosts[k].name, spec.host) != 0)
        k++;
    const td_stage_hello_ok *hello = td_remotes_find(r, k, &look->why);
    look->is_there =
        hello && find_device(spec.host, spec.device, hello, is_trusting, &device, &look->why);
    if (look->is_there)
        look->info = info_of(&hello->devices[device]);
}

bool td_target_look_for(const td_layout_params *p, td_target_look *looks, uint32_t n,
                        uint32_t n_needed, uint64_t within_us, td_err *err)
{
    td_host hosts[TD_STAGES_MAX];
    uint32_t n_hosts, n_first;
    td_remotes *r = NULL;
    if (!list_hosts(p, looks, n_needed, hosts, &n_first, err) ||
        !list_hosts(p, looks, n, hosts, &n_hosts, err))
        return false;
    if (n_hosts) {
        r = td_remotes_create(hosts, n_hosts, p->host_key, err);
        if (!r)
            return false;
        td_remotes_await(r, n_first, within_us);
    }
    for (uint32_t i = 0; i < n; i++)
        look_at(&looks[i], r, hosts, p->is_trusting);
    td_remotes_destroy(&r);
    return true;
}

static bool find_devices(td_split *s, const td_remotes *remotes, bool is_trusting, td_err *err)
{
    for (uint32_t i = 0; i < s->n_stages; i++) {
        td_split_stage *stage = &s->stages[i];
        if (!stage->is_remote) {
            if (!td_device_find(stage->spec.device, &stage->device_info, err))
                return false;
            continue;
        }
        const td_stage_hello_ok *hello = td_remotes_hello(remotes, stage->worker);
        if (!find_device(stage->spec.host, stage->spec.device, hello, is_trusting, &stage->device,
                         err))
            return false;
        stage->device_info = info_of(&hello->devices[stage->device]);
    }
    return true;
}

/* -- layers ------------------------------------------------------------------------------------ */

/* Bytes of each layer's tensors in the file, and of what is in no layer. */
static void count_layers(const td_model *m, uint64_t *layers, uint64_t *others)
{
    const td_gguf *g = td_model_gguf(m);
    uint32_t n_layer = td_model_hparams(m)->n_layer;
    *others = 0;
    for (uint32_t i = 0; i < td_gguf_n_tensors(g); i++) {
        const td_gguf_tensor *t = td_gguf_tensor_at(g, i);
        bool is_layer = !strncmp(t->name, "blk.", 4);
        unsigned long layer = is_layer ? strtoul(t->name + 4, NULL, 10) : 0;
        if (!is_layer)
            *others += t->n_bytes;
        else if (layer < n_layer)
            layers[layer] += t->n_bytes;
    }
}

/* Of the layer behind the last. */
static uint64_t head_bytes(const td_model *head)
{
    const td_gguf *g = td_model_gguf(head);
    char prefix[32];
    uint64_t n_bytes = 0;
    int n = snprintf(prefix, sizeof prefix, "blk.%u.", td_model_hparams(head)->n_layer);
    for (uint32_t i = 0; i < td_gguf_n_tensors(g); i++)
        if (!strncmp(td_gguf_tensor_at(g, i)->name, prefix, (size_t)n))
            n_bytes += td_gguf_tensor_at(g, i)->n_bytes;
    return n_bytes;
}

/* Layers to the stages whose SPECs name none. */
static bool share_layers(td_split *s, const td_layout_params *p, td_err *err)
{
    const td_model *m = p->model;
    uint32_t n_layer = td_model_hparams(m)->n_layer;
    uint64_t others, *layers = td_alloc(n_layer, sizeof *layers, err);
    td_place_device places[TD_STAGES_MAX];
    if (!layers)
        return false;
    count_layers(m, layers, &others);
    for (uint32_t i = 0; i < s->n_stages; i++) {
        const td_split_stage *stage = &s->stages[i];
        places[i] =
            (td_place_device){.budget_bytes = stage->device_info.capacity.usable_bytes,
                              .first_bytes = others / 2,
                              .last_bytes = others / 2 + (p->head ? head_bytes(p->head) : 0),
                              .layer_bytes = layers,
                              .is_pinned = stage->spec.is_pinned,
                              .first = stage->spec.first,
                              .last = stage->spec.last};
        /* Where it is not told, devices count alike; what does not fit shows when it is counted. */
        if (!places[i].budget_bytes || stage->spec.is_pinned)
            places[i].budget_bytes = 1ull << 50;
    }
    bool is_ok = td_place_layers(places, s->n_stages, n_layer, err);
    for (uint32_t i = 0; is_ok && i < s->n_stages; i++) {
        s->stages[i].spec.is_pinned = true;
        s->stages[i].spec.first = places[i].first;
        s->stages[i].spec.last = places[i].last;
    }
    td_free(layers);
    return is_ok;
}

/* -- all together ------------------------------------------------------------------------------ */

static bool make_plans(const td_split *s, const td_layout_params *p, uint32_t n_ctx,
                       const td_remotes *remotes, td_stage_plan *plans, td_err *err)
{
    const char *experts = td_place_experts(p->place);
    for (uint32_t w = 0; w < s->n_workers; w++) {
        td_stage_plan *plan = &plans[w];
        uint32_t first = s->workers[w].first_stage;
        *plan = (td_stage_plan){.first_stage = (uint8_t)first,
                                .n_parts = (uint8_t)s->workers[w].n_stages,
                                .experts_device = TD_STAGE_ANY,
                                .n_slots = (uint8_t)p->n_slots,
                                .kv = td_cache_to_wire(&p->kv),
                                .wire = p->wire ? (uint8_t)p->wire->id : TD_STAGE_F32,
                                .n_ctx = n_ctx};
        plan->head = p->head && s->runs[s->stages[first].run].end_stage == s->n_stages;
        td_models_describe(p->model, s->model_id, plan);
        for (uint32_t k = 0; k < plan->n_parts; k++) {
            plan->parts[k].device = s->stages[first + k].device;
            plan->parts[k].first = (uint16_t)s->stages[first + k].spec.first;
            plan->parts[k].last = (uint16_t)s->stages[first + k].spec.last;
        }
        /* "experts=host" is meant on each machine for itself. */
        if (experts && !find_device(s->workers[w].host.name, experts, td_remotes_hello(remotes, w),
                                    p->is_trusting, &plan->experts_device, err))
            return false;
    }
    return true;
}

static void take_planned(td_split *s, const td_stage_planned *planned, td_split_plan *out)
{
    for (uint32_t w = 0; w < s->n_workers; w++) {
        const td_stage_planned *p = &planned[w];
        out->n_ctx = td_min_u32(out->n_ctx, p->n_ctx);
        if (p->n_pages && (!out->n_pages || p->n_pages < out->n_pages))
            out->n_pages = p->n_pages;
        for (uint32_t k = 0; k < s->workers[w].n_stages; k++) {
            td_split_stage *stage = &s->stages[s->workers[w].first_stage + k];
            stage->n_bytes = p->parts[k].n_bytes;
            stage->n_usable_bytes = p->parts[k].budget_bytes;
            stage->n_experts_bytes = p->parts[k].experts_bytes;
        }
    }
}

/* The part that is here, with at most n_ctx positions. */
static bool lay_out_here(td_split *s, const td_layout_params *p, uint32_t n_ctx, td_split_plan *out,
                         td_err *err)
{
    const char *specs[TD_STAGES_MAX];
    td_layout_params here = *p;
    here.n_specs = 0;
    here.n_ctx = n_ctx;
    here.specs = specs;
    here.is_partial = true;
    for (uint32_t i = 0; i < s->n_stages; i++) {
        const td_device_spec spec = s->stages[i].spec;
        if (s->stages[i].is_remote)
            continue;
        snprintf(s->texts[i], sizeof s->texts[i], "%s@%u-%u", spec.device, spec.first, spec.last);
        specs[here.n_specs++] = s->texts[i];
    }
    out->n_ctx = n_ctx ? n_ctx : td_model_hparams(p->model)->n_ctx_train;
    if (!here.n_specs)
        return true;
    td_layout_destroy(&out->layout);
    out->layout = td_layout_create(&here, err);
    if (!out->layout)
        return false;
    out->n_ctx = out->layout->n_ctx;
    out->n_pages = out->layout->n_pages;
    return true;
}

bool td_split_lay_out(td_split *s, const td_layout_params *p, td_remotes *remotes,
                      td_split_plan *out, td_err *err)
{
    td_stage_plan plans[TD_STAGES_MAX];
    td_stage_planned planned[TD_STAGES_MAX];
    *out = (td_split_plan){0};
    if (!find_devices(s, remotes, p->is_trusting, err) || !share_layers(s, p, err))
        return false;
    uint32_t n_ctx = p->n_ctx;
    for (uint32_t round = 0; round < ROUNDS_MAX; round++) {
        out->n_pages = 0;
        if (!lay_out_here(s, p, n_ctx, out, err) || !make_plans(s, p, n_ctx, remotes, plans, err) ||
            !td_remotes_plan(remotes, plans, p, planned, err))
            break;
        take_planned(s, planned, out);
        if (n_ctx == out->n_ctx) {
            if (out->layout)
                out->layout->n_pages = out->n_pages;
            return true;
        }
        n_ctx = out->n_ctx;
    }
    td_layout_destroy(&out->layout);
    return td_err_set(err, TD_E_UNAVAILABLE, "the machines do not agree on a context");
}
