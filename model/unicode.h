/* Unicode classes for the pre-tokenizers: one byte per code point saying which of the general
 * categories that their rules name (L, N, M, P, S, white space) it belongs to.
 *
 * The classes are those of Unicode 15.1, which the published tokenizers were compared with; where
 * the linked utf8proc knows an older version, the ranges added since are patched in.
 * No state, no errors; any thread. */
#ifndef TD_MODEL_UNICODE_H
#define TD_MODEL_UNICODE_H

#include <stddef.h>
#include <stdint.h>

/* Bits, at most one of the first six is set; a code point of none of them is 0. */
enum {
    TD_CLASS_LETTER = 1,
    TD_CLASS_NUMBER = 2,
    TD_CLASS_MARK = 4,
    TD_CLASS_PUNCTUATION = 8,
    TD_CLASS_SYMBOL = 16,
    TD_CLASS_SPACE = 32 /* the White_Space property, whatever the category */
};

/* The class of a code point (<= 0x10ffff). */
uint32_t td_unicode_class(uint32_t codepoint);

#endif
