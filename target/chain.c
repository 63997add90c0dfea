/* The parts of a layout, loaded. */
#include "target/chain.h"

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"

/* Sums the progress of the parts into one figure. */
typedef struct {
    const td_layout_params *params;
    uint64_t done_before, done, total; /* bytes of the file */
} load_progress;

static void on_progress(void *user, uint64_t done, uint64_t total)
{
    (void)total;
    load_progress *p = user;
    p->done = p->done_before + done < p->total ? p->done_before + done : p->total;
    p->params->progress(p->params->user, p->done, p->total);
}

static bool load_parts(td_chain *c, const td_layout_params *params, td_err *err)
{
    const td_gguf *g = td_model_gguf(params->model);
    load_progress progress = {.params = params};
    for (uint32_t i = 0; i < td_gguf_n_tensors(g); i++)
        progress.total += td_gguf_tensor_at(g, i)->n_bytes;
    for (uint32_t i = 0; i < c->layout->n_parts; i++) {
        td_forward_params p = td_layout_forward_params(c->layout, params, i);
        p.progress = params->progress ? on_progress : NULL;
        p.user = &progress;
        c->forwards[i] = td_forward_create(&p, err);
        if (!c->forwards[i])
            return false;
        progress.done_before = progress.done;
    }
    return true;
}

static void say_what_did_not_fit(const td_layout *l, const td_layout_params *params)
{
    uint32_t n_train = td_model_hparams(params->model)->n_ctx_train;
    if (!params->n_ctx && l->n_ctx < n_train)
        td_log_warn("the model's context of %u does not fit; using %u (set --ctx to choose)",
                    n_train, l->n_ctx);
    if (l->n_pages)
        td_log_warn("the cache holds %u positions, not %u sequences of %u: prompts wait for room",
                    l->n_pages * TD_PAGE_POSITIONS, params->n_slots, l->n_ctx);
}

td_chain *td_chain_create(const td_layout_params *params, td_err *err)
{
    td_chain *c = td_alloc(1, sizeof *c, err);
    if (!c)
        return NULL;
    if (params->made) {
        c->layout = *params->made;
        *params->made = NULL;
    } else {
        c->layout = td_layout_create(params, err);
    }
    if (c->layout)
        say_what_did_not_fit(c->layout, params);
    if (!c->layout || !load_parts(c, params, err))
        td_chain_destroy(&c);
    return c;
}

void td_chain_destroy(td_chain **chain)
{
    if (!*chain)
        return;
    for (uint32_t i = 0; (*chain)->layout && i < (*chain)->layout->n_parts; i++)
        td_forward_destroy(&(*chain)->forwards[i]);
    td_layout_destroy(&(*chain)->layout);
    td_free(*chain);
    *chain = NULL;
}

bool td_chain_run(td_chain *chain, td_mode mode, const td_forward_row *rows, uint32_t n_rows,
                  td_err *err)
{
    for (uint32_t i = 0; i < chain->layout->n_parts; i++) {
        td_forward *f = chain->forwards[i];
        if (i > 0)
            td_forward_copy_input(f, td_forward_output(chain->forwards[i - 1]), n_rows);
        if (!td_forward_run(f, mode, rows, n_rows, err))
            return false;
    }
    return true;
}

const float *td_chain_logits(const td_chain *chain)
{
    return td_forward_output(chain->forwards[chain->layout->n_parts - 1]);
}

void td_chain_commit(td_chain *chain, uint32_t slot, uint32_t length)
{
    for (uint32_t i = 0; i < chain->layout->n_parts; i++)
        if (length > td_cache_committed(td_forward_cache(chain->forwards[i]), slot))
            td_cache_commit(td_forward_cache(chain->forwards[i]), slot, length);
}

uint32_t td_chain_rewind(td_chain *chain, uint32_t slot, uint32_t length)
{
    uint32_t left = length;
    for (uint32_t i = 0; i < chain->layout->n_parts; i++) {
        td_cache *cache = td_forward_cache(chain->forwards[i]);
        if (td_cache_committed(cache, slot) > length || td_cache_length(cache, slot) < length)
            left = 0;
    }
    for (uint32_t i = 0; i < chain->layout->n_parts; i++) {
        td_cache *cache = td_forward_cache(chain->forwards[i]);
        if (left == length && length)
            td_cache_truncate(cache, slot, length);
        else
            td_cache_clear(cache, slot);
    }
    return left;
}

bool td_chain_forgets(const td_chain *chain)
{
    bool forgets = false;
    for (uint32_t i = 0; i < chain->layout->n_parts; i++)
        forgets |= td_cache_forgets(td_forward_cache(chain->forwards[i]));
    return forgets;
}

bool td_chain_profile(td_chain *chain, bool is_on, td_err *err)
{
    for (uint32_t i = 0; i < chain->layout->n_parts; i++)
        if (!td_forward_profile(chain->forwards[i], is_on, err))
            return false;
    return true;
}

uint32_t td_chain_op_times(const td_chain *chain, td_op_time *out, uint32_t max)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < chain->layout->n_parts; i++)
        n = td_forward_op_times(chain->forwards[i], out, n, max);
    return n;
}

void td_chain_get_counts(const td_chain *chain, td_program_counts *verify,
                         td_program_counts *prefill)
{
    *verify = *prefill = (td_program_counts){0};
    for (uint32_t i = 0; i < chain->layout->n_parts; i++) {
        td_program_counts v, p;
        td_forward_get_counts(chain->forwards[i], &v, &p);
        td_program_counts_add(verify, &v);
        td_program_counts_add(prefill, &p);
    }
}
