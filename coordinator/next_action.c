/* td_coordinator_next: the first thing owed to anybody. Control of the target comes before its next
 * micro-batch, because both travel in one ordered queue; FINISH comes last of a sequence. */
#include "coordinator/batch.h"
#include "coordinator/prompt.h"

#include "base/check.h"

#define FEED_PIECE 64u

static bool next_cancel(td_coordinator *c, td_action *action)
{
    for (uint32_t i = 0; i < c->params.n_batches_max; ++i) {
        batch *b = &c->batches[i];
        if (!b->owes_cancel)
            continue;
        b->owes_cancel = false;
        *action = (td_action){.kind = TD_ACT_CANCEL, .batch = b->id};
        return true;
    }
    return false;
}

/* Cache control, in the order in which it must be done. */
static bool next_for_target(sequence *s, td_action *action)
{
    if (s->slot.owes_close) {
        s->slot.owes_close = false;
        action->kind = TD_ACT_CLOSE;
    } else if (s->owes_truncate) {
        s->owes_truncate = false;
        action->kind = TD_ACT_TRUNCATE;
        action->length = s->n_sent;
    } else if (s->owes_commit) {
        s->owes_commit = false;
        action->kind = TD_ACT_COMMIT;
        action->length = s->commit_length;
    } else {
        return false;
    }
    return true;
}

static bool next_tokens(sequence *s, td_action *action)
{
    if (s->n_announced == s->info.n_tokens)
        return false;
    action->kind = TD_ACT_TOKENS;
    action->position = s->info.n_prompt + s->n_announced;
    action->tokens = s->info.tokens + s->n_announced;
    action->is_draft = s->is_draft + s->n_announced;
    action->n_tokens = s->info.n_tokens - s->n_announced;
    s->n_announced = s->info.n_tokens;
    return true;
}

static bool next_ending(const td_coordinator *c, sequence *s, td_action *action)
{
    if (s->phase != PHASE_ENDING)
        return false;
    if (s->is_draft_open && c->has_drafter) {
        s->is_draft_open = false;
        action->kind = TD_ACT_DRAFT_CLOSE;
    } else {
        s->phase = PHASE_DONE;
        action->kind = TD_ACT_FINISH;
        action->reason = s->info.reason;
    }
    return true;
}

/* Tells the drafter what it lacks, and the head's guess that it is to go on from, when that is of
 * use: it is asked for something, or has not answered yet and may be on the wrong track. While
 * nothing is drafted, tokens are told in pieces. */
static bool next_feed(const td_coordinator *c, sequence *s, td_action *action)
{
    ask next;
    uint32_t length = sequence_length(s);
    bool is_due = !s->is_draft_open || s->n_fed < s->info.n_prompt || s->n_asks > 0 ||
                  length - s->n_fed >= FEED_PIECE || td_round_next_ask(c, s, &next);
    if (!is_due)
        return false;
    if (!s->is_draft_open) {
        s->is_draft_open = true;
        s->has_proposed = false;
        s->n_fed = 0;
        action->kind = TD_ACT_DRAFT_OPEN;
    } else if (s->n_fed < length) {
        action->kind = TD_ACT_DRAFT_FEED;
        action->position = s->n_fed;
        action->tokens = s->tokens + s->n_fed;
        action->n_tokens = td_min_u32(length - s->n_fed, TD_FEED_TOKENS_MAX);
        s->n_fed += action->n_tokens;
    } else if (s->n_head == 1 && s->told_end != length + 1 && td_round_next_ask(c, s, &next) &&
               next.position == length + 1) {
        s->told_end = next.position;
        action->kind = TD_ACT_DRAFT_FEED;
        action->position = length;
        action->tokens = s->guesses;
        action->n_tokens = 1;
    } else {
        return false;
    }
    return true;
}

static bool next_head(const td_coordinator *c, sequence *s, td_action *action)
{
    if (!td_round_is_head_due(c, s))
        return false;
    s->head_ask = (ask){
        .epoch = s->epoch, .position = sequence_length(s), .k = s->head_k, .sent_us = c->now_us};
    action->kind = TD_ACT_HEAD_PROPOSE;
    action->position = s->head_ask.position;
    action->k = s->head_ask.k;
    return true;
}

static bool next_proposal(td_coordinator *c, sequence *s, td_action *action)
{
    ask next;
    if (!td_round_next_ask(c, s, &next))
        return false;
    next.is_reading = !s->has_proposed && !c->params.reads_along;
    next.is_alone = !td_round_is_any_asked(c);
    next.is_first = td_round_is_first_ask(c, s);
    next.is_behind = s->n_asks > 0;
    next.sent_us = c->now_us;
    s->has_proposed = true;
    s->is_reading = next.is_reading && !c->params.is_draft_fixed;
    s->asks[s->n_asks++] = next;
    if (c->owed_until_us == UINT64_MAX)
        td_round_note_owed(c);
    s->asked_end = td_max_u32(s->asked_end, next.position + next.k);
    action->kind = TD_ACT_DRAFT_PROPOSE;
    action->position = next.position;
    action->k = next.k;
    action->goes_on = next.goes_on;
    return true;
}

static bool next_of_sequence(td_coordinator *c, sequence *s, td_action *action)
{
    if (s->phase == PHASE_DONE)
        return false;
    if (next_for_target(s, action))
        return true;
    if (s->phase == PHASE_FREE || s->phase == PHASE_QUEUED)
        return false;
    if (next_tokens(s, action) || next_ending(c, s, action) || next_head(c, s, action))
        return true;
    return td_round_may_draft(c, s) && (next_feed(c, s, action) || next_proposal(c, s, action));
}

bool td_coordinator_next(td_coordinator *c, td_action *action)
{
    td_prompts_admit(c);
    if (next_cancel(c, action))
        return true;
    for (uint32_t slot = 0; slot < c->params.n_slots; ++slot) {
        sequence *s = &c->sequences[slot];
        *action = (td_action){.sequence = s->id, .slot = slot, .epoch = s->epoch};
        if (next_of_sequence(c, s, action))
            return true;
    }
    return td_batch_begin(c, action);
}
