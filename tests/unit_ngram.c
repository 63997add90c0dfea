/* Drafts found in the text against a search of all positions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/check.h"
#include "base/mem.h"
#include "base/rng.h"
#include "draft/ngram.h"

#include <stdlib.h>
#include <string.h>

#define N_CTX 400u

static td_ngram *create(uint32_t n_ring, uint32_t n_slots)
{
    td_err err = {0};
    td_ngram *g = td_ngram_create(n_ring, n_slots, N_CTX, &err);
    if (!g)
        fail_msg("%s", err.message);
    return g;
}

/* ---- by definition ---- */

/* Tokens in which the ends of a[0..n_a) and b[0..n_b) agree, up to the most that is counted. */
static uint32_t count_common(const uint32_t *a, uint32_t n_a, const uint32_t *b, uint32_t n_b)
{
    uint32_t n = 0;
    while (n < n_a && n < n_b && n < TD_NGRAM_MATCH_MAX && a[n_a - 1 - n] == b[n_b - 1 - n])
        ++n;
    return n;
}

typedef struct {
    uint32_t tokens[N_CTX], n;
} text;

/* The longest match of the end of `all` (committed and tail) in itself, the latest of several; a
 * longer one in `old`, oldest first, wins. */
static uint32_t search(const text *all, uint32_t n_committed, const text *old, uint32_t n_old,
                       uint32_t *ids, uint32_t max, uint32_t *n_match)
{
    const text *best_text = NULL;
    uint32_t best = TD_NGRAM_MIN - 1, best_end = 0, n = 0;
    for (uint32_t end = all->n < n_committed + 1 ? all->n - 1 : n_committed; end > 0; --end) {
        uint32_t m = count_common(all->tokens, end, all->tokens, all->n);
        if (m > best) {
            best = m;
            best_end = end;
            best_text = all;
        }
    }
    for (uint32_t i = n_old; i > 0; --i)
        for (uint32_t end = old[i - 1].n - 1; end > 0; --end) {
            uint32_t m = count_common(old[i - 1].tokens, end, all->tokens, all->n);
            if (m > best) {
                best = m;
                best_end = end;
                best_text = &old[i - 1];
            }
        }
    *n_match = best_text ? best : 0;
    for (; best_text == all && n < max; ++n)
        ids[n] = best_end + n < all->n ? all->tokens[best_end + n] : ids[best_end + n - all->n];
    for (; best_text && best_text != all && n < max && best_end + n < best_text->n; ++n)
        ids[n] = best_text->tokens[best_end + n];
    return n;
}

/* ---- tests ---- */

/* Random texts over few tokens (so few that no chain is cut short would be too few for matches to
 * be rare), with copies of earlier parts. */
static void make_text(text *t, uint32_t n, uint64_t seed)
{
    t->n = n;
    for (uint32_t i = 0; i < n; ++i) {
        uint32_t from = td_noise_bits(seed, i, 1) % (i + 1);
        if (i > 8 && td_noise_bits(seed, i, 0) % 20 == 0)
            for (uint32_t j = 0; j < 12 && i + j < n && from + j < i; ++j)
                t->tokens[i + j] = t->tokens[from + j];
        else
            t->tokens[i] = td_noise_bits(seed, i, 2) % 24;
    }
}

static void check_lookup(td_ngram *g, uint32_t slot, const text *t, uint32_t n, uint32_t n_tail,
                         const text *old, uint32_t n_old)
{
    uint32_t ids[80], expected[80], n_match, n_match_expected;
    uint32_t max = td_noise_bits(n, n_tail, 0) % 80;
    text all = *t;
    all.n = n + n_tail;
    uint32_t n_expected = 0, n_ids;
    if (all.n > 0 && max > 0)
        n_expected = search(&all, n, old, n_old, expected, max, &n_match_expected);
    else
        n_match_expected = 0;
    n_ids = td_ngram_lookup(g, slot, t->tokens, n, t->tokens + n, n_tail, ids, max, &n_match);
    assert_int_equal(n_match, n_match_expected);
    assert_int_equal(n_ids, n_expected);
    assert_memory_equal(ids, expected, n_ids * sizeof(*ids));
}

static void test_lookup_finds_what_a_search_finds(void **state)
{
    (void)state;
    static text t, old[6];
    td_ngram *g = create(4096, 2);
    for (uint64_t seed = 0; seed < 30; ++seed) {
        uint32_t n_old = (uint32_t)seed % 7; /* a new drafter after each seven */
        if (n_old == 0) {
            td_ngram_destroy(&g);
            g = create(4096, 2);
        }
        make_text(&t, 300, seed);
        td_ngram_open(g, 1);
        for (uint32_t n = 0; n <= 260; n += 1 + td_noise_bits(seed, n, 5) % 6)
            check_lookup(g, 1, &t, n, n % 3 == 0 ? n % 40 : 0, old, n_old);
        td_ngram_close(g, 1, t.tokens, 300, true);
        old[n_old == 6 ? 5 : n_old] = t;
    }
    td_ngram_destroy(&g);
    assert_null(g);
}

