/* Chunks of prompts that a stage worker keeps: in whatever order a coordinator asks and sends, it
 * is answered or the session is over; nothing is taken for found that was not, and the next
 * coordinator is served. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/crc32c.h"
#include "target/stage_stream.h"

#include "stage_peer.h"

#define N_EMBD  32u
#define CRC_AT  28u /* of a header, as is the length of what is behind it: */
#define SIZE_AT 24u
#define CHUNK   TD_PAGE_POSITIONS

static const td_stage_limits limits = {
    .n_slots = 4, .n_ctx = 200, .n_vocab = 300, .n_embd = N_EMBD};

/* As many as a batch has rows, at least one, and nothing behind them. */
static void test_a_chunk_is_asked_for_by_its_tokens(void **state)
{
    (void)state;
    static uint8_t bytes[TD_WIRE_MESSAGE_MAX];
    static td_stage_msg m, out;
    size_t n;
    m = (td_stage_msg){.type = TD_STAGE_FIND, .session = 1, .seq = 1};
    for (uint32_t i = 0; i < TD_STAGE_ROWS_MAX; i++)
        m.find.tokens[i] = i * 77777;
    assert_false(td_stage_encode(&m, bytes, sizeof bytes, &n, NULL));
    for (m.find.n = 1; m.find.n <= TD_STAGE_ROWS_MAX; m.find.n++) {
        assert_true(td_stage_encode(&m, bytes, sizeof bytes, &n, NULL));
        assert_true(td_stage_decode(bytes, n, &out, NULL));
        assert_int_equal(out.find.n, m.find.n);
        assert_memory_equal(out.find.tokens, m.find.tokens, m.find.n * 4u);
    }
    memset(bytes + n, 0, 8);
    for (uint32_t more = 1; more <= 8; more++) {
        uint32_t n_payload = (uint32_t)(n + more - TD_WIRE_HEADER_BYTES);
        memcpy(bytes + SIZE_AT, &n_payload, 4);
        memset(bytes + CRC_AT, 0, 4);
        uint32_t crc = td_crc32c(0, bytes, n + more);
        memcpy(bytes + CRC_AT, &crc, sizeof crc);
        assert_false(td_stage_decode(bytes, n + more, &out, NULL));
    }
    m.find.n = TD_STAGE_ROWS_MAX + 1;
    assert_false(td_stage_encode(&m, bytes, sizeof bytes, &n, NULL));
    m = (td_stage_msg){.type = TD_STAGE_KEEP, .session = 1, .seq = 1};
    assert_false(td_stage_encode(&m, bytes, sizeof bytes, &n, NULL));
    m.keep = TD_STAGE_ROWS_MAX + 1;
    assert_false(td_stage_encode(&m, bytes, sizeof bytes, &n, NULL));
}

/* What all have found has no activations, and none but a chunk without outputs can be it. */
static void test_a_chunk_that_was_found_brings_nothing(void **state)
{
    (void)state;
    static uint8_t bytes[TD_WIRE_MESSAGE_MAX];
    static td_stage_batch b, out;
    const uint8_t some[4 * N_EMBD] = {0};
    for (uint32_t way = 0; way < 6; way++) {
        td_stage_record r = {.kind = way == 5 ? TD_RECORD_RESULT : TD_RECORD_BATCH, .batch = &b};
        td_stage_msg m;
        td_err err = {0};
        td_stage_writer w;
        size_t n;
        b = (td_stage_batch){.is_prefill = way != 1,
                             .is_restored = true,
                             .n_rows = way != 2,
                             .n_out = way == 3,
                             .n_bytes = way == 4 ? sizeof some : 0,
                             .bytes = some};
        td_stage_writer_begin(&w, bytes, NULL);
        assert_true(td_stage_writer_put(&w, &r));
        td_stage_writer_end(&w, 1, 1, &n);
        assert_true(td_stage_decode(bytes, n, &m, NULL));
        td_cursor c = td_cursor_begin("STREAM", m.stream.bytes, m.stream.n, &err);
        r.batch = &out;
        assert_int_equal(td_stage_read_record(&c, &limits, &r), way == 0);
        assert_true(way != 0 || (out.is_restored && out.n_bytes == 0));
    }
}

/* -- a worker ---------------------------------------------------------------------------------- */

