#include "kernels/host/recurrent.h"

#include "base/check.h"
#include "base/mem.h"

#define TAPS_MAX 16u

static size_t s_floats(const td_state_params *p) { return (size_t)p->dim * p->dim; }

/* A copy of S, q, k, v and u. */
static size_t scratch_floats(const td_state_params *p) { return s_floats(p) + 4 * (size_t)p->dim; }

static uint32_t n_threads(const td_device *dev) { return dev->info.n_threads; }

uint64_t td_host_state_bytes(const td_device *dev, const td_state_params *p)
{
    uint64_t slot = p->n_head_v * (sizeof(float) * s_floats(p) + sizeof(uint32_t)) +
                    sizeof(float) * (uint64_t)p->n_pending * td_state_cols(p);
    return p->n_slots * slot + n_threads(dev) * sizeof(float) * scratch_floats(p);
}

bool td_host_state_init(td_state *base, td_err *err)
{
    td_host_state *s = (td_host_state *)base;
    const td_state_params *p = &base->params;
    TD_ASSERT(p->n_taps <= TAPS_MAX);
    uint64_t n_bytes = td_host_state_bytes(base->dev, p);
    if (!td_host_reserve(base->dev, n_bytes, err))
        return false;
    s->n_bytes = n_bytes;
    size_t n_heads = (size_t)p->n_slots * p->n_head_v;
    s->s = td_alloc(n_heads * s_floats(p), sizeof *s->s, err);
    s->counts = td_alloc(n_heads, sizeof *s->counts, err);
    s->inputs =
        td_alloc((size_t)p->n_slots * p->n_pending * td_state_cols(p), sizeof *s->inputs, err);
    s->scratch = td_alloc(n_threads(base->dev) * scratch_floats(p), sizeof *s->scratch, err);
    return s->s && s->counts && s->inputs && s->scratch;
}

void td_host_state_free(td_state *base)
{
    td_host_state *s = (td_host_state *)base;
    td_host_release(base->dev, s->n_bytes);
    td_free(s->s);
    td_free(s->counts);
    td_free(s->inputs);
    td_free(s->scratch);
}

static uint32_t slot_of(const td_op *op, uint32_t row)
{
    uint32_t slot = (uint32_t)((const int32_t *)op->batch.slots->data)[row];
    TD_ASSERT(slot < op->state->params.n_slots);
    return slot;
}

static uint32_t position_of(const td_op *op, uint32_t row)
{
    return (uint32_t)((const int32_t *)op->batch.positions->data)[row];
}

bool td_host_is_leader(const td_op *op, uint32_t row)
{
    return row == 0 || slot_of(op, row) != slot_of(op, row - 1);
}

static float *kept(const td_op *op, uint32_t slot, uint32_t position)
{
    const td_host_state *s = (const td_host_state *)op->state;
    const td_state_params *p = &op->state->params;
    return s->inputs + ((size_t)slot * p->n_pending + position % p->n_pending) * td_state_cols(p);
}

void td_host_state_keep(const td_op *op, uint32_t row)
{
    uint32_t slot = slot_of(op, row), position = position_of(op, row);
    uint32_t end = (uint32_t)((const int32_t *)op->batch.spans->data)[2 * slot + 1];
    if (position + op->state->params.n_pending < end)
        return; /* a later row of the batch overwrites it */
    memcpy(kept(op, slot, position), td_host_row(op->in[0], row), op->in[0].n_cols * sizeof(float));
}

typedef struct { /* of one sequence and head while its rows go by */
    const td_op *op;
    const td_host_delta_kernels *kernels;
    uint32_t slot, row, first; /* the first row of the batch, and its position */
    uint32_t h, h_k;
    float *q, *k, *v, *u;
} walk;

/* The inputs of a position, in the batch or kept; NULL before the beginning. */
static const float *input_at(const walk *w, int64_t position)
{
    if (position < 0)
        return NULL;
    if (position >= w->first)
        return td_host_row(w->op->in[0], w->row + (uint32_t)(position - w->first));
    return kept(w->op, w->slot, (uint32_t)position);
}

