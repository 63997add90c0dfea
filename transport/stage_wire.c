/* Messages of stages: what is said before and beside the stream. As in wire.c there is one list of
 * what is allowed, which both directions pass; the reader and the writer only move bytes. */
#include "transport/stage_wire.h"

#include "base/check.h"
#include "transport/wire_parts.h"

#include <inttypes.h>
#include <string.h>

#define HELLO_OK_MAX 16384u /* bytes with the header */
#define PLAN_MAX     2048u
#define FIND_MAX     (TD_WIRE_HEADER_BYTES + 44u + 4u * TD_STAGE_ROWS_MAX)

static const char *const type_names[TD_STAGE_END - TD_STAGE_HELLO] = {
    "HELLO",  "HELLO_OK",    "PLAN",  "PLANNED",  "LOAD",   "LOADING", "READY",  "FAIL",
    "ATTACH", "STREAM",      "PIECE", "CANCEL",   "PING",   "PONG",    "BYE",    "WANT",
    "DATA",   "HELLO_DRAFT", "CHECK", "CHECKING", "REPORT", "PROBE",   "PROBED", "TRACE",
    "EVENTS", "MEET",        "MET",   "KEEP",     "KEPT",   "FIND",    "FOUND",
};

const char *td_stage_type_name(td_stage_type type)
{
    return type >= TD_STAGE_HELLO && type < TD_STAGE_END ? type_names[type - TD_STAGE_HELLO] : "?";
}

static size_t max_bytes(uint8_t type)
{
    switch (type) {
    case TD_STAGE_HELLO_OK:
        return HELLO_OK_MAX;
    case TD_STAGE_PLAN:
        return PLAN_MAX;
    case TD_STAGE_FIND:
        return FIND_MAX;
    case TD_STAGE_STREAM:
    case TD_STAGE_PIECE:
    case TD_STAGE_DATA:
    case TD_STAGE_REPORT:
    case TD_STAGE_PROBE:
    case TD_STAGE_PROBED:
    case TD_STAGE_EVENTS:
        return TD_WIRE_MESSAGE_MAX;
    default:
        return TD_WIRE_HELLO_MAX;
    }
}

static const char *name_of(uint8_t type) { return td_stage_type_name((td_stage_type)type); }

static const td_wire_types types = {TD_STAGE_HELLO, TD_STAGE_END - 1, name_of, max_bytes};

/* --- What is allowed ------------------------------------------------------------------------ */

static bool check_hello_ok(const td_stage_hello_ok *h, td_err *err)
{
    if (h->protocol != TD_STAGE_PROTOCOL)
        return true; /* nothing else was read */
    bool ok = td_wire_check_text("build", h->build, TD_WIRE_BUILD_MAX, err) &&
              td_wire_check_u32("n_devices", h->n_devices, 1, TD_STAGE_DEVICES_MAX, err);
    for (uint32_t i = 0; ok && i < h->n_devices; i++) {
        const td_stage_device *d = &h->devices[i];
        ok = td_wire_check_u32("kind", d->kind, 0, 4, err) &&
             td_wire_check_text("spec", d->spec, TD_STAGE_TEXT_MAX - 1, err) &&
             td_wire_check_text("id", d->id, TD_STAGE_TEXT_MAX - 1, err) &&
             td_wire_check_text("name", d->name, TD_STAGE_TEXT_MAX - 1, err) &&
             td_wire_check_text("driver", d->driver, TD_STAGE_TEXT_MAX - 1, err) &&
             td_wire_check_text("failed", d->failed, TD_WIRE_REASON_MAX, err);
    }
    return ok;
}

static bool check_kv(const td_stage_kv *kv, td_err *err)
{
    bool ok = td_wire_check_u32("rotate_k", kv->rotate_k, 0, TD_STAGE_ROTATES - 1, err) &&
              td_wire_check_u32("rotate_v", kv->rotate_v, 0, TD_STAGE_ROTATES - 1, err) &&
              td_wire_check_u32("n_rules", kv->n_rules, 0, TD_STAGE_RULES_MAX, err);
    for (uint32_t i = 0; ok && i < kv->n_rules; i++)
        ok = td_wire_check_u32("last", kv->rules[i].last, 0, TD_STAGE_LAYERS_MAX - 1, err) &&
             td_wire_check_u32("first", kv->rules[i].first, 0, kv->rules[i].last, err);
    return ok;
}

