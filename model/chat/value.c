/* Values: made, compared, counted and gone through as Python does with its own. */
#include "model/chat/value.h"

#include "model/chat/render.h"
#include "model/chat/text.h"

#include "base/rng.h"

#include <math.h>
#include <string.h>

#define SMALL_DICT 8u /* pairs that are looked through one by one */

jinja_value jinja_undefined(const jinja_text *name)
{
    return (jinja_value){.type = JINJA_UNDEFINED, .as.text = name};
}

jinja_value jinja_none(void) { return (jinja_value){.type = JINJA_NONE}; }

jinja_value jinja_bool(bool b) { return (jinja_value){.type = JINJA_BOOL, .as.truth = b}; }

jinja_value jinja_int(int64_t i) { return (jinja_value){.type = JINJA_INT, .as.integer = i}; }

jinja_value jinja_float(double d) { return (jinja_value){.type = JINJA_FLOAT, .as.real = d}; }

jinja_value jinja_of_text(const jinja_text *t)
{
    return (jinja_value){.type = JINJA_TEXT, .as.text = t};
}

jinja_value jinja_of_list(jinja_list *l) { return (jinja_value){.type = JINJA_LIST, .as.list = l}; }

jinja_list *jinja_list_create(jinja_render *r, size_t n, jinja_list_kind kind)
{
    jinja_list *l = jinja_alloc(r, 1, sizeof *l);
    if (!l)
        return NULL;
    l->items = jinja_alloc(r, n, sizeof l->items[0]);
    l->n = n;
    l->kind = kind;
    return l->items && jinja_charge(r, 1 + n / 4) ? l : NULL;
}

bool jinja_list_append(jinja_render *r, jinja_list *l, jinja_value v)
{
    if ((l->n & (l->n - 1)) == 0) { /* full at powers of two, if it began empty */
        jinja_value *items = jinja_alloc(r, l->n ? 2 * l->n : 1, sizeof items[0]);
        if (!items)
            return false;
        if (l->n > 0)
            memcpy(items, l->items, l->n * sizeof items[0]);
        l->items = items;
        if (!jinja_charge(r, l->n / 4))
            return false;
    }
    l->items[l->n++] = v;
    return true;
}

/* -- dicts ------------------------------------------------------------------------------------- */

jinja_dict *jinja_dict_create(jinja_render *r) { return jinja_alloc(r, 1, sizeof(jinja_dict)); }

/* Equal keys have equal hashes: 1, 1.0 and true are one key. */
static bool hash_key(jinja_render *r, jinja_value v, uint64_t *hash)
{
    bool is_ok = true;
    if (v.type == JINJA_TEXT) {
        *hash = td_hash64(1, v.as.text->bytes, v.as.text->n);
        return jinja_charge(r, v.as.text->n / 16);
    }
    if (jinja_is_number(v)) {
        double d = jinja_as_double(v) + 0.0;
        *hash = td_hash64(2, &d, sizeof d);
    } else if (v.type == JINJA_LIST && v.as.list->kind == JINJA_IS_TUPLE) {
        *hash = v.as.list->n;
        is_ok = jinja_enter(r);
        for (size_t i = 0; is_ok && i < v.as.list->n; i++) {
            uint64_t one = 0;
            is_ok = hash_key(r, v.as.list->items[i], &one);
            *hash = td_hash64(*hash, &one, sizeof one);
        }
        if (is_ok)
            jinja_leave(r);
    } else if ((v.type == JINJA_LIST && v.as.list->kind <= JINJA_IS_VIEW) || v.type == JINJA_DICT) {
        return jinja_fail(r, "unhashable type: '%s'", jinja_type_name(v));
    } else {
        *hash = v.type == JINJA_NONE || v.type == JINJA_UNDEFINED ? v.type : (uintptr_t)v.as.list;
    }
    return is_ok;
}

bool jinja_dict_find(jinja_render *r, const jinja_dict *d, jinja_value key, jinja_value **found)
{
    uint64_t hash;
    bool is_equal = false;
    *found = NULL;
    if (!hash_key(r, key, &hash))
        return false;
    if (!d->slots) {
        for (size_t i = 0; i < d->n && !is_equal; i++) {
            if (!jinja_equal(r, d->pairs[i].key, key, &is_equal))
                return false;
            if (is_equal)
                *found = &d->pairs[i].value;
        }
        return true;
    }
    for (size_t i = hash & (d->n_slots - 1); d->slots[i]; i = (i + 1) & (d->n_slots - 1)) {
        jinja_pair *pair = &d->pairs[d->slots[i] - 1];
        if (!jinja_equal(r, pair->key, key, &is_equal) || !jinja_charge(r, 1))
            return false;
        if (is_equal) {
            *found = &pair->value;
            break;
        }
    }
    return true;
}

