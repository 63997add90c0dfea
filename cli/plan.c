/* tandem plan: where the layers would go, what they would take, and how fast that would be. With
 * --hardware, for machines that are not here (plan_hardware.c). */
#include "cli/plan.h"
#include "cli/cache_options.h"
#include "cli/commands.h"
#include "cli/generate.h"
#include "cli/options.h"

#include "base/check.h"
#include "base/json_writer.h"
#include "base/text.h"
#include "model/cache_choice.h"
#include "planning/mixture.h"
#include "target/remote_measure.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#define N_MAX      65536u /* tokens of a prompt, and behind it */
#define ROWS_SHOWN 8u     /* alternatives, and those on one device */

typedef struct {
    const char *config, *target, *draft, *place, *use, *hardware, *machine;
    const char *drafts, *text, *write_config;
    option_list devices, draft_devices;
    option_hosts hosts;
    const char *key;
    bool is_trusting;
    td_cache_types kv, draft_kv;
    const td_type_info *wire;
    uint32_t n_ctx, n_parallel, draft_max, draft_fixed, n_prompt, n_predict;
    float accept;
    bool is_json, is_measure, is_no_measure;
} fields;

#define AT(name) offsetof(fields, name)

static const option options[] = {
    {"--config", NULL, OPT_READ, AT(config), 0, 0, "FILE.json",
     "models, devices, draft and caches from a file for generate; flags win"},
    {"--target", NULL, OPT_READ, AT(target), 0, 0, "M.gguf", "the model (required)"},
    {"--device", NULL, OPT_LIST, AT(devices), 0, 0, "SPEC",
     "as in generate; of several, those that only slow it down are left out"},
    {"--host", NULL, OPT_HOSTS, AT(hosts), 0, 0, "NAME=EP",
     "another machine, whose devices are NAME/SPEC then: the `tandem stage` at EP (as of "
     "`generate`), while it is free, times layers there, and links are measured"},
    {"--key", NULL, OPT_TEXT, AT(key), 0, 0, "NAME",
     "our own pair of `tandem keys`, shown there (default: the only one)"},
    {"--wire", NULL, OPT_WIRE_TYPE, AT(wire), 0, 0, "TYPE",
     "type of activations between machines: f32, f16 (default: f32)"},
    {"--trust", NULL, OPT_FLAG, AT(is_trusting), 0, 0, NULL,
     "go on with devices there that have failed `tandem check`"},
    {"--place", NULL, OPT_TEXT, AT(place), 0, 0, "experts=SPEC",
     "the experts of a mixture on another device, say experts=host"},
    {"--draft", NULL, OPT_READ, AT(draft), 0, 0, "D.gguf|mtp[:FILE]|auto",
     "a small model that proposes tokens, or the target's head; auto: that, if there is one"},
    {"--drafts", NULL, OPT_TEXT, AT(drafts), 0, 0, "DIR",
     "measures each *.gguf of a folder as a draft, the best first"},
    {"--text", NULL, OPT_READ, AT(text), 0, 0, "FILE",
     "with --drafts: a text in UTF-8 that is gone on from to see what of a draft is accepted "
     "(default: a few prompts)"},
    {"--write-config", NULL, OPT_WRITE, AT(write_config), 0, 0, "FILE",
     "with --drafts: writes the best draft and its length, for generate --config"},
    {"--draft-device", NULL, OPT_LIST, AT(draft_devices), 0, 0, "SPEC",
     "where it may run; several are compared (default: any device of the target, and host:1)"},
    {"--draft-max", NULL, OPT_U32, AT(draft_max), 1, TD_SPEED_DRAFT_MAX, "K",
     "tokens of a draft at most (default: 8)"},
    {"--draft-fixed", NULL, OPT_U32, AT(draft_fixed), 1, TD_SPEED_DRAFT_MAX, "K",
     "always draft K tokens"},
    {"--accept", NULL, OPT_FLOAT, AT(accept), 0, 1, "P",
     "a drafted token is right with probability P (default: 0.7)"},
    {"--for", NULL, OPT_TEXT, AT(use), 0, 0, "USE",
     "stream: one sequence; batch: --parallel of them at once (default: stream)"},
    {"--parallel", NULL, OPT_U32, AT(n_parallel), 1, 64, "N",
     "sequences at once (default: 1; for batch: 8)"},
    {"--pp", NULL, OPT_U32, AT(n_prompt), 1, N_MAX, "N", "tokens of a prompt (default: 256)"},
    {"-n", NULL, OPT_U32, AT(n_predict), 1, N_MAX, "N", "tokens generated after it (default: 256)"},
    {"--kv-k", NULL, OPT_CACHE_TYPE, AT(kv.k), 0, 0, "TYPE",
     "type of cached keys: " TD_OPTIONS_CACHE_TYPES " (default: f16)"},
    {"--kv-v", NULL, OPT_CACHE_TYPE, AT(kv.v), 0, 0, "TYPE",
     "type of cached values (default: f16)"},
    CACHE_ROWS(kv, CACHE_NO_KEY),
    {"--draft-kv-k", NULL, OPT_CACHE_TYPE, AT(draft_kv.k), 0, 0, "TYPE",
     "type of the draft's cached keys (default: as in generate)"},
    {"--draft-kv-v", NULL, OPT_CACHE_TYPE, AT(draft_kv.v), 0, 0, "TYPE",
     "type of the draft's cached values (default: likewise)"},
    {"--ctx", NULL, OPT_U32, AT(n_ctx), 1, 1 << 24, "N",
     "positions of a sequence (default: the smaller of the model's and what fits)"},
    {"--measure", NULL, OPT_FLAG, AT(is_measure), 0, 0, NULL,
     "measure again what was measured before"},
    {"--no-measure", NULL, OPT_FLAG, AT(is_no_measure), 0, 0, NULL,
     "measure nothing; without figures of an earlier run layers go by bytes"},
    {"--hardware", NULL, OPT_READ, AT(hardware), 0, 0, "FILE.json",
     "predict for the machines and models of a file instead"},
    {"--machine", NULL, OPT_READ, AT(machine), 0, 0, "FILE.json",
     "for a machine that a file describes instead"},
    {"--json", NULL, OPT_FLAG, AT(is_json), 0, 0, NULL, "as JSON"},
};
static const command_help help = {"plan",
                                  "tandem plan --target M.gguf [--device SPEC]... [options]",
                                  "Shows where layers would go and how fast that would be, from "
                                  "the time that layers of each kind\n"
                                  "take on each device (a few seconds; kept on disk).",
                                  options, TD_COUNT(options)};

