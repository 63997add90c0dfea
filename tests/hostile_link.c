/* Real sockets, unfriendly company: raw bytes, malformed messages, strangers, killed and stopped
 * peers. After each a good client is served by the same worker, or a new worker is found. */
#include "transport/link.h"
#include "transport/peer.h"

#include "base/check.h"
#include "base/rng.h"
#include "tests/link_common.h"

#include <errno.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <zmq.h>

static const char *program; /* argv[0]'s file, to start a worker as a process of its own */

static uint64_t hash(void *user, uint32_t a, uint32_t b)
{
    (void)user;
    return ((uint64_t)a << 32) + b + 1;
}

/* Short intervals, so that a test is; none of them is asserted. */
static td_peer_params params_of(bool is_worker)
{
    return (td_peer_params){.is_worker = is_worker,
                            .n_vocab = 1000,
                            .n_ctx = 4096,
                            .max_draft = 8,
                            .build = "test",
                            .hash = hash,
                            .ping_us = 50000,
                            .n_misses = 10,
                            .retry_min_us = 20000,
                            .retry_max_us = 200000};
}

/* A worker as it will be: answers each PROPOSE by k ids counting up from the position. */
static void worker_answer(td_peer *p, const td_wire_msg *m)
{
    uint32_t ids[TD_WIRE_DRAFT_MAX];
    if (m->type != TD_WIRE_PROPOSE)
        return;
    for (uint32_t i = 0; i < m->propose.k; i++)
        ids[i] = (m->propose.position + i) % 1000;
    td_wire_msg d = {.type = TD_WIRE_DRAFT,
                     .draft = {.sequence = m->propose.sequence,
                               .epoch = m->propose.epoch,
                               .position = m->propose.position,
                               .n = m->propose.k,
                               .ids = ids}};
    td_peer_send(p, &d, NULL);
}

/* Steps a peer until it has nothing more; returns the first event of `wanted`, if it came. */
static bool step(td_peer *p, td_peer_event_type wanted, td_peer_event *found)
{
    bool is_found = false;
    for (td_peer_event ev;;) {
        td_err err = {0};
        if (!td_peer_step(p, &ev, &err))
            fail_msg("%s", err.message);
        if (ev.type == TD_PEER_NONE)
            return is_found;
        if (ev.type == TD_PEER_MESSAGE)
            worker_answer(p, &ev.msg);
        if (ev.type == wanted && !is_found) {
            *found = ev;
            is_found = true;
        }
    }
}

typedef struct {
    td_transport *t;
    td_clock clock;
    td_link *links[3];
    td_peer *peers[3]; /* [0] is the client that waits */
} party;

/* Lives until the client meets `wanted`. */
static td_peer_event must_meet(party *y, int who, td_peer_event_type wanted)
{
    uint64_t end_us = td_clock_now_us(&y->clock) + PATIENCE_US;
    td_peer_event ev = {0}, other;
    while (td_clock_now_us(&y->clock) < end_us) {
        td_link_poll_item items[3];
        size_t n = 0;
        bool is_found = false;
        for (int i = 0; i < 3; i++)
            if (y->peers[i]) {
                is_found |=
                    step(y->peers[i], i == who ? wanted : TD_PEER_NONE, i == who ? &ev : &other);
                items[n++] = (td_link_poll_item){.link = y->links[i]};
            }
        if (is_found)
            return ev;
        td_link_poll(items, n, 5000, NULL);
    }
    fail_msg("event %d never came", (int)wanted);
    return ev;
}

static void party_add(party *y, int i, const char *endpoint)
{
    td_peer_params params = params_of(i == 1);
    y->links[i] = must_open(y->t, endpoint, i == 1 ? TD_LINK_BIND : TD_LINK_CONNECT);
    y->peers[i] = td_peer_create(&params, y->links[i], &y->clock, NULL);
    assert_non_null(y->peers[i]);
}

