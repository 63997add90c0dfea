/* One sequence: its tokens, its text and its stop rules. All memory it will ever need is taken when
 * it begins: the text of a generated token is at most token_bytes_max long, which is little beside
 * the keys and values of the token in the target's cache. */
#include "coordinator/sequence.h"

#include "base/check.h"

#include <string.h>

static bool check_params(const td_coordinator *c, const td_sequence_params *params, td_err *err)
{
    uint32_t n_ctx = c->params.n_ctx;
    if (params->n_prompt < 1 || params->n_prompt >= n_ctx)
        return td_err_set(err, TD_E_DATA,
                          "the prompt has %u tokens; allowed: 1..%u (one less than the context)",
                          params->n_prompt, n_ctx - 1);
    if (params->n_predict < 1)
        return td_err_set(err, TD_E_DATA, "0 tokens to generate; allowed: 1 and more");
    for (uint32_t i = 0; i < params->n_prompt; ++i)
        if (params->prompt[i] >= c->params.n_vocab)
            return td_err_set(err, TD_E_DATA, "prompt token %u is %u; allowed: 0..%u", i,
                              params->prompt[i], c->params.n_vocab - 1);
    return true;
}

bool td_sequence_begin(sequence *s, const td_coordinator *c, const td_sequence_params *params,
                       td_err *err)
{
    TD_ASSERT(s->phase == PHASE_FREE);
    if (!check_params(c, params, err))
        return false;
    uint32_t n_generate_max = td_min_u32(params->n_predict, c->params.n_ctx - params->n_prompt);
    td_arena *arena = td_arena_create(err);
    if (!arena)
        return false;
    *s = (sequence){.arena = arena,
                    .n_predict = params->n_predict,
                    .n_generate_max = n_generate_max,
                    .ignore_end = params->ignore_end,
                    .slot = s->slot};
    s->stops = td_stops_create(arena, params->stops, params->n_stops, err);
    s->tokens = td_arena_alloc(arena, params->n_prompt + n_generate_max, sizeof(*s->tokens), err);
    s->is_draft = td_arena_alloc(arena, n_generate_max, sizeof(*s->is_draft), err);
    s->text = td_arena_alloc(arena, (size_t)n_generate_max * c->token_bytes_max + 1, 1, err);
    if (!s->stops || !s->tokens || !s->is_draft || !s->text) {
        td_sequence_end(s);
        return false;
    }
    memcpy(s->tokens, params->prompt, params->n_prompt * sizeof(*s->tokens));
    s->info.n_prompt = params->n_prompt;
    s->info.prompt = s->tokens;
    s->info.tokens = s->tokens + params->n_prompt;
    s->info.text = s->text;
    s->phase = PHASE_QUEUED;
    return true;
}

void td_sequence_forget(sequence *s)
{
    if (s->slot.arena)
        td_arena_destroy(&s->slot.arena);
    s->slot.tokens = NULL;
    s->slot.n_sent = s->slot.n_full = 0;
}

void td_sequence_end(sequence *s)
{
    sequence free_slot = {.phase = PHASE_FREE, .slot = s->slot};
    if (s->is_begun && s->slot.is_held) {
        TD_ASSERT(!s->slot.arena);
        free_slot.slot.arena = s->arena;
        free_slot.slot.tokens = s->tokens;
        free_slot.slot.n_sent = s->n_sent;
        free_slot.slot.n_full = s->n_full;
    } else if (s->arena) {
        td_arena_destroy(&s->arena);
    }
    *s = free_slot;
}

/* Adds a token's bytes to the text; true if a stop string was completed and cut off. */
static bool append_text(sequence *s, const td_coordinator *c, uint32_t token)
{
    size_t n_bytes = 0;
    const char *bytes = c->params.token_bytes(c->params.user, token, &n_bytes);
    TD_ASSERT(n_bytes <= c->token_bytes_max);
    for (size_t i = 0; i < n_bytes; ++i) {
        s->text[s->info.n_text++] = bytes[i];
        uint32_t n_match = td_stops_push(s->stops, bytes[i]);
        if (n_match > 0) {
            s->info.n_text -= n_match;
            s->text[s->info.n_text] = 0;
            return true;
        }
    }
    s->text[s->info.n_text] = 0;
    return false;
}

td_reason td_sequence_append(sequence *s, const td_coordinator *c, uint32_t token, bool is_draft)
{
    TD_ASSERT(token < c->params.n_vocab && s->info.n_tokens < s->n_generate_max);
    s->tokens[sequence_length(s)] = token;
    s->is_draft[s->info.n_tokens] = is_draft;
    if (s->info.n_tokens++ == 0)
        s->info.first_token_us = c->now_us;
    if (!s->ignore_end && c->params.token_is_end(c->params.user, token))
        return TD_REASON_EOS;
    if (append_text(s, c, token))
        return TD_REASON_STOP;
    if (s->info.n_tokens < s->n_generate_max)
        return TD_REASON_NONE;
    return s->info.n_tokens == s->n_predict ? TD_REASON_LENGTH : TD_REASON_CONTEXT;
}
