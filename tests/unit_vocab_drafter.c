/* The translator: a draft of another vocabulary that is drafted ahead proposes, in the target's
 * tokens, what a fresh one proposes that was told the same text; and what agrees costs nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "draft/vocab_drafter.h"

#include "tokenizer_vocabs.h"
#include "toy_model.h"

#define N_CTX   200u
#define N_SLOTS 2u
#define N_DRAFT 290u /* the last 31 have no twin: proposals end there */

static td_model *model;
static td_tokenizer *target;
static td_vocab_map *map;

typedef struct {
    td_drafter *drafter;
    td_vocab_drafter *translator;
} side;

static side create_side(void)
{
    const td_type_info *f16 = td_type_find(TD_TYPE_F16);
    td_err err = {0};
    side s = {.drafter = td_drafter_create(&(td_drafter_params){.model = model,
                                                                .spec = "host:1",
                                                                .kv = {.k = f16, .v = f16},
                                                                .n_slots = N_SLOTS,
                                                                .n_ctx = N_CTX},
                                           &err)};
    s.translator = s.drafter ? td_vocab_drafter_create(s.drafter, map, &err) : NULL;
    if (!s.translator)
        fail_msg("%s", err.message);
    return s;
}

static void destroy_side(side *s)
{
    td_vocab_drafter_destroy(&s->translator);
    td_drafter_destroy(&s->drafter);
}

static uint64_t random_state = 5;

static uint32_t random_below(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % n;
}

static uint32_t random_token(void) { return random_below(td_vocab_map_get_info(map).n_target); }

static void open_sequence(side *s, uint32_t sequence)
{
    td_sampling_params sampling = TD_SAMPLING_DEFAULTS;
    td_err err = {0};
    sampling.temperature = sequence % 2 ? 0.0f : 1.0f;
    if (!td_vocab_drafter_open(s->translator, sequence, 1000 + sequence, &sampling, &err))
        fail_msg("%s", err.message);
}

static void feed(side *s, uint32_t sequence, uint32_t position, const uint32_t *ids, uint32_t n)
{
    td_err err = {0};
    if (!td_vocab_drafter_feed(s->translator, sequence, position, ids, n, &err))
        fail_msg("%s", err.message);
}

static uint32_t propose(side *s, uint32_t sequence, uint32_t position, uint32_t k, uint32_t *ids)
{
    td_proposal p = {.sequence = sequence, .epoch = 3, .position = position, .k = k},
                *jobs[] = {&p};
    td_err err = {0};
    bool is_ok = td_vocab_drafter_begin(s->translator, &p, &err);
    while (is_ok && !p.is_done)
        is_ok = td_vocab_drafter_step(s->translator, jobs, 1, &err);
    if (!is_ok)
        fail_msg("%s", err.message);
    assert_int_equal(p.epoch, 3);
    assert_true(p.n <= k);
    memcpy(ids, p.ids, p.n * sizeof *ids);
    return p.n;
}

typedef struct {
    uint32_t tokens[N_CTX]; /* committed, then the tail */
    uint32_t n_committed, n;
} text;

static void begin_text(side *s, uint32_t sequence, text *t)
{
    open_sequence(s, sequence);
    t->n = t->n_committed = 1 + random_below(12);
    for (uint32_t i = 0; i < t->n; i++)
        t->tokens[i] = random_token();
    feed(s, sequence, 0, t->tokens, t->n);
}

/* A part of the tail, and sometimes a token of the target's own: also of
 * several pieces, or none. */
static void commit_text(side *s, uint32_t sequence, text *t)
{
    uint32_t first = t->n_committed, n = random_below(t->n - t->n_committed + 1);
    bool is_other = n == 0 || random_below(3) == 0;
    t->n_committed += n;
    if (is_other) {
        uint32_t token = random_token();
        bool is_same = t->n > t->n_committed && t->tokens[t->n_committed] == token;
        t->tokens[t->n_committed++] = token;
        t->n = is_same ? t->n : t->n_committed;
    }
    feed(s, sequence, first, t->tokens + first, t->n_committed - first);
}

static void test_ahead_is_as_a_fresh_one(void **state)
{
    (void)state;
    side s = create_side();
    text texts[N_SLOTS] = {0};
    uint32_t ids[64], want[64], n_ahead = 0, n_cut = 0;
    for (uint32_t step = 0; step < 600; step++) {
        uint32_t q = random_below(N_SLOTS), k = 1 + random_below(7);
        text *t = &texts[q];
        if (t->n == 0 || t->n > 100)
            begin_text(&s, q, t);
        else if (random_below(3) == 0)
            commit_text(&s, q, t);
        side fresh = create_side();
        open_sequence(&fresh, q);
        feed(&fresh, q, 0, t->tokens, t->n);
        uint32_t n = propose(&s, q, t->n, k, ids);
        assert_int_equal(n, propose(&fresh, q, t->n, k, want));
        assert_memory_equal(ids, want, n * sizeof *ids);
        destroy_side(&fresh);
        n_ahead += n > 0 && t->n > t->n_committed;
        n_cut += n < k;
        memcpy(t->tokens + t->n, ids, n * sizeof *ids);
        t->n += n;
        if (n < k) /* it ends there, and stays at its end */
            assert_int_equal(propose(&s, q, t->n, k, ids), 0);
    }
    assert_true(n_ahead > 50);
    assert_true(n_cut > 20);
    destroy_side(&s);
}

