/* Shared by the files of `tandem eval`: what is compared (eval_run.c), how it is judged
 * (eval_score.c) and how it is shown (eval.c). Private to cli/.
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

#define EVAL_KVS_MAX    (1 + TD_OPTION_LIST_MAX) /* the base and what is held against it */
#define EVAL_WINDOW_MIN 8u                       /* three positions are scored */

/* -- judging ----------------------------------------------------------------------------------- */

/* The logits after one position, and what the softmax of them needs. */
typedef struct {
    const float *logits; /* [n_vocab], borrowed */
    uint32_t n_vocab, top;
    double max, sum; /* of the logits; of exp(logit - max) */
} eval_row;

/* Sums over the positions scored. */
typedef struct {
    uint32_t n, n_same_top;
    double nll, nll2, kld,
        dp2;     /* -log p of the true token, KL divergence, difference of p; squares */
    float *klds; /* [n] and room for more */
} eval_score;

typedef struct {
    double ppl, ppl_err; /* exp of the mean of -log p, and the standard error of that */
    double kld_mean, kld_median, kld_99, kld_99_9, kld_max; /* nats; to the base: D(base || this) */
    double same_top; /* share of the positions with the base's most probable token */
    double rms_dp;   /* of p of the true token, less the base's */
    double bytes_per_position;
} eval_figures;

/* The first of the largest logits is the top. False: one is NaN or infinite. */
bool td_eval_read_row(const float *logits, uint32_t n_vocab, eval_row *out);
/* A position that `token` follows; of the base itself row is base. score->klds has room. */
void td_eval_add(eval_score *score, const eval_row *base, const eval_row *row, uint32_t token);
/* n >= 2. Sorts score->klds. Percentiles lie between two values as theirs do; 99 % of n values is
 * number 0.99 (n - 1), from 0. Formulas: llama.cpp's tools/perplexity. */
eval_figures td_eval_judge(eval_score *score);

/* -- running ----------------------------------------------------------------------------------- */

typedef struct {
    td_cache_types types;
    char name[40]; /* "k=q8_0,v=f16" */
} eval_kv;

typedef struct {
    const td_model *model;
    const char *const *specs;
    uint32_t n_specs;
    const uint32_t *ids; /* [n_windows * window] */
    uint32_t window, n_windows, n_kvs;
    eval_kv kvs[EVAL_KVS_MAX]; /* the base first */
} eval_params;

/* Positions scored of a window. */
static inline uint32_t td_eval_n_scored(uint32_t window) { return window - window / 2 - 1; }

/* out[n_kvs]. Errors: those of forward.h and layout.h; TD_E_DATA: logits are not finite. */
bool td_eval_run(const eval_params *params, eval_figures *out, td_err *err);

#endif
