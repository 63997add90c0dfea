/* What the coordinator's own files share: its state. Private to coordinator/, like the headers that
 * include it. They stand on each other one way only:
 *
 *     coordinator.c (the door, events) and next_action.c (what is owed) stand on
 *     batch.h (many sequences), which stands on
 *     round.h (one sequence's guesses and answers) and prompt.h (before its first row), on
 *     sequence.h (one sequence's tokens and text), on
 *     state.h, and this on times.h, acceptance.h, length.h, pipeline.h, trial.h and stops.h.
 *
 * What an answer did to a sequence is returned (td_outcome); ending one is the door's.
 *
 * Actions are not queued. What is still owed to the target, the drafter and the run is part of the
 * state of each sequence, and td_coordinator_next (next_action.c) finds the first thing owed: so
 * nothing can overflow however many events come between two calls, and what has become pointless
 * is never handed out. */
#ifndef TD_COORDINATOR_STATE_H
#define TD_COORDINATOR_STATE_H

#include "coordinator/coordinator.h"
#include "coordinator/length.h"
#include "coordinator/pipeline.h"
#include "coordinator/stops.h"
#include "coordinator/trial.h"

#include "base/mem.h"

typedef enum {
    PHASE_FREE,    /* slot not taken */
    PHASE_QUEUED,  /* waits for memory */
    PHASE_PREFILL, /* prompt chunks are run, and what was generated before the target was lost */
    PHASE_DECODE,  /* rounds */
    PHASE_ENDING,  /* reason known, last actions owed */
    PHASE_DONE     /* FINISH handed out */
} sequence_phase;

/* What a slot keeps from one sequence to the next. */
typedef struct {
    bool is_held, owes_close; /* its cache holds something; CLOSE is owed */
    uint64_t last_use;        /* order of the end of the sequence that filled it */
    uint32_t chain;           /* parts in flight of an older chain are dead */
    /* Of the sequence before, until the next one's OPEN; as in `sequence`. */
    td_arena *arena;
    uint32_t *tokens, n_sent, n_full;
} slot_memory;

/* A proposal that was not answered yet. */
typedef struct {
    uint32_t epoch, position, k;
    bool is_reading; /* the drafter has to read the prompt first */
    bool is_alone;   /* nobody else waited for an answer when it was sent */
    bool is_first;   /* there was nothing before it that had still to be computed */
    bool is_behind;  /* of others that were overtaken */
    bool goes_on;    /* action.h */
    uint64_t sent_us;
} ask;

typedef struct {
    sequence_phase phase;
    uint32_t id;
    uint64_t order; /* of adding */
    td_arena *arena;
    uint32_t *tokens; /* [n_prompt + n_generate_max] prompt, then generated */
    bool *is_draft;   /* [n_generate_max] */
    char *text;       /* [n_generate_max * token_bytes_max + 1] */
    td_stops *stops;
    uint32_t n_predict, n_generate_max;
    bool ignore_end;

    /* The target's side. A slot's cache is its last sequence's until the next one's OPEN. */
    bool is_begun;   /* OPEN of this sequence was decided */
    uint32_t n_sent; /* positions whose rows are in the cache once all it was sent is done */
    uint32_t n_full; /* of them, from full chunks of the prompt: what others may take over */
    slot_memory slot;
    bool owes_truncate, owes_commit, has_waited;
    uint32_t commit_length;
    uint32_t n_announced; /* generated tokens handed out by TOKENS */

    /* Guesses: tokens of positions L, L+1, ... */
    uint32_t guesses[TD_AHEAD_MAX], n_guesses;
    uint32_t n_head;  /* the first of them: by the target's head, beside a drafter */
    uint32_t n_match; /* how long the match was that gave them; 0: the drafter did */
    uint32_t k;       /* guesses wanted for the round that is being prepared */
    bool is_probe;    /* to see whether they agree, although they do not seem to pay */
    /* What the round was to be if nothing was at hand; what is wanted of the head for it, 0: it is
     * another's; what it was asked and has not answered, k 0: nothing; it has nothing to say. */
    td_length_plan plan;
    uint32_t head_k;
    ask head_ask;
    bool is_headless;

    /* The drafter's side. An answer is awaited from the proposal on, past its deadline and its
     * epoch, which is what makes a silent drafter cost one deadline only. */
    bool is_draft_open, has_proposed, is_mute;
    bool is_exhausted; /* it has no more for this round */
    bool is_reading;   /* the prompt, which nobody waits for */
    bool is_hasty;     /* this round does not wait any longer */
    uint32_t epoch;
    ask asks[TD_ASKS_MAX];
    uint32_t n_asks;
    uint32_t asked_end; /* positions below were guessed or asked for in this epoch */
    uint32_t n_fed;
    /* While the drafter is far (round.c): positions below n_said it has said in this epoch. */
    bool has_company;       /* other sequences beside it, now or before */
    bool is_far, is_astray; /* astray: what it says of positions behind stray_at is of no use */
    uint32_t n_said, stray_at;
    uint32_t told_end; /* of this epoch: positions below are known by a guess of the head */
    uint64_t begin_us, deadline_us; /* of the round that is being prepared */

    td_acceptance acceptance;
    td_length_state length;
    td_sequence_info info;
} sequence;

