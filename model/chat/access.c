/* Attributes, items and slices. An attribute is a method first and then an item of that name, an
 * item the other way round; what is neither is undefined. */
#include "model/chat/render.h"
#include "model/chat/text.h"

#include "model/unicode_case.h"

#include <string.h>

static bool bind_method(jinja_render *r, jinja_value v, const jinja_builtin *b, jinja_value *out)
{
    jinja_callable *c = jinja_alloc(r, 1, sizeof *c);
    if (!c)
        return false;
    *c = (jinja_callable){.kind = JINJA_BUILTIN, .builtin = b, .self = v};
    *out = (jinja_value){.type = JINJA_CALLABLE, .as.callable = c};
    return true;
}

static jinja_value loop_item(const jinja_loop *l, size_t i)
{
    return i < l->items->n ? l->items->items[i] : jinja_undefined(NULL);
}

static bool loop_attr(const jinja_loop *l, const jinja_text *name, jinja_value *out)
{
    const int64_t i = (int64_t)l->i, n = (int64_t)l->items->n;
    const struct {
        const char *name;
        jinja_value value;
    } rows[] = {{"index", jinja_int(i + 1)},
                {"index0", jinja_int(i)},
                {"revindex", jinja_int(n - i)},
                {"revindex0", jinja_int(n - i - 1)},
                {"first", jinja_bool(i == 0)},
                {"last", jinja_bool(i + 1 == n)},
                {"length", jinja_int(n)},
                {"depth", jinja_int(1)},
                {"depth0", jinja_int(0)},
                {"previtem", loop_item(l, l->i - 1)},
                {"nextitem", loop_item(l, l->i + 1)}};
    for (size_t k = 0; k < sizeof rows / sizeof rows[0]; k++)
        if (jinja_text_is(name, rows[k].name)) {
            *out = rows[k].value;
            return true;
        }
    return false;
}

static bool is_cycler_attr(jinja_value v, const jinja_text *name, jinja_value *out)
{
    const jinja_callable *c = v.as.callable;
    if (v.type != JINJA_CALLABLE || c->kind != JINJA_CYCLER || !jinja_text_is(name, "current"))
        return false;
    *out = c->items->items[c->i % c->items->n];
    return true;
}

/* An item of a dict or a list; *is_there says whether there was one. */
static bool find_item(jinja_render *r, jinja_value v, jinja_value key, bool *is_there,
                      jinja_value *out)
{
    *is_there = false;
    if (v.type == JINJA_DICT) {
        bool is_list = key.type == JINJA_LIST && key.as.list->kind <= JINJA_IS_VIEW;
        if ((is_list && key.as.list->kind != JINJA_IS_TUPLE) || key.type == JINJA_DICT)
            return true;
        jinja_value *found;
        if (!jinja_dict_find(r, v.as.dict, key, &found))
            return false;
        *is_there = found != NULL;
        if (found)
            *out = *found;
        return true;
    }
    bool is_number = key.type == JINJA_INT || key.type == JINJA_BOOL;
    int64_t i = key.type == JINJA_INT ? key.as.integer : key.type == JINJA_BOOL && key.as.truth;
    if (is_number && v.type == JINJA_LIST && v.as.list->kind < JINJA_IS_VIEW) {
        int64_t n = (int64_t)v.as.list->n;
        i += i < 0 ? n : 0;
        *is_there = i >= 0 && i < n;
        if (*is_there)
            *out = v.as.list->items[i];
    }
    if (is_number && v.type == JINJA_TEXT) {
        const jinja_text *t = v.as.text;
        i += i < 0 ? (int64_t)t->n_chars : 0;
        *is_there = i >= 0 && i < (int64_t)t->n_chars;
        if (*is_there) {
            size_t from = jinja_text_offset(t, (size_t)i), to = from;
            jinja_text_next(t, &to);
            *out = jinja_of_text(jinja_text_part(r, t, from, to - from));
            return out->as.text && jinja_charge(r, t->n == t->n_chars ? 0 : from / 16);
        }
    }
    return true;
}

bool jinja_get_attr(jinja_render *r, jinja_value v, const jinja_text *name, jinja_value *out)
{
    bool is_there = false;
    if (v.type == JINJA_LOOP && loop_attr(v.as.loop, name, out))
        return true;
    if (v.type == JINJA_NAMESPACE) {
        jinja_value *found = jinja_dict_find_bytes(v.as.dict, name->bytes, name->n);
        *out = found ? *found : jinja_undefined(name);
        return true;
    }
    if (is_cycler_attr(v, name, out))
        return true;
    if (v.type == JINJA_LIST && v.as.list->is_group &&
        (jinja_text_is(name, "grouper") || jinja_text_is(name, "list"))) {
        *out = v.as.list->items[name->bytes[0] == 'l'];
        return true;
    }
    const jinja_builtin *method = jinja_find_method(v, name);
    if (method)
        return bind_method(r, v, method, out);
    if (!find_item(r, v, jinja_of_text(name), &is_there, out))
        return false;
    if (!is_there)
        *out = jinja_undefined(name);
    return true;
}

