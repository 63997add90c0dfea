/* A list of lines under a lock. The thread takes the first, writes it without the lock, and syncs
 * when the writer says so or when nothing came for a while; a close waits for all of it. */
#include "base/line_writer.h"

#include "base/mem.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

typedef struct line {
    struct line *next;
    size_t n_bytes;
    char text[];
} line;

struct td_line_writer {
    td_jsonl_writer *writer; /* the thread's while it runs */
    uint64_t sync_us;
    int fd;
    pthread_t thread;
    bool is_running;
    pthread_mutex_t lock;
    pthread_cond_t has_work;
    /* Under the lock: */
    line *first, *last;
    size_t n_bytes; /* of what waits */
    bool is_stopping;
    td_err failure; /* latched */
};

static void tell(td_line_writer *w)
{
    uint64_t one = 1;
    ssize_t n = write(w->fd, &one, sizeof one);
    (void)n; /* it can only be full, which is readable too */
}

static bool tell_failure(td_line_writer *w, td_err *err)
{
    pthread_mutex_lock(&w->lock);
    bool is_ok =
        w->failure.code == TD_OK || td_err_set(err, w->failure.code, "%s", w->failure.message);
    pthread_mutex_unlock(&w->lock);
    return is_ok;
}

/* The next line; NULL when none came until what was written is due to be synced (is_unsynced), or
 * at the end. */
static line *next_line(td_line_writer *w, bool is_unsynced, bool *is_end)
{
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += (time_t)(w->sync_us / 1000000u);
    end.tv_nsec += (long)(w->sync_us % 1000000u) * 1000;
    end.tv_sec += end.tv_nsec / 1000000000;
    end.tv_nsec %= 1000000000;
    pthread_mutex_lock(&w->lock);
    for (int e = 0; !w->first && !w->is_stopping && e != ETIMEDOUT;)
        e = is_unsynced ? pthread_cond_timedwait(&w->has_work, &w->lock, &end)
                        : pthread_cond_wait(&w->has_work, &w->lock);
    line *l = w->first;
    if (l && !(w->first = l->next))
        w->last = NULL;
    *is_end = !l && w->is_stopping;
    pthread_mutex_unlock(&w->lock);
    return l;
}

/* Takes note of what became of a line (of n_bytes) or a sync. */
static void done(td_line_writer *w, size_t n_bytes, const td_err *err)
{
    pthread_mutex_lock(&w->lock);
    bool had_room = w->n_bytes < TD_LINE_WRITER_ROOM;
    w->n_bytes -= n_bytes;
    if (w->failure.code == TD_OK)
        w->failure = *err;
    if (err->code != TD_OK || (!had_room && w->n_bytes < TD_LINE_WRITER_ROOM))
        tell(w);
    pthread_mutex_unlock(&w->lock);
}

static void *write_main(void *arg)
{
    td_line_writer *w = arg;
    bool is_unsynced = false, has_failed = false;
    for (bool is_end = false; !is_end;) {
        line *l = next_line(w, is_unsynced, &is_end);
        td_err err = {0};
        if (l && !has_failed) /* what comes after a failure would leave a hole */
            has_failed = !td_jsonl_write(w->writer, l->text, l->n_bytes, &err);
        else if (!has_failed && !is_end)
            has_failed = !td_jsonl_writer_sync(w->writer, &err);
        is_unsynced = l != NULL && w->sync_us > 0;
        done(w, l ? l->n_bytes : 0, &err);
        td_free(l);
    }
    return NULL;
}

td_line_writer *td_line_writer_open(const td_jsonl_writer_params *params, td_err *err)
{
    td_line_writer *w = td_alloc(1, sizeof *w, err);
    if (!w)
        return NULL;
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->has_work, &attributes);
    pthread_condattr_destroy(&attributes);
    w->sync_us = params->sync_us;
    w->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (w->fd < 0)
        td_err_set(err, TD_E_IO, "%s: eventfd: %s", params->path, strerror(errno));
    else
        w->writer = td_jsonl_writer_open(params, err);
    w->is_running = w->writer && !pthread_create(&w->thread, NULL, write_main, w);
    if (w->writer && !w->is_running)
        td_err_set(err, TD_E_NOMEM, "%s: no thread to write it", params->path);
    if (!w->is_running)
        td_line_writer_close(&w, NULL);
    return w;
}

bool td_line_writer_close(td_line_writer **writer, td_err *err)
{
    td_line_writer *w = *writer;
    if (!w)
        return true;
    if (w->is_running) {
        pthread_mutex_lock(&w->lock);
        w->is_stopping = true;
        pthread_cond_signal(&w->has_work);
        pthread_mutex_unlock(&w->lock);
        pthread_join(w->thread, NULL);
    }
    bool is_ok =
        w->failure.code == TD_OK || td_err_set(err, w->failure.code, "%s", w->failure.message);
    is_ok = td_jsonl_writer_close(&w->writer, is_ok ? err : NULL) && is_ok;
    if (w->fd >= 0)
        close(w->fd);
    pthread_cond_destroy(&w->has_work);
    pthread_mutex_destroy(&w->lock);
    td_free(w);
    *writer = NULL;
    return is_ok;
}

bool td_line_writer_put(td_line_writer *w, const char *text, size_t n_bytes, td_err *err)
{
    if (!tell_failure(w, err))
        return false;
    line *l = td_alloc(1, sizeof *l + n_bytes, err);
    if (!l)
        return false;
    l->n_bytes = n_bytes;
    memcpy(l->text, text, n_bytes);
    pthread_mutex_lock(&w->lock);
    if (w->last)
        w->last->next = l;
    else
        w->first = l;
    w->last = l;
    w->n_bytes += n_bytes;
    pthread_cond_signal(&w->has_work);
    pthread_mutex_unlock(&w->lock);
    return true;
}

bool td_line_writer_has_room(td_line_writer *w)
{
    pthread_mutex_lock(&w->lock);
    bool has_room = w->n_bytes < TD_LINE_WRITER_ROOM;
    pthread_mutex_unlock(&w->lock);
    return has_room;
}

int td_line_writer_fd(const td_line_writer *w) { return w->fd; }

bool td_line_writer_poll(td_line_writer *w, td_err *err)
{
    uint64_t count;
    ssize_t n = read(w->fd, &count, sizeof count);
    (void)n; /* not blocking: nothing to read is fine */
    return tell_failure(w, err);
}
