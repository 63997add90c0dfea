/* Tokenizers on small vocabularies whose right answers can be worked out by hand: merge order,
 * special tokens, flags, and the streaming detokenizer. */
#include "tokenizer_vocabs.h"

#include "base/mem.h"
#include "base/rng.h"
#include "base/utf8.h"
#include "model/pretokenize.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#define BYTE(b) (3u + (unsigned char)(b)) /* in tv_spm vocabularies */

enum { A = 259, B, AB, BC, C, SPACE, SPACE_A, USER, CONTROL };

static const tv_token spm_extra[] = {
    {"a", 0, 1, -1.0f},
    {"b", 0, 1, -1.0f},
    {"ab", 0, 1, -3.0f},
    {"bc", 0, 1, -2.0f},
    {"c", 0, 1, -1.0f},
    {"\xe2\x96\x81", 0, 1, -9.0f},
    {"\xe2\x96\x81"
     "a",
     0, 1, -4.0f},
    {"<u>", 0, 4, 0},
    {"<c>", 0, 3, 0},
};

static td_tokenizer *create(gw *w, const char *pre)
{
    td_err err = {0};
    gw_end(w, 32, 0);
    td_tokenizer *t = tv_create(w, pre, &err);
    if (t == NULL)
        fail_msg("%s", err.message);
    gw_free(w);
    return t;
}

static td_tokenizer *create_spm(void)
{
    gw w = tv_spm(spm_extra, sizeof spm_extra / sizeof spm_extra[0]);
    return create(&w, NULL);
}

static void expect(const td_tokenizer *t, const char *text, size_t n, td_added add, bool parse,
                   const uint32_t *ids, size_t n_ids)
{
    uint32_t *got;
    size_t n_got;
    td_err err = {0};
    if (!td_tokenize(t, text, n, add, parse, &got, &n_got, &err))
        fail_msg("%s", err.message);
    assert_int_equal(n_got, n_ids);
    for (size_t i = 0; i < n_ids; i++)
        assert_int_equal(got[i], ids[i]);
    td_free(got);
}

#define EXPECT(t, text, add, parse, ...)                                                           \
    expect(t, text, sizeof(text) - 1, add, parse, (const uint32_t[]){__VA_ARGS__},                 \
           sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t))

static void test_spm_merges_the_best_score_first(void **state)
{
    (void)state;
    td_tokenizer *t = create_spm();
    EXPECT(t, "abc", TD_ADD_NOTHING, false, SPACE_A, BC); /* bc (-2) before ab (-3), then _a */
    EXPECT(t, "bab", TD_ADD_NOTHING, false, SPACE, B, AB);
    EXPECT(t, "a a", TD_ADD_NOTHING, false, SPACE_A, SPACE_A);
    td_tokenizer_destroy(&t);
}

static void test_spm_falls_back_to_bytes(void **state)
{
    (void)state;
    td_tokenizer *t = create_spm();
    EXPECT(t, "\xc3\xa9\0z", TD_ADD_NOTHING, false, SPACE, BYTE(0xc3), BYTE(0xa9), BYTE(0),
           BYTE('z'));
    EXPECT(t, "\xff\x80\xe2", TD_ADD_NOTHING, false, SPACE, BYTE(0xff), BYTE(0x80), BYTE(0xe2));
    td_tokenizer_destroy(&t);
}

static void test_special_tokens_need_parse_special_but_user_defined_ones_do_not(void **state)
{
    (void)state;
    td_tokenizer *t = create_spm();
    EXPECT(t, "a<c>a", TD_ADD_NOTHING, true, SPACE_A, CONTROL, SPACE_A);
    EXPECT(t, "a<c>a", TD_ADD_NOTHING, false, SPACE_A, BYTE('<'), C, BYTE('>'), A);
    EXPECT(t, "a<u>a", TD_ADD_NOTHING, false, SPACE_A, USER, SPACE_A);
    EXPECT(t, "<s></s>", TD_ADD_NOTHING, true, 1, 2);
    td_tokenizer_destroy(&t);
}

