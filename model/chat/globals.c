/* Functions that a template can call without having been given them. */
#include "model/chat/render.h"
#include "model/chat/text.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#define GLOBAL(function)                                                                           \
    static bool function(jinja_render *r, const jinja_value *a, const jinja_args *args,            \
                         jinja_value *out)

#define DATE_FORMAT_MAX 256u

/* range(stop), range(start, stop), range(start, stop, step) */
GLOBAL(range)
{
    int64_t start = 0, stop = 0, step = 1;
    (void)args;
    for (size_t i = 1; i <= 3; i++)
        if (a[i].type != JINJA_INT && a[i].type != JINJA_BOOL && a[i].type != JINJA_ABSENT)
            return jinja_fail(r, "'%s' object cannot be interpreted as an integer",
                              jinja_type_name(a[i]));
    bool has_start = a[2].type != JINJA_ABSENT;
    if (!jinja_int_arg(r, has_start ? a[1] : (jinja_value){0}, 0, "start", &start) ||
        !jinja_int_arg(r, has_start ? a[2] : a[1], 0, "stop", &stop) ||
        !jinja_int_arg(r, a[3], 1, "step", &step))
        return false;
    if (step == 0)
        return jinja_fail(r, "range() step must not be zero");
    /* Unsigned, as the distance of two integers may be beyond them. */
    uint64_t stride = step < 0 ? 0 - (uint64_t)step : (uint64_t)step;
    uint64_t span = step < 0 ? (uint64_t)start - (uint64_t)stop : (uint64_t)stop - (uint64_t)start;
    bool is_empty = step < 0 ? start <= stop : start >= stop;
    uint64_t n = is_empty ? 0 : (span - 1) / stride + 1;
    if (n > TD_JINJA_RANGE_MAX)
        return jinja_fail(r, "a range of %llu numbers; allowed: %u", (unsigned long long)n,
                          TD_JINJA_RANGE_MAX);
    jinja_list *l = jinja_list_create(r, (size_t)n, JINJA_IS_RANGE);
    bool is_message = a[1].is_message || a[2].is_message || a[3].is_message;
    for (uint64_t i = 0; l && i < n; i++) {
        l->items[i] = jinja_int((int64_t)((uint64_t)start + i * (uint64_t)step));
        l->items[i].is_message = is_message;
    }
    *out = jinja_of_list(l);
    return l != NULL;
}

/* dict(other, name=value), and the same for namespaces. */
static bool make_dict(jinja_render *r, const jinja_args *args, jinja_type type, jinja_value *out)
{
    jinja_dict *d = jinja_dict_create(r);
    jinja_list *pairs = NULL, *pair;
    if (!d || args->n > 1)
        return jinja_fail(r, "dict expected at most 1 argument, got %zu", args->n);
    if (args->n == 1 && args->items[0].type == JINJA_DICT) {
        const jinja_dict *other = args->items[0].as.dict;
        for (size_t i = 0; i < other->n; i++)
            if (!jinja_dict_set(r, d, other->pairs[i].key, other->pairs[i].value))
                return false;
    } else if (args->n == 1) {
        if (!jinja_iterate(r, args->items[0], &pairs))
            return false;
        for (size_t i = 0; i < pairs->n; i++) {
            if (!jinja_iterate(r, pairs->items[i], &pair))
                return false;
            if (pair->n != 2)
                return jinja_fail(r, "a dict's item of %zu; allowed: 2", pair->n);
            if (!jinja_dict_set(r, d, pair->items[0], pair->items[1]))
                return false;
        }
    }
    for (size_t i = 0; i < args->n_named; i++)
        if (!jinja_dict_set(r, d, jinja_of_text(args->named[i].name), args->named[i].value))
            return false;
    *out = (jinja_value){.type = type, .as.dict = d};
    return true;
}

GLOBAL(dict)
{
    (void)a;
    return make_dict(r, args, JINJA_DICT, out);
}

GLOBAL(namespace)
{
    (void)a;
    return make_dict(r, args, JINJA_NAMESPACE, out);
}

