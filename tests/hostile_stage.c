/* Stages on other machines: what is said comes out as it was said, what is broken is refused, and a
 * worker lives through a peer that says nonsense in good form, and serves the next one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <math.h>

#include <cmocka.h>

#include "base/crc32c.h"
#include "base/mem.h"
#include "base/rng.h"
#include "target/fetch.h"
#include "target/target.h"

#include "stage_peer.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define N_EMBD 32u
#define CRC_AT 28u /* of a header */

static const td_stage_limits limits = {
    .n_slots = 4, .n_ctx = 200, .n_vocab = 300, .n_embd = N_EMBD, .has_head = true};

/* -- the wire ---------------------------------------------------------------------------------- */

static td_stage_msg make_events(void)
{
    static uint8_t bytes[400];
    td_cursor_out c = td_cursor_out_begin("EVENTS", bytes, sizeof bytes, NULL);
    for (uint32_t i = 0; i < 3; i++) {
        uint64_t us = 1000 * i;
        td_stage_write_event(&c, 2,
                             &(td_stage_event){.batch = i,
                                               .is_skipped = i == 1,
                                               .n_rows = (uint16_t)i,
                                               .received = {us, us + 10},
                                               .parts = {{us + 10, us + 20}, {us + 20, us + 90}},
                                               .sent = {us + 95, us + 96}});
    }
    return (td_stage_msg){
        .type = TD_STAGE_EVENTS,
        .events = {.n_left = 4, .n_parts = 2, .n = 3, .bytes = bytes, .n_bytes = (size_t)c.pos}};
}

static uint32_t make_samples(td_stage_msg *m)
{
    static const uint8_t bytes[100] = {1, 2, 3};
    uint32_t n = 0;
    m[n++] = (td_stage_msg){.type = TD_STAGE_HELLO, .hello = {TD_STAGE_PROTOCOL, "tandem 9"}};
    m[n++] = (td_stage_msg){.type = TD_STAGE_HELLO_DRAFT, .hello = {TD_STAGE_PROTOCOL, "tandem"}};
    m[n++] = (td_stage_msg){
        .type = TD_STAGE_HELLO_OK,
        .hello_ok = {.protocol = TD_STAGE_PROTOCOL,
                     .build = "tandem 9",
                     .n_devices = 2,
                     .devices = {{.spec = "host:1", .name = "A CPU", .failed = "add: row 3"},
                                 {.kind = 2, .spec = "vulkan:0"}}}};
    m[n++] = (td_stage_msg){.type = TD_STAGE_PLAN,
                            .plan = {.hash = {7},
                                     .model_bytes = 1ull << 40,
                                     .model_name = "a model",
                                     .first_stage = 1,
                                     .n_parts = 2,
                                     .experts_device = TD_STAGE_ANY,
                                     .n_slots = 4,
                                     .kv = {1, 8, 2, 1, 2, {{0, 0, TD_STAGE_ANY, 1}, {2, 4, 0, 0}}},
                                     .wire = TD_STAGE_F16,
                                     .n_ctx = 100,
                                     .parts = {{0, 2, 3}, {1, 4, 4}},
                                     .head = 1,
                                     .n_files = 2,
                                     .files = {{5000, 100}, {1ull << 40, 5000}}}};
    m[n++] = (td_stage_msg){.type = TD_STAGE_PLANNED,
                            .planned = {.n_ctx = 90, .n_pages = 4, .n_parts = 1}};
    m[n++] = (td_stage_msg){
        .type = TD_STAGE_LOAD,
        .load = {.n_ctx = 90, .ticket = 3, .next_ticket = 4, .next = "tcp://127.0.0.1:5"}};
    m[n++] = (td_stage_msg){.type = TD_STAGE_LOADING, .loading = {1, 2}};
    m[n++] = (td_stage_msg){.type = TD_STAGE_READY, .ready = {.forgets = true, .n_parts = 1}};
    m[n++] = (td_stage_msg){.type = TD_STAGE_FAIL, .fail = {TD_STAGE_FAIL_MODEL, "no such file"}};
    m[n++] = (td_stage_msg){.type = TD_STAGE_ATTACH};
    m[n++] = (td_stage_msg){.type = TD_STAGE_PIECE, .piece = {9, 64, sizeof bytes, bytes}};
    m[n++] = (td_stage_msg){.type = TD_STAGE_CANCEL, .cancel = 12};
    m[n++] = (td_stage_msg){.type = TD_STAGE_PING, .ping = {.echo_us = 5}};
    m[n++] = (td_stage_msg){.type = TD_STAGE_PONG, .ping = {5, 6, 7, 8}};
    m[n++] = (td_stage_msg){.type = TD_STAGE_BYE};
    m[n++] = (td_stage_msg){.type = TD_STAGE_WANT,
                            .data = {.file = 63, .n = TD_STAGE_DATA_MAX, .offset = 1ull << 40}};
    m[n++] = (td_stage_msg){.type = TD_STAGE_DATA,
                            .data = {.file = 1, .n = sizeof bytes, .offset = 77, .bytes = bytes}};
    m[n++] = (td_stage_msg){.type = TD_STAGE_CHECK,
                            .check = {.device = 15, .is_quick = true, .only = "mat_mul"}};
    m[n++] = (td_stage_msg){.type = TD_STAGE_CHECKING, .checking = "rope: 8B 128"};
    m[n++] = (td_stage_msg){.type = TD_STAGE_PROBE,
                            .probe = {.n_back = 9, .n = sizeof bytes, .bytes = bytes}};
    m[n++] = (td_stage_msg){.type = TD_STAGE_PROBED, .probe = {.n = sizeof bytes, .bytes = bytes}};
    m[n++] = (td_stage_msg){.type = TD_STAGE_REPORT, .stream = {bytes, sizeof bytes}};
    m[n++] = (td_stage_msg){.type = TD_STAGE_TRACE};
    m[n++] = make_events();
    m[n++] =
        (td_stage_msg){.type = TD_STAGE_MEET, .meet = {.ticket = 3, .next = "tcp://127.0.0.1:5"}};
    m[n++] = (td_stage_msg){
        .type = TD_STAGE_MET,
        .met = {.idle_ns = 5, .loaded_ns = 6, .bytes_per_s = 1ull << 40, .why = "no answer"}};
    m[n++] = (td_stage_msg){.type = TD_STAGE_KEEP, .keep = TD_STAGE_ROWS_MAX};
    m[n++] = (td_stage_msg){.type = TD_STAGE_KEPT, .kept = true};
    m[n++] = (td_stage_msg){
        .type = TD_STAGE_FIND,
        .find = {.batch = 1ull << 40, .first = 512, .before = {9}, .n = 3, .tokens = {5, 6, 7}}};
    m[n++] = (td_stage_msg){.type = TD_STAGE_FOUND, .found = {1ull << 40, TD_STAGE_DAMAGED}};
    for (uint32_t i = 0; i < n; i++) {
        m[i].session = 0x1122334455667788u;
        m[i].seq = i + 1;
    }
    return n;
}

