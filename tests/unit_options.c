/* The option table: flags, the configuration file, and what is said of wrong ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/check.h"
#include "cli/cache_options.h"
#include "cli/options.h"
#include "kernels/types.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    const char *config, *text;
    uint32_t n;
    uint64_t seed;
    float temp;
    bool is_loud;
    option_list list, others;
    const td_type_info *type;
    td_cache_types kv;
} fields;

#define AT(name) offsetof(fields, name)

static const option options[] = {
    {"--config", NULL, OPT_TEXT, AT(config), 0, 0, "FILE", "a file"},
    {"--text", "a.text", OPT_TEXT, AT(text), 0, 0, "TEXT", "a text"},
    {"-n", "a.n", OPT_U32, AT(n), 1, 1 << 24, "N", "a number"},
    {"--seed", "b.seed", OPT_U64, AT(seed), 0, 9223372036854774784.0, "S", "a large one"},
    {"--temp", "b.temp", OPT_FLOAT, AT(temp), 0, 100, "T", "a float"},
    {"--loud", "b.loud", OPT_FLAG, AT(is_loud), 0, 0, NULL, "a flag"},
    {"--item", "a.items", OPT_LIST, AT(list), 0, 0, "X", "some"},
    {"--other", NULL, OPT_LIST, AT(others), 0, 0, "X", "some that are in no file"},
    {"--kv", "c.kv", OPT_CACHE_TYPE, AT(type), 0, 0, "TYPE", "a type"},
    {"--keep", "c.keep", OPT_KEEP, AT(kv), 0, 0, "LAYERS=TYPE", "layers of other types"},
    {"--layers", "c.layers", OPT_KEEP_FILE, AT(kv), 0, 0, "FILE", "the same"},
};
static const command_help help = {"try", "tandem try [options]", "Tries.", options,
                                  TD_COUNT(options)};

#define MAX_ARGS 64

/* Parses "a|b|c". The words live until the next call but one. */
static bool parse(const char *line, fields *f, bool *is_help, td_err *err)
{
    static char copies[2][4096];
    static int which;
    char *copy = copies[which ^= 1], *argv[MAX_ARGS];
    int argc = 0;
    snprintf(copy, sizeof copies[0], "%s", line);
    for (char *p = *line ? copy : NULL, *bar; p; p = bar) {
        argv[argc++] = p;
        if ((bar = strchr(p, '|')))
            *bar++ = 0;
    }
    return td_options_parse(&help, argc, argv, f, is_help, err);
}

static fields parse_ok(const char *line)
{
    fields f = {.n = 256, .temp = 0.8f};
    bool is_help;
    td_err err = {0};
    if (!parse(line, &f, &is_help, &err))
        fail_msg("%s: %s", line, err.message);
    assert_false(is_help);
    return f;
}

static void parse_fails(const char *line, const char *part)
{
    fields f = {0};
    bool is_help;
    td_err err = {0};
    if (parse(line, &f, &is_help, &err))
        fail_msg("%s was taken", line);
    assert_int_equal(err.code, TD_E_USAGE);
    if (!strstr(err.message, part))
        fail_msg("%s: \"%s\" lacks \"%s\"", line, err.message, part);
}

/* -- flags ------------------------------------------------------------------------------------- */

static void test_flags_set_their_fields(void **state)
{
    (void)state;
    fields f = parse_ok("");
    assert_int_equal(f.n, 256); /* untouched */
    f = parse_ok(
        "--text|some "
        "text|-n|7|--seed|9223372036854774784|--temp|0.25|--loud|--item|x|--item|y|--kv|Q8_0");
    assert_string_equal(f.text, "some text");
    assert_int_equal(f.n, 7);
    assert_true(f.seed == 9223372036854774784u);
    assert_true(f.temp == 0.25f);
    assert_true(f.is_loud);
    assert_int_equal(f.list.n, 2);
    assert_string_equal(f.list.items[1], "y");
    assert_int_equal(f.type->id, TD_TYPE_Q8_0);
    f = parse_ok("--text=a=b|--temp=1e1|--item=|--kv=f32");
    assert_string_equal(f.text, "a=b"); /* the first '=' counts */
    assert_true(f.temp == 10.0f);
    assert_string_equal(f.list.items[0], "");
    assert_int_equal(f.type->id, TD_TYPE_F32);
    f = parse_ok("--text|--loud"); /* a value may look like a flag */
    assert_string_equal(f.text, "--loud");
    assert_false(f.is_loud);
    f = parse_ok("-n|1|-n|2|--text|a|--text|b|--loud|--loud"); /* the last one wins */
    assert_int_equal(f.n, 2);
    assert_string_equal(f.text, "b");
    f = parse_ok("-n|16777216|--temp|0");
    assert_int_equal(f.n, 1 << 24);
    assert_true(f.temp == 0.0f);
}

