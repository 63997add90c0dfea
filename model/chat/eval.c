/* Expressions. One routine for each kind of node, so that a level of the recursion needs little
 * stack; `jinja_eval` counts steps and depth, and keeps the place for messages. */
#include "model/chat/render.h"
#include "model/chat/strings.h"
#include "model/chat/text.h"

#include <math.h>
#include <string.h>

/* -- operators --------------------------------------------------------------------------------- */

static int64_t as_int(jinja_value v) { return v.type == JINJA_INT ? v.as.integer : v.as.truth; }

static bool is_whole(jinja_value v) { return v.type == JINJA_INT || v.type == JINJA_BOOL; }

static bool overflow(jinja_render *r) { return jinja_fail(r, "an integer beyond 64 bits"); }

static bool power(jinja_render *r, int64_t base, int64_t exponent, jinja_value *out)
{
    int64_t result = 1;
    if (exponent < 0) {
        if (base == 0)
            return jinja_fail(r, "0 cannot be raised to a negative power");
        *out = jinja_float(pow((double)base, (double)exponent));
        return true;
    }
    while (exponent > 0) {
        if ((exponent & 1) && __builtin_mul_overflow(result, base, &result))
            return overflow(r);
        exponent >>= 1;
        if (exponent > 0 && __builtin_mul_overflow(base, base, &base))
            return overflow(r);
    }
    *out = jinja_int(result);
    return true;
}

static bool whole_numbers(jinja_render *r, int op, int64_t a, int64_t b, jinja_value *out)
{
    int64_t result = 0;
    bool is_over = false;
    switch (op) {
    case OP_ADD:
        is_over = __builtin_add_overflow(a, b, &result);
        break;
    case OP_SUB:
        is_over = __builtin_sub_overflow(a, b, &result);
        break;
    case OP_MUL:
        is_over = __builtin_mul_overflow(a, b, &result);
        break;
    case OP_POW:
        return power(r, a, b, out);
    default:
        if (b == 0)
            return jinja_fail(r, "division by zero");
        if (op == OP_DIV) {
            *out = jinja_float((double)a / (double)b);
            return true;
        }
        is_over = b == -1 && a == INT64_MIN && op == OP_FLOORDIV;
        if (b == -1) { /* the one quotient that the processor traps on is among these */
            result = op == OP_FLOORDIV && !is_over ? -a : 0;
            break;
        }
        bool is_below = a % b != 0 && (a % b < 0) != (b < 0);
        result = op == OP_FLOORDIV ? a / b - is_below : a % b + (is_below ? b : 0);
    }
    *out = jinja_int(result);
    return !is_over || overflow(r);
}

static bool reals(jinja_render *r, int op, double a, double b, jinja_value *out)
{
    double result;
    bool is_zero = !(b < 0) && !(b > 0) && !isnan(b);
    if (is_zero && (op == OP_DIV || op == OP_FLOORDIV || op == OP_MOD))
        return jinja_fail(r, "division by zero");
    switch (op) {
    case OP_ADD:
        result = a + b;
        break;
    case OP_SUB:
        result = a - b;
        break;
    case OP_MUL:
        result = a * b;
        break;
    case OP_DIV:
        result = a / b;
        break;
    case OP_FLOORDIV:
        result = floor(a / b);
        break;
    case OP_MOD:
        result = fmod(a, b);
        if ((result < 0 || result > 0) && (result < 0) != (b < 0))
            result += b;
        if (!(result < 0) && !(result > 0) && !isnan(result))
            result = copysign(0, b);
        break;
    default:
        result = pow(a, b);
        if (isnan(result) && !isnan(a) && !isnan(b))
            return jinja_fail(r, "a power that is no real number");
    }
    *out = jinja_float(result);
    return true;
}

static bool repeat(jinja_render *r, jinja_value v, int64_t n_times, jinja_value *out)
{
    size_t n = v.type == JINJA_TEXT ? v.as.text->n : v.as.list->n;
    if (n_times < 0 || n == 0)
        n_times = 0;
    if (n > 0 && (uint64_t)n_times > TD_JINJA_TEXT_MAX / n)
        return jinja_fail(r, "%zu items %lld times; allowed: %u items", n, (long long)n_times,
                          TD_JINJA_TEXT_MAX);
    if (v.type == JINJA_TEXT) {
        jinja_buffer *b = jinja_buffer_create(r);
        for (int64_t i = 0; b && i < n_times; i++)
            if (!jinja_charge(r, 1) || !jinja_append_text(r, b, v.as.text))
                return false;
        *out = jinja_of_text(b ? jinja_buffer_text(r, b) : NULL);
        return out->as.text != NULL;
    }
    jinja_list *l = jinja_list_create(r, n * (size_t)n_times, v.as.list->kind);
    for (int64_t i = 0; l && n > 0 && i < n_times; i++)
        memcpy(l->items + (size_t)i * n, v.as.list->items, n * sizeof l->items[0]);
    *out = jinja_of_list(l);
    return l != NULL;
}