/* A STREAM message of every kind of record. */
static uint8_t stream_wire; /* of make_stream's activations */

static size_t make_stream(uint8_t bytes[TD_WIRE_MESSAGE_MAX], uint32_t n_rows, bool is_result)
{
    static float activations[TD_STAGE_ROWS_MAX * N_EMBD];
    static td_stage_batch b;
    td_stage_writer w;
    size_t n;
    b = (td_stage_batch){.id = 77,
                         .is_prefill = n_rows > TD_STAGE_OUT_MAX,
                         .n_rows = (uint16_t)n_rows,
                         .n_out = 2,
                         .n_spans = 1,
                         .spans = {{100, 250}},
                         .n_bytes =
                             is_result ? 0 : n_rows * td_stage_row_bytes(N_EMBD, stream_wire),
                         .bytes = (const uint8_t *)activations,
                         .chosen = {5, 299},
                         .n_bad = 1,
                         .bad = {3}};
    static td_stage_asks asks_made = {
        .n = 2,
        .of = {{2, TD_STAGE_GUESSES_MAX, 200, 299, 3, 40, {1, 299, 0}}, {0, 1, 1, 7, 0, 0, {0}}}};
    for (uint32_t i = 0; i < n_rows; i++)
        b.rows[i] = (td_stage_row){.slot = 3, .sequence = 9, .position = i % 200, .token = i};
    b.rows[n_rows - 2].is_output = b.rows[n_rows - 1].is_output = true;
    b.rows[n_rows - 1].i_out = 1;
    const td_stage_record records[] = {
        {.kind = TD_RECORD_OPEN,
         .slot = 1,
         .from_slot = 2,
         .length = 64,
         .open = {.stream = 4, .temperature = 0.5f, .top_p = 1, .repeat_penalty = 1}},
        {.kind = TD_RECORD_TRUNCATE, .slot = 1, .length = 70},
        {.kind = TD_RECORD_COMMIT, .slot = 1, .length = 69},
        {.kind = TD_RECORD_CLOSE, .slot = 0},
        {.kind = is_result ? TD_RECORD_GUESSES : TD_RECORD_ASK, .asks = &asks_made},
        {.kind = is_result ? TD_RECORD_RESULT : TD_RECORD_BATCH, .batch = &b},
    };
    td_stage_writer_begin(&w, bytes, NULL);
    for (uint32_t i = 0; i < TD_COUNT(records); i++)
        assert_true(td_stage_writer_put(&w, &records[i]));
    td_stage_writer_end(&w, 1, 2, &n);
    return n;
}

static td_stage_asks read_asks; /* by read_within, the last */

/* All records; false where one is refused. */
static bool read_within(const td_stage_limits *l, const td_stage_msg *m, td_stage_record *records,
                        td_stage_batch *batch, uint32_t *n)
{
    td_err err = {0};
    td_cursor c = td_cursor_begin("STREAM", m->stream.bytes, m->stream.n, &err);
    for (*n = 0; td_cursor_left(&c) > 0 && *n < 8; ++*n) {
        records[*n] = (td_stage_record){.batch = batch, .asks = &read_asks};
        if (!td_stage_read_record(&c, l, &records[*n]))
            return false;
    }
    return true;
}

static bool read_all(const td_stage_msg *m, td_stage_record *records, td_stage_batch *batch,
                     uint32_t *n)
{
    return read_within(&limits, m, records, batch, n);
}

static void seal(uint8_t *bytes, size_t n)
{
    memset(bytes + CRC_AT, 0, 4);
    uint32_t crc = td_crc32c(0, bytes, n);
    memcpy(bytes + CRC_AT, &crc, sizeof crc);
}

/* From memory of just that size, for a sanitizer to see what is read beyond it. */
static bool decode(const uint8_t *bytes, size_t n, td_stage_msg *m)
{
    td_err err = {0};
    uint8_t *copy = td_alloc(n ? n : 1, 1, NULL);
    memcpy(copy, bytes, n);
    bool is_ok = td_stage_decode(copy, n, m, &err);
    assert_true(is_ok || err.code == TD_E_DATA);
    td_free(copy);
    return is_ok;
}

static void test_messages_come_out_as_they_went_in(void **state)
{
    (void)state;
    static td_stage_msg samples[32], out;
    static uint8_t bytes[TD_WIRE_MESSAGE_MAX], again[TD_WIRE_MESSAGE_MAX];
    bool is_seen[TD_STAGE_END] = {[TD_STAGE_STREAM] = true};
    uint32_t count = make_samples(samples);
    for (uint32_t i = 0; i < count; i++) {
        size_t n, n_again;
        td_err err = {0};
        is_seen[samples[i].type] = true;
        if (!td_stage_encode(&samples[i], bytes, sizeof bytes, &n, &err) ||
            !td_stage_decode(bytes, n, &out, &err) ||
            !td_stage_encode(&out, again, sizeof again, &n_again, &err))
            fail_msg("%s: %s", td_stage_type_name(samples[i].type), err.message);
        assert_int_equal(n, n_again);
        assert_memory_equal(bytes, again, n);
    }
    for (uint32_t i = TD_STAGE_HELLO; i < TD_STAGE_END; i++)
        if (!is_seen[i])
            fail_msg("no sample of %s", td_stage_type_name((td_stage_type)i));
}

