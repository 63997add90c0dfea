/* The cache's pages: growing, shrinking, sharing, and what is left when they run out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/mem.h"
#include "model/cache.h"
#include "model/cache_choice.h"

#include "dies.h"
#include "toy_model.h"

#include <string.h>

#define N_SLOTS 4u
#define N_CTX   300u /* 5 pages, the last of them not full */
#define N_COLS  5u

static td_device *dev;

static td_cache_params params_of(uint32_t n_pages)
{
    const td_type_info *f16 = td_type_find(TD_TYPE_F16);
    return (td_cache_params){.kv = {.k = f16, .v = f16},
                             .n_layers = 2,
                             .n_head_kv = 2,
                             .head_dim_k = 8,
                             .head_dim_v = 8,
                             .n_slots = N_SLOTS,
                             .n_ctx = N_CTX,
                             .n_pages = n_pages};
}

static td_cache *create(uint32_t n_pages)
{
    td_cache_params params = params_of(n_pages);
    td_err err = {0};
    td_cache *c = td_cache_create(dev, &params, &err);
    if (!c)
        fail_msg("%s", err.message);
    return c;
}

static const int32_t *row_of(td_cache *c, uint32_t slot)
{
    return (const int32_t *)td_tensor_data(td_cache_pages(c, TD_CACHE_FULL)) + slot * N_COLS;
}

static void reserve(td_cache *c, uint32_t slot, uint32_t length)
{
    td_err err = {0};
    if (!td_cache_reserve(c, slot, length, &err))
        fail_msg("%s", err.message);
}

static void test_cache_counts_its_bytes(void **state)
{
    (void)state;
    uint64_t before, during, after, budget;
    td_device_memory(dev, &before, &budget);
    td_cache *c = create(0);
    td_device_memory(dev, &during, &budget);
    td_cache_params params = params_of(0);
    uint64_t table = 4ull * N_SLOTS * N_COLS;
    assert_int_equal(during - before, td_cache_bytes(dev, &params) + table);
    assert_int_equal(td_cache_n_free_pages(c), N_SLOTS * N_COLS);
    assert_ptr_not_equal(td_cache_kv(c, 0), td_cache_kv(c, 1));
    assert_int_equal(td_kv_get_params(td_cache_kv(c, 1))->n_pages, N_SLOTS * N_COLS);
    td_cache_destroy(&c);
    assert_null(c);
    td_cache_destroy(&c);
    td_device_memory(dev, &after, &budget);
    assert_int_equal(after, before);
}

static void test_cache_reserves_whole_pages(void **state)
{
    (void)state;
    td_cache *c = create(0);
    const uint32_t n = td_cache_n_free_pages(c);
    const struct {
        uint32_t length, n_pages;
    } steps[] = {{0, 0}, {1, 1}, {64, 1}, {65, 2}, {128, 2}, {129, 3}, {300, 5}};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        reserve(c, 1, steps[i].length);
        assert_int_equal(td_cache_length(c, 1), steps[i].length);
        assert_int_equal(n - td_cache_n_free_pages(c), steps[i].n_pages);
    }
    reserve(c, 1, 3); /* a smaller length changes nothing */
    assert_int_equal(td_cache_length(c, 1), 300);
    for (uint32_t i = 0; i < N_COLS; i++)
        for (uint32_t k = 0; k < i; k++)
            assert_int_not_equal(row_of(c, 1)[i], row_of(c, 1)[k]);
    for (uint32_t i = 0; i < N_COLS; i++)
        assert_int_equal(row_of(c, 0)[i], 0);
    td_cache_destroy(&c);
}

