/* The messages between a coordinator and stage workers, and between one worker and the next: pure
 * encoding and decoding, no I/O. Framing, checks and errors are those of wire.h, whose rules hold
 * here too; types begin where that wire's end, so that either end tells the other's by name.
 *
 * A session: HELLO, HELLO_OK (the worker's devices); PLAN, PLANNED (what layers take there), as
 * often as need be; LOAD, PROGRESS..., READY; then STREAM. All messages of a session are numbered
 * from 1, each way. FAIL ends it with a reason, BYE as planned. A worker that has not the model
 * WANTs bytes of its files before it says PLANNED, and gets them as DATA in that order.
 *
 * HELLO_DRAFT begins one for a draft model instead, beside that of layers: PLAN with one part, all
 * layers, and LOAD with a ticket, whose upper half begins the session numbers of the connection
 * that then speaks wire.h with the same worker. This session says when it is there, and keeps it.
 *
 * CHECK, right behind HELLO_OK and as often as need be, has a device there tried, and a PLAN with
 * measure has layers timed; REPORT brings what was found. PROBE is answered at once, with as many
 * bytes as it asks for: what a link brings.
 *
 * MEET has a worker do the same with another, over a connection as a stream's would be, whose
 * session number is the ticket: the worker at its end is told that first, by a MEET that leads
 * nowhere, then the one that is to dial. MET answers either.
 *
 * KEEP, once layers are there and before any stream, has chunks of prompts kept on the worker's own
 * disk, and KEPT says whether they are. Then each full chunk is asked for before its batch is sent:
 * FIND names it by all that comes before it, and FOUND says whether the worker has it, read and
 * checked, and holds it until that batch comes. Where all have it the batch says so and brings no
 * activations; else each computes it and keeps what it has not.
 *
 * TRACE asks for what was done with batches since the TRACE before; the first has it noted from
 * then on. Each is answered by one EVENTS, as much as goes into it; whoever asks nothing is told
 * nothing.
 *
 * STREAM carries records, what a target's stages do in order: the jobs of target/job.h. It goes
 * coordinator, first worker, ..., last worker, coordinator; between two workers over a connection
 * of its own whose session number is the ticket that the coordinator gave both, and whose first
 * message is ATTACH; from then on each says PING to the other every second, which nobody answers. A
 * batch is one record; what of its activations does not fit behind the record
 * follows in PIECEs, before any other record. Where the PLAN says that the last layers have the
 * model's head, ASKs of what that would guess travel among the jobs, and GUESSES come back among
 * the results, in that order. CANCEL alone goes beside the stream, and acts at
 * once.
 *
 * Activations are f32 rows [n_rows][n_embd], little-endian as they lie in memory (checked at
 * build), so a split over machines has the bits of one on a machine; or f16, where the PLAN says
 * so to every worker. No path, no address, no shape
 * is on the wire: rows are as wide as the model that both ends opened by themselves.
 *
 * Memory: nothing is allocated. Pointers of what was decoded point into the message. Any thread. */
#ifndef TD_TRANSPORT_STAGE_WIRE_H
#define TD_TRANSPORT_STAGE_WIRE_H

#include "base/cursor.h"
#include "transport/wire.h"

#define TD_STAGE_PROTOCOL     10u
#define TD_STAGE_DEVICES_MAX  16u
#define TD_STAGE_PARTS_MAX    16u
#define TD_STAGE_SLOTS_MAX    64u
#define TD_STAGE_LAYERS_MAX   512u
#define TD_STAGE_ROWS_MAX     256u /* of a batch: a chunk of a prompt */
#define TD_STAGE_OUT_MAX      64u  /* rows of a batch that are outputs, and of one to verify */
#define TD_STAGE_GUESSES_MAX  64u  /* of a sequence, of one ask */
#define TD_STAGE_PAGES_MAX    (1u << 26)
#define TD_STAGE_TEXT_MAX     128u
#define TD_STAGE_ENDPOINT_MAX 319u
#define TD_STAGE_HASH_BYTES   32u
#define TD_STAGE_ANY          255u /* no device, no type */
#define TD_STAGE_RULES_MAX    48u  /* of layers with types of their own */
#define TD_STAGE_ROTATES      3u   /* ways of rotating */
#define TD_STAGE_F32          0u   /* ids of the file format */
#define TD_STAGE_F16          1u
#define TD_STAGE_PIECE_MAX    (TD_WIRE_MESSAGE_MAX - TD_WIRE_HEADER_BYTES - 12u)
#define TD_STAGE_FILES_MAX    64u          /* of a model that is sent */
#define TD_STAGE_FILE_MAX     (1ull << 44) /* bytes */
#define TD_STAGE_HEAD_MAX     (512u << 20) /* bytes before the tensors, of a file */
#define TD_STAGE_DATA_MAX     (60u << 10)  /* bytes of one DATA */
#define TD_STAGE_WANTS_MAX    32u          /* that are not answered */
#define TD_STAGE_ONLY_MAX     32u          /* bytes of a part's name with the terminating 0 */
#define TD_STAGE_EVENTS_MAX   256u         /* of one EVENTS */
#define TD_STAGE_REPORT_MAX   (TD_WIRE_MESSAGE_MAX - TD_WIRE_HEADER_BYTES)

