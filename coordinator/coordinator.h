/* The coordinator: a pure state machine over sequences, a drafter and a target. No I/O, no clock,
 * no thread: events go in by calls, actions come out of td_coordinator_next, time is handed in.
 * So a million runs can be tried under a simulated clock.
 *
 *     td_coordinator_add(c, &params, now, &sequence, &err);
 *     while (td_coordinator_next(c, &action)) perform(&action);
 *     ... td_coordinator_on_verified(c, batch, chosen, now); td_coordinator_on_draft(...); ...
 *
 * Only the coordinator commits (law 2). A sequence holds tokens[0..L-1] committed and guesses
 * behind them. One row per token is sent to the target, in order; the answer to the row at position
 * i is the token of position i+1. A round sends the pending row, L-1, and k guesses (a segment of a
 * micro-batch); an answer that agrees with the guess goes on, the first that differs ends all that
 * is behind it: the target truncates, what is in flight is cancelled, a new epoch begins. Messages
 * of an older epoch are dropped. A committed token is never verified again.
 *
 * Nobody waits (law 4). While rows are verified the drafter goes on from its own text
 * (draft-ahead): it is asked for the guess of the round's last answer and k more. If that guess
 * holds, the next round has its draft at once. With several stages as many micro-batches are in
 * flight, and more where links between them take long (pipeline.h): groups of sequences, chunks of
 * prompts, and where there are fewer sequences, the speculative continuation of what is being
 * verified.
 *
 * Epochs are unique over the coordinator's life, so that no message of a closed sequence can pass
 * for one of its successor. A draft that misses its deadline means that the round goes without it,
 * and the drafter gets neither feed nor proposal for that sequence until it answers or is lost and
 * joins again: a silent drafter costs one deadline a sequence, not one a round. Rounds do not wait
 * for one that is far: it is silent when it owes something and nothing has come for as long.
 * Unanswered proposals of a sequence and guesses behind its committed tokens are bounded
 * (TD_ASKS_MAX, TD_AHEAD_MAX).
 *
 * A target may have a head that proposes, beside the drafter (has_head): it is asked about a round
 * that has nothing at hand, in the target's queue, and knows what the target does. Which of the two
 * drafts, or both as a chain (the head's first token, of which the drafter is told, to go on behind
 * it while it is verified), is chosen with the length.
 *
 * Whether anything is drafted is found by trial: a run begins with the drafter silent, and drafting
 * goes on for as long as it saves time, all its costs included (trial.h). How much is chosen by
 * goodput from measured times and acceptance (length.h). Neither is so where the length is fixed.
 *
 * Prompts: chunks of prefill_rows that start at its multiples, oldest prompt first, in turns with
 * verify batches. Full chunks of a prompt stay in the slot's cache after the sequence ended; a
 * later prompt that begins alike takes them over instead of computing them.
 *
 * A target that was lost and came back empty gets everything again: prompts as prompts, in the same
 * chunks, and what was generated as rows of verify batches whose answers are known already. So the
 * caches are bit for bit what they were (law 1), and nothing committed is said twice. The oldest
 * sequence comes as far as a token before any other begins: a target that is lost again and again
 * gets on.
 *
 * Memory: n_pages pages of page_positions hold all sequences. One that may not fit to its end waits
 * for others to end, in order of adding.
 *
 * Stop rules, token by token in committed order: an end token ends the text and adds nothing to it
 * ("eos"); a stop string is looked for in the bytes of all generated tokens, the one that is
 * complete first wins (of two complete at the same byte, the longer), the text is cut before it and
 * the token that completed it is the last ("stop"); then n_predict ("length"), n_ctx ("context").
 *
 * Limits: TD_SEQUENCES_MAX slots, draft_max <= TD_DRAFT_MAX. Allocates in create and add only. One
 * thread. Errors: TD_E_USAGE (create), TD_E_DATA (a prompt, a vocabulary), TD_E_AGAIN (no slot),
 * TD_E_NOMEM; a peer's answer that makes no sense is counted and dropped instead. */
#ifndef TD_COORDINATOR_H
#define TD_COORDINATOR_H

#include "base/err.h"
#include "coordinator/action.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TD_SEQUENCES_MAX   64u        /* at once */
#define TD_DRAFT_MAX       63u        /* tokens of one draft: with the pending one, 64 rows */
#define TD_STOPS_MAX       16u        /* stop strings of a sequence */
#define TD_STOP_BYTES_MAX  256u       /* bytes of one */
#define TD_BATCHES_MAX     16u        /* micro-batches in flight */
#define TD_ASKS_MAX        16u        /* unanswered proposals of a sequence */
#define TD_AHEAD_MAX       128u       /* guesses behind the committed tokens of a sequence */
#define TD_VERIFY_ROWS_MAX 64u        /* rows of a verify batch over all sequences */
#define TD_BATCH_ROWS_MAX  256u       /* rows of a micro-batch (prefill chunk) */
#define TD_FEED_TOKENS_MAX 8192u      /* tokens of one feed */
#define TD_CONTEXT_MAX     (1u << 24) /* n_ctx */
#define TD_VOCAB_MAX       (1u << 20) /* n_vocab; the tokenizer's limit */
#define TD_TOKEN_BYTES_MAX 1024u      /* bytes of a token's text */

