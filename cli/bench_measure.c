/* Measuring a model: prefill, decode and verifications of n rows, at each depth of the context.
 *
 * The tests take turns: a round runs each of them once, so that what else the machine does falls on
 * all of them alike and their ratios (c(n)) hold. The first round only warms up. With --together
 * several devices do so at once, each in a thread: a test begins on all of them at the same moment,
 * and who has finished goes on with it, unmeasured, until all have. */
#include "cli/bench.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/mem.h"
#include "model/cache.h"
#include "model/cache_choice.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PROFILED_RUNS 3u    /* of each test for --ops */
#define COMPUTED      2048u /* positions at most of those a test stands behind; see fill */

/* Devices that run at once. */
typedef struct {
    uint32_t n;
    pthread_barrier_t barrier;
    atomic_uint n_done; /* runs of this turn */
    pthread_mutex_t gate;
    bool is_called_off;
} crew;

/* One device, or a split, with one model. */
typedef struct {
    const bench_params *params;
    const td_model *model;
    crew *crew;        /* NULL: alone */
    td_energy *energy; /* NULL: not measured */
    td_chain *chain;
    bench_case what;
    double bandwidths[TD_STAGES_MAX]; /* bytes/s of the parts; 0: not measured */
    bench_test tests[BENCH_TESTS_MAX];
    uint32_t n_tests;
    pthread_t thread;
    td_err err;
} lane;

/* -- what a run reads -------------------------------------------------------------------------- */

/* Bytes a part reads for one pass over its weights: not the embedding, of which a row is a row, and
 * of the experts as many as were asked. */
static double weight_bytes(const lane *l, const td_layout_part *part, double experts_share)
{
    uint32_t n_layer = td_model_hparams(l->model)->n_layer;
    double n = 0;
    for (uint32_t i = part->first; i <= part->last; i++)
        n += (double)td_weights_layer_bytes(l->model, part->dev, i, TD_SHARE_OTHERS) +
             experts_share *
                 (double)td_weights_layer_bytes(l->model, part->dev, i, TD_SHARE_EXPERTS);
    if (part->last + 1 == n_layer && n_layer > 1)
        n += (double)td_weights_end_bytes(l->model, NULL, part->dev, n_layer - 1, n_layer - 1);
    return n;
}

/* Bytes of keys and values that a row at n_positions sees in a part. */
static double cache_bytes(const lane *l, uint32_t i_part, double n_positions)
{
    const td_hparams *h = td_model_hparams(l->model);
    const td_layout_part *part = &l->chain->layout->parts[i_part];
    double n = 0;
    for (uint32_t i = 0; i <= part->last - part->first; i++) {
        bool is_windowed = td_layer_is_local(l->model, part->first + i) && h->window;
        n += (double)td_cache_position_bytes(td_forward_cache(l->chain->forwards[i_part]), i) *
             (is_windowed && n_positions > h->window ? h->window : n_positions);
    }
    return n;
}

/* Weights once a pass, and the cache up to where the pass stands. Prompts are bound by arithmetic:
 * they get no such figure. */
static void count_bytes(const lane *l, uint32_t start, bench_test *t)
{
    t->n_bytes = t->limit_seconds = t->kind == BENCH_PREFILL ? NAN : 0;
    double n_passes = t->kind == BENCH_DECODE ? t->n_tokens : 1;
    double n_positions = start + (t->n_tokens + 1) / 2; /* mean over the rows, or the passes */
    uint32_t n_expert = td_model_hparams(l->model)->n_expert;
    double share = n_expert ? t->n_experts / n_expert : 0;
    for (uint32_t i = 0; i < l->chain->layout->n_parts; i++) {
        const td_layout_part *part = &l->chain->layout->parts[i];
        double n = n_passes * (weight_bytes(l, part, share) + cache_bytes(l, i, n_positions));
        t->n_bytes += n;
        t->limit_seconds += l->bandwidths[i] > 0 ? n / l->bandwidths[i] : NAN;
    }
}

