/* A prompt comes to an end in one of two ways: as a sequence that finished, or as an error line.
 * Both are counted, shown and written here, and nowhere else. */
#include "run/loop.h"

#include "base/clock.h"

#include <math.h>

bool td_outcome_error(session *r, const td_prompt *q, const char *message, td_err *err)
{
    r->totals->n_error++;
    td_show_error(r->show, q->id, message);
    if (r->params->on_error)
        r->params->on_error(r->params->user, q->id, message);
    return td_results_write(r->results,
                            &(td_result){.id = q->id,
                                         .error = message,
                                         .finished_s = td_clock_utc_s(),
                                         .input_sha = q->input_sha,
                                         .config_sha = r->identity.sha,
                                         .model_sha = r->identity.model_sha,
                                         .placement = r->placement,
                                         .date = r->date},
                            err);
}

/* The speed of a line while it was generated: of the tokens after its first one. */
static void add_line_speed(td_run_totals *t, const td_sequence_info *info)
{
    double us = (double)(info->finished_us - info->first_token_us);
    if (info->n_tokens < 2 || us <= 0)
        return;
    double per_s = (info->n_tokens - 1) * 1e6 / us;
    t->line_min_per_s = t->n_timed_lines ? fmin(t->line_min_per_s, per_s) : per_s;
    t->line_max_per_s = fmax(t->line_max_per_s, per_s);
    t->line_sum_per_s += per_s;
    t->n_timed_lines++;
}

static void add_to_totals(session *r, const td_sequence_info *info)
{
    td_run_totals *t = r->totals;
    t->n_tokens += info->n_tokens;
    t->n_prompt_tokens += info->n_prompt;
    t->n_rounds += info->n_rounds;
    t->n_drafted += info->n_drafted;
    t->n_by_head += info->n_by_head;
    t->n_head_accepted += info->n_head_accepted;
    t->n_accepted += info->n_accepted;
    t->n_shared += info->n_shared;
    t->n_looked_up += info->n_looked_up;
    t->n_lookup_accepted += info->n_lookup_accepted;
    t->ttft_sum_us += info->first_token_us - info->added_us;
    add_line_speed(t, info);
    for (uint32_t i = 0; i <= TD_DRAFT_MAX; i++) {
        t->drafted_at[i] += info->drafted_at[i];
        t->accepted_at[i] += info->accepted_at[i];
    }
}

bool td_outcome_finish(session *r, uint32_t sequence, td_err *err)
{
    active *a = td_loop_find_active(r, sequence);
    const td_sequence_info *info = td_coordinator_get_info(r->coordinator, a->sequence);
    bool is_ok = true;
    if (a->has_bad_logits) {
        is_ok = td_outcome_error(r, a->prompt, "the model gave logits that are not finite", err);
    } else if (info->reason != TD_REASON_CANCELLED) {
        r->totals->n_ok++;
        add_to_totals(r, info);
        td_show_finish(r->show, info);
        is_ok = td_results_write(
            r->results,
            &(td_result){.id = a->prompt->id,
                         .is_ok = true,
                         .text = info->text,
                         .n_text = info->n_text,
                         .tokens = info->tokens,
                         .n_tokens = info->n_tokens,
                         .reason = info->reason,
                         .n_drafted = info->n_drafted,
                         .n_accepted = info->n_accepted,
                         .n_rounds = info->n_rounds,
                         .n_prompt_tokens = info->n_prompt,
                         .ttft_ms = (double)(info->first_token_us - info->added_us) * 1e-3,
                         .ms = (double)(info->finished_us - info->added_us) * 1e-3,
                         .finished_s = td_clock_utc_s(),
                         .input_sha = a->prompt->input_sha,
                         .config_sha = r->identity.sha,
                         .model_sha = r->identity.model_sha,
                         .placement = r->placement,
                         .date = r->date},
            err);
        if (is_ok && r->params->on_finish)
            is_ok = r->params->on_finish(r->params->user, a->prompt->id, info, err);
    }
    if (r->ngram && a->slot < TD_SEQUENCES_MAX)
        td_ngram_close(r->ngram, a->slot, info->prompt, info->n_prompt + info->n_tokens,
                       !a->has_bad_logits);
    td_coordinator_remove(r->coordinator, a->sequence);
    td_prompt_destroy(&a->prompt);
    return is_ok;
}
