/* Reading JSON against a schema, and writing it. Written text is judged by the strict reader and,
 * byte by byte, by hand-made answers. */
#include "base/check.h"
#include "base/json.h"
#include "base/json_writer.h"
#include "base/mem.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static const char *const kv_names[] = {"f16", "q8_0", NULL};
static const td_json_field draft_fields[] = {
    {.key = "model", .type = TD_JSON_PATH, .required = true},
    {.key = "max", .type = TD_JSON_INT, .min = 0, .max = 64},
};
static const td_json_schema draft_schema = {draft_fields, TD_COUNT(draft_fields), false};
static const td_json_field stage_fields[] = {
    {.key = "device", .type = TD_JSON_STRING, .min = 1, .max = 64, .required = true},
    {.key = "kv", .type = TD_JSON_ENUM, .names = kv_names},
    {.key = "draft", .type = TD_JSON_OBJECT},
};
static const td_json_schema stage_schema = {stage_fields, TD_COUNT(stage_fields), false};
static const td_json_field fields[] = {
    {.key = "n", .type = TD_JSON_INT, .min = 1, .max = 1000},
    {.key = "temp", .type = TD_JSON_FLOAT, .f_min = 0, .f_max = 100},
    {.key = "seed", .type = TD_JSON_INT, .min = 0, .max = INT64_MAX},
    {.key = "greedy", .type = TD_JSON_BOOL},
    {.key = "id", .type = TD_JSON_STRING, .min = 1, .max = 16, .nullable = true},
    {.key = "stop", .type = TD_JSON_STRING_OR_LIST, .min = 1, .max = 8, .n_max = 3},
    {.key = "names", .type = TD_JSON_STRING_LIST, .max = 8, .n_max = 2},
    {.key = "tokens", .type = TD_JSON_INT_LIST, .min = 0, .max = 99, .n_max = 4},
    {.key = "kv", .type = TD_JSON_ENUM, .names = kv_names},
    {.key = "out", .type = TD_JSON_PATH},
    {.key = "draft", .type = TD_JSON_OBJECT},
    {.key = "stages", .type = TD_JSON_OBJECT_LIST, .n_max = 2},
    {.key = "comment", .type = TD_JSON_IGNORED},
};
static const td_json_schema schema = {fields, TD_COUNT(fields), false};

static void test_reader_gives_every_type(void **state)
{
    (void)state;
    static const char text[] =
        "\xef\xbb\xbf{\"n\": 7, \"temp\": 1, \"seed\": 9223372036854775807, \"greedy\": true, "
        "\"id\": \"\\u00e9\\ud83d\\ude00\", \"stop\": [\"a\", \"bc\"], \"names\": [\"\"], "
        "\"tokens\": [0, 99], \"kv\": \"q8_0\", \"out\": \"../a b/c.jsonl\", "
        "\"draft\": {\"model\": \"d.gguf\", \"max\": 3}, \"comment\": [{\"x\": null}], "
        "\"stages\": [{\"device\": \"host\"}, {\"device\": \"vulkan:0\", \"kv\": \"f16\"}]}";
    td_err err = {0};
    td_json *doc = td_json_parse(text, sizeof text - 1, "c.json", &err);
    td_json_object o, draft, stage;
    assert_string_equal(err.message, "");
    assert_true(td_json_read_root(doc, &schema, &o, &err));
    assert_int_equal(td_json_get_int(&o, "n", 1), 7);
    assert_true(td_json_get_double(&o, "temp", 0) == 1.0);
    assert_true(td_json_get_int(&o, "seed", 0) == INT64_MAX);
    assert_true(td_json_get_bool(&o, "greedy", false));
    assert_string_equal(td_json_get_string(&o, "id", NULL), "\xc3\xa9\xf0\x9f\x98\x80");
    assert_int_equal(td_json_count(&o, "stop"), 2);
    assert_string_equal(td_json_get_string_at(&o, "stop", 1), "bc");
    assert_string_equal(td_json_get_string_at(&o, "names", 0), "");
    assert_int_equal(td_json_count(&o, "tokens"), 2);
    assert_int_equal(td_json_get_int_at(&o, "tokens", 1), 99);
    assert_int_equal(td_json_get_enum(&o, "kv", 0), 1);
    assert_string_equal(td_json_get_string(&o, "out", NULL), "../a b/c.jsonl");
    assert_true(td_json_read_member(&o, "draft", &draft_schema, &draft, &err));
    assert_int_equal(td_json_get_int(&draft, "max", 0), 3);
    assert_true(td_json_read_element(&o, "stages", 1, &stage_schema, &stage, &err));
    assert_string_equal(td_json_get_string(&stage, "device", ""), "vulkan:0");
    td_json_destroy(&doc);
    assert_null(doc);
}

