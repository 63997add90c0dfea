/* Timing layers. A probe is a part of the model, mostly one layer, that is loaded, run a few times
 * at each width and let go. Between two runs the host reads other memory, as much as the other
 * layers are, so that a layer finds the CPU's caches as it would in a run of the whole model. */
#include "planning/costs_private.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/mem.h"
#include "base/order.h"
#include "base/queue.h"
#include "base/rng.h"
#include "model/forward.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SAMPLES_MIN   3u
#define SAMPLES_MAX   15u
#define WIDTH_US      60000.0  /* of one probe and width, when SAMPLES_MIN have been taken */
#define SLOW_US       600000.0 /* a run that takes so long is not repeated */
#define DEVICE_US     4e6      /* after so much of all this, nothing is */
#define DEPTH         TD_PREFILL_ROWS_MAX
#define CTX_MAX       4096u /* positions there is room for, which some kernels' grids go by */
#define RUN_LAYERS    4u
#define RUN_BYTES_MAX (2ull << 30)
#define EVICT_MAX     (128ull << 20)
#define EVICT_DEFAULT (64ull << 20)
#define HOPS          256u

const uint32_t td_cost_widths[TD_COST_WIDTHS] = {1, 2, 4, 8, 9, 16, 32, 64};

/* -- costs ------------------------------------------------------------------------------------- */

double td_cost_rows(const td_cost *cost, double n_rows)
{
    const double most = td_cost_widths[TD_COST_WIDTHS - 1];
    double n_full = n_rows > most ? ceil(n_rows / most) - 1 : 0, left = n_rows - n_full * most;
    const double *t = cost->verify_us;
    uint32_t i = 0;
    while (i + 2 < TD_COST_WIDTHS && left > td_cost_widths[i + 1])
        i++;
    double low = td_cost_widths[i], high = td_cost_widths[i + 1];
    double share = left <= low ? 0 : (left - low) / (high - low);
    return n_full * t[TD_COST_WIDTHS - 1] + t[i] + share * (t[i + 1] - t[i]);
}

/* a += factor * b */
static void add(td_cost *a, double factor, const td_cost *b)
{
    for (uint32_t i = 0; i < TD_COST_WIDTHS; i++)
        a->verify_us[i] += factor * b->verify_us[i];
    a->chunk_us += factor * b->chunk_us;
    a->prefill_us += factor * b->prefill_us;
}

static double clamp(double x, double most) { return fmax(0, fmin(x, most)); }

/* Every time of a within 0 and that of `most`. */
static void limit(td_cost *a, const td_cost *most)
{
    for (uint32_t i = 0; i < TD_COST_WIDTHS; i++)
        a->verify_us[i] = clamp(a->verify_us[i], most->verify_us[i]);
    a->chunk_us = clamp(a->chunk_us, most->chunk_us);
    a->prefill_us = clamp(a->prefill_us, most->prefill_us);
}

td_cost td_costs_part(const td_costs *costs, uint32_t first, uint32_t last)
{
    td_cost sum = costs->pass;
    if (first == 0)
        add(&sum, 1, &costs->first);
    if (last + 1 == costs->n_layers)
        add(&sum, 1, &costs->last);
    for (uint32_t i = first; i <= last; i++)
        add(&sum, 1, &costs->layers[i]);
    return sum;
}

/* -- kinds ------------------------------------------------------------------------------------- */

/* The layer a tensor belongs to, from "blk.N.". */
static bool find_layer(const char *name, uint32_t n_layer, uint32_t *layer, const char **rest)
{
    char *end;
    if (strncmp(name, "blk.", 4) || name[4] < '0' || name[4] > '9')
        return false;
    unsigned long n = strtoul(name + 4, &end, 10);
    *layer = (uint32_t)n;
    *rest = end;
    return *end == '.' && n < n_layer;
}

static uint64_t hash_tensor(uint64_t seed, const char *name, const td_gguf_tensor *t)
{
    seed = td_hash64(seed, name, strlen(name));
    seed = td_hash64(seed, &t->type_id, sizeof t->type_id);
    return td_hash64(seed, t->ne, sizeof t->ne);
}

