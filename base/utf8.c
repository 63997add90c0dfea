#include "base/utf8.h"

/* The second byte decides most: overlong forms, surrogates and values above U+10FFFF are excluded
 * by narrowing its range, after which all further bytes are plain continuations. */
typedef struct {
    uint8_t n_bytes;     /* 0: no sequence starts with this byte */
    uint8_t low, high;   /* range of the second byte */
    uint32_t first_bits; /* payload of the first byte */
} lead_info;

static lead_info lead_of(uint8_t b)
{
    if (b >= 0xc2 && b <= 0xdf)
        return (lead_info){2, 0x80, 0xbf, b & 0x1fu};
    if (b >= 0xe0 && b <= 0xef)
        return (lead_info){3, b == 0xe0 ? 0xa0 : 0x80, b == 0xed ? 0x9f : 0xbf, b & 0x0fu};
    if (b >= 0xf0 && b <= 0xf4)
        return (lead_info){4, b == 0xf0 ? 0x90 : 0x80, b == 0xf4 ? 0x8f : 0xbf, b & 0x07u};
    return (lead_info){0, 0, 0, 0};
}

size_t td_utf8_next(const char *bytes, size_t n_bytes, uint32_t *codepoint)
{
    const uint8_t *p = (const uint8_t *)bytes;
    if (n_bytes == 0) {
        *codepoint = TD_UTF8_CUT;
        return 0;
    }
    if (p[0] < 0x80) {
        *codepoint = p[0];
        return 1;
    }
    lead_info lead = lead_of(p[0]);
    if (lead.n_bytes == 0) {
        *codepoint = TD_UTF8_BAD;
        return 1;
    }
    uint32_t value = lead.first_bits;
    for (size_t i = 1; i < lead.n_bytes; i++) {
        if (i == n_bytes) {
            *codepoint = TD_UTF8_CUT;
            return i;
        }
        uint8_t low = i == 1 ? lead.low : 0x80;
        uint8_t high = i == 1 ? lead.high : 0xbf;
        if (p[i] < low || p[i] > high) {
            *codepoint = TD_UTF8_BAD;
            return i;
        }
        value = value << 6 | (p[i] & 0x3fu);
    }
    *codepoint = value;
    return lead.n_bytes;
}

size_t td_utf8_encode(uint32_t codepoint, char out[4])
{
    if (codepoint > 0x10ffff || (codepoint >= 0xd800 && codepoint <= 0xdfff))
        codepoint = TD_UTF8_REPLACEMENT;
    size_t n = codepoint < 0x80 ? 1 : codepoint < 0x800 ? 2 : codepoint < 0x10000 ? 3 : 4;
    if (n == 1) {
        out[0] = (char)codepoint;
        return 1;
    }
    for (size_t i = n - 1; i > 0; i--) {
        out[i] = (char)(0x80u | (codepoint & 0x3fu));
        codepoint >>= 6;
    }
    static const uint8_t marks[5] = {0, 0, 0xc0, 0xe0, 0xf0};
    out[0] = (char)(marks[n] | codepoint);
    return n;
}

bool td_utf8_valid(const char *bytes, size_t n_bytes, size_t *i_bad)
{
    for (size_t i = 0; i < n_bytes;) {
        uint32_t codepoint;
        size_t n = td_utf8_next(bytes + i, n_bytes - i, &codepoint);
        if (codepoint == TD_UTF8_BAD || codepoint == TD_UTF8_CUT) {
            if (i_bad)
                *i_bad = i;
            return false;
        }
        i += n;
    }
    return true;
}
