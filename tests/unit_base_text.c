/* Text, UTF-8, cursors and the clock. The UTF-8 rows are tables 3-8 to 3-11 of the Unicode
 * standard, chapter 3.9. */
#include "base/check.h"
#include "base/clock.h"
#include "base/cursor.h"
#include "base/text.h"
#include "base/utf8.h"

#include <locale.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void test_utf8_takes_every_code_point(void **state)
{
    (void)state;
    for (uint32_t c = 0; c <= 0x10ffff; c++) {
        if (c >= 0xd800 && c <= 0xdfff)
            continue;
        char bytes[4];
        uint32_t read;
        size_t n = td_utf8_encode(c, bytes);
        assert_int_equal(td_utf8_next(bytes, n, &read), n);
        assert_int_equal(read, c);
        for (size_t cut = 1; cut < n; cut++) {
            assert_int_equal(td_utf8_next(bytes, cut, &read), cut);
            assert_int_equal(read, TD_UTF8_CUT);
        }
    }
    char bytes[4];
    assert_int_equal(td_utf8_encode(0xd800, bytes), 3);
    assert_memory_equal(bytes, "\xef\xbf\xbd", 3);
    assert_int_equal(td_utf8_encode(0x110000, bytes), 3);
}

static void test_utf8_cuts_ill_formed_text_into_maximal_subparts(void **state)
{
    (void)state;
    /* In the answer 'r' stands for U+FFFD. */
    static const struct {
        const char *bytes, *answer;
    } rows[] = {
        {"\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41", "rrrrrrrrA"},
        {"\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41", "rrrrrrrrA"},
        {"\xf4\x91\x92\x93\xff\x41\x80\xbf\x42", "rrrrrArrB"},
        {"\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", "rrrrA"},
        {"\x61\xf1\x80\x80\xe1\x80\xc2\x62\x80\x63\x80\xbf\x64", "arrrbrcrrd"},
        {"\xf5\x80\xf8\xfe", "rrrr"},
    };
    for (size_t i = 0; i < TD_COUNT(rows); i++) {
        char answer[16];
        size_t n_answer = 0, n = strlen(rows[i].bytes);
        for (size_t at = 0; at < n;) {
            uint32_t c;
            at += td_utf8_next(rows[i].bytes + at, n - at, &c);
            assert_true(c == TD_UTF8_BAD || c < 0x80);
            answer[n_answer++] = c == TD_UTF8_BAD ? 'r' : (char)c;
        }
        answer[n_answer] = 0;
        assert_string_equal(answer, rows[i].answer);
        assert_false(td_utf8_valid(rows[i].bytes, n, NULL));
    }
    size_t i_bad;
    assert_false(td_utf8_valid("ab\xe2\x82", 4, &i_bad));
    assert_int_equal(i_bad, 2);
    assert_true(td_utf8_valid("a\xe2\x82\xac", 4, NULL));
    uint32_t c;
    assert_int_equal(td_utf8_next("", 0, &c), 0);
}

static void test_quote_hides_control_and_ill_formed_bytes(void **state)
{
    (void)state;
    assert_string_equal(td_text_quote("a\n\x1b[2J\xff\xc3\xa9", 9).text,
                        "\"a\\x0a\\x1b[2J\\xff\xc3\xa9\"");
    assert_string_equal(td_text_quote("\xc2\x9b", 2).text, "\"\\xc2\\x9b\"");
    char longer[4096];
    memset(longer, '\xe2', sizeof longer);
    td_text_quoted q = td_text_quote(longer, sizeof longer);
    assert_true(strlen(q.text) < TD_TEXT_QUOTE_MAX);
    assert_string_equal(q.text + strlen(q.text) - 4, "...\"");
    /* Every length near the cut. */
    memset(longer, 'x', sizeof longer);
    for (size_t n = 0; n < 2 * TD_TEXT_QUOTE_MAX; n++)
        assert_true(strlen(td_text_quote(longer, n).text) < TD_TEXT_QUOTE_MAX);
}

static void test_integers_are_read_strictly(void **state)
{
    (void)state;
    uint64_t u = 5;
    int64_t i = 5;
    assert_true(td_text_read_u64("18446744073709551615", &u) && u == UINT64_MAX);
    assert_true(td_text_read_i64("-9223372036854775808", &i) && i == INT64_MIN);
    assert_true(td_text_read_i64("9223372036854775807", &i) && i == INT64_MAX);
    assert_true(td_text_read_i64("-0", &i) && i == 0);
    static const char *const bad[] = {"",   "-",   "+1",  " 1",  "1 ",
                                      "1x", "0x1", "1.0", "--1", "18446744073709551616"};
    for (size_t k = 0; k < TD_COUNT(bad); k++) {
        u = 7;
        i = 7;
        assert_false(td_text_read_u64(bad[k], &u));
        assert_false(td_text_read_i64(bad[k], &i));
        assert_true(u == 7 && i == 7);
    }
    assert_false(td_text_read_u64("-1", &u));
    assert_false(td_text_read_i64("9223372036854775808", &i));
    assert_false(td_text_read_i64("-9223372036854775809", &i));
}

