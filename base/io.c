#include "base/io.h"

#include "base/files.h"
#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* What a test has asked to go wrong. Not locked: faults are for tests of one thread. */
static struct {
    uint64_t n_left; /* the call that brings it to 0 fails; 0 = no fault */
    bool forever, has_begun;
    int error;
} faults[TD_IO_CALL_COUNT];
static struct {
    uint64_t n_left;
    size_t n_bytes;
} short_write;
static _Atomic uint64_t n_calls[TD_IO_CALL_COUNT];

void td_io_fail_at(td_io_call call, uint64_t n, int error, bool forever)
{
    faults[call].n_left = n;
    faults[call].error = error;
    faults[call].forever = forever;
    faults[call].has_begun = false;
}

void td_io_short_write_at(uint64_t n, size_t n_bytes)
{
    short_write.n_left = n;
    short_write.n_bytes = n_bytes;
}

uint64_t td_io_count(td_io_call call) { return atomic_load(&n_calls[call]); }

void td_io_reset_faults(void)
{
    memset(faults, 0, sizeof faults);
    memset(&short_write, 0, sizeof short_write);
    for (int i = 0; i < TD_IO_CALL_COUNT; i++)
        atomic_store(&n_calls[i], 0);
}

/* Counts the call; true if it is to fail, with errno set. */
static bool fails(td_io_call call)
{
    atomic_fetch_add_explicit(&n_calls[call], 1, memory_order_relaxed);
    bool now = faults[call].n_left > 0 && --faults[call].n_left == 0;
    if (!now && !faults[call].has_begun)
        return false;
    faults[call].has_begun = faults[call].forever;
    errno = faults[call].error;
    return true;
}

bool td_io_open_standard(void)
{
    static const int flags[] = {O_WRONLY, O_RDONLY, O_RDWR};
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", flags[fd]) != fd)
            return false;
    return true;
}

bool td_io_check_standard(int fd, td_err *err)
{
    const bool is_input = fd == STDIN_FILENO;
    const int flags = fcntl(fd, F_GETFL), wrong = is_input ? O_WRONLY : O_RDONLY;
    if (flags >= 0 && (flags & O_ACCMODE) != wrong)
        return true;
    return td_err_set(err, TD_E_IO, "standard %s is closed, or not open for %s",
                      is_input ? "input" : "output", is_input ? "reading" : "writing");
}

int td_io_open(const char *path, int flags, mode_t mode)
{
    return fails(TD_IO_OPEN) ? -1 : open(path, flags, mode);
}

ssize_t td_io_read(int fd, void *bytes, size_t n_bytes)
{
    return fails(TD_IO_READ) ? -1 : read(fd, bytes, n_bytes);
}

ssize_t td_io_write(int fd, const void *bytes, size_t n_bytes)
{
    if (fails(TD_IO_WRITE))
        return -1;
    if (short_write.n_left > 0 && --short_write.n_left == 0 && n_bytes > short_write.n_bytes)
        n_bytes = short_write.n_bytes;
    return write(fd, bytes, n_bytes);
}

int td_io_fsync(int fd) { return fails(TD_IO_SYNC) ? -1 : fsync(fd); }
int td_io_fdatasync(int fd) { return fails(TD_IO_SYNC) ? -1 : fdatasync(fd); }

int td_io_ftruncate(int fd, off_t n_bytes)
{
    return fails(TD_IO_TRUNCATE) ? -1 : ftruncate(fd, n_bytes);
}

int td_io_rename(const char *from, const char *to)
{
    return fails(TD_IO_RENAME) ? -1 : rename(from, to);
}

/* Reads up to n_bytes, going on after interruptions; -1 with errno on failure. */
static ssize_t read_up_to(int fd, char *bytes, size_t n_bytes)
{
    size_t n_read = 0;
    while (n_read < n_bytes) {
        ssize_t n = td_io_read(fd, bytes + n_read, n_bytes - n_read);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        if (n == 0)
            break;
        n_read += (size_t)n;
    }
    return (ssize_t)n_read;
}

bool td_io_read_file(const char *path, uint64_t max_bytes, char **text, size_t *n_bytes,
                     td_err *err)
{
    *text = NULL;
    *n_bytes = 0;
    /* O_NONBLOCK: opening a FIFO must not wait for a writer before it can be refused. */
    int fd = td_io_open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0);
    if (fd < 0)
        return td_err_set(err, TD_E_IO, "%s: cannot be opened: %s", path, strerror(errno));
    char *buffer = NULL;
    struct stat st;
    if (fstat(fd, &st) != 0) {
        td_err_set(err, TD_E_IO, "%s: fstat: %s", path, strerror(errno));
        goto fail;
    }
    if (!S_ISREG(st.st_mode)) {
        td_err_set(err, TD_E_DATA, "%s: is %s; a regular file is wanted", path,
                   S_ISDIR(st.st_mode) ? "a directory" : "a pipe or a device");
        goto fail;
    }
    if ((uint64_t)st.st_size > max_bytes) {
        td_err_set(err, TD_E_DATA, "%s: has %llu bytes; at most %llu are allowed", path,
                   (unsigned long long)st.st_size, (unsigned long long)max_bytes);
        goto fail;
    }
    buffer = td_alloc((size_t)st.st_size + 1, 1, err);
    if (!buffer) {
        td_err_prepend(err, "%s", path);
        goto fail;
    }
    ssize_t n = read_up_to(fd, buffer, (size_t)st.st_size);
    if (n < 0) {
        td_err_set(err, TD_E_IO, "%s: cannot be read: %s", path, strerror(errno));
        goto fail;
    }
    close(fd);
    buffer[n] = 0;
    *text = buffer;
    *n_bytes = (size_t)n;
    return true;
