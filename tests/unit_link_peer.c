/* Sessions: greeting, vocabulary check, liveness, loss and return. Mostly over the in-memory link
 * under simulated time, so that every failure is at an exact moment and replays. */
#include "transport/peer.h"

#include "base/check.h"
#include "base/rng.h"
#include "tests/link_common.h"

#include <string.h>

/* A vocabulary as a list of differences from a common one: the token `changed` reads otherwise. */
typedef struct {
    uint32_t changed; /* UINT32_MAX for none */
    uint32_t n_asked; /* ranges hashed */
} vocab;

static uint64_t hash(void *user, uint32_t a, uint32_t b)
{
    vocab *v = user;
    uint64_t range[2] = {a, b};
    v->n_asked++;
    bool is_changed = v->changed >= a && v->changed < b;
    return td_hash64(is_changed ? v->changed + 1000u : 7, range, sizeof range);
}

typedef struct {
    td_clock clock;
    td_link *end[2];
    td_peer *client, *worker;
    vocab vocabs[2];
    uint64_t trace; /* of everything that happened, for replays */
    uint32_t n_joined[2], n_lost[2], n_refused[2], n_messages[2];
    uint32_t feed_expected; /* position of the next FEED of this session, at the worker */
    td_peer_event last[2];  /* the latest LOST or REFUSED */
    uint64_t n_lives;
} world;

static td_peer_params params_of(world *w, int i, uint32_t n_vocab)
{
    return (td_peer_params){.is_worker = i == 1,
                            .n_vocab = n_vocab,
                            .n_ctx = i ? 2048 : 4096,
                            .max_draft = i ? 16 : 8,
                            .build = i ? "worker" : "client",
                            .hash = hash,
                            .hash_user = &w->vocabs[i],
                            .seed = 100 + ++w->n_lives};
}

static void world_open(world *w, const td_link_faults *faults, uint32_t n_client, uint32_t n_worker,
                       uint32_t changed)
{
    *w = (world){.clock = td_clock_simulated(1000000), .vocabs = {{UINT32_MAX, 0}, {changed, 0}}};
    assert_true(td_link_pair(&w->clock, faults, w->end, NULL));
    td_peer_params a = params_of(w, 0, n_client), b = params_of(w, 1, n_worker);
    w->client = td_peer_create(&a, w->end[0], &w->clock, NULL);
    w->worker = td_peer_create(&b, w->end[1], &w->clock, NULL);
}

static void world_close(world *w)
{
    td_peer_destroy(&w->client);
    td_peer_destroy(&w->worker);
    td_link_close(&w->end[0], false);
    td_link_close(&w->end[1], false);
}

static void note(world *w, int i, const td_peer_event *ev)
{
    uint64_t what[4] = {td_clock_now_us(&w->clock), (uint64_t)i, (uint64_t)ev->type, ev->msg.seq};
    w->trace = td_hash64(w->trace, what, sizeof what);
    w->n_joined[i] += ev->type == TD_PEER_JOINED;
    w->n_lost[i] += ev->type == TD_PEER_LOST;
    w->n_refused[i] += ev->type == TD_PEER_REFUSED;
    w->n_messages[i] += ev->type == TD_PEER_MESSAGE;
    if (ev->type == TD_PEER_LOST || ev->type == TD_PEER_REFUSED)
        w->last[i] = *ev;
    if (ev->type == TD_PEER_JOINED)
        w->feed_expected = i == 1 ? 0 : w->feed_expected;
    if (ev->type == TD_PEER_MESSAGE && ev->msg.type == TD_WIRE_FEED) {
        assert_int_equal(ev->msg.feed.position, w->feed_expected); /* no hole, no repeat */
        w->feed_expected += ev->msg.feed.n;
    }
}

static void step_all(world *w)
{
    td_peer *peers[2] = {w->client, w->worker};
    for (int i = 0; i < 2; i++)
        for (td_peer_event ev; peers[i];) {
            assert_true(td_peer_step(peers[i], &ev, NULL));
            if (ev.type == TD_PEER_NONE)
                break;
            note(w, i, &ev);
        }
}

