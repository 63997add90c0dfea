/* Lines in and lines out. The reader keeps one buffer in which the current line lies whole. The
 * writer knows one number, the offset after its last whole line; whatever goes wrong, the file is
 * cut back to it, and opening looks for it anew. The rules are those of the append-only files of
 * databases: one write per record, sync on a schedule, believe no sync after a failed one. */
#include "base/jsonl.h"

#include "base/check.h"
#include "base/io.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/signals.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHUNK_BYTES (64u << 10)

/* ---- reader ---- */

struct td_jsonl_reader {
    char *name;
    int fd;
    int stop_fd; /* -1: none */
    bool owns_fd, can_block, at_end;
    size_t max_bytes;
    char *buffer;
    size_t capacity_bytes;
    size_t i_line, i_seen, i_end; /* in the buffer: line start, searched up to, bytes there */
    uint64_t offset_bytes;        /* of i_line in the input */
    uint64_t n_lines;
    /* Of the line handed out last, for the writer's scan: */
    uint64_t line_offset_bytes;
    bool line_is_terminated;
};

void td_jsonl_reader_close(td_jsonl_reader **r)
{
    if (!*r)
        return;
    if ((*r)->owns_fd)
        close((*r)->fd);
    td_free((*r)->buffer);
    td_free((*r)->name);
    td_free(*r);
    *r = NULL;
}

/* Takes the descriptor over if owns_fd, also on failure. */
static td_jsonl_reader *create_reader(int fd, bool owns_fd, const char *name, size_t max_bytes,
                                      td_err *err)
{
    td_jsonl_reader *r = td_alloc(1, sizeof *r, err);
    if (!r) {
        if (owns_fd)
            close(fd);
        return NULL;
    }
    r->fd = fd;
    r->stop_fd = -1;
    r->owns_fd = owns_fd;
    r->max_bytes = max_bytes;
    r->name = td_strndup(name, strlen(name), err);
    r->capacity_bytes = CHUNK_BYTES;
    r->buffer = r->name ? td_alloc(r->capacity_bytes, 1, err) : NULL;
    struct stat st;
    if (!r->buffer)
        goto fail;
    if (fstat(fd, &st) != 0) {
        td_err_set(err, TD_E_IO, "%s: fstat: %s", name, strerror(errno));
        goto fail;
    }
    if (S_ISDIR(st.st_mode)) {
        td_err_set(err, TD_E_DATA, "%s: is a directory; a file of JSON lines is wanted", name);
        goto fail;
    }
    r->can_block = !S_ISREG(st.st_mode);
    return r;
fail:
    td_jsonl_reader_close(&r);
    return NULL;
}

td_jsonl_reader *td_jsonl_reader_open(const char *path, size_t max_bytes, td_err *err)
{
    TD_ASSERT(max_bytes > 0 && max_bytes <= TD_JSONL_RESULT_MAX);
    if (strcmp(path, "-") == 0 && !td_io_check_standard(STDIN_FILENO, err))
        return NULL;
    if (strcmp(path, "-") == 0)
        return create_reader(STDIN_FILENO, false, "<stdin>", max_bytes, err);
    /* O_NONBLOCK: opening a FIFO must not wait for one who writes. */
    int fd = td_io_open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0);
    if (fd < 0) {
        td_err_set(err, TD_E_IO, "%s: cannot be opened: %s", path, strerror(errno));
        return NULL;
    }
    return create_reader(fd, true, path, max_bytes, err);
}

void td_jsonl_reader_stop_at(td_jsonl_reader *r, int fd) { r->stop_fd = fd; }

/* Waits until there is something to read or a signal asks for a drain (or the stop is readable);
 * true in the second case. Without the poll, a signal that comes just before read(2) would be slept
 * through. */
static bool wait_interrupted(const td_jsonl_reader *r)
{
    if (!r->can_block)
        return false;
    struct pollfd fds[] = {{.fd = r->fd, .events = POLLIN}, /* a number below 0 is passed over */
                           {.fd = td_signals_fd(), .events = POLLIN},
                           {.fd = r->stop_fd, .events = POLLIN}};
    while (td_signals_pending() == 0 && !fds[2].revents) {
        int n = poll(fds, TD_COUNT(fds), -1);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 || fds[0].revents)
            return false; /* read(2) will tell what is wrong with it */
    }
    return true;
}

