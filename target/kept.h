/* Weights that a worker was sent, kept for the next time. A model has a folder in the cache (io.h)
 * with files as large as its own, in which there are only the bytes that some layers here needed:
 * so whatever opens a model opens this one, and reads what is there. A record beside them lists the
 * pieces that came whole, each with its checksum; a piece is read and compared before it is used
 * for the first time, and what is not in the record, or is damaged, is missing.
 *
 *   td_kept_open(k, &plan, &is_stopped, &err); while nothing is open, fetch td_kept_missing and
 *   td_kept_put it, piece by piece in that order, and open again.
 *
 * First the heads of the files are missing, then small tensors that opening a model reads, then the
 * layers. All folders together are bounded: the one that was not used for the longest time goes
 * first. One worker at a time fetches (a lock on the cache, from td_kept_open until all is there or
 * td_kept_release): another waits, and finds what it brought.
 *
 * Names are made here, of numbers alone. Whoever may have weights sent decides what those who name
 * the same model later are served: workers are shared by people who trust each other.
 *
 * Private to target/. Errors: TD_E_IO, TD_E_DATA, TD_E_AGAIN (stopped). One thread at a time. */
#ifndef TD_TARGET_KEPT_H
#define TD_TARGET_KEPT_H

#include "model/model.h"
#include "transport/stage_wire.h"

#include <stdatomic.h>

typedef struct td_kept td_kept;

typedef struct {
    uint32_t file;
    uint64_t offset, n_bytes;
} td_kept_piece;

/* At most so many bytes on the disk, as far as others' folders can make room. TD_E_USAGE where
 * there is no cache folder. */
td_kept *td_kept_create(uint64_t most_bytes, td_err *err);
void td_kept_destroy(td_kept **kept);

/* Finds what is there of the layers of a plan. True with a model, or with pieces that are missing.
 * The model is valid until the next call. */
bool td_kept_open(td_kept *k, const td_stage_plan *plan, const atomic_bool *is_stopped,
                  td_err *err);
const td_model *td_kept_model(const td_kept *k);                          /* or NULL */
bool td_kept_is(const td_kept *k, const uint8_t id[TD_STAGE_HASH_BYTES]); /* opened last */

const td_kept_piece *td_kept_missing(const td_kept *k, uint32_t *n);
/* Bytes of missing piece i, from where those before ended. */
bool td_kept_put(td_kept *k, uint32_t i, const void *bytes, uint32_t n, td_err *err);
/* What came whole is safe, and others may fetch. */
bool td_kept_release(td_kept *k, td_err *err);

/* kept_room.c: makes room for so many bytes more in `folder`, of a cache folder. */
bool td_kept_make_room(const char *folder, uint64_t n_new, uint64_t most_bytes, td_err *err);
uint64_t td_kept_folder_bytes(const char *folder);
void td_kept_remove(const char *folder);

#define TD_KEPT_PREFIX "weights"
#define TD_KEPT_RECORD "record"

#endif
