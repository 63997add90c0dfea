/* Jobs become records and records jobs. */
#include "target/stage_stream.h"

#include "base/check.h"
#include "kernels/types.h"

#include <string.h>

#define F16_MAX 65504.0f

_Static_assert(TD_STAGE_F32 == TD_TYPE_F32 && TD_STAGE_F16 == TD_TYPE_F16, "ids of types");
_Static_assert(TD_STAGES_MAX == TD_STAGE_PARTS_MAX, "spans");
_Static_assert(TD_PREFILL_ROWS_MAX == TD_STAGE_ROWS_MAX, "rows of a chunk");
_Static_assert(TD_VERIFY_ROWS_MAX == TD_STAGE_OUT_MAX, "rows of a verification");
_Static_assert(TD_VERIFY_ROWS_MAX == TD_STAGE_SLOTS_MAX, "sequences of an ask");
_Static_assert(TD_WIRE_DRAFT_MAX >= TD_STAGE_GUESSES_MAX, "guesses");

bool td_stage_way_send(td_stage_way *way, td_stage_msg *msg, td_err *err)
{
    uint8_t bytes[TD_WIRE_MESSAGE_MAX];
    size_t n_bytes;
    msg->session = way->session;
    msg->seq = way->n_sent + 1;
    if (!td_stage_encode(msg, bytes, sizeof bytes, &n_bytes, err) ||
        !td_link_send(way->link, way->route, bytes, n_bytes, err))
        return false;
    way->n_sent++;
    return true;
}

/* -- halves ----------------------------------------------------------------------------------
 * In place, so that a batch takes no more memory: a half is written where all floats before the one
 * it is of have been read, a float where all halves behind its own have. */

void td_stage_pack(float *values, size_t n)
{
    uint8_t *bytes = (uint8_t *)values;
    for (size_t i = 0; i < n; i++) {
        float x = values[i];
        uint16_t half = td_f32_to_f16(x > F16_MAX ? F16_MAX : x < -F16_MAX ? -F16_MAX : x);
        memcpy(bytes + 2 * i, &half, sizeof half);
    }
}

void td_stage_unpack(float *values, size_t n)
{
    const uint8_t *bytes = (const uint8_t *)values;
    while (n-- > 0) {
        uint16_t half;
        memcpy(&half, bytes + 2 * n, sizeof half);
        values[n] = td_f16_to_f32(half);
    }
}

/* -- out ------------------------------------------------------------------------------------- */

void td_stage_out_begin(td_stage_out *out, td_stage_way *way)
{
    *out = (td_stage_out){.way = way};
    td_stage_writer_begin(&out->writer, out->bytes, NULL);
}

/* A batch as the wire has it. */
static void describe(const micro_batch *b, const td_stage_form *form, td_stage_batch *out)
{
    out->id = b->id;
    out->is_prefill = b->mode == TD_MODE_PREFILL;
    out->is_skipped = b->is_skipped;
    out->is_cancelled = atomic_load_explicit(&b->is_cancelled, memory_order_acquire);
    out->is_restored = b->is_restored && b->n_rows && !form->is_result;
    out->n_rows = (uint16_t)b->n_rows;
    out->n_out = (uint16_t)b->n_out;
    out->n_spans = (uint8_t)form->n_spans;
    for (uint32_t i = 0; i < form->n_spans; i++)
        out->spans[i] = (td_stage_span){
            b->spans[i].start_us, b->spans[i].end_us,
            (uint32_t)(b->spans[i].waited_us < UINT32_MAX ? b->spans[i].waited_us : UINT32_MAX)};
    out->n_bytes = out->n_here = out->n_bad = 0;
    if (form->is_result) {
        out->n_bad = (uint16_t)b->n_bad;
        memcpy(out->chosen, b->chosen, b->n_out * sizeof *b->chosen);
        memcpy(out->bad, b->bad, b->n_bad * sizeof *b->bad);
        return;
    }
    for (uint32_t i = 0; i < b->n_rows; i++)
        out->rows[i] = (td_stage_row){.slot = (uint8_t)b->rows[i].slot,
                                      .is_output = b->rows[i].is_output,
                                      .i_out = b->rows[i].is_output ? b->i_out[i] : 0,
                                      .sequence = b->rows[i].sequence,
                                      .position = b->rows[i].position,
                                      .token = b->rows[i].token};
    bool is_empty = b->is_skipped || out->is_restored;
    out->n_bytes = is_empty ? 0 : b->n_rows * td_stage_row_bytes(form->n_embd, form->wire);
    out->bytes = (const uint8_t *)b->activations;
}

