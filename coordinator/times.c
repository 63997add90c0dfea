/* For every width the median of its last three samples goes into a decayed mean: other
 * processes steal the CPU now and then, and a single sample of three times the usual length must
 * not decide anything. What makes one width slower over time (a longer context, a warmer machine)
 * makes the others slower too, so a width that is measured often takes the rarer ones along as it
 * moves. The table that is asked is the never-decreasing one nearest to the means (pool adjacent
 * violators), interpolated where nothing was measured. */
#include "coordinator/times.h"

#include "base/check.h"

#include <math.h>
#include <string.h>

#define SAMPLES_MAX   32u /* of a decayed mean */
#define RECENT_DECAY  0.98f
#define SLOPE_UNKNOWN 0.1  /* of one row's time, for each further row, while one width is known */
#define SLOPE_MIN     0.02 /* the same beyond the widest measured width: at least */

static float median_of_3(float a, float b, float c)
{
    return fmaxf(fminf(a, b), fminf(fmaxf(a, b), c));
}

static void add_time(td_time *t, float us)
{
    float x = us;
    if (t->n == 1)
        x = fminf(us, t->last[0]);
    else if (t->n >= 2)
        x = median_of_3(us, t->last[0], t->last[1]);
    /* The first three samples are one: their median. */
    uint32_t n = t->n < 3 ? 1 : td_min_u32(t->n - 1, SAMPLES_MAX);
    t->us += (x - t->us) / (float)n;
    t->last[1] = t->last[0];
    t->last[0] = us;
    t->n = td_min_u32(t->n + 1, SAMPLES_MAX + 1);
}

static bool is_time(double us) { return us > 0 && us < 1e12; }

/* The never-decreasing steps nearest to the means of the widths measured, by pooling neighbours
 * that are out of order (Ayer et al. 1955), and lines between them. */
static void fit(td_times *times)
{
    struct {
        uint32_t first, last;
        double weight, us;
    } steps[TD_TIMES_ROWS_MAX];
    uint32_t n_steps = 0;
    for (uint32_t i = 1; i <= TD_TIMES_ROWS_MAX; ++i) {
        const td_time *t = &times->verify[i];
        if (t->n == 0)
            continue;
        steps[n_steps].first = steps[n_steps].last = i;
        steps[n_steps].weight = t->n;
        steps[n_steps++].us = t->us;
        while (n_steps > 1 && steps[n_steps - 2].us > steps[n_steps - 1].us) {
            double a = steps[n_steps - 2].weight, b = steps[n_steps - 1].weight;
            steps[n_steps - 2].us =
                (a * steps[n_steps - 2].us + b * steps[n_steps - 1].us) / (a + b);
            steps[n_steps - 2].weight = a + b;
            steps[n_steps - 2].last = steps[n_steps - 1].last;
            --n_steps;
        }
    }
    if (n_steps == 0)
        return;
    float *out = times->fit_us;
    double unknown = 1 + SLOPE_UNKNOWN * (steps[0].first - 1.0);
    double us_1 = steps[0].us / unknown; /* of one row, by assumption if it was not measured */
    for (uint32_t i = 1; i < steps[0].first; ++i)
        out[i] = (float)(us_1 * (1 + SLOPE_UNKNOWN * (i - 1.0)));
    for (uint32_t s = 0; s < n_steps; ++s) {
        for (uint32_t i = steps[s].first; i <= steps[s].last; ++i)
            out[i] = (float)steps[s].us;
        if (s + 1 == n_steps)
            break;
        double slope = (steps[s + 1].us - steps[s].us) / (steps[s + 1].first - steps[s].last);
        for (uint32_t i = steps[s].last + 1; i < steps[s + 1].first; ++i)
            out[i] = (float)(steps[s].us + slope * (i - steps[s].last));
    }
    uint32_t last = steps[n_steps - 1].last;
    double slope = SLOPE_UNKNOWN * us_1, us = steps[n_steps - 1].us;
    if (last > 1 && n_steps > 1)
        slope = fmax((us - us_1) / (last - 1.0), SLOPE_MIN * us_1);
    for (uint32_t i = last + 1; i <= TD_TIMES_ROWS_MAX; ++i)
        out[i] = (float)(us + slope * (i - last));
}

void td_times_init(td_times *times, const float *verify_us, float draft_us)
{
    memset(times, 0, sizeof(*times));
    for (uint32_t i = 1; verify_us && i <= TD_TIMES_ROWS_MAX; ++i)
        if (is_time((double)verify_us[i]))
            times->verify[i] =
                (td_time){.us = verify_us[i], .last = {verify_us[i], verify_us[i]}, .n = 4};
    if (is_time((double)draft_us))
        times->draft = (td_time){.us = draft_us, .last = {draft_us, draft_us}, .n = 4};
    fit(times);
}

void td_times_add_verify(td_times *times, uint32_t n_rows, double us)
{
    if (n_rows == 0 || n_rows > TD_TIMES_ROWS_MAX || !is_time(us))
        return;
    td_time *t = &times->verify[n_rows];
    float before_us = t->us;
    bool was_known = t->n > SAMPLES_MAX;
    add_time(t, (float)us);
    for (uint32_t i = 1; i <= TD_TIMES_ROWS_MAX; ++i)
        times->verify[i].recent *= RECENT_DECAY;
    t->recent += 1;
    for (uint32_t i = 1; was_known && i <= TD_TIMES_ROWS_MAX; ++i) {
        td_time *u = &times->verify[i];
        if (u->recent < t->recent) /* else two widths would undo what each other learns */
            u->us *=
                1 + (t->us / before_us - 1) * (t->recent - u->recent) / (t->recent + u->recent);
    }
    fit(times);
}

void td_times_add_draft(td_times *times, uint32_t n_tokens, uint32_t n_sequences, double us)
{
    if (n_tokens > 0 && n_sequences > 0 && is_time(us))
        add_time(&times->draft, (float)(us / n_tokens / n_sequences));
}

void td_times_add_wait(td_times *times, double us)
{
    if (is_time(us))
        add_time(&times->wait, (float)us);
}

void td_times_add_trip(td_times *times, double us)
{
    if (is_time(us))
        add_time(&times->trip, (float)us);
}

void td_times_add_head(td_times *times, uint32_t n_tokens, double us, double wait_us)
{
    if (n_tokens > 0 && is_time(us))
        add_time(&times->head, (float)(us / n_tokens));
    if (n_tokens > 0 && is_time(wait_us))
        add_time(&times->head_wait, (float)wait_us);
}

double td_times_verify_us(const td_times *times, double n_rows)
{
    double n = fmin(fmax(n_rows, 1), TD_TIMES_ROWS_MAX);
    uint32_t i = (uint32_t)n;
    double a = (double)times->fit_us[i];
    if (i == TD_TIMES_ROWS_MAX)
        return a;
    return a + (n - i) * ((double)times->fit_us[i + 1] - a);
}

double td_times_draft_us(const td_times *times) { return (double)times->draft.us; }
static double wait_us(const td_time *t) { return t->n < 3 ? 0 : (double)t->us; }

double td_times_wait_us(const td_times *times) { return wait_us(&times->wait); }
double td_times_trip_us(const td_times *times) { return wait_us(&times->trip); }
double td_times_head_us(const td_times *times) { return (double)times->head.us; }
double td_times_head_wait_us(const td_times *times) { return wait_us(&times->head_wait); }