static void test_cache_truncates_to_the_committed_length_at_most(void **state)
{
    (void)state;
    td_cache *c = create(0);
    const uint32_t n = td_cache_n_free_pages(c);
    reserve(c, 2, 200);
    const int32_t first = row_of(c, 2)[0], second = row_of(c, 2)[1];
    td_cache_commit(c, 2, 100);
    td_cache_truncate(c, 2, 250); /* longer than it is: nothing */
    assert_int_equal(td_cache_length(c, 2), 200);
    td_cache_truncate(c, 2, 129);
    assert_int_equal(n - td_cache_n_free_pages(c), 3);
    td_cache_truncate(c, 2, 128);
    assert_int_equal(n - td_cache_n_free_pages(c), 2);
    td_cache_truncate(c, 2, 100);
    assert_int_equal(n - td_cache_n_free_pages(c), 2);
    assert_int_equal(td_cache_length(c, 2), 100);
    assert_int_equal(td_cache_committed(c, 2), 100);
    assert_int_equal(row_of(c, 2)[0], first);
    assert_int_equal(row_of(c, 2)[1], second);
    assert_int_equal(row_of(c, 2)[2], 0);
    td_cache_clear(c, 2);
    assert_int_equal(td_cache_n_free_pages(c), n);
    assert_int_equal(td_cache_length(c, 2), 0);
    assert_int_equal(td_cache_committed(c, 2), 0);
    td_cache_destroy(&c);
}

static void test_cache_out_of_pages_changes_nothing(void **state)
{
    (void)state;
    td_cache *c = create(6);
    reserve(c, 0, 64 * 3);
    reserve(c, 1, 64 * 2);
    int32_t before[N_SLOTS * N_COLS];
    memcpy(before, row_of(c, 0), sizeof before);
    td_err err = {0};
    assert_false(td_cache_reserve(c, 1, 64 * 4, &err));
    assert_int_equal(err.code, TD_E_NOMEM);
    assert_non_null(strstr(err.message, "2 pages wanted, 1 of 6 free"));
    assert_int_equal(td_cache_length(c, 1), 128);
    assert_int_equal(td_cache_n_free_pages(c), 1);
    assert_memory_equal(before, row_of(c, 0), sizeof before);
    reserve(c, 1, 64 * 3); /* what there is may still be had */
    assert_int_equal(td_cache_n_free_pages(c), 0);
    reserve(c, 1, 10);
    td_cache_truncate(c, 0, 64);
    reserve(c, 1, 64 * 4);
    td_cache_destroy(&c);
}

static void test_cache_keeps_shared_pages_until_the_last_owner_leaves(void **state)
{
    (void)state;
    td_cache *c = create(8);
    reserve(c, 0, 200);
    td_cache_commit(c, 0, 150);
    td_cache_share(c, 0, 1, 128);
    td_cache_share(c, 1, 2, 64); /* of a shared prefix */
    assert_int_equal(td_cache_length(c, 1), 128);
    assert_int_equal(td_cache_committed(c, 1), 128);
    assert_int_equal(td_cache_n_free_pages(c), 4);
    for (uint32_t i = 0; i < 2; i++)
        assert_int_equal(row_of(c, 0)[i], row_of(c, 1)[i]);
    const int32_t shared[2] = {row_of(c, 1)[0], row_of(c, 1)[1]};
    td_cache_clear(c, 0); /* frees its two own pages only */
    assert_int_equal(td_cache_n_free_pages(c), 6);
    reserve(c, 3, 300);
    reserve(c, 1, 129); /* all pages are taken now; none may be a shared one */
    assert_int_equal(td_cache_n_free_pages(c), 0);
    for (uint32_t i = 0; i < N_COLS; i++)
        for (uint32_t k = 0; k < 2; k++)
            assert_int_not_equal(row_of(c, 3)[i], shared[k]);
    assert_int_not_equal(row_of(c, 1)[2], shared[0]);
    td_cache_clear(c, 1);
    assert_int_equal(td_cache_n_free_pages(c), 2); /* the first page is still slot 2's */
    td_cache_clear(c, 2);
    td_cache_clear(c, 3);
    assert_int_equal(td_cache_n_free_pages(c), 8);
    td_cache_destroy(&c);
}

