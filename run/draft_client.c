#include "run/draft_client.h"

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "draft/drafter.h"
#include "draft/worker.h"
#include "target/remote_draft.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define INPROC_ENDPOINT "inproc://tandem-draft"
#define HERE_RETRY_US   2000u /* a thread of this process answers at once */
#define THERE_RETRY_US  400000u

struct td_draft_client {
    const td_run_params *params;
    td_transport *transport;
    td_link *link;
    td_peer *peer;
    td_peer_event event;
    td_remote_draft *remote; /* on one of the hosts; NULL: here, or a worker of its own */
    /* A draft whose file we have. */
    td_model *model;
    /* In this process. */
    td_vocab_map *map; /* NULL: one vocabulary */
    td_drafter *drafter;
    int stop_fd;
    pthread_t thread;
    bool is_thread, is_loaded;
    td_draft_worker_params worker;
    _Atomic uint64_t computing_us;
    td_err failure;      /* of the thread; to be read once */
    atomic_bool is_dead; /* says so */
    bool has_told;       /* that it is lost, by its last message */
    bool is_over;        /* and has been taken note of: it does not come back */
};

static void *worker_main(void *arg)
{
    td_draft_client *d = arg;
    if (!td_draft_worker_run(&d->worker, &d->failure))
        atomic_store(&d->is_dead, true);
    return NULL;
}

/* A map where the vocabularies differ. */
static bool map_vocabulary(td_draft_client *d, const td_tokenizer *target, td_err *err)
{
    const td_tokenizer *own = td_model_tokenizer(d->model);
    if (td_vocab_is_same(target, own))
        return true;
    d->map = td_vocab_map_create(target, own, err);
    if (!d->map)
        return false;
    td_vocab_map_info info = td_vocab_map_get_info(d->map);
    td_log_info("draft: another vocabulary; %u of the target's %u tokens are in it", info.n_twins,
                info.n_text);
    return true;
}

/* Loads the draft model and serves it from a thread. */
static bool start_here(td_draft_client *d, const td_tokenizer *target, uint32_t n_ctx,
                       td_prefix_store *prompts, td_err *err)
{
    const td_run_params *params = d->params;
    d->model = td_model_open(params->draft_path, err);
    if (!d->model || !map_vocabulary(d, target, err))
        return false;
    uint32_t n_train = td_model_hparams(d->model)->n_ctx_train;
    d->drafter = td_drafter_create(&(td_drafter_params){.model = d->model,
                                                        .spec = params->draft_spec,
                                                        .kv = params->draft_kv,
                                                        .n_slots = params->n_parallel,
                                                        .n_ctx = td_min_u32(n_ctx, n_train),
                                                        .prompts = prompts},
                                   err);
    d->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!d->drafter || d->stop_fd < 0)
        return td_err_set(err, TD_E_IO, "eventfd: %s", strerror(errno));
    d->worker =
        (td_draft_worker_params){.drafter = d->drafter,
                                 .tokenizer = d->map ? target : td_model_tokenizer(d->model),
                                 .map = d->map,
                                 .transport = d->transport,
                                 .endpoint = INPROC_ENDPOINT,
                                 .stop_fd = d->stop_fd,
                                 .is_here = true,
                                 .computing_us = &d->computing_us};
    d->is_thread = !pthread_create(&d->thread, NULL, worker_main, d);
    return d->is_thread || td_err_set(err, TD_E_NOMEM, "draft: no thread");
}

bool td_draft_client_is_on_host(const td_run_params *params)
{
    td_device_spec spec;
    return params->draft_path && params->draft_spec &&
           td_device_spec_parse(params->draft_spec, &spec, NULL) && spec.host[0];
}

/* Has the draft model planned by a stage worker. */
static bool plan_there(td_draft_client *d, const td_tokenizer *target, uint32_t n_ctx, td_err *err)
{
    const td_run_params *params = d->params;
    d->model = td_model_open(params->draft_path, err);
    if (!d->model)
        return false;
    if (!td_vocab_is_same(target, td_model_tokenizer(d->model)))
        return td_err_set(err, TD_E_USAGE,
                          "%s has another vocabulary than the target; allowed on %s: the same "
                          "(`tandem draft --vocab-of` there translates)",
                          params->draft_path, params->draft_spec);
    uint32_t n_train = td_model_hparams(d->model)->n_ctx_train;
    d->remote =
        td_remote_draft_create(&(td_remote_draft_params){.model = d->model,
                                                         .spec = params->draft_spec,
                                                         .hosts = params->hosts,
                                                         .n_hosts = params->n_hosts,
                                                         .key = params->key,
                                                         .is_trusting = params->is_trusting,
                                                         .kv = params->draft_kv,
                                                         .n_slots = params->n_parallel,
                                                         .n_ctx = td_min_u32(n_ctx, n_train)},
                               err);
    return d->remote;
}

