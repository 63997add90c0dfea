/* Links: which endpoints are allowed, what arrives over ZeroMQ, and the in-memory twin. */
#include "transport/link.h"

#include "base/check.h"
#include "base/mem.h"
#include "base/rng.h"
#include "tests/link_common.h"
#include "transport/endpoint.h"

#include <pthread.h>
#include <sys/stat.h>

static uint8_t rx[TD_WIRE_MESSAGE_MAX], tx[TD_WIRE_MESSAGE_MAX];

static void test_endpoint_policy(void **state)
{
    (void)state;
    static const struct {
        const char *text, *address_or_null;
    } rows[] = {
        {"inproc://draft", "inproc://draft"},
        {"ipc:///run/x/draft.sock", "ipc:///run/x/draft.sock"},
        {"ipc://run/draft.sock", "ipc://run/draft.sock"},
        {"tcp://127.0.0.1:5555", "tcp://127.0.0.1:5555"},
        {"tcp://127.255.0.9:1", "tcp://127.255.0.9:1"},
        {"tcp://localhost:65535", "tcp://127.0.0.1:65535"},
        {"tcp://[::1]:5555", "tcp://[::1]:5555"},
        {"", NULL},
        {"inproc://", NULL},
        {"ipc://", NULL},
        {"ipc://*", NULL},
        {"ipc://@abstract", NULL},
        {"ipc:///run/x/", NULL},
        {"ipc:///run/a b", NULL},
        {"tcp://*:5555", NULL},
        {"tcp://0.0.0.0:5555", NULL},
        {"tcp://192.168.0.2:5555", NULL},
        {"tcp://128.0.0.1:5555", NULL},
        {"tcp://127.0.0.1", NULL},
        {"tcp://127.0.0.1:", NULL},
        {"tcp://127.0.0.1:0", NULL},
        {"tcp://127.0.0.1:*", NULL},
        {"tcp://127.0.0.1:65536", NULL},
        {"tcp://127.0.0.1:5555x", NULL},
        {"tcp://127.0.0.1:5555;10.0.0.1:1", NULL},
        {"tcp://127.0.0.1:1;tcp://10.0.0.1:1", NULL},
        {"tcp://127.0.0.256:1", NULL},
        {"tcp://127.1:1", NULL},
        {"tcp://127.0.0.1.example.org:1", NULL},
        {"tcp://localhost.example.org:1", NULL},
        {"tcp://example.org:5555", NULL},
        {"tcp://lo:5555", NULL},
        {"tcp://[::]:5555", NULL},
        {"tcp://[::ffff:1.2.3.4]:5555", NULL},
        {"TCP://127.0.0.1:5555", NULL},
        {"udp://127.0.0.1:5555", NULL},
        {"pgm://eth0;239.1.1.1:5555", NULL},
        {"127.0.0.1:5555", NULL},
        {"tcp://127.0.0.1:5555\n", NULL},
    };
    for (size_t i = 0; i < TD_COUNT(rows); i++) {
        td_endpoint e;
        td_err err = {0};
        bool ok = td_endpoint_parse(rows[i].text, false, &e, &err);
        if (ok != (rows[i].address_or_null != NULL))
            fail_msg("\"%s\": %s", rows[i].text, ok ? "was allowed" : err.message);
        if (ok)
            assert_string_equal(e.address, rows[i].address_or_null);
        else
            assert_int_equal(err.code, TD_E_USAGE);
    }
    char text[300] = "ipc:///";
    memset(text + 7, 'a', 200);
    td_endpoint e;
    assert_false(td_endpoint_parse(text, false, &e, NULL));
    memcpy(text, "inproc:", 7);
    text[7] = text[8] = '/';
    assert_false(td_endpoint_parse(text, false, &e, NULL));
}

