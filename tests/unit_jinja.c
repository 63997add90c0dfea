/* The template language against Python's jinja2: what it makes of features.json was written by
 * chat_truth.py, which also drives this program (`test_unit_jinja --render`) to compare the two on
 * any template: lines of {"template", "variables"} in, {"text", "special"} or {"error"} out. */
#include "base/check.h"
#include "base/mem.h"
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

#define DATA          "tests/data/chat/"
#define VARIABLES_MAX 64

/* The variables of a case, each dumped as a JSON text. */
typedef struct {
    td_jinja_variable items[VARIABLES_MAX];
    char *texts[VARIABLES_MAX];
    size_t n;
} variables;

static void add_variables(variables *v, json_t *object, bool is_trusted)
{
    const char *name;
    json_t *value;
    json_object_foreach(object, name, value)
    {
        assert_true(v->n < VARIABLES_MAX);
        v->texts[v->n] = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
        v->items[v->n] = (td_jinja_variable){.name = name,
                                             .json = v->texts[v->n],
                                             .n_json = strlen(v->texts[v->n]),
                                             .is_trusted = is_trusted};
        v->n++;
    }
}

static void free_variables(variables *v)
{
    for (size_t i = 0; i < v->n; i++)
        free(v->texts[i]);
}

/* Saturday, as chat_truth.py has it. */
static struct tm now(void)
{
    return (struct tm){.tm_year = 126, .tm_mon = 10, .tm_mday = 28, .tm_wday = 6, .tm_yday = 331};
}

static bool render(const char *text, size_t n_text, const variables *v, td_jinja_output *out,
                   td_err *err)
{
    *out = (td_jinja_output){0};
    td_jinja *t = td_jinja_parse(text, n_text, err);
    bool is_ok =
        t && td_jinja_render(
                 t, &(td_jinja_input){.variables = v->items, .n_variables = v->n, .now = now()},
                 out, err);
    td_jinja_destroy(&t);
    return is_ok;
}

/* -- driven by chat_truth.py ------------------------------------------------------------------- */

static int render_lines(void)
{
    char *line = NULL;
    size_t size = 0;
    ssize_t n;
    while ((n = getline(&line, &size, stdin)) > 0) {
        json_t *root = json_loadb(line, (size_t)n, JSON_ALLOW_NUL, NULL), *answer = json_object();
        const json_t *template = json_object_get(root, "template");
        variables v = {0};
        td_jinja_output out;
        td_err err = {0};
        add_variables(&v, json_object_get(root, "trusted"), true);
        add_variables(&v, json_object_get(root, "variables"), false);
        if (render(json_string_value(template), json_string_length(template), &v, &out, &err)) {
            json_t *special = json_array();
            for (size_t i = 0; i < out.n_segments; i++)
                if (out.segments[i].is_special)
                    json_array_append_new(
                        special, json_stringn(out.segments[i].text, out.segments[i].n_bytes));
            json_object_set_new(answer, "text", json_stringn(out.text, out.n_text));
            json_object_set_new(answer, "special", special);
        } else {
            json_object_set_new(answer, "error", json_string(err.message));
        }
        char *text = json_dumps(answer, JSON_COMPACT);
        puts(text);
        fflush(stdout);
        free(text);
        td_jinja_output_free(&out);
        free_variables(&v);
        json_decref(answer);
        json_decref(root);
    }
    free(line);
    return 0;
}

/* -- features ---------------------------------------------------------------------------------- */