/* A segment: rows of one sequence in a micro-batch. */
typedef struct {
    uint32_t slot, sequence, chain;
    uint32_t n_rows;
} batch_part;

/* What an answer of the target did to a sequence. */
typedef struct {
    uint32_t n_tokens;   /* committed; 0: no part in the answer, or more of the prompt to come */
    td_reason reason;    /* the sequence's last token was among them; NONE: it goes on */
    bool is_rolled_back; /* rows of it that are in flight are of no use any more */
} td_outcome;

typedef struct {
    uint64_t id;
    bool is_in_flight, is_prefill, is_cancelled, owes_cancel;
    bool is_continuation; /* of a sequence in flight */
    bool
        has_output; /* its answers are new: not of a prompt's chunks but the last, nor of replays */
    uint32_t n_rows, n_parts;
    uint64_t sent_us;
    batch_part parts[TD_VERIFY_ROWS_MAX];
} batch;

struct td_coordinator {
    td_coordinator_params params;
    uint32_t token_bytes_max; /* of any token of the vocabulary */
    uint64_t now_us;          /* the last one handed in */
    uint32_t next_sequence, last_epoch;
    uint64_t last_order;
    bool has_drafter;
    uint64_t owed_until_us; /* when a far drafter is silent; UINT64_MAX: it owes nothing */

    batch batches[TD_BATCHES_MAX];
    uint32_t n_in_flight;
    bool was_prefill;   /* the last micro-batch */
    bool is_recovering; /* the target was lost, and no token has come since */
    uint64_t last_batch;
    td_row rows[TD_BATCH_ROWS_MAX];
    uint32_t next_first; /* slot that comes first in the next verify batch */

    td_times times;
    td_pipeline pipeline;
    td_trial trial;
    uint64_t last_end_us; /* of the last answer, or when the first sequence came */
    /* What a row of a prompt takes the target in its widest chunk, what one takes the drafter. */
    uint32_t n_prompt_rows;
    double prompt_row_us, read_row_us;
    td_acceptance prior;
    td_coordinator_stats stats;
    sequence sequences[TD_SEQUENCES_MAX]; /* by slot */
};

static inline uint32_t sequence_length(const sequence *s)
{
    return s->info.n_prompt + s->info.n_tokens;
}

/* Positions that are computed before the first round, or the first after a loss. */
static inline uint32_t sequence_prefill_end(const sequence *s)
{
    return s->info.n_tokens ? sequence_length(s) - 1 : s->info.n_prompt;
}

/* Tokens known or guessed. */
static inline uint32_t sequence_end(const sequence *s) { return sequence_length(s) + s->n_guesses; }

static inline bool sequence_is_active(const sequence *s)
{
    return s->phase == PHASE_QUEUED || s->phase == PHASE_PREFILL || s->phase == PHASE_DECODE;
}

/* The pending row was sent, and nothing has disagreed since. */
static inline bool sequence_is_in_flight(const sequence *s)
{
    return s->phase == PHASE_DECODE && s->n_sent >= sequence_length(s);
}

#endif