static bool index_dict(jinja_render *r, jinja_dict *d)
{
    d->n_slots = 4 * d->capacity;
    d->slots = jinja_alloc(r, d->n_slots, sizeof d->slots[0]);
    for (size_t k = 0; d->slots && k < d->n; k++) {
        uint64_t hash;
        if (!hash_key(r, d->pairs[k].key, &hash))
            return false;
        size_t i = hash & (d->n_slots - 1);
        while (d->slots[i])
            i = (i + 1) & (d->n_slots - 1);
        d->slots[i] = (uint32_t)k + 1;
    }
    return d->slots != NULL;
}

bool jinja_dict_set(jinja_render *r, jinja_dict *d, jinja_value key, jinja_value value)
{
    jinja_value *found;
    if (!jinja_dict_find(r, d, key, &found))
        return false;
    if (found) {
        *found = value;
        return true;
    }
    if (d->n == d->capacity) {
        size_t capacity = d->capacity ? 2 * d->capacity : 4;
        jinja_pair *pairs = jinja_alloc(r, capacity, sizeof pairs[0]);
        if (!pairs)
            return false;
        if (d->n > 0)
            memcpy(pairs, d->pairs, d->n * sizeof pairs[0]);
        d->pairs = pairs;
        d->capacity = capacity;
        d->slots = NULL;
    }
    d->pairs[d->n++] = (jinja_pair){key, value};
    if (d->n <= SMALL_DICT)
        return true;
    if (!d->slots)
        return index_dict(r, d);
    uint64_t hash;
    if (!hash_key(r, key, &hash))
        return false;
    size_t i = hash & (d->n_slots - 1);
    while (d->slots[i])
        i = (i + 1) & (d->n_slots - 1);
    d->slots[i] = (uint32_t)d->n;
    return true;
}

jinja_value *jinja_dict_find_bytes(const jinja_dict *d, const char *key, size_t n_key)
{
    if (d->slots) {
        uint64_t hash = td_hash64(1, key, n_key);
        for (size_t i = hash & (d->n_slots - 1); d->slots[i]; i = (i + 1) & (d->n_slots - 1)) {
            jinja_pair *p = &d->pairs[d->slots[i] - 1];
            if (p->key.type == JINJA_TEXT && p->key.as.text->n == n_key &&
                memcmp(p->key.as.text->bytes, key, n_key) == 0)
                return &p->value;
        }
        return NULL;
    }
    for (size_t i = 0; i < d->n; i++) {
        const jinja_pair *p = &d->pairs[i];
        if (p->key.type == JINJA_TEXT && p->key.as.text->n == n_key &&
            memcmp(p->key.as.text->bytes, key, n_key) == 0)
            return &d->pairs[i].value;
    }
    return NULL;
}

/* -- questions --------------------------------------------------------------------------------- */

const char *jinja_type_name(jinja_value v)
{
    static const char *const names[JINJA_TYPE_COUNT] = {[JINJA_ABSENT] = "nothing",
                                                        [JINJA_UNDEFINED] = "Undefined",
                                                        [JINJA_NONE] = "NoneType",
                                                        [JINJA_BOOL] = "bool",
                                                        [JINJA_INT] = "int",
                                                        [JINJA_FLOAT] = "float",
                                                        [JINJA_TEXT] = "str",
                                                        [JINJA_LIST] = "list",
                                                        [JINJA_DICT] = "dict",
                                                        [JINJA_LOOP] = "loop",
                                                        [JINJA_NAMESPACE] = "Namespace",
                                                        [JINJA_CALLABLE] = "function"};
    static const char *const lists[] = {"list", "tuple", "range", "dict view", "generator"};
    return v.type == JINJA_LIST ? lists[v.as.list->kind] : names[v.type];
}

bool jinja_truth(jinja_value v)
{
    switch (v.type) {
    case JINJA_BOOL:
        return v.as.truth;
    case JINJA_INT:
        return v.as.integer != 0;
    case JINJA_FLOAT:
        return v.as.real < 0 || v.as.real > 0 || isnan(v.as.real);
    case JINJA_TEXT:
        return v.as.text->n > 0;
    case JINJA_LIST:
        return v.as.list->n > 0 || v.as.list->kind == JINJA_IS_GENERATOR;
    case JINJA_DICT:
        return v.as.dict->n > 0;
    default:
        return v.type > JINJA_DICT;
    }
}

bool jinja_is_number(jinja_value v) { return v.type >= JINJA_BOOL && v.type <= JINJA_FLOAT; }

