/* The drafter: whatever was fed, proposed and rolled back before, it proposes what a fresh one
 * proposes that was fed the same tokens; and senseless messages change nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/mem.h"
#include "draft/drafter.h"

#include "toy_model.h"

#define N_CTX   200u
#define N_SLOTS 3u

static td_model *model;
static uint32_t n_vocab = TOY_VOCAB; /* the model's */
static td_drafter *fresh;            /* is emptied before each use */
static td_prefix_store *kept;        /* of those that are created; or NULL */

static td_drafter *create_on(const char *spec, uint32_t n_ctx)
{
    const td_type_info *f16 = td_type_find(TD_TYPE_F16);
    td_err err = {0};
    td_drafter *d = td_drafter_create(&(td_drafter_params){.model = model,
                                                           .spec = spec,
                                                           .kv = {.k = f16, .v = f16},
                                                           .n_slots = N_SLOTS,
                                                           .n_ctx = n_ctx,
                                                           .prompts = kept},
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
    if (sequence % 4 == 3)
        s.top_k = 7;
    if (sequence % 5 == 4)
        s.min_p = 0.05f;
    if (sequence % 7 == 6)
        s.repeat_penalty = 1.1f;
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
        assert_in_range(ids[i], 0, n_vocab - 1);
    return n;
}

/* Nothing is left of any slot: two texts that begin differently cannot both begin like it. */
static void empty(td_drafter *d)
{
    const uint32_t one = 1, two = 2;
    td_drafter_reset(d);
    for (uint32_t i = 0; i < N_SLOTS; i++) {
        open_sequence(d, 900 + i);
        feed(d, 900 + i, 0, &one, 1);
        feed(d, 900 + i, 0, &two, 1);
    }
    td_drafter_reset(d);
}

/* What a drafter says that knows nothing but these tokens. */
static uint32_t propose_fresh(uint32_t sequence, const uint32_t *tokens, uint32_t n_tokens,
                              uint32_t k, uint32_t *ids)
{
    empty(fresh);
    uint64_t n_shared = td_drafter_get_stats(fresh)->n_shared;
    uint64_t n_run = td_drafter_get_stats(fresh)->n_evaluated;
    open_sequence(fresh, sequence);
    feed(fresh, sequence, 0, tokens, n_tokens);
    uint32_t n = propose(fresh, sequence, n_tokens, k, ids);
    assert_int_equal(td_drafter_get_stats(fresh)->n_shared, n_shared);
    assert_true(k == 0 || td_drafter_get_stats(fresh)->n_evaluated >= n_run + n_tokens);
    return n;
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

/* Steps that feed each other on the device give the tokens of steps taken one by one, by every
 * chain; several in a submission, but now and then, where the device took another than the host. */
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
                                                           .kv = {.k = f16, .v = f16},
                                                           .n_slots = 1,
                                                           .n_ctx = N_CTX},
                                      &err);
    if (!f)
        fail_msg("%s", err.message);
    td_sampler *sampler = td_sampler_create(TOY_VOCAB, &err);
    bool is_quick = !strncmp(spec, "host", 4);
    uint32_t n_sequences = is_quick ? 60 : 15;
    for (uint32_t sequence = 0; sequence < n_sequences; sequence++) {
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
    const td_drafter_stats *stats = td_drafter_get_stats(d);
    assert_int_equal(stats->n_read, 0);
    if (!is_quick)
        assert_true(stats->n_runs < n_sequences * (K / TD_DRAFT_STEPS + 3));
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
        if (random_below(3) == 0) { /* a question that came too late */
            assert_int_equal(propose(d, q, random_below(n_tokens[q]), 3, ids), 0);
            feed(d, q, 0, t, n_tokens[q]);
        }
    }
    assert_true(n_full > 200);
    td_drafter_destroy(&d);
    assert_null(d);
}

/* A sequence that is drafted ahead: asked again and again behind its own proposals, told now and
 * then what is committed. */
typedef struct {
    uint32_t tokens[N_CTX]; /* committed, then the tail that was proposed */
    uint32_t n_committed, n;
} ahead;

