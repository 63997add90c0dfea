/* Every message between a coordinator and stage workers, and every record of a stream. Decoding any
 * bytes gives an error or a message within its limits, which encodes to the same bytes again; of a
 * stream record by record. The first byte of an input says how it is taken: bit 0 sealed or as it
 * is, bits 1..2 which limits hold, bit 3 that a greeting keeps the version it says. Else one that
 * is sealed says ours, so that inputs found with one version reach behind the check of the next. */
#include "base/check.h"
#include "tests/fuzz/fuzz.h"
#include "transport/stage_wire.h"

static const td_stage_limits all_limits[] = {
    {.n_slots = 8, .n_ctx = 4096, .n_vocab = 1000, .n_embd = 16, .has_head = true},
    {.n_slots = 1, .n_ctx = 1, .n_vocab = 1, .n_embd = 0},
    {.n_slots = TD_STAGE_SLOTS_MAX,
     .n_ctx = TD_WIRE_POSITION_MAX,
     .n_vocab = 32000,
     .n_embd = 0,
     .has_head = true},
    {.n_slots = 4,
     .n_ctx = 20000,
     .n_vocab = TD_WIRE_VOCAB_MAX,
     .n_embd = 16384,
     .wire = TD_STAGE_F16},
};

static void check_batch(const td_stage_record *r, const td_stage_limits *l, const uint8_t *begin,
                        const uint8_t *end)
{
    const td_stage_batch *b = r->batch;
    TD_ASSERT(b->n_rows <= TD_STAGE_ROWS_MAX && b->n_out <= TD_STAGE_OUT_MAX);
    TD_ASSERT(b->is_prefill || b->n_rows <= TD_STAGE_OUT_MAX);
    TD_ASSERT(b->n_spans <= TD_STAGE_PARTS_MAX);
    for (uint32_t i = 0; i < b->n_spans; i++)
        TD_ASSERT(b->spans[i].end_us >= b->spans[i].start_us);
    if (r->kind == TD_RECORD_RESULT) {
        TD_ASSERT(b->n_bad <= b->n_out);
        for (uint32_t i = 0; i < b->n_out; i++)
            TD_ASSERT(b->chosen[i] < l->n_vocab);
        return;
    }
    for (uint32_t i = 0; i < b->n_rows; i++) {
        const td_stage_row *row = &b->rows[i];
        TD_ASSERT(row->slot < l->n_slots && row->position < l->n_ctx && row->token < l->n_vocab);
        TD_ASSERT(!row->is_output || row->i_out < b->n_out);
    }
    TD_ASSERT(!b->is_restored || (b->is_prefill && b->n_rows && !b->n_out && !b->n_bytes));
    TD_ASSERT(b->n_here <= b->n_bytes &&
              b->n_bytes <= (uint64_t)b->n_rows * td_stage_row_bytes(l->n_embd, l->wire));
    TD_ASSERT(b->bytes >= begin && b->n_here <= (size_t)(end - b->bytes));
}

static void check_asks(const td_stage_record *r, const td_stage_limits *l)
{
    const td_stage_asks *a = r->asks;
    TD_ASSERT(l->has_head && a->n >= 1 && a->n <= TD_STAGE_SLOTS_MAX);
    for (uint32_t i = 0; i < a->n; i++) {
        if (r->kind == TD_RECORD_ASK) {
            TD_ASSERT(a->of[i].slot < l->n_slots && a->of[i].k <= TD_STAGE_GUESSES_MAX);
            TD_ASSERT(a->of[i].k && a->of[i].position <= l->n_ctx && a->of[i].token < l->n_vocab);
            for (uint32_t k = 0; k < i; k++)
                TD_ASSERT(a->of[i].slot != a->of[k].slot);
            continue;
        }
        TD_ASSERT(a->of[i].n_ids <= TD_STAGE_GUESSES_MAX);
        for (uint32_t k = 0; k < a->of[i].n_ids; k++)
            TD_ASSERT(a->of[i].ids[k] < l->n_vocab);
    }
}

/* Reads a stream to its end or to what is wrong in it; what was read is written again. */
static void read_stream(const td_stage_msg *m, const td_stage_limits *l)
{
    static td_stage_batch batch;
    static td_stage_asks asks;
    static uint8_t again[TD_WIRE_MESSAGE_MAX];
    td_err err = {0}, bug = {0};
    td_cursor c = td_cursor_begin("STREAM", m->stream.bytes, m->stream.n, &err);
    td_stage_writer w;
    td_stage_writer_begin(&w, again, &bug);
    bool is_same = true;
    while (td_cursor_left(&c) > 0) {
        td_stage_record r = {.batch = &batch, .asks = &asks};
        memset(&batch, 0, sizeof batch);
        if (!td_stage_read_record(&c, l, &r)) {
            TD_ASSERT(err.code == TD_E_DATA && err.message[0]);
            return;
        }
        TD_ASSERT(r.kind >= TD_RECORD_OPEN && r.kind < TD_RECORD_END);
        bool is_batch = r.kind == TD_RECORD_BATCH || r.kind == TD_RECORD_RESULT;
        if (is_batch)
            check_batch(&r, l, m->stream.bytes, m->stream.bytes + m->stream.n);
        else if (r.kind == TD_RECORD_ASK || r.kind == TD_RECORD_GUESSES)
            check_asks(&r, l);
        else
            TD_ASSERT(r.slot < l->n_slots);
        /* A peer may send less of the activations with a record than would fit. */
        is_same &= r.kind != TD_RECORD_BATCH || batch.n_here == batch.n_bytes;
        is_same = is_same && td_stage_writer_put(&w, &r);
    }
    size_t n = 0;
    td_stage_writer_end(&w, m->session, m->seq, &n);
    if (is_same)
        TD_ASSERT(n == m->stream.n + TD_WIRE_HEADER_BYTES &&
                  !memcmp(again + TD_WIRE_HEADER_BYTES, m->stream.bytes, m->stream.n));
}

