#include "model/prefix.h"

#include "base/check.h"
#include "base/mem.h"
#include "base/sha256.h"
#include "base/text.h"
#include "kernels/cut.h"
#include "model/model.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

typedef uint8_t hash[TD_PREFIX_HASH_BYTES];

typedef struct { /* names of a slot's first chunks, as far as they are known */
    hash *names; /* [n_ctx / chunk_rows] */
    uint32_t n;
} chain;

struct td_prefix {
    td_prefix_params params;
    td_prefix_head head; /* with the texts for people */
    hash root;
    chain *chains; /* [n_slots] */
    td_prefix_blob *blobs;
    uint32_t n_blobs;
    td_queue free;
    uint64_t n_dropped;
};

td_prefix *td_prefix_create(const td_prefix_params *params, td_err *err)
{
    td_prefix *p = td_alloc(1, sizeof *p, err);
    if (!p)
        return NULL;
    td_queue_init(&p->free);
    TD_ASSERT(params->chunk_rows >= 1 && params->chunk_rows <= TD_PREFIX_TOKENS_MAX);
    p->params = *params;
    snprintf(p->head.model, sizeof p->head.model, "%s", params->model);
    snprintf(p->head.what, sizeof p->head.what, "%s", params->what);
    td_text_make_printable(p->head.model);
    td_text_make_printable(p->head.what);
    p->params.model = p->params.what = p->params.identity = NULL;
    td_sha256 s;
    td_sha256_begin(&s);
    td_sha256_add(&s, params->identity, strlen(params->identity));
    td_sha256_end(&s, p->root);
    p->chains = td_alloc(params->n_slots, sizeof *p->chains, err);
    p->blobs = td_alloc(params->n_reading + TD_PREFIX_WRITING, sizeof *p->blobs, err);
    if (!p->chains || !p->blobs)
        goto fail;
    for (uint32_t i = 0; i < params->n_slots; i++)
        if (!(p->chains[i].names =
                  td_alloc(params->n_ctx / params->chunk_rows + 1, sizeof(hash), err)))
            goto fail;
    for (uint32_t i = 0; params->chunk_bytes && i < params->n_reading + TD_PREFIX_WRITING; i++) {
        td_prefix_blob *b = &p->blobs[i];
        b->home = &p->free;
        b->capacity = params->chunk_bytes;
        if (!(b->bytes = td_alloc(params->chunk_bytes, 1, err)))
            goto fail;
        td_queue_push(&p->free, &b->item);
        p->n_blobs++;
    }
    return p;
fail:
    td_err_prepend(err, "room for chunks of prompts on their way to the disk");
    td_prefix_destroy(&p);
    return NULL;
}

void td_prefix_destroy(td_prefix **prefix)
{
    td_prefix *p = *prefix;
    if (!p)
        return;
    for (uint32_t i = 0; i < p->n_blobs; i++)
        td_queue_pop(&p->free);
    for (uint32_t i = 0; i < p->n_blobs; i++)
        td_free(p->blobs[i].bytes);
    for (uint32_t i = 0; p->chains && i < p->params.n_slots; i++)
        td_free(p->chains[i].names);
    td_free(p->blobs);
    td_free(p->chains);
    td_queue_destroy(&p->free);
    td_free(p);
    *prefix = NULL;
}

bool td_prefix_write_identity(const char *said, const td_cache *const *caches, uint32_t n_caches,
                              char **out, td_err *err)
{
    size_t n = strlen(said), room = n + 64 + TD_LAYERS_MAX * 32;
    char *text = td_alloc(room, 1, err);
    if (!text)
        return false;
    n = (size_t)snprintf(text, room, "%s; layout=%u; bytes=", said, TD_CUT_LAYOUT);
    for (uint32_t i = 0; i < n_caches; i++)
        for (uint32_t k = 0; k < td_cache_n_layers(caches[i]); k++)
            n += (size_t)snprintf(text + n, room - n, "%d:%llu,",
                                  (int)td_cache_layer_kind(caches[i], k),
                                  (unsigned long long)td_cache_layer_bytes(caches[i], k));
    *out = text;
    return true;
}

