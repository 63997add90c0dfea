/* A state machine of one session, on the link's thread. Layers or a draft are planned and loaded by
 * a helper thread, one task at a time, so that pings are answered meanwhile; a session that ends
 * during a task is cleaned up when the task is done, and nobody else is served until then. */
#include "target/worker_seat.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/text.h"
#include "target/cache_wire.h"
#include "target/check_seat.h"
#include "target/draft_seat.h"
#include "target/fetch.h"
#include "target/measured.h"
#include "target/meet_seat.h"
#include "target/models.h"
#include "target/ring.h"
#include "target/seat_streams.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define CUT_US   2000000u /* without a word, where some connection broke */
#define PROBE_US 50000u   /* between two looks at whether that was the coordinator's, */
#define LIVE_US  1500000u /* until which a live one has sent a ping */
#define TELL_US  200000u  /* between two words on how far loading is */

/* From PLANNING to FETCHING and back, until all weights are there. */
typedef enum {
    FREE,
    GREETED,
    CHECKING,
    MEETING,
    PLANNING,
    FETCHING,
    PLANNED,
    LOADING,
    READY
} worker_state;

struct td_worker_seat {
    const td_stage_worker_params *params;
    bool is_draft;
    td_clock clock;
    uint64_t shift_us; /* its clock is so far off, for tests */
    td_link *link;     /* the worker's */
    td_models *models;
    td_kept *kept; /* or NULL */
    td_fetch fetch;
    td_stage_hello_ok *hello;
    struct td_worker_seat *other;
    worker_state state;
    /* The session. */
    td_stage_way way; /* to the coordinator */
    uint64_t n_seen, heard_us, told_us, cut_us, probed_us;
    bool is_cut, is_over; /* is_over: it ends when the helper is done */
    td_stage_plan plan;
    td_cache_types kv; /* of the plan */
    td_stage_load load;
    td_target *target;
    const td_model *model; /* a draft's, and where it is served; or NULL */
    td_draft_seat *draft;
    uint32_t n_drafts; /* so far */
    /* What a draft takes, once it is planned; of layers, what the draft beside them will. */
    td_layout_guest guest;
    uint64_t guest_budget_bytes;
    td_check_seat check; /* its bytes are a measurement's too */
    bool is_measured;
    td_meet_seat meet;
    td_seat_streams streams; /* once layers are loaded */
    bool is_keeping;         /* a KEEP came */
    /* The helper. */
    pthread_t thread;
    bool is_thread;
    int fd;
    atomic_bool is_done, is_stopped; /* is_stopped: nobody wants what it plans or loads */
    _Atomic uint64_t loaded, total;
    td_err task_err; /* the helper's until it is done */
    td_err lost;     /* a device: the worker ends */
    td_stage_fail_code task_code;
    char specs[TD_STAGES_MAX][192];
    const char *spec_texts[TD_STAGES_MAX];
    char place[160];
};

typedef td_worker_seat worker;

static uint64_t now_us(const worker *w) { return td_clock_now_us(&w->clock) + w->shift_us; }

/* -- the helper -------------------------------------------------------------------------------- */

static bool on_progress(void *user, uint64_t done, uint64_t total)
{
    worker *w = user;
    atomic_store(&w->loaded, done);
    atomic_store(&w->total, total);
    return !atomic_load(&w->is_stopped);
}

static td_layout_params params_of(worker *w, const td_model *model)
{
    const td_stage_plan *p = &w->plan;
    for (uint32_t i = 0; i < p->n_parts; i++) {
        snprintf(w->specs[i], sizeof w->specs[i], "%.127s@%u-%u",
                 w->params->specs[p->parts[i].device], p->parts[i].first, p->parts[i].last);
        w->spec_texts[i] = w->specs[i];
    }
    if (p->experts_device != TD_STAGE_ANY)
        snprintf(w->place, sizeof w->place, "experts=%.127s", w->params->specs[p->experts_device]);
    return (td_layout_params){.model = model,
                              .head = p->head ? model : NULL,
                              .specs = w->spec_texts,
                              .n_specs = p->n_parts,
                              .place = p->experts_device != TD_STAGE_ANY ? w->place : NULL,
                              .is_partial = true,
                              .first_stage = p->first_stage,
                              .kv = w->kv,
                              .n_slots = p->n_slots,
                              .n_ctx = p->n_ctx,
                              .guest = w->guest,
                              .progress = on_progress,
                              .user = w};
}

