/* Methods of texts, dicts, lists and loops. Those that would change a dict or a list are not there,
 * as in the sandbox that publishers use. */
#include "model/chat/render.h"
#include "model/chat/strings.h"
#include "model/chat/text.h"

#include "model/unicode.h"
#include "model/unicode_case.h"

#include <string.h>

#define METHOD(function)                                                                           \
    static bool function(jinja_render *r, const jinja_value *a, const jinja_args *args,            \
                         jinja_value *out)

static bool give_text(jinja_value *out, const jinja_text *t)
{
    *out = jinja_of_text(t);
    return t != NULL;
}

/* -- texts: cutting ---------------------------------------------------------------------------- */

METHOD(strip)
{
    (void)args;
    return give_text(out, jinja_strip(r, a[0].as.text, a[1], JINJA_LEFT | JINJA_RIGHT));
}

METHOD(lstrip)
{
    (void)args;
    return give_text(out, jinja_strip(r, a[0].as.text, a[1], JINJA_LEFT));
}

METHOD(rstrip)
{
    (void)args;
    return give_text(out, jinja_strip(r, a[0].as.text, a[1], JINJA_RIGHT));
}

static bool split_with(jinja_render *r, const jinja_value *a, bool from_right, jinja_value *out)
{
    int64_t n_max;
    const jinja_text *separator = NULL;
    if (!jinja_int_arg(r, a[2], -1, "maxsplit", &n_max))
        return false;
    if (a[1].type != JINJA_ABSENT && a[1].type != JINJA_NONE &&
        !jinja_text_arg(r, a[1], "sep", &separator))
        return false;
    jinja_list *l =
        jinja_split(r, a[0].as.text, separator, n_max < 0 ? SIZE_MAX : (size_t)n_max, from_right);
    *out = jinja_of_list(l);
    return l != NULL;
}

METHOD(split)
{
    (void)args;
    return split_with(r, a, false, out);
}

METHOD(rsplit)
{
    (void)args;
    return split_with(r, a, true, out);
}

METHOD(splitlines)
{
    (void)args;
    jinja_list *l = jinja_split_lines(r, a[0].as.text, jinja_truth_arg(a[1], false));
    *out = jinja_of_list(l);
    return l != NULL;
}

static bool partition_at(jinja_render *r, const jinja_value *a, bool from_right, jinja_value *out)
{
    const jinja_text *t = a[0].as.text, *separator;
    if (!jinja_text_arg(r, a[1], "sep", &separator))
        return false;
    if (separator->n == 0)
        return jinja_fail(r, "empty separator");
    jinja_list *l = jinja_list_create(r, 3, JINJA_IS_TUPLE);
    const jinja_text *empty = jinja_text_literal(r, "");
    size_t at =
        from_right ? jinja_text_find_last(t, separator, t->n) : jinja_text_find(t, separator, 0);
    if (!l || !empty || !jinja_charge(r, t->n / 16))
        return false;
    const jinja_text *parts[3] = {from_right ? empty : t, empty, from_right ? t : empty};
    if (at != SIZE_MAX) {
        parts[0] = jinja_text_part(r, t, 0, at);
        parts[1] = separator;
        parts[2] = jinja_text_part(r, t, at + separator->n, t->n - at - separator->n);
    }
    for (size_t i = 0; i < 3; i++)
        if (!give_text(&l->items[i], parts[i]))
            return false;
    *out = jinja_of_list(l);
    return true;
}

METHOD(partition)
{
    (void)args;
    return partition_at(r, a, false, out);
}

METHOD(rpartition)
{
    (void)args;
    return partition_at(r, a, true, out);
}

static bool remove_affix(jinja_render *r, const jinja_value *a, bool is_prefix, jinja_value *out)
{
    const jinja_text *t = a[0].as.text, *affix;
    if (!jinja_text_arg(r, a[1], "the argument", &affix))
        return false;
    bool has = affix->n > 0 && jinja_has_at(t, affix, is_prefix ? 0 : t->n - affix->n);
    size_t n = has ? affix->n : 0;
    return give_text(out, jinja_text_part(r, t, is_prefix ? n : 0, t->n - n));
}

METHOD(removeprefix)
{
    (void)args;
    return remove_affix(r, a, true, out);
}

