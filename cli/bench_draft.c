/* Measuring a pair: plain decoding and speculation with each draft length, and with lengths chosen
 * as generate does, turn by turn, on models that are loaded once. Each speed-up is against the
 * plain run of its own round.
 *
 * The first plain run's tokens are kept: every other run must give the same (law 1), and with
 * --accept P they are what drafts are made of. The draft then computes its steps as ever, but each
 * token of its proposal is replaced by the true one with probability P, else by a wrong one, by a
 * coin of (seed, text, position). So any acceptance can be tried with the draft's real cost; a real
 * draft's is a little lower, for it holds what was accepted and need not read it again. Draft and
 * target take turns then, for what a draft goes on from is its own text. */
#include "cli/bench.h"

#include "base/check.h"
#include "base/mem.h"
#include "base/rng.h"
#include "run/run.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define TEXTS_MAX 65536u

static const char prompts[] = "{\"prompt\": \"Once upon a time there was\"}\n"
                              "{\"prompt\": \"The history of the city begins with\"}\n"
                              "{\"prompt\": \"To sort a list of numbers, first\"}\n"
                              "{\"prompt\": \"Dear friend, I am writing to you because\"}\n";

typedef struct {
    char *id;
    uint32_t *tokens, n_tokens;
} text;

typedef struct {
    const bench_params *params;
    uint32_t n_vocab;
    text *texts; /* [n_texts] of the first plain run */
    uint32_t n_texts, capacity, i_last;
    uint64_t n_other; /* texts of this run that differ from the first run's */
    bool is_first;
} pair;

/* The text of an id, or NULL. Calls of one text come together: the last one is looked at first. */
static const text *find_text(pair *p, const char *id)
{
    for (uint32_t i = 0; i < p->n_texts; i++) {
        uint32_t k = (p->i_last + i) % p->n_texts;
        if (!strcmp(p->texts[k].id, id)) {
            p->i_last = k;
            return &p->texts[k];
        }
    }
    return NULL;
}

static bool keep_text(pair *p, const char *id, const td_sequence_info *info, td_err *err)
{
    if (p->n_texts == TEXTS_MAX)
        return td_err_set(err, TD_E_DATA, "--in: more than %u prompts", TEXTS_MAX);
    if (p->n_texts == p->capacity) {
        uint32_t capacity = p->capacity ? 2 * p->capacity : 64;
        text *grown = td_realloc(p->texts, p->capacity, capacity, sizeof *grown, err);
        if (!grown)
            return false;
        p->texts = grown;
        p->capacity = capacity;
    }
    text *t = &p->texts[p->n_texts++];
    *t = (text){.id = td_strndup(id, strlen(id), err),
                .tokens = td_alloc(info->n_tokens, sizeof *t->tokens, err),
                .n_tokens = info->n_tokens};
    if (!t->id || !t->tokens)
        return false;
    memcpy(t->tokens, info->tokens, info->n_tokens * sizeof *t->tokens);
    return true;
}

static bool on_finish(void *user, const char *id, const td_sequence_info *info, td_err *err)
{
    pair *p = user;
    if (p->is_first)
        return keep_text(p, id, info, err);
    const text *t = find_text(p, id);
    p->n_other += !t || t->n_tokens != info->n_tokens ||
                  memcmp(t->tokens, info->tokens, info->n_tokens * sizeof *t->tokens);
    return true;
}

static void on_draft(void *user, const char *id, uint32_t i_token, uint32_t *ids, uint32_t n_ids)
{
    pair *p = user;
    const text *t = find_text(p, id);
    uint64_t stream = td_hash64(p->params->seed, id, strlen(id));
    double limit = (double)p->params->accept * 4294967296.0;
    for (uint32_t i = 0; t && i < n_ids && i_token + i < t->n_tokens; i++) {
        uint32_t right = t->tokens[i_token + i];
        bool is_right = td_noise_bits(stream, i_token + i, 0) < limit;
        ids[i] = is_right ? right : (right + 1) % p->n_vocab;
    }
}

/* A file of the built-in prompts that goes with its descriptor. */
static int open_prompts(char *path, size_t n_bytes, td_err *err)
{
    int fd = memfd_create("prompts", MFD_CLOEXEC);
    if (fd < 0 || write(fd, prompts, sizeof prompts - 1) != (ssize_t)sizeof prompts - 1)
        td_err_set(err, TD_E_IO, "the built-in prompts cannot be written to memory");
    snprintf(path, n_bytes, "/proc/self/fd/%d", fd);
    return fd;
}

static td_run_params run_params(const bench_params *b)
{
    td_run_params p = {.target_path = b->models.items[0],
                       .draft_path = b->draft,
                       .draft_spec = b->draft_device,
                       .n_specs = b->devices.n,
                       .is_trusting = true, /* speeds tell of a wrong device too */
                       .in_path = b->in_path,
                       .out_path = "/dev/null",
                       .n_predict = b->n_predict,
                       .sampling = TD_SAMPLING_DEFAULTS,
                       .seed = b->seed,
                       .ignore_eos = true,
                       .type_k = b->types_k[0],
                       .type_v = b->types_v[0],
                       .n_parallel = b->n_parallel};
    memcpy(p.specs, b->devices.items, sizeof p.specs);
    p.sampling.temperature = b->temperature;
    return p;
}

