#include "base/cursor.h"

#include "base/check.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

td_cursor td_cursor_begin(const char *name, const void *bytes, uint64_t n_bytes, td_err *err)
{
    return (td_cursor){.name = name, .bytes = bytes, .n_bytes = n_bytes, .err = err};
}

bool td_cursor_has(const td_cursor *c, uint64_t n)
{
    return !c->failed && n <= c->n_bytes - c->pos;
}

uint64_t td_cursor_left(const td_cursor *c) { return c->n_bytes - c->pos; }

bool td_cursor_fail(td_cursor *c, const char *format, ...)
{
    if (c->failed)
        return false;
    c->failed = true;
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return td_err_set(c->err, TD_E_DATA, "%s: byte %llu: %s", c->name, (unsigned long long)c->pos,
                      text);
}

const uint8_t *td_cursor_take(td_cursor *c, uint64_t n)
{
    if (!td_cursor_has(c, n)) {
        td_cursor_fail(c, "ends too early: %llu bytes wanted, %llu left", (unsigned long long)n,
                       (unsigned long long)td_cursor_left(c));
        return NULL;
    }
    /* A static byte stands for the address of nothing, so that NULL always means failure. */
    static const uint8_t nothing;
    const uint8_t *p = c->bytes ? c->bytes + c->pos : &nothing;
    c->pos += n;
    return p;
}

/* The next n <= 8 bytes as a little-endian number, 0 on failure. */
static uint64_t read_number(td_cursor *c, unsigned n)
{
    const uint8_t *p = td_cursor_take(c, n);
    uint64_t value = 0;
    for (unsigned i = 0; p && i < n; i++)
        value |= (uint64_t)p[i] << (8 * i);
    return value;
}

bool td_cursor_read_u8(td_cursor *c, uint8_t *out)
{
    *out = (uint8_t)read_number(c, 1);
    return !c->failed;
}

bool td_cursor_read_u16(td_cursor *c, uint16_t *out)
{
    *out = (uint16_t)read_number(c, 2);
    return !c->failed;
}

bool td_cursor_read_u32(td_cursor *c, uint32_t *out)
{
    *out = (uint32_t)read_number(c, 4);
    return !c->failed;
}

bool td_cursor_read_u64(td_cursor *c, uint64_t *out)
{
    *out = read_number(c, 8);
    return !c->failed;
}

bool td_cursor_read_f32(td_cursor *c, float *out)
{
    uint32_t bits = (uint32_t)read_number(c, 4);
    memcpy(out, &bits, sizeof bits);
    return !c->failed;
}

bool td_cursor_read_bytes(td_cursor *c, void *out, uint64_t n)
{
    const uint8_t *p = td_cursor_take(c, n);
    if (!p)
        return false;
    if (n > 0)
        memcpy(out, p, n);
    return true;
}

bool td_cursor_skip(td_cursor *c, uint64_t n) { return td_cursor_take(c, n) != NULL; }

bool td_cursor_align(td_cursor *c, uint64_t alignment)
{
    TD_ASSERT(alignment > 0 && (alignment & (alignment - 1)) == 0);
    uint64_t over = c->pos & (alignment - 1);
    return td_cursor_skip(c, over ? alignment - over : 0);
}

td_cursor_out td_cursor_out_begin(const char *name, void *bytes, uint64_t capacity_bytes,
                                  td_err *err)
{
    return (td_cursor_out){
        .name = name, .bytes = bytes, .capacity_bytes = capacity_bytes, .err = err};
}

/* Room for n more bytes, which count as written; NULL when there is none. */
static uint8_t *give(td_cursor_out *c, uint64_t n)
{
    if (c->failed)
        return NULL;
    if (n > c->capacity_bytes - c->pos) {
        c->failed = true;
        td_err_set(c->err, TD_E_BUG, "%s: byte %llu: no room to write %llu bytes in %llu", c->name,
                   (unsigned long long)c->pos, (unsigned long long)n,
                   (unsigned long long)c->capacity_bytes);
        return NULL;
    }
    uint8_t *p = c->bytes + c->pos;
    c->pos += n;
    return p;
}

static bool write_number(td_cursor_out *c, uint64_t value, unsigned n)
{
    uint8_t *p = give(c, n);
    for (unsigned i = 0; p && i < n; i++)
        p[i] = (uint8_t)(value >> (8 * i));
    return p != NULL;
}

bool td_cursor_write_u8(td_cursor_out *c, uint8_t value) { return write_number(c, value, 1); }
bool td_cursor_write_u16(td_cursor_out *c, uint16_t value) { return write_number(c, value, 2); }
bool td_cursor_write_u32(td_cursor_out *c, uint32_t value) { return write_number(c, value, 4); }
bool td_cursor_write_u64(td_cursor_out *c, uint64_t value) { return write_number(c, value, 8); }

bool td_cursor_write_f32(td_cursor_out *c, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return write_number(c, bits, 4);
}

bool td_cursor_write_bytes(td_cursor_out *c, const void *bytes, uint64_t n)
{
    if (n == 0)
        return !c->failed;
    uint8_t *p = give(c, n);
    if (p)
        memcpy(p, bytes, n);
    return p != NULL;
}
