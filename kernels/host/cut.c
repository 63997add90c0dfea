/* Where the host's cuts lie (kernels/cut.h). */
#include "kernels/host/recurrent.h"

/* S of every head, the inputs that the next rows convolve with, and how far S has come. */
static uint32_t state_ranges(const td_cut *cut, td_cut_range *out)
{
    const td_host_state *s = (const td_host_state *)cut->state;
    const td_state_params *p = &cut->state->params;
    uint64_t heads = (uint64_t)cut->index * p->n_head_v;
    uint64_t s_bytes = sizeof(float) * (uint64_t)p->dim * p->dim;
    uint64_t row_bytes = sizeof(float) * (uint64_t)td_state_cols(p);
    uint32_t n = 0;
    out[n++] = (td_cut_range){s->s, heads * s_bytes, p->n_head_v * s_bytes, false, 0};
    out[n++] = (td_cut_range){s->counts, heads * sizeof *s->counts, p->n_head_v * sizeof *s->counts,
                              true, cut->position};
    for (uint32_t i = 1; i < p->n_taps; i++) {
        uint64_t row = (uint64_t)cut->index * p->n_pending + (cut->position - i) % p->n_pending;
        out[n++] = (td_cut_range){s->inputs, row * row_bytes, row_bytes, false, 0};
    }
    return n;
}

uint32_t td_host_cut_ranges(const td_cut *cut, td_cut_range *out)
{
    const td_host_kv *kv = (const td_host_kv *)cut->kv;
    if (!kv)
        return state_ranges(cut, out);
    uint64_t n_heads = kv->base.params.n_head_kv;
    uint64_t k_bytes = n_heads * kv->head_bytes_k, v_bytes = n_heads * kv->head_bytes_v;
    out[0] = (td_cut_range){kv->k, cut->index * k_bytes, k_bytes, false, 0};
    out[1] = (td_cut_range){kv->v, cut->index * v_bytes, v_bytes, false, 0};
    return kv->base.params.is_latent ? 1 : 2;
}
