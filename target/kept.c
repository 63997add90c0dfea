/* Pieces, their record, and the model that is opened over them. */
#include "target/kept.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/crc32c.h"
#include "base/io.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/rng.h"
#include "planning/costs.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PIECE_BYTES  (16u << 20) /* what is lost at most of a tensor that came in part */
#define SMALL_BYTES  (1u << 16)  /* of a tensor that opening a model may read */
#define SYNC_BYTES   (64u << 20) /* what is lost at most of those that came whole, */
#define SYNC_US      500000u     /* or of so long */
#define RECORD_MAX   (64u << 20) /* bytes of a record */
#define READ_BYTES   (1u << 20)
#define LOCK_WAIT_MS 50

/* As it lies in the record; later ones win. */
typedef struct {
    uint64_t offset, n_bytes;
    uint32_t file, crc;
} record;

typedef struct {
    record r;
    uint32_t number; /* in the order they came */
    bool is_checked; /* was read since the lock was taken, or has just come */
} entry;

struct td_kept {
    uint64_t most_bytes;
    td_clock clock;
    int lock_fd;      /* -1: not ours */
    bool was_emptied; /* since it is */
    const atomic_bool *is_stopped;
    /* The model that was opened last. */
    bool is_known;
    uint8_t id[TD_STAGE_HASH_BYTES];
    char folder[PATH_MAX];
    uint32_t n_files;
    int fds[TD_STAGE_FILES_MAX], record_fd;
    td_model *model; /* NULL: something is missing */
    entry *entries;
    uint32_t n_entries, capacity, n_sorted; /* the first are in order */
    td_kept_piece *missing;
    uint32_t n_missing, missing_capacity;
    uint64_t missing_bytes, needed_bytes;
    /* Of the missing piece that is coming, and those that came. */
    uint64_t n_put, n_unsafe, safe_us, n_fetched;
    uint32_t crc, n_safe; /* entries that are in the record */
    uint8_t bytes[READ_BYTES];
};

/* -- the lock and the files -------------------------------------------------------------------- */

static bool lock(td_kept *k, td_err *err)
{
    char path[PATH_MAX];
    if (k->lock_fd >= 0)
        return true;
    if (!td_io_cache_path(TD_KEPT_PREFIX, 0, ".lock", path, sizeof path))
        return td_err_set(err, TD_E_IO, "there is no cache folder");
    int fd = td_io_open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return td_err_set(err, TD_E_IO, "weights cannot be kept in %.200s: %s", path,
                          strerror(errno));
    while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        bool is_taken = errno == EWOULDBLOCK || errno == EINTR;
        if (!is_taken || atomic_load(k->is_stopped)) {
            td_err_set(err, is_taken ? TD_E_AGAIN : TD_E_IO, "%.200s: %s", path, strerror(errno));
            close(fd);
            return false;
        }
        nanosleep(&(struct timespec){.tv_nsec = LOCK_WAIT_MS * 1000000l}, NULL);
    }
    k->lock_fd = fd;
    return true;
}

static void unlock(td_kept *k)
{
    if (k->lock_fd >= 0)
        close(k->lock_fd);
    k->lock_fd = -1;
    k->was_emptied = false;
}

static void forget(td_kept *k)
{
    td_model_close(&k->model);
    for (uint32_t i = 0; i < k->n_files; i++)
        if (k->fds[i] >= 0)
            close(k->fds[i]);
    if (k->record_fd >= 0)
        close(k->record_fd);
    k->record_fd = -1;
    k->n_files = k->n_entries = k->n_sorted = k->n_safe = k->n_missing = 0;
    k->n_put = k->n_unsafe = 0;
    k->is_known = false;
}

static void write_path(const td_kept *k, uint32_t i, char path[PATH_MAX + 32])
{
    if (k->n_files == 1)
        snprintf(path, PATH_MAX + 32, "%s/model.gguf", k->folder);
    else
        snprintf(path, PATH_MAX + 32, "%s/model-%05u-of-%05u.gguf", k->folder, i + 1, k->n_files);
}