typedef struct td_coordinator td_coordinator;

typedef struct {
    uint32_t n_slots;           /* sequences at once: cache slots 0..n_slots-1 */
    uint32_t n_ctx;             /* positions a sequence may take, prompt included */
    uint32_t draft_max;         /* k of a round at most; 0 = plain decoding */
    bool is_draft_fixed;        /* k is always draft_max */
    bool is_ahead;              /* the drafter goes on while rows are verified */
    uint32_t n_batches_max;     /* in flight at most, 1..TD_BATCHES_MAX */
    uint32_t n_stages;          /* of the target, 1..n_batches_max: so many at least; 0: all */
    uint32_t verify_rows_max;   /* rows of a verify batch, 1..TD_VERIFY_ROWS_MAX */
    uint32_t prefill_rows;      /* of a chunk, <= TD_BATCH_ROWS_MAX; chunks start at multiples */
    uint64_t draft_deadline_us; /* how long a round waits for a draft */
    bool is_draft_elsewhere;    /* on another machine: rounds may go on without it (round.c) */
    /* The cache: pages in all (0: no limit), positions of one, and whether a sequence may take over
     * the first positions of another. */
    uint32_t n_pages, page_positions;
    bool can_share;
    /* Times measured before, 0 where not: of a verify batch by rows, of one draft step. */
    float verify_us[TD_VERIFY_ROWS_MAX + 1], draft_us;
    /* What a row costs the drafter, by what it costs the target, 0: not known; do they share a
     * processing unit, so that what one does slows the other down? */
    float draft_share;
    bool is_one_unit;
    bool reads_along; /* it has read what the target has, at the target's side */
    bool has_head;    /* the target has a head that proposes, beside the drafter */
    /* Guesses by looking up what followed the same tokens before (draft/ngram.h); NULL: none. ids
     * that may follow tokens[n_tokens] of the slot's sequence, `max` at most: their number, and the
     * length of the match. */
    uint32_t (*lookup)(void *user, uint32_t slot, const uint32_t *tokens, uint32_t n_tokens,
                       uint32_t *ids, uint32_t max, uint32_t *n_match);
    /* The vocabulary, handed in: ids are 0..n_vocab-1; the text bytes of a token (borrowed; asked
     * of all ids by create, and again as tokens are committed), and whether it ends text. */
    uint32_t n_vocab;
    const char *(*token_bytes)(void *user, uint32_t id, size_t *n_bytes);
    bool (*token_is_end)(void *user, uint32_t id);
    void *user;
} td_coordinator_params;

typedef struct {
    const uint32_t *prompt; /* [n_prompt], copied; 1 <= n_prompt < n_ctx */
    uint32_t n_prompt;
    uint32_t n_predict; /* tokens to generate at most, >= 1 */
    bool ignore_end;    /* go on past end tokens */
    uint32_t n_stops;
    const char *stops[TD_STOPS_MAX]; /* 0-terminated, not empty, copied */
} td_sequence_params;

typedef struct {
    uint32_t n_prompt, n_tokens; /* committed, generated ones */
    const uint32_t *prompt;      /* [n_prompt], and behind it in memory: */
    const uint32_t *tokens;      /* [n_tokens] generated */
    const char *text;            /* generated bytes, stop string cut off; not yet UTF-8-mended */
    size_t n_text;
    td_reason reason;
    uint32_t n_rounds;              /* verifications that chose tokens (prefill's last included) */
    uint32_t n_drafted, n_accepted; /* of the drafted tokens that were verified */
    uint32_t drafted_at[TD_DRAFT_MAX + 1]; /* the same by index in the draft */
    uint32_t accepted_at[TD_DRAFT_MAX + 1];
    uint32_t n_looked_up, n_lookup_accepted; /* of them, those of lookup */
    uint32_t n_by_head, n_head_accepted;     /* and those of the head beside a drafter */
    uint32_t n_shared; /* positions of the prompt taken over instead of computed */
    uint64_t added_us, first_token_us, finished_us;
} td_sequence_info;

