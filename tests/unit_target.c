/* The target's chain of stages: a split equals no split bit for bit, jobs keep their order through
 * all stages, a target may be closed with work queued, and a failed batch fails all after it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/mem.h"
#include "target/stage.h"
#include "target/target.h"

#include "dies.h"
#include "toy_model.h"

#include <poll.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

static td_model *model;

static const char *const whole[] = {"host:1"};
static const char *const halves[] = {"host:1@0-1", "host:2@2-3"};
static const char *const quarters[] = {"host:1", "host:1", "host:1", "host:1"};
static const struct {
    const char *const *specs;
    uint32_t n;
} splits[] = {{whole, 1}, {halves, 2}, {quarters, 4}};

static td_layout_params params_of(const char *const *specs, uint32_t n_specs, uint32_t n_slots)
{
    const td_type_info *f16 = td_type_find(TD_TYPE_F16);
    return (td_layout_params){.model = model,
                              .specs = specs,
                              .n_specs = n_specs,
                              .kv = {.k = f16, .v = f16},
                              .n_slots = n_slots};
}

static td_target *create(const char *const *specs, uint32_t n_specs, uint32_t n_slots)
{
    td_layout_params params = params_of(specs, n_specs, n_slots);
    td_err err = {0};
    td_target *t = td_target_create(&params, &err);
    if (!t)
        fail_msg("%s", err.message);
    return t;
}

/* Waits for the next finished batch. */
static td_target_result wait_for(td_target *t)
{
    td_target_result result;
    while (!td_target_poll(t, &result)) {
        struct pollfd p = {.fd = td_target_fd(t), .events = POLLIN};
        assert_int_equal(poll(&p, 1, 60000), 1);
    }
    return result;
}

static uint32_t token_at(uint32_t slot, uint32_t position)
{
    return (7 * position + 31 * slot) % TOY_VOCAB;
}

/* Rows of a slot from a position on; the last (or each) is an output. */
static uint32_t make_rows(td_forward_row *rows, uint32_t slot, uint32_t position, uint32_t n,
                          bool is_each)
{
    for (uint32_t i = 0; i < n; i++)
        rows[i] = (td_forward_row){.slot = slot,
                                   .position = position + i,
                                   .token = token_at(slot, position + i),
                                   .is_output = is_each || i + 1 == n};
    return n;
}

/* -- one chain, by hand ------------------------------------------------------------------------ */

static td_chain *create_chain(const char *const *specs, uint32_t n_specs, bool is_all_logits)
{
    td_layout_params params = params_of(specs, n_specs, 2);
    params.is_all_logits = is_all_logits;
    td_err err = {0};
    td_chain *chain = td_chain_create(&params, &err);
    if (!chain)
        fail_msg("%s", err.message);
    return chain;
}

static void run_chain(td_chain *chain, td_mode mode, uint32_t slot, uint32_t position, uint32_t n,
                      float *logits)
{
    td_forward_row rows[TD_PREFILL_ROWS_MAX];
    td_err err = {0};
    make_rows(rows, slot, position, n, true);
    if (!td_chain_run(chain, mode, rows, n, &err))
        fail_msg("%s", err.message);
    memcpy(logits, td_chain_logits(chain), (size_t)n * TOY_VOCAB * sizeof *logits);
}

