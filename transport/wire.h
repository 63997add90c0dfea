/* The messages between a coordinator and a draft worker: pure encoding and decoding, no I/O.
 *
 * A message is one part: a header of 32 bytes, little-endian, written field by field
 *   {magic u32, version u16, type u8, flags u8, session u64, seq u64, length u32, crc32c u32}
 * and a payload of exactly `length` bytes. The checksum (CRC-32C, Castagnoli; RFC 3720 B.4) covers
 * header and payload, its own field taken as zero. The header's version names this framing and is
 * not meant to change; what the messages mean is the protocol version inside HELLO, so that a
 * peer of another version can still be told why it is refused.
 *
 * A message carries intents (feed, propose), token ids, positions, small floats and text; never an
 * address, an offset, an op or a graph. Everything is checked here, against named limits and the
 * caller's td_wire_limits, before anyone sees it; encode applies the same checks, so that a
 * message we send is one our peer accepts.
 *
 * Memory: nothing is allocated. decode writes token ids into the caller's ids[TD_WIRE_IDS_MAX];
 * `feed.ids` and `draft.ids` point there. Text is copied into the struct.
 * Errors: TD_E_DATA with the field, the value seen and the values allowed. Any thread. */
#ifndef TD_TRANSPORT_WIRE_H
#define TD_TRANSPORT_WIRE_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TD_WIRE_MAGIC        0x4d445454u /* the bytes "TTDM" */
#define TD_WIRE_VERSION      1u          /* of the framing */
#define TD_WIRE_PROTOCOL     3u          /* of the messages, told in HELLO */
#define TD_WIRE_HEADER_BYTES 32u
#define TD_WIRE_HELLO_MAX    1024u  /* bytes of a HELLO family message with its header */
#define TD_WIRE_MESSAGE_MAX  65536u /* bytes of any other */
#define TD_WIRE_IDS_MAX      8192u  /* token ids in one FEED */
#define TD_WIRE_DRAFT_MAX    256u   /* token ids in one DRAFT, and k of a PROPOSE */
#define TD_WIRE_VOCAB_MAX    (1u << 20)
#define TD_WIRE_POSITION_MAX (1u << 30) /* positions and lengths are <= this */
#define TD_WIRE_PING_MIN_US  1000u
#define TD_WIRE_PING_MAX_US  60000000u
#define TD_WIRE_BUILD_MAX    64u  /* printable ASCII */
#define TD_WIRE_REASON_MAX   400u /* printable ASCII */

typedef enum {
    TD_WIRE_HELLO = 1,  /* client: who I am; starts a session */
    TD_WIRE_HELLO_OK,   /* worker: who I am; n_hashed = the smaller n_vocab */
    TD_WIRE_REFUSE,     /* either: no session, and why */
    TD_WIRE_HASH_QUERY, /* client: the hash of tokens a..b-1? */
    TD_WIRE_HASH_REPLY,
    TD_WIRE_OPEN,    /* client: a new sequence, its random stream and its sampler */
    TD_WIRE_FEED,    /* client: committed tokens from `position` on */
    TD_WIRE_PROPOSE, /* client: k tokens wanted after the first `position` ones */
    TD_WIRE_DRAFT,   /* worker: the tokens proposed; may be fewer than k, or none */
    TD_WIRE_CLOSE,   /* client: forget the sequence */
    TD_WIRE_PING,    /* client: are you there? */
    TD_WIRE_PONG,    /* worker: yes, and this far */
    TD_WIRE_BYE,     /* either: the session ends as planned */
    TD_WIRE_TYPE_END /* one past the last */
} td_wire_type;

typedef enum { TD_WIRE_ROLE_COORDINATOR = 1, TD_WIRE_ROLE_DRAFT, TD_WIRE_ROLE_END } td_wire_role;

typedef enum {
    TD_WIRE_REFUSE_BUSY = 1, /* another coordinator is being served */
    TD_WIRE_REFUSE_PROTOCOL, /* other protocol version, or a role that does not fit */
    TD_WIRE_REFUSE_VOCAB,    /* the vocabularies differ */
    TD_WIRE_REFUSE_SESSION,  /* no such session here, or it is broken: say HELLO again */
    TD_WIRE_REFUSE_END
} td_wire_refusal;

/* HELLO and HELLO_OK. Of a message of another protocol version only `protocol` is read. */
typedef struct {
    uint32_t protocol;
    td_wire_role role;
    uint64_t node;       /* random name of the sender's life, to tell a return from a stranger */
    uint32_t n_vocab;    /* 1..TD_WIRE_VOCAB_MAX */
    uint32_t n_hashed;   /* 1..n_vocab: vocab_hash covers tokens 0..n_hashed-1 */
    uint64_t vocab_hash; /* of token texts and types */
    uint32_t n_ctx;      /* 1..TD_WIRE_POSITION_MAX */
    uint32_t max_draft;  /* 1..TD_WIRE_DRAFT_MAX */
    uint32_t ping_us;    /* 1000..60 s: both ends use the longer interval of the two */
    char build[TD_WIRE_BUILD_MAX + 1]; /* informs, decides nothing */
} td_wire_hello;

