/* How much to draft.
 *
 * Times. Of every width the median of its last three samples goes into a decayed mean: other
 * processes steal the CPU now and then, and a single sample of three times the usual length must
 * not decide anything. What makes one width slower over time (a longer context, a warmer machine)
 * makes the others slower too, so a width that is measured often takes the rarer ones along as it
 * moves. The table that is asked is the never-decreasing one nearest to the means (pool adjacent
 * violators), interpolated where nothing was measured.
 *
 * Acceptance. A text is at one of a few levels of agreement and changes its level now and then.
 * What is kept is the belief in each level (a hidden Markov model, filtered exactly): so a break
 * from 0.95 to nothing is seen after three rounds, not after a mean has decayed, and the chance
 * that token i agrees given those before it did rises with i while the level is uncertain, as it
 * does in real texts. What remains by index is corrected by a decayed ratio. Where a text goes when
 * it changes is learnt from the run's earlier sequences.
 *
 * Length. The k with the most expected tokens per expected time, but the last one while it is as
 * good as that within HYSTERESIS. Where that is 0, probes of one token find out whether the text
 * has become predictable. They are paid from an account that grows by PROBE_SHARE of the time that
 * passes, so what they lose is bounded whatever they cost; a text that is believed to be hopeless
 * has dearer ones than one at the edge, and while they succeed they follow each other on credit.
 * From the same account come tries of widths that were measured too seldom to be sure that they
 * are as slow as they seem. */
#include "coordinator/control.h"

#include "base/check.h"

#include <math.h>
#include <string.h>

#define SAMPLES_MAX      32u /* of a decayed mean */
#define SAMPLES_FEW      4u  /* may all be far off */
#define RECENT_DECAY     0.98f
#define SLOPE_UNKNOWN    0.1   /* of a row's time per further row, while one width is known */
#define SLOPE_MIN        0.02  /* the same at least, beyond the widest measured one */
#define PRIOR_ROUNDS     16.0f /* what knowing nothing weighs against earlier sequences */
#define SEEN_MAX         4096.0f
#define INDEX_DECAY      0.98f
#define INDEX_PRIOR      8.0f
#define INDEX_ROUNDS_MAX 64.0f /* what earlier sequences weigh by index */
#define HYSTERESIS       0.01
#define PROBE_SHARE      0.02
#define PROBE_COST_MIN   0.1 /* of what it costs if nothing agrees: the least that is charged */
#define PROBE_HOPELESS   8.0 /* charge of a probe where drafts would not even pay if all agreed */
#define EXPLORE_GAIN     0.03
#define EXPLORE_DEBT     3.0 /* tokens' time that trying new widths may cost a sequence in advance */
#define PROBE_DEBT       4.0 /* probes that may be owed while they succeed */
#define AGREEMENT_MAX    0.98
#define AGREEMENT_MIN    0.04 /* believed of a useless text, about */

/* Probability per token that a text changes its level; and that it changes its rate of changing. */
#define RATE_CHANGE 0.001f
static const float rates[TD_CONTROL_RATES] = {0.0025f, 0.04f};
static const float levels[TD_CONTROL_LEVELS] = {0.02f, 0.1f, 0.2f, 0.3f,  0.4f,  0.5f,
                                                0.6f,  0.7f, 0.8f, 0.88f, 0.94f, 0.98f};

