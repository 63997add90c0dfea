/* JSON Lines that were written to do harm: items 44-52 of the hostile-input list that belong to
 * reading lines, with a schema such as a prompt file has; and result files cut and flipped at
 * every place. */
#include "base/check.h"
#include "base/io.h"
#include "base/json.h"
#include "base/jsonl.h"
#include "base/log.h"
#include "base/mem.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define FILE_NAME "lines.jsonl"

static char directory[] = "hostile_jsonl.XXXXXX";

static const td_json_field fields[] = {
    {.key = "id", .type = TD_JSON_STRING, .min = 1, .max = 256, .required = true},
    {.key = "prompt", .type = TD_JSON_STRING, .max = 1 << 20, .required = true},
    {.key = "n", .type = TD_JSON_INT, .min = 1, .max = 1 << 20},
    {.key = "stop", .type = TD_JSON_STRING_OR_LIST, .min = 1, .max = 1024, .n_max = 16},
};
static const td_json_schema schema = {fields, TD_COUNT(fields), false};

static int set_up(void **state)
{
    (void)state;
    td_log_set_output(open("/dev/null", O_WRONLY | O_CLOEXEC), false);
    const char *parent = getenv("TMPDIR") ? getenv("TMPDIR") : P_tmpdir;
    return chdir(parent) || !mkdtemp(directory) || chdir(directory);
}

static int tear_down(void **state)
{
    (void)state;
    unlink(FILE_NAME);
    return chdir("..") || rmdir(directory);
}

static void put_file(const char *text, size_t n_bytes)
{
    FILE *f = fopen(FILE_NAME, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n_bytes, f), n_bytes);
    assert_int_equal(fclose(f), 0);
}

typedef struct {
    uint64_t n_good, n_bad;
    uint64_t first_bad; /* line number */
    char message[TD_ERR_MESSAGE_MAX];
} tally;

/* Reads the file as a prompt file is read. */
static tally read_prompts(void)
{
    tally t = {0};
    td_err err = {0};
    td_jsonl_reader *r = td_jsonl_reader_open(FILE_NAME, TD_JSONL_LINE_MAX, &err);
    assert_non_null(r);
    td_jsonl_line line;
    td_jsonl_status status;
    while ((status = td_jsonl_read(r, &line, &err)) != TD_JSONL_END) {
        assert_int_not_equal(status, TD_JSONL_FAILED);
        td_json *doc = NULL;
        if (status == TD_JSONL_LINE) {
            char name[64];
            snprintf(name, sizeof name, "%s:%llu", FILE_NAME, (unsigned long long)line.number);
            td_json_object o;
            doc = td_json_parse(line.text, line.n_bytes, name, &err);
            if (doc)
                td_json_read_root(doc, &schema, &o, &err);
        }
        t.n_good += err.code == TD_OK;
        if (err.code != TD_OK && t.n_bad++ == 0) {
            snprintf(t.message, sizeof t.message, "%s", err.message);
            t.first_bad = status == TD_JSONL_LINE ? line.number : 0;
        }
        td_err_clear(&err);
        td_json_destroy(&doc);
    }
    td_jsonl_reader_close(&r);
    return t;
}

