/* Rules of reading a file: what a missing key, a zero, a list or a shape means. Each case is a
 * golden model, edited, against logits of the reference for the same edited file. */
#include "tests/golden_data.h"

#include "target/chain.h"

#include "gguf_edit.h"

#include <math.h>

#define RULES "tests/data/golden/rules"

typedef struct {
    const char *name;
    td_model *model;
    uint32_t n_vocab, n_tokens, *tokens;
} rule_case;

/* The base model with the edits, as a file without a name. */
static gw_file edited(const json_t *rule)
{
    char path[512];
    snprintf(path, sizeof path, "tests/data/golden/models/%s/model.gguf",
             json_string_value(json_object_get(rule, "base")));
    ge *g = ge_load(path);
    size_t i;
    json_t *edit;
    json_array_foreach(json_object_get(rule, "edits"), i, edit) ge_apply(g, edit);
    gw w = ge_save(g);
    gw_file f = gw_file_create();
    gw_file_set(&f, w.bytes, w.n);
    gw_free(&w);
    ge_free(g);
    return f;
}

static void read_prompt(rule_case *c, const json_t *rule)
{
    char path[512];
    snprintf(path, sizeof path, "tests/data/golden/models/%s/golden.json",
             json_string_value(json_object_get(rule, "base")));
    json_t *golden = load_json(path);
    c->tokens = load_ids(json_object_get(golden, "prompt_tokens"), &c->n_tokens);
    json_decref(golden);
}

/* The largest difference in the rows of the middle and the end of the prompt. */
static double run(const rule_case *c, uint32_t n_ctx, bool is_prefill, const float *wanted)
{
    static const char *const specs[] = {"host:1"};
    td_err err = {0};
    td_chain *chain = td_chain_create(
        &(td_layout_params){.model = c->model,
                            .specs = specs,
                            .n_specs = 1,
                            .kv = {.k = td_type_find(TD_TYPE_F32), .v = td_type_find(TD_TYPE_F32)},
                            .n_slots = 1,
                            .n_ctx = n_ctx,
                            .is_all_logits = true},
        &err);
    if (!chain)
        fail_msg("%s: %s", c->name, err.message);
    const uint32_t kept[] = {c->n_tokens / 2, c->n_tokens - 1}, step = is_prefill ? 64 : 7;
    double worst = 0;
    for (uint32_t at = 0, n; at < c->n_tokens; at += n) {
        td_forward_row rows[64];
        n = td_min_u32(step, c->n_tokens - at);
        for (uint32_t i = 0; i < n; i++)
            rows[i] =
                (td_forward_row){.position = at + i, .token = c->tokens[at + i], .is_output = true};
        if (!td_chain_run(chain, is_prefill ? TD_MODE_PREFILL : TD_MODE_VERIFY, rows, n, &err))
            fail_msg("%s: %s", c->name, err.message);
        td_chain_commit(chain, 0, at + n);
        for (uint32_t k = 0; k < 2; k++)
            for (uint32_t v = 0; kept[k] >= at && kept[k] < at + n && v < c->n_vocab; v++) {
                size_t row = (size_t)(kept[k] - at) * c->n_vocab;
                double e = fabs((double)td_chain_logits(chain)[row + v] -
                                (double)wanted[k * c->n_vocab + v]);
                worst = e <= worst ? worst : e; /* a NaN stays */
            }
    }
    td_chain_destroy(&chain);
    return worst;
}

static void check_rule(const json_t *rule, FILE *logits)
{
    rule_case c = {.name = json_string_value(json_object_get(rule, "name"))};
    gw_file f = edited(rule);
    td_err err = {0};
    c.model = td_model_open(f.path, &err);
    const char *refused = json_string_value(json_object_get(rule, "refused"));
    if (refused) {
        if (c.model || !strstr(err.message, refused))
            fail_msg("%s: \"%s\", expected: \"%s\"", c.name, err.message, refused);
        close(f.fd);
        return;
    }
    if (!c.model)
        fail_msg("%s: %s", c.name, err.message);
    c.n_vocab = td_model_hparams(c.model)->n_vocab;
    read_prompt(&c, rule);
    float *wanted = calloc(2 * c.n_vocab, sizeof *wanted);
    assert_non_null(wanted);
    assert_int_equal(fread(wanted, sizeof *wanted, 2 * c.n_vocab, logits), 2 * c.n_vocab);
    const json_t *context = json_object_get(rule, "n_ctx");
    uint32_t n_ctx = context ? (uint32_t)json_integer_value(context) : 256;
    double tolerance = json_number_value(json_object_get(rule, "tol"));
    double prefill = run(&c, n_ctx, true, wanted), verify = run(&c, n_ctx, false, wanted);
    printf("%-32s prefill %.1e verify %.1e\n", c.name, prefill, verify);
    if (!(prefill <= tolerance) || !(verify <= tolerance))
        fail_msg("%s: error %g as prefill, %g by rows of 7; allowed: %g", c.name, prefill, verify,
                 tolerance);
    td_model_close(&c.model);
    free(c.tokens);
    free(wanted);
    close(f.fd);
}

static void test_edited_files_match_the_reference(void **state)
{
    (void)state;
    json_t *rules = load_json(RULES "/index.json"), *rule;
    FILE *logits = fopen(RULES "/logits.bin", "rbe");
    assert_non_null(logits);
    size_t i;
    json_array_foreach(rules, i, rule) check_rule(rule, logits);
    assert_int_equal(fgetc(logits), EOF);
    fclose(logits);
    json_decref(rules);
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    td_log_set_level(TD_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_edited_files_match_the_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