typedef enum {
    TD_STAGE_HELLO = 32, /* coordinator: who I am */
    TD_STAGE_HELLO_OK,   /* worker: who I am, and my devices */
    TD_STAGE_PLAN,       /* coordinator: what would these layers take there? */
    TD_STAGE_PLANNED,
    TD_STAGE_LOAD, /* coordinator: do it */
    TD_STAGE_LOADING,
    TD_STAGE_READY,
    TD_STAGE_FAIL,   /* worker: there is no session, or it is over */
    TD_STAGE_ATTACH, /* worker to the next: this connection is the stream's */
    TD_STAGE_STREAM,
    TD_STAGE_PIECE,
    TD_STAGE_CANCEL, /* coordinator: nothing of this batch is wanted any more */
    TD_STAGE_PING,
    TD_STAGE_PONG,
    TD_STAGE_BYE,
    TD_STAGE_WANT, /* worker: send me these bytes of the model */
    TD_STAGE_DATA,
    TD_STAGE_HELLO_DRAFT, /* coordinator: HELLO, for a draft model and not for layers */
    TD_STAGE_CHECK,       /* coordinator: is this device to be trusted? */
    TD_STAGE_CHECKING,    /* worker: so far */
    TD_STAGE_REPORT,      /* worker: what was found, of a CHECK or a PLAN that only measures */
    TD_STAGE_PROBE,       /* coordinator, or worker to another: an answer at once, please */
    TD_STAGE_PROBED,
    TD_STAGE_TRACE, /* coordinator: what did you do since I asked last? */
    TD_STAGE_EVENTS,
    TD_STAGE_MEET, /* coordinator: what does your way to that worker bring? */
    TD_STAGE_MET,
    TD_STAGE_KEEP, /* coordinator: keep chunks of prompts */
    TD_STAGE_KEPT,
    TD_STAGE_FIND, /* coordinator: have you this chunk? */
    TD_STAGE_FOUND,
    TD_STAGE_END /* one past the last */
} td_stage_type;

typedef enum {
    TD_STAGE_FAIL_BUSY = 1, /* another coordinator is being served */
    TD_STAGE_FAIL_PROTOCOL, /* another version, or a message that makes no sense */
    TD_STAGE_FAIL_MODEL,    /* no such file there */
    TD_STAGE_FAIL_MEMORY,   /* the layers do not fit */
    TD_STAGE_FAIL_DEVICE,   /* a device or the worker itself */
    TD_STAGE_FAIL_END
} td_stage_fail_code;

typedef struct {
    uint32_t protocol; /* of another one nothing more is read */
    char build[TD_WIRE_BUILD_MAX + 1];
} td_stage_hello;

/* Of a device what a coordinator must know, by td_device_info; texts in printable ASCII. */
typedef struct {
    uint8_t kind; /* td_device_kind */
    uint32_t n_threads;
    uint64_t usable_bytes, total_bytes;
    char spec[TD_STAGE_TEXT_MAX], id[TD_STAGE_TEXT_MAX], name[TD_STAGE_TEXT_MAX],
        driver[TD_STAGE_TEXT_MAX];
    char failed[TD_WIRE_REASON_MAX + 1]; /* what `tandem check` found there; "": nothing is known */
} td_stage_device;

typedef struct {
    uint32_t protocol;
    char build[TD_WIRE_BUILD_MAX + 1];
    uint8_t n_devices; /* 1..TD_STAGE_DEVICES_MAX */
    td_stage_device devices[TD_STAGE_DEVICES_MAX];
} td_stage_hello_ok;

