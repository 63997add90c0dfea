/* The cache of keys and values of many sequences on one device.
 *
 * Layout: memory is cut into pages of TD_PAGE_POSITIONS positions; a page holds those positions of
 * one sequence for every layer of the part. A sequence has a slot; row `slot` of the page table
 * names its pages in order, so sequences grow, shrink, join and leave without moving anything
 * (continuous batching), and a page may stand in several rows (shared prefixes, counted
 * references). The table is a host-visible tensor that the attention and kv_store ops read.
 *
 * A slot has a length (positions that may be read, the speculative tail included) and a committed
 * length, which never shrinks but by td_cache_clear and td_cache_rewind. truncate drops the tail by
 * returning pages and moving a number: nothing is copied or recomputed. Rows are written at
 * positions >= the committed length only, and a shared prefix ends on a page boundary and is
 * committed, so a shared page is never written: no copy-on-write is needed.
 *
 * Layers that see only the latest positions (a window, or the chunk a position lies in) have pages
 * and a table of their own: pages wholly below what a row at the committed length may see are given
 * back on commit, so they take the window and the rows in flight, whatever the context.
 * Recurrent layers have a td_state each, which the same verbs govern: device.h. What is truncated
 * was never folded into it.
 *
 * One thread at a time. Nothing is allocated after create. */
#ifndef TD_MODEL_CACHE_H
#define TD_MODEL_CACHE_H

#include "base/err.h"
#include "kernels/device.h"
#include "model/cache_types.h"

typedef struct td_cache td_cache;

typedef enum { TD_CACHE_FULL, TD_CACHE_LOCAL, TD_CACHE_RECURRENT } td_cache_kind;

typedef struct {
    td_cache_types kv;
    uint32_t first_layer; /* of the model: kv may say something of some */
    uint32_t n_layers, n_head_kv, head_dim_k, head_dim_v;
    bool is_latent;             /* td_kv_params: values have the type of keys too */
    const td_cache_kind *kinds; /* [n_layers], read by create; NULL: all FULL */
    uint32_t window, chunk;     /* of LOCAL layers: what attention's parameters say */
    uint32_t n_slots;           /* sequences at once */
    uint32_t n_ctx;             /* positions of one sequence at most */
    uint32_t n_pages;           /* of FULL layers in all; 0: enough for every slot's context */
    uint32_t n_flight;          /* positions above the committed length at most, but in prefill;
                                 * for LOCAL and RECURRENT layers */
    td_state_params state;      /* of RECURRENT layers; n_slots and n_pending are set by create */
} td_cache_params;

td_cache *td_cache_create(td_device *dev, const td_cache_params *params, td_err *err);
/* Counts the pages: one that is neither free nor some slot's is a fault of ours, of which the
 * program dies. */
void td_cache_destroy(td_cache **c);
/* Bytes such a cache would take on the device. */
uint64_t td_cache_bytes(const td_device *dev, const td_cache_params *params);
/* Of those, what a layer's keys and values of one position take; 0: it is recurrent. */
uint64_t td_cache_position_bytes(const td_cache *c, uint32_t layer);
/* Whether each layer's parts are small enough for a buffer of the device. TD_E_NOMEM says how many
 * positions would be. */
bool td_cache_check(const td_device *dev, const td_cache_params *params, td_err *err);

uint32_t td_cache_n_layers(const td_cache *c);
/* Of a layer, 0-based within the part: its kind, and NULL where it has no such thing. */
td_cache_kind td_cache_layer_kind(const td_cache *c, uint32_t layer);
td_kv *td_cache_kv(td_cache *c, uint32_t layer);
td_state *td_cache_state(td_cache *c, uint32_t layer);
/* I32 [n_slots][pages of n_ctx] of FULL or LOCAL layers; NULL when there are none of LOCAL. */
td_tensor *td_cache_pages(td_cache *c, td_cache_kind kind);
/* I32 [n_slots][2] for recurrent layers, to be filled before a run (ops.h), or NULL. */
td_tensor *td_cache_spans(td_cache *c);
/* Whether what is committed cannot be seen again in full: LOCAL or RECURRENT layers. Then rows of a
 * prefill must be committed after it, and others in time for n_flight. */
bool td_cache_forgets(const td_cache *c);

/* Makes positions 0..length-1 of the slot addressable; grows the length. TD_E_NOMEM when there is
 * no free page, nothing changed then. */
bool td_cache_reserve(td_cache *c, uint32_t slot, uint32_t length, td_err *err);
void td_cache_truncate(td_cache *c, uint32_t slot, uint32_t length); /* >= committed */
void td_cache_commit(td_cache *c, uint32_t slot, uint32_t length);   /* <= length, >= committed */
void td_cache_clear(td_cache *c, uint32_t slot);
/* Slot `to`, empty, begins with the first `length` positions of `from`: a multiple of
 * TD_PAGE_POSITIONS, committed there. Not for caches that forget. */
void td_cache_share(td_cache *c, uint32_t from, uint32_t to, uint32_t length);
/* The slot keeps its first `length` positions, committed: a multiple of
 * TD_PAGE_POSITIONS, at most what is committed. The rest is given back, whoever else may
 * share it. Not for caches that forget. */
void td_cache_rewind(td_cache *c, uint32_t slot, uint32_t length);

/* Positions first..end-1 of a slot as bytes, in all layers, for who begins alike later (cut.h):
 * multiples of TD_PAGE_POSITIONS, TD_PREFILL_ROWS_MAX of them at most, computed by one prefill, of
 * which nothing is behind them. `end` decides what a cache that forgets still has of them. Sizes
 * may be asked for by any thread. */
uint64_t td_cache_chunk_bytes(const td_cache *c, uint32_t first, uint32_t end);
uint64_t td_cache_layer_bytes(const td_cache *c, uint32_t layer); /* of a page, or a state */
uint64_t td_cache_chunk_bytes_max(const td_cache *c, uint32_t n_positions);
bool td_cache_read_chunk(td_cache *c, uint32_t slot, uint32_t first, uint32_t end, void *bytes,
                         td_err *err);
/* The slot, `first` long, grows by them, as by a prefill of them. bytes[td_cache_chunk_bytes]. */
bool td_cache_write_chunk(td_cache *c, uint32_t slot, uint32_t first, uint32_t end, void *bytes,
                          td_err *err);
/* The first position that layers of a kind have, once so many are committed; multiples of
 * TD_PAGE_POSITIONS. */
uint32_t td_cache_first_kept(const td_cache *c, td_cache_kind kind, uint32_t committed);

uint32_t td_cache_length(const td_cache *c, uint32_t slot);
uint32_t td_cache_committed(const td_cache *c, uint32_t slot);
uint32_t td_cache_n_free_pages(const td_cache *c);

#endif
