#include "model/chat/strings.h"

#include "model/chat/text.h"

#include "model/unicode.h"
#include "model/unicode_case.h"

#include <string.h>

/* The code point that ends before byte *i (> 0), which moves back to its start. */
static uint32_t previous(const jinja_text *t, size_t *i)
{
    do
        --*i;
    while (*i > 0 && ((unsigned char)t->bytes[*i] & 0xc0) == 0x80);
    size_t at = *i;
    return jinja_text_next(t, &at);
}

static bool is_stripped(uint32_t c, const jinja_text *chars)
{
    if (!chars)
        return td_unicode_is_strippable(c);
    for (size_t i = 0; i < chars->n;)
        if (jinja_text_next(chars, &i) == c)
            return true;
    return false;
}

const jinja_text *jinja_strip(jinja_render *r, const jinja_text *t, jinja_value chars, int sides)
{
    const jinja_text *set = NULL;
    size_t from = 0, to = t->n;
    if (chars.type != JINJA_ABSENT && chars.type != JINJA_NONE &&
        !jinja_text_arg(r, chars, "what is stripped", &set))
        return NULL;
    for (size_t next = from; (sides & JINJA_LEFT) && from < to; from = next)
        if (!is_stripped(jinja_text_next(t, &next), set))
            break;
    for (size_t before = to; (sides & JINJA_RIGHT) && to > from; to = before)
        if (!is_stripped(previous(t, &before), set))
            break;
    return jinja_charge(r, (t->n - (to - from)) * (set ? set->n / 4 + 1 : 1) / 4)
               ? jinja_text_part(r, t, from, to - from)
               : NULL;
}

size_t jinja_text_find_last(const jinja_text *t, const jinja_text *needle, size_t limit)
{
    for (size_t at = limit + 1; at-- > needle->n;)
        if (jinja_has_at(t, needle, at - needle->n))
            return at - needle->n;
    return needle->n == 0 ? 0 : needle->n <= limit && jinja_has_at(t, needle, 0) ? 0 : SIZE_MAX;
}

bool jinja_has_at(const jinja_text *t, const jinja_text *part, size_t at)
{
    return at <= t->n && t->n - at >= part->n &&
           (part->n == 0 || memcmp(t->bytes + at, part->bytes, part->n) == 0);
}

/* -- splitting --------------------------------------------------------------------------------- */

static bool add_part(jinja_render *r, jinja_list *l, const jinja_text *t, size_t from, size_t to)
{
    const jinja_text *part = jinja_text_part(r, t, from, to - from);
    return part && jinja_charge(r, 1) && jinja_list_append(r, l, jinja_of_text(part));
}

static void reverse(jinja_list *l)
{
    for (size_t i = 0; i < l->n / 2; i++) {
        jinja_value v = l->items[i];
        l->items[i] = l->items[l->n - 1 - i];
        l->items[l->n - 1 - i] = v;
    }
}

static bool split_words(jinja_render *r, jinja_list *l, const jinja_text *t, size_t n_max)
{
    size_t at = 0;
    for (;;) {
        size_t next = at;
        while (at < t->n && td_unicode_is_strippable(jinja_text_next(t, &next)))
            at = next;
        if (at >= t->n)
            return true;
        if (l->n == n_max) /* the rest, with the white space at its end */
            return add_part(r, l, t, at, t->n);
        size_t end = at;
        for (next = at; end < t->n && !td_unicode_is_strippable(jinja_text_next(t, &next));)
            end = next;
        if (!add_part(r, l, t, at, end))
            return false;
        at = end;
    }
}

static bool split_words_right(jinja_render *r, jinja_list *l, const jinja_text *t, size_t n_max)
{
    size_t at = t->n;
    for (;;) {
        size_t before = at;
        while (at > 0 && td_unicode_is_strippable(previous(t, &before)))
            at = before;
        if (at == 0)
            break;
        size_t begin = at;
        if (l->n == n_max)
            begin = 0;
        for (before = at; begin > 0 && !td_unicode_is_strippable(previous(t, &before));)
            begin = before;
        if (!add_part(r, l, t, begin, at))
            return false;
        at = begin;
        if (l->n > n_max)
            break;
    }
    reverse(l);
    return true;
}

static bool split_at(jinja_render *r, jinja_list *l, const jinja_text *t, const jinja_text *by,
                     size_t n_max)
{
    size_t from = 0;
    while (l->n < n_max) {
        size_t at = jinja_text_find(t, by, from);
        if (at == SIZE_MAX)
            break;
        if (!add_part(r, l, t, from, at))
            return false;
        from = at + by->n;
    }
    return add_part(r, l, t, from, t->n);
}

