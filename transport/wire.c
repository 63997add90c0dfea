/* Encoding and decoding of messages. The checks of values live in one place, check_message, which
 * both directions pass: decode after it has read the payload, encode before it writes one. So the
 * reader and the writer below only move bytes, and there is one list of what is allowed. */
#include "transport/wire.h"

#include "base/check.h"
#include "base/cursor.h"

#include <inttypes.h>
#include <string.h>

#define CRC_OFFSET    28u
#define LENGTH_OFFSET 24u

static const char *const type_names[TD_WIRE_TYPE_END] = {
    [TD_WIRE_HELLO] = "HELLO",
    [TD_WIRE_HELLO_OK] = "HELLO_OK",
    [TD_WIRE_REFUSE] = "REFUSE",
    [TD_WIRE_HASH_QUERY] = "HASH_QUERY",
    [TD_WIRE_HASH_REPLY] = "HASH_REPLY",
    [TD_WIRE_OPEN] = "OPEN",
    [TD_WIRE_FEED] = "FEED",
    [TD_WIRE_PROPOSE] = "PROPOSE",
    [TD_WIRE_DRAFT] = "DRAFT",
    [TD_WIRE_CLOSE] = "CLOSE",
    [TD_WIRE_PING] = "PING",
    [TD_WIRE_PONG] = "PONG",
    [TD_WIRE_BYE] = "BYE",
};

static bool is_type(td_wire_type type)
{
    return (unsigned)type >= TD_WIRE_HELLO && (unsigned)type < TD_WIRE_TYPE_END;
}

const char *td_wire_type_name(td_wire_type type) { return is_type(type) ? type_names[type] : "?"; }

bool td_wire_is_hello_family(td_wire_type type)
{
    return is_type(type) && type <= TD_WIRE_HASH_REPLY;
}

size_t td_wire_type_max_bytes(td_wire_type type)
{
    if (!is_type(type))
        return 0;
    return td_wire_is_hello_family(type) ? TD_WIRE_HELLO_MAX : TD_WIRE_MESSAGE_MAX;
}

td_wire_limits td_wire_limits_widest(void)
{
    return (td_wire_limits){.n_vocab = TD_WIRE_VOCAB_MAX, .n_ctx = TD_WIRE_POSITION_MAX};
}

/* --- What is allowed ------------------------------------------------------------------------ */

static bool check_u32(const char *field, uint32_t value, uint32_t min, uint32_t max, td_err *err)
{
    if (value < min || value > max)
        return td_err_set(err, TD_E_DATA, "%s is %" PRIu32 "; allowed: %" PRIu32 "..%" PRIu32,
                          field, value, min, max);
    return true;
}

/* The comparison is false for a NaN. */
static bool check_f32(const char *field, float value, float min, float max, td_err *err)
{
    if (!(value >= min && value <= max))
        return td_err_set(err, TD_E_DATA, "%s is %g; allowed: %g..%g", field, (double)value,
                          (double)min, (double)max);
    return true;
}

static bool check_text(const char *field, const char *text, size_t max, td_err *err)
{
    size_t n = strnlen(text, max + 1);
    if (n > max)
        return td_err_set(err, TD_E_DATA, "%s is longer than %zu bytes", field, max);
    for (size_t i = 0; i < n; i++)
        if (text[i] < 0x20 || text[i] > 0x7e)
            return td_err_set(err, TD_E_DATA,
                              "%s: byte %zu is 0x%02x; allowed: printable ASCII 0x20..0x7e", field,
                              i, (unsigned)(uint8_t)text[i]);
    return true;
}

static bool check_ids(const uint32_t *ids, uint32_t n, uint32_t n_vocab, td_err *err)
{
    for (uint32_t i = 0; i < n; i++)
        if (ids[i] >= n_vocab)
            return td_err_set(err, TD_E_DATA,
                              "ids[%" PRIu32 "] is %" PRIu32 "; allowed: 0..%" PRIu32, i, ids[i],
                              n_vocab - 1);
    return true;
}

