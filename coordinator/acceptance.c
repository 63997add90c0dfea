/* A text is at one of a few levels of agreement and changes its level now and then. What is kept is
 * the belief in each level (a hidden Markov model, filtered exactly): so a break from 0.95 to
 * nothing is seen after three rounds, not after a mean has decayed, and the chance that token i
 * agrees given those before it did rises with i while the level is uncertain, as it does in real
 * texts. What remains by index is corrected by a decayed ratio. Where a text goes when it changes
 * is learnt from the run's earlier sequences. */
#include "coordinator/acceptance.h"

#include "base/check.h"

#include <math.h>
#include <string.h>

#define PRIOR_ROUNDS     16.0f /* what knowing nothing weighs against earlier sequences */
#define SEEN_MAX         4096.0f
#define INDEX_DECAY      0.98f
#define INDEX_PRIOR      8.0f
#define ROUNDS_MAX       4096u
#define INDEX_ROUNDS_MAX 64.0f /* what earlier sequences weigh by index */

/* Probability per token that a text changes its level; and that it changes its rate of changing. */
#define RATE_CHANGE 0.001f
static const float rates[TD_ACCEPTANCE_RATES] = {0.0025f, 0.04f};
static const float levels[TD_ACCEPTANCE_LEVELS] = {0.02f, 0.1f, 0.2f, 0.3f,  0.4f,  0.5f,
                                                   0.6f,  0.7f, 0.8f, 0.88f, 0.94f, 0.98f};

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
    return td_min_u32(class, TD_ACCEPTANCE_CLASSES - 1);
}

void td_acceptance_init(td_acceptance *a, const td_acceptance *prior)
{
    static const td_acceptance nothing;
    const td_acceptance *from = prior ? prior : &nothing;
    memset(a, 0, sizeof(*a));
    for (uint32_t s = 0; s < TD_SOURCE_COUNT; ++s) {
        const float *seen = from->sources[s].seen, *seen_rate = from->sources[s].seen_rate;
        float sum = PRIOR_ROUNDS;
        a->sources[s].n_rounds = from->sources[s].n_rounds;
        for (uint32_t l = 0; l < TD_ACCEPTANCE_LEVELS; ++l)
            sum += seen[l];
        for (uint32_t l = 0; l < TD_ACCEPTANCE_LEVELS; ++l) {
            a->sources[s].prior[l] = (seen[l] + PRIOR_ROUNDS / TD_ACCEPTANCE_LEVELS) / sum;
            for (uint32_t r = 0; r < TD_ACCEPTANCE_RATES; ++r)
                a->sources[s].belief[r][l] = a->sources[s].prior[l] *
                                             (seen_rate[r] + PRIOR_ROUNDS / TD_ACCEPTANCE_RATES) /
                                             sum;
        }
        for (uint32_t i = 0; i < TD_ACCEPTANCE_CLASSES; ++i) {
            float expected = from->sources[s].expected[i];
            float scale = expected > INDEX_ROUNDS_MAX ? INDEX_ROUNDS_MAX / expected : 1;
            a->sources[s].expected[i] = expected * scale;
            a->sources[s].accepted[i] = from->sources[s].accepted[i] * scale;
        }
    }
}

/* Updates the belief by one more token, which agreed or not. Returns the chance that what happened
 * had before it. */
static float observe(float belief[][TD_ACCEPTANCE_LEVELS], const float *prior, bool is_right)
{
    float chance = 0;
    for (uint32_t r = 0; r < TD_ACCEPTANCE_RATES; ++r)
        for (uint32_t l = 0; l < TD_ACCEPTANCE_LEVELS; ++l)
            chance += belief[r][l] *= is_right ? levels[l] : 1 - levels[l];
    for (uint32_t r = 0; r < TD_ACCEPTANCE_RATES; ++r) {
        float sum = 0;
        for (uint32_t l = 0; l < TD_ACCEPTANCE_LEVELS; ++l)
            sum += belief[r][l] /= chance;
        for (uint32_t l = 0; l < TD_ACCEPTANCE_LEVELS; ++l)
            belief[r][l] += rates[r] * (sum * prior[l] - belief[r][l]) +
                            RATE_CHANGE * (prior[l] / TD_ACCEPTANCE_RATES - belief[r][l]);
    }
    return chance;
}