static void test_a_split_gives_the_same_logits(void **state)
{
    (void)state;
    static float want[3][TD_PREFILL_ROWS_MAX * TOY_VOCAB], got[3][TD_PREFILL_ROWS_MAX * TOY_VOCAB];
    for (size_t i = 0; i < TD_COUNT(splits); i++) {
        td_chain *chain = create_chain(splits[i].specs, splits[i].n, true);
        assert_int_equal(chain->layout->n_parts, splits[i].n);
        float(*to)[TD_PREFILL_ROWS_MAX * TOY_VOCAB] = i ? got : want;
        run_chain(chain, TD_MODE_PREFILL, 0, 0, 200,
                  to[0]); /* more outputs than a verify batch has */
        run_chain(chain, TD_MODE_VERIFY, 0, 200, 5, to[1]);
        td_chain_rewind(chain, 0, 202);
        run_chain(chain, TD_MODE_VERIFY, 0, 202, 54, to[2]); /* to the context's end */
        /* The rows after the truncation are those from before it. */
        assert_memory_equal(to[1] + 2 * TOY_VOCAB, to[2], 3 * TOY_VOCAB * sizeof(float));
        td_chain_destroy(&chain);
    }
    assert_memory_equal(want[0], got[0], 200 * TOY_VOCAB * sizeof(float));
    assert_memory_equal(want[1], got[1], 5 * TOY_VOCAB * sizeof(float));
    assert_memory_equal(want[2], got[2], 54 * TOY_VOCAB * sizeof(float));
}

static void test_a_part_takes_the_bytes_it_was_planned_with(void **state)
{
    (void)state;
    for (size_t i = 0; i < TD_COUNT(splits); i++) {
        td_chain *chain = create_chain(splits[i].specs, splits[i].n, i == 0);
        for (uint32_t k = 0; k < chain->layout->n_parts; k++) {
            uint64_t used, budget;
            td_device_memory(chain->layout->parts[k].dev, &used, &budget);
            /* What programs keep beside tensors is planned with as the most it can be. */
            uint64_t planned = chain->layout->parts[k].n_bytes;
            assert_in_range(used, planned - planned / 4, planned);
        }
        td_chain_destroy(&chain);
    }
}

/* Memory of the parts' devices: taken, or planned. */
static uint64_t sum_bytes(const td_chain *chain, bool is_planned)
{
    uint64_t sum = 0, used, budget;
    for (uint32_t i = 0; i < chain->layout->n_parts; i++) {
        td_device_memory(chain->layout->parts[i].dev, &used, &budget);
        sum += is_planned ? chain->layout->parts[i].n_bytes : used;
    }
    return sum;
}

/* In turns with the lender, each gives what it gives alone; and it takes its cache's memory, for
 * which the layout kept room. */
static void test_chains_beside_another_have_a_cache_each_and_no_more(void **state)
{
    (void)state;
    static float want[2][200 * TOY_VOCAB], got[2][200 * TOY_VOCAB];
    const td_type_info *q8_0 = td_type_find(TD_TYPE_Q8_0), *f32 = td_type_find(TD_TYPE_F32);
    const td_cache_types types[] = {{.k = q8_0, .v = f32}};
    td_layout_params params = params_of(halves, 2, 2), alone = params;
    params.is_all_logits = alone.is_all_logits = true;
    params.beside = types;
    params.n_beside = TD_COUNT(types);
    td_chain *plain = create_chain(halves, 2, true), *lender = td_chain_create(&params, NULL);
    alone.kv.k = q8_0;
    alone.kv.v = f32;
    td_chain *other = td_chain_create(&alone, NULL);
    uint64_t before = sum_bytes(lender, false);
    assert_true(plain && lender && other);
    td_chain *beside = NULL;
    for (uint64_t n = 1; !beside; n += 1 + n / 16) { /* the lender gets over what fails */
        td_alloc_fail_at(n);
        beside = td_chain_create_beside(lender, &params, 0, NULL);
        td_alloc_fail_at(0);
        assert_true(beside || sum_bytes(lender, false) == before);
    }
    uint64_t more = sum_bytes(lender, true) - sum_bytes(plain, true), n_cache = 0;
    for (uint32_t i = 0; i < td_model_hparams(model)->n_layer; i++) {
        td_forward_params p = td_layout_forward_params(other->layout, &alone, i / 2);
        n_cache += td_forward_cache_bytes(&p, i);
    }
    assert_int_equal(more, n_cache); /* not what programs keep beside tensors, which is little */
    assert_in_range(sum_bytes(lender, false) - before, n_cache, 2 * n_cache);
    for (uint32_t i = 0; i < 2; i++) {
        run_chain(plain, TD_MODE_PREFILL, 0, 100 * i, 100, want[0]);
        run_chain(other, TD_MODE_PREFILL, 0, 100 * i, 100, want[1]);
        run_chain(lender, TD_MODE_PREFILL, 0, 100 * i, 100, got[0]);
        run_chain(beside, TD_MODE_PREFILL, 0, 100 * i, 100, got[1]);
        for (uint32_t k = 0; k < 2; k++)
            assert_memory_equal(want[k], got[k], 100 * TOY_VOCAB * sizeof(float));
    }
    assert_memory_not_equal(want[0], want[1], 100 * TOY_VOCAB * sizeof(float));
    td_chain_destroy(&beside);
    td_chain_destroy(&lender);
    td_chain_destroy(&plain);
    td_chain_destroy(&other);
}

