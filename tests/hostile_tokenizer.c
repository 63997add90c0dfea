/* Malformed vocabularies and hostile texts: each gives an error that names what is wrong, or the
 * right tokens, and never a crash or a hang. */
#include "tokenizer_vocabs.h"

#include "base/mem.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const tv_token ab[] = {{"ab", 0, 1, 0}, {"abab", 0, 1, 0}};

/* The file must be refused with a message that holds `part`. */
static void refuse_pre(gw *w, const char *pre, const char *part)
{
    td_err err = {0};
    gw_end(w, 32, 0);
    td_tokenizer *t = tv_create(w, pre, &err);
    gw_free(w);
    assert_null(t);
    assert_true(err.code == TD_E_DATA || err.code == TD_E_USAGE);
    if (strstr(err.message, part) == NULL)
        fail_msg("\"%s\" does not mention \"%s\"", err.message, part);
}

static void refuse(gw *w, const char *part) { refuse_pre(w, NULL, part); }

static td_tokenizer *accept(gw *w)
{
    td_err err = {0};
    gw_end(w, 32, 0);
    td_tokenizer *t = tv_create(w, NULL, &err);
    gw_free(w);
    if (t == NULL)
        fail_msg("%s", err.message);
    return t;
}

/* A file with these tokens and nothing else but model and merges. */
static gw with_tokens(const char *model, const tv_token *tokens, size_t n)
{
    gw w = gw_begin(3);
    gw_kv_str(&w, "tokenizer.ggml.model", model);
    gw_kv_str(&w, "tokenizer.ggml.pre", "gpt-2");
    tv_tokens(&w, tokens, n);
    return w;
}

static void test_tokenizer_refuses_unknown_kinds(void **state)
{
    (void)state;
    gw w = gw_begin(3);
    refuse(&w, "tokenizer.ggml.model");
    w = with_tokens("bert", ab, 1);
    refuse(&w, "known: \"llama\", \"gpt2\"");
    w = tv_bpe("no-such", NULL, 0);
    tv_merges(&w, NULL, 0);
    refuse(&w, "llama-bpe");
    w = tv_bpe("gpt-2", NULL, 0);
    tv_merges(&w, NULL, 0);
    refuse_pre(&w, "qwen9", "qwen2");
    w = tv_spm(NULL, 0);
    refuse_pre(&w, "qwen2", "SentencePiece");
    w = gw_begin(3);
    gw_kv_u32(&w, "tokenizer.ggml.model", 7);
    refuse(&w, "tokenizer.ggml.model");
}

static void test_tokenizer_refuses_bad_token_lists(void **state)
{
    (void)state;
    gw w = with_tokens("llama", NULL, 0);
    refuse(&w, "tokenizer.ggml.tokens");
    w = gw_begin(3);
    gw_kv_str(&w, "tokenizer.ggml.model", "llama");
    refuse(&w, "tokenizer.ggml.tokens");
    w = gw_begin(3);
    gw_kv_str(&w, "tokenizer.ggml.model", "llama");
    gw_kv_array(&w, "tokenizer.ggml.tokens", GW_U32, 2);
    gw_u64(&w, 0);
    refuse(&w, "tokenizer.ggml.tokens");

    size_t huge = 10u << 20;
    char *text = calloc(huge, 1);
    assert_non_null(text);
    const tv_token big = {text, huge, 1, 0}, over = {text, TD_TOKEN_MAX + 1, 1, 0};
    w = with_tokens("llama", &big, 1);
    refuse(&w, "10485760 bytes; the limit is 1024");
    w = with_tokens("llama", &over, 1);
    refuse(&w, "1025 bytes");
    free(text);

    const tv_token twice[] = {{"x", 0, 1, 0}, {"y", 0, 1, 0}, {"x", 0, 1, 0}};
    w = with_tokens("llama", twice, 3);
    refuse(&w, "token 2 is \"x\", which token 0 is already");
}

