/* What a device takes for a run of layers is asked of the code that will allocate it, so that plans
 * and loads agree. */
#include "planning/layout.h"

#include "base/check.h"
#include "base/mem.h"
#include "kernels/chips.h"

#include <stdio.h>
#include <string.h>

#define CTX_STEP 256u /* the context is tried in steps of this many positions */

typedef struct { /* what a part's device has: of its own, and of the system's memory at most */
    uint64_t own, shared;
} room;

typedef struct {
    td_layout_params params;
    td_layout *layout;
    td_device *draft_dev; /* only asked; or NULL */
    room rooms[TD_STAGES_MAX];
    uint64_t system_bytes;
} builder;

td_forward_params td_layout_forward_params(const td_layout *l, const td_layout_params *p,
                                           uint32_t i)
{
    td_forward_params out = {.model = p->model,
                             .head = p->head,
                             .dev = l->parts[i].dev,
                             .experts_dev = l->parts[i].experts_dev,
                             .dealing = l->deal.dealing,
                             .first = l->parts[i].first,
                             .last = l->parts[i].last,
                             .kv = p->kv,
                             .n_slots = p->n_slots,
                             .n_ctx = l->n_ctx,
                             .n_pages = l->n_pages,
                             .is_all_logits = p->is_all_logits,
                             .is_choosing = p->is_choosing,
                             .beside = p->beside,
                             .n_beside = p->n_beside};
    for (uint32_t k = 0; k < TD_SEATS_MAX; k++)
        out.seats[k] = k ? l->deal.seats[k].dev : out.dev;
    return out;
}

/* Parts on the GPU of `info`. The host's threads are devices of their own with one memory, the
 * system's. */
static uint32_t count_same(const builder *b, const td_device_info *info)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < b->layout->n_parts; i++)
        n += td_chips_is_one(td_device_get_info(b->layout->parts[i].dev), info);
    return info->kind == TD_DEVICE_HOST ? 1 : n;
}

static void find_rooms(builder *b)
{
    b->system_bytes = 0;
    for (uint32_t i = 0; i < b->layout->n_parts; i++) {
        const td_device_info *info = td_device_get_info(b->layout->parts[i].dev);
        const td_capacity *c = &info->capacity;
        uint32_t n_same = count_same(b, info);
        b->rooms[i] = (room){c->own_bytes / n_same, c->shared_bytes / n_same};
        if (c->system_bytes > b->system_bytes)
            b->system_bytes = c->system_bytes;
    }
}

/* Takes n_bytes for something that is no part: of its device's own memory, then of the system's. */
static bool charge(builder *b, const td_device_info *info, uint64_t n_bytes, const char *what,
                   td_err *err)
{
    const td_capacity *c = &info->capacity;
    uint32_t n_same = info->kind == TD_DEVICE_HOST ? 0 : count_same(b, info);
    uint64_t own = n_same ? 0 : c->own_bytes, shared = c->shared_bytes, of_system;
    for (uint32_t i = 0; n_same && i < b->layout->n_parts; i++)
        if (td_chips_is_one(td_device_get_info(b->layout->parts[i].dev), info))
            own += b->rooms[i].own;
    of_system = n_bytes > own ? n_bytes - own : 0;
    if (b->system_bytes < c->system_bytes && !b->system_bytes)
        b->system_bytes = c->system_bytes; /* no part draws on it */
    if (of_system > shared || (of_system && of_system > b->system_bytes))
        return td_err_set(err, TD_E_NOMEM, "%s: %llu MiB on %s, where %llu MiB are there: %s%s%s",
                          what, (unsigned long long)(n_bytes >> 20), info->spec,
                          (unsigned long long)((own + shared) >> 20), c->reason,
                          c->hint[0] ? "; " : "", c->hint);
    b->system_bytes -= of_system;
    for (uint32_t i = 0; n_same && i < b->layout->n_parts; i++)
        if (td_chips_is_one(td_device_get_info(b->layout->parts[i].dev), info)) {
            room *r = &b->rooms[i];
            uint64_t part = n_bytes / n_same + 1, of_own = part < r->own ? part : r->own;
            r->own -= of_own;
            r->shared -= part - of_own < r->shared ? part - of_own : r->shared;
        }
    return true;
}

