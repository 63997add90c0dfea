/* Hash tables of a vocabulary: bytes -> token, and pair of tokens -> merge. Open addressing with
 * linear probing, at most half full. A vocabulary made to collide would turn probing into a scan,
 * so a long probe at load is an error; no honest file comes near the bound. */
#include "model/tokenizer_private.h"

#include "base/check.h"
#include "base/mem.h"

#include <string.h>

#define PROBES_MAX 1024u

static uint64_t mix(uint64_t h)
{
    h *= 0x9e3779b97f4a7c15ull;
    h ^= h >> 32;
    h *= 0xd6e8feb86659fd93ull;
    return h ^ (h >> 32);
}

static uint64_t hash_key(const char *key, size_t n_bytes)
{
    uint64_t h = mix(n_bytes + 1);
    uint64_t word;
    while (n_bytes >= 8) {
        memcpy(&word, key, 8);
        h = mix(h ^ word);
        key += 8;
        n_bytes -= 8;
    }
    word = 0;
    memcpy(&word, key, n_bytes);
    return mix(h ^ word);
}

static uint32_t slots_for(uint32_t n)
{
    uint32_t slots = 16;
    while (slots < 2 * n)
        slots *= 2;
    return slots;
}

static bool collide(td_err *err, const char *what)
{
    return td_err_set(err, TD_E_DATA, "%s: more than %u entries collide; the file is malformed",
                      what, PROBES_MAX);
}

bool td_vocab_table_init(td_vocab_table *t, uint32_t n_tokens, bool by_word, td_err *err)
{
    TD_ASSERT(n_tokens <= TD_VOCAB_MAX);
    t->n_slots = slots_for(n_tokens);
    t->max_key = 0;
    t->by_word = by_word;
    t->slots = td_alloc(t->n_slots, sizeof t->slots[0], err);
    return t->slots != NULL;
}

static bool has_key(const td_vocab_table *t, const td_vocab_token *token, const char *key,
                    size_t n_bytes)
{
    return t->by_word ? token->n_word == n_bytes && memcmp(token->word, key, n_bytes) == 0
                      : token->n_text == n_bytes && memcmp(token->text, key, n_bytes) == 0;
}

bool td_vocab_table_add(td_vocab_table *t, const td_vocab_token *tokens, uint32_t id, bool *is_new,
                        td_err *err)
{
    const char *key = t->by_word ? tokens[id].word : tokens[id].text;
    uint32_t n_bytes = t->by_word ? tokens[id].n_word : tokens[id].n_text;
    uint32_t slot = (uint32_t)hash_key(key, n_bytes) & (t->n_slots - 1);
    for (uint32_t probes = 0; t->slots[slot] != 0; probes++) {
        if (has_key(t, &tokens[t->slots[slot] - 1], key, n_bytes)) {
            *is_new = false;
            return true;
        }
        if (probes == PROBES_MAX)
            return collide(err, "tokenizer.ggml.tokens");
        slot = (slot + 1) & (t->n_slots - 1);
    }
    t->slots[slot] = id + 1;
    t->max_key = td_max_u32(t->max_key, n_bytes);
    *is_new = true;
    return true;
}

uint32_t td_vocab_table_find(const td_vocab_table *t, const td_vocab_token *tokens, const char *key,
                             size_t n_bytes)
{
    if (n_bytes > t->max_key)
        return TD_NO_TOKEN;
    uint32_t slot = (uint32_t)hash_key(key, n_bytes) & (t->n_slots - 1);
    for (; t->slots[slot] != 0; slot = (slot + 1) & (t->n_slots - 1)) {
        if (has_key(t, &tokens[t->slots[slot] - 1], key, n_bytes))
            return t->slots[slot] - 1;
    }
    return TD_NO_TOKEN;
}

bool td_vocab_merges_init(td_tokenizer *t, uint32_t n_merges, td_err *err)
{
    t->n_merge_slots = slots_for(n_merges);
    t->merges = td_alloc(t->n_merge_slots, sizeof t->merges[0], err);
    if (t->merges == NULL)
        return false;
    for (uint32_t i = 0; i < t->n_merge_slots; i++)
        t->merges[i].pair = UINT64_MAX;
    return true;
}

bool td_vocab_merges_add(td_tokenizer *t, uint32_t left, uint32_t right, uint32_t rank, uint32_t id,
                         td_err *err)
{
    uint64_t pair = (uint64_t)left << 32 | right;
    uint32_t slot = (uint32_t)mix(pair) & (t->n_merge_slots - 1);
    for (uint32_t probes = 0; t->merges[slot].pair != UINT64_MAX; probes++) {
        if (t->merges[slot].pair == pair)
            return true;
        if (probes == PROBES_MAX)
            return collide(err, "tokenizer.ggml.merges");
        slot = (slot + 1) & (t->n_merge_slots - 1);
    }
    t->merges[slot] = (td_vocab_merge){.pair = pair, .rank = rank, .id = id};
    return true;
}

const td_vocab_merge *td_vocab_merges_find(const td_tokenizer *t, uint32_t left, uint32_t right)
{
    uint64_t pair = (uint64_t)left << 32 | right;
    uint32_t slot = (uint32_t)mix(pair) & (t->n_merge_slots - 1);
    for (; t->merges[slot].pair != UINT64_MAX; slot = (slot + 1) & (t->n_merge_slots - 1)) {
        if (t->merges[slot].pair == pair)
            return &t->merges[slot];
    }
    return NULL;
}
