/* Endpoints: which ones are allowed, and the file system's part of an ipc one.
 *
 *   inproc://NAME    a peer in this process
 *   ipc://PATH       a peer of the same user: PATH's directory belongs to us and nobody else may
 *                    write to it, so the file system authenticates. Made (0700) if missing
 *   tcp://HOST:PORT  loopback (127.0.0.0/8, [::1], localhost): no key is needed. Anything else,
 *                    an address, a name or, bound, a wildcard (*, 0.0.0.0, [::]), wants keys
 *   tcp://HOST:PORT,KEY   connecting: the worker there must hold the public key KEY, a name or a
 *                    file of keys.h. Only so may a connection leave this machine
 *
 * Errors: TD_E_USAGE for an endpoint or a directory that is not allowed, with a hint;
 * TD_E_UNAVAILABLE for a path another worker is bound to, or a name that is not known; TD_E_IO. Any
 * thread. */
#ifndef TD_TRANSPORT_ENDPOINT_H
#define TD_TRANSPORT_ENDPOINT_H

#include "base/err.h"

#include <stdbool.h>

#define TD_ENDPOINT_MAX 320 /* bytes with the terminating 0 */

typedef enum { TD_ENDPOINT_INPROC, TD_ENDPOINT_IPC, TD_ENDPOINT_TCP } td_endpoint_kind;

typedef struct {
    td_endpoint_kind kind;
    bool is_ipv6;
    bool is_name;                  /* the host is one, to be looked up */
    bool is_open;                  /* off loopback: never without keys */
    char address[TD_ENDPOINT_MAX]; /* as the transport wants it; localhost is 127.0.0.1 */
    char local[TD_ENDPOINT_MAX];   /* of a bound tcp: how this machine itself reaches it */
    const char *path;              /* of ipc, points into the text after "ipc://"; else NULL */
    const char *key;               /* of tcp, what stands behind ','; NULL: nothing does */
} td_endpoint;

/* Pure: reads the text only. `out->path` and `out->key` borrow `text`. */
bool td_endpoint_parse(const char *text, bool is_bound, td_endpoint *out, td_err *err);

/* What must hold before an endpoint is bound or connected; nothing to do for inproc.
 * Binding also checks that what lies at the path is a socket nobody listens on, and that a port is
 * free; connecting looks a name up and decides for IPv4 where it has both. */
bool td_endpoint_prepare(td_endpoint *endpoint, bool is_bound, td_err *err);

#endif
