/* The filter tojson: JSON as Python's json.dumps writes it, nothing escaped for HTML. */
#include "model/chat/render.h"
#include "model/chat/strings.h"
#include "model/chat/text.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    jinja_render *r;
    jinja_buffer *b;
    const jinja_json_style *style;
    size_t depth;
} writer;

static bool put(writer *w, const char *s) { return jinja_append(w->r, w->b, s, strlen(s), false); }

static bool write_string(writer *w, const jinja_text *t)
{
    bool is_ok = jinja_charge(w->r, t->n / 4) && put(w, "\"");
    for (size_t i = 0; is_ok && i < t->n;) {
        size_t from = i;
        uint32_t c = jinja_text_next(t, &i);
        char escape[16] = {0};
        if (c == '"' || c == '\\')
            snprintf(escape, sizeof escape, "\\%c", (char)c);
        else if (c == '\n' || c == '\r' || c == '\t' || c == '\b' || c == '\f')
            snprintf(escape, sizeof escape, "\\%c",
                     c == '\n'   ? 'n'
                     : c == '\r' ? 'r'
                     : c == '\t' ? 't'
                     : c == '\b' ? 'b'
                                 : 'f');
        else if (c < 0x20 || (w->style->is_ascii && c > 0x7e && c < 0x10000))
            snprintf(escape, sizeof escape, "\\u%04x", c);
        else if (w->style->is_ascii && c >= 0x10000)
            snprintf(escape, sizeof escape, "\\u%04x\\u%04x", 0xd800 + ((c - 0x10000) >> 10),
                     0xdc00 + ((c - 0x10000) & 0x3ff));
        is_ok = escape[0]
                    ? jinja_append(w->r, w->b, escape, strlen(escape), jinja_text_mark_at(t, from))
                    : jinja_append_part(w->r, w->b, t, from, i - from);
    }
    return is_ok && put(w, "\"");
}

static bool write_line_break(writer *w)
{
    if (!w->style->indent)
        return true;
    bool is_ok = put(w, "\n");
    for (size_t i = 0; is_ok && i < w->depth; i++)
        is_ok = jinja_append_text(w->r, w->b, w->style->indent);
    return is_ok;
}

static bool write_value(writer *w, jinja_value v);

static bool write_list(writer *w, const jinja_list *l)
{
    bool is_ok = put(w, "[");
    w->depth++;
    for (size_t i = 0; is_ok && i < l->n; i++)
        is_ok = (i == 0 || jinja_append_text(w->r, w->b, w->style->item_separator)) &&
                write_line_break(w) && write_value(w, l->items[i]);
    w->depth--;
    return is_ok && (l->n == 0 || write_line_break(w)) && put(w, "]");
}

/* Keys that are no texts are written as if they were. */
static bool write_key(writer *w, jinja_value key)
{
    if (key.type == JINJA_TEXT)
        return write_string(w, key.as.text);
    if (key.type < JINJA_NONE || key.type > JINJA_FLOAT)
        return jinja_fail(w->r, "keys must be str, int, float, bool or None, not %s",
                          jinja_type_name(key));
    return put(w, "\"") && write_value(w, key) && put(w, "\"");
}

/* Positions of the pairs by key, by insertion into place by halves. */
static bool order_pairs(writer *w, const jinja_dict *d, const jinja_pair **order)
{
    for (size_t i = 0; i < d->n; i++) {
        size_t low = 0, high = i;
        while (w->style->is_sorted && low < high) {
            size_t middle = low + (high - low) / 2;
            bool is_less;
            if (!jinja_less(w->r, d->pairs[i].key, order[middle]->key, &is_less))
                return false;
            if (is_less)
                high = middle;
            else
                low = middle + 1;
        }
        size_t at = w->style->is_sorted ? low : i;
        memmove(order + at + 1, order + at, (i - at) * sizeof order[0]);
        order[at] = &d->pairs[i];
        if (!jinja_charge(w->r, (i - at) / 8))
            return false;
    }
    return true;
}

static bool write_dict(writer *w, const jinja_dict *d)
{
    const jinja_pair **order = jinja_alloc(w->r, d->n + 1, sizeof order[0]);
    bool is_ok = order && order_pairs(w, d, order) && put(w, "{");
    w->depth++;
    for (size_t i = 0; is_ok && i < d->n; i++)
        is_ok = (i == 0 || jinja_append_text(w->r, w->b, w->style->item_separator)) &&
                write_line_break(w) && write_key(w, order[i]->key) &&
                jinja_append_text(w->r, w->b, w->style->key_separator) &&
                write_value(w, order[i]->value);
    w->depth--;
    return is_ok && (d->n == 0 || write_line_break(w)) && put(w, "}");
}

static bool write_value(writer *w, jinja_value v)
{
    bool is_ok;
    switch (v.type) {
    case JINJA_NONE:
        return jinja_append(w->r, w->b, "null", 4, v.is_message);
    case JINJA_BOOL:
        return jinja_append(w->r, w->b, v.as.truth ? "true" : "false", v.as.truth ? 4 : 5,
                            v.is_message);
    case JINJA_FLOAT:
        if (!isnan(v.as.real) && !isinf(v.as.real))
            return jinja_print(w->r, w->b, v, true);
        return put(w, isnan(v.as.real) ? "NaN" : v.as.real < 0 ? "-Infinity" : "Infinity");
    case JINJA_INT:
        return jinja_print(w->r, w->b, v, true);
    case JINJA_TEXT:
        return write_string(w, v.as.text);
    case JINJA_LIST:
    case JINJA_DICT:
        if ((v.type == JINJA_LIST && v.as.list->kind > JINJA_IS_TUPLE) || !jinja_enter(w->r))
            break;
        is_ok = v.type == JINJA_LIST ? write_list(w, v.as.list) : write_dict(w, v.as.dict);
        jinja_leave(w->r);
        return is_ok;
    default:
        break;
    }
    return jinja_fail(w->r, "Object of type %s is not JSON serializable", jinja_type_name(v));
}

bool jinja_write_json(jinja_render *r, jinja_buffer *b, jinja_value v,
                      const jinja_json_style *style)
{
    writer w = {r, b, style, 0};
    return write_value(&w, v);
}
