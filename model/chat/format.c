/* Values written into a text: "%s" % value and "{}".format(value). Flags, widths and precisions as
 * in Python; what is filled in keeps the marks of its bytes. */
#include "model/chat/strings.h"
#include "model/chat/text.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#define WIDTH_MAX 4096 /* of one field, and digits after its point */

typedef struct {
    const jinja_text *fill; /* NULL: a space */
    char align;             /* '<', '>', '^', '=' or 0 */
    char sign;              /* '+', ' ' or 0 */
    bool is_alternate, has_commas, is_zero;
    int64_t width, precision; /* -1: none */
    char type;                /* 0: none */
} field_spec;

static bool is_number_type(char c) { return c && strchr("dioxXeEfFgGubn%c", c); }

/* Digits with a comma after each three, in front of what is no digit. */
static void add_commas(char *digits, size_t size)
{
    size_t n = strspn(digits, "0123456789");
    for (size_t i = n; i > 3 && strlen(digits) + 2 < size;) {
        i -= 3;
        memmove(digits + i + 1, digits + i, strlen(digits + i) + 1);
        digits[i] = ',';
    }
}

static void write_binary(uint64_t u, char *out)
{
    char digits[65];
    int n = 64;
    digits[64] = 0;
    do
        digits[--n] = (char)('0' + (u & 1));
    while (u >>= 1);
    memcpy(out, digits + n, (size_t)(65 - n));
}

/* The digits of a number without its sign; *is_negative says what that is. */
static bool write_number(jinja_render *r, jinja_value v, const field_spec *f, char *out,
                         size_t size, bool *is_negative)
{
    char type = f->type;
    bool is_float = v.type == JINJA_FLOAT || (type && strchr("eEfFgG%", type));
    int precision = (int)(f->precision < 0 ? 6 : f->precision);
    if (!is_float || (type && strchr("dioxXbuc", type))) {
        int64_t i = v.type == JINJA_FLOAT ? (int64_t)v.as.real
                    : v.type == JINJA_INT ? v.as.integer
                                          : v.as.truth;
        uint64_t u = i < 0 ? 0 - (uint64_t)i : (uint64_t)i;
        *is_negative = i < 0;
        const char *prefix = !f->is_alternate ? ""
                             : type == 'x'    ? "0x"
                             : type == 'X'    ? "0X"
                             : type == 'o'    ? "0o"
                             : type == 'b'    ? "0b"
                                              : "";
        int n = snprintf(out, size, "%s", prefix);
        if (type == 'b')
            write_binary(u, out + n);
        else
            snprintf(out + n, size - (size_t)n,
                     type == 'x'   ? "%llx"
                     : type == 'X' ? "%llX"
                     : type == 'o' ? "%llo"
                                   : "%llu",
                     (unsigned long long)u);
        if (f->has_commas)
            add_commas(out, size);
        return true;
    }
    double d = jinja_as_double(v);
    *is_negative = d < 0;
    d = d < 0 ? -d : d;
    if (!type && f->precision < 0) {
        jinja_write_double(d, out);
    } else {
        char format[16];
        char as = !type ? 'g' : type == '%' ? 'f' : type;
        snprintf(format, sizeof format, "%%%s.*%c", f->is_alternate ? "#" : "", as);
        int n = snprintf(out, size, format,
                         precision   ? precision
                         : as == 'g' ? 1
                                     : 0,
                         type == '%' ? d * 100 : d);
        if (n < 0 || (size_t)n + 2 >= size)
            return jinja_fail(r, "a number that takes %d bytes; allowed: %zu", n, size);
        if (type == '%')
            strcat(out, "%");
    }
    if (f->has_commas)
        add_commas(out, size);
    return true;
}

static bool append_filled(jinja_render *r, jinja_buffer *b, const jinja_text *t,
                          const field_spec *f, char align)
{
    int sides = align == '<' ? JINJA_RIGHT : align == '>' ? JINJA_LEFT : JINJA_LEFT | JINJA_RIGHT;
    size_t n = f->width > (int64_t)t->n_chars ? (size_t)f->width - t->n_chars : 0;
    if (align == '^' && n > 0) { /* of an odd number the one more goes right */
        field_spec left = *f;
        left.width = (int64_t)(t->n_chars + n / 2);
        t = jinja_pad(r, t, left.width, f->fill, JINJA_LEFT);
        sides = JINJA_RIGHT;
    }
    t = t ? jinja_pad(r, t, f->width, f->fill, sides) : NULL;
    return t && jinja_append_text(r, b, t);
}

