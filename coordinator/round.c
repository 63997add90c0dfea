/* Rounds: what is guessed for a sequence, and what the target's answers mean for it.
 *
 * Guesses are a tail behind the committed tokens; some of them may be in flight. A round begins
 * when an answer has come: how many guesses it shall have (k) is chosen then, and if the drafter
 * went on in the meantime and guessed the last answer too, they are there at once. Else they are
 * asked for, in at most two proposals: those of this round, and those that come after, of which the
 * first is the guess of this round's last answer.
 *
 * Where the target has a head beside the drafter, the first guesses may be the head's (n_head):
 * those of a round that had nothing at hand. The drafter is told of one, and goes on behind it. */
#include "coordinator/round.h"

#include "base/check.h"

#include <math.h>
#include <string.h>

#define ASKS_NEAR 4u   /* unanswered proposals of a sequence where the drafter is near */
#define FAR_FIRST 0.55 /* of a verification of one row, that an answer takes beside its steps */
#define FAR_LEAST 0.45 /* where it was far before */

void td_round_new_epoch(td_coordinator *c, sequence *s)
{
    if (++c->last_epoch == 0) /* 0 is never an epoch */
        ++c->last_epoch;
    s->epoch = c->last_epoch;
    s->asked_end = s->n_said = s->told_end = 0;
    s->is_astray = false;
}

td_source td_round_source(const sequence *s)
{
    return s->n_match  ? td_source_of_match(s->n_match)
           : s->n_head ? TD_SOURCE_HEAD
                       : TD_SOURCE_MODEL;
}

double td_round_read_us(const td_coordinator *c, const sequence *s)
{
    if (c->params.reads_along)
        return 0;
    uint32_t n_unread = sequence_length(s) - (s->is_draft_open ? s->n_fed : 0);
    double row_us = c->read_row_us > 0 ? c->read_row_us : c->prompt_row_us * c->trial.draft_share;
    return row_us * n_unread;
}

bool td_round_is_any_asked(const td_coordinator *c)
{
    for (uint32_t i = 0; i < c->params.n_slots; ++i)
        if (c->sequences[i].n_asks > 0)
            return true;
    return false;
}

bool td_round_may_draft(const td_coordinator *c, const sequence *s)
{
    if (!c->has_drafter || c->params.draft_max == 0 || s->is_mute || s->is_reading)
        return false;
    if (c->params.is_draft_fixed)
        return true;
    return td_trial_is_drafting(&c->trial) &&
           td_trial_affords(&c->trial, td_round_read_us(c, s),
                            s->n_generate_max - s->info.n_tokens);
}

bool td_round_is_quiet(const td_coordinator *c)
{
    bool is_asked = td_round_is_any_asked(c);
    for (uint32_t i = 0; i < c->params.n_slots; ++i)
        is_asked |= c->sequences[i].head_ask.k > 0;
    return !is_asked;
}

static bool may_ask_head(const td_coordinator *c, const sequence *s)
{
    return c->params.has_head && c->params.draft_max > 0 && !s->is_headless &&
           (c->params.is_draft_fixed || td_trial_is_drafting(&c->trial));
}

/* Guesses of a round at most: it commits one token more. */
static uint32_t k_limit(const td_coordinator *c, const sequence *s)
{
    return td_min_u32(c->params.draft_max, s->n_generate_max - s->info.n_tokens - 1);
}

static uint32_t n_asked(const sequence *s)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_asks; ++i)
        n += s->asks[i].epoch == s->epoch;
    return n;
}

void td_round_drop_guesses(td_coordinator *c, sequence *s)
{
    s->n_guesses = s->n_match = s->n_head = 0;
    td_round_new_epoch(c, s);
}

