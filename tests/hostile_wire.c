/* Bytes that are no message, or almost one: each gets an error, none a crash. */
#include "base/crc32c.h"
#include "transport/wire.h"

#include "base/check.h"
#include "base/rng.h"
#include "tests/wire_samples.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static uint32_t ids_in[TD_WIRE_IDS_MAX], ids_out[TD_WIRE_IDS_MAX];
static const td_wire_limits limits = {.n_vocab = 1000, .n_ctx = 20000};

/* Decodes a heap copy of exactly n bytes, so that a sanitizer sees a read past the end. */
static bool decode(const uint8_t *bytes, size_t n, td_wire_msg *m, td_err *err)
{
    uint8_t *copy = malloc(n ? n : 1);
    assert_non_null(copy);
    memcpy(copy, bytes, n);
    td_err_clear(err);
    bool ok = td_wire_decode(copy, n, &limits, ids_out, m, err);
    free(copy);
    if (!ok) {
        assert_int_equal(err->code, TD_E_DATA);
        assert_true(err->message[0] != 0);
    }
    return ok;
}

static void put_u32(uint8_t *at, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        at[i] = (uint8_t)(v >> (8 * i));
}

/* What a hostile peer can do that a broken wire cannot: lengths and checksum that fit. */
static void seal(uint8_t *bytes, size_t n)
{
    put_u32(bytes + 24, (uint32_t)(n - TD_WIRE_HEADER_BYTES));
    put_u32(bytes + 28, 0);
    put_u32(bytes + 28, td_crc32c(0, bytes, n));
}

static size_t encode(const td_wire_msg *m, uint8_t buffer[TD_WIRE_MESSAGE_MAX])
{
    size_t n;
    td_err err = {0};
    if (!td_wire_encode(m, &limits, buffer, TD_WIRE_MESSAGE_MAX, &n, &err))
        fail_msg("%s", err.message);
    return n;
}

static uint8_t bytes[TD_WIRE_MESSAGE_MAX + 64];

static void expect_error(size_t n, const char *word)
{
    td_wire_msg m;
    td_err err;
    if (decode(bytes, n, &m, &err))
        fail_msg("%zu bytes were taken for a %s (%s)", n, td_wire_type_name(m.type), word);
    if (!strstr(err.message, word))
        fail_msg("\"%s\" does not say %s", err.message, word);
}

static void test_truncation_at_every_byte(void **state)
{
    (void)state;
    td_wire_msg m[SAMPLES_MAX], out;
    int n_samples = samples_make(m, ids_in);
    td_err err;
    for (int i = 0; i < n_samples; i++) {
        size_t n = encode(&m[i], bytes);
        for (size_t cut = 0; cut < n; cut++)
            assert_false(decode(bytes, cut, &out, &err));
        assert_true(decode(bytes, n, &out, &err));
    }
}

/* The same with length and checksum made to fit: now the payload readers must notice. */
static void test_sealed_truncation_and_excess(void **state)
{
    (void)state;
    td_wire_msg m[SAMPLES_MAX], out;
    int n_samples = samples_make(m, ids_in);
    td_err err;
    for (int i = 0; i < n_samples; i++) {
        size_t n = encode(&m[i], bytes);
        for (size_t cut = TD_WIRE_HEADER_BYTES; cut < n; cut++) {
            encode(&m[i], bytes);
            seal(bytes, cut);
            assert_false(decode(bytes, cut, &out, &err));
        }
        for (size_t extra = 1; extra <= 9; extra++) {
            encode(&m[i], bytes);
            memset(bytes + n, 0, extra);
            seal(bytes, n + extra);
            assert_false(decode(bytes, n + extra, &out, &err));
        }
    }
}

