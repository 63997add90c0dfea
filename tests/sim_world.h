/* A world for the coordinator: a toy target, a toy drafter and a simulated clock, all of it decided
 * by one seed. The target's choice after a row is a hash of the last tokens in its cache, so a
 * cache that was rolled back wrongly gives another text. The drafter knows the text that plain
 * decoding gives and spoils it as told. The world checks at every action what must always hold.
 *
 * Include after cmocka.h. One program includes it once. */
#ifndef TD_TESTS_SIM_WORLD_H
#define TD_TESTS_SIM_WORLD_H

#include "sim_text.h"

#include "base/mem.h"

#include <stdio.h>

#define N_PROMPTS_MAX  16u
#define N_SLOTS_MAX    8u
#define N_EVENTS_MAX   4096u
#define N_STAGES_MAX   4u
#define PAGE_POSITIONS 4u

typedef enum {
    DRAFTER_NONE,
    DRAFTER_PROMPT,    /* answers at once */
    DRAFTER_LATE,      /* about as long as the deadline */
    DRAFTER_SILENT,    /* answers some, then no more */
    DRAFTER_KILLED,    /* lost and joined again, now and then */
    DRAFTER_DUPLICATE, /* every answer comes twice or thrice */
    DRAFTER_REORDER,   /* answers after widely different times */
    DRAFTER_GARBAGE,   /* answers nonsense among good ones */
    DRAFTER_CHAOS,     /* all of it */
    DRAFTER_KIND_COUNT
} drafter_kind;

typedef struct {
    uint64_t seed;
    drafter_kind drafter;
    double agreement; /* of each drafted token, independently */
    uint32_t n_prompts, n_slots, n_ctx, draft_max, verify_rows_max, prefill_rows;
    uint32_t n_prompt_max, n_predict_max; /* random below, unless is_exact */
    bool is_exact, ignore_end, has_stops, has_cancels;
    bool has_losses; /* of the target */
    bool is_free;    /* k is chosen, not fixed */
    bool is_ahead, can_share;
    uint32_t n_stages; /* 0 is 1 */
    uint32_t n_pages;  /* of PAGE_POSITIONS; 0: no limit */
    uint32_t n_prefix; /* tokens that all prompts begin with */
    bool has_head;     /* of the target, beside the drafter; it agrees as often */
} world_params;

typedef struct {
    bool is_open;
    uint32_t sequence, n, n_committed;
    uint32_t tokens[N_CTX_MAX];
} toy_cache; /* the target's by slot, the drafter's by prompt (n_committed: fed) */

typedef struct {
    uint64_t at_us, order;
    bool is_verified, is_prefill, is_of_head;
    uint64_t batch;
    uint32_t sequence, epoch, position, n;
    uint32_t ids[TD_BATCH_ROWS_MAX];
} event;

typedef struct {
    world_params params;
    td_coordinator *c;
    prompt prompts[N_PROMPTS_MAX];
    toy_cache target[N_SLOTS_MAX], drafter[N_PROMPTS_MAX];
    event events[N_EVENTS_MAX];
    uint32_t n_events, n_in_flight, n_answers;
    uint64_t stage_free_us[N_STAGES_MAX];
    uint32_t n_shared;        /* positions taken over */
    uint32_t n_heads, n_told; /* proposals of the head, and its guesses that the drafter was told */
    uint64_t n_pushed, now_us, random, next_kill_us, n_allocated, n_steps;
    bool is_joined, is_silent;
    td_coordinator_stats stats; /* at the end */
} world;

