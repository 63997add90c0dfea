/* Threads share the panels of all groups that have rows, in one line: with many groups each works
 * on groups of its own. A thread copies the inputs of up to BATCH rows of a group together, runs
 * the kernel and copies the outputs to their places; the weights are read once for those rows. */
#include "kernels/host/experts.h"

#include "base/check.h"
#include "base/mem.h"

#define BATCH 32u

typedef struct {
    uint16_t row, i; /* the i-th expert of the row */
} pair;

typedef struct { /* a thread's scratch */
    pair *pairs; /* [n_rows * n_used] by expert, rows ascending */
    uint8_t *x;  /* [BATCH] inputs, f32 or td_act_block */
    float *y;    /* [BATCH][outputs of a group] */
} scratch;

typedef struct {
    size_t pairs, x, y;
} sizes;

static size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

static sizes sizes_of(const td_op *op, uint32_t n_rows)
{
    const td_weight_params *w = &op->weight->params;
    size_t n_pairs = (size_t)n_rows * op->u.mat_mul.n_groups;
    return (sizes){.pairs = round_up(n_pairs * sizeof(pair), 64),
                   .x = round_up((size_t)BATCH * w->n_cols * sizeof(float), 64),
                   .y = (size_t)BATCH * td_round_up(td_group_rows(w), 16) * sizeof(float)};
}

bool td_host_gather_init(td_host_program *p, td_err *err)
{
    for (uint32_t i = 0; i < p->base.n_ops; i++) {
        const td_op *op = &p->base.ops[i];
        if (op->kind != TD_OP_MAT_MUL || !op->u.mat_mul.n_groups)
            continue;
        sizes s = sizes_of(op, p->base.params.n_rows_max);
        if (s.pairs + s.x + s.y > p->gather_bytes)
            p->gather_bytes = s.pairs + s.x + s.y;
    }
    uint64_t n_bytes = p->gather_bytes * (uint64_t)p->base.dev->info.n_threads;
    if (!n_bytes)
        return true;
    if (!td_host_reserve(p->base.dev, n_bytes, err))
        return false;
    p->n_bytes += n_bytes;
    p->gather = td_alloc(n_bytes, 1, err);
    return p->gather;
}

/* pairs[begin[e]..begin[e + 1]) are those of group e. */
static void sort_pairs(const td_host_gather *g, uint32_t *begin, pair *pairs)
{
    const td_op *op = g->op;
    uint32_t n_used = op->u.mat_mul.n_groups, n = td_max_u32(op->weight->params.n_groups, 1);
    memset(begin, 0, (n + 1) * sizeof *begin);
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t r = 0; r < g->n_rows; r++) {
            const int32_t *chosen = op->u.mat_mul.is_by_expert
                                        ? (const int32_t *)(const void *)td_host_row(op->in[1], r)
                                        : NULL;
            for (uint32_t i = 0; i < n_used; i++) {
                uint32_t e = chosen ? (uint32_t)chosen[i] : i;
                TD_ASSERT(e < n);
                if (pass == 0)
                    begin[e + 1]++;
                else
                    pairs[begin[e]++] = (pair){(uint16_t)r, (uint16_t)i};
            }
        }
        if (pass == 0)
            for (uint32_t e = 0; e < n; e++)
                begin[e + 1] += begin[e];
    }
    for (uint32_t e = n; e > 0; e--) /* filling has moved each beginning to its group's end */
        begin[e] = begin[e - 1];
    begin[0] = 0;
}

/* Panels panel0 + [from, to) of a group for n <= BATCH of its rows. */
static void run_batch(const td_host_gather *g, const scratch *s, const pair *pairs, uint32_t n,
                      uint32_t group, uint32_t from, uint32_t to)
{
    const td_op *op = g->op;
    const td_host_weight *w = (const td_host_weight *)op->weight;
    const td_act_block *acts = g->i_act < TD_HOST_ACTS ? g->p->acts[g->i_act] : NULL;
    uint32_t n_cols = w->base.params.n_cols, x_stride = op->u.mat_mul.x_stride;
    size_t x_bytes = acts ? n_cols / TD_ACT_BLOCK * sizeof *acts : n_cols * sizeof(float);
    for (uint32_t j = 0; j < n; j++) {
        uint32_t col0 = pairs[j].i * x_stride;
        const void *x =
            acts ? (const void *)(acts + (size_t)pairs[j].row * op->in[0].n_cols / TD_ACT_BLOCK +
                                  col0 / TD_ACT_BLOCK)
                 : (const void *)(td_host_row(op->in[0], pairs[j].row) + col0);
        memcpy(s->x + j * x_bytes, x, x_bytes);
    }
    uint32_t stride = td_round_up(w->group_rows, 16), panel0 = group * w->group_panels;
    td_host_mat_mul m = {
        .w = w,
        .panel0 = panel0,
        .bias = op->bias ? td_host_vector(op->bias) + (size_t)group * w->group_rows : NULL,
        .x = acts ? NULL : (const float *)(const void *)s->x,
        .act = acts ? (const td_act_block *)(const void *)s->x : NULL,
        .y = s->y,
        .x_stride = n_cols,
        .y_stride = stride,
        .n_rows = n,
        .panel_begin = panel0 + from,
        .panel_end = panel0 + to,
    };
    g->kernels->mat_mul(&m);
    uint32_t begin = from * TD_PANEL_ROWS, end = td_min_u32(to * TD_PANEL_ROWS, w->group_rows);
    for (uint32_t j = 0; j < n; j++)
        memcpy(td_host_row(op->out, pairs[j].row) + pairs[j].i * op->u.mat_mul.y_stride + begin,
               s->y + j * stride + begin, (end - begin) * sizeof(float));
}

void td_host_mat_mul_gathered(const td_host_gather *g)
{
    const td_host_weight *w = (const td_host_weight *)g->op->weight;
    uint32_t begin[TD_EXPERTS_MAX + 1], n = td_max_u32(w->base.params.n_groups, 1);
    sizes size = sizes_of(g->op, g->p->base.params.n_rows_max);
    uint8_t *at = g->p->gather + g->thread * g->p->gather_bytes;
    scratch s = {(pair *)(void *)at, at + size.pairs, (float *)(void *)(at + size.pairs + size.x)};
    sort_pairs(g, begin, s.pairs);
    uint32_t n_touched = 0;
    for (uint32_t e = 0; e < n; e++)
        n_touched += begin[e + 1] > begin[e];
    uint64_t n_panels = (uint64_t)n_touched * w->group_panels;
    uint64_t first = n_panels * g->thread / g->n_threads;
    uint64_t last = n_panels * (g->thread + 1) / g->n_threads, done = 0;
    for (uint32_t e = 0; e < n && done < last; e++) {
        if (begin[e + 1] == begin[e])
            continue;
        uint64_t from = first > done ? first - done : 0;
        uint64_t to = last - done < w->group_panels ? last - done : w->group_panels;
        for (uint32_t j = begin[e]; from < to && j < begin[e + 1]; j += BATCH)
            run_batch(g, &s, s.pairs + j, td_min_u32(BATCH, begin[e + 1] - j), e, (uint32_t)from,
                      (uint32_t)to);
        done += w->group_panels;
    }
}