static void test_a_chain_that_cannot_be_built_says_why(void **state)
{
    (void)state;
    static const struct {
        const char *specs[3];
        uint32_t n;
        td_err_code code;
        const char *part;
    } cases[] = {
        {{"host:1@0-1", "host:1@3-3"}, 2, TD_E_USAGE, "no device for layers 2..2"},
        {{"host:1@0-4"}, 1, TD_E_USAGE, "pinned to layers 0..4"},
        {{"host:1@0-3", "host:1"}, 2, TD_E_USAGE, "left without a layer"},
        {{"nowhere"}, 1, TD_E_USAGE, "nowhere"},
        {{"host:1@x"}, 1, TD_E_USAGE, "FIRST-LAST"},
        {{""}, 1, TD_E_USAGE, "a name of"},
    };
    for (size_t i = 0; i < TD_COUNT(cases); i++) {
        td_layout_params params = params_of(cases[i].specs, cases[i].n, 1);
        td_err err = {0};
        assert_null(td_chain_create(&params, &err));
        assert_int_equal(err.code, cases[i].code);
        if (!strstr(err.message, cases[i].part))
            fail_msg("\"%s\" lacks \"%s\"", err.message, cases[i].part);
    }
    const char *many[TD_STAGES_MAX + 1];
    for (uint32_t i = 0; i <= TD_STAGES_MAX; i++)
        many[i] = "host:1";
    td_layout_params params = params_of(many, TD_STAGES_MAX + 1, 1);
    td_err err = {0};
    assert_null(td_chain_create(&params, &err));
    assert_non_null(strstr(err.message, "17 target devices; allowed: 1..16"));
    params.n_specs = 5; /* four layers */
    td_err_clear(&err);
    assert_null(td_chain_create(&params, &err));
    assert_non_null(strstr(err.message, "5 devices for 4 layers"));
}

static void test_what_does_not_fit_becomes_fewer_pages(void **state)
{
    (void)state;
    td_layout_params params = params_of(whole, 1, 64); /* 64 sequences of 2^24 positions */
    params.n_ctx = TD_CTX_MAX;
    td_err err = {0};
    td_layout *layout = td_layout_create(&params, &err);
    if (!layout) { /* not even one */
        assert_int_equal(err.code, TD_E_NOMEM);
        assert_non_null(strstr(err.message, "MiB"));
        return;
    }
    uint32_t one = TD_CTX_MAX / TD_PAGE_POSITIONS;
    assert_in_range(layout->n_pages, one, 64 * one - 1);
    assert_true(layout->parts[0].n_bytes <= layout->parts[0].budget_bytes);
    td_layout_destroy(&layout);
}

static void test_a_layout_loads_nothing(void **state)
{
    (void)state;
    td_layout_params params = params_of(halves, 2, 3);
    td_layout *layout = td_layout_create(&params, NULL);
    assert_non_null(layout);
    assert_int_equal(layout->n_ctx, 256);
    for (uint32_t i = 0; i < 2; i++) {
        uint64_t used, budget;
        td_device_memory(layout->parts[i].dev, &used, &budget);
        assert_int_equal(used, 0);
        assert_true(layout->parts[i].n_bytes > 0);
    }
    td_layout_destroy(&layout);
}

/* -- threads ----------------------------------------------------------------------------------- */

