/* Sessions: what is loaded once and used by one run after another. */
#include "run/setup.h"

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/signals.h"
#include "check/verdict.h"
#include "kernels/chips.h"
#include "model/cache_choice.h"
#include "run/recover.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LOAD_TRIES 4u

static bool is_a_stage(const session *r, const char *spec)
{
    bool is_so = false;
    for (uint32_t i = 0; i < td_target_n_stages(r->target); i++) {
        td_stage_info info;
        td_target_get_stage_info(r->target, i, &info);
        is_so |= !strcmp(info.spec, spec);
    }
    return is_so;
}

bool td_setup_is_one_unit(const session *r)
{
    if (r->head && !r->drafting)
        return true;
    const td_device_info *draft = r->drafting ? td_draft_client_get_device(r->drafting) : NULL;
    if (r->drafting && td_draft_client_is_on_host(&r->opened))
        return is_a_stage(r, td_draft_client_device(r->drafting));
    if (!draft)
        return false;
    bool is_host = draft->kind == TD_DEVICE_HOST;
    uint32_t n_threads = is_host ? draft->n_threads : 0;
    const char *spec = r->opened.draft_spec;
    bool is_bound = is_host && strchr(spec, ':') != strrchr(spec, ':');
    for (uint32_t i = 0; i < td_target_n_stages(r->target); i++) {
        td_stage_info info;
        td_target_get_stage_info(r->target, i, &info);
        if (info.host)
            continue;
        if (is_host ? is_bound && !strcmp(info.spec, spec) : td_chips_is_one(info.device, draft))
            return true;
        n_threads += info.device->kind == TD_DEVICE_HOST ? info.device->n_threads : 0;
    }
    cpu_set_t cpus;
    return is_host && sched_getaffinity(0, sizeof cpus, &cpus) == 0 &&
           n_threads > (uint32_t)CPU_COUNT(&cpus);
}

bool td_setup_drafts_ahead(const session *r)
{
    return !r->params->is_turns && !td_setup_is_one_unit(r);
}

/* The head's tensors, and the matrix that makes its logits. */
static uint64_t head_bytes(const session *r)
{
    const td_model *head = r->placing.head;
    const td_gguf *g = td_model_gguf(head);
    const char *out = td_model_hparams(r->model)->is_tied ? "token_embd.weight" : "output.weight";
    const td_gguf_tensor *logits = td_gguf_find_tensor(td_model_gguf(r->model), out);
    uint64_t n_bytes = logits ? logits->n_bytes : 0;
    char prefix[32];
    snprintf(prefix, sizeof prefix, "blk.%u.", td_model_hparams(head)->n_layer);
    for (uint32_t i = 0; i < td_gguf_n_tensors(g); i++)
        if (!strncmp(td_gguf_tensor_at(g, i)->name, prefix, strlen(prefix)))
            n_bytes += td_gguf_tensor_at(g, i)->n_bytes;
    return n_bytes;
}

float td_setup_draft_share(const session *r)
{
    if (r->head && !r->drafting)
        return (float)head_bytes(r) / (float)td_gguf_n_bytes(td_model_gguf(r->model));
    uint64_t n_bytes = r->drafting ? td_draft_client_file_bytes(r->drafting) : 0;
    return (float)n_bytes / (float)td_gguf_n_bytes(td_model_gguf(r->model));
}

/* Chunks of a prompt: a constant of the placement (planning/costs.h). */
static uint32_t choose_prefill_rows(const td_target *t)
{
    for (uint32_t i = 0; i < td_target_n_stages(t); i++) {
        td_stage_info info;
        td_target_get_stage_info(t, i, &info);
        if (info.device->kind != TD_DEVICE_HOST)
            return TD_PREFILL_ROWS_MAX;
    }
    return TD_HOST_CHUNK_ROWS;
}

/* The device that verifies least: a GPU without layers, else the host, which is idle when the
 * target is on GPUs and all there is when it is not. */