static const char *endpoint_of(const td_draft_client *d)
{
    return d->remote                   ? td_remote_draft_endpoint(d->remote)
           : d->params->draft_endpoint ? d->params->draft_endpoint
                                       : INPROC_ENDPOINT;
}

bool td_draft_client_is_elsewhere(const td_draft_client *d)
{
    return !strncmp(endpoint_of(d), "tcp://", 6);
}

td_draft_client *td_draft_client_create(const td_run_params *params, const td_model *target,
                                        uint32_t n_ctx, td_err *err)
{
    td_draft_client *d = td_alloc(1, sizeof *d, err);
    if (!d)
        return NULL;
    d->params = params;
    d->stop_fd = -1;
    d->transport = td_transport_create(err);
    bool is_ok = d->transport != NULL;
    if (is_ok && td_draft_client_is_on_host(params))
        is_ok = plan_there(d, td_model_tokenizer(target), n_ctx, err);
    if (!is_ok) {
        td_err_prepend(err, "draft");
        td_draft_client_destroy(&d);
    }
    return d;
}

bool td_draft_client_load(td_draft_client *d, const td_model *target, uint32_t n_ctx,
                          td_prefix_store *prompts, td_err *err)
{
    if (d->is_loaded)
        return true;
    if (d->remote)
        d->is_loaded = td_remote_draft_load(
            d->remote, td_min_u32(n_ctx, td_model_hparams(d->model)->n_ctx_train), err);
    else
        d->is_loaded = d->params->draft_endpoint ||
                       start_here(d, td_model_tokenizer(target), n_ctx, prompts, err);
    return d->is_loaded || td_err_prepend(err, "draft");
}

uint64_t td_draft_client_bytes(const td_draft_client *d)
{
    return d->remote ? td_remote_draft_bytes(d->remote) : 0;
}

bool td_draft_client_connect(td_draft_client *d, const td_model *target, uint32_t n_ctx,
                             const td_clock *clock, td_err *err)
{
    bool is_here = d->is_thread;
    const td_tokenizer *tokenizer = td_model_tokenizer(target);
    td_transport_set_key(d->transport, d->params->key);
    d->link = td_link_open(d->transport, endpoint_of(d), TD_LINK_CONNECT, err);
    if (d->link)
        d->peer = td_peer_create(
            &(td_peer_params){.n_vocab = td_tokenizer_get_info(tokenizer)->n_vocab,
                              .n_ctx = n_ctx,
                              .max_draft = TD_DRAFT_MAX,
                              .build = "tandem " TD_VERSION,
                              .hash = td_draft_vocab_hash,
                              .hash_user = (void *)(uintptr_t)tokenizer,
                              .seed = d->remote ? td_remote_draft_seed(d->remote) : 0,
                              .ping_us = is_here ? TD_WIRE_PING_MAX_US : 0,
                              .retry_min_us = is_here ? HERE_RETRY_US : 0,
                              /* A stage worker is silent until the draft is loaded again. */
                              .retry_max_us = d->remote ? THERE_RETRY_US : 0},
            d->link, clock, err);
    return d->peer || td_err_prepend(err, "draft");
}

void td_draft_client_destroy(td_draft_client **drafting)
{
    td_draft_client *d = *drafting;
    if (!d)
        return;
    if (d->peer)
        td_peer_bye(d->peer);
    td_peer_destroy(&d->peer);
    td_link_close(&d->link, true);
    if (d->is_thread) {
        uint64_t one = 1;
        ssize_t n = write(d->stop_fd, &one, sizeof one);
        (void)n;
        pthread_join(d->thread, NULL);
    }
    if (d->stop_fd >= 0)
        close(d->stop_fd);
    td_remote_draft_destroy(&d->remote);
    td_drafter_destroy(&d->drafter);
    td_vocab_map_destroy(&d->map);
    td_model_close(&d->model);
    td_transport_destroy(&d->transport);
    td_free(d);
    *drafting = NULL;
}

td_link *td_draft_client_link(td_draft_client *d) { return d->link; }
uint64_t td_draft_client_next_us(const td_draft_client *d)
{
    return d->is_over ? UINT64_MAX : td_peer_next_us(d->peer);
}

bool td_draft_client_is_over(const td_draft_client *d) { return d->is_over; }

