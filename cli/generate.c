/* tandem generate: the main job. */
#include "cli/generate.h"
#include "cli/cache_options.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/prefix.h"
#include "cli/text_rows.h"

#include "base/check.h"
#include "base/log.h"
#include "job/db.h"
#include "run/run.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    td_run_params run;
    option_list devices, spares, stops;
    option_hosts hosts;
    const char *config, *use, *prefix;
    char prefix_path[PATH_MAX], head[PATH_MAX];
    float lease_s, drain_s;
    bool is_no_measure;
} fields;

#define AT(name) offsetof(fields, name)

static const option options[] = {
    {"--config", NULL, OPT_READ, AT(config), 0, 0, "FILE.json",
     "any of what follows from a file; flags win"},
    {"--target", "target.model", OPT_READ, AT(run.target_path), 0, 0, "M.gguf",
     "the model that decides (required)"},
    {"--device", "target.devices", OPT_LIST, AT(devices), 0, 0, "SPEC",
     "host[:threads[:cpus]] or vulkan:INDEX|amd|nvidia|intel|pci:ADDRESS|uuid:ID|NAME, each with "
     "@a-b for layers a..b; several make a split in order (default: GPUs found, else host)"},
    {"--host", "hosts", OPT_HOSTS, AT(hosts), 0, 0, "NAME=EP",
     "another machine, whose devices are NAME/SPEC then: the `tandem stage` at ipc://PATH, "
     "tcp://127.0.0.1:PORT or tcp://HOST:PORT,KEY with its public key, a name or file"},
    {"--spare", "target.spares", OPT_LIST, AT(spares), 0, 0, "NAME/SPEC",
     "takes the layers of a stage elsewhere that is lost and not back in 2 s: a device of the same "
     "kind; may be given up to 16 times"},
    {"--wire", "target.wire", OPT_WIRE_TYPE, AT(run.wire), 0, 0, "TYPE",
     "of activations from one machine to the next: f32, with the bits of one machine, or f16, half "
     "the bytes (default: f32)"},
    {"--place", "target.place", OPT_TEXT, AT(run.place), 0, 0, "experts=HOW",
     "the experts of a mixture: on a device, say experts=host, or dealt over all of them by "
     "experts=auto, shares (60,40) or lists (0-3/4-7)"},
    {"--expert-stats", "target.expert_stats", OPT_READ, AT(run.expert_stats), 0, 0, "FILE.json",
     "deal experts by how often they were asked: --stats of a run whose were dealt"},
    {"--for", "target.for", OPT_TEXT, AT(use), 0, 0, "stream|batch",
     "what layers are placed for: one text at a time, or many (default: by --parallel)"},
    {"--no-measure", "target.no_measure", OPT_FLAG, AT(is_no_measure), 0, 0, NULL,
     "do not time the devices first: layers go by bytes"},
    {"--draft", "draft.model", OPT_READ, AT(run.draft_path), 0, 0, "D.gguf|mtp[:FILE]|auto|none",
     "a small model that proposes tokens, of the target's vocabulary or near it; or mtp, the head "
     "for multi-token prediction in the target's file or in FILE; or both, as mtp,D.gguf, of which "
     "each round takes what promises most; or auto: as --draft-ngram, with mtp where the target's "
     "file has a head (default: none)"},
    {"--draft-device", "draft.device", OPT_TEXT, AT(run.draft_spec), 0, 0, "SPEC",
     "where the draft runs, on another machine HOST/SPEC (default: the fastest device where "
     "devices were measured; else a GPU that has no layers of the target; else host, or host:1 "
     "where the target is there too)"},
    {"--draft-endpoint", "draft.endpoint", OPT_TEXT, AT(run.draft_endpoint), 0, 0, "EP",
     "a `tandem draft` worker instead: ipc://PATH, tcp://127.0.0.1:PORT, or on another machine "
     "tcp://HOST:PORT,KEY with its public key, a name or file"},
    {"--key", "run.key", OPT_TEXT, AT(run.key), 0, 0, "NAME",
     "our own pair of `tandem keys`, shown to workers (default: the only one)"},
    {"--draft-max", "draft.max", OPT_U32, AT(run.draft_max), 1, TD_DRAFT_MAX, "K",
     "tokens of a draft at most; how many is chosen each round (default: 8)"},
    {"--draft-fixed", "draft.fixed", OPT_U32, AT(run.draft_fixed), 1, TD_DRAFT_MAX, "K",
     "always draft K tokens"},
    {"--draft-ngram", "draft.ngram", OPT_FLAG, AT(run.is_ngram), 0, 0, NULL,
     "guess from what the run's texts said before, too or instead of a model"},
    {"--draft-turns", "draft.turns", OPT_FLAG, AT(run.is_turns), 0, 0, NULL,
     "draft and target take turns, as elsewhere; for comparison"},
    {"--prompt", NULL, OPT_TEXT, AT(run.prompt), 0, 0, "TEXT",
     "one prompt; prompt and text go to stdout"},
    {"--in", "run.in", OPT_READ, AT(run.in_path), 0, 0, "FILE.jsonl",
     "prompts, one JSON object a line; - for stdin"},
    {"--job", "run.job", OPT_TEXT, AT(run.job), 0, 0, "URL",
     "work off a job of `tandem job`, sqlite:FILE or postgresql://..., beside any other worker"},
    {"--lease", "run.lease", OPT_FLOAT, AT(lease_s), 1, 86400, "S",
     "with --job: a line goes to another worker so long after this one was lost (default: 60)"},
    {"--drain", "run.drain", OPT_FLOAT, AT(drain_s), 0, 86400, "S",
     "with --job: after a signal, finish what can be finished in S seconds; the rest is given back "
     "(default: 0)"},
    {"--special", NULL, OPT_FLAG, AT(run.is_special), 0, 0, NULL,
     "control tokens in the text of --prompt are such, not text"},
    {"--chat-template", "run.chat_template", OPT_READ, AT(run.chat_template), 0, 0,
     "FILE.jinja|NAME", "of `messages` (default: the one that the target's file has)"},
    {"--out", "run.out", OPT_WRITE, AT(run.out_path), 0, 0, "FILE.jsonl",
     "results, appended; a file that is there is resumed (default: stdout)"},
    TEXT_ROWS,
    {"--kv-k", "cache.k", OPT_CACHE_TYPE, AT(run.kv.k), 0, 0, "TYPE",
     "type of cached keys: " TD_OPTIONS_CACHE_TYPES " (default: f16)"},
    {"--kv-v", "cache.v", OPT_CACHE_TYPE, AT(run.kv.v), 0, 0, "TYPE",
     "type of cached values (default: f16)"},
    CACHE_ROWS(run.kv, CACHE_KEY),
    {"--draft-kv-k", "draft.kv_k", OPT_CACHE_TYPE, AT(run.draft_kv.k), 0, 0, "TYPE",
     "type of the draft's cached keys (default: as --kv-k; f16 for a draft of less than 1 B "
     "parameters)"},
    {"--draft-kv-v", "draft.kv_v", OPT_CACHE_TYPE, AT(run.draft_kv.v), 0, 0, "TYPE",
     "type of the draft's cached values (default: likewise)"},
    {"--ctx", "cache.ctx", OPT_U32, AT(run.n_ctx), 1, 1 << 24, "N",
     "positions of a sequence (default: the smaller of the model's and what fits)"},
    {"--prefix-cache", "cache.prefix", OPT_TEXT, AT(prefix), 0, 0, "DIR[:SIZE]",
     "a folder where prompts are kept as they are read, for this run and later ones, up to SIZE, "
     "as "
     "500M or 20G (default: none; SIZE: 20G)"},
    {"--parallel", "run.parallel", OPT_U32, AT(run.n_parallel), 1, TD_SEQUENCES_MAX, "N",
     "sequences at once (default: 1)"},
    {"--stats", "run.stats", OPT_WRITE, AT(run.stats_path), 0, 0, "FILE.json",
     "write acceptance, times and placement"},
    {"--trace", "run.trace", OPT_WRITE, AT(run.trace_path), 0, 0, "FILE.json",
     "write a timeline of devices and decisions (Chrome trace)"},
    {"--trust", NULL, OPT_FLAG, AT(run.is_trusting), 0, 0, NULL,
     "go on with devices that have failed `tandem check`"},
    {"--force", NULL, OPT_FLAG, AT(run.is_force), 0, 0, NULL,
     "keep results of another input or configuration and go on"},
    {"--retry-errors", NULL, OPT_FLAG, AT(run.is_retry_errors), 0, 0, NULL,
     "run lines again whose result is an error"},
    {"--mark", NULL, OPT_FLAG, AT(run.is_marked), 0, 0, NULL,
     "accepted draft tokens in green even when stdout is no terminal"},
    {"--quiet", NULL, OPT_FLAG, AT(run.is_quiet), 0, 0, NULL,
     "no table of the set-up on a terminal, and no summary on stderr"},
};
static const command_help help = {
    "generate",
    "tandem generate --target M.gguf [--draft D.gguf|mtp|auto] (--prompt TEXT | --in FILE.jsonl | "
    "--job URL) [options]",
    "Generates text. A draft model only makes it faster: the text is the same with any draft and "
    "with none.",
    options, TD_COUNT(options)};