static bool choose_draft_device(session *r, td_err *err)
{
    td_run_params *p = &r->opened;
    td_device_info infos[TD_DEVICES_MAX], used[TD_RUN_SPECS_MAX + 1];
    const char *experts = td_place_experts(p->place);
    bool is_host_used = false;
    uint32_t n_used = 0;
    for (uint32_t i = 0; i < p->n_specs + (experts != NULL); i++) {
        td_device_spec spec;
        if (!td_device_spec_parse(i < p->n_specs ? p->specs[i] : experts, &spec, err))
            return false;
        if (spec.host[0])
            continue;
        if (!td_device_find(spec.device, &used[n_used], err))
            return false;
        is_host_used |= used[n_used++].kind == TD_DEVICE_HOST;
    }
    uint32_t n = td_device_list(infos, TD_DEVICES_MAX);
    uint32_t idle = td_chips_idle(infos, n, used, n_used);
    snprintf(r->draft_spec, sizeof r->draft_spec, "%s",
             idle < n       ? infos[idle].spec
             : is_host_used ? "host:1"
                            : "host");
    p->draft_spec = r->draft_spec;
    return true;
}

void td_setup_init(session *r, const td_run_params *params)
{
    r->clock = td_clock_real();
    td_run_params *p = &r->opened;
    *p = *params;
    r->head = r->is_auto ? "" : td_head_name(p->draft_head ? p->draft_head : p->draft_path);
    if (r->head && !p->draft_head)
        p->draft_path = NULL;
    if (!p->n_specs) {
        td_layout_default_specs(&r->defaults);
        p->n_specs = r->defaults.n;
        r->is_default = true;
        memcpy(p->specs, r->defaults.specs, sizeof r->defaults.specs);
    }
}

/* -- loading ----------------------------------------------------------------------------------- */

td_layout_params td_setup_layout_params(const session *r)
{
    const td_run_params *p = &r->opened;
    return (td_layout_params){.model = r->model,
                              .head = r->placing.head,
                              .specs = p->specs,
                              .n_specs = p->n_specs,
                              .place = p->place,
                              .expert_stats = p->expert_stats,
                              .hosts = p->hosts,
                              .n_hosts = p->n_hosts,
                              .host_key = p->key,
                              .wire = p->wire,
                              .is_trusting = p->is_trusting,
                              .kv = p->kv,
                              .draft_kv = &p->draft_kv,
                              .n_slots = p->n_parallel,
                              .n_ctx = p->n_ctx,
                              .is_choosing = true};
}

/* Where layers go is settled before anything is loaded, with room for the draft, which is counted
 * just so; one on another machine is therefore planned there first. Then comes the draft, with the
 * context that was found, and the target last. */
static bool load_once(session *r, td_layout_params *params, td_loading *l, td_err *err)
{
    const td_run_params *p = &r->opened;
    uint32_t most = p->n_ctx ? p->n_ctx : td_model_hparams(r->model)->n_ctx_train;
    if (!r->drafting && (p->draft_path || p->draft_endpoint) &&
        !(r->drafting = td_draft_client_create(p, r->model, most, err)))
        return false;
    r->target = td_target_open(params, err);
    bool is_ok = r->target && (!r->drafting || td_draft_client_load(r->drafting, r->model,
                                                                    td_target_n_ctx(r->target),
                                                                    r->prompts_kept, err));
    if (is_ok && r->drafting)
        r->draft_bytes = td_draft_client_bytes(r->drafting);
    if (is_ok && !r->draft_bytes)
        r->draft_bytes = td_target_draft_bytes(r->target);
    l->start_us = td_clock_now_us(&r->clock);
    is_ok = is_ok && td_target_load(r->target, err);
    td_log_progress_end();
    if (!is_ok)
        td_target_destroy(&r->target);
    return is_ok;
}

/* A worker may be lost while it loads, as later. */
static bool load_both(session *r, td_err *err)
{
    const td_run_params *p = &r->opened;
    td_loading l = {.clock = r->clock, .start_us = td_clock_now_us(&r->clock)};
    td_model *draft = p->draft_path ? td_model_open(p->draft_path, err) : NULL;
    if (p->draft_path && !draft)
        return td_err_prepend(err, "draft");
    td_layout_params params = td_setup_layout_params(r);
    if (!td_draft_client_is_on_host(p)) {
        params.draft = draft;
        params.draft_spec = p->draft_spec;
    }
    params.progress = td_show_loading;
    params.user = &l;
    td_err lost = {0};
    bool is_ok = load_once(r, &params, &l, &lost);
    /* Once lost, it may be down for a moment, or not have noticed yet and be taken for busy. */
    bool is_lost = p->n_hosts && lost.code == TD_E_DEVICE_LOST;
    for (uint32_t i = 1; !is_ok && is_lost && i < LOAD_TRIES; i++) {
        if (td_signals_pending() ||
            (lost.code != TD_E_DEVICE_LOST && lost.code != TD_E_UNAVAILABLE))
            break;
        td_log_warn("%s; loading it again", lost.message);
        td_err_clear(&lost);
        is_ok = load_once(r, &params, &l, &lost);
    }
    td_model_close(&draft);
    return is_ok || td_err_set(err, lost.code, "%s", lost.message);
}

