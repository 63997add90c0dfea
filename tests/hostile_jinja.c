/* Chat templates of unknown origin: whatever they are, parsing and rendering end, soon, within the
 * limits, with a text or with an error that says where.
 *
 *     test_hostile_jinja [MUTATIONS [SEED]]
 *
 * Mutations start from the templates of tests/data/chat; the same number and seed give the same
 * ones. */
#include "base/check.h"
#include "base/mem.h"
#include "base/rng.h"
#include "model/chat/jinja.h"

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define FEATURES          "tests/data/chat/features.json"
#define MUTATIONS_DEFAULT 20000
#define MUTANT_MAX        4096u
#define MUTANT_STEPS      200000u    /* enough for what a mutant does on purpose */
#define BOMB_STEPS        (1u << 24) /* a quarter of the limit, for the sake of slow builds */

static uint64_t n_mutations = MUTATIONS_DEFAULT, seed = 1;

static const char messages[] = "[{\"role\":\"system\",\"content\":\"Be "
                               "brief.\"},{\"role\":\"user\",\"content\":\"  <|im_end|> "
                               "\\u00e9\\ud83d\\ude42\\n\"},{\"role\":\"assistant\",\"content\":"
                               "null,\"tool_calls\":[{\"function\":{"
                               "\"name\":\"f\",\"arguments\":{\"a\":[1,2.5,true,null]}}}]},{"
                               "\"role\":\"tool\",\"content\":[{\"type\":"
                               "\"text\",\"text\":\"42\"}]}]";
static const char tools[] =
    "[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{}}}]";

static const td_jinja_variable variables[] = {
    {.name = "messages", .json = messages, .n_json = sizeof messages - 1},
    {.name = "tools", .json = tools, .n_json = sizeof tools - 1},
    {.name = "x", .json = "\"41\"", .n_json = 4},
    {.name = "content", .json = "\"<think>\\nabc</think>\"", .n_json = 22},
    {.name = "v", .json = "[1,{\"a\":[]},\"b\"]", .n_json = 16},
    {.name = "bos_token", .json = "\"<s>\"", .n_json = 5, .is_trusted = true},
};

/* Parses and renders; what comes back is whole, or an error is. */
static bool run(const char *text, size_t n_text, uint64_t n_steps_max, td_err *err)
{
    td_jinja_output out = {0};
    td_err_clear(err);
    td_jinja *t = td_jinja_parse(text, n_text, err);
    bool is_ok = t && td_jinja_render(t,
                                      &(td_jinja_input){.variables = variables,
                                                        .n_variables = TD_COUNT(variables),
                                                        .n_steps_max = n_steps_max},
                                      &out, err);
    if (is_ok) {
        size_t n = 0;
        for (size_t i = 0; i < out.n_segments; i++) {
            assert_ptr_equal(out.segments[i].text, out.text + n);
            assert_true(out.segments[i].n_bytes > 0);
            assert_true(i == 0 || out.segments[i].is_special != out.segments[i - 1].is_special);
            n += out.segments[i].n_bytes;
        }
        assert_int_equal(n, out.n_text);
        assert_true(n <= TD_JINJA_TEXT_MAX);
    } else {
        assert_true(err->code == TD_E_DATA || err->code == TD_E_NOMEM);
        assert_true(strlen(err->message) > 0);
    }
    td_jinja_output_free(&out);
    td_jinja_destroy(&t);
    return is_ok;
}

/* -- mutations --------------------------------------------------------------------------------- */

static uint64_t draw(uint64_t *state, uint64_t below)
{
    *state = td_hash64(*state, "mutation", 8);
    return below ? *state % below : 0;
}

