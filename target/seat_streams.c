#include "target/seat_streams.h"

#include "base/clock.h"

#include <stdio.h>
#include <string.h>

#define BEAT_US  1000000u /* between two words to a neighbour */
#define HEAR_MAX 16u      /* of its words at once */

/* As it is told to others. */
static uint64_t told_now_us(const td_seat_streams *s)
{
    const td_clock clock = td_clock_real();
    return td_clock_now_us(&clock) + s->at.shift_us;
}

/* -- in ---------------------------------------------------------------------------------------- */

static micro_batch *begin_batch(void *user, const td_stage_batch *told, td_err *err)
{
    td_seat_streams *s = user;
    micro_batch *b = NULL;
    if (told->n_spans != s->at.plan->first_stage)
        td_err_set(err, TD_E_DATA, "a batch with spans of %u stages; allowed: %u", told->n_spans,
                   s->at.plan->first_stage);
    else if (!(b = td_ring_take_batch(s->at.target)))
        td_err_set(err, TD_E_DATA, "more than %u batches at once", TD_TARGET_BATCHES_MAX + 1);
    if (!b)
        return NULL;
    for (uint32_t i = 0; i < told->n_spans; i++)
        b->spans[i] = (td_target_span){told->spans[i].start_us, told->spans[i].end_us,
                                       told->spans[i].waited_us};
    b->received.start_us = told_now_us(s);
    b->n_in_bytes = told->n_bytes;
    bool is_cancelled = told->is_cancelled;
    for (uint32_t i = 0; i < s->n_cancelled && i < TD_SEAT_CANCELLED; i++)
        is_cancelled |= s->cancelled[i] == told->id;
    atomic_store_explicit(&b->is_cancelled, is_cancelled, memory_order_release);
    return b;
}

static bool take_job(void *user, const job *j, td_err *err)
{
    td_seat_streams *s = user;
    s->n_taken += job_is_awaited(j->kind);
    if (j->kind == JOB_DRAFT)
        return td_ring_ask(s->at.target, j->drafts) ||
               td_err_set(err, TD_E_DATA, "a head is asked more than a target asks at once");
    if (j->kind == JOB_FORWARD)
        j->batch->received.end_us = told_now_us(s);
    if (j->kind == JOB_FORWARD && !td_ring_join(s->at.target, j->batch, err))
        return false;
    return td_ring_push(s->at.target, j) ||
           td_err_set(err, TD_E_DATA, "more jobs than batches can need");
}

bool td_seat_streams_take(td_seat_streams *s, const td_stage_msg *m, td_err *err)
{
    if (s->at.load->ticket)
        return td_err_set(err, TD_E_DATA, "two streams");
    return td_stage_in_take(&s->in, m, err);
}

bool td_seat_streams_take_before(td_seat_streams *s, const td_stage_msg *m, td_route route,
                                 uint64_t now_us, td_err *err)
{
    td_seat_neighbour *n = &s->before;
    bool is_new = m->type == TD_STAGE_ATTACH && m->seq == 1 && !n->way.link;
    if (is_new)
        n->way =
            (td_stage_way){.link = s->at.way->link, .route = route, .session = s->at.load->ticket};
    if (!n->way.link || route != n->way.route)
        return true;
    bool is_next = m->seq == n->n_seen + 1;
    n->n_seen = m->seq;
    n->heard_us = now_us;
    if (!is_next)
        return td_err_set(err, TD_E_UNAVAILABLE, "messages of the worker before were lost");
    if (m->type == TD_STAGE_STREAM || m->type == TD_STAGE_PIECE)
        return td_stage_in_take(&s->in, m, err);
    return is_new || m->type == TD_STAGE_PING ||
           td_err_set(err, TD_E_DATA, "a message that a worker does not send");
}

bool td_seat_streams_trace(td_seat_streams *s, td_err *err)
{
    return td_trace_seat_take(&s->trace, s->at.plan->n_parts, err);
}

