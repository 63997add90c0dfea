/* Who tries to come in over tcp and must not: without keys, with the wrong ones, by another
 * mechanism; a worker that is not the one it claims to be; and a check of keys that does not work,
 * which must be noticed. After each a clean client is served. */
#include "transport/link.h"

#include "base/check.h"
#include "tests/auth_common.h"

#include <errno.h>

static uint8_t rx[TD_WIRE_MESSAGE_MAX];

typedef struct {
    key_ring ring;
    td_transport *t;
    td_link *worker;
} bench;

static td_transport *transport_of(const char *key)
{
    td_transport *t = td_transport_create(NULL);
    assert_non_null(t);
    td_transport_set_key(t, key);
    return t;
}

static void bench_open(bench *b)
{
    key_ring_make(&b->ring);
    b->t = transport_of("worker");
    b->worker = must_open(b->t, b->ring.bound, TD_LINK_BIND);
}

static void bench_close(bench *b)
{
    td_link_close(&b->worker, false);
    td_transport_destroy(&b->t);
    key_ring_remove(&b->ring);
}

static void assert_nothing_came(bench *b, const char *what)
{
    size_t n;
    td_route route;
    assert_true(td_link_recv(b->worker, rx, &n, &route, NULL));
    if (n)
        fail_msg("%s: a message of %zu bytes came through", what, n);
}

/* There and back. */
static void must_serve(bench *b, td_link *client)
{
    td_route route, from;
    must_send(client, 0, "hello", 5);
    assert_int_equal(must_recv(b->worker, rx, &route), 5);
    assert_true(td_link_send(b->worker, route, "welcome", 7, NULL));
    assert_int_equal(must_recv(client, rx, &from), 7);
    assert_memory_equal(rx, "welcome", 7);
}

static void must_serve_a_clean_client(bench *b)
{
    td_transport *t = transport_of("client");
    td_link *client = must_open(t, b->ring.named, TD_LINK_CONNECT);
    must_serve(b, client);
    td_link_close(&client, false);
    td_transport_destroy(&t);
}

/* --- Strangers ------------------------------------------------------------------------------ */

/* The event that ends a raw socket's first try. */
static int end_of_try(void *watch)
{
    for (int i = 0; i < 2 * PATIENCE_US / 1000; i++) {
        uint8_t part[256];
        uint16_t event;
        if (zmq_recv(watch, part, sizeof part, ZMQ_DONTWAIT) < 2) {
            usleep(1000);
            continue;
        }
        memcpy(&event, part, sizeof event);
        zmq_recv(watch, part, sizeof part, 0);
        return event;
    }
    return 0;
}

typedef enum { BY_NULL, BY_PLAIN, BY_CURVE } mechanism;

/* Connects by a mechanism, shouts, and returns how it ended. */
static int shout(const bench *b, mechanism by, const char *own, const char *server_key)
{
    void *context = zmq_ctx_new(), *s = zmq_socket(context, ZMQ_DEALER);
    void *watch = zmq_socket(context, ZMQ_PAIR);
    td_key_pair pair = {0};
    int none_ms = 0;
    zmq_setsockopt(s, ZMQ_LINGER, &none_ms, sizeof none_ms);
    if (by == BY_PLAIN) {
        zmq_setsockopt(s, ZMQ_PLAIN_USERNAME, "client", 6);
        zmq_setsockopt(s, ZMQ_PLAIN_PASSWORD, "client", 6);
    } else if (by == BY_CURVE) {
        if (own)
            assert_true(td_keys_read_own(own, &pair, NULL));
        else
            assert_int_equal(zmq_curve_keypair(pair.public_key, pair.secret), 0);
        zmq_setsockopt(s, ZMQ_CURVE_SERVERKEY, server_key, TD_KEY_TEXT);
        zmq_setsockopt(s, ZMQ_CURVE_PUBLICKEY, pair.public_key, TD_KEY_TEXT);
        zmq_setsockopt(s, ZMQ_CURVE_SECRETKEY, pair.secret, TD_KEY_TEXT);
    }
    assert_int_equal(zmq_socket_monitor(
                         s, "inproc://watch",
                         ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL |
                             ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH),
                     0);
    assert_int_equal(zmq_connect(watch, "inproc://watch"), 0);
    assert_int_equal(zmq_connect(s, b->ring.bound), 0);
    zmq_send(s, "let me in", 9, ZMQ_DONTWAIT);
    int event = end_of_try(watch);
    zmq_send(s, "let me in", 9, ZMQ_DONTWAIT);
    zmq_socket_monitor(s, NULL, 0);
    zmq_close(s);
    zmq_close(watch);
    zmq_ctx_term(context);
    return event;
}

