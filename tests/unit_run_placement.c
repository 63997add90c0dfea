/* Where a run puts its layers and its draft: what was measured is what is used, and the run's own
 * prompts are what it is measured for. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "toy_model.h"

#include "run/run_placement.h"
#include "run/survey.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static td_model *model;
static char folder[] = "/tmp/tandem-placement-XXXXXX", path[] = "/tmp/tandem-draft-XXXXXX",
            in_path[600];

static td_run_params params_of(void)
{
    return (td_run_params){
        .draft_path = path, /* its own draft */
        .draft_max = 4,
        .specs = {"host:1", "host:1"},
        .n_specs = 2,
        .measure = TD_MEASURE_MISSING,
        .kv = {.k = td_type_find(TD_TYPE_F16), .v = td_type_find(TD_TYPE_F16)},
        .draft_kv = {.k = td_type_find(TD_TYPE_F16), .v = td_type_find(TD_TYPE_F16)},
        .n_predict = 16,
        .n_parallel = 4,
        .use = TD_FOR_BATCH};
}

static void test_the_draft_runs_where_it_was_measured_to_be_best(void **state)
{
    (void)state;
    td_run_placement p = {0};
    td_err err = {0};
    td_run_params params = params_of();
    if (!td_run_placement_choose(&p, &params, model, false, NULL, &err))
        fail_msg("%s", err.message);
    assert_true(p.is_planned);
    assert_true(p.plan.draft_spec[0]);
    assert_non_null(params.draft_spec);
    assert_string_equal(params.draft_spec, p.plan.draft_spec);
    params = params_of();
    params.draft_spec = "host:1:0"; /* the user's word goes first */
    assert_true(td_run_placement_choose(&p, &params, model, false, NULL, &err));
    assert_string_equal(params.draft_spec, "host:1:0");
    params = params_of();
    params.draft_path = NULL;
    assert_true(td_run_placement_choose(&p, &params, model, false, NULL, &err));
    assert_null(params.draft_spec);
}

static td_survey look(const char *text)
{
    FILE *f = fopen(in_path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    td_run_params params = params_of();
    params.in_path = in_path;
    return td_survey_prompts(&params, model);
}

/* A token of the toy's vocabulary is a byte; BOS and the space before a text come on top. */
static void test_a_survey_is_the_mean_of_the_lines(void **state)
{
    (void)state;
    td_run_params params = params_of();
    params.prompt = "0123456789";
    td_survey s = td_survey_prompts(&params, model);
    uint32_t n_added = s.n_prompt - 10;
    assert_int_equal(s.n_prompts, 1);
    assert_int_equal(s.n_predict, 16);
    assert_in_range(n_added, 0, 4);

    s = look("{\"prompt\": \"0123456789\", \"n\": 4}\n\n"
             "{\"prompt\": \"01234567890123456789\"}\n"
             "not JSON at all\n");
    assert_int_equal(s.n_prompts, 3);
    assert_int_equal(s.n_prompt, 15 + n_added);
    assert_int_equal(s.n_predict, 10);

    s = look("{\"messages\": [{\"role\": \"user\", \"content\": \"hello\"}]}");
    assert_int_equal(s.n_prompts, 1);
    assert_in_range(s.n_prompt, 5, 80);

    s = look("");
    assert_int_equal(s.n_prompts + s.n_prompt + s.n_predict, 0);

    params = params_of();
    params.in_path = "-";
    s = td_survey_prompts(&params, model);
    assert_int_equal(s.n_prompts + s.n_prompt, 0);
    params.in_path = "/dev/null";
    s = td_survey_prompts(&params, model);
    assert_int_equal(s.n_prompts + s.n_prompt, 0);
    params.in_path = folder;
    s = td_survey_prompts(&params, model);
    assert_int_equal(s.n_prompts + s.n_prompt, 0);
}

static int set_up(void **state)
{
    (void)state;
    toy t = toy_begin("llama", TOY_SHAPE);
    td_err err = {0};
    if (!mkdtemp(folder) || setenv("TANDEM_CACHE_DIR", "", 1) != 0)
        return -1;
    toy_save(&t, path);
    snprintf(in_path, sizeof in_path, "%s/in.jsonl", folder);
    model = toy_open(&t, &err);
    return model ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    td_model_close(&model);
    unlink(in_path);
    unlink(path);
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_draft_runs_where_it_was_measured_to_be_best),
        cmocka_unit_test(test_a_survey_is_the_mean_of_the_lines),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