static void test_tokenizer_takes_odd_tokens(void **state)
{
    (void)state;
    /* empty, ill-formed, with a zero inside, of the greatest length, and a lone one */
    static char longest[TD_TOKEN_MAX];
    memset(longest, 'x', sizeof longest);
    const tv_token odd[] = {{"a\0b", 3, 1, 0},
                            {"\xff\xfe", 0, 1, 0},
                            {"", 0, 1, 0},
                            {"", 0, 3, 0},
                            {longest, sizeof longest, 3, 0}};
    gw w = tv_spm(odd, 5);
    td_tokenizer *t = accept(&w);
    size_t n;
    (void)td_token_bytes(t, 259, true, &n);
    assert_int_equal(n, 3);
    (void)td_token_bytes(t, 262, true, &n);
    assert_int_equal(n, 0);
    uint32_t *ids;
    /* an empty token matches nowhere */
    assert_true(td_tokenize(t, "zz", 2, TD_ADD_AS_FILE, true, &ids, &n, NULL));
    td_free(ids);
    td_tokenizer_destroy(&t);

    const tv_token one = {"x", 0, 1, 0};
    w = with_tokens("llama", &one, 1);
    td_err err = {0};
    t = accept(&w); /* the default ids 1 and 2 do not exist in it */
    assert_int_equal(td_tokenizer_get_info(t)->bos, TD_NO_TOKEN);
    assert_int_equal(td_tokenizer_get_info(t)->eos, TD_NO_TOKEN);
    assert_false(td_tokenizer_get_info(t)->add_bos);
    td_tokenizer_destroy(&t);

    w = with_tokens("gpt2", &one, 1);
    tv_merges(&w, NULL, 0);
    t = accept(&w);
    assert_false(td_tokenize(t, "y", 1, TD_ADD_NOTHING, false, &ids, &n, &err));
    assert_non_null(strstr(err.message, "0x79"));
    td_tokenizer_destroy(&t);
}

static void test_tokenizer_refuses_bad_byte_tokens(void **state)
{
    (void)state;
    static const char *const bad[] = {"<0x-1>", "<0xG0>", "<0x0>", "<0x000>", "<0x+1>", "x"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        const tv_token token = {bad[i], 0, 6, 0};
        gw w = tv_spm(&token, 1);
        refuse(&w, "byte token 259");
        const tv_token normal = {bad[i], 0, 1, 0}; /* as a word it is just a word */
        w = tv_spm(&normal, 1);
        td_tokenizer *t = accept(&w);
        td_tokenizer_destroy(&t);
    }
}

/* One array replaced: `element` type, n entries of zeros of 4 bytes. */
static gw with_array(const char *key, uint32_t element, uint64_t n)
{
    const tv_token tokens[] = {{"x", 0, 1, 0}, {"y", 0, 1, 0}, {"z", 0, 1, 0}};
    gw w = with_tokens("llama", tokens, 3);
    gw_kv_array(&w, key, element, n);
    for (uint64_t i = 0; i < n; i++)
        gw_u32(&w, 0);
    return w;
}

static void test_tokenizer_refuses_bad_scores_and_types(void **state)
{
    (void)state;
    gw w = with_array("tokenizer.ggml.scores", GW_F32, 2);
    refuse(&w, "tokenizer.ggml.scores: 2 entries for a vocabulary of 3 tokens");
    w = with_array("tokenizer.ggml.scores", GW_F32, 4);
    refuse(&w, "tokenizer.ggml.scores");
    w = with_array("tokenizer.ggml.scores", GW_U32, 3);
    refuse(&w, "tokenizer.ggml.scores");
    w = with_array("tokenizer.ggml.token_type", GW_I32, 2);
    refuse(&w, "tokenizer.ggml.token_type: 2 entries");
    w = with_array("tokenizer.ggml.token_type", GW_F32, 3);
    refuse(&w, "tokenizer.ggml.token_type");
    w = with_array("tokenizer.ggml.token_type", GW_I32, 3);
    gw_patch(&w, w.n - 4, 7, 4);
    refuse(&w, "token 2 has type 7; allowed are 0 to 6");
    w = with_array("tokenizer.ggml.token_type", GW_I32, 3);
    gw_patch(&w, w.n - 8, UINT32_MAX, 4);
    refuse(&w, "token 1 has type -1");
    w = with_array("tokenizer.ggml.scores", GW_F32, 3);
    gw_patch(&w, w.n - 4, 0x7fc00000, 4); /* NaN */
    refuse(&w, "score of token 2");
    const tv_token tokens[] = {{"x", 0, 1, 0}};
    w = with_tokens("llama", tokens, 1);
    gw_kv_u32(&w, "tokenizer.ggml.scores", 1);
    refuse(&w, "tokenizer.ggml.scores");
}