/* What the other decoding sequences put into the same batch. */
static td_others count_others(const td_coordinator *c, const sequence *s)
{
    td_others others = {0};
    double draft_us = td_times_draft_us(&c->times), head_us = td_times_head_us(&c->times);
    for (uint32_t i = 0; i < c->params.n_slots; ++i) {
        const sequence *o = &c->sequences[i];
        if (o == s || o->phase != PHASE_DECODE)
            continue;
        double k = td_min_u32(o->k, k_limit(c, o));
        others.n_sequences += 1;
        others.n_rows += 1 + k;
        others.n_tokens +=
            o->info.n_rounds > 1 ? (double)o->info.n_tokens / (double)o->info.n_rounds : 1;
        others.draft_us += o->n_match ? 0 : k * (o->head_k ? head_us : draft_us);
    }
    /* Of groups in flight at the same time only one is in the batch. */
    others.n_sequences /= c->pipeline.n_groups;
    others.n_rows /= c->pipeline.n_groups;
    others.n_tokens /= c->pipeline.n_groups;
    return others;
}

/* Looks for the last tokens in what was said before. */
static bool look_up(td_coordinator *c, sequence *s, uint32_t limit, uint32_t k_model,
                    const td_others *others)
{
    uint32_t ids[TD_DRAFT_MAX], n_match = 0;
    uint32_t slot = (uint32_t)(s - c->sequences);
    uint32_t n =
        c->params.lookup(c->params.user, slot, s->tokens, sequence_length(s), ids, limit, &n_match);
    if (n == 0 || n_match == 0)
        return false;
    TD_ASSERT(n <= limit);
    uint32_t k = c->params.is_draft_fixed
                     ? n
                     : td_length_of_match(&s->length, &s->acceptance, &c->times, n_match, n,
                                          k_model, others, c->params.is_ahead);
    if (k == 0)
        return false;
    td_round_drop_guesses(c, s); /* what the drafter was asked for has no place any more */
    memcpy(s->guesses, ids, k * sizeof *ids);
    s->n_guesses = s->k = td_min_u32(k, n);
    s->head_k = 0;
    s->n_match = n_match;
    return true;
}

/* To wait for less than an answer takes would be time lost. */
static uint64_t wait_at_most_us(const td_coordinator *c, const sequence *s)
{
    uint64_t patience_us = td_trial_patience_us(&c->trial);
    const td_times *t = &c->times;
    double draft_us = s->head_k ? td_times_head_us(t) : td_times_draft_us(t);
    double answer_us =
        (s->head_k ? td_times_head_wait_us(t) : td_times_wait_us(t)) + s->k * draft_us;
    bool is_known = draft_us > 0 || c->params.is_one_unit || s->head_k;
    if (c->params.is_draft_fixed || patience_us > c->params.draft_deadline_us)
        return c->params.draft_deadline_us;
    return is_known && answer_us <= (double)patience_us ? patience_us : 0;
}

/* -- a drafter that is far ----------------------------------------------------------------- */

/* The drafter is on another machine, one sequence all alone, one stage, and an answer takes long
 * beside a verification. Near ones may seem so where a target is faster than a thread wakes up. */
static bool is_far(const td_coordinator *c, const sequence *s)
{
    double share = s->is_far ? FAR_LEAST : FAR_FIRST;
    if (!c->params.is_draft_elsewhere || !c->params.is_ahead || c->params.is_one_unit ||
        c->params.lookup || c->params.has_head || c->params.n_stages > 1 || s->has_company)
        return false;
    double verify_us = td_times_verify_us(&c->times, 1), trip_us = td_times_trip_us(&c->times);
    return verify_us > 0 && td_times_draft_us(&c->times) > 0 && trip_us >= share * verify_us;
}

static void choose_far(td_coordinator *c, sequence *s)
{
    bool was_far = s->is_far;
    s->is_far = is_far(c, s);
    if (was_far && !s->is_far) /* what was asked for is answered otherwise */
        td_round_new_epoch(c, s);
}

/* Guesses that nobody has to wait for cost but their rows. */
static uint32_t choose_far_length(td_coordinator *c, sequence *s, uint32_t limit)
{
    td_times times = c->times;
    times.draft.us = times.wait.us = 0;
    return td_length_of_draft(&s->length, &s->acceptance, &times, limit, NULL, true);
}

