/* A test hook: TD_SABOTAGE=OP:bit|race|row makes one kind of op wrong on every device but the
 * scalar one, so that it can be tested whether a fault is found and named (check/check.h). An op of
 * that kind is followed by another, TD_OP_SPOIL, that spoils what it wrote: inside the program, as
 * a driver or a chip would. Nothing else is changed; without the variable nothing is there.
 * Private to kernels/. */
#ifndef TD_KERNELS_SABOTAGE_H
#define TD_KERNELS_SABOTAGE_H

#include "kernels/backend.h"

/* Reads the variable for a device that was just created. TD_E_USAGE: not OP:bit|race|row. */
bool td_sabotage_begin(td_device *dev, td_err *err);

/* What of an op is spoiled, and whether before it or after: what goes into a cache is spoiled on
 * the way there. */
typedef enum { TD_SABOTAGE_NONE, TD_SABOTAGE_BEFORE, TD_SABOTAGE_AFTER } td_sabotage_place;
td_sabotage_place td_sabotage_of(const td_device *dev, const td_op *op, td_op *spoil);

/* The host's TD_OP_SPOIL. */
void td_sabotage_run(const td_op *op, uint32_t n_rows);

#endif
