/* Scanners that set runs of one kind of character apart and leave what is between them whole; the
 * links of chained pre-tokenizers. */
#include "model/pretokenize_stages.h"

#include "base/check.h"
#include "model/unicode.h"

typedef bool set_fn(td_char c);

static uint32_t codepoint(td_char c) { return c & TD_CHAR_CODEPOINT; }

static uint32_t class_of(td_char c) { return (c >> TD_CHAR_CLASS_SHIFT) & TD_CHAR_CLASS_MASK; }

static bool is_number(td_char c) { return class_of(c) == TD_CLASS_NUMBER; }

static bool is_space(td_char c) { return class_of(c) == TD_CLASS_SPACE; }

static bool is_ascii_digit(td_char c) { return codepoint(c) >= '0' && codepoint(c) <= '9'; }

static bool is_line_end(td_char c) { return codepoint(c) == '\r' || codepoint(c) == '\n'; }

static bool is_newline(td_char c) { return codepoint(c) == '\n'; }

static bool is_punctuation(td_char c) /* [\p{P}\$\+<=>\^~\|] */
{
    switch (codepoint(c)) {
    case '$':
    case '+':
    case '<':
    case '=':
    case '>':
    case '^':
    case '~':
    case '|':
        return true;
    default:
        return class_of(c) == TD_CLASS_PUNCTUATION;
    }
}

static bool is_punctuation_or_backtick(td_char c) /* [\p{P}\$\+<=>\^~\|`]  */
{
    return codepoint(c) == '`' || is_punctuation(c);
}

static bool is_letter(td_char c) { return class_of(c) == TD_CLASS_LETTER; }

static bool is_mere_punctuation(td_char c) { return class_of(c) == TD_CLASS_PUNCTUATION; }

/* [^(\s|.,!?...)] with the full stops and commas of Chinese, Hindi, Urdu and Arabic. */
static bool is_no_stop(td_char c)
{
    static const uint32_t stops[] = {'(',    '|',    '.',    ',',    '!',    '?',    ')',
                                     0x2026, 0x3002, 0xff0c, 0x3001, 0x0964, 0x06d4, 0x060c};
    for (size_t i = 0; i < TD_COUNT(stops); i++)
        if (codepoint(c) == stops[i])
            return false;
    return !is_space(c);
}

static bool is_cjk_kana(td_char c) /* [U+4E00-U+9FA5 U+3040-U+309F U+30A0-U+30FF] */
{
    uint32_t u = codepoint(c);
    return (u >= 0x4e00 && u <= 0x9fa5) || (u >= 0x3040 && u <= 0x30ff);
}

static bool is_cjk_hangul(td_char c) /* [U+4E00-U+9FA5 U+0800-U+4E00 U+AC00-U+D7FF] */
{
    uint32_t u = codepoint(c);
    return ((u >= 0x0800 && u <= 0x9fa5) || (u >= 0xac00 && u <= 0xd7ff)) && !is_space(c);
}

/* [!-/:-~ U+FF01-U+FF0F U+FF1A-U+FF5E U+2018-U+201F U+3000-U+3002]; ":-~" has the ASCII letters. */
static bool is_ascii_or_mark(td_char c)
{
    uint32_t u = codepoint(c);
    return ((u >= '!' && u <= '/') || (u >= ':' && u <= '~') || (u >= 0xff01 && u <= 0xff0f) ||
            (u >= 0xff1a && u <= 0xff5e) || (u >= 0x2018 && u <= 0x201f) ||
            (u >= 0x3000 && u <= 0x3002)) &&
           !is_space(c);
}

