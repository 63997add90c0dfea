/* Files whose parameters or tensors are wrong, each in one way: an error that names the key or the
 * tensor, what it is and what is allowed. And weights that hold NaN, which must load: what they
 * spoil is told line by line. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/json.h"
#include "base/jsonl.h"
#include "base/log.h"
#include "run/run.h"

#include "toy_model.h"

/* -- parameters ----------------------------------------------------------------------------- */

static void rejects(const toy *t, const char *part)
{
    td_err err = {0};
    td_model *m = toy_open(t, &err);
    bool is_open = m != NULL;
    td_model_close(&m);
    if (is_open)
        fail_msg("it was opened; expected: %s", part);
    assert_int_equal(err.code, TD_E_DATA);
    if (!strstr(err.message, part))
        fail_msg("\"%s\" lacks \"%s\"", err.message, part);
}

static void accepts(const toy *t)
{
    td_err err = {0};
    td_model *m = toy_open(t, &err);
    if (!m)
        fail_msg("%s", err.message);
    td_model_close(&m);
}

static void test_integers_out_of_range_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *key;
        uint32_t value;
        const char *part;
    } cases[] = {
        {"context_length", 0, "llama.context_length is 0; allowed: 1..16777216"},
        {"context_length", 1u << 31, "llama.context_length is 2147483648"},
        {"context_length", (1u << 24) + 1, "context_length"},
        {"embedding_length", 0, "llama.embedding_length is 0"},
        {"embedding_length", 65537, "allowed: 1..65536"},
        {"block_count", 0, "llama.block_count is 0; allowed: 1..512"},
        {"block_count", 513, "llama.block_count is 513; allowed: 1..512"},
        {"block_count", UINT32_MAX, "llama.block_count is 4294967295"},
        {"feed_forward_length", 0, "llama.feed_forward_length is 0"},
        {"feed_forward_length", (1u << 20) + 1, "llama.feed_forward_length is 1048577"},
        {"attention.head_count", 0, "llama.attention.head_count is 0; allowed: 1..512"},
        {"attention.head_count", 513, "llama.attention.head_count is 513"},
        {"attention.head_count", 3, "head_count 3 is no multiple of head_count_kv 2"},
        {"attention.head_count", 6, "embedding_length 64 is no multiple of attention.head_count 6"},
        {"attention.head_count_kv", 0, "llama.attention.head_count_kv is 0"},
        {"attention.head_count_kv", 3, "attention.head_count 4 is no multiple of head_count_kv 3"},
        {"attention.head_count_kv", 8, "no multiple of head_count_kv 8"},
        {"attention.key_length", 0, "llama.attention.key_length is 0"},
        {"attention.key_length", 1025, "allowed: 1..1024"},
        {"attention.key_length", 15, "rope.dimension_count is 15"}, /* odd */
        {"attention.value_length", 0, "llama.attention.value_length is 0"},
        {"rope.dimension_count", 0, "llama.rope.dimension_count is 0"},
        {"rope.dimension_count", 7,
         "rope.dimension_count is 7; allowed: an even number up to the head size 16"},
        {"rope.dimension_count", 18, "rope.dimension_count is 18"},
        {"rope.scaling.original_context_length", (1u << 24) + 1,
         "original_context_length is 16777217"},
        {"expert_count", 8, "expert_used_count is 0; allowed: 1..expert_count 8"},
    };
    for (size_t i = 0; i < TD_COUNT(cases); i++) {
        toy t = toy_begin("llama", TOY_SHAPE);
        toy_u32(&t, cases[i].key, cases[i].value);
        rejects(&t, cases[i].part);
    }
    toy t = toy_begin("llama", TOY_SHAPE);
    static const char *const none[] = {
        "expert_count",         "expert_used_count",
        "expert_group_count",   "expert_feed_forward_length",
        "nextn_predict_layers", "rope.scaling.original_context_length"};
    for (size_t i = 0; i < TD_COUNT(none); i++) /* a model may say that it has none */
        toy_u32(&t, none[i], 0);
    accepts(&t);
    static const char *const required[] = {
        "context_length",      "embedding_length",     "block_count",
        "feed_forward_length", "attention.head_count", "attention.layer_norm_rms_epsilon",
        "general.architecture"};
    for (size_t i = 0; i < TD_COUNT(required); i++) {
        t = toy_begin("llama", TOY_SHAPE);
        toy_drop_key(&t, required[i]);
        rejects(&t, required[i]);
    }
}