/* Makes room behind the bytes that are there: by moving them to the front, else by growing. */
static bool make_room(td_jsonl_reader *r, td_err *err)
{
    if (r->i_line > 0) {
        memmove(r->buffer, r->buffer + r->i_line, r->i_end - r->i_line);
        r->i_end -= r->i_line;
        r->i_seen -= r->i_line;
        r->i_line = 0;
    }
    /* One byte stays free for the 0 behind a last line without an end. */
    if (r->i_end + 1 < r->capacity_bytes)
        return true;
    char *grown = td_realloc(r->buffer, r->i_end, 2 * r->capacity_bytes, 1, err);
    if (!grown)
        return td_err_prepend(err, "%s: line %llu", r->name, (unsigned long long)r->n_lines + 1);
    r->buffer = grown;
    r->capacity_bytes *= 2;
    return true;
}

/* Reads some more bytes, or finds the end. */
static bool read_more(td_jsonl_reader *r, td_err *err)
{
    if (!make_room(r, err))
        return false;
    for (;;) {
        bool interrupted = wait_interrupted(r);
        ssize_t n = -1;
        if (!interrupted)
            n = td_io_read(r->fd, r->buffer + r->i_end, r->capacity_bytes - 1 - r->i_end);
        if (n > 0) {
            r->i_end += (size_t)n;
            return true;
        }
        if (n == 0) {
            r->at_end = true;
            return true;
        }
        if (interrupted || (errno == EINTR && td_signals_pending() != 0))
            return td_err_set(err, TD_E_AGAIN, "%s: reading was interrupted by signal %d", r->name,
                              td_signals_pending());
        if (errno != EINTR && errno != EAGAIN) /* AGAIN: another reader of the pipe was faster */
            return td_err_set(err, TD_E_IO, "%s: line %llu: cannot be read: %s", r->name,
                              (unsigned long long)r->n_lines + 1, strerror(errno));
    }
}

/* Drops what is in the buffer of a line that is too long already, but for nothing. */
static void drop_line_start(td_jsonl_reader *r)
{
    r->offset_bytes += r->i_end - r->i_line;
    r->i_line = r->i_seen = r->i_end = 0;
}

/* Finds the end of the line that starts at i_line, reading on as needed. On return the line is
 * buffer[i_line..*i_stop), unless *n_dropped says that its first bytes are gone; *is_terminated
 * tells whether a line break stands at *i_stop. */
static bool find_line_end(td_jsonl_reader *r, size_t *i_stop, uint64_t *n_dropped,
                          bool *is_terminated, td_err *err)
{
    *n_dropped = 0;
    for (;;) {
        const char *found =
            r->i_end > r->i_seen ? memchr(r->buffer + r->i_seen, '\n', r->i_end - r->i_seen) : NULL;
        *is_terminated = found != NULL;
        *i_stop = found ? (size_t)(found - r->buffer) : r->i_end;
        if (found || r->at_end)
            return true;
        r->i_seen = r->i_end;
        /* "\r" before the line break does not count, hence the one more. */
        if (r->i_end - r->i_line > r->max_bytes + 1) {
            *n_dropped += r->i_end - r->i_line;
            drop_line_start(r);
        }
        if (*n_dropped > TD_JSONL_SKIP_MAX)
            return td_err_set(err, TD_E_DATA,
                              "%s: line %llu has more than %u bytes; is this a file of lines?",
                              r->name, (unsigned long long)r->n_lines + 1, TD_JSONL_SKIP_MAX);
        if (!read_more(r, err))
            return false;
    }
}

static bool is_blank(const char *text, size_t n_bytes)
{
    size_t i = 0;
    while (i < n_bytes && (text[i] == ' ' || text[i] == '\t' || text[i] == '\r'))
        i++;
    return i == n_bytes;
}

