/* A bounded little-endian cursor over bytes from a file or a peer, and its twin that writes.
 *
 * The one primitive is has(n): are n more bytes there? No read moves past the end; a read that
 * does not fit fails, gives zero, and the cursor stays failed from then on. The first failure
 * sets the td_err named at begin (TD_E_DATA, "NAME: byte P: ..."), so a reader may take a whole
 * struct and look at the result once. The writer fails with TD_E_BUG when its room is full: its
 * caller sized the buffer.
 *
 * Borrows the bytes, the name and the err, which must outlive it. Not thread-safe; any thread. */
#ifndef TD_BASE_CURSOR_H
#define TD_BASE_CURSOR_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    const char *name; /* what is read, for messages: "model.gguf" */
    const uint8_t *bytes;
    uint64_t n_bytes;
    uint64_t pos; /* next byte to read, <= n_bytes */
    bool failed;
    td_err *err; /* may be NULL */
} td_cursor;

td_cursor td_cursor_begin(const char *name, const void *bytes, uint64_t n_bytes, td_err *err);

/* Are n more bytes there? False on a failed cursor. */
bool td_cursor_has(const td_cursor *c, uint64_t n);

/* Bytes not read yet. */
uint64_t td_cursor_left(const td_cursor *c);

/* Each false, with *out = 0 and the error set, when the bytes are not there. */
bool td_cursor_read_u8(td_cursor *c, uint8_t *out);
bool td_cursor_read_u16(td_cursor *c, uint16_t *out);
bool td_cursor_read_u32(td_cursor *c, uint32_t *out);
bool td_cursor_read_u64(td_cursor *c, uint64_t *out);
bool td_cursor_read_f32(td_cursor *c, float *out);
bool td_cursor_read_bytes(td_cursor *c, void *out, uint64_t n); /* copies */

/* A pointer to the next n bytes, which are passed over; NULL with the error set if not there. */
const uint8_t *td_cursor_take(td_cursor *c, uint64_t n);
bool td_cursor_skip(td_cursor *c, uint64_t n);

/* Goes on to the next multiple of `alignment` (a power of two) counted from bytes[0]. */
bool td_cursor_align(td_cursor *c, uint64_t alignment);

/* Fails the cursor with "NAME: byte POS: ..." (first failure wins). Always returns false. */
bool td_cursor_fail(td_cursor *c, const char *format, ...) __attribute__((format(printf, 2, 3)));

typedef struct {
    const char *name;
    uint8_t *bytes;
    uint64_t capacity_bytes;
    uint64_t pos; /* bytes written */
    bool failed;
    td_err *err; /* may be NULL */
} td_cursor_out;

td_cursor_out td_cursor_out_begin(const char *name, void *bytes, uint64_t capacity_bytes,
                                  td_err *err);

/* Each false, with nothing written and the error set, when there is no room. */
bool td_cursor_write_u8(td_cursor_out *c, uint8_t value);
bool td_cursor_write_u16(td_cursor_out *c, uint16_t value);
bool td_cursor_write_u32(td_cursor_out *c, uint32_t value);
bool td_cursor_write_u64(td_cursor_out *c, uint64_t value);
bool td_cursor_write_f32(td_cursor_out *c, float value);
bool td_cursor_write_bytes(td_cursor_out *c, const void *bytes, uint64_t n);

#endif
