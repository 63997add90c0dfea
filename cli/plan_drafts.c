/* tandem plan --drafts: which draft of a folder does most for a target on this machine.
 *
 * What a round takes is what `plan` measures: a step of the draft, and the target's verifications
 * by rows. What a draft is worth, the target says: it goes on from prompts greedily, as `generate`
 * would, with drafts that are as long as may be, always, so that what is accepted by index does not
 * depend on times; the texts are the same whatever drafts (law 1), which is checked. Both go into
 * the formula by which lengths are chosen (speed.h, as coordinator/length.c has it). */
#include "cli/plan.h"

#include "cli/bench.h"
#include "cli/eval.h"

#include "base/check.h"
#include "base/io.h"
#include "base/json_writer.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/text.h"
#include "base/utf8.h"
#include "model/cache_choice.h"
#include "model/vocab_map.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define FILES_MAX     64u
#define PLACES_MAX    8u /* of a text, and how many of its tokens are a prompt */
#define PLACE_TOKENS  96u
#define PREDICT       64u /* tokens of each prompt */
#define CTX_MAX       2048u
#define DRAFT_DEFAULT 8u

typedef struct {
    char path[PATH_MAX], why[256]; /* why it cannot be used; "": it can */
    double vocabulary;             /* share of the target's tokens that it has */
    double survival[TD_SPEED_DRAFT_MAX + 1];
    uint32_t k; /* the length that does best */
    bool takes_turns;
    double tokens_per_s, step_us;
    uint64_t n_bytes, texts; /* what it takes; a hash of all texts */
    char spec[TD_PLAN_SPEC_MAX];
} candidate;

typedef struct {
    const plan_drafts *asked;
    td_plan plain; /* the target alone */
    candidate *all;
    uint32_t n, n_usable, draft_max;
    int fd; /* the prompts */
    char prompts[64], problem[256];
    uint64_t texts; /* of the run */
} ranking;

static const char *file_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* -- the folder ------------------------------------------------------------------------------- */

static int by_path(const void *a, const void *b)
{
    return strcmp(((const candidate *)a)->path, ((const candidate *)b)->path);
}

/* Files that end in .gguf, by name; of a model in pieces the first. */
static bool list_files(ranking *r, td_err *err)
{
    const char *folder = r->asked->folder;
    DIR *dir = opendir(folder);
    if (!dir)
        return td_err_set(err, TD_E_IO, "--drafts: %s: %s; allowed: a folder of *.gguf", folder,
                          strerror(errno));
    bool is_ok = true;
    for (struct dirent *e; is_ok && (e = readdir(dir));) {
        size_t n = strlen(e->d_name);
        bool is_shard = strstr(e->d_name, "-of-") && !strstr(e->d_name, "-00001-of-");
        if (n < 6 || e->d_name[0] == '.' || strcmp(e->d_name + n - 5, ".gguf") != 0 || is_shard)
            continue;
        if (r->n == FILES_MAX)
            is_ok = td_err_set(err, TD_E_USAGE, "--drafts: %s: more than %u files; allowed: 1..%u",
                               folder, FILES_MAX, FILES_MAX);
        else if ((size_t)snprintf(r->all[r->n].path, PATH_MAX, "%s/%s", folder, e->d_name) <
                 PATH_MAX)
            r->n++;
    }
    closedir(dir);
    if (is_ok && !r->n)
        is_ok = td_err_set(err, TD_E_DATA, "--drafts: %s: no file there ends in .gguf", folder);
    qsort(r->all, r->n, sizeof *r->all, by_path);
    return is_ok;
}

/* -- what is accepted -------------------------------------------------------------------------- */