static void test_bos_and_eos_follow_the_file(void **state)
{
    (void)state;
    td_tokenizer *t = create_spm();
    const td_tokenizer_info *info = td_tokenizer_get_info(t);
    assert_true(info->add_bos && !info->add_eos && info->add_space_prefix);
    assert_int_equal(info->bos, 1);
    assert_int_equal(info->eos, 2);
    assert_int_equal(info->unk, 0);
    assert_int_equal(info->pad, TD_NO_TOKEN);
    EXPECT(t, "a", TD_ADD_AS_FILE, false, 1, SPACE_A);
    EXPECT(t, "", TD_ADD_AS_FILE, false, 1);
    EXPECT(t, "<s>a", TD_ADD_AS_FILE, true, 1, 1,
           SPACE_A); /* the file asks, and the text says it */
    EXPECT(t, "<s>a", TD_ADD_FOR_PROMPT, true, 1, SPACE_A);
    EXPECT(t, "<s>", TD_ADD_FOR_PROMPT, true, 1);
    expect(t, "", 0, TD_ADD_NOTHING, false, NULL, 0);
    td_tokenizer_destroy(&t);

    gw w = tv_spm(spm_extra, sizeof spm_extra / sizeof spm_extra[0]);
    gw_kv(&w, "tokenizer.ggml.add_bos_token", GW_BOOL, 0, 1);
    gw_kv(&w, "tokenizer.ggml.add_eos_token", GW_BOOL, 1, 1);
    gw_kv(&w, "tokenizer.ggml.add_space_prefix", GW_BOOL, 0, 1);
    t = create(&w, NULL);
    EXPECT(t, "a", TD_ADD_AS_FILE, false, A, 2);
    EXPECT(t, "a", TD_ADD_FOR_PROMPT, false, A); /* the answer follows */
    td_tokenizer_destroy(&t);
}

static const tv_token bpe_extra[] = {
    {"ab", 0, 1, 0},
    {"bc", 0, 1, 0},
    {"abc", 0, 1, 0},
    {"\xc4\xa0"
     "a",
     0, 1, 0},
    {"<|im_end|>", 0, 3, 0},
    {"<|x|>", 0, 3, 0},
    {"xyz", 0, 1, 0},
    {"<|x|><|x|>", 0, 3, 0},
};
static const char *const bpe_merges[] = {"b c", "a b", "a bc", "\xc4\xa0 a"};

static td_tokenizer *create_bpe(const char *pre)
{
    gw w = tv_bpe(pre, bpe_extra, sizeof bpe_extra / sizeof bpe_extra[0]);
    tv_merges(&w, bpe_merges, 4);
    return create(&w, NULL);
}

static void test_bpe_merges_the_lowest_rank_first(void **state)
{
    (void)state;
    td_tokenizer *t = create_bpe("gpt-2");
    EXPECT(t, "abc", TD_ADD_NOTHING, false, 258);
    EXPECT(t, "abab", TD_ADD_NOTHING, false, 256, 256);
    EXPECT(t, "abbc", TD_ADD_NOTHING, false, 256, 257);
    EXPECT(t, "b a", TD_ADD_NOTHING, false, 'b', 259);
    EXPECT(t, "xyz", TD_ADD_NOTHING, false, 'x', 'y', 'z'); /* no merge leads to it */
    td_tokenizer_destroy(&t);
    t = create_bpe("llama-bpe");
    EXPECT(t, "xyz", TD_ADD_NOTHING, false, 262); /* a word that is a token is taken whole */
    td_tokenizer_destroy(&t);
}

/* Gemma 4: merges of characters, spaces as U+2581, lines apart, bytes for the rest. */
static void test_bpe_of_texts_merges_across_words(void **state)
{
    (void)state;
    const tv_token extra[] = {{"a", 0, 1, 0},
                              {"b", 0, 1, 0},
                              {"\xe2\x96\x81", 0, 1, 0},
                              {"b\xe2\x96\x81", 0, 1, 0},
                              {"b\xe2\x96\x81"
                               "a",
                               0, 1, 0},
                              {"\n", 0, 1, 0},
                              {"\n\n", 0, 1, 0},
                              {"\xc3\xa4", 0, 1, 0}};
    const char *const merges[] = {"b \xe2\x96\x81", "b\xe2\x96\x81 a", "\n \n"};
    gw w = tv_texts("gemma4", extra, sizeof extra / sizeof extra[0]);
    gw_kv_u32(&w, "tokenizer.ggml.bos_token_id", 1);
    tv_merges(&w, merges, sizeof merges / sizeof merges[0]);
    td_tokenizer *t = create(&w, NULL);
    assert_string_equal(td_tokenizer_get_info(t)->model, "gemma4");
    EXPECT(t, "ab a", TD_ADD_NOTHING, false, 259, 263);
    EXPECT(t, " a", TD_ADD_AS_FILE, false, 1, 261,
           259); /* BOS, though the file does not ask for it */
    EXPECT(t, "b\n\n\n", TD_ADD_NOTHING, false, 260, 265, 264);
    EXPECT(t, "\xc3\xa4\xc3\xb6", TD_ADD_NOTHING, false, 266, 3 + 0xc3, 3 + 0xb6);
    size_t n;
    assert_memory_equal(td_token_bytes(t, 263, false, &n), "b a", 3);
    assert_int_equal(n, 3);
    assert_int_equal(td_token_bytes(t, 3 + 'x', false, &n)[0], 'x');
    td_tokenizer_destroy(&t);
}