/* Two sequences of a script of jobs; the chosen tokens of all batches, in order. Everything that
 * can be queued is queued at once, so that only the queues keep the order. */
static uint32_t play(td_target *t, uint32_t *chosen)
{
    static const td_sampling_params sampling = TD_SAMPLING_DEFAULTS;
    td_forward_row rows[TD_PREFILL_ROWS_MAX];
    uint32_t n_chosen = 0, n_batches = 0;
    td_target_open_sequence(t, 0, 0, 0, 11, &sampling);
    td_target_open_sequence(t, 1, 1, 0, 12, &sampling);
    td_target_forward(t, n_batches++, true, rows, make_rows(rows, 0, 0, 100, false));
    td_target_commit(t, 0, 100);
    td_target_forward(t, n_batches++, false, rows, make_rows(rows, 1, 0, 3, true));
    td_target_truncate(t, 1, 1);
    /* Rows of both, at the lengths that the jobs before leave. */
    uint32_t n = make_rows(rows, 0, 100, 9, true);
    n += make_rows(rows + n, 1, 1, 9, true);
    td_target_forward(t, n_batches++, false, rows, n);
    for (uint32_t round = 0; round < 20; round++) {
        td_target_result result = wait_for(t);
        assert_int_equal(result.err.code, TD_OK);
        assert_int_equal(result.batch, n_batches - 3);
        assert_int_equal(result.n_bad, 0);
        memcpy(chosen + n_chosen, result.chosen, result.n_out * sizeof *chosen);
        n_chosen += result.n_out;
        if (round < 3) /* what the batches so far leave: 109 and 10 positions */
            td_target_truncate(t, 1, 10 - round);
        uint32_t position = 109 + 2 * round;
        n = make_rows(rows, 0, position, 2, true);
        td_target_forward(t, n_batches++, false, rows, n);
        td_target_commit(t, 0, position);
        if (round == 10) {
            td_target_close_sequence(t, 1);
            td_target_open_sequence(t, 1, 1, 0, 13, &sampling);
        }
    }
    while (n_batches-- > 20) {
        td_target_result result = wait_for(t);
        memcpy(chosen + n_chosen, result.chosen, result.n_out * sizeof *chosen);
        n_chosen += result.n_out;
    }
    return n_chosen;
}

static void test_jobs_keep_their_order_through_all_stages(void **state)
{
    (void)state;
    uint32_t want[256], got[256], n_want = 0;
    for (size_t i = 0; i < TD_COUNT(splits); i++) {
        td_target *t = create(splits[i].specs, splits[i].n, 2);
        assert_int_equal(td_target_n_stages(t), splits[i].n);
        uint32_t n = play(t, i ? got : want);
        if (i == 0) {
            n_want = n;
            assert_true(n > 50);
        } else {
            assert_int_equal(n, n_want);
            assert_memory_equal(want, got, n * sizeof *want);
        }
        td_stage_info info;
        td_target_get_stage_info(t, splits[i].n - 1, &info);
        assert_int_equal(info.last, 3);
        assert_int_equal(info.n_prefill_rows, 100);
        assert_int_equal(info.n_verifies, 22);
        td_target_destroy(&t);
        assert_null(t);
    }
}

static void test_a_row_does_not_see_its_neighbours(void **state)
{
    (void)state;
    static const td_sampling_params sampling = TD_SAMPLING_DEFAULTS;
    td_target *t = create(halves, 2, 64);
    td_forward_row rows[TD_VERIFY_ROWS_MAX];
    uint32_t alone[64];
    for (uint32_t slot = 0; slot < 64; slot++) {
        td_target_open_sequence(t, slot, slot, 0, slot + 1, &sampling);
        td_target_forward(t, slot, false, rows, make_rows(rows, slot, 0, 1, true));
        alone[slot] = wait_for(t).chosen[0];
    }
    for (uint32_t slot = 0; slot < 64; slot++) {
        td_target_truncate(t, slot, 0);
        make_rows(rows + slot, slot, 0, 1, true);
    }
    td_target_forward(t, 64, false, rows, 64);
    td_target_result result = wait_for(t);
    assert_int_equal(result.n_out, 64);
    assert_memory_equal(result.chosen, alone, sizeof alone);
    td_target_destroy(&t);
}