static void begin_ahead(td_drafter *d, uint32_t q, ahead *a, uint32_t n)
{
    open_sequence(d, q);
    for (uint32_t i = 0; i < n; i++)
        a->tokens[i] = random_below(n_vocab);
    a->n = a->n_committed = n;
    feed(d, q, 0, a->tokens, n);
}

/* The target commits a part of the tail and, as it may be, another token behind it. */
static void commit_ahead(td_drafter *d, uint32_t q, ahead *a)
{
    uint32_t first = a->n_committed, n = random_below(a->n - a->n_committed + 1);
    bool is_other = n == 0 || random_below(3) == 0;
    a->n_committed += n;
    if (is_other) {
        uint32_t token = random_below(n_vocab);
        bool is_same = a->n > a->n_committed && a->tokens[a->n_committed] == token;
        a->tokens[a->n_committed++] = token;
        if (!is_same)
            a->n = a->n_committed;
    }
    feed(d, q, first, a->tokens + first, a->n_committed - first);
}

static void check_ahead(uint32_t n_steps, uint32_t n_prompt_max)
{
    td_drafter *d = create(N_CTX);
    ahead all[N_SLOTS] = {0};
    uint32_t ids[64], want[64], n_ahead = 0;
    for (uint32_t step = 0; step < n_steps; step++) {
        uint32_t q = random_below(N_SLOTS), k = 1 + random_below(9);
        ahead *a = &all[q];
        if (a->n == 0 || a->n > N_CTX - 20)
            begin_ahead(d, q, a, 1 + random_below(step % 7 ? 20 : n_prompt_max));
        else if (random_below(3) == 0)
            commit_ahead(d, q, a);
        uint32_t n = propose(d, q, a->n, k, ids);
        assert_int_equal(n, k);
        propose_fresh(q, a->tokens, a->n, k, want);
        assert_memory_equal(ids, want, n * sizeof *ids);
        /* And all of the tail at once, from what is committed. */
        memcpy(a->tokens + a->n, ids, n * sizeof *ids);
        a->n += n;
        uint32_t n_tail = a->n - a->n_committed;
        if (n_tail <= 64)
            propose_fresh(q, a->tokens, a->n_committed, n_tail, want);
        if (n_tail <= 64)
            assert_memory_equal(a->tokens + a->n_committed, want, n_tail * sizeof *want);
        n_ahead += n_tail > k;
    }
    assert_true(n_ahead > n_steps / 3);
    td_drafter_destroy(&d);
}

static void test_ahead_is_as_if_asked_at_once(void **state)
{
    (void)state;
    check_ahead(400, 130);
}

/* Proposes behind a prompt; returns the positions that came from the disk, which were not run. */
static uint32_t propose_kept(td_drafter *d, uint32_t sequence, const uint32_t *tokens, uint32_t n)
{
    uint32_t ids[8], want[8];
    td_drafter_stats before = *td_drafter_get_stats(d);
    open_sequence(d, sequence);
    feed(d, sequence, 0, tokens, n);
    assert_int_equal(propose(d, sequence, n, 8, ids), 8);
    td_drafter_stats after = *td_drafter_get_stats(d);
    uint32_t n_restored = (uint32_t)(after.n_restored - before.n_restored);
    uint32_t n_shared = (uint32_t)(after.n_shared - before.n_shared);
    assert_true(after.n_evaluated - before.n_evaluated <= n + 7 - n_restored - n_shared);
    propose_fresh(sequence, tokens, n, 8, want);
    assert_memory_equal(ids, want, sizeof ids);
    return n_restored;
}

