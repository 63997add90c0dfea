/* The chain over the few tokens that a device names, by the full chain's own arithmetic.
 *
 * Penalized tokens stand apart, with their logits, and are merged into the list in order. What is
 * in the merged order up to the list's last token is known for certain; nothing that is not there
 * comes before. So top-k is exact. Min-p is, when the list goes down to it. Top-p needs the mass of
 * all, which is known within bounds: there is a set of tokens that are kept for sure and a larger
 * one of those that may be. If one token wins the race in both, it wins in all between.
 *
 * Where the list ends too early, the winner over the whole vocabulary is still known, and it is the
 * token if it is kept for sure; and a race can be so clear that nothing behind the list can win. */
#include "model/shortlist.h"

#include "model/sampling_private.h"

#include "base/check.h"

#include <string.h>

#define LOG2_E          1.4426950408889634
#define TEMPERATURE_MIN 0.001f /* below it, scores in f32 cannot tell tokens apart */
#define SCALE_MAX       1e20   /* of what is left of them */
#define NOISE_MIN       (0x1p-33 * (1 - 1e-9))
#define WEIGHT_ERROR    1e-9 /* far above what exp() may err by, relatively */
#define ENTRIES_MAX     (TD_TOP_LIST + TD_TOP_RECENT)

typedef struct {
    double x, weight;
    uint32_t id;
} entry;

typedef struct {
    const td_sampler *s;
    const td_sampling_params *params;
    const td_draw *draw;
    const td_pick *pick;
    uint32_t n_vocab;
    entry recent[TD_TOP_RECENT]; /* each once */
    entry merged[ENTRIES_MAX];
    uint32_t n_recent, n_merged;
    uint32_t n_known; /* of merged: nothing else comes before */
    bool is_whole;    /* merged are all tokens */
    double max;
} shortlist;

static bool has_top_k(const td_sampling_params *p, uint32_t n_vocab)
{
    return p->top_k > 0 && p->top_k < n_vocab;
}

static bool has_penalty(const td_sampling_params *p)
{
    return p->repeat_penalty != 1.0f && p->repeat_last_n > 0;
}

td_draw td_shortlist_draw(const td_sampling_params *p, uint32_t n_vocab, uint64_t stream,
                          uint64_t position, const uint32_t *history, bool has_other_noise)
{
    bool is_greedy = p->temperature == 0.0f, is_cold = p->temperature < TEMPERATURE_MIN;
    bool is_short = has_top_k(p, n_vocab) && p->top_k <= TD_TOP_LIST;
    bool is_cut = has_top_k(p, n_vocab) || p->top_p < 1.0f || p->min_p > 0.0f;
    td_draw d = {
        .kind = TD_DRAW_NONE,
        .scale = is_greedy ? 0 : (float)fmin(LOG2_E / (double)p->temperature, SCALE_MAX),
        .stream = {(uint32_t)stream, (uint32_t)(stream >> 32)},
        .position = {(uint32_t)position, (uint32_t)(position >> 32)},
        .top_p = 1.0f,
        .penalty = 1.0f,
    };
    if (has_penalty(p) && p->repeat_last_n > TD_TOP_RECENT)
        return d;
    if (!is_greedy && ((has_other_noise && !is_cut) || (double)d.scale >= SCALE_MAX))
        return d;
    d.kind = is_greedy                                ? TD_DRAW_GREEDY
             : is_short || is_cold || has_other_noise ? TD_DRAW_LIST
                                                      : TD_DRAW_RACE;
    if (!is_greedy) {
        d.n_list = is_short ? p->top_k : is_cut || is_cold ? TD_TOP_LIST : 0;
        d.has_mass = !is_short && p->top_p < 1.0f;
        d.top_k = is_short ? p->top_k : 0;
        d.top_p = p->top_p;
        d.min_p = p->min_p;
    }
    if (!has_penalty(p))
        return d;
    d.penalty = p->repeat_penalty;
    d.n_recent_max = p->repeat_last_n;
    for (uint64_t i = position - (position < d.n_recent_max ? position : d.n_recent_max);
         i < position; i++)
        td_draw_push(&d, history[i]); /* those beyond the vocabulary are passed over later */
    return d;
}