typedef struct {
    uint64_t n_batches, n_rows;
    uint64_t n_cancelled;     /* micro-batches */
    uint64_t n_ahead;         /* rounds whose draft had been made ahead of the answer before */
    uint64_t n_continued;     /* segments sent behind one that was not answered yet */
    uint64_t n_waits;         /* sequences that waited for memory */
    uint64_t n_deadlines;     /* rounds that went on without their draft */
    uint64_t n_late_drafts;   /* answers after their deadline */
    uint64_t n_stale_drafts;  /* of an older epoch or round, repeated, or of an ended sequence */
    uint64_t n_bad_drafts;    /* never asked for, too long, or with ids beyond the vocabulary */
    uint64_t n_trials;        /* of the drafter, see trial.h */
    uint64_t n_silent;        /* verify batches while nothing was said to it */
    int64_t saved_us;         /* by its drafts against plain decoding, as measured on the way */
    uint64_t n_stale_batches; /* answers of the target to a batch not in flight */
    uint64_t n_target_losses;
    uint64_t n_replayed; /* positions that were in the target's caches and are computed again */
    uint32_t n_groups;   /* of sequences that are verified at the same time, by now */
    double link_us;      /* what a verify batch is on its way beside the stages' work; 0: unknown */
} td_coordinator_stats;

/* Busy times of a micro-batch: of all stages together, of the slowest; and how long it waited in
 * them for the ones before it. */
typedef struct {
    uint64_t sum_us, max_us, waited_us;
    bool is_restored; /* a prompt's chunk, read from a disk: that says nothing of the next */
} td_batch_times;

/* Errors: TD_E_USAGE (a parameter out of its range), TD_E_DATA (a token longer than
 * TD_TOKEN_BYTES_MAX), TD_E_NOMEM. */
td_coordinator *td_coordinator_create(const td_coordinator_params *params, td_err *err);
void td_coordinator_destroy(td_coordinator **c);

/* Free slots: sequences that may be added now. A slot is taken from add to remove; one that waits
 * for memory has a slot too. */
uint32_t td_coordinator_n_free(const td_coordinator *c);
bool td_coordinator_add(td_coordinator *c, const td_sequence_params *params, uint64_t now_us,
                        uint32_t *sequence, td_err *err);
/* Ends a sequence early: FINISH with reason cancelled. Nothing happens if it has ended already. */
void td_coordinator_cancel(td_coordinator *c, uint32_t sequence, uint64_t now_us);
/* What is known by now (all of it after FINISH), until remove. NULL for an unknown sequence. */
const td_sequence_info *td_coordinator_get_info(const td_coordinator *c, uint32_t sequence);
/* Only after its FINISH has been handed out. */
void td_coordinator_remove(td_coordinator *c, uint32_t sequence);

/* Events. on_drafter: it joined (with an empty memory, also if it had joined before: a restart) or
 * was lost. */
void td_coordinator_on_drafter(td_coordinator *c, bool is_joined, uint64_t now_us);
void td_coordinator_on_draft(td_coordinator *c, uint32_t sequence, uint32_t epoch,
                             uint32_t position, const uint32_t *ids, uint32_t n_ids,
                             uint64_t busy_us, uint64_t now_us);
/* Every HEAD_PROPOSE is answered once, unless the target is lost; no ids: it has none to give. */
void td_coordinator_on_head(td_coordinator *c, uint32_t sequence, uint32_t epoch, uint32_t position,
                            const uint32_t *ids, uint32_t n_ids, uint64_t busy_us, uint64_t now_us);
/* chosen: [n_out] of the batch, the token chosen after each output row, in row order. times: what
 * the stages took for it; NULL where that is not known. */
void td_coordinator_on_verified(td_coordinator *c, uint64_t batch, const uint32_t *chosen,
                                const td_batch_times *times, uint64_t now_us);
/* The target was lost and is there again, its caches empty. Batches in flight are not answered; no
 * action handed out before counts any more. */
void td_coordinator_on_target_lost(td_coordinator *c, uint64_t now_us);
/* Right after that: it came back with so many pages (at least a context's; 0: enough for all).
 * Sequences wait for room where it has less than before. */
void td_coordinator_set_pages(td_coordinator *c, uint32_t n_pages);
void td_coordinator_on_tick(td_coordinator *c, uint64_t now_us);

/* When on_tick is wanted next; UINT64_MAX for never. */
uint64_t td_coordinator_deadline_us(const td_coordinator *c);
/* The next action to perform, in order; false when there is none now. */
bool td_coordinator_next(td_coordinator *c, td_action *action);
bool td_coordinator_is_idle(const td_coordinator *c);         /* no sequence is unfinished */
uint32_t td_coordinator_n_in_flight(const td_coordinator *c); /* micro-batches */
const td_coordinator_stats *td_coordinator_get_stats(const td_coordinator *c);
/* What was measured, for the params of a later one on the same devices. verify_us:
 * [TD_VERIFY_ROWS_MAX + 1]. */
void td_coordinator_read_times(const td_coordinator *c, float *verify_us, float *draft_us);

#endif
