/* Drafts that are always right, always wrong, late, silent, mad, killed and restarted: they cost
 * speed at most. Each run's lines equal those of the run without a draft. */
#include "tests/e2e_process.h"

#include "draft/worker.h"
#include "model/tokenizer.h"
#include "transport/peer.h"

#include <pthread.h>
#include <sys/eventfd.h>

#define N_TOKENS    40u
#define DEADLINE_US 30000u

static void write_prompts(const scratch *s, unsigned n)
{
    write_file(s->in, "");
    for (unsigned i = 0; i < n; i++) {
        char line[128];
        snprintf(line, sizeof line, "{\"id\": \"p%u\", \"prompt\": \"Once upon a time %u\", \"n\": %u}\n", i,
                 i, N_TOKENS);
        append_file(s->in, line);
    }
}

/* -- a worker that speaks the protocol and lies ------------------------------------------------ */

typedef enum { WRONG, LATE, SILENT, MAD } temper;

typedef struct {
    temper temper;
    const char *endpoint;
    const td_tokenizer *tokenizer;
    int stop_fd;
    pthread_t thread;
    uint32_t n_proposals;
} liar;

static void answer(td_peer *peer, uint32_t sequence, uint32_t epoch, uint32_t position, uint32_t n)
{
    static const uint32_t unknown[TD_WIRE_DRAFT_MAX]; /* token 0 is <unk>: greedy never says it */
    td_wire_msg msg = {.type = TD_WIRE_DRAFT, .draft = {sequence, epoch, position, n, unknown}};
    td_peer_send(peer, &msg, NULL);
}

static void propose(liar *l, td_peer *peer, const td_wire_propose *p)
{
    l->n_proposals++;
    switch (l->temper) {
    case WRONG:
        answer(peer, p->sequence, p->epoch, p->position, p->k);
        break;
    case LATE:
        sleep_ms(3 * DEADLINE_US / 1000);
        answer(peer, p->sequence, p->epoch, p->position, p->k);
        break;
    case SILENT:
        break;
    case MAD:
        answer(peer, p->sequence, p->epoch + 1, p->position, p->k);
        answer(peer, p->sequence + 7, p->epoch, p->position, p->k);
        answer(peer, p->sequence, p->epoch, p->position + 1, p->k);
        answer(peer, p->sequence, p->epoch, p->position, 200);
        answer(peer, p->sequence, p->epoch, p->position, p->k);
        answer(peer, p->sequence, p->epoch, p->position, p->k);
        break;
    }
}

static void *lie(void *arg)
{
    liar *l = arg;
    td_err err = {0};
    td_clock clock = td_clock_real();
    td_transport *transport = td_transport_create(&err);
    td_link *link = td_link_open(transport, l->endpoint, TD_LINK_BIND, &err);
    TD_ASSERT(link);
    td_peer *peer = td_peer_create(&(td_peer_params){.is_worker = true,
                                                     .n_vocab = td_tokenizer_get_info(l->tokenizer)->n_vocab,
                                                     .n_ctx = 512,
                                                     .max_draft = TD_WIRE_DRAFT_MAX,
                                                     .build = "a liar",
                                                     .hash = td_draft_vocab_hash,
                                                     .hash_user = (void *)(uintptr_t)l->tokenizer},
                                   link, &clock, &err);
    TD_ASSERT(peer);
    for (bool is_stopped = false; !is_stopped;) {
        td_peer_event event;
        do {
            TD_ASSERT(td_peer_step(peer, &event, &err));
            if (event.type == TD_PEER_MESSAGE && event.msg.type == TD_WIRE_PROPOSE)
                propose(l, peer, &event.msg.propose);
        } while (event.type != TD_PEER_NONE);
        td_link_poll_item items[] = {{.link = link}, {.fd = l->stop_fd}};
        TD_ASSERT(td_link_poll(items, 2, 100000, &err));
        is_stopped = items[1].is_readable;
    }
    td_peer_destroy(&peer);
    td_link_close(&link, false);
    td_transport_destroy(&transport);
    return NULL;
}

