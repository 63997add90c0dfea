/* The length k with the most expected tokens per expected time is chosen; the last one stays while
 * it is as good as that within HYSTERESIS. Where k is 0, probes of one token find out whether the
 * text has become predictable. They are paid from an account that grows by PROBE_SHARE of the time
 * that passes, so what they lose is bounded whatever they cost; a text that is believed to be
 * hopeless has dearer ones than one at the edge, and while they succeed they follow each other on
 * credit. From the same account come tries of widths that were measured too seldom to be sure that
 * they are as slow as they seem. */
#include "coordinator/length.h"

#include "base/check.h"

#include <math.h>

#define SAMPLES_FEW    4u /* samples so few that all of them may be far off */
#define HYSTERESIS     0.01
#define PROBE_SHARE    0.02
#define PROBE_COST_MIN 0.1 /* a probe is charged at least this part of what it costs if it fails */
#define PROBE_HOPELESS 8.0 /* charged, in costs of a failed probe, where drafts would never pay */
#define EXPLORE_GAIN   0.03
#define EXPLORE_DEBT   3.0 /* tokens' time that trying new widths may cost a sequence in advance */
#define PROBE_DEBT     4.0 /* probes that may be owed while they succeed */
#define AGREEMENT_MAX  0.98
#define AGREEMENT_MIN  0.04 /* about what is believed of a useless text */

/* All that a choice of k is made from. */
typedef struct {
    const td_times *times;
    td_others others;
    double draft_us, wait_us; /* of one token; of an answer beside its tokens */
    bool is_ahead;
    uint32_t k_max;
    double verify_us[TD_ACCEPTANCE_DRAFT_MAX + 1]; /* by k */
} terms;

static double round_us(const terms *t, uint32_t k, double p_hit)
{
    double verify_us = t->verify_us[k];
    double wait_us = k > 0 ? t->wait_us : 0;
    double turns_us = wait_us + t->others.draft_us + k * t->draft_us + verify_us;
    if (!t->is_ahead || k == 0)
        return turns_us;
    double ahead_us = fmax(wait_us + t->others.draft_us + (k + 1) * t->draft_us, verify_us);
    return p_hit * ahead_us + (1 - p_hit) * turns_us;
}

/* Tokens per time by draft length, 0..k_max. survival: [k_max + 1]. */
static void goodputs(const terms *t, const float *survival, double *out)
{
    double n_tokens = t->others.n_tokens + 1;
    for (uint32_t k = 0; k <= t->k_max; ++k) {
        out[k] = n_tokens / round_us(t, k, (double)survival[k]);
        n_tokens += (double)survival[k];
    }
}

void td_length_init(td_length_state *state) { *state = (td_length_state){0}; }

/* Whether drafts could pay on a text that is as predictable as can be. */
static bool could_pay(const terms *t, double goodput)
{
    double survival = 1, n_tokens = t->others.n_tokens + 1;
    for (uint32_t k = 1; k <= t->k_max; ++k) {
        survival *= AGREEMENT_MAX;
        n_tokens += survival;
        if (n_tokens / round_us(t, k, survival * AGREEMENT_MAX) > goodput * (1 + HYSTERESIS))
            return true;
    }
    return false;
}

/* Drafting does not pay now: 1 for a round that looks whether that has changed, else 0. goodput:
 * of what is done instead; agreement: believed of a first token. */
static uint32_t probe(td_length_choice *last, const terms *t, double goodput, double agreement)
{
    double n_tokens = t->others.n_tokens + 1;
    double worst_us = fmax(round_us(t, 1, 0) - n_tokens / goodput, 0);
    double gain_us = fmax(agreement - AGREEMENT_MIN, 0) / goodput;
    double cost_us = fmax(worst_us - gain_us, PROBE_COST_MIN * worst_us);
    bool is_rising = last->was_probe && agreement > (double)last->probe_mean;
    last->was_probe = false;
    double needed_us = is_rising ? -PROBE_DEBT * worst_us : cost_us;
    if (t->times->draft.n >= SAMPLES_FEW && !could_pay(t, goodput))
        needed_us = cost_us = PROBE_HOPELESS * worst_us; /* times may have been measured wrongly */
    last->account_us = fminf(last->account_us, (float)fmax(needed_us, 2 * worst_us));
    if ((double)last->account_us < needed_us)
        return 0;
    last->account_us -= (float)cost_us;
    last->probe_mean = (float)agreement;
    last->was_probe = true;
    return 1;
}

/* The k with the highest goodput, 0 if that is not above `other`. */
static uint32_t find_best(uint32_t k_last, const double *goodput, uint32_t k_max, double other,
                          double *most)
{
    uint32_t best = 0;
    *most = other;
    for (uint32_t k = 1; k <= k_max; ++k)
        if (goodput[k] > *most) {
            *most = goodput[k];
            best = k;
        }
    double last = k_last == 0 ? other : goodput[td_min_u32(k_last, k_max)];
    return k_last <= k_max && last >= (1 - HYSTERESIS) * *most ? k_last : best;
}

/* Fills in the times. is_hopeful: as short as they might be, seeing how often they were measured;
 * a width measured but a few times may take no longer than a narrower one. Widths are tried up to
 * twice the widest measured. */
