/* A file of the prefix cache: what a cache (cache.h) holds of one chunk of a prompt, and what it
 * was computed from. Files are named by a chain: SHA-256 of the name of the chunk before (of the
 * first: of what the bits depend on beside the tokens) and of the chunk's tokens.
 *
 *   0     "tdprefix", version u32, bytes of the head u32
 *   16    name [32], name of the chunk before [32]
 *   80    bytes of the chunk u64, first position u32, positions u32, CRC-32C of the bytes u32
 *   128   the model's name [128], what else the bits depend on [256]: text for people, 0 behind it
 *   512   tokens u32 [256], 0 behind them
 *   2044  CRC-32C of the head before it u32
 *   2048  the bytes of the chunk
 *
 * All little-endian. A file is hostile until it is checked: it is used only when it is a regular
 * file of ours that nobody else may write, of exactly its size, and all of its head and both
 * checksums are as they have to be. Whoever can write with our rights can of course make such a
 * file: the checks are against damage and strangers.
 *
 * Any thread. Errors: TD_E_IO (cannot be read), TD_E_DATA (is not what it says). */
#ifndef TD_MODEL_PREFIX_FILE_H
#define TD_MODEL_PREFIX_FILE_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

#define TD_PREFIX_HASH_BYTES  32u
#define TD_PREFIX_HEAD_BYTES  2048u
#define TD_PREFIX_TOKENS_MAX  256u         /* of a chunk: TD_PREFILL_ROWS_MAX */
#define TD_PREFIX_CHUNK_MAX   (1ull << 34) /* bytes of one */
#define TD_PREFIX_MODEL_BYTES 128u
#define TD_PREFIX_WHAT_BYTES  256u
#define TD_PREFIX_SUFFIX      ".prefix"
#define TD_PREFIX_TEMPORARY   ".writing-" /* begins the name of what is not whole yet */
#define TD_PREFIX_NAME_BYTES  72u         /* of a file's name, with the terminating 0 */

typedef struct {
    uint8_t name[TD_PREFIX_HASH_BYTES], before[TD_PREFIX_HASH_BYTES];
    uint64_t n_bytes;         /* of the chunk */
    uint32_t first, n_tokens; /* positions first .. first + n_tokens - 1 */
    uint32_t crc;             /* of the bytes */
    char model[TD_PREFIX_MODEL_BYTES], what[TD_PREFIX_WHAT_BYTES];
    uint32_t tokens[TD_PREFIX_TOKENS_MAX];
} td_prefix_head;

/* Fills in the name, from the one before and the tokens. */
void td_prefix_head_name(td_prefix_head *h);
void td_prefix_head_encode(const td_prefix_head *h, uint8_t out[TD_PREFIX_HEAD_BYTES]);
/* bytes[n_bytes]: the beginning of a file. Believes nothing. */
bool td_prefix_head_decode(const void *bytes, size_t n_bytes, td_prefix_head *out, td_err *err);

/* The file's name of a chunk, and whether a file has such a name at all. */
void td_prefix_file_name(const uint8_t name[TD_PREFIX_HASH_BYTES], char out[TD_PREFIX_NAME_BYTES]);
bool td_prefix_file_is_name(const char *name);

/* Reads and checks the file `name` of a folder. `bytes`: room for a chunk, [capacity]; NULL: it is
 * checked piece by piece and not kept. *is_there false (and no error): there is no such file. */
bool td_prefix_file_read(int folder, const char *name, td_prefix_head *head, void *bytes,
                         uint64_t capacity, bool *is_there, td_err *err);
/* Reads and checks the head alone. */
bool td_prefix_file_read_head(int folder, const char *name, td_prefix_head *head, td_err *err);
/* Writes it whole or not at all, under a name of its own before it is there: any number of
 * processes may do so at once. Fills in head->crc. */
bool td_prefix_file_write(int folder, td_prefix_head *head, const void *bytes, td_err *err);

#endif
