/* Law 1 on the bundled pair, on the host: the same lines with any draft length, any cut of the
 * layers, any neighbours, with the draft in a thread or in a process of its own. */
#include "tests/e2e_law1.h"

#include "tests/e2e_process.h"

static const struct {
    const char *name;
    uint32_t kv[2];
    bool has_rules; /* some layers have other types, on both sides of a cut too */
} caches[] = {{"f16", {TD_TYPE_F16, TD_TYPE_F16}, false},
              {"q8_0/q4_0, not all layers,", {TD_TYPE_Q8_0, TD_TYPE_Q4_0}, true},
              {"q5_1/q6_0", {TD_TYPE_Q5_1, TD_TYPE_Q6_0}, false}};
static size_t n_caches = TD_COUNT(caches);

static const char *const host_placements[] = {"host:1", "host:2", "host:1@0-2+host:1@3-9",
                                              "host:2@0-6+host:1@7-9"};

static td_run_params cache_params(const scratch *s, size_t cache)
{
    td_run_params params = base_params(s, tales_target());
    params.kv.k = td_type_find(caches[cache].kv[0]);
    params.kv.v = td_type_find(caches[cache].kv[1]);
    if (caches[cache].has_rules) {
        const td_type_info *f16 = td_type_find(TD_TYPE_F16), *q4_0 = td_type_find(TD_TYPE_Q4_0);
        params.kv.rules[0] = (td_cache_rule){TD_CACHE_LAYER_FIRST, TD_CACHE_LAYER_FIRST, f16, NULL};
        params.kv.rules[1] = (td_cache_rule){TD_CACHE_LAYER_LAST, TD_CACHE_LAYER_LAST, f16, f16};
        params.kv.rules[2] = (td_cache_rule){2, 3, q4_0, f16};
        params.kv.n_rules = 3;
        params.draft_kv.k = q4_0; /* and the draft has its own */
    }
    return params;
}

static void open_prompts(scratch *s)
{
    scratch_open(s);
    char *words = many_words(300);
    write_law1_prompts(s->in, words, 60);
    free(words);
}

static void check_run(const scratch *s, const td_run_params *params, const char *what,
                      const json_t *wanted)
{
    td_run_totals totals;
    json_t *got = run_lines(s, params, &totals);
    assert_same_texts(what, wanted, got);
    printf("%s: the same; accepted %llu of %llu\n", what, (unsigned long long)totals.n_accepted,
           (unsigned long long)totals.n_drafted);
    assert_true(!params->draft_fixed || totals.n_accepted > 0);
    assert_int_equal(totals.n_draft_losses, 0);
    json_decref(got);
}

static void test_rows_do_not_depend_on_their_batch(void **state)
{
    (void)state;
    td_err err = {0};
    td_model *model = td_model_open(tales_target(), &err);
    if (!model)
        fail_msg("%s", err.message);
    for (size_t i = 0; i < n_placements; i++)
        check_rows("tales-target", model, &placements[i], caches[i % n_caches].kv, 8, false);
    td_model_close(&model);
}

static void test_lines_do_not_depend_on_draft_cut_or_neighbours(void **state)
{
    static const uint32_t widths[] = {0, 1, 4, 8, 16};
    (void)state;
    scratch s;
    open_prompts(&s);
    for (size_t c = 0; c < n_caches; c++) {
        td_run_params params = cache_params(&s, c);
        json_t *wanted = run_lines(&s, &params, NULL);
        assert_int_equal(json_object_size(wanted), 10);
        for (size_t p = 0; p < n_placements; p++)
            for (size_t w = 0; w < TD_COUNT(widths); w++)
                for (uint32_t n_parallel = 1; n_parallel <= 4; n_parallel += 3) {
                    /* All of them once, then every third. */
                    if (c + p > 0 && (p + w + n_parallel / 2 + c) % 3)
                        continue;
                    char what[256];
                    set_placement(&params, &placements[p]);
                    params.draft_path = widths[w] ? tales_draft() : NULL;
                    params.draft_spec = widths[w] ? "host:1" : NULL;
                    params.draft_fixed = widths[w];
                    params.n_parallel = n_parallel;
                    snprintf(what, sizeof what, "%s cache on %s, k = %u, %u at once",
                             caches[c].name, placements[p].name, widths[w], n_parallel);
                    check_run(&s, &params, what, wanted);
                }
        json_decref(wanted);
    }
    scratch_close(&s);
}

/* Lengths chosen by goodput, drafts in turns, guesses from the texts, stages at work on different
 * batches: none of it shows. */
static void test_lines_do_not_depend_on_how_it_is_drafted(void **state)
{
    static const struct {
        const char *name;
        bool has_draft, is_turns, is_ngram;
        uint32_t fixed;
    } modes[] = {{"chosen lengths", true, false, false, 0},
                 {"in turns", true, true, false, 4},
                 {"n-grams alone", false, false, true, 0},
                 {"n-grams, fixed", false, false, true, 8},
                 {"both", true, false, true, 0},
                 {"neither", false, false, false, 0}};
    (void)state;
    scratch s;
    open_prompts(&s);
    td_run_params params = cache_params(&s, 0);
    json_t *wanted = run_lines(&s, &params, NULL);
    for (size_t p = 0; p < n_placements; p++)
        for (size_t m = 0; m < TD_COUNT(modes); m++)
            for (uint32_t n_parallel = 1; n_parallel <= 8; n_parallel += 7) {
                char what[256];
                set_placement(&params, &placements[p]);
                params.draft_path = modes[m].has_draft ? tales_draft() : NULL;
                params.draft_spec = modes[m].has_draft ? "host:1" : NULL;
                params.draft_fixed = modes[m].fixed;
                params.is_turns = modes[m].is_turns;
                params.is_ngram = modes[m].is_ngram;
                params.n_parallel = n_parallel;
                snprintf(what, sizeof what, "%s on %s, %u at once", modes[m].name,
                         placements[p].name, n_parallel);
                check_run(&s, &params, what, wanted);
            }
    json_decref(wanted);
    scratch_close(&s);
}