static bool check_plan(const td_stage_plan *p, td_err *err)
{
    bool ok = td_wire_check_text("model_name", p->model_name, TD_STAGE_TEXT_MAX - 1, err) &&
              td_wire_check_u32("first_stage", p->first_stage, 0, TD_STAGE_PARTS_MAX - 1, err) &&
              td_wire_check_u32("n_parts", p->n_parts, 1,
                                TD_STAGE_PARTS_MAX - (uint32_t)p->first_stage, err) &&
              td_wire_check_u32("n_slots", p->n_slots, 1, TD_STAGE_SLOTS_MAX, err) &&
              check_kv(&p->kv, err) &&
              td_wire_check_u32("n_ctx", p->n_ctx, 0, TD_WIRE_POSITION_MAX, err) &&
              td_wire_check_u32("wire", p->wire, TD_STAGE_F32, TD_STAGE_F16, err);
    for (uint32_t i = 0; ok && i < p->n_parts; i++)
        ok = td_wire_check_u32("last", p->parts[i].last, 0, TD_STAGE_LAYERS_MAX - 1, err) &&
             td_wire_check_u32("first", p->parts[i].first, 0, p->parts[i].last, err) &&
             (i == 0 || td_wire_check_u32("first", p->parts[i].first, p->parts[i - 1].last + 1u,
                                          p->parts[i - 1].last + 1u, err));
    ok = ok && td_wire_check_u32("measure", p->measure, 0, 3, err) &&
         (!p->measure || (td_wire_check_u32("n_parts", p->n_parts, 1, 1, err) &&
                          td_wire_check_u32("n_ctx", p->n_ctx, 1, TD_WIRE_POSITION_MAX, err)));
    ok = ok && td_wire_check_u32("head", p->head, 0, 1, err) &&
         td_wire_check_u32("n_files", p->n_files, 0, TD_STAGE_FILES_MAX, err);
    for (uint32_t i = 0; ok && i < p->n_files; i++) {
        uint64_t n = p->files[i].n_bytes;
        ok = n >= 1 && n <= TD_STAGE_FILE_MAX;
        if (!ok)
            td_err_set(err, TD_E_DATA, "a file of %" PRIu64 " bytes; allowed: 1..%" PRIu64, n,
                       (uint64_t)TD_STAGE_FILE_MAX);
        uint32_t most = n < TD_STAGE_HEAD_MAX ? (uint32_t)n : TD_STAGE_HEAD_MAX;
        ok = ok && td_wire_check_u32("head_bytes", p->files[i].head_bytes, 1, most, err);
    }
    return ok;
}

static bool check_data(const td_stage_data *d, td_err *err)
{
    return td_wire_check_u32("file", d->file, 0, TD_STAGE_FILES_MAX - 1, err) &&
           td_wire_check_u32("n", d->n, 1, TD_STAGE_DATA_MAX, err) &&
           (d->offset < TD_STAGE_FILE_MAX ||
            td_err_set(err, TD_E_DATA, "offset is %" PRIu64 "; allowed: 0..%" PRIu64, d->offset,
                       (uint64_t)TD_STAGE_FILE_MAX - 1));
}

static bool check_events(const td_stage_events *e, td_err *err)
{
    td_stage_event event;
    if (!td_wire_check_u32("n_parts", e->n_parts, 1, TD_STAGE_PARTS_MAX, err) ||
        !td_wire_check_u32("n", e->n, 0, TD_STAGE_EVENTS_MAX, err))
        return false;
    if (e->n_bytes != e->n * td_stage_event_bytes(e->n_parts))
        return td_err_set(err, TD_E_DATA, "%zu bytes of %u events; allowed: %zu", e->n_bytes, e->n,
                          e->n * td_stage_event_bytes(e->n_parts));
    td_cursor c = td_cursor_begin("event", e->bytes, e->n_bytes, err);
    for (uint32_t i = 0; i < e->n; i++)
        if (!td_stage_read_event(&c, e->n_parts, &event))
            return false;
    return true;
}

static bool check_meet(const td_stage_meet *m, td_err *err)
{
    return (m->ticket != 0 ||
            td_err_set(err, TD_E_DATA, "ticket is 0; allowed: any other number")) &&
           td_wire_check_text("next", m->next, TD_STAGE_ENDPOINT_MAX, err);
}

