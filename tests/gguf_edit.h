/* Edits a GGUF file in memory, for tests of how files say things: keys set or gone, tensors
 * renamed, dropped, fused, repeated. An edit is a JSON list whose first element names it:
 *
 *     ["set", KEY, TYPE, VALUE]   KEY without its architecture; VALUE may be a list
 *     ["unset", KEY]
 *     ["drop", PART]              tensors with PART in "/NAME"
 *     ["rename", PART, TO]        in all names
 *     ["experts", N]              N of them by turns, their routers' rows a little different
 *     ["layers", N]               N of them by turns, what they add made weaker
 *     ["fuse", [A, B, ..], TO]    rows of blk.*.A.weight (.bias), B, ... one after another
 *     ["add", NAME, [ne..], SCALE, MIDDLE]  F32: MIDDLE + SCALE * a saw; blk.* for each layer
 *     ["fill", PART, SCALE]       values of tensors with PART in the name: F32, SCALE * a saw
 */
#ifndef TD_TESTS_GGUF_EDIT_H
#define TD_TESTS_GGUF_EDIT_H

#include "gguf_writer.h"

#include "kernels/types.h"

#include <jansson.h>
#include <stdbool.h>

#define GE_MAX 4096u

typedef struct {
    char name[64];
    gw value; /* with its type */
} ge_key;

typedef struct {
    char name[64];
    uint32_t n_dims, type;
    uint64_t ne[4];
    gw data;
} ge_tensor;

typedef struct {
    ge_key keys[128];
    ge_tensor *tensors; /* [GE_MAX] */
    uint32_t n_keys, n_tensors;
    char arch[32];
} ge;

static inline uint64_t ge_uint(const uint8_t **p, size_t n)
{
    uint64_t v = 0;
    for (size_t i = 0; i < n; i++)
        v |= (uint64_t)(*p)[i] << 8 * i;
    *p += n;
    return v;
}

static inline void ge_name(const uint8_t **p, char name[64])
{
    uint64_t n = ge_uint(p, 8);
    snprintf(name, 64, "%.*s", (int)n, (const char *)*p);
    *p += n;
}

static inline void ge_skip(const uint8_t **p, uint32_t type)
{
    static const uint8_t widths[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    if (type == GW_STRING) {
        *p += ge_uint(p, 8);
    } else if (type == GW_ARRAY) {
        uint32_t element = (uint32_t)ge_uint(p, 4);
        for (uint64_t n = ge_uint(p, 8); n; n--)
            element == GW_STRING ? (void)(*p += ge_uint(p, 8)) : (void)(*p += widths[element]);
    } else {
        *p += widths[type];
    }
}

static inline uint64_t ge_elements(const ge_tensor *t)
{
    return t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3];
}

static inline ge_tensor *ge_add(ge *g, const char *name)
{
    ge_tensor *t = &g->tensors[g->n_tensors++];
    if (g->n_tensors > GE_MAX)
        gw_fail("tensors");
    *t = (ge_tensor){.n_dims = 1, .type = TD_TYPE_F32, .ne = {1, 1, 1, 1}};
    snprintf(t->name, sizeof t->name, "%s", name);
    return t;
}

static inline ge_key *ge_find(ge *g, const char *name)
{
    char full[64];
    bool is_own = strncmp(name, "general.", 8) && strncmp(name, "tokenizer.", 10);
    snprintf(full, sizeof full, "%s%s%s", is_own ? g->arch : "", is_own ? "." : "", name);
    for (uint32_t i = 0; i < g->n_keys; i++)
        if (!strcmp(g->keys[i].name, full))
            return &g->keys[i];
    ge_key *k = &g->keys[g->n_keys++];
    *k = (ge_key){.value = {0}};
    snprintf(k->name, sizeof k->name, "%s", full);
    return k;
}

static inline uint32_t ge_u32(ge *g, const char *name)
{
    const uint8_t *p = ge_find(g, name)->value.bytes + 4;
    return (uint32_t)ge_uint(&p, 4);
}

static inline void ge_set_u32(ge *g, const char *name, uint32_t value)
{
    gw *w = &ge_find(g, name)->value;
    w->n = 0;
    gw_u32(w, GW_U32);
    gw_u32(w, value);
}

