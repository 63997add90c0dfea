/* Of the parts of a row what its caller wants to know (kernels/ops.h, td_op_pick), and feed. The
 * largest logits go through a heap of as many as are wanted, its least at the root: what is in a
 * group whose largest is below that costs nothing. The device's own choice is made in double from
 * what the caller is told. */
#include "kernels/host/top.h"

#include "base/check.h"
#include "base/rng.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#define ENTRIES_MAX (TD_TOP_LIST + TD_TOP_RECENT)
#define FEW         64u   /* of the list, tried first */
#define SLACK       0.001 /* above what masses err by */

typedef struct {
    double score; /* log2 of its weight relative to the largest logit that is not recent */
    double x;
    uint32_t id;
} entry;

/* -- the race -------------------------------------------------------------------------------- */

/* Adds the candidates of a part whose scores, relative to the row's largest logit, reach
 * `least`. */
static void gather_candidates(const td_part *part, float offset, float least, float *best,
                              td_pick *pick)
{
    if (part->n > TD_TOP_CANDIDATES && part->best + offset >= least)
        pick->n = TD_TOP_CANDIDATES + 1;
    for (uint32_t i = 0; i < part->n && part->n <= TD_TOP_CANDIDATES; i++) {
        float s = part->candidates[i].score + offset;
        if (s < least)
            continue;
        if (s > *best) {
            *best = s;
            pick->token = part->candidates[i].id;
        }
        if (pick->n >= TD_TOP_CANDIDATES) {
            pick->n = TD_TOP_CANDIDATES + 1;
            continue;
        }
        pick->candidates[pick->n].id = part->candidates[i].id;
        pick->candidates[pick->n++].logit = part->candidates[i].logit;
    }
}

static float offset_of(const td_part *part, const td_draw *draw, const td_pick *pick)
{
    return (td_top_value(part->key_max) - pick->max) * draw->scale;
}

/* Returns the best score. */
static float pick_race(const td_part *parts, uint32_t n_parts, const td_draw *draw, td_pick *pick)
{
    float best = -HUGE_VALF, most = -HUGE_VALF;
    for (uint32_t i = 0; i < n_parts; i++)
        if (parts[i].key_max != INT32_MIN)
            best = fmaxf(best, parts[i].best + offset_of(&parts[i], draw, pick));
    for (uint32_t i = 0; i < n_parts; i++)
        if (parts[i].key_max != INT32_MIN)
            gather_candidates(&parts[i], offset_of(&parts[i], draw, pick), best - TD_TOP_WINDOW,
                              &most, pick);
    return best;
}

/* -- the largest ----------------------------------------------------------------------------- */

/* Larger is before: by key, then by lower id. */
static uint64_t rank_of(int32_t key, uint32_t id)
{
    return (uint64_t)((uint32_t)key ^ 0x80000000u) << 32 | (UINT32_MAX - id);
}

static void sift_down(uint64_t *heap, uint32_t i, uint32_t n)
{
    uint64_t item = heap[i];
    for (uint32_t child; (child = 2 * i + 1) < n; i = child) {
        child += child + 1 < n && heap[child + 1] < heap[child];
        if (heap[child] >= item)
            break;
        heap[i] = heap[child];
    }
    heap[i] = item;
}

typedef struct {
    uint64_t items[TD_TOP_LIST];
    uint32_t n, n_max;
} heap;

static void push(heap *h, uint64_t item)
{
    if (h->n < h->n_max) {
        h->items[h->n++] = item;
        for (uint32_t i = h->n / 2; h->n == h->n_max && i-- > 0;)
            sift_down(h->items, i, h->n);
    } else if (item > h->items[0]) {
        h->items[0] = item;
        sift_down(h->items, 0, h->n);
    }
}

static bool is_recent(const td_draw *draw, uint32_t id)
{
    for (uint32_t i = 0; i < draw->n_recent; i++)
        if (draw->recent[i] == id)
            return true;
    return false;
}

static void push_group(heap *h, uint32_t first, const float *x, uint32_t n_cols,
                       const td_draw *draw)
{
    for (uint32_t i = 0; i < 8; i++) {
        uint32_t id = first + i % 4 + i / 4 * (TD_TOP_CHUNK / 2);
        if (id >= n_cols)
            break;
        uint64_t item = rank_of(td_top_key(x[id]), id);
        if ((h->n < h->n_max || item > h->items[0]) && !is_recent(draw, id))
            push(h, item);
    }
}

/* The groups with the largest maxima of the first chunk go first, so that the heap's root is high
 * from the start. */
static int32_t first_bound(const td_part *part, uint32_t n)
{
    heap h = {.n_max = n};
    for (uint32_t i = 0; i < TD_TOP_GROUPS; i++)
        push(&h, rank_of(part->maxima[i], i));
    return (int32_t)((uint32_t)(h.items[0] >> 32) ^ 0x80000000u);
}

