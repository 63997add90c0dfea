/* The thread pool: every part of every phase runs once, phases do not overlap, runs follow each
 * other, pools do not disturb each other, and a failed creation leaves nothing behind. Meant to be
 * run under ThreadSanitizer as well. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/mem.h"
#include "kernels/device.h"
#include "kernels/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define N_THREADS_MAX 8
#define N_PHASES      40
#define N_RUNS        200

/* Plain memory on purpose: the pool's order alone must make it safe. */
typedef struct {
    uint32_t n_parts, i_run;
    uint32_t counts[N_PHASES][N_THREADS_MAX]; /* how often a part ran, all runs */
    uint32_t sums[N_PHASES][N_THREADS_MAX];   /* a value that needs the whole phase before */
    _Atomic uint32_t n_wrong;
} sums_job;

static void add_up(void *arg, uint32_t phase, uint32_t part)
{
    sums_job *job = arg;
    if (phase >= N_PHASES || part >= job->n_parts) {
        job->n_wrong++;
        return;
    }
    uint32_t sum = job->i_run + part;
    for (uint32_t i = 0; phase && i < job->n_parts; i++) {
        if (job->counts[phase - 1][i] != job->i_run + 1)
            job->n_wrong++;
        sum += job->sums[phase - 1][i];
    }
    if ((phase + part) % 7 == 0)
        sched_yield(); /* let others overtake */
    job->sums[phase][part] = sum;
    job->counts[phase][part]++;
}

static void check_runs(uint32_t n_threads)
{
    td_err err = {0};
    td_pool *pool = td_pool_create(n_threads, &err);
    assert_non_null(pool);
    assert_int_equal(td_pool_count(pool), n_threads);
    sums_job job = {.n_parts = n_threads};
    uint32_t expected[2][N_THREADS_MAX];
    for (job.i_run = 0; job.i_run < N_RUNS; job.i_run++) {
        td_pool_run(pool, N_PHASES, add_up, &job);
        for (uint32_t p = 0; p < N_PHASES; p++)
            for (uint32_t i = 0; i < n_threads; i++) {
                expected[p % 2][i] = job.i_run + i;
                for (uint32_t j = 0; p && j < n_threads; j++)
                    expected[p % 2][i] += expected[1 - p % 2][j];
                assert_int_equal(job.sums[p][i], expected[p % 2][i]);
                assert_int_equal(job.counts[p][i], job.i_run + 1);
            }
    }
    assert_int_equal(job.n_wrong, 0);
    td_pool_destroy(&pool);
    assert_null(pool);
}

static void test_every_part_runs_once_after_the_phase_before(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= N_THREADS_MAX; n += n < 3 ? 1 : 5)
        check_runs(n);
}

/* The job is gone right after the run: a late worker must not look at it. */
static void run_short_lived(td_pool *pool, uint32_t i_run)
{
    sums_job *job = malloc(sizeof *job);
    assert_non_null(job);
    memset(job, 0, sizeof *job);
    job->n_parts = td_pool_count(pool);
    td_pool_run(pool, 1 + i_run % 3, add_up, job);
    for (uint32_t i = 0; i < job->n_parts; i++)
        assert_int_equal(job->counts[i_run % 3][i], 1);
    assert_int_equal(job->n_wrong, 0);
    memset(job, 0xa5, sizeof *job);
    free(job);
}

static void test_nothing_touches_a_job_after_its_run(void **state)
{
    (void)state;
    td_pool *pool = td_pool_create(3, NULL);
    assert_non_null(pool);
    for (uint32_t i = 0; i < 3000; i++)
        run_short_lived(pool, i);
    td_pool_destroy(&pool);
}

static void *run_own_pool(void *arg)
{
    (void)arg;
    check_runs(3);
    return NULL;
}

static void test_pools_are_independent(void **state)
{
    (void)state;
    pthread_t other;
    assert_int_equal(pthread_create(&other, NULL, run_own_pool, NULL), 0);
    check_runs(2);
    assert_int_equal(pthread_join(other, NULL), 0);
}

static void test_an_idle_pool_is_destroyed_at_once(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 50; i++) {
        td_pool *pool = td_pool_create(1 + i % 4, NULL);
        assert_non_null(pool);
        td_pool_destroy(&pool);
    }
}

static void test_creation_survives_every_failed_allocation(void **state)
{
    (void)state;
    bool is_created = false;
    for (uint64_t n = 1; !is_created; n++) {
        assert_true(n < 10);
        td_err err = {0};
        td_alloc_fail_at(n);
        td_pool *pool = td_pool_create(2, &err);
        td_alloc_fail_at(0);
        is_created = pool != NULL;
        assert_int_equal(err.code, is_created ? TD_OK : TD_E_NOMEM);
        td_pool_destroy(&pool);
    }
}

static void note_cpu(void *arg, uint32_t phase, uint32_t part)
{
    (void)phase;
    (void)part;
    atomic_store((_Atomic int *)arg, sched_getcpu());
}

static void test_threads_run_where_they_are_pinned(void **state)
{
    (void)state;
    cpu_set_t before;
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    for (uint32_t cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &before))
            continue;
        td_pool *other = td_pool_create(1, NULL);
        _Atomic int seen = -1;
        td_pool_pin(other, &cpu);
        td_pool_pin_caller(other);
        td_pool_run(other, 1, note_cpu, (void *)&seen);
        assert_int_equal(seen, cpu);
        td_pool_destroy(&other);
    }
    assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
}

static void test_a_list_of_cpus_that_will_not_do_is_refused(void **state)
{
    (void)state;
    const char *const specs[] = {"host:1:",    "host:1:x",    "host:1:0-",     "host:1:0,",
                                 "host:1:1-0", "host:1:-1",   "host:1:999999", "host:2:0",
                                 "host:2:0,0", "host:1:0-0-0"};
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++) {
        td_err err = {0};
        assert_null(td_device_create(specs[i], &err));
        assert_int_equal(err.code, TD_E_USAGE);
        assert_non_null(strstr(err.message, "CPUs"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_part_runs_once_after_the_phase_before),
        cmocka_unit_test(test_nothing_touches_a_job_after_its_run),
        cmocka_unit_test(test_pools_are_independent),
        cmocka_unit_test(test_an_idle_pool_is_destroyed_at_once),
        cmocka_unit_test(test_creation_survives_every_failed_allocation),
        cmocka_unit_test(test_threads_run_where_they_are_pinned),
        cmocka_unit_test(test_a_list_of_cpus_that_will_not_do_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
