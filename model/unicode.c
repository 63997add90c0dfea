/* General categories come from utf8proc; what differs between its Unicode version and 15.1 comes
 * from a short table of ranges. */
#include "model/unicode.h"

#include "base/check.h"

#include <utf8proc.h>

#include <stdbool.h>

typedef struct {
    uint32_t first, last;
    uint8_t class;
} range;

/* What Unicode 15.1 added to 15.0 (DerivedAge.txt). */
static const range added[] = {
    {0x2ffc, 0x2fff, TD_CLASS_SYMBOL},   /* ideographic description characters */
    {0x31ef, 0x31ef, TD_CLASS_SYMBOL},   /* ideographic description character subtraction */
    {0x2ebf0, 0x2ee5d, TD_CLASS_LETTER}, /* CJK unified ideographs extension I */
};

static bool is_space(uint32_t c) /* PropList.txt, White_Space */
{
    return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
           c == 0x205f || c == 0x3000;
}

uint32_t td_unicode_class(uint32_t codepoint)
{
    TD_ASSERT(codepoint <= 0x10ffff);
    if (is_space(codepoint))
        return TD_CLASS_SPACE;
    for (size_t i = 0; i < TD_COUNT(added); i++) {
        if (codepoint >= added[i].first && codepoint <= added[i].last)
            return added[i].class;
    }
    switch (utf8proc_category((utf8proc_int32_t)codepoint)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
        return TD_CLASS_LETTER;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
        return TD_CLASS_NUMBER;
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
        return TD_CLASS_MARK;
    case UTF8PROC_CATEGORY_PC:
    case UTF8PROC_CATEGORY_PD:
    case UTF8PROC_CATEGORY_PS:
    case UTF8PROC_CATEGORY_PE:
    case UTF8PROC_CATEGORY_PI:
    case UTF8PROC_CATEGORY_PF:
    case UTF8PROC_CATEGORY_PO:
        return TD_CLASS_PUNCTUATION;
    case UTF8PROC_CATEGORY_SM:
    case UTF8PROC_CATEGORY_SC:
    case UTF8PROC_CATEGORY_SK:
    case UTF8PROC_CATEGORY_SO:
        return TD_CLASS_SYMBOL;
    default:
        return 0;
    }
}
