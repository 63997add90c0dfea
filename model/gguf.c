/* A GGUF model as a whole: its files, its tensors by name, and reading their data.
 *
 * A split model names its files after the first, and each file says which one it is and of how
 * many (split.no, split.count, split.tensors.count). These are held against each other and against
 * the file names, and no tensor may be there twice, so that a shard that is missing, foreign or
 * repeated is an error here and not a wrong model later. */
#include "model/gguf.h"

#include "base/check.h"
#include "base/rng.h"
#include "model/gguf_parse.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SUFFIX_BYTES 20 /* of "-00001-of-00005.gguf" */
#define NO_COUNT     UINT64_MAX

struct td_gguf {
    td_arena *arena;
    td_gguf_shard *shards; /* [n_shards] */
    uint32_t n_shards;
    td_gguf_tensor *tensors; /* [n_tensors], shard after shard */
    td_gguf_name *names;     /* [n_tensors] */
    uint32_t n_tensors;
    uint64_t hash;
};

typedef struct { /* the split.* keys of one shard; count 0 when it has none */
    uint64_t no, count, n_tensors;
} split_info;

static bool read_split(const td_gguf_shard *s, split_info *split, td_err *err)
{
    return td_gguf_shard_uint(s, "split.no", 0, &split->no, err) &&
           td_gguf_shard_uint(s, "split.count", 0, &split->count, err) &&
           td_gguf_shard_uint(s, "split.tensors.count", NO_COUNT, &split->n_tensors, err);
}

static void write_suffix(char suffix[SUFFIX_BYTES + 1], uint32_t i_shard, uint32_t n_shards)
{
    snprintf(suffix, SUFFIX_BYTES + 1, "-%05u-of-%05u.gguf", (i_shard + 1) % 100000,
             n_shards % 100000);
}

/* May this file be opened by itself, and how many shards are there? */
static bool check_first(const td_gguf_shard *s, const split_info *split, td_err *err)
{
    char suffix[SUFFIX_BYTES + 1];
    if (split->count > TD_GGUF_MAX_SHARDS)
        return td_err_set(err, TD_E_DATA, "split.count is %" PRIu64 "; at most %u are allowed",
                          split->count, TD_GGUF_MAX_SHARDS);
    write_suffix(suffix, 0, (uint32_t)split->count);
    if (split->no != 0 && split->no < split->count)
        return td_err_set(err, TD_E_DATA,
                          "this is file %" PRIu64 " of a model split into %" PRIu64
                          "; open the first, named *%s",
                          split->no + 1, split->count, suffix);
    if (split->no != 0)
        return td_err_set(err, TD_E_DATA,
                          "split.no is %" PRIu64 ", but split.count is %" PRIu64
                          "; it must be less",
                          split->no, split->count);
    if (split->count <= 1)
        return true;
    if (split->n_tensors == NO_COUNT)
        return td_err_set(err, TD_E_DATA, "a split model needs the key split.tensors.count");
    size_t n_path = strlen(s->path);
    if (n_path < SUFFIX_BYTES || strcmp(s->path + n_path - SUFFIX_BYTES, suffix) != 0)
        return td_err_set(err, TD_E_DATA,
                          "this is the first file of a model split into %" PRIu64
                          ", so its name must end in %s for the others to be found",
                          split->count, suffix);
    return true;
}

/* Opens shard i of a split model, whose first is open. */
static bool open_next(td_gguf *g, uint32_t i, const split_info *first, td_err *err)
{
    td_gguf_shard *s = &g->shards[i];
    char suffix[SUFFIX_BYTES + 1];
    write_suffix(suffix, i, (uint32_t)first->count);
    s->path = td_strndup(g->shards[0].path, strlen(g->shards[0].path), err);
    if (!s->path)
        return false;
    memcpy(s->path + strlen(s->path) - SUFFIX_BYTES, suffix, SUFFIX_BYTES);
    if (!td_gguf_parse_shard(s, g->arena, err))
        return td_err_prepend(err, "file %u of %" PRIu64 " of the model", i + 1, first->count);
    split_info split;
    if (!read_split(s, &split, err))
        return false;
    if (split.no != i || split.count != first->count || split.n_tensors != first->n_tensors)
        return td_err_set(err, TD_E_DATA,
                          "is not file %u of %" PRIu64 " of this model: it has split.no %" PRIu64
                          ", split.count %" PRIu64 " and split.tensors.count %" PRIu64
                          "; %u, %" PRIu64 " and %" PRIu64 " are needed",
                          i + 1, first->count, split.no, split.count, split.n_tensors, i,
                          first->count, first->n_tensors);
    return true;
}

