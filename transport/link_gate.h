/* How many strangers may stand at a bound tcp socket. The library accepts whoever connects, so that
 * descriptors would run out before a handshake's time does. Here connections are counted as the
 * library tells of them, and beyond a limit the oldest that has not shown its key is hung up on.
 * For transport/link_zmq.c alone, from the thread of its link. */
#ifndef TD_TRANSPORT_LINK_GATE_H
#define TD_TRANSPORT_LINK_GATE_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

#define TD_GATE_MAX     128u /* connections, whoever's */
#define TD_GATE_WAITING 64u  /* of those, handshakes under way */

typedef struct {
    int fd;
    in_port_t port; /* the other end's, so that a number given anew is not taken for this one */
} td_gate_entry;

typedef struct {
    uint32_t handshake_bytes; /* what a client has sent at least when it is through */
    uint32_t n;
    td_gate_entry entries[TD_GATE_MAX + 1]; /* oldest first */
} td_gate;

void td_gate_open(td_gate *g, bool is_secure);
bool td_gate_accepted(td_gate *g, int fd); /* true: some connection was hung up on */
void td_gate_gone(td_gate *g, int fd);

#endif
