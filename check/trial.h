/* A trial: what one op must hold on one device, put to the test with one case (cases.h).
 *
 *   rows      each row alone, then in batches of every width at ever other places: the same bits
 *             (law 1); and nothing outside the rows and columns of the outputs is written
 *   repeats   the same recording many times over: the same bits (no race)
 *   values    the scalar device's: bit for bit on the host, within the case's tolerance on others
 *
 * One thread. */
#ifndef TD_CHECK_TRIAL_H
#define TD_CHECK_TRIAL_H

#include "check/cases.h"

typedef struct {
    bool is_ok;
    bool is_error;    /* it could not be run: err's message */
    char reason[512]; /* where it is not ok */
    uint32_t n_repeats;
    double worst; /* of the tolerance: the largest deviation from the scalar device; 0..1 */
    double seconds;
} td_trial;

/* n_repeats: of the same recording. */
void td_trial_run(td_device *dev, td_device *scalar, const td_case *c, uint32_t n_repeats,
                  td_trial *out);

#endif
