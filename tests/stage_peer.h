/* A stage worker in a thread, of a toy model in a folder of its own, and a peer that says to it
 * what a test likes. Private to tests/hostile_stage*.c. */
#ifndef TD_TESTS_STAGE_PEER_H
#define TD_TESTS_STAGE_PEER_H

#include "base/clock.h"
#include "target/models.h"
#include "target/worker.h"
#include "transport/stage_wire.h"

#include "toy_model.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define STAGE_TICKET 0x1234567800000000u

static char folder[64], endpoint[96];
static bool is_sent;           /* the worker has no model */
static const char *model_path; /* what the worker has instead of a toy, or NULL */
static td_model *model;
static int stop_fd;
static pthread_t thread;
static td_transport *transport;
static td_stage_worker_params hooks; /* check, has_failed, prompts */
static uint32_t toy_n_ctx;           /* of the model; 0: that of TOY_SHAPE */

static inline void *worker_main(void *arg)
{
    static const char *const specs[] = {"host:1"};
    td_err err = {0};
    (void)arg;
    bool is_ok =
        td_stage_worker_run(&(td_stage_worker_params){.specs = specs,
                                                      .n_specs = 1,
                                                      .models = is_sent ? NULL : folder,
                                                      .cache_bytes = is_sent ? 1u << 20 : 0,
                                                      .transport = transport,
                                                      .endpoint = endpoint,
                                                      .stop_fd = stop_fd,
                                                      .prompts = hooks.prompts,
                                                      .check = hooks.check,
                                                      .has_failed = hooks.has_failed},
                            &err);
    if (!is_ok)
        print_error("worker: %s\n", err.message);
    return NULL;
}

typedef struct {
    td_link *link;
    uint64_t session, n_sent, ping_us; /* ping_us: when the next is due */
    bool is_greeted;
    td_stage_type last; /* that came */
    td_stage_fail_code code;
    char reason[TD_WIRE_REASON_MAX + 1]; /* of a FAIL */
    td_stage_met met;
    bool is_kept;         /* by its last KEPT */
    td_stage_found found; /* the last */
} peer;

static inline void say(peer *p, td_stage_msg m)
{
    uint8_t bytes[TD_WIRE_MESSAGE_MAX];
    size_t n;
    m.session = p->session;
    m.seq = ++p->n_sent;
    if (td_stage_encode(&m, bytes, sizeof bytes, &n, NULL))
        td_link_send(p->link, 0, bytes, n, NULL);
}

/* Whoever says nothing for long counts as lost, and a machine may be busy. */
static inline void stay(peer *p)
{
    td_clock clock = td_clock_real();
    uint64_t now = td_clock_now_us(&clock);
    if (!p->is_greeted || now < p->ping_us)
        return;
    p->ping_us = now + 1000000;
    say(p, (td_stage_msg){.type = TD_STAGE_PING});
}

/* Takes what comes, until it is of that type or a FAIL, or for some milliseconds. */
static inline void hear(peer *p, td_stage_type type, int ms)
{
    static uint8_t bytes[TD_WIRE_MESSAGE_MAX];
    for (int waited = 0; waited < ms && p->last != type && p->last != TD_STAGE_FAIL; waited += 5) {
        td_link_poll_item item = {.link = p->link};
        stay(p);
        td_link_poll(&item, 1, 5000, NULL);
        size_t n = 1;
        td_route route;
        td_stage_msg m;
        while (n && td_link_recv(p->link, bytes, &n, &route, NULL) && n)
            if (td_stage_decode(bytes, n, &m, NULL) && m.session == p->session &&
                m.type != TD_STAGE_PONG) { /* a worker may look whether we are there */
                p->last = m.type;
                p->is_greeted |= m.type == TD_STAGE_HELLO_OK;
                if (m.type == TD_STAGE_MET)
                    p->met = m.met;
                if (m.type == TD_STAGE_KEPT)
                    p->is_kept = m.kept;
                if (m.type == TD_STAGE_FOUND)
                    p->found = m.found;
                if (m.type == TD_STAGE_FAIL) {
                    p->code = m.fail.code;
                    memcpy(p->reason, m.fail.reason, sizeof p->reason);
                }
            }
    }
}

