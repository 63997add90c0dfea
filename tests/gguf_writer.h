/* Builds GGUF files in memory for tests, good ones and bad ones: every field can be written with a
 * value of its own, and any byte patched afterwards. Counts are filled in by gw_end. */
#ifndef TD_TESTS_GGUF_WRITER_H
#define TD_TESTS_GGUF_WRITER_H

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Value types of the format. */
enum {
    GW_U8,
    GW_I8,
    GW_U16,
    GW_I16,
    GW_U32,
    GW_I32,
    GW_F32,
    GW_BOOL,
    GW_STRING,
    GW_ARRAY,
    GW_U64,
    GW_I64,
    GW_F64
};

typedef struct {
    uint8_t *bytes;
    size_t n, n_room;
    uint64_t n_keys, n_tensors;
    size_t n_metadata; /* set by gw_end */
} gw;

static inline void gw_fail(const char *what)
{
    perror(what);
    exit(1);
}

static inline void gw_bytes(gw *w, const void *p, size_t n)
{
    if (w->n + n > w->n_room) {
        w->n_room = 2 * (w->n + n) + 4096;
        w->bytes = realloc(w->bytes, w->n_room);
        if (!w->bytes)
            gw_fail("realloc");
    }
    if (p)
        memcpy(w->bytes + w->n, p, n);
    else
        memset(w->bytes + w->n, 0, n);
    w->n += n;
}

/* The low n bytes of v, little-endian. */
static inline void gw_uint(gw *w, uint64_t v, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint8_t byte = (uint8_t)(v >> 8 * i);
        gw_bytes(w, &byte, 1);
    }
}

static inline void gw_u32(gw *w, uint32_t v) { gw_uint(w, v, 4); }
static inline void gw_u64(gw *w, uint64_t v) { gw_uint(w, v, 8); }

static inline void gw_patch(gw *w, size_t at, uint64_t v, size_t n)
{
    for (size_t i = 0; i < n; i++)
        w->bytes[at + i] = (uint8_t)(v >> 8 * i);
}

static inline void gw_str_n(gw *w, const void *text, size_t n)
{
    gw_u64(w, n);
    gw_bytes(w, text, n);
}

static inline void gw_str(gw *w, const char *text) { gw_str_n(w, text, strlen(text)); }

static inline gw gw_begin(uint32_t version)
{
    gw w = {0};
    gw_bytes(&w, "GGUF", 4);
    gw_u32(&w, version);
    gw_u64(&w, 0);
    gw_u64(&w, 0);
    return w;
}

/* A key and its type; the caller writes the value. */
static inline void gw_key(gw *w, const char *key, uint32_t type)
{
    gw_str(w, key);
    gw_u32(w, type);
    w->n_keys++;
}

/* A scalar of n bytes. */
static inline void gw_kv(gw *w, const char *key, uint32_t type, uint64_t value, size_t n)
{
    gw_key(w, key, type);
    gw_uint(w, value, n);
}

static inline void gw_kv_u32(gw *w, const char *key, uint32_t v) { gw_kv(w, key, GW_U32, v, 4); }

static inline void gw_kv_f32(gw *w, const char *key, float v)
{
    gw_key(w, key, GW_F32);
    gw_bytes(w, &v, 4);
}

static inline void gw_kv_str(gw *w, const char *key, const char *text)
{
    gw_key(w, key, GW_STRING);
    gw_str(w, text);
}

/* The head of an array; the caller writes the elements. */
static inline void gw_kv_array(gw *w, const char *key, uint32_t element, uint64_t n)
{
    gw_key(w, key, GW_ARRAY);
    gw_u32(w, element);
    gw_u64(w, n);
}

static inline void gw_tensor(gw *w, const char *name, uint32_t n_dims, const uint64_t *ne,
                             uint32_t type, uint64_t offset)
{
    gw_str(w, name);
    gw_u32(w, n_dims);
    for (uint32_t i = 0; i < n_dims; i++)
        gw_u64(w, ne[i]);
    gw_u32(w, type);
    gw_u64(w, offset);
    w->n_tensors++;
}

/* Fills in the counts, pads to the alignment (where there is data) and adds n_data bytes
 * 0, 1, 2, ... 250, 0, ... */
static inline void gw_end(gw *w, size_t alignment, size_t n_data)
{
    gw_patch(w, 8, w->n_tensors, 8);
    gw_patch(w, 16, w->n_keys, 8);
    w->n_metadata = w->n;
    if (n_data)
        gw_bytes(w, NULL, (alignment - w->n % alignment) % alignment);
    for (size_t i = 0; i < n_data; i++) {
        uint8_t byte = (uint8_t)(i % 251);
        gw_bytes(w, &byte, 1);
    }
}

static inline void gw_free(gw *w)
{
    free(w->bytes);
    *w = (gw){0};
}

static inline void gw_save(const gw *w, const char *path)
{
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(w->bytes, 1, w->n, f) != w->n || fclose(f) != 0)
        gw_fail(path);
}

typedef struct { /* a file without a name, opened by path */
    int fd;
    char path[64];
} gw_file;

static inline gw_file gw_file_create(void)
{
    gw_file f = {.fd = memfd_create("gguf", MFD_CLOEXEC)};
    if (f.fd < 0)
        gw_fail("memfd_create");
    snprintf(f.path, sizeof f.path, "/proc/self/fd/%d", f.fd);
    return f;
}

static inline void gw_file_set(const gw_file *f, const void *bytes, size_t n)
{
    if (pwrite(f->fd, bytes, n, 0) != (ssize_t)n || ftruncate(f->fd, (off_t)n) != 0)
        gw_fail("memfd");
}

#endif
