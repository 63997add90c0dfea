/* td_link over ZeroMQ; with auth.c and keys.c, which bring its keys, all that knows it.
 *
 * The worker's bound socket is a ROUTER, so that a second coordinator can be told that it is
 * refused instead of sharing the first one's stream; the coordinator's is a DEALER. A ROUTER names
 * its peers by up to 255 bytes that the peer may choose; the names it makes up itself have five.
 * Here a name of up to seven bytes is packed into a td_route and longer ones are dropped: no
 * table, nothing to fill up.
 *
 * High-water marks are small (16 messages), so that a slow peer is felt soon; a burst, such as
 * a long prompt in FEED messages, waits in a byte ring of our own. The ring keeps the order per
 * link: as long as it holds anything, later messages join its end.
 *
 * The library's own heartbeats are off. Where a peer dies while more than the mark lies unread,
 * their timer meets a connection that is half gone, and libzmq (4.3.4 and later) ends the process.
 * The kernel finds dead cables as well, and peer.h pings by itself. */
#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "transport/auth.h"
#include "transport/endpoint.h"
#include "transport/link_gate.h"
#include "transport/link_impl.h"
#include "transport/link_watch.h"
#include "transport/wire.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#define LINGER_CLEAN_MS 1000
#define HANG_UP_MS      100
#define REFUSED_US      1000000u /* until the next try: our key may have been allowed meanwhile */
#define ROUTE_NAME_MAX  7
#define DROPS_PER_RECV  64 /* what one recv may pass over before its caller gets a say again */
#define SEALED_BYTES    33 /* what CURVE adds to a message: name, nonce, flags, authenticator */
#define RECORD_BYTES    12 /* before each queued message: route u64, length u32, host order */

struct td_transport {
    void *context;
    _Atomic uint32_t n_links, n_watches;
    const char *key; /* our own pair's name; NULL: the only one there is, where one is needed */
    pthread_mutex_t lock; /* of: */
    td_auth *auth;        /* since the first link that wants it */
};

typedef struct {
    td_link base;
    td_transport *transport;
    void *socket;
    void *watch;  /* tells of connections that broke; NULL: nobody does */
    td_gate gate; /* of a bound tcp socket */
    bool is_router, is_ipv6, is_inproc, is_tcp;
    bool is_secure;  /* by CURVE, with: */
    td_key_pair own; /* wiped at close */
    char server_key[TD_KEY_TEXT];
    bool is_refused;     /* the handshake failed, and the library tries no more by itself */
    uint64_t refused_us; /* when */
    uint32_t told_event; /* what of that was last logged */
    char address[TD_ENDPOINT_MAX];
    struct stat file; /* of a bound ipc socket, to remove it and no other; 0 inode: none */
    uint8_t *ring;    /* [TD_LINK_QUEUE_BYTES] */
    size_t ring_head; /* offset of the oldest byte; their count is base.stats.n_queued_bytes */
} zmq_link;

static uint64_t now_us(void)
{
    td_clock clock = td_clock_real();
    return td_clock_now_us(&clock);
}

/* --- Context -------------------------------------------------------------------------------- */

td_transport *td_transport_create(td_err *err)
{
    int major, minor, patch;
    zmq_version(&major, &minor, &patch);
    if (major * 10000 + minor * 100 + patch < 40303) {
        td_err_set(err, TD_E_UNAVAILABLE,
                   "libzmq is %d.%d.%d; allowed: 4.3.3 and later (CVE-2020-15166)", major, minor,
                   patch);
        return NULL;
    }
    td_transport *t = td_alloc(1, sizeof *t, err);
    if (!t)
        return NULL;
    t->context = zmq_ctx_new();
    if (!t->context) {
        td_err_set(err, TD_E_NOMEM, "no ZeroMQ context: %s", zmq_strerror(errno));
        td_free(t);
        return NULL;
    }
    pthread_mutex_init(&t->lock, NULL);
    zmq_ctx_set(t->context, ZMQ_MAX_SOCKETS, 64);
    zmq_ctx_set(t->context, ZMQ_MAX_MSGSZ, (int)(TD_WIRE_MESSAGE_MAX + SEALED_BYTES));
    return t;
}

