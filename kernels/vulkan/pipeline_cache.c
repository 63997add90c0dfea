/* Compiled pipelines on disk, so that the second start of a program need not compile them. A file
 * of ours holds the driver's own cache behind a header that says for which driver, which device,
 * which shaders and which bytes it is; a driver is handed nothing else. It is only a cache: a file
 * that is missing, torn, foreign, or that others could have written is passed over, one that cannot
 * be written is not, with a line in the log and never an error.
 *
 * Where: $TANDEM_CACHE_DIR ("" turns it off), else $XDG_CACHE_HOME/tandem, else ~/.cache/tandem. */
#include "kernels/vulkan/vk.h"

#include "base/check.h"
#include "base/io.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/rng.h"
#include "kernels/vulkan/shaders.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CACHE_BYTES_MAX (256u << 20)
#define DRIVER_HEADER   32u /* VkPipelineCacheHeaderVersionOne */

typedef struct { /* native byte order: the file does not travel */
    char magic[8];
    uint32_t vendor, device, driver_version, pointer_bytes;
    uint8_t uuid[VK_UUID_SIZE];
    uint64_t shaders;  /* hash of all shaders */
    uint64_t n_bytes;  /* of the driver's data, which follow */
    uint64_t checksum; /* of them */
} file_header;

static file_header header_of(const td_vk_device *d)
{
    VkPhysicalDeviceProperties p;
    vkGetPhysicalDeviceProperties(d->physical.handle, &p);
    file_header h;
    memset(&h, 0, sizeof h); /* padding included: it is hashed and compared as bytes */
    memcpy(h.magic, "td-pipe1", sizeof h.magic);
    h.vendor = p.vendorID;
    h.device = p.deviceID;
    h.driver_version = p.driverVersion;
    h.pointer_bytes = (uint32_t)sizeof(void *);
    memcpy(h.uuid, p.pipelineCacheUUID, VK_UUID_SIZE);
    uint32_t n;
    const td_shader *shaders = td_shader_list(&n);
    for (uint32_t i = 0; i < n; i++)
        h.shaders = td_hash64(h.shaders, shaders[i].words, *shaders[i].n_words * sizeof(uint32_t));
    return h;
}

static bool find_path(const file_header *h, char *path, size_t n_path)
{
    uint64_t key = td_hash64(0, h, offsetof(file_header, n_bytes));
    return td_io_cache_path("pipelines", key, "", path, n_path);
}

/* The driver's part of a file that is ours in every respect; NULL with `why` set, or without when
 * there is no file. */
static char *read_data(const td_vk_device *d, const file_header *want, size_t *n_data, td_err *why)
{
    struct stat s;
    char *bytes = NULL;
    size_t n;
    if (lstat(d->cache_path, &s) != 0) {
        if (errno != ENOENT)
            td_err_set(why, TD_E_IO, "%s: %s", d->cache_path, strerror(errno));
        return NULL;
    }
    if (!S_ISREG(s.st_mode) || s.st_uid != geteuid() || (s.st_mode & (S_IWGRP | S_IWOTH))) {
        td_err_set(why, TD_E_DATA, "%s: not a regular file that only its owner, this user, writes",
                   d->cache_path);
        return NULL;
    }
    if (!td_io_read_file(d->cache_path, CACHE_BYTES_MAX, &bytes, &n, why))
        return NULL;
    file_header h;
    uint32_t driver[4 + VK_UUID_SIZE / 4];
    if (n < sizeof h + DRIVER_HEADER)
        goto torn;
    memcpy(&h, bytes, sizeof h);
    n -= sizeof h;
    if (memcmp(&h, want, offsetof(file_header, n_bytes)) || h.n_bytes != n ||
        h.checksum != td_hash64(h.shaders, bytes + sizeof h, n))
        goto torn;
    memcpy(driver, bytes + sizeof h, sizeof driver);
    if (driver[0] < DRIVER_HEADER || driver[1] != VK_PIPELINE_CACHE_HEADER_VERSION_ONE ||
        driver[2] != h.vendor || driver[3] != h.device || memcmp(driver + 4, h.uuid, VK_UUID_SIZE))
        goto torn;
    memmove(bytes, bytes + sizeof h, n);
    *n_data = n;
    return bytes;
torn:
    td_err_set(why, TD_E_DATA, "%s: torn, or of another driver or program", d->cache_path);
    td_free(bytes);
    return NULL;
}

bool td_vk_cache_open(td_vk_device *d, td_err *err)
{
    const file_header h = header_of(d);
    VkPipelineCacheCreateInfo info = {.sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO};
    td_err why = {0};
    char *data = NULL;
    if (d->head.info.is_usable && find_path(&h, d->cache_path, sizeof d->cache_path))
        data = read_data(d, &h, &info.initialDataSize, &why);
    else
        d->cache_path[0] = 0;
    if (why.code != TD_OK)
        td_log_warn("pipeline cache not used: %s", why.message);
    info.pInitialData = data;
    if (data && vkCreatePipelineCache(d->handle, &info, NULL, &d->cache) == VK_SUCCESS) {
        d->is_cache_read = true;
        td_log_debug("pipeline cache: %s, %zu bytes", d->cache_path, info.initialDataSize);
    }
    td_free(data);
    if (d->is_cache_read)
        return true;
    info.pInitialData = NULL;
    info.initialDataSize = 0;
    VK_TRY(d, vkCreatePipelineCache(d->handle, &info, NULL, &d->cache));
    return true;
fail:
    return false;
}

static bool write_data(td_vk_device *d, td_err *why)
{
    struct stat s;
    size_t n = 0;
    if (vkGetPipelineCacheData(d->handle, d->cache, &n, NULL) != VK_SUCCESS || n < DRIVER_HEADER)
        return true; /* this driver has no cache to keep */
    if (n > CACHE_BYTES_MAX - sizeof(file_header))
        return td_err_set(why, TD_E_IO, "%zu bytes; allowed: %u", n, CACHE_BYTES_MAX);
    if (lstat(d->cache_path, &s) == 0 && !S_ISREG(s.st_mode))
        return td_err_set(why, TD_E_IO, "%s: not a regular file", d->cache_path);
    char *bytes = td_alloc(sizeof(file_header) + n, 1, why);
    if (!bytes)
        return false;
    file_header h = header_of(d);
    bool is_ok = true;
    if (vkGetPipelineCacheData(d->handle, d->cache, &n, bytes + sizeof h) == VK_SUCCESS) {
        h.n_bytes = n;
        h.checksum = td_hash64(h.shaders, bytes + sizeof h, n);
        memcpy(bytes, &h, sizeof h);
        is_ok = td_io_replace_file(d->cache_path, bytes, sizeof h + n, why);
    }
    td_free(bytes);
    return is_ok;
}

void td_vk_cache_save(td_vk_device *d)
{
    td_err why = {0};
    if (!d->cache_path[0] || !d->n_unsaved)
        return;
    d->n_unsaved = 0;
    if (write_data(d, &why))
        return;
    td_log_warn("pipeline cache not written: %s", why.message);
    d->cache_path[0] = 0; /* so that it is said once only */
}
