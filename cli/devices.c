/* tandem devices: what can run a model here. */
#include "cli/devices.h"
#include "cli/commands.h"
#include "cli/options.h"

#include "base/check.h"
#include "base/json_writer.h"
#include "check/verdict.h"
#include "kernels/device.h"
#include "target/target.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    option_hosts hosts;
    const char *key;
    bool is_json, is_measured;
} fields;

static const option options[] = {
    {"--json", NULL, OPT_FLAG, offsetof(fields, is_json), 0, 0, NULL, "as JSON"},
    {"--measure", NULL, OPT_FLAG, offsetof(fields, is_measured), 0, 0, NULL,
     "read bandwidth of each too (a second or two)"},
    {"--host", NULL, OPT_HOSTS, offsetof(fields, hosts), 0, 0, "NAME=EP",
     "of another machine instead: the `tandem stage` at EP (as of `generate`), while it is free"},
    {"--key", NULL, OPT_TEXT, offsetof(fields, key), 0, 0, "NAME",
     "our own pair of `tandem keys`, shown there (default: the only one)"},
};
static const command_help help = {
    "devices", "tandem devices [--json] [--measure | --host NAME=EP]",
    "Lists devices: what --device takes, name, driver, memory by heap and limits.", options,
    TD_COUNT(options)};

typedef struct {
    uint32_t n;
    td_target_device devices[TD_DEVICES_MAX];
} list;

static const char *kind_name(td_device_kind kind)
{
    static const char *const names[] = {"host", "discrete GPU", "integrated GPU", "virtual GPU",
                                        "software"};
    return (size_t)kind < TD_COUNT(names) ? names[kind] : "?";
}

/* Bytes a second, or 0 when it cannot be measured. */
static double measure(const td_device_info *info)
{
    td_device *dev = info->is_usable ? td_device_create(info->spec, NULL) : NULL;
    double rate = 0;
    if (dev && !td_device_measure_bandwidth(dev, &rate, NULL))
        rate = 0;
    td_device_destroy(&dev);
    return rate;
}

static void print_memory(const td_device_info *d)
{
    const td_capacity *c = &d->capacity;
    const double gib = 1 << 30;
    if (!c->total_bytes)
        return;
    printf("  memory: %.1f GiB can be used%s%s\n", (double)c->usable_bytes / gib,
           c->reason[0] ? ": " : "", c->reason);
    if (c->hint[0])
        printf("  to have more: %s\n", c->hint);
    for (uint32_t i = 0; i < d->memory.n_heaps && d->kind != TD_DEVICE_HOST; i++)
        printf("  heap %u: %.1f GiB, up to %.1f GiB of it%s%s%s\n", i,
               (double)d->memory.heaps[i].n_bytes / gib, (double)c->heaps[i].most_bytes / gib,
               d->memory.heaps[i].is_device_local ? ", device-local" : "",
               c->heaps[i].is_host_visible ? ", host-visible" : "",
               c->heaps[i].is_counted ? "" : ", not counted");
}

static const td_device_info *find(const list *l, const char *spec)
{
    uint32_t i = 0;
    while (i + 1 < l->n && strcmp(l->devices[i].info.spec, spec) != 0)
        i++;
    return &l->devices[i].info;
}

void td_devices_print(const td_device_info *d, const td_device_info *preferred)
{
    printf("%s: %s (%s)\n  %s%s%sdriver %s\n", d->spec, d->name, kind_name(d->kind),
           d->vendor[0] ? "vendor " : "", d->vendor, d->vendor[0] ? ", " : "", d->driver);
    if (strcmp(d->id, d->spec) != 0)
        printf("  also %s\n", d->id);
    if (d->same_as[0] && preferred)
        printf("  the same chip as %s, driver %s preferred\n", d->same_as, preferred->driver);
    if (!d->is_usable)
        printf("  not usable: %s\n", d->why_not);
    print_memory(d);
    if (d->max_buffer_bytes)
        printf("  largest buffer %.0f MiB, subgroup %u%s%s%s\n",
               (double)d->max_buffer_bytes / (1 << 20), d->subgroup_size, d->has_f16 ? ", f16" : "",
               d->has_int8_dot ? ", int8 dot" : "", d->has_coopmat ? ", cooperative matrix" : "");
    if (d->n_threads)
        printf("  %u threads\n", d->n_threads);
    if (d->quirks[0])
        printf("  quirks: %s\n", d->quirks);
}

static void write_memory(td_json_writer *w, const td_device_info *d)
{
    const td_capacity *c = &d->capacity;
    td_json_put_u64(w, "usable_bytes", c->usable_bytes);
    td_json_put_u64(w, "total_bytes", c->total_bytes);
    td_json_put_u64(w, "own_bytes", c->own_bytes);
    td_json_put_u64(w, "shared_bytes", c->shared_bytes);
    td_json_put_u64(w, "reserve_bytes", c->reserve_bytes);
    td_json_put_string(w, "memory_reason", c->reason);
    td_json_put_string(w, "memory_hint", c->hint[0] ? c->hint : NULL);
    td_json_write_key(w, "heaps");
    td_json_begin_array(w);
    for (uint32_t i = 0; i < d->memory.n_heaps; i++) {
        td_json_begin_object(w);
        td_json_put_u64(w, "bytes", d->memory.heaps[i].n_bytes);
        td_json_put_u64(w, "budget_bytes", c->heaps[i].most_bytes);
        td_json_put_bool(w, "device_local", d->memory.heaps[i].is_device_local);
        td_json_put_bool(w, "host_visible", c->heaps[i].is_host_visible);
        td_json_put_bool(w, "counted", c->heaps[i].is_counted);
        td_json_end_object(w);
    }
    td_json_end_array(w);
}

