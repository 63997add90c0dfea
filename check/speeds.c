/* Speeds (speeds.h). Medians of as many runs as a time allows, after one that is not counted. */
#include "check/speeds.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/order.h"
#include "check/rig.h"

#include <string.h>

#define TIME_S    0.15 /* of each figure */
#define SLOW_S    1.0  /* of a run: it is not repeated */
#define RUNS_MIN  3u
#define RUNS_MAX  1000u
#define HOP_COLS  4096u
#define STEPS     32u /* programs in a submission */
#define DATA_ROWS TD_PREFILL_ROWS_MAX

const uint32_t td_speed_widths[TD_SPEED_WIDTHS] = {1, 2, 4, 8, 16, 32, 64};

/* Median seconds of run(user); of a slow device one run, or the first. */
static bool time_runs(bool (*run)(void *user, td_err *err), void *user, double *seconds,
                      td_err *err)
{
    double samples[RUNS_MAX];
    uint32_t n = 0;
    uint64_t start_ns = td_clock_real_ns();
    bool is_ok = run(user, err);
    samples[0] = 1e-9 * (double)(td_clock_real_ns() - start_ns);
    uint32_t n_min = samples[0] > TIME_S ? 1 : RUNS_MIN;
    bool is_slow = is_ok && samples[0] > SLOW_S;
    n = is_slow;
    while (is_ok && !is_slow && n < RUNS_MAX &&
           (n < n_min || 1e-9 * (double)(td_clock_real_ns() - start_ns) < TIME_S)) {
        uint64_t from_ns = td_clock_real_ns();
        is_ok = run(user, err);
        samples[n++] = 1e-9 * (double)(td_clock_real_ns() - from_ns);
    }
    if (is_ok) {
        td_sort_doubles(samples, n);
        *seconds = samples[n / 2];
    }
    return is_ok;
}

static bool run_calls(void *user, td_err *err)
{
    return td_programs_run(user, 1, err);
}

/* y = x + x of one row of HOP_COLS. */
static bool build_small(td_rig *r, td_device *dev, td_err *err)
{
    td_rig_begin(r, dev, TD_MODE_VERIFY, 1, err);
    td_tensor *x = td_rig_rows(r, TD_ELEM_F32, TD_ROWS_BATCH, HOP_COLS);
    td_tensor *y = td_rig_rows(r, TD_ELEM_F32, TD_ROWS_BATCH, HOP_COLS);
    if (!r->is_ok)
        return false;
    memset(td_tensor_data(x), 0, HOP_COLS * sizeof(float));
    td_op_add(r->p, td_all(x), td_all(x), td_all(y));
    return td_rig_end(r);
}

static bool measure_submit(td_device *dev, td_speeds *out, td_err *err)
{
    td_rig r = {.unit = 1};
    double one = 0, many = 0;
    bool is_ok = build_small(&r, dev, err);
    td_program_call call = {r.p, 1, 0, 1};
    is_ok = is_ok && time_runs(run_calls, &call, &one, err);
    call.n_times = STEPS;
    is_ok = is_ok && time_runs(run_calls, &call, &many, err);
    out->submit_us = 1e6 * one;
    out->step_us = many > one ? 1e6 * (many - one) / (STEPS - 1) : 0;
    td_rig_destroy(&r);
    return is_ok;
}

/* n_rows x n_cols, with two programs: verifications and prompts. */
static bool measure_product(td_device *dev, td_speed_product *p, td_err *err)
{
    td_rig r = {.unit = 1};
    td_rig_begin(&r, dev, TD_MODE_PREFILL, DATA_ROWS, err);
    td_tensor *x = td_rig_rows(&r, TD_ELEM_F32, TD_ROWS_BATCH, p->n_cols);
    td_tensor *y = td_rig_rows(&r, TD_ELEM_F32, TD_ROWS_BATCH, p->n_rows);
    td_weight *w = td_rig_weight(&r, p->type, p->n_rows, p->n_cols, 0, 7);
    const float *values = td_rig_random(&r, p->n_cols, 8, 1.0f);
    r.reader = td_rig_program(&r, TD_MODE_VERIFY, TD_VERIFY_ROWS_MAX);
    bool is_ok = r.is_ok;
    for (uint32_t i = 0; is_ok && i < DATA_ROWS; i++)
        memcpy((float *)td_tensor_data(x) + (size_t)i * p->n_cols, values,
               p->n_cols * sizeof *values);
    if (is_ok) {
        td_op_mat_mul(r.p, w, NULL, td_all(x), td_all(y));
        td_op_mat_mul(r.reader, w, NULL, td_all(x), td_all(y));
        is_ok = td_rig_end(&r);
    }
    for (uint32_t i = 0; is_ok && i < TD_SPEED_WIDTHS; i++) {
        td_program_call call = {r.reader, td_speed_widths[i], 0, 1};
        is_ok = time_runs(run_calls, &call, &p->ms[i], err);
        p->ms[i] *= 1e3;
    }
    double seconds = 0;
    td_program_call call = {r.p, DATA_ROWS, 0, 1};
    is_ok = is_ok && time_runs(run_calls, &call, &seconds, err);
    if (seconds > 0)
        p->prefill_macs_per_s = (double)DATA_ROWS * p->n_rows * p->n_cols / seconds;
    td_rig_destroy(&r);
    return is_ok;
}

bool td_speeds_measure(const char *spec, bool is_small, td_speeds *out, td_err *err)
{
    static const char *const types[TD_SPEED_PRODUCTS] = {"Q4_K", "Q8_0"};
    *out = (td_speeds){0};
    td_device *dev = td_device_create(spec, err);
    bool is_ok = dev && measure_submit(dev, out, err);
    if (is_ok && !td_device_measure_bandwidth(dev, &out->bandwidth_bytes_per_s, NULL))
        out->bandwidth_bytes_per_s = 0; /* no room for its buffer */
    for (uint32_t i = 0; is_ok && i < TD_SPEED_PRODUCTS; i++) {
        /* A feed-forward matrix of an 8B model; larger than most caches. */
        out->products[i] = (td_speed_product){
            .type = types[i], .n_rows = is_small ? 1024 : 12288, .n_cols = is_small ? 1024 : 4096};
        is_ok = measure_product(dev, &out->products[i], err);
    }
    td_device_destroy(&dev);
    return is_ok;
}

typedef struct {
    td_rig from, to;
} hop;

static bool run_hop(void *user, td_err *err)
{
    hop *h = user;
    if (!td_program_run(h->from.p, 1, 0, err))
        return false;
    memcpy(td_tensor_data(h->to.tensors[0]), td_tensor_data(h->from.tensors[1]),
           HOP_COLS * sizeof(float));
    return td_program_run(h->to.p, 1, 0, err);
}

bool td_speeds_hop(const char *from, const char *to, double *us, td_err *err)
{
    hop h = {.from = {.unit = 1}, .to = {.unit = 1}};
    double seconds = 0;
    td_device *a = td_device_create(from, err), *b = a ? td_device_create(to, err) : NULL;
    bool is_ok = b && build_small(&h.from, a, err) && build_small(&h.to, b, err) &&
                 time_runs(run_hop, &h, &seconds, err);
    *us = 1e6 * seconds;
    td_rig_destroy(&h.to);
    td_rig_destroy(&h.from);
    td_device_destroy(&b);
    td_device_destroy(&a);
    return is_ok;
}
