/* Filters that go through lists and dicts. What Python gives as a generator is one here too: it can
 * be gone through once and has no length. */
#include "model/chat/strings.h"
#include "model/chat/text.h"

#include <string.h>

#define FILTER(function)                                                                           \
    static bool function(jinja_render *r, const jinja_value *a, const jinja_args *args,            \
                         jinja_value *out)

static bool give_list(jinja_value *out, jinja_list *l)
{
    *out = jinja_of_list(l);
    return l != NULL;
}

/* A generator over nothing yet. */
static jinja_list *generator(jinja_render *r)
{
    return jinja_list_create(r, 0, JINJA_IS_GENERATOR);
}

static jinja_value *pair_of(jinja_render *r, jinja_value *out, jinja_value first,
                            jinja_value second)
{
    jinja_list *pair = jinja_list_create(r, 2, JINJA_IS_TUPLE);
    if (!pair)
        return NULL;
    pair->items[0] = first;
    pair->items[1] = second;
    *out = jinja_of_list(pair);
    return out;
}

/* -- plain ones -------------------------------------------------------------------------------- */

FILTER(length)
{
    size_t n;
    (void)args;
    if (!jinja_length(r, a[0], &n))
        return false;
    *out = jinja_int((int64_t)n);
    return true;
}

FILTER(list)
{
    jinja_list *items;
    (void)args;
    if (!jinja_iterate(r, a[0], &items))
        return false;
    jinja_list *copy = jinja_list_create(r, items->n, JINJA_IS_LIST);
    if (copy && items->n > 0)
        memcpy(copy->items, items->items, items->n * sizeof copy->items[0]);
    return give_list(out, copy);
}

FILTER(first)
{
    jinja_list *items;
    (void)args;
    if (a[0].type == JINJA_LIST && a[0].as.list->kind == JINJA_IS_GENERATOR) { /* takes one */
        jinja_list *l = a[0].as.list;
        *out = l->n_taken < l->n ? l->items[l->n_taken++] : jinja_undefined(NULL);
        return true;
    }
    if (!jinja_iterate(r, a[0], &items))
        return false;
    *out = items->n ? items->items[0] : jinja_undefined(NULL);
    return true;
}

FILTER(last)
{
    jinja_list *items;
    (void)args;
    if (a[0].type == JINJA_LIST && a[0].as.list->kind == JINJA_IS_GENERATOR)
        return jinja_fail(r, "'generator' object is not reversible");
    if (!jinja_iterate(r, a[0], &items))
        return false;
    *out = items->n ? items->items[items->n - 1] : jinja_undefined(NULL);
    return true;
}

FILTER(join)
{
    jinja_list *items;
    jinja_buffer *b = jinja_buffer_create(r);
    const jinja_text *between = NULL;
    (void)args;
    if (!b || (a[1].type != JINJA_ABSENT && !jinja_to_text(r, a[1], &between)) ||
        !jinja_iterate(r, a[0], &items))
        return false;
    for (size_t i = 0; i < items->n; i++) {
        jinja_value v = items->items[i];
        if (a[2].type != JINJA_ABSENT && a[2].type != JINJA_NONE &&
            !jinja_attribute_path(r, v, a[2], (jinja_value){0}, &v))
            return false;
        if ((i > 0 && between && !jinja_append_text(r, b, between)) || !jinja_print(r, b, v, false))
            return false;
    }
    *out = jinja_of_text(jinja_buffer_text(r, b));
    return out->as.text != NULL;
}

FILTER(default_to)
{
    (void)args;
    (void)r;
    bool is_taken =
        a[0].type == JINJA_UNDEFINED || (jinja_truth_arg(a[2], false) && !jinja_truth(a[0]));
    *out = a[0];
    if (is_taken)
        *out = a[1].type == JINJA_ABSENT ? jinja_of_text(jinja_text_literal(r, "")) : a[1];
    return out->type != JINJA_TEXT || out->as.text;
}

FILTER(items)
{
    (void)args;
    jinja_list *l = generator(r);
    if (l && a[0].type != JINJA_UNDEFINED && a[0].type != JINJA_DICT)
        return jinja_fail(r, "items of a '%s'; allowed: a mapping", jinja_type_name(a[0]));
    for (size_t i = 0; l && a[0].type == JINJA_DICT && i < a[0].as.dict->n; i++) {
        jinja_value pair;
        if (!pair_of(r, &pair, a[0].as.dict->pairs[i].key, a[0].as.dict->pairs[i].value) ||
            !jinja_list_append(r, l, pair))
            return false;
    }
    return give_list(out, l);
}

