/* tandem plan --machine: what the devices of a described machine can hold, and where the layers of
 * models would go there. */
#include "cli/plan.h"

#include "base/json_writer.h"
#include "planning/machine_plan.h"

#include <stdio.h>
#include <string.h>

#define MODELS "configs/hardware/models.json"
#define MIB    (1024.0 * 1024.0)

/* Whether a device is looked at for layers: one that is used when none are named, or the host. */
static bool is_used(const td_machine_plan *p, uint32_t index)
{
    for (uint32_t i = 0; i <= p->n_gpus; i++)
        if (p->indices[i] == index)
            return true;
    return false;
}

static void print_devices(const td_machine_plan *p)
{
    const td_machine *m = p->machine;
    printf("%s\n", m->about);
    for (uint32_t i = 0; i < m->n_devices; i++) {
        const td_device_info *d = &m->devices[i];
        printf("%s: %s\n  memory: %.1f GiB can be used: %s\n", d->spec, d->name,
               (double)d->capacity.usable_bytes / MIB / 1024, d->capacity.reason);
        if (d->capacity.hint[0])
            printf("  to have more: %s\n", d->capacity.hint);
        if (d->same_as[0])
            printf("  not used: %s is the same chip\n", d->same_as);
        else if (!is_used(p, i))
            printf("  not used%s%s\n", d->why_not[0] ? ": " : "", d->why_not);
    }
}

static void print_model(const td_machine_plan *p, const td_hardware_model *model,
                        const td_machine_outlook *o)
{
    const td_speed_row *r = &o->outlook.stream, *drafted = &o->outlook.drafted;
    if (!o->outlook.fits_stream) {
        double missing = o->wanted_bytes - o->there_bytes;
        printf("%-26s does not fit: it needs %.1f GiB of the %.1f GiB that all devices have "
               "together",
               model->name, o->wanted_bytes / MIB / 1024, o->there_bytes / MIB / 1024);
        if (missing > 0)
            printf("; %.1f GiB are missing\n", missing / MIB / 1024);
        else
            printf(", but not in whole layers\n");
        return;
    }
    printf("%-26s %7.1f %8.1f", model->name, r->decode_per_s, drafted->decode_per_s);
    if (drafted->k)
        printf(" (%u on %s)", drafted->k, p->hardware->devices[drafted->i_draft].name);
    for (uint32_t i = 0; i < r->n_stages; i++)
        printf("%s%s %u-%u", i ? " + " : "  ", p->hardware->devices[r->stages[i].device].name,
               r->stages[i].first, r->stages[i].last);
    printf("%s\n", o->needs_host && p->n_gpus ? "  (--device host is needed)" : "");
}

static void write_devices(td_json_writer *w, const td_machine_plan *p)
{
    td_json_write_key(w, "devices");
    td_json_begin_array(w);
    for (uint32_t i = 0; i < p->machine->n_devices; i++) {
        const td_device_info *d = &p->machine->devices[i];
        const td_capacity *c = &d->capacity;
        td_json_begin_object(w);
        td_json_put_string(w, "device", d->spec);
        td_json_put_string(w, "name", d->name);
        td_json_put_bool(w, "used", is_used(p, i));
        td_json_put_string(w, "same_as", d->same_as[0] ? d->same_as : NULL);
        td_json_put_u64(w, "usable_bytes", c->usable_bytes);
        td_json_put_u64(w, "own_bytes", c->own_bytes);
        td_json_put_u64(w, "shared_bytes", c->shared_bytes);
        td_json_put_u64(w, "reserve_bytes", c->reserve_bytes);
        td_json_put_string(w, "memory_reason", c->reason);
        td_json_put_string(w, "memory_hint", c->hint[0] ? c->hint : NULL);
        td_json_end_object(w);
    }
    td_json_end_array(w);
}

static void write_row(td_json_writer *w, const td_machine_plan *p, const char *key,
                      const td_speed_row *r)
{
    td_json_write_key(w, key);
    td_json_begin_object(w);
    td_json_put_double(w, "decode_per_second", r->decode_per_s);
    td_json_put_u64(w, "draft_tokens", r->k);
    td_json_put_string(w, "draft_device",
                       r->k ? p->machine->devices[p->indices[r->i_draft]].spec : NULL);
    td_json_write_key(w, "placement");
    td_json_begin_array(w);
    for (uint32_t i = 0; i < r->n_stages; i++) {
        td_json_begin_object(w);
        td_json_put_string(w, "device", p->machine->devices[p->indices[r->stages[i].device]].spec);
        td_json_put_u64(w, "first_layer", r->stages[i].first);
        td_json_put_u64(w, "last_layer", r->stages[i].last);
        td_json_end_object(w);
    }
    td_json_end_array(w);
    td_json_end_object(w);
}