/* Off loopback: with keys only, which a bound endpoint is marked to want. */
static void test_endpoint_policy_off_loopback(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool is_bound;
        const char *address_or_null, *local_or_key;
    } rows[] = {
        {"tcp://192.168.0.2:5555,strix2", false, "tcp://192.168.0.2:5555", "strix2"},
        {"tcp://strix2:5555,./k.pub", false, "tcp://strix2:5555", "./k.pub"},
        {"tcp://a-1.example.org:5555,k", false, "tcp://a-1.example.org:5555", "k"},
        {"tcp://[2001:db8::1]:5555,k", false, "tcp://[2001:db8::1]:5555", "k"},
        {"tcp://127.0.0.1:5555,k", false, "tcp://127.0.0.1:5555", "k"},
        {"tcp://localhost:5555,k", false, "tcp://127.0.0.1:5555", "k"},
        {"tcp://*:5555", true, "tcp://0.0.0.0:5555", "tcp://127.0.0.1:5555"},
        {"tcp://0.0.0.0:5555", true, "tcp://0.0.0.0:5555", "tcp://127.0.0.1:5555"},
        {"tcp://[::]:5555", true, "tcp://[::]:5555", "tcp://[::1]:5555"},
        {"tcp://192.168.0.2:5555", true, "tcp://192.168.0.2:5555", "tcp://192.168.0.2:5555"},
        {"tcp://[2001:db8::1]:5555", true, "tcp://[2001:db8::1]:5555", "tcp://[2001:db8::1]:5555"},
        {"tcp://192.168.0.2:5555,", false, NULL, NULL},
        {"tcp://192.168.0.2:5555", false, NULL, NULL},
        {"tcp://192.168.0.2:5555,k", true, NULL, NULL},
        {"tcp://192.168.0.2,k:5555", false, NULL, NULL},
        {"tcp://192.168.0.2:5555 ,k", false, NULL, NULL},
        {"tcp://*:5555,k", false, NULL, NULL},
        {"tcp://0.0.0.0:5555,k", false, NULL, NULL},
        {"tcp://[::]:5555,k", false, NULL, NULL},
        {"tcp://[::ffff:10.0.0.1]:5555,k", false, NULL, NULL},
        {"tcp://[fe80::1%eth0]:5555,k", false, NULL, NULL},
        {"tcp://[2001:db8::1:5555,k", false, NULL, NULL},
        {"tcp://0.0.0.1:5555", true, NULL, NULL},
        {"tcp://224.0.0.1:5555,k", false, NULL, NULL},
        {"tcp://255.255.255.255:5555", true, NULL, NULL},
        {"tcp://10.1:5555,k", false, NULL, NULL},
        {"tcp://0x7f.1:5555,k", false, NULL, NULL},
        {"tcp://eth0;10.0.0.1:5555,k", false, NULL, NULL},
        {"tcp://strix2:5555", true, NULL, NULL},
        {"tcp://eth0:5555", true, NULL, NULL},
        {"tcp://*:*", true, NULL, NULL},
        {"tcp://-a:5555,k", false, NULL, NULL},
        {"tcp://a_b:5555,k", false, NULL, NULL},
    };
    for (size_t i = 0; i < TD_COUNT(rows); i++) {
        td_endpoint e;
        td_err err = {0};
        bool ok = td_endpoint_parse(rows[i].text, rows[i].is_bound, &e, &err);
        if (ok != (rows[i].address_or_null != NULL))
            fail_msg("\"%s\": %s", rows[i].text, ok ? "was allowed" : err.message);
        if (!ok) {
            assert_int_equal(err.code, TD_E_USAGE);
            continue;
        }
        assert_string_equal(e.address, rows[i].address_or_null);
        assert_string_equal(rows[i].is_bound ? e.local : e.key, rows[i].local_or_key);
        assert_int_equal(e.is_open, strncmp(e.address, "tcp://127.0.0.1:", 16) != 0);
    }
    td_endpoint e;
    assert_true(td_endpoint_parse("tcp://no-such-host.invalid:5555,k", false, &e, NULL));
    assert_false(td_endpoint_prepare(&e, false, NULL)); /* RFC 2606: there is none */
}