/* A file of that size, which may be one with holes. */
static bool open_data(td_kept *k, uint32_t i, uint64_t n_bytes, td_err *err)
{
    char path[PATH_MAX + 32];
    struct stat st;
    write_path(k, i, path);
    k->fds[i] = td_io_open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    bool is_ok = k->fds[i] >= 0 && fstat(k->fds[i], &st) == 0;
    if (is_ok && (uint64_t)st.st_size != n_bytes) {
        if (st.st_size)
            td_log_warn("%s has %lld bytes; as it was left: %llu", path, (long long)st.st_size,
                        (unsigned long long)n_bytes);
        is_ok = td_io_ftruncate(k->fds[i], (off_t)n_bytes) == 0;
    }
    return is_ok ||
           td_err_set(err, TD_E_IO, "weights cannot be kept in %.200s: %s", path, strerror(errno));
}

static bool add_entry(td_kept *k, const record *r, bool is_checked, td_err *err)
{
    if (k->n_entries == k->capacity) {
        uint32_t more = k->capacity ? 2 * k->capacity : 256;
        entry *all = td_realloc(k->entries, k->capacity, more, sizeof *all, err);
        if (!all)
            return false;
        k->entries = all;
        k->capacity = more;
    }
    k->entries[k->n_entries] = (entry){*r, k->n_entries, is_checked};
    k->n_entries++;
    return true;
}

/* What a torn write left behind the last whole entry is cut. */
static bool read_record(td_kept *k, td_err *err)
{
    char path[PATH_MAX + 32];
    char *text = NULL;
    size_t n = 0;
    snprintf(path, sizeof path, "%s/" TD_KEPT_RECORD, k->folder);
    k->record_fd = td_io_open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (k->record_fd < 0)
        return td_err_set(err, TD_E_IO, "weights cannot be kept in %.200s: %s", path,
                          strerror(errno));
    bool is_ok = td_io_read_file(path, RECORD_MAX, &text, &n, err);
    for (size_t i = 0; is_ok && i < n / sizeof(record); i++) {
        record r;
        memcpy(&r, text + i * sizeof r, sizeof r);
        is_ok = add_entry(k, &r, false, err);
    }
    td_free(text);
    if (is_ok && td_io_ftruncate(k->record_fd, (off_t)(n - n % sizeof(record))) != 0)
        is_ok = td_err_set(err, TD_E_IO, "%.200s: %s", path, strerror(errno));
    if (is_ok)
        futimens(k->record_fd, NULL); /* used now */
    k->n_safe = k->n_entries;
    return is_ok;
}

static bool open_folder(td_kept *k, const td_stage_plan *p, td_err *err)
{
    forget(k);
    if (!td_io_cache_path(TD_KEPT_PREFIX, td_hash64(0, p->hash, sizeof p->hash), "", k->folder,
                          sizeof k->folder))
        return td_err_set(err, TD_E_IO, "there is no cache folder");
    if (mkdir(k->folder, 0700) != 0 && errno != EEXIST)
        return td_err_set(err, TD_E_IO, "weights cannot be kept in %.200s: %s", k->folder,
                          strerror(errno));
    k->n_files = p->n_files;
    for (uint32_t i = 0; i < k->n_files; i++)
        k->fds[i] = -1;
    for (uint32_t i = 0; i < k->n_files; i++)
        if (!open_data(k, i, p->files[i].n_bytes, err))
            return false;
    memcpy(k->id, p->hash, sizeof k->id);
    k->is_known = true;
    k->n_fetched = 0;
    k->safe_us = td_clock_now_us(&k->clock);
    return read_record(k, err);
}

/* -- what is missing --------------------------------------------------------------------------- */

static int compare(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    if (x->r.file != y->r.file)
        return x->r.file < y->r.file ? -1 : 1;
    if (x->r.offset != y->r.offset)
        return x->r.offset < y->r.offset ? -1 : 1;
    if (x->r.n_bytes != y->r.n_bytes)
        return x->r.n_bytes < y->r.n_bytes ? -1 : 1;
    return 0;
}

static int compare_all(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    int order = compare(a, b);
    return order ? order : x->number < y->number ? -1 : x->number > y->number;
}

