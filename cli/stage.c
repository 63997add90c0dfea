/* tandem stage: layers of a target elsewhere, on devices here. */
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/prefix.h"

#include "base/check.h"
#include "base/signals.h"
#include "check/report_bytes.h"
#include "check/verdict.h"
#include "planning/layout.h"
#include "target/worker.h"

#include <stddef.h>
#include <stdio.h>

typedef struct {
    option_list devices;
    const char *config, *models, *model, *bind, *key, *prefix;
    float cache_gb;
    bool is_trusting;
} fields;

#define AT(name) offsetof(fields, name)

static const option options[] = {
    {"--config", NULL, OPT_READ, AT(config), 0, 0, "FILE.json",
     "any of what follows from a file; flags win"},
    {"--device", "stage.devices", OPT_LIST, AT(devices), 0, 0, "SPEC",
     "a device for coordinators, a SPEC without layers; may be given up to 16 times (default: GPUs "
     "found, else host)"},
    {"--bind", "stage.bind", OPT_TEXT, AT(bind), 0, 0, "EP",
     "ipc://PATH or tcp://HOST:PORT, an address of this machine or * for all (required)"},
    {"--models", "stage.models", OPT_TEXT, AT(models), 0, 0, "DIR",
     "a folder of model files, found by what is in them whatever they are called"},
    {"--model", "stage.model", OPT_READ, AT(model), 0, 0, "M.gguf", "one model file"},
    {"--cache-size", "stage.cache_size", OPT_FLOAT, AT(cache_gb), 0, 1048576, "GB",
     "bytes on the disk, in units of 10^9, for weights that coordinators send of models that are "
     "not there; 0: none are taken (default: 100)"},
    {"--prefix-cache", "stage.prefix", OPT_TEXT, AT(prefix), 0, 0, "DIR[:SIZE]",
     "a folder where prompts are kept as layers and drafts here read them, up to SIZE, as 500M or "
     "20G (default: none; SIZE: 20G)"},
    {"--key", "stage.key", OPT_TEXT, AT(key), 0, 0, "NAME",
     "our own pair of `tandem keys`, for tcp (default: the only one, where the endpoint is off "
     "loopback)"},
    {"--trust", NULL, OPT_FLAG, AT(is_trusting), 0, 0, NULL,
     "do not tell coordinators of devices that have failed `tandem check`, who refuse them else"},
};
static const command_help help = {
    "stage", "tandem stage --bind EP [--models DIR | --model M.gguf] [options]",
    "Serves layers of a target to one `tandem generate --host NAME=EP` at a time, until a signal "
    "stops it.",
    options, TD_COUNT(options)};

static bool has_failed(const char *spec, char *how, size_t n_how)
{
    char found[TD_VERDICT_MAX];
    td_device_info info;
    bool is_so = td_device_find(spec, &info, NULL) && td_verdict_find(&info, found);
    if (is_so)
        snprintf(how, n_how, "%s", found);
    return is_so;
}

static bool serve(const fields *f, td_err *err)
{
    td_default_specs defaults;
    td_stage_worker_params params = {.specs = f->devices.items,
                                     .n_specs = f->devices.n,
                                     .models = f->models,
                                     .model = f->model,
                                     .cache_bytes = (uint64_t)((double)f->cache_gb * 1e9),
                                     .endpoint = f->bind,
                                     .check = td_check_serve,
                                     .has_failed = f->is_trusting ? NULL : has_failed};
    if (!f->devices.n) {
        td_layout_default_specs(&defaults);
        params.specs = defaults.specs;
        params.n_specs = defaults.n;
    }
    if (!td_link_check(f->bind, TD_LINK_BIND, f->key, err))
        return td_err_prepend(err, "--bind");
    if (!td_signals_open(err))
        return false;
    params.stop_fd = td_signals_fd();
    params.transport = td_transport_create(err);
    if (!params.transport)
        return false;
    td_transport_set_key(params.transport, f->key);
    bool is_ok = (!f->prefix || (params.prompts = td_prefix_option_open(f->prefix, err))) &&
                 td_stage_worker_run(&params, err);
    td_transport_destroy(&params.transport);
    td_prefix_store_close(&params.prompts);
    return is_ok;
}

int td_command_stage(int argc, char **argv, td_err *err)
{
    fields f = {.cache_gb = 100};
    td_json *document = NULL;
    bool is_help = false;
    const char *config = td_options_find_config(&help, argc, argv);
    int code = 0;
    if ((!config || td_options_read_config(&help, config, &f, &document, err)) &&
        td_options_parse(&help, argc, argv, &f, &is_help, err)) {
        if (is_help)
            td_options_print_help(&help);
        else if (!f.bind || (!f.models && !f.model && f.cache_gb <= 0))
            td_err_set(err, TD_E_USAGE,
                       "--bind EP is needed, and with --cache-size 0 --models DIR or --model "
                       "M.gguf; see `tandem stage --help`");
        else if (serve(&f, err))
            code = 128 + td_signals_pending(); /* only a signal ends it */
    }
    td_json_destroy(&document);
    return code;
}
