/* The alphabet of byte-level BPE (GPT-2): bytes that print stand for themselves, the other 68 for
 * U+0100 onward, in order. */
#include "model/tokenizer_private.h"

#include "base/utf8.h"

#include <string.h>

static bool prints(uint32_t c)
{
    return (c >= 0x21 && c <= 0x7e) || (c >= 0xa1 && c <= 0xac) || (c >= 0xae && c <= 0xff);
}

/* The byte that a character stands for, or -1. */
static int byte_of(uint32_t c)
{
    if (c < 0x100)
        return prints(c) ? (int)c : -1;
    if (c >= 0x100 + 68)
        return -1;
    /* the runs of bytes that do not print: 00-20, 7f-a0, ad */
    uint32_t i = c - 0x100;
    if (i < 0x21)
        return (int)i;
    return i < 0x21 + 0x22 ? (int)(0x7f + i - 0x21) : 0xad;
}

size_t td_bpe_decode(const char *text, size_t n_text, char *out)
{
    size_t n = 0;
    for (size_t at = 0; at < n_text;) {
        uint32_t c;
        at += td_utf8_next(text + at, n_text - at, &c);
        int byte = c == TD_UTF8_BAD || c == TD_UTF8_CUT ? -1 : byte_of(c);
        if (byte < 0)
            return SIZE_MAX;
        out[n++] = (char)byte;
    }
    return n;
}

size_t td_bpe_decode_lossy(const char *text, size_t n_text, char *out)
{
    size_t n = 0;
    for (size_t at = 0; at < n_text;) {
        uint32_t c;
        size_t length = td_utf8_next(text + at, n_text - at, &c);
        int byte = c == TD_UTF8_BAD || c == TD_UTF8_CUT ? -1 : byte_of(c);
        if (byte < 0) {
            memcpy(out + n, text + at, length);
            n += length;
        } else {
            out[n++] = (char)byte;
        }
        at += length;
    }
    return n;
}
