/* The compute half of a draft: a small model that proposes tokens. It holds nothing that the
 * committed tokens cannot rebuild: feed says what is committed; behind that stands its own text,
 * the tail, which goes on while the target verifies and stays as long as what is committed agrees
 * with it. Nothing a drafter does changes a run's text (law 1), so its prefill and verify programs
 * are mixed freely.
 *
 *     td_drafter_feed(d, sequence, 0, prompt, n_prompt, &err);
 *     td_proposal p = {.sequence = sequence, .position = n_prompt, .k = 4};
 *     td_drafter_begin(d, &p, &err);
 *     while (!p.is_done) td_drafter_step(d, jobs, n_jobs, &err);    // jobs: p and any others
 *
 * A step is a small piece of work: between two of them proposals come and go, and a proposal that
 * is not wanted any more is just not handed in again. Those of several sequences take their tokens
 * in one batch.
 *
 * It samples with the sequence's own settings and noise (sampling.h), so that it agrees with the
 * target as often as the two distributions allow.
 *
 * What a closed sequence has in the cache stays until its slot is taken. A sequence that begins
 * with the same tokens as another, open or closed, takes over the pages of that prefix instead of
 * computing it; not where the cache forgets.
 *
 * Owns its device, weights and cache; borrows the model. One thread. Limits: n_slots sequences;
 * TD_DRAFTER_AHEAD_MAX positions of tail, what is beyond is not proposed.
 * Errors: TD_E_DATA (a peer's message that makes no sense here: unknown sequence, a gap in its
 * tokens), and what forward.h lists. */
#ifndef TD_DRAFTER_H
#define TD_DRAFTER_H

#include "base/err.h"
#include "draft/proposal.h"
#include "model/forward.h"
#include "model/prefix_store.h"
#include "model/sampling.h"

#define TD_DRAFTER_AHEAD_MAX TD_DRAFT_AHEAD_MAX /* positions of own text past the committed */

typedef struct td_drafter td_drafter;

typedef struct {
    const td_model *model;
    const char *spec; /* device, without a layer range */
    td_cache_types kv;
    uint32_t n_slots;
    uint32_t n_ctx; /* 0: the model's, or what fits */
    /* Where full chunks of prompts are kept, and found again by whoever drafts with the same model,
     * caches and kind of device; borrowed. NULL: nowhere. */
    td_prefix_store *prompts;
} td_drafter_params;

typedef struct {
    uint64_t n_proposals, n_tokens, n_fed, n_evaluated; /* evaluated: rows run through the model */
    uint64_t n_shared;   /* positions taken over from another sequence's cache */
    uint64_t n_restored; /* positions of prompts that were read from the disk instead */
    uint64_t n_runs;     /* of the model: submissions, of one step or several */
    uint64_t n_read;     /* tokens that took the logits of a row */
    uint64_t busy_us;
} td_drafter_stats;

td_drafter *td_drafter_create(const td_drafter_params *params, td_err *err);
void td_drafter_destroy(td_drafter **d);

uint32_t td_drafter_n_ctx(const td_drafter *d);
uint32_t td_drafter_n_slots(const td_drafter *d);
const td_device_info *td_drafter_device(const td_drafter *d);
/* May be asked by another thread while the drafter works, by one at a time. */
const td_drafter_stats *td_drafter_get_stats(td_drafter *d);

/* A sequence begins; one of the same id is replaced. TD_E_DATA too for a sampler's settings out of
 * their ranges. */
bool td_drafter_open(td_drafter *d, uint32_t sequence, uint64_t stream,
                     const td_sampling_params *sampling, td_err *err);
/* The sequence's tokens are drawn from the noise of a target of another vocabulary,
 * whose position i is position i - shift here (sampling.h: td_sampler_set_noise). Devices
 * know of no such noise, so tokens are then drafted one by one, and where all take part in the
 * race, from logits that are read. */
void td_drafter_set_noise(td_drafter *d, uint32_t sequence, const uint32_t *ids, int64_t shift);
/* ids[n] are committed at positions position..; from the first that differs from what is held, all
 * of that is dropped. What lies past the draft's own context is passed over. */
bool td_drafter_feed(td_drafter *d, uint32_t sequence, uint32_t position, const uint32_t *ids,
                     uint32_t n_ids, td_err *err);

/* A proposal of k tokens that follow the first `position` ones, of which the last may be of the
 * tail: tokens that the tail has there already are in it at once. It ends early, or is done at once
 * without any, where nothing can follow: behind the draft's own context, more than
 * TD_DRAFTER_AHEAD_MAX past what is committed, behind what is known, or before what is committed.
 * One proposal of a sequence is under way at a time, and nothing else is said of it meanwhile. */
bool td_drafter_begin(td_drafter *d, td_proposal *p, td_err *err);
/* Goes on with jobs[n_jobs] that have begun and are not done, by a token each or a piece of what
 * must be read before it. The first that has much to read has it read first, so that those behind
 * may find it shared. */
bool td_drafter_step(td_drafter *d, td_proposal *const *jobs, uint32_t n_jobs, td_err *err);
/* begin and all steps at once; ids[k]. */
bool td_drafter_propose(td_drafter *d, uint32_t sequence, uint32_t position, uint32_t k,
                        uint32_t *ids, uint32_t *n_ids, td_err *err);
void td_drafter_close(td_drafter *d, uint32_t sequence);
/* All sequences: a new coordinator came. */
void td_drafter_reset(td_drafter *d);

#endif
