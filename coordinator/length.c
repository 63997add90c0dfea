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
#define CHAIN_HEAD     1u  /* tokens of the head in a chain: of more the model is not told */
#define TRY_FIRST      8u  /* rounds before a source that is not taken is tried, */
#define TRY_RARER      4u  /* and as many more for each round that it was */
#define TRY_ROUNDS     4u
#define HEAD_UNKNOWN   0.2 /* of a plain round, a step of the head while none was measured */
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

/* Rounds of a chain: tokens per time by the model's k, 1..t->k_max. */
static void chain_goodputs(const terms *t, const terms *h, const float *by_model, double head,
                           double *out)
{
    double n_sum = t->others.n_tokens + 1;
    double head_us = h->wait_us + h->others.draft_us + CHAIN_HEAD * h->draft_us;
    for (uint32_t k = 1; k <= t->k_max; ++k) {
        n_sum += (double)by_model[k - 1];
        double ahead_us = t->wait_us + t->others.draft_us + (k + 1) * t->draft_us;
        double p_hit = head * (double)by_model[0], p_again = (double)by_model[k];
        double first_us = h->verify_us[CHAIN_HEAD], hand_us = t->verify_us[k];
        first_us = head_us + p_hit * fmax(first_us, ahead_us) + (1 - p_hit) * first_us;
        hand_us = p_again * fmax(hand_us, ahead_us) + (1 - p_again) * hand_us;
        double share = p_hit / (1 - p_again + p_hit); /* of rounds that have a draft at hand */
        double n_first = t->others.n_tokens + 1 + head;
        out[k] =
            (share * n_sum + (1 - share) * n_first) / (share * hand_us + (1 - share) * first_us);
    }
}

/* The k that promises most, 1..k_max; 0: none promises anything. */
static uint32_t arg_best(const double *goodput, uint32_t k_max)
{
    uint32_t best = 0;
    for (uint32_t k = 1; k <= k_max; ++k)
        if (goodput[k] > (best ? goodput[best] : 0))
            best = k;
    return best;
}

td_length_plan td_length_of_sources(td_length_state *state, const td_acceptance *a,
                                    const td_times *times, uint32_t k_max, const td_others *others,
                                    bool is_ahead, bool has_model)
{
    terms t = begin_terms(times, others, is_ahead), h = begin_terms(times, others, false);
    state->goodput = 0;
    if (k_max == 0 || (t.others.n_rows < 0.5 && times->verify[1].n < 2))
        return (td_length_plan){0};
    h.draft_us = td_times_head_us(times);
    /* It is the target's time, unlike the model's: not much is asked of it before it is known. */
    if (!(h.draft_us > 0))
        h.draft_us = HEAD_UNKNOWN * td_times_verify_us(times, 1);
    h.wait_us = td_times_head_wait_us(times);
    float by_model[TD_ACCEPTANCE_DRAFT_MAX + 1], by_head[TD_ACCEPTANCE_DRAFT_MAX + 1];
    double model[TD_ACCEPTANCE_DRAFT_MAX + 1], head[TD_ACCEPTANCE_DRAFT_MAX + 1];
    double chain[TD_ACCEPTANCE_DRAFT_MAX + 1] = {0}, most;
    set_times(&t, has_model ? k_max : 0, false);
    set_times(&h, k_max, false);
    td_acceptance_mean(a, TD_SOURCE_MODEL, by_model, t.k_max + 1);
    td_acceptance_mean(a, TD_SOURCE_HEAD, by_head, h.k_max + 1);
    goodputs(&t, by_model, model);
    goodputs(&h, by_head, head);
    uint32_t k_model = arg_best(model, t.k_max), k_head = arg_best(head, h.k_max);
    double most_model = k_model ? model[k_model] : 0, most_head = k_head ? head[k_head] : 0;
    double single = fmax(head[0], fmax(most_model, most_head));
    if (is_ahead && h.k_max >= CHAIN_HEAD) {
        chain_goodputs(&t, &h, by_model, (double)by_head[CHAIN_HEAD - 1], chain);
        uint32_t k_last = state->is_chain ? state->model.k : 0;
        uint32_t k = find_best(k_last, chain, t.k_max, single, &most);
        state->is_chain = k > 0;
        if (k > 0) {
            state->model.k = k;
            state->head.k = CHAIN_HEAD;
            state->model.was_probe = state->head.was_probe = false;
            state->goodput = chain[k];
            return (td_length_plan){CHAIN_HEAD, k};
        }
    }
    state->is_chain = false;
    /* One of them, the last one while it is as good; in turns where neither is worth its while. */
    double keeps = state->is_head ? 1 + HYSTERESIS : 1 - HYSTERESIS;
    bool is_head = single > head[0] ? most_head * keeps > most_model : state->n_probes % 2 == 0;
    state->is_head = is_head || !has_model;
    state->model.was_probe &= !state->is_head;
    state->head.was_probe &= state->is_head;
    state->goodput = single;
    td_length_choice *last = state->is_head ? &state->head : &state->model;
    td_source by = state->is_head ? TD_SOURCE_HEAD : TD_SOURCE_MODEL;
    td_source other = state->is_head ? TD_SOURCE_MODEL : TD_SOURCE_HEAD;
    td_acceptance_survival(a, by, by_head, (state->is_head ? h.k_max : t.k_max) + 1);
    uint32_t k = choose(last, state->is_head ? &h : &t, by_head, 0);
    state->n_probes += last->was_probe;
    uint32_t every = TRY_FIRST + TRY_RARER * a->sources[other].n_rounds;
    if (has_model && k > 0 && !last->was_probe && state->n_tries == 0 && ++state->n_untried > every)
        state->n_tries = TRY_ROUNDS;
    if (has_model && state->n_tries > 0) {
        --state->n_tries;
        state->n_untried = 0;
        uint32_t k_chain = arg_best(chain, t.k_max);
        if (k_chain > 0)
            return (td_length_plan){CHAIN_HEAD, k_chain};
        if (state->is_head)
            return (td_length_plan){0, k_model};
        return (td_length_plan){k_head, 0};
    }
    return state->is_head ? (td_length_plan){k, 0} : (td_length_plan){0, k};
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
    double other = fmax(goodput[t.k_max], state->goodput);
    t.draft_us = t.wait_us = 0;
    t.is_ahead = false;
    set_times(&t, k_max, false);
    td_acceptance_survival(a, td_source_of_match(n_match), survival, t.k_max + 1);
    return choose(&state->match, &t, survival, other);
}