static bool check_payload(const td_stage_msg *m, td_err *err)
{
    switch (m->type) {
    case TD_STAGE_HELLO:
    case TD_STAGE_HELLO_DRAFT:
        return m->hello.protocol != TD_STAGE_PROTOCOL ||
               td_wire_check_text("build", m->hello.build, TD_WIRE_BUILD_MAX, err);
    case TD_STAGE_HELLO_OK:
        return check_hello_ok(&m->hello_ok, err);
    case TD_STAGE_PLAN:
        return check_plan(&m->plan, err);
    case TD_STAGE_PLANNED:
        return td_wire_check_u32("n_ctx", m->planned.n_ctx, 1, TD_WIRE_POSITION_MAX, err) &&
               td_wire_check_u32("n_pages", m->planned.n_pages, 0, TD_STAGE_PAGES_MAX, err) &&
               td_wire_check_u32("n_parts", m->planned.n_parts, 1, TD_STAGE_PARTS_MAX, err);
    case TD_STAGE_LOAD:
        return td_wire_check_u32("n_ctx", m->load.n_ctx, 1, TD_WIRE_POSITION_MAX, err) &&
               td_wire_check_u32("n_pages", m->load.n_pages, 0, TD_STAGE_PAGES_MAX, err) &&
               td_wire_check_text("next", m->load.next, TD_STAGE_ENDPOINT_MAX, err);
    case TD_STAGE_READY:
        return td_wire_check_u32("n_parts", m->ready.n_parts, 1, TD_STAGE_PARTS_MAX, err);
    case TD_STAGE_FAIL:
        return td_wire_check_u32("code", m->fail.code, 1, TD_STAGE_FAIL_END - 1, err) &&
               td_wire_check_text("reason", m->fail.reason, TD_WIRE_REASON_MAX, err);
    case TD_STAGE_PIECE:
        return td_wire_check_u32("n", m->piece.n, 1, TD_STAGE_PIECE_MAX, err);
    case TD_STAGE_WANT:
    case TD_STAGE_DATA:
        return check_data(&m->data, err);
    case TD_STAGE_CHECK:
        return td_wire_check_u32("device", m->check.device, 0, TD_STAGE_DEVICES_MAX - 1, err) &&
               td_wire_check_u32("other", m->check.other, 0, TD_STAGE_DEVICES_MAX - 1, err) &&
               td_wire_check_text("only", m->check.only, TD_STAGE_ONLY_MAX - 1, err);
    case TD_STAGE_CHECKING:
        return td_wire_check_text("checking", m->checking, TD_STAGE_TEXT_MAX - 1, err);
    case TD_STAGE_PROBE:
    case TD_STAGE_PROBED:
        return td_wire_check_u32("n", m->probe.n, 1, TD_STAGE_DATA_MAX, err) &&
               (m->type == TD_STAGE_PROBED ||
                td_wire_check_u32("n_back", m->probe.n_back, 1, TD_STAGE_DATA_MAX, err));
    case TD_STAGE_EVENTS:
        return check_events(&m->events, err);
    case TD_STAGE_MEET:
        return check_meet(&m->meet, err);
    case TD_STAGE_MET:
        return td_wire_check_text("why", m->met.why, TD_WIRE_REASON_MAX, err);
    case TD_STAGE_KEEP:
        return td_wire_check_u32("keep", m->keep, 1, TD_STAGE_ROWS_MAX, err);
    case TD_STAGE_FIND:
        return td_wire_check_u32("n", m->find.n, 1, TD_STAGE_ROWS_MAX, err) &&
               td_wire_check_u32("first", m->find.first, 0, TD_WIRE_POSITION_MAX, err);
    case TD_STAGE_FOUND:
        return td_wire_check_u32("found", m->found.what, 0, TD_STAGE_FOUND_END - 1, err);
    case TD_STAGE_REPORT:
        return td_wire_check_u32("n", (uint32_t)m->stream.n, 1, TD_STAGE_REPORT_MAX, err);
    default:
        return true;
    }
}

static bool check_message(const td_stage_msg *m, td_err *err)
{
    bool ok = true;
    if (m->session == 0 || m->seq == 0)
        ok = td_err_set(err, TD_E_DATA, "session or seq is 0; allowed: any other number");
    return (ok && check_payload(m, err)) ||
           td_err_prepend(err, "%s message", td_stage_type_name(m->type));
}

/* --- Writing -------------------------------------------------------------------------------- */

static void write_hello_ok(td_cursor_out *c, const td_stage_hello_ok *h)
{
    td_cursor_write_u32(c, h->protocol);
    if (h->protocol != TD_STAGE_PROTOCOL)
        return;
    td_wire_write_text(c, h->build);
    td_cursor_write_u8(c, h->n_devices);
    for (uint32_t i = 0; i < h->n_devices; i++) {
        const td_stage_device *d = &h->devices[i];
        td_cursor_write_u8(c, d->kind);
        td_cursor_write_u32(c, d->n_threads);
        td_cursor_write_u64(c, d->usable_bytes);
        td_cursor_write_u64(c, d->total_bytes);
        td_wire_write_text(c, d->spec);
        td_wire_write_text(c, d->id);
        td_wire_write_text(c, d->name);
        td_wire_write_text(c, d->driver);
        td_wire_write_text(c, d->failed);
    }
}

