/* The network between the machines of sim_threads.h: links as link_zmq.c has them, over pairs of
 * link_mem.c. A bound link has a connection for each that connects to its endpoint, with a route of
 * its own; one that connects does so again after its connection broke, and what it sends meanwhile
 * waits. Opening a link leads here by the linker; whatever uses one is as it is shipped.
 *
 * Connections fail as those of TCP do: they break at once or in silence, for one end or both, stand
 * still for a while, or cannot be made. What a single message suffers (it is lost, comes twice or
 * late) TCP would not let happen; link.h allows a peer that is numbered to expect no better. */
#ifndef TD_TESTS_SIM_NET_H
#define TD_TESTS_SIM_NET_H

#include "sim_threads.h"

#include "base/mem.h"
#include "transport/link_impl.h"
#include "transport/wire.h"

#define N_CONNECTIONS 2048u /* a machine that hangs may have many that nobody looks at */
#define N_LINKS       64u
#define RECONNECT_US  100000u
#define SMALL_BYTES   1024u

typedef struct net_link net_link;

typedef struct {
    net_link *owners[2]; /* who connected, who is bound; NULL: closed there */
    td_link *ends[2];
    uint32_t machines[2];
    td_route route;
    bool is_broken;
    uint64_t heard_us[2]; /* of a broken one: when an end hears of it */
    uint32_t n_under_way[2];
} connection;

typedef struct queued {
    struct queued *next;
    td_route route;
    size_t n_bytes;
    uint8_t bytes[];
} queued;

struct net_link {
    td_link base;
    bool is_bound;
    uint32_t machine;
    char endpoint[64];
    connection *c; /* of one that connects; or NULL */
    uint64_t retry_us;
    queued *first, **last; /* not sent yet */
};

static struct {
    connection connections[N_CONNECTIONS];
    net_link *links[N_LINKS];
    td_link_faults faults;                           /* of all connections between machines */
    uint64_t apart_until_us[N_MACHINES][N_MACHINES]; /* from, to */
    uint32_t room;         /* messages under way on a connection at most */
    uint64_t keepalive_us; /* until a kernel finds out that a connection is dead; or never */
    uint64_t n_connections;
    uint32_t n_places; /* of connections: those behind were never used */
    /* Sees every message between machines before it is sent, and may change its fate. */
    void (*on_message)(connection *c, int from_end, const uint8_t *bytes, size_t n_bytes,
                       td_link_fate *fate);
} net;

static bool is_between_machines(const connection *c) { return c->machines[0] != c->machines[1]; }

/* ---- connections ---- */

static void free_connection(connection *c)
{
    for (int i = 0; i < 2; i++)
        td_link_close(&c->ends[i], false);
    *c = (connection){0};
}

/* Nothing gets through any more; when each end hears of it. */
static void break_connection(connection *c, uint64_t first_us, uint64_t second_us)
{
    if (!c->is_broken) {
        td_link_cut(c->ends[0], true);
        c->n_under_way[0] = c->n_under_way[1] = 0;
        c->heard_us[0] = c->heard_us[1] = UINT64_MAX;
    }
    c->is_broken = true;
    c->heard_us[0] = earlier(c->heard_us[0], first_us);
    c->heard_us[1] = earlier(c->heard_us[1], second_us);
}

/* An end is gone for good; the other hears of it behind what is under way. */
static void close_end(connection *c, int end)
{
    c->owners[end] = NULL;
    if (!c->owners[!end]) {
        free_connection(c);
        return;
    }
    bool is_silent = c->is_broken; /* what closes it does not get through either */
    c->is_broken = true;
    if (!is_silent)
        c->heard_us[!end] = now_us() + net.faults.delay_max_us;
}