static void read_recent(shortlist *l)
{
    double penalty = (double)l->params->repeat_penalty;
    for (uint32_t i = 0; i < l->draw->n_recent; i++) {
        uint32_t id = l->draw->recent[i];
        bool is_new = id < l->n_vocab;
        for (uint32_t k = 0; k < l->n_recent; k++)
            is_new = is_new && l->recent[k].id != id;
        if (is_new)
            l->recent[l->n_recent++] =
                (entry){.x = td_sampling_penalized((double)l->pick->recent[i], penalty), .id = id};
    }
}

static bool is_before(const entry *a, const entry *b)
{
    return a->x > b->x || (a->x == b->x && a->id < b->id);
}

/* The likeliest of all. */
static entry find_first(const shortlist *l)
{
    entry first = {.x = (double)l->pick->max, .id = l->pick->id_max};
    for (uint32_t i = 0; i < l->n_recent; i++)
        if ((i == 0 && l->n_recent == l->n_vocab) || is_before(&l->recent[i], &first))
            first = l->recent[i];
    return first;
}

static double weight_of(const shortlist *l, double x)
{
    return td_sampling_weight(l->params, x, l->max);
}

static void merge(shortlist *l)
{
    uint32_t n_list = l->pick->n_list, n = 0, k = 0;
    for (uint32_t i = 0; i < n_list; i++)
        l->merged[n++] = (entry){.x = (double)l->pick->list[i].logit, .id = l->pick->list[i].id};
    for (uint32_t i = 0; i < l->n_recent; i++) {
        uint32_t at = n++;
        for (; at > 0 && is_before(&l->recent[i], &l->merged[at - 1]); at--)
            l->merged[at] = l->merged[at - 1];
        l->merged[at] = l->recent[i];
    }
    l->n_merged = n;
    for (uint32_t i = 0; i < n; i++)
        l->merged[i].weight = weight_of(l, l->merged[i].x);
    l->is_whole = n == l->n_vocab;
    for (l->n_known = n; n_list && l->n_known > 0 && !l->is_whole; l->n_known--) {
        k = l->n_known - 1;
        if (l->merged[k].id == l->pick->list[n_list - 1].id)
            break;
    }
    if (!n_list && !l->is_whole)
        l->n_known = 0;
}

/* The winner over all tokens, if it is known. */
static bool race_all(const shortlist *l, td_race race, entry *winner)
{
    const td_pick *pick = l->pick;
    if (l->draw->kind != TD_DRAW_RACE || pick->n > TD_TOP_CANDIDATES)
        return false;
    for (uint32_t i = 0; i < pick->n; i++) {
        entry e = {.x = (double)pick->candidates[i].logit, .id = pick->candidates[i].id};
        e.weight = weight_of(l, e.x);
        if (e.weight <= 0) /* then others may be above */
            return false;
        if (td_race_enter(&race, e.id, e.weight))
            *winner = e;
    }
    for (uint32_t i = 0; i < l->n_recent; i++) {
        entry e = l->recent[i];
        e.weight = weight_of(l, e.x);
        if (e.weight > 0 && td_race_enter(&race, e.id, e.weight))
            *winner = e;
    }
    return true;
}

/* What top-p is a part of, within bounds. */
static void bound_total(const shortlist *l, double *low, double *high)
{
    const td_sampling_params *p = l->params;
    bool is_cut = has_top_k(p, l->n_vocab);
    uint32_t n = is_cut ? td_min_u32(l->n_known, p->top_k) : l->n_merged;
    double sum = 0, rest = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += (double)td_sampling_mass(l->merged[i].weight);
    *low = *high = sum; /* of at most 320 whole numbers below 2^44: exact */
    if (l->is_whole || (is_cut && l->n_known >= p->top_k))
        return;
    *high = HUGE_VAL;
    if (!l->draw->has_mass)
        return;
    double others =
        (double)l->pick->mass * TD_SAMPLING_MASS_ONE * weight_of(l, (double)l->pick->max);
    for (uint32_t i = 0; i < l->n_recent; i++)
        rest += (double)td_sampling_mass(weight_of(l, l->recent[i].x));
    *high = (others * (1 + TD_TOP_MASS_ERROR) + rest) * (1 + WEIGHT_ERROR) + l->n_vocab;
    double least = (others * (1 - TD_TOP_MASS_ERROR) + rest) * (1 - WEIGHT_ERROR) - l->n_vocab;
    if (!is_cut && least > *low)
        *low = least;
}

