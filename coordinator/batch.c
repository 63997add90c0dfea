/* Micro-batches: which rows the target runs next, and whose its answers are.
 *
 * While drafts are awaited the target takes prompt chunks; when sequences are ready it takes turns
 * between them and the prompts, so that neither starves. Prompts are taken one after the other,
 * oldest first, which gives each its first token as early as possible; their chunks follow each
 * other through the stages without waiting for answers.
 *
 * A target of several stages works on as many groups of sequences at once, or more where some are
 * on their way for long (pipeline.h), so a verify batch holds a group's share of them at most. With
 * one stage and a slow drafter two groups pay as well: one is
 * drafted while the other is verified. A stage that no group can use takes the speculative
 * continuation of a sequence in flight: rows behind rows that are not answered yet.
 *
 * In a verify batch every ready sequence gets its pending row, and what is left of verify_rows_max
 * goes to guesses as dealing.h deals it. Who comes first rotates. A cut draft changes only how many
 * tokens a round commits, never which (law 1). */
#include "coordinator/batch.h"

#include "base/check.h"
#include "coordinator/dealing.h"
#include "coordinator/prompt.h"

#include <math.h>

#define CONTINUE_MIN 0.1f /* a continuation that is needed less likely than this is not run */

static bool has_chunk(const sequence *s)
{
    return s->phase == PHASE_PREFILL && (!s->is_begun || s->n_sent < sequence_prefill_end(s));
}

/* Rows to replay behind a prompt that is there again; 0: none, or not yet. */
static uint32_t rows_to_replay(const sequence *s)
{
    bool is_due = has_chunk(s) && s->is_begun && s->n_sent >= s->info.n_prompt;
    return is_due ? sequence_prefill_end(s) - s->n_sent : 0;
}

/* The oldest sequence with a chunk to run. Of those that are replayed, first come as many that have
 * one chunk before their rows as give rows for a whole batch. After a loss the oldest goes alone as
 * far as a token: a target that is lost again and again may never come to the end of what all of
 * them have to replay. */
static uint32_t find_prefill(const td_coordinator *c)
{
    uint32_t oldest = UINT32_MAX, oldest_short = UINT32_MAX, n_rows = 0;
    for (uint32_t i = 0; i < c->params.n_slots; ++i) {
        const sequence *s = &c->sequences[i];
        bool is_token_coming =
            s->phase == PHASE_DECODE || (s->phase == PHASE_PREFILL && !has_chunk(s));
        if (c->is_recovering && is_token_coming)
            return UINT32_MAX;
        n_rows += rows_to_replay(s);
        if (!has_chunk(s))
            continue;
        if (oldest == UINT32_MAX || s->order < c->sequences[oldest].order)
            oldest = i;
        bool is_short = s->info.n_tokens > 0 && s->n_sent < s->info.n_prompt &&
                        s->info.n_prompt <= c->params.prefill_rows;
        if (is_short && (oldest_short == UINT32_MAX || s->order < c->sequences[oldest_short].order))
            oldest_short = i;
    }
    bool is_replay = oldest != UINT32_MAX && rows_to_replay(&c->sequences[oldest]) > 0;
    bool is_whole = n_rows >= c->params.verify_rows_max || c->is_recovering;
    return is_replay && !is_whole && oldest_short != UINT32_MAX ? oldest_short : oldest;
}

static batch *new_batch(td_coordinator *c, bool is_prefill)
{
    batch *b = c->batches;
    while (b->is_in_flight)
        ++b;
    *b = (batch){.id = ++c->last_batch,
                 .is_in_flight = true,
                 .is_prefill = is_prefill,
                 .has_output = true,
                 .sent_us = c->now_us};
    c->was_prefill = is_prefill;
    ++c->n_in_flight;
    ++c->stats.n_batches;
    return b;
}

