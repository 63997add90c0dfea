/* Drafts at their worst: always wrong, late, silent, dying, talking nonsense, killed and started
 * again. The text never changes, and the run never waits long. And at their best: always right,
 * when the number of rounds is known exactly.
 *
 * The draft here is a thread that speaks the protocol (transport/peer.h) over ipc and knows the
 * text that a run without a draft gave. */
#include "tests/e2e_law1.h"
#include "tests/e2e_process.h"

#include "draft/worker.h"
#include "model/model.h"
#include "transport/link.h"
#include "transport/peer.h"

#include <pthread.h>
#include <stdatomic.h>

#define N_LINES   12u
#define N_PREDICT 41u

typedef enum {
    ALWAYS_RIGHT,
    ALWAYS_WRONG,
    SHORT,   /* right, but fewer tokens than wanted, sometimes none */
    LATE,    /* right, after the deadline */
    SILENT,  /* joins and answers no proposal */
    ABSENT,  /* bound, but not even HELLO is answered */
    DYING,   /* forgets everything every few proposals, as if killed and started again */
    STALE,   /* answers to questions that were not asked, besides the right ones */
    GARBAGE, /* raw bytes of every kind between right answers */
} behaviour;

typedef struct {
    behaviour behaviour;
    const char *endpoint;
    const td_model *model;
    const json_t *truth[N_LINES]; /* result lines without a draft, by sequence */
    uint32_t n_vocab;
    pthread_t thread;
    atomic_bool is_stopping;
    atomic_uint n_proposals;
    td_err err;
} fake;

/* The token at an absolute position of a sequence; past the end of what is known, any. */
static uint32_t true_token(const fake *f, uint32_t sequence, uint32_t position)
{
    const json_t *line = sequence < N_LINES ? f->truth[sequence] : NULL;
    json_int_t n_prompt = line_count(line, "prompt_tokens");
    return (uint32_t)json_integer_value(
        json_array_get(json_object_get(line, "tokens"), (size_t)(position - n_prompt)));
}

static void send_draft(fake *f, td_peer *peer, const td_wire_draft *draft)
{
    td_err err = {0};
    (void)f;
    /* Refused by our own side (ids beyond the vocabulary) or by a session just lost: no matter. */
    td_peer_send(peer, &(td_wire_msg){.type = TD_WIRE_DRAFT, .draft = *draft}, &err);
}

static void send_stale(fake *f, td_peer *peer, const td_wire_propose *p, const uint32_t *ids)
{
    const td_wire_draft drafts[] = {
        {p->sequence, p->epoch - 1, p->position, 1, 9, ids},
        {p->sequence, p->epoch + 1, p->position, 1, 9, ids},
        {p->sequence, p->epoch, p->position + 1, 1, 9, ids},
        {p->sequence, p->epoch, 0, 1, 9, ids},
        {p->sequence + 1000, p->epoch, p->position, 1, 9, ids},
        {p->sequence, p->epoch, p->position, p->k + 1 < TD_WIRE_DRAFT_MAX ? p->k + 1 : p->k, 9,
         ids},
    };
    for (size_t i = 0; i < TD_COUNT(drafts); i++)
        send_draft(f, peer, &drafts[i]);
}

static void send_garbage(td_link *link, td_route route, uint32_t draw)
{
    static const uint32_t sizes[] = {1, 31, 32, 33, 64, 200};
    uint8_t bytes[256];
    td_err err = {0};
    uint32_t n = sizes[draw % TD_COUNT(sizes)];
    for (uint32_t i = 0; i < n; i++)
        bytes[i] = (uint8_t)td_noise_bits(3, draw, i);
    if (draw % 2) /* at least the magic number is right */
        memcpy(bytes, "TTDM", n < 4 ? n : 4);
    td_link_try_send(link, route, bytes, n, &err);
}