static void test_cache_rewinds_below_the_committed_length(void **state)
{
    (void)state;
    td_cache *c = create(8);
    reserve(c, 0, 200);
    td_cache_commit(c, 0, 200);
    td_cache_share(c, 0, 1, 192);
    const int32_t first = row_of(c, 0)[0], second = row_of(c, 0)[1];
    td_cache_rewind(c, 0, 64); /* two pages stay with slot 1, one is free */
    assert_int_equal(td_cache_length(c, 0), 64);
    assert_int_equal(td_cache_committed(c, 0), 64);
    assert_int_equal(td_cache_n_free_pages(c), 5);
    reserve(c, 0, 100); /* another page: the old one is still read by slot 1 */
    assert_int_equal(row_of(c, 0)[0], first);
    assert_int_not_equal(row_of(c, 0)[1], second);
    assert_int_equal(row_of(c, 1)[1], second);
    td_cache_rewind(c, 0, 0);
    assert_int_equal(td_cache_length(c, 0), 0);
    assert_int_equal(td_cache_n_free_pages(c), 5);
    td_cache_share(c, 1, 0, 128); /* as good as empty */
    td_cache_clear(c, 1);
    assert_int_equal(row_of(c, 0)[1], second);
    assert_int_equal(td_cache_n_free_pages(c), 6);
    td_cache_rewind(c, 0, 128); /* to where it is */
    assert_int_equal(td_cache_length(c, 0), 128);
    td_cache_destroy(&c);
}

/* What the cache should be, kept as a list of pages per slot. */
typedef struct {
    uint32_t length, committed, n_pages;
    int32_t pages[N_COLS];
} model_slot;

static void check_against(td_cache *c, const model_slot *model, uint32_t n_pages)
{
    bool is_used[64] = {false};
    uint32_t n_used = 0;
    for (uint32_t s = 0; s < N_SLOTS; s++) {
        assert_int_equal(td_cache_length(c, s), model[s].length);
        assert_int_equal(td_cache_committed(c, s), model[s].committed);
        for (uint32_t i = 0; i < N_COLS; i++)
            assert_int_equal(row_of(c, s)[i], i < model[s].n_pages ? model[s].pages[i] : 0);
        for (uint32_t i = 0; i < model[s].n_pages; i++) {
            assert_in_range(model[s].pages[i], 0, n_pages - 1);
            n_used += !is_used[model[s].pages[i]];
            is_used[model[s].pages[i]] = true;
        }
    }
    assert_int_equal(td_cache_n_free_pages(c), n_pages - n_used);
}

/* A page that a slot gets must be nobody's. */
static void take_new_pages(td_cache *c, model_slot *model, uint32_t s, uint32_t n)
{
    for (; model[s].n_pages < n; model[s].n_pages++) {
        int32_t page = row_of(c, s)[model[s].n_pages];
        for (uint32_t k = 0; k < N_SLOTS; k++)
            for (uint32_t i = 0; i < model[k].n_pages; i++)
                assert_int_not_equal(page, model[k].pages[i]);
        model[s].pages[model[s].n_pages] = page;
    }
}

static void random_step(td_cache *c, model_slot *model, uint64_t r)
{
    uint32_t s = r >> 8 & 3, to = r >> 10 & 3, length = (uint32_t)(r >> 16) % (N_CTX + 1);
    model_slot *m = &model[s];
    td_err err = {0};
    switch (r % 9) {
    case 0:
    case 1:
    case 2: {
        uint32_t n = (length + 63) / 64, n_free = td_cache_n_free_pages(c);
        bool fits = n <= m->n_pages || n - m->n_pages <= n_free;
        assert_int_equal(td_cache_reserve(c, s, length, &err), fits);
        if (fits) {
            take_new_pages(c, model, s, n);
            m->length = length > m->length ? length : m->length;
        }
        break;
    }
    case 3:
    case 4:
        length = length < m->committed ? m->committed : length;
        td_cache_truncate(c, s, length);
        m->length = length < m->length ? length : m->length;
        if (m->n_pages > (m->length + 63) / 64)
            m->n_pages = (m->length + 63) / 64;
        break;
    case 5:
        m->committed += m->length > m->committed ? length % (m->length - m->committed + 1) : 0;
        td_cache_commit(c, s, m->committed);
        break;
    case 6:
        td_cache_clear(c, s);
        *m = (model_slot){0};
        break;
    case 7:
        length = length / 64 * 64 > m->committed ? m->committed / 64 * 64 : length / 64 * 64;
        if (s == to || model[to].n_pages || model[to].length)
            break;
        td_cache_share(c, s, to, length);
        model[to] = (model_slot){.length = length, .committed = length, .n_pages = length / 64};
        memcpy(model[to].pages, m->pages, sizeof m->pages);
        break;
    case 8:
        length = length / 64 * 64 > m->committed ? m->committed / 64 * 64 : length / 64 * 64;
        td_cache_rewind(c, s, length);
        m->length = m->committed = length;
        m->n_pages = length / 64;
        break;
    }
}