static void test_each_bad_line_is_refused_alone(void **state)
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
        ROW("{\"id\": \"a\"", "not valid JSON"),
        ROW("x", "not valid JSON"),
        ROW("\0", "not valid JSON"),
        ROW("{\"id\": \"a\", \"prompt\": \"\0\"}", "not valid JSON"),
        ROW("{\"id\": \"a\", \"prompt\": \"\\u0000\"}", "not valid JSON"),
        ROW("{\"id\": \"a\", \"prompt\": \"\xff\"}", "not valid JSON"),
        ROW("{\"id\": \"a\", \"prompt\": \"\xe2\x82\"}", "not valid JSON"),
        ROW("\xef\xbb\xbf\xef\xbb\xbf{}", "not valid JSON"),
        ROW("{\"id\": \"a\"}", "\"prompt\" is missing"),
        ROW("{\"prompt\": \"a\"}", "\"id\" is missing"),
        ROW("{\"id\": \"\", \"prompt\": \"a\"}", "id is \"\"; allowed: a string of 1..256"),
        ROW("{\"id\": 7, \"prompt\": \"a\"}", "id is 7"),
        ROW("{\"id\": null, \"prompt\": \"a\"}", "id is null"),
        ROW("{\"id\": \"a\", \"id\": \"b\", \"prompt\": \"\"}", "duplicate"),
        ROW("{\"id\": \"a\", \"prompt\": \"a\", \"n\": 0}", "n is 0; allowed: an integer of 1.."),
        ROW("{\"id\": \"a\", \"prompt\": \"a\", \"n\": -1}", "n is -1"),
        ROW("{\"id\": \"a\", \"prompt\": \"a\", \"n\": 1000000000}", "n is 1000000000"),
        ROW("{\"id\": \"a\", \"prompt\": \"a\", \"stop\": 1}", "stop is 1"),
        ROW("{\"id\": \"a\", \"prompt\": \"a\", \"stop\": \"\"}", "stop is \"\""),
        ROW("{\"id\": \"a\", \"prompt\": \"a\", \"stop\": [\"\"]}", "stop[0] is \"\""),
        ROW("{\"id\": \"a\", \"promt\": \"a\"}", "did you mean \"prompt\""),
        ROW("[]", "allowed: an object"),
    };
    static const char good[] = "{\"id\": \"g\", \"prompt\": \"p\"}\r\n";
    for (size_t i = 0; i < TD_COUNT(rows); i++) {
        char text[512];
        size_t n = 0;
        memcpy(text, good, sizeof good - 1);
        n += sizeof good - 1;
        memcpy(text + n, rows[i].text, rows[i].n_bytes);
        n += rows[i].n_bytes;
        text[n++] = '\n';
        memcpy(text + n, good, sizeof good - 3); /* the last line has no end */
        n += sizeof good - 3;
        put_file(text, n);
        tally t = read_prompts();
        assert_int_equal(t.n_good, 2);
        assert_int_equal(t.n_bad, 1);
        assert_int_equal(t.first_bad, 2);
        assert_memory_equal(t.message, FILE_NAME ":2: ", sizeof FILE_NAME ":2: " - 1);
        if (!strstr(t.message, rows[i].part))
            fail_msg("\"%s\" does not say \"%s\"", t.message, rows[i].part);
    }
}

static void test_long_ids_and_lines_are_refused_alone(void **state)
{
    (void)state;
    FILE *f = fopen(FILE_NAME, "w");
    assert_non_null(f);
    fprintf(f, "{\"id\": \"%0*d\", \"prompt\": \"a\"}\n", 10240, 0);
    fprintf(f, "{\"id\": \"a\", \"prompt\": \"%0*d\"}\n", 2 << 20, 0);
    fprintf(f, "{\"id\": \"b\", \"prompt\": \"%0*d\"}\n", 1000000, 0);
    fprintf(f, "{\"id\": \"c\", \"prompt\": \"%0*d", 40 << 20, 0);
    assert_int_equal(fclose(f), 0);
    tally t = read_prompts();
    assert_int_equal(t.n_good, 1);
    assert_int_equal(t.n_bad, 3);
    assert_non_null(strstr(t.message, ":1: id is \"00000"));
    assert_true(strlen(t.message) < 256);
}

static void test_one_bad_line_among_many_is_counted_with_its_number(void **state)
{
    (void)state;
    FILE *f = fopen(FILE_NAME, "w");
    assert_non_null(f);
    for (int i = 1; i <= 20000; i++)
        fprintf(f, i == 12345 ? "{oops %d}\n" : "{\"id\": \"%d\", \"prompt\": \"\"}\n", i);
    assert_int_equal(fclose(f), 0);
    tally t = read_prompts();
    assert_int_equal(t.n_good, 19999);
    assert_int_equal(t.n_bad, 1);
    assert_int_equal(t.first_bad, 12345);
    assert_memory_equal(t.message, FILE_NAME ":12345: ", sizeof FILE_NAME ":12345: " - 1);
}

