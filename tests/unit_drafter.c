/* The drafter: whatever was fed, proposed and rolled back before, it proposes what a fresh one
 * proposes that was fed the same tokens; and senseless messages change nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/mem.h"
#include "draft/drafter.h"

#include "toy_model.h"

#define N_CTX   200u
#define N_SLOTS 3u

static td_model *model;
static td_drafter *fresh; /* is reset before each use */

static td_drafter *create_on(const char *spec, uint32_t n_ctx)
{
    const td_type_info *f16 = td_type_find(TD_TYPE_F16);
    td_err err = {0};
    td_drafter *d = td_drafter_create(&(td_drafter_params){.model = model,
                                                           .spec = spec,
                                                           .type_k = f16,
                                                           .type_v = f16,
                                                           .n_slots = N_SLOTS,
                                                           .n_ctx = n_ctx},
                                      &err);
    if (!d)
        fail_msg("%s", err.message);
    return d;
}

static td_drafter *create(uint32_t n_ctx) { return create_on("host:1", n_ctx); }

static td_sampling_params sampling_of(uint32_t sequence)
{
    td_sampling_params s = TD_SAMPLING_DEFAULTS;
    if (sequence % 3 == 1)
        s.temperature = 0;
    if (sequence % 3 == 2) {
        s.top_p = 0.9f;
        s.repeat_penalty = 1.3f;
    }
    return s;
}

static void open_sequence(td_drafter *d, uint32_t sequence)
{
    td_sampling_params s = sampling_of(sequence);
    td_err err = {0};
    if (!td_drafter_open(d, sequence, 1000 + sequence, &s, &err))
        fail_msg("%s", err.message);
}

static void feed(td_drafter *d, uint32_t sequence, uint32_t position, const uint32_t *ids,
                 uint32_t n)
{
    td_err err = {0};
    if (!td_drafter_feed(d, sequence, position, ids, n, &err))
        fail_msg("%s", err.message);
}

static uint32_t propose(td_drafter *d, uint32_t sequence, uint32_t position, uint32_t k,
                        uint32_t *ids)
{
    uint32_t n;
    td_err err = {0};
    if (!td_drafter_propose(d, sequence, position, k, ids, &n, &err))
        fail_msg("%s", err.message);
    assert_true(n <= k);
    for (uint32_t i = 0; i < n; i++)
        assert_in_range(ids[i], 0, TOY_VOCAB - 1);
    return n;
}

/* What a drafter says that knows nothing but these tokens. */
static uint32_t propose_fresh(uint32_t sequence, const uint32_t *tokens, uint32_t n_tokens,
                              uint32_t k, uint32_t *ids)
{
    td_drafter_reset(fresh);
    open_sequence(fresh, sequence);
    feed(fresh, sequence, 0, tokens, n_tokens);
    return propose(fresh, sequence, n_tokens, k, ids);
}

static uint64_t random_state = 5;

static uint32_t random_below(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % n;
}

/* What the model says when it is run a row at a time, from logits that the host reads. */
static void propose_by_steps(td_forward *f, td_sampler *sampler, uint32_t sequence,
                             uint32_t *tokens, uint32_t n_tokens, uint32_t k)
{
    td_sampling_params sampling = sampling_of(sequence);
    td_err err = {0};
    td_cache_clear(td_forward_cache(f), 0);
    for (uint32_t i = 0; i < n_tokens + k - 1; i++) {
        td_forward_row row = {.position = i, .token = tokens[i], .is_output = true};
        if (!td_forward_run(f, TD_MODE_VERIFY, &row, 1, &err))
            fail_msg("%s", err.message);
        if (i + 1 >= n_tokens)
            tokens[i + 1] = td_sample(sampler, &sampling, td_forward_output(f), tokens, i + 1,
                                      1000 + sequence, i + 1);
    }
}

/* Steps that feed each other on the device give the tokens of steps taken one by one: greedy, by
 * race (now and then too close for the device) and by a chain that only the host can do. */
