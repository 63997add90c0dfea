/* The inside of a td_tokenizer, shared by its source files and by nobody else.
 *
 * Byte-level BPE vocabularies write bytes as printable characters ("Ġ" for a space). Their texts
 * are turned back into bytes once, at load, and everything after that works on bytes; a token
 * with characters outside that alphabet (some control tokens) can only be matched as special. */
#ifndef TD_MODEL_TOKENIZER_PRIVATE_H
#define TD_MODEL_TOKENIZER_PRIVATE_H

#include "model/pretokenize.h"
#include "model/tokenizer.h"

/* Attributes of a token, bits. */
enum {
    TD_ATTR_NORMAL = 1,
    TD_ATTR_UNKNOWN = 2,
    TD_ATTR_CONTROL = 4,
    TD_ATTR_USER = 8, /* user-defined: found in any text, whether or not specials are parsed */
    TD_ATTR_BYTE = 16,
    TD_ATTR_END = 32,         /* ends a generation */
    TD_ATTR_STRIP_RIGHT = 64, /* takes the white space after it */
    TD_ATTR_SHOWN = 128 /* a control token in the file, shown all the same; never found in a text
                         * whose specials are not parsed */
};

typedef struct {
    const char *text;  /* as in the file */
    const char *word;  /* the bytes of a text that can become it; none if n_word is 0 */
    const char *piece; /* the bytes it stands for; `text` for special tokens */
    uint32_t n_text, n_word, n_piece;
    float score;
    uint8_t type; /* as in the file */
    uint8_t attr;
} td_vocab_token;

typedef struct {      /* bytes -> token id; open addressing */
    uint32_t *slots;  /* [n_slots], id + 1, 0 for empty */
    uint32_t n_slots; /* a power of two, at least twice the tokens */
    uint32_t max_key; /* bytes of the longest key */
    bool by_word;     /* keys are words, not texts */
} td_vocab_table;

typedef struct {
    uint64_t pair; /* left id << 32 | right id; UINT64_MAX for empty */
    uint32_t rank; /* lower merges first */
    uint32_t id;   /* of the merged token */
} td_vocab_merge;

typedef struct { /* special tokens of one length */
    uint32_t n_bytes;
    int first; /* the byte they all begin with, or -1 */
    bool begins[256];
    bool has_user;
} td_special_class;

struct td_tokenizer {
    td_tokenizer_info info;
    bool is_spm;    /* SentencePiece-type: merges by score */
    bool is_spaced; /* texts are text, U+2581 standing for a space; not the alphabet of bytes */
    const td_pretokenizer *pre; /* byte-level BPE only */
    td_vocab_token *tokens;     /* [n_vocab] */
    char *bytes;                /* what the tokens point into */
    td_vocab_table words;       /* every token that text can become */
    td_vocab_table specials;    /* by text, special tokens only */
    td_special_class *classes;  /* [n_classes], longest first */
    uint32_t n_classes;
    td_vocab_merge *merges; /* [n_merge_slots], open addressing */
    uint32_t n_merge_slots;
    uint32_t byte_ids[256]; /* the token of a lone byte, or TD_NO_TOKEN */
};

typedef struct { /* growing list of ids */
    uint32_t *ids;
    size_t n, capacity;
} td_id_list;

typedef struct { /* a part of a text: raw bytes begin..end, or one special token */
    uint32_t begin, end;
    uint32_t id;   /* TD_NO_TOKEN: raw */
    uint32_t next; /* index of the next part, UINT32_MAX after the last */
} td_text_part;

typedef struct { /* begin..end-1 of a text */
    uint32_t begin, end;
} td_text_range;

typedef struct {
    const td_text_range *items; /* [n], ascending, apart from each other */
    uint32_t n;
} td_text_ranges;

/* tokenizer_table.c */
bool td_vocab_table_init(td_vocab_table *t, uint32_t n_tokens, bool by_word, td_err *err);
/* Adds a token; *is_new is false if another has the same key, which then stays. */
bool td_vocab_table_add(td_vocab_table *t, const td_vocab_token *tokens, uint32_t id, bool *is_new,
                        td_err *err);
uint32_t td_vocab_table_find(const td_vocab_table *t, const td_vocab_token *tokens, const char *key,
                             size_t n_bytes); /* TD_NO_TOKEN if absent */
bool td_vocab_merges_init(td_tokenizer *t, uint32_t n_merges, td_err *err);
bool td_vocab_merges_add(td_tokenizer *t, uint32_t left, uint32_t right, uint32_t rank, uint32_t id,
                         td_err *err); /* the first of equal pairs stays */
const td_vocab_merge *td_vocab_merges_find(const td_tokenizer *t, uint32_t left, uint32_t right);

/* tokenizer_special.c: marks the tokens known by their text as control, end, ... and fills in the
 * ids that the file does not give; builds the classes; cuts a text at its special tokens. */
bool td_special_classify(td_tokenizer *t, const td_gguf *g, td_err *err);
bool td_special_index(td_tokenizer *t, td_err *err);
/* Control tokens are found where they lie within one of the `parsed` ranges.
 * *parts is from td_alloc; the first part is (*parts)[0]; n_bytes > 0. */
bool td_special_split(const td_tokenizer *t, const char *text, uint32_t n_bytes,
                      const td_text_ranges *parsed, td_text_part **parts, td_err *err);

/* tokenizer_bytes.c: the printable alphabet of byte-level BPE. Decoding gives the number of bytes
 * (at most n_text), or SIZE_MAX if the text is not all in the alphabet. */
size_t td_bpe_decode(const char *text, size_t n_text, char *out);
/* The same, but other characters stay as they are (token pieces). */
size_t td_bpe_decode_lossy(const char *text, size_t n_text, char *out);

/* tokenizer_merge.c: the merge loops; append the tokens of a text to `out`. */
typedef struct td_merge_work td_merge_work;
td_merge_work *td_merge_work_create(td_err *err);
void td_merge_work_destroy(td_merge_work **w);
bool td_merge_spm(td_merge_work *w, const td_tokenizer *t, const char *text, size_t n_bytes,
                  td_id_list *out, td_err *err);
bool td_merge_bpe(td_merge_work *w, const td_tokenizer *t, const char *word, size_t n_bytes,
                  td_id_list *out, td_err *err);
bool td_id_list_push(td_id_list *l, uint32_t id, td_err *err);

#endif