static bool check(fields *f, td_err *err)
{
    bool is_batch = f->use && !strcmp(f->use, "batch");
    if (f->use && !is_batch && strcmp(f->use, "stream"))
        return td_err_set(err, TD_E_USAGE, "--for: %s; allowed: stream, batch",
                          td_text_quote(f->use, strlen(f->use)).text);
    if (f->is_measure && f->is_no_measure)
        return td_err_set(err, TD_E_USAGE, "give either --measure or --no-measure, not both");
    if (f->hardware && (f->target || f->devices.n || f->draft))
        return td_err_set(err, TD_E_USAGE,
                          "--hardware: devices and models are those of the file; no --target, "
                          "--device or --draft");
    if (f->machine && (f->hardware || f->devices.n || f->draft_devices.n || f->place))
        return td_err_set(err, TD_E_USAGE,
                          "--machine: devices are those of the file; no --hardware, --device, "
                          "--draft-device or --place");
    if (f->hosts.n && (f->hardware || f->machine || !f->devices.n || f->place))
        return td_err_set(err, TD_E_USAGE,
                          "--host: give --device NAME/SPEC too, and no --hardware, --machine or "
                          "--place");
    if (!f->target && !f->hardware && !f->machine)
        return td_err_set(err, TD_E_USAGE, "usage: %s", help.usage);
    if (!f->draft && !f->drafts &&
        (f->draft_devices.n || f->draft_max || f->draft_fixed || f->draft_kv.k || f->draft_kv.v))
        return td_err_set(err, TD_E_USAGE,
                          "--draft-device, --draft-max, --draft-fixed, --draft-kv-k and "
                          "--draft-kv-v need --draft D.gguf or --drafts DIR");
    if (!f->drafts && (f->text || f->write_config))
        return td_err_set(err, TD_E_USAGE, "--text and --write-config need --drafts DIR");
    if (f->drafts && f->config)
        f->draft = NULL; /* the file's */
    if (f->drafts &&
        (f->draft || f->hardware || f->machine || f->hosts.n || f->is_no_measure || f->accept >= 0))
        return td_err_set(err, TD_E_USAGE,
                          "--drafts: drafts are those of the folder, and they are measured here; "
                          "no --draft, --accept, --hardware, --machine, --host or --no-measure");
    if (f->write_config && !strcmp(f->write_config, "-"))
        return td_err_set(err, TD_E_USAGE, "--write-config: -; allowed: a file");
    if (!f->n_parallel)
        f->n_parallel = is_batch ? 8 : 1;
    return true;
}