static void test_tokenizer_checks_special_ids(void **state)
{
    (void)state;
    static const char *const strict[] = {"tokenizer.ggml.bos_token_id",
                                         "tokenizer.ggml.eos_token_id"};
    static const char *const loose[] = {
        "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.padding_token_id",
        "tokenizer.ggml.eot_token_id",     "tokenizer.ggml.eom_token_id",
        "tokenizer.ggml.fim_pad_token_id", "tokenizer.ggml.prefix_token_id"};
    for (size_t i = 0; i < 2; i++) {
        gw w = tv_spm(NULL, 0);
        gw_kv_u32(&w, strict[i], 259);
        refuse(&w, strict[i]);
        w = tv_spm(NULL, 0);
        gw_kv_str(&w, strict[i], "1");
        refuse(&w, strict[i]);
    }
    for (size_t i = 0; i < sizeof loose / sizeof loose[0]; i++) {
        gw w = tv_spm(NULL, 0);
        gw_kv_u32(&w, loose[i], i % 2 == 0 ? 259 : UINT32_MAX);
        td_tokenizer *t = accept(&w);
        const td_tokenizer_info *info = td_tokenizer_get_info(t);
        assert_true(info->unk == TD_NO_TOKEN || info->unk < 259);
        assert_int_equal(info->pad, TD_NO_TOKEN);
        assert_int_equal(info->eot, TD_NO_TOKEN);
        td_tokenizer_destroy(&t);
    }
    gw w = tv_spm(NULL, 0);
    gw_kv_u32(&w, "tokenizer.ggml.bos_token_id", UINT32_MAX); /* none, and BOS is asked for */
    gw_kv(&w, "tokenizer.ggml.add_bos_token", GW_BOOL, 1, 1);
    refuse(&w, "bos_token_id");
    w = tv_bpe("gpt-2", NULL, 0);
    tv_merges(&w, NULL, 0);
    gw_kv(&w, "tokenizer.ggml.add_eos_token", GW_BOOL, 1, 1);
    refuse(&w, "eos_token_id");
}

