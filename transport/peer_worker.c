/* The draft worker's half: it answers. One coordinator at a time; a second one is refused, while
 * the first one's return under a new session number is welcome. A session is confirmed by its first
 * numbered message, since before that the client may still find that the vocabularies differ. */
#include "transport/peer_impl.h"

#include "base/check.h"

#include <inttypes.h>
#include <stdio.h>

#define CUT_PROBE_US 20000u /* the link's other thread has told the socket by then */

/* Nobody is there. `other.node` and `session` are kept, to know a late copy of an old HELLO. What
 * is queued is for somebody who does not read it, and would keep the next one waiting. */
static void be_alone(td_peer *p)
{
    td_link_reset(p->link, NULL);
    p->state = PEER_GREETING;
    p->limits = td_wire_limits_widest();
    p->next_us = UINT64_MAX;
    p->is_held = p->is_cut = false;
}

static void answer_hello(td_peer *p)
{
    td_wire_msg m = {.type = TD_WIRE_HELLO_OK};
    m.hello = td_peer_own_hello(p, td_min_u32(p->params.n_vocab, p->other.n_vocab));
    td_peer_send_hello_family(p, p->route, p->session, &m);
}

static void accept(td_peer *p, const td_wire_msg *m, td_route route)
{
    td_link_reset(p->link, NULL); /* what is queued belongs to the session that ends here */
    p->other = m->hello;
    p->session = m->session;
    p->route = route;
    p->n_sent = p->n_seen = 0;
    p->is_held = p->is_cut = false;
    td_peer_agree(p);
    /* With the larger vocabulary at the client only the client can compare. */
    uint32_t n = p->other.n_hashed;
    p->is_vocab_equal = n > p->params.n_vocab || td_peer_hash_prefix(p, n) == p->other.vocab_hash;
    p->state = PEER_CHECKING;
    p->n_missed = 0;
    p->is_heard = true;
    p->next_us = td_clock_now_us(p->clock) + p->ping_us;
    answer_hello(p);
}

static void take_hello(td_peer *p, const td_wire_msg *m, td_route route, td_peer_event *ev)
{
    char reason[TD_WIRE_REASON_MAX + 1];
    const td_wire_hello *h = &m->hello;
    if (h->protocol != TD_WIRE_PROTOCOL || h->role != TD_WIRE_ROLE_COORDINATOR) {
        snprintf(reason, sizeof reason, "protocol %" PRIu32 " in role %d; allowed: %u in role %d",
                 h->protocol, (int)h->role, TD_WIRE_PROTOCOL, TD_WIRE_ROLE_COORDINATOR);
        td_peer_send_refusal(p, route, m->session, TD_WIRE_REFUSE_PROTOCOL, reason);
        return;
    }
    bool is_known = p->session != 0 && h->node == p->other.node;
    if (is_known && m->session < p->session) {
        p->info.n_replayed++;
    } else if (is_known && m->session == p->session) {
        p->info.n_replayed++;
        if (p->state == PEER_CHECKING)
            answer_hello(p);
    } else if (!is_known && p->state != PEER_GREETING) {
        td_peer_send_refusal(p, route, m->session, TD_WIRE_REFUSE_BUSY,
                             "another coordinator is being served");
    } else {
        if (p->state == PEER_JOINED)
            td_peer_set_event(ev, TD_PEER_LOST, "the coordinator began a new session");
        accept(p, m, route);
    }
}

static void answer_query(td_peer *p, const td_wire_msg *m)
{
    if (m->hash.b > p->params.n_vocab) {
        p->info.n_unexpected++;
        return;
    }
    td_wire_msg reply = {.type = TD_WIRE_HASH_REPLY, .hash = m->hash};
    reply.hash.hash = p->params.hash(p->params.hash_user, m->hash.a, m->hash.b);
    td_peer_send_hello_family(p, p->route, p->session, &reply);
    p->is_heard = true;
}

/* A hole in the numbers: both ends must know that what follows is built on nothing. */
static void give_up(td_peer *p, const td_wire_msg *m, td_peer_event *ev)
{
    char reason[TD_WIRE_REASON_MAX + 1];
    snprintf(reason, sizeof reason,
             "messages of the coordinator were lost: number %" PRIu64 " came after %" PRIu64,
             m->seq, p->n_seen);
    td_peer_send_refusal(p, p->route, p->session, TD_WIRE_REFUSE_SESSION, reason);
    if (p->state == PEER_JOINED)
        td_peer_set_event(ev, TD_PEER_LOST, "%s", reason);
    be_alone(p);
}

