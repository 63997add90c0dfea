/* Logits and greedy tokens of whole models against a reference implementation, as prefill and
 * through the verify path by 1, 5 and 16 rows, on every device and on a split.
 *
 * Tolerances come with the data. Quantized weights on the host quantize activations too, so there
 * the error is compared with what the reference's own integer kernels make of it. Models of
 * architectures or layer kinds that tandem does not run are printed as skipped. */
#include "tests/golden_data.h"

#include "target/chain.h"

#include <math.h>

typedef struct {
    char name[64], dir[512], model_path[640];
    json_t *golden; /* golden.json */
    double tol_f32, tol_f16_kv;
    double tol_quantised_rms, tol_quantised_max; /* 0: none given */
    bool is_f32; /* weights are F32, F16 or BF16: no device quantizes activations */
    td_model *model;
    uint32_t n_vocab, n_tokens, n_rows; /* rows of logits.bin */
    uint32_t *tokens;                   /* [n_tokens] the prompt */
    uint32_t *positions;                /* [n_rows] of those rows */
    float *logits;                      /* [n_rows][n_vocab] */
    bool is_exact;                      /* those of exact arithmetic */
} golden_case;

/* Where activations or the cache are rounded, a router's close decision may fall the other way,
 * which moves that row as a whole: such rows are counted apart, and may be few. */
typedef struct {
    double max, rms;
    uint32_t n_flipped;
} deviation;

#define TOKENS_MAX       1000u /* of a prompt, where a device may be a software GPU */
#define FLIPPED_PER_ROWS 32u   /* one row in so many, and one more */

/* -- data -------------------------------------------------------------------------------------- */

static double number(const json_t *object, const char *key)
{
    return json_number_value(json_object_get(object, key));
}

static void load_logits(golden_case *c)
{
    char path[640];
    snprintf(path, sizeof path, "%s/%s", c->dir, c->is_exact ? "logits_exact.bin" : "logits.bin");
    c->logits = load_floats(path, (size_t)c->n_rows * c->n_vocab);
}

static json_t *cases; /* index.json */

/* What a case allows where activations are quantized; long ones say it at the short case of their
 * model. */
static const json_t *find_quantised(const json_t *entry)
{
    static const char key[] = "tol_quantised_activations";
    const char *arch = json_string_value(json_object_get(entry, "arch"));
    size_t i;
    const json_t *other, *own = json_object_get(entry, key);
    json_array_foreach(cases, i, other)
    {
        const char *name = json_string_value(json_object_get(other, "case"));
        if (!own && !strcmp(name, arch))
            own = json_object_get(other, key);
    }
    return own;
}

static void close_case(golden_case *c)
{
    td_model_close(&c->model);
    json_decref(c->golden);
    free(c->tokens);
    free(c->positions);
    free(c->logits);
}

