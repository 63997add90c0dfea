/* Filters that give texts and numbers. */
#include "model/chat/strings.h"
#include "model/chat/text.h"

#include "model/unicode.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILTER(function)                                                                           \
    static bool function(jinja_render *r, const jinja_value *a, const jinja_args *args,            \
                         jinja_value *out)

static bool give_text(jinja_value *out, const jinja_text *t)
{
    *out = jinja_of_text(t);
    return t != NULL;
}

/* -- cutting and changing ---------------------------------------------------------------------- */

FILTER(trim)
{
    const jinja_text *t;
    (void)args;
    return jinja_to_text(r, a[0], &t) &&
           give_text(out, jinja_strip(r, t, a[1], JINJA_LEFT | JINJA_RIGHT));
}

static bool change_case(jinja_render *r, jinja_value v, jinja_case to, jinja_value *out)
{
    const jinja_text *t;
    return jinja_to_text(r, v, &t) && give_text(out, jinja_change_case(r, t, to));
}

FILTER(upper)
{
    (void)args;
    return change_case(r, a[0], JINJA_UPPER, out);
}

FILTER(lower)
{
    (void)args;
    return change_case(r, a[0], JINJA_LOWER, out);
}

FILTER(title)
{
    (void)args;
    return change_case(r, a[0], JINJA_WORDS, out);
}

FILTER(capitalize)
{
    (void)args;
    return change_case(r, a[0], JINJA_CAPITALIZE, out);
}

FILTER(replace)
{
    const jinja_text *t, *old, *new;
    int64_t n_max;
    (void)args;
    if (!jinja_to_text(r, a[0], &t) || !jinja_to_text(r, a[1], &old) ||
        !jinja_to_text(r, a[2], &new) || !jinja_int_arg(r, a[3], -1, "count", &n_max))
        return false;
    const jinja_text *done = jinja_replace(r, t, old, new, n_max < 0 ? SIZE_MAX : (size_t)n_max);
    return done && give_text(out, done->is_markup ? jinja_text_markup(r, done, false) : done);
}

FILTER(string)
{
    const jinja_text *t;
    (void)args;
    return jinja_to_text(r, a[0], &t) && give_text(out, t);
}

FILTER(safe)
{
    const jinja_text *t;
    (void)args;
    return jinja_to_text(r, a[0], &t) && give_text(out, jinja_text_markup(r, t, true));
}

static bool escape_text(jinja_render *r, const jinja_text *t, jinja_value *out)
{
    static const struct {
        char c;
        const char *to;
    } rows[] = {{'&', "&amp;"}, {'<', "&lt;"}, {'>', "&gt;"}, {'"', "&#34;"}, {'\'', "&#39;"}};
    jinja_buffer *b = jinja_buffer_create(r);
    for (size_t i = 0; b && i < t->n; i++) {
        const char *to = NULL;
        for (size_t k = 0; k < sizeof rows / sizeof rows[0]; k++)
            if (rows[k].c == t->bytes[i])
                to = rows[k].to;
        if (!(to ? jinja_append(r, b, to, strlen(to), jinja_text_mark_at(t, i))
                 : jinja_append_part(r, b, t, i, 1)))
            return false;
    }
    const jinja_text *done = b && jinja_charge(r, t->n / 4) ? jinja_buffer_text(r, b) : NULL;
    return done && give_text(out, jinja_text_markup(r, done, true));
}

FILTER(escape)
{
    const jinja_text *t;
    (void)args;
    if (!jinja_to_text(r, a[0], &t))
        return false;
    return t->is_markup ? give_text(out, t) : escape_text(r, t, out);
}

FILTER(forceescape)
{
    const jinja_text *t;
    (void)args;
    return jinja_to_text(r, a[0], &t) && escape_text(r, t, out);
}

FILTER(indent)
{
    int64_t width = 4;
    (void)args;
    const jinja_text *t, *by = a[1].type == JINJA_TEXT ? a[1].as.text : NULL;
    if (!jinja_text_arg(r, a[0], "what is indented", &t) ||
        (!by && !jinja_int_arg(r, a[1], 4, "width", &width)))
        return false;
    if (!by)
        by = jinja_pad(r, jinja_text_literal(r, ""), width, NULL, JINJA_LEFT);
    bool is_first = jinja_truth_arg(a[2], false), is_blank = jinja_truth_arg(a[3], false);
    jinja_buffer *b = jinja_buffer_create(r);
    const jinja_text *line_break = jinja_text_literal(r, "\n");
    const jinja_text *all = line_break ? jinja_text_concat(r, t, line_break) : NULL;
    jinja_list *lines = all ? jinja_split_lines(r, all, false) : NULL;
    if (!by || !b || !lines)
        return false;
    for (size_t i = 0; i < lines->n; i++) {
        const jinja_text *line = lines->items[i].as.text;
        bool is_indented = i == 0 ? is_first : is_blank || line->n > 0;
        if ((i > 0 && !jinja_append_text(r, b, line_break)) ||
            (is_indented && !jinja_append_text(r, b, by)) || !jinja_append_text(r, b, line))
            return false;
    }
    return give_text(out, jinja_buffer_text(r, b));
}

