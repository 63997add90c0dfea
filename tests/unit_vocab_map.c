/* Maps between vocabularies: which tokens are twins, what stands in for those that have none, and
 * when a draft's vocabulary is too far off. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/tokenizer_vocabs.h"

#include "base/check.h"
#include "base/mem.h"
#include "model/vocab_map.h"

#include <string.h>

static td_tokenizer *spm(const tv_token *extra, size_t n)
{
    gw w = tv_spm(extra, n);
    td_err err = {0};
    gw_end(&w, 32, 0);
    td_tokenizer *t = tv_create(&w, NULL, &err);
    gw_free(&w);
    if (!t)
        fail_msg("%s", err.message);
    return t;
}

static td_tokenizer *bpe(const tv_token *extra, size_t n_extra, const char *const *merges, size_t n)
{
    gw w = tv_bpe("gpt-2", extra, n_extra);
    tv_merges(&w, merges, n);
    td_err err = {0};
    gw_end(&w, 32, 0);
    td_tokenizer *t = tv_create(&w, NULL, &err);
    gw_free(&w);
    if (!t)
        fail_msg("%s", err.message);
    return t;
}

static td_vocab_map *map_of(const td_tokenizer *target, const td_tokenizer *draft)
{
    td_err err = {0};
    td_vocab_map *map = td_vocab_map_create(target, draft, &err);
    if (!map)
        fail_msg("%s", err.message);
    return map;
}

static void assert_pieces(const td_vocab_map *map, uint32_t id, const uint32_t *wanted,
                          uint32_t n_wanted)
{
    const uint32_t *ids;
    uint32_t n;
    td_vocab_map_to_draft(map, id, &ids, &n);
    assert_int_equal(n, n_wanted);
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(ids[i], wanted[i]);
}

static void test_padding_is_no_difference(void **state)
{
    (void)state;
    const tv_token tokens[] = {{"a", 0, 1, 0}, {"b", 0, 1, 0}, {"[PAD1]", 0, 5, 0}};
    td_tokenizer *small = spm(tokens, 2), *large = spm(tokens, 3), *other = spm(tokens + 1, 1);
    assert_true(td_vocab_is_same(small, large));
    assert_true(td_vocab_is_same(large, small));
    assert_false(td_vocab_is_same(small, other));
    td_tokenizer_destroy(&small);
    td_tokenizer_destroy(&large);
    td_tokenizer_destroy(&other);
}

static void test_twins_have_the_same_bytes_and_are_control_alike(void **state)
{
    (void)state;
    const tv_token a[] = {
        {"\xe2\x96\x81the", 0, 1, 0}, {"A", 0, 1, 0}, {"<|x|>", 0, 3, 0}, {"<|y|>", 0, 3, 0}};
    const tv_token b[] = {
        {"<|y|>", 0, 1, 0}, {"<|x|>", 0, 3, 0}, {"A", 0, 1, 0}, {"\xe2\x96\x81the", 0, 1, 0}};
    td_tokenizer *target = spm(a, 4), *draft = spm(b, 4);
    td_vocab_map *map = map_of(target, draft);
    td_vocab_map_info info = td_vocab_map_get_info(map);
    assert_int_equal(info.n_target, 263);
    assert_int_equal(info.n_text, 263);
    assert_int_equal(info.n_twins, 262);
    assert_true(info.is_aligned); /* 259 of 263 */
    assert_pieces(map, 259, (const uint32_t[]){262}, 1);
    assert_pieces(map, 260, (const uint32_t[]){261}, 1); /* not the byte token of A */
    assert_pieces(map, 3 + 'A', (const uint32_t[]){3 + 'A'}, 1);
    assert_int_equal(td_vocab_map_to_target(map, 262), 259);
    assert_int_equal(td_vocab_map_to_target(map, 260), 261);
    assert_int_equal(td_vocab_map_to_target(map, 259), TD_NO_TOKEN); /* text, there it is control */
    td_vocab_map_destroy(&map);
    assert_null(map);
    td_tokenizer_destroy(&target);
    td_tokenizer_destroy(&draft);
}