/* What is asked for in time for the rounds that begin until an answer can be there. */
static bool next_far_ask(const td_coordinator *c, const sequence *s, ask *out)
{
    uint32_t length = sequence_length(s), from = sequence_end(s);
    if (s->n_guesses > 0 && s->n_said < from) /* not of this epoch's drafter */
        return false;
    for (uint32_t i = 0; i < s->n_asks; ++i)
        from += s->asks[i].epoch == s->epoch ? s->asks[i].k : 0;
    double n_rounds =
        1.5 + td_times_trip_us(&c->times) / td_times_verify_us(&c->times, 1 + (double)s->k);
    uint32_t n = (uint32_t)ceil(fmin((s->k + 1) * n_rounds, TD_AHEAD_MAX));
    uint32_t end = td_min_u32(length + n, s->info.n_prompt + s->n_generate_max - 1);
    if (from >= end)
        return false;
    /* As small as they may be for the drafter to have one at hand whenever it is done. */
    double n_under_way = 2 + td_times_trip_us(&c->times) / td_times_draft_us(&c->times);
    uint32_t k = td_min_u32((uint32_t)ceil(fmin(n_under_way, n) / TD_ASKS_MAX), end - from);
    *out = (ask){.epoch = s->epoch, .position = from, .k = k, .goes_on = true};
    return true;
}

/* Adds what follows what is known. The drafter was astray when it said what stands behind a token
 * that it had not been told yet, and what does not begin where it may have learnt of it. */
static void take_far_draft(td_coordinator *c, sequence *s, uint32_t position, const uint32_t *ids,
                           uint32_t n_ids)
{
    uint32_t length = sequence_length(s);
    bool is_lost = position > sequence_end(s) || (s->is_astray && position > s->stray_at);
    for (uint32_t i = 0; i < n_ids && !is_lost; ++i) {
        uint32_t p = position + i;
        if (p < length && s->tokens[p] != ids[i]) {
            s->is_astray = is_lost = true;
            s->stray_at = p;
        } else if (p < length) {
            s->is_astray &= p != s->stray_at;
        } else if (p == sequence_end(s) && s->n_guesses < TD_AHEAD_MAX) {
            s->guesses[s->n_guesses++] = ids[i];
        }
    }
    if (is_lost && n_asked(s) == 0)
        td_round_new_epoch(c, s);
}

/* Does it owe something that was asked for without waiting? Reading a prompt may take long. */
static bool owes_words(const sequence *s)
{
    return sequence_is_active(s) && s->n_asks > 0 && s->asks[s->n_asks - 1].goes_on &&
           !s->is_mute && !s->is_reading;
}

void td_round_note_owed(td_coordinator *c)
{
    c->owed_until_us = UINT64_MAX;
    for (uint32_t i = 0; i < c->params.n_slots; ++i)
        if (owes_words(&c->sequences[i]) &&
            !td_add_u64(c->now_us, c->params.draft_deadline_us, &c->owed_until_us))
            c->owed_until_us = UINT64_MAX;
}

void td_round_mind_owed(td_coordinator *c)
{
    if (c->owed_until_us > c->now_us)
        return;
    c->owed_until_us = UINT64_MAX;
    ++c->stats.n_deadlines;
    for (uint32_t i = 0; i < c->params.n_slots; ++i)
        c->sequences[i].is_mute |= owes_words(&c->sequences[i]);
}

/* -- rounds -------------------------------------------------------------------------------- */

