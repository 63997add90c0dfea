/* Loading a vocabulary from the metadata of a GGUF file. Everything in it is hostile: counts, ids,
 * types and texts are checked here, so that the rest may trust a td_tokenizer. */
#include "model/tokenizer_private.h"

#include "base/check.h"
#include "base/mem.h"
#include "base/text.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define MERGES_MAX (1u << 22)

/* tokenizer.ggml.token_type. */
enum {
    TYPE_UNDEFINED,
    TYPE_NORMAL,
    TYPE_UNKNOWN,
    TYPE_CONTROL,
    TYPE_USER,
    TYPE_UNUSED,
    TYPE_BYTE,
    TYPE_COUNT
};

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* "<0xXX>": the byte, or -1 for any other text. */
static int byte_of_text(const char *text, uint32_t n)
{
    if (n != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>')
        return -1;
    int high = hex_digit(text[3]), low = hex_digit(text[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

static bool read_model(td_tokenizer *t, const td_gguf *g, const char *pre_override, td_err *err)
{
    const char *model, *pre = "";
    size_t n;
    if (!td_gguf_get_str(g, "tokenizer.ggml.model", &model, &n, err))
        return false;
    static const char *const models[] = {"gpt2", "llama", "gemma4"};
    for (size_t i = 0; i < TD_COUNT(models); i++)
        if (strlen(models[i]) == n && memcmp(model, models[i], n) == 0)
            t->info.model = models[i];
    if (t->info.model == NULL)
        return td_err_set(err, TD_E_DATA,
                          "tokenizer.ggml.model: %s is not supported; known: \"llama\", \"gpt2\", "
                          "\"gemma4\"",
                          td_text_quote(model, n).text);
    t->is_spm = t->info.model == models[1];
    t->is_spaced = t->info.model != models[0];
    t->info.pre = "";
    if (t->is_spaced && pre_override != NULL)
        return td_err_set(err, TD_E_USAGE,
                          "pre-tokenizer \"%.64s\": this file's tokenizer is SentencePiece-type "
                          "(tokenizer.ggml.model \"%s\"), which has none",
                          pre_override, t->info.model);
    if (t->is_spm)
        return true;
    if (t->is_spaced)
        pre = "gemma4"; /* whatever the file says: its merges know nothing of words */
    else if (pre_override != NULL)
        pre = pre_override;
    else if (td_gguf_has(g, "tokenizer.ggml.pre") &&
             !td_gguf_get_str(g, "tokenizer.ggml.pre", &pre, NULL, err))
        return false;
    if (pre[0] == 0)
        pre = "default"; /* files from before the key existed */
    t->pre = td_pretokenize_find(pre);
    if (t->pre != NULL) {
        t->info.pre = t->pre->name;
        return true;
    }
    char list[TD_ERR_MESSAGE_MAX] = "";
    size_t used = 0;
    const char *name;
    for (size_t i = 0; (name = td_pretokenize_name(i)) != NULL && used < sizeof list; i++)
        used += (size_t)snprintf(list + used, sizeof list - used, "%s%s", i > 0 ? ", " : "", name);
    return td_err_set(err, pre_override != NULL ? TD_E_USAGE : TD_E_DATA,
                      "tokenizer.ggml.pre: %s is not supported; known: %s",
                      td_text_quote(pre, strlen(pre)).text, list);
}

static uint8_t attr_of(int64_t type)
{
    switch (type) {
    case TYPE_NORMAL:
        return TD_ATTR_NORMAL;
    case TYPE_UNKNOWN:
        return TD_ATTR_UNKNOWN;
    case TYPE_CONTROL:
        return TD_ATTR_CONTROL;
    case TYPE_USER:
        return TD_ATTR_USER;
    case TYPE_BYTE:
        return TD_ATTR_BYTE;
    default: /* unused and undefined tokens stand for no text */
        return 0;
    }
}

/* Copies the texts; `bytes` has room for each twice, as its piece needs no more. */
static bool read_texts(td_tokenizer *t, const td_gguf *g, td_err *err)
{
    td_gguf_array texts;
    const char *key = "tokenizer.ggml.tokens";
    if (!td_gguf_get_array(g, key, TD_GGUF_STRING, &texts, err))
        return false;
    if (texts.n < 1 || texts.n > TD_VOCAB_MAX)
        return td_err_set(err, TD_E_DATA, "%s: %u tokens; allowed are 1 to %u", key, texts.n,
                          TD_VOCAB_MAX);
    size_t total = 0, n;
    for (uint32_t i = 0; i < texts.n; i++) {
        (void)td_gguf_array_str(&texts, i, &n);
        if (n > TD_TOKEN_MAX)
            return td_err_set(err, TD_E_DATA, "%s: token %u has %zu bytes; the limit is %u", key, i,
                              n, TD_TOKEN_MAX);
        total += n;
    }
    t->info.n_vocab = texts.n;
    t->tokens = td_alloc(texts.n, sizeof t->tokens[0], err);
    t->bytes = td_alloc(2 * total, 1, err);
    if (t->tokens == NULL || t->bytes == NULL)
        return false;
    char *to = t->bytes;
    for (uint32_t i = 0; i < texts.n; i++) {
        const char *text = td_gguf_array_str(&texts, i, &n);
        memcpy(to, text, n);
        t->tokens[i].text = to;
        t->tokens[i].n_text = (uint32_t)n;
        t->tokens[i].type = TYPE_NORMAL;
        t->tokens[i].attr = TD_ATTR_NORMAL;
        to += 2 * n; /* the second half is the piece's */
    }
    return true;
}

static bool check_length(const char *key, uint32_t n, uint32_t n_vocab, td_err *err)
{
    if (n == n_vocab)
        return true;
    return td_err_set(err, TD_E_DATA, "%s: %u entries for a vocabulary of %u tokens", key, n,
                      n_vocab);
}

static bool read_types(td_tokenizer *t, const td_gguf *g, td_err *err)
{
    const char *key = "tokenizer.ggml.token_type";
    td_gguf_array types;
    if (!td_gguf_has(g, key))
        return true;
    if (!td_gguf_get_int_array(g, key, &types, err) ||
        !check_length(key, types.n, t->info.n_vocab, err))
        return false;
    for (uint32_t i = 0; i < types.n; i++) {
        int64_t type = td_gguf_array_int(&types, i);
        if (type < 0 || type >= TYPE_COUNT)
            return td_err_set(err, TD_E_DATA, "%s: token %u has type %lld; allowed are 0 to %d",
                              key, i, (long long)type, TYPE_COUNT - 1);
        const td_vocab_token *token = &t->tokens[i];
        if (type == TYPE_BYTE && byte_of_text(token->text, token->n_text) < 0)
            return td_err_set(err, TD_E_DATA,
                              "tokenizer.ggml.tokens: byte token %u is %s; expected \"<0x00>\" to "
                              "\"<0xFF>\"",
                              i, td_text_quote(token->text, token->n_text).text);
        t->tokens[i].type = (uint8_t)type;
        t->tokens[i].attr = attr_of(type);
    }
    return true;
}

static bool read_scores(td_tokenizer *t, const td_gguf *g, td_err *err)
{
    const char *key = "tokenizer.ggml.scores";
    td_gguf_array scores;
    if (!t->is_spm || !td_gguf_has(g, key))
        return true;
    if (!td_gguf_get_array(g, key, TD_GGUF_F32, &scores, err) ||
        !check_length(key, scores.n, t->info.n_vocab, err))
        return false;
    for (uint32_t i = 0; i < scores.n; i++) {
        float score = td_gguf_array_f32(&scores, i);
        if (isnan(score))
            return td_err_set(err, TD_E_DATA, "%s: the score of token %u is not a number", key, i);
        t->tokens[i].score = score;
    }
    return true;
}

/* U+2581 stands for a space in SentencePiece texts. */
static uint32_t unescape_spaces(const char *text, uint32_t n_text, char *out)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < n_text;) {
        bool is_space = n_text - i >= 3 && memcmp(text + i, "\xe2\x96\x81", 3) == 0;
        out[n++] = is_space ? ' ' : text[i];
        i += is_space ? 3 : 1;
    }
    return n;
}

/* The bytes of text that each token is made from: in SentencePiece vocabularies its text, in
 * byte-level ones what the text decodes to. */
static void make_words(td_tokenizer *t)
{
    for (uint32_t i = 0; i < t->info.n_vocab; i++) {
        td_vocab_token *token = &t->tokens[i];
        if (t->is_spaced) {
            token->word = token->text;
            token->n_word = token->n_text;
            continue;
        }
        char *room = t->bytes + (token->text - t->bytes) + token->n_text;
        size_t n = td_bpe_decode(token->text, token->n_text, room);
        token->word = room;
        token->n_word = n == SIZE_MAX ? 0 : (uint32_t)n;
    }
}

/* What each token stands for in a text; special ones for their own text. */
static void make_pieces(td_tokenizer *t)
{
    for (uint32_t i = 0; i < t->info.n_vocab; i++) {
        td_vocab_token *token = &t->tokens[i];
        char *room = t->bytes + (token->text - t->bytes) + token->n_text;
        bool is_special = (token->attr & (TD_ATTR_CONTROL | TD_ATTR_USER | TD_ATTR_UNKNOWN)) != 0;
        token->piece = room;
        if (is_special) {
            token->piece = token->text;
            token->n_piece = token->n_text;
        } else if ((token->attr & (TD_ATTR_BYTE | TD_ATTR_NORMAL)) == 0) {
            token->n_piece = 0;
        } else if (!t->is_spaced && (token->n_word > 0 || token->n_text == 0)) {
            token->n_piece = token->n_word; /* already there */
        } else if ((token->attr & TD_ATTR_BYTE) != 0) {
            *room = (char)byte_of_text(token->text, token->n_text);
            token->n_piece = 1;
        } else if (t->is_spaced) {
            token->n_piece = unescape_spaces(token->text, token->n_text, room);
        } else {
            token->n_piece = (uint32_t)td_bpe_decode_lossy(token->text, token->n_text, room);
        }
    }
}

/* The tables of words and, until the special tokens are known, of all texts. */
static bool index_tokens(td_tokenizer *t, td_err *err)
{
    if (!td_vocab_table_init(&t->words, t->info.n_vocab, true, err) ||
        !td_vocab_table_init(&t->specials, t->info.n_vocab, false, err))
        return false;
    for (uint32_t i = 0; i < t->info.n_vocab; i++) {
        const td_vocab_token *token = &t->tokens[i];
        bool is_new;
        if (token->n_text == 0)
            continue;
        if (!td_vocab_table_add(&t->specials, t->tokens, i, &is_new, err))
            return false;
        if (!is_new)
            return td_err_set(
                err, TD_E_DATA, "tokenizer.ggml.tokens: token %u is %s, which token %u is already",
                i, td_text_quote(token->text, token->n_text).text,
                td_vocab_table_find(&t->specials, t->tokens, token->text, token->n_text));
        if (token->n_word > 0 && !td_vocab_table_add(&t->words, t->tokens, i, &is_new, err))
            return false;
    }
    return true;
}

static void index_bytes(td_tokenizer *t)
{
    for (uint32_t b = 0; b < 256; b++) {
        char byte = (char)b, text[8];
        uint32_t id = TD_NO_TOKEN;
        if (t->is_spaced) {
            snprintf(text, sizeof text, "<0x%02X>", (unsigned)b);
            id = td_vocab_table_find(&t->words, t->tokens, text, 6);
        }
        if (id == TD_NO_TOKEN)
            id = td_vocab_table_find(&t->words, t->tokens, &byte, 1);
        t->byte_ids[b] = id;
    }
}

/* One half of a merge, or both as one: the token, or an error that names it. */
static bool find_merged(const td_tokenizer *t, uint32_t i_merge, const char *text, size_t n,
                        uint32_t *id, td_err *err)
{
    char word[2 * TD_TOKEN_MAX];
    size_t n_word = n <= sizeof word && !t->is_spaced ? td_bpe_decode(text, n, word) : SIZE_MAX;
    *id = TD_NO_TOKEN;
    if (t->is_spaced)
        *id = td_vocab_table_find(&t->words, t->tokens, text, n);
    else if (n_word != SIZE_MAX && n_word > 0)
        *id = td_vocab_table_find(&t->words, t->tokens, word, n_word);
    if (*id != TD_NO_TOKEN)
        return true;
    return td_err_set(err, TD_E_DATA, "tokenizer.ggml.merges: merge %u: %s is not a token", i_merge,
                      td_text_quote(text, n).text);
}

static bool read_merge(td_tokenizer *t, uint32_t i, const char *text, size_t n, td_err *err)
{
    char joined[2 * TD_TOKEN_MAX];
    const char *space = n > 1 ? memchr(text + 1, ' ', n - 1) : NULL;
    if (space == NULL || n > sizeof joined)
        return td_err_set(
            err, TD_E_DATA,
            "tokenizer.ggml.merges: merge %u is %s; expected two tokens of at most %u "
            "bytes with a space between",
            i, td_text_quote(text, n).text, TD_TOKEN_MAX);
    size_t n_left = (size_t)(space - text), n_right = n - n_left - 1;
    memcpy(joined, text, n_left);
    memcpy(joined + n_left, space + 1, n_right);
    uint32_t left, right, both;
    return find_merged(t, i, text, n_left, &left, err) &&
           find_merged(t, i, space + 1, n_right, &right, err) &&
           find_merged(t, i, joined, n_left + n_right, &both, err) &&
           td_vocab_merges_add(t, left, right, i, both, err);
}

static bool read_merges(td_tokenizer *t, const td_gguf *g, td_err *err)
{
    const char *key = "tokenizer.ggml.merges";
    td_gguf_array merges = {.n = 0};
    if (t->is_spm)
        return true;
    if (!td_gguf_get_array(g, key, TD_GGUF_STRING, &merges, err))
        return false;
    if (merges.n > MERGES_MAX)
        return td_err_set(err, TD_E_DATA, "%s: %u merges; the limit is %u", key, merges.n,
                          MERGES_MAX);
    if (!td_vocab_merges_init(t, merges.n, err))
        return false;
    for (uint32_t i = 0; i < merges.n; i++) {
        size_t n;
        const char *text = td_gguf_array_str(&merges, i, &n);
        if (!read_merge(t, i, text, n, err))
            return false;
    }
    return true;
}

/* An id that is acted on must be a token; one that is not (`strict` false) may be anything, as
 * files exist that name a padding token they lack. 2^32 - 1 says "none". */
static bool read_id(const td_tokenizer *t, const td_gguf *g, const char *key, uint32_t fallback,
                    bool strict, uint32_t *id, td_err *err)
{
    *id = fallback < t->info.n_vocab ? fallback : TD_NO_TOKEN;
    if (!td_gguf_has(g, key))
        return true;
    uint32_t value;
    if (!td_gguf_get_u32(g, key, &value, strict ? err : NULL))
        return !strict;
    if (value < t->info.n_vocab)
        *id = value;
    else if (value == UINT32_MAX || !strict)
        *id = TD_NO_TOKEN;
    else
        return td_err_set(err, TD_E_DATA, "%s: token %u of a vocabulary of %u tokens", key, value,
                          t->info.n_vocab);
    return true;
}

static bool read_flag(const td_gguf *g, const char *key, bool fallback, bool *out, td_err *err)
{
    *out = fallback;
    return !td_gguf_has(g, key) || td_gguf_get_bool(g, key, out, err);
}

static bool read_settings(td_tokenizer *t, const td_gguf *g, td_err *err)
{
    td_tokenizer_info *info = &t->info;
    bool spm = t->is_spm;
    if (!read_id(t, g, "tokenizer.ggml.bos_token_id", spm ? 1 : TD_NO_TOKEN, true, &info->bos,
                 err) ||
        !read_id(t, g, "tokenizer.ggml.eos_token_id", spm ? 2 : TD_NO_TOKEN, true, &info->eos,
                 err) ||
        !read_id(t, g, "tokenizer.ggml.unknown_token_id", spm ? 0 : TD_NO_TOKEN, false, &info->unk,
                 err) ||
        !read_id(t, g, "tokenizer.ggml.padding_token_id", TD_NO_TOKEN, false, &info->pad, err) ||
        !read_flag(g, "tokenizer.ggml.add_space_prefix", true, &info->add_space_prefix, err) ||
        !read_flag(g, "tokenizer.ggml.add_eos_token", false, &info->add_eos, err))
        return false;
    info->add_space_prefix &= spm;
    bool default_bos = info->bos != TD_NO_TOKEN && (spm || t->pre->add_bos);
    if (!read_flag(g, "tokenizer.ggml.add_bos_token", default_bos, &info->add_bos, err))
        return false;
    if (t->is_spaced && !spm && info->bos != TD_NO_TOKEN)
        info->add_bos = true; /* Gemma 4, of which early files say no */
    if (info->add_bos && info->bos == TD_NO_TOKEN)
        return td_err_set(err, TD_E_DATA,
                          "tokenizer.ggml.add_bos_token is true, but there is no bos_token_id");
    if (info->add_eos && info->eos == TD_NO_TOKEN)
        return td_err_set(err, TD_E_DATA,
                          "tokenizer.ggml.add_eos_token is true, but there is no eos_token_id");
    return true;
}

/* Phi-3 was trained with special tokens that swallow the white space after them. Its files do not
 * say so; the reference knows it by the model's name, and so must we. */
static bool mark_stripping(td_tokenizer *t, const td_gguf *g, td_err *err)
{
    static const char *const keep[] = {"<unk>", "<s>", "<|endoftext|>"};
    const char *name;
    td_gguf_value_type type = TD_GGUF_VALUE_COUNT;
    for (uint32_t i = 0; i < td_gguf_n_keys(g); i++) {
        if (strcmp(td_gguf_key_at(g, i, &type), "general.name") == 0)
            break;
        type = TD_GGUF_VALUE_COUNT;
    }
    if (type != TD_GGUF_STRING)
        return true;
    if (!td_gguf_get_str(g, "general.name", &name, NULL, err))
        return false;
    if (strcasestr(name, "phi-3") == NULL && strcasestr(name, "phi3") == NULL)
        return true;
    for (uint32_t i = 0; i < t->info.n_vocab; i++) {
        td_vocab_token *token = &t->tokens[i];
        if ((token->attr & (TD_ATTR_CONTROL | TD_ATTR_USER | TD_ATTR_UNKNOWN)) == 0)
            continue;
        bool kept = false;
        for (size_t k = 0; k < TD_COUNT(keep); k++)
            kept |= token->n_text == strlen(keep[k]) &&
                    memcmp(token->text, keep[k], token->n_text) == 0;
        if (!kept)
            token->attr |= TD_ATTR_STRIP_RIGHT;
    }
    return true;
}

td_tokenizer *td_tokenizer_create(const td_gguf *g, const char *pre_override, td_err *err)
{
    td_tokenizer *t = td_alloc(1, sizeof *t, err);
    if (t == NULL)
        return NULL;
    if (!read_model(t, g, pre_override, err) || !read_texts(t, g, err) || !read_types(t, g, err) ||
        !read_scores(t, g, err))
        goto fail;
    make_words(t);
    if (!index_tokens(t, err) || !read_merges(t, g, err) || !read_settings(t, g, err) ||
        !td_special_classify(t, g, err) || !mark_stripping(t, g, err))
        goto fail;
    make_pieces(t);
    index_bytes(t);
    if (!td_special_index(t, err))
        goto fail;
    return t;
fail:
    td_tokenizer_destroy(&t);
    return NULL;
}

void td_tokenizer_destroy(td_tokenizer **t)
{
    if (*t == NULL)
        return;
    td_free((*t)->tokens);
    td_free((*t)->bytes);
    td_free((*t)->words.slots);
    td_free((*t)->specials.slots);
    td_free((*t)->classes);
    td_free((*t)->merges);
    td_free(*t);
    *t = NULL;
}
