/* The part of td_link that both implementations share: the calls, and the poll that waits for
 * sockets, plain file descriptors and simulated time in one place. */
#include "transport/link.h"

#include "base/check.h"
#include "transport/link_impl.h"
#include "transport/wire.h"

/* With messages queued, how long to wait before they are tried again. A socket that routes by
 * name always says it could write, so waiting for "writable" would spin. */
#define QUEUE_RETRY_US 1000

bool td_link_send(td_link *l, td_route route, const void *bytes, size_t n_bytes, td_err *err)
{
    TD_ASSERT(n_bytes >= 1 && n_bytes <= TD_WIRE_MESSAGE_MAX);
    return l->ops->send(l, route, bytes, n_bytes, true, err);
}

bool td_link_try_send(td_link *l, td_route route, const void *bytes, size_t n_bytes, td_err *err)
{
    TD_ASSERT(n_bytes >= 1 && n_bytes <= TD_WIRE_MESSAGE_MAX);
    return l->ops->send(l, route, bytes, n_bytes, false, err);
}

bool td_link_recv(td_link *l, void *buffer, size_t *n_bytes, td_route *route, td_err *err)
{
    *n_bytes = 0;
    *route = 0;
    return l->ops->recv(l, buffer, n_bytes, route, err);
}

bool td_link_reset(td_link *l, td_err *err) { return l->ops->reset(l, err); }

bool td_link_was_cut(td_link *l) { return l->ops->was_cut && l->ops->was_cut(l); }

void td_link_close(td_link **l, bool is_clean)
{
    if (*l)
        (*l)->ops->close(*l, is_clean);
    *l = NULL;
}

td_link_stats td_link_get_stats(const td_link *l) { return l->stats; }

uint64_t td_link_next_us(const td_link *l) { return l->clock ? td_link_mem_next_us(l) : 0; }

typedef struct {
    bool is_any_readable, is_any_queued;
    td_clock *simulated; /* NULL for none */
    uint64_t next_in_us; /* the next arrival at an in-memory link, UINT64_MAX for none */
} survey;

/* Looks at the links without waiting; sends what is queued. */
static survey look(td_link_poll_item *items, size_t n_items)
{
    survey s = {.next_in_us = UINT64_MAX};
    for (size_t i = 0; i < n_items; i++) {
        td_link *l = items[i].link;
        items[i].is_readable = false;
        if (!l)
            continue;
        l->ops->flush(l);
        s.is_any_queued |= l->stats.n_queued_bytes != 0;
        if (!l->clock)
            continue;
        if (l->clock->is_simulated)
            s.simulated = l->clock;
        uint64_t next_us = td_link_mem_next_us(l), now_us = td_clock_now_us(l->clock);
        items[i].is_readable = next_us <= now_us;
        s.is_any_readable |= items[i].is_readable;
        if (next_us > now_us && next_us != UINT64_MAX && next_us - now_us < s.next_in_us)
            s.next_in_us = next_us - now_us;
    }
    return s;
}

static bool is_any_readable(const td_link_poll_item *items, size_t n_items)
{
    for (size_t i = 0; i < n_items; i++)
        if (items[i].is_readable)
            return true;
    return false;
}

/* Simulated time stands still while we look and jumps when there is nothing to see. */
static bool poll_simulated(td_link_poll_item *items, size_t n_items, int64_t timeout_us, survey s,
                           td_err *err)
{
    bool is_interrupted;
    if (!td_link_zmq_poll(items, n_items, 0, &is_interrupted, err))
        return false;
    if (timeout_us == 0 || is_any_readable(items, n_items))
        return true;
    uint64_t jump_us = s.next_in_us;
    if (timeout_us > 0 && (uint64_t)timeout_us < jump_us)
        jump_us = (uint64_t)timeout_us;
    if (jump_us == UINT64_MAX)
        return true; /* without end, and nothing is under way: it would be for ever */
    td_clock_advance(s.simulated, jump_us);
    look(items, n_items);
    return true;
}

bool td_link_poll(td_link_poll_item *items, size_t n_items, int64_t timeout_us, td_err *err)
{
    TD_ASSERT(n_items <= TD_LINK_POLL_MAX);
    td_clock clock = td_clock_real();
    uint64_t start_us = td_clock_now_us(&clock);
    for (;;) {
        survey s = look(items, n_items);
        if (s.simulated)
            return poll_simulated(items, n_items, timeout_us, s, err);
        int64_t left_us = timeout_us;
        if (timeout_us > 0) {
            uint64_t waited_us = td_clock_now_us(&clock) - start_us;
            left_us = waited_us >= (uint64_t)timeout_us ? 0 : timeout_us - (int64_t)waited_us;
        }
        int64_t wait_us = s.is_any_readable ? 0 : left_us;
        if (s.next_in_us <= INT64_MAX && (wait_us < 0 || (int64_t)s.next_in_us < wait_us))
            wait_us = (int64_t)s.next_in_us;
        if (s.is_any_queued && (wait_us < 0 || wait_us > QUEUE_RETRY_US))
            wait_us = QUEUE_RETRY_US;
        bool is_whole = wait_us == left_us, is_interrupted;
        if (!td_link_zmq_poll(items, n_items, wait_us, &is_interrupted, err))
            return false;
        if (is_any_readable(items, n_items) || is_whole || is_interrupted)
            return true;
    }
}
