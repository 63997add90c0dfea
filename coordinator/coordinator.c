/* The coordinator's door: creation, sequences in and out, and events. What is to be done about them
 * is decided in next_action.c and batch.c. */
#include "coordinator/coordinator.h"

#include "base/check.h"
#include "coordinator/batch.h"

#include <math.h>
#include <string.h>

const char *td_reason_name(td_reason reason)
{
    static const char *const names[] = {"none", "eos", "stop", "length", "context", "cancelled"};
    TD_ASSERT((size_t)reason < TD_COUNT(names));
    return names[reason];
}

static bool check_range(const char *name, uint32_t value, uint32_t min, uint32_t max, td_err *err)
{
    if (value >= min && value <= max)
        return true;
    return td_err_set(err, TD_E_USAGE, "%s is %u; allowed: %u..%u", name, value, min, max);
}

/* One whole sequence must fit, or nothing ever runs. */
static bool check_memory(const td_coordinator_params *p, td_err *err)
{
    return check_range("positions of a page", p->page_positions, 1, TD_CONTEXT_MAX, err) &&
           check_range("pages", p->n_pages, td_div_up(p->n_ctx, p->page_positions), UINT32_MAX,
                       err);
}

static bool check_params(const td_coordinator_params *p, td_err *err)
{
    return check_range("parallel sequences", p->n_slots, 1, TD_SEQUENCES_MAX, err) &&
           check_range("context", p->n_ctx, 2, TD_CONTEXT_MAX, err) &&
           check_range("draft length", p->draft_max, 0, TD_DRAFT_MAX, err) &&
           check_range("verify rows", p->verify_rows_max, 1, TD_VERIFY_ROWS_MAX, err) &&
           check_range("prefill rows", p->prefill_rows, 1, TD_BATCH_ROWS_MAX, err) &&
           check_range("batches in flight", p->n_batches_max, 1, TD_BATCHES_MAX, err) &&
           check_range("stages", p->n_stages, 0, p->n_batches_max, err) &&
           check_range("vocabulary", p->n_vocab, 1, TD_VOCAB_MAX, err) &&
           (!p->n_pages || check_memory(p, err));
}

static bool measure_tokens(td_coordinator *c, td_err *err)
{
    for (uint32_t id = 0; id < c->params.n_vocab; ++id) {
        size_t n_bytes = 0;
        c->params.token_bytes(c->params.user, id, &n_bytes);
        if (n_bytes > TD_TOKEN_BYTES_MAX)
            return td_err_set(err, TD_E_DATA, "token %u has %zu bytes; allowed: 0..%u", id, n_bytes,
                              TD_TOKEN_BYTES_MAX);
        c->token_bytes_max = td_max_u32(c->token_bytes_max, (uint32_t)n_bytes);
    }
    return true;
}

td_coordinator *td_coordinator_create(const td_coordinator_params *params, td_err *err)
{
    TD_ASSERT(params->token_bytes && params->token_is_end);
    if (!check_params(params, err))
        return NULL;
    td_coordinator *c = td_alloc(1, sizeof(*c), err);
    if (!c)
        return NULL;
    c->params = *params;
    c->owed_until_us = UINT64_MAX;
    c->params.page_positions = td_max_u32(params->page_positions, 1);
    c->params.can_share &= params->prefill_rows % c->params.page_positions == 0;
    if (!c->params.n_stages)
        c->params.n_stages = params->n_batches_max;
    td_times_init(&c->times, params->verify_us, params->draft_us);
    td_pipeline_init(&c->pipeline, c->params.n_stages, params->n_batches_max);
    td_acceptance_init(&c->prior, NULL);
    td_trial_init(&c->trial, (double)params->draft_share, params->is_one_unit);
    if (!measure_tokens(c, err))
        td_coordinator_destroy(&c);
    return c;
}

void td_coordinator_destroy(td_coordinator **coordinator)
{
    td_coordinator *c = *coordinator;
    if (!c)
        return;
    for (uint32_t i = 0; i < TD_SEQUENCES_MAX; ++i) {
        td_sequence_end(&c->sequences[i]);
        td_sequence_forget(&c->sequences[i]);
    }
    td_free(c);
    *coordinator = NULL;
}

static sequence *find_sequence(const td_coordinator *c, uint32_t id)
{
    for (uint32_t i = 0; i < c->params.n_slots; ++i)
        if (c->sequences[i].phase != PHASE_FREE && c->sequences[i].id == id)
            return (sequence *)&c->sequences[i];
    return NULL;
}

/* Time passes only by events. A drafter that let a deadline pass is not asked again until it has
 * answered, and the round goes with what is there. */
