/* A folder of chunks of prompts (prefix_file.h), as the cache holds them, kept for later runs: who
 * reads and writes them, and within which bounds. There is no index: a file's name says it all, so
 * any number of processes share a folder, and nothing in it can be left half done or locked.
 *
 *     td_prefix_store *s = td_prefix_store_open("prompts", 16e9, &err);
 *     if (td_prefix_store_read(s, &blob)) ...              // checked; else as if it were not there
 *     td_prefix_store_write(s, &blob);                     // by a thread; comes back to blob.home
 *
 * The folder takes max_bytes at most; before more is written than that, what was used the longest
 * time ago is removed, whoever wrote it. (Several processes that write in the same second may pass
 * it by what each of them wrote.) What cannot be written ends writing, with a warning, and nothing
 * else. What is damaged is left out, with a warning, and replaced when it is computed again.
 *
 * Threads: any may read and write. Errors: open and list, TD_E_IO; else there are only warnings. */
#ifndef TD_MODEL_PREFIX_STORE_H
#define TD_MODEL_PREFIX_STORE_H

#include "base/queue.h"
#include "model/prefix_file.h"

typedef struct td_prefix_store td_prefix_store;

/* A chunk on its way. */
typedef struct {
    td_queue_item item;
    td_queue *home; /* where it is pushed when it is written */
    td_prefix_head head;
    uint8_t *bytes;
    uint64_t capacity;
    bool is_loaded;    /* read() did */
    bool is_replacing; /* what is there of it is of no use */
} td_prefix_blob;

typedef struct {
    uint64_t n_read, read_positions, read_bytes, read_us;
    uint64_t n_written, written_positions, written_bytes, write_us;
    uint64_t n_damaged; /* files left out */
    uint64_t n_removed; /* by the bound */
    uint64_t n_failed;  /* not written */
} td_prefix_counts;

/* The folder is made (0700) where its parent is there. */
td_prefix_store *td_prefix_store_open(const char *path, uint64_t max_bytes, td_err *err);
/* Writes what waits. */
void td_prefix_store_close(td_prefix_store **s);

/* Looks for the chunk that the blob's head says; true: its bytes are there, and head has their
 * number. The head must be as computed here, all of it but the number of bytes and their crc. */
bool td_prefix_store_read(td_prefix_store *s, td_prefix_blob *blob);
/* Has it written, and pushed to its home after that. Never waits. */
void td_prefix_store_write(td_prefix_store *s, td_prefix_blob *blob);
/* Waits until all that was handed over is written. */
void td_prefix_store_flush(td_prefix_store *s);
td_prefix_counts td_prefix_store_counts(const td_prefix_store *s);

/* -- a folder as it lies there --------------------------------------------------------------- */

typedef struct {
    char name[TD_PREFIX_NAME_BYTES];
    uint64_t n_bytes;
    double used_s; /* when it was used last, since 1970 */
} td_prefix_entry;

/* What has a name of a chunk, the least recently used first: a link or a folder too, of no bytes,
 * which is of no use and is to be told of. *entries is the caller's, td_free. *n_bytes: of all of
 * them and of what is being written. Removes what was begun an hour ago and never finished. */
bool td_prefix_store_list(int folder, td_prefix_entry **entries, uint32_t *n, uint64_t *n_bytes,
                          td_err *err);

#endif
