#include "base/text.h"

#include "base/check.h"
#include "base/utf8.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DISTANCE_TEXT_MAX 64

td_text_quoted td_text_quote(const char *bytes, size_t n_bytes)
{
    td_text_quoted out;
    size_t n = 0;
    out.text[n++] = '"';
    for (size_t i = 0; i < n_bytes;) {
        uint32_t codepoint;
        size_t n_taken = td_utf8_next(bytes + i, n_bytes - i, &codepoint);
        bool is_plain =
            codepoint >= 0x20 && codepoint <= 0x10ffff && !(codepoint >= 0x7f && codepoint < 0xa0);
        size_t n_wanted = is_plain ? n_taken : 4 * n_taken;
        if (n + n_wanted + sizeof "...\"" > sizeof out.text) {
            memcpy(out.text + n, "...", 3);
            n += 3;
            break;
        }
        if (is_plain)
            memcpy(out.text + n, bytes + i, n_taken);
        for (size_t j = 0; !is_plain && j < n_taken; j++)
            snprintf(out.text + n + 4 * j, 5, "\\x%02x", (unsigned)(uint8_t)bytes[i + j]);
        n += n_wanted;
        i += n_taken;
    }
    out.text[n++] = '"';
    out.text[n] = 0;
    return out;
}

bool td_text_read_u64(const char *text, uint64_t *out)
{
    uint64_t value = 0;
    if (!*text)
        return false;
    for (const char *p = text; *p; p++) {
        if (*p < '0' || *p > '9' || !td_mul_u64(value, 10, &value) ||
            !td_add_u64(value, (uint64_t)(*p - '0'), &value))
            return false;
    }
    *out = value;
    return true;
}

bool td_text_read_i64(const char *text, int64_t *out)
{
    bool is_negative = *text == '-';
    uint64_t magnitude;
    if (!td_text_read_u64(text + is_negative, &magnitude) ||
        magnitude > (uint64_t)INT64_MAX + is_negative)
        return false;
    /* 0 - x in unsigned arithmetic is defined for the one value whose negation does not fit. */
    *out = (int64_t)(is_negative ? 0 - magnitude : magnitude);
    return true;
}

/* The decimal point of the current locale, which printf and strtod use. */
static void localize_point(char *text, size_t size)
{
    char sample[16];
    snprintf(sample, sizeof sample, "%.1f", 0.5);
    sample[strlen(sample) - 1] = 0;
    const char *point = sample + 1;
    char *dot = strchr(text, '.');
    size_t n_point = strlen(point), n = strlen(text);
    if (!dot || n + n_point > size)
        return;
    memmove(dot + n_point, dot + 1, strlen(dot + 1) + 1);
    memcpy(dot, point, n_point);
}

/* Skips digits and returns how many there were. */
static size_t skip_digits(const char **p)
{
    const char *start = *p;
    while (**p >= '0' && **p <= '9')
        (*p)++;
    return (size_t)(*p - start);
}

bool td_text_read_double(const char *text, double *out)
{
    const char *p = text;
    p += *p == '-';
    size_t n_digits = skip_digits(&p);
    if (*p == '.') {
        p++;
        n_digits += skip_digits(&p);
    }
    if (n_digits == 0)
        return false;
    if (*p == 'e' || *p == 'E') {
        p++;
        p += *p == '-' || *p == '+';
        if (skip_digits(&p) == 0)
            return false;
    }
    char local[128];
    size_t n = (size_t)(p - text);
    if (*p || n + 8 > sizeof local)
        return false;
    memcpy(local, text, n + 1);
    localize_point(local, sizeof local);
    double value = strtod(local, NULL);
    if (!isfinite(value))
        return false;
    *out = value;
    return true;
}

/* Digits d0 d1 ... of a number d0.d1... * 10^exponent: %e gives both, and only the point between
 * them depends on the locale, so everything but digits is dropped. */