bool td_generate_check_texts(td_run_params *r, const option_list *stops, td_err *err)
{
    if (!(r->sampling.top_p > 0))
        return td_err_set(err, TD_E_USAGE, "--top-p: 0; allowed: above 0, up to 1");
    if (!(r->sampling.min_p < 1))
        return td_err_set(err, TD_E_USAGE, "--min-p: 1; allowed: 0 up to below 1");
    r->n_stops = stops->n;
    for (uint32_t i = 0; i < stops->n; i++) {
        size_t n = strlen(stops->items[i]);
        if (n < 1 || n > TD_STOP_BYTES_MAX)
            return td_err_set(err, TD_E_USAGE, "--stop: %zu bytes; allowed: 1..%u", n,
                              TD_STOP_BYTES_MAX);
        r->stops[i] = stops->items[i];
    }
    return true;
}

/* A head and a model beside it: "mtp,D.gguf", "mtp:FILE,D.gguf", or one of them with a worker. */
static bool read_head(fields *f, td_err *err)
{
    td_run_params *r = &f->run;
    const char *draft = r->draft_path, *beside = td_head_beside(draft);
    size_t n = draft ? strlen(draft) : 0;
    bool is_turned = n > 4 && !strcmp(draft + n - 4, ",mtp");
    if (!beside && !is_turned && !(td_head_name(draft) && r->draft_endpoint))
        return true;
    size_t n_head = beside ? (size_t)(beside - draft) - 1 : n;
    bool is_model = !beside || (*beside && !td_head_name(beside) && !td_head_is_auto(beside) &&
                                strcmp(beside, "none"));
    if (is_turned || !is_model || n_head >= sizeof f->head)
        return td_err_set(err, TD_E_USAGE,
                          "--draft %s; allowed: D.gguf, mtp, mtp:FILE, auto, none, and of two at "
                          "once mtp,D.gguf and mtp:FILE,D.gguf",
                          draft);
    memcpy(f->head, draft, n_head);
    f->head[n_head] = 0;
    r->draft_head = f->head;
    r->draft_path = beside;
    return true;
}

