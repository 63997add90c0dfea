/* The whole protocol in one thread under a simulated clock: the real coordinator, both ends of a
 * real session (peer, wire, in-memory link), the real requests with a toy drafter behind them,
 * stages as queues of jobs with the target's semantics. Everything that happens is decided by one
 * seed, so a failure replays. The world checks at every step what must always hold.
 *
 * Include after cmocka.h. One program includes it once. */
#ifndef TD_TESTS_SIM_PROTOCOL_H
#define TD_TESTS_SIM_PROTOCOL_H

#include "sim_parts.h"

/* ---- the coordinator's side of the session ---- */

/* No more than allowed are without an answer; each is answered once, in the order of asking. */
static void note_ask(world *w, const td_action *a)
{
    uint32_t i = find_prompt(w, a->sequence);
    CHECK(w, w->asks[i].n < TD_ASKS_MAX);
    w->asks[i].at[w->asks[i].n].epoch = a->epoch;
    w->asks[i].at[w->asks[i].n].goes_on = a->goes_on;
    w->n_going_on += a->goes_on;
    w->asks[i].at[w->asks[i].n++].position = a->position;
}

static void check_answer(world *w, const td_wire_draft *d)
{
    if (w->params.forged_permille > 0)
        return;
    uint32_t i = find_prompt(w, d->sequence);
    CHECK(w, w->asks[i].n > 0 && w->asks[i].at[0].epoch == d->epoch);
    CHECK(w, d->position == w->asks[i].at[0].position ||
                 (w->asks[i].at[0].goes_on && d->position < w->asks[i].at[0].position));
    memmove(w->asks[i].at, w->asks[i].at + 1, --w->asks[i].n * sizeof *w->asks[i].at);
}

static void set_joined(world *w, bool is_joined)
{
    memset(w->asks, 0, sizeof w->asks);
    if (!is_joined && !w->is_joined)
        return;
    w->is_joined = is_joined;
    w->n_joins += is_joined;
    w->rejoin_us = UINT64_MAX;
    WITHOUT_ALLOCATING(w, td_coordinator_on_drafter(w->c, is_joined, now(w)));
}

/* What is committed, or one guess of the head behind it. */
static void check_feed(world *w, const td_action *a)
{
    const prompt *p = &w->prompts[find_prompt(w, a->sequence)];
    uint32_t length = p->n_prompt + p->n_seen;
    bool is_guess = w->params.has_head && a->position == length && a->n_tokens == 1;
    CHECK(w, is_guess || a->position + a->n_tokens <= length);
    for (uint32_t i = 0; i < a->n_tokens && !is_guess; ++i)
        CHECK(w, a->tokens[i] == expected_at(p, a->position + i));
    w->n_told += is_guess;
}

static void send_to_drafter(world *w, const td_action *a)
{
    td_wire_msg msg = {0};
    td_err err = {0};
    CHECK(w, w->params.has_drafter);
    if (a->kind == TD_ACT_DRAFT_FEED)
        check_feed(w, a);
    if (!w->is_joined)
        return;
    if (a->kind == TD_ACT_DRAFT_OPEN)
        msg = (td_wire_msg){.type = TD_WIRE_OPEN,
                            .open = {.sequence = a->sequence, .repeat_penalty = 1, .top_p = 1}};
    else if (a->kind == TD_ACT_DRAFT_FEED)
        msg = (td_wire_msg){.type = TD_WIRE_FEED,
                            .feed = {a->sequence, a->epoch, a->position, a->n_tokens, a->tokens}};
    else if (a->kind == TD_ACT_DRAFT_PROPOSE)
        msg = (td_wire_msg){.type = TD_WIRE_PROPOSE,
                            .propose = {a->sequence, a->epoch, a->position, a->k, a->goes_on}};
    else
        msg = (td_wire_msg){.type = TD_WIRE_CLOSE, .close = {a->sequence}};
    if (td_peer_send(w->client, &msg, &err)) {
        if (a->kind == TD_ACT_DRAFT_PROPOSE && w->params.forged_permille == 0)
            note_ask(w, a);
        return;
    }
    set_joined(w, false); /* the caller's word for a session that takes nothing more */
    w->rejoin_us = now(w) + REJOIN_US;
}

