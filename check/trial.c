/* Trials (trial.h). What a row gives alone is kept, and everything after is compared with that. */
#include "check/trial.h"

#include "base/check.h"
#include "base/clock.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define REPEAT_ROWS_MAX 16u

typedef struct {
    td_rig rig;
    td_trial *out;
    uint32_t *alone[TD_RIG_VIEWS_MAX]; /* [n_data][n_cols] of each output */
} trial;

static bool fail(td_trial *out, const char *format, ...) __attribute__((format(printf, 2, 3)));
static bool fail(td_trial *out, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(out->reason, sizeof out->reason, format, args);
    va_end(args);
    out->is_ok = false;
    return false;
}

/* A word as people read it: by what its output holds. */
static const char *show(const td_rig *r, uint32_t i, uint32_t word, char text[32])
{
    float value;
    memcpy(&value, &word, sizeof value);
    if (td_tensor_get_params(r->outputs[i].view.t)->elem == TD_ELEM_F32)
        snprintf(text, 32, "%.9g", (double)value);
    else
        snprintf(text, 32, "%d", (int32_t)word);
    return text;
}

static bool run(trial *t, const uint32_t *rows, uint32_t n)
{
    if (td_rig_run(&t->rig, rows, n))
        return true;
    t->out->is_error = true;
    return fail(t->out, "%.400s", t->rig.err->message);
}

/* The rows of the last run against what each gives alone. */
static bool compare(trial *t, const uint32_t *rows, uint32_t n, const char *when)
{
    const td_rig *r = &t->rig;
    char got[32], want[32];
    for (uint32_t i = 0; i < r->n_outputs; i++) {
        uint32_t n_cols = r->outputs[i].view.n_cols;
        for (uint32_t k = 0; k < n; k++) {
            const uint32_t *row = td_rig_row(r, i, k);
            const uint32_t *alone = t->alone[i] + (size_t)rows[k] * n_cols;
            for (uint32_t c = 0; memcmp(row, alone, (size_t)n_cols * 4) != 0 && c < n_cols; c++)
                if (row[c] != alone[c])
                    return fail(t->out, "%s: row %u of %u, column %u is %s, not %s as before", when,
                                k, n, c, show(r, i, row[c], got), show(r, i, alone[c], want));
        }
    }
    uint32_t i, row, col;
    if (td_rig_find_stray(r, n, &i, &row, &col))
        return fail(t->out, "%s: row %u, column %u is written, outside the %u rows of the op", when,
                    row, col, n);
    return true;
}

/* Each row (or unit of rows) alone; in prefill, whose rows are not alone, all at once. */
static bool run_alone(trial *t)
{
    td_rig *r = &t->rig;
    uint32_t step = r->mode == TD_MODE_PREFILL ? r->n_data : r->unit;
    uint32_t rows[TD_PREFILL_ROWS_MAX];
    for (uint32_t i = 0; i < r->n_outputs; i++) {
        t->alone[i] = td_rig_alloc(r, (size_t)r->n_data * r->outputs[i].view.n_cols, 4);
        if (!t->alone[i])
            return fail(t->out, "%.400s", r->err->message);
    }
    for (uint32_t at = 0; at < r->n_data; at += step) {
        for (uint32_t k = 0; k < step; k++)
            rows[k] = at + k;
        if (!run(t, rows, step))
            return false;
        for (uint32_t i = 0; i < r->n_outputs; i++)
            for (uint32_t k = 0; k < step; k++)
                memcpy(t->alone[i] + (size_t)(at + k) * r->outputs[i].view.n_cols,
                       td_rig_row(r, i, k), (size_t)r->outputs[i].view.n_cols * 4);
        if (!compare(t, rows, step, "alone"))
            return false;
    }
    return true;
}

static bool run_widths(trial *t)
{
    const td_rig *r = &t->rig;
    uint32_t rows[TD_VERIFY_ROWS_MAX], n_units = r->n_data / r->unit;
    for (uint32_t n = 1; n <= n_units; n++) {
        for (uint32_t k = 0; k < n * r->unit; k++)
            rows[k] = (k / r->unit + 7 * n) % n_units * r->unit + k % r->unit;
        if (!run(t, rows, n * r->unit) || !compare(t, rows, n * r->unit, "in a batch"))
            return false;
    }
    return true;
}

