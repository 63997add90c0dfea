/* Inside of the GGUF reader: one file of a model (a shard, or the whole), parsed and checked.
 * Only model/gguf*.c include this.
 *
 * The metadata of a file is kept as one block of its bytes, and entries hold offsets into it.
 * When all of it is read, every string gets a terminating 0 in place: the byte after a string is
 * the first byte of the next length, type or count, which is never read again. Names are found by
 * binary search in a sorted list: no choice of names by a hostile file makes that slow, as it could
 * a hash table, and duplicates are neighbours. */
#ifndef TD_MODEL_GGUF_PARSE_H
#define TD_MODEL_GGUF_PARSE_H

#include "base/mem.h"
#include "model/gguf.h"

typedef struct {
    const char *base; /* the metadata block */
    uint32_t *starts; /* [n + 1] offset of each string's first byte; [n] is one past a length field,
                         so that string i has starts[i + 1] - 8 - starts[i] bytes */
} td_gguf_strings;

typedef struct {
    td_gguf_value_type type;
    td_gguf_value_type element; /* of an array */
    uint32_t n;                 /* elements of an array, bytes of a string, else 1 */
    uint32_t key, n_key;        /* offset of the key, its bytes */
    uint32_t value;             /* offset of the value, of a string's or an array's first byte */
    td_gguf_strings *strings;   /* of a string array */
} td_gguf_entry;

typedef struct { /* names sorted by strcmp, for binary search and to find duplicates */
    const char *name;
    uint32_t i; /* in file order */
} td_gguf_name;

typedef struct {
    char *path;
    int fd; /* -1 while not open */
    uint64_t n_file_bytes;
    uint8_t *bytes; /* [n_bytes + 1] everything before the tensor data */
    uint32_t n_bytes;
    uint32_t version;
    uint32_t alignment;
    uint32_t n_entries;
    td_gguf_entry *entries;
    td_gguf_name *keys; /* [n_entries] */
    uint32_t n_tensors;
    td_gguf_tensor *tensors; /* shard numbers still 0 */
    uint64_t hash;           /* of the metadata bytes and the file's size */
} td_gguf_shard;

/* Opens shard->path and fills the rest; memory but for `bytes` comes from the arena. On failure
 * the shard may be half-built; td_gguf_close_shard takes it in any state. */
bool td_gguf_parse_shard(td_gguf_shard *shard, td_arena *arena, td_err *err);
void td_gguf_close_shard(td_gguf_shard *shard);

/* Sorts names[n] and refuses duplicates; `what` is "key" or "tensor". */
bool td_gguf_sort_names(td_gguf_name *names, uint32_t n, const char *what, td_err *err);
/* The position in file order of a name, or UINT32_MAX. */
uint32_t td_gguf_find_name(const td_gguf_name *names, uint32_t n, const char *name);

/* The unsigned integer under a key of this shard; a missing key gives `fallback`. */
bool td_gguf_shard_uint(const td_gguf_shard *shard, const char *key, uint64_t fallback,
                        uint64_t *out, td_err *err);

/* The shard that holds the model's keys. */
const td_gguf_shard *td_gguf_first_shard(const td_gguf *g);

/* The integer at p of an integer type: its value, and whether it is negative (then *out holds the
 * two's complement). False when the type is no integer. */
bool td_gguf_load_int(td_gguf_value_type type, const uint8_t *p, uint64_t *out, bool *negative);
/* Bytes of a scalar of this type; 0 for STRING, ARRAY and what is no type. */
uint32_t td_gguf_scalar_bytes(uint32_t type);

#endif
