/* JSON that was written to do harm: items 36-43 of the hostile-input list that belong to parsing.
 * Each must give an error and nothing else, in little time and memory. */
#include "base/check.h"
#include "base/json.h"
#include "base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static const td_json_field fields[] = {
    {.key = "n", .type = TD_JSON_INT, .min = 1, .max = 1 << 20},
    {.key = "temp", .type = TD_JSON_FLOAT, .f_min = 0, .f_max = 100},
    {.key = "path", .type = TD_JSON_PATH},
    {.key = "text", .type = TD_JSON_STRING, .max = 1 << 20},
    {.key = "list", .type = TD_JSON_STRING_LIST, .max = 64, .n_max = 64},
    {.key = "inner", .type = TD_JSON_OBJECT},
};
static const td_json_schema schema = {fields, TD_COUNT(fields), false};

/* Parses and checks the root; true if all went well. */
static bool reads(const char *text, size_t n_bytes, td_err *err)
{
    td_json_object o;
    *err = (td_err){.code = TD_OK};
    td_json *doc = td_json_parse(text, n_bytes, "x.json", err);
    bool ok = doc && td_json_read_root(doc, &schema, &o, err);
    td_json_destroy(&doc);
    assert_true(ok == (err->code == TD_OK));
    return ok;
}

static void check_refused(const char *text, size_t n_bytes, const char *part)
{
    td_err err;
    assert_false(reads(text, n_bytes, &err));
    assert_int_equal(err.code, TD_E_DATA);
    assert_memory_equal(err.message, "x.json", 6);
    if (!strstr(err.message, part))
        fail_msg("\"%s\" does not say \"%s\"", err.message, part);
    for (const char *p = err.message; *p; p++)
        assert_true((unsigned char)*p >= 0x20 && *p != 0x7f);
}

static void test_each_hostile_text_is_refused_with_a_reason(void **state)
{
    (void)state;
#define ROW(text, part)                                                                            \
    {                                                                                              \
        text, sizeof text - 1, part                                                                \
    }
    static const struct {
        const char *text;
        size_t n_bytes;
        const char *part;
    } rows[] = {
        ROW("", "not valid JSON"),
        ROW(" ", "not valid JSON"),
        ROW("{", "not valid JSON"),
        ROW("{}{}", "not valid JSON"),
        ROW("{} x", "not valid JSON"),
        ROW("nul", "not valid JSON"),
        ROW("5", "not valid JSON"),
        ROW("\"a\"", "not valid JSON"),
        ROW("]]]]", "not valid JSON"),
        ROW("{'n': 1}", "not valid JSON"),
        ROW("{n: 1}", "not valid JSON"),
        ROW("{\"n\": 1,}", "not valid JSON"),
        ROW("{\"n\": 1} // c", "not valid JSON"),
        ROW("{\"n\": 1, \"n\": 2}", "duplicate"),
        ROW("{\"inner\": {\"a\": 1, \"\\u0061\": 2}}", "duplicate"),
        ROW("{\"n\": 1, \"m\": 2}", "unknown key \"m\""),
        ROW("{\"pth\": \"x\"}", "did you mean \"path\""),
        ROW("{\"\": 1}", "unknown key \"\""),
        ROW("{\"\\u001b[2J\\n\": 1}", "unknown key \"\\x1b[2J\\x0a\""),
        ROW("{\"n\": true}", "n is true"),
        ROW("{\"n\": \"5\"}", "n is \"5\""),
        ROW("{\"n\": 5.0}", "n is 5.0"),
        ROW("{\"n\": 1e3}", "n is 1000.0"),
        ROW("{\"n\": -1}", "n is -1"),
        ROW("{\"n\": 0}", "1..1048576"),
        ROW("{\"n\": 9007199254740993}", "n is 9007199254740993"),
        ROW("{\"n\": 9223372036854775807}", "n is 9223372036854775807"),
        ROW("{\"n\": 9223372036854775808}", "integer"),
        ROW("{\"n\": 99999999999999999999}", "integer"),
        ROW("{\"n\": 01}", "not valid JSON"),
        ROW("{\"n\": +1}", "not valid JSON"),
        ROW("{\"n\": 0x10}", "not valid JSON"),
        ROW("{\"temp\": NaN}", "not valid JSON"),
        ROW("{\"temp\": Infinity}", "not valid JSON"),
        ROW("{\"temp\": 1e400}", "not valid JSON"),
        ROW("{\"temp\": -1e-300}", "temp is -1e-300"),
        ROW("{\"temp\": 1e300}", "temp is 1e300"),
        ROW("{\"text\": \"a\\u0000b\"}", "not valid JSON"),
        ROW("{\"a\\u0000b\": 1}", "not valid JSON"),
        ROW("{\"text\": \"a\0b\"}", "not valid JSON"),
        ROW("{\"text\": \"a\nb\"}", "not valid JSON"),
        ROW("\0\0\0\0", "not valid JSON"),
        ROW("{\"text\": \"\\ud800\"}", "not valid JSON"),
        ROW("{\"text\": \"\xff\"}", "not valid JSON"),
        ROW("{\"text\": \"\xc0\x80\"}", "not valid JSON"),
        ROW("{\"text\": \"\xed\xa0\x80\"}", "not valid JSON"),
        ROW("\xff\xfe{\0}\0", "not valid JSON"),
        ROW("\xef\xbb\xbf\xef\xbb\xbf{}", "not valid JSON"),
        ROW("\xef\xbb", "not valid JSON"),
        ROW("{\"path\": \"a\\nb\"}", "file path"),
        ROW("{\"path\": \"a\\u0000b\"}", "not valid JSON"),
        ROW("{\"path\": \"~/x\"}", "not expanded"),
        ROW("{\"path\": 3}", "path is 3"),
        ROW("{\"list\": [\"a\", [\"b\"]]}", "list[1] is a list of 1"),
        ROW("{\"inner\": []}", "inner is a list of 0"),
    };
    for (size_t i = 0; i < TD_COUNT(rows); i++)
        check_refused(rows[i].text, rows[i].n_bytes, rows[i].part);
}

