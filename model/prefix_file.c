#include "model/prefix_file.h"

#include "base/check.h"
#include "base/crc32c.h"
#include "base/cursor.h"
#include "base/io.h"
#include "base/sha256.h"
#include "base/text.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC       "tdprefix"
#define VERSION     1u
#define MODEL_AT    128u
#define TOKENS_AT   512u
#define CRC_AT      (TD_PREFIX_HEAD_BYTES - 4u)
#define PIECE_BYTES (1u << 16)
#define HEX_DIGITS  (2u * TD_PREFIX_HASH_BYTES)

_Static_assert(TD_PREFIX_TOKENS_MAX * 4 + TOKENS_AT <= CRC_AT, "they have room");

/* -- the head ---------------------------------------------------------------------------------- */

void td_prefix_head_name(td_prefix_head *h)
{
    td_sha256 s;
    td_sha256_begin(&s);
    td_sha256_add(&s, h->before, sizeof h->before);
    for (uint32_t i = 0; i < h->n_tokens; i++) {
        uint32_t t = h->tokens[i];
        uint8_t bytes[4] = {(uint8_t)t, (uint8_t)(t >> 8), (uint8_t)(t >> 16), (uint8_t)(t >> 24)};
        td_sha256_add(&s, bytes, sizeof bytes);
    }
    td_sha256_end(&s, h->name);
}

static void seek(td_cursor_out *c, uint32_t at)
{
    while (c->pos < at)
        td_cursor_write_u8(c, 0);
}

void td_prefix_head_encode(const td_prefix_head *h, uint8_t out[TD_PREFIX_HEAD_BYTES])
{
    td_cursor_out c = td_cursor_out_begin("head", out, TD_PREFIX_HEAD_BYTES, NULL);
    td_cursor_write_bytes(&c, MAGIC, 8);
    td_cursor_write_u32(&c, VERSION);
    td_cursor_write_u32(&c, TD_PREFIX_HEAD_BYTES);
    td_cursor_write_bytes(&c, h->name, sizeof h->name);
    td_cursor_write_bytes(&c, h->before, sizeof h->before);
    td_cursor_write_u64(&c, h->n_bytes);
    td_cursor_write_u32(&c, h->first);
    td_cursor_write_u32(&c, h->n_tokens);
    td_cursor_write_u32(&c, h->crc);
    seek(&c, MODEL_AT);
    td_cursor_write_bytes(&c, h->model, sizeof h->model);
    td_cursor_write_bytes(&c, h->what, sizeof h->what);
    seek(&c, TOKENS_AT);
    for (uint32_t i = 0; i < h->n_tokens; i++)
        td_cursor_write_u32(&c, h->tokens[i]);
    seek(&c, CRC_AT);
    td_cursor_write_u32(&c, td_crc32c(0, out, CRC_AT));
    TD_ASSERT(!c.failed);
}

/* Passes over what has to be zeros. */
static bool skip_zeros(td_cursor *c, uint32_t end)
{
    while (!c->failed && c->pos < end) {
        uint8_t byte;
        if (td_cursor_read_u8(c, &byte) && byte)
            return td_cursor_fail(c, "%u; allowed: 0", byte);
    }
    return !c->failed;
}

/* Text of n bytes: printable, and then zeros. */
static bool read_text(td_cursor *c, char *out, uint32_t n)
{
    td_cursor_read_bytes(c, out, n);
    bool is_over = false;
    for (uint32_t i = 0; i < n && !c->failed; i++) {
        is_over |= !out[i];
        if (is_over ? out[i] != 0 : out[i] < 0x20 || out[i] == 0x7f)
            return td_cursor_fail(c, "text with a byte %u", (unsigned char)out[i]);
    }
    return is_over || td_cursor_fail(c, "text without an end");
}

static bool check_head(td_cursor *c, const td_prefix_head *h)
{
    td_prefix_head named = *h;
    if (h->n_tokens < 1 || h->n_tokens > TD_PREFIX_TOKENS_MAX)
        return td_cursor_fail(c, "%u positions; allowed: 1..%u", h->n_tokens, TD_PREFIX_TOKENS_MAX);
    if (h->first % h->n_tokens || h->first > UINT32_MAX - TD_PREFIX_TOKENS_MAX)
        return td_cursor_fail(c, "position %u; allowed: multiples of %u", h->first, h->n_tokens);
    if (h->n_bytes < 1 || h->n_bytes > TD_PREFIX_CHUNK_MAX)
        return td_cursor_fail(c, "%llu bytes; allowed: 1..%llu", (unsigned long long)h->n_bytes,
                              (unsigned long long)TD_PREFIX_CHUNK_MAX);
    td_prefix_head_name(&named);
    return !memcmp(named.name, h->name, sizeof h->name) ||
           td_cursor_fail(c, "the name is that of other tokens");
}

