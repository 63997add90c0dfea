/* An ordered queue between two threads: what is pushed comes out in that order. Items are the
 * caller's, linked through their first member, so nothing is allocated and any number fits.
 *
 * Threads: any may push and pop. Cannot fail. */
#ifndef TD_BASE_QUEUE_H
#define TD_BASE_QUEUE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct td_queue_item {
    struct td_queue_item *next;
} td_queue_item;

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t filled;
    td_queue_item *head, *tail;
    _Atomic uint32_t n_items;
    uint32_t spin_us; /* to look for an item, hard, before sleeping; 0 where there is one CPU */
    uint32_t wait_us; /* in all, letting others run */
} td_queue;

void td_queue_init(td_queue *q);
/* For queues where each hop would wait for an idle CPU to wake. */
void td_queue_stay_awake(td_queue *q);
void td_queue_destroy(td_queue *q);
void td_queue_push(td_queue *q, td_queue_item *item);
td_queue_item *td_queue_pop(td_queue *q); /* waits: looks for a moment, then sleeps */
/* The first item that is wanted, left in its place; NULL where there is none. For who pops: to
 * others it may be gone by then. */
const td_queue_item *td_queue_find(td_queue *q, bool (*is_wanted)(const td_queue_item *item));
td_queue_item *td_queue_try_pop(td_queue *q); /* NULL when empty */

#endif
