/* Chunks of prompts on the disk (model/prefix.h), as a target has them: a thread of its own looks
 * for them, before their batches come to the first stage.
 *
 * Where a target is driven from (gate) the thread stands in the row of jobs. A full chunk of a
 * prompt is read from the folder here, where there are stages here, and asked for at all workers at
 * the same time; its batch goes on when they have answered, and is_restored says whether all have
 * it. Else it is computed, and whoever has it not keeps it.
 *
 * A worker is told what to look for, one chunk at a time, while it is at work on others (ask,
 * answer). What was found, or room for what was not, is held until the batch comes that it was
 * asked for (join).
 *
 * Owns the room; borrows store, caches and queues. Private to target/. Errors: TD_E_NOMEM;
 * TD_E_DATA, where a coordinator asks for what makes no sense. */
#ifndef TD_TARGET_PROMPTS_H
#define TD_TARGET_PROMPTS_H

#include "target/job.h"
#include "target/remote.h"

typedef struct td_prompts td_prompts;

typedef struct {
    td_prefix_store *store;
    const char *identity, *model, *what; /* td_prefix_params */
    uint32_t chunk_rows, n_slots, n_ctx, n_stages;
    const td_cache *parts[TD_STAGES_MAX]; /* of the stages here, */
    uint32_t n_parts;                     /* which may be none */
    uint32_t row_bytes;  /* of a head's hidden row behind the last part's; 0: there is no head */
    td_queue *out;       /* of a gate: where jobs go on; NULL: a worker's */
    td_remotes *remotes; /* of a gate, or NULL */
    void (*wake)(void *user); /* after a batch on `out`, or an answer; or NULL */
    void *user;
} td_prompts_params;

td_prompts *td_prompts_create(const td_prompts_params *params, td_err *err);
/* Joins: a gate has been sent a JOB_STOP; of a worker all stages are through with theirs. */
void td_prompts_destroy(td_prompts **p);

td_prefix *td_prompts_prefix(td_prompts *p);
td_queue *td_prompts_in(td_prompts *p); /* of a gate */

/* What is asked for; false while the one before is not answered. */
bool td_prompts_ask(td_prompts *p, const td_stage_find *find, td_err *err);
bool td_prompts_answer(td_prompts *p, td_stage_found *out);
/* Gives a batch what is held for it; false where it says that it was found, and was not. */
bool td_prompts_join(td_prompts *p, micro_batch *b, td_err *err);

/* Of a worker's layers, for an identity: *out is the caller's, td_free. */
bool td_prompts_describe(const td_layout *layout, const td_model *model, const td_cache_types *kv,
                         char **out, td_err *err);

#endif