static bool split_at_right(jinja_render *r, jinja_list *l, const jinja_text *t,
                           const jinja_text *by, size_t n_max)
{
    size_t to = t->n;
    while (l->n < n_max) {
        size_t at = jinja_text_find_last(t, by, to);
        if (at == SIZE_MAX)
            break;
        if (!add_part(r, l, t, at + by->n, to))
            return false;
        to = at;
    }
    if (!add_part(r, l, t, 0, to))
        return false;
    reverse(l);
    return true;
}

jinja_list *jinja_split(jinja_render *r, const jinja_text *t, const jinja_text *separator,
                        size_t n_max, bool from_right)
{
    jinja_list *l = jinja_list_create(r, 0, JINJA_IS_LIST);
    if (!l || !jinja_charge(r, t->n / 4))
        return NULL;
    if (separator && separator->n == 0) {
        jinja_fail(r, "empty separator");
        return NULL;
    }
    bool is_ok = separator && from_right ? split_at_right(r, l, t, separator, n_max)
                 : separator             ? split_at(r, l, t, separator, n_max)
                 : from_right            ? split_words_right(r, l, t, n_max)
                                         : split_words(r, l, t, n_max);
    return is_ok ? l : NULL;
}

static bool is_line_end(uint32_t c)
{
    return (c >= '\n' && c <= '\r') || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 ||
           c == 0x2029;
}

jinja_list *jinja_split_lines(jinja_render *r, const jinja_text *t, bool keeps_ends)
{
    jinja_list *l = jinja_list_create(r, 0, JINJA_IS_LIST);
    if (!l || !jinja_charge(r, t->n / 4))
        return NULL;
    for (size_t from = 0; from < t->n;) {
        size_t end = from, next = from;
        uint32_t c = 0;
        while (end < t->n && !is_line_end(c = jinja_text_next(t, &next)))
            end = next;
        if (c == '\r' && next < t->n && t->bytes[next] == '\n')
            next++;
        if (!add_part(r, l, t, from, keeps_ends ? next : end))
            return NULL;
        from = next;
    }
    return l;
}

/* -- changing ---------------------------------------------------------------------------------- */

const jinja_text *jinja_replace(jinja_render *r, const jinja_text *t, const jinja_text *old,
                                const jinja_text *new, size_t n_max)
{
    jinja_buffer *b = jinja_buffer_create(r);
    size_t from = 0, n_done = 0;
    if (!b || !jinja_charge(r, t->n / 16))
        return NULL;
    if (old->n == 0) { /* before every character and at the end */
        for (; n_done < n_max; n_done++) {
            size_t next = from;
            if (!jinja_append_text(r, b, new) || !jinja_charge(r, 1))
                return NULL;
            if (from == t->n) {
                n_done++;
                break;
            }
            jinja_text_next(t, &next);
            if (!jinja_append_part(r, b, t, from, next - from))
                return NULL;
            from = next;
        }
    }
    for (; old->n > 0 && n_done < n_max; n_done++) {
        size_t at = jinja_text_find(t, old, from);
        if (at == SIZE_MAX)
            break;
        if (!jinja_append_part(r, b, t, from, at - from) || !jinja_append_text(r, b, new) ||
            !jinja_charge(r, 1))
            return NULL;
        from = at + old->n;
    }
    if (n_done == 0)
        return t;
    return jinja_append_part(r, b, t, from, t->n - from) ? jinja_buffer_text(r, b) : NULL;
}

const jinja_text *jinja_pad(jinja_render *r, const jinja_text *t, int64_t width,
                            const jinja_text *fill, int sides)
{
    if (width <= (int64_t)t->n_chars)
        return t;
    if (width > (int64_t)TD_JINJA_TEXT_MAX) {
        jinja_fail(r, "a width of %lld; allowed: %u", (long long)width, TD_JINJA_TEXT_MAX);
        return NULL;
    }
    size_t n = (size_t)width - t->n_chars;
    /* Of an odd number the one more goes left, unless the width is even. */
    size_t n_left = sides == JINJA_LEFT    ? n
                    : sides == JINJA_RIGHT ? 0
                                           : n / 2 + (n & (size_t)width & 1);
    jinja_buffer *b = jinja_buffer_create(r);
    const jinja_text *with = fill ? fill : jinja_text_literal(r, " ");
    for (size_t i = 0; b && with && i <= n; i++) {
        if ((i == n_left && !jinja_append_text(r, b, t)) ||
            (i < n && !jinja_append_text(r, b, with)) || !jinja_charge(r, 1))
            return NULL;
    }
    return b && with ? jinja_buffer_text(r, b) : NULL;
}

