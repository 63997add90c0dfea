#include "target/cache_wire.h"

_Static_assert(TD_STAGE_RULES_MAX == TD_CACHE_RULES_MAX, "all rules fit");

static uint8_t id_of(const td_type_info *type) { return type ? (uint8_t)type->id : TD_STAGE_ANY; }

td_stage_kv td_cache_to_wire(const td_cache_types *t)
{
    td_stage_kv kv = {.type_k = id_of(t->k),
                      .type_v = id_of(t->v),
                      .rotate_k = (uint8_t)t->rotate_k,
                      .rotate_v = (uint8_t)t->rotate_v,
                      .n_rules = (uint8_t)t->n_rules};
    for (uint32_t i = 0; i < t->n_rules; i++) {
        const td_cache_rule *r = &t->rules[i];
        kv.rules[i] = (td_stage_kv_rule){r->first, r->last, id_of(r->k), id_of(r->v)};
    }
    return kv;
}

static bool find(uint8_t id, bool is_needed, const td_type_info **out, td_err *err)
{
    bool is_none = id == TD_STAGE_ANY && !is_needed;
    *out = is_none ? NULL : td_type_find(id);
    return is_none || (*out && (*out)->is_cache_type) ||
           td_err_set(err, TD_E_DATA, "a plan with cache type %u, which is none", id);
}

bool td_cache_from_wire(const td_stage_kv *kv, td_cache_types *out, td_err *err)
{
    *out = (td_cache_types){.rotate_k = (td_rotate)kv->rotate_k,
                            .rotate_v = (td_rotate)kv->rotate_v,
                            .n_rules = kv->n_rules};
    bool is_ok = find(kv->type_k, true, &out->k, err) && find(kv->type_v, true, &out->v, err);
    for (uint32_t i = 0; is_ok && i < kv->n_rules; i++) {
        td_cache_rule *r = &out->rules[i];
        *r = (td_cache_rule){.first = kv->rules[i].first, .last = kv->rules[i].last};
        is_ok = find(kv->rules[i].type_k, false, &r->k, err) &&
                find(kv->rules[i].type_v, false, &r->v, err);
    }
    return is_ok;
}