static void propose(fake *f, td_peer *peer, td_link *link, td_route route, const td_wire_propose *p)
{
    uint32_t ids[TD_WIRE_DRAFT_MAX], n = p->k;
    uint32_t i_proposal = atomic_fetch_add(&f->n_proposals, 1);
    for (uint32_t i = 0; i < TD_WIRE_DRAFT_MAX; i++) {
        ids[i] = true_token(f, p->sequence, p->position + i);
        if (f->behaviour == ALWAYS_WRONG)
            ids[i] = (ids[i] + 1 + i) % f->n_vocab;
    }
    if (f->behaviour == SILENT)
        return;
    if (f->behaviour == LATE)
        sleep_ms(15);
    if (f->behaviour == SHORT)
        n = i_proposal % (p->k + 1);
    if (f->behaviour == STALE)
        send_stale(f, peer, p, ids);
    if (f->behaviour == GARBAGE)
        send_garbage(link, route, i_proposal);
    send_draft(f, peer, &(td_wire_draft){p->sequence, p->epoch, p->position, n, 9, ids});
    if (f->behaviour == GARBAGE)
        send_garbage(link, route, i_proposal + 3);
    if (f->behaviour == STALE) /* said twice */
        send_draft(f, peer, &(td_wire_draft){p->sequence, p->epoch, p->position, n, 9, ids});
}

static td_peer *new_peer(fake *f, td_link *link, const td_clock *clock)
{
    return td_peer_create(
        &(td_peer_params){.is_worker = true,
                          .n_vocab = f->n_vocab,
                          .n_ctx = 512,
                          .max_draft = TD_WIRE_DRAFT_MAX,
                          .build = "fake",
                          .hash = td_draft_vocab_hash,
                          .hash_user = (void *)(uintptr_t)td_model_tokenizer(f->model)},
        link, clock, &f->err);
}

/* Takes what is there. False when the link failed or, for DYING, when it is time to. */
static bool serve(fake *f, td_peer *peer, td_link *link, td_route route)
{
    td_peer_event event;
    while (td_peer_step(peer, &event, &f->err)) {
        if (event.type == TD_PEER_NONE)
            return true;
        if (event.type != TD_PEER_MESSAGE || event.msg.type != TD_WIRE_PROPOSE)
            continue;
        propose(f, peer, link, route, &event.msg.propose);
        if (f->behaviour == DYING && atomic_load(&f->n_proposals) % 7 == 0)
            return false;
    }
    return false;
}

static void *fake_main(void *arg)
{
    fake *f = arg;
    const td_clock clock = td_clock_real();
    td_transport *transport = td_transport_create(&f->err);
    td_link *link = transport ? td_link_open(transport, f->endpoint, TD_LINK_BIND, &f->err) : NULL;
    td_peer *peer = NULL;
    td_route route = 0;
    size_t n_first =
        0; /* of the first HELLO, which is taken to learn the way back; it is said again */
    while (link && !atomic_load(&f->is_stopping) && f->err.code == TD_OK) {
        td_link_poll_item item = {.link = link};
        if (!td_link_poll(&item, 1, 5000, &f->err) || f->behaviour == ABSENT)
            continue;
        if (n_first == 0) {
            uint8_t buffer[TD_WIRE_MESSAGE_MAX];
            td_link_recv(link, buffer, &n_first, &route, &f->err);
            continue;
        }
        if (!peer)
            peer = new_peer(f, link, &clock);
        if (peer && !serve(f, peer, link, route))
            td_peer_destroy(&peer);
    }
    td_peer_destroy(&peer);
    td_link_close(&link, false);
    td_transport_destroy(&transport);
    return NULL;
}

/* -- the runs ---------------------------------------------------------------------------------- */

static td_model *model;
static scratch dir;
static json_t *wanted; /* lines without a draft */

static void start_fake(fake *f, behaviour b)
{
    *f = (fake){.behaviour = b,
                .endpoint = dir.endpoint,
                .model = model,
                .n_vocab = td_model_hparams(model)->n_vocab};
    for (uint32_t i = 0; i < N_LINES; i++) {
        char id[16];
        snprintf(id, sizeof id, "p%u", i);
        f->truth[i] = json_object_get(wanted, id);
        assert_non_null(f->truth[i]);
    }
    assert_int_equal(pthread_create(&f->thread, NULL, fake_main, f), 0);
}

