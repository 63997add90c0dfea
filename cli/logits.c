/* tandem logits: raw logits of given tokens, for comparing with other programs. */
#include "cli/cache_options.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/simple.h"

#include "base/check.h"
#include "base/files.h"
#include "base/mem.h"
#include "model/cache_choice.h"
#include "target/chain.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    const char *model, *tokens, *out;
    const char *place;
    option_list devices;
    td_cache_types kv;
    uint32_t n_ctx, n_rows;
    bool is_step;
} fields;

#define AT(name) offsetof(fields, name)

static const option options[] = {
    {"--model", NULL, OPT_READ, AT(model), 0, 0, "M.gguf", "the model (required)"},
    {"--tokens", NULL, OPT_TEXT, AT(tokens), 0, 0, "1,2,3|@FILE",
     "token ids, or a file of them (required)"},
    {"--device", NULL, OPT_LIST, AT(devices), 0, 0, "SPEC", "as in generate; several make a split"},
    {"--place", NULL, OPT_TEXT, AT(place), 0, 0, "experts=HOW",
     "the experts of a mixture: on a device, say experts=host, or dealt over all of them by "
     "experts=auto, shares (60,40) or lists (0-3/4-7)"},
    {"--ctx", NULL, OPT_U32, AT(n_ctx), 1, TD_CTX_MAX, "N",
     "positions of a sequence, which chooses long RoPE factors (default: as many as tokens)"},
    {"--kv-k", NULL, OPT_CACHE_TYPE, AT(kv.k), 0, 0, "TYPE",
     "type of cached keys: " TD_OPTIONS_CACHE_TYPES " (default: f16)"},
    {"--kv-v", NULL, OPT_CACHE_TYPE, AT(kv.v), 0, 0, "TYPE",
     "type of cached values (default: f16)"},
    CACHE_ROWS(kv, CACHE_NO_KEY),
    {"--rows", NULL, OPT_U32, AT(n_rows), 1, TD_VERIFY_ROWS_MAX, "N",
     "through the verify path, N tokens at a time; without it as a prompt"},
    {"--step", NULL, OPT_FLAG, AT(is_step), 0, 0, NULL, "the same as --rows 1"},
    {"--out", NULL, OPT_WRITE, AT(out), 0, 0, "FILE",
     "little-endian f32 [n_tokens][n_vocab] (required)"},
};
static const command_help help = {
    "logits", "tandem logits --model M.gguf --tokens 1,2,3|@FILE --out FILE [options]",
    "Writes raw logits after each token; by default as prefill.", options, TD_COUNT(options)};

static bool write_rows(FILE *out, const char *path, const float *logits, size_t n, td_err *err)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &logits[i], sizeof bits);
        const uint8_t bytes[4] = {(uint8_t)bits, (uint8_t)(bits >> 8), (uint8_t)(bits >> 16),
                                  (uint8_t)(bits >> 24)};
        if (fwrite(bytes, 1, 4, out) != 4)
            return td_err_set(err, TD_E_IO, "%s: %s", path, strerror(errno));
    }
    return true;
}

static bool run(const fields *f, const td_model *model, td_err *err)
{
    uint32_t *ids = NULL, n_vocab = td_model_hparams(model)->n_vocab;
    size_t n_ids;
    FILE *out = NULL;
    td_chain *chain = NULL;
    bool is_ok = td_read_token_ids(f->tokens, n_vocab, &ids, &n_ids, err);
    if (is_ok && n_ids > TD_CTX_MAX)
        is_ok = td_err_set(err, TD_E_DATA, "%zu tokens; allowed: 1..%u", n_ids, TD_CTX_MAX);
    if (is_ok && f->n_ctx && n_ids > f->n_ctx)
        is_ok =
            td_err_set(err, TD_E_USAGE, "--ctx is %u, but there are %zu tokens", f->n_ctx, n_ids);
    td_default_specs defaults;
    td_layout_default_specs(&defaults);
    td_cache_types kv = f->kv;
    is_ok = is_ok && td_cache_choose(&kv, model, err);
    if (is_ok)
        chain = td_chain_create(
            &(td_layout_params){.model = model,
                                .specs = f->devices.n ? f->devices.items : defaults.specs,
                                .n_specs = f->devices.n ? f->devices.n : defaults.n,
                                .place = f->place,
                                .kv = kv,
                                .n_slots = 1,
                                .n_ctx = f->n_ctx ? f->n_ctx : (uint32_t)n_ids,
                                .is_all_logits = true},
            err);
    is_ok = chain;
    if (is_ok && !(out = fopen(f->out, "wbe")))
        is_ok = td_err_set(err, TD_E_IO, "%s: %s", f->out, strerror(errno));
    uint32_t step = f->is_step ? 1 : f->n_rows ? f->n_rows : TD_PREFILL_ROWS_MAX;
    td_mode mode = f->is_step || f->n_rows ? TD_MODE_VERIFY : TD_MODE_PREFILL;
    for (uint32_t i = 0; is_ok && i < n_ids; i += step) {
        td_forward_row rows[TD_PREFILL_ROWS_MAX];
        uint32_t n = td_min_u32(step, (uint32_t)n_ids - i);
        for (uint32_t k = 0; k < n; k++)
            rows[k] = (td_forward_row){.position = i + k, .token = ids[i + k], .is_output = true};
        is_ok = td_chain_run(chain, mode, rows, n, err) &&
                write_rows(out, f->out, td_chain_logits(chain), (size_t)n * n_vocab, err);
        if (is_ok)
            td_chain_commit(chain, 0, i + n);
    }
    if (out && fclose(out) && is_ok)
        is_ok = td_err_set(err, TD_E_IO, "%s: %s", f->out, strerror(errno));
    td_chain_destroy(&chain);
    td_free(ids);
    return is_ok;
}

int td_command_logits(int argc, char **argv, td_err *err)
{
    fields f = {.kv = {.k = td_type_find(TD_TYPE_F16), .v = td_type_find(TD_TYPE_F16)}};
    bool is_help;
    if (!td_options_parse(&help, argc, argv, &f, &is_help, err))
        return 0;
    if (is_help) {
        td_options_print_help(&help);
        return 0;
    }
    if (!f.model || !f.tokens || !f.out) {
        td_err_set(err, TD_E_USAGE, "usage: %s", help.usage);
        return 0;
    }
    const char *ids_file = *f.tokens == '@' ? f.tokens + 1 : NULL;
    if (!td_options_check_files(&help, &f, ids_file, false, err))
        return 0;
    td_model *model = td_model_open(f.model, err);
    if (model)
        run(&f, model, err);
    td_model_close(&model);
    return 0;
}
