/* What the simulated protocol (sim_protocol.h) consists of: its state, the stages of the target,
 * the drafter behind its end of the session. */
#ifndef TD_TESTS_SIM_PARTS_H
#define TD_TESTS_SIM_PARTS_H

#include "sim_text.h"

#include "base/mem.h"
#include "draft/ngram.h"
#include "draft/requests.h"
#include "transport/peer.h"

#include <stdio.h>

#define N_PROMPTS_MAX  12u
#define N_SLOTS_MAX    8u
#define N_STAGES_MAX   4u
#define N_JOBS_MAX     256u
#define PAGE_POSITIONS 4u
#define AHEAD_MAX      128u /* tokens of the drafter's own text */
#define REJOIN_US      3000u
#define N_LOSSES_MAX                                                                               \
    20u /* of the target: those that come before the text is there again must end */

typedef struct {
    uint64_t seed;
    uint32_t n_prompts, n_slots, n_stages, n_ctx, draft_max, verify_rows_max, prefill_rows;
    uint32_t n_prompt_max, n_predict_max, n_prefix, n_pages;
    bool is_exact, ignore_end, has_stops; /* exact: the lengths are the maxima */
    bool is_free, is_ahead, is_elsewhere, can_share, has_lookup, has_drafter;
    double agreement; /* of each position, independently */
    bool has_head;    /* of the target, beside the drafter: it agrees and takes a step as told */
    double head_agreement;
    uint64_t head_us;
    /* Times: of a stage for a micro-batch, of a draft step; what a round waits for a draft. */
    uint64_t stage_us, row_us, draft_us, deadline_us;
    /* What a row takes that the drafter has to read first; and how many times as long stage and
     * drafter take while both are at work (0 is 1). */
    double read_us, contention;
    bool is_one_unit, is_noisy; /* noisy: times vary, one in twenty is three times as long */
    /* Faults: of the link; per thousand stage jobs and draft steps that take twenty times as long;
     * mean time between the drafter's deaths, its silences, the link's cuts, the target's losses
     * and prompts' cancellations (0: none); per thousand answers joined by a forged one. */
    td_link_faults link;
    uint32_t slow_permille, forged_permille;
    uint64_t death_us, silence_us, cut_us, loss_us, cancel_us;
    uint64_t hang_at_us, hang_us; /* a silence of the drafter at a given time, for so long */
    uint32_t ping_us;             /* 0: short */
} world_params;

/* A cache of tokens: of a stage by slot, of the drafter by prompt (n_committed: what was fed). */
typedef struct {
    bool is_open, has_hole;
    uint32_t sequence, n, n_committed;
    uint32_t n_read; /* of the drafter's: what its model has seen of it */
    uint32_t told_other;
    uint32_t *tokens; /* [N_CTX_MAX] */
} toy_cache;

/* Of the target: what travels from stage to stage. */
typedef struct {
    bool is_used;
    td_action action;
    bool is_cancelled, is_skipped;
    td_row rows[TD_BATCH_ROWS_MAX]; /* those that are not dead */
    uint32_t i_out[TD_BATCH_ROWS_MAX], chosen[TD_BATCH_ROWS_MAX];
    uint32_t n_rows;
    td_batch_times times;
} job;

typedef struct {
    uint16_t queue[N_JOBS_MAX];
    uint32_t n_queued;
    job *running;
    uint64_t start_us, end_us;
    toy_cache slots[N_SLOTS_MAX];
    uint64_t busy_us;
} stage;

