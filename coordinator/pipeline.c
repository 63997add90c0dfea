/* G groups of sequences take turns. A round of all of them takes the slowest stage G times its time
 * for a group's rows, and each group the time of all stages and links: whichever is longer. More
 * groups hide more of the links, fewer groups have more rows to each pass over the weights.
 *
 * What links take is what is left of a batch's time when its stages' work is taken out and what it
 * waited there, which each stage tells. Without the latter a pipeline that is too full would look
 * like one with long links, and stay full. */
#include "coordinator/pipeline.h"

#include "base/check.h"

#include <math.h>

#define DECAY  (1.0 / 8) /* of means */
#define BETTER 0.95      /* a change must promise so much of the time at most */
#define IDLE   0.02      /* of the slowest stage's time: not worth another batch */

void td_pipeline_init(td_pipeline *p, uint32_t n_stages, uint32_t n_max)
{
    TD_ASSERT(n_stages >= 1 && n_stages <= n_max);
    *p = (td_pipeline){.n_stages = n_stages, .n_max = n_max, .n_groups = n_stages};
    td_times_init(&p->pace, NULL, 0);
}

static double least_link_us(const td_pipeline_kind *k)
{
    uint32_t n = td_min_u32(k->n_links, TD_PIPELINE_LINKS);
    double least = n ? k->link_us[0] : 0;
    for (uint32_t i = 1; i < n; ++i)
        least = fmin(least, k->link_us[i]);
    return least;
}

double td_pipeline_link_us(const td_pipeline *p, bool is_prefill)
{
    const td_pipeline_kind *k = &p->kinds[is_prefill];
    return least_link_us(k->n_links ? k : &p->kinds[!is_prefill]);
}

static void move(double *mean, double x, bool is_first)
{
    *mean += (x - *mean) * (is_first ? 1 : DECAY);
}

void td_pipeline_add(td_pipeline *p, const td_pipeline_sample *s)
{
    td_pipeline_kind *k = &p->kinds[s->is_prefill];
    if (p->n_max == p->n_stages || !(s->max_us > 0))
        return;
    bool is_first = !(k->max_us > 0);
    move(&k->max_us, s->max_us, is_first);
    move(&k->sum_us, s->sum_us, is_first);
    k->link_us[k->n_links++ % TD_PIPELINE_LINKS] = fmax(s->us - s->sum_us - s->waited_us, 0);
    if (!s->is_prefill)
        td_times_add_verify(&p->pace, s->n_rows, s->max_us);
    p->is_news = true;
}

/* A row's share of a round in so many groups. */
static double row_us(const td_pipeline *p, uint32_t n_groups, uint32_t n_sequences,
                     double rows_each, double rows_max)
{
    const td_pipeline_kind *k = &p->kinds[0];
    uint32_t size = td_div_up(n_sequences, n_groups), n = td_div_up(n_sequences, size);
    double rows = fmin(size * rows_each, rows_max);
    double slowest_us = td_times_verify_us(&p->pace, rows);
    double all_us = slowest_us * k->sum_us / k->max_us + td_pipeline_link_us(p, false);
    return fmax(n * slowest_us, all_us) / fmin(n_sequences * rows_each, n * rows);
}

void td_pipeline_choose(td_pipeline *p, uint32_t n_sequences, double rows_each, double rows_max)
{
    if (!p->is_news || n_sequences == 0 || !(p->kinds[0].max_us > 0))
        return;
    uint32_t best = p->n_groups;
    double least = BETTER * row_us(p, p->n_groups, n_sequences, rows_each, rows_max);
    for (uint32_t n = p->n_stages; n <= td_min_u32(p->n_max, n_sequences); ++n) {
        double us = row_us(p, n, n_sequences, rows_each, rows_max);
        if (us >= least)
            continue;
        least = us;
        best = n;
    }
    p->n_groups = best;
    p->is_news = false;
}

uint32_t td_pipeline_depth(const td_pipeline *p, bool is_prefill)
{
    const td_pipeline_kind *k = &p->kinds[is_prefill];
    if (!(k->max_us > 0))
        return p->n_stages;
    double n = ceil((k->sum_us + td_pipeline_link_us(p, is_prefill)) / k->max_us - IDLE);
    return (uint32_t)fmin(fmax(n, p->n_stages), p->n_max);
}
