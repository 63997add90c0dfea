#include "target/draft_seat.h"

#include "target/cache_wire.h"

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "draft/worker.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct td_draft_seat {
    uint32_t name; /* the upper half of the session numbers that are its coordinator's */
    td_drafter *drafter;
    char endpoint[64];
    td_draft_worker_params worker;
    int stop_fd;
    pthread_t thread;
    bool is_thread;
    td_err failure;      /* of the thread, */
    atomic_bool is_dead; /* to be read once this is set */
    td_link *inner;      /* to the thread */
    td_link *outer;
    td_route route;  /* of the coordinator's last message; 0: none came */
    size_t n_unsent; /* bytes of an answer that the link had no room for */
    uint8_t bytes[TD_WIRE_MESSAGE_MAX];
};

bool td_draft_seat_check(const td_stage_plan *p, const td_model *model, td_err *err)
{
    uint32_t n_layer = td_model_hparams(model)->n_layer;
    bool is_whole = p->n_parts == 1 && !p->measure && !p->head && !p->first_stage &&
                    !p->parts[0].first && p->parts[0].last + 1u == n_layer &&
                    p->experts_device == TD_STAGE_ANY;
    return (is_whole && p->n_ctx) ||
           td_err_set(err, TD_E_DATA,
                      "a draft of layers %u..%u in %u parts, context %u; allowed: 0..%u in one, "
                      "context 1 and up",
                      p->parts[0].first, p->parts[p->n_parts - 1].last, p->n_parts, p->n_ctx,
                      n_layer - 1);
}

/* The cache grows with the context, evenly but for rounding to pages. */
bool td_draft_seat_weigh(const td_stage_plan *p, const td_model *model, const char *spec,
                         td_layout_guest *out, uint64_t *budget_bytes, td_err *err)
{
    td_cache_types kv;
    td_device *dev = td_cache_from_wire(&p->kv, &kv, err) ? td_device_create(spec, err) : NULL;
    if (!dev)
        return false;
    uint32_t most = td_min_u32(p->n_ctx, td_model_hparams(model)->n_ctx_train);
    uint32_t least = td_min_u32(most, TD_PAGE_POSITIONS);
    td_forward_params f = td_forward_drafting(model, dev, &kv, p->n_slots, least);
    uint64_t n_least = td_forward_bytes(&f);
    f.n_ctx = most;
    uint64_t more = td_forward_bytes(&f) - n_least;
    *out = (td_layout_guest){.spec = spec, .n_bytes = n_least, .n_ctx = most};
    if (most > least)
        out->position_bytes = (more + most - least - 1) / (most - least);
    *budget_bytes = td_device_get_info(dev)->capacity.usable_bytes;
    td_device_destroy(&dev);
    return n_least <= *budget_bytes ||
           td_err_set(err, TD_E_NOMEM, "the draft: %llu MiB on %s, where %llu MiB are there",
                      (unsigned long long)(n_least >> 20), spec,
                      (unsigned long long)(*budget_bytes >> 20));
}

static void *seat_main(void *arg)
{
    td_draft_seat *s = arg;
    if (!td_draft_worker_run(&s->worker, &s->failure))
        atomic_store(&s->is_dead, true);
    return NULL;
}

static bool start(td_draft_seat *s, td_err *err)
{
    sigset_t signals, before; /* those are the main thread's */
    sigfillset(&signals);
    pthread_sigmask(SIG_SETMASK, &signals, &before);
    int rc = pthread_create(&s->thread, NULL, seat_main, s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    s->is_thread = rc == 0;
    return s->is_thread || td_err_set(err, TD_E_NOMEM, "draft: %s", strerror(rc));
}

td_draft_seat *td_draft_seat_open(const td_stage_plan *p, uint64_t ticket, const td_model *model,
                                  const char *spec, td_prefix_store *prompts,
                                  td_transport *transport, td_link *link, uint32_t number,
                                  td_err *err)
{
    td_cache_types kv;
    td_draft_seat *s = td_cache_from_wire(&p->kv, &kv, err) ? td_alloc(1, sizeof *s, err) : NULL;
    if (!s)
        return NULL;
    s->name = (uint32_t)(ticket >> 32);
    s->outer = link;
    s->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    s->drafter = td_drafter_create(
        &(td_drafter_params){.model = model,
                             .spec = spec,
                             .kv = kv,
                             .n_slots = p->n_slots,
                             .n_ctx = td_min_u32(p->n_ctx, td_model_hparams(model)->n_ctx_train),
                             .prompts = prompts},
        err);
    /* Its own and none before's, whose name is let go of only a little later; its memory and its
     * ticket may be the same again. */
    snprintf(s->endpoint, sizeof s->endpoint, "inproc://draft-seat-%p-%u", (void *)link, number);
    s->worker = (td_draft_worker_params){.drafter = s->drafter,
                                         .tokenizer = td_model_tokenizer(model),
                                         .transport = transport,
                                         .endpoint = s->endpoint,
                                         .stop_fd = s->stop_fd};
    bool is_ok = s->drafter &&
                 (s->stop_fd >= 0 || td_err_set(err, TD_E_IO, "eventfd: %s", strerror(errno))) &&
                 start(s, err);
    s->inner = is_ok ? td_link_open(transport, s->endpoint, TD_LINK_CONNECT, err) : NULL;
    if (!s->inner)
        td_draft_seat_close(&s);
    return s;
}

void td_draft_seat_close(td_draft_seat **seat)
{
    td_draft_seat *s = *seat;
    if (!s)
        return;
    if (s->is_thread) {
        uint64_t one = 1;
        ssize_t n = write(s->stop_fd, &one, sizeof one);
        (void)n;
        pthread_join(s->thread, NULL);
    }
    td_link_close(&s->inner, false);
    if (s->stop_fd >= 0)
        close(s->stop_fd);
    td_drafter_destroy(&s->drafter);
    td_free(s);
    *seat = NULL;
}

td_link *td_draft_seat_link(td_draft_seat *s) { return s->inner; }
bool td_draft_seat_is_sending(const td_draft_seat *s) { return s->n_unsent > 0; }

/* One that does not fit is dropped: its number is missed at the other end, and the session begun
 * anew. */
bool td_draft_seat_take(td_draft_seat *s, const void *bytes, size_t n_bytes, td_route route)
{
    uint64_t session;
    if (!td_wire_peek(bytes, n_bytes, &session) || (uint32_t)(session >> 32) != s->name)
        return false;
    s->route = route;
    td_link_send(s->inner, 0, bytes, n_bytes, NULL);
    return true;
}

bool td_draft_seat_step(td_draft_seat *s, td_err *err)
{
    if (atomic_load(&s->is_dead))
        return td_err_set(err, s->failure.code, "%s", s->failure.message);
    while (true) {
        td_err why = {0};
        td_route from;
        if (!s->n_unsent && !td_link_recv(s->inner, s->bytes, &s->n_unsent, &from, err))
            return false;
        if (!s->n_unsent)
            return true;
        if (!td_link_send(s->outer, s->route, s->bytes, s->n_unsent, &why) &&
            why.code == TD_E_AGAIN)
            return true;
        s->n_unsent = 0; /* sent, or for somebody who has gone */
    }
}