/* What is shown, and what it was made of. */
typedef struct {
    const fields *f;
    const td_model *model;
    const char *const *specs; /* as given */
    td_plan plan;             /* with the parts of the placement chosen */
    uint64_t draft_bytes;
    char kept[256];  /* layers of other types (td_cache_types_list_kept) */
    bool is_mixture; /* compared, over several devices */
    td_mixture mixture;
} shown;

static void print_part(const td_plan_part *p)
{
    printf("  %-16s layers %3u..%-3u %9.1f MiB of %9.1f MiB  %s\n", p->spec, p->first, p->last,
           (double)p->n_bytes / (1 << 20), (double)p->budget_bytes / (1 << 20), p->name);
}

static void print_links(const td_plan *p)
{
    for (uint32_t i = 0; i < p->n_links; i++) {
        const td_far_link *l = &p->links[i];
        printf("  link to %s: round trip %.3f ms idle, %.3f ms loaded; %.1f MB/s there, %.1f MB/s "
               "back\n",
               l->host, l->idle_us * 1e-3, l->loaded_us * 1e-3, l->there_bytes_per_s * 1e-6,
               l->back_bytes_per_s * 1e-6);
    }
    for (uint32_t i = 0; i < p->n_hops; i++) {
        const td_far_hop *h = &p->hops[i];
        printf("  link from %s to %s: round trip %.3f ms idle, %.3f ms loaded; %.1f MB/s\n",
               h->from, h->to, h->idle_us * 1e-3, h->loaded_us * 1e-3, h->bytes_per_s * 1e-6);
    }
}

static void print_plan(const shown *s)
{
    const td_plan *p = &s->plan;
    bool is_batch = s->f->use && !strcmp(s->f->use, "batch");
    printf("%s, context %u, %u sequence(s)", td_model_name(s->model), p->n_ctx, s->f->n_parallel);
    if (p->n_pages)
        printf(", cache of %u positions in all", p->n_pages * TD_PAGE_POSITIONS);
    printf("\n");
    if (*s->kept)
        printf("  layers %s\n", s->kept);
    for (uint32_t i = 0; i < p->n_parts; i++) {
        print_part(&p->parts[i]);
        if (p->parts[i].experts_bytes)
            printf("  %-16s their experts   %9.1f MiB                    %s\n", s->f->place,
                   (double)p->parts[i].experts_bytes / (1 << 20), p->parts[i].experts_name);
    }
    if (s->draft_bytes)
        printf("  %-16s the draft       %9.1f MiB\n", p->draft_spec,
               (double)s->draft_bytes / (1 << 20));
    print_links(p);
    if (!p->is_measured) {
        printf("Not measured: layers go by bytes.\n");
        return;
    }
    printf("Predicted for %s, tokens/s:\n%10s %10s %10s  placement\n",
           is_batch ? "batch" : "stream", "all", "decode", "prefill");
    for (uint32_t i = 0; i < p->n_rows; i++) {
        const td_speed_row *r = &p->rows[i];
        char text[2400];
        if (i >= ROWS_SHOWN && r->n_stages > 1)
            continue;
        td_plan_write_row(s->specs, r, text, sizeof text);
        printf("%10.1f %10.1f %10.1f %s %s", r->tokens_per_s, r->decode_per_s, r->prefill_per_s,
               i == p->i_chosen ? ">" : " ", text);
        if (r->i_draft >= 0 && !r->k)
            printf(", no draft");
        else if (r->i_draft >= 0)
            printf(", draft of %u on %s%s", r->k, p->draft_specs[r->i_draft],
                   r->takes_turns ? " in turns" : "");
        printf("\n");
    }
}

