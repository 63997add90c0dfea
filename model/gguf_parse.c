/* Parses the metadata and the tensor directory of one GGUF file, trusting nothing in it.
 *
 * All reading goes through a reader whose only primitive is need(n): are n more bytes there? It
 * loads the file in growing steps, since the length of the metadata is known only when it ends, and
 * it never asks for memory before the file has shown that it has the bytes. Counts are compared
 * with the bytes that so many entries need at least, before anything is allocated by them.
 * The numbered rules (G1..G12, G16) are those of docs/reliability.md. */
#include "model/gguf_parse.h"

#include "base/check.h"
#include "base/rng.h"
#include "base/text.h"
#include "base/utf8.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define HEADER_BYTES      24u /* magic, version, two counts */
#define MIN_ENTRY_BYTES   14u /* key length, one byte of key, type, one byte of value */
#define MIN_TENSOR_BYTES  33u /* name length, one byte, n_dims, one dim, type, offset */
#define FIRST_LOAD_BYTES  (64u << 10)
#define ALIGNMENT_DEFAULT 32u
#define ALIGNMENT_MIN     8u
#define ALIGNMENT_MAX     (1u << 20)

typedef struct {
    td_gguf_shard *shard; /* its bytes and fd */
    uint64_t limit;       /* bytes that may be metadata: of the file, or the named limit */
    uint64_t n_loaded, n_allocated;
    uint64_t pos;
    td_err *err;
} reader;

static const struct {
    const char *name;
    uint32_t n_bytes;
} value_types[TD_GGUF_VALUE_COUNT] = {
    [TD_GGUF_U8] = {"U8", 1},   [TD_GGUF_I8] = {"I8", 1},       [TD_GGUF_U16] = {"U16", 2},
    [TD_GGUF_I16] = {"I16", 2}, [TD_GGUF_U32] = {"U32", 4},     [TD_GGUF_I32] = {"I32", 4},
    [TD_GGUF_F32] = {"F32", 4}, [TD_GGUF_BOOL] = {"BOOL", 1},   [TD_GGUF_STRING] = {"STRING", 0},
    [TD_GGUF_U64] = {"U64", 8}, [TD_GGUF_ARRAY] = {"ARRAY", 0}, [TD_GGUF_I64] = {"I64", 8},
    [TD_GGUF_F64] = {"F64", 8},
};

const char *td_gguf_value_name(uint32_t type)
{
    return type < TD_GGUF_VALUE_COUNT ? value_types[type].name : "?";
}

uint32_t td_gguf_scalar_bytes(uint32_t type)
{
    return type < TD_GGUF_VALUE_COUNT ? value_types[type].n_bytes : 0;
}

/* --- the reader --- */

/* Makes the bytes before `end` (<= limit) present. */
static bool load(reader *c, uint64_t end)
{
    td_gguf_shard *s = c->shard;
    if (end > c->n_allocated) {
        uint64_t n = c->n_allocated ? 2 * c->n_allocated : FIRST_LOAD_BYTES;
        n = n < end ? end : n;
        n = n > c->limit ? c->limit : n;
        uint8_t *grown = td_realloc(s->bytes, c->n_loaded, n + 1, 1, c->err);
        if (!grown)
            return false;
        s->bytes = grown;
        c->n_allocated = n;
    }
    while (c->n_loaded < end) {
        ssize_t n =
            pread(s->fd, s->bytes + c->n_loaded, c->n_allocated - c->n_loaded, (off_t)c->n_loaded);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return td_err_set(c->err, TD_E_IO, "reading at byte %" PRIu64 ": %s", c->n_loaded,
                              strerror(errno));
        if (n == 0)
            return td_err_set(c->err, TD_E_IO,
                              "the file ended at byte %" PRIu64 ", but had %" PRIu64
                              " bytes when it was opened",
                              c->n_loaded, s->n_file_bytes);
        c->n_loaded += (uint64_t)n;
    }
    return true;
}