static void test_doubles_are_read_strictly(void **state)
{
    (void)state;
    double d = 3;
    static const char *const bad[] = {"",    "nan", "inf", "-inf",  "0x1p3", "1e400",
                                      " 1",  "1 ",  ".",   "-",     "1e",    "1,5",
                                      "1e+", "+1",  "--1", "1.2.3", "1f"};
    for (size_t k = 0; k < TD_COUNT(bad); k++) {
        assert_false(td_text_read_double(bad[k], &d));
        assert_true(d == 3);
    }
    assert_true(td_text_read_double("-1.5e-3", &d) && d == -1.5e-3);
    assert_true(td_text_read_double("8", &d) && d == 8);
    assert_true(td_text_read_double(".5", &d) && d == .5);
}

static uint64_t step(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return *seed ^ *seed >> 29;
}

static void check_double_round_trip(double value)
{
    char text[TD_TEXT_DOUBLE_MAX];
    size_t n = td_text_write_double(value, text);
    double read;
    assert_int_equal(strlen(text), n);
    assert_true(strpbrk(text, ".e") != NULL && !strchr(text, ','));
    assert_true(td_text_read_double(text, &read));
    assert_memory_equal(&read, &value, sizeof value);
}

static void check_many_doubles(uint64_t n)
{
    uint64_t seed = 1;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t bits = step(&seed);
        double value;
        memcpy(&value, &bits, sizeof value);
        if (isfinite(value))
            check_double_round_trip(value);
        check_double_round_trip((double)(bits % 1000000) / 1000);
        check_double_round_trip(-(double)(bits % 64) * 0x1p-9);
    }
}

static void test_doubles_round_trip_in_their_shortest_form(void **state)
{
    (void)state;
    static const struct {
        double value;
        const char *text;
    } rows[] = {
        {0, "0.0"},
        {-0.0, "-0.0"},
        {1, "1.0"},
        {0.1, "0.1"},
        {-12.5, "-12.5"},
        {100, "100.0"},
        {123456789, "123456789.0"},
        {1e16, "10000000000000000.0"},
        {1e17, "1e17"},
        {0.00001, "0.00001"},
        {0.000001, "1e-6"},
        {1.5e300, "1.5e300"},
        {5e-324, "5e-324"},
        {1.7976931348623157e308, "1.7976931348623157e308"},
        {NAN, "null"},
        {INFINITY, "null"},
        {-INFINITY, "null"},
        {0.30000000000000004, "0.30000000000000004"},
    };
    for (size_t i = 0; i < TD_COUNT(rows); i++) {
        char text[TD_TEXT_DOUBLE_MAX];
        assert_int_equal(td_text_write_double(rows[i].value, text), strlen(rows[i].text));
        assert_string_equal(text, rows[i].text);
    }
    check_many_doubles(5000);
}

static void test_doubles_do_not_depend_on_the_locale(void **state)
{
    (void)state;
    static const char *const names[] = {"de_DE.UTF-8", "fr_FR.UTF-8", "de_DE", "nl_NL.UTF-8"};
    const char *set = NULL;
    for (size_t i = 0; i < TD_COUNT(names) && !set; i++)
        set = setlocale(LC_NUMERIC, names[i]);
    if (!set) {
        print_message("no locale with a decimal comma is installed\n");
        skip();
    }
    check_many_doubles(500);
    double d;
    bool reads_comma = td_text_read_double("1,5", &d);
    setlocale(LC_NUMERIC, "C");
    assert_false(reads_comma);
}

static void test_nearest_name_is_a_likely_one(void **state)
{
    (void)state;
    static const char *const names[] = {"draft", "target", "temp", "n", "top_k", "top_p"};
    assert_string_equal(td_text_find_nearest("drfat", names, 6), "draft");
    assert_string_equal(td_text_find_nearest("Target", names, 6), "target");
    assert_null(td_text_find_nearest("temperature", names + 2, 1)); /* seven letters off */
    assert_string_equal(td_text_find_nearest("tmp", names, 6), "temp");
    assert_null(td_text_find_nearest("x", names, 6));
    assert_null(td_text_find_nearest("", names, 6));
    assert_null(td_text_find_nearest("zzzzzzzz", names, 6));
    char longer[1000];
    memset(longer, 'd', sizeof longer);
    longer[999] = 0;
    assert_null(td_text_find_nearest(longer, names, 6));
    assert_int_equal(td_text_distance("kitten", "sitting", 10), 3);
    assert_int_equal(td_text_distance("kitten", "sitting", 1), 2);
}

