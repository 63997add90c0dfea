/* A target that was lost in the middle of a run is loaded again and everything is replayed, so the
 * text is what it would have been (laws 1 and 3). By what means, in this order:
 *
 * 1. the same devices, if they are there again within 2 s: a driver that was reset, a worker that
 *    was started again;
 * 2. spares, named beforehand, each in the place of a stage whose machine is not there;
 * 3. after 8 s the layers are shared out anew over what is there, if all is of one kind.
 *
 * Devices of other kinds round differently, so none of them is taken; what was loaded is held
 * against the run's identity before it is used. If nothing is to be had TD_TARGET_PATIENCE_US after
 * the loss, or after the last time that all was there, the run ends.
 *
 * Blocks meanwhile. Errors: the loss itself where it is no loss; TD_E_AGAIN where nothing can be
 * had, and after losses that nothing was committed between. */
#ifndef TD_RUN_RECOVER_H
#define TD_RUN_RECOVER_H

#include "run/setup.h"

/* Takes the error of a batch. False: the run ends with err. */
bool td_recover_target(session *r, const td_err *loss, td_err *err);

/* After batches that came back: notes when the first token came after a loss. */
void td_recover_note(session *r);

/* Before anything is loaded: refuses a spare that is there and could stand in for no stage, and
 * tells of one that is not there. Error: TD_E_USAGE. */
bool td_recover_check_spares(const session *r, td_err *err);

#endif