/* Experts that the last pass of a run has asked, the mean over the parts that have any. */
static bool count_experts(const lane *l, bench_test *t, td_err *err)
{
    uint32_t n_rows = t->kind == BENCH_VERIFY ? (uint32_t)t->n_tokens : 1, n_parts = 0, sum = 0;
    t->n_experts = NAN;
    if (t->kind == BENCH_PREFILL)
        return true;
    for (uint32_t i = 0; i < l->chain->layout->n_parts; i++) {
        uint32_t n;
        if (!td_forward_touched(l->chain->forwards[i], n_rows, &n, err))
            return false;
        sum += n;
        n_parts += n > 0;
    }
    if (n_parts)
        t->n_experts = (double)sum / n_parts;
    return true;
}

/* -- runs -------------------------------------------------------------------------------------- */

/* Runs n tokens from `position` on, a prompt in chunks that end where they would in a run. */
static bool run_tokens(lane *l, td_mode mode, uint32_t position, uint32_t n, td_err *err)
{
    uint32_t n_vocab = td_model_hparams(l->model)->n_vocab;
    for (uint32_t done = 0; done < n;) {
        td_forward_row rows[TD_PREFILL_ROWS_MAX];
        uint32_t room = TD_PREFILL_ROWS_MAX - (position + done) % TD_PREFILL_ROWS_MAX;
        uint32_t n_rows = td_min_u32(n - done, mode == TD_MODE_VERIFY ? n : room);
        for (uint32_t i = 0; i < n_rows; i++) {
            uint32_t at = position + done + i;
            rows[i] = (td_forward_row){.position = at,
                                       .token = (7 * at + 11) % n_vocab,
                                       .is_output = mode == TD_MODE_VERIFY || done + i + 1 == n};
        }
        if (!td_chain_run(l->chain, mode, rows, n_rows, err))
            return false;
        done += n_rows;
    }
    return true;
}

/* One chunk of every part's cache, taken out and put in again further on. */
typedef struct {
    uint8_t *bytes[TD_STAGES_MAX];
    uint64_t n_bytes[TD_STAGES_MAX];
} chunk;

static bool take_chunk(const lane *l, uint32_t first, chunk *c, td_err *err)
{
    uint32_t end = first + TD_PREFILL_ROWS_MAX;
    for (uint32_t i = 0; i < l->chain->layout->n_parts; i++) {
        td_cache *cache = td_forward_cache(l->chain->forwards[i]);
        c->n_bytes[i] = td_cache_chunk_bytes(cache, first, end);
        c->bytes[i] = td_alloc(1, c->n_bytes[i], err);
        if (!c->bytes[i] || !td_cache_read_chunk(cache, 0, first, end, c->bytes[i], err))
            return false;
    }
    return true;
}

static bool put_chunk(const lane *l, uint32_t first, const chunk *c, td_err *err)
{
    for (uint32_t i = 0; i < l->chain->layout->n_parts; i++)
        if (!td_cache_write_chunk(td_forward_cache(l->chain->forwards[i]), 0, first,
                                  first + TD_PREFILL_ROWS_MAX, c->bytes[i], err))
            return false;
    return true;
}

/* What layers keep of a chunk may depend on where it ends. */
static bool fits_chunk(const lane *l, uint32_t first, const chunk *c)
{
    bool fits = true;
    for (uint32_t i = 0; i < l->chain->layout->n_parts; i++)
        fits = fits && td_cache_chunk_bytes(td_forward_cache(l->chain->forwards[i]), first,
                                            first + TD_PREFILL_ROWS_MAX) == c->n_bytes[i];
    return fits;
}

/* The empty cache gets n positions: the first COMPUTED by a prompt, the others as copies of their
 * last chunk. Speed depends on how many keys and values there are, not on what they say, and a
 * prompt of 131,072 tokens can take an hour. */