static void test_values_out_of_range_name_the_range(void **state)
{
    (void)state;
    static const char *const numbers[] = {"0",         "16777217", "-1",    "1.5",
                                          "1e3",       "0x10",     "",      " 7",
                                          "7 ",        "+7",       "seven", "99999999999999999999",
                                          "4294967297"};
    for (size_t i = 0; i < TD_COUNT(numbers); i++) {
        char line[64], part[96];
        snprintf(line, sizeof line, "-n|%s", numbers[i]);
        snprintf(part, sizeof part, "-n: \"%s\"; allowed: an integer 1..16777216", numbers[i]);
        parse_fails(line, part);
    }
    static const char *const floats[] = {"-0.1", "100.1", "nan", "inf", "1e999",
                                         "",     "0x1p3", "1,5", "1.5x"};
    for (size_t i = 0; i < TD_COUNT(floats); i++) {
        char line[64], part[96];
        snprintf(line, sizeof line, "--temp|%s", floats[i]);
        snprintf(part, sizeof part, "--temp: \"%s\"; allowed: a number 0..100", floats[i]);
        parse_fails(line, part);
    }
    parse_fails("--seed|9223372036854775808", "allowed: an integer 0..9");
    parse_fails("--seed|18446744073709551615", "--seed");
    parse_fails("--seed|18446744073709551616", "--seed");
    parse_fails("--kv|q4_k",
                "--kv: \"q4_k\"; allowed: " TD_OPTIONS_CACHE_TYPES); /* no cache type */
    parse_fails("--kv|", "--kv: \"\"");
    parse_fails("--kv|\x1b[31m", "\\x1b"); /* shown, not sent to the terminal */
}

static void test_flags_that_are_wrong_are_told(void **state)
{
    (void)state;
    parse_fails(
        "--txet|a",
        "\"--txet\" is no option of `tandem try` (did you mean --text?); see `tandem try --help`");
    parse_fails("--tmep=0.5", "(did you mean --temp?)");
    parse_fails("--zzzzzzzz", "\"--zzzzzzzz\" is no option of `tandem try`; see");
    parse_fails("model.gguf", "\"model.gguf\" is no option");
    parse_fails("-n=5", "is no option");
    parse_fails("-", "is no option");
    parse_fails("--", "is no option");
}

static void test_missing_and_unwanted_values_are_told(void **state)
{
    (void)state;
    parse_fails("--loud|-n", "-n needs a value: N");
    parse_fails("--item|a|--item", "--item needs a value: X");
    parse_fails("--loud=1", "--loud takes no value");
    parse_fails("--loud=", "--loud takes no value");
    char line[256] = "--item|0";
    for (uint32_t i = 1; i <= TD_OPTION_LIST_MAX; i++)
        snprintf(line + strlen(line), sizeof line - strlen(line), "|--item|%u", i);
    parse_fails(line, "--item: more than 16 of them");
}

static void test_help_ends_the_parsing(void **state)
{
    (void)state;
    fields f = {0};
    bool is_help;
    assert_true(parse("-n|3|--help|--nonsense", &f, &is_help, NULL));
    assert_true(is_help);
    assert_int_equal(f.n, 3);
    assert_true(parse("-h", &f, &is_help, NULL));
    assert_true(is_help);
}

static void test_help_names_every_option_and_key(void **state)
{
    (void)state;
    char path[] = "/tmp/unit_options_XXXXXX", text[4096];
    int fd = mkstemp(path), out = dup(STDOUT_FILENO);
    fflush(stdout);
    dup2(fd, STDOUT_FILENO);
    td_options_print_help(&help);
    fflush(stdout);
    dup2(out, STDOUT_FILENO);
    close(out);
    ssize_t n = pread(fd, text, sizeof text - 1, 0);
    assert_true(n > 0);
    text[n] = 0;
    for (size_t i = 0; i < TD_COUNT(options); i++) {
        assert_non_null(strstr(text, options[i].flag));
        assert_non_null(strstr(text, options[i].help));
        if (options[i].config)
            assert_non_null(strstr(text, options[i].config));
    }
    close(fd);
    unlink(path);
}