static void describe_drafts(const draft_batch *b, bool is_answered, td_stage_asks *out)
{
    out->n = (uint8_t)b->n;
    for (uint32_t i = 0; i < b->n; i++) {
        const td_proposal *p = &b->proposals[i];
        out->of[i].slot = (uint8_t)b->slots[i];
        out->of[i].k = (uint8_t)td_min_u32(p->k, TD_STAGE_GUESSES_MAX);
        out->of[i].position = p->position;
        out->of[i].token = b->tokens[i];
        out->of[i].n_ids = is_answered ? (uint8_t)p->n : 0;
        out->of[i].busy_us = p->busy_us;
        memcpy(out->of[i].ids, p->ids, out->of[i].n_ids * sizeof *p->ids);
    }
}

static td_stage_record record_of(td_stage_out *out, const job *j, const td_stage_form *form)
{
    static const td_record_kind kinds[] = {
        [JOB_FORWARD] = TD_RECORD_BATCH,     [JOB_OPEN] = TD_RECORD_OPEN,
        [JOB_TRUNCATE] = TD_RECORD_TRUNCATE, [JOB_COMMIT] = TD_RECORD_COMMIT,
        [JOB_CLOSE] = TD_RECORD_CLOSE,       [JOB_DRAFT] = TD_RECORD_ASK};
    td_stage_record r = {.kind = kinds[j->kind],
                         .slot = (uint8_t)j->slot,
                         .from_slot = (uint8_t)j->from_slot,
                         .length = j->length,
                         .batch = &out->batch,
                         .asks = &out->asks};
    if (j->kind == JOB_OPEN)
        r.open = (td_wire_open){.stream = j->stream,
                                .temperature = j->sampling.temperature,
                                .top_k = j->sampling.top_k,
                                .top_p = j->sampling.top_p,
                                .min_p = j->sampling.min_p,
                                .repeat_penalty = j->sampling.repeat_penalty,
                                .repeat_last_n = j->sampling.repeat_last_n};
    if (j->kind == JOB_FORWARD) {
        r.kind = form->is_result ? TD_RECORD_RESULT : TD_RECORD_BATCH;
        describe(j->batch, form, &out->batch);
    }
    if (j->kind == JOB_DRAFT) {
        r.kind = form->is_result ? TD_RECORD_GUESSES : TD_RECORD_ASK;
        describe_drafts(j->drafts, form->is_result, &out->asks);
    }
    return r;
}

bool td_stage_out_put(td_stage_out *out, const job *j, const td_stage_form *form)
{
    TD_ASSERT(j->kind != JOB_STOP);
    if (out->is_due || out->b)
        return false;
    bool is_half = j->kind == JOB_FORWARD && !form->is_result && form->wire == TD_STAGE_F16;
    bool is_empty = j->kind == JOB_FORWARD && (j->batch->is_skipped || j->batch->is_restored);
    if (is_half && !is_empty && out->packed != j->batch) {
        td_stage_pack(j->batch->activations, (size_t)j->batch->n_rows * form->n_embd);
        out->packed = j->batch;
    }
    td_stage_record r = record_of(out, j, form);
    if (!td_stage_writer_put(&out->writer, &r)) {
        out->is_due = true; /* full */
        return false;
    }
    out->is_due = job_is_awaited(j->kind);
    if (j->kind == JOB_FORWARD) {
        out->packed = NULL;
        out->b = j->batch;
        out->n_done = out->batch.n_here;
        out->n_bytes = out->batch.n_bytes;
    }
    return true;
}