static bool fill(lane *l, uint32_t n, td_err *err)
{
    uint32_t at = td_min_u32(n, COMPUTED);
    chunk c = {0};
    bool is_ok = run_tokens(l, TD_MODE_PREFILL, 0, at, err);
    if (is_ok && n - at >= TD_PREFILL_ROWS_MAX)
        is_ok = take_chunk(l, at - TD_PREFILL_ROWS_MAX, &c, err);
    for (; is_ok && n - at >= TD_PREFILL_ROWS_MAX; at += TD_PREFILL_ROWS_MAX)
        is_ok = fits_chunk(l, at, &c)
                    ? put_chunk(l, at, &c, err)
                    : run_tokens(l, TD_MODE_PREFILL, at, TD_PREFILL_ROWS_MAX, err);
    for (uint32_t i = 0; i < TD_STAGES_MAX; i++)
        td_free(c.bytes[i]);
    return is_ok && run_tokens(l, TD_MODE_PREFILL, at, n - at, err);
}

static bool decode_one(lane *l, uint32_t position, td_err *err)
{
    if (!run_tokens(l, TD_MODE_VERIFY, position, 1, err))
        return false;
    if (td_chain_forgets(l->chain)) /* else the next run begins with what is there */
        td_chain_commit(l->chain, 0, position + 1);
    return true;
}

/* Of the host's own ops the thread's work is the device's; NaN where a part is the host's. */
static double host_us(const lane *l, const bench_test *t, uint64_t ns)
{
    uint32_t n_parts = l->chain->layout->n_parts;
    for (uint32_t i = 0; i < n_parts; i++)
        if (td_device_get_info(l->chain->layout->parts[i].dev)->kind == TD_DEVICE_HOST)
            return NAN;
    return t->kind == BENCH_PREFILL
               ? NAN
               : (double)ns * 1e-3 / (t->kind == BENCH_DECODE ? t->n_tokens : 1) / n_parts;
}

/* One run of a test, from where it begins. */
static bool run_test(lane *l, bench_test *t, double *seconds, double *us, td_err *err)
{
    uint32_t n = (uint32_t)t->n_tokens, start = l->what.depth;
    if (t->kind != BENCH_PREFILL)
        start += l->params->n_prefill;
    if (td_chain_rewind(l->chain, 0, start) != start && !fill(l, start, err))
        return false;
    uint64_t begin_ns = td_clock_real_ns(), thread_ns = td_clock_thread_ns();
    bool is_ok = true;
    if (t->kind == BENCH_DECODE)
        for (uint32_t i = 0; is_ok && i < n; i++)
            is_ok = decode_one(l, start + i, err);
    else
        is_ok = run_tokens(l, t->kind == BENCH_PREFILL ? TD_MODE_PREFILL : TD_MODE_VERIFY, start, n,
                           err);
    *seconds = (double)(td_clock_real_ns() - begin_ns) * 1e-9;
    *us = host_us(l, t, td_clock_thread_ns() - thread_ns);
    return is_ok && count_experts(l, t, err);
}

/* The same with the others of a crew. One that failed still comes to the barriers. */
static void run_in_crew(lane *l, bench_test *t, double *seconds, double *us)
{
    double unused, unused_us;
    if (l->crew)
        pthread_barrier_wait(&l->crew->barrier);
    bool is_ok = l->err.code == TD_OK && run_test(l, t, seconds, us, &l->err);
    if (!l->crew)
        return;
    atomic_fetch_add(&l->crew->n_done, 1);
    while (is_ok && atomic_load(&l->crew->n_done) < l->crew->n)
        is_ok = run_test(l, t, &unused, &unused_us, &l->err);
    if (pthread_barrier_wait(&l->crew->barrier) == PTHREAD_BARRIER_SERIAL_THREAD)
        atomic_store(&l->crew->n_done, 0);
}

