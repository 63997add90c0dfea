/* `tandem eval --kv auto:...`: which cache?
 *
 * Successive halving. All caches are held against the base in one window; then the better half in
 * as many windows more, and so on, until the windows or the time are over. Better is who loses
 * less against the best of those that take no more bytes; who loses to none of them (the Pareto
 * front) always goes on. So a cache that is far from the front costs one window, and the front
 * is measured on all. What was done of a round that time ended is not looked at, so the choice
 * depends on the windows alone. */
#include "cli/eval.h"

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "model/cache_choice.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define TYPE_IDS 256u /* of kernels/types.h */

/* -- what there is to choose from -------------------------------------------------------------- */

/* First and last of more layers than this have types of their own: of fewer they are most of it. */
#define LAYERS_MIN 3u

static uint32_t n_attention(const td_model *m)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < td_model_hparams(m)->n_layer; i++)
        n += !td_layer_is_recurrent(m, i);
    return n;
}

static double size_of(const td_type_info *type)
{
    return (double)type->block_bytes / type->block_elements;
}

static double size_of_all(const td_model *m, const td_cache_types *t)
{
    const td_hparams *h = td_model_hparams(m);
    double n = 0;
    for (uint32_t i = 0; i < h->n_layer; i++) {
        td_kv_params kv = {.head_dim_k = h->head_dim_k,
                           .head_dim_v = h->head_dim_v,
                           .is_latent = td_model_arch(m)->is_mla};
        td_cache_types_apply(t, i, &kv);
        if (!td_layer_is_recurrent(m, i))
            n += size_of(kv.type_k) + size_of(kv.type_v);
    }
    return n;
}

static int by_size(const void *a, const void *b)
{
    const eval_kv *x = a, *y = b;
    return x->size != y->size ? (x->size < y->size ? 1 : -1) : strcmp(x->name, y->name);
}

/* The types of caches that are smaller than f32, of those that `least` allows: their number. */
static uint32_t list_types(const td_type_info *least, const td_type_info *types[TYPE_IDS])
{
    uint32_t n = 0;
    for (uint32_t id = 0; id < TYPE_IDS; id++) {
        const td_type_info *t = td_type_find(id);
        if (t && t->is_cache_type && t->block_bytes < 4 * t->block_elements &&
            !(least && td_cache_is_less(t, least)))
            types[n++] = t;
    }
    return n;
}

typedef struct {
    const td_model *model;
    eval_kv *kvs; /* [*n], the base first */
    uint32_t *n;
} list;

/* Adds a cache, but for one that is there. */
static bool add(const list *l, const td_cache_types *types, td_err *err)
{
    eval_kv *kv = &l->kvs[*l->n];
    *kv = (eval_kv){.types = *types};
    if (!td_cache_choose(&kv->types, l->model, err))
        return false;
    td_eval_write_name(kv);
    kv->size = size_of_all(l->model, &kv->types);
    bool is_there = false;
    for (uint32_t i = 0; i < *l->n; i++)
        is_there |= !strcmp(l->kvs[i].name, kv->name);
    *l->n += !is_there;
    return true;
}

/* A pair, and with the first and last layers in f16. */
static bool add_pair(const list *l, const td_type_info *k, const td_type_info *v, td_err *err)
{
    const td_type_info *f16 = td_type_find(TD_TYPE_F16);
    td_cache_types t = {.k = k, .v = v};
    if (!add(l, &t, err))
        return false;
    if (!td_cache_is_less(k, f16) || !td_cache_is_less(v, f16) ||
        n_attention(l->model) <= LAYERS_MIN)
        return true;
    t.rules[t.n_rules++] = (td_cache_rule){TD_CACHE_LAYER_FIRST, TD_CACHE_LAYER_FIRST, f16, f16};
    t.rules[t.n_rules++] = (td_cache_rule){TD_CACHE_LAYER_LAST, TD_CACHE_LAYER_LAST, f16, f16};
    return add(l, &t, err);
}