/* Parses the chat templates, so that what is wrong with one is said at the start. */
static bool open_chat(session *r, td_err *err)
{
    r->chat = td_chat_open(td_model_gguf(r->model), td_model_tokenizer(r->model),
                           r->opened.chat_template, err);
    if (r->chat && td_chat_problem(r->chat))
        td_log_warn("%s; lines with messages will fail", td_chat_problem(r->chat));
    return r->chat;
}

void td_setup_choose_date(session *r)
{
    const char *recorded = td_results_date(r->results);
    time_t now = time(NULL);
    struct tm day;
    r->date[0] = 0;
    if (td_chat_uses_date(r->chat) && recorded)
        snprintf(r->date, sizeof r->date, "%s", recorded);
    else if (td_chat_uses_date(r->chat) && localtime_r(&now, &day))
        strftime(r->date, sizeof r->date, "%Y-%m-%d", &day);
    td_prompts_set_chat(r->prompts, td_chat_identity(r->chat), r->date);
}

/* No device that is known to be wrong, before any is opened: what is asked for may be wrong text.
 * The draft's too: it cannot spoil a text, but hang. */
static bool ask_verdicts(const td_run_params *p, td_err *err)
{
    if (p->is_trusting)
        return true;
    for (uint32_t i = 0; i < p->n_specs; i++) {
        td_device_spec spec; /* a worker asks of its own devices itself */
        if (!td_device_spec_parse(p->specs[i], &spec, err) ||
            (!spec.host[0] && !td_verdict_ask_spec(p->specs[i], err)))
            return false;
    }
    const char *experts = td_place_experts(p->place);
    return (!experts || td_verdict_ask_spec(experts, err)) &&
           (!p->draft_spec || td_draft_client_is_on_host(p) ||
            td_verdict_ask_spec(p->draft_spec, err));
}

bool td_setup_keep_prompts(session *r, td_target *target, td_err *err)
{
    char text[TD_IDENTITY_BYTES], what[TD_PREFIX_WHAT_BYTES], kind[TD_DEVICE_KIND_BYTES], cache[80];
    const char *without;
    td_stage_info info;
    if (!r->prompts_kept)
        return true;
    td_target_get_stage_info(target, 0, &info);
    td_device_write_kind(info.device, kind, sizeof kind);
    td_identity_read(r->identity.text, "cache", cache, sizeof cache);
    snprintf(what, sizeof what, "%s on %.150s", cache, kind);
    td_identity_write_prompts(&r->identity, r->model, td_target_n_ctx(target), text);
    if (!td_target_keep_prompts(target, r->prompts_kept, text, what, r->prefill_rows, &without,
                                err))
        return false;
    if (without && !r->has_said_unkept)
        td_log_warn("--prefix-cache: host %s keeps none (`tandem stage --prefix-cache DIR` there), "
                    "so no prompts of the target are kept",
                    without);
    r->has_said_unkept |= without != NULL;
    return true;
}

static bool choose_caches(session *r, td_err *err)
{
    td_run_params *p = &r->opened;
    td_model *draft = p->draft_path ? td_model_open(p->draft_path, err) : NULL;
    if (p->draft_path && !draft)
        return td_err_prepend(err, "draft");
    bool is_ok = !draft || td_cache_choose_draft(&p->draft_kv, &p->kv, draft, err);
    if (is_ok && draft)
        td_cache_warn(&p->draft_kv, draft);
    td_model_close(&draft);
    is_ok = is_ok && td_cache_choose(&p->kv, r->model, err);
    if (is_ok)
        td_cache_warn(&p->kv, r->model);
    return is_ok;
}

const td_model *td_run_find_head(const char *name, const td_model *target, const char *const *specs,
                                 uint32_t n_specs, td_model **file, td_err *err)
{
    td_device_spec last;
    if (!td_device_spec_parse(specs[n_specs - 1], &last, err))
        return NULL;
    if (*name && last.host[0]) {
        td_err_set(err, TD_E_USAGE,
                   "mtp:%s: a head of another file drafts beside the target's last layers, and %s "
                   "is elsewhere; allowed: the last layers on this machine, mtp, or another draft",
                   name, specs[n_specs - 1]);
        return NULL;
    }
    return td_head_find(name, target, file, err);
}

