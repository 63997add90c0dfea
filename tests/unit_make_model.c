/* scripts/make_model.py writes models that the reader takes, of the shape and types asked for, with
 * weights as wide as they should be and a vocabulary whose merges make its tokens. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/check.h"
#include "model/gguf.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char path[] = "/tmp/unit_make_model_XXXXXX";

static td_gguf *make(const char *options)
{
    char command[512];
    snprintf(command, sizeof command, "python3 scripts/make_model.py --out %s %s >/dev/null", path,
             options);
    assert_int_equal(system(command), 0);
    td_err err = {0};
    td_gguf *g = td_gguf_open(path, &err);
    if (!g)
        fail_msg("%s", err.message);
    return g;
}

static void check_shape(const td_gguf *g, const char *name, uint64_t a, uint64_t b,
                        const char *type)
{
    const td_gguf_tensor *t = td_gguf_find_tensor(g, name);
    if (!t)
        fail_msg("tensor %s is missing", name);
    assert_int_equal(t->ne[0], a);
    assert_int_equal(t->ne[1], b);
    assert_string_equal(t->type->name, type);
}

/* Mean and standard deviation of a tensor's values, all finite. */
static void check_values(const td_gguf *g, const char *name, double sigma)
{
    const td_gguf_tensor *t = td_gguf_find_tensor(g, name);
    size_t n = (size_t)(t->ne[0] * t->ne[1]);
    void *blocks = malloc((size_t)t->n_bytes);
    float *values = malloc(n * sizeof(float));
    assert_true(blocks && values);
    assert_true(td_gguf_read(g, t, 0, t->n_bytes, blocks, NULL));
    t->type->dequantize(blocks, values, n);
    double sum = 0, squares = 0;
    for (size_t i = 0; i < n; i++) {
        assert_true(isfinite(values[i]) != 0);
        sum += (double)values[i];
        squares += (double)values[i] * (double)values[i];
    }
    double deviation = sqrt(squares / (double)n);
    if (fabs(sum / (double)n) > 0.05 * sigma || fabs(deviation / sigma - 1) > 0.1)
        fail_msg("%s: mean %g, deviation %g, expected 0 and %g", name, sum / (double)n, deviation,
                 sigma);
    free(values);
    free(blocks);
}

static void test_makes_every_type(void **state)
{
    (void)state;
    static const char *const types[] = {"F32",     "F16",   "Q8_0",   "Q4_0",    "Q4_K",   "Q6_K",
                                        "BF16",    "Q4_1",  "Q5_0",   "Q5_1",    "Q2_K",   "Q3_K",
                                        "Q5_K",    "IQ1_S", "IQ1_M",  "IQ2_XXS", "IQ2_XS", "IQ2_S",
                                        "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS",  "MXFP4",  "NVFP4",
                                        "Q1_0",    "Q2_0",  "TQ1_0",  "TQ2_0"};
    for (size_t i = 0; i < TD_COUNT(types); i++) {
        char options[128];
        snprintf(options, sizeof options, "--layers 1 --ffn 256 --vocab 300 --type %s", types[i]);
        td_gguf *g = make(options);
        check_shape(g, "blk.0.ffn_up.weight", 256, 256, types[i]);
        check_values(g, "blk.0.ffn_up.weight", 1.0 / 16);
        check_values(g, "output.weight", 3.0 / 16);
        td_gguf_close(&g);
    }
}