static void test_absent_keys_give_fallbacks(void **state)
{
    (void)state;
    td_err err = {0};
    td_json *doc = td_json_parse("{\"id\": null, \"stop\": \"x\"}", 25, "c.json", &err);
    td_json_object o, member;
    assert_true(doc && td_json_read_root(doc, &schema, &o, &err));
    assert_int_equal(td_json_get_int(&o, "n", 256), 256);
    assert_true(td_json_get_double(&o, "temp", .8) == .8);
    assert_string_equal(td_json_get_string(&o, "id", "none"), "none");
    assert_false(td_json_has(&o, "id"));
    assert_true(td_json_has(&o, "stop"));
    assert_int_equal(td_json_count(&o, "stop"), 1);
    assert_string_equal(td_json_get_string_at(&o, "stop", 0), "x");
    assert_int_equal(td_json_count(&o, "tokens"), 0);
    assert_int_equal(td_json_get_enum(&o, "kv", -1), -1);
    assert_false(td_json_read_member(&o, "draft", &draft_schema, &member, &err));
    td_json_destroy(&doc);
}

static void test_errors_name_place_value_and_allowed_values(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } rows[] = {
        {"{\"n\": 0}", "c.json: n is 0; allowed: an integer of 1..1000"},
        {"{\"n\": 5.0}", "c.json: n is 5.0; allowed: an integer of 1..1000"},
        {"{\"n\": true}", "c.json: n is true; allowed: an integer of 1..1000"},
        {"{\"n\": \"5\"}", "c.json: n is \"5\"; allowed: an integer of 1..1000"},
        {"{\"n\": null}", "c.json: n is null; allowed: an integer of 1..1000"},
        {"{\"n\": [1]}", "c.json: n is a list of 1; allowed: an integer of 1..1000"},
        {"{\"temp\": -0.5}", "c.json: temp is -0.5; allowed: a number of 0.0..100.0"},
        {"{\"temp\": {}}", "c.json: temp is an object; allowed: a number of 0.0..100.0"},
        {"{\"greedy\": 1}", "c.json: greedy is 1; allowed: true or false"},
        {"{\"id\": \"\"}", "c.json: id is \"\"; allowed: a string of 1..16 bytes"},
        {"{\"kv\": \"q9\"}", "c.json: kv is \"q9\"; allowed: one of \"f16\", \"q8_0\""},
        {"{\"stop\": [\"a\", 1]}",
         "c.json: stop[1] is 1; allowed: a string of 1..8 bytes, or a list of up to 3 of them"},
        {"{\"stop\": [\"a\", \"b\", \"c\", \"d\"]}",
         "c.json: stop is a list of 4; allowed: a string of 1..8 bytes, or a list of up to 3 of "
         "them"},
        {"{\"tokens\": [0, 100]}", "c.json: tokens[1] is 100; allowed: an integer of 0..99"},
        {"{\"tokens\": 5}", "c.json: tokens is 5; allowed: a list of up to 4: an integer of 0..99"},
        {"{\"out\": \"\"}",
         "c.json: out is \"\"; allowed: a file path of 1..4095 bytes without control characters"},
        {"{\"out\": \"~/x\"}", "c.json: out: \"~/x\": '~' is not expanded here; write the whole "
                               "path (or ./~ for a file of that name)"},
        {"{\"stages\": [5]}", "c.json: stages[0] is 5; allowed: a list of up to 2 objects"},
        {"{\"drfat\": {}}", "c.json: unknown key \"drfat\"; did you mean \"draft\"?"},
        {"[]", "c.json: is a list of 0; allowed: an object"},
    };
    for (size_t i = 0; i < TD_COUNT(rows); i++) {
        td_err err = {0};
        td_json_object o;
        td_json *doc = td_json_parse(rows[i].text, strlen(rows[i].text), "c.json", &err);
        assert_non_null(doc);
        assert_false(td_json_read_root(doc, &schema, &o, &err));
        assert_int_equal(err.code, TD_E_DATA);
        assert_string_equal(err.message, rows[i].message);
        td_json_destroy(&doc);
    }
}

