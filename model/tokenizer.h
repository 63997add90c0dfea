/* Tokenizers of GGUF files: SentencePiece-type (`llama`), byte-level BPE (`gpt2`) with a
 * pre-tokenizer named by tokenizer.ggml.pre, and BPE on the text itself (`gemma4`). Equal to the
 * reference in golden/vocab, case by case.
 *
 * Control tokens in the text are parsed only when `parse_special` is set, so that user text cannot
 * inject them; tokens that the file types as user-defined are found in any text, as in the
 * reference. Text should be UTF-8 and may hold NUL bytes; of ill-formed sequences SentencePiece
 * vocabularies give the bytes, byte-level ones a U+FFFD for each byte.
 * Owns all it needs: the td_gguf may be closed after create. Immutable; any thread.
 * Errors: TD_E_DATA (vocabulary malformed or unsupported, with the list of known ones), TD_E_USAGE
 * (a bad pre_override), TD_E_NOMEM.
 * Limits: a vocabulary of 1..2^20 tokens of at most 1 KiB each and 2^22 merges; a text of at most
 * 16 MiB. Time is n log n in the text, whatever the text; memory up to 64 bytes per byte. */
#ifndef TD_MODEL_TOKENIZER_H
#define TD_MODEL_TOKENIZER_H

#include "base/err.h"
#include "model/gguf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TD_VOCAB_MAX (1u << 20)
#define TD_TOKEN_MAX 1024u       /* bytes of one token's text */
#define TD_TEXT_MAX  (16u << 20) /* bytes of a text to tokenize */
#define TD_NO_TOKEN  UINT32_MAX

typedef struct td_tokenizer td_tokenizer;

typedef struct {
    const char *model; /* "llama", "gpt2" or "gemma4" */
    const char *pre;   /* pre-tokenizer in use, "" for none */
    uint32_t n_vocab;
    uint32_t bos, eos, eot, unk, pad; /* ids or TD_NO_TOKEN */
    bool add_bos, add_eos, add_space_prefix;
} td_tokenizer_info;

/* `pre_override` (or NULL) replaces tokenizer.ggml.pre; an error for vocabularies of other models,
 * which have none. A file without the key gets "default". */
td_tokenizer *td_tokenizer_create(const td_gguf *g, const char *pre_override, td_err *err);
void td_tokenizer_destroy(td_tokenizer **t);
const td_tokenizer_info *td_tokenizer_get_info(const td_tokenizer *t);

/* What is added to a text: as the file asks, BOS before and EOS after it; or what a prompt needs,
 * which is to go on: BOS alone, and not before a text that begins with it. */
typedef enum { TD_ADD_NOTHING, TD_ADD_FOR_PROMPT, TD_ADD_AS_FILE } td_added;

/* Tokenizes text[n_bytes]. *ids is from td_alloc (free with td_free; not NULL even if empty) and
 * *n_ids its length; on an error *ids is NULL. TD_E_DATA also for a byte that the vocabulary has no
 * token for, where it has no unknown token either. */
bool td_tokenize(const td_tokenizer *t, const char *text, size_t n_bytes, td_added added,
                 bool parse_special, uint32_t **ids, size_t *n_ids, td_err *err);

/* A text in pieces, such as a conversation: tokenized as the one text they make up together, except
 * that control tokens are only found within runs of special segments. Else as td_tokenize. */
typedef struct {
    const char *text;
    size_t n_bytes;
    bool is_special;
} td_text_segment;
bool td_tokenize_segments(const td_tokenizer *t, const td_text_segment *segments, size_t n_segments,
                          td_added added, uint32_t **ids, size_t *n_ids, td_err *err);

/* Tokenizes text that continues other text: nothing is added before it, nothing in it is special.
 * *ids as above. */
bool td_tokenize_rest(const td_tokenizer *t, const char *text, size_t n_bytes, uint32_t **ids,
                      size_t *n_ids, td_err *err);

/* The bytes of one token as text (byte tokens as their byte, SentencePiece's U+2581 as a space).
 * Control tokens give their text when `special`, else nothing. id < n_vocab. Borrowed; may hold
 * zeros. */
const char *td_token_bytes(const td_tokenizer *t, uint32_t id, bool special, size_t *n_bytes);

/* True for tokens that end a generation: EOS, end of turn, end of message; by the ids in the file
 * and by text. */
bool td_token_is_end(const td_tokenizer *t, uint32_t id);
/* True for control and unknown tokens, which are not shown as text. */
bool td_token_is_control(const td_tokenizer *t, uint32_t id);

/* Hash of the texts and types of tokens a..b-1 (b <= n_vocab), for the hello of two peers. */
uint64_t td_tokenizer_hash(const td_tokenizer *t, uint32_t a, uint32_t b);

/* Streaming detokenization that never splits a UTF-8 character: bytes of an unfinished character
 * are held back until it is complete (or shown to be invalid, then U+FFFD by the Unicode
 * "maximal subpart" practice). Control tokens give nothing. Zero-initialise; one stream per text.
 * Set is_begun at the start for text that continues other text, such as a completion of a prompt:
 * its first space is its own. */
typedef struct {
    unsigned char held[4];
    uint32_t n_held;
    bool is_begun; /* the first token's leading space of add_space_prefix vocabularies is dropped */
} td_detokenizer;

#define TD_DETOKENIZE_MAX (TD_TOKEN_MAX * 3 + 4) /* bytes that one token may give */

/* Writes the text that `id` completes to out[cap], cap >= TD_DETOKENIZE_MAX; *n_out: its length. */
void td_detokenize(td_detokenizer *d, const td_tokenizer *t, uint32_t id, char *out, size_t cap,
                   size_t *n_out);
/* Ends the stream: what is held becomes U+FFFD (at most 3 bytes). */
void td_detokenize_end(td_detokenizer *d, char *out, size_t cap, size_t *n_out);

#endif