/* What is to be drafted where nothing is at hand, and by whom. */
static td_length_plan choose_plan(td_coordinator *c, sequence *s, uint32_t limit,
                                  const td_others *others, bool is_model)
{
    bool is_head = may_ask_head(c, s), is_ahead = c->params.is_ahead;
    td_length_plan plan = {.k = is_model ? limit : 0};
    s->length.goodput = 0;
    if (c->params.is_draft_fixed && is_head)
        plan.n_head = !is_model ? limit : is_ahead ? 1 : 0;
    else if (c->params.is_draft_fixed || s->n_match)
        return plan;
    else if (is_head)
        plan = td_length_of_sources(&s->length, &s->acceptance, &c->times, limit, others, is_ahead,
                                    is_model);
    else if (is_model && s->is_far)
        plan.k = choose_far_length(c, s, limit);
    else if (is_model)
        plan.k = td_length_of_draft(&s->length, &s->acceptance, &c->times, limit, others, is_ahead);
    s->is_probe = (is_model && s->length.model.was_probe) || (is_head && s->length.head.was_probe);
    if ((is_model || is_head) && plan.k == 0 && plan.n_head == 0 && td_trial_insists(&c->trial)) {
        plan.n_head = is_head;
        plan.k = !is_head;
        s->is_probe = true;
    }
    return plan;
}

/* A round that has nothing at hand, and nothing on its way, is begun by the head if that is the
 * plan; the model's answers that it waits for else have until the deadline. */
static void begin_draft(td_coordinator *c, sequence *s)
{
    bool is_free = s->n_guesses == 0 && (n_asked(s) == 0 || s->plan.k == 0);
    s->head_k = is_free ? td_min_u32(s->plan.n_head, k_limit(c, s)) : 0;
    s->k = s->head_k ? s->head_k : s->k;
    if (s->head_k && n_asked(s) > 0) /* the model is not wanted any more */
        td_round_new_epoch(c, s);
    uint64_t deadline_us;
    bool is_finite = td_add_u64(c->now_us, wait_at_most_us(c, s), &deadline_us);
    s->deadline_us = is_finite ? deadline_us : UINT64_MAX;
}

void td_round_begin(td_coordinator *c, sequence *s)
{
    uint32_t limit = k_limit(c, s);
    s->begin_us = c->now_us;
    choose_far(c, s);
    s->plan = (td_length_plan){0};
    s->head_k = 0;
    s->is_probe = false;
    s->is_exhausted = s->is_hasty = false;
    s->k = limit;
    s->n_match = s->n_guesses ? s->n_match : 0;
    if (limit == 0)
        return;
    td_others others = count_others(c, s);
    bool is_model = td_round_may_draft(c, s);
    s->plan = choose_plan(c, s, limit, &others, is_model);
    /* What the head or a model that is gone has left is at hand, whatever was chosen. */
    bool is_left = !is_model || (s->plan.k == 0 && s->plan.n_head > 0);
    s->k = is_left ? s->n_guesses : s->plan.k;
    begin_draft(c, s);
    if (s->n_guesses) {
        s->k = td_min_u32(s->n_match ? s->n_guesses : s->k, limit);
        c->stats.n_ahead += s->n_match == 0;
        return;
    }
    if (c->params.lookup)
        look_up(c, s, limit, is_model ? s->plan.k : 0, &others);
}

/* The head is to begin this round and has not. */
static bool is_heads_turn(const td_coordinator *c, const sequence *s)
{
    return s->phase == PHASE_DECODE && !sequence_is_in_flight(s) && s->head_k > 0 &&
           s->n_guesses == 0 && !s->is_hasty && may_ask_head(c, s);
}

bool td_round_is_head_due(const td_coordinator *c, const sequence *s)
{
    return is_heads_turn(c, s) && s->head_ask.k == 0;
}

bool td_round_is_awaiting_head(const td_coordinator *c, const sequence *s)
{
    return is_heads_turn(c, s) && s->head_ask.k > 0;
}

bool td_round_is_awaiting(const td_coordinator *c, const sequence *s)
{
    if (s->head_k > 0 && s->n_guesses == 0)
        return td_round_is_awaiting_head(c, s);
    return s->phase == PHASE_DECODE && !s->is_far && !sequence_is_in_flight(s) &&
           s->n_guesses < s->k && !s->n_match && td_round_may_draft(c, s) && !s->is_exhausted &&
           !s->is_hasty && (n_asked(s) > 0 || s->n_asks >= ASKS_NEAR);
}