td_jsonl_status td_jsonl_read(td_jsonl_reader *r, td_jsonl_line *line, td_err *err)
{
    for (;;) {
        size_t i_stop;
        uint64_t n_dropped;
        r->line_offset_bytes = r->offset_bytes;
        if (!find_line_end(r, &i_stop, &n_dropped, &r->line_is_terminated, err))
            return TD_JSONL_FAILED;
        if (!r->line_is_terminated && i_stop == r->i_line && n_dropped == 0)
            return TD_JSONL_END;
        char *text = r->buffer + r->i_line;
        size_t n_bytes = i_stop - r->i_line;
        size_t i_next = i_stop + r->line_is_terminated;
        r->offset_bytes += i_next - r->i_line;
        r->i_line = r->i_seen = i_next;
        r->n_lines++;
        if (n_dropped == 0 && n_bytes > 0 && text[n_bytes - 1] == '\r')
            n_bytes--;
        if (n_dropped > 0 || n_bytes > r->max_bytes) {
            td_err_set(err, TD_E_DATA, "%s: line %llu has %llu bytes; at most %zu are allowed",
                       r->name, (unsigned long long)r->n_lines,
                       (unsigned long long)(n_dropped + n_bytes), r->max_bytes);
            *line = (td_jsonl_line){.text = "", .number = r->n_lines};
            return TD_JSONL_BAD_LINE;
        }
        if (r->n_lines == 1 && n_bytes >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) {
            text += 3;
            n_bytes -= 3;
        }
        if (is_blank(text, n_bytes))
            continue;
        text[n_bytes] = 0;
        *line = (td_jsonl_line){.text = text, .n_bytes = n_bytes, .number = r->n_lines};
        return TD_JSONL_LINE;
    }
}

/* ---- writer ---- */

struct td_jsonl_writer {
    char *path;
    int fd;
    bool is_regular; /* ours to lock, cut and sync */
    bool owns_fd;
    uint64_t good_bytes; /* offset after the last whole line */
    uint32_t sync_lines;
    uint64_t sync_us;
    td_clock real_clock;
    const td_clock *clock;
    uint64_t n_unsynced; /* lines */
    uint64_t unsynced_since_us;
    char *buffer; /* the line with its line break */
    size_t capacity_bytes;
    td_err failure; /* latched */
};

static void destroy_writer(td_jsonl_writer **w)
{
    if ((*w)->owns_fd && (*w)->fd >= 0)
        close((*w)->fd); /* which also unlocks */
    td_free((*w)->buffer);
    td_free((*w)->path);
    td_free(*w);
    *w = NULL;
}

/* Opens or creates; says whether the file is new. */
static bool open_output(td_jsonl_writer *w, bool *is_new, td_err *err)
{
    struct stat st;
    *is_new = false;
    if (strcmp(w->path, "-") == 0) {
        w->fd = STDOUT_FILENO;
        return td_io_check_standard(w->fd, err);
    }
    w->owns_fd = true;
    if (stat(w->path, &st) == 0 && !S_ISREG(st.st_mode)) {
        /* Write only: a pipe that is also opened for reading would never say that its reader is
         * gone. */
        w->fd = td_io_open(w->path, O_WRONLY | O_CLOEXEC, 0);
    } else {
        const int flags = O_RDWR | O_APPEND | O_CLOEXEC;
        w->fd = td_io_open(w->path, flags | O_CREAT | O_EXCL, 0644);
        *is_new = w->fd >= 0;
        if (w->fd < 0 && errno == EEXIST) /* without O_EXCL a link to a file to come is created */
            w->fd = td_io_open(w->path, flags | O_CREAT, 0644);
    }
    if (w->fd < 0 || fstat(w->fd, &st) != 0)
        return td_err_set(err, TD_E_IO, "%s: cannot be opened for writing: %s", w->path,
                          strerror(errno));
    w->is_regular = S_ISREG(st.st_mode);
    return true;
}

static bool lock_output(const td_jsonl_writer *w, td_err *err)
{
    if (flock(w->fd, LOCK_EX | LOCK_NB) == 0)
        return true;
    if (errno == EWOULDBLOCK)
        return td_err_set(err, TD_E_AGAIN,
                          "%s: another run is writing to this file; wait for it or choose another",
                          w->path);
    if (errno == EINTR || errno == EBADF)
        return td_err_set(err, TD_E_IO, "%s: flock: %s", w->path, strerror(errno));
    td_log_warn("%s: cannot be locked (%s); take care that no second run writes to it", w->path,
                strerror(errno));
    return true;
}

/* Removes a torn last line, if it may be one of ours: a line of JSON objects starts with '{', and
 * some file systems leave zeros where data did not arrive before a crash. */