static void check_steps(const char *spec)
{
    enum { K = 20, N = 70 }; /* more than one submission's steps, and than its rows */
    const td_type_info *f16 = td_type_find(TD_TYPE_F16);
    td_err err = {0};
    td_drafter *d = create_on(spec, N_CTX);
    td_device *dev = td_device_create(spec, &err);
    assert_non_null(dev);
    td_forward *f = td_forward_create(&(td_forward_params){.model = model,
                                                           .dev = dev,
                                                           .last = 1,
                                                           .type_k = f16,
                                                           .type_v = f16,
                                                           .n_slots = 1,
                                                           .n_ctx = N_CTX},
                                      &err);
    if (!f)
        fail_msg("%s", err.message);
    td_sampler *sampler = td_sampler_create(TOY_VOCAB, &err);
    bool is_quick = !strncmp(spec, "host", 4);
    for (uint32_t sequence = 0; sequence < (is_quick ? 60u : 9u); sequence++) {
        uint32_t tokens[N_CTX], ids[K], n_tokens = 1 + random_below(N);
        for (uint32_t i = 0; i < n_tokens; i++)
            tokens[i] = random_below(TOY_VOCAB);
        open_sequence(d, sequence);
        feed(d, sequence, 0, tokens, n_tokens);
        propose_by_steps(f, sampler, sequence, tokens, n_tokens, K);
        assert_int_equal(propose(d, sequence, n_tokens, K, ids), K);
        for (uint32_t i = 0; i < K; i++)
            if (ids[i] != tokens[n_tokens + i])
                fail_msg("%s, sequence %u: token %u of the draft is %u, expected %u", spec,
                         sequence, i, ids[i], tokens[n_tokens + i]);
        td_drafter_close(d, sequence);
    }
    td_sampler_destroy(&sampler);
    td_forward_destroy(&f);
    td_device_destroy(&dev);
    td_drafter_destroy(&d);
}

static void test_many_steps_are_as_one_by_one(void **state)
{
    (void)state;
    static td_device_info infos[TD_DEVICES_MAX];
    check_steps("host:1");
    check_steps("host:2");
    uint32_t n = td_device_list(infos, TD_DEVICES_MAX);
    for (uint32_t i = 0; i < n; i++)
        if (infos[i].kind != TD_DEVICE_HOST && infos[i].is_usable) {
            check_steps(infos[i].spec);
            return;
        }
    printf("skipped: no usable Vulkan device\n");
}

/* -- proposals --------------------------------------------------------------------------------- */

static void test_proposals_do_not_depend_on_the_past(void **state)
{
    (void)state;
    td_drafter *d = create(N_CTX);
    uint32_t tokens[N_SLOTS][N_CTX], n_tokens[N_SLOTS] = {0}, ids[64], want[64];
    uint32_t n_full = 0;
    for (uint32_t i = 0; i < N_SLOTS; i++)
        open_sequence(d, i);
    for (uint32_t step = 0; step < 250; step++) {
        uint32_t q = random_below(N_SLOTS), *t = tokens[q];
        if (n_tokens[q] == 0 || n_tokens[q] > N_CTX - 40) { /* a new text in the same slot */
            open_sequence(d, q);
            n_tokens[q] = 1 + random_below(step % 9 ? 20 : 130);
            for (uint32_t i = 0; i < n_tokens[q]; i++)
                t[i] = random_below(TOY_VOCAB);
            feed(d, q, 0, t, n_tokens[q]);
        }
        uint32_t k = 1 + random_below(12);
        uint32_t n = propose(d, q, n_tokens[q], k, ids);
        assert_int_equal(n, propose_fresh(q, t, n_tokens[q], k, want));
        assert_memory_equal(ids, want, n * sizeof *ids);
        n_full += n == k;
        /* The target takes a part of it, then goes its own way. */
        uint32_t n_taken = random_below(n + 1);
        memcpy(t + n_tokens[q], ids, n_taken * sizeof *t);
        t[n_tokens[q] + n_taken] = random_below(TOY_VOCAB);
        switch (random_below(4)) {
        case 0: /* only what it did not know */
            feed(d, q, n_tokens[q] + n_taken, t + n_tokens[q] + n_taken, 1);
            break;
        case 1: /* all of it again */
            feed(d, q, 0, t, n_tokens[q] + n_taken + 1);
            break;
        case 2: /* one by one */
            for (uint32_t i = 0; i <= n_taken; i++)
                feed(d, q, n_tokens[q] + i, t + n_tokens[q] + i, 1);
            break;
        default:
            feed(d, q, n_tokens[q], t + n_tokens[q], n_taken + 1);
        }
        n_tokens[q] += n_taken + 1;
        if (random_below(3) == 0) { /* a proposal from further back, which is then forgotten */
            propose(d, q, 1 + random_below(n_tokens[q]), 3, ids);
            feed(d, q, 0, t, n_tokens[q]);
        }
    }
    assert_true(n_full > 200);
    td_drafter_destroy(&d);
    assert_null(d);
}