static void test_records_come_out_as_they_went_in(void **state)
{
    (void)state;
    static uint8_t bytes[TD_WIRE_MESSAGE_MAX];
    static td_stage_record r[8];
    static td_stage_batch b;
    td_stage_msg m;
    uint32_t n;
    size_t n_bytes = make_stream(bytes, 20, false);
    assert_true(td_stage_decode(bytes, n_bytes, &m, NULL));
    assert_true(read_all(&m, r, &b, &n));
    assert_int_equal(n, 6);
    assert_int_equal(r[4].kind, TD_RECORD_ASK);
    assert_int_equal(read_asks.n, 2);
    assert_int_equal(read_asks.of[0].k, TD_STAGE_GUESSES_MAX);
    assert_int_equal(read_asks.of[0].position, 200);
    assert_int_equal(read_asks.of[1].token, 7);
    assert_int_equal(r[0].open.stream, 4);
    assert_int_equal(r[0].from_slot, 2);
    assert_int_equal(r[1].length, 70);
    assert_int_equal(b.id, 77);
    assert_int_equal(b.n_rows, 20);
    assert_int_equal(b.spans[0].end_us, 250);
    assert_int_equal(b.rows[19].i_out, 1);
    assert_int_equal(b.n_here, 20 * N_EMBD * 4);
    /* A chunk whose activations do not fit: as much as there is room for, and no more. */
    n_bytes = make_stream(bytes, 256, false);
    assert_int_equal(n_bytes,
                     256 * N_EMBD * 4 + 4096 < TD_WIRE_MESSAGE_MAX ? n_bytes : TD_WIRE_MESSAGE_MAX);
    n_bytes = make_stream(bytes, 20, true);
    assert_true(td_stage_decode(bytes, n_bytes, &m, NULL) && read_all(&m, r, &b, &n));
    assert_int_equal(r[4].kind, TD_RECORD_GUESSES);
    assert_int_equal(read_asks.of[0].n_ids, 3);
    assert_int_equal(read_asks.of[0].ids[1], 299);
    assert_int_equal(read_asks.of[0].busy_us, 40);
    assert_int_equal(read_asks.of[1].n_ids, 0);
    assert_int_equal(r[5].kind, TD_RECORD_RESULT);
    assert_int_equal(b.chosen[1], 299);
    assert_int_equal(b.bad[0], 3);
}

/* Both ends know what a value takes, and no message says it again. */
static void test_activations_of_another_type_are_refused(void **state)
{
    (void)state;
    static uint8_t bytes[TD_WIRE_MESSAGE_MAX];
    static td_stage_record r[8];
    static td_stage_batch b;
    td_stage_msg m;
    uint32_t n;
    for (stream_wire = TD_STAGE_F32; stream_wire <= TD_STAGE_F16; stream_wire++)
        for (uint8_t there = TD_STAGE_F32; there <= TD_STAGE_F16; there++) {
            td_stage_limits l = limits;
            l.wire = there;
            size_t n_bytes = make_stream(bytes, 20, false);
            assert_true(td_stage_decode(bytes, n_bytes, &m, NULL));
            assert_int_equal(read_within(&l, &m, r, &b, &n), stream_wire == there);
            if (stream_wire == there)
                assert_int_equal(b.n_bytes, 20 * N_EMBD * (stream_wire == TD_STAGE_F16 ? 2 : 4));
        }
    stream_wire = TD_STAGE_F32;
}

/* Behind a checksum that is right. */
static void test_a_plan_of_another_wire_is_refused(void **state)
{
    (void)state;
    static td_stage_msg samples[32], out;
    static uint8_t bytes[TD_WIRE_MESSAGE_MAX], other[TD_WIRE_MESSAGE_MAX];
    td_err err = {0};
    size_t n, at = 0;
    make_samples(samples);
    td_stage_msg *m = samples;
    while (m->type != TD_STAGE_PLAN)
        m++;
    assert_true(td_stage_encode(m, bytes, sizeof bytes, &n, NULL));
    m->plan.wire = TD_STAGE_F32;
    assert_true(td_stage_encode(m, other, sizeof other, &n, NULL));
    for (size_t i = TD_WIRE_HEADER_BYTES; i < n; i++)
        at = bytes[i] != other[i] ? i : at;
    for (uint32_t value = 0; value < 256; value++) {
        bytes[at] = (uint8_t)value;
        seal(bytes, n);
        err = (td_err){0};
        assert_int_equal(td_stage_decode(bytes, n, &out, &err), value <= TD_STAGE_F16);
        assert_true(value <= TD_STAGE_F16 || strstr(err.message, "allowed: 0..1"));
    }
    m->plan.wire = 2;
    assert_false(td_stage_encode(m, bytes, sizeof bytes, &n, NULL));
}

/* Behind a checksum that is right. */
static void test_a_meeting_is_refused_without_a_ticket_or_with_a_text_that_is_none(void **state)
{
    (void)state;
    static uint8_t bytes[TD_WIRE_MESSAGE_MAX];
    static td_stage_msg out;
    const size_t text_at = TD_WIRE_HEADER_BYTES + 10; /* behind the ticket and a length */
    td_stage_msg m = {
        .type = TD_STAGE_MEET, .session = 1, .seq = 1, .meet = {1, "tcp://127.0.0.1:5"}};
    size_t n, n_text = strlen(m.meet.next);
    assert_true(td_stage_encode(&m, bytes, sizeof bytes, &n, NULL));
    assert_int_equal(n, text_at + n_text);
    for (uint32_t value = 0; value < 256; value++) {
        bytes[text_at + 3] = (uint8_t)value;
        seal(bytes, n);
        assert_int_equal(decode(bytes, n, &out), value >= ' ' && value <= '~');
    }
    bytes[text_at + 3] = ':';
    for (uint32_t n_told = 0; n_told < 1u << 16; n_told++) {
        bytes[text_at - 2] = (uint8_t)n_told;
        bytes[text_at - 1] = (uint8_t)(n_told >> 8);
        seal(bytes, n);
        assert_int_equal(decode(bytes, n, &out), n_told == n_text);
    }
    m.meet.ticket = 0;
    assert_false(td_stage_encode(&m, bytes, sizeof bytes, &n, NULL));
    m.meet.ticket = 1;
    memset(m.meet.next, 'x', TD_STAGE_ENDPOINT_MAX);
    assert_true(td_stage_encode(&m, bytes, sizeof bytes, &n, NULL) && decode(bytes, n, &out));
    m.meet.next[7] = '\n';
    assert_false(td_stage_encode(&m, bytes, sizeof bytes, &n, NULL));
    m = (td_stage_msg){.type = TD_STAGE_MET, .session = 1, .seq = 1, .met.why = "\x1b[2J"};
    assert_false(td_stage_encode(&m, bytes, sizeof bytes, &n, NULL));
}