bool td_prefix_head_decode(const void *bytes, size_t n_bytes, td_prefix_head *h, td_err *err)
{
    uint8_t magic[8];
    uint32_t version, n_head, crc;
    *h = (td_prefix_head){0};
    td_cursor c = td_cursor_begin("head", bytes, n_bytes, err);
    if (!td_cursor_has(&c, TD_PREFIX_HEAD_BYTES))
        return td_cursor_fail(&c, "%zu bytes; allowed: %u and more", n_bytes, TD_PREFIX_HEAD_BYTES);
    td_cursor_read_bytes(&c, magic, sizeof magic);
    if (memcmp(magic, MAGIC, sizeof magic) != 0)
        return td_cursor_fail(&c, "no file of a prefix cache");
    td_cursor_read_u32(&c, &version);
    td_cursor_read_u32(&c, &n_head);
    if (version != VERSION || n_head != TD_PREFIX_HEAD_BYTES)
        return td_cursor_fail(&c, "version %u, head of %u bytes; known: %u, %u", version, n_head,
                              VERSION, TD_PREFIX_HEAD_BYTES);
    td_cursor tail = td_cursor_begin("head", (const uint8_t *)bytes + CRC_AT, 4, err);
    td_cursor_read_u32(&tail, &crc);
    if (crc != td_crc32c(0, bytes, CRC_AT))
        return td_cursor_fail(&c, "the head's checksum is wrong");
    td_cursor_read_bytes(&c, h->name, sizeof h->name);
    td_cursor_read_bytes(&c, h->before, sizeof h->before);
    td_cursor_read_u64(&c, &h->n_bytes);
    td_cursor_read_u32(&c, &h->first);
    td_cursor_read_u32(&c, &h->n_tokens);
    td_cursor_read_u32(&c, &h->crc);
    if (!skip_zeros(&c, MODEL_AT) || !read_text(&c, h->model, sizeof h->model) ||
        !read_text(&c, h->what, sizeof h->what) || !skip_zeros(&c, TOKENS_AT))
        return false;
    for (uint32_t i = 0; i < TD_PREFIX_TOKENS_MAX; i++)
        td_cursor_read_u32(&c, &h->tokens[i]);
    for (uint32_t i = h->n_tokens; i < TD_PREFIX_TOKENS_MAX; i++)
        if (h->tokens[i])
            return td_cursor_fail(&c, "a token behind the last; allowed: 0");
    return skip_zeros(&c, CRC_AT) && check_head(&c, h);
}

/* -- names ------------------------------------------------------------------------------------- */

void td_prefix_file_name(const uint8_t name[TD_PREFIX_HASH_BYTES], char out[TD_PREFIX_NAME_BYTES])
{
    char hex[HEX_DIGITS + 1];
    td_sha256_hex(name, hex, HEX_DIGITS);
    snprintf(out, TD_PREFIX_NAME_BYTES, "%s" TD_PREFIX_SUFFIX, hex);
}

bool td_prefix_file_is_name(const char *name)
{
    return strspn(name, "0123456789abcdef") == HEX_DIGITS &&
           !strcmp(name + HEX_DIGITS, TD_PREFIX_SUFFIX);
}

/* -- files ------------------------------------------------------------------------------------- */

static bool read_all(int fd, void *bytes, uint64_t n_bytes, td_err *err)
{
    for (uint64_t at = 0; at < n_bytes;) {
        ssize_t n = td_io_read(fd, (uint8_t *)bytes + at, (size_t)(n_bytes - at));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return td_err_set(err, TD_E_IO, "%s", strerror(errno));
        if (n == 0)
            return td_err_set(err, TD_E_DATA, "it became shorter while it was read");
        at += (uint64_t)n;
    }
    return true;
}

/* Nothing is followed, nor waited for as a pipe would be. */
static int open_file(int folder, const char *name, uint64_t *n_bytes, bool *is_there, td_err *err)
{
    struct stat st;
    int fd = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    *is_there = fd >= 0 || errno != ENOENT;
    if (fd < 0) {
        if (*is_there)
            td_err_set(err, errno == ELOOP ? TD_E_DATA : TD_E_IO, "%s",
                       errno == ELOOP ? "a link, which is not followed" : strerror(errno));
        return -1;
    }
    const char *why = fstat(fd, &st) != 0                ? strerror(errno)
                      : !S_ISREG(st.st_mode)             ? "no regular file"
                      : st.st_uid != geteuid()           ? "another user's file"
                      : st.st_mode & (S_IWGRP | S_IWOTH) ? "others may write to it"
                                                         : NULL;
    if (!why) {
        *n_bytes = (uint64_t)st.st_size;
        return fd;
    }
    td_err_set(err, TD_E_DATA, "%s", why);
    close(fd);
    return -1;
}