static void test_every_flipped_bit(void **state)
{
    (void)state;
    td_wire_msg m[SAMPLES_MAX], out;
    int n_samples = samples_make(m, ids_in);
    td_err err;
    for (int i = 0; i < n_samples; i++) {
        size_t n = encode(&m[i], bytes);
        for (size_t bit = 0; bit < n * 8; bit++) {
            bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
            assert_false(decode(bytes, n, &out, &err));
            bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
    }
}

/* Any flipped bit with a checksum that fits: an error or a message that encodes again. */
static void test_sealed_flipped_bits_give_a_valid_message_or_none(void **state)
{
    (void)state;
    td_wire_msg m[SAMPLES_MAX], out;
    static uint8_t again[TD_WIRE_MESSAGE_MAX];
    int n_samples = samples_make(m, ids_in);
    td_err err;
    for (int i = 0; i < n_samples; i++) {
        size_t n = encode(&m[i], bytes), n_again;
        for (size_t bit = 0; bit < n * 8; bit++) {
            encode(&m[i], bytes);
            bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
            seal(bytes, n);
            if (!decode(bytes, n, &out, &err))
                continue;
            bool is_hello = out.type == TD_WIRE_HELLO || out.type == TD_WIRE_HELLO_OK;
            if (is_hello && out.hello.protocol != TD_WIRE_PROTOCOL)
                continue; /* of which the rest is not read */
            assert_true(td_wire_encode(&out, &limits, again, sizeof again, &n_again, &err));
            assert_int_equal(n, n_again);
            assert_memory_equal(bytes, again, n);
        }
    }
}

static void test_framing(void **state)
{
    (void)state;
    td_wire_msg m = {.type = TD_WIRE_PING, .session = 1, .seq = 1};
    td_wire_msg out;
    td_err err;
    size_t n = encode(&m, bytes);
    for (size_t i = 0; i < TD_WIRE_HEADER_BYTES; i++)
        expect_error(i, "allowed: 32");
    static const struct {
        int offset;
        uint8_t value;
        const char *word;
    } rows[] = {
        {0, 'X', "magic"},  {4, 0, "version"}, {4, 2, "version"}, {5, 1, "version"},
        {6, 0, "type"},     {6, 14, "type"},   {6, 255, "type"},  {7, 1, "flags"},
        {7, 0x80, "flags"}, {8, 0, "session"}, {16, 0, "seq"},
    };
    for (size_t i = 0; i < TD_COUNT(rows); i++) {
        encode(&m, bytes);
        bytes[rows[i].offset] = rows[i].value;
        seal(bytes, n);
        expect_error(n, rows[i].word);
    }
    encode(&m, bytes);
    assert_true(decode(bytes, n, &out, &err));
    static const uint32_t lengths[] = {0, 11, 13, 0x7fffffff, 0x80000000, UINT32_MAX};
    for (size_t i = 0; i < TD_COUNT(lengths); i++) {
        put_u32(bytes + 24, lengths[i]);
        expect_error(n, "length");
    }
}

static void test_one_byte_over_the_cap(void **state)
{
    (void)state;
    td_wire_msg m = {.type = TD_WIRE_REFUSE, .session = 1, .refuse.code = TD_WIRE_REFUSE_BUSY};
    encode(&m, bytes);
    seal(bytes, TD_WIRE_HELLO_MAX + 1);
    expect_error(TD_WIRE_HELLO_MAX + 1, "allowed: at most 1024");
    seal(bytes, TD_WIRE_HELLO_MAX);
    expect_error(TD_WIRE_HELLO_MAX, "too many");
    m = (td_wire_msg){
        .type = TD_WIRE_FEED, .session = 1, .seq = 1, .feed = {.n = 1, .ids = ids_in}};
    encode(&m, bytes);
    seal(bytes, TD_WIRE_MESSAGE_MAX + 1);
    expect_error(TD_WIRE_MESSAGE_MAX + 1, "allowed: at most 65536");
    seal(bytes, TD_WIRE_MESSAGE_MAX);
    expect_error(TD_WIRE_MESSAGE_MAX, "too many");
}

static void test_counts_and_ids(void **state)
{
    (void)state;
    td_wire_msg m = {.type = TD_WIRE_FEED, .session = 1, .seq = 1, .feed = {.n = 4, .ids = ids_in}};
    static const uint32_t counts[] = {0, 3, 5, 8192, 8193, 0x40000000, 0x80000000, UINT32_MAX};
    size_t n = encode(&m, bytes);
    for (size_t i = 0; i < TD_COUNT(counts); i++) {
        encode(&m, bytes);
        put_u32(bytes + 44, counts[i]);
        seal(bytes, n);
        td_wire_msg out;
        td_err err;
        assert_false(decode(bytes, n, &out, &err));
    }
    static const uint32_t bad_ids[] = {1000, 0x80000000, UINT32_MAX};
    for (size_t i = 0; i < TD_COUNT(bad_ids); i++) {
        encode(&m, bytes);
        put_u32(bytes + 48 + 8, bad_ids[i]);
        seal(bytes, n);
        expect_error(n, "ids[2]");
    }
    encode(&m, bytes);
    put_u32(bytes + 40, UINT32_MAX - 2); /* position + n wraps */
    seal(bytes, n);
    expect_error(n, "position");
}

static void test_texts(void **state)
{
    (void)state;
    td_wire_msg m = {.type = TD_WIRE_REFUSE,
                     .session = 1,
                     .refuse = {.code = TD_WIRE_REFUSE_BUSY, .reason = "0123456789"}};
    size_t n = encode(&m, bytes);
    bytes[33] = 0xff;
    bytes[34] = 0xff;
    seal(bytes, n);
    expect_error(n, "reason is 65535 bytes long; allowed: 0..400");
    encode(&m, bytes);
    bytes[37] = 0;
    seal(bytes, n);
    expect_error(n, "zero byte");
    encode(&m, bytes);
    bytes[37] = 0x1b; /* an escape sequence for the reader's terminal */
    seal(bytes, n);
    expect_error(n, "reason: byte 2 is 0x1b");
    encode(&m, bytes);
    bytes[32] = 0;
    seal(bytes, n);
    expect_error(n, "code");
}

/* Random payloads under a good header, all types and many lengths. */
static void test_random_payloads(void **state)
{
    (void)state;
    td_wire_msg m[SAMPLES_MAX], out;
    int n_samples = samples_make(m, ids_in);
    td_err err;
    uint32_t r[4], key[2] = {1, 2};
    for (uint32_t round = 0; round < 4000; round++) {
        td_philox((uint32_t[4]){round, 0, 0, 0}, key, r);
        encode(&m[r[0] % (uint32_t)n_samples], bytes);
        size_t n_payload = r[1] % (r[2] % 16 ? 96 : 1200);
        for (size_t i = 0; i < n_payload; i++) {
            uint32_t word[4];
            td_philox((uint32_t[4]){round, (uint32_t)i, 1, 0}, key, word);
            /* Mostly small numbers, which get further than noise. */
            bytes[TD_WIRE_HEADER_BYTES + i] = (uint8_t)(word[0] % 3 ? 0 : word[1]);
        }
        seal(bytes, TD_WIRE_HEADER_BYTES + n_payload);
        decode(bytes, TD_WIRE_HEADER_BYTES + n_payload, &out, &err);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_truncation_at_every_byte),
        cmocka_unit_test(test_sealed_truncation_and_excess),
        cmocka_unit_test(test_every_flipped_bit),
        cmocka_unit_test(test_sealed_flipped_bits_give_a_valid_message_or_none),
        cmocka_unit_test(test_framing),
        cmocka_unit_test(test_one_byte_over_the_cap),
        cmocka_unit_test(test_counts_and_ids),
        cmocka_unit_test(test_texts),
        cmocka_unit_test(test_random_payloads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