typedef struct {
    world_params params;
    uint64_t random;
    td_clock clock;
    td_coordinator *c;
    td_ngram *ngram;
    prompt prompts[N_PROMPTS_MAX];
    stage stages[N_STAGES_MAX];
    job jobs[N_JOBS_MAX];
    uint32_t n_in_flight;

    td_link *link[2]; /* coordinator's end, worker's */
    td_peer *client, *worker;
    td_requests *requests;
    td_work work;
    bool is_working, is_joined;
    uint64_t work_end_us, step_us, progress, rejoin_us;
    uint64_t silence_end_us, cut_end_us; /* 0: not now */
    toy_cache memory[N_PROMPTS_MAX];
    uint64_t next_death_us, next_silence_us, next_cut_us, next_loss_us, next_cancel_us;
    struct {
        uint32_t n;
        struct {
            uint32_t epoch, position;
            bool goes_on;
        } at[TD_ASKS_MAX];
    } asks[N_PROMPTS_MAX]; /* proposals of this session without an answer, oldest first */

    uint64_t n_steps;
    uint32_t n_joins, n_deaths, n_answers, n_going_on,
        n_cut_short;            /* what was tried, to see that it was */
    uint32_t n_heads, n_told;   /* proposals of the head, guesses of it that the drafter is told */
    td_coordinator_stats stats; /* at the end */
} world;