static void test_bpe_writes_ill_formed_bytes_as_replacement_characters(void **state)
{
    (void)state;
    td_tokenizer *t = create_bpe("gpt-2");
    EXPECT(t, "a\xff", TD_ADD_NOTHING, false, 'a', 0xef, 0xbf, 0xbd);
    EXPECT(t, "\xe2\x82", TD_ADD_NOTHING, false, 0xef, 0xbf, 0xbd, 0xef, 0xbf, 0xbd);
    EXPECT(t, "\0", TD_ADD_NOTHING, false, 0);
    td_tokenizer_destroy(&t);
}

static void test_longer_special_tokens_win(void **state)
{
    (void)state;
    td_tokenizer *t = create_bpe("gpt-2");
    EXPECT(t, "<|x|><|x|><|x|>", TD_ADD_NOTHING, true, 263, 261);
    EXPECT(t, "<|x<|x|>", TD_ADD_NOTHING, true, '<', '|', 'x', 261);
    td_tokenizer_destroy(&t);
}

static void test_end_tokens_are_known_by_their_text(void **state)
{
    (void)state;
    td_tokenizer *t = create_bpe("gpt-2");
    assert_true(td_token_is_end(t, 260));
    assert_int_equal(td_tokenizer_get_info(t)->eot, 260);
    assert_false(td_token_is_end(t, 261));
    assert_true(td_token_is_control(t, 261));
    assert_false(td_token_is_control(t, 'a'));
    size_t n;
    (void)td_token_bytes(t, 260, false, &n);
    assert_int_equal(n, 0);
    const char *bytes = td_token_bytes(t, 260, true, &n);
    assert_int_equal(n, 10);
    assert_memory_equal(bytes, "<|im_end|>", 10);
    td_tokenizer_destroy(&t);
}

static void test_pre_override_replaces_the_file(void **state)
{
    (void)state;
    gw w = tv_bpe("no-such-name", bpe_extra, 8);
    tv_merges(&w, bpe_merges, 4);
    td_tokenizer *t = create(&w, "qwen2");
    assert_string_equal(td_tokenizer_get_info(t)->pre, "qwen2");
    td_tokenizer_destroy(&t);
}

static void test_hash_covers_texts_and_types(void **state)
{
    (void)state;
    td_tokenizer *spm = create_spm(), *bpe = create_bpe("gpt-2"), *same = create_bpe("qwen2");
    assert_true(td_tokenizer_hash(bpe, 0, 264) == td_tokenizer_hash(same, 0, 264));
    assert_true(td_tokenizer_hash(bpe, 0, 263) != td_tokenizer_hash(bpe, 0, 264));
    assert_true(td_tokenizer_hash(bpe, 0, 8) != td_tokenizer_hash(spm, 0, 8));
    td_tokenizer_destroy(&same);

    gw w = tv_bpe("gpt-2", bpe_extra, 8);
    tv_merges(&w, bpe_merges, 4);
    size_t at = 0; /* the type of token 0 follows the array's head */
    for (size_t i = 0; i + 25 < w.n; i++) {
        if (memcmp(w.bytes + i, "tokenizer.ggml.token_type", 25) == 0)
            at = i + 25 + 4 + 4 + 8;
    }
    gw_patch(&w, at, 4, 4);
    same = create(&w, NULL);
    assert_true(td_tokenizer_hash(bpe, 0, 264) != td_tokenizer_hash(same, 0, 264));
    assert_true(td_tokenizer_hash(bpe, 1, 264) == td_tokenizer_hash(same, 1, 264));
    td_tokenizer_destroy(&same);
    td_tokenizer_destroy(&spm);
    td_tokenizer_destroy(&bpe);
}