/* ---- times ---- */

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
static void fit(td_times *costs)
{
    struct {
        uint32_t first, last;
        double weight, us;
    } steps[TD_CONTROL_ROWS_MAX];
    uint32_t n_steps = 0;
    for (uint32_t i = 1; i <= TD_CONTROL_ROWS_MAX; ++i) {
        const td_time *t = &costs->verify[i];
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
    float *out = costs->fit_us;
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
    for (uint32_t i = last + 1; i <= TD_CONTROL_ROWS_MAX; ++i)
        out[i] = (float)(us + slope * (i - last));
}

void td_times_init(td_times *costs, const float *verify_us, float draft_us)
{
    memset(costs, 0, sizeof(*costs));
    for (uint32_t i = 1; verify_us && i <= TD_CONTROL_ROWS_MAX; ++i)
        if (is_time((double)verify_us[i]))
            costs->verify[i] =
                (td_time){.us = verify_us[i], .last = {verify_us[i], verify_us[i]}, .n = 4};
    if (is_time((double)draft_us))
        costs->draft = (td_time){.us = draft_us, .last = {draft_us, draft_us}, .n = 4};
    fit(costs);
}

void td_times_add_verify(td_times *costs, uint32_t n_rows, double us)
{
    if (n_rows == 0 || n_rows > TD_CONTROL_ROWS_MAX || !is_time(us))
        return;
    td_time *t = &costs->verify[n_rows];
    float before_us = t->us;
    bool was_known = t->n > SAMPLES_MAX;
    add_time(t, (float)us);
    for (uint32_t i = 1; i <= TD_CONTROL_ROWS_MAX; ++i)
        costs->verify[i].recent *= RECENT_DECAY;
    t->recent += 1;
    for (uint32_t i = 1; was_known && i <= TD_CONTROL_ROWS_MAX; ++i) {
        td_time *u = &costs->verify[i];
        if (u->recent < t->recent) /* else each would undo what the other learns */
            u->us *=
                1 + (t->us / before_us - 1) * (t->recent - u->recent) / (t->recent + u->recent);
    }
    fit(costs);
}

void td_times_add_draft(td_times *costs, uint32_t n_tokens, uint32_t n_sequences, double us)
{
    if (n_tokens > 0 && n_sequences > 0 && is_time(us))
        add_time(&costs->draft, (float)(us / n_tokens / n_sequences));
}

double td_times_verify_us(const td_times *costs, double n_rows)
{
    double n = fmin(fmax(n_rows, 1), TD_CONTROL_ROWS_MAX);
    uint32_t i = (uint32_t)n;
    double a = (double)costs->fit_us[i];
    if (i == TD_CONTROL_ROWS_MAX)
        return a;
    return a + (n - i) * ((double)costs->fit_us[i + 1] - a);
}

double td_times_draft_us(const td_times *costs) { return (double)costs->draft.us; }

/* ---- acceptance ---- */

td_source td_source_of_match(uint32_t n_match)
{
    if (n_match < 5)
        return TD_SOURCE_MATCH_3;
    if (n_match < 9)
        return TD_SOURCE_MATCH_5;
    return n_match < 17 ? TD_SOURCE_MATCH_9 : TD_SOURCE_MATCH_17;
}

static uint32_t class_of_index(uint32_t i)
{
    uint32_t class = 0;
    for (uint32_t n = i + 1; n > 1; n /= 2) /* 0, 1-2, 3-6, 7-14, ... */
        ++class;
    return td_min_u32(class, TD_CONTROL_CLASSES - 1);
}

void td_acceptance_init(td_acceptance *a, const td_acceptance *prior)
{
    static const td_acceptance nothing;
    const td_acceptance *from = prior ? prior : &nothing;
    memset(a, 0, sizeof(*a));
    for (uint32_t s = 0; s < TD_SOURCE_COUNT; ++s) {
        const float *seen = from->sources[s].seen, *seen_rate = from->sources[s].seen_rate;
        float sum = PRIOR_ROUNDS;
        for (uint32_t l = 0; l < TD_CONTROL_LEVELS; ++l)
            sum += seen[l];
        for (uint32_t l = 0; l < TD_CONTROL_LEVELS; ++l) {
            a->sources[s].prior[l] = (seen[l] + PRIOR_ROUNDS / TD_CONTROL_LEVELS) / sum;
            for (uint32_t r = 0; r < TD_CONTROL_RATES; ++r)
                a->sources[s].belief[r][l] =
                    a->sources[s].prior[l] * (seen_rate[r] + PRIOR_ROUNDS / TD_CONTROL_RATES) / sum;
        }
        for (uint32_t i = 0; i < TD_CONTROL_CLASSES; ++i) {
            float expected = from->sources[s].expected[i];
            float scale = expected > INDEX_ROUNDS_MAX ? INDEX_ROUNDS_MAX / expected : 1;
            a->sources[s].expected[i] = expected * scale;
            a->sources[s].accepted[i] = from->sources[s].accepted[i] * scale;
        }
    }
}

/* The belief after one more token, which agreed or not; before: the chance of what happened. */
static float observe(float belief[][TD_CONTROL_LEVELS], const float *prior, bool is_right)
{
    float chance = 0;
    for (uint32_t r = 0; r < TD_CONTROL_RATES; ++r)
        for (uint32_t l = 0; l < TD_CONTROL_LEVELS; ++l)
            chance += belief[r][l] *= is_right ? levels[l] : 1 - levels[l];
    for (uint32_t r = 0; r < TD_CONTROL_RATES; ++r) {
        float sum = 0;
        for (uint32_t l = 0; l < TD_CONTROL_LEVELS; ++l)
            sum += belief[r][l] /= chance;
        for (uint32_t l = 0; l < TD_CONTROL_LEVELS; ++l)
            belief[r][l] += rates[r] * (sum * prior[l] - belief[r][l]) +
                            RATE_CHANGE * (prior[l] / TD_CONTROL_RATES - belief[r][l]);
    }
    return chance;
}

void td_acceptance_add(td_acceptance *a, td_source source, uint32_t n_drafted, uint32_t n_accepted)
{
    uint32_t n = td_min_u32(n_drafted, TD_CONTROL_DRAFT_MAX), n_right = td_min_u32(n_accepted, n);
    if (n == 0)
        return;
    float(*belief)[TD_CONTROL_LEVELS] = a->sources[source].belief;
    for (uint32_t i = 0; i < TD_CONTROL_CLASSES; ++i) {
        a->sources[source].expected[i] *= INDEX_DECAY;
        a->sources[source].accepted[i] *= INDEX_DECAY;
    }
    for (uint32_t i = 0; i < n && i <= n_right; ++i) {
        bool is_right = i < n_right;
        float chance = observe(belief, a->sources[source].prior, is_right);
        a->sources[source].expected[class_of_index(i)] += is_right ? chance : 1 - chance;
        a->sources[source].accepted[class_of_index(i)] += is_right;
    }
    for (uint32_t r = 0; r < TD_CONTROL_RATES; ++r) {
        float sum = 0;
        for (uint32_t l = 0; l < TD_CONTROL_LEVELS; ++l) {
            sum += belief[r][l];
            a->sources[source].seen[l] += belief[r][l];
        }
        a->sources[source].seen_rate[r] += sum;
    }
}

void td_acceptance_merge(td_acceptance *prior, const td_acceptance *a)
{
    for (uint32_t s = 0; s < TD_SOURCE_COUNT; ++s) {
        float sum = 0;
        for (uint32_t l = 0; l < TD_CONTROL_LEVELS; ++l)
            sum += prior->sources[s].seen[l] += a->sources[s].seen[l];
        for (uint32_t l = 0; l < TD_CONTROL_LEVELS && sum > SEEN_MAX; ++l)
            prior->sources[s].seen[l] *= SEEN_MAX / sum;
        for (uint32_t r = 0; r < TD_CONTROL_RATES; ++r) {
            prior->sources[s].seen_rate[r] += a->sources[s].seen_rate[r];
            prior->sources[s].seen_rate[r] *= sum > SEEN_MAX ? SEEN_MAX / sum : 1;
        }
        memcpy(prior->sources[s].expected, a->sources[s].expected,
               sizeof(prior->sources[s].expected)); /* they began with those of `prior` */
        memcpy(prior->sources[s].accepted, a->sources[s].accepted,
               sizeof(prior->sources[s].accepted));
    }
}

void td_acceptance_survival(const td_acceptance *a, td_source source, float *survival, uint32_t k)
{
    float belief[TD_CONTROL_RATES][TD_CONTROL_LEVELS], product = 1;
    memcpy(belief, a->sources[source].belief, sizeof(belief));
    for (uint32_t i = 0; i < k; ++i) {
        uint32_t class = class_of_index(i);
        float ratio = (a->sources[source].accepted[class] + INDEX_PRIOR) /
                      (a->sources[source].expected[class] + INDEX_PRIOR);
        float chance = observe(belief, a->sources[source].prior, true);
        product *= fminf(chance * fminf(fmaxf(ratio, 0.5f), 1.5f), 0.995f);
        survival[i] = product;
    }
}

/* ---- length ---- */

/* All that a choice of k is made from. */
typedef struct {
    const td_times *costs;
    td_others others;
    double draft_us; /* of one token */
    bool is_ahead;
    uint32_t k_max;
    double verify_us[TD_CONTROL_DRAFT_MAX + 1]; /* by k */
} terms;

static double round_us(const terms *t, uint32_t k, double p_hit)
{
    double verify_us = t->verify_us[k];
    double turns_us = t->others.draft_us + k * t->draft_us + verify_us;
    if (!t->is_ahead || k == 0)
        return turns_us;
    double ahead_us = fmax(t->others.draft_us + (k + 1) * t->draft_us, verify_us);
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
    if (t->costs->draft.n >= SAMPLES_FEW && !could_pay(t, goodput))
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
    for (uint32_t i = 1; i <= TD_CONTROL_ROWS_MAX; ++i)
        if (t->costs->verify[i].n > 0)
            widest = i;
    double room = fmin(2.0 * widest, TD_CONTROL_ROWS_MAX) - t->others.n_rows - 1;
    t->k_max = td_min_u32(td_min_u32(k_max, TD_CONTROL_DRAFT_MAX), room < 0 ? 0 : (uint32_t)room);
    for (uint32_t k = 0; k <= t->k_max; ++k) {
        double n_rows = t->others.n_rows + 1 + k;
        t->verify_us[k] = td_times_verify_us(t->costs, n_rows);
        if (!is_hopeful || k == 0)
            continue;
        uint32_t n = t->costs->verify[(uint32_t)(n_rows + 0.5)].n;
        double low_us = n < SAMPLES_FEW ? 0 : t->verify_us[k] * (1 - 1.0 / n);
        t->verify_us[k] = fmin(t->verify_us[k], fmax(low_us, t->verify_us[k - 1]));
    }
}

/* A length whose width is little known and would be better than the best if it took no longer than
 * a narrower one; k if there is none. */
static uint32_t explore(td_length_choice *last, const terms *t, const float *survival, uint32_t k,
                        double most)
{
    double goodput[TD_CONTROL_DRAFT_MAX + 1], hopeful;
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
    double goodput[TD_CONTROL_DRAFT_MAX + 1], most;
    goodputs(t, survival, goodput);
    other = fmax(other, goodput[0]);
    /* While all the others draft, the next row may be cheap (they paid for the cliff), and yet all
     * be better off if nobody drafted; they all find that at the same time. */
    double n_pending = t->others.n_sequences + 1;
    if (t->others.n_sequences > 0)
        other = fmax(other, n_pending / td_times_verify_us(t->costs, n_pending));
    last->k = find_best(last->k, goodput, t->k_max, other, &most);
    last->account_us += (float)(PROBE_SHARE / most);
    uint32_t k = explore(last, t, survival, last->k, most);
    if (k == 0 && t->k_max > 0)
        return probe(last, t, other, (double)survival[0]);
    last->was_probe = false;
    return k;
}

uint32_t td_draft_length(td_length_state *state, const td_acceptance *a, const td_times *costs,
                         uint32_t k_max, const td_others *others, bool is_ahead)
{
    terms t = {.costs = costs, .draft_us = td_times_draft_us(costs), .is_ahead = is_ahead};
    t.others = others ? *others : t.others;
    /* Without the time of a plain round there is nothing to compare with. */
    if (k_max == 0 || (t.others.n_rows < 0.5 && costs->verify[1].n < 2))
        return 0;
    float survival[TD_CONTROL_DRAFT_MAX + 1];
    set_times(&t, k_max, false);
    td_acceptance_survival(a, TD_SOURCE_MODEL, survival, t.k_max + 1);
    return choose(&state->model, &t, survival, 0);
}

uint32_t td_match_length(td_length_state *state, const td_acceptance *a, const td_times *costs,
                         uint32_t n_match, uint32_t k_max, uint32_t k_model,
                         const td_others *others, bool is_ahead)
{
    terms t = {.costs = costs, .draft_us = td_times_draft_us(costs), .is_ahead = is_ahead};
    t.others = others ? *others : t.others;
    if (k_max == 0 || (t.others.n_rows < 0.5 && costs->verify[1].n < 2))
        return 0;
    float survival[TD_CONTROL_DRAFT_MAX + 1];
    double goodput[TD_CONTROL_DRAFT_MAX + 1];
    set_times(&t, k_model, false);
    td_acceptance_survival(a, TD_SOURCE_MODEL, survival, t.k_max + 1);
    goodputs(&t, survival, goodput);
    double other = goodput[t.k_max];
    t.draft_us = 0;
    t.is_ahead = false;
    set_times(&t, k_max, false);
    td_acceptance_survival(a, td_source_of_match(n_match), survival, t.k_max + 1);
    return choose(&state->match, &t, survival, other);
}

/* ---- rows of a verify batch ---- */

uint32_t td_deal_rows(const td_times *costs, const td_deal *deals, uint32_t n_sequences,
                      uint32_t n_rows_max, double spent_us, uint32_t *n_kept)
{
    TD_ASSERT(n_sequences >= 1 && n_sequences <= n_rows_max);
    TD_ASSERT(n_rows_max <= TD_CONTROL_ROWS_MAX);
    uint32_t order[TD_CONTROL_ROWS_MAX]; /* the sequence whose next row is added */
    uint32_t n_added = 0, n_best = 0;
    double n_tokens = n_sequences;
    double most = n_tokens / (spent_us + td_times_verify_us(costs, n_sequences));
    bool is_unknown = !(td_times_verify_us(costs, n_sequences) > 0); /* no times: all that fits */
    memset(n_kept, 0, n_sequences * sizeof(*n_kept));
    /* In falling order the first rows are the best choice of their number: so all that is left is
     * how many, and looking at every number gets over cliffs and plateaus. */
    while (n_sequences + n_added < n_rows_max) {
        uint32_t next = n_sequences;
        float best = -1;
        for (uint32_t i = 0; i < n_sequences; ++i)
            if (n_kept[i] < deals[i].n_draft && deals[i].survival[n_kept[i]] > best) {
                best = deals[i].survival[n_kept[i]];
                next = i;
            }
        if (next == n_sequences)
            break;
        ++n_kept[next];
        order[n_added++] = next;
        n_tokens += (double)best;
        double goodput = n_tokens / (spent_us + td_times_verify_us(costs, n_sequences + n_added));
        if (goodput > most || is_unknown) {
            most = goodput;
            n_best = n_added;
        }
    }
    while (n_added > n_best)
        --n_kept[order[--n_added]];
    return n_sequences + n_best;
}
