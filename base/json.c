/* The one place where JSON is read, and the only user of jansson.
 *
 * Three fences stand before a getter. A scan of the raw text bounds depth and the number of values
 * (jansson bounds neither to our taste: it recurses 2,048 deep and a megabyte of "{}," would grow
 * to a hundred). jansson then parses with duplicates refused. The schema last: after it, a getter
 * can only meet values of the type and range its table promised.
 *
 * A document lives in one arena, which jansson's allocations are sent to while it parses: a failed
 * parse leaks nothing whatever jansson does, and freeing a document does not walk it. */
#include "base/json.h"

#include "base/check.h"
#include "base/io.h"
#include "base/mem.h"
#include "base/text.h"

#include <jansson.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define FIELDS_MAX  64 /* of a schema */
#define ALLOWED_MAX 400

struct td_json {
    td_arena *arena;
    char *name;
    const json_t *root;
};

/* ---- parsing ---- */

static _Thread_local td_arena *parse_arena; /* of the parse that this thread is in */
static _Thread_local td_err *parse_err;

/* jansson does not tell a lack of memory from other errors on all of its paths, so it is noted
 * here. */
static void *arena_malloc(size_t n_bytes)
{
    return parse_arena ? td_arena_alloc(parse_arena, n_bytes, 1, parse_err) : NULL;
}

static void arena_free(void *p) { (void)p; }

static void set_allocator(void) { json_set_alloc_funcs(arena_malloc, arena_free); }

/* Bounds what the parser can be made to build. Text that is no JSON may be counted wrongly from
 * its first error on, which is as far as the parser goes. */
static bool check_limits(const char *text, size_t n_bytes, const char *name, td_err *err)
{
    uint32_t depth = 0;
    uint64_t n_containers = 0, n_values = 1;
    bool in_string = false;
    for (size_t i = 0; i < n_bytes; i++) {
        char c = text[i];
        if (in_string) {
            i += c == '\\';
            in_string = c != '"';
            continue;
        }
        in_string = c == '"';
        n_values += c == ',';
        if (c == ']' || c == '}')
            depth -= depth > 0;
        if (c != '[' && c != '{')
            continue;
        n_values++;
        n_containers++;
        if (++depth > TD_JSON_DEPTH_MAX)
            return td_err_set(err, TD_E_DATA, "%s: byte %zu: nested more than %u deep", name, i,
                              TD_JSON_DEPTH_MAX);
    }
    if (n_containers > TD_JSON_CONTAINERS_MAX)
        return td_err_set(err, TD_E_DATA, "%s: has %llu objects and lists; at most %u are allowed",
                          name, (unsigned long long)n_containers, TD_JSON_CONTAINERS_MAX);
    if (n_values > TD_JSON_VALUES_MAX)
        return td_err_set(err, TD_E_DATA, "%s: has %llu values; at most %u are allowed", name,
                          (unsigned long long)n_values, TD_JSON_VALUES_MAX);
    return true;
}

/* jansson's account of a syntax error; it may quote the text, so it is made safe to print. */
static void set_parse_error(td_err *err, const char *name, const json_error_t *error)
{
    char text[JSON_ERROR_TEXT_LENGTH];
    snprintf(text, sizeof text, "%s", error->text);
    for (char *p = text; *p; p++)
        if ((uint8_t)*p < 0x20 || *p == 0x7f)
            *p = ' ';
    if (error->line > 1)
        td_err_set(err, TD_E_DATA, "%s: line %d, column %d: not valid JSON: %s", name, error->line,
                   error->column, text);
    else
        td_err_set(err, TD_E_DATA, "%s: column %d: not valid JSON: %s", name, error->column, text);
}

td_json *td_json_parse(const char *text, size_t n_bytes, const char *name, td_err *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    TD_ASSERT(pthread_once(&once, set_allocator) == 0);
    if (n_bytes >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) {
        text += 3;
        n_bytes -= 3;
    }
    if (n_bytes > TD_JSON_TEXT_MAX) {
        td_err_set(err, TD_E_DATA, "%s: has %zu bytes; at most %u are allowed", name, n_bytes,
                   TD_JSON_TEXT_MAX);
        return NULL;
    }
    if (!check_limits(text, n_bytes, name, err))
        return NULL;
    td_json *document = td_alloc(1, sizeof *document, err);
    if (!document)
        return NULL;
    document->arena = td_arena_create(err);
    if (!document->arena)
        goto fail;
    document->name = td_arena_strndup(document->arena, name, strlen(name), err);
    if (!document->name)
        goto fail;
    json_error_t error;
    td_err no_memory = {.code = TD_OK};
    parse_arena = document->arena;
    parse_err = &no_memory;
    document->root = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES, &error);
    parse_arena = NULL;
    parse_err = NULL;
    if (no_memory.code != TD_OK) {
        td_err_set(err, no_memory.code, "%s: %s", name, no_memory.message);
        goto fail;
    }
    if (!document->root) {
        set_parse_error(err, name, &error);
        goto fail;
    }
    return document;
