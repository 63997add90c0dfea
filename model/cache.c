#include "model/cache.h"

#include "base/check.h"
#include "base/mem.h"

#include <string.h>

typedef struct { /* pages of a slot: entries first..end-1 of its row of the table */
    uint32_t first, end;
} page_run;

/* The pages of all layers of one kind. */
typedef struct {
    uint32_t n_pages;
    td_tensor *table;     /* I32 [n_slots][n_cols] */
    page_run *runs;       /* [n_slots] */
    uint32_t *free_pages; /* stack of [n_free] */
    uint32_t n_free;
    uint32_t *n_references; /* [n_pages] */
} pool;

typedef struct {
    uint32_t length, committed;
} slot_state;

struct td_cache {
    td_cache_params params;
    uint32_t n_table_cols; /* pages of a full slot */
    td_cache_kind *kinds;  /* [n_layers] */
    td_kv **kvs;           /* [n_layers], NULL for recurrent ones */
    td_state **states;     /* [n_layers], NULL for others */
    pool pools[2];         /* FULL, LOCAL (n_pages 0: no such layer) */
    td_tensor *spans;
    slot_state *slots; /* [n_slots] */
};

static uint32_t pages_for(uint32_t length) { return td_div_up(length, TD_PAGE_POSITIONS); }

static td_cache_kind kind_of(const td_cache_params *p, uint32_t layer)
{
    return p->kinds ? p->kinds[layer] : TD_CACHE_FULL;
}

static uint32_t count(const td_cache_params *p, td_cache_kind kind)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->n_layers; i++)
        n += kind_of(p, i) == kind;
    return n;
}

/* Positions that a row at `committed` does not see any more, in LOCAL layers. */
static uint32_t forgotten(const td_cache_params *p, uint32_t committed)
{
    uint32_t n = p->chunk ? committed - committed % p->chunk : 0;
    if (p->window && committed >= p->window)
        n = td_max_u32(n, committed - p->window + 1);
    return n;
}

static uint32_t n_pages_of(const td_cache_params *p, td_cache_kind kind)
{
    uint32_t all = pages_for(p->n_ctx), n = all;
    if (!count(p, kind))
        return 0;
    if (kind == TD_CACHE_FULL && p->n_pages)
        return p->n_pages;
    if (kind == TD_CACHE_LOCAL) {
        uint64_t seen = p->window ? p->window : p->chunk;
        uint64_t in_flight = td_max_u32(p->n_flight, TD_PREFILL_ROWS_MAX);
        uint64_t n_local =
            (seen + in_flight) / TD_PAGE_POSITIONS + 2; /* partial ones at both ends */
        n = n_local < all ? (uint32_t)n_local : all;
    }
    return p->n_slots * n;
}

static td_kv_params kv_params(const td_cache_params *p, uint32_t layer)
{
    td_cache_kind kind = kind_of(p, layer);
    td_kv_params kv = {.n_head_kv = p->n_head_kv,
                       .head_dim_k = p->head_dim_k,
                       .head_dim_v = p->head_dim_v,
                       .is_latent = p->is_latent,
                       .n_pages = n_pages_of(p, kind == TD_CACHE_LOCAL ? kind : TD_CACHE_FULL)};
    td_cache_types_apply(&p->kv, p->first_layer + layer, &kv);
    return kv;
}

/* Rows that may be kept: those in flight in the last run, all of which may be committed since, and
 * those in flight now. */
static td_state_params state_params(const td_cache_params *p)
{
    td_state_params s = p->state;
    s.n_slots = p->n_slots;
    s.n_pending = 2 * p->n_flight + s.n_taps;
    return s;
}

uint64_t td_cache_bytes(const td_device *dev, const td_cache_params *p)
{
    uint64_t n_bytes = 0;
    for (uint32_t i = 0; i < p->n_layers; i++) {
        td_cache_kind kind = kind_of(p, i);
        if (kind == TD_CACHE_RECURRENT) {
            td_state_params s = state_params(p);
            n_bytes += td_state_bytes(dev, &s);
        } else {
            td_kv_params kv = kv_params(p, i);
            n_bytes += td_kv_bytes(dev, &kv);
        }
    }
    return n_bytes;
}

