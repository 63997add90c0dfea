/* One forward pass: layers first..last of a model on one device, with their cache, as two recorded
 * programs (verify and prefill) built of the same blocks. The first part of a model embeds tokens,
 * the last makes logits; parts in between take and give activations.
 *
 *     td_forward *f = td_forward_create(&params, &err);
 *     td_forward_run(f, TD_MODE_PREFILL, rows, n_rows, &err);   // chunk of one sequence
 *     const float *logits = td_forward_output(f);               // [n_out][n_vocab]
 *
 * Owns weights, cache, programs; borrows the model and the device. One thread at a time. Nothing
 * is allocated after create, but for what a device records on the first use of a row count.
 * Errors: TD_E_NOMEM, TD_E_DEVICE_LOST, TD_E_IO. */
#ifndef TD_MODEL_FORWARD_H
#define TD_MODEL_FORWARD_H

#include "model/cache.h"
#include "model/model.h"

typedef struct td_forward td_forward;

typedef struct {
    const td_model *model;
    td_device *dev;
    uint32_t first, last; /* layers, inclusive */
    const td_type_info *type_k, *type_v;
    uint32_t n_slots, n_ctx;
    bool is_all_logits; /* prefill chunks may ask for every row's logits */
    void (*progress)(void *user, uint64_t done, uint64_t total); /* of loading; may be NULL */
    void *user;
} td_forward_params;

typedef struct {
    uint32_t slot, position;
    uint32_t token; /* read by the first part only */
    bool is_output; /* the last part makes logits of this row */
} td_forward_row;

td_forward *td_forward_create(const td_forward_params *params, td_err *err);
void td_forward_destroy(td_forward **f);

/* Bytes on the device for such a part: weights, cache, activations. */
uint64_t td_forward_bytes(const td_forward_params *params);

td_cache *td_forward_cache(td_forward *f);
bool td_forward_is_first(const td_forward *f);
bool td_forward_is_last(const td_forward *f);

/* Input activations of a part that is not the first, [n_rows][n_embd], to be filled before run. */
float *td_forward_input(td_forward *f);
/* Copies x[n_rows][n_embd] there. */
void td_forward_copy_input(td_forward *f, const float *x, uint32_t n_rows);

/* Runs rows[n_rows] (verify: 1..64 of any sequences; prefill: 1..256 of one sequence). A sequence's
 * rows ascend in position and follow its cache's length; the cache grows by them. */
bool td_forward_run(td_forward *f, td_mode mode, const td_forward_row *rows, uint32_t n_rows,
                    td_err *err);

/* After a run. Last part: logits [n_out][n_vocab], in row order; else activations [n_rows][n_embd].
 */
const float *td_forward_output(td_forward *f);

#endif