static entry *find(const td_kept *k, const td_kept_piece *p)
{
    entry key = {.r = {.file = p->file, .offset = p->offset, .n_bytes = p->n_bytes}};
    entry *e = k->n_sorted ? bsearch(&key, k->entries, k->n_sorted, sizeof key, compare) : NULL;
    while (e && e + 1 < k->entries + k->n_sorted && !compare(e, e + 1))
        e++;
    return e;
}

static bool is_whole(td_kept *k, const record *r)
{
    uint32_t crc = 0;
    for (uint64_t at = 0; at < r->n_bytes;) {
        uint64_t left = r->n_bytes - at;
        ssize_t n = pread(k->fds[r->file], k->bytes, left < READ_BYTES ? left : READ_BYTES,
                          (off_t)(r->offset + at));
        if ((n < 0 && errno != EINTR) || n == 0 || atomic_load(k->is_stopped))
            return false;
        if (n < 0)
            continue;
        crc = td_crc32c(crc, k->bytes, (size_t)n);
        at += (uint64_t)n;
    }
    return crc == r->crc;
}

static bool miss(td_kept *k, const td_kept_piece *p, td_err *err)
{
    if (k->n_missing == k->missing_capacity) {
        uint32_t more = k->missing_capacity ? 2 * k->missing_capacity : 256;
        td_kept_piece *all = td_realloc(k->missing, k->missing_capacity, more, sizeof *all, err);
        if (!all)
            return false;
        k->missing = all;
        k->missing_capacity = more;
    }
    k->missing[k->n_missing++] = *p;
    k->missing_bytes += p->n_bytes;
    return true;
}

/* Needs bytes of a file: those that are not there, piece by piece, are missing. Without the lock
 * nothing is believed that was not checked before. */
static bool need(td_kept *k, uint32_t file, uint64_t offset, uint64_t n_bytes, td_err *err)
{
    k->needed_bytes += n_bytes;
    for (uint64_t at = 0; at < n_bytes; at += PIECE_BYTES) {
        uint64_t n = n_bytes - at < PIECE_BYTES ? n_bytes - at : PIECE_BYTES;
        td_kept_piece p = {file, offset + at, n};
        entry *e = find(k, &p);
        if (e && !e->is_checked && k->lock_fd >= 0) {
            e->is_checked = is_whole(k, &e->r);
            if (!e->is_checked && !atomic_load(k->is_stopped))
                td_log_warn("%s: %llu bytes from %llu of file %u are damaged, and are sent again",
                            k->folder, (unsigned long long)n, (unsigned long long)p.offset, file);
        }
        if (atomic_load(k->is_stopped))
            return td_err_set(err, TD_E_AGAIN, "stopped");
        if ((!e || !e->is_checked) && !miss(k, &p, err))
            return false;
    }
    return true;
}

static bool need_heads(td_kept *k, const td_stage_plan *p, td_err *err)
{
    bool is_ok = true;
    for (uint32_t i = 0; is_ok && i < p->n_files; i++)
        is_ok = need(k, i, 0, p->files[i].head_bytes, err);
    return is_ok;
}

/* What a tensor is called says whether opening may read it: no layer's. */
static bool need_small(td_kept *k, const td_gguf *g, td_err *err)
{
    bool is_ok = true;
    for (uint32_t i = 0; is_ok && i < td_gguf_n_tensors(g); i++) {
        const td_gguf_tensor *t = td_gguf_tensor_at(g, i);
        if (t->n_bytes <= SMALL_BYTES && strncmp(t->name, "blk.", 4) != 0)
            is_ok = need(k, t->shard, t->offset, t->n_bytes, err);
    }
    return is_ok;
}