/* How layers first..last keep theirs; TD_STAGE_ANY: as without the rule. */
typedef struct {
    uint16_t first, last;
    uint8_t type_k, type_v;
} td_stage_kv_rule;

/* td_cache_types, types as ids of the file format. */
typedef struct {
    uint8_t type_k, type_v, rotate_k, rotate_v, n_rules;
    td_stage_kv_rule rules[TD_STAGE_RULES_MAX];
} td_stage_kv;

typedef struct {
    uint8_t hash[TD_STAGE_HASH_BYTES]; /* of the model; name-independent */
    uint64_t model_bytes;
    char model_name[TD_STAGE_TEXT_MAX]; /* for messages alone */
    uint8_t first_stage;                /* of the target, 0..15 */
    uint8_t n_parts;                    /* 1..TD_STAGE_PARTS_MAX */
    uint8_t experts_device;             /* TD_STAGE_ANY: none of their own */
    uint8_t n_slots;
    td_stage_kv kv;
    uint8_t wire;   /* of activations, ids of the file format: TD_STAGE_F32 or TD_STAGE_F16 */
    uint32_t n_ctx; /* 0: the smaller of the model's and what fits */
    struct {
        uint8_t device; /* by HELLO_OK */
        uint16_t first, last;
    } parts[TD_STAGE_PARTS_MAX];
    /* 0; else nothing is to be loaded: only how fast the one part's device is with layers of each
     * kind, what they take and what is there; td_measure + 1. */
    uint8_t measure;
    uint8_t head;    /* 1: the last layer's stage has the model's head, and is asked; else 0 */
    uint8_t n_files; /* of the model; 0: it is not sent */
    struct {
        uint64_t n_bytes;
        uint32_t head_bytes; /* before its tensors */
    } files[TD_STAGE_FILES_MAX];
} td_stage_plan;

typedef struct {
    uint32_t n_ctx, n_pages; /* n_pages 0: enough for all */
    uint8_t n_parts;
    struct {
        uint64_t n_bytes, budget_bytes, experts_bytes;
    } parts[TD_STAGE_PARTS_MAX];
} td_stage_planned;

typedef struct {
    uint32_t n_ctx, n_pages; /* at most what was planned */
    uint64_t ticket;         /* of the connection that brings the stream; 0: this one does */
    uint64_t next_ticket;    /* of the one to `next` */
    char next[TD_STAGE_ENDPOINT_MAX + 1]; /* ""; results go back over this one */
} td_stage_load;

typedef struct {
    uint64_t done, total; /* bytes */
} td_stage_loading;

typedef struct {
    bool forgets; /* some cache does */
    uint8_t n_parts;
    struct {
        uint64_t file_bytes, load_us;
    } parts[TD_STAGE_PARTS_MAX];
} td_stage_ready;

typedef struct {
    td_stage_fail_code code;
    char reason[TD_WIRE_REASON_MAX + 1];
} td_stage_fail;

typedef struct {
    uint64_t batch;
    uint32_t offset;      /* of the first byte; continues where the one before ended */
    uint32_t n;           /* 1..TD_STAGE_PIECE_MAX */
    const uint8_t *bytes; /* [n] */
} td_stage_piece;

typedef struct {
    uint8_t file; /* WANT: below the n_files of the PLAN */
    uint32_t n;   /* 1..TD_STAGE_DATA_MAX */
    uint64_t offset;
    const uint8_t *bytes; /* [n], of DATA */
} td_stage_data;

typedef struct {
    uint32_t n_back;      /* PROBE: 1..TD_STAGE_DATA_MAX bytes of the answer */
    uint32_t n;           /* 1..TD_STAGE_DATA_MAX */
    const uint8_t *bytes; /* [n]; any */
} td_stage_probe;

typedef struct {
    uint64_t ticket;                      /* not 0 */
    char next[TD_STAGE_ENDPOINT_MAX + 1]; /* ""; whoever shows the ticket is answered */
} td_stage_meet;

typedef struct {
    uint32_t idle_ns, loaded_ns; /* round trips: of few bytes, behind as many as the link takes */
    uint64_t bytes_per_s;
    char why[TD_WIRE_REASON_MAX + 1]; /* it cannot be reached; or "" */
} td_stage_met;

