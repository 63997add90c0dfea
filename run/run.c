/* The event loop. It performs the coordinator's actions and turns what the target, the draft, the
 * clock and signals say into events for it; all decisions are the coordinator's. */
#include "run/run.h"

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/sha256.h"
#include "base/signals.h"
#include "run/drafting.h"
#include "run/results.h"
#include "run/show.h"
#include "run/stats.h"
#include "target/target.h"

#include <stdio.h>
#include <string.h>

#define REJOIN_US 1000000u /* after a draft that could not be sent to */
#define JOIN_US   1000000u /* a run waits so long for its draft before it begins without */

/* A prompt that is being worked on. */
typedef struct {
    td_prompt *prompt; /* NULL: free */
    uint32_t sequence;
    uint32_t slot; /* of the target, known from TD_ACT_OPEN on */
    bool has_bad_logits;
} active;

typedef struct {
    const td_run_params *params;
    td_run_totals *totals;
    td_clock clock;
    td_model *model;
    td_target *target;
    td_drafting *drafting;
    td_coordinator *coordinator;
    td_prompts *prompts;
    td_results *results;
    td_show *show;
    active actives[TD_SEQUENCES_MAX];
    char model_sha[TD_SHA_HEX + 1], config_sha[TD_SHA_HEX + 1];
    bool is_input_done, is_draft_joined;
    uint64_t rejoin_us; /* when to offer an unsendable draft again; 0: not waiting */
    uint64_t shown_us;
} run;

static uint64_t now_us(const run *r) { return td_clock_now_us(&r->clock); }

static active *find_active(run *r, uint32_t sequence)
{
    for (uint32_t i = 0; i < TD_SEQUENCES_MAX; i++)
        if (r->actives[i].prompt && r->actives[i].sequence == sequence)
            return &r->actives[i];
    TD_ASSERT(!"actions name sequences that were added and not removed");
    return NULL;
}

/* -- names of model and configuration -------------------------------------------------------- */

/* What decides a text beside its input: the model, the cache's types, the context and the kinds of
 * devices its layers run on. Drafts are not part of it (law 1). */
static void hash_config(run *r)
{
    td_sha256 s;
    uint8_t digest[32];
    char text[512];
    uint64_t model_hash = td_gguf_hash(td_model_gguf(r->model));
    snprintf(r->model_sha, sizeof r->model_sha, "%016llx", (unsigned long long)model_hash);
    td_sha256_begin(&s);
    int n = snprintf(text, sizeof text, "%s %s %s %u %d\n", r->model_sha, r->params->type_k->name,
                     r->params->type_v->name, td_target_n_ctx(r->target), r->params->ignore_eos);
    td_sha256_add(&s, text, (size_t)n);
    /* Layers may be cut anywhere among devices of one kind without changing a bit. */
    char previous[320] = "";
    for (uint32_t i = 0; i < td_target_n_stages(r->target); i++) {
        td_stage_info info;
        td_target_stage_info(r->target, i, &info);
        bool is_host = !strncmp(info.spec, "host", 4);
        const char *kind = is_host ? "host" : info.name;
        if (strcmp(kind, previous)) {
            n = snprintf(text, sizeof text, "%u %s\n", info.first, kind);
            td_sha256_add(&s, text, (size_t)n);
        }
        snprintf(previous, sizeof previous, "%s", kind);
    }
    td_sha256_end(&s, digest);
    td_sha256_hex(digest, r->config_sha, TD_SHA_HEX);
}

/* -- results ----------------------------------------------------------------------------------- */

static bool write_error(run *r, const td_prompt *q, const char *message, td_err *err)
{
    r->totals->n_error++;
    td_show_error(r->show, q->id, message);
    return td_results_write(r->results,
                            &(td_result){.id = q->id,
                                         .error = message,
                                         .input_sha = q->input_sha,
                                         .config_sha = r->config_sha,
                                         .model_sha = r->model_sha},
                            err);
}