static void test_a_period_goes_on(void **state)
{
    (void)state;
    uint32_t tokens[10] = {1, 2, 3, 1, 2, 3, 1, 2, 3, 1}, ids[9], n_match;
    static const uint32_t expected[] = {2, 3, 1, 2, 3, 1, 2, 3, 1};
    td_ngram *g = create(0, 1);
    assert_int_equal(td_ngram_lookup(g, 0, tokens, 10, NULL, 0, ids, 9, &n_match), 9);
    assert_int_equal(n_match, 7);
    assert_memory_equal(ids, expected, sizeof(expected));
    /* Its last tokens may be guesses; they are not remembered. */
    td_ngram_open(g, 0);
    assert_int_equal(td_ngram_lookup(g, 0, tokens, 4, tokens + 4, 6, ids, 9, &n_match), 9);
    assert_int_equal(n_match, 4); /* 1 2 3 1 of the committed ones */
    assert_memory_equal(ids, expected, sizeof(expected));
    tokens[4] = 9;
    assert_int_equal(td_ngram_lookup(g, 0, tokens, 7, NULL, 0, ids, 9, &n_match), 0);
    assert_int_equal(n_match, 0);
    td_ngram_destroy(&g);
}

static void test_a_match_ends_where_its_text_does(void **state)
{
    (void)state;
    static const uint32_t a[] = {5, 6, 7, 8, 9}, b[] = {9, 10, 11}, c[] = {1, 5, 6, 7};
    uint32_t ids[8], n_match;
    td_ngram *g = create(100, 1);
    td_ngram_close(g, 0, a, 5, true);
    td_ngram_close(g, 0, b, 3, true);  /* too short to be of use */
    td_ngram_close(g, 0, c, 4, false); /* not kept */
    td_ngram_open(g, 0);
    assert_int_equal(td_ngram_lookup(g, 0, c, 4, NULL, 0, ids, 8, &n_match), 2);
    assert_int_equal(n_match, 3);
    assert_int_equal(ids[0], 8);
    assert_int_equal(ids[1], 9);
    static const uint32_t across[] = {8, 9, 9};
    td_ngram_open(g, 0);
    assert_int_equal(td_ngram_lookup(g, 0, across, 3, NULL, 0, ids, 8, &n_match), 0);
    td_ngram_destroy(&g);
}

static void test_the_oldest_texts_give_way(void **state)
{
    (void)state;
    uint32_t ids[4], n_match;
    td_ngram *g = create(100, 1);
    for (uint32_t i = 0; i < 1000; ++i) {
        uint32_t t[10];
        for (uint32_t j = 0; j < 10; ++j)
            t[j] = i * 10 + j;
        td_ngram_close(g, 0, t, 10, true);
        for (uint32_t back = 0; back < 14 && back <= i; ++back) {
            for (uint32_t j = 0; j < 10; ++j)
                t[j] = (i - back) * 10 + j;
            td_ngram_open(g, 0);
            uint32_t n = td_ngram_lookup(g, 0, t, 8, NULL, 0, ids, 4, &n_match);
            assert_int_equal(n, back < 10 ? 2 : 0); /* ten texts fit */
            assert_int_equal(n_match, back < 10 ? 8 : 0);
        }
    }
    td_ngram_destroy(&g);
}

/* A text longer than the ring keeps its end. */
static void test_a_long_text_keeps_its_end(void **state)
{
    (void)state;
    uint32_t t[N_CTX], ids[4], n_match;
    td_ngram *g = create(50, 1);
    for (uint32_t i = 0; i < N_CTX; ++i)
        t[i] = i;
    td_ngram_close(g, 0, t, N_CTX, true);
    td_ngram_open(g, 0);
    assert_int_equal(td_ngram_lookup(g, 0, t + N_CTX - 50, 10, NULL, 0, ids, 4, &n_match), 4);
    assert_int_equal(n_match, 10);
    td_ngram_open(g, 0);
    assert_int_equal(td_ngram_lookup(g, 0, t + N_CTX - 60, 10, NULL, 0, ids, 4, &n_match), 0);
    td_ngram_destroy(&g);
}

/* Any ids, texts of one token only (the longest chains), rings of any size, slots used at random:
 * nothing but ids that were given comes back, and never more than asked for. */
