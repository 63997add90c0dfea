/* The compute half of a draft: a small model that proposes tokens. It holds nothing that the
 * committed tokens cannot rebuild: feed says what is committed, propose runs ahead of it, and the
 * next feed or proposal rolls back to the longest prefix that still agrees. Nothing a drafter does
 * changes a run's text (law 1), so its prefill and verify programs are mixed freely.
 *
 * It samples with the sequence's own settings and noise (sampling.h), so that it agrees with the
 * target as often as the two distributions allow.
 *
 * Owns its device, weights and cache; borrows the model. One thread. Limits: n_slots sequences.
 * Errors: TD_E_DATA (a peer's message that makes no sense here: unknown sequence, a gap in its
 * tokens), and what forward.h lists. */
#ifndef TD_DRAFTER_H
#define TD_DRAFTER_H

#include "base/err.h"
#include "model/forward.h"
#include "model/sampling.h"

typedef struct td_drafter td_drafter;

typedef struct {
    const td_model *model;
    const char *spec; /* device, without a layer range */
    const td_type_info *type_k, *type_v;
    uint32_t n_slots;
    uint32_t n_ctx; /* 0: the model's, or what fits */
} td_drafter_params;

typedef struct {
    uint64_t n_proposals, n_tokens, n_fed, n_evaluated; /* evaluated: rows run through the model */
    uint64_t busy_us;
} td_drafter_stats;

td_drafter *td_drafter_create(const td_drafter_params *params, td_err *err);
void td_drafter_destroy(td_drafter **d);

uint32_t td_drafter_n_ctx(const td_drafter *d);
uint32_t td_drafter_n_slots(const td_drafter *d);
uint64_t td_drafter_bytes(const td_drafter *d);
const td_device_info *td_drafter_device(const td_drafter *d);
const td_drafter_stats *td_drafter_get_stats(const td_drafter *d);

/* A sequence begins; one of the same id is replaced. TD_E_DATA too for a sampler's settings out of
 * their ranges. */
bool td_drafter_open(td_drafter *d, uint32_t sequence, uint64_t stream,
                     const td_sampling_params *sampling, td_err *err);
/* The sequence's tokens are drawn from the noise of a target of another vocabulary, whose position
 * i is position i - shift here (sampling.h: td_sampler_set_noise). Its sampling must not be plain.
 */
void td_drafter_set_noise(td_drafter *d, uint32_t sequence, const uint32_t *ids, int64_t shift);
/* ids[n] stand at positions position..; whatever was held from there on is replaced. What lies past
 * the draft's own context is passed over. */
bool td_drafter_feed(td_drafter *d, uint32_t sequence, uint32_t position, const uint32_t *ids,
                     uint32_t n_ids, td_err *err);
/* Proposes up to k tokens that follow the first `position` ones. Fewer (or none) near the end of
 * the draft's own context. */
bool td_drafter_propose(td_drafter *d, uint32_t sequence, uint32_t position, uint32_t k,
                        uint32_t *ids, uint32_t *n_ids, td_err *err);
void td_drafter_close(td_drafter *d, uint32_t sequence);
/* All sequences: a new coordinator came. */
void td_drafter_reset(td_drafter *d);

#endif
