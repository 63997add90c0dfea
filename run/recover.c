/* Until all stages' machines are there again, or the time for the next means has come, it is only
 * asked who is there: that costs nothing, while loading may take minutes. */
#include "run/recover.h"

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/signals.h"
#include "run/loop.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>

#define SAME_US     2000000u /* for the same devices alone; then spares, */
#define REST_US     8000000u /* then what is left (a service is started again after 5 s), */
#define END_US      TD_TARGET_PATIENCE_US /* then nothing any more */
#define LOOK_US     1500000u              /* for who is there, at once */
#define TRY_WAIT_MS 500                   /* after loading failed */
#define LOADS_MAX   6u /* which may each take long; the time they take does not count */
#define IN_VAIN_MAX 3u /* losses in a row with nothing committed between */
#define SPARES_MAX  (2u * TD_RUN_SPECS_MAX)

static uint64_t now_us(const session *r) { return td_clock_now_us(&r->clock); }

static bool is_loss(td_err_code code)
{
    return code == TD_E_DEVICE_LOST || code == TD_E_UNAVAILABLE;
}

/* Waits as long, or for a signal. */
static void wait_ms(int ms)
{
    struct pollfd fd = {.fd = td_signals_fd(), .events = POLLIN};
    if (!td_signals_pending())
        poll(&fd, 1, ms);
}

static uint64_t n_committed(const session *r)
{
    uint64_t n = r->totals->n_tokens;
    for (uint32_t i = 0; i < TD_SEQUENCES_MAX; i++)
        if (r->actives[i].prompt)
            n += td_coordinator_get_info(r->coordinator, r->actives[i].sequence)->n_tokens;
    return n;
}

/* -- what stands, and who is there ------------------------------------------------------------- */

typedef struct {
    uint32_t n_stages, n_ctx, n_looks;
    td_stage_info stages[TD_STAGES_MAX]; /* figures and layers; what they point to is gone */
    char kinds[TD_STAGES_MAX][TD_DEVICE_KIND_BYTES];
    /* Of the stages; of the spares; of what the run began with, which is as good as a spare. */
    td_target_look looks[TD_STAGES_MAX + SPARES_MAX];
    bool is_bad[TD_STAGES_MAX + SPARES_MAX]; /* a spare that did not do */
    uint32_t n_loads;                        /* in vain */
    bool is_rounded;                         /* activations are, between machines */
    char why[600];                           /* nothing was to be had */
} standing;

/* Of a device with layers, without those. */
static void set_spec(td_target_look *look, const char *spec)
{
    snprintf(look->spec, sizeof look->spec, "%.*s", (int)strcspn(spec, "@"), spec);
}

static void note_standing(const session *r, standing *s)
{
    const td_target *t = r->target;
    *s = (standing){.n_stages = td_target_n_stages(t), .n_ctx = td_target_n_ctx(t)};
    for (uint32_t i = 0; i < s->n_stages; i++) {
        td_target_get_stage_info(t, i, &s->stages[i]);
        td_device_write_kind(s->stages[i].device, s->kinds[i], sizeof s->kinds[i]);
        set_spec(&s->looks[i], s->stages[i].spec);
        s->is_rounded |=
            r->opened.wire && r->opened.wire->id != TD_TYPE_F32 && td_identity_has_hop(t, i);
    }
    s->n_looks = s->n_stages;
    for (uint32_t i = 0; i < r->opened.n_spares; i++)
        set_spec(&s->looks[s->n_looks++], r->opened.spares[i]);
    for (uint32_t i = 0; i < r->opened.n_specs; i++)
        set_spec(&s->looks[s->n_looks++], r->opened.specs[i]);
}

static bool are_all_there(const standing *s)
{
    bool is_so = true;
    for (uint32_t i = 0; i < s->n_stages; i++)
        is_so &= s->looks[i].is_there;
    return is_so;
}

static bool look(const session *r, standing *s, uint64_t within_us, td_err *err)
{
    const td_layout_params params = td_setup_layout_params(r);
    return td_target_look_for(&params, s->looks, s->n_looks, s->n_stages, within_us, err);
}

static bool is_kind(const td_target_look *look, const char *kind)
{
    char own[TD_DEVICE_KIND_BYTES];
    td_device_write_kind(&look->info, own, sizeof own);
    return !strcmp(own, kind);
}

static bool is_same_host(const char *a, const char *b)
{
    size_t n = strcspn(a, "/");
    return a[n] == '/' && !strncmp(a, b, n + 1);
}

/* -- loading ----------------------------------------------------------------------------------- */

typedef char spec_text[TD_PLAN_SPEC_MAX + 32];