FILTER(center)
{
    const jinja_text *t;
    int64_t width;
    (void)args;
    return jinja_to_text(r, a[0], &t) && jinja_int_arg(r, a[1], 80, "width", &width) &&
           give_text(out, jinja_pad(r, t, width, NULL, JINJA_LEFT | JINJA_RIGHT));
}

FILTER(truncate)
{
    const jinja_text *t, *end = NULL;
    int64_t length, leeway;
    (void)args;
    size_t n_items = 0;
    if (!jinja_int_arg(r, a[1], 255, "length", &length) ||
        (a[3].type != JINJA_ABSENT && !jinja_text_arg(r, a[3], "end", &end)) ||
        !jinja_int_arg(r, a[4], 5, "leeway", &leeway))
        return false;
    if (!end && !(end = jinja_text_literal(r, "...")))
        return false;
    if (length < (int64_t)end->n_chars || leeway < 0 || length > INT32_MAX || leeway > INT32_MAX)
        return jinja_fail(r, "a length of %lld with a leeway of %lld; allowed: %zu.. and 0..",
                          (long long)length, (long long)leeway, end->n_chars);
    if (!jinja_length(r, a[0], &n_items))
        return false;
    if ((int64_t)n_items <= length + leeway) {
        *out = a[0];
        return true;
    }
    if (!jinja_text_arg(r, a[0], "what is truncated", &t))
        return false;
    size_t n = jinja_text_offset(t, (size_t)length - end->n_chars);
    if (!jinja_truth_arg(a[2], false)) { /* up to the last space, if there is one */
        size_t space = n;
        while (space > 0 && t->bytes[space - 1] != ' ')
            space--;
        n = space > 0 ? space - 1 : n;
    }
    const jinja_text *part = jinja_text_part(r, t, 0, n);
    return part && jinja_charge(r, n / 16) && give_text(out, jinja_text_concat(r, part, end));
}

FILTER(format)
{
    const jinja_text *t;
    if (!jinja_to_text(r, a[0], &t))
        return false;
    if (args->n > 0 && args->n_named > 0)
        return jinja_fail(r, "arguments by place and by name at the same time");
    if (args->n_named > 0) {
        jinja_dict *d = jinja_dict_create(r);
        for (size_t i = 0; d && i < args->n_named; i++)
            if (!jinja_dict_set(r, d, jinja_of_text(args->named[i].name), args->named[i].value))
                return false;
        return d &&
               jinja_format_percent(r, t, (jinja_value){.type = JINJA_DICT, .as.dict = d}, out);
    }
    jinja_list *l = jinja_list_create(r, args->n, JINJA_IS_TUPLE);
    if (l && args->n > 0)
        memcpy(l->items, args->items, args->n * sizeof l->items[0]);
    return l && jinja_format_percent(r, t, jinja_of_list(l), out);
}