static void test_floats_out_of_range_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *key;
        float value;
    } cases[] = {
        {"attention.layer_norm_rms_epsilon", 0},
        {"attention.layer_norm_rms_epsilon", -1e-5f},
        {"attention.layer_norm_rms_epsilon", 2},
        {"attention.layer_norm_rms_epsilon", INFINITY},
        {"attention.layer_norm_rms_epsilon", NAN},
        {"rope.freq_base", 0},
        {"rope.freq_base", -10000},
        {"rope.freq_base", 1e13f},
        {"rope.freq_base", INFINITY},
        {"rope.freq_base", NAN},
        {"rope.scaling.factor", -4},
        {"rope.scaling.factor", 1e7f},
        {"rope.scaling.factor", NAN},
        {"rope.scale_linear", -1},
        {"rope.scale_linear", INFINITY},
    };
    for (size_t i = 0; i < TD_COUNT(cases); i++) {
        toy t = toy_begin("llama", TOY_SHAPE);
        toy_f32(&t, cases[i].key, cases[i].value);
        rejects(&t, cases[i].key);
    }
    toy t = toy_begin("llama", TOY_SHAPE);
    toy_f32(&t, "rope.scaling.factor", 0); /* none */
    toy_u32(&t, "rope.freq_base", 10000);  /* a whole number is one of any type */
    toy_f32(&t, "attention.head_count", 4);
    accepts(&t);
    toy_f32(&t, "block_count", 2.5f);
    rejects(&t, "block_count is 2.5; an integer is needed");
    t = toy_begin("llama", TOY_SHAPE);
    toy_str(&t, "rope.freq_base", "10000");
    rejects(&t, "'llama.rope.freq_base' is of type STRING; a number is needed");
}

/* The smallest base and original context: nothing is divided by zero, angles stay numbers. */
static void test_extreme_rope_parameters_give_numbers(void **state)
{
    (void)state;
    static const struct {
        float base, factor;
        uint32_t context;
    } cases[] = {
        {1, 4, 1}, {1, 4, 1u << 24}, {1e12f, 1e6f, 1}, {1.0001f, 1e-3f, 201}, {10000, 1, 1u << 24}};
    for (size_t i = 0; i < TD_COUNT(cases); i++) {
        toy t = toy_begin("llama", TOY_SHAPE);
        toy_f32(&t, "rope.freq_base", cases[i].base);
        toy_str(&t, "rope.scaling.type", "yarn");
        toy_f32(&t, "rope.scaling.factor", cases[i].factor);
        toy_u32(&t, "rope.scaling.original_context_length", cases[i].context);
        td_err err = {0};
        td_model *m = toy_open(&t, &err);
        if (!m)
            fail_msg("%s", err.message);
        float angles[16];
        td_rope *rope = td_rope_create(m, 1u << 24, &err);
        assert_non_null(rope);
        td_rope_row(rope, (1u << 24) - 1, angles);
        td_rope_destroy(&rope);
        for (size_t k = 0; k < 16; k++)
            assert_true(isfinite(angles[k]));
        td_model_close(&m);
    }
}