#define CHECK(w, condition)                                                                        \
    do {                                                                                           \
        if (!(condition))                                                                          \
            fail_msg("seed %llu, drafter %d, line %d: %s", (unsigned long long)(w)->params.seed,   \
                     (int)(w)->params.drafter, __LINE__, #condition);                              \
    } while (0)

static uint64_t random_u64(world *w) { return mix(w->random += 0x9e3779b97f4a7c15u); }

static uint32_t random_below(world *w, uint32_t n) { return (uint32_t)(random_u64(w) % n); }

static bool random_chance(world *w, double p)
{
    return (double)(random_u64(w) >> 11) < p * 9007199254740992.0;
}

static void make_prompt(world *w, prompt *p)
{
    const world_params *params = &w->params;
    p->stream = random_u64(w);
    p->ignore_end = params->ignore_end;
    p->n_prompt =
        params->is_exact ? params->n_prompt_max : 1 + random_below(w, params->n_prompt_max);
    p->n_predict =
        params->is_exact ? params->n_predict_max : 1 + random_below(w, params->n_predict_max);
    for (uint32_t i = 0; i < p->n_prompt; ++i)
        p->prompt[i] = i < params->n_prefix ? (uint32_t)mix(params->seed + i) % N_VOCAB
                                            : random_below(w, N_VOCAB);
    p->n_stops = params->has_stops ? random_below(w, 5) : 0;
    for (uint32_t i = 0; i < p->n_stops; ++i) {
        uint32_t n = 3 + random_below(w, 8);
        for (uint32_t j = 0; j < n; ++j)
            p->stops[i][j] = random_chance(w, 0.5) ? 'a' : 'b';
    }
    decode_plain(p, params->n_ctx);
}

static uint32_t find_prompt(const world *w, uint32_t sequence)
{
    for (uint32_t i = 0; i < w->params.n_prompts; ++i)
        if (w->prompts[i].is_added && w->prompts[i].sequence == sequence)
            return i;
    CHECK(w, !"the sequence was added");
    return 0;
}

/* ---- events on their way ---- */

static event *push_event(world *w, uint64_t delay_us)
{
    CHECK(w, w->n_events < N_EVENTS_MAX);
    event *e = &w->events[w->n_events++];
    *e = (event){.at_us = w->now_us + delay_us, .order = w->n_pushed++};
    return e;
}

static uint32_t first_event(const world *w)
{
    uint32_t first = UINT32_MAX;
    for (uint32_t i = 0; i < w->n_events; ++i) {
        const event *a = &w->events[i], *b = &w->events[first == UINT32_MAX ? i : first];
        if (a->at_us < b->at_us || (a->at_us == b->at_us && a->order <= b->order))
            first = i;
    }
    return first;
}

/* ---- the target ---- */

/* When a micro-batch that comes now has gone through all stages. */
static uint64_t pass_stages(world *w, uint32_t n_rows)
{
    uint64_t at_us = w->now_us;
    for (uint32_t i = 0; i < w->params.n_stages; ++i) {
        if (w->stage_free_us[i] > at_us)
            at_us = w->stage_free_us[i];
        at_us += 100 + 10 * n_rows;
        w->stage_free_us[i] = at_us;
    }
    return at_us;
}

/* Pages that are written: never more than there are. */
static void check_pages(world *w)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < w->params.n_slots; ++i)
        n += w->target[i].is_open ? td_div_up(w->target[i].n, PAGE_POSITIONS) : 0;
    CHECK(w, !w->params.n_pages || n <= w->params.n_pages);
}

static void forward(world *w, const td_action *a)
{
    CHECK(w, ++w->n_in_flight <= w->params.n_stages);
    CHECK(w, td_coordinator_n_in_flight(w->c) == w->n_in_flight);
    CHECK(w, a->n_rows >= 1);
    CHECK(w, a->n_rows <= (a->is_prefill ? w->params.prefill_rows : w->params.verify_rows_max));
    event *e = push_event(w, pass_stages(w, a->n_rows) - w->now_us);
    e->is_verified = true;
    e->batch = a->batch;
    e->is_prefill = a->is_prefill;
    for (uint32_t i = 0; i < a->n_rows; ++i) {
        const td_row *row = &a->rows[i];
        CHECK(w, row->slot < w->params.n_slots);
        toy_cache *cache = &w->target[row->slot];
        CHECK(w, cache->is_open && cache->sequence == row->sequence);
        CHECK(w, row->position == cache->n && cache->n < w->params.n_ctx);
        CHECK(w, row->token < N_VOCAB);
        const prompt *p = &w->prompts[find_prompt(w, row->sequence)];
        CHECK(w, a->is_prefill == (row->position < p->n_prompt)); /* else other bits */
        if (a->is_prefill) {
            CHECK(w, row->sequence == a->sequence && row->slot == a->slot);
            CHECK(w, i > 0 || row->position % w->params.prefill_rows == 0);
            CHECK(w, !row->is_output || i == a->n_rows - 1);
        } else {
            /* What is committed is never asked again. */
            CHECK(w, row->is_output == (row->position + 1 >= p->n_prompt + p->n_seen));
            CHECK(w, row->is_output || w->params.has_losses);
        }
        cache->tokens[cache->n++] = row->token;
        if (row->is_output)
            e->ids[e->n++] = toy_choose(w->prompts[find_prompt(w, row->sequence)].stream,
                                        cache->tokens, cache->n);
    }
    CHECK(w, e->n == a->n_out);
    check_pages(w);
}

