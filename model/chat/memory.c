/* Memory, limits and errors of a rendering.
 *
 * Memory is handed out front to back and freed as one, so that no value has an owner. What the
 * limits count is meant to bound time and space whatever a template does: a step for every node
 * that is evaluated, and one more for each 64 bytes that an operation moves or looks at. */
#include "model/chat/render.h"
#include "model/chat/text.h"

#include "base/utf8.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define PIECE_BYTES 65536u

void *jinja_alloc(jinja_render *r, size_t n, size_t size)
{
    jinja_memory *m = &r->memory;
    size_t n_bytes;
    if (__builtin_mul_overflow(n, size, &n_bytes) || n_bytes > TD_JINJA_MEMORY_MAX ||
        m->n_used + n_bytes > TD_JINJA_MEMORY_MAX) {
        jinja_fail(r, "more than %u bytes are needed; allowed: %u", TD_JINJA_MEMORY_MAX,
                   TD_JINJA_MEMORY_MAX);
        return NULL;
    }
    n_bytes = (n_bytes + 15) & ~(size_t)15;
    m->n_used += n_bytes;
    if (n_bytes > PIECE_BYTES / 4)
        return td_arena_alloc(m->arena, n_bytes, 1, r->err);
    if (n_bytes > m->n_left) {
        m->at = td_arena_alloc(m->arena, PIECE_BYTES, 1, r->err);
        m->n_left = m->at ? PIECE_BYTES : 0;
        if (!m->at)
            return NULL;
    }
    void *p = m->at;
    m->at += n_bytes;
    m->n_left -= n_bytes;
    return p;
}

bool jinja_fail(jinja_render *r, const char *format, ...)
{
    char message[TD_ERR_MESSAGE_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return td_err_set(r->err, TD_E_DATA, "chat template line %u, column %u: %s", r->line, r->column,
                      message);
}

bool jinja_charge(jinja_render *r, uint64_t n_steps)
{
    r->n_steps += n_steps;
    if (r->n_steps > r->n_steps_max)
        return jinja_fail(r, "more than %llu steps of work; allowed: %llu",
                          (unsigned long long)r->n_steps_max, (unsigned long long)r->n_steps_max);
    return true;
}

bool jinja_enter(jinja_render *r)
{
    if (r->depth >= TD_JINJA_DEPTH_MAX)
        return jinja_fail(r, "expressions, blocks and calls more than %u deep; allowed: %u",
                          TD_JINJA_DEPTH_MAX, TD_JINJA_DEPTH_MAX);
    r->depth++;
    return true;
}

void jinja_leave(jinja_render *r) { r->depth--; }

/* -- buffers ----------------------------------------------------------------------------------- */

jinja_buffer *jinja_buffer_create(jinja_render *r)
{
    return jinja_alloc(r, 1, sizeof(jinja_buffer));
}

/* Makes room for n bytes; what was there is copied, and left to texts that borrow it. */
static bool reserve(jinja_render *r, jinja_buffer *b, size_t n)
{
    if (n > TD_JINJA_TEXT_MAX || b->n + n > TD_JINJA_TEXT_MAX)
        return jinja_fail(r, "a text of %zu bytes; allowed: %u", b->n + n, TD_JINJA_TEXT_MAX);
    if (b->n + n <= b->capacity)
        return true;
    size_t capacity = 2 * b->n + n + 32;
    char *bytes = jinja_alloc(r, 2, capacity);
    if (!bytes || !jinja_charge(r, b->n / 64))
        return false;
    if (b->n > 0) {
        memcpy(bytes, b->bytes, b->n);
        memcpy(bytes + capacity, b->marks, b->n);
    }
    b->bytes = bytes;
    b->marks = (uint8_t *)bytes + capacity;
    b->capacity = capacity;
    return true;
}

bool jinja_append(jinja_render *r, jinja_buffer *b, const char *bytes, size_t n, bool is_message)
{
    if (!reserve(r, b, n) || !jinja_charge(r, n / 64))
        return false;
    if (n > 0) {
        memcpy(b->bytes + b->n, bytes, n);
        memset(b->marks + b->n, is_message, n);
    }
    b->n += n;
    return true;
}

bool jinja_append_part(jinja_render *r, jinja_buffer *b, const jinja_text *t, size_t from, size_t n)
{
    size_t at = b->n;
    if (!jinja_append(r, b, t->bytes + from, n, t->is_message))
        return false;
    if (t->marks && n > 0)
        memcpy(b->marks + at, t->marks + from, n);
    return true;
}

bool jinja_append_text(jinja_render *r, jinja_buffer *b, const jinja_text *t)
{
    return jinja_append_part(r, b, t, 0, t->n);
}

bool jinja_append_char(jinja_render *r, jinja_buffer *b, uint32_t codepoint, bool is_message)
{
    char bytes[4];
    return jinja_append(r, b, bytes, td_utf8_encode(codepoint, bytes), is_message);
}

const jinja_text *jinja_buffer_text(jinja_render *r, jinja_buffer *b)
{
    jinja_text *t = jinja_alloc(r, 1, sizeof *t);
    if (t && jinja_charge(r, b->n / 64))
        *t = (jinja_text){.bytes = b->n ? b->bytes : "",
                          .marks = b->n ? b->marks : NULL,
                          .n = b->n,
                          .n_chars = jinja_count_chars(b->bytes, b->n),
                          .tail = b};
    return t;
}

void jinja_buffer_blend(jinja_buffer *b, size_t from)
{
    if (b->n > from && memchr(b->marks + from, 1, b->n - from))
        memset(b->marks + from, 1, b->n - from);
}