void td_acceptance_add(td_acceptance *a, td_source source, uint32_t n_drafted, uint32_t n_accepted)
{
    uint32_t n = td_min_u32(n_drafted, TD_ACCEPTANCE_DRAFT_MAX),
             n_right = td_min_u32(n_accepted, n);
    if (n == 0)
        return;
    float(*belief)[TD_ACCEPTANCE_LEVELS] = a->sources[source].belief;
    a->sources[source].n_rounds = td_min_u32(a->sources[source].n_rounds + 1, ROUNDS_MAX);
    for (uint32_t i = 0; i < TD_ACCEPTANCE_CLASSES; ++i) {
        a->sources[source].expected[i] *= INDEX_DECAY;
        a->sources[source].accepted[i] *= INDEX_DECAY;
    }
    for (uint32_t i = 0; i < n && i <= n_right; ++i) {
        bool is_right = i < n_right;
        float chance = observe(belief, a->sources[source].prior, is_right);
        a->sources[source].expected[class_of_index(i)] += is_right ? chance : 1 - chance;
        a->sources[source].accepted[class_of_index(i)] += is_right;
    }
    for (uint32_t r = 0; r < TD_ACCEPTANCE_RATES; ++r) {
        float sum = 0;
        for (uint32_t l = 0; l < TD_ACCEPTANCE_LEVELS; ++l) {
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
        for (uint32_t l = 0; l < TD_ACCEPTANCE_LEVELS; ++l)
            sum += prior->sources[s].seen[l] += a->sources[s].seen[l];
        for (uint32_t l = 0; l < TD_ACCEPTANCE_LEVELS && sum > SEEN_MAX; ++l)
            prior->sources[s].seen[l] *= SEEN_MAX / sum;
        for (uint32_t r = 0; r < TD_ACCEPTANCE_RATES; ++r) {
            prior->sources[s].seen_rate[r] += a->sources[s].seen_rate[r];
            prior->sources[s].seen_rate[r] *= sum > SEEN_MAX ? SEEN_MAX / sum : 1;
        }
        prior->sources[s].n_rounds = td_max_u32(prior->sources[s].n_rounds, a->sources[s].n_rounds);
        memcpy(prior->sources[s].expected, a->sources[s].expected,
               sizeof(prior->sources[s].expected)); /* the sequence went on from those of `prior` */
        memcpy(prior->sources[s].accepted, a->sources[s].accepted,
               sizeof(prior->sources[s].accepted));
    }
}

static void survive(const td_acceptance *a, td_source source, float belief[][TD_ACCEPTANCE_LEVELS],
                    float *survival, uint32_t k)
{
    float product = 1;
    for (uint32_t i = 0; i < k; ++i) {
        uint32_t class = class_of_index(i);
        float ratio = (a->sources[source].accepted[class] + INDEX_PRIOR) /
                      (a->sources[source].expected[class] + INDEX_PRIOR);
        float chance = observe(belief, a->sources[source].prior, true);
        product *= fminf(chance * fminf(fmaxf(ratio, 0.5f), 1.5f), 0.995f);
        survival[i] = product;
    }
}

void td_acceptance_survival(const td_acceptance *a, td_source source, float *survival, uint32_t k)
{
    float belief[TD_ACCEPTANCE_RATES][TD_ACCEPTANCE_LEVELS];
    memcpy(belief, a->sources[source].belief, sizeof(belief));
    survive(a, source, belief, survival, k);
}

void td_acceptance_mean(const td_acceptance *a, td_source source, float *survival, uint32_t k)
{
    float belief[TD_ACCEPTANCE_RATES][TD_ACCEPTANCE_LEVELS], sum = PRIOR_ROUNDS;
    for (uint32_t l = 0; l < TD_ACCEPTANCE_LEVELS; ++l)
        sum += a->sources[source].seen[l];
    for (uint32_t l = 0; l < TD_ACCEPTANCE_LEVELS; ++l) {
        float n = PRIOR_ROUNDS * a->sources[source].prior[l] + a->sources[source].seen[l];
        for (uint32_t r = 0; r < TD_ACCEPTANCE_RATES; ++r)
            belief[r][l] = n / sum / TD_ACCEPTANCE_RATES;
    }
    survive(a, source, belief, survival, k);
}
