#include "base/check.h"
#include "base/mem.h"
#include "model/model_private.h"

#include <math.h>

struct td_rope {
    const td_model *m;
    double *speed, *local_speed; /* [n_rot / 2] radians per position; local_speed may be NULL */
    double magnitude, local_magnitude; /* of cos and sin */
};

/* Local layers turn like the others, unless the file gives them a base of their own. */
static bool has_local(const td_hparams *h) { return h->rope_base_local > 0; }

td_rope_part td_rope_of_layer(const td_model *m, uint32_t layer)
{
    const td_hparams *h = &m->hparams;
    bool is_local = td_layer_is_local(m, layer);
    if (h->nope_period && (layer + 1) % h->nope_period == 0)
        return (td_rope_part){0, 0};
    return (td_rope_part){is_local && has_local(h) ? h->n_rot : 0, h->n_rot};
}

td_rope_part td_rope_q_scale(const td_model *m)
{
    const td_hparams *h = &m->hparams;
    return (td_rope_part){h->n_rot * (has_local(h) ? 2 : 1), h->q_scale > 0 ? 1 : 0};
}

uint32_t td_rope_cols(const td_model *m)
{
    td_rope_part last = td_rope_q_scale(m);
    return last.col0 + last.n_cols;
}

/* Factors by which the file divides the frequencies, or ones. */
static bool read_factors(const td_model *m, uint32_t n_ctx, float *factors, td_err *err)
{
    uint32_t n = m->hparams.n_rot / 2;
    const char *name = "rope_freqs.weight";
    if (!td_gguf_find_tensor(m->gguf, name))
        name = n_ctx > m->hparams.rope_orig_ctx ? "rope_factors_long.weight"
                                                : "rope_factors_short.weight";
    const td_gguf_tensor *t = td_gguf_find_tensor(m->gguf, name);
    for (uint32_t i = 0; i < n; i++)
        factors[i] = 1.0f;
    if (!t)
        return true;
    if (!t->type || t->type->id != TD_TYPE_F32 || t->n_dims != 1 || t->ne[0] != n)
        return td_err_set(err, TD_E_DATA, "%s must be F32 with %u entries", name, n);
    if (!td_gguf_read(m->gguf, t, 0, t->n_bytes, factors, err))
        return false;
    for (uint32_t i = 0; i < n; i++)
        if (!(factors[i] >= 1e-6f && factors[i] <= 1e6f))
            return td_err_set(err, TD_E_DATA, "%s[%u] is %g; allowed: 1e-6..1e6", name, i,
                              (double)factors[i]);
    return true;
}

/* YaRN: pairs that turn often within the original context keep their speed, slow ones are
 * interpolated, a ramp between. */
static void set_speeds(const td_hparams *h, double base, double factor, const float *factors,
                       double *speed)
{
    double log_base = log(base), low = 0, high = 0;
    if (h->is_yarn) {
        double turns = h->n_rot / (2 * log_base), length = h->rope_orig_ctx / (2 * M_PI);
        low = fmax(0, floor(turns * log(length / (double)h->yarn_beta_fast)));
        high = fmin(h->n_rot - 1, ceil(turns * log(length / (double)h->yarn_beta_slow)));
    }
    for (uint32_t i = 0; i < h->n_rot / 2; i++) {
        double fast = pow(base, -2.0 * i / h->n_rot) / (double)factors[i], slow = fast / factor;
        double ramp = 1.0 - fmin(1, fmax(0, (i - low) / fmax(0.001, high - low)));
        speed[i] = h->is_yarn ? slow * (1 - ramp) + fast * ramp : slow;
    }
}

static double magnitude_of(const td_hparams *h, double factor)
{
    return (double)h->rope_magnitude * (h->is_yarn ? 1.0 + 0.1 * log(factor) : 1.0);
}

td_rope *td_rope_create(const td_model *m, uint32_t n_ctx, td_err *err)
{
    const td_hparams *h = &m->hparams;
    uint32_t n = h->n_rot / 2;
    td_rope *rope = td_alloc(1, sizeof *rope, err);
    float *factors = td_alloc(n, sizeof *factors, err);
    if (!rope || !factors)
        goto fail;
    rope->m = m;
    rope->speed = td_alloc(n, sizeof *rope->speed, err);
    if (!rope->speed || !read_factors(m, n_ctx, factors, err))
        goto fail;
    set_speeds(h, (double)h->rope_base, (double)h->rope_factor, factors, rope->speed);
    rope->magnitude = magnitude_of(h, (double)h->rope_factor);
    if (has_local(h)) {
        double factor = m->arch->is_local_unscaled ? 1.0 : (double)h->rope_factor;
        rope->local_speed = td_alloc(n, sizeof *rope->local_speed, err);
        if (!rope->local_speed)
            goto fail;
        set_speeds(h, (double)h->rope_base_local, factor, factors, rope->local_speed);
        rope->local_magnitude = magnitude_of(h, factor);
    }
    td_free(factors);
    return rope;
fail:
    td_free(factors);
    td_rope_destroy(&rope);
    return NULL;
}

void td_rope_destroy(td_rope **rope)
{
    if (!*rope)
        return;
    td_free((*rope)->speed);
    td_free((*rope)->local_speed);
    td_free(*rope);
    *rope = NULL;
}

static void turn(const double *speed, uint32_t n_pairs, uint32_t position, double magnitude,
                 float *out)
{
    for (uint32_t i = 0; i < n_pairs; i++) {
        double angle = position * speed[i];
        out[2 * i] = (float)(magnitude * cos(angle));
        out[2 * i + 1] = (float)(magnitude * sin(angle));
    }
}

void td_rope_row(const td_rope *rope, uint32_t position, float *out)
{
    const td_hparams *h = &rope->m->hparams;
    turn(rope->speed, h->n_rot / 2, position, rope->magnitude, out);
    if (rope->local_speed)
        turn(rope->local_speed, h->n_rot / 2, position, rope->local_magnitude, out + h->n_rot);
    td_rope_part q = td_rope_q_scale(rope->m);
    if (q.n_cols) {
        uint32_t steps = (position + h->q_scale_offset) / h->q_scale_every;
        out[q.col0] = (float)(1.0 + (double)h->q_scale * log(steps + 1.0));
    }
}
