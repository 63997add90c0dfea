/* Law 1 on every device and on mixed splits, with the tiny models: a row's logits are the same bits
 * in every verify batch, and a run's lines are the same with any draft and with none. The models
 * have random weights, so that their drafts are seldom right but when the draft is the target. */
#include "tests/e2e_law1.h"

/* One of each architecture at least. The last N_ALIKE have the ops of others before them, with
 * other weights or numbers; a software GPU, which mostly compiles, leaves them out. */
enum { N_ALIKE = 7 };
static const char *const row_cases[] = {
    "llama",           "llama-q8_0", "qwen2",        "qwen3",      "qwen35",     "qwen35moe",
    "qwen3moe",        "llama4",     "gpt-oss",      "deepseek2",  "minimax-m2", "deepseek2-legacy",
    "glm4moe",         "gemma2",     "gemma3",       "phi3",       "qwen2moe",   "qwen3next",
    "qwen35moe-fused", "llama-f16",  "llama-q4_k_m", "llama-yarn", "llama-moe",  "mistral3",
    "deepseek2-lite",  "stories260k"};

/* Each caller's buffer holds the path as long as it is used. */
static const char *model_path(char path[static 640], const char *name)
{
    snprintf(path, 640, "%s/models/%s/model.gguf", golden_dir(), name);
    if (access(path, R_OK))
        snprintf(path, 640, "tests/data/golden/models/%s/model.gguf", name);
    return path;
}

static void test_rows_do_not_depend_on_their_batch(void **state)
{
    /* Together every type as keys and as values. */
    static const uint32_t types[][2] = {
        {TD_TYPE_F16, TD_TYPE_F16},     {TD_TYPE_F32, TD_TYPE_F32},
        {TD_TYPE_Q8_0, TD_TYPE_Q8_0},   {TD_TYPE_Q4_0, TD_TYPE_Q4_0},
        {TD_TYPE_Q5_1, TD_TYPE_IQ4_NL}, {TD_TYPE_IQ4_NL, TD_TYPE_Q6_0},
        {TD_TYPE_Q6_0, TD_TYPE_Q4_1},   {TD_TYPE_Q4_1, TD_TYPE_BF16},
        {TD_TYPE_BF16, TD_TYPE_Q5_0},   {TD_TYPE_Q5_0, TD_TYPE_Q5_1}};
    enum { N_COMMON = 4 };
    (void)state;
    for (size_t i = 0; i < TD_COUNT(row_cases); i++) {
        char path[640];
        td_err err = {0};
        if (!is_chosen_model(row_cases[i]) || !is_readable(model_path(path, row_cases[i])))
            continue;
        td_model *model = td_model_open(path, &err);
        if (!model && err.code == TD_E_IO && i > 0) { /* a set of golden data without it */
            printf("%s: skipped: %s\n", row_cases[i], err.message);
            continue;
        }
        if (!model)
            fail_msg("%s", err.message);
        for (size_t k = 0; k < n_placements; k++) {
            const placement *p = &placements[k];
            if (!p->is_host && i + N_ALIKE >= TD_COUNT(row_cases))
                continue;
            /* The first model with the usual types and on the splits, the others with a type in
             * turn. A software GPU is slow: there all but the first model with the first type have
             * two widths and short prompts. In brief all have a type in turn, wherever. */
            bool is_first = i == 0 && !wants_brief();
            for (size_t t = 0; t < TD_COUNT(types); t++)
                if (is_first ? t < (p->n_specs > 1 ? 1 : N_COMMON)
                             : t == i % TD_COUNT(types) && (p->n_specs == 1 || wants_brief()))
                    check_rows(row_cases[i], model, p, types[t], p->is_host ? 8 : 2,
                               !p->is_host && !(is_first && t == 0));
        }
        td_model_close(&model);
    }
}

typedef struct {
    const char *target, *draft, *place;
} model_pair;