static bool check_identity(session *r, const td_target *t, td_err *err)
{
    td_identity now;
    char what[600];
    td_identity_write(&r->opened, r->model, t, r->prefill_rows, &now);
    if (!strcmp(now.sha, r->identity.sha))
        return true;
    td_identity_compare(r->identity.text, now.text, what, sizeof what);
    return td_err_set(err, TD_E_AGAIN, "other tokens would come: %s", what);
}

static bool load(session *r, const standing *s, const spec_text *texts, uint32_t n, td_err *err)
{
    const char *specs[TD_STAGES_MAX];
    for (uint32_t i = 0; i < n; i++)
        specs[i] = texts[i];
    td_layout_params params = td_setup_layout_params(r);
    params.specs = specs;
    params.n_specs = n;
    params.n_ctx = s->n_ctx;
    td_target *t = td_target_create(&params, err);
    td_log_progress_end();
    if (t && (!check_identity(r, t, err) || !td_setup_keep_prompts(r, t, err)))
        td_target_destroy(&t);
    if (!t)
        return false;
    for (uint32_t i = 0; i < s->n_stages; i++)
        td_target_add_figures(t, i < n ? i : n - 1, &s->stages[i]);
    r->target = t;
    return true;
}

static bool load_same(session *r, standing *s, td_err *err)
{
    spec_text texts[TD_STAGES_MAX];
    for (uint32_t i = 0; i < s->n_stages; i++)
        snprintf(texts[i], sizeof texts[i], "%s@%u-%u", s->stages[i].spec, s->stages[i].first,
                 s->stages[i].last);
    return load(r, s, texts, s->n_stages, err);
}

/* A spare that is there, of the kind, and has no layers yet. */
static bool is_fit(const standing *s, uint32_t i, const char *kind)
{
    const td_target_look *look = &s->looks[i];
    char spec[sizeof s->stages[0].spec];
    size_t n_host = strchr(look->spec, '/') ? strcspn(look->spec, "/") + 1 : 0;
    if (!look->is_there || s->is_bad[i] || !is_kind(look, kind))
        return false;
    snprintf(spec, sizeof spec, "%.*s%.90s", (int)n_host, look->spec, look->info.spec);
    for (uint32_t k = 0; k < s->n_stages; k++)
        if (!strcmp(s->stages[k].spec, spec))
            return false;
    return true;
}

/* A spare in the place of each stage that is not there. */
static bool load_spares(session *r, standing *s, td_err *err)
{
    spec_text texts[TD_STAGES_MAX];
    bool is_used[TD_COUNT(s->looks)] = {0};
    for (uint32_t i = 0; i < s->n_stages; i++) {
        const char *spec = s->stages[i].spec;
        uint32_t k = s->n_stages;
        while (k < s->n_looks && (is_used[k] || !is_fit(s, k, s->kinds[i])))
            k++;
        if (!s->looks[i].is_there && k == s->n_looks)
            return td_err_set(err, TD_E_UNAVAILABLE, "none of its kind is there for %s", spec);
        if (!s->looks[i].is_there) {
            is_used[k] = true;
            spec = s->looks[k].spec;
        }
        snprintf(texts[i], sizeof texts[i], "%s@%u-%u", spec, s->stages[i].first,
                 s->stages[i].last);
        if (spec != s->stages[i].spec)
            td_log_warn("%s takes the layers of %s", spec, s->stages[i].spec);
    }
    bool is_ok = load(r, s, texts, s->n_stages, err);
    for (uint32_t k = 0; k < s->n_looks && !is_ok; k++)
        s->is_bad[k] |= is_used[k];
    return is_ok;
}

/* The layers shared out anew over the stages and spares that are there. */
static bool load_rest(session *r, standing *s, td_err *err)
{
    spec_text texts[TD_STAGES_MAX];
    uint32_t n = 0;
    if (s->is_rounded)
        return td_err_set(err, TD_E_UNAVAILABLE,
                          "with --wire f16 layers stay cut as they are: what goes between machines "
                          "elsewhere in the model would give other tokens");
    for (uint32_t i = 1; i < s->n_stages; i++)
        if (strcmp(s->kinds[i], s->kinds[0]) != 0)
            return td_err_set(err, TD_E_UNAVAILABLE,
                              "layers may go to another place only where all are of one kind, "
                              "not %.200s and %.200s",
                              s->kinds[0], s->kinds[i]);
    for (uint32_t i = 0; i < s->n_looks && n < TD_STAGES_MAX; i++) {
        const char *spec = s->looks[i].spec;
        bool is_apart = false; /* from stages of the same machine */
        for (uint32_t k = 0; k + 1 < n; k++)
            is_apart |= is_same_host(texts[k], spec) && !is_same_host(texts[n - 1], spec);
        bool is_fit_here = i < s->n_stages ? s->looks[i].is_there : is_fit(s, i, s->kinds[0]);
        if (is_fit_here && !is_apart)
            snprintf(texts[n++], sizeof texts[0], "%s", spec);
    }
    if (!n)
        return td_err_set(err, TD_E_UNAVAILABLE, "nothing is left");
    td_log_warn("the layers are shared out anew, over %u devices instead of %u", n, s->n_stages);
    return load(r, s, texts, n, err);
}

