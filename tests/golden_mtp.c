/* Heads for multi-token prediction against a reference implementation: the trunk's hidden rows, the
 * head's logits and rows over a prompt, chained steps, steps after verifications of which some rows
 * were accepted, and whole texts whose proposals and acceptances must be the reference's.
 *
 * What the cases are and what is in their files: tests/data/golden/README.md. */
#include "tests/e2e_law1.h"
#include "tests/golden_data.h"

#include "gguf_edit.h"

#include <math.h>

#define TOL       1e-3 /* of an f32 engine with an f32 cache */
#define N_DRAFT   4u   /* rows of draft_logits.bin */
#define N_VERIFY  4u   /* entries of verify */
#define N_AFTER   2u   /* drafted after each */
#define ROUND_MAX 4u   /* rows of a verification: the token and its proposals */

typedef struct {
    char name[256], dir[800];
    json_t *golden;
    td_model *model;
    uint32_t n_vocab, n_embd, n_prompt, n_greedy;
    uint32_t *prompt, *greedy;
    float *logits, *hidden, *head_logits, *head_hidden; /* [n_prompt] */
    float *draft_logits, *draft_hidden, *verify_hidden, *verify_draft_logits;
} mtp_case;

/* -- data -------------------------------------------------------------------------------------- */

static float *load_rows(const mtp_case *c, const char *name, size_t n_rows, uint32_t n_cols)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s.bin", c->dir, name);
    return load_floats(path, n_rows * n_cols);
}

static uint32_t number(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    assert_true(json_is_integer(value));
    return (uint32_t)json_integer_value(value);
}

static void open_case(mtp_case *c, const char *folder, const char *name)
{
    char path[1024];
    td_err err = {0};
    *c = (mtp_case){0};
    snprintf(c->name, sizeof c->name, "%s", name);
    snprintf(c->dir, sizeof c->dir, "%s/%s", folder, name);
    snprintf(path, sizeof path, "%s/golden.json", c->dir);
    c->golden = load_json(path);
    snprintf(path, sizeof path, "%s/model.gguf", c->dir);
    c->model = td_model_open(path, &err);
    if (!c->model || !td_model_check_head(c->model, &err))
        fail_msg("%s: %s", name, err.message);
    assert_int_equal(td_model_hparams(c->model)->n_layer, number(c->golden, "nextn_block"));
    c->n_vocab = number(c->golden, "n_vocab");
    c->n_embd = number(c->golden, "n_embd");
    c->prompt = load_ids(json_object_get(c->golden, "prompt_tokens"), &c->n_prompt);
    c->greedy = load_ids(json_object_get(c->golden, "greedy_tokens"), &c->n_greedy);
    c->logits = load_rows(c, "logits", c->n_prompt, c->n_vocab);
    c->hidden = load_rows(c, "hidden", c->n_prompt, c->n_embd);
    c->head_logits = load_rows(c, "head_logits", c->n_prompt, c->n_vocab);
    c->head_hidden = load_rows(c, "head_hidden", c->n_prompt, c->n_embd);
    c->draft_logits = load_rows(c, "draft_logits", N_DRAFT, c->n_vocab);
    c->draft_hidden = load_rows(c, "draft_hidden", N_DRAFT, c->n_embd);
    c->verify_hidden = load_rows(c, "verify_hidden", N_VERIFY * ROUND_MAX, c->n_embd);
    c->verify_draft_logits = load_rows(c, "verify_draft_logits", N_VERIFY * N_AFTER, c->n_vocab);
}

static void close_case(mtp_case *c)
{
    td_model_close(&c->model);
    json_decref(c->golden);
    float *rows[] = {c->logits,       c->hidden,       c->head_logits,   c->head_hidden,
                     c->draft_logits, c->draft_hidden, c->verify_hidden, c->verify_draft_logits};
    for (size_t i = 0; i < TD_COUNT(rows); i++)
        free(rows[i]);
    free(c->prompt);
    free(c->greedy);
}

/* -- the model and its head, by hand ----------------------------------------------------------- */

typedef struct {
    const mtp_case *c;
    td_chain *chain;
    td_forward *last;
    float hidden[2 * TD_PREFILL_ROWS_MAX * 64]; /* [n_embd] of each position that was run */
    double worst[6];                            /* by `what` below */
} walk;

