/* Messages keep their content through encode and decode, at every boundary of every field. */
#include "base/crc32c.h"
#include "transport/wire.h"

#include "base/check.h"
#include "tests/wire_samples.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static uint32_t ids_in[TD_WIRE_IDS_MAX];
static uint32_t ids_out[TD_WIRE_IDS_MAX];
static uint8_t buffer[TD_WIRE_MESSAGE_MAX];
static const td_wire_limits limits = {.n_vocab = 1000, .n_ctx = 20000};

/* The check values of the CRC catalogue and of RFC 3720 appendix B.4. */
static void test_crc32c_equals_published_values(void **state)
{
    (void)state;
    uint8_t bytes[32] = {0};
    assert_int_equal(td_crc32c(0, "123456789", 9), 0xe3069283u);
    assert_int_equal(td_crc32c(0, bytes, 32), 0x8a9136aau);
    memset(bytes, 0xff, 32);
    assert_int_equal(td_crc32c(0, bytes, 32), 0x62a8ab43u);
    for (int i = 0; i < 32; i++)
        bytes[i] = (uint8_t)i;
    assert_int_equal(td_crc32c(0, bytes, 32), 0x46dd794eu);
    assert_int_equal(td_crc32c(td_crc32c(0, "1234", 4), "56789", 5), 0xe3069283u);
}

/* Written out by hand from the layout in wire.h; the checksum by another program. */
static void test_layout_is_as_written_down(void **state)
{
    (void)state;
    static const uint8_t want[] = {
        0x54, 0x54, 0x44, 0x4d, 0x01, 0x00, 0x08, 0x00,                         /* PROPOSE */
        0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,                         /* session */
        0x05, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,                         /* seq */
        0x11, 0x00, 0x00, 0x00, 0x3f, 0x22, 0x08, 0xd2,                         /* length, crc */
        0x02, 0x00, 0x00, 0x00, 0x03, 0x00, 0x00, 0x00, 0x39, 0x30, 0x00, 0x00, /* 12345 */
        0x08, 0x00, 0x00, 0x00, 0x01,
    };
    td_wire_msg m = {
        .type = TD_WIRE_PROPOSE,
        .session = 0x1122334455667788u,
        .seq = 5,
        .propose = {.sequence = 2, .epoch = 3, .position = 12345, .k = 8, .goes_on = true}};
    size_t n;
    assert_true(td_wire_encode(&m, &limits, buffer, sizeof buffer, &n, NULL));
    assert_int_equal(n, sizeof want);
    assert_memory_equal(buffer, want, sizeof want);
}

static void check_round_trip(const td_wire_msg *m)
{
    size_t n, n_again;
    td_wire_msg back;
    td_err err = {0};
    static uint8_t again[TD_WIRE_MESSAGE_MAX];
    if (!td_wire_encode(m, &limits, buffer, sizeof buffer, &n, &err))
        fail_msg("%s", err.message);
    assert_true(n <= td_wire_type_max_bytes(m->type));
    if (!td_wire_decode(buffer, n, &limits, ids_out, &back, &err))
        fail_msg("%s", err.message);
    samples_assert_equal(m, &back);
    assert_true(td_wire_encode(&back, &limits, again, sizeof again, &n_again, &err));
    assert_int_equal(n, n_again);
    assert_memory_equal(buffer, again, n);
}

static void test_every_type_round_trips(void **state)
{
    (void)state;
    td_wire_msg m[SAMPLES_MAX];
    int n = samples_make(m, ids_in);
    bool seen[TD_WIRE_TYPE_END] = {0};
    for (int i = 0; i < n; i++) {
        seen[m[i].type] = true;
        check_round_trip(&m[i]);
    }
    for (int type = TD_WIRE_HELLO; type < TD_WIRE_TYPE_END; type++)
        if (!seen[type])
            fail_msg("no sample of %s", td_wire_type_name((td_wire_type)type));
}

/* Encodes and expects success, or a TD_E_DATA whose text names the field. */
static void check(const td_wire_msg *m, const char *field_or_null)
{
    size_t n = 0;
    td_err err = {0};
    if (!field_or_null) {
        check_round_trip(m);
        return;
    }
    if (td_wire_encode(m, &limits, buffer, sizeof buffer, &n, &err))
        fail_msg("%s was encoded in spite of its %s", td_wire_type_name(m->type), field_or_null);
    assert_int_equal(err.code, TD_E_DATA);
    if (!strstr(err.message, field_or_null))
        fail_msg("\"%s\" does not name %s", err.message, field_or_null);
}

