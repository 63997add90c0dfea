/* Devices, placement and parts. What a device takes for a run of layers is asked of the code that
 * will allocate it, so that plans and loads agree. */
#include "target/chain.h"

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"

#include <string.h>

#define CTX_STEP 256u /* the context is tried in steps of this many positions */

typedef struct {
    td_chain_params params;
    td_chain *chain;
} builder;

static td_forward_params forward_params(const builder *b, uint32_t i)
{
    const td_chain_params *p = &b->params;
    return (td_forward_params){.model = p->model,
                               .dev = b->chain->parts[i].dev,
                               .experts_dev = b->chain->parts[i].experts_dev,
                               .first = b->chain->parts[i].first,
                               .last = b->chain->parts[i].last,
                               .type_k = p->type_k,
                               .type_v = p->type_v,
                               .n_slots = p->n_slots,
                               .n_ctx = b->chain->n_ctx,
                               .n_pages = b->chain->n_pages,
                               .is_all_logits = p->is_all_logits,
                               .is_choosing = p->is_choosing,
                               .progress = p->progress,
                               .user = p->user};
}

/* Bytes a device may still take. Two SPECs of one physical device share its budget. */
static uint64_t budget_of(const builder *b, uint32_t i)
{
    const td_device_info *info = td_device_get_info(b->chain->parts[i].dev);
    uint32_t n_same = 0;
    for (uint32_t k = 0; k < b->chain->n_parts; k++) {
        const td_device_info *other = td_device_get_info(b->chain->parts[k].dev);
        n_same += !strcmp(other->spec, info->spec) ||
                  (other->kind == TD_DEVICE_HOST && info->kind == TD_DEVICE_HOST);
    }
    uint64_t used, budget;
    td_device_memory(b->chain->parts[i].dev, &used, &budget);
    return budget > used ? (budget - used) / n_same : 0;
}

/* What device i takes for a run of layers, as the difference of whole parts: so weights, cache and
 * scratch are counted by the code that allocates them. */
static td_place_device describe_place(const builder *b, uint32_t i, const td_device_spec *spec,
                                      uint64_t *bytes)
{
    const td_hparams *h = td_model_hparams(b->params.model);
    uint32_t n_out = b->params.is_all_logits ? TD_PREFILL_ROWS_MAX : TD_VERIFY_ROWS_MAX;
    td_forward_params p = forward_params(b, i);
    p.first = p.last = h->n_layer / 2;        /* a layer in the middle, where there is one */
    bool is_alone = p.last + 1 == h->n_layer; /* else the logits are counted on top */
    uint64_t one_part = td_forward_bytes(&p);
    td_weight_share share = p.experts_dev ? TD_SHARE_OTHERS : TD_SHARE_ALL;
    for (uint32_t k = 0; k < h->n_layer; k++)
        bytes[k] = td_weights_layer_bytes(p.model, p.dev, k, share) + td_forward_cache_bytes(&p, k);
    uint64_t ends = td_weights_end_bytes(p.model, p.dev, p.first, p.last);
    uint64_t first = td_weights_end_bytes(p.model, p.dev, 0, h->n_layer > 1 ? 0 : p.last);
    uint64_t last =
        td_weights_end_bytes(p.model, p.dev, h->n_layer > 1 ? h->n_layer - 1 : 0, h->n_layer - 1);
    td_place_device place = {.budget_bytes = budget_of(b, i),
                             .fixed_bytes = one_part - ends - bytes[p.first],
                             .first_bytes = first,
                             .last_bytes = last + (is_alone ? 0 : 4ull * n_out * h->n_vocab),
                             .layer_bytes = bytes,
                             .is_pinned = spec->is_pinned,
                             .first = spec->first,
                             .last = spec->last};
    const td_device_info *info = td_device_get_info(p.dev);
    if (b->params.draft_bytes && b->params.draft_spec &&
        (!strcmp(b->params.draft_spec, spec->device) || !strcmp(b->params.draft_spec, info->spec)))
        place.fixed_bytes += b->params.draft_bytes;
    return place;
}

static bool place(builder *b, const td_device_spec *specs, td_err *err)
{
    td_chain *c = b->chain;
    uint32_t n_layer = td_model_hparams(b->params.model)->n_layer;
    for (uint32_t i = 0; i < c->n_parts; i++)
        c->places[i] = describe_place(b, i, &specs[i], c->layer_bytes + (size_t)i * n_layer);
    bool is_ok = td_place_layers(c->places, c->n_parts, n_layer, err);
    for (uint32_t i = 0; is_ok && i < c->n_parts; i++) {
        c->parts[i].first = c->places[i].first;
        c->parts[i].last = c->places[i].last;
    }
    return is_ok;
}