static void test_cache_agrees_with_a_list_of_pages(void **state)
{
    (void)state;
    td_cache *c = create(11); /* too few for all */
    model_slot model[N_SLOTS] = {0};
    uint64_t r = 7;
    for (uint32_t i = 0; i < 20000; i++) {
        r = r * 6364136223846793005u + 1442695040888963407u;
        random_step(c, model, r >> 16);
        check_against(c, model, 11);
    }
    td_cache_destroy(&c);
}

static void truncate_committed(void *c) { td_cache_truncate(c, 0, 69); }
static void commit_beyond(void *c) { td_cache_commit(c, 0, 101); }
static void commit_back(void *c) { td_cache_commit(c, 0, 69); }
static void share_with_itself(void *c) { td_cache_share(c, 0, 0, 0); }
static void share_into_used(void *c) { td_cache_share(c, 0, 1, 64); }
static void share_part_of_a_page(void *c) { td_cache_share(c, 0, 2, 65); }
static void share_uncommitted(void *c) { td_cache_share(c, 0, 2, 128); }
static void rewind_to_a_part_of_a_page(void *c) { td_cache_rewind(c, 0, 65); }
static void rewind_beyond(void *c) { td_cache_rewind(c, 0, 128); }
static void use_no_slot(void *c) { td_cache_clear(c, N_SLOTS); }
static void use_no_layer(void *c) { td_cache_kv(c, 2); }
static void reserve_beyond(void *c) { td_cache_reserve(c, 0, N_CTX + 1, NULL); }
static void do_nothing(void *c) { td_cache_truncate(c, 0, 70); }

static void test_cache_holds_its_contracts(void **state)
{
    (void)state;
    td_cache *c = create(0);
    reserve(c, 0, 100);
    td_cache_commit(c, 0, 70);
    reserve(c, 1, 1);
    void (*const bad[])(void *) = {truncate_committed,
                                   commit_beyond,
                                   commit_back,
                                   share_with_itself,
                                   share_into_used,
                                   share_part_of_a_page,
                                   share_uncommitted,
                                   use_no_slot,
                                   use_no_layer,
                                   reserve_beyond,
                                   rewind_to_a_part_of_a_page,
                                   rewind_beyond};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (!dies(bad[i], c))
            fail_msg("contract %zu is not held", i);
    assert_false(dies(do_nothing, c));
    td_cache_destroy(&c);
}

static void test_cache_survives_every_failing_allocation(void **state)
{
    (void)state;
    uint64_t before, after, budget;
    td_cache_params params = params_of(0);
    td_device_memory(dev, &before, &budget);
    uint64_t n_failed = 0;
    for (uint64_t n = 1;; n++) {
        td_err err = {0};
        td_alloc_fail_at(n);
        td_cache *c = td_cache_create(dev, &params, &err);
        td_alloc_fail_at(0);
        bool is_ok = c != NULL;
        assert_int_equal(err.code, is_ok ? TD_OK : TD_E_NOMEM);
        td_cache_destroy(&c);
        td_device_memory(dev, &after, &budget);
        assert_int_equal(after, before);
        if (is_ok)
            break;
        n_failed++;
    }
    assert_true(n_failed >= 8); /* cache, 4 lists, table, 2 layers */
}

