/* What a round takes: a verify batch by its number of rows, a draft step. Samples go in as they are
 * measured; what is asked for is one table over all widths, without outliers and never decreasing.
 *
 *     td_times_init(&times, NULL, 0);                                              one per run
 *     td_times_add_verify(&times, n_rows, us); td_times_add_draft(&times, k, 1, us);
 *     td_times_verify_us(&times, 5);
 *
 * No memory of its own: the caller holds the struct. Widths are 1..TD_TIMES_ROWS_MAX, more is
 * clamped; times that are no positive finite number are ignored. No errors, one thread. */
#ifndef TD_COORDINATOR_TIMES_H
#define TD_COORDINATOR_TIMES_H

#include <stdbool.h>
#include <stdint.h>

#define TD_TIMES_ROWS_MAX 64u

/* One time that is measured again and again. */
typedef struct {
    float us;      /* decayed mean of the samples' running medians of three */
    float last[2]; /* the last two samples, newest first */
    float recent;  /* its samples among the last ones, decayed */
    uint32_t n;    /* samples, counted up to a limit; 0 = unknown */
} td_time;

/* Times of a verify batch by its number of rows, of a draft step, and of what an answer of the
 * drafter takes beside its steps. */
typedef struct {
    td_time verify[TD_TIMES_ROWS_MAX + 1];
    float fit_us[TD_TIMES_ROWS_MAX + 1]; /* of all widths, never decreasing */
    td_time draft, wait, trip;
    td_time head, head_wait; /* of the target's, beside a drafter */
} td_times;

/* verify_us: [65] by number of rows, 0 = unknown; or NULL. draft_us: of one token; 0 = unknown. */
void td_times_init(td_times *times, const float *verify_us, float draft_us);
void td_times_add_verify(td_times *times, uint32_t n_rows, double us);
/* `us` for n_tokens tokens of each of n_sequences sequences, computed together. */
void td_times_add_draft(td_times *times, uint32_t n_tokens, uint32_t n_sequences, double us);
/* What it took until the answer was here, beside the drafter's own time: the link, waking. */
void td_times_add_wait(td_times *times, double us);
/* The same of one that nothing was before: the way there and back. */
void td_times_add_trip(td_times *times, double us);
/* Likewise of the target's head: an answer of n_tokens that took it us, and wait_us beside. */
void td_times_add_head(td_times *times, uint32_t n_tokens, double us, double wait_us);
/* 0 while nothing was measured. Widths between measured ones are interpolated; wider ones go on
 * with the mean slope from the narrowest to the widest (a tenth of a row's time a row while there
 * is one only). A cliff that was measured is kept. n_rows need not be whole: a mean. */
double td_times_verify_us(const td_times *times, double n_rows);
/* One token of one sequence; 0 while nothing was measured. */
double td_times_draft_us(const td_times *times);
/* 0 until three were measured: the first may be cold, and nothing would be asked again. */
double td_times_wait_us(const td_times *times);
double td_times_trip_us(const td_times *times); /* the same */
double td_times_head_us(const td_times *times);
double td_times_head_wait_us(const td_times *times);

#endif
