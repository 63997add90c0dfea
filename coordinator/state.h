/* What the coordinator's own files share: its state. Private to coordinator/.
 *
 * Actions are not queued. What is still owed to the target, the drafter and the run is part of the
 * state of each sequence, and td_coordinator_next (actions.c) finds the first thing owed: so
 * nothing can overflow however many events come between two calls, and what has become pointless
 * is never handed out. */
#ifndef TD_COORDINATOR_STATE_H
#define TD_COORDINATOR_STATE_H

#include "coordinator/coordinator.h"
#include "coordinator/stops.h"

#include "base/mem.h"

typedef enum {
    PHASE_FREE,    /* slot not taken */
    PHASE_PREFILL, /* prompt chunks are run */
    PHASE_DECODE,  /* rounds */
    PHASE_ENDING,  /* reason known, last actions owed */
    PHASE_DONE     /* FINISH handed out */
} sequence_phase;

/* Of a round, while in PHASE_DECODE. */
typedef enum {
    ROUND_START,    /* nothing asked yet */
    ROUND_DRAFTING, /* a draft is awaited until deadline_us */
    ROUND_READY,    /* to be verified with n_draft drafted tokens */
    ROUND_IN_FLIGHT
} round_state;

typedef struct {
    sequence_phase phase;
    round_state round;
    uint32_t id;
    uint64_t order; /* of adding */
    td_arena *arena;
    uint32_t *tokens; /* [n_prompt + n_generate_max] prompt, then generated */
    bool *is_draft;   /* [n_generate_max] */
    char *text;       /* [n_generate_max * token_bytes_max + 1] */
    td_stops *stops;
    uint32_t n_predict, n_generate_max;
    bool ignore_end;

    uint32_t n_cached; /* positions in the target's cache once what is owed is done */
    bool owes_open, owes_truncate, owes_commit, owes_close;
    uint32_t n_announced; /* generated tokens handed out by TOKENS */

    /* The drafter's side. An answer is awaited from the proposal on: is_asked outlives the deadline
     * until the answer comes, which is what makes a silent drafter cost one deadline only. */
    bool is_draft_open, is_asked;
    uint32_t epoch;
    uint32_t asked_epoch, asked_position, asked_k;
    uint32_t n_fed;
    uint64_t deadline_us;
    uint32_t n_draft;
    uint32_t draft[TD_DRAFT_MAX];

    td_sequence_info info;
} sequence;

typedef struct {
    uint32_t slot, sequence;
    uint32_t n_rows; /* verify: 1 + drafted ones */
} batch_part;

struct td_coordinator {
    td_coordinator_params params;
    uint32_t token_bytes_max; /* of any token of the vocabulary */
    uint64_t now_us;          /* the last one handed in */
    uint32_t next_sequence, last_epoch;
    uint64_t last_order;
    bool has_drafter;

    /* The micro-batch in flight. */
    bool is_in_flight, is_prefill, was_prefill; /* was: the last one before it */
    uint64_t batch;
    uint32_t n_parts;
    batch_part parts[TD_SEQUENCES_MAX];
    td_row rows[TD_BATCH_ROWS_MAX];
    uint32_t next_first; /* slot that comes first in the next verify batch */

    td_coordinator_stats stats;
    sequence sequences[TD_SEQUENCES_MAX]; /* by slot */
};

static inline uint32_t sequence_length(const sequence *s)
{
    return s->info.n_prompt + s->info.n_tokens;
}

static inline bool sequence_is_active(const sequence *s)
{
    return s->phase == PHASE_PREFILL || s->phase == PHASE_DECODE;
}

/* The drafter has let a deadline pass and not answered since. */
static inline bool sequence_is_mute(const sequence *s)
{
    return s->is_asked && s->round != ROUND_DRAFTING;
}

/* sequence.c */
bool td_sequence_begin(sequence *s, const td_coordinator *c, const td_sequence_params *params,
                       td_err *err);
void td_sequence_end(sequence *s); /* frees the slot */
/* Commits one token under the stop rules; the reason if it was the last one. */
td_reason td_sequence_append(sequence *s, const td_coordinator *c, uint32_t token, bool is_draft);

/* batch.c: puts the next micro-batch in flight, if one is to be run now. */
bool td_batch_begin(td_coordinator *c, td_action *action);
/* Takes the target's choices for it. */
void td_batch_end(td_coordinator *c, const uint32_t *chosen);

/* coordinator.c */
void td_coordinator_finish(td_coordinator *c, sequence *s, td_reason reason);
uint32_t td_coordinator_new_epoch(td_coordinator *c);

#endif