static uint64_t left(const reader *c) { return c->limit - c->pos; }

static bool need(reader *c, uint64_t n, const char *what)
{
    if (n <= left(c))
        return c->pos + n <= c->n_loaded || load(c, c->pos + n);
    if (c->limit < c->shard->n_file_bytes)
        return td_err_set(c->err, TD_E_DATA,
                          "%s at byte %" PRIu64 " has %" PRIu64
                          " bytes: the metadata may have at most %u in all",
                          what, c->pos, n, TD_GGUF_MAX_METADATA);
    return td_err_set(c->err, TD_E_DATA,
                      "%s at byte %" PRIu64 " needs %" PRIu64
                      " bytes, but the file has only %" PRIu64 " left; is it truncated?",
                      what, c->pos, n, left(c));
}

static uint64_t load_uint(const uint8_t *p, uint32_t n_bytes)
{
    uint64_t v = 0;
    for (uint32_t i = 0; i < n_bytes; i++)
        v |= (uint64_t)p[i] << 8 * i;
    return v;
}

static bool read_u32(reader *c, uint32_t *out, const char *what)
{
    if (!need(c, 4, what))
        return false;
    *out = (uint32_t)load_uint(c->shard->bytes + c->pos, 4);
    c->pos += 4;
    return true;
}

static bool read_u64(reader *c, uint64_t *out, const char *what)
{
    if (!need(c, 8, what))
        return false;
    *out = load_uint(c->shard->bytes + c->pos, 8);
    c->pos += 8;
    return true;
}

/* A length and so many bytes (G1); *at is the offset of the first. */
static bool read_string(reader *c, uint64_t max, uint32_t *at, uint32_t *n_bytes, const char *what)
{
    uint64_t n;
    if (!read_u64(c, &n, what))
        return false;
    if (n > left(c))
        return need(c, n, what);
    if (n > max)
        return td_err_set(c->err, TD_E_DATA,
                          "%s at byte %" PRIu64 " has %" PRIu64 " bytes; at most %" PRIu64
                          " are allowed",
                          what, c->pos, n, max);
    if (!need(c, n, what))
        return false;
    *at = (uint32_t)c->pos;
    *n_bytes = (uint32_t)n;
    c->pos += n;
    return true;
}

/* A key or a tensor name: not empty, UTF-8, no control characters. */
static bool read_name(reader *c, uint64_t max, uint32_t *at, uint32_t *n_bytes, const char *what)
{
    if (!read_string(c, max, at, n_bytes, what))
        return false;
    if (*n_bytes == 0)
        return td_err_set(c->err, TD_E_DATA, "%s at byte %" PRIu64 " is empty", what, c->pos - 8);
    const char *p = (const char *)c->shard->bytes + *at;
    for (uint32_t i = 0, n; i < *n_bytes; i += n) {
        uint32_t code;
        n = (uint32_t)td_utf8_next(p + i, *n_bytes - i, &code);
        if (code == TD_UTF8_BAD || code == TD_UTF8_CUT || code < 0x20 ||
            (code >= 0x7f && code < 0xa0))
            return td_err_set(c->err, TD_E_DATA,
                              "%s at byte %u, %s, must be UTF-8 without control characters, but "
                              "its byte %u is 0x%02x",
                              what, *at, td_text_quote(p, *n_bytes).text, i, (uint8_t)p[i]);
    }
    return true;
}

/* --- metadata --- */

/* Puts "key "x": " before the message. Always false. */
static bool blame_key(reader *c, const td_gguf_entry *e)
{
    const char *key = (const char *)c->shard->bytes + e->key;
    return td_err_prepend(c->err, "key %s", td_text_quote(key, e->n_key).text);
}