static void pick_largest(const td_part *parts, uint32_t n_parts, const float *x, uint32_t n_cols,
                         const td_draw *draw, uint32_t n_max, td_pick *pick)
{
    heap h = {.n_max = n_max};
    int32_t bound = first_bound(&parts[0], h.n_max);
    for (uint32_t i = 0; i < n_parts; i++) {
        for (uint32_t k = 0; k < TD_TOP_GROUPS && parts[i].key_max >= bound; k++)
            if (parts[i].maxima[k] >= bound && parts[i].maxima[k] != INT32_MIN)
                push_group(&h, i * TD_TOP_CHUNK + 4 * k, x, n_cols, draw);
        if (h.n == h.n_max) {
            int32_t least = (int32_t)((uint32_t)(h.items[0] >> 32) ^ 0x80000000u);
            bound = least > bound ? least : bound;
        }
    }
    for (uint32_t i = h.n / 2; i-- > 0;) /* it may never have been full */
        sift_down(h.items, i, h.n);
    pick->n_list = h.n;
    while (h.n > 0) {
        td_top_logit *to = &pick->list[h.n - 1];
        to->id = UINT32_MAX - (uint32_t)h.items[0];
        to->logit = td_top_value((int32_t)((uint32_t)(h.items[0] >> 32) ^ 0x80000000u));
        h.items[0] = h.items[--h.n];
        sift_down(h.items, 0, h.n);
    }
}

/* -- the device's own choice ----------------------------------------------------------------- */

static uint32_t add_recent(const td_draw *draw, const td_pick *pick, uint32_t n_cols, entry *out)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < draw->n_recent; i++) {
        bool is_new = draw->recent[i] < n_cols;
        for (uint32_t k = 0; k < n; k++)
            is_new = is_new && out[k].id != draw->recent[i];
        double x = (double)pick->recent[i], penalty = (double)draw->penalty;
        if (is_new)
            out[n++] = (entry){.x = x > 0 ? x / penalty : x * penalty, .id = draw->recent[i]};
    }
    return n;
}

static double race_score(const td_draw *draw, const entry *e)
{
    uint64_t stream = (uint64_t)draw->stream[1] << 32 | draw->stream[0];
    uint64_t position = (uint64_t)draw->position[1] << 32 | draw->position[0];
    return e->score - log2(td_noise_exponential(stream, position, e->id));
}

static bool is_before(const entry *a, const entry *b)
{
    return a->x > b->x || (a->x == b->x && a->id < b->id);
}

/* List and recent ones in order. */
static uint32_t merge(const td_pick *pick, entry *recent, uint32_t n_recent, entry *out)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < pick->n_list; i++)
        out[n++] = (entry){.x = (double)pick->list[i].logit, .id = pick->list[i].id};
    for (uint32_t i = 0; i < n_recent; i++) {
        uint32_t at = n++;
        for (; at > 0 && is_before(&recent[i], &out[at - 1]); at--)
            out[at] = out[at - 1];
        out[at] = recent[i];
    }
    return n;
}

/* Do top-p and min-p end within the list, told by more than masses err? */
static bool is_enough(const td_draw *draw, const td_pick *pick, uint32_t n_cols)
{
    entry recent[TD_TOP_RECENT];
    double total = (double)pick->mass, listed = 0, w = 0;
    uint32_t n_recent = add_recent(draw, pick, n_cols, recent);
    for (uint32_t i = 0; i < n_recent; i++)
        total += exp2((recent[i].x - (double)pick->max) * (double)draw->scale);
    for (uint32_t i = 0; i < pick->n_list; i++) {
        w = exp2(((double)pick->list[i].logit - (double)pick->max) * (double)draw->scale);
        listed += w;
    }
    bool is_by_p = draw->has_mass && listed * (1 - SLACK) > (double)draw->top_p * total;
    return is_by_p || w < (double)draw->min_p * (1 - SLACK);
}

/* The list; a few first, where the chain may end before them. */
static void find_list(const td_part *parts, uint32_t n_parts, const float *x, uint32_t n_cols,
                      const td_draw *draw, td_pick *pick)
{
    uint32_t n = td_min_u32(draw->n_list, TD_TOP_LIST);
    if (n > FEW && !draw->top_k && (draw->top_p == 1 || draw->has_mass)) {
        pick_largest(parts, n_parts, x, n_cols, draw, FEW, pick);
        if (is_enough(draw, pick, n_cols))
            return;
    }
    pick_largest(parts, n_parts, x, n_cols, draw, n, pick);
}

/* Of the merged entries, by top-k, top-p and min-p. Where the list ends before they do, the winner
 * of the race over all stays. */
