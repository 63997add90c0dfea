/* The front of every device: parses specs, allocates the objects' heads and hands them to the
 * backend's table. ops.c records; the backends compile and run. */
#include "kernels/backend.h"
#include "kernels/sabotage.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define THREADS_MAX 1024u

void td_device_weigh(td_device_info *info)
{
    info->memory.kind = info->kind;
    info->memory.is_amd = info->vendor_id == 0x1002;
    td_capacity_find(&info->memory, &info->capacity);
}

uint32_t td_device_list(td_device_info *out, uint32_t max)
{
    if (!max)
        return 0;
    out[0] = (td_device_info){.is_usable = true};
    td_host_describe(&out[0]);
    return 1 + td_vulkan_list(out + 1, max - 1);
}

/* "host", "host:N" or "host:N:CPUS"; 0 and NULL for what is not said. */
static bool read_host(const char *spec, uint32_t *n_threads, const char **cpus, td_err *err)
{
    char *end;
    unsigned long n;
    *n_threads = 0;
    *cpus = NULL;
    if (!spec[4])
        return true;
    n = strtoul(spec + 5, &end, 10);
    *cpus = *end == ':' ? end + 1 : NULL;
    if (spec[5] < '0' || spec[5] > '9' || (*end && !*cpus) || n < 1 || n > THREADS_MAX)
        return td_err_set(err, TD_E_USAGE, "device \"%.64s\": threads must be 1..%u", spec,
                          THREADS_MAX);
    *n_threads = (uint32_t)n;
    return true;
}

static td_device *create_host(const char *spec, td_err *err)
{
    uint32_t n_threads;
    const char *cpus;
    if (!read_host(spec, &n_threads, &cpus, err))
        return NULL;
    td_device *dev = td_host_create(n_threads, false, err);
    if (dev && cpus && !td_host_pin(dev, cpus, err)) {
        td_err_prepend(err, "device \"%.64s\"", spec);
        td_device_destroy(&dev);
    }
    return dev;
}

static bool is_host(const char *spec)
{
    return !strncmp(spec, "host", 4) && (!spec[4] || spec[4] == ':');
}

static bool is_vulkan(const char *spec) { return !strncmp(spec, "vulkan:", 7) && spec[7]; }

static bool unknown(const char *spec, td_err *err)
{
    return td_err_set(err, TD_E_USAGE,
                      "device \"%.64s\" is not known; allowed: host, host:THREADS, "
                      "host:THREADS:CPUS, vulkan:INDEX, vulkan:VENDOR, vulkan:pci:ADDRESS, "
                      "vulkan:uuid:ID, vulkan:NAME (see `tandem devices`)",
                      spec);
}

void td_device_write_kind(const td_device_info *d, char *out, size_t n_bytes)
{
    if (d->kind != TD_DEVICE_HOST)
        snprintf(out, n_bytes, "%s (%s)", d->name, d->driver);
    else
        snprintf(out, n_bytes, "%s", strcmp(d->spec, "scalar") != 0 ? "host" : "scalar");
}

bool td_device_find(const char *spec, td_device_info *out, td_err *err)
{
    uint32_t n_threads;
    const char *cpus;
    if (is_vulkan(spec))
        return td_vulkan_find(spec + 7, out, err);
    if (strcmp(spec, "scalar") != 0 && !is_host(spec))
        return unknown(spec, err);
    if (is_host(spec) && !read_host(spec, &n_threads, &cpus, err))
        return false;
    td_host_describe(out);
    if (is_host(spec) && n_threads)
        out->n_threads = n_threads;
    snprintf(out->spec, sizeof out->spec, "%.*s", (int)sizeof out->spec - 1, spec);
    snprintf(out->id, sizeof out->id, "%s", out->spec);
    return true;
}

td_device *td_device_create(const char *spec, td_err *err)
{
    td_device *dev = NULL;
    if (!strcmp(spec, "scalar")) /* the oracle, which nothing spoils */
        return td_host_create(1, true, err);
    if (is_host(spec))
        dev = create_host(spec, err);
    else if (is_vulkan(spec))
        dev = td_vulkan_create(spec + 7, err);
    else
        unknown(spec, err);
    if (dev && !td_sabotage_begin(dev, err))
        td_device_destroy(&dev);
    return dev;
}

void td_device_destroy(td_device **dev)
{
    if (*dev) {
        td_tensor_destroy(&(*dev)->sabotage.count);
        (*dev)->backend->device_destroy(*dev);
    }
    *dev = NULL;
}

bool td_device_lose(td_device *dev)
{
    if (dev->backend->lose)
        dev->backend->lose(dev);
    return dev->backend->lose != NULL;
}

