/* Both ends of a session against somebody who says anything, in any order, at any time.
 *
 * An input is {which end is tried u8} and orders of {kind u8, length u8 or u16, bytes}. A sealed
 * message passes the checksum; one that is fitted also gets the session the peer is in and the
 * number it waits for, so that orders reach into a session that stands. Behind them the stranger
 * goes, and a peer that means well must be able to join: garbage may end a session, never the end
 * that received it. */
#include "base/check.h"
#include "tests/fuzz/fuzz.h"
#include "tests/wire_samples.h"
#include "transport/peer.h"

#define N_VOCAB       1000u
#define N_CTX         20000u
#define STEPS_MAX     4096
#define CLEAN_US      (8 * (uint64_t)TD_WIRE_PING_MAX_US) /* he may have asked for rare pings */
#define ORDERS_MAX    256
#define CLOCK_STEP_US 20000u

typedef enum {
    ORDER_RAW,    /* bytes as they are */
    ORDER_SEALED, /* length and checksum made to fit */
    ORDER_FITTED, /* session and number too */
    ORDER_WAIT,   /* time goes by, as many 20 ms as the length says */
    ORDER_SAY,    /* the peer tried sends something of its own */
    ORDER_CUT,    /* the line is dead for a while */
    ORDER_COUNT
} order;

typedef struct {
    td_clock clock;
    td_link *ends[2]; /* [0] of the peer tried, [1] the stranger's */
    td_peer *peer;
    bool is_worker;
    uint64_t session, n_said; /* what the stranger takes the session for, and its own numbers */
    uint64_t node;
} scene;

static uint64_t hash(void *user, uint32_t a, uint32_t b)
{
    (void)user;
    return ((uint64_t)a << 32) + b + 1;
}

static td_peer *new_peer(scene *s, bool is_worker, td_link *link, uint64_t seed)
{
    td_peer_params params = {.is_worker = is_worker,
                             .n_vocab = N_VOCAB,
                             .n_ctx = N_CTX,
                             .max_draft = 16,
                             .build = "fuzz",
                             .hash = hash,
                             .seed = seed,
                             .ping_us = 100000,
                             .retry_min_us = 20000,
                             .retry_max_us = 200000};
    td_peer *p = td_peer_create(&params, link, &s->clock, NULL);
    TD_ASSERT(p);
    return p;
}

static void check_message(const scene *s, const td_wire_msg *m)
{
    const td_wire_draft *d = &m->draft;
    TD_ASSERT(s->is_worker ? m->type == TD_WIRE_OPEN || m->type == TD_WIRE_FEED ||
                                 m->type == TD_WIRE_PROPOSE || m->type == TD_WIRE_CLOSE
                           : m->type == TD_WIRE_DRAFT);
    if (m->type == TD_WIRE_DRAFT)
        for (uint32_t i = 0; i < d->n; i++)
            TD_ASSERT(d->ids[i] < N_VOCAB && d->n <= TD_WIRE_DRAFT_MAX);
    if (m->type == TD_WIRE_FEED)
        for (uint32_t i = 0; i < m->feed.n; i++)
            TD_ASSERT(m->feed.ids[i] < N_VOCAB && m->feed.position + m->feed.n <= N_CTX);
}

/* Until the peer has nothing more. */
static void step(scene *s, td_peer *p)
{
    for (int i = 0; i < STEPS_MAX; i++) {
        td_peer_event ev;
        TD_ASSERT(td_peer_step(p, &ev, NULL));
        if (ev.type == TD_PEER_NONE)
            return;
        if (ev.type == TD_PEER_MESSAGE && p == s->peer)
            check_message(s, &ev.msg);
    }
    TD_ASSERT(!"a peer comes to rest");
}

/* Takes what the peer tried has said, and learns its session from it. */
static void listen(scene *s)
{
    static uint8_t rx[TD_WIRE_MESSAGE_MAX];
    td_route route;
    size_t n = 1;
    while (n) {
        TD_ASSERT(td_link_recv(s->ends[1], rx, &n, &route, NULL));
        if (n < TD_WIRE_HEADER_BYTES)
            continue;
        uint64_t session = fuzz_get(rx + 8, 8);
        if (session != s->session)
            s->n_said = 0;
        s->session = session;
    }
}

static void deliver(scene *s, order kind, const uint8_t *bytes, size_t n)
{
    static uint8_t message[TD_WIRE_MESSAGE_MAX];
    if (n < 1 || n > sizeof message)
        return;
    memcpy(message, bytes, n);
    if (kind != ORDER_RAW && n >= TD_WIRE_HEADER_BYTES) {
        bool is_numbered = !td_wire_is_hello_family((td_wire_type)message[6]);
        if (kind == ORDER_FITTED && s->session)
            fuzz_put(message + 8, s->session, 8);
        if (kind == ORDER_FITTED)
            fuzz_put(message + 16, is_numbered ? ++s->n_said : 0, 8);
        if (kind == ORDER_FITTED && message[6] == TD_WIRE_HELLO) { /* each opens a new one */
            s->session = fuzz_get(message + 8, 8) + 1;
            s->n_said = 0;
            fuzz_put(message + 8, s->session, 8);
        }
        fuzz_seal(message, n);
    }
    td_link_send(s->ends[1], 0, message, n, NULL); /* full: the peer is stepped next */
}