fail:
    td_free(buffer);
    close(fd);
    return false;
}

bool td_io_write_all(int fd, const char *name, const void *bytes, size_t n_bytes, td_err *err)
{
    const char *p = bytes;
    while (n_bytes > 0) {
        ssize_t n = td_io_write(fd, p, n_bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return td_err_set(err, TD_E_IO, "%s: cannot be written: %s", name,
                              n < 0 ? strerror(errno) : "nothing was taken");
        p += n;
        n_bytes -= (size_t)n;
    }
    return true;
}

bool td_io_sync_directory(const char *path, td_err *err)
{
    const char *slash = strrchr(path, '/');
    size_t n = slash ? (size_t)(slash - path) : 0;
    char *directory = slash ? td_strndup(path, n ? n : 1, err) : td_strndup(".", 1, err);
    if (!directory)
        return false;
    bool ok = true;
    int fd = td_io_open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    if (fd < 0)
        ok = td_err_set(err, TD_E_IO, "%s: cannot be opened: %s", directory, strerror(errno));
    /* EINVAL: this file system has no fsync of directories, so there is nothing to wait for. */
    if (ok && td_io_fsync(fd) != 0 && errno != EINVAL)
        ok = td_err_set(err, TD_E_IO, "%s: fsync of the directory: %s", directory, strerror(errno));
    if (fd >= 0)
        close(fd);
    td_free(directory);
    return ok;
}

/* Writes to what is there: a pipe or a device, which has no old content to protect. */
static bool write_directly(const char *path, const void *bytes, size_t n_bytes, td_err *err)
{
    int fd = td_io_open(path, O_WRONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return td_err_set(err, TD_E_IO, "%s: cannot be opened for writing: %s", path,
                          strerror(errno));
    bool ok = td_io_write_all(fd, path, bytes, n_bytes, err);
    if (close(fd) != 0 && ok)
        ok = td_err_set(err, TD_E_IO, "%s: close: %s", path, strerror(errno));
    return ok;
}

bool td_io_replace_file(const char *path, const void *bytes, size_t n_bytes, td_err *err)
{
    struct stat st;
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
        return write_directly(path, bytes, n_bytes, err);
    char real[PATH_MAX]; /* so that a link stays one, and /dev/stdout what it is */
    if (td_files_resolve(path, real))
        path = real;
    size_t size = strlen(path) + 32;
    char *temporary = td_alloc(size, 1, err);
    if (!temporary)
        return false;
    snprintf(temporary, size, "%s.%ld.tmp", path, (long)getpid());
    bool ok = true, is_there = false;
    /* One left by a dead run with our process id is nobody's. */
    unlink(temporary);
    int fd = td_io_open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0)
        ok = td_err_set(err, TD_E_IO, "%s: cannot be created: %s", temporary, strerror(errno));
    is_there = ok;
    ok = ok && td_io_write_all(fd, temporary, bytes, n_bytes, err);
    if (ok && td_io_fsync(fd) != 0)
        ok = td_err_set(err, TD_E_IO, "%s: fsync: %s", temporary, strerror(errno));
    if (fd >= 0 && close(fd) != 0 && ok)
        ok = td_err_set(err, TD_E_IO, "%s: close: %s", temporary, strerror(errno));
    if (ok && td_io_rename(temporary, path) != 0)
        ok = td_err_set(err, TD_E_IO, "%s: cannot be renamed to %s: %s", temporary, path,
                        strerror(errno));
    if (!ok && is_there)
        unlink(temporary);
    ok = ok && td_io_sync_directory(path, err);
    td_free(temporary);
    return ok;
}

static bool make_cache_folder(char *path, size_t n_path)
{
    const char *own = getenv("TANDEM_CACHE_DIR"), *xdg = getenv("XDG_CACHE_HOME");
    const char *home = getenv("HOME");
    int n = -1;
    if (own)
        n = *own ? snprintf(path, n_path, "%s", own) : -1;
    else if (xdg && *xdg == '/')
        n = snprintf(path, n_path, "%s/tandem", xdg);
    else if (home && *home == '/')
        n = snprintf(path, n_path, "%s/.cache/tandem", home);
    if (n < 0 || (size_t)n >= n_path)
        return false;
    for (char *slash = path; (slash = strchr(slash + 1, '/'));) {
        *slash = 0;
        mkdir(path, 0700);
        *slash = '/';
    }
    mkdir(path, 0700);
    return true;
}

bool td_io_cache_path(const char *prefix, uint64_t hash, const char *suffix, char *path,
                      size_t n_path)
{
    if (!make_cache_folder(path, n_path))
        return false;
    size_t at = strlen(path);
    int n =
        snprintf(path + at, n_path - at, "/%s-%016llx%s", prefix, (unsigned long long)hash, suffix);
    return n >= 0 && (size_t)n < n_path - at;
}