METHOD(removesuffix)
{
    (void)args;
    return remove_affix(r, a, false, out);
}

/* -- texts: finding ---------------------------------------------------------------------------- */

/* The part of a text that start and end, in characters, leave; *from is where it begins. False in
 * *is_there for a start behind the end. */
static bool window(jinja_render *r, const jinja_value *a, const jinja_text **part, size_t *from,
                   bool *is_there)
{
    const jinja_text *t = a[0].as.text;
    int64_t n = (int64_t)t->n_chars, start, end;
    if (!jinja_int_arg(r, a[2], 0, "start", &start) || !jinja_int_arg(r, a[3], n, "end", &end))
        return false;
    start = start < 0 ? (start + n < 0 ? 0 : start + n) : start;
    end = end < 0 ? (end + n < 0 ? 0 : end + n) : end > n ? n : end;
    *is_there = start <= end;
    *from = 0;
    if (!*is_there)
        start = end = 0;
    size_t begin = jinja_text_offset(t, (size_t)start);
    *from = begin;
    *part = jinja_text_part(r, t, begin, jinja_text_offset(t, (size_t)end) - begin);
    return *part && jinja_charge(r, t->n / 16);
}

static bool has_affix(jinja_render *r, const jinja_value *a, bool is_prefix, jinja_value *out)
{
    const jinja_text *t, *affix;
    size_t from;
    bool is_there, is_found = false;
    jinja_value one = a[1];
    jinja_list single = {.items = &one, .n = 1}, *all = &single;
    if (!window(r, a, &t, &from, &is_there))
        return false;
    if (a[1].type == JINJA_LIST && a[1].as.list->kind == JINJA_IS_TUPLE)
        all = a[1].as.list;
    for (size_t i = 0; i < all->n && !is_found; i++) {
        if (!jinja_text_arg(r, all->items[i], "the first argument", &affix))
            return false;
        is_found = is_there && jinja_has_at(t, affix, is_prefix ? 0 : t->n - affix->n);
    }
    *out = jinja_bool(is_found);
    return true;
}

METHOD(startswith)
{
    (void)args;
    return has_affix(r, a, true, out);
}

METHOD(endswith)
{
    (void)args;
    return has_affix(r, a, false, out);
}

static bool find_place(jinja_render *r, const jinja_value *a, bool is_last, bool must,
                       jinja_value *out)
{
    const jinja_text *t, *needle;
    size_t from, at = SIZE_MAX;
    bool is_there;
    if (!window(r, a, &t, &from, &is_there) || !jinja_text_arg(r, a[1], "the argument", &needle))
        return false;
    if (is_last && !jinja_charge(r, t->n / 4))
        return false;
    if (is_there)
        at = is_last ? jinja_text_find_last(t, needle, t->n) : jinja_text_find(t, needle, 0);
    if (at == SIZE_MAX && must)
        return jinja_fail(r, "substring not found");
    *out =
        jinja_int(at == SIZE_MAX ? -1 : (int64_t)jinja_count_chars(a[0].as.text->bytes, from + at));
    return true;
}

METHOD(find)
{
    (void)args;
    return find_place(r, a, false, false, out);
}

METHOD(rfind)
{
    (void)args;
    return find_place(r, a, true, false, out);
}

METHOD(index_of)
{
    (void)args;
    return find_place(r, a, false, true, out);
}

METHOD(count_text)
{
    const jinja_text *t, *needle;
    size_t from;
    bool is_there;
    int64_t n = 0;
    (void)args;
    if (!window(r, a, &t, &from, &is_there) || !jinja_text_arg(r, a[1], "the argument", &needle))
        return false;
    for (size_t at = 0; is_there && needle->n > 0; n++) {
        at = jinja_text_find(t, needle, at);
        if (at == SIZE_MAX)
            break;
        at += needle->n;
    }
    *out = jinja_int(is_there && needle->n == 0 ? (int64_t)t->n_chars + 1 : n);
    return true;
}

/* -- texts: changing --------------------------------------------------------------------------- */

METHOD(upper)
{
    (void)args;
    return give_text(out, jinja_change_case(r, a[0].as.text, JINJA_UPPER));
}

