/* The oldest goes first, as a client that means well is through in a moment: it would take a
 * limit's worth of newcomers within that moment to keep it out. What tells a handshake under way
 * from one that is done is how many bytes have come (TCP_INFO): the library does not say whose was
 * done.
 *
 * The descriptors are the library's. So nothing is read, written or closed here; hanging up is
 * shutdown(2), which its own thread sees as an end, after a look whether it is still that
 * connection. */
#include "transport/link_gate.h"

#include <linux/tcp.h>
#include <string.h>
#include <sys/socket.h>

/* ZMTP 3: a greeting of 64, then READY; with CURVE, HELLO of 202 and INITIATE of 290 and more. */
#define BYTES_OPEN   100u
#define BYTES_SECURE 500u

static in_port_t port_of(int fd)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } peer;
    socklen_t n = sizeof peer;
    memset(&peer, 0, sizeof peer);
    if (getpeername(fd, &peer.any, &n) != 0)
        return 0;
    return peer.any.sa_family == AF_INET    ? peer.v4.sin_port
           : peer.any.sa_family == AF_INET6 ? peer.v6.sin6_port
                                            : 0;
}

static bool is_there(const td_gate_entry *e) { return e->port != 0 && port_of(e->fd) == e->port; }

static bool is_waiting(const td_gate *g, const td_gate_entry *e)
{
    struct tcp_info info;
    socklen_t n = sizeof info;
    memset(&info, 0, sizeof info);
    return getsockopt(e->fd, IPPROTO_TCP, TCP_INFO, &info, &n) == 0 &&
           info.tcpi_bytes_received < g->handshake_bytes;
}

static void take_out(td_gate *g, uint32_t i)
{
    memmove(&g->entries[i], &g->entries[i + 1], (--g->n - i) * sizeof g->entries[0]);
}

void td_gate_open(td_gate *g, bool is_secure)
{
    *g = (td_gate){.handshake_bytes = is_secure ? BYTES_SECURE : BYTES_OPEN};
}

void td_gate_gone(td_gate *g, int fd)
{
    for (uint32_t i = 0; i < g->n; i++)
        if (g->entries[i].fd == fd) {
            take_out(g, i);
            return;
        }
}

bool td_gate_accepted(td_gate *g, int fd)
{
    uint32_t n_waiting = 0, i_oldest = UINT32_MAX;
    td_gate_gone(g, fd); /* the number was another's */
    g->entries[g->n++] = (td_gate_entry){fd, port_of(fd)};
    for (uint32_t i = 0; i < g->n;) {
        if (!is_there(&g->entries[i])) {
            take_out(g, i);
            continue;
        }
        if (is_waiting(g, &g->entries[i])) {
            n_waiting++;
            i_oldest = i_oldest == UINT32_MAX ? i : i_oldest;
        }
        i++;
    }
    if (n_waiting <= TD_GATE_WAITING && g->n <= TD_GATE_MAX)
        return false;
    /* Where all are through, the newest: it is one too many. */
    uint32_t i = i_oldest < g->n ? i_oldest : g->n - 1;
    shutdown(g->entries[i].fd, SHUT_RDWR);
    take_out(g, i);
    return true;
}