/* A file of one part, little-endian, aligned to 32. */
static inline ge *ge_load(const char *path)
{
    FILE *f = fopen(path, "rbe");
    ge *g = calloc(1, sizeof *g);
    if (!f || !g || fseek(f, 0, SEEK_END))
        gw_fail(path);
    size_t n = (size_t)ftell(f);
    uint8_t *bytes = malloc(n);
    g->tensors = calloc(GE_MAX, sizeof *g->tensors);
    rewind(f);
    if (!bytes || !g->tensors || fread(bytes, 1, n, f) != n || fclose(f))
        gw_fail(path);
    const uint8_t *p = bytes + 8;
    uint64_t n_tensors = ge_uint(&p, 8), offsets[GE_MAX];
    for (uint64_t n_keys = ge_uint(&p, 8); n_keys; n_keys--) {
        ge_key *k = &g->keys[g->n_keys++];
        ge_name(&p, k->name);
        const uint8_t *from = p;
        uint32_t type = (uint32_t)ge_uint(&p, 4);
        ge_skip(&p, type);
        gw_bytes(&k->value, from, (size_t)(p - from));
        if (!strcmp(k->name, "general.architecture"))
            snprintf(g->arch, sizeof g->arch, "%.*s", (int)(p - from - 12),
                     (const char *)from + 12);
    }
    for (uint32_t i = 0; i < n_tensors; i++) {
        char name[64];
        ge_name(&p, name);
        ge_tensor *t = ge_add(g, name);
        t->n_dims = (uint32_t)ge_uint(&p, 4);
        for (uint32_t k = 0; k < t->n_dims; k++)
            t->ne[k] = ge_uint(&p, 8);
        t->type = (uint32_t)ge_uint(&p, 4);
        offsets[i] = ge_uint(&p, 8);
    }
    size_t base = ((size_t)(p - bytes) + 31) / 32 * 32;
    for (uint32_t i = 0; i < n_tensors; i++) {
        ge_tensor *t = &g->tensors[i];
        gw_bytes(&t->data, bytes + base + offsets[i],
                 td_row_bytes(td_type_find(t->type), ge_elements(t)));
    }
    free(bytes);
    return g;
}

static inline void ge_free(ge *g)
{
    for (uint32_t i = 0; i < g->n_keys; i++)
        gw_free(&g->keys[i].value);
    for (uint32_t i = 0; i < g->n_tensors; i++)
        gw_free(&g->tensors[i].data);
    free(g->tensors);
    free(g);
}

static inline gw ge_save(const ge *g)
{
    gw w = gw_begin(3);
    for (uint32_t i = 0; i < g->n_keys; i++) {
        gw_str(&w, g->keys[i].name);
        gw_bytes(&w, g->keys[i].value.bytes, g->keys[i].value.n);
        w.n_keys++;
    }
    uint64_t offset = 0;
    for (uint32_t i = 0; i < g->n_tensors; i++) {
        const ge_tensor *t = &g->tensors[i];
        gw_tensor(&w, t->name, t->n_dims, t->ne, t->type, offset);
        offset += (t->data.n + 31) / 32 * 32;
    }
    gw_end(&w, 32, 0);
    gw_bytes(&w, NULL, (32 - w.n % 32) % 32);
    for (uint32_t i = 0; i < g->n_tensors; i++) {
        const gw *d = &g->tensors[i].data;
        gw_bytes(&w, d->bytes, d->n);
        gw_bytes(&w, NULL, (32 - d->n % 32) % 32);
    }
    return w;
}

static inline void ge_scale(gw *data, size_t from, size_t n_bytes, float by)
{
    for (size_t i = from; i < from + n_bytes; i += 4) {
        float f;
        memcpy(&f, data->bytes + i, 4);
        f *= by;
        memcpy(data->bytes + i, &f, 4);
    }
}

static inline void ge_saw(ge_tensor *t, double scale, double middle)
{
    t->type = TD_TYPE_F32;
    t->data.n = 0;
    for (uint64_t i = 0; i < ge_elements(t); i++) {
        float f = (float)(scale * ((double)(i * 7919 % 101) / 50.0 - 1) + middle);
        gw_bytes(&t->data, &f, 4);
    }
}

/* -- the edits --------------------------------------------------------------------------------- */