METHOD(lower)
{
    (void)args;
    return give_text(out, jinja_change_case(r, a[0].as.text, JINJA_LOWER));
}

METHOD(title)
{
    (void)args;
    return give_text(out, jinja_change_case(r, a[0].as.text, JINJA_TITLE));
}

METHOD(capitalize)
{
    (void)args;
    return give_text(out, jinja_change_case(r, a[0].as.text, JINJA_CAPITALIZE));
}

METHOD(swapcase)
{
    (void)args;
    return give_text(out, jinja_change_case(r, a[0].as.text, JINJA_SWAP));
}

METHOD(replace)
{
    const jinja_text *old, *new;
    int64_t n_max;
    (void)args;
    return jinja_text_arg(r, a[1], "the first argument", &old) &&
           jinja_text_arg(r, a[2], "the second argument", &new) &&
           jinja_int_arg(r, a[3], -1, "count", &n_max) &&
           give_text(
               out, jinja_replace(r, a[0].as.text, old, new, n_max < 0 ? SIZE_MAX : (size_t)n_max));
}

METHOD(join)
{
    (void)args;
    jinja_list *items;
    jinja_buffer *b = jinja_buffer_create(r);
    if (!b || !jinja_iterate(r, a[1], &items))
        return false;
    for (size_t i = 0; i < items->n; i++) {
        const jinja_text *t;
        if (!jinja_text_arg(r, items->items[i], "an item that is joined", &t) ||
            !jinja_charge(r, 1) || (i > 0 && !jinja_append_text(r, b, a[0].as.text)) ||
            !jinja_append_text(r, b, t))
            return false;
    }
    return give_text(out, jinja_buffer_text(r, b));
}

/* Fills up to `width` characters: left of the text, right of it, or both. */
static bool pad(jinja_render *r, const jinja_value *a, int sides, jinja_value *out)
{
    const jinja_text *t = a[0].as.text, *fill = NULL;
    int64_t width;
    if (!jinja_int_arg(r, a[1], 0, "width", &width) ||
        (a[2].type != JINJA_ABSENT && !jinja_text_arg(r, a[2], "fillchar", &fill)))
        return false;
    if (fill && fill->n_chars != 1)
        return jinja_fail(r, "the fill character must be exactly one character long");
    return give_text(out, jinja_pad(r, t, width, fill, sides));
}

METHOD(ljust)
{
    (void)args;
    return pad(r, a, JINJA_RIGHT, out);
}

METHOD(rjust)
{
    (void)args;
    return pad(r, a, JINJA_LEFT, out);
}

METHOD(center)
{
    (void)args;
    return pad(r, a, JINJA_LEFT | JINJA_RIGHT, out);
}

METHOD(zfill)
{
    const jinja_text *t = a[0].as.text;
    int64_t width;
    (void)args;
    if (!jinja_int_arg(r, a[1], 0, "width", &width))
        return false;
    size_t n_sign = t->n > 0 && (t->bytes[0] == '-' || t->bytes[0] == '+');
    const jinja_text *zero = jinja_text_literal(r, "0"), *sign = jinja_text_part(r, t, 0, n_sign),
                     *rest = jinja_text_part(r, t, n_sign, t->n - n_sign);
    if (!zero || !sign || !rest)
        return false;
    rest = jinja_pad(r, rest, width < 0 ? 0 : width - (int64_t)n_sign, zero, JINJA_LEFT);
    return rest && give_text(out, jinja_text_concat(r, sign, rest));
}

METHOD(format) { return give_text(out, jinja_format_braces(r, a[0].as.text, args)); }

/* -- texts: asking ----------------------------------------------------------------------------- */

typedef enum { ALPHA, DIGIT, ALNUM, SPACE, PRINTABLE, ASCII } char_class;

static bool is_of(uint32_t c, char_class class)
{
    uint32_t bits = td_unicode_class(c);
    switch (class) {
    case ALPHA:
        return bits & TD_CLASS_LETTER;
    case DIGIT:
        return td_unicode_is_decimal(c);
    case ALNUM:
        return bits & (TD_CLASS_LETTER | TD_CLASS_NUMBER);
    case SPACE:
        return td_unicode_is_strippable(c);
    case PRINTABLE:
        return td_unicode_is_printable(c);
    default:
        return c < 0x80;
    }
}