static void print_best(const shown *s, td_use use)
{
    td_mixture_way best = td_mixture_choose(s->mixture.rows, use);
    if (best == TD_MIXTURE_WAYS)
        return;
    const char *flags = s->mixture.rows[best].flags;
    printf("Best for a %s: %s (%s)\n", use == TD_FOR_STREAM ? "stream" : "batch",
           td_mixture_names[best], *flags ? flags : "no --place");
}

/* Behind the plan. */
static void print_mixture(const shown *s)
{
    const td_mixture *m = &s->mixture;
    if (s->f->hosts.n && td_model_hparams(s->model)->n_expert)
        printf("Experts dealt or apart: not predicted with devices of other machines.\n");
    if (!s->is_mixture)
        return;
    printf("Its experts, tokens/s without a draft:\n%10s %7s %2u\n", "stream", "batch of",
           m->n_sequences);
    for (uint32_t i = 0; i < TD_MIXTURE_WAYS; i++) {
        const td_mixture_row *r = &m->rows[i];
        if (r->why_not[0]) {
            printf("%10s %10s  %s: not predicted: %s\n", "-", "-", td_mixture_names[i], r->why_not);
            continue;
        }
        printf("%10.1f %10.1f  %s", r->tokens_per_s[TD_FOR_STREAM], r->tokens_per_s[TD_FOR_BATCH],
               td_mixture_names[i]);
        printf(r->dealt[0] ? ", %s\n" : "\n", r->dealt);
    }
    print_best(s, TD_FOR_STREAM);
    print_best(s, TD_FOR_BATCH);
}

static void write_mixture(td_json_writer *w, const shown *s)
{
    static const char *const best_keys[] = {"best_for_stream", "best_for_batch"};
    const td_mixture *m = &s->mixture;
    td_json_write_key(w, "experts");
    td_json_begin_object(w);
    td_json_put_u64(w, "batch_sequences", m->n_sequences);
    for (td_use use = TD_FOR_STREAM; use <= TD_FOR_BATCH; use++) {
        td_mixture_way best = td_mixture_choose(m->rows, use);
        td_json_put_string(w, best_keys[use],
                           best < TD_MIXTURE_WAYS ? td_mixture_names[best] : NULL);
    }
    td_json_write_key(w, "ways");
    td_json_begin_array(w);
    for (uint32_t i = 0; i < TD_MIXTURE_WAYS; i++) {
        const td_mixture_row *r = &m->rows[i];
        td_json_begin_object(w);
        td_json_put_string(w, "name", td_mixture_names[i]);
        td_json_put_string(w, "flags", r->flags);
        td_json_put_string(w, "dealt", r->dealt[0] ? r->dealt : NULL);
        td_json_put_string(w, "not_predicted", r->why_not[0] ? r->why_not : NULL);
        td_json_put_double(w, "stream_tokens_per_second", r->tokens_per_s[TD_FOR_STREAM]);
        td_json_put_double(w, "batch_tokens_per_second", r->tokens_per_s[TD_FOR_BATCH]);
        td_json_end_object(w);
    }
    td_json_end_array(w);
    td_json_end_object(w);
}