static void test_unknown_names_are_refused_with_the_known_ones(void **state)
{
    (void)state;
    toy t = toy_begin("llama", TOY_SHAPE);
    toy_str(&t, "general.architecture", "mamba");
    rejects(
        &t,
        "general.architecture is \"mamba\"; known ones: llama, mistral3, llama4, deepseek2, qwen2");
    toy_str(&t, "general.architecture", "");
    rejects(&t, "known ones");
    toy_str(&t, "general.architecture", "Llama");
    rejects(&t, "known ones");
    toy_u32(&t, "general.architecture", 7);
    rejects(&t, "general.architecture");
    t = toy_begin("llama", TOY_SHAPE);
    toy_str(&t, "rope.scaling.type", "longest");
    rejects(&t, "llama.rope.scaling.type is \"longest\"; allowed: none, linear, yarn, longrope");
    toy_u32(&t, "rope.scaling.type", 1);
    rejects(&t, "rope.scaling.type");
}

/* -- tensors -------------------------------------------------------------------------------- */

static void test_missing_tensors_are_named(void **state)
{
    (void)state;
    static const char *const names[] = {
        "token_embd.weight",        "output_norm.weight",    "blk.0.attn_norm.weight",
        "blk.1.attn_q.weight",      "blk.2.attn_k.weight",   "blk.3.attn_v.weight",
        "blk.0.attn_output.weight", "blk.3.ffn_norm.weight", "blk.3.ffn_gate.weight",
        "blk.3.ffn_up.weight",      "blk.3.ffn_down.weight", "blk.2.attn_q_norm.weight",
        "blk.2.attn_k_norm.weight"};
    for (size_t i = 0; i < TD_COUNT(names); i++) {
        toy t = toy_begin("qwen3", TOY_SHAPE);
        toy_drop_tensor(&t, names[i]);
        char part[96];
        snprintf(part, sizeof part, "tensor %s is missing", names[i]);
        rejects(&t, part);
    }
    toy t = toy_begin("llama", TOY_SHAPE);
    toy_u32(&t, "block_count", 5);
    rejects(&t, "tensor blk.4.attn_norm.weight is missing");
    t = toy_begin("llama", TOY_SHAPE);
    toy_drop_tensor(&t, "output.weight"); /* tied then */
    accepts(&t);
}

static void test_wrong_shapes_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint64_t ne0, ne1;
        const char *part;
    } cases[] = {
        {"token_embd.weight", 64, TOY_VOCAB + 1,
         "tensor token_embd.weight is 64 x 260 x 1; expected: 64 x 259"},
        {"token_embd.weight", 64, TOY_VOCAB - 1, "expected: 64 x 259"},
        {"token_embd.weight", TOY_VOCAB, 64, "tensor token_embd.weight is 259 x 64"},
        {"output.weight", 64, 1, "tensor output.weight"},
        {"output_norm.weight", 63, 1, "tensor output_norm.weight is 63 x 1 x 1; expected: 64 x 1"},
        {"blk.0.attn_q.weight", 64, 32,
         "tensor blk.0.attn_q.weight is 64 x 32 x 1; expected: 64 x 64"},
        {"blk.3.attn_k.weight", 64, 64, "expected: 64 x 32"},
        {"blk.3.attn_v.weight", 64, 33, "expected: 64 x 32"},
        {"blk.1.ffn_down.weight", 64, 96,
         "tensor blk.1.ffn_down.weight is 64 x 96 x 1; expected: 96 x 64"},
        {"blk.1.ffn_gate.weight", 64, 97, "expected: 64 x 96"},
        {"blk.2.attn_q.bias", 63, 1, "tensor blk.2.attn_q.bias is 63 x 1 x 1; expected: 64 x 1"},
    };
    for (size_t i = 0; i < TD_COUNT(cases); i++) {
        toy_shape s = TOY_SHAPE;
        s.has_biases = true;
        toy t = toy_begin("llama", s);
        toy_tensor *x = toy_find(&t, cases[i].name);
        x->ne[0] = cases[i].ne0;
        x->ne[1] = cases[i].ne1;
        rejects(&t, cases[i].part);
    }
    toy t = toy_begin("llama", TOY_SHAPE);
    toy_tensor *x = toy_find(&t, "blk.0.ffn_up.weight");
    x->n_dims = 3;
    x->ne[2] = 2;
    rejects(&t, "tensor blk.0.ffn_up.weight is 64 x 96 x 2");
    x->n_dims = 4;
    x->ne[2] = 1;
    x->ne[3] = 2;
    rejects(&t, "tensor blk.0.ffn_up.weight");
    x->n_dims = 1;
    rejects(&t, "tensor blk.0.ffn_up.weight is 64 x 1 x 1");
    t = toy_begin("llama", TOY_SHAPE); /* parameters that promise more than there is */
    toy_u32(&t, "feed_forward_length", 1u << 20);
    rejects(&t, "expected: 64 x 1048576");
    t = toy_begin("llama", TOY_SHAPE);
    toy_u32(&t, "embedding_length", 65536);
    rejects(&t, "expected: 65536 x 259");
    t = toy_begin("llama", TOY_SHAPE); /* a token more than there are embeddings */
    t.n_vocab++;
    rejects(&t, "expected: 64 x 260");
}

