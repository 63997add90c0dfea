/* What workers did with batches, for a trace: asked for now and then, as long as there is room for
 * the answers, so that whoever does not take them holds up nobody but the trace. */
#include "target/remote_impl.h"

#include "base/check.h"
#include "base/mem.h"

#include <stdio.h>

#define HELD_MAX (2u * TD_STAGES_MAX * TD_STAGE_EVENTS_MAX)

bool td_remotes_trace(td_remotes *r, td_err *err)
{
    pthread_mutex_lock(&r->lock);
    if (!r->events)
        r->events = td_alloc(HELD_MAX, sizeof *r->events, err);
    bool is_ok = r->events != NULL;
    for (uint32_t i = 0; i < r->n_sessions; i++)
        r->sessions[i].next_us = td_remote_now_us(r);
    pthread_mutex_unlock(&r->lock);
    td_remotes_wake(r);
    return is_ok;
}

void td_remote_ask_events(td_remotes *r, session *s)
{
    uint32_t n_coming = 0;
    for (uint32_t i = 0; i < r->n_sessions; i++)
        n_coming += r->sessions[i].is_asked ? TD_STAGE_EVENTS_MAX : 0;
    if (!r->events || s->state != SESSION_READY || s->is_asked ||
        r->n_events + n_coming + TD_STAGE_EVENTS_MAX > HELD_MAX)
        return;
    uint64_t now = td_remote_now_us(r);
    s->is_asked = td_stage_way_send(&s->way, &(td_stage_msg){.type = TD_STAGE_TRACE}, NULL);
    s->asked_us = s->is_asked ? now : s->asked_us;
}

/* By our clock; of a worker that tells nonsense any moment of it. */
static td_target_span ours(td_stage_span s, int64_t offset_us)
{
    return (td_target_span){.start_us = s.start_us - (uint64_t)offset_us,
                            .end_us = s.end_us - (uint64_t)offset_us};
}

void td_remote_take_events(td_remotes *r, session *s, const td_stage_events *told)
{
    uint64_t now = td_remote_now_us(r);
    td_err err = {0};
    if (!s->is_asked || told->n_parts != s->plan.n_parts) {
        td_remote_lose(r, s, "it tells of what was not asked");
        return;
    }
    s->is_asked = false;
    s->n_dropped = told->n_dropped;
    td_remote_offset clock = td_remote_clock_find(&s->clock, now);
    td_cursor c = td_cursor_begin("EVENTS", told->bytes, told->n_bytes, &err);
    for (uint32_t i = 0; i < told->n; i++) {
        td_stage_event e;
        bool is_ok = td_stage_read_event(&c, told->n_parts, &e); /* as was decoded */
        TD_ASSERT(is_ok && r->n_events < HELD_MAX);
        td_target_event *out = &r->events[(r->first_event + r->n_events++) % HELD_MAX];
        *out = (td_target_event){.batch = e.batch,
                                 .is_prefill = e.is_prefill,
                                 .is_skipped = e.is_skipped,
                                 .n_rows = e.n_rows,
                                 .n_in_bytes = e.n_in_bytes,
                                 .n_out_bytes = e.n_out_bytes,
                                 .host = (uint32_t)(s - r->sessions),
                                 .first_stage = s->plan.first_stage,
                                 .n_stages = told->n_parts,
                                 .received = ours(e.received, clock.offset_us),
                                 .sent = ours(e.sent, clock.offset_us)};
        for (uint32_t k = 0; k < told->n_parts; k++)
            out->spans[k] = ours(e.parts[k], clock.offset_us);
        uint64_t start = out->received.start_us;
        out->uncertainty_us =
            clock.uncertainty_us + td_remote_clock_drift_us(now > start ? now - start : 0);
    }
    if (!told->n_left)
        s->told_us = s->asked_us;
    if (told->n_left || s->told_us < r->wanted_us)
        td_remote_ask_events(r, s);
    pthread_cond_broadcast(&r->changed);
}

bool td_remotes_next_event(td_remotes *r, td_target_event *out)
{
    pthread_mutex_lock(&r->lock);
    bool is_any = r->n_events > 0;
    if (is_any) {
        *out = r->events[r->first_event];
        r->first_event = (r->first_event + 1) % HELD_MAX;
        r->n_events--;
    }
    pthread_mutex_unlock(&r->lock);
    return is_any;
}

bool td_remotes_await_events(td_remotes *r, uint64_t within_us)
{
    pthread_mutex_lock(&r->lock);
    uint64_t now = td_remote_now_us(r);
    if (!r->wanted_us)
        r->wanted_us = now;
    bool is_all = true;
    for (uint32_t i = 0; i < r->n_sessions; i++) {
        session *s = &r->sessions[i];
        bool is_due = s->state == SESSION_READY && s->told_us < r->wanted_us;
        is_all &= !is_due;
        s->next_us = is_due && !s->is_asked ? now : s->next_us;
    }
    if (!is_all && !r->n_events) {
        td_remotes_wake(r);
        td_remote_wait(r, within_us);
    }
    bool is_over = is_all && !r->n_events;
    pthread_mutex_unlock(&r->lock);
    return !is_over;
}

void td_remotes_get_clock(td_remotes *r, uint32_t worker, td_target_clock *out)
{
    pthread_mutex_lock(&r->lock);
    const session *s = &r->sessions[worker];
    td_remote_offset at = td_remote_clock_find(&s->clock, td_remote_now_us(r));
    *out = (td_target_clock){.offset_us = at.offset_us,
                             .uncertainty_us = at.uncertainty_us,
                             .trip_us = at.trip_us,
                             .n_trips = s->clock.n,
                             .n_dropped = s->n_dropped};
    snprintf(out->host, sizeof out->host, "%s", s->name);
    snprintf(out->endpoint, sizeof out->endpoint, "%s", s->endpoint);
    pthread_mutex_unlock(&r->lock);
}
