#include "base/json_writer.h"

#include "base/check.h"
#include "base/mem.h"
#include "base/text.h"
#include "base/utf8.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define START_BYTES 1024

typedef struct {
    bool is_object;
    bool is_broken; /* has a line break inside, so its end stands on a line of its own */
    uint32_t n_items;
} level;

struct td_json_writer {
    char *text;
    size_t n_bytes, capacity_bytes;
    bool pretty;
    bool has_key;   /* a key waits for its value */
    bool is_done;   /* the root value is complete */
    td_err failure; /* the first lack of memory; from then on nothing is written */
    uint32_t depth;
    level levels[TD_JSON_WRITER_DEPTH_MAX];
};

td_json_writer *td_json_writer_create(bool pretty, td_err *err)
{
    td_json_writer *w = td_alloc(1, sizeof *w, err);
    if (w)
        w->pretty = pretty;
    return w;
}

void td_json_writer_destroy(td_json_writer **w)
{
    if (!*w)
        return;
    td_free((*w)->text);
    td_free(*w);
    *w = NULL;
}

void td_json_writer_reset(td_json_writer *w)
{
    w->n_bytes = 0;
    w->depth = 0;
    w->has_key = w->is_done = false;
    td_err_clear(&w->failure);
}

/* Room for n more bytes and a terminating 0. */
static bool reserve(td_json_writer *w, size_t n)
{
    if (w->failure.code != TD_OK)
        return false;
    uint64_t wanted;
    if (!td_add_u64(w->n_bytes, n, &wanted) || !td_add_u64(wanted, 1, &wanted))
        return td_err_set(&w->failure, TD_E_NOMEM, "JSON text of %zu + %zu bytes", w->n_bytes, n);
    if (wanted <= w->capacity_bytes)
        return true;
    uint64_t capacity = w->capacity_bytes > START_BYTES / 2 ? 2 * w->capacity_bytes : START_BYTES;
    capacity = capacity < wanted ? wanted : capacity;
    char *grown = td_realloc(w->text, w->n_bytes, capacity, 1, &w->failure);
    if (!grown)
        return false;
    w->text = grown;
    w->capacity_bytes = capacity;
    return true;
}

static void put(td_json_writer *w, const char *bytes, size_t n)
{
    if (n == 0 || !reserve(w, n))
        return;
    memcpy(w->text + w->n_bytes, bytes, n);
    w->n_bytes += n;
}

static void put_line_break(td_json_writer *w)
{
    put(w, "\n", 1);
    for (uint32_t i = 0; i < w->depth; i++)
        put(w, "  ", 2);
}

/* What stands before a key, or before a value that has none: a comma, a line break. Lists of plain
 * values stay on one line even in pretty text; lists of containers do not. */
static void begin_item(td_json_writer *w, bool is_container)
{
    TD_ASSERT(!w->is_done);
    if (w->depth == 0)
        return;
    level *l = &w->levels[w->depth - 1];
    if (l->n_items++ > 0)
        put(w, ",", 1);
    if (w->pretty && (l->is_object || is_container)) {
        l->is_broken = true;
        put_line_break(w);
    } else if (w->pretty && l->n_items > 1) {
        put(w, " ", 1);
    }
}

static void begin_value(td_json_writer *w, bool is_container)
{
    if (w->has_key) {
        w->has_key = false;
        return;
    }
    TD_ASSERT(w->depth == 0 || !w->levels[w->depth - 1].is_object);
    begin_item(w, is_container);
}

static void put_value(td_json_writer *w, const char *text, size_t n)
{
    begin_value(w, false);
    put(w, text, n);
    w->is_done = w->depth == 0;
}

static void begin_container(td_json_writer *w, bool is_object)
{
    begin_value(w, true);
    TD_ASSERT(w->depth < TD_JSON_WRITER_DEPTH_MAX);
    put(w, is_object ? "{" : "[", 1);
    w->levels[w->depth++] = (level){.is_object = is_object};
}

static void end_container(td_json_writer *w, bool is_object)
{
    TD_ASSERT(w->depth > 0 && !w->has_key);
    level l = w->levels[--w->depth];
    TD_ASSERT(l.is_object == is_object);
    if (l.is_broken)
        put_line_break(w);
    put(w, is_object ? "}" : "]", 1);
    w->is_done = w->depth == 0;
}

void td_json_begin_object(td_json_writer *w) { begin_container(w, true); }
void td_json_end_object(td_json_writer *w) { end_container(w, true); }
void td_json_begin_array(td_json_writer *w) { begin_container(w, false); }
void td_json_end_array(td_json_writer *w) { end_container(w, false); }