/* position + n <= n_ctx, without a sum that could wrap. */
static bool check_span(uint32_t position, uint32_t n, uint32_t n_ctx, td_err *err)
{
    if (n > n_ctx || position > n_ctx - n)
        return td_err_set(err, TD_E_DATA,
                          "position is %" PRIu32 " with %" PRIu32
                          " tokens; allowed: an end of at most %" PRIu32,
                          position, n, n_ctx);
    return true;
}

static bool check_hello(const td_wire_hello *h, td_err *err)
{
    if (h->protocol != TD_WIRE_PROTOCOL)
        return true; /* nothing else was read; the peer module refuses it by name */
    return check_u32("role", (uint32_t)h->role, 1, TD_WIRE_ROLE_END - 1, err) &&
           check_u32("n_vocab", h->n_vocab, 1, TD_WIRE_VOCAB_MAX, err) &&
           check_u32("n_hashed", h->n_hashed, 1, h->n_vocab, err) &&
           check_u32("n_ctx", h->n_ctx, 1, TD_WIRE_POSITION_MAX, err) &&
           check_u32("max_draft", h->max_draft, 1, TD_WIRE_DRAFT_MAX, err) &&
           check_u32("ping_us", h->ping_us, TD_WIRE_PING_MIN_US, TD_WIRE_PING_MAX_US, err) &&
           check_text("build", h->build, TD_WIRE_BUILD_MAX, err);
}

static bool check_open(const td_wire_open *o, td_err *err)
{
    return check_f32("temperature", o->temperature, 0, 100, err) &&
           check_u32("top_k", o->top_k, 0, TD_WIRE_VOCAB_MAX, err) &&
           check_f32("top_p", o->top_p, 0, 1, err) && check_f32("min_p", o->min_p, 0, 1, err) &&
           check_f32("repeat_penalty", o->repeat_penalty, 0.01f, 100, err) &&
           check_u32("repeat_last_n", o->repeat_last_n, 0, TD_WIRE_POSITION_MAX, err);
}

static bool check_payload(const td_wire_msg *m, const td_wire_limits *limits, td_err *err)
{
    switch (m->type) {
    case TD_WIRE_HELLO:
    case TD_WIRE_HELLO_OK:
        return check_hello(&m->hello, err);
    case TD_WIRE_REFUSE:
        return check_u32("code", (uint32_t)m->refuse.code, 1, TD_WIRE_REFUSE_END - 1, err) &&
               check_text("reason", m->refuse.reason, TD_WIRE_REASON_MAX, err);
    case TD_WIRE_HASH_QUERY:
    case TD_WIRE_HASH_REPLY:
        return check_u32("b", m->hash.b, 1, TD_WIRE_VOCAB_MAX, err) &&
               check_u32("a", m->hash.a, 0, m->hash.b - 1, err);
    case TD_WIRE_OPEN:
        return check_open(&m->open, err);
    case TD_WIRE_FEED:
        return check_u32("n", m->feed.n, 1, TD_WIRE_IDS_MAX, err) &&
               check_span(m->feed.position, m->feed.n, limits->n_ctx, err) &&
               check_ids(m->feed.ids, m->feed.n, limits->n_vocab, err);
    case TD_WIRE_PROPOSE:
        return check_u32("position", m->propose.position, 0, limits->n_ctx, err) &&
               check_u32("k", m->propose.k, 1, TD_WIRE_DRAFT_MAX, err);
    case TD_WIRE_DRAFT:
        return check_u32("n", m->draft.n, 0, TD_WIRE_DRAFT_MAX, err) &&
               check_span(m->draft.position, m->draft.n, limits->n_ctx, err) &&
               check_ids(m->draft.ids, m->draft.n, limits->n_vocab, err);
    case TD_WIRE_CLOSE:
    case TD_WIRE_PING:
    case TD_WIRE_PONG:
    case TD_WIRE_BYE:
        return true;
    case TD_WIRE_TYPE_END:
        break;
    }
    return td_err_set(err, TD_E_BUG, "message type %d does not exist", (int)m->type);
}