static bool check_bools(reader *c, const td_gguf_entry *e)
{
    const uint8_t *p = c->shard->bytes + e->value;
    for (uint32_t i = 0; i < e->n; i++)
        if (p[i] > 1)
            return td_err_set(c->err, TD_E_DATA, "a BOOL at byte %u is %u; 0 and 1 are allowed",
                              e->value + i, p[i]);
    return true;
}

static bool read_string_array(reader *c, td_gguf_entry *e, td_arena *arena)
{
    e->strings = td_arena_alloc(arena, 1, sizeof *e->strings, c->err);
    if (!e->strings)
        return false;
    e->strings->starts = td_arena_alloc(arena, (size_t)e->n + 1, sizeof(uint32_t), c->err);
    if (!e->strings->starts)
        return false;
    for (uint32_t i = 0; i < e->n; i++) {
        uint32_t n_bytes;
        if (!read_string(c, TD_GGUF_MAX_STRING, &e->strings->starts[i], &n_bytes, "a string"))
            return td_err_prepend(c->err, "element %u", i);
    }
    e->strings->starts[e->n] = (uint32_t)c->pos + 8;
    return true;
}

static bool read_array(reader *c, td_gguf_entry *e, td_arena *arena)
{
    uint32_t element;
    uint64_t n;
    if (!read_u32(c, &element, "an array's element type") || !read_u64(c, &n, "an array's length"))
        return false;
    if (element >= TD_GGUF_VALUE_COUNT || element == TD_GGUF_ARRAY) /* G12: no nesting */
        return td_err_set(c->err, TD_E_DATA,
                          "an array of element type %u (%s); 0..12 but 9 are allowed", element,
                          td_gguf_value_name(element));
    uint32_t n_min = element == TD_GGUF_STRING ? 8 : td_gguf_scalar_bytes(element);
    if (n > left(c) / n_min) /* G2 */
        return td_err_set(c->err, TD_E_DATA,
                          "an array of %" PRIu64 " %s needs more than the %" PRIu64
                          " bytes that are left",
                          n, td_gguf_value_name(element), left(c));
    if (n > TD_GGUF_MAX_ARRAY)
        return td_err_set(c->err, TD_E_DATA,
                          "an array of %" PRIu64 " elements; at most %u are allowed", n,
                          TD_GGUF_MAX_ARRAY);
    e->element = (td_gguf_value_type)element;
    e->n = (uint32_t)n;
    e->value = (uint32_t)c->pos;
    if (element == TD_GGUF_STRING)
        return read_string_array(c, e, arena);
    if (!need(c, n * n_min, "an array"))
        return false;
    c->pos += n * n_min;
    return element != TD_GGUF_BOOL || check_bools(c, e);
}

static bool read_value(reader *c, td_gguf_entry *e, td_arena *arena)
{
    uint32_t type;
    if (!read_u32(c, &type, "a value type"))
        return false;
    if (type >= TD_GGUF_VALUE_COUNT)
        return td_err_set(c->err, TD_E_DATA, "value type %u at byte %" PRIu64 "; 0..%d are allowed",
                          type, c->pos - 4, TD_GGUF_VALUE_COUNT - 1);
    e->type = (td_gguf_value_type)type;
    if (type == TD_GGUF_ARRAY)
        return read_array(c, e, arena);
    if (type == TD_GGUF_STRING)
        return read_string(c, TD_GGUF_MAX_STRING, &e->value, &e->n, "a string");
    uint32_t n_bytes = td_gguf_scalar_bytes(type);
    if (!need(c, n_bytes, "a value"))
        return false;
    e->n = 1;
    e->value = (uint32_t)c->pos;
    c->pos += n_bytes;
    return type != TD_GGUF_BOOL || check_bools(c, e);
}