static void test_a_target_may_be_closed_with_work_queued(void **state)
{
    (void)state;
    static const td_sampling_params sampling = TD_SAMPLING_DEFAULTS;
    for (uint32_t n = 0; n <= TD_TARGET_BATCHES_MAX; n++) {
        td_target *t = create(quarters, 4, 2);
        td_forward_row rows[64];
        for (uint32_t i = 0; i < 700; i++) /* more than there are jobs */
            td_target_open_sequence(t, i % 2, i % 2, 0, i, &sampling);
        for (uint32_t i = 0; i < n; i++)
            td_target_forward(t, i, false, rows, make_rows(rows, 0, 10 * i, 10, true));
        if (n)
            td_target_cancel(t, n - 1);
        td_target_commit(t, 0, 5 * n);
        td_target_destroy(&t);
    }
}

/* Batches of the last round may be waited for only as many as there are. */
static void submit_too_many(void *unused)
{
    (void)unused;
    alarm(60); /* hanging would be no failed contract */
    td_target *t = create(whole, 1, 1);
    td_forward_row rows[1];
    for (uint32_t i = 0; i < 2 * TD_TARGET_BATCHES_MAX; i++)
        td_target_forward(t, i, false, rows, make_rows(rows, 0, i, 1, true));
}

static void test_batches_in_flight_are_bounded(void **state)
{
    (void)state;
    assert_true(dies(submit_too_many, NULL));
}

/* -- failures ---------------------------------------------------------------------------------- */

/* A stage without a thread, to be given jobs by hand. */
static void test_after_a_failed_batch_all_fail_with_its_error(void **state)
{
    (void)state;
    td_chain *chain = create_chain(halves, 2, false);
    stage *s = td_alloc(1, sizeof *s, NULL);
    micro_batch *b = td_alloc(3, sizeof *b, NULL);
    td_queue out;
    td_queue_init(&s->in);
    td_queue_init(&out);
    s->forward = chain->forwards[0];
    s->out = &out;
    s->n_embd = 64;
    s->n_slots = 2;
    s->slots = td_alloc(2, sizeof *s->slots, NULL);
    job jobs[5] = {{.kind = JOB_FORWARD, .batch = &b[0]},
                   {.kind = JOB_COMMIT, .slot = 0, .length = 40},
                   {.kind = JOB_FORWARD, .batch = &b[1]},
                   {.kind = JOB_CLOSE, .slot = 0},
                   {.kind = JOB_STOP}};
    for (uint32_t i = 0; i < 2; i++) {
        b[i].activations = td_alloc(TD_PREFILL_ROWS_MAX * 64, sizeof(float), NULL);
        b[i].mode = TD_MODE_VERIFY;
        b[i].n_rows = make_rows(b[i].rows, 0, 20 * i, 20, false);
    }
    td_err_set(&b[0].err, TD_E_DEVICE_LOST, "an earlier stage's device is lost");
    for (uint32_t i = 0; i < 5; i++)
        td_queue_push(&s->in, &jobs[i].item);
    assert_true(td_stage_start(s, NULL));
    td_stage_stop(s);
    for (uint32_t i = 0; i < 5; i++) /* in order, none lost */
        assert_ptr_equal(td_queue_try_pop(&out), &jobs[i]);
    assert_null(td_queue_try_pop(&out));
    assert_int_equal(b[1].err.code, TD_E_DEVICE_LOST);
    assert_string_equal(b[1].err.message, "an earlier stage's device is lost");
    assert_int_equal(s->info.n_verify_rows, 0);
    for (uint32_t i = 0; i < 2; i++)
        td_free(b[i].activations);
    td_free(b);
    td_queue_destroy(&s->in);
    td_queue_destroy(&out);
    td_free(s->slots);
    td_free(s);
    td_chain_destroy(&chain);
}

