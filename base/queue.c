#include "base/queue.h"

#include "base/clock.h"

#include <sched.h>

/* Between a small model's rounds the next job comes within tens of microseconds, and waking a
 * thread takes as long again. */
#define SPIN_US 30u
/* Then it lets others run, but keeps its CPU awake: one that has gone idle takes up to half a
 * millisecond to come back on a virtual machine, which is a tenth of a small stage. */
#define YIELD_US 5000u

void td_queue_init(td_queue *q)
{
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->filled, NULL);
    q->head = q->tail = NULL;
    atomic_init(&q->n_items, 0);
    cpu_set_t cpus;
    bool is_alone = sched_getaffinity(0, sizeof cpus, &cpus) == 0 && CPU_COUNT(&cpus) < 2;
    q->spin_us = is_alone ? 0 : SPIN_US;
    q->wait_us = q->spin_us;
}

void td_queue_stay_awake(td_queue *q) { q->wait_us = q->spin_us ? YIELD_US : 0; }

void td_queue_destroy(td_queue *q)
{
    pthread_mutex_destroy(&q->lock);
    pthread_cond_destroy(&q->filled);
}

void td_queue_push(td_queue *q, td_queue_item *item)
{
    item->next = NULL;
    pthread_mutex_lock(&q->lock);
    if (q->tail)
        q->tail->next = item;
    else
        q->head = item;
    q->tail = item;
    atomic_fetch_add(&q->n_items, 1);
    pthread_mutex_unlock(&q->lock);
    pthread_cond_signal(&q->filled); /* without the lock, which the woken one wants at once */
}

static td_queue_item *pop_locked(td_queue *q)
{
    td_queue_item *item = q->head;
    if (item) {
        q->head = item->next;
        if (!q->head)
            q->tail = NULL;
        atomic_fetch_sub(&q->n_items, 1);
    }
    return item;
}

static void look_for_item(const td_queue *q)
{
    if (!q->spin_us)
        return;
    const td_clock clock = td_clock_real();
    uint64_t start = td_clock_now_us(&clock), waited_us = 0;
    while (!atomic_load_explicit(&q->n_items, memory_order_acquire) && waited_us < q->wait_us) {
        if (waited_us < q->spin_us)
            for (uint32_t i = 0; i < 8; i++)
                td_clock_relax();
        else
            sched_yield();
        waited_us = td_clock_now_us(&clock) - start;
    }
}

td_queue_item *td_queue_pop(td_queue *q)
{
    look_for_item(q);
    pthread_mutex_lock(&q->lock);
    while (!q->head)
        pthread_cond_wait(&q->filled, &q->lock);
    td_queue_item *item = pop_locked(q);
    pthread_mutex_unlock(&q->lock);
    return item;
}

const td_queue_item *td_queue_find(td_queue *q, bool (*is_wanted)(const td_queue_item *item))
{
    pthread_mutex_lock(&q->lock);
    const td_queue_item *item = q->head;
    while (item && !is_wanted(item))
        item = item->next;
    pthread_mutex_unlock(&q->lock);
    return item;
}

td_queue_item *td_queue_try_pop(td_queue *q)
{
    pthread_mutex_lock(&q->lock);
    td_queue_item *item = pop_locked(q);
    pthread_mutex_unlock(&q->lock);
    return item;
}