/* The run of all lines with a fake draft: must give the same lines. */
static json_t *run_with(behaviour b, const char *what, td_run_params *params, td_run_totals *totals)
{
    fake f;
    start_fake(&f, b);
    params->draft_endpoint = dir.endpoint;
    json_t *got = run_lines(&dir, params, totals);
    atomic_store(&f.is_stopping, true);
    pthread_join(f.thread, NULL);
    if (f.err.code != TD_OK)
        fail_msg("%s: the fake draft: %s", what, f.err.message);
    assert_same_texts(what, wanted, got);
    printf(
        "%s: the same; accepted %llu of %llu, %llu rounds, joined %llu times, lost %llu, %.2f s\n",
        what, (unsigned long long)totals->n_accepted, (unsigned long long)totals->n_drafted,
        (unsigned long long)totals->n_rounds, (unsigned long long)totals->n_draft_joins,
        (unsigned long long)totals->n_draft_losses,
        (double)(totals->end_us - totals->start_us) * 1e-6);
    return got;
}

/* Lines after the first that was drafted all had their draft from the start. */
static void check_rounds(const json_t *lines, uint32_t rounds_wanted)
{
    bool is_joined = false;
    uint32_t n_checked = 0;
    for (uint32_t i = 0; i < N_LINES; i++) {
        char id[16];
        snprintf(id, sizeof id, "p%u", i);
        const json_t *line = json_object_get(lines, id);
        if (is_joined) {
            assert_int_equal(line_count(line, "rounds"), rounds_wanted);
            n_checked++;
        }
        is_joined |= line_count(line, "drafted") > 0;
    }
    assert_true(n_checked > 0);
}

static td_run_params draft_params(void)
{
    td_run_params params = base_params(&dir, tales_target());
    params.n_predict = N_PREDICT;
    params.ignore_eos = true;
    return params;
}

static void test_a_right_draft_needs_the_fewest_rounds(void **state)
{
    (void)state;
    static const uint32_t widths[] = {1, 4, 7, 16, 63};
    for (size_t i = 0; i < TD_COUNT(widths); i++) {
        td_run_params params = draft_params();
        td_run_totals totals;
        char what[64];
        uint32_t k = widths[i];
        params.draft_fixed = k;
        snprintf(what, sizeof what, "always right, k = %u", k);
        json_t *got = run_with(ALWAYS_RIGHT, what, &params, &totals);
        assert_int_equal(totals.n_accepted, totals.n_drafted);
        /* The prompt's last row gives the first token, every round after it k + 1. */
        check_rounds(got, 1 + (N_PREDICT - 1 + k) / (k + 1));
        json_decref(got);
    }
}

static void test_a_wrong_draft_costs_only_time(void **state)
{
    (void)state;
    td_run_params params = draft_params();
    td_run_totals totals;
    params.draft_fixed = 5;
    for (params.n_parallel = 1; params.n_parallel <= 4; params.n_parallel += 3) {
        json_t *got = run_with(ALWAYS_WRONG, "always wrong", &params, &totals);
        assert_int_equal(totals.n_accepted, 0);
        assert_true(totals.n_drafted > 0);
        assert_int_equal(totals.n_rounds, N_LINES * N_PREDICT);
        json_decref(got);
    }
}

static void test_a_short_draft_is_used_as_far_as_it_goes(void **state)
{
    (void)state;
    td_run_params params = draft_params();
    td_run_totals totals;
    params.draft_fixed = 5;
    params.n_parallel = 4;
    json_t *got = run_with(SHORT, "short", &params, &totals);
    assert_int_equal(totals.n_accepted, totals.n_drafted);
    assert_true(totals.n_drafted > 0);
    json_decref(got);
}