/* What the wire could not know. */
static bool check_plan(worker *w, td_err *err)
{
    const td_stage_plan *p = &w->plan;
    bool is_ok = p->experts_device == TD_STAGE_ANY || p->experts_device < w->hello->n_devices;
    for (uint32_t i = 0; i < p->n_parts; i++)
        is_ok &= p->parts[i].device < w->hello->n_devices;
    return (is_ok || td_err_set(err, TD_E_DATA, "a plan with a device that is none")) &&
           td_cache_from_wire(&p->kv, &w->kv, err);
}

/* A file of our own, or what was sent. NULL without an error: something is to be fetched. */
static const td_model *find_model(worker *w, td_err *err)
{
    const td_stage_plan *p = &w->plan;
    if (!w->kept || !td_kept_is(w->kept, p->hash)) {
        td_err own = {0};
        const td_model *model =
            td_models_open(w->models, p->hash, p->model_name, p->model_bytes, &own);
        if (model)
            return model;
        if (!w->kept || !p->n_files) {
            td_err_set(err, own.code, "%s; and none is sent: %s", own.message,
                       w->kept ? "it has too many files" : "--cache-size 0");
            return NULL;
        }
    }
    return td_kept_open(w->kept, p, &w->is_stopped, err) ? td_kept_model(w->kept) : NULL;
}

static void do_plan(worker *w)
{
    td_err *err = &w->task_err;
    td_target_destroy(&w->target);
    w->model = NULL;
    w->is_measured = false;
    w->task_code = TD_STAGE_FAIL_PROTOCOL;
    if (!check_plan(w, err))
        return;
    w->task_code = TD_STAGE_FAIL_MODEL;
    const td_model *model = find_model(w, err);
    if (!model || (w->plan.head && !td_model_check_head(model, err)))
        return;
    if (w->is_draft) {
        w->task_code = TD_STAGE_FAIL_PROTOCOL;
        if (!td_draft_seat_check(&w->plan, model, err))
            return;
        w->task_code = TD_STAGE_FAIL_MEMORY;
        if (td_draft_seat_weigh(&w->plan, model, w->params->specs[w->plan.parts[0].device],
                                &w->guest, &w->guest_budget_bytes, err))
            w->model = model;
        return;
    }
    if (w->plan.measure) {
        w->task_code = TD_STAGE_FAIL_DEVICE;
        w->is_measured =
            td_measured_run(&w->plan, model, w->params->specs[w->plan.parts[0].device],
                            w->check.bytes, sizeof w->check.bytes, &w->check.n_bytes, err);
        return;
    }
    w->task_code = TD_STAGE_FAIL_MEMORY;
    td_layout_params p = params_of(w, model);
    w->target = td_target_open(&p, err);
}

static void do_load(worker *w)
{
    w->task_code = TD_STAGE_FAIL_DEVICE;
    if (w->is_draft && w->load.n_ctx > w->plan.n_ctx) {
        td_err_set(&w->task_err, TD_E_DATA, "a context of %u was planned, not %u", w->plan.n_ctx,
                   w->load.n_ctx);
    } else if (w->is_draft) {
        w->plan.n_ctx = w->load.n_ctx;
        w->draft = td_draft_seat_open(&w->plan, w->load.ticket, w->model,
                                      w->params->specs[w->plan.parts[0].device], w->params->prompts,
                                      w->params->transport, w->link, w->n_drafts++, &w->task_err);
        if (w->task_err.code == TD_E_NOMEM)
            w->task_code = TD_STAGE_FAIL_MEMORY;
    } else if (w->load.n_ctx != td_target_n_ctx(w->target))
        td_err_set(&w->task_err, TD_E_DATA, "a context of %u was planned, not %u",
                   td_target_n_ctx(w->target), w->load.n_ctx);
    else
        td_target_load(w->target, &w->task_err);
}