static void test_errors_inside_name_the_key_path(void **state)
{
    (void)state;
    static const char text[] = "{\"draft\": {\"modle\": \"x\"}, \"stages\": [{\"device\": \"a\"}, "
                               "{\"device\": \"b\", \"draft\": {\"model\": \"m\", \"max\": 65}}]}";
    td_err err = {0};
    td_json_object o, member, stage;
    td_json *doc = td_json_parse(text, sizeof text - 1, "c.json", &err);
    assert_true(doc && td_json_read_root(doc, &schema, &o, &err));
    assert_false(td_json_read_member(&o, "draft", &draft_schema, &member, &err));
    assert_string_equal(err.message,
                        "c.json: draft: unknown key \"modle\"; did you mean \"model\"?");
    td_err_clear(&err);
    assert_true(td_json_read_element(&o, "stages", 1, &stage_schema, &stage, &err));
    assert_false(td_json_read_member(&stage, "draft", &draft_schema, &member, &err));
    assert_string_equal(err.message,
                        "c.json: stages[1].draft.max is 65; allowed: an integer of 0..64");
    td_err_clear(&err);
    assert_false(td_json_fail(&stage, "device", &err, "no device %d", 3));
    assert_string_equal(err.message, "c.json: stages[1].device: no device 3");
    td_err_clear(&err);
    assert_true(td_json_read_element(&o, "stages", 0, &stage_schema, &stage, &err));
    assert_false(td_json_read_member(&stage, "draft", &draft_schema, &member, &err));
    assert_string_equal(err.message, "c.json: stages[0]: the key \"draft\" is missing");
    td_json_destroy(&doc);
}

static void test_other_keys_pass_where_the_schema_allows_them(void **state)
{
    (void)state;
    static const td_json_schema open_schema = {draft_fields, TD_COUNT(draft_fields), true};
    td_err err = {0};
    td_json_object o;
    td_json *doc = td_json_parse("{\"model\":\"a\",\"new\":{}}", 22, "r:1", &err);
    assert_true(doc && td_json_read_root(doc, &open_schema, &o, &err));
    td_json_destroy(&doc);
    doc = td_json_parse("{\"new\":{}}", 10, "r:1", &err);
    assert_true(doc && !td_json_read_root(doc, &open_schema, &o, &err));
    assert_string_equal(err.message, "r:1: the key \"model\" is missing");
    td_json_destroy(&doc);
}