eval_kv *td_eval_list(const eval_params *p, const eval_kv *base, uint32_t *n, td_err *err)
{
    const td_type_info *types_k[TYPE_IDS], *types_v[TYPE_IDS];
    bool is_latent = td_model_arch(p->model)->is_mla, is_ok = true;
    td_cache_advice advice = {.k = NULL};
    if (td_cache_find_advice(p->model, &advice))
        td_log_info(
            "--kv auto: caches below K %s, V %s are left out, as of %s (%s); those named by "
            "--kv are tried",
            advice.k->name, advice.v->name, advice.name, advice.figure);
    uint32_t n_k = list_types(advice.k, types_k), n_v = list_types(advice.v, types_v);
    eval_kv *kvs = td_alloc(1 + 2 * n_k * n_v, sizeof *kvs, err);
    if (!kvs)
        return NULL;
    list l = {.model = p->model, .kvs = kvs, .n = n};
    kvs[0] = *base;
    *n = 1;
    for (uint32_t k = 0; is_ok && k < n_k; k++)
        for (uint32_t v = 0; is_ok && v < n_v; v++)
            if (!is_latent || types_k[k] == types_v[v])
                is_ok = add_pair(&l, types_k[k], types_v[v], err);
    qsort(kvs + 1, *n - 1, sizeof *kvs, by_size);
    if (!is_ok)
        td_free(kvs);
    return is_ok ? kvs : NULL;
}

/* -- the search -------------------------------------------------------------------------------- */

typedef struct {
    uint32_t kv;
    double bytes, kld, loss; /* loss: kld over the least of who takes no more bytes; >= 1 */
} rival;

static bool is_dominated(const rival *a, const rival *all, uint32_t n)
{
    bool is = false;
    for (uint32_t i = 0; i < n; i++)
        is |= all[i].bytes <= a->bytes && all[i].kld <= a->kld &&
              (all[i].bytes < a->bytes || all[i].kld < a->kld);
    return is;
}

static int by_loss(const void *a, const void *b)
{
    const rival *x = a, *y = b;
    return x->loss != y->loss ? (x->loss > y->loss ? 1 : -1) : (x->kv > y->kv) - (x->kv < y->kv);
}

static int by_kv(const void *a, const void *b)
{
    const rival *x = a, *y = b;
    return (x->kv > y->kv) - (x->kv < y->kv);
}

static void judge(td_eval_results *results, rival *rivals, uint32_t n, uint32_t n_windows)
{
    for (uint32_t i = 0; i < n; i++) {
        eval_figures f = td_eval_results_judge(results, rivals[i].kv, n_windows);
        rivals[i].bytes = f.bytes_per_position;
        rivals[i].kld = f.kld_mean;
    }
    for (uint32_t i = 0; i < n; i++) {
        double least = rivals[i].kld;
        for (uint32_t k = 0; k < n; k++)
            if (rivals[k].bytes <= rivals[i].bytes)
                least = fmin(least, rivals[k].kld);
        rivals[i].loss = rivals[i].kld > least ? rivals[i].kld / least : 1;
    }
}

/* The better half, and the front; how many those are. In the caches' order. */
static uint32_t halve(rival *rivals, uint32_t n)
{
    uint32_t n_kept = (n + 1) / 2;
    qsort(rivals, n, sizeof *rivals, by_loss);
    while (n_kept < n && rivals[n_kept].loss <= 1)
        n_kept++;
    qsort(rivals, n_kept, sizeof *rivals, by_kv);
    return n_kept;
}

/* Windows first..end-1 with all that are left. *is_whole: there was the time. */
static bool run_round(td_eval_runner *runner, td_eval_results *results, const rival *rivals,
                      uint32_t n, uint32_t first, uint32_t end, bool *is_whole, td_err *err)
{
    uint32_t *kvs = td_alloc(n, sizeof *kvs, err);
    for (uint32_t i = 0; kvs && i < n; i++)
        kvs[i] = rivals[i].kv;
    bool is_ok = kvs && td_eval_run_windows(runner, results, kvs, n, first, end, err);
    *is_whole = true;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t w = first; w < end; w++)
            *is_whole &= td_eval_results_has(results, rivals[i].kv, w);
    td_free(kvs);
    return is_ok;
}

static bool is_better(const eval_goal *goal, const rival *a, const rival *b)
{
    double first = goal->is_bytes ? a->kld - b->kld : a->bytes - b->bytes;
    double second = goal->is_bytes ? a->bytes - b->bytes : a->kld - b->kld;
    return first < 0 || (first == 0 && second < 0);
}