/* -- what a model's layers are kept as --------------------------------------------------------- */

static td_model *open_toy(const toy *t)
{
    td_err err = {0};
    td_model *m = toy_open(t, &err);
    if (!m)
        fail_msg("%s", err.message);
    return m;
}

static td_cache_types types_of(const char *k, const char *v)
{
    return (td_cache_types){.k = td_type_find_name(k), .v = td_type_find_name(v)};
}

static void keep(td_cache_types *t, uint32_t first, uint32_t last, const char *k, const char *v)
{
    t->rules[t->n_rules++] =
        (td_cache_rule){(uint16_t)first, (uint16_t)last, k ? td_type_find_name(k) : NULL,
                        v ? td_type_find_name(v) : NULL};
}

static void assert_kept(td_cache_types t, const td_model *m, const char *wanted)
{
    char text[TD_CACHE_TYPES_TEXT], again[TD_CACHE_TYPES_TEXT];
    td_err err = {0};
    for (uint32_t i = 0; i < 2; i++) { /* choosing twice changes nothing */
        if (!td_cache_choose(&t, m, &err))
            fail_msg("%s", err.message);
        td_cache_types_list_kept(&t, i ? again : text, sizeof text);
    }
    assert_string_equal(text, wanted);
    assert_string_equal(again, wanted);
}

static void assert_refused(td_cache_types t, const td_model *m, const char *part)
{
    td_err err = {0};
    assert_false(td_cache_choose(&t, m, &err));
    assert_int_equal(err.code, TD_E_USAGE);
    if (!strstr(err.message, part))
        fail_msg("\"%s\" lacks \"%s\"", err.message, part);
}

static void test_layers_are_kept_as_was_asked_for(void **state)
{
    (void)state;
    toy_shape shape = TOY_SHAPE;
    shape.n_layer = 8;
    toy plain = toy_begin("llama", shape);
    td_model *m = open_toy(&plain);
    td_cache_types t = types_of("Q4_0", "Q4_0");
    assert_kept(t, m, "");
    keep(&t, TD_CACHE_LAYER_FIRST, TD_CACHE_LAYER_FIRST, "F16", "F16");
    keep(&t, TD_CACHE_LAYER_LAST, TD_CACHE_LAYER_LAST, "F16", "F16");
    assert_kept(t, m, "0,7=f16");
    keep(&t, 3, 5, "Q8_0", NULL);
    keep(&t, 4, 4, "Q4_0", "F32");
    assert_kept(t, m, "0,7=f16 3,5=q8_0/- 4=-/f32");
    keep(&t, 0, 7, "Q5_0", "Q5_0"); /* the last counts */
    assert_kept(t, m, "0-7=q5_0");
    /* What says nothing is no rule: the same caches, the same text, whatever was asked for. */
    keep(&t, 0, 7, "Q4_0", "Q4_0");
    assert_kept(t, m, "");
    t = types_of("Q4_0", "Q4_0");
    keep(&t, 8, 8, "F16", "F16");
    assert_refused(t, m, "layer 8 of ");
    assert_refused(t, m, "allowed: 0..7, first, last");
    td_model_close(&m);
}