/* Lines that begin alike take over what one of them has computed; alone they compute all of it. */
static void test_a_shared_prompt_changes_nothing(void **state)
{
    enum { n_lines = 6 };
    (void)state;
    scratch s;
    scratch_open(&s);
    char *words = many_words(200), all[n_lines * 2048] = "";
    json_t *wanted = json_object();
    td_run_params params = base_params(&s, tales_target());
    for (uint32_t i = 0; i < n_lines; i++) {
        char line[2048];
        int n = snprintf(line, sizeof line,
                         "{\"id\":\"%u\",\"prompt\":\"%s And then %u\",\"temp\":%u,\"seed\":%u}\n",
                         i, i == 3 ? "Once" : words, i, i % 2, i);
        assert_true(n > 0 && n < (int)sizeof line);
        strcat(all, line);
        write_file(s.in, line);
        json_t *one = run_lines(&s, &params, NULL);
        json_object_update(wanted, one);
        json_decref(one);
    }
    write_file(s.in, all);
    for (size_t p = 0; p < n_placements; p++)
        for (params.n_parallel = 1; params.n_parallel <= 7; params.n_parallel += 3) {
            td_run_totals totals;
            set_placement(&params, &placements[p]);
            params.draft_path = params.n_parallel > 1 ? tales_draft() : NULL;
            params.draft_spec = params.draft_path ? "host:1" : NULL;
            json_t *got = run_lines(&s, &params, &totals);
            assert_same_texts(placements[p].name, wanted, got);
            printf("shared prompt on %s, %u at once: %llu of %llu tokens taken over\n",
                   placements[p].name, params.n_parallel, (unsigned long long)totals.n_shared,
                   (unsigned long long)totals.n_prompt_tokens);
            assert_true(totals.n_shared > totals.n_prompt_tokens / 2);
            json_decref(got);
        }
    json_decref(wanted);
    free(words);
    scratch_close(&s);
}

static void test_context_end_is_the_same_with_a_draft(void **state)
{
    (void)state;
    scratch s;
    scratch_open(&s);
    write_file(s.in, "{\"id\":\"a\",\"prompt\":\"Once upon a time\",\"temp\":0.8,\"seed\":1}\n"
                     "{\"id\":\"b\",\"prompt\":\"There was a fox, and the fox\",\"temp\":0}\n");
    td_run_params params = base_params(&s, tales_target());
    params.n_ctx = 64;
    params.n_predict = 500;
    params.ignore_eos = true;
    json_t *wanted = run_lines(&s, &params, NULL);
    const char *reason = json_string_value(json_object_get(json_object_get(wanted, "a"), "reason"));
    assert_string_equal(reason, "context");
    static const uint32_t widths[] = {1, 7, 63};
    for (size_t i = 0; i < TD_COUNT(widths); i++)
        for (params.n_parallel = 1; params.n_parallel <= 2; params.n_parallel++) {
            params.draft_path = tales_draft();
            params.draft_spec = "host:1";
            params.draft_fixed = widths[i];
            check_run(&s, &params, "at the end of the context", wanted);
        }
    json_decref(wanted);
    scratch_close(&s);
}

/* A draft whose own context is shorter than the text, in a process of its own. */
static void test_lines_do_not_depend_on_a_draft_process(void **state)
{
    (void)state;
    if (!tandem_program())
        skip();
    scratch s;
    open_prompts(&s);
    static const char *const contexts[] = {"512", "40"};
    for (size_t i = 0; i < TD_COUNT(contexts); i++) {
        td_run_params params = cache_params(&s, i);
        json_t *wanted = run_lines(&s, &params, NULL);
        pid_t draft = start_draft(tales_draft(), s.endpoint, contexts[i]);
        params.draft_endpoint = s.endpoint;
        static const uint32_t widths[] = {4, 16};
        for (size_t w = 0; w < TD_COUNT(widths); w++) {
            char what[128];
            params.draft_fixed = widths[w];
            params.n_parallel = w ? 4 : 1;
            snprintf(what, sizeof what, "draft process with a context of %s, k = %u", contexts[i],
                     widths[w]);
            check_run(&s, &params, what, wanted);
        }
        assert_int_equal(stop_process(draft, SIGTERM), 143);
        json_decref(wanted);
    }
    scratch_close(&s);
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!is_readable(tales_target()) || !is_readable(tales_draft()))
        return SKIPPED;
    td_log_set_level(TD_LOG_ERROR);
    bool is_named = getenv("TD_TEST_DEVICES") != NULL;
    if (is_named) {
        n_caches--; /* which not every device has */
        find_placements(NULL);
    }
    for (size_t i = 0; !is_named && i < TD_COUNT(host_placements); i++)
        add_placement(host_placements[i]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows_do_not_depend_on_their_batch),
        cmocka_unit_test(test_lines_do_not_depend_on_draft_cut_or_neighbours),
        cmocka_unit_test(test_lines_do_not_depend_on_how_it_is_drafted),
        cmocka_unit_test(test_a_shared_prompt_changes_nothing),
        cmocka_unit_test(test_context_end_is_the_same_with_a_draft),
        cmocka_unit_test(test_lines_do_not_depend_on_a_draft_process),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