static bool append_number(jinja_render *r, jinja_buffer *b, jinja_value v, const field_spec *f)
{
    char digits[WIDTH_MAX + 512], whole[WIDTH_MAX + 520];
    bool is_negative = false;
    if (!write_number(r, v, f, digits, sizeof digits, &is_negative))
        return false;
    char sign[2] = {is_negative ? '-' : f->sign, 0};
    int64_t n_zeros = f->width - (int64_t)strlen(digits) - (sign[0] != 0);
    bool is_zero = (f->is_zero && !f->align) || f->align == '=';
    int n = snprintf(whole, sizeof whole, "%s", sign);
    for (; is_zero && n_zeros > 0 && n < WIDTH_MAX; n_zeros--)
        whole[n++] = f->fill && !f->is_zero ? f->fill->bytes[0] : '0';
    snprintf(whole + n, sizeof whole - (size_t)n, "%s", digits);
    const jinja_text *t = jinja_text_create(r, whole, strlen(whole), v.is_message);
    return t && append_filled(r, b, t, f, f->align && f->align != '=' ? f->align : '>');
}

static bool append_value(jinja_render *r, jinja_buffer *b, jinja_value v, const field_spec *f,
                         char conversion)
{
    const jinja_text *t;
    if (conversion == 'r' || conversion == 'a') {
        jinja_buffer *repr = jinja_buffer_create(r);
        if (!repr || !jinja_print(r, repr, v, true) || !(t = jinja_buffer_text(r, repr)))
            return false;
    } else if (!jinja_to_text(r, v, &t)) {
        return false;
    }
    if (f->precision >= 0 && f->precision < (int64_t)t->n_chars &&
        !(t = jinja_text_part(r, t, 0, jinja_text_offset(t, (size_t)f->precision))))
        return false;
    return append_filled(r, b, t, f, f->align ? f->align : '<');
}

/* Digits at *i, -1 if there are none. */
static bool read_size(jinja_render *r, const jinja_text *t, size_t *i, int64_t *out)
{
    *out = -1;
    for (; *i < t->n && isdigit((unsigned char)t->bytes[*i]); ++*i) {
        *out = (*out < 0 ? 0 : *out) * 10 + (t->bytes[*i] - '0');
        if (*out > WIDTH_MAX)
            return jinja_fail(r, "a width or precision above %d; allowed: %d", WIDTH_MAX,
                              WIDTH_MAX);
    }
    return true;
}

static char byte_at(const jinja_text *t, size_t i) { return i < t->n ? t->bytes[i] : 0; }

/* -- "%s" % v ---------------------------------------------------------------------------------- */

typedef struct {
    jinja_value all;
    size_t i; /* of a tuple's items, or of the one value */
} percent_source;

static bool take_value(jinja_render *r, percent_source *s, jinja_value *out)
{
    bool is_tuple = s->all.type == JINJA_LIST && s->all.as.list->kind == JINJA_IS_TUPLE;
    size_t n = is_tuple ? s->all.as.list->n : 1;
    if (s->i >= n)
        return jinja_fail(r, "not enough arguments for format string");
    *out = is_tuple ? s->all.as.list->items[s->i] : s->all;
    s->i++;
    return true;
}

/* "(key)" */
static bool take_key(jinja_render *r, percent_source *s, const jinja_text *t, size_t *i,
                     jinja_value *out)
{
    size_t from = *i + 1;
    while (*i < t->n && t->bytes[*i] != ')')
        ++*i;
    if (*i == t->n || s->all.type != JINJA_DICT)
        return jinja_fail(r, "format requires a mapping");
    jinja_value *found = jinja_dict_find_bytes(s->all.as.dict, t->bytes + from, *i - from);
    if (!found)
        return jinja_fail(r, "the mapping has no such key");
    ++*i;
    *out = *found;
    s->i = 1;
    return true;
}