static bool open_shards(td_gguf *g, const char *path, split_info *split, td_err *err)
{
    td_gguf_shard *first = td_alloc(1, sizeof *first, err);
    if (!first)
        return false;
    first->fd = -1;
    g->shards = first;
    g->n_shards = 1;
    first->path = td_strndup(path, strlen(path), err);
    if (!first->path)
        return false;
    if (!td_gguf_parse_shard(first, g->arena, err) || !read_split(first, split, err) ||
        !check_first(first, split, err))
        return td_err_prepend(err, "%s", path);
    if (split->count <= 1)
        return true;
    td_gguf_shard *all = td_realloc(first, 1, (size_t)split->count, sizeof *all, err);
    if (!all)
        return false;
    g->shards = all;
    for (uint32_t i = 1; i < split->count; i++) {
        all[i] = (td_gguf_shard){.fd = -1};
        g->n_shards = i + 1;
        if (!open_next(g, i, split, err))
            return td_err_prepend(err, "%s", all[i].path ? all[i].path : path);
    }
    return true;
}

/* One list of the tensors of all shards. */
static bool collect(td_gguf *g, const split_info *split, td_err *err)
{
    uint32_t n = 0; /* at most TD_GGUF_MAX_SHARDS * TD_GGUF_MAX_TENSORS */
    for (uint32_t i = 0; i < g->n_shards; i++)
        n += g->shards[i].n_tensors;
    if (split->count > 1 && n != split->n_tensors)
        return td_err_set(err, TD_E_DATA,
                          "the %u files hold %u tensors, but split.tensors.count is %" PRIu64,
                          g->n_shards, n, split->n_tensors);
    if (n > TD_GGUF_MAX_TENSORS)
        return td_err_set(err, TD_E_DATA, "%u tensors in all; at most %u are allowed", n,
                          TD_GGUF_MAX_TENSORS);
    g->tensors = td_arena_alloc(g->arena, n, sizeof *g->tensors, err);
    g->names = g->tensors ? td_arena_alloc(g->arena, n, sizeof *g->names, err) : NULL;
    if (!g->names)
        return false;
    for (uint32_t i = 0; i < g->n_shards; i++) {
        const td_gguf_shard *s = &g->shards[i];
        g->hash = td_hash64(g->hash, &s->hash, sizeof s->hash);
        for (uint32_t k = 0; k < s->n_tensors; k++, g->n_tensors++) {
            td_gguf_tensor *t = &g->tensors[g->n_tensors];
            *t = s->tensors[k];
            t->shard = i;
            g->names[g->n_tensors] = (td_gguf_name){t->name, g->n_tensors};
        }
    }
    return td_gguf_sort_names(g->names, n, "tensor", err);
}

td_gguf *td_gguf_open(const char *path, td_err *err)
{
    TD_ASSERT(path);
    td_gguf *g = td_alloc(1, sizeof *g, err);
    if (!g)
        return NULL;
    split_info split;
    g->arena = td_arena_create(err);
    if (!g->arena || !open_shards(g, path, &split, err))
        goto fail;
    if (!collect(g, &split, err)) {
        td_err_prepend(err, "%s", path);
        goto fail;
    }
    return g;
fail:
    td_gguf_close(&g);
    return NULL;
}

void td_gguf_close(td_gguf **gguf)
{
    td_gguf *g = *gguf;
    if (!g)
        return;
    for (uint32_t i = 0; i < g->n_shards; i++)
        td_gguf_close_shard(&g->shards[i]);
    td_free(g->shards);
    td_arena_destroy(&g->arena);
    td_free(g);
    *gguf = NULL;
}

const td_gguf_shard *td_gguf_first_shard(const td_gguf *g) { return &g->shards[0]; }

const char *td_gguf_path(const td_gguf *g) { return g->shards[0].path; }

uint32_t td_gguf_version(const td_gguf *g) { return g->shards[0].version; }

uint32_t td_gguf_n_shards(const td_gguf *g) { return g->n_shards; }

uint64_t td_gguf_n_bytes(const td_gguf *g)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < g->n_shards; i++)
        n += g->shards[i].n_file_bytes;
    return n;
}