static void write_row(td_json_writer *w, const shown *s, const td_speed_row *r)
{
    td_json_begin_object(w);
    td_json_write_key(w, "devices");
    td_json_begin_array(w);
    for (uint32_t i = 0; i < r->n_stages; i++) {
        td_speed_row one = {.n_stages = 1, .stages = {r->stages[i]}};
        char text[TD_PLAN_SPEC_MAX];
        td_plan_write_row(s->specs, &one, text, sizeof text);
        td_json_write_string(w, text);
    }
    td_json_end_array(w);
    td_json_put_string(w, "draft_device", r->i_draft >= 0 ? s->plan.draft_specs[r->i_draft] : NULL);
    td_json_put_u64(w, "draft_tokens", r->k);
    td_json_put_bool(w, "takes_turns", r->takes_turns);
    td_json_put_double(w, "tokens_per_second", r->tokens_per_s);
    td_json_put_double(w, "decode_per_second", r->decode_per_s);
    td_json_put_double(w, "prefill_per_second", r->prefill_per_s);
    td_json_put_double(w, "verify_ms", r->verify_us * 1e-3);
    td_json_end_object(w);
}

static void write_parts(td_json_writer *w, const shown *s)
{
    td_json_write_key(w, "placement");
    td_json_begin_array(w);
    for (uint32_t i = 0; i < s->plan.n_parts; i++) {
        const td_plan_part *part = &s->plan.parts[i];
        td_json_begin_object(w);
        td_json_put_string(w, "device", part->spec);
        td_json_put_string(w, "name", part->name);
        td_json_put_u64(w, "first_layer", part->first);
        td_json_put_u64(w, "last_layer", part->last);
        td_json_put_u64(w, "bytes", part->n_bytes);
        td_json_put_u64(w, "experts_bytes", part->experts_bytes);
        td_json_put_u64(w, "budget_bytes", part->budget_bytes);
        td_json_end_object(w);
    }
    td_json_end_array(w);
}

static void write_links(td_json_writer *w, const td_plan *p)
{
    td_json_write_key(w, "links");
    td_json_begin_array(w);
    for (uint32_t i = 0; i < p->n_links; i++) {
        const td_far_link *l = &p->links[i];
        td_json_begin_object(w);
        td_json_put_string(w, "host", l->host);
        td_json_put_double(w, "idle_us", l->idle_us);
        td_json_put_double(w, "loaded_us", l->loaded_us);
        td_json_put_double(w, "there_bytes_per_s", l->there_bytes_per_s);
        td_json_put_double(w, "back_bytes_per_s", l->back_bytes_per_s);
        td_json_end_object(w);
    }
    td_json_end_array(w);
    td_json_write_key(w, "hops");
    td_json_begin_array(w);
    for (uint32_t i = 0; i < p->n_hops; i++) {
        const td_far_hop *h = &p->hops[i];
        td_json_begin_object(w);
        td_json_put_string(w, "from", h->from);
        td_json_put_string(w, "to", h->to);
        td_json_put_double(w, "idle_us", h->idle_us);
        td_json_put_double(w, "loaded_us", h->loaded_us);
        td_json_put_double(w, "bytes_per_s", h->bytes_per_s);
        td_json_end_object(w);
    }
    td_json_end_array(w);
}

static bool print_json(const shown *s, td_err *err)
{
    const char *text;
    size_t n_bytes;
    td_json_writer *w = td_json_writer_create(true, err);
    if (!w)
        return false;
    td_json_begin_object(w);
    td_json_put_string(w, "model", td_model_path(s->model));
    td_json_put_string(w, "for", s->f->use ? s->f->use : "stream");
    td_json_put_u64(w, "context", s->plan.n_ctx);
    td_json_put_u64(w, "cache_pages", s->plan.n_pages);
    td_json_put_u64(w, "sequences", s->f->n_parallel);
    td_json_put_bool(w, "measured", s->plan.is_measured);
    td_json_put_double(w, "hop_us", s->plan.hop_us);
    write_parts(w, s);
    td_json_put_string(w, "draft_device", s->draft_bytes ? s->plan.draft_spec : NULL);
    td_json_put_u64(w, "draft_bytes", s->draft_bytes);
    write_links(w, &s->plan);
    td_json_write_key(w, "alternatives");
    td_json_begin_array(w);
    for (uint32_t i = 0; i < s->plan.n_rows; i++)
        write_row(w, s, &s->plan.rows[i]);
    td_json_end_array(w);
    if (s->is_mixture)
        write_mixture(w, s);
    td_json_end_object(w);
    bool is_ok = td_json_writer_end(w, &text, &n_bytes, err);
    if (is_ok)
        printf("%s\n", text);
    td_json_writer_destroy(&w);
    return is_ok;
}