bool td_round_is_first_ask(const td_coordinator *c, const sequence *s)
{
    for (uint32_t i = 0; i < c->params.n_slots; ++i)
        if (&c->sequences[i] != s && c->sequences[i].n_asks > 0)
            return false;
    return s->has_proposed && n_asked(s) == 0;
}

static uint32_t n_decoding(const td_coordinator *c)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->params.n_slots; ++i)
        n += c->sequences[i].phase == PHASE_DECODE;
    return n;
}

bool td_round_next_ask(const td_coordinator *c, const sequence *s, ask *out)
{
    uint32_t k = s->plan.n_head ? s->plan.k : s->k; /* of a round of its own */
    if (s->phase != PHASE_DECODE || k == 0 || s->n_match || s->is_exhausted ||
        s->n_asks >= (s->is_far ? TD_ASKS_MAX : ASKS_NEAR) || is_heads_turn(c, s))
        return false;
    if (s->is_far)
        return next_far_ask(c, s, out);
    uint32_t length = sequence_length(s), from = td_max_u32(s->asked_end, length);
    /* Guesses that are not of this epoch's drafter: it cannot go on from them, but from one of the
     * head, which it is told; from no more, as it keeps for good all but the last of what it is
     * told. */
    if (s->n_head == 1 && s->n_guesses == 1)
        from = td_max_u32(from, length + 1);
    if (from < length + s->n_guesses)
        return false;
    bool is_in_flight = sequence_is_in_flight(s);
    uint32_t end = is_in_flight ? s->n_sent : length + s->k;
    /* Ahead: what the next round needs, the guess of this one's last answer first. Before the rows
     * are sent only where nobody else waits for the drafter. */
    if (c->params.is_ahead && (is_in_flight || n_decoding(c) == 1) && (is_in_flight || from >= end))
        end += k + 1;
    end = td_min_u32(end, s->info.n_prompt + s->n_generate_max - 1);
    end = td_min_u32(end, length + TD_AHEAD_MAX);
    if (from >= end)
        return false;
    *out = (ask){.epoch = s->epoch, .position = from, .k = td_min_u32(end - from, TD_DRAFT_MAX)};
    return true;
}

/* -- drafts -------------------------------------------------------------------------------- */

static bool are_tokens(const td_coordinator *c, const uint32_t *ids, uint32_t n_ids)
{
    for (uint32_t i = 0; i < n_ids; ++i)
        if (ids[i] >= c->params.n_vocab)
            return false;
    return true;
}

static uint32_t find_ask(const sequence *s, uint32_t epoch, uint32_t position)
{
    uint32_t i = 0;
    while (i < s->n_asks && (s->asks[i].epoch != epoch || s->asks[i].position < position ||
                             (!s->asks[i].goes_on && s->asks[i].position != position)))
        ++i;
    return i;
}

/* Adds the ids that follow what is known; false if one differs from what was committed since. */
static bool add_guesses(sequence *s, uint32_t position, const uint32_t *ids, uint32_t n_ids)
{
    for (uint32_t i = 0; i < n_ids; ++i) {
        uint32_t p = position + i, length = sequence_length(s);
        if (p < length) {
            if (s->tokens[p] != ids[i])
                return false;
        } else if (p == length + s->n_guesses && s->n_guesses < TD_AHEAD_MAX) {
            s->guesses[s->n_guesses++] = ids[i];
        }
    }
    return true;
}