const td_device_info *td_device_get_info(const td_device *dev) { return &dev->info; }

void td_device_memory(const td_device *dev, uint64_t *used_bytes, uint64_t *budget_bytes)
{
    *used_bytes = dev->used_bytes;
    *budget_bytes = dev->budget_bytes;
}

void td_device_get_counts(const td_device *dev, td_device_counts *out) { *out = dev->counts; }

void td_device_counts_add(td_device_counts *sum, const td_device_counts *n, int factor)
{
    const uint64_t f = (uint64_t)(int64_t)factor;
    sum->n_submissions += f * n->n_submissions;
    sum->n_waits += f * n->n_waits;
    sum->n_recordings += f * n->n_recordings;
    sum->n_recorded_ahead += f * n->n_recorded_ahead;
    sum->n_sets_written += f * n->n_sets_written;
}

bool td_device_measure_bandwidth(td_device *dev, double *bytes_per_s, td_err *err)
{
    return dev->backend->measure_bandwidth(dev, bytes_per_s, err);
}

/* A copy of a name for messages; NULL names become "". */
static const char *own_name(const char *name, td_err *err)
{
    return td_strndup(name ? name : "", name ? strlen(name) : 0, err);
}

td_tensor *td_tensor_create(td_device *dev, const td_tensor_params *params, td_err *err)
{
    TD_ASSERT(params->n_rows > 0 && params->n_cols > 0);
    td_tensor *t = td_alloc(1, dev->backend->tensor_size, err);
    if (!t)
        return NULL;
    t->dev = dev;
    t->params = *params;
    t->params.name = own_name(params->name, err);
    if (!t->params.name || !dev->backend->tensor_init(t, err)) {
        td_err_prepend(err, "tensor %s", params->name ? params->name : "");
        td_tensor_destroy(&t);
    }
    return t;
}

void td_tensor_destroy(td_tensor **t)
{
    if (!*t)
        return;
    td_tensor_place(*t, NULL, 0);
    (*t)->dev->backend->tensor_free(*t);
    td_free((void *)(uintptr_t)(*t)->params.name);
    td_free(*t);
    *t = NULL;
}

const td_tensor_params *td_tensor_get_params(const td_tensor *t) { return &t->params; }

td_home *td_home_create(td_device *dev, void *memory, uint64_t n_bytes, td_err *err)
{
    TD_ASSERT((uintptr_t)memory % TD_HOME_ALIGNMENT == 0 && n_bytes % TD_HOME_ALIGNMENT == 0);
    size_t size = dev->backend->home_size ? dev->backend->home_size : sizeof(td_home);
    td_home *home = td_alloc(1, size, err);
    if (!home)
        return NULL;
    *home = (td_home){.dev = dev, .data = memory, .n_bytes = n_bytes};
    if (dev->backend->home_init && !dev->backend->home_init(home, err)) {
        td_err_prepend(err, "memory between devices");
        td_home_destroy(&home);
    }
    return home;
}

bool td_home_destroy(td_home **home)
{
    bool is_left = true;
    if (*home && (*home)->dev->backend->home_free)
        is_left = (*home)->dev->backend->home_free(*home);
    td_free(*home);
    *home = NULL;
    return is_left;
}

void *td_home_data(td_home *home) { return home->data; }

void td_tensor_place(td_tensor *t, td_home *home, uint64_t offset)
{
    if (!t->home)
        t->own = t->data;
    t->home = home;
    t->home_offset = offset;
    t->data = home ? home->data + offset : t->own;
    if (!home)
        return;
    TD_ASSERT(home->dev == t->dev && t->params.host != TD_HOST_NONE);
    TD_ASSERT(offset + 4ull * t->params.n_rows * t->params.n_cols <= home->n_bytes);
}

void *td_tensor_data(td_tensor *t) { return t->params.host != TD_HOST_NONE ? t->data : NULL; }

/* Activations are quantized on their way into products, on the host to 1.25 bytes an element. */
uint64_t td_tensor_bytes(const td_device *dev, const td_tensor_params *p)
{
    uint64_t n = ((uint64_t)p->n_rows * p->n_cols * 4 + 255) & ~255ull;
    if (p->elem != TD_ELEM_F32 || p->rows == TD_ROWS_FIXED)
        return n;
    return n + (dev->backend->side_bytes ? dev->backend->side_bytes(p)
                                         : (uint64_t)p->n_rows * p->n_cols / 4 * 5);
}

uint64_t td_attention_bytes(const td_device *dev, uint32_t n_rows, uint32_t n_head,
                            uint32_t head_dim_v, uint32_t n_ctx)
{
    return dev->backend->attention_bytes
               ? dev->backend->attention_bytes(n_rows, n_head, head_dim_v, n_ctx)
               : 0;
}

