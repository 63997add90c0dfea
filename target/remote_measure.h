/* The answers to what a planner asks of other machines (planning/far.h), from their stage workers:
 * devices and models over a session with each, held from the first question to the end, so that
 * nobody else's work is in the way. A worker that has not the model is sent the layers that are
 * measured, and keeps them. Links are measured with bytes that mean nothing.
 *
 *     td_remote_measure *m = td_remote_measure_create(hosts, n_hosts, key, ...);
 *     td_far far = td_remote_measure_far(m); ... td_plan_choose(&(td_plan_params){.far = &far, ...
 *
 * Borrows hosts and key. One thread. Errors: TD_E_USAGE (a host or device that is not known, stages
 * of a host that stand apart), TD_E_UNAVAILABLE (no worker there, a busy one, one that cannot
 * measure), TD_E_DEVICE_LOST, TD_E_AGAIN (a signal), TD_E_DATA (an answer that makes no sense). */
#ifndef TD_TARGET_REMOTE_MEASURE_H
#define TD_TARGET_REMOTE_MEASURE_H

#include "planning/far.h"
#include "planning/layout.h"

typedef struct td_remote_measure td_remote_measure;

/* Of params: model, SPECs (as a target's), hosts, key, trust, cache types and slots. */
td_remote_measure *td_remote_measure_create(const td_layout_params *params, td_err *err);
void td_remote_measure_destroy(td_remote_measure **m);
td_far td_remote_measure_far(td_remote_measure *m); /* as long as m */

#endif