/* False (with the reason printed) for a model that tandem does not run. */
static bool open_case(golden_case *c, const json_t *entry)
{
    *c = (golden_case){.is_f32 = true};
    snprintf(c->name, sizeof c->name, "%s", json_string_value(json_object_get(entry, "case")));
    char path[640];
    const char *folder = json_string_value(json_object_get(entry, "folder"));
    snprintf(c->dir, sizeof c->dir, "%s/models/%s", folder ? folder : golden_dir(), c->name);
    snprintf(path, sizeof path, "%s/golden.json", c->dir);
    if (access(path, R_OK)) {
        printf("skipped: %s: this set of data lacks it\n", c->name);
        return false;
    }
    c->golden = load_json(path);
    snprintf(c->model_path, sizeof c->model_path, "%s/%s", c->dir,
             json_string_value(json_object_get(c->golden, "model")));
    if (access(c->model_path, R_OK)) {
        printf("skipped: %s: %s is not there\n", c->name, c->model_path);
        json_decref(c->golden);
        return false;
    }
    td_err err = {0};
    td_gguf *g = td_gguf_open(c->model_path, &err);
    if (!g)
        fail_msg("%s: %s", c->name, err.message);
    for (uint32_t k = 0; k < td_gguf_n_tensors(g); k++) {
        uint32_t type = td_gguf_tensor_at(g, k)->type_id;
        c->is_f32 &= type == TD_TYPE_F32 || type == TD_TYPE_F16 || type == TD_TYPE_BF16;
    }
    td_gguf_close(&g);
    c->model = td_model_open(c->model_path, &err);
    if (!c->model)
        fail_msg("%s: %s", c->name, err.message);
    /* Some cases have logits of exact arithmetic beside the reference's. */
    c->is_exact = json_object_get(entry, "tol_f32_to_exact");
    c->tol_f32 = number(entry, c->is_exact ? "tol_f32_to_exact" : "tol_f32");
    c->tol_f16_kv = number(entry, "tol_f16_kv");
    const json_t *quantised = find_quantised(entry);
    c->tol_quantised_rms = number(quantised, "rms");
    c->tol_quantised_max = number(quantised, "max");
    c->n_vocab = (uint32_t)number(entry, "n_vocab");
    assert_int_equal(c->n_vocab, td_model_hparams(c->model)->n_vocab);
    c->tokens = load_ids(json_object_get(c->golden, "prompt_tokens"), &c->n_tokens);
    c->positions = load_ids(json_object_get(c->golden, "logit_positions"), &c->n_rows);
    if (!c->n_rows) { /* all of them */
        free(c->positions);
        c->positions = load_ids(json_object_get(c->golden, "prompt_tokens"), &c->n_rows);
        for (uint32_t k = 0; k < c->n_rows; k++)
            c->positions[k] = k;
    }
    load_logits(c);
    return true;
}

/* -- runs -------------------------------------------------------------------------------------- */

static td_chain *load_with(const golden_case *c, const placement *p, uint32_t type_k,
                           uint32_t type_v, uint32_t n_ctx, const char *place)
{
    td_err err = {0};
    td_chain *chain = td_chain_create(
        &(td_layout_params){.model = c->model,
                            .specs = p->specs,
                            .n_specs = p->n_specs,
                            .place = place,
                            .kv = {.k = td_type_find(type_k), .v = td_type_find(type_v)},
                            .n_slots = 1,
                            .n_ctx = n_ctx,
                            .is_all_logits = true},
        &err);
    if (!chain)
        fail_msg("%s on %s: %s", c->name, p->name, err.message);
    return chain;
}

static td_chain *load(const golden_case *c, const placement *p, uint32_t type_k, uint32_t type_v,
                      uint32_t n_ctx)
{
    return load_with(c, p, type_k, type_v, n_ctx, NULL);
}

static void run_rows(td_chain *chain, td_mode mode, const uint32_t *tokens, uint32_t position,
                     uint32_t n)
{
    td_forward_row rows[TD_PREFILL_ROWS_MAX];
    td_err err = {0};
    for (uint32_t i = 0; i < n; i++)
        rows[i] = (td_forward_row){.position = position + i, .token = tokens[i], .is_output = true};
    if (!td_chain_run(chain, mode, rows, n, &err))
        fail_msg("%s", err.message);
    td_chain_commit(chain, 0, position + n);
}

/* A row's part in a deviation; is_rounded: it may have flipped. */
static void add_row(const golden_case *c, const float *got, const float *want, double tol,
                    bool is_rounded, deviation *d, double *sum)
{
    double max = 0, row_sum = 0;
    for (uint32_t k = 0; k < c->n_vocab; k++) {
        double e = fabs((double)got[k] - (double)want[k]);
        if (!(e <= max))
            max = e; /* a NaN stays */
        row_sum += e * e;
    }
    if (is_rounded && td_model_hparams(c->model)->n_expert && max > tol && isfinite(max) &&
        d->n_flipped < 1 + c->n_rows / FLIPPED_PER_ROWS) {
        d->n_flipped++;
        return;
    }
    if (!(max <= d->max))
        d->max = max;
    *sum += row_sum;
}