/* The cased letters (Latin, Greek, Cyrillic, ...) that the DeepSeek LLM expression lists. */
static bool is_western_letter(td_char c)
{
    static const struct {
        uint32_t first, last;
    } ranges[] = {
        {0x0041, 0x005a},   {0x0061, 0x007a},   {0x00b5, 0x00b5},   {0x00c0, 0x00d6},
        {0x00d8, 0x00f6},   {0x00f8, 0x01ba},   {0x01bc, 0x01bf},   {0x01c4, 0x0293},
        {0x0295, 0x02af},   {0x0370, 0x0373},   {0x0376, 0x0377},   {0x037b, 0x037d},
        {0x037f, 0x037f},   {0x0386, 0x0386},   {0x0388, 0x038a},   {0x038c, 0x038c},
        {0x038e, 0x03a1},   {0x03a3, 0x03f5},   {0x03f7, 0x0481},   {0x048a, 0x052f},
        {0x0531, 0x0556},   {0x10a0, 0x10c5},   {0x13a0, 0x13f5},   {0x13f8, 0x13fd},
        {0x1c90, 0x1cba},   {0x1cbd, 0x1cbf},   {0x1d00, 0x1d2b},   {0x1d6b, 0x1d77},
        {0x1d79, 0x1d9a},   {0x1e00, 0x1f15},   {0x1f18, 0x1f1d},   {0x1f20, 0x1f45},
        {0x1f48, 0x1f4d},   {0x1f50, 0x1f57},   {0x1f59, 0x1f59},   {0x1f5b, 0x1f5b},
        {0x1f5d, 0x1f5d},   {0x1f5f, 0x1f7d},   {0x1f80, 0x1fb4},   {0x1fb6, 0x1fbc},
        {0x1fbe, 0x1fbe},   {0x1fc2, 0x1fc4},   {0x1fc6, 0x1fcc},   {0x1fd0, 0x1fd3},
        {0x1fd6, 0x1fdb},   {0x1fe0, 0x1fec},   {0x1ff2, 0x1ff4},   {0x1ff6, 0x1ffc},
        {0x2102, 0x2102},   {0x2107, 0x2107},   {0x210a, 0x2113},   {0x2115, 0x2115},
        {0x2119, 0x211d},   {0x2124, 0x2124},   {0x2126, 0x2126},   {0x2128, 0x2128},
        {0x212a, 0x212d},   {0x212f, 0x2134},   {0x2139, 0x2139},   {0x213c, 0x213f},
        {0x2145, 0x2149},   {0x214e, 0x214e},   {0x2183, 0x2184},   {0x2c00, 0x2c7b},
        {0x2c7e, 0x2ce4},   {0x2ceb, 0x2cee},   {0x2cf2, 0x2cf3},   {0xa640, 0xa66d},
        {0xa680, 0xa69b},   {0xa722, 0xa76f},   {0xa771, 0xa787},   {0xa78b, 0xa78e},
        {0xab70, 0xabbf},   {0xfb00, 0xfb06},   {0xfb13, 0xfb17},   {0xff21, 0xff3a},
        {0xff41, 0xff5a},   {0x10400, 0x1044f}, {0x104b0, 0x104d3}, {0x104d8, 0x104fb},
        {0x10c80, 0x10cb2}, {0x10cc0, 0x10cf2}, {0x118a0, 0x118df}, {0x1e900, 0x1e943},
    };
    uint32_t u = codepoint(c);
    for (size_t i = 0; i < TD_COUNT(ranges) && u >= ranges[i].first; i++) {
        if (u <= ranges[i].last)
            return true;
    }
    return false;
}

static void mark(td_char *chars, size_t from, size_t to, size_t end)
{
    chars[from] |= TD_CHAR_CUT;
    if (to < end)
        chars[to] |= TD_CHAR_CUT;
}

static bool is_blank(td_char c) { return codepoint(c) == ' '; }

/* [set]{1,max}, after `lead`? if there is one. */
static void mark_runs(td_char *chars, size_t begin, size_t end, set_fn *in_set, size_t max,
                      set_fn *lead)
{
    for (size_t at = begin; at < end;) {
        size_t first = at;
        if (lead != NULL && lead(chars[at]))
            first++;
        size_t i = first;
        while (i < end && i - first < max && in_set(chars[i]))
            i++;
        if (i > first)
            mark(chars, at, i, end);
        at = i > first ? i : at + 1;
    }
}