static void test_types_that_cannot_be_computed_with_are_refused(void **state)
{
    (void)state;
    toy t = toy_begin("llama", TOY_SHAPE);
    toy_find(&t, "blk.1.ffn_norm.weight")->type = TD_TYPE_Q8_0;
    rejects(&t, "tensor blk.1.ffn_norm.weight has type Q8_0; allowed for a vector: F32, F16");
    t = toy_begin("llama", TOY_SHAPE);
    toy_find(&t, "blk.1.ffn_norm.weight")->type = TD_TYPE_F16;
    accepts(&t);
    t = toy_begin("llama", TOY_SHAPE);
    toy_find(&t, "blk.1.ffn_up.weight")->type = 24; /* I8 */
    rejects(&t, "tensor blk.1.ffn_up.weight has type I8, which is not supported; allowed: F32");
    t = toy_begin("llama", TOY_SHAPE);
    toy_find(&t, "blk.1.ffn_up.weight")->type = 4; /* removed from the format */
    rejects(&t, "blk.1.ffn_up.weight");
}

static void test_rope_factors_must_be_numbers_one_a_pair(void **state)
{
    (void)state;
    static const struct {
        uint64_t n;
        float value;
        const char *part;
    } cases[] = {
        {7, 1, "rope_freqs.weight must be F32 with 8 entries"},
        {16, 1, "rope_freqs.weight must be F32 with 8 entries"},
        {8, 0, "rope_freqs.weight[3] is 0; allowed: 1e-6..1e6"},
        {8, -1, "rope_freqs.weight[3] is -1"},
        {8, NAN, "rope_freqs.weight[3] is"},
        {8, INFINITY, "rope_freqs.weight[3] is inf"},
        {8, 1e-7f, "rope_freqs.weight[3] is 1e-07"},
        {8, 1e7f, "rope_freqs.weight[3] is 1e+07"},
    };
    for (size_t i = 0; i < TD_COUNT(cases); i++) {
        toy t = toy_begin("llama", TOY_SHAPE);
        toy_tensor *x = toy_add(&t, "rope_freqs.weight", cases[i].n, 1);
        x->offset = 1;
        x->poison = cases[i].value;
        x->poison_first = 3;
        x->n_poison = 1;
        rejects(&t, cases[i].part);
    }
    toy t = toy_begin("llama", TOY_SHAPE);
    toy_tensor *x = toy_add(&t, "rope_freqs.weight", 8, 1);
    x->type = TD_TYPE_F16;
    rejects(&t, "rope_freqs.weight must be F32");
}

/* The warnings of an opening, as text. */
static void open_logged(const toy *t, char *text, size_t n_max)
{
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    td_log_set_output(fds[1], false);
    accepts(t);
    td_log_set_output(STDERR_FILENO, false);
    close(fds[1]);
    ssize_t n = read(fds[0], text, n_max - 1);
    text[n > 0 ? n : 0] = 0;
    close(fds[0]);
}

