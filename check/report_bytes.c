/* One table of fields for each struct, by which both directions go. */
#include "check/report_bytes.h"

#include "base/check.h"
#include "base/cursor.h"
#include "base/mem.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

typedef enum { TEXT, BOOL, U32, U64, F64 } kind;

typedef struct {
    const char *name;
    kind kind;
    size_t at, n; /* n: of a text its bytes; of a number one past the largest, 0: any */
} field;

typedef struct {
    td_cursor_out *out; /* or NULL: */
    td_cursor *in;
} coder;

#define OF_TEXT(s, f)   {#f, TEXT, offsetof(s, f), sizeof((s *)0)->f}
#define OF(s, f, k)     {#f, k, offsetof(s, f), 0}
#define BELOW(s, f, n)  {#f, U32, offsetof(s, f), n}

typedef td_device_info info;
typedef td_check_item item;
typedef td_clocks clocks;
typedef td_speeds speeds;
typedef td_speed_product product;

static const field info_fields[] = {
    OF_TEXT(info, spec),
    OF_TEXT(info, name),
    OF_TEXT(info, vendor),
    OF_TEXT(info, driver),
    OF(info, vendor_id, U32),
    OF(info, driver_id, U32),
    OF_TEXT(info, pci),
    OF_TEXT(info, uuid),
    OF_TEXT(info, id),
    OF_TEXT(info, same_as),
    BELOW(info, kind, TD_DEVICE_SOFTWARE + 1),
    OF(info, is_usable, BOOL),
    OF_TEXT(info, why_not),
    BELOW(info, memory.n_heaps, TD_HEAPS_MAX + 1),
    OF(info, capacity.usable_bytes, U64),
    OF(info, capacity.total_bytes, U64),
    OF(info, capacity.reserve_bytes, U64),
    OF(info, capacity.own_bytes, U64),
    OF(info, capacity.shared_bytes, U64),
    OF_TEXT(info, capacity.reason),
    OF_TEXT(info, capacity.hint),
    OF(info, max_buffer_bytes, U64),
    OF(info, subgroup_size, U32),
    OF(info, n_threads, U32),
    OF(info, has_f16, BOOL),
    OF(info, has_int8_dot, BOOL),
    OF(info, has_coopmat, BOOL),
    OF_TEXT(info, quirks),
};
/* Of a heap, at its place in either array. */
static const field memory_heap_fields[] = {
    {"heap", U64, offsetof(td_memory_facts, heaps[0].n_bytes), 0},
    {"heap", BOOL, offsetof(td_memory_facts, heaps[0].is_device_local), 0},
};
static const field capacity_heap_fields[] = {
    {"heap", U64, offsetof(td_capacity, heaps[0].most_bytes), 0},
    {"heap", BOOL, offsetof(td_capacity, heaps[0].is_counted), 0},
    {"heap", BOOL, offsetof(td_capacity, heaps[0].is_host_visible), 0},
};
static const field item_fields[] = {
    OF_TEXT(item, name),
    BELOW(item, state, TD_CHECK_UNJUDGED + 1),
    OF_TEXT(item, reason),
    OF(item, n_cases, U32),
    OF(item, n_skipped, U32),
    OF(item, parts, U32),
    OF(item, n_repeats, U32),
    OF(item, worst, F64),
    OF(item, seconds, F64),
};
static const field clocks_fields[] = {
    OF_TEXT(clocks, level),    OF_TEXT(clocks, core), OF_TEXT(clocks, memory),
    OF_TEXT(clocks, core_max), OF_TEXT(clocks, link), OF_TEXT(clocks, link_max),
    OF_TEXT(clocks, governor), OF_TEXT(clocks, hint),
};
static const field speeds_fields[] = {
    OF(speeds, bandwidth_bytes_per_s, F64),
    OF(speeds, submit_us, F64),
    OF(speeds, step_us, F64),
};
static const field product_fields[] = {
    OF(product, n_rows, U32),
    OF(product, n_cols, U32),
    OF(product, prefill_macs_per_s, F64),
};
static const field report_fields[] = {
    OF(td_check_report, is_small, BOOL),
    OF(td_check_report, has_speeds, BOOL),
    BELOW(td_check_report, n_ops, TD_CHECK_OPS_MAX + 1),
    BELOW(td_check_report, n_parts, TD_CHECK_PARTS_MAX + 1),
};