static void run_round(lane *l, bool is_warm_up)
{
    double before[TD_ENERGY_SOURCES_MAX], after[TD_ENERGY_SOURCES_MAX];
    double seconds = 0, us = NAN;
    for (uint32_t i = 0; i < l->n_tests; i++) {
        bench_test *t = &l->tests[i];
        if (l->energy)
            td_energy_read(l->energy, before);
        td_device_counts made = td_chain_device_counts(l->chain);
        td_device_counts_add(&t->made, &made, -1);
        run_in_crew(l, t, &seconds, &us);
        made = td_chain_device_counts(l->chain);
        td_device_counts_add(&t->made, &made, 1);
        if (l->energy)
            td_energy_read(l->energy, after);
        if (is_warm_up)
            continue;
        t->seconds.values[t->seconds.n++] = seconds;
        t->host_us.values[t->host_us.n++] = us;
        for (uint32_t k = 0; l->energy && k < td_energy_count(l->energy); k++)
            t->joules[k] += after[k] - before[k];
    }
}

static int by_time(const void *a, const void *b)
{
    double x = ((const td_op_time *)a)->seconds, y = ((const td_op_time *)b)->seconds;
    return (x < y) - (x > y);
}

static bool profile(lane *l, bench_test *t, td_err *err)
{
    double seconds, us;
    td_program_counts verify, prefill;
    t->ops = td_alloc(BENCH_OPS_MAX, sizeof *t->ops, err);
    if (!t->ops || !td_chain_profile(l->chain, true, err))
        return false;
    for (uint32_t r = 0; r < PROFILED_RUNS; r++)
        if (!run_test(l, t, &seconds, &us, err))
            return false;
    t->n_profiled = PROFILED_RUNS;
    t->n_ops = td_chain_op_times(l->chain, t->ops, BENCH_OPS_MAX);
    qsort(t->ops, t->n_ops, sizeof *t->ops, by_time);
    td_chain_get_counts(l->chain, &verify, &prefill);
    t->counts = t->kind == BENCH_PREFILL ? prefill : verify;
    return td_chain_profile(l->chain, false, err);
}

/* -- a case ------------------------------------------------------------------------------------ */

static void free_ops(lane *l)
{
    for (uint32_t i = 0; i < l->n_tests; i++) {
        td_free(l->tests[i].ops);
        l->tests[i].ops = NULL;
    }
}

static void add_test(lane *l, bench_kind kind, uint32_t n_tokens)
{
    if (n_tokens > 0)
        l->tests[l->n_tests++] = (bench_test){.kind = kind, .n_tokens = n_tokens, .c = NAN};
}

static void plan_tests(lane *l)
{
    free_ops(l);
    l->n_tests = 0;
    add_test(l, BENCH_PREFILL, l->params->n_prefill);
    add_test(l, BENCH_DECODE, l->params->n_decode);
    for (uint32_t i = 0; i < l->params->widths.n; i++)
        add_test(l, BENCH_VERIFY, l->params->widths.items[i]);
}

/* c(n) against a verification of one row; where none was asked for, a decode step is one. */
void td_bench_compare_widths(bench_test *tests, uint32_t n_tests)
{
    double one = NAN;
    for (uint32_t i = 0; i < n_tests; i++) {
        const bench_test *t = &tests[i];
        if (t->kind == BENCH_DECODE)
            one = td_bench_summarize(&t->seconds).median / t->n_tokens;
        if (t->kind == BENCH_VERIFY && t->n_tokens == 1)
            one = td_bench_summarize(&t->seconds).median;
    }
    for (uint32_t i = 0; i < n_tests; i++)
        if (tests[i].kind == BENCH_VERIFY)
            tests[i].c = td_bench_summarize(&tests[i].seconds).median / one;
}

/* For who waits at a terminal; after the last round the line is taken away. */
static void show_progress(const lane *l, uint32_t round)
{
    if (l->crew || !isatty(STDERR_FILENO))
        return;
    if (round <= l->params->n_repeats)
        fprintf(stderr, "\r%s, depth %u: round %u of %u\x1b[K", l->what.device, l->what.depth,
                round, l->params->n_repeats);
    else
        fputs("\r\x1b[K", stderr);
}

