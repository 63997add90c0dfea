/* A run from its start to its end: files, what it measures itself by, and the session's parts in
 * the order in which they come and go. The event loop is loop.c's. */
#include "run/run.h"

#include "base/check.h"
#include "base/files.h"
#include "base/mem.h"
#include "base/signals.h"
#include "run/job_config.h"
#include "run/loop.h"
#include "run/stats.h"
#include "transport/link.h"

#include <string.h>
#include <unistd.h>

#define TRACE_END_US   10000000u /* for what stages elsewhere did in the end */
#define JOB_PATIENCE_S 10.0      /* for results of a job at the end, while its database is away */

static uint64_t now_us(const session *r) { return td_clock_now_us(&r->clock); }

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

/* What the job says of its lines is said by nobody else. */
static bool open_job(session *r, td_err *err)
{
    td_run_params *p = &r->opened;
    r->job = td_worker_open(
        &(td_worker_params){.url = p->job, .n_hold = 2 * p->n_parallel, .lease_s = p->lease_s},
        err);
    return r->job && td_job_config_read(td_worker_settings(r->job)->config, p, &r->job_date,
                                        &r->job_config, err);
}

/* From here on lines are taken. */
static bool begin_job(session *r, td_err *err)
{
    char demanded[TD_IDENTITY_BYTES], what[600] = "";
    if (td_worker_begin(r->job, r->identity.sha, r->identity.text, demanded, sizeof demanded, err))
        return true;
    if (*demanded)
        td_identity_compare(demanded, r->identity.text, what, sizeof what);
    return *what ? td_err_prepend(err, "%s", what) : false;
}

/* Before anything is loaded: a results file in use, or prompts that are not
 * there, end it at once. */
static bool open_files(session *r, td_err *err)
{
    const td_run_params *p = r->params;
    if (p->draft_endpoint && !td_link_check(p->draft_endpoint, TD_LINK_CONNECT, p->key, err))
        return td_err_prepend(err, "draft");
    const char *late[] = {r->params->stats_path, r->params->trace_path}; /* opened at the end */
    for (size_t i = 0; i < TD_COUNT(late); i++)
        if (late[i] && !td_files_check_writable(late[i], err))
            return false;
    if (p->job && !open_job(r, err))
        return false;
    r->results = td_results_open(r->params, r->job, err);
    r->prompts = r->results ? td_prompts_open(r->params, r->job, err) : NULL;
    if (r->prompts && r->job)
        td_results_set_date(r->results, r->job_date);
    return r->prompts;
}

/* Whether some stage is on another machine, so that batches are on their way for a while. */
static bool is_far(const td_target *target)
{
    bool is_so = false;
    for (uint32_t i = 0; i < td_target_n_stages(target); i++) {
        td_stage_info info;
        td_target_get_stage_info(target, i, &info);
        is_so |= info.host != NULL;
    }
    return is_so;
}