static bool put_text(td_cursor_out *c, const char *text)
{
    size_t n = strlen(text);
    td_cursor_write_u16(c, (uint16_t)n);
    for (size_t i = 0; i < n; i++) /* a driver's name may hold anything */
        td_cursor_write_u8(c, (uint8_t)(text[i] < 0x20 || text[i] > 0x7e ? '?' : text[i]));
    return true; /* that there is room is seen at the end */
}

static bool get_text(td_cursor *c, const field *f, char *text)
{
    uint16_t n;
    if (!td_cursor_read_u16(c, &n))
        return false;
    if (n >= f->n)
        return td_cursor_fail(c, "%s has %u bytes; allowed: 0..%zu", f->name, n, f->n - 1);
    if (!td_cursor_read_bytes(c, text, n))
        return false;
    text[n] = 0;
    for (uint16_t i = 0; i < n; i++)
        if (text[i] < 0x20 || text[i] > 0x7e)
            return td_cursor_fail(c, "%s has the byte 0x%02x; allowed: printable ASCII", f->name,
                                  (uint8_t)text[i]);
    return true;
}

static bool put(td_cursor_out *c, const field *f, const char *from)
{
    uint32_t u32;
    uint64_t u64;
    double f64;
    switch (f->kind) {
    case TEXT:
        return put_text(c, from);
    case BOOL:
        td_cursor_write_u8(c, *(const bool *)from);
        return true;
    case U32:
        memcpy(&u32, from, sizeof u32);
        td_cursor_write_u32(c, u32);
        return true;
    case U64:
        memcpy(&u64, from, sizeof u64);
        td_cursor_write_u64(c, u64);
        return true;
    case F64:
        memcpy(&f64, from, sizeof f64);
        f64 = isfinite(f64) ? f64 : 0;
        memcpy(&u64, &f64, sizeof u64);
        td_cursor_write_u64(c, u64);
        return true;
    }
    return false;
}

static bool get(td_cursor *c, const field *f, char *to)
{
    uint8_t u8;
    uint32_t u32;
    uint64_t u64;
    double f64;
    switch (f->kind) {
    case TEXT:
        return get_text(c, f, to);
    case BOOL:
        if (!td_cursor_read_u8(c, &u8))
            return false;
        *(bool *)to = u8 == 1;
        return u8 <= 1 || td_cursor_fail(c, "%s is %u; allowed: 0, 1", f->name, u8);
    case U32:
        if (!td_cursor_read_u32(c, &u32))
            return false;
        memcpy(to, &u32, sizeof u32);
        return !f->n || u32 < f->n ||
               td_cursor_fail(c, "%s is %u; allowed: 0..%zu", f->name, u32, f->n - 1);
    case U64:
        if (!td_cursor_read_u64(c, &u64))
            return false;
        memcpy(to, &u64, sizeof u64);
        return true;
    case F64:
        if (!td_cursor_read_u64(c, &u64))
            return false;
        memcpy(&f64, &u64, sizeof f64);
        memcpy(to, &f64, sizeof f64);
        return (isfinite(f64) && f64 >= 0) ||
               td_cursor_fail(c, "%s is %g; allowed: 0 and up", f->name, f64);
    }
    return false;
}

static bool pass(const coder *c, const field *fields, size_t n, void *base)
{
    for (size_t i = 0; i < n; i++) {
        char *at = (char *)base + fields[i].at;
        if (!(c->out ? put(c->out, &fields[i], at) : get(c->in, &fields[i], at)))
            return false;
    }
    return true;
}

#define PASS(c, fields, base) pass(c, fields, TD_COUNT(fields), base)

static bool pass_device(const coder *c, td_device_info *d)
{
    bool is_ok = PASS(c, info_fields, d);
    for (uint32_t i = 0; is_ok && i < d->memory.n_heaps; i++)
        is_ok = PASS(c, memory_heap_fields, (char *)&d->memory + i * sizeof d->memory.heaps[0]) &&
                PASS(c, capacity_heap_fields,
                     (char *)&d->capacity + i * sizeof d->capacity.heaps[0]);
    return is_ok;
}

