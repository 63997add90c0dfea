/* tandem inspect: what a GGUF file holds. Works on files tandem cannot run, too: what stops it is
 * then part of the answer. */
#include "cli/commands.h"
#include "cli/options.h"

#include "base/check.h"
#include "base/json_writer.h"
#include "model/chat.h"
#include "model/model.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    bool is_json;
} fields;

static const option options[] = {
    {"--json", NULL, OPT_FLAG, offsetof(fields, is_json), 0, 0, NULL, "as JSON"},
};
static const command_help help = {
    "inspect", "tandem inspect M.gguf [--json]",
    "Shows architecture, hyper-parameters, tensor types, bytes per layer and tokenizer.", options,
    TD_COUNT(options)};

/* What the file has of chat templates: written to out, or what is wrong with them. */
static const char *chat_template(const td_model *m, char *out, size_t size)
{
    td_chat *c = td_chat_open(td_model_gguf(m), td_model_tokenizer(m), NULL, NULL);
    const char *problem = c ? td_chat_problem(c) : NULL;
    snprintf(out, size, "%s", !c ? "(no memory)" : problem ? problem : td_chat_describe(c));
    td_chat_close(&c);
    return out;
}

/* Bytes and counts by tensor type. */
typedef struct {
    const char *name;
    uint64_t n_bytes;
    uint32_t n_tensors;
} type_sum;

static uint32_t sum_types(const td_gguf *g, type_sum sums[64])
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < td_gguf_n_tensors(g); i++) {
        const td_gguf_tensor *t = td_gguf_tensor_at(g, i);
        const char *name = td_type_format_name(t->type_id);
        uint32_t k = 0;
        while (k < n && strcmp(sums[k].name, name))
            k++;
        if (k == 64)
            continue;
        if (k == n)
            sums[n++] = (type_sum){.name = name};
        sums[k].n_bytes += t->n_bytes;
        sums[k].n_tensors++;
    }
    return n;
}

/* Bytes of layer tensors ("blk.N."), of others into *rest. */
static void sum_layers(const td_gguf *g, uint64_t layers[TD_LAYERS_MAX], uint32_t *n_layers,
                       uint64_t *rest)
{
    memset(layers, 0, TD_LAYERS_MAX * sizeof *layers);
    *n_layers = 0;
    *rest = 0;
    for (uint32_t i = 0; i < td_gguf_n_tensors(g); i++) {
        const td_gguf_tensor *t = td_gguf_tensor_at(g, i);
        unsigned layer;
        if (sscanf(t->name, "blk.%u.", &layer) == 1 && layer < TD_LAYERS_MAX) {
            layers[layer] += t->n_bytes;
            *n_layers = td_max_u32(*n_layers, layer + 1);
        } else {
            *rest += t->n_bytes;
        }
    }
}

/* The hyper-parameters of a model that can run, as name and number. */
static const struct {
    const char *name;
    size_t offset;
} params[] = {{"vocabulary", offsetof(td_hparams, n_vocab)},
              {"embedding", offsetof(td_hparams, n_embd)},
              {"layers", offsetof(td_hparams, n_layer)},
              {"feed_forward", offsetof(td_hparams, n_ff)},
              {"heads", offsetof(td_hparams, n_head)},
              {"kv_heads", offsetof(td_hparams, n_head_kv)},
              {"head_dim_k", offsetof(td_hparams, head_dim_k)},
              {"head_dim_v", offsetof(td_hparams, head_dim_v)},
              {"rotated", offsetof(td_hparams, n_rot)},
              {"context", offsetof(td_hparams, n_ctx_train)}};

static uint32_t param(const td_hparams *h, size_t i)
{
    uint32_t value;
    memcpy(&value, (const char *)h + params[i].offset, sizeof value);
    return value;
}

static const char *text_key(const td_gguf *g, const char *key, const char *fallback)
{
    const char *value = fallback;
    if (td_gguf_has(g, key))
        td_gguf_get_str(g, key, &value, NULL, NULL);
    return value;
}

static void print_text(const td_gguf *g, const td_model *m, const td_err *why)
{
    type_sum sums[64];
    uint64_t layers[TD_LAYERS_MAX];
    uint32_t n_layers, n_types = sum_types(g, sums);
    uint64_t rest;
    sum_layers(g, layers, &n_layers, &rest);
    printf(
        "name          %s\narchitecture  %s\nGGUF version  %u, %u file(s), %u keys, %u tensors\n",
        text_key(g, "general.name", "(none)"), text_key(g, "general.architecture", "(none)"),
        td_gguf_version(g), td_gguf_n_shards(g), td_gguf_n_keys(g), td_gguf_n_tensors(g));
    if (m) {
        char chat[TD_ERR_MESSAGE_MAX];
        const td_hparams *h = td_model_hparams(m);
        for (size_t i = 0; i < TD_COUNT(params); i++)
            printf("%-13s %u\n", params[i].name, param(h, i));
        td_err why_not = {0};
        bool has_head = h->n_nextn && td_model_check_head(m, &why_not);
        if (h->n_nextn)
            printf("left out      %u layer(s) that predict further tokens (MTP), from blk.%u\n"
                   "head          %s%s\n",
                   h->n_nextn, h->n_layer,
                   has_head ? "drafts with --draft mtp" : "none that drafts: ",
                   has_head ? "" : why_not.message);
        const td_tokenizer_info *t = td_tokenizer_get_info(td_model_tokenizer(m));
        printf("rope          base %g, scaling %s, factor %g\n", (double)h->rope_base,
               h->is_yarn               ? "yarn"
               : h->rope_factor != 1.0f ? "linear"
                                        : "none",
               (double)h->rope_factor);
        printf("output        %s\ntokenizer     %s%s%s\nchat template %s\n",
               h->is_tied ? "tied to the embedding" : "own matrix", t->model,
               *t->pre ? ", pre " : "", t->pre, chat_template(m, chat, sizeof chat));
    } else {
        printf("not runnable  %s\n", why->message);
    }
    for (uint32_t i = 0; i < n_types; i++)
        printf("type %-8s %4u tensors, %.2f MiB\n", sums[i].name, sums[i].n_tensors,
               (double)sums[i].n_bytes / (1 << 20));
    for (uint32_t i = 0; i < n_layers; i++)
        printf("layer %-7u %.3f MiB\n", i, (double)layers[i] / (1 << 20));
    printf("other tensors %.3f MiB\n", (double)rest / (1 << 20));
}

