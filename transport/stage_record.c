/* Records of the stream. Many fit into a message: what a round commits and truncates travels with
 * its batch. A record is checked as a whole before anyone sees it, and both ends check: what we put
 * is something our peer accepts. */
#include "transport/stage_wire.h"

#include "base/check.h"
#include "transport/wire_parts.h"

#include <inttypes.h>
#include <string.h>

_Static_assert(TD_STAGE_SLOTS_MAX <= 64, "a bit for each slot");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "activations travel as they lie");

extern const td_wire_types td_stage_types;

enum { FLAG_PREFILL = 1, FLAG_SKIPPED = 2, FLAG_CANCELLED = 4, FLAG_RESTORED = 8, FLAG_ALL = 15 };

/* --- Writing -------------------------------------------------------------------------------- */

void td_stage_writer_begin(td_stage_writer *w, void *bytes, td_err *err)
{
    *w = (td_stage_writer){.out = td_cursor_out_begin("STREAM", bytes, TD_WIRE_MESSAGE_MAX, err)};
    td_wire_begin(&w->out);
}

static uint8_t flags_of(const td_stage_batch *b)
{
    return (uint8_t)((b->is_prefill ? FLAG_PREFILL : 0) | (b->is_skipped ? FLAG_SKIPPED : 0) |
                     (b->is_cancelled ? FLAG_CANCELLED : 0) | (b->is_restored ? FLAG_RESTORED : 0));
}

static void write_span(td_cursor_out *c, const td_stage_span *s)
{
    td_cursor_write_u64(c, s->start_us);
    td_cursor_write_u32(c, (uint32_t)(s->end_us - s->start_us));
}

static void write_spans(td_cursor_out *c, const td_stage_batch *b)
{
    td_cursor_write_u8(c, b->n_spans);
    for (uint32_t i = 0; i < b->n_spans; i++) {
        write_span(c, &b->spans[i]);
        td_cursor_write_u32(c, b->spans[i].waited_us);
    }
}

static void write_open(td_cursor_out *c, const td_stage_record *r)
{
    td_cursor_write_u8(c, r->from_slot);
    td_cursor_write_u32(c, r->length);
    td_cursor_write_u64(c, r->open.stream);
    td_cursor_write_f32(c, r->open.temperature);
    td_cursor_write_u32(c, r->open.top_k);
    td_cursor_write_f32(c, r->open.top_p);
    td_cursor_write_f32(c, r->open.min_p);
    td_cursor_write_f32(c, r->open.repeat_penalty);
    td_cursor_write_u32(c, r->open.repeat_last_n);
}

/* What a batch on its way and a result begin with. */
static void write_head(td_cursor_out *c, const td_stage_batch *b)
{
    td_cursor_write_u64(c, b->id);
    td_cursor_write_u8(c, flags_of(b));
    td_cursor_write_u16(c, b->n_rows);
    td_cursor_write_u16(c, b->n_out);
    write_spans(c, b);
}

static void write_batch(td_cursor_out *c, const td_stage_batch *b)
{
    write_head(c, b);
    for (uint32_t i = 0; i < b->n_rows; i++) {
        const td_stage_row *r = &b->rows[i];
        td_cursor_write_u8(c, r->slot);
        td_cursor_write_u8(c, r->is_output);
        td_cursor_write_u16(c, r->i_out);
        td_cursor_write_u32(c, r->sequence);
        td_cursor_write_u32(c, r->position);
        td_cursor_write_u32(c, r->token);
    }
    td_cursor_write_u32(c, b->n_bytes);
}

static void write_result(td_cursor_out *c, const td_stage_batch *b)
{
    write_head(c, b);
    for (uint32_t i = 0; i < b->n_out; i++)
        td_cursor_write_u32(c, b->chosen[i]);
    td_cursor_write_u16(c, b->n_bad);
    for (uint32_t i = 0; i < b->n_bad; i++)
        td_cursor_write_u32(c, b->bad[i]);
}