static bool percent_field(jinja_render *r, jinja_buffer *b, const jinja_text *t, size_t *i,
                          percent_source *s)
{
    field_spec f = {.width = -1, .precision = -1};
    jinja_value v = {.type = JINJA_ABSENT};
    if (byte_at(t, *i) == '(' && !take_key(r, s, t, i, &v))
        return false;
    for (char c; (c = byte_at(t, *i)) && strchr("-+ #0", c); ++*i) {
        f.align = c == '-' ? '<' : f.align;
        f.sign = c == '+' || (c == ' ' && !f.sign) ? c : f.sign;
        f.is_alternate |= c == '#';
        f.is_zero |= c == '0';
    }
    if (!read_size(r, t, i, &f.width))
        return false;
    if (byte_at(t, *i) == '.') {
        ++*i;
        if (!read_size(r, t, i, &f.precision))
            return false;
        f.precision = f.precision < 0 ? 0 : f.precision;
    }
    char type = byte_at(t, *i);
    ++*i;
    if (type == '%')
        return jinja_append(r, b, "%", 1, false);
    if (v.type == JINJA_ABSENT && !take_value(r, s, &v))
        return false;
    if (type == 's' || type == 'r' || type == 'a') {
        f.align = f.align ? f.align : '>';
        return append_value(r, b, v, &f, type);
    }
    if (!type || !strchr("diuoxXeEfFgG", type))
        return jinja_fail(r, "unsupported format character '%c'", type ? type : ' ');
    if (!jinja_is_number(v))
        return jinja_fail(r, "%%%c format: a number is required, not %s", type, jinja_type_name(v));
    f.type = type;
    return append_number(r, b, v, &f);
}

bool jinja_format_percent(jinja_render *r, const jinja_text *t, jinja_value v, jinja_value *out)
{
    jinja_buffer *b = jinja_buffer_create(r);
    percent_source s = {v, 0};
    if (!b)
        return false;
    for (size_t i = 0; i < t->n;) {
        const char *percent = memchr(t->bytes + i, '%', t->n - i);
        size_t end = percent ? (size_t)(percent - t->bytes) : t->n;
        if (!jinja_append_part(r, b, t, i, end - i))
            return false;
        i = end + 1;
        if (percent && !percent_field(r, b, t, &i, &s))
            return false;
    }
    bool is_tuple = v.type == JINJA_LIST && v.as.list->kind == JINJA_IS_TUPLE;
    bool may_stay =
        v.type == JINJA_DICT || v.type == JINJA_UNDEFINED || (v.type == JINJA_LIST && !is_tuple);
    if (s.i < (is_tuple ? v.as.list->n : 1) && !may_stay)
        return jinja_fail(r, "not all arguments converted during string formatting");
    *out = jinja_of_text(jinja_buffer_text(r, b));
    return out->as.text != NULL;
}

/* -- "{}".format(v) ---------------------------------------------------------------------------- */

typedef struct {
    const jinja_args *args;
    size_t n_taken; /* of {} without a number */
} brace_source;

/* "0", "name", "" and then ".attribute" and "[key]". */
static bool find_value(jinja_render *r, brace_source *s, const jinja_text *name, jinja_value *out)
{
    size_t n = 0;
    while (n < name->n && name->bytes[n] != '.' && name->bytes[n] != '[')
        n++;
    bool is_place = n == 0 || isdigit((unsigned char)name->bytes[0]);
    bool is_found = false;
    if (is_place) {
        size_t i = s->n_taken;
        if (n == 0)
            s->n_taken++;
        else
            for (size_t k = i = 0; k < n && i < 1000; k++)
                i = i * 10 + (size_t)(name->bytes[k] - '0');
        is_found = i < s->args->n;
        if (is_found)
            *out = s->args->items[i];
    } else {
        for (size_t k = 0; k < s->args->n_named && !is_found; k++) {
            const jinja_text *other = s->args->named[k].name;
            is_found = other->n == n && !memcmp(other->bytes, name->bytes, n);
            if (is_found)
                *out = s->args->named[k].value;
        }
    }
    if (!is_found)
        return jinja_fail(r, "the format has a field that no argument is given for");
    while (n < name->n) {
        bool is_item = name->bytes[n++] == '[';
        size_t from = n;
        while (n < name->n &&
               (is_item ? name->bytes[n] != ']' : name->bytes[n] != '.' && name->bytes[n] != '['))
            n++;
        const jinja_text *part = jinja_text_part(r, name, from, n - from);
        n += is_item && n < name->n;
        if (!part)
            return false;
        bool is_number = part->n > 0 && part->n < 10;
        int64_t number = 0;
        for (size_t k = 0; k < part->n && is_number; k++) {
            is_number = isdigit((unsigned char)part->bytes[k]);
            number = number * 10 + (part->bytes[k] - '0');
        }
        jinja_value key = is_number ? jinja_int(number) : jinja_of_text(part);
        if (!(is_item ? jinja_get_item(r, *out, key, out) : jinja_get_attr(r, *out, part, out)))
            return false;
    }
    return true;
}