static void write_kv(td_cursor_out *c, const td_stage_kv *kv)
{
    td_cursor_write_u8(c, kv->type_k);
    td_cursor_write_u8(c, kv->type_v);
    td_cursor_write_u8(c, kv->rotate_k);
    td_cursor_write_u8(c, kv->rotate_v);
    td_cursor_write_u8(c, kv->n_rules);
    for (uint32_t i = 0; i < kv->n_rules; i++) {
        td_cursor_write_u16(c, kv->rules[i].first);
        td_cursor_write_u16(c, kv->rules[i].last);
        td_cursor_write_u8(c, kv->rules[i].type_k);
        td_cursor_write_u8(c, kv->rules[i].type_v);
    }
}

static void write_plan(td_cursor_out *c, const td_stage_plan *p)
{
    td_cursor_write_bytes(c, p->hash, sizeof p->hash);
    td_cursor_write_u64(c, p->model_bytes);
    td_wire_write_text(c, p->model_name);
    td_cursor_write_u8(c, p->first_stage);
    td_cursor_write_u8(c, p->n_parts);
    td_cursor_write_u8(c, p->experts_device);
    td_cursor_write_u8(c, p->n_slots);
    write_kv(c, &p->kv);
    td_cursor_write_u8(c, p->wire);
    td_cursor_write_u32(c, p->n_ctx);
    for (uint32_t i = 0; i < p->n_parts; i++) {
        td_cursor_write_u8(c, p->parts[i].device);
        td_cursor_write_u16(c, p->parts[i].first);
        td_cursor_write_u16(c, p->parts[i].last);
    }
    td_cursor_write_u8(c, p->measure);
    td_cursor_write_u8(c, p->head);
    td_cursor_write_u8(c, p->n_files);
    for (uint32_t i = 0; i < p->n_files; i++) {
        td_cursor_write_u64(c, p->files[i].n_bytes);
        td_cursor_write_u32(c, p->files[i].head_bytes);
    }
}

static void write_planned(td_cursor_out *c, const td_stage_planned *p)
{
    td_cursor_write_u32(c, p->n_ctx);
    td_cursor_write_u32(c, p->n_pages);
    td_cursor_write_u8(c, p->n_parts);
    for (uint32_t i = 0; i < p->n_parts; i++) {
        td_cursor_write_u64(c, p->parts[i].n_bytes);
        td_cursor_write_u64(c, p->parts[i].budget_bytes);
        td_cursor_write_u64(c, p->parts[i].experts_bytes);
    }
}

static void write_ready(td_cursor_out *c, const td_stage_ready *r)
{
    td_cursor_write_u8(c, r->forgets);
    td_cursor_write_u8(c, r->n_parts);
    for (uint32_t i = 0; i < r->n_parts; i++) {
        td_cursor_write_u64(c, r->parts[i].file_bytes);
        td_cursor_write_u64(c, r->parts[i].load_us);
    }
}

static void write_data(td_cursor_out *c, const td_stage_msg *m)
{
    td_cursor_write_u8(c, m->data.file);
    td_cursor_write_u64(c, m->data.offset);
    if (m->type == TD_STAGE_WANT)
        td_cursor_write_u32(c, m->data.n);
    else
        td_cursor_write_bytes(c, m->data.bytes, m->data.n);
}

static void write_find(td_cursor_out *c, const td_stage_find *f)
{
    td_cursor_write_u64(c, f->batch);
    td_cursor_write_u32(c, f->first);
    td_cursor_write_bytes(c, f->before, sizeof f->before);
    for (uint32_t i = 0; i < f->n; i++)
        td_cursor_write_u32(c, f->tokens[i]);
}