static void *helper_main(void *arg)
{
    worker *w = arg;
    uint64_t one = 1;
    w->task_code = TD_STAGE_FAIL_DEVICE;
    if (w->state == CHECKING)
        td_check_seat_run(&w->check, w->params, &w->task_err);
    else if (w->state == PLANNING)
        do_plan(w);
    else
        do_load(w);
    atomic_store(&w->is_done, true);
    ssize_t n = write(w->fd, &one, sizeof one);
    (void)n;
    return NULL;
}

/* What a draft that is not loaded yet will take; of one that is, the system says so itself. */
static void look_for_guest(worker *w)
{
    const worker *other = w->other;
    w->guest = (td_layout_guest){0};
    if (other && !other->is_over && (other->state == PLANNED || other->state == LOADING))
        w->guest = other->guest;
}

static void begin_task(worker *w, worker_state state)
{
    sigset_t signals, before; /* those are the main thread's */
    if (state == PLANNING && !w->is_draft)
        look_for_guest(w);
    w->state = state;
    w->task_err = (td_err){0};
    atomic_store(&w->is_done, false);
    atomic_store(&w->is_stopped, false);
    sigfillset(&signals);
    pthread_sigmask(SIG_SETMASK, &signals, &before);
    w->is_thread = pthread_create(&w->thread, NULL, helper_main, w) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!w->is_thread)
        helper_main(w); /* slower to answer, that is all */
}

static bool is_at_task(const worker *w)
{
    return w->state == CHECKING || w->state == PLANNING || w->state == LOADING;
}

/* -- sessions ---------------------------------------------------------------------------------- */

static bool tell(worker *w, td_stage_msg *m)
{
    td_err err = {0};
    if (td_stage_way_send(&w->way, m, &err))
        return true;
    td_log_debug("stage worker: %s", err.message);
    return false;
}

static td_stage_msg make_pong(const worker *w, uint64_t echo_us)
{
    return (td_stage_msg){
        .type = TD_STAGE_PONG,
        .ping = {.echo_us = echo_us,
                 .now_us = now_us(w),
                 .progress = w->streams.n_done,
                 .n_pending = (uint32_t)(w->streams.n_taken - w->streams.n_done)}};
}

static void send_fail(td_stage_way *way, td_stage_fail_code code, const char *reason)
{
    td_stage_msg m = {.type = TD_STAGE_FAIL, .fail.code = code};
    snprintf(m.fail.reason, sizeof m.fail.reason, "%s", reason);
    td_text_make_printable(m.fail.reason);
    td_stage_way_send(way, &m, NULL);
}

/* Frees what the session held; not while the helper works on it. */
static void clean_up(worker *w)
{
    if (w->target)
        td_ring_drop(w->target);
    td_draft_seat_close(&w->draft);
    td_target_destroy(&w->target);
    td_seat_streams_end(&w->streams);
    w->is_keeping = false;
    td_meet_seat_end(&w->meet);
    if (w->kept)
        td_kept_release(w->kept, NULL);
    w->state = FREE;
    w->is_over = false;
}

static void end_session(worker *w, td_stage_fail_code code, const char *reason, bool is_told)
{
    if (w->state == FREE || w->is_over)
        return;
    td_log_info("stage worker: the session ended: %s", reason);
    if (is_told)
        send_fail(&w->way, code, reason);
    w->is_over = true;
    atomic_store(&w->is_stopped, true);
    if (!is_at_task(w))
        clean_up(w);
}

/* To one who greets meanwhile, and may be the one that has gone. */
static void refuse(const worker *w, td_stage_way *way)
{
    static const char *const tasks[READY + 1] = {[CHECKING] = "checking a device",
                                                 [PLANNING] = "opening a model",
                                                 [LOADING] = "loading a model"};
    char why[160];
    if (!w->is_over) {
        send_fail(way, TD_STAGE_FAIL_BUSY, "another coordinator is being served");
        return;
    }
    snprintf(why, sizeof why, "it is still %s for a coordinator that has gone", tasks[w->state]);
    send_fail(way, TD_STAGE_FAIL_BUSY, why);
}