bool td_draft_client_step(td_draft_client *d, td_draft_client_event *event, td_err *err)
{
    *event = (td_draft_client_event){.type = TD_DRAFTING_NONE};
    if (d->is_over)
        return true;
    if (atomic_load(&d->is_dead)) {
        d->is_over = true;
        if (d->has_told)
            return true;
        event->type = TD_DRAFTING_LOST;
        event->reason = d->failure.message;
        return true;
    }
    do {
        if (!td_peer_step(d->peer, &d->event, err))
            return td_err_prepend(err, "draft");
        if (d->event.type != TD_PEER_REFUSED)
            break;
        /* A busy worker may be free later; one of another vocabulary never fits. */
        if (d->event.refusal == TD_WIRE_REFUSE_VOCAB)
            return td_err_set(err, TD_E_UNAVAILABLE,
                              "draft: %s; start the worker with --vocab-of and the target's file, "
                              "for it to translate",
                              d->event.reason);
        if (d->event.refusal == TD_WIRE_REFUSE_PROTOCOL)
            return td_err_set(err, TD_E_UNAVAILABLE, "draft: %s", d->event.reason);
        td_log_warn("draft: %s; trying again", d->event.reason);
    } while (true);
    switch (d->event.type) {
    case TD_PEER_JOINED:
        event->type = TD_DRAFTING_JOINED;
        d->has_told = false;
        break;
    case TD_PEER_LOST:
        event->type = TD_DRAFTING_LOST;
        event->reason = d->event.reason;
        d->has_told = true;
        break;
    case TD_PEER_NONE:
    case TD_PEER_REFUSED:
        break;
    case TD_PEER_MESSAGE:
        if (d->event.msg.type == TD_WIRE_DRAFT) {
            const td_wire_draft *draft = &d->event.msg.draft;
            *event = (td_draft_client_event){.type = TD_DRAFTING_DRAFT,
                                             .sequence = draft->sequence,
                                             .epoch = draft->epoch,
                                             .position = draft->position,
                                             .n = draft->n,
                                             .busy_us = draft->busy_us,
                                             .ids = draft->ids};
        }
        break;
    }
    return true;
}

static bool send(td_draft_client *d, const td_wire_msg *msg)
{
    td_err err = {0};
    if (td_peer_send(d->peer, msg, &err))
        return true;
    td_log_debug("draft: %s", err.message);
    return false;
}

bool td_draft_client_open(td_draft_client *d, uint32_t sequence, uint64_t stream,
                          const td_sampling_params *s)
{
    return send(d, &(td_wire_msg){.type = TD_WIRE_OPEN,
                                  .open = {.sequence = sequence,
                                           .stream = stream,
                                           .temperature = s->temperature,
                                           .top_k = s->top_k,
                                           .top_p = s->top_p,
                                           .min_p = s->min_p,
                                           .repeat_penalty = s->repeat_penalty,
                                           .repeat_last_n = s->repeat_last_n}});
}

bool td_draft_client_is_beyond(const td_draft_client *d, uint32_t position)
{
    td_peer_info info = td_peer_get_info(d->peer);
    return info.is_joined && position >= info.n_ctx;
}

bool td_draft_client_send(td_draft_client *d, const td_action *a)
{
    /* What lies beyond the draft's context is not told to it. */
    td_peer_info info = td_peer_get_info(d->peer);
    if (!info.is_joined)
        return false;
    uint32_t room = info.n_ctx > a->position ? info.n_ctx - a->position : 0;
    switch (a->kind) {
    case TD_ACT_DRAFT_FEED:
        return !room || send(d, &(td_wire_msg){.type = TD_WIRE_FEED,
                                               .feed = {a->sequence, a->epoch, a->position,
                                                        td_min_u32(a->n_tokens, room), a->tokens}});
    case TD_ACT_DRAFT_PROPOSE:
        TD_ASSERT(room > 0);
        return send(d, &(td_wire_msg){.type = TD_WIRE_PROPOSE,
                                      .propose = {a->sequence, a->epoch, a->position,
                                                  td_min_u32(a->k, room), a->goes_on}});
    case TD_ACT_DRAFT_CLOSE:
        return send(d, &(td_wire_msg){.type = TD_WIRE_CLOSE, .close = {a->sequence}});
    default:
        return true;
    }
}

const char *td_draft_client_device(const td_draft_client *d)
{
    return d->remote    ? td_remote_draft_device(d->remote)
           : d->drafter ? td_drafter_device(d->drafter)->spec
                        : "";
}

const td_device_info *td_draft_client_get_device(const td_draft_client *d)
{
    return d->drafter ? td_drafter_device(d->drafter) : NULL;
}

uint64_t td_draft_client_file_bytes(const td_draft_client *d)
{
    return d->model ? td_gguf_n_bytes(td_model_gguf(d->model)) : 0;
}

uint64_t td_draft_client_cpu_us(const td_draft_client *d)
{
    struct timespec t = {0};
    clockid_t clock;
    if (d->is_thread && pthread_getcpuclockid(d->thread, &clock) == 0)
        clock_gettime(clock, &t);
    uint64_t us = (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
    uint64_t computing_us = atomic_load(&d->computing_us);
    return us > computing_us ? us - computing_us : 0;
}

const td_drafter_stats *td_draft_client_get_stats(const td_draft_client *d)
{
    return d->drafter ? td_drafter_get_stats(d->drafter) : NULL;
}