static void write_ask(td_cursor_out *c, const td_stage_asks *a)
{
    td_cursor_write_u8(c, a->n);
    for (uint32_t i = 0; i < a->n; i++) {
        td_cursor_write_u8(c, a->of[i].slot);
        td_cursor_write_u8(c, a->of[i].k);
        td_cursor_write_u32(c, a->of[i].position);
        td_cursor_write_u32(c, a->of[i].token);
    }
}

static void write_guesses(td_cursor_out *c, const td_stage_asks *a)
{
    td_cursor_write_u8(c, a->n);
    for (uint32_t i = 0; i < a->n; i++) {
        td_cursor_write_u32(c, a->of[i].busy_us);
        td_cursor_write_u8(c, a->of[i].n_ids);
        for (uint32_t k = 0; k < a->of[i].n_ids; k++)
            td_cursor_write_u32(c, a->of[i].ids[k]);
    }
}

static size_t guesses_bytes(const td_stage_asks *a)
{
    size_t n_bytes = 1 + 1 + 5u * a->n;
    for (uint32_t i = 0; i < a->n; i++)
        n_bytes += 4u * a->of[i].n_ids;
    return n_bytes;
}

static size_t bytes_of(const td_stage_record *r)
{
    const td_stage_batch *b = r->batch;
    switch (r->kind) {
    case TD_RECORD_OPEN:
        return 2 + 1 + 4 + 8 + 24;
    case TD_RECORD_BATCH:
        return 1 + 8 + 1 + 4 + 1 + 16u * b->n_spans + 16u * b->n_rows + 4;
    case TD_RECORD_RESULT:
        return 1 + 8 + 1 + 4 + 1 + 16u * b->n_spans + 4u * b->n_out + 2 + 4u * b->n_bad;
    case TD_RECORD_ASK:
        return 1 + 1 + 10u * r->asks->n;
    case TD_RECORD_GUESSES:
        return guesses_bytes(r->asks);
    default:
        return 2 + 4;
    }
}

bool td_stage_writer_put(td_stage_writer *w, const td_stage_record *r)
{
    td_cursor_out *c = &w->out;
    if (w->is_full || bytes_of(r) > c->capacity_bytes - c->pos)
        return false;
    w->n_records++;
    td_cursor_write_u8(c, (uint8_t)r->kind);
    switch (r->kind) {
    case TD_RECORD_OPEN:
        td_cursor_write_u8(c, r->slot);
        write_open(c, r);
        break;
    case TD_RECORD_TRUNCATE:
    case TD_RECORD_COMMIT:
        td_cursor_write_u8(c, r->slot);
        td_cursor_write_u32(c, r->length);
        break;
    case TD_RECORD_CLOSE:
        td_cursor_write_u8(c, r->slot);
        break;
    case TD_RECORD_BATCH: {
        write_batch(c, r->batch);
        uint64_t left = c->capacity_bytes - c->pos;
        r->batch->n_here = r->batch->n_bytes < left ? r->batch->n_bytes : (uint32_t)left;
        td_cursor_write_bytes(c, r->batch->bytes, r->batch->n_here);
        w->is_full = r->batch->n_bytes > 0;
        break;
    }
    case TD_RECORD_RESULT:
        write_result(c, r->batch);
        break;
    case TD_RECORD_ASK:
        write_ask(c, r->asks);
        break;
    case TD_RECORD_GUESSES:
        write_guesses(c, r->asks);
        break;
    case TD_RECORD_END:
        break;
    }
    TD_ASSERT(!c->failed);
    return true;
}

void td_stage_writer_end(td_stage_writer *w, uint64_t session, uint64_t seq, size_t *n_bytes)
{
    td_wire_head head = {TD_STAGE_STREAM, session, seq};
    td_err bug = {0};
    bool is_ok = td_wire_end(&w->out, &head, n_bytes, &bug);
    TD_ASSERT(is_ok);
}

