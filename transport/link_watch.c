/* The library's monitor of a socket: a pair of sockets within the process, an event a message of
 * two parts, {event u16, value u32} in the machine's byte order and the address. It must be read,
 * or the library's thread waits for us once some thousand events lie there; every step of a peer
 * does. */
#include "transport/link_watch.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <zmq.h>

void *td_watch_open(void *context, void *socket, uint32_t number, int events)
{
    char name[48];
    snprintf(name, sizeof name, "inproc://tandem-watch-%u", (unsigned)number);
    if (zmq_socket_monitor(socket, name, events) != 0)
        return NULL;
    void *watch = zmq_socket(context, ZMQ_PAIR);
    if (watch && zmq_connect(watch, name) != 0) {
        zmq_close(watch);
        watch = NULL;
    }
    return watch;
}

void td_watch_close(void *socket, void **watch)
{
    int none_ms = 0;
    if (!*watch)
        return;
    zmq_socket_monitor(socket, NULL, 0);
    zmq_setsockopt(*watch, ZMQ_LINGER, &none_ms, sizeof none_ms);
    zmq_close(*watch);
    *watch = NULL;
}

bool td_watch_read(void *watch, td_watch_event *out)
{
    uint8_t part[6];
    int n, more = 1;
    size_t n_more = sizeof more;
    while ((n = zmq_recv(watch, part, sizeof part, ZMQ_DONTWAIT)) < 0)
        if (errno != EINTR)
            return false;
    if (n < (int)sizeof part)
        memset(part, 0, sizeof part);
    memcpy(&out->event, part, sizeof out->event);
    memcpy(&out->value, part + 2, sizeof out->value);
    while (zmq_getsockopt(watch, ZMQ_RCVMORE, &more, &n_more) == 0 && more)
        if (zmq_recv(watch, part, sizeof part, ZMQ_DONTWAIT) < 0 && errno != EINTR)
            break;
    return true;
}
