/* The few system calls that can lose a result, behind one door, so that a test can make any of
 * them fail: a full disk, a broken one, half a write. Also the whole-file helpers built on them.
 *
 * The calls are those of the system (errno included) when no fault is set. Any thread; faults are
 * for tests of one thread. */
#ifndef TD_BASE_IO_H
#define TD_BASE_IO_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

typedef enum {
    TD_IO_OPEN,
    TD_IO_READ,
    TD_IO_WRITE,
    TD_IO_SYNC, /* fsync and fdatasync */
    TD_IO_TRUNCATE,
    TD_IO_RENAME,
    TD_IO_CALL_COUNT
} td_io_call;

int td_io_open(const char *path, int flags, mode_t mode);
ssize_t td_io_read(int fd, void *bytes, size_t n_bytes);
ssize_t td_io_write(int fd, const void *bytes, size_t n_bytes);
int td_io_fsync(int fd);
int td_io_fdatasync(int fd);
int td_io_ftruncate(int fd, off_t n_bytes);
int td_io_rename(const char *from, const char *to);

/* Test hook: the n-th `call` from now (1 = the next; 0 = none, ever) and, if `forever`, all later
 * ones fail with `error` (an errno value). */
void td_io_fail_at(td_io_call call, uint64_t n, int error, bool forever);

/* Test hook: the n-th write from now takes only n_bytes of what it is given and says so. */
void td_io_short_write_at(uint64_t n, size_t n_bytes);

/* Test hook: calls of a kind since the last td_io_reset_faults, which also removes all faults. */
uint64_t td_io_count(td_io_call call);
void td_io_reset_faults(void);

/* First thing in a program: what is closed of standard input, output and error is opened on
 * /dev/null, so that no file lands on their numbers and is then read, written or talked to for one
 * of them. Input is opened for writing and output for reading: using them is an error as before.
 * False when that cannot be done. */
bool td_io_open_standard(void);
/* May standard input be read, standard output be written? TD_E_IO. */
bool td_io_check_standard(int fd, td_err *err);

/* Reads a regular file of at most max_bytes into *text (owned by the caller, td_free, with a 0
 * after its end). Errors: TD_E_IO (cannot be read), TD_E_DATA (no regular file, or too big),
 * TD_E_NOMEM. Each names the path. */
bool td_io_read_file(const char *path, uint64_t max_bytes, char **text, size_t *n_bytes,
                     td_err *err);

/* Replaces a file as a whole: a temporary file beside it, fsync, rename, fsync of the directory;
 * after a crash the old or the new content is there. A path that exists and is no regular file
 * (a pipe, /dev/stdout) is written to directly. Errors: TD_E_IO; the old file is then still there
 * and the temporary one is not. */
bool td_io_replace_file(const char *path, const void *bytes, size_t n_bytes, td_err *err);

/* fsync of the directory that holds `path`, which makes a new name in it last. */
bool td_io_sync_directory(const char *path, td_err *err);

/* The path of a file that may be lost at any time, PREFIX-HASH with the suffix behind, in the cache
 * folder: $TANDEM_CACHE_DIR ("" turns it off), else $XDG_CACHE_HOME/tandem, else ~/.cache/tandem.
 * The folder is made (mode 0700) where it is missing; what fails there shows when a file is
 * written. False when there is to be none, or no room in path[n_path]. */
bool td_io_cache_path(const char *prefix, uint64_t hash, const char *suffix, char *path,
                      size_t n_path);

/* Writes all bytes, going on after short writes and interruptions; for pipes and terminals. */
bool td_io_write_all(int fd, const char *name, const void *bytes, size_t n_bytes, td_err *err);

#endif
