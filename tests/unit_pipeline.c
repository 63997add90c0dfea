/* Micro-batches in flight over stages and links: the coordinator, a target under a simulated clock
 * whose stages take a + b rows and whose links take as long as they are told, and what of it
 * td_pipeline has to find out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/check.h"
#include "coordinator/coordinator.h"
#include "coordinator/pipeline.h"

#include <math.h>
#include <string.h>

#define N_VOCAB 100u
#define N_COLD  4u /* batches */

typedef struct {
    uint32_t n_stages, n_sequences, n_prompt, n_predict;
    uint64_t pass_us, row_us, hop_us; /* a stage's time, and a row's; from one to the next */
    uint64_t cold_us;                 /* that much more for the first batches, over every hop */
    uint32_t n_groups;                /* 0: chosen */
} world_params;

typedef struct {
    double us;                 /* of all lines */
    uint32_t n_groups, n_most; /* at the end; in flight at most */
    double link_us;
    uint64_t n_batches;
} world_result;

static const char *text_of(void *user, uint32_t id, size_t *n_bytes)
{
    (void)user;
    (void)id;
    *n_bytes = 1;
    return "a";
}

static bool is_end(void *user, uint32_t id)
{
    (void)user;
    (void)id;
    return false;
}

typedef struct {
    uint64_t id, end_us;
    uint32_t n_out;
    td_batch_times times;
} flight;

/* What stages and links make of a batch that is sent now: they are ordered, so its way is known. */
static flight send(const world_params *p, uint64_t *free_us, const td_action *a, uint64_t now_us)
{
    flight f = {.id = a->batch, .n_out = a->n_out};
    uint64_t us = p->pass_us + p->row_us * a->n_rows, at = now_us;
    uint64_t hop_us = p->hop_us + (a->batch <= N_COLD ? p->cold_us : 0);
    for (uint32_t i = 0; i < p->n_stages; i++) {
        at += hop_us;
        uint64_t came_us = at;
        at = free_us[i] > at ? free_us[i] : at;
        f.times.waited_us += at - came_us;
        at += us;
        free_us[i] = at;
        f.times.sum_us += us;
    }
    f.times.max_us = us;
    f.end_us = at + hop_us;
    return f;
}

static void add_sequences(const world_params *p, td_coordinator *c)
{
    uint32_t prompt[512], sequence;
    for (uint32_t i = 0; i < p->n_sequences; i++) {
        for (uint32_t k = 0; k < p->n_prompt; k++)
            prompt[k] = (i + k) % N_VOCAB;
        td_sequence_params s = {
            .prompt = prompt, .n_prompt = p->n_prompt, .n_predict = p->n_predict};
        assert_true(td_coordinator_add(c, &s, 0, &sequence, NULL));
    }
}

static world_result run(const world_params *p)
{
    td_coordinator_params params = {.n_slots = p->n_sequences,
                                    .n_ctx = 2000,
                                    .n_batches_max = p->n_groups ? p->n_groups : TD_BATCHES_MAX,
                                    .n_stages = p->n_groups ? p->n_groups : p->n_stages,
                                    .verify_rows_max = TD_VERIFY_ROWS_MAX,
                                    .prefill_rows = 64,
                                    .draft_deadline_us = 1000,
                                    .n_vocab = N_VOCAB,
                                    .token_bytes = text_of,
                                    .token_is_end = is_end};
    td_coordinator *c = td_coordinator_create(&params, NULL);
    assert_non_null(c);
    add_sequences(p, c);
    flight flights[TD_BATCHES_MAX];
    uint32_t n = 0, chosen[TD_BATCH_ROWS_MAX];
    uint64_t now_us = 0, free_us[TD_BATCHES_MAX] = {0};
    world_result out = {0};
    while (!td_coordinator_is_idle(c)) {
        td_action a;
        while (td_coordinator_next(c, &a)) {
            if (a.kind == TD_ACT_FORWARD)
                flights[n++] = send(p, free_us, &a, now_us);
            assert_true(n <= params.n_batches_max);
        }
        out.n_most = td_max_u32(out.n_most, n);
        if (td_coordinator_is_idle(c))
            break;
        assert_true(n > 0);
        flight f = flights[0];
        memmove(flights, flights + 1, --n * sizeof *flights);
        now_us = f.end_us;
        for (uint32_t i = 0; i < f.n_out; i++)
            chosen[i] = (uint32_t)(f.id + i) % N_VOCAB;
        td_coordinator_on_verified(c, f.id, chosen, &f.times, now_us);
    }
    out.us = (double)now_us;
    out.n_groups = td_coordinator_get_stats(c)->n_groups;
    out.link_us = td_coordinator_get_stats(c)->link_us;
    out.n_batches = td_coordinator_get_stats(c)->n_batches;
    td_coordinator_destroy(&c);
    return out;
}

