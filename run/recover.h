/* A target that was lost in the middle of a run: the same placement is loaded again and everything
 * is replayed, so the text is what it would have been (laws 1 and 3).
 *
 * Blocks while it loads. Errors: the loss itself where nothing can be had in its place, or not the
 * same; TD_E_AGAIN after losses that nothing was committed between. */
#ifndef TD_RUN_RECOVER_H
#define TD_RUN_RECOVER_H

#include "run/setup.h"

/* Takes the error of a batch. False: the run ends with err. */
bool td_recover_target(session *r, const td_err *loss, td_err *err);

#endif
