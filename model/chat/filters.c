/* Where a filter is looked up; and attributes as filters take them. */
#include "model/chat/render.h"
#include "model/chat/text.h"

const jinja_builtin *jinja_find_filter(const jinja_text *name)
{
    size_t n_texts, n_lists;
    const jinja_builtin *texts = jinja_text_filters(&n_texts),
                        *lists = jinja_list_filters(&n_lists);
    const jinja_builtin *b = jinja_find_in(texts, n_texts, name);
    return b ? b : jinja_find_in(lists, n_lists, name);
}

/* A part of a path: digits are a place. */
static jinja_value path_part(const jinja_text *part)
{
    int64_t i = 0;
    for (size_t k = 0; k < part->n; k++) {
        if (part->bytes[k] < '0' || part->bytes[k] > '9' || part->n > 15)
            return jinja_of_text(part);
        i = 10 * i + (part->bytes[k] - '0');
    }
    return part->n > 0 ? jinja_int(i) : jinja_of_text(part);
}

bool jinja_attribute_path(jinja_render *r, jinja_value item, jinja_value path, jinja_value fallback,
                          jinja_value *out)
{
    *out = item;
    if (path.type == JINJA_ABSENT || path.type == JINJA_NONE)
        return true;
    const jinja_text *t = path.type == JINJA_TEXT ? path.as.text : NULL;
    for (size_t from = 0;; from++) {
        size_t to = from;
        while (t && to < t->n && t->bytes[to] != '.')
            to++;
        const jinja_text *part = t ? jinja_text_part(r, t, from, to - from) : NULL;
        if ((t && !part) || !jinja_charge(r, 1) ||
            !jinja_get_item(r, *out, part ? path_part(part) : path, out))
            return false;
        if (out->type == JINJA_UNDEFINED && fallback.type != JINJA_ABSENT &&
            fallback.type != JINJA_NONE)
            *out = fallback;
        from = to;
        if (!t || to == t->n)
            return true;
    }
}