/* What another drafter has read of a prompt is found, and nothing that begins otherwise. */
static void check_kept(bool forgets)
{
    char folder[] = "/tmp/tandem-drafter-XXXXXX", command[64];
    uint32_t tokens[N_CTX], others[N_CTX];
    for (uint32_t i = 0; i < N_CTX; i++)
        tokens[i] = others[i] = random_below(n_vocab);
    others[100] = (others[100] + 1) % n_vocab;
    assert_non_null(mkdtemp(folder));
    kept = td_prefix_store_open(folder, 1000000000, NULL);
    td_drafter *d = create(N_CTX);
    assert_int_equal(propose_kept(d, 1, tokens, 150), 0);
    td_drafter_destroy(&d); /* when all is written */
    d = create(N_CTX);
    assert_int_equal(propose_kept(d, 2, tokens, 150), 128);
    assert_int_equal(propose_kept(d, 3, others, 150), forgets ? 64 : 0); /* or shared */
    td_drafter_close(d, 2);
    assert_int_equal(propose_kept(d, 4, others, 128), forgets ? 64 : 0);
    td_drafter_destroy(&d);
    d = create(N_CTX);
    assert_int_equal(propose_kept(d, 5, others, 129), 128); /* the last row is always run */
    assert_int_equal(propose_kept(d, 6, tokens, N_CTX - 8), forgets ? 128 : 64);
    td_drafter_destroy(&d);
    d = create(N_CTX); /* the first two chunks are shared, the third is not */
    assert_int_equal(propose_kept(d, 7, tokens, 130), 128);
    assert_int_equal(propose_kept(d, 8, tokens, N_CTX - 8), forgets ? 128 : 0);
    td_drafter_destroy(&d);
    td_prefix_store_close(&kept);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    assert_int_equal(system(command), 0);
}

static void test_kept_prompts_are_as_if_computed(void **state)
{
    (void)state;
    check_kept(false);
}

/* Models that forget: layers of a window, of a chunk, recurrent ones. Prompts that are read as a
 * prefill may round otherwise than rows, so they are short. */
static void test_ahead_with_a_cache_that_forgets(void **state)
{
    static const char *const names[] = {"gemma3", "llama4", "gpt-oss", "qwen35", "qwen35moe"};
    (void)state;
    td_model *toy_model = model;
    td_drafter *toy_fresh = fresh;
    const char *golden = getenv("TD_GOLDEN");
    uint32_t n_done = 0;
    for (size_t i = 0; i < TD_COUNT(names); i++) {
        char path[512];
        td_err err = {0};
        snprintf(path, sizeof path, "%s/models/%s/model.gguf", golden ? golden : "../shared/golden",
                 names[i]);
        model = td_model_open(path, &err);
        if (!model) {
            printf("skipped: %s\n", err.message);
            continue;
        }
        n_vocab = td_model_hparams(model)->n_vocab;
        fresh = create(N_CTX);
        check_ahead(150, 60);
        check_kept(true);
        td_drafter_destroy(&fresh);
        td_model_close(&model);
        n_done++;
    }
    model = toy_model;
    fresh = toy_fresh;
    n_vocab = TOY_VOCAB;
    if (!n_done)
        skip();
}

static void test_the_tail_is_kept_and_has_a_limit(void **state)
{
    (void)state;
    td_drafter *d = create(N_CTX);
    uint32_t tokens[N_CTX] = {65, 66, 67}, n = 3, ids[64];
    open_sequence(d, 1);
    feed(d, 1, 0, tokens, n);
    for (; n < 3 + TD_DRAFTER_AHEAD_MAX; n += 32)
        assert_int_equal(propose(d, 1, n, 32, tokens + n), 32);
    assert_int_equal(propose(d, 1, n, 32, ids), 0);
    uint64_t n_run = td_drafter_get_stats(d)->n_evaluated;
    assert_int_equal(n_run, n - 1); /* each row once */
    feed(d, 1, 3, tokens + 3, 10);  /* it was right */
    assert_int_equal(propose(d, 1, n, 32, tokens + n), 10);
    assert_int_equal(td_drafter_get_stats(d)->n_evaluated, n_run + 10);
    assert_int_equal(propose(d, 1, 20, 32, ids), 32); /* known, so it costs nothing */
    assert_memory_equal(ids, tokens + 20, 32 * sizeof *ids);
    assert_int_equal(td_drafter_get_stats(d)->n_evaluated, n_run + 10);
    uint32_t other = (tokens[20] + 1) % TOY_VOCAB;
    feed(d, 1, 13, tokens + 13, 7);
    feed(d, 1, 20, &other, 1); /* it went another way */
    assert_int_equal(propose(d, 1, 22, 5, ids), 0);
    assert_int_equal(propose(d, 1, 21, 5, ids), 5);
    assert_int_equal(td_drafter_get_stats(d)->n_evaluated, n_run + 10 + 5);
    td_drafter_destroy(&d);
}