void td_seat_streams_cancel(td_seat_streams *s, uint64_t batch)
{
    if (!td_ring_cancel(s->at.target, batch))
        s->cancelled[s->n_cancelled++ % TD_SEAT_CANCELLED] = batch;
}

/* -- out --------------------------------------------------------------------------------------- */

/* Not before there is work: then all workers have loaded, and expect it. */
static void meet_next(td_seat_streams *s, uint64_t now_us)
{
    if (!s->next || s->behind.way.n_sent)
        return;
    s->behind.heard_us = s->behind.told_us = now_us;
    td_stage_way_send(&s->behind.way, &(td_stage_msg){.type = TD_STAGE_ATTACH}, NULL);
}

/* Our parts' spans by the clock that is told. */
static void begin_sending(td_seat_streams *s, micro_batch *b)
{
    for (uint32_t i = s->at.plan->first_stage; i < s->form.n_spans; i++) {
        b->spans[i].start_us += s->at.shift_us;
        b->spans[i].end_us += s->at.shift_us;
    }
    s->sending_us = told_now_us(s);
}

static void note_sent(td_seat_streams *s, const micro_batch *b)
{
    const td_target_span sent = {.start_us = s->sending_us, .end_us = told_now_us(s)};
    td_trace_seat_note(&s->trace, b, s->at.plan->first_stage, s->out.n_bytes, sent);
}

static bool send_finished(td_seat_streams *s, uint64_t now_us, td_err *err)
{
    while (true) {
        if (!s->sending) {
            s->sending = td_ring_next(s->at.target);
            s->is_put = false;
            if (s->sending && s->sending->kind == JOB_FORWARD)
                begin_sending(s, s->sending->batch);
        }
        job *j = s->sending;
        bool is_batch = j && j->kind == JOB_FORWARD;
        bool is_guessed = j && j->kind == JOB_DRAFT && s->form.is_result;
        if (j)
            meet_next(s, now_us);
        if (is_batch && j->batch->err.code != TD_OK)
            return td_err_set(err, j->batch->err.code, "%s", j->batch->err.message);
        if (j && !s->is_put)
            s->is_put =
                (!is_batch && !is_guessed && !s->next) || td_stage_out_put(&s->out, j, &s->form);
        if (!td_stage_out_flush(&s->out, err))
            return false;
        if (!j || !td_stage_out_is_idle(&s->out))
            return true;
        if (!s->is_put)
            continue; /* there is room now */
        s->n_done += job_is_awaited(j->kind);
        if (is_batch)
            note_sent(s, j->batch);
        td_ring_give_back(s->at.target, j);
        s->sending = NULL;
    }
}

/* -- neighbours -------------------------------------------------------------------------------- */

/* All that a worker says to the one before is that it is there. */
static bool hear_behind(td_seat_streams *s, uint64_t now_us, td_err *err)
{
    uint8_t bytes[TD_WIRE_MESSAGE_MAX];
    if (s->next && td_link_was_cut(s->next))
        return td_err_set(err, TD_E_UNAVAILABLE, "the connection to the next worker broke");
    for (uint32_t i = 0; s->next && i < HEAR_MAX; i++) {
        size_t n_bytes;
        td_route route;
        td_stage_msg m;
        if (!td_link_recv(s->next, bytes, &n_bytes, &route, err))
            return false;
        if (!n_bytes)
            break;
        if (td_stage_decode(bytes, n_bytes, &m, NULL) && m.type == TD_STAGE_PING &&
            m.session == s->behind.way.session)
            s->behind.heard_us = now_us;
    }
    return true;
}