static void open_cache(world *w, const td_action *a)
{
    toy_cache *cache = &w->target[a->slot], before = *cache;
    CHECK(w, w->params.can_share || !cache->is_open);
    *cache = (toy_cache){.is_open = true, .sequence = a->sequence};
    if (a->length == 0)
        return;
    const toy_cache *from = a->from_slot == a->slot ? &before : &w->target[a->from_slot];
    CHECK(w, w->params.can_share && from->is_open && a->length <= from->n_committed);
    CHECK(w, a->length % w->params.prefill_rows == 0 && a->length % PAGE_POSITIONS == 0);
    memcpy(cache->tokens, from->tokens, a->length * sizeof *cache->tokens);
    cache->n = cache->n_committed = a->length;
    w->n_shared += a->length;
}

static void control(world *w, const td_action *a)
{
    if (a->kind == TD_ACT_CANCEL) { /* never a prompt's chunk: others may have taken it over */
        for (uint32_t i = 0; i < w->n_events; ++i)
            CHECK(w, w->events[i].batch != a->batch || !w->events[i].is_prefill);
        return;
    }
    CHECK(w, a->slot < w->params.n_slots);
    toy_cache *cache = &w->target[a->slot];
    if (a->kind == TD_ACT_OPEN) {
        open_cache(w, a);
        return;
    }
    CHECK(w, cache->is_open);
    if (a->kind == TD_ACT_CLOSE) { /* a slot's cache may outlive its sequence, never two */
        cache->is_open = false;
        return;
    }
    CHECK(w, cache->sequence == a->sequence);
    prompt *p = &w->prompts[find_prompt(w, a->sequence)];
    if (a->kind == TD_ACT_TRUNCATE) {
        CHECK(w, a->length >= cache->n_committed && a->length < cache->n);
        cache->n = a->length;
    } else {
        CHECK(w, a->length >= cache->n_committed && a->length <= cache->n);
        for (uint32_t i = cache->n_committed; i < a->length; ++i)
            CHECK(w, cache->tokens[i] == expected_at(p, i));
        cache->n_committed = a->length;
    }
}

/* ---- the drafter ---- */

static void push_garbage(world *w, const td_action *a)
{
    event *e = push_event(w, random_below(w, 400));
    e->sequence = random_chance(w, 0.7) ? a->sequence : (uint32_t)random_u64(w);
    e->epoch = a->epoch + random_below(w, 5) - 2;
    e->position = a->position + random_below(w, 5) - 2;
    e->n = random_below(w, TD_DRAFT_MAX + 20);
    for (uint32_t i = 0; i < e->n; ++i)
        e->ids[i] = random_chance(w, 0.9) ? random_below(w, N_VOCAB) : (uint32_t)random_u64(w);
}

static uint64_t answer_delay(world *w, drafter_kind kind, uint32_t k)
{
    if (kind == DRAFTER_LATE)
        return 200 + random_below(w, 600);
    if (kind == DRAFTER_REORDER)
        return random_chance(w, 0.1) ? 5000 : random_below(w, 400);
    return kind == DRAFTER_PROMPT ? 5 * k : random_below(w, 100);
}

static void propose(world *w, const td_action *a)
{
    uint32_t i_prompt = find_prompt(w, a->sequence);
    const prompt *p = &w->prompts[i_prompt];
    toy_cache *memory = &w->drafter[i_prompt];
    CHECK(w, memory->is_open && memory->n_committed <= a->position);
    CHECK(w, a->k >= 1 && a->k <= td_min_u32(2 * w->params.draft_max + 1, TD_DRAFT_MAX));
    CHECK(w, a->position + a->k < w->params.n_ctx);
    CHECK(w, a->position + a->k <= memory->n_committed + TD_AHEAD_MAX);
    drafter_kind kind = w->params.drafter;
    if (kind == DRAFTER_CHAOS)
        kind = 1 + random_below(w, DRAFTER_CHAOS - 1);
    ++w->n_answers;
    if (kind == DRAFTER_SILENT && (w->is_silent || random_chance(w, 0.1))) {
        w->is_silent = w->params.drafter == DRAFTER_SILENT;
        return;
    }
    event answer = {.sequence = a->sequence, .epoch = a->epoch, .position = a->position, .n = a->k};
    if (a->position > memory->n)
        answer.n = 0;
    memory->n = td_min_u32(memory->n, a->position);
    if (w->params.drafter == DRAFTER_CHAOS && random_chance(w, 0.1))
        answer.n = random_below(w, a->k + 1); /* fewer will do, none too */
    for (uint32_t i = 0; i < answer.n; ++i) {
        uint32_t right = expected_at(p, a->position + i);
        answer.ids[i] = random_chance(w, w->params.agreement) ? right : (right + 1) % N_VOCAB;
        memory->tokens[memory->n++] = answer.ids[i];
    }
    uint32_t n_copies = kind == DRAFTER_DUPLICATE ? 2 + random_below(w, 2) : 1;
    for (uint32_t i = 0; i < n_copies; ++i) {
        event *e = push_event(w, answer_delay(w, kind, a->k) + i * random_below(w, 3000));
        answer.at_us = e->at_us;
        answer.order = e->order;
        *e = answer;
    }
    while (kind == DRAFTER_GARBAGE && random_chance(w, 0.6))
        push_garbage(w, a);
}