static void test_cursor_reads_little_endian_and_never_past_the_end(void **state)
{
    (void)state;
    static const uint8_t bytes[] = {1,  2,  3,  4,  5,  6, 7, 8,   9, 10,
                                    11, 12, 13, 14, 15, 0, 0, 128, 63};
    uint8_t a;
    uint16_t b;
    uint32_t c;
    uint64_t d;
    float f;
    td_err err = {0};
    td_cursor cur = td_cursor_begin("file", bytes, sizeof bytes, &err);
    assert_true(td_cursor_read_u8(&cur, &a) && a == 1);
    assert_true(td_cursor_read_u16(&cur, &b) && b == 0x0302);
    assert_true(td_cursor_read_u32(&cur, &c) && c == 0x07060504);
    assert_true(td_cursor_read_u64(&cur, &d) && d == 0x0f0e0d0c0b0a0908u);
    assert_int_equal(td_cursor_left(&cur), 4);
    assert_false(td_cursor_has(&cur, 5));
    assert_false(td_cursor_has(&cur, UINT64_MAX));
    assert_true(td_cursor_read_f32(&cur, &f) && f == 1.0f);
    assert_true(td_cursor_skip(&cur, 0));
    d = 99;
    assert_false(td_cursor_read_u64(&cur, &d));
    assert_true(d == 0);
    assert_string_equal(err.message, "file: byte 19: ends too early: 8 bytes wanted, 0 left");
}

static void test_cursor_keeps_its_first_error(void **state)
{
    (void)state;
    uint32_t value;
    td_err err = {0};
    td_cursor cur = td_cursor_begin("f", "abcdef", 6, &err);
    assert_true(td_cursor_align(&cur, 4) && cur.pos == 0);
    assert_true(td_cursor_skip(&cur, 1));
    assert_true(td_cursor_align(&cur, 4) && cur.pos == 4);
    assert_false(td_cursor_read_u32(&cur, &value));
    assert_false(td_cursor_read_bytes(&cur, &value, 1)); /* it would fit, but the cursor failed */
    assert_false(td_cursor_fail(&cur, "other"));
    assert_null(td_cursor_take(&cur, 0));
    assert_int_equal(err.code, TD_E_DATA);
    assert_string_equal(err.message, "f: byte 4: ends too early: 4 bytes wanted, 2 left");
    td_cursor empty = td_cursor_begin("e", NULL, 0, NULL);
    assert_non_null(td_cursor_take(&empty, 0));
    assert_false(td_cursor_skip(&empty, UINT64_MAX));
    td_cursor unaligned = td_cursor_begin("u", "abc", 3, NULL);
    assert_true(td_cursor_skip(&unaligned, 3));
    assert_false(td_cursor_align(&unaligned, 8));
}

static void test_cursor_writes_what_it_reads_and_stops_when_full(void **state)
{
    (void)state;
    uint8_t room[24];
    td_err err = {0};
    td_cursor_out out = td_cursor_out_begin("message", room, 22, &err);
    assert_true(td_cursor_write_u8(&out, 0xfe) && td_cursor_write_u16(&out, 0xabcd) &&
                td_cursor_write_u32(&out, 0x12345678) && td_cursor_write_u64(&out, 1ull << 63) &&
                td_cursor_write_f32(&out, -2.5f) && td_cursor_write_bytes(&out, "xyz", 3));
    assert_int_equal(out.pos, 22);
    room[22] = 77;
    assert_false(td_cursor_write_u8(&out, 1));
    assert_int_equal(room[22], 77);
    assert_int_equal(err.code, TD_E_BUG);
    uint8_t a;
    uint16_t b;
    uint32_t c;
    uint64_t d;
    float f;
    char s[3];
    td_cursor in = td_cursor_begin("message", room, 22, NULL);
    assert_true(td_cursor_read_u8(&in, &a) && td_cursor_read_u16(&in, &b) &&
                td_cursor_read_u32(&in, &c) && td_cursor_read_u64(&in, &d) &&
                td_cursor_read_f32(&in, &f) && td_cursor_read_bytes(&in, s, 3));
    assert_true(a == 0xfe && b == 0xabcd && c == 0x12345678 && d == 1ull << 63 && f == -2.5f);
    assert_memory_equal(s, "xyz", 3);
}

static void test_simulated_clock_stands_still_until_advanced(void **state)
{
    (void)state;
    td_clock c = td_clock_simulated(100);
    assert_int_equal(td_clock_now_us(&c), 100);
    td_clock_advance(&c, 50);
    assert_int_equal(td_clock_now_us(&c), 150);
    td_clock_advance(&c, UINT64_MAX);
    assert_true(td_clock_now_us(&c) == UINT64_MAX);
    td_clock real = td_clock_real();
    uint64_t before = td_clock_now_us(&real);
    assert_true(td_clock_now_us(&real) >= before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_utf8_takes_every_code_point),
        cmocka_unit_test(test_utf8_cuts_ill_formed_text_into_maximal_subparts),
        cmocka_unit_test(test_quote_hides_control_and_ill_formed_bytes),
        cmocka_unit_test(test_integers_are_read_strictly),
        cmocka_unit_test(test_doubles_are_read_strictly),
        cmocka_unit_test(test_doubles_round_trip_in_their_shortest_form),
        cmocka_unit_test(test_doubles_do_not_depend_on_the_locale),
        cmocka_unit_test(test_nearest_name_is_a_likely_one),
        cmocka_unit_test(test_cursor_reads_little_endian_and_never_past_the_end),
        cmocka_unit_test(test_cursor_keeps_its_first_error),
        cmocka_unit_test(test_cursor_writes_what_it_reads_and_stops_when_full),
        cmocka_unit_test(test_simulated_clock_stands_still_until_advanced),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