bool td_cache_check(const td_device *dev, const td_cache_params *p, td_err *err)
{
    uint64_t most = td_device_get_info(dev)->max_buffer_bytes;
    for (uint32_t i = 0; i < p->n_layers; i++) {
        td_cache_kind kind = kind_of(p, i);
        td_state_params s = state_params(p);
        td_kv_params kv = kv_params(p, i);
        uint64_t piece = kind == TD_CACHE_RECURRENT ? td_state_piece_bytes(dev, &s)
                                                    : td_kv_piece_bytes(dev, &kv);
        if (piece <= most || !most)
            continue;
        uint64_t n = kind == TD_CACHE_RECURRENT ? most * p->n_slots / piece
                                                : most / (piece / kv.n_pages) * TD_PAGE_POSITIONS;
        return td_err_set(err, TD_E_NOMEM,
                          "a layer's %s %llu MiB in one buffer, of which %s takes %llu MiB: %s is "
                          "%llu at most",
                          kind == TD_CACHE_RECURRENT ? "state needs" : "keys or values need",
                          (unsigned long long)(piece >> 20), td_device_get_info(dev)->spec,
                          (unsigned long long)(most >> 20),
                          kind == TD_CACHE_RECURRENT ? "--parallel" : "--ctx times --parallel",
                          (unsigned long long)n);
    }
    return true;
}

static td_tensor *create_ints(td_device *dev, const char *name, uint32_t n_rows, uint32_t n_cols,
                              td_err *err)
{
    td_tensor *t = td_tensor_create(dev,
                                    &(td_tensor_params){.name = name,
                                                        .elem = TD_ELEM_I32,
                                                        .rows = TD_ROWS_FIXED,
                                                        .n_rows = n_rows,
                                                        .n_cols = n_cols,
                                                        .host = TD_HOST_WRITES},
                                    err);
    /* Unused entries name page 0, so that no stale number can point outside the cache. */
    if (t)
        memset(td_tensor_data(t), 0, (size_t)n_rows * n_cols * sizeof(int32_t));
    return t;
}

/* The table is there even if no layer needs it: a row's slot and position are checked by it. */
static bool create_pool(td_cache *c, td_device *dev, td_cache_kind kind, td_err *err)
{
    pool *p = &c->pools[kind];
    p->n_pages = n_pages_of(&c->params, kind);
    if (kind == TD_CACHE_LOCAL && !p->n_pages)
        return true;
    p->runs = td_alloc(c->params.n_slots, sizeof *p->runs, err);
    p->free_pages = td_alloc(p->n_pages + 1, sizeof *p->free_pages, err);
    p->n_references = td_alloc(p->n_pages + 1, sizeof *p->n_references, err);
    if (!p->runs || !p->free_pages || !p->n_references)
        return false;
    p->table = create_ints(dev, kind == TD_CACHE_FULL ? "pages" : "local pages", c->params.n_slots,
                           c->n_table_cols, err);
    /* The stack is filled downwards, so that page 0 is handed out first. */
    for (uint32_t i = 0; i < p->n_pages; i++)
        p->free_pages[p->n_free++] = p->n_pages - 1 - i;
    return p->table;
}

static bool create_layer(td_cache *c, td_device *dev, uint32_t i, td_err *err)
{
    td_cache_kind kind = c->kinds[i];
    if (kind == TD_CACHE_RECURRENT) {
        td_state_params s = state_params(&c->params);
        c->states[i] = td_state_create(dev, &s, err);
        return c->states[i];
    }
    td_kv_params kv = kv_params(&c->params, i);
    c->kvs[i] = td_kv_create(dev, &kv, err);
    return c->kvs[i];
}

td_cache *td_cache_create(td_device *dev, const td_cache_params *params, td_err *err)
{
    td_cache *c = td_alloc(1, sizeof *c, err);
    if (!c)
        return NULL;
    c->params = *params;
    c->n_table_cols = pages_for(params->n_ctx);
    c->kvs = td_alloc(params->n_layers, sizeof *c->kvs, err);
    c->states = td_alloc(params->n_layers, sizeof *c->states, err);
    c->kinds = td_alloc(params->n_layers, sizeof *c->kinds, err);
    c->slots = td_alloc(params->n_slots, sizeof *c->slots, err);
    if (!c->kvs || !c->states || !c->kinds || !c->slots)
        goto fail;
    for (uint32_t i = 0; i < params->n_layers; i++)
        c->kinds[i] = kind_of(params, i);
    c->params.kinds = c->kinds;
    for (td_cache_kind kind = TD_CACHE_FULL; kind <= TD_CACHE_LOCAL; kind++)
        if (!create_pool(c, dev, kind, err))
            goto fail;
    if (count(&c->params, TD_CACHE_RECURRENT) &&
        !(c->spans = create_ints(dev, "spans", params->n_slots, 2, err)))
        goto fail;
    for (uint32_t i = 0; i < params->n_layers; i++)
        if (!create_layer(c, dev, i, err))
            goto fail;
    return c;
fail:
    td_cache_destroy(&c);
    return NULL;
}