/* False with TD_E_AGAIN: the link is full. */
static bool send_due(td_stage_out *out, td_err *err)
{
    td_stage_way *way = out->way;
    size_t n_bytes;
    td_stage_writer_end(&out->writer, way->session, way->n_sent + 1, &n_bytes);
    if (!td_link_send(way->link, way->route, out->bytes, n_bytes, err))
        return false;
    way->n_sent++;
    out->is_due = false;
    td_stage_writer_begin(&out->writer, out->bytes, NULL);
    return true;
}

static bool send_piece(td_stage_out *out, td_err *err)
{
    uint32_t left = out->n_bytes - out->n_done;
    td_stage_msg m = {.type = TD_STAGE_PIECE,
                      .piece = {.batch = out->b->id,
                                .offset = out->n_done,
                                .n = td_min_u32(left, TD_STAGE_PIECE_MAX),
                                .bytes = (const uint8_t *)out->b->activations + out->n_done}};
    if (!td_stage_way_send(out->way, &m, err))
        return false;
    out->n_done += m.piece.n;
    return true;
}

bool td_stage_out_flush(td_stage_out *out, td_err *err)
{
    td_err why = {0};
    bool is_ok = true;
    if (out->is_due)
        is_ok = send_due(out, &why);
    while (is_ok && out->b && out->n_done < out->n_bytes)
        is_ok = send_piece(out, &why);
    if (is_ok)
        out->b = NULL;
    return is_ok || why.code == TD_E_AGAIN || td_err_set(err, why.code, "%s", why.message);
}

bool td_stage_out_is_idle(const td_stage_out *out) { return !out->is_due && !out->b; }

/* -- in -------------------------------------------------------------------------------------- */

/* A job of a record that is no batch. */
static job job_of(const td_stage_record *r)
{
    static const job_kind kinds[TD_RECORD_END] = {
        [TD_RECORD_OPEN] = JOB_OPEN,     [TD_RECORD_TRUNCATE] = JOB_TRUNCATE,
        [TD_RECORD_COMMIT] = JOB_COMMIT, [TD_RECORD_CLOSE] = JOB_CLOSE,
        [TD_RECORD_BATCH] = JOB_FORWARD, [TD_RECORD_RESULT] = JOB_FORWARD,
        [TD_RECORD_ASK] = JOB_DRAFT,     [TD_RECORD_GUESSES] = JOB_DRAFT};
    return (job){.kind = kinds[r->kind],
                 .slot = r->slot,
                 .from_slot = r->from_slot,
                 .length = r->length,
                 .stream = r->open.stream,
                 .sampling = {.temperature = r->open.temperature,
                              .top_k = r->open.top_k,
                              .top_p = r->open.top_p,
                              .min_p = r->open.min_p,
                              .repeat_penalty = r->open.repeat_penalty,
                              .repeat_last_n = r->open.repeat_last_n}};
}

/* What was told of a batch, but for its spans, which the caller takes. */
static void fill(micro_batch *b, const td_stage_batch *from, bool is_result)
{
    b->id = from->id;
    b->mode = from->is_prefill ? TD_MODE_PREFILL : TD_MODE_VERIFY;
    b->is_skipped = from->is_skipped;
    b->n_rows = from->n_rows;
    b->n_out = from->n_out;
    if (is_result) {
        b->n_bad = from->n_bad;
        memcpy(b->chosen, from->chosen, from->n_out * sizeof *b->chosen);
        memcpy(b->bad, from->bad, from->n_bad * sizeof *b->bad);
        return;
    }
    b->is_restored = from->is_restored;
    for (uint32_t i = 0; i < from->n_rows; i++) {
        const td_stage_row *r = &from->rows[i];
        b->rows[i] = (td_forward_row){.slot = r->slot,
                                      .position = r->position,
                                      .sequence = r->sequence,
                                      .token = r->token,
                                      .is_output = r->is_output};
        b->i_out[i] = r->i_out;
    }
}