/* As logits without them would be wrong, without a sign. */
static void test_tensors_of_layers_that_nothing_uses_are_refused(void **state)
{
    (void)state;
    static const char *const names[] = {"blk.0.attn_q_norm.weight", "blk.0.ffn_gate_shexp.weight",
                                        "blk.0.attn_q.weightx", "blk.3.attn_q_a.bias", "blk.0."};
    for (size_t i = 0; i < TD_COUNT(names); i++) {
        toy t = toy_begin("llama", TOY_SHAPE);
        toy_add(&t, names[i], 16, 4);
        char part[96];
        snprintf(part, sizeof part, "tensor %s: nothing in this architecture", names[i]);
        rejects(&t, part);
    }
}

static void test_factors_are_used_or_refused(void **state)
{
    (void)state;
    toy t = toy_begin("llama", TOY_SHAPE);
    toy_add_layer(&t, 1, "attn_q.scale", 1, 1)->offset = 0.5f;
    toy_add_layer(&t, 2, "ffn_down.input_scale", 1, 1);
    accepts(&t);
    toy_find(&t, "blk.1.attn_q.scale")->ne[0] = 2;
    rejects(&t, "tensor blk.1.attn_q.scale must be one F32");
    static const char *const names[] = {"attn_norm.scale", "ffn_gate_exps.scale", "x.scale"};
    for (size_t i = 0; i < TD_COUNT(names); i++) {
        t = toy_begin("llama", TOY_SHAPE);
        toy_add_layer(&t, 1, names[i], 1, 1);
        rejects(&t, "nothing in this architecture");
    }
}

static void test_extra_tensors_are_said_once(void **state)
{
    (void)state;
    char text[2048];
    toy t = toy_begin("llama", TOY_SHAPE);
    toy_add(&t, "rope_freqs.weight", 8, 1)->offset = 1;
    open_logged(&t, text, sizeof text);
    assert_string_equal(text, ""); /* a known one */
    static const char *const names[] = {"cls.output.weight",
                                        "blk.4.attn_q.weight",
                                        "blk.0.attn_qkv.weight",
                                        "blk.01.attn_q.weight",
                                        "blk.x",
                                        "blk.4294967296.attn_q.weight",
                                        "blk.-1.attn_q.weight",
                                        "blk.0x.attn_q.weight"};
    for (size_t i = 0; i < TD_COUNT(names); i++) {
        t = toy_begin("llama", TOY_SHAPE);
        toy_add(&t, names[i], 16, 4);
        open_logged(&t, text, sizeof text);
        char part[128];
        snprintf(part, sizeof part, "1 tensors are not used, the first is %s", names[i]);
        if (!strstr(text, part))
            fail_msg("\"%s\" lacks \"%s\"", text, part);
    }
    toy_add(&t, "zzz", 4, 1);
    open_logged(&t, text, sizeof text);
    assert_non_null(strstr(text, "2 tensors are not used, the first is blk.0x"));
    assert_ptr_equal(strstr(text, "\n"), text + strlen(text) - 1); /* one line */
}

/* -- weights that are no numbers ------------------------------------------------------------ */

typedef struct {
    char id[32], text[4096], error[512];
    bool is_ok;
} outcome;