static void party_open(party *y)
{
    *y = (party){.t = td_transport_create(NULL), .clock = td_clock_real()};
    assert_non_null(y->t);
}

static void party_remove(party *y, int i)
{
    td_peer_destroy(&y->peers[i]);
    td_link_close(&y->links[i], false);
}

static void party_close(party *y)
{
    for (int i = 0; i < 3; i++)
        party_remove(y, i);
    td_transport_destroy(&y->t);
}

static void must_draft(party *y)
{
    td_wire_msg m = {.type = TD_WIRE_PROPOSE, .propose = {.sequence = 1, .position = 40, .k = 5}};
    assert_true(td_peer_send(y->peers[0], &m, NULL));
    uint64_t end_us = td_clock_now_us(&y->clock) + PATIENCE_US;
    while (td_clock_now_us(&y->clock) < end_us) {
        td_link_poll_item items[2] = {{.link = y->links[0]}, {.link = y->links[1]}};
        td_peer_event ev;
        if (y->peers[1])
            step(y->peers[1], TD_PEER_NONE, &ev);
        assert_true(td_peer_step(y->peers[0], &ev, NULL));
        if (ev.type == TD_PEER_MESSAGE) {
            assert_int_equal(ev.msg.type, TD_WIRE_DRAFT);
            assert_int_equal(ev.msg.draft.n, 5);
            assert_int_equal(ev.msg.draft.ids[4], 44);
            return;
        }
        td_link_poll(items, y->peers[1] ? 2 : 1, 5000, NULL);
    }
    fail_msg("no draft came");
}

/* --- Bytes that are no ZMTP ----------------------------------------------------------------- */

static void throw_bytes(const socket_dir *d, uint32_t seed, bool is_greeting_first)
{
    /* A ZMTP 3.0 greeting that claims NULL security, then noise where a handshake should be. */
    uint8_t bytes[512] = {0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 3, 0, 'N', 'U', 'L', 'L'};
    size_t from = is_greeting_first ? 64 : 0;
    for (size_t i = from; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)td_noise_bits(seed, i, 0);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, d->path, strlen(d->path) + 1);
    assert_true(fd >= 0);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0) {
        ssize_t n = send(fd, bytes, sizeof bytes - seed % 400, MSG_NOSIGNAL);
        (void)n; /* it may have hung up on us already */
    }
    close(fd);
}

static void test_raw_garbage_does_not_stop_the_worker(void **state)
{
    (void)state;
    socket_dir d;
    party y;
    socket_dir_make(&d);
    party_open(&y);
    party_add(&y, 1, d.endpoint);
    party_add(&y, 0, d.endpoint);
    must_meet(&y, 0, TD_PEER_JOINED);
    for (uint32_t i = 0; i < 1000; i++) {
        throw_bytes(&d, i, i % 2);
        if (i % 250 == 0)
            must_draft(&y); /* served in between */
    }
    must_draft(&y);
    party_remove(&y, 0);
    party_add(&y, 0, d.endpoint); /* and a newcomer is let in */
    must_meet(&y, 0, TD_PEER_JOINED);
    must_draft(&y);
    party_close(&y);
    socket_dir_remove(&d);
}

/* --- ZMTP that is none of ours -------------------------------------------------------------- */

static void *raw_dealer(void *context, const char *endpoint, const char *name)
{
    void *s = zmq_socket(context, ZMQ_DEALER);
    int linger_ms = 0;
    assert_non_null(s);
    zmq_setsockopt(s, ZMQ_LINGER, &linger_ms, sizeof linger_ms);
    if (name)
        assert_int_equal(zmq_setsockopt(s, ZMQ_ROUTING_ID, name, strlen(name)), 0);
    assert_int_equal(zmq_connect(s, endpoint), 0);
    return s;
}