static void test_config_is_found_among_flags(void **state)
{
    (void)state;
    char *plain[] = {"-n", "5", "--config", "x.json"};
    assert_string_equal(td_options_find_config(&help, 4, plain), "x.json");
    char *joined[] = {"--config=y.json", "--loud"};
    assert_string_equal(td_options_find_config(&help, 2, joined), "y.json");
    char *twice[] = {"--config=y.json", "--config", "z.json"};
    assert_string_equal(td_options_find_config(&help, 3, twice), "z.json"); /* as for other flags */
    char *value[] = {"--text", "--config=no.json", "--text", "--config", "--loud"};
    assert_null(td_options_find_config(&help, 5, value)); /* values of --text */
    char *none[] = {"--loud", "--nonsense", "--config"};
    assert_null(td_options_find_config(&help, 3, none));
    assert_null(td_options_find_config(&help, 0, none));
}

/* -- configuration files ----------------------------------------------------------------------- */

static bool read_config(const char *json, fields *f, td_json **document, td_err *err)
{
    char path[] = "/tmp/unit_options_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, json, strlen(json)) == (ssize_t)strlen(json));
    close(fd);
    bool is_ok = td_options_read_config(&help, path, f, document, err);
    if (!is_ok)
        assert_non_null(strstr(err->message, path));
    unlink(path);
    return is_ok;
}

static void config_fails(const char *json, const char *part)
{
    fields f = {0};
    td_json *document = NULL;
    td_err err = {0};
    if (read_config(json, &f, &document, &err))
        fail_msg("%s was taken", json);
    assert_int_equal(err.code, TD_E_DATA);
    if (!strstr(err.message, part))
        fail_msg("%s: \"%s\" lacks \"%s\"", json, err.message, part);
    td_json_destroy(&document);
}

static void test_a_file_sets_fields_by_section(void **state)
{
    (void)state;
    fields f = {.n = 256};
    td_json *document = NULL;
    td_err err = {0};
    assert_true(read_config("{\"a\":{\"text\":\"t\",\"n\":9,\"items\":[\"p\",\"q\"]},\"b\":{"
                            "\"seed\":9223372036854774784,"
                            "\"temp\":1,\"loud\":true},\"c\":{\"kv\":\"q4_0\"}}",
                            &f, &document, &err));
    assert_string_equal(f.text, "t");
    assert_int_equal(f.n, 9);
    assert_int_equal(f.list.n, 2);
    assert_string_equal(f.list.items[1], "q");
    assert_true(f.seed == 9223372036854774784u);
    assert_true(f.temp == 1.0f);
    assert_true(f.is_loud);
    assert_int_equal(f.type->id, TD_TYPE_Q4_0);
    /* Flags win; the first of a list replaces the file's, the second is added. */
    bool is_help;
    assert_true(parse("-n|10|--item|r|--item|s|--item|t|--other|u", &f, &is_help, &err));
    assert_int_equal(f.n, 10);
    assert_string_equal(f.text, "t");
    assert_int_equal(f.list.n, 3);
    assert_string_equal(f.list.items[0], "r");
    assert_int_equal(f.others.n, 1);
    td_json_destroy(&document);
    static const char *const types[] = {"f32",  "f16",  "bf16", "q8_0", "q6_0",
                                        "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"};
    for (size_t i = 0; i < TD_COUNT(types); i++) {
        char json[64];
        snprintf(json, sizeof json, "{\"c\":{\"kv\":\"%s\"}}", types[i]);
        assert_true(read_config(json, &f, &document, &err));
        assert_ptr_equal(f.type, td_type_find_name(types[i]));
        td_json_destroy(&document);
    }
    assert_true(
        read_config("{\"a\":{\"items\":\"one\"},\"b\":{\"loud\":false}}", &f, &document, &err));
    assert_int_equal(f.list.n, 1);
    assert_string_equal(f.list.items[0], "one");
    assert_false(f.is_loud);
    td_json_destroy(&document);
    assert_true(read_config("{}", &f, &document, &err));
    td_json_destroy(&document);
}

