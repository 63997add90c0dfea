/* What the halves of peer share; for transport/peer*.c alone. */
#ifndef TD_TRANSPORT_PEER_IMPL_H
#define TD_TRANSPORT_PEER_IMPL_H

#include "transport/peer.h"

typedef enum {
    PEER_GREETING, /* client: HELLO is out or due. Worker: nobody is there */
    PEER_CHECKING, /* client: halving the vocabulary. Worker: greeted, not confirmed yet */
    PEER_JOINED,
    PEER_CLOSED
} peer_state;

struct td_peer {
    td_peer_params params;
    char build[TD_WIRE_BUILD_MAX + 1];
    td_link *link;
    const td_clock *clock;
    peer_state state;

    uint64_t node;                    /* ours */
    uint64_t whole_hash;              /* of our vocabulary; asked for with every HELLO */
    uint64_t session, n_sent, n_seen; /* numbers of the last message sent and seen */
    td_route route;
    td_wire_hello other;   /* the other end's greeting */
    td_wire_limits limits; /* of what we accept and send */
    bool is_vocab_equal;   /* worker: false if the client's hash shows that they differ */
    uint32_t n_hello;      /* client: low half of the session number */

    uint64_t next_us;     /* the next timer */
    uint32_t ping_us;     /* agreed interval */
    uint32_t retry_us;    /* until the next HELLO */
    uint32_t n_missed;    /* intervals without a word */
    bool is_heard;        /* a word since the last interval began */
    uint32_t low, high;   /* client: the first differing token is in low..high-1 */
    uint64_t progress_us; /* client: when progress last grew or nothing was pending */
    uint64_t progress;    /* worker: ours; client: the worker's */
    uint32_t n_pending;

    bool has_broken; /* a connection did, and its last messages may not be received yet */
    bool is_cut;     /* worker: a connection broke, perhaps this one's */
    bool is_held;    /* held_msg comes out at the next step, after the JOINED that it caused */
    td_wire_msg held_msg;
    td_peer_info info; /* the counters; the rest is filled on request */

    uint32_t ids[TD_WIRE_IDS_MAX];
    uint8_t rx[TD_WIRE_MESSAGE_MAX], tx[TD_WIRE_MESSAGE_MAX];
};

/* Both halves: a message that was decoded, and the timer when next_us has come. */
void td_peer_client_handle(td_peer *p, const td_wire_msg *m, td_peer_event *ev);
void td_peer_client_tick(td_peer *p, uint64_t now_us, td_peer_event *ev);
void td_peer_worker_handle(td_peer *p, const td_wire_msg *m, td_route route, td_peer_event *ev);
void td_peer_worker_tick(td_peer *p, uint64_t now_us, td_peer_event *ev);

/* A connection of the link broke. */
void td_peer_client_cut(td_peer *p, td_peer_event *ev);
void td_peer_worker_cut(td_peer *p, uint64_t now_us);

/* Sends a message of the HELLO family at once or not at all. */
bool td_peer_send_hello_family(td_peer *p, td_route route, uint64_t session, td_wire_msg *m);
bool td_peer_send_refusal(td_peer *p, td_route route, uint64_t session, td_wire_refusal code,
                          const char *reason);

/* Sends a numbered message of the session; the number is used up only on success. */
bool td_peer_send_numbered(td_peer *p, td_wire_msg m, td_err *err);

/* Is this the next number? Counts repeats; *is_gap tells that something is missing before it. */
bool td_peer_take_number(td_peer *p, const td_wire_msg *m, bool *is_gap);

/* Fills in the event; unprintable bytes of the text become '?'. */
void td_peer_set_event(td_peer_event *ev, td_peer_event_type type, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Hash of the first n tokens. */
uint64_t td_peer_hash_prefix(const td_peer *p, uint32_t n);

/* Our greeting, hashing the first n_hashed tokens. */
td_wire_hello td_peer_own_hello(const td_peer *p, uint32_t n_hashed);

/* What both ends can do: limits and ping interval out of p->other. */
void td_peer_agree(td_peer *p);

void td_peer_begin_joined(td_peer *p, uint64_t now_us);

#endif