static void test_a_lost_device_is_the_error_of_its_batches(void **state)
{
    (void)state;
    static td_device_info infos[TD_DEVICES_MAX];
    uint32_t n = td_device_list(infos, TD_DEVICES_MAX), i = 0;
    while (i < n && !(infos[i].kind != TD_DEVICE_HOST && infos[i].is_usable))
        i++;
    if (i == n) {
        print_message("no Vulkan device: nothing can be lost\n");
        skip();
    }
    const char *const specs[] = {"host:1@0-1", infos[i].spec};
    setenv("TD_VK_LOSE_AFTER", "3", 1);
    td_layout_params params = params_of(specs, 2, 1);
    td_err err = {0};
    td_target *t = td_target_create(&params, &err);
    static const td_sampling_params sampling = TD_SAMPLING_DEFAULTS;
    td_err_code code = err.code;
    if (t) {
        td_forward_row rows[1];
        td_target_open_sequence(t, 0, 0, 0, 1, &sampling);
        for (uint32_t k = 0; k < 10; k++) {
            td_target_forward(t, k, false, rows, make_rows(rows, 0, k, 1, true));
            td_target_result result = wait_for(t);
            assert_true(code == TD_OK || code == result.err.code); /* once lost, always lost */
            code = result.err.code;
            err = result.err;
        }
    }
    unsetenv("TD_VK_LOSE_AFTER");
    assert_int_equal(code, TD_E_DEVICE_LOST);
    assert_true(err.message[0] != 0);
    td_target_destroy(&t);
}

/* Tokens of a prompt and verifications of a split, and what the host copied on the way. */
static uint64_t run_split(const char *const *specs, uint32_t n, uint32_t tokens[20])
{
    td_target *t = create(specs, n, 2);
    td_sampling_params sampling = TD_SAMPLING_DEFAULTS;
    sampling.temperature = 1.5f; /* a token hangs on all logits */
    td_forward_row rows[TD_PREFILL_ROWS_MAX];
    td_target_open_sequence(t, 0, 0, 0, 1, &sampling);
    td_target_forward(t, 0, true, rows, make_rows(rows, 0, 0, 200, false));
    td_target_commit(t, 0, 200);
    for (uint32_t i = 0; i < 9; i++) /* all under way at once */
        td_target_forward(t, 1 + i, false, rows, make_rows(rows, 0, 200 + 2 * i, 2, true));
    for (uint32_t i = 0, n_tokens = 0; i < 10; i++) {
        td_target_result result = wait_for(t);
        if (result.err.code != TD_OK)
            fail_msg("%s", result.err.message);
        for (uint32_t k = 0; k < result.n_out; k++)
            tokens[n_tokens++] = result.chosen[k];
    }
    uint64_t sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        td_stage_info info;
        td_target_get_stage_info(t, i, &info);
        sum += info.n_copied_bytes;
    }
    td_target_destroy(&t);
    return sum;
}

/* GPUs import the memory where activations lie between stages; one that does not costs one copy. */
static void test_the_host_copies_no_activations(void **state)
{
    (void)state;
    td_device_info infos[TD_DEVICES_MAX];
    uint32_t n = td_device_list(infos, TD_DEVICES_MAX);
    const char *gpus[TD_DEVICES_MAX];
    uint32_t n_gpus = 0;
    for (uint32_t i = 0; i < n; i++)
        if (infos[i].is_usable && infos[i].has_host_import)
            gpus[n_gpus++] = infos[i].spec;
    const char *first = n_gpus ? gpus[0] : "host:1", *last = n_gpus ? gpus[n_gpus - 1] : "host:1";
    const char *const of[][3] = {{first, last, NULL},
                                 {last, first, NULL},
                                 {"host:1", last, NULL},
                                 {first, "host:2", NULL},
                                 {last, "host:1", first}};
    const uint64_t hop = 4ull * (200 + 18) * TOY_SHAPE.n_embd;
    for (size_t i = 0; i < TD_COUNT(of); i++) {
        uint32_t want[20] = {0}, got[20] = {0}, n_stages = of[i][2] ? 3 : 2;
        assert_int_equal(run_split(of[i], n_stages, got), 0);
        setenv("TD_VK_LIMIT", "hostImport=0", 1);
        uint64_t n_copied = run_split(of[i], n_stages, want);
        unsetenv("TD_VK_LIMIT");
        assert_int_equal(n_copied, n_gpus ? (n_stages - 1) * hop : 0);
        assert_memory_equal(got, want, sizeof want);
    }
    if (!n_gpus)
        print_message("no Vulkan device that imports memory: hosts alone\n");
}