static void begin_session(worker *w, const td_stage_msg *m, td_route route)
{
    td_stage_way way = {.link = w->link, .route = route, .session = m->session};
    char why[160];
    if (w->state != FREE) {
        refuse(w, &way);
        return;
    }
    if (w->other && w->other->state == CHECKING) {
        send_fail(&way, TD_STAGE_FAIL_BUSY, "its devices are being checked");
        return;
    }
    if (m->hello.protocol != TD_STAGE_PROTOCOL) {
        snprintf(why, sizeof why, "this worker speaks protocol %u of stages, not %u",
                 TD_STAGE_PROTOCOL, m->hello.protocol);
        send_fail(&way, TD_STAGE_FAIL_PROTOCOL, why);
        return;
    }
    w->way = way;
    w->n_seen = m->seq;
    w->heard_us = now_us(w);
    w->is_cut = false;
    w->state = GREETED;
    tell(w, &(td_stage_msg){.type = TD_STAGE_HELLO_OK, .hello_ok = *w->hello});
    td_log_info("stage worker: a coordinator joined%s (%s)", w->is_draft ? " for a draft" : "",
                m->hello.build);
}

/* -- streams ----------------------------------------------------------------------------------- */

static bool begin_streams(worker *w, td_err *err)
{
    return td_seat_streams_begin(&w->streams,
                                 &(td_seat_streams_params){.target = w->target,
                                                           .plan = &w->plan,
                                                           .load = &w->load,
                                                           .way = &w->way,
                                                           .transport = w->params->transport,
                                                           .endpoint = w->params->endpoint,
                                                           .shift_us = w->shift_us},
                                 err);
}

static bool has_streams(const worker *w) { return w->state == READY && w->target && !w->is_over; }

static void end_streams(worker *w, const td_err *err)
{
    if (err->code == TD_E_DEVICE_LOST)
        w->lost = *err;
    end_session(w, err->code == TD_E_DATA ? TD_STAGE_FAIL_PROTOCOL : TD_STAGE_FAIL_DEVICE,
                err->message, true);
}

static void step_streams(worker *w)
{
    td_err err = {0};
    if (has_streams(w) && !td_seat_streams_step(&w->streams, now_us(w), &err))
        end_streams(w, &err);
}

/* -- messages ---------------------------------------------------------------------------------- */

static void take_plan(worker *w, const td_stage_plan *p)
{
    if (w->state != GREETED && w->state != PLANNED) {
        end_session(w, TD_STAGE_FAIL_PROTOCOL, "a PLAN at the wrong time", true);
        return;
    }
    w->plan = *p;
    begin_task(w, PLANNING);
}

static void take_load(worker *w, const td_stage_load *l)
{
    if (w->state != PLANNED) {
        end_session(w, TD_STAGE_FAIL_PROTOCOL, "a LOAD at the wrong time", true);
        return;
    }
    w->load = *l;
    if (w->target)
        td_ring_set_pages(w->target, l->n_pages);
    begin_task(w, LOADING);
}

/* Nobody else's work is to be in its way, nor it in theirs. */
static void take_check(worker *w, const td_stage_check *c)
{
    td_err err = {0};
    if (w->state != GREETED || w->is_draft)
        end_session(w, TD_STAGE_FAIL_PROTOCOL, "a CHECK at the wrong time", true);
    else if (w->other && w->other->state != FREE)
        end_session(w, TD_STAGE_FAIL_BUSY, "a draft is being served, so nothing is checked", true);
    else if (!td_check_seat_take(&w->check, c, w->params, &err))
        end_session(w, TD_STAGE_FAIL_PROTOCOL, err.message, true);
    else
        begin_task(w, CHECKING);
}