fail:
    td_json_destroy(&document);
    return NULL;
}

td_json *td_json_read_file(const char *path, td_err *err)
{
    char *text;
    size_t n_bytes;
    if (!td_io_read_file(path, TD_JSON_FILE_MAX, &text, &n_bytes, err))
        return NULL;
    td_json *document = td_json_parse(text, n_bytes, path, err);
    td_free(text);
    return document;
}

void td_json_destroy(td_json **document)
{
    if (!*document)
        return;
    if ((*document)->arena)
        td_arena_destroy(&(*document)->arena);
    td_free(*document);
    *document = NULL;
}

/* ---- messages ---- */

/* What a message calls the value that was found. */
static td_text_quoted describe_seen(const json_t *node)
{
    td_text_quoted out;
    char number[TD_TEXT_DOUBLE_MAX];
    switch (json_typeof(node)) {
    case JSON_STRING:
        return td_text_quote(json_string_value(node), json_string_length(node));
    case JSON_INTEGER:
        snprintf(out.text, sizeof out.text, "%lld", (long long)json_integer_value(node));
        break;
    case JSON_REAL:
        td_text_write_double(json_real_value(node), number);
        snprintf(out.text, sizeof out.text, "%s", number);
        break;
    case JSON_ARRAY:
        snprintf(out.text, sizeof out.text, "a list of %zu", json_array_size(node));
        break;
    case JSON_OBJECT:
        snprintf(out.text, sizeof out.text, "an object");
        break;
    default:
        snprintf(out.text, sizeof out.text, "%s",
                 json_is_true(node)    ? "true"
                 : json_is_false(node) ? "false"
                                       : "null");
    }
    return out;
}

/* Appends as much as fits. */
static void append(char *out, size_t size, const char *text)
{
    size_t n = strlen(out);
    snprintf(out + n, size - n, "%s", text);
}

/* What a message says of the values that a field, or one item of it, may have. */
static void describe_allowed(const td_json_field *f, bool is_item, char *out, size_t size)
{
    char low[TD_TEXT_DOUBLE_MAX], high[TD_TEXT_DOUBLE_MAX];
    const char *list = "";
    char count[64];
    snprintf(count, sizeof count, "a list of up to %zu: ", f->n_max);
    bool is_list = f->type == TD_JSON_STRING_LIST || f->type == TD_JSON_INT_LIST;
    if (!is_item && is_list)
        list = count;
    switch (f->type) {
    case TD_JSON_BOOL:
        snprintf(out, size, "true or false");
        break;
    case TD_JSON_INT:
    case TD_JSON_INT_LIST:
        snprintf(out, size, "%san integer of %lld..%lld", list, (long long)f->min,
                 (long long)f->max);
        break;
    case TD_JSON_FLOAT:
        td_text_write_double(f->f_min, low);
        td_text_write_double(f->f_max, high);
        snprintf(out, size, "a number of %s..%s", low, high);
        break;
    case TD_JSON_STRING:
    case TD_JSON_STRING_LIST:
        snprintf(out, size, "%sa string of %lld..%lld bytes", list, (long long)f->min,
                 (long long)f->max);
        break;
    case TD_JSON_STRING_OR_LIST:
        snprintf(out, size, "a string of %lld..%lld bytes, or a list of up to %zu of them",
                 (long long)f->min, (long long)f->max, f->n_max);
        break;
    case TD_JSON_ENUM:
        snprintf(out, size, "one of");
        for (size_t i = 0; f->names[i]; i++) {
            append(out, size, i ? ", \"" : " \"");
            append(out, size, f->names[i]);
            append(out, size, "\"");
        }
        break;
    case TD_JSON_PATH:
        snprintf(out, size, "a file path of 1..%u bytes without control characters",
                 TD_JSON_FILE_PATH_MAX);
        break;
    case TD_JSON_OBJECT_LIST:
        snprintf(out, size, "a list of up to %zu objects", f->n_max);
        break;
    default:
        snprintf(out, size, "an object");
    }
}