/* Stretches of the text, from its beginning to its end. */
static bool write_places(ranking *r, td_err *err)
{
    const char *path = r->asked->text;
    const td_tokenizer *t = td_model_tokenizer(r->asked->params.layout.model);
    char *text;
    uint32_t *ids = NULL;
    size_t n_bytes, n = 0, i_bad;
    if (!td_io_read_file(path, TD_TEXT_MAX, &text, &n_bytes, err))
        return false;
    bool is_ok = td_utf8_valid(text, n_bytes, &i_bad) ||
                 td_err_set(err, TD_E_DATA, "%s: byte %zu is 0x%02x, no UTF-8; allowed: UTF-8",
                            path, i_bad, (unsigned char)text[i_bad]);
    is_ok = is_ok && td_tokenize(t, text, n_bytes, TD_ADD_NOTHING, false, &ids, &n, err);
    td_free(text);
    if (is_ok && n < 2)
        is_ok = td_err_set(err, TD_E_DATA, "%s: %zu tokens; allowed: 2 and more", path, n);
    uint32_t n_each = (uint32_t)(n < PLACE_TOKENS ? n : PLACE_TOKENS);
    uint32_t n_places = is_ok ? td_min_u32(PLACES_MAX, (uint32_t)(n / n_each)) : 0;
    for (uint32_t i = 0; is_ok && i < n_places; i++) {
        size_t at = n_places > 1 ? (n - n_each) * i / (n_places - 1) : 0;
        is_ok = td_eval_write_prompt(r->fd, t, ids + at, n_each, i, err);
    }
    td_free(ids);
    return is_ok;
}

static bool write_prompts(ranking *r, td_err *err)
{
    const td_model *model = r->asked->params.layout.model;
    r->fd = memfd_create("prompts", MFD_CLOEXEC);
    if (r->fd < 0)
        return td_err_set(err, TD_E_IO, "prompts cannot be written to memory");
    snprintf(r->prompts, sizeof r->prompts, "/proc/self/fd/%d", r->fd);
    if (r->asked->text)
        return write_places(r, err);
    td_chat *chat = td_chat_open(td_model_gguf(model), td_model_tokenizer(model), NULL, err);
    bool has_chat = chat && !td_chat_problem(chat) && strcmp(td_chat_describe(chat), "(none)") != 0;
    uint32_t too_long = r->plain.n_ctx < CTX_MAX ? 1u << td_bench_find_prompt("review") : 0;
    bool is_ok = chat && td_bench_write_prompts(r->fd, has_chat, too_long, err);
    td_chat_close(&chat);
    return is_ok;
}

static bool on_finish(void *user, const char *id, const td_sequence_info *info, td_err *err)
{
    (void)err;
    ranking *r = user;
    r->texts ^= td_hash64(td_hash64(1, id, strlen(id)), info->tokens,
                          info->n_tokens * sizeof *info->tokens);
    return true;
}

static void on_error(void *user, const char *id, const char *message)
{
    ranking *r = user;
    snprintf(r->problem, sizeof r->problem, "prompt %.16s: %.200s", id, message);
}

static td_run_params run_params(ranking *r, const candidate *c)
{
    const td_plan_params *p = &r->asked->params;
    td_run_params run = td_eval_run_params(p->layout.model, c->path, r->draft_max, r->prompts);
    run.draft_spec = c->spec;
    run.is_turns = true;
    run.n_specs = r->plain.n_specs;
    run.place = p->layout.place;
    run.n_predict = PREDICT;
    run.kv = p->layout.kv;
    run.draft_kv = *p->layout.draft_kv;
    run.n_ctx = td_min_u32(r->plain.n_ctx, CTX_MAX);
    run.on_finish = on_finish;
    run.on_error = on_error;
    run.user = r;
    for (uint32_t i = 0; i < run.n_specs; i++)
        run.specs[i] = r->plain.specs[i];
    return run;
}

