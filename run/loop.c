/* The event loop. It performs the coordinator's actions and turns what the target, the draft, the
 * clock and signals say into events for it; all decisions are the coordinator's. */
#include "run/loop.h"

#include "base/check.h"
#include "base/log.h"
#include "base/signals.h"
#include "run/recover.h"

#include <string.h>

#define REJOIN_US 1000000u /* after a draft that could not be sent to */
#define JOIN_US   1000000u /* a run waits so long for its draft before it begins without */
#define PROBE_US  1000000u /* how often a silent draft is asked something */

static uint64_t now_us(const session *r) { return td_clock_now_us(&r->clock); }

active *td_loop_find_active(session *r, uint32_t sequence)
{
    for (uint32_t i = 0; i < TD_SEQUENCES_MAX; i++)
        if (r->actives[i].prompt && r->actives[i].sequence == sequence)
            return &r->actives[i];
    TD_ASSERT(!"actions name sequences that were added and not removed");
    return NULL;
}

/* -- prompts ----------------------------------------------------------------------------------- */

/* Gives a prompt a slot; it is taken over. An unusable one becomes an error line. */
static bool add_prompt(session *r, td_prompt *q, td_err *err)
{
    uint32_t n_ctx = td_target_n_ctx(r->target), sequence = 0;
    td_err bad = q->err;
    bool is_ok = bad.code == TD_OK;
    if (is_ok && q->n_ids >= n_ctx)
        is_ok =
            td_err_set(&bad, TD_E_DATA,
                       "the prompt has %zu tokens; allowed: 1..%u (the context is %u, see --ctx)",
                       q->n_ids, n_ctx - 1, n_ctx);
    if (is_ok) {
        td_sequence_params s = {.prompt = q->ids,
                                .n_prompt = (uint32_t)q->n_ids,
                                .n_predict = q->n_predict,
                                .ignore_end = r->params->ignore_eos,
                                .n_stops = q->n_stops};
        for (uint32_t i = 0; i < q->n_stops; i++)
            s.stops[i] = q->stops[i];
        is_ok = td_coordinator_add(r->coordinator, &s, now_us(r), &sequence, &bad);
    }
    if (!is_ok) {
        bool is_written = td_outcome_error(r, q, bad.message, err);
        td_prompt_destroy(&q);
        return is_written;
    }
    uint32_t i = 0;
    while (r->actives[i].prompt) /* a free slot there means a free place here */
        i++;
    r->actives[i] = (active){.prompt = q, .sequence = sequence, .slot = UINT32_MAX};
    td_show_begin(r->show, q->text);
    return true;
}

/* Whether another prompt may begin now. */
static bool wants_prompt(const session *r)
{
    return !r->is_input_done && td_coordinator_n_free(r->coordinator) > 0 &&
           !td_signals_pending() && td_results_has_room(r->results);
}

/* Fills free slots with what is there; what is not there yet is not waited for. */
static bool admit(session *r, td_err *err)
{
    td_prompt *q;
    while (wants_prompt(r) && td_input_take(r->input, &q))
        if (!add_prompt(r, q, err))
            return false;
    td_input_counts counts = td_input_get_counts(r->input);
    r->totals->n_skipped = counts.n_skipped;
    r->totals->n_old_errors = counts.n_old_errors;
    td_err failure = {0};
    r->is_input_done = td_input_is_done(r->input, &failure);
    return failure.code == TD_OK || td_err_set(err, failure.code, "%s", failure.message);
}

/* A job's lines that are not finished are given back after a signal, at once or in a while. */
static void drain(session *r)
{
    if (!r->job || !td_signals_pending())
        return;
    if (!r->drain_at_us)
        r->drain_at_us = now_us(r) + (uint64_t)(r->params->drain_s * 1e6) + 1;
    if (now_us(r) < r->drain_at_us)
        return;
    for (uint32_t i = 0; i < TD_SEQUENCES_MAX; i++)
        if (r->actives[i].prompt && !r->actives[i].is_given_back) {
            r->actives[i].is_given_back = true;
            td_coordinator_cancel(r->coordinator, r->actives[i].sequence, now_us(r));
        }
}