static bool add_lists(jinja_render *r, const jinja_list *a, const jinja_list *b, jinja_value *out)
{
    jinja_list *l = jinja_list_create(r, a->n + b->n, a->kind);
    if (l && a->n > 0)
        memcpy(l->items, a->items, a->n * sizeof l->items[0]);
    if (l && b->n > 0)
        memcpy(l->items + a->n, b->items, b->n * sizeof l->items[0]);
    *out = jinja_of_list(l);
    return l != NULL;
}

static bool is_list(jinja_value v)
{
    return v.type == JINJA_LIST && v.as.list->kind < JINJA_IS_RANGE;
}

static bool add_texts(jinja_render *r, const jinja_text *a, const jinja_text *b, jinja_value *out)
{
    static const jinja_text escape = {.bytes = "escape", .n = 6, .n_chars = 6};
    if (a->is_markup != b->is_markup) { /* what is not marked as safe is escaped before */
        jinja_value plain = jinja_of_text(a->is_markup ? b : a), escaped;
        if (!jinja_run_builtin(r, jinja_find_filter(&escape), plain, &(jinja_args){0}, &escaped))
            return false;
        a = a->is_markup ? a : escaped.as.text;
        b = b->is_markup ? b : escaped.as.text;
    }
    *out = jinja_of_text(jinja_text_concat(r, a, b));
    return out->as.text != NULL;
}

static bool refuse(jinja_render *r, jinja_value v)
{
    if (v.type != JINJA_UNDEFINED)
        return true;
    return v.as.text
               ? jinja_fail(r, "'%.*s' is undefined", (int)(v.as.text->n & 0xff), v.as.text->bytes)
               : jinja_fail(r, "an undefined value is used");
}

bool jinja_binary(jinja_render *r, int op, jinja_value a, jinja_value b, jinja_value *out)
{
    static const char *const signs[] = {"+", "-", "*", "/", "//", "%", "**"};
    bool is_format = op == OP_MOD && a.type == JINJA_TEXT;
    if (!refuse(r, a) || (!is_format && !refuse(r, b)))
        return false;
    if (jinja_is_number(a) && jinja_is_number(b)) {
        bool is_ok = is_whole(a) && is_whole(b)
                         ? whole_numbers(r, op, as_int(a), as_int(b), out)
                         : reals(r, op, jinja_as_double(a), jinja_as_double(b), out);
        out->is_message = a.is_message || b.is_message;
        return is_ok;
    }
    if (op == OP_ADD && a.type == JINJA_TEXT && b.type == JINJA_TEXT)
        return add_texts(r, a.as.text, b.as.text, out);
    if (op == OP_ADD && is_list(a) && is_list(b) && a.as.list->kind == b.as.list->kind)
        return add_lists(r, a.as.list, b.as.list, out);
    if (op == OP_MUL && (a.type == JINJA_TEXT || is_list(a)) && is_whole(b))
        return repeat(r, a, as_int(b), out);
    if (op == OP_MUL && (b.type == JINJA_TEXT || is_list(b)) && is_whole(a))
        return repeat(r, b, as_int(a), out);
    if (is_format)
        return jinja_format_percent(r, a.as.text, b, out);
    return jinja_fail(r, "unsupported operand types for %s: '%s' and '%s'", signs[op],
                      jinja_type_name(a), jinja_type_name(b));
}

bool jinja_compare(jinja_render *r, int op, jinja_value a, jinja_value b, bool *is_so)
{
    bool is_ok;
    switch (op) {
    case OP_EQ:
    case OP_NE:
        is_ok = jinja_equal(r, a, b, is_so);
        *is_so = *is_so == (op == OP_EQ);
        return is_ok;
    case OP_IN:
    case OP_NOT_IN:
        is_ok = jinja_contains(r, b, a, is_so);
        *is_so = *is_so == (op == OP_IN);
        return is_ok;
    case OP_LT:
    case OP_GT:
        return refuse(r, a) && refuse(r, b) &&
               jinja_less(r, op == OP_LT ? a : b, op == OP_LT ? b : a, is_so);
    default:
        if (!refuse(r, a) || !refuse(r, b) ||
            !jinja_less(r, op == OP_LE ? a : b, op == OP_LE ? b : a, is_so))
            return false;
        return *is_so || jinja_equal(r, a, b, is_so);
    }
}

/* -- nodes ------------------------------------------------------------------------------------- */

static void go_to(jinja_render *r, const jinja_node *n)
{
    r->line = n->line;
    r->column = n->column;
}

