/* The first of the ops that turn logits into tokens, on the host; one function for the scalar
 * device and for the fast one, which gives chunks to its threads. Scores are double: their error is
 * nothing beside the window. */
#include "kernels/host/top.h"

#include "base/check.h"
#include "base/rng.h"

#include <math.h>
#include <string.h>

#define NOISE_LOG2 (-33) /* log2 of the smallest E */
#define SLACK      0.01  /* of the bounds, above the window */

typedef struct {
    const float *x; /* the chunk's logits */
    uint32_t first, n;
    const td_draw *draw;
    double max;
    double least; /* log2 of the weight, relative to max, below which a token need not race */
    int32_t keys[TD_TOP_CHUNK]; /* INT32_MIN: no number, a recent token, or behind the row's end */
} chunk;

static double score(const chunk *c, uint32_t id, uint32_t bits)
{
    double u = ((double)bits + 0.5) * 0x1p-32;
    return ((double)c->x[id - c->first] - c->max) * (double)c->draw->scale - log2(-log1p(-u));
}

/* Keeps what is within the window of the best so far; what was kept before and no longer is goes
 * when there is no room, and at the end. */
static void drop_old(td_part *part)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < part->n; i++)
        if (part->candidates[i].score >= part->best - TD_TOP_WINDOW)
            part->candidates[n++] = part->candidates[i];
    part->n = n;
}

static void enter(const chunk *c, uint32_t id, double s, td_part *part)
{
    if ((float)s < part->best - TD_TOP_WINDOW)
        return;
    if ((float)s > part->best) {
        bool is_far = part->best < (float)s - TD_TOP_WINDOW;
        part->best = (float)s;
        if (is_far)
            part->n = 0;
        else if (part->n <= TD_TOP_CANDIDATES)
            drop_old(part);
    }
    if (part->n >= TD_TOP_CANDIDATES) {
        part->n = TD_TOP_CANDIDATES + 1; /* noise never ties so many: the host will read the row */
        return;
    }
    part->candidates[part->n].id = id;
    part->candidates[part->n].score = (float)s;
    part->candidates[part->n++].logit = c->x[id - c->first];
}

/* What min-p or top-p takes away need not race. The row's largest weight is no less than the
 * chunk's; of n tokens the last one that top-p keeps weighs at least an n-th of the 1 - p behind
 * it. */
static double least_logit(const td_draw *d, uint32_t n)
{
    double least = fmax((double)d->min_p, (1 - (double)d->top_p) / n);
    return least > 0 ? log2(least) - SLACK : -HUGE_VAL;
}

/* The race of a chunk. Bounds as in model/sampling.c: what cannot reach the best costs no log. */
static void race(const chunk *c, td_part *part)
{
    const td_draw *d = c->draw;
    part->best = -HUGE_VALF;
    for (uint32_t i = 0; i < c->n; i += 4) {
        uint32_t bits[4], n = td_min_u32(4, c->n - i);
        bool has_bits = false;
        for (uint32_t k = 0; k < n; k++) {
            double logit = ((double)c->x[i + k] - c->max) * (double)d->scale;
            double needed = (double)part->best - SLACK; /* -log2 E must be above needed - logit */
            if (logit < c->least || logit - NOISE_LOG2 < needed || c->keys[i + k] == INT32_MIN)
                continue;
            if (!has_bits) {
                const uint32_t counter[4] = {(c->first + i) / 4, d->position[0], d->position[1], 0};
                td_philox(counter, d->stream, bits);
                has_bits = true;
            }
            int n_zeros = bits[k] ? __builtin_clz(bits[k]) : 32;
            if (logit + n_zeros + 1 < needed)
                continue;
            enter(c, c->first + i + k, score(c, c->first + i + k, bits[k]), part);
        }
    }
    if (part->n <= TD_TOP_CANDIDATES)
        drop_old(part);
}