/* Has the target write its texts with the draft, and counts. */
static bool replay(ranking *r, candidate *c, int *signal, td_err *err)
{
    td_run_totals totals = {0};
    td_run_params params = run_params(r, c);
    r->texts = 0;
    r->problem[0] = 0;
    if (!td_run(&params, &totals, signal, err) || *signal)
        return *signal != 0;
    if (!totals.n_drafted)
        return td_err_set(err, TD_E_DATA, "%s",
                          totals.n_error ? r->problem : "nothing was drafted");
    for (uint32_t i = 0; i <= TD_SPEED_DRAFT_MAX; i++) {
        double before = i ? c->survival[i - 1] : 1;
        /* Of the token behind the longest draft nothing is known: as likely as the last. */
        bool is_seen = i < r->draft_max && totals.drafted_at[i];
        double last = i > 1 && c->survival[i - 2] > 0 ? before / c->survival[i - 2] : before;
        c->survival[i] =
            is_seen ? fmin(before, (double)totals.accepted_at[i] / (double)totals.drafted_at[i])
                    : before * last;
    }
    c->texts = r->texts;
    return true;
}

/* -- one draft --------------------------------------------------------------------------------- */

static bool fits_vocabulary(const ranking *r, candidate *c, const td_model *draft, td_err *err)
{
    const td_tokenizer *target = td_model_tokenizer(r->asked->params.layout.model);
    c->vocabulary = 1;
    if (td_vocab_is_same(target, td_model_tokenizer(draft)))
        return true;
    td_vocab_map *map = td_vocab_map_create(target, td_model_tokenizer(draft), err);
    if (!map)
        return false;
    td_vocab_map_info info = td_vocab_map_get_info(map);
    c->vocabulary = (double)info.n_twins / info.n_text;
    td_vocab_map_destroy(&map);
    return true;
}

static bool choose(const ranking *r, const td_model *draft, const double *survival, td_plan *out,
                   td_err *err)
{
    td_plan_params params = r->asked->params;
    td_cache_types kv = *params.layout.draft_kv;
    if (draft && !td_cache_choose_draft(&kv, &params.layout.kv, draft, err))
        return false;
    params.layout.draft_kv = &kv;
    params.draft = draft;
    params.survival = survival;
    params.draft_max = r->draft_max;
    if (survival)
        params.measure = TD_MEASURE_MISSING;
    return td_plan_choose(&params, out, err) &&
           (out->is_measured ||
            td_err_set(err, TD_E_UNAVAILABLE,
                       "times on these devices are not known; software drivers are measured on "
                       "--measure"));
}

/* False: it cannot be used, and err says why. */
static bool measure(ranking *r, candidate *c, int *signal, td_err *err)
{
    td_model *draft = td_model_open(c->path, err);
    td_plan plan;
    bool is_ok = draft && fits_vocabulary(r, c, draft, err) && choose(r, draft, NULL, &plan, err);
    if (is_ok)
        memcpy(c->spec, plan.draft_spec, sizeof c->spec);
    is_ok = is_ok && replay(r, c, signal, err) &&
            (*signal || choose(r, draft, c->survival, &plan, err));
    if (is_ok && !*signal) {
        const td_speed_row *row = &plan.rows[plan.i_chosen];
        memcpy(c->spec, plan.draft_spec, sizeof c->spec);
        c->k = row->i_draft >= 0 ? row->k : 0;
        c->takes_turns = row->takes_turns;
        c->tokens_per_s = row->decode_per_s;
        c->step_us = plan.step_us;
        c->n_bytes = plan.draft_bytes;
    }
    td_model_close(&draft);
    return is_ok;
}

static double expected(const candidate *c)
{
    double sum = 1;
    for (uint32_t i = 0; i < c->k; i++)
        sum += c->survival[i];
    return sum;
}

/* The fastest first; of those that do not pay the one of which most is accepted; last, by name,
 * those that cannot be used. */