static void test_known_tokens_are_not_evaluated_again(void **state)
{
    (void)state;
    td_drafter *d = create(N_CTX);
    uint32_t tokens[N_CTX], ids[64];
    for (uint32_t i = 0; i < N_CTX; i++)
        tokens[i] = i % TOY_VOCAB;
    open_sequence(d, 1);
    feed(d, 1, 0, tokens, 100);
    assert_int_equal(td_drafter_get_stats(d)->n_evaluated, 0); /* not before it is needed */
    assert_int_equal(propose(d, 1, 100, 4, ids), 4);
    assert_int_equal(td_drafter_get_stats(d)->n_evaluated, 103); /* the last one is not run */
    memcpy(tokens + 100, ids, 3 * sizeof *ids);
    tokens[103] = (ids[3] + 1) % TOY_VOCAB;
    feed(d, 1, 0, tokens, 104); /* three of four were right */
    assert_int_equal(propose(d, 1, 104, 1, ids), 1);
    assert_int_equal(td_drafter_get_stats(d)->n_evaluated, 104);
    assert_int_equal(td_drafter_get_stats(d)->n_proposals, 2);
    assert_int_equal(td_drafter_get_stats(d)->n_tokens, 5);
    td_drafter_destroy(&d);
}

static void test_proposals_end_with_the_context(void **state)
{
    (void)state;
    td_drafter *d = create(70);
    assert_int_equal(td_drafter_n_ctx(d), 70);
    uint32_t tokens[200], ids[64];
    for (uint32_t i = 0; i < 200; i++)
        tokens[i] = (3 * i) % TOY_VOCAB;
    open_sequence(d, 0);
    feed(d, 0, 0, tokens, 65);
    assert_int_equal(propose(d, 0, 65, 20, ids), 5);
    feed(d, 0, 65, tokens + 65, 4);
    assert_int_equal(propose(d, 0, 69, 20, ids), 1);
    feed(d, 0, 69, tokens + 69, 1);
    assert_int_equal(propose(d, 0, 70, 20, ids), 0);
    feed(d, 0, 70, tokens + 70, 1); /* the text goes on without the draft, and that is no error */
    assert_int_equal(propose(d, 0, 71, 20, ids), 0);
    feed(d, 0, 71, tokens + 71, 50);
    assert_int_equal(propose(d, 0, 121, 20, ids), 0);
    feed(d, 0, 121, tokens + 121, 1);
    /* A prompt longer than the context, in one piece and in two. */
    open_sequence(d, 0);
    feed(d, 0, 0, tokens, 150);
    assert_int_equal(propose(d, 0, 150, 20, ids), 0);
    feed(d, 0, 150, tokens + 150, 2);
    open_sequence(d, 0);
    feed(d, 0, 0, tokens, 60);
    feed(d, 0, 60, tokens + 60, 60);
    feed(d, 0, 120, tokens + 120, 2);
    assert_int_equal(propose(d, 0, 122, 20, ids), 0);
    /* And a proposal from within it still stands on the right tokens. */
    uint32_t want[64];
    open_sequence(d, 0);
    feed(d, 0, 0, tokens, 150);
    uint32_t n = propose(d, 0, 62, 5, ids);
    assert_int_equal(n, 5);
    assert_int_equal(propose_fresh(0, tokens, 62, 5, want), 5);
    assert_memory_equal(ids, want, sizeof *ids * 5);
    td_drafter_destroy(&d);
}