static bool check_message(const td_wire_msg *m, const td_wire_limits *limits, td_err *err)
{
    TD_ASSERT(limits->n_vocab >= 1 && limits->n_vocab <= TD_WIRE_VOCAB_MAX);
    TD_ASSERT(limits->n_ctx <= TD_WIRE_POSITION_MAX);
    bool ok = true;
    if (m->session == 0)
        ok = td_err_set(err, TD_E_DATA, "session is 0; allowed: any other number");
    else if (td_wire_is_hello_family(m->type) && m->seq != 0)
        ok = td_err_set(err, TD_E_DATA, "seq is %" PRIu64 "; allowed for this type: 0", m->seq);
    else if (!td_wire_is_hello_family(m->type) && m->seq == 0)
        ok = td_err_set(err, TD_E_DATA, "seq is 0; allowed for this type: 1 and up");
    return (ok && check_payload(m, limits, err)) ||
           td_err_prepend(err, "%s message", td_wire_type_name(m->type));
}

/* --- Writing -------------------------------------------------------------------------------- */

/* The writer's failures are sticky, so the results of single writes are not looked at. */
static void write_text(td_cursor_out *c, const char *text)
{
    size_t n = strlen(text);
    td_cursor_write_u16(c, (uint16_t)n);
    td_cursor_write_bytes(c, text, n);
}

static void write_ids(td_cursor_out *c, const uint32_t *ids, uint32_t n)
{
    td_cursor_write_u32(c, n);
    for (uint32_t i = 0; i < n; i++)
        td_cursor_write_u32(c, ids[i]);
}

static void write_hello(td_cursor_out *c, const td_wire_hello *h)
{
    td_cursor_write_u32(c, h->protocol);
    if (h->protocol != TD_WIRE_PROTOCOL)
        return;
    td_cursor_write_u8(c, (uint8_t)h->role);
    td_cursor_write_u64(c, h->node);
    td_cursor_write_u32(c, h->n_vocab);
    td_cursor_write_u32(c, h->n_hashed);
    td_cursor_write_u64(c, h->vocab_hash);
    td_cursor_write_u32(c, h->n_ctx);
    td_cursor_write_u32(c, h->max_draft);
    td_cursor_write_u32(c, h->ping_us);
    write_text(c, h->build);
}

static void write_open(td_cursor_out *c, const td_wire_open *o)
{
    td_cursor_write_u32(c, o->sequence);
    td_cursor_write_u64(c, o->stream);
    td_cursor_write_f32(c, o->temperature);
    td_cursor_write_u32(c, o->top_k);
    td_cursor_write_f32(c, o->top_p);
    td_cursor_write_f32(c, o->min_p);
    td_cursor_write_f32(c, o->repeat_penalty);
    td_cursor_write_u32(c, o->repeat_last_n);
}

