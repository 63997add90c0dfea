#include "draft/vocab_drafter.h"

#include "base/check.h"
#include "base/mem.h"

#include <string.h>

#define CHUNK 2048u /* draft tokens handed over at once */

typedef struct {
    bool is_open;
    uint32_t sequence;
    uint32_t *tokens; /* [n_ctx]: the target's, committed ones and then the draft's own */
    uint32_t *starts; /* [n_ctx + 1]: draft position at which target position i begins */
    uint32_t n;       /* target tokens known; starts[n] is where the next one goes */
    uint32_t n_committed;
    uint32_t told_other; /* as in the drafter */
    uint32_t
        n_given; /* of the proposal under way: committed ones, which the drafter is not asked for */
    td_proposal inner; /* what the drafter is asked while the sequence has a proposal under way */
} vocab_sequence;

struct td_vocab_drafter {
    td_drafter *drafter;
    const td_vocab_map *map;
    uint32_t n_slots, n_ctx;
    vocab_sequence *sequences; /* [n_slots] */
    uint32_t chunk[CHUNK + TD_TOKEN_MAX];
};

td_vocab_drafter *td_vocab_drafter_create(td_drafter *drafter, const td_vocab_map *map, td_err *err)
{
    td_vocab_drafter *t = td_alloc(1, sizeof *t, err);
    if (t == NULL)
        return NULL;
    t->drafter = drafter;
    t->map = map;
    if (map == NULL)
        return t;
    t->n_slots = td_drafter_n_slots(drafter);
    t->n_ctx = td_drafter_n_ctx(drafter);
    t->sequences = td_alloc(t->n_slots, sizeof t->sequences[0], err);
    for (uint32_t i = 0; t->sequences != NULL && i < t->n_slots; i++) {
        vocab_sequence *s = &t->sequences[i];
        s->tokens = td_alloc(t->n_ctx, sizeof(uint32_t), err);
        s->starts = td_alloc((size_t)t->n_ctx + 1, sizeof(uint32_t), err);
        if (s->tokens == NULL || s->starts == NULL) {
            td_vocab_drafter_destroy(&t);
            return NULL;
        }
    }
    if (t->sequences == NULL)
        td_vocab_drafter_destroy(&t);
    return t;
}

void td_vocab_drafter_destroy(td_vocab_drafter **translator)
{
    td_vocab_drafter *t = *translator;
    if (t == NULL)
        return;
    for (uint32_t i = 0; t->sequences != NULL && i < t->n_slots; i++) {
        td_free(t->sequences[i].tokens);
        td_free(t->sequences[i].starts);
    }
    td_free(t->sequences);
    td_free(t);
    *translator = NULL;
}

static vocab_sequence *find(td_vocab_drafter *t, uint32_t sequence)
{
    for (uint32_t i = 0; i < t->n_slots; i++)
        if (t->sequences[i].is_open && t->sequences[i].sequence == sequence)
            return &t->sequences[i];
    return NULL;
}

bool td_vocab_drafter_open(td_vocab_drafter *t, uint32_t sequence, uint64_t stream,
                           const td_sampling_params *sampling, td_err *err)
{
    if (t->map == NULL)
        return td_drafter_open(t->drafter, sequence, stream, sampling, err);
    td_vocab_drafter_close(t, sequence);
    if (!td_drafter_open(t->drafter, sequence, stream, sampling, err))
        return false;
    vocab_sequence *s = t->sequences; /* the drafter had a place, so there is one here */
    while (s->is_open)
        s++;
    TD_ASSERT(s < t->sequences + t->n_slots);
    s->is_open = true;
    s->sequence = sequence;
    s->n = s->n_committed = 0;
    s->told_other = UINT32_MAX;
    return true;
}

bool td_vocab_drafter_feed(td_vocab_drafter *t, uint32_t sequence, uint32_t position,
                           const uint32_t *ids, uint32_t n_ids, td_err *err)
{
    if (t->map == NULL)
        return td_drafter_feed(t->drafter, sequence, position, ids, n_ids, err);
    vocab_sequence *s = find(t, sequence);
    uint32_t n_target = td_vocab_map_get_info(t->map).n_target;
    if (s == NULL)
        return td_err_set(err, TD_E_DATA, "sequence %u is not open", sequence);
    if (position >= t->n_ctx && s->n == t->n_ctx)
        return true; /* beyond the draft's context, as in the drafter */
    if (position > s->n)
        return td_err_set(err, TD_E_DATA, "sequence %u: fed at position %u, known are %u tokens",
                          sequence, position, s->n);
    for (uint32_t i = 0; i < n_ids; i++)
        if (ids[i] >= n_target)
            return td_err_set(err, TD_E_DATA, "token %u at position %u; allowed: below %u", ids[i],
                              position + i, n_target);
    uint32_t begin = s->starts[position], n = 0, at = position;
    bool is_same = true; /* as what is known: then the draft's own text goes on behind it */
    for (uint32_t i = 0; i < n_ids && at < t->n_ctx; i++) {
        const uint32_t *pieces;
        uint32_t n_pieces;
        td_vocab_map_to_draft(t->map, ids[i], &pieces, &n_pieces);
        memcpy(t->chunk + n, pieces, n_pieces * sizeof pieces[0]);
        n += n_pieces;
        is_same = is_same && at < s->n && s->tokens[at] == ids[i] && s->starts[at + 1] == begin + n;
        if (!is_same && at < s->n && s->tokens[at] != ids[i])
            s->told_other = td_min_u32(s->told_other, at);
        s->tokens[at] = ids[i];
        s->starts[++at] = begin + n;
        if (!is_same)
            s->n = at;
        if (n < CHUNK)
            continue;
        if (!td_drafter_feed(t->drafter, sequence, begin, t->chunk, n, err))
            return false;
        begin += n;
        n = 0;
    }
    s->n_committed = is_same ? td_max_u32(s->n_committed, at) : at;
    return n == 0 || td_drafter_feed(t->drafter, sequence, begin, t->chunk, n, err);
}

