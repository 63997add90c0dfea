/* Tokenizing: cut the text at special tokens, then each raw part into words (byte-level BPE only),
 * then merge. See tokenizer_private.h for the parts. */
#include "model/tokenizer_private.h"

#include "base/check.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/utf8.h"

#include <string.h>

const td_tokenizer_info *td_tokenizer_get_info(const td_tokenizer *t) { return &t->info; }

/* SentencePiece writes a space as U+2581, and one goes before text that follows nothing or a
 * special token. */
static bool tokenize_spm(const td_tokenizer *t, td_merge_work *w, const char *text, size_t n,
                         bool add_space, td_id_list *out, td_err *err)
{
    size_t n_escaped = n + (add_space ? 3 : 0);
    for (size_t i = 0; i < n; i++)
        n_escaped += text[i] == ' ' ? 2 : 0;
    char *escaped = td_alloc(n_escaped, 1, err);
    if (escaped == NULL)
        return false;
    size_t to = 0;
    for (size_t i = 0; i < n + (add_space ? 1 : 0); i++) {
        char c = !add_space ? text[i] : i == 0 ? ' ' : text[i - 1];
        if (c == ' ') {
            memcpy(escaped + to, "\xe2\x96\x81", 3);
            to += 3;
        } else {
            escaped[to++] = c;
        }
    }
    TD_ASSERT(to == n_escaped);
    bool ok = td_merge_spm(w, t, escaped, n_escaped, out, err);
    td_free(escaped);
    return ok;
}

/* Code points with their classes. Every byte of an ill-formed sequence becomes U+FFFD, as in the
 * reference: words are made of characters, and these have none. */
static size_t decode_chars(const char *text, size_t n, bool is_spaced, td_char *chars)
{
    size_t n_chars = 0;
    for (size_t at = 0; at < n;) {
        uint32_t c;
        size_t length = td_utf8_next(text + at, n - at, &c);
        at += length;
        if (c == ' ' && is_spaced)
            c = 0x2581;
        if (c != TD_UTF8_BAD && c != TD_UTF8_CUT) {
            chars[n_chars++] = td_pretokenize_char(c);
            continue;
        }
        for (; length > 0; length--)
            chars[n_chars++] = td_pretokenize_char(TD_UTF8_REPLACEMENT);
    }
    return n_chars;
}

static bool tokenize_bpe(const td_tokenizer *t, td_merge_work *w, const char *text, size_t n,
                         td_id_list *out, td_err *err)
{
    bool ok = false;
    char *word = NULL;
    td_char *chars = td_alloc(n, sizeof chars[0], err);
    if (chars == NULL)
        return false;
    size_t n_chars = decode_chars(text, n, t->is_spaced, chars);
    td_pretokenize_run(t->pre, chars, n_chars);
    size_t longest = 0; /* characters */
    for (size_t begin = 0, i = 1; i <= n_chars; i++) {
        if (i == n_chars || (chars[i] & TD_CHAR_CUT) != 0) {
            longest = i - begin > longest ? i - begin : longest;
            begin = i;
        }
    }
    word = td_alloc(longest, 4, err);
    if (word == NULL)
        goto done;
    for (size_t i = 0; i < n_chars;) {
        size_t n_word = 0;
        do
            n_word += td_utf8_encode(chars[i++] & TD_CHAR_CODEPOINT, word + n_word);
        while (i < n_chars && (chars[i] & TD_CHAR_CUT) == 0);
        if (!td_merge_bpe(w, t, word, n_word, out, err))
            goto done;
    }
    ok = true;
done:
    td_free(word);
    td_free(chars);
    return ok;
}

static bool tokenize_parts(const td_tokenizer *t, const char *text, const td_text_part *parts,
                           bool is_rest, td_id_list *out, td_err *err)
{
    td_merge_work *w = td_merge_work_create(err);
    if (w == NULL)
        return false;
    bool ok = true, after_special = !is_rest;
    for (uint32_t i = 0; ok && i != UINT32_MAX; i = parts[i].next) {
        const td_text_part *p = &parts[i];
        if (p->id != TD_NO_TOKEN) {
            ok = td_id_list_push(out, p->id, err);
            after_special = true;
        } else if (p->end > p->begin) {
            size_t n = p->end - p->begin;
            bool add_space = after_special && t->info.add_space_prefix;
            ok = t->is_spm ? tokenize_spm(t, w, text + p->begin, n, add_space, out, err)
                           : tokenize_bpe(t, w, text + p->begin, n, out, err);
            after_special = false;
        }
    }
    td_merge_work_destroy(&w);
    return ok;
}

/* How td_tokenize and its kin differ. */
typedef struct {
    td_added added;
    bool is_rest; /* the text continues another */
    td_text_ranges parsed;
} manner;

static bool check_length(size_t n_bytes, td_err *err)
{
    return n_bytes <= TD_TEXT_MAX ||
           td_err_set(err, TD_E_DATA, "a text of %zu bytes; the limit is %u", n_bytes, TD_TEXT_MAX);
}