static void test_halves_are_the_nearest_and_finite(void **state)
{
    (void)state;
    static const float wanted[][2] = {{0, 0},
                                      {-1.5f, -1.5f},
                                      {65504, 65504},
                                      {65519, 65504},
                                      {65520, 65504},
                                      {1e30f, 65504},
                                      {-1e30f, -65504},
                                      {INFINITY, 65504},
                                      {-INFINITY, -65504},
                                      {0x1p-24f, 0x1p-24f},
                                      {0x1p-26f, 0},
                                      {2049, 2048},
                                      {0.1f, 0x1.998p-4f}};
    float values[TD_COUNT(wanted) + 1];
    for (size_t i = 0; i < TD_COUNT(wanted); i++)
        values[i] = wanted[i][0];
    values[TD_COUNT(wanted)] = NAN;
    td_stage_pack(values, TD_COUNT(values));
    td_stage_unpack(values, TD_COUNT(values));
    for (size_t i = 0; i < TD_COUNT(wanted); i++)
        if (values[i] != wanted[i][1])
            fail_msg("%g became %g", (double)wanted[i][0], (double)values[i]);
    assert_true(isnan(values[TD_COUNT(wanted)]));
}

/* One row of a sequence and hop: what the issue of the network allows. */
static void test_a_token_takes_few_bytes(void **state)
{
    (void)state;
    static uint8_t bytes[TD_WIRE_MESSAGE_MAX];
    static const float row[N_EMBD];
    for (uint8_t type = TD_STAGE_F32; type <= TD_STAGE_F16; type++) {
        uint32_t n_bytes = td_stage_row_bytes(N_EMBD, type);
        td_stage_batch b = {.n_rows = 1,
                            .n_out = 1,
                            .rows = {{.is_output = true}},
                            .n_spans = 2,
                            .n_bytes = n_bytes,
                            .bytes = (const uint8_t *)row};
        td_stage_writer w;
        size_t n;
        td_stage_writer_begin(&w, bytes, NULL);
        assert_true(td_stage_writer_put(&w, &(td_stage_record){.kind = TD_RECORD_COMMIT}));
        assert_true(
            td_stage_writer_put(&w, &(td_stage_record){.kind = TD_RECORD_BATCH, .batch = &b}));
        td_stage_writer_end(&w, 1, 1, &n);
        assert_int_equal(n_bytes, (type == TD_STAGE_F16 ? 2 : 4) * N_EMBD);
        assert_true(n <= n_bytes + 128);
    }
}

static void test_broken_bytes_are_refused(void **state)
{
    (void)state;
    static td_stage_msg samples[32], out;
    static uint8_t bytes[TD_WIRE_MESSAGE_MAX];
    uint32_t count = make_samples(samples);
    for (uint32_t i = 0; i <= count; i++) {
        size_t n;
        if (i < count)
            assert_true(td_stage_encode(&samples[i], bytes, sizeof bytes, &n, NULL));
        else
            n = make_stream(bytes, 4, false);
        for (size_t k = 0; k < n; k++)
            assert_false(decode(bytes, k, &out));
        for (size_t k = 0; k < 8 * n; k++) {
            bytes[k / 8] ^= (uint8_t)(1 << k % 8);
            assert_false(decode(bytes, n, &out));
            bytes[k / 8] ^= (uint8_t)(1 << k % 8);
        }
    }
}

/* Behind a checksum that is right: records are refused or within the limits. */
static void test_wild_records_are_refused_or_in_bounds(void **state)
{
    (void)state;
    static uint8_t bytes[TD_WIRE_MESSAGE_MAX];
    static td_stage_record r[8];
    static td_stage_batch b;
    uint32_t n_taken = 0;
    for (uint32_t round = 0; round < 20000; round++) {
        size_t n_bytes = make_stream(bytes, 3, round % 2);
        td_stage_msg m = {.stream = {bytes + TD_WIRE_HEADER_BYTES, n_bytes - TD_WIRE_HEADER_BYTES}};
        for (uint32_t k = 0; k <= round % 3; k++)
            bytes[TD_WIRE_HEADER_BYTES + td_noise_bits(1, round, 2 * k) % m.stream.n] =
                (uint8_t)td_noise_bits(1, round, 2 * k + 1);
        uint32_t n;
        bool is_taken = read_all(&m, r, &b, &n);
        n_taken += is_taken;
        for (uint32_t i = 0; i < n; i++) {
            assert_true(r[i].slot < limits.n_slots && r[i].from_slot < limits.n_slots &&
                        r[i].length <= limits.n_ctx);
            for (uint32_t k = 0; r[i].kind == TD_RECORD_ASK && k < read_asks.n; k++)
                assert_true(read_asks.of[k].slot < limits.n_slots && read_asks.of[k].k >= 1 &&
                            read_asks.of[k].k <= TD_STAGE_GUESSES_MAX);
        }
        assert_true(!is_taken || (b.n_rows <= TD_STAGE_ROWS_MAX && b.n_out <= TD_STAGE_OUT_MAX));
    }
    assert_in_range(n_taken, 100, 19900); /* both happen */
}