/* The head knows what the target's cache holds, all but the pending token: it may only be asked
 * about just that. Now and then it has nothing to say. */
static void propose_by_head(world *w, const td_action *a)
{
    const prompt *p = &w->prompts[find_prompt(w, a->sequence)];
    const toy_cache *cache = &w->target[a->slot];
    CHECK(w, w->params.has_head && cache->is_open && cache->sequence == a->sequence);
    CHECK(w, a->position == cache->n + 1 && a->position == p->n_prompt + p->n_seen);
    CHECK(w, a->k >= 1 && a->k <= w->params.draft_max);
    CHECK(w, a->position + a->k < w->params.n_ctx);
    ++w->n_heads;
    event *e = push_event(w, random_chance(w, 0.02) ? 3000 : 5 + random_below(w, 50));
    e->is_of_head = true;
    e->sequence = a->sequence;
    e->epoch = a->epoch;
    e->position = a->position;
    e->n = random_chance(w, 0.02) ? 0 : a->k;
    for (uint32_t i = 0; i < e->n; ++i) {
        uint32_t right = expected_at(p, a->position + i);
        e->ids[i] = random_chance(w, w->params.agreement) ? right : (right + 1) % N_VOCAB;
    }
}

static void remember(world *w, const td_action *a)
{
    uint32_t i_prompt = find_prompt(w, a->sequence);
    toy_cache *memory = &w->drafter[i_prompt];
    CHECK(w, w->is_joined);
    if (a->kind == TD_ACT_DRAFT_OPEN) {
        CHECK(w, !memory->is_open);
        memory->is_open = true;
        memory->n = memory->n_committed = 0;
        return;
    }
    CHECK(w, memory->is_open);
    if (a->kind == TD_ACT_DRAFT_CLOSE) {
        memory->is_open = false;
        return;
    }
    CHECK(w, a->n_tokens >= 1 && a->n_tokens <= TD_FEED_TOKENS_MAX);
    CHECK(w, a->position == memory->n_committed);
    const prompt *p = &w->prompts[i_prompt];
    bool is_guess = a->position == p->n_prompt + p->n_seen; /* the head's: one, all else is told */
    CHECK(w, !is_guess || (w->params.has_head && a->n_tokens == 1));
    for (uint32_t i = 0; i < a->n_tokens; ++i) {
        uint32_t at = a->position + i;
        CHECK(w, is_guess || a->tokens[i] == expected_at(p, at));
        if (at < memory->n && memory->tokens[at] != a->tokens[i])
            memory->n = at; /* its own text was another */
        memory->tokens[at] = a->tokens[i];
        memory->n = td_max_u32(memory->n, at + 1);
    }
    memory->n_committed += is_guess ? 0 : a->n_tokens;
    w->n_told += is_guess;
}

static void toggle_drafter(world *w)
{
    bool is_lost = w->is_joined && random_chance(w, 0.7); /* else it restarts unnoticed */
    w->is_joined = !is_lost;
    for (uint32_t i = 0; i < N_PROMPTS_MAX; ++i)
        w->drafter[i].is_open = false;
    td_coordinator_on_drafter(w->c, w->is_joined, w->now_us);
    w->next_kill_us = w->now_us + 1 + random_below(w, w->is_joined ? 4000 : 1000);
}

/* ---- the run ---- */

