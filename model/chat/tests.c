/* Tests: what stands after `is`. */
#include "model/chat/strings.h"
#include "model/chat/text.h"

#define TEST(function)                                                                             \
    static bool function(jinja_render *r, const jinja_value *a, const jinja_args *args,            \
                         jinja_value *out)

/* A test that looks at its value alone. */
#define PLAIN_TEST(function, expression)                                                           \
    TEST(function)                                                                                 \
    {                                                                                              \
        (void)r;                                                                                   \
        (void)args;                                                                                \
        *out = jinja_bool(expression);                                                             \
        return true;                                                                               \
    }

static bool is_sequence(jinja_value v)
{
    return v.type == JINJA_TEXT || v.type == JINJA_DICT || v.type == JINJA_UNDEFINED ||
           (v.type == JINJA_LIST && v.as.list->kind <= JINJA_IS_RANGE);
}

PLAIN_TEST(defined, a[0].type != JINJA_UNDEFINED)
PLAIN_TEST(undefined, a[0].type == JINJA_UNDEFINED)
PLAIN_TEST(none, a[0].type == JINJA_NONE)
PLAIN_TEST(boolean, a[0].type == JINJA_BOOL)
PLAIN_TEST(is_true, a[0].type == JINJA_BOOL && a[0].as.truth)
PLAIN_TEST(is_false, a[0].type == JINJA_BOOL && !a[0].as.truth)
PLAIN_TEST(integer, a[0].type == JINJA_INT)
PLAIN_TEST(is_float, a[0].type == JINJA_FLOAT)
PLAIN_TEST(number, jinja_is_number(a[0]))
PLAIN_TEST(string, a[0].type == JINJA_TEXT)
PLAIN_TEST(mapping, a[0].type == JINJA_DICT)
PLAIN_TEST(sequence, is_sequence(a[0]))
PLAIN_TEST(iterable, a[0].type == JINJA_LIST || a[0].type == JINJA_LOOP || is_sequence(a[0]))
/* An undefined value can be called, to tell that it is undefined. */
PLAIN_TEST(callable, a[0].type == JINJA_CALLABLE || a[0].type == JINJA_UNDEFINED)
PLAIN_TEST(escaped, a[0].type == JINJA_TEXT && a[0].as.text->is_markup)

static bool is_case(jinja_render *r, jinja_value v, jinja_case c, jinja_value *out)
{
    const jinja_text *t;
    if (!jinja_to_text(r, v, &t))
        return false;
    *out = jinja_bool(jinja_is_case(t, c));
    return jinja_charge(r, t->n);
}

TEST(upper)
{
    (void)args;
    return is_case(r, a[0], JINJA_UPPER, out);
}

TEST(lower)
{
    (void)args;
    return is_case(r, a[0], JINJA_LOWER, out);
}

/* Is the remainder of a division by `by` this? */
static bool has_remainder(jinja_render *r, jinja_value v, jinja_value by, int64_t wanted,
                          jinja_value *out)
{
    bool is_so;
    if (!jinja_binary(r, OP_MOD, v, by, out) || !jinja_equal(r, *out, jinja_int(wanted), &is_so))
        return false;
    *out = jinja_bool(is_so);
    return true;
}

TEST(odd)
{
    (void)args;
    return has_remainder(r, a[0], jinja_int(2), 1, out);
}

TEST(even)
{
    (void)args;
    return has_remainder(r, a[0], jinja_int(2), 0, out);
}

TEST(divisibleby)
{
    (void)args;
    return has_remainder(r, a[0], a[1], 0, out);
}

static bool compare(jinja_render *r, int op, const jinja_value *a, jinja_value *out)
{
    bool is_so;
    if (!jinja_compare(r, op, a[0], a[1], &is_so))
        return false;
    *out = jinja_bool(is_so);
    return true;
}

#define COMPARISON(function, op)                                                                   \
    TEST(function)                                                                                 \
    {                                                                                              \
        (void)args;                                                                                \
        return compare(r, op, a, out);                                                             \
    }
COMPARISON(eq, OP_EQ)
COMPARISON(ne, OP_NE)
COMPARISON(lt, OP_LT)
COMPARISON(le, OP_LE)
COMPARISON(gt, OP_GT)
COMPARISON(ge, OP_GE)
COMPARISON(in, OP_IN)

/* The same object: for None, booleans and what is not copied. */
TEST(sameas)
{
    (void)args;
    bool is_same = false;
    if (a[0].type == a[1].type && !jinja_equal(r, a[0], a[1], &is_same))
        return false;
    if (a[0].type == JINJA_LIST || a[0].type == JINJA_DICT)
        is_same = a[0].type == a[1].type && a[0].as.list == a[1].as.list;
    *out = jinja_bool(is_same);
    return true;
}

TEST(is_filter)
{
    (void)args;
    (void)r;
    *out = jinja_bool(a[0].type == JINJA_TEXT && jinja_find_filter(a[0].as.text));
    return true;
}

TEST(is_test)
{
    (void)args;
    (void)r;
    *out = jinja_bool(a[0].type == JINJA_TEXT && jinja_find_test(a[0].as.text));
    return true;
}

static const jinja_builtin rows[] = {
    {"defined", defined, 0, false, {NULL}},
    {"undefined", undefined, 0, false, {NULL}},
    {"string", string, 0, false, {NULL}},
    {"none", none, 0, false, {NULL}},
    {"mapping", mapping, 0, false, {NULL}},
    {"sequence", sequence, 0, false, {NULL}},
    {"iterable", iterable, 0, false, {NULL}},
    {"boolean", boolean, 0, false, {NULL}},
    {"true", is_true, 0, false, {NULL}},
    {"false", is_false, 0, false, {NULL}},
    {"integer", integer, 0, false, {NULL}},
    {"float", is_float, 0, false, {NULL}},
    {"number", number, 0, false, {NULL}},
    {"callable", callable, 0, false, {NULL}},
    {"escaped", escaped, 0, false, {NULL}},
    {"upper", upper, 0, false, {NULL}},
    {"lower", lower, 0, false, {NULL}},
    {"odd", odd, 0, false, {NULL}},
    {"even", even, 0, false, {NULL}},
    {"divisibleby", divisibleby, 1, false, {"num"}},
    {"sameas", sameas, 1, false, {"other"}},
    {"filter", is_filter, 0, false, {NULL}},
    {"test", is_test, 0, false, {NULL}},
    {"in", in, 1, false, {"seq"}},
    {"eq", eq, 1, false, {""}},
    {"equalto", eq, 1, false, {""}},
    {"==", eq, 1, false, {""}},
    {"ne", ne, 1, false, {""}},
    {"!=", ne, 1, false, {""}},
    {"lt", lt, 1, false, {""}},
    {"lessthan", lt, 1, false, {""}},
    {"<", lt, 1, false, {""}},
    {"le", le, 1, false, {""}},
    {"<=", le, 1, false, {""}},
    {"gt", gt, 1, false, {""}},
    {"greaterthan", gt, 1, false, {""}},
    {">", gt, 1, false, {""}},
    {"ge", ge, 1, false, {""}},
    {">=", ge, 1, false, {""}},
};

const jinja_builtin *jinja_find_test(const jinja_text *name)
{
    return jinja_find_in(rows, sizeof rows / sizeof rows[0], name);
}