static void dispatch(td_peer *p, const td_wire_msg *m, td_peer_event *ev)
{
    switch (m->type) {
    case TD_WIRE_PING: {
        td_wire_msg pong = {.type = TD_WIRE_PONG};
        pong.ping.progress = p->progress;
        pong.ping.n_pending = p->n_pending;
        td_peer_send_numbered(p, pong, NULL);
        break;
    }
    case TD_WIRE_OPEN:
    case TD_WIRE_FEED:
    case TD_WIRE_PROPOSE:
    case TD_WIRE_CLOSE:
        if (ev->type == TD_PEER_NONE) {
            ev->type = TD_PEER_MESSAGE;
            ev->msg = *m;
        } else { /* it was the message that confirmed the session */
            p->is_held = true;
            p->held_msg = *m;
        }
        break;
    case TD_WIRE_BYE:
        td_peer_set_event(ev, TD_PEER_LOST, "the coordinator said goodbye");
        be_alone(p);
        break;
    default:
        p->info.n_unexpected++;
    }
}

static void take_numbered(td_peer *p, const td_wire_msg *m, td_peer_event *ev)
{
    bool is_gap;
    if (!p->is_vocab_equal) {
        td_peer_send_refusal(p, p->route, p->session, TD_WIRE_REFUSE_VOCAB,
                             "the vocabularies differ");
        p->info.n_unexpected++;
        return;
    }
    if (!td_peer_take_number(p, m, &is_gap)) {
        if (is_gap)
            give_up(p, m, ev);
        return;
    }
    p->is_heard = true;
    if (p->state == PEER_CHECKING && m->type == TD_WIRE_BYE) {
        be_alone(p); /* came and went: nobody was told of it */
        return;
    }
    if (p->state == PEER_CHECKING) {
        td_peer_begin_joined(p, td_clock_now_us(p->clock));
        td_peer_set_event(ev, TD_PEER_JOINED, "%s", "");
    }
    dispatch(p, m, ev);
}

void td_peer_worker_handle(td_peer *p, const td_wire_msg *m, td_route route, td_peer_event *ev)
{
    if (m->type == TD_WIRE_HELLO) {
        take_hello(p, m, route, ev);
        return;
    }
    if (p->state == PEER_GREETING || m->session != p->session || route != p->route) {
        p->info.n_foreign++;
        /* Say so, or a client of the worker that died here would wait for its pings to fail. A
         * refusal is not answered, or two confused ends would never stop. */
        if (m->type != TD_WIRE_REFUSE && m->type != TD_WIRE_BYE)
            td_peer_send_refusal(p, route, m->session, TD_WIRE_REFUSE_SESSION,
                                 "no such session here");
        return;
    }
    if (!td_wire_is_hello_family(m->type)) {
        take_numbered(p, m, ev);
    } else if (m->type == TD_WIRE_HASH_QUERY) {
        answer_query(p, m);
    } else if (m->type == TD_WIRE_REFUSE) {
        bool was_joined = p->state == PEER_JOINED;
        td_peer_set_event(ev, was_joined ? TD_PEER_LOST : TD_PEER_REFUSED,
                          "the coordinator refuses: %s", m->refuse.reason);
        ev->refusal = m->refuse.code;
        be_alone(p);
    } else {
        p->info.n_unexpected++;
    }
}

/* Whose connection it was is seen when something is sent, once the link has taken note. */
void td_peer_worker_cut(td_peer *p, uint64_t now_us)
{
    if (p->state != PEER_JOINED)
        return;
    p->is_cut = true;
    if (p->next_us > now_us + CUT_PROBE_US)
        p->next_us = now_us + CUT_PROBE_US;
}

/* Is the coordinator still there? An answer to a ping that it did not send does it no harm. */
static void probe(td_peer *p, uint64_t now_us, td_peer_event *ev)
{
    td_err err = {0};
    td_wire_msg pong = {.type = TD_WIRE_PONG};
    pong.ping.progress = p->progress;
    pong.ping.n_pending = p->n_pending;
    p->is_cut = false;
    p->next_us = now_us + p->ping_us;
    if (td_peer_send_numbered(p, pong, &err) || err.code != TD_E_UNAVAILABLE)
        return;
    td_peer_set_event(ev, TD_PEER_LOST, "the coordinator is gone: its connection broke");
    be_alone(p);
}

/* One interval more than the client allows: the client pings, so it is the first to know. */
void td_peer_worker_tick(td_peer *p, uint64_t now_us, td_peer_event *ev)
{
    if (p->is_cut && p->state == PEER_JOINED) {
        probe(p, now_us, ev);
        return;
    }
    p->n_missed = p->is_heard ? 0 : p->n_missed + 1;
    p->is_heard = false;
    p->next_us = now_us + p->ping_us;
    if (p->n_missed < p->params.n_misses + 1)
        return;
    if (p->state == PEER_JOINED)
        td_peer_set_event(ev, TD_PEER_LOST, "the coordinator is silent for %" PRIu32 " intervals",
                          p->n_missed);
    be_alone(p);
}