void td_transport_set_key(td_transport *t, const char *name) { t->key = name; }

void td_transport_destroy(td_transport **t)
{
    if (!*t)
        return;
    TD_ASSERT(atomic_load(&(*t)->n_links) == 0); /* an open socket would make the next lines wait */
    td_auth_stop(&(*t)->auth);
    pthread_mutex_destroy(&(*t)->lock);
    while (zmq_ctx_term((*t)->context) != 0 && errno == EINTR)
        ;
    td_free(*t);
    *t = NULL;
}

/* --- Socket --------------------------------------------------------------------------------- */

static bool set_option(void *socket, int option, int value, td_err *err)
{
    if (zmq_setsockopt(socket, option, &value, sizeof value) == 0)
        return true;
    return td_err_set(err, TD_E_IO, "ZeroMQ socket option %d = %d: %s", option, value,
                      zmq_strerror(errno));
}

static bool set_options(const zmq_link *l, td_err *err)
{
    static const struct {
        int option, value;
    } options[] = {
        {ZMQ_LINGER, 0},           /* td_link_close raises it for a clean end */
        {ZMQ_SNDHWM, 16},          /* messages */
        {ZMQ_RCVHWM, 16},          /* messages */
        {ZMQ_HANDSHAKE_IVL, 5000}, /* ms; a silent stranger is hung up on */
        {ZMQ_TCP_KEEPALIVE, 1},
        {ZMQ_TCP_KEEPALIVE_IDLE, 5},  /* s; finds a dead cable, not hung work: see peer.h */
        {ZMQ_TCP_KEEPALIVE_INTVL, 2}, /* s */
        {ZMQ_TCP_KEEPALIVE_CNT, 3},
        {ZMQ_IMMEDIATE, 1},            /* nothing is queued towards a peer that is not there */
        {ZMQ_RECONNECT_IVL, 100},      /* ms */
        {ZMQ_RECONNECT_IVL_MAX, 5000}, /* ms */
        {ZMQ_BACKLOG,
         64}, /* a full one makes the next wait a second; link_gate.h bounds the rest */
    };
    for (size_t i = 0; i < TD_COUNT(options); i++)
        if (!set_option(l->socket, options[i].option, options[i].value, err))
            return false;
    /* Per part, and not applied to inproc; recv checks again. Encrypted ones are longer. */
    int64_t max_bytes = TD_WIRE_MESSAGE_MAX + (l->is_secure ? SEALED_BYTES : 0);
    if (zmq_setsockopt(l->socket, ZMQ_MAXMSGSIZE, &max_bytes, sizeof max_bytes) != 0)
        return td_err_set(err, TD_E_IO, "ZeroMQ message limit: %s", zmq_strerror(errno));
    if (l->is_router && !set_option(l->socket, ZMQ_ROUTER_MANDATORY, 1, err))
        return false; /* without it a message to a peer that has gone vanishes silently */
    return !l->is_ipv6 || set_option(l->socket, ZMQ_IPV6, 1, err);
}

/* What each side wants to hear of its connections. */
static void watch_socket(zmq_link *l)
{
    int events = ZMQ_EVENT_DISCONNECTED;
    if (!l->is_router)
        events |= ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
                  ZMQ_EVENT_HANDSHAKE_FAILED_AUTH;
    else if (l->is_tcp)
        events |= ZMQ_EVENT_ACCEPTED;
    td_gate_open(&l->gate, l->is_secure);
    if (!l->is_inproc)
        l->watch = td_watch_open(l->transport->context, l->socket,
                                 atomic_fetch_add(&l->transport->n_watches, 1), events);
}

static bool secure_socket(zmq_link *l, td_err *err)
{
    if (!l->is_secure)
        return true;
    return l->is_router ? td_auth_secure_bound(l->socket, &l->own, err)
                        : td_auth_secure_connecting(l->socket, &l->own, l->server_key, err);
}