static void read_results(const char *path, outcome *out, uint32_t n_max, uint32_t *n)
{
    static const char *const statuses[] = {"ok", "error", NULL};
    static const td_json_field fields[] = {
        {.key = "id", .type = TD_JSON_STRING, .max = 31},
        {.key = "status", .type = TD_JSON_ENUM, .names = statuses},
        {.key = "text", .type = TD_JSON_STRING, .max = 4095},
        {.key = "error", .type = TD_JSON_STRING, .nullable = true, .max = 511}};
    static const td_json_schema schema = {fields, TD_COUNT(fields), true};
    td_err err = {0};
    td_jsonl_reader *r = td_jsonl_reader_open(path, TD_JSONL_RESULT_MAX, &err);
    assert_non_null(r);
    td_jsonl_line line;
    for (*n = 0; td_jsonl_read(r, &line, &err) == TD_JSONL_LINE; ++*n) {
        assert_true(*n < n_max);
        td_json *doc = td_json_parse(line.text, line.n_bytes, path, &err);
        td_json_object o;
        if (!doc || !td_json_read_root(doc, &schema, &o, &err))
            fail_msg("%s", err.message);
        outcome *x = &out[*n];
        snprintf(x->id, sizeof x->id, "%s", td_json_get_string(&o, "id", ""));
        snprintf(x->text, sizeof x->text, "%s", td_json_get_string(&o, "text", ""));
        snprintf(x->error, sizeof x->error, "%s", td_json_get_string(&o, "error", ""));
        x->is_ok = td_json_get_enum(&o, "status", 1) == 0;
        td_json_destroy(&doc);
    }
    td_jsonl_reader_close(&r);
}

static void run_toy(const toy *t, const char *draft, const char *prompts, outcome *out,
                    uint32_t n_max, uint32_t *n)
{
    char model[] = "/tmp/hostile_model_XXXXXX", in[] = "/tmp/hostile_model_XXXXXX";
    char out_path[] = "/tmp/hostile_model_XXXXXX";
    toy_save(t, model);
    int fd = mkstemp(in);
    assert_true(fd >= 0 && write(fd, prompts, strlen(prompts)) == (ssize_t)strlen(prompts));
    close(fd);
    close(mkstemp(out_path));
    td_run_params params = {.target_path = model,
                            .draft_path = draft,
                            .draft_spec = draft ? "host:1" : NULL,
                            .draft_max = 4,
                            .specs = {"host:1"},
                            .n_specs = 1,
                            .in_path = in,
                            .out_path = out_path,
                            .n_predict = 12,
                            .sampling = TD_SAMPLING_DEFAULTS,
                            .ignore_eos = true,
                            .kv = {.k = td_type_find(TD_TYPE_F16), .v = td_type_find(TD_TYPE_F16)},
                            .n_parallel = 3};
    td_run_totals totals;
    td_err err = {0};
    int signal = 0;
    if (!td_run(&params, &totals, &signal, &err))
        fail_msg("%s", err.message);
    read_results(out_path, out, n_max, n);
    unlink(model);
    unlink(in);
    unlink(out_path);
}

static const char prompts[] =
    "{\"id\":\"a\",\"prompt\":\"abc\"}\n{\"id\":\"bad\",\"prompt\":\"az\"}\n"
    "{\"id\":\"c\",\"prompt\":\"cab, and more of it\"}\n";

static const outcome *find_outcome(const outcome *list, uint32_t n, const char *id)
{
    for (uint32_t i = 0; i < n; i++)
        if (!strcmp(list[i].id, id))
            return &list[i];
    fail_msg("no result of %s", id);
    return NULL;
}

/* The embedding of 'z' is no number: its prompt fails, and its neighbours in the batches do not
 * notice. */
static void test_nan_in_one_embedding_spoils_its_prompts_only(void **state)
{
    (void)state;
    outcome clean[4], spoilt[4];
    uint32_t n_clean, n_spoilt;
    toy t = toy_begin("llama", TOY_SHAPE);
    run_toy(&t, NULL, prompts, clean, 4, &n_clean);
    assert_int_equal(n_clean, 3);
    for (uint32_t i = 0; i < n_clean; i++)
        assert_null(strchr(clean[i].text, 'z')); /* else they would be spoilt themselves */
    static const float poisons[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < TD_COUNT(poisons); i++) {
        toy_tensor *x = toy_find(&t, "token_embd.weight");
        x->poison = poisons[i];
        x->poison_first = (3ull + 'z') * 64 + 5;
        x->n_poison = 1;
        run_toy(&t, NULL, prompts, spoilt, 4, &n_spoilt);
        assert_int_equal(n_spoilt, 3);
        const outcome *bad = find_outcome(spoilt, 3, "bad");
        assert_false(bad->is_ok);
        assert_non_null(strstr(bad->error, "not finite"));
        static const char *const others[] = {"a", "c"};
        for (size_t k = 0; k < 2; k++) {
            const outcome *now = find_outcome(spoilt, 3, others[k]);
            const outcome *before = find_outcome(clean, 3, others[k]);
            assert_true(now->is_ok && before->is_ok);
            assert_string_equal(now->text, before->text);
        }
    }
}

