#include "model/cache_types.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

/* `auto` is what `tandem eval` says pays (docs/eval.md). */
static bool rotates(td_rotate rotate, const td_type_info *type)
{
    bool is_auto = rotate == TD_ROTATE_AUTO;
    return is_auto ? type->block_bytes < type->block_elements : rotate == TD_ROTATE_ON;
}

void td_cache_types_apply(const td_cache_types *t, uint32_t layer, td_kv_params *kv)
{
    kv->type_k = t->k;
    kv->type_v = t->v;
    for (uint32_t i = 0; i < t->n_rules; i++) {
        const td_cache_rule *r = &t->rules[i];
        if (layer < r->first || layer > r->last)
            continue;
        kv->type_k = r->k ? r->k : kv->type_k;
        kv->type_v = r->v ? r->v : kv->type_v;
    }
    kv->rotates_k = rotates(t->rotate_k, kv->type_k);
    kv->rotates_v = rotates(t->rotate_v, kv->type_v);
    if (!kv->is_latent)
        return;
    /* Values are a key's first columns: whole groups of it, or it cannot be turned back. */
    uint32_t smallest = kv->head_dim_v & -kv->head_dim_v;
    kv->type_v = kv->type_k;
    kv->rotates_k = kv->rotates_k && (kv->head_dim_k & ~(smallest - 1)) == kv->head_dim_v;
    kv->rotates_v = kv->rotates_k;
}

void td_cache_types_write(const td_cache_types *t, char *out)
{
    size_t n = (size_t)snprintf(out, TD_CACHE_TYPES_TEXT, "%s%s,%s%s", t->k->name,
                                rotates(t->rotate_k, t->k) ? " rotated" : "", t->v->name,
                                rotates(t->rotate_v, t->v) ? " rotated" : "");
    for (uint32_t i = 0; i < t->n_rules && n < TD_CACHE_TYPES_TEXT; i++) {
        const td_cache_rule *r = &t->rules[i];
        n += (size_t)snprintf(out + n, TD_CACHE_TYPES_TEXT - n, " %u-%u %s,%s", r->first, r->last,
                              r->k ? r->k->name : "-", r->v ? r->v->name : "-");
    }
}

static bool says_same(const td_cache_rule *a, const td_cache_rule *b)
{
    return a->k == b->k && a->v == b->v;
}

bool td_cache_types_write_kept(const td_cache_types *t, uint32_t i, const char separators[2],
                               char *out, size_t n_bytes)
{
    size_t n = 0;
    out[0] = 0;
    for (uint32_t k = 0; k < i; k++)
        if (says_same(&t->rules[k], &t->rules[i]))
            return false;
    for (uint32_t k = i; k < t->n_rules && n < n_bytes; k++) {
        const td_cache_rule *r = &t->rules[k];
        if (!says_same(r, &t->rules[i]))
            continue;
        if (n)
            out[n++] = separators[0];
        n += (size_t)snprintf(out + n, n_bytes - n, r->first < r->last ? "%u-%u" : "%u", r->first,
                              r->last);
    }
    const td_cache_rule *r = &t->rules[i];
    if (n < n_bytes)
        n += (size_t)snprintf(out + n, n_bytes - n, "%c%s", separators[1], r->k ? r->k->name : "-");
    if (n < n_bytes && r->k != r->v)
        snprintf(out + n, n_bytes - n, "/%s", r->v ? r->v->name : "-");
    for (char *p = out; *p; p++)
        *p = (char)tolower((unsigned char)*p);
    return true;
}

void td_cache_types_list_kept(const td_cache_types *t, char *out, size_t n_bytes)
{
    char kept[TD_CACHE_TYPES_TEXT];
    size_t n = 0;
    out[0] = 0;
    for (uint32_t i = 0; i < t->n_rules && n < n_bytes; i++)
        if (td_cache_types_write_kept(t, i, ",=", kept, sizeof kept))
            n += (size_t)snprintf(out + n, n_bytes - n, "%s%s", n ? " " : "", kept);
}
