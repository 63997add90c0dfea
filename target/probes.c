#include "target/probes.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/order.h"

#include <math.h>

#define KIND_NS 250000000u
#define N_LEAST 2u /* answers behind those that only fill the link */

enum { TRIPS, THERE, BACK, N_KINDS };

static const struct {
    uint32_t n, n_at_once, n_there, n_back; /* n_there: bytes of each, n_back: of an answer */
} kinds[N_KINDS] = {
    [TRIPS] = {TD_PROBES_MAX, 1, 1, 1},
    [THERE] = {24, 4, TD_STAGE_DATA_MAX, 1},
    [BACK] = {24, 4, 1, TD_STAGE_DATA_MAX},
};

void td_probes_begin(td_probes *p, bool is_one_way) { *p = (td_probes){.is_one_way = is_one_way}; }

bool td_probes_is_over(const td_probes *p) { return p->kind == (p->is_one_way ? BACK : N_KINDS); }

/* The median time from a probe to its answer, of those but the first that fill the link; while
 * there is none, the time that it has not come. */
static double trip_us(const td_probes *p, uint64_t now_ns)
{
    double samples[TD_PROBES_MAX];
    uint32_t n = 0, n_filling = kinds[p->kind].n_at_once;
    for (uint32_t i = p->n_answered > n_filling ? n_filling : 0; i < p->n_answered; i++)
        samples[n++] = (double)(p->answered_ns[i] - p->sent_ns[i]) * 1e-3;
    if (!n)
        return (double)(now_ns - p->sent_ns[0]) * 1e-3;
    td_sort_doubles(samples, n);
    return samples[n / 2];
}

/* Bytes a second while the link is full; with few answers the most that they say. */
static double rate(const td_probes *p, uint64_t now_ns)
{
    uint32_t n_filling = kinds[p->kind].n_at_once, n = p->n_answered;
    bool is_full = n > n_filling;
    uint64_t from_ns = is_full ? p->answered_ns[n_filling - 1] : p->sent_ns[0];
    uint64_t to_ns = n ? p->answered_ns[n - 1] : now_ns;
    double n_bytes = fmax(kinds[p->kind].n_there, kinds[p->kind].n_back);
    return fmax(1, is_full ? n - n_filling : n) * n_bytes * 1e9 /
           fmax(1, (double)(to_ns - from_ns));
}

static void end_kind(td_probes *p)
{
    uint64_t now_ns = td_clock_real_ns();
    if (p->kind == TRIPS)
        p->found.idle_us = trip_us(p, now_ns);
    else if (p->kind == BACK)
        p->found.back_bytes_per_s = rate(p, now_ns);
    else {
        p->found.there_bytes_per_s = rate(p, now_ns);
        p->found.loaded_us = trip_us(p, now_ns);
    }
    p->kind++;
    p->n_sent = p->n_answered = 0;
}

static bool is_enough(const td_probes *p)
{
    return p->n_sent == kinds[p->kind].n || (p->n_sent >= kinds[p->kind].n_at_once + N_LEAST &&
                                             td_clock_real_ns() - p->sent_ns[0] > KIND_NS);
}

bool td_probes_send(td_probes *p, td_stage_way *way, td_err *err)
{
    static const uint8_t zeros[TD_STAGE_DATA_MAX];
    while (!td_probes_is_over(p)) {
        td_err why = {0};
        td_stage_msg m = {.type = TD_STAGE_PROBE,
                          .probe = {.n_back = kinds[p->kind].n_back,
                                    .n = kinds[p->kind].n_there,
                                    .bytes = zeros}};
        bool is_last = is_enough(p);
        if (is_last && p->n_answered == p->n_sent) {
            end_kind(p);
            continue;
        }
        if (is_last || p->n_sent - p->n_answered == kinds[p->kind].n_at_once)
            return true;
        p->sent_ns[p->n_sent] = td_clock_real_ns();
        if (!td_stage_way_send(way, &m, &why))
            return why.code == TD_E_AGAIN || td_err_set(err, why.code, "%s", why.message);
        p->n_sent++;
    }
    return true;
}

bool td_probes_take(td_probes *p)
{
    if (td_probes_is_over(p) || p->n_answered == p->n_sent)
        return false;
    p->answered_ns[p->n_answered++] = td_clock_real_ns();
    return true;
}

bool td_probes_end(td_probes *p)
{
    if (p->kind == TRIPS && !p->n_answered)
        return false;
    while (!td_probes_is_over(p))
        end_kind(p);
    return true;
}