static void test_a_right_tail_is_not_computed_again(void **state)
{
    (void)state;
    side s = create_side();
    uint32_t tokens[64] = {'a', 257, 'b'}, ids[8], n = 3, n_whole = 0; /* 257: three pieces */
    for (uint32_t q = 0; q < 40; q++) {
        open_sequence(&s, q);
        feed(&s, q, 0, tokens, n);
        if (propose(&s, q, n, 4, tokens + n) == 4) {
            uint64_t n_run = td_drafter_get_stats(s.drafter)->n_evaluated;
            feed(&s, q, n, tokens + n, 2);
            assert_int_equal(propose(&s, q, n + 2, 2, ids), 2);
            assert_memory_equal(ids, tokens + n + 2, 2 * sizeof *ids);
            assert_int_equal(propose(&s, q, n, 2, ids), 0);     /* committed */
            assert_int_equal(propose(&s, q, n + 5, 2, ids), 0); /* unknown */
            assert_int_equal(td_drafter_get_stats(s.drafter)->n_evaluated, n_run);
            n_whole++;
        }
        td_vocab_drafter_close(s.translator, q);
        tokens[0]++;
    }
    assert_true(n_whole > 5);
    destroy_side(&s);
}

/* As the drafter's: the tokens that it was told, then what a fresh one says after them. */
static void test_what_goes_on_begins_where_it_was_told_otherwise(void **state)
{
    (void)state;
    side s = create_side();
    uint32_t tokens[64] = {'a', 257, 'b'}, want[8], n = 3, n_whole = 0;
    for (uint32_t q = 0; q < 40; q++) {
        open_sequence(&s, q);
        feed(&s, q, 0, tokens, n);
        if (propose(&s, q, n, 4, tokens + n) == 4) {
            tokens[n + 1] = tokens[n + 1] == 'c' ? 'd' : 'c';
            feed(&s, q, n, tokens + n, 2);
            td_proposal p = {.sequence = q, .position = n + 4, .k = 3, .goes_on = true},
                        *jobs[] = {&p};
            td_err err = {0};
            assert_true(td_vocab_drafter_begin(s.translator, &p, &err));
            while (!p.is_done)
                assert_true(td_vocab_drafter_step(s.translator, jobs, 1, &err));
            side fresh = create_side();
            open_sequence(&fresh, q);
            feed(&fresh, q, 0, tokens, n + 2);
            uint32_t n_want = propose(&fresh, q, n + 2, 3, want);
            destroy_side(&fresh);
            assert_int_equal(p.position, n + 1);
            assert_int_equal(p.n, 1 + n_want);
            assert_int_equal(p.ids[0], tokens[n + 1]);
            assert_memory_equal(p.ids + 1, want, n_want * sizeof *want);
            n_whole += n_want == 3;
        }
        td_vocab_drafter_close(s.translator, q);
        tokens[0]++;
    }
    assert_true(n_whole > 5);
    destroy_side(&s);
}

static void test_senseless_messages_are_refused(void **state)
{
    (void)state;
    side s = create_side();
    td_err err = {0};
    const uint32_t bad = td_vocab_map_get_info(map).n_target;
    uint32_t id = 'a', ids[8];
    open_sequence(&s, 1);
    assert_false(td_vocab_drafter_feed(s.translator, 1, 0, &bad, 1, &err));
    assert_int_equal(err.code, TD_E_DATA);
    td_err_clear(&err);
    assert_false(td_vocab_drafter_feed(s.translator, 1, 1, &id, 1, &err));
    assert_non_null(strstr(err.message, "fed at position 1, known are 0 tokens"));
    td_err_clear(&err);
    assert_false(td_vocab_drafter_feed(s.translator, 2, 0, &id, 1, &err));
    td_err_clear(&err);
    td_proposal p = {.sequence = 2, .position = 1, .k = 1};
    assert_false(td_vocab_drafter_begin(s.translator, &p, &err));
    assert_true(p.is_done);
    assert_int_equal(propose(&s, 1, 0, 3, ids), 0);
    assert_int_equal(propose(&s, 1, UINT32_MAX, 3, ids), 0);
    destroy_side(&s);
}

int main(void)
{
    toy t = toy_begin("qwen3", (toy_shape){64, 4, 2, 16, 2, 64, 256, false, false});
    td_err err = {0};
    const tv_token extra[] = {{"he", 0, 1, 0}, {"the", 0, 1, 0}, {"<|end|>", 0, 3, 0}};
    const char *const merges[] = {"h e", "t he"};
    t.n_vocab = N_DRAFT;
    for (uint32_t i = 0; i < t.n_tensors; i++) /* what is as long as the vocabulary */
        for (uint32_t k = 0; k < t.tensors[i].n_dims; k++)
            if (t.tensors[i].ne[k] == TOY_VOCAB)
                t.tensors[i].ne[k] = N_DRAFT;
    model = toy_open(&t, &err);
    gw w = tv_bpe("gpt-2", extra, 3);
    tv_merges(&w, merges, 2);
    gw_end(&w, 32, 0);
    target = model ? tv_create(&w, NULL, &err) : NULL;
    gw_free(&w);
    map = target ? td_vocab_map_create(target, td_model_tokenizer(model), &err) : NULL;
    if (!map) {
        print_error("%s\n", err.message);
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ahead_is_as_a_fresh_one),
        cmocka_unit_test(test_a_right_tail_is_not_computed_again),
        cmocka_unit_test(test_what_goes_on_begins_where_it_was_told_otherwise),
        cmocka_unit_test(test_senseless_messages_are_refused),
    };
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    td_vocab_map_destroy(&map);
    td_tokenizer_destroy(&target);
    td_model_close(&model);
    return rc;
}