td_weight *td_weight_create(td_device *dev, const td_weight_params *params, td_err *err)
{
    TD_ASSERT(params->n_rows > 0 && params->n_cols > 0);
    TD_ASSERT(params->n_cols % params->type->block_elements == 0);
    TD_ASSERT(!params->n_groups || params->n_rows % params->n_groups == 0);
    td_weight *w = td_alloc(1, dev->backend->weight_size, err);
    if (!w)
        return NULL;
    w->dev = dev;
    w->params = *params;
    w->params.name = own_name(params->name, err);
    if (!w->params.name || !dev->backend->weight_init(w, err)) {
        td_err_prepend(err, "weight %s", params->name ? params->name : "");
        td_weight_destroy(&w);
    }
    return w;
}

void td_weight_destroy(td_weight **w)
{
    if (!*w)
        return;
    (*w)->dev->backend->weight_free(*w);
    td_free((void *)(uintptr_t)(*w)->params.name);
    td_free(*w);
    *w = NULL;
}

const td_weight_params *td_weight_get_params(const td_weight *w) { return &w->params; }

bool td_weight_write(td_weight *w, uint32_t row0, uint32_t n_rows, const void *rows, td_err *err)
{
    TD_ASSERT(row0 <= w->params.n_rows && n_rows <= w->params.n_rows - row0);
    if (!w->dev->backend->weight_write(w, row0, n_rows, rows, err))
        return td_err_prepend(err, "weight %s", w->params.name);
    return true;
}

uint64_t td_weight_bytes(const td_device *dev, const td_weight_params *params)
{
    return dev->backend->weight_bytes(dev, params);
}

uint64_t td_weight_piece_bytes(const td_device *dev, const td_weight_params *params)
{
    return dev->backend->weight_piece_bytes ? dev->backend->weight_piece_bytes(params) : 0;
}

td_kv *td_kv_create(td_device *dev, const td_kv_params *params, td_err *err)
{
    TD_ASSERT(params->type_k->is_cache_type && params->type_v->is_cache_type);
    TD_ASSERT(!params->is_latent ||
              (params->type_v == params->type_k && params->head_dim_v <= params->head_dim_k));
    TD_ASSERT(!params->is_latent || params->rotates_k == params->rotates_v);
    TD_ASSERT(params->n_pages > 0 && params->n_head_kv > 0);
    td_kv *kv = td_alloc(1, dev->backend->kv_size, err);
    if (!kv)
        return NULL;
    kv->dev = dev;
    kv->params = *params;
    if (!dev->backend->kv_init(kv, err)) {
        td_err_prepend(err, "kv cache of %u pages", params->n_pages);
        td_kv_destroy(&kv);
    }
    return kv;
}

void td_kv_destroy(td_kv **kv)
{
    if (!*kv)
        return;
    (*kv)->dev->backend->kv_free(*kv);
    td_free(*kv);
    *kv = NULL;
}

const td_kv_params *td_kv_get_params(const td_kv *kv) { return &kv->params; }

uint64_t td_kv_bytes(const td_device *dev, const td_kv_params *params)
{
    return dev->backend->kv_bytes(dev, params);
}

uint64_t td_kv_piece_bytes(const td_device *dev, const td_kv_params *params)
{
    return dev->backend->kv_piece_bytes ? dev->backend->kv_piece_bytes(params) : 0;
}

uint32_t td_state_cols(const td_state_params *p)
{
    return (2 * p->n_head_k + p->n_head_v) * p->dim + 2 * p->n_head_v;
}

td_state *td_state_create(td_device *dev, const td_state_params *params, td_err *err)
{
    TD_ASSERT(params->n_slots > 0 && params->n_head_k > 0);
    TD_ASSERT(params->dim > 0 && params->dim <= TD_STATE_DIM_MAX);
    TD_ASSERT(params->n_head_v > 0 && params->n_head_v % params->n_head_k == 0);
    TD_ASSERT(params->n_taps > 0 && params->n_pending >= params->n_taps);
    td_state *s = td_alloc(1, dev->backend->state_size, err);
    if (!s)
        return NULL;
    s->dev = dev;
    s->params = *params;
    if (!dev->backend->state_init(s, err)) {
        td_err_prepend(err, "recurrent state of %u sequences", params->n_slots);
        td_state_destroy(&s);
    }
    return s;
}

void td_state_destroy(td_state **s)
{
    if (!*s)
        return;
    (*s)->dev->backend->state_free(*s);
    td_free(*s);
    *s = NULL;
}

const td_state_params *td_state_get_params(const td_state *s) { return &s->params; }