static bool open_socket(zmq_link *l, td_err *err)
{
    l->socket = zmq_socket(l->transport->context, l->is_router ? ZMQ_ROUTER : ZMQ_DEALER);
    if (!l->socket)
        return td_err_set(err, TD_E_IO, "endpoint %s: no socket: %s", l->address,
                          zmq_strerror(errno));
    l->is_refused = false;
    if (!set_options(l, err) || !secure_socket(l, err))
        return false;
    watch_socket(l);
    if (l->is_router ? zmq_bind(l->socket, l->address) : zmq_connect(l->socket, l->address))
        return td_err_set(err, TD_E_UNAVAILABLE, "endpoint %s: cannot %s: %s", l->address,
                          l->is_router ? "bind" : "connect", zmq_strerror(errno));
    return true;
}

static void close_socket(zmq_link *l, int linger_ms)
{
    if (!l->socket)
        return;
    td_watch_close(l->socket, &l->watch);
    zmq_setsockopt(l->socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms);
    zmq_close(l->socket);
    l->socket = NULL;
}

/* --- Queue ---------------------------------------------------------------------------------- */

static void ring_write(zmq_link *l, const void *bytes, size_t n)
{
    size_t at = (l->ring_head + l->base.stats.n_queued_bytes) % TD_LINK_QUEUE_BYTES;
    size_t first = n < TD_LINK_QUEUE_BYTES - at ? n : TD_LINK_QUEUE_BYTES - at;
    memcpy(l->ring + at, bytes, first);
    memcpy(l->ring, (const uint8_t *)bytes + first, n - first);
    l->base.stats.n_queued_bytes += n;
}

/* Copies n bytes that lie `offset` behind the head. */
static void ring_peek(const zmq_link *l, size_t offset, void *out, size_t n)
{
    TD_ASSERT(offset + n <= l->base.stats.n_queued_bytes);
    size_t at = (l->ring_head + offset) % TD_LINK_QUEUE_BYTES;
    size_t first = n < TD_LINK_QUEUE_BYTES - at ? n : TD_LINK_QUEUE_BYTES - at;
    memcpy(out, l->ring + at, first);
    memcpy((uint8_t *)out + first, l->ring, n - first);
}

static bool enqueue(zmq_link *l, td_route route, const void *bytes, size_t n_bytes, td_err *err)
{
    size_t n_free = TD_LINK_QUEUE_BYTES - l->base.stats.n_queued_bytes;
    if (n_free < n_bytes + RECORD_BYTES)
        return td_err_set(err, TD_E_AGAIN,
                          "endpoint %s: the peer is slow: %zu bytes wait for it; allowed: %u",
                          l->address, l->base.stats.n_queued_bytes, TD_LINK_QUEUE_BYTES);
    uint32_t n = (uint32_t)n_bytes; /* <= TD_WIRE_MESSAGE_MAX */
    ring_write(l, &route, sizeof route);
    ring_write(l, &n, sizeof n);
    ring_write(l, bytes, n_bytes);
    return true;
}

/* --- Send ----------------------------------------------------------------------------------- */

static size_t unpack_route(td_route route, uint8_t name[ROUTE_NAME_MAX])
{
    for (int i = 0; i < ROUTE_NAME_MAX; i++)
        name[i] = (uint8_t)(route >> (8 * i));
    return (size_t)(route >> 56);
}

static bool pack_route(const uint8_t *name, size_t n, td_route *route)
{
    if (n < 1 || n > ROUTE_NAME_MAX)
        return false;
    *route = (uint64_t)n << 56;
    for (size_t i = 0; i < n; i++)
        *route |= (uint64_t)name[i] << (8 * i);
    return true;
}

/* 0, or the errno. Takes the message over on success only. */
static int send_now(zmq_link *l, td_route route, zmq_msg_t *msg)
{
    if (l->is_router) {
        uint8_t name[ROUTE_NAME_MAX];
        size_t n = unpack_route(route, name);
        if (n < 1 || n > ROUTE_NAME_MAX)
            return EHOSTUNREACH;
        while (zmq_send(l->socket, name, n, ZMQ_DONTWAIT | ZMQ_SNDMORE) < 0)
            if (errno != EINTR)
                return errno;
    }
    while (zmq_msg_send(msg, l->socket, ZMQ_DONTWAIT) < 0)
        if (errno != EINTR)
            return errno;
    l->base.stats.n_sent++;
    return 0;
}