/* Feeds byte tokens of `text`, checks that every step gives whole characters, returns the text. */
static size_t stream(const td_tokenizer *t, const unsigned char *text, size_t n, char *out)
{
    td_detokenizer d = {.is_begun = true};
    char piece[TD_DETOKENIZE_MAX];
    size_t n_out = 0, n_piece;
    for (size_t i = 0; i <= n; i++) {
        if (i < n)
            td_detokenize(&d, t, BYTE(text[i]), piece, sizeof piece, &n_piece);
        else
            td_detokenize_end(&d, piece, sizeof piece, &n_piece);
        assert_true(td_utf8_valid(piece, n_piece, NULL));
        memcpy(out + n_out, piece, n_piece);
        n_out += n_piece;
    }
    return n_out;
}

static void test_detokenizer_never_splits_a_character(void **state)
{
    (void)state;
    td_tokenizer *t = create_spm();
    const char *text = "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80z\xed\x9f\xbf\xf4\x8f\xbf\xbf";
    char out[4096];
    size_t n = stream(t, (const unsigned char *)text, strlen(text), out);
    assert_int_equal(n, strlen(text));
    assert_memory_equal(out, text, n);

    /* ill-formed text: one U+FFFD for each maximal subpart, wherever the tokens are cut */
    static const struct {
        const char *in, *out;
    } bad[] = {
        {"\xe2\x82", "\xef\xbf\xbd"},
        {"\xe2\x82x", "\xef\xbf\xbdx"},
        {"\xf0\x9f\x98\xc3\xa9", "\xef\xbf\xbd\xc3\xa9"},
        {"\xc0\xaf", "\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xf4\x90", "\xef\xbf\xbd\xef\xbf\xbd"},
        {"\x80", "\xef\xbf\xbd"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        n = stream(t, (const unsigned char *)bad[i].in, strlen(bad[i].in), out);
        assert_int_equal(n, strlen(bad[i].out));
        assert_memory_equal(out, bad[i].out, n);
    }
    td_tokenizer_destroy(&t);
}

/* Random bytes in random pieces: the stream equals decoding the whole at once. */
static void test_detokenizer_does_not_depend_on_the_cuts(void **state)
{
    (void)state;
    td_tokenizer *t = create_spm();
    unsigned char text[64];
    char out[1024], whole[1024];
    static const unsigned char lead[] = {0xc3, 0xe2, 0xf0, 0x9f, 0x98, 0x80, 0xed, 0xf4, 'a'};
    for (uint64_t seed = 0; seed < 2000; seed++) {
        size_t n = 1 + td_noise_bits(seed, 0, 0) % sizeof text, n_whole = 0;
        for (size_t i = 0; i < n; i++)
            text[i] = lead[td_noise_bits(seed, i + 1, 0) % sizeof lead];
        for (size_t at = 0; at < n;) {
            uint32_t c;
            at += td_utf8_next((const char *)text + at, n - at, &c);
            bool bad = c == TD_UTF8_BAD || c == TD_UTF8_CUT;
            n_whole += td_utf8_encode(bad ? TD_UTF8_REPLACEMENT : c, whole + n_whole);
        }
        assert_int_equal(stream(t, text, n, out), n_whole);
        assert_memory_equal(out, whole, n_whole);
    }
    td_tokenizer_destroy(&t);
}

static void test_detokenizer_drops_only_the_added_space(void **state)
{
    (void)state;
    td_tokenizer *t = create_spm();
    td_detokenizer d = {0};
    char out[TD_DETOKENIZE_MAX];
    size_t n;
    td_detokenize(&d, t, 1, out, sizeof out, &n); /* BOS: no text, and nothing has begun */
    assert_int_equal(n, 0);
    td_detokenize(&d, t, SPACE_A, out, sizeof out, &n);
    assert_int_equal(n, 1);
    assert_int_equal(out[0], 'a');
    td_detokenize(&d, t, SPACE_A, out, sizeof out, &n);
    assert_int_equal(n, 2);
    assert_memory_equal(out, " a", 2);
    td_tokenizer_destroy(&t);
}

/* The number of words, and their ends in code points. */
static size_t words(const char *pre, const char *text, size_t *ends)
{
    static td_char chars[256];
    size_t n = 0, n_words = 0;
    for (size_t at = 0; text[at] != 0;) {
        uint32_t c;
        at += td_utf8_next(text + at, strlen(text + at), &c);
        chars[n++] = td_pretokenize_char(c);
    }
    td_pretokenize_run(td_pretokenize_find(pre), chars, n);
    for (size_t i = 1; i <= n; i++) {
        if (i == n || (chars[i] & TD_CHAR_CUT) != 0)
            ends[n_words++] = i;
    }
    return n_words;
}

static void test_pretokenizers_cut_as_their_expressions_say(void **state)
{
    (void)state;
    static const struct {
        const char *pre, *text;
        size_t n, ends[8];
    } cases[] = {
        {"gpt-2", "I'll go  1234", 5, {1, 4, 7, 8, 13}},
        {"llama-bpe", "I'LL go  1234", 7, {1, 4, 7, 8, 9, 12, 13}},
        {"qwen2", "a12 \n\n b", 5, {1, 2, 3, 6, 8}},
        {"gpt-4o", "camelCase's /\n/", 3, {5, 11, 15}},
        {"gpt-4o",
         "A\xc3\x89"
         "BC!",
         3,
         {2, 4, 5}}, /* E acute may be lower case, B and C not */
        {"kimi-k2",
         "ab\xe4\xb8\xad\xe6\x96\x87"
         "cd's",
         3,
         {2, 4, 8}},
        {"deepseek-v3",
         "(abc) \xe3\x81\xb2"
         "12",
         5,
         {4, 5, 6, 7, 9}},
        {"starcoder", "a 12", 4, {1, 2, 3, 4}},
        {"tekken", "ABcd's", 2, {4, 6}},
        {"falcon", "a`b$ 1234", 7, {1, 2, 3, 4, 5, 8, 9}},
        {"bloom", "ab12 cd,ef", 4, {4, 7, 8, 10}},
        {"viking", "ab12 cd", 4, {2, 3, 4, 7}},
        {"superbpe", "a b 1234567 c", 5, {4, 5, 8, 11, 13}},
        {"seed-coder", "a!\n\nb12", 6, {1, 2, 4, 5, 6, 7}},
        {"qwen2", "a!\n\nb12", 5, {1, 4, 5, 6, 7}},
        {"deepseek-coder", "ab  cd? 12\n", 8, {2, 3, 6, 7, 8, 9, 10, 11}},
        {"gemma4", "a b\n\nc d", 3, {3, 5, 8}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        size_t ends[256];
        size_t n = words(cases[i].pre, cases[i].text, ends);
        if (n != cases[i].n || memcmp(ends, cases[i].ends, n * sizeof ends[0]) != 0) {
            print_message("%s \"%s\":", cases[i].pre, cases[i].text);
            for (size_t k = 0; k < n; k++)
                print_message(" %zu", ends[k]);
            print_message("\n");
            fail();
        }
    }
    assert_null(td_pretokenize_find("LLAMA-BPE"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_spm_merges_the_best_score_first),
        cmocka_unit_test(test_spm_falls_back_to_bytes),
        cmocka_unit_test(test_special_tokens_need_parse_special_but_user_defined_ones_do_not),
        cmocka_unit_test(test_bos_and_eos_follow_the_file),
        cmocka_unit_test(test_bpe_merges_the_lowest_rank_first),
        cmocka_unit_test(test_bpe_of_texts_merges_across_words),
        cmocka_unit_test(test_bpe_writes_ill_formed_bytes_as_replacement_characters),
        cmocka_unit_test(test_longer_special_tokens_win),
        cmocka_unit_test(test_end_tokens_are_known_by_their_text),
        cmocka_unit_test(test_pre_override_replaces_the_file),
        cmocka_unit_test(test_hash_covers_texts_and_types),
        cmocka_unit_test(test_detokenizer_never_splits_a_character),
        cmocka_unit_test(test_detokenizer_does_not_depend_on_the_cuts),
        cmocka_unit_test(test_detokenizer_drops_only_the_added_space),
        cmocka_unit_test(test_pretokenizers_cut_as_their_expressions_say),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