static void test_boundaries_of_token_lists(void **state)
{
    (void)state;
    td_wire_msg m = {.type = TD_WIRE_FEED, .session = 1, .seq = 1, .feed = {.ids = ids_in}};
    static const struct {
        uint32_t position, n;
        const char *field;
    } feeds[] = {
        {0, 1, NULL},
        {0, TD_WIRE_IDS_MAX, NULL},
        {0, 0, "n is 0"},
        {0, 8193, "n is 8193"},
        {19999, 1, NULL},
        {20000, 1, "position"},
        {UINT32_MAX, 8192, "position"},
    };
    for (size_t i = 0; i < TD_COUNT(feeds); i++) {
        m.feed.position = feeds[i].position;
        m.feed.n = feeds[i].n;
        check(&m, feeds[i].field);
    }
    m.feed.position = 0;
    m.feed.n = TD_WIRE_IDS_MAX;
    ids_in[TD_WIRE_IDS_MAX - 1] = 999;
    check(&m, NULL);
    ids_in[TD_WIRE_IDS_MAX - 1] = 1000;
    check(&m, "ids[8191] is 1000; allowed: 0..999");
    ids_in[TD_WIRE_IDS_MAX - 1] = 0;

    m = (td_wire_msg){.type = TD_WIRE_DRAFT, .session = 1, .seq = 1, .draft = {.ids = ids_in}};
    check(&m, NULL); /* nothing to propose is an answer too */
    m.draft.n = TD_WIRE_DRAFT_MAX;
    check(&m, NULL);
    m.draft.n = TD_WIRE_DRAFT_MAX + 1;
    check(&m, "n is 257");
    m.draft.n = 0;
    m.draft.position = 20000;
    check(&m, NULL);
    m.draft.position = 20001;
    check(&m, "position");
}

static void test_boundaries_of_numbers(void **state)
{
    (void)state;
    td_wire_msg m = {.type = TD_WIRE_PROPOSE, .session = 1, .seq = 1, .propose = {.k = 1}};
    check(&m, NULL);
    m.propose.k = 0;
    check(&m, "k is 0");
    m.propose.k = TD_WIRE_DRAFT_MAX + 1;
    check(&m, "k is 257");
    m.propose.k = TD_WIRE_DRAFT_MAX;
    m.propose.position = 20000;
    check(&m, NULL);
    m.propose.position = 20001;
    check(&m, "position");
    m.propose.position = 0;
    m.session = 0;
    check(&m, "session");
    m.session = UINT64_MAX;
    m.seq = 0;
    check(&m, "seq");
    m.seq = UINT64_MAX;
    check(&m, NULL);

    m = (td_wire_msg){.type = TD_WIRE_HASH_QUERY, .session = 1, .hash = {.a = 0, .b = 1}};
    check(&m, NULL);
    m.seq = 1;
    check(&m, "seq");
    m.seq = 0;
    m.hash.a = 1;
    check(&m, "a is 1");
    m.hash.b = 0;
    check(&m, "b is 0");
    m.hash.b = TD_WIRE_VOCAB_MAX;
    check(&m, NULL);
    m.hash.b = TD_WIRE_VOCAB_MAX + 1;
    check(&m, "b is");
}

static void test_boundaries_of_sampler(void **state)
{
    (void)state;
    static const struct {
        td_wire_open open;
        const char *field;
    } rows[] = {
        {{.repeat_penalty = 1}, NULL},
        {{.repeat_penalty = 0.01f, .temperature = 100, .top_p = 1, .min_p = 1}, NULL},
        {{.repeat_penalty = 100, .top_k = TD_WIRE_VOCAB_MAX}, NULL},
        {{.repeat_penalty = 1, .temperature = -0.1f}, "temperature"},
        {{.repeat_penalty = 1, .temperature = 100.1f}, "temperature"},
        {{.repeat_penalty = 1, .temperature = __builtin_nanf("")}, "temperature"},
        {{.repeat_penalty = 1, .temperature = __builtin_inff()}, "temperature"},
        {{.repeat_penalty = 1, .top_p = 1.001f}, "top_p"},
        {{.repeat_penalty = 1, .top_p = -__builtin_nanf("")}, "top_p"},
        {{.repeat_penalty = 1, .min_p = -1}, "min_p"},
        {{.repeat_penalty = 0}, "repeat_penalty"},
        {{.repeat_penalty = __builtin_inff()}, "repeat_penalty"},
        {{.repeat_penalty = 1, .top_k = TD_WIRE_VOCAB_MAX + 1}, "top_k"},
        {{.repeat_penalty = 1, .repeat_last_n = TD_WIRE_POSITION_MAX + 1}, "repeat_last_n"},
    };
    for (size_t i = 0; i < TD_COUNT(rows); i++) {
        td_wire_msg m = {.type = TD_WIRE_OPEN, .session = 1, .seq = 1, .open = rows[i].open};
        check(&m, rows[i].field);
    }
}

