/* Measuring guesses: a pair, or with --prompts each of a set of prompts.
 *
 * A pair: plain decoding and speculation with each draft length, and with lengths chosen
 * as generate does, turn by turn, on models that are loaded once. Each speed-up is against the
 * plain run of its own round.
 *
 * The first plain run's tokens are kept: every other run must give the same (law 1), and with
 * --accept P they are what drafts are made of. The draft then computes its steps as ever, but each
 * token of its proposal is replaced by the true one with probability P, else by a wrong one, by a
 * coin of (seed, text, position). So any acceptance can be tried with the draft's real cost; a real
 * draft's is a little lower, for it holds what was accepted and need not read it again. Draft and
 * target take turns then, for what a draft goes on from is its own text.
 *
 * Prompts: plain decoding, the draft if there is one, and what is found in the texts, in turns, one
 * prompt after another, up to its end-of-text token. What the run before has found is forgotten:
 * the same prompts would find themselves. */
#include "cli/bench.h"

#include "base/check.h"
#include "base/io.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/rng.h"
#include "run/run.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define TEXTS_MAX 65536u
#define K_LONGEST 8u /* as generate has it */

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
    bool is_first, is_warm_up;
    char problem[256]; /* of the last prompt that gave no text */
    int fd;            /* of the built-in prompts */
    char path[64];
    /* --prompts: [n_prompts + 1][n_modes], all of them last; the one whose turn it is. */
    bench_test *rows;
    uint32_t n_modes, i_mode, left_out;
    bool is_chat;
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

static void on_error(void *user, const char *id, const char *message)
{
    pair *p = user;
    snprintf(p->problem, sizeof p->problem, "%.60s: %.180s", id, message);
    if (p->rows)
        p->left_out |= 1u << td_bench_find_prompt(id);
}

static bool on_finish(void *user, const char *id, const td_sequence_info *info, td_err *err)
{
    pair *p = user;
    if (p->rows && !p->is_warm_up)
        td_bench_add_prompt(p->rows, p->n_modes, p->i_mode, id, info);
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

/* A file that goes with its descriptor. */
static bool open_prompts(pair *p, td_err *err)
{
    p->fd = memfd_create("prompts", MFD_CLOEXEC);
    snprintf(p->path, sizeof p->path, "/proc/self/fd/%d", p->fd);
    return p->fd >= 0 ||
           td_err_set(err, TD_E_IO, "the built-in prompts cannot be written to memory");
}

/* As messages where the file says how those are written. */
static bool write_prompts(pair *p, const td_chat *chat, bench_case *c, td_err *err)
{
    if (!p->params->is_prompts)
        return td_io_write_all(p->fd, "prompts", prompts, sizeof prompts - 1, err);
    c->chat = td_chat_problem(chat) ? "(none)" : td_chat_describe(chat);
    p->is_chat = strcmp(c->chat, "(none)") != 0;
    return td_bench_write_prompts(p->fd, p->is_chat, 0, err);
}

/* What has no room in the context will have none in the next run. */
static bool leave_out(pair *p, td_err *err)
{
    td_log_warn("the table is without the prompts that failed");
    return (ftruncate(p->fd, 0) == 0 && lseek(p->fd, 0, SEEK_SET) == 0 &&
            td_bench_write_prompts(p->fd, p->is_chat, p->left_out, err)) ||
           td_err_set(err, TD_E_IO, "the built-in prompts cannot be written to memory");
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
                       .ignore_eos = !b->is_prompts,
                       .kv = td_bench_cache(b, 0),
                       .draft_kv = b->draft_kv,
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
    params->is_ngram = t->is_ngram;
    params->draft_path = t->is_ngram ? NULL : p->params->draft;
    params->is_turns = p->params->accept >= 0;
    params->on_draft = t->k && p->params->accept >= 0 ? on_draft : NULL;
    p->n_other = 0;
    if (!td_run_go(session, params, &totals, signal, err))
        return false;
    if (t->k && !t->is_ngram && !*signal && (!totals.n_draft_joins || totals.n_draft_losses))
        return td_err_set(err, TD_E_UNAVAILABLE, "draft: lost while it was measured");
    if ((totals.n_error && !p->rows) || !totals.n_tokens)
        return *signal ||
               td_err_set(err, TD_E_DATA, "%llu of %llu prompts failed; %s",
                          (unsigned long long)totals.n_error,
                          (unsigned long long)(totals.n_error + totals.n_ok), p->problem);
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
            p->is_warm_up = r == 0;
            p->i_mode = i;
            if (!run_once(p, session, params, t, r == 0, signal, err))
                return false;
            if (*signal)
                return true;
            if (p->is_first && p->left_out && !leave_out(p, err))
                return false;
            if (r > 0)
                t->speedups.values[t->speedups.n++] =
                    tests[0].seconds.values[r - 1] / t->seconds.values[r - 1];
        }
    return true;
}