/* -- senseless messages ------------------------------------------------------------------------ */

static void refuses(bool is_ok, td_err *err, const char *part)
{
    assert_false(is_ok);
    assert_int_equal(err->code, TD_E_DATA);
    if (!strstr(err->message, part))
        fail_msg("\"%s\" lacks \"%s\"", err->message, part);
    td_err_clear(err);
}

static void test_senseless_messages_are_refused_and_change_nothing(void **state)
{
    (void)state;
    td_drafter *d = create(N_CTX);
    uint32_t tokens[20], ids[64], want[64], n = 7;
    td_err err = {0};
    for (uint32_t i = 0; i < 20; i++)
        tokens[i] = 5 * i;
    open_sequence(d, 4);
    feed(d, 4, 0, tokens, 20);
    refuses(td_drafter_feed(d, 5, 0, tokens, 1, &err), &err, "sequence 5 is not open");
    refuses(td_drafter_propose(d, 5, 1, 1, ids, &n, &err), &err, "sequence 5 is not open");
    assert_int_equal(n, 0);
    refuses(td_drafter_feed(d, 4, 21, tokens, 1, &err), &err,
            "fed at position 21, known are 20 tokens");
    refuses(td_drafter_feed(d, 4, UINT32_MAX, tokens, 1, &err), &err, "fed at position 4294967295");
    refuses(td_drafter_propose(d, 4, 21, 1, ids, &n, &err), &err, "proposal at 21; allowed: 1..20");
    refuses(td_drafter_propose(d, 4, 0, 1, ids, &n, &err), &err, "proposal at 0; allowed: 1..20");
    const uint32_t bad[] = {1, 2, TOY_VOCAB, 3}, worse[] = {UINT32_MAX};
    refuses(td_drafter_feed(d, 4, 10, bad, 4, &err), &err,
            "token 259 at position 12; allowed: below 259");
    refuses(td_drafter_feed(d, 4, 20, worse, 1, &err), &err, "token 4294967295 at position 20");
    assert_int_equal(td_drafter_get_stats(d)->n_evaluated, 0);
    feed(d, 4, 20, NULL, 0);
    assert_int_equal(propose(d, 4, 20, 6, ids), 6);
    propose_fresh(4, tokens, 20, 6, want);
    assert_memory_equal(ids, want, 6 * sizeof *ids);
    assert_int_equal(propose(d, 4, 20, 0, ids), 0);
    assert_int_equal(propose(d, 4, UINT32_MAX, 3, ids), 0); /* far past the context */
    td_drafter_destroy(&d);
}

static void test_sampler_settings_out_of_range_are_refused(void **state)
{
    (void)state;
    td_drafter *d = create(N_CTX);
    td_sampling_params bad[] = {TD_SAMPLING_DEFAULTS, TD_SAMPLING_DEFAULTS, TD_SAMPLING_DEFAULTS,
                                TD_SAMPLING_DEFAULTS, TD_SAMPLING_DEFAULTS};
    bad[0].top_p = 0;
    bad[1].min_p = 1;
    bad[2].temperature = NAN;
    bad[3].repeat_penalty = 0;
    bad[4].temperature = -1;
    static const char *const parts[] = {"sequence 9: top_p", "min_p", "temperature",
                                        "repeat_penalty", "temperature"};
    for (size_t i = 0; i < TD_COUNT(bad); i++) {
        td_err err = {0};
        refuses(td_drafter_open(d, 9, 1, &bad[i], &err), &err, parts[i]);
    }
    td_drafter_destroy(&d);
}

