/* The handler speaks ZAP (ZeroMQ RFC 27): a request of seven frames, an answer of six. Whatever is
 * not exactly such a request for CURVE in our domain is refused, and so is every key while the
 * folder of keys cannot be read: no path through here ends in "yes" but the one that found the key.
 *
 * A stranger may try as often as the network lets him. So refusals are logged once a second at
 * most, and a request costs a look into a folder, nothing that lasts. */
#include "transport/auth.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/text.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#define ZAP_ENDPOINT     "inproc://zeromq.zap.01"
#define DOMAIN           "tandem" /* an empty one would turn the handler off */
#define N_REQUEST_FRAMES 7
#define FRAME_BYTES_MAX  256
#define KEY_BYTES        32
#define PROOF_MS         10000
#define REFUSALS_US      1000000u /* between two lines about them */

/* Sabotage, for the tests of the proof: the handler is missing, or lets everybody in. */
typedef enum { SABOTAGE_NONE, SABOTAGE_ABSENT, SABOTAGE_OPEN } sabotage;

struct td_auth {
    void *context, *socket;
    pthread_t thread;
    bool is_thread;
    sabotage sabotage;
    pthread_mutex_t lock;
    char proof[TD_KEY_TEXT]; /* the key of a proof under way: not worth a line; "": none */
    uint64_t told_us;        /* the handler's: when a refusal was last logged, */
    uint32_t n_untold;       /* and how many were not since */
};

typedef struct {
    char bytes[FRAME_BYTES_MAX];
    size_t n;
} frame;

static bool is_text(const frame *f, const char *text)
{
    return f->n == strlen(text) && !memcmp(f->bytes, text, f->n);
}

/* Takes a request off the socket. False when the context ends. *n counts all frames, also those
 * beyond what is kept; one that is too long comes out empty. */
static bool recv_request(td_auth *a, frame frames[N_REQUEST_FRAMES], size_t *n)
{
    int more = 1;
    size_t n_more = sizeof more;
    for (*n = 0; more; ++*n) {
        frame f;
        int got;
        while ((got = zmq_recv(a->socket, f.bytes, sizeof f.bytes, 0)) < 0) {
            if (errno == ETERM || errno == ENOTSOCK)
                return false;
            if (errno == EFSM) /* an answer that could not be sent whole is owed still */
                zmq_send(a->socket, "", 0, 0);
        }
        f.n = (size_t)got <= sizeof f.bytes ? (size_t)got : 0;
        if (*n < N_REQUEST_FRAMES)
            frames[*n] = f;
        if (zmq_getsockopt(a->socket, ZMQ_RCVMORE, &more, &n_more) != 0)
            return false;
    }
    return true;
}

static void send_answer(td_auth *a, const frame *id, bool is_allowed, const char *name)
{
    zmq_send(a->socket, "1.0", 3, ZMQ_SNDMORE);
    zmq_send(a->socket, id->bytes, id->n, ZMQ_SNDMORE);
    zmq_send(a->socket, is_allowed ? "200" : "400", 3, ZMQ_SNDMORE);
    zmq_send(a->socket, is_allowed ? "OK" : "No", 2, ZMQ_SNDMORE);
    zmq_send(a->socket, name, strlen(name), ZMQ_SNDMORE); /* the user's name */
    zmq_send(a->socket, "", 0, 0);
}

static void tell_refusal(td_auth *a, const char *key, const frame *address)
{
    td_clock clock = td_clock_real();
    uint64_t now_us = td_clock_now_us(&clock);
    pthread_mutex_lock(&a->lock);
    bool is_proof = !strcmp(key, a->proof);
    pthread_mutex_unlock(&a->lock);
    if (is_proof)
        return;
    if (a->told_us && now_us - a->told_us < REFUSALS_US) {
        a->n_untold++;
        return;
    }
    if (a->n_untold)
        td_log_warn("%u more peers were refused", (unsigned)a->n_untold);
    td_log_warn("a peer at %s was refused: its key is not allowed here; if it is to be trusted, "
                "tandem keys allow NAME '%s'",
                td_text_quote(address->bytes, address->n).text, key);
    a->told_us = now_us;
    a->n_untold = 0;
}