static void test_wrong_files_are_told(void **state)
{
    (void)state;
    config_fails("{\"d\":{}}", "d");
    config_fails("{\"a\":{\"txt\":\"t\"}}", "did you mean \"text\"");
    config_fails("{\"a\":{\"n\":0}}", "a.n");
    config_fails("{\"a\":{\"n\":16777217}}", "1..16777216");
    config_fails("{\"a\":{\"n\":5.0}}", "a.n");
    config_fails("{\"a\":{\"n\":true}}", "a.n");
    config_fails("{\"a\":{\"text\":\"\"}}", "a.text");
    config_fails("{\"a\":{\"text\":[\"x\"]}}", "a.text");
    config_fails("{\"a\":5}", "a");
    config_fails("{\"a\":{\"items\":[\"x\",1]}}", "a.items");
    config_fails("{\"a\":{\"items\":[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\",\"10\","
                 "\"11\",\"12\",\"13\","
                 "\"14\",\"15\",\"16\",\"17\"]}}",
                 "a.items");
    config_fails("{\"b\":{\"seed\":-1}}", "b.seed");
    config_fails("{\"b\":{\"seed\":9223372036854775807}}", "b.seed");
    config_fails("{\"b\":{\"temp\":101}}", "b.temp");
    config_fails("{\"b\":{\"temp\":\"1\"}}", "b.temp");
    config_fails("{\"b\":{\"loud\":1}}", "b.loud");
    config_fails("{\"c\":{\"kv\":\"q4_k\"}}", "c.kv");
    config_fails("{\"a\":{},\"a\":{}}", "a"); /* twice */
    config_fails("{\"a\":{\"n\":1,\"n\":2}}", "n");
    config_fails("[]", "object");
    config_fails("", "JSON");
    config_fails("{\"a\":{\"n\":1}} // remark", "JSON");
    fields f = {0};
    td_json *document = NULL;
    td_err err = {0};
    assert_false(td_options_read_config(&help, "/nonexistent/c.json", &f, &document, &err));
    assert_int_equal(err.code, TD_E_IO);
}

/* -- layers of other types --------------------------------------------------------------------- */

static void assert_rule(const td_cache_rule *r, uint32_t first, uint32_t last, const char *k,
                        const char *v)
{
    assert_int_equal(r->first, first);
    assert_int_equal(r->last, last);
    assert_ptr_equal(r->k, k ? td_type_find_name(k) : NULL);
    assert_ptr_equal(r->v, v ? td_type_find_name(v) : NULL);
}

static void test_layers_of_other_types_are_read(void **state)
{
    (void)state;
    fields f =
        parse_ok("--keep|first,last=f16|--keep|0,4-7=Q8_0/q5_0|--keep=1=bf16/-|--keep=2=-/f32");
    assert_int_equal(f.kv.n_rules, 6);
    assert_rule(&f.kv.rules[0], TD_CACHE_LAYER_FIRST, TD_CACHE_LAYER_FIRST, "F16", "F16");
    assert_rule(&f.kv.rules[1], TD_CACHE_LAYER_LAST, TD_CACHE_LAYER_LAST, "F16", "F16");
    assert_rule(&f.kv.rules[2], 0, 0, "Q8_0", "Q5_0");
    assert_rule(&f.kv.rules[3], 4, 7, "Q8_0", "Q5_0");
    assert_rule(&f.kv.rules[4], 1, 1, "BF16", NULL);
    assert_rule(&f.kv.rules[5], 2, 2, NULL, "F32");
    parse_fails("--keep|first", "--keep: \"first\"; allowed: LAYERS=TYPE");
    parse_fails("--keep|0=q4_k", "--keep: \"q4_k\"; allowed: " TD_OPTIONS_CACHE_TYPES);
    parse_fails("--keep|0=", "--keep: \"\"; allowed: f32");
    parse_fails("--keep|0=f16/q9", "--keep: \"q9\"");
    parse_fails("--keep|0=f16/f16/f16", "--keep: \"f16/f16\"");
    static const char *const wrong[] = {"",      "-",     "1-",     "-1",        "7-4",
                                        "x",     "0,",    ",0",     "firstlast", "first-last",
                                        "65534", "65535", "123456", "0x1",       "1 "};
    for (size_t i = 0; i < TD_COUNT(wrong); i++) {
        char line[64];
        snprintf(line, sizeof line, "--keep|%s=f16", wrong[i]);
        parse_fails(line, "allowed: a layer from 0, a range as 4-7, first, last");
    }
    char many[512] = "--keep|0";
    for (uint32_t i = 0; i < TD_CACHE_RULES_MAX; i++)
        strcat(many, ",0");
    parse_fails(strcat(many, "=f16"), "--keep: more layers or runs of layers than 48");
}

