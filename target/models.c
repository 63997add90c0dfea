/* A model is known by a hash of its metadata and of every byte of its tensors. That of the metadata
 * alone, which comes first in it, tells most files apart at once; the bytes of one that agrees so
 * far are read once, and what came out is kept beside the file's size and time.
 *
 * The hash tells copies from other models. It does not hold against somebody who makes a file to
 * deceive: whoever may write to a worker's models decides what it says anyway. */
#include "target/models.h"

#include "base/check.h"
#include "base/io.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/text.h"
#include "target/fetch.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#define PIECE_BYTES (1u << 20)
#define META_BYTES  8u /* of an identity: the metadata's */
#define LANES       3u
#define SLOW_BYTES  (1ull << 30) /* to read so much is worth a word */

_Static_assert(META_BYTES + LANES * 8 == TD_STAGE_HASH_BYTES, "an identity");

struct td_models {
    const char *folder, *file;
    td_model *model; /* opened last; or NULL */
};

/* Words by lanes in turn, so that the products of neighbours overlap: as fast as memory. */
static void add_bytes(uint64_t lanes[LANES], const uint8_t *bytes, size_t n)
{
    for (size_t i = 0; i < n / 8; i++) {
        uint64_t word, *h = &lanes[i % LANES];
        memcpy(&word, bytes + 8 * i, 8);
        *h = (*h ^ word) * 0x9e3779b97f4a7c15u;
        *h ^= *h >> 29;
    }
    if (n % 8)
        lanes[0] = td_hash64(lanes[0], bytes + n / 8 * 8, n % 8);
}

static bool read_tensors(const td_gguf *g, uint64_t lanes[LANES], td_err *err)
{
    uint8_t *bytes = td_alloc(PIECE_BYTES, 1, err);
    bool is_ok = bytes;
    for (uint32_t i = 0; is_ok && i < td_gguf_n_tensors(g); i++) {
        const td_gguf_tensor *t = td_gguf_tensor_at(g, i);
        lanes[i % LANES] = td_hash64(lanes[i % LANES], t->name, strlen(t->name));
        for (uint64_t at = 0, n; is_ok && at < t->n_bytes; at += n) {
            n = t->n_bytes - at < PIECE_BYTES ? t->n_bytes - at : PIECE_BYTES;
            td_gguf_prefetch(g, t, at, t->n_bytes - at < 4 * n ? t->n_bytes - at : 4 * n);
            is_ok = td_gguf_read(g, t, at, n, bytes, err);
            if (is_ok)
                add_bytes(lanes, bytes, (size_t)n);
        }
    }
    td_free(bytes);
    return is_ok;
}

bool td_models_id(const td_model *model, uint8_t out[TD_STAGE_HASH_BYTES], td_err *err)
{
    const td_gguf *g = td_model_gguf(model);
    uint64_t meta = td_gguf_hash(g), stamp = td_gguf_stamp(g), lanes[LANES] = {1, 2, 3};
    char path[PATH_MAX], *text = NULL;
    size_t n = 0;
    bool is_kept = td_io_cache_path("model-id", td_hash64(stamp, &meta, sizeof meta), ".bin", path,
                                    sizeof path);
    memcpy(out, &meta, META_BYTES);
    if (is_kept && td_io_read_file(path, sizeof lanes, &text, &n, NULL) && n == sizeof lanes) {
        memcpy(out + META_BYTES, text, sizeof lanes);
        td_free(text);
        return true;
    }
    td_free(text);
    if (td_gguf_n_bytes(g) > SLOW_BYTES)
        td_log_info("%s: read once, to know it again", td_gguf_path(g));
    if (!read_tensors(g, lanes, err))
        return false;
    for (uint32_t i = 0; i < LANES; i++)
        lanes[i] = td_hash64(lanes[i], &lanes[(i + 1) % LANES], 8);
    memcpy(out + META_BYTES, lanes, sizeof lanes);
    if (is_kept)
        td_io_replace_file(path, lanes, sizeof lanes, NULL);
    return true;
}

td_models *td_models_create(const char *folder, const char *file, td_err *err)
{
    td_models *m = td_alloc(1, sizeof *m, err);
    if (!m)
        return NULL;
    m->folder = folder;
    m->file = file;
    return m;
}

void td_models_destroy(td_models **models)
{
    if (!*models)
        return;
    td_model_close(&(*models)->model);
    td_free(*models);
    *models = NULL;
}

static bool is_it(const td_model *model, const uint8_t id[TD_STAGE_HASH_BYTES])
{
    uint8_t own[TD_STAGE_HASH_BYTES];
    uint64_t meta = td_gguf_hash(td_model_gguf(model));
    return !memcmp(&meta, id, META_BYTES) && td_models_id(model, own, NULL) &&
           !memcmp(own, id, sizeof own);
}

/* A file that is no model is passed over. */
static bool try_file(td_models *m, const char *path, const uint8_t id[TD_STAGE_HASH_BYTES],
                     char *seen, size_t n_seen)
{
    td_model_close(&m->model);
    m->model = td_model_open(path, NULL);
    if (m->model && is_it(m->model, id))
        return true;
    size_t n = strlen(seen);
    if (m->model)
        snprintf(seen + n, n_seen - n, "%s%.60s (%.40s, %llu bytes)", n ? ", " : "", path,
                 td_model_name(m->model),
                 (unsigned long long)td_gguf_n_bytes(td_model_gguf(m->model)));
    td_model_close(&m->model);
    return false;
}

static bool try_folder(td_models *m, const uint8_t id[TD_STAGE_HASH_BYTES], char *seen,
                       size_t n_seen)
{
    DIR *dir = opendir(m->folder);
    bool is_found = false;
    for (struct dirent *e; dir && !is_found && (e = readdir(dir));) {
        char path[PATH_MAX];
        size_t n = strlen(e->d_name);
        bool is_shard = strstr(e->d_name, "-of-") && !strstr(e->d_name, "-00001-of-");
        if (n < 5 || strcmp(e->d_name + n - 5, ".gguf") != 0 || is_shard)
            continue;
        if ((size_t)snprintf(path, sizeof path, "%s/%s", m->folder, e->d_name) < sizeof path)
            is_found = try_file(m, path, id, seen, n_seen);
    }
    if (dir)
        closedir(dir);
    return is_found;
}

const td_model *td_models_open(td_models *m, const uint8_t id[TD_STAGE_HASH_BYTES],
                               const char *name, uint64_t n_bytes, td_err *err)
{
    char seen[400] = "";
    if (m->model && is_it(m->model, id))
        return m->model;
    if ((m->file && try_file(m, m->file, id, seen, sizeof seen)) ||
        (m->folder && try_folder(m, id, seen, sizeof seen)))
        return m->model;
    td_err_set(err, TD_E_DATA, "no model file there is %.80s (%llu bytes); there is: %s", name,
               (unsigned long long)n_bytes, seen[0] ? seen : "none");
    return NULL;
}

void td_models_describe(const td_model *model, const uint8_t id[TD_STAGE_HASH_BYTES],
                        td_stage_plan *plan)
{
    const td_gguf *g = td_model_gguf(model);
    plan->model_bytes = td_gguf_n_bytes(g);
    memcpy(plan->hash, id, sizeof plan->hash);
    td_lend_describe(g, plan);
    snprintf(plan->model_name, sizeof plan->model_name, "%s", td_model_name(model));
    td_text_make_printable(plan->model_name);
}