/* The head that drafts, if it can; if only that would do, it must. */
static bool open_head(session *r, td_err *err)
{
    td_run_params *p = &r->opened;
    td_err why = {0};
    r->placing.head =
        td_run_find_head(r->head, r->model, p->specs, p->n_specs, &r->head_file, &why);
    if (!r->placing.head && !r->is_auto)
        return td_err_set(err, why.code, "draft: %s", why.message);
    p->is_ngram |= r->is_auto;
    if (!r->placing.head) {
        r->head = NULL;
        td_log_info("draft: auto: from the texts so far; %s", why.message);
    } else if (r->is_auto) {
        td_log_info("draft: auto: by mtp and from the texts so far, whichever promises more; the "
                    "target's file has a head that is whole");
    }
    return true;
}

bool td_setup_load(session *r, td_err *err)
{
    td_run_params *p = &r->opened;
    if (!ask_verdicts(p, err))
        return false;
    if (p->prefix_path &&
        !(r->prompts_kept = td_prefix_store_open(p->prefix_path, p->prefix_bytes, err)))
        return td_err_prepend(err, "--prefix-cache");
    if (p->stats_path || p->on_finish) { /* it looks at the devices ten times a second */
        r->energy = td_energy_open(NULL, err);
        if (!r->energy)
            return false;
    }
    r->model = td_model_open(p->target_path, err);
    if (r->model && r->head && !open_head(r, err))
        return false;
    const char *recorded = r->results ? td_results_placement(r->results) : NULL;
    if (!r->model || !open_chat(r, err) || !choose_caches(r, err) ||
        !td_run_placement_choose(&r->placing, p, r->model, r->is_default, recorded, err))
        return false;
    if (p->draft_path && !p->draft_spec && !choose_draft_device(r, err))
        return false;
    if (!ask_verdicts(p, err) /* of what was chosen */ || !td_recover_check_spares(r, err))
        return false;
    if (!load_both(r, err))
        return false;
    td_run_placement_write(r->target, r->placement, sizeof r->placement);
    td_run_placement_keep(&r->placing, r->target, p);
    r->prefill_rows = choose_prefill_rows(r->target);
    td_identity_write(p, r->model, r->target, r->prefill_rows, &r->identity);
    if (!td_setup_keep_prompts(r, r->target, err))
        return false;
    return !r->drafting || td_draft_client_connect(r->drafting, r->model,
                                                   td_target_n_ctx(r->target), &r->clock, err);
}

static void show_memory(const char *spec, const char *what, uint64_t n_bytes, uint64_t n_usable,
                        const char *name)
{
    fprintf(stderr, "  %-16s %-14s %9.1f MiB", spec, what, (double)n_bytes / (1 << 20));
    if (n_usable)
        fprintf(stderr, " of %9.1f MiB", (double)n_usable / (1 << 20));
    fprintf(stderr, "  %s\n", name);
}

/* Layers whose types are others, and those whose keys may be kept otherwise for their biases. */
static void show_kept(const session *r)
{
    char text[TD_CACHE_TYPES_TEXT];
    for (uint32_t i = 0; i < r->opened.kv.n_rules; i++)
        if (td_cache_types_write_kept(&r->opened.kv, i, ",=", text, sizeof text))
            fprintf(stderr, "  layers %s%s\n", text, strchr(text, '/') ? " (K/V)" : "");
    td_cache_write_outliers(&r->opened.kv, r->model, text, sizeof text);
    if (*text)
        fprintf(stderr, "  %s\n", text);
}

