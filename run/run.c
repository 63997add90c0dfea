/* The event loop. It performs the coordinator's actions and turns what the target, the draft, the
 * clock and signals say into events for it; all decisions are the coordinator's. */
#include "run/run.h"

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/signals.h"
#include "run/setup.h"
#include "run/stats.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define REJOIN_US 1000000u /* after a draft that could not be sent to */
#define JOIN_US   1000000u /* a run waits so long for its draft before it begins without */

static uint64_t now_us(const session *r) { return td_clock_now_us(&r->clock); }

static active *find_active(session *r, uint32_t sequence)
{
    for (uint32_t i = 0; i < TD_SEQUENCES_MAX; i++)
        if (r->actives[i].prompt && r->actives[i].sequence == sequence)
            return &r->actives[i];
    TD_ASSERT(!"actions name sequences that were added and not removed");
    return NULL;
}

/* -- results ----------------------------------------------------------------------------------- */

static bool write_error(session *r, const td_prompt *q, const char *message, td_err *err)
{
    r->totals->n_error++;
    td_show_error(r->show, q->id, message);
    return td_results_write(r->results,
                            &(td_result){.id = q->id,
                                         .error = message,
                                         .input_sha = q->input_sha,
                                         .config_sha = r->config_sha,
                                         .model_sha = r->model_sha,
                                         .placement = r->placement},
                            err);
}

/* Of the tokens behind the first one. */
static void add_line_speed(td_run_totals *t, const td_sequence_info *info)
{
    double us = (double)(info->finished_us - info->first_token_us);
    if (info->n_tokens < 2 || us <= 0)
        return;
    double per_s = (info->n_tokens - 1) * 1e6 / us;
    t->line_min_per_s = t->n_timed_lines ? fmin(t->line_min_per_s, per_s) : per_s;
    t->line_max_per_s = fmax(t->line_max_per_s, per_s);
    t->line_sum_per_s += per_s;
    t->n_timed_lines++;
}

static void add_to_totals(session *r, const td_sequence_info *info)
{
    td_run_totals *t = r->totals;
    t->n_tokens += info->n_tokens;
    t->n_prompt_tokens += info->n_prompt;
    t->n_rounds += info->n_rounds;
    t->n_drafted += info->n_drafted;
    t->n_accepted += info->n_accepted;
    t->n_shared += info->n_shared;
    t->n_looked_up += info->n_looked_up;
    t->n_lookup_accepted += info->n_lookup_accepted;
    t->ttft_sum_us += info->first_token_us - info->added_us;
    add_line_speed(t, info);
    for (uint32_t i = 0; i <= TD_DRAFT_MAX; i++) {
        t->drafted_at[i] += info->drafted_at[i];
        t->accepted_at[i] += info->accepted_at[i];
    }
}

static bool finish(session *r, uint32_t sequence, td_err *err)
{
    active *a = find_active(r, sequence);
    const td_sequence_info *info = td_coordinator_get_info(r->coordinator, a->sequence);
    bool is_ok = true;
    if (a->has_bad_logits) {
        is_ok = write_error(r, a->prompt, "the model gave logits that are not finite", err);
    } else if (info->reason != TD_REASON_CANCELLED) {
        r->totals->n_ok++;
        add_to_totals(r, info);
        td_show_finish(r->show, info);
        is_ok = td_results_write(
            r->results,
            &(td_result){.id = a->prompt->id,
                         .is_ok = true,
                         .text = info->text,
                         .n_text = info->n_text,
                         .tokens = info->tokens,
                         .n_tokens = info->n_tokens,
                         .reason = info->reason,
                         .n_drafted = info->n_drafted,
                         .n_accepted = info->n_accepted,
                         .n_rounds = info->n_rounds,
                         .n_prompt_tokens = info->n_prompt,
                         .ttft_ms = (double)(info->first_token_us - info->added_us) * 1e-3,
                         .ms = (double)(info->finished_us - info->added_us) * 1e-3,
                         .input_sha = a->prompt->input_sha,
                         .config_sha = r->config_sha,
                         .model_sha = r->model_sha,
                         .placement = r->placement},
            err);
        if (is_ok && r->params->on_finish)
            is_ok = r->params->on_finish(r->params->user, a->prompt->id, info, err);
    }
    if (r->ngram && a->slot < TD_SEQUENCES_MAX)
        td_ngram_close(r->ngram, a->slot, info->prompt, info->n_prompt + info->n_tokens,
                       !a->has_bad_logits);
    td_coordinator_remove(r->coordinator, a->sequence);
    td_prompt_destroy(&a->prompt);
    return is_ok;
}