/* Lets both ends live for a while; time jumps from event to event. */
static void live(world *w, uint64_t us)
{
    uint64_t end_us = td_clock_now_us(&w->clock) + us;
    for (;;) {
        step_all(w);
        uint64_t now_us = td_clock_now_us(&w->clock), next_us = end_us;
        td_peer *peers[2] = {w->client, w->worker};
        for (int i = 0; i < 2; i++) {
            uint64_t t = td_link_next_us(w->end[i]);
            next_us = t < next_us ? t : next_us;
            t = peers[i] ? td_peer_next_us(peers[i]) : UINT64_MAX;
            next_us = t < next_us ? t : next_us;
        }
        if (now_us >= end_us)
            return;
        td_clock_advance(&w->clock, next_us > now_us ? next_us - now_us : 1);
    }
}

static bool send_feed(world *w, uint32_t position, td_err *err)
{
    static const uint32_t ids[3] = {1, 2, 3};
    td_wire_msg m = {.type = TD_WIRE_FEED, .feed = {.position = position, .n = 3, .ids = ids}};
    return td_peer_send(w->client, &m, err);
}

static void test_join_and_exchange(void **state)
{
    (void)state;
    world w;
    td_err err = {0};
    world_open(&w, NULL, 1000, 1000, UINT32_MAX);
    assert_false(send_feed(&w, 0, &err));
    assert_int_equal(err.code, TD_E_UNAVAILABLE);
    live(&w, 10000);
    assert_int_equal(w.n_joined[0], 1);
    assert_int_equal(w.n_joined[1], 1);
    td_peer_info a = td_peer_get_info(w.client), b = td_peer_get_info(w.worker);
    assert_true(a.is_joined && b.is_joined && a.session == b.session && a.session != 0);
    assert_int_equal(a.n_vocab, 1000);
    assert_int_equal(a.n_ctx, 2048);
    assert_int_equal(a.max_draft, 8);
    assert_string_equal(a.build, "worker");
    assert_string_equal(b.build, "client");
    for (uint32_t i = 0; i < 5; i++)
        assert_true(send_feed(&w, i * 3, NULL));
    uint32_t ids[2] = {999, 0};
    td_wire_msg draft = {.type = TD_WIRE_DRAFT, .draft = {.position = 15, .n = 2, .ids = ids}};
    assert_true(td_peer_send(w.worker, &draft, NULL));
    live(&w, 1000);
    assert_int_equal(w.n_messages[1], 5);
    assert_int_equal(w.n_messages[0], 1);
    ids[1] = 1000; /* not a token of both */
    td_err_clear(&err);
    assert_false(td_peer_send(w.worker, &draft, &err));
    assert_int_equal(err.code, TD_E_DATA);
    live(&w, 60000000); /* a quiet minute is no loss */
    assert_int_equal(w.n_lost[0] + w.n_lost[1], 0);
    td_peer_bye(w.client);
    live(&w, 10000);
    assert_int_equal(w.n_lost[1], 1);
    assert_non_null(strstr(w.last[1].reason, "goodbye"));
    world_close(&w);
}

static void test_vocabularies_that_differ_in_padding_join(void **state)
{
    (void)state;
    static const uint32_t sizes[][2] = {{1000, 1064}, {1064, 1000}, {1, 2}};
    for (size_t i = 0; i < TD_COUNT(sizes); i++) {
        world w;
        world_open(&w, NULL, sizes[i][0], sizes[i][1], UINT32_MAX);
        live(&w, 10000);
        assert_int_equal(w.n_joined[0], 1);
        assert_int_equal(w.n_joined[1], 1);
        assert_int_equal(td_peer_get_info(w.client).n_vocab, td_min_u32(sizes[i][0], sizes[i][1]));
        world_close(&w);
        world_open(&w, NULL, sizes[i][0], sizes[i][1], 1000); /* a difference in the padding */
        live(&w, 10000);
        assert_int_equal(w.n_joined[0], 1);
        world_close(&w);
    }
}

static void test_first_differing_token_is_named(void **state)
{
    (void)state;
    static const uint32_t changed[] = {0, 1, 499, 500, 777, 998, 999};
    for (size_t i = 0; i < 2 * TD_COUNT(changed); i++) {
        world w;
        uint32_t token = changed[i / 2];
        world_open(&w, NULL, 1000, i % 2 ? 1064 : 1000, token);
        live(&w, 100000);
        assert_int_equal(w.n_joined[0] + w.n_joined[1], 0);
        assert_int_equal(w.n_refused[0], 1);
        assert_int_equal(w.n_refused[1], 1);
        assert_int_equal(w.last[0].refusal, TD_WIRE_REFUSE_VOCAB);
        assert_int_equal(w.last[0].first_token, token);
        char word[40];
        snprintf(word, sizeof word, "that does is %u ", (unsigned)token);
        assert_non_null(strstr(w.last[0].reason, word));
        assert_non_null(strstr(w.last[1].reason, word));
        assert_true(w.vocabs[0].n_asked <= 16); /* halving, not counting */
        world_close(&w);
    }
}

