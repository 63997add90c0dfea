/* GGUF files, v2 and v3, little-endian, whole or split (name-00001-of-00005.gguf: open the first,
 * the rest are found beside it; keys are those of the first). td_gguf_open checks every count,
 * length, offset and type before anything is built from it: all bytes of the file are hostile.
 *
 * Owns: the file descriptors and a copy of the metadata (strings returned live until close).
 * Tensor data is never mapped, only read with pread into the caller's memory, so that a file that
 * shrinks gives an error and not SIGBUS, and a model never lies in memory twice.
 * Errors: TD_E_DATA (malformed, with the byte position or key), TD_E_IO, TD_E_NOMEM.
 * Threads: immutable after open; any thread may read.
 * Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md */
#ifndef TD_MODEL_GGUF_H
#define TD_MODEL_GGUF_H

#include "base/err.h"
#include "kernels/types.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TD_GGUF_MAX_KEYS     65536u
#define TD_GGUF_MAX_TENSORS  65536u
#define TD_GGUF_MAX_SHARDS   1024u
#define TD_GGUF_MAX_KEY      65535u       /* bytes of a key */
#define TD_GGUF_MAX_NAME     63u          /* bytes of a tensor name */
#define TD_GGUF_MAX_STRING   (1u << 24)   /* bytes of a string value */
#define TD_GGUF_MAX_ARRAY    (1u << 24)   /* elements of an array */
#define TD_GGUF_MAX_METADATA (512u << 20) /* bytes before the tensor data of one file */
#define TD_GGUF_MAX_DIM      (1ull << 40)
#define TD_GGUF_MAX_TENSOR   (1ull << 40) /* bytes */

/* Metadata value types of the format. */
typedef enum {
    TD_GGUF_U8 = 0,
    TD_GGUF_I8,
    TD_GGUF_U16,
    TD_GGUF_I16,
    TD_GGUF_U32,
    TD_GGUF_I32,
    TD_GGUF_F32,
    TD_GGUF_BOOL,
    TD_GGUF_STRING,
    TD_GGUF_ARRAY,
    TD_GGUF_U64,
    TD_GGUF_I64,
    TD_GGUF_F64,
    TD_GGUF_VALUE_COUNT
} td_gguf_value_type;

typedef struct td_gguf td_gguf;

typedef struct {
    const char *name;
    uint32_t type_id;         /* a type of the format: td_type_format_name(type_id) */
    const td_type_info *type; /* NULL when tandem does not compute with this type */
    uint32_t n_dims;
    uint64_t ne[4]; /* ne[0] is contiguous; unused ones are 1 */
    uint64_t n_bytes;
    uint64_t offset; /* absolute byte offset in its shard */
    uint32_t shard;
} td_gguf_tensor;

typedef struct {
    td_gguf_value_type type; /* of the elements; never ARRAY */
    uint32_t n;
    const void *data; /* numbers as stored (may be unaligned); opaque for strings */
} td_gguf_array;

td_gguf *td_gguf_open(const char *path, td_err *err);
void td_gguf_close(td_gguf **gguf);

const char *td_gguf_path(const td_gguf *g); /* of the first file, as it was opened */
uint64_t td_gguf_n_bytes(const td_gguf *g); /* of all files */
uint32_t td_gguf_version(const td_gguf *g);
uint32_t td_gguf_n_shards(const td_gguf *g);
uint32_t td_gguf_n_keys(const td_gguf *g);
/* Key i and its type, in file order. */
const char *td_gguf_key_at(const td_gguf *g, uint32_t i, td_gguf_value_type *type);
/* "U32", "STRING", ...; "?" for a value that is no type. */
const char *td_gguf_value_name(uint32_t type);
bool td_gguf_has(const td_gguf *g, const char *key);

/* Typed getters: the key must exist and hold a value of a fitting type and range, else an error
 * (with *out untouched) that names file, key, and the type or value. A number of any type is taken
 * where the value is exactly one of the type asked for (a float is rounded to F32); so are 0 and 1
 * for a BOOL. */
