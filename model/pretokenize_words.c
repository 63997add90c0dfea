/* Scanners of whole expressions. A match function tries the alternatives of its expression in
 * order at one place and returns where the match ends, or the place itself for none; characters
 * that no alternative takes stay together until the next match.
 *
 * The expressions are those of the published tokenizer.json files with \s as the White_Space
 * property. Cased letters are special: engines that know only ASCII case take every letter
 * outside ASCII as both cases, and so do we ([\p{Lu}..] means "a letter but not a-z"). */
#include "model/pretokenize_stages.h"

#include "model/unicode.h"

enum {
    LETTER = TD_CLASS_LETTER,
    NUMBER = TD_CLASS_NUMBER,
    MARK = TD_CLASS_MARK,
    PUNCTUATION = TD_CLASS_PUNCTUATION,
    SYMBOL = TD_CLASS_SYMBOL,
    SPACE = TD_CLASS_SPACE
};

#define NO_CHAR TD_CHAR_CODEPOINT /* above every code point */

typedef struct {
    const td_char *chars;
    size_t end;
} scan;

typedef size_t match_fn(const scan *s, size_t at);

static uint32_t codepoint(const scan *s, size_t i)
{
    return i < s->end ? s->chars[i] & TD_CHAR_CODEPOINT : NO_CHAR;
}

static uint32_t class_of(const scan *s, size_t i)
{
    return i < s->end ? (s->chars[i] >> TD_CHAR_CLASS_SHIFT) & TD_CHAR_CLASS_MASK : 0;
}

static bool is_class(const scan *s, size_t i, uint32_t classes)
{
    return (class_of(s, i) & classes) != 0;
}

/* A character (not the end) of none of the classes. */
static bool is_outside(const scan *s, size_t i, uint32_t classes)
{
    return i < s->end && (class_of(s, i) & classes) == 0;
}

static bool is_line_end(uint32_t c) { return c == '\r' || c == '\n'; }

static uint32_t fold_ascii(uint32_t c) { return c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c; }

/* 's|'t|'re|'ve|'m|'ll|'d */
static size_t contraction(const scan *s, size_t at, bool any_case)
{
    if (codepoint(s, at) != '\'')
        return at;
    uint32_t a = codepoint(s, at + 1), b = codepoint(s, at + 2);
    if (any_case) {
        a = fold_ascii(a);
        b = fold_ascii(b);
    }
    if (a == 's' || a == 't' || a == 'm' || a == 'd')
        return at + 2;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l'))
        return at + 3;
    return at;
}

static size_t run_of(const scan *s, size_t at, uint32_t classes)
{
    while (is_class(s, at, classes))
        at++;
    return at;
}

/* Where [^\r\n <excluded>]? ends when `at` may be that character and `wanted` follows it. */
static size_t skip_prefix(const scan *s, size_t at, uint32_t excluded, uint32_t wanted)
{
    if (is_outside(s, at, excluded) && !is_line_end(codepoint(s, at)) &&
        is_class(s, at + 1, wanted))
        return at + 1;
    return at;
}

/* [^\r\n <excluded>]?[wanted]+ */
static size_t prefixed_run(const scan *s, size_t at, uint32_t excluded, uint32_t wanted)
{
    size_t first = skip_prefix(s, at, excluded, wanted);
    size_t end = run_of(s, first, wanted);
    return end > first ? end : at;
}

/* \p{N}{1,max} */
static size_t numbers(const scan *s, size_t at, size_t max)
{
    size_t i = at;
    while (i - at < max && is_class(s, i, NUMBER))
        i++;
    return i;
}

/* " ?[...]+[\r\n]*", the set being every character of none of the classes `excluded`; with
 * `slash`, "[\r\n/]*". */
static size_t others(const scan *s, size_t at, uint32_t excluded, bool slash)
{
    size_t first = codepoint(s, at) == ' ' ? at + 1 : at;
    size_t i = first;
    while (is_outside(s, i, excluded))
        i++;
    if (i == first)
        return at;
    while (is_line_end(codepoint(s, i)) || (slash && codepoint(s, i) == '/'))
        i++;
    return i;
}

/* \s+(?!\S)|\s+ : a run of white space leaves its last character to the word that follows. */
static size_t spaces(const scan *s, size_t at)
{
    size_t end = run_of(s, at, SPACE);
    return end - at > 1 && end < s->end ? end - 1 : end;
}