/* -- actions ----------------------------------------------------------------------------------- */

static uint64_t draft_deadline(const session *r)
{
    return r->params->draft_deadline_us ? r->params->draft_deadline_us : TD_DRAFT_DEADLINE_US;
}

static void lose_draft(session *r)
{
    if (!r->is_draft_joined)
        return;
    r->is_draft_joined = r->is_draft_silent = false;
    r->totals->n_draft_losses++;
    td_coordinator_on_drafter(r->coordinator, false, now_us(r));
}

void td_loop_join_draft(session *r)
{
    r->is_draft_joined = true;
    r->is_draft_silent = false;
    r->heard_us = now_us(r);
    r->rejoin_us = 0;
    r->totals->n_draft_joins++;
    td_coordinator_on_drafter(r->coordinator, true, now_us(r));
}

/* No tokens, on behalf of a draft that has none or does not answer: nobody waits for it. */
static void answer_for_draft(session *r, uint32_t sequence, uint32_t epoch, uint32_t position)
{
    td_coordinator_on_draft(r->coordinator, sequence, epoch, position, NULL, 0, 0, now_us(r));
}

/* A deadline has passed with no word from the draft, whichever sequence it was of: one such wait is
 * enough. From now on it is told what it needs to come back, and asked now and then, but nothing
 * waits for an answer until there is one. */
static void mind_silence(session *r)
{
    uint64_t n_missed = td_coordinator_get_stats(r->coordinator)->n_deadlines;
    bool is_new = n_missed > r->n_missed, was_heard = now_us(r) - r->heard_us < draft_deadline(r);
    r->n_missed = n_missed;
    if (!is_new || was_heard || !r->is_draft_joined || r->is_draft_silent)
        return;
    r->is_draft_silent = true;
    r->probe_us = now_us(r) + PROBE_US;
    td_log_warn("the draft has not answered for %.1f s; going on without it until it does",
                (double)(now_us(r) - r->heard_us) * 1e-6);
    for (uint32_t i = 0; i < TD_SEQUENCES_MAX; i++) {
        const active *a = &r->actives[i];
        if (a->prompt && a->is_asked)
            answer_for_draft(r, a->sequence, a->asked_epoch, a->asked_position);
    }
}

/* The same on behalf of a head. */
static void answer_for_head(session *r, uint32_t sequence, uint32_t epoch, uint32_t position)
{
    if (td_setup_is_chain(r))
        td_coordinator_on_head(r->coordinator, sequence, epoch, position, NULL, 0, 0, now_us(r));
    else
        answer_for_draft(r, sequence, epoch, position);
}

/* Asks the target's head for what has been gathered, of all sequences at once. */
static void ask_head(session *r)
{
    uint32_t n = r->n_asks;
    r->n_asks = 0;
    if (!n || td_target_propose(r->target, r->asks, r->ask_slots, r->ask_tokens, n))
        return;
    for (uint32_t i = 0; i < n; i++)
        answer_for_head(r, r->asks[i].sequence, r->asks[i].epoch, r->asks[i].position);
}

/* The head knows of a sequence what the target does, but for its last token. */
static void gather_ask(session *r, const td_action *a)
{
    const td_sequence_info *info = td_coordinator_get_info(r->coordinator, a->sequence);
    uint32_t last = a->position - 1;
    if (a->kind != TD_ACT_DRAFT_PROPOSE && a->kind != TD_ACT_HEAD_PROPOSE)
        return;
    TD_ASSERT(a->position >= 1);
    if (last >= info->n_prompt + info->n_tokens) { /* a guess: it goes on from the text alone */
        answer_for_head(r, a->sequence, a->epoch, a->position);
        return;
    }
    if (r->n_asks == TD_SEQUENCES_MAX)
        ask_head(r);
    r->asks[r->n_asks] = (td_proposal){.sequence = a->sequence,
                                       .epoch = a->epoch,
                                       .position = a->position,
                                       .k = td_min_u32(a->k, TD_WIRE_DRAFT_MAX)};
    r->ask_slots[r->n_asks] = a->slot;
    r->ask_tokens[r->n_asks++] = info->prompt[last]; /* what was generated stands behind it */
}

