/* What client and worker have in common: numbering, sending, and the step that feeds the halves
 * in peer_client.c and peer_worker.c with messages first and time second. Messages first, because
 * an answer that already waits must not count as a missed one, however late we come to look. */
#include "transport/peer.h"

#include "base/check.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/text.h"
#include "transport/peer_impl.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#define MESSAGES_PER_STEP 256 /* dropped ones, before the timers get a turn */

uint64_t td_peer_name(uint64_t seed) { return td_hash64(seed, "node", 4); }

static bool draw_node(td_peer *p, td_err *err)
{
    uint64_t seed = p->params.seed;
    while (seed == 0)
        if (getrandom(&seed, sizeof seed, 0) != sizeof seed && errno != EINTR)
            return td_err_set(err, TD_E_IO, "no randomness from the system: %s", strerror(errno));
    p->node = td_peer_name(seed);
    return true;
}

static uint32_t or_default(uint32_t value, uint32_t otherwise) { return value ? value : otherwise; }

td_peer *td_peer_create(const td_peer_params *params, td_link *link, const td_clock *clock,
                        td_err *err)
{
    TD_ASSERT(params->n_vocab >= 1 && params->n_vocab <= TD_WIRE_VOCAB_MAX);
    TD_ASSERT(params->n_ctx >= 1 && params->n_ctx <= TD_WIRE_POSITION_MAX);
    TD_ASSERT(params->max_draft >= 1 && params->max_draft <= TD_WIRE_DRAFT_MAX);
    TD_ASSERT(params->hash && params->build && strlen(params->build) <= TD_WIRE_BUILD_MAX);
    td_peer *p = td_alloc(1, sizeof *p, err);
    if (!p)
        return NULL;
    p->params = *params;
    p->params.ping_us = or_default(params->ping_us, 1000000);
    p->params.n_misses = or_default(params->n_misses, 4);
    p->params.retry_min_us = or_default(params->retry_min_us, 100000);
    p->params.retry_max_us = or_default(params->retry_max_us, 5000000);
    TD_ASSERT(p->params.ping_us >= TD_WIRE_PING_MIN_US && p->params.ping_us <= TD_WIRE_PING_MAX_US);
    snprintf(p->build, sizeof p->build, "%s", params->build);
    p->params.build = p->build;
    p->link = link;
    p->clock = clock;
    p->limits = td_wire_limits_widest();
    p->ping_us = p->params.ping_us;
    p->retry_us = p->params.retry_min_us;
    p->next_us = params->is_worker ? UINT64_MAX : td_clock_now_us(clock);
    p->whole_hash = params->hash(params->hash_user, 0, params->n_vocab);
    if (!draw_node(p, err))
        td_peer_destroy(&p);
    return p;
}

void td_peer_destroy(td_peer **peer)
{
    td_free(*peer);
    *peer = NULL;
}

void td_peer_set_event(td_peer_event *ev, td_peer_event_type type, const char *format, ...)
{
    ev->type = type;
    ev->first_token = UINT32_MAX;
    va_list args;
    va_start(args, format);
    vsnprintf(ev->reason, sizeof ev->reason, format, args);
    va_end(args);
    td_text_make_printable(ev->reason);
}

uint64_t td_peer_hash_prefix(const td_peer *p, uint32_t n)
{
    return n == p->params.n_vocab ? p->whole_hash : p->params.hash(p->params.hash_user, 0, n);
}

td_wire_hello td_peer_own_hello(const td_peer *p, uint32_t n_hashed)
{
    td_wire_hello h = {
        .protocol = TD_WIRE_PROTOCOL,
        .role = p->params.is_worker ? TD_WIRE_ROLE_DRAFT : TD_WIRE_ROLE_COORDINATOR,
        .node = p->node,
        .n_vocab = p->params.n_vocab,
        .n_hashed = n_hashed,
        .vocab_hash = td_peer_hash_prefix(p, n_hashed),
        .n_ctx = p->params.n_ctx,
        .max_draft = p->params.max_draft,
        .ping_us = p->params.ping_us,
    };
    memcpy(h.build, p->build, sizeof h.build);
    return h;
}

void td_peer_agree(td_peer *p)
{
    p->limits.n_vocab = td_min_u32(p->params.n_vocab, p->other.n_vocab);
    p->limits.n_ctx = td_min_u32(p->params.n_ctx, p->other.n_ctx);
    p->ping_us = td_max_u32(p->params.ping_us, p->other.ping_us);
}

void td_peer_begin_joined(td_peer *p, uint64_t now_us)
{
    p->state = PEER_JOINED;
    p->n_missed = 0;
    p->is_heard = true;
    p->next_us = now_us + p->ping_us;
    p->info.n_sessions++;
}

bool td_peer_send_hello_family(td_peer *p, td_route route, uint64_t session, td_wire_msg *m)
{
    td_wire_limits widest = td_wire_limits_widest();
    size_t n_bytes;
    m->session = session;
    m->seq = 0;
    td_err bug = {0};
    bool is_encoded = td_wire_encode(m, &widest, p->tx, sizeof p->tx, &n_bytes, &bug);
    TD_ASSERT(is_encoded);
    return td_link_try_send(p->link, route, p->tx, n_bytes, NULL);
}

