/* tandem plan: where the layers would go and what they would take, before anything is loaded. */
#include "cli/commands.h"
#include "cli/options.h"

#include "base/check.h"
#include "target/chain.h"

#include <stddef.h>
#include <stdio.h>

typedef struct {
    const char *target;
    const char *place;
    option_list devices;
    const td_type_info *type_k, *type_v;
    uint32_t n_ctx, n_parallel;
} fields;

#define AT(name) offsetof(fields, name)

static const option options[] = {
    {"--target", NULL, OPT_TEXT, AT(target), 0, 0, "M.gguf", "the model (required)"},
    {"--device", NULL, OPT_LIST, AT(devices), 0, 0, "SPEC", "as in generate; several make a split"},
    {"--place", NULL, OPT_TEXT, AT(place), 0, 0, "experts=SPEC",
     "the experts of a mixture on another device, say experts=host"},
    {"--kv-k", NULL, OPT_CACHE_TYPE, AT(type_k), 0, 0, "TYPE",
     "type of cached keys: f32, f16, q8_0, q4_0 (default: f16)"},
    {"--kv-v", NULL, OPT_CACHE_TYPE, AT(type_v), 0, 0, "TYPE",
     "type of cached values (default: f16)"},
    {"--ctx", NULL, OPT_U32, AT(n_ctx), 1, 1 << 24, "N",
     "positions of a sequence (default: the smaller of the model's and what fits)"},
    {"--parallel", NULL, OPT_U32, AT(n_parallel), 1, 64, "N",
     "sequences at once, 1..64 (default: 1)"},
};
static const command_help help = {
    "plan", "tandem plan --target M.gguf [--device SPEC]... [options]",
    "Shows layers and memory per device. Placement is by bytes; speed is not predicted yet.",
    options, TD_COUNT(options)};

int command_plan(int argc, char **argv, td_err *err)
{
    fields f = {
        .type_k = td_type_find(TD_TYPE_F16), .type_v = td_type_find(TD_TYPE_F16), .n_parallel = 1};
    bool is_help;
    if (!options_parse(&help, argc, argv, &f, &is_help, err))
        return 0;
    if (is_help) {
        options_print_help(&help);
        return 0;
    }
    if (!f.target) {
        td_err_set(err, TD_E_USAGE, "usage: %s", help.usage);
        return 0;
    }
    td_model *model = td_model_open(f.target, err);
    const char *defaults[TD_STAGES_MAX];
    uint32_t n_default = f.devices.n ? 0 : td_chain_default_specs(defaults);
    td_chain *chain = NULL;
    if (model)
        chain =
            td_chain_create(&(td_chain_params){.model = model,
                                               .specs = f.devices.n ? f.devices.items : defaults,
                                               .n_specs = f.devices.n ? f.devices.n : n_default,
                                               .place = f.place,
                                               .type_k = f.type_k,
                                               .type_v = f.type_v,
                                               .n_slots = f.n_parallel,
                                               .n_ctx = f.n_ctx,
                                               .is_plan_only = true},
                            err);
    if (chain) {
        printf("%s, context %u, %u sequence(s)\n", td_model_name(model), chain->n_ctx,
               f.n_parallel);
        for (uint32_t i = 0; i < chain->n_parts; i++) {
            const td_chain_part *p = &chain->parts[i];
            printf("  %-16s layers %3u..%-3u %9.1f MiB of %9.1f MiB  %s\n", p->spec, p->first,
                   p->last, (double)p->n_bytes / (1 << 20), (double)p->budget_bytes / (1 << 20),
                   td_device_get_info(p->dev)->name);
            if (p->experts_dev)
                printf("  %-16s their experts   %9.1f MiB                    %s\n", f.place,
                       (double)p->experts_bytes / (1 << 20),
                       td_device_get_info(p->experts_dev)->name);
        }
    }
    td_chain_destroy(&chain);
    td_model_close(&model);
    return 0;
}
