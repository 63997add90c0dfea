/* Variables from JSON. The text has been checked by whoever took it in, so this reads strictly and
 * says little; what it bounds is depth and, as everything, memory. */
#include "model/chat/render.h"
#include "model/chat/text.h"

#include "base/utf8.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    jinja_render *r;
    const char *name, *text;
    size_t n, at;
    uint32_t depth;
    bool is_message;  /* of the texts that are read */
    bool is_messages; /* this is the list of messages */
} reader;

static bool fail(reader *j)
{
    return jinja_fail(j->r, "the variable \"%s\" is no JSON at byte %zu", j->name, j->at);
}

static void skip(reader *j)
{
    while (j->at < j->n && j->text[j->at] && strchr(" \t\r\n", j->text[j->at]))
        j->at++;
}

static bool take(reader *j, char c)
{
    skip(j);
    bool is_there = j->at < j->n && j->text[j->at] == c;
    j->at += is_there;
    return is_there;
}

static bool read_hex(reader *j, uint32_t *c)
{
    *c = 0;
    for (int i = 0; i < 4; i++, j->at++) {
        char d = j->at < j->n ? j->text[j->at] : 0;
        uint32_t digit = d >= '0' && d <= '9' ? (uint32_t)(d - '0')
                         : (d | 0x20) >= 'a' && (d | 0x20) <= 'f'
                             ? (uint32_t)((d | 0x20) - 'a' + 10)
                             : 99;
        if (digit == 99)
            return fail(j);
        *c = *c << 4 | digit;
    }
    return true;
}

static bool read_escape(reader *j, jinja_buffer *b)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    char c = j->at < j->n ? j->text[j->at++] : 0;
    const char *simple = c ? strchr(from, c) : NULL;
    uint32_t point, low;
    if (simple)
        return jinja_append(j->r, b, &to[simple - from], 1, j->is_message);
    if (c != 'u' || !read_hex(j, &point))
        return fail(j);
    if (point >= 0xd800 && point < 0xdc00 && j->n - j->at >= 6 && j->text[j->at] == '\\' &&
        j->text[j->at + 1] == 'u') {
        j->at += 2;
        if (!read_hex(j, &low))
            return false;
        if (low < 0xdc00 || low > 0xdfff)
            return fail(j);
        point = 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00);
    }
    return jinja_append_char(j->r, b, point, j->is_message);
}

static bool read_string(reader *j, jinja_value *out)
{
    size_t from = ++j->at;
    while (j->at < j->n && j->text[j->at] != '"' && j->text[j->at] != '\\')
        j->at++;
    const jinja_text *t;
    if (j->at < j->n && j->text[j->at] == '"') { /* without escapes it is borrowed */
        t = jinja_text_create(j->r, j->text + from, j->at - from, j->is_message);
    } else {
        jinja_buffer *b = jinja_buffer_create(j->r);
        if (!b || !jinja_append(j->r, b, j->text + from, j->at - from, j->is_message))
            return false;
        while (j->at < j->n && j->text[j->at] != '"') {
            from = j->at;
            while (j->at < j->n && j->text[j->at] != '"' && j->text[j->at] != '\\')
                j->at++;
            if (!jinja_append(j->r, b, j->text + from, j->at - from, j->is_message))
                return false;
            if (j->at < j->n && j->text[j->at] == '\\' && (++j->at, !read_escape(j, b)))
                return false;
        }
        t = jinja_buffer_text(j->r, b);
    }
    if (j->at >= j->n)
        return fail(j);
    j->at++;
    if (t && !td_utf8_valid(t->bytes, t->n, NULL))
        return fail(j);
    *out = jinja_of_text(t);
    return t != NULL;
}

static bool read_number(reader *j, jinja_value *out)
{
    char text[400];
    size_t n = 0;
    while (j->at + n < j->n && j->text[j->at + n] && strchr("+-0123456789.eE", j->text[j->at + n]))
        n++;
    if (n == 0 || n >= sizeof text)
        return fail(j);
    memcpy(text, j->text + j->at, n);
    text[n] = 0;
    char *end;
    errno = 0;
    if (strpbrk(text, ".eE"))
        *out = jinja_float(strtod(text, &end));
    else
        *out = jinja_int(strtoll(text, &end, 10));
    if (*end || errno == ERANGE)
        return fail(j);
    out->is_message = j->is_message;
    j->at += n;
    return true;
}