FILTER(reverse)
{
    jinja_list *items;
    (void)args;
    if (a[0].type == JINJA_TEXT)
        return jinja_slice(r, a[0], jinja_none(), jinja_none(), jinja_int(-1), out);
    bool was_generator = a[0].type == JINJA_LIST && a[0].as.list->kind == JINJA_IS_GENERATOR;
    if (!jinja_iterate(r, a[0], &items))
        return false;
    jinja_list *l =
        jinja_list_create(r, items->n, was_generator ? JINJA_IS_LIST : JINJA_IS_GENERATOR);
    for (size_t i = 0; l && i < items->n; i++)
        l->items[i] = items->items[items->n - 1 - i];
    return give_list(out, l);
}

FILTER(attr)
{
    const jinja_text *name;
    (void)args;
    if (!jinja_text_arg(r, a[1], "name", &name))
        return false;
    if (a[0].type == JINJA_DICT &&
        !jinja_find_method(a[0], name)) { /* its keys are no attributes */
        *out = jinja_undefined(name);
        return true;
    }
    if (a[0].type == JINJA_UNDEFINED)
        return jinja_fail(r, "an attribute of an undefined value");
    return jinja_get_attr(r, a[0], name, out);
}

/* -- sorting ----------------------------------------------------------------------------------- */

typedef struct {
    jinja_value key, value;
} sorted;

/* Stable, by merging. */
static bool sort_range(jinja_render *r, sorted *items, sorted *spare, size_t n, bool is_reverse)
{
    for (size_t width = 1; width < n; width *= 2) {
        for (size_t from = 0; from < n; from += 2 * width) {
            size_t middle = from + width < n ? from + width : n;
            size_t end = from + 2 * width < n ? from + 2 * width : n, i = from, k = middle;
            for (size_t at = from; at < end; at++) {
                bool is_less = false;
                if (i < middle && k < end &&
                    !jinja_less(r, is_reverse ? items[i].key : items[k].key,
                                is_reverse ? items[k].key : items[i].key, &is_less))
                    return false;
                spare[at] = i < middle && (k >= end || !is_less) ? items[i++] : items[k++];
            }
        }
        memcpy(items, spare, n * sizeof items[0]);
    }
    return true;
}

/* The text in small letters, as keys are compared; anything else as it is. */
static bool fold(jinja_render *r, jinja_value v, bool is_sensitive, jinja_value *out)
{
    *out = v;
    if (v.type == JINJA_TEXT && !is_sensitive)
        *out = jinja_of_text(jinja_change_case(r, v.as.text, JINJA_LOWER));
    return out->type != JINJA_TEXT || out->as.text;
}

/* The key of "a,b": a list of both; with is_listed even of one, as lists with equal items need no
 * order of these. */
static bool sort_key(jinja_render *r, jinja_value item, jinja_value path, jinja_value fallback,
                     bool is_sensitive, bool is_listed, jinja_value *key)
{
    static const jinja_text comma = {.bytes = ",", .n = 1, .n_chars = 1};
    jinja_value v;
    if (!is_listed || path.type != JINJA_TEXT) {
        jinja_list *one = is_listed ? jinja_list_create(r, 1, JINJA_IS_LIST) : NULL;
        if ((is_listed && !one) || !jinja_attribute_path(r, item, path, fallback, &v) ||
            !fold(r, v, is_sensitive, one ? &one->items[0] : key))
            return false;
        return !one || give_list(key, one);
    }
    jinja_list *paths = jinja_split(r, path.as.text, &comma, SIZE_MAX, false);
    jinja_list *keys = paths ? jinja_list_create(r, paths->n, JINJA_IS_LIST) : NULL;
    for (size_t i = 0; keys && i < paths->n; i++)
        if (!jinja_attribute_path(r, item, paths->items[i], fallback, &v) ||
            !fold(r, v, is_sensitive, &keys->items[i]))
            return false;
    return give_list(key, keys);
}

static bool sort_items(jinja_render *r, jinja_list *items, jinja_value path, jinja_value fallback,
                       bool is_sensitive, bool is_reverse, bool is_listed, sorted **out)
{
    *out = jinja_alloc(r, items->n, 2 * sizeof **out);
    for (size_t i = 0; *out && i < items->n; i++) {
        (*out)[i].value = items->items[i];
        if (!sort_key(r, items->items[i], path, fallback, is_sensitive, is_listed, &(*out)[i].key))
            return false;
    }
    return *out && sort_range(r, *out, *out + items->n, items->n, is_reverse);
}