static void test_malformed_messages_are_dropped_and_counted(void **state)
{
    (void)state;
    static uint8_t big[TD_WIRE_MESSAGE_MAX + 1];
    socket_dir d;
    party y;
    socket_dir_make(&d);
    void *context = zmq_ctx_new();
    party_open(&y);
    party_add(&y, 1, d.endpoint);
    void *s = raw_dealer(context, d.endpoint, NULL);
    zmq_send(s, "", 0, 0);
    for (size_t n = 1; n < TD_WIRE_HEADER_BYTES; n++)
        zmq_send(s, big, n, 0);
    for (int i = 0; i < 5000; i++)
        zmq_send(s, big, 1000, i < 4999 ? ZMQ_SNDMORE : 0);
    zmq_send(s, big, TD_WIRE_MESSAGE_MAX, 0); /* of the allowed size, but no message */
    void *named = raw_dealer(context, d.endpoint, "a-name-too-long-for-a-route");
    zmq_send(named, big, 100, 0);
    void *twins[2] = {raw_dealer(context, d.endpoint, "twin"),
                      raw_dealer(context, d.endpoint, "twin")};
    zmq_send(twins[0], big, 100, 0);
    zmq_send(twins[1], big, 100, ZMQ_DONTWAIT);

    party_add(&y, 0, d.endpoint);
    must_meet(&y, 0, TD_PEER_JOINED);
    must_draft(&y);
    uint64_t end_us = td_clock_now_us(&y.clock) + PATIENCE_US;
    for (td_peer_event ev; td_clock_now_us(&y.clock) < end_us;) { /* until all have arrived */
        td_link_stats stats = td_link_get_stats(y.links[1]);
        td_peer_info info = td_peer_get_info(y.peers[1]);
        if (stats.n_bad_size == 1 && stats.n_multipart == 1 && stats.n_unroutable == 1 &&
            info.n_malformed >= 33)
            break;
        td_link_poll_item items[2] = {{.link = y.links[0]}, {.link = y.links[1]}};
        td_link_poll(items, 2, 5000, NULL);
        step(y.peers[0], TD_PEER_NONE, &ev);
        step(y.peers[1], TD_PEER_NONE, &ev);
    }
    td_link_stats stats = td_link_get_stats(y.links[1]);
    assert_int_equal(stats.n_bad_size, 1);
    assert_int_equal(stats.n_multipart, 1);
    assert_int_equal(stats.n_unroutable, 1);
    assert_in_range(td_peer_get_info(y.peers[1]).n_malformed, 33, 34); /* one twin, or both */
    zmq_send(s, big, TD_WIRE_MESSAGE_MAX + 1, 0);                      /* hung up on */
    must_draft(&y);
    zmq_close(s);
    zmq_close(named);
    zmq_close(twins[0]);
    zmq_close(twins[1]);
    party_close(&y);
    zmq_ctx_term(context);
    socket_dir_remove(&d);
}

static void test_second_client_is_refused_and_served_later(void **state)
{
    (void)state;
    party y;
    party_open(&y);
    party_add(&y, 1, "inproc://second");
    party_add(&y, 0, "inproc://second");
    must_meet(&y, 0, TD_PEER_JOINED);
    party_add(&y, 2, "inproc://second");
    td_peer_event ev = must_meet(&y, 2, TD_PEER_REFUSED);
    assert_int_equal(ev.refusal, TD_WIRE_REFUSE_BUSY);
    must_draft(&y);
    td_peer_bye(y.peers[0]);
    must_meet(&y, 2, TD_PEER_JOINED);
    party_close(&y);
}

/* A client that hangs with its connection open: what waits for it must not stop the next one. */
static void test_client_that_stops_reading_does_not_block_the_next(void **state)
{
    (void)state;
    uint32_t ids[TD_WIRE_DRAFT_MAX] = {0};
    td_wire_msg m = {.type = TD_WIRE_DRAFT, .draft = {.n = TD_WIRE_DRAFT_MAX, .ids = ids}};
    td_err err = {0};
    party y;
    party_open(&y);
    party_add(&y, 1, "inproc://hang");
    party_add(&y, 0, "inproc://hang");
    must_meet(&y, 0, TD_PEER_JOINED);
    must_draft(&y); /* the worker has joined as well */
    td_peer_destroy(&y.peers[0]);
    for (int i = 0; i < 5000 && td_peer_send(y.peers[1], &m, &err); i++)
        ;
    assert_int_equal(err.code, TD_E_AGAIN);
    party_add(&y, 2, "inproc://hang");
    must_meet(&y, 2, TD_PEER_JOINED);
    party_close(&y);
}