typedef struct {
    td_wire_refusal code;
    char reason[TD_WIRE_REASON_MAX + 1];
} td_wire_refuse;

/* a < b <= TD_WIRE_VOCAB_MAX; `hash` only in the reply. */
typedef struct {
    uint32_t a, b;
    uint64_t hash;
} td_wire_hash;

typedef struct {
    uint32_t sequence;
    uint64_t stream;
    float temperature;      /* 0..100; 0 is greedy */
    uint32_t top_k;         /* 0..TD_WIRE_VOCAB_MAX; 0 is off */
    float top_p;            /* 0..1 */
    float min_p;            /* 0..1 */
    float repeat_penalty;   /* 0.01..100; 1 is off */
    uint32_t repeat_last_n; /* 0..TD_WIRE_POSITION_MAX */
} td_wire_open;

/* position + n tokens are committed then and change no more. What the draft held behind them stays
 * as far as it agrees: from the first difference on it is dropped. */
typedef struct {
    uint32_t sequence, epoch;
    uint32_t position;   /* absolute index of ids[0] */
    uint32_t n;          /* 1..TD_WIRE_IDS_MAX */
    const uint32_t *ids; /* [n], each < limits.n_vocab */
} td_wire_feed;

/* `position` may lie past the committed length: then the draft's own earlier proposals of this
 * epoch stand in between. One that goes on is asked for long before it is due: where the draft has
 * been told other tokens than it had proposed, its answer begins at the first of them, with those
 * it was told and k of its own, and so does where the draft's text ends before `position`. */
typedef struct {
    uint32_t sequence, epoch;
    uint32_t position; /* tokens that come before */
    uint32_t k;        /* 1..TD_WIRE_DRAFT_MAX */
    bool goes_on;
} td_wire_propose;

typedef struct {
    uint32_t sequence, epoch;
    uint32_t position;   /* absolute index of ids[0]; as asked, or lower where that goes on */
    uint32_t n;          /* 0..TD_WIRE_DRAFT_MAX */
    uint32_t busy_us;    /* the draft's device computed so long for this answer; of proposals that
                          * were computed together, each has its share */
    const uint32_t *ids; /* [n], each < limits.n_vocab */
} td_wire_draft;

typedef struct {
    uint32_t sequence;
} td_wire_close;

/* PING and PONG. */
typedef struct {
    uint64_t progress;  /* grows with every piece of work done */
    uint32_t n_pending; /* pieces of work held */
} td_wire_ping;

typedef struct {
    td_wire_type type;
    uint64_t session; /* not 0 */
    uint64_t seq;     /* 0 for the HELLO family (HELLO..HASH_REPLY), 1.. for all others */
    union {
        td_wire_hello hello;
        td_wire_refuse refuse;
        td_wire_hash hash;
        td_wire_open open;
        td_wire_feed feed;
        td_wire_propose propose;
        td_wire_draft draft;
        td_wire_close close;
        td_wire_ping ping;
    };
} td_wire_msg;

/* What the caller knows: ids are < n_vocab (1..TD_WIRE_VOCAB_MAX), position + n <= n_ctx. */
typedef struct {
    uint32_t n_vocab;
    uint32_t n_ctx;
} td_wire_limits;

/* The widest limits, for before the peers know each other. */
td_wire_limits td_wire_limits_widest(void);

/* Checks and writes *msg into buffer[capacity_bytes]; *n_bytes is its length. A buffer of
 * TD_WIRE_MESSAGE_MAX always suffices. */
bool td_wire_encode(const td_wire_msg *msg, const td_wire_limits *limits, void *buffer,
                    size_t capacity_bytes, size_t *n_bytes, td_err *err);

/* Reads the message bytes[n_bytes]; *msg is valid only on true. */
bool td_wire_decode(const void *bytes, size_t n_bytes, const td_wire_limits *limits,
                    uint32_t ids[TD_WIRE_IDS_MAX], td_wire_msg *msg, td_err *err);

/* Is it a whole message of this wire? Then of which session; its payload is not looked at. */
bool td_wire_peek(const void *bytes, size_t n_bytes, uint64_t *session);

/* "HELLO", ...; "?" for a type that does not exist. */
const char *td_wire_type_name(td_wire_type type);

/* True for HELLO..HASH_REPLY: small, unnumbered, allowed before a session stands. */
bool td_wire_is_hello_family(td_wire_type type);

/* Largest message of a type with its header; 0 for a type that does not exist. */
size_t td_wire_type_max_bytes(td_wire_type type);

#endif