/* \s*[\r\n]+|\s+(?!\S)|\s+ */
static size_t lines_and_spaces(const scan *s, size_t at)
{
    size_t end = run_of(s, at, SPACE);
    for (size_t i = end; i > at; i--) {
        if (is_line_end(codepoint(s, i - 1)))
            return i;
    }
    return spaces(s, at);
}

/* 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static size_t match_gpt2(const scan *s, size_t at)
{
    size_t end = contraction(s, at, false);
    if (end > at)
        return end;
    size_t first = codepoint(s, at) == ' ' ? at + 1 : at;
    if (is_class(s, first, LETTER))
        return run_of(s, first, LETTER);
    if (is_class(s, first, NUMBER))
        return run_of(s, first, NUMBER);
    if (is_outside(s, first, SPACE | LETTER | NUMBER)) {
        while (is_outside(s, first, SPACE | LETTER | NUMBER))
            first++;
        return first;
    }
    return spaces(s, at);
}

/* (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[letters]+|\p{N}{1,max}|
 * ?[^\s\p{L}\p{N}..]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+ */
static size_t match_modern(const scan *s, size_t at, uint32_t letters, size_t max_numbers)
{
    size_t end = contraction(s, at, true);
    if (end == at)
        end = prefixed_run(s, at, LETTER | NUMBER, letters);
    if (end == at)
        end = numbers(s, at, max_numbers);
    if (end == at)
        end = others(s, at, SPACE | NUMBER | LETTER | letters, false);
    if (end == at)
        end = lines_and_spaces(s, at);
    return end;
}

static size_t match_llama3(const scan *s, size_t at) { return match_modern(s, at, LETTER, 3); }

static size_t match_qwen2(const scan *s, size_t at) { return match_modern(s, at, LETTER, 1); }

static size_t match_qwen35(const scan *s, size_t at)
{
    return match_modern(s, at, LETTER | MARK, 1);
}

static bool is_upper(const scan *s, size_t i) /* or of no known case */
{
    uint32_t c = codepoint(s, i);
    return is_class(s, i, LETTER) && !(c >= 'a' && c <= 'z');
}

static bool is_lower(const scan *s, size_t i) /* or of no known case */
{
    uint32_t c = codepoint(s, i);
    return is_class(s, i, LETTER) && !(c >= 'A' && c <= 'Z');
}

/* [upper]*[lower]+|[upper]+[lower]* at a letter. Where capitals end the run, the first alternative
 * gives them back until it has a letter that may be lower case. */
static size_t cased_word(const scan *s, size_t at)
{
    size_t i = at, after_lower = at;
    for (; is_upper(s, i); i++) {
        if (is_lower(s, i))
            after_lower = i + 1;
    }
    if (is_lower(s, i)) {
        while (is_lower(s, i))
            i++;
        return i;
    }
    return after_lower > at ? after_lower : i;
}

/* (?i:'s|..)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|
 * \s+(?!\S)|\s+ */
static size_t match_seed_coder(const scan *s, size_t at)
{
    size_t end = match_qwen2(s, at);
    if (is_outside(s, at, SPACE | LETTER | NUMBER) ||
        (codepoint(s, at) == ' ' && is_outside(s, at + 1, SPACE | LETTER | NUMBER))) {
        while (end > at && is_line_end(codepoint(s, end - 1)))
            end--; /* not after punctuation */
    }
    return end;
}

/* [^\r\n\p{L}\p{N}]?[upper]*[lower]+(?i:'s|..)?|[^\r\n\p{L}\p{N}]?[upper]+[lower]*(?i:'s|..)?|
 * \p{N}{1,max}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+ */
static size_t match_cased(const scan *s, size_t at, bool contractions, size_t max_numbers)
{
    size_t first = skip_prefix(s, at, LETTER | NUMBER, LETTER);
    size_t end = cased_word(s, first);
    if (end > first)
        return contractions ? contraction(s, end, true) : end;
    end = numbers(s, at, max_numbers);
    if (end == at)
        end = others(s, at, SPACE | LETTER | NUMBER, true);
    if (end == at)
        end = lines_and_spaces(s, at);
    return end;
}

static size_t match_gpt4o(const scan *s, size_t at) { return match_cased(s, at, true, 3); }

static size_t match_tekken(const scan *s, size_t at) { return match_cased(s, at, false, 1); }