void td_pretokenize_punctuation(td_char *chars, size_t begin, size_t end)
{
    mark_runs(chars, begin, end, is_punctuation, SIZE_MAX, NULL);
}

void td_pretokenize_punctuation_backtick(td_char *chars, size_t begin, size_t end)
{
    mark_runs(chars, begin, end, is_punctuation_or_backtick, SIZE_MAX, NULL);
}

void td_pretokenize_spaced_letters(td_char *chars, size_t begin, size_t end)
{
    mark_runs(chars, begin, end, is_letter, SIZE_MAX, is_space);
}

void td_pretokenize_spaced_punctuation(td_char *chars, size_t begin, size_t end)
{
    mark_runs(chars, begin, end, is_mere_punctuation, SIZE_MAX, is_space);
}

void td_pretokenize_between_stops(td_char *chars, size_t begin, size_t end)
{
    mark_runs(chars, begin, end, is_no_stop, SIZE_MAX, is_blank);
}

void td_pretokenize_numbers(td_char *chars, size_t begin, size_t end)
{
    mark_runs(chars, begin, end, is_number, SIZE_MAX, NULL);
}

void td_pretokenize_number_triples(td_char *chars, size_t begin, size_t end)
{
    mark_runs(chars, begin, end, is_number, 3, NULL);
}

void td_pretokenize_digit(td_char *chars, size_t begin, size_t end)
{
    mark_runs(chars, begin, end, is_number, 1, NULL);
}

void td_pretokenize_line_ends(td_char *chars, size_t begin, size_t end)
{
    mark_runs(chars, begin, end, is_line_end, 1, NULL);
}

void td_pretokenize_western_words(td_char *chars, size_t begin, size_t end)
{
    mark_runs(chars, begin, end, is_western_letter, SIZE_MAX, is_space);
}

void td_pretokenize_ascii_and_marks(td_char *chars, size_t begin, size_t end)
{
    mark_runs(chars, begin, end, is_ascii_or_mark, SIZE_MAX, is_space);
}

void td_pretokenize_cjk_hangul(td_char *chars, size_t begin, size_t end)
{
    mark_runs(chars, begin, end, is_cjk_hangul, SIZE_MAX, NULL);
}

void td_pretokenize_cjk_kana(td_char *chars, size_t begin, size_t end)
{
    mark_runs(chars, begin, end, is_cjk_kana, SIZE_MAX, NULL);
}

/* [0-9][0-9][0-9] */
void td_pretokenize_ascii_triples(td_char *chars, size_t begin, size_t end)
{
    for (size_t at = begin; end - at >= 3;) {
        if (is_ascii_digit(chars[at]) && is_ascii_digit(chars[at + 1]) &&
            is_ascii_digit(chars[at + 2])) {
            mark(chars, at, at + 3, end);
            at += 3;
        } else {
            at++;
        }
    }
}

/* (?=([0-9]{3})+(?![0-9])): digits in threes from the right. */
void td_pretokenize_thousands(td_char *chars, size_t begin, size_t end)
{
    size_t n = 0; /* digits seen from the right */
    for (size_t i = end; i > begin; i--) {
        n = is_ascii_digit(chars[i - 1]) ? n + 1 : 0;
        if (n > 0 && n % 3 == 0)
            mark(chars, i - 1, end, end);
    }
}

/* \s+$ */
void td_pretokenize_trailing_space(td_char *chars, size_t begin, size_t end)
{
    size_t i = end;
    while (i > begin && is_space(chars[i - 1]))
        i--;
    if (i < end)
        mark(chars, i, end, end);
}

/* [^\n]+|[\n]+ */
void td_pretokenize_lines(td_char *chars, size_t begin, size_t end)
{
    mark_runs(chars, begin, end, is_newline, SIZE_MAX, NULL);
}