static bool read_head(int fd, const char *name, uint64_t n_file, td_prefix_head *head, td_err *err)
{
    uint8_t bytes[TD_PREFIX_HEAD_BYTES];
    char own[TD_PREFIX_NAME_BYTES];
    if (n_file < sizeof bytes)
        return td_err_set(err, TD_E_DATA, "%llu bytes; allowed: %u and more",
                          (unsigned long long)n_file, TD_PREFIX_HEAD_BYTES);
    if (!read_all(fd, bytes, sizeof bytes, err) ||
        !td_prefix_head_decode(bytes, sizeof bytes, head, err))
        return false;
    if (n_file - sizeof bytes != head->n_bytes)
        return td_err_set(err, TD_E_DATA, "%llu bytes behind its head; as that says: %llu",
                          (unsigned long long)(n_file - sizeof bytes),
                          (unsigned long long)head->n_bytes);
    td_prefix_file_name(head->name, own);
    return !strcmp(own, name) || td_err_set(err, TD_E_DATA, "it is called %.16s... inside", own);
}

static bool check_bytes(int fd, const td_prefix_head *head, void *bytes, td_err *err)
{
    uint8_t piece[PIECE_BYTES];
    uint32_t crc = 0;
    for (uint64_t at = 0; at < head->n_bytes; at += PIECE_BYTES) {
        uint64_t left = head->n_bytes - at, n = left < PIECE_BYTES ? left : PIECE_BYTES;
        uint8_t *to = bytes ? (uint8_t *)bytes + at : piece;
        if (!read_all(fd, to, n, err))
            return false;
        crc = td_crc32c(crc, to, (size_t)n);
    }
    return crc == head->crc || td_err_set(err, TD_E_DATA, "the checksum of its bytes is wrong");
}

bool td_prefix_file_read(int folder, const char *name, td_prefix_head *head, void *bytes,
                         uint64_t capacity, bool *is_there, td_err *err)
{
    uint64_t n_file = 0;
    int fd = open_file(folder, name, &n_file, is_there, err);
    if (fd < 0)
        return !*is_there;
    bool is_ok = read_head(fd, name, n_file, head, err);
    if (is_ok && bytes && head->n_bytes > capacity)
        is_ok = td_err_set(err, TD_E_DATA, "a chunk of %llu bytes; allowed: %llu",
                           (unsigned long long)head->n_bytes, (unsigned long long)capacity);
    is_ok = is_ok && check_bytes(fd, head, bytes, err);
    if (is_ok && bytes)
        futimens(fd, NULL); /* used now */
    close(fd);
    return is_ok;
}

bool td_prefix_file_read_head(int folder, const char *name, td_prefix_head *head, td_err *err)
{
    uint64_t n_file = 0;
    bool is_there;
    int fd = open_file(folder, name, &n_file, &is_there, err);
    if (fd < 0)
        return is_there ? false : td_err_set(err, TD_E_IO, "it is not there any more");
    bool is_ok = read_head(fd, name, n_file, head, err);
    close(fd);
    return is_ok;
}

/* No sync: what a crash of the machine leaves half written has a wrong checksum. */
bool td_prefix_file_write(int folder, td_prefix_head *head, const void *bytes, td_err *err)
{
    uint8_t first[TD_PREFIX_HEAD_BYTES];
    uint64_t random = 0; /* processes of other machines may write here too */
    char name[TD_PREFIX_NAME_BYTES], temporary[64];
    head->crc = td_crc32c(0, bytes, head->n_bytes);
    td_prefix_head_encode(head, first);
    td_prefix_file_name(head->name, name);
    if (getrandom(&random, sizeof random, 0) != sizeof random)
        return td_err_set(err, TD_E_IO, "getrandom: %s", strerror(errno));
    snprintf(temporary, sizeof temporary, TD_PREFIX_TEMPORARY "%016llx",
             (unsigned long long)random);
    int fd = openat(folder, temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return td_err_set(err, TD_E_IO, "%s: %s", temporary, strerror(errno));
    bool is_ok = td_io_write_all(fd, name, first, sizeof first, err) &&
                 td_io_write_all(fd, name, bytes, head->n_bytes, err);
    if (close(fd) != 0 && is_ok)
        is_ok = td_err_set(err, TD_E_IO, "%s: %s", name, strerror(errno));
    if (is_ok && renameat(folder, temporary, folder, name) != 0)
        is_ok = td_err_set(err, TD_E_IO, "%s: %s", name, strerror(errno));
    if (!is_ok)
        unlinkat(folder, temporary, 0);
    return is_ok;
}