static void test_features_give_what_jinja2_gives(void **state)
{
    (void)state;
    json_error_t e;
    json_t *root = json_load_file(DATA "features.json", JSON_ALLOW_NUL, &e), *c;
    if (!root)
        fail_msg("features.json: %s", e.text);
    size_t i, n_wrong = 0;
    json_array_foreach(root, i, c)
    {
        const json_t *template = json_object_get(c, "template"), *text = json_object_get(c, "text");
        variables v = {0};
        td_jinja_output out;
        td_err err = {0};
        add_variables(&v, json_object_get(c, "variables"), false);
        bool is_ok =
            render(json_string_value(template), json_string_length(template), &v, &out, &err);
        bool is_right = is_ok ? text && out.n_text == json_string_length(text) &&
                                    !memcmp(out.text, json_string_value(text), out.n_text)
                              : !text;
        if (!is_right) {
            print_message("case %zu: %s\n<<%s>>\nwanted\n<<%s>>\n", i, json_string_value(template),
                          is_ok ? out.text : err.message,
                          text ? json_string_value(text) : "an error");
            n_wrong++;
        }
        td_jinja_output_free(&out);
        free_variables(&v);
    }
    assert_int_equal(n_wrong, 0);
    assert_true(i > 100);
    json_decref(root);
}

static void test_errors_say_where_and_what(void **state)
{
    (void)state;
    static const struct {
        const char *template, *message;
    } cases[] = {
        {"{% if x %}\n  {{ 1 + }}", "line 2, column 10: unexpected \"}}\"; expected an expression"},
        {"é {{ x y }}", "line 1, column 8: unexpected \"y\"; expected \"}}\""},
        {"{% if x %}\n\n", "line 2, column 1: unexpected the end of the template; expected elif"},
        {"{% for x in y %}{% endif %}", "line 1, column 20: unexpected \"endif\"; expected one of"},
        {"{{ 'abc }}", "line 1, column 4: a string without its end"},
        {"{# abc", "line 1, column 1: a comment without its end"},
        {"{{ a ? b }}", "line 1, column 6: unexpected character \"?\""},
        {"{{ (1] }}", "line 1, column 6: unexpected \"]\""},
        {"{{ '\\u12' }}", "line 1, column 7: a string's escape with too few"},
        {"{% include 'x' %}",
         "line 1, column 4: unexpected \"include\"; expected one of the tags for"},
        {"{% break %}", "line 1, column 4: not inside of a loop"},
        {"{{ 1 }}\n{{ x | nope }}", "line 2, column 8: there is no filter \"nope\""},
        {"{{ x is nope }}", "line 1, column 6: there is no test \"nope\""},
        {"{{ nope.a }}", "'nope' is undefined"},
        {"{{ 1 + 'a' }}", "unsupported operand types for +: 'int' and 'str'"},
        {"{{ raise_exception('no ' ~ 1) }}", "the template says: no 1"},
        {"{{ 'a'.upper(1) }}", "upper takes at most 0 arguments (1 given)"},
        {"{{ 'a' | replace('a') }}", "replace needs 2 arguments (1 given)"},
        {"{{ 'a' | trim(b=1) }}", "trim takes no keyword argument 'b'"},
        {"{{ [] | tojson(indent='\t', nope=1) }}", "tojson takes no keyword argument 'nope'"},
        {"{{ 5() }}", "'int' object is not callable"},
        {"\xff", "line 1, column 1: a byte that is no UTF-8"},
    };
    for (size_t i = 0; i < TD_COUNT(cases); i++) {
        td_jinja_output out;
        td_err err = {0};
        bool is_ok =
            render(cases[i].template, strlen(cases[i].template), &(variables){0}, &out, &err);
        if (is_ok || !strstr(err.message, cases[i].message))
            fail_msg("%s: %s", cases[i].template, is_ok ? out.text : err.message);
        assert_int_equal(err.code, TD_E_DATA);
        td_jinja_output_free(&out);
    }
}

static void test_names_that_are_mentioned(void **state)
{
    (void)state;
    static const char text[] = "{% if false %}{{ strftime_now('%d') }}{% endif %}";
    td_jinja *t = td_jinja_parse(text, sizeof text - 1, NULL);
    assert_true(td_jinja_mentions(t, "strftime_now"));
    assert_false(td_jinja_mentions(t, "messages"));
    td_jinja_destroy(&t);
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "--render"))
        return render_lines();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_features_give_what_jinja2_gives),
        cmocka_unit_test(test_errors_say_where_and_what),
        cmocka_unit_test(test_names_that_are_mentioned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
