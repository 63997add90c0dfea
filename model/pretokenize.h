/* Pre-tokenizers: cut a text into the words within which byte-level BPE merges. Each is a published
 * regular expression (quoted beside its scanner), here a hand-written scanner over code points and
 * their classes, linear in the text; no regular expression engine is involved.
 *
 * A text is an array of td_chars: code point, class and a mark "a word begins here" in 32 bits.
 * Works in place, allocates nothing, has no errors; any thread. */
#ifndef TD_MODEL_PRETOKENIZE_H
#define TD_MODEL_PRETOKENIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint32_t td_char;

#define TD_CHAR_CODEPOINT   0x001fffffu
#define TD_CHAR_CLASS_SHIFT 21
#define TD_CHAR_CLASS_MASK  0x3fu
#define TD_CHAR_CUT         0x80000000u /* a word begins at this character */

#define TD_PRETOKENIZE_STAGES 6

/* Marks the words of chars[begin..end), one word of the stage before. */
typedef void td_pretokenize_stage(td_char *chars, size_t begin, size_t end);

typedef struct {
    const char *name;                                    /* the value of tokenizer.ggml.pre */
    td_pretokenize_stage *stages[TD_PRETOKENIZE_STAGES]; /* each cuts the words of the one before */
    bool ignore_merges; /* a word that is a token is taken whole, even if no merges lead to it */
    bool add_bos;       /* where the file does not say */
} td_pretokenizer;

/* The pre-tokenizer of that name, or NULL. */
const td_pretokenizer *td_pretokenize_find(const char *name);
/* The i-th known name, NULL after the last. */
const char *td_pretokenize_name(size_t i);

/* A code point (<= 0x10ffff) with its class. */
td_char td_pretokenize_char(uint32_t codepoint);
/* Sets TD_CHAR_CUT on the first character of each word of chars[0..n) and clears it elsewhere. */
void td_pretokenize_run(const td_pretokenizer *p, td_char *chars, size_t n);

#endif