/* Whether every page is free or named by as many slots as its references count: none has leaked. */
static bool is_accounted_for(const pool *p, uint32_t n_slots)
{
    if (!p->table) /* create failed before */
        return true;
    uint64_t n_references = 0, n_named = 0;
    uint32_t n_used = 0;
    for (uint32_t i = 0; i < p->n_pages; i++) {
        n_references += p->n_references[i];
        n_used += p->n_references[i] > 0;
    }
    for (uint32_t i = 0; i < n_slots; i++)
        n_named += p->runs[i].end - p->runs[i].first;
    return n_references == n_named && n_used + p->n_free == p->n_pages;
}

void td_cache_destroy(td_cache **c)
{
    if (!*c)
        return;
    for (size_t k = 0; k < TD_COUNT((*c)->pools); k++)
        TD_ASSERT(is_accounted_for(&(*c)->pools[k], (*c)->params.n_slots));
    for (uint32_t i = 0; (*c)->kvs && i < (*c)->params.n_layers; i++)
        td_kv_destroy(&(*c)->kvs[i]);
    for (uint32_t i = 0; (*c)->states && i < (*c)->params.n_layers; i++)
        td_state_destroy(&(*c)->states[i]);
    for (size_t k = 0; k < TD_COUNT((*c)->pools); k++) {
        pool *p = &(*c)->pools[k];
        td_tensor_destroy(&p->table);
        td_free(p->runs);
        td_free(p->free_pages);
        td_free(p->n_references);
    }
    td_tensor_destroy(&(*c)->spans);
    td_free((*c)->kvs);
    td_free((*c)->states);
    td_free((*c)->kinds);
    td_free((*c)->slots);
    td_free(*c);
    *c = NULL;
}

td_cache_kind td_cache_layer_kind(const td_cache *c, uint32_t layer)
{
    TD_ASSERT(layer < c->params.n_layers);
    return c->kinds[layer];
}

td_kv *td_cache_kv(td_cache *c, uint32_t layer)
{
    TD_ASSERT(layer < c->params.n_layers);
    return c->kvs[layer];
}

uint64_t td_cache_position_bytes(const td_cache *c, uint32_t layer)
{
    TD_ASSERT(layer < c->params.n_layers);
    if (!c->kvs[layer])
        return 0;
    const td_kv_params *kv = td_kv_get_params(c->kvs[layer]);
    uint32_t block_k = kv->type_k->block_elements, block_v = kv->type_v->block_elements;
    uint32_t n_k = td_div_up(kv->head_dim_k, block_k) * block_k;
    uint32_t n_v = kv->is_latent ? 0 : td_div_up(kv->head_dim_v, block_v) * block_v;
    return (uint64_t)kv->n_head_kv *
           (td_row_bytes(kv->type_k, n_k) + td_row_bytes(kv->type_v, n_v));
}

td_state *td_cache_state(td_cache *c, uint32_t layer)
{
    TD_ASSERT(layer < c->params.n_layers);
    return c->states[layer];
}

td_tensor *td_cache_pages(td_cache *c, td_cache_kind kind)
{
    TD_ASSERT(kind == TD_CACHE_FULL || kind == TD_CACHE_LOCAL);
    return c->pools[kind].table;
}

td_tensor *td_cache_spans(td_cache *c) { return c->spans; }

bool td_cache_forgets(const td_cache *c) { return c->pools[TD_CACHE_LOCAL].n_pages || c->spans; }

static slot_state *slot_of(const td_cache *c, uint32_t slot)
{
    TD_ASSERT(slot < c->params.n_slots);
    return &c->slots[slot];
}

static int32_t *table_row(const td_cache *c, const pool *p, uint32_t slot)
{
    return (int32_t *)td_tensor_data(p->table) + (size_t)slot * c->n_table_cols;
}

static void give_back(pool *p, int32_t *entry)
{
    uint32_t page = (uint32_t)*entry;
    *entry = 0;
    TD_ASSERT(page < p->n_pages && p->n_references[page] > 0);
    if (--p->n_references[page] == 0)
        p->free_pages[p->n_free++] = page;
}

