/* Small helpers for text that came from outside: showing it safely, reading numbers from it
 * strictly, and guessing what a misspelt name meant. Any thread; no allocation. */
#ifndef TD_BASE_TEXT_H
#define TD_BASE_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TD_TEXT_QUOTE_MAX 96 /* bytes with the terminating 0 */

typedef struct {
    char text[TD_TEXT_QUOTE_MAX];
} td_text_quoted;

/* bytes[0..n_bytes) in double quotes, control and ill-formed bytes as \xNN, cut with "..." when
 * long: printf("%s", td_text_quote(p, n).text). */
td_text_quoted td_text_quote(const char *bytes, size_t n_bytes);

/* In place: what is not printable ASCII, as a driver's or a model's name may hold, becomes '?'. */
void td_text_make_printable(char *text);

/* The whole text as a number: decimal digits with an optional '-', nothing before or after. False
 * (and *out untouched) for anything else, or out of the type's range. */
bool td_text_read_i64(const char *text, int64_t *out);
bool td_text_read_u64(const char *text, uint64_t *out);

/* The whole text as a finite decimal number (no hex, no "nan" or "inf", no white space). The point
 * is '.', whatever the locale. */
bool td_text_read_double(const char *text, double *out);

/* The shortest decimal text that reads back as the same double, with '.' and with ".0" or an
 * exponent so that it stays a fraction; "null" for NaN and infinities. Returns its length. */
#define TD_TEXT_DOUBLE_MAX 40
size_t td_text_write_double(double value, char out[TD_TEXT_DOUBLE_MAX]);

/* The edit distance of two texts, no more than `limit` + 1 (texts are compared up to 64 bytes). */
uint32_t td_text_distance(const char *a, const char *b, uint32_t limit);

/* The one of names[0..n_names) nearest to `text`, or NULL if none is near. */
const char *td_text_find_nearest(const char *text, const char *const *names, size_t n_names);

#endif
