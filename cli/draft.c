/* tandem draft: a draft worker in a process of its own. */
#include "cli/cache_options.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/prefix.h"

#include "base/check.h"
#include "base/log.h"
#include "base/signals.h"
#include "draft/worker.h"
#include "model/cache_choice.h"
#include "transport/link.h"

#include <stddef.h>
#include <stdio.h>

typedef struct {
    const char *config, *model, *device, *bind, *key, *vocab_of, *prefix;
    td_cache_types kv;
    uint32_t n_ctx, n_slots;
} fields;

#define AT(name) offsetof(fields, name)

static const option options[] = {
    {"--config", NULL, OPT_READ, AT(config), 0, 0, "FILE.json",
     "any of what follows from a file; flags win"},
    {"--model", "draft.model", OPT_READ, AT(model), 0, 0, "D.gguf", "the draft model (required)"},
    {"--device", "draft.device", OPT_TEXT, AT(device), 0, 0, "SPEC",
     "where it runs, a SPEC without layers (default: host:1)"},
    {"--bind", "draft.bind", OPT_TEXT, AT(bind), 0, 0, "EP",
     "ipc://PATH or tcp://HOST:PORT, an address of this machine or * for all (required)"},
    {"--key", "draft.key", OPT_TEXT, AT(key), 0, 0, "NAME",
     "our own pair of `tandem keys`, for tcp (default: the only one, where the endpoint is off "
     "loopback)"},
    {"--vocab-of", "draft.vocab_of", OPT_READ, AT(vocab_of), 0, 0, "M.gguf",
     "the target's file (its vocabulary is all that is read), where that has another vocabulary"},
    {"--kv-k", "cache.k", OPT_CACHE_TYPE, AT(kv.k), 0, 0, "TYPE",
     "type of cached keys: " TD_OPTIONS_CACHE_TYPES " (default: f16)"},
    {"--kv-v", "cache.v", OPT_CACHE_TYPE, AT(kv.v), 0, 0, "TYPE",
     "type of cached values (default: f16)"},
    CACHE_ROWS(kv, CACHE_KEY),
    {"--ctx", "cache.ctx", OPT_U32, AT(n_ctx), 1, 1 << 24, "N",
     "positions of a sequence (default: the smaller of the model's and what fits)"},
    {"--parallel", "draft.parallel", OPT_U32, AT(n_slots), 1, 64, "N",
     "sequences at once (default: 8)"},
    {"--prefix-cache", "cache.prefix", OPT_TEXT, AT(prefix), 0, 0, "DIR[:SIZE]",
     "a folder where prompts are kept as they are read, up to SIZE, as 500M or 20G (default: none; "
     "SIZE: 20G)"},
};
static const command_help help = {
    "draft", "tandem draft --model D.gguf --bind EP [options]",
    "Serves a draft model to `tandem generate --draft-endpoint EP` until a signal stops it.",
    options, TD_COUNT(options)};

/* The target's vocabulary and the map to it, where it differs from the draft's. */
static bool read_vocabulary(const char *path, const td_tokenizer *own, td_tokenizer **target,
                            td_vocab_map **map, td_err *err)
{
    td_gguf *g = td_gguf_open(path, err);
    *target = g ? td_tokenizer_create(g, NULL, err) : NULL;
    td_gguf_close(&g);
    if (!*target)
        return td_err_prepend(err, "--vocab-of");
    if (td_vocab_is_same(*target, own))
        return true;
    *map = td_vocab_map_create(*target, own, err);
    return *map != NULL;
}

static bool serve(const fields *f, td_err *err)
{
    td_tokenizer *target = NULL;
    td_vocab_map *map = NULL;
    td_transport *transport = NULL;
    td_drafter *drafter = NULL;
    td_prefix_store *prompts = NULL;
    bool is_ok = false;
    char title[520];
    if (!td_link_check(f->bind, TD_LINK_BIND, f->key, err))
        return td_err_prepend(err, "--bind");
    if (!td_signals_open(err))
        return false;
    td_model *model = td_model_open(f->model, err);
    if (!model)
        return false;
    if (f->vocab_of && !read_vocabulary(f->vocab_of, td_model_tokenizer(model), &target, &map, err))
        goto done;
    td_cache_types kv = f->kv;
    if (!td_cache_choose(&kv, model, err) ||
        (f->prefix && !(prompts = td_prefix_option_open(f->prefix, err))))
        goto done;
    td_cache_warn(&kv, model);
    drafter = td_drafter_create(&(td_drafter_params){.model = model,
                                                     .spec = f->device,
                                                     .kv = kv,
                                                     .n_slots = f->n_slots,
                                                     .n_ctx = f->n_ctx,
                                                     .prompts = prompts},
                                err);
    transport = drafter ? td_transport_create(err) : NULL;
    if (transport) {
        td_transport_set_key(transport, f->key);
        snprintf(title, sizeof title, "%.255s on %.255s", td_model_name(model),
                 td_drafter_device(drafter)->name);
        is_ok = td_draft_worker_run(
            &(td_draft_worker_params){.drafter = drafter,
                                      .tokenizer = map ? target : td_model_tokenizer(model),
                                      .map = map,
                                      .transport = transport,
                                      .endpoint = f->bind,
                                      .title = title,
                                      .stop_fd = td_signals_fd()},
            err);
        const td_drafter_stats *stats = td_drafter_get_stats(drafter);
        if (prompts)
            td_log_info("draft worker: %llu positions of prompts read from the disk, %llu rows run",
                        (unsigned long long)stats->n_restored,
                        (unsigned long long)stats->n_evaluated);
    }
done:
    td_transport_destroy(&transport);
    td_drafter_destroy(&drafter);
    td_prefix_store_close(&prompts);
    td_vocab_map_destroy(&map);
    td_tokenizer_destroy(&target);
    td_model_close(&model);
    return is_ok;
}

int td_command_draft(int argc, char **argv, td_err *err)
{
    fields f = {.device = "host:1",
                .kv = {.k = td_type_find(TD_TYPE_F16), .v = td_type_find(TD_TYPE_F16)},
                .n_slots = 8};
    td_json *document = NULL;
    bool is_help = false;
    const char *config = td_options_find_config(&help, argc, argv);
    int code = 0;
    if ((!config || td_options_read_config(&help, config, &f, &document, err)) &&
        td_options_parse(&help, argc, argv, &f, &is_help, err)) {
        if (is_help)
            td_options_print_help(&help);
        else if (!f.model || !f.bind)
            td_err_set(err, TD_E_USAGE,
                       "--model D.gguf and --bind EP are needed; see `tandem draft --help`");
        else if (serve(&f, err))
            code = 128 + td_signals_pending(); /* only a signal ends it */
    }
    td_json_destroy(&document);
    return code;
}