double jinja_as_double(jinja_value v)
{
    return v.type == JINJA_FLOAT ? v.as.real
           : v.type == JINJA_INT ? (double)v.as.integer
                                 : (double)v.as.truth;
}

static int64_t as_int(jinja_value v) { return v.type == JINJA_INT ? v.as.integer : v.as.truth; }

/* Lists compare with lists, tuples with tuples. */
static bool are_alike(jinja_value a, jinja_value b)
{
    return a.type == JINJA_LIST && b.type == JINJA_LIST && a.as.list->kind == b.as.list->kind &&
           a.as.list->kind <= JINJA_IS_RANGE;
}

static bool equal_lists(jinja_render *r, const jinja_list *a, const jinja_list *b, bool *is_equal)
{
    *is_equal = a->n == b->n;
    bool is_ok = jinja_enter(r);
    for (size_t i = 0; is_ok && *is_equal && i < a->n; i++)
        is_ok = jinja_equal(r, a->items[i], b->items[i], is_equal);
    if (is_ok)
        jinja_leave(r);
    return is_ok;
}

static bool equal_dicts(jinja_render *r, const jinja_dict *a, const jinja_dict *b, bool *is_equal)
{
    *is_equal = a->n == b->n;
    bool is_ok = jinja_enter(r);
    for (size_t i = 0; is_ok && *is_equal && i < a->n; i++) {
        jinja_value *other;
        is_ok = jinja_dict_find(r, b, a->pairs[i].key, &other);
        if (is_ok && !other)
            *is_equal = false;
        else if (is_ok)
            is_ok = jinja_equal(r, a->pairs[i].value, *other, is_equal);
    }
    if (is_ok)
        jinja_leave(r);
    return is_ok;
}

bool jinja_equal(jinja_render *r, jinja_value a, jinja_value b, bool *is_equal)
{
    *is_equal = false;
    if (!jinja_charge(r, 1))
        return false;
    if (jinja_is_number(a) && jinja_is_number(b)) {
        if (a.type == JINJA_FLOAT || b.type == JINJA_FLOAT)
            *is_equal = !(jinja_as_double(a) < jinja_as_double(b)) &&
                        !(jinja_as_double(a) > jinja_as_double(b)) && !isnan(jinja_as_double(a)) &&
                        !isnan(jinja_as_double(b));
        else
            *is_equal = as_int(a) == as_int(b);
        return true;
    }
    if (a.type != b.type)
        return true;
    switch (a.type) {
    case JINJA_UNDEFINED:
    case JINJA_NONE:
        *is_equal = true;
        return true;
    case JINJA_TEXT:
        *is_equal =
            a.as.text->n == b.as.text->n &&
            (a.as.text->n == 0 || memcmp(a.as.text->bytes, b.as.text->bytes, a.as.text->n) == 0);
        return jinja_charge(r, a.as.text->n == b.as.text->n ? a.as.text->n / 64 : 0);
    case JINJA_LIST:
        *is_equal = a.as.list == b.as.list;
        return *is_equal || !are_alike(a, b) || equal_lists(r, a.as.list, b.as.list, is_equal);
    case JINJA_DICT:
        *is_equal = a.as.dict == b.as.dict;
        return *is_equal || equal_dicts(r, a.as.dict, b.as.dict, is_equal);
    default:
        *is_equal = a.as.list == b.as.list;
        return true;
    }
}

static bool less_lists(jinja_render *r, const jinja_list *a, const jinja_list *b, bool *is_less)
{
    bool is_equal = true, is_ok = jinja_enter(r);
    size_t i = 0;
    for (; is_ok && i < a->n && i < b->n; i++) {
        is_ok = jinja_equal(r, a->items[i], b->items[i], &is_equal);
        if (is_ok && !is_equal) {
            is_ok = jinja_less(r, a->items[i], b->items[i], is_less);
            break;
        }
    }
    if (is_equal)
        *is_less = a->n < b->n;
    if (is_ok)
        jinja_leave(r);
    return is_ok;
}

bool jinja_less(jinja_render *r, jinja_value a, jinja_value b, bool *is_less)
{
    if (!jinja_charge(r, 1))
        return false;
    if (jinja_is_number(a) && jinja_is_number(b)) {
        if (a.type == JINJA_FLOAT || b.type == JINJA_FLOAT)
            *is_less = jinja_as_double(a) < jinja_as_double(b);
        else
            *is_less = as_int(a) < as_int(b);
        return true;
    }
    if (a.type == JINJA_TEXT && b.type == JINJA_TEXT) {
        *is_less = jinja_text_compare(a.as.text, b.as.text) < 0;
        return jinja_charge(r, (a.as.text->n < b.as.text->n ? a.as.text->n : b.as.text->n) / 64);
    }
    if (are_alike(a, b) && a.as.list->kind != JINJA_IS_RANGE)
        return less_lists(r, a.as.list, b.as.list, is_less);
    return jinja_fail(r, "'%s' and '%s' have no order", jinja_type_name(a), jinja_type_name(b));
}