static const char *const pieces[] = {
    "{%",
    "%}",
    "{{",
    "}}",
    "{#",
    "#}",
    "-",
    "+",
    "{% raw %}",
    "{% endraw %}",
    "{% if ",
    "{% endif %}",
    "{% for x in ",
    "{% endfor %}",
    "{% set x = ",
    "{% set x %}",
    "{% endset %}",
    "{% macro m(",
    "{% endmacro %}",
    "{% call m() %}",
    "{% endcall %}",
    "{% filter ",
    "{% break %}",
    "loop.index",
    "loop.changed(x)",
    "messages",
    "[0]",
    "[::-1]",
    "[1:]",
    ".content",
    ".split('",
    "')",
    "|join",
    "|tojson",
    "|map('",
    "|selectattr('role', 'equalto', 'user')",
    "|sort",
    "|list",
    "|length",
    "|int",
    "|indent",
    "|groupby('role')",
    " if ",
    " else ",
    " is ",
    " not ",
    " in ",
    " and ",
    "~",
    "**",
    "//",
    "%",
    "*",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "'",
    "\"",
    "\\",
    "\\u12",
    "9223372036854775807",
    "-1",
    "1e308",
    "0",
    "range(",
    "namespace(x=",
    "ns.x",
    "cycler(",
    "joiner()",
    "dict(",
    "caller()",
    "varargs",
    "kwargs",
    "strftime_now('%",
    "raise_exception(",
    "\xff",
    "\xc3",
    "\xe2\x80\xa8",
    "\n",
    "\r",
    " ",
    "\t",
    "{}",
    "{:>9}",
    "%s",
    ".format(",
    "nope",
    "none",
    "true",
    "bos_token",
    "x",
    "m(",
};

static size_t insert(char *text, size_t n, size_t at, const char *piece, size_t n_piece)
{
    if (n + n_piece > MUTANT_MAX)
        return n;
    memmove(text + at + n_piece, text + at, n - at);
    memcpy(text + at, piece, n_piece);
    return n + n_piece;
}

static size_t mutate(char *text, size_t n, const json_t *features, uint64_t *state)
{
    for (uint64_t k = 1 + draw(state, 3) / 2; k > 0; k--) {
        size_t at = draw(state, n + 1), span = draw(state, n - at + 1);
        const char *piece = pieces[draw(state, TD_COUNT(pieces))];
        const json_t *other = json_object_get(
            json_array_get(features, draw(state, json_array_size(features))), "template");
        switch (draw(state, 6)) {
        case 0:
            if (at < n)
                text[at] = (char)(text[at] ^ (1 << draw(state, 8)));
            break;
        case 1:
            span = span > 12 ? draw(state, 12) : span;
            memmove(text + at, text + at + span, n - at - span);
            n -= span;
            break;
        case 2: { /* a part of it twice */
            char copy[MUTANT_MAX];
            memcpy(copy, text + at, span);
            n = insert(text, n, draw(state, n + 1), copy, span);
            break;
        }
        case 3:
            n = insert(text, n, at, json_string_value(other), json_string_length(other));
            break;
        default:
            n = insert(text, n, at, piece, strlen(piece));
        }
    }
    return n;
}

static void test_mutated_templates_end(void **state)
{
    (void)state;
    json_t *features = json_load_file(FEATURES, JSON_ALLOW_NUL, NULL);
    uint64_t n_ok = 0, random = seed;
    assert_non_null(features);
    for (uint64_t i = 0; i < n_mutations; i++) {
        char text[MUTANT_MAX];
        td_err err = {0};
        const json_t *t = json_object_get(
            json_array_get(features, draw(&random, json_array_size(features))), "template");
        size_t n = json_string_length(t);
        memcpy(text, json_string_value(t), n);
        n = mutate(text, n, features, &random);
        n_ok += run(text, n, MUTANT_STEPS, &err);
    }
    print_message("%llu of %llu mutants give a text\n", (unsigned long long)n_ok,
                  (unsigned long long)n_mutations);
    if (n_mutations >= 1000) {
        assert_true(n_ok > n_mutations / 20);
        assert_true(n_ok < n_mutations);
    }
    json_decref(features);
}

/* -- bombs ------------------------------------------------------------------------------------- */

static char *repeat(const char *before, const char *one, size_t n_times, const char *after)
{
    size_t n = strlen(one), n_before = strlen(before);
    char *text = malloc(n_before + n * n_times + strlen(after) + 1);
    assert_non_null(text);
    memcpy(text, before, n_before);
    for (size_t i = 0; i < n_times; i++)
        memcpy(text + n_before + i * n, one, n);
    strcpy(text + n_before + n * n_times, after);
    return text;
}

