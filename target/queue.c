#include "target/queue.h"

#include "base/clock.h"

#include <sched.h>

/* Between a small model's rounds the next job comes within tens of microseconds, and waking a
 * thread takes as long again. */
#define SPIN_US 30u
/* Then it lets others run, but keeps its CPU awake: one that has gone idle takes up to half a
 * millisecond to come back on a virtual machine, which is a tenth of a small stage. */
#define YIELD_US 5000u

void queue_init(queue *q)
{
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->filled, NULL);
    q->head = q->tail = NULL;
    atomic_init(&q->n_jobs, 0);
    cpu_set_t cpus;
    bool is_alone = sched_getaffinity(0, sizeof cpus, &cpus) == 0 && CPU_COUNT(&cpus) < 2;
    q->spin_us = is_alone ? 0 : SPIN_US;
    q->wait_us = q->spin_us;
}

void queue_stay_awake(queue *q) { q->wait_us = q->spin_us ? YIELD_US : 0; }

void queue_destroy(queue *q)
{
    pthread_mutex_destroy(&q->lock);
    pthread_cond_destroy(&q->filled);
}

void queue_push(queue *q, job *j)
{
    j->next = NULL;
    pthread_mutex_lock(&q->lock);
    if (q->tail)
        q->tail->next = j;
    else
        q->head = j;
    q->tail = j;
    atomic_fetch_add(&q->n_jobs, 1);
    pthread_mutex_unlock(&q->lock);
    pthread_cond_signal(&q->filled); /* without the lock, which the woken one wants at once */
}

static job *pop_locked(queue *q)
{
    job *j = q->head;
    if (j) {
        q->head = j->next;
        if (!q->head)
            q->tail = NULL;
        atomic_fetch_sub(&q->n_jobs, 1);
    }
    return j;
}

static void look_for_job(const queue *q)
{
    if (!q->spin_us)
        return;
    const td_clock clock = td_clock_real();
    uint64_t start = td_clock_now_us(&clock), waited_us = 0;
    while (!atomic_load_explicit(&q->n_jobs, memory_order_acquire) && waited_us < q->wait_us) {
        if (waited_us < q->spin_us)
            for (uint32_t i = 0; i < 8; i++)
                td_clock_relax();
        else
            sched_yield();
        waited_us = td_clock_now_us(&clock) - start;
    }
}

job *queue_pop(queue *q)
{
    look_for_job(q);
    pthread_mutex_lock(&q->lock);
    while (!q->head)
        pthread_cond_wait(&q->filled, &q->lock);
    job *j = pop_locked(q);
    pthread_mutex_unlock(&q->lock);
    return j;
}

job *queue_try_pop(queue *q)
{
    pthread_mutex_lock(&q->lock);
    job *j = pop_locked(q);
    pthread_mutex_unlock(&q->lock);
    return j;
}