static void keep(peer *p, uint16_t n)
{
    p->last = TD_STAGE_HELLO;
    say(p, (td_stage_msg){.type = TD_STAGE_KEEP, .keep = n});
    hear(p, TD_STAGE_KEPT, 5000);
}

static td_stage_find find_of(uint64_t batch, uint32_t first, uint8_t text)
{
    td_stage_find f = {.batch = batch, .first = first, .before = {text}, .n = CHUNK};
    for (uint32_t i = 0; i < CHUNK; i++)
        f.tokens[i] = (first + i * 7 + text) % 200;
    return f;
}

static td_stage_there find(peer *p, const td_stage_find *f)
{
    p->last = TD_STAGE_HELLO;
    p->found = (td_stage_found){0};
    say(p, (td_stage_msg){.type = TD_STAGE_FIND, .find = *f});
    hear(p, TD_STAGE_FOUND, 5000);
    if (p->last == TD_STAGE_FOUND)
        assert_int_equal(p->found.batch, f->batch);
    return p->found.what;
}

/* The chunk as a batch, of slot 0, which is opened before its first one. */
static void send_chunk(peer *p, const td_stage_find *f, bool is_restored)
{
    static uint8_t bytes[TD_WIRE_MESSAGE_MAX];
    static td_stage_batch b;
    td_stage_writer w;
    size_t n;
    b = (td_stage_batch){
        .id = f->batch, .is_prefill = true, .is_restored = is_restored, .n_rows = f->n};
    for (uint32_t i = 0; i < f->n; i++)
        b.rows[i] = (td_stage_row){.position = f->first + i, .token = f->tokens[i]};
    td_stage_writer_begin(&w, bytes, NULL);
    const td_stage_record open = {.kind = TD_RECORD_OPEN,
                                  .open = {.stream = 4, .top_p = 1, .repeat_penalty = 1}};
    assert_true(f->first || td_stage_writer_put(&w, &open));
    assert_true(td_stage_writer_put(&w, &(td_stage_record){.kind = TD_RECORD_BATCH, .batch = &b}));
    td_stage_writer_end(&w, p->session, ++p->n_sent, &n);
    assert_true(td_link_send(p->link, 0, bytes, n, NULL));
}

static void hear_result(peer *p)
{
    p->last = TD_STAGE_HELLO;
    hear(p, TD_STAGE_STREAM, 20000);
}

static void refuses(peer *p, const char *why)
{
    hear(p, TD_STAGE_FAIL, 5000);
    assert_int_equal(p->last, TD_STAGE_FAIL);
    if (!strstr(p->reason, why))
        fail_msg("\"%s\"; wanted: \"%s\"", p->reason, why);
    td_link_close(&p->link, true);
}

static void leave(peer *p)
{
    say(p, (td_stage_msg){.type = TD_STAGE_BYE});
    td_link_close(&p->link, true);
}

static void test_what_was_computed_is_found_again(void **state)
{
    (void)state;
    peer p;
    td_stage_find a = find_of(1, 0, 1), b = find_of(2, CHUNK, 1), again = find_of(3, 0, 1);
    join(&p, 100, 1);
    keep(&p, CHUNK);
    assert_true(p.is_kept);
    assert_int_equal(find(&p, &a), TD_STAGE_MISSING);
    send_chunk(&p, &a, false);
    hear_result(&p);
    assert_int_equal(find(&p, &b), TD_STAGE_MISSING);
    send_chunk(&p, &b, false);
    hear_result(&p);
    td_prefix_store_flush(hooks.prompts);
    assert_int_equal(find(&p, &again), TD_STAGE_THERE);
    send_chunk(&p, &again, true);
    hear_result(&p);
    assert_int_equal(p.last, TD_STAGE_STREAM);
    leave(&p);
}

