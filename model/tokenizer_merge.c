/* Merging symbols into tokens. Both kinds of vocabulary do the same: of all neighbouring pairs
 * that form a token, merge the best, the leftmost of equals, until none is left. A heap of
 * candidate pairs makes that n log n for a text of n symbols, whatever the text.
 *
 * A candidate in the heap is a priority and a left symbol in 8 bytes. It goes stale when one of
 * its symbols merges elsewhere; each symbol knows the candidate that it now begins, so one that
 * does not match is dropped when it comes up. */
#include "model/tokenizer_private.h"

#include "base/check.h"
#include "base/mem.h"

#include <string.h>

#define NONE UINT32_MAX

typedef struct {
    uint32_t id;    /* of its token, or TD_NO_TOKEN */
    uint32_t begin; /* byte offset in the text */
    uint32_t n;     /* bytes */
    uint32_t prev, next;
    uint32_t merged_id; /* the token it forms with `next`; TD_NO_TOKEN: none, or itself gone */
    uint32_t priority;  /* of that merge */
} symbol;

struct td_merge_work {
    symbol *symbols;
    size_t n_symbols, symbols_max;
    uint64_t *heap; /* 4-ary; priority << 32 | left symbol, the smallest merges first */
    size_t n_heap, heap_max;
};

td_merge_work *td_merge_work_create(td_err *err) { return td_alloc(1, sizeof(td_merge_work), err); }

void td_merge_work_destroy(td_merge_work **w)
{
    if (*w == NULL)
        return;
    td_free((*w)->symbols);
    td_free((*w)->heap);
    td_free(*w);
    *w = NULL;
}

bool td_id_list_push(td_id_list *l, uint32_t id, td_err *err)
{
    if (l->n == l->capacity) {
        size_t capacity = l->capacity == 0 ? 64 : l->capacity * 2;
        uint32_t *ids = td_realloc(l->ids, l->capacity, capacity, sizeof ids[0], err);
        if (ids == NULL)
            return false;
        l->ids = ids;
        l->capacity = capacity;
    }
    l->ids[l->n++] = id;
    return true;
}

/* Drops the symbols of the last text and makes room for n new ones. */
static bool begin_symbols(td_merge_work *w, size_t n, td_err *err)
{
    w->n_symbols = 0;
    w->n_heap = 0;
    if (n <= w->symbols_max)
        return true;
    size_t max = n < 256 ? 256 : n;
    td_free(w->symbols);
    w->symbols_max = 0;
    w->symbols = td_alloc(max, sizeof w->symbols[0], err);
    if (w->symbols == NULL)
        return false;
    w->symbols_max = max;
    return true;
}

static void push_symbol(td_merge_work *w, uint32_t id, size_t begin, size_t n)
{
    TD_ASSERT(w->n_symbols < w->symbols_max);
    uint32_t i = (uint32_t)w->n_symbols++;
    w->symbols[i] = (symbol){.id = id,
                             .begin = (uint32_t)begin,
                             .n = (uint32_t)n,
                             .prev = i == 0 ? NONE : i - 1,
                             .next = NONE,
                             .merged_id = TD_NO_TOKEN};
    if (i > 0)
        w->symbols[i - 1].next = i;
}

static bool push_candidate(td_merge_work *w, uint64_t key, td_err *err)
{
    if (w->n_heap == w->heap_max) {
        size_t max = w->heap_max == 0 ? 256 : w->heap_max * 2;
        uint64_t *heap = td_realloc(w->heap, w->heap_max, max, sizeof heap[0], err);
        if (heap == NULL)
            return false;
        w->heap = heap;
        w->heap_max = max;
    }
    size_t i = w->n_heap++;
    while (i > 0 && w->heap[(i - 1) / 4] > key) {
        w->heap[i] = w->heap[(i - 1) / 4];
        i = (i - 1) / 4;
    }
    w->heap[i] = key;
    return true;
}

static uint64_t pop_candidate(td_merge_work *w)
{
    uint64_t top = w->heap[0], last = w->heap[--w->n_heap];
    size_t i = 0;
    for (;;) {
        size_t child = 4 * i + 1;
        if (child >= w->n_heap)
            break;
        size_t end = child + 4 < w->n_heap ? child + 4 : w->n_heap;
        size_t least = child;
        for (size_t k = child + 1; k < end; k++) {
            if (w->heap[k] < w->heap[least])
                least = k;
        }
        if (w->heap[least] >= last)
            break;
        w->heap[i] = w->heap[least];
        i = least;
    }
    w->heap[i] = last;
    return top;
}

/* Higher scores merge first: a float as an integer that sorts the other way round. */
static uint32_t score_priority(float score)
{
    uint32_t bits;
    if (score == 0.0f) /* so that -0 equals 0 */
        score = 0.0f;
    memcpy(&bits, &score, sizeof bits);
    return (bits & 0x80000000u) != 0 ? bits : 0x7fffffffu - bits;
}