static void test_strangers_are_refused(void **state)
{
    (void)state;
    bench b;
    bench_open(&b);
    must_serve_a_clean_client(&b);
    const struct {
        const char *what;
        mechanism by;
        const char *own, *server_key;
        int event_or_any;
    } rows[] = {
        {"no security", BY_NULL, NULL, NULL, 0},
        {"a password", BY_PLAIN, NULL, NULL, 0},
        {"a key made up", BY_CURVE, NULL, b.ring.worker, ZMQ_EVENT_HANDSHAKE_FAILED_AUTH},
        {"a pair nobody allowed", BY_CURVE, "stranger", b.ring.worker,
         ZMQ_EVENT_HANDSHAKE_FAILED_AUTH},
        {"the worker's own pair", BY_CURVE, "worker", b.ring.worker,
         ZMQ_EVENT_HANDSHAKE_FAILED_AUTH},
        {"an allowed pair, another worker's key", BY_CURVE, "client", b.ring.stranger, 0},
    };
    for (size_t i = 0; i < TD_COUNT(rows); i++) {
        int event = shout(&b, rows[i].by, rows[i].own, rows[i].server_key);
        if (event == 0 || event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED ||
            (rows[i].event_or_any && event != rows[i].event_or_any))
            fail_msg("%s: event %d", rows[i].what, event);
        assert_nothing_came(&b, rows[i].what);
        must_serve_a_clean_client(&b);
    }
    assert_int_equal(shout(&b, BY_CURVE, "client", b.ring.worker), ZMQ_EVENT_HANDSHAKE_SUCCEEDED);
    bench_close(&b);
}

/* The list is read at each handshake. */
static void test_a_key_is_let_in_once_it_is_allowed_and_no_more_when_removed(void **state)
{
    (void)state;
    bench b;
    char path[160];
    bench_open(&b);
    td_transport *t = transport_of("stranger");
    td_link *late = must_open(t, b.ring.named, TD_LINK_CONNECT);
    for (int i = 0; i < 100; i++) {
        assert_false(td_link_try_send(late, 0, "hello", 5, NULL));
        td_link_was_cut(late); /* as a peer does at each step */
        usleep(2000);
    }
    must_allow("stranger", b.ring.stranger);
    for (int i = 0; i < PATIENCE_US / 1000 && !td_link_try_send(late, 0, "late", 4, NULL); i++) {
        td_link_was_cut(late);
        usleep(1000);
    }
    td_route route;
    assert_int_equal(must_recv(b.worker, rx, &route), 4);
    td_link_close(&late, false);
    td_transport_destroy(&t);

    key_path(&b.ring, "stranger.pub", path);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(shout(&b, BY_CURVE, "stranger", b.ring.worker),
                     ZMQ_EVENT_HANDSHAKE_FAILED_AUTH);
    assert_nothing_came(&b, "a key that was removed");
    must_serve_a_clean_client(&b);
    bench_close(&b);
}

/* --- Crowds --------------------------------------------------------------------------------- */

#define CROWD 200

static void wait_in_line(const bench *b, int fds[CROWD], int kind)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)b->ring.port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    static const uint8_t greeting[] = {0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 3, 0, 'C', 'U'};
    for (int i = 0; i < CROWD; i++) {
        fds[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_true(fds[i] >= 0);
        assert_int_equal(connect(fds[i], (struct sockaddr *)&a, sizeof a), 0);
        ssize_t n =
            kind == 0 ? 0
                      : send(fds[i], kind == 1 ? greeting : rx, kind == 1 ? 14 : 300, MSG_NOSIGNAL);
        (void)n;                    /* it may have hung up on us already */
        td_link_was_cut(b->worker); /* as a peer does at each step */
    }
}

static int count_open(const int fds[CROWD])
{
    int n = 0;
    for (int i = 0; i < CROWD; i++) {
        char greeting[64];
        ssize_t got;
        while ((got = recv(fds[i], greeting, sizeof greeting, MSG_DONTWAIT)) > 0)
            ;
        n += got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
    }
    return n;
}

/* Connections that say nothing, the beginning of a greeting, or rubbish: so many may stand there
 * and no more, and a client comes in between them. */
static void test_a_crowd_is_thinned_and_a_client_comes_in(void **state)
{
    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        bench b;
        int fds[CROWD], n_open = CROWD;
        bench_open(&b);
        wait_in_line(&b, fds, kind);
        for (int i = 0; i < PATIENCE_US / 1000 && n_open > 64; i++) {
            td_link_was_cut(b.worker);
            n_open = count_open(fds);
            usleep(1000);
        }
        assert_in_range(n_open, 0, 64);
        must_serve_a_clean_client(&b);
        printf("%d connections: %d stand there, %llu were hung up on, a client was served\n", CROWD,
               n_open, (unsigned long long)td_link_get_stats(b.worker).n_turned_away);
        for (int i = 0; i < CROWD; i++)
            close(fds[i]);
        bench_close(&b);
    }
}

