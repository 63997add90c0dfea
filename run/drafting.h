/* The run's side of a draft: starts one in a thread of this process or connects to a worker, keeps
 * the session, and turns the coordinator's draft actions into messages. A draft that is slow,
 * silent or lost only costs speed.
 *
 * One thread. Errors: starting a draft here may fail as drafter.h says; a worker elsewhere that
 * refuses (another vocabulary) is TD_E_UNAVAILABLE; one that is not there yet is waited for without
 * holding up the run. */
#ifndef TD_RUN_DRAFTING_H
#define TD_RUN_DRAFTING_H

#include "draft/drafter.h"
#include "model/model.h"
#include "run/run.h"
#include "transport/link.h"
#include "transport/peer.h"

typedef struct td_drafting td_drafting;

typedef enum {
    TD_DRAFTING_NONE,
    TD_DRAFTING_JOINED,
    TD_DRAFTING_LOST,
    TD_DRAFTING_DRAFT
} td_drafting_event_type;

typedef struct {
    td_drafting_event_type type;
    const char *reason; /* of LOST */
    uint32_t sequence, epoch, position, n;
    uint32_t busy_us;    /* of the draft's device */
    const uint32_t *ids; /* valid until the next step */
} td_drafting_event;

/* Loads a draft of this process and starts its thread, or prepares for a worker elsewhere. Comes
 * before the target is placed, so that the draft's memory is counted there. target: the model whose
 * vocabulary the draft shares or translates; borrowed. */
td_drafting *td_drafting_create(const td_run_params *params, const td_model *target, td_err *err);
/* Begins the session. n_ctx: the target's. */
bool td_drafting_connect(td_drafting *d, const td_model *target, uint32_t n_ctx,
                         const td_clock *clock, td_err *err);
void td_drafting_destroy(td_drafting **d);

td_link *td_drafting_link(td_drafting *d); /* to poll */
uint64_t td_drafting_next_us(const td_drafting *d);
bool td_drafting_step(td_drafting *d, td_drafting_event *event, td_err *err);

/* Sends; false (without error) when the session cannot take it, which counts as a loss: the caller
 * tells the coordinator, and JOINED follows when the session stands again. */
bool td_drafting_open(td_drafting *d, uint32_t sequence, uint64_t stream,
                      const td_sampling_params *sampling);
bool td_drafting_send(td_drafting *d, const td_action *action);

/* Is a position beyond the context of the session's draft? No proposal is to be sent for it. */
bool td_drafting_is_beyond(const td_drafting *d, uint32_t position);

/* Where the draft runs, for stats; "" when it is elsewhere. */
const char *td_drafting_device(const td_drafting *d);
/* Bytes a draft in this process takes on its device; 0 when it is elsewhere. */
uint64_t td_drafting_bytes(const td_drafting *d);
/* CPU time so far of the thread that holds the link's other end; 0 when it is elsewhere. */
uint64_t td_drafting_cpu_us(const td_drafting *d);
/* Of a draft in this process, exact once it is idle; NULL when it is elsewhere. */
const td_drafter_stats *td_drafting_stats(const td_drafting *d);

#endif