static bool read_entries(reader *c, td_arena *arena)
{
    td_gguf_shard *s = c->shard;
    s->entries = td_arena_alloc(arena, s->n_entries, sizeof *s->entries, c->err);
    if (!s->entries)
        return false;
    for (uint32_t i = 0; i < s->n_entries; i++) {
        td_gguf_entry *e = &s->entries[i];
        if (!read_name(c, TD_GGUF_MAX_KEY, &e->key, &e->n_key, "a key") ||
            (!read_value(c, e, arena) && !blame_key(c, e)))
            return td_err_prepend(c->err, "metadata entry %u of %u", i + 1, s->n_entries);
    }
    return true;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const td_gguf_name *)a)->name, ((const td_gguf_name *)b)->name);
}

bool td_gguf_sort_names(td_gguf_name *names, uint32_t n, const char *what, td_err *err)
{
    qsort(names, n, sizeof *names, compare_names);
    for (uint32_t i = 1; i < n; i++)
        if (strcmp(names[i - 1].name, names[i].name) == 0)
            return td_err_set(err, TD_E_DATA, "%s %s is there twice", what,
                              td_text_quote(names[i].name, strlen(names[i].name)).text);
    return true;
}

uint32_t td_gguf_find_name(const td_gguf_name *names, uint32_t n, const char *name)
{
    const td_gguf_name wanted = {name, 0};
    const td_gguf_name *found = n ? bsearch(&wanted, names, n, sizeof wanted, compare_names) : NULL;
    return found ? found->i : UINT32_MAX;
}

bool td_gguf_load_int(td_gguf_value_type type, const uint8_t *p, uint64_t *out, bool *negative)
{
    uint32_t n_bytes = td_gguf_scalar_bytes(type);
    bool is_signed = false;
    switch (type) {
    case TD_GGUF_I8:
    case TD_GGUF_I16:
    case TD_GGUF_I32:
    case TD_GGUF_I64:
        is_signed = true;
        break;
    case TD_GGUF_U8:
    case TD_GGUF_U16:
    case TD_GGUF_U32:
    case TD_GGUF_U64:
        break;
    default:
        return false;
    }
    *out = load_uint(p, n_bytes);
    *negative = is_signed && p[n_bytes - 1] & 0x80;
    if (*negative && n_bytes < 8)
        *out |= ~0ull << 8 * n_bytes;
    return true;
}

bool td_gguf_shard_uint(const td_gguf_shard *shard, const char *key, uint64_t fallback,
                        uint64_t *out, td_err *err)
{
    uint32_t i = td_gguf_find_name(shard->keys, shard->n_entries, key);
    *out = fallback;
    if (i == UINT32_MAX)
        return true;
    const td_gguf_entry *e = &shard->entries[i];
    bool negative;
    if (!td_gguf_load_int(e->type, shard->bytes + e->value, out, &negative))
        return td_err_set(err, TD_E_DATA, "key '%s' is of type %s; an integer is needed", key,
                          td_gguf_value_name(e->type));
    if (negative)
        return td_err_set(err, TD_E_DATA, "key '%s' is %" PRId64 "; it must not be negative", key,
                          (int64_t)*out);
    return true;
}

static bool find_alignment(td_gguf_shard *s, td_err *err) /* G9 */
{
    uint32_t i = td_gguf_find_name(s->keys, s->n_entries, "general.alignment");
    s->alignment = ALIGNMENT_DEFAULT;
    if (i == UINT32_MAX)
        return true;
    if (s->entries[i].type != TD_GGUF_U32)
        return td_err_set(err, TD_E_DATA, "general.alignment is of type %s; U32 is needed",
                          td_gguf_value_name(s->entries[i].type));
    uint32_t a = (uint32_t)load_uint(s->bytes + s->entries[i].value, 4);
    if (a < ALIGNMENT_MIN || a > ALIGNMENT_MAX || (a & (a - 1)))
        return td_err_set(err, TD_E_DATA,
                          "general.alignment is %u; powers of two from %u to %u are allowed", a,
                          ALIGNMENT_MIN, ALIGNMENT_MAX);
    s->alignment = a;
    return true;
}