/* Sends from the ring until it is empty or the peer is slow. */
static void zmq_link_flush(td_link *base)
{
    zmq_link *l = (zmq_link *)base;
    while (l->socket && base->stats.n_queued_bytes) {
        td_route route;
        uint32_t n;
        zmq_msg_t msg;
        ring_peek(l, 0, &route, sizeof route);
        ring_peek(l, sizeof route, &n, sizeof n);
        if (zmq_msg_init_size(&msg, n) != 0)
            return; /* no memory: the ring keeps it for later */
        ring_peek(l, RECORD_BYTES, zmq_msg_data(&msg), n);
        int e = send_now(l, route, &msg);
        if (e != 0)
            zmq_msg_close(&msg);
        if (e == EAGAIN)
            return;
        if (e != 0)
            base->stats.n_unroutable++;
        l->ring_head = (l->ring_head + RECORD_BYTES + n) % TD_LINK_QUEUE_BYTES;
        base->stats.n_queued_bytes -= RECORD_BYTES + n;
    }
}

static bool zmq_link_send(td_link *base, td_route route, const void *bytes, size_t n_bytes,
                          bool may_queue, td_err *err)
{
    zmq_link *l = (zmq_link *)base;
    if (l->is_refused && now_us() - l->refused_us >= REFUSED_US)
        close_socket(l, 0);
    if (!l->socket && !open_socket(l, err)) { /* a reset that failed is tried again here */
        close_socket(l, 0);
        return false;
    }
    zmq_link_flush(base);
    int e = EAGAIN;
    if (!base->stats.n_queued_bytes) {
        zmq_msg_t msg;
        if (zmq_msg_init_size(&msg, n_bytes) != 0)
            return td_err_set(err, TD_E_NOMEM, "endpoint %s: a message of %zu bytes", l->address,
                              n_bytes);
        memcpy(zmq_msg_data(&msg), bytes, n_bytes);
        e = send_now(l, route, &msg);
        if (e != 0)
            zmq_msg_close(&msg);
    }
    if (e == 0)
        return true;
    if (e == EAGAIN && may_queue)
        return enqueue(l, route, bytes, n_bytes, err);
    if (e == EAGAIN)
        return td_err_set(err, TD_E_AGAIN, "endpoint %s: the peer is slow or not there",
                          l->address);
    if (e == EHOSTUNREACH) {
        base->stats.n_unroutable++;
        return td_err_set(err, TD_E_UNAVAILABLE, "endpoint %s: the peer has gone", l->address);
    }
    return td_err_set(err, TD_E_IO, "endpoint %s: send: %s", l->address, zmq_strerror(e));
}

/* --- Receive -------------------------------------------------------------------------------- */

/* The next part; 0, or the errno. */
static int recv_part(void *socket, zmq_msg_t *part)
{
    while (zmq_msg_recv(part, socket, ZMQ_DONTWAIT) < 0)
        if (errno != EINTR)
            return errno;
    return 0;
}

/* Throws away the rest of a message: a message arrives whole, so this ends. */
static void skip_parts(void *socket, zmq_msg_t *part)
{
    while (zmq_msg_more(part) && recv_part(socket, part) == 0)
        ;
}