static void *handler_main(void *arg)
{
    td_auth *a = arg;
    frame f[N_REQUEST_FRAMES]; /* version, id, domain, address, identity, mechanism, key */
    size_t n;
    while (recv_request(a, f, &n)) {
        char key[TD_KEY_TEXT], name[TD_KEY_NAME_MAX + 1] = "";
        bool is_request = n == N_REQUEST_FRAMES && is_text(&f[0], "1.0") &&
                          is_text(&f[2], DOMAIN) && is_text(&f[5], "CURVE") &&
                          f[6].n == KEY_BYTES &&
                          zmq_z85_encode(key, (const uint8_t *)f[6].bytes, KEY_BYTES);
        bool is_allowed = is_request && td_keys_is_allowed(key, name);
        if (is_allowed)
            td_log_info("%s is let in, from %s", name, td_text_quote(f[3].bytes, f[3].n).text);
        else if (is_request)
            tell_refusal(a, key, &f[3]);
        if (n >= 2)
            send_answer(a, &f[1], is_allowed || a->sabotage == SABOTAGE_OPEN, name);
        else
            send_answer(a, &(frame){.n = 0}, false, "");
    }
    return NULL;
}

static sabotage read_sabotage(void)
{
    const char *text = getenv("TD_ZAP");
    if (!text || !*text)
        return SABOTAGE_NONE;
    return !strcmp(text, "open") ? SABOTAGE_OPEN : SABOTAGE_ABSENT;
}

td_auth *td_auth_start(void *context, td_err *err)
{
    if (!zmq_has("curve")) {
        td_err_set(err, TD_E_UNAVAILABLE,
                   "this libzmq is built without CURVE: no keys, and no way "
                   "off this machine");
        return NULL;
    }
    td_auth *a = td_alloc(1, sizeof *a, err);
    if (!a)
        return NULL;
    a->context = context;
    a->sabotage = read_sabotage();
    pthread_mutex_init(&a->lock, NULL);
    if (a->sabotage == SABOTAGE_ABSENT)
        return a;
    int none_ms = 0;
    a->socket = zmq_socket(context, ZMQ_REP);
    if (!a->socket || zmq_setsockopt(a->socket, ZMQ_LINGER, &none_ms, sizeof none_ms) != 0 ||
        zmq_bind(a->socket, ZAP_ENDPOINT) != 0)
        td_err_set(err, TD_E_IO, "no handler of keys: %s", zmq_strerror(errno));
    else if (pthread_create(&a->thread, NULL, handler_main, a) != 0)
        td_err_set(err, TD_E_NOMEM, "no thread for the handler of keys");
    else
        a->is_thread = true;
    if (!a->is_thread)
        td_auth_stop(&a);
    return a;
}

void td_auth_stop(td_auth **auth)
{
    td_auth *a = *auth;
    if (!a)
        return;
    if (a->is_thread) {
        zmq_ctx_shutdown(a->context); /* wakes the handler */
        pthread_join(a->thread, NULL);
    }
    if (a->socket)
        zmq_close(a->socket);
    pthread_mutex_destroy(&a->lock);
    td_free(a);
    *auth = NULL;
}

static bool set_option(void *socket, int option, const void *value, size_t n_bytes, td_err *err)
{
    return zmq_setsockopt(socket, option, value, n_bytes) == 0 ||
           td_err_set(err, TD_E_UNAVAILABLE, "CURVE cannot be set up (option %d): %s%s", option,
                      zmq_strerror(errno),
                      zmq_has("curve") ? "" : " (this libzmq is built without it)");
}

bool td_auth_secure_bound(void *socket, const td_key_pair *own, td_err *err)
{
    int is_server = 1;
    return set_option(socket, ZMQ_ZAP_DOMAIN, DOMAIN, strlen(DOMAIN), err) &&
           set_option(socket, ZMQ_CURVE_SERVER, &is_server, sizeof is_server, err) &&
           set_option(socket, ZMQ_CURVE_SECRETKEY, own->secret, TD_KEY_TEXT, err);
}

