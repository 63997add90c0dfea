/* The target is taken down, and loaded again on the same devices with the same layers, context and
 * cache: where that cannot be, other bits would come, so the run ends. A device that was reset, or
 * a worker that is started again, takes moments to be there: it is tried a few times. */
#include "run/recover.h"

#include "base/log.h"
#include "base/signals.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>

#define TRIES       6u
#define TRY_WAIT_MS 500 /* after the first; doubled each time: 15.5 s in all */
#define IN_VAIN_MAX 3u  /* losses in a row with nothing committed between */

static bool is_loss(td_err_code code)
{
    return code == TD_E_DEVICE_LOST || code == TD_E_UNAVAILABLE;
}

/* Waits as long, or for a signal; false for that. */
static bool wait_ms(int ms)
{
    struct pollfd fd = {.fd = td_signals_fd(), .events = POLLIN};
    return !td_signals_pending() && poll(&fd, 1, ms) <= 0;
}

static uint64_t n_committed(const session *r)
{
    uint64_t n = r->totals->n_tokens;
    for (uint32_t i = 0; i < TD_SEQUENCES_MAX; i++)
        if (r->actives[i].prompt)
            n += td_coordinator_get_info(r->coordinator, r->actives[i].sequence)->n_tokens;
    return n;
}

typedef struct {
    uint32_t n_stages, n_ctx, n_pages;
    td_stage_info stages[TD_STAGES_MAX];
    char specs[TD_STAGES_MAX][TD_PLAN_SPEC_MAX];
} standing;

static void note_standing(const td_target *t, standing *s)
{
    s->n_stages = td_target_n_stages(t);
    s->n_ctx = td_target_n_ctx(t);
    s->n_pages = td_target_n_pages(t);
    for (uint32_t i = 0; i < s->n_stages; i++) {
        td_stage_info info;
        td_target_get_stage_info(t, i, &info);
        snprintf(s->specs[i], sizeof s->specs[i], "%s@%u-%u", info.spec, info.first, info.last);
        s->stages[i] = info;
    }
}

static td_target *load_again(session *r, const standing *before, td_err *err)
{
    const char *specs[TD_STAGES_MAX];
    for (uint32_t i = 0; i < before->n_stages; i++)
        specs[i] = before->specs[i];
    td_layout_params params = td_setup_layout_params(r);
    params.specs = specs;
    params.n_specs = before->n_stages;
    params.n_ctx = before->n_ctx;
    td_target *t = td_target_create(&params, err);
    td_log_progress_end();
    if (!t)
        return NULL;
    char placement[TD_PLACEMENT_BYTES];
    td_run_placement_write(t, placement, sizeof placement);
    uint32_t n_pages = td_target_n_pages(t);
    bool has_room = !n_pages || (before->n_pages && n_pages >= before->n_pages);
    if (!has_room || strcmp(placement, r->placement) != 0) {
        td_err_set(err, TD_E_AGAIN,
                   "the target does not come back as it was: layers %s, %u pages; they were %s, %u",
                   placement, n_pages, r->placement, before->n_pages);
        td_target_destroy(&t);
        return NULL;
    }
    for (uint32_t i = 0; i < before->n_stages; i++)
        td_target_add_figures(t, i, &before->stages[i]);
    return t;
}

bool td_recover_target(session *r, const td_err *loss, td_err *err)
{
    if (!is_loss(loss->code))
        return td_err_set(err, loss->code, "target: %s", loss->message);
    uint64_t start_us = td_clock_now_us(&r->clock), n = n_committed(r);
    r->n_in_vain = n > r->n_committed_at_loss ? 1 : r->n_in_vain + 1;
    r->n_committed_at_loss = n;
    if (r->n_in_vain > IN_VAIN_MAX)
        return td_err_set(err, TD_E_AGAIN, "target: lost %u times with nothing done between: %s",
                          r->n_in_vain, loss->message);
    td_log_warn("the target is lost (%s); loading it again", loss->message);
    standing before;
    note_standing(r->target, &before);
    td_target_destroy(&r->target);
    td_err last = *loss;
    int ms = TRY_WAIT_MS;
    for (uint32_t i = 0; i < TRIES && !r->target; i++, ms *= 2) {
        if (i > 0 && !wait_ms(ms / 2))
            break;
        last = (td_err){0};
        r->target = load_again(r, &before, &last);
    }
    if (!r->target)
        return td_err_set(err, TD_E_AGAIN, "target: lost (%s), and not to be had again: %s",
                          loss->message, last.message);
    uint64_t now_us = td_clock_now_us(&r->clock);
    td_coordinator_on_target_lost(r->coordinator, now_us);
    r->totals->n_target_losses++;
    r->totals->target_away_us += now_us - start_us;
    td_log_info("the target is there again after %.1f s; going on",
                (double)(now_us - start_us) * 1e-6);
    return true;
}
