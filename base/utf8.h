/* UTF-8, decoded one code point at a time; ill-formed input is cut into maximal subparts as the
 * Unicode standard (ch. 3.9, table 3-7) recommends, so that each becomes one U+FFFD.
 *
 * No state, no allocation, no errors; any thread. A stream is decoded by keeping the bytes of a
 * TD_UTF8_CUT answer until more arrive. */
#ifndef TD_BASE_UTF8_H
#define TD_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TD_UTF8_BAD         0xffffffffu /* in place of a code point: ill-formed */
#define TD_UTF8_CUT         0xfffffffeu /* in place of a code point: cut off by the end */
#define TD_UTF8_REPLACEMENT 0xfffdu

/* Decodes the code point at the start of bytes[0..n_bytes) and returns how many bytes it takes
 * (0 only for n_bytes == 0, with TD_UTF8_CUT). For ill-formed input *codepoint is TD_UTF8_BAD and
 * the length is that of the maximal subpart (1..3). Overlong forms, surrogates and values above
 * U+10FFFF are ill-formed. */
size_t td_utf8_next(const char *bytes, size_t n_bytes, uint32_t *codepoint);

/* Writes the 1..4 bytes of a code point and returns their number; a surrogate or a value above
 * U+10FFFF is written as U+FFFD. */
size_t td_utf8_encode(uint32_t codepoint, char out[4]);

/* Is all of it well-formed? If not, *i_bad (may be NULL) is the offset of the first bad byte. */
bool td_utf8_valid(const char *bytes, size_t n_bytes, size_t *i_bad);

#endif
