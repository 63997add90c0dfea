/* Phases are numbered on and on, over all runs. `phase` is the one that is open, `limit` the first
 * that may not begin yet: they are equal between runs. A thread claims part p of phase f by moving
 * claims[p] from f - 1 to f, which succeeds exactly once and never for a phase that has passed.
 * Whoever finishes a phase's last part opens the next one.
 *
 * A run's work and arg are read only by the holder of a claim: while it holds one the run cannot
 * end, and whoever holds none looks at nothing but the pool. That is why td_pool_run may return
 * while other threads sleep, or are still on their way out of its last phase.
 *
 * Waiting. A waiter spins until the word changes, then announces itself in n_sleeping and sleeps
 * on the word's futex. The one who changes the word does so before it looks at n_sleeping, both
 * sequentially consistent: either it sees the sleeper and wakes it, or the sleeper sees the new
 * word. */
#include "kernels/pool.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/mem.h"

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SPIN_NS       40000u
#define SPINS_SAMPLED 1000u

typedef struct {
    alignas(64) _Atomic uint32_t word;
    _Atomic uint32_t n_sleeping;
} event;

typedef struct {
    td_pool *pool;
    pthread_t id;
    uint32_t thread; /* 1..n-1 */
} worker;

typedef struct {
    alignas(64) _Atomic uint32_t phase; /* the last one in which this part was claimed */
} claim;

struct td_pool {
    event phase, limit;
    alignas(64) _Atomic uint32_t n_done; /* parts of the open phase */
    _Atomic bool is_stopping;
    claim *claims; /* [n_threads] */
    uint32_t n_threads, n_started;
    uint32_t n_spins;   /* about SPIN_NS of them */
    worker *workers;    /* [n_threads - 1] */
    td_pool_work *work; /* the run's */
    void *arg;
    uint32_t first_phase;
    uint64_t pin_id; /* 0: not pinned; unlike an address, never another pool's */
    uint32_t caller_cpu;
};

static _Thread_local uint64_t pinned_as; /* the pin_id whose caller_cpu this thread runs on */

static void futex(_Atomic uint32_t *word, int op, uint32_t value)
{
    /* Whatever it returns (changed already, interrupted), the caller looks at the word again. */
    syscall(SYS_futex, word, op, value, NULL, NULL, 0);
}

static void change(event *e, uint32_t value)
{
    atomic_store(&e->word, value);
    if (atomic_load(&e->n_sleeping))
        futex(&e->word, FUTEX_WAKE_PRIVATE, INT32_MAX);
}

static void await_change(const td_pool *pool, event *e, uint32_t old)
{
    for (uint32_t i = 0; i < pool->n_spins; i++) {
        if (atomic_load_explicit(&e->word, memory_order_acquire) != old)
            return;
        td_clock_relax();
    }
    atomic_fetch_add(&e->n_sleeping, 1);
    while (atomic_load(&e->word) == old)
        futex(&e->word, FUTEX_WAIT_PRIVATE, old);
    atomic_fetch_sub(&e->n_sleeping, 1);
}

static bool try_claim(claim *c, uint32_t phase)
{
    uint32_t before = phase - 1;
    return atomic_load_explicit(&c->phase, memory_order_relaxed) == before &&
           atomic_compare_exchange_strong(&c->phase, &before, phase);
}

/* Does whatever parts of the phase are left, its own first; false when there was none. */
static bool do_parts(td_pool *pool, uint32_t phase, uint32_t thread)
{
    bool did_any = false;
    for (uint32_t i = 0; i < pool->n_threads; i++) {
        uint32_t part = thread + i < pool->n_threads ? thread + i : thread + i - pool->n_threads;
        if (!try_claim(&pool->claims[part], phase))
            continue;
        did_any = true;
        pool->work(pool->arg, phase - pool->first_phase, part);
        if (atomic_fetch_add(&pool->n_done, 1) + 1 == pool->n_threads) {
            atomic_store_explicit(&pool->n_done, 0, memory_order_relaxed);
            change(&pool->phase, phase + 1);
        }
    }
    return did_any;
}

static void *worker_main(void *arg)
{
    const worker *w = arg;
    td_pool *pool = w->pool;
    for (;;) {
        uint32_t phase = atomic_load_explicit(&pool->phase.word, memory_order_acquire);
        uint32_t limit = atomic_load_explicit(&pool->limit.word, memory_order_acquire);
        if (atomic_load(&pool->is_stopping))
            return NULL;
        if (phase == limit)
            await_change(pool, &pool->limit, limit);
        else if (!do_parts(pool, phase, w->thread))
            await_change(pool, &pool->phase, phase);
    }
}

