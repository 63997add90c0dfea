/* The parts of a layout, loaded, those on different devices at the same time. */
#include "target/chain.h"

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"

#include <pthread.h>
#include <signal.h>

/* -- loading ------------------------------------------------------------------------------------
 * Parts that share a device are loaded one after another, others at the same time, by a thread
 * each. Progress is summed into one figure. The first error ends all. */

typedef struct {
    const td_layout_params *params;
    td_chain *chain;
    pthread_mutex_t lock;        /* of what follows, and held while progress is told */
    uint64_t done, total;        /* bytes of the file */
    bool is_failed, is_unwanted; /* a part could not be loaded; nobody wants them any more */
    td_err *err;
} loading;

typedef struct {
    loading *all;
    uint32_t part;
    uint64_t done; /* bytes of the file */
} part_loading;

typedef struct { /* of parts that share devices */
    loading *all;
    uint32_t parts; /* a bit each */
    pthread_t thread;
    bool is_thread;
} loader;

_Static_assert(TD_STAGES_MAX <= 32, "a bit for each part");

static bool on_progress(void *user, uint64_t done, uint64_t total)
{
    (void)total;
    part_loading *part = user;
    loading *l = part->all;
    pthread_mutex_lock(&l->lock);
    bool goes_on = !l->is_failed && !l->is_unwanted;
    l->done += done - part->done;
    part->done = done;
    if (goes_on && l->params->progress)
        goes_on =
            l->params->progress(l->params->user, l->done < l->total ? l->done : l->total, l->total);
    l->is_unwanted |= !goes_on;
    pthread_mutex_unlock(&l->lock);
    return goes_on;
}

static bool load_part(loading *l, uint32_t i)
{
    td_err err = {0};
    part_loading part = {l, i, 0};
    td_forward_params p = td_layout_forward_params(l->chain->layout, l->params, i);
    p.progress = on_progress;
    p.user = &part;
    l->chain->forwards[i] = td_forward_create(&p, &err);
    if (l->chain->forwards[i])
        return true;
    pthread_mutex_lock(&l->lock);
    if (!l->is_failed && l->err)
        *l->err = err;
    l->is_failed = true;
    pthread_mutex_unlock(&l->lock);
    return false;
}

static void *loader_main(void *arg)
{
    loader *one = arg;
    for (uint32_t i = 0; i < one->all->chain->layout->n_parts; i++)
        if (one->parts >> i & 1 && !load_part(one->all, i))
            break;
    return NULL;
}

static bool share_device(const td_layout_part *a, const td_layout_part *b)
{
    return a->dev == b->dev || a->dev == b->experts_dev || a->experts_dev == b->dev ||
           (a->experts_dev && a->experts_dev == b->experts_dev);
}

/* One for each set of parts that share no device with others; their number. */
static uint32_t list_loaders(loading *l, loader *out)
{
    const td_layout *layout = l->chain->layout;
    uint32_t n = 0;
    for (uint32_t i = 0; i < layout->n_parts; i++) {
        loader one = {.all = l, .parts = 1u << i};
        uint32_t n_kept = 0;
        for (uint32_t k = 0; k < n; k++) {
            bool is_shared = false;
            for (uint32_t j = 0; j < i; j++)
                is_shared |=
                    (out[k].parts >> j & 1) && share_device(&layout->parts[i], &layout->parts[j]);
            if (is_shared)
                one.parts |= out[k].parts;
            else
                out[n_kept++] = out[k];
        }
        out[n_kept++] = one;
        n = n_kept;
    }
    return n;
}

/* The loaders' threads take no signals: those are the main thread's. */
static bool load_parts(td_chain *c, const td_layout_params *params, td_err *err)
{
    const td_gguf *g = td_model_gguf(params->model);
    loading all = {.params = params, .chain = c, .err = err};
    loader loaders[TD_STAGES_MAX];
    for (uint32_t i = 0; i < td_gguf_n_tensors(g); i++)
        all.total += td_gguf_tensor_at(g, i)->n_bytes;
    uint32_t n = list_loaders(&all, loaders);
    sigset_t signals, before;
    sigfillset(&signals);
    pthread_mutex_init(&all.lock, NULL);
    pthread_sigmask(SIG_SETMASK, &signals, &before);
    for (uint32_t i = 1; i < n; i++)
        loaders[i].is_thread =
            pthread_create(&loaders[i].thread, NULL, loader_main, &loaders[i]) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    for (uint32_t i = 0; i < n; i++)
        if (!loaders[i].is_thread)
            loader_main(&loaders[i]);
    for (uint32_t i = 0; i < n; i++)
        if (loaders[i].is_thread)
            pthread_join(loaders[i].thread, NULL);
    pthread_mutex_destroy(&all.lock);
    return !all.is_failed;
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

td_chain *td_chain_create_beside(td_chain *lender, const td_layout_params *params, uint32_t i,
                                 td_err *err)
{
    td_chain *c = td_alloc(1, sizeof *c, err);
    if (!c)
        return NULL;
    c->layout = lender->layout;
    c->is_beside = true;
    for (uint32_t k = 0; c && k < lender->layout->n_parts; k++) {
        td_forward_params p = td_layout_forward_params(lender->layout, params, k);
        p.kv = params->beside[i];
        p.lender = lender->forwards[k];
        c->forwards[k] = td_forward_create(&p, err);
        if (!c->forwards[k])
            td_chain_destroy(&c);
    }
    return c;
}

void td_chain_destroy(td_chain **chain)
{
    if (!*chain)
        return;
    for (uint32_t i = 0; (*chain)->layout && i < (*chain)->layout->n_parts; i++)
        td_forward_destroy(&(*chain)->forwards[i]);
    if (!(*chain)->is_beside)
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

td_device_counts td_chain_device_counts(const td_chain *chain)
{
    const td_layout *l = chain->layout;
    const td_device *devices[2 * TD_STAGES_MAX + TD_SEATS_MAX];
    td_device_counts sum = {0};
    uint32_t n = 0;
    for (uint32_t i = 0; i < 2 * l->n_parts + TD_SEATS_MAX; i++) {
        const td_device *dev = i >= 2 * l->n_parts ? l->deal.seats[i - 2 * l->n_parts].dev
                               : i % 2             ? l->parts[i / 2].experts_dev
                                                   : l->parts[i / 2].dev;
        bool is_new = dev;
        for (uint32_t k = 0; k < n; k++)
            is_new &= devices[k] != dev;
        if (!is_new)
            continue;
        td_device_counts c;
        td_device_get_counts(dev, &c);
        td_device_counts_add(&sum, &c, 1);
        devices[n++] = dev;
    }
    return sum;
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