/* Places with as many cache pages as fit, at least those of one sequence. */
static bool place_with_pages(builder *b, const td_device_spec *specs, td_err *err)
{
    uint32_t one = td_div_up(b->chain->n_ctx, TD_PAGE_POSITIONS);
    b->chain->n_pages = 0;
    td_err why = {0};
    if (place(b, specs, &why))
        return true;
    uint32_t fits = 0, too_many = one * b->params.n_slots; /* pages that do and do not */
    if (why.code != TD_E_NOMEM || b->params.n_slots < 2)
        return td_err_set(err, why.code, "%s", why.message);
    b->chain->n_pages = one;
    if (!place(b, specs, err))
        return false;
    for (fits = one; too_many - fits > td_max_u32(1, fits / 64);) {
        b->chain->n_pages = fits + (too_many - fits) / 2;
        if (place(b, specs, NULL))
            fits = b->chain->n_pages;
        else
            too_many = b->chain->n_pages;
    }
    b->chain->n_pages = fits;
    return place(b, specs, err);
}

/* Chooses the context if it was left open: the model's, or the largest that can be placed. */
static bool place_with_context(builder *b, const td_device_spec *specs, td_err *err)
{
    const td_hparams *h = td_model_hparams(b->params.model);
    uint32_t n_train = h->n_ctx_train;
    b->chain->layer_bytes =
        td_alloc((size_t)b->chain->n_parts * h->n_layer, sizeof *b->chain->layer_bytes, err);
    if (!b->chain->layer_bytes)
        return false;
    b->chain->n_ctx = b->params.n_ctx ? b->params.n_ctx : n_train;
    while (true) {
        td_err why = {0};
        if (place_with_pages(b, specs, &why))
            break;
        bool is_smaller_possible =
            !b->params.n_ctx && why.code == TD_E_NOMEM && b->chain->n_ctx > CTX_STEP;
        if (!is_smaller_possible)
            return td_err_set(err, why.code, "%s", why.message);
        uint32_t less = b->chain->n_ctx / 4 * 3 / CTX_STEP * CTX_STEP;
        b->chain->n_ctx = td_max_u32(less, CTX_STEP);
    }
    if (b->params.is_plan_only)
        return true;
    if (!b->params.n_ctx && b->chain->n_ctx < n_train)
        td_log_warn("the model's context of %u does not fit; using %u (set --ctx to choose)",
                    n_train, b->chain->n_ctx);
    if (b->chain->n_pages)
        td_log_warn("the cache holds %u positions, not %u sequences of %u: prompts wait for room",
                    b->chain->n_pages * TD_PAGE_POSITIONS, b->params.n_slots, b->chain->n_ctx);
    return true;
}

static bool open_experts_device(td_chain_part *part, const char *place, td_err *err)
{
    static const char key[] = "experts=";
    if (strncmp(place, key, strlen(key)) || !place[strlen(key)])
        return td_err_set(err, TD_E_USAGE, "place \"%.64s\"; allowed: experts=DEVICE", place);
    part->experts_dev = td_device_create(place + strlen(key), err);
    return part->experts_dev || td_err_prepend(err, "place");
}

static bool open_devices(builder *b, td_device_spec *specs, td_err *err)
{
    const td_chain_params *p = &b->params;
    if (p->n_specs < 1 || p->n_specs > TD_STAGES_MAX)
        return td_err_set(err, TD_E_USAGE, "%u target devices; allowed: 1..%u", p->n_specs,
                          TD_STAGES_MAX);
    for (uint32_t i = 0; i < p->n_specs; i++) {
        td_chain_part *part = &b->chain->parts[i];
        if (!td_device_spec_parse(p->specs[i], &specs[i], err))
            return false;
        memcpy(part->spec, specs[i].device, sizeof part->spec);
        part->dev = td_device_create(specs[i].device, err);
        if (!part->dev)
            return false;
        b->chain->n_parts++; /* parts run at the same time: a device for the experts of each */
        if (p->place && !open_experts_device(part, p->place, err))
            return false;
    }
    return true;
}

/* Sums the progress of the parts into one figure. */
typedef struct {
    const td_chain_params *params;
    uint64_t done_before, total;
} load_progress;

static void on_progress(void *user, uint64_t done, uint64_t total)
{
    (void)total;
    const load_progress *p = user;
    p->params->progress(p->params->user, p->done_before + done, p->total);
}

static bool load_parts(builder *b, td_err *err)
{
    const td_gguf *g = td_model_gguf(b->params.model);
    load_progress progress = {.params = &b->params};
    for (uint32_t i = 0; i < td_gguf_n_tensors(g); i++)
        progress.total += td_gguf_tensor_at(g, i)->n_bytes;
    for (uint32_t i = 0; i < b->chain->n_parts; i++) {
        td_chain_part *part = &b->chain->parts[i];
        td_forward_params params = forward_params(b, i);
        params.progress = b->params.progress ? on_progress : NULL;
        params.user = &progress;
        part->n_bytes = td_forward_bytes(&params);
        part->experts_bytes = td_forward_experts_bytes(&params);
        part->budget_bytes = budget_of(b, i);
        if (b->params.is_plan_only)
            continue;
        part->forward = td_forward_create(&params, err);
        if (!part->forward)
            return false;
        progress.done_before +=
            td_weights_end_bytes(params.model, part->dev, part->first, part->last);
        for (uint32_t k = part->first; k <= part->last; k++)
            progress.done_before +=
                td_weights_layer_bytes(params.model, part->dev, k, TD_SHARE_ALL);
    }
    return true;
}