static void on_sent(void *user, int from_end, const uint8_t *bytes, size_t n_bytes,
                    td_link_fate *fate)
{
    connection *c = user;
    uint64_t until = net.apart_until_us[c->machines[from_end]][c->machines[!from_end]];
    if (!is_between_machines(c))
        *fate = (td_link_fate){.n_copies = 1};
    else if (net.on_message)
        net.on_message(c, from_end, bytes, n_bytes, fate);
    if (until > now_us())
        fate->delay_us += until - now_us();
    if (!c->is_broken)
        c->n_under_way[!from_end] += fate->n_copies;
}

static bool can_reach(uint32_t from, uint32_t to)
{
    return !sim.machines[from].is_dead && !sim.machines[to].is_dead &&
           net.apart_until_us[from][to] <= now_us() && net.apart_until_us[to][from] <= now_us();
}

static net_link *find_bound(const net_link *from)
{
    bool is_inside = !strncmp(from->endpoint, "inproc:", 7);
    for (uint32_t i = 0; i < N_LINKS; i++) {
        net_link *l = net.links[i];
        if (l && l->is_bound && !strcmp(l->endpoint, from->endpoint) &&
            (is_inside ? l->machine == from->machine : can_reach(from->machine, l->machine)))
            return l;
    }
    return NULL;
}

static void connect_now(net_link *l)
{
    net_link *to = find_bound(l);
    td_err err = {0};
    l->retry_us = now_us() + RECONNECT_US;
    if (!to)
        return;
    connection *c = net.connections;
    while (c->ends[0])
        CHECK(++c < net.connections + N_CONNECTIONS);
    net.n_places = td_max_u32(net.n_places, (uint32_t)(c - net.connections) + 1);
    *c = (connection){
        .owners = {l, to}, .machines = {l->machine, to->machine}, .route = ++net.n_connections};
    td_link_faults faults = net.faults;
    faults.seed = draw();
    faults.hook = on_sent;
    faults.user = c;
    CHECK(td_link_pair(&sim.clock, &faults, c->ends, &err));
    l->c = c;
}

/* A connection whose end has heard that it is broken, all that came before being read. */
static bool is_over(const connection *c, int end)
{
    return c->is_broken && c->heard_us[end] <= now_us() &&
           td_link_next_us(c->ends[end]) == UINT64_MAX;
}

/* ---- links ---- */

static connection *find_route(const net_link *l, td_route route)
{
    if (!l->is_bound)
        return l->c;
    for (uint32_t i = 0; i < net.n_places; i++)
        if (net.connections[i].owners[1] == l && net.connections[i].route == route)
            return &net.connections[i];
    return NULL;
}

/* Buffers take small messages by the hundred. A broken connection takes all: its kernel does not
 * know yet. */
static bool has_room(const net_link *l, const connection *c, size_t n_bytes)
{
    uint32_t most = n_bytes < SMALL_BYTES ? TD_LINK_MEM_MAX - 2 : net.room;
    return c->is_broken || c->n_under_way[l->is_bound ? 0 : 1] < most;
}

static bool send_on(net_link *l, connection *c, const void *bytes, size_t n_bytes)
{
    td_err err = {0};
    if (!td_link_send(c->ends[l->is_bound], 0, bytes, n_bytes, &err))
        CHECK_SAYING(err.code == TD_E_AGAIN, "%s", err.message);
    return err.code == TD_OK;
}

static void drop_first(net_link *l)
{
    queued *q = l->first;
    l->base.stats.n_queued_bytes -= q->n_bytes;
    l->first = q->next;
    if (!l->first)
        l->last = &l->first;
    free(q);
}

static void net_flush(td_link *base)
{
    net_link *l = (net_link *)base;
    if (!l->is_bound && !l->c && l->retry_us <= now_us())
        connect_now(l);
    while (l->first) {
        connection *c = find_route(l, l->first->route);
        if ((!c && !l->is_bound) || (c && (!has_room(l, c, l->first->n_bytes) ||
                                           !send_on(l, c, l->first->bytes, l->first->n_bytes))))
            return;
        drop_first(l);
    }
}