bool jinja_get_item(jinja_render *r, jinja_value v, jinja_value key, jinja_value *out)
{
    bool is_there;
    if (v.type == JINJA_UNDEFINED)
        return jinja_fail(r, "an item of an undefined value");
    if (!find_item(r, v, key, &is_there, out) || is_there)
        return r->err->code == TD_OK;
    if (key.type == JINJA_TEXT && v.type != JINJA_DICT)
        return jinja_get_attr(r, v, key.as.text, out);
    const jinja_builtin *method = key.type == JINJA_TEXT ? jinja_find_method(v, key.as.text) : NULL;
    if (method)
        return bind_method(r, v, method, out);
    *out = jinja_undefined(key.type == JINJA_TEXT ? key.as.text : NULL);
    return true;
}

/* -- slices ------------------------------------------------------------------------------------ */

/* The bound of a slice of n items, clipped as Python does: to low..high. */
static bool clip(jinja_render *r, jinja_value v, int64_t n, int64_t fallback, int64_t low,
                 int64_t high, int64_t *out)
{
    *out = fallback;
    if (v.type == JINJA_NONE)
        return true;
    if (v.type != JINJA_INT && v.type != JINJA_BOOL)
        return jinja_fail(r, "slice indices must be integers or None, not '%s'",
                          jinja_type_name(v));
    int64_t i = v.type == JINJA_INT ? v.as.integer : v.as.truth;
    if (i < 0)
        i = i < -n ? low : i + n;
    *out = i < low ? low : i > high ? high : i;
    return true;
}

static bool slice_text(jinja_render *r, const jinja_text *t, int64_t from, int64_t n_items,
                       int64_t step, jinja_value *out)
{
    if (!jinja_charge(r, t->n == t->n_chars ? 0 : t->n / 16))
        return false;
    if (step == 1 || n_items == 0) {
        size_t begin = jinja_text_offset(t, n_items ? (size_t)from : 0);
        size_t end = jinja_text_offset(t, n_items ? (size_t)(from + n_items) : 0);
        *out = jinja_of_text(jinja_text_part(r, t, begin, end - begin));
        return out->as.text != NULL;
    }
    jinja_list *chars;
    jinja_buffer *b = jinja_buffer_create(r);
    if (!b || !jinja_iterate(r, jinja_of_text(t), &chars))
        return false;
    for (int64_t i = 0; i < n_items; i++)
        if (!jinja_append_text(r, b, chars->items[from + i * step].as.text))
            return false;
    *out = jinja_of_text(jinja_buffer_text(r, b));
    return out->as.text != NULL;
}

bool jinja_slice(jinja_render *r, jinja_value v, jinja_value from, jinja_value to, jinja_value step,
                 jinja_value *out)
{
    bool is_list = v.type == JINJA_LIST && v.as.list->kind <= JINJA_IS_RANGE;
    if (!is_list && v.type != JINJA_TEXT)
        return jinja_fail(r, "a slice of a '%s'", jinja_type_name(v));
    int64_t n = is_list ? (int64_t)v.as.list->n : (int64_t)v.as.text->n_chars;
    int64_t begin, end, by = 1;
    if (step.type != JINJA_NONE && !clip(r, step, 0, 1, INT64_MIN / 4, INT64_MAX / 4, &by))
        return false;
    if (step.type == JINJA_INT && step.as.integer < 0) /* clip() knows no negative numbers */
        by = step.as.integer < -n - 1 ? -n - 1 : step.as.integer;
    if (by == 0)
        return jinja_fail(r, "slice step cannot be zero");
    by = by > n + 1 ? n + 1 : by;
    int64_t low = by < 0 ? -1 : 0, high = by < 0 ? n - 1 : n;
    if (!clip(r, from, n, by < 0 ? high : low, low, high, &begin) ||
        !clip(r, to, n, by < 0 ? low : high, low, high, &end))
        return false;
    int64_t span = by < 0 ? begin - end : end - begin, stride = by < 0 ? -by : by;
    int64_t n_items = span > 0 ? (span + stride - 1) / stride : 0;
    if (!is_list)
        return slice_text(r, v.as.text, begin, n_items, by, out);
    jinja_list *l = jinja_list_create(r, (size_t)n_items, v.as.list->kind);
    for (int64_t i = 0; l && i < n_items; i++)
        l->items[i] = v.as.list->items[begin + i * by];
    *out = jinja_of_list(l);
    return l != NULL;
}