static bool prepare(const char *text, bool is_bound, td_err *err)
{
    td_endpoint e;
    td_err_clear(err);
    return td_endpoint_parse(text, is_bound, &e, err) && td_endpoint_prepare(&e, is_bound, err);
}

static void test_ipc_directory_must_be_ours_alone(void **state)
{
    (void)state;
    socket_dir d;
    td_err err;
    socket_dir_make(&d);
    assert_true(prepare(d.endpoint, true, &err));
    assert_true(prepare(d.endpoint, false, &err));
    static const mode_t open_modes[] = {0720, 0702, 0777, 01777};
    for (size_t i = 0; i < TD_COUNT(open_modes); i++) {
        assert_int_equal(chmod(d.dir, open_modes[i]), 0);
        assert_false(prepare(d.endpoint, true, &err));
        assert_false(prepare(d.endpoint, false, &err));
        assert_int_equal(err.code, TD_E_USAGE);
        assert_non_null(strstr(err.message, "yours alone"));
        assert_null(strstr(err.message, "chmod")); /* others may use it as it is */
    }
    assert_int_equal(chmod(d.dir, 0755), 0);
    assert_true(prepare(d.endpoint, true, &err));

    char text[140], dir[120], link_path[120];
    struct stat st;
    snprintf(dir, sizeof dir, "%s/new", d.dir);
    snprintf(text, sizeof text, "ipc://%s/s", dir);
    assert_true(prepare(text, true, &err)); /* makes it */
    assert_int_equal(stat(dir, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0700);

    snprintf(link_path, sizeof link_path, "%s/link", d.dir);
    assert_int_equal(symlink(dir, link_path), 0);
    snprintf(text, sizeof text, "ipc://%s/s", link_path);
    assert_false(prepare(text, true, &err));
    snprintf(text, sizeof text, "ipc://%s/no/such/s", d.dir);
    assert_false(prepare(text, true, &err));
    assert_int_equal(err.code, TD_E_USAGE);
    assert_false(prepare("ipc://" P_tmpdir "/tandem-test-socket", true, &err)); /* everybody's */
    unlink(link_path);
    rmdir(dir);

    FILE *f = fopen(d.path, "w"); /* somebody's notes, which binding must not delete */
    assert_non_null(f);
    fclose(f);
    assert_false(prepare(d.endpoint, true, &err));
    assert_non_null(strstr(err.message, "no socket"));
    socket_dir_remove(&d);
}

/* Both ways, all sizes that matter, and who sent it. */
static void exchange(td_link *client, td_link *worker)
{
    static const size_t sizes[] = {1, 31, 32, 1024, TD_WIRE_MESSAGE_MAX};
    td_route route = 0, from;
    for (size_t i = 0; i < TD_COUNT(sizes); i++) {
        memset(tx, (int)i + 1, sizes[i]);
        must_send(client, 0, tx, sizes[i]);
        assert_int_equal(must_recv(worker, rx, &route), sizes[i]);
        assert_memory_equal(rx, tx, sizes[i]);
        tx[0] = 0x7f;
        must_send(worker, route, tx, sizes[i]);
        assert_int_equal(must_recv(client, rx, &from), sizes[i]);
        assert_memory_equal(rx, tx, sizes[i]);
        assert_true(from == 0);
    }
}

static void test_zmq_exchange(void **state)
{
    (void)state;
    socket_dir d;
    socket_dir_make(&d);
    const char *endpoints[] = {"inproc://exchange", d.endpoint};
    for (size_t i = 0; i < TD_COUNT(endpoints); i++)
        for (int is_worker_first = 0; is_worker_first < 2; is_worker_first++) {
            td_transport *t = td_transport_create(NULL);
            td_link *worker = NULL, *client;
            if (is_worker_first)
                worker = must_open(t, endpoints[i], TD_LINK_BIND);
            client = must_open(t, endpoints[i], TD_LINK_CONNECT);
            if (!is_worker_first) {
                if (endpoints[i] == d.endpoint) { /* nobody there: nothing is queued for nobody */
                    td_err err = {0};
                    assert_false(td_link_try_send(client, 0, "x", 1, &err));
                    assert_int_equal(err.code, TD_E_AGAIN);
                }
                worker = must_open(t, endpoints[i], TD_LINK_BIND);
            }
            exchange(client, worker);
            assert_true(td_link_reset(client, NULL));
            exchange(client, worker);
            td_link_close(&client, true);
            td_link_close(&worker, true);
            td_transport_destroy(&t);
        }
    socket_dir_remove(&d);
}

/* A worker in the same process, as inproc is for: one context, a thread for each end. */
static void *echo_until_empty(void *arg)
{
    static uint8_t bytes[TD_WIRE_MESSAGE_MAX];
    td_link *worker = must_open(arg, "inproc://thread", TD_LINK_BIND);
    td_route route;
    size_t n;
    do {
        n = must_recv(worker, bytes, &route);
        must_send(worker, route, bytes, n);
    } while (n > 1);
    td_link_close(&worker, true);
    return NULL;
}

static void test_worker_thread_echoes_and_nothing_is_allocated(void **state)
{
    (void)state;
    td_transport *t = td_transport_create(NULL);
    pthread_t thread;
    td_route route;
    assert_int_equal(pthread_create(&thread, NULL, echo_until_empty, t), 0);
    td_link *client = must_open(t, "inproc://thread", TD_LINK_CONNECT);
    must_send(client, 0, "hello", 5);
    assert_int_equal(must_recv(client, rx, &route), 5); /* both ends are open from here on */
    uint64_t n_allocated = td_alloc_count();
    for (size_t n = 2000; n >= 1; n--) {
        tx[0] = (uint8_t)n;
        must_send(client, 0, tx, n);
        assert_int_equal(must_recv(client, rx, &route), n);
        assert_int_equal(rx[0], (uint8_t)n);
    }
    assert_true(td_alloc_count() == n_allocated);
    pthread_join(thread, NULL);
    td_link_close(&client, true);
    td_transport_destroy(&t);
}

/* Each allocation fails in turn: an error and no leak. */
static void test_out_of_memory_at_every_allocation(void **state)
{
    (void)state;
    bool is_whole = false;
    for (uint64_t n = 1; !is_whole; n++) {
        assert_true(n < 50);
        td_err err = {0};
        td_clock clock = td_clock_simulated(0);
        td_link *l = NULL, *pair[2] = {NULL, NULL};
        td_alloc_fail_at(n);
        td_transport *t = td_transport_create(&err);
        if (t)
            l = td_link_open(t, "inproc://memory", TD_LINK_BIND, &err);
        is_whole =
            l && td_link_pair(&clock, NULL, pair, &err) && td_link_send(pair[0], 0, "x", 1, &err);
        td_alloc_fail_at(0);
        assert_int_equal(err.code, is_whole ? TD_OK : TD_E_NOMEM);
        td_link_close(&pair[0], false);
        td_link_close(&pair[1], false);
        td_link_close(&l, false);
        td_transport_destroy(&t);
    }
}

static void test_second_bind_is_refused_and_does_no_harm(void **state)
{
    (void)state;
    socket_dir d;
    td_err err = {0};
    socket_dir_make(&d);
    td_transport *t = td_transport_create(NULL);
    td_link *worker = must_open(t, d.endpoint, TD_LINK_BIND);
    assert_null(td_link_open(t, d.endpoint, TD_LINK_BIND, &err));
    assert_int_equal(err.code, TD_E_UNAVAILABLE);
    struct stat st;
    assert_int_equal(stat(d.path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    td_link *client = must_open(t, d.endpoint, TD_LINK_CONNECT);
    exchange(client, worker);
    td_link_close(&client, false);
    td_link_close(&worker, false);
    td_transport_destroy(&t);
    socket_dir_remove(&d);
}

/* A peer that does not read: sending never blocks, says so in the end, and loses nothing. */
static void test_slow_peer_gets_everything_in_order(void **state)
{
    (void)state;
    enum { BYTES = 32768 };
    td_transport *t = td_transport_create(NULL);
    td_link *worker = must_open(t, "inproc://slow", TD_LINK_BIND);
    td_link *client = must_open(t, "inproc://slow", TD_LINK_CONNECT);
    uint32_t n_sent = 0;
    td_err err = {0};
    td_route route;
    for (;; n_sent++) {
        memset(tx, (int)(n_sent % 251), BYTES);
        memcpy(tx, &n_sent, sizeof n_sent);
        if (!td_link_send(client, 0, tx, BYTES - n_sent % 7, &err))
            break;
        assert_true(n_sent < 1000);
    }
    assert_int_equal(err.code, TD_E_AGAIN);
    assert_true(td_link_get_stats(client).n_queued_bytes > TD_LINK_QUEUE_BYTES - 2 * BYTES);
    assert_true(n_sent >= TD_LINK_QUEUE_BYTES / (BYTES + 100));
    for (uint32_t i = 0; i < n_sent; i++) {
        td_link_poll_item item = {.link = client};
        assert_true(td_link_poll(&item, 1, 0, NULL)); /* moves the queue on */
        size_t n = must_recv(worker, rx, &route);
        uint32_t number;
        memcpy(&number, rx, sizeof number);
        assert_int_equal(number, i);
        assert_int_equal(n, BYTES - i % 7);
        assert_int_equal(rx[n - 1], i % 251);
    }
    assert_int_equal(td_link_get_stats(client).n_queued_bytes, 0);
    td_link_close(&client, true);
    td_link_close(&worker, true);
    td_transport_destroy(&t);
}

static void test_send_to_a_peer_that_has_gone(void **state)
{
    (void)state;
    td_transport *t = td_transport_create(NULL);
    td_link *worker = must_open(t, "inproc://gone", TD_LINK_BIND);
    td_link *client = must_open(t, "inproc://gone", TD_LINK_CONNECT);
    td_route route;
    must_send(client, 0, "hello", 5);
    must_recv(worker, rx, &route);
    td_link_close(&client, true);
    td_err err = {0};
    for (int i = 0; i < PATIENCE_US / 1000 && td_link_send(worker, route, "x", 1, &err); i++)
        usleep(1000);
    assert_int_equal(err.code, TD_E_UNAVAILABLE);
    td_err_clear(&err);
    assert_false(td_link_send(worker, 0, "x", 1, &err)); /* a route that never was */
    assert_int_equal(err.code, TD_E_UNAVAILABLE);
    td_link_close(&worker, true);
    td_transport_destroy(&t);
}

/* More than is taken at a time waits when the peer dies, and nobody reads for longer than any timer
 * of the library's: libzmq 4.3 with heartbeats of its own ends the process in that state. How many
 * of the dead peer's messages arrive is not promised: those that do are its first, in order. */
static void test_a_peer_may_die_while_nobody_reads(void **state)
{
    (void)state;
    enum { MESSAGES = 64 };
    socket_dir d;
    socket_dir_make(&d);
    td_transport *t = td_transport_create(NULL);
    td_link *links[2] = {must_open(t, d.endpoint, TD_LINK_BIND)};
    td_route route;
    links[1] = must_open(t, d.endpoint, TD_LINK_CONNECT);
    must_send(links[1], 0, "hello", 5);
    must_recv(links[0], rx, &route);
    for (uint32_t i = 0; i < MESSAGES; i++)
        must_send(links[1], 0, &i, sizeof i);
    usleep(200000); /* they are on their way */
    td_link_close(&links[1], false);
    usleep(1300000);
    links[1] = must_open(t, d.endpoint, TD_LINK_CONNECT);
    must_send(links[1], 0, "again", 5);
    uint32_t n_read = 0;
    for (; must_recv(links[0], rx, &route) != 5; n_read++) {
        assert_in_range(n_read, 0, MESSAGES - 1);
        assert_memory_equal(rx, &n_read, sizeof n_read);
    }
    td_link_close(&links[1], false);
    td_link_close(&links[0], false);
    td_transport_destroy(&t);
    socket_dir_remove(&d);
}

static void test_poll_wakes_for_links_and_descriptors(void **state)
{
    (void)state;
    int ends[2];
    td_transport *t = td_transport_create(NULL);
    td_link *worker = must_open(t, "inproc://poll", TD_LINK_BIND);
    td_link *client = must_open(t, "inproc://poll", TD_LINK_CONNECT);
    assert_int_equal(pipe(ends), 0);
    td_link_poll_item items[2] = {{.link = worker}, {.fd = ends[0]}};
    assert_true(td_link_poll(items, 2, 1500, NULL));
    assert_false(items[0].is_readable || items[1].is_readable);
    assert_int_equal(write(ends[1], "x", 1), 1);
    assert_true(td_link_poll(items, 2, -1, NULL));
    assert_true(items[1].is_readable && !items[0].is_readable);
    must_send(client, 0, "x", 1);
    for (int i = 0; i < 1000 && !items[0].is_readable; i++)
        assert_true(td_link_poll(items, 2, -1, NULL));
    assert_true(items[0].is_readable && items[1].is_readable);
    close(ends[0]);
    close(ends[1]);
    td_link_close(&client, false);
    td_link_close(&worker, false);
    td_transport_destroy(&t);
}

static void test_memory_link_keeps_order_without_faults(void **state)
{
    (void)state;
    td_clock clock = td_clock_simulated(1000);
    td_link *end[2];
    td_link_faults faults = {.seed = 3, .delay_min_us = 10, .delay_max_us = 5000};
    assert_true(td_link_pair(&clock, &faults, end, NULL));
    for (uint8_t i = 0; i < 100; i++) {
        assert_true(td_link_send(end[0], 0, &i, 1, NULL));
        td_clock_advance(&clock, 3);
    }
    for (uint8_t i = 0; i < 100; i++) {
        td_route route;
        assert_int_equal(must_recv(end[1], rx, &route), 1);
        assert_int_equal(rx[0], i);
    }
    td_link_poll_item item = {.link = end[1]};
    uint64_t before_us = td_clock_now_us(&clock);
    assert_true(td_link_poll(&item, 1, 7777, NULL)); /* nothing under way: the time passes */
    assert_true(td_clock_now_us(&clock) == before_us + 7777 && !item.is_readable);
    td_link_close(&end[0], true);
    td_link_close(&end[1], true);
}

/* What arrives when, folded into one number. */
static uint64_t faulty_run(uint64_t seed, uint32_t *n_arrived, bool *is_out_of_order)
{
    td_clock clock = td_clock_simulated(0);
    td_link *end[2];
    td_link_faults faults = {.seed = seed,
                             .drop_permille = 100,
                             .duplicate_permille = 100,
                             .overtake_permille = 200,
                             .delay_min_us = 5,
                             .delay_max_us = 50,
                             .overtake_us = 500};
    assert_true(td_link_pair(&clock, &faults, end, NULL));
    uint64_t trace = 1;
    uint32_t last = 0;
    *n_arrived = 0;
    *is_out_of_order = false;
    for (uint32_t i = 1; i <= 1000; i++) {
        size_t n;
        td_route route;
        assert_true(td_link_send(end[0], 0, &i, sizeof i, NULL));
        td_clock_advance(&clock, 20);
        while (td_link_recv(end[1], rx, &n, &route, NULL) && n) {
            uint64_t arrival[2] = {td_clock_now_us(&clock), 0};
            uint32_t number;
            memcpy(&number, rx, sizeof number);
            arrival[1] = number;
            trace = td_hash64(trace, arrival, sizeof arrival);
            *is_out_of_order |= number < last;
            last = number;
            ++*n_arrived;
        }
    }
    td_link_close(&end[0], true);
    td_link_close(&end[1], true);
    return trace;
}

static void test_memory_link_replays_from_its_seed(void **state)
{
    (void)state;
    uint32_t n[3];
    bool is_out_of_order[3];
    uint64_t a = faulty_run(42, &n[0], &is_out_of_order[0]);
    uint64_t b = faulty_run(42, &n[1], &is_out_of_order[1]);
    uint64_t c = faulty_run(43, &n[2], &is_out_of_order[2]);
    assert_true(a == b && n[0] == n[1]);
    assert_true(a != c);
    assert_true(is_out_of_order[0]);
    assert_in_range(n[0], 900, 1060); /* 1000 * 0.9 * 1.1 = 990 expected, sigma about 13 */
}

static void drop_third(void *user, int from_end, const uint8_t *bytes, size_t n, td_link_fate *fate)
{
    (void)from_end;
    assert_int_equal(n, 1);
    if (bytes[0] == 3)
        fate->n_copies = 0;
    ++*(int *)user;
}

static void test_memory_link_hook_and_cut(void **state)
{
    (void)state;
    td_clock clock = td_clock_simulated(0);
    td_link *end[2];
    int n_hooked = 0;
    td_link_faults faults = {.hook = drop_third, .user = &n_hooked};
    size_t n;
    td_route route;
    assert_true(td_link_pair(&clock, &faults, end, NULL));
    for (uint8_t i = 1; i <= 4; i++)
        assert_true(td_link_send(end[0], 0, &i, 1, NULL));
    assert_int_equal(n_hooked, 4);
    for (uint8_t i = 1; i <= 4; i++)
        if (i != 3) {
            must_recv(end[1], rx, &route);
            assert_int_equal(rx[0], i);
        }
    assert_true(td_link_send(end[0], 0, "a", 1, NULL));
    td_link_cut(end[1], true);
    assert_true(td_link_send(end[1], 0, "b", 1, NULL));
    td_link_cut(end[1], false);
    for (int i = 0; i < 2; i++) {
        assert_true(td_link_recv(end[i], rx, &n, &route, NULL));
        assert_int_equal(n, 0);
    }
    td_err err = {0};
    for (uint32_t i = 0; i < TD_LINK_MEM_MAX; i++)
        assert_true(td_link_send(end[0], 0, "x", 1, &err));
    assert_false(td_link_send(end[0], 0, "x", 1, &err));
    assert_int_equal(err.code, TD_E_AGAIN);
    td_link_close(&end[0], true);
    td_link_close(&end[1], true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_endpoint_policy),
        cmocka_unit_test(test_endpoint_policy_off_loopback),
        cmocka_unit_test(test_ipc_directory_must_be_ours_alone),
        cmocka_unit_test(test_zmq_exchange),
        cmocka_unit_test(test_worker_thread_echoes_and_nothing_is_allocated),
        cmocka_unit_test(test_out_of_memory_at_every_allocation),
        cmocka_unit_test(test_second_bind_is_refused_and_does_no_harm),
        cmocka_unit_test(test_slow_peer_gets_everything_in_order),
        cmocka_unit_test(test_send_to_a_peer_that_has_gone),
        cmocka_unit_test(test_a_peer_may_die_while_nobody_reads),
        cmocka_unit_test(test_poll_wakes_for_links_and_descriptors),
        cmocka_unit_test(test_memory_link_keeps_order_without_faults),
        cmocka_unit_test(test_memory_link_replays_from_its_seed),
        cmocka_unit_test(test_memory_link_hook_and_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