static void send_to_draft(session *r, const td_action *a)
{
    if (td_setup_uses_head(r) && !r->drafting) {
        gather_ask(r, a);
        return;
    }
    if (!r->is_draft_joined)
        return;
    if (a->kind == TD_ACT_DRAFT_PROPOSE && td_draft_client_is_beyond(r->drafting, a->position)) {
        answer_for_draft(r, a->sequence, a->epoch, a->position);
        return;
    }
    if (a->kind == TD_ACT_DRAFT_PROPOSE && r->is_draft_silent) {
        answer_for_draft(r, a->sequence, a->epoch, a->position);
        if (now_us(r) < r->probe_us)
            return;
        r->probe_us = now_us(r) + PROBE_US;
    }
    bool is_sent;
    if (a->kind == TD_ACT_DRAFT_OPEN) {
        const td_prompt *q = td_loop_find_active(r, a->sequence)->prompt;
        is_sent = td_draft_client_open(r->drafting, a->sequence, q->stream, &q->sampling);
    } else {
        is_sent = td_draft_client_send(r->drafting, a);
    }
    if (is_sent && a->kind == TD_ACT_DRAFT_PROPOSE && !r->is_draft_silent) {
        active *asked = td_loop_find_active(r, a->sequence);
        asked->is_asked = true;
        asked->asked_epoch = a->epoch;
        asked->asked_position = a->position;
    }
    if (!is_sent) {
        lose_draft(r);
        r->rejoin_us = now_us(r) + REJOIN_US;
    }
}

static void forward(session *r, const td_action *a)
{
    td_forward_row rows[TD_PREFILL_ROWS_MAX];
    TD_ASSERT(a->n_rows <= TD_PREFILL_ROWS_MAX);
    for (uint32_t i = 0; i < a->n_rows; i++)
        rows[i] = (td_forward_row){.slot = a->rows[i].slot,
                                   .sequence = a->rows[i].sequence,
                                   .position = a->rows[i].position,
                                   .token = a->rows[i].token,
                                   .is_output = a->rows[i].is_output};
    td_target_forward(r->target, a->batch, a->is_prefill, rows, a->n_rows);
}

static bool perform(session *r, const td_action *a, td_err *err)
{
    if (r->trace)
        td_trace_action(r->trace, a, now_us(r));
    switch (a->kind) {
    case TD_ACT_OPEN: {
        active *opened = td_loop_find_active(r, a->sequence);
        opened->slot = a->slot;
        if (r->ngram)
            td_ngram_open(r->ngram, a->slot);
        td_target_open_sequence(r->target, a->slot, a->from_slot, a->length, opened->prompt->stream,
                                &opened->prompt->sampling);
        return true;
    }
    case TD_ACT_FORWARD:
        ask_head(r);
        forward(r, a);
        return true;
    case TD_ACT_CANCEL:
        td_target_cancel(r->target, a->batch);
        return true;
    case TD_ACT_TRUNCATE:
        td_target_truncate(r->target, a->slot, a->length);
        return true;
    case TD_ACT_COMMIT:
        td_target_commit(r->target, a->slot, a->length);
        return true;
    case TD_ACT_CLOSE:
        td_target_close_sequence(r->target, a->slot);
        return true;
    case TD_ACT_DRAFT_OPEN:
    case TD_ACT_DRAFT_FEED:
    case TD_ACT_DRAFT_PROPOSE:
    case TD_ACT_DRAFT_CLOSE:
        send_to_draft(r, a);
        return true;
    case TD_ACT_HEAD_PROPOSE:
        gather_ask(r, a);
        return true;
    case TD_ACT_TOKENS:
        td_show_tokens(r->show, a->tokens, a->is_draft, a->n_tokens);
        return true;
    case TD_ACT_FINISH:
        return td_outcome_finish(r, a->sequence, err);
    }
    return true;
}