static void say(scene *s, uint8_t what)
{
    static const uint32_t ids[] = {1, 2, 3};
    const td_wire_msg own[] = {
        {.type = TD_WIRE_DRAFT, .draft = {.sequence = 1, .position = 40, .n = 3, .ids = ids}},
        {.type = TD_WIRE_FEED, .feed = {.sequence = 1, .position = 0, .n = 3, .ids = ids}},
        {.type = TD_WIRE_PROPOSE, .propose = {.sequence = 1, .position = 3, .k = 4}},
        {.type = TD_WIRE_CLOSE, .close = {.sequence = 1}},
    };
    td_peer_send(s->peer, &own[s->is_worker ? 0 : 1 + what % 3], NULL);
    if (s->is_worker)
        td_peer_set_progress(s->peer, what, what % 3);
}

/* One order; the bytes it took, 0 at the end. */
static size_t follow(scene *s, const uint8_t *p, size_t n)
{
    if (n < 2)
        return 0;
    order kind = (order)(p[0] % ORDER_COUNT);
    size_t n_head = p[0] & 0x80 && n >= 3 ? 3 : 2; /* longer ones have a length of two bytes */
    size_t length = n_head == 3 ? p[1] | (size_t)p[2] << 8 : p[1];
    bool has_bytes = kind <= ORDER_FITTED;
    if (has_bytes && length > n - n_head)
        length = n - n_head;
    if (has_bytes)
        deliver(s, kind, p + n_head, length);
    else if (kind == ORDER_WAIT)
        td_clock_advance(&s->clock, length % 512 * CLOCK_STEP_US);
    else if (kind == ORDER_SAY)
        say(s, p[1]);
    else
        td_link_cut(s->ends[1], p[1] & 1);
    step(s, s->peer);
    listen(s);
    return n_head + (has_bytes ? length : 0);
}

/* A peer that means well takes the stranger's place. */
static void must_join(scene *s)
{
    td_link_cut(s->ends[1], false);
    td_peer *clean = new_peer(s, !s->is_worker, s->ends[1], 77);
    uint64_t start_us = td_clock_now_us(&s->clock), now_us = start_us;
    while (!(td_peer_get_info(clean).is_joined && td_peer_get_info(s->peer).is_joined)) {
        TD_ASSERT(now_us - start_us < CLEAN_US);
        step(s, clean);
        step(s, s->peer);
        uint64_t next_us = td_peer_next_us(clean), other_us = td_peer_next_us(s->peer);
        next_us = other_us < next_us ? other_us : next_us;
        if (td_link_next_us(s->ends[0]) != UINT64_MAX || td_link_next_us(s->ends[1]) != UINT64_MAX)
            continue; /* something is under way still */
        TD_ASSERT(next_us != UINT64_MAX);
        if (next_us > now_us)
            td_clock_advance(&s->clock, next_us - now_us);
        now_us = td_clock_now_us(&s->clock);
    }
    td_peer_destroy(&clean);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes)
{
    if (n_bytes < 1)
        return 0;
    scene s = {.clock = td_clock_simulated(1000000), .is_worker = bytes[0] & 1};
    TD_ASSERT(td_link_pair(&s.clock, NULL, s.ends, NULL));
    s.peer = new_peer(&s, s.is_worker, s.ends[0], 5);
    step(&s, s.peer);
    listen(&s);
    size_t at = 1, n;
    for (int i = 0; i < ORDERS_MAX && (n = follow(&s, bytes + at, n_bytes - at)) > 0; i++)
        at += n;
    must_join(&s);
    td_peer_destroy(&s.peer);
    td_link_close(&s.ends[0], false);
    td_link_close(&s.ends[1], false);
    return 0;
}

/* --- Seeds: conversations as they should be -------------------------------------------------- */

static size_t put_order(uint8_t *out, size_t at, order kind, const td_wire_msg *m)
{
    static const td_wire_limits limits = {.n_vocab = N_VOCAB, .n_ctx = N_CTX};
    size_t n = 0;
    if (!m) {
        out[at++] = (uint8_t)kind;
        out[at++] = 51; /* a second, or something to say */
        return at;
    }
    TD_ASSERT(td_wire_encode(m, &limits, out + at + 3, TD_WIRE_HELLO_MAX, &n, NULL));
    for (out[at] = 0x80; out[at] % ORDER_COUNT != kind;)
        out[at]++;
    fuzz_put(out + at + 1, n, 2);
    return at + 3 + n;
}

size_t td_fuzz_seed(uint32_t i, uint8_t *out)
{
    static uint32_t ids[TD_WIRE_IDS_MAX];
    td_wire_msg m[SAMPLES_MAX];
    int n_samples = samples_make(m, ids);
    bool is_worker = i & 1;
    td_wire_msg hello = m[is_worker ? 0 : 1];
    hello.hello.n_vocab = N_VOCAB;
    hello.hello.n_hashed = N_VOCAB;
    hello.hello.vocab_hash = hash(NULL, 0, N_VOCAB) + (i / 2 == 1); /* one that differs */
    size_t at = 0;
    if (i >= 8)
        return 0;
    out[at++] = is_worker;
    at = put_order(out, at, ORDER_FITTED, &hello);
    if (i / 2 == 2) /* what else there is, in no order that makes sense */
        for (int k = 0; k < n_samples; k++)
            at = put_order(out, at, ORDER_SEALED, &m[k]);
    for (int k = 3; k < n_samples; k++)
        if (is_worker ? m[k].type != TD_WIRE_DRAFT && m[k].type != TD_WIRE_PONG
                      : m[k].type == TD_WIRE_DRAFT || m[k].type == TD_WIRE_PONG)
            at = put_order(out, at, ORDER_FITTED, &m[k]);
    at = put_order(out, at, ORDER_WAIT, NULL);
    at = put_order(out, at, ORDER_SAY, NULL);
    if (i / 2 == 3) {
        at = put_order(out, at, ORDER_CUT, NULL);
        at = put_order(out, at, ORDER_FITTED, &hello);
    }
    TD_ASSERT(at <= TD_FUZZ_SEED_MAX);
    return at;
}
