/* A batch run: prompts in, results out, a coordinator with hands in between. The event loop of one
 * thread owns the coordinator, the target's queue, the link to the draft and the files.
 *
 * Errors are returned as td_err where the run cannot start or go on; what was finished by then is
 * in the results file. One run at a time in a process (signals). */
#ifndef TD_RUN_H
#define TD_RUN_H

#include "base/energy.h"
#include "base/err.h"
#include "coordinator/coordinator.h"
#include "kernels/types.h"
#include "model/cache_types.h"
#include "model/chat.h"
#include "model/model.h"
#include "model/sampling.h"
#include "planning/costs.h"
#include "planning/speed.h"

#define TD_RUN_SPECS_MAX     16u
#define TD_RUN_LOSSES_MAX    16u
#define TD_N_PREDICT_DEFAULT 256u
#define TD_DRAFT_DEADLINE_US 2000000u /* a round waits no longer for a draft */

typedef struct {
    const char *target_path;
    /* A model that drafts here, or "mtp": the head in the target's file (td_model_check_head), or
     * "mtp:FILE": that of FILE, beside the target's last layers; or "auto", of td_run: is_ngram,
     * with "mtp" where it can draft; NULL: none. */
    const char *draft_path;
    /* "mtp" or "mtp:FILE" beside draft_path or draft_endpoint, both to draft; NULL: none. */
    const char *draft_head;
    const char *draft_spec;     /* its device, here or on one of the hosts; NULL: chosen */
    const char *draft_endpoint; /* a `tandem draft` worker, EP or EP,KEY; NULL: none */
    const char *key;            /* our own pair; NULL: the only one, where one is needed */
    uint32_t draft_max;         /* 1..TD_DRAFT_MAX; 0: none is used, though there is one */
    uint32_t draft_fixed;       /* 0: draft_max bounds; else always k = this */
    bool is_ngram;              /* guesses from the texts of the run, too or alone */
    bool is_turns;              /* draft and target take turns; for comparison */
    const char *specs[TD_RUN_SPECS_MAX];
    uint32_t n_specs;                /* 0: chosen */
    td_host hosts[TD_RUN_SPECS_MAX]; /* other machines that specs may name */
    uint32_t n_hosts;
    const td_type_info *wire;             /* of activations between machines; NULL: f32 */
    const char *spares[TD_RUN_SPECS_MAX]; /* SPECs that take a lost stage's layers (recover.h) */
    uint32_t n_spares;
    const char *place;        /* td_layout_params; NULL: none */
    const char *expert_stats; /* likewise */
    td_measure measure; /* whether devices are measured to place the layers (planning/costs.h) */
    td_use use;         /* what the placement shall be good for (planning/speed.h) */

    const char *prompt;        /* one prompt from the command line, or NULL */
    const char *in_path;       /* JSONL of prompts, "-" for stdin, or NULL */
    const char *job;           /* a job in a database to take lines from (job/job.h), or NULL */
    double lease_s, drain_s;   /* job: how long a line is held unless renewed; how long what was
                                * begun may go on after a signal */
    const char *out_path;      /* JSONL of results; NULL: text to stdout */
    const char *stats_path;    /* NULL: none */
    const char *trace_path;    /* Chrome trace JSON; NULL: none */
    const char *chat_template; /* of messages (td_chat_open); NULL: the one the target's file has */
    bool is_special;           /* control tokens in `prompt` are such */

    const char *prefix_path; /* a folder where prompts are kept (model/prefix_store.h), or NULL, */
    uint64_t prefix_bytes;   /* and so many bytes of them at most */

    uint32_t n_predict;
    td_sampling_params sampling;
    uint64_t seed;
    bool ignore_eos;
    uint32_t n_stops;
    const char *stops[TD_STOPS_MAX];
    td_cache_types kv;
    td_cache_types draft_kv; /* of draft_path; types NULL: chosen (model/cache_choice.h) */
    uint32_t n_ctx;          /* 0: the smaller of the model's and what fits */
    uint32_t n_parallel;
    bool is_trusting;     /* go on with devices that have failed `tandem check` */
    bool is_force;        /* go on though results of another input or configuration are there */
    bool is_retry_errors; /* run lines again whose result is an error */
    bool is_quiet;        /* no table of the set-up on a terminal */
    bool is_marked;       /* text output: mark tokens that were drafted and accepted */
    uint64_t draft_deadline_us; /* 0: TD_DRAFT_DEADLINE_US */

    /* For measuring, called from the run's thread; NULL: not. A draft of what would be the tokens
     * i_token.. of a text, before it is verified: the ids may be changed. A text that is done. A
     * prompt that gave none, and why. */
    void (*on_draft)(void *user, const char *id, uint32_t i_token, uint32_t *ids, uint32_t n_ids);
    bool (*on_finish)(void *user, const char *id, const td_sequence_info *info, td_err *err);
    void (*on_error)(void *user, const char *id, const char *message);
    void *user;
} td_run_params;