/* Hands the batch out: its rows are those in c->rows. */
static bool begin(td_coordinator *c, const batch *b, uint32_t n_out, td_action *action)
{
    c->stats.n_rows += b->n_rows;
    *action = (td_action){.kind = TD_ACT_FORWARD,
                          .batch = b->id,
                          .is_prefill = b->is_prefill,
                          .rows = c->rows,
                          .n_rows = b->n_rows,
                          .n_out = n_out};
    if (b->is_prefill) {
        action->sequence = b->parts[0].sequence;
        action->slot = b->parts[0].slot;
    }
    return true;
}

/* The next n rows of a sequence: tokens that are known, then guesses. */
static void add_part(td_coordinator *c, batch *b, uint32_t slot, uint32_t n, bool is_output)
{
    sequence *s = &c->sequences[slot];
    uint32_t length = sequence_length(s);
    TD_ASSERT(n >= 1 && s->n_sent + n <= sequence_end(s));
    b->parts[b->n_parts++] =
        (batch_part){.slot = slot, .sequence = s->id, .chain = s->slot.chain, .n_rows = n};
    for (uint32_t i = 0; i < n; ++i) {
        uint32_t position = s->n_sent++;
        uint32_t token = position < length ? s->tokens[position] : s->guesses[position - length];
        c->rows[b->n_rows++] = (td_row){.sequence = s->id,
                                        .slot = slot,
                                        .token = token,
                                        .position = position,
                                        .is_output = is_output};
    }
}

/* A prompt's next chunk. */
static batch *begin_chunk(td_coordinator *c, sequence *s, uint32_t slot)
{
    uint32_t end = td_min_u32(s->info.n_prompt, s->n_sent + c->params.prefill_rows);
    TD_ASSERT(s->n_sent % c->params.prefill_rows == 0 && s->n_sent < end);
    batch *b = new_batch(c, true);
    add_part(c, b, slot, end - s->n_sent, false);
    b->has_output = end == s->info.n_prompt && s->info.n_tokens == 0;
    c->rows[b->n_rows - 1].is_output = b->has_output;
    if (end % c->params.prefill_rows == 0)
        s->n_full = end;
    return b;
}

/* These positions are certain as soon as they are computed. */
static void end_chunk(td_coordinator *c, sequence *s)
{
    s->owes_commit = true;
    s->commit_length = s->n_sent;
    if (s->info.n_tokens > 0 && s->n_sent == sequence_prefill_end(s)) {
        s->phase = PHASE_DECODE;
        td_round_begin(c, s);
    }
}

/* What was generated, as rows of a verify batch again, of this sequence and then of others. It
 * takes a prompt's turn. */
static batch *begin_replay(td_coordinator *c, uint32_t first)
{
    batch *b = new_batch(c, false);
    c->was_prefill = true;
    b->has_output = false;
    for (uint32_t i = 0; i < c->params.n_slots && b->n_rows < c->params.verify_rows_max; ++i) {
        uint32_t slot = (first + i) % c->params.n_slots;
        sequence *s = &c->sequences[slot];
        uint32_t n = td_min_u32(rows_to_replay(s), c->params.verify_rows_max - b->n_rows);
        if (n == 0)
            continue;
        add_part(c, b, slot, n, false);
        end_chunk(c, s);
    }
    return b;
}

static bool begin_prefill(td_coordinator *c, uint32_t slot, td_action *action)
{
    sequence *s = &c->sequences[slot];
    if (!s->is_begun) { /* its OPEN comes first */
        td_prompt_open(c, s, action);
        return true;
    }
    const batch *b;
    if (s->n_sent < s->info.n_prompt) {
        b = begin_chunk(c, s, slot);
        end_chunk(c, s);
    } else {
        b = begin_replay(c, slot);
    }
    return begin(c, b, b->has_output, action);
}

/* -- groups -------------------------------------------------------------------------------- */

typedef struct {
    uint32_t n_ready, n_awaiting, n_in_flight; /* decoding sequences */
    float k;                                   /* guesses wanted, mean */
} census;

static bool is_ready(const td_coordinator *c, const sequence *s)
{
    return s->phase == PHASE_DECODE && !sequence_is_in_flight(s) && !td_round_is_awaiting(c, s);
}