static bool run_repeats(trial *t, uint32_t n_repeats)
{
    const td_rig *r = &t->rig;
    uint32_t rows[TD_PREFILL_ROWS_MAX], n = r->n_data;
    if (r->mode == TD_MODE_VERIFY && n > REPEAT_ROWS_MAX)
        n = REPEAT_ROWS_MAX / r->unit * r->unit;
    for (uint32_t k = 0; k < n; k++)
        rows[k] = k;
    for (uint32_t i = 0; i < n_repeats; i++) {
        if (!run(t, rows, n))
            return false;
        char when[48];
        snprintf(when, sizeof when, "run %u of the same", i + 1);
        if (!compare(t, rows, n, when))
            return false;
        t->out->n_repeats = i + 1;
    }
    return true;
}

static double number(const td_rig *r, uint32_t i, uint32_t word)
{
    float value;
    if (td_tensor_get_params(r->outputs[i].view.t)->elem != TD_ELEM_F32)
        return (int32_t)word;
    memcpy(&value, &word, sizeof value);
    return (double)value;
}

/* The oracle may have made only the first columns, which the others repeat. */
static bool compare_row(trial *t, const td_rig *oracle, uint32_t i, uint32_t row, bool is_exact)
{
    const td_rig *r = &t->rig;
    uint32_t n_cols = r->outputs[i].view.n_cols, n_wanted = oracle->outputs[i].view.n_cols;
    const uint32_t *got = t->alone[i] + (size_t)row * n_cols;
    const uint32_t *want = td_rig_row(oracle, i, row);
    double tolerance = r->outputs[i].tolerance, largest = 0;
    char is[32], should[32];
    if (tolerance < 0)
        return true;
    for (uint32_t c = 0; c < n_wanted; c++)
        if (fabs(number(oracle, i, want[c])) > largest)
            largest = fabs(number(oracle, i, want[c]));
    double allowed = is_exact ? 0 : tolerance * largest;
    for (uint32_t c = 0; c < n_cols; c++) {
        double a = number(r, i, got[c]), b = number(oracle, i, want[c % n_wanted]), e = fabs(a - b);
        if (got[c] == want[c % n_wanted] || (!is_exact && isnan(a) && isnan(b)))
            continue;
        if (is_exact || !(e <= allowed))
            return fail(t->out, "row %u, column %u is %s; the scalar device says %s (allowed: %.3g)",
                        row, c, show(r, i, got[c], is),
                        show(oracle, i, want[c % n_wanted], should), allowed);
        if (allowed > 0 && e / allowed > t->out->worst)
            t->out->worst = e / allowed;
    }
    return true;
}

static bool compare_values(trial *t, td_device *scalar, const td_case *c)
{
    td_rig oracle = {.is_oracle = true};
    td_err err = {0};
    uint32_t rows[TD_PREFILL_ROWS_MAX];
    bool is_exact = td_device_get_info(t->rig.dev)->kind == TD_DEVICE_HOST;
    bool is_ok = c->build(&oracle, scalar, c, &err);
    for (uint32_t k = 0; k < t->rig.n_data; k++)
        rows[k] = k;
    is_ok = is_ok && td_rig_run(&oracle, rows, t->rig.n_data);
    if (!is_ok) {
        t->out->is_error = true;
        fail(t->out, "%.400s", err.message);
    }
    for (uint32_t i = 0; is_ok && i < t->rig.n_outputs; i++)
        for (uint32_t row = 0; is_ok && row < t->rig.n_data; row++)
            is_ok = compare_row(t, &oracle, i, row, is_exact);
    td_rig_destroy(&oracle);
    return is_ok;
}

void td_trial_run(td_device *dev, td_device *scalar, const td_case *c, uint32_t n_repeats,
                  td_trial *out)
{
    td_err err = {0};
    trial t = {.out = out};
    uint64_t start_ns = td_clock_real_ns();
    *out = (td_trial){.is_ok = true};
    if (!c->build(&t.rig, dev, c, &err)) {
        out->is_error = true;
        fail(out, "%.400s", err.message);
    } else if (run_alone(&t)) {
        if (c->parts & TD_CASE_ROWS && (c->mode == TD_MODE_PREFILL || run_widths(&t)))
            run_repeats(&t, n_repeats);
        if (out->is_ok && c->parts & TD_CASE_VALUES)
            compare_values(&t, scalar, c);
    }
    td_rig_destroy(&t.rig);
    out->seconds = 1e-9 * (double)(td_clock_real_ns() - start_ns);
}