static int by_speed(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    if (!x->why[0] != !y->why[0])
        return x->why[0] ? 1 : -1;
    if (x->k && y->k ? x->tokens_per_s != y->tokens_per_s : x->k != y->k)
        return x->k && y->k ? (x->tokens_per_s < y->tokens_per_s ? 1 : -1) : x->k ? -1 : 1;
    if (x->survival[0] != y->survival[0])
        return x->survival[0] < y->survival[0] ? 1 : -1;
    return strcmp(x->path, y->path);
}

static bool measure_all(ranking *r, int *signal, td_err *err)
{
    const candidate *first = NULL;
    for (uint32_t i = 0; i < r->n && !*signal; i++) {
        candidate *c = &r->all[i];
        td_err why = {0};
        if (!measure(r, c, signal, &why)) {
            snprintf(c->why, sizeof c->why, "%.255s", why.message);
            continue;
        }
        if (first && first->texts != c->texts && !*signal)
            return td_err_set(err, TD_E_BUG, "the texts with %s are not those with %s", c->path,
                              first->path);
        first = first ? first : c;
        r->n_usable++;
    }
    if (!r->n_usable && !*signal)
        return td_err_set(
            err, TD_E_UNAVAILABLE, "--drafts: none of %u files can draft for %s; %s: %s", r->n,
            td_model_path(r->asked->params.layout.model), r->all[0].path, r->all[0].why);
    qsort(r->all, r->n, sizeof *r->all, by_speed);
    return true;
}

/* -- showing ----------------------------------------------------------------------------------- */

static const uint32_t rows_shown[] = {1, 2, 4, 8, 9, 16};

static double plain_per_s(const ranking *r)
{
    return r->plain.rows[r->plain.i_chosen].decode_per_s;
}

/* Of drafts of that length; where none pays, of one token. */
static double acceptance(const candidate *c)
{
    return c->k ? (expected(c) - 1) / c->k : c->survival[0];
}

static void print_table(const ranking *r)
{
    const char *target = td_model_name(r->asked->params.layout.model);
    printf("%s alone: %.1f tokens/s; rows of a verification, ms:", target, plain_per_s(r));
    for (size_t i = 0; i < TD_COUNT(rows_shown); i++)
        printf(" %u: %.2f", rows_shown[i], r->plain.verify_us[rows_shown[i]] * 1e-3);
    printf("\n%10s %8s %6s %8s %12s %8s %8s  %-10s draft\n", "tokens/s", "speed-up", "length",
           "accepted", "verification", "step ms", "MiB", "device");
    for (uint32_t i = 0; i < r->n_usable; i++) {
        const candidate *c = &r->all[i];
        printf("%10.1f %8.2f %6u %8.2f %12.2f %8.2f %8.1f  %-10s %s\n", c->tokens_per_s,
               c->tokens_per_s / plain_per_s(r), c->k, acceptance(c), expected(c),
               c->step_us * 1e-3, (double)c->n_bytes / (1 << 20), c->spec, file_name(c->path));
    }
    for (uint32_t i = r->n_usable; i < r->n; i++)
        printf("not used: %s: %s\n", file_name(r->all[i].path), r->all[i].why);
    if (!r->all[0].k)
        printf("No draft is worth its time here: length 0.\n");
}

static void write_candidate(td_json_writer *w, const ranking *r, const candidate *c)
{
    td_json_begin_object(w);
    td_json_put_string(w, "file", c->path);
    td_json_put_string(w, "device", c->spec);
    td_json_put_bool(w, "takes_turns", c->takes_turns);
    td_json_put_double(w, "vocabulary", c->vocabulary);
    td_json_put_u64(w, "bytes", c->n_bytes);
    td_json_put_double(w, "step_ms", c->step_us * 1e-3);
    td_json_put_double(w, "acceptance", acceptance(c));
    td_json_write_key(w, "survival");
    td_json_begin_array(w);
    for (uint32_t i = 0; i < r->draft_max; i++)
        td_json_write_double(w, c->survival[i]);
    td_json_end_array(w);
    td_json_put_u64(w, "draft_tokens", c->k);
    td_json_put_double(w, "tokens_per_verification", expected(c));
    td_json_put_double(w, "tokens_per_second", c->tokens_per_s);
    td_json_put_double(w, "speedup", c->tokens_per_s / plain_per_s(r));
    td_json_end_object(w);
}

