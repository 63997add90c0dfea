/* What a device must hold beyond its ops (check.h): whole models with known logits, the same rows
 * in every width of batch, another device at work at the same time, and an end that is told. */
#include "check/check.h"
#include "check/golden.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/mem.h"

#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define FLIPPED_MAX 2u /* rows of other experts, where activations are rounded */
/* Shares of the budget after which a part is not begun. */
#define MODEL_SHARE 0.8
#define PAIR_SHARE  0.85
#define LOSS_SHARE  0.9
#define PAIR_RUNS   5u /* of a prompt, on two devices at once */
#define PAIR_MODEL  1u /* llama-q8_0 */

static td_check_item *begin_part(td_check_report *report, const char *format, const char *name)
{
    TD_ASSERT(report->n_parts < TD_CHECK_PARTS_MAX);
    td_check_item *part = &report->parts[report->n_parts++];
    *part = (td_check_item){.n_cases = 1};
    snprintf(part->name, sizeof part->name, format, name);
    return part;
}

static bool fail(td_check_item *part, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static bool fail(td_check_item *part, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(part->reason, sizeof part->reason, format, args);
    va_end(args);
    part->state = TD_CHECK_FAILED;
    return false;
}

static bool fail_with(td_check_item *part, const td_err *err)
{
    return fail(part, "%.600s", err->message);
}

/* Whether there is time for a part; else the part says so. */
static bool has_time(const td_check_report *report, double share, td_check_item *part)
{
    bool is_late = td_check_is_late(report, share);
    if (is_late) {
        part->state = TD_CHECK_UNJUDGED;
        part->n_cases = 0;
        part->n_skipped = 1;
        snprintf(part->reason, sizeof part->reason, "left out: of %.0f s for all parts %.0f %% are over",
                 report->budget_s, 100 * share);
    }
    return !is_late;
}

/* -- golden models ----------------------------------------------------------------------------- */

/* Against the reference's logits. */
static bool compare_golden(const td_golden *g, const float *got, const char *how,
                           td_check_item *part)
{
    uint32_t n_flipped = 0;
    bool has_experts = td_model_hparams(g->model)->n_expert > 0;
    for (uint32_t row = 0; row < g->n_tokens; row++) {
        double worst = 0;
        uint32_t at = 0;
        for (uint32_t c = 0; c < g->n_vocab; c++) {
            size_t i = (size_t)row * g->n_vocab + c;
            double e = fabs((double)got[i] - (double)g->logits[i]);
            if (!(e <= worst)) { /* a NaN stays */
                worst = e;
                at = c;
            }
        }
        if (worst <= g->tolerance) {
            part->worst = fmax(part->worst, worst / g->tolerance);
            continue;
        }
        if (g->is_rounded && has_experts && isfinite(worst) && ++n_flipped <= FLIPPED_MAX)
            continue;
        size_t i = (size_t)row * g->n_vocab + at;
        return fail(part, "%s: logit %u of token %u is %.6g; the reference's is %.6g (allowed: %.3g)",
                    how, at, row, (double)got[i], (double)g->logits[i], g->tolerance);
    }
    return true;
}

/* Rows of every width are those of one at a time. */
static bool compare_rows(const td_golden *g, const float *got, const float *one, uint32_t n_rows,
                         td_check_item *part)
{
    for (size_t i = 0; i < (size_t)g->n_tokens * g->n_vocab; i++)
        if (memcmp(&got[i], &one[i], sizeof *got) != 0)
            return fail(part,
                        "law 1: logit %zu of token %zu is %.9g with %u rows at a time and %.9g with "
                        "one",
                        i % g->n_vocab, i / g->n_vocab, (double)got[i], n_rows, (double)one[i]);
    return true;
}

static bool try_golden(const td_golden *g, const char *spec, td_check_item *part)
{
    static const uint32_t widths[] = {5, 16, 44};
    size_t n = (size_t)g->n_tokens * g->n_vocab;
    td_err err = {0};
    float *one = td_alloc(n, sizeof *one, &err), *got = td_alloc(n, sizeof *got, &err);
    td_chain *chain = one && got ? td_golden_load(g, spec, &err) : NULL;
    bool is_ok = chain && td_golden_run(g, chain, 0, got, &err);
    if (is_ok && compare_golden(g, got, "as a prompt", part)) {
        is_ok = td_golden_run(g, chain, 1, one, &err);
        bool is_same = is_ok && compare_golden(g, one, "row by row", part);
        for (size_t i = 0; i < TD_COUNT(widths) && is_ok && is_same; i++) {
            is_ok = td_golden_run(g, chain, widths[i], got, &err);
            is_same = is_ok && compare_rows(g, got, one, widths[i], part);
        }
    }
    if (!is_ok)
        fail_with(part, &err);
    td_chain_destroy(&chain);
    td_free(got);
    td_free(one);
    return part->state == TD_CHECK_PASSED;
}

void td_check_golden(const char *spec, td_check_report *report)
{
    for (uint32_t i = 0; i < TD_GOLDEN_MODELS; i++) {
        td_golden g;
        td_err err = {0};
        uint64_t start_ns = td_clock_real_ns();
        bool is_open = td_golden_open(i, &g, &err);
        td_check_item *part = begin_part(report, "model %s", g.name);
        if (!is_open)
            fail_with(part, &err);
        else if (i == 0 || has_time(report, MODEL_SHARE, part))
            try_golden(&g, spec, part);
        if (is_open)
            td_golden_close(&g);
        part->seconds = 1e-9 * (double)(td_clock_real_ns() - start_ns);
    }
}

/* -- two at once ------------------------------------------------------------------------------- */

typedef struct {
    const td_golden *g;
    td_chain *chain;
    float *alone, *got;
    const char *spec;
    td_err err;
    bool is_ok;
} side;

static bool begin_side(side *s, const td_golden *g, const char *spec)
{
    size_t n = (size_t)g->n_tokens * g->n_vocab;
    *s = (side){.g = g, .spec = spec};
    s->alone = td_alloc(n, sizeof *s->alone, &s->err);
    s->got = td_alloc(n, sizeof *s->got, &s->err);
    s->chain = s->alone && s->got ? td_golden_load(g, spec, &s->err) : NULL;
    return s->chain && td_golden_run(g, s->chain, 4, s->alone, &s->err);
}

static void end_side(side *s)
{
    td_chain_destroy(&s->chain);
    td_free(s->got);
    td_free(s->alone);
}

static void *run_side(void *arg)
{
    side *s = arg;
    s->is_ok = true;
    for (uint32_t i = 0; i < PAIR_RUNS && s->is_ok; i++) {
        s->is_ok = td_golden_run(s->g, s->chain, 4, s->got, &s->err);
        if (s->is_ok && memcmp(s->got, s->alone,
                               (size_t)s->g->n_tokens * s->g->n_vocab * sizeof *s->got) != 0)
            s->is_ok = td_err_set(&s->err, TD_E_DATA, "%s: run %u gives other logits than alone",
                                  s->spec, i + 1);
    }
    return NULL;
}

void td_check_pair(const char *spec, const char *other, td_check_report *report)
{
    td_check_item *part = begin_part(report, "beside %s", other);
    td_golden g;
    td_err err = {0};
    side sides[2];
    pthread_t thread;
    uint64_t start_ns = td_clock_real_ns();
    if (!has_time(report, PAIR_SHARE, part))
        return;
    if (!td_golden_open(PAIR_MODEL, &g, &err)) {
        fail_with(part, &err);
        return;
    }
    bool is_begun = begin_side(&sides[0], &g, spec);
    bool is_other = begin_side(&sides[1], &g, other);
    if (!is_begun) {
        fail_with(part, &sides[0].err);
    } else if (!is_other) { /* its own check will tell */
        part->state = TD_CHECK_UNJUDGED;
        snprintf(part->reason, sizeof part->reason, "%.600s", sides[1].err.message);
    } else if (pthread_create(&thread, NULL, run_side, &sides[1]) != 0) {
        part->state = TD_CHECK_UNJUDGED;
        snprintf(part->reason, sizeof part->reason, "no thread can be started");
    } else {
        run_side(&sides[0]);
        pthread_join(thread, NULL);
        for (uint32_t i = 0; i < 2; i++)
            if (!sides[i].is_ok && part->state == TD_CHECK_PASSED)
                fail_with(part, &sides[i].err);
        part->n_repeats = PAIR_RUNS;
    }
    end_side(&sides[1]);
    end_side(&sides[0]);
    td_golden_close(&g);
    part->seconds = 1e-9 * (double)(td_clock_real_ns() - start_ns);
}

/* -- loss -------------------------------------------------------------------------------------- */

/* After a loss every call must say so, nothing may hang, and the device must come back anew. */
static void lose(const td_golden *g, const char *spec, td_check_item *part)
{
    td_err err = {0};
    side s;
    if (!begin_side(&s, g, spec)) {
        fail_with(part, &s.err);
    } else if (!td_device_lose(s.chain->layout->parts[0].dev)) {
        part->state = TD_CHECK_UNJUDGED;
        snprintf(part->reason, sizeof part->reason, "it cannot be lost");
    } else {
        for (uint32_t i = 0; i < 2 && part->state == TD_CHECK_PASSED; i++) {
            td_err_clear(&err);
            if (td_golden_run(g, s.chain, 4, s.got, &err))
                fail(part, "run %u after the loss is told to have gone well", i + 1);
            else if (err.code != TD_E_DEVICE_LOST)
                fail(part, "run %u after the loss: %.500s", i + 1, err.message);
        }
    }
    end_side(&s);
    if (part->state != TD_CHECK_PASSED)
        return;
    if (!begin_side(&s, g, spec))
        fail(part, "it does not come back: %.500s", s.err.message);
    end_side(&s);
}

void td_check_loss(const char *spec, td_check_report *report)
{
    td_golden g;
    td_err err = {0};
    if (report->info.kind == TD_DEVICE_HOST)
        return;
    td_check_item *part = begin_part(report, "%s", "loss");
    uint64_t start_ns = td_clock_real_ns();
    if (!has_time(report, LOSS_SHARE, part))
        return;
    if (td_golden_open(PAIR_MODEL, &g, &err)) {
        lose(&g, spec, part);
        td_golden_close(&g);
    } else {
        fail_with(part, &err);
    }
    part->seconds = 1e-9 * (double)(td_clock_real_ns() - start_ns);
}

/* -- speeds ------------------------------------------------------------------------------------ */

void td_check_speeds(const char *spec, td_check_report *report)
{
    td_err err = {0};
    td_check_item *part = begin_part(report, "%s", "speeds");
    uint64_t start_ns = td_clock_real_ns();
    if (!has_time(report, 1, part))
        return;
    report->has_speeds = td_speeds_measure(spec, report->is_small, &report->speeds, &err);
    if (!report->has_speeds)
        fail_with(part, &err);
    part->seconds = 1e-9 * (double)(td_clock_real_ns() - start_ns);
}