/* The race of those that are kept for sure, and of those that may be. *is_ended: there is nothing
 * behind. *is_kept: is `id` one of the sure ones? */
static void race_kept(const shortlist *l, td_race *sure, td_race *maybe, uint32_t id,
                      bool *is_ended, bool *is_kept)
{
    const td_sampling_params *p = l->params;
    double low = 0, high = 0, mass = 0, min_p = (double)p->min_p;
    uint32_t n_max = has_top_k(p, l->n_vocab) ? p->top_k : l->n_vocab;
    bool has_top_p = p->top_p < 1.0f;
    if (has_top_p)
        bound_total(l, &low, &high);
    *is_kept = false;
    for (uint32_t i = 0; i < l->n_known; i++) {
        const entry *e = &l->merged[i];
        *is_ended = i >= n_max || (has_top_p && !(mass < (double)p->top_p * high)) ||
                    e->weight <= 0 || e->weight < min_p * (1 - WEIGHT_ERROR);
        if (*is_ended)
            return;
        bool is_sure = !has_top_p || mass < (double)p->top_p * low;
        mass += (double)td_sampling_mass(e->weight);
        if (e->weight < min_p)
            continue;
        td_race_enter(maybe, e->id, e->weight);
        if (is_sure)
            td_race_enter(sure, e->id, e->weight);
        *is_kept |= is_sure && e->id == id;
    }
    *is_ended = l->is_whole || l->n_known >= n_max ||
                (has_top_p && l->n_known > 0 && !(mass < (double)p->top_p * high));
}

/* Of a chain that is not greedy. */
static bool decide(shortlist *l, uint32_t *token)
{
    const td_sampling_params *p = l->params;
    uint64_t stream = (uint64_t)l->draw->stream[1] << 32 | l->draw->stream[0];
    uint64_t position = (uint64_t)l->draw->position[1] << 32 | l->draw->position[0];
    td_race sure = td_sampler_race(l->s, stream, position), maybe = sure;
    entry winner = {.id = UINT32_MAX};
    bool has_winner = race_all(l, sure, &winner), is_ended, is_kept;
    bool is_cut = has_top_k(p, l->n_vocab) || p->top_p < 1.0f;
    if (!has_winner || is_cut || winner.weight < (double)p->min_p) {
        merge(l);
        race_kept(l, &sure, &maybe, winner.id, &is_ended, &is_kept);
        if (!is_kept) {
            if (sure.id != maybe.id || sure.id == UINT32_MAX)
                return false;
            double last = l->n_known ? l->merged[l->n_known - 1].weight * (1 + WEIGHT_ERROR) : 1;
            if (!is_ended && !(sure.best * last < NOISE_MIN))
                return false;
            winner.id = sure.id;
        }
    }
    *token = winner.id;
    return true;
}

bool td_shortlist_choose(const td_sampler *s, const td_sampling_params *params, uint32_t n_vocab,
                         const td_draw *draw, const td_pick *pick, uint32_t *token)
{
    if (draw->kind == TD_DRAW_NONE)
        return false;
    if (draw->kind == TD_DRAW_GREEDY && !draw->n_recent) {
        *token = pick->id_max;
        return true;
    }
    if (!pick->is_finite)
        return false;
    shortlist l; /* large: only what is read is set */
    l.s = s;
    l.params = params;
    l.draw = draw;
    l.pick = pick;
    l.n_vocab = n_vocab;
    l.n_recent = 0;
    read_recent(&l);
    entry first = find_first(&l);
    l.max = first.x;
    if (draw->kind != TD_DRAW_GREEDY)
        return decide(&l, token);
    *token = first.id;
    return true;
}