/* --- Reading -------------------------------------------------------------------------------- */

static bool read_slot(td_cursor *c, const td_stage_limits *l, uint8_t *slot)
{
    return td_cursor_read_u8(c, slot) &&
           (*slot < l->n_slots ||
            td_cursor_fail(c, "slot is %u; allowed: 0..%u", *slot, l->n_slots - 1));
}

static bool read_length(td_cursor *c, const td_stage_limits *l, uint32_t *length)
{
    return td_cursor_read_u32(c, length) &&
           (*length <= l->n_ctx ||
            td_cursor_fail(c, "length is %" PRIu32 "; allowed: 0..%" PRIu32, *length, l->n_ctx));
}

static bool read_open(td_cursor *c, const td_stage_limits *l, td_stage_record *r)
{
    td_wire_open *o = &r->open;
    td_err why = {0};
    if (!read_slot(c, l, &r->slot) || !read_slot(c, l, &r->from_slot) ||
        !read_length(c, l, &r->length) || !td_cursor_read_u64(c, &o->stream) ||
        !td_cursor_read_f32(c, &o->temperature) || !td_cursor_read_u32(c, &o->top_k) ||
        !td_cursor_read_f32(c, &o->top_p) || !td_cursor_read_f32(c, &o->min_p) ||
        !td_cursor_read_f32(c, &o->repeat_penalty) || !td_cursor_read_u32(c, &o->repeat_last_n))
        return false;
    bool is_ok =
        td_wire_check_f32("temperature", o->temperature, 0, 100, &why) &&
        td_wire_check_u32("top_k", o->top_k, 0, TD_WIRE_VOCAB_MAX, &why) &&
        td_wire_check_f32("top_p", o->top_p, 0, 1, &why) &&
        td_wire_check_f32("min_p", o->min_p, 0, 1, &why) &&
        td_wire_check_f32("repeat_penalty", o->repeat_penalty, 0.01f, 100, &why) &&
        td_wire_check_u32("repeat_last_n", o->repeat_last_n, 0, TD_WIRE_POSITION_MAX, &why);
    if (is_ok && (!(o->top_p > 0) || !(o->min_p < 1)))
        is_ok = td_err_set(&why, TD_E_DATA, "top_p is %g, min_p is %g; allowed: above 0, below 1",
                           (double)o->top_p, (double)o->min_p);
    return is_ok || td_cursor_fail(c, "%s", why.message);
}

static bool read_span(td_cursor *c, td_stage_span *s)
{
    uint32_t us;
    if (!td_cursor_read_u64(c, &s->start_us) || !td_cursor_read_u32(c, &us))
        return false;
    if (s->start_us > UINT64_MAX - us)
        return td_cursor_fail(c, "a span ends after the end of time");
    s->end_us = s->start_us + us;
    s->waited_us = 0;
    return true;
}

static bool read_spans(td_cursor *c, td_stage_batch *b)
{
    if (!td_cursor_read_u8(c, &b->n_spans))
        return false;
    if (b->n_spans > TD_STAGE_PARTS_MAX)
        return td_cursor_fail(c, "n_spans is %u; allowed: 0..%u", b->n_spans, TD_STAGE_PARTS_MAX);
    for (uint32_t i = 0; i < b->n_spans; i++)
        if (!read_span(c, &b->spans[i]) || !td_cursor_read_u32(c, &b->spans[i].waited_us))
            return false;
    return true;
}

