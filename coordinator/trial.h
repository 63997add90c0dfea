/* Whether to draft at all, by trial: what rounds take while the drafter is silent against what they
 * take, and give, while it is at work. All that a draft costs is in it, for what is measured is the
 * time from one answer of the target to the next: reading prompts, waking threads, cores and memory
 * that draft and target share, rows verified in vain.
 *
 *     td_trial_init(&t, draft_share, is_one_unit);                        one per run
 *     td_trial_add_round(&t, &round); td_trial_pass(&t, us);              as batches end
 *     if (td_trial_is_drafting(&t)) ...                                   may the drafter be asked?
 *
 * A run begins in silence. What drafting may lose is an account that grows by a small share of the
 * time that has passed, so the loss is bounded in a run of any length; see trial.c.
 *
 * What is chosen here decides when tokens come, never which (law 1). No memory of its own: the
 * caller holds the struct. No errors, one thread. */
#ifndef TD_COORDINATOR_TRIAL_H
#define TD_COORDINATOR_TRIAL_H

#include "coordinator/times.h"

#include <stdbool.h>
#include <stdint.h>

typedef enum {
    TD_TRIAL_SILENT,   /* nothing is said to the drafter */
    TD_TRIAL_DRAFTING, /* it is told and asked */
    TD_TRIAL_CHECKING  /* a few silent rounds in between: what does plain decoding take now? */
} td_trial_phase;

typedef struct {
    td_trial_phase phase;
    uint32_t n_rounds; /* of this phase */
    /* Silent rounds by sequences: their mean time, of so many. */
    float plain_us[TD_TIMES_ROWS_MAX + 1];
    uint32_t n_plain_at[TD_TIMES_ROWS_MAX + 1], n_plain;
    bool was_quiet;     /* the round before ended with nothing for the drafter to do */
    double draft_scale; /* mean time of the rounds of this trial, by that of silent ones */
    double draft_share; /* what a row costs the drafter, by what it costs the target: about */
    bool is_one_unit;
    double elapsed_us, account_us, floor_us; /* floor: where the account is empty */
    double price;                            /* of a trial: silent rounds */
    /* Since the trial began. The sums are of this window of rounds and of the one before. */
    bool is_proven;
    double stake_us;                        /* what it may lose before it has paid */
    uint32_t n_drafting, n_drafted, n_idle; /* rounds; with a draft; the last ones without */
    uint32_t n_window, n_until_check;
    double saved_us[2], n_tokens[2];
    /* Since the run began. */
    double sum_saved_us;
    uint32_t n_trials, n_silent, n_checks;
} td_trial;

/* A verify batch that was answered. */
typedef struct {
    uint32_t n_sequences; /* that would have been in it if none had been drafted for */
    uint32_t n_tokens;    /* committed by it */
    bool has_drafts;      /* it had rows that were guessed by the drafter */
    bool is_quiet;        /* now that it ends, the drafter owes no answer */
    double us;            /* since the answer before it */
    double wait_us;       /* of us: the target had nothing to do */
    double read_us;       /* what the drafter would take, about, to read what it was not told yet */
} td_trial_round;

/* draft_share: 0 = not known. is_one_unit: target and drafter take each other's time. */
void td_trial_init(td_trial *t, double draft_share, bool is_one_unit);
void td_trial_add_round(td_trial *t, const td_trial_round *round);
/* Time in which no verify batch was run: prompts. */
void td_trial_pass(td_trial *t, double us);
/* Of such time, what the drafter made it longer by. */
void td_trial_lose(td_trial *t, double us);
bool td_trial_is_drafting(const td_trial *t);
/* Should a draft be asked for that does not seem to pay? Too few were to be sure. */
bool td_trial_insists(const td_trial *t);
/* How long a round may wait for its draft: what the account affords. */
uint64_t td_trial_patience_us(const td_trial *t);
/* May a sequence be drafted that takes the drafter read_us to read, with n_left tokens to come? */
bool td_trial_affords(const td_trial *t, double read_us, uint32_t n_left);

#endif