bool td_costs_kinds_find(const td_model *m, cost_kinds *out, td_err *err)
{
    const td_gguf *g = td_model_gguf(m);
    uint32_t n_layer = td_model_hparams(m)->n_layer;
    uint64_t hashes[TD_LAYERS_MAX];
    *out = (cost_kinds){0};
    for (uint32_t i = 0; i < n_layer; i++)
        hashes[i] = 1u + td_layer_is_recurrent(m, i) + 2u * td_layer_is_local(m, i) +
                    4u * td_layer_has_experts(m, i);
    for (uint32_t i = 0; i < td_gguf_n_tensors(g); i++) {
        const td_gguf_tensor *t = td_gguf_tensor_at(g, i);
        const char *rest;
        uint32_t layer;
        if (find_layer(t->name, n_layer, &layer, &rest))
            hashes[layer] = hash_tensor(hashes[layer], rest, t);
        else if (strncmp(t->name, "blk.", 4))
            out->ends = hash_tensor(out->ends, t->name, t);
    }
    for (uint32_t i = 0; i < n_layer; i++) {
        uint32_t k = 0;
        while (k < out->n_kinds && out->hashes[k] != hashes[i])
            k++;
        if (k == COST_KINDS_MAX)
            return td_err_set(err, TD_E_DATA, "%s: more than %u kinds of layers: not measured",
                              td_model_path(m), COST_KINDS_MAX);
        out->kind_of[i] = (uint8_t)k;
        bool is_better = k == out->n_kinds || (out->layers[k] == 0 && i + 1 < n_layer);
        out->n_kinds += k == out->n_kinds;
        out->hashes[k] = hashes[i];
        if (is_better)
            out->layers[k] = i;
    }
    return true;
}

/* -- probes ------------------------------------------------------------------------------------ */

typedef struct {
    const td_costs_params *params;
    uint32_t n_embd, n_layer, n_ctx;
    uint64_t seed;
    double spent_us;  /* in all runs */
    float *x, *out;   /* [TD_PREFILL_ROWS_MAX][n_embd] */
    uint64_t *others; /* what stands for the other layers, [n_others] */
    size_t n_others;
    uint64_t sink;
    uint32_t tokens[DEPTH + TD_VERIFY_ROWS_MAX];
    td_sampler *sampler;
    td_forward *forward;
} prober;

static bool open_prober(prober *p, td_err *err)
{
    const td_gguf *g = td_model_gguf(p->params->model);
    td_device_kind kind = td_device_get_info(p->params->dev)->kind;
    uint64_t n_model = 0, n_bytes = 0;
    for (uint32_t i = 0; i < td_gguf_n_tensors(g); i++)
        n_model += td_gguf_tensor_at(g, i)->n_bytes;
    if (kind == TD_DEVICE_HOST || kind == TD_DEVICE_SOFTWARE) {
        long n_cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
        n_bytes = n_cache > 0 ? 2 * (uint64_t)n_cache : EVICT_DEFAULT;
        n_bytes = n_bytes < n_model ? n_bytes : n_model;
        n_bytes = n_bytes < EVICT_MAX ? n_bytes : EVICT_MAX;
    }
    const td_hparams *h = td_model_hparams(p->params->model);
    p->n_embd = h->n_embd;
    p->n_layer = h->n_layer;
    p->n_ctx = td_max_u32(2 * DEPTH, td_min_u32(h->n_ctx_train, CTX_MAX));
    p->n_others = n_bytes / sizeof *p->others;
    p->others = td_alloc(p->n_others, sizeof *p->others, err);
    p->x = td_alloc((size_t)TD_PREFILL_ROWS_MAX * p->n_embd, sizeof *p->x, err);
    p->out = td_alloc((size_t)TD_PREFILL_ROWS_MAX * p->n_embd, sizeof *p->out, err);
    p->sampler = td_sampler_create(h->n_vocab, err);
    if (!p->others || !p->x || !p->out || !p->sampler)
        return false;
    memset(p->others, 1, p->n_others * sizeof *p->others); /* so that each page is one of its own */
    return true;
}