/* What a batch and its result have in common. */
static bool read_head(td_cursor *c, td_stage_batch *b)
{
    uint8_t flags;
    if (!td_cursor_read_u64(c, &b->id) || !td_cursor_read_u8(c, &flags) ||
        !td_cursor_read_u16(c, &b->n_rows) || !td_cursor_read_u16(c, &b->n_out))
        return false;
    if (flags > FLAG_ALL)
        return td_cursor_fail(c, "flags are 0x%02x; allowed: 0..0x%02x", flags, FLAG_ALL);
    b->is_prefill = flags & FLAG_PREFILL;
    b->is_skipped = flags & FLAG_SKIPPED;
    b->is_cancelled = flags & FLAG_CANCELLED;
    b->is_restored = flags & FLAG_RESTORED;
    uint32_t max = b->is_prefill ? TD_STAGE_ROWS_MAX : TD_STAGE_OUT_MAX;
    if (b->n_rows > max)
        return td_cursor_fail(c, "n_rows is %u; allowed: 0..%u", b->n_rows, max);
    if (b->n_out > TD_STAGE_OUT_MAX)
        return td_cursor_fail(c, "n_out is %u; allowed: 0..%u", b->n_out, TD_STAGE_OUT_MAX);
    return read_spans(c, b);
}

static bool read_row(td_cursor *c, const td_stage_limits *l, const td_stage_batch *b,
                     td_stage_row *r)
{
    uint8_t is_output;
    if (!read_slot(c, l, &r->slot) || !td_cursor_read_u8(c, &is_output) ||
        !td_cursor_read_u16(c, &r->i_out) || !td_cursor_read_u32(c, &r->sequence) ||
        !td_cursor_read_u32(c, &r->position) || !td_cursor_read_u32(c, &r->token))
        return false;
    r->is_output = is_output;
    if (is_output > 1 || (is_output && r->i_out >= b->n_out))
        return td_cursor_fail(c, "output %u of a row is %u; allowed: below %u", is_output, r->i_out,
                              b->n_out);
    if (r->position >= l->n_ctx || r->token >= l->n_vocab)
        return td_cursor_fail(c,
                              "a row's position is %" PRIu32 ", its token %" PRIu32
                              "; allowed: below %" PRIu32 " and %" PRIu32,
                              r->position, r->token, l->n_ctx, l->n_vocab);
    return true;
}

/* Rows of one sequence ascend, and outputs stand in their order. */
static bool check_rows(td_cursor *c, const td_stage_batch *b)
{
    int32_t i_out = -1;
    for (uint32_t i = 0; i < b->n_rows; i++) {
        const td_stage_row *r = &b->rows[i];
        if (r->is_output && r->i_out <= i_out)
            return td_cursor_fail(c, "outputs of row %" PRIu32 " and before it: %u after %d", i,
                                  r->i_out, (int)i_out);
        i_out = r->is_output ? r->i_out : i_out;
        if (b->is_prefill && r->slot != b->rows[0].slot)
            return td_cursor_fail(c, "a chunk of slots %u and %u; allowed: one", b->rows[0].slot,
                                  r->slot);
    }
    return true;
}

/* A chunk that was found is one of a prompt, and nothing comes of it. */
static bool check_restored(td_cursor *c, const td_stage_batch *b)
{
    return !b->is_restored || (b->is_prefill && b->n_rows >= 1 && b->n_out == 0) ||
           td_cursor_fail(c, "%u rows and %u outputs of a chunk that was found; allowed: some, 0",
                          b->n_rows, b->n_out);
}

static bool read_batch(td_cursor *c, const td_stage_limits *l, td_stage_batch *b)
{
    if (!read_head(c, b))
        return false;
    for (uint32_t i = 0; i < b->n_rows; i++)
        if (!read_row(c, l, b, &b->rows[i]))
            return false;
    if (!check_rows(c, b) || !check_restored(c, b) || !td_cursor_read_u32(c, &b->n_bytes))
        return false;
    uint32_t row_bytes = td_stage_row_bytes(l->n_embd, l->wire);
    uint32_t n_bytes = b->is_skipped || b->is_restored ? 0 : b->n_rows * row_bytes; /* <= 2^26 */
    if (b->n_bytes != n_bytes)
        return td_cursor_fail(c, "%" PRIu32 " bytes of activations; allowed: %" PRIu32, b->n_bytes,
                              n_bytes);
    uint64_t left = td_cursor_left(c);
    b->n_here = n_bytes < left ? n_bytes : (uint32_t)left;
    b->bytes = td_cursor_take(c, b->n_here);
    return b->bytes != NULL;
}