static bool charge_experts(builder *b, const td_device_spec *specs, td_err *err)
{
    const td_model *m = b->params.model;
    uint32_t n_layer = td_model_hparams(m)->n_layer;
    td_forward_params p = td_layout_forward_params(b->layout, &b->params, 0);
    p.last = n_layer - 1;
    for (uint32_t i = 1; p.dealing && i < p.dealing->n_seats; i++) {
        b->layout->deal.seats[i].n_bytes = td_forward_seat_bytes(&p, i);
        if (!charge(b, td_device_get_info(p.seats[i]), b->layout->deal.seats[i].n_bytes,
                    "the experts", err))
            return false;
    }
    if (!p.experts_dev)
        return true;
    uint64_t all = 0;
    for (uint32_t i = 0; i < (b->params.is_partial ? b->layout->n_parts : 1); i++) {
        p.first = b->params.is_partial ? specs[i].first : 0;
        p.last = b->params.is_partial ? specs[i].last : n_layer - 1;
        all += td_forward_experts_bytes(&p);
    }
    p.first = p.last = n_layer / 2;
    uint64_t one = td_forward_experts_bytes(&p) -
                   td_weights_layer_bytes(m, p.experts_dev, p.first, TD_SHARE_EXPERTS);
    return charge(b, td_device_get_info(p.experts_dev), all + (b->layout->n_parts - 1) * one,
                  "the experts", err);
}

static bool charge_draft(builder *b, td_err *err)
{
    const td_layout_params *p = &b->params;
    b->layout->draft_bytes = 0;
    if (!b->draft_dev)
        return true;
    if (!p->draft) {
        b->layout->draft_bytes =
            p->guest.n_bytes +
            p->guest.position_bytes * td_min_u32(b->layout->n_ctx, p->guest.n_ctx);
        return charge(b, td_device_get_info(b->draft_dev), b->layout->draft_bytes, "the draft",
                      err);
    }
    uint32_t n_ctx = td_min_u32(b->layout->n_ctx, td_model_hparams(p->draft)->n_ctx_train);
    td_forward_params draft =
        td_forward_drafting(p->draft, b->draft_dev, td_layout_kv(p, p->draft), p->n_slots, n_ctx);
    b->layout->draft_bytes = td_forward_bytes(&draft);
    if (!td_forward_check(&draft, err))
        return td_err_prepend(err, "the draft");
    return charge(b, td_device_get_info(b->draft_dev), b->layout->draft_bytes, "the draft", err);
}

/* What device i takes for a run of layers, as the difference of whole parts: so weights, cache and
 * scratch are counted by the code that allocates them. */