static bool tokenize(const td_tokenizer *t, const char *text, size_t n_bytes, const manner *how,
                     uint32_t **ids, size_t *n_ids, td_err *err)
{
    td_id_list out = {0};
    td_text_part *parts = NULL;
    bool has_bos = how->added != TD_ADD_NOTHING && t->info.add_bos;
    bool ok = !has_bos || td_id_list_push(&out, t->info.bos, err);
    if (ok && n_bytes > 0)
        ok = td_special_split(t, text, (uint32_t)n_bytes, &how->parsed, &parts, err) &&
             tokenize_parts(t, text, parts, how->is_rest, &out, err);
    if (ok && has_bos && how->added == TD_ADD_FOR_PROMPT && out.n > 1 && out.ids[1] == t->info.bos)
        memmove(out.ids, out.ids + 1, --out.n * sizeof out.ids[0]);
    if (ok && how->added == TD_ADD_AS_FILE && t->info.add_eos)
        ok = td_id_list_push(&out, t->info.eos, err);
    td_free(parts);
    if (ok && out.ids == NULL) {
        out.ids = td_alloc(1, sizeof out.ids[0], err); /* an empty result is no NULL */
        ok = out.ids != NULL;
    }
    if (!ok) {
        td_free(out.ids);
        return false;
    }
    *ids = out.ids;
    *n_ids = out.n;
    return true;
}

bool td_tokenize(const td_tokenizer *t, const char *text, size_t n_bytes, td_added added,
                 bool parse_special, uint32_t **ids, size_t *n_ids, td_err *err)
{
    *ids = NULL;
    *n_ids = 0;
    if (!check_length(n_bytes, err))
        return false;
    td_text_range all = {0, (uint32_t)n_bytes};
    return tokenize(t, text, n_bytes,
                    &(manner){.added = added, .parsed = {&all, parse_special ? 1 : 0}}, ids, n_ids,
                    err);
}

bool td_tokenize_rest(const td_tokenizer *t, const char *text, size_t n_bytes, uint32_t **ids,
                      size_t *n_ids, td_err *err)
{
    *ids = NULL;
    *n_ids = 0;
    return check_length(n_bytes, err) &&
           tokenize(t, text, n_bytes, &(manner){.is_rest = true}, ids, n_ids, err);
}

bool td_tokenize_segments(const td_tokenizer *t, const td_text_segment *segments, size_t n_segments,
                          td_added added, uint32_t **ids, size_t *n_ids, td_err *err)
{
    size_t n_bytes = 0;
    *ids = NULL;
    *n_ids = 0;
    for (size_t i = 0; i < n_segments; i++) {
        if (!check_length(segments[i].n_bytes, err) ||
            !check_length(n_bytes += segments[i].n_bytes, err))
            return false;
    }
    char *text = td_alloc(n_bytes, 1, err);
    td_text_range *ranges = td_alloc(n_segments, sizeof ranges[0], err);
    manner how = {.added = added, .parsed = {ranges, 0}};
    bool ok = text != NULL && ranges != NULL;
    uint32_t at = 0;
    for (size_t i = 0; ok && i < n_segments; i++) {
        const td_text_segment *s = &segments[i];
        uint32_t end = at + (uint32_t)s->n_bytes;
        memcpy(text + at, s->text, s->n_bytes);
        if (s->is_special && how.parsed.n > 0 && ranges[how.parsed.n - 1].end == at)
            ranges[how.parsed.n - 1].end = end;
        else if (s->is_special)
            ranges[how.parsed.n++] = (td_text_range){at, end};
        at = end;
    }
    ok = ok && tokenize(t, text, n_bytes, &how, ids, n_ids, err);
    td_free(text);
    td_free(ranges);
    return ok;
}

const char *td_token_bytes(const td_tokenizer *t, uint32_t id, bool special, size_t *n_bytes)
{
    TD_ASSERT(id < t->info.n_vocab);
    const td_vocab_token *token = &t->tokens[id];
    *n_bytes = special || !td_token_is_control(t, id) ? token->n_piece : 0;
    return token->piece;
}

bool td_token_is_end(const td_tokenizer *t, uint32_t id)
{
    TD_ASSERT(id < t->info.n_vocab);
    return (t->tokens[id].attr & TD_ATTR_END) != 0;
}

bool td_token_is_control(const td_tokenizer *t, uint32_t id)
{
    TD_ASSERT(id < t->info.n_vocab);
    return (t->tokens[id].attr & (TD_ATTR_CONTROL | TD_ATTR_UNKNOWN)) != 0;
}

uint64_t td_tokenizer_hash(const td_tokenizer *t, uint32_t a, uint32_t b)
{
    TD_ASSERT(a <= b && b <= t->info.n_vocab);
    uint64_t h = b - a;
    for (uint32_t i = a; i < b; i++) {
        const td_vocab_token *token = &t->tokens[i];
        unsigned char head[3] = {token->type, (unsigned char)(token->n_text & 0xff),
                                 (unsigned char)(token->n_text >> 8)};
        h = td_hash64(h, head, sizeof head);
        h = td_hash64(h, token->text, token->n_text);
    }
    return h;
}