bool td_gguf_get_u32(const td_gguf *g, const char *key, uint32_t *out, td_err *err);
bool td_gguf_get_u64(const td_gguf *g, const char *key, uint64_t *out, td_err *err);
bool td_gguf_get_i64(const td_gguf *g, const char *key, int64_t *out, td_err *err);
bool td_gguf_get_f32(const td_gguf *g, const char *key, float *out, td_err *err);  /* finite */
bool td_gguf_get_f64(const td_gguf *g, const char *key, double *out, td_err *err); /* finite */
bool td_gguf_get_bool(const td_gguf *g, const char *key, bool *out, td_err *err);
/* *out is 0-terminated; n_bytes (may be NULL) is its length; it may hold inner zeros. */
bool td_gguf_get_str(const td_gguf *g, const char *key, const char **out, size_t *n_bytes,
                     td_err *err);
/* An array whose elements are of this type exactly. */
bool td_gguf_get_array(const td_gguf *g, const char *key, td_gguf_value_type type,
                       td_gguf_array *out, td_err *err);
/* An array of whatever it holds. */
bool td_gguf_get_any_array(const td_gguf *g, const char *key, td_gguf_array *out, td_err *err);
/* An array of any integer type (i: 0-based, < n), for arrays that files write in several widths. */
bool td_gguf_get_int_array(const td_gguf *g, const char *key, td_gguf_array *out, td_err *err);
/* An array of any type of numbers, or of BOOL. */
bool td_gguf_get_number_array(const td_gguf *g, const char *key, td_gguf_array *out, td_err *err);
double td_gguf_array_number(const td_gguf_array *a, uint32_t i); /* rounded above 2^53 */
int64_t td_gguf_array_int(const td_gguf_array *a, uint32_t i);   /* above INT64_MAX: INT64_MAX */
float td_gguf_array_f32(const td_gguf_array *a, uint32_t i);     /* of an F32 array */
/* 0-terminated, may hold inner zeros; n_bytes may be NULL. */
const char *td_gguf_array_str(const td_gguf_array *a, uint32_t i, size_t *n_bytes);

uint32_t td_gguf_n_tensors(const td_gguf *g);
const td_gguf_tensor *td_gguf_tensor_at(const td_gguf *g, uint32_t i);
const td_gguf_tensor *td_gguf_find_tensor(const td_gguf *g, const char *name); /* or NULL */

/* Reads n_bytes of a tensor from byte `from` of its data into dst. */
bool td_gguf_read(const td_gguf *g, const td_gguf_tensor *t, uint64_t from, uint64_t n_bytes,
                  void *dst, td_err *err);
/* The files as they are, to be copied elsewhere: the bytes of one, those of them that come before
 * the tensors, and some of them. */
uint64_t td_gguf_shard_bytes(const td_gguf *g, uint32_t shard);
uint32_t td_gguf_head_bytes(const td_gguf *g, uint32_t shard);
bool td_gguf_read_shard(const td_gguf *g, uint32_t shard, uint64_t from, uint64_t n_bytes,
                        void *dst, td_err *err);
/* Has the kernel read these bytes ahead, while others are worked on; and tells it that they will
 * not be read again (page cache). Advice: no errors. */
void td_gguf_prefetch(const td_gguf *g, const td_gguf_tensor *t, uint64_t from, uint64_t n_bytes);
void td_gguf_drop(const td_gguf *g, const td_gguf_tensor *t, uint64_t from, uint64_t n_bytes);

/* A hash of the metadata and the tensor directory of all shards (sizes, offsets), for results. */
uint64_t td_gguf_hash(const td_gguf *g);

/* Another number when a file is written to or replaced: inodes, sizes, times. */
uint64_t td_gguf_stamp(const td_gguf *g);

#endif