static void test_a_late_silent_or_absent_draft_holds_nothing_up(void **state)
{
    (void)state;
    static const struct {
        behaviour behaviour;
        const char *name;
    } kinds[] = {{LATE, "late"}, {SILENT, "silent"}, {ABSENT, "absent"}};
    for (size_t i = 0; i < TD_COUNT(kinds); i++)
        for (uint32_t n_parallel = 1; n_parallel <= 4; n_parallel += 3) {
            td_run_params params = draft_params();
            td_run_totals totals;
            params.draft_fixed = 5;
            params.n_parallel = n_parallel;
            params.draft_deadline_us = 3000;
            json_t *got = run_with(kinds[i].behaviour, kinds[i].name, &params, &totals);
            if (kinds[i].behaviour != LATE)
                assert_int_equal(totals.n_drafted, 0);
            json_decref(got);
        }
}

static void test_a_dying_draft_is_joined_again(void **state)
{
    (void)state;
    td_run_params params = draft_params();
    td_run_totals totals;
    params.n_parallel = 1; /* long texts one by one: the run is to last until the draft is back */
    params.n_predict = 8 * N_PREDICT;
    json_t *usual = wanted;
    wanted = run_lines(&dir, &params, NULL);
    params.draft_fixed = 2;
    /* What was under way when it died is never answered. */
    params.draft_deadline_us = 50000;
    bool is_joined_again = false;
    for (int i = 0; i < 50 && !is_joined_again; i++) { /* a run may be over before it is back */
        json_decref(run_with(DYING, "dying", &params, &totals));
        is_joined_again = totals.n_draft_losses > 0 && totals.n_draft_joins > 1;
    }
    json_decref(wanted);
    wanted = usual;
    assert_true(is_joined_again);
}

static void test_nonsense_from_a_draft_is_dropped(void **state)
{
    (void)state;
    static const struct {
        behaviour behaviour;
        const char *name;
    } kinds[] = {{STALE, "stale"}, {GARBAGE, "garbage"}};
    for (size_t i = 0; i < TD_COUNT(kinds); i++) {
        td_run_params params = draft_params();
        td_run_totals totals;
        params.draft_fixed = 4;
        params.n_parallel = 2;
        json_t *got = run_with(kinds[i].behaviour, kinds[i].name, &params, &totals);
        assert_true(totals.n_accepted > 0);
        assert_int_equal(totals.n_accepted, totals.n_drafted);
        assert_int_equal(totals.n_draft_losses, 0);
        json_decref(got);
    }
}

/* The draft is the target's own model: it agrees but for prefill chunks against single rows. */
static void test_the_target_as_its_own_draft_is_right(void **state)
{
    (void)state;
    td_run_params params = draft_params();
    td_run_totals totals;
    params.draft_path = tales_target();
    params.draft_spec = "host:1";
    params.draft_fixed = 4;
    json_t *got = run_lines(&dir, &params, &totals);
    assert_same_texts("the target as its own draft", wanted, got);
    printf("the target as its own draft: accepted %llu of %llu\n",
           (unsigned long long)totals.n_accepted, (unsigned long long)totals.n_drafted);
    assert_true(totals.n_drafted > 0);
    assert_true((double)totals.n_accepted >= 0.98 * (double)totals.n_drafted);
    json_decref(got);
}

/* -- processes --------------------------------------------------------------------------------- */

/* Result lines so far and how many of them were drafted. */
static uint32_t count_lines(const char *path, uint32_t *n_drafted)
{
    uint32_t n = 0;
    char *text = NULL;
    size_t capacity = 0;
    FILE *f = fopen(path, "re");
    *n_drafted = 0;
    while (f && getline(&text, &capacity, f) > 0 && strchr(text, '\n')) {
        n++;
        *n_drafted += strstr(text, "\"drafted\":0,") == NULL;
    }
    free(text);
    if (f)
        fclose(f);
    return n;
}

/* Waits until so many more lines were drafted than `before`. */
static uint32_t wait_for_drafted(uint32_t before, uint32_t more)
{
    uint32_t n_drafted = 0;
    for (int i = 0; i < PATIENCE_MS / 10; i++) {
        count_lines(dir.out, &n_drafted);
        if (n_drafted >= before + more)
            return n_drafted;
        sleep_ms(10);
    }
    fail_msg("%u lines were drafted, not %u", n_drafted, before + more);
    return 0;
}

