#include "target/queue.h"

void queue_init(queue *q)
{
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->filled, NULL);
    q->head = q->tail = NULL;
}

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
    pthread_cond_signal(&q->filled);
    pthread_mutex_unlock(&q->lock);
}

static job *pop_locked(queue *q)
{
    job *j = q->head;
    if (j) {
        q->head = j->next;
        if (!q->head)
            q->tail = NULL;
    }
    return j;
}

job *queue_pop(queue *q)
{
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