static census take_census(const td_coordinator *c)
{
    census n = {0};
    float k = 0;
    for (uint32_t i = 0; i < c->params.n_slots; ++i) {
        const sequence *s = &c->sequences[i];
        if (s->phase != PHASE_DECODE)
            continue;
        k += (float)s->k;
        if (sequence_is_in_flight(s))
            ++n.n_in_flight;
        else if (td_round_is_awaiting(c, s))
            ++n.n_awaiting;
        else
            ++n.n_ready;
    }
    uint32_t n_all = n.n_ready + n.n_awaiting + n.n_in_flight;
    n.k = n_all ? k / (float)n_all : 0;
    return n;
}

/* Is it faster to draft for one half while the other is verified than to do both for all? */
static bool pays_to_halve(const td_coordinator *c, const census *n, uint32_t n_all)
{
    double draft_us = td_times_draft_us(&c->times) * n_all * (double)n->k;
    if (!c->has_drafter || !c->params.is_ahead || n_all < 2 || draft_us <= 0)
        return false;
    double rows = fmin(n_all * (1 + (double)n->k), c->params.verify_rows_max);
    double verify_us = td_times_verify_us(&c->times, rows / 2);
    double whole_us = td_times_verify_us(&c->times, rows) + draft_us;
    return verify_us > 0 && 2 * fmax(verify_us, draft_us / 2) < 0.95 * whole_us;
}

/* Sequences of a verify batch at most; 0: none may go now. */
static uint32_t group_size(const td_coordinator *c, const census *n)
{
    uint32_t n_all = n->n_ready + n->n_awaiting + n->n_in_flight;
    uint32_t n_groups = c->pipeline.n_groups;
    if (n_groups == 1 && pays_to_halve(c, n, n_all))
        n_groups = 2;
    uint32_t size = td_div_up(n_all, n_groups);
    if (n->n_ready == 0 || (n->n_ready < size && n->n_awaiting > 0))
        return 0;
    return c->pipeline.n_groups == 1 ? n->n_ready : size;
}

/* Fills n_rows of the parts. */
static void deal_guesses(const td_coordinator *c, batch_part *parts, uint32_t n_parts)
{
    float survival[TD_VERIFY_ROWS_MAX][TD_DRAFT_MAX];
    td_deal deals[TD_VERIFY_ROWS_MAX];
    uint32_t n_kept[TD_VERIFY_ROWS_MAX], n_left = c->params.verify_rows_max - n_parts;
    for (uint32_t i = 0; i < n_parts; ++i) {
        const sequence *s = &c->sequences[parts[i].slot];
        uint32_t n = td_min_u32(s->n_guesses, s->k);
        td_acceptance_survival(&s->acceptance, td_round_source(s), survival[i], n);
        if (s->is_probe && n > 0) /* it is verified whatever it promises */
            survival[i][0] = 1;
        deals[i] = (td_deal){.survival = survival[i], .n_draft = n};
        n_kept[i] = 0;
    }
    if (c->params.is_draft_fixed) { /* evenly */
        for (bool was_dealt = true; was_dealt;) {
            was_dealt = false;
            for (uint32_t i = 0; i < n_parts && n_left > 0; ++i) {
                if (n_kept[i] == deals[i].n_draft)
                    continue;
                ++n_kept[i];
                --n_left;
                was_dealt = true;
            }
        }
    } else {
        td_deal_rows(&c->times, deals, n_parts, c->params.verify_rows_max, 0, n_kept);
    }
    for (uint32_t i = 0; i < n_parts; ++i)
        parts[i].n_rows = 1 + n_kept[i];
}