static bool pass_speeds(const coder *c, td_speeds *s)
{
    static const field width = {"ms", F64, 0, 0};
    bool is_ok = PASS(c, speeds_fields, s);
    for (uint32_t i = 0; is_ok && i < TD_SPEED_PRODUCTS; i++) {
        td_speed_product *p = &s->products[i];
        char type[16] = "";
        const field name = {"type", TEXT, 0, sizeof type};
        if (c->out)
            strncat(type, p->type, sizeof type - 1);
        is_ok = pass(c, &name, 1, type) && PASS(c, product_fields, p);
        const td_type_info *found = is_ok && !c->out ? td_type_find_name(type) : NULL;
        if (is_ok && !c->out && !found)
            is_ok = td_cursor_fail(c->in, "type is \"%s\"; allowed: those of weights", type);
        if (found)
            p->type = found->name;
        for (uint32_t k = 0; is_ok && k < TD_SPEED_WIDTHS; k++)
            is_ok = pass(c, &width, 1, &p->ms[k]);
    }
    return is_ok;
}

static bool pass_report(const coder *c, td_check_report *r)
{
    bool is_ok = PASS(c, report_fields, r) && pass_device(c, &r->info);
    for (uint32_t i = 0; is_ok && i < r->n_ops; i++)
        is_ok = PASS(c, item_fields, &r->ops[i]);
    for (uint32_t i = 0; is_ok && i < r->n_parts; i++)
        is_ok = PASS(c, item_fields, &r->parts[i]);
    return is_ok && PASS(c, clocks_fields, &r->clocks) &&
           (!r->has_speeds || pass_speeds(c, &r->speeds));
}

bool td_check_encode(const td_check_report *report, void *bytes, size_t capacity_bytes,
                     size_t *n_bytes, td_err *err)
{
    td_check_report copy = *report; /* both directions take one that can be written */
    td_cursor_out out = td_cursor_out_begin("report", bytes, capacity_bytes, err);
    pass_report(&(coder){.out = &out}, &copy);
    *n_bytes = (size_t)out.pos;
    return !out.failed;
}

bool td_check_decode(const void *bytes, size_t n_bytes, td_check_report *report, td_err *err)
{
    td_cursor in = td_cursor_begin("report", bytes, n_bytes, err);
    return pass_report(&(coder){.in = &in}, report) &&
           (!td_cursor_left(&in) || td_cursor_fail(&in, "there are bytes too many"));
}

static const field hop_field = {"us", F64, 0, 0};

bool td_check_decode_hop(const void *bytes, size_t n_bytes, double *us, td_err *err)
{
    td_cursor in = td_cursor_begin("hop", bytes, n_bytes, err);
    return get(&in, &hop_field, (char *)us) &&
           (!td_cursor_left(&in) || td_cursor_fail(&in, "there are bytes too many"));
}

static bool serve_hop(const td_stage_trial *t, void *bytes, size_t capacity_bytes, size_t *n_bytes,
                      td_err *err)
{
    double us = 0;
    td_cursor_out out = td_cursor_out_begin("hop", bytes, capacity_bytes, err);
    if (!td_speeds_hop(t->spec, t->other, &us, err))
        return false;
    put(&out, &hop_field, (char *)&us);
    *n_bytes = (size_t)out.pos;
    return !out.failed;
}

bool td_check_serve(const td_stage_trial *t, void *bytes, size_t capacity_bytes, size_t *n_bytes,
                    td_err *err)
{
    if (t->is_hop)
        return serve_hop(t, bytes, capacity_bytes, n_bytes, err);
    td_check_report *report = td_alloc(1, sizeof *report, err);
    bool is_ok = report && td_check_device(t->spec, t->other,
                                           &(td_check_params){.only = t->only,
                                                              .is_quick = t->is_quick,
                                                              .budget_s = TD_CHECK_BUDGET_S,
                                                              .progress = t->progress,
                                                              .user = t->user},
                                           report, err) &&
                 td_check_encode(report, bytes, capacity_bytes, n_bytes, err);
    td_free(report);
    return is_ok;
}