static bool unwrap(jinja_render *r, const sorted *items, size_t n, jinja_value *out)
{
    jinja_list *l = jinja_list_create(r, n, JINJA_IS_LIST);
    for (size_t i = 0; l && i < n; i++)
        l->items[i] = items[i].value;
    return give_list(out, l);
}

FILTER(sort)
{
    jinja_list *items;
    sorted *s;
    (void)args;
    return jinja_iterate(r, a[0], &items) &&
           sort_items(r, items, a[3], (jinja_value){0}, jinja_truth_arg(a[2], false),
                      jinja_truth_arg(a[1], false), true, &s) &&
           unwrap(r, s, items->n, out);
}

FILTER(dictsort)
{
    jinja_value pairs;
    sorted *s;
    const jinja_text *by = NULL;
    if (a[0].type != JINJA_DICT)
        return jinja_fail(r, "dictsort of a '%s'; allowed: a mapping", jinja_type_name(a[0]));
    if ((a[2].type != JINJA_ABSENT && !jinja_text_arg(r, a[2], "by", &by)) ||
        !items(r, a, args, &pairs))
        return false;
    if (by && !jinja_text_is(by, "key") && !jinja_text_is(by, "value"))
        return jinja_fail(r, "dictsort can be by \"key\" or \"value\"");
    jinja_value place = jinja_int(by && jinja_text_is(by, "value"));
    pairs.as.list->kind = JINJA_IS_LIST;
    return sort_items(r, pairs.as.list, place, (jinja_value){0}, jinja_truth_arg(a[1], false),
                      jinja_truth_arg(a[3], false), false, &s) &&
           unwrap(r, s, pairs.as.list->n, out);
}

static bool extreme(jinja_render *r, const jinja_value *a, bool is_max, jinja_value *out)
{
    jinja_list *items;
    jinja_value best = {0}, key, v;
    *out = jinja_undefined(NULL);
    if (!jinja_iterate(r, a[0], &items))
        return false;
    for (size_t i = 0; i < items->n; i++) {
        bool is_better = i == 0;
        if (!jinja_attribute_path(r, items->items[i], a[2], (jinja_value){0}, &v) ||
            !fold(r, v, jinja_truth_arg(a[1], false), &key) ||
            (i > 0 && !jinja_less(r, is_max ? best : key, is_max ? key : best, &is_better)))
            return false;
        if (is_better) {
            best = key;
            *out = items->items[i];
        }
    }
    return true;
}

FILTER(min)
{
    (void)args;
    return extreme(r, a, false, out);
}

FILTER(max)
{
    (void)args;
    return extreme(r, a, true, out);
}

FILTER(unique)
{
    jinja_list *items, *l = generator(r);
    jinja_dict *seen = jinja_dict_create(r);
    (void)args;
    if (!l || !seen || !jinja_iterate(r, a[0], &items))
        return false;
    for (size_t i = 0; i < items->n; i++) {
        jinja_value v, key, *found;
        if (!jinja_attribute_path(r, items->items[i], a[2], (jinja_value){0}, &v) ||
            !fold(r, v, jinja_truth_arg(a[1], false), &key) ||
            !jinja_dict_find(r, seen, key, &found))
            return false;
        if (!found && (!jinja_dict_set(r, seen, key, jinja_none()) ||
                       !jinja_list_append(r, l, items->items[i])))
            return false;
    }
    return give_list(out, l);
}

FILTER(groupby)
{
    jinja_list *items, *groups = jinja_list_create(r, 0, JINJA_IS_LIST);
    jinja_value fallback = a[2];
    bool is_sensitive = jinja_truth_arg(a[3], false);
    sorted *s;
    (void)args;
    if (!groups || !jinja_iterate(r, a[0], &items) ||
        !sort_items(r, items, a[1], fallback, is_sensitive, false, false, &s))
        return false;
    for (size_t i = 0, end; i < items->n; i = end) {
        bool is_equal = true;
        jinja_value key, members, group;
        for (end = i + 1; end < items->n; end++) {
            if (!jinja_equal(r, s[i].key, s[end].key, &is_equal))
                return false;
            if (!is_equal)
                break;
        }
        if (!jinja_attribute_path(r, s[i].value, a[1], fallback, &key) ||
            !unwrap(r, s + i, end - i, &members) || !pair_of(r, &group, key, members) ||
            !jinja_list_append(r, groups, group))
            return false;
        group.as.list->is_group = true;
    }
    return give_list(out, groups);
}

