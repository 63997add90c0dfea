#include "model/unicode_case.h"

#include "model/unicode.h"

#include <utf8proc.h>

static utf8proc_category_t category(uint32_t c) { return utf8proc_category((utf8proc_int32_t)c); }

uint32_t td_unicode_upper(uint32_t c) { return (uint32_t)utf8proc_toupper((utf8proc_int32_t)c); }

uint32_t td_unicode_lower(uint32_t c) { return (uint32_t)utf8proc_tolower((utf8proc_int32_t)c); }

uint32_t td_unicode_title(uint32_t c) { return (uint32_t)utf8proc_totitle((utf8proc_int32_t)c); }

bool td_unicode_is_upper(uint32_t c) { return category(c) == UTF8PROC_CATEGORY_LU; }

bool td_unicode_is_lower(uint32_t c)
{
    return category(c) == UTF8PROC_CATEGORY_LL || c == 0xaa || c == 0xba;
}

bool td_unicode_is_cased(uint32_t c)
{
    return td_unicode_is_upper(c) || td_unicode_is_lower(c) ||
           category(c) == UTF8PROC_CATEGORY_LT || td_unicode_upper(c) != c ||
           td_unicode_lower(c) != c;
}

bool td_unicode_is_decimal(uint32_t c) { return category(c) == UTF8PROC_CATEGORY_ND; }

bool td_unicode_is_printable(uint32_t c)
{
    switch (category(c)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
        return false;
    case UTF8PROC_CATEGORY_ZS:
        return c == ' ';
    default:
        return true;
    }
}

bool td_unicode_is_strippable(uint32_t c)
{
    return (c >= 0x1c && c <= 0x1f) || td_unicode_class(c) == TD_CLASS_SPACE;
}