/* Takes one message off the socket; *n_bytes stays 0 for one that is dropped and counted. */
static int recv_one(zmq_link *l, void *buffer, size_t *n_bytes, td_route *route)
{
    td_link_stats *stats = &l->base.stats;
    zmq_msg_t part;
    zmq_msg_init(&part);
    int e = recv_part(l->socket, &part);
    bool is_named = true;
    if (e == 0 && l->is_router) {
        is_named = pack_route(zmq_msg_data(&part), zmq_msg_size(&part), route);
        if (!zmq_msg_more(&part))
            is_named = false; /* a name and nothing else */
        else
            e = recv_part(l->socket, &part);
    }
    if (e == 0) {
        size_t n = zmq_msg_size(&part);
        if (zmq_msg_more(&part)) {
            stats->n_multipart++;
            skip_parts(l->socket, &part);
        } else if (!is_named) {
            stats->n_unroutable++;
        } else if (n < 1 || n > TD_WIRE_MESSAGE_MAX) {
            stats->n_bad_size++;
        } else {
            memcpy(buffer, zmq_msg_data(&part), n);
            *n_bytes = n;
            stats->n_received++;
        }
    }
    zmq_msg_close(&part);
    return e;
}

static bool zmq_link_recv(td_link *base, void *buffer, size_t *n_bytes, td_route *route,
                          td_err *err)
{
    zmq_link *l = (zmq_link *)base;
    if (!l->socket)
        return true;
    zmq_link_flush(base);
    for (int i = 0; i < DROPS_PER_RECV && *n_bytes == 0; i++) {
        int e = recv_one(l, buffer, n_bytes, route);
        if (e == EAGAIN)
            return true;
        if (e != 0)
            return td_err_set(err, TD_E_IO, "endpoint %s: receive: %s", l->address,
                              zmq_strerror(e));
    }
    return true;
}

/* A handshake that failed: what to do about it, once. */
static void tell_failure(zmq_link *l, uint32_t event)
{
    if (l->told_event == event)
        return;
    l->told_event = event;
    if (event == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH)
        td_log_warn("endpoint %s: the worker does not let our key in; on its machine: tandem keys "
                    "allow NAME '%s'",
                    l->address, l->own.public_key);
    else if (event == ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL)
        td_log_warn("endpoint %s: %s", l->address,
                    l->is_secure ? "who answers there has no keys (or is no tandem)"
                                 : "the worker wants keys: put its public key behind it, EP,KEY");
    else if (l->is_secure)
        td_log_warn("endpoint %s: the handshake broke off: has the worker another key than '%s'?",
                    l->address, l->server_key);
}

static bool zmq_link_was_cut(td_link *base)
{
    zmq_link *l = (zmq_link *)base;
    bool was_cut = false;
    td_watch_event e;
    while (l->watch && td_watch_read(l->watch, &e)) {
        was_cut |= e.event == ZMQ_EVENT_DISCONNECTED;
        if (e.event == ZMQ_EVENT_ACCEPTED)
            base->stats.n_turned_away += td_gate_accepted(&l->gate, (int)e.value);
        else if (e.event == ZMQ_EVENT_DISCONNECTED)
            td_gate_gone(&l->gate, (int)e.value);
        if (l->is_router || e.event == ZMQ_EVENT_DISCONNECTED)
            continue;
        if (e.event != ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL) {
            l->is_refused = true;
            l->refused_us = now_us();
        }
        tell_failure(l, e.event);
    }
    return was_cut;
}

/* --- The rest ------------------------------------------------------------------------------- */

static bool zmq_link_reset(td_link *base, td_err *err)
{
    zmq_link *l = (zmq_link *)base;
    base->stats.n_queued_bytes = 0;
    if (l->is_router)
        return true;
    close_socket(l, 0);
    if (open_socket(l, err))
        return true;
    close_socket(l, 0);
    return false;
}

/* libzmq 4.3.4 now and then drops what was sent just before the close, whatever the linger time. A
 * peer that has heard the last message hangs up, so that is waited for. */
static void wait_for_hang_up(zmq_link *l)
{
    zmq_link_was_cut(&l->base); /* what broke before does not count */
    zmq_pollitem_t item = {.socket = l->watch, .events = ZMQ_POLLIN};
    zmq_poll(&item, 1, HANG_UP_MS);
}