/* Logits that are not finite are told by sequence: by the time the answer comes, the slot may be
 * another's. */
static void test_bad_logits_are_the_sequences_not_the_slots(void **state)
{
    (void)state;
    td_err err = {0};
    td_model *sound = model;
    toy t = toy_begin("llama", TOY_SHAPE);
    toy_tensor *x = toy_find(&t, "token_embd.weight");
    x->poison = NAN;
    x->poison_first = 5ull * TOY_SHAPE.n_embd; /* token 5 */
    x->n_poison = TOY_SHAPE.n_embd;
    model = toy_open(&t, &err);
    assert_non_null(model);
    td_target *target = create(halves, 2, 1);
    static const td_sampling_params sampling = TD_SAMPLING_DEFAULTS;
    for (uint32_t i = 0; i < 4; i++) { /* one slot, four sequences, all under way at once */
        td_forward_row rows[3];
        make_rows(rows, 0, 0, 3, true);
        for (uint32_t k = 0; k < 3; k++) {
            rows[k].sequence = 70 + i;
            rows[k].token = i == 1 ? 5 : 9 + k;
        }
        td_target_open_sequence(target, 0, 0, 0, i, &sampling);
        td_target_forward(target, i, false, rows, 3);
        td_target_close_sequence(target, 0);
    }
    for (uint32_t i = 0; i < 4; i++) {
        td_target_result result = wait_for(target);
        assert_int_equal(result.n_bad, i == 1 ? 3 : 0);
        for (uint32_t k = 0; k < result.n_bad; k++)
            assert_int_equal(result.bad[k], 71);
    }
    td_target_destroy(&target);
    td_model_close(&model);
    model = sound;
}

static void test_create_survives_every_failing_allocation(void **state)
{
    (void)state;
    uint64_t n = 0;
    for (bool is_ok = false; !is_ok;) {
        td_layout_params params = params_of(halves, 2, 2);
        td_err err = {0};
        td_alloc_fail_at(n += 1 + n / 16);
        td_target *t = td_target_create(&params, &err);
        td_alloc_fail_at(0);
        is_ok = t != NULL;
        if (!is_ok && err.code != TD_E_NOMEM)
            fail_msg("allocation %u: %s", (unsigned)n, err.message);
        td_target_destroy(&t);
    }
    assert_true(n > 100);
}

/* -- loading ---------------------------------------------------------------------------------- */

typedef struct {
    uint64_t done, total;
    pthread_t threads[8];
    uint32_t n_threads, n_calls;
    uint32_t n_most; /* calls, then it is enough; 0: no end */
} told;

static bool on_load(void *user, uint64_t done, uint64_t total)
{
    told *p = user;
    bool is_known = false;
    assert_true(done >= p->done && done <= total);
    p->done = done;
    p->total = total;
    p->n_calls++;
    for (uint32_t i = 0; i < p->n_threads; i++)
        is_known |= pthread_equal(p->threads[i], pthread_self()) != 0;
    if (!is_known && p->n_threads < TD_COUNT(p->threads))
        p->threads[p->n_threads++] = pthread_self();
    return !p->n_most || p->n_calls < p->n_most;
}

