/* What a worker did with batches, until its coordinator asks: nothing before the first TRACE, then
 * a ring of the last ones, so that memory is bounded; what has no room is counted. Private to
 * target/. One thread, the link's. */
#ifndef TD_TARGET_TRACE_SEAT_H
#define TD_TARGET_TRACE_SEAT_H

#include "target/stage_stream.h"

#define TD_TRACE_SEAT_MAX 4096u /* events */

typedef struct {
    td_stage_event *events; /* [TD_TRACE_SEAT_MAX]; NULL: nobody asked */
    uint32_t first, n;
    uint64_t n_dropped;
    uint8_t n_parts;
    bool is_asked; /* and not answered */
} td_trace_seat;

/* A TRACE: notes from the first one on. Where memory is short everything is dropped, and counted.
 * TD_E_DATA: the one before is not answered. */
bool td_trace_seat_take(td_trace_seat *t, uint8_t n_parts, td_err *err);
/* A batch that was sent on, whose parts are stages from first_stage on. */
void td_trace_seat_note(td_trace_seat *t, const micro_batch *b, uint32_t first_stage,
                        uint32_t n_out_bytes, td_target_span sent);
/* Answers, if it was asked: now, or by a later call where the link has no room. */
void td_trace_seat_answer(td_trace_seat *t, td_stage_way *way);
void td_trace_seat_end(td_trace_seat *t);

#endif