static void pin(pthread_t thread, uint32_t cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    pthread_setaffinity_np(thread, sizeof set, &set); /* a CPU that went away: then it floats */
}

void td_pool_pin(td_pool *pool, const uint32_t *cpus)
{
    static _Atomic uint64_t n_pinned;
    pool->pin_id = atomic_fetch_add(&n_pinned, 1) + 1;
    pool->caller_cpu = cpus[0];
    for (uint32_t i = 0; i < pool->n_started; i++)
        pin(pool->workers[i].id, cpus[i + 1]);
}

void td_pool_pin_caller(const td_pool *pool)
{
    if (!pool->pin_id || pinned_as == pool->pin_id)
        return;
    pin(pthread_self(), pool->caller_cpu);
    pinned_as = pool->pin_id;
}

void td_pool_run(td_pool *pool, uint32_t n_phases, td_pool_work *work, void *arg)
{
    if (pool->n_threads == 1) {
        for (uint32_t i = 0; i < n_phases; i++)
            work(arg, i, 0);
        return;
    }
    uint32_t phase = atomic_load_explicit(&pool->limit.word, memory_order_relaxed);
    uint32_t end = phase + n_phases;
    pool->work = work;
    pool->arg = arg;
    pool->first_phase = phase;
    change(&pool->limit, end);
    while ((phase = atomic_load_explicit(&pool->phase.word, memory_order_acquire)) != end)
        if (!do_parts(pool, phase, 0))
            await_change(pool, &pool->phase, phase);
}

uint32_t td_pool_count(const td_pool *pool) { return pool->n_threads; }

/* Workers take no signals: those are the main thread's. */
static bool start_workers(td_pool *pool, td_err *err)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failure = 0;
    for (uint32_t i = 0; i + 1 < pool->n_threads && !failure; i++) {
        worker *w = &pool->workers[i];
        w->pool = pool;
        w->thread = i + 1;
        failure = pthread_create(&w->id, NULL, worker_main, w);
        if (!failure)
            pool->n_started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failure)
        return td_err_set(err, TD_E_NOMEM, "cannot start thread %u of %u: %s", pool->n_started + 1,
                          pool->n_threads, strerror(failure));
    return true;
}

/* A pause takes from ten to two hundred cycles, by the CPU. */
static uint32_t calibrate_spins(void)
{
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (uint32_t i = 0; i < SPINS_SAMPLED; i++)
        td_clock_relax();
    clock_gettime(CLOCK_MONOTONIC, &end);
    uint64_t ns = (uint64_t)(end.tv_sec - start.tv_sec) * 1000000000u + (uint64_t)end.tv_nsec -
                  (uint64_t)start.tv_nsec;
    return (uint32_t)(SPIN_NS * (uint64_t)SPINS_SAMPLED / (ns ? ns : 1)) + 1;
}

td_pool *td_pool_create(uint32_t n_threads, td_err *err)
{
    TD_ASSERT(n_threads >= 1);
    td_pool *pool = td_alloc(1, sizeof *pool, err);
    if (!pool)
        return NULL;
    pool->n_threads = n_threads;
    pool->n_spins = calibrate_spins();
    pool->claims = td_alloc(n_threads, sizeof *pool->claims, err);
    pool->workers = td_alloc(n_threads - 1, sizeof *pool->workers, err);
    if (!pool->claims || !pool->workers)
        goto fail;
    for (uint32_t i = 0; i < n_threads; i++)
        atomic_store(&pool->claims[i].phase, UINT32_MAX); /* the phase before phase 0 */
    if (!start_workers(pool, err))
        goto fail;
    return pool;
fail:
    td_pool_destroy(&pool);
    return NULL;
}

void td_pool_destroy(td_pool **pool)
{
    td_pool *p = *pool;
    if (!p)
        return;
    /* Workers of a pool that could not be completed wait for a run like any other. */
    atomic_store(&p->is_stopping, true);
    change(&p->limit, atomic_load(&p->limit.word) + 1);
    for (uint32_t i = 0; i < p->n_started; i++)
        pthread_join(p->workers[i].id, NULL);
    td_free(p->workers);
    td_free(p->claims);
    td_free(p);
    *pool = NULL;
}