static void test_makes_every_architecture(void **state)
{
    (void)state;
    td_gguf *g = make("--arch llama --layers 2 --heads 8 --kv-heads 2 --type Q4_K_M --vocab 300");
    check_shape(g, "token_embd.weight", 256, 300, "Q4_K");
    check_shape(g, "output.weight", 256, 300, "Q6_K");
    check_shape(g, "blk.1.attn_q.weight", 256, 256, "Q4_K");
    check_shape(g, "blk.1.attn_k.weight", 256, 64, "Q4_K");
    check_shape(g, "blk.1.attn_v.weight", 256, 64, "Q6_K");
    check_shape(g, "blk.1.ffn_down.weight", 768, 256, "Q6_K");
    check_shape(g, "blk.1.ffn_norm.weight", 256, 1, "F32");
    assert_null(td_gguf_find_tensor(g, "blk.0.attn_q.bias"));
    td_gguf_close(&g);
    g = make("--arch qwen2 --n-embd 96 --heads 4 --layers 1 --type Q4_K --vocab 300 --ffn 512");
    check_shape(g, "blk.0.attn_q.bias", 96, 1, "F32");
    check_shape(g, "blk.0.ffn_up.weight", 96, 512, "Q8_0"); /* 96 is no multiple of 256 */
    check_shape(g, "blk.0.ffn_down.weight", 512, 96, "Q4_K");
    td_gguf_close(&g);
    g = make("--arch qwen3 --n-embd 64 --heads 2 --kv-heads 1 --head-dim 64 --layers 1 --tied "
             "--type F16 --vocab 300");
    check_shape(g, "blk.0.attn_q.weight", 64, 128, "F16");
    check_shape(g, "blk.0.attn_output.weight", 128, 64, "F16");
    check_shape(g, "blk.0.attn_k_norm.weight", 64, 1, "F32");
    assert_null(td_gguf_find_tensor(g, "output.weight"));
    uint32_t head_dim;
    assert_true(td_gguf_get_u32(g, "qwen3.attention.key_length", &head_dim, NULL));
    assert_int_equal(head_dim, 64);
    td_gguf_close(&g);
    g = make("--arch qwen3moe --layers 1 --ffn 512 --experts 6 --experts-used 2 --type Q4_K "
             "--vocab 300");
    check_shape(g, "blk.0.ffn_gate_inp.weight", 256, 6, "F32");
    const td_gguf_tensor *down = td_gguf_find_tensor(g, "blk.0.ffn_down_exps.weight");
    assert_non_null(down);
    assert_int_equal(down->ne[0], 512);
    assert_int_equal(down->ne[1], 256);
    assert_int_equal(down->ne[2], 6);
    assert_null(td_gguf_find_tensor(g, "blk.0.ffn_down.weight"));
    td_gguf_close(&g);
    g = make("--arch qwen3moe --layers 2 --ffn 512 --experts 6 --experts-used 2 --type Q4_K "
             "--vocab 300 --router-skew 1");
    check_shape(g, "blk.1.ffn_gate_inp.weight", 256, 6, "F32");
    td_gguf_close(&g);
    g = make("--arch qwen35 --layers 4 --heads 8 --kv-heads 2 --type Q8_0 --vocab 300");
    check_shape(g, "blk.2.attn_qkv.weight", 256, 256 + 2 * 64, "Q8_0");
    check_shape(g, "blk.2.ssm_conv1d.weight", 4, 256 + 2 * 64, "F32");
    check_shape(g, "blk.2.ssm_a", 8, 1, "F32");
    check_shape(g, "blk.3.attn_q.weight", 256, 2 * 256, "Q8_0"); /* queries and their gates */
    check_shape(g, "blk.3.post_attention_norm.weight", 256, 1, "F32");
    assert_null(td_gguf_find_tensor(g, "blk.2.attn_q.weight"));
    td_gguf_close(&g);
}

static void test_merges_make_the_tokens(void **state)
{
    (void)state;
    td_gguf *g = make("--n-embd 32 --heads 1 --layers 1 --ffn 32 --type F16 --vocab 66100");
    td_gguf_array tokens, merges;
    assert_true(td_gguf_get_array(g, "tokenizer.ggml.tokens", TD_GGUF_STRING, &tokens, NULL));
    assert_true(td_gguf_get_array(g, "tokenizer.ggml.merges", TD_GGUF_STRING, &merges, NULL));
    assert_int_equal(tokens.n, 66100);
    assert_int_equal(merges.n, 66100 - 256 - 2);
    for (uint32_t i = 0; i < merges.n; i++) { /* merge i makes token 256 + i */
        const char *merge = td_gguf_array_str(&merges, i, NULL);
        const char *token = td_gguf_array_str(&tokens, 256 + i, NULL);
        size_t n_left = (size_t)(strchr(merge, ' ') - merge);
        assert_int_equal(strncmp(merge, token, n_left), 0);
        assert_string_equal(merge + n_left + 1, token + n_left);
    }
    assert_string_equal(td_gguf_array_str(&tokens, 66099, NULL), "<|end|>");
    td_gguf_close(&g);
}

static void test_same_seed_same_model(void **state)
{
    (void)state;
    static const char *const seeds[] = {"--seed 7", "--seed 7", "--seed 8"};
    uint8_t data[3][64];
    for (int i = 0; i < 3; i++) {
        char options[128];
        snprintf(options, sizeof options, "--layers 1 --vocab 300 %s", seeds[i]);
        td_gguf *g = make(options);
        assert_true(
            td_gguf_read(g, td_gguf_find_tensor(g, "blk.0.attn_q.weight"), 0, 64, data[i], NULL));
        td_gguf_close(&g);
    }
    assert_memory_equal(data[0], data[1], 64);
    assert_memory_not_equal(data[0], data[2], 64);
}

static int remove_file(void **state)
{
    (void)state;
    return unlink(path);
}

int main(void)
{
    if (access("scripts/make_model.py", R_OK) != 0 || system("python3 -c 0") != 0) {
        printf("skipped: this test runs scripts/make_model.py with python3 in the source root\n");
        return 77;
    }
    int fd = mkstemp(path);
    if (fd < 0)
        return 1;
    close(fd);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_makes_every_type),
        cmocka_unit_test(test_makes_every_architecture),
        cmocka_unit_test(test_merges_make_the_tokens),
        cmocka_unit_test(test_same_seed_same_model),
    };
    return cmocka_run_group_tests(tests, NULL, remove_file);
}
