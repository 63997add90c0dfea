/* A link is a message pipe to a peer: ZeroMQ (inproc, ipc, tcp) or in memory under a td_clock.
 *
 *   td_transport *t = td_transport_create(err);
 *   td_link *l = td_link_open(t, "ipc://run/draft.sock", TD_LINK_CONNECT, err);
 *   td_link_send(l, 0, bytes, n, err); ... td_link_poll(items, n, timeout_us, err); ...
 *   td_link_close(&l, true); td_transport_destroy(&t);
 *
 * Endpoints and where keys are needed are endpoint.h's: what leaves the machine is encrypted, both
 * ends show keys (keys.h), and a bound link has refused a stranger before it is returned (auth.h).
 * The worker binds, its one coordinator connects. Messages are one part of at most
 * TD_WIRE_MESSAGE_MAX bytes and keep their order; while a connection stands none is lost, but
 * one that breaks and comes back may have lost some, so the peer above numbers them.
 *
 * Owns: the transport owns the ZeroMQ context, which is shared by the links of a process (inproc
 * needs it) and must outlive them; a link owns its socket and a queue for what the peer is too slow
 * to take (TD_LINK_QUEUE_BYTES, allocated at open; sending allocates nothing of ours).
 * Errors: TD_E_AGAIN when the peer is slow and the queue is full (try later); TD_E_UNAVAILABLE
 * when the peer is gone or the endpoint cannot be had; TD_E_USAGE (endpoint.h); TD_E_IO; of opening
 * also those of keys.h and auth.h.
 * Threads: the transport any; a link one at a time, both ends of an in-memory pair the same one.
 * Do not fork after td_transport_create. */
#ifndef TD_TRANSPORT_LINK_H
#define TD_TRANSPORT_LINK_H

#include "base/clock.h"
#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TD_LINK_QUEUE_BYTES (1u << 20)
#define TD_LINK_POLL_MAX    64u

typedef struct td_transport td_transport;
typedef struct td_link td_link;

/* Whom a message came from or goes to. 0 is the one peer of a connecting link. */
typedef uint64_t td_route;

typedef enum { TD_LINK_CONNECT, TD_LINK_BIND } td_link_side;

typedef struct {
    uint64_t n_sent, n_received;
    uint64_t n_multipart;   /* dropped: a message of several parts */
    uint64_t n_bad_size;    /* dropped: empty or too long */
    uint64_t n_unroutable;  /* dropped: the receiver had gone, or a sender's name was too long */
    uint64_t n_turned_away; /* hung up on: too many that had not shown a key, or too many at all */
    size_t n_queued_bytes;  /* waiting for a slow peer now */
} td_link_stats;

td_transport *td_transport_create(td_err *err);
void td_transport_destroy(td_transport **t); /* all its links must be closed */

/* Our own pair, by its name, of the links opened later; borrowed. Without it the only pair there is
 * is taken where one is needed. With it tcp endpoints that are bound want keys on loopback too. */
void td_transport_set_key(td_transport *t, const char *name);

/* Could it be opened? Of an endpoint that another process shall reach, before a program spends its
 * time on a model. key: as of td_transport_set_key, or NULL; an error if it is of no use there. */
bool td_link_check(const char *endpoint, td_link_side side, const char *key, td_err *err);

td_link *td_link_open(td_transport *t, const char *endpoint, td_link_side side, td_err *err);

/* is_clean gives what was sent a second to leave; else it is dropped. NULL is fine. */
void td_link_close(td_link **l, bool is_clean);

/* Sends or queues bytes[1..TD_WIRE_MESSAGE_MAX]; never blocks. */
bool td_link_send(td_link *l, td_route route, const void *bytes, size_t n_bytes, td_err *err);

/* Sends at once or not at all, for what is worth nothing later: TD_E_AGAIN instead of queueing. */
bool td_link_try_send(td_link *l, td_route route, const void *bytes, size_t n_bytes, td_err *err);

/* Takes the next message; *n_bytes = 0 when none waits. The buffer holds TD_WIRE_MESSAGE_MAX. */
bool td_link_recv(td_link *l, void *buffer, size_t *n_bytes, td_route *route, td_err *err);

/* Forgets what is queued and connects anew, for a peer that was lost; a bound link only forgets. */
bool td_link_reset(td_link *l, td_err *err);

/* True once after the transport saw a connection break: the other process has ended, or the line
 * is dead. Of a bound link some peer's: whose, it does not know. Never of inproc and in-memory
 * links. */
bool td_link_was_cut(td_link *l);

td_link_stats td_link_get_stats(const td_link *l);

typedef struct {
    td_link *link; /* or NULL: */
    int fd;
    bool is_readable; /* set by poll; of an fd also for an error on it */
} td_link_poll_item;

/* Waits until an item is readable, at most timeout_us (rounded up to milliseconds; < 0 without
 * end), and sends what is queued meanwhile. Returns true on a timeout or a signal too, with no
 * item readable. If a link under a simulated clock is among the items nothing waits: the clock is
 * advanced to its next message or by timeout_us. n_items <= TD_LINK_POLL_MAX. */
bool td_link_poll(td_link_poll_item *items, size_t n_items, int64_t timeout_us, td_err *err);

/* --- The in-memory pair --------------------------------------------------------------------- */

/* What happens to one message. */
typedef struct {
    uint32_t n_copies; /* 0 = dropped, 2 = duplicated */
    uint64_t delay_us;
    bool is_overtaken; /* later messages may arrive first */
} td_link_fate;

/* Faults by a seeded generator: the same seed and the same calls give the same deliveries. The
 * hook, if any, sees the fate drawn and may change it. */
typedef struct {
    uint64_t seed;
    uint32_t drop_permille, duplicate_permille, overtake_permille;
    uint32_t delay_min_us, delay_max_us;
    uint32_t overtake_us; /* how much later an overtaken message arrives, at most */
    void (*hook)(void *user, int from_end, const uint8_t *bytes, size_t n_bytes,
                 td_link_fate *fate);
    void *user;
} td_link_faults;

/* pair[0] and pair[1] are each other's peer; each is closed by its own td_link_close. `clock` is
 * borrowed; `faults` may be NULL. TD_E_AGAIN from send when TD_LINK_MEM_MAX are under way. */
#define TD_LINK_MEM_MAX 256u
bool td_link_pair(td_clock *clock, const td_link_faults *faults, td_link *pair[2], td_err *err);

/* While cut, everything under way and everything sent either way is lost: a dead cable, or a
 * killed peer. Either end cuts for both. */
void td_link_cut(td_link *end, bool is_cut);

/* When the next message for this end is due; UINT64_MAX for none, 0 is "now" for other links. */
uint64_t td_link_next_us(const td_link *l);

#endif