/* Behind a checksum that is right: events are refused, or come in their order. */
static void test_wild_events_are_refused_or_in_order(void **state)
{
    (void)state;
    static uint8_t bytes[TD_WIRE_MESSAGE_MAX];
    td_stage_msg out, m = make_events();
    uint32_t n_taken = 0;
    m.session = m.seq = 1;
    for (uint32_t round = 0; round < 20000; round++) {
        size_t n;
        assert_true(td_stage_encode(&m, bytes, sizeof bytes, &n, NULL));
        for (uint32_t k = 0; k <= round % 3; k++)
            bytes[TD_WIRE_HEADER_BYTES +
                  td_noise_bits(2, round, 2 * k) % (n - TD_WIRE_HEADER_BYTES)] =
                (uint8_t)td_noise_bits(2, round, 2 * k + 1);
        seal(bytes, n);
        if (!decode(bytes, n, &out))
            continue;
        n_taken++;
        assert_true(td_stage_decode(bytes, n, &out, NULL) && out.events.n <= TD_STAGE_EVENTS_MAX);
        td_cursor c = td_cursor_begin("EVENTS", out.events.bytes, out.events.n_bytes, NULL);
        for (uint32_t i = 0; i < out.events.n; i++) {
            td_stage_event e;
            assert_true(td_stage_read_event(&c, out.events.n_parts, &e));
            assert_true(e.n_rows <= TD_STAGE_ROWS_MAX && e.received.start_us <= e.received.end_us &&
                        e.received.end_us <= e.parts[0].start_us &&
                        e.parts[1].end_us <= e.sent.start_us && e.sent.start_us <= e.sent.end_us);
        }
    }
    assert_in_range(n_taken, 100, 19900); /* both happen */
}

/* -- a worker ---------------------------------------------------------------------------------- */

/* Jobs drawn so that many are possible, and the others nearly so. */
static void say_anything(peer *p, uint64_t draw, uint32_t *lengths)
{
    static uint8_t bytes[TD_WIRE_MESSAGE_MAX];
    static td_stage_batch b;
    td_stage_writer w;
    size_t n;
    td_stage_writer_begin(&w, bytes, NULL);
    uint32_t n_records = 1 + td_noise_bits(draw, 0, 0) % 6;
    for (uint32_t i = 1; i <= n_records; i++) {
        uint32_t slot = (uint32_t)td_noise_bits(draw, i, 0) % 4;
        uint32_t wild = td_noise_bits(draw, i, 1) % 12 == 0;
        td_stage_record r = {.kind = (td_record_kind)(1 + td_noise_bits(draw, i, 2) % 5),
                             .slot = (uint8_t)slot,
                             .from_slot = (uint8_t)(td_noise_bits(draw, i, 3) % 4),
                             .length = wild ? td_noise_bits(draw, i, 4) % 201 : lengths[slot],
                             .open = {.top_p = 1, .repeat_penalty = 1},
                             .batch = &b};
        if (r.kind == TD_RECORD_OPEN) {
            r.length = wild ? 64 : 0;
            lengths[slot] = 0;
        }
        if (r.kind == TD_RECORD_BATCH) {
            b = (td_stage_batch){.id = draw * 8 + i,
                                 .is_prefill = td_noise_bits(draw, i, 5) % 2,
                                 .n_rows = (uint16_t)(1 + td_noise_bits(draw, i, 6) % 9),
                                 .n_out = 1};
            for (uint32_t k = 0; k < b.n_rows; k++)
                b.rows[k] = (td_stage_row){.slot = (uint8_t)slot,
                                           .position = lengths[slot]++ + wild * (k % 3),
                                           .token = k,
                                           .is_output = k + 1u == b.n_rows};
        }
        td_stage_writer_put(&w, &r);
        lengths[slot] = lengths[slot] > 180 ? 180 : lengths[slot];
    }
    td_stage_writer_end(&w, p->session, ++p->n_sent, &n);
    td_link_send(p->link, 0, bytes, n, NULL);
    if (td_noise_bits(draw, 0, 1) % 4 == 0)
        say(p, (td_stage_msg){.type = TD_STAGE_CANCEL, .cancel = draw * 8 + 1});
}

static void test_a_worker_lives_through_nonsense(void **state)
{
    (void)state;
    for (uint32_t round = 0; round < 60; round++) {
        peer p;
        uint32_t lengths[4] = {0};
        join(&p, 1000 + round, 1 + round % 2);
        for (uint32_t slot = 0; slot < 4 && round % 3;
             slot++) { /* else: rows of none that is open */
            uint8_t bytes[TD_WIRE_MESSAGE_MAX];
            size_t n;
            td_stage_writer w;
            td_stage_writer_begin(&w, bytes, NULL);
            td_stage_writer_put(&w, &(td_stage_record){.kind = TD_RECORD_OPEN,
                                                       .slot = (uint8_t)slot,
                                                       .open = {.top_p = 1, .repeat_penalty = 1}});
            td_stage_writer_end(&w, p.session, ++p.n_sent, &n);
            td_link_send(p.link, 0, bytes, n, NULL);
        }
        p.last = TD_STAGE_HELLO;
        for (uint32_t i = 0; i < 30 && p.last != TD_STAGE_FAIL; i++) {
            say_anything(&p, round * 64ull + i, lengths);
            hear(&p, TD_STAGE_FAIL, 5);
        }
        say(&p, (td_stage_msg){.type = TD_STAGE_BYE});
        td_link_close(&p.link, true);
    }
}

/* -- a draft under its roof -------------------------------------------------------------------- */

static void send_wire(peer *p, td_wire_msg m, uint64_t session, uint64_t seq, uint64_t flip)
{
    static uint8_t bytes[TD_WIRE_MESSAGE_MAX];
    td_wire_limits widest = td_wire_limits_widest();
    size_t n;
    m.session = session;
    m.seq = seq;
    if (!td_wire_encode(&m, &widest, bytes, sizeof bytes, &n, NULL))
        fail();
    if (flip)
        bytes[flip % n] ^= (uint8_t)(1u << (flip >> 20) % 8);
    td_link_send(p->link, 0, bytes, n, NULL);
}

static td_wire_msg hello(void)
{
    const td_tokenizer *t = td_model_tokenizer(model);
    uint32_t n = td_tokenizer_get_info(t)->n_vocab;
    return (td_wire_msg){.type = TD_WIRE_HELLO,
                         .hello = {.protocol = TD_WIRE_PROTOCOL,
                                   .role = TD_WIRE_ROLE_COORDINATOR,
                                   .node = STAGE_TICKET,
                                   .n_vocab = n,
                                   .n_hashed = n,
                                   .vocab_hash = td_tokenizer_hash(t, 0, n),
                                   .n_ctx = 200,
                                   .max_draft = 8,
                                   .ping_us = 1000000}};
}