/* One run with drafts of k tokens (0: plain), added to its test. */
static bool run_once(pair *p, td_run_session *session, td_run_params *params, bench_test *t,
                     bool is_warm_up, int *signal, td_err *err)
{
    td_run_totals totals;
    params->draft_max = t->k;
    params->draft_fixed = t->is_chosen ? 0 : t->k;
    params->is_turns = p->params->accept >= 0;
    params->on_draft = t->k && p->params->accept >= 0 ? on_draft : NULL;
    p->n_other = 0;
    if (!td_run_go(session, params, &totals, signal, err))
        return false;
    if (t->k && !*signal && (!totals.n_draft_joins || totals.n_draft_losses))
        return td_err_set(err, TD_E_UNAVAILABLE, "draft: lost while it was measured");
    if (totals.n_error || !totals.n_tokens)
        return *signal ||
               td_err_set(err, TD_E_DATA, "%llu of %llu prompts failed; `tandem generate` says why",
                          (unsigned long long)totals.n_error,
                          (unsigned long long)(totals.n_error + totals.n_ok));
    t->is_same_text = t->is_same_text && !p->n_other;
    if (is_warm_up)
        return true;
    t->n_tokens = (double)totals.n_tokens;
    t->seconds.values[t->seconds.n++] = (double)(totals.end_us - totals.start_us) * 1e-6;
    t->n_drafted += totals.n_drafted;
    t->n_accepted += totals.n_accepted;
    t->n_rounds += totals.n_rounds;
    t->n_proposed += totals.n_proposed;
    t->prefill_us += totals.prefill_us;
    t->verify_us += totals.verify_us;
    t->draft_us += totals.draft_us;
    for (uint32_t i = 0; i < TD_ENERGY_SOURCES_MAX; i++)
        t->joules[i] += totals.joules[i];
    return true;
}

/* The first round warms up, and its plain run gives the texts. */
static bool run_rounds(pair *p, td_run_session *session, td_run_params *params, bench_test *tests,
                       uint32_t n_tests, int *signal, td_err *err)
{
    for (uint32_t r = 0; r <= p->params->n_repeats; r++)
        for (uint32_t i = 0; i < n_tests; i++) {
            bench_test *t = &tests[i];
            p->is_first = r == 0 && i == 0;
            if (!run_once(p, session, params, t, r == 0, signal, err))
                return false;
            if (*signal)
                return true;
            if (r > 0)
                t->speedups.values[t->speedups.n++] =
                    tests[0].seconds.values[r - 1] / t->seconds.values[r - 1];
        }
    return true;
}

static bool measure(pair *p, td_run_params *params, int *signal, td_err *err)
{
    const bench_params *b = p->params;
    bench_test tests[2 + BENCH_LIST_MAX] = {0};
    uint32_t n_tests = 1 + b->draft_max.n, longest = 0;
    bench_case c = {0};
    td_energy *energy = td_energy_open(NULL, err);
    td_run_session *session = energy ? td_run_open(params, err) : NULL;
    for (uint32_t i = 0; i < b->draft_max.n; i++)
        longest = td_max_u32(longest, b->draft_max.items[i]);
    for (uint32_t i = 0; i <= n_tests; i++)
        tests[i] = (bench_test){.kind = BENCH_PAIR,
                                .c = NAN,
                                .n_bytes = NAN,
                                .k = i == 0        ? 0
                                     : i < n_tests ? b->draft_max.items[i - 1]
                                                   : longest,
                                .is_chosen = i == n_tests,
                                .is_same_text = true};
    n_tests += b->accept < 0;
    bool is_ok = session;
    if (is_ok) {
        const td_model *model = td_run_model(session);
        p->n_vocab = td_model_hparams(model)->n_vocab;
        td_bench_describe(&c, model, b->types_k[0], b->types_v[0]);
        c.draft_device = td_run_draft_device(session);
        td_run_device(session, c.device, sizeof c.device);
    }
    is_ok = is_ok && run_rounds(p, session, params, tests, n_tests, signal, err);
    if (is_ok && !*signal) {
        bench_output out = {.format = b->format, .params = b, .energy = energy, .is_pair = true};
        is_ok = td_bench_output_case(&out, &c, tests, n_tests, err);
        td_bench_output_end(&out);
    }
    for (uint32_t i = 0; is_ok && !*signal && i < n_tests; i++)
        if (!tests[i].is_same_text)
            is_ok = td_err_set(err, TD_E_BUG, "drafts of %u tokens changed the text", tests[i].k);
    td_run_close(&session);
    td_energy_close(&energy);
    return is_ok;
}

bool td_bench_pair(const bench_params *b, int *signal, td_err *err)
{
    pair p = {.params = b};
    td_run_params params = run_params(b);
    char path[64];
    int fd = -1;
    params.user = &p;
    params.on_finish = on_finish;
    if (!b->in_path) {
        fd = open_prompts(path, sizeof path, err);
        params.in_path = path;
    }
    bool is_ok = (b->in_path || err->code == TD_OK) && measure(&p, &params, signal, err);
    for (uint32_t i = 0; i < p.n_texts; i++) {
        td_free(p.texts[i].id);
        td_free(p.texts[i].tokens);
    }
    td_free(p.texts);
    if (fd >= 0)
        close(fd);
    return is_ok;
}