static void test_what_nests_is_bounded(void **state)
{
    (void)state;
    static const struct {
        const char *before, *one, *after;
        bool is_ok; /* long without being deep */
    } cases[] = {
        {"{{ ", "(", " }}", false},
        {"{{ ", "[", " }}", false},
        {"{{ ", "{1:", " }}", false},
        {"{{ ", "x[", " }}", false},
        {"{{ ", "x(", " }}", false},
        {"{{ ", "not ", "x }}", false},
        {"{{ ", "- ", "1 }}", false},
        {"{{ x", ".a", " }}", false},
        {"{{ x", "[0]", " }}", false},
        {"{{ x", "()", " }}", false},
        {"{{ x", "|trim", " }}", false},
        {"{{ x", " is string", " }}", false},
        {"{{ 1", " + 1", " }}", false},
        {"{{ 1", " ** 1", " }}", false},
        {"{{ 1", " and 1", " }}", false},
        {"{{ 1", " if 1 else 1", " }}", false},
        {"{{ 1", " if 1", " }}", false},
        {"{{ 1", " ~ 1", " }}", true},
        {"{{ 1", " < 2", " }}", true},
        {"{{ [1", ",1", "] }}", true},
        {"{{ 'a'", " 'a'", " }}", true},
        {"", "{% if 1 %}", "", false},
        {"", "{% for x in x %}", "", false},
        {"", "{% macro m() %}", "", false},
        {"", "{% set x %}", "", false},
        {"", "{% filter trim %}", "", false},
        {"{% if 0 %}", "{% elif 0 %}", "{% endif %}", true},
        {"", "{{ 1 }}", "", true},
        {"", "{# c #}", "", true},
        {"{% set ", "(", "x", false},
        {"{{ x(", "a=1,", ") }}", false},
    };
    for (size_t i = 0; i < TD_COUNT(cases); i++) {
        td_err err = {0};
        char *text = repeat(cases[i].before, cases[i].one, 20000, cases[i].after);
        bool is_ok = run(text, strlen(text), 0, &err);
        if (is_ok != cases[i].is_ok)
            fail_msg("%s%s...: %s", cases[i].before, cases[i].one, is_ok ? "a text" : err.message);
        free(text);
    }
}

#define GROW(body)                                                                                 \
    "{% set ns = namespace(s='x', l=[1], n=[]) %}{% for i in range(100000) %}" body "{% endfor %}"

