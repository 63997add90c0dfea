/* The lexer. Between tags everything is data; a tag may eat the white space before it ("-", or for
 * block and comment tags alone in their line) and after it ("-", or one line break after a block or
 * a comment). Inside of tags there are names, numbers, strings and operators. */
#include "model/chat/lexer.h"

#include "model/chat/jinja.h"

#include "base/text.h"
#include "base/utf8.h"
#include "model/unicode.h"
#include "model/unicode_case.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DIGITS_MAX 62u /* of a number: what is beyond them does not matter to a float */

bool jinja_lex_fail(td_err *err, uint32_t line, uint32_t column, const char *format, ...)
{
    char message[TD_ERR_MESSAGE_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return td_err_set(err, TD_E_DATA, "chat template line %u, column %u: %s", line, column,
                      message);
}

static void locate(jinja_lexer *l, size_t at)
{
    for (; l->line_at < at; l->line_at++) {
        unsigned char c = (unsigned char)l->source[l->line_at];
        if (c == '\n') {
            l->line++;
            l->column = 1;
        } else {
            l->column += (c & 0xc0) != 0x80;
        }
    }
}

static bool fail_at(jinja_lexer *l, size_t at, const char *message)
{
    locate(l, at);
    return jinja_lex_fail(l->err, l->line, l->column, "%s", message);
}

bool jinja_lexer_begin(jinja_lexer *l, const char *text, size_t n, td_arena *arena, td_err *err)
{
    size_t i_bad;
    *l = (jinja_lexer){.arena = arena, .err = err, .line = 1, .column = 1};
    l->is_line_starting = true;
    if (n > TD_JINJA_TEMPLATE_MAX)
        return td_err_set(err, TD_E_DATA, "the chat template has %zu bytes; allowed: %u", n,
                          TD_JINJA_TEMPLATE_MAX);
    char *source = td_arena_alloc(arena, n + 1, 1, err);
    if (!source)
        return false;
    for (size_t i = 0; i < n; i++) {
        bool is_pair = text[i] == '\r' && i + 1 < n && text[i + 1] == '\n';
        source[l->n++] = text[i] == '\r' ? '\n' : text[i];
        i += is_pair;
    }
    l->source = source;
    if (!td_utf8_valid(source, l->n, &i_bad))
        return fail_at(l, i_bad, "a byte that is no UTF-8");
    if (l->n > 0 && source[l->n - 1] == '\n')
        l->n--;
    return true;
}

static uint32_t char_at(const jinja_lexer *l, size_t at, size_t *n_bytes)
{
    uint32_t c;
    *n_bytes = td_utf8_next(l->source + at, l->n - at, &c);
    return c;
}

static bool is_space_at(const jinja_lexer *l, size_t at, size_t *n_bytes)
{
    return at < l->n && td_unicode_is_strippable(char_at(l, at, n_bytes));
}

static size_t skip_space(const jinja_lexer *l, size_t at)
{
    size_t n;
    while (is_space_at(l, at, &n))
        at += n;
    return at;
}

/* The end of source[from..to) without the white space at it. */
static size_t strip_right(const jinja_lexer *l, size_t from, size_t to)
{
    while (to > from) {
        size_t at = to - 1, n;
        while (at > from && ((unsigned char)l->source[at] & 0xc0) == 0x80)
            at--;
        if (!is_space_at(l, at, &n))
            break;
        to = at;
    }
    return to;
}

static bool is_at(const jinja_lexer *l, size_t at, const char *s)
{
    size_t n = strlen(s);
    return at <= l->n && l->n - at >= n && memcmp(l->source + at, s, n) == 0;
}

/* Where a closing tag at `at` ends, white space that it eats included; SIZE_MAX if none is there.
 * "-" eats all of it, otherwise a line break goes where `trims`, "+" keeps it. */
static size_t match_end(const jinja_lexer *l, size_t at, const char *closing, bool trims)
{
    if (is_at(l, at, "-") && is_at(l, at + 1, closing))
        return skip_space(l, at + 1 + strlen(closing));
    if (trims && is_at(l, at, "+") && is_at(l, at + 1, closing))
        return at + 1 + strlen(closing);
    if (!is_at(l, at, closing))
        return SIZE_MAX;
    at += strlen(closing);
    return at + (trims && is_at(l, at, "\n"));
}

/* `{% raw %}` or `{% endraw %}` at `at`: where it ends, or SIZE_MAX. */
static size_t match_raw(const jinja_lexer *l, size_t at, const char *word)
{
    if (!is_at(l, at, "{%"))
        return SIZE_MAX;
    at += 2;
    at += is_at(l, at, "-") || is_at(l, at, "+");
    at = skip_space(l, at);
    if (!is_at(l, at, word))
        return SIZE_MAX;
    bool is_end = word[0] == 'e';
    at = skip_space(l, at + strlen(word));
    return is_end || !is_at(l, at, "+") ? match_end(l, at, "%}", is_end) : SIZE_MAX;
}

/* How far data goes that began at `from`, with an opening tag at `to`: its sign and the rule for
 * tags alone in their line may take white space off its end. */
static size_t data_end(const jinja_lexer *l, size_t from, size_t to, bool is_print)
{
    char sign = to + 2 < l->n ? l->source[to + 2] : 0;
    if (sign == '-')
        return strip_right(l, from, to);
    if (sign == '+' || is_print)
        return to;
    size_t line = to;
    while (line > from && l->source[line - 1] != '\n')
        line--;
    bool is_whole = line > from || l->is_line_starting;
    return is_whole && strip_right(l, line, to) == line ? line : to;
}

static bool give_data(jinja_lexer *l, jinja_token *t, size_t from, size_t to)
{
    locate(l, from);
    *t = (jinja_token){.kind = TOKEN_DATA,
                       .line = l->line,
                       .column = l->column,
                       .text = l->source + from,
                       .n = to - from};
    return true;
}

static void pass(jinja_lexer *l, size_t to)
{
    l->is_line_starting = to > l->at ? l->source[to - 1] == '\n' : false;
    l->at = to;
}

/* Raw text up to endraw, which is passed. */
static bool lex_raw(jinja_lexer *l, jinja_token *t, size_t begin, size_t after)
{
    pass(l, after);
    for (size_t i = after; i < l->n; i++) {
        size_t end = match_raw(l, i, "endraw");
        if (end == SIZE_MAX)
            continue;
        size_t to = data_end(l, after, i, false);
        pass(l, end);
        return give_data(l, t, after, to);
    }
    return fail_at(l, begin, "raw without an endraw");
}

static bool skip_comment(jinja_lexer *l, size_t begin)
{
    size_t at = begin + 2;
    at += is_at(l, at, "-") || is_at(l, at, "+");
    for (size_t i = at; i < l->n; i++) {
        size_t end = match_end(l, i, "#}", true);
        if (end != SIZE_MAX) {
            pass(l, end);
            return true;
        }
    }
    return fail_at(l, begin, "a comment without its end \"#}\"");
}

/* The next opening tag at or after `at`, l->n if there is none. */
static size_t find_tag(const jinja_lexer *l, size_t at)
{
    for (; at + 1 < l->n; at++) {
        const char *next = memchr(l->source + at, '{', l->n - at - 1);
        if (!next)
            break;
        at = (size_t)(next - l->source);
        if (next[1] == '%' || next[1] == '{' || next[1] == '#')
            return at;
    }
    return l->n;
}

static bool lex_data(jinja_lexer *l, jinja_token *t)
{
    while (l->at < l->n) {
        size_t from = l->at, tag = find_tag(l, from);
        if (tag == l->n) {
            pass(l, l->n);
            return give_data(l, t, from, l->n);
        }
        char kind = l->source[tag + 1];
        size_t to = data_end(l, from, tag, kind == '{');
        if (to > from) { /* the tag is found again, with nothing before it */
            bool is_line_starting = l->source[tag - 1] == '\n';
            give_data(l, t, from, to);
            l->at = tag;
            l->is_line_starting = is_line_starting;
            return true;
        }
        size_t raw = match_raw(l, tag, "raw");
        if (raw != SIZE_MAX)
            return lex_raw(l, t, tag, raw);
        if (kind == '#') {
            if (!skip_comment(l, tag))
                return false;
            continue;
        }
        locate(l, tag);
        *t = (jinja_token){.kind = kind == '{' ? TOKEN_PRINT_BEGIN : TOKEN_BLOCK_BEGIN,
                           .line = l->line,
                           .column = l->column};
        l->mode = kind == '{' ? LEX_PRINT : LEX_BLOCK;
        tag += 2;
        l->at = tag + (is_at(l, tag, "-") || is_at(l, tag, "+"));
        return true;
    }
    locate(l, l->n);
    *t = (jinja_token){.kind = TOKEN_END, .line = l->line, .column = l->column};
    return true;
}

/* -- inside of tags ---------------------------------------------------------------------------- */

static int digit_of(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : 99;
}

/* Digits of a base with single underscores between them; copies up to DIGITS_MAX of them. */
static size_t scan_digits(const jinja_lexer *l, size_t at, int base, char *out, size_t *n_out)
{
    while (at < l->n) {
        size_t digit = at + (l->source[at] == '_' && *n_out > 0);
        if (digit >= l->n || digit_of(l->source[digit]) >= base)
            break;
        if (*n_out < DIGITS_MAX)
            out[(*n_out)++] = l->source[digit];
        at = digit + 1;
    }
    return at;
}

/* "1.5", "1e9": what follows the digits before the point. SIZE_MAX: no float is there. */
static size_t scan_fraction(const jinja_lexer *l, size_t at, char *out, size_t *n_out)
{
    size_t end = SIZE_MAX, n = *n_out, n_digits = 0;
    if (at + 1 < l->n && l->source[at] == '.' && digit_of(l->source[at + 1]) < 10) {
        out[n++] = '.';
        at = scan_digits(l, at + 1, 10, out, &n);
        *n_out = n;
        end = at;
    }
    if (at + 1 < l->n && (l->source[at] == 'e' || l->source[at] == 'E')) {
        size_t digits = at + 1;
        out[n++] = 'e';
        if (l->source[digits] == '+' || l->source[digits] == '-')
            out[n++] = l->source[digits++];
        char exponent[DIGITS_MAX];
        size_t after = scan_digits(l, digits, 10, exponent, &n_digits);
        if (after > digits && n + n_digits < 120) {
            memcpy(out + n, exponent, n_digits);
            *n_out = n + n_digits;
            end = after;
        }
    }
    return end;
}

static bool lex_number(jinja_lexer *l, jinja_token *t)
{
    char digits[160];
    size_t n = 0, at = l->at;
    int base = 10;
    char kind = is_at(l, at, "0") && at + 1 < l->n ? (char)(l->source[at + 1] | 0x20) : 0;
    base = kind == 'b' ? 2 : kind == 'o' ? 8 : kind == 'x' ? 16 : 10;
    if (base != 10) {
        size_t after = scan_digits(l, at + 2, base, digits, &n);
        if (after == at + 2)
            base = 10, n = 0;
        else
            at = after;
    }
    if (base == 10) {
        size_t first = at;
        at = scan_digits(l, at, 10, digits, &n);
        bool may_be_float = first == 0 || l->source[first - 1] != '.';
        size_t end = may_be_float ? scan_fraction(l, at, digits, &n) : SIZE_MAX;
        if (end != SIZE_MAX) {
            digits[n] = 0;
            t->kind = TOKEN_FLOAT;
            t->real = strtod(digits, NULL);
            l->at = end;
            return true;
        }
    }
    digits[n] = 0;
    errno = 0;
    t->kind = TOKEN_INT;
    t->integer = strtoll(digits, NULL, base);
    if (errno == ERANGE || n >= DIGITS_MAX)
        return fail_at(l, l->at, "an integer beyond 64 bits");
    l->at = at;
    return true;
}

/* The code point that an escape of `n_digits` hexadecimal digits after `at` means. */
static bool scan_hex(jinja_lexer *l, size_t at, size_t end, size_t n_digits, uint32_t *c)
{
    *c = 0;
    for (size_t i = 0; i < n_digits; i++) {
        if (at + i >= end || digit_of(l->source[at + i]) >= 16)
            return fail_at(l, at, "a string's escape with too few hexadecimal digits");
        *c = *c << 4 | (uint32_t)digit_of(l->source[at + i]);
    }
    if (*c > 0x10ffff || (*c >= 0xd800 && *c <= 0xdfff))
        return fail_at(l, at, "a string's escape that is no character");
    return true;
}

/* Writes what the escape after a backslash at `at` means; *used: its bytes after the backslash. */
static bool unescape(jinja_lexer *l, size_t at, size_t end, char *out, size_t *n_out, size_t *used)
{
    static const char from[] = "abfnrtv\\'\"", to[] = "\a\b\f\n\r\t\v\\'\"";
    char c = l->source[at];
    const char *simple = c ? strchr(from, c) : NULL;
    uint32_t codepoint = 0;
    *used = 1;
    if (simple) {
        out[(*n_out)++] = to[simple - from];
        return true;
    }
    if (c == '\n')
        return true;
    size_t n_hex = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (n_hex > 0) {
        if (!scan_hex(l, at + 1, end, n_hex, &codepoint))
            return false;
        *used += n_hex;
    } else if (c >= '0' && c <= '7') {
        for (*used = 0; *used < 3 && at + *used < end && digit_of(l->source[at + *used]) < 8;
             ++*used)
            codepoint = codepoint * 8 + (uint32_t)digit_of(l->source[at + *used]);
    } else if (c == 'N') {
        return fail_at(l, at, "a string's escape \"\\N\", which is not supported");
    } else { /* stays as it is */
        out[(*n_out)++] = '\\';
        *used = 0;
        return true;
    }
    *n_out += td_utf8_encode(codepoint, out + *n_out);
    return true;
}

static bool lex_string(jinja_lexer *l, jinja_token *t)
{
    char quote = l->source[l->at];
    size_t begin = l->at + 1, end = begin;
    bool has_escapes = false;
    while (end < l->n && l->source[end] != quote) {
        has_escapes |= l->source[end] == '\\';
        end += l->source[end] == '\\' ? 2 : 1;
    }
    if (end >= l->n)
        return fail_at(l, l->at, "a string without its end");
    t->kind = TOKEN_STRING;
    t->text = l->source + begin;
    t->n = end - begin;
    if (has_escapes) {
        char *text = td_arena_alloc(l->arena, end - begin + 4, 1, l->err);
        size_t n = 0;
        if (!text)
            return false;
        for (size_t i = begin; i < end; i++) {
            size_t used = 0;
            if (l->source[i] != '\\')
                text[n++] = l->source[i];
            else if (!unescape(l, i + 1, end, text, &n, &used))
                return false;
            i += used;
        }
        t->text = text;
        t->n = n;
    }
    l->at = end + 1;
    return true;
}

static bool lex_operator(jinja_lexer *l, jinja_token *t)
{
    static const char *const pairs[] = {"==", "!=", ">=", "<=", "//", "**"};
    static const char singles[] = "+-/*%~[](){}=<>.:|,;";
    char c = l->source[l->at];
    t->kind = TOKEN_OPERATOR;
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++)
        if (is_at(l, l->at, pairs[i]))
            t->op = JINJA_OP2(pairs[i][0], pairs[i][1]);
    if (!t->op && c && strchr(singles, c))
        t->op = c;
    if (!t->op) {
        char message[TD_TEXT_QUOTE_MAX + 40];
        size_t n;
        char_at(l, l->at, &n);
        snprintf(message, sizeof message, "unexpected character %s",
                 td_text_quote(l->source + l->at, n).text);
        return fail_at(l, l->at, message);
    }
    if (c == '(' || c == '[' || c == '{') {
        if (l->n_brackets == sizeof l->brackets)
            return fail_at(l, l->at, "more than 256 open brackets; allowed: 256");
        l->brackets[l->n_brackets++] = c == '(' ? ')' : c == '[' ? ']' : '}';
    }
    if (c == ')' || c == ']' || c == '}') {
        char message[64];
        if (l->n_brackets == 0 || l->brackets[l->n_brackets - 1] != c) {
            snprintf(message, sizeof message, "unexpected \"%c\"", c);
            return fail_at(l, l->at, message);
        }
        l->n_brackets--;
    }
    l->at += t->op > 0xff ? 2 : 1;
    return true;
}