static bool begin(session *r, td_err *err)
{
    const td_run_params *p = r->params;
    const td_tokenizer *tokenizer = td_model_tokenizer(r->model);
    bool is_seen = isatty(STDERR_FILENO); /* else nobody needs the count */
    /* A session may have a draft that this run does without. */
    bool is_drafting =
        (r->drafting && (p->draft_path || p->draft_endpoint)) || td_setup_uses_head(r);
    r->show = td_show_create(p, tokenizer, is_seen ? td_prompts_count(r->prompts) : 0, err);
    if (r->show && p->is_ngram)
        r->ngram =
            td_ngram_create(TD_NGRAM_RING, r->opened.n_parallel, td_target_n_ctx(r->target), err);
    if (!r->show || (p->is_ngram && !r->ngram))
        return false;
    td_coordinator_params params = {
        .n_slots = r->opened.n_parallel,
        .n_ctx = td_target_n_ctx(r->target),
        .draft_max = !is_drafting && !r->ngram ? 0
                     : p->draft_fixed          ? p->draft_fixed
                                               : p->draft_max,
        .is_draft_fixed = p->draft_fixed > 0,
        .is_ahead = is_drafting && td_setup_drafts_ahead(r),
        .is_one_unit = td_setup_is_one_unit(r),
        .draft_share = td_setup_draft_share(r),
        .reads_along = td_setup_uses_head(r) && !r->drafting,
        .has_head = td_setup_is_chain(r),
        .n_batches_max = is_far(r->target) ? TD_BATCHES_MAX : td_target_n_stages(r->target),
        .n_stages = td_target_n_stages(r->target),
        .verify_rows_max = TD_VERIFY_ROWS_MAX,
        .prefill_rows = r->prefill_rows,
        .page_positions = TD_PAGE_POSITIONS,
        .n_pages = td_target_n_pages(r->target),
        .can_share = !td_target_forgets(r->target),
        .lookup = r->ngram ? look_up : NULL,
        .is_draft_elsewhere = r->drafting && td_draft_client_is_elsewhere(r->drafting),
        .draft_deadline_us = p->draft_deadline_us ? p->draft_deadline_us : TD_DRAFT_DEADLINE_US,
        .n_vocab = td_tokenizer_get_info(tokenizer)->n_vocab,
        .token_bytes = token_bytes,
        .token_is_end = token_is_end,
        .user = r};
    memcpy(params.verify_us, r->verify_us, sizeof params.verify_us);
    params.draft_us = r->draft_us;
    r->coordinator = td_coordinator_create(&params, err);
    bool is_head_alone = r->head && !r->drafting; /* which needs no session */
    if (r->coordinator && is_drafting && (r->is_draft_joined || is_head_alone)) /* by one before */
        td_loop_join_draft(r);
    td_setup_choose_date(r);
    td_results_set_identity(r->results, r->identity.text);
    if (r->job && !begin_job(r, err))
        return false;
    r->input = r->coordinator ? td_input_create(&(td_input_params){.prompts = r->prompts,
                                                                   .results = r->results,
                                                                   .model = r->model,
                                                                   .chat = r->chat,
                                                                   .date = r->date,
                                                                   .run = r->params,
                                                                   .config_sha = r->identity.sha},
                                                err)
                              : NULL;
    return r->input;
}

/* What the meters say since the session began; called twice, the difference is of the run. */
static void read_meters(session *r, td_run_totals *t)
{
    const td_drafter_stats *draft = r->drafting ? td_draft_client_get_stats(r->drafting) : NULL;
    uint64_t head_us = 0, n_head_tokens = 0;
    for (uint32_t i = 0; i < td_target_n_stages(r->target); i++) {
        td_stage_info s;
        td_target_get_stage_info(r->target, i, &s);
        t->prefill_us += s.busy_prefill_us;
        t->verify_us += s.busy_verify_us;
        t->stage_us[i] = s.busy_prefill_us + s.busy_verify_us;
        head_us += s.busy_draft_us;
        n_head_tokens += s.n_draft_tokens;
    }
    t->draft_us = draft ? draft->busy_us : head_us;
    t->n_proposed = draft ? draft->n_tokens : n_head_tokens;
    t->loop_cpu_us = td_stats_cpu_us(r->drafting);
    td_energy_read(r->energy, t->joules);
}