typedef struct {
    uint64_t batch; /* in which it is to come */
    uint32_t first; /* its position */
    uint8_t
        before[TD_STAGE_HASH_BYTES]; /* a hash of all tokens before, and of what bits depend on */
    uint16_t n;                      /* 1..TD_STAGE_ROWS_MAX */
    uint32_t tokens[TD_STAGE_ROWS_MAX]; /* [n] */
} td_stage_find;

typedef enum {
    TD_STAGE_MISSING,
    TD_STAGE_THERE,
    TD_STAGE_DAMAGED,
    TD_STAGE_FOUND_END
} td_stage_there;

typedef struct {
    uint64_t batch;
    td_stage_there what;
} td_stage_found;

typedef struct {
    uint64_t n_dropped;   /* since the first TRACE: there was no room for them */
    uint32_t n_left;      /* that did not go into this message */
    uint8_t n_parts;      /* of the PLAN */
    uint16_t n;           /* 0..TD_STAGE_EVENTS_MAX */
    const uint8_t *bytes; /* [n_bytes] for td_stage_read_event, all of which decode has checked */
    size_t n_bytes;       /* n * td_stage_event_bytes(n_parts) */
} td_stage_events;

typedef struct {
    uint8_t device, other; /* by HELLO_OK; other: at work beside it, or the end of a hop */
    bool is_quick;
    bool is_hop;                  /* no more than how long a row takes from device to other */
    char only[TD_STAGE_ONLY_MAX]; /* "": all parts */
} td_stage_check;

typedef struct {
    uint64_t echo_us;  /* PING: the sender's clock; PONG: the same again */
    uint64_t now_us;   /* PONG: the worker's clock */
    uint64_t progress; /* PONG: grows with every piece of work done */
    uint32_t n_pending;
} td_stage_ping;

typedef struct {
    td_stage_type type;
    uint64_t session, seq; /* neither is 0 */
    union {
        td_stage_hello hello;
        td_stage_hello_ok hello_ok;
        td_stage_plan plan;
        td_stage_planned planned;
        td_stage_load load;
        td_stage_loading loading;
        td_stage_ready ready;
        td_stage_fail fail;
        td_stage_piece piece;
        td_stage_data data; /* of WANT too */
        td_stage_ping ping;
        td_stage_check check;
        td_stage_probe probe; /* of PROBED too */
        td_stage_events events;
        td_stage_meet meet;
        td_stage_met met;
        uint16_t keep; /* KEEP: positions of a chunk, 1..TD_STAGE_ROWS_MAX */
        bool kept;
        td_stage_find find;
        td_stage_found found;
        char checking[TD_STAGE_TEXT_MAX]; /* what is being tried */
        uint64_t cancel;                  /* the batch */
        struct {
            const uint8_t *bytes;
            size_t n;
        } stream; /* for td_stage_read_record; of REPORT: what who asked reads */
    };
} td_stage_msg;

const char *td_stage_type_name(td_stage_type type);

/* Not for STREAM, which a td_stage_writer makes. */
bool td_stage_encode(const td_stage_msg *msg, void *buffer, size_t capacity_bytes, size_t *n_bytes,
                     td_err *err);
bool td_stage_decode(const void *bytes, size_t n_bytes, td_stage_msg *msg, td_err *err);

/* -- records of the stream
 * ---------------------------------------------------------------------- */

typedef enum {
    TD_RECORD_OPEN = 1,
    TD_RECORD_TRUNCATE,
    TD_RECORD_COMMIT,
    TD_RECORD_CLOSE,
    TD_RECORD_BATCH,  /* on its way through the stages */
    TD_RECORD_RESULT, /* what the last stage chose */
    TD_RECORD_ASK,    /* what would its head guess? */
    TD_RECORD_GUESSES,
    TD_RECORD_END
} td_record_kind;

typedef struct {
    uint64_t start_us, end_us; /* by the clock of whoever did it */
    uint32_t waited_us;        /* before, for what was there first */
} td_stage_span;

typedef struct {
    uint8_t slot;
    bool is_output;
    uint16_t i_out; /* of an output: which */
    uint32_t sequence, position, token;
} td_stage_row;

