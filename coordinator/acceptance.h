/* How often drafts are accepted: the chance that a draft's first tokens all agree with the target,
 * from how earlier ones fared, in this sequence and in the run.
 *
 *     td_acceptance_init(&pool, NULL);           one per run: what sequences were like so far
 *     td_acceptance_init(&a, &pool);             one per sequence
 *     td_acceptance_add(&a, TD_SOURCE_MODEL, n_verified, n_accepted);              every round
 *     td_acceptance_survival(&a, TD_SOURCE_MODEL, survival, k);
 *     td_acceptance_merge(&pool, &a);            when the sequence has ended
 *
 * No memory of its own: the caller holds the structs. Drafts have up to TD_ACCEPTANCE_DRAFT_MAX
 * tokens, more is clamped. No errors, one thread. */
#ifndef TD_COORDINATOR_ACCEPTANCE_H
#define TD_COORDINATOR_ACCEPTANCE_H

#include <stdint.h>

#define TD_ACCEPTANCE_DRAFT_MAX 63u

/* Where a draft came from: the draft model, the target's head beside it, or a match in the text by
 * its length in tokens. */
typedef enum {
    TD_SOURCE_MODEL,
    TD_SOURCE_HEAD,
    TD_SOURCE_MATCH_3,  /* up to 4 */
    TD_SOURCE_MATCH_5,  /* 5..8 */
    TD_SOURCE_MATCH_9,  /* 9..16 */
    TD_SOURCE_MATCH_17, /* and longer */
    TD_SOURCE_COUNT
} td_source;

td_source td_source_of_match(uint32_t n_match);

#define TD_ACCEPTANCE_RATES   2u  /* how often a text may change its level */
#define TD_ACCEPTANCE_LEVELS  12u /* agreement levels a text is believed to be at */
#define TD_ACCEPTANCE_CLASSES 6u  /* indices in a draft: 0, 1-2, 3-6, 7-14, 15-30, 31-62 */

typedef struct {
    struct {
        /* Probability that the text changes its level so often, and is at this one now. */
        float belief[TD_ACCEPTANCE_RATES][TD_ACCEPTANCE_LEVELS];
        float prior[TD_ACCEPTANCE_LEVELS]; /* where it goes when it changes */
        float seen[TD_ACCEPTANCE_LEVELS];  /* sum of beliefs over the rounds */
        float seen_rate[TD_ACCEPTANCE_RATES];
        float expected[TD_ACCEPTANCE_CLASSES],
            accepted[TD_ACCEPTANCE_CLASSES]; /* decayed, by index */
        uint32_t n_rounds; /* of this sequence and those that `prior` was made of, up to a limit */
    } sources[TD_SOURCE_COUNT];
} td_acceptance;

/* prior: what the run's earlier sequences were like; NULL = nothing known. */
void td_acceptance_init(td_acceptance *a, const td_acceptance *prior);
/* A round verified n_drafted tokens of a draft and accepted the first n_accepted of them. */
void td_acceptance_add(td_acceptance *a, td_source source, uint32_t n_drafted, uint32_t n_accepted);
void td_acceptance_merge(td_acceptance *prior, const td_acceptance *a);
/* survival: [k], the probability that the tokens 0..i of a draft are all accepted. */
void td_acceptance_survival(const td_acceptance *a, td_source source, float *survival, uint32_t k);
/* The same on the average of the rounds so far, whatever the text is like just now: to compare one
 * source with another that was not asked lately. */
void td_acceptance_mean(const td_acceptance *a, td_source source, float *survival, uint32_t k);

#endif