/* --- the tensor directory --- */

/* Elements and bytes from dims and type (G3, G8). */
static bool measure_tensor(td_gguf_tensor *t, const td_type_format *format, td_err *err)
{
    uint64_t n = 1;
    for (uint32_t d = 0; d < t->n_dims; d++) {
        if (t->ne[d] == 0 || t->ne[d] > TD_GGUF_MAX_DIM)
            return td_err_set(err, TD_E_DATA, "dimension %u is %" PRIu64 "; 1..%llu are allowed", d,
                              t->ne[d], TD_GGUF_MAX_DIM);
        if (!td_mul_u64(n, t->ne[d], &n))
            return td_err_set(err, TD_E_DATA, "the product of its dimensions overflows");
    }
    if (t->ne[0] % format->block_elements)
        return td_err_set(err, TD_E_DATA,
                          "dimension 0 is %" PRIu64 "; %s needs a multiple of its block, %u",
                          t->ne[0], format->name, format->block_elements);
    if (!td_mul_u64(n / format->block_elements, format->block_bytes, &t->n_bytes) ||
        t->n_bytes > TD_GGUF_MAX_TENSOR)
        return td_err_set(err, TD_E_DATA, "%" PRIu64 " elements of %s are more than %llu bytes", n,
                          format->name, TD_GGUF_MAX_TENSOR);
    return true;
}

static bool read_tensor(reader *c, td_gguf_tensor *t)
{
    if (!read_u32(c, &t->n_dims, "a number of dimensions"))
        return false;
    if (t->n_dims < 1 || t->n_dims > 4)
        return td_err_set(c->err, TD_E_DATA, "%u dimensions; 1..4 are allowed", t->n_dims);
    t->ne[0] = t->ne[1] = t->ne[2] = t->ne[3] = 1;
    for (uint32_t d = 0; d < t->n_dims; d++)
        if (!read_u64(c, &t->ne[d], "a dimension"))
            return false;
    if (!read_u32(c, &t->type_id, "a tensor type") || !read_u64(c, &t->offset, "a tensor offset"))
        return false;
    const td_type_format *format = td_type_find_format(t->type_id);
    if (!format) /* G11 */
        return td_err_set(c->err, TD_E_DATA,
                          "tensor type %u is not one of the format; tandem computes with %s",
                          t->type_id, td_type_names());
    t->type = td_type_find(t->type_id);
    return measure_tensor(t, format, c->err);
}

/* name_at[i] and n_name[i] are where the name of tensor i lies, for complete_block. */
static bool read_directory(reader *c, td_arena *arena, uint32_t *name_at, uint32_t *n_name)
{
    td_gguf_shard *s = c->shard;
    s->tensors = td_arena_alloc(arena, s->n_tensors, sizeof *s->tensors, c->err);
    if (!s->tensors)
        return false;
    for (uint32_t i = 0; i < s->n_tensors; i++) {
        if (!read_name(c, TD_GGUF_MAX_NAME, &name_at[i], &n_name[i], "a tensor name"))
            return td_err_prepend(c->err, "tensor %u of %u", i + 1, s->n_tensors);
        if (!read_tensor(c, &s->tensors[i]))
            return td_err_prepend(
                c->err, "tensor %s",
                td_text_quote((const char *)s->bytes + name_at[i], n_name[i]).text);
    }
    return true;
}

/* All is read: gives back what was loaded beyond the metadata, hashes it as the file has it, then
 * puts the 0 after every string and takes pointers. */