static void test_restarted_worker_is_noticed_and_rejoined(void **state)
{
    (void)state;
    world w;
    world_open(&w, NULL, 1000, 1000, UINT32_MAX);
    live(&w, 10000);
    uint64_t session = td_peer_get_info(w.client).session;
    assert_true(send_feed(&w, 0, NULL));
    live(&w, 10000);
    td_peer_destroy(&w.worker); /* killed: it says nothing */
    td_peer_params b = params_of(&w, 1, 1000);
    w.worker = td_peer_create(&b, w.end[1], &w.clock, NULL);
    assert_true(send_feed(&w, 3, NULL));
    live(&w, 500000); /* before a ping could have been missed */
    assert_int_equal(w.n_lost[0], 1);
    assert_non_null(strstr(w.last[0].reason, "no such session"));
    assert_int_equal(w.n_joined[0], 2);
    assert_int_equal(w.n_joined[1], 2);
    assert_int_equal(w.n_messages[1], 1); /* the new one never saw the old session's */
    assert_true(td_peer_get_info(w.client).session != session);
    assert_true(send_feed(&w, 0, NULL));
    live(&w, 10000);
    assert_int_equal(w.n_messages[1], 2);
    world_close(&w);
}

static void test_silence_is_loss_after_n_misses(void **state)
{
    (void)state;
    world w;
    world_open(&w, NULL, 1000, 1000, UINT32_MAX);
    live(&w, 10000);
    td_link_cut(w.end[0], true);
    live(&w, 2500000);
    assert_int_equal(w.n_lost[0] + w.n_lost[1], 0);
    live(&w, 5000000);
    assert_int_equal(w.n_lost[0], 1);
    assert_int_equal(w.n_lost[1], 1);
    assert_false(td_peer_get_info(w.client).is_joined);
    td_link_cut(w.end[0], false);
    live(&w, 6000000);
    assert_int_equal(w.n_joined[0], 2);
    assert_int_equal(w.n_joined[1], 2);
    world_close(&w);
}

/* Our own process stood still: what waits is read before time is judged. */
static void test_own_pause_is_no_loss(void **state)
{
    (void)state;
    world w;
    world_open(&w, NULL, 1000, 1000, UINT32_MAX);
    live(&w, 10000);
    td_clock_advance(&w.clock, 3600u * 1000000u);
    live(&w, 10000000);
    assert_int_equal(w.n_lost[0] + w.n_lost[1], 0);
    world_close(&w);
}

static void test_work_that_stands_still_is_loss(void **state)
{
    (void)state;
    world w;
    world_open(&w, NULL, 1000, 1000, UINT32_MAX);
    td_peer_destroy(&w.client);
    td_peer_params a = params_of(&w, 0, 1000);
    a.hung_us = 5000000;
    w.client = td_peer_create(&a, w.end[0], &w.clock, NULL);
    live(&w, 10000);
    td_peer_set_progress(w.worker, 1, 2);
    for (uint64_t i = 2; i < 20; i++) {
        live(&w, 2000000);
        td_peer_set_progress(w.worker, i, 2); /* slow, but it moves */
    }
    assert_int_equal(w.n_lost[0], 0);
    td_peer_set_progress(w.worker, 20, 0);
    live(&w, 20000000); /* idle is not hung */
    assert_int_equal(w.n_lost[0], 0);
    td_peer_set_progress(w.worker, 20, 1);
    live(&w, 8000000);
    assert_int_equal(w.n_lost[0], 1);
    assert_non_null(strstr(w.last[0].reason, "stands still"));
    world_close(&w);
}

static void drop_numbered(void *user, int from_end, const uint8_t *bytes, size_t n,
                          td_link_fate *fate)
{
    int *left = user;
    if (n > 6 && bytes[6] == TD_WIRE_FEED && from_end == 0 && (*left)-- == 0)
        fate->n_copies = 0;
}

