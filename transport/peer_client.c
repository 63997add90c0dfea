/* The coordinator's half: it greets, checks the vocabulary, pings, and begins anew after a loss. */
#include "transport/peer_impl.h"

#include "base/check.h"

#include <inttypes.h>
#include <stdio.h>

/* Back to greeting; the next HELLO goes out at `next_us`. */
static void begin_greeting(td_peer *p, uint64_t next_us)
{
    p->state = PEER_GREETING;
    p->session = 0;
    p->limits = td_wire_limits_widest();
    p->ping_us = p->params.ping_us;
    p->retry_us = p->params.retry_min_us;
    p->next_us = next_us;
    p->is_held = false;
}

/* Whatever lies in the old connection belongs to the lost session, so a new one is made. If that
 * fails the link stays closed, and the next HELLO tries again. */
static void lose(td_peer *p)
{
    td_link_reset(p->link, NULL);
    p->has_broken = false; /* what did is gone with it */
    begin_greeting(p, td_clock_now_us(p->clock) + p->params.retry_min_us);
}

static void refuse(td_peer *p, td_peer_event *ev, td_wire_refusal code)
{
    ev->refusal = code;
    begin_greeting(p, td_clock_now_us(p->clock) + p->params.retry_max_us);
}

static void send_query(td_peer *p)
{
    td_wire_msg m = {.type = TD_WIRE_HASH_QUERY};
    m.hash.a = p->low;
    m.hash.b = p->low + (p->high - p->low) / 2;
    td_peer_send_hello_family(p, p->route, p->session, &m);
    p->next_us = td_clock_now_us(p->clock) + p->ping_us;
}

/* The range is down to one token: say so to both sides. */
static void end_search(td_peer *p, td_peer_event *ev)
{
    uint32_t token = p->low;
    td_peer_set_event(ev, TD_PEER_REFUSED,
                      "the vocabularies differ; the first token that does is %" PRIu32
                      " (of %" PRIu32 " here, %" PRIu32 " at the draft worker)",
                      token, p->params.n_vocab, p->other.n_vocab);
    td_peer_send_refusal(p, p->route, p->session, TD_WIRE_REFUSE_VOCAB, ev->reason);
    refuse(p, ev, TD_WIRE_REFUSE_VOCAB);
    ev->first_token = token;
}

static void begin_search(td_peer *p, td_peer_event *ev)
{
    p->state = PEER_CHECKING;
    p->low = 0;
    p->high = p->other.n_hashed;
    p->n_missed = 0;
    if (p->high == 1)
        end_search(p, ev);
    else
        send_query(p);
}

/* Tokens below `low` agree, and a difference lies below `high`: halve what is between. */
static void take_hash(td_peer *p, const td_wire_hash *h, td_peer_event *ev)
{
    uint32_t middle = p->low + (p->high - p->low) / 2;
    if (h->a != p->low || h->b != middle) {
        p->info.n_replayed++; /* the answer to a question asked twice */
        return;
    }
    if (p->params.hash(p->params.hash_user, p->low, middle) == h->hash)
        p->low = middle;
    else
        p->high = middle;
    p->n_missed = 0;
    if (p->high - p->low == 1)
        end_search(p, ev);
    else
        send_query(p);
}

static void join(td_peer *p, td_peer_event *ev)
{
    uint64_t now_us = td_clock_now_us(p->clock);
    td_peer_agree(p);
    td_peer_begin_joined(p, now_us);
    p->n_sent = p->n_seen = 0;
    p->progress = 0;
    p->n_pending = 0;
    p->progress_us = now_us;
    /* The first numbered message tells the worker that we are content. */
    td_peer_send_numbered(p, (td_wire_msg){.type = TD_WIRE_PING}, NULL);
    td_peer_set_event(ev, TD_PEER_JOINED, "%s", "");
}

static void take_hello_ok(td_peer *p, const td_wire_hello *h, td_peer_event *ev)
{
    if (h->protocol != TD_WIRE_PROTOCOL || h->role != TD_WIRE_ROLE_DRAFT) {
        td_peer_set_event(ev, TD_PEER_REFUSED,
                          "the other end speaks protocol %" PRIu32
                          " in role %d; allowed: %u in role %d",
                          h->protocol, (int)h->role, TD_WIRE_PROTOCOL, TD_WIRE_ROLE_DRAFT);
        refuse(p, ev, TD_WIRE_REFUSE_PROTOCOL);
        return;
    }
    uint32_t n_common = td_min_u32(p->params.n_vocab, h->n_vocab);
    if (h->n_hashed != n_common) {
        td_peer_set_event(ev, TD_PEER_REFUSED,
                          "the draft worker hashed %" PRIu32 " tokens; allowed: %" PRIu32
                          ", the smaller vocabulary",
                          h->n_hashed, n_common);
        refuse(p, ev, TD_WIRE_REFUSE_PROTOCOL);
        return;
    }
    p->other = *h;
    if (td_peer_hash_prefix(p, n_common) == h->vocab_hash)
        join(p, ev);
    else
        begin_search(p, ev);
}

static void take_progress(td_peer *p, const td_wire_ping *pong)
{
    if (pong->progress != p->progress || pong->n_pending == 0)
        p->progress_us = td_clock_now_us(p->clock);
    p->progress = pong->progress;
    p->n_pending = pong->n_pending;
}