static void hear_drafter(world *w)
{
    td_peer_event event;
    td_err err = {0};
    for (;;) {
        must(td_peer_step(w->client, &event, &err), &err);
        if (event.type == TD_PEER_NONE)
            break;
        if (event.type == TD_PEER_JOINED || event.type == TD_PEER_LOST) {
            set_joined(w, event.type == TD_PEER_JOINED);
        } else if (event.type == TD_PEER_MESSAGE && event.msg.type == TD_WIRE_DRAFT) {
            const td_wire_draft *d = &event.msg.draft;
            if (w->is_joined)
                check_answer(w, d);
            WITHOUT_ALLOCATING(w, td_coordinator_on_draft(w->c, d->sequence, d->epoch, d->position,
                                                          d->ids, d->n, d->busy_us, now(w)));
        }
    }
    if (w->rejoin_us <= now(w) && td_peer_get_info(w->client).is_joined)
        set_joined(w, true);
}

/* ---- faults ---- */

static void cut(world *w, uint64_t us)
{
    td_link_cut(w->link[0], true);
    w->cut_end_us = now(w) + us;
}

static void cancel_one(world *w)
{
    prompt *p = &w->prompts[random_below(w, w->params.n_prompts)];
    if (!p->is_added || p->is_done)
        return;
    p->is_cancelled = true;
    WITHOUT_ALLOCATING(w, td_coordinator_cancel(w->c, p->sequence, now(w)));
}

static void do_faults(world *w)
{
    const world_params *p = &w->params;
    if (w->cut_end_us && w->cut_end_us <= now(w)) {
        td_link_cut(w->link[0], false);
        w->cut_end_us = 0;
    }
    if (w->silence_end_us && w->silence_end_us <= now(w))
        w->silence_end_us = 0;
    if (w->next_death_us <= now(w)) {
        w->next_death_us = random_time(w, p->death_us);
        ++w->n_deaths;
        cut(w, random_below(w, 4000)); /* what was under way is lost with it */
        start_worker(w);
    }
    if (w->next_cut_us <= now(w)) {
        w->next_cut_us = random_time(w, p->cut_us);
        cut(w, random_below(w, 40000));
    }
    if (w->next_silence_us <= now(w)) {
        w->next_silence_us = random_time(w, p->silence_us);
        w->silence_end_us = now(w) + (p->hang_us ? p->hang_us : 1 + random_below(w, 60000));
    }
    if (w->next_loss_us <= now(w)) {
        lose_target(w);
        bool is_last = td_coordinator_get_stats(w->c)->n_target_losses == N_LOSSES_MAX;
        w->next_loss_us = random_time(w, is_last ? 0 : p->loss_us);
    }
    if (w->next_cancel_us <= now(w)) {
        w->next_cancel_us = random_time(w, p->cancel_us);
        cancel_one(w);
    }
}

/* ---- the run ---- */

static void check_finish(world *w, const td_action *a)
{
    prompt *p = &w->prompts[find_prompt(w, a->sequence)];
    const td_sequence_info *info = td_coordinator_get_info(w->c, a->sequence);
    CHECK(w, info && !p->is_done && info->reason == a->reason);
    CHECK(w, info->n_tokens == p->n_seen && info->text[info->n_text] == 0);
    if (a->reason == TD_REASON_CANCELLED) {
        CHECK(w, p->is_cancelled && info->n_tokens <= p->n_tokens);
    } else {
        CHECK(w, info->reason == p->reason && info->n_tokens == p->n_tokens);
        CHECK(w, info->n_text == p->n_text && !memcmp(info->text, p->text, p->n_text));
    }
    CHECK(w, info->n_accepted <= info->n_drafted && info->n_accepted <= info->n_tokens);
    p->info = *info;
    p->is_done = true;
    if (w->ngram)
        td_ngram_close(w->ngram, a->slot, info->prompt, info->n_prompt + info->n_tokens,
                       a->reason != TD_REASON_CANCELLED);
    td_coordinator_remove(w->c, a->sequence);
}

/* Output equals plain decoding, each token said once. */
static void check_tokens(world *w, const td_action *a)
{
    prompt *p = &w->prompts[find_prompt(w, a->sequence)];
    CHECK(w, a->n_tokens >= 1 && a->position == p->n_prompt + p->n_seen);
    CHECK(w, p->n_seen + a->n_tokens <= p->n_tokens);
    CHECK(w, !memcmp(a->tokens, p->tokens + p->n_seen, a->n_tokens * sizeof *a->tokens));
    p->n_seen += a->n_tokens;
}

