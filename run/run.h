/* A batch run: prompts in, results out, a coordinator with hands in between. The event loop of one
 * thread owns the coordinator, the target's queue, the link to the draft and the files.
 *
 * Errors are returned as td_err where the run cannot start or go on; what was finished by then is
 * in the results file. One run at a time in a process (signals). */
#ifndef TD_RUN_H
#define TD_RUN_H

#include "base/err.h"
#include "coordinator/coordinator.h"
#include "kernels/types.h"
#include "model/sampling.h"

#define TD_RUN_SPECS_MAX     16u
#define TD_DRAFT_DEADLINE_US 2000000u /* a round waits no longer for a draft */

typedef struct {
    const char *target_path;
    const char *draft_path;     /* NULL: no draft model here */
    const char *draft_spec;     /* device of a draft in this process; NULL: chosen */
    const char *draft_endpoint; /* a `tandem draft` worker; NULL: none */
    uint32_t draft_max;         /* 1..TD_DRAFT_MAX */
    uint32_t draft_fixed;       /* 0: draft_max bounds; else always k = this */
    const char *specs[TD_RUN_SPECS_MAX];
    uint32_t n_specs; /* 0: chosen */

    const char *prompt;     /* one prompt from the command line, or NULL */
    const char *in_path;    /* JSONL of prompts, "-" for stdin, or NULL */
    const char *out_path;   /* JSONL of results; NULL: text to stdout */
    const char *stats_path; /* NULL: none */

    uint32_t n_predict;
    td_sampling_params sampling;
    uint64_t seed;
    bool ignore_eos;
    uint32_t n_stops;
    const char *stops[TD_STOPS_MAX];
    const td_type_info *type_k, *type_v;
    uint32_t n_ctx; /* 0: the smaller of the model's and what fits */
    uint32_t n_parallel;
    bool is_force;        /* go on though results of another input or configuration are there */
    bool is_retry_errors; /* run lines again whose result is an error */
    bool is_marked;       /* text output: mark tokens that were drafted and accepted */
    uint64_t draft_deadline_us; /* 0: TD_DRAFT_DEADLINE_US */
} td_run_params;

/* Sums over the finished sequences of a run. */
typedef struct {
    uint64_t n_ok, n_error, n_skipped; /* skipped: results were there already */
    uint64_t n_old_errors;             /* of the skipped: errors, see is_retry_errors */
    uint64_t n_tokens, n_prompt_tokens, n_rounds, n_drafted, n_accepted;
    uint64_t drafted_at[TD_DRAFT_MAX + 1], accepted_at[TD_DRAFT_MAX + 1];
    uint64_t start_us, end_us, ttft_sum_us;
    uint64_t n_draft_joins, n_draft_losses;
} td_run_totals;

/* Runs to the end, or until a signal drained it (then *signal is its number). False with err set
 * when it could not start or go on. */
bool td_run(const td_run_params *params, td_run_totals *totals, int *signal, td_err *err);

#endif