/* Every line that is there says what the prompt of its number said without a draft. */
static uint32_t check_repeated_lines(void)
{
    json_t *lines = read_lines(dir.out);
    const char *id;
    json_t *line;
    json_object_foreach(lines, id, line)
    {
        char base[16];
        snprintf(base, sizeof base, "p%lu", strtoul(id + 1, NULL, 10) % N_LINES);
        const json_t *other = json_object_get(wanted, base);
        if (!json_equal(json_object_get(line, "tokens"), json_object_get(other, "tokens")))
            fail_msg("line %s is not what %s is without a draft", id, base);
    }
    uint32_t n = (uint32_t)json_object_size(lines);
    json_decref(lines);
    return n;
}

static void write_prompts(const char *path, uint32_t n)
{
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    for (uint32_t i = 0; i < n; i++)
        fprintf(f, "{\"id\":\"p%u\",\"prompt\":\"%s%u\",\"seed\":%u,\"temp\":%s}\n", i,
                i % 2 ? "Once upon a time there was a king of " : "The fox said to number ",
                i % N_LINES, i % N_LINES, i % 3 ? "0.7" : "0");
    assert_int_equal(fclose(f), 0);
}

/* kill -9 of the worker in the middle of a run: the run goes on, and takes the next one up. */
static void test_a_killed_worker_is_replaced(void **state)
{
    (void)state;
    if (!tandem_program())
        skip();
    char many[96];
    snprintf(many, sizeof many, "%s/many.jsonl", dir.dir);
    write_prompts(many, 20000);
    unlink(dir.out);
    pid_t draft = start_draft(tales_draft(), dir.endpoint, "512");
    const char *argv[] = {NULL,
                          "generate",
                          "--target",
                          tales_target(),
                          "--device",
                          "host:1",
                          "--draft-endpoint",
                          dir.endpoint,
                          "--in",
                          many,
                          "--out",
                          dir.out,
                          "-n",
                          "41",
                          "--ignore-eos",
                          "--parallel",
                          "2",
                          "--draft-fixed",
                          "4",
                          NULL};
    pid_t run = start_tandem(argv);
    uint32_t n_drafted = 0;
    for (int i = 0; i < 3; i++) {
        n_drafted = wait_for_drafted(n_drafted, 4);
        assert_int_equal(stop_process(draft, SIGKILL), 256 + SIGKILL);
        count_lines(dir.out, &n_drafted);
        draft = start_draft(tales_draft(), dir.endpoint, "512");
    }
    wait_for_drafted(n_drafted, 4);
    assert_int_equal(stop_process(run, SIGINT), 130);
    assert_int_equal(stop_process(draft, SIGTERM), 143);
    printf("a worker killed three times: %u lines, the same\n", check_repeated_lines());
}

static int set_up(void **state)
{
    (void)state;
    td_err err = {0};
    scratch_open(&dir);
    write_prompts(dir.in, N_LINES);
    model = td_model_open(tales_target(), &err);
    td_run_params params = draft_params();
    wanted = run_lines(&dir, &params, NULL);
    return !model || json_object_size(wanted) != N_LINES;
}

static int tear_down(void **state)
{
    (void)state;
    td_model_close(&model);
    json_decref(wanted);
    scratch_close(&dir);
    return 0;
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!is_readable(tales_target()) || !is_readable(tales_draft()))
        return SKIPPED;
    td_log_set_level(TD_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_right_draft_needs_the_fewest_rounds),
        cmocka_unit_test(test_a_wrong_draft_costs_only_time),
        cmocka_unit_test(test_a_short_draft_is_used_as_far_as_it_goes),
        cmocka_unit_test(test_a_late_silent_or_absent_draft_holds_nothing_up),
        cmocka_unit_test(test_a_dying_draft_is_joined_again),
        cmocka_unit_test(test_nonsense_from_a_draft_is_dropped),
        cmocka_unit_test(test_the_target_as_its_own_draft_is_right),
        cmocka_unit_test(test_a_killed_worker_is_replaced),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
