/* The bounds of the weights that are kept: folders that were used the longest time ago go first.
 * Removing one that another worker has open frees its bytes only when that closes it, and changes
 * nothing for it. */
#include "target/kept.h"

#include "base/log.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define SPARE_BYTES (64ull << 20) /* of a disk, left free */
#define GB          1e-9

static bool is_ours(const char *name)
{
    size_t n = strlen(name);
    return !strcmp(name, TD_KEPT_RECORD) || (n > 5 && !strcmp(name + n - 5, ".gguf"));
}

uint64_t td_kept_folder_bytes(const char *folder)
{
    uint64_t n = 0;
    DIR *dir = opendir(folder);
    struct stat st;
    for (struct dirent *e; dir && (e = readdir(dir));)
        if (is_ours(e->d_name) && fstatat(dirfd(dir), e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0)
            n += (uint64_t)st.st_blocks * 512;
    if (dir)
        closedir(dir);
    return n;
}

void td_kept_remove(const char *folder)
{
    DIR *dir = opendir(folder);
    for (struct dirent *e; dir && (e = readdir(dir));)
        if (is_ours(e->d_name))
            unlinkat(dirfd(dir), e->d_name, 0);
    if (dir)
        closedir(dir);
    rmdir(folder);
}

/* All folders but `own`: their bytes, and which was used the longest time ago ("" : there is
 * none). */
static uint64_t list_others(const char *own, char oldest[PATH_MAX])
{
    char cache[PATH_MAX], path[PATH_MAX];
    const char *own_name = strrchr(own, '/') + 1;
    snprintf(cache, sizeof cache, "%.*s", (int)(own_name - own - 1), own);
    DIR *dir = opendir(cache);
    uint64_t n_bytes = 0;
    struct timespec used = {0};
    oldest[0] = 0;
    for (struct dirent *e; dir && (e = readdir(dir));) {
        struct stat st;
        bool is_one = !strncmp(e->d_name, TD_KEPT_PREFIX "-", strlen(TD_KEPT_PREFIX) + 1) &&
                      strlen(e->d_name) == strlen(own_name) && strcmp(e->d_name, own_name) != 0;
        if (!is_one || (size_t)snprintf(path, sizeof path, "%s/%s/" TD_KEPT_RECORD, cache,
                                        e->d_name) >= sizeof path)
            continue;
        if (stat(path, &st) != 0)
            st.st_mtim = (struct timespec){0};
        *strrchr(path, '/') = 0;
        n_bytes += td_kept_folder_bytes(path);
        bool is_older = st.st_mtim.tv_sec < used.tv_sec ||
                        (st.st_mtim.tv_sec == used.tv_sec && st.st_mtim.tv_nsec < used.tv_nsec);
        if (!oldest[0] || is_older) {
            snprintf(oldest, PATH_MAX, "%s", path);
            used = st.st_mtim;
        }
    }
    if (dir)
        closedir(dir);
    return n_bytes;
}

static uint64_t free_bytes(const char *folder)
{
    struct statvfs v;
    return statvfs(folder, &v) == 0 ? (uint64_t)v.f_bavail * v.f_frsize : UINT64_MAX;
}

bool td_kept_make_room(const char *folder, uint64_t n_new, uint64_t most_bytes, td_err *err)
{
    uint64_t own = td_kept_folder_bytes(folder);
    if (n_new > most_bytes || own > most_bytes - n_new)
        return td_err_set(err, TD_E_IO,
                          "%.3f GB of weights are needed there beside %.3f GB of this model; "
                          "allowed: %.3f GB (--cache-size)",
                          (double)n_new * GB, (double)own * GB, (double)most_bytes * GB);
    for (;;) {
        char oldest[PATH_MAX];
        uint64_t others = list_others(folder, oldest), n_free = free_bytes(folder);
        bool is_space = n_free >= SPARE_BYTES && n_free - SPARE_BYTES >= n_new;
        if (is_space && own + n_new <= most_bytes && others <= most_bytes - own - n_new)
            return true;
        if (!oldest[0])
            return td_err_set(err, TD_E_IO,
                              "%.3f GB of weights are needed there, and %.3f GB are free on the "
                              "disk of %.200s, of which %.3f stay free",
                              (double)n_new * GB, (double)n_free * GB, folder,
                              (double)SPARE_BYTES * GB);
        td_log_info("stage worker: %s is removed, for others' weights", oldest);
        td_kept_remove(oldest);
        if (access(oldest, F_OK) == 0)
            return td_err_set(err, TD_E_IO, "%.300s cannot be removed to make room", oldest);
    }
}