FILTER(sum)
{
    jinja_list *items;
    (void)args;
    if (!jinja_iterate(r, a[0], &items))
        return false;
    *out = a[2].type == JINJA_ABSENT ? jinja_int(0) : a[2];
    if (out->type == JINJA_TEXT)
        return jinja_fail(r, "sum() can't sum strings");
    for (size_t i = 0; i < items->n; i++) {
        jinja_value v;
        if (!jinja_attribute_path(r, items->items[i], a[1], (jinja_value){0}, &v) ||
            !jinja_binary(r, OP_ADD, *out, v, out))
            return false;
    }
    return true;
}

/* -- cutting into lists ------------------------------------------------------------------------ */

FILTER(batch)
{
    jinja_list *items, *l = generator(r);
    int64_t n;
    (void)args;
    if (!l || !jinja_iterate(r, a[0], &items) || !jinja_int_arg(r, a[1], 0, "linecount", &n))
        return false;
    if (n < 1 || n > (int64_t)TD_JINJA_RANGE_MAX)
        return jinja_fail(r, "batches of %lld; allowed: 1..%u", (long long)n, TD_JINJA_RANGE_MAX);
    bool is_filled = a[2].type != JINJA_ABSENT && a[2].type != JINJA_NONE;
    for (size_t i = 0; i < items->n; i += (size_t)n) {
        size_t n_left = items->n - i, n_here = n_left < (size_t)n ? n_left : (size_t)n;
        jinja_list *one = jinja_list_create(r, is_filled ? (size_t)n : n_here, JINJA_IS_LIST);
        for (size_t k = 0; one && k < one->n; k++)
            one->items[k] = k < n_here ? items->items[i + k] : a[2];
        if (!one || !jinja_list_append(r, l, jinja_of_list(one)))
            return false;
    }
    return give_list(out, l);
}

FILTER(slice)
{
    jinja_list *items, *l = generator(r);
    int64_t n;
    (void)args;
    if (!l || !jinja_iterate(r, a[0], &items) || !jinja_int_arg(r, a[1], 0, "slices", &n))
        return false;
    if (n < 1 || n > (int64_t)TD_JINJA_RANGE_MAX)
        return jinja_fail(r, "%lld slices; allowed: 1..%u", (long long)n, TD_JINJA_RANGE_MAX);
    bool is_filled = a[2].type != JINJA_ABSENT && a[2].type != JINJA_NONE;
    size_t each = items->n / (size_t)n, n_extra = items->n % (size_t)n;
    for (size_t i = 0, at = 0; i < (size_t)n; i++) {
        size_t n_here = each + (i < n_extra);
        bool is_short = is_filled && i >= n_extra;
        jinja_list *one = jinja_list_create(r, n_here + is_short, JINJA_IS_LIST);
        for (size_t k = 0; one && k < one->n; k++)
            one->items[k] = k < n_here ? items->items[at + k] : a[2];
        if (!one || !jinja_list_append(r, l, jinja_of_list(one)))
            return false;
        at += n_here;
    }
    return give_list(out, l);
}

/* -- with another filter or a test ------------------------------------------------------------- */

static const jinja_value *named(const jinja_args *args, const char *name)
{
    for (size_t i = 0; i < args->n_named; i++)
        if (jinja_text_is(args->named[i].name, name))
            return &args->named[i].value;
    return NULL;
}

/* The builtin that argument i names, and its own arguments after that. */
static bool find_named(jinja_render *r, const jinja_args *args, size_t i, bool is_filter,
                       const jinja_builtin **b, jinja_args *rest)
{
    const jinja_text *name;
    *rest = *args;
    rest->items += i + 1;
    rest->n -= i + 1;
    if (!jinja_text_arg(r, args->items[i], is_filter ? "a filter's name" : "a test's name", &name))
        return false;
    *b = is_filter ? jinja_find_filter(name) : jinja_find_test(name);
    return *b || jinja_fail(r, "there is no %s \"%.*s\"", is_filter ? "filter" : "test",
                            (int)(name->n & 0x3f), name->bytes);
}