static void convolve(const walk *w, uint32_t position, uint32_t channel, float *y)
{
    static const float nothing[TD_STATE_DIM_MAX];
    const td_state_params *p = &w->op->state->params;
    const td_host_weight *conv = (const td_host_weight *)w->op->u.delta_net.conv;
    const float *taps[TAPS_MAX];
    for (uint32_t t = 0; t < p->n_taps; t++) {
        const float *in = input_at(w, (int64_t)position - (p->n_taps - 1) + t);
        taps[t] = in ? in + channel : nothing;
    }
    size_t stride = (size_t)(2 * p->n_head_k + p->n_head_v) * p->dim;
    w->kernels->conv(taps, p->n_taps, td_host_vector(&conv->base) + channel, stride, p->dim, y);
}

/* One position into s; y may be NULL. */
static void take(const walk *w, uint32_t position, float *s, float *y)
{
    const td_state_params *p = &w->op->state->params;
    const td_delta_net_params *d = &w->op->u.delta_net;
    uint32_t q0 = w->h_k * p->dim, k0 = q0 + p->n_head_k * p->dim;
    uint32_t v0 = (2 * p->n_head_k + w->h) * p->dim;
    uint32_t alpha0 = (2 * p->n_head_k + p->n_head_v) * p->dim;
    if (y) {
        convolve(w, position, q0, w->q);
        w->kernels->unit(w->q, p->dim, d->eps, 1.0f / sqrtf((float)p->dim));
    }
    convolve(w, position, k0, w->k);
    w->kernels->unit(w->k, p->dim, d->eps, 1.0f);
    convolve(w, position, v0, w->v);
    const float *in = input_at(w, position);
    float g =
        td_arith_decay(in[alpha0 + w->h], td_host_vector(d->a)[w->h], td_host_vector(d->dt)[w->h]);
    float beta = 1.0f / (1.0f + td_arith_exp(-in[alpha0 + p->n_head_v + w->h]));
    w->kernels->step(s, p->dim, w->q, w->k, w->v, g, beta, w->u, y);
}

void td_host_delta_net(const td_op *op, uint32_t row, uint32_t n_rows, uint32_t h, uint32_t thread,
                       const td_host_delta_kernels *kernels)
{
    td_host_state *state = (td_host_state *)op->state;
    const td_state_params *p = &op->state->params;
    uint32_t slot = slot_of(op, row), end = row + 1, dim = p->dim;
    while (end < n_rows && slot_of(op, end) == slot)
        end++;
    float *scratch = state->scratch + thread * scratch_floats(p);
    float *vectors = scratch + s_floats(p);
    walk w = {.op = op,
              .kernels = kernels,
              .slot = slot,
              .row = row,
              .h = h,
              .first = position_of(op, row),
              .h_k = op->u.delta_net.order == TD_HEADS_TILED ? h % p->n_head_k
                                                             : h / (p->n_head_v / p->n_head_k),
              .q = vectors,
              .k = vectors + dim,
              .v = vectors + 2 * dim,
              .u = vectors + 3 * dim};
    float *s = state->s + ((size_t)slot * p->n_head_v + h) * s_floats(p);
    uint32_t *count = state->counts + (size_t)slot * p->n_head_v + h;
    uint32_t committed = (uint32_t)((const int32_t *)op->batch.spans->data)[2 * slot];
    uint32_t last = w.first + (end - row); /* the position after the batch's rows */
    if (w.first == 0) {
        memset(s, 0, s_floats(p) * sizeof *s);
        *count = 0;
    }
    TD_ASSERT(*count <= w.first && w.first - *count + p->n_taps - 1 <= p->n_pending);
    uint32_t position = *count, to_keep = td_min_u32(committed, last);
    float *now = s; /* committed positions change the state itself, the others a copy of it */
    for (; position < last; position++) {
        if (position >= to_keep && now == s) {
            memcpy(scratch, s, s_floats(p) * sizeof *s);
            now = scratch;
        }
        take(&w, position, now,
             position >= w.first ? td_host_row(op->out, row + position - w.first) + h * dim : NULL);
    }
    *count = td_max_u32(*count, to_keep);
}
