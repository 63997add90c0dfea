/* JSON: strict reading against a table, and writing.
 *
 * Reading. td_json_parse or td_json_read_file gives a document; td_json_read_root checks its root
 * object against a schema (a table of fields) and gives a td_json_object whose getters cannot
 * fail, because type and range have been checked. Unknown keys, wrong types and numbers out of
 * range are TD_E_DATA errors that name the file, the key path, the value seen and those allowed.
 *
 *     static const td_json_field fields[] = {
 *         {.key = "n", .type = TD_JSON_INT, .min = 1, .max = 1 << 20},
 *         {.key = "temp", .type = TD_JSON_FLOAT, .f_min = 0, .f_max = 100},
 *         {.key = "stop", .type = TD_JSON_STRING_OR_LIST, .max = 4096, .n_max = 16},
 *     };
 *     static const td_json_schema schema = {fields, TD_COUNT(fields), false};
 *
 *     td_json *doc = td_json_parse(line, n_bytes, "prompts.jsonl:17", err);
 *     td_json_object o;
 *     if (doc && td_json_read_root(doc, &schema, &o, err))
 *         n = td_json_get_int(&o, "n", 256);
 *     td_json_destroy(&doc);
 *
 * A getter with a key or type that the schema does not have is a bug of ours (TD_ASSERT).
 * The document owns all text; objects and strings are borrowed from it. A document may be read by
 * several threads and is never changed. Strings are valid UTF-8 without a 0 byte inside.
 *
 * Limits: below, each an error with its name. Also errors: duplicate keys, comments, NaN, integers
 * beyond 64 bits, ill-formed UTF-8. A byte order mark at the start is passed over.
 *
 * Writing is in json_writer.h. */
#ifndef TD_BASE_JSON_H
#define TD_BASE_JSON_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TD_JSON_FILE_MAX       (1u << 20)  /* bytes of a file read by td_json_read_file */
#define TD_JSON_TEXT_MAX       (16u << 20) /* bytes given to td_json_parse */
#define TD_JSON_DEPTH_MAX      64u         /* containers inside one another */
#define TD_JSON_VALUES_MAX     (1u << 20)  /* values in a document */
#define TD_JSON_CONTAINERS_MAX (1u << 14)  /* objects and lists in a document */
#define TD_JSON_FILE_PATH_MAX  4095u       /* bytes of a TD_JSON_PATH */
#define TD_JSON_WHERE_MAX      160

typedef enum {
    TD_JSON_BOOL,
    TD_JSON_INT,            /* min..max; 5.0, "5" and true are no integers */
    TD_JSON_FLOAT,          /* f_min..f_max; an integer will do */
    TD_JSON_STRING,         /* min..max bytes */
    TD_JSON_ENUM,           /* one of names */
    TD_JSON_PATH,           /* of a file: 1..4095 bytes, no control bytes, no leading '~' */
    TD_JSON_STRING_OR_LIST, /* one string, or 0..n_max strings of min..max bytes */
    TD_JSON_STRING_LIST,    /* 0..n_max strings of min..max bytes */
    TD_JSON_INT_LIST,       /* 0..n_max integers of min..max */
    TD_JSON_OBJECT,         /* read with td_json_read_member */
    TD_JSON_OBJECT_LIST,    /* 0..n_max objects, read with td_json_read_element */
    TD_JSON_IGNORED,        /* anything; not looked at */
    TD_JSON_TYPE_COUNT
} td_json_type;

typedef struct {
    const char *key;
    td_json_type type;
    bool required;    /* must be there */
    bool nullable;    /* null counts as absent */
    int64_t min, max; /* of integers, or of bytes in strings */
    double f_min, f_max;
    size_t n_max;             /* items of a list */
    const char *const *names; /* of an enum, ended by NULL */
} td_json_field;

typedef struct {
    const td_json_field *fields;
    size_t n_fields;
    bool other_keys_allowed; /* unknown keys are passed over */
} td_json_schema;

typedef struct td_json td_json;

/* An object that has passed its schema. To be treated as opaque. */
typedef struct {
    const td_json *document;
    const void *node;
    const td_json_schema *schema;
    char where[TD_JSON_WHERE_MAX]; /* key path from the root: "target.devices[2]" */
} td_json_object;

/* Parses one JSON text. `name` is copied and opens every message about it: "prompts.jsonl:17". */
td_json *td_json_parse(const char *text, size_t n_bytes, const char *name, td_err *err);

/* Reads and parses a regular file. Errors: TD_E_IO, TD_E_DATA, TD_E_NOMEM. */
td_json *td_json_read_file(const char *path, td_err *err);

void td_json_destroy(td_json **document);

/* The root object, checked. */
bool td_json_read_root(const td_json *document, const td_json_schema *schema, td_json_object *out,
                       td_err *err);

/* A root that is a list: it is seen as the one field of the schema, so `[1, 2]` is read as
 * {KEY: [1, 2]}. */
bool td_json_read_root_list(const td_json *document, const td_json_schema *schema,
                            td_json_object *out, td_err *err);

/* The object of a TD_JSON_OBJECT field, checked; absent: an error, so ask td_json_has first. */
bool td_json_read_member(const td_json_object *object, const char *key,
                         const td_json_schema *schema, td_json_object *out, td_err *err);

/* Object i (< td_json_count) of a TD_JSON_OBJECT_LIST field, checked. */
bool td_json_read_element(const td_json_object *object, const char *key, size_t i,
                          const td_json_schema *schema, td_json_object *out, td_err *err);

/* Is the key there (and not a null that counts as absent)? */
bool td_json_has(const td_json_object *object, const char *key);
/* The keys of an object that names its members itself, in the order of the text: at most max. */
size_t td_json_list_keys(const td_json_object *object, const char **keys, size_t max);

/* The value, or `fallback` where the key is absent. */
bool td_json_get_bool(const td_json_object *object, const char *key, bool fallback);
int64_t td_json_get_int(const td_json_object *object, const char *key, int64_t fallback);
double td_json_get_double(const td_json_object *object, const char *key, double fallback);
const char *td_json_get_string(const td_json_object *object, const char *key,
                               const char *fallback); /* also of a TD_JSON_PATH; ends in 0 */
int td_json_get_enum(const td_json_object *object, const char *key, int fallback); /* its index */

/* Items of a list (a single string counts as 1); 0 where the key is absent. */
size_t td_json_count(const td_json_object *object, const char *key);
const char *td_json_get_string_at(const td_json_object *object, const char *key, size_t i);
int64_t td_json_get_int_at(const td_json_object *object, const char *key, size_t i);

/* Writes the value of a key as it stands: for what is handed on and not looked at here. The key
 * must be there. */
struct td_json_writer;
void td_json_copy(const td_json_object *object, const char *key, struct td_json_writer *w);

/* The value of any key as text, for what is only shown: a string as it is, a number written to
 * `room` (TD_TEXT_DOUBLE_MAX bytes), a bool; NULL where it is absent, null, a list or an object. */
const char *td_json_get_text(const td_json_object *object, const char *key, char *room);

/* For checks that a table cannot make: "NAME: PATH.KEY: ..." as TD_E_DATA. Returns false. */
bool td_json_fail(const td_json_object *object, const char *key, td_err *err, const char *format,
                  ...) __attribute__((format(printf, 4, 5)));

#endif
