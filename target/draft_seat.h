/* A draft model under a stage worker's roof: the draft worker of draft/worker.h in threads of its
 * own, whose messages come and go over the endpoint that stages are served at. A coordinator has it
 * loaded by a session of stage_wire.h, and speaks wire.h with it over a connection of its own,
 * which the ticket of LOAD tells: its upper half begins the session numbers of all its messages.
 *
 * Owns the drafter, the threads and the link to them; borrows the model and the worker's link.
 * Errors: those of drafter.h and link.h. Private to target/. open: any thread; all others the one
 * of the worker's link. */
#ifndef TD_TARGET_DRAFT_SEAT_H
#define TD_TARGET_DRAFT_SEAT_H

#include "model/prefix_store.h"
#include "planning/layout.h"
#include "transport/link.h"
#include "transport/stage_wire.h"

typedef struct td_draft_seat td_draft_seat;

/* What the wire could not know of a plan for a draft. TD_E_DATA. */
bool td_draft_seat_check(const td_stage_plan *plan, const td_model *model, td_err *err);

/* What it will take of the device, and what is there; spec: borrowed. */
bool td_draft_seat_weigh(const td_stage_plan *plan, const td_model *model, const char *spec,
                         td_layout_guest *out, uint64_t *budget_bytes, td_err *err);

/* Loads the model on a device and serves it. spec, prompts (or NULL): borrowed. link: answers go
 * there. number: another for each seat at the link, also for those that are closed. */
td_draft_seat *td_draft_seat_open(const td_stage_plan *plan, uint64_t ticket, const td_model *model,
                                  const char *spec, td_prefix_store *prompts,
                                  td_transport *transport, td_link *link, uint32_t number,
                                  td_err *err);
void td_draft_seat_close(td_draft_seat **seat);

td_link *td_draft_seat_link(td_draft_seat *seat); /* to poll */

/* Takes a message that came over the worker's link; false: it is none of this draft's. */
bool td_draft_seat_take(td_draft_seat *seat, const void *bytes, size_t n_bytes, td_route route);
/* Sends answers on, as far as the worker's link takes them. False when the draft failed. */
bool td_draft_seat_step(td_draft_seat *seat, td_err *err);
bool td_draft_seat_is_sending(const td_draft_seat *seat); /* the link had no room */

#endif
