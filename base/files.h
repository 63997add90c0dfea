/* Which file a path means, and that a command's files do not collide: what is written must be no
 * file that is read, nor be written twice. Files are told apart as the system does (device and
 * inode, or folder and name where a file is not there yet), so links, other spellings and
 * /dev/stdout are seen through. Any thread. */
#ifndef TD_BASE_FILES_H
#define TD_BASE_FILES_H

#include "base/err.h"

#include <limits.h>
#include <stddef.h>

typedef struct {
    const char *name; /* what the user calls it: "--out" */
    const char *path; /* "-": standard input or output. NULL: not used. The path of a shard of a
                       * model ("-00001-of-00003.gguf") stands for all of them */
    bool is_written;
} td_file_use;

/* Files that are none to keep (/dev/null, a terminal, a pipe) may be named again, but for a FIFO
 * that is read and written. Nothing is opened. TD_E_USAGE names both. */
bool td_files_check(const td_file_use *uses, size_t n_uses, td_err *err);

/* Can a file be written there, as far as may be seen without doing it? For a program to ask before
 * it spends its time on what it will write at the end. TD_E_IO. */
bool td_files_check_writable(const char *path, td_err *err);

/* The path without links of a file that is there or would be made; false where its folder is not
 * there. */
bool td_files_resolve(const char *path, char out[PATH_MAX]);

#endif