/* --- Impostors ------------------------------------------------------------------------------ */

/* Somebody sits at the worker's address and lets everybody in: nothing is told to him. */
static void test_a_client_tells_an_impostor_nothing(void **state)
{
    (void)state;
    key_ring r;
    td_key_pair pair;
    key_ring_make(&r);
    for (int by = BY_NULL; by <= BY_CURVE; by += BY_CURVE) {
        void *context = zmq_ctx_new(), *s = zmq_socket(context, ZMQ_ROUTER);
        int on = 1, none_ms = 0;
        zmq_setsockopt(s, ZMQ_LINGER, &none_ms, sizeof none_ms);
        if (by == BY_CURVE) {
            assert_true(td_keys_read_own("stranger", &pair, NULL));
            zmq_setsockopt(s, ZMQ_CURVE_SERVER, &on, sizeof on);
            zmq_setsockopt(s, ZMQ_CURVE_SECRETKEY, pair.secret, TD_KEY_TEXT);
        }
        assert_int_equal(zmq_bind(s, r.bound), 0);
        td_transport *t = transport_of("client");
        td_link *client = must_open(t, r.named, TD_LINK_CONNECT);
        for (int i = 0; i < 200; i++) {
            assert_false(td_link_try_send(client, 0, "secret", 6, NULL));
            td_link_was_cut(client);
            usleep(2000);
        }
        assert_true(zmq_recv(s, rx, sizeof rx, ZMQ_DONTWAIT) < 0);
        td_link_close(&client, false);
        td_transport_destroy(&t);
        zmq_close(s);
        zmq_ctx_term(context);
    }
    key_ring_remove(&r);
}

/* --- A check that does not work ------------------------------------------------------------- */

static void test_a_worker_that_lets_everybody_in_does_not_start(void **state)
{
    (void)state;
    static const char *const kinds[] = {"absent", "open"};
    for (size_t i = 0; i < TD_COUNT(kinds); i++) {
        key_ring r;
        td_err err = {0};
        key_ring_make(&r);
        setenv("TD_ZAP", kinds[i], 1);
        td_transport *t = transport_of("worker");
        assert_null(td_link_open(t, r.bound, TD_LINK_BIND, &err));
        assert_int_equal(err.code, TD_E_UNAVAILABLE);
        assert_non_null(strstr(err.message, "was let in"));
        td_transport_destroy(&t);
        unsetenv("TD_ZAP");
        t = transport_of("worker");
        td_link *l = must_open(t, r.bound, TD_LINK_BIND);
        td_link_close(&l, false);
        td_transport_destroy(&t);
        key_ring_remove(&r);
    }
}

/* Off loopback nothing is bound or connected without keys, whatever is wrong with them. */
static void test_off_loopback_there_is_nothing_without_keys(void **state)
{
    (void)state;
    key_ring r;
    char path[160], any[64], six[64], named[96];
    key_ring_make(&r);
    snprintf(any, sizeof any, "tcp://*:%d", r.port);
    snprintf(six, sizeof six, "tcp://[::]:%d", r.port);
    snprintf(named, sizeof named, "tcp://192.0.2.1:%d,nobody", r.port);
    td_transport *t = transport_of("worker");
    td_link *l = must_open(t, any, TD_LINK_BIND);
    td_link_close(&l, false);
    td_transport_destroy(&t);

    key_path(&r, "worker.key", path);
    for (int i = 0; i < 3; i++) {
        td_err err = {0};
        t = transport_of(i == 1 ? NULL : "worker"); /* NULL: three to choose from */
        if (i == 2)
            assert_int_equal(chmod(path, 0644), 0);
        else if (i == 0)
            td_transport_set_key(t, "nobody");
        assert_null(td_link_open(t, any, TD_LINK_BIND, &err));
        assert_true(err.code == TD_E_USAGE || err.code == TD_E_DATA);
        assert_non_null(strstr(err.message, "keys"));
        assert_null(td_link_open(t, six, TD_LINK_BIND, NULL));
        assert_null(td_link_open(t, named, TD_LINK_CONNECT, NULL));
        assert_false(td_link_check(any, TD_LINK_BIND, i == 2 ? "worker" : "nobody", NULL));
        td_transport_destroy(&t);
    }
    key_ring_remove(&r);
}

int main(void)
{
    if (!zmq_has("curve")) {
        puts("this libzmq is built without CURVE");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_strangers_are_refused),
        cmocka_unit_test(test_a_key_is_let_in_once_it_is_allowed_and_no_more_when_removed),
        cmocka_unit_test(test_a_crowd_is_thinned_and_a_client_comes_in),
        cmocka_unit_test(test_a_client_tells_an_impostor_nothing),
        cmocka_unit_test(test_a_worker_that_lets_everybody_in_does_not_start),
        cmocka_unit_test(test_off_loopback_there_is_nothing_without_keys),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