enum { LOGITS, HIDDEN, HEAD, HEAD_HIDDEN, CHAIN, AFTER };
static const char *const what[] = {"logits", "hidden", "head", "head hidden", "draft", "verify"};

static void compare(walk *w, int i, const float *got, const float *want, uint32_t n)
{
    for (uint32_t k = 0; k < n; k++) {
        double e = fabs((double)got[k] - (double)want[k]);
        if (!(e <= w->worst[i]))
            w->worst[i] = e; /* a NaN stays */
    }
}

static uint32_t argmax(const float *logits, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

static td_chain *load(const mtp_case *c, const placement *p, bool has_head)
{
    td_err err = {0};
    td_chain *chain = td_chain_create(
        &(td_layout_params){.model = c->model,
                            .head = has_head ? c->model : NULL,
                            .specs = p->specs,
                            .n_specs = p->n_specs,
                            .kv = {.k = td_type_find(TD_TYPE_F32), .v = td_type_find(TD_TYPE_F32)},
                            .n_slots = 1,
                            .n_ctx = 256,
                            .is_all_logits = true},
        &err);
    if (!chain)
        fail_msg("%s on %s: %s", c->name, p->name, err.message);
    return chain;
}

static float *hidden_at(walk *w, uint32_t position)
{
    assert_true((position + 1) * w->c->n_embd <= TD_COUNT(w->hidden));
    return w->hidden + (size_t)position * w->c->n_embd;
}

static void make_rows(td_forward_row *rows, const uint32_t *tokens, uint32_t position, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        rows[i] = (td_forward_row){.position = position + i, .token = tokens[i], .is_output = true};
}

/* The trunk; its hidden rows are kept. */
static const float *run(walk *w, td_mode mode, const uint32_t *tokens, uint32_t position,
                        uint32_t n)
{
    td_forward_row rows[TD_PREFILL_ROWS_MAX];
    td_err err = {0};
    make_rows(rows, tokens, position, n);
    if (!td_chain_run(w->chain, mode, rows, n, &err))
        fail_msg("%s", err.message);
    if (w->last)
        memcpy(hidden_at(w, position), td_forward_hidden(w->last),
               (size_t)n * w->c->n_embd * sizeof(float));
    return td_chain_logits(w->chain);
}

/* The head on the pairs of these tokens with the trunk's rows, but for the first. */
static const float *run_head(walk *w, td_mode mode, const uint32_t *tokens, uint32_t position,
                             uint32_t n, const float *first)
{
    td_forward_row rows[TD_PREFILL_ROWS_MAX];
    static float in[TD_PREFILL_ROWS_MAX * 64];
    size_t row = w->c->n_embd * sizeof(float);
    td_err err = {0};
    make_rows(rows, tokens, position, n);
    for (uint32_t i = 0; i < n; i++) {
        float *to = in + (size_t)i * w->c->n_embd;
        if (i == 0 && first)
            memcpy(to, first, row);
        else if (position + i == 0)
            memset(to, 0, row);
        else
            memcpy(to, hidden_at(w, position + i - 1), row);
    }
    td_cache *cache = td_forward_cache(w->last);
    if (position + n > td_cache_length(cache, 0))
        assert_true(td_cache_reserve(cache, 0, position + n, &err));
    if (!td_forward_run_head(w->last, mode, rows, in, n, &err))
        fail_msg("%s", err.message);
    return td_forward_output(w->last);
}

/* Catches the head up with tokens[position..], of which the last is not in the trunk's cache yet,
 * then chains: n ids. Both caches are cut to `position + n_tokens - 1` again. */
static void draft(walk *w, const uint32_t *tokens, uint32_t position, uint32_t n_tokens, uint32_t n,
                  uint32_t *ids, int kind, const float *logits, const float *hidden)
{
    const uint32_t n_vocab = w->c->n_vocab, n_embd = w->c->n_embd;
    uint32_t end = position + n_tokens - 1;
    float y[64];
    for (uint32_t i = 0; i < n; i++) {
        const float *got = i ? run_head(w, TD_MODE_VERIFY, &ids[i - 1], end + i, 1, y)
                             : run_head(w, TD_MODE_VERIFY, tokens, position, n_tokens, NULL) +
                                   (size_t)(n_tokens - 1) * n_vocab;
        memcpy(y, td_forward_head_hidden(w->last) + (i ? 0 : (size_t)(n_tokens - 1) * n_embd),
               n_embd * sizeof *y);
        ids[i] = argmax(got, n_vocab);
        if (logits)
            compare(w, kind, got, logits + (size_t)i * n_vocab, n_vocab);
        if (hidden)
            compare(w, kind, y, hidden + (size_t)i * n_embd, n_embd);
    }
    td_cache_truncate(td_forward_cache(w->last), 0, end);
}

/* The prompt in pieces of so many rows, the head's pass behind each. */
static void run_prompt(walk *w, td_mode mode, uint32_t n_rows)
{
    const mtp_case *c = w->c;
    td_chain_rewind(w->chain, 0, 0);
    for (uint32_t at = 0; at < c->n_prompt; at += n_rows) {
        uint32_t n = td_min_u32(n_rows, c->n_prompt - at);
        const float *logits = run(w, mode, c->prompt + at, at, n);
        compare(w, LOGITS, logits, c->logits + (size_t)at * c->n_vocab, n * c->n_vocab);
        compare(w, HIDDEN, hidden_at(w, at), c->hidden + (size_t)at * c->n_embd, n * c->n_embd);
        logits = run_head(w, mode, c->prompt + at, at, n, NULL);
        compare(w, HEAD, logits, c->head_logits + (size_t)at * c->n_vocab, n * c->n_vocab);
        compare(w, HEAD_HIDDEN, td_forward_head_hidden(w->last),
                c->head_hidden + (size_t)at * c->n_embd, n * c->n_embd);
        td_chain_commit(w->chain, 0, at + n);
    }
}

static void truncate_all(walk *w, uint32_t length)
{
    for (uint32_t i = 0; i < w->chain->layout->n_parts; i++)
        td_cache_truncate(td_forward_cache(w->chain->forwards[i]), 0, length);
}

static void check_chain(walk *w)
{
    uint32_t ids[N_DRAFT], n_wanted;
    const json_t *entry = json_object_get(w->c->golden, "draft");
    uint32_t *wanted = load_ids(json_object_get(entry, "ids"), &n_wanted);
    uint32_t last = number(entry, "id_last");
    assert_int_equal(n_wanted, N_DRAFT);
    draft(w, &last, w->c->n_prompt, 1, N_DRAFT, ids, CHAIN, w->c->draft_logits, w->c->draft_hidden);
    assert_memory_equal(ids, wanted, sizeof ids);
    free(wanted);
}

static void check_verifications(walk *w)
{
    const mtp_case *c = w->c;
    const json_t *entries = json_object_get(c->golden, "verify"), *entry;
    size_t i;
    assert_int_equal(json_array_size(entries), N_VERIFY);
    json_array_foreach(entries, i, entry)
    {
        uint32_t n, n_ids, ids[N_AFTER], rows[ROUND_MAX + 1] = {c->greedy[0]};
        uint32_t *proposals = load_ids(json_object_get(entry, "proposals"), &n);
        uint32_t *wanted = load_ids(json_object_get(entry, "draft_ids"), &n_ids);
        uint32_t accepted = number(entry, "accepted");
        assert_true(n + 1 == ROUND_MAX && n_ids == N_AFTER && accepted <= n);
        memcpy(rows + 1, proposals, n * sizeof *rows);
        run(w, TD_MODE_VERIFY, rows, c->n_prompt, ROUND_MAX);
        compare(w, AFTER, hidden_at(w, c->n_prompt), c->verify_hidden + i * ROUND_MAX * c->n_embd,
                ROUND_MAX * c->n_embd);
        truncate_all(w, c->n_prompt + 1 + accepted);
        assert_int_equal(number(entry, "pos0"), c->n_prompt + 1 + accepted);
        rows[1 + accepted] = number(entry, "id_last");
        draft(w, rows, c->n_prompt, 2 + accepted, N_AFTER, ids, AFTER,
              c->verify_draft_logits + i * N_AFTER * c->n_vocab, NULL);
        assert_memory_equal(ids, wanted, sizeof ids);
        truncate_all(w, c->n_prompt);
        free(proposals);
        free(wanted);
    }
}

/* Rounds of k proposals, against those of the reference. */
static void check_text(walk *w, uint32_t k_max)
{
    const mtp_case *c = w->c;
    char key[16];
    snprintf(key, sizeof key, "k%u", k_max);
    const json_t *all = json_object_get(c->golden, "end_to_end");
    const json_t *rounds = json_object_get(json_object_get(all, key), "rounds"), *round;
    uint32_t n_predict = number(all, "n_predict"), n_text = 1, n_paired = c->n_prompt;
    uint32_t text[64] = {c->greedy[0]};
    assert_true(n_predict <= TD_COUNT(text) - ROUND_MAX && n_predict == c->n_greedy);
    size_t i;
    json_array_foreach(rounds, i, round)
    {
        uint32_t n_wanted, rows[ROUND_MAX], at = c->n_prompt + n_text - 1;
        uint32_t *wanted = load_ids(json_array_get(round, 2), &n_wanted), accepted = 0;
        uint32_t k = td_min_u32(k_max, n_predict - n_text - 1);
        assert_int_equal(json_integer_value(json_array_get(round, 0)), at);
        assert_int_equal(json_integer_value(json_array_get(round, 1)), text[n_text - 1]);
        assert_int_equal(n_wanted, k);
        rows[0] = text[n_text - 1];
        draft(w, text + (n_paired - c->n_prompt), n_paired, at + 1 - n_paired, k, rows + 1, AFTER,
              NULL, NULL);
        assert_memory_equal(rows + 1, wanted, k * sizeof *wanted);
        n_paired = at + 1;
        const float *logits = run(w, TD_MODE_VERIFY, rows, at, k + 1);
        while (accepted < k &&
               argmax(logits + (size_t)accepted * c->n_vocab, c->n_vocab) == rows[accepted + 1])
            text[n_text++] = rows[++accepted];
        text[n_text++] = argmax(logits + (size_t)accepted * c->n_vocab, c->n_vocab);
        assert_int_equal(json_integer_value(json_array_get(round, 3)), accepted);
        truncate_all(w, at + 1 + accepted);
        td_chain_commit(w->chain, 0, at + 1 + accepted);
        free(wanted);
    }
    assert_in_range(n_text, n_predict - 1, n_predict); /* for the last token nothing is drafted */
    assert_memory_equal(text, c->greedy, n_text * sizeof *text);
}

/* A head changes no bit of the trunk. */
static void check_trunk(walk *w, const placement *p)
{
    const mtp_case *c = w->c;
    size_t n = (size_t)c->n_prompt * c->n_vocab;
    float *with = calloc(n, sizeof *with);
    assert_non_null(with);
    td_chain_rewind(w->chain, 0, 0);
    memcpy(with, run(w, TD_MODE_PREFILL, c->prompt, 0, c->n_prompt), n * sizeof *with);
    walk bare = {.c = c, .chain = load(c, p, false)};
    const float *without = run(&bare, TD_MODE_PREFILL, c->prompt, 0, c->n_prompt);
    assert_memory_equal(without, with, n * sizeof *with);
    td_chain_destroy(&bare.chain);
    free(with);
}

static void check_case(const mtp_case *c, const placement *p)
{
    static walk w;
    w = (walk){.c = c, .chain = load(c, p, true)};
    assert_true(c->n_embd <= 64);
    w.last = w.chain->forwards[w.chain->layout->n_parts - 1];
    check_trunk(&w, p);
    run_prompt(&w, TD_MODE_VERIFY, 5);
    if (p->is_host)
        run_prompt(&w, TD_MODE_VERIFY, 1);
    if (p->is_host)
        run_prompt(&w, TD_MODE_PREFILL, 16);
    run_prompt(&w, TD_MODE_PREFILL, TD_PREFILL_ROWS_MAX);
    check_chain(&w);
    check_verifications(&w);
    for (uint32_t k = 1; k < ROUND_MAX; k++) {
        run_prompt(&w, TD_MODE_PREFILL, TD_PREFILL_ROWS_MAX);
        check_text(&w, k);
    }
    printf("%-20s %-14s", c->name, p->name);
    bool is_ok = true;
    for (size_t i = 0; i < TD_COUNT(w.worst); i++) {
        printf(" %s %.1e", what[i], w.worst[i]);
        is_ok &= w.worst[i] <= TOL;
    }
    printf("\n");
    if (!is_ok)
        fail_msg("%s on %s: more than %g", c->name, p->name, TOL);
    td_chain_destroy(&w.chain);
}

/* -- runs of the program ----------------------------------------------------------------------- */

static td_run_params mtp_params(const mtp_case *c, const placement *p, const scratch *s)
{
    static char path[1024];
    snprintf(path, sizeof path, "%s/model.gguf", c->dir);
    td_run_params params = base_params(s, path);
    set_placement(&params, p);
    params.ignore_eos = true;
    params.n_ctx = 512;
    return params;
}

/* As many are drafted and accepted as by the reference. */
static void check_counts(const mtp_case *c, const placement *p)
{
    const json_t *all = json_object_get(c->golden, "end_to_end");
    scratch s;
    scratch_open(&s);
    td_run_params params = mtp_params(c, p, &s);
    params.in_path = NULL;
    params.prompt = json_string_value(json_object_get(c->golden, "prompt_text"));
    params.is_quiet = true;
    params.n_predict = number(all, "n_predict");
    params.kv.k = params.kv.v = td_type_find(TD_TYPE_F32);
    params.draft_path = "mtp";
    for (uint32_t k = 1; k < ROUND_MAX; k++) {
        char key[16];
        td_run_totals totals;
        snprintf(key, sizeof key, "k%u", k);
        const json_t *wanted = json_object_get(all, key);
        params.draft_fixed = k;
        json_t *lines = run_lines(&s, &params, &totals);
        const json_t *line = json_object_iter_value(json_object_iter(lines));
        assert_int_equal(line_count(line, "prompt_tokens"), c->n_prompt);
        const json_t *tokens = json_object_get(line, "tokens");
        assert_int_equal(json_array_size(tokens), c->n_greedy);
        for (uint32_t i = 0; i < c->n_greedy; i++)
            assert_int_equal(json_integer_value(json_array_get(tokens, i)), c->greedy[i]);
        if (totals.n_drafted != number(wanted, "drafted") ||
            totals.n_accepted != number(wanted, "accepted"))
            fail_msg("%s on %s, k = %u: %llu of %llu accepted; the reference: %u of %u", c->name,
                     p->name, k, (unsigned long long)totals.n_accepted,
                     (unsigned long long)totals.n_drafted, number(wanted, "accepted"),
                     number(wanted, "drafted"));
        json_decref(lines);
    }
    scratch_close(&s);
}

/* Law 1: with the head as draft, and with a model beside it (the target's own file, which is right
 * about always), every line is what it is with none. Some prompts begin alike for
 * more than a chunk, which the later ones take over where the cache can share. */
static void check_law1(const mtp_case *c, const placement *p)
{
    static const struct {
        uint32_t k, n_parallel, kv; /* k 0: chosen */
        bool is_brief, has_model;
    } variants[] = {
        {3, 1, TD_TYPE_F16, true, false},  {1, 4, TD_TYPE_F16, false, false},
        {2, 3, TD_TYPE_F16, false, false}, {0, 2, TD_TYPE_F16, false, false},
        {3, 1, TD_TYPE_F16, false, true},  {1, 4, TD_TYPE_F16, false, true},
        {0, 2, TD_TYPE_F16, false, true},  {3, 4, TD_TYPE_Q8_0, false, false},
        {4, 3, TD_TYPE_Q8_0, true, true},  {16, 2, TD_TYPE_Q4_0, false, false},
    };
    scratch s;
    scratch_open(&s);
    char *words = many_words(60), line[1024];
    write_law1_prompts(s.in, words, p->is_host ? 60 : 10);
    for (int i = 0; i < 3; i++) {
        snprintf(line, sizeof line, "{\"id\": \"like-%d\", \"prompt\": \"%s%d\", \"n\": 20}\n", i,
                 words, i);
        append_file(s.in, line);
    }
    json_t *wanted = NULL;
    uint32_t kv = 0;
    for (size_t i = 0; i < TD_COUNT(variants); i++) {
        if (!p->is_host && !variants[i].is_brief)
            continue;
        char what_runs[320];
        td_run_totals totals;
        td_run_params params = mtp_params(c, p, &s);
        params.kv.k = params.kv.v = td_type_find(variants[i].kv);
        if (kv != variants[i].kv) {
            json_decref(wanted);
            wanted = run_lines(&s, &params, NULL);
            kv = variants[i].kv;
        }
        params.draft_path = variants[i].has_model ? params.target_path : "mtp";
        params.draft_head = variants[i].has_model ? "mtp" : NULL;
        params.draft_spec = variants[i].has_model ? "host:1" : NULL;
        params.draft_fixed = variants[i].k;
        params.n_parallel = variants[i].n_parallel;
        snprintf(what_runs, sizeof what_runs, "%s on %s, k = %u, %u at once, %s cache%s", c->name,
                 p->name, variants[i].k, variants[i].n_parallel, params.kv.k->name,
                 variants[i].has_model ? ", model and head" : "");
        json_t *got = run_lines(&s, &params, &totals);
        assert_same_texts(what_runs, wanted, got);
        printf("%s: the same; accepted %llu of %llu, of the head's in a chain %llu of %llu\n",
               what_runs, (unsigned long long)totals.n_accepted,
               (unsigned long long)totals.n_drafted, (unsigned long long)totals.n_head_accepted,
               (unsigned long long)totals.n_by_head);
        assert_true(totals.n_drafted > 0 || !variants[i].k);
        json_decref(got);
    }
    json_decref(wanted);
    free(words);
    scratch_close(&s);
}

/* -- tests ------------------------------------------------------------------------------------- */

static char folder[512];

static void for_each_case(void (*check)(const mtp_case *c, const placement *p), bool is_slow)
{
    struct dirent **entries;
    uint32_t n_cases = 0;
    int n = scandir(folder, &entries, NULL, alphasort);
    assert_true(n >= 0);
    for (int i = 0; i < n; free(entries[i++])) {
        char path[1024];
        mtp_case c;
        snprintf(path, sizeof path, "%s/%s/golden.json", folder, entries[i]->d_name);
        if (access(path, R_OK) || !is_chosen_model(entries[i]->d_name))
            continue;
        open_case(&c, folder, entries[i]->d_name);
        n_cases++;
        for (size_t k = 0; k < n_placements; k++)
            if (!is_slow || placements[k].is_host || strstr(c.name, "informed"))
                check(&c, &placements[k]);
        close_case(&c);
    }
    free(entries);
    assert_true(n_cases > 0);
}

static void test_heads_match_the_reference(void **state)
{
    (void)state;
    for_each_case(check_case, false);
}

static void test_runs_draft_as_the_reference_does(void **state)
{
    (void)state;
    for_each_case(check_counts, true);
}

static void test_lines_do_not_depend_on_the_head(void **state)
{
    (void)state;
    for_each_case(check_law1, true);
}

/* A key that calls layers of the model heads would leave them out; a file may leave out heads. */
static void check_number(const mtp_case *c, const placement *p)
{
    (void)p;
    char path[1024], part[32];
    snprintf(path, sizeof path, "%s/model.gguf", c->dir);
    snprintf(part, sizeof part, "/blk.%u.", td_model_hparams(c->model)->n_layer);
    const struct {
        json_t *edit;
        bool is_fine;
    } edits[] = {{json_pack("[sssi]", "set", "nextn_predict_layers", "u32", 2), false},
                 {json_pack("[ss]", "drop", part), true}};
    for (size_t i = 0; i < TD_COUNT(edits); i++) {
        td_err err = {0};
        ge *g = ge_load(path);
        ge_apply(g, edits[i].edit);
        gw w = ge_save(g);
        gw_file f = gw_file_create();
        gw_file_set(&f, w.bytes, w.n);
        td_model *m = td_model_open(f.path, &err);
        assert_int_equal(m != NULL, edits[i].is_fine);
        if (!m)
            assert_non_null(strstr(err.message, "nextn_predict_layers is 2, but layer"));
        td_model_close(&m);
        close(f.fd);
        gw_free(&w);
        ge_free(g);
        json_decref(edits[i].edit);
    }
}

static void test_only_heads_are_left_out(void **state)
{
    (void)state;
    for_each_case(check_number, true);
}

int main(void)
{
    bool has_host = false;
    setvbuf(stdout, NULL, _IOLBF, 0);
    snprintf(folder, sizeof folder, "%s/mtp", golden_dir());
    if (!is_readable(folder))
        return SKIPPED;
    td_log_set_level(TD_LOG_ERROR);
    find_placements(NULL);
    for (size_t i = 0; i < n_placements; i++)
        has_host |= placements[i].is_host;
    if (has_host)
        add_placement("host:1+host:1");
    if (!n_placements)
        return SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_heads_match_the_reference),
        cmocka_unit_test(test_runs_draft_as_the_reference_does),
        cmocka_unit_test(test_lines_do_not_depend_on_the_head),
        cmocka_unit_test(test_only_heads_are_left_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