FILTER(map)
{
    jinja_list *items, *l = generator(r);
    const jinja_builtin *b = NULL;
    jinja_args rest;
    const jinja_value *attribute = args->n ? NULL : named(args, "attribute");
    const jinja_value *fallback = named(args, "default");
    if (!l)
        return false;
    if (!jinja_truth(a[0])) /* nothing is not gone through */
        return give_list(out, l);
    if (!attribute && args->n == 0)
        return jinja_fail(r, "map requires a filter argument");
    if (attribute && args->n_named > 1u + (fallback != NULL))
        return jinja_fail(r, "map takes attribute and default alone by name");
    if ((!attribute && !find_named(r, args, 0, true, &b, &rest)) || !jinja_iterate(r, a[0], &items))
        return false;
    for (size_t i = 0; i < items->n; i++) {
        jinja_value v;
        if (!(attribute ? jinja_attribute_path(r, items->items[i], *attribute,
                                               fallback ? *fallback : (jinja_value){0}, &v)
                        : jinja_run_builtin(r, b, items->items[i], &rest, &v)) ||
            !jinja_list_append(r, l, v))
            return false;
    }
    return give_list(out, l);
}

/* What passes a test, or does not; of the items or of an attribute of theirs. */
static bool choose(jinja_render *r, const jinja_value *a, const jinja_args *args, bool by_attribute,
                   bool is_wanted, jinja_value *out)
{
    jinja_list *items, *l = generator(r);
    const jinja_builtin *b = NULL;
    jinja_args rest;
    size_t at = by_attribute;
    if (!l)
        return false;
    if (!jinja_truth(a[0]))
        return give_list(out, l);
    if (args->n < at)
        return jinja_fail(r, "missing parameter for attribute name");
    if ((args->n > at && !find_named(r, args, at, false, &b, &rest)) ||
        !jinja_iterate(r, a[0], &items))
        return false;
    for (size_t i = 0; i < items->n; i++) {
        jinja_value v = items->items[i], answer;
        if (by_attribute && !jinja_attribute_path(r, v, args->items[0], (jinja_value){0}, &v))
            return false;
        answer = v;
        if (b && !jinja_run_builtin(r, b, v, &rest, &answer))
            return false;
        if (jinja_truth(answer) == is_wanted && !jinja_list_append(r, l, items->items[i]))
            return false;
    }
    return give_list(out, l);
}

FILTER(select_items) { return choose(r, a, args, false, true, out); }

FILTER(reject_items) { return choose(r, a, args, false, false, out); }

FILTER(selectattr) { return choose(r, a, args, true, true, out); }

FILTER(rejectattr) { return choose(r, a, args, true, false, out); }

static const jinja_builtin rows[] = {
    {"length", length, 0, false, {NULL}},
    {"count", length, 0, false, {NULL}},
    {"list", list, 0, false, {NULL}},
    {"first", first, 0, false, {NULL}},
    {"last", last, 0, false, {NULL}},
    {"join", join, 0, false, {"d", "attribute"}},
    {"default", default_to, 0, false, {"default_value", "boolean"}},
    {"d", default_to, 0, false, {"default_value", "boolean"}},
    {"items", items, 0, false, {NULL}},
    {"reverse", reverse, 0, false, {NULL}},
    {"attr", attr, 1, false, {"name"}},
    {"sort", sort, 0, false, {"reverse", "case_sensitive", "attribute"}},
    {"dictsort", dictsort, 0, false, {"case_sensitive", "by", "reverse"}},
    {"min", min, 0, false, {"case_sensitive", "attribute"}},
    {"max", max, 0, false, {"case_sensitive", "attribute"}},
    {"unique", unique, 0, false, {"case_sensitive", "attribute"}},
    {"groupby", groupby, 1, false, {"attribute", "default", "case_sensitive"}},
    {"sum", sum, 0, false, {"attribute", "start"}},
    {"batch", batch, 1, false, {"linecount", "fill_with"}},
    {"slice", slice, 1, false, {"slices", "fill_with"}},
    {"map", map, 0, true, {NULL}},
    {"select", select_items, 0, true, {NULL}},
    {"reject", reject_items, 0, true, {NULL}},
    {"selectattr", selectattr, 0, true, {NULL}},
    {"rejectattr", rejectattr, 0, true, {NULL}},
};

const jinja_builtin *jinja_list_filters(size_t *n)
{
    *n = sizeof rows / sizeof rows[0];
    return rows;
}