/* Nearly as good as the best number of groups, had it been told beforehand, whatever links take. */
static void test_groups_are_as_good_as_the_best_number_of_them(void **state)
{
    (void)state;
    static const uint64_t passes[] = {2000, 20000}, rows[] = {50, 1500};
    static const uint64_t hops[] = {10, 2500, 10000, 50000};
    uint32_t n_better = 0; /* than one for each stage, by a fifth */
    for (uint32_t k = 0; k < 48; k++) {
        world_params p = {.n_stages = 1 + k % 3,
                          .n_sequences = 32,
                          .n_prompt = 20,
                          .n_predict = 100,
                          .hop_us = hops[k / 3 % 4],
                          .pass_us = passes[k / 12 % 2],
                          .row_us = rows[k / 24]};
        world_result chosen = run(&p);
        double best_us = INFINITY;
        for (p.n_groups = p.n_stages; p.n_groups <= TD_BATCHES_MAX; p.n_groups++) {
            double us = run(&p).us;
            n_better += p.n_groups == p.n_stages && us > 1.2 * chosen.us;
            best_us = fmin(best_us, us);
        }
        if (chosen.us > 1.10 * best_us)
            fail_msg("%u stages of %llu + %llu us a row, hops of %llu: %.0f us by %u groups, %.0f "
                     "at best",
                     p.n_stages, (unsigned long long)p.pass_us, (unsigned long long)p.row_us,
                     (unsigned long long)p.hop_us, chosen.us, chosen.n_groups, best_us);
    }
    print_message("%u of 48 are faster by a fifth\n", n_better);
    assert_true(n_better >= 8);
}

/* The first batches find everything cold and seem to say that links are long. With so many groups
 * as that would need no stage is ever idle, and what batches wait for is each other. */
static void test_a_cold_beginning_does_not_stay(void **state)
{
    (void)state;
    for (uint32_t k = 0; k < 4; k++) {
        world_params p = {.n_stages = 1 + k % 2,
                          .n_sequences = 32,
                          .n_prompt = 20,
                          .n_predict = 100,
                          .hop_us = k < 2 ? 10 : 2500,
                          .cold_us = 20000,
                          .pass_us = 3000,
                          .row_us = 500};
        world_result chosen = run(&p);
        print_message(
            "%u stages, hops of %llu us: %u groups, links %.0f us, %.2f s; fixed:", p.n_stages,
            (unsigned long long)p.hop_us, chosen.n_groups, chosen.link_us, chosen.us * 1e-6);
        double best_us = INFINITY;
        for (p.n_groups = p.n_stages; p.n_groups <= 8; p.n_groups++) {
            double us = run(&p).us;
            best_us = fmin(best_us, us);
            print_message(" %u: %.2f", p.n_groups, us * 1e-6);
        }
        print_message("\n");
        assert_true(chosen.link_us == (double)(p.hop_us * (p.n_stages + 1)));
        assert_true(chosen.us <= 1.05 * best_us);
    }
}

/* A stage that always has another chunk, where links are longer than a chunk takes. */
static void test_chunks_of_a_prompt_fill_links_too(void **state)
{
    (void)state;
    world_params p = {.n_stages = 2,
                      .n_sequences = 2,
                      .n_prompt = 500,
                      .n_predict = 1,
                      .hop_us = 10000,
                      .pass_us = 2000,
                      .row_us = 100};
    world_result chosen = run(&p);
    p.n_groups = 2;
    world_result two = run(&p);
    assert_int_equal(chosen.n_batches, two.n_batches);
    assert_true(chosen.n_most >= 5 && chosen.us < 0.6 * two.us);
}

/* What is not on its way is not waited for: one group a stage, no deeper. */
static void test_without_links_there_are_as_many_as_stages(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= 4; n++) {
        world_params p = {.n_stages = n,
                          .n_sequences = 32,
                          .n_prompt = 200,
                          .n_predict = 40,
                          .pass_us = 5000,
                          .row_us = 300};
        world_result chosen = run(&p);
        assert_int_equal(chosen.n_groups, n);
        assert_int_equal(chosen.n_most, n);
        assert_true(chosen.link_us <= 0);
    }
}

static void add_sample(td_pipeline *p, double waited_us, double us)
{
    td_pipeline_add(
        p, &(td_pipeline_sample){
               .n_rows = 8, .us = us, .waited_us = waited_us, .sum_us = 20000, .max_us = 10000});
}

static void test_a_link_is_what_is_left_of_a_batch(void **state)
{
    (void)state;
    td_pipeline p;
    td_pipeline_init(&p, 2, 16);
    assert_true(td_pipeline_link_us(&p, false) <= 0);
    add_sample(&p, 65000, 90000);
    assert_true(td_pipeline_link_us(&p, false) == 5000.0);
    assert_true(td_pipeline_link_us(&p, true) == 5000.0); /* while there is nothing better */
    add_sample(&p, 60000, 90000);
    add_sample(&p, 0, 23000);
    assert_true(td_pipeline_link_us(&p, false) == 3000.0); /* the least of the last */
    for (uint32_t i = 0; i < TD_PIPELINE_LINKS; i++)       /* it has become slower */
        add_sample(&p, 10000, 70000);
    assert_true(td_pipeline_link_us(&p, false) == 40000.0);
    assert_int_equal(td_pipeline_depth(&p, false), 6);
    td_pipeline_init(&p, 2, 2); /* all stages are here */
    add_sample(&p, 0, 60000);
    td_pipeline_choose(&p, 32, 1, 64);
    assert_true(td_pipeline_link_us(&p, false) <= 0);
    assert_int_equal(td_pipeline_depth(&p, false), 2);
    assert_int_equal(p.n_groups, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_groups_are_as_good_as_the_best_number_of_them),
        cmocka_unit_test(test_chunks_of_a_prompt_fill_links_too),
        cmocka_unit_test(test_without_links_there_are_as_many_as_stages),
        cmocka_unit_test(test_a_cold_beginning_does_not_stay),
        cmocka_unit_test(test_a_link_is_what_is_left_of_a_batch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