static td_place_device describe_place(const builder *b, uint32_t i, const td_device_spec *spec,
                                      uint64_t *bytes)
{
    const td_hparams *h = td_model_hparams(b->params.model);
    uint32_t n_out = b->params.is_all_logits ? TD_PREFILL_ROWS_MAX : TD_VERIFY_ROWS_MAX;
    td_forward_params p = td_layout_forward_params(b->layout, &b->params, i);
    p.first = p.last = h->n_layer - 1;
    uint64_t head = p.head ? td_forward_bytes(&p) : 0;
    p.head = NULL;
    head -= head ? td_forward_bytes(&p) : 0;
    p.first = p.last = h->n_layer / 2;        /* a layer in the middle, where there is one */
    bool is_alone = p.last + 1 == h->n_layer; /* else the logits are counted on top */
    uint64_t one_part = td_forward_bytes(&p);
    td_weights_params weights = {.model = p.model,
                                 .dev = p.dev,
                                 .share = p.experts_dev ? TD_SHARE_OTHERS : TD_SHARE_ALL,
                                 .dealing = p.dealing};
    for (uint32_t k = 0; k < h->n_layer; k++)
        bytes[k] = td_weights_bytes_of(&weights, p.model, k) + td_forward_cache_bytes(&p, k);
    uint64_t ends = td_weights_end_bytes(p.model, NULL, p.dev, p.first, p.last);
    uint64_t first = td_weights_end_bytes(p.model, NULL, p.dev, 0, h->n_layer > 1 ? 0 : p.last);
    uint64_t last = td_weights_end_bytes(p.model, NULL, p.dev, h->n_layer > 1 ? h->n_layer - 1 : 0,
                                         h->n_layer - 1);
    uint64_t shared = b->rooms[i].shared < b->system_bytes ? b->rooms[i].shared : b->system_bytes;
    td_place_device place = {.budget_bytes = b->rooms[i].own + shared,
                             .shared_bytes = shared,
                             .system_bytes = b->system_bytes,
                             .fixed_bytes = one_part - ends - bytes[p.first],
                             .first_bytes = first,
                             .last_bytes = last + head + (is_alone ? 0 : 4ull * n_out * h->n_vocab),
                             .layer_bytes = bytes,
                             .is_pinned = spec->is_pinned,
                             .first = spec->first,
                             .last = spec->last};
    return place;
}

static bool place(builder *b, const td_device_spec *specs, td_err *err)
{
    td_layout *l = b->layout;
    uint32_t n_layer = td_model_hparams(b->params.model)->n_layer;
    find_rooms(b);
    if (!charge_experts(b, specs, err) || !charge_draft(b, err))
        return false;
    l->system_bytes = b->system_bytes;
    for (uint32_t i = 0; i < l->n_parts; i++)
        l->places[i] = describe_place(b, i, &specs[i], l->layer_bytes + (size_t)i * n_layer);
    for (uint32_t i = 0; b->params.is_unplaced && i < l->n_parts; i++)
        l->parts[i].last = n_layer - 1;
    if (b->params.is_unplaced)
        return true;
    bool is_ok = (b->params.is_partial ? td_place_some : td_place_layers)(l->places, l->n_parts,
                                                                          n_layer, err);
    for (uint32_t i = 0; is_ok && i < l->n_parts; i++) {
        l->parts[i].first = l->places[i].first;
        l->parts[i].last = l->places[i].last;
        td_forward_params p = td_layout_forward_params(l, &b->params, i);
        is_ok = td_forward_check(&p, err);
    }
    return is_ok;
}

/* Places with as many cache pages as fit, at least those of one sequence. */
static bool place_with_pages(builder *b, const td_device_spec *specs, td_err *err)
{
    uint32_t one = td_div_up(b->layout->n_ctx, TD_PAGE_POSITIONS);
    b->layout->n_pages = 0;
    td_err why = {0};
    if (place(b, specs, &why))
        return true;
    uint32_t fits = 0, too_many = one * b->params.n_slots; /* pages that do and do not */
    if (why.code != TD_E_NOMEM || b->params.n_slots < 2)
        return td_err_set(err, why.code, "%s", why.message);
    b->layout->n_pages = one;
    if (!place(b, specs, err))
        return false;
    for (fits = one; too_many - fits > td_max_u32(1, fits / 64);) {
        b->layout->n_pages = fits + (too_many - fits) / 2;
        if (place(b, specs, NULL))
            fits = b->layout->n_pages;
        else
            too_many = b->layout->n_pages;
    }
    b->layout->n_pages = fits;
    return place(b, specs, err);
}

/* Adds what limits the devices, and how there could be more. */
static bool explain(const builder *b, const td_err *why, td_err *err)
{
    td_err_set(err, why->code, "%s", why->message);
    for (uint32_t i = 0; err && i < b->layout->n_parts && why->code == TD_E_NOMEM; i++) {
        const td_device_info *info = td_device_get_info(b->layout->parts[i].dev);
        bool is_said = strstr(err->message, info->capacity.reason) != NULL;
        size_t n = strlen(err->message);
        if (!is_said && n < sizeof err->message)
            snprintf(err->message + n, sizeof err->message - n, "; %s: %s%s%s", info->spec,
                     info->capacity.reason, info->capacity.hint[0] ? ": " : "",
                     info->capacity.hint);
    }
    return false;
}