/* The byte-level side has every byte, so it can read whatever the other says. */
static void test_kinds_of_vocabularies_meet_in_their_bytes(void **state)
{
    (void)state;
    const tv_token a[] = {
        {"\xe2\x96\x81", 0, 1, 0}, {"\xe2\x96\x81he", 0, 1, 0}, {"zz\xc3\xa4", 0, 1, 0}};
    const tv_token b[] = {{"he", 0, 1, 0}, {"\xc4\xa0he", 0, 1, 0}, {"<|end|>", 0, 3, 0}};
    const char *const merges[] = {"h e", "\xc4\xa0 he"};
    td_tokenizer *target = spm(a, 3), *draft = bpe(b, 3, merges, 2);
    td_vocab_map *map = map_of(target, draft);
    assert_false(td_vocab_map_get_info(map).is_aligned);
    assert_pieces(map, 3 + 0xc3, (const uint32_t[]){0xc3}, 1); /* bytes that are no text */
    assert_pieces(map, 259, (const uint32_t[]){' '}, 1);
    assert_pieces(map, 260, (const uint32_t[]){257}, 1);
    assert_pieces(map, 261, (const uint32_t[]){'z', 'z', 0xc3, 0xa4}, 4); /* no twin */
    assert_int_equal(td_vocab_map_to_target(map, 257), 260);
    assert_int_equal(td_vocab_map_to_target(map, ' '), 259);
    assert_int_equal(td_vocab_map_to_target(map, 'h'), 3 + 'h');
    assert_int_equal(td_vocab_map_to_target(map, 256), TD_NO_TOKEN); /* "he" */
    /* </s> is what ends a text there, <|end|> here. */
    assert_pieces(map, 2, (const uint32_t[]){258}, 1);
    assert_int_equal(td_vocab_map_to_target(map, 258), 2);
    td_vocab_map_destroy(&map);
    td_tokenizer_destroy(&target);
    td_tokenizer_destroy(&draft);
}

static void test_far_vocabularies_are_refused_with_their_distance(void **state)
{
    (void)state;
    static const char *const names[] = {"aa", "bb", "cc", "dd", "ee", "ff", "gg", "hh"};
    tv_token a[8];
    for (size_t i = 0; i < 8; i++)
        a[i] = (tv_token){names[i], 0, 1, 0};
    gw w = gw_begin(3);
    gw_kv_str(&w, "tokenizer.ggml.model", "llama");
    tv_tokens(&w, a, 8);
    td_err err = {0};
    gw_end(&w, 32, 0);
    td_tokenizer *target = tv_create(&w, NULL, &err), *draft = spm(a, 5);
    gw_free(&w);
    assert_non_null(target);
    assert_null(td_vocab_map_create(target, draft, &err));
    assert_int_equal(err.code, TD_E_UNAVAILABLE);
    assert_non_null(strstr(err.message, "5 of the target's 8 tokens are among the draft's 264"));
    assert_non_null(strstr(err.message, "token 0: \"aa\" at the target, \"<unk>\" at the draft"));
    td_tokenizer_destroy(&draft);
    draft = spm(a, 6); /* 6 of 8 */
    td_vocab_map *map = map_of(target, draft);
    td_vocab_map_destroy(&map);
    td_tokenizer_destroy(&target);
    td_tokenizer_destroy(&draft);
}

static void test_lack_of_memory_leaves_nothing_behind(void **state)
{
    (void)state;
    const tv_token a[] = {{"xy", 0, 1, 0}, {"yz", 0, 1, 0}};
    td_tokenizer *target = spm(a, 2), *draft = spm(a + 1, 1);
    td_vocab_map *map = NULL;
    for (uint64_t n = 1; !map; n++) {
        td_err err = {0};
        td_alloc_fail_at(n);
        map = td_vocab_map_create(target, draft, &err);
        td_alloc_fail_at(0);
        assert_true(map || err.code == TD_E_NOMEM);
        assert_true(n < 1000);
    }
    td_vocab_map_destroy(&map);
    td_tokenizer_destroy(&target);
    td_tokenizer_destroy(&draft);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_padding_is_no_difference),
        cmocka_unit_test(test_twins_have_the_same_bytes_and_are_control_alike),
        cmocka_unit_test(test_kinds_of_vocabularies_meet_in_their_bytes),
        cmocka_unit_test(test_far_vocabularies_are_refused_with_their_distance),
        cmocka_unit_test(test_lack_of_memory_leaves_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