bool td_auth_secure_connecting(void *socket, const td_key_pair *own, const char *server_key,
                               td_err *err)
{
    return set_option(socket, ZMQ_CURVE_SERVERKEY, server_key, TD_KEY_TEXT, err) &&
           set_option(socket, ZMQ_CURVE_PUBLICKEY, own->public_key, TD_KEY_TEXT, err) &&
           set_option(socket, ZMQ_CURVE_SECRETKEY, own->secret, TD_KEY_TEXT, err);
}

/* --- The proof ------------------------------------------------------------------------------ */

/* Waits for the end of the handshake; the event, or 0 when there was none in time. */
static int wait_for_end(void *watch)
{
    td_clock clock = td_clock_real();
    uint64_t end_us = td_clock_now_us(&clock) + PROOF_MS * 1000u;
    for (uint64_t now_us; (now_us = td_clock_now_us(&clock)) < end_us;) {
        zmq_pollitem_t item = {.socket = watch, .events = ZMQ_POLLIN};
        char bytes[FRAME_BYTES_MAX];
        if (zmq_poll(&item, 1, (long)((end_us - now_us) / 1000 + 1)) <= 0)
            continue;
        int n = zmq_recv(watch, bytes, sizeof bytes, ZMQ_DONTWAIT);
        if (n < 2)
            continue;
        uint16_t event;
        memcpy(&event, bytes, sizeof event);
        zmq_recv(watch, bytes, sizeof bytes, ZMQ_DONTWAIT); /* the address */
        return event;
    }
    return 0;
}

static int try_stranger(void *context, const char *address, const td_key_pair *stranger,
                        const char *public_key, td_err *err)
{
    static const char watched[] = "inproc://proof";
    void *s = zmq_socket(context, ZMQ_DEALER), *watch = zmq_socket(context, ZMQ_PAIR);
    int none_ms = 0, is_ipv6 = strchr(address, '[') != NULL, event = 0;
    if (s && watch && set_option(s, ZMQ_LINGER, &none_ms, sizeof none_ms, err) &&
        set_option(watch, ZMQ_LINGER, &none_ms, sizeof none_ms, err) &&
        set_option(s, ZMQ_IPV6, &is_ipv6, sizeof is_ipv6, err) &&
        td_auth_secure_connecting(s, stranger, public_key, err) &&
        zmq_socket_monitor(s, watched,
                           ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH |
                               ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL) == 0 &&
        zmq_connect(watch, watched) == 0 && zmq_connect(s, address) == 0)
        event = wait_for_end(watch);
    if (s) {
        zmq_socket_monitor(s, NULL, 0);
        zmq_close(s);
    }
    if (watch)
        zmq_close(watch);
    return event;
}

bool td_auth_prove(td_auth *a, const char *address, const char *public_key, td_err *err)
{
    td_key_pair stranger;
    void *context = zmq_ctx_new(); /* its own, so that it comes by the network as others do */
    if (!context || zmq_curve_keypair(stranger.public_key, stranger.secret) != 0) {
        if (context)
            zmq_ctx_term(context);
        return td_err_set(err, TD_E_NOMEM, "endpoint %s: no stranger can be made to try it",
                          address);
    }
    pthread_mutex_lock(&a->lock);
    memcpy(a->proof, stranger.public_key, sizeof a->proof);
    pthread_mutex_unlock(&a->lock);
    int event = try_stranger(context, address, &stranger, public_key, err);
    while (zmq_ctx_term(context) != 0 && errno == EINTR)
        ;
    pthread_mutex_lock(&a->lock);
    a->proof[0] = 0;
    pthread_mutex_unlock(&a->lock);
    if (event == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH)
        return true;
    if (event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED)
        return td_err_set(err, TD_E_UNAVAILABLE,
                          "endpoint %s: a key that nobody allowed was let in: the check of keys "
                          "does not work, and nothing is served",
                          address);
    return td_err_set(err, TD_E_UNAVAILABLE,
                      "endpoint %s: it could not be shown that strangers are refused (%s), and "
                      "nothing is served; is the loopback interface up?",
                      address, event ? "the handshake broke" : "no answer");
}
