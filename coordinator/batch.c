/* Micro-batches: which rows the target runs next, and what its choices mean.
 *
 * While drafts are awaited the target takes prompt chunks; when all decoding sequences are ready it
 * takes turns between them and the prompts, so that neither starves. Prompts are taken one after
 * the other, oldest first, which gives each its first token as early as possible.
 *
 * In a verify batch every ready sequence gets its pending row, and what is left of verify_rows_max
 * is dealt one drafted row at a time, in turn: the i-th token of a draft is accepted less often
 * than the one before it, so an even deal also has the most tokens accepted. Who comes first
 * rotates. A cut draft changes only how many tokens a round commits, never which (law 1). */
#include "coordinator/state.h"

#include "base/check.h"

#include <string.h>

static uint32_t find_prefill(const td_coordinator *c)
{
    uint32_t oldest = UINT32_MAX;
    for (uint32_t i = 0; i < c->params.n_slots; ++i) {
        const sequence *s = &c->sequences[i];
        if (s->phase == PHASE_PREFILL &&
            (oldest == UINT32_MAX || s->order < c->sequences[oldest].order))
            oldest = i;
    }
    return oldest;
}

/* True if a verify batch may go now: every decoding sequence is ready. (Not earlier, even if the
 * ready ones fill it: then the drafter's order of answering would decide who has to wait.) */
static bool can_verify(const td_coordinator *c)
{
    bool is_any = false;
    for (uint32_t i = 0; i < c->params.n_slots; ++i) {
        const sequence *s = &c->sequences[i];
        if (s->phase != PHASE_DECODE)
            continue;
        if (s->round != ROUND_READY)
            return false;
        is_any = true;
    }
    return is_any;
}

static void add_rows(td_coordinator *c, uint32_t *n_rows, uint32_t slot, const uint32_t *tokens,
                     uint32_t n, uint32_t position)
{
    for (uint32_t i = 0; i < n; ++i)
        c->rows[(*n_rows)++] = (td_row){.sequence = c->sequences[slot].id,
                                        .slot = slot,
                                        .token = tokens[i],
                                        .position = position + i};
}

static uint32_t fill_prefill(td_coordinator *c, uint32_t slot, uint32_t *n_out)
{
    sequence *s = &c->sequences[slot];
    uint32_t first = s->n_cached, n_rows = 0;
    uint32_t end = td_min_u32(s->info.n_prompt, first + c->params.prefill_rows);
    TD_ASSERT(first % c->params.prefill_rows == 0 && first < end);
    add_rows(c, &n_rows, slot, s->tokens + first, end - first, first);
    *n_out = end == s->info.n_prompt;
    c->rows[n_rows - 1].is_output = *n_out == 1;
    c->parts[0] = (batch_part){.slot = slot, .sequence = s->id, .n_rows = n_rows};
    c->n_parts = 1;
    return n_rows;
}

/* Deals the rows: fills c->parts. */
static void deal_rows(td_coordinator *c)
{
    uint32_t n_slots = c->params.n_slots, n_left = c->params.verify_rows_max;
    uint32_t next_first = (c->next_first + 1) % n_slots;
    c->n_parts = 0;
    for (uint32_t i = 0; i < n_slots; ++i) {
        uint32_t slot = (c->next_first + i) % n_slots;
        const sequence *s = &c->sequences[slot];
        if (s->phase != PHASE_DECODE || s->round != ROUND_READY)
            continue;
        if (n_left == 0) {
            next_first = slot; /* it had to wait: it is the first next time */
            break;
        }
        c->parts[c->n_parts++] = (batch_part){.slot = slot, .sequence = s->id, .n_rows = 1};
        --n_left;
    }
    for (bool was_dealt = true; was_dealt;) {
        was_dealt = false;
        for (uint32_t i = 0; i < c->n_parts && n_left > 0; ++i) {
            batch_part *part = &c->parts[i];
            if (part->n_rows == 1 + c->sequences[part->slot].n_draft)
                continue;
            ++part->n_rows;
            --n_left;
            was_dealt = true;
        }
    }
    c->next_first = next_first;
}