/* Letters whose upper case is more than one: of the title, too, with the rest small. */
static const struct {
    uint32_t c;
    const char *upper, *title;
} long_cases[] = {
    {0xdf, "SS", "Ss"},     {0x149, "\u02bcN", "\u02bcN"}, {0x1f0, "J\u030c", "J\u030c"},
    {0xfb00, "FF", "Ff"},   {0xfb01, "FI", "Fi"},          {0xfb02, "FL", "Fl"},
    {0xfb03, "FFI", "Ffi"}, {0xfb04, "FFL", "Ffl"},        {0xfb05, "ST", "St"},
    {0xfb06, "ST", "St"},
};

static bool append_case(jinja_render *r, jinja_buffer *b, uint32_t c, jinja_case to, bool mark)
{
    for (size_t i = 0; to != JINJA_LOWER && i < sizeof long_cases / sizeof long_cases[0]; i++) {
        const char *s = to == JINJA_UPPER ? long_cases[i].upper : long_cases[i].title;
        if (long_cases[i].c == c)
            return jinja_append(r, b, s, strlen(s), mark);
    }
    if (to == JINJA_LOWER && c == 0x130)
        return jinja_append(r, b, "i\u0307", 3, mark);
    return jinja_append_char(r, b,
                             to == JINJA_UPPER   ? td_unicode_upper(c)
                             : to == JINJA_LOWER ? td_unicode_lower(c)
                                                 : td_unicode_title(c),
                             mark);
}

/* A capital sigma at the end of a word is small another way. */
static bool is_final_sigma(const jinja_text *t, size_t at, size_t next)
{
    size_t before = at;
    if (at == 0 || !td_unicode_is_cased(previous(t, &before)))
        return false;
    return next >= t->n || !td_unicode_is_cased(jinja_text_next(t, &next));
}

static bool begins_word(uint32_t before)
{
    return before == '-' || before == '(' || before == '{' || before == '[' || before == '<' ||
           td_unicode_is_strippable(before);
}

const jinja_text *jinja_change_case(jinja_render *r, const jinja_text *t, jinja_case to)
{
    jinja_buffer *b = jinja_buffer_create(r);
    uint32_t before = ' ';
    if (!b || !jinja_charge(r, t->n / 4))
        return NULL;
    for (size_t i = 0; i < t->n;) {
        size_t at = i;
        bool mark = jinja_text_mark_at(t, i);
        uint32_t c = jinja_text_next(t, &i);
        jinja_case one = to;
        if (to == JINJA_CAPITALIZE)
            one = at == 0 ? JINJA_TITLE : JINJA_LOWER;
        else if (to == JINJA_TITLE)
            one = td_unicode_is_cased(before) ? JINJA_LOWER : JINJA_TITLE;
        else if (to == JINJA_WORDS)
            one = begins_word(before) ? JINJA_UPPER : JINJA_LOWER;
        else if (to == JINJA_SWAP)
            one = td_unicode_is_upper(c) ? JINJA_LOWER : JINJA_UPPER;
        if (to == JINJA_SWAP && !td_unicode_is_cased(c)) {
            if (!jinja_append_part(r, b, t, at, i - at))
                return NULL;
        } else if (one == JINJA_LOWER && c == 0x3a3 && is_final_sigma(t, at, i)) {
            if (!jinja_append(r, b, "\u03c2", 2, mark))
                return NULL;
        } else if (!append_case(r, b, c, one, mark)) {
            return NULL;
        }
        before = c;
    }
    const jinja_text *changed = jinja_buffer_text(r, b);
    return changed && t->is_markup ? jinja_text_markup(r, changed, true) : changed;
}

bool jinja_is_case(const jinja_text *t, jinja_case c)
{
    bool has_one = false, has_other = false;
    for (size_t i = 0; i < t->n;) {
        uint32_t point = jinja_text_next(t, &i);
        has_one |= c == JINJA_UPPER ? td_unicode_is_upper(point) : td_unicode_is_lower(point);
        has_other |= c == JINJA_UPPER ? td_unicode_is_lower(point) : td_unicode_is_upper(point);
    }
    return has_one && !has_other;
}