/* "where.key", or either where the other is empty. */
static void join_path(char *out, size_t size, const char *where, const char *key)
{
    out[0] = 0;
    append(out, size, where);
    append(out, size, *where && *key ? "." : "");
    append(out, size, key);
}

static bool fail_value(const td_json_object *o, const td_json_field *f, ptrdiff_t i_item,
                       const json_t *seen, td_err *err)
{
    char path[TD_JSON_WHERE_MAX * 2], allowed[ALLOWED_MAX], item[32] = "";
    describe_allowed(f, i_item >= 0, allowed, sizeof allowed);
    join_path(path, sizeof path, o->where, f->key);
    if (i_item >= 0)
        snprintf(item, sizeof item, "[%td]", i_item);
    return td_err_set(err, TD_E_DATA, "%s: %s%s is %s; allowed: %s", o->document->name, path, item,
                      describe_seen(seen).text, allowed);
}

bool td_json_fail(const td_json_object *object, const char *key, td_err *err, const char *format,
                  ...)
{
    char path[TD_JSON_WHERE_MAX * 2], text[512];
    join_path(path, sizeof path, object->where, key ? key : "");
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return td_err_set(err, TD_E_DATA, "%s: %s%s%s", object->document->name, path, *path ? ": " : "",
                      text);
}

/* ---- the schema ---- */

static bool is_in_string_range(const td_json_field *f, const json_t *node)
{
    return json_is_string(node) && json_string_length(node) >= (uint64_t)f->min &&
           json_string_length(node) <= (uint64_t)f->max;
}

static bool is_in_int_range(const td_json_field *f, const json_t *node)
{
    return json_is_integer(node) && json_integer_value(node) >= f->min &&
           json_integer_value(node) <= f->max;
}

static bool is_path(const json_t *node)
{
    if (!json_is_string(node) || json_string_length(node) < 1 ||
        json_string_length(node) > TD_JSON_FILE_PATH_MAX)
        return false;
    for (const char *p = json_string_value(node); *p; p++)
        if ((uint8_t)*p < 0x20 || *p == 0x7f)
            return false;
    return true;
}

static int find_enum(const td_json_field *f, const json_t *node)
{
    for (int i = 0; json_is_string(node) && f->names[i]; i++)
        if (strcmp(json_string_value(node), f->names[i]) == 0)
            return i;
    return -1;
}

/* Items of a list, each held against the field. */
static bool check_list(const td_json_object *o, const td_json_field *f, const json_t *node,
                       td_err *err)
{
    if (!json_is_array(node) || json_array_size(node) > f->n_max)
        return fail_value(o, f, -1, node, err);
    for (size_t i = 0; i < json_array_size(node); i++) {
        const json_t *item = json_array_get(node, i);
        bool ok = f->type == TD_JSON_INT_LIST      ? is_in_int_range(f, item)
                  : f->type == TD_JSON_OBJECT_LIST ? json_is_object(item)
                                                   : is_in_string_range(f, item);
        if (!ok)
            return fail_value(o, f, (ptrdiff_t)i, item, err);
    }
    return true;
}

static bool check_value(const td_json_object *o, const td_json_field *f, const json_t *node,
                        td_err *err)
{
    bool ok = true;
    if (f->nullable && json_is_null(node))
        return true;
    switch (f->type) {
    case TD_JSON_BOOL:
        ok = json_is_boolean(node);
        break;
    case TD_JSON_INT:
        ok = is_in_int_range(f, node);
        break;
    case TD_JSON_FLOAT:
        ok = json_is_number(node) && json_number_value(node) >= f->f_min &&
             json_number_value(node) <= f->f_max;
        break;
    case TD_JSON_STRING:
        ok = is_in_string_range(f, node);
        break;
    case TD_JSON_ENUM:
        ok = find_enum(f, node) >= 0;
        break;
    case TD_JSON_PATH:
        ok = is_path(node);
        if (ok && json_string_value(node)[0] == '~')
            return td_json_fail(o, f->key, err,
                                "%s: '~' is not expanded here; write the whole path (or ./~ for a "
                                "file of that name)",
                                describe_seen(node).text);
        break;
    case TD_JSON_STRING_OR_LIST:
        if (json_is_array(node))
            return check_list(o, f, node, err);
        ok = is_in_string_range(f, node);
        break;
    case TD_JSON_STRING_LIST:
    case TD_JSON_INT_LIST:
    case TD_JSON_OBJECT_LIST:
        return check_list(o, f, node, err);
    case TD_JSON_OBJECT:
        ok = json_is_object(node);
        break;
    default:
        break;
    }
    return ok || fail_value(o, f, -1, node, err);
}

