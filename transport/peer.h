/* The two ends of a session over a link: greeting, vocabulary check, liveness, return after loss.
 *
 * A peer is a state machine over a td_link and a td_clock. It never blocks and never reads any
 * other clock. The owner's loop is: poll the link until td_peer_next_us, then call td_peer_step
 * until it gives TD_PEER_NONE.
 *
 * The client (coordinator) says HELLO until it is answered, each time with a new session number.
 * Both tell n_vocab; the worker's answer hashes the first min(n_vocab) tokens, so vocabularies that
 * differ in padding at the end are the same. If the hashes differ, the client halves the range by
 * HASH_QUERY until it can name the first differing token, and refuses. Ids sent either way are
 * below that common count (td_peer_info.n_vocab). Then the session stands: TD_PEER_JOINED.
 *
 * Messages of a session are numbered without gaps. One that was seen is dropped and counted; a gap
 * means that something was lost, and a session with a hole is given up (TD_PEER_LOST) and begun
 * anew, because the caller can rebuild everything from the committed tokens. A worker that was
 * killed and started again refuses the session it does not know, and the client begins anew too.
 * A connection that broke, where the link can tell, silence for n_misses pings, or work that stands
 * still for hung_us, is a loss as well. After TD_PEER_LOST the owner forgets what the worker held
 * and waits for the next TD_PEER_JOINED.
 * The worker must step often enough to answer pings: compute in another thread, or in short pieces.
 *
 * Owns its buffers; borrows link, clock and hash_user, which outlive it. Nothing is allocated
 * after create. Errors: as the link's, and TD_E_UNAVAILABLE from send while no session stands.
 * Malformed and foreign messages are no errors but counted (td_peer_info). One thread at a time. */
#ifndef TD_TRANSPORT_PEER_H
#define TD_TRANSPORT_PEER_H

#include "base/clock.h"
#include "base/err.h"
#include "transport/link.h"
#include "transport/wire.h"

typedef struct td_peer td_peer;

typedef struct {
    bool is_worker;
    uint32_t n_vocab;   /* 1..TD_WIRE_VOCAB_MAX */
    uint32_t n_ctx;     /* 1..TD_WIRE_POSITION_MAX */
    uint32_t max_draft; /* 1..TD_WIRE_DRAFT_MAX */
    const char *build;  /* at most TD_WIRE_BUILD_MAX bytes of printable ASCII; copied */
    /* Hash of the texts and types of tokens a..b-1, b <= n_vocab. */
    uint64_t (*hash)(void *user, uint32_t a, uint32_t b);
    void *hash_user;
    uint64_t seed; /* of the node's name, another for each life; 0 takes the system's randomness */
    /* 0 takes the default of each. */
    uint32_t ping_us;      /* 1,000,000: interval of pings; both ends use the longer of theirs */
    uint32_t n_misses;     /* 4: unanswered pings that mean loss; the worker allows one more */
    uint32_t retry_min_us; /* 100,000: between HELLOs, doubled each time */
    uint32_t retry_max_us; /* 5,000,000: and after a refusal */
    uint32_t hung_us;      /* client: pending work without progress that means loss; 0 is never */
} td_peer_params;

typedef enum {
    TD_PEER_NONE,    /* nothing more now */
    TD_PEER_JOINED,  /* a session stands */
    TD_PEER_LOST,    /* it is over; `reason` */
    TD_PEER_REFUSED, /* none came to be; `refusal`, `reason`. The client tries on every
                        retry_max_us; destroy it to give up */
    TD_PEER_MESSAGE  /* `msg`: OPEN, FEED, PROPOSE, CLOSE at the worker; DRAFT at the client */
} td_peer_event_type;

typedef struct {
    td_peer_event_type type;
    td_wire_refusal refusal; /* of REFUSED */
    uint32_t first_token; /* of REFUSED for TD_WIRE_REFUSE_VOCAB at the client; else UINT32_MAX */
    char reason[TD_WIRE_REASON_MAX + 1];
    td_wire_msg msg; /* its ids are valid until the next step */
} td_peer_event;

typedef struct {
    bool is_joined;
    uint64_t session;
    /* What both ends can do, while joined: */
    uint32_t n_vocab, n_ctx, max_draft;
    char build[TD_WIRE_BUILD_MAX + 1]; /* the other end's */
    uint64_t progress;                 /* of the worker, by its last PONG (at the client) */
    uint32_t n_pending;
    uint64_t n_malformed;  /* messages dropped: not decodable */
    uint64_t n_foreign;    /* of another session or sender */
    uint64_t n_replayed;   /* seen before */
    uint64_t n_unexpected; /* of a type that has no place here */
    uint64_t n_gaps;       /* sessions given up for a hole */
    uint64_t n_sessions;   /* sessions that stood so far */
} td_peer_info;

/* The name of the node that a seed gives; its upper half is that of the client's sessions. */
uint64_t td_peer_name(uint64_t seed);

td_peer *td_peer_create(const td_peer_params *params, td_link *link, const td_clock *clock,
                        td_err *err);
void td_peer_destroy(td_peer **peer); /* says nothing to the other end; the link stays open */

/* The next event. False only when the link itself fails (TD_E_IO). */
bool td_peer_step(td_peer *peer, td_peer_event *event, td_err *err);

/* When step must be called even if nothing arrives; UINT64_MAX for never. */
uint64_t td_peer_next_us(const td_peer *peer);

/* Sends a message of the session: OPEN, FEED, PROPOSE, CLOSE by the client, DRAFT by the worker.
 * Session and number are filled in. TD_E_AGAIN: the peer is slow; nothing was sent, try later. */
bool td_peer_send(td_peer *peer, const td_wire_msg *msg, td_err *err);

/* What the worker's PONGs tell: progress grows with each piece of work, n_pending is what waits. */
void td_peer_set_progress(td_peer *peer, uint64_t progress, uint32_t n_pending);

/* Ends the worker's session for a reason that the other end is told; silent from then on. */
void td_peer_fail(td_peer *peer, const char *reason);

/* Ends the session as planned and stays silent from then on. Then td_link_close(.., true). */
void td_peer_bye(td_peer *peer);

td_peer_info td_peer_get_info(const td_peer *peer);

#endif