/* -- one means after another ------------------------------------------------------------------- */

static const struct {
    const char *name;
    uint64_t from_us; /* the loss */
    bool (*load)(session *r, standing *s, td_err *err);
} means[] = {{"the same devices", 0, load_same},
             {"a spare", SAME_US, load_spares},
             {"what is left", REST_US, load_rest}};

static void note_why(standing *s, const char *what, const char *why)
{
    size_t n = strlen(s->why);
    if (!strstr(s->why, why))
        snprintf(s->why + n, sizeof s->why - n, "%s%s: %s", n ? "; " : "", what, why);
}

/* Tries the means that are due so long after the loss; their number where none worked. */
static td_run_back try_means(session *r, standing *s, uint64_t away_us, bool *is_rest_tried)
{
    bool is_there = are_all_there(s);
    for (uint32_t i = 0; i < TD_COUNT(means) && !td_signals_pending(); i++) {
        bool is_due = i == TD_BACK_SAME ? is_there : !is_there && away_us >= means[i].from_us;
        td_err err = {0};
        if (!is_due || (i == TD_BACK_REST && *is_rest_tried))
            continue;
        if (means[i].load(r, s, &err))
            return (td_run_back)i;
        if (i != TD_BACK_SPARE || r->opened.n_spares)
            note_why(s, means[i].name, err.message);
        *is_rest_tried |= i == TD_BACK_REST;
        s->n_loads += is_there;
    }
    for (uint32_t i = 0; i < s->n_stages; i++)
        if (!s->looks[i].is_there)
            note_why(s, s->looks[i].spec, s->looks[i].why.message);
    return (td_run_back)TD_COUNT(means);
}

/* By what the target is there again: r->target is set then. */
static td_run_back load_again(session *r, standing *s)
{
    td_run_back back = (td_run_back)TD_COUNT(means);
    uint64_t from_us = now_us(r), away_us = 0;
    bool is_rest_tried = false;
    while (!r->target && !td_signals_pending() && away_us < END_US && s->n_loads < LOADS_MAX) {
        uint64_t within_us = LOOK_US, load_us;
        for (size_t i = 0; i < TD_COUNT(means); i++) /* but be done when the next is due */
            if (means[i].from_us > away_us && means[i].from_us - away_us < within_us)
                within_us = means[i].from_us - away_us;
        td_err err = {0};
        bool is_known = look(r, s, within_us, &err);
        away_us = now_us(r) - from_us;
        load_us = now_us(r);
        if (is_known)
            back = try_means(r, s, away_us, &is_rest_tried);
        else
            note_why(s, "looking for them", err.message);
        from_us += now_us(r) - load_us;
        if (!r->target && (!is_known || are_all_there(s)))
            wait_ms(TRY_WAIT_MS << td_min_u32(s->n_loads, 3));
        away_us = now_us(r) - from_us;
    }
    return back;
}

static void note_loss(session *r, td_run_back back, uint64_t start_us, const char *reason,
                      uint64_t n_replayed)
{
    td_run_totals *t = r->totals;
    uint64_t away_us = now_us(r) - start_us;
    if (t->n_target_losses < TD_RUN_LOSSES_MAX) {
        td_run_loss *l = &t->losses[t->n_target_losses];
        *l = (td_run_loss){.back = back,
                           .at_us = start_us - t->start_us,
                           .away_us = away_us,
                           .n_replayed = n_replayed};
        snprintf(l->reason, sizeof l->reason, "%.150s", reason);
    }
    t->n_target_losses++;
    t->target_away_us += away_us;
    r->is_token_due = true;
    td_log_info("the target is there again after %.1f s, by %s; %llu positions are computed again",
                (double)away_us * 1e-6, means[back].name, (unsigned long long)n_replayed);
}