static bool eval_name(jinja_render *r, const jinja_node *n, jinja_value *out)
{
    uint64_t n_looked = 0;
    for (const jinja_scope *s = r->scope; s; s = s->parent)
        for (const jinja_binding *b = s->bindings; b; b = b->next, n_looked++)
            if (b->name == n->name) {
                *out = b->value;
                return jinja_charge(r, n_looked / 16);
            }
    const jinja_builtin *global = jinja_find_global(&n->name->text);
    *out = jinja_undefined(&n->name->text);
    if (global) {
        jinja_callable *c = jinja_alloc(r, 1, sizeof *c);
        if (!c)
            return false;
        *c = (jinja_callable){.kind = JINJA_BUILTIN, .builtin = global};
        *out = (jinja_value){.type = JINJA_CALLABLE, .as.callable = c};
    }
    return jinja_charge(r, n_looked / 16);
}

static bool eval_items(jinja_render *r, const jinja_node *n, jinja_value *out)
{
    jinja_list *l = jinja_list_create(r, 0, n->kind == NODE_TUPLE ? JINJA_IS_TUPLE : JINJA_IS_LIST);
    for (const jinja_node *item = n->a; l && item; item = item->next) {
        jinja_value v;
        if (!jinja_eval(r, item, &v) || !jinja_list_append(r, l, v))
            return false;
    }
    *out = jinja_of_list(l);
    return l != NULL;
}

static bool eval_dict(jinja_render *r, const jinja_node *n, jinja_value *out)
{
    jinja_dict *d = jinja_dict_create(r);
    for (const jinja_node *item = n->a; d && item; item = item->next->next) {
        jinja_value key, value;
        if (!jinja_eval(r, item, &key) || !jinja_eval(r, item->next, &value) ||
            !jinja_dict_set(r, d, key, value))
            return false;
    }
    *out = (jinja_value){.type = JINJA_DICT, .as.dict = d};
    return d != NULL;
}

static bool eval_optional(jinja_render *r, const jinja_node *n, jinja_value *out)
{
    *out = jinja_none();
    return !n || jinja_eval(r, n, out);
}

static bool eval_item(jinja_render *r, const jinja_node *n, jinja_value *out)
{
    jinja_value of, key, to, step;
    if (!jinja_eval(r, n->a, &of))
        return false;
    if (n->b->kind != NODE_SLICE) {
        if (!jinja_eval(r, n->b, &key))
            return false;
        go_to(r, n);
        return refuse(r, of) && jinja_get_item(r, of, key, out);
    }
    if (!eval_optional(r, n->b->a, &key) || !eval_optional(r, n->b->b, &to) ||
        !eval_optional(r, n->b->c, &step))
        return false;
    go_to(r, n);
    return refuse(r, of) && jinja_slice(r, of, key, to, step, out);
}

static bool eval_attr(jinja_render *r, const jinja_node *n, jinja_value *out)
{
    jinja_value of;
    if (!jinja_eval(r, n->a, &of))
        return false;
    go_to(r, n);
    return refuse(r, of) && jinja_get_attr(r, of, &n->name->text, out);
}

static bool eval_call(jinja_render *r, const jinja_node *n, jinja_value *out)
{
    jinja_value callee;
    jinja_args args;
    if (n->a->kind == NODE_ATTR) { /* a method is called without being made a value first */
        jinja_value of;
        if (!jinja_eval(r, n->a->a, &of))
            return false;
        const jinja_builtin *method = jinja_find_method(of, &n->a->name->text);
        go_to(r, n->a);
        if (method)
            return jinja_eval_args(r, n->b, &args) && (go_to(r, n), true) &&
                   jinja_run_builtin(r, method, of, &args, out);
        if (!refuse(r, of) || !jinja_get_attr(r, of, &n->a->name->text, &callee))
            return false;
    } else if (!jinja_eval(r, n->a, &callee)) {
        return false;
    }
    if (!jinja_eval_args(r, n->b, &args))
        return false;
    go_to(r, n);
    return refuse(r, callee) && jinja_call(r, callee, &args, out);
}

/* A filter or a test. */
static bool eval_builtin(jinja_render *r, const jinja_node *n, jinja_value *out)
{
    jinja_value v;
    jinja_args args;
    bool is_filter = n->kind == NODE_FILTER;
    if (!jinja_eval(r, n->a, &v) || !jinja_eval_args(r, n->b, &args))
        return false;
    go_to(r, n);
    const jinja_builtin *b =
        is_filter ? jinja_find_filter(&n->name->text) : jinja_find_test(&n->name->text);
    if (!b)
        return jinja_fail(r, "there is no %s \"%.64s\"", is_filter ? "filter" : "test",
                          n->name->text.bytes);
    return jinja_run_builtin(r, b, v, &args, out);
}

