/* The ops that turn logits into tokens, on the host; one function each for the scalar device and
 * for the fast one, which gives parts to its threads. Scores are double: their error is nothing
 * beside the window. */
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
            if (logit - NOISE_LOG2 < needed)
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

void td_host_top(const td_op *op, uint32_t row, uint32_t i_chunk)
{
    const td_draw *draw = (const td_draw *)(const void *)td_host_row(op->in[1], row);
    td_part *part = (td_part *)(void *)td_host_row(op->out, row) + i_chunk;
    chunk c = {.first = i_chunk * TD_TOP_CHUNK, .draw = draw};
    c.n = td_min_u32(TD_TOP_CHUNK, op->in[0].n_cols - c.first);
    c.x = td_host_row(op->in[0], row) + c.first;
    int32_t bits_max = 0, key_max = INT32_MIN;
    for (uint32_t i = 0; i < c.n; i++) {
        int32_t bits;
        memcpy(&bits, &c.x[i], sizeof bits);
        bits &= INT32_MAX;
        bits_max = bits > bits_max ? bits : bits_max;
    }
    *part = (td_part){.key_max = INT32_MIN, .is_finite = bits_max < 0x7f800000};
    for (uint32_t i = 0; i < c.n; i++) {
        int32_t key = td_top_key(c.x[i]);
        key_max = key > key_max && (part->is_finite || !isnan(c.x[i])) ? key : key_max;
    }
    for (uint32_t i = 0; i < c.n; i++)
        if (td_top_key(c.x[i]) == key_max && !isnan(c.x[i])) {
            part->key_max = key_max;
            part->id_max = c.first + i;
            break;
        }
    c.max = (double)td_top_value(key_max);
    if (draw->kind == TD_DRAW_RACE && part->is_finite)
        race(&c, part);
}

/* Adds the candidates of a part whose scores, relative to the row's largest
 * logit, reach `least`. */
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

void td_host_pick(const td_op *op, uint32_t row)
{
    const td_draw *draw = (const td_draw *)(const void *)td_host_row(op->in[1], row);
    const td_part *parts = (const td_part *)(const void *)td_host_row(op->in[0], row);
    td_pick *pick = (td_pick *)(void *)td_host_row(op->out, row);
    uint32_t n_parts = op->in[0].n_cols / TD_PART_WORDS;
    int32_t key_max = INT32_MIN;
    *pick = (td_pick){.is_finite = true};
    for (uint32_t i = 0; i < n_parts; i++) {
        pick->is_finite &= parts[i].is_finite;
        if (parts[i].key_max > key_max) {
            key_max = parts[i].key_max;
            pick->id_max = parts[i].id_max;
        }
    }
    pick->max = key_max == INT32_MIN ? 0 : td_top_value(key_max);
    pick->token = pick->id_max;
    if (draw->kind == TD_DRAW_GREEDY) {
        pick->n = 1;
        pick->candidates[0].id = pick->id_max;
        pick->candidates[0].logit = pick->max;
        return;
    }
    if (draw->kind != TD_DRAW_RACE || !pick->is_finite) {
        pick->n = TD_TOP_CANDIDATES + 1;
        return;
    }
    float best = -HUGE_VALF, most = -HUGE_VALF;
    for (uint32_t i = 0; i < n_parts; i++)
        best =
            fmaxf(best, parts[i].best + (td_top_value(parts[i].key_max) - pick->max) * draw->scale);
    for (uint32_t i = 0; i < n_parts; i++)
        gather_candidates(&parts[i], (td_top_value(parts[i].key_max) - pick->max) * draw->scale,
                          best - TD_TOP_WINDOW, &most, pick);
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
    if (++draw->position[0] == 0)
        draw->position[1]++;
    if (position >= op->weight->params.n_rows)
        return UINT32_MAX;
    ids[0] = (int32_t)pick->token;
    positions[0] = (int32_t)position;
    return position;
}
