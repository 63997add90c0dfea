/* Drafts found in the text: hash chains, as in LZ77 (Ziv and Lempel 1977; chains as in deflate).
 *
 * Every position of a text is entered under the hash of the three tokens that end there; entries
 * of one hash form a chain, newest first. A slot's chains hold positions of the sequence's own
 * tokens, which stay with the caller. The ring's hold running counts of tokens written, modulo
 * 2^32: how old an entry is, is the difference to the count now, and an entry older than the ring
 * is gone. Entries are hints: what decides is the comparison of the tokens themselves, so neither a
 * collision nor an entry that was overwritten can do harm. */
#include "draft/ngram.h"

#include "base/check.h"
#include "base/mem.h"

#include <string.h>

#define NONE UINT32_MAX

typedef struct {
    bool is_used;
    uint32_t n_indexed;
    uint32_t *heads; /* [n_heads] last position of a hash, or NONE */
    uint32_t *older; /* [n_ctx] the one before it */
} slot_index;

struct td_ngram {
    uint32_t n_ring, n_slots, n_ctx;
    uint32_t head_bits, ring_head_bits;
    slot_index slots[TD_NGRAM_SLOTS_MAX];
    uint32_t *ring;       /* [n_ring] tokens of finished texts; count c lies at c % n_ring */
    uint32_t *ring_heads; /* [2^ring_head_bits] counts */
    uint32_t *ring_older; /* [n_ring] counts */
    uint8_t *ring_ends;   /* [n_ring] 1 = the last token of its text */
    uint32_t n_kept;      /* tokens in the ring */
    uint64_t n_written;   /* the count */
    uint64_t n_bytes;
};

/* The last tokens of a sequence, and all of it by position. */
typedef struct {
    const uint32_t *tokens, *tail;
    uint32_t n, n_tail;
    uint32_t end[TD_NGRAM_MATCH_MAX]; /* newest first */
    uint32_t n_end;
} context;

typedef struct {
    uint32_t n_match; /* 0 = none */
    uint32_t at;      /* own position, or age in the ring, of the match's last token */
    bool is_ring;
} match;

/* ---- create ---- */

static uint32_t bits_below(uint32_t n)
{
    uint32_t bits = 0;
    while (bits < 31 && (2u << bits) <= n)
        ++bits;
    return bits;
}

static void *take(td_ngram *g, size_t n, size_t size, td_err *err)
{
    g->n_bytes += n * size;
    return td_alloc(n, size, err);
}

static bool create_parts(td_ngram *g, td_err *err)
{
    for (uint32_t i = 0; i < g->n_slots; ++i) {
        slot_index *s = &g->slots[i];
        s->heads = take(g, (size_t)1 << g->head_bits, sizeof(*s->heads), err);
        s->older = take(g, g->n_ctx, sizeof(*s->older), err);
        if (!s->heads || !s->older)
            return false;
        s->is_used = true; /* open clears the heads */
        td_ngram_open(g, i);
    }
    if (g->n_ring == 0)
        return true;
    g->ring = take(g, g->n_ring, sizeof(*g->ring), err);
    g->ring_heads = take(g, (size_t)1 << g->ring_head_bits, sizeof(*g->ring_heads), err);
    g->ring_older = take(g, g->n_ring, sizeof(*g->ring_older), err);
    g->ring_ends = take(g, g->n_ring, sizeof(*g->ring_ends), err);
    return g->ring && g->ring_heads && g->ring_older && g->ring_ends;
}