static void take_numbered(td_peer *p, const td_wire_msg *m, td_peer_event *ev)
{
    bool is_gap;
    if (p->state != PEER_JOINED) {
        p->info.n_unexpected++;
        return;
    }
    uint64_t n_expected = p->n_seen + 1;
    if (!td_peer_take_number(p, m, &is_gap)) {
        if (is_gap) {
            td_peer_set_event(ev, TD_PEER_LOST,
                              "messages of the draft worker were lost: number %" PRIu64
                              " came after %" PRIu64,
                              m->seq, n_expected - 1);
            lose(p);
        }
        return;
    }
    p->is_heard = true;
    if (m->type == TD_WIRE_DRAFT) {
        ev->type = TD_PEER_MESSAGE;
        ev->msg = *m;
    } else if (m->type == TD_WIRE_PONG) {
        take_progress(p, &m->ping);
    } else if (m->type == TD_WIRE_BYE) {
        td_peer_set_event(ev, TD_PEER_LOST, "the draft worker said goodbye");
        lose(p);
    } else {
        p->info.n_unexpected++;
    }
}

void td_peer_client_handle(td_peer *p, const td_wire_msg *m, td_peer_event *ev)
{
    if (m->session != p->session) { /* ours is 0 while there is none, and no message's is */
        p->info.n_foreign++;
        return;
    }
    if (!td_wire_is_hello_family(m->type)) {
        take_numbered(p, m, ev);
    } else if (m->type == TD_WIRE_REFUSE) {
        if (p->state == PEER_JOINED) {
            td_peer_set_event(ev, TD_PEER_LOST, "the draft worker ended the session: %s",
                              m->refuse.reason);
            lose(p);
        } else if (m->refuse.code == TD_WIRE_REFUSE_SESSION) {
            begin_greeting(p, td_clock_now_us(p->clock) + p->params.retry_min_us);
        } else {
            td_peer_set_event(ev, TD_PEER_REFUSED, "the draft worker refuses: %s",
                              m->refuse.reason);
            refuse(p, ev, m->refuse.code);
        }
    } else if (m->type == TD_WIRE_HELLO_OK && p->state == PEER_GREETING) {
        take_hello_ok(p, &m->hello, ev);
    } else if (m->type == TD_WIRE_HASH_REPLY && p->state == PEER_CHECKING) {
        take_hash(p, &m->hash, ev);
    } else {
        p->info.n_unexpected++;
    }
}

/* Each HELLO opens a session of a higher number, so that the worker can tell a late copy of an old
 * one from a new beginning. */
static void greet(td_peer *p, uint64_t now_us)
{
    p->n_hello++;
    p->session = (p->node & 0xffffffff00000000u) | p->n_hello;
    p->route = 0;
    td_wire_msg m = {.type = TD_WIRE_HELLO, .hello = td_peer_own_hello(p, p->params.n_vocab)};
    if (!td_peer_send_hello_family(p, p->route, p->session, &m)) {
        p->next_us = now_us + p->params.retry_min_us; /* nobody there yet: asking costs nothing */
        return;
    }
    p->next_us = now_us + p->retry_us;
    p->retry_us =
        p->retry_us < p->params.retry_max_us / 2 ? p->retry_us * 2 : p->params.retry_max_us;
}

static void ping(td_peer *p, uint64_t now_us, td_peer_event *ev)
{
    p->n_missed = p->is_heard ? 0 : p->n_missed + 1;
    p->is_heard = false;
    if (p->n_missed >= p->params.n_misses) {
        td_peer_set_event(ev, TD_PEER_LOST,
                          "the draft worker is silent: %" PRIu32
                          " pings in a row without an answer",
                          p->n_missed);
        lose(p);
        return;
    }
    if (p->params.hung_us && p->n_pending && now_us - p->progress_us >= p->params.hung_us) {
        td_peer_set_event(ev, TD_PEER_LOST,
                          "the draft worker answers but its work stands still: %" PRIu32
                          " pieces pending, no progress for %" PRIu64 " ms",
                          p->n_pending, (now_us - p->progress_us) / 1000);
        lose(p);
        return;
    }
    /* A ping that finds no room is a missed one: the next interval sees the silence. */
    td_peer_send_numbered(p, (td_wire_msg){.type = TD_WIRE_PING}, NULL);
    p->next_us = now_us + p->ping_us;
}

void td_peer_client_tick(td_peer *p, uint64_t now_us, td_peer_event *ev)
{
    if (p->state == PEER_GREETING) {
        greet(p, now_us);
    } else if (p->state == PEER_CHECKING) {
        if (++p->n_missed > p->params.n_misses)
            begin_greeting(p, now_us);
        else
            send_query(p);
    } else if (p->state == PEER_JOINED) {
        ping(p, now_us, ev);
    }
}

void td_peer_client_cut(td_peer *p, td_peer_event *ev)
{
    if (p->state == PEER_JOINED)
        td_peer_set_event(ev, TD_PEER_LOST, "the draft worker is gone: its connection broke");
    if (p->state != PEER_GREETING)
        lose(p);
}