static void write_payload(td_cursor_out *c, const td_stage_msg *m)
{
    switch (m->type) {
    case TD_STAGE_HELLO:
    case TD_STAGE_HELLO_DRAFT:
        td_cursor_write_u32(c, m->hello.protocol);
        if (m->hello.protocol == TD_STAGE_PROTOCOL)
            td_wire_write_text(c, m->hello.build);
        break;
    case TD_STAGE_HELLO_OK:
        write_hello_ok(c, &m->hello_ok);
        break;
    case TD_STAGE_PLAN:
        write_plan(c, &m->plan);
        break;
    case TD_STAGE_PLANNED:
        write_planned(c, &m->planned);
        break;
    case TD_STAGE_LOAD:
        td_cursor_write_u32(c, m->load.n_ctx);
        td_cursor_write_u32(c, m->load.n_pages);
        td_cursor_write_u64(c, m->load.ticket);
        td_cursor_write_u64(c, m->load.next_ticket);
        td_wire_write_text(c, m->load.next);
        break;
    case TD_STAGE_LOADING:
        td_cursor_write_u64(c, m->loading.done);
        td_cursor_write_u64(c, m->loading.total);
        break;
    case TD_STAGE_READY:
        write_ready(c, &m->ready);
        break;
    case TD_STAGE_FAIL:
        td_cursor_write_u8(c, (uint8_t)m->fail.code);
        td_wire_write_text(c, m->fail.reason);
        break;
    case TD_STAGE_PIECE:
        td_cursor_write_u64(c, m->piece.batch);
        td_cursor_write_u32(c, m->piece.offset);
        td_cursor_write_bytes(c, m->piece.bytes, m->piece.n);
        break;
    case TD_STAGE_CANCEL:
        td_cursor_write_u64(c, m->cancel);
        break;
    case TD_STAGE_PING:
    case TD_STAGE_PONG:
        td_cursor_write_u64(c, m->ping.echo_us);
        td_cursor_write_u64(c, m->ping.now_us);
        td_cursor_write_u64(c, m->ping.progress);
        td_cursor_write_u32(c, m->ping.n_pending);
        break;
    case TD_STAGE_WANT:
    case TD_STAGE_DATA:
        write_data(c, m);
        break;
    case TD_STAGE_CHECK:
        td_cursor_write_u8(c, m->check.device);
        td_cursor_write_u8(c, m->check.other);
        td_cursor_write_u8(c, m->check.is_quick);
        td_cursor_write_u8(c, m->check.is_hop);
        td_wire_write_text(c, m->check.only);
        break;
    case TD_STAGE_CHECKING:
        td_wire_write_text(c, m->checking);
        break;
    case TD_STAGE_REPORT:
        td_cursor_write_bytes(c, m->stream.bytes, m->stream.n);
        break;
    case TD_STAGE_PROBE:
        td_cursor_write_u32(c, m->probe.n_back);
        td_cursor_write_bytes(c, m->probe.bytes, m->probe.n);
        break;
    case TD_STAGE_PROBED:
        td_cursor_write_bytes(c, m->probe.bytes, m->probe.n);
        break;
    case TD_STAGE_EVENTS:
        td_cursor_write_u64(c, m->events.n_dropped);
        td_cursor_write_u32(c, m->events.n_left);
        td_cursor_write_u8(c, m->events.n_parts);
        td_cursor_write_u16(c, m->events.n);
        td_cursor_write_bytes(c, m->events.bytes, m->events.n_bytes);
        break;
    case TD_STAGE_MEET:
        td_cursor_write_u64(c, m->meet.ticket);
        td_wire_write_text(c, m->meet.next);
        break;
    case TD_STAGE_MET:
        td_cursor_write_u32(c, m->met.idle_ns);
        td_cursor_write_u32(c, m->met.loaded_ns);
        td_cursor_write_u64(c, m->met.bytes_per_s);
        td_wire_write_text(c, m->met.why);
        break;
    case TD_STAGE_KEEP:
        td_cursor_write_u16(c, m->keep);
        break;
    case TD_STAGE_KEPT:
        td_cursor_write_u8(c, m->kept);
        break;
    case TD_STAGE_FIND:
        write_find(c, &m->find);
        break;
    case TD_STAGE_FOUND:
        td_cursor_write_u64(c, m->found.batch);
        td_cursor_write_u8(c, (uint8_t)m->found.what);
        break;
    case TD_STAGE_TRACE:
    case TD_STAGE_ATTACH:
    case TD_STAGE_STREAM:
    case TD_STAGE_BYE:
    case TD_STAGE_END:
        break;
    }
}

bool td_stage_encode(const td_stage_msg *msg, void *buffer, size_t capacity_bytes, size_t *n_bytes,
                     td_err *err)
{
    TD_ASSERT(msg->type >= TD_STAGE_HELLO && msg->type < TD_STAGE_END &&
              msg->type != TD_STAGE_STREAM);
    if (!check_message(msg, err))
        return false;
    size_t cap = max_bytes((uint8_t)msg->type);
    td_wire_head head = {(uint8_t)msg->type, msg->session, msg->seq};
    td_cursor_out c = td_cursor_out_begin(td_stage_type_name(msg->type), buffer,
                                          capacity_bytes < cap ? capacity_bytes : cap, err);
    td_wire_begin(&c);
    write_payload(&c, msg);
    return td_wire_end(&c, &head, n_bytes, err);
}