static void run_with_liar(temper t, td_run_totals *totals, uint32_t *n_proposals)
{
    scratch s;
    scratch_open(&s);
    write_prompts(&s, 4);
    td_run_params params = base_params(&s, tales_target());
    json_t *plain = run_lines(&s, &params, NULL);
    td_err err = {0};
    td_model *model = td_model_open(tales_target(), &err);
    assert_non_null(model);
    liar l = {.temper = t, .endpoint = s.endpoint, .tokenizer = td_model_tokenizer(model),
              .stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    assert_int_equal(pthread_create(&l.thread, NULL, lie, &l), 0);
    params.draft_endpoint = s.endpoint;
    params.draft_fixed = 4;
    if (t == LATE || t == SILENT)
        params.draft_deadline_us = DEADLINE_US;
    json_t *lines = run_lines(&s, &params, totals);
    assert_same_texts("a lying draft", plain, lines);
    uint64_t one = 1;
    assert_int_equal(write(l.stop_fd, &one, sizeof one), sizeof one);
    pthread_join(l.thread, NULL);
    close(l.stop_fd);
    *n_proposals = l.n_proposals;
    json_decref(plain);
    json_decref(lines);
    td_model_close(&model);
    scratch_close(&s);
}

static void test_a_draft_that_is_always_wrong_is_never_accepted(void **state)
{
    (void)state;
    td_run_totals totals;
    uint32_t n_proposals;
    run_with_liar(WRONG, &totals, &n_proposals);
    assert_true(n_proposals > 0 && totals.n_drafted > 0);
    assert_int_equal(totals.n_accepted, 0);
    assert_int_equal(totals.n_rounds, 4 * N_TOKENS); /* each gives the target's own token */
}

static void test_a_late_draft_changes_nothing(void **state)
{
    (void)state;
    td_run_totals totals;
    uint32_t n_proposals;
    run_with_liar(LATE, &totals, &n_proposals);
    assert_true(n_proposals > 0);
}

static void test_a_silent_draft_costs_one_deadline_a_sequence(void **state)
{
    (void)state;
    td_run_totals totals;
    uint32_t n_proposals;
    run_with_liar(SILENT, &totals, &n_proposals);
    assert_in_range(n_proposals, 1, 4);
    assert_int_equal(totals.n_drafted, 0);
}

static void test_a_mad_draft_changes_nothing(void **state)
{
    (void)state;
    td_run_totals totals;
    uint32_t n_proposals;
    run_with_liar(MAD, &totals, &n_proposals);
    assert_true(n_proposals > 0);
    assert_int_equal(totals.n_accepted, 0);
}

/* The target as its own draft: the first token comes from the prefill, each round gives k + 1. */
static void test_a_draft_that_is_always_right_is_always_accepted(void **state)
{
    (void)state;
    static const uint32_t widths[] = {1, 4, 16};
    scratch s;
    scratch_open(&s);
    write_prompts(&s, 2);
    for (int is_sampled = 0; is_sampled < 2; is_sampled++) {
        td_run_params params = base_params(&s, tales_target());
        params.sampling.temperature = is_sampled ? 0.9f : 0;
        json_t *plain = run_lines(&s, &params, NULL);
        params.draft_path = tales_target();
        params.draft_spec = "host:1";
        for (size_t i = 0; i < TD_COUNT(widths); i++) {
            td_run_totals totals;
            params.draft_fixed = widths[i];
            json_t *lines = run_lines(&s, &params, &totals);
            assert_same_texts("its own draft", plain, lines);
            assert_true(totals.n_drafted > 0);
            assert_int_equal(totals.n_accepted, totals.n_drafted);
            const char *id;
            json_t *line;
            json_object_foreach(lines, id, line)
            {
                    json_int_t n = (json_int_t)json_array_size(json_object_get(line, "tokens"));
                json_int_t least = 1 + (n - 1 + widths[i]) / (widths[i] + 1);
                assert_int_equal(line_count(line, "rounds"), least);
            }
            json_decref(lines);
        }
        json_decref(plain);
    }
    scratch_close(&s);
}

/* -- a real worker, killed --------------------------------------------------------------------- */

typedef struct {
    const scratch *s;
    volatile bool is_done;
    uint32_t n_kills;
} killer;

static void *kill_and_restart(void *arg)
{
    killer *k = arg;
    const char *argv[] = {NULL, "draft", "--model", tales_draft(), "--bind", k->s->endpoint, NULL};
    while (!k->is_done) {
        pid_t pid = start_tandem(argv);
        sleep_ms(150 + 70 * (long)(k->n_kills % 3));
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        k->n_kills++;
    }
    return NULL;
}

static void test_a_draft_killed_and_restarted_changes_nothing(void **state)
{
    (void)state;
    if (!tandem_program())
        skip();
    scratch s;
    scratch_open(&s);
    write_prompts(&s, 40);
    td_run_params params = base_params(&s, tales_target());
    json_t *plain = run_lines(&s, &params, NULL);
    killer k = {.s = &s};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, kill_and_restart, &k), 0);
    params.draft_endpoint = s.endpoint;
    params.draft_fixed = 4;
    params.draft_deadline_us = DEADLINE_US;
    td_run_totals totals;
    json_t *lines = run_lines(&s, &params, &totals);
    k.is_done = true;
    pthread_join(thread, NULL);
    assert_same_texts("a killed draft", plain, lines);
    assert_true(k.n_kills > 0);
    printf("%u kills, joined %llu times, accepted %llu of %llu\n", k.n_kills,
           (unsigned long long)totals.n_draft_joins, (unsigned long long)totals.n_accepted,
           (unsigned long long)totals.n_drafted);
    json_decref(plain);
    json_decref(lines);
    scratch_close(&s);
}

int main(void)
{
    if (!is_readable(tales_target()) || !is_readable(tales_draft()))
        return SKIPPED;
    td_log_set_level(TD_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_draft_that_is_always_right_is_always_accepted),
        cmocka_unit_test(test_a_draft_that_is_always_wrong_is_never_accepted),
        cmocka_unit_test(test_a_late_draft_changes_nothing),
        cmocka_unit_test(test_a_silent_draft_costs_one_deadline_a_sequence),
        cmocka_unit_test(test_a_mad_draft_changes_nothing),
        cmocka_unit_test(test_a_draft_killed_and_restarted_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