/* What was found, and free for more. */
static void tell_report(worker *w)
{
    td_stage_msg m;
    w->state = GREETED;
    td_check_seat_answer(&w->check, &m);
    tell(w, &m);
}

static void take_meet(worker *w, const td_stage_meet *m)
{
    if (w->state != GREETED || w->is_draft) {
        end_session(w, TD_STAGE_FAIL_PROTOCOL, "a MEET at the wrong time", true);
        return;
    }
    td_meet_seat_take(&w->meet, m, w->params, now_us(w));
    w->state = MEETING;
}

static void go_on_meeting(worker *w)
{
    td_stage_msg m;
    if (w->state != MEETING || !td_meet_seat_step(&w->meet, now_us(w), &m))
        return;
    w->state = GREETED;
    tell(w, &m);
}

/* At once, so that it tells what the link does. */
static void take_probe(worker *w, const td_stage_probe *p)
{
    static const uint8_t zeros[TD_STAGE_DATA_MAX];
    if (!tell(w,
              &(td_stage_msg){.type = TD_STAGE_PROBED, .probe = {.n = p->n_back, .bytes = zeros}}))
        end_session(w, TD_STAGE_FAIL_DEVICE, "more is asked for than the link takes", true);
}

/* Asks for more, and plans again when all is there. */
static void go_on_fetching(worker *w)
{
    td_err err = {0};
    if (w->state != FETCHING || w->is_over)
        return;
    atomic_store(&w->loaded, w->fetch.done);
    atomic_store(&w->total, w->fetch.total);
    if (!td_fetch_ask(&w->fetch, &err))
        end_session(w, TD_STAGE_FAIL_DEVICE, err.message, true);
    else if (td_fetch_is_done(&w->fetch))
        begin_task(w, PLANNING);
}

static void take_data(worker *w, const td_stage_data *data)
{
    td_err err = {0};
    if (w->state != FETCHING)
        end_session(w, TD_STAGE_FAIL_PROTOCOL, "weights at the wrong time", true);
    else if (!td_fetch_take(&w->fetch, data, &err))
        end_session(w, err.code == TD_E_DATA ? TD_STAGE_FAIL_PROTOCOL : TD_STAGE_FAIL_MODEL,
                    err.message, true);
    go_on_fetching(w);
}

static void take_trace(worker *w)
{
    td_err err = {0};
    if (!has_streams(w))
        end_session(w, TD_STAGE_FAIL_PROTOCOL, "a TRACE at the wrong time", true);
    else if (!td_seat_streams_trace(&w->streams, &err))
        end_streams(w, &err);
}

/* Before there is any work. */
static void take_keep(worker *w, uint32_t chunk_rows)
{
    td_err err = {0};
    bool is_right = has_streams(w) && !w->is_keeping && !w->streams.n_taken &&
                    chunk_rows % TD_PAGE_POSITIONS == 0;
    if (!is_right) {
        end_session(w, TD_STAGE_FAIL_PROTOCOL, "a KEEP at the wrong time, or of broken pages",
                    true);
        return;
    }
    w->is_keeping = true;
    bool is_kept =
        w->params->prompts && td_ring_keep(w->target, w->params->prompts, chunk_rows, &err);
    if (err.code != TD_OK)
        td_log_warn("stage worker: prompts are not kept: %s", err.message);
    tell(w, &(td_stage_msg){.type = TD_STAGE_KEPT, .kept = is_kept});
}

static void take_find(worker *w, const td_stage_find *f)
{
    td_err err = {0};
    if (!has_streams(w))
        end_session(w, TD_STAGE_FAIL_PROTOCOL, "a FIND at the wrong time", true);
    else if (!td_ring_find(w->target, f, &err))
        end_streams(w, &err);
}

static void take_stream(worker *w, const td_stage_msg *m)
{
    td_err err = {0};
    if (!has_streams(w))
        end_session(w, TD_STAGE_FAIL_PROTOCOL, "a stream at the wrong time", true);
    else if (!td_seat_streams_take(&w->streams, m, &err))
        end_streams(w, &err);
}