static void test_lost_message_ends_the_session(void **state)
{
    (void)state;
    world w;
    int left = 1; /* the second FEED is lost */
    td_link_faults faults = {.hook = drop_numbered, .user = &left};
    world_open(&w, &faults, 1000, 1000, UINT32_MAX);
    live(&w, 10000);
    for (uint32_t i = 0; i < 3; i++)
        assert_true(send_feed(&w, i * 3, NULL));
    live(&w, 1000000);
    assert_int_equal(w.n_messages[1], 1); /* the third is not taken for the second */
    assert_int_equal(w.n_lost[0], 1);
    assert_int_equal(w.n_lost[1], 1);
    assert_int_equal(td_peer_get_info(w.worker).n_gaps, 1);
    assert_non_null(strstr(w.last[0].reason, "number 4 came after 2"));
    assert_non_null(strstr(w.last[1].reason, "number 4 came after 2"));
    assert_int_equal(w.n_joined[0], 2);
    world_close(&w);
}

static void test_doubled_messages_are_taken_once(void **state)
{
    (void)state;
    world w;
    td_link_faults faults = {.seed = 1, .duplicate_permille = 1000};
    world_open(&w, &faults, 1000, 1000, 600);
    live(&w, 100000);
    assert_int_equal(w.last[0].first_token, 600);
    world_close(&w);
    world_open(&w, &faults, 1000, 1000, UINT32_MAX);
    live(&w, 10000);
    for (uint32_t i = 0; i < 10; i++)
        assert_true(send_feed(&w, i * 3, NULL));
    live(&w, 5000000);
    assert_int_equal(w.n_messages[1], 10);
    assert_int_equal(w.n_lost[0] + w.n_lost[1], 0);
    assert_true(td_peer_get_info(w.worker).n_replayed >= 10);
    world_close(&w);
}

/* A client that restarts has a new name: it waits until the worker has given up the old one. */
static void test_restarted_client_is_served_after_the_old_one_timed_out(void **state)
{
    (void)state;
    world w;
    world_open(&w, NULL, 1000, 1000, UINT32_MAX);
    live(&w, 10000);
    td_peer_destroy(&w.client);
    td_peer_params a = params_of(&w, 0, 1000);
    w.client = td_peer_create(&a, w.end[0], &w.clock, NULL);
    live(&w, 20000000);
    assert_true(w.n_refused[0] >= 1);
    assert_int_equal(w.n_lost[1], 1);
    assert_int_equal(w.n_joined[0], 2);
    assert_int_equal(w.n_joined[1], 2);
    world_close(&w);
}

/* A hostile second half: unknown sessions, early and foreign messages, wrong types and numbers. */
static void test_messages_out_of_place_are_counted_and_dropped(void **state)
{
    (void)state;
    world w;
    uint32_t ids[TD_WIRE_IDS_MAX] = {1};
    uint8_t bytes[2048];
    size_t n;
    td_wire_limits widest = td_wire_limits_widest();
    world_open(&w, NULL, 1000, 1000, UINT32_MAX);
    td_wire_msg m = {.type = TD_WIRE_PROPOSE, .session = 5, .seq = 1, .propose = {.k = 1}};
    assert_true(td_wire_encode(&m, &widest, bytes, sizeof bytes, &n, NULL));
    assert_true(td_link_send(w.end[0], 0, bytes, n, NULL)); /* before any HELLO */
    live(&w, 10000);
    assert_int_equal(w.n_joined[1], 1);
    assert_int_equal(w.n_messages[1], 0);
    assert_int_equal(td_peer_get_info(w.worker).n_foreign, 1);
    assert_true(td_link_send(w.end[0], 0, bytes, n, NULL)); /* beside a session */
    assert_true(td_link_send(w.end[0], 0, "garbage", 7, NULL));
    live(&w, 10000);
    td_peer_info b = td_peer_get_info(w.worker);
    assert_true(b.n_foreign == 2 && b.n_malformed == 1 && b.is_joined);
    m.session = b.session;
    static const td_wire_type odd[] = {TD_WIRE_HELLO_OK, TD_WIRE_HASH_REPLY};
    for (size_t i = 0; i < TD_COUNT(odd); i++) {
        td_wire_msg o = {.type = odd[i], .session = b.session};
        o.hash.b = 1;
        if (odd[i] == TD_WIRE_HELLO_OK)
            o.hello = (td_wire_hello){.protocol = 9};
        assert_true(td_wire_encode(&o, &widest, bytes, sizeof bytes, &n, NULL));
        assert_true(td_link_send(w.end[0], 0, bytes, n, NULL));
    }
    live(&w, 10000);
    assert_int_equal(td_peer_get_info(w.worker).n_unexpected, 2);
    m = (td_wire_msg){
        .type = TD_WIRE_HELLO, .session = 77, .hello = {.protocol = TD_WIRE_PROTOCOL + 1}};
    assert_true(td_wire_encode(&m, &widest, bytes, sizeof bytes, &n, NULL));
    assert_true(td_link_send(w.end[0], 0, bytes, n, NULL)); /* refused; ours goes on */
    m = (td_wire_msg){
        .type = TD_WIRE_FEED, .session = b.session, .seq = 1, .feed = {.n = 1, .ids = ids}};
    assert_true(td_wire_encode(&m, &widest, bytes, sizeof bytes, &n, NULL));
    assert_true(td_link_send(w.end[0], 0, bytes, n, NULL)); /* number 1 was the ping */
    live(&w, 10000);
    assert_int_equal(td_peer_get_info(w.worker).n_replayed, 1);
    assert_int_equal(w.n_messages[1], 0);
    assert_int_equal(w.n_lost[0] + w.n_lost[1], 0);
    m.seq = 1000; /* from the future */
    assert_true(td_wire_encode(&m, &widest, bytes, sizeof bytes, &n, NULL));
    assert_true(td_link_send(w.end[0], 0, bytes, n, NULL));
    live(&w, 500000);
    assert_int_equal(w.n_lost[1], 1);
    assert_int_equal(w.n_joined[1], 2);
    world_close(&w);
}

