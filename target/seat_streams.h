/* What flows through a worker that has its layers: jobs come in from the coordinator or from the
 * worker before, and go out to the worker behind or back to the coordinator.
 *
 * Two workers that have met say a word to each other every second, for nobody else sees a line
 * between them go dead; without one the session is over, as without one of the coordinator's.
 *
 * Owns the link to the worker behind; borrows everything else. Private to target/, one thread.
 * Errors, which end the session: TD_E_DATA where who sends is wrong, TD_E_DEVICE_LOST, those of
 * link.h. */
#ifndef TD_TARGET_SEAT_STREAMS_H
#define TD_TARGET_SEAT_STREAMS_H

#include "target/ring.h"
#include "target/stage_stream.h"
#include "target/trace_seat.h"

#define TD_SEAT_SILENT_US 5000000u /* without a word: whoever it is counts as lost */
#define TD_SEAT_CANCELLED 64u      /* batches that were cancelled before they came */

typedef struct {
    td_stage_way way; /* no link: they have not met */
    uint64_t n_seen, heard_us, told_us;
} td_seat_neighbour;

typedef struct {
    td_target *target;
    const td_stage_plan *plan;
    const td_stage_load *load;
    td_stage_way *way; /* to the coordinator, over the worker's link */
    td_transport *transport;
    const char *endpoint; /* the worker's */
    uint64_t shift_us;    /* times are told as of a clock that is so far ahead */
} td_seat_streams_params;

typedef struct {
    td_seat_streams_params at;
    td_link *next; /* to the worker behind; or NULL */
    td_seat_neighbour before, behind;
    td_stage_in in;
    td_stage_out out;
    td_stage_form form;
    job *sending; /* out of the ring, not given back; or NULL */
    bool is_put;
    uint64_t sending_us; /* since then */
    td_trace_seat trace;
    uint64_t cancelled[TD_SEAT_CANCELLED];
    uint32_t n_cancelled;
    uint64_t n_taken, n_done; /* batches, and what a head was asked */
    td_stage_found found;     /* not told yet, */
    bool has_found;           /* if so */
} td_seat_streams;

/* Whether a worker at `own` may dial what a coordinator calls the next one. */
bool td_seat_streams_check_next(const char *next, const char *own, td_err *err);

/* Once the layers are loaded. */
bool td_seat_streams_begin(td_seat_streams *s, const td_seat_streams_params *params, td_err *err);
void td_seat_streams_end(td_seat_streams *s);

/* Takes a STREAM or PIECE of the coordinator's, where no worker is before this one. */
bool td_seat_streams_take(td_seat_streams *s, const td_stage_msg *msg, td_err *err);
/* Takes a message with the ticket for its session: of the worker before, if it is its route. */
bool td_seat_streams_take_before(td_seat_streams *s, const td_stage_msg *msg, td_route route,
                                 uint64_t now_us, td_err *err);
/* A TRACE, which a later step answers. */
bool td_seat_streams_trace(td_seat_streams *s, td_err *err);
void td_seat_streams_cancel(td_seat_streams *s, uint64_t batch);
/* Sends finished jobs on, as far as the link takes them; hears the neighbours and minds that they
 * are there. */
bool td_seat_streams_step(td_seat_streams *s, uint64_t now_us, td_err *err);

#endif