static void test_root_list_is_read_as_its_one_field(void **state)
{
    (void)state;
    static const td_json_field ids[] = {
        {.key = "ids", .type = TD_JSON_INT_LIST, .min = 0, .max = 9, .n_max = 3}};
    static const td_json_schema list = {ids, 1, false};
    td_err err = {0};
    td_json_object o;
    td_json *doc = td_json_parse("[1, 2, 9]", 9, "t", &err);
    assert_true(doc && td_json_read_root_list(doc, &list, &o, &err));
    assert_int_equal(td_json_count(&o, "ids"), 3);
    assert_int_equal(td_json_get_int_at(&o, "ids", 2), 9);
    td_json_destroy(&doc);
    doc = td_json_parse("[1, -1]", 7, "t", &err);
    assert_true(doc && !td_json_read_root_list(doc, &list, &o, &err));
    assert_string_equal(err.message, "t: ids[1] is -1; allowed: an integer of 0..9");
    td_json_destroy(&doc);
    td_err_clear(&err);
    doc = td_json_parse("{}", 2, "t", &err);
    assert_true(doc && !td_json_read_root_list(doc, &list, &o, &err));
    td_json_destroy(&doc);
}

static void test_reader_survives_every_failed_allocation(void **state)
{
    (void)state;
    /* Longer than an arena block, so that more than the first allocations can fail. */
    char text[40000] = "{\"tokens\": [1], \"comment\": [0";
    size_t n = strlen(text);
    while (n < sizeof text - 8)
        n += (size_t)sprintf(text + n, ",%d", 1);
    n += (size_t)sprintf(text + n, "]}");
    bool done = false;
    for (uint64_t i = 1; !done; i++) {
        td_err err = {0};
        td_json_object o;
        td_alloc_fail_at(i);
        td_json *doc = td_json_parse(text, n, "c.json", &err);
        td_alloc_fail_at(0);
        assert_true(doc || err.code == TD_E_NOMEM);
        done = doc != NULL;
        if (doc)
            assert_true(td_json_read_root(doc, &schema, &o, &err));
        td_json_destroy(&doc);
        assert_true(done ? i > 10 : i < 200);
    }
}

static void check_written(td_json_writer *w, const char *wanted)
{
    const char *text;
    size_t n_bytes;
    td_err err = {0};
    assert_true(td_json_writer_end(w, &text, &n_bytes, &err));
    assert_string_equal(text, wanted);
    assert_int_equal(n_bytes, strlen(wanted));
}

static void write_sample(td_json_writer *w)
{
    td_json_begin_object(w);
    td_json_write_key(w, "id");
    td_json_write_string(w, "a\"b\\c\n\x01\x7f/");
    td_json_write_key(w, "tokens");
    td_json_begin_array(w);
    td_json_write_u64(w, UINT64_MAX);
    td_json_write_i64(w, INT64_MIN);
    td_json_write_double(w, 0.1);
    td_json_end_array(w);
    td_json_write_key(w, "rows");
    td_json_begin_array(w);
    td_json_begin_object(w);
    td_json_end_object(w);
    td_json_begin_array(w);
    td_json_end_array(w);
    td_json_end_array(w);
    td_json_write_key(w, "error");
    td_json_write_string(w, NULL);
    td_json_write_key(w, "ok");
    td_json_write_bool(w, true);
    td_json_write_key(w, "ms");
    td_json_write_double(w, NAN);
    td_json_end_object(w);
}

static void test_writer_writes_lines_and_pretty_text(void **state)
{
    (void)state;
    td_json_writer *w = td_json_writer_create(false, NULL);
    write_sample(w);
    check_written(w, "{\"id\":\"a\\\"b\\\\c\\n\\u0001\x7f/\",\"tokens\":[18446744073709551615,"
                     "-9223372036854775808,0.1],\"rows\":[{},[]],\"error\":null,\"ok\":true,"
                     "\"ms\":null}");
    td_json_write_u64(w, 5); /* it is empty and can be used again */
    check_written(w, "5");
    td_json_writer_destroy(&w);
    w = td_json_writer_create(true, NULL);
    write_sample(w);
    check_written(w, "{\n  \"id\": \"a\\\"b\\\\c\\n\\u0001\x7f/\",\n"
                     "  \"tokens\": [18446744073709551615, -9223372036854775808, 0.1],\n"
                     "  \"rows\": [\n    {},\n    []\n  ],\n"
                     "  \"error\": null,\n  \"ok\": true,\n  \"ms\": null\n}");
    td_json_writer_destroy(&w);
    assert_null(w);
}