GLOBAL(raise_exception)
{
    const jinja_text *t;
    (void)args;
    (void)out;
    if (!jinja_to_text(r, a[1], &t))
        return false;
    return jinja_fail(r, "the template says: %.*s", (int)(t->n < 600 ? t->n : 600), t->bytes);
}

GLOBAL(strftime_now)
{
    const jinja_text *t;
    char format[DATE_FORMAT_MAX + 2], text[4 * DATE_FORMAT_MAX];
    (void)args;
    if (!jinja_text_arg(r, a[1], "format", &t))
        return false;
    if (t->n > DATE_FORMAT_MAX || memchr(t->bytes, 0, t->n))
        return jinja_fail(r, "a date's format of %zu bytes; allowed: 0..%u, without zeros", t->n,
                          DATE_FORMAT_MAX);
    snprintf(format, sizeof format, "%.*sx", (int)t->n, t->bytes); /* so that it is never empty */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    size_t n = strftime(text, sizeof text, format, &r->now);
#pragma GCC diagnostic pop
    if (n == 0)
        return jinja_fail(r, "a date of more than %zu bytes; allowed: %zu", sizeof text,
                          sizeof text);
    jinja_buffer *b = jinja_buffer_create(r);
    if (!b || !jinja_append(r, b, text, n - 1, jinja_text_is_message(t)))
        return false;
    *out = jinja_of_text(jinja_buffer_text(r, b));
    return out->as.text != NULL;
}

static bool make_object(jinja_render *r, jinja_callable c, jinja_value *out)
{
    jinja_callable *object = jinja_alloc(r, 1, sizeof *object);
    if (!object)
        return false;
    *object = c;
    *out = (jinja_value){.type = JINJA_CALLABLE, .as.callable = object};
    return true;
}

GLOBAL(joiner)
{
    const jinja_text *t = a[1].type == JINJA_ABSENT ? jinja_text_literal(r, ", ") : NULL;
    (void)args;
    if (!t && !jinja_text_arg(r, a[1], "sep", &t))
        return false;
    return make_object(r, (jinja_callable){.kind = JINJA_JOINER, .self = jinja_of_text(t)}, out);
}

GLOBAL(cycler)
{
    (void)a;
    if (args->n == 0)
        return jinja_fail(r, "at least one item has to be provided");
    jinja_list *l = jinja_list_create(r, args->n, JINJA_IS_LIST);
    if (!l)
        return false;
    memcpy(l->items, args->items, args->n * sizeof l->items[0]);
    return make_object(r, (jinja_callable){.kind = JINJA_CYCLER, .items = l}, out);
}

static const jinja_builtin rows[] = {
    {"range", range, 1, false, {"", "", ""}},
    {"namespace", namespace, 0, true, {NULL}},
    {"dict", dict, 0, true, {NULL}},
    {"raise_exception", raise_exception, 1, false, {"message"}},
    {"strftime_now", strftime_now, 1, false, {"format"}},
    {"joiner", joiner, 0, false, {"sep"}},
    {"cycler", cycler, 0, true, {NULL}},
};

const jinja_builtin *jinja_find_global(const jinja_text *name)
{
    return jinja_find_in(rows, sizeof rows / sizeof rows[0], name);
}

/* -- methods of a cycler ----------------------------------------------------------------------- */

GLOBAL(cycler_next)
{
    jinja_callable *c = a[0].as.callable;
    (void)args;
    (void)r;
    *out = c->items->items[c->i];
    c->i = (c->i + 1) % c->items->n;
    return true;
}

GLOBAL(cycler_reset)
{
    (void)args;
    (void)r;
    a[0].as.callable->i = 0;
    *out = jinja_none();
    return true;
}

const jinja_builtin *jinja_find_cycler_method(const jinja_text *name)
{
    static const jinja_builtin methods[] = {
        {"next", cycler_next, 0, false, {NULL}},
        {"reset", cycler_reset, 0, false, {NULL}},
    };
    return jinja_find_in(methods, sizeof methods / sizeof methods[0], name);
}