/* All tests of one depth. A lane of a crew goes through the rounds even when it failed. */
static void measure_depth(lane *l)
{
    plan_tests(l);
    td_chain_rewind(l->chain, 0, 0);
    fill(l, l->what.depth, &l->err);
    for (uint32_t r = 0; r <= l->params->n_repeats && (l->crew || l->err.code == TD_OK); r++) {
        show_progress(l, r);
        run_round(l, r == 0);
    }
    show_progress(l, UINT32_MAX);
    td_bench_compare_widths(l->tests, l->n_tests);
    for (uint32_t i = 0; i < l->n_tests && l->err.code == TD_OK; i++) {
        bench_test *t = &l->tests[i];
        count_bytes(l, l->what.depth + (t->kind == BENCH_PREFILL ? 0 : l->params->n_prefill), t);
        if (l->params->is_ops)
            profile(l, t, &l->err);
    }
}

static bool open_lane(lane *l, const char *const *specs, uint32_t n_specs, const td_cache_types *kv,
                      td_err *err)
{
    const bench_params *p = l->params;
    uint32_t depth = 0;
    for (uint32_t i = 0; i < p->depths.n; i++)
        depth = td_max_u32(depth, p->depths.items[i]);
    l->chain =
        td_chain_create(&(td_layout_params){.model = l->model,
                                            .specs = specs,
                                            .n_specs = n_specs,
                                            .place = p->place,
                                            .kv = *kv,
                                            .n_slots = 1,
                                            .n_ctx = depth + p->n_prefill +
                                                     td_max_u32(p->n_decode, TD_VERIFY_ROWS_MAX)},
                        err);
    if (!l->chain)
        return false;
    td_bench_describe(&l->what, l->model, kv);
    for (uint32_t i = 0; i < l->chain->layout->n_parts; i++) {
        size_t n = strlen(l->what.device);
        snprintf(l->what.device + n, sizeof l->what.device - n, "%s%s", i ? "+" : "",
                 l->chain->layout->parts[i].spec);
        if (p->is_measure &&
            !td_device_measure_bandwidth(l->chain->layout->parts[i].dev, &l->bandwidths[i], err))
            return false;
    }
    return true;
}

/* -- what the command line asks for ------------------------------------------------------------ */

/* Lanes that are measured together: one, or with --together all. */
typedef struct {
    lane *lanes; /* [n] */
    uint32_t n;
    crew crew;
    char beside[TD_STAGES_MAX][BENCH_DEVICE_MAX];
} group;

static void close_group(group *g)
{
    for (uint32_t i = 0; i < g->n; i++) {
        free_ops(&g->lanes[i]);
        td_chain_destroy(&g->lanes[i].chain);
    }
    td_free(g->lanes);
    g->lanes = NULL;
}

static void name_others(group *g)
{
    for (uint32_t i = 0; i < g->n; i++) {
        for (uint32_t k = 0; k < g->n; k++) {
            size_t n = strlen(g->beside[i]);
            if (k != i)
                snprintf(g->beside[i] + n, sizeof g->beside[i] - n, "%s%s", n ? ", " : "",
                         g->lanes[k].what.device);
        }
        g->lanes[i].what.beside = g->beside[i];
        g->lanes[i].crew = &g->crew;
    }
}

/* Threads wait at the gate until all of them are there: at a barrier with one too few they would
 * wait for ever. */
static void *crew_main(void *arg)
{
    lane *l = arg;
    pthread_mutex_lock(&l->crew->gate);
    bool is_called_off = l->crew->is_called_off;
    pthread_mutex_unlock(&l->crew->gate);
    if (!is_called_off)
        measure_depth(l);
    return NULL;
}

static bool run_crew(group *g, td_err *err)
{
    crew *c = &g->crew;
    c->n = g->n;
    if (pthread_barrier_init(&c->barrier, NULL, g->n))
        return td_err_set(err, TD_E_NOMEM, "--together: no barrier for %u threads", g->n);
    pthread_mutex_init(&c->gate, NULL);
    pthread_mutex_lock(&c->gate);
    uint32_t n = 0;
    while (n < g->n && !pthread_create(&g->lanes[n].thread, NULL, crew_main, &g->lanes[n]))
        n++;
    c->is_called_off = n < g->n;
    pthread_mutex_unlock(&c->gate);
    for (uint32_t i = 0; i < n; i++)
        pthread_join(g->lanes[i].thread, NULL);
    pthread_mutex_destroy(&c->gate);
    pthread_barrier_destroy(&c->barrier);
    return !c->is_called_off || td_err_set(err, TD_E_NOMEM, "--together: no thread");
}