static void advance_clock(td_coordinator *c, uint64_t now_us)
{
    if (now_us > c->now_us)
        c->now_us = now_us;
    td_round_mind_owed(c);
    for (uint32_t i = 0; i < c->params.n_slots; ++i) {
        sequence *s = &c->sequences[i];
        if (s->deadline_us > c->now_us || !td_round_is_awaiting(c, s))
            continue;
        bool is_late = c->now_us - s->begin_us >= c->params.draft_deadline_us;
        bool is_of_head = td_round_is_awaiting_head(c, s); /* which is late if the target is */
        s->is_mute |= !is_of_head && (is_late || c->params.is_one_unit);
        s->is_hasty = true;
        c->stats.n_deadlines += is_late && !is_of_head;
    }
}

uint32_t td_coordinator_n_free(const td_coordinator *c)
{
    uint32_t n_free = 0;
    for (uint32_t i = 0; i < c->params.n_slots; ++i)
        n_free += c->sequences[i].phase == PHASE_FREE;
    return n_free;
}

/* A slot whose cache holds nothing, else the one that has been free the longest. */
static sequence *choose_slot(td_coordinator *c)
{
    sequence *best = NULL;
    for (uint32_t i = 0; i < c->params.n_slots; ++i) {
        sequence *s = &c->sequences[i];
        if (s->phase != PHASE_FREE)
            continue;
        bool is_better = !best || s->slot.is_held < best->slot.is_held ||
                         (s->slot.is_held == best->slot.is_held && s->slot.is_held &&
                          s->slot.last_use < best->slot.last_use);
        if (is_better)
            best = s;
    }
    return best;
}

bool td_coordinator_add(td_coordinator *c, const td_sequence_params *params, uint64_t now_us,
                        uint32_t *id, td_err *err)
{
    advance_clock(c, now_us);
    if (td_coordinator_is_idle(c))
        c->last_end_us = c->now_us;
    sequence *s = choose_slot(c);
    if (!s)
        return td_err_set(err, TD_E_AGAIN, "all %u sequence slots are taken", c->params.n_slots);
    while (find_sequence(c, c->next_sequence)) /* only after 2^32 sequences */
        ++c->next_sequence;
    if (!td_sequence_begin(s, c, params, err))
        return false;
    for (uint32_t i = 0; i < c->params.n_slots; ++i) {
        sequence *o = &c->sequences[i];
        if (o == s || !sequence_is_active(o))
            continue;
        o->has_company = s->has_company = true;
    }
    s->id = c->next_sequence++;
    s->order = ++c->last_order;
    td_round_new_epoch(c, s);
    td_acceptance_init(&s->acceptance, &c->prior);
    td_length_init(&s->length);
    s->info.added_us = c->now_us;
    *id = s->id;
    return true;
}

static void finish(td_coordinator *c, sequence *s, td_reason reason)
{
    if (s->phase == PHASE_DECODE)
        td_round_roll_back(s);
    s->phase = PHASE_ENDING;
    s->info.reason = reason;
    s->info.finished_us = c->now_us;
    td_acceptance_merge(&c->prior, &s->acceptance);
    td_batch_drop(c, s);
    if (s->is_begun)
        s->slot.last_use = ++c->last_order;
    if (!s->is_begun || (c->params.can_share && s->n_full > 0))
        return; /* the slot's cache stays as it is */
    s->slot.owes_close = true;
    s->owes_truncate = s->owes_commit = s->slot.is_held = false;
}

void td_coordinator_cancel(td_coordinator *c, uint32_t id, uint64_t now_us)
{
    advance_clock(c, now_us);
    sequence *s = find_sequence(c, id);
    if (s && sequence_is_active(s))
        finish(c, s, TD_REASON_CANCELLED);
}

const td_sequence_info *td_coordinator_get_info(const td_coordinator *c, uint32_t id)
{
    const sequence *s = find_sequence(c, id);
    return s ? &s->info : NULL;
}

void td_coordinator_remove(td_coordinator *c, uint32_t id)
{
    sequence *s = find_sequence(c, id);
    TD_ASSERT(s && s->phase == PHASE_DONE);
    td_sequence_end(s);
}

void td_coordinator_on_drafter(td_coordinator *c, bool is_joined, uint64_t now_us)
{
    advance_clock(c, now_us);
    c->has_drafter = is_joined;
    c->owed_until_us = UINT64_MAX;
    for (uint32_t i = 0; i < c->params.n_slots; ++i) {
        sequence *s = &c->sequences[i];
        s->is_draft_open = s->is_mute = s->is_reading = s->is_exhausted = false;
        s->n_asks = 0;
        if (!sequence_is_active(s))
            continue;
        /* Guesses that have arrived stay good: token ids, whoever they came from. */
        td_round_new_epoch(c, s);
        if (s->phase == PHASE_DECODE && !sequence_is_in_flight(s))
            td_round_begin(c, s);
    }
}