static void test_writer_replaces_ill_formed_utf8(void **state)
{
    (void)state;
    td_json_writer *w = td_json_writer_create(false, NULL);
    td_json_write_bytes(w,
                        "a\xe1\x80\xe2\xf0\x91\x92\xf1\xbf"
                        "A\xc3\xa9\x00\xff",
                        14);
    check_written(w, "\"a\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"
                     "A\xc3\xa9\xef\xbf\xbd\xef\xbf\xbd\"");
    td_json_write_bytes(w, NULL, 0);
    check_written(w, "\"\"");
    td_json_writer_destroy(&w);
}

static void test_reader_reads_back_any_bytes_written(void **state)
{
    (void)state;
    static const td_json_field t[] = {{.key = "t", .type = TD_JSON_STRING, .max = 1 << 16}};
    static const td_json_schema s = {t, 1, false};
    td_json_writer *w = td_json_writer_create(false, NULL);
    uint32_t seed = 1;
    for (int round = 0; round < 500; round++) {
        char bytes[300];
        size_t n = (seed >> 8) % sizeof bytes;
        for (size_t i = 0; i < n; i++) {
            seed = seed * 1664525 + 1013904223;
            bytes[i] = (char)(seed >> 16 ? (seed >> 16) & 0xff : 1);
            bytes[i] = (char)(bytes[i] ? bytes[i] : '0');
        }
        seed = seed * 1664525 + 1013904223;
        td_json_begin_object(w);
        td_json_write_key(w, "t");
        td_json_write_bytes(w, bytes, n);
        td_json_end_object(w);
        const char *text;
        size_t n_bytes;
        td_err err = {0};
        td_json_object o;
        assert_true(td_json_writer_end(w, &text, &n_bytes, &err));
        assert_null(memchr(text, '\n', n_bytes));
        td_json *doc = td_json_parse(text, n_bytes, "t", &err);
        assert_string_equal(err.message, "");
        assert_true(td_json_read_root(doc, &s, &o, &err));
        td_json_destroy(&doc);
    }
    td_json_writer_destroy(&w);
}

static void test_writer_tells_a_lack_of_memory_at_its_end(void **state)
{
    (void)state;
    bool done = false;
    for (uint64_t i = 1; !done; i++) {
        td_err err = {0};
        const char *text;
        size_t n_bytes;
        td_alloc_fail_at(i);
        td_json_writer *w = td_json_writer_create(false, &err);
        if (w) {
            td_json_begin_array(w);
            for (int k = 0; k < 2000; k++)
                td_json_write_i64(w, k);
            td_json_end_array(w);
            done = td_json_writer_end(w, &text, &n_bytes, &err);
        }
        td_alloc_fail_at(0);
        assert_int_equal(err.code, done ? TD_OK : TD_E_NOMEM);
        if (w) { /* and it works again */
            td_json_write_null(w);
            check_written(w, "null");
        }
        td_json_writer_destroy(&w);
        assert_true(done ? i > 3 : i < 100);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reader_gives_every_type),
        cmocka_unit_test(test_absent_keys_give_fallbacks),
        cmocka_unit_test(test_errors_name_place_value_and_allowed_values),
        cmocka_unit_test(test_errors_inside_name_the_key_path),
        cmocka_unit_test(test_other_keys_pass_where_the_schema_allows_them),
        cmocka_unit_test(test_root_list_is_read_as_its_one_field),
        cmocka_unit_test(test_reader_survives_every_failed_allocation),
        cmocka_unit_test(test_writer_writes_lines_and_pretty_text),
        cmocka_unit_test(test_writer_replaces_ill_formed_utf8),
        cmocka_unit_test(test_reader_reads_back_any_bytes_written),
        cmocka_unit_test(test_writer_tells_a_lack_of_memory_at_its_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
