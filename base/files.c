#include "base/files.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LINKS_MAX  40
#define SHARDS_MAX 1024u /* of a model: gguf.h's limit */

/* What makes a file itself: of one that is not there, its folder and its name there. */
typedef struct {
    bool is_known, is_there;
    struct stat st;
    char name[NAME_MAX + 1];
} identity;

/* Splits off the last name of a path; the folder is "." or "/" where none is named. */
static bool split(const char *path, char folder[PATH_MAX], const char **name)
{
    const char *slash = strrchr(path, '/');
    *name = slash ? slash + 1 : path;
    size_t n = !slash ? 1 : slash == path ? 1 : (size_t)(slash - path);
    if (n >= PATH_MAX || !**name || strlen(*name) > NAME_MAX)
        return false;
    memcpy(folder, slash ? path : ".", n);
    folder[n] = 0;
    return true;
}

/* Follows links to where the last of them points, there or not. */
static bool follow(const char *path, char out[PATH_MAX])
{
    char target[PATH_MAX], folder[PATH_MAX];
    if ((size_t)snprintf(out, PATH_MAX, "%s", path) >= PATH_MAX)
        return false;
    for (int i = 0; i < LINKS_MAX; i++) {
        ssize_t n = readlink(out, target, sizeof target - 1);
        const char *name;
        if (n < 0)
            return true; /* no link */
        target[n] = 0;
        if (!split(out, folder, &name))
            return false;
        char next[2 * PATH_MAX];
        int n_next = *target == '/' ? snprintf(next, sizeof next, "%s", target)
                                    : snprintf(next, sizeof next, "%s/%s", folder, target);
        if (n_next >= PATH_MAX)
            return false;
        memcpy(out, next, (size_t)n_next + 1);
    }
    return false;
}

bool td_files_resolve(const char *path, char out[PATH_MAX])
{
    char last[PATH_MAX], folder[PATH_MAX], real[PATH_MAX];
    const char *name;
    if (realpath(path, out))
        return true;
    if (errno != ENOENT || !follow(path, last) || !split(last, folder, &name) ||
        !realpath(folder, real))
        return false;
    return (size_t)snprintf(out, PATH_MAX, "%s/%s", strcmp(real, "/") ? real : "", name) < PATH_MAX;
}

static identity identify(const char *path, bool is_written)
{
    identity id = {0};
    char real[PATH_MAX], folder[PATH_MAX];
    const char *name;
    if (!strcmp(path, "-")) {
        id.is_there = fstat(is_written ? STDOUT_FILENO : STDIN_FILENO, &id.st) == 0;
        id.is_known = id.is_there;
        return id;
    }
    id.is_there = id.is_known = stat(path, &id.st) == 0;
    if (!id.is_there && td_files_resolve(path, real) && split(real, folder, &name)) {
        id.is_known = stat(folder, &id.st) == 0;
        snprintf(id.name, sizeof id.name, "%s", name);
    }
    return id;
}

static bool is_one(const identity *a, const identity *b, bool is_read_too)
{
    if (!a->is_known || !b->is_known || a->is_there != b->is_there ||
        a->st.st_dev != b->st.st_dev || a->st.st_ino != b->st.st_ino || strcmp(a->name, b->name))
        return false;
    return !a->is_there || S_ISREG(a->st.st_mode) || (S_ISFIFO(a->st.st_mode) && is_read_too);
}

/* Shard i of the model that `path` is a shard of; false if it is none, or after the last. */
static bool name_shard(const char *path, unsigned i, char out[PATH_MAX])
{
    static const char form[] = "-00001-of-00001.gguf";
    size_t n = strlen(path), n_form = sizeof form - 1;
    unsigned index, n_shards;
    int n_read = 0;
    if (n < n_form || n >= PATH_MAX)
        return false;
    const char *tail = path + n - n_form;
    if (sscanf(tail, "-%5u-of-%5u.gguf%n", &index, &n_shards, &n_read) != 2 ||
        (size_t)n_read != n_form || i > n_shards || i > SHARDS_MAX)
        return false;
    snprintf(out, PATH_MAX, "%.*s-%05u-of-%05u.gguf", (int)(tail - path), path, i, n_shards);
    return true;
}

/* Does b mean the file that a, which is written, means? */
static bool collides(const td_file_use *a, const td_file_use *b)
{
    identity written = identify(a->path, true), other = identify(b->path, b->is_written);
    if (is_one(&written, &other, !b->is_written))
        return true;
    char shard[PATH_MAX];
    for (unsigned i = 1; !b->is_written && name_shard(b->path, i, shard); i++) {
        other = identify(shard, false);
        if (is_one(&written, &other, true))
            return true;
    }
    return false;
}

bool td_files_check(const td_file_use *uses, size_t n_uses, td_err *err)
{
    for (size_t i = 0; i < n_uses; i++)
        for (size_t k = 0; uses[i].path && uses[i].is_written && k < n_uses; k++) {
            const td_file_use *a = &uses[i], *b = &uses[k];
            if (k == i || !b->path || (b->is_written && k < i) || !collides(a, b))
                continue;
            return td_err_set(
                err, TD_E_USAGE, "%s %.300s: the same file as %s %.300s, which %s; name another",
                a->name, a->path, b->name, b->path, b->is_written ? "is written too" : "is read");
        }
    return true;
}

bool td_files_check_writable(const char *path, td_err *err)
{
    char real[PATH_MAX], folder[PATH_MAX];
    const char *name;
    struct stat st;
    if (!strcmp(path, "-"))
        return true;
    errno = 0;
    if (stat(path, &st) == 0) {
        errno = S_ISDIR(st.st_mode) ? EISDIR : 0;
        if (!errno && access(path, W_OK) == 0)
            return true;
    } else if (td_files_resolve(path, real) && split(real, folder, &name) &&
               access(folder, W_OK | X_OK) == 0) {
        return true;
    }
    return td_err_set(err, TD_E_IO, "%s: cannot be written: %s", path,
                      strerror(errno ? errno : EINVAL));
}