static bool read_result(td_cursor *c, const td_stage_limits *l, td_stage_batch *b)
{
    if (!read_head(c, b))
        return false;
    if (b->is_restored)
        return td_cursor_fail(c, "a result that says that it was found; allowed: a batch");
    for (uint32_t i = 0; i < b->n_out; i++) {
        if (!td_cursor_read_u32(c, &b->chosen[i]))
            return false;
        if (b->chosen[i] >= l->n_vocab)
            return td_cursor_fail(c, "token %" PRIu32 " was chosen; allowed: 0..%" PRIu32,
                                  b->chosen[i], l->n_vocab - 1);
    }
    if (!td_cursor_read_u16(c, &b->n_bad))
        return false;
    if (b->n_bad > b->n_out)
        return td_cursor_fail(c, "n_bad is %u; allowed: 0..%u", b->n_bad, b->n_out);
    for (uint32_t i = 0; i < b->n_bad; i++)
        if (!td_cursor_read_u32(c, &b->bad[i]))
            return false;
    return true;
}

static bool read_n_asks(td_cursor *c, const td_stage_limits *l, uint8_t *n)
{
    if (!l->has_head)
        return td_cursor_fail(c, "a head is asked, where there is none");
    return td_cursor_read_u8(c, n) &&
           ((*n >= 1 && *n <= TD_STAGE_SLOTS_MAX) ||
            td_cursor_fail(c, "a head is asked of %u; allowed: 1..%u", *n, TD_STAGE_SLOTS_MAX));
}

static bool read_ask(td_cursor *c, const td_stage_limits *l, td_stage_asks *a)
{
    uint64_t seen = 0;
    if (!read_n_asks(c, l, &a->n))
        return false;
    for (uint32_t i = 0; i < a->n; i++) {
        uint8_t *slot = &a->of[i].slot, *k = &a->of[i].k;
        uint32_t *position = &a->of[i].position, *token = &a->of[i].token;
        if (!read_slot(c, l, slot) || !td_cursor_read_u8(c, k) ||
            !td_cursor_read_u32(c, position) || !td_cursor_read_u32(c, token))
            return false;
        if (seen >> *slot & 1)
            return td_cursor_fail(c, "a head is asked twice of slot %u; allowed: once", *slot);
        seen |= 1ull << *slot;
        if (*k < 1 || *k > TD_STAGE_GUESSES_MAX || *position < 1 || *position > l->n_ctx ||
            *token >= l->n_vocab)
            return td_cursor_fail(c,
                                  "%u guesses at position %" PRIu32 " behind token %" PRIu32
                                  "; allowed: 1..%u, 1..%" PRIu32 ", below %" PRIu32,
                                  *k, *position, *token, TD_STAGE_GUESSES_MAX, l->n_ctx,
                                  l->n_vocab);
    }
    return true;
}

static bool read_guesses(td_cursor *c, const td_stage_limits *l, td_stage_asks *a)
{
    if (!read_n_asks(c, l, &a->n))
        return false;
    for (uint32_t i = 0; i < a->n; i++) {
        if (!td_cursor_read_u32(c, &a->of[i].busy_us) || !td_cursor_read_u8(c, &a->of[i].n_ids))
            return false;
        if (a->of[i].n_ids > TD_STAGE_GUESSES_MAX)
            return td_cursor_fail(c, "%u guesses; allowed: 0..%u", a->of[i].n_ids,
                                  TD_STAGE_GUESSES_MAX);
        for (uint32_t k = 0; k < a->of[i].n_ids; k++) {
            if (!td_cursor_read_u32(c, &a->of[i].ids[k]))
                return false;
            if (a->of[i].ids[k] >= l->n_vocab)
                return td_cursor_fail(c, "token %" PRIu32 " is guessed; allowed: 0..%" PRIu32,
                                      a->of[i].ids[k], l->n_vocab - 1);
        }
    }
    return true;
}

