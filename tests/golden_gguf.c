/* Every golden model and vocabulary opens, and says of itself what the reference said of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/mem.h"
#include "model/tensors.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *golden;

static json_t *load_json(const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", golden, name);
    json_error_t error;
    json_t *j = json_load_file(path, 0, &error);
    if (!j)
        fail_msg("%s: %s", path, error.text);
    return j;
}

static td_gguf *open_golden(const char *folder, const char *case_name, const char *file)
{
    char path[4096];
    td_err err = {0};
    snprintf(path, sizeof path, "%s/%s/%s/%s", golden, folder, case_name, file);
    td_gguf *g = td_gguf_open(path, &err);
    if (!g)
        fail_msg("%s", err.message);
    return g;
}

/* The writer pads the last tensor to the alignment, so the sizes we compute for all types must
 * end exactly where the file does. */
static void check_sizes(const td_gguf *g)
{
    uint64_t n_bytes = 0;
    for (uint32_t shard = 0; shard < td_gguf_n_shards(g); shard++) {
        uint64_t end = 0;
        for (uint32_t i = 0; i < td_gguf_n_tensors(g); i++) {
            const td_gguf_tensor *t = td_gguf_tensor_at(g, i);
            if (t->shard == shard && t->offset + t->n_bytes > end)
                end = t->offset + t->n_bytes;
        }
        n_bytes += (end + 31) / 32 * 32;
    }
    assert_int_equal(n_bytes, td_gguf_n_bytes(g));
}

static void check_tensors(const td_gguf *g)
{
    uint8_t *data = malloc(1 << 20);
    assert_non_null(data);
    for (uint32_t i = 0; i < td_gguf_n_tensors(g); i++) {
        const td_gguf_tensor *t = td_gguf_tensor_at(g, i);
        assert_ptr_equal(td_gguf_find_tensor(g, t->name), t);
        assert_true(t->n_bytes <= 1 << 20);
        assert_true(td_gguf_read(g, t, 0, t->n_bytes, data, NULL));
        if (!t->type)
            assert_string_equal(td_type_format_name(t->type_id), "MXFP4"); /* of gpt-oss */
    }
    free(data);
}

static void test_models_open(void **state)
{
    (void)state;
    json_t *index = load_json("models/index.json"), *row;
    size_t i, n_opened = 0;
    json_array_foreach(index, i, row)
    {
        const char *name = json_string_value(json_object_get(row, "case"));
        td_gguf *g = open_golden("models", name, json_string_value(json_object_get(row, "model")));
        const char *arch;
        td_gguf_array tokens;
        td_err err = {0};
        assert_true(td_gguf_get_str(g, "general.architecture", &arch, NULL, &err));
        assert_string_equal(arch, json_string_value(json_object_get(row, "arch")));
        assert_true(td_gguf_get_array(g, "tokenizer.ggml.tokens", TD_GGUF_STRING, &tokens, &err));
        uint64_t n_vocab = (uint64_t)json_integer_value(json_object_get(row, "n_vocab"));
        assert_int_equal(tokens.n, n_vocab);
        const td_gguf_tensor *t = td_gguf_find_tensor(g, "token_embd.weight");
        assert_non_null(t);
        assert_int_equal(t->ne[1], n_vocab);
        check_tensors(g);
        check_sizes(g);
        td_gguf_close(&g);
        n_opened++;
    }
    json_decref(index);
    assert_true(n_opened >= 11); /* those of tests/data/golden; a fuller set has more */
}

static void test_llama_split_equals_its_parts(void **state)
{
    (void)state;
    td_gguf *g = open_golden("models", "llama-split", "model-00001-of-00003.gguf");
    assert_int_equal(td_gguf_n_shards(g), 3);
    assert_int_equal(td_gguf_n_tensors(g), 21);
    uint32_t n;
    assert_true(td_gguf_get_u32(g, "split.tensors.count", &n, NULL));
    assert_int_equal(n, 21);
    assert_int_equal(td_gguf_tensor_at(g, 20)->shard, 2);
    td_gguf_close(&g);
    char path[4096];
    td_err err = {0};
    snprintf(path, sizeof path, "%s/models/llama-split/model-00002-of-00003.gguf", golden);
    assert_null(td_gguf_open(path, &err));
    assert_int_equal(err.code, TD_E_DATA);
    assert_non_null(strstr(err.message, "open the first"));
}

static void test_llama_q4_k_m_facts(void **state)
{
    (void)state;
    td_gguf *g = open_golden("models", "llama-q4_k_m", "model.gguf");
    uint32_t n_of_type[64] = {0};
    for (uint32_t i = 0; i < td_gguf_n_tensors(g); i++)
        n_of_type[td_gguf_tensor_at(g, i)->type->id]++;
    assert_int_equal(n_of_type[TD_TYPE_Q4_K], 11);
    assert_int_equal(n_of_type[TD_TYPE_Q6_K], 5);
    assert_int_equal(n_of_type[TD_TYPE_F32], 5);
    float eps;
    assert_true(td_gguf_get_f32(g, "llama.attention.layer_norm_rms_epsilon", &eps, NULL));
    assert_true(eps == 0.01f);
    td_gguf_close(&g);
}