/* Numbers are handed out in ascending order; those before the next one have been in use. */
static bool was_issued(uint32_t number, uint32_t next) { return next - number - 1 < 1u << 31; }

void td_coordinator_on_draft(td_coordinator *c, uint32_t id, uint32_t epoch, uint32_t position,
                             const uint32_t *ids, uint32_t n_ids, uint64_t busy_us, uint64_t now_us)
{
    sequence *s = find_sequence(c, id);
    if (s && sequence_is_active(s))
        td_round_take_draft(c, s, epoch, position, ids, n_ids, busy_us, now_us);
    else
        ++*(was_issued(id, c->next_sequence) ? &c->stats.n_stale_drafts : &c->stats.n_bad_drafts);
    c->owed_until_us = UINT64_MAX; /* it has said something */
    advance_clock(c, now_us);
    td_round_note_owed(c);
}

void td_coordinator_on_head(td_coordinator *c, uint32_t id, uint32_t epoch, uint32_t position,
                            const uint32_t *ids, uint32_t n_ids, uint64_t busy_us, uint64_t now_us)
{
    sequence *s = find_sequence(c, id);
    if (s && sequence_is_active(s))
        td_round_take_head(c, s, epoch, position, ids, n_ids, busy_us, now_us);
    else
        ++*(was_issued(id, c->next_sequence) ? &c->stats.n_stale_drafts : &c->stats.n_bad_drafts);
    advance_clock(c, now_us);
}

/* A chunk takes longer while the drafter is at work beside it: that is known of the widest ones. */
static void take_prompt_time(td_coordinator *c, uint32_t n_rows, double us, bool is_quiet)
{
    double row_us = us / n_rows;
    td_trial_pass(&c->trial, us);
    if (is_quiet && n_rows > c->n_prompt_rows) {
        c->n_prompt_rows = n_rows;
        c->prompt_row_us = row_us;
    } else if (is_quiet && n_rows == c->n_prompt_rows) {
        c->prompt_row_us += (fmin(row_us, 2 * c->prompt_row_us) - c->prompt_row_us) / 8;
    } else if (!is_quiet && n_rows == c->n_prompt_rows && row_us > c->prompt_row_us) {
        td_trial_lose(&c->trial, (fmin(row_us, 3 * c->prompt_row_us) - c->prompt_row_us) * n_rows);
    }
}

/* The time since the last answer is this one's. That of a batch of which nothing was wanted is the
 * next one's. */
static void take_time(td_coordinator *c, const batch *b, const td_outcome *outcomes,
                      bool is_restored)
{
    td_trial_round round = {
        .us = (double)(c->now_us - c->last_end_us),
        .is_quiet = td_round_is_quiet(c),
    };
    for (uint32_t i = 0; i < b->n_parts && !b->is_prefill; ++i) {
        sequence *s = &c->sequences[b->parts[i].slot];
        round.n_tokens += outcomes[i].n_tokens;
        round.has_drafts |= b->parts[i].n_rows > 1 && !s->n_match;
    }
    for (uint32_t i = 0; i < c->params.n_slots; ++i) {
        const sequence *s = &c->sequences[i];
        if (s->phase != PHASE_DECODE)
            continue;
        round.read_us += td_round_read_us(c, s);
        ++round.n_sequences;
    }
    round.n_sequences = td_div_up(round.n_sequences, c->pipeline.n_groups);
    if (b->sent_us > c->last_end_us)
        round.wait_us = (double)(b->sent_us - c->last_end_us);
    if (is_restored || (!b->is_prefill && !b->has_output)) {
        td_trial_pass(&c->trial, round.us);
    } else if (b->is_prefill) {
        take_prompt_time(c, b->n_rows, round.us, round.is_quiet);
    } else if (round.n_tokens > 0) {
        td_trial_add_round(&c->trial, &round);
    } else {
        return;
    }
    c->last_end_us = c->now_us;
}

static void note_choices(td_coordinator *c)
{
    c->stats.n_groups = c->pipeline.n_groups;
    c->stats.link_us = td_pipeline_link_us(&c->pipeline, false);
    c->stats.n_trials = c->trial.n_trials;
    c->stats.n_silent = c->trial.n_silent;
    c->stats.saved_us = (int64_t)c->trial.sum_saved_us;
}