static void write_model(td_json_writer *w, const td_model *m)
{
    char chat[TD_ERR_MESSAGE_MAX];
    const td_hparams *h = td_model_hparams(m);
    td_json_write_key(w, "parameters");
    td_json_begin_object(w);
    for (size_t i = 0; i < TD_COUNT(params); i++)
        td_json_put_u64(w, params[i].name, param(h, i));
    td_json_put_u64(w, "mtp_layers", h->n_nextn);
    td_json_put_bool(w, "mtp_drafts", h->n_nextn && td_model_check_head(m, NULL));
    td_json_put_double(w, "rms_eps", (double)h->rms_eps);
    td_json_put_double(w, "rope_base", (double)h->rope_base);
    td_json_put_bool(w, "tied_output", h->is_tied);
    td_json_end_object(w);
    const td_tokenizer_info *t = td_tokenizer_get_info(td_model_tokenizer(m));
    td_json_write_key(w, "tokenizer");
    td_json_begin_object(w);
    td_json_put_string(w, "model", t->model);
    td_json_put_string(w, "pre", t->pre);
    td_json_put_string(w, "chat_template", chat_template(m, chat, sizeof chat));
    td_json_end_object(w);
}

static bool print_json(const td_gguf *g, const td_model *m, const td_err *why, td_err *err)
{
    type_sum sums[64];
    uint64_t layers[TD_LAYERS_MAX];
    uint32_t n_layers, n_types = sum_types(g, sums);
    uint64_t rest;
    sum_layers(g, layers, &n_layers, &rest);
    td_json_writer *w = td_json_writer_create(true, err);
    if (!w)
        return false;
    td_json_begin_object(w);
    td_json_put_string(w, "name", text_key(g, "general.name", NULL));
    td_json_put_string(w, "architecture", text_key(g, "general.architecture", NULL));
    td_json_put_u64(w, "gguf_version", td_gguf_version(g));
    td_json_put_u64(w, "files", td_gguf_n_shards(g));
    td_json_put_u64(w, "keys", td_gguf_n_keys(g));
    td_json_put_u64(w, "tensors", td_gguf_n_tensors(g));
    td_json_put_bool(w, "runnable", m != NULL);
    td_json_put_string(w, "why_not", m ? NULL : why->message);
    if (m)
        write_model(w, m);
    td_json_write_key(w, "types");
    td_json_begin_object(w);
    for (uint32_t i = 0; i < n_types; i++) {
        td_json_write_key(w, sums[i].name);
        td_json_begin_object(w);
        td_json_put_u64(w, "tensors", sums[i].n_tensors);
        td_json_put_u64(w, "bytes", sums[i].n_bytes);
        td_json_end_object(w);
    }
    td_json_end_object(w);
    td_json_write_key(w, "layer_bytes");
    td_json_begin_array(w);
    for (uint32_t i = 0; i < n_layers; i++)
        td_json_write_u64(w, layers[i]);
    td_json_end_array(w);
    td_json_put_u64(w, "other_bytes", rest);
    td_json_end_object(w);
    const char *text;
    size_t n_bytes;
    bool is_ok = td_json_writer_end(w, &text, &n_bytes, err);
    if (is_ok)
        puts(text);
    td_json_writer_destroy(&w);
    return is_ok;
}

int td_command_inspect(int argc, char **argv, td_err *err)
{
    fields f = {0};
    bool is_help;
    const char *path = argc > 0 && argv[0][0] != '-' ? argv[0] : NULL;
    if (!td_options_parse(&help, argc - (path != NULL), argv + (path != NULL), &f, &is_help, err))
        return 0;
    if (is_help) {
        td_options_print_help(&help);
        return 0;
    }
    if (!path) {
        td_err_set(err, TD_E_USAGE, "usage: %s", help.usage);
        return 0;
    }
    if (!td_options_check_files(&help, &f, path, true, err))
        return 0;
    td_gguf *g = td_gguf_open(path, err);
    if (!g)
        return 0;
    td_err why = {0};
    td_model *m = td_model_open(path, &why);
    if (f.is_json)
        print_json(g, m, &why, err);
    else
        print_text(g, m, &why);
    td_model_close(&m);
    td_gguf_close(&g);
    return 0;
}