static void test_nan_in_weights_and_scales_is_an_error_line(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint32_t type;
    } cases[] = {{"blk.1.attn_q.weight", TD_TYPE_F32},   {"blk.2.attn_k.weight", TD_TYPE_F16},
                 {"blk.2.attn_v.weight", TD_TYPE_Q8_0},  {"blk.0.ffn_down.weight", TD_TYPE_Q4_0},
                 {"blk.3.ffn_norm.weight", TD_TYPE_F32}, {"output.weight", TD_TYPE_Q8_0},
                 {"output_norm.weight", TD_TYPE_F16}};
    for (size_t i = 0; i < TD_COUNT(cases); i++) {
        toy t = toy_begin("llama", TOY_SHAPE);
        toy_tensor *x = toy_find(&t, cases[i].name);
        x->type = cases[i].type;
        x->poison = NAN;
        x->poison_first = 40;
        x->n_poison = 1;
        accepts(&t);
        outcome out[4];
        uint32_t n;
        run_toy(&t, NULL, prompts, out, 4, &n);
        assert_int_equal(n, 3);
        for (uint32_t k = 0; k < n; k++)
            if (out[k].is_ok || !strstr(out[k].error, "not finite"))
                fail_msg("%s: %s is %s \"%s\"", cases[i].name, out[k].id,
                         out[k].is_ok ? "ok" : "an error", out[k].error);
    }
}

/* A draft that thinks in NaN proposes nonsense, which changes nothing. */
static void test_a_nan_draft_changes_no_text(void **state)
{
    (void)state;
    char path[] = "/tmp/hostile_model_XXXXXX";
    toy target = toy_begin("llama", TOY_SHAPE), draft = toy_begin("llama", TOY_SHAPE);
    toy_tensor *x = toy_find(&draft, "output_norm.weight");
    x->poison = NAN;
    x->n_poison = 64;
    toy_save(&draft, path);
    outcome with[4], without[4];
    uint32_t n_with, n_without;
    run_toy(&target, NULL, prompts, without, 4, &n_without);
    run_toy(&target, path, prompts, with, 4, &n_with);
    assert_int_equal(n_with, n_without);
    for (uint32_t i = 0; i < n_with; i++) {
        const outcome *other = find_outcome(without, n_without, with[i].id);
        assert_true(with[i].is_ok);
        assert_string_equal(with[i].text, other->text);
    }
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_integers_out_of_range_are_refused),
        cmocka_unit_test(test_floats_out_of_range_are_refused),
        cmocka_unit_test(test_extreme_rope_parameters_give_numbers),
        cmocka_unit_test(test_unknown_names_are_refused_with_the_known_ones),
        cmocka_unit_test(test_missing_tensors_are_named),
        cmocka_unit_test(test_wrong_shapes_are_refused),
        cmocka_unit_test(test_types_that_cannot_be_computed_with_are_refused),
        cmocka_unit_test(test_rope_factors_must_be_numbers_one_a_pair),
        cmocka_unit_test(test_tensors_of_layers_that_nothing_uses_are_refused),
        cmocka_unit_test(test_factors_are_used_or_refused),
        cmocka_unit_test(test_extra_tensors_are_said_once),
        cmocka_unit_test(test_nan_in_one_embedding_spoils_its_prompts_only),
        cmocka_unit_test(test_nan_in_weights_and_scales_is_an_error_line),
        cmocka_unit_test(test_a_nan_draft_changes_no_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
