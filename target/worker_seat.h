/* A session of a stage worker with one coordinator: of layers of a target, or of a draft model. A
 * worker has a seat for either, at one link, and serves them in turns from the link's thread.
 *
 * Owns its models, weights and threads; borrows params, hello and link. Private to target/. One
 * thread. Errors: as td_stage_worker_run. */
#ifndef TD_TARGET_WORKER_SEAT_H
#define TD_TARGET_WORKER_SEAT_H

#include "target/worker.h"
#include "transport/stage_wire.h"

typedef struct td_worker_seat td_worker_seat;

#define TD_SEAT_ITEMS_MAX 4u

td_worker_seat *td_worker_seat_create(const td_stage_worker_params *params,
                                      td_stage_hello_ok *hello, bool is_draft, td_err *err);
/* Before anything comes. other: at the same link, whose devices are the same. */
void td_worker_seat_open(td_worker_seat *seat, td_link *link, td_worker_seat *other);
void td_worker_seat_destroy(td_worker_seat **seat);

void td_worker_seat_cut(td_worker_seat *seat); /* some connection of the link broke */
/* A message that came over the link, whoever's it is. */
void td_worker_seat_take(td_worker_seat *seat, const td_stage_msg *msg, td_route route);
/* One that is none of stage_wire.h: a draft's, if it is one. */
void td_worker_seat_take_draft(td_worker_seat *seat, const void *bytes, size_t n_bytes,
                               td_route route);

/* What to wait for beside the link: items[TD_SEAT_ITEMS_MAX], of which the first is its helper. */
size_t td_worker_seat_look(const td_worker_seat *seat, td_link_poll_item *items);
bool td_worker_seat_is_sending(const td_worker_seat *seat); /* a link had no room */
/* Goes on with what there is. is_woken: the helper's item was readable. False: the worker ends. */
bool td_worker_seat_step(td_worker_seat *seat, bool is_woken, td_err *err);
void td_worker_seat_leave(td_worker_seat *seat); /* says goodbye */

#endif