static void zmq_link_close(td_link *base, bool is_clean)
{
    zmq_link *l = (zmq_link *)base;
    if (is_clean)
        zmq_link_flush(base);
    if (is_clean && l->is_router && l->watch)
        wait_for_hang_up(l);
    struct stat st;
    const char *path = l->address + strlen("ipc://");
    if (l->file.st_ino && lstat(path, &st) == 0 && st.st_ino == l->file.st_ino &&
        st.st_dev == l->file.st_dev)
        unlink(path);
    close_socket(l, is_clean ? LINGER_CLEAN_MS : 0);
    atomic_fetch_sub(&l->transport->n_links, 1);
    td_key_wipe(&l->own);
    td_free(l->ring);
    td_free(l);
}

static const td_link_ops zmq_ops = {
    .send = zmq_link_send,
    .recv = zmq_link_recv,
    .reset = zmq_link_reset,
    .was_cut = zmq_link_was_cut,
    .flush = zmq_link_flush,
    .close = zmq_link_close,
};

/* --- Opening -------------------------------------------------------------------------------- */

/* The keys an endpoint wants; none in *own if it may do without. */
static bool find_keys(const char *text, const td_endpoint *e, bool is_bound, const char *name,
                      td_key_pair *own, char server_key[TD_KEY_TEXT], bool *is_secure, td_err *err)
{
    bool is_tcp = e->kind == TD_ENDPOINT_TCP;
    *is_secure = is_bound ? e->is_open || (is_tcp && name) : e->key != NULL;
    TD_ASSERT(*is_secure || !e->is_open);
    if (!*is_secure)
        return true;
    if (!td_keys_read_own(name, own, err) ||
        (!is_bound && !td_keys_read_public(e->key, server_key, err)))
        return td_err_prepend(err, "endpoint \"%.200s\"%s", text,
                              e->is_open ? ": off loopback both ends must show keys" : "");
    return true;
}

bool td_link_check(const char *endpoint, td_link_side side, const char *key, td_err *err)
{
    td_endpoint e;
    td_key_pair own = {0};
    char server_key[TD_KEY_TEXT];
    bool is_bound = side == TD_LINK_BIND, is_secure = false;
    if (!td_endpoint_parse(endpoint, is_bound, &e, err))
        return false;
    if (e.kind == TD_ENDPOINT_INPROC)
        return td_err_set(err, TD_E_USAGE,
                          "endpoint \"%.200s\": another process cannot reach it; allowed: "
                          "ipc://PATH, tcp://HOST:PORT",
                          endpoint);
    if (key && (e.kind != TD_ENDPOINT_TCP || (!is_bound && !e.key)))
        return td_err_set(err, TD_E_USAGE,
                          "--key %.64s: endpoint \"%.200s\" uses no keys; allowed: %s", key,
                          endpoint, is_bound ? "tcp://HOST:PORT" : "tcp://HOST:PORT,KEY");
    bool is_ok = find_keys(endpoint, &e, is_bound, key, &own, server_key, &is_secure, err) &&
                 td_endpoint_prepare(&e, is_bound, err);
    td_key_wipe(&own);
    return is_ok;
}

/* The handler of keys must be there before the socket that asks it. */
static bool start_auth(td_transport *t, td_err *err)
{
    pthread_mutex_lock(&t->lock);
    if (!t->auth)
        t->auth = td_auth_start(t->context, err);
    bool is_there = t->auth != NULL;
    pthread_mutex_unlock(&t->lock);
    return is_there;
}

/* The directory already keeps others out; the mode keeps them out of a socket moved elsewhere. */
static bool close_file_to_others(zmq_link *l, const char *path, td_err *err)
{
    if (chmod(path, 0600) != 0)
        return td_err_set(err, TD_E_IO, "endpoint %s: chmod 600: %s", l->address, strerror(errno));
    if (lstat(path, &l->file) != 0)
        l->file.st_ino = 0;
    return true;
}