static void write_payload(td_cursor_out *c, const td_wire_msg *m)
{
    switch (m->type) {
    case TD_WIRE_HELLO:
    case TD_WIRE_HELLO_OK:
        write_hello(c, &m->hello);
        break;
    case TD_WIRE_REFUSE:
        td_cursor_write_u8(c, (uint8_t)m->refuse.code);
        write_text(c, m->refuse.reason);
        break;
    case TD_WIRE_HASH_QUERY:
    case TD_WIRE_HASH_REPLY:
        td_cursor_write_u32(c, m->hash.a);
        td_cursor_write_u32(c, m->hash.b);
        if (m->type == TD_WIRE_HASH_REPLY)
            td_cursor_write_u64(c, m->hash.hash);
        break;
    case TD_WIRE_OPEN:
        write_open(c, &m->open);
        break;
    case TD_WIRE_FEED:
        td_cursor_write_u32(c, m->feed.sequence);
        td_cursor_write_u32(c, m->feed.epoch);
        td_cursor_write_u32(c, m->feed.position);
        write_ids(c, m->feed.ids, m->feed.n);
        break;
    case TD_WIRE_PROPOSE:
        td_cursor_write_u32(c, m->propose.sequence);
        td_cursor_write_u32(c, m->propose.epoch);
        td_cursor_write_u32(c, m->propose.position);
        td_cursor_write_u32(c, m->propose.k);
        break;
    case TD_WIRE_DRAFT:
        td_cursor_write_u32(c, m->draft.sequence);
        td_cursor_write_u32(c, m->draft.epoch);
        td_cursor_write_u32(c, m->draft.position);
        td_cursor_write_u32(c, m->draft.busy_us);
        write_ids(c, m->draft.ids, m->draft.n);
        break;
    case TD_WIRE_CLOSE:
        td_cursor_write_u32(c, m->close.sequence);
        break;
    case TD_WIRE_PING:
    case TD_WIRE_PONG:
        td_cursor_write_u64(c, m->ping.progress);
        td_cursor_write_u32(c, m->ping.n_pending);
        break;
    case TD_WIRE_BYE:
    case TD_WIRE_TYPE_END:
        break;
    }
}

/* The checksum of a whole message, its own field taken as zero. */
static uint32_t message_crc(const uint8_t *bytes, size_t n_bytes)
{
    static const uint8_t zero[4];
    uint32_t crc = td_wire_crc32c(0, bytes, CRC_OFFSET);
    crc = td_wire_crc32c(crc, zero, sizeof zero);
    return td_wire_crc32c(crc, bytes + TD_WIRE_HEADER_BYTES, n_bytes - TD_WIRE_HEADER_BYTES);
}

bool td_wire_encode(const td_wire_msg *msg, const td_wire_limits *limits, void *buffer,
                    size_t capacity_bytes, size_t *n_bytes, td_err *err)
{
    if (!is_type(msg->type))
        return td_err_set(err, TD_E_BUG, "message type %d does not exist", (int)msg->type);
    if (!check_message(msg, limits, err))
        return false;
    size_t cap = td_wire_type_max_bytes(msg->type);
    td_cursor_out c = td_cursor_out_begin(td_wire_type_name(msg->type), buffer,
                                          capacity_bytes < cap ? capacity_bytes : cap, err);
    td_cursor_write_u32(&c, TD_WIRE_MAGIC);
    td_cursor_write_u16(&c, TD_WIRE_VERSION);
    td_cursor_write_u8(&c, (uint8_t)msg->type);
    td_cursor_write_u8(&c, 0); /* flags */
    td_cursor_write_u64(&c, msg->session);
    td_cursor_write_u64(&c, msg->seq);
    td_cursor_write_u32(&c, 0); /* length and checksum: below, when the payload is known */
    td_cursor_write_u32(&c, 0);
    write_payload(&c, msg);
    if (c.failed)
        return false;
    td_cursor_out tail = td_cursor_out_begin("header", c.bytes + LENGTH_OFFSET, 8, err);
    td_cursor_write_u32(&tail, (uint32_t)(c.pos - TD_WIRE_HEADER_BYTES));
    td_cursor_write_u32(&tail, message_crc(c.bytes, c.pos));
    *n_bytes = c.pos;
    return true;
}

/* --- Reading -------------------------------------------------------------------------------- */

static bool read_text(td_cursor *c, const char *field, char *text, size_t max)
{
    uint16_t n;
    if (!td_cursor_read_u16(c, &n))
        return false;
    if (n > max)
        return td_cursor_fail(c, "%s is %u bytes long; allowed: 0..%zu", field, (unsigned)n, max);
    if (!td_cursor_read_bytes(c, text, n))
        return false;
    text[n] = 0;
    if (strlen(text) != n)
        return td_cursor_fail(c, "%s holds a zero byte; allowed: printable ASCII", field);
    return true;
}

