/* Drafts found in the text: what followed the last time that the sequence's last tokens occurred,
 * in the sequence itself or in the run's finished texts. Needs no model and no device.
 *
 *     td_ngram_open(g, slot);
 *     n = td_ngram_lookup(g, slot, tokens, n_committed, tail, n_tail, ids, max, &n_match);
 *     td_ngram_close(g, slot, tokens, n_committed, true);
 *
 * The last TD_NGRAM_MIN tokens are looked up by a hash; candidates are compared backwards, the
 * longest match wins, of equally long ones the latest, and those of the sequence itself before
 * those of finished texts. The draft is what followed it, up to the end of that text.
 *
 * Owns: per slot an index of n_ctx tokens (8 bytes a token), and a ring of the last n_ring tokens
 * of finished texts with its index (13 bytes a token). Nothing is allocated but by create. Tokens
 * are the caller's. At most TD_NGRAM_TRIES candidates are compared over TD_NGRAM_MATCH_MAX tokens
 * each, so a lookup's time is bounded whatever the text is.
 *
 * Limits: below. Errors of create: TD_E_USAGE, TD_E_NOMEM. Any token ids will do. One thread. */
#ifndef TD_DRAFT_NGRAM_H
#define TD_DRAFT_NGRAM_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

#define TD_NGRAM_MIN       3u
#define TD_NGRAM_MATCH_MAX 64u
#define TD_NGRAM_TRIES     64u        /* candidates compared, of each kind */
#define TD_NGRAM_TAIL_MAX  128u       /* tokens of a speculative tail */
#define TD_NGRAM_RING      (1u << 20) /* a good n_ring: 13 MiB */
#define TD_NGRAM_RING_MAX  (1u << 26)
#define TD_NGRAM_SLOTS_MAX 64u
#define TD_NGRAM_CTX_MAX   (1u << 24)

typedef struct td_ngram td_ngram;

/* n_ring: tokens of finished texts kept, 0..TD_NGRAM_RING_MAX; n_slots: sequences at once; n_ctx:
 * tokens that a sequence may have. */
td_ngram *td_ngram_create(uint32_t n_ring, uint32_t n_slots, uint32_t n_ctx, td_err *err);
void td_ngram_destroy(td_ngram **g);

/* A new sequence takes the slot, whatever was there. */
void td_ngram_open(td_ngram *g, uint32_t slot);
/* tokens: [n] committed ones: those of the calls before, and more; n <= n_ctx. tail: [n_tail]
 * speculative ones after them, not remembered; n_tail <= TD_NGRAM_TAIL_MAX. Writes up to max ids
 * that may follow, and the length of the match; returns how many, 0 without a match. */
uint32_t td_ngram_lookup(td_ngram *g, uint32_t slot, const uint32_t *tokens, uint32_t n,
                         const uint32_t *tail, uint32_t n_tail, uint32_t *ids, uint32_t max,
                         uint32_t *n_match);
/* The sequence has ended; is_kept: its text goes into the ring (its last n_ring tokens, if it is
 * longer), where the oldest give way. */
void td_ngram_close(td_ngram *g, uint32_t slot, const uint32_t *tokens, uint32_t n, bool is_kept);
/* Bytes allocated by create. */
uint64_t td_ngram_bytes(const td_ngram *g);

#endif