/* What the placement chosen takes, where it is all here: with room for the draft. */
static bool lay_out(shown *s, td_layout_params params, const td_model *draft, td_err *err)
{
    const char *chosen[TD_STAGES_MAX];
    td_plan *p = &s->plan;
    for (uint32_t i = 0; i < p->n_specs; i++)
        chosen[i] = p->specs[i];
    params.specs = chosen;
    params.n_specs = p->n_specs;
    if (draft && p->draft_spec[0]) {
        params.draft = draft;
        params.draft_spec = p->draft_spec;
    }
    td_layout *l = td_layout_create(&params, err);
    for (uint32_t i = 0; l && i < l->n_parts; i++) {
        const td_layout_part *from = &l->parts[i];
        td_plan_part *to = &p->parts[p->n_parts++];
        *to = (td_plan_part){.first = from->first,
                             .last = from->last,
                             .n_bytes = from->n_bytes,
                             .budget_bytes = from->budget_bytes,
                             .experts_bytes = from->experts_bytes};
        memcpy(to->spec, from->spec, sizeof to->spec);
        memcpy(to->name, td_device_get_info(from->dev)->name, sizeof to->name);
        if (from->experts_dev)
            memcpy(to->experts_name, td_device_get_info(from->experts_dev)->name,
                   sizeof to->experts_name);
    }
    if (l) {
        p->n_ctx = l->n_ctx;
        p->n_pages = l->n_pages;
        s->draft_bytes = l->draft_bytes;
    }
    bool is_ok = l != NULL;
    td_layout_destroy(&l);
    return is_ok;
}

static bool plan(const fields *f, int *signal, td_err *err)
{
    td_default_specs defaults;
    td_host hosts[TD_OPTION_LIST_MAX];
    td_far far;
    td_remote_measure *remote = NULL;
    td_layout_default_specs(&defaults);
    shown s = {.f = f, .specs = f->devices.n ? f->devices.items : defaults.specs};
    if (!td_options_read_hosts(&f->hosts, f->key, hosts, err))
        return false;
    td_model *model = td_model_open(f->target, err);
    bool is_auto = td_head_is_auto(f->draft);
    const char *head_name = is_auto ? "" : td_head_name(f->draft);
    td_model *head_file = NULL, *draft = NULL;
    const td_model *head = NULL;
    if (model && head_name)
        head = td_run_find_head(head_name, model, s.specs, f->devices.n ? f->devices.n : defaults.n,
                                &head_file, is_auto ? NULL : err);
    else if (model && f->draft)
        draft = td_model_open(f->draft, err);
    td_cache_types kv = f->kv, draft_kv = f->draft_kv;
    bool is_ok = model && (draft || head || is_auto || !f->draft) &&
                 (!draft || td_cache_choose_draft(&draft_kv, &kv, draft, err)) &&
                 td_cache_choose(&kv, model, err);
    td_cache_types_list_kept(&kv, s.kept, sizeof s.kept);
    td_plan_params params = {.layout = {.model = model,
                                        .head = head,
                                        .specs = s.specs,
                                        .n_specs = f->devices.n ? f->devices.n : defaults.n,
                                        .place = f->place,
                                        .hosts = hosts,
                                        .n_hosts = f->hosts.n,
                                        .host_key = f->key,
                                        .is_trusting = f->is_trusting,
                                        .wire = f->wire,
                                        .kv = kv,
                                        .draft_kv = &draft_kv,
                                        .n_slots = f->n_parallel,
                                        .n_ctx = f->n_ctx,
                                        .is_choosing = true},
                             .use =
                                 f->use && !strcmp(f->use, "batch") ? TD_FOR_BATCH : TD_FOR_STREAM,
                             .measure = f->is_measure      ? TD_MEASURE_AGAIN
                                        : f->is_no_measure ? TD_MEASURE_NEVER
                                                           : TD_MEASURE_MISSING,
                             .n_prompt = f->n_prompt,
                             .n_predict = f->n_predict,
                             .draft = draft,
                             .draft_specs = f->draft_devices.items,
                             .n_draft_specs = f->draft_devices.n,
                             .draft_max = f->draft_fixed ? f->draft_fixed : f->draft_max,
                             .is_draft_fixed = f->draft_fixed > 0,
                             .acceptance = f->accept >= 0 ? (double)f->accept : 0,
                             .uses_all = f->devices.n > 0};
    s.model = model;
    if (is_ok && f->drafts) {
        plan_drafts asked = {f->drafts, f->text, f->write_config, params, f->is_json};
        is_ok = td_plan_drafts(&asked, signal, err);
        td_model_close(&model);
        return is_ok;
    }
    if (is_ok && f->hosts.n && (is_ok = (remote = td_remote_measure_create(&params.layout, err)))) {
        far = td_remote_measure_far(remote);
        params.far = &far;
    }
    is_ok = is_ok && td_plan_choose(&params, &s.plan, err);
    td_remote_measure_destroy(&remote);
    if (is_ok && draft && !s.plan.draft_spec[0] && f->draft_devices.n) /* not measured */
        snprintf(s.plan.draft_spec, sizeof s.plan.draft_spec, "%s", f->draft_devices.items[0]);
    if (is_ok && !s.plan.n_parts)
        is_ok = lay_out(&s, params.layout, draft, err);
    s.is_mixture = is_ok && s.plan.is_measured && td_model_hparams(model)->n_expert &&
                   params.layout.n_specs > 1 && !f->place && !f->hosts.n;
    if (s.is_mixture)
        td_mixture_compare(&params, &s.mixture);
    if (is_ok && f->is_json) {
        is_ok = print_json(&s, err);
    } else if (is_ok) {
        print_plan(&s);
        print_mixture(&s);
    }
    td_model_close(&draft);
    td_model_close(&head_file);
    td_model_close(&model);
    return is_ok;
}