/* -- going through ----------------------------------------------------------------------------- */

static bool split_chars(jinja_render *r, const jinja_text *t, jinja_list **items)
{
    *items = jinja_list_create(r, t->n_chars, JINJA_IS_LIST);
    size_t i = 0;
    for (size_t k = 0; *items && k < t->n_chars; k++) {
        size_t from = i;
        jinja_text_next(t, &i);
        const jinja_text *c = jinja_text_part(r, t, from, i - from);
        if (!c || !jinja_charge(r, 1))
            return false;
        (*items)->items[k] = jinja_of_text(c);
    }
    return *items != NULL;
}

bool jinja_iterate(jinja_render *r, jinja_value v, jinja_list **items)
{
    switch (v.type) {
    case JINJA_LIST:
        if (v.as.list->kind != JINJA_IS_GENERATOR) {
            *items = v.as.list;
            return true;
        }
        jinja_list *rest = jinja_list_create(r, 0, JINJA_IS_LIST);
        if (!rest)
            return false;
        rest->items = v.as.list->items + v.as.list->n_taken;
        rest->n = v.as.list->n - v.as.list->n_taken;
        v.as.list->n_taken = v.as.list->n;
        *items = rest;
        return true;
    case JINJA_TEXT:
        return split_chars(r, v.as.text, items);
    case JINJA_DICT:
        *items = jinja_list_create(r, v.as.dict->n, JINJA_IS_LIST);
        for (size_t i = 0; *items && i < v.as.dict->n; i++)
            (*items)->items[i] = v.as.dict->pairs[i].key;
        return *items != NULL;
    case JINJA_UNDEFINED:
        *items = jinja_list_create(r, 0, JINJA_IS_LIST);
        return *items != NULL;
    default:
        return jinja_fail(r, "'%s' object is not iterable", jinja_type_name(v));
    }
}

bool jinja_contains(jinja_render *r, jinja_value container, jinja_value v, bool *is_in)
{
    *is_in = false;
    if (container.type == JINJA_TEXT) {
        if (v.type != JINJA_TEXT)
            return jinja_fail(r, "'in <string>' requires string as left operand, not %s",
                              jinja_type_name(v));
        *is_in = jinja_text_find(container.as.text, v.as.text, 0) != SIZE_MAX;
        return jinja_charge(r, container.as.text->n / 16);
    }
    if (container.type == JINJA_DICT) {
        jinja_value *found;
        bool is_ok = jinja_dict_find(r, container.as.dict, v, &found);
        *is_in = is_ok && found;
        return is_ok;
    }
    jinja_list *items;
    if (!jinja_iterate(r, container, &items))
        return false;
    for (size_t i = 0; i < items->n && !*is_in; i++)
        if (!jinja_equal(r, items->items[i], v, is_in))
            return false;
    return true;
}

bool jinja_length(jinja_render *r, jinja_value v, size_t *n)
{
    *n = 0;
    if (v.type == JINJA_TEXT)
        *n = v.as.text->n_chars;
    else if (v.type == JINJA_LIST && v.as.list->kind != JINJA_IS_GENERATOR)
        *n = v.as.list->n;
    else if (v.type == JINJA_DICT)
        *n = v.as.dict->n;
    else if (v.type == JINJA_LOOP)
        *n = v.as.loop->items->n;
    else if (v.type != JINJA_UNDEFINED)
        return jinja_fail(r, "object of type '%s' has no len()", jinja_type_name(v));
    return true;
}

bool jinja_is_message(jinja_render *r, jinja_value v)
{
    bool is_message = v.is_message;
    if (v.type == JINJA_TEXT)
        return jinja_text_is_message(v.as.text);
    if (v.type < JINJA_LIST || v.type > JINJA_NAMESPACE)
        return is_message;
    if (!jinja_charge(r, 1) || !jinja_enter(r)) /* the caller's next step fails too */
        return true;
    if (v.type == JINJA_LIST)
        for (size_t i = 0; !is_message && i < v.as.list->n; i++)
            is_message = jinja_is_message(r, v.as.list->items[i]);
    else
        for (size_t i = 0; !is_message && i < v.as.dict->n; i++)
            is_message = jinja_is_message(r, v.as.dict->pairs[i].key) ||
                         jinja_is_message(r, v.as.dict->pairs[i].value);
    jinja_leave(r);
    return is_message;
}