/* --- Processes ------------------------------------------------------------------------------ */

static int worker_main(const char *endpoint)
{
    party y;
    party_open(&y);
    party_add(&y, 1, endpoint);
    uint64_t end_us = td_clock_now_us(&y.clock) + 3 * (uint64_t)PATIENCE_US;
    while (td_clock_now_us(&y.clock) < end_us && getppid() != 1) {
        td_peer_event ev;
        td_link_poll_item item = {.link = y.links[1]};
        step(y.peers[1], TD_PEER_NONE, &ev);
        td_link_poll(&item, 1, 20000, NULL);
    }
    return 0;
}

static pid_t start_worker(const socket_dir *d)
{
    pid_t pid = fork();
    if (pid == 0) {
        execl(program, program, "worker", d->endpoint, (char *)NULL);
        _exit(127);
    }
    assert_true(pid > 0);
    return pid;
}

static void end_worker(pid_t pid)
{
    int status;
    kill(pid, SIGKILL);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
}

static void test_killed_worker_is_lost_and_its_successor_joined(void **state)
{
    (void)state;
    socket_dir d;
    party y;
    socket_dir_make(&d);
    party_open(&y);
    party_add(&y, 0, d.endpoint);
    pid_t pid = start_worker(&d);
    for (int i = 0; i < 3; i++) {
        must_meet(&y, 0, TD_PEER_JOINED);
        must_draft(&y);
        td_wire_msg m = {.type = TD_WIRE_PROPOSE, .propose = {.k = 1}};
        assert_true(td_peer_send(y.peers[0], &m, NULL)); /* killed with a request under way */
        end_worker(pid);
        if (i % 2)
            must_meet(&y, 0, TD_PEER_LOST); /* noticed while there is no successor yet */
        pid = start_worker(&d);
        if (i % 2 == 0)
            must_meet(&y, 0, TD_PEER_LOST); /* noticed by the successor's word */
    }
    must_meet(&y, 0, TD_PEER_JOINED);
    must_draft(&y);
    end_worker(pid);
    party_close(&y);
    socket_dir_remove(&d);
}

static void test_stopped_worker_is_lost_and_rejoined_when_it_goes_on(void **state)
{
    (void)state;
    socket_dir d;
    party y;
    socket_dir_make(&d);
    party_open(&y);
    party_add(&y, 0, d.endpoint);
    pid_t pid = start_worker(&d);
    must_meet(&y, 0, TD_PEER_JOINED);
    kill(pid, SIGSTOP);
    td_peer_event ev = must_meet(&y, 0, TD_PEER_LOST);
    assert_non_null(strstr(ev.reason, "silent"));
    kill(pid, SIGCONT);
    must_meet(&y, 0, TD_PEER_JOINED);
    must_draft(&y);
    end_worker(pid);
    party_close(&y);
    socket_dir_remove(&d);
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "worker") == 0)
        return worker_main(argv[2]);
    program = argv[0];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_raw_garbage_does_not_stop_the_worker),
        cmocka_unit_test(test_malformed_messages_are_dropped_and_counted),
        cmocka_unit_test(test_second_client_is_refused_and_served_later),
        cmocka_unit_test(test_client_that_stops_reading_does_not_block_the_next),
        cmocka_unit_test(test_killed_worker_is_lost_and_its_successor_joined),
        cmocka_unit_test(test_stopped_worker_is_lost_and_rejoined_when_it_goes_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