static void close_prober(prober *p)
{
    td_forward_destroy(&p->forward);
    td_sampler_destroy(&p->sampler);
    td_free(p->others);
    td_free(p->x);
    td_free(p->out);
}

/* Rows that have nothing to do with each other, new ones each time: they ask different experts. */
static void fill_rows(prober *p, uint32_t n_rows)
{
    uint64_t s = ++p->seed * 0x9e3779b97f4a7c15ull + 1;
    for (size_t i = 0; i < (size_t)n_rows * p->n_embd; i++) {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        p->x[i] = (float)(int32_t)(s >> 32) * 0x1p-31f;
    }
    for (size_t i = 0; i < p->n_others; i += 8)
        p->sink += p->others[i];
}

static bool run_rows(prober *p, td_mode mode, uint32_t position, uint32_t n_rows, double *us,
                     td_err *err)
{
    static const td_sampling_params greedy = {.top_p = 1, .repeat_penalty = 1};
    td_forward_row rows[TD_PREFILL_ROWS_MAX];
    uint32_t n_vocab = td_model_hparams(p->params->model)->n_vocab;
    bool is_output = mode == TD_MODE_VERIFY && td_forward_is_last(p->forward);
    fill_rows(p, n_rows);
    for (uint32_t i = 0; i < n_rows; i++)
        rows[i] = (td_forward_row){.position = position + i,
                                   .token = (uint32_t)((p->seed * 64 + i) * 7919 % n_vocab),
                                   .is_output = is_output,
                                   .sampling = &greedy};
    uint64_t begin_ns = td_clock_real_ns();
    if (!td_forward_is_first(p->forward))
        td_forward_copy_input(p->forward, p->x, n_rows);
    if (!td_forward_run(p->forward, mode, rows, n_rows, err))
        return false;
    uint32_t token;
    for (uint32_t i = 0; is_output && i < n_rows; i++)
        if (!td_forward_choose(p->forward, i, &rows[i], p->sampler, &token, NULL, err))
            return false;
    if (!td_forward_is_last(p->forward))
        memcpy(p->out, td_forward_output(p->forward), (size_t)n_rows * p->n_embd * sizeof *p->out);
    *us = (double)(td_clock_real_ns() - begin_ns) * 1e-3;
    return true;
}

/* The lower quartile of a few runs, since what else the machine does only adds; the first one only
 * warms up, unless it takes long. */
static bool time_rows(prober *p, td_mode mode, uint32_t n_rows, double *out, td_err *err)
{
    td_cache *cache = td_forward_cache(p->forward);
    double samples[SAMPLES_MAX], spent = 0, us;
    const double slow_us = p->spent_us < DEVICE_US ? SLOW_US : 0;
    uint32_t n = 0;
    while (n < SAMPLES_MAX && (n < SAMPLES_MIN || spent < WIDTH_US)) {
        if (mode == TD_MODE_PREFILL)
            td_cache_clear(cache, 0);
        else
            td_cache_truncate(cache, 0, DEPTH);
        if (!run_rows(p, mode, mode == TD_MODE_PREFILL ? 0 : DEPTH, n_rows, &us, err))
            return false;
        p->spent_us += us;
        if (spent == 0 && us < slow_us) {
            spent = 1e-9;
            continue;
        }
        samples[n++] = us;
        spent += us;
        if (us >= slow_us)
            break;
    }
    td_sort_doubles(samples, n);
    *out = samples[n / 4];
    return true;
}