static inline void ge_put_scalar(gw *w, uint32_t type, const json_t *v)
{
    static const uint8_t widths[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    double number = json_is_boolean(v) ? json_is_true(v) : json_number_value(v);
    float f = (float)number;
    if (type == GW_STRING)
        gw_str(w, json_string_value(v));
    else if (type == GW_F32)
        gw_bytes(w, &f, 4);
    else if (type == GW_F64)
        gw_bytes(w, &number, 8);
    else
        gw_uint(w, (uint64_t)(int64_t)number, widths[type]);
}

static inline void ge_set(ge *g, const char *key, const char *type_name, const json_t *value)
{
    static const char *const names[] = {"u8",   "i8",  "u16",   "i16", "u32", "i32", "f32",
                                        "bool", "str", "array", "u64", "i64", "f64"};
    uint32_t type = 0;
    while (strcmp(names[type], type_name))
        type++;
    gw *w = &ge_find(g, key)->value;
    w->n = 0;
    if (!json_is_array(value)) {
        gw_u32(w, type);
        ge_put_scalar(w, type, value);
        return;
    }
    gw_u32(w, GW_ARRAY);
    gw_u32(w, type);
    gw_u64(w, json_array_size(value));
    for (size_t i = 0; i < json_array_size(value); i++)
        ge_put_scalar(w, type, json_array_get(value, i));
}

static inline void ge_unset(ge *g, const char *key)
{
    ge_key *k = ge_find(g, key);
    gw_free(&k->value);
    *k = g->keys[--g->n_keys];
}

static inline void ge_drop(ge *g, const char *part)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < g->n_tensors; i++) {
        char name[80];
        snprintf(name, sizeof name, "/%s", g->tensors[i].name);
        if (strstr(name, part))
            gw_free(&g->tensors[i].data);
        else
            g->tensors[n++] = g->tensors[i];
    }
    g->n_tensors = n;
}

static inline void ge_rename(ge *g, const char *part, const char *to)
{
    for (uint32_t i = 0; i < g->n_tensors; i++) {
        char *name = g->tensors[i].name, *at = strstr(name, part), old[64];
        if (!at)
            continue;
        snprintf(old, sizeof old, "%s", name);
        snprintf(name, 64, "%.*s%s%s", (int)(at - name), old, to, old + (at - name) + strlen(part));
    }
}

static inline void ge_experts(ge *g, uint32_t n)
{
    uint32_t n0 = ge_u32(g, "expert_count");
    ge_set_u32(g, "expert_count", n);
    for (uint32_t i = 0; i < g->n_tensors; i++) {
        ge_tensor *t = &g->tensors[i];
        bool is_router = strstr(t->name, "ffn_gate_inp.") || strstr(t->name, "exp_probs_b");
        if (!is_router && !strstr(t->name, "_exps"))
            continue;
        size_t n_one = t->data.n / n0;
        gw grown = {0};
        for (uint32_t k = 0; k < n; k++) {
            gw_bytes(&grown, t->data.bytes + k % n0 * n_one, n_one);
            if (is_router)
                ge_scale(&grown, grown.n - n_one, n_one, 1.0f + (float)(k / n0) / 64.0f);
        }
        gw_free(&t->data);
        t->data = grown;
        t->ne[t->n_dims - 1] = n;
    }
}

static inline void ge_layers(ge *g, uint32_t n)
{
    static const char *const added[] = {"ffn_down", "attn_output.w", "ssm_out", "post_ffw_norm"};
    uint32_t n0 = ge_u32(g, "block_count"), n_old = g->n_tensors;
    bool is_gemma = !strncmp(g->arch, "gemma", 5);
    ge_set_u32(g, "block_count", n);
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = 0; k < n_old; k++) {
            char prefix[32], name[64];
            int n_prefix = snprintf(prefix, sizeof prefix, "blk.%u.", i % n0);
            if (strncmp(g->tensors[k].name, prefix, (size_t)n_prefix))
                continue;
            snprintf(name, sizeof name, "new.%u.%.48s", i, g->tensors[k].name + n_prefix);
            ge_tensor *t = ge_add(g, name), *from = &g->tensors[k];
            t->n_dims = from->n_dims;
            t->type = from->type;
            memcpy(t->ne, from->ne, sizeof t->ne);
            gw_bytes(&t->data, from->data.bytes, from->data.n);
            bool is_added = is_gemma && strstr(name, "post_attention_norm");
            for (size_t a = 0; a < 4; a++)
                is_added |= strstr(name, added[a]) != NULL;
            if (is_added)
                ge_scale(&t->data, 0, t->data.n, 0.25f);
        }
    ge_drop(g, "/blk.");
    ge_rename(g, "new.", "blk.");
}