static void drain(world *w)
{
    td_action a;
    for (;;) {
        bool is_any;
        WITHOUT_ALLOCATING(w, is_any = td_coordinator_next(w->c, &a));
        if (!is_any)
            return;
        CHECK(w, ++w->n_steps < 20000000);
        if (a.kind == TD_ACT_TOKENS)
            check_tokens(w, &a);
        else if (a.kind == TD_ACT_FINISH)
            check_finish(w, &a);
        else if (a.kind >= TD_ACT_DRAFT_OPEN && a.kind <= TD_ACT_DRAFT_CLOSE)
            send_to_drafter(w, &a);
        else
            give_to_target(w, &a);
        if (a.kind == TD_ACT_OPEN && w->ngram)
            td_ngram_open(w->ngram, a.slot);
    }
}

static void add_prompts(world *w)
{
    for (uint32_t i = 0; i < w->params.n_prompts && td_coordinator_n_free(w->c) > 0; ++i) {
        prompt *p = &w->prompts[i];
        td_sequence_params params = {.prompt = p->prompt,
                                     .n_prompt = p->n_prompt,
                                     .n_predict = p->n_predict,
                                     .ignore_end = p->ignore_end,
                                     .n_stops = p->n_stops};
        for (uint32_t j = 0; j < p->n_stops; ++j)
            params.stops[j] = p->stops[j];
        td_err err = {0};
        if (!p->is_added)
            must(td_coordinator_add(w->c, &params, now(w), &p->sequence, &err), &err);
        p->is_added = true;
    }
}