static void choose_of_list(const td_draw *draw, const entry *e, uint32_t n, double best_of_all,
                           td_pick *pick)
{
    double total = 0, listed = 0, before = 0, best = -HUGE_VAL;
    uint32_t n_kept = draw->top_k ? td_min_u32(draw->top_k, n) : n;
    for (uint32_t i = 0; i < n_kept; i++)
        listed += exp2(e[i].score - e[0].score);
    total = draw->top_k || !draw->has_mass ? listed : (double)pick->mass * exp2(-e[0].score);
    for (uint32_t i = 0; i < n && !draw->top_k && draw->has_mass; i++)
        total += is_recent(draw, e[i].id) ? exp2(e[i].score - e[0].score) : 0;
    bool is_open = !draw->top_k && (draw->top_p == 1 || listed < (double)draw->top_p * total);
    uint32_t token = e[0].id;
    for (uint32_t i = 0; i < n_kept; i++) {
        double w = exp2(e[i].score - e[0].score);
        is_open &= w >= (double)draw->min_p;
        if ((draw->top_p < 1 && before >= (double)draw->top_p * total) || w < (double)draw->min_p)
            break;
        before += w;
        double s = race_score(draw, &e[i]);
        if (s > best)
            token = e[i].id;
        best = fmax(best, s);
    }
    if (!is_open || best_of_all < best || draw->kind != TD_DRAW_RACE)
        pick->token = token;
}

static void choose(const td_draw *draw, uint32_t n_cols, double best, td_pick *pick)
{
    entry recent[TD_TOP_RECENT], merged[ENTRIES_MAX];
    uint32_t n_recent = add_recent(draw, pick, n_cols, recent);
    bool is_greedy = draw->kind == TD_DRAW_GREEDY, has_others = n_recent < n_cols;
    entry winner = {.x = (double)pick->max, .id = pick->id_max};
    for (uint32_t i = 0; i < n_recent; i++) {
        recent[i].score = (recent[i].x - (double)pick->max) * (double)draw->scale;
        if ((!has_others && i == 0) || is_before(&recent[i], &winner))
            winner = recent[i];
    }
    if (is_greedy) {
        pick->token = winner.id;
        return;
    }
    if (pick->n_list) {
        uint32_t n = merge(pick, recent, n_recent, merged);
        for (uint32_t i = 0; i < n; i++)
            merged[i].score = (merged[i].x - (double)pick->max) * (double)draw->scale;
        choose_of_list(draw, merged, n, best, pick);
        return;
    }
    for (uint32_t i = 0; i < n_recent && draw->kind == TD_DRAW_RACE; i++) {
        double s = race_score(draw, &recent[i]);
        if (s > best)
            pick->token = recent[i].id;
        best = fmax(best, s);
    }
}

void td_host_pick(const td_op *op, uint32_t row)
{
    const td_draw *draw = (const td_draw *)(const void *)td_host_row(op->in[1], row);
    const td_part *parts = (const td_part *)(const void *)td_host_row(op->in[0], row);
    const float *x = td_host_row(op->in[2], row);
    td_pick *pick = (td_pick *)(void *)td_host_row(op->out, row);
    uint32_t n_cols = op->in[2].n_cols, n_parts = op->in[0].n_cols / TD_PART_WORDS;
    int32_t key_max = INT32_MIN;
    memset(pick, 0, offsetof(td_pick, list));
    pick->is_finite = true;
    for (uint32_t i = 0; i < n_parts; i++) {
        pick->is_finite &= parts[i].is_finite;
        if (parts[i].key_max > key_max) {
            key_max = parts[i].key_max;
            pick->id_max = parts[i].id_max;
        }
    }
    pick->max = key_max == INT32_MIN ? 0 : td_top_value(key_max);
    pick->token = pick->id_max;
    for (uint32_t i = 0; i < draw->n_recent; i++)
        pick->recent[i] = draw->recent[i] < n_cols ? x[draw->recent[i]] : 0;
    float best = -HUGE_VALF;
    if (draw->kind == TD_DRAW_GREEDY) {
        pick->n = 1;
        pick->candidates[0].id = pick->id_max;
        pick->candidates[0].logit = pick->max;
    } else if (draw->kind == TD_DRAW_RACE && pick->is_finite) {
        best = pick_race(parts, n_parts, draw, pick);
    } else {
        pick->n = TD_TOP_CANDIDATES + 1;
    }
    if (draw->kind == TD_DRAW_NONE || !pick->is_finite)
        return;
    for (uint32_t i = 0; i < n_parts && draw->has_mass; i++)
        if (parts[i].key_max != INT32_MIN)
            pick->mass += parts[i].mass * exp2f(offset_of(&parts[i], draw, pick));
    if (draw->n_list && key_max != INT32_MIN)
        find_list(parts, n_parts, x, n_cols, draw, pick);
    choose(draw, n_cols, (double)best, pick);
}

uint32_t td_host_feed(const td_op *op)
{
    const td_pick *pick = (const td_pick *)(const void *)td_host_row(op->in[0], 0);
    td_draw *draw = op->writes[0]->data;
    int32_t *ids = op->writes[1]->data, *positions = op->writes[2]->data;
    uint32_t position = draw->position[0];
    if (draw->step < op->out.t->params.n_rows)
        memcpy(td_host_row(op->out, draw->step), pick, sizeof *pick);
    draw->step++;
    td_draw_push(draw, pick->token);
    if (++draw->position[0] == 0)
        draw->position[1]++;
    if (position >= op->weight->params.n_rows)
        return UINT32_MAX;
    ids[0] = (int32_t)pick->token;
    positions[0] = (int32_t)position;
    return position;
}