void td_devices_write(td_json_writer *w, const td_device_info *d)
{
    td_json_put_string(w, "device", d->spec);
    td_json_put_string(w, "name", d->name);
    td_json_put_string(w, "kind", kind_name(d->kind));
    td_json_put_string(w, "vendor", d->vendor);
    td_json_put_u64(w, "vendor_id", d->vendor_id);
    td_json_put_string(w, "driver", d->driver);
    td_json_put_u64(w, "driver_id", d->driver_id);
    td_json_put_string(w, "pci", d->pci[0] ? d->pci : NULL);
    td_json_put_string(w, "uuid", d->uuid[0] ? d->uuid : NULL);
    td_json_put_string(w, "id", d->id);
    td_json_put_string(w, "same_chip_as", d->same_as[0] ? d->same_as : NULL);
    td_json_put_bool(w, "usable", d->is_usable);
    td_json_put_string(w, "why_not", d->is_usable ? NULL : d->why_not);
    write_memory(w, d);
    td_json_put_u64(w, "max_buffer_bytes", d->max_buffer_bytes);
    td_json_put_u64(w, "subgroup_size", d->subgroup_size);
    td_json_put_u64(w, "threads", d->n_threads);
    td_json_put_bool(w, "f16", d->has_f16);
    td_json_put_bool(w, "int8_dot", d->has_int8_dot);
    td_json_put_bool(w, "cooperative_matrix", d->has_coopmat);
    td_json_put_string(w, "quirks", d->quirks);
}

static bool list_here(list *l)
{
    td_device_info infos[TD_DEVICES_MAX];
    l->n = td_device_list(infos, TD_DEVICES_MAX);
    for (uint32_t i = 0; i < l->n; i++) {
        td_target_device *d = &l->devices[i];
        char found[TD_VERDICT_MAX] = "";
        td_verdict_find(&infos[i], found);
        d->info = infos[i];
        snprintf(d->failed, sizeof d->failed, "%.*s", (int)sizeof d->failed - 1, found);
    }
    return true;
}

static void print_list(const fields *f, const char *host, const list *l)
{
    for (uint32_t i = 0; i < l->n; i++) {
        const td_device_info *d = &l->devices[i].info;
        printf("%s%s", host, host[0] ? "/" : "");
        td_devices_print(d, d->same_as[0] ? find(l, d->same_as) : NULL);
        if (l->devices[i].failed[0])
            printf("  not to be trusted, has failed `tandem check`: %s\n", l->devices[i].failed);
        if (f->is_measured && d->is_usable)
            printf("  read bandwidth %.1f GB/s\n", measure(d) * 1e-9);
    }
}

static void write_list(td_json_writer *w, const fields *f, const char *host, const list *l)
{
    for (uint32_t i = 0; i < l->n; i++) {
        td_json_begin_object(w);
        td_json_put_u64(w, "index", i);
        td_json_put_string(w, "host", host[0] ? host : NULL);
        td_devices_write(w, &l->devices[i].info);
        td_json_put_string(w, "failed_check",
                           l->devices[i].failed[0] ? l->devices[i].failed : NULL);
        if (f->is_measured)
            td_json_put_double(w, "bandwidth_bytes_per_s", measure(&l->devices[i].info));
        td_json_end_object(w);
    }
}

/* Of this machine, or of each host that was named. */
static bool show(const fields *f, td_json_writer *w, td_err *err)
{
    list l;
    td_host hosts[TD_OPTION_LIST_MAX] = {{.name = ""}};
    if (!td_options_read_hosts(&f->hosts, f->key, hosts, err))
        return false;
    for (uint32_t i = 0; i < (f->hosts.n ? f->hosts.n : 1); i++) {
        if (!(f->hosts.n ? td_target_host_devices(&hosts[i], f->key, l.devices, &l.n, err)
                         : list_here(&l)))
            return false;
        if (w)
            write_list(w, f, hosts[i].name, &l);
        else
            print_list(f, hosts[i].name, &l);
    }
    return true;
}

int td_command_devices(int argc, char **argv, td_err *err)
{
    fields f = {0};
    bool is_help;
    const char *text;
    size_t n_bytes;
    if (!td_options_parse(&help, argc, argv, &f, &is_help, err))
        return 0;
    if (is_help) {
        td_options_print_help(&help);
        return 0;
    }
    if (f.hosts.n && f.is_measured) {
        td_err_set(err, TD_E_USAGE, "--measure is of this machine; start it on the host itself");
        return 0;
    }
    td_json_writer *w = f.is_json ? td_json_writer_create(true, err) : NULL;
    if (f.is_json && !w)
        return 0;
    if (w)
        td_json_begin_array(w);
    bool is_ok = show(&f, w, err);
    if (w)
        td_json_end_array(w);
    if (w && is_ok && td_json_writer_end(w, &text, &n_bytes, err))
        puts(text);
    td_json_writer_destroy(&w);
    return 0;
}
