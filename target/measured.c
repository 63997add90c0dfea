#include "target/measured.h"

#include "target/cache_wire.h"

#include "base/check.h"
#include "base/cursor.h"
#include "base/mem.h"
#include "planning/layout.h"

#include <math.h>
#include <sched.h>

#define TIME_NS_MAX 1000000000000ull /* 1,000 s */

static void write_us(td_cursor_out *c, double us)
{
    td_cursor_write_u64(c, us > 0 ? (uint64_t)llround(fmin(us * 1e3, (double)TIME_NS_MAX)) : 0);
}

static void write_cost(td_cursor_out *c, const td_cost *cost)
{
    for (uint32_t i = 0; i < TD_COST_WIDTHS; i++)
        write_us(c, cost->verify_us[i]);
    write_us(c, cost->chunk_us);
    write_us(c, cost->prefill_us);
}

static bool read_us(td_cursor *c, double *us)
{
    uint64_t ns;
    if (!td_cursor_read_u64(c, &ns))
        return false;
    *us = (double)ns * 1e-3;
    return ns <= TIME_NS_MAX || td_cursor_fail(c, "a time of %llu ns; allowed: 0..%llu",
                                               (unsigned long long)ns, TIME_NS_MAX);
}

static bool read_cost(td_cursor *c, td_cost *cost)
{
    bool is_ok = true;
    for (uint32_t i = 0; is_ok && i < TD_COST_WIDTHS; i++)
        is_ok = read_us(c, &cost->verify_us[i]);
    return is_ok && read_us(c, &cost->chunk_us) && read_us(c, &cost->prefill_us);
}

static void write_all(td_cursor_out *c, const td_place_device *place, const td_costs *costs,
                      bool is_known)
{
    cpu_set_t cpus;
    int n_cpus = sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : 0;
    td_cursor_write_u8(c, is_known);
    td_cursor_write_u32(c, (uint32_t)n_cpus);
    td_cursor_write_u64(c, place->budget_bytes);
    td_cursor_write_u64(c, place->shared_bytes);
    td_cursor_write_u64(c, place->fixed_bytes);
    td_cursor_write_u64(c, place->first_bytes);
    td_cursor_write_u64(c, place->last_bytes);
    td_cursor_write_u32(c, costs->n_layers);
    for (uint32_t i = 0; i < costs->n_layers; i++) {
        td_cursor_write_u64(c, place->layer_bytes[i]);
        if (is_known)
            write_cost(c, &costs->layers[i]);
    }
    if (!is_known)
        return;
    write_cost(c, &costs->pass);
    write_cost(c, &costs->first);
    write_cost(c, &costs->last);
}

bool td_measured_run(const td_stage_plan *p, const td_model *model, const char *spec, void *bytes,
                     size_t capacity_bytes, size_t *n_bytes, td_err *err)
{
    td_cache_types kv;
    if (!td_cache_from_wire(&p->kv, &kv, err))
        return false;
    const td_layout_params params = {.model = model,
                                     .head = p->head ? model : NULL,
                                     .specs = &spec,
                                     .n_specs = 1,
                                     .is_unplaced = true,
                                     .kv = kv,
                                     .n_slots = p->n_slots,
                                     .n_ctx = p->n_ctx,
                                     .is_choosing = true};
    td_layout *l = td_layout_create(&params, err);
    td_costs costs = {0};
    bool is_known = false;
    td_measure measure = (td_measure)(p->measure - 1);
    /* A software driver takes long, and is there for tests: only when asked to. */
    if (l && td_device_get_info(l->parts[0].dev)->kind == TD_DEVICE_SOFTWARE &&
        measure == TD_MEASURE_MISSING)
        measure = TD_MEASURE_NEVER;
    bool is_ok = l && td_costs_find(&(td_costs_params){.model = model,
                                                       .dev = l->parts[0].dev,
                                                       .spec = spec,
                                                       .kv = params.kv,
                                                       .measure = measure},
                                    &costs, &is_known, err);
    if (is_ok) {
        td_cursor_out c = td_cursor_out_begin("REPORT", bytes, capacity_bytes, err);
        write_all(&c, &l->places[0], &costs, is_known);
        *n_bytes = (size_t)c.pos;
        is_ok = !c.failed;
    }
    td_costs_free(&costs);
    td_layout_destroy(&l);
    return is_ok;
}

/* Sums of them are to be in range, whatever is claimed. */
static bool read_bytes(td_cursor *c, uint64_t *n)
{
    return td_cursor_read_u64(c, n) &&
           (*n <= TD_STAGE_FILE_MAX ||
            td_cursor_fail(c, "%llu bytes; allowed: 0..%llu", (unsigned long long)*n,
                           (unsigned long long)TD_STAGE_FILE_MAX));
}

bool td_measured_decode(const void *bytes, size_t n_bytes, uint32_t n_layers, td_far_device *out,
                        td_err *err)
{
    td_cursor c = td_cursor_begin("REPORT", bytes, n_bytes, err);
    td_place_device *p = &out->place;
    uint8_t is_known;
    out->layer_bytes = td_alloc(n_layers, sizeof *out->layer_bytes, err);
    out->costs.layers = td_alloc(n_layers, sizeof *out->costs.layers, err);
    if (!out->layer_bytes || !out->costs.layers)
        return false;
    p->layer_bytes = out->layer_bytes;
    if (!td_cursor_read_u8(&c, &is_known) || !td_cursor_read_u32(&c, &out->n_cpus) ||
        !read_bytes(&c, &p->budget_bytes) || !read_bytes(&c, &p->shared_bytes) ||
        !read_bytes(&c, &p->fixed_bytes) || !read_bytes(&c, &p->first_bytes) ||
        !read_bytes(&c, &p->last_bytes) || !td_cursor_read_u32(&c, &out->costs.n_layers))
        return false;
    if (is_known > 1 || p->shared_bytes > p->budget_bytes || out->costs.n_layers != n_layers)
        return td_cursor_fail(&c,
                              "of %u layers (flag %u), %llu bytes shared of %llu; allowed: %u "
                              "layers, flags 0 and 1, no more shared than there are",
                              out->costs.n_layers, is_known, (unsigned long long)p->shared_bytes,
                              (unsigned long long)p->budget_bytes, n_layers);
    out->is_known = is_known;
    bool is_ok = true;
    for (uint32_t i = 0; is_ok && i < n_layers; i++)
        is_ok = read_bytes(&c, &out->layer_bytes[i]) &&
                (!is_known || read_cost(&c, &out->costs.layers[i]));
    is_ok = is_ok &&
            (!is_known || (read_cost(&c, &out->costs.pass) && read_cost(&c, &out->costs.first) &&
                           read_cost(&c, &out->costs.last)));
    return is_ok && (!td_cursor_left(&c) || td_cursor_fail(&c, "there are bytes too many"));
}