static bool complete_block(reader *c, td_arena *arena, const uint32_t *name_at,
                           const uint32_t *n_name)
{
    td_gguf_shard *s = c->shard;
    uint8_t *trimmed = td_realloc(s->bytes, c->pos, c->pos + 1, 1, c->err);
    if (!trimmed)
        return false;
    s->bytes = trimmed;
    s->n_bytes = (uint32_t)c->pos;
    s->hash = td_hash64(s->n_file_bytes, s->bytes, s->n_bytes);
    s->keys = td_arena_alloc(arena, s->n_entries, sizeof *s->keys, c->err);
    if (!s->keys)
        return false;
    for (uint32_t i = 0; i < s->n_entries; i++) {
        td_gguf_entry *e = &s->entries[i];
        s->bytes[e->key + e->n_key] = 0;
        s->keys[i] = (td_gguf_name){(const char *)s->bytes + e->key, i};
        if (e->type == TD_GGUF_STRING)
            s->bytes[e->value + e->n] = 0;
        if (!e->strings)
            continue;
        e->strings->base = (const char *)s->bytes;
        for (uint32_t k = 1; k <= e->n; k++)
            s->bytes[e->strings->starts[k] - 8] = 0;
    }
    for (uint32_t i = 0; i < s->n_tensors; i++) {
        s->bytes[name_at[i] + n_name[i]] = 0;
        s->tensors[i].name = (const char *)s->bytes + name_at[i];
    }
    return true;
}

static int compare_offsets(const void *a, const void *b)
{
    const td_gguf_tensor *x = *(const td_gguf_tensor *const *)a;
    const td_gguf_tensor *y = *(const td_gguf_tensor *const *)b;
    return (x->offset > y->offset) - (x->offset < y->offset);
}

/* Makes offsets absolute; every tensor lies in the file, aligned, apart from the others (G10). */
static bool place_tensors(td_gguf_shard *s, td_arena *arena, td_err *err)
{
    uint64_t start;
    if (!td_pad_u64(s->n_bytes, s->alignment, &start)) /* G7 */
        return td_err_set(err, TD_E_DATA, "the start of the tensor data overflows");
    td_gguf_tensor **by_offset = td_arena_alloc(arena, s->n_tensors, sizeof *by_offset, err);
    if (!by_offset)
        return false;
    for (uint32_t i = 0; i < s->n_tensors; i++) {
        td_gguf_tensor *t = by_offset[i] = &s->tensors[i];
        uint64_t end;
        if (t->offset % s->alignment)
            return td_err_set(err, TD_E_DATA,
                              "tensor '%s': offset %" PRIu64 " is no multiple of the alignment, %u",
                              t->name, t->offset, s->alignment);
        if (!td_add_u64(start, t->offset, &t->offset) || !td_add_u64(t->offset, t->n_bytes, &end) ||
            end > s->n_file_bytes)
            return td_err_set(err, TD_E_DATA,
                              "tensor '%s': %" PRIu64 " bytes at byte %" PRIu64
                              " reach beyond the end of the file, %" PRIu64 "; is it truncated?",
                              t->name, t->n_bytes, t->offset, s->n_file_bytes);
    }
    qsort(by_offset, s->n_tensors, sizeof(td_gguf_tensor *), compare_offsets);
    for (uint32_t i = 1; i < s->n_tensors; i++)
        if (by_offset[i]->offset < by_offset[i - 1]->offset + by_offset[i - 1]->n_bytes)
            return td_err_set(err, TD_E_DATA,
                              "tensor '%s' at byte %" PRIu64 " overlaps tensor '%s' (%" PRIu64
                              " bytes at byte %" PRIu64 ")",
                              by_offset[i]->name, by_offset[i]->offset, by_offset[i - 1]->name,
                              by_offset[i - 1]->n_bytes, by_offset[i - 1]->offset);
    return true;
}

/* --- the file --- */

