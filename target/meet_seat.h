/* What a worker's way to another brings: the one dials as a run would and sends probes, the other
 * answers those that show the ticket. A worker can be at one end at a time, by its coordinator's
 * last MEET. Private to target/. One thread, the link's.
 *
 * Owns the link to the other. That it cannot be reached, or may not be dialled, is an answer. */
#ifndef TD_TARGET_MEET_SEAT_H
#define TD_TARGET_MEET_SEAT_H

#include "target/probes.h"
#include "target/worker.h"

typedef struct {
    uint64_t ticket;  /* 0: nobody meets anybody */
    td_link *next;    /* to the other; NULL: the way ends here */
    td_stage_way way; /* there, or, once a probe came, back */
    uint64_t n_seen;  /* messages that came over it */
    uint64_t begun_us;
    td_probes probes;
    td_err err; /* why there is none */
} td_meet_seat;

/* A MEET. */
void td_meet_seat_take(td_meet_seat *m, const td_stage_meet *what,
                       const td_stage_worker_params *params, uint64_t now_us);
/* A message with the ticket for its session, which came over the worker's own link. */
void td_meet_seat_answer(td_meet_seat *m, const td_stage_msg *msg, td_link *own, td_route route);
/* Goes on; true: it is over, and *out to be told. */
bool td_meet_seat_step(td_meet_seat *m, uint64_t now_us, td_stage_msg *out);
void td_meet_seat_end(td_meet_seat *m);

#endif