static bool run_group(group *g, uint32_t depth, td_err *err)
{
    for (uint32_t i = 0; i < g->n; i++)
        g->lanes[i].what.depth = depth;
    if (g->n == 1)
        measure_depth(&g->lanes[0]);
    else if (!run_crew(g, err))
        return false;
    for (uint32_t i = 0; i < g->n; i++)
        if (g->lanes[i].err.code != TD_OK)
            return td_err_set(err, g->lanes[i].err.code, "%s: %s", g->lanes[i].what.device,
                              g->lanes[i].err.message);
    return true;
}

typedef struct {
    const bench_params *params;
    bench_output *out;
    td_energy *energy;
    const td_model *model;
    td_cache_types kv;
} bench_job;

/* One group: n_lanes lanes of n_specs specs each. */
static bool bench_group(const bench_job *j, const char *const *specs, uint32_t n_lanes,
                        uint32_t n_specs, td_err *err)
{
    const bench_params *p = j->params;
    group g = {.n = n_lanes, .lanes = td_alloc(n_lanes, sizeof(lane), err)};
    bool is_ok = g.lanes;
    for (uint32_t i = 0; is_ok && i < n_lanes; i++) {
        lane *l = &g.lanes[i];
        l->params = p;
        l->model = j->model;
        l->energy = n_lanes == 1 && td_energy_count(j->energy) ? j->energy : NULL;
        is_ok = open_lane(l, specs + (size_t)i * n_specs, n_specs, &j->kv, err);
    }
    if (is_ok && n_lanes > 1)
        name_others(&g);
    for (uint32_t d = 0; is_ok && d < p->depths.n; d++) {
        is_ok = run_group(&g, p->depths.items[d], err);
        for (uint32_t i = 0; is_ok && i < n_lanes; i++)
            is_ok = td_bench_output_case(j->out, &g.lanes[i].what, g.lanes[i].tests,
                                         g.lanes[i].n_tests, err);
    }
    if (g.lanes)
        close_group(&g);
    return is_ok;
}

static bool bench_devices(const bench_job *j, td_err *err)
{
    const bench_params *p = j->params;
    td_default_specs defaults;
    if (p->n_hosts)
        return td_bench_remote(p, j->model, &j->kv, j->out, err);
    td_layout_default_specs(&defaults);
    const char *const *specs = p->devices.n ? p->devices.items : defaults.specs;
    uint32_t n = p->devices.n ? p->devices.n : defaults.n;
    if (p->is_together)
        return bench_group(j, specs, n, 1, err);
    if (!p->is_each)
        return bench_group(j, specs, 1, n, err);
    for (uint32_t i = 0; i < n; i++)
        if (!bench_group(j, specs + i, 1, 1, err))
            return false;
    return true;
}

bool td_bench_models(const bench_params *p, td_err *err)
{
    td_energy *energy = td_energy_open(NULL, err);
    bench_output out = {.format = p->format, .params = p, .energy = energy};
    bool is_ok = energy;
    for (uint32_t i = 0; is_ok && i < p->models.n; i++) {
        td_model *model = td_model_open(p->models.items[i], err);
        is_ok = model;
        for (uint32_t k = 0; is_ok && k < p->n_types_k * p->n_types_v; k++) {
            bench_job job = {.params = p,
                             .out = &out,
                             .energy = energy,
                             .model = model,
                             .kv = td_bench_cache(p, k)};
            is_ok = td_cache_choose(&job.kv, model, err) && bench_devices(&job, err);
        }
        td_model_close(&model);
    }
    td_bench_output_end(&out);
    td_energy_close(&energy);
    return is_ok;
}