td_ngram *td_ngram_create(uint32_t n_ring, uint32_t n_slots, uint32_t n_ctx, td_err *err)
{
    if (n_ring > TD_NGRAM_RING_MAX || n_slots < 1 || n_slots > TD_NGRAM_SLOTS_MAX || n_ctx < 1 ||
        n_ctx > TD_NGRAM_CTX_MAX) {
        td_err_set(
            err, TD_E_USAGE,
            "n-gram drafter: %u tokens of finished texts, %u sequences of %u tokens; allowed "
            "are 0..%u, 1..%u and 1..%u",
            n_ring, n_slots, n_ctx, TD_NGRAM_RING_MAX, TD_NGRAM_SLOTS_MAX, TD_NGRAM_CTX_MAX);
        return NULL;
    }
    td_ngram *g = td_alloc(1, sizeof(*g), err);
    if (!g)
        return NULL;
    g->n_bytes = sizeof(*g);
    g->n_ring = n_ring;
    g->n_slots = n_slots;
    g->n_ctx = n_ctx;
    g->head_bits = bits_below(n_ctx);
    g->ring_head_bits = bits_below(n_ring);
    g->n_written = (uint64_t)n_ring + 1; /* so that a head of 0 is too old */
    if (!create_parts(g, err))
        td_ngram_destroy(&g);
    return g;
}

void td_ngram_destroy(td_ngram **g)
{
    if (!*g)
        return;
    for (uint32_t i = 0; i < TD_NGRAM_SLOTS_MAX; ++i) {
        td_free((*g)->slots[i].heads);
        td_free((*g)->slots[i].older);
    }
    td_free((*g)->ring);
    td_free((*g)->ring_heads);
    td_free((*g)->ring_older);
    td_free((*g)->ring_ends);
    td_free(*g);
    *g = NULL;
}

uint64_t td_ngram_bytes(const td_ngram *g) { return g->n_bytes; }

/* ---- index ---- */

static uint32_t hash3(const uint32_t *tokens, uint32_t bits)
{
    uint64_t h = tokens[0] * UINT64_C(0x9e3779b97f4a7c15);
    h = (h ^ (h >> 29) ^ tokens[1]) * UINT64_C(0xbf58476d1ce4e5b9);
    h = (h ^ (h >> 31) ^ tokens[2]) * UINT64_C(0x94d049bb133111eb);
    return bits == 0 ? 0 : (uint32_t)(h >> (64 - bits));
}

void td_ngram_open(td_ngram *g, uint32_t slot)
{
    TD_ASSERT(slot < g->n_slots);
    slot_index *s = &g->slots[slot];
    if (s->is_used)
        memset(s->heads, 0xff, ((size_t)1 << g->head_bits) * sizeof(*s->heads)); /* NONE */
    s->is_used = false;
    s->n_indexed = 0;
}

static void index_slot(td_ngram *g, uint32_t slot, const uint32_t *tokens, uint32_t n)
{
    slot_index *s = &g->slots[slot];
    if (n < s->n_indexed)
        td_ngram_open(g, slot); /* another text than before */
    s->is_used = s->is_used || n > 0;
    for (uint32_t i = td_max_u32(s->n_indexed, TD_NGRAM_MIN - 1); i < n; ++i) {
        uint32_t *head = &s->heads[hash3(tokens + i - 2, g->head_bits)];
        s->older[i] = *head;
        *head = i;
    }
    s->n_indexed = n;
}

void td_ngram_close(td_ngram *g, uint32_t slot, const uint32_t *tokens, uint32_t n, bool is_kept)
{
    td_ngram_open(g, slot);
    uint32_t skipped = n > g->n_ring ? n - g->n_ring : 0;
    if (!is_kept || n - skipped <= TD_NGRAM_MIN) /* a match and what followed it */
        return;
    for (uint32_t i = skipped; i < n; ++i) {
        uint32_t count = (uint32_t)g->n_written, at = (uint32_t)(g->n_written++ % g->n_ring);
        g->ring[at] = tokens[i];
        g->ring_ends[at] = i == n - 1;
        g->ring_older[at] = count - g->n_ring - 1; /* too old */
        if (i - skipped < TD_NGRAM_MIN - 1 || i == n - 1)
            continue;
        uint32_t *head = &g->ring_heads[hash3(tokens + i - 2, g->ring_head_bits)];
        g->ring_older[at] = *head;
        *head = count;
    }
    uint64_t n_kept = (uint64_t)g->n_kept + (n - skipped);
    g->n_kept = n_kept > g->n_ring ? g->n_ring : (uint32_t)n_kept;
}

/* ---- lookup ---- */