static bool begin_verify(td_coordinator *c, uint32_t n_max, td_action *action)
{
    batch_part parts[TD_VERIFY_ROWS_MAX];
    uint32_t n_parts = 0, n_slots = c->params.n_slots;
    uint32_t next_first = (c->next_first + 1) % n_slots;
    n_max = td_min_u32(n_max, c->params.verify_rows_max);
    for (uint32_t i = 0; i < n_slots; ++i) {
        uint32_t slot = (c->next_first + i) % n_slots;
        if (!is_ready(c, &c->sequences[slot]))
            continue;
        if (n_parts == n_max) {
            next_first = slot; /* it had to wait: it is the first next time */
            break;
        }
        parts[n_parts++].slot = slot;
    }
    c->next_first = next_first;
    deal_guesses(c, parts, n_parts);
    batch *b = new_batch(c, false);
    for (uint32_t i = 0; i < n_parts; ++i)
        add_part(c, b, parts[i].slot, parts[i].n_rows, true);
    return begin(c, b, b->n_rows, action);
}

/* Rows behind rows that are not answered yet, of the sequence they help most. */
static bool begin_continuation(td_coordinator *c, td_action *action)
{
    uint32_t best = UINT32_MAX, best_rows = 0;
    float best_chance = CONTINUE_MIN;
    for (uint32_t i = 0; i < c->params.n_slots; ++i) {
        const sequence *s = &c->sequences[i];
        if (!sequence_is_in_flight(s))
            continue;
        uint32_t first = sequence_length(s) - 1;
        uint32_t n_known = sequence_end(s) - s->n_sent, n_room = first + c->params.verify_rows_max;
        uint32_t k = s->plan.n_head ? s->plan.k : s->k;
        uint32_t n_wanted = td_min_u32(k + 1, n_room > s->n_sent ? n_room - s->n_sent : 0);
        bool is_coming = s->n_asks > 0 && s->asked_end > sequence_end(s) && !s->is_mute;
        if (n_known == 0 || n_wanted == 0 || (n_known < n_wanted && is_coming))
            continue;
        float survival[TD_VERIFY_ROWS_MAX];
        uint32_t n_before =
            s->n_sent - first; /* guesses that must hold, its own first one included */
        td_acceptance_survival(&s->acceptance, td_round_source(s), survival, n_before);
        float chance = survival[n_before - 1];
        if (chance < best_chance)
            continue;
        best = i;
        best_rows = td_min_u32(n_known, n_wanted);
        best_chance = chance;
    }
    if (best == UINT32_MAX)
        return false;
    batch *b = new_batch(c, false);
    b->is_continuation = true;
    add_part(c, b, best, best_rows, true);
    ++c->stats.n_continued;
    return begin(c, b, b->n_rows, action);
}

/* Room for what cannot be in vain, beside continuations; of verify batches one for each group.
 * Batches of a replay are of all sizes: so that no stage has less to do than the next, more go. */
static bool has_room(const td_coordinator *c, bool is_prefill)
{
    const td_pipeline *p = &c->pipeline;
    bool is_replaying = false;
    for (uint32_t i = 0; i < c->params.n_slots; ++i)
        is_replaying |= has_chunk(&c->sequences[i]) && c->sequences[i].info.n_tokens > 0;
    uint32_t n_continued = 0, n_verified = 0;
    for (uint32_t i = 0; i < c->params.n_batches_max; ++i) {
        const batch *b = &c->batches[i];
        n_continued += b->is_in_flight && b->is_continuation;
        n_verified += b->is_in_flight && !b->is_continuation && !b->is_prefill && b->has_output;
    }
    uint32_t n_max = td_max_u32(p->n_groups, td_pipeline_depth(p, true));
    n_max += is_replaying ? 2 * c->params.n_stages : 0;
    return c->n_in_flight - n_continued < n_max && (is_prefill || n_verified < p->n_groups);
}