/* Tells that prompts wait for memory; once, since from then on they will all the time. */
static void say_who_waits(session *r)
{
    uint64_t n = td_coordinator_get_stats(r->coordinator)->n_waits;
    if (n == 0 || r->has_said_who_waits)
        return;
    r->has_said_who_waits = true;
    td_log_info(
        "the cache has no room for all %u sequences at once: prompts wait for others to end",
        r->opened.n_parallel);
}

static bool perform_all(session *r, td_err *err)
{
    td_action action;
    while (td_coordinator_next(r->coordinator, &action)) {
        if (!perform(r, &action, err))
            return false;
    }
    ask_head(r);
    say_who_waits(r);
    return true;
}

/* -- events ------------------------------------------------------------------------------------ */

/* One whose logits are not finite. It may have ended, and its slot be another's. */
static void fail_sequence(session *r, uint32_t sequence)
{
    for (uint32_t i = 0; i < TD_SEQUENCES_MAX; i++)
        if (r->actives[i].prompt && r->actives[i].sequence == sequence) {
            r->actives[i].has_bad_logits = true;
            td_coordinator_cancel(r->coordinator, sequence, now_us(r));
        }
}

static bool take_verified(session *r, td_err *err)
{
    td_target_result result;
    while (td_target_poll(r->target, &result)) {
        if (result.err.code != TD_OK)
            return td_recover_target(r, &result.err, err) && perform_all(r, err);
        if (r->trace) {
            td_trace_verified(r->trace, &result, now_us(r));
            td_trace_take(r->trace, r->target, 0);
        }
        r->totals->n_restored += result.n_restored;
        for (uint32_t i = 0; i < result.n_bad && !result.is_cancelled; i++)
            fail_sequence(r, result.bad[i]);
        td_coordinator_on_verified(r->coordinator, result.batch, result.chosen,
                                   &(td_batch_times){.sum_us = result.sum_us,
                                                     .max_us = result.max_us,
                                                     .waited_us = result.waited_us,
                                                     .is_restored = result.n_restored > 0},
                                   now_us(r));
        td_recover_note(r);
        if (!perform_all(r, err))
            return false;
    }
    return true;
}

static void hear_draft(session *r, const td_draft_client_event *e)
{
    r->totals->answers_us += e->busy_us;
    r->heard_us = now_us(r);
    if (r->is_draft_silent)
        td_log_info("the draft answers again");
    r->is_draft_silent = false;
    if (r->trace)
        td_trace_draft(r->trace, e->sequence, e->epoch, e->position, e->n, e->busy_us, now_us(r));
}

/* by: td_coordinator_on_draft, or _on_head of a head beside a draft. */
static void take_draft(session *r, const td_draft_client_event *e,
                       void (*by)(td_coordinator *, uint32_t, uint32_t, uint32_t, const uint32_t *,
                                  uint32_t, uint64_t, uint64_t))
{
    const td_sequence_info *info = td_coordinator_get_info(r->coordinator, e->sequence);
    uint32_t ids[TD_DRAFT_MAX];
    const uint32_t *taken = e->ids;
    if (r->params->on_draft && info && e->n <= TD_DRAFT_MAX && e->position >= info->n_prompt) {
        memcpy(ids, e->ids, e->n * sizeof *ids);
        r->params->on_draft(r->params->user, td_loop_find_active(r, e->sequence)->prompt->id,
                            e->position - info->n_prompt, ids, e->n);
        taken = ids;
    }
    by(r->coordinator, e->sequence, e->epoch, e->position, taken, e->n, e->busy_us, now_us(r));
}

static void take_proposals(session *r)
{
    td_proposal p;
    bool is_chain = td_setup_is_chain(r);
    while (td_target_next_proposal(r->target, &p)) {
        td_draft_client_event e = {.type = TD_DRAFTING_DRAFT,
                                   .sequence = p.sequence,
                                   .epoch = p.epoch,
                                   .position = p.position,
                                   .n = p.n,
                                   .busy_us = p.busy_us,
                                   .ids = p.ids};
        if (!is_chain)
            hear_draft(r, &e);
        take_draft(r, &e, is_chain ? td_coordinator_on_head : td_coordinator_on_draft);
    }
}