static void test_slots_run_out_and_come_back(void **state)
{
    (void)state;
    td_drafter *d = create(N_CTX);
    td_sampling_params s = TD_SAMPLING_DEFAULTS;
    td_err err = {0};
    const uint32_t token = 65;
    for (uint32_t i = 0; i < N_SLOTS; i++)
        open_sequence(d, 100 + i);
    refuses(td_drafter_open(d, 7, 1, &s, &err), &err, "sequence 7: all 3 slots are taken");
    open_sequence(d, 101);   /* replaces itself */
    td_drafter_close(d, 55); /* unknown: nothing */
    td_drafter_close(d, 102);
    open_sequence(d, 7);
    feed(d, 7, 0, &token, 1);
    refuses(td_drafter_feed(d, 102, 0, &token, 1, &err), &err, "sequence 102 is not open");
    td_drafter_reset(d);
    refuses(td_drafter_feed(d, 7, 0, &token, 1, &err), &err, "sequence 7 is not open");
    for (uint32_t i = 0; i < N_SLOTS; i++)
        open_sequence(d, i);
    td_drafter_destroy(&d);
}

static void test_create_fails_with_a_reason(void **state)
{
    (void)state;
    const td_type_info *f32 = td_type_find(TD_TYPE_F32);
    td_drafter_params params = {
        .model = model, .spec = "nowhere", .type_k = f32, .type_v = f32, .n_slots = 1};
    td_err err = {0};
    assert_null(td_drafter_create(&params, &err));
    assert_int_equal(err.code, TD_E_USAGE);
    assert_ptr_equal(strstr(err.message, "draft: "), err.message);
    params.spec = "host:1";
    params.n_slots = 64;
    params.n_ctx = TD_CTX_MAX; /* 64 slots of it: terabytes */
    td_err_clear(&err);
    assert_null(td_drafter_create(&params, &err));
    assert_int_equal(err.code, TD_E_NOMEM);
    assert_non_null(strstr(err.message, "the draft needs"));
    uint64_t n = 0;
    params.n_slots = 2;
    params.n_ctx = 64;
    for (bool is_ok = false; !is_ok;) {
        td_err_clear(&err);
        td_alloc_fail_at(n += 1 + n / 16);
        td_drafter *d = td_drafter_create(&params, &err);
        td_alloc_fail_at(0);
        is_ok = d != NULL;
        if (!is_ok && err.code != TD_E_NOMEM)
            fail_msg("allocation %u: %s", (unsigned)n, err.message);
        td_drafter_destroy(&d);
    }
}

int main(void)
{
    toy t = toy_begin("qwen3", (toy_shape){64, 4, 2, 16, 2, 64, 256, false, false});
    td_err err = {0};
    model = toy_open(&t, &err);
    if (!model) {
        print_error("%s\n", err.message);
        return 1;
    }
    fresh = create(N_CTX);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_many_steps_are_as_one_by_one),
        cmocka_unit_test(test_proposals_do_not_depend_on_the_past),
        cmocka_unit_test(test_known_tokens_are_not_evaluated_again),
        cmocka_unit_test(test_proposals_end_with_the_context),
        cmocka_unit_test(test_senseless_messages_are_refused_and_change_nothing),
        cmocka_unit_test(test_sampler_settings_out_of_range_are_refused),
        cmocka_unit_test(test_slots_run_out_and_come_back),
        cmocka_unit_test(test_create_fails_with_a_reason),
    };
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    td_drafter_destroy(&fresh);
    td_model_close(&model);
    return rc;
}