bool td_recover_target(session *r, const td_err *loss, td_err *err)
{
    if (!is_loss(loss->code))
        return td_err_set(err, loss->code, "target: %s", loss->message);
    uint64_t start_us = now_us(r), n = n_committed(r);
    r->n_in_vain = n > r->n_committed_at_loss ? 1 : r->n_in_vain + 1;
    r->n_committed_at_loss = n;
    if (r->n_in_vain > IN_VAIN_MAX)
        return td_err_set(err, TD_E_AGAIN, "target: lost %u times with nothing done between: %s",
                          r->n_in_vain, loss->message);
    standing *s = td_alloc(1, sizeof *s, err);
    if (!s)
        return false;
    td_log_warn("the target is lost (%s); loading it again", loss->message);
    note_standing(r, s);
    td_trace_take(r->trace, r->target, 0);
    td_target_destroy(&r->target);
    td_run_back back = load_again(r, s);
    if (!r->target)
        td_err_set(err, TD_E_AGAIN, "target: lost (%s), and not to be had again: %s", loss->message,
                   s->why[0] ? s->why : "stopped by a signal");
    td_free(s);
    if (!r->target)
        return false;
    td_trace_set_target(r->trace, r->target);
    uint64_t n_before = td_coordinator_get_stats(r->coordinator)->n_replayed;
    td_coordinator_on_target_lost(r->coordinator, now_us(r));
    if (td_setup_uses_head(r)) /* what it was asked for was lost with it */
        td_loop_join_draft(r);
    td_coordinator_set_pages(r->coordinator, td_target_n_pages(r->target));
    note_loss(r, back, start_us, loss->message,
              td_coordinator_get_stats(r->coordinator)->n_replayed - n_before);
    return true;
}

void td_recover_note(session *r)
{
    td_run_totals *t = r->totals;
    if (!r->is_token_due || n_committed(r) <= r->n_committed_at_loss)
        return;
    r->is_token_due = false;
    for (uint32_t i = 0; i < t->n_target_losses && i < TD_RUN_LOSSES_MAX; i++)
        if (!t->losses[i].next_token_us)
            t->losses[i].next_token_us = now_us(r) - t->start_us - t->losses[i].at_us;
}

/* -- spares, beforehand ------------------------------------------------------------------------ */

/* Could stand in for a stage elsewhere, as far as those are there. */
static bool check_spare(const standing *s, const td_target_look *spare, td_err *err)
{
    char kinds[400] = "";
    bool is_fit_for_any = false;
    for (uint32_t i = 0; i < s->n_stages; i++) {
        const td_target_look *stage = &s->looks[i];
        if (!strchr(stage->spec, '/') || !stage->is_there)
            continue;
        char kind[TD_DEVICE_KIND_BYTES];
        size_t n = strlen(kinds);
        td_device_write_kind(&stage->info, kind, sizeof kind);
        is_fit_for_any |= is_kind(spare, kind);
        snprintf(kinds + n, sizeof kinds - n, "%s%.100s is %.150s", n ? ", " : "", stage->spec,
                 kind);
    }
    char own[TD_DEVICE_KIND_BYTES];
    td_device_write_kind(&spare->info, own, sizeof own);
    return is_fit_for_any || !kinds[0] ||
           td_err_set(err, TD_E_USAGE,
                      "--spare %s is %s, and would choose other tokens; allowed: of the kind of a "
                      "stage elsewhere (%s)",
                      spare->spec, own, kinds);
}

bool td_recover_check_spares(const session *r, td_err *err)
{
    const td_run_params *p = &r->opened;
    bool is_elsewhere = false, is_ok = true;
    for (uint32_t i = 0; i < p->n_specs; i++)
        is_elsewhere |= strchr(p->specs[i], '/') != NULL;
    if (!p->n_spares)
        return true;
    if (!is_elsewhere)
        return td_err_set(err, TD_E_USAGE,
                          "--spare %s: no stage is on another machine, to stand in for",
                          p->spares[0]);
    standing *s = td_alloc(1, sizeof *s, err);
    if (!s)
        return false;
    for (; s->n_stages < p->n_specs; s->n_stages++)
        set_spec(&s->looks[s->n_stages], p->specs[s->n_stages]);
    s->n_looks = s->n_stages + p->n_spares;
    for (uint32_t i = 0; i < p->n_spares; i++) {
        set_spec(&s->looks[s->n_stages + i], p->spares[i]);
        if (strchr(p->spares[i], '@'))
            is_ok = td_err_set(err, TD_E_USAGE,
                               "--spare %s: it takes the layers of the stage that is lost; "
                               "allowed: without @a-b",
                               p->spares[i]);
    }
    const td_layout_params params = td_setup_layout_params(r);
    is_ok = is_ok && td_target_look_for(&params, s->looks, s->n_looks, s->n_looks, LOOK_US, err);
    for (uint32_t i = s->n_stages; is_ok && i < s->n_looks; i++) {
        const td_target_look *spare = &s->looks[i];
        if (spare->is_there)
            is_ok = check_spare(s, spare, err);
        else if (spare->why.code == TD_E_USAGE) /* that machine is there, and has no such device */
            is_ok = td_err_set(err, TD_E_USAGE, "--spare: %s", spare->why.message);
        else
            td_log_warn("the spare %s is not there: %s", spare->spec, spare->why.message);
    }
    td_free(s);
    return is_ok;
}
