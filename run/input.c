/* From a line to a sequence: what the results file says of it, its tokens, a free slot. */
#include "run/loop.h"

#include "base/mem.h"
#include "base/signals.h"

#include <string.h>

static uint64_t now_us(const session *r) { return td_clock_now_us(&r->clock); }

/* Tokenizes a prompt and gives it a slot. An unusable one becomes an error line. */
static bool add_prompt(session *r, td_prompt **prompt, td_err *err)
{
    td_prompt *q = *prompt;
    uint32_t *ids = NULL;
    size_t n_ids = 0;
    td_err bad = {0};
    uint32_t n_ctx = td_target_n_ctx(r->target), sequence = 0;
    const td_tokenizer *t = td_model_tokenizer(r->model);
    bool is_ok = q->messages.n > 0
                     ? td_chat_input_tokenize(&q->messages, td_model_gguf(r->model), t,
                                              r->params->chat_template, &ids, &n_ids, &bad)
                     : td_tokenize(t, q->text, q->n_text, true, false, &ids, &n_ids, &bad);
    if (is_ok && n_ids == 0)
        is_ok = td_err_set(&bad, TD_E_DATA, "the prompt is empty and the model has no BOS token");
    if (is_ok && n_ids >= n_ctx)
        is_ok =
            td_err_set(&bad, TD_E_DATA,
                       "the prompt has %zu tokens; allowed: 1..%u (the context is %u, see --ctx)",
                       n_ids, n_ctx - 1, n_ctx);
    if (is_ok) {
        td_sequence_params s = {.prompt = ids,
                                .n_prompt = (uint32_t)n_ids,
                                .n_predict = q->n_predict,
                                .ignore_end = r->params->ignore_eos,
                                .n_stops = q->n_stops};
        for (uint32_t i = 0; i < q->n_stops; i++)
            s.stops[i] = q->stops[i];
        is_ok = td_coordinator_add(r->coordinator, &s, now_us(r), &sequence, &bad);
    }
    td_free(ids);
    if (!is_ok) {
        bool is_written = td_outcome_error(r, q, bad.message, err);
        td_prompt_destroy(prompt);
        return is_written;
    }
    uint32_t i = 0;
    while (r->actives[i].prompt) /* a free slot there means a free place here */
        i++;
    r->actives[i] = (active){.prompt = q, .sequence = sequence, .slot = UINT32_MAX};
    td_show_begin(r->show, q->text);
    *prompt = NULL;
    return true;
}

/* What the results file says about a prompt: run it, skip it, or stop. */
static bool take_prompt(session *r, td_prompt **prompt, td_err *err)
{
    td_prompt *q = *prompt;
    char why[512] = "";
    td_err claim = {0};
    td_result_state state =
        td_results_claim(r->results, q->id, q->input_sha, r->config_sha, why, sizeof why, &claim);
    if (state == TD_RESULT_TWICE) { /* an error, under the line's own name */
        td_err_set(&q->err, TD_E_DATA, "line %llu: the id %s is used by an earlier line",
                   (unsigned long long)q->line, q->id);
        memcpy(q->id, q->line_id, sizeof q->line_id);
        state = td_results_claim(r->results, q->id, q->input_sha, r->config_sha, why, sizeof why,
                                 &claim);
    }
    if (claim.code != TD_OK)
        return td_err_set(err, claim.code, "%s", claim.message);
    if (state == TD_RESULT_OTHER && !r->params->is_force)
        return td_err_set(err, TD_E_DATA, "%s: %s", r->params->out_path, why);
    bool is_wanted =
        state == TD_RESULT_NONE || (state == TD_RESULT_ERROR && r->params->is_retry_errors);
    if (is_wanted && q->err.code == TD_OK)
        return add_prompt(r, prompt, err);
    bool is_ok = true;
    if (is_wanted)
        is_ok = td_outcome_error(r, q, q->err.message, err);
    else
        r->totals->n_skipped++;
    r->totals->n_old_errors += !is_wanted && state == TD_RESULT_ERROR;
    td_prompt_destroy(prompt);
    return is_ok;
}

/* Fills free slots. */
bool td_input_admit(session *r, td_err *err)
{
    while (!r->is_input_done && td_coordinator_n_free(r->coordinator) > 0 &&
           !td_signals_pending()) {
        td_err failure = {0};
        td_prompt *q = td_prompts_next(r->prompts, &failure);
        if (!q) {
            r->is_input_done = true;
            if (failure.code != TD_OK && !td_signals_pending())
                return td_err_set(err, failure.code, "%s", failure.message);
            return true;
        }
        bool is_ok = take_prompt(r, &q, err);
        td_prompt_destroy(&q);
        if (!is_ok)
            return false;
    }
    return true;
}