/* --- Reading -------------------------------------------------------------------------------- */

static bool read_bool(td_cursor *c, bool *out)
{
    uint8_t value;
    if (!td_cursor_read_u8(c, &value))
        return false;
    *out = value != 0;
    return value <= 1 || td_cursor_fail(c, "a flag is %u; allowed: 0, 1", value);
}

static bool read_count(td_cursor *c, const char *field, uint8_t *out, uint32_t max)
{
    return td_cursor_read_u8(c, out) &&
           (*out <= max || td_cursor_fail(c, "%s is %u; allowed: 0..%u", field, *out, max));
}

static bool read_hello(td_cursor *c, td_stage_hello *h)
{
    if (!td_cursor_read_u32(c, &h->protocol))
        return false;
    return h->protocol != TD_STAGE_PROTOCOL
               ? td_cursor_skip(c, td_cursor_left(c))
               : td_wire_read_text(c, "build", h->build, TD_WIRE_BUILD_MAX);
}

static bool read_hello_ok(td_cursor *c, td_stage_hello_ok *h)
{
    if (!td_cursor_read_u32(c, &h->protocol))
        return false;
    if (h->protocol != TD_STAGE_PROTOCOL)
        return td_cursor_skip(c, td_cursor_left(c));
    bool ok = td_wire_read_text(c, "build", h->build, TD_WIRE_BUILD_MAX) &&
              read_count(c, "n_devices", &h->n_devices, TD_STAGE_DEVICES_MAX);
    for (uint32_t i = 0; ok && i < h->n_devices; i++) {
        td_stage_device *d = &h->devices[i];
        ok = td_cursor_read_u8(c, &d->kind) && td_cursor_read_u32(c, &d->n_threads) &&
             td_cursor_read_u64(c, &d->usable_bytes) && td_cursor_read_u64(c, &d->total_bytes) &&
             td_wire_read_text(c, "spec", d->spec, TD_STAGE_TEXT_MAX - 1) &&
             td_wire_read_text(c, "id", d->id, TD_STAGE_TEXT_MAX - 1) &&
             td_wire_read_text(c, "name", d->name, TD_STAGE_TEXT_MAX - 1) &&
             td_wire_read_text(c, "driver", d->driver, TD_STAGE_TEXT_MAX - 1) &&
             td_wire_read_text(c, "failed", d->failed, TD_WIRE_REASON_MAX);
    }
    return ok;
}

static bool read_kv(td_cursor *c, td_stage_kv *kv)
{
    bool ok = td_cursor_read_u8(c, &kv->type_k) && td_cursor_read_u8(c, &kv->type_v) &&
              td_cursor_read_u8(c, &kv->rotate_k) && td_cursor_read_u8(c, &kv->rotate_v) &&
              read_count(c, "n_rules", &kv->n_rules, TD_STAGE_RULES_MAX);
    for (uint32_t i = 0; ok && i < kv->n_rules; i++) {
        td_stage_kv_rule *r = &kv->rules[i];
        ok = td_cursor_read_u16(c, &r->first) && td_cursor_read_u16(c, &r->last) &&
             td_cursor_read_u8(c, &r->type_k) && td_cursor_read_u8(c, &r->type_v);
    }
    return ok;
}

static bool read_plan(td_cursor *c, td_stage_plan *p)
{
    bool ok = td_cursor_read_bytes(c, p->hash, sizeof p->hash) &&
              td_cursor_read_u64(c, &p->model_bytes) &&
              td_wire_read_text(c, "model_name", p->model_name, TD_STAGE_TEXT_MAX - 1) &&
              td_cursor_read_u8(c, &p->first_stage) &&
              read_count(c, "n_parts", &p->n_parts, TD_STAGE_PARTS_MAX) &&
              td_cursor_read_u8(c, &p->experts_device) && td_cursor_read_u8(c, &p->n_slots) &&
              read_kv(c, &p->kv) && td_cursor_read_u8(c, &p->wire) &&
              td_cursor_read_u32(c, &p->n_ctx);
    for (uint32_t i = 0; ok && i < p->n_parts; i++)
        ok = td_cursor_read_u8(c, &p->parts[i].device) &&
             td_cursor_read_u16(c, &p->parts[i].first) && td_cursor_read_u16(c, &p->parts[i].last);
    ok = ok && td_cursor_read_u8(c, &p->measure) && td_cursor_read_u8(c, &p->head) &&
         read_count(c, "n_files", &p->n_files, TD_STAGE_FILES_MAX);
    for (uint32_t i = 0; ok && i < p->n_files; i++)
        ok = td_cursor_read_u64(c, &p->files[i].n_bytes) &&
             td_cursor_read_u32(c, &p->files[i].head_bytes);
    return ok;
}

