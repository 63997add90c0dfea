#include "target/meet_seat.h"

#include "base/text.h"
#include "target/seat_streams.h"

#include <math.h>
#include <stdio.h>

#define REACH_US 3000000u /* until the first answer */
#define ALL_US   4000000u /* then what there is has to do */
#define HEAR_MAX 16u      /* messages at once */

void td_meet_seat_end(td_meet_seat *m)
{
    td_link_close(&m->next, false);
    m->ticket = 0;
}

void td_meet_seat_take(td_meet_seat *m, const td_stage_meet *what,
                       const td_stage_worker_params *params, uint64_t now_us)
{
    td_meet_seat_end(m);
    *m = (td_meet_seat){.ticket = what->ticket, .begun_us = now_us};
    td_probes_begin(&m->probes, true);
    if (what->next[0] && td_seat_streams_check_next(what->next, params->endpoint, &m->err))
        m->next = td_link_open(params->transport, what->next, TD_LINK_CONNECT, &m->err);
    m->way = (td_stage_way){.link = m->next, .session = what->ticket};
}

/* Nothing that a worker would not ask, nor more of it. */
void td_meet_seat_answer(td_meet_seat *m, const td_stage_msg *msg, td_link *own, td_route route)
{
    static const uint8_t zeros[TD_STAGE_DATA_MAX];
    if (m->next || msg->type != TD_STAGE_PROBE || msg->probe.n_back != 1 ||
        msg->seq != m->n_seen + 1 || m->n_seen == TD_PROBES_ALL_MAX)
        return;
    if (!m->way.link)
        m->way = (td_stage_way){.link = own, .route = route, .session = m->ticket};
    if (route != m->way.route)
        return;
    m->n_seen++;
    td_stage_way_send(
        &m->way, &(td_stage_msg){.type = TD_STAGE_PROBED, .probe = {.n = 1, .bytes = zeros}}, NULL);
}

static bool hear(td_meet_seat *m)
{
    uint8_t bytes[TD_WIRE_MESSAGE_MAX];
    for (uint32_t i = 0; i < HEAR_MAX; i++) {
        size_t n_bytes;
        td_route route;
        td_stage_msg msg;
        if (!td_link_recv(m->next, bytes, &n_bytes, &route, &m->err))
            return false;
        if (!n_bytes)
            break;
        if (!td_stage_decode(bytes, n_bytes, &msg, NULL) || msg.session != m->ticket ||
            msg.type != TD_STAGE_PROBED || msg.seq != m->n_seen + 1)
            continue;
        m->n_seen++;
        td_probes_take(&m->probes);
        if (!td_probes_send(&m->probes, &m->way, &m->err))
            return false;
    }
    return true;
}

static uint32_t ns_of(double us) { return (uint32_t)fmin(us * 1e3, UINT32_MAX); }

bool td_meet_seat_step(td_meet_seat *m, uint64_t now_us, td_stage_msg *out)
{
    uint64_t most_us = m->n_seen ? ALL_US : REACH_US;
    *out = (td_stage_msg){.type = TD_STAGE_MET};
    if (m->err.code == TD_OK && !m->next)
        return true; /* it ends here, and is expected */
    if (m->err.code == TD_OK && td_probes_send(&m->probes, &m->way, &m->err) && hear(m) &&
        !td_probes_is_over(&m->probes) && now_us - m->begun_us < most_us)
        return false;
    if (m->err.code == TD_OK && !td_probes_end(&m->probes))
        td_err_set(&m->err, TD_E_UNAVAILABLE,
                   "no answer within %u s; is it there, by that name, and our key allowed?",
                   REACH_US / 1000000);
    out->met.idle_ns = ns_of(m->probes.found.idle_us);
    out->met.loaded_ns = ns_of(m->probes.found.loaded_us);
    out->met.bytes_per_s = (uint64_t)fmin(m->probes.found.there_bytes_per_s, 1e15);
    snprintf(out->met.why, sizeof out->met.why, "%.*s", (int)sizeof out->met.why - 1,
             m->err.message);
    td_text_make_printable(out->met.why);
    td_meet_seat_end(m);
    return true;
}
