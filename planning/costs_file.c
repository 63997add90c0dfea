/* Measured costs on disk: one file for each key, named by the key's hash, that holds the key itself
 * and the times in nanoseconds. It is only a cache: what cannot be read is measured again, what
 * cannot be written is told in the log. */
#include "planning/costs_private.h"

#include "base/check.h"
#include "base/io.h"
#include "base/json.h"
#include "base/json_writer.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/text.h"

#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define TIME_NS_MAX   1000000000000ll /* 1,000 s */
#define VALUES_OF_ONE (TD_COST_WIDTHS + 2)
#define VALUES_MAX    ((3 + COST_KINDS_MAX) * VALUES_OF_ONE)
#define PATH_BYTES    4096

void td_costs_key_write(const td_costs_params *p, const cost_kinds *kinds, char key[COST_KEY_MAX])
{
    const td_hparams *h = td_model_hparams(p->model);
    const td_device_info *dev = td_device_get_info(p->dev);
    const td_device_info *far = p->experts_dev ? td_device_get_info(p->experts_dev) : NULL;
    char kv[TD_CACHE_TYPES_TEXT];
    cpu_set_t cpus;
    int n_cpus = sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : 0;
    td_cache_types_write(&p->kv, kv);
    size_t n = (size_t)snprintf(
        key, COST_KEY_MAX,
        "tandem %s 3; %.200s, %.200s, %.120s, %u threads of %d; experts on %.200s %u; cache %s; "
        "%s embd %u vocab %u heads %u/%u of %u/%u ff %u experts %u of %u ff %u+%u window %u "
        "delta %u/%u of %u latent %u/%u ends %016llx; kinds",
        TD_VERSION, dev->name, dev->driver, p->spec, dev->n_threads, n_cpus, far ? far->name : "-",
        far ? far->n_threads : 0, kv, td_model_arch(p->model)->name, h->n_embd, h->n_vocab,
        h->n_head, h->n_head_kv, h->head_dim_k, h->head_dim_v, h->n_ff, h->n_expert_used,
        h->n_expert, h->n_ff_expert, h->n_ff_shared, h->window, h->delta_heads_k, h->delta_heads_v,
        h->delta_dim, h->lora_q, h->lora_kv, (unsigned long long)kinds->ends);
    TD_ASSERT(n < COST_KEY_MAX);
    for (uint32_t i = 0; i < kinds->n_kinds; i++)
        n += (size_t)snprintf(key + n, COST_KEY_MAX - n, " %016llx",
                              (unsigned long long)kinds->hashes[i]);
    /* Models that fit in the CPU's caches run faster; how many layers there are decides it. */
    n += (size_t)snprintf(key + n, COST_KEY_MAX - n, "; layers %u", h->n_layer);
    TD_ASSERT(n < COST_KEY_MAX);
    td_text_make_printable(key);
}

static bool find_path(const char *key, char path[PATH_BYTES])
{
    return td_io_cache_path("costs", td_hash64(0, key, strlen(key)), ".json", path, PATH_BYTES);
}

static void read_cost(const td_json_object *o, size_t i, td_cost *out)
{
    for (size_t k = 0; k < VALUES_OF_ONE; k++) {
        double us = (double)td_json_get_int_at(o, "times_ns", i * VALUES_OF_ONE + k) * 1e-3;
        if (k < TD_COST_WIDTHS)
            out->verify_us[k] = us;
        else if (k == TD_COST_WIDTHS)
            out->chunk_us = us;
        else
            out->prefill_us = us;
    }
}

static bool read_table(const td_json *doc, const char *key, uint32_t n_kinds, cost_table *out,
                       td_err *why)
{
    static const td_json_field fields[] = {
        {.key = "key", .type = TD_JSON_STRING, .required = true, .max = COST_KEY_MAX},
        {.key = "times_ns",
         .type = TD_JSON_INT_LIST,
         .required = true,
         .max = TIME_NS_MAX,
         .n_max = VALUES_MAX},
    };
    static const td_json_schema schema = {fields, TD_COUNT(fields), false};
    td_json_object o;
    if (!td_json_read_root(doc, &schema, &o, why))
        return false;
    size_t n = td_json_count(&o, "times_ns"), wanted = (3 + n_kinds) * VALUES_OF_ONE;
    if (strcmp(td_json_get_string(&o, "key", ""), key))
        return td_json_fail(&o, "key", why, "is of other devices or another model");
    if (n != wanted)
        return td_json_fail(&o, "times_ns", why, "has %zu numbers; expected: %zu", n, wanted);
    read_cost(&o, 0, &out->pass);
    read_cost(&o, 1, &out->first);
    read_cost(&o, 2, &out->last);
    for (uint32_t i = 0; i < n_kinds; i++)
        read_cost(&o, 3 + i, &out->kinds[i]);
    return true;
}

bool td_costs_file_read(const char *key, uint32_t n_kinds, cost_table *out)
{
    char path[PATH_BYTES];
    if (!find_path(key, path) || access(path, F_OK) != 0)
        return false;
    td_err why = {0};
    td_json *doc = td_json_read_file(path, &why);
    bool is_ok = doc && read_table(doc, key, n_kinds, out, &why);
    td_json_destroy(&doc);
    if (!is_ok)
        td_log_warn("measured times not used: %s", why.message);
    return is_ok;
}

static void write_cost(td_json_writer *w, const td_cost *c)
{
    for (size_t k = 0; k < TD_COST_WIDTHS; k++)
        td_json_write_i64(w, llround(fmin(c->verify_us[k] * 1e3, (double)TIME_NS_MAX)));
    td_json_write_i64(w, llround(fmin(c->chunk_us * 1e3, (double)TIME_NS_MAX)));
    td_json_write_i64(w, llround(fmin(c->prefill_us * 1e3, (double)TIME_NS_MAX)));
}

void td_costs_file_write(const char *key, uint32_t n_kinds, const cost_table *table)
{
    char path[PATH_BYTES];
    const char *text;
    size_t n_bytes;
    td_err why = {0};
    if (!find_path(key, path))
        return;
    td_json_writer *w = td_json_writer_create(false, &why);
    if (w) {
        td_json_begin_object(w);
        td_json_put_string(w, "key", key);
        td_json_write_key(w, "times_ns");
        td_json_begin_array(w);
        write_cost(w, &table->pass);
        write_cost(w, &table->first);
        write_cost(w, &table->last);
        for (uint32_t i = 0; i < n_kinds; i++)
            write_cost(w, &table->kinds[i]);
        td_json_end_array(w);
        td_json_end_object(w);
        if (td_json_writer_end(w, &text, &n_bytes, &why))
            td_io_replace_file(path, text, n_bytes, &why);
    }
    td_json_writer_destroy(&w);
    if (why.code != TD_OK)
        td_log_warn("measured times are not kept: %s", why.message);
}