/* text = n copies of `unit` between two ends; freed by the caller. */
static char *repeat(const char *before, const char *unit, size_t n, const char *after,
                    size_t *n_bytes)
{
    size_t n_unit = strlen(unit), n_before = strlen(before);
    *n_bytes = n_before + n * n_unit + strlen(after);
    char *text = malloc(*n_bytes + 1);
    assert_non_null(text);
    memcpy(text, before, n_before);
    for (size_t i = 0; i < n; i++)
        memcpy(text + n_before + i * n_unit, unit, n_unit);
    strcpy(text + n_before + n * n_unit, after);
    return text;
}

static void check_repeat_refused(const char *before, const char *unit, size_t n, const char *after,
                                 const char *part)
{
    size_t n_bytes;
    char *text = repeat(before, unit, n, after, &n_bytes);
    check_refused(text, n_bytes, part);
    free(text);
}

static void test_nesting_is_refused_beyond_the_limit(void **state)
{
    (void)state;
    static const size_t depths[] = {TD_JSON_DEPTH_MAX + 1, 2048, 100000, 1000000};
    for (size_t i = 0; i < TD_COUNT(depths); i++) {
        check_repeat_refused("", "[", depths[i], "", "nested more than 64 deep");
        check_repeat_refused("", "{\"a\":", depths[i], "", "nested more than 64 deep");
    }
    /* Up to the limit it is parsed; brackets in strings do not count. */
    char closed[TD_JSON_DEPTH_MAX + 1] = {0};
    memset(closed, ']', TD_JSON_DEPTH_MAX);
    check_repeat_refused("", "[", TD_JSON_DEPTH_MAX, closed, "allowed: an object");
    td_err err;
    size_t n_bytes;
    char *text = repeat("{\"text\": \"\\\"", "[{", 100, "\"}", &n_bytes);
    assert_true(reads(text, n_bytes, &err));
    free(text);
}

static void test_numbers_of_values_are_bounded(void **state)
{
    (void)state;
    check_repeat_refused("[", "{},", 20000, "{}]", "objects and lists");
    check_repeat_refused("[", "[],", 300000, "[]]", "objects and lists");
    check_repeat_refused("[", "1,", 2000000, "1]", "values");
    check_repeat_refused("[", "1,", TD_JSON_TEXT_MAX / 2, "1]", "bytes; at most");
    check_repeat_refused("{\"list\": [", "\"a\",", 64, "\"a\"]}", "list is a list of 65");
    check_repeat_refused("{\"path\": \"", "a", 4096, "\"}", "4095 bytes");
    check_repeat_refused("{\"", "k", 1000000, "\": 1}", "unknown key \"kkk");
    check_repeat_refused("{\"n\": ", "1", 1000000, "}", "integer");
    check_repeat_refused("{\"temp\": 1.", "1", 1000000, "e999}", "not valid JSON");
}