static bool check(fields *f, td_err *err)
{
    td_run_params *r = &f->run;
    if (r->draft_path && !strcmp(r->draft_path, "none")) { /* whatever else a file says of drafts */
        r->draft_path = r->draft_spec = r->draft_endpoint = NULL;
        r->draft_kv.k = r->draft_kv.v = NULL;
    }
    if (!r->target_path)
        return td_err_set(err, TD_E_USAGE,
                          "--target M.gguf is needed; see `tandem generate --help`");
    if (!r->prompt + !r->in_path + !r->job != 2)
        return td_err_set(err, TD_E_USAGE,
                          "give one of --prompt TEXT, --in FILE.jsonl and --job URL");
    if (r->job && (r->out_path || r->is_force || r->is_retry_errors))
        return td_err_set(err, TD_E_USAGE,
                          "%s does not go with --job: results lie in the job (`tandem job export`, "
                          "`tandem job retry`)",
                          r->out_path   ? "--out"
                          : r->is_force ? "--force"
                                        : "--retry-errors");
    if (r->job && !td_db_check_url(r->job, err))
        return td_err_prepend(err, "--job");
    r->lease_s = f->lease_s;
    r->drain_s = f->drain_s;
    if (r->is_special && !r->prompt)
        return td_err_set(err, TD_E_USAGE,
                          "--special goes with --prompt TEXT; lines of --in say \"special\": true");
    if (!read_head(f, err))
        return false;
    if (r->draft_path && r->draft_endpoint)
        return td_err_set(err, TD_E_USAGE,
                          "give either --draft D.gguf or --draft-endpoint EP, not both");
    if (r->draft_spec && !r->draft_path)
        return td_err_set(err, TD_E_USAGE, "--draft-device needs --draft D.gguf");
    if ((r->draft_kv.k || r->draft_kv.v) && !r->draft_path)
        return td_err_set(err, TD_E_USAGE,
                          "--draft-kv-k and --draft-kv-v need --draft D.gguf; a worker has its own "
                          "--kv-k and --kv-v");
    if ((r->draft_spec || r->draft_kv.k || r->draft_kv.v) &&
        (td_head_name(r->draft_path) || td_head_is_auto(r->draft_path)))
        return td_err_set(err, TD_E_USAGE,
                          "%s does not go with --draft %s: a head drafts where the target's last "
                          "layers are, with their types of the cache",
                          r->draft_spec ? "--draft-device" : "--draft-kv-k or -v", r->draft_path);
    const char *head = r->draft_head ? r->draft_head : r->draft_path;
    if (td_head_name(head) && head[3] && !head[4])
        return td_err_set(err, TD_E_USAGE, "--draft mtp:FILE without FILE; allowed: mtp, mtp:FILE");
    if (f->use && strcmp(f->use, "stream") && strcmp(f->use, "batch"))
        return td_err_set(err, TD_E_USAGE, "--for: %.64s; allowed: stream, batch", f->use);
    bool is_batch = f->use ? !strcmp(f->use, "batch") : r->n_parallel > 1;
    r->use = is_batch ? TD_FOR_BATCH : TD_FOR_STREAM;
    r->measure = f->is_no_measure ? TD_MEASURE_NEVER : TD_MEASURE_MISSING;
    if (f->prefix) {
        if (!td_prefix_option_read(f->prefix, f->prefix_path, &r->prefix_bytes, err))
            return false;
        r->prefix_path = f->prefix_path;
    }
    r->n_specs = f->devices.n;
    memcpy(r->specs, f->devices.items, sizeof r->specs);
    r->n_spares = f->spares.n;
    memcpy(r->spares, f->spares.items, sizeof r->spares);
    r->n_hosts = f->hosts.n;
    return td_options_read_hosts(&f->hosts, r->key, r->hosts, err) &&
           td_generate_check_texts(r, &f->stops, err);
}