static uint32_t token_at(const context *c, uint32_t i)
{
    return i < c->n ? c->tokens[i] : c->tail[i - c->n];
}

static void find_own(const slot_index *s, const context *c, uint32_t key, match *best)
{
    uint32_t at = s->heads[key];
    for (uint32_t i = 0; i < TD_NGRAM_TRIES && at != NONE; ++i, at = s->older[at]) {
        if (at + 1 == c->n + c->n_tail) /* the end itself */
            continue;
        uint32_t n = 0;
        while (n < c->n_end && n <= at && c->tokens[at - n] == c->end[n])
            ++n;
        if (n > best->n_match)
            *best = (match){.n_match = n, .at = at};
        if (n == TD_NGRAM_MATCH_MAX)
            break;
    }
}

/* The ring's token of this age (1 = the newest). */
static uint32_t ring_index(const td_ngram *g, uint32_t age)
{
    return (uint32_t)((g->n_written - age) % g->n_ring);
}

static void find_ring(const td_ngram *g, const context *c, uint32_t key, match *best)
{
    uint32_t last_age = 0, age = (uint32_t)g->n_written - g->ring_heads[key];
    for (uint32_t i = 0; i < TD_NGRAM_TRIES && age > last_age && age <= g->n_kept; ++i) {
        uint32_t n = 0;
        while (n < c->n_end && age + n <= g->n_kept &&
               g->ring[ring_index(g, age + n)] == c->end[n] &&
               !g->ring_ends[ring_index(g, age + n)])
            ++n;
        if (n > best->n_match)
            *best = (match){.n_match = n, .at = age, .is_ring = true};
        if (n == TD_NGRAM_MATCH_MAX)
            break;
        last_age = age;
        age = (uint32_t)g->n_written - g->ring_older[ring_index(g, age)];
    }
}

/* What followed. In the sequence itself a match may reach to its end: then the draft follows its
 * own beginning, as a text with a period does. */
static uint32_t copy_what_followed(const td_ngram *g, const context *c, const match *m,
                                   uint32_t *ids, uint32_t max)
{
    uint32_t n_all = c->n + c->n_tail, n = 0;
    for (; !m->is_ring && n < max; ++n)
        ids[n] = m->at + 1 + n < n_all ? token_at(c, m->at + 1 + n) : ids[m->at + 1 + n - n_all];
    for (uint32_t age = m->at; m->is_ring && n < max && age > 1; --age) {
        ids[n++] = g->ring[ring_index(g, age - 1)];
        if (g->ring_ends[ring_index(g, age - 1)])
            break;
    }
    return n;
}

uint32_t td_ngram_lookup(td_ngram *g, uint32_t slot, const uint32_t *tokens, uint32_t n,
                         const uint32_t *tail, uint32_t n_tail, uint32_t *ids, uint32_t max,
                         uint32_t *n_match)
{
    TD_ASSERT(slot < g->n_slots && n <= g->n_ctx && n_tail <= TD_NGRAM_TAIL_MAX);
    *n_match = 0;
    index_slot(g, slot, tokens, n);
    uint32_t n_all = n + n_tail;
    if (n_all < TD_NGRAM_MIN || max == 0)
        return 0;
    context c = {.tokens = tokens, .tail = tail, .n = n, .n_tail = n_tail};
    c.n_end = td_min_u32(n_all, TD_NGRAM_MATCH_MAX);
    for (uint32_t i = 0; i < c.n_end; ++i)
        c.end[i] = token_at(&c, n_all - 1 - i);
    const uint32_t last[3] = {c.end[2], c.end[1], c.end[0]};
    match best = {.n_match = TD_NGRAM_MIN - 1};
    find_own(&g->slots[slot], &c, hash3(last, g->head_bits), &best);
    if (g->n_ring > 0 && best.n_match < TD_NGRAM_MATCH_MAX)
        find_ring(g, &c, hash3(last, g->ring_head_bits), &best);
    if (best.n_match < TD_NGRAM_MIN)
        return 0;
    *n_match = best.n_match;
    return copy_what_followed(g, &c, &best, ids, max);
}
