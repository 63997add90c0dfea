#include "model/cache.h"

#include "base/check.h"
#include "base/mem.h"

#include <string.h>

typedef struct {
    uint32_t length, committed, n_pages;
} slot_state;

struct td_cache {
    td_cache_params params;
    uint32_t n_table_cols; /* pages of a full slot */
    td_kv **kvs;           /* [n_layers] */
    td_tensor *pages;
    slot_state *slots;    /* [n_slots] */
    uint32_t *free_pages; /* stack of [n_free] */
    uint32_t n_free;
    uint32_t *n_references; /* [n_pages] */
};

static uint32_t pages_for(uint32_t length) { return td_div_up(length, TD_PAGE_POSITIONS); }

static int32_t *table_row(td_cache *c, uint32_t slot)
{
    return (int32_t *)td_tensor_data(c->pages) + (size_t)slot * c->n_table_cols;
}

static uint32_t n_pages_of(const td_cache_params *p)
{
    return p->n_pages ? p->n_pages : p->n_slots * pages_for(p->n_ctx);
}

static td_kv_params kv_params(const td_cache_params *p)
{
    return (td_kv_params){.type_k = p->type_k,
                          .type_v = p->type_v,
                          .n_head_kv = p->n_head_kv,
                          .head_dim_k = p->head_dim_k,
                          .head_dim_v = p->head_dim_v,
                          .n_pages = n_pages_of(p)};
}

uint64_t td_cache_bytes(const td_device *dev, const td_cache_params *params)
{
    td_kv_params kv = kv_params(params);
    return params->n_layers * td_kv_bytes(dev, &kv);
}

td_cache *td_cache_create(td_device *dev, const td_cache_params *params, td_err *err)
{
    td_cache *c = td_alloc(1, sizeof *c, err);
    if (!c)
        return NULL;
    c->params = *params;
    c->params.n_pages = n_pages_of(params);
    c->n_table_cols = pages_for(params->n_ctx);
    c->kvs = td_alloc(params->n_layers, sizeof *c->kvs, err);
    c->slots = td_alloc(params->n_slots, sizeof *c->slots, err);
    c->free_pages = td_alloc(c->params.n_pages, sizeof *c->free_pages, err);
    c->n_references = td_alloc(c->params.n_pages, sizeof *c->n_references, err);
    if (!c->kvs || !c->slots || !c->free_pages || !c->n_references)
        goto fail;
    c->pages = td_tensor_create(dev,
                                &(td_tensor_params){.name = "pages",
                                                    .elem = TD_ELEM_I32,
                                                    .rows = TD_ROWS_FIXED,
                                                    .n_rows = params->n_slots,
                                                    .n_cols = c->n_table_cols,
                                                    .is_host_visible = true},
                                err);
    if (!c->pages)
        goto fail;
    /* Unused entries name page 0, so that no stale number can point outside the cache. */
    memset(td_tensor_data(c->pages), 0,
           (size_t)params->n_slots * c->n_table_cols * sizeof(int32_t));
    td_kv_params kv = kv_params(&c->params);
    for (uint32_t i = 0; i < params->n_layers; i++)
        if (!(c->kvs[i] = td_kv_create(dev, &kv, err)))
            goto fail;
    /* The stack is filled downwards, so that page 0 is handed out first. */
    for (uint32_t i = 0; i < c->params.n_pages; i++)
        c->free_pages[c->n_free++] = c->params.n_pages - 1 - i;
    return c;
fail:
    td_cache_destroy(&c);
    return NULL;
}

void td_cache_destroy(td_cache **c)
{
    if (!*c)
        return;
    if ((*c)->kvs)
        for (uint32_t i = 0; i < (*c)->params.n_layers; i++)
            td_kv_destroy(&(*c)->kvs[i]);
    td_tensor_destroy(&(*c)->pages);
    td_free((*c)->kvs);
    td_free((*c)->slots);
    td_free((*c)->free_pages);
    td_free((*c)->n_references);
    td_free(*c);
    *c = NULL;
}

td_kv *td_cache_kv(td_cache *c, uint32_t layer)
{
    TD_ASSERT(layer < c->params.n_layers);
    return c->kvs[layer];
}

td_tensor *td_cache_pages(td_cache *c) { return c->pages; }

static slot_state *slot_of(const td_cache *c, uint32_t slot)
{
    TD_ASSERT(slot < c->params.n_slots);
    return &c->slots[slot];
}

/* Gives back the pages of a slot beyond the first n_keep. */
static void release(td_cache *c, uint32_t slot, uint32_t n_keep)
{
    slot_state *s = slot_of(c, slot);
    int32_t *row = table_row(c, slot);
    while (s->n_pages > n_keep) {
        uint32_t page = (uint32_t)row[--s->n_pages];
        row[s->n_pages] = 0;
        TD_ASSERT(page < c->params.n_pages && c->n_references[page] > 0);
        if (--c->n_references[page] == 0)
            c->free_pages[c->n_free++] = page;
    }
}

bool td_cache_reserve(td_cache *c, uint32_t slot, uint32_t length, td_err *err)
{
    slot_state *s = slot_of(c, slot);
    TD_ASSERT(length <= c->params.n_ctx);
    uint32_t n_wanted = pages_for(length);
    if (n_wanted > s->n_pages && n_wanted - s->n_pages > c->n_free)
        return td_err_set(err, TD_E_NOMEM, "cache: %u pages wanted, %u of %u free",
                          n_wanted - s->n_pages, c->n_free, c->params.n_pages);
    int32_t *row = table_row(c, slot);
    while (s->n_pages < n_wanted) {
        uint32_t page = c->free_pages[--c->n_free];
        c->n_references[page] = 1;
        row[s->n_pages++] = (int32_t)page;
    }
    s->length = td_max_u32(s->length, length);
    return true;
}

void td_cache_truncate(td_cache *c, uint32_t slot, uint32_t length)
{
    slot_state *s = slot_of(c, slot);
    TD_ASSERT(length >= s->committed);
    if (length >= s->length)
        return;
    s->length = length;
    release(c, slot, pages_for(length));
}

void td_cache_commit(td_cache *c, uint32_t slot, uint32_t length)
{
    slot_state *s = slot_of(c, slot);
    TD_ASSERT(length >= s->committed && length <= s->length);
    s->committed = length;
}

void td_cache_clear(td_cache *c, uint32_t slot)
{
    slot_state *s = slot_of(c, slot);
    s->length = s->committed = 0;
    release(c, slot, 0);
}

void td_cache_share(td_cache *c, uint32_t from, uint32_t to, uint32_t length)
{
    slot_state *a = slot_of(c, from), *b = slot_of(c, to);
    TD_ASSERT(from != to && b->n_pages == 0 && b->length == 0);
    TD_ASSERT(length % TD_PAGE_POSITIONS == 0 && length <= a->committed);
    for (uint32_t i = 0; i < length / TD_PAGE_POSITIONS; i++) {
        int32_t page = table_row(c, from)[i];
        table_row(c, to)[i] = page;
        c->n_references[page]++;
        b->n_pages++;
    }
    b->length = b->committed = length;
}

uint32_t td_cache_length(const td_cache *c, uint32_t slot) { return slot_of(c, slot)->length; }
uint32_t td_cache_committed(const td_cache *c, uint32_t slot)
{
    return slot_of(c, slot)->committed;
}
uint32_t td_cache_n_free_pages(const td_cache *c) { return c->n_free; }