/* Loops of a constant length, which become vectors. */
static void fill_keys(chunk *c, td_part *part)
{
    int32_t bits_max = 0;
    for (uint32_t i = 0; i < TD_TOP_CHUNK; i += TD_TOP_GROUPS) {
        uint32_t n = c->n > i ? td_min_u32(c->n - i, TD_TOP_GROUPS) : 0;
        int32_t bits[TD_TOP_GROUPS] = {0};
        memcpy(bits, c->x + i, n * sizeof bits[0]);
        for (uint32_t k = 0; k < TD_TOP_GROUPS; k++) {
            int32_t size = bits[k] & INT32_MAX;
            bits_max = size > bits_max ? size : bits_max;
        }
        for (uint32_t k = 0; k < TD_TOP_GROUPS; k++) { /* as td_top_key */
            int32_t b = bits[k] & -(bits[k] != INT32_MIN);
            c->keys[i + k] = b ^ ((b >> 31) & INT32_MAX);
        }
        for (uint32_t k = n; k < TD_TOP_GROUPS; k++)
            c->keys[i + k] = INT32_MIN;
    }
    part->is_finite = bits_max < 0x7f800000;
    for (uint32_t i = 0; i < c->n && !part->is_finite; i++)
        if (isnan(c->x[i]))
            c->keys[i] = INT32_MIN;
    for (uint32_t i = 0; i < c->draw->n_recent; i++)
        if (c->draw->recent[i] - c->first < c->n)
            c->keys[c->draw->recent[i] - c->first] = INT32_MIN;
}

static int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }

static void find_maxima(const chunk *c, td_part *part)
{
    enum { HALF = TD_TOP_CHUNK / 2 };
    int32_t both[HALF], key_max = INT32_MIN;
    for (uint32_t i = 0; i < HALF; i++)
        both[i] = larger(c->keys[i], c->keys[HALF + i]);
    for (uint32_t i = 0; i < HALF; i++)
        key_max = larger(key_max, both[i]);
    for (uint32_t i = 0; i < TD_TOP_GROUPS && c->draw->n_list; i++)
        part->maxima[i] =
            larger(larger(both[4 * i], both[4 * i + 1]), larger(both[4 * i + 2], both[4 * i + 3]));
    part->key_max = key_max;
    for (uint32_t i = 0; i < c->n && part->key_max != INT32_MIN; i++)
        if (c->keys[i] == part->key_max) {
            part->id_max = c->first + i;
            break;
        }
}

static float mass_of(const chunk *c, td_host_exp_row *exp_row)
{
    const float scale = c->draw->scale * 0.69314718f, max = (float)c->max;
    float w[TD_TOP_GROUPS], sum = 0;
    for (uint32_t i = 0; i < c->n; i += TD_TOP_GROUPS) {
        uint32_t n = td_min_u32(c->n - i, TD_TOP_GROUPS);
        float sums[4] = {0};
        for (uint32_t k = 0; k < n; k++)
            w[k] = c->keys[i + k] == INT32_MIN ? -HUGE_VALF : (c->x[i + k] - max) * scale;
        exp_row(w, n, w);
        for (uint32_t k = n; k % 4; k++)
            w[k] = 0;
        for (uint32_t k = 0; k < n; k += 4)
            for (uint32_t j = 0; j < 4; j++)
                sums[j] += w[k + j];
        sum += (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }
    return sum;
}

void td_host_top(const td_op *op, uint32_t row, uint32_t i_chunk, td_host_exp_row *exp_row)
{
    const td_draw *draw = (const td_draw *)(const void *)td_host_row(op->in[1], row);
    td_part *part = (td_part *)(void *)td_host_row(op->out, row) + i_chunk;
    chunk c;
    c.first = i_chunk * TD_TOP_CHUNK;
    c.draw = draw;
    c.n = td_min_u32(TD_TOP_CHUNK, op->in[0].n_cols - c.first);
    c.x = td_host_row(op->in[0], row) + c.first;
    part->key_max = INT32_MIN;
    part->id_max = part->n = 0;
    part->best = part->mass = 0;
    fill_keys(&c, part);
    find_maxima(&c, part);
    if (part->key_max == INT32_MIN || !part->is_finite)
        return;
    c.max = (double)td_top_value(part->key_max);
    c.least = least_logit(draw, op->in[0].n_cols);
    if (draw->kind == TD_DRAW_RACE)
        race(&c, part);
    if (draw->has_mass)
        part->mass = mass_of(&c, exp_row);
}
