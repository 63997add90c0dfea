/* Model files that a stage worker has: found by what is in them, whatever they are called. What a
 * coordinator sends is an identity, never a path.
 *
 * Owns the model it opened last and keeps it for the next session. Errors: TD_E_DATA where no file
 * is that model, naming what is there. One thread at a time. */
#ifndef TD_TARGET_MODELS_H
#define TD_TARGET_MODELS_H

#include "model/model.h"
#include "transport/stage_wire.h"

typedef struct td_models td_models;

/* Files of a folder that end in .gguf, or one file; one of the two may be NULL. Borrowed. */
td_models *td_models_create(const char *folder, const char *file, td_err *err);
void td_models_destroy(td_models **models);
/* Valid until the next call. */
const td_model *td_models_open(td_models *models, const uint8_t id[TD_STAGE_HASH_BYTES],
                               const char *name, uint64_t n_bytes, td_err *err);

/* What a model is known by, whatever its file is called. Reads all of it the first time. */
bool td_models_id(const td_model *model, uint8_t out[TD_STAGE_HASH_BYTES], td_err *err);
/* Tells a plan which model is meant, and what files of it could be sent (fetch.h). */
void td_models_describe(const td_model *model, const uint8_t id[TD_STAGE_HASH_BYTES],
                        td_stage_plan *plan);

#endif