static void test_any_texts_will_do(void **state)
{
    (void)state;
    static const uint32_t alphabet[] = {0, UINT32_MAX, 1, UINT32_MAX - 1, 0x80000000u};
    static uint32_t t[4][N_CTX];
    for (uint64_t seed = 0; seed < 60; ++seed) {
        uint32_t n_ring = td_noise_bits(seed, 0, 0) % 70, n_kinds = 1 + (uint32_t)seed % 5,
                 n[4] = {0};
        td_ngram *g = create(n_ring, 4);
        uint64_t n_allocated = td_alloc_count();
        for (uint32_t step = 0; step < 400; ++step) {
            uint32_t slot = td_noise_bits(seed, step, 1) % 4, n_match, ids[140];
            uint32_t n_more = td_noise_bits(seed, step, 2) % 20, n_tail = n_more % 5;
            if (n[slot] + n_more + n_tail > N_CTX || n_more == 19) {
                td_ngram_close(g, slot, t[slot], n[slot], step % 3 != 0);
                n[slot] = 0;
                continue;
            }
            for (uint32_t i = 0; i < n_more + n_tail; ++i)
                t[slot][n[slot] + i] = alphabet[td_noise_bits(seed, step, 3 + i) % n_kinds];
            n[slot] += n_more;
            uint32_t max = td_noise_bits(seed, step, 99) % 130;
            ids[max] = 77;
            uint32_t n_ids = td_ngram_lookup(g, slot, t[slot], n[slot], t[slot] + n[slot], n_tail,
                                             ids, max, &n_match);
            assert_true(n_ids <= max && ids[max] == 77);
            assert_true(n_match <= TD_NGRAM_MATCH_MAX && (n_match == 0 || n_match >= TD_NGRAM_MIN));
            assert_true(n_ids == 0 || n_match > 0);
            for (uint32_t i = 0; i < n_ids; ++i) {
                bool is_given = false;
                for (uint32_t j = 0; j < n_kinds; ++j)
                    is_given = is_given || ids[i] == alphabet[j];
                assert_true(is_given);
            }
        }
        assert_int_equal(td_alloc_count(), n_allocated);
        td_ngram_destroy(&g);
    }
}

/* A sequence that is shorter than before is another one. */
static void test_a_shorter_text_is_another_one(void **state)
{
    (void)state;
    uint32_t t[20], ids[4], n_match;
    td_ngram *g = create(0, 1);
    for (uint32_t i = 0; i < 20; ++i)
        t[i] = i;
    assert_int_equal(td_ngram_lookup(g, 0, t, 20, NULL, 0, ids, 4, &n_match), 0);
    for (uint32_t i = 0; i < 8; ++i)
        t[i] = 100 + i % 4;
    assert_int_equal(td_ngram_lookup(g, 0, t, 8, NULL, 0, ids, 4, &n_match), 4);
    assert_int_equal(n_match, 4);
    td_ngram_destroy(&g);
}

static void test_memory_is_what_is_said(void **state)
{
    (void)state;
    td_err err = {0};
    td_ngram *g = td_ngram_create(TD_NGRAM_RING, 8, 4096, &err);
    assert_non_null(g);
    /* 13 bytes a token of the ring, 8 a token of the slots. */
    assert_in_range(td_ngram_bytes(g), 13u * TD_NGRAM_RING + 8u * 8 * 4096,
                    13u * TD_NGRAM_RING + 8u * 8 * 4096 + 8192);
    td_ngram_destroy(&g);
    td_ngram_destroy(&g); /* of nothing */
}

static void test_create_fails_cleanly(void **state)
{
    (void)state;
    static const uint32_t bad[][3] = {
        {TD_NGRAM_RING_MAX + 1, 1, 10}, {10, 0, 10}, {10, TD_NGRAM_SLOTS_MAX + 1, 10}, {10, 1, 0},
        {10, 1, TD_NGRAM_CTX_MAX + 1},
    };
    for (uint32_t i = 0; i < TD_COUNT(bad); ++i) {
        td_err err = {0};
        assert_null(td_ngram_create(bad[i][0], bad[i][1], bad[i][2], &err));
        assert_int_equal(err.code, TD_E_USAGE);
    }
    for (uint64_t n = 1; n <= 10; ++n) {
        td_err err = {0};
        td_alloc_fail_at(n);
        td_ngram *g = td_ngram_create(10, 2, 10, &err);
        td_alloc_fail_at(0);
        assert_true((g == NULL) == (err.code == TD_E_NOMEM));
        assert_true(n == 10 ? g != NULL : g == NULL); /* nine */
        td_ngram_destroy(&g);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lookup_finds_what_a_search_finds),
        cmocka_unit_test(test_a_period_goes_on),
        cmocka_unit_test(test_a_match_ends_where_its_text_does),
        cmocka_unit_test(test_the_oldest_texts_give_way),
        cmocka_unit_test(test_a_long_text_keeps_its_end),
        cmocka_unit_test(test_any_texts_will_do),
        cmocka_unit_test(test_a_shorter_text_is_another_one),
        cmocka_unit_test(test_memory_is_what_is_said),
        cmocka_unit_test(test_create_fails_cleanly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