/* Bytes that stand for themselves in a JSON string. U+2028 and U+2029 need no escape in JSON, and
 * DEL none either. */
static bool is_plain(uint32_t codepoint)
{
    return codepoint >= 0x20 && codepoint <= 0x10ffff && codepoint != '"' && codepoint != '\\';
}

static void put_escaped(td_json_writer *w, uint32_t codepoint)
{
    static const char short_from[] = "\"\\\n\r\t\b\f", short_to[] = "\"\\nrtbf";
    char out[8];
    /* U+0000 too: many readers refuse it, ours (json.h) among them. */
    if (codepoint == TD_UTF8_BAD || codepoint == TD_UTF8_CUT || codepoint == 0) {
        put(w, out, td_utf8_encode(TD_UTF8_REPLACEMENT, out));
        return;
    }
    const char *found = strchr(short_from, (int)codepoint);
    int n = found ? snprintf(out, sizeof out, "\\%c", short_to[found - short_from])
                  : snprintf(out, sizeof out, "\\u%04x", (unsigned)(codepoint & 0xffff));
    put(w, out, (size_t)n);
}

static void put_string(td_json_writer *w, const char *bytes, size_t n_bytes)
{
    put(w, "\"", 1);
    size_t i_run = 0; /* start of the plain bytes not yet put */
    for (size_t i = 0; i < n_bytes;) {
        uint32_t codepoint;
        size_t n = td_utf8_next(bytes + i, n_bytes - i, &codepoint);
        if (!is_plain(codepoint)) {
            put(w, bytes + i_run, i - i_run);
            put_escaped(w, codepoint);
            i_run = i + n;
        }
        i += n;
    }
    put(w, bytes + i_run, n_bytes - i_run);
    put(w, "\"", 1);
}

void td_json_write_key(td_json_writer *w, const char *key)
{
    TD_ASSERT(w->depth > 0 && w->levels[w->depth - 1].is_object && !w->has_key);
    begin_item(w, false);
    put_string(w, key, strlen(key));
    put(w, ": ", w->pretty ? 2 : 1);
    w->has_key = true;
}

void td_json_write_bytes(td_json_writer *w, const char *bytes, size_t n_bytes)
{
    begin_value(w, false);
    put_string(w, bytes, n_bytes);
    w->is_done = w->depth == 0;
}

void td_json_write_string(td_json_writer *w, const char *text)
{
    if (text)
        td_json_write_bytes(w, text, strlen(text));
    else
        td_json_write_null(w);
}

void td_json_write_u64(td_json_writer *w, uint64_t value)
{
    char text[24];
    put_value(w, text, (size_t)snprintf(text, sizeof text, "%" PRIu64, value));
}

void td_json_write_i64(td_json_writer *w, int64_t value)
{
    char text[24];
    put_value(w, text, (size_t)snprintf(text, sizeof text, "%" PRId64, value));
}

void td_json_write_double(td_json_writer *w, double value)
{
    char text[TD_TEXT_DOUBLE_MAX];
    put_value(w, text, td_text_write_double(value, text));
}

void td_json_write_bool(td_json_writer *w, bool value)
{
    put_value(w, value ? "true" : "false", value ? 4 : 5);
}

void td_json_write_null(td_json_writer *w) { put_value(w, "null", 4); }

void td_json_put_string(td_json_writer *w, const char *key, const char *text)
{
    td_json_write_key(w, key);
    td_json_write_string(w, text);
}

void td_json_put_u64(td_json_writer *w, const char *key, uint64_t value)
{
    td_json_write_key(w, key);
    td_json_write_u64(w, value);
}

void td_json_put_double(td_json_writer *w, const char *key, double value)
{
    td_json_write_key(w, key);
    td_json_write_double(w, value);
}

void td_json_put_bool(td_json_writer *w, const char *key, bool value)
{
    td_json_write_key(w, key);
    td_json_write_bool(w, value);
}

bool td_json_writer_end(td_json_writer *w, const char **text, size_t *n_bytes, td_err *err)
{
    TD_ASSERT(w->is_done);
    bool ok = reserve(w, 0);
    if (ok) {
        w->text[w->n_bytes] = 0;
        *text = w->text;
        *n_bytes = w->n_bytes;
    } else {
        td_err_set(err, w->failure.code, "%s", w->failure.message);
    }
    td_json_writer_reset(w);
    return ok;
}