static void take_message(worker *w, const td_stage_msg *m)
{
    switch (m->type) {
    case TD_STAGE_PLAN:
        take_plan(w, &m->plan);
        break;
    case TD_STAGE_LOAD:
        take_load(w, &m->load);
        break;
    case TD_STAGE_CHECK:
        take_check(w, &m->check);
        break;
    case TD_STAGE_MEET:
        take_meet(w, &m->meet);
        break;
    case TD_STAGE_PROBE:
        take_probe(w, &m->probe);
        break;
    case TD_STAGE_STREAM:
    case TD_STAGE_PIECE:
        take_stream(w, m);
        break;
    case TD_STAGE_TRACE:
        take_trace(w);
        break;
    case TD_STAGE_KEEP:
        take_keep(w, m->keep);
        break;
    case TD_STAGE_FIND:
        take_find(w, &m->find);
        break;
    case TD_STAGE_CANCEL:
        if (has_streams(w))
            td_seat_streams_cancel(&w->streams, m->cancel);
        break;
    case TD_STAGE_DATA:
        take_data(w, &m->data);
        break;
    case TD_STAGE_PING: {
        td_stage_msg pong = make_pong(w, m->ping.echo_us);
        tell(w, &pong);
        break;
    }
    case TD_STAGE_BYE:
        end_session(w, TD_STAGE_FAIL_PROTOCOL, "the coordinator is done", false);
        break;
    default:
        end_session(w, TD_STAGE_FAIL_PROTOCOL, "a message that a coordinator does not send", true);
    }
}

static void handle(worker *w, const td_stage_msg *m, td_route route)
{
    td_err err = {0};
    bool is_served = w->state != FREE && !w->is_over;
    if (is_served && m->session == w->way.session && route == w->way.route) {
        bool is_next = m->seq == w->n_seen + 1;
        w->n_seen = m->seq;
        w->heard_us = now_us(w);
        if (is_next)
            take_message(w, m);
        else
            end_session(w, TD_STAGE_FAIL_PROTOCOL, "messages were lost", true);
    } else if (is_served && w->meet.ticket && m->session == w->meet.ticket) {
        td_meet_seat_answer(&w->meet, m, w->link, route);
    } else if (has_streams(w) && w->load.ticket && m->session == w->load.ticket) {
        if (!td_seat_streams_take_before(&w->streams, m, route, now_us(w), &err))
            end_streams(w, &err);
    } else if (m->type == (w->is_draft ? TD_STAGE_HELLO_DRAFT : TD_STAGE_HELLO)) {
        begin_session(w, m, route);
    }
}

static void serve_draft(worker *w)
{
    td_err err = {0};
    if (w->state != READY || !w->draft || w->is_over || td_draft_seat_step(w->draft, &err))
        return;
    if (err.code == TD_E_DEVICE_LOST)
        w->lost = err;
    end_session(w, TD_STAGE_FAIL_DEVICE, err.message, true);
}

/* -- tasks done, time -------------------------------------------------------------------------- */

static void tell_planned(worker *w)
{
    if (w->is_draft) {
        const td_layout_guest *g = &w->guest;
        uint64_t n_bytes = g->n_bytes + g->position_bytes * g->n_ctx;
        tell(w, &(td_stage_msg){.type = TD_STAGE_PLANNED,
                                .planned = {.n_ctx = w->plan.n_ctx,
                                            .n_parts = 1,
                                            .parts = {{n_bytes, w->guest_budget_bytes, 0}}}});
        return;
    }
    const td_layout *l = td_ring_layout(w->target);
    td_stage_msg m = {
        .type = TD_STAGE_PLANNED,
        .planned = {.n_ctx = l->n_ctx, .n_pages = l->n_pages, .n_parts = (uint8_t)l->n_parts}};
    for (uint32_t i = 0; i < l->n_parts; i++) {
        m.planned.parts[i].n_bytes = l->parts[i].n_bytes;
        m.planned.parts[i].budget_bytes = l->parts[i].budget_bytes;
        m.planned.parts[i].experts_bytes = l->parts[i].experts_bytes;
    }
    tell(w, &m);
}

