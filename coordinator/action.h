/* What td_coordinator_next hands out: one thing for the run to have done by the target, by the
 * drafter, or to do itself. Actions are performed in the order in which they come; those for the
 * target travel in one ordered queue, and so do those for the drafter.
 *
 * No behaviour here. Included by coordinator.h. */
#ifndef TD_COORDINATOR_ACTION_H
#define TD_COORDINATOR_ACTION_H

#include <stdbool.h>
#include <stdint.h>

typedef enum {
    TD_REASON_NONE,
    TD_REASON_EOS,
    TD_REASON_STOP,
    TD_REASON_LENGTH,
    TD_REASON_CONTEXT,
    TD_REASON_CANCELLED
} td_reason;
const char *td_reason_name(td_reason reason); /* "eos", "stop", "length", "context", "cancelled" */

typedef enum {
    TD_ACT_OPEN,    /* target: sequence takes slot; it begins with positions 0..length-1 of
                     * from_slot (the slot itself: it keeps those), or empty with length 0 */
    TD_ACT_FORWARD, /* target: run this micro-batch, answer td_coordinator_on_verified */
    TD_ACT_CANCEL,  /* target: nothing of `batch` is wanted any more; it is answered all the same */
    TD_ACT_TRUNCATE,   /* target: cache of the slot keeps positions 0..length-1 */
    TD_ACT_COMMIT,     /* target: positions 0..length-1 are committed */
    TD_ACT_CLOSE,      /* target: the slot is free */
    TD_ACT_DRAFT_OPEN, /* drafter: sequence begins */
    /* drafter: committed tokens from `position` on; where its own differ, its own are wrong. Or one
     * token behind them that is the head's guess, to go on from: it may be told otherwise. */
    TD_ACT_DRAFT_FEED,
    /* drafter: k tokens after the first `position` ones, where its own proposals of this epoch
     * count among those; answer td_coordinator_on_draft */
    TD_ACT_DRAFT_PROPOSE,
    TD_ACT_DRAFT_CLOSE,
    TD_ACT_HEAD_PROPOSE, /* target: k tokens after the first `position` ones, all committed, by its
                          * head; answer td_coordinator_on_head */
    TD_ACT_TOKENS,       /* run: these tokens were committed (in order, each once) */
    TD_ACT_FINISH,       /* run: the sequence ended, its last action; info stays until remove */
} td_action_kind;

typedef struct {
    uint32_t sequence, slot;
    uint32_t token;
    uint32_t position;
    bool is_output; /* the target samples after this row */
} td_row;

/* Pointers are valid until the next call on the coordinator. */
typedef struct {
    td_action_kind kind;
    uint32_t sequence, slot;
    uint32_t epoch, position, k; /* DRAFT_*, HEAD_PROPOSE */
    /* DRAFT_PROPOSE: where the drafter has been told other tokens than it proposed, its answer
     * begins at the first of them and has k tokens beside those it was told; where its text ends
     * before `position`, it begins there. */
    bool goes_on;
    uint32_t length;        /* OPEN, TRUNCATE, COMMIT */
    uint32_t from_slot;     /* OPEN, with length above 0 */
    const uint32_t *tokens; /* DRAFT_FEED, TOKENS */
    const bool *is_draft;   /* TOKENS: it was proposed by the drafter and accepted */
    uint32_t n_tokens;
    uint64_t batch;         /* FORWARD, CANCEL */
    bool is_prefill;        /* FORWARD: one sequence's prompt chunk; else verify rows */
    const td_row *rows;     /* FORWARD: [n_rows], a sequence's rows in ascending position */
    uint32_t n_rows, n_out; /* FORWARD: n_out rows have is_output; may be 0 */
    td_reason reason;       /* FINISH */
} td_action;

#endif