static bool eval_sign(jinja_render *r, const jinja_node *n, jinja_value *out)
{
    jinja_value v;
    if (!jinja_eval(r, n->a, &v))
        return false;
    go_to(r, n);
    if (!refuse(r, v))
        return false;
    if (!jinja_is_number(v))
        return jinja_fail(r, "a sign before a '%s'", jinja_type_name(v));
    if (v.type == JINJA_FLOAT)
        *out = jinja_float(n->kind == NODE_NEG ? -v.as.real : v.as.real);
    else if (n->kind == NODE_POS)
        *out = jinja_int(as_int(v));
    else if (!jinja_binary(r, OP_SUB, jinja_int(0), v, out))
        return false;
    out->is_message = v.is_message;
    return true;
}

/* `and` and `or` give one of their operands. */
static bool eval_logic(jinja_render *r, const jinja_node *n, jinja_value *out)
{
    if (!jinja_eval(r, n->a, out))
        return false;
    return jinja_truth(*out) == (n->kind == NODE_OR) || jinja_eval(r, n->b, out);
}

static bool eval_if_else(jinja_render *r, const jinja_node *n, jinja_value *out)
{
    jinja_value condition;
    if (!jinja_eval(r, n->a, &condition))
        return false;
    if (jinja_truth(condition))
        return jinja_eval(r, n->b, out);
    *out = jinja_undefined(NULL);
    return !n->c || jinja_eval(r, n->c, out);
}

static bool eval_not(jinja_render *r, const jinja_node *n, jinja_value *out)
{
    jinja_value v;
    if (!jinja_eval(r, n->a, &v))
        return false;
    *out = jinja_bool(!jinja_truth(v));
    return true;
}

/* a < b < c: true if each pair is. */
static bool eval_compare(jinja_render *r, const jinja_node *n, jinja_value *out)
{
    jinja_value left, right;
    bool is_so = true;
    if (!jinja_eval(r, n->a, &left))
        return false;
    for (const jinja_node *o = n->b; o && is_so; o = o->next) {
        if (!jinja_eval(r, o->a, &right))
            return false;
        go_to(r, o);
        if (!jinja_compare(r, o->op, left, right, &is_so))
            return false;
        left = right;
    }
    *out = jinja_bool(is_so);
    return true;
}

static bool eval_binary(jinja_render *r, const jinja_node *n, jinja_value *out)
{
    jinja_value a, b;
    if (!jinja_eval(r, n->a, &a) || !jinja_eval(r, n->b, &b))
        return false;
    go_to(r, n);
    return jinja_binary(r, n->op, a, b, out);
}

static bool eval_concat(jinja_render *r, const jinja_node *n, jinja_value *out)
{
    const jinja_text *all = NULL;
    for (const jinja_node *item = n->a; item; item = item->next) {
        jinja_value v;
        const jinja_text *t;
        if (!jinja_eval(r, item, &v) || !jinja_to_text(r, v, &t))
            return false;
        if (t->is_markup && !(t = jinja_text_markup(r, t, false)))
            return false;
        all = all ? jinja_text_concat(r, all, t) : t;
        if (!all)
            return false;
    }
    *out = jinja_of_text(all);
    return true;
}

static bool eval_const(jinja_render *r, const jinja_node *n, jinja_value *out)
{
    (void)r;
    *out = n->value;
    return true;
}

bool jinja_eval(jinja_render *r, const jinja_node *n, jinja_value *out)
{
    static bool (*const kinds[])(jinja_render *, const jinja_node *, jinja_value *) = {
        [NODE_CONST] = eval_const,     [NODE_NAME] = eval_name,       [NODE_TUPLE] = eval_items,
        [NODE_LIST] = eval_items,      [NODE_DICT] = eval_dict,       [NODE_ATTR] = eval_attr,
        [NODE_ITEM] = eval_item,       [NODE_CALL] = eval_call,       [NODE_FILTER] = eval_builtin,
        [NODE_TEST] = eval_builtin,    [NODE_NOT] = eval_not,         [NODE_NEG] = eval_sign,
        [NODE_POS] = eval_sign,        [NODE_AND] = eval_logic,       [NODE_OR] = eval_logic,
        [NODE_IF_ELSE] = eval_if_else, [NODE_COMPARE] = eval_compare, [NODE_BINARY] = eval_binary,
        [NODE_CONCAT] = eval_concat,
    };
    go_to(r, n);
    if (n->kind >= sizeof kinds / sizeof kinds[0] || !kinds[n->kind]) /* a slice in a tuple */
        return jinja_fail(r, "a slice that is not the only subscript");
    if (!jinja_charge(r, 1) || !jinja_enter(r))
        return false;
    bool is_ok = kinds[n->kind](r, n, out);
    jinja_leave(r);
    return is_ok;
}