/* n_rows 0: as prefill. The prompt's logits against those of the file. */
static deviation run_prompt(const golden_case *c, td_chain *chain, uint32_t n_rows, double tol,
                            bool is_rounded)
{
    uint32_t step = n_rows ? n_rows : TD_PREFILL_ROWS_MAX, i_row = 0;
    deviation d = {0};
    double sum = 0;
    td_chain_rewind(chain, 0, 0);
    for (uint32_t at = 0; at < c->n_tokens; at += step) {
        uint32_t n = td_min_u32(step, c->n_tokens - at);
        run_rows(chain, n_rows ? TD_MODE_VERIFY : TD_MODE_PREFILL, c->tokens + at, at, n);
        for (; i_row < c->n_rows && c->positions[i_row] < at + n; i_row++)
            add_row(c, td_chain_logits(chain) + (size_t)(c->positions[i_row] - at) * c->n_vocab,
                    c->logits + (size_t)i_row * c->n_vocab, tol, is_rounded, &d, &sum);
    }
    assert_int_equal(i_row, c->n_rows);
    d.rms = sqrt(sum / ((double)c->n_rows * c->n_vocab));
    return d;
}

static uint32_t argmax(const float *logits, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

/* Greedy decoding after `tokens` (in the cache but for the last one, whose row is run first).
 * Compared until a step whose margin is within the error; the number compared. */
static uint32_t run_greedy(const char *what, td_chain *chain, uint32_t n_vocab, uint32_t last,
                           uint32_t position, const json_t *wanted, const json_t *margins,
                           double error)
{
    uint32_t n = (uint32_t)json_array_size(wanted), token = last;
    for (uint32_t i = 0; i < n; i++) {
        if (json_number_value(json_array_get(margins, i)) <= 2 * error)
            return i;
        run_rows(chain, TD_MODE_VERIFY, &token, position + i, 1);
        token = argmax(td_chain_logits(chain), n_vocab);
        json_int_t want = json_integer_value(json_array_get(wanted, i));
        if (token != (uint32_t)want)
            fail_msg("%s: greedy token %u is %u, not %lld", what, i, token, (long long)want);
    }
    return n;
}

static void check(const golden_case *c, const placement *p, const char *what, deviation d,
                  double tol_max, double tol_rms)
{
    if (!(d.max <= tol_max) || !(d.rms <= tol_rms))
        fail_msg("%s on %s, %s: error max %g (allowed %g), rms %g (allowed %g)", c->name, p->name,
                 what, d.max, tol_max, d.rms, tol_rms);
}

static void note(deviation *worst, deviation d)
{
    worst->max = d.max > worst->max ? d.max : worst->max;
    worst->rms = d.rms > worst->rms ? d.rms : worst->rms;
    worst->n_flipped = td_max_u32(worst->n_flipped, d.n_flipped);
}

static void test_case(const golden_case *c, const placement *p)
{
    static const uint32_t widths[] = {0, 1, 5, 16};
    const json_t *greedy = json_object_get(c->golden, "greedy_tokens");
    const json_t *margins = json_object_get(c->golden, "greedy_margins");
    bool is_exact = c->is_f32; /* else activations are quantized */
    bool is_long = c->n_tokens > 100;
    double tol_max = is_exact ? c->tol_f32 : c->tol_quantised_max;
    double tol_rms = is_exact ? c->tol_f32 : c->tol_quantised_rms;
    uint32_t n_ctx = c->n_tokens + (uint32_t)json_array_size(greedy) + 1;
    deviation worst = {0}, worst_f16 = {0};
    char what[256];
    td_chain *chain = load(c, p, TD_TYPE_F32, TD_TYPE_F32, n_ctx);
    for (size_t i = 0; i < TD_COUNT(widths); i++) {
        /* Rows of all widths are the same bits (golden_law1): on a software GPU, which is slow, one
         * will do. A split adds nothing to few rows at a time. */
        if (p->is_host ? is_long && widths[i] == 1 && p->n_specs > 1
                       : widths[i] != 0 && widths[i] != (is_long ? 16 : 5))
            continue;
        deviation d = run_prompt(c, chain, widths[i], tol_max, !is_exact);
        snprintf(what, sizeof what, "f32 cache, rows %u (0 is prefill)", widths[i]);
        check(c, p, what, d, tol_max, tol_rms);
        note(&worst, d);
    }
    snprintf(what, sizeof what, "%s on %s", c->name, p->name);
    td_chain_rewind(chain, 0, 0);
    for (uint32_t at = 0; at < c->n_tokens - 1; at += TD_PREFILL_ROWS_MAX)
        run_rows(chain, TD_MODE_PREFILL, c->tokens + at, at,
                 td_min_u32(TD_PREFILL_ROWS_MAX, c->n_tokens - 1 - at));
    uint32_t n_greedy = run_greedy(what, chain, c->n_vocab, c->tokens[c->n_tokens - 1],
                                   c->n_tokens - 1, greedy, margins, worst.max);
    assert_true(n_greedy > 0 || !is_exact);
    td_chain_destroy(&chain);

    chain = load(c, p, TD_TYPE_F16, TD_TYPE_F16, n_ctx);
    for (size_t i = 0; i < (is_long && !p->is_host ? 1 : 2); i++) {
        deviation d =
            run_prompt(c, chain, i ? 16 : 0, c->tol_f16_kv + (is_exact ? 0 : tol_max), true);
        check(c, p, i ? "f16 cache, rows 16" : "f16 cache, prefill", d,
              c->tol_f16_kv + (is_exact ? 0 : tol_max), c->tol_f16_kv + (is_exact ? 0 : tol_rms));
        note(&worst_f16, d);
    }
    td_chain_destroy(&chain);
    printf("%-18s %-16s max %.2e rms %.2e (f16 cache: max %.2e), %u of %zu greedy tokens", c->name,
           p->name, worst.max, worst.rms, worst_f16.max, n_greedy, json_array_size(greedy));
    uint32_t n_flipped = td_max_u32(worst.n_flipped, worst_f16.n_flipped);
    n_flipped ? printf(", %u rows of other experts\n", n_flipped) : printf("\n");
}

/* -- tests ------------------------------------------------------------------------------------- */

/* Adds the cases that only this repository has. */
static void add_own_cases(void)
{
    static const char own[] = "tests/data/golden";
    char path[640];
    size_t i, k;
    json_t *entry, *other;
    snprintf(path, sizeof path, "%s/models/index.json", own);
    json_t *document = json_load_file(path, 0, NULL);
    json_array_foreach(document, i, entry)
    {
        bool is_there = false;
        json_array_foreach(cases, k, other) is_there |=
            !strcmp(json_string_value(json_object_get(entry, "case")),
                    json_string_value(json_object_get(other, "case")));
        if (is_there)
            continue;
        json_object_set_new(entry, "folder", json_string(own));
        json_array_append(cases, entry);
    }
    json_decref(document);
}

static void for_each_case(void (*f)(const golden_case *c, const placement *p))
{
    size_t i;
    json_t *entry;
    json_array_foreach(cases, i, entry)
    {
        golden_case c;
        if (!is_chosen_model(json_string_value(json_object_get(entry, "case"))) ||
            !open_case(&c, entry))
            continue;
        for (size_t k = 0; k < n_placements; k++)
            if (placements[k].is_host || c.n_tokens <= TOKENS_MAX)
                f(&c, &placements[k]);
            else
                printf("skipped: %s on %s: %u tokens\n", c.name, placements[k].name, c.n_tokens);
        close_case(&c);
    }
}

static void test_logits_match_the_reference(void **state)
{
    (void)state;
    for_each_case(test_case);
}

/* The same logits with the experts on another device than their layers. */
static void far_experts(const golden_case *c, const placement *p)
{
    if (!td_model_hparams(c->model)->n_expert || c->n_tokens > 100)
        return;
    double tol_max = c->is_f32 ? c->tol_f32 : c->tol_quantised_max;
    double tol_rms = c->is_f32 ? c->tol_f32 : c->tol_quantised_rms;
    td_chain *chain = load_with(c, p, TD_TYPE_F32, TD_TYPE_F32, c->n_tokens, "experts=host:1");
    for (uint32_t n_rows = 0; n_rows <= 5; n_rows += 5)
        check(c, p, "experts on the host", run_prompt(c, chain, n_rows, tol_max, !c->is_f32),
              tol_max, tol_rms);
    td_chain_destroy(&chain);
}

static void test_experts_may_be_elsewhere(void **state)
{
    (void)state;
    for_each_case(far_experts);
}

/* The prompt's logits, [n_tokens][n_vocab]. n_rows 0: as prefill. */
static float *keep_logits(const golden_case *c, td_chain *chain, uint32_t n_rows)
{
    uint32_t step = n_rows ? n_rows : TD_PREFILL_ROWS_MAX;
    float *out = malloc((size_t)c->n_tokens * c->n_vocab * sizeof *out);
    assert_non_null(out);
    td_chain_rewind(chain, 0, 0);
    for (uint32_t at = 0; at < c->n_tokens; at += step) {
        uint32_t n = td_min_u32(step, c->n_tokens - at);
        run_rows(chain, n_rows ? TD_MODE_VERIFY : TD_MODE_PREFILL, c->tokens + at, at, n);
        memcpy(out + (size_t)at * c->n_vocab, td_chain_logits(chain),
               (size_t)n * c->n_vocab * sizeof *out);
    }
    return out;
}

/* Every second expert on each of two devices; and three that have one, two and the others. */
static void write_dealings(uint32_t n_expert, char lists[512], char *shares, size_t n_bytes)
{
    size_t n = 0;
    for (uint32_t odd = 0; odd < 2; odd++)
        for (uint32_t e = odd; e < n_expert; e += 2)
            n += (size_t)snprintf(lists + n, 512 - n, "%s%u",
                                  e > 1 ? ","
                                  : odd ? "/"
                                        : "experts=",
                                  e);
    assert_true(n < 512);
    snprintf(shares, n_bytes, "experts=1,2,%u", n_expert - 3);
}

/* The same bits with the experts dealt over devices of one kind, and near the reference over
 * others. */
static void dealt_experts(const golden_case *c, const placement *p)
{
    uint32_t n_expert = td_model_hparams(c->model)->n_expert;
    if (!n_expert || c->n_tokens > 100 || p->n_specs > 1)
        return;
    static const uint32_t widths[] = {0, 1, 5, 64};
    float *wanted[TD_COUNT(widths)], *got;
    td_chain *chain = load(c, p, TD_TYPE_F32, TD_TYPE_F32, c->n_tokens);
    for (size_t i = 0; i < TD_COUNT(widths); i++)
        wanted[i] = keep_logits(c, chain, widths[i]);
    td_chain_destroy(&chain);
    char lists[512], shares[64];
    write_dealings(n_expert, lists, shares, sizeof shares);
    const char *places[] = {lists, n_expert > 3 ? shares : "experts=1,1"};
    size_t n_bytes = (size_t)c->n_tokens * c->n_vocab * sizeof(float);
    for (uint32_t k = 0; k < TD_COUNT(places); k++) {
        placement dealt = {
            .name = p->name, .n_specs = k && n_expert > 3 ? 3 : 2, .is_host = p->is_host};
        for (uint32_t i = 0; i < dealt.n_specs; i++)
            dealt.specs[i] = p->is_host && i ? "host:1" : p->specs[0];
        chain = load_with(c, &dealt, TD_TYPE_F32, TD_TYPE_F32, c->n_tokens, places[k]);
        for (size_t i = 0; i < TD_COUNT(widths); i++) {
            got = keep_logits(c, chain, widths[i]);
            if (memcmp(got, wanted[i], n_bytes) != 0)
                fail_msg("%s on %s: %s: other logits, %u rows at once", c->name, p->name, places[k],
                         widths[i]);
            free(got);
        }
        td_chain_destroy(&chain);
    }
    printf("%-18s %-16s the same bits dealt as %s and %s\n", c->name, p->name, places[0],
           places[1]);
    for (size_t i = 0; i < TD_COUNT(widths); i++)
        free(wanted[i]);
    double tol_max = c->is_f32 ? c->tol_f32 : c->tol_quantised_max;
    double tol_rms = c->is_f32 ? c->tol_f32 : c->tol_quantised_rms;
    placement mixed = {.name = p->name, .n_specs = 2, .specs = {p->specs[0], "host:1"}};
    if (p->is_host)
        return;
    chain = load_with(c, &mixed, TD_TYPE_F32, TD_TYPE_F32, c->n_tokens, lists);
    for (uint32_t n_rows = 0; n_rows <= 5; n_rows += 5)
        check(c, p, "every second expert on the host",
              run_prompt(c, chain, n_rows, tol_max, !c->is_f32), tol_max, tol_rms);
    td_chain_destroy(&chain);
}

static void test_experts_may_be_dealt(void **state)
{
    (void)state;
    for_each_case(dealt_experts);
}

/* A long story of a trained model, token by token from BOS. */
static void story(const golden_case *c, const placement *p)
{
    const json_t *s = json_object_get(c->golden, "long_greedy_from_bos");
    if (!s || p->n_specs > 1)
        return;
    const json_t *wanted = json_object_get(s, "greedy_tokens");
    uint32_t n_prompt, *prompt = load_ids(json_object_get(s, "prompt_tokens"), &n_prompt);
    td_chain *chain =
        load(c, p, TD_TYPE_F32, TD_TYPE_F32, n_prompt + (uint32_t)json_array_size(wanted) + 1);
    assert_int_equal(n_prompt, 1);
    uint32_t n = run_greedy(c->name, chain, c->n_vocab, prompt[0], 0, wanted,
                            json_object_get(s, "margins"), c->tol_f32);
    printf("%-18s %-16s %u of %zu tokens of the story\n", c->name, p->name, n,
           json_array_size(wanted));
    assert_true(n > 100);
    td_chain_destroy(&chain);
    free(prompt);
}

static void test_story_from_bos_matches_the_reference(void **state)
{
    (void)state;
    for_each_case(story);
}

/* The error a quantized cache brings, against the one it brings to the reference. */
static void quantized_cache(const golden_case *c, const placement *p)
{
    static const struct {
        const char *key;
        uint32_t type;
    } kinds[] = {{"k=q8_0 v=q8_0", TD_TYPE_Q8_0}, {"k=q4_0 v=q4_0", TD_TYPE_Q4_0}};
    char path[640];
    snprintf(path, sizeof path, "%s/models/kv_quant.json", golden_dir());
    json_t *document = load_json(path);
    const json_t *entry = json_object_get(json_object_get(document, "cases"), c->name);
    for (size_t i = 0; entry && i < TD_COUNT(kinds); i++) {
        const json_t *reference = json_object_get(entry, kinds[i].key);
        if (!reference) /* it refuses some head sizes */
            continue;
        double activations = c->is_f32 ? 0 : 1;
        double rms = hypot(2 * number(reference, "rms"), activations * c->tol_quantised_rms);
        double max = 2 * number(reference, "max_abs") + activations * c->tol_quantised_max;
        td_chain *chain = load(c, p, kinds[i].type, kinds[i].type, c->n_tokens);
        deviation prefill = run_prompt(c, chain, 0, max, true);
        deviation rows = run_prompt(c, chain, 5, max, true);
        printf("%-18s %-16s %s: max %.3f (reference %.3f), rms %.4f (reference %.4f)\n", c->name,
               p->name, kinds[i].key, fmax(prefill.max, rows.max), number(reference, "max_abs"),
               fmax(prefill.rms, rows.rms), number(reference, "rms"));
        check(c, p, kinds[i].key, prefill, max, rms);
        check(c, p, kinds[i].key, rows, max, rms);
        td_chain_destroy(&chain);
    }
    json_decref(document);
}

static void test_quantized_caches_are_as_good_as_the_reference(void **state)
{
    (void)state;
    for_each_case(quantized_cache);
}

int main(void)
{
    char path[640];
    bool has_host = false;
    setvbuf(stdout, NULL, _IOLBF, 0);
    snprintf(path, sizeof path, "%s/models/index.json", golden_dir());
    if (!is_readable(path))
        return SKIPPED;
    td_log_set_level(TD_LOG_ERROR);
    cases = json_load_file(path, 0, NULL);
    add_own_cases();
    find_placements(NULL);
    for (size_t i = 0; i < n_placements; i++)
        has_host |= placements[i].is_host;
    if (has_host)
        add_placement("host:1+host:1");
    if (!n_placements)
        return SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits_match_the_reference),
        cmocka_unit_test(test_experts_may_be_elsewhere),
        cmocka_unit_test(test_experts_may_be_dealt),
        cmocka_unit_test(test_story_from_bos_matches_the_reference),
        cmocka_unit_test(test_quantized_caches_are_as_good_as_the_reference),
    };
    int n_failed = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(cases);
    return n_failed;
}