static uint32_t fill_verify(td_coordinator *c)
{
    uint32_t n_rows = 0;
    deal_rows(c);
    for (uint32_t i = 0; i < c->n_parts; ++i) {
        const batch_part *part = &c->parts[i];
        sequence *s = &c->sequences[part->slot];
        uint32_t position = sequence_length(s) - 1;
        TD_ASSERT(s->n_cached == position);
        s->n_draft = part->n_rows - 1;
        s->round = ROUND_IN_FLIGHT;
        add_rows(c, &n_rows, part->slot, &s->tokens[position], 1, position);
        add_rows(c, &n_rows, part->slot, s->draft, s->n_draft, position + 1);
    }
    for (uint32_t i = 0; i < n_rows; ++i)
        c->rows[i].is_output = true;
    return n_rows;
}

bool td_batch_begin(td_coordinator *c, td_action *action)
{
    if (c->is_in_flight)
        return false;
    uint32_t prefill = find_prefill(c);
    bool is_prefill = prefill != UINT32_MAX, is_verify = can_verify(c);
    if (!is_prefill && !is_verify)
        return false;
    if (is_prefill && is_verify)
        is_prefill = !c->was_prefill;
    uint32_t n_out = 0;
    uint32_t n_rows = is_prefill ? fill_prefill(c, prefill, &n_out) : fill_verify(c);
    c->is_in_flight = true;
    c->is_prefill = c->was_prefill = is_prefill;
    ++c->batch;
    ++c->stats.n_batches;
    c->stats.n_rows += n_rows;
    *action = (td_action){.kind = TD_ACT_FORWARD,
                          .batch = c->batch,
                          .is_prefill = is_prefill,
                          .rows = c->rows,
                          .n_rows = n_rows,
                          .n_out = is_prefill ? n_out : n_rows};
    if (is_prefill) {
        action->sequence = c->parts[0].sequence;
        action->slot = c->parts[0].slot;
    }
    return true;
}

static void end_prefill(td_coordinator *c, sequence *s, uint32_t n_rows, const uint32_t *chosen)
{
    s->n_cached += n_rows;
    s->owes_commit = true;
    if (s->n_cached < s->info.n_prompt)
        return;
    s->phase = PHASE_DECODE;
    s->round = ROUND_START;
    ++s->info.n_rounds;
    td_reason reason = td_sequence_append(s, c, chosen[0], false);
    if (reason != TD_REASON_NONE)
        td_coordinator_finish(c, s, reason);
}

/* chosen: [n_draft + 1]. Commits the longest agreeing prefix and the token after it. */
static void end_verify(td_coordinator *c, sequence *s, const uint32_t *chosen)
{
    td_sequence_info *info = &s->info;
    uint32_t n_rows_end = s->n_cached + 1 + s->n_draft; /* positions in the cache now */
    bool is_agreed = true;
    td_reason reason = TD_REASON_NONE;
    for (uint32_t i = 0; i <= s->n_draft && is_agreed && reason == TD_REASON_NONE; ++i) {
        is_agreed = i < s->n_draft && s->draft[i] == chosen[i];
        reason = td_sequence_append(s, c, chosen[i], is_agreed);
        info->n_accepted += is_agreed;
        info->accepted_at[i] += is_agreed;
    }
    ++info->n_rounds;
    info->n_drafted += s->n_draft;
    for (uint32_t i = 0; i < s->n_draft; ++i)
        ++info->drafted_at[i];
    s->n_cached = sequence_length(s) - 1;
    s->owes_commit = true;
    if (s->n_cached < n_rows_end) {
        s->owes_truncate = true;
        s->epoch = td_coordinator_new_epoch(c);
    }
    s->round = ROUND_START;
    s->n_draft = 0;
    if (reason != TD_REASON_NONE)
        td_coordinator_finish(c, s, reason);
}

void td_batch_end(td_coordinator *c, const uint32_t *chosen)
{
    c->is_in_flight = false;
    for (uint32_t i = 0; i < c->n_parts; ++i) {
        const batch_part *part = &c->parts[i];
        sequence *s = &c->sequences[part->slot];
        /* A cancelled sequence, and a new one in its slot, have no part in the answer. */
        if (s->id == part->sequence && sequence_is_active(s)) {
            if (c->is_prefill)
                end_prefill(c, s, part->n_rows, chosen);
            else
                end_verify(c, s, chosen);
        }
        if (!c->is_prefill)
            chosen += part->n_rows;
    }
}
