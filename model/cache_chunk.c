/* A chunk of positions between a cache and plain bytes: layer by layer, of each its pages in order,
 * or what it is left with at the end. */
#include "model/cache.h"

#include "base/check.h"
#include "kernels/cut.h"

#define CUTS_MAX 128u       /* moved at once */
#define ANY_SLOT UINT32_MAX /* sizes are those of any slot and page */

typedef struct { /* goes through the cuts of a chunk */
    td_cache *cache;
    uint32_t slot, end;
    uint32_t layer, position; /* of the next cut */
    uint32_t first;
} walk;

static uint32_t page_of(const walk *w, td_cache_kind kind)
{
    td_tensor *table = td_cache_pages(w->cache, kind);
    if (w->slot == ANY_SLOT)
        return 0;
    const int32_t *pages = (const int32_t *)td_tensor_data(table) +
                           (size_t)w->slot * td_tensor_get_params(table)->n_cols;
    return (uint32_t)pages[w->position / TD_PAGE_POSITIONS];
}

/* False: that was the last one. */
static bool next(walk *w, td_cut *cut)
{
    for (; w->layer < td_cache_n_layers(w->cache); w->layer++, w->position = w->first) {
        td_cache_kind kind = td_cache_layer_kind(w->cache, w->layer);
        if (kind == TD_CACHE_RECURRENT) {
            *cut = (td_cut){.state = td_cache_state(w->cache, w->layer++),
                            .index = w->slot == ANY_SLOT ? 0 : w->slot,
                            .position = w->end};
            w->position = w->first;
            return true;
        }
        w->position = td_max_u32(w->position, td_cache_first_kept(w->cache, kind, w->end));
        if (w->position >= w->end)
            continue;
        *cut = (td_cut){.kv = td_cache_kv(w->cache, w->layer), .index = page_of(w, kind)};
        w->position += TD_PAGE_POSITIONS;
        return true;
    }
    return false;
}

static walk begin(const td_cache *c, uint32_t slot, uint32_t first, uint32_t end)
{
    TD_ASSERT(first % TD_PAGE_POSITIONS == 0 && end % TD_PAGE_POSITIONS == 0 && first < end);
    TD_ASSERT(end - first <= TD_PREFILL_ROWS_MAX);
    return (walk){.cache = (td_cache *)(uintptr_t)c,
                  .slot = slot,
                  .first = first,
                  .position = first,
                  .end = end};
}

uint64_t td_cache_chunk_bytes(const td_cache *c, uint32_t first, uint32_t end)
{
    uint64_t n_bytes = 0;
    td_cut cut;
    for (walk w = begin(c, ANY_SLOT, first, end); next(&w, &cut);)
        n_bytes += td_cut_bytes(&cut);
    return n_bytes;
}

uint64_t td_cache_layer_bytes(const td_cache *c, uint32_t layer)
{
    td_cache *cache = (td_cache *)(uintptr_t)c;
    return td_cut_bytes(&(td_cut){.kv = td_cache_kv(cache, layer),
                                  .state = td_cache_state(cache, layer),
                                  .position = TD_PREFILL_ROWS_MAX});
}

/* A window's pages are all there as long as nothing is past it. */
uint64_t td_cache_chunk_bytes_max(const td_cache *c, uint32_t n_positions)
{
    uint64_t n_bytes = 0;
    for (uint32_t i = 0; i < td_cache_n_layers(c); i++) {
        bool has_pages = td_cache_layer_kind(c, i) != TD_CACHE_RECURRENT;
        n_bytes += td_cache_layer_bytes(c, i) * (has_pages ? n_positions / TD_PAGE_POSITIONS : 1);
    }
    return n_bytes;
}

static bool move(walk *w, bool is_read, uint8_t *bytes, td_err *err)
{
    td_cut cuts[CUTS_MAX];
    uint32_t n;
    do {
        for (n = 0; n < CUTS_MAX && next(w, &cuts[n]); n++) {
            cuts[n].bytes = bytes;
            bytes += td_cut_bytes(&cuts[n]);
        }
        if (n && !(is_read ? td_cuts_read : td_cuts_write)(cuts, n, err))
            return false;
    } while (n == CUTS_MAX);
    return true;
}

bool td_cache_read_chunk(td_cache *c, uint32_t slot, uint32_t first, uint32_t end, void *bytes,
                         td_err *err)
{
    walk w = begin(c, slot, first, end);
    TD_ASSERT(td_cache_length(c, slot) == end);
    return move(&w, true, bytes, err);
}

bool td_cache_write_chunk(td_cache *c, uint32_t slot, uint32_t first, uint32_t end, void *bytes,
                          td_err *err)
{
    walk w = begin(c, slot, first, end);
    TD_ASSERT(td_cache_length(c, slot) == first);
    if (!td_cache_reserve(c, slot, end, err) || !move(&w, false, bytes, err))
        return false;
    if (td_cache_forgets(c))
        td_cache_commit(c, slot, end);
    return true;
}