static bool need_layers(td_kept *k, const td_model *m, const td_stage_plan *p, td_err *err)
{
    const td_gguf *g = td_model_gguf(m);
    uint32_t first = p->parts[0].first, last = p->parts[p->n_parts - 1].last;
    if (last >= td_model_hparams(m)->n_layer)
        return td_err_set(err, TD_E_DATA, "a plan with layer %u; allowed: 0..%u", last,
                          td_model_hparams(m)->n_layer - 1);
    const td_model *head = p->head && last + 1 == td_model_hparams(m)->n_layer ? m : NULL;
    if (head && !td_model_check_head(head, err))
        return false;
    bool *is_read = td_alloc(td_gguf_n_tensors(g), sizeof *is_read, err);
    if (!is_read)
        return false;
    bool wanted[TD_LAYERS_MAX], is_ok = !p->measure || td_costs_mark_layers(m, wanted, err);
    if (!p->measure)
        td_weights_mark_read(m, head, first, last, is_read);
    for (uint32_t i = first; is_ok && p->measure && i <= last; i++)
        if (wanted[i])
            td_weights_mark_read(m, NULL, i, i, is_read);
    for (uint32_t i = 0; is_ok && i < td_gguf_n_tensors(g); i++) {
        const td_gguf_tensor *t = td_gguf_tensor_at(g, i);
        bool was_needed = t->n_bytes <= SMALL_BYTES && strncmp(t->name, "blk.", 4) != 0;
        if (is_read[i] && !was_needed)
            is_ok = need(k, t->shard, t->offset, t->n_bytes, err);
    }
    td_free(is_read);
    return is_ok;
}

/* The heads are there: are they those of that model? */
static td_gguf *open_gguf(td_kept *k, td_err *err)
{
    char path[PATH_MAX + 32];
    td_err why = {0};
    write_path(k, 0, path);
    td_gguf *g = td_gguf_open(path, &why);
    uint64_t hash = g ? td_gguf_hash(g) : 0;
    if (g && td_gguf_n_shards(g) == k->n_files && !memcmp(&hash, k->id, sizeof hash))
        return g;
    td_gguf_close(&g);
    td_kept_remove(k->folder);
    forget(k);
    td_err_set(err, TD_E_DATA, "what was sent is not the model that was named%s%.200s",
               why.message[0] ? ": " : "", why.message);
    return NULL;
}

/* The model is open when all is there. One that was open stays so, with the files that it had. */
static bool find_missing(td_kept *k, const td_stage_plan *p, td_err *err)
{
    char path[PATH_MAX + 32];
    k->n_missing = 0;
    k->missing_bytes = k->needed_bytes = 0;
    if (k->n_entries)
        qsort(k->entries, k->n_entries, sizeof *k->entries, compare_all);
    k->n_sorted = k->n_entries;
    if (!need_heads(k, p, err))
        return false;
    if (k->n_missing)
        return true;
    td_gguf *g = k->model ? NULL : open_gguf(k, err);
    bool is_ok = (k->model || g) && need_small(k, g ? g : td_model_gguf(k->model), err);
    td_gguf_close(&g);
    if (!is_ok || k->n_missing)
        return is_ok;
    write_path(k, 0, path);
    if (!k->model)
        k->model = td_model_open(path, err);
    is_ok = k->model && need_layers(k, k->model, p, err);
    if (!is_ok || k->n_missing)
        td_model_close(&k->model);
    return is_ok;
}

/* -- from outside ------------------------------------------------------------------------------ */

td_kept *td_kept_create(uint64_t most_bytes, td_err *err)
{
    char path[PATH_MAX];
    if (!td_io_cache_path(TD_KEPT_PREFIX, 0, "", path, sizeof path)) {
        td_err_set(err, TD_E_USAGE, "there is no cache folder (TANDEM_CACHE_DIR, HOME)");
        return NULL;
    }
    td_kept *k = td_alloc(1, sizeof *k, err);
    if (!k)
        return NULL;
    k->most_bytes = most_bytes;
    k->clock = td_clock_real();
    k->lock_fd = k->record_fd = -1;
    return k;
}

void td_kept_destroy(td_kept **kept)
{
    td_kept *k = *kept;
    if (!k)
        return;
    td_kept_release(k, NULL);
    forget(k);
    td_free(k->entries);
    td_free(k->missing);
    td_free(k);
    *kept = NULL;
}

bool td_kept_is(const td_kept *k, const uint8_t id[TD_STAGE_HASH_BYTES])
{
    return k->is_known && !memcmp(k->id, id, sizeof k->id);
}