uint32_t td_gguf_n_tensors(const td_gguf *g) { return g->n_tensors; }

const td_gguf_tensor *td_gguf_tensor_at(const td_gguf *g, uint32_t i)
{
    TD_ASSERT(i < g->n_tensors);
    return &g->tensors[i];
}

const td_gguf_tensor *td_gguf_find_tensor(const td_gguf *g, const char *name)
{
    uint32_t i = td_gguf_find_name(g->names, g->n_tensors, name);
    return i == UINT32_MAX ? NULL : &g->tensors[i];
}

uint64_t td_gguf_shard_bytes(const td_gguf *g, uint32_t shard)
{
    TD_ASSERT(shard < g->n_shards);
    return g->shards[shard].n_file_bytes;
}

uint32_t td_gguf_head_bytes(const td_gguf *g, uint32_t shard)
{
    TD_ASSERT(shard < g->n_shards);
    return g->shards[shard].n_bytes;
}

static bool read_at(const td_gguf_shard *s, uint64_t at, uint64_t n_bytes, void *dst, td_err *err)
{
    for (uint64_t n_read = 0; n_read < n_bytes;) {
        ssize_t n =
            pread(s->fd, (char *)dst + n_read, (size_t)(n_bytes - n_read), (off_t)(at + n_read));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return td_err_set(err, TD_E_IO, "reading at byte %" PRIu64 ": %s", at + n_read,
                              strerror(errno));
        if (n == 0)
            return td_err_set(err, TD_E_IO,
                              "the file ends at byte %" PRIu64 ", but had %" PRIu64
                              " bytes when it was opened",
                              at + n_read, s->n_file_bytes);
        n_read += (uint64_t)n;
    }
    return true;
}

bool td_gguf_read(const td_gguf *g, const td_gguf_tensor *t, uint64_t from, uint64_t n_bytes,
                  void *dst, td_err *err)
{
    TD_ASSERT(from <= t->n_bytes && n_bytes <= t->n_bytes - from);
    const td_gguf_shard *s = &g->shards[t->shard];
    return read_at(s, t->offset + from, n_bytes, dst, err) ||
           td_err_prepend(err, "%s: tensor '%s'", s->path, t->name);
}

bool td_gguf_read_shard(const td_gguf *g, uint32_t shard, uint64_t from, uint64_t n_bytes,
                        void *dst, td_err *err)
{
    TD_ASSERT(shard < g->n_shards);
    const td_gguf_shard *s = &g->shards[shard];
    TD_ASSERT(from <= s->n_file_bytes && n_bytes <= s->n_file_bytes - from);
    return read_at(s, from, n_bytes, dst, err) || td_err_prepend(err, "%s", s->path);
}

void td_gguf_prefetch(const td_gguf *g, const td_gguf_tensor *t, uint64_t from, uint64_t n_bytes)
{
    TD_ASSERT(from <= t->n_bytes && n_bytes <= t->n_bytes - from);
    (void)posix_fadvise(g->shards[t->shard].fd, (off_t)(t->offset + from), (off_t)n_bytes,
                        POSIX_FADV_WILLNEED);
}

void td_gguf_drop(const td_gguf *g, const td_gguf_tensor *t, uint64_t from, uint64_t n_bytes)
{
    TD_ASSERT(from <= t->n_bytes && n_bytes <= t->n_bytes - from);
    /* Advice only: a file system that cannot follow it costs nothing but page cache. */
    (void)posix_fadvise(g->shards[t->shard].fd, (off_t)(t->offset + from), (off_t)n_bytes,
                        POSIX_FADV_DONTNEED);
}

uint64_t td_gguf_hash(const td_gguf *g) { return g->hash; }

uint64_t td_gguf_stamp(const td_gguf *g)
{
    uint64_t stamp = g->n_shards;
    for (uint32_t i = 0; i < g->n_shards; i++) {
        struct stat st;
        if (fstat(g->shards[i].fd, &st) != 0)
            st = (struct stat){.st_ino = i};
        uint64_t parts[] = {(uint64_t)st.st_dev, (uint64_t)st.st_ino, (uint64_t)st.st_size,
                            (uint64_t)st.st_mtim.tv_sec, (uint64_t)st.st_mtim.tv_nsec};
        stamp = td_hash64(stamp, parts, sizeof parts);
    }
    return stamp;
}