/* Waits for an answer of that type in a session of the ticket's; false: none came. */
static bool hear_wire(peer *p, td_wire_type type, int ms)
{
    static uint8_t bytes[TD_WIRE_MESSAGE_MAX];
    static uint32_t ids[TD_WIRE_IDS_MAX];
    td_wire_limits widest = td_wire_limits_widest();
    for (int waited = 0; waited < ms; waited += 5) {
        td_link_poll_item item = {.link = p->link};
        td_link_poll(&item, 1, 5000, NULL);
        size_t n = 1;
        td_route route;
        td_wire_msg m;
        while (td_link_recv(p->link, bytes, &n, &route, NULL) && n)
            if (td_wire_decode(bytes, n, &widest, ids, &m, NULL) && m.type == type &&
                m.session >> 32 == STAGE_TICKET >> 32)
                return true;
    }
    return false;
}

/* As a client does: again, if it was lost among what else there was to say. */
static void greet_draft(peer *p, uint32_t *n_hello)
{
    bool is_answered = false;
    for (uint32_t i = 0; i < 50 && !is_answered; i++) {
        send_wire(p, hello(), STAGE_TICKET | ++*n_hello, 0, 0);
        is_answered = hear_wire(p, TD_WIRE_HELLO_OK, 200);
    }
    assert_true(is_answered);
}

static void test_a_plan_for_a_draft_is_all_of_a_model(void **state)
{
    (void)state;
    for (uint32_t way = 0; way < 7; way++) {
        peer p;
        td_stage_plan plan = greet_as(&p, 9000 + way, 1 + (way == 1), TD_STAGE_HELLO_DRAFT);
        plan.parts[0].first = way == 2;
        plan.parts[0].last = way == 1 ? 1 : way == 3 ? 2 : way == 4 ? 4 : 3;
        plan.n_ctx = way == 5 ? 0 : 200;
        plan.parts[0].device = way == 6;
        say(&p, (td_stage_msg){.type = TD_STAGE_PLAN, .plan = plan});
        hear(&p, TD_STAGE_PLANNED, 5000);
        assert_int_equal(p.last, way ? TD_STAGE_FAIL : TD_STAGE_PLANNED);
        say(&p, (td_stage_msg){.type = TD_STAGE_BYE});
        td_link_close(&p.link, true);
    }
}

/* Messages of the draft's wire that are broken, of nobody, out of order or senseless; and a stream,
 * which a draft has not. */
static void test_a_draft_lives_through_nonsense(void **state)
{
    (void)state;
    static const uint32_t ids[] = {3, 4, 299, 1u << 19};
    for (uint32_t round = 0; round < 20; round++) {
        peer p;
        uint32_t lengths[4] = {0}, n_hello = 0;
        join_draft(&p, 9100 + round);
        greet_draft(&p, &n_hello);
        for (uint32_t i = 1; i < 60; i++) {
            uint64_t draw = round * 100ull + i;
            td_wire_msg m = {.type = (td_wire_type)(TD_WIRE_OPEN + td_noise_bits(draw, 0, 0) % 3)};
            uint32_t at = (uint32_t)td_noise_bits(draw, 0, 1) % 220;
            if (m.type == TD_WIRE_OPEN)
                m.open = (td_wire_open){.sequence = i % 6, .top_p = 1, .repeat_penalty = 1};
            else if (m.type == TD_WIRE_FEED)
                m.feed = (td_wire_feed){i % 6, 0, i % 3 ? 0 : at, 1 + i % 4, ids};
            else
                m.propose = (td_wire_propose){i % 6, 0, at, 1 + i % 200, i % 3 == 0};
            uint64_t session = i % 7 ? STAGE_TICKET | n_hello : (uint64_t)i << 32;
            uint64_t flip = i % 5 ? 0 : td_noise_bits(draw, 1, 0) | 1u;
            send_wire(&p, m, session, round % 2 ? i : 1 + td_noise_bits(draw, 2, 0) % 9, flip);
        }
        if (round % 4 == 0) {
            p.last = TD_STAGE_HELLO;
            say_anything(&p, round, lengths);
            hear(&p, TD_STAGE_FAIL, 5000);
            assert_int_equal(p.last, TD_STAGE_FAIL);
        } else { /* whose coordinator begins anew, as after messages that were lost */
            greet_draft(&p, &n_hello);
            say(&p, (td_stage_msg){.type = TD_STAGE_BYE});
        }
        td_link_close(&p.link, true);
    }
}

/* Who has not its ticket is not heard, and does not get its answers. */
static void test_a_draft_is_its_coordinators(void **state)
{
    (void)state;
    peer p, other = {.session = 1};
    uint32_t n_hello = 0;
    join_draft(&p, 9300);
    other.link = td_link_open(transport, endpoint, TD_LINK_CONNECT, NULL);
    assert_non_null(other.link);
    greet_draft(&p, &n_hello);
    send_wire(&other, hello(), (STAGE_TICKET | n_hello) + (1ull << 32), 0, 0);
    td_wire_msg ping = {.type = TD_WIRE_PING};
    send_wire(&p, ping, STAGE_TICKET | n_hello, 1, 0);
    assert_true(hear_wire(&p, TD_WIRE_PONG, 5000));
    assert_false(hear_wire(&other, TD_WIRE_HELLO_OK, 50));
    td_link_close(&other.link, false);
    say(&p, (td_stage_msg){.type = TD_STAGE_BYE});
    td_link_close(&p.link, true);
}

/* As after one loss and another: by the same coordinator, with the same ticket. */
static void test_a_draft_is_loaded_again_and_again(void **state)
{
    (void)state;
    for (uint32_t round = 0; round < 100; round++) {
        peer p;
        join_draft(&p, 9400 + round);
        say(&p, (td_stage_msg){.type = TD_STAGE_BYE});
        td_link_close(&p.link, true);
    }
}

