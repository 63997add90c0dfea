/* JSON Lines: prompts in, results out.
 *
 * The reader hands out lines with their numbers; it does not parse them. A line that is too long
 * is an error of that line alone, and reading goes on.
 *
 * The writer appends whole lines and is built so that a crash at any moment loses at most the
 * lines not yet synced and leaves at most one torn line, at the end, which the next open removes.
 * Files only ever grow by one write(2) per line; the file is locked against a second run. After a
 * failed write or sync the writer stays failed: a sync that failed once proves nothing when it
 * succeeds later.
 *
 * "-" is stdin or stdout. Output that is no regular file (pipe, terminal, "-") is only written to:
 * no lock, no truncation, no sync. SIGPIPE must be ignored (signals.h). One thread at a time. */
#ifndef TD_BASE_JSONL_H
#define TD_BASE_JSONL_H

#include "base/clock.h"
#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TD_JSONL_LINE_MAX   (1u << 20)  /* bytes of a prompt line, without its line break */
#define TD_JSONL_RESULT_MAX (16u << 20) /* bytes of a result line, without its line break */
#define TD_JSONL_SKIP_MAX   (1u << 28)  /* bytes of a too long line; more ends the reading */

typedef struct td_jsonl_reader td_jsonl_reader;

typedef enum {
    TD_JSONL_LINE,     /* a line */
    TD_JSONL_BAD_LINE, /* err is set and tells of this line only (it has a number and no text);
                          clear it and read on */
    TD_JSONL_END,
    TD_JSONL_FAILED /* err is set; nothing more comes */
} td_jsonl_status;

typedef struct {
    const char *text; /* without line break; a 0 follows; valid until the next read */
    size_t n_bytes;
    uint64_t number; /* of the line, from 1; empty lines count */
} td_jsonl_line;

/* Opens a file, a pipe, or stdin ("-"). A FIFO is not waited for: it is read once somebody writes,
 * and ends when the last one who wrote has closed it. max_bytes caps a line. Errors: TD_E_IO (also
 * a standard input that is closed), TD_E_DATA (a directory), TD_E_NOMEM. */
td_jsonl_reader *td_jsonl_reader_open(const char *path, size_t max_bytes, td_err *err);
void td_jsonl_reader_close(td_jsonl_reader **r);

/* Once fd is readable, a read that would wait for bytes fails with TD_E_AGAIN instead. */
void td_jsonl_reader_stop_at(td_jsonl_reader *r, int fd);

/* The next line that is not blank. "\r\n" ends a line too, the last one needs no end, and a byte
 * order mark at the start of the input is passed over. A signal that asks for a drain ends a
 * blocked read with TD_JSONL_FAILED and TD_E_AGAIN. */
td_jsonl_status td_jsonl_read(td_jsonl_reader *r, td_jsonl_line *line, td_err *err);

typedef enum {
    TD_JSONL_KEEP, /* a good line */
    TD_JSONL_TORN, /* no JSON: removed if it is the last line, else an error */
    TD_JSONL_STOP  /* err is set: the open fails with it */
} td_jsonl_verdict;

/* Called for each line, in order, that is already in the file. */
typedef td_jsonl_verdict (*td_jsonl_scan)(void *context, const td_jsonl_line *line,
                                          uint64_t offset_bytes, td_err *err);

typedef struct {
    const char *path;      /* copied; "-" = stdout */
    uint32_t sync_lines;   /* sync after so many lines; 0 = only by time and at the end */
    uint64_t sync_us;      /* sync after so long; 0 = only by lines and at the end */
    const td_clock *clock; /* for sync_us; borrowed; NULL = the real clock */
    td_jsonl_scan scan;    /* may be NULL: then lines are not looked at (a torn tail still is) */
    void *scan_context;
} td_jsonl_writer_params;

typedef struct td_jsonl_writer td_jsonl_writer;

/* Opens for appending, creating the file (0644) if need be; locks it; scans it; removes a torn
 * last line with a warning. A tail that does not look like the start of a line of JSON objects is
 * not removed but refused, for the file is then likely somebody else's.
 * Errors: TD_E_AGAIN (another run holds the file), TD_E_IO, TD_E_DATA (a bad line that is not the
 * last), TD_E_NOMEM, and whatever the scan says. */
td_jsonl_writer *td_jsonl_writer_open(const td_jsonl_writer_params *params, td_err *err);

/* Appends one line; text has no line break. Syncs if one is due. On failure a regular file is
 * cut back to its last whole line. Errors: TD_E_IO, TD_E_NOMEM, TD_E_DATA (line too long). */
bool td_jsonl_write(td_jsonl_writer *w, const char *text, size_t n_bytes, td_err *err);

/* Syncs if sync_us has passed with lines unsynced; for the event loop's timer. */
bool td_jsonl_writer_poll(td_jsonl_writer *w, td_err *err);

/* Syncs now. */
bool td_jsonl_writer_sync(td_jsonl_writer *w, td_err *err);

/* Syncs, unlocks and closes; false if the sync failed (the writer is gone all the same). Closing
 * a failed writer says so again: its lines may not have lasted. */
bool td_jsonl_writer_close(td_jsonl_writer **w, td_err *err);

#endif