static void write_model(td_json_writer *w, const td_machine_plan *p, const td_hardware_model *model,
                        const td_machine_outlook *o)
{
    double missing = o->wanted_bytes - o->there_bytes;
    bool fits = o->outlook.fits_stream;
    td_json_begin_object(w);
    td_json_put_string(w, "model", model->name);
    td_json_put_bool(w, "fits", fits);
    td_json_put_bool(w, "needs_host", o->needs_host && fits);
    td_json_put_u64(w, "wanted_bytes", (uint64_t)o->wanted_bytes);
    td_json_put_u64(w, "available_bytes", (uint64_t)o->there_bytes);
    td_json_put_u64(w, "missing_bytes", fits || missing < 0 ? 0 : (uint64_t)missing);
    if (fits) {
        write_row(w, p, "stream", &o->outlook.stream);
        write_row(w, p, "drafted", &o->outlook.drafted);
    }
    td_json_end_object(w);
}

/* A model of the list by its name, else a file; *described holds the latter. NULL with err set. */
static const td_hardware_model *find_model(const td_machine_plan *p, const char *name,
                                           td_hardware_model *described, td_err *err)
{
    const td_hardware_model *found = td_hardware_find(p->hardware, name);
    td_model *model = found ? NULL : td_model_open(name, err);
    if (model) {
        td_machine_plan_describe(model, described);
        found = described;
    } else if (!found) {
        td_err_prepend(err, "\"%.64s\" is no model of " MODELS, name);
    }
    td_model_close(&model);
    return found;
}

static bool show(td_machine_plan *p, const td_hardware_model *only, td_json_writer *w, td_err *err)
{
    bool is_ok = true;
    uint32_t n = only ? 1 : p->hardware->n_models;
    if (w) {
        td_json_begin_object(w);
        td_json_put_string(w, "machine", p->machine->about);
        write_devices(w, p);
        td_json_put_string(w, "draft", p->hardware->draft->name);
        td_json_write_key(w, "models");
        td_json_begin_array(w);
    } else {
        print_devices(p);
        printf("Predicted tokens/s of a stream with %u positions, and with drafts by %s (so many "
               "tokens on which device):\n%-26s %7s %8s\n",
               TD_HARDWARE_CTX, p->hardware->draft->name, "model", "stream", "drafted");
    }
    for (uint32_t i = 0; is_ok && i < n; i++) {
        const td_hardware_model *model = only ? only : &p->hardware->models[i];
        td_machine_outlook o;
        is_ok = td_machine_plan_model(p, model, &o, err);
        if (is_ok && w)
            write_model(w, p, model, &o);
        else if (is_ok)
            print_model(p, model, &o);
    }
    if (w) {
        td_json_end_array(w);
        td_json_end_object(w);
    }
    return is_ok;
}

bool td_plan_machine(const char *path, const char *target, const char *draft, bool is_json,
                     td_err *err)
{
    td_hardware_model targets = {.n_layers = 0}, drafts = {.n_layers = 0};
    const char *text;
    size_t n_bytes;
    td_machine *m = td_machine_open(path, err);
    td_machine_plan *p = m ? td_machine_plan_create(m, MODELS, err) : NULL;
    const td_hardware_model *only = NULL;
    bool is_ok = p != NULL;
    if (is_ok && target)
        is_ok = (only = find_model(p, target, &targets, err)) != NULL;
    if (is_ok && draft)
        is_ok = (p->hardware->draft = find_model(p, draft, &drafts, err)) != NULL;
    td_json_writer *w = is_ok && is_json ? td_json_writer_create(true, err) : NULL;
    is_ok = is_ok && (w || !is_json) && show(p, only, w, err);
    if (is_ok && w && (is_ok = td_json_writer_end(w, &text, &n_bytes, err)))
        printf("%s\n", text);
    td_json_writer_destroy(&w);
    td_machine_plan_destroy(&p);
    td_machine_close(&m);
    return is_ok;
}