/* Loads layers first..last, times them and lets them go. */
static bool probe(prober *p, uint32_t first, uint32_t last, td_cost *out, td_err *err)
{
    p->forward = td_forward_create(&(td_forward_params){.model = p->params->model,
                                                        .dev = p->params->dev,
                                                        .experts_dev = p->params->experts_dev,
                                                        .first = first,
                                                        .last = last,
                                                        .kv = p->params->kv,
                                                        .n_slots = 1,
                                                        .n_ctx = p->n_ctx,
                                                        .is_choosing = true},
                                   err);
    bool is_ok =
        p->forward && time_rows(p, TD_MODE_PREFILL, TD_HOST_CHUNK_ROWS, &out->chunk_us, err) &&
        time_rows(p, TD_MODE_PREFILL, DEPTH, &out->prefill_us, err); /* stays, for the widths */
    if (is_ok && td_cache_committed(td_forward_cache(p->forward), 0) < DEPTH)
        td_cache_commit(td_forward_cache(p->forward), 0, DEPTH);
    for (uint32_t i = 0; is_ok && i < TD_COST_WIDTHS; i++)
        is_ok = time_rows(p, TD_MODE_VERIFY, td_cost_widths[i], &out->verify_us[i], err);
    td_forward_destroy(&p->forward);
    return is_ok;
}

/* Layers in the middle to be run together: a few, as long as they are not large. */
static bool find_run(const prober *p, uint32_t *first, uint32_t *last)
{
    if (p->n_layer < 4)
        return false;
    uint64_t n_bytes = 0;
    uint32_t n = 0, begin = p->n_layer / 2 - 1;
    while (n < RUN_LAYERS && begin + n + 1 < p->n_layer) {
        n_bytes +=
            td_weights_layer_bytes(p->params->model, p->params->dev, begin + n, TD_SHARE_ALL);
        if (n_bytes > RUN_BYTES_MAX)
            break;
        n++;
    }
    *first = begin;
    *last = begin + n - 1;
    return n > 1;
}

static bool measure_table(prober *p, const cost_kinds *kinds, cost_table *t, td_err *err)
{
    const uint32_t end = p->n_layer - 1;
    td_cost run = {0};
    *t = (cost_table){0};
    for (uint32_t k = 0; k < kinds->n_kinds; k++)
        if (!probe(p, kinds->layers[k], kinds->layers[k], &t->kinds[k], err))
            return false;
    uint32_t of_first = kinds->kind_of[0], of_last = kinds->kind_of[end], a, b;
    bool has_first = kinds->layers[of_first] != 0, has_last = kinds->layers[of_last] != end;
    if ((has_first && !probe(p, 0, 0, &t->first, err)) ||
        (has_last && !probe(p, end, end, &t->last, err)))
        return false;
    if (find_run(p, &a, &b)) {
        if (!probe(p, a, b, &run, err))
            return false;
        /* Timed one by one, these layers pay for a pass each; together they pay for one. The
         * difference tells what a pass costs. */
        for (uint32_t i = a; i <= b; i++)
            add(&t->pass, 1.0 / (b - a), &t->kinds[kinds->kind_of[i]]);
        add(&t->pass, -1.0 / (b - a), &run);
    }
    /* The ends were timed with a layer each: what a layer in the middle costs, its pass included,
     * is taken off them. Then the pass is taken off every layer. */
    if (has_first)
        add(&t->first, -1, &t->kinds[of_first]);
    if (has_last)
        add(&t->last, -1, &t->kinds[of_last]);
    const td_cost no_limit = {.verify_us = {1e12, 1e12, 1e12, 1e12, 1e12, 1e12, 1e12, 1e12},
                              .chunk_us = 1e12,
                              .prefill_us = 1e12};
    limit(&t->first, &no_limit);
    limit(&t->last, &no_limit);
    for (uint32_t k = 0; k < kinds->n_kinds; k++)
        limit(&t->pass, &t->kinds[k]);
    for (uint32_t k = 0; k < kinds->n_kinds; k++)
        add(&t->kinds[k], -1, &t->pass);
    return true;
}

/* -- finding them ------------------------------------------------------------------------------ */

typedef struct {
    const td_costs_params *params;
    const cost_kinds *kinds;
    cost_table *table;
    bool is_ok;
    td_err err;
} measuring;

/* In a thread of its own: a device that is bound to CPUs binds the thread that runs it. */
static void *measure_thread(void *arg)
{
    measuring *m = arg;
    prober p = {.params = m->params};
    m->is_ok = open_prober(&p, &m->err) && measure_table(&p, m->kinds, m->table, &m->err);
    close_prober(&p);
    return NULL;
}