bool td_batch_begin(td_coordinator *c, td_action *action)
{
    if (c->n_in_flight == c->params.n_batches_max)
        return false;
    census n = take_census(c);
    td_pipeline_choose(&c->pipeline, n.n_ready + n.n_awaiting + n.n_in_flight, 1 + (double)n.k,
                       c->params.verify_rows_max);
    uint32_t prefill = find_prefill(c), n_ready = group_size(c, &n);
    uint32_t n_max = has_room(c, false) ? n_ready : 0;
    if (prefill != UINT32_MAX && (n_max == 0 || !c->was_prefill) && has_room(c, true))
        return begin_prefill(c, prefill, action);
    if (n_max > 0)
        return begin_verify(c, n_max, action);
    return n_ready == 0 && n.n_awaiting == 0 &&
           c->n_in_flight < td_pipeline_depth(&c->pipeline, false) && begin_continuation(c, action);
}

/* -- answers ------------------------------------------------------------------------------- */

static bool is_alive(const td_coordinator *c, const batch_part *part)
{
    const sequence *s = &c->sequences[part->slot];
    return s->id == part->sequence && s->slot.chain == part->chain && sequence_is_active(s);
}

void td_batch_drop(td_coordinator *c, const sequence *s)
{
    uint32_t slot = (uint32_t)(s - c->sequences);
    for (uint32_t i = 0; i < c->params.n_batches_max; ++i) {
        batch *b = &c->batches[i];
        bool is_of_it = false, is_any_alive = false;
        for (uint32_t k = 0; b->is_in_flight && k < b->n_parts; ++k) {
            is_of_it |= b->parts[k].slot == slot && b->parts[k].sequence == s->id;
            is_any_alive |= is_alive(c, &b->parts[k]);
        }
        /* What is committed as it is sent is finished, and others may be about to take chunks of a
         * prompt over. */
        if (!is_of_it || is_any_alive || b->is_cancelled || b->is_prefill || !b->has_output)
            continue;
        b->is_cancelled = b->owes_cancel = true;
        ++c->stats.n_cancelled;
    }
}

static td_outcome end_prefill(td_coordinator *c, sequence *s, const uint32_t *chosen)
{
    s->phase = PHASE_DECODE;
    ++s->info.n_rounds;
    td_reason reason = td_sequence_append(s, c, chosen[0], false);
    return (td_outcome){.n_tokens = 1, .reason = reason};
}

static void take_times(td_coordinator *c, const batch *b, const td_batch_times *times)
{
    if (times->is_restored)
        return;
    if (b->is_prefill || b->has_output)
        td_pipeline_add(&c->pipeline, &(td_pipeline_sample){.is_prefill = b->is_prefill,
                                                            .n_rows = b->n_rows,
                                                            .us = (double)(c->now_us - b->sent_us),
                                                            .waited_us = (double)times->waited_us,
                                                            .sum_us = (double)times->sum_us,
                                                            .max_us = (double)times->max_us});
    if (b->is_prefill)
        return;
    /* Of several groups the slowest stage sets the pace, unless links do; of one sequence all
     * together. */
    double all_us = (double)times->sum_us + td_pipeline_link_us(&c->pipeline, false);
    double pace_us = fmax((double)times->max_us, all_us / c->pipeline.n_groups);
    td_times_add_verify(&c->times, b->n_rows, b->n_parts > 1 ? pace_us : all_us);
}

void td_batch_end(td_coordinator *c, batch *b, const uint32_t *chosen, const td_batch_times *times,
                  td_outcome *outcomes)
{
    b->is_in_flight = b->owes_cancel = false;
    --c->n_in_flight;
    if (times && !b->is_cancelled)
        take_times(c, b, times);
    for (uint32_t i = 0; i < b->n_parts; ++i) {
        const batch_part *part = &b->parts[i];
        sequence *s = &c->sequences[part->slot];
        outcomes[i] = (td_outcome){.reason = TD_REASON_NONE};
        if (!is_alive(c, part) || !b->has_output) {
            /* A cancelled sequence, a guess that did not hold, or nothing new: no part in the
             * answer. */
        } else if (b->is_prefill) {
            outcomes[i] = end_prefill(c, s, chosen);
        } else {
            outcomes[i] = td_round_take_answers(c, s, part->n_rows, chosen);
        }
        chosen += b->is_prefill ? 0 : part->n_rows;
    }
}