static bool read_ids(td_cursor *c, uint32_t *n, uint32_t max, uint32_t *ids)
{
    if (!td_cursor_read_u32(c, n))
        return false;
    if (*n > max)
        return td_cursor_fail(c, "n is %" PRIu32 "; allowed: 0..%" PRIu32, *n, max);
    for (uint32_t i = 0; i < *n; i++)
        if (!td_cursor_read_u32(c, &ids[i]))
            return false;
    return true;
}

static bool read_hello(td_cursor *c, td_wire_hello *h)
{
    uint8_t role;
    if (!td_cursor_read_u32(c, &h->protocol))
        return false;
    if (h->protocol != TD_WIRE_PROTOCOL)
        return td_cursor_skip(c, td_cursor_left(c)); /* laid out in a way we do not know */
    bool ok = td_cursor_read_u8(c, &role) && td_cursor_read_u64(c, &h->node) &&
              td_cursor_read_u32(c, &h->n_vocab) && td_cursor_read_u32(c, &h->n_hashed) &&
              td_cursor_read_u64(c, &h->vocab_hash) && td_cursor_read_u32(c, &h->n_ctx) &&
              td_cursor_read_u32(c, &h->max_draft) && td_cursor_read_u32(c, &h->ping_us) &&
              read_text(c, "build", h->build, TD_WIRE_BUILD_MAX);
    if (ok)
        h->role = (td_wire_role)role; /* checked with the rest */
    return ok;
}

static bool read_open(td_cursor *c, td_wire_open *o)
{
    return td_cursor_read_u32(c, &o->sequence) && td_cursor_read_u64(c, &o->stream) &&
           td_cursor_read_f32(c, &o->temperature) && td_cursor_read_u32(c, &o->top_k) &&
           td_cursor_read_f32(c, &o->top_p) && td_cursor_read_f32(c, &o->min_p) &&
           td_cursor_read_f32(c, &o->repeat_penalty) && td_cursor_read_u32(c, &o->repeat_last_n);
}

static bool read_payload(td_cursor *c, td_wire_msg *m, uint32_t *ids)
{
    uint8_t code = 0;
    switch (m->type) {
    case TD_WIRE_HELLO:
    case TD_WIRE_HELLO_OK:
        return read_hello(c, &m->hello);
    case TD_WIRE_REFUSE:
        if (!td_cursor_read_u8(c, &code))
            return false;
        m->refuse.code = (td_wire_refusal)code; /* checked with the rest */
        return read_text(c, "reason", m->refuse.reason, TD_WIRE_REASON_MAX);
    case TD_WIRE_HASH_QUERY:
        return td_cursor_read_u32(c, &m->hash.a) && td_cursor_read_u32(c, &m->hash.b);
    case TD_WIRE_HASH_REPLY:
        return td_cursor_read_u32(c, &m->hash.a) && td_cursor_read_u32(c, &m->hash.b) &&
               td_cursor_read_u64(c, &m->hash.hash);
    case TD_WIRE_OPEN:
        return read_open(c, &m->open);
    case TD_WIRE_FEED:
        m->feed.ids = ids;
        return td_cursor_read_u32(c, &m->feed.sequence) && td_cursor_read_u32(c, &m->feed.epoch) &&
               td_cursor_read_u32(c, &m->feed.position) &&
               read_ids(c, &m->feed.n, TD_WIRE_IDS_MAX, ids);
    case TD_WIRE_PROPOSE:
        return td_cursor_read_u32(c, &m->propose.sequence) &&
               td_cursor_read_u32(c, &m->propose.epoch) &&
               td_cursor_read_u32(c, &m->propose.position) && td_cursor_read_u32(c, &m->propose.k);
    case TD_WIRE_DRAFT:
        m->draft.ids = ids;
        return td_cursor_read_u32(c, &m->draft.sequence) &&
               td_cursor_read_u32(c, &m->draft.epoch) &&
               td_cursor_read_u32(c, &m->draft.position) &&
               td_cursor_read_u32(c, &m->draft.busy_us) &&
               read_ids(c, &m->draft.n, TD_WIRE_DRAFT_MAX, ids);
    case TD_WIRE_CLOSE:
        return td_cursor_read_u32(c, &m->close.sequence);
    case TD_WIRE_PING:
    case TD_WIRE_PONG:
        return td_cursor_read_u64(c, &m->ping.progress) &&
               td_cursor_read_u32(c, &m->ping.n_pending);
    case TD_WIRE_BYE:
        return true;
    case TD_WIRE_TYPE_END:
        break;
    }
    return td_cursor_fail(c, "message type %d does not exist", (int)m->type);
}