static void run_rows(td_target *t, uint32_t n, bool is_prefill, uint32_t position, uint32_t *chosen)
{
    td_forward_row rows[TD_VERIFY_ROWS_MAX];
    td_target_result result;
    for (uint32_t i = 0; i < n; i++)
        rows[i] = (td_forward_row){
            .position = position + i, .token = 3 + (position + i) % 200, .is_output = true};
    td_target_forward(t, position + 1, is_prefill, rows, n);
    while (!td_target_poll(t, &result)) {
        struct pollfd p = {.fd = td_target_fd(t), .events = POLLIN};
        assert_int_equal(poll(&p, 1, 20000), 1);
    }
    if (result.err.code != TD_OK)
        fail_msg("%s", result.err.message);
    memcpy(chosen, result.chosen, n * sizeof *chosen);
}

/* The tokens that a target chooses after some rows. */
static void run_target_by(uint32_t type, const char *const *specs, uint32_t n_specs,
                          uint32_t *chosen)
{
    td_host host = {.name = "w", .endpoint = endpoint};
    const td_type_info *f16 = td_type_find(TD_TYPE_F16);
    td_layout_params params = {.model = model,
                               .specs = specs,
                               .n_specs = n_specs,
                               .hosts = &host,
                               .n_hosts = 1,
                               .wire = td_type_find(type),
                               .kv = {.k = f16, .v = f16},
                               .n_slots = 2,
                               .n_ctx = 200};
    td_err err = {0};
    td_target *t = td_target_create(&params, &err);
    if (!t)
        fail_msg("%s", err.message);
    td_sampling_params sampling = {.temperature = 0.8f, .top_p = 1, .repeat_penalty = 1};
    td_target_open_sequence(t, 0, 0, 0, 1, &sampling);
    run_rows(t, 60, true, 0, chosen);
    td_target_commit(t, 0, 60);
    run_rows(t, 20, false, 60, chosen + 60);
    td_target_truncate(t, 0, 65);
    run_rows(t, 20, false, 65, chosen + 80);
    td_target_destroy(&t);
}

static void run_target(const char *const *specs, uint32_t n_specs, uint32_t *chosen)
{
    run_target_by(TD_TYPE_F32, specs, n_specs, chosen);
}

/* The same tokens wherever the model is cut within machines. */
static void test_halves_are_between_machines_alone(void **state)
{
    (void)state;
    static const char *const here[] = {"host:1"};
    static const char *const there[] = {"w/host:1"};
    static const char *const four[] = {"host:1@0-0", "w/host:1@1-1", "w/host:1@2-2", "host:1@3-3"};
    static const char *const three[] = {"host:1@0-0", "w/host:1@1-2", "host:1@3-3"};
    uint32_t exact[100], wanted[100], got[100];
    run_target(here, 1, exact);
    run_target_by(TD_TYPE_F16, there, 1, got);
    assert_memory_equal(exact, got, sizeof exact);
    run_target_by(TD_TYPE_F16, three, 3, wanted);
    run_target_by(TD_TYPE_F16, four, 4, got);
    assert_memory_equal(wanted, got, sizeof wanted);
}

/* Each question has one answer, none none, and before there is anything to tell it is none. */
static void test_a_trace_is_told_to_who_asks(void **state)
{
    (void)state;
    peer p;
    for (uint32_t way = 0; way < 2; way++) { /* before the layers are there, or of a draft */
        greet_as(&p, 6100 + way, 1, way ? TD_STAGE_HELLO_DRAFT : TD_STAGE_HELLO);
        say(&p, (td_stage_msg){.type = TD_STAGE_TRACE});
        hear(&p, TD_STAGE_EVENTS, 5000);
        assert_int_equal(p.last, TD_STAGE_FAIL);
        assert_non_null(strstr(p.reason, "at the wrong time"));
        td_link_close(&p.link, true);
    }
    join(&p, 6200, 2);
    say(&p, (td_stage_msg){.type = TD_STAGE_PING, .ping = {.echo_us = 5}});
    hear(&p, TD_STAGE_EVENTS, 200);
    assert_int_equal(p.last, TD_STAGE_READY); /* nothing but pongs */
    for (uint32_t i = 0; i < 3; i++) {
        say(&p, (td_stage_msg){.type = TD_STAGE_TRACE});
        hear(&p, TD_STAGE_EVENTS, 5000);
        assert_int_equal(p.last, TD_STAGE_EVENTS);
        p.last = TD_STAGE_READY;
        hear(&p, TD_STAGE_EVENTS, 50);
        assert_int_equal(p.last, TD_STAGE_READY);
    }
    say(&p, (td_stage_msg){.type = TD_STAGE_EVENTS, .events = make_events().events});
    hear(&p, TD_STAGE_FAIL, 5000);
    assert_int_equal(p.last, TD_STAGE_FAIL); /* it is none that a coordinator sends */
    td_link_close(&p.link, true);
}

static void test_one_of_an_older_version_is_told_so(void **state)
{
    (void)state;
    peer p = {.link = td_link_open(transport, endpoint, TD_LINK_CONNECT, NULL)};
    assert_non_null(p.link);
    for (uint32_t i = 0; i < 200 && p.code != TD_STAGE_FAIL_PROTOCOL; i++) {
        usleep(i ? 20000 : 0); /* it still sees the one before out */
        p = (peer){.link = p.link, .session = 7000 + i};
        say(&p, (td_stage_msg){.type = TD_STAGE_HELLO, .hello.protocol = TD_STAGE_PROTOCOL - 1});
        hear(&p, TD_STAGE_HELLO_OK, 1000);
        assert_int_not_equal(p.last, TD_STAGE_HELLO_OK);
    }
    assert_int_equal(p.code, TD_STAGE_FAIL_PROTOCOL);
    assert_non_null(strstr(p.reason, "speaks protocol"));
    td_link_close(&p.link, true);
}

static void test_and_serves_the_next_one(void **state)
{
    (void)state;
    static const char *const here[] = {"host:1"};
    static const char *const there[] = {"w/host:1"};
    static const char *const mixed[] = {"host:1", "w/host:1", "w/host:1", "host:1"};
    uint32_t wanted[100], got[100];
    run_target(here, 1, wanted);
    run_target(there, 1, got);
    assert_memory_equal(wanted, got, sizeof wanted);
    run_target(mixed, 4, got);
    assert_memory_equal(wanted, got, sizeof wanted);
}

