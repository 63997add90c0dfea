/* Sampling: from the logits of one position to one token.
 *
 * The chain is: repetition penalty, temperature, top-k, top-p, min-p; it gives a distribution p.
 * The token is argmin over tokens of E / p, E exponential noise keyed (stream, position, token)
 * (base/rng.h), ties to the lower id: an exact sample of p. A draft that uses the same noise on its
 * own p agrees often, and the target's choice never depends on the proposal (law 1).
 * temperature 0 is greedy: the largest logit after penalties, ties to the lower id.
 *
 * "More probable" in top-k and top-p is the larger logit after penalties, ties to the lower id.
 * The largest logits share everything if they are infinite, all tokens do if every logit is NaN or
 * all are -inf; a NaN is never chosen while any other logit exists. Tokens whose p underflows to 0
 * are never chosen.
 *
 * A sampler owns scratch for one vocabulary; one thread at a time. td_sample allocates nothing and
 * cannot fail: parameters from outside go through td_sampling_check first. Sources: Gumbel-max /
 * exponential races; Holtzman et al. 2020 (top-p), Nguyen et al. 2024 (min-p), Keskar et al. 2019
 * (penalty). */
#ifndef TD_MODEL_SAMPLING_H
#define TD_MODEL_SAMPLING_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

#define TD_REPEAT_LAST_N 64u /* tokens before the position that the penalty looks at */

typedef struct {
    float temperature;    /* 0 = greedy; 0..100 */
    uint32_t top_k;       /* keep the k most probable; 0 = all */
    float top_p;          /* keep the smallest set with mass >= top_p; 1 = all; (0, 1] */
    float min_p;          /* drop what is below min_p * max; 0 = none; [0, 1) */
    float repeat_penalty; /* logits of recent tokens: / penalty if > 0 else * penalty; 1 = none */
    uint32_t repeat_last_n;
} td_sampling_params;

#define TD_SAMPLING_DEFAULTS                                                                       \
    ((td_sampling_params){.temperature = 0.8f,                                                     \
                          .top_k = 0,                                                              \
                          .top_p = 1.0f,                                                           \
                          .min_p = 0.0f,                                                           \
                          .repeat_penalty = 1.0f,                                                  \
                          .repeat_last_n = TD_REPEAT_LAST_N})

/* Are all parameters in the ranges above? repeat_penalty must be within 0.01..100.
 * Error: TD_E_USAGE, with the name, the value and the range. */
bool td_sampling_check(const td_sampling_params *params, td_err *err);

#define TD_SAMPLER_VOCAB_MAX (1u << 20) /* tokens of a vocabulary */

typedef struct td_sampler td_sampler;

/* Errors: TD_E_DATA (n_vocab not in 1..TD_SAMPLER_VOCAB_MAX), TD_E_NOMEM. */
td_sampler *td_sampler_create(uint32_t n_vocab, td_err *err);
void td_sampler_destroy(td_sampler **s);

/* logits: [n_vocab]. history: all tokens of the sequence before `position`, [n_history]; only the
 * last repeat_last_n are read, and ids beyond the vocabulary passed over. `position` is the
 * absolute position the token will have. */
uint32_t td_sample(td_sampler *s, const td_sampling_params *params, const float *logits,
                   const uint32_t *history, uint32_t n_history, uint64_t stream, uint64_t position);

/* From now on td_sample draws the noise of token ids[token] at position + shift: what a model of
 * another vocabulary draws there. ids: [n_vocab], borrowed; NULL, as at first: the token's own. */
void td_sampler_set_noise(td_sampler *s, const uint32_t *ids, int64_t shift);

/* The distribution the chain gives: p[n_vocab], zero for what was dropped, sums to 1 (greedy: one
 * hot). For tests and acceptance statistics. */
void td_sample_distribution(td_sampler *s, const td_sampling_params *params, const float *logits,
                            const uint32_t *history, uint32_t n_history, double *p);

/* False if any logit is NaN or infinite. */
bool td_logits_finite(const float *logits, uint32_t n_vocab);

#endif
