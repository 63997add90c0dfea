/* Runs of neighbouring workers: jobs go to the first in order, wait in transit, and go on to the
 * next stage here when the batches before them have come back. */
#include "target/remote_impl.h"

#include "base/check.h"

#include <string.h>

#define ASTRAY_US 30000000u  /* a batch is under way, and no worker has any */
#define HUNG_US   300000000u /* a worker has one, and does not get on */

static bool is_lost(const run *at)
{
    for (uint32_t i = 0; i < at->at.n; i++)
        if (at->all->sessions[at->at.first + i].state == SESSION_LOST)
            return true;
    return false;
}

static const td_err *error_of(const run *at)
{
    for (uint32_t i = 0; i < at->at.n; i++)
        if (at->all->sessions[at->at.first + i].state == SESSION_LOST)
            return &at->all->sessions[at->at.first + i].err;
    return NULL;
}

/* A batch that the workers will not answer: one that failed before, or all when one is lost. */
static bool is_over(const run *at, const micro_batch *b)
{
    return b->err.code != TD_OK || is_lost(at);
}

/* A job that comes back: others are passed on here as well. */
static bool is_answered(const run *at, const job *j)
{
    return j->kind == JOB_FORWARD || (j->kind == JOB_DRAFT && at->is_last);
}

/* Gives the next stage what nothing waits for any more; `answered` has just come back. */
static void pass_run(run *at, const job *answered)
{
    while (at->head) {
        job *j = at->head;
        bool is_batch = j->kind == JOB_FORWARD;
        if (is_answered(at, j) && j != answered) {
            if (is_batch ? !is_over(at, j->batch) : !is_lost(at))
                return;
            const td_err *why = error_of(at);
            if (is_batch && j->batch->err.code == TD_OK)
                j->batch->err = *why;
        }
        if (j == at->unsent && !is_lost(at) && !(is_batch && j->batch->err.code))
            return;
        at->head = (job *)j->item.next;
        at->unsent = at->unsent == j ? at->head : at->unsent;
        if (!at->head)
            at->tail = NULL;
        if (is_batch)
            j->batch->came_us = td_remote_now_us(at->all);
        bool is_awaited = job_is_awaited(j->kind);
        td_queue_push(at->at.out, &j->item);
        if (is_awaited && at->at.wake)
            at->at.wake(at->at.user);
    }
}

void td_remote_pass_on(td_remotes *r)
{
    for (uint32_t i = 0; i < r->n_runs; i++)
        pass_run(&r->runs[i], NULL);
}

/* The oldest in transit of those that come back, which is the one that does. */
static const job *oldest(const run *at)
{
    const job *j = at->head;
    while (j && !is_answered(at, j))
        j = (const job *)j->item.next;
    return j;
}

static micro_batch *begin_back(void *user, const td_stage_batch *told, td_err *err)
{
    const run *at = user;
    const job *j = oldest(at);
    bool is_batch = j && j->kind == JOB_FORWARD;
    bool is_known = is_batch && j->batch->id == told->id && j->batch->is_sent &&
                    at->out.b != j->batch && told->n_out == j->batch->n_out &&
                    told->n_rows <= j->batch->n_rows && told->n_spans == at->end_stage &&
                    (!told->is_restored || j->batch->is_restored) &&
                    told->is_prefill == (j->batch->mode == TD_MODE_PREFILL);
    if (!is_known) {
        td_err_set(err, TD_E_DATA, "it answers batch %llu; allowed: %llu, as it was sent",
                   (unsigned long long)told->id, is_batch ? (unsigned long long)j->batch->id : 0);
        return NULL;
    }
    for (uint32_t k = at->at.first; k < at->at.first + at->at.n; k++) { /* by our clock */
        const session *s = &at->all->sessions[k];
        uint64_t clock = (uint64_t)s->clock_us;
        for (uint32_t i = s->plan.first_stage; i < s->plan.first_stage + s->plan.n_parts; i++)
            j->batch->spans[i] =
                (td_target_span){told->spans[i].start_us - clock, told->spans[i].end_us - clock,
                                 told->spans[i].waited_us};
    }
    return j->batch;
}

/* What the head guessed, of as many sequences as were asked for and no more of each. */
static bool take_guesses(const job *asked, const draft_batch *told, td_err *err)
{
    draft_batch *b = asked && asked->kind == JOB_DRAFT ? asked->drafts : NULL;
    bool is_known = b && b->is_sent && told->n == b->n;
    for (uint32_t i = 0; is_known && i < b->n; i++)
        is_known = told->proposals[i].n <= b->proposals[i].k;
    if (!is_known)
        return td_err_set(err, TD_E_DATA, "it guesses for %u sequences; allowed: what was asked",
                          told->n);
    for (uint32_t i = 0; i < b->n; i++) {
        td_proposal *p = &b->proposals[i];
        p->n = told->proposals[i].n;
        p->busy_us = told->proposals[i].busy_us;
        memcpy(p->ids, told->proposals[i].ids, p->n * sizeof *p->ids);
    }
    return true;
}

static bool end_back(void *user, const job *j, td_err *err)
{
    run *at = user;
    const job *asked = oldest(at);
    if (j->kind != JOB_FORWARD && j->kind != JOB_DRAFT)
        return td_err_set(err, TD_E_DATA, "it sends a job; allowed: answers");
    if (j->kind == JOB_DRAFT && !take_guesses(asked, j->drafts, err))
        return false;
    at->moved_us = td_remote_now_us(at->all);
    pass_run(at, asked);
    return true;
}

