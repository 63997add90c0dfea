#include "target/trace_seat.h"

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"

bool td_trace_seat_take(td_trace_seat *t, uint8_t n_parts, td_err *err)
{
    td_err why = {0};
    if (t->is_asked)
        return td_err_set(err, TD_E_DATA, "a TRACE before the answer to the last");
    if (!t->n_parts && !(t->events = td_alloc(TD_TRACE_SEAT_MAX, sizeof *t->events, &why)))
        td_log_warn("stage worker: no trace: %s", why.message);
    t->n_parts = n_parts;
    t->is_asked = true;
    return true;
}

static td_stage_span span_of(td_target_span s)
{
    return (td_stage_span){.start_us = s.start_us, .end_us = s.end_us};
}

void td_trace_seat_note(td_trace_seat *t, const micro_batch *b, uint32_t first_stage,
                        uint32_t n_out_bytes, td_target_span sent)
{
    if (!t->n_parts)
        return;
    if (!t->events || t->n == TD_TRACE_SEAT_MAX) {
        t->n_dropped++;
        return;
    }
    td_stage_event *e = &t->events[(t->first + t->n++) % TD_TRACE_SEAT_MAX];
    *e = (td_stage_event){.batch = b->id,
                          .is_prefill = b->mode == TD_MODE_PREFILL,
                          .is_skipped = b->is_skipped,
                          .n_rows = (uint16_t)b->n_rows,
                          .n_in_bytes = b->n_in_bytes,
                          .n_out_bytes = n_out_bytes,
                          .received = span_of(b->received),
                          .sent = span_of(sent)};
    for (uint32_t i = 0; i < t->n_parts; i++)
        e->parts[i] = span_of(b->spans[first_stage + i]);
}

void td_trace_seat_answer(td_trace_seat *t, td_stage_way *way)
{
    uint8_t bytes[TD_WIRE_MESSAGE_MAX];
    td_err why = {0};
    if (!t->is_asked)
        return;
    const uint32_t n = td_min_u32(t->n, TD_STAGE_EVENTS_MAX);
    td_cursor_out c = td_cursor_out_begin("EVENTS", bytes, sizeof bytes, &why);
    for (uint32_t i = 0; i < n; i++)
        td_stage_write_event(&c, t->n_parts, &t->events[(t->first + i) % TD_TRACE_SEAT_MAX]);
    td_stage_msg m = {.type = TD_STAGE_EVENTS,
                      .events = {.n_dropped = t->n_dropped,
                                 .n_left = t->n - n,
                                 .n_parts = t->n_parts,
                                 .n = (uint16_t)n,
                                 .bytes = bytes,
                                 .n_bytes = (size_t)c.pos}};
    if (!td_stage_way_send(way, &m, &why)) {
        if (why.code != TD_E_AGAIN)
            td_log_debug("stage worker: %s", why.message);
        return;
    }
    t->is_asked = false;
    t->first = (t->first + n) % TD_TRACE_SEAT_MAX;
    t->n -= n;
}

void td_trace_seat_end(td_trace_seat *t)
{
    td_free(t->events);
    *t = (td_trace_seat){0};
}