/* Plain decoding, each k, and k chosen, of prompts by n-grams too. */
static uint32_t make_tests(const bench_params *b, bench_test *tests)
{
    uint32_t n = 0, longest = b->draft_max.n ? 0 : K_LONGEST;
    for (uint32_t i = 0; i < b->draft_max.n; i++)
        longest = td_max_u32(longest, b->draft_max.items[i]);
    tests[n++] = (bench_test){.k = 0};
    for (uint32_t is_ngram = !b->draft; is_ngram <= b->is_prompts; is_ngram++) {
        for (uint32_t i = 0; i < b->draft_max.n; i++)
            tests[n++] = (bench_test){.k = b->draft_max.items[i], .is_ngram = is_ngram};
        if (b->accept < 0)
            tests[n++] = (bench_test){.k = longest, .is_chosen = true, .is_ngram = is_ngram};
    }
    for (uint32_t i = 0; i < n; i++) {
        tests[i].kind = BENCH_PAIR;
        tests[i].is_same_text = true;
        tests[i].c = tests[i].n_bytes = NAN;
    }
    return n;
}

static bool make_rows(pair *p, const bench_test *tests, uint32_t n_tests, td_err *err)
{
    uint32_t n_prompts = td_bench_n_prompts();
    p->n_modes = n_tests;
    p->rows = td_alloc((n_prompts + 1) * n_tests, sizeof *p->rows, err);
    for (uint32_t i = 0; p->rows && i < (n_prompts + 1) * n_tests; i++) {
        p->rows[i] = tests[i % n_tests];
        p->rows[i].kind = BENCH_PROMPT;
        p->rows[i].prompt = i / n_tests < n_prompts ? td_bench_prompt_name(i / n_tests) : "all";
    }
    return p->rows;
}

static bool show(pair *p, bench_output *out, const bench_case *c, bench_test *tests,
                 uint32_t n_tests, td_err *err)
{
    if (p->rows) {
        tests = p->rows;
        n_tests = td_bench_sum_prompts(p->rows, n_tests);
    }
    bool is_ok = td_bench_output_case(out, c, tests, n_tests, err);
    td_bench_output_end(out);
    return is_ok;
}

static bool measure(pair *p, td_run_params *params, int *signal, td_err *err)
{
    const bench_params *b = p->params;
    bench_test tests[1 + 2 * (BENCH_LIST_MAX + 1)] = {0};
    uint32_t n_tests = make_tests(b, tests);
    bench_case c = {0};
    td_energy *energy = td_energy_open(NULL, err);
    td_run_session *session = energy ? td_run_open(params, err) : NULL;
    bool is_ok = session;
    if (is_ok) {
        const td_model *model = td_run_model(session);
        p->n_vocab = td_model_hparams(model)->n_vocab;
        td_bench_describe(&c, model, td_run_cache(session));
        c.draft_device = td_run_draft_device(session);
        td_run_device(session, c.device, sizeof c.device);
        is_ok = (b->in_path || write_prompts(p, td_run_chat(session), &c, err)) &&
                (!b->is_prompts || make_rows(p, tests, n_tests, err));
    }
    is_ok = is_ok && run_rounds(p, session, params, tests, n_tests, signal, err);
    if (is_ok && !*signal) {
        bench_output out = {.format = b->format,
                            .params = b,
                            .energy = b->is_prompts ? NULL : energy, /* it is not known by prompt */
                            .is_pair = true};
        is_ok = show(p, &out, &c, tests, n_tests, err);
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
    pair p = {.params = b, .fd = -1};
    td_run_params params = run_params(b);
    params.user = &p;
    params.on_finish = on_finish;
    params.on_error = on_error;
    bool is_ok = b->in_path || open_prompts(&p, err);
    if (is_ok && !b->in_path)
        params.in_path = p.path;
    is_ok = is_ok && measure(&p, &params, signal, err);
    for (uint32_t i = 0; i < p.n_texts; i++) {
        td_free(p.texts[i].id);
        td_free(p.texts[i].tokens);
    }
    td_free(p.texts);
    td_free(p.rows);
    if (p.fd >= 0)
        close(p.fd);
    return is_ok;
}