/* Enters the pair (left, its right neighbour) if there is one and it forms a token. */
static bool consider(td_merge_work *w, const td_tokenizer *t, const char *text, uint32_t left,
                     td_err *err)
{
    if (left == NONE)
        return true;
    symbol *a = &w->symbols[left];
    a->merged_id = TD_NO_TOKEN;
    if (a->next == NONE)
        return true;
    const symbol *b = &w->symbols[a->next];
    if (t->is_spm) {
        uint32_t id = td_vocab_table_find(&t->words, t->tokens, text + a->begin, a->n + b->n);
        if (id == TD_NO_TOKEN)
            return true;
        a->merged_id = id;
        a->priority = score_priority(t->tokens[id].score);
    } else {
        const td_vocab_merge *m = a->id != TD_NO_TOKEN && b->id != TD_NO_TOKEN
                                      ? td_vocab_merges_find(t, a->id, b->id)
                                      : NULL;
        if (m == NULL)
            return true;
        a->merged_id = m->id;
        a->priority = m->rank;
    }
    return push_candidate(w, (uint64_t)a->priority << 32 | left, err);
}

static bool merge_all(td_merge_work *w, const td_tokenizer *t, const char *text, td_err *err)
{
    for (uint32_t i = 0; i + 1 < w->n_symbols; i++) {
        if (!consider(w, t, text, i, err))
            return false;
    }
    while (w->n_heap > 0) {
        uint64_t key = pop_candidate(w);
        uint32_t left = (uint32_t)key;
        symbol *a = &w->symbols[left];
        if (a->merged_id == TD_NO_TOKEN || a->priority != (uint32_t)(key >> 32))
            continue;
        symbol *b = &w->symbols[a->next];
        a->id = a->merged_id;
        a->n += b->n;
        a->next = b->next;
        b->merged_id = TD_NO_TOKEN;
        if (a->next != NONE)
            w->symbols[a->next].prev = left;
        if (!consider(w, t, text, a->prev, err) || !consider(w, t, text, left, err))
            return false;
    }
    return true;
}

/* The bytes of a symbol that is no token. */
static bool emit_bytes(const td_tokenizer *t, const char *bytes, uint32_t n, td_id_list *out,
                       td_err *err)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t id = t->byte_ids[(unsigned char)bytes[i]];
        if (id == TD_NO_TOKEN)
            id = t->info.unk;
        if (id == TD_NO_TOKEN)
            return td_err_set(err, TD_E_DATA,
                              "the vocabulary has no token for byte 0x%02x of the text, and no "
                              "unknown token",
                              (unsigned char)bytes[i]);
        if (!td_id_list_push(out, id, err))
            return false;
    }
    return true;
}

static bool emit_symbols(const td_merge_work *w, const td_tokenizer *t, const char *text,
                         td_id_list *out, td_err *err)
{
    for (uint32_t i = 0; i != NONE; i = w->symbols[i].next) {
        const symbol *s = &w->symbols[i];
        bool ok = s->id != TD_NO_TOKEN ? td_id_list_push(out, s->id, err)
                                       : emit_bytes(t, text + s->begin, s->n, out, err);
        if (!ok)
            return false;
    }
    return true;
}

/* Bytes of the character that begins with this byte; a stray continuation byte counts for one. */
static size_t char_bytes(unsigned char lead)
{
    if (lead < 0xc0)
        return 1;
    return lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}

/* Begins with characters, of which some may be no tokens. */
static bool merge_chars(td_merge_work *w, const td_tokenizer *t, const char *text, size_t n_bytes,
                        td_id_list *out, td_err *err)
{
    TD_ASSERT(n_bytes > 0 && n_bytes < NONE);
    size_t n_chars = 0;
    for (size_t at = 0; at < n_bytes; n_chars++)
        at += char_bytes((unsigned char)text[at]);
    if (!begin_symbols(w, n_chars, err))
        return false;
    for (size_t at = 0; at < n_bytes;) {
        size_t n = char_bytes((unsigned char)text[at]);
        if (n > n_bytes - at)
            n = n_bytes - at;
        push_symbol(w, td_vocab_table_find(&t->words, t->tokens, text + at, n), at, n);
        at += n;
    }
    return merge_all(w, t, text, err) && emit_symbols(w, t, text, out, err);
}

bool td_merge_spm(td_merge_work *w, const td_tokenizer *t, const char *text, size_t n_bytes,
                  td_id_list *out, td_err *err)
{
    return merge_chars(w, t, text, n_bytes, out, err);
}

bool td_merge_bpe(td_merge_work *w, const td_tokenizer *t, const char *word, size_t n_bytes,
                  td_id_list *out, td_err *err)
{
    TD_ASSERT(n_bytes > 0 && n_bytes < NONE);
    if (t->pre->ignore_merges) {
        uint32_t id = td_vocab_table_find(&t->words, t->tokens, word, n_bytes);
        if (id != TD_NO_TOKEN)
            return td_id_list_push(out, id, err);
    }
    if (t->is_spaced)
        return merge_chars(w, t, word, n_bytes, out, err);
    if (!begin_symbols(w, n_bytes, err))
        return false;
    for (size_t at = 0; at < n_bytes; at++)
        push_symbol(w, t->byte_ids[(unsigned char)word[at]], at, 1);
    return merge_all(w, t, word, err) && emit_symbols(w, t, word, out, err);
}