/* Hands on what the drafter has found since. */
static void take_over(td_vocab_drafter *t, vocab_sequence *s, td_proposal *p)
{
    for (; p->n - s->n_given < s->inner.n && s->n < t->n_ctx; s->n++) {
        uint32_t id = td_vocab_map_to_target(t->map, s->inner.ids[p->n - s->n_given]);
        if (id == TD_NO_TOKEN)
            break;
        s->tokens[s->n] = p->ids[p->n++] = id;
        s->starts[s->n + 1] = s->starts[s->n] + 1;
    }
    p->busy_us = s->inner.busy_us;
    p->is_done = s->inner.is_done || p->n - s->n_given < s->inner.n;
}

bool td_vocab_drafter_begin(td_vocab_drafter *t, td_proposal *p, td_err *err)
{
    if (t->map == NULL)
        return td_drafter_begin(t->drafter, p, err);
    vocab_sequence *s = find(t, p->sequence);
    p->n = 0;
    p->is_done = true;
    if (s == NULL)
        return td_err_set(err, TD_E_DATA, "sequence %u is not open", p->sequence);
    if (p->goes_on)
        td_proposal_resume(p, s->n, s->n_committed, s->told_other);
    s->told_other = UINT32_MAX;
    s->n_given = 0;
    if (p->goes_on && p->position < s->n_committed) {
        s->n_given = td_min_u32(p->k, s->n_committed - p->position);
        memcpy(p->ids, s->tokens + p->position, s->n_given * sizeof p->ids[0]);
        p->n = s->n_given;
        if (p->n == p->k)
            return true;
    }
    uint32_t from = p->position + s->n_given;
    /* Nothing to follow, or nothing that the draft has read. */
    if (from < s->n_committed || from > s->n || s->starts[from] == 0)
        return true;
    if (!td_vocab_map_get_info(t->map).is_aligned) /* those that are have one noise */
        td_drafter_set_noise(t->drafter, p->sequence, td_vocab_map_targets(t->map),
                             (int64_t)from - s->starts[from]);
    s->inner = (td_proposal){.sequence = p->sequence,
                             .position = s->starts[from],
                             .k = p->k - s->n_given,
                             .busy_us = p->busy_us};
    if (!td_drafter_begin(t->drafter, &s->inner, err))
        return false;
    s->n = from;
    take_over(t, s, p);
    return true;
}

bool td_vocab_drafter_step(td_vocab_drafter *t, td_proposal *const *jobs, uint32_t n_jobs,
                           td_err *err)
{
    if (t->map == NULL)
        return td_drafter_step(t->drafter, jobs, n_jobs, err);
    td_proposal *inner[TD_VERIFY_ROWS_MAX] = {0};
    n_jobs = td_min_u32(n_jobs, TD_VERIFY_ROWS_MAX);
    for (uint32_t i = 0; i < n_jobs; i++) {
        vocab_sequence *s = find(t, jobs[i]->sequence);
        TD_ASSERT(s != NULL);
        inner[i] = &s->inner;
    }
    bool is_ok = td_drafter_step(t->drafter, inner, n_jobs, err);
    for (uint32_t i = 0; i < n_jobs; i++)
        take_over(t, find(t, jobs[i]->sequence), jobs[i]);
    return is_ok;
}

void td_vocab_drafter_close(td_vocab_drafter *t, uint32_t sequence)
{
    vocab_sequence *s = find(t, sequence);
    if (s != NULL)
        s->is_open = false;
    td_drafter_close(t->drafter, sequence);
}

void td_vocab_drafter_reset(td_vocab_drafter *t)
{
    for (uint32_t i = 0; i < t->n_slots; i++)
        t->sequences[i].is_open = false;
    td_drafter_reset(t->drafter);
}