static void add_to_totals(run *r, const td_sequence_info *info)
{
    td_run_totals *t = r->totals;
    t->n_tokens += info->n_tokens;
    t->n_prompt_tokens += info->n_prompt;
    t->n_rounds += info->n_rounds;
    t->n_drafted += info->n_drafted;
    t->n_accepted += info->n_accepted;
    t->ttft_sum_us += info->first_token_us - info->added_us;
    for (uint32_t i = 0; i <= TD_DRAFT_MAX; i++) {
        t->drafted_at[i] += info->drafted_at[i];
        t->accepted_at[i] += info->accepted_at[i];
    }
}

static bool finish(run *r, uint32_t sequence, td_err *err)
{
    active *a = find_active(r, sequence);
    const td_sequence_info *info = td_coordinator_info(r->coordinator, a->sequence);
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
                         .model_sha = r->model_sha},
            err);
    }
    td_coordinator_remove(r->coordinator, a->sequence);
    td_prompt_destroy(&a->prompt);
    return is_ok;
}

/* -- prompts ----------------------------------------------------------------------------------- */

/* Tokenizes a prompt and gives it a slot. An unusable one becomes an error line. */
static bool add_prompt(run *r, td_prompt **prompt, td_err *err)
{
    td_prompt *q = *prompt;
    uint32_t *ids = NULL;
    size_t n_ids = 0;
    td_err bad = {0};
    uint32_t n_ctx = td_target_n_ctx(r->target), sequence = 0;
    bool is_ok = td_tokenize(td_model_tokenizer(r->model), q->text, q->n_text, true, false, &ids,
                             &n_ids, &bad);
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
    r->actives[i] = (active){.prompt = q, .sequence = sequence};
    td_show_begin(r->show, q->text);
    *prompt = NULL;
    return true;
}

/* What the results file says about a prompt: run it, skip it, or stop. */
static bool take_prompt(run *r, td_prompt **prompt, td_err *err)
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
static bool admit(run *r, td_err *err)
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

static void lose_draft(run *r)
{
    if (!r->is_draft_joined)
        return;
    r->is_draft_joined = false;
    r->totals->n_draft_losses++;
    td_coordinator_on_drafter(r->coordinator, false, now_us(r));
}

static void join_draft(run *r)
{
    r->is_draft_joined = true;
    r->rejoin_us = 0;
    r->totals->n_draft_joins++;
    td_coordinator_on_drafter(r->coordinator, true, now_us(r));
}

static void send_to_draft(run *r, const td_action *a)
{
    if (!r->is_draft_joined)
        return;
    if (a->kind == TD_ACT_DRAFT_PROPOSE && td_drafting_is_beyond(r->drafting, a->position)) {
        td_coordinator_on_draft(r->coordinator, a->sequence, a->epoch, a->position, NULL, 0,
                                now_us(r));
        return;
    }
    bool is_sent;
    if (a->kind == TD_ACT_DRAFT_OPEN) {
        const td_prompt *q = find_active(r, a->sequence)->prompt;
        is_sent = td_drafting_open(r->drafting, a->sequence, q->stream, &q->sampling);
    } else {
        is_sent = td_drafting_send(r->drafting, a);
    }
    if (!is_sent) {
        lose_draft(r);
        r->rejoin_us = now_us(r) + REJOIN_US;
    }
}

static void forward(run *r, const td_action *a)
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

