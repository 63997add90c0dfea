/* Metadata by key, typed and ranged: what a getter gives is what the caller asked for, or an error
 * that says what is there instead (rule G16). */
#include "model/gguf.h"

#include "base/check.h"
#include "model/gguf_parse.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static const td_gguf_entry *find(const td_gguf *g, const char *key)
{
    const td_gguf_shard *s = td_gguf_first_shard(g);
    uint32_t i = td_gguf_find_name(s->keys, s->n_entries, key);
    return i == UINT32_MAX ? NULL : &s->entries[i];
}

static const td_gguf_entry *require(const td_gguf *g, const char *key, td_err *err)
{
    const td_gguf_entry *e = find(g, key);
    if (!e)
        td_err_set(err, TD_E_DATA, "%s: key '%s' is missing", td_gguf_path(g), key);
    return e;
}

static const uint8_t *value_of(const td_gguf *g, const td_gguf_entry *e)
{
    return td_gguf_first_shard(g)->bytes + e->value;
}

/* "key 'x' is of type T; WANTED is needed". Always false. */
static bool refuse_type(const td_gguf *g, const char *key, const td_gguf_entry *e,
                        const char *wanted, td_err *err)
{
    bool is_array = e->type == TD_GGUF_ARRAY;
    return td_err_set(err, TD_E_DATA, "%s: key '%s' is of type %s%s%s; %s is needed",
                      td_gguf_path(g), key, td_gguf_value_name(e->type), is_array ? " of " : "",
                      is_array ? td_gguf_value_name(e->element) : "", wanted);
}

uint32_t td_gguf_n_keys(const td_gguf *g) { return td_gguf_first_shard(g)->n_entries; }

const char *td_gguf_key_at(const td_gguf *g, uint32_t i, td_gguf_value_type *type)
{
    const td_gguf_shard *s = td_gguf_first_shard(g);
    TD_ASSERT(i < s->n_entries);
    *type = s->entries[i].type;
    return (const char *)s->bytes + s->entries[i].key;
}

bool td_gguf_has(const td_gguf *g, const char *key) { return find(g, key) != NULL; }

/* A float of either width. */
static bool load_float(td_gguf_value_type type, const uint8_t *p, double *out)
{
    float f;
    if (type == TD_GGUF_F32) {
        memcpy(&f, p, sizeof f);
        *out = (double)f;
    } else if (type == TD_GGUF_F64) {
        memcpy(out, p, sizeof *out);
    }
    return type == TD_GGUF_F32 || type == TD_GGUF_F64;
}

#define EXACT_MAX 9007199254740992.0 /* 2^53: every integer up to it is a double */

/* Any integer, or a float that is one, as two's complement with its sign told apart. */
static bool get_int(const td_gguf *g, const char *key, uint64_t *out, bool *negative, td_err *err)
{
    const td_gguf_entry *e = require(g, key, err);
    double f;
    if (!e)
        return false;
    if (!load_float(e->type, value_of(g, e), &f))
        return td_gguf_load_int(e->type, value_of(g, e), out, negative) ||
               refuse_type(g, key, e, "an integer", err);
    if (f != floor(f) || fabs(f) > EXACT_MAX) /* NaN fails too */
        return td_err_set(err, TD_E_DATA, "%s: key '%s' is %g; an integer is needed",
                          td_gguf_path(g), key, f);
    *negative = f < 0;
    *out = (uint64_t)(int64_t)f;
    return true;
}

static bool get_uint(const td_gguf *g, const char *key, uint64_t max, uint64_t *out, td_err *err)
{
    uint64_t v;
    bool negative;
    if (!get_int(g, key, &v, &negative, err))
        return false;
    if (negative)
        return td_err_set(err, TD_E_DATA, "%s: key '%s' is %" PRId64 "; 0..%" PRIu64 " are allowed",
                          td_gguf_path(g), key, (int64_t)v, max);
    if (v > max)
        return td_err_set(err, TD_E_DATA, "%s: key '%s' is %" PRIu64 "; 0..%" PRIu64 " are allowed",
                          td_gguf_path(g), key, v, max);
    *out = v;
    return true;
}

bool td_gguf_get_u32(const td_gguf *g, const char *key, uint32_t *out, td_err *err)
{
    uint64_t v;
    if (!get_uint(g, key, UINT32_MAX, &v, err))
        return false;
    *out = (uint32_t)v;
    return true;
}

bool td_gguf_get_u64(const td_gguf *g, const char *key, uint64_t *out, td_err *err)
{
    return get_uint(g, key, UINT64_MAX, out, err);
}

bool td_gguf_get_i64(const td_gguf *g, const char *key, int64_t *out, td_err *err)
{
    uint64_t v;
    bool negative;
    if (!get_int(g, key, &v, &negative, err))
        return false;
    if (!negative && v > INT64_MAX)
        return td_err_set(err, TD_E_DATA,
                          "%s: key '%s' is %" PRIu64 "; at most %" PRId64 " is allowed",
                          td_gguf_path(g), key, v, INT64_MAX);
    *out = (int64_t)v;
    return true;
}

bool td_gguf_get_f64(const td_gguf *g, const char *key, double *out, td_err *err)
{
    const td_gguf_entry *e = require(g, key, err);
    double v;
    uint64_t bits;
    bool negative;
    if (!e)
        return false;
    if (load_float(e->type, value_of(g, e), &v)) {
        if (!isfinite(v))
            return td_err_set(err, TD_E_DATA, "%s: key '%s' is %f; it must be finite",
                              td_gguf_path(g), key, v);
    } else if (td_gguf_load_int(e->type, value_of(g, e), &bits, &negative)) {
        v = negative ? (double)(int64_t)bits : (double)bits;
        if (fabs(v) > EXACT_MAX)
            return td_err_set(err, TD_E_DATA, "%s: key '%s' is %g; at most 2^53 is allowed",
                              td_gguf_path(g), key, v);
    } else {
        return refuse_type(g, key, e, "a number", err);
    }
    *out = v;
    return true;
}