/* Of what a file says to generate, all that a plan depends on. */
static bool read_config(const char *path, fields *f, td_json **document, td_err *err)
{
    td_generate_config c;
    if (!td_generate_read_config(path, &c, document, err))
        return false;
    const td_run_params *r = &c.run;
    f->target = r->target_path;
    f->devices = c.devices;
    f->place = r->place;
    f->hosts = c.hosts;
    f->key = r->key;
    f->wire = r->wire;
    f->use = c.use ? c.use : r->n_parallel > 1 ? "batch" : "stream";
    f->is_no_measure = c.is_no_measure;
    f->kv = r->kv;
    f->n_ctx = r->n_ctx;
    f->n_parallel = r->n_parallel;
    f->n_predict = td_min_u32(r->n_predict, N_MAX);
    f->draft = r->draft_path;
    if (r->draft_path) { /* else a worker's, whose model is not known here */
        f->draft_kv = r->draft_kv;
        f->draft_max = td_min_u32(r->draft_max, TD_SPEED_DRAFT_MAX);
        f->draft_fixed = td_min_u32(r->draft_fixed, TD_SPEED_DRAFT_MAX);
    }
    if (r->draft_path && r->draft_spec)
        f->draft_devices = (option_list){1, {r->draft_spec}};
    return true;
}

int td_command_plan(int argc, char **argv, td_err *err)
{
    fields f = {.kv = {.k = td_type_find(TD_TYPE_F16), .v = td_type_find(TD_TYPE_F16)},
                .accept = -1};
    bool is_help;
    int signal = 0;
    td_json *document = NULL;
    const char *config = td_options_find_config(&help, argc, argv);
    if ((config && !read_config(config, &f, &document, err)) ||
        !td_options_parse(&help, argc, argv, &f, &is_help, err))
        goto done;
    if (is_help)
        td_options_print_help(&help);
    else if (check(&f, err) && td_options_check_files(&help, &f, NULL, true, err))
        (void)(f.hardware  ? td_plan_hardware(f.hardware, f.is_json, err)
               : f.machine ? td_plan_machine(f.machine, f.target, f.draft, f.is_json, err)
                           : plan(&f, &signal, err));
done:
    td_json_destroy(&document);
    return signal ? 128 + signal : 0;
}