static bool lex_name(jinja_lexer *l, jinja_token *t)
{
    size_t at = l->at, n;
    while (at < l->n) {
        uint32_t c = char_at(l, at, &n), class = c <= 0x10ffff ? td_unicode_class(c) : 0;
        if (c != '_' && !(class & (TD_CLASS_LETTER | TD_CLASS_NUMBER | TD_CLASS_MARK)))
            break;
        at += n;
    }
    t->kind = TOKEN_NAME;
    t->text = l->source + l->at;
    t->n = at - l->at;
    l->at = at;
    return true;
}

bool jinja_lex(jinja_lexer *l, jinja_token *t)
{
    if (l->mode == LEX_DATA)
        return lex_data(l, t);
    l->at = skip_space(l, l->at);
    locate(l, l->at);
    *t = (jinja_token){.line = l->line, .column = l->column};
    bool is_block = l->mode == LEX_BLOCK;
    size_t end = l->n_brackets ? SIZE_MAX : match_end(l, l->at, is_block ? "%}" : "}}", is_block);
    if (end != SIZE_MAX) {
        t->kind = is_block ? TOKEN_BLOCK_END : TOKEN_PRINT_END;
        l->mode = LEX_DATA;
        pass(l, end);
        return true;
    }
    if (l->at >= l->n) {
        t->kind = TOKEN_END;
        return true;
    }
    size_t n;
    uint32_t c = char_at(l, l->at, &n);
    if (c >= '0' && c <= '9')
        return lex_number(l, t);
    if (c == '_' || (td_unicode_class(c) & TD_CLASS_LETTER))
        return lex_name(l, t);
    if (c == '"' || c == '\'')
        return lex_string(l, t);
    return lex_operator(l, t);
}