/* Chooses the context if it was left open: the model's, or the largest that can be placed. */
static bool place_with_context(builder *b, const td_device_spec *specs, td_err *err)
{
    const td_hparams *h = td_model_hparams(b->params.model);
    b->layout->layer_bytes =
        td_alloc((size_t)b->layout->n_parts * h->n_layer, sizeof *b->layout->layer_bytes, err);
    if (!b->layout->layer_bytes)
        return false;
    b->layout->n_ctx = b->params.n_ctx ? b->params.n_ctx : h->n_ctx_train;
    while (true) {
        td_err why = {0};
        if (place_with_pages(b, specs, &why))
            break;
        bool is_smaller_possible =
            !b->params.n_ctx && why.code == TD_E_NOMEM && b->layout->n_ctx > CTX_STEP;
        if (!is_smaller_possible)
            return explain(b, &why, err);
        uint32_t less = b->layout->n_ctx / 4 * 3 / CTX_STEP * CTX_STEP;
        b->layout->n_ctx = td_max_u32(less, CTX_STEP);
    }
    return true;
}

static bool open_experts_device(td_layout_part *part, const char *place, td_err *err)
{
    if (!td_place_experts(place))
        return td_err_set(err, TD_E_USAGE,
                          "place \"%.64s\"; allowed: experts=DEVICE, or experts=auto, "
                          "experts=SHARES, experts=LISTS for experts dealt over the devices",
                          place);
    part->experts_dev = td_device_create(td_place_experts(place), err);
    return part->experts_dev || td_err_prepend(err, "place");
}

/* Where experts are dealt: what is possible, and the devices behind the first. */
static bool open_seats(builder *b, const td_device_spec *specs, td_err *err)
{
    const td_layout_params *p = &b->params;
    td_layout_deal *deal = &b->layout->deal;
    const char *texts[TD_SEATS_MAX];
    td_device *devs[TD_SEATS_MAX];
    if (!td_model_hparams(p->model)->n_expert)
        return td_err_set(err, TD_E_USAGE,
                          "place \"%.64s\": the model is dense; allowed: a mixture of experts",
                          p->place);
    if (p->n_specs < 2 || p->n_specs > TD_SEATS_MAX || p->is_partial || p->is_unplaced)
        return td_err_set(err, TD_E_USAGE,
                          "place \"%.64s\": experts are dealt over %u devices; allowed: 2..%u, of "
                          "one machine, the first of which has all layers",
                          p->place, p->n_specs, TD_SEATS_MAX);
    for (uint32_t i = 0; i < p->n_specs; i++) {
        if (specs[i].is_pinned)
            return td_err_set(err, TD_E_USAGE,
                              "place \"%.64s\": device \"%.64s\" names layers; allowed: devices "
                              "without, the first has all layers",
                              p->place, p->specs[i]);
        memcpy(deal->seats[i].spec, specs[i].device, sizeof deal->seats[i].spec);
        if (i && !(deal->seats[i].dev = td_device_create(specs[i].device, err)))
            return false;
        texts[i] = specs[i].device;
        devs[i] = i ? deal->seats[i].dev : b->layout->parts[0].dev;
    }
    const td_dealing_params params = {
        .specs = texts, .devs = devs, .n_seats = p->n_specs, .stats = p->expert_stats};
    deal->dealing = td_dealing_create(p->model, p->place, &params, deal->text, err);
    return deal->dealing;
}

