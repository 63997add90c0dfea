/* A model laid over devices: opens them, places the layers, loads each part. A target (target.h)
 * runs the parts as threads; td_chain_run runs them one after another in the caller's thread, for
 * logits and measurements.
 *
 * Owns devices, weights and caches; borrows the model. Errors: as forward.h and placement.h. */
#ifndef TD_TARGET_CHAIN_H
#define TD_TARGET_CHAIN_H

#include "base/err.h"
#include "model/forward.h"
#include "target/placement.h"

#define TD_STAGES_MAX 16u

typedef struct {
    const td_model *model;
    const char *const *specs; /* SPEC[@a-b], in order */
    uint32_t n_specs;
    const char *place; /* "experts=SPEC": the experts' weights on that device; NULL: none so */
    const td_type_info *type_k, *type_v;
    uint32_t n_slots;
    uint32_t n_ctx;                  /* 0: the smaller of the model's and what fits */
    bool is_all_logits, is_choosing; /* forward.h */
    bool is_plan_only;               /* place the layers, load nothing */
    uint64_t draft_bytes;            /* kept free for a draft on device draft_spec; may be 0 */
    const char *draft_spec;
    void (*progress)(void *user, uint64_t done, uint64_t total); /* of loading; may be NULL */
    void *user;
} td_chain_params;

typedef struct {
    char spec[128]; /* "host:1", without the range */
    td_device *dev;
    td_device *experts_dev; /* or NULL */
    td_forward *forward;    /* NULL when only planned */
    uint32_t first, last;
    uint64_t n_bytes;       /* weights, cache and activations */
    uint64_t experts_bytes; /* on experts_dev */
    uint64_t budget_bytes;
} td_chain_part;

typedef struct {
    uint32_t n_parts, n_ctx;
    /* Cache pages of all sequences together, where not all can have a full context at once (then at
     * least one can); 0: enough for all. */
    uint32_t n_pages;
    td_chain_part parts[TD_STAGES_MAX];
    td_place_device places[TD_STAGES_MAX]; /* of the parts: what was placed by */
    uint64_t *layer_bytes;                 /* what they point to */
} td_chain;

td_chain *td_chain_create(const td_chain_params *params, td_err *err);
void td_chain_destroy(td_chain **chain);

/* Runs the rows through every part. Logits: td_forward_output of the last part. */
bool td_chain_run(td_chain *chain, td_mode mode, const td_forward_row *rows, uint32_t n_rows,
                  td_err *err);
const float *td_chain_logits(const td_chain *chain);
/* A cache's verbs, on every part. rewind: truncates to `length` where that can be, else clears; the
 * length that is left (length or 0). */
uint32_t td_chain_rewind(td_chain *chain, uint32_t slot, uint32_t length);
void td_chain_commit(td_chain *chain, uint32_t slot, uint32_t length);
bool td_chain_forgets(const td_chain *chain);

/* device.h's profile over all parts: times of ops of one name add up, of both programs. */
bool td_chain_profile(td_chain *chain, bool is_on, td_err *err);
uint32_t td_chain_op_times(const td_chain *chain, td_op_time *out, uint32_t max);
/* Sums over the parts, of verify runs and of prefill runs. */
void td_chain_get_counts(const td_chain *chain, td_program_counts *verify,
                         td_program_counts *prefill);

/* The devices to use when none are given: usable GPUs, discrete first, else the host. Fills
 * specs[TD_STAGES_MAX] with static strings; returns the count (>= 1). */
uint32_t td_chain_default_specs(const char **specs);

#endif