static bool is_han(uint32_t c)
{
    return (c >= 0x4e00 && c <= 0x9fff) || (c >= 0x3400 && c <= 0x4dbf) ||
           (c >= 0x20000 && c <= 0x2a6df) || (c >= 0x2a700 && c <= 0x2ebef) ||
           (c >= 0xf900 && c <= 0xfaff) || (c >= 0x2f800 && c <= 0x2fa1f);
}

static bool is_plain_letter(const scan *s, size_t i)
{
    return is_class(s, i, LETTER) && !is_han(codepoint(s, i));
}

/* [\p{Han}]+|[^\r\n\p{L}\p{N}]?[letters but Han]+(?i:'s|..)?|\p{N}{1,3}|
 * ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+ , case playing no part. */
static size_t match_kimi_k2(const scan *s, size_t at)
{
    size_t i = at;
    while (is_han(codepoint(s, i)))
        i++;
    if (i > at)
        return i;
    size_t first = at;
    if (is_outside(s, at, LETTER | NUMBER) && !is_line_end(codepoint(s, at)) &&
        is_plain_letter(s, at + 1))
        first = at + 1;
    for (i = first; is_plain_letter(s, i);)
        i++;
    if (i > first)
        return contraction(s, i, true);
    size_t end = numbers(s, at, 3);
    if (end == at)
        end = others(s, at, SPACE | LETTER | NUMBER, false);
    if (end == at)
        end = lines_and_spaces(s, at);
    return end;
}

static bool is_ascii_letter(uint32_t c)
{
    c = fold_ascii(c);
    return c >= 'a' && c <= 'z';
}

/* [!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|
 * \s*[\r\n]+|\s+(?!\S)|\s+ */
static size_t match_deepseek_v3(const scan *s, size_t at)
{
    if (codepoint(s, at) < 0x80 && is_class(s, at, PUNCTUATION | SYMBOL) &&
        is_ascii_letter(codepoint(s, at + 1))) {
        size_t i = at + 2;
        while (is_ascii_letter(codepoint(s, i)))
            i++;
        return i;
    }
    size_t end = prefixed_run(s, at, LETTER | PUNCTUATION | SYMBOL, LETTER | MARK);
    if (end > at)
        return end;
    size_t first = codepoint(s, at) == ' ' ? at + 1 : at;
    size_t i = run_of(s, first, PUNCTUATION | SYMBOL);
    if (i > first) {
        while (is_line_end(codepoint(s, i)))
            i++;
        return i;
    }
    return lines_and_spaces(s, at);
}

static void mark_words(td_char *chars, size_t begin, size_t end, match_fn *match)
{
    scan s = {chars, end};
    size_t at = begin;
    while (at < end) {
        size_t next = match(&s, at);
        if (next > at) {
            chars[at] |= TD_CHAR_CUT;
            if (next < end)
                chars[next] |= TD_CHAR_CUT;
            at = next;
        } else {
            at++;
        }
    }
}

void td_pretokenize_gpt2(td_char *chars, size_t begin, size_t end)
{
    mark_words(chars, begin, end, match_gpt2);
}

void td_pretokenize_llama3(td_char *chars, size_t begin, size_t end)
{
    mark_words(chars, begin, end, match_llama3);
}

void td_pretokenize_qwen2(td_char *chars, size_t begin, size_t end)
{
    mark_words(chars, begin, end, match_qwen2);
}

void td_pretokenize_qwen35(td_char *chars, size_t begin, size_t end)
{
    mark_words(chars, begin, end, match_qwen35);
}

void td_pretokenize_gpt4o(td_char *chars, size_t begin, size_t end)
{
    mark_words(chars, begin, end, match_gpt4o);
}

void td_pretokenize_tekken(td_char *chars, size_t begin, size_t end)
{
    mark_words(chars, begin, end, match_tekken);
}

void td_pretokenize_kimi_k2(td_char *chars, size_t begin, size_t end)
{
    mark_words(chars, begin, end, match_kimi_k2);
}

void td_pretokenize_deepseek_v3(td_char *chars, size_t begin, size_t end)
{
    mark_words(chars, begin, end, match_deepseek_v3);
}

void td_pretokenize_seed_coder(td_char *chars, size_t begin, size_t end)
{
    mark_words(chars, begin, end, match_seed_coder);
}