/* Sends jobs in transit that are not sent yet, as far as the link takes them. */
static void send_jobs(run *at)
{
    session *s = &at->all->sessions[at->at.first];
    td_err err = {0};
    const td_stage_form form = {.n_embd = at->is_first ? 0 : at->in.limits.n_embd,
                                .wire = at->in.limits.wire,
                                .n_spans = at->first_stage};
    while (at->unsent) {
        job *j = at->unsent;
        bool is_sent = is_lost(at) || j->kind == JOB_STOP ||
                       (j->kind == JOB_DRAFT && !at->is_last) ||
                       (j->kind == JOB_FORWARD && j->batch->err.code != TD_OK);
        if (!is_sent) {
            is_sent = td_stage_out_put(&at->out, j, &form);
            if (is_sent && j->kind == JOB_FORWARD)
                j->batch->is_sent = true;
            if (is_sent && j->kind == JOB_DRAFT)
                j->drafts->is_sent = true;
            if (!td_stage_out_flush(&at->out, &err)) {
                td_remote_lose(at->all, s, err.message);
                return;
            }
            if (!is_sent && !td_stage_out_is_idle(&at->out))
                return;
            if (!is_sent)
                continue; /* there is room now */
        }
        at->unsent = (job *)j->item.next;
        pass_run(at, NULL);
    }
    if (!is_lost(at) && !td_stage_out_flush(&at->out, &err))
        td_remote_lose(at->all, s, err.message);
}

static void take_jobs(run *at)
{
    for (job *j; (j = (job *)td_queue_try_pop(at->at.in));) {
        j->item.next = NULL;
        if (at->tail)
            at->tail->item.next = &j->item;
        else
            at->head = j;
        at->tail = j;
        at->unsent = at->unsent ? at->unsent : j;
    }
    send_jobs(at);
    pass_run(at, NULL);
}

/* Tells the workers of batches that were cancelled after they were sent. */
static void send_cancels(run *at)
{
    for (job *j = at->head; j && j != at->unsent && !is_lost(at); j = (job *)j->item.next) {
        bool is_due = j->kind == JOB_FORWARD && !j->batch->is_cancel_sent &&
                      atomic_load_explicit(&j->batch->is_cancelled, memory_order_acquire);
        for (uint32_t i = 0; is_due && i < at->at.n; i++) {
            td_stage_msg m = {.type = TD_STAGE_CANCEL, .cancel = j->batch->id};
            td_stage_way_send(&at->all->sessions[at->at.first + i].way, &m, NULL);
        }
        if (is_due)
            j->batch->is_cancel_sent = true; /* what was not sent only costs time */
    }
}

/* The transport may stand, and pings be answered, and a batch be lost or a device hang all the
 * same. */
static void mind_progress(run *at)
{
    td_remotes *r = at->all;
    uint64_t now = td_remote_now_us(r);
    bool is_any_pending = false;
    for (uint32_t i = 0; i < at->at.n; i++)
        is_any_pending |= r->sessions[at->at.first + i].n_pending > 0;
    if (!at->head || is_lost(at))
        at->moved_us = now;
    else if (now - at->moved_us > (is_any_pending ? HUNG_US : ASTRAY_US))
        td_remote_lose(r, &r->sessions[at->at.first],
                       is_any_pending ? "a worker does not get on" : "a batch was lost on its way");
}

/* The run whose results this worker brings; NULL: none. */
static run *run_of(td_remotes *r, const session *s)
{
    uint32_t i = (uint32_t)(s - r->sessions);
    for (uint32_t k = 0; k < r->n_runs; k++)
        if (i == r->runs[k].at.first + r->runs[k].at.n - 1)
            return &r->runs[k];
    return NULL;
}

void td_remote_take_stream(td_remotes *r, session *s, const td_stage_msg *m)
{
    run *at = run_of(r, s);
    td_err err = {0};
    if (!at || s->state != SESSION_READY)
        td_err_set(&err, TD_E_DATA, "a %s at the wrong time", td_stage_type_name(m->type));
    else
        td_stage_in_take(&at->in, m, &err);
    if (err.code != TD_OK)
        td_remote_lose(r, s, err.message);
}

void td_remote_begin_run(td_remotes *r, run *at, const td_remote_run *params,
                         const td_stage_limits *limits, uint32_t n_stages)
{
    const td_stage_plan *first = &r->sessions[params->first].plan;
    const td_stage_plan *last = &r->sessions[params->first + params->n - 1].plan;
    *at = (run){.at = *params,
                .all = r,
                .first_stage = first->first_stage,
                .end_stage = last->first_stage + (uint32_t)last->n_parts,
                .moved_us = td_remote_now_us(r)};
    at->is_first = at->first_stage == 0;
    at->is_last = at->end_stage == n_stages;
    td_stage_out_begin(&at->out, &r->sessions[params->first].way);
    at->in = (td_stage_in){.limits = *limits,
                           .is_of_results = at->is_last,
                           .begin = begin_back,
                           .done = end_back,
                           .user = at};
    at->in.limits.has_head = limits->has_head && at->is_last;
}

bool td_remote_is_sending(const run *at) { return !is_lost(at) && !td_stage_out_is_idle(&at->out); }

void td_remote_step_run(run *at)
{
    take_jobs(at);
    send_cancels(at);
    mind_progress(at);
}