/* A table without a limit is a bug of ours: absence of a limit must not mean "any". */
static void assert_schema(const td_json_schema *schema)
{
    TD_ASSERT(schema->n_fields <= FIELDS_MAX);
    for (size_t i = 0; i < schema->n_fields; i++) {
        const td_json_field *f = &schema->fields[i];
        bool is_list = f->type == TD_JSON_STRING_OR_LIST || f->type == TD_JSON_STRING_LIST ||
                       f->type == TD_JSON_INT_LIST || f->type == TD_JSON_OBJECT_LIST;
        bool is_string = f->type == TD_JSON_STRING || f->type == TD_JSON_STRING_OR_LIST ||
                         f->type == TD_JSON_STRING_LIST;
        bool is_int = f->type == TD_JSON_INT || f->type == TD_JSON_INT_LIST;
        TD_ASSERT(f->key && (unsigned)f->type < TD_JSON_TYPE_COUNT);
        TD_ASSERT(!is_list || f->n_max > 0);
        TD_ASSERT(!is_string || (f->min >= 0 && f->max > 0 && f->min <= f->max));
        TD_ASSERT(!is_int || (f->min <= f->max && (f->min || f->max)));
        TD_ASSERT(f->type != TD_JSON_FLOAT || f->f_min < f->f_max);
        TD_ASSERT(f->type != TD_JSON_ENUM || (f->names && f->names[0]));
    }
}

static const td_json_field *find_field(const td_json_schema *schema, const char *key)
{
    for (size_t i = 0; i < schema->n_fields; i++)
        if (strcmp(schema->fields[i].key, key) == 0)
            return &schema->fields[i];
    return NULL;
}

static bool fail_unknown_key(const td_json_object *o, const char *key, td_err *err)
{
    const char *names[FIELDS_MAX];
    char allowed[ALLOWED_MAX] = "";
    for (size_t i = 0; i < o->schema->n_fields; i++) {
        names[i] = o->schema->fields[i].key;
        append(allowed, sizeof allowed, i ? ", " : "");
        append(allowed, sizeof allowed, names[i]);
    }
    const char *nearest = td_text_find_nearest(key, names, o->schema->n_fields);
    td_text_quoted quoted = td_text_quote(key, strlen(key));
    if (nearest)
        return td_json_fail(o, NULL, err, "unknown key %s; did you mean \"%s\"?", quoted.text,
                            nearest);
    return td_json_fail(o, NULL, err, "unknown key %s; allowed: %s", quoted.text, allowed);
}

/* Holds the object out->node against out->schema. */
static bool check_object(const td_json_object *out, td_err *err)
{
    json_t *node = (json_t *)out->node;
    if (!json_is_object(node))
        return td_json_fail(out, NULL, err, "is %s; allowed: an object", describe_seen(node).text);
    for (void *it = json_object_iter(node); it; it = json_object_iter_next(node, it)) {
        const td_json_field *f = find_field(out->schema, json_object_iter_key(it));
        if (!f && !out->schema->other_keys_allowed)
            return fail_unknown_key(out, json_object_iter_key(it), err);
        if (f && !check_value(out, f, json_object_iter_value(it), err))
            return false;
    }
    for (size_t i = 0; i < out->schema->n_fields; i++) {
        const td_json_field *f = &out->schema->fields[i];
        if (f->required && !td_json_has(out, f->key))
            return td_json_fail(out, NULL, err, "the key \"%s\" is missing", f->key);
    }
    return true;
}

bool td_json_read_root(const td_json *document, const td_json_schema *schema, td_json_object *out,
                       td_err *err)
{
    assert_schema(schema);
    *out = (td_json_object){.document = document, .node = document->root, .schema = schema};
    return check_object(out, err);
}

bool td_json_read_root_list(const td_json *document, const td_json_schema *schema,
                            td_json_object *out, td_err *err)
{
    assert_schema(schema);
    TD_ASSERT(schema->n_fields == 1);
    *out = (td_json_object){.document = document, .node = document->root, .schema = schema};
    return check_list(out, &schema->fields[0], document->root, err);
}

/* ---- getters ---- */

#define TYPE_BIT(type) (1u << (type))

/* The value of a key, NULL where it is absent. Only the table and our own code decide whether the
 * assertion holds, never the document. */