/* The text of a byte-level BPE token of printable ASCII is the bytes that the reference gives. */
static void check_pieces(const td_gguf_array *tokens, const json_t *pieces)
{
    size_t i, n_checked = 0;
    const json_t *row;
    json_array_foreach(pieces, i, row)
    {
        uint32_t id = (uint32_t)json_integer_value(json_object_get(row, "id"));
        const char *hex = json_string_value(json_object_get(row, "bytes_hex"));
        char bytes[256];
        size_t n_bytes = strlen(hex) / 2, n;
        bool is_ascii = n_bytes < sizeof bytes;
        for (size_t k = 0; k < n_bytes && is_ascii; k++) {
            const char pair[] = {hex[2 * k], hex[2 * k + 1], 0};
            bytes[k] = (char)strtol(pair, NULL, 16);
            is_ascii = bytes[k] > 0x20 && bytes[k] < 0x7f;
        }
        if (!is_ascii)
            continue;
        const char *text = td_gguf_array_str(tokens, id, &n);
        assert_int_equal(n, n_bytes);
        assert_memory_equal(text, bytes, n);
        assert_int_equal(text[n], 0);
        n_checked++;
    }
    assert_true(n_checked > 50);
}

static void test_vocabularies_open(void **state)
{
    (void)state;
    static const struct {
        const char *name, *file, *model;
        uint32_t n_tokens;
    } rows[] = {
        {"gpt-2", "ggml-vocab-gpt-2.gguf", "gpt2", 50257},
        {"qwen2", "ggml-vocab-qwen2.gguf", "gpt2", 151936},
        {"llama-bpe", "ggml-vocab-llama-bpe.gguf", "gpt2", 128256},
        {"llama-spm", "ggml-vocab-llama-spm.gguf", "llama", 32000},
        {"phi-3", "ggml-vocab-phi-3.gguf", "llama", 32064},
        {"deepseek-llm", "ggml-vocab-deepseek-llm.gguf", "gpt2", 102400},
    };
    char folder[4096];
    snprintf(folder, sizeof folder, "%s/vocab", golden);
    if (access(folder, R_OK) != 0) {
        printf("skipped: no vocabularies in %s\n", folder);
        skip();
    }
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        td_gguf *g = open_golden("vocab", rows[i].name, rows[i].file);
        const char *model;
        td_gguf_array tokens, types;
        td_err err = {0};
        assert_int_equal(td_gguf_n_tensors(g), 0);
        assert_true(td_gguf_get_str(g, "tokenizer.ggml.model", &model, NULL, &err));
        assert_string_equal(model, rows[i].model);
        assert_true(td_gguf_get_array(g, "tokenizer.ggml.tokens", TD_GGUF_STRING, &tokens, &err));
        assert_int_equal(tokens.n, rows[i].n_tokens);
        assert_true(td_gguf_get_int_array(g, "tokenizer.ggml.token_type", &types, &err));
        assert_int_equal(types.n, rows[i].n_tokens);
        if (strcmp(model, "gpt2") == 0) {
            char name[128];
            snprintf(name, sizeof name, "vocab/%s/cases.json", rows[i].name);
            json_t *cases = load_json(name);
            check_pieces(&tokens, json_object_get(cases, "pieces"));
            json_decref(cases);
        }
        td_gguf_close(&g);
    }
}

static const td_wanted *find_wanted(const td_wanted *list, uint32_t n, uint32_t slot)
{
    for (uint32_t i = 0; i < n; i++)
        if (list[i].slot == slot)
            return &list[i];
    fail_msg("slot %u is not wanted", slot);
    return NULL;
}

/* b's rows, or columns of a bias, stand behind a's, in each of the weight's groups. */
static void check_joined(const char *name, uint32_t slot_a, uint32_t slot_b, uint32_t n_rows_a,
                         uint32_t n_cols)
{
    char path[4096];
    td_err err = {0};
    td_wanted list[TD_WANTED_MAX];
    snprintf(path, sizeof path, "%s/models/%s/model.gguf", golden, name);
    td_model *m = td_model_open(path, &err);
    if (!m)
        fail_msg("%s", err.message);
    uint32_t n = td_tensors_wanted(m, 0, list);
    const td_wanted *a = find_wanted(list, n, slot_a), *b = find_wanted(list, n, slot_b);
    assert_int_equal(b->into, slot_a);
    assert_int_equal(a->row0, 0);
    assert_int_equal(b->row0, n_rows_a);
    if (n_cols)
        assert_int_equal(td_wanted_params(a).n_cols, n_cols);
    td_model_close(&m);
}

static void test_biases_are_joined_as_their_matrices_are(void **state)
{
    (void)state;
    check_joined("qwen2", TD_W_Q, TD_W_V, 96, 0);
    check_joined("qwen2", TD_W_BQ, TD_W_BV, 96, 128);
    check_joined("gpt-oss", TD_W_EX_GATE, TD_W_EX_UP, 64, 0);
    check_joined("gpt-oss", TD_W_EX_B_GATE, TD_W_EX_B_UP, 64, 2 * 64 * 6);
}

int main(void)
{
    golden = getenv("TD_GOLDEN");
    if (!golden)
        golden = "../shared/golden";
    char path[4096];
    snprintf(path, sizeof path, "%s/models/index.json", golden);
    FILE *f = fopen(path, "r");
    if (!f) {
        printf("skipped: no golden data in %s (set TD_GOLDEN)\n", golden);
        return 77;
    }
    fclose(f);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_models_open),
        cmocka_unit_test(test_llama_split_equals_its_parts),
        cmocka_unit_test(test_llama_q4_k_m_facts),
        cmocka_unit_test(test_vocabularies_open),
        cmocka_unit_test(test_biases_are_joined_as_their_matrices_are),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