static void write_layers(char path[64], const char *json)
{
    strcpy(path, "/tmp/tandem-layers-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, json, strlen(json)) == (ssize_t)strlen(json));
    close(fd);
}

static void layers_fail(const char *json, const char *part)
{
    char path[64];
    td_cache_types kv = {.n_rules = 0};
    td_err err = {0};
    write_layers(path, json);
    if (td_cache_options_layers(path, &kv, &err))
        fail_msg("%s was taken", json);
    if (!strstr(err.message, part) || !strstr(err.message, path))
        fail_msg("%s: \"%s\" lacks \"%s\"", json, err.message, part);
    unlink(path);
}

static void test_layers_come_from_files_too(void **state)
{
    (void)state;
    char path[64], line[128], json[256];
    fields f = {.n = 1};
    td_json *document = NULL;
    td_err err = {0};
    bool is_help;
    write_layers(path, "{\"last\": {\"k\": \"f16\"}, \"3-5\": {\"k\": \"q8_0\", \"v\": \"q4_0\"}}");
    snprintf(json, sizeof json, "{\"c\":{\"keep\":[\"0=f16\",\"1=f32\"],\"layers\":\"%s\"}}", path);
    assert_true(read_config(json, &f, &document, &err));
    assert_int_equal(f.kv.n_rules, 4);
    assert_rule(&f.kv.rules[1], 1, 1, "F32", "F32");
    assert_rule(&f.kv.rules[2], TD_CACHE_LAYER_LAST, TD_CACHE_LAYER_LAST, "F16", NULL);
    assert_rule(&f.kv.rules[3], 3, 5, "Q8_0", "Q4_0");
    td_json_destroy(&document);
    /* Flags, of either kind, replace what a file says. */
    snprintf(line, sizeof line, "--layers|%s|--keep|9=f16", path);
    assert_true(parse(line, &f, &is_help, &err));
    assert_int_equal(f.kv.n_rules, 3);
    assert_rule(&f.kv.rules[2], 9, 9, "F16", "F16");
    unlink(path);
    assert_true(read_config("{\"c\":{\"keep\":\"2=f16\"}}", &f, &document, &err));
    td_json_destroy(&document);
    config_fails("{\"c\":{\"keep\":5}}", "c.keep");
    config_fails("{\"c\":{\"keep\":\"0=q4_k\"}}", "c.keep: --keep: \"q4_k\"; allowed: f32");
    layers_fail("{\"0\": {\"k\": \"q4_k\"}}", "0.k: \"q4_k\"; allowed: f32");
    layers_fail("{\"0\": {\"key\": \"f16\"}}", "key");
    layers_fail("{\"0\": \"f16\"}", "0");
    layers_fail("{\"x-1\": {\"k\": \"f16\"}}", "layers \"x-1\"; allowed");
    layers_fail("[]", "");
    layers_fail("", "JSON");
    td_cache_types kv = {.n_rules = 0};
    assert_false(td_cache_options_layers("/nonexistent/l.json", &kv, &err));
    assert_int_equal(err.code, TD_E_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_flags_set_their_fields),
        cmocka_unit_test(test_values_out_of_range_name_the_range),
        cmocka_unit_test(test_flags_that_are_wrong_are_told),
        cmocka_unit_test(test_missing_and_unwanted_values_are_told),
        cmocka_unit_test(test_help_ends_the_parsing),
        cmocka_unit_test(test_help_names_every_option_and_key),
        cmocka_unit_test(test_config_is_found_among_flags),
        cmocka_unit_test(test_a_file_sets_fields_by_section),
        cmocka_unit_test(test_wrong_files_are_told),
        cmocka_unit_test(test_layers_of_other_types_are_read),
        cmocka_unit_test(test_layers_come_from_files_too),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