static td_proposal go_on(td_drafter *d, uint32_t sequence, uint32_t position, uint32_t k)
{
    td_proposal p = {.sequence = sequence, .position = position, .k = k, .goes_on = true};
    td_proposal *jobs[] = {&p};
    td_err err = {0};
    bool is_ok = td_drafter_begin(d, &p, &err);
    while (is_ok && !p.is_done)
        is_ok = td_drafter_step(d, jobs, 1, &err);
    if (!is_ok)
        fail_msg("%s", err.message);
    return p;
}

/* What goes on begins at the first token that was told to be another, or where its text ends. */
static void test_what_goes_on_begins_where_it_was_told_otherwise(void **state)
{
    (void)state;
    td_drafter *d = create(N_CTX);
    uint32_t tokens[N_CTX] = {65, 66, 67}, n = 3, ids[64];
    open_sequence(d, 1);
    feed(d, 1, 0, tokens, n);
    td_proposal p = go_on(d, 1, n, 8);
    assert_int_equal(p.position, n);
    assert_int_equal(p.n, 8);
    memcpy(tokens + n, p.ids, 8 * sizeof *tokens);
    feed(d, 1, 3, tokens + 3, 2); /* as said: it goes on behind its text */
    p = go_on(d, 1, 40, 2);
    assert_int_equal(p.position, 11);
    assert_int_equal(p.n, 2);
    tokens[5] = (tokens[5] + 1) % TOY_VOCAB;
    feed(d, 1, 5, tokens + 5, 1);
    tokens[6] = 3;
    feed(d, 1, 6, tokens + 6, 1);
    p = go_on(d, 1, 13, 4);
    assert_int_equal(p.position, 5);
    assert_int_equal(p.n, 6); /* two that it was told, four of its own */
    assert_memory_equal(p.ids, tokens + 5, 2 * sizeof *tokens);
    assert_int_equal(propose_fresh(1, tokens, 7, 4, ids), 4);
    assert_memory_equal(p.ids + 2, ids, 4 * sizeof *ids);
    assert_int_equal(go_on(d, 1, 12, 1).position, 11); /* told once, begun once */
    td_drafter_destroy(&d);
}

/* Several at once, joining and leaving between steps, give what each gives alone. */
static void test_together_is_as_one_after_another(void **state)
{
    (void)state;
    td_drafter *d = create(N_CTX);
    static td_proposal proposals[N_SLOTS];
    ahead all[N_SLOTS] = {0};
    bool is_busy[N_SLOTS] = {false};
    uint32_t want[64], n_done = 0, n_together = 0;
    td_err err = {0};
    while (n_done < 250) {
        td_proposal *jobs[N_SLOTS];
        uint32_t n_jobs = 0, q = random_below(N_SLOTS);
        ahead *a = &all[q];
        if (!is_busy[q] && (a->n == 0 || a->n > N_CTX - 20))
            begin_ahead(d, q, a, 1 + random_below(n_done % 5 ? 20 : 150));
        if (!is_busy[q]) {
            proposals[q] = (td_proposal){
                .sequence = q, .epoch = 9, .position = a->n, .k = 1 + random_below(9)};
            assert_true(td_drafter_begin(d, &proposals[q], &err));
            is_busy[q] = true;
        }
        for (uint32_t i = 0; i < N_SLOTS; i++)
            if (is_busy[i])
                jobs[n_jobs++] = &proposals[i];
        n_together += n_jobs > 1;
        if (!td_drafter_step(d, jobs, n_jobs, &err))
            fail_msg("%s", err.message);
        for (uint32_t i = 0; i < N_SLOTS; i++) {
            td_proposal *p = &proposals[i];
            if (!is_busy[i] || (!p->is_done && random_below(9)))
                continue; /* now and then one is given up half-way */
            assert_int_equal(p->epoch, 9);
            propose_fresh(i, all[i].tokens, all[i].n, p->k, want);
            assert_memory_equal(p->ids, want, p->n * sizeof *want);
            memcpy(all[i].tokens + all[i].n, p->ids, p->n * sizeof *want);
            all[i].n += p->n;
            is_busy[i] = false;
            n_done++;
            commit_ahead(d, i, &all[i]);
        }
    }
    assert_true(n_together > 100);
    td_drafter_destroy(&d);
}