bool td_peer_send_refusal(td_peer *p, td_route route, uint64_t session, td_wire_refusal code,
                          const char *reason)
{
    td_wire_msg m = {.type = TD_WIRE_REFUSE, .refuse.code = code};
    snprintf(m.refuse.reason, sizeof m.refuse.reason, "%s", reason);
    return td_peer_send_hello_family(p, route, session, &m);
}

bool td_peer_send_numbered(td_peer *p, td_wire_msg m, td_err *err)
{
    size_t n_bytes;
    m.session = p->session;
    m.seq = p->n_sent + 1;
    if (!td_wire_encode(&m, &p->limits, p->tx, sizeof p->tx, &n_bytes, err) ||
        !td_link_send(p->link, p->route, p->tx, n_bytes, err))
        return false;
    p->n_sent++;
    return true;
}

bool td_peer_take_number(td_peer *p, const td_wire_msg *m, bool *is_gap)
{
    *is_gap = m->seq > p->n_seen + 1;
    if (m->seq == p->n_seen + 1) {
        p->n_seen = m->seq;
        return true;
    }
    if (*is_gap)
        p->info.n_gaps++;
    else
        p->info.n_replayed++;
    return false;
}

bool td_peer_send(td_peer *p, const td_wire_msg *msg, td_err *err)
{
    bool is_ours = p->params.is_worker
                       ? msg->type == TD_WIRE_DRAFT
                       : msg->type == TD_WIRE_OPEN || msg->type == TD_WIRE_FEED ||
                             msg->type == TD_WIRE_PROPOSE || msg->type == TD_WIRE_CLOSE;
    TD_ASSERT(is_ours);
    if (p->state != PEER_JOINED)
        return td_err_set(err, TD_E_UNAVAILABLE, "no %s is connected",
                          p->params.is_worker ? "coordinator" : "draft worker");
    return td_peer_send_numbered(p, *msg, err);
}

bool td_peer_step(td_peer *p, td_peer_event *ev, td_err *err)
{
    *ev = (td_peer_event){.type = TD_PEER_NONE, .first_token = UINT32_MAX};
    if (p->state == PEER_CLOSED)
        return true;
    if (p->is_held) {
        p->is_held = false;
        ev->type = TD_PEER_MESSAGE;
        ev->msg = p->held_msg;
        return true;
    }
    /* Asked before receiving: what the connection still brought is there then, and goes first. */
    p->has_broken |= td_link_was_cut(p->link);
    bool is_drained = false;
    for (int i = 0; i < MESSAGES_PER_STEP && ev->type == TD_PEER_NONE; i++) {
        size_t n_bytes;
        td_route route;
        td_wire_msg m;
        if (!td_link_recv(p->link, p->rx, &n_bytes, &route, err))
            return false;
        is_drained = n_bytes == 0;
        if (is_drained)
            break;
        /* Before a session stands there is nothing to be held against: the widest limits. */
        if (!td_wire_decode(p->rx, n_bytes, &p->limits, p->ids, &m, NULL))
            p->info.n_malformed++;
        else if (p->params.is_worker)
            td_peer_worker_handle(p, &m, route, ev);
        else
            td_peer_client_handle(p, &m, ev);
    }
    uint64_t now_us = td_clock_now_us(p->clock);
    if (is_drained && p->has_broken) {
        p->has_broken = false;
        if (p->params.is_worker)
            td_peer_worker_cut(p, now_us);
        else
            td_peer_client_cut(p, ev);
    }
    if (ev->type == TD_PEER_NONE && now_us >= p->next_us) {
        if (p->params.is_worker)
            td_peer_worker_tick(p, now_us, ev);
        else
            td_peer_client_tick(p, now_us, ev);
    }
    return true;
}

uint64_t td_peer_next_us(const td_peer *p)
{
    if (p->state == PEER_CLOSED)
        return UINT64_MAX;
    return p->is_held ? 0 : p->next_us;
}

void td_peer_set_progress(td_peer *p, uint64_t progress, uint32_t n_pending)
{
    TD_ASSERT(p->params.is_worker);
    p->progress = progress;
    p->n_pending = n_pending;
}

void td_peer_fail(td_peer *p, const char *reason)
{
    char text[TD_WIRE_REASON_MAX + 1];
    snprintf(text, sizeof text, "%s", reason);
    td_text_make_printable(text);
    if (p->state == PEER_JOINED &&
        td_peer_send_refusal(p, p->route, p->session, TD_WIRE_REFUSE_SESSION, text))
        p->state = PEER_GREETING; /* it is over, no goodbye follows */
    td_peer_bye(p);
}

void td_peer_bye(td_peer *p)
{
    if (p->state == PEER_JOINED)
        td_peer_send_numbered(p, (td_wire_msg){.type = TD_WIRE_BYE}, NULL);
    p->state = PEER_CLOSED;
    p->session = 0;
}

td_peer_info td_peer_get_info(const td_peer *p)
{
    td_peer_info info = p->info;
    info.is_joined = p->state == PEER_JOINED;
    info.session = p->session;
    info.progress = p->progress;
    info.n_pending = p->n_pending;
    if (info.is_joined) {
        info.n_vocab = p->limits.n_vocab;
        info.n_ctx = p->limits.n_ctx;
        info.max_draft = td_min_u32(p->params.max_draft, p->other.max_draft);
        memcpy(info.build, p->other.build, sizeof info.build);
    }
    return info;
}
