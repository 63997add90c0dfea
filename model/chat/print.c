/* What printing a value shows: Python's str() and, inside of containers, its repr(). */
#include "model/chat/render.h"
#include "model/chat/text.h"

#include "base/text.h"
#include "model/unicode_case.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool append_literal(jinja_render *r, jinja_buffer *b, const char *s)
{
    return jinja_append(r, b, s, strlen(s), false);
}

/* The shortest digits that read back as the same number; an exponent below -4 and from 16 on. */
size_t jinja_write_double(double d, char out[JINJA_DOUBLE_MAX])
{
    if (isnan(d) || isinf(d))
        return (size_t)snprintf(out, JINJA_DOUBLE_MAX, "%s",
                                isnan(d) ? "nan"
                                : d < 0  ? "-inf"
                                         : "inf");
    char scientific[JINJA_DOUBLE_MAX];
    int precision = 0;
    do
        snprintf(scientific, sizeof scientific, "%.*e", precision, d);
    while (precision++ < 17 && (strtod(scientific, NULL) < d || strtod(scientific, NULL) > d));
    const char *e = strchr(scientific, 'e');
    int exponent = atoi(e + 1), n_digits = precision;
    if (exponent < -4 || exponent >= 16)
        return (size_t)snprintf(out, JINJA_DOUBLE_MAX, "%.*se%c%02d", (int)(e - scientific),
                                scientific, exponent < 0 ? '-' : '+', abs(exponent));
    int n_decimals = n_digits - 1 - exponent;
    return (size_t)snprintf(out, JINJA_DOUBLE_MAX, "%.*f", n_decimals < 1 ? 1 : n_decimals, d);
}

static bool print_quoted(jinja_render *r, jinja_buffer *b, const jinja_text *t)
{
    bool has_single = t->n && memchr(t->bytes, '\'', t->n);
    char quote = has_single && !memchr(t->bytes, '"', t->n) ? '"' : '\'';
    bool is_ok = jinja_charge(r, t->n / 4) && jinja_append(r, b, &quote, 1, false);
    for (size_t i = 0; is_ok && i < t->n;) {
        size_t from = i;
        bool is_message = jinja_text_mark_at(t, i);
        uint32_t c = jinja_text_next(t, &i);
        char escape[16] = {'\\', (char)c, 0};
        if (c == '\n' || c == '\r' || c == '\t')
            escape[1] = c == '\n' ? 'n' : c == '\r' ? 'r' : 't';
        else if (c != '\\' && c != (unsigned char)quote && td_unicode_is_printable(c))
            escape[0] = 0;
        else if (c != '\\' && c != (unsigned char)quote)
            snprintf(escape, sizeof escape,
                     c < 0x100     ? "\\x%02x"
                     : c < 0x10000 ? "\\u%04x"
                                   : "\\U%08x",
                     c);
        is_ok = escape[0] ? jinja_append(r, b, escape, strlen(escape), is_message)
                          : jinja_append_part(r, b, t, from, i - from);
    }
    return is_ok && jinja_append(r, b, &quote, 1, false);
}

static bool print_items(jinja_render *r, jinja_buffer *b, const jinja_list *l)
{
    bool is_tuple = l->kind == JINJA_IS_TUPLE;
    bool is_ok = append_literal(r, b, is_tuple ? "(" : "[");
    for (size_t i = 0; is_ok && i < l->n; i++)
        is_ok = (i == 0 || append_literal(r, b, ", ")) && jinja_print(r, b, l->items[i], true);
    if (is_ok && is_tuple && l->n == 1)
        is_ok = append_literal(r, b, ",");
    return is_ok && append_literal(r, b, is_tuple ? ")" : "]");
}