bool td_gguf_get_f32(const td_gguf *g, const char *key, float *out, td_err *err)
{
    double v;
    if (!td_gguf_get_f64(g, key, &v, err))
        return false;
    if (!isfinite((float)v))
        return td_err_set(err, TD_E_DATA, "%s: key '%s' is %g, too large for an F32",
                          td_gguf_path(g), key, v);
    *out = (float)v;
    return true;
}

bool td_gguf_get_bool(const td_gguf *g, const char *key, bool *out, td_err *err)
{
    const td_gguf_entry *e = require(g, key, err);
    uint64_t v;
    bool negative;
    if (!e)
        return false;
    if (e->type == TD_GGUF_BOOL)
        v = *value_of(g, e) != 0;
    else if (!td_gguf_load_int(e->type, value_of(g, e), &v, &negative) || v > 1)
        return refuse_type(g, key, e, "BOOL (or 0 or 1)", err);
    *out = v;
    return true;
}

bool td_gguf_get_str(const td_gguf *g, const char *key, const char **out, size_t *n_bytes,
                     td_err *err)
{
    const td_gguf_entry *e = require(g, key, err);
    if (!e)
        return false;
    if (e->type != TD_GGUF_STRING)
        return refuse_type(g, key, e, "STRING", err);
    *out = (const char *)value_of(g, e);
    if (n_bytes)
        *n_bytes = e->n;
    return true;
}

static void fill_array(const td_gguf *g, const td_gguf_entry *e, td_gguf_array *out)
{
    out->type = e->element;
    out->n = e->n;
    out->data = e->strings ? (const void *)e->strings : value_of(g, e);
}

bool td_gguf_get_any_array(const td_gguf *g, const char *key, td_gguf_array *out, td_err *err)
{
    const td_gguf_entry *e = require(g, key, err);
    if (!e)
        return false;
    if (e->type != TD_GGUF_ARRAY)
        return refuse_type(g, key, e, "ARRAY", err);
    fill_array(g, e, out);
    return true;
}

bool td_gguf_get_array(const td_gguf *g, const char *key, td_gguf_value_type type,
                       td_gguf_array *out, td_err *err)
{
    const td_gguf_entry *e = require(g, key, err);
    if (!e)
        return false;
    if (e->type != TD_GGUF_ARRAY || e->element != type) {
        char wanted[32];
        snprintf(wanted, sizeof wanted, "ARRAY of %s", td_gguf_value_name(type));
        return refuse_type(g, key, e, wanted, err);
    }
    fill_array(g, e, out);
    return true;
}

bool td_gguf_get_int_array(const td_gguf *g, const char *key, td_gguf_array *out, td_err *err)
{
    const td_gguf_entry *e = require(g, key, err);
    if (!e)
        return false;
    bool is_int = td_gguf_scalar_bytes(e->element) && e->element != TD_GGUF_BOOL &&
                  e->element != TD_GGUF_F32 && e->element != TD_GGUF_F64;
    if (e->type != TD_GGUF_ARRAY || !is_int)
        return refuse_type(g, key, e, "ARRAY of integers", err);
    fill_array(g, e, out);
    return true;
}

bool td_gguf_get_number_array(const td_gguf *g, const char *key, td_gguf_array *out, td_err *err)
{
    const td_gguf_entry *e = require(g, key, err);
    if (!e)
        return false;
    if (e->type != TD_GGUF_ARRAY || !td_gguf_scalar_bytes(e->element))
        return refuse_type(g, key, e, "ARRAY of numbers", err);
    fill_array(g, e, out);
    return true;
}

double td_gguf_array_number(const td_gguf_array *a, uint32_t i)
{
    uint64_t v;
    bool negative;
    double f;
    TD_ASSERT(i < a->n);
    const uint8_t *p = (const uint8_t *)a->data + (size_t)i * td_gguf_scalar_bytes(a->type);
    if (a->type == TD_GGUF_BOOL)
        return *p != 0;
    if (load_float(a->type, p, &f))
        return f;
    bool is_int = td_gguf_load_int(a->type, p, &v, &negative);
    TD_ASSERT(is_int);
    return negative ? (double)(int64_t)v : (double)v;
}

int64_t td_gguf_array_int(const td_gguf_array *a, uint32_t i)
{
    uint64_t v;
    bool negative;
    TD_ASSERT(i < a->n);
    const uint8_t *p = (const uint8_t *)a->data + (size_t)i * td_gguf_scalar_bytes(a->type);
    bool is_int = td_gguf_load_int(a->type, p, &v, &negative);
    TD_ASSERT(is_int);
    return !negative && v > INT64_MAX ? INT64_MAX : (int64_t)v;
}

float td_gguf_array_f32(const td_gguf_array *a, uint32_t i)
{
    float f;
    TD_ASSERT(i < a->n && a->type == TD_GGUF_F32);
    memcpy(&f, (const uint8_t *)a->data + (size_t)i * sizeof f, sizeof f);
    return f;
}

const char *td_gguf_array_str(const td_gguf_array *a, uint32_t i, size_t *n_bytes)
{
    TD_ASSERT(i < a->n && a->type == TD_GGUF_STRING);
    const td_gguf_strings *s = a->data;
    if (n_bytes)
        *n_bytes = s->starts[i + 1] - 8 - s->starts[i];
    return s->base + s->starts[i];
}