static uint64_t earlier(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* When something happens next. */
static uint64_t next_us(const world *w)
{
    uint64_t t = earlier(td_coordinator_deadline_us(w->c), w->next_cancel_us);
    t = earlier(t, w->next_loss_us);
    for (uint32_t i = 0; i < w->params.n_stages; ++i)
        if (w->stages[i].running || w->stages[i].n_queued > 0)
            t = earlier(t, w->stages[i].running ? w->stages[i].end_us : now(w));
    if (!w->params.has_drafter)
        return t;
    t = earlier(t, earlier(td_link_next_us(w->link[0]), td_peer_next_us(w->client)));
    t = earlier(t, earlier(w->rejoin_us, w->next_death_us));
    t = earlier(t, earlier(w->next_cut_us, w->next_silence_us));
    if (w->cut_end_us)
        t = earlier(t, w->cut_end_us);
    if (w->silence_end_us)
        return earlier(t, w->silence_end_us);
    if (w->is_working)
        t = earlier(t, w->work_end_us);
    if (td_requests_has_room(w->requests))
        t = earlier(t, earlier(td_link_next_us(w->link[1]), td_peer_next_us(w->worker)));
    return t;
}

static void step(world *w)
{
    uint64_t t = next_us(w);
    CHECK(w, t != UINT64_MAX); /* else nothing would ever happen again */
    CHECK(w, ++w->n_steps < 20000000 && t < 3600000000u);
    if (t > now(w))
        td_clock_advance(&w->clock, t - now(w));
    do_faults(w);
    if (w->params.has_drafter) {
        hear_drafter(w);
        if (!w->silence_end_us)
            serve(w);
    }
    for (uint32_t i = 0; i < w->params.n_stages; ++i)
        step_stage(w, i);
    if (td_coordinator_deadline_us(w->c) <= now(w)) {
        WITHOUT_ALLOCATING(w, td_coordinator_on_tick(w->c, now(w)));
        CHECK(w, td_coordinator_deadline_us(w->c) > now(w));
    }
}

static uint32_t look_up(void *user, uint32_t slot, const uint32_t *tokens, uint32_t n_tokens,
                        uint32_t *ids, uint32_t max, uint32_t *n_match)
{
    world *w = user;
    return td_ngram_lookup(w->ngram, slot, tokens, n_tokens, NULL, 0, ids, max, n_match);
}

static void make_prompt(world *w, prompt *p)
{
    const world_params *params = &w->params;
    p->stream = random_u64(w);
    p->ignore_end = params->ignore_end;
    p->n_prompt = params->n_prompt_max;
    p->n_predict = params->n_predict_max;
    if (!params->is_exact) {
        p->n_prompt = 1 + random_below(w, p->n_prompt);
        p->n_predict = 1 + random_below(w, p->n_predict);
    }
    for (uint32_t i = 0; i < p->n_prompt; ++i)
        p->prompt[i] = i < params->n_prefix ? (uint32_t)mix(params->seed + i) % N_VOCAB
                                            : random_below(w, N_VOCAB);
    p->n_stops = params->has_stops ? random_below(w, 4) : 0;
    for (uint32_t i = 0; i < p->n_stops; ++i)
        for (uint32_t j = 0, n = 4 + random_below(w, 7); j < n; ++j)
            p->stops[i][j] = random_below(w, 2) ? 'a' : 'b';
    decode_plain(p, params->n_ctx);
}

static void create(world *w)
{
    const world_params *p = &w->params;
    td_err err = {0};
    td_coordinator_params params = {.n_slots = p->n_slots,
                                    .n_ctx = p->n_ctx,
                                    .draft_max = p->draft_max,
                                    .is_draft_fixed = !p->is_free,
                                    .is_ahead = p->is_ahead,
                                    .is_draft_elsewhere = p->is_elsewhere,
                                    .has_head = p->has_head,
                                    .n_batches_max = p->n_stages,
                                    .verify_rows_max = p->verify_rows_max,
                                    .prefill_rows = p->prefill_rows,
                                    .draft_deadline_us = p->deadline_us,
                                    .n_pages = p->n_pages,
                                    .page_positions = PAGE_POSITIONS,
                                    .can_share = p->can_share,
                                    .is_one_unit = p->is_one_unit,
                                    .draft_share = (float)p->draft_us / (float)(p->stage_us + 1),
                                    .lookup = p->has_lookup ? look_up : NULL,
                                    .n_vocab = N_VOCAB,
                                    .token_bytes = toy_bytes,
                                    .token_is_end = toy_is_end,
                                    .user = w};
    w->c = td_coordinator_create(&params, &err);
    must(w->c != NULL, &err);
    if (p->has_lookup)
        must((w->ngram = td_ngram_create(4096, p->n_slots, p->n_ctx, &err)) != NULL, &err);
    if (!p->has_drafter)
        return;
    must(td_link_pair(&w->clock, &p->link, w->link, &err), &err);
    w->client = create_peer(w, false);
    start_worker(w);
}

static void destroy(world *w)
{
    td_coordinator_destroy(&w->c);
    td_ngram_destroy(&w->ngram);
    td_peer_destroy(&w->client);
    td_peer_destroy(&w->worker);
    td_requests_destroy(&w->requests);
    for (uint32_t i = 0; i < 2; ++i)
        td_link_close(&w->link[i], false);
}

/* The caches' tokens: too many to be part of every world. */
static void lend_tokens(world *w)
{
    static uint32_t tokens[N_STAGES_MAX * N_SLOTS_MAX + N_PROMPTS_MAX][N_CTX_MAX];
    for (uint32_t i = 0; i < N_STAGES_MAX; ++i)
        for (uint32_t k = 0; k < N_SLOTS_MAX; ++k)
            w->stages[i].slots[k].tokens = tokens[i * N_SLOTS_MAX + k];
    for (uint32_t i = 0; i < N_PROMPTS_MAX; ++i)
        w->memory[i].tokens = tokens[N_STAGES_MAX * N_SLOTS_MAX + i];
}

/* Runs all prompts to their end under all checks. */
static void world_run(world *w, const world_params *params)
{
    memset(w, 0, sizeof *w);
    w->params = *params;
    w->random = mix(params->seed + 1);
    w->clock = td_clock_simulated(1);
    lend_tokens(w);
    for (uint32_t i = 0; i < params->n_prompts; ++i)
        make_prompt(w, &w->prompts[i]);
    create(w);
    w->rejoin_us = UINT64_MAX;
    bool has_drafter = params->has_drafter;
    w->next_death_us = random_time(w, has_drafter ? params->death_us : 0);
    w->next_cut_us = random_time(w, has_drafter ? params->cut_us : 0);
    w->next_silence_us = random_time(w, has_drafter ? params->silence_us : 0);
    if (has_drafter && params->hang_us)
        w->next_silence_us = params->hang_at_us;
    w->next_loss_us = random_time(w, params->loss_us);
    w->next_cancel_us = random_time(w, params->cancel_us);
    for (;;) {
        add_prompts(w);
        drain(w);
        uint32_t n_done = 0;
        for (uint32_t i = 0; i < params->n_prompts; ++i)
            n_done += w->prompts[i].is_done;
        if (n_done == params->n_prompts)
            break;
        if (td_coordinator_n_free(w->c) == 0 || !td_coordinator_is_idle(w->c))
            step(w);
    }
    CHECK(w, td_coordinator_is_idle(w->c));
    w->stats = *td_coordinator_get_stats(w->c);
    destroy(w);
}

#endif