static void test_boundaries_of_hello(void **state)
{
    (void)state;
    td_wire_msg all[SAMPLES_MAX], m;
    samples_make(all, ids_in);
    m = all[0];
    assert_int_equal(m.type, TD_WIRE_HELLO);
    memset(m.hello.build, 'b', TD_WIRE_BUILD_MAX);
    m.hello.build[TD_WIRE_BUILD_MAX] = 0;
    check(&m, NULL);
    m.hello.build[3] = '\n';
    check(&m, "build: byte 3");
    m.hello.build[3] = (char)0xc3;
    check(&m, "build: byte 3");
    m.hello.build[3] = 0;
    m.hello.n_hashed = m.hello.n_vocab + 1;
    check(&m, "n_hashed");
    m.hello.n_hashed = 0;
    check(&m, "n_hashed");
    m.hello.n_hashed = 1;
    m.hello.n_vocab = TD_WIRE_VOCAB_MAX + 1;
    check(&m, "n_vocab");
    m.hello.n_vocab = 0;
    check(&m, "n_vocab");
    m.hello.n_vocab = 1;
    m.hello.max_draft = 257;
    check(&m, "max_draft");
    m.hello.max_draft = 1;
    m.hello.ping_us = 999;
    check(&m, "ping_us");
    m.hello.ping_us = 1000;
    m.hello.role = TD_WIRE_ROLE_END;
    check(&m, "role");
    m.hello.role = TD_WIRE_ROLE_DRAFT;
    check(&m, NULL);

    m = (td_wire_msg){.type = TD_WIRE_REFUSE, .session = 1, .refuse.code = TD_WIRE_REFUSE_VOCAB};
    memset(m.refuse.reason, 'r', TD_WIRE_REASON_MAX);
    check(&m, NULL);
    m.refuse.code = TD_WIRE_REFUSE_END;
    check(&m, "code");
}

/* A peer of another protocol must be readable enough to be told so. */
static void test_hello_of_another_protocol_gives_its_number(void **state)
{
    (void)state;
    td_wire_msg m = {.type = TD_WIRE_HELLO, .session = 1, .hello.protocol = 77}, back;
    size_t n;
    assert_true(td_wire_encode(&m, &limits, buffer, sizeof buffer, &n, NULL));
    assert_true(td_wire_decode(buffer, n, &limits, ids_out, &back, NULL));
    assert_int_equal(back.hello.protocol, 77);
    assert_int_equal(back.hello.n_vocab, 0);
}

static void test_encode_refuses_a_buffer_too_small(void **state)
{
    (void)state;
    td_wire_msg m[SAMPLES_MAX];
    int n_samples = samples_make(m, ids_in);
    for (int i = 0; i < n_samples; i++) {
        size_t n, n_short;
        assert_true(td_wire_encode(&m[i], &limits, buffer, sizeof buffer, &n, NULL));
        td_err err = {0};
        assert_true(td_wire_encode(&m[i], &limits, buffer, n, &n_short, &err));
        assert_false(td_wire_encode(&m[i], &limits, buffer, n - 1, &n_short, &err));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_crc32c_equals_published_values),
        cmocka_unit_test(test_layout_is_as_written_down),
        cmocka_unit_test(test_every_type_round_trips),
        cmocka_unit_test(test_boundaries_of_token_lists),
        cmocka_unit_test(test_boundaries_of_numbers),
        cmocka_unit_test(test_boundaries_of_sampler),
        cmocka_unit_test(test_boundaries_of_hello),
        cmocka_unit_test(test_hello_of_another_protocol_gives_its_number),
        cmocka_unit_test(test_encode_refuses_a_buffer_too_small),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
