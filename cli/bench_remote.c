/* Measuring a model over several machines, with the target that a run has: what a test waits for is
 * its answer here. A prompt's chunks follow each other. */
#include "cli/bench.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/mem.h"
#include "planning/costs.h"
#include "target/target.h"

#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    const bench_params *params;
    const td_model *model;
    td_target *target;
    uint64_t batch;       /* the last one */
    uint32_t n_in_flight; /* of them */
    uint32_t length;      /* of the sequence */
    uint32_t chunk_rows;
    bench_case what;
    bench_test tests[BENCH_TESTS_MAX];
    uint32_t n_tests;
} far_lane;

static bool take_one(far_lane *l, td_err *err)
{
    td_target_result result;
    while (!td_target_poll(l->target, &result)) {
        struct pollfd p = {.fd = td_target_fd(l->target), .events = POLLIN};
        poll(&p, 1, -1);
    }
    l->n_in_flight--;
    return result.err.code == TD_OK || td_err_set(err, result.err.code, "%s", result.err.message);
}

/* n tokens from the end of the sequence on; in one batch, or in chunks as a prompt. */
static bool run_tokens(far_lane *l, bool is_prefill, uint32_t n, td_err *err)
{
    td_forward_row rows[TD_PREFILL_ROWS_MAX];
    uint32_t n_vocab = td_model_hparams(l->model)->n_vocab;
    bool is_ok = true;
    /* One for each stage, and as many on their way. */
    uint32_t n_max = td_min_u32(2 * td_target_n_stages(l->target), TD_TARGET_BATCHES_MAX);
    for (uint32_t done = 0; is_ok && done < n;) {
        uint32_t room = l->chunk_rows - l->length % l->chunk_rows;
        uint32_t n_rows = is_prefill ? td_min_u32(n - done, room) : n;
        for (uint32_t i = 0; i < n_rows; i++)
            rows[i] = (td_forward_row){.position = l->length + i,
                                       .token = (7 * (l->length + i) + 11) % n_vocab,
                                       .is_output = !is_prefill || done + i + 1 == n};
        if (l->n_in_flight >= n_max)
            is_ok = take_one(l, err);
        if (!is_ok)
            break;
        td_target_forward(l->target, ++l->batch, is_prefill, rows, n_rows);
        l->n_in_flight++;
        l->length += n_rows;
        done += n_rows;
    }
    while (is_ok && l->n_in_flight)
        is_ok = take_one(l, err);
    return is_ok;
}

/* The sequence with its first `length` tokens. A cache that forgets begins anew. */
static bool rewind_to(far_lane *l, uint32_t length, td_err *err)
{
    static const td_sampling_params greedy = {.temperature = 0, .top_p = 1, .repeat_penalty = 1};
    if (l->length < length || td_target_forgets(l->target) || !l->batch) {
        td_target_close_sequence(l->target, 0);
        td_target_open_sequence(l->target, 0, 0, 0, 0, &greedy);
        l->length = 0;
        return run_tokens(l, true, length, err);
    }
    td_target_truncate(l->target, 0, length);
    l->length = length;
    return true;
}

static bool run_test(far_lane *l, bench_test *t, double *seconds, td_err *err)
{
    uint32_t n = (uint32_t)t->n_tokens;
    uint32_t start = l->what.depth + (t->kind == BENCH_PREFILL ? 0 : l->params->n_prefill);
    if (!rewind_to(l, start, err))
        return false;
    uint64_t begin_ns = td_clock_real_ns();
    bool is_ok = true;
    for (uint32_t i = 0; is_ok && t->kind == BENCH_DECODE && i < n; i++) {
        is_ok = run_tokens(l, false, 1, err);
        if (td_target_forgets(l->target))
            td_target_commit(l->target, 0, l->length);
    }
    if (t->kind != BENCH_DECODE)
        is_ok = run_tokens(l, t->kind == BENCH_PREFILL, n, err);
    *seconds = (double)(td_clock_real_ns() - begin_ns) * 1e-9;
    return is_ok;
}

static void add_test(far_lane *l, bench_kind kind, uint32_t n_tokens)
{
    if (n_tokens)
        l->tests[l->n_tests++] = (bench_test){.kind = kind,
                                              .n_tokens = n_tokens,
                                              .c = NAN,
                                              .n_experts = NAN,
                                              .n_bytes = NAN,
                                              .limit_seconds = NAN};
}

/* The first round only warms up. */
static bool measure_depth(far_lane *l, td_err *err)
{
    l->n_tests = 0;
    add_test(l, BENCH_PREFILL, l->params->n_prefill);
    add_test(l, BENCH_DECODE, l->params->n_decode);
    for (uint32_t i = 0; i < l->params->widths.n; i++)
        add_test(l, BENCH_VERIFY, l->params->widths.items[i]);
    for (uint32_t r = 0; r <= l->params->n_repeats; r++)
        for (uint32_t i = 0; i < l->n_tests; i++) {
            double seconds;
            bench_test *t = &l->tests[i];
            if (!run_test(l, t, &seconds, err))
                return false;
            if (r == 0)
                continue;
            t->seconds.values[t->seconds.n++] = seconds;
            t->host_us.values[t->host_us.n++] = NAN;
        }
    td_bench_compare_widths(l->tests, l->n_tests);
    return true;
}

static bool open_target(far_lane *l, const td_cache_types *kv, td_err *err)
{
    const bench_params *p = l->params;
    uint32_t depth = 0;
    for (uint32_t i = 0; i < p->depths.n; i++)
        depth = td_max_u32(depth, p->depths.items[i]);
    td_layout_params params = {.model = l->model,
                               .specs = p->devices.items,
                               .n_specs = p->devices.n,
                               .place = p->place,
                               .hosts = p->hosts,
                               .n_hosts = p->n_hosts,
                               .host_key = p->key,
                               .wire = p->wire,
                               .is_trusting = true, /* as of devices here */
                               .kv = *kv,
                               .n_slots = 1,
                               .n_ctx = depth + p->n_prefill +
                                        td_max_u32(p->n_decode, TD_VERIFY_ROWS_MAX)};
    l->target = td_target_create(&params, err);
    if (!l->target)
        return false;
    l->chunk_rows = TD_HOST_CHUNK_ROWS;
    td_bench_describe(&l->what, l->model, kv);
    for (uint32_t i = 0; i < td_target_n_stages(l->target); i++) {
        td_stage_info info;
        td_target_get_stage_info(l->target, i, &info);
        if (info.device->kind != TD_DEVICE_HOST)
            l->chunk_rows = TD_PREFILL_ROWS_MAX;
        size_t n = strlen(l->what.device);
        snprintf(l->what.device + n, sizeof l->what.device - n, "%s%s", i ? "+" : "", info.spec);
    }
    return true;
}

bool td_bench_remote(const bench_params *p, const td_model *model, const td_cache_types *kv,
                     bench_output *out, td_err *err)
{
    if (!p->devices.n)
        return td_err_set(err, TD_E_USAGE, "--host: give --device NAME/SPEC too");
    far_lane *l = td_alloc(1, sizeof *l, err);
    if (!l)
        return false;
    l->params = p;
    l->model = model;
    bool is_ok = open_target(l, kv, err);
    for (uint32_t d = 0; is_ok && d < p->depths.n; d++) {
        l->what.depth = p->depths.items[d];
        is_ok =
            measure_depth(l, err) && td_bench_output_case(out, &l->what, l->tests, l->n_tests, err);
    }
    td_target_destroy(&l->target);
    td_free(l);
    return is_ok;
}