static bool net_send(td_link *base, td_route route, const void *bytes, size_t n_bytes,
                     bool may_queue, td_err *err)
{
    net_link *l = (net_link *)base;
    net_flush(base);
    connection *c = find_route(l, route);
    if (l->is_bound && (!c || is_over(c, 1)))
        return td_err_set(err, TD_E_UNAVAILABLE, "endpoint %s: the peer has gone", l->endpoint);
    if (!l->first && c && has_room(l, c, n_bytes) && send_on(l, c, bytes, n_bytes))
        return true;
    if (!may_queue || base->stats.n_queued_bytes + n_bytes > TD_LINK_QUEUE_BYTES)
        return td_err_set(err, TD_E_AGAIN, "endpoint %s: the peer is slow", l->endpoint);
    queued *q = malloc(sizeof *q + n_bytes);
    CHECK(q);
    *q = (queued){.route = route, .n_bytes = n_bytes};
    memcpy(q->bytes, bytes, n_bytes);
    *l->last = q;
    l->last = &q->next;
    base->stats.n_queued_bytes += n_bytes;
    return true;
}

/* Of a link's connections that have a message the one after `from`; NULL: none has. */
static connection *find_readable(const net_link *l, uint32_t from)
{
    if (!l->is_bound)
        return l->c && td_link_next_us(l->c->ends[0]) <= now_us() ? l->c : NULL;
    for (uint32_t i = 0; i < net.n_places; i++) {
        connection *c = &net.connections[(from + i) % net.n_places];
        if (c->owners[1] == l && td_link_next_us(c->ends[1]) <= now_us())
            return c;
    }
    return NULL;
}

static bool net_recv(td_link *base, void *buffer, size_t *n_bytes, td_route *route, td_err *err)
{
    net_link *l = (net_link *)base;
    net_flush(base);
    connection *c = find_readable(l, l->is_bound ? below(N_CONNECTIONS) : 0);
    if (!c)
        return true;
    bool is_ok = td_link_recv(c->ends[l->is_bound], buffer, n_bytes, route, err);
    if (c->n_under_way[l->is_bound])
        c->n_under_way[l->is_bound]--;
    *route = l->is_bound ? c->route : 0;
    base->stats.n_received++;
    return is_ok;
}

static bool net_was_cut(td_link *base)
{
    net_link *l = (net_link *)base;
    bool was_cut = false;
    for (uint32_t i = 0; i < net.n_places; i++) {
        connection *c = &net.connections[i];
        if (c->owners[l->is_bound] != l || !is_over(c, l->is_bound))
            continue;
        was_cut = true;
        if (l->c == c) {
            l->c = NULL;
            l->retry_us = now_us() + RECONNECT_US;
        }
        close_end(c, l->is_bound);
    }
    return was_cut;
}

static void hang_up(net_link *l)
{
    for (uint32_t i = 0; i < net.n_places; i++)
        if (net.connections[i].owners[l->is_bound] == l)
            close_end(&net.connections[i], l->is_bound);
    l->c = NULL;
    while (l->first)
        drop_first(l);
}

static bool net_reset(td_link *base, td_err *err)
{
    (void)err;
    net_link *l = (net_link *)base;
    if (!l->is_bound)
        hang_up(l);
    l->retry_us = now_us();
    return true;
}

static void net_close(td_link *base, bool is_clean)
{
    net_link *l = (net_link *)base;
    if (is_clean)
        net_flush(base);
    hang_up(l);
    for (uint32_t i = 0; i < N_LINKS; i++)
        if (net.links[i] == l)
            net.links[i] = NULL;
    free(l);
}

static const td_link_ops net_ops = {.send = net_send,
                                    .recv = net_recv,
                                    .reset = net_reset,
                                    .was_cut = net_was_cut,
                                    .flush = net_flush,
                                    .close = net_close};

static bool is_link_readable(td_link *base)
{
    net_link *l = (net_link *)base;
    net_flush(base);
    if (find_readable(l, 0))
        return true;
    for (uint32_t i = 0; i < net.n_places; i++)
        if (net.connections[i].owners[l->is_bound] == l &&
            is_over(&net.connections[i], l->is_bound))
            return true;
    return false;
}