static void print_summary(const td_run_params *p, const td_run_totals *t)
{
    double seconds = (double)(t->end_us - t->start_us) * 1e-6;
    uint64_t n = t->n_ok ? t->n_ok : 1;
    fprintf(stderr,
            "%llu ok, %llu failed, %llu skipped; %llu tokens in %.2f s: %.1f tokens/s; "
            "time to first token %.1f ms",
            (unsigned long long)t->n_ok, (unsigned long long)t->n_error,
            (unsigned long long)t->n_skipped, (unsigned long long)t->n_tokens, seconds,
            seconds > 0 ? (double)t->n_tokens / seconds : 0,
            (double)t->ttft_sum_us * 1e-3 / (double)n);
    if ((p->draft_path || p->draft_endpoint) && !t->n_drafted)
        fputs("; nothing drafted (plain decoding was not beaten, or not for long enough to tell)",
              stderr);
    else if (p->draft_path || p->draft_endpoint)
        fprintf(stderr, "; accepted %llu of %llu drafted (%.2f), %.2f tokens a verification",
                (unsigned long long)t->n_accepted, (unsigned long long)t->n_drafted,
                (double)t->n_accepted / (double)t->n_drafted,
                t->n_rounds ? (double)t->n_tokens / (double)t->n_rounds : 0);
    /* A prediction is of one text while it is generated, or of all of them with their prompts. */
    bool is_batch = p->use == TD_FOR_BATCH;
    if (t->predicted_per_s > 0 && t->n_timed_lines > 0)
        fprintf(stderr, "; expected %.1f, measured %.1f (lines %.1f to %.1f)", t->predicted_per_s,
                is_batch ? (seconds > 0 ? (double)t->n_tokens / seconds : 0)
                         : t->line_sum_per_s / (double)t->n_timed_lines,
                t->line_min_per_s, t->line_max_per_s);
    if (t->n_old_errors)
        fprintf(stderr, "; %llu of the skipped are errors (--retry-errors runs them again)",
                (unsigned long long)t->n_old_errors);
    fputc('\n', stderr);
}