static void end_batch(td_coordinator *c, batch *b, const uint32_t *chosen,
                      const td_batch_times *times)
{
    td_outcome outcomes[TD_VERIFY_ROWS_MAX];
    td_batch_end(c, b, chosen, times, outcomes);
    take_time(c, b, outcomes, times && times->is_restored);
    note_choices(c);
    for (uint32_t i = 0; i < b->n_parts; ++i) {
        sequence *s = &c->sequences[b->parts[i].slot];
        c->is_recovering &= outcomes[i].n_tokens == 0;
        if (outcomes[i].is_rolled_back)
            td_batch_drop(c, s);
        if (outcomes[i].reason != TD_REASON_NONE)
            finish(c, s, outcomes[i].reason);
        else if (outcomes[i].n_tokens > 0 && !sequence_is_in_flight(s))
            td_round_begin(c, s);
    }
}

void td_coordinator_on_verified(td_coordinator *c, uint64_t id, const uint32_t *chosen,
                                const td_batch_times *times, uint64_t now_us)
{
    advance_clock(c, now_us);
    for (uint32_t i = 0; i < c->params.n_batches_max; ++i) {
        batch *b = &c->batches[i];
        if (b->is_in_flight && b->id == id) {
            end_batch(c, b, chosen, times);
            return;
        }
    }
    ++c->stats.n_stale_batches;
}

/* What the target held of a slot is gone. A sequence goes through its prompt again, and as far as
 * it had come. */
static void start_over(td_coordinator *c, sequence *s)
{
    bool is_begun = s->is_begun && (s->phase == PHASE_PREFILL || s->phase == PHASE_DECODE);
    td_sequence_forget(s);
    s->slot.is_held = s->slot.owes_close = s->owes_truncate = s->owes_commit = false;
    ++s->slot.chain;
    if (!is_begun)
        return;
    c->stats.n_replayed += td_min_u32(s->n_sent, sequence_prefill_end(s));
    s->phase = PHASE_PREFILL;
    s->is_begun = false;
    s->n_sent = s->n_full = 0;
    s->head_ask.k = 0; /* its answer is lost too */
    td_round_drop_guesses(c, s);
}

void td_coordinator_on_target_lost(td_coordinator *c, uint64_t now_us)
{
    advance_clock(c, now_us);
    ++c->stats.n_target_losses;
    c->is_recovering = true;
    c->last_end_us = c->now_us;
    td_pipeline_init(&c->pipeline, c->params.n_stages, c->params.n_batches_max);
    c->n_in_flight = 0;
    memset(c->batches, 0, sizeof c->batches);
    for (uint32_t i = 0; i < c->params.n_slots; ++i)
        start_over(c, &c->sequences[i]);
}

void td_coordinator_set_pages(td_coordinator *c, uint32_t n_pages)
{
    TD_ASSERT(!n_pages || n_pages >= td_div_up(c->params.n_ctx, c->params.page_positions));
    TD_ASSERT(c->n_in_flight == 0);
    c->params.n_pages = n_pages;
    for (uint32_t i = 0; i < c->params.n_slots; ++i) { /* nobody has been promised any of them */
        sequence *s = &c->sequences[i];
        TD_ASSERT(!s->slot.is_held);
        if (s->phase == PHASE_PREFILL && !s->is_begun)
            s->phase = PHASE_QUEUED;
    }
}

void td_coordinator_on_tick(td_coordinator *c, uint64_t now_us) { advance_clock(c, now_us); }

uint64_t td_coordinator_deadline_us(const td_coordinator *c)
{
    uint64_t first_us = c->owed_until_us;
    for (uint32_t i = 0; i < c->params.n_slots; ++i) {
        const sequence *s = &c->sequences[i];
        if (s->deadline_us < first_us && td_round_is_awaiting(c, s))
            first_us = s->deadline_us;
    }
    return first_us;
}

bool td_coordinator_is_idle(const td_coordinator *c)
{
    for (uint32_t i = 0; i < c->params.n_slots; ++i)
        if (c->sequences[i].phase != PHASE_FREE && c->sequences[i].phase != PHASE_DONE)
            return false;
    return true;
}

uint32_t td_coordinator_n_in_flight(const td_coordinator *c) { return c->n_in_flight; }

void td_coordinator_read_times(const td_coordinator *c, float *verify_us, float *draft_us)
{
    for (uint32_t i = 0; i <= TD_VERIFY_ROWS_MAX; ++i)
        verify_us[i] = c->times.verify[i].n ? c->times.verify[i].us : 0;
    *draft_us = c->times.draft.n ? c->times.draft.us : 0;
}

const td_coordinator_stats *td_coordinator_get_stats(const td_coordinator *c) { return &c->stats; }