static bool remove_tail(td_jsonl_writer *w, const td_jsonl_line *line, uint64_t offset_bytes,
                        td_err *err)
{
    if (line->text[0] != '{' && line->text[0] != 0)
        return td_err_set(err, TD_E_DATA,
                          "%s: line %llu (byte %llu) is no result and is left alone; is this the "
                          "right file?",
                          w->path, (unsigned long long)line->number,
                          (unsigned long long)offset_bytes);
    td_log_warn("%s: line %llu (byte %llu) was not finished and is removed", w->path,
                (unsigned long long)line->number, (unsigned long long)offset_bytes);
    if (td_io_ftruncate(w->fd, (off_t)offset_bytes) != 0)
        return td_err_set(err, TD_E_IO, "%s: ftruncate: %s", w->path, strerror(errno));
    return true;
}

/* One line of the scan. *is_torn: it is bad, which only the last line may be. */
static bool scan_line(const td_jsonl_writer *w, const td_jsonl_writer_params *p,
                      const td_jsonl_reader *r, const td_jsonl_line *line, bool *is_torn,
                      td_err *why)
{
    *is_torn = !r->line_is_terminated;
    if (*is_torn || !p->scan)
        return true;
    td_jsonl_verdict verdict = p->scan(p->scan_context, line, r->line_offset_bytes, why);
    *is_torn = verdict == TD_JSONL_TORN;
    if (verdict != TD_JSONL_STOP)
        return true;
    return td_err_set(why, TD_E_BUG, "%s: the scan stopped without a reason", w->path);
}

/* A bad line: removed if nothing follows it, else the error that it is. */
static bool end_at_torn_line(td_jsonl_writer *w, td_jsonl_reader *r, const td_jsonl_line *line,
                             const td_err *why, td_err *err)
{
    /* The line's text goes with the next read; its first byte is all that is needed of it. */
    const char first[2] = {line->text[0], 0};
    const td_jsonl_line tail = {.text = first, .n_bytes = 1, .number = line->number};
    uint64_t offset_bytes = r->line_offset_bytes;
    td_jsonl_line next;
    td_err of_next = {.code = TD_OK};
    switch (td_jsonl_read(r, &next, &of_next)) {
    case TD_JSONL_END:
        return remove_tail(w, &tail, offset_bytes, err);
    case TD_JSONL_FAILED:
        return td_err_set(err, of_next.code, "%s", of_next.message);
    default:
        return td_err_set(err, TD_E_DATA, "%s: line %llu is no result%s%s", w->path,
                          (unsigned long long)tail.number, *why->message ? ": " : "", why->message);
    }
}

/* Goes through what is there, to the last whole line. */
static bool scan_output(td_jsonl_writer *w, const td_jsonl_writer_params *p, td_err *err)
{
    td_jsonl_reader *r = create_reader(w->fd, false, w->path, TD_JSONL_RESULT_MAX, err);
    if (!r)
        return false;
    bool ok = true, is_torn = false;
    td_jsonl_line line;
    td_jsonl_status status;
    while (ok && !is_torn && (status = td_jsonl_read(r, &line, err)) != TD_JSONL_END) {
        td_err why = {.code = TD_OK};
        ok = status == TD_JSONL_LINE;
        if (!ok)
            break;
        ok = scan_line(w, p, r, &line, &is_torn, &why);
        if (!ok)
            td_err_set(err, why.code, "%s", why.message);
        if (ok && is_torn)
            ok = end_at_torn_line(w, r, &line, &why, err);
    }
    td_jsonl_reader_close(&r);
    struct stat st;
    if (ok && fstat(w->fd, &st) != 0)
        ok = td_err_set(err, TD_E_IO, "%s: fstat: %s", w->path, strerror(errno));
    if (ok)
        w->good_bytes = (uint64_t)st.st_size;
    return ok;
}

td_jsonl_writer *td_jsonl_writer_open(const td_jsonl_writer_params *params, td_err *err)
{
    td_jsonl_writer *w = td_alloc(1, sizeof *w, err);
    if (!w)
        return NULL;
    bool is_new;
    w->fd = -1;
    w->sync_lines = params->sync_lines;
    w->sync_us = params->sync_us;
    w->real_clock = td_clock_real();
    w->clock = params->clock ? params->clock : &w->real_clock;
    w->path = td_strndup(params->path, strlen(params->path), err);
    if (!w->path || !open_output(w, &is_new, err))
        goto fail;
    if (w->is_regular && !lock_output(w, err))
        goto fail;
    if (is_new && !td_io_sync_directory(w->path, err))
        goto fail;
    if (w->is_regular && !scan_output(w, params, err))
        goto fail;
    return w;
fail:
    destroy_writer(&w);
    return NULL;
}