static inline td_stage_plan greet_as(peer *p, uint64_t session, uint32_t n_parts,
                                     td_stage_type type)
{
    uint32_t n_layer = td_model_hparams(model)->n_layer;
    td_stage_plan plan = {.model_name = "toy",
                          .n_parts = (uint8_t)n_parts,
                          .experts_device = TD_STAGE_ANY,
                          .n_slots = 4,
                          .kv = {.type_k = TD_TYPE_F16, .type_v = TD_TYPE_F16},
                          .n_ctx = 200,
                          .head = model_path != NULL && type == TD_STAGE_HELLO,
                          .parts = {{0, 0, (uint16_t)(n_layer / n_parts - 1)},
                                    {0, (uint16_t)(n_layer / 2), (uint16_t)(n_layer - 1)}}};
    assert_true(td_models_id(model, plan.hash, NULL));
    *p = (peer){.session = session};
    p->link = td_link_open(transport, endpoint, TD_LINK_CONNECT, NULL);
    assert_non_null(p->link);
    for (uint32_t i = 0; i < 200 && p->last != TD_STAGE_HELLO_OK; i++) {
        usleep(i ? 20000 : 0); /* it still sees the one before out */
        *p = (peer){.link = p->link, .session = session + 1000000 * i};
        say(p, (td_stage_msg){.type = type, .hello = {TD_STAGE_PROTOCOL, "a test"}});
        hear(p, TD_STAGE_HELLO_OK, 5000);
    }
    assert_int_equal(p->last, TD_STAGE_HELLO_OK);
    return plan;
}

static inline td_stage_plan greet(peer *p, uint64_t session, uint32_t n_parts)
{
    return greet_as(p, session, n_parts, TD_STAGE_HELLO);
}

static inline void join(peer *p, uint64_t session, uint32_t n_parts)
{
    td_stage_plan plan = greet(p, session, n_parts);
    say(p, (td_stage_msg){.type = TD_STAGE_PLAN, .plan = plan});
    hear(p, TD_STAGE_PLANNED, 5000);
    assert_int_equal(p->last, TD_STAGE_PLANNED);
    say(p, (td_stage_msg){.type = TD_STAGE_LOAD, .load = {.n_ctx = 200}});
    hear(p, TD_STAGE_READY, 5000);
    assert_int_equal(p->last, TD_STAGE_READY);
}

static inline void join_draft(peer *p, uint64_t session)
{
    td_stage_plan plan = greet_as(p, session, 1, TD_STAGE_HELLO_DRAFT);
    say(p, (td_stage_msg){.type = TD_STAGE_PLAN, .plan = plan});
    hear(p, TD_STAGE_PLANNED, 5000);
    say(p, (td_stage_msg){.type = TD_STAGE_LOAD, .load = {.n_ctx = 200, .ticket = STAGE_TICKET}});
    hear(p, TD_STAGE_READY, 5000);
    assert_int_equal(p->last, TD_STAGE_READY);
}

static inline int begin(void **state)
{
    (void)state;
    toy_shape shape = TOY_SHAPE;
    shape.n_ctx = toy_n_ctx ? toy_n_ctx : shape.n_ctx;
    toy t = toy_begin("llama", shape);
    char path[96];
    td_err err = {0};
    snprintf(folder, sizeof folder, "/tmp/tandem-stage-XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    snprintf(endpoint, sizeof endpoint, "ipc://%s/w.sock", folder);
    snprintf(path, sizeof path, "%s/any.gguf", folder);
    gw w = toy_write(&t);
    if (!model_path)
        gw_save(&w, path);
    else if (symlink(model_path, path))
        return -1;
    gw_free(&w);
    if (!(model = td_model_open(path, &err))) {
        print_error("%s\n", err.message);
        return -1;
    }
    snprintf(path, sizeof path, "%s/cache", folder);
    setenv("TANDEM_CACHE_DIR", path, 1);
    stop_fd = eventfd(0, EFD_CLOEXEC);
    transport = td_transport_create(&err);
    return pthread_create(&thread, NULL, worker_main, NULL);
}

static inline int end(void **state)
{
    (void)state;
    char path[96];
    uint64_t one = 1;
    if (write(stop_fd, &one, sizeof one) != sizeof one)
        return -1;
    pthread_join(thread, NULL);
    close(stop_fd);
    td_transport_destroy(&transport);
    td_model_close(&model);
    snprintf(path, sizeof path, "%s/any.gguf", folder);
    unlink(path);
    snprintf(path, sizeof path, "rm -rf '%s'", folder);
    return system(path);
}

static inline int begin_sent(void **state)
{
    is_sent = true;
    return begin(state);
}

#endif