static bool is_greeting(uint8_t type)
{
    return type == TD_STAGE_HELLO || type == TD_STAGE_HELLO_DRAFT || type == TD_STAGE_HELLO_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes)
{
    static uint8_t message[TD_WIRE_MESSAGE_MAX + 64], again[TD_WIRE_MESSAGE_MAX];
    static td_stage_msg m;
    if (n_bytes < 1 || n_bytes - 1 > sizeof message)
        return 0;
    size_t n = n_bytes - 1, n_again = 0;
    memcpy(message, bytes + 1, n);
    if ((bytes[0] & 9) == 1 && n >= TD_WIRE_HEADER_BYTES + 4 && is_greeting(message[6]))
        fuzz_put(message + TD_WIRE_HEADER_BYTES, TD_STAGE_PROTOCOL, 4);
    if ((bytes[0] & 1) && n >= TD_WIRE_HEADER_BYTES)
        fuzz_seal(message, n);
    td_err err = {0};
    if (!td_stage_decode(message, n, &m, &err)) {
        TD_ASSERT(err.code == TD_E_DATA && err.message[0]);
        return 0;
    }
    TD_ASSERT(n <= TD_WIRE_MESSAGE_MAX && m.session != 0 && m.seq != 0);
    if (m.type == TD_STAGE_STREAM) {
        read_stream(&m, &all_limits[bytes[0] >> 1 & 3]);
        return 0;
    }
    bool is_answer = m.type == TD_STAGE_HELLO_OK;
    if (is_greeting((uint8_t)m.type) &&
        (is_answer ? m.hello_ok.protocol : m.hello.protocol) != TD_STAGE_PROTOCOL)
        return 0; /* of which the rest is not read */
    TD_ASSERT(td_stage_encode(&m, again, sizeof again, &n_again, &err));
    TD_ASSERT(n == n_again && !memcmp(message, again, n));
    return 0;
}

/* --- Seeds: one message of each type, and a stream of every record ---------------------------- */

