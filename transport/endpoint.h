/* Endpoints: which ones are allowed, and the file system's part of an ipc one.
 *
 *   inproc://NAME    a peer in this process
 *   ipc://PATH       a peer of the same user: PATH's directory belongs to us and nobody else may
 *                    write to it, so the file system authenticates. Made (0700) if missing
 *   tcp://HOST:PORT  loopback only (127.0.0.0/8, [::1], localhost): peers are not authenticated,
 *                    so what leaves the machine is refused, names and wildcards too
 *
 * Errors: TD_E_USAGE for an endpoint or a directory that is not allowed, with a hint;
 * TD_E_UNAVAILABLE for a path another worker is bound to; TD_E_IO. Any thread. */
#ifndef TD_TRANSPORT_ENDPOINT_H
#define TD_TRANSPORT_ENDPOINT_H

#include "base/err.h"

#include <stdbool.h>

#define TD_ENDPOINT_MAX 128 /* bytes with the terminating 0 */

typedef enum { TD_ENDPOINT_INPROC, TD_ENDPOINT_IPC, TD_ENDPOINT_TCP } td_endpoint_kind;

typedef struct {
    td_endpoint_kind kind;
    bool is_ipv6;
    char address[TD_ENDPOINT_MAX]; /* as the transport wants it; localhost is 127.0.0.1 */
    const char *path;              /* of ipc, points into the text after "ipc://"; else NULL */
} td_endpoint;

/* Pure: reads the text only. `out->path` borrows `text`. */
bool td_endpoint_parse(const char *text, td_endpoint *out, td_err *err);

/* What must hold before an endpoint is bound or connected; nothing to do for inproc.
 * Binding also checks that what lies at the path is a socket nobody listens on, and that a port is
 * free. */
bool td_endpoint_prepare(const td_endpoint *endpoint, bool is_bound, td_err *err);

/* Both, of an endpoint that another process shall reach: inproc is none. For a program to ask
 * before it spends its time on a model. */
bool td_endpoint_check(const char *text, bool is_bound, td_err *err);

#endif