static bool read_planned(td_cursor *c, td_stage_planned *p)
{
    bool ok = td_cursor_read_u32(c, &p->n_ctx) && td_cursor_read_u32(c, &p->n_pages) &&
              read_count(c, "n_parts", &p->n_parts, TD_STAGE_PARTS_MAX);
    for (uint32_t i = 0; ok && i < p->n_parts; i++)
        ok = td_cursor_read_u64(c, &p->parts[i].n_bytes) &&
             td_cursor_read_u64(c, &p->parts[i].budget_bytes) &&
             td_cursor_read_u64(c, &p->parts[i].experts_bytes);
    return ok;
}

static bool read_ready(td_cursor *c, td_stage_ready *r)
{
    bool ok =
        read_bool(c, &r->forgets) && read_count(c, "n_parts", &r->n_parts, TD_STAGE_PARTS_MAX);
    for (uint32_t i = 0; ok && i < r->n_parts; i++)
        ok = td_cursor_read_u64(c, &r->parts[i].file_bytes) &&
             td_cursor_read_u64(c, &r->parts[i].load_us);
    return ok;
}

static bool read_piece(td_cursor *c, td_stage_piece *p)
{
    if (!td_cursor_read_u64(c, &p->batch) || !td_cursor_read_u32(c, &p->offset))
        return false;
    p->n = (uint32_t)td_cursor_left(c); /* the message's length has a limit */
    p->bytes = td_cursor_take(c, p->n);
    return p->bytes != NULL;
}

static bool read_data(td_cursor *c, td_stage_type type, td_stage_data *d)
{
    if (!td_cursor_read_u8(c, &d->file) || !td_cursor_read_u64(c, &d->offset))
        return false;
    if (type == TD_STAGE_WANT)
        return td_cursor_read_u32(c, &d->n);
    d->n = (uint32_t)td_cursor_left(c); /* the message's length has a limit */
    d->bytes = td_cursor_take(c, d->n);
    return d->bytes != NULL;
}

static bool read_probe(td_cursor *c, td_stage_type type, td_stage_probe *p)
{
    if (type == TD_STAGE_PROBE && !td_cursor_read_u32(c, &p->n_back))
        return false;
    p->n = (uint32_t)td_cursor_left(c); /* the message's length has a limit */
    p->bytes = td_cursor_take(c, p->n);
    return p->bytes != NULL;
}

static bool read_events(td_cursor *c, td_stage_events *e)
{
    if (!td_cursor_read_u64(c, &e->n_dropped) || !td_cursor_read_u32(c, &e->n_left) ||
        !td_cursor_read_u8(c, &e->n_parts) || !td_cursor_read_u16(c, &e->n))
        return false;
    e->n_bytes = (size_t)td_cursor_left(c);
    e->bytes = td_cursor_take(c, e->n_bytes);
    return e->bytes != NULL;
}

/* As many tokens as there are; what is left over is too much (td_stage_decode). */
static bool read_find(td_cursor *c, td_stage_find *f)
{
    bool ok = td_cursor_read_u64(c, &f->batch) && td_cursor_read_u32(c, &f->first) &&
              td_cursor_read_bytes(c, f->before, sizeof f->before);
    while (ok && f->n < TD_STAGE_ROWS_MAX && td_cursor_left(c) >= sizeof f->tokens[0])
        ok = td_cursor_read_u32(c, &f->tokens[f->n++]);
    return ok;
}