static void take_draft_time(td_coordinator *c, const ask *asked, uint32_t n_ids, uint64_t busy_us,
                            uint64_t now_us)
{
    if (busy_us == 0) /* said on behalf of a draft that did not answer */
        return;
    if (asked->is_reading) {
        double row_us = (double)busy_us / asked->position;
        c->read_row_us += (row_us - c->read_row_us) * (c->read_row_us > 0 ? 0.2 : 1);
        return;
    }
    /* What the drafter had at hand already says nothing of a step. */
    if ((double)busy_us > td_times_draft_us(&c->times) * n_ids / 4)
        td_times_add_draft(&c->times, n_ids, 1, (double)busy_us);
    double trip_us = (double)now_us - (double)asked->sent_us - (double)busy_us;
    if (asked->is_behind) /* a step for one that was overtaken */
        trip_us -= td_times_draft_us(&c->times);
    if (asked->is_first && n_ids == asked->k)
        td_times_add_trip(&c->times, trip_us);
    if (asked->is_alone && n_ids == asked->k && !td_round_is_any_asked(c) &&
        now_us > asked->sent_us + busy_us)
        td_times_add_wait(&c->times, (double)(now_us - asked->sent_us - busy_us));
}

void td_round_take_draft(td_coordinator *c, sequence *s, uint32_t epoch, uint32_t position,
                         const uint32_t *ids, uint32_t n_ids, uint64_t busy_us, uint64_t now_us)
{
    uint32_t i = find_ask(s, epoch, position), length = sequence_length(s);
    if (i == s->n_asks) {
        bool is_old = c->last_epoch - epoch < 1u << 31 &&
                      (epoch != s->epoch || position <= td_max_u32(s->asked_end, sequence_end(s)));
        ++*(is_old ? &c->stats.n_stale_drafts : &c->stats.n_bad_drafts);
        return;
    }
    ask asked = s->asks[i];
    uint32_t n_told = asked.goes_on && position < length ? length - position : 0;
    if (n_ids > asked.k + n_told || !are_tokens(c, ids, n_ids)) {
        ++c->stats.n_bad_drafts;
        return;
    }
    s->n_asks -= i + 1; /* with older ones, whose answers were lost */
    memmove(s->asks, s->asks + i + 1, s->n_asks * sizeof *s->asks);
    c->stats.n_late_drafts += s->is_mute;
    s->is_mute = s->is_reading = false;
    take_draft_time(c, &asked, n_ids, busy_us, now_us);
    if (epoch != s->epoch) {
        ++c->stats.n_stale_drafts;
        return;
    }
    if (s->phase != PHASE_DECODE || s->n_match)
        return;
    s->n_said = td_max_u32(s->n_said, position + n_ids);
    if (s->is_far) {
        s->is_exhausted |= n_ids < asked.k;
        take_far_draft(c, s, position, ids, n_ids);
    } else if (!add_guesses(s, position, ids,
                            n_ids)) { /* the last answer was another than its guess */
        TD_ASSERT(s->n_guesses == 0);
        td_round_new_epoch(c, s);
        if (!sequence_is_in_flight(s) && s->plan.n_head > 0 && !s->is_hasty)
            begin_draft(c, s);
    } else {
        /* Its context is full, or an answer in between was lost. */
        s->is_exhausted |= n_ids < asked.k;
        if (n_asked(s) == 0)
            s->asked_end = sequence_end(s);
    }
}

void td_round_take_head(td_coordinator *c, sequence *s, uint32_t epoch, uint32_t position,
                        const uint32_t *ids, uint32_t n_ids, uint64_t busy_us, uint64_t now_us)
{
    ask asked = s->head_ask;
    if (asked.k == 0 || asked.epoch != epoch || asked.position != position) {
        ++c->stats.n_bad_drafts;
        return;
    }
    s->head_ask.k = 0;
    if (n_ids > asked.k || !are_tokens(c, ids, n_ids)) {
        ++c->stats.n_bad_drafts;
        n_ids = 0;
    }
    td_times_add_head(&c->times, n_ids, (double)busy_us,
                      (double)now_us - (double)asked.sent_us - (double)busy_us);
    if (epoch != s->epoch || position != sequence_length(s) || !is_heads_turn(c, s)) {
        ++c->stats.n_stale_drafts;
        return;
    }
    if (n_ids > 0) {
        memcpy(s->guesses, ids, n_ids * sizeof *ids);
        s->n_guesses = s->n_head = s->k = n_ids;
        return;
    }
    s->is_headless = true; /* what it lacks now it never gets: the model takes the round */
    s->head_k = s->plan.n_head = 0;
    s->k = td_round_may_draft(c, s) ? s->plan.k : 0;
    begin_draft(c, s);
}