static void set_times(terms *t, uint32_t k_max, bool is_hopeful)
{
    uint32_t widest = 1;
    for (uint32_t i = 1; i <= TD_TIMES_ROWS_MAX; ++i)
        if (t->times->verify[i].n > 0)
            widest = i;
    double room = fmin(2.0 * widest, TD_TIMES_ROWS_MAX) - t->others.n_rows - 1;
    t->k_max =
        td_min_u32(td_min_u32(k_max, TD_ACCEPTANCE_DRAFT_MAX), room < 0 ? 0 : (uint32_t)room);
    for (uint32_t k = 0; k <= t->k_max; ++k) {
        double n_rows = t->others.n_rows + 1 + k;
        t->verify_us[k] = td_times_verify_us(t->times, n_rows);
        if (!is_hopeful || k == 0)
            continue;
        uint32_t n = t->times->verify[(uint32_t)(n_rows + 0.5)].n;
        double low_us = n < SAMPLES_FEW ? 0 : t->verify_us[k] * (1 - 1.0 / n);
        t->verify_us[k] = fmin(t->verify_us[k], fmax(low_us, t->verify_us[k - 1]));
    }
}

/* A length whose width is little known and would be better than the best if it took no longer than
 * a narrower one; k if there is none. */
static uint32_t explore(td_length_choice *last, const terms *t, const float *survival, uint32_t k,
                        double most)
{
    double goodput[TD_ACCEPTANCE_DRAFT_MAX + 1], hopeful;
    terms u = *t;
    set_times(&u, t->k_max, true);
    goodputs(&u, survival, goodput);
    uint32_t other = find_best(k, goodput, t->k_max, most, &hopeful);
    if (other == k || other == 0 || hopeful < (1 + EXPLORE_GAIN) * most ||
        (double)last->account_us < -EXPLORE_DEBT / most)
        return k;
    double cost_us = round_us(t, other, (double)survival[other]) - u.others.n_tokens / most;
    for (uint32_t i = 0; i <= other; ++i)
        cost_us -= (i == 0 ? 1 : (double)survival[i - 1]) / most;
    last->account_us -= (float)fmax(cost_us, 0);
    return other;
}

static uint32_t choose(td_length_choice *last, const terms *t, const float *survival, double other)
{
    double goodput[TD_ACCEPTANCE_DRAFT_MAX + 1], most;
    goodputs(t, survival, goodput);
    other = fmax(other, goodput[0]);
    /* While all the others draft, one more row may cost little (their rows are beyond the width
     * where the time jumps already), and yet all sequences together be faster if none drafted. So
     * that is compared too; as all compare the same, they stop at the same time. */
    double n_pending = t->others.n_sequences + 1;
    if (t->others.n_sequences > 0)
        other = fmax(other, n_pending / td_times_verify_us(t->times, n_pending));
    last->k = find_best(last->k, goodput, t->k_max, other, &most);
    last->account_us += (float)(PROBE_SHARE / most);
    uint32_t k = explore(last, t, survival, last->k, most);
    if (k == 0 && t->k_max > 0)
        return probe(last, t, other, (double)survival[0]);
    last->was_probe = false;
    return k;
}

static terms begin_terms(const td_times *times, const td_others *others, bool is_ahead)
{
    terms t = {.times = times,
               .draft_us = td_times_draft_us(times),
               .wait_us = td_times_wait_us(times),
               .is_ahead = is_ahead};
    t.others = others ? *others : t.others;
    return t;
}

uint32_t td_length_of_draft(td_length_state *state, const td_acceptance *a, const td_times *times,
                            uint32_t k_max, const td_others *others, bool is_ahead)
{
    terms t = begin_terms(times, others, is_ahead);
    /* Without the time of a plain round there is nothing to compare with. */
    if (k_max == 0 || (t.others.n_rows < 0.5 && times->verify[1].n < 2))
        return 0;
    float survival[TD_ACCEPTANCE_DRAFT_MAX + 1];
    set_times(&t, k_max, false);
    td_acceptance_survival(a, TD_SOURCE_MODEL, survival, t.k_max + 1);
    return choose(&state->model, &t, survival, 0);
}

uint32_t td_length_of_match(td_length_state *state, const td_acceptance *a, const td_times *times,
                            uint32_t n_match, uint32_t k_max, uint32_t k_model,
                            const td_others *others, bool is_ahead)
{
    terms t = begin_terms(times, others, is_ahead);
    if (k_max == 0 || (t.others.n_rows < 0.5 && times->verify[1].n < 2))
        return 0;
    float survival[TD_ACCEPTANCE_DRAFT_MAX + 1];
    double goodput[TD_ACCEPTANCE_DRAFT_MAX + 1];
    set_times(&t, k_model, false);
    td_acceptance_survival(a, TD_SOURCE_MODEL, survival, t.k_max + 1);
    goodputs(&t, survival, goodput);
    double other = goodput[t.k_max];
    t.draft_us = t.wait_us = 0;
    t.is_ahead = false;
    set_times(&t, k_max, false);
    td_acceptance_survival(a, td_source_of_match(n_match), survival, t.k_max + 1);
    return choose(&state->match, &t, survival, other);
}