static void test_worst_text_of_a_file_stays_within_memory(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    skip(); /* its shadow is counted too */
#endif
    static const struct {
        const char *before, *unit, *after;
    } rows[] = {{"[", "1,", "1]"}, {"[", "\"\",", "1]"}, {"[1", ",[]", "]"}, {"[1", ",{}", "]"}};
    for (size_t i = 0; i < TD_COUNT(rows); i++) {
        size_t n = (TD_JSON_FILE_MAX - 16) / strlen(rows[i].unit), n_bytes;
        n = i >= 2 && n > TD_JSON_CONTAINERS_MAX - 1 ? TD_JSON_CONTAINERS_MAX - 1 : n;
        char *text = repeat(rows[i].before, rows[i].unit, n, rows[i].after, &n_bytes);
        td_err err = {0};
        td_json *doc = td_json_parse(text, n_bytes, "x.json", &err);
        assert_non_null(doc);
        td_json_destroy(&doc);
        free(text);
    }
    struct rusage usage;
    assert_int_equal(getrusage(RUSAGE_SELF, &usage), 0);
    assert_true(usage.ru_maxrss < 64 * 1024);
}

static void test_every_truncation_and_bit_flip_is_survived(void **state)
{
    (void)state;
    static const char good[] = "{\"n\": 12, \"temp\": 0.5, \"path\": \"a/b\", \"text\": "
                               "\"\\u00e9\\ud83d\\ude00 x\", \"list\": [\"a\", \"b\"], "
                               "\"inner\": {\"k\": [1, null, true]}}";
    td_err err;
    size_t n = sizeof good - 1;
    assert_true(reads(good, n, &err));
    for (size_t i = 0; i < n; i++)
        check_refused(good, i, "not valid JSON");
    for (size_t bit = 0; bit < 8 * n; bit++) {
        /* A block of its own size, so that a sanitizer sees a read past the end. */
        char *text = malloc(n);
        assert_non_null(text);
        memcpy(text, good, n);
        text[bit / 8] = (char)(text[bit / 8] ^ 1 << bit % 8);
        reads(text, n, &err);
        free(text);
    }
}

static void test_files_that_are_no_config_are_refused(void **state)
{
    (void)state;
    char directory[] = "hostile_json.XXXXXX";
    assert_int_equal(chdir(getenv("TMPDIR") ? getenv("TMPDIR") : P_tmpdir), 0);
    assert_non_null(mkdtemp(directory));
    assert_int_equal(chdir(directory), 0);
    td_err err = {0};
    assert_null(td_json_read_file(".", &err));
    assert_true(err.code == TD_E_DATA && strstr(err.message, "a directory"));
    err = (td_err){0};
    assert_null(td_json_read_file("absent.json", &err));
    assert_true(err.code == TD_E_IO && strstr(err.message, "absent.json"));
    err = (td_err){0};
    assert_null(td_json_read_file("/dev/zero", &err));
    assert_int_equal(err.code, TD_E_DATA);
    assert_int_equal(mkfifo("fifo", 0600), 0);
    err = (td_err){0};
    assert_null(td_json_read_file("fifo", &err)); /* and does not wait for a writer */
    assert_int_equal(err.code, TD_E_DATA);
    FILE *f = fopen("big.json", "w");
    assert_true(f && ftruncate(fileno(f), 100 << 20) == 0 && fclose(f) == 0);
    uint64_t n_before = td_alloc_count();
    err = (td_err){0};
    assert_null(td_json_read_file("big.json", &err));
    assert_true(err.code == TD_E_DATA && strstr(err.message, "104857600 bytes; at most 1048576"));
    assert_int_equal(td_alloc_count(), n_before);
    f = fopen("empty.json", "w");
    assert_true(f && fclose(f) == 0);
    err = (td_err){0};
    assert_null(td_json_read_file("empty.json", &err));
    assert_int_equal(err.code, TD_E_DATA);
    char longer[5000];
    memset(longer, 'a', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    err = (td_err){0};
    assert_null(td_json_read_file(longer, &err));
    assert_int_equal(err.code, TD_E_IO);
    assert_true(unlink("fifo") == 0 && unlink("big.json") == 0 && unlink("empty.json") == 0);
    assert_true(chdir("..") == 0 && rmdir(directory) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_worst_text_of_a_file_stays_within_memory), /* before others grow */
        cmocka_unit_test(test_each_hostile_text_is_refused_with_a_reason),
        cmocka_unit_test(test_nesting_is_refused_beyond_the_limit),
        cmocka_unit_test(test_numbers_of_values_are_bounded),
        cmocka_unit_test(test_every_truncation_and_bit_flip_is_survived),
        cmocka_unit_test(test_files_that_are_no_config_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
