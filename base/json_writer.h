/* Writes JSON into a buffer that grows: result lines, stats, --json output.
 *
 *     td_json_writer *w = td_json_writer_create(false, err);
 *     td_json_begin_object(w);
 *     td_json_put_string(w, "id", id);
 *     td_json_end_object(w);
 *     const char *line; size_t n_bytes;
 *     if (!td_json_writer_end(w, &line, &n_bytes, err)) ...
 *
 * The calls between begin and end do not fail: the first lack of memory is kept and told by
 * td_json_writer_end. Calls in an order that is no JSON are bugs of ours (TD_ASSERT). Numbers do
 * not depend on the locale. Nothing is recursive; depth is at most TD_JSON_WRITER_DEPTH_MAX.
 * One thread at a time. */
#ifndef TD_BASE_JSON_WRITER_H
#define TD_BASE_JSON_WRITER_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TD_JSON_WRITER_DEPTH_MAX 72u /* a document that was read, and what is put around it */

typedef struct td_json_writer td_json_writer;

/* pretty: objects over several lines, indented by two; else one line without a line break. */
td_json_writer *td_json_writer_create(bool pretty, td_err *err);
void td_json_writer_destroy(td_json_writer **w);

void td_json_begin_object(td_json_writer *w);
void td_json_end_object(td_json_writer *w);
void td_json_begin_array(td_json_writer *w);
void td_json_end_array(td_json_writer *w);
void td_json_write_key(td_json_writer *w, const char *key);

void td_json_write_string(td_json_writer *w, const char *text); /* ends in 0; NULL writes null */

/* Any bytes; each maximal ill-formed subpart, and each 0 byte, is written as U+FFFD. */
void td_json_write_bytes(td_json_writer *w, const char *bytes, size_t n_bytes);
void td_json_write_u64(td_json_writer *w, uint64_t value);
void td_json_write_i64(td_json_writer *w, int64_t value);
void td_json_write_double(td_json_writer *w, double value); /* NaN and infinities write null */
void td_json_write_bool(td_json_writer *w, bool value);
void td_json_write_null(td_json_writer *w);

/* A key and its value in one call. */
void td_json_put_string(td_json_writer *w, const char *key, const char *text_or_null);
void td_json_put_u64(td_json_writer *w, const char *key, uint64_t value);
void td_json_put_double(td_json_writer *w, const char *key, double value);
void td_json_put_bool(td_json_writer *w, const char *key, bool value);

/* The finished text (no line break at the end, but a 0 after it), valid until the next call on w;
 * the writer is then empty again and ready for another text. False if memory was short. */
bool td_json_writer_end(td_json_writer *w, const char **text, size_t *n_bytes, td_err *err);

/* Forgets what was written so far, and a lack of memory with it. */
void td_json_writer_reset(td_json_writer *w);

#endif
