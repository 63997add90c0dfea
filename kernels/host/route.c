/* The choice of experts, for the scalar device and for the fast one (ops.h, arith.h). */
#include "kernels/host/top.h"

#include "base/check.h"

/* The largest of score[0..n) that is not taken yet, the first of equals. A NaN loses to all. */
static uint32_t best_of(const float *score, const bool *is_taken, uint32_t n)
{
    uint32_t best = UINT32_MAX;
    for (uint32_t i = 0; i < n; i++)
        if (!is_taken[i] && (best == UINT32_MAX || score[i] > score[best] ||
                             (score[best] != score[best] && score[i] == score[i])))
            best = i;
    return best;
}

static void softmax(const float *x, uint32_t n, float *y)
{
    float max = -INFINITY, sum = 0;
    for (uint32_t i = 0; i < n; i++)
        max = x[i] > max ? x[i] : max;
    for (uint32_t i = 0; i < n; i++) {
        y[i] = td_arith_exp(x[i] - max);
        sum += y[i];
    }
    for (uint32_t i = 0; i < n; i++)
        y[i] /= sum;
}

/* Marks the experts of all groups but the best as taken. */
static void leave_groups(const td_route_params *p, const float *score, uint32_t n, bool *is_taken)
{
    float of_group[TD_EXPERTS_MAX];
    bool is_used[TD_EXPERTS_MAX] = {false};
    uint32_t n_each = n / p->n_groups;
    for (uint32_t g = 0; g < p->n_groups; g++) {
        bool seen[TD_EXPERTS_MAX] = {false};
        const float *mine = score + g * n_each;
        uint32_t first = best_of(mine, seen, n_each);
        seen[first] = true;
        of_group[g] = mine[first] + (n_each > 1 ? mine[best_of(mine, seen, n_each)] : 0.0f);
    }
    for (uint32_t i = 0; i < p->n_groups_used; i++)
        is_used[best_of(of_group, is_used, p->n_groups)] = true;
    for (uint32_t e = 0; e < n; e++)
        is_taken[e] = !is_used[e / n_each];
}

void td_host_route(const td_op *op, uint32_t row)
{
    const td_route_params *p = &op->u.route;
    const float *logits = td_host_row(op->in[0], row);
    const float *bias = op->weight ? td_host_vector(op->weight) : NULL;
    uint32_t n = op->in[0].n_cols, n_used = op->out.n_cols;
    int32_t *experts = (int32_t *)op->writes[0]->data + (size_t)row * n_used;
    float *weights = td_host_row(op->out, row), prob[TD_EXPERTS_MAX], score[TD_EXPERTS_MAX];
    bool is_taken[TD_EXPERTS_MAX] = {false};
    if (p->gating == TD_GATING_SOFTMAX)
        softmax(logits, n, prob);
    for (uint32_t e = 0; e < n; e++) {
        if (p->gating == TD_GATING_SIGMOID)
            prob[e] = 1.0f / (1.0f + td_arith_exp(-logits[e]));
        else if (p->gating == TD_GATING_SELECTED)
            prob[e] = logits[e];
        score[e] = bias ? prob[e] + bias[e] : prob[e];
    }
    if (p->n_groups > 1)
        leave_groups(p, score, n, is_taken);
    for (uint32_t i = 0; i < n_used; i++) {
        uint32_t e = best_of(score, is_taken, n);
        is_taken[e] = true;
        experts[i] = (int32_t)e;
        weights[i] = prob[e];
    }
    if (p->gating == TD_GATING_SELECTED)
        softmax(weights, n_used, weights);
    if (p->is_normalized) {
        float sum = 0;
        for (uint32_t i = 0; i < n_used; i++)
            sum += weights[i];
        sum = sum > 0x1p-14f ? sum : 0x1p-14f;
        for (uint32_t i = 0; i < n_used; i++)
            weights[i] /= sum;
    }
    for (uint32_t i = 0; i < n_used; i++)
        weights[i] *= p->scale;
}