static bool open_trace(session *r, td_err *err)
{
    const char *draft = r->params->draft_endpoint ? r->params->draft_endpoint
                                                  : td_setup_draft_device(r, r->head_spec);
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
    bool is_ok = begin(r, err) && td_loop_wait_for_draft(r, err) && open_trace(r, err);
    if (is_ok) {
        read_meters(r, &before);
        if (r->placing.is_planned)
            t->predicted_per_s = td_run_placement_expected(&r->placing, r->opened.use);
        t->start_us = now_us(r);
        is_ok = td_loop_run(r, err);
        t->end_us = now_us(r);
        if (!r->target) /* lost for good */
            return td_trace_close(&r->trace, t->end_us, NULL) && false;
        read_meters(r, t);
        t->prefill_us -= before.prefill_us;
        t->verify_us -= before.verify_us;
        t->draft_us -= before.draft_us;
        t->n_proposed -= before.n_proposed;
        t->loop_cpu_us -= before.loop_cpu_us;
        for (uint32_t i = 0; i < TD_RUN_SPECS_MAX; i++)
            t->stage_us[i] -=
                td_min_u64(t->stage_us[i], before.stage_us[i]); /* fewer, after a loss */
        for (uint32_t i = 0; i < td_energy_count(r->energy); i++)
            t->joules[i] -= before.joules[i];
        td_show_end(r->show);
        td_trace_take(r->trace, r->target, TRACE_END_US);
        is_ok = td_trace_close(&r->trace, t->end_us, is_ok ? err : NULL) && is_ok;
    }
    td_input_destroy(&r->input);                         /* it asks the results of what was there */
    is_ok = is_ok && td_results_close(&r->results, err); /* stats tell of lines that are there */
    td_prefix_counts kept = {0};
    if (r->prompts_kept) {
        td_prefix_store_flush(r->prompts_kept);
        kept = td_prefix_store_counts(r->prompts_kept);
    }
    if (is_ok && r->params->stats_path)
        is_ok = td_stats_write(
            &(td_stats){.params = r->params,
                        .totals = t,
                        .energy = r->energy,
                        .coordinator = td_coordinator_get_stats(r->coordinator),
                        .target = r->target,
                        .model = r->model,
                        .head_name = !r->head   ? NULL
                                     : *r->head ? r->head
                                                : "mtp",
                        .draft_device = td_setup_draft_device(r, r->head_spec),
                        .draft_info = r->drafting ? td_draft_client_get_device(r->drafting) : NULL,
                        .draft_bytes = r->draft_bytes,
                        .draft = r->drafting ? td_draft_client_get_stats(r->drafting) : NULL,
                        .prompts_kept = r->prompts_kept ? &kept : NULL,
                        .identity = &r->identity,
                        .date = r->date},
            r->params->stats_path, err);
    return is_ok;
}

/* Ends one run; the session stays. Results are closed first: whatever happens on the way down, what
 * was finished is on disk. */
static bool end(session *r, td_err *err)
{
    td_input_destroy(&r->input); /* it asks the results of what was there */
    bool is_ok = td_results_close(&r->results, err);
    is_ok = td_worker_close(&r->job, JOB_PATIENCE_S, is_ok ? err : NULL) && is_ok;
    if (r->coordinator && r->target) /* only this coordinator knows what the slots have kept */
        for (uint32_t i = 0; i < r->opened.n_parallel; i++)
            td_target_close_sequence(r->target, i);
    if (r->coordinator)
        td_coordinator_read_times(r->coordinator, r->verify_us, &r->draft_us);
    td_coordinator_destroy(&r->coordinator);
    td_ngram_destroy(&r->ngram); /* the next run has texts of its own */
    for (uint32_t i = 0; i < TD_SEQUENCES_MAX; i++)
        td_prompt_destroy(&r->actives[i].prompt);
    td_prompts_close(&r->prompts);
    td_json_destroy(&r->job_config);
    td_show_destroy(&r->show);
    r->n_asks = 0;
    r->is_input_done = r->has_said_who_waits = r->is_draft_silent = false;
    r->n_missed = r->n_committed_at_loss = r->n_in_vain = 0;
    r->is_token_due = false;
    return is_ok;
}

bool td_run(const td_run_params *params, td_run_totals *totals, int *signal, td_err *err)
{
    *totals = (td_run_totals){0};
    session *r = td_alloc(1, sizeof *r, err);
    if (!r)
        return false;
    r->is_auto = td_head_is_auto(params->draft_path);
    td_setup_init(r, params);
    r->params = &r->opened;
    r->totals = totals;
    bool is_ok = td_signals_open(err) && open_files(r, err) && td_setup_load(r, err);
    if (is_ok)
        td_setup_show(r);
    is_ok = is_ok && go(r, err);
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
