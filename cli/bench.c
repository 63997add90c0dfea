/* tandem bench: the command line. What is measured is in bench_measure.c (a model: prefill, decode,
 * the cost of verifying n rows) and bench_draft.c (a pair); what is shown, in bench_table.c. */
#include "cli/bench.h"
#include "cli/cache_options.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/simple.h"

#include "base/check.h"
#include "base/text.h"
#include "coordinator/coordinator.h"

#include <stddef.h>
#include <string.h>
#include <sys/stat.h>

#define DEPTH_MAX (1u << 23)

typedef struct {
    bench_params p;
    option_hosts hosts;
    const char *widths, *depths, *draft_max, *types_k, *types_v, *format;
    bool is_json;
} fields;

#define AT(name) offsetof(fields, name)

static const option options[] = {
    {"--model", NULL, OPT_LIST, AT(p.models), 0, 0, "M.gguf",
     "the model (required); several are measured one after another"},
    {"--device", NULL, OPT_LIST, AT(p.devices), 0, 0, "SPEC",
     "as in generate; several make a split"},
    {"--host", NULL, OPT_HOSTS, AT(hosts), 0, 0, "NAME=EP",
     "another machine, as in generate; whatever it has layers of is measured as a run would use "
     "it"},
    {"--wire", NULL, OPT_WIRE_TYPE, AT(p.wire), 0, 0, "TYPE",
     "of activations between machines: f32 or f16 (default: f32)"},
    {"--key", NULL, OPT_TEXT, AT(p.key), 0, 0, "NAME",
     "our own pair of `tandem keys`, shown to workers (default: the only one)"},
    {"--place", NULL, OPT_TEXT, AT(p.place), 0, 0, "experts=HOW",
     "the experts of a mixture: on a device, say experts=host, or dealt over all of them by "
     "experts=auto, shares (60,40) or lists (0-3/4-7)"},
    {"--each", NULL, OPT_FLAG, AT(p.is_each), 0, 0, NULL,
     "no split: each device holds the whole model, one after another"},
    {"--together", NULL, OPT_FLAG, AT(p.is_together), 0, 0, NULL,
     "no split: each device holds the whole model, and all run at once"},
    {"--pp", NULL, OPT_U32, AT(p.n_prefill), 0, 65536, "N",
     "tokens of the prompt; 0: no such test (default: 128)"},
    {"--tg", NULL, OPT_U32, AT(p.n_decode), 0, 65536, "N",
     "tokens to decode after it; 0: no such test (default: 32)"},
    {"--widths", NULL, OPT_TEXT, AT(widths), 0, 0, "1,2,4",
     "rows of a verification, 1..64 each (default: 1,2,4,8,9,16)"},
    {"--depth", NULL, OPT_TEXT, AT(depths), 0, 0, "0,4096",
     "tokens in the cache before each test begins; past 2048, unless a layer is elsewhere, copies "
     "of those (default: 0)"},
    {"--repeat", NULL, OPT_U32, AT(p.n_repeats), 1, BENCH_REPEATS_MAX, "N",
     "repeats of each test (default: 5; with --prompts 1)"},
    {"--kv-k", NULL, OPT_TEXT, AT(types_k), 0, 0, "TYPE,..",
     "types of cached keys: " TD_OPTIONS_CACHE_TYPES " (default: f16)"},
    {"--kv-v", NULL, OPT_TEXT, AT(types_v), 0, 0, "TYPE,..",
     "types of cached values; each with each of the keys (default: f16)"},
    CACHE_ROWS(p.kv, CACHE_NO_KEY),
    {"--ops", NULL, OPT_FLAG, AT(p.is_ops), 0, 0, NULL,
     "the time of each test by op too, of three more runs"},
    {"--measure", NULL, OPT_FLAG, AT(p.is_measure), 0, 0, NULL,
     "also how near each test comes to the device's bandwidth (a second or two)"},
    {"--draft", NULL, OPT_READ, AT(p.draft), 0, 0, "D.gguf",
     "measure the pair instead: plain decoding and drafts of each length"},
    {"--prompts", NULL, OPT_FLAG, AT(p.is_prompts), 0, 0, NULL,
     "instead, by prompt, of nine that are built in: plain decoding, the draft if there is one, "
     "and n-grams"},
    {"--draft-device", NULL, OPT_TEXT, AT(p.draft_device), 0, 0, "SPEC",
     "where the draft runs (default: as in generate)"},
    {"--draft-kv-k", NULL, OPT_CACHE_TYPE, AT(p.draft_kv.k), 0, 0, "TYPE",
     "type of the draft's cached keys (default: as in generate)"},
    {"--draft-kv-v", NULL, OPT_CACHE_TYPE, AT(p.draft_kv.v), 0, 0, "TYPE",
     "type of the draft's cached values (default: likewise)"},
    {"--draft-max", NULL, OPT_TEXT, AT(draft_max), 0, 0, "1,2,4",
     "draft lengths, 1..63 each (default: 1,2,4,8; with --prompts only chosen ones, up to 8)"},
    {"--in", NULL, OPT_READ, AT(p.in_path), 0, 0, "FILE.jsonl",
     "prompts of the pair (default: four built in)"},
    {"-n", NULL, OPT_U32, AT(p.n_predict), 1, 65536, "N",
     "tokens of each prompt, past end-of-text tokens (default: 64; with --prompts 192 at most, up "
     "to the end of text)"},
    {"--temp", NULL, OPT_FLOAT, AT(p.temperature), 0, 100, "T",
     "temperature of the pair (default: 0, greedy)"},
    {"--seed", NULL, OPT_U64, AT(p.seed), 0, 9223372036854774784.0, "S",
     "of the pair's sampling and of --accept (default: 0)"},
    {"--parallel", NULL, OPT_U32, AT(p.n_parallel), 1, TD_SEQUENCES_MAX, "N",
     "sequences of the pair at once (default: 1)"},
    {"--accept", NULL, OPT_FLOAT, AT(p.accept), 0, 1, "P",
     "synthetic acceptance: drafts are right with probability P, whatever the draft says"},
    {"--format", NULL, OPT_TEXT, AT(format), 0, 0, "F",
     "md, csv, json (a list) or jsonl (default: md)"},
    {"--json", NULL, OPT_FLAG, AT(is_json), 0, 0, NULL, "one object of each model and device"},
};
static const command_help help = {
    "bench", "tandem bench --model M.gguf [--device SPEC]... [options]",
    "Measures tokens/s of prefill and decode, and c(n) = time of n rows / time of one; or, with\n"
    "--draft, a pair; or, with --prompts, what guessing gives for nine prompts.",
    options, TD_COUNT(options)};