static bool end_batch(td_stage_in *in, td_err *err)
{
    job j = {.kind = JOB_FORWARD, .batch = in->b};
    if (in->n_bytes && in->limits.wire == TD_STAGE_F16)
        td_stage_unpack(in->b->activations, in->n_bytes / 2);
    in->b = NULL;
    return in->done(in->user, &j, err);
}

static bool add_bytes(td_stage_in *in, const uint8_t *bytes, uint32_t n, td_err *err)
{
    if (n)
        memcpy((uint8_t *)in->b->activations + in->n_there, bytes, n);
    in->n_there += n;
    return in->n_there < in->n_bytes || end_batch(in, err);
}

static void fill_drafts(draft_batch *b, const td_stage_asks *from)
{
    b->n = from->n;
    for (uint32_t i = 0; i < from->n; i++) {
        td_proposal *p = &b->proposals[i];
        b->slots[i] = from->of[i].slot;
        b->tokens[i] = from->of[i].token;
        p->position = from->of[i].position;
        p->k = from->of[i].k;
        p->n = from->of[i].n_ids;
        p->busy_us = from->of[i].busy_us;
        memcpy(p->ids, from->of[i].ids, p->n * sizeof *p->ids);
    }
}

static bool take_record(td_stage_in *in, const td_stage_record *r, td_err *err)
{
    bool is_result = r->kind == TD_RECORD_RESULT || r->kind == TD_RECORD_GUESSES;
    job j = job_of(r);
    if ((j.kind == JOB_FORWARD || j.kind == JOB_DRAFT) && in->is_of_results != is_result)
        return td_err_set(err, TD_E_DATA, "a batch where a result is due, or the other way round");
    if (j.kind == JOB_DRAFT) {
        fill_drafts(&in->drafts, r->asks);
        j.drafts = &in->drafts;
    }
    if (j.kind != JOB_FORWARD)
        return in->done(in->user, &j, err);
    in->b = in->begin(in->user, r->batch, err);
    if (!in->b)
        return false;
    fill(in->b, r->batch, is_result);
    in->n_there = 0;
    in->n_bytes = is_result ? 0 : r->batch->n_bytes;
    if (in->n_bytes && !in->b->activations)
        return td_err_set(err, TD_E_DATA, "activations, where none are taken");
    return is_result ? end_batch(in, err) : add_bytes(in, r->batch->bytes, r->batch->n_here, err);
}

bool td_stage_in_take(td_stage_in *in, const td_stage_msg *msg, td_err *err)
{
    if (msg->type == TD_STAGE_PIECE) {
        const td_stage_piece *p = &msg->piece;
        if (!in->b || p->batch != in->batch.id || p->offset != in->n_there ||
            p->n > in->n_bytes - in->n_there)
            return td_err_set(err, TD_E_DATA,
                              "a piece of batch %llu, %u bytes at %u; allowed: what is missing of "
                              "the last batch",
                              (unsigned long long)p->batch, p->n, p->offset);
        return add_bytes(in, p->bytes, p->n, err);
    }
    if (in->b)
        return td_err_set(err, TD_E_DATA, "a batch is not complete when another record comes");
    td_cursor c = td_cursor_begin("STREAM", msg->stream.bytes, msg->stream.n, err);
    while (td_cursor_left(&c) > 0) {
        td_stage_record r = {.batch = &in->batch, .asks = &in->asks};
        if (in->b)
            return td_err_set(err, TD_E_DATA, "records behind a batch that is not complete");
        if (!td_stage_read_record(&c, &in->limits, &r) || !take_record(in, &r, err))
            return false;
    }
    return true;
}