static bool open_file(td_gguf_shard *s, td_err *err)
{
    struct stat st;
    s->fd = open(s->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not block here */
    if (s->fd < 0)
        return td_err_set(err, TD_E_IO, "cannot be opened: %s", strerror(errno));
    if (fstat(s->fd, &st) != 0)
        return td_err_set(err, TD_E_IO, "fstat: %s", strerror(errno));
    if (!S_ISREG(st.st_mode))
        return td_err_set(err, TD_E_DATA, "is %s; a regular file is needed",
                          S_ISDIR(st.st_mode)    ? "a directory"
                          : S_ISFIFO(st.st_mode) ? "a FIFO"
                                                 : "a device or socket");
    s->n_file_bytes = (uint64_t)st.st_size;
    if (s->n_file_bytes < HEADER_BYTES)
        return td_err_set(err, TD_E_DATA, "%" PRIu64 " bytes are too few for a GGUF file",
                          s->n_file_bytes);
    return true;
}

static bool check_count(const reader *c, const char *what, uint64_t n, uint64_t max, uint32_t each)
{
    if (n > max || n > left(c) / each) /* G4 */
        return td_err_set(c->err, TD_E_DATA,
                          "%" PRIu64 " %s: at most %" PRIu64 " are allowed, of at least %u bytes "
                          "each, and %" PRIu64 " bytes are left",
                          n, what, max, each, left(c));
    return true;
}

static bool read_header(reader *c)
{
    uint32_t version;
    uint64_t n_tensors, n_entries;
    if (!need(c, HEADER_BYTES, "the header"))
        return false;
    const uint8_t *p = c->shard->bytes;
    if (memcmp(p, "GGUF", 4) != 0)
        return td_err_set(c->err, TD_E_DATA,
                          "is no GGUF file: it begins with %02x %02x %02x %02x, not with 'GGUF'",
                          p[0], p[1], p[2], p[3]);
    c->pos = 4;
    if (!read_u32(c, &version, "the version") || !read_u64(c, &n_tensors, "the header") ||
        !read_u64(c, &n_entries, "the header"))
        return false;
    if (version != 2 && version != 3)
        return td_err_set(c->err, TD_E_DATA, "GGUF version %u; 2 and 3 are read%s", version,
                          version && (version & 0xffff) == 0 ? " (this is a big-endian file)" : "");
    if (!check_count(c, "metadata entries", n_entries, TD_GGUF_MAX_KEYS, MIN_ENTRY_BYTES) ||
        !check_count(c, "tensors", n_tensors, TD_GGUF_MAX_TENSORS, MIN_TENSOR_BYTES))
        return false;
    c->shard->version = version;
    c->shard->n_entries = (uint32_t)n_entries;
    c->shard->n_tensors = (uint32_t)n_tensors;
    return true;
}

static bool parse_block(reader *c, td_arena *arena)
{
    td_gguf_shard *s = c->shard;
    if (!read_header(c) || !read_entries(c, arena))
        return false;
    uint32_t *name_at = td_alloc(s->n_tensors, sizeof *name_at, c->err);
    uint32_t *n_name = name_at ? td_alloc(s->n_tensors, sizeof *n_name, c->err) : NULL;
    bool is_ok = n_name && read_directory(c, arena, name_at, n_name) &&
                 complete_block(c, arena, name_at, n_name);
    td_free(n_name);
    td_free(name_at);
    return is_ok;
}

bool td_gguf_parse_shard(td_gguf_shard *shard, td_arena *arena, td_err *err)
{
    if (!open_file(shard, err))
        return false;
    reader c = {.shard = shard, .err = err, .limit = shard->n_file_bytes};
    if (c.limit > TD_GGUF_MAX_METADATA)
        c.limit = TD_GGUF_MAX_METADATA;
    return parse_block(&c, arena) &&
           td_gguf_sort_names(shard->keys, shard->n_entries, "key", err) &&
           find_alignment(shard, err) && place_tensors(shard, arena, err);
}

void td_gguf_close_shard(td_gguf_shard *shard)
{
    if (shard->fd >= 0)
        close(shard->fd);
    td_free(shard->bytes);
    td_free(shard->path);
    *shard = (td_gguf_shard){.fd = -1};
}