/* -- prompts ----------------------------------------------------------------------------------- */

/* Tokenizes a prompt and gives it a slot. An unusable one becomes an error line. */
static bool add_prompt(session *r, td_prompt **prompt, td_err *err)
{
    td_prompt *q = *prompt;
    uint32_t *ids = NULL;
    size_t n_ids = 0;
    td_err bad = {0};
    uint32_t n_ctx = td_target_n_ctx(r->target), sequence = 0;
    const td_tokenizer *t = td_model_tokenizer(r->model);
    bool is_ok = q->messages.n > 0
                     ? td_chat_input_tokenize(&q->messages, td_model_gguf(r->model), t,
                                              r->params->chat_template, &ids, &n_ids, &bad)
                     : td_tokenize(t, q->text, q->n_text, true, false, &ids, &n_ids, &bad);
    if (is_ok && n_ids == 0)
        is_ok = td_err_set(&bad, TD_E_DATA, "the prompt is empty and the model has no BOS token");
    if (is_ok && n_ids >= n_ctx)
        is_ok =
            td_err_set(&bad, TD_E_DATA,
                       "the prompt has %zu tokens; allowed: 1..%u (the context is %u, see --ctx)",
                       n_ids, n_ctx - 1, n_ctx);
    if (is_ok) {
        td_sequence_params s = {.prompt = ids,
                                .n_prompt = (uint32_t)n_ids,
                                .n_predict = q->n_predict,
                                .ignore_end = r->params->ignore_eos,
                                .n_stops = q->n_stops};
        for (uint32_t i = 0; i < q->n_stops; i++)
            s.stops[i] = q->stops[i];
        is_ok = td_coordinator_add(r->coordinator, &s, now_us(r), &sequence, &bad);
    }
    td_free(ids);
    if (!is_ok) {
        bool is_written = write_error(r, q, bad.message, err);
        td_prompt_destroy(prompt);
        return is_written;
    }
    uint32_t i = 0;
    while (r->actives[i].prompt) /* a free slot there means a free place here */
        i++;
    r->actives[i] = (active){.prompt = q, .sequence = sequence, .slot = UINT32_MAX};
    td_show_begin(r->show, q->text);
    *prompt = NULL;
    return true;
}

/* What the results file says about a prompt: run it, skip it, or stop. */
static bool take_prompt(session *r, td_prompt **prompt, td_err *err)
{
    td_prompt *q = *prompt;
    char why[512] = "";
    td_err claim = {0};
    td_result_state state =
        td_results_claim(r->results, q->id, q->input_sha, r->config_sha, why, sizeof why, &claim);
    if (state == TD_RESULT_TWICE) { /* an error, under the line's own name */
        td_err_set(&q->err, TD_E_DATA, "line %llu: the id %s is used by an earlier line",
                   (unsigned long long)q->line, q->id);
        memcpy(q->id, q->line_id, sizeof q->line_id);
        state = td_results_claim(r->results, q->id, q->input_sha, r->config_sha, why, sizeof why,
                                 &claim);
    }
    if (claim.code != TD_OK)
        return td_err_set(err, claim.code, "%s", claim.message);
    if (state == TD_RESULT_OTHER && !r->params->is_force)
        return td_err_set(err, TD_E_DATA, "%s: %s", r->params->out_path, why);
    bool is_wanted =
        state == TD_RESULT_NONE || (state == TD_RESULT_ERROR && r->params->is_retry_errors);
    if (is_wanted && q->err.code == TD_OK)
        return add_prompt(r, prompt, err);
    bool is_ok = true;
    if (is_wanted)
        is_ok = write_error(r, q, q->err.message, err);
    else
        r->totals->n_skipped++;
    r->totals->n_old_errors += !is_wanted && state == TD_RESULT_ERROR;
    td_prompt_destroy(prompt);
    return is_ok;
}

