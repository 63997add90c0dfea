/* Prompts before their first row: who may begin, by memory, and what is taken over from a prompt
 * that began alike.
 *
 * Memory is promised in full when a sequence begins: pages for its prompt and all it may generate.
 * So none ever runs out of it halfway. Pages that two sequences share are counted for both, which
 * errs on the safe side.
 *
 * A slot keeps the cache of its last sequence until it is taken again or its pages are wanted. Only
 * full chunks of a prompt are shared: they were computed by the prefill program from the same
 * tokens in the same chunks, so taking them over changes no bit (law 1). */
#include "coordinator/prompt.h"

#include "base/check.h"

static uint32_t pages_for(const td_coordinator *c, uint32_t n_positions)
{
    return td_div_up(n_positions, c->params.page_positions);
}

/* Pages that a slot holds or has been promised. */
static uint32_t pages_of(const td_coordinator *c, const sequence *s)
{
    uint32_t n_held = s->slot.is_held ? pages_for(c, s->is_begun ? s->n_sent : s->slot.n_sent) : 0;
    if (s->phase != PHASE_PREFILL && s->phase != PHASE_DECODE)
        return n_held;
    return td_max_u32(n_held, pages_for(c, s->info.n_prompt + s->n_generate_max));
}

static uint32_t free_pages(const td_coordinator *c)
{
    uint32_t n_taken = 0;
    for (uint32_t i = 0; i < c->params.n_slots; ++i)
        n_taken += pages_of(c, &c->sequences[i]);
    TD_ASSERT(n_taken <= c->params.n_pages);
    return c->params.n_pages - n_taken;
}

/* Gives up the cache that has been of no use the longest; false if there is none. */
static bool evict(td_coordinator *c)
{
    sequence *oldest = NULL;
    for (uint32_t i = 0; i < c->params.n_slots; ++i) {
        sequence *s = &c->sequences[i];
        bool is_idle = s->phase == PHASE_FREE || s->phase == PHASE_QUEUED;
        if (is_idle && s->slot.is_held && (!oldest || s->slot.last_use < oldest->slot.last_use))
            oldest = s;
    }
    if (!oldest)
        return false;
    oldest->slot.is_held = false;
    oldest->slot.owes_close = true;
    td_sequence_forget(oldest);
    return true;
}

static sequence *find_queued(td_coordinator *c)
{
    sequence *oldest = NULL;
    for (uint32_t i = 0; i < c->params.n_slots; ++i) {
        sequence *s = &c->sequences[i];
        if (s->phase == PHASE_QUEUED && (!oldest || s->order < oldest->order))
            oldest = s;
    }
    return oldest;
}

void td_prompts_admit(td_coordinator *c)
{
    for (sequence *s; (s = find_queued(c));) {
        uint32_t n_wanted = pages_for(c, s->info.n_prompt + s->n_generate_max);
        while (c->params.n_pages && free_pages(c) < n_wanted && evict(c))
            ;
        if (c->params.n_pages && free_pages(c) < n_wanted) {
            c->stats.n_waits += !s->has_waited;
            s->has_waited = true;
            return;
        }
        s->phase = PHASE_PREFILL;
    }
}

static uint32_t n_common(const uint32_t *a, const uint32_t *b, uint32_t n_max)
{
    uint32_t n = 0;
    while (n < n_max && a[n] == b[n])
        ++n;
    return n;
}

void td_prompt_open(td_coordinator *c, sequence *s, td_action *action)
{
    uint32_t slot = (uint32_t)(s - c->sequences);
    *action = (td_action){
        .kind = TD_ACT_OPEN, .sequence = s->id, .slot = slot, .epoch = s->epoch, .from_slot = slot};
    for (uint32_t i = 0; c->params.can_share && i < c->params.n_slots; ++i) {
        const sequence *other = &c->sequences[i];
        const uint32_t *tokens = other->is_begun ? other->tokens : other->slot.tokens;
        uint32_t n_full = other->is_begun ? other->n_full : other->slot.n_full;
        if (!other->slot.is_held || !n_full)
            continue;
        /* The last row of the prompt is always run: its answer is wanted. */
        uint32_t n = n_common(s->tokens, tokens, td_min_u32(n_full, s->info.n_prompt - 1));
        n -= n % c->params.prefill_rows;
        if (n <= action->length)
            continue;
        action->length = n;
        action->from_slot = i;
    }
    td_sequence_forget(s);
    s->is_begun = s->slot.is_held = true;
    s->n_sent = s->n_full = s->info.n_shared = action->length;
}
