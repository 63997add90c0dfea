/* Encoding and decoding of messages. The checks of values live in one place, check_message, which
 * both directions pass: decode after it has read the payload, encode before it writes one. So the
 * reader and the writer below only move bytes, and there is one list of what is allowed. */
#include "transport/wire.h"

#include "base/check.h"
#include "transport/wire_parts.h"

#include <inttypes.h>
#include <string.h>

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

static const char *type_name(uint8_t type) { return td_wire_type_name((td_wire_type)type); }
static size_t type_max_bytes(uint8_t type) { return td_wire_type_max_bytes((td_wire_type)type); }
static const td_wire_types types = {TD_WIRE_HELLO, TD_WIRE_TYPE_END - 1, type_name, type_max_bytes};

td_wire_limits td_wire_limits_widest(void)
{
    return (td_wire_limits){.n_vocab = TD_WIRE_VOCAB_MAX, .n_ctx = TD_WIRE_POSITION_MAX};
}

/* --- What is allowed ------------------------------------------------------------------------ */

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
    return td_wire_check_u32("role", (uint32_t)h->role, 1, TD_WIRE_ROLE_END - 1, err) &&
           td_wire_check_u32("n_vocab", h->n_vocab, 1, TD_WIRE_VOCAB_MAX, err) &&
           td_wire_check_u32("n_hashed", h->n_hashed, 1, h->n_vocab, err) &&
           td_wire_check_u32("n_ctx", h->n_ctx, 1, TD_WIRE_POSITION_MAX, err) &&
           td_wire_check_u32("max_draft", h->max_draft, 1, TD_WIRE_DRAFT_MAX, err) &&
           td_wire_check_u32("ping_us", h->ping_us, TD_WIRE_PING_MIN_US, TD_WIRE_PING_MAX_US,
                             err) &&
           td_wire_check_text("build", h->build, TD_WIRE_BUILD_MAX, err);
}

static bool check_open(const td_wire_open *o, td_err *err)
{
    return td_wire_check_f32("temperature", o->temperature, 0, 100, err) &&
           td_wire_check_u32("top_k", o->top_k, 0, TD_WIRE_VOCAB_MAX, err) &&
           td_wire_check_f32("top_p", o->top_p, 0, 1, err) &&
           td_wire_check_f32("min_p", o->min_p, 0, 1, err) &&
           td_wire_check_f32("repeat_penalty", o->repeat_penalty, 0.01f, 100, err) &&
           td_wire_check_u32("repeat_last_n", o->repeat_last_n, 0, TD_WIRE_POSITION_MAX, err);
}

static bool check_payload(const td_wire_msg *m, const td_wire_limits *limits, td_err *err)
{
    switch (m->type) {
    case TD_WIRE_HELLO:
    case TD_WIRE_HELLO_OK:
        return check_hello(&m->hello, err);
    case TD_WIRE_REFUSE:
        return td_wire_check_u32("code", (uint32_t)m->refuse.code, 1, TD_WIRE_REFUSE_END - 1,
                                 err) &&
               td_wire_check_text("reason", m->refuse.reason, TD_WIRE_REASON_MAX, err);
    case TD_WIRE_HASH_QUERY:
    case TD_WIRE_HASH_REPLY:
        return td_wire_check_u32("b", m->hash.b, 1, TD_WIRE_VOCAB_MAX, err) &&
               td_wire_check_u32("a", m->hash.a, 0, m->hash.b - 1, err);
    case TD_WIRE_OPEN:
        return check_open(&m->open, err);
    case TD_WIRE_FEED:
        return td_wire_check_u32("n", m->feed.n, 1, TD_WIRE_IDS_MAX, err) &&
               check_span(m->feed.position, m->feed.n, limits->n_ctx, err) &&
               check_ids(m->feed.ids, m->feed.n, limits->n_vocab, err);
    case TD_WIRE_PROPOSE:
        return td_wire_check_u32("position", m->propose.position, 0, limits->n_ctx, err) &&
               td_wire_check_u32("k", m->propose.k, 1, TD_WIRE_DRAFT_MAX, err);
    case TD_WIRE_DRAFT:
        return td_wire_check_u32("n", m->draft.n, 0, TD_WIRE_DRAFT_MAX, err) &&
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
    td_wire_write_text(c, h->build);
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
        td_wire_write_text(c, m->refuse.reason);
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
        td_cursor_write_u8(c, m->propose.goes_on);
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

bool td_wire_encode(const td_wire_msg *msg, const td_wire_limits *limits, void *buffer,
                    size_t capacity_bytes, size_t *n_bytes, td_err *err)
{
    if (!is_type(msg->type))
        return td_err_set(err, TD_E_BUG, "message type %d does not exist", (int)msg->type);
    if (!check_message(msg, limits, err))
        return false;
    size_t cap = td_wire_type_max_bytes(msg->type);
    td_wire_head head = {(uint8_t)msg->type, msg->session, msg->seq};
    td_cursor_out c = td_cursor_out_begin(td_wire_type_name(msg->type), buffer,
                                          capacity_bytes < cap ? capacity_bytes : cap, err);
    td_wire_begin(&c);
    write_payload(&c, msg);
    return td_wire_end(&c, &head, n_bytes, err);
}

/* --- Reading -------------------------------------------------------------------------------- */

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
              td_wire_read_text(c, "build", h->build, TD_WIRE_BUILD_MAX);
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

static bool read_bool(td_cursor *c, bool *out)
{
    uint8_t value;
    if (!td_cursor_read_u8(c, &value))
        return false;
    if (value > 1)
        return td_cursor_fail(c, "a flag is %u; allowed: 0..1", (unsigned)value);
    *out = value;
    return true;
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
        return td_wire_read_text(c, "reason", m->refuse.reason, TD_WIRE_REASON_MAX);
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
               td_cursor_read_u32(c, &m->propose.position) &&
               td_cursor_read_u32(c, &m->propose.k) && read_bool(c, &m->propose.goes_on);
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

bool td_wire_peek(const void *bytes, size_t n_bytes, uint64_t *session)
{
    td_cursor c = td_cursor_begin("message", bytes, n_bytes, NULL);
    td_wire_head head;
    bool is_ours = n_bytes <= TD_WIRE_MESSAGE_MAX && td_wire_read_head(&c, &types, &head);
    *session = is_ours ? head.session : 0;
    return is_ours;
}

bool td_wire_decode(const void *bytes, size_t n_bytes, const td_wire_limits *limits,
                    uint32_t ids[TD_WIRE_IDS_MAX], td_wire_msg *msg, td_err *err)
{
    td_cursor c = td_cursor_begin("message", bytes, n_bytes, err);
    *msg = (td_wire_msg){0};
    if (n_bytes < TD_WIRE_HEADER_BYTES)
        return td_err_set(err, TD_E_DATA, "message of %zu bytes; allowed: %u and more", n_bytes,
                          TD_WIRE_HEADER_BYTES);
    td_wire_head head;
    if (!td_wire_read_head(&c, &types, &head))
        return false;
    msg->type = (td_wire_type)head.type;
    msg->session = head.session;
    msg->seq = head.seq;
    if (!read_payload(&c, msg, ids))
        return false;
    if (td_cursor_left(&c) != 0)
        return td_cursor_fail(&c, "%s has %" PRIu64 " bytes too many", td_wire_type_name(msg->type),
                              td_cursor_left(&c));
    return check_message(msg, limits, err);
}
