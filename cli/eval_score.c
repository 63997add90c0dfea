/* What `tandem eval` makes of logits. */
#include "cli/eval.h"

#include "base/check.h"
#include "base/order.h"

#include <math.h>

bool td_eval_read_row(const float *logits, uint32_t n_vocab, eval_row *out)
{
    uint32_t top = 0;
    for (uint32_t i = 1; i < n_vocab; i++)
        if (logits[i] > logits[top])
            top = i;
    double sum = 0;
    for (uint32_t i = 0; i < n_vocab; i++)
        sum += (double)expf(logits[i] - logits[top]);
    *out = (eval_row){logits, n_vocab, top, (double)logits[top], sum};
    return isfinite(sum) && isfinite(logits[top]);
}

static double log_p(const eval_row *r, uint32_t token)
{
    return (double)r->logits[token] - r->max - log(r->sum);
}

/* The exponentials are those of base->sum, so their quotients add up to 1 and equal rows give 0. */
static double divergence(const eval_row *base, const eval_row *row)
{
    float max = base->logits[base->top];
    double sum = 0;
    for (uint32_t i = 0; i < base->n_vocab; i++) {
        float e = expf(base->logits[i] - max);
        if (e > 0)
            sum += (double)e * ((double)base->logits[i] - (double)row->logits[i]);
    }
    double d = sum / base->sum - (base->max - row->max) + log(row->sum) - log(base->sum);
    return d > 0 ? d : 0; /* below it: rounding */
}

void td_eval_add(eval_score *s, const eval_row *base, const eval_row *row, uint32_t token)
{
    double kld = row == base ? 0 : divergence(base, row);
    double nll = -log_p(row, token), dp = exp(-nll) - exp(log_p(base, token));
    s->klds[s->n++] = (float)kld;
    s->n_right += row->top == token;
    s->n_same_top += row->top == base->top;
    s->nll += nll;
    s->nll2 += nll * nll;
    s->kld += kld;
    s->dp2 += dp * dp;
}

static double percentile(const eval_score *s, double share)
{
    double at = share * (s->n - 1);
    uint32_t i = (uint32_t)at, next = td_min_u32(i + 1, s->n - 1);
    return (1 - (at - i)) * (double)s->klds[i] + (at - i) * (double)s->klds[next];
}

eval_figures td_eval_judge(eval_score *s)
{
    TD_ASSERT(s->n >= 2);
    td_sort_floats(s->klds, s->n);
    double mean = s->nll / s->n, variance = s->nll2 / s->n - mean * mean;
    double ppl = exp(mean);
    return (eval_figures){.ppl = ppl,
                          .ppl_err = variance > 0 ? ppl * sqrt(variance / (s->n - 1)) : 0,
                          .kld_mean = s->kld / s->n,
                          .kld_median = percentile(s, 0.5),
                          .kld_99 = percentile(s, 0.99),
                          .kld_99_9 = percentile(s, 0.999),
                          .kld_max = (double)s->klds[s->n - 1],
                          .same_top = (double)s->n_same_top / s->n,
                          .rms_dp = sqrt(s->dp2 / s->n)};
}