static bool read_types(const char *flag, const char *text, const td_type_info **out, uint32_t *n,
                       td_err *err)
{
    bool is_ok = *text;
    *n = 0;
    for (const char *p = text; is_ok && *p;) {
        size_t n_bytes = strcspn(p, ",");
        bool is_last = !p[n_bytes];
        char one[16] = "";
        if (n_bytes < sizeof one)
            memcpy(one, p, n_bytes);
        const td_type_info *type = td_type_find_name(one);
        is_ok = type && type->is_cache_type && *n < BENCH_LIST_MAX && (is_last || p[n_bytes + 1]);
        if (is_ok)
            out[(*n)++] = type;
        p += n_bytes + !is_last;
    }
    return is_ok ||
           td_err_set(err, TD_E_USAGE, "%s: %s; allowed: up to %u of " TD_OPTIONS_CACHE_TYPES, flag,
                      td_text_quote(text, strlen(text)).text, BENCH_LIST_MAX);
}

static bool read_format(fields *f, td_err *err)
{
    static const char *const names[] = {"md", "csv", "json", "jsonl"};
    static const bench_format formats[] = {BENCH_TABLE, BENCH_CSV, BENCH_JSON, BENCH_JSONL};
    if (f->is_json && f->format)
        return td_err_set(err, TD_E_USAGE, "give either --json or --format, not both");
    f->p.format = f->is_json ? BENCH_OBJECT : BENCH_TABLE;
    for (size_t i = 0; i < TD_COUNT(names); i++)
        if (f->format && !strcmp(f->format, names[i])) {
            f->p.format = formats[i];
            return true;
        }
    return !f->format || td_err_set(err, TD_E_USAGE, "--format: %s; allowed: md, csv, json, jsonl",
                                    td_text_quote(f->format, strlen(f->format)).text);
}