static bool perform(run *r, const td_action *a, td_err *err)
{
    switch (a->kind) {
    case TD_ACT_OPEN: {
        active *opened = find_active(r, a->sequence);
        opened->slot = a->slot;
        td_target_open_sequence(r->target, a->slot, opened->prompt->stream,
                                &opened->prompt->sampling);
        return true;
    }
    case TD_ACT_FORWARD:
        forward(r, a);
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

static bool perform_all(run *r, td_err *err)
{
    td_action action;
    while (td_coordinator_next(r->coordinator, &action))
        if (!perform(r, &action, err))
            return false;
    return true;
}

/* -- events ------------------------------------------------------------------------------------ */

static bool take_verified(run *r, td_err *err)
{
    td_target_result result;
    while (td_target_poll(r->target, &result)) {
        if (result.err.code != TD_OK)
            return td_err_set(err, result.err.code, "target: %s", result.err.message);
        for (uint32_t i = 0; i < TD_SEQUENCES_MAX; i++)
            if (r->actives[i].prompt && result.bad_slots >> r->actives[i].slot & 1) {
                r->actives[i].has_bad_logits = true;
                td_coordinator_cancel(r->coordinator, r->actives[i].sequence, now_us(r));
            }
        td_coordinator_on_verified(r->coordinator, result.batch, result.chosen, now_us(r));
        if (!perform_all(r, err))
            return false;
    }
    return true;
}

static bool take_draft_events(run *r, td_err *err)
{
    if (!r->drafting)
        return true;
    if (r->rejoin_us && now_us(r) >= r->rejoin_us)
        join_draft(r);
    while (true) {
        td_drafting_event e;
        if (!td_drafting_step(r->drafting, &e, err))
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
            td_coordinator_on_draft(r->coordinator, e.sequence, e.epoch, e.position, e.ids, e.n,
                                    now_us(r));
            break;
        }
    }
}

/* Waits for whatever comes first: a batch, a message, a deadline, a signal. */
static bool wait_for_events(run *r, td_err *err)
{
    uint64_t now = now_us(r), next = now + 1000000; /* syncs of the results are due by then */
    uint64_t deadline = td_coordinator_deadline_us(r->coordinator);
    next = deadline < next ? deadline : next;
    if (r->drafting && td_drafting_next_us(r->drafting) < next)
        next = td_drafting_next_us(r->drafting);
    if (r->rejoin_us && r->rejoin_us < next)
        next = r->rejoin_us;
    td_link_poll_item items[3] = {{.fd = td_target_fd(r->target)}};
    size_t n = 1;
    if (!td_signals_pending()) /* its descriptor stays readable after the first */
        items[n++] = (td_link_poll_item){.fd = td_signals_fd()};
    if (r->drafting)
        items[n++] = (td_link_poll_item){.link = td_drafting_link(r->drafting)};
    return td_link_poll(items, n, next > now ? (int64_t)(next - now) : 0, err);
}

/* So that the first tokens are drafted too. A worker that is not there yet joins later. */
static bool wait_for_draft(run *r, td_err *err)
{
    for (uint64_t end = now_us(r) + JOIN_US;
         r->drafting && !r->is_draft_joined && now_us(r) < end;) {
        uint64_t now = now_us(r), next = td_drafting_next_us(r->drafting);
        next = next < end ? next : end;
        td_link_poll_item items[] = {{.link = td_drafting_link(r->drafting)}};
        if (!td_link_poll(items, 1, next > now ? (int64_t)(next - now) : 0, err) ||
            !take_draft_events(r, err))
            return false;
    }
    return true;
}

static bool loop(run *r, td_err *err)
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
    return td_token_bytes(user, id, false, n_bytes);
}

static bool token_is_end(void *user, uint32_t id) { return td_token_is_end(user, id); }

static bool start(run *r, const char *const *specs, uint32_t n_specs, td_err *err)
{
    const td_run_params *p = r->params;
    r->results = td_results_open(p, err); /* first: a second run on the file is refused at once */
    r->prompts = r->results ? td_prompts_open(p, err) : NULL;
    r->model = r->prompts ? td_model_open(p->target_path, err) : NULL;
    if (!r->model)
        return false;
    r->show = td_show_create(p, td_model_tokenizer(r->model), td_prompts_count(r->prompts), err);
    if (!r->show)
        return false;
    if (p->draft_path || p->draft_endpoint) {
        r->drafting = td_drafting_create(p, err);
        if (!r->drafting)
            return false;
    }
    r->target = td_target_create(
        &(td_chain_params){.model = r->model,
                           .specs = specs,
                           .n_specs = n_specs,
                           .type_k = p->type_k,
                           .type_v = p->type_v,
                           .n_slots = p->n_parallel,
                           .n_ctx = p->n_ctx,
                           .draft_bytes = r->drafting ? td_drafting_bytes(r->drafting) : 0,
                           .draft_spec = r->drafting ? td_drafting_device(r->drafting) : NULL},
        err);
    if (!r->target)
        return false;
    hash_config(r);
    uint32_t n_ctx = td_target_n_ctx(r->target);
    if (r->drafting && !td_drafting_connect(r->drafting, r->model, n_ctx, &r->clock, err))
        return false;
    const td_tokenizer *tokenizer = td_model_tokenizer(r->model);
    r->coordinator = td_coordinator_create(
        &(td_coordinator_params){.n_slots = p->n_parallel,
                                 .n_ctx = n_ctx,
                                 .draft_max = !r->drafting     ? 0
                                              : p->draft_fixed ? p->draft_fixed
                                                               : p->draft_max,
                                 .verify_rows_max = TD_VERIFY_ROWS_MAX,
                                 .prefill_rows = TD_PREFILL_ROWS_MAX,
                                 .draft_deadline_us = p->draft_deadline_us ? p->draft_deadline_us
                                                                           : TD_DRAFT_DEADLINE_US,
                                 .n_vocab = td_tokenizer_get_info(tokenizer)->n_vocab,
                                 .token_bytes = token_bytes,
                                 .token_is_end = token_is_end,
                                 .user = (void *)(uintptr_t)tokenizer},
        err);
    return r->coordinator;
}