/* What is on its way to a neighbour counts as a word there, so a slow line is none that is dead. */
static bool mind_neighbour(td_seat_neighbour *n, bool is_met, const char *who, uint64_t now_us,
                           td_err *err)
{
    if (!is_met)
        return true;
    if (now_us > n->heard_us + TD_SEAT_SILENT_US)
        return td_err_set(err, TD_E_UNAVAILABLE, "no word from the %s for %u s", who,
                          TD_SEAT_SILENT_US / 1000000);
    if (now_us - n->told_us > BEAT_US) {
        n->told_us = now_us;
        td_stage_way_send(
            &n->way, &(td_stage_msg){.type = TD_STAGE_PING, .ping = {.echo_us = now_us}}, NULL);
    }
    return true;
}

/* What was found of a chunk, as soon as the link takes it. */
static void tell_found(td_seat_streams *s)
{
    td_stage_msg m = {.type = TD_STAGE_FOUND};
    if (!s->has_found)
        s->has_found = td_ring_found(s->at.target, &s->found);
    m.found = s->found;
    if (s->has_found && td_stage_way_send(s->at.way, &m, NULL))
        s->has_found = false;
}

bool td_seat_streams_step(td_seat_streams *s, uint64_t now_us, td_err *err)
{
    tell_found(s);
    td_trace_seat_answer(&s->trace, s->at.way);
    return send_finished(s, now_us, err) && hear_behind(s, now_us, err) &&
           mind_neighbour(&s->before, s->before.way.link, "worker before", now_us, err) &&
           mind_neighbour(&s->behind, s->behind.way.n_sent, "next worker", now_us, err);
}

/* -- both -------------------------------------------------------------------------------------- */

/* A path from the wire would be one that a peer chooses: none but of a socket beside our own, and a
 * key only itself. */
bool td_seat_streams_check_next(const char *next, const char *own, td_err *err)
{
    const char *slash = strrchr(own, '/'), *comma = strchr(next, ',');
    size_t n_folder = slash ? (size_t)(slash + 1 - own) : 0;
    bool is_tcp = !strncmp(next, "tcp://", 6) && (!comma || comma[1] == '=');
    bool is_near = n_folder && !strncmp(own, "ipc://", 6) && !strncmp(next, own, n_folder) &&
                   !strchr(next + n_folder, '/');
    return is_tcp || is_near ||
           td_err_set(err, TD_E_DATA,
                      "the next worker is at \"%.100s\"; allowed: tcp://, or a socket beside this "
                      "worker's",
                      next);
}

bool td_seat_streams_begin(td_seat_streams *s, const td_seat_streams_params *params, td_err *err)
{
    const td_hparams *h = td_model_hparams(td_target_model(params->target));
    const td_stage_plan *p = params->plan;
    const td_stage_load *l = params->load;
    bool is_first = p->parts[0].first == 0;
    memset(s, 0, sizeof *s);
    s->at = *params;
    s->in = (td_stage_in){.limits = {.n_slots = p->n_slots,
                                     .n_ctx = td_target_n_ctx(params->target),
                                     .n_vocab = h->n_vocab,
                                     .n_embd = is_first ? 0 : h->n_embd,
                                     .wire = p->wire,
                                     .has_head = p->head},
                          .begin = begin_batch,
                          .done = take_job,
                          .user = s};
    s->form = (td_stage_form){.n_embd = h->n_embd,
                              .n_spans = (uint32_t)p->first_stage + p->n_parts,
                              .wire = p->wire,
                              .is_result = p->parts[p->n_parts - 1].last + 1u == h->n_layer};
    td_stage_out_begin(&s->out, l->next[0] ? &s->behind.way : params->way);
    if (!l->next[0])
        return true;
    if (!td_seat_streams_check_next(l->next, params->endpoint, err))
        return false;
    s->next = td_link_open(params->transport, l->next, TD_LINK_CONNECT, err);
    s->behind.way = (td_stage_way){.link = s->next, .session = l->next_ticket};
    return s->next != NULL;
}

void td_seat_streams_end(td_seat_streams *s)
{
    td_link_close(&s->next, true);
    td_trace_seat_end(&s->trace);
    s->sending = NULL;
    s->n_taken = s->n_done = 0;
}