#define CHECK(w, condition)                                                                        \
    do {                                                                                           \
        if (!(condition))                                                                          \
            fail_msg("%s:%d: %s\nreplay: scripts/simulate.sh 1 %llu", __FILE__, __LINE__,          \
                     #condition, (unsigned long long)(w)->params.seed);                            \
    } while (0)

/* The coordinator and the requests allocate nothing once a sequence has been added. */
#define WITHOUT_ALLOCATING(w, call)                                                                \
    do {                                                                                           \
        uint64_t n_before_ = td_alloc_count();                                                     \
        call;                                                                                      \
        CHECK(w, td_alloc_count() == n_before_);                                                   \
    } while (0)

static uint64_t random_u64(world *w) { return mix(w->random += 0x9e3779b97f4a7c15u); }

static uint32_t random_below(world *w, uint32_t n) { return (uint32_t)(random_u64(w) % n); }

static uint64_t now(const world *w) { return td_clock_now_us(&w->clock); }

/* When something comes next that comes every mean_us. */
static uint64_t random_time(world *w, uint64_t mean_us)
{
    return mean_us == 0 ? UINT64_MAX : now(w) + 1 + random_u64(w) % (2 * mean_us);
}

static uint64_t random_duration(world *w, uint64_t us)
{
    if (w->params.is_noisy)
        us = us * (80 + random_below(w, 41)) / 100 * (random_below(w, 20) == 0 ? 3 : 1);
    return us * (random_below(w, 1000) < w->params.slow_permille ? 20 : 1);
}

static uint32_t find_prompt(const world *w, uint32_t sequence)
{
    for (uint32_t i = 0; i < w->params.n_prompts; ++i)
        if (w->prompts[i].is_added && w->prompts[i].sequence == sequence)
            return i;
    CHECK(w, !"the sequence was added");
    return 0;
}

static void must(bool is_ok, const td_err *err)
{
    if (!is_ok)
        fail_msg("%s", err->message);
}

/* Stage and drafter share a core or the memory: what overlaps takes both of them longer. */
static void contend(world *w, uint64_t *a_end_us, uint64_t *b_end_us)
{
    if (!a_end_us || !b_end_us || w->params.contention <= 1)
        return;
    uint64_t end_us = *a_end_us < *b_end_us ? *a_end_us : *b_end_us;
    uint64_t us = (uint64_t)((double)(end_us - now(w)) * (w->params.contention - 1));
    *a_end_us += us;
    *b_end_us += us;
}

/* ---- the target ---- */

static void push_job(world *w, uint32_t i_stage, job *j)
{
    stage *s = &w->stages[i_stage];
    CHECK(w, s->n_queued < N_JOBS_MAX);
    s->queue[s->n_queued++] = (uint16_t)(j - w->jobs);
}

static void give_to_target(world *w, const td_action *a)
{
    job *j = w->jobs;
    if (a->kind == TD_ACT_CANCEL) { /* overtakes the queue */
        uint32_t n_found = 0;
        for (uint32_t i = 0; i < N_JOBS_MAX; ++i)
            if (w->jobs[i].is_used && w->jobs[i].action.kind == TD_ACT_FORWARD &&
                w->jobs[i].action.batch == a->batch) {
                CHECK(w, !w->jobs[i].is_cancelled);
                w->jobs[i].is_cancelled = true;
                ++n_found;
            }
        CHECK(w, n_found == 1);
        return;
    }
    while (j->is_used)
        CHECK(w, ++j < w->jobs + N_JOBS_MAX); /* bounded, whatever happens */
    *j = (job){.is_used = true, .action = *a, .n_rows = a->n_rows};
    if (a->kind == TD_ACT_FORWARD) {
        CHECK(w, ++w->n_in_flight <= w->params.n_stages);
        CHECK(w, a->n_rows >= 1 && a->n_rows <= (a->is_prefill ? w->params.prefill_rows
                                                               : w->params.verify_rows_max));
        uint32_t n_out = 0;
        for (uint32_t i = 0; i < a->n_rows; ++i) {
            CHECK(w, a->rows[i].slot < w->params.n_slots && a->rows[i].token < N_VOCAB);
            j->rows[i] = a->rows[i];
            j->i_out[i] = n_out;
            n_out += a->rows[i].is_output;
        }
        CHECK(w, n_out == a->n_out);
    }
    push_job(w, 0, j);
}

/* Rows behind a hole are dead. */
static void take_out_dead(world *w, stage *s, job *j)
{
    uint32_t n = 0;
    j->is_skipped = j->is_skipped || j->is_cancelled;
    for (uint32_t i = 0; i < j->n_rows; ++i) {
        toy_cache *cache = &s->slots[j->rows[i].slot];
        cache->has_hole = cache->has_hole || j->is_skipped;
        if (cache->has_hole)
            continue;
        CHECK(w, cache->is_open && cache->sequence == j->rows[i].sequence);
        j->rows[n] = j->rows[i];
        j->i_out[n++] = j->i_out[i];
    }
    if (!j->is_skipped)
        j->n_rows = n;
}

static void write_rows(world *w, stage *s, job *j)
{
    bool is_last = s == &w->stages[w->params.n_stages - 1];
    for (uint32_t i = 0; i < j->n_rows; ++i) {
        const td_row *row = &j->rows[i];
        toy_cache *cache = &s->slots[row->slot];
        const prompt *p = &w->prompts[find_prompt(w, row->sequence)];
        CHECK(w, row->position == cache->n && cache->n < w->params.n_ctx);
        CHECK(w, j->action.is_prefill == (row->position < p->n_prompt)); /* else other bits */
        cache->tokens[cache->n++] = row->token;
        if (is_last && row->is_output)
            j->chosen[j->i_out[i]] = toy_choose(p->stream, cache->tokens, cache->n);
    }
    uint32_t n_pages = 0;
    for (uint32_t i = 0; i < w->params.n_slots; ++i)
        n_pages += s->slots[i].is_open ? td_div_up(s->slots[i].n, PAGE_POSITIONS) : 0;
    CHECK(w, w->params.n_pages == 0 || n_pages <= w->params.n_pages);
}

static void open_cache(world *w, stage *s, const td_action *a)
{
    toy_cache *cache = &s->slots[a->slot], *from = &s->slots[a->from_slot];
    CHECK(w, w->params.can_share || !cache->is_open);
    if (a->length > 0) {
        CHECK(w, w->params.can_share && from->is_open && a->length <= from->n_committed);
        CHECK(w, a->length % w->params.prefill_rows == 0 && a->length % PAGE_POSITIONS == 0);
        memmove(cache->tokens, from->tokens, a->length * sizeof *cache->tokens);
    }
    cache->is_open = true;
    cache->has_hole = false;
    cache->sequence = a->sequence;
    cache->n = cache->n_committed = a->length;
}

/* The cache holds the right tokens, whatever was rolled back; what is committed is only added to
 * and was looked at before. */
static void check_cache(const world *w, const toy_cache *cache, uint32_t length)
{
    const prompt *p = &w->prompts[find_prompt(w, cache->sequence)];
    CHECK(w, length >= cache->n_committed && length <= cache->n);
    for (uint32_t i = cache->n_committed; i < length; ++i)
        CHECK(w, cache->tokens[i] == expected_at(p, i));
}

static void control(world *w, stage *s, const td_action *a)
{
    toy_cache *cache = &s->slots[a->slot];
    CHECK(w, a->slot < w->params.n_slots);
    if (a->kind == TD_ACT_OPEN) {
        open_cache(w, s, a);
        return;
    }
    CHECK(w, cache->is_open);
    if (a->kind == TD_ACT_CLOSE) {
        cache->is_open = cache->has_hole = false;
        return;
    }
    CHECK(w, cache->sequence == a->sequence);
    check_cache(w, cache, a->length);
    if (a->kind == TD_ACT_TRUNCATE) {
        cache->n = a->length;
        cache->has_hole = false;
    } else {
        CHECK(w, a->kind == TD_ACT_COMMIT);
        cache->n_committed = a->length;
    }
}

/* All that the stages held and all that was under way is gone. */
static void lose_target(world *w)
{
    memset(w->jobs, 0, sizeof w->jobs);
    w->n_in_flight = 0;
    for (uint32_t i = 0; i < N_STAGES_MAX; ++i) {
        w->stages[i].running = NULL;
        w->stages[i].n_queued = 0;
        for (uint32_t k = 0; k < N_SLOTS_MAX; ++k)
            w->stages[i].slots[k].is_open = false;
    }
    WITHOUT_ALLOCATING(w, td_coordinator_on_target_lost(w->c, now(w)));
}

/* Is this position guessed right by the head, or by the drafter, if all before it is right? */
static bool agrees_at(const world *w, uint32_t i_prompt, uint32_t position, bool is_head)
{
    uint64_t h = mix(w->params.seed * 1000 + i_prompt * 7 + (is_head ? 4 : 3)) + position;
    double agreement = is_head ? w->params.head_agreement : w->params.agreement;
    return (double)(mix(h) >> 11) < agreement * 9007199254740992.0;
}

/* The head knows what is in the last stage's cache, to which it goes behind all that came before:
 * so it is asked about just that and the pending token. Now and then it has nothing to say. */
static void answer_by_head(world *w, const td_action *a)
{
    uint32_t ids[TD_DRAFT_MAX], i_prompt = find_prompt(w, a->sequence);
    const toy_cache *cache = &w->stages[w->params.n_stages - 1].slots[a->slot];
    const prompt *p = &w->prompts[i_prompt];
    CHECK(w, cache->is_open && !cache->has_hole && cache->sequence == a->sequence);
    CHECK(w, a->position == cache->n + 1 && a->k >= 1 && a->k <= w->params.draft_max);
    bool is_right = true, is_mute = random_below(w, 1000) < w->params.slow_permille;
    for (uint32_t i = 0; i < a->k; ++i) {
        is_right = is_right && agrees_at(w, i_prompt, a->position + i, true);
        ids[i] = (expected_at(p, a->position + i) + !is_right) % N_VOCAB;
    }
    ++w->n_heads;
    WITHOUT_ALLOCATING(w, td_coordinator_on_head(w->c, a->sequence, a->epoch, a->position, ids,
                                                 is_mute ? 0 : a->k, a->k * w->params.head_us,
                                                 now(w)));
}

/* A stage has done with a job. */
static void pass_on(world *w, uint32_t i_stage, job *j)
{
    if (i_stage + 1 < w->params.n_stages) {
        push_job(w, i_stage + 1, j);
        return;
    }
    j->is_used = false;
    if (j->action.kind == TD_ACT_HEAD_PROPOSE &&
        !w->prompts[find_prompt(w, j->action.sequence)].is_done)
        answer_by_head(w, &j->action);
    if (j->action.kind != TD_ACT_FORWARD)
        return;
    --w->n_in_flight;
    WITHOUT_ALLOCATING(
        w, td_coordinator_on_verified(w->c, j->action.batch, j->chosen, &j->times, now(w)));
    if (random_below(w, 1000) < w->params.forged_permille) /* and an answer to nothing */
        td_coordinator_on_verified(w->c, j->action.batch, j->chosen, NULL, now(w));
}

static void step_stage(world *w, uint32_t i_stage)
{
    stage *s = &w->stages[i_stage];
    if (s->running && s->end_us <= now(w)) {
        job *j = s->running;
        if (j->action.kind == TD_ACT_FORWARD)
            write_rows(w, s, j);
        uint64_t us = s->end_us - s->start_us;
        j->times.sum_us += us;
        j->times.max_us = us > j->times.max_us ? us : j->times.max_us;
        s->busy_us += us;
        s->running = NULL;
        pass_on(w, i_stage, j);
    }
    while (!s->running && s->n_queued > 0) {
        job *j = &w->jobs[s->queue[0]];
        memmove(s->queue, s->queue + 1, --s->n_queued * sizeof *s->queue);
        bool is_last = i_stage + 1 == w->params.n_stages;
        bool is_heads = j->action.kind == TD_ACT_HEAD_PROPOSE;
        if (is_heads && is_last) {
            s->running = j;
            s->start_us = now(w);
            s->end_us = now(w) + random_duration(w, j->action.k * w->params.head_us);
            break;
        }
        if (j->action.kind != TD_ACT_FORWARD) {
            if (!is_heads)
                control(w, s, &j->action);
            pass_on(w, i_stage, j);
            continue;
        }
        take_out_dead(w, s, j);
        if (j->is_skipped || j->n_rows == 0) {
            ++w->n_cut_short;
            pass_on(w, i_stage, j);
            continue;
        }
        s->running = j;
        s->start_us = now(w);
        s->end_us = now(w) + random_duration(w, w->params.stage_us + w->params.row_us * j->n_rows);
        contend(w, w->is_working && w->step_us > 0 ? &w->work_end_us : NULL, &s->end_us);
    }
}

/* ---- the drafter ---- */

/* Does the drafter guess this position right, if all before it is right? */
static bool guesses_right(const world *w, uint32_t i_prompt, uint32_t position)
{
    return agrees_at(w, i_prompt, position, false);
}

static uint32_t guess(const world *w, uint32_t i_prompt)
{
    const toy_cache *m = &w->memory[i_prompt];
    const prompt *p = &w->prompts[i_prompt];
    bool is_right = guesses_right(w, i_prompt, m->n);
    uint32_t n_told = w->params.has_head && m->n_committed > 0; /* the last may be the head's */
    for (uint32_t i = m->n_committed - n_told; i < m->n && is_right; ++i)
        is_right = m->tokens[i] == expected_at(p, i);
    return (expected_at(p, m->n) + !is_right) % N_VOCAB;
}

static void take_feed(world *w, const td_wire_feed *f)
{
    uint32_t i_prompt = find_prompt(w, f->sequence);
    toy_cache *m = &w->memory[i_prompt];
    /* What it was told last may have been a guess of the head, that is told otherwise now. */
    bool is_told = w->params.has_head && f->position + 1 == m->n_committed;
    CHECK(w, m->is_open && (f->position == m->n_committed || is_told));
    for (uint32_t i = 0; i < f->n; ++i) {
        uint32_t at = f->position + i;
        CHECK(w, w->params.has_head || f->ids[i] == expected_at(&w->prompts[i_prompt], at));
        if (at < m->n && m->tokens[at] != f->ids[i]) {
            m->n = at; /* its own text was another */
            m->told_other = td_min_u32(m->told_other, at);
        }
        m->n_read = td_min_u32(m->n_read, m->n);
        m->tokens[at] = f->ids[i];
        m->n = td_max_u32(m->n, at + 1);
    }
    m->n_committed = f->position + f->n;
}

static void take_message(world *w, const td_wire_msg *msg)
{
    if (msg->type == TD_WIRE_FEED) {
        take_feed(w, &msg->feed);
        return;
    }
    bool is_open = msg->type == TD_WIRE_OPEN;
    toy_cache *m = &w->memory[find_prompt(w, is_open ? msg->open.sequence : msg->close.sequence)];
    CHECK(w, is_open || m->is_open);
    m->is_open = is_open;
    m->n = m->n_committed = m->n_read = 0;
    m->told_other = UINT32_MAX;
}

/* What the tail has already. */
static void begin_proposal(world *w, td_proposal *p)
{
    toy_cache *m = &w->memory[find_prompt(w, p->sequence)];
    CHECK(w, m->is_open && p->k >= 1);
    CHECK(w, p->position + p->k < w->params.n_ctx);
    CHECK(w, p->position + p->k <= m->n_committed + TD_AHEAD_MAX);
    if (p->goes_on)
        td_proposal_resume(p, m->n, m->n_committed, m->told_other);
    m->told_other = UINT32_MAX;
    if ((p->position < m->n_committed && !p->goes_on) || p->position > m->n) {
        p->is_done = true;
        return;
    }
    while (p->n < p->k && p->position + p->n < m->n) {
        p->ids[p->n] = m->tokens[p->position + p->n];
        ++p->n;
    }
    p->is_done = p->n == p->k;
}

static void step_proposal(world *w, td_proposal *p, uint32_t n_jobs)
{
    uint32_t i_prompt = find_prompt(w, p->sequence);
    toy_cache *m = &w->memory[i_prompt];
    CHECK(w, !p->is_done && p->position + p->n == m->n);
    if (m->n - m->n_committed == AHEAD_MAX) {
        p->is_done = true;
        return;
    }
    p->ids[p->n++] = m->tokens[m->n] = guess(w, i_prompt);
    m->n_read = m->n++;
    p->busy_us += (uint32_t)(w->step_us / n_jobs);
    p->is_done = p->n == p->k;
}

static void finish_work(world *w)
{
    const td_work *work = &w->work;
    switch (work->kind) {
    case TD_WORK_RESET:
        for (uint32_t i = 0; i < N_PROMPTS_MAX; ++i)
            w->memory[i].is_open = false;
        break;
    case TD_WORK_MESSAGE:
        take_message(w, work->message);
        break;
    case TD_WORK_BEGIN:
        begin_proposal(w, work->jobs[0]);
        break;
    case TD_WORK_STEP:
        for (uint32_t i = 0; i < work->n_jobs; ++i)
            step_proposal(w, work->jobs[i], work->n_jobs);
        break;
    }
    WITHOUT_ALLOCATING(w, td_requests_done(w->requests));
    ++w->progress;
    w->is_working = false;
}

/* A step, and what has to be read for it. */
static uint64_t step_duration(world *w)
{
    double n_unread = 0;
    for (uint32_t i = 0; i < w->work.n_jobs; ++i) {
        const toy_cache *m = &w->memory[find_prompt(w, w->work.jobs[i]->sequence)];
        n_unread += m->n - m->n_read - 1;
    }
    return random_duration(w, w->params.draft_us) + (uint64_t)(n_unread * w->params.read_us);
}

/* The computing thread: only steps take time. */
static void compute(world *w)
{
    bool has_work = w->is_working;
    for (;;) {
        if (has_work && w->work_end_us > now(w))
            return;
        if (has_work)
            finish_work(w);
        WITHOUT_ALLOCATING(w, has_work = td_requests_next(w->requests, &w->work));
        if (!has_work)
            return;
        w->is_working = true;
        w->step_us = w->work.kind == TD_WORK_STEP ? step_duration(w) : 0;
        w->work_end_us = now(w) + w->step_us;
        for (uint32_t i = 0; i < w->params.n_stages && w->step_us > 0; ++i)
            contend(w, w->stages[i].running ? &w->stages[i].end_us : NULL, &w->work_end_us);
    }
}

static void send_forged(world *w)
{
    uint32_t ids[TD_DRAFT_MAX];
    uint32_t n = random_below(w, TD_DRAFT_MAX + 1), i = random_below(w, w->params.n_prompts);
    for (uint32_t k = 0; k < n; ++k)
        ids[k] = random_below(w, N_VOCAB);
    td_err err = {0};
    td_peer_send(w->worker,
                 &(td_wire_msg){.type = TD_WIRE_DRAFT,
                                .draft = {.sequence = w->prompts[i].sequence + random_below(w, 2),
                                          .epoch = random_below(w, 60),
                                          .position = random_below(w, w->params.n_ctx - n),
                                          .n = n,
                                          .busy_us = random_below(w, 1000),
                                          .ids = ids}},
                 &err);
}

/* The link's thread. */
static void serve(world *w)
{
    td_peer_event event;
    td_err err = {0};
    const td_proposal *p;
    while (td_requests_has_room(w->requests)) {
        must(td_peer_step(w->worker, &event, &err), &err);
        if (event.type == TD_PEER_NONE)
            break;
        if (event.type == TD_PEER_MESSAGE)
            WITHOUT_ALLOCATING(w, td_requests_put(w->requests, &event.msg));
        else if (event.type != TD_PEER_REFUSED)
            td_requests_reset(w->requests);
    }
    compute(w);
    while ((p = td_requests_answer(w->requests))) {
        td_wire_msg msg = {.type = TD_WIRE_DRAFT,
                           .draft = {.sequence = p->sequence,
                                     .epoch = p->epoch,
                                     .position = p->position,
                                     .n = p->n,
                                     .busy_us = p->busy_us,
                                     .ids = p->ids}};
        if (td_peer_get_info(w->worker).is_joined && !td_peer_send(w->worker, &msg, &err) &&
            err.code == TD_E_AGAIN)
            break;
        td_requests_pop(w->requests);
        ++w->n_answers;
        if (random_below(w, 1000) < w->params.forged_permille)
            send_forged(w);
    }
    td_peer_set_progress(w->worker, w->progress, td_requests_n_waiting(w->requests));
}

static uint64_t hash_vocab(void *user, uint32_t a, uint32_t b)
{
    (void)user;
    return mix((uint64_t)a << 32 | b);
}

static td_peer *create_peer(world *w, bool is_worker)
{
    td_err err = {0};
    uint32_t ping_us = w->params.ping_us ? w->params.ping_us : 5000;
    td_peer *peer =
        td_peer_create(&(td_peer_params){.is_worker = is_worker,
                                         .n_vocab = N_VOCAB,
                                         .n_ctx = w->params.n_ctx,
                                         .max_draft = TD_DRAFT_MAX,
                                         .build = "toy",
                                         .hash = hash_vocab,
                                         .seed = random_u64(w) | 1,
                                         .ping_us = ping_us,
                                         .retry_min_us = 1000,
                                         .retry_max_us = 40000, /* above any way there and back */
                                         .hung_us = is_worker ? 0 : 6 * ping_us},
                       w->link[is_worker], &w->clock, &err);
    must(peer != NULL, &err);
    return peer;
}

static void start_worker(world *w)
{
    td_err err = {0};
    td_peer_destroy(&w->worker);
    td_requests_destroy(&w->requests);
    w->worker = create_peer(w, true);
    w->requests = td_requests_create(&err);
    must(w->requests != NULL, &err);
    w->is_working = false;
    for (uint32_t i = 0; i < N_PROMPTS_MAX; ++i)
        w->memory[i].is_open = false;
}

#endif