/* Keeps the first failure and tells it, now and ever after. */
static bool tell_failure(const td_jsonl_writer *w, td_err *err)
{
    return td_err_set(err, w->failure.code, "%s", w->failure.message);
}

/* One write(2) for the whole line; a file that took only a part is cut back. */
static bool append_to_file(td_jsonl_writer *w, size_t n_bytes)
{
    ssize_t n;
    do
        n = td_io_write(w->fd, w->buffer, n_bytes);
    while (n < 0 && errno == EINTR);
    if (n == (ssize_t)n_bytes) {
        w->good_bytes += n_bytes;
        return true;
    }
    int write_errno = errno;
    bool is_cut = td_io_ftruncate(w->fd, (off_t)w->good_bytes) == 0;
    const char *rest = is_cut ? "" : "; a torn line is left at its end";
    if (n < 0)
        return td_err_set(&w->failure, TD_E_IO, "%s: cannot be written: %s%s", w->path,
                          strerror(write_errno), rest);
    return td_err_set(&w->failure, TD_E_IO,
                      "%s: only %zd of %zu bytes could be written (is the disk full?)%s", w->path,
                      n, n_bytes, rest);
}

bool td_jsonl_write(td_jsonl_writer *w, const char *text, size_t n_bytes, td_err *err)
{
    if (w->failure.code != TD_OK)
        return tell_failure(w, err);
    if (n_bytes > TD_JSONL_RESULT_MAX)
        return td_err_set(err, TD_E_DATA, "%s: a line of %zu bytes; at most %u are allowed",
                          w->path, n_bytes, TD_JSONL_RESULT_MAX);
    TD_ASSERT(n_bytes > 0 && !memchr(text, '\n', n_bytes));
    if (n_bytes + 1 > w->capacity_bytes) {
        char *grown = td_realloc(w->buffer, 0, n_bytes + 1, 1, err);
        if (!grown)
            return td_err_prepend(err, "%s", w->path);
        w->buffer = grown;
        w->capacity_bytes = n_bytes + 1;
    }
    memcpy(w->buffer, text, n_bytes);
    w->buffer[n_bytes] = '\n';
    bool ok = w->is_regular ? append_to_file(w, n_bytes + 1)
                            : td_io_write_all(w->fd, w->path, w->buffer, n_bytes + 1, &w->failure);
    if (!ok)
        return tell_failure(w, err);
    if (!w->is_regular)
        return true;
    if (w->n_unsynced++ == 0)
        w->unsynced_since_us = td_clock_now_us(w->clock);
    if (w->sync_lines > 0 && w->n_unsynced >= w->sync_lines)
        return td_jsonl_writer_sync(w, err);
    return td_jsonl_writer_poll(w, err);
}

bool td_jsonl_writer_sync(td_jsonl_writer *w, td_err *err)
{
    if (w->failure.code != TD_OK)
        return tell_failure(w, err);
    if (!w->is_regular || w->n_unsynced == 0)
        return true;
    if (td_io_fdatasync(w->fd) != 0) {
        td_err_set(&w->failure, TD_E_IO,
                   "%s: fdatasync: %s; the last %llu lines may not have been stored", w->path,
                   strerror(errno), (unsigned long long)w->n_unsynced);
        return tell_failure(w, err);
    }
    w->n_unsynced = 0;
    return true;
}

bool td_jsonl_writer_poll(td_jsonl_writer *w, td_err *err)
{
    if (w->failure.code != TD_OK)
        return tell_failure(w, err);
    if (w->sync_us == 0 || w->n_unsynced == 0 ||
        td_clock_now_us(w->clock) - w->unsynced_since_us < w->sync_us)
        return true;
    return td_jsonl_writer_sync(w, err);
}

bool td_jsonl_writer_close(td_jsonl_writer **w, td_err *err)
{
    if (!*w)
        return true;
    bool ok = td_jsonl_writer_sync(*w, err);
    if ((*w)->owns_fd && close((*w)->fd) != 0 && ok)
        ok = td_err_set(err, TD_E_IO, "%s: close: %s", (*w)->path, strerror(errno));
    (*w)->fd = -1;
    destroy_writer(w);
    return ok;
}