static void tell_ready(worker *w)
{
    if (w->is_draft) {
        td_log_info("stage worker: a draft, %s, on %s", w->plan.model_name,
                    w->params->specs[w->plan.parts[0].device]);
        tell(w, &(td_stage_msg){.type = TD_STAGE_READY, .ready.n_parts = 1});
        return;
    }
    td_stage_msg m = {
        .type = TD_STAGE_READY,
        .ready = {.forgets = td_target_forgets(w->target), .n_parts = w->plan.n_parts}};
    for (uint32_t i = 0; i < w->plan.n_parts; i++) {
        td_stage_info info;
        td_target_get_stage_info(w->target, i, &info);
        m.ready.parts[i].file_bytes = info.n_file_bytes;
        m.ready.parts[i].load_us = info.load_us;
        td_log_info("stage worker: layers %u..%u of %s on %s, %.1f MiB", info.first, info.last,
                    w->plan.model_name, info.spec, (double)info.n_bytes / (1 << 20));
    }
    tell(w, &m);
}

static void end_task(worker *w)
{
    if (w->is_thread)
        pthread_join(w->thread, NULL);
    w->is_thread = false;
    bool was_planning = w->state == PLANNING, was_checking = w->state == CHECKING;
    atomic_store(&w->is_done, false);
    w->state = was_planning ? PLANNED : was_checking ? GREETED : READY;
    for (uint32_t i = 0; was_checking && i < w->hello->n_devices; i++)
        memcpy(w->hello->devices[i].failed, w->check.failed[i], sizeof w->check.failed[i]);
    if (w->is_over) {
        clean_up(w);
        return;
    }
    if (w->task_err.code == TD_OK && was_checking) {
        tell_report(w);
        return;
    }
    if (w->task_err.code == TD_OK && w->target && !was_planning)
        begin_streams(w, &w->task_err);
    if (w->task_err.code == TD_E_DEVICE_LOST)
        w->lost = w->task_err;
    if (w->task_err.code != TD_OK) {
        end_session(w, w->task_code, w->task_err.message, true);
        return;
    }
    if (!was_planning) {
        tell_ready(w);
    } else if (w->is_measured) {
        tell_report(w);
    } else if (w->target || w->model) {
        tell_planned(w);
    } else {
        w->state = FETCHING;
        td_fetch_begin(&w->fetch, w->kept, &w->way);
        go_on_fetching(w);
    }
}

/* Some connection broke. The coordinator's, if nothing can be sent to it; an answer to a ping that
 * it did not send does it no harm. */
static void probe(worker *w, uint64_t now)
{
    td_err err = {0};
    if (!w->is_cut || w->state == FREE || w->is_over || now - w->probed_us < PROBE_US)
        return;
    w->probed_us = now;
    td_stage_msg pong = make_pong(w, UINT64_MAX);
    if (w->heard_us > w->cut_us + LIVE_US)
        w->is_cut = false;
    else if (!td_stage_way_send(&w->way, &pong, &err) && err.code == TD_E_UNAVAILABLE)
        end_session(w, TD_STAGE_FAIL_PROTOCOL, "the connection to the coordinator broke", false);
}

static void mind_time(worker *w)
{
    uint64_t now = now_us(w);
    probe(w, now);
    uint64_t most = w->is_cut ? CUT_US : TD_SEAT_SILENT_US;
    if (w->state != FREE && !w->is_over && now - w->heard_us > most)
        end_session(w, TD_STAGE_FAIL_PROTOCOL, "the coordinator is silent", true);
    bool is_told = w->state == LOADING || w->state == FETCHING;
    if (is_told && !w->is_over && now - w->told_us > TELL_US) {
        w->told_us = now;
        tell(w, &(td_stage_msg){.type = TD_STAGE_LOADING,
                                .loading = {atomic_load(&w->loaded), atomic_load(&w->total)}});
    }
    if (w->state == CHECKING && !w->is_over && now - w->told_us > TELL_US) {
        td_stage_msg m;
        w->told_us = now;
        td_check_seat_tell(&w->check, &m);
        tell(w, &m);
    }
}