uint64_t td_state_bytes(const td_device *dev, const td_state_params *params)
{
    return dev->backend->state_bytes(dev, params);
}

uint64_t td_state_piece_bytes(const td_device *dev, const td_state_params *params)
{
    return dev->backend->state_piece_bytes ? dev->backend->state_piece_bytes(params) : 0;
}

td_program *td_program_begin(td_device *dev, const td_program_params *params, td_err *err)
{
    TD_ASSERT(params->n_rows_max >= 1 && params->n_out_max <= params->n_rows_max);
    TD_ASSERT(params->n_rows_max <=
              (params->mode == TD_MODE_VERIFY ? TD_VERIFY_ROWS_MAX : TD_PREFILL_ROWS_MAX));
    td_program *p = td_alloc(1, dev->backend->program_size, err);
    if (!p)
        return NULL;
    p->dev = dev;
    p->params = *params;
    p->params.name = own_name(params->name, err);
    if (!p->params.name)
        td_program_destroy(&p);
    return p;
}

bool td_program_end(td_program *p, td_err *err)
{
    TD_ASSERT(!p->is_compiled);
    if (p->is_out_of_memory) /* perhaps before the first op */
        return td_err_set(err, TD_E_NOMEM, "program %s: out of host memory while recording",
                          p->params.name);
    TD_ASSERT(p->n_ops > 0);
    if (!p->dev->backend->program_compile(p, err))
        return td_err_prepend(err, "program %s", p->params.name);
    p->is_compiled = true;
    return true;
}

void td_program_destroy(td_program **p)
{
    if (!*p)
        return;
    (*p)->dev->backend->program_free(*p);
    td_free((*p)->ops);
    td_free((*p)->sums);
    td_free((void *)(uintptr_t)(*p)->params.name);
    td_free(*p);
    *p = NULL;
}

const void *td_tensor_read(td_tensor *t, uint32_t row0, uint32_t n_rows, td_err *err)
{
    TD_ASSERT(n_rows > 0 && row0 < t->params.n_rows && n_rows <= t->params.n_rows - row0);
    if (t->data)
        return (const char *)t->data + (size_t)row0 * t->params.n_cols * 4;
    const void *rows = t->dev->backend->tensor_read(t, row0, n_rows, err);
    if (!rows)
        td_err_prepend(err, "tensor %s", t->params.name);
    return rows;
}

static void check_call(const td_program_call *c)
{
    TD_ASSERT(c->p->is_compiled && c->n_times >= 1);
    TD_ASSERT(c->n_rows >= 1 && c->n_rows <= c->p->params.n_rows_max);
    TD_ASSERT(c->n_out <= c->p->params.n_out_max);
}

bool td_programs_run(const td_program_call *calls, uint32_t n_calls, td_err *err)
{
    TD_ASSERT(n_calls >= 1 && n_calls <= TD_CALLS_MAX);
    td_device *dev = calls[0].p->dev;
    bool is_plain = !dev->backend->programs_run;
    for (uint32_t i = 0; i < n_calls; i++) {
        check_call(&calls[i]);
        TD_ASSERT(calls[i].p->dev == dev);
        is_plain |= calls[i].p->is_profiled; /* timed one by one */
    }
    if (!is_plain)
        return dev->backend->programs_run(calls, n_calls, err) ||
               td_err_prepend(err, "%s: program %s", dev->info.spec, calls[0].p->params.name);
    for (uint32_t i = 0; i < n_calls; i++)
        for (uint32_t k = 0; k < calls[i].n_times; k++)
            if (!td_program_run(calls[i].p, calls[i].n_rows, calls[i].n_out, err))
                return false;
    return true;
}

void td_program_expect(td_program *p, uint32_t n_rows, uint32_t n_out)
{
    check_call(&(td_program_call){p, n_rows, n_out, 1});
    if (p->dev->backend->program_expect)
        p->dev->backend->program_expect(p, n_rows, n_out);
}

bool td_program_run(td_program *p, uint32_t n_rows, uint32_t n_out, td_err *err)
{
    TD_ASSERT(p->is_compiled);
    TD_ASSERT(n_rows >= 1 && n_rows <= p->params.n_rows_max && n_out <= p->params.n_out_max);
    uint64_t start_ns = p->is_profiled ? td_clock_real_ns() : 0;
    if (!p->dev->backend->program_run(p, n_rows, n_out, err))
        return td_err_prepend(err, "%s: program %s", p->dev->info.spec, p->params.name);
    if (p->is_profiled) {
        p->counts.n_runs++;
        p->counts.run_seconds += 1e-9 * (double)(td_clock_real_ns() - start_ns);
    }
    return true;
}