typedef struct {
    uint64_t id;
    bool is_prefill, is_skipped; /* skipped: cancelled, no later stage does anything */
    bool is_cancelled;
    bool is_restored; /* a chunk that all have found: there are no activations, and no outputs */
    uint16_t n_rows;  /* 1..TD_STAGE_ROWS_MAX; to verify 1..TD_STAGE_OUT_MAX; left may be 0 */
    uint16_t n_out;   /* of all rows, also of those that were left out */
    td_stage_row rows[TD_STAGE_ROWS_MAX];
    uint8_t n_spans; /* of the stages 0..n-1 */
    td_stage_span spans[TD_STAGE_PARTS_MAX];
    /* Of activations, [n_rows][n_embd]: how many there are in all, and those behind the
     * record. */
    uint32_t n_bytes, n_here;
    const uint8_t *bytes; /* [n_here] */
    /* Of a result: */
    uint32_t chosen[TD_STAGE_OUT_MAX]; /* [n_out] */
    uint16_t n_bad;                    /* 0..TD_STAGE_OUT_MAX */
    uint32_t bad[TD_STAGE_OUT_MAX];
} td_stage_batch;

/* What a head is asked at once, and what it answers. */
typedef struct {
    uint8_t n; /* 1..TD_STAGE_SLOTS_MAX, of different slots */
    struct {
        uint8_t slot, k;          /* ASK: k wanted, 1..TD_STAGE_GUESSES_MAX, */
        uint32_t position, token; /* behind so many tokens, 1..n_ctx, of which this is the last */
        uint8_t n_ids;            /* GUESSES: 0..TD_STAGE_GUESSES_MAX */
        uint32_t busy_us, ids[TD_STAGE_GUESSES_MAX]; /* [n_ids] */
    } of[TD_STAGE_SLOTS_MAX];
} td_stage_asks;

typedef struct {
    td_record_kind kind;
    uint8_t slot, from_slot;
    uint32_t length;
    td_wire_open open; /* of OPEN: stream and sampler; its `sequence` is not used */
    td_stage_batch *batch;
    td_stage_asks *asks;
} td_stage_record;

/* What a worker did with a batch, by its clock: in this order, none before the one ahead of it was
 * over. */
typedef struct {
    uint64_t batch;
    bool is_prefill, is_skipped;
    uint16_t n_rows;                         /* that were left to do, 0..TD_STAGE_ROWS_MAX */
    uint32_t n_in_bytes, n_out_bytes;        /* of activations */
    td_stage_span received;                  /* from its first message to its last */
    td_stage_span parts[TD_STAGE_PARTS_MAX]; /* [n_parts]; an empty one did nothing */
    td_stage_span sent;                      /* until the link had taken all of it */
} td_stage_event;

size_t td_stage_event_bytes(uint32_t n_parts);
void td_stage_write_event(td_cursor_out *c, uint32_t n_parts, const td_stage_event *event);
bool td_stage_read_event(td_cursor *c, uint32_t n_parts, td_stage_event *event);

/* What both ends know. n_embd 0: no activations here, the stage embeds tokens or chose them. */
typedef struct {
    uint32_t n_slots, n_ctx, n_vocab, n_embd;
    uint8_t wire;  /* of the PLAN */
    bool has_head; /* likewise */
} td_stage_limits;

/* Of a row's activations. */
static inline uint32_t td_stage_row_bytes(uint32_t n_embd, uint8_t wire)
{
    return n_embd * (wire == TD_STAGE_F16 ? 2u : 4u);
}

/* One STREAM message under construction in bytes[TD_WIRE_MESSAGE_MAX]. */
typedef struct {
    td_cursor_out out;
    uint32_t n_records;
    bool is_full; /* ended by a batch's activations */
} td_stage_writer;

void td_stage_writer_begin(td_stage_writer *w, void *bytes, td_err *err);
/* False, with nothing written, when there is no room: end it and begin another. A batch's bytes go
 * behind it as far as there is room: batch->n_here of batch->n_bytes, and nothing may follow. */
bool td_stage_writer_put(td_stage_writer *w, const td_stage_record *record);
void td_stage_writer_end(td_stage_writer *w, uint64_t session, uint64_t seq, size_t *n_bytes);

/* The next record of a STREAM's payload, into *record, record->batch and record->asks, which the
 * caller sets. The cursor is begun over msg.stream. */
bool td_stage_read_record(td_cursor *c, const td_stage_limits *limits, td_stage_record *record);

#endif