/* -- from outside ------------------------------------------------------------------------------ */

void td_worker_seat_open(td_worker_seat *w, td_link *link, td_worker_seat *other)
{
    w->link = link;
    w->other = other;
}

void td_worker_seat_cut(td_worker_seat *w)
{
    w->is_cut = true;
    w->cut_us = now_us(w);
}

void td_worker_seat_take(td_worker_seat *w, const td_stage_msg *m, td_route route)
{
    handle(w, m, route);
}

void td_worker_seat_take_draft(td_worker_seat *w, const void *bytes, size_t n_bytes, td_route route)
{
    if (w->state == READY && w->draft && !w->is_over)
        td_draft_seat_take(w->draft, bytes, n_bytes, route);
}

size_t td_worker_seat_look(const td_worker_seat *w, td_link_poll_item *items)
{
    size_t n = 0;
    items[n++] = (td_link_poll_item){.fd = w->fd};
    if (w->meet.next)
        items[n++] = (td_link_poll_item){.link = w->meet.next};
    if (w->state != READY)
        return n;
    if (w->target)
        items[n++] = (td_link_poll_item){.fd = td_target_fd(w->target)};
    if (w->draft)
        items[n++] = (td_link_poll_item){.link = td_draft_seat_link(w->draft)};
    if (w->streams.next)
        items[n++] = (td_link_poll_item){.link = w->streams.next};
    return n;
}

bool td_worker_seat_is_sending(const td_worker_seat *w)
{
    return w->state == READY &&
           ((w->target && (!td_stage_out_is_idle(&w->streams.out) || w->streams.has_found)) ||
            (w->draft && td_draft_seat_is_sending(w->draft)));
}

bool td_worker_seat_step(td_worker_seat *w, bool is_woken, td_err *err)
{
    uint64_t count;
    if (is_woken && read(w->fd, &count, sizeof count) < 0 && errno != EAGAIN)
        return td_err_set(err, TD_E_IO, "eventfd: %s", strerror(errno));
    if (atomic_load(&w->is_done))
        end_task(w);
    step_streams(w);
    serve_draft(w);
    go_on_fetching(w);
    go_on_meeting(w);
    mind_time(w);
    return w->lost.code == TD_OK || td_err_set(err, w->lost.code, "%s", w->lost.message);
}

void td_worker_seat_leave(td_worker_seat *w)
{
    if (w->state != FREE && !w->is_over)
        tell(w, &(td_stage_msg){.type = TD_STAGE_BYE});
}

void td_worker_seat_destroy(td_worker_seat **seat)
{
    worker *w = *seat;
    if (!w)
        return;
    atomic_store(&w->is_stopped, true);
    if (w->is_thread)
        pthread_join(w->thread, NULL);
    clean_up(w);
    td_check_seat_end(&w->check);
    td_models_destroy(&w->models);
    td_kept_destroy(&w->kept);
    if (w->fd >= 0)
        close(w->fd);
    td_free(w);
    *seat = NULL;
}

td_worker_seat *td_worker_seat_create(const td_stage_worker_params *params,
                                      td_stage_hello_ok *hello, bool is_draft, td_err *err)
{
    worker *w = td_alloc(1, sizeof *w, err);
    if (!w)
        return NULL;
    w->params = params;
    w->hello = hello;
    w->is_draft = is_draft;
    w->clock = td_clock_real();
    const char *shift = getenv("TD_CLOCK_SHIFT");
    w->shift_us = shift ? (uint64_t)strtoll(shift, NULL, 10) : 0;
    td_check_seat_begin(&w->check, &w->is_stopped);
    w->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    w->models = td_models_create(params->models, params->model, err);
    if (params->cache_bytes)
        w->kept = td_kept_create(params->cache_bytes, err);
    if (!w->models || w->fd < 0 || (params->cache_bytes && !w->kept))
        td_worker_seat_destroy(&w);
    return w;
}