static void test_endless_line_ends_the_reading(void **state)
{
    (void)state;
    td_err err = {0};
    td_jsonl_line line;
    td_jsonl_reader *r = td_jsonl_reader_open("/dev/zero", 1 << 20, &err);
    assert_non_null(r);
    assert_int_equal(td_jsonl_read(r, &line, &err), TD_JSONL_FAILED);
    assert_non_null(strstr(err.message, "/dev/zero: line 1 has more than 268435456 bytes"));
    td_jsonl_reader_close(&r);
}

static td_jsonl_verdict scan(void *context, const td_jsonl_line *line, uint64_t offset_bytes,
                             td_err *err)
{
    (void)offset_bytes;
    uint64_t *n_good = context;
    td_json_object o;
    td_json *doc = td_json_parse(line->text, line->n_bytes, "result", err);
    td_jsonl_verdict verdict = doc ? TD_JSONL_KEEP : TD_JSONL_TORN;
    if (doc && !td_json_read_root(doc, &schema, &o, err))
        verdict = TD_JSONL_STOP;
    td_json_destroy(&doc);
    *n_good += verdict == TD_JSONL_KEEP;
    return verdict;
}

static const char results[] = "{\"id\": \"a\", \"prompt\": \"x\"}\n"
                              "{\"id\": \"b\", \"prompt\": \"\"}\n"
                              "{\"id\": \"c\", \"prompt\": \"\xc3\xa9\", \"n\": 5}\n";

/* Opens for appending, adds a line; is every line of the file good after that? */
static void check_open_then_append(const char *text, size_t n_bytes, bool must_open,
                                   uint64_t n_wanted)
{
    uint64_t n_good = 0;
    td_err err = {0};
    put_file(text, n_bytes);
    td_jsonl_writer_params p = {.path = FILE_NAME, .scan = scan, .scan_context = &n_good};
    td_jsonl_writer *w = td_jsonl_writer_open(&p, &err);
    assert_true((w != NULL) == (err.code == TD_OK));
    if (!w) {
        assert_false(must_open);
        assert_int_equal(err.code, TD_E_DATA);
        /* Refused means untouched. */
        char *now;
        size_t n_now;
        assert_true(td_io_read_file(FILE_NAME, 1 << 20, &now, &n_now, NULL));
        assert_int_equal(n_now, n_bytes);
        assert_memory_equal(now, text, n_bytes);
        td_free(now);
        return;
    }
    if (must_open)
        assert_int_equal(n_good, n_wanted);
    assert_true(td_jsonl_write(w, "{\"id\":\"z\",\"prompt\":\"\"}", 22, &err));
    assert_true(td_jsonl_writer_close(&w, &err));
    uint64_t n_before = n_good;
    n_good = 0;
    w = td_jsonl_writer_open(&p, &err);
    assert_non_null(w);
    assert_int_equal(n_good, n_before + 1);
    assert_true(td_jsonl_writer_close(&w, &err));
}

static void test_results_cut_at_every_byte_are_repaired(void **state)
{
    (void)state;
    uint64_t n_lines = 0;
    for (size_t n = 0; n < sizeof results; n++) {
        n_lines += n > 0 && results[n - 1] == '\n';
        check_open_then_append(results, n, true, n_lines);
    }
}

static void test_results_with_a_flipped_bit_are_refused_or_repaired(void **state)
{
    (void)state;
    char text[sizeof results];
    for (size_t bit = 0; bit < 8 * (sizeof results - 1); bit += 3) {
        memcpy(text, results, sizeof text);
        text[bit / 8] = (char)(text[bit / 8] ^ 1 << bit % 8);
        check_open_then_append(text, sizeof text - 1, false, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_bad_line_is_refused_alone),
        cmocka_unit_test(test_long_ids_and_lines_are_refused_alone),
        cmocka_unit_test(test_one_bad_line_among_many_is_counted_with_its_number),
        cmocka_unit_test(test_endless_line_ends_the_reading),
        cmocka_unit_test(test_results_cut_at_every_byte_are_repaired),
        cmocka_unit_test(test_results_with_a_flipped_bit_are_refused_or_repaired),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
