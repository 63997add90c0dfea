/* Shared by the files of `tandem eval`: what is asked (eval.c), how it is computed (eval_run.c),
 * judged (eval_score.c), drafted for (eval_draft.c), kept (eval_results.c), chosen from
 * (eval_auto.c) and shown (eval_show.c). Private to cli/.
 *
 * A text's tokens are cut into windows, each a sequence of its own whose second half is scored: at
 * every position there the distribution of the next token is held against that of the base, which
 * has another cache but the same weights. All caches take turns window by window, so the base's
 * logits are kept for one chunk of positions and no longer. */
#ifndef TD_CLI_EVAL_H
#define TD_CLI_EVAL_H

#include "base/err.h"
#include "cli/options.h"
#include "model/forward.h"
#include "run/run.h"

#define EVAL_BESIDE_MAX  TD_OPTION_LIST_MAX /* caches at once beside the base's */
#define EVAL_NAME_BYTES  (TD_CACHE_TYPES_TEXT + 80u)
#define EVAL_WINDOW_MIN  8u /* three positions are scored */
#define EVAL_VERIFY_ROWS 8u
#define EVAL_DEPTHS      5u /* of a task: window w has depth w % EVAL_DEPTHS, 0 at its beginning */

/* -- judging ----------------------------------------------------------------------------------- */

/* The logits after one position, and what the softmax of them needs. */
typedef struct {
    const float *logits; /* [n_vocab], borrowed */
    uint32_t n_vocab, top;
    double max, sum; /* of the logits; of exp(logit - max) */
} eval_row;

/* Sums over the positions scored. */
typedef struct {
    uint32_t n, n_same_top, n_right; /* n_right: the true token was the most probable */
    double nll, nll2, kld,
        dp2;     /* -log p of the true token, KL divergence, difference of p; squares */
    float *klds; /* [n] and room for more */
} eval_score;

/* Of passes that end with the window, the lower quartile of a few. */
typedef struct {
    double decode_ms, verify_ms; /* of one row; of EVAL_VERIFY_ROWS */
} eval_speeds;

/* Of texts that were drafted (eval_draft.c). */
typedef struct {
    uint32_t n_tokens, n_rounds, n_drafted, n_accepted; /* as td_sequence_info has them */
} eval_drafting;

typedef struct {
    double n_windows;    /* NaN: all */
    double ppl, ppl_err; /* exp of the mean of -log p, and the standard error of that */
    double kld_mean, kld_median, kld_99, kld_99_9, kld_max; /* nats; to the base: D(base || this) */
    double same_top; /* share of the positions with the base's most probable token */
    double rms_dp;   /* of p of the true token, less the base's */
    /* Of a task: shares of right tokens, in all and by depth (NaN: none), and of windows where all
     * are. NaN: no task. */
    double right, right_at[EVAL_DEPTHS], whole;
    double bytes_per_position;
    eval_speeds speeds;
    double acceptance, tokens_per_verification; /* NaN: nothing was drafted */
} eval_figures;

/* The first of the largest logits is the top. False: one is NaN or infinite. */
bool td_eval_read_row(const float *logits, uint32_t n_vocab, eval_row *out);
/* A position that `token` follows; of the base itself row is base. score->klds has room. */
void td_eval_add(eval_score *score, const eval_row *base, const eval_row *row, uint32_t token);
/* n >= 2. Sorts score->klds. Percentiles lie between two values as theirs do; 99 % of n values is
 * number 0.99 (n - 1), from 0. Formulas: llama.cpp's tools/perplexity. */
eval_figures td_eval_judge(eval_score *score);

/* -- what is compared -------------------------------------------------------------------------- */

typedef struct {
    td_cache_types types;
    /* "k=q8_0,v=f16", then ",rotate=on" where that is not auto and ",keep=0+27:f16" by layers */
    char name[EVAL_NAME_BYTES];
    double size; /* bytes of an element of keys and one of values, of all layers; td_eval_list */
} eval_kv;

typedef struct {
    const td_model *model;
    const char *const *specs;
    uint32_t n_specs;
    char text_sha[24];   /* of all tokens of the text, and */
    const char *task;    /* what became of them (td_eval_make_task), or NULL */
    const uint32_t *ids; /* [n_windows * window] */
    uint32_t window, n_windows, n_kvs;
    uint32_t n_scored;  /* positions of a window, the last but one at the end */
    const eval_kv *kvs; /* [n_kvs], the base first */
    const char *draft;  /* a draft's path, or NULL, and */
    char draft_sha[24]; /* what it is */
} eval_params;

/* Makes windows of a text's tokens a task, "copy" or "needle" (eval_task.c): ids of
 * [n_windows * window] are changed; *n_scored is of each. TD_E_USAGE: no such task, or windows too
 * short. */
bool td_eval_make_task(const td_tokenizer *tokenizer, const char *task, uint32_t *ids,
                       uint32_t window, uint32_t n_windows, uint32_t *n_scored, td_err *err);

/* -- what is known ----------------------------------------------------------------------------- */

/* Scores by cache and window, and what else was measured of a cache; with a path each is a line of
 * a file as soon as it is known, and what the file has is known from the start. */
typedef struct td_eval_results td_eval_results;

/* path: NULL: none. The file's first line says what all others depend on (`identity`, as
 * run/identity.h has it; not which caches are asked for, nor how many windows): TD_E_DATA says what
 * differs, else as jsonl.h. params and its caches outlive it. */