static bool print_list(jinja_render *r, jinja_buffer *b, const jinja_list *l)
{
    char text[128];
    if (l->kind == JINJA_IS_RANGE) {
        int64_t from = l->n ? l->items[0].as.integer : 0;
        int64_t step = l->n > 1 ? l->items[1].as.integer - from : 1;
        snprintf(text, sizeof text, step == 1 ? "range(%lld, %lld)" : "range(%lld, %lld, %lld)",
                 (long long)from, (long long)(from + (int64_t)l->n * step), (long long)step);
        return append_literal(r, b, text);
    }
    if (l->kind == JINJA_IS_GENERATOR)
        return append_literal(r, b, "<generator object>");
    if (l->kind != JINJA_IS_VIEW)
        return print_items(r, b, l);
    return append_literal(r, b, l->view) && append_literal(r, b, "(") && print_items(r, b, l) &&
           append_literal(r, b, ")");
}

static bool print_dict(jinja_render *r, jinja_buffer *b, const jinja_dict *d)
{
    bool is_ok = append_literal(r, b, "{");
    for (size_t i = 0; is_ok && i < d->n; i++)
        is_ok = (i == 0 || append_literal(r, b, ", ")) &&
                jinja_print(r, b, d->pairs[i].key, true) && append_literal(r, b, ": ") &&
                jinja_print(r, b, d->pairs[i].value, true);
    return is_ok && append_literal(r, b, "}");
}

static bool print_callable(jinja_render *r, jinja_buffer *b, const jinja_callable *c)
{
    if (c->kind != JINJA_MACRO || !c->node->name)
        return append_literal(r, b, c->kind == JINJA_BUILTIN ? "<built-in method>" : "<object>");
    return append_literal(r, b, "<Macro '") && jinja_append_text(r, b, &c->node->name->text) &&
           append_literal(r, b, "'>");
}

static bool print_container(jinja_render *r, jinja_buffer *b, jinja_value v)
{
    size_t from = b->n;
    bool is_ok = jinja_enter(r);
    if (!is_ok)
        return false;
    if (v.type == JINJA_LIST)
        is_ok = print_list(r, b, v.as.list);
    else if (v.type == JINJA_DICT)
        is_ok = print_dict(r, b, v.as.dict);
    else if (v.type == JINJA_NAMESPACE)
        is_ok = append_literal(r, b, "<Namespace ") && print_dict(r, b, v.as.dict) &&
                append_literal(r, b, ">");
    else
        is_ok = print_callable(r, b, v.as.callable);
    jinja_leave(r);
    if (is_ok)
        jinja_buffer_blend(b, from);
    return is_ok;
}

bool jinja_print(jinja_render *r, jinja_buffer *b, jinja_value v, bool is_repr)
{
    char number[JINJA_DOUBLE_MAX + 32];
    int n;
    if (!jinja_charge(r, 1))
        return false;
    switch (v.type) {
    case JINJA_ABSENT:
    case JINJA_UNDEFINED:
        return !is_repr || append_literal(r, b, "Undefined");
    case JINJA_NONE:
        return jinja_append(r, b, "None", 4, v.is_message);
    case JINJA_BOOL:
        return jinja_append(r, b, v.as.truth ? "True" : "False", v.as.truth ? 4 : 5, v.is_message);
    case JINJA_INT:
        n = snprintf(number, sizeof number, "%lld", (long long)v.as.integer);
        return jinja_append(r, b, number, (size_t)n, v.is_message);
    case JINJA_FLOAT:
        return jinja_append(r, b, number, jinja_write_double(v.as.real, number), v.is_message);
    case JINJA_TEXT:
        if (!is_repr)
            return jinja_append_text(r, b, v.as.text);
        return (!v.as.text->is_markup || append_literal(r, b, "Markup(")) &&
               print_quoted(r, b, v.as.text) &&
               (!v.as.text->is_markup || append_literal(r, b, ")"));
    case JINJA_LOOP:
        n = snprintf(number, sizeof number, "<LoopContext %zu/%zu>", v.as.loop->i + 1,
                     v.as.loop->items->n);
        return jinja_append(r, b, number, (size_t)n, false);
    default:
        return print_container(r, b, v);
    }
}

bool jinja_to_text(jinja_render *r, jinja_value v, const jinja_text **out)
{
    *out = v.as.text;
    if (v.type == JINJA_TEXT)
        return true;
    jinja_buffer *b = jinja_buffer_create(r);
    *out = b && jinja_print(r, b, v, false) ? jinja_buffer_text(r, b) : NULL;
    return *out != NULL;
}