static void check_runs(const model_pair *pair, const placement *p, bool is_brief,
                       json_t **host_lines)
{
    static const struct {
        uint32_t k, n_parallel;
        bool is_self; /* the draft is the target itself */
    } variants[] = {{1, 1, true}, {16, 4, true}, {4, 4, true}, {63, 2, true}, {8, 1, false}};
    scratch s;
    scratch_open(&s);
    char *words = many_words(60), what[256], target[640], draft[640];
    write_law1_prompts(s.in, words, p->is_host ? 60 : 10);
    td_run_params params = base_params(&s, model_path(target, pair->target));
    set_placement(&params, p);
    if (td_place_is_dealt(pair->place)) {
        params.specs[params.n_specs] = params.specs[0];
        params.n_specs++;
    }
    params.ignore_eos = true;
    params.n_ctx = 512;
    params.place = pair->place;
    json_t *wanted = run_lines(&s, &params, NULL);
    assert_int_equal(json_object_size(wanted), 10);
    if (p->is_host) { /* the layers may be cut anywhere among devices of one kind */
        if (*host_lines)
            assert_same_texts(p->name, *host_lines, wanted);
        else
            *host_lines = json_incref(wanted);
    }
    for (size_t i = 0; i < TD_COUNT(variants); i++) {
        if (!p->is_host && (i % 3 != 1 || (i > 1 && is_brief))) /* a software GPU is slow */
            continue;
        td_run_totals totals;
        params.draft_path = model_path(draft, variants[i].is_self ? pair->target : pair->draft);
        params.draft_spec = p->is_host || i % 2 == 0 ? "host:1" : p->specs[0];
        params.draft_fixed = variants[i].k;
        params.n_parallel = variants[i].n_parallel;
        snprintf(what, sizeof what, "%s on %s, k = %u, %u at once, draft on %s", pair->target,
                 p->name, params.draft_fixed, params.n_parallel, params.draft_spec);
        json_t *got = run_lines(&s, &params, &totals);
        assert_same_texts(what, wanted, got);
        printf("%s: the same; accepted %llu of %llu\n", what, (unsigned long long)totals.n_accepted,
               (unsigned long long)totals.n_drafted);
        assert_true(totals.n_drafted > 0);
        assert_true(!variants[i].is_self || totals.n_accepted > 0);
        json_decref(got);
    }
    json_decref(wanted);
    free(words);
    scratch_close(&s);
}

static void test_lines_do_not_depend_on_the_draft(void **state)
{
    /* The first two with every variant; the others are there for their caches and states. */
    static const model_pair pairs[] = {{"llama-q8_0", "qwen2", NULL},
                                       {"qwen3", "llama", NULL},
                                       {"qwen35moe", "qwen3next", NULL},
                                       {"gemma3", "gemma2", NULL},
                                       {"gpt-oss", "qwen2moe", NULL},
                                       {"deepseek2", "deepseek2-legacy", NULL},
                                       {"llama4", "llama-moe", NULL},
                                       {"glm4moe", "minimax-m2", NULL},
                                       {"phi3", "qwen35moe", NULL},
                                       {"qwen35moe", "qwen3next", "experts=host:1"},
                                       {"qwen35moe", "qwen3next", "experts=3,5"}};
    (void)state;
    for (size_t i = 0; i < TD_COUNT(pairs); i++) {
        json_t *host_lines = NULL;
        char path[640];
        if (!is_chosen_model(pairs[i].target))
            continue;
        if (access(model_path(path, pairs[i].target), R_OK) ||
            access(model_path(path, pairs[i].draft), R_OK)) {
            printf("skipped: %s with %s: this set of data lacks one\n", pairs[i].target,
                   pairs[i].draft);
            continue;
        }
        bool is_dealt = td_place_is_dealt(pairs[i].place); /* over devices that have no layers */
        for (size_t k = 0; k < n_placements; k++)
            if (i == 0 || (wants_brief() && (!is_dealt || placements[k].n_specs == 1)) ||
                (placements[k].n_specs == 1 && (i < 2 || k == 1 || !placements[k].is_host)))
                check_runs(&pairs[i], &placements[k], i >= 2 || wants_brief(), &host_lines);
        json_decref(host_lines);
    }
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    char path[640];
    if (!is_readable(model_path(path, "llama")))
        return SKIPPED;
    td_log_set_level(TD_LOG_ERROR);
    find_placements(NULL);
    static char mixed[160];
    bool has_host = false;
    for (size_t i = 0; i < n_placements; i++)
        if (placements[i].is_host)
            has_host = true;
        else
            snprintf(mixed, sizeof mixed, "%s+host:2", placements[i].name);
    if (has_host)
        add_placement("host:1@0-0+host:1");
    if (mixed[0] && !wants_brief())
        add_placement(mixed);
    if (!n_placements)
        return SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows_do_not_depend_on_their_batch),
        cmocka_unit_test(test_lines_do_not_depend_on_the_draft),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