static bool open_devices(builder *b, td_device_spec *specs, td_err *err)
{
    const td_layout_params *p = &b->params;
    if (p->n_specs < 1 || p->n_specs > TD_STAGES_MAX)
        return td_err_set(err, TD_E_USAGE, "%u target devices; allowed: 1..%u", p->n_specs,
                          TD_STAGES_MAX);
    bool is_dealt = td_place_is_dealt(p->place);
    for (uint32_t i = 0; i < p->n_specs; i++) {
        td_layout_part *part = &b->layout->parts[i];
        if (!td_device_spec_parse(p->specs[i], &specs[i], err))
            return false;
        if (specs[i].host[0])
            return td_err_set(err, TD_E_USAGE,
                              "device \"%.128s\" is on another machine; allowed here: devices of "
                              "this one",
                              p->specs[i]);
        if (p->is_partial &&
            (!specs[i].is_pinned || specs[i].last >= td_model_hparams(p->model)->n_layer))
            return td_err_set(err, TD_E_USAGE, "device \"%.128s\": allowed: layers of 0..%u",
                              p->specs[i], td_model_hparams(p->model)->n_layer - 1);
        if (is_dealt && i) /* a seat, no part */
            continue;
        memcpy(part->spec, specs[i].device, sizeof part->spec);
        part->dev = td_device_create(specs[i].device, err);
        if (!part->dev)
            return false;
        /* counted, so that it is destroyed if opening the experts' device fails */
        b->layout->n_parts++;
        if (p->expert_stats && !is_dealt)
            return td_err_set(
                err, TD_E_USAGE,
                "expert_stats: no experts are dealt; allowed: with place experts=auto "
                "or shares");
        if (p->place && !is_dealt && !open_experts_device(part, p->place, err))
            return false;
    }
    if (is_dealt && !open_seats(b, specs, err))
        return false;
    const char *draft_spec = p->draft ? p->draft_spec : p->guest.spec;
    b->draft_dev = draft_spec ? td_device_create(draft_spec, err) : NULL;
    return !draft_spec || b->draft_dev || td_err_prepend(err, "the draft");
}

td_layout *td_layout_create(const td_layout_params *params, td_err *err)
{
    td_device_spec specs[TD_STAGES_MAX];
    builder b = {.params = *params, .layout = td_alloc(1, sizeof(struct td_layout), err)};
    if (!b.layout)
        return NULL;
    bool is_ok = open_devices(&b, specs, err) && place_with_context(&b, specs, err);
    td_device_destroy(&b.draft_dev);
    if (!is_ok) {
        td_layout_destroy(&b.layout);
        return NULL;
    }
    for (uint32_t i = 0; i < b.layout->n_parts; i++) {
        td_layout_part *part = &b.layout->parts[i];
        td_forward_params p = td_layout_forward_params(b.layout, &b.params, i);
        part->n_bytes = td_forward_bytes(&p);
        part->experts_bytes = td_forward_experts_bytes(&p);
        part->budget_bytes = b.layout->places[i].budget_bytes;
    }
    return b.layout;
}

void td_layout_destroy(td_layout **layout)
{
    if (!*layout)
        return;
    for (uint32_t i = 0; i < (*layout)->n_parts; i++) {
        td_device_destroy(&(*layout)->parts[i].experts_dev);
        td_device_destroy(&(*layout)->parts[i].dev);
    }
    for (uint32_t i = 1; i < TD_SEATS_MAX; i++)
        td_device_destroy(&(*layout)->deal.seats[i].dev);
    td_dealing_destroy(&(*layout)->deal.dealing);
    td_free((*layout)->layer_bytes);
    td_free(*layout);
    *layout = NULL;
}

void td_layout_default_specs(td_default_specs *out)
{
    td_device_info infos[TD_DEVICES_MAX];
    uint32_t indices[TD_DEVICES_MAX];
    uint32_t n = td_chips_default(infos, td_device_list(infos, TD_DEVICES_MAX), indices);
    out->n = n ? td_min_u32(n, TD_STAGES_MAX) : 1;
    for (uint32_t i = 0; i < out->n; i++) {
        snprintf(out->texts[i], sizeof out->texts[i], "%s", n ? infos[indices[i]].spec : "host");
        out->specs[i] = out->texts[i];
    }
}