/* Fills free slots. */
static bool admit(session *r, td_err *err)
{
    while (!r->is_input_done && td_coordinator_n_free(r->coordinator) > 0 &&
           !td_signals_pending()) {
        td_err failure = {0};
        td_prompt *q = td_prompts_next(r->prompts, &failure);
        if (!q) {
            r->is_input_done = true;
            if (failure.code != TD_OK && !td_signals_pending())
                return td_err_set(err, failure.code, "%s", failure.message);
            return true;
        }
        bool is_ok = take_prompt(r, &q, err);
        td_prompt_destroy(&q);
        if (!is_ok)
            return false;
    }
    return true;
}

/* -- actions ----------------------------------------------------------------------------------- */

static void lose_draft(session *r)
{
    if (!r->is_draft_joined)
        return;
    r->is_draft_joined = false;
    r->totals->n_draft_losses++;
    td_coordinator_on_drafter(r->coordinator, false, now_us(r));
}

static void join_draft(session *r)
{
    r->is_draft_joined = true;
    r->rejoin_us = 0;
    r->totals->n_draft_joins++;
    td_coordinator_on_drafter(r->coordinator, true, now_us(r));
}

static void send_to_draft(session *r, const td_action *a)
{
    if (!r->is_draft_joined)
        return;
    if (a->kind == TD_ACT_DRAFT_PROPOSE && td_draft_client_is_beyond(r->drafting, a->position)) {
        td_coordinator_on_draft(r->coordinator, a->sequence, a->epoch, a->position, NULL, 0, 0,
                                now_us(r));
        return;
    }
    bool is_sent;
    if (a->kind == TD_ACT_DRAFT_OPEN) {
        const td_prompt *q = find_active(r, a->sequence)->prompt;
        is_sent = td_draft_client_open(r->drafting, a->sequence, q->stream, &q->sampling);
    } else {
        is_sent = td_draft_client_send(r->drafting, a);
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
        active *opened = find_active(r, a->sequence);
        opened->slot = a->slot;
        if (r->ngram)
            td_ngram_open(r->ngram, a->slot);
        td_target_open_sequence(r->target, a->slot, a->from_slot, a->length, opened->prompt->stream,
                                &opened->prompt->sampling);
        return true;
    }
    case TD_ACT_FORWARD:
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
    case TD_ACT_TOKENS:
        td_show_tokens(r->show, a->tokens, a->is_draft, a->n_tokens);
        return true;
    case TD_ACT_FINISH:
        return finish(r, a->sequence, err);
    }
    return true;
}

/* Once: that is how the run goes on from then on. */
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
    say_who_waits(r);
    return true;
}

/* -- events ------------------------------------------------------------------------------------ */

static bool take_verified(session *r, td_err *err)
{
    td_target_result result;
    while (td_target_poll(r->target, &result)) {
        if (result.err.code != TD_OK)
            return td_err_set(err, result.err.code, "target: %s", result.err.message);
        td_trace_verified(r->trace, &result);
        for (uint32_t i = 0; i < TD_SEQUENCES_MAX && !result.is_cancelled; i++)
            if (r->actives[i].prompt && r->actives[i].slot < TD_SEQUENCES_MAX &&
                result.bad_slots >> r->actives[i].slot & 1) {
                r->actives[i].has_bad_logits = true;
                td_coordinator_cancel(r->coordinator, r->actives[i].sequence, now_us(r));
            }
        td_coordinator_on_verified(
            r->coordinator, result.batch, result.chosen,
            &(td_batch_times){.sum_us = result.sum_us, .max_us = result.max_us}, now_us(r));
        if (!perform_all(r, err))
            return false;
    }
    return true;
}