static void test_tokenizer_refuses_bad_merges(void **state)
{
    (void)state;
    static const struct {
        const char *merge, *part;
    } bad[] = {
        {"a zz", "merge 1: \"zz\" is not a token"},
        {"zz a", "merge 1: \"zz\" is not a token"},
        {"a c", "merge 1: \"ac\" is not a token"},
        {"ab", "merge 1 is \"ab\"; expected two tokens"},
        {"", "merge 1"},
        {" ", "merge 1"},
        {"a ", "merge 1"},
        {"a  b", "merge 1"},
        {"\xff a", "merge 1"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        gw w = tv_bpe("gpt-2", ab, 2);
        tv_merges(&w, (const char *const[]){"a b", bad[i].merge}, 2);
        refuse(&w, bad[i].part);
    }
    gw w = tv_bpe("gpt-2", ab, 2);
    refuse(&w, "tokenizer.ggml.merges");
    w = tv_bpe("gpt-2", ab, 2);
    gw_kv_array(&w, "tokenizer.ggml.merges", GW_U32, 1);
    gw_u32(&w, 0);
    refuse(&w, "tokenizer.ggml.merges");

    char *text = malloc(100000);
    assert_non_null(text);
    memset(text, 'a', 100000);
    text[50000] = ' ';
    w = tv_bpe("gpt-2", ab, 2);
    gw_kv_array(&w, "tokenizer.ggml.merges", GW_STRING, 1);
    gw_str_n(&w, text, 100000);
    refuse(&w, "merge 0");
    free(text);
}

static void test_tokenizer_bounds_the_number_of_merges(void **state)
{
    (void)state;
    uint32_t n = 5000000;
    gw w = tv_bpe("gpt-2", ab, 2);
    gw_kv_array(&w, "tokenizer.ggml.merges", GW_STRING, n);
    for (uint32_t i = 0; i < n; i++)
        gw_str_n(&w, "a b", 3);
    refuse(&w, "5000000 merges; the limit is");
}

static void test_repeated_and_self_merges_are_harmless(void **state)
{
    (void)state;
    gw w = tv_bpe("gpt-2", ab, 2);
    tv_merges(&w, (const char *const[]){"a b", "a b", "ab ab", "ab ab"}, 4);
    td_tokenizer *t = accept(&w);
    uint32_t *ids;
    size_t n;
    assert_true(td_tokenize(t, "ababab", 6, TD_ADD_NOTHING, false, &ids, &n, NULL));
    assert_int_equal(n, 2);
    assert_int_equal(ids[0], 257);
    assert_int_equal(ids[1], 256);
    td_free(ids);
    td_tokenizer_destroy(&t);
}

/* a, aa, aaaa, ... : the vocabulary that merges most. */
static const tv_token powers[] = {
    {"aa", 0, 1, -1},
    {"aaaa", 0, 1, -2},
    {"aaaaaaaa", 0, 1, -3},
    {"aaaaaaaaaaaaaaaa", 0, 1, -4},
};
static const char *const power_merges[] = {"a a", "aa aa", "aaaa aaaa", "aaaaaaaa aaaaaaaa"};

static td_tokenizer *power_tokenizer(bool spm, const char *pre)
{
    gw w;
    if (spm) {
        tv_token extra[5] = {{"a", 0, 1, -9}};
        memcpy(extra + 1, powers, sizeof powers);
        w = tv_spm(extra, 5);
    } else {
        w = tv_bpe(pre, powers, 4);
        tv_merges(&w, power_merges, 4);
    }
    return accept(&w);
}

static void test_a_megabyte_of_one_character_is_no_quadratic_work(void **state)
{
    (void)state;
    size_t n_text = 1u << 20, n;
    char *text = malloc(n_text);
    assert_non_null(text);
    for (int round = 0; round < 4; round++) {
        td_tokenizer *t = power_tokenizer(round == 0, "gpt-2");
        uint32_t *ids;
        memset(text, round < 2 ? 'a' : round == 2 ? ' ' : 0x80, n_text);
        assert_true(td_tokenize(t, text, n_text, TD_ADD_NOTHING, true, &ids, &n, NULL));
        /* the space in front; U+FFFD, three bytes, for each stray byte */
        size_t expected[] = {n_text / 16 + 3, n_text / 16, n_text, 3 * n_text};
        assert_int_equal(n, expected[round]);
        td_free(ids);
        td_tokenizer_destroy(&t);
    }
    free(text);
}

static void test_every_pretokenizer_is_linear(void **state)
{
    (void)state;
    static const char *const pre[] = {"default",      "llama-bpe",   "qwen35",
                                      "deepseek-llm", "deepseek-v3", "gpt-4o",
                                      "tekken",       "kimi-k2",     "starcoder"};
    /* runs that make a backtracking engine quadratic */
    static const char *const runs[] = {" ",   "A",         "\n",           "1",
                                       "'",   "!",         "\xcc\x81",     "\xe2\x80\x8d",
                                       " \n", "A\xc3\x89", "\xe4\xb8\xad", "'l"};
    size_t n_text = 1u << 17;
    char *text = malloc(n_text);
    assert_non_null(text);
    for (size_t p = 0; p < sizeof pre / sizeof pre[0]; p++) {
        td_tokenizer *t = power_tokenizer(false, pre[p]);
        for (size_t r = 0; r < sizeof runs / sizeof runs[0]; r++) {
            size_t n, length = strlen(runs[r]);
            uint32_t *ids;
            n_text = (1u << 17) / length * length;
            for (size_t i = 0; i < n_text; i++)
                text[i] = runs[r][i % length];
            assert_true(td_tokenize(t, text, n_text, TD_ADD_NOTHING, false, &ids, &n, NULL));
            assert_int_equal(n, n_text); /* no merges for these: a token for each byte */
            for (size_t i = 0; i < n; i++)
                assert_int_equal(ids[i], (unsigned char)text[i]);
            td_free(ids);
        }
        td_tokenizer_destroy(&t);
    }
    free(text);
}

static void test_texts_over_the_limit_are_refused(void **state)
{
    (void)state;
    td_tokenizer *t = power_tokenizer(true, NULL);
    td_err err = {0};
    uint32_t *ids;
    size_t n = 1;
    char *text = calloc(TD_TEXT_MAX + 1, 1);
    assert_non_null(text);
    assert_false(td_tokenize(t, text, TD_TEXT_MAX + 1, TD_ADD_NOTHING, false, &ids, &n, &err));
    assert_int_equal(err.code, TD_E_DATA);
    assert_non_null(strstr(err.message, "16777217"));
    assert_null(ids);
    free(text);
    td_tokenizer_destroy(&t);
}

/* Special tokens that begin alike, nested and overlapping, in a text made of their parts. */
static void test_dense_special_tokens(void **state)
{
    (void)state;
    static const tv_token extra[] = {
        {"<", 0, 4, 0}, {"<<", 0, 4, 0}, {"<<<", 0, 3, 0}, {"<<<<", 0, 4, 0}, {">", 0, 4, 0}};
    gw w = tv_spm(extra, 5);
    td_tokenizer *t = accept(&w);
    size_t n_text = 400003, n;
    uint32_t *ids;
    char *text = malloc(n_text);
    assert_non_null(text);
    memset(text, '<', n_text);
    assert_true(td_tokenize(t, text, n_text, TD_ADD_NOTHING, true, &ids, &n, NULL));
    assert_int_equal(n, n_text / 4 + 1);
    assert_int_equal(ids[n - 1], 261); /* "<<<", a control token */
    td_free(ids);
    assert_true(td_tokenize(t, text, n_text, TD_ADD_NOTHING, false, &ids, &n, NULL));
    assert_int_equal(n, n_text / 4 + 2);
    assert_int_equal(ids[n - 1], 259);
    td_free(ids);
    free(text);
    td_tokenizer_destroy(&t);
}

/* The n-th allocation fails, for every n: an error each time, and nothing leaks (sanitizers). */
static void test_out_of_memory_is_an_error_everywhere(void **state)
{
    (void)state;
    for (int kind = 0; kind < 2; kind++) {
        gw w = kind == 0 ? tv_spm(ab, 2) : tv_bpe("llama-bpe", ab, 2);
        if (kind == 1)
            tv_merges(&w, (const char *const[]){"a b", "ab ab"}, 2);
        gw_end(&w, 32, 0);
        gw_file f = gw_file_create();
        gw_file_set(&f, w.bytes, w.n);
        gw_free(&w);
        td_gguf *g = td_gguf_open(f.path, NULL);
        assert_non_null(g);
        bool done = false;
        for (uint64_t at = 1; !done; at++) {
            td_err err = {0};
            uint32_t *ids = NULL;
            size_t n;
            td_alloc_fail_at(at);
            td_tokenizer *t = td_tokenizer_create(g, NULL, &err);
            done = t != NULL &&
                   td_tokenize(t, "ababab </s> \xff", 13, TD_ADD_AS_FILE, true, &ids, &n, &err);
            td_alloc_fail_at(0);
            if (!done)
                assert_int_equal(err.code, TD_E_NOMEM);
            td_free(ids);
            td_tokenizer_destroy(&t);
            assert_true(at < 1000);
        }
        td_gguf_close(&g);
        close(f.fd);
    }
}

/* One bit of a small file flipped, at every byte: an error with a message, or a tokenizer that
 * tokenizes. The sanitizers do the rest. */
static void test_flipped_bits_do_no_harm(void **state)
{
    (void)state;
    for (unsigned kind = 0; kind < 2; kind++) {
        gw w = kind == 0 ? tv_spm(ab, 2) : tv_bpe("default", ab, 2);
        if (kind == 1)
            tv_merges(&w, (const char *const[]){"a b", "ab ab"}, 2);
        gw_kv_u32(&w, "tokenizer.ggml.bos_token_id", 1);
        gw_end(&w, 32, 0);
        size_t n_good = 0;
        for (size_t at = 8; at < w.n; at++) {
            td_err err = {0};
            uint32_t *ids;
            size_t n;
            uint8_t bit = (uint8_t)(1u << (at * 5 + kind) % 8);
            w.bytes[at] ^= bit;
            td_tokenizer *t = tv_create(&w, NULL, &err);
            w.bytes[at] ^= bit;
            assert_true((t == NULL) == (err.code != TD_OK && err.message[0] != 0));
            if (t == NULL)
                continue;
            n_good++;
            if (td_tokenize(t, "abab </s> \xff\xe2", 12, TD_ADD_AS_FILE, true, &ids, &n, &err)) {
                for (size_t i = 0; i < n; i++)
                    assert_true(ids[i] < td_tokenizer_get_info(t)->n_vocab);
                td_free(ids);
            }
            td_tokenizer_destroy(&t);
        }
        assert_true(n_good > 0 && n_good < w.n);
        gw_free(&w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokenizer_refuses_unknown_kinds),
        cmocka_unit_test(test_tokenizer_refuses_bad_token_lists),
        cmocka_unit_test(test_tokenizer_takes_odd_tokens),
        cmocka_unit_test(test_tokenizer_refuses_bad_byte_tokens),
        cmocka_unit_test(test_tokenizer_refuses_bad_scores_and_types),
        cmocka_unit_test(test_tokenizer_checks_special_ids),
        cmocka_unit_test(test_tokenizer_refuses_bad_merges),
        cmocka_unit_test(test_tokenizer_bounds_the_number_of_merges),
        cmocka_unit_test(test_repeated_and_self_merges_are_harmless),
        cmocka_unit_test(test_a_megabyte_of_one_character_is_no_quadratic_work),
        cmocka_unit_test(test_every_pretokenizer_is_linear),
        cmocka_unit_test(test_texts_over_the_limit_are_refused),
        cmocka_unit_test(test_dense_special_tokens),
        cmocka_unit_test(test_flipped_bits_do_no_harm),
        cmocka_unit_test(test_out_of_memory_is_an_error_everywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
