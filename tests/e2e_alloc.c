/* Nothing is allocated in the token loop: a run of 40 tokens a prompt and one of 400 make the same
 * number of allocations, whatever the draft, the cut or the neighbours; but for the doublings of
 * the buffer in which a result line is written, once a run. */
#include "tests/e2e_common.h"

#include "base/mem.h"

#define N_DOUBLINGS 4u /* a line of 400 tokens is less than 16 times as long as one of 40 */

static uint64_t count(const scratch *s, const td_run_params *base, uint32_t n_predict)
{
    td_run_params params = *base;
    td_run_totals totals;
    params.n_predict = n_predict;
    uint64_t before = td_alloc_count();
    json_t *lines = run_lines(s, &params, &totals);
    uint64_t n = td_alloc_count() - before;
    assert_int_equal(totals.n_tokens, json_object_size(lines) * n_predict);
    assert_true(!params.draft_path || totals.n_drafted > 0);
    json_decref(lines);
    return n;
}

static void test_the_token_loop_allocates_nothing(void **state)
{
    static const struct {
        const char *name;
        const char *specs[2];
        uint32_t n_specs, k, n_parallel;
        const char *place; /* of a mixture, which drafts for itself */
    } kinds[] = {
        {"plain", {"host:1"}, 1, 0, 1, NULL},
        {"draft", {"host:1"}, 1, 4, 1, NULL},
        {"draft, two threads, three at once", {"host:2"}, 1, 8, 3, NULL},
        {"draft, split", {"host:1@0-4", "host:1"}, 2, 3, 2, NULL},
        {"experts dealt", {"host:1", "host:1"}, 2, 0, 1, "experts=2,1"},
        {"experts dealt, draft, three at once", {"host:1", "host:1"}, 2, 3, 3, "experts=2,1"},
    };
    (void)state;
    scratch s;
    scratch_open(&s);
    char mixture[128], command[512];
    snprintf(mixture, sizeof mixture, "%s/mixture.gguf", s.dir);
    snprintf(command, sizeof command,
             "python3 scripts/make_model.py --arch qwen3moe --layers 2 --ffn 64 --experts 6 "
             "--experts-used 2 --vocab 300 --type Q8_0 --out %s >/dev/null",
             mixture);
    assert_int_equal(system(command), 0);
    write_file(s.in,
               "{\"id\":\"a\",\"prompt\":\"Once upon a time\",\"temp\":0.8,\"seed\":1}\n"
               "{\"id\":\"b\",\"prompt\":\"There was a fox\",\"temp\":0}\n"
               "{\"id\":\"c\",\"prompt\":\"The king\",\"repeat_penalty\":1.2,\"top_p\":0.9}\n");
    for (size_t i = 0; i < TD_COUNT(kinds); i++) {
        td_run_params params = base_params(&s, kinds[i].place ? mixture : tales_target());
        params.place = kinds[i].place;
        memcpy(params.specs, kinds[i].specs, sizeof kinds[i].specs);
        params.n_specs = kinds[i].n_specs;
        params.n_parallel = kinds[i].n_parallel;
        params.ignore_eos = true;
        if (kinds[i].k) {
            params.draft_path = kinds[i].place ? mixture : tales_draft();
            params.draft_spec = "host:1";
            params.draft_fixed = kinds[i].k;
        }
        uint64_t few = count(&s, &params, 40), many = count(&s, &params, 400);
        printf("%s: %llu allocations with 40 tokens, %llu with 400\n", kinds[i].name,
               (unsigned long long)few, (unsigned long long)many);
        assert_in_range(many, few, few + N_DOUBLINGS);
    }
    unlink(mixture);
    scratch_close(&s);
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!is_readable(tales_target()) || !is_readable(tales_draft()))
        return SKIPPED;
    td_log_set_level(TD_LOG_ERROR);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_the_token_loop_allocates_nothing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