static td_stage_msg sample(td_stage_type type)
{
    static const uint8_t piece[] = {1, 2, 3, 4};
    td_stage_msg m = {.type = type, .session = 7, .seq = 3};
    switch (type) {
    case TD_STAGE_HELLO:
    case TD_STAGE_HELLO_DRAFT:
        m.hello = (td_stage_hello){.protocol = TD_STAGE_PROTOCOL, .build = "tandem"};
        break;
    case TD_STAGE_HELLO_OK:
        m.hello_ok = (td_stage_hello_ok){
            .protocol = TD_STAGE_PROTOCOL,
            .build = "tandem",
            .n_devices = 2,
            .devices = {
                {.kind = 1, .n_threads = 2, .spec = "host:2", .id = "host", .name = "CPU"},
                {.kind = 2, .spec = "vulkan:0", .id = "u", .driver = "d", .failed = "add: r"}}};
        break;
    case TD_STAGE_PLAN:
        m.plan = (td_stage_plan){.model_bytes = 100,
                                 .model_name = "m.gguf",
                                 .first_stage = 1,
                                 .n_parts = 2,
                                 .experts_device = TD_STAGE_ANY,
                                 .n_slots = 4,
                                 .kv = {1, 1, 1, 0, 1, {{0, 2, 1, TD_STAGE_ANY}}},
                                 .wire = TD_STAGE_F16,
                                 .parts = {{0, 2, 3}, {1, 4, 9}},
                                 .head = 1,
                                 .n_files = 2,
                                 .files = {{1000, 100}, {5000, 200}}};
        break;
    case TD_STAGE_PLANNED:
        m.planned = (td_stage_planned){.n_ctx = 64, .n_parts = 1, .parts = {{1, 2, 3}}};
        break;
    case TD_STAGE_LOAD:
        m.load = (td_stage_load){.n_ctx = 64, .ticket = 1, .next_ticket = 2, .next = "tcp://h:1"};
        break;
    case TD_STAGE_READY:
        m.ready = (td_stage_ready){.n_parts = 1, .parts = {{1, 2}}};
        break;
    case TD_STAGE_FAIL:
        m.fail = (td_stage_fail){.code = TD_STAGE_FAIL_BUSY, .reason = "busy"};
        break;
    case TD_STAGE_PIECE:
        m.piece = (td_stage_piece){.batch = 5, .offset = 8, .n = sizeof piece, .bytes = piece};
        break;
    case TD_STAGE_WANT:
    case TD_STAGE_DATA:
        m.data = (td_stage_data){.file = 1, .offset = 4096, .n = sizeof piece, .bytes = piece};
        break;
    case TD_STAGE_CHECK:
        m.check = (td_stage_check){.device = 1, .other = 2, .is_quick = true, .only = "add"};
        break;
    case TD_STAGE_CHECKING:
        memcpy(m.checking, "add: 8B", 8);
        break;
    case TD_STAGE_PROBE:
    case TD_STAGE_PROBED:
        m.probe = (td_stage_probe){.n_back = 9, .n = sizeof piece, .bytes = piece};
        break;
    case TD_STAGE_EVENTS: {
        static uint8_t events[200];
        td_cursor_out c = td_cursor_out_begin("EVENTS", events, sizeof events, NULL);
        const td_stage_event e = {.batch = 5,
                                  .n_rows = 3,
                                  .n_in_bytes = 64,
                                  .received = {10, 20},
                                  .parts = {{30, 40}, {40, 40}},
                                  .sent = {50, 60}};
        for (uint32_t i = 0; i < 2; i++)
            td_stage_write_event(&c, 2, &e);
        m.events = (td_stage_events){.n_dropped = 1,
                                     .n_left = 2,
                                     .n_parts = 2,
                                     .n = 2,
                                     .bytes = events,
                                     .n_bytes = (size_t)c.pos};
        break;
    }
    case TD_STAGE_MEET:
        m.meet = (td_stage_meet){.ticket = 1, .next = "tcp://h:1"};
        break;
    case TD_STAGE_MET:
        m.met = (td_stage_met){.idle_ns = 1, .loaded_ns = 2, .bytes_per_s = 3, .why = "no"};
        break;
    case TD_STAGE_KEEP:
        m.keep = 64;
        break;
    case TD_STAGE_KEPT:
        m.kept = true;
        break;
    case TD_STAGE_FIND:
        m.find = (td_stage_find){.batch = 5, .first = 64, .before = {1}, .n = 2, .tokens = {3, 4}};
        break;
    case TD_STAGE_FOUND:
        m.found = (td_stage_found){.batch = 5, .what = TD_STAGE_THERE};
        break;
    case TD_STAGE_REPORT:
        m.stream.bytes = piece;
        m.stream.n = sizeof piece;
        break;
    default:
        break;
    }
    return m;
}

static size_t put_stream(uint8_t *out, bool is_result)
{
    static uint8_t message[TD_WIRE_MESSAGE_MAX], activations[2 * 16 * 4];
    static td_stage_batch batch;
    td_err bug = {0};
    td_stage_writer w;
    size_t n = 0;
    static td_stage_asks asks = {2, {{1, 3, 10, 4, 2, 50, {5, 6}}, {0, 1, 1, 2, 0, 0, {0}}}};
    td_wire_open open = {.stream = 9, .temperature = 0.8f, .top_p = 1, .repeat_penalty = 1};
    batch = (td_stage_batch){.id = 5,
                             .n_rows = 2,
                             .n_out = 2,
                             .rows = {{1, true, 0, 7, 10, 3}, {1, true, 1, 7, 11, 4}},
                             .n_spans = 1,
                             .spans = {{10, 20}},
                             .n_bytes = is_result ? 0 : sizeof activations,
                             .bytes = activations,
                             .chosen = {3, 4}};
    td_stage_writer_begin(&w, message, &bug);
    for (int i = TD_RECORD_END - 1; i >= TD_RECORD_OPEN; i--) { /* the batch is the last */
        int kind = i < TD_RECORD_ASK ? TD_RECORD_ASK - i : i;
        td_stage_record r = {.kind = (td_record_kind)kind,
                             .slot = 1,
                             .length = 10,
                             .open = open,
                             .batch = &batch,
                             .asks = &asks};
        if (kind != (is_result ? TD_RECORD_BATCH : TD_RECORD_RESULT))
            TD_ASSERT(td_stage_writer_put(&w, &r));
    }
    td_stage_writer_end(&w, 7, 3, &n);
    memcpy(out, message, n);
    return n;
}

size_t td_fuzz_seed(uint32_t i, uint8_t *out)
{
    size_t n = 0;
    td_stage_type type = (td_stage_type)(TD_STAGE_HELLO + i);
    out[0] = 1;
    if (type == TD_STAGE_STREAM || type == TD_STAGE_END)
        return 1 + put_stream(out + 1, type == TD_STAGE_END);
    if (type > TD_STAGE_END)
        return 0;
    td_stage_msg m = sample(type);
    TD_ASSERT(td_stage_encode(&m, out + 1, TD_FUZZ_SEED_MAX - 1, &n, NULL));
    return n + 1;
}