static bool measure(const td_costs_params *params, const cost_kinds *kinds, cost_table *table,
                    td_err *err)
{
    measuring m = {.params = params, .kinds = kinds, .table = table};
    pthread_t thread;
    if (pthread_create(&thread, NULL, measure_thread, &m) != 0)
        return td_err_set(err, TD_E_NOMEM, "no thread for measuring");
    pthread_join(thread, NULL);
    return m.is_ok || td_err_set(err, m.err.code, "%s: %s", params->spec, m.err.message);
}

bool td_costs_find(const td_costs_params *params, td_costs *out, bool *is_known, td_err *err)
{
    *out = (td_costs){.n_layers = td_model_hparams(params->model)->n_layer};
    *is_known = false;
    cost_kinds kinds;
    cost_table table;
    char key[COST_KEY_MAX];
    if (!td_costs_kinds_find(params->model, &kinds, err))
        return false;
    td_costs_key_write(params, &kinds, key);
    *is_known =
        params->measure != TD_MEASURE_AGAIN && td_costs_file_read(key, kinds.n_kinds, &table);
    if (!*is_known && params->measure == TD_MEASURE_NEVER)
        return true;
    if (!*is_known) {
        if (!measure(params, &kinds, &table, err))
            return false;
        td_costs_file_write(key, kinds.n_kinds, &table);
        *is_known = true;
    }
    out->layers = td_alloc(out->n_layers, sizeof *out->layers, err);
    if (!out->layers)
        return *is_known = false;
    out->pass = table.pass;
    out->first = table.first;
    out->last = table.last;
    for (uint32_t i = 0; i < out->n_layers; i++)
        out->layers[i] = table.kinds[kinds.kind_of[i]];
    return true;
}

bool td_costs_mark_layers(const td_model *m, bool *wanted, td_err *err)
{
    cost_kinds kinds;
    uint32_t n_layer = td_model_hparams(m)->n_layer, middle = n_layer / 2 - 1;
    if (!td_costs_kinds_find(m, &kinds, err))
        return false;
    memset(wanted, 0, n_layer * sizeof *wanted);
    wanted[0] = wanted[n_layer - 1] = true;
    for (uint32_t k = 0; k < kinds.n_kinds; k++)
        wanted[kinds.layers[k]] = true;
    for (uint32_t i = 0; n_layer >= 4 && i < RUN_LAYERS && middle + i < n_layer; i++)
        wanted[middle + i] = true; /* those of find_run, if they are small */
    return true;
}

void td_costs_free(td_costs *costs)
{
    td_free(costs->layers);
    *costs = (td_costs){0};
}

/* -- hops -------------------------------------------------------------------------------------- */

typedef struct {
    td_queue there, back;
} ping;

static void *pong(void *arg)
{
    ping *p = arg;
    for (uint32_t i = 0; i < HOPS; i++)
        td_queue_push(&p->back, td_queue_pop(&p->there));
    return NULL;
}

bool td_costs_measure_hop(double *us, td_err *err)
{
    ping p;
    td_queue_item item = {0};
    pthread_t thread;
    td_queue_init(&p.there);
    td_queue_init(&p.back);
    bool is_ok = pthread_create(&thread, NULL, pong, &p) == 0;
    double samples[HOPS];
    for (uint32_t i = 0; is_ok && i < HOPS; i++) {
        uint64_t begin_ns = td_clock_real_ns();
        td_queue_push(&p.there, &item);
        td_queue_pop(&p.back);
        samples[i] = (double)(td_clock_real_ns() - begin_ns) * 0.5e-3;
    }
    if (is_ok) {
        pthread_join(thread, NULL);
        td_sort_doubles(samples, HOPS);
        *us = samples[HOPS / 2];
    }
    td_queue_destroy(&p.there);
    td_queue_destroy(&p.back);
    return is_ok || td_err_set(err, TD_E_NOMEM, "no thread for measuring");
}