static size_t digits_of(const char *scientific, char digits[20], int *exponent)
{
    const char *e = strchr(scientific, 'e');
    TD_ASSERT(e);
    size_t n = 0;
    for (const char *p = scientific; p < e; p++)
        if (*p >= '0' && *p <= '9' && n < 19)
            digits[n++] = *p;
    digits[n] = 0;
    *exponent = (int)strtol(e + 1, NULL, 10);
    return n;
}

size_t td_text_write_double(double value, char out[TD_TEXT_DOUBLE_MAX])
{
    if (!isfinite(value)) {
        memcpy(out, "null", 5);
        return 4;
    }
    char scientific[64];
    for (int precision = 0; precision <= 16; precision++) {
        snprintf(scientific, sizeof scientific, "%.*e", precision, fabs(value));
        if (strtod(scientific, NULL) == fabs(value))
            break;
    }
    char digits[20];
    int exponent;
    int n = (int)digits_of(scientific, digits, &exponent);
    while (n > 1 && digits[n - 1] == '0')
        digits[--n] = 0;
    const char *sign = signbit(value) ? "-" : "";
    int length;
    if (exponent < -5 || exponent > 16)
        length = snprintf(out, TD_TEXT_DOUBLE_MAX, "%s%c%s%se%d", sign, digits[0], n > 1 ? "." : "",
                          digits + 1, exponent);
    else if (exponent < 0)
        length =
            snprintf(out, TD_TEXT_DOUBLE_MAX, "%s0.%.*s%s", sign, -exponent - 1, "00000", digits);
    else if (n > exponent + 1)
        length = snprintf(out, TD_TEXT_DOUBLE_MAX, "%s%.*s.%s", sign, exponent + 1, digits,
                          digits + exponent + 1);
    else
        length = snprintf(out, TD_TEXT_DOUBLE_MAX, "%s%s%.*s.0", sign, digits, exponent + 1 - n,
                          "0000000000000000");
    return (size_t)length;
}

uint32_t td_text_distance(const char *a, const char *b, uint32_t limit)
{
    size_t n_a = strlen(a), n_b = strlen(b);
    if (n_a > DISTANCE_TEXT_MAX || n_b > DISTANCE_TEXT_MAX)
        return limit + 1;
    /* One row of the edit matrix: row[j] = distance of the first i bytes of a and j of b. */
    uint32_t row[DISTANCE_TEXT_MAX + 1];
    for (size_t j = 0; j <= n_b; j++)
        row[j] = (uint32_t)j;
    for (size_t i = 1; i <= n_a; i++) {
        uint32_t diagonal = row[0];
        row[0] = (uint32_t)i;
        for (size_t j = 1; j <= n_b; j++) {
            uint32_t above = row[j];
            uint32_t change = diagonal + (tolower((uint8_t)a[i - 1]) != tolower((uint8_t)b[j - 1]));
            row[j] = td_min_u32(change, td_min_u32(above, row[j - 1]) + 1);
            diagonal = above;
        }
    }
    return td_min_u32(row[n_b], limit + 1);
}

void td_text_make_printable(char *text)
{
    for (; *text; text++)
        if (*text < 0x20 || *text > 0x7e)
            *text = '?';
}

const char *td_text_find_nearest(const char *text, const char *const *names, size_t n_names)
{
    const char *nearest = NULL;
    /* A third of the letters may be wrong: "drfat" is "draft", "x" is nothing. */
    uint32_t best = (uint32_t)td_min_u32((uint32_t)strnlen(text, DISTANCE_TEXT_MAX) / 3 + 1, 4);
    for (size_t i = 0; i < n_names; i++) {
        uint32_t distance = td_text_distance(text, names[i], best);
        bool shares_nothing = distance >= strlen(names[i]);
        if (distance < best + (nearest == NULL) && !shares_nothing) {
            best = distance;
            nearest = names[i];
        }
    }
    return nearest;
}