td_eval_results *td_eval_results_open(const eval_params *params, const char *path,
                                      const char *identity, td_err *err);
bool td_eval_results_close(td_eval_results **r, td_err *err);

bool td_eval_results_has(const td_eval_results *r, uint32_t kv, uint32_t window);
/* What is there already stays. Copies. */
bool td_eval_results_put(td_eval_results *r, uint32_t kv, uint32_t window, const eval_score *score,
                         double bytes_per_position, td_err *err);
/* NaN: not measured. */
eval_speeds td_eval_results_speeds(const td_eval_results *r, uint32_t kv);
bool td_eval_results_put_speeds(td_eval_results *r, uint32_t kv, eval_speeds speeds, td_err *err);
/* Of the text that goes on from a window; n_rounds = 0: not there. */
eval_drafting td_eval_results_drafting(const td_eval_results *r, uint32_t kv, uint32_t window);
bool td_eval_results_put_drafting(td_eval_results *r, uint32_t kv, uint32_t window,
                                  eval_drafting counts, td_err *err);
/* Puts the shares of all windows into figures. */
void td_eval_results_judge_drafting(const td_eval_results *r, uint32_t kv, eval_figures *figures);
/* Of the first n_windows, all of which are there, without what was drafted. */
eval_figures td_eval_results_judge(td_eval_results *r, uint32_t kv, uint32_t n_windows);

/* -- running ----------------------------------------------------------------------------------- */

typedef struct td_eval_runner td_eval_runner;

/* Lays the model over the devices; it is loaded when something is first to be computed. */
td_eval_runner *td_eval_runner_create(const eval_params *params, td_err *err);
void td_eval_runner_destroy(td_eval_runner **r);
/* What figures depend on (td_eval_results_open), as of run/identity.h; until destroy. */
const char *td_eval_runner_identity(const td_eval_runner *r);

/* From now on windows end after so many seconds; 0: they do not. */
void td_eval_runner_limit(td_eval_runner *r, double seconds);
/* Computes what the results lack of windows first..end-1 with the base and caches kvs[n]; if time
 * ends it, a part of that.
 * Errors: those of forward.h and layout.h; TD_E_DATA: logits are not finite. */
bool td_eval_run_windows(td_eval_runner *r, td_eval_results *results, const uint32_t *kvs,
                         uint32_t n, uint32_t first, uint32_t end, td_err *err);
/* Measures what the results lack of speeds: of the base and caches kvs[n], in turns. */
bool td_eval_run_speeds(td_eval_runner *r, td_eval_results *results, const uint32_t *kvs,
                        uint32_t n, td_err *err);

/* Of the draft: what the results lack of a cache. Loads models of its own. */
bool td_eval_run_drafts(const eval_params *params, td_eval_results *results, uint32_t kv,
                        int *signal, td_err *err);

/* Writes tokens as a prompt, a line of JSON with a number for its id; characters that the ends cut
 * are not whole. */
bool td_eval_write_prompt(int fd, const td_tokenizer *t, const uint32_t *ids, uint32_t n_ids,
                          uint32_t number, td_err *err);
/* Of a run that counts what is accepted of drafts of n_draft tokens: prompts go on greedily, one at
 * a time, and the texts go nowhere. Every draft is waited for, so that figures do not depend on
 * times. Devices, cache, lengths and who is called are to be filled in. */
td_run_params td_eval_run_params(const td_model *target, const char *draft, uint32_t n_draft,
                                 const char *prompts);

typedef enum { EVAL_PLAIN, EVAL_BASE, EVAL_DOMINATED, EVAL_ON_FRONT, EVAL_CHOSEN } eval_mark;

typedef struct {
    const eval_kv *kv;
    eval_figures figures; /* NaN: not measured */
    eval_mark mark;       /* of a search; else PLAIN */
} eval_line;

/* -- searching --------------------------------------------------------------------------------- */

typedef struct {
    bool is_bytes; /* the least divergence of at most so many bytes a position; else */
    double bound;  /* the fewest bytes of a mean divergence of at most this */
} eval_goal;

/* The base, and every pair of types that is smaller than f32 and at least what the model's family
 * is known to need (cache_choice.h; what that leaves out is told), each as td_cache_choose has it,
 * and where both are quantized also with the first and last layers in f16, the largest first:
 * kvs[*n], by td_alloc. Errors: as cache_choice.h. */
eval_kv *td_eval_list(const eval_params *params, const eval_kv *base, uint32_t *n, td_err *err);
void td_eval_write_name(eval_kv *kv); /* of its types */
/* lines[n_kvs], by bytes; *choice: the cache within the bound, 0: none is, but *nearest comes
 * nearest. Errors: as td_eval_run_windows; TD_E_AGAIN: no time for one window. */
bool td_eval_search(td_eval_runner *runner, td_eval_results *results, const eval_params *params,
                    const eval_goal *goal, eval_line *lines, uint32_t *choice, uint32_t *nearest,
                    td_err *err);

/* -- showing ----------------------------------------------------------------------------------- */

void td_eval_print_table(const eval_params *params, const eval_line *lines, uint32_t n);
bool td_eval_print_json(const eval_line *lines, uint32_t n, td_err *err);
/* As generate --config reads it. */
bool td_eval_write_config(const char *path, const eval_kv *kv, td_err *err);

#endif
