/* Tiny models built into the program, with the logits that a reference implementation gives of a
 * prompt (tests/data/golden/README.md): a dense one in F16, Q8_0 and Q4_K_M, a mixture of experts
 * with sinks and windows, and a hybrid with delta nets. Immutable; a prompt's run is one thread's.
 *
 * Errors of opening and running are those of model.h and forward.h. */
#ifndef TD_CHECK_GOLDEN_H
#define TD_CHECK_GOLDEN_H

#include "base/err.h"
#include "target/chain.h"

#define TD_GOLDEN_MODELS     5u
#define TD_GOLDEN_TOKENS_MAX 64u

typedef struct {
    const char *name;
    int fd; /* of the model's file in memory */
    td_model *model;
    uint32_t n_tokens, n_vocab;
    uint32_t tokens[TD_GOLDEN_TOKENS_MAX];
    const float *logits; /* [n_tokens][n_vocab] */
    double tolerance;    /* of a logit, absolute, with a cache of f32 */
    bool is_rounded;     /* activations are: a router's close call may then fall otherwise */
} td_golden;

bool td_golden_open(uint32_t i, td_golden *g, td_err *err);
void td_golden_close(td_golden *g);

/* The model on a device, with room for its prompt. */
td_chain *td_golden_load(const td_golden *g, const char *spec, td_err *err);
/* The prompt's logits into out[n_tokens][n_vocab]: n_rows at a time through the verify path, or 0:
 * as a prompt. */
bool td_golden_run(const td_golden *g, td_chain *chain, uint32_t n_rows, float *out, td_err *err);

#endif