static void test_a_common_beginning_is_computed_once(void **state)
{
    (void)state;
    td_drafter *d = create(N_CTX);
    uint32_t tokens[N_CTX], ids[64], want[64];
    for (uint32_t i = 0; i < N_CTX; i++)
        tokens[i] = random_below(TOY_VOCAB);
    for (uint32_t q = 0; q < 40; q++) {
        uint32_t n = 131 + random_below(20), n_same = 128 + random_below(4);
        uint64_t n_run = td_drafter_get_stats(d)->n_evaluated;
        for (uint32_t i = n_same; i < n; i++)
            tokens[i] = random_below(TOY_VOCAB);
        open_sequence(d, q);
        feed(d, q, 0, tokens, n);
        assert_int_equal(propose(d, q, n, 5, ids), 5);
        propose_fresh(q, tokens, n, 5, want);
        assert_memory_equal(ids, want, 5 * sizeof *ids);
        n_run = td_drafter_get_stats(d)->n_evaluated - n_run;
        assert_true(q == 0 ? n_run == n + 4 : n_run <= n - 128 + 4);
        if (q >= 2) /* of an open one, and of those that were there before */
            td_drafter_close(d, q - random_below(2));
        if (q == 20)
            td_drafter_reset(d);
        for (uint32_t i = 0; q >= 2 && i <= q; i++) /* room for the next */
            if (i != q)
                td_drafter_close(d, i);
    }
    assert_true(td_drafter_get_stats(d)->n_shared > 0);
    /* A slot's own old text: less of it than was there, then more. */
    td_drafter_reset(d);
    for (uint32_t i = 0; i < 3 * N_SLOTS; i++) {
        uint32_t n = 70 + 17 * (i % 5);
        tokens[66 + i % 3]++;
        tokens[66 + i % 3] %= TOY_VOCAB;
        open_sequence(d, 5);
        feed(d, 5, 0, tokens, 30);
        feed(d, 5, 30, tokens + 30, n - 30);
        assert_int_equal(propose(d, 5, n, 5, ids), 5);
        propose_fresh(5, tokens, n, 5, want);
        assert_memory_equal(ids, want, 5 * sizeof *ids);
    }
    td_drafter_destroy(&d);
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
    /* What is committed already is not proposed. */
    open_sequence(d, 0);
    feed(d, 0, 0, tokens, 150);
    assert_int_equal(propose(d, 0, 62, 5, ids), 0);
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
    assert_int_equal(propose(d, 4, 21, 1, ids), 0); /* behind what is known */
    assert_int_equal(propose(d, 4, 19, 1, ids), 0); /* before what is committed */
    assert_int_equal(propose(d, 4, 0, 1, ids), 0);
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
        .model = model, .spec = "nowhere", .kv = {.k = f32, .v = f32}, .n_slots = 1};
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
        cmocka_unit_test(test_ahead_is_as_if_asked_at_once),
        cmocka_unit_test(test_ahead_with_a_cache_that_forgets),
        cmocka_unit_test(test_kept_prompts_are_as_if_computed),
        cmocka_unit_test(test_the_tail_is_kept_and_has_a_limit),
        cmocka_unit_test(test_what_goes_on_begins_where_it_was_told_otherwise),
        cmocka_unit_test(test_together_is_as_one_after_another),
        cmocka_unit_test(test_a_common_beginning_is_computed_once),
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