static fields defaults(void)
{
    return (fields){.lease_s = 60,
                    .run = {.draft_max = 8,
                            .n_predict = TD_N_PREDICT_DEFAULT,
                            .sampling = TD_SAMPLING_DEFAULTS,
                            .kv = {.k = td_type_find(TD_TYPE_F16), .v = td_type_find(TD_TYPE_F16)},
                            .n_parallel = 1}};
}

bool td_generate_read_config(const char *path, td_generate_config *out, td_json **document,
                             td_err *err)
{
    fields f = defaults();
    if (!td_options_read_config(&help, path, &f, document, err))
        return false;
    if (f.run.draft_path && !strcmp(f.run.draft_path, "none"))
        f.run.draft_path = f.run.draft_spec = NULL;
    const char *beside = td_head_beside(f.run.draft_path); /* a plan is made for the model */
    f.run.draft_path = beside ? beside : f.run.draft_path;
    *out = (td_generate_config){.run = f.run,
                                .devices = f.devices,
                                .hosts = f.hosts,
                                .use = f.use,
                                .is_no_measure = f.is_no_measure};
    return true;
}

int td_command_generate(int argc, char **argv, td_err *err)
{
    fields f = defaults();
    td_json *document = NULL;
    bool is_help = false;
    const char *config = td_options_find_config(&help, argc, argv);
    td_run_totals totals = {0};
    int signal = 0, code = 0;
    if (config && !td_options_read_config(&help, config, &f, &document, err))
        goto done;
    const char *config_in = f.run.in_path;
    if (!td_options_parse(&help, argc, argv, &f, &is_help, err))
        goto done;
    if ((f.run.prompt || f.run.job) &&
        f.run.in_path == config_in) /* flags win over the file's too */
        f.run.in_path = NULL;
    if (is_help) {
        td_options_print_help(&help);
        goto done;
    }
    bool is_printing = !f.run.out_path && !f.run.job;
    if (!check(&f, err) ||
        !td_options_check_files(&help, &f, f.run.job ? td_db_file(f.run.job) : NULL, is_printing,
                                err))
        goto done;
    bool is_ok = td_run(&f.run, &totals, &signal, err);
    if (totals.end_us && !f.run.is_quiet)
        print_summary(&f.run, &totals);
    if (is_ok)
        code = signal ? 128 + signal : totals.n_error || totals.n_old_errors ? 1 : 0;
    else if (signal && err->code == TD_E_AGAIN) { /* while it was being loaded */
        td_err_clear(err);
        code = 128 + signal;
    }
done:
    td_json_destroy(&document);
    return code;
}
