/* One thread writes and makes room; whoever reads does so itself. */
#include "model/prefix_store.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LEFT_S       3600.0   /* a file that was begun so long ago is nobody's any more */
#define RESCAN_US    5000000u /* others write there too */
#define WARNINGS_MAX 8u       /* of damaged files */
#define FAILURES_MAX 3u       /* in a row, and no more is written */

/* Read by other threads than those that count. */
typedef struct {
    _Atomic uint64_t n_read, read_positions, read_bytes, read_us;
    _Atomic uint64_t n_written, written_positions, written_bytes, write_us;
    _Atomic uint64_t n_damaged, n_removed, n_failed;
} counters;

struct td_prefix_store {
    char *path;
    int folder;
    uint64_t max_bytes;
    td_clock clock;
    td_queue queue;
    td_queue_item stop;
    pthread_t thread;
    bool is_running;
    /* The thread's: bytes there as far as is known, and when that was looked at. */
    uint64_t there_bytes, scanned_us;
    bool is_scanned;
    uint32_t n_failures;
    counters counts;
};

/* -- the folder -------------------------------------------------------------------------------- */

static int by_use(const void *a, const void *b)
{
    const td_prefix_entry *x = a, *y = b;
    if (x->used_s != y->used_s)
        return x->used_s < y->used_s ? -1 : 1;
    return strcmp(x->name, y->name);
}

static bool add(td_prefix_entry **all, uint32_t *n, uint32_t *capacity, const td_prefix_entry *e,
                td_err *err)
{
    if (*n == *capacity) {
        uint32_t more = *capacity ? 2 * *capacity : 256;
        td_prefix_entry *grown = td_realloc(*all, *capacity, more, sizeof *grown, err);
        if (!grown)
            return false;
        *all = grown;
        *capacity = more;
    }
    (*all)[(*n)++] = *e;
    return true;
}

