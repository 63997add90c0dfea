/* What an implementation of td_link provides; for transport/link*.c alone. */
#ifndef TD_TRANSPORT_LINK_IMPL_H
#define TD_TRANSPORT_LINK_IMPL_H

#include "transport/link.h"

typedef struct {
    bool (*send)(td_link *l, td_route route, const void *bytes, size_t n_bytes, bool may_queue,
                 td_err *err);
    bool (*recv)(td_link *l, void *buffer, size_t *n_bytes, td_route *route, td_err *err);
    bool (*reset)(td_link *l, td_err *err);
    bool (*was_cut)(td_link *l); /* NULL: never */
    void (*flush)(td_link *l);   /* sends what is queued, as far as it goes */
    void (*close)(td_link *l, bool is_clean);
} td_link_ops;

struct td_link {
    const td_link_ops *ops;
    td_clock *clock; /* of an in-memory link; NULL marks ZeroMQ */
    td_link_stats stats;
};

/* The ZeroMQ half of td_link_poll: waits for the items that are fds or ZeroMQ links. A signal ends
 * the wait with *is_interrupted. */
bool td_link_zmq_poll(td_link_poll_item *items, size_t n_items, int64_t timeout_us,
                      bool *is_interrupted, td_err *err);

/* The next arrival at an in-memory link, UINT64_MAX for none. */
uint64_t td_link_mem_next_us(const td_link *l);

#endif