static void check_finish(world *w, const td_action *a)
{
    prompt *p = &w->prompts[find_prompt(w, a->sequence)];
    const td_sequence_info *info = td_coordinator_get_info(w->c, a->sequence);
    CHECK(w, info && !p->is_done);
    CHECK(w, w->params.can_share || !w->target[a->slot].is_open);
    CHECK(w, info->reason == a->reason && info->n_tokens == p->n_seen);
    CHECK(w, info->text[info->n_text] == 0 && info->n_prompt == p->n_prompt);
    if (a->reason == TD_REASON_CANCELLED) {
        CHECK(w, p->is_cancelled && info->n_tokens <= p->n_tokens);
    } else {
        CHECK(w, info->reason == p->reason && info->n_tokens == p->n_tokens);
        CHECK(w, info->n_text == p->n_text && !memcmp(info->text, p->text, p->n_text));
        CHECK(w, info->added_us <= info->first_token_us);
        CHECK(w, info->first_token_us <= info->finished_us && info->finished_us <= w->now_us);
    }
    CHECK(w, !memcmp(info->tokens, p->tokens, info->n_tokens * sizeof(*p->tokens)));
    CHECK(w, info->n_accepted <= info->n_drafted && info->n_accepted <= info->n_tokens);
    CHECK(w, info->n_rounds <= info->n_tokens);
    p->info = *info;
    p->is_done = true;
    td_coordinator_remove(w->c, a->sequence);
    CHECK(w, !td_coordinator_get_info(w->c, a->sequence));
}

static void check_tokens(world *w, const td_action *a)
{
    prompt *p = &w->prompts[find_prompt(w, a->sequence)];
    CHECK(w, a->n_tokens >= 1 && a->position == p->n_prompt + p->n_seen);
    CHECK(w, p->n_seen + a->n_tokens <= p->n_tokens);
    for (uint32_t i = 0; i < a->n_tokens; ++i)
        CHECK(w, a->tokens[i] == p->tokens[p->n_seen + i]);
    p->n_seen += a->n_tokens;
}

static void perform(world *w, const td_action *a)
{
    switch (a->kind) {
    case TD_ACT_FORWARD:
        forward(w, a);
        break;
    case TD_ACT_DRAFT_PROPOSE:
        propose(w, a);
        break;
    case TD_ACT_DRAFT_OPEN:
    case TD_ACT_DRAFT_FEED:
    case TD_ACT_DRAFT_CLOSE:
        remember(w, a);
        break;
    case TD_ACT_HEAD_PROPOSE:
        propose_by_head(w, a);
        break;
    case TD_ACT_TOKENS:
        check_tokens(w, a);
        break;
    case TD_ACT_FINISH:
        check_finish(w, a);
        break;
    default:
        control(w, a);
        break;
    }
}

static void drain(world *w)
{
    td_action action;
    while (td_coordinator_next(w->c, &action)) {
        CHECK(w, ++w->n_steps < 5000000);
        perform(w, &action);
    }
    CHECK(w, td_alloc_count() == w->n_allocated);
    /* All is said: the target's caches are the committed tokens but the pending one, and rows in
     * flight after them. */
    for (uint32_t i = 0; w->n_in_flight == 0 && i < w->params.n_slots; ++i)
        CHECK(w, !w->target[i].is_open || w->target[i].n == w->target[i].n_committed);
}

static void add_prompts(world *w)
{
    for (uint32_t i = 0; i < w->params.n_prompts && td_coordinator_n_free(w->c) > 0; ++i) {
        prompt *p = &w->prompts[i];
        if (p->is_added)
            continue;
        td_sequence_params params = {.prompt = p->prompt,
                                     .n_prompt = p->n_prompt,
                                     .n_predict = p->n_predict,
                                     .ignore_end = p->ignore_end,
                                     .n_stops = p->n_stops};
        for (uint32_t j = 0; j < p->n_stops; ++j)
            params.stops[j] = p->stops[j];
        td_err err = {0};
        if (!td_coordinator_add(w->c, &params, w->now_us, &p->sequence, &err))
            fail_msg("%s", err.message);
        p->is_added = true;
        w->n_allocated = td_alloc_count();
    }
}

static void deliver(world *w, uint32_t i_event)
{
    event e = w->events[i_event];
    w->events[i_event] = w->events[--w->n_events];
    w->now_us = e.at_us > w->now_us ? e.at_us : w->now_us;
    if (e.is_verified) {
        --w->n_in_flight;
        td_coordinator_on_verified(
            w->c, e.batch, e.ids,
            &(td_batch_times){.sum_us = 100 + 10 * e.n, .max_us = 100 + 10 * e.n}, w->now_us);
    } else if (e.is_of_head) {
        td_coordinator_on_head(w->c, e.sequence, e.epoch, e.position, e.ids, e.n, 5 * e.n,
                               w->now_us);
    } else {
        td_coordinator_on_draft(w->c, e.sequence, e.epoch, e.position, e.ids, e.n, 5 * e.n,
                                w->now_us);
    }
}