void td_setup_show(const session *r)
{
    const td_run_params *p = &r->opened;
    if (p->is_quiet || !isatty(STDERR_FILENO))
        return;
    char kept[TD_CACHE_TYPES_TEXT];
    td_log_progress_end();
    fprintf(stderr, "%s: K %s, V %s, context %u, %u at once\n", td_model_name(r->model),
            p->kv.k->name, p->kv.v->name, td_target_n_ctx(r->target), p->n_parallel);
    show_kept(r);
    for (uint32_t i = 0; i < td_target_n_stages(r->target); i++) {
        td_stage_info s;
        char layers[32];
        td_target_get_stage_info(r->target, i, &s);
        snprintf(layers, sizeof layers, "layers %u..%u", s.first, s.last);
        show_memory(s.spec, layers, s.n_bytes, s.n_usable_bytes, s.name);
        if (s.experts_spec[0])
            show_memory(s.experts_spec, "their experts", s.n_experts_bytes, 0, "");
        for (uint32_t k = 1; s.deal && k < s.deal->dealing->n_seats; k++)
            show_memory(s.deal->seats[k].spec, "experts", s.deal->seats[k].n_bytes, 0,
                        s.deal->text);
    }
    if (r->head)
        fprintf(stderr, "  drafts by the head for multi-token prediction%s%s\n",
                *r->head ? " of " : "", r->head);
    if (p->draft_endpoint)
        fprintf(stderr, "  draft at %s\n", p->draft_endpoint);
    else if (r->drafting) {
        show_memory(td_draft_client_device(r->drafting), "draft", r->draft_bytes, 0, p->draft_path);
        td_cache_types_list_kept(&p->draft_kv, kept, sizeof kept);
        fprintf(stderr, "  its cache: K %s, V %s%s%s\n", p->draft_kv.k->name, p->draft_kv.v->name,
                *kept ? ", layers " : "", kept);
    }
    if (p->is_ngram)
        fprintf(stderr, "  drafts from the texts so far\n");
    for (uint32_t i = 0; r->placing.is_planned && i < r->placing.plan.n_links; i++) {
        const td_far_link *l = &r->placing.plan.links[i];
        fprintf(stderr, "  link to %s: round trip %.3f ms; %.1f MB/s there, %.1f MB/s back\n",
                l->host, l->idle_us * 1e-3, l->there_bytes_per_s * 1e-6,
                l->back_bytes_per_s * 1e-6);
    }
    for (uint32_t i = 0; r->placing.is_planned && i < r->placing.plan.n_hops; i++) {
        const td_far_hop *h = &r->placing.plan.hops[i];
        fprintf(stderr, "  link from %s to %s: round trip %.3f ms; %.1f MB/s\n", h->from, h->to,
                h->idle_us * 1e-3, h->bytes_per_s * 1e-6);
    }
    if (r->placing.is_planned)
        fprintf(stderr, "  layers placed by times measured; expected: %.1f tokens/s\n",
                td_run_placement_expected(&r->placing, p->use));
}

td_run_session *td_run_open(const td_run_params *params, td_err *err)
{
    session *r = td_alloc(1, sizeof *r, err);
    if (!r)
        return NULL;
    td_setup_init(r, params);
    if (!td_signals_open(err) || !td_setup_load(r, err))
        td_run_close(&r);
    return r;
}

void td_run_close(td_run_session **opened)
{
    session *r = *opened;
    if (!r)
        return;
    td_draft_client_destroy(&r->drafting);
    td_target_destroy(&r->target);
    td_prefix_store_close(&r->prompts_kept);
    td_chat_close(&r->chat);
    td_model_close(&r->head_file);
    td_model_close(&r->model);
    td_energy_close(&r->energy);
    td_free(r);
    *opened = NULL;
}

const td_model *td_run_model(const td_run_session *r) { return r->model; }

const td_cache_types *td_run_cache(const td_run_session *r) { return &r->opened.kv; }

const td_chat *td_run_chat(const td_run_session *r) { return r->chat; }

const char *td_setup_draft_device(const session *r, char spec[128])
{
    td_stage_info info;
    if (r->drafting || !r->head || !r->target)
        return r->drafting ? td_draft_client_device(r->drafting) : NULL;
    td_target_get_stage_info(r->target, td_target_n_stages(r->target) - 1, &info);
    memcpy(spec, info.spec, sizeof info.spec);
    return spec;
}

const char *td_run_draft_device(td_run_session *r)
{
    const char *device = td_setup_draft_device(r, r->head_spec);
    return device ? device : "";
}

void td_run_device(const td_run_session *r, char *out, size_t n_bytes)
{
    out[0] = 0;
    for (uint32_t i = 0; i < td_target_n_stages(r->target); i++) {
        td_stage_info info;
        td_target_get_stage_info(r->target, i, &info);
        size_t n = strlen(out);
        snprintf(out + n, n_bytes - n, "%s%s", i ? "+" : "", info.spec);
    }
}