static bool encode_url(jinja_render *r, jinja_buffer *b, jinja_value v, bool is_query)
{
    const jinja_text *t;
    if (!jinja_to_text(r, v, &t) || !jinja_charge(r, t->n / 4))
        return false;
    for (size_t i = 0; i < t->n; i++) {
        unsigned char c = (unsigned char)t->bytes[i];
        bool is_kept = (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') ||
                       (c && strchr("_.-~", c)) || (c == '/' && !is_query);
        char hex[4];
        snprintf(hex, sizeof hex, is_query && c == ' ' ? "+" : "%%%02X", c);
        if (!(is_kept ? jinja_append_part(r, b, t, i, 1)
                      : jinja_append(r, b, hex, strlen(hex), jinja_text_mark_at(t, i))))
            return false;
    }
    return true;
}

/* A text; or pairs, as a query has them. */
FILTER(urlencode)
{
    static const jinja_text items_name = {.bytes = "items", .n = 5, .n_chars = 5};
    jinja_buffer *b = jinja_buffer_create(r);
    jinja_list *pairs, *pair;
    jinja_value all = a[0];
    (void)args;
    bool is_plain =
        a[0].type != JINJA_LIST && a[0].type != JINJA_DICT && a[0].type != JINJA_UNDEFINED;
    if (!b || (is_plain && !encode_url(r, b, a[0], false)))
        return false;
    if (is_plain)
        return give_text(out, jinja_buffer_text(r, b));
    if ((all.type == JINJA_DICT && !jinja_run_builtin(r, jinja_find_method(all, &items_name), a[0],
                                                      &(jinja_args){0}, &all)) ||
        !jinja_iterate(r, all, &pairs))
        return false;
    for (size_t i = 0; i < pairs->n; i++) {
        if (!jinja_iterate(r, pairs->items[i], &pair))
            return false;
        if (pair->n != 2)
            return jinja_fail(r, "urlencode of %zu values; allowed: pairs", pair->n);
        if ((i > 0 && !jinja_append(r, b, "&", 1, false)) ||
            !encode_url(r, b, pair->items[0], true) || !jinja_append(r, b, "=", 1, false) ||
            !encode_url(r, b, pair->items[1], true))
            return false;
    }
    return give_text(out, jinja_buffer_text(r, b));
}

FILTER(wordcount)
{
    const jinja_text *t;
    int64_t n = 0;
    bool is_inside = false;
    (void)args;
    if (!jinja_to_text(r, a[0], &t))
        return false;
    for (size_t i = 0; i < t->n;) {
        uint32_t c = jinja_text_next(t, &i);
        bool is_word = c == '_' || td_unicode_class(c) & (TD_CLASS_LETTER | TD_CLASS_NUMBER);
        n += is_word && !is_inside;
        is_inside = is_word;
    }
    *out = jinja_int(n);
    return jinja_charge(r, t->n / 4);
}

/* -- JSON -------------------------------------------------------------------------------------- */

static bool read_separators(jinja_render *r, jinja_value v, jinja_json_style *style)
{
    jinja_list *pair;
    if (v.type == JINJA_ABSENT || v.type == JINJA_NONE)
        return true;
    if (!jinja_iterate(r, v, &pair))
        return false;
    if (pair->n != 2)
        return jinja_fail(r, "separators has %zu items; allowed: 2", pair->n);
    return jinja_text_arg(r, pair->items[0], "a separator", &style->item_separator) &&
           jinja_text_arg(r, pair->items[1], "a separator", &style->key_separator);
}

FILTER(tojson)
{
    jinja_json_style style = {.is_ascii = jinja_truth_arg(a[1], false),
                              .is_sorted = jinja_truth_arg(a[4], false)};
    jinja_buffer *b = jinja_buffer_create(r);
    int64_t width = 0;
    (void)args;
    if (a[2].type == JINJA_TEXT) {
        style.indent = a[2].as.text;
    } else if (a[2].type != JINJA_ABSENT && a[2].type != JINJA_NONE) {
        if (!jinja_int_arg(r, a[2], 0, "indent", &width))
            return false;
        style.indent = jinja_pad(r, jinja_text_literal(r, ""), width, NULL, JINJA_LEFT);
        if (!style.indent)
            return false;
    }
    style.item_separator = jinja_text_literal(r, style.indent ? "," : ", ");
    style.key_separator = jinja_text_literal(r, ": ");
    if (!b || !style.item_separator || !style.key_separator || !read_separators(r, a[3], &style) ||
        !jinja_write_json(r, b, a[0], &style))
        return false;
    jinja_buffer_blend(b, 0);
    return give_text(out, jinja_buffer_text(r, b));
}

/* -- numbers ----------------------------------------------------------------------------------- */

/* A text with digits in it as a terminated copy without white space around it. */
static bool number_text(jinja_render *r, const jinja_text *t, char *out, size_t size)
{
    const jinja_text *s = jinja_strip(r, t, jinja_none(), JINJA_LEFT | JINJA_RIGHT);
    size_t n = 0;
    if (!s)
        return false;
    out[0] = 0;
    for (size_t i = 0; i < s->n; i++) {
        bool is_between = s->bytes[i] == '_' && i > 0 && i + 1 < s->n && s->bytes[i - 1] != '_' &&
                          s->bytes[i + 1] != '_';
        if (is_between)
            continue;
        if (n + 1 >= size || !s->bytes[i]) {
            out[0] = 0; /* no number */
            return true;
        }
        out[n++] = s->bytes[i];
    }
    out[n] = 0;
    return true;
}

static bool read_real(const char *s, double *d)
{
    char *end;
    bool is_hex = strpbrk(s, "xX(") != NULL;
    *d = is_hex ? 0 : strtod(s, &end);
    return !is_hex && *s && !strchr(" \t\n\r\f\v", *s) && *end == 0;
}

/* A text as an integer of a base, with a prefix like 0x where that fits. False: it is none. */
static bool read_whole(const char *s, int64_t base, int64_t *i)
{
    const char *digits = s + (*s == '-' || *s == '+');
    char prefix = digits[0] == '0' ? (char)(digits[1] | 0x20) : 0;
    int of = prefix == 'x' ? 16 : prefix == 'o' ? 8 : prefix == 'b' ? 2 : 0;
    bool is_prefixed = of && (base == of || base == 0);
    char text[128], *end;
    if (base == 0 && !is_prefixed)
        base = 10;
    snprintf(text, sizeof text, "%.1s%s", digits > s ? s : "", digits + (is_prefixed ? 2 : 0));
    const char *first = text + (digits > s);
    errno = 0;
    *i = strtoll(text, &end, is_prefixed ? of : (int)base);
    bool is_digit =
        (*first >= '0' && *first <= '9') || ((*first | 0x20) >= 'a' && (*first | 0x20) <= 'z');
    return is_digit && *end == 0 && errno != ERANGE;
}

FILTER(to_int)
{
    char s[128];
    int64_t base, i = 0;
    double d = NAN;
    (void)args;
    *out = a[1].type == JINJA_ABSENT ? jinja_int(0) : a[1];
    if (!jinja_int_arg(r, a[2], 10, "base", &base))
        return false;
    if (base != 0 && (base < 2 || base > 36))
        return jinja_fail(r, "a base of %lld; allowed: 0, 2..36", (long long)base);
    if (a[0].type == JINJA_TEXT) {
        if (!number_text(r, a[0].as.text, s, sizeof s))
            return false;
        if (read_whole(s, base, &i)) {
            *out = jinja_int(i);
            out->is_message = jinja_text_is_message(a[0].as.text);
            return true;
        }
        if (!read_real(s, &d))
            return true;
    } else if (a[0].type == JINJA_INT || a[0].type == JINJA_BOOL) {
        *out = jinja_int(a[0].type == JINJA_INT ? a[0].as.integer : a[0].as.truth);
        out->is_message = a[0].is_message;
        return true;
    } else if (a[0].type == JINJA_FLOAT) {
        d = a[0].as.real;
    } else if (a[0].type == JINJA_UNDEFINED) {
        return jinja_fail(r, "an undefined value as a number");
    } else {
        return true;
    }
    if (isnan(d))
        return true;
    if (isinf(d) || d >= 9223372036854775808.0 || d < -9223372036854775808.0)
        return jinja_fail(r, "an integer beyond 64 bits");
    *out = jinja_int((int64_t)d);
    out->is_message = jinja_is_message(r, a[0]);
    return true;
}

FILTER(to_float)
{
    char s[128];
    double d;
    (void)args;
    *out = a[1].type == JINJA_ABSENT ? jinja_float(0) : a[1];
    if (a[0].type == JINJA_UNDEFINED)
        return jinja_fail(r, "an undefined value as a number");
    if (jinja_is_number(a[0])) {
        *out = jinja_float(jinja_as_double(a[0]));
        out->is_message = a[0].is_message;
    } else if (a[0].type == JINJA_TEXT) {
        if (!number_text(r, a[0].as.text, s, sizeof s))
            return false;
        if (read_real(s, &d)) {
            *out = jinja_float(d);
            out->is_message = jinja_text_is_message(a[0].as.text);
        }
    }
    return true;
}

FILTER(absolute)
{
    (void)args;
    if (!jinja_is_number(a[0]))
        return jinja_fail(r, "bad operand type for abs(): '%s'", jinja_type_name(a[0]));
    if (a[0].type == JINJA_FLOAT)
        *out = jinja_float(fabs(a[0].as.real));
    else if (jinja_as_double(a[0]) < 0)
        return jinja_binary(r, OP_SUB, jinja_int(0), a[0], out);
    else
        *out = jinja_int(a[0].type == JINJA_INT ? a[0].as.integer : a[0].as.truth);
    out->is_message = a[0].is_message;
    return true;
}

/* To a number of decimals, halves of what is written to the even one, as printf rounds. */
static double round_decimals(double d, int64_t precision)
{
    char text[400];
    if (!(fabs(d) < 1e300) || precision > 300)
        return d;
    if (precision < 0) {
        double unit = pow(10, (double)-precision);
        return rint(d / unit) * unit;
    }
    snprintf(text, sizeof text, "%.*f", (int)precision, d);
    return strlen(text) + 1 < sizeof text ? strtod(text, NULL) : d;
}

FILTER(rounded)
{
    int64_t precision;
    const jinja_text *method = NULL;
    (void)args;
    if (!jinja_int_arg(r, a[1], 0, "precision", &precision) ||
        (a[2].type != JINJA_ABSENT && !jinja_text_arg(r, a[2], "method", &method)))
        return false;
    bool is_common = !method || jinja_text_is(method, "common");
    if (!is_common && !jinja_text_is(method, "ceil") && !jinja_text_is(method, "floor"))
        return jinja_fail(r, "method must be common, ceil or floor");
    if (!jinja_is_number(a[0]))
        return jinja_fail(r, "round of a '%s'", jinja_type_name(a[0]));
    double d = jinja_as_double(a[0]), unit = pow(10, (double)precision);
    if (is_common && a[0].type != JINJA_FLOAT && precision >= 0)
        *out = jinja_int(a[0].type == JINJA_INT ? a[0].as.integer : a[0].as.truth);
    else if (is_common && a[0].type != JINJA_FLOAT)
        *out = jinja_int((int64_t)round_decimals(d, precision));
    else if (is_common)
        *out = jinja_float(round_decimals(d, precision));
    else
        *out = jinja_float((method->bytes[0] == 'c' ? ceil(d * unit) : floor(d * unit)) / unit);
    out->is_message = a[0].is_message;
    return true;
}

FILTER(filesizeformat)
{
    static const char *const units[] = {"", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"};
    static const char *const binary[] = {"",    "KiB", "MiB", "GiB", "TiB",
                                         "PiB", "EiB", "ZiB", "YiB"};
    char text[64];
    jinja_value v;
    bool is_binary = jinja_truth_arg(a[1], false);
    double base = is_binary ? 1024 : 1000;
    if (!to_float(r, (const jinja_value[]){a[0], jinja_none()}, args, &v))
        return false;
    if (v.type != JINJA_FLOAT)
        return jinja_fail(r, "a '%s' that is no number", jinja_type_name(a[0]));
    double d = jinja_as_double(v);
    size_t i = 0;
    if (fabs(d - 1) < 1e-300)
        snprintf(text, sizeof text, "1 Byte");
    else if (d < base)
        snprintf(text, sizeof text, "%d Bytes", (int)d);
    else {
        for (; i < 8 && d >= base; i++)
            d /= base;
        snprintf(text, sizeof text, "%.1f %s", d, is_binary ? binary[i] : units[i]);
    }
    jinja_buffer *b = jinja_buffer_create(r);
    return b && jinja_append(r, b, text, strlen(text), v.is_message) &&
           give_text(out, jinja_buffer_text(r, b));
}

static const jinja_builtin rows[] = {
    {"trim", trim, 0, false, {"chars"}},
    {"tojson", tojson, 0, false, {"ensure_ascii", "indent", "separators", "sort_keys"}},
    {"string", string, 0, false, {NULL}},
    {"upper", upper, 0, false, {NULL}},
    {"lower", lower, 0, false, {NULL}},
    {"title", title, 0, false, {NULL}},
    {"capitalize", capitalize, 0, false, {NULL}},
    {"replace", replace, 2, false, {"old", "new", "count"}},
    {"safe", safe, 0, false, {NULL}},
    {"escape", escape, 0, false, {NULL}},
    {"e", escape, 0, false, {NULL}},
    {"forceescape", forceescape, 0, false, {NULL}},
    {"indent", indent, 0, false, {"width", "first", "blank"}},
    {"center", center, 0, false, {"width"}},
    {"truncate", truncate, 0, false, {"length", "killwords", "end", "leeway"}},
    {"format", format, 0, true, {NULL}},
    {"urlencode", urlencode, 0, false, {NULL}},
    {"wordcount", wordcount, 0, false, {NULL}},
    {"int", to_int, 0, false, {"default", "base"}},
    {"float", to_float, 0, false, {"default"}},
    {"abs", absolute, 0, false, {NULL}},
    {"round", rounded, 0, false, {"precision", "method"}},
    {"filesizeformat", filesizeformat, 0, false, {"binary"}},
};

const jinja_builtin *jinja_text_filters(size_t *n)
{
    *n = sizeof rows / sizeof rows[0];
    return rows;
}