static bool ask_all(jinja_render *r, const jinja_text *t, char_class class, jinja_value *out)
{
    bool is_so = t->n > 0 || class >= PRINTABLE;
    for (size_t i = 0; i < t->n && is_so;)
        is_so = is_of(jinja_text_next(t, &i), class);
    *out = jinja_bool(is_so);
    return jinja_charge(r, t->n / 4);
}

#define ASK(function, class)                                                                       \
    METHOD(function)                                                                               \
    {                                                                                              \
        (void)args;                                                                                \
        return ask_all(r, a[0].as.text, class, out);                                               \
    }
ASK(ask_alpha, ALPHA)
ASK(ask_digit, DIGIT)
ASK(ask_alnum, ALNUM)
ASK(ask_space, SPACE)
ASK(ask_printable, PRINTABLE)
ASK(ask_ascii, ASCII)

METHOD(ask_upper)
{
    (void)args;
    *out = jinja_bool(jinja_is_case(a[0].as.text, JINJA_UPPER));
    return jinja_charge(r, a[0].as.text->n);
}

METHOD(ask_lower)
{
    (void)args;
    *out = jinja_bool(jinja_is_case(a[0].as.text, JINJA_LOWER));
    return jinja_charge(r, a[0].as.text->n);
}

/* -- dicts, lists, loops ----------------------------------------------------------------------- */

METHOD(get)
{
    jinja_value *found;
    (void)args;
    if (!jinja_dict_find(r, a[0].as.dict, a[1], &found))
        return false;
    *out = found ? *found : a[2].type == JINJA_ABSENT ? jinja_none() : a[2];
    return true;
}

static bool view(jinja_render *r, const jinja_dict *d, const char *name, jinja_value *out)
{
    jinja_list *l = jinja_list_create(r, d->n, JINJA_IS_VIEW);
    bool is_keys = !strcmp(name, "dict_keys"), is_items = !strcmp(name, "dict_items");
    for (size_t i = 0; l && i < d->n; i++) {
        l->items[i] = is_keys ? d->pairs[i].key : d->pairs[i].value;
        if (!is_items)
            continue;
        jinja_list *pair = jinja_list_create(r, 2, JINJA_IS_TUPLE);
        if (!pair)
            return false;
        pair->items[0] = d->pairs[i].key;
        pair->items[1] = d->pairs[i].value;
        l->items[i] = jinja_of_list(pair);
    }
    if (l)
        l->view = name;
    *out = jinja_of_list(l);
    return l != NULL;
}

METHOD(items)
{
    (void)args;
    return view(r, a[0].as.dict, "dict_items", out);
}

METHOD(keys)
{
    (void)args;
    return view(r, a[0].as.dict, "dict_keys", out);
}

METHOD(values)
{
    (void)args;
    return view(r, a[0].as.dict, "dict_values", out);
}

METHOD(copy)
{
    (void)args;
    (void)r;
    *out = a[0]; /* nothing can change either */
    return true;
}

METHOD(list_index)
{
    const jinja_list *l = a[0].as.list;
    bool is_equal = false;
    (void)args;
    for (size_t i = 0; i < l->n; i++) {
        if (!jinja_equal(r, l->items[i], a[1], &is_equal))
            return false;
        if (is_equal) {
            *out = jinja_int((int64_t)i);
            return true;
        }
    }
    return jinja_fail(r, "the value is not in the list");
}

METHOD(list_count)
{
    const jinja_list *l = a[0].as.list;
    int64_t n = 0;
    bool is_equal = false;
    (void)args;
    for (size_t i = 0; i < l->n; i++) {
        if (!jinja_equal(r, l->items[i], a[1], &is_equal))
            return false;
        n += is_equal;
    }
    *out = jinja_int(n);
    return true;
}

METHOD(cycle)
{
    if (args->n == 0)
        return jinja_fail(r, "no items for cycling given");
    *out = args->items[a[0].as.loop->i % args->n];
    return true;
}

