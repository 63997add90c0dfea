/* Streaming detokenization. Tokens may end in the middle of a character; its bytes are held until
 * the rest comes. */
#include "model/tokenizer.h"

#include "base/check.h"
#include "base/utf8.h"

#include <string.h>

static size_t put(char *out, size_t cap, size_t n, uint32_t codepoint)
{
    char bytes[4];
    size_t length = td_utf8_encode(codepoint, bytes);
    TD_ASSERT(length <= cap - n);
    memcpy(out + n, bytes, length);
    return n + length;
}

void td_detokenize(td_detokenizer *d, const td_tokenizer *t, uint32_t id, char *out, size_t cap,
                   size_t *n_out)
{
    char bytes[sizeof d->held + TD_TOKEN_MAX];
    size_t n_piece, n = 0;
    const char *piece = td_token_bytes(t, id, false, &n_piece);
    *n_out = 0;
    if (n_piece == 0)
        return;
    TD_ASSERT(cap >= TD_DETOKENIZE_MAX);
    if (!d->is_begun && td_tokenizer_get_info(t)->add_space_prefix && piece[0] == ' ') {
        piece++;
        n_piece--;
    }
    d->is_begun = true;
    memcpy(bytes, d->held, d->n_held);
    memcpy(bytes + d->n_held, piece, n_piece);
    size_t n_bytes = d->n_held + n_piece;
    d->n_held = 0;
    for (size_t at = 0; at < n_bytes;) {
        uint32_t c;
        size_t length = td_utf8_next(bytes + at, n_bytes - at, &c);
        if (c == TD_UTF8_CUT) {
            memcpy(d->held, bytes + at, length);
            d->n_held = (uint32_t)length;
        } else {
            n = put(out, cap, n, c == TD_UTF8_BAD ? TD_UTF8_REPLACEMENT : c);
        }
        at += length;
    }
    *n_out = n;
}

void td_detokenize_end(td_detokenizer *d, char *out, size_t cap, size_t *n_out)
{
    *n_out = d->n_held > 0 ? put(out, cap, 0, TD_UTF8_REPLACEMENT) : 0;
    d->n_held = 0;
}