static inline ge_tensor *ge_find_tensor(ge *g, const char *name)
{
    for (uint32_t i = 0; i < g->n_tensors; i++)
        if (!strcmp(g->tensors[i].name, name))
            return &g->tensors[i];
    return NULL;
}

/* Experts' parts go in turn for each expert. */
static inline void ge_fuse(ge *g, const json_t *parts, const char *to)
{
    for (uint32_t i = 0; i < 2 * ge_u32(g, "block_count"); i++) {
        const char *suffix = i % 2 ? "bias" : "weight";
        size_t n_parts = json_array_size(parts);
        uint64_t n_each = 1, n_rows = 0;
        ge_tensor *t[4];
        char name[64];
        bool has_all = true;
        for (size_t k = 0; k < n_parts; k++) {
            snprintf(name, sizeof name, "blk.%u.%.24s.%s", i / 2,
                     json_string_value(json_array_get(parts, k)), suffix);
            t[k] = ge_find_tensor(g, name);
            has_all = has_all && t[k];
        }
        if (!has_all)
            continue;
        uint32_t dim = strstr(to, "_exps") ? 1 : t[0]->n_dims - 1;
        if (strstr(to, "_exps"))
            n_each = t[0]->ne[t[0]->n_dims - 1];
        gw fused = {0};
        for (uint64_t e = 0; e < n_each; e++)
            for (size_t k = 0; k < n_parts; k++) {
                size_t n_one = t[k]->data.n / n_each;
                gw_bytes(&fused, t[k]->data.bytes + e * n_one, n_one);
            }
        for (size_t k = 0; k < n_parts; k++) {
            n_rows += t[k]->ne[dim];
            gw_free(&t[k]->data);
        }
        t[0]->data = fused;
        t[0]->ne[dim] = n_rows;
        snprintf(t[0]->name, 64, "blk.%u.%.24s.%s", i / 2, to, suffix);
        for (size_t k = 1; k < n_parts; k++)
            snprintf(t[k]->name, 64, "fused away");
    }
    ge_drop(g, "/fused away");
}

static inline void ge_add_saw(ge *g, const char *name, const json_t *ne, double scale,
                              double middle)
{
    const char *star = strchr(name, '*');
    for (uint32_t i = 0; i < (star ? ge_u32(g, "block_count") : 1); i++) {
        char full[64];
        snprintf(full, sizeof full, "%s", name);
        if (star)
            snprintf(full, sizeof full, "%.*s%u%s", (int)(star - name), name, i, star + 1);
        ge_tensor *t = ge_add(g, full);
        t->n_dims = (uint32_t)json_array_size(ne);
        for (uint32_t k = 0; k < t->n_dims; k++)
            t->ne[k] = (uint64_t)json_integer_value(json_array_get(ne, k));
        ge_saw(t, scale, middle);
    }
}

static inline void ge_apply(ge *g, const json_t *edit)
{
    const char *op = json_string_value(json_array_get(edit, 0));
    const json_t *a = json_array_get(edit, 1), *b = json_array_get(edit, 2);
    const json_t *c = json_array_get(edit, 3);
    if (!strcmp(op, "set"))
        ge_set(g, json_string_value(a), json_string_value(b), c);
    else if (!strcmp(op, "unset"))
        ge_unset(g, json_string_value(a));
    else if (!strcmp(op, "drop"))
        ge_drop(g, json_string_value(a));
    else if (!strcmp(op, "rename"))
        ge_rename(g, json_string_value(a), json_string_value(b));
    else if (!strcmp(op, "experts"))
        ge_experts(g, (uint32_t)json_integer_value(a));
    else if (!strcmp(op, "layers"))
        ge_layers(g, (uint32_t)json_integer_value(a));
    else if (!strcmp(op, "fuse"))
        ge_fuse(g, a, json_string_value(b));
    else if (!strcmp(op, "add"))
        ge_add_saw(g, json_string_value(a), b, json_number_value(c),
                   json_number_value(json_array_get(edit, 4)));
    else if (!strcmp(op, "fill"))
        for (uint32_t i = 0; i < g->n_tensors; i++)
            strstr(g->tensors[i].name, json_string_value(a))
                ? ge_saw(&g->tensors[i], json_number_value(b), 0)
                : (void)0;
    else
        gw_fail(op);
}

#endif