/* The data first, then the record that says it is there. */
static bool make_safe(td_kept *k, td_err *err)
{
    for (uint32_t i = 0; k->n_unsafe && i < k->n_files; i++)
        if (td_io_fdatasync(k->fds[i]) != 0)
            return td_err_set(err, TD_E_IO, "%.200s: %s", k->folder, strerror(errno));
    for (; k->n_safe < k->n_entries; k->n_safe++) {
        const record *r = &k->entries[k->n_safe].r;
        if (!td_io_write_all(k->record_fd, k->folder, r, sizeof *r, err))
            return false;
    }
    k->n_unsafe = 0;
    k->safe_us = td_clock_now_us(&k->clock);
    return true;
}

/* Where other layers of the same model stand in the way, all of it comes anew. */
static bool make_room(td_kept *k, const td_stage_plan *p, td_err *err)
{
    bool is_full = k->missing_bytes <= k->most_bytes &&
                   td_kept_folder_bytes(k->folder) > k->most_bytes - k->missing_bytes;
    if (is_full && !k->was_emptied && k->needed_bytes > k->missing_bytes &&
        k->needed_bytes <= k->most_bytes) {
        k->was_emptied = true;
        td_kept_remove(k->folder);
        if (!open_folder(k, p, err) || !find_missing(k, p, err))
            return false;
    }
    return td_kept_make_room(k->folder, k->missing_bytes, k->most_bytes, err);
}

/* With the lock: from what is on the disk, or after a fetch. */
static bool look(td_kept *k, const td_stage_plan *p, td_err *err)
{
    bool is_here = k->lock_fd >= 0 && td_kept_is(k, p->hash);
    bool is_ok = is_here ? make_safe(k, err) : lock(k, err) && open_folder(k, p, err);
    return is_ok && find_missing(k, p, err) && (!k->n_missing || make_room(k, p, err));
}

bool td_kept_open(td_kept *k, const td_stage_plan *p, const atomic_bool *is_stopped, td_err *err)
{
    k->is_stopped = is_stopped;
    if (k->model && td_kept_is(k, p->hash) && find_missing(k, p, NULL) && k->model)
        return true; /* what was seen before is there, whoever holds the lock */
    bool is_ok = look(k, p, err);
    if (is_ok && k->n_missing)
        return true; /* it is fetched */
    if (is_ok)
        td_log_info("stage worker: %llu bytes of %s are needed, %llu were sent",
                    (unsigned long long)k->needed_bytes, p->model_name,
                    (unsigned long long)k->n_fetched);
    k->n_fetched = 0;
    unlock(k);
    return is_ok;
}

const td_model *td_kept_model(const td_kept *k) { return k->model; }

const td_kept_piece *td_kept_missing(const td_kept *k, uint32_t *n)
{
    *n = k->n_missing;
    return k->missing;
}

bool td_kept_put(td_kept *k, uint32_t i, const void *bytes, uint32_t n, td_err *err)
{
    TD_ASSERT(i < k->n_missing && n <= k->missing[i].n_bytes - k->n_put);
    const td_kept_piece *p = &k->missing[i];
    for (uint32_t done = 0; done < n;) {
        ssize_t wrote = pwrite(k->fds[p->file], (const char *)bytes + done, n - done,
                               (off_t)(p->offset + k->n_put + done));
        if (wrote < 0 && errno != EINTR)
            return td_err_set(err, TD_E_IO, "%.200s: %s", k->folder, strerror(errno));
        done += wrote > 0 ? (uint32_t)wrote : 0;
    }
    k->crc = td_crc32c(k->n_put ? k->crc : 0, bytes, n);
    k->n_put += n;
    k->n_unsafe += n;
    k->n_fetched += n;
    if (k->n_put < p->n_bytes)
        return true;
    k->n_put = 0;
    record r = {.offset = p->offset, .n_bytes = p->n_bytes, .file = p->file, .crc = k->crc};
    bool is_due = k->n_unsafe >= SYNC_BYTES || td_clock_now_us(&k->clock) - k->safe_us >= SYNC_US;
    return add_entry(k, &r, true, err) && (!is_due || make_safe(k, err));
}

bool td_kept_release(td_kept *k, td_err *err)
{
    bool is_ok = k->lock_fd < 0 || make_safe(k, err);
    k->n_put = 0;
    unlock(k);
    return is_ok;
}