/* The framing: everything that must hold before the payload is looked at. */
static bool read_header(td_cursor *c, td_wire_msg *m)
{
    uint32_t magic, length, crc;
    uint16_t version;
    uint8_t type, flags;
    if (!td_cursor_read_u32(c, &magic) || !td_cursor_read_u16(c, &version) ||
        !td_cursor_read_u8(c, &type) || !td_cursor_read_u8(c, &flags) ||
        !td_cursor_read_u64(c, &m->session) || !td_cursor_read_u64(c, &m->seq) ||
        !td_cursor_read_u32(c, &length) || !td_cursor_read_u32(c, &crc))
        return false;
    if (magic != TD_WIRE_MAGIC)
        return td_cursor_fail(c, "magic is 0x%08" PRIx32 "; allowed: 0x%08x", magic, TD_WIRE_MAGIC);
    if (version != TD_WIRE_VERSION)
        return td_cursor_fail(c, "version is %u; allowed: %u", (unsigned)version, TD_WIRE_VERSION);
    if (!is_type((td_wire_type)type))
        return td_cursor_fail(c, "type is %u; allowed: %d..%d", (unsigned)type, TD_WIRE_HELLO,
                              TD_WIRE_TYPE_END - 1);
    if (flags != 0)
        return td_cursor_fail(c, "flags are 0x%02x; allowed: 0", (unsigned)flags);
    m->type = (td_wire_type)type;
    size_t cap = td_wire_type_max_bytes(m->type);
    if (c->n_bytes > cap)
        return td_cursor_fail(c, "%s of %" PRIu64 " bytes; allowed: at most %zu",
                              td_wire_type_name(m->type), c->n_bytes, cap);
    if (length != td_cursor_left(c))
        return td_cursor_fail(c, "length is %" PRIu32 "; allowed: %" PRIu64 ", what follows it",
                              length, td_cursor_left(c));
    uint32_t seen = message_crc(c->bytes, (size_t)c->n_bytes);
    if (crc != seen)
        return td_cursor_fail(c, "crc32c is 0x%08" PRIx32 "; the bytes give 0x%08" PRIx32, crc,
                              seen);
    return true;
}

bool td_wire_decode(const void *bytes, size_t n_bytes, const td_wire_limits *limits,
                    uint32_t ids[TD_WIRE_IDS_MAX], td_wire_msg *msg, td_err *err)
{
    td_cursor c = td_cursor_begin("message", bytes, n_bytes, err);
    *msg = (td_wire_msg){0};
    if (n_bytes < TD_WIRE_HEADER_BYTES)
        return td_err_set(err, TD_E_DATA, "message of %zu bytes; allowed: %u and more", n_bytes,
                          TD_WIRE_HEADER_BYTES);
    if (!read_header(&c, msg) || !read_payload(&c, msg, ids))
        return false;
    if (td_cursor_left(&c) != 0)
        return td_cursor_fail(&c, "%s has %" PRIu64 " bytes too many", td_wire_type_name(msg->type),
                              td_cursor_left(&c));
    return check_message(msg, limits, err);
}