static void test_what_grows_is_bounded(void **state)
{
    (void)state;
    static const struct {
        const char *text, *why; /* NULL: a text */
    } cases[] = {
        {GROW("{% set ns.s = ns.s ~ ns.s %}"), "allowed: 16777216"},
        {GROW("{% set ns.s = ns.s + 'y' %}") "{{ ns.s | length }}", NULL},
        {GROW("{% set ns.l = ns.l + ns.l %}"), "allowed: "},
        {GROW("{% set ns.l = ns.l + [1] %}"), "allowed: "},
        {GROW("{% set ns.n = [ns.n] %}") "{{ ns.n }}", "deep; allowed: 1000"},
        {GROW("{% set ns.n = [ns.n] %}") "{{ ns.n | tojson }}", "deep; allowed: 1000"},
        {GROW("{% set ns.n = [ns.n] %}") "{{ ns.n == [ns.n] }}", "deep; allowed: 1000"},
        {GROW("{% set ns.n = [ns.n] %}") "{{ [ns.n, [ns.n]] | sort }}", "deep; allowed: 1000"},
        {GROW("{% set ns.n = (ns.n,) %}") "{{ {ns.n: 1} }}", "allowed: 1000"},
        {GROW("{{ ns.s * 1000 }}"), "allowed: 16777216"},
        {GROW("{% for k in range(100000) %}{% endfor %}"), "allowed: "},
        {"{% set l = range(10000) %}" GROW("{% for k in l %}{% endfor %}"), "steps of work"},
        {"{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}", "allowed: 1000"},
        {"{{ 'x' * 1000000000 }}", "allowed: 16777216"},
        {"{{ [1] * 1000000000 }}", "allowed: 16777216"},
        {"{{ [1, 2] * 8000000 }}", "allowed: "},
        {"{{ range(100001) }}", "allowed: 100000"},
        {"{{ range(-9223372036854775807, 9223372036854775807) }}", "allowed: 100000"},
        {"{{ range(0, 10, 9223372036854775807) | list }}", NULL},
        {"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "deep; allowed: 1000"},
        {"{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
         "deep; allowed: 1000"},
        {"{% macro m(f) %}{{ f(f) }}{% endmacro %}{{ m(m) }}", "deep; allowed: 1000"},
        {"{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}{% call m() %}x{% endcall %}{% "
         "endcall %}",
         NULL},
        {"{% macro m(n) %}{{ m(n - 1) ~ m(n - 1) if n else 'x' }}{% endmacro %}{{ m(40) }}",
         "allowed: "},
        {"{{ '{:>100000000}'.format(1) }}", "allowed: 4096"},
        {"{{ '%100000000d' % 1 }}", "allowed: 4096"},
        {"{{ '%.100000000f' % 1 }}", "allowed: 4096"},
        {"{{ '{:.4096f}'.format(1e308) }}", NULL},
        {"{{ 'x'.center(1000000000) }}", "allowed: 16777216"},
        {"{{ 'x' | indent(1000000000) }}", "allowed: 16777216"},
        {"{{ ('x' * 1000000).replace('', 'y' * 1000) }}", "allowed: 16777216"},
        {"{{ ('x' * 1000000).replace('x', 'y' * 1000) }}", "allowed: 16777216"},
        {"{{ ('y' * 1000000).join('x' * 1000) }}", "allowed: 16777216"},
        {"{{ ('a,' * 8000000).split(',') | length }}", "allowed: "},
        {"{% set s = 'a' * 1000000 %}{% for i in range(100000) %}{{ s.find('b') }}{% endfor %}",
         "steps of work"},
        {"{% set s = 'a' * 1000000 %}{% for i in range(100000) %}{{ 'b' in s }}{% endfor %}",
         "steps of work"},
        {"{% set s = 'a' * 1000000 %}{% for i in range(100000) %}{{ s == s[:-1] ~ 'b' }}{% endfor "
         "%}",
         "allowed: "},
        {"{% set s = ('\\u00e9' * 1000000) %}{% for i in range(100000) %}{{ s[999999] }}{% endfor "
         "%}",
         "steps of work"},
        {"{% set s = ('\\u00e9' * 1000000) %}{% for c in s %}{{ loop.length }}{% endfor %}", NULL},
        {"{{ range(100000) | map('string') | length }}", "no len()"},
        {"{{ range(100000) | map('string') | sort | list | length }}", NULL},
        {"{{ range(100000) | batch(1) | list | length }}", NULL},
        {"{{ [1] | slice(1000000000) | list }}", "allowed: 1..100000"},
        {"{{ [1] | batch(1000000000, 1) | list }}", "allowed: 1..100000"},
        {"{{ dict(range(100000) | batch(2)) | length }}", NULL},
        {"{{ 10 ** 100 }}", "64 bits"},
        {"{{ 2 ** 1000000000000 }}", "64 bits"},
        {"{{ 9223372036854775807 + 1 }}", "64 bits"},
        {"{{ (-9223372036854775807 - 1) // -1 }}", "64 bits"},
        {"{{ (-9223372036854775807 - 1) % -1 }}", NULL},
        {"{{ (-9223372036854775807 - 1) | abs }}", "64 bits"},
        {"{{ -(-9223372036854775807 - 1) }}", "64 bits"},
        {"{{ 9223372036854775807 * 9223372036854775807 }}", "64 bits"},
        {"{{ 99999999999999999999 }}", "64 bits"},
        {"{{ '99999999999999999999' | int }}", "64 bits"},
        {"{{ 1e308 * 10 | int }}", NULL},
        {"{{ (1e308 * 10) | int }}", "64 bits"},
        {"{{ 'a'[9223372036854775807:] }}{{ 'a'[:-9223372036854775807] }}{{ "
         "'a'[::-9223372036854775807] }}",
         NULL},
        {"{{ [1][-9223372036854775807:9223372036854775807:9223372036854775807] }}", NULL},
        {"{{ strftime_now('%c' * 1000) }}", "allowed: 0..256"},
        {"{{ 1.5 | round(1000000000) }}{{ 1.5 | round(-1000000000) }}", NULL},
        {"{{ 'x' | truncate(-5) }}", "allowed: "},
        {"{{ raise_exception('x' * 1000000) }}", "the template says: xxx"},
        {"{{ cycler() }}", "at least one"},
    };
    for (size_t i = 0; i < TD_COUNT(cases); i++) {
        td_err err = {0};
        bool is_ok = run(cases[i].text, strlen(cases[i].text), BOMB_STEPS, &err);
        if (is_ok != !cases[i].why || (!is_ok && !strstr(err.message, cases[i].why)))
            fail_msg("%s: %s", cases[i].text, is_ok ? "a text" : err.message);
    }
}

static void test_the_limit_of_steps_is_there_without_being_asked_for(void **state)
{
    (void)state;
    static const char text[] = "{% for i in range(10000) %}{% for k in range(10000) %}{% endfor %}"
                               "{% endfor %}";
    static const char more[] = "{% set l = range(10000) %}{% for i in l %}{% for k in l %}"
                               "{% endfor %}{% endfor %}";
    td_err err = {0};
    assert_false(run(text, sizeof text - 1, 0, &err));
    assert_false(run(more, sizeof more - 1, 0, &err));
    assert_non_null(strstr(err.message, "steps of work; allowed: 67108864"));
}

/* A template with as many names as it can hold, and one without anything. */
static void test_many_names_are_found_quickly(void **state)
{
    (void)state;
    char *text = malloc(TD_JINJA_TEMPLATE_MAX);
    size_t n = 0;
    td_err err = {0};
    assert_non_null(text);
    for (unsigned i = 0; n + 64 < TD_JINJA_TEMPLATE_MAX; i++) {
        n += (size_t)sprintf(text + n, "{%% set n%x=%u %%}", i, i);
        if (i == 5000)
            assert_true(run(text, n, 0, &err));
    }
    assert_false(run(text, n, 0, &err));
    assert_non_null(strstr(err.message, "steps of work"));
    free(text);
    assert_true(run("", 0, 0, &err));
    text = repeat("", "x", TD_JINJA_TEMPLATE_MAX + 1, "");
    assert_false(run(text, strlen(text), 0, &err));
    assert_non_null(strstr(err.message, "allowed: 1048576"));
    free(text);
}

static void test_variables_are_bounded(void **state)
{
    (void)state;
    td_jinja *t = td_jinja_parse("{{ v }}", 7, NULL);
    assert_non_null(t);
    static const char *const bad[] = {"",         "[",        "[1,]",    "{\"a\"}",
                                      "{\"a\":}", "\"",       "\"\\",    "\"\\u12",
                                      "01x",      "--1",      "1.2.3",   "nul",
                                      "[1 2]",    "{1:2}",    "\"\\q\"", "\"\\ud800",
                                      "[]]",      "\"\xff\"", "1e",      "99999999999999999999"};
    for (size_t i = 0; i < TD_COUNT(bad) + 2; i++) {
        size_t depth = i < TD_COUNT(bad) ? 0 : TD_JINJA_JSON_DEPTH + (i - TD_COUNT(bad));
        char *deep = repeat("", "[", depth, ""), *closed = repeat(deep, "]", depth, "");
        const char *json = i < TD_COUNT(bad) ? bad[i] : closed;
        td_jinja_output out;
        td_err err = {0};
        bool is_ok = td_jinja_render(
            t,
            &(td_jinja_input){
                .variables =
                    &(td_jinja_variable){.name = "v", .json = json, .n_json = strlen(json)},
                .n_variables = 1},
            &out, &err);
        if (is_ok != (i == TD_COUNT(bad))) /* exactly as deep as may be */
            fail_msg("%.40s: %s", json, is_ok ? "taken" : err.message);
        td_jinja_output_free(&out);
        free(deep);
        free(closed);
    }
    td_jinja_destroy(&t);
}

/* Memory may be short at any moment. */
static void test_every_lack_of_memory_is_told(void **state)
{
    (void)state;
    static const char text[] =
        "{% macro m(a, b=2) %}{{ a }}{{ caller() }}{% endmacro %}{% set l = [1, 2] %}"
        "{% for x in messages | selectattr('role') %}{% call m(x.role) %}{{ x | tojson(indent=1) }}"
        "{% endcall %}{% endfor %}{{ ('x' * 100000) | length }}{{ l | sort | join(',') }}";
    bool is_ok = false;
    for (uint64_t n = 1; !is_ok; n++) {
        td_err err = {0};
        td_alloc_fail_at(n);
        is_ok = run(text, sizeof text - 1, 0, &err);
        td_alloc_fail_at(0);
        assert_true(is_ok || err.code == TD_E_NOMEM);
        assert_true(n < 1000);
    }
}

int main(int argc, char **argv)
{
    if (argc > 1)
        n_mutations = strtoull(argv[1], NULL, 10);
    if (argc > 2)
        seed = strtoull(argv[2], NULL, 10);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mutated_templates_end),
        cmocka_unit_test(test_what_nests_is_bounded),
        cmocka_unit_test(test_what_grows_is_bounded),
        cmocka_unit_test(test_the_limit_of_steps_is_there_without_being_asked_for),
        cmocka_unit_test(test_many_names_are_found_quickly),
        cmocka_unit_test(test_variables_are_bounded),
        cmocka_unit_test(test_every_lack_of_memory_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
