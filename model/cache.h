/* The cache of keys and values of many sequences on one device.
 *
 * Layout: memory is cut into pages of TD_PAGE_POSITIONS positions; a page holds those positions of
 * one sequence for every layer of the part. A sequence has a slot; row `slot` of the page table
 * names its pages in order, so sequences grow, shrink, join and leave without moving anything
 * (continuous batching), and a page may stand in several rows (shared prefixes, counted
 * references). The table is a host-visible tensor that the attention and kv_store ops read.
 *
 * A slot has a length (positions that may be read, the speculative tail included) and a committed
 * length, which never shrinks but by td_cache_clear. truncate drops the tail by returning pages and
 * moving a number: nothing is copied or recomputed. Rows are written at positions >= the committed
 * length only, and a shared prefix ends on a page boundary and is committed, so a shared page is
 * never written: no copy-on-write is needed.
 *
 * Recurrent state will join here with the same verbs. One thread at a time. Nothing is allocated
 * after create. */
#ifndef TD_MODEL_CACHE_H
#define TD_MODEL_CACHE_H

#include "base/err.h"
#include "kernels/device.h"

typedef struct td_cache td_cache;

typedef struct {
    const td_type_info *type_k, *type_v;
    uint32_t n_layers, n_head_kv, head_dim_k, head_dim_v;
    uint32_t n_slots; /* sequences at once */
    uint32_t n_ctx;   /* positions of one sequence at most */
    uint32_t n_pages; /* in all; 0: enough for every slot to fill its context */
} td_cache_params;

td_cache *td_cache_create(td_device *dev, const td_cache_params *params, td_err *err);
void td_cache_destroy(td_cache **c);
/* Bytes such a cache would take on the device. */
uint64_t td_cache_bytes(const td_device *dev, const td_cache_params *params);

td_kv *td_cache_kv(td_cache *c, uint32_t layer); /* 0-based within the part */
td_tensor *td_cache_pages(td_cache *c);          /* I32 [n_slots][pages of n_ctx] */

/* Makes positions 0..length-1 of the slot addressable; grows the length. TD_E_NOMEM when there is
 * no free page, nothing changed then. */
bool td_cache_reserve(td_cache *c, uint32_t slot, uint32_t length, td_err *err);
void td_cache_truncate(td_cache *c, uint32_t slot, uint32_t length); /* >= committed */
void td_cache_commit(td_cache *c, uint32_t slot, uint32_t length);   /* <= length, >= committed */
void td_cache_clear(td_cache *c, uint32_t slot);
/* Slot `to`, empty, begins with the first `length` positions of `from`: a multiple of
 * TD_PAGE_POSITIONS, committed there. */
void td_cache_share(td_cache *c, uint32_t from, uint32_t to, uint32_t length);

uint32_t td_cache_length(const td_cache *c, uint32_t slot);
uint32_t td_cache_committed(const td_cache *c, uint32_t slot);
uint32_t td_cache_n_free_pages(const td_cache *c);

#endif