static bool read_spec(jinja_render *r, const jinja_text *t, field_spec *f)
{
    size_t i = 0, next = 0;
    *f = (field_spec){.width = -1, .precision = -1};
    if (t->n > 0) {
        jinja_text_next(t, &next);
        char align = byte_at(t, next);
        if (align && strchr("<>^=", align)) {
            f->fill = jinja_text_part(r, t, 0, next);
            if (!f->fill)
                return false;
            f->align = align;
            i = next + 1;
        } else if (strchr("<>^=", t->bytes[0])) {
            f->align = t->bytes[0];
            i = 1;
        }
    }
    if (byte_at(t, i) && strchr("+- ", t->bytes[i])) {
        f->sign = t->bytes[i] == '-' ? 0 : t->bytes[i];
        i++;
    }
    f->is_alternate = byte_at(t, i) == '#';
    i += f->is_alternate;
    f->is_zero = byte_at(t, i) == '0';
    if (!read_size(r, t, &i, &f->width))
        return false;
    f->has_commas = byte_at(t, i) == ',';
    i += f->has_commas;
    if (byte_at(t, i) == '.') {
        i++;
        if (!read_size(r, t, &i, &f->precision))
            return false;
    }
    f->type = byte_at(t, i);
    i += f->type != 0;
    return i == t->n || jinja_fail(r, "invalid format specifier");
}

static bool brace_field(jinja_render *r, jinja_buffer *b, const jinja_text *inside, brace_source *s)
{
    size_t n_name = 0, n_colon;
    while (n_name < inside->n && inside->bytes[n_name] != ':' && inside->bytes[n_name] != '!')
        n_name++;
    char conversion = byte_at(inside, n_name) == '!' ? byte_at(inside, n_name + 1) : 0;
    n_colon = n_name + (conversion ? 2 : 0);
    if (n_colon < inside->n && inside->bytes[n_colon] != ':')
        return jinja_fail(r, "expected ':' after a conversion specifier");
    size_t from = n_colon < inside->n ? n_colon + 1 : inside->n;
    const jinja_text *name = jinja_text_part(r, inside, 0, n_name);
    const jinja_text *spec = jinja_text_part(r, inside, from, inside->n - from);
    jinja_value v;
    field_spec f;
    if (!name || !spec || !find_value(r, s, name, &v) || !read_spec(r, spec, &f))
        return false;
    if (v.type == JINJA_UNDEFINED && spec->n > 0)
        return jinja_fail(r, "an undefined value with a format specifier");
    bool is_number = jinja_is_number(v) && !conversion && (v.type != JINJA_BOOL || spec->n > 0);
    if (is_number && (!f.type || is_number_type(f.type)))
        return append_number(r, b, v, &f);
    if ((f.type && f.type != 's') || (is_number && spec->n > 0))
        return jinja_fail(r, "unknown format code '%c' for object of type '%s'", f.type,
                          jinja_type_name(v));
    return append_value(r, b, v, &f, conversion);
}

const jinja_text *jinja_format_braces(jinja_render *r, const jinja_text *t, const jinja_args *args)
{
    jinja_buffer *b = jinja_buffer_create(r);
    brace_source s = {args, 0};
    for (size_t i = 0; b && i < t->n;) {
        size_t end = i;
        while (end < t->n && t->bytes[end] != '{' && t->bytes[end] != '}')
            end++;
        if (!jinja_append_part(r, b, t, i, end - i))
            return NULL;
        i = end;
        if (i == t->n)
            break;
        if (byte_at(t, i + 1) == t->bytes[i]) {
            if (!jinja_append_part(r, b, t, i, 1))
                return NULL;
            i += 2;
            continue;
        }
        const char *close = memchr(t->bytes + i, '}', t->n - i);
        if (t->bytes[i] == '}' || !close) {
            jinja_fail(r, "a single '%c' in a format string", t->bytes[i]);
            return NULL;
        }
        const jinja_text *inside = jinja_text_part(r, t, i + 1, (size_t)(close - t->bytes) - i - 1);
        if (!inside || !brace_field(r, b, inside, &s))
            return NULL;
        i = (size_t)(close - t->bytes) + 1;
    }
    return b ? jinja_buffer_text(r, b) : NULL;
}