static void test_in_the_wrong_order_it_ends_the_session(void **state)
{
    (void)state;
    const td_stage_find a = find_of(1, 0, 1);
    for (uint32_t way = 0; way < 9; way++) {
        peer p;
        td_stage_find f = a;
        if (way == 0) { /* nothing is loaded */
            greet(&p, 200, 1);
            say(&p, (td_stage_msg){.type = TD_STAGE_KEEP, .keep = CHUNK});
            refuses(&p, "a KEEP at the wrong time");
            continue;
        }
        join(&p, 200 + way, 1);
        if (way == 1) {
            say(&p, (td_stage_msg){.type = TD_STAGE_FIND, .find = a});
            refuses(&p, "where none is kept");
            continue;
        }
        if (way == 2) {
            send_chunk(&p, &a, true);
            refuses(&p, "where none is kept");
            continue;
        }
        keep(&p, way == 3 ? CHUNK - 1 : CHUNK);
        if (way == 3) {
            refuses(&p, "a KEEP at the wrong time");
            continue;
        }
        assert_true(p.is_kept);
        f.first = way == 5 ? 1 : way == 6 ? 192 : 0; /* the context is 200 */
        f.n = way == 7 ? CHUNK - 1 : CHUNK;
        if (way == 4)
            say(&p, (td_stage_msg){.type = TD_STAGE_KEEP, .keep = CHUNK});
        else if (way == 8)
            send_chunk(&p, &a, true);
        else
            say(&p, (td_stage_msg){.type = TD_STAGE_FIND, .find = f});
        refuses(&p, way == 4   ? "a KEEP at the wrong time"
                    : way == 8 ? "which is not so"
                               : "a chunk of");
    }
}

/* Of other tokens, at another place, or of one that is missing. */
static void test_nothing_is_found_but_what_was_asked_for(void **state)
{
    (void)state;
    for (uint32_t way = 0; way < 4; way++) {
        peer p;
        td_stage_find f = find_of(7, 0, 1);
        join(&p, 300 + way, 1);
        keep(&p, CHUNK);
        f.tokens[5] += way == 3;
        assert_int_equal(find(&p, &f), way == 3 ? TD_STAGE_MISSING : TD_STAGE_THERE);
        f.tokens[63] += way == 0;
        f.batch += way == 1;
        f.n = (uint16_t)(f.n - (way == 2));
        send_chunk(&p, &f, true);
        refuses(&p, "which is not so");
    }
}

/* Room is bounded; whoever takes all of it and sends no batches is alone the worse for it. */
static void test_who_asks_and_sends_nothing_waits_for_himself(void **state)
{
    (void)state;
    peer p;
    bool is_answered = true;
    join(&p, 400, 1);
    keep(&p, CHUNK);
    for (uint32_t i = 0; i < 100 && is_answered; i++) {
        td_stage_find f = find_of(100 + i, 0, 1);
        p.last = TD_STAGE_HELLO;
        say(&p, (td_stage_msg){.type = TD_STAGE_FIND, .find = f});
        hear(&p, TD_STAGE_FOUND, i < 4 ? 5000 : 300);
        is_answered = p.last == TD_STAGE_FOUND;
        assert_true(is_answered || i >= 4);
    }
    assert_false(is_answered);
    say(&p, (td_stage_msg){.type = TD_STAGE_FIND, .find = find_of(999, 0, 1)});
    refuses(&p, "one at a time");
    const td_stage_find a = find_of(1, 0, 1); /* the next one is served */
    join(&p, 500, 1);
    keep(&p, CHUNK);
    assert_int_equal(find(&p, &a), TD_STAGE_THERE);
    send_chunk(&p, &a, true);
    hear_result(&p);
    assert_int_equal(p.last, TD_STAGE_STREAM);
    leave(&p);
}

static int begin_keeping(void **state)
{
    static char kept[] = "/tmp/tandem-keep-XXXXXX";
    hooks.prompts = mkdtemp(kept) ? td_prefix_store_open(kept, 1000000000, NULL) : NULL;
    *state = kept;
    return hooks.prompts ? begin(state) : -1;
}

static int end_keeping(void **state)
{
    char command[64];
    int rc = end(state);
    td_prefix_store_close(&hooks.prompts);
    snprintf(command, sizeof command, "rm -rf '%s'", (const char *)*state);
    return rc || system(command);
}

int main(void)
{
    const struct CMUnitTest wire[] = {
        cmocka_unit_test(test_a_chunk_is_asked_for_by_its_tokens),
        cmocka_unit_test(test_a_chunk_that_was_found_brings_nothing),
    };
    const struct CMUnitTest worker[] = {
        cmocka_unit_test(test_what_was_computed_is_found_again),
        cmocka_unit_test(test_in_the_wrong_order_it_ends_the_session),
        cmocka_unit_test(test_nothing_is_found_but_what_was_asked_for),
        cmocka_unit_test(test_who_asks_and_sends_nothing_waits_for_himself),
    };
    return cmocka_run_group_tests(wire, NULL, NULL) ||
           cmocka_run_group_tests(worker, begin_keeping, end_keeping);
}