/* -- answers ------------------------------------------------------------------------------- */

static void pop_guess(sequence *s)
{
    --s->n_guesses;
    s->n_head -= s->n_head > 0;
    memmove(s->guesses, s->guesses + 1, s->n_guesses * sizeof *s->guesses);
}

bool td_round_roll_back(sequence *s)
{
    uint32_t n_stays = sequence_length(s) - 1;
    if (s->n_sent <= n_stays)
        return false;
    s->n_sent = n_stays;
    s->owes_truncate = true;
    ++s->slot.chain;
    return true;
}

static void count_guess(sequence *s, td_source source, uint32_t index, bool is_accepted)
{
    td_sequence_info *info = &s->info;
    ++info->n_drafted;
    ++info->drafted_at[index];
    info->n_accepted += is_accepted;
    info->accepted_at[index] += is_accepted;
    info->n_looked_up += source >= TD_SOURCE_MATCH_3;
    info->n_lookup_accepted += source >= TD_SOURCE_MATCH_3 && is_accepted;
    info->n_by_head += source == TD_SOURCE_HEAD;
    info->n_head_accepted += source == TD_SOURCE_HEAD && is_accepted;
}

/* The last token was another than its guess. A drafter that is far has been asked for more already,
 * and begins again by itself when it is told. */
static void drop_wrong_guesses(td_coordinator *c, sequence *s)
{
    uint32_t at = sequence_length(s) - 1;
    if (!s->is_far || s->n_said <= at) {
        td_round_drop_guesses(c, s);
        return;
    }
    s->n_guesses = 0;
    s->is_astray = true;
    s->stray_at = at;
}

td_outcome td_round_take_answers(td_coordinator *c, sequence *s, uint32_t n_rows,
                                 const uint32_t *chosen)
{
    td_source source = td_round_source(s), now = source;
    uint32_t n_verified = 0, n_accepted = 0, n_before = s->info.n_tokens;
    bool is_agreed = true;
    td_reason reason = TD_REASON_NONE;
    uint32_t i = 0;
    for (; i < n_rows && is_agreed && reason == TD_REASON_NONE; ++i) {
        bool is_guessed = s->n_guesses > 0, is_sent = s->n_sent > sequence_length(s);
        now = is_guessed ? td_round_source(s) : now;
        if (now != source) { /* the model's, behind the head's */
            td_acceptance_add(&s->acceptance, source, n_verified, n_accepted);
            n_verified = n_accepted = 0;
            source = now;
        }
        is_agreed = is_guessed && s->guesses[0] == chosen[i];
        reason = td_sequence_append(s, c, chosen[i], is_agreed && is_sent);
        if (is_sent) {
            count_guess(s, source, i, is_agreed);
            ++n_verified;
            n_accepted += is_agreed;
        }
        if (is_agreed)
            pop_guess(s);
        else if (is_guessed)
            drop_wrong_guesses(c, s);
    }
    for (; i + 1 < n_rows; ++i) /* verified in vain */
        count_guess(s, source, i, false);
    ++s->info.n_rounds;
    td_acceptance_add(&s->acceptance, source, n_verified, n_accepted);
    bool is_rolled_back = !is_agreed && td_round_roll_back(s);
    s->owes_commit = true;
    s->commit_length = sequence_length(s) - 1;
    return (td_outcome){.n_tokens = s->info.n_tokens - n_before,
                        .reason = reason,
                        .is_rolled_back = is_rolled_back};
}