METHOD(changed)
{
    jinja_loop *loop = a[0].as.loop;
    jinja_list *l = jinja_list_create(r, args->n, JINJA_IS_TUPLE);
    bool is_same = false;
    if (!l)
        return false;
    if (args->n > 0)
        memcpy(l->items, args->items, args->n * sizeof l->items[0]);
    if (loop->changed.type != JINJA_ABSENT &&
        !jinja_equal(r, loop->changed, jinja_of_list(l), &is_same))
        return false;
    loop->changed = jinja_of_list(l);
    *out = jinja_bool(!is_same);
    return true;
}

static const jinja_builtin text_rows[] = {
    {"split", split, 0, false, {"sep", "maxsplit"}},
    {"strip", strip, 0, false, {""}},
    {"lstrip", lstrip, 0, false, {""}},
    {"rstrip", rstrip, 0, false, {""}},
    {"startswith", startswith, 1, false, {"", "", ""}},
    {"endswith", endswith, 1, false, {"", "", ""}},
    {"replace", replace, 2, false, {"", "", ""}},
    {"format", format, 0, true, {NULL}},
    {"upper", upper, 0, false, {NULL}},
    {"lower", lower, 0, false, {NULL}},
    {"casefold", lower, 0, false, {NULL}},
    {"title", title, 0, false, {NULL}},
    {"capitalize", capitalize, 0, false, {NULL}},
    {"swapcase", swapcase, 0, false, {NULL}},
    {"join", join, 1, false, {""}},
    {"find", find, 1, false, {"", "", ""}},
    {"rfind", rfind, 1, false, {"", "", ""}},
    {"index", index_of, 1, false, {"", "", ""}},
    {"count", count_text, 1, false, {"", "", ""}},
    {"rsplit", rsplit, 0, false, {"sep", "maxsplit"}},
    {"splitlines", splitlines, 0, false, {"keepends"}},
    {"partition", partition, 1, false, {""}},
    {"rpartition", rpartition, 1, false, {""}},
    {"removeprefix", removeprefix, 1, false, {""}},
    {"removesuffix", removesuffix, 1, false, {""}},
    {"ljust", ljust, 1, false, {"", ""}},
    {"rjust", rjust, 1, false, {"", ""}},
    {"center", center, 1, false, {"", ""}},
    {"zfill", zfill, 1, false, {""}},
    {"isalpha", ask_alpha, 0, false, {NULL}},
    {"isdigit", ask_digit, 0, false, {NULL}},
    {"isdecimal", ask_digit, 0, false, {NULL}},
    {"isnumeric", ask_digit, 0, false, {NULL}},
    {"isalnum", ask_alnum, 0, false, {NULL}},
    {"isspace", ask_space, 0, false, {NULL}},
    {"isprintable", ask_printable, 0, false, {NULL}},
    {"isascii", ask_ascii, 0, false, {NULL}},
    {"isupper", ask_upper, 0, false, {NULL}},
    {"islower", ask_lower, 0, false, {NULL}},
};

static const jinja_builtin dict_rows[] = {
    {"get", get, 1, false, {"", ""}}, {"items", items, 0, false, {NULL}},
    {"keys", keys, 0, false, {NULL}}, {"values", values, 0, false, {NULL}},
    {"copy", copy, 0, false, {NULL}},
};

static const jinja_builtin list_rows[] = {
    {"index", list_index, 1, false, {""}},
    {"count", list_count, 1, false, {""}},
    {"copy", copy, 0, false, {NULL}},
};

static const jinja_builtin loop_rows[] = {
    {"cycle", cycle, 0, true, {NULL}},
    {"changed", changed, 0, true, {NULL}},
};

#define ROWS(rows) jinja_find_in(rows, sizeof(rows) / sizeof((rows)[0]), name)

const jinja_builtin *jinja_find_method(jinja_value v, const jinja_text *name)
{
    switch (v.type) {
    case JINJA_TEXT:
        return ROWS(text_rows);
    case JINJA_DICT:
        return ROWS(dict_rows);
    case JINJA_LIST:
        return ROWS(list_rows);
    case JINJA_LOOP:
        return ROWS(loop_rows);
    case JINJA_CALLABLE:
        return v.as.callable->kind == JINJA_CYCLER ? jinja_find_cycler_method(name) : NULL;
    default:
        return NULL;
    }
}