static bool take_draft_events(session *r, td_err *err)
{
    take_proposals(r);
    if (!r->drafting || !r->is_draft_due)
        return true;
    if (r->rejoin_us && now_us(r) >= r->rejoin_us)
        td_loop_join_draft(r);
    while (true) {
        td_draft_client_event e;
        if (!td_draft_client_step(r->drafting, &e, err))
            return false;
        switch (e.type) {
        case TD_DRAFTING_NONE:
            return true;
        case TD_DRAFTING_JOINED:
            td_loop_join_draft(r);
            break;
        case TD_DRAFTING_LOST:
            td_log_warn("the draft is lost (%s); going on without it", e.reason);
            r->rejoin_us = 0;
            lose_draft(r);
            break;
        case TD_DRAFTING_DRAFT:
            hear_draft(r, &e);
            take_draft(r, &e, td_coordinator_on_draft);
            break;
        }
    }
}

/* Waits for whatever comes first: a batch, a message, a deadline, a signal. */
static bool wait_for_events(session *r, td_err *err)
{
    uint64_t now = now_us(r), next = now + 1000000; /* syncs of the results are due by then */
    uint64_t deadline = td_coordinator_deadline_us(r->coordinator);
    next = deadline < next ? deadline : next;
    if (r->drafting && td_draft_client_next_us(r->drafting) < next)
        next = td_draft_client_next_us(r->drafting);
    if (r->rejoin_us && r->rejoin_us < next)
        next = r->rejoin_us;
    if (r->drain_at_us > now && r->drain_at_us < next)
        next = r->drain_at_us;
    td_link_poll_item items[5] = {{.fd = td_target_fd(r->target)}};
    size_t n = 1;
    if (!td_signals_pending()) /* its descriptor stays readable after the first */
        items[n++] = (td_link_poll_item){.fd = td_signals_fd()};
    if (wants_prompt(r))
        items[n++] = (td_link_poll_item){.fd = td_input_fd(r->input)};
    if (td_results_fd(r->results) >= 0)
        items[n++] = (td_link_poll_item){.fd = td_results_fd(r->results)};
    if (r->drafting)
        items[n++] = (td_link_poll_item){.link = td_draft_client_link(r->drafting)};
    if (!td_link_poll(items, n, next > now ? (int64_t)(next - now) : 0, err))
        return false;
    /* Asking a link costs more than looking at it, and most rounds have nothing for it. */
    r->is_draft_due = r->drafting && (items[n - 1].is_readable || r->rejoin_us > 0 ||
                                      td_draft_client_next_us(r->drafting) <= now_us(r));
    return true;
}

/* So that the first tokens are drafted too. A worker that is not there yet joins later. */
bool td_loop_wait_for_draft(session *r, td_err *err)
{
    for (uint64_t end = now_us(r) + JOIN_US; r->drafting && !r->is_draft_joined &&
                                             !td_draft_client_is_over(r->drafting) &&
                                             now_us(r) < end;) {
        uint64_t now = now_us(r), next = td_draft_client_next_us(r->drafting);
        next = next < end ? next : end;
        td_link_poll_item items[] = {{.link = td_draft_client_link(r->drafting)}};
        r->is_draft_due = true;
        if (!td_link_poll(items, 1, next > now ? (int64_t)(next - now) : 0, err) ||
            !take_draft_events(r, err))
            return false;
    }
    return true;
}

bool td_loop_run(session *r, td_err *err)
{
    while (true) {
        drain(r);
        if (!admit(r, err) || !perform_all(r, err))
            return false;
        td_show_progress(r->show, r->totals, now_us(r));
        if (td_coordinator_is_idle(r->coordinator) && (r->is_input_done || td_signals_pending()))
            return true;
        if (!wait_for_events(r, err) || !take_verified(r, err) || !take_draft_events(r, err))
            return false;
        td_coordinator_on_tick(r->coordinator, now_us(r));
        mind_silence(r);
        if (!td_results_poll(r->results, err))
            return false;
    }
}