typedef enum { TD_BACK_SAME, TD_BACK_SPARE, TD_BACK_REST } td_run_back;

/* A loss of the target that the run went on from. */
typedef struct {
    td_run_back back;                /* the same devices; with a spare; on what was left */
    uint64_t at_us;                  /* from the run's start */
    uint64_t away_us, next_token_us; /* until it was loaded again; until a token was chosen, or 0 */
    uint64_t n_replayed;             /* positions computed again */
    char reason[160];
} td_run_loss;

/* Sums over the finished sequences of a run. */
typedef struct {
    uint64_t n_ok, n_error, n_skipped; /* skipped: results were there already */
    uint64_t n_old_errors;             /* of the skipped: errors, see is_retry_errors */
    uint64_t n_tokens, n_prompt_tokens, n_rounds, n_drafted, n_accepted;
    uint64_t n_restored; /* positions of prompts that the target had read from the disk */
    uint64_t n_shared;   /* prompt positions taken over, not computed */
    uint64_t n_looked_up, n_lookup_accepted; /* of n_drafted, n_accepted: found in the texts */
    uint64_t n_by_head, n_head_accepted;     /* and by the head beside a draft model */
    uint64_t drafted_at[TD_DRAFT_MAX + 1], accepted_at[TD_DRAFT_MAX + 1];
    uint64_t start_us, end_us, ttft_sum_us;
    uint64_t n_draft_joins, n_draft_losses;
    uint64_t n_target_losses, target_away_us; /* until it was loaded again */
    td_run_loss losses[TD_RUN_LOSSES_MAX];    /* the first of them */
    /* Where the time went: busy times of all stages, and of a draft in this process. */
    uint64_t prefill_us, verify_us, draft_us;
    uint64_t stage_us[TD_RUN_SPECS_MAX]; /* of each stage, prefill and verify */
    uint64_t answers_us;                 /* of a draft anywhere, as its answers said */
    uint64_t loop_cpu_us;                /* td_stats_cpu_us */
    uint64_t n_proposed;                 /* tokens the draft computed, looked at or not */
    /* Tokens/s: what the placement was expected to give (0: not measured); of the lines while they
     * were generated, each by itself, and the lines that have one. */
    double predicted_per_s, line_min_per_s, line_max_per_s, line_sum_per_s;
    uint64_t n_timed_lines;
    double joules[TD_ENERGY_SOURCES_MAX]; /* by source of td_energy_open(NULL), start to end; with
                                           * stats_path or on_finish only */
} td_run_totals;

/* The head of that name (td_head_find) for a target on devices of which the last must be here where
 * the head is of another file: it drafts beside the last layers. NULL: none can; err says why. */
const td_model *td_run_find_head(const char *name, const td_model *target, const char *const *specs,
                                 uint32_t n_specs, td_model **file, td_err *err);

/* Runs to the end, or until a signal drained it (then *signal is its number). False with err set
 * when it could not start or go on. */
bool td_run(const td_run_params *params, td_run_totals *totals, int *signal, td_err *err);

/* The same in parts, for several runs on one target and draft that are loaded once. A session is
 * opened with the models, devices, cache and sequences at once; the params of its runs say the
 * rest, and may name no draft. After a run that failed there is no other. */
typedef struct td_run_session td_run_session;

td_run_session *td_run_open(const td_run_params *params, td_err *err);
bool td_run_go(td_run_session *session, const td_run_params *params, td_run_totals *totals,
               int *signal, td_err *err);
void td_run_close(td_run_session **session);
const td_model *td_run_model(const td_run_session *session);       /* the target's */
const td_cache_types *td_run_cache(const td_run_session *session); /* chosen for it */
const td_chat *td_run_chat(const td_run_session *session);
const char *td_run_draft_device(td_run_session *session); /* SPEC; "" when elsewhere */
/* The target's devices, SPECs joined by '+'. */
void td_run_device(const td_run_session *session, char *out, size_t n_bytes);

#endif
