/* What the library tells of a socket's connections: accepted, refused, broken. For
 * transport/link*.c alone. */
#ifndef TD_TRANSPORT_LINK_WATCH_H
#define TD_TRANSPORT_LINK_WATCH_H

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    uint16_t event; /* ZMQ_EVENT_... */
    uint32_t value; /* its descriptor or error */
} td_watch_event;

/* Has `events` of a socket reported to the one returned; before it is bound or connected. NULL:
 * they are not; pings find out what they would tell. `number`: another for each in the context. */
void *td_watch_open(void *context, void *socket, uint32_t number, int events);
void td_watch_close(void *socket, void **watch);

/* The next one; false when there is none now. */
bool td_watch_read(void *watch, td_watch_event *out);

#endif