/* Options that mean nothing together are refused: a figure that was not asked for misleads. */
static bool check_combination(const fields *f, td_err *err)
{
    const bench_params *p = &f->p;
    if (!p->models.n)
        return td_err_set(err, TD_E_USAGE, "usage: %s", help.usage);
    if (p->is_each && p->is_together)
        return td_err_set(err, TD_E_USAGE, "give either --each or --together, not both");
    if (p->is_together && p->devices.n < 2)
        return td_err_set(err, TD_E_USAGE, "--together: %u devices; give --device at least twice",
                          p->devices.n);
    if (p->is_ops && (p->format == BENCH_CSV || p->is_together))
        return td_err_set(err, TD_E_USAGE, "--ops: not with %s",
                          p->is_together ? "--together" : "--format csv; use json");
    if (!p->draft && (p->draft_device || p->in_path || p->accept >= 0 || p->n_parallel ||
                      p->draft_kv.k || p->draft_kv.v))
        return td_err_set(err, TD_E_USAGE,
                          "--draft-device, --draft-kv-k, --draft-kv-v, --in, --parallel and "
                          "--accept need --draft D.gguf");
    if (!p->draft && !p->is_prompts && (f->draft_max || p->n_predict || p->temperature >= 0))
        return td_err_set(err, TD_E_USAGE,
                          "--draft-max, -n and --temp need --draft D.gguf or --prompts");
    if (p->is_prompts && (p->in_path || p->accept >= 0 || p->n_parallel))
        return td_err_set(err, TD_E_USAGE, "--prompts: not with --in, --accept or --parallel");
    struct stat st;
    if (p->in_path &&
        (!strcmp(p->in_path, "-") || (stat(p->in_path, &st) == 0 && !S_ISREG(st.st_mode))))
        return td_err_set(err, TD_E_USAGE,
                          "--in %s: is read again for every run; a regular file is wanted",
                          p->in_path);
    if ((p->draft || p->is_prompts) &&
        (p->models.n > 1 || p->is_each || p->is_together || p->is_ops || p->is_measure ||
         f->depths || p->n_types_k * p->n_types_v > 1))
        return td_err_set(err, TD_E_USAGE,
                          "%s: one model and one type of keys and of values; no --each, "
                          "--together, --ops, --measure or --depth",
                          p->draft ? "--draft" : "--prompts");
    return true;
}

static bool read_hosts(fields *f, td_err *err)
{
    bench_params *p = &f->p;
    p->n_hosts = f->hosts.n;
    if (!td_options_read_hosts(&f->hosts, p->key, p->hosts, err))
        return false;
    if (f->hosts.n &&
        (p->is_ops || p->is_measure || p->is_each || p->is_together || p->draft || p->is_prompts))
        return td_err_set(err, TD_E_USAGE,
                          "--host: not with --ops, --measure, --each, --together, --draft or "
                          "--prompts");
    if (p->wire && !f->hosts.n)
        return td_err_set(err, TD_E_USAGE, "--wire: nothing is on another machine; give --host");
    return true;
}