/* Traffic over a bad wire: whatever happens, FEEDs of a session arrive without hole or repeat
 * (note() checks it), the ends come back together, and the same seed gives the same story. */
static uint64_t faulty_life(uint64_t seed, uint32_t *n_messages, uint32_t *n_lost)
{
    world w;
    td_link_faults faults = {.seed = seed,
                             .drop_permille = 10,
                             .duplicate_permille = 30,
                             .overtake_permille = 10,
                             .delay_min_us = 50,
                             .delay_max_us = 2000,
                             .overtake_us = 3000};
    world_open(&w, &faults, 1000, 1064, UINT32_MAX);
    uint32_t position = 0, n_joined = 0;
    for (int i = 0; i < 1500; i++) {
        live(&w, 10000);
        if (w.n_joined[0] != n_joined)
            position = 0; /* a new session: from the start again */
        n_joined = w.n_joined[0];
        if (td_peer_get_info(w.client).is_joined && position < 2000 &&
            send_feed(&w, position, NULL))
            position += 3;
        if (i % 500 == 499) { /* kill one end */
            td_peer **victim = i == 499 ? &w.worker : &w.client;
            td_peer_destroy(victim);
            td_peer_params p =
                params_of(&w, victim == &w.worker, victim == &w.worker ? 1064 : 1000);
            *victim = td_peer_create(&p, w.end[victim == &w.worker], &w.clock, NULL);
        }
    }
    live(&w, 30000000);
    assert_true(w.n_joined[0] >= 3);
    *n_messages = w.n_messages[1];
    *n_lost += w.n_lost[0];
    uint64_t trace = w.trace;
    world_close(&w);
    return trace;
}

static void test_seeded_faults_replay_and_never_corrupt(void **state)
{
    (void)state;
    uint32_t n[2], n_lost = 0;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        uint64_t a = faulty_life(seed, &n[0], &n_lost);
        if (seed <= 3) {
            assert_true(a == faulty_life(seed, &n[1], &n_lost));
            assert_int_equal(n[0], n[1]);
        }
        assert_true(n[0] > 100);
    }
    assert_true(n_lost > 20); /* the faults were felt */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_join_and_exchange),
        cmocka_unit_test(test_vocabularies_that_differ_in_padding_join),
        cmocka_unit_test(test_first_differing_token_is_named),
        cmocka_unit_test(test_restarted_worker_is_noticed_and_rejoined),
        cmocka_unit_test(test_silence_is_loss_after_n_misses),
        cmocka_unit_test(test_own_pause_is_no_loss),
        cmocka_unit_test(test_work_that_stands_still_is_loss),
        cmocka_unit_test(test_lost_message_ends_the_session),
        cmocka_unit_test(test_doubled_messages_are_taken_once),
        cmocka_unit_test(test_restarted_client_is_served_after_the_old_one_timed_out),
        cmocka_unit_test(test_messages_out_of_place_are_counted_and_dropped),
        cmocka_unit_test(test_seeded_faults_replay_and_never_corrupt),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
