#include "planning/machine_plan.h"

#include "base/check.h"
#include "base/mem.h"
#include "kernels/chips.h"

#include <stdio.h>
#include <string.h>

/* What programs reach of the maker's figures, about (docs/planning.md, the fit). */
#define BANDWIDTH_SHARE 0.85
#define COMPUTE_SHARE   0.3
#define SCRATCH_BYTES   (512.0 * (1 << 20)) /* activations and what lies beside them, a device */
#define ROUND_TRIP_US   20
#define LINK_BYTES      7e9 /* a second, of PCIe 4.0 x4 */

static const double card_us[TD_HARDWARE_KIND_COUNT] = {30, 30, 30, 30}; /* of a layer */
static const double apu_us[TD_HARDWARE_KIND_COUNT] = {90, 160, 201, 307};

static void describe_device(const td_machine *m, uint32_t index, uint32_t unit,
                            td_hardware_device *out)
{
    const td_device_info *info = &m->devices[index];
    bool is_shared = td_capacity_is_shared(info->kind);
    *out = (td_hardware_device){.bytes_per_s = m->bytes_per_s[index],
                                .flops_per_s = m->flops_per_s[index],
                                .memory_bytes = (double)info->capacity.usable_bytes,
                                .shared_bytes = (double)info->capacity.shared_bytes,
                                .bandwidth_share = BANDWIDTH_SHARE,
                                .compute_share = COMPUTE_SHARE,
                                .unit = unit};
    snprintf(out->name, sizeof out->name, "%.63s", info->name);
    memcpy(out->layer_us, is_shared ? apu_us : card_us, sizeof out->layer_us);
}

td_machine_plan *td_machine_plan_create(const td_machine *m, const char *models_path, td_err *err)
{
    td_machine_plan *p = td_alloc(1, sizeof *p, err);
    if (!p)
        return NULL;
    p->machine = m;
    p->hardware = td_hardware_create(models_path, err);
    if (!p->hardware) {
        td_machine_plan_destroy(&p);
        return NULL;
    }
    td_hardware *h = p->hardware;
    p->n_gpus = td_chips_default(m->devices, m->n_devices, p->indices);
    p->n_gpus = td_min_u32(p->n_gpus, TD_SPEED_DEVICES_MAX - 1);
    p->indices[p->n_gpus] = 0;      /* the host */
    uint32_t of_system = p->n_gpus; /* all that read the system's memory take turns */
    for (uint32_t i = p->n_gpus + 1; i-- > 0;)
        if (td_capacity_is_shared(m->devices[p->indices[i]].kind))
            of_system = i;
    for (uint32_t i = 0; i <= p->n_gpus; i++)
        describe_device(m, p->indices[i],
                        td_capacity_is_shared(m->devices[p->indices[i]].kind) ? of_system : i,
                        &h->devices[i]);
    h->n_devices = p->n_gpus + 1;
    h->system_bytes = (double)m->devices[0].capacity.system_bytes;
    h->scratch_bytes = SCRATCH_BYTES;
    h->round_trip_us = ROUND_TRIP_US;
    h->link_bytes_per_s = LINK_BYTES;
    h->draft = td_hardware_find(h, TD_MACHINE_DRAFT);
    if (!h->draft) /* as good as any */
        h->draft = &h->models[0];
    snprintf(h->about, sizeof h->about, "%s", m->about);
    return p;
}

void td_machine_plan_destroy(td_machine_plan **plan)
{
    if (!*plan)
        return;
    td_hardware_close(&(*plan)->hardware);
    td_free(*plan);
    *plan = NULL;
}

static double sum_there(const td_machine_plan *p)
{
    double own = 0;
    for (uint32_t i = 0; i < p->n_gpus; i++)
        own += (double)p->machine->devices[p->indices[i]].capacity.own_bytes;
    return own + p->hardware->system_bytes;
}

bool td_machine_plan_model(td_machine_plan *p, const td_hardware_model *model,
                           td_machine_outlook *out, td_err *err)
{
    td_hardware *h = p->hardware;
    *out = (td_machine_outlook){.needs_host = p->n_gpus == 0, .there_bytes = sum_there(p)};
    out->wanted_bytes = model->other_bytes + model->experts_bytes + 2 * model->output_bytes +
                        model->kv_bytes * TD_HARDWARE_CTX + (p->n_gpus + 1) * SCRATCH_BYTES;
    h->n_devices = td_max_u32(p->n_gpus, 1); /* where there is no GPU the host is the first */
    if (!td_hardware_look(h, model, &out->outlook, err))
        return false;
    if (out->outlook.fits_stream || !p->n_gpus)
        return true;
    out->needs_host = true;
    h->n_devices = p->n_gpus + 1;
    return td_hardware_look(h, model, &out->outlook, err);
}

void td_machine_plan_describe(const td_model *model, td_hardware_model *out)
{
    const td_hparams *hp = td_model_hparams(model);
    const td_gguf *g = td_model_gguf(model);
    bool is_hybrid = false;
    double n_asked = 0, n_all = 0, kv = 0;
    *out = (td_hardware_model){.n_layers = hp->n_layer,
                               .n_embd = hp->n_embd,
                               .n_experts = hp->n_expert,
                               .n_used = hp->n_expert_used};
    snprintf(out->name, sizeof out->name, "%.63s", td_model_name(model));
    for (uint32_t i = 0; i < td_gguf_n_tensors(g); i++) {
        const td_gguf_tensor *t = td_gguf_tensor_at(g, i);
        double n = (double)t->ne[0] * (double)t->ne[1] * (double)t->ne[2] * (double)t->ne[3];
        bool is_output = !strcmp(t->name, "output.weight");
        bool is_embd = !strcmp(t->name, "token_embd.weight");
        bool is_experts = hp->n_expert && strstr(t->name, "_exps.");
        if (is_output || (is_embd && hp->is_tied))
            out->output_bytes = (double)t->n_bytes;
        else if (is_experts)
            out->experts_bytes += (double)t->n_bytes;
        else if (!is_embd)
            out->other_bytes += (double)t->n_bytes;
        *(is_experts ? &n_asked : &n_all) += is_embd && !hp->is_tied ? 0 : n;
    }
    for (uint32_t i = 0; i < hp->n_layer; i++) {
        is_hybrid |= td_layer_is_recurrent(model, i);
        if (!td_layer_is_recurrent(model, i))
            kv += 2.0 * hp->n_head_kv *
                  (hp->head_dim_k + (td_model_arch(model)->is_mla ? 0 : hp->head_dim_v));
    }
    out->kv_bytes = kv;
    out->n_active = n_all + (hp->n_expert ? n_asked * hp->n_expert_used / hp->n_expert : 0);
    out->kind = is_hybrid ? (hp->n_expert ? TD_HARDWARE_HYBRID_EXPERTS : TD_HARDWARE_HYBRID)
                          : (hp->n_expert ? TD_HARDWARE_EXPERTS : TD_HARDWARE_DENSE);
}
