/* Texts. Counting, cutting and finding work on bytes; where the language counts characters, a text
 * of bytes alone (n == n_chars) needs no walk. */
#include "model/chat/text.h"

#include "model/chat/render.h"

#include "base/utf8.h"

#include <string.h>

size_t jinja_count_chars(const char *bytes, size_t n)
{
    size_t n_chars = 0;
    for (size_t i = 0; i < n; i++)
        n_chars += ((unsigned char)bytes[i] & 0xc0) != 0x80;
    return n_chars;
}

const jinja_text *jinja_text_create(jinja_render *r, const char *bytes, size_t n, bool is_message)
{
    jinja_text *t = jinja_alloc(r, 1, sizeof *t);
    if (!t || !jinja_charge(r, n / 64))
        return NULL;
    *t = (jinja_text){
        .bytes = bytes, .n = n, .n_chars = jinja_count_chars(bytes, n), .is_message = is_message};
    return t;
}

const jinja_text *jinja_text_literal(jinja_render *r, const char *s)
{
    return jinja_text_create(r, s, strlen(s), false);
}

const jinja_text *jinja_text_part(jinja_render *r, const jinja_text *t, size_t from, size_t n)
{
    if (from == 0 && n == t->n)
        return t;
    jinja_text *part = jinja_alloc(r, 1, sizeof *part);
    if (!part || !jinja_charge(r, n / 64))
        return NULL;
    *part = (jinja_text){.bytes = t->bytes + from,
                         .marks = t->marks ? t->marks + from : NULL,
                         .n = n,
                         .n_chars = t->n == t->n_chars ? n : jinja_count_chars(t->bytes + from, n),
                         .is_message = t->is_message,
                         .is_markup = t->is_markup};
    return part;
}

const jinja_text *jinja_text_concat(jinja_render *r, const jinja_text *a, const jinja_text *b)
{
    if (b->n == 0 && a->is_markup == b->is_markup)
        return a;
    jinja_buffer *tail = a->tail;
    bool is_at_end = tail && a->bytes + a->n == tail->bytes + tail->n;
    if (!is_at_end) {
        tail = jinja_buffer_create(r);
        if (!tail || !jinja_append_text(r, tail, a))
            return NULL;
    }
    if (!jinja_append_text(r, tail, b))
        return NULL;
    jinja_text *t = jinja_alloc(r, 1, sizeof *t);
    if (t) /* a->bytes is old where the buffer has moved: a text ends where its buffer did */
        *t = (jinja_text){.bytes = tail->bytes + tail->n - a->n - b->n,
                          .marks = tail->marks + tail->n - a->n - b->n,
                          .n = a->n + b->n,
                          .n_chars = a->n_chars + b->n_chars,
                          .tail = tail,
                          .is_markup = a->is_markup || b->is_markup};
    return t;
}

const jinja_text *jinja_text_markup(jinja_render *r, const jinja_text *t, bool is_markup)
{
    jinja_text *copy = jinja_alloc(r, 1, sizeof *copy);
    if (copy) {
        *copy = *t;
        copy->is_markup = is_markup;
    }
    return copy;
}

bool jinja_text_is(const jinja_text *t, const char *s)
{
    size_t n = strlen(s);
    return t->n == n && memcmp(t->bytes, s, n) == 0;
}

bool jinja_text_mark_at(const jinja_text *t, size_t i)
{
    return t->marks ? t->marks[i] : t->is_message;
}

bool jinja_text_is_message(const jinja_text *t)
{
    return t->marks ? t->n > 0 && memchr(t->marks, 1, t->n) != NULL : t->is_message;
}

size_t jinja_text_offset(const jinja_text *t, size_t i_char)
{
    if (t->n == t->n_chars)
        return i_char;
    size_t i = 0;
    for (; i < t->n && i_char > 0; i_char--)
        do
            i++;
        while (i < t->n && ((unsigned char)t->bytes[i] & 0xc0) == 0x80);
    return i;
}

uint32_t jinja_text_next(const jinja_text *t, size_t *i)
{
    uint32_t codepoint;
    unsigned char first = (unsigned char)t->bytes[*i];
    if (first < 0x80) {
        ++*i;
        return first;
    }
    *i += td_utf8_next(t->bytes + *i, t->n - *i, &codepoint);
    return codepoint <= 0x10ffff ? codepoint : TD_UTF8_REPLACEMENT;
}

size_t jinja_text_find(const jinja_text *t, const jinja_text *needle, size_t from)
{
    if (needle->n > t->n || from > t->n - needle->n)
        return SIZE_MAX;
    if (needle->n == 0)
        return from;
    const char *at = needle->n == 1 /* reads no further than it must, under a sanitizer too */
                         ? memchr(t->bytes + from, needle->bytes[0], t->n - from)
                         : memmem(t->bytes + from, t->n - from, needle->bytes, needle->n);
    return at ? (size_t)(at - t->bytes) : SIZE_MAX;
}

int jinja_text_compare(const jinja_text *a, const jinja_text *b)
{
    size_t n = a->n < b->n ? a->n : b->n;
    int order = n ? memcmp(a->bytes, b->bytes, n) : 0; /* UTF-8 is in the order of code points */
    return order ? order : (a->n > b->n) - (a->n < b->n);
}
