/* How much to draft: pure arithmetic on measured times and on how often drafts were accepted. No
 * clock, no I/O, no memory of its own: the caller holds the structs.
 *
 *     td_times_init(&costs, NULL, 0);            one per run: times by number of rows
 *     td_acceptance_init(&pool, NULL);           one per run: what sequences were like so far
 *     td_acceptance_init(&a, &pool); td_length_init(&length);      both per sequence
 *     k = td_draft_length(&length, &a, &costs, k_max, NULL, false);          every round
 *     n_rows = td_deal_rows(&costs, drafts, n, 64, spent_us, n_kept);        every verify batch
 *     td_times_add_verify(&costs, n_rows, us); td_times_add_draft(&costs, k, 1, us);
 *     td_acceptance_add(&a, TD_SOURCE_MODEL, n_verified, n_accepted);
 *     td_acceptance_merge(&pool, &a);            when the sequence has ended
 *
 * What is chosen here decides when tokens come, never which (law 1).
 *
 * Limits: rows 1..64 of a verify batch, drafts of up to TD_CONTROL_DRAFT_MAX tokens; more is
 * clamped. Times that are no positive finite number are ignored. No errors, one thread. */
#ifndef TD_COORDINATOR_CONTROL_H
#define TD_COORDINATOR_CONTROL_H

#include <stdbool.h>
#include <stdint.h>

#define TD_CONTROL_ROWS_MAX  64u
#define TD_CONTROL_DRAFT_MAX 63u

/* ---- times ---- */

/* One time that is measured again and again. */
typedef struct {
    float us;      /* decayed mean of the samples' running medians of three */
    float last[2]; /* the last two samples, newest first */
    float recent;  /* its samples among the last ones, decayed */
    uint32_t n;    /* samples, counted up to a limit; 0 = unknown */
} td_time;

/* Times of a verify batch by its number of rows, and of a draft step. */
typedef struct {
    td_time verify[TD_CONTROL_ROWS_MAX + 1];
    float fit_us[TD_CONTROL_ROWS_MAX + 1]; /* of all widths, never decreasing */
    td_time draft;
} td_times;

/* verify_us: [65] by number of rows, 0 = unknown; or NULL. draft_us: of one token; 0 = unknown. */
void td_times_init(td_times *costs, const float *verify_us, float draft_us);
void td_times_add_verify(td_times *costs, uint32_t n_rows, double us);
/* `us` for n_tokens tokens of each of n_sequences sequences, computed together. */
void td_times_add_draft(td_times *costs, uint32_t n_tokens, uint32_t n_sequences, double us);
/* 0 while nothing was measured. Widths between measured ones are interpolated; wider ones go on
 * with the mean slope from the narrowest to the widest (a tenth of a row's time a row while there
 * is one only). A cliff that was measured is kept. n_rows need not be whole: a mean. */
double td_times_verify_us(const td_times *costs, double n_rows);
/* One token of one sequence; 0 while nothing was measured. */
double td_times_draft_us(const td_times *costs);

/* ---- acceptance ---- */

/* Where a draft came from: the draft model, or a match in the text by its length in tokens. */
typedef enum {
    TD_SOURCE_MODEL,
    TD_SOURCE_MATCH_3,  /* up to 4 */
    TD_SOURCE_MATCH_5,  /* 5..8 */
    TD_SOURCE_MATCH_9,  /* 9..16 */
    TD_SOURCE_MATCH_17, /* and longer */
    TD_SOURCE_COUNT
} td_source;

td_source td_source_of_match(uint32_t n_match);

#define TD_CONTROL_RATES   2u  /* how often a text may change its level */
#define TD_CONTROL_LEVELS  12u /* agreement levels a text is believed to be at */
#define TD_CONTROL_CLASSES 6u  /* indices in a draft: 0, 1-2, 3-6, 7-14, 15-30, 31-62 */

typedef struct {
    struct {
        /* Probability that the text changes its level so often, and is at this one now. */
        float belief[TD_CONTROL_RATES][TD_CONTROL_LEVELS];
        float prior[TD_CONTROL_LEVELS]; /* where it goes when it changes */
        float seen[TD_CONTROL_LEVELS];  /* sum of beliefs over the rounds */
        float seen_rate[TD_CONTROL_RATES];
        float expected[TD_CONTROL_CLASSES], accepted[TD_CONTROL_CLASSES]; /* decayed, by index */
    } sources[TD_SOURCE_COUNT];
} td_acceptance;

/* prior: what the run's earlier sequences were like; NULL = nothing known. */
void td_acceptance_init(td_acceptance *a, const td_acceptance *prior);
/* A round verified n_drafted tokens of a draft and accepted the first n_accepted of them. */
void td_acceptance_add(td_acceptance *a, td_source source, uint32_t n_drafted, uint32_t n_accepted);
void td_acceptance_merge(td_acceptance *prior, const td_acceptance *a);
/* survival: [k], the probability that the tokens 0..i of a draft are all accepted. */
void td_acceptance_survival(const td_acceptance *a, td_source source, float *survival, uint32_t k);

/* ---- length ---- */

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
    td_length_choice model, match;
} td_length_state;

void td_length_init(td_length_state *state);

/* Tokens to draft by the model in the next round, 0..k_max. Maximises expected committed tokens
 * over expected time. One that drafts and verifies in turn: k td + tv. is_ahead: the drafter goes
 * on while the target verifies, h max((k+1) td, tv) + (1-h) (k td + tv), h = the probability that
 * k+1 tokens agree. others: NULL = alone. To be called once a round. */
uint32_t td_draft_length(td_length_state *state, const td_acceptance *a, const td_times *costs,
                         uint32_t k_max, const td_others *others, bool is_ahead);
/* The same for a draft found in the text, n_match tokens long in its match and at most k_max long,
 * against k_model tokens by the model (0 = no model, or none wanted). Returns how many tokens to
 * take from the text; 0 = take the model's. */
uint32_t td_match_length(td_length_state *state, const td_acceptance *a, const td_times *costs,
                         uint32_t n_match, uint32_t k_max, uint32_t k_model,
                         const td_others *others, bool is_ahead);

/* ---- rows of a verify batch ---- */

typedef struct {
    const float *survival; /* [n_draft], falling */
    uint32_t n_draft;
} td_deal;

/* Which drafted rows go into a verify batch beside the pending row of each of the n_sequences
 * (1..n_rows_max): the most probable ones first, as many as give the most expected tokens per time.
 * spent_us: time already spent on this round, on drafts. n_kept: [n_sequences], how many of each
 * draft's first tokens are taken. Returns the rows, pending ones included. */
uint32_t td_deal_rows(const td_times *costs, const td_deal *deals, uint32_t n_sequences,
                      uint32_t n_rows_max, double spent_us, uint32_t *n_kept);

#endif