static void write_ranking(td_json_writer *w, const ranking *r)
{
    td_json_begin_object(w);
    td_json_put_string(w, "model", td_model_path(r->asked->params.layout.model));
    td_json_put_double(w, "tokens_per_second", plain_per_s(r));
    td_json_write_key(w, "verify_ms");
    td_json_begin_array(w);
    for (uint32_t i = 1; i <= TD_SPEED_DRAFT_MAX + 1; i++)
        td_json_write_double(w, r->plain.verify_us[i] * 1e-3);
    td_json_end_array(w);
    td_json_write_key(w, "drafts");
    td_json_begin_array(w);
    for (uint32_t i = 0; i < r->n_usable; i++)
        write_candidate(w, r, &r->all[i]);
    td_json_end_array(w);
    td_json_write_key(w, "not_used");
    td_json_begin_array(w);
    for (uint32_t i = r->n_usable; i < r->n; i++) {
        td_json_begin_object(w);
        td_json_put_string(w, "file", r->all[i].path);
        td_json_put_string(w, "why", r->all[i].why);
        td_json_end_object(w);
    }
    td_json_end_array(w);
    td_json_end_object(w);
}

/* Of a draft that does not pay, nothing. */
static void write_config(td_json_writer *w, const ranking *r)
{
    const td_plan_params *p = &r->asked->params;
    const candidate *best = &r->all[0];
    td_json_begin_object(w);
    td_json_write_key(w, "target");
    td_json_begin_object(w);
    td_json_put_string(w, "model", td_model_path(p->layout.model));
    if (p->uses_all) {
        td_json_write_key(w, "devices");
        td_json_begin_array(w);
        for (uint32_t i = 0; i < p->layout.n_specs; i++)
            td_json_write_string(w, p->layout.specs[i]);
        td_json_end_array(w);
    }
    td_json_end_object(w);
    if (best->k) {
        td_json_write_key(w, "draft");
        td_json_begin_object(w);
        td_json_put_string(w, "model", best->path);
        td_json_put_string(w, "device", best->spec);
        td_json_put_u64(w, "max", best->k);
        td_json_end_object(w);
    }
    td_json_end_object(w);
}

static bool show(const ranking *r, td_err *err)
{
    const char *text, *path = r->asked->config;
    size_t n_bytes;
    td_json_writer *w = td_json_writer_create(true, err);
    bool is_ok = w;
    if (is_ok && r->asked->is_json) {
        write_ranking(w, r);
        is_ok = td_json_writer_end(w, &text, &n_bytes, err);
        if (is_ok)
            puts(text);
    } else if (is_ok) {
        print_table(r);
    }
    if (is_ok && path) {
        write_config(w, r);
        is_ok = td_json_writer_end(w, &text, &n_bytes, err) &&
                td_io_replace_file(path, text, n_bytes, err);
    }
    td_json_writer_destroy(&w);
    return is_ok;
}

bool td_plan_drafts(const plan_drafts *asked, int *signal, td_err *err)
{
    ranking r = {.asked = asked, .fd = -1};
    r.draft_max = asked->params.draft_max ? asked->params.draft_max : DRAFT_DEFAULT;
    r.all = td_alloc(FILES_MAX, sizeof *r.all, err);
    bool is_ok = r.all && list_files(&r, err) && choose(&r, NULL, NULL, &r.plain, err) &&
                 write_prompts(&r, err) && measure_all(&r, signal, err) &&
                 (*signal || show(&r, err));
    if (r.fd >= 0)
        close(r.fd);
    td_free(r.all);
    return is_ok;
}