td_link *td_link_open(td_transport *t, const char *endpoint, td_link_side side, td_err *err)
{
    td_endpoint e;
    bool is_bound = side == TD_LINK_BIND;
    if (!td_endpoint_parse(endpoint, is_bound, &e, err) || !td_endpoint_prepare(&e, is_bound, err))
        return NULL;
    zmq_link *l = td_alloc(1, sizeof *l, err);
    if (!l)
        return NULL;
    l->base.ops = &zmq_ops;
    l->transport = t;
    atomic_fetch_add(&t->n_links, 1);
    l->is_router = is_bound;
    l->is_ipv6 = e.is_ipv6;
    l->is_inproc = e.kind == TD_ENDPOINT_INPROC;
    l->is_tcp = e.kind == TD_ENDPOINT_TCP;
    memcpy(l->address, e.address, sizeof l->address);
    l->ring = td_alloc(TD_LINK_QUEUE_BYTES, 1, err);
    if (!l->ring ||
        !find_keys(endpoint, &e, is_bound, t->key, &l->own, l->server_key, &l->is_secure, err) ||
        (is_bound && l->is_secure && !start_auth(t, err)) || !open_socket(l, err))
        goto fail;
    if (is_bound && e.path && !close_file_to_others(l, e.path, err))
        goto fail;
    if (is_bound && l->is_secure && !td_auth_prove(t->auth, e.local, l->own.public_key, err))
        goto fail;
    return &l->base;
fail:
    zmq_link_close(&l->base, false);
    return NULL;
}

/* Has the socket a message? Asking also lets it do its own work. False with
 * errno set on failure. */
static bool observe(void *socket, bool *is_readable)
{
    int events = 0;
    size_t n_bytes = sizeof events;
    if (zmq_getsockopt(socket, ZMQ_EVENTS, &events, &n_bytes) != 0)
        return errno == EINTR;
    *is_readable = events & ZMQ_POLLIN;
    return true;
}

static bool descriptor_of(void *socket, int *fd)
{
    size_t n_bytes = sizeof *fd;
    return zmq_getsockopt(socket, ZMQ_FD, fd, &n_bytes) == 0;
}

/* zmq_poll looks at everything twice before it waits, which costs more than a round's messages. A
 * socket's descriptor tells that something happened since its events were last asked for, so they
 * are asked for before the wait and, where it became readable, behind it. */
bool td_link_zmq_poll(td_link_poll_item *items, size_t n_items, int64_t timeout_us,
                      bool *is_interrupted, td_err *err)
{
    struct pollfd fds[2 * TD_LINK_POLL_MAX];
    struct {
        td_link_poll_item *item;
        void *socket; /* NULL: a plain descriptor */
    } polled[2 * TD_LINK_POLL_MAX];
    nfds_t n = 0;
    *is_interrupted = false;
    for (size_t i = 0; i < n_items; i++) {
        td_link *base = items[i].link;
        if (base && base->clock)
            continue;
        void *sockets[] = {base ? ((zmq_link *)base)->socket : NULL,
                           base ? ((zmq_link *)base)->watch : NULL};
        for (size_t k = 0; k < TD_COUNT(sockets); k++) {
            bool is_plain = !base && k == 0, is_readable = false;
            if (!is_plain && !sockets[k])
                continue;
            fds[n] = (struct pollfd){.fd = items[i].fd, .events = POLLIN};
            if (!is_plain &&
                (!descriptor_of(sockets[k], &fds[n].fd) || !observe(sockets[k], &is_readable)))
                return td_err_set(err, TD_E_IO, "poll: %s", zmq_strerror(errno));
            items[i].is_readable |= is_readable;
            polled[n].item = &items[i];
            polled[n++].socket = sockets[k];
        }
        timeout_us = items[i].is_readable ? 0 : timeout_us;
    }
    struct timespec timeout = {timeout_us / 1000000, timeout_us % 1000000 * 1000};
    if (ppoll(fds, n, timeout_us < 0 ? NULL : &timeout, NULL) < 0) {
        *is_interrupted = errno == EINTR;
        return *is_interrupted || td_err_set(err, TD_E_IO, "poll: %s", strerror(errno));
    }
    for (nfds_t i = 0; i < n; i++) {
        bool *is_readable = &polled[i].item->is_readable;
        if (!polled[i].socket)
            *is_readable = fds[i].revents != 0;
        else if (fds[i].revents && !*is_readable && !observe(polled[i].socket, is_readable))
            return td_err_set(err, TD_E_IO, "poll: %s", zmq_strerror(errno));
    }
    return true;
}