/* The device that verifies least: a GPU without layers, else the host, which is idle when the
 * target is on GPUs and all there is when it is not. */
static const char *choose_draft_device(const char *const *specs, uint32_t n_specs)
{
    static const char *gpus[TD_STAGES_MAX]; /* borrowed from static storage */
    uint32_t n_gpus = td_chain_default_specs(gpus);
    bool is_host_used = false;
    for (uint32_t i = 0; i < n_specs; i++)
        is_host_used |= !strncmp(specs[i], "host", 4);
    for (uint32_t k = 0; k < n_gpus; k++) {
        bool is_used = !strcmp(gpus[k], "host");
        for (uint32_t i = 0; i < n_specs; i++) {
            /* A device given by name may be any of them. */
            bool is_named =
                !strncmp(specs[i], "vulkan:", 7) && (specs[i][7] < '0' || specs[i][7] > '9');
            is_used |= is_named || !strncmp(specs[i], gpus[k], strlen(gpus[k]));
        }
        if (!is_used)
            return gpus[k];
    }
    return is_host_used ? "host:1" : "host";
}

bool td_run(const td_run_params *params, td_run_totals *totals, int *signal, td_err *err)
{
    run r = {.params = params, .totals = totals, .clock = td_clock_real()};
    *totals = (td_run_totals){0};
    const char *defaults[TD_STAGES_MAX];
    const char *const *specs = params->specs;
    uint32_t n_specs = params->n_specs;
    td_run_params filled = *params;
    if (!n_specs) {
        n_specs = td_chain_default_specs(defaults);
        specs = defaults;
    }
    if (params->draft_path && !params->draft_spec) {
        filled.draft_spec = choose_draft_device(specs, n_specs);
        r.params = &filled;
    }
    if (!td_signals_open(err))
        return false;
    bool is_ok = start(&r, specs, n_specs, err);
    if (is_ok) {
        is_ok = wait_for_draft(&r, err);
        totals->start_us = now_us(&r);
        is_ok = is_ok && loop(&r, err);
        totals->end_us = now_us(&r);
        td_show_end(r.show);
    }
    if (is_ok && params->stats_path)
        is_ok = td_stats_write(
            &(td_stats){.params = r.params,
                        .totals = totals,
                        .coordinator = td_coordinator_get_stats(r.coordinator),
                        .target = r.target,
                        .model = r.model,
                        .draft_device = r.drafting ? td_drafting_device(r.drafting) : NULL,
                        .draft = r.drafting ? td_drafting_stats(r.drafting) : NULL,
                        .config_sha = r.config_sha},
            params->stats_path, err);
    *signal = td_signals_pending();
    /* Results first: whatever happens on the way down, what was finished is on disk. */
    is_ok = td_results_close(&r.results, is_ok ? err : NULL) && is_ok;
    td_drafting_destroy(&r.drafting);
    td_target_destroy(&r.target);
    td_coordinator_destroy(&r.coordinator);
    for (uint32_t i = 0; i < TD_SEQUENCES_MAX; i++)
        td_prompt_destroy(&r.actives[i].prompt);
    td_prompts_close(&r.prompts);
    td_show_destroy(&r.show);
    td_model_close(&r.model);
    return is_ok;
}
