/* Experts dealt over devices (model/dealing.h). A seat holds its experts' weights of every layer
 * and takes pairs of a row and one of the experts that the row asks: what it computes of a pair
 * depends on nothing else (law 1), so the text does not depend on who has which expert, where
 * devices compute alike. A layer's turn: the host deals the pairs; every seat copies its pairs'
 * inputs, computes at the same time as the others, and leaves each output where the layers' device
 * will add up the row's in the order of its selection.
 *
 * Seat 0 is the layers' device and runs the shared expert first. Private to model/. */
#ifndef TD_MODEL_SEATS_H
#define TD_MODEL_SEATS_H

#include "model/forward_private.h"

/* The weights of seats but 0, all tensors and programs. Borrows f's weights. TD_E_NOMEM and others
 * as td_forward_create's. */
td_seats *td_seats_create(td_forward *f, td_err *err);
void td_seats_destroy(td_seats **seats);

/* Bytes of a seat's device beside what is of the part: of seat 0 tensors, of others weights too. */
uint64_t td_seats_bytes(const td_forward_params *params, uint32_t seat);

/* The turn of the i-th layer that has experts, between two programs of f: reads handed, experts and
 * expert_weights, fills in expert_out. beside: the shared expert's program, or NULL. */
bool td_seats_run(td_forward *f, td_mode mode, uint32_t i, td_program *beside, uint32_t n_rows,
                  td_err *err);

/* [n_layer][n_expert] of the model: rows so far that asked each expert. */
const uint64_t *td_seats_asked(const td_seats *seats);
/* [n_seats]: pairs that each has computed so far. */
const uint64_t *td_seats_done(const td_seats *seats);
void td_seats_add_load(const td_seats *seats, uint64_t *n_file_bytes);

#endif