/* Recurrent layers have no keys: first and last pass them by, a range goes over them. */
static void test_layers_without_keys_are_passed_by(void **state)
{
    (void)state;
    td_err err = {0};
    td_model *m = td_model_open("tests/data/golden/models/qwen3next/model.gguf", &err);
    if (!m)
        fail_msg("%s", err.message);
    uint32_t n = td_model_hparams(m)->n_layer, first = 0, last = n - 1;
    while (td_layer_is_recurrent(m, first))
        first++;
    while (td_layer_is_recurrent(m, last))
        last--;
    assert_true(first > 0);
    char wanted[64];
    td_cache_types t = types_of("Q8_0", "Q8_0");
    keep(&t, TD_CACHE_LAYER_FIRST, TD_CACHE_LAYER_FIRST, "F16", NULL);
    keep(&t, TD_CACHE_LAYER_LAST, TD_CACHE_LAYER_LAST, NULL, "F16");
    keep(&t, 0, n - 1, NULL, "Q4_0");
    snprintf(wanted, sizeof wanted, "%u=f16/q4_0", first);
    if (first == last)
        assert_kept(t, m, wanted);
    t.n_rules = 0;
    keep(&t, 0, n - 1, "Q4_0", "F16"); /* of several of attention one run, over what lies between */
    snprintf(wanted, sizeof wanted, first == last ? "%u=q4_0/f16" : "%u-%u=q4_0/f16", first, last);
    assert_kept(t, m, wanted);
    t.n_rules = 0;
    keep(&t, 0, 0, "F16", "F16");
    assert_refused(t, m, "layer 0 of ");
    assert_refused(t, m, "is recurrent and has no keys");
    td_model_close(&m);
}

/* Biases of keys of which two are far larger than the others. */
static toy make_loud(float loud)
{
    toy_shape shape = TOY_SHAPE;
    shape.n_layer = 6;
    shape.has_biases = true;
    toy t = toy_begin("qwen2", shape);
    for (uint32_t i = 0; i < t.n_tensors; i++) {
        bool is_loud = !strcmp(t.tensors[i].name, "blk.0.attn_k.bias") ||
                       !strcmp(t.tensors[i].name, "blk.5.attn_k.bias");
        t.tensors[i].scale = is_loud ? loud : t.tensors[i].scale;
    }
    return t;
}

static void test_keys_with_outlying_biases_are_kept_in_f16(void **state)
{
    (void)state;
    toy loud = make_loud(30), quiet = make_loud(0.5f);
    td_model *m = open_toy(&loud), *other = open_toy(&quiet);
    float norms[TD_LAYERS_MAX], median;
    td_layer_set outlying;
    td_err err = {0};
    char text[TD_CACHE_TYPES_TEXT];
    assert_true(td_cache_find_outliers(m, norms, &outlying, &median, &err));
    assert_true(outlying.words[0] == (1 | 1 << 5));
    /* uniform(-x, x) in 32 elements: x sqrt(32/3) */
    assert_true(fabsf(norms[0] - 98) < 30 && fabsf(norms[1] - 0.33f) < 0.1f && norms[1] > 0);
    assert_true(median < 0.5f);
    td_cache_types t = types_of("Q4_0", "Q4_0");
    assert_kept(t, m, "0,5=f16/-");
    td_cache_write_outliers(&t, m, text, sizeof text);
    assert_non_null(strstr(text, "layer 0 "));
    assert_non_null(strstr(text, "layer 5 "));
    keep(&t, 5, 5, "Q8_0", "Q8_0"); /* who insists has it */
    assert_kept(t, m, "0=f16/- 5=q8_0");
    keep(&t, 0, 0, "Q4_0", NULL);
    assert_kept(t, m, "0=q4_0/- 5=q8_0"); /* told, though like the others */
    assert_kept(types_of("F16", "Q4_0"), m, "");
    assert_kept(types_of("BF16", "Q4_0"), m, "");
    assert_kept(types_of("Q8_0", "F16"), m, "0,5=f16/-");
    /* Several times the others, and still small against a key: nothing is gained. */
    assert_true(td_cache_find_outliers(other, norms, &outlying, &median, &err));
    assert_true(norms[0] > 4 * median && !outlying.words[0]);
    assert_kept(types_of("Q4_0", "Q4_0"), other, "");
    td_model_close(&m); /* large ones that are all alike are not outlying */
    toy all = make_loud(30);
    for (uint32_t i = 0; i < all.n_tensors; i++)
        if (strstr(all.tensors[i].name, "attn_k.bias"))
            all.tensors[i].scale = strstr(all.tensors[i].name, ".0.") ? 40 : 10;
    m = open_toy(&all);
    assert_kept(types_of("Q4_0", "Q4_0"), m, "");
    td_model_close(&m);
    td_model_close(&other);
}

