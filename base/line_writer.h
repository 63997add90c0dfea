/* A jsonl writer on a thread of its own: the event loop hands a line over and goes on, however long
 * the disk takes to sync or the reader of a pipe to read. Lines are written in the order in which
 * they came; what was handed over is written in the next moment, with one write(2) a line and the
 * writer's own rules of syncing. A failure is told by the next call of any kind, and the descriptor
 * says when there is one.
 *
 * One thread calls. Errors: those of jsonl.h. */
#ifndef TD_BASE_LINE_WRITER_H
#define TD_BASE_LINE_WRITER_H

#include "base/jsonl.h"

#define TD_LINE_WRITER_ROOM (4u << 20) /* bytes that may wait before there is no room */

typedef struct td_line_writer td_line_writer;

/* As td_jsonl_writer_open; sync_us also bounds how long a line waits to be synced when
 * no other comes. */
td_line_writer *td_line_writer_open(const td_jsonl_writer_params *params, td_err *err);
/* Writes what waits, syncs and closes; false if something of it failed, now or before. */
bool td_line_writer_close(td_line_writer **w, td_err *err);

/* Copies a line; text has no line break. It is taken even where there is no room, which is only a
 * word to stop making more. */
bool td_line_writer_put(td_line_writer *w, const char *text, size_t n_bytes, td_err *err);
bool td_line_writer_has_room(td_line_writer *w);
/* Readable when something failed or there is room again; until poll. */
int td_line_writer_fd(const td_line_writer *w);
bool td_line_writer_poll(td_line_writer *w, td_err *err);

#endif
