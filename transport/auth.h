/* Who is let in over tcp: CURVE (encryption, and both ends' long-term keys) with an allow-list.
 *
 * ZeroMQ asks a handler, at an address of its own within the process, whether a client's key may
 * come in. It is fail-open where that handler is missing: then every key does. So the handler is a
 * thread that is there before the first socket it answers for and goes after the last, and nothing
 * is served before the bound endpoint has refused a key made up a moment ago (td_auth_prove).
 *
 * The list is the folder of keys (keys.h), read anew for each handshake. Who was let in or refused
 * is logged, a refused key with the command that lets it in.
 *
 * Errors: TD_E_UNAVAILABLE (a libzmq without CURVE; an endpoint that lets everybody in, or cannot
 * be shown not to), TD_E_IO, TD_E_NOMEM. Any thread. Used by transport/link*.c alone. */
#ifndef TD_TRANSPORT_AUTH_H
#define TD_TRANSPORT_AUTH_H

#include "base/err.h"
#include "transport/keys.h"

typedef struct td_auth td_auth;

/* context: of ZeroMQ, borrowed; one td_auth for each. Stop: after the last socket is closed; the
 * context is shut down by it. */
td_auth *td_auth_start(void *context, td_err *err);
void td_auth_stop(td_auth **auth);

/* Before a socket is bound: only keys of the list come in. Before it is connected: the other end
 * must hold server_key, and we show `own`. */
bool td_auth_secure_bound(void *socket, const td_key_pair *own, td_err *err);
bool td_auth_secure_connecting(void *socket, const td_key_pair *own, const char *server_key,
                               td_err *err);

/* Tries the bound endpoint with a key that nobody has allowed. False unless it was refused, by the
 * handler and not by an accident. address: as a client here would name it. */
bool td_auth_prove(td_auth *auth, const char *address, const char *public_key, td_err *err);

#endif