static void test_a_small_draft_keeps_f16(void **state)
{
    (void)state;
    toy plain = toy_begin("llama", TOY_SHAPE), loud = make_loud(30);
    toy_add(&plain, "of_no_use.weight", 64, 2)->type = 26; /* I32: nothing is computed with it */
    td_model *m = open_toy(&plain), *biased = open_toy(&loud);
    td_err err = {0};
    char text[TD_CACHE_TYPES_TEXT];
    td_cache_types target = types_of("Q8_0", "F32"), draft = {.k = NULL};
    keep(&target, 40, 40, "F16", "F16"); /* of the target alone */
    target.rotate_k = TD_ROTATE_ON;
    assert_true(td_cache_choose_draft(&draft, &target, m, &err));
    td_cache_types_write(&draft, text);
    assert_string_equal(text, "F16 rotated,F32");
    draft = (td_cache_types){.k = td_type_find_name("Q4_0")}; /* said, and biases heeded */
    assert_true(td_cache_choose_draft(&draft, &target, biased, &err));
    td_cache_types_write(&draft, text);
    assert_string_equal(text, "Q4_0 rotated,F32 0-0 F16,- 5-5 F16,-");
    td_model_close(&m);
    td_model_close(&biased);
}

static void test_families_that_need_more_are_known(void **state)
{
    static const struct {
        const char *model, *k;
    } wanted[] = {{"gpt-oss", "F16"}, {"gemma3", "F16"}, {"qwen3next", "Q5_0"}, {"llama", NULL}};
    (void)state;
    for (size_t i = 0; i < TD_COUNT(wanted); i++) {
        char path[128];
        td_err err = {0};
        td_cache_advice advice;
        snprintf(path, sizeof path, "tests/data/golden/models/%s/model.gguf", wanted[i].model);
        td_model *m = td_model_open(path, &err);
        if (!m)
            fail_msg("%s", err.message);
        assert_int_equal(td_cache_find_advice(m, &advice), wanted[i].k != NULL);
        if (wanted[i].k)
            assert_string_equal(advice.k->name, wanted[i].k);
        td_model_close(&m);
    }
    assert_true(td_cache_is_less(td_type_find_name("Q8_0"), td_type_find_name("F16")));
    assert_false(td_cache_is_less(td_type_find_name("BF16"), td_type_find_name("F16")));
    assert_true(td_cache_is_less(td_type_find_name("Q4_0"), td_type_find_name("Q4_1")));
}

int main(void)
{
    td_err err = {0};
    dev = td_device_create("host:1", &err);
    if (!dev) {
        print_error("%s\n", err.message);
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cache_counts_its_bytes),
        cmocka_unit_test(test_cache_reserves_whole_pages),
        cmocka_unit_test(test_cache_truncates_to_the_committed_length_at_most),
        cmocka_unit_test(test_cache_out_of_pages_changes_nothing),
        cmocka_unit_test(test_cache_keeps_shared_pages_until_the_last_owner_leaves),
        cmocka_unit_test(test_cache_rewinds_below_the_committed_length),
        cmocka_unit_test(test_cache_agrees_with_a_list_of_pages),
        cmocka_unit_test(test_cache_holds_its_contracts),
        cmocka_unit_test(test_cache_survives_every_failing_allocation),
        cmocka_unit_test(test_layers_are_kept_as_was_asked_for),
        cmocka_unit_test(test_layers_without_keys_are_passed_by),
        cmocka_unit_test(test_keys_with_outlying_biases_are_kept_in_f16),
        cmocka_unit_test(test_a_small_draft_keeps_f16),
        cmocka_unit_test(test_families_that_need_more_are_known),
    };
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    td_device_destroy(&dev);
    return rc;
}