static void take_draft(session *r, const td_draft_client_event *e)
{
    r->totals->answers_us += e->busy_us;
    const td_sequence_info *info = td_coordinator_get_info(r->coordinator, e->sequence);
    uint32_t ids[TD_DRAFT_MAX];
    if (r->trace)
        td_trace_draft(r->trace, e->sequence, e->epoch, e->position, e->n, e->busy_us, now_us(r));
    const uint32_t *taken = e->ids;
    if (r->params->on_draft && info && e->n <= TD_DRAFT_MAX && e->position >= info->n_prompt) {
        memcpy(ids, e->ids, e->n * sizeof *ids);
        r->params->on_draft(r->params->user, find_active(r, e->sequence)->prompt->id,
                            e->position - info->n_prompt, ids, e->n);
        taken = ids;
    }
    td_coordinator_on_draft(r->coordinator, e->sequence, e->epoch, e->position, taken, e->n,
                            e->busy_us, now_us(r));
}

static bool take_draft_events(session *r, td_err *err)
{
    if (!r->drafting)
        return true;
    if (r->rejoin_us && now_us(r) >= r->rejoin_us)
        join_draft(r);
    while (true) {
        td_draft_client_event e;
        if (!td_draft_client_step(r->drafting, &e, err))
            return false;
        switch (e.type) {
        case TD_DRAFTING_NONE:
            return true;
        case TD_DRAFTING_JOINED:
            join_draft(r);
            break;
        case TD_DRAFTING_LOST:
            td_log_warn("the draft is lost (%s); going on without it", e.reason);
            r->rejoin_us = 0;
            lose_draft(r);
            break;
        case TD_DRAFTING_DRAFT:
            take_draft(r, &e);
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
    td_link_poll_item items[3] = {{.fd = td_target_fd(r->target)}};
    size_t n = 1;
    if (!td_signals_pending()) /* its descriptor stays readable after the first */
        items[n++] = (td_link_poll_item){.fd = td_signals_fd()};
    if (r->drafting)
        items[n++] = (td_link_poll_item){.link = td_draft_client_link(r->drafting)};
    return td_link_poll(items, n, next > now ? (int64_t)(next - now) : 0, err);
}

/* So that the first tokens are drafted too. A worker that is not there yet joins later. */
static bool wait_for_draft(session *r, td_err *err)
{
    for (uint64_t end = now_us(r) + JOIN_US;
         r->drafting && !r->is_draft_joined && now_us(r) < end;) {
        uint64_t now = now_us(r), next = td_draft_client_next_us(r->drafting);
        next = next < end ? next : end;
        td_link_poll_item items[] = {{.link = td_draft_client_link(r->drafting)}};
        if (!td_link_poll(items, 1, next > now ? (int64_t)(next - now) : 0, err) ||
            !take_draft_events(r, err))
            return false;
    }
    return true;
}

static bool loop(session *r, td_err *err)
{
    while (true) {
        if (!admit(r, err) || !perform_all(r, err))
            return false;
        td_show_progress(r->show, r->totals, now_us(r));
        if (td_coordinator_is_idle(r->coordinator)) {
            if (r->is_input_done || td_signals_pending())
                return true;
            continue; /* every line so far was skipped or bad: read on */
        }
        if (!wait_for_events(r, err) || !take_verified(r, err) || !take_draft_events(r, err))
            return false;
        td_coordinator_on_tick(r->coordinator, now_us(r));
        if (!td_results_poll(r->results, err))
            return false;
    }
}

/* -- start and end ----------------------------------------------------------------------------- */

static const char *token_bytes(void *user, uint32_t id, size_t *n_bytes)
{
    const session *r = user;
    return td_token_bytes(td_model_tokenizer(r->model), id, false, n_bytes);
}

static bool token_is_end(void *user, uint32_t id)
{
    const session *r = user;
    return td_token_is_end(td_model_tokenizer(r->model), id);
}

static uint32_t look_up(void *user, uint32_t slot, const uint32_t *tokens, uint32_t n_tokens,
                        uint32_t *ids, uint32_t max, uint32_t *n_match)
{
    const session *r = user;
    return td_ngram_lookup(r->ngram, slot, tokens, n_tokens, NULL, 0, ids, max, n_match);
}

/* Before anything is loaded: a results file in use, or prompts that are not
 * there, end it at once. */
static bool open_files(session *r, td_err *err)
{
    r->results = td_results_open(r->params, err);
    r->prompts = r->results ? td_prompts_open(r->params, err) : NULL;
    return r->prompts;
}

static bool begin(session *r, td_err *err)
{
    const td_run_params *p = r->params;
    const td_tokenizer *tokenizer = td_model_tokenizer(r->model);
    r->show = td_show_create(p, tokenizer, td_prompts_count(r->prompts), err);
    if (!r->show)
        return false;
    td_coordinator_params params = {
        .n_slots = r->opened.n_parallel,
        .n_ctx = td_target_n_ctx(r->target),
        .draft_max = !r->drafting && !r->ngram ? 0
                     : p->draft_fixed          ? p->draft_fixed
                                               : p->draft_max,
        .is_draft_fixed = p->draft_fixed > 0,
        .is_ahead = td_setup_drafts_ahead(r),
        .n_batches_max = td_target_n_stages(r->target),
        .verify_rows_max = TD_VERIFY_ROWS_MAX,
        .prefill_rows = r->prefill_rows,
        .page_positions = TD_PAGE_POSITIONS,
        .n_pages = td_target_n_pages(r->target),
        .can_share = !td_target_forgets(r->target),
        .lookup = r->ngram ? look_up : NULL,
        .draft_deadline_us = p->draft_deadline_us ? p->draft_deadline_us : TD_DRAFT_DEADLINE_US,
        .n_vocab = td_tokenizer_get_info(tokenizer)->n_vocab,
        .token_bytes = token_bytes,
        .token_is_end = token_is_end,
        .user = r};
    memcpy(params.verify_us, r->verify_us, sizeof params.verify_us);
    params.draft_us = r->draft_us;
    r->coordinator = td_coordinator_create(&params, err);
    if (r->coordinator && r->is_draft_joined) /* by an earlier run */
        join_draft(r);
    return r->coordinator;
}

/* What the meters say since the session began; called twice, the difference is of the run. */
static void read_meters(session *r, td_run_totals *t)
{
    const td_drafter_stats *draft = r->drafting ? td_draft_client_get_stats(r->drafting) : NULL;
    for (uint32_t i = 0; i < td_target_n_stages(r->target); i++) {
        td_stage_info s;
        td_target_get_stage_info(r->target, i, &s);
        t->prefill_us += s.busy_prefill_us;
        t->verify_us += s.busy_verify_us;
        t->stage_us[i] = s.busy_prefill_us + s.busy_verify_us;
    }
    t->draft_us = draft ? draft->busy_us : 0;
    t->n_proposed = draft ? draft->n_tokens : 0;
    t->loop_cpu_us = td_stats_cpu_us(r->drafting);
    td_energy_read(r->energy, t->joules);
}

static bool open_trace(session *r, td_err *err)
{
    const char *draft = r->params->draft_endpoint ? r->params->draft_endpoint
                        : r->drafting             ? td_draft_client_device(r->drafting)
                                                  : NULL;
    if (r->params->trace_path)
        r->trace = td_trace_open(&(td_trace_params){.path = r->params->trace_path,
                                                    .target = r->target,
                                                    .draft = draft,
                                                    .start_us = now_us(r)},
                                 err);
    return r->trace || !r->params->trace_path;
}

static bool go(session *r, td_err *err)
{
    td_run_totals *t = r->totals, before = {0};
    bool is_ok = begin(r, err) && wait_for_draft(r, err) && open_trace(r, err);
    if (is_ok) {
        read_meters(r, &before);
        if (r->placing.is_planned)
            t->predicted_per_s = td_run_placement_expected(&r->placing, r->opened.use);
        t->start_us = now_us(r);
        is_ok = loop(r, err);
        t->end_us = now_us(r);
        read_meters(r, t);
        t->prefill_us -= before.prefill_us;
        t->verify_us -= before.verify_us;
        t->draft_us -= before.draft_us;
        t->n_proposed -= before.n_proposed;
        t->loop_cpu_us -= before.loop_cpu_us;
        for (uint32_t i = 0; i < TD_RUN_SPECS_MAX; i++)
            t->stage_us[i] -= before.stage_us[i];
        for (uint32_t i = 0; i < td_energy_count(r->energy); i++)
            t->joules[i] -= before.joules[i];
        td_show_end(r->show);
        is_ok = td_trace_close(&r->trace, t->end_us, is_ok ? err : NULL) && is_ok;
    }
    if (is_ok && r->params->stats_path)
        is_ok = td_stats_write(
            &(td_stats){.params = r->params,
                        .totals = t,
                        .energy = r->energy,
                        .coordinator = td_coordinator_get_stats(r->coordinator),
                        .target = r->target,
                        .model = r->model,
                        .draft_device = r->drafting ? td_draft_client_device(r->drafting) : NULL,
                        .draft = r->drafting ? td_draft_client_get_stats(r->drafting) : NULL,
                        .config_sha = r->config_sha},
            r->params->stats_path, err);
    return is_ok;
}

/* What is of one run. Results first: whatever happens on the way down, what was finished is on
 * disk. */
static bool end(session *r, td_err *err)
{
    bool is_ok = td_results_close(&r->results, err);
    if (r->coordinator) /* what slots have kept is known to it only */
        for (uint32_t i = 0; i < r->opened.n_parallel; i++)
            td_target_close_sequence(r->target, i);
    if (r->coordinator)
        td_coordinator_read_times(r->coordinator, r->verify_us, &r->draft_us);
    td_coordinator_destroy(&r->coordinator);
    for (uint32_t i = 0; i < TD_SEQUENCES_MAX; i++)
        td_prompt_destroy(&r->actives[i].prompt);
    td_prompts_close(&r->prompts);
    td_show_destroy(&r->show);
    r->is_input_done = r->has_said_who_waits = false;
    return is_ok;
}

bool td_run(const td_run_params *params, td_run_totals *totals, int *signal, td_err *err)
{
    *totals = (td_run_totals){0};
    session *r = td_alloc(1, sizeof *r, err);
    if (!r)
        return false;
    td_setup_init(r, params);
    r->params = &r->opened;
    r->totals = totals;
    bool is_ok = td_signals_open(err) && open_files(r, err) && td_setup_load(r, err) && go(r, err);
    *signal = td_signals_pending();
    is_ok = end(r, is_ok ? err : NULL) && is_ok;
    td_run_close(&r);
    return is_ok;
}

bool td_run_go(td_run_session *r, const td_run_params *params, td_run_totals *totals, int *signal,
               td_err *err)
{
    *totals = (td_run_totals){0};
    r->params = params;
    r->totals = totals;
    bool is_ok = open_files(r, err) && go(r, err);
    *signal = td_signals_pending();
    return end(r, is_ok ? err : NULL) && is_ok;
}
