/* Prompts of one model in a store of chunks (prefix_store.h): which chunk of which sequence is
 * looked for, and the room for those on their way. A chunk's name goes by all tokens up to its end
 * and by everything that its bits depend on; chunks are cut where a run without a store cuts them,
 * so it makes no difference to a text whether one was computed or read (law 1).
 *
 *     td_prefix_open(p, slot, slot, 0);
 *     blob = td_prefix_find(p, slot, first, tokens, n_bytes, true);   // per full chunk, in order
 *     if (blob && blob->is_loaded) restore it; else compute; if (blob && !blob->is_loaded) save it
 *     td_prefix_done(p, &blob, is_whole);
 *
 * Nobody waits for a disk that writes: chunks that find no room go unkept. So much room is left to
 * reading that what is written never stands in its way.
 *
 * Owns the room; borrows the store. open and find: one thread; done: any. */
#ifndef TD_MODEL_PREFIX_H
#define TD_MODEL_PREFIX_H

#include "model/cache.h"
#include "model/prefix_store.h"

#define TD_PREFIX_WRITING 3u /* chunks that wait to be written, at most */

typedef struct td_prefix td_prefix;

typedef struct {
    td_prefix_store *store;   /* not used where chunk_bytes is 0: then there are only names */
    const char *identity;     /* all that decides a chunk's bits beside its tokens */
    const char *model, *what; /* for people (prefix_file.h), cut off; copied */
    uint32_t chunk_rows;      /* positions of a chunk, at most TD_PREFIX_TOKENS_MAX */
    uint64_t chunk_bytes;     /* of one, at most */
    uint32_t n_slots, n_ctx;
    uint32_t n_reading; /* chunks that were found and not done with; who looks for more waits */
} td_prefix_params;

td_prefix *td_prefix_create(const td_prefix_params *params, td_err *err);
/* Waits until what is on its way is written. */
void td_prefix_destroy(td_prefix **p);

/* An identity with all that caches are made of, layer by layer, behind what is said already; *out
 * is the caller's, td_free. */
bool td_prefix_write_identity(const char *said, const td_cache *const *caches, uint32_t n_caches,
                              char **out, td_err *err);

/* The slot begins with the first `length` positions of another, or of its own. */
void td_prefix_open(td_prefix *p, uint32_t slot, uint32_t from_slot, uint32_t length);
/* The slot begins with tokens[n]: its full chunks need not be asked for one by one. */
void td_prefix_name(td_prefix *p, uint32_t slot, const uint32_t *tokens, uint32_t n);
/* The chunk of tokens[chunk_rows] at positions first.. of a slot, n_bytes of it, what is before it
 * having been asked for too: loaded, or room to be filled; NULL: neither. is_wanted false: its rows
 * have to be run anyway, so it is not looked for. */
td_prefix_blob *td_prefix_find(td_prefix *p, uint32_t slot, uint32_t first, const uint32_t *tokens,
                               uint64_t n_bytes, bool is_wanted);
/* is_whole: what was to be filled is, and can be kept. */
/* The same in two steps, for who names chunks for others too. False: what is before it has no name.
 * behind() names one for who does: before[] is theirs. */
bool td_prefix_ask(td_prefix *p, uint32_t slot, uint32_t first, const uint32_t *tokens,
                   td_prefix_head *out);
void td_prefix_behind(const td_prefix *p, const uint8_t before[TD_PREFIX_HASH_BYTES],
                      uint32_t first, const uint32_t *tokens, td_prefix_head *out);
td_prefix_blob *td_prefix_look(td_prefix *p, const td_prefix_head *head, uint64_t n_bytes,
                               bool is_wanted);
void td_prefix_done(td_prefix *p, td_prefix_blob **blob, bool is_whole);

uint64_t td_prefix_n_dropped(const td_prefix *p); /* chunks that found no room */

#endif