static bool read_payload(td_cursor *c, td_stage_msg *m)
{
    uint8_t code = 0;
    switch (m->type) {
    case TD_STAGE_HELLO:
    case TD_STAGE_HELLO_DRAFT:
        return read_hello(c, &m->hello);
    case TD_STAGE_HELLO_OK:
        return read_hello_ok(c, &m->hello_ok);
    case TD_STAGE_PLAN:
        return read_plan(c, &m->plan);
    case TD_STAGE_PLANNED:
        return read_planned(c, &m->planned);
    case TD_STAGE_LOAD:
        return td_cursor_read_u32(c, &m->load.n_ctx) && td_cursor_read_u32(c, &m->load.n_pages) &&
               td_cursor_read_u64(c, &m->load.ticket) &&
               td_cursor_read_u64(c, &m->load.next_ticket) &&
               td_wire_read_text(c, "next", m->load.next, TD_STAGE_ENDPOINT_MAX);
    case TD_STAGE_LOADING:
        return td_cursor_read_u64(c, &m->loading.done) && td_cursor_read_u64(c, &m->loading.total);
    case TD_STAGE_READY:
        return read_ready(c, &m->ready);
    case TD_STAGE_FAIL:
        if (!td_cursor_read_u8(c, &code))
            return false;
        m->fail.code = (td_stage_fail_code)code; /* checked with the rest */
        return td_wire_read_text(c, "reason", m->fail.reason, TD_WIRE_REASON_MAX);
    case TD_STAGE_CHECK:
        return td_cursor_read_u8(c, &m->check.device) && td_cursor_read_u8(c, &m->check.other) &&
               read_bool(c, &m->check.is_quick) && read_bool(c, &m->check.is_hop) &&
               td_wire_read_text(c, "only", m->check.only, TD_STAGE_ONLY_MAX - 1);
    case TD_STAGE_CHECKING:
        return td_wire_read_text(c, "checking", m->checking, TD_STAGE_TEXT_MAX - 1);
    case TD_STAGE_STREAM:
    case TD_STAGE_REPORT:
        m->stream.n = (size_t)td_cursor_left(c);
        m->stream.bytes = td_cursor_take(c, m->stream.n);
        return m->stream.bytes != NULL;
    case TD_STAGE_PIECE:
        return read_piece(c, &m->piece);
    case TD_STAGE_CANCEL:
        return td_cursor_read_u64(c, &m->cancel);
    case TD_STAGE_PING:
    case TD_STAGE_PONG:
        return td_cursor_read_u64(c, &m->ping.echo_us) && td_cursor_read_u64(c, &m->ping.now_us) &&
               td_cursor_read_u64(c, &m->ping.progress) &&
               td_cursor_read_u32(c, &m->ping.n_pending);
    case TD_STAGE_PROBE:
    case TD_STAGE_PROBED:
        return read_probe(c, m->type, &m->probe);
    case TD_STAGE_WANT:
    case TD_STAGE_DATA:
        return read_data(c, m->type, &m->data);
    case TD_STAGE_EVENTS:
        return read_events(c, &m->events);
    case TD_STAGE_MEET:
        return td_cursor_read_u64(c, &m->meet.ticket) &&
               td_wire_read_text(c, "next", m->meet.next, TD_STAGE_ENDPOINT_MAX);
    case TD_STAGE_MET:
        return td_cursor_read_u32(c, &m->met.idle_ns) && td_cursor_read_u32(c, &m->met.loaded_ns) &&
               td_cursor_read_u64(c, &m->met.bytes_per_s) &&
               td_wire_read_text(c, "why", m->met.why, TD_WIRE_REASON_MAX);
    case TD_STAGE_KEEP:
        return td_cursor_read_u16(c, &m->keep);
    case TD_STAGE_KEPT:
        return read_bool(c, &m->kept);
    case TD_STAGE_FIND:
        return read_find(c, &m->find);
    case TD_STAGE_FOUND:
        if (!td_cursor_read_u64(c, &m->found.batch) || !td_cursor_read_u8(c, &code))
            return false;
        m->found.what = (td_stage_there)code; /* checked with the rest */
        return true;
    case TD_STAGE_TRACE:
    case TD_STAGE_ATTACH:
    case TD_STAGE_BYE:
        return true;
    case TD_STAGE_END:
        break;
    }
    return td_cursor_fail(c, "message type %d does not exist", (int)m->type);
}

bool td_stage_decode(const void *bytes, size_t n_bytes, td_stage_msg *msg, td_err *err)
{
    td_cursor c = td_cursor_begin("message", bytes, n_bytes, err);
    td_wire_head head;
    memset(msg, 0, sizeof *msg);
    if (!td_wire_read_head(&c, &types, &head))
        return false;
    msg->type = (td_stage_type)head.type;
    msg->session = head.session;
    msg->seq = head.seq;
    if (!read_payload(&c, msg))
        return false;
    if (td_cursor_left(&c) != 0)
        return td_cursor_fail(&c, "%s has %" PRIu64 " bytes too many",
                              td_stage_type_name(msg->type), td_cursor_left(&c));
    return check_message(msg, err);
}
