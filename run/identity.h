/* What decides a text beside its prompt, as a text that a person can read: the program's version,
 * the model, the cache's types, the context, on which kinds of devices, by which drivers, the
 * layers are, and before which of them activations are rounded between machines. Results carry it
 * and its hash, and are resumed only by a run of the same. Drafts are not in it (law 1), nor is
 * which of two equal cards it was.
 *
 *     "tandem=0.1.0; model=0123456789abcdef; cache=f16,f16; ...; layers=0 on host"
 *
 * Private to run/, but that `tandem eval` names devices and differences so too. Any thread. */
#ifndef TD_RUN_IDENTITY_H
#define TD_RUN_IDENTITY_H

#include "run/prompts.h"
#include "target/target.h"

#define TD_IDENTITY_BYTES (512u + TD_STAGES_MAX * 640u)

typedef struct {
    char text[TD_IDENTITY_BYTES];
    char sha[TD_SHA_HEX + 1];
    char model_sha[TD_SHA_HEX + 1];
} td_identity;

void td_identity_write(const td_run_params *params, const td_model *model, const td_target *target,
                       uint32_t prefill_rows, td_identity *out);

/* What of it the cache of a prompt depends on, and what else that does. */
void td_identity_write_prompts(const td_identity *identity, const td_model *model, uint32_t n_ctx,
                               char out[TD_IDENTITY_BYTES]);

/* The value of a part, cut off; "" where there is none. */
void td_identity_read(const char *text, const char *key, char *out, size_t n_bytes);

/* Whether activations come to a stage from another machine than its own. */
bool td_identity_has_hop(const td_target *target, uint32_t stage);

/* What differs between two texts: "cache is q8_0,q8_0 there and f16,f16 now, ..."; "" for nothing
 * that can be named. */
void td_identity_compare(const char *there, const char *now, char *out, size_t n_bytes);

#endif
