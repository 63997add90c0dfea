/* How many tokens to draft for the next round: the number that promises the most tokens per time,
 * by measured times (times.h) and acceptance (acceptance.h).
 *
 *     td_length_init(&length);                                                one per sequence
 *     k = td_length_of_draft(&length, &a, &times, k_max, NULL, false);            every round
 *
 * What is chosen here decides when tokens come, never which (law 1). No memory of its own: the
 * caller holds the struct. No errors, one thread. */
#ifndef TD_COORDINATOR_LENGTH_H
#define TD_COORDINATOR_LENGTH_H

#include "coordinator/acceptance.h"
#include "coordinator/times.h"

#include <stdbool.h>
#include <stdint.h>

/* What other sequences put into the same verify batch, mean per round. */
typedef struct {
    double n_rows;      /* rows, pending ones included */
    double n_tokens;    /* tokens they commit by it */
    double draft_us;    /* time of their drafts on the same drafter */
    double n_sequences; /* how many they are; 0 = not known, then nobody asks whether it would be
                           better if none of them drafted */
} td_others;

typedef struct {
    uint32_t k;       /* of the last round that was no probe */
    float account_us; /* what probes may cost: earned by rounds, spent by probes */
    float probe_mean; /* believed agreement when the last probe was asked */
    bool was_probe;
} td_length_choice;

/* Of one sequence. */
typedef struct {
    td_length_choice model, match, head;
    bool is_chain, is_head; /* of the last plan */
    double goodput;         /* that the last plan promised; 0: there was none */
    uint32_t n_probes;      /* of head and model in turns, where neither pays */
    uint32_t n_untried;     /* rounds since what the other is worth was tried last */
    uint32_t n_tries;       /* rounds for which it is tried yet */
} td_length_state;

/* What to draft where nothing is at hand: by the head n_head tokens, if that is 0 by the model k.
 * With n_head the model drafts k for the round after, behind the head's; 0: it is not asked. */
typedef struct {
    uint32_t n_head, k;
} td_length_plan;

void td_length_init(td_length_state *state);

/* Tokens to draft by the model in the next round, 0..k_max. Maximises expected committed tokens
 * over expected time. One that drafts and verifies in turn: k td + tv. is_ahead: the drafter goes
 * on while the target verifies, h max((k+1) td, tv) + (1-h) (k td + tv), h = the probability that
 * k+1 tokens agree. others: NULL = alone. To be called once a round. */
uint32_t td_length_of_draft(td_length_state *state, const td_acceptance *a, const td_times *times,
                            uint32_t k_max, const td_others *others, bool is_ahead);
/* The same of two drafters, the model and the target's head, where each is priced by its own times
 * and acceptance: the one that promises most, or both as a chain. In a chain a round that has
 * nothing at hand takes the head's first token, and while that is verified the model drafts k + 1
 * behind it; if all of it held, the next round has its draft at once, and the model goes on ahead.
 * As a Markov chain of two kinds of rounds, begun by the head (M) or with a draft at hand (H):
 *     M: 1 + h tokens in th + tv, then H with chance h m
 *     H: 1 + m + .. + m^k tokens in tv, then H with chance m^(k+1), else M,
 * where tv is max(tv, (k+1) td) before H.
 * has_model: false = the head alone. What the other is worth is tried for a few rounds, the
 * rarer the better it is known. To be called once a round. */
td_length_plan td_length_of_sources(td_length_state *state, const td_acceptance *a,
                                    const td_times *times, uint32_t k_max, const td_others *others,
                                    bool is_ahead, bool has_model);
/* The same for a draft found in the text, n_match tokens long in its match and at most k_max long,
 * against k_model tokens by the model (0 = no model, or none wanted). Returns how many tokens to
 * take from the text; 0 = take the model's. */
uint32_t td_length_of_match(td_length_state *state, const td_acceptance *a, const td_times *times,
                            uint32_t n_match, uint32_t k_max, uint32_t k_model,
                            const td_others *others, bool is_ahead);

#endif