static bool check(fields *f, td_err *err)
{
    bench_params *p = &f->p;
    bool is_ok =
        read_hosts(f, err) && read_types("--kv-k", f->types_k, p->types_k, &p->n_types_k, err) &&
        read_types("--kv-v", f->types_v, p->types_v, &p->n_types_v, err) &&
        td_read_numbers("--widths", f->widths, 1, TD_VERIFY_ROWS_MAX, p->widths.items,
                        BENCH_LIST_MAX, &p->widths.n, err) &&
        td_read_numbers("--depth", f->depths ? f->depths : "0", 0, DEPTH_MAX, p->depths.items,
                        BENCH_LIST_MAX, &p->depths.n, err) &&
        td_read_numbers("--draft-max", f->draft_max ? f->draft_max : "1,2,4,8", 1, TD_DRAFT_MAX,
                        p->draft_max.items, BENCH_LIST_MAX, &p->draft_max.n, err) &&
        read_format(f, err) && check_combination(f, err);
    if (p->is_prompts && !f->draft_max)
        p->draft_max.n = 0; /* only what is chosen */
    p->n_predict = p->n_predict ? p->n_predict : p->is_prompts ? 192 : 64;
    p->n_repeats = p->n_repeats ? p->n_repeats : p->is_prompts ? 1 : 5;
    p->n_parallel = p->n_parallel ? p->n_parallel : 1;
    p->temperature = p->temperature > 0 ? p->temperature : 0;
    return is_ok;
}

static void write_lower(char *out, size_t n_bytes, const char *name)
{
    size_t n = 0;
    for (; name[n] && n + 1 < n_bytes; n++)
        out[n] = (char)(name[n] >= 'A' && name[n] <= 'Z' ? name[n] + 32 : name[n]);
    out[n] = 0;
}

td_cache_types td_bench_cache(const bench_params *p, uint32_t i)
{
    td_cache_types kv = p->kv;
    kv.k = p->types_k[i / p->n_types_v];
    kv.v = p->types_v[i % p->n_types_v];
    return kv;
}

static void mark_rotated(const td_cache_types *kv, const td_model *model, bench_case *c)
{
    const td_hparams *h = td_model_hparams(model);
    td_kv_params layer = {.head_dim_k = h->head_dim_k,
                          .head_dim_v = h->head_dim_v,
                          .is_latent = td_model_arch(model)->is_mla};
    td_cache_types most = *kv;
    most.n_rules = 0;
    td_cache_types_apply(&most, 0, &layer);
    if (layer.rotates_k)
        strcat(c->type_k, "+rot");
    if (layer.rotates_v)
        strcat(c->type_v, "+rot");
}

void td_bench_describe(bench_case *c, const td_model *model, const td_cache_types *kv)
{
    const td_gguf *g = td_model_gguf(model);
    c->model = td_model_path(model);
    c->model_bytes = 0;
    for (uint32_t i = 0; i < td_gguf_n_tensors(g); i++)
        c->model_bytes += td_gguf_tensor_at(g, i)->n_bytes;
    write_lower(c->type_k, sizeof c->type_k, kv->k->name);
    write_lower(c->type_v, sizeof c->type_v, kv->v->name);
    mark_rotated(kv, model, c);
    td_cache_types_list_kept(kv, c->kept, sizeof c->kept);
    bool has_k = false, has_v = false;
    for (uint32_t i = 0; i < kv->n_rules; i++) {
        has_k |= kv->rules[i].k != NULL;
        has_v |= kv->rules[i].v != NULL;
    }
    strcat(c->type_k, has_k ? "+keep" : "");
    strcat(c->type_v, has_v ? "+keep" : "");
}

int td_command_bench(int argc, char **argv, td_err *err)
{
    fields f = {.widths = "1,2,4,8,9,16",
                .types_k = "f16",
                .types_v = "f16",
                .p = {.n_prefill = 128,
                      .n_decode = 32,
                      .temperature = -1, /* not given, like zeros of what is not named here */
                      .accept = -1}};
    bool is_help;
    int signal = 0;
    if (!td_options_parse(&help, argc, argv, &f, &is_help, err))
        return 0;
    if (is_help)
        td_options_print_help(&help);
    else if (check(&f, err) && td_options_check_files(
                                   &help, &f, f.p.models.n ? f.p.models.items[0] : NULL, true, err))
        (void)(f.p.draft || f.p.is_prompts ? td_bench_pair(&f.p, &signal, err)
                                           : td_bench_models(&f.p, err));
    return signal ? 128 + signal : 0;
}