bool td_prefix_store_list(int folder, td_prefix_entry **entries, uint32_t *n, uint64_t *n_bytes,
                          td_err *err)
{
    int fd = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    uint32_t capacity = 0;
    bool is_ok = dir || td_err_set(err, TD_E_IO, "%s", strerror(errno));
    *entries = NULL;
    *n = 0;
    *n_bytes = 0;
    if (fd >= 0 && !dir)
        close(fd);
    for (struct dirent *d; is_ok && dir && (d = readdir(dir));) {
        struct stat st;
        bool is_begun = !strncmp(d->d_name, TD_PREFIX_TEMPORARY, strlen(TD_PREFIX_TEMPORARY));
        if ((!is_begun && !td_prefix_file_is_name(d->d_name)) ||
            fstatat(folder, d->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 ||
            (is_begun && !S_ISREG(st.st_mode)))
            continue;
        td_prefix_entry e = {.n_bytes = S_ISREG(st.st_mode) ? (uint64_t)st.st_size : 0,
                             .used_s =
                                 (double)st.st_mtim.tv_sec + (double)st.st_mtim.tv_nsec * 1e-9};
        if (is_begun && e.used_s < td_clock_utc_s() - LEFT_S) {
            unlinkat(folder, d->d_name, 0);
            continue;
        }
        *n_bytes += e.n_bytes;
        if (is_begun)
            continue;
        memcpy(e.name, d->d_name, strlen(d->d_name) + 1); /* is_name: it has room */
        is_ok = add(entries, n, &capacity, &e, err);
    }
    if (dir)
        closedir(dir);
    if (*n)
        qsort(*entries, *n, sizeof **entries, by_use);
    return is_ok;
}

/* A little more goes than has to, so that not every chunk looks for what is oldest. */
static bool make_room(td_prefix_store *s, uint64_t n_new, td_err *err)
{
    td_prefix_entry *entries = NULL;
    uint32_t n = 0;
    uint64_t now_us = td_clock_now_us(&s->clock), wanted = s->max_bytes - s->max_bytes / 32;
    bool is_full = s->there_bytes + n_new > s->max_bytes;
    if (s->is_scanned && !is_full && now_us - s->scanned_us < RESCAN_US)
        return true;
    bool is_ok = td_prefix_store_list(s->folder, &entries, &n, &s->there_bytes, err);
    s->is_scanned = is_ok;
    s->scanned_us = now_us;
    if (is_ok && s->there_bytes + n_new > s->max_bytes)
        for (uint32_t i = 0; i < n && s->there_bytes && s->there_bytes + n_new > wanted; i++)
            if (unlinkat(s->folder, entries[i].name, 0) == 0) {
                s->there_bytes -= td_min_u64(entries[i].n_bytes, s->there_bytes);
                s->counts.n_removed++;
            }
    td_free(entries);
    return is_ok && (s->there_bytes + n_new <= s->max_bytes ||
                     td_err_set(err, TD_E_IO,
                                "a chunk of %llu bytes; allowed: %llu in all, of "
                                "which %llu cannot be removed",
                                (unsigned long long)n_new, (unsigned long long)s->max_bytes,
                                (unsigned long long)s->there_bytes));
}

/* -- writing ----------------------------------------------------------------------------------- */

/* Somebody may have written it meanwhile. */
static bool is_there(const td_prefix_store *s, const td_prefix_blob *b, uint64_t n_bytes)
{
    char name[TD_PREFIX_NAME_BYTES];
    struct stat st;
    td_prefix_file_name(b->head.name, name);
    return !b->is_replacing && fstatat(s->folder, name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
           S_ISREG(st.st_mode) && (uint64_t)st.st_size == n_bytes;
}

static void write_blob(td_prefix_store *s, td_prefix_blob *b)
{
    td_err err = {0};
    uint64_t start = td_clock_now_us(&s->clock), n = TD_PREFIX_HEAD_BYTES + b->head.n_bytes;
    if (s->n_failures >= FAILURES_MAX || is_there(s, b, n))
        return;
    if (!make_room(s, n, &err) || !td_prefix_file_write(s->folder, &b->head, b->bytes, &err)) {
        s->n_failures++;
        s->counts.n_failed++;
        if (s->n_failures == 1 || s->n_failures == FAILURES_MAX)
            td_log_warn("prompts are not kept in %s: %s%s", s->path, err.message,
                        s->n_failures == FAILURES_MAX ? "; no more are by this run" : "");
        return;
    }
    s->n_failures = 0;
    s->there_bytes += n;
    s->counts.n_written++;
    s->counts.written_positions += b->head.n_tokens;
    s->counts.written_bytes += n;
    s->counts.write_us += td_clock_now_us(&s->clock) - start;
}

static void *store_main(void *arg)
{
    td_prefix_store *s = arg;
    for (td_queue_item *item; (item = td_queue_pop(&s->queue)) != &s->stop;) {
        td_prefix_blob *b = (td_prefix_blob *)item;
        if (b->bytes) /* else it is flush's */
            write_blob(s, b);
        td_queue_push(b->home, &b->item);
    }
    return NULL;
}

void td_prefix_store_write(td_prefix_store *s, td_prefix_blob *b)
{
    td_queue_push(&s->queue, &b->item);
}

void td_prefix_store_flush(td_prefix_store *s)
{
    td_queue here;
    td_prefix_blob marker = {.home = &here};
    td_queue_init(&here);
    td_queue_push(&s->queue, &marker.item);
    td_queue_pop(&here);
    td_queue_destroy(&here);
}

/* -- reading ----------------------------------------------------------------------------------- */

/* Equal tokens have equal names, and what was hashed into the first of them is in all; yet nothing
 * is used that claims to be anything else. */
static bool check(const td_prefix_head *h, const td_prefix_head *wanted, td_err *err)
{
    bool is_it = !memcmp(h->before, wanted->before, sizeof h->before) &&
                 h->first == wanted->first && h->n_tokens == wanted->n_tokens &&
                 !memcmp(h->tokens, wanted->tokens, sizeof h->tokens) &&
                 !strcmp(h->model, wanted->model) && !strcmp(h->what, wanted->what);
    return is_it || td_err_set(err, TD_E_DATA, "it says that it is something else");
}

bool td_prefix_store_read(td_prefix_store *s, td_prefix_blob *b)
{
    char name[TD_PREFIX_NAME_BYTES];
    td_prefix_head head;
    td_err err = {0};
    bool is_found;
    uint64_t start = td_clock_now_us(&s->clock), wanted = b->head.n_bytes;
    td_prefix_file_name(b->head.name, name);
    b->is_loaded = b->is_replacing = false;
    bool is_ok =
        td_prefix_file_read(s->folder, name, &head, b->bytes, b->capacity, &is_found, &err);
    if (is_ok && !is_found)
        return false;
    is_ok = is_ok && check(&head, &b->head, &err);
    if (is_ok && head.n_bytes != wanted)
        is_ok = td_err_set(&err, TD_E_DATA, "a chunk of %llu bytes; allowed: %llu",
                           (unsigned long long)head.n_bytes, (unsigned long long)wanted);
    if (!is_ok) {
        b->is_replacing = true;
        if (s->counts.n_damaged++ < WARNINGS_MAX)
            td_log_warn("%s/%s is left out: %s", s->path, name, err.message);
        return false;
    }
    b->is_loaded = true;
    s->counts.n_read++;
    s->counts.read_positions += head.n_tokens;
    s->counts.read_bytes += TD_PREFIX_HEAD_BYTES + head.n_bytes;
    s->counts.read_us += td_clock_now_us(&s->clock) - start;
    return true;
}

td_prefix_counts td_prefix_store_counts(const td_prefix_store *s)
{
    const counters *c = &s->counts;
    return (td_prefix_counts){.n_read = c->n_read,
                              .read_positions = c->read_positions,
                              .read_bytes = c->read_bytes,
                              .read_us = c->read_us,
                              .n_written = c->n_written,
                              .written_positions = c->written_positions,
                              .written_bytes = c->written_bytes,
                              .write_us = c->write_us,
                              .n_damaged = c->n_damaged,
                              .n_removed = c->n_removed,
                              .n_failed = c->n_failed};
}

/* -- opening ----------------------------------------------------------------------------------- */

/* Signals are the main thread's. */
static bool start(td_prefix_store *s, td_err *err)
{
    sigset_t signals, before;
    sigfillset(&signals);
    pthread_sigmask(SIG_SETMASK, &signals, &before);
    int rc = pthread_create(&s->thread, NULL, store_main, s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    s->is_running = rc == 0;
    return s->is_running || td_err_set(err, TD_E_NOMEM, "%s", strerror(rc));
}

td_prefix_store *td_prefix_store_open(const char *path, uint64_t max_bytes, td_err *err)
{
    td_prefix_store *s = td_alloc(1, sizeof *s, err);
    if (!s)
        return NULL;
    s->max_bytes = max_bytes;
    s->clock = td_clock_real();
    td_queue_init(&s->queue);
    s->folder = -1;
    s->path = td_strndup(path, strlen(path), err);
    if (s->path && mkdir(path, 0700) != 0 && errno != EEXIST)
        td_err_set(err, TD_E_IO, "%.300s: %s", path, strerror(errno));
    else if (s->path && (s->folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0)
        td_err_set(err, TD_E_IO, "%.300s: %s", path, strerror(errno));
    if (s->folder < 0 || !start(s, err))
        td_prefix_store_close(&s);
    return s;
}

void td_prefix_store_close(td_prefix_store **store)
{
    td_prefix_store *s = *store;
    if (!s)
        return;
    if (s->is_running) {
        td_queue_push(&s->queue, &s->stop);
        pthread_join(s->thread, NULL);
    }
    if (s->folder >= 0)
        close(s->folder);
    td_queue_destroy(&s->queue);
    td_free(s->path);
    td_free(s);
    *store = NULL;
}