/* Of those within the bound, the best; 0: none is. *nearest: who is nearest to it. */
static uint32_t choose(const eval_goal *goal, const rival *rivals, uint32_t n, uint32_t *nearest)
{
    const rival *best = NULL, *near = NULL;
    for (uint32_t i = 0; i < n; i++) {
        const rival *r = &rivals[i];
        double value = goal->is_bytes ? r->bytes : r->kld;
        if (value <= goal->bound && (!best || is_better(goal, r, best)))
            best = r;
        if (!near || value < (goal->is_bytes ? near->bytes : near->kld))
            near = r;
    }
    *nearest = near->kv;
    return best ? best->kv : 0;
}

static bool search(td_eval_runner *runner, td_eval_results *results, const eval_params *p,
                   rival *rivals, uint32_t *n, uint32_t *n_windows, td_err *err)
{
    for (uint32_t done = 0, end = 1; done < p->n_windows; end = td_min_u32(2 * end, p->n_windows)) {
        bool is_whole;
        if (!run_round(runner, results, rivals, *n, done, end, &is_whole, err))
            return false;
        if (!is_whole && !done)
            return td_err_set(err, TD_E_AGAIN,
                              "--seconds: too few for one window with each of %u caches; allowed: "
                              "more, or with --out the same again, which goes on",
                              *n);
        if (!is_whole)
            break;
        done = end;
        for (uint32_t i = 0; i < *n; i++)
            n_windows[rivals[i].kv] = done;
        n_windows[0] = done;
        judge(results, rivals, *n, done);
        if (done < p->n_windows)
            *n = halve(rivals, *n);
    }
    return true;
}

/* -- public ------------------------------------------------------------------------------------ */

static int by_bytes(const void *a, const void *b)
{
    const eval_line *x = a, *y = b;
    double bytes_x = x->figures.bytes_per_position, bytes_y = y->figures.bytes_per_position;
    return bytes_x != bytes_y ? (bytes_x < bytes_y ? 1 : -1) : (x->kv > y->kv) - (x->kv < y->kv);
}

bool td_eval_search(td_eval_runner *runner, td_eval_results *results, const eval_params *p,
                    const eval_goal *goal, eval_line *lines, uint32_t *choice, uint32_t *nearest,
                    td_err *err)
{
    uint32_t front[EVAL_BESIDE_MAX], n_front = 0, n = p->n_kvs - 1;
    rival *rivals = td_alloc(n, sizeof *rivals, err);
    uint32_t *n_windows = td_alloc(p->n_kvs, sizeof *n_windows, err);
    bool is_ok = rivals && n_windows;
    for (uint32_t i = 0; is_ok && i < n; i++)
        rivals[i].kv = 1 + i;
    is_ok = is_ok && search(runner, results, p, rivals, &n, n_windows, err);
    if (is_ok)
        *choice = choose(goal, rivals, n, nearest);
    for (uint32_t i = 0; is_ok && i < p->n_kvs; i++)
        lines[i] = (eval_line){.kv = &p->kvs[i], .mark = EVAL_DOMINATED};
    for (uint32_t i = 0; is_ok && i < n; i++) {
        if (is_dominated(&rivals[i], rivals, n))
            continue;
        lines[rivals[i].kv].mark = EVAL_ON_FRONT;
        if (n_front < EVAL_BESIDE_MAX)
            front[n_front++] = rivals[i].kv;
    }
    is_ok = is_ok && td_eval_run_speeds(runner, results, front, n_front, err);
    for (uint32_t i = 0; is_ok && i < p->n_kvs; i++) {
        lines[i].figures = td_eval_results_judge(results, i, n_windows[i]);
        lines[i].figures.n_windows = n_windows[i];
    }
    if (is_ok) {
        lines[0].mark = EVAL_BASE;
        if (*choice)
            lines[*choice].mark = EVAL_CHOSEN;
        qsort(lines, p->n_kvs, sizeof *lines, by_bytes);
    }
    td_free(n_windows);
    td_free(rivals);
    return is_ok;
}