void td_prefix_open(td_prefix *p, uint32_t slot, uint32_t from_slot, uint32_t length)
{
    const chain *from = &p->chains[from_slot];
    chain *to = &p->chains[slot];
    to->n = td_min_u32(from->n, length / p->params.chunk_rows);
    memmove(to->names, from->names, to->n * sizeof(hash));
}

/* Names chunk i of the slot, all before it being named: the head of a blob, but for its size. */
static td_prefix_head name_chunk(td_prefix *p, chain *c, uint32_t i, const uint32_t *tokens)
{
    td_prefix_head head = p->head;
    head.n_tokens = p->params.chunk_rows;
    head.first = i * head.n_tokens;
    memcpy(head.before, i ? c->names[i - 1] : p->root, sizeof head.before);
    memcpy(head.tokens, tokens, head.n_tokens * sizeof *tokens);
    td_prefix_head_name(&head);
    memcpy(c->names[i], head.name, sizeof head.name);
    c->n = i + 1;
    return head;
}

void td_prefix_name(td_prefix *p, uint32_t slot, const uint32_t *tokens, uint32_t n)
{
    chain *c = &p->chains[slot];
    TD_ASSERT(n <= p->params.n_ctx);
    while (c->n < n / p->params.chunk_rows)
        name_chunk(p, c, c->n, tokens + (size_t)c->n * p->params.chunk_rows);
}

bool td_prefix_ask(td_prefix *p, uint32_t slot, uint32_t first, const uint32_t *tokens,
                   td_prefix_head *out)
{
    chain *c = &p->chains[slot];
    uint32_t n_rows = p->params.chunk_rows, i = first / n_rows;
    TD_ASSERT(first % n_rows == 0 && first + n_rows <= p->params.n_ctx);
    if (i > c->n) /* nobody asked for what is before it */
        return false;
    *out = name_chunk(p, c, i, tokens);
    return true;
}

void td_prefix_behind(const td_prefix *p, const uint8_t before[TD_PREFIX_HASH_BYTES],
                      uint32_t first, const uint32_t *tokens, td_prefix_head *out)
{
    td_sha256 s;
    *out = p->head;
    out->first = first;
    out->n_tokens = p->params.chunk_rows;
    td_sha256_begin(&s);
    td_sha256_add(&s, p->root, sizeof p->root);
    td_sha256_add(&s, before, TD_PREFIX_HASH_BYTES);
    td_sha256_end(&s, out->before);
    memcpy(out->tokens, tokens, out->n_tokens * sizeof *tokens);
    td_prefix_head_name(out);
}

td_prefix_blob *td_prefix_look(td_prefix *p, const td_prefix_head *head, uint64_t n_bytes,
                               bool is_wanted)
{
    TD_ASSERT(n_bytes <= p->params.chunk_bytes);
    if (!p->n_blobs)
        return NULL;
    uint32_t n_free = atomic_load(&p->free.n_items);
    td_prefix_blob *b =
        (td_prefix_blob *)(is_wanted ? td_queue_pop(&p->free) : td_queue_try_pop(&p->free));
    if (b) {
        b->head = *head;
        b->head.n_bytes = n_bytes;
        b->is_loaded = b->is_replacing = false;
        if ((is_wanted && td_prefix_store_read(p->params.store, b)) || n_free > p->params.n_reading)
            return b;
        td_queue_push(&p->free, &b->item);
    }
    p->n_dropped++;
    return NULL;
}

td_prefix_blob *td_prefix_find(td_prefix *p, uint32_t slot, uint32_t first, const uint32_t *tokens,
                               uint64_t n_bytes, bool is_wanted)
{
    td_prefix_head head;
    return td_prefix_ask(p, slot, first, tokens, &head)
               ? td_prefix_look(p, &head, n_bytes, is_wanted)
               : NULL;
}

void td_prefix_done(td_prefix *p, td_prefix_blob **blob, bool is_whole)
{
    td_prefix_blob *b = *blob;
    *blob = NULL;
    if (!b)
        return;
    if (is_whole && !b->is_loaded)
        td_prefix_store_write(p->params.store, b);
    else
        td_queue_push(&p->free, &b->item);
}

uint64_t td_prefix_n_dropped(const td_prefix *p) { return p->n_dropped; }
