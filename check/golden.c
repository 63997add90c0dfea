/* Golden models (golden.h). The files are assembled into the program as they are (TD_GOLDEN_FILES
 * is their folder, set by the build) and opened through a file in memory, by the reader of all
 * models. */
#include "check/golden.h"

#include "base/check.h"
#include "base/io.h"
#include "base/json.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <stdio.h>

#define FILE_BYTES(symbol, path)                                                                   \
    __asm__(".pushsection .rodata\n"                                                               \
            ".balign 64\n" #symbol ":\n"                                                           \
            ".incbin \"" TD_GOLDEN_FILES "/" path "\"\n" #symbol "_end:\n"                         \
            ".byte 0\n"                                                                            \
            ".popsection\n");                                                                      \
    extern const char symbol[], symbol##_end[]
#define MODEL_FILES(symbol, name)                                                                  \
    FILE_BYTES(td_golden_##symbol, name "/model.gguf");                                            \
    FILE_BYTES(td_golden_##symbol##_logits, name "/logits.bin");                                   \
    FILE_BYTES(td_golden_##symbol##_json, name "/golden.json")
#define MODEL_ROW(symbol, name, tolerance, is_rounded)                                             \
    {                                                                                              \
        name, td_golden_##symbol, td_golden_##symbol##_end, td_golden_##symbol##_logits,           \
            td_golden_##symbol##_logits_end, td_golden_##symbol##_json,                            \
            td_golden_##symbol##_json_end, tolerance, is_rounded                                   \
    }

MODEL_FILES(f16, "llama-f16");
MODEL_FILES(q8_0, "llama-q8_0");
MODEL_FILES(q4_k_m, "llama-q4_k_m");
MODEL_FILES(gpt_oss, "gpt-oss");
MODEL_FILES(qwen3next, "qwen3next");

/* Tolerances as in the data's index.json. */
static const struct {
    const char *name;
    const char *model, *model_end, *logits, *logits_end, *json, *json_end;
    double tolerance;
    bool is_rounded;
} files[TD_GOLDEN_MODELS] = {
    MODEL_ROW(f16, "llama-f16", 0.001, false),       MODEL_ROW(q8_0, "llama-q8_0", 0.5248, true),
    MODEL_ROW(q4_k_m, "llama-q4_k_m", 0.7528, true), MODEL_ROW(gpt_oss, "gpt-oss", 0.6184, true),
    MODEL_ROW(qwen3next, "qwen3next", 0.001, false),
};

static bool read_tokens(uint32_t i, td_golden *g, td_err *err)
{
    static const td_json_field fields[] = {
        {.key = "n_vocab", .type = TD_JSON_INT, .required = true, .min = 1, .max = 1 << 20},
        {.key = "prompt_tokens",
         .type = TD_JSON_INT_LIST,
         .required = true,
         .max = 1 << 20,
         .n_max = TD_GOLDEN_TOKENS_MAX},
    };
    static const td_json_schema schema = {fields, TD_COUNT(fields), true};
    td_json_object o;
    td_json *doc = td_json_parse(files[i].json, (size_t)(files[i].json_end - files[i].json),
                                 files[i].name, err);
    bool is_ok = doc && td_json_read_root(doc, &schema, &o, err);
    if (is_ok) {
        g->n_vocab = (uint32_t)td_json_get_int(&o, "n_vocab", 0);
        g->n_tokens = (uint32_t)td_json_count(&o, "prompt_tokens");
        for (uint32_t k = 0; k < g->n_tokens; k++)
            g->tokens[k] = (uint32_t)td_json_get_int_at(&o, "prompt_tokens", k);
    }
    td_json_destroy(&doc);
    return is_ok;
}

bool td_golden_open(uint32_t i, td_golden *g, td_err *err)
{
    TD_ASSERT(i < TD_GOLDEN_MODELS);
    char path[64];
    *g = (td_golden){.name = files[i].name,
                     .fd = -1,
                     .logits = (const float *)(const void *)files[i].logits,
                     .tolerance = files[i].tolerance,
                     .is_rounded = files[i].is_rounded};
    if (!read_tokens(i, g, err))
        return false;
    TD_ASSERT((size_t)(files[i].logits_end - files[i].logits) ==
              (size_t)g->n_tokens * g->n_vocab * sizeof(float));
    g->fd = memfd_create(files[i].name, MFD_CLOEXEC);
    if (g->fd < 0)
        return td_err_set(err, TD_E_IO, "no file in memory can be made");
    snprintf(path, sizeof path, "/proc/self/fd/%d", g->fd);
    if (td_io_write_all(g->fd, files[i].name, files[i].model,
                        (size_t)(files[i].model_end - files[i].model), err))
        g->model = td_model_open(path, err);
    if (!g->model) {
        td_golden_close(g);
        return td_err_prepend(err, "%s", files[i].name);
    }
    return true;
}

void td_golden_close(td_golden *g)
{
    td_model_close(&g->model);
    if (g->fd >= 0)
        close(g->fd);
    g->fd = -1;
}

td_chain *td_golden_load(const td_golden *g, const char *spec, td_err *err)
{
    const td_type_info *type = td_type_find(TD_TYPE_F32);
    return td_chain_create(&(td_layout_params){.model = g->model,
                                               .specs = &spec,
                                               .n_specs = 1,
                                               .kv = {.k = type, .v = type},
                                               .n_slots = 1,
                                               .n_ctx = g->n_tokens,
                                               .is_all_logits = true},
                           err);
}

bool td_golden_run(const td_golden *g, td_chain *chain, uint32_t n_rows, float *out, td_err *err)
{
    uint32_t step = n_rows ? n_rows : TD_PREFILL_ROWS_MAX;
    td_forward_row rows[TD_GOLDEN_TOKENS_MAX];
    td_chain_rewind(chain, 0, 0);
    for (uint32_t at = 0; at < g->n_tokens; at += step) {
        uint32_t n = td_min_u32(step, g->n_tokens - at);
        for (uint32_t i = 0; i < n; i++)
            rows[i] = (td_forward_row){
                .position = at + i, .token = g->tokens[at + i], .is_output = true};
        if (!td_chain_run(chain, n_rows ? TD_MODE_VERIFY : TD_MODE_PREFILL, rows, n, err))
            return false;
        td_chain_commit(chain, 0, at + n);
        memcpy(out + (size_t)at * g->n_vocab, td_chain_logits(chain),
               (size_t)n * g->n_vocab * sizeof(float));
    }
    return true;
}