/* -- weights that are sent --------------------------------------------------------------------- */

enum { RIGHT, OTHER_PLACE, OTHER_FILE, TOO_FEW, TWICE, OTHER_BYTES, OTHER_SIZE, NONE, N_WAYS };

/* Answers what the worker wants, the first of it in some wrong way. */
static void answer(peer *p, uint32_t way)
{
    static uint8_t bytes[TD_WIRE_MESSAGE_MAX], data[TD_STAGE_DATA_MAX];
    const td_gguf *g = td_model_gguf(model);
    uint32_t n_wants = 0;
    for (int waited = 0; waited < 20000 && p->last != TD_STAGE_PLANNED && p->last != TD_STAGE_FAIL;
         waited += 5) {
        td_link_poll_item item = {.link = p->link};
        stay(p);
        td_link_poll(&item, 1, 5000, NULL);
        size_t n = 1;
        td_route route;
        td_stage_msg m;
        while (td_link_recv(p->link, bytes, &n, &route, NULL) && n) {
            if (!td_stage_decode(bytes, n, &m, NULL) || m.session != p->session ||
                m.type == TD_STAGE_PONG)
                continue;
            p->last = m.type;
            if (m.type != TD_STAGE_WANT)
                continue;
            if (way == NONE)
                return;
            uint32_t now = n_wants++ == 0 ? way : RIGHT;
            m.type = TD_STAGE_DATA;
            m.data.bytes = data;
            assert_true(td_gguf_read_shard(g, m.data.file, m.data.offset, m.data.n, data, NULL));
            m.data.offset += now == OTHER_PLACE;
            m.data.file = (uint8_t)(m.data.file + (now == OTHER_FILE));
            m.data.n -= now == TOO_FEW;
            data[m.data.n / 2] ^= now == OTHER_BYTES;
            say(p, m);
            if (now == TWICE)
                say(p, m);
        }
    }
}

static void test_weights_are_taken_as_they_were_asked_for(void **state)
{
    (void)state;
    for (uint32_t round = 0; round < 2 * N_WAYS; round++) {
        peer p;
        uint32_t way = N_WAYS - 1 - round % N_WAYS; /* the right one comes last */
        bool is_wrong = way != RIGHT && round < N_WAYS;
        td_stage_plan plan = greet(&p, 5000 + round, 1);
        td_lend_describe(td_model_gguf(model), &plan);
        assert_int_equal(plan.n_files, 1);
        plan.files[0].n_bytes += is_wrong && way == OTHER_SIZE;
        plan.hash[31] = (uint8_t)(plan.hash[31] + is_wrong); /* nothing is kept of that one */
        say(&p, (td_stage_msg){.type = TD_STAGE_PLAN, .plan = plan});
        answer(&p, way);
        if (!is_wrong) /* the second time nothing is wanted */
            assert_int_equal(p.last, TD_STAGE_PLANNED);
        else
            assert_int_equal(p.last, way == NONE ? TD_STAGE_WANT : TD_STAGE_FAIL);
        say(&p, (td_stage_msg){.type = TD_STAGE_BYE});
        td_link_close(&p.link, true);
    }
}

static void test_weights_are_lent_within_the_files(void **state)
{
    (void)state;
    const td_gguf *g = td_model_gguf(model);
    uint64_t n = td_gguf_shard_bytes(g, 0);
    static td_lend lend;
    const td_stage_data wrong[] = {{.file = 1, .n = 1},
                                   {.offset = n, .n = 1},
                                   {.offset = n - 1, .n = 2},
                                   {.offset = UINT64_MAX, .n = 2}};
    for (uint32_t i = 0; i < TD_COUNT(wrong); i++)
        assert_false(td_lend_take(&lend, g, &wrong[i], NULL));
    for (uint32_t i = 0; i < TD_STAGE_WANTS_MAX; i++)
        assert_true(td_lend_take(&lend, g, &(td_stage_data){.offset = n - 1, .n = 1}, NULL));
    assert_false(td_lend_take(&lend, g, &(td_stage_data){.n = 1}, NULL));
}

int main(void)
{
    const struct CMUnitTest wire[] = {
        cmocka_unit_test(test_messages_come_out_as_they_went_in),
        cmocka_unit_test(test_records_come_out_as_they_went_in),
        cmocka_unit_test(test_activations_of_another_type_are_refused),
        cmocka_unit_test(test_a_plan_of_another_wire_is_refused),
        cmocka_unit_test(test_a_meeting_is_refused_without_a_ticket_or_with_a_text_that_is_none),
        cmocka_unit_test(test_halves_are_the_nearest_and_finite),
        cmocka_unit_test(test_a_token_takes_few_bytes),
        cmocka_unit_test(test_broken_bytes_are_refused),
        cmocka_unit_test(test_wild_events_are_refused_or_in_order),
        cmocka_unit_test(test_wild_records_are_refused_or_in_bounds),
    };
    const struct CMUnitTest worker[] = {
        cmocka_unit_test(test_a_worker_lives_through_nonsense),
        cmocka_unit_test(test_a_plan_for_a_draft_is_all_of_a_model),
        cmocka_unit_test(test_a_draft_lives_through_nonsense),
        cmocka_unit_test(test_a_draft_is_its_coordinators),
        cmocka_unit_test(test_a_draft_is_loaded_again_and_again),
        cmocka_unit_test(test_a_trace_is_told_to_who_asks),
        cmocka_unit_test(test_one_of_an_older_version_is_told_so),
        cmocka_unit_test(test_halves_are_between_machines_alone),
        cmocka_unit_test(test_and_serves_the_next_one),
    };
    const struct CMUnitTest sent[] = {
        cmocka_unit_test(test_weights_are_taken_as_they_were_asked_for),
        cmocka_unit_test(test_weights_are_lent_within_the_files),
        cmocka_unit_test(test_and_serves_the_next_one),
    };
    return cmocka_run_group_tests(wire, NULL, NULL) || cmocka_run_group_tests(worker, begin, end) ||
           cmocka_run_group_tests(sent, begin_sent, end);
}
