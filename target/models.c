#include "target/models.h"

#include "base/check.h"
#include "base/mem.h"
#include "base/sha256.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

struct td_models {
    const char *folder, *file;
    td_model *model; /* opened last; or NULL */
};

void td_models_id(const td_model *model, uint8_t out[TD_STAGE_HASH_BYTES])
{
    const td_gguf *g = td_model_gguf(model);
    uint64_t parts[] = {td_gguf_hash(g), td_gguf_n_bytes(g)};
    td_sha256 sha;
    td_sha256_begin(&sha);
    td_sha256_add(&sha, parts, sizeof parts);
    td_sha256_end(&sha, out);
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
    td_models_id(model, own);
    return !memcmp(own, id, sizeof own);
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
    td_err_set(err, TD_E_DATA,
               "no model file there is %.80s (%llu bytes, %02x%02x%02x%02x); there is: %s", name,
               (unsigned long long)n_bytes, id[0], id[1], id[2], id[3], seen[0] ? seen : "none");
    return NULL;
}