td_chain *td_chain_create(const td_chain_params *params, td_err *err)
{
    td_device_spec specs[TD_STAGES_MAX];
    builder b = {.params = *params, .chain = td_alloc(1, sizeof(td_chain), err)};
    if (!b.chain)
        return NULL;
    if (!open_devices(&b, specs, err) || !place_with_context(&b, specs, err) ||
        !load_parts(&b, err))
        td_chain_destroy(&b.chain);
    return b.chain;
}

void td_chain_destroy(td_chain **chain)
{
    if (!*chain)
        return;
    for (uint32_t i = 0; i < (*chain)->n_parts; i++) {
        td_forward_destroy(&(*chain)->parts[i].forward);
        td_device_destroy(&(*chain)->parts[i].experts_dev);
        td_device_destroy(&(*chain)->parts[i].dev);
    }
    td_free((*chain)->layer_bytes);
    td_free(*chain);
    *chain = NULL;
}

bool td_chain_run(td_chain *chain, td_mode mode, const td_forward_row *rows, uint32_t n_rows,
                  td_err *err)
{
    for (uint32_t i = 0; i < chain->n_parts; i++) {
        td_forward *f = chain->parts[i].forward;
        if (i > 0)
            td_forward_copy_input(f, td_forward_output(chain->parts[i - 1].forward), n_rows);
        if (!td_forward_run(f, mode, rows, n_rows, err))
            return false;
    }
    return true;
}

const float *td_chain_logits(const td_chain *chain)
{
    return td_forward_output(chain->parts[chain->n_parts - 1].forward);
}

void td_chain_commit(td_chain *chain, uint32_t slot, uint32_t length)
{
    for (uint32_t i = 0; i < chain->n_parts; i++)
        if (length > td_cache_committed(td_forward_cache(chain->parts[i].forward), slot))
            td_cache_commit(td_forward_cache(chain->parts[i].forward), slot, length);
}

uint32_t td_chain_rewind(td_chain *chain, uint32_t slot, uint32_t length)
{
    uint32_t left = length;
    for (uint32_t i = 0; i < chain->n_parts; i++) {
        td_cache *cache = td_forward_cache(chain->parts[i].forward);
        if (td_cache_committed(cache, slot) > length || td_cache_length(cache, slot) < length)
            left = 0;
    }
    for (uint32_t i = 0; i < chain->n_parts; i++) {
        td_cache *cache = td_forward_cache(chain->parts[i].forward);
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
    for (uint32_t i = 0; i < chain->n_parts; i++)
        forgets |= td_cache_forgets(td_forward_cache(chain->parts[i].forward));
    return forgets;
}

bool td_chain_profile(td_chain *chain, bool is_on, td_err *err)
{
    for (uint32_t i = 0; i < chain->n_parts; i++)
        if (!td_forward_profile(chain->parts[i].forward, is_on, err))
            return false;
    return true;
}

uint32_t td_chain_op_times(const td_chain *chain, td_op_time *out, uint32_t max)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < chain->n_parts; i++)
        n = td_forward_op_times(chain->parts[i].forward, out, n, max);
    return n;
}

static void add_counts(td_program_counts *to, const td_program_counts *from)
{
    to->n_runs += from->n_runs;
    to->n_dispatches += from->n_dispatches;
    to->n_submissions += from->n_submissions;
    to->run_seconds += from->run_seconds;
    to->busy_seconds += from->busy_seconds;
    to->gap_seconds += from->gap_seconds;
}

void td_chain_get_counts(const td_chain *chain, td_program_counts *verify,
                         td_program_counts *prefill)
{
    *verify = *prefill = (td_program_counts){0};
    for (uint32_t i = 0; i < chain->n_parts; i++) {
        td_program_counts v, p;
        td_forward_get_counts(chain->parts[i].forward, &v, &p);
        add_counts(verify, &v);
        add_counts(prefill, &p);
    }
}

uint32_t td_chain_default_specs(const char **specs)
{
    static td_device_info infos[TD_DEVICES_MAX];
    uint32_t n_infos = td_device_list(infos, TD_DEVICES_MAX), n = 0;
    const td_device_kind order[] = {TD_DEVICE_DISCRETE, TD_DEVICE_INTEGRATED, TD_DEVICE_VIRTUAL};
    for (size_t k = 0; k < TD_COUNT(order); k++)
        for (uint32_t i = 0; i < n_infos && n < TD_STAGES_MAX; i++)
            if (infos[i].is_usable && infos[i].kind == order[k])
                specs[n++] = infos[i].spec;
    if (!n)
        specs[n++] = "host";
    return n;
}