static const json_t *find_value(const td_json_object *o, const char *key, unsigned types,
                                const td_json_field **field)
{
    const td_json_field *f = find_field(o->schema, key);
    TD_ASSERT(f && (types & TYPE_BIT(f->type)));
    if (field)
        *field = f;
    const json_t *node =
        json_is_array((const json_t *)o->node) ? o->node : json_object_get(o->node, key);
    return node && f->nullable && json_is_null(node) ? NULL : node;
}

bool td_json_has(const td_json_object *object, const char *key)
{
    return find_value(object, key, ~0u, NULL) != NULL;
}

size_t td_json_list_keys(const td_json_object *object, const char **keys, size_t max)
{
    json_t *node = (json_t *)(uintptr_t)object->node;
    size_t n = 0;
    for (void *it = json_object_iter(node); it && n < max; it = json_object_iter_next(node, it))
        keys[n++] = json_object_iter_key(it);
    return n;
}

bool td_json_get_bool(const td_json_object *object, const char *key, bool fallback)
{
    const json_t *node = find_value(object, key, TYPE_BIT(TD_JSON_BOOL), NULL);
    return node ? json_is_true(node) : fallback;
}

int64_t td_json_get_int(const td_json_object *object, const char *key, int64_t fallback)
{
    const json_t *node = find_value(object, key, TYPE_BIT(TD_JSON_INT), NULL);
    return node ? json_integer_value(node) : fallback;
}

double td_json_get_double(const td_json_object *object, const char *key, double fallback)
{
    const json_t *node = find_value(object, key, TYPE_BIT(TD_JSON_FLOAT), NULL);
    return node ? json_number_value(node) : fallback;
}

const char *td_json_get_string(const td_json_object *object, const char *key, const char *fallback)
{
    const json_t *node =
        find_value(object, key, TYPE_BIT(TD_JSON_STRING) | TYPE_BIT(TD_JSON_PATH), NULL);
    return node ? json_string_value(node) : fallback;
}

int td_json_get_enum(const td_json_object *object, const char *key, int fallback)
{
    const td_json_field *f;
    const json_t *node = find_value(object, key, TYPE_BIT(TD_JSON_ENUM), &f);
    return node ? find_enum(f, node) : fallback;
}

#define STRING_LISTS (TYPE_BIT(TD_JSON_STRING_OR_LIST) | TYPE_BIT(TD_JSON_STRING_LIST))
#define LISTS        (STRING_LISTS | TYPE_BIT(TD_JSON_INT_LIST) | TYPE_BIT(TD_JSON_OBJECT_LIST))

size_t td_json_count(const td_json_object *object, const char *key)
{
    const json_t *node = find_value(object, key, LISTS, NULL);
    return !node ? 0 : json_is_array(node) ? json_array_size(node) : 1;
}

/* Item i of a list, where a single value is a list of itself. */
static const json_t *find_item(const td_json_object *o, const char *key, size_t i, unsigned types)
{
    const json_t *node = find_value(o, key, types, NULL);
    TD_ASSERT(node && i < td_json_count(o, key));
    return json_is_array(node) ? json_array_get(node, i) : node;
}

const char *td_json_get_string_at(const td_json_object *object, const char *key, size_t i)
{
    return json_string_value(find_item(object, key, i, STRING_LISTS));
}

int64_t td_json_get_int_at(const td_json_object *object, const char *key, size_t i)
{
    return json_integer_value(find_item(object, key, i, TYPE_BIT(TD_JSON_INT_LIST)));
}

bool td_json_read_member(const td_json_object *object, const char *key,
                         const td_json_schema *schema, td_json_object *out, td_err *err)
{
    assert_schema(schema);
    const json_t *node = find_value(object, key, TYPE_BIT(TD_JSON_OBJECT), NULL);
    if (!node)
        return td_json_fail(object, NULL, err, "the key \"%s\" is missing", key);
    *out = (td_json_object){.document = object->document, .node = node, .schema = schema};
    join_path(out->where, sizeof out->where, object->where, key);
    return check_object(out, err);
}

bool td_json_read_element(const td_json_object *object, const char *key, size_t i,
                          const td_json_schema *schema, td_json_object *out, td_err *err)
{
    assert_schema(schema);
    const json_t *node = find_item(object, key, i, TYPE_BIT(TD_JSON_OBJECT_LIST));
    char path[TD_JSON_WHERE_MAX * 2];
    *out = (td_json_object){.document = object->document, .node = node, .schema = schema};
    join_path(path, sizeof path, object->where, key);
    snprintf(out->where, sizeof out->where, "%.*s[%zu]", TD_JSON_WHERE_MAX - 24, path, i);
    return check_object(out, err);
}