static bool read_word(reader *j, jinja_value *out)
{
    static const struct {
        const char *word;
        jinja_value value;
    } rows[] = {{"true", {.type = JINJA_BOOL, .as.truth = true}},
                {"false", {.type = JINJA_BOOL}},
                {"null", {.type = JINJA_NONE}}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        size_t n = strlen(rows[i].word);
        if (j->n - j->at >= n && !memcmp(j->text + j->at, rows[i].word, n)) {
            *out = rows[i].value;
            out->is_message = j->is_message;
            j->at += n;
            return true;
        }
    }
    return fail(j);
}

static bool read_value(reader *j, jinja_value *out);

static bool read_list(reader *j, jinja_value *out)
{
    jinja_list *l = jinja_list_create(j->r, 0, JINJA_IS_LIST);
    j->at++;
    for (bool is_first = true; l && !take(j, ']'); is_first = false) {
        jinja_value v;
        if (!is_first && !take(j, ','))
            return fail(j);
        if (!read_value(j, &v) || !jinja_list_append(j->r, l, v))
            return false;
    }
    *out = jinja_of_list(l);
    return l != NULL;
}

/* A role chooses among the template's own words: the usual ones are such words themselves, so that
 * "<|" + role + "|>" is a token. Any other is a message's text. */
static bool is_usual_role(const jinja_text *t)
{
    static const char *const roles[] = {"system", "user",     "assistant", "tool",
                                        "model",  "function", "developer", "ipython"};
    for (size_t i = 0; i < sizeof roles / sizeof roles[0]; i++)
        if (jinja_text_is(t, roles[i]))
            return true;
    return false;
}

static bool trust_role(reader *j, jinja_value key, jinja_value *v)
{
    bool is_role = j->is_messages && j->depth == 2 && v->type == JINJA_TEXT &&
                   jinja_text_is(key.as.text, "role") && is_usual_role(v->as.text);
    if (is_role)
        v->as.text = jinja_text_create(j->r, v->as.text->bytes, v->as.text->n, false);
    return !is_role || v->as.text;
}

static bool read_object(reader *j, jinja_value *out)
{
    jinja_dict *d = jinja_dict_create(j->r);
    j->at++;
    for (bool is_first = true; d && !take(j, '}'); is_first = false) {
        jinja_value key, v;
        if (!is_first && !take(j, ','))
            return fail(j);
        skip(j);
        if (j->at >= j->n || j->text[j->at] != '"')
            return fail(j);
        if (!read_string(j, &key))
            return false;
        if (!take(j, ':'))
            return fail(j);
        if (!read_value(j, &v) || !trust_role(j, key, &v) || !jinja_dict_set(j->r, d, key, v))
            return false;
    }
    *out = (jinja_value){.type = JINJA_DICT, .as.dict = d};
    return d != NULL;
}

static bool read_value(reader *j, jinja_value *out)
{
    skip(j);
    char c = j->at < j->n ? j->text[j->at] : 0;
    if (!jinja_charge(j->r, 1))
        return false;
    if (c == '"')
        return read_string(j, out);
    if (c != '[' && c != '{')
        return (c >= '0' && c <= '9') || c == '-' ? read_number(j, out) : read_word(j, out);
    if (j->depth >= TD_JINJA_JSON_DEPTH)
        return jinja_fail(j->r, "the variable \"%s\" is more than %u deep; allowed: %u", j->name,
                          TD_JINJA_JSON_DEPTH, TD_JINJA_JSON_DEPTH);
    j->depth++;
    bool is_ok = c == '[' ? read_list(j, out) : read_object(j, out);
    j->depth--;
    return is_ok;
}

bool jinja_read_json(jinja_render *r, const td_jinja_variable *v, jinja_value *out)
{
    reader j = {.r = r,
                .name = v->name ? v->name : "(members)",
                .text = v->json,
                .n = v->n_json,
                .is_message = !v->is_trusted,
                .is_messages = v->name && !strcmp(v->name, "messages")};
    if (!read_value(&j, out))
        return false;
    skip(&j);
    return j.at == j.n || fail(&j);
}