bool td_stage_read_record(td_cursor *c, const td_stage_limits *l, td_stage_record *r)
{
    uint8_t kind;
    if (!td_cursor_read_u8(c, &kind))
        return false;
    r->kind = (td_record_kind)kind;
    switch (r->kind) {
    case TD_RECORD_OPEN:
        return read_open(c, l, r);
    case TD_RECORD_TRUNCATE:
    case TD_RECORD_COMMIT:
        return read_slot(c, l, &r->slot) && read_length(c, l, &r->length);
    case TD_RECORD_CLOSE:
        return read_slot(c, l, &r->slot);
    case TD_RECORD_BATCH:
        return read_batch(c, l, r->batch);
    case TD_RECORD_RESULT:
        return read_result(c, l, r->batch);
    case TD_RECORD_ASK:
        return read_ask(c, l, r->asks);
    case TD_RECORD_GUESSES:
        return read_guesses(c, l, r->asks);
    case TD_RECORD_END:
        break;
    }
    return td_cursor_fail(c, "record %u; allowed: 1..%d", kind, TD_RECORD_END - 1);
}

/* --- Events --------------------------------------------------------------------------------- */

size_t td_stage_event_bytes(uint32_t n_parts) { return 8 + 1 + 2 + 4 + 4 + 12u * (n_parts + 2); }

void td_stage_write_event(td_cursor_out *c, uint32_t n_parts, const td_stage_event *e)
{
    td_cursor_write_u64(c, e->batch);
    td_cursor_write_u8(
        c, (uint8_t)((e->is_prefill ? FLAG_PREFILL : 0) | (e->is_skipped ? FLAG_SKIPPED : 0)));
    td_cursor_write_u16(c, e->n_rows);
    td_cursor_write_u32(c, e->n_in_bytes);
    td_cursor_write_u32(c, e->n_out_bytes);
    write_span(c, &e->received);
    for (uint32_t i = 0; i < n_parts; i++)
        write_span(c, &e->parts[i]);
    write_span(c, &e->sent);
}

bool td_stage_read_event(td_cursor *c, uint32_t n_parts, td_stage_event *e)
{
    uint8_t flags;
    if (!td_cursor_read_u64(c, &e->batch) || !td_cursor_read_u8(c, &flags) ||
        !td_cursor_read_u16(c, &e->n_rows) || !td_cursor_read_u32(c, &e->n_in_bytes) ||
        !td_cursor_read_u32(c, &e->n_out_bytes) || !read_span(c, &e->received))
        return false;
    if (flags > (FLAG_PREFILL | FLAG_SKIPPED))
        return td_cursor_fail(c, "flags are 0x%02x; allowed: 0..0x%02x", flags,
                              FLAG_PREFILL | FLAG_SKIPPED);
    e->is_prefill = flags & FLAG_PREFILL;
    e->is_skipped = flags & FLAG_SKIPPED;
    if (e->n_rows > TD_STAGE_ROWS_MAX)
        return td_cursor_fail(c, "n_rows is %u; allowed: 0..%u", e->n_rows, TD_STAGE_ROWS_MAX);
    uint64_t end_us = e->received.end_us;
    for (uint32_t i = 0; i <= n_parts; i++) {
        td_stage_span *s = i < n_parts ? &e->parts[i] : &e->sent;
        if (!read_span(c, s))
            return false;
        if (s->start_us < end_us)
            return td_cursor_fail(c, "a batch goes on at %" PRIu64 "; allowed: from %" PRIu64,
                                  s->start_us, end_us);
        end_us = s->end_us;
    }
    return true;
}