static void cancel_one(world *w)
{
    prompt *p = &w->prompts[random_below(w, w->params.n_prompts)];
    if (!p->is_added || p->is_done)
        return;
    p->is_cancelled = true;
    td_coordinator_cancel(w->c, p->sequence, w->now_us);
}

/* All that it held and all that was under way is gone. */
static void lose_target(world *w)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < w->n_events; ++i)
        if (!w->events[i].is_verified && !w->events[i].is_of_head)
            w->events[n++] = w->events[i];
    w->n_events = n;
    w->n_in_flight = 0;
    for (uint32_t i = 0; i < N_SLOTS_MAX; ++i)
        w->target[i] = (toy_cache){0};
    td_coordinator_on_target_lost(w->c, w->now_us);
}

/* The next thing that happens: an event, a deadline, or the drafter's end. */
static void step(world *w)
{
    uint32_t first = first_event(w);
    uint64_t at_us = first == UINT32_MAX ? UINT64_MAX : w->events[first].at_us;
    uint64_t deadline_us = td_coordinator_deadline_us(w->c);
    bool has_kills = w->params.drafter == DRAFTER_KILLED || w->params.drafter == DRAFTER_CHAOS;
    CHECK(w, at_us != UINT64_MAX || deadline_us != UINT64_MAX); /* else nothing will ever happen */
    if (has_kills && w->next_kill_us <= at_us && w->next_kill_us <= deadline_us) {
        w->now_us = w->next_kill_us > w->now_us ? w->next_kill_us : w->now_us;
        toggle_drafter(w);
    } else if (deadline_us < at_us) {
        w->now_us = deadline_us > w->now_us ? deadline_us : w->now_us;
        td_coordinator_on_tick(w->c, w->now_us);
        CHECK(w, td_coordinator_deadline_us(w->c) > w->now_us);
    } else {
        deliver(w, first);
    }
    if (w->params.has_cancels && random_chance(w, 0.01))
        cancel_one(w);
    if (w->params.has_losses && random_chance(w, 0.02))
        lose_target(w);
}

/* Runs all prompts to their end under all checks. */
static void world_run(world *w, const world_params *params)
{
    memset(w, 0, sizeof(*w));
    w->params = *params;
    w->params.n_stages = td_max_u32(params->n_stages, 1);
    w->random = mix(params->seed + 1) + (uint64_t)params->drafter;
    for (uint32_t i = 0; i < params->n_prompts; ++i)
        make_prompt(w, &w->prompts[i]);
    td_err err = {0};
    w->c =
        td_coordinator_create(&(td_coordinator_params){.n_slots = params->n_slots,
                                                       .n_ctx = params->n_ctx,
                                                       .draft_max = params->draft_max,
                                                       .is_draft_fixed = !params->is_free,
                                                       .is_ahead = params->is_ahead,
                                                       .has_head = params->has_head,
                                                       .n_batches_max = w->params.n_stages,
                                                       .can_share = params->can_share,
                                                       .n_pages = params->n_pages,
                                                       .page_positions = PAGE_POSITIONS,
                                                       .verify_rows_max = params->verify_rows_max,
                                                       .prefill_rows = params->prefill_rows,
                                                       .draft_deadline_us = 500,
                                                       .n_vocab = N_VOCAB,
                                                       .token_bytes = toy_bytes,
                                                       .token_is_end = toy_is_end},
                              &err);
    if (!w->c)
        fail_msg("%s", err.message);
    w->is_joined = params->drafter != DRAFTER_NONE;
    if (w->is_joined)
        td_coordinator_on_drafter(w->c, true, 0);
    w->next_kill_us = random_below(w, 3000);
    for (;;) {
        add_prompts(w);
        drain(w);
        if (td_coordinator_is_idle(w->c) && td_coordinator_n_free(w->c) == params->n_slots) {
            uint32_t n_done = 0;
            for (uint32_t i = 0; i < params->n_prompts; ++i)
                n_done += w->prompts[i].is_done;
            if (n_done == params->n_prompts)
                break;
            continue; /* room for those not added yet */
        }
        step(w);
    }
    w->stats = *td_coordinator_get_stats(w->c);
    td_coordinator_destroy(&w->c);
    CHECK(w, w->c == NULL);
}

#endif