/* Gives back the pages of a slot outside entries first..end-1. */
static void release(td_cache *c, pool *p, uint32_t slot, uint32_t first, uint32_t end)
{
    if (!p->n_pages)
        return;
    page_run *r = &p->runs[slot];
    int32_t *row = table_row(c, p, slot);
    while (r->end > end && r->end > r->first)
        give_back(p, &row[--r->end]);
    while (r->first < first && r->first < r->end)
        give_back(p, &row[r->first++]);
}

static uint32_t n_missing(const pool *p, uint32_t slot, uint32_t n_wanted)
{
    uint32_t end = p->n_pages ? p->runs[slot].end : n_wanted;
    return n_wanted > end ? n_wanted - end : 0;
}

bool td_cache_reserve(td_cache *c, uint32_t slot, uint32_t length, td_err *err)
{
    slot_state *s = slot_of(c, slot);
    TD_ASSERT(length <= c->params.n_ctx);
    uint32_t n_wanted = pages_for(length);
    for (size_t k = 0; k < TD_COUNT(c->pools); k++) {
        const pool *p = &c->pools[k];
        uint32_t n = n_missing(p, slot, n_wanted);
        if (n > p->n_free && p->n_pages)
            return td_err_set(err, TD_E_NOMEM, "cache: %u pages wanted, %u of %u free", n,
                              p->n_free, p->n_pages);
    }
    for (size_t k = 0; k < TD_COUNT(c->pools); k++) {
        pool *p = &c->pools[k];
        for (uint32_t n = n_missing(p, slot, n_wanted); n; n--) {
            uint32_t page = p->free_pages[--p->n_free];
            p->n_references[page] = 1;
            table_row(c, p, slot)[p->runs[slot].end++] = (int32_t)page;
        }
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
    for (size_t k = 0; k < TD_COUNT(c->pools); k++)
        release(c, &c->pools[k], slot, 0, pages_for(length));
}

void td_cache_commit(td_cache *c, uint32_t slot, uint32_t length)
{
    slot_state *s = slot_of(c, slot);
    TD_ASSERT(length >= s->committed && length <= s->length);
    s->committed = length;
    release(c, &c->pools[TD_CACHE_LOCAL], slot, forgotten(&c->params, length) / TD_PAGE_POSITIONS,
            UINT32_MAX);
}

uint32_t td_cache_first_kept(const td_cache *c, td_cache_kind kind, uint32_t committed)
{
    uint32_t n = kind == TD_CACHE_LOCAL ? forgotten(&c->params, committed) : 0;
    return n - n % TD_PAGE_POSITIONS;
}

uint32_t td_cache_n_layers(const td_cache *c) { return c->params.n_layers; }

void td_cache_clear(td_cache *c, uint32_t slot)
{
    slot_state *s = slot_of(c, slot);
    s->length = s->committed = 0;
    for (size_t k = 0; k < TD_COUNT(c->pools); k++)
        if (c->pools[k].n_pages) {
            release(c, &c->pools[k], slot, UINT32_MAX, UINT32_MAX);
            c->pools[k].runs[slot] = (page_run){0, 0};
        }
}

void td_cache_share(td_cache *c, uint32_t from, uint32_t to, uint32_t length)
{
    slot_state *a = slot_of(c, from), *b = slot_of(c, to);
    pool *p = &c->pools[TD_CACHE_FULL];
    TD_ASSERT(!td_cache_forgets(c) && from != to && p->runs[to].end == 0 && b->length == 0);
    TD_ASSERT(length % TD_PAGE_POSITIONS == 0 && length <= a->committed);
    for (uint32_t i = 0; i < length / TD_PAGE_POSITIONS; i++) {
        int32_t page = table_row(c, p, from)[i];
        table_row(c, p, to)[i] = page;
        p->n_references[page]++;
        p->runs[to].end++;
    }
    b->length = b->committed = length;
}

void td_cache_rewind(td_cache *c, uint32_t slot, uint32_t length)
{
    slot_state *s = slot_of(c, slot);
    TD_ASSERT(!td_cache_forgets(c));
    TD_ASSERT(length % TD_PAGE_POSITIONS == 0 && length <= s->committed);
    s->length = s->committed = length;
    release(c, &c->pools[TD_CACHE_FULL], slot, 0, length / TD_PAGE_POSITIONS);
}

uint32_t td_cache_length(const td_cache *c, uint32_t slot) { return slot_of(c, slot)->length; }
uint32_t td_cache_committed(const td_cache *c, uint32_t slot)
{
    return slot_of(c, slot)->committed;
}
uint32_t td_cache_n_free_pages(const td_cache *c) { return c->pools[TD_CACHE_FULL].n_free; }