static uint64_t link_next_us(const td_link *base)
{
    const net_link *l = (const net_link *)base;
    uint64_t next = UINT64_MAX;
    if (!l->is_bound && !l->c)
        next = l->retry_us;
    for (uint32_t i = 0; i < net.n_places; i++) {
        const connection *c = &net.connections[i];
        if (c->owners[l->is_bound] != l)
            continue;
        next = earlier(next, td_link_next_us(c->ends[l->is_bound]));
        if (c->is_broken && c->heard_us[l->is_bound] > now_us())
            next = earlier(next, c->heard_us[l->is_bound]);
    }
    return next;
}

/* ---- in the place of link_zmq.c ---- */

td_transport *__wrap_td_transport_create(td_err *err);
td_transport *__wrap_td_transport_create(td_err *err) { return td_alloc(1, 1, err); }

void __wrap_td_transport_destroy(td_transport **t);
void __wrap_td_transport_destroy(td_transport **t)
{
    td_free(*t);
    *t = NULL;
}

void __wrap_td_transport_set_key(td_transport *t, const char *name);
void __wrap_td_transport_set_key(td_transport *t, const char *name)
{
    (void)t;
    CHECK(!name);
}

td_link *__wrap_td_link_open(td_transport *t, const char *endpoint, td_link_side side, td_err *err);
td_link *__wrap_td_link_open(td_transport *t, const char *endpoint, td_link_side side, td_err *err)
{
    (void)t;
    (void)err;
    net_link *l = calloc(1, sizeof *l);
    CHECK(l && strlen(endpoint) < sizeof l->endpoint);
    l->base.ops = &net_ops;
    l->is_bound = side == TD_LINK_BIND;
    l->machine = (uint32_t)(here() - sim.machines);
    l->last = &l->first;
    l->retry_us = now_us();
    strcpy(l->endpoint, endpoint);
    uint32_t i = 0;
    while (net.links[i])
        CHECK(++i < N_LINKS);
    net.links[i] = l;
    return &l->base;
}

/* ---- faults ---- */

/* The machine's power or process is gone: nothing of it is heard any more. Where its kernel lives
 * on, others hear that; else they find out by themselves. */
static void kill_machine(uint32_t i, bool is_heard)
{
    tell_to_stop(i);
    for (uint32_t k = 0; k < net.n_places; k++) {
        connection *c = &net.connections[k];
        if (!c->ends[0] || !is_between_machines(c) || (c->machines[0] != i && c->machines[1] != i))
            continue;
        uint64_t heard = now_us() + (is_heard ? below(20000) : net.keepalive_us);
        break_connection(c, c->machines[0] == i ? UINT64_MAX : heard,
                         c->machines[1] == i ? UINT64_MAX : heard);
    }
}

/* Between two machines; an end hears of it or does not. */
static void break_between(uint32_t a, uint32_t b)
{
    for (uint32_t k = 0; k < net.n_places; k++) {
        connection *c = &net.connections[k];
        bool is_of_them = (c->machines[0] == a && c->machines[1] == b) ||
                          (c->machines[0] == b && c->machines[1] == a);
        if (c->ends[0] && is_of_them)
            break_connection(c, now_us() + (below(4) ? below(50000) : net.keepalive_us),
                             now_us() + (below(4) ? below(50000) : net.keepalive_us));
    }
}

/* Until then nothing comes from one to the other, and no connection can be made. */
static void part(uint32_t from, uint32_t to, uint64_t until_us)
{
    net.apart_until_us[from][to] = until_us;
}

static void net_begin(void)
{
    for (uint32_t i = 0; i < net.n_places; i++)
        CHECK(!net.connections[i].ends[0]);
    for (uint32_t i = 0; i < N_LINKS; i++)
        CHECK(!net.links[i]);
    memset(&net, 0, sizeof net);
}

#endif