static void test_devices_load_each_by_a_thread(void **state)
{
    (void)state;
    for (size_t i = 0; i < TD_COUNT(splits); i++) {
        td_err err = {0};
        told p = {0};
        td_layout_params params = params_of(splits[i].specs, splits[i].n, 1);
        params.progress = on_load;
        params.user = &p;
        td_chain *c = td_chain_create(&params, &err);
        if (!c)
            fail_msg("%s", err.message);
        assert_int_equal(p.n_threads, splits[i].n);
        assert_true(p.done > p.total / 2 && p.n_calls > splits[i].n);
        td_chain_destroy(&c);
    }
}

static void test_loading_ends_when_nobody_wants_it(void **state)
{
    (void)state;
    for (size_t i = 0; i < TD_COUNT(splits); i++) {
        td_err err = {0};
        told p = {.n_most = 3};
        td_layout_params params = params_of(splits[i].specs, splits[i].n, 1);
        params.progress = on_load;
        params.user = &p;
        assert_null(td_target_create(&params, &err));
        assert_int_equal(err.code, TD_E_AGAIN);
        assert_non_null(strstr(err.message, "loading was stopped"));
        assert_int_equal(p.n_calls, 3);
    }
}

static int64_t file_bytes(const char *path)
{
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    return st.st_size;
}

/* The second device's tensors are gone; whoever notices first, the first one's are not kept. */
static void test_one_error_ends_all_loading(void **state)
{
    (void)state;
    char path[] = "/tmp/unit_target_XXXXXX";
    toy t = toy_begin("llama", TOY_SHAPE);
    toy_save(&t, path);
    td_err err = {0};
    td_model *m = td_model_open(path, &err), *whole_model = model;
    assert_non_null(m);
    assert_int_equal(truncate(path, (off_t)(file_bytes(path) * 3 / 4)), 0);
    for (uint32_t n = 2; n <= 4; n += 2) {
        model = m;
        td_layout_params params = params_of(n == 2 ? halves : quarters, n, 1);
        model = whole_model;
        err = (td_err){0};
        assert_null(td_chain_create(&params, &err));
        assert_int_equal(err.code, TD_E_IO);
        assert_non_null(strstr(err.message, "the file ends"));
        assert_null(strstr(err.message, "stopped"));
    }
    td_model_close(&m);
    unlink(path);
}

int main(void)
{
    toy t = toy_begin("llama", TOY_SHAPE);
    toy_find(&t, "blk.1.ffn_up.weight")->type = TD_TYPE_Q8_0; /* integer products too */
    toy_find(&t, "blk.2.attn_q.weight")->type = TD_TYPE_Q4_0;
    td_err err = {0};
    model = toy_open(&t, &err);
    if (!model) {
        print_error("%s\n", err.message);
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_split_gives_the_same_logits),
        cmocka_unit_test(test_devices_load_each_by_a_thread),
        cmocka_unit_test(test_loading_ends_when_nobody_wants_it),
        cmocka_unit_test(test_one_error_ends_all_loading),
        cmocka_unit_test(test_a_part_takes_the_bytes_it_was_planned_with),
        cmocka_unit_test(test_chains_beside_another_have_a_cache_each_and_no_more),
        cmocka_unit_test(test_a_chain_that_cannot_be_built_says_why),
        cmocka_unit_test(test_what_does_not_fit_becomes_fewer_pages),
        cmocka_unit_test(test_a_layout_loads_nothing),
        cmocka_unit_test(test_jobs_keep_their_order_through_all_stages),
        cmocka_unit_test(test_a_row_does_not_see_its_neighbours),
        cmocka_unit_test(test_a_target_may_be_closed_with_work_queued),
        cmocka_unit_test(test_batches_in_flight_are_bounded),
        cmocka_unit_test(test_after_a_failed_batch_all_fail_with_its_error),
        cmocka_unit_test(test_a_lost_device_is_the_error_of_its_batches),
        cmocka_unit_test(test_the_host_copies_no_activations),
        cmocka_unit_test(test_bad_logits_are_the_sequences_not_the_slots),
        cmocka_unit_test(test_create_survives_every_failing_allocation),
    };
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    td_model_close(&model);
    return rc;
}
