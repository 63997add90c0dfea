/* Small vocabularies for tests, written as GGUF files in memory. */
#ifndef TD_TESTS_TOKENIZER_VOCABS_H
#define TD_TESTS_TOKENIZER_VOCABS_H

#include "gguf_writer.h"

#include "model/gguf.h"
#include "model/tokenizer.h"

#include <stdbool.h>

typedef struct {
    const char *text;
    size_t n; /* 0: strlen */
    int32_t type;
    float score;
} tv_token;

static inline void tv_tokens(gw *w, const tv_token *tokens, size_t n)
{
    gw_kv_array(w, "tokenizer.ggml.tokens", GW_STRING, n);
    for (size_t i = 0; i < n; i++)
        gw_str_n(w, tokens[i].text, tokens[i].n > 0 ? tokens[i].n : strlen(tokens[i].text));
}

static inline void tv_types(gw *w, const tv_token *tokens, size_t n)
{
    gw_kv_array(w, "tokenizer.ggml.token_type", GW_I32, n);
    for (size_t i = 0; i < n; i++)
        gw_u32(w, (uint32_t)tokens[i].type);
}

static inline void tv_scores(gw *w, const tv_token *tokens, size_t n)
{
    gw_kv_array(w, "tokenizer.ggml.scores", GW_F32, n);
    for (size_t i = 0; i < n; i++)
        gw_bytes(w, &tokens[i].score, 4);
}

/* A token of the byte alphabet of GPT-2: the character that stands for a byte. */
static inline size_t tv_byte_char(unsigned byte, char out[3])
{
    static const unsigned gaps[] = {0x00, 0x21, 0x7f, 0xa1, 0xad, 0xae};
    unsigned c = byte, before = 0;
    for (size_t i = 0; i < 6; i += 2) {
        if (byte >= gaps[i] && byte < gaps[i + 1])
            c = 0x100 + before + byte - gaps[i];
        before += gaps[i + 1] - gaps[i];
    }
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    out[0] = (char)(0xc0 | c >> 6);
    out[1] = (char)(0x80 | (c & 0x3f));
    return 2;
}

/* A tokenizer of the file, or NULL with err set. */
static inline td_tokenizer *tv_create(const gw *w, const char *pre, td_err *err)
{
    gw_file f = gw_file_create();
    gw_file_set(&f, w->bytes, w->n);
    td_gguf *g = td_gguf_open(f.path, err);
    td_tokenizer *t = g != NULL ? td_tokenizer_create(g, pre, err) : NULL;
    td_gguf_close(&g);
    close(f.fd);
    return t;
}

/* A vocabulary of texts: <unk> <s> </s>, the 256 byte tokens at 3.., then `extra`. */
static inline gw tv_texts(const char *model, const tv_token *extra, size_t n_extra)
{
    static tv_token tokens[259 + 64];
    static char texts[256][8];
    tokens[0] = (tv_token){"<unk>", 0, 2, 0};
    tokens[1] = (tv_token){"<s>", 0, 3, 0};
    tokens[2] = (tv_token){"</s>", 0, 3, 0};
    for (unsigned b = 0; b < 256; b++) {
        snprintf(texts[b], sizeof texts[b], "<0x%02X>", b);
        tokens[3 + b] = (tv_token){texts[b], 0, 6, 0};
    }
    for (size_t i = 0; i < n_extra; i++)
        tokens[259 + i] = extra[i];
    gw w = gw_begin(3);
    gw_kv_str(&w, "tokenizer.ggml.model", model);
    tv_tokens(&w, tokens, 259 + n_extra);
    tv_types(&w, tokens, 259 + n_extra);
    tv_scores(&w, tokens, 259 + n_extra);
    return w;
}

static inline gw tv_spm(const tv_token *extra, size_t n_extra)
{
    return tv_texts("llama", extra, n_extra);
}

/* Byte-level BPE: token b is byte b, then `extra`. No merges yet: the caller adds them. */
static inline gw tv_bpe(const char *pre, const tv_token *extra, size_t n_extra)
{
    static tv_token tokens[256 + 64];
    static char texts[256][3];
    for (unsigned b = 0; b < 256; b++)
        tokens[b] = (tv_token){texts[b], tv_byte_char(b, texts[b]), 1, 0};
    for (size_t i = 0; i < n_extra; i++)
        tokens[256 + i] = extra[i];
    gw w = gw_begin(3);
    gw_kv_str(&w, "tokenizer.ggml.model", "gpt2");
    gw_kv_str(&w, "tokenizer.ggml.pre", pre);
    tv_tokens(&w, tokens, 256 + n_extra);
    tv_types(&w, tokens, 256 + n_extra);
    return w;
}

static inline void tv_merges(gw *w, const char *const *merges, size_t n)
{
    gw_kv_array(w, "tokenizer.ggml.merges", GW_STRING, n);
    for (size_t i = 0; i < n; i++)
        gw_str(w, merges[i]);
}

#endif
