#include "draft/worker.h"

#include "base/check.h"
#include "base/log.h"
#include "draft/requests.h"
#include "draft/vocab_drafter.h"
#include "transport/peer.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

/* The requests stand between the link's thread and the computing one, under the lock. */
typedef struct {
    const td_draft_worker_params *params;
    td_vocab_drafter *translator; /* the computing thread's */
    pthread_mutex_t lock;
    pthread_cond_t filled;
    td_requests *requests;
    bool is_stopping;
    bool has_dropped;  /* the computing thread's: a message of this session */
    uint64_t progress; /* pieces of work done */
    int done_fd;
    td_err err; /* of the computing thread */
} worker;

uint64_t td_draft_vocab_hash(void *tokenizer, uint32_t a, uint32_t b)
{
    return td_tokenizer_hash(tokenizer, a, b);
}

/* Wakes the link's thread. */
static void tell(worker *w)
{
    uint64_t one = 1;
    ssize_t n = write(w->done_fd, &one, sizeof one);
    (void)n;
}

/* -- the computing thread -------------------------------------------------------------------- */

static bool open_sequence(td_vocab_drafter *t, const td_wire_open *o, td_err *err)
{
    td_sampling_params sampling = {.temperature = o->temperature,
                                   .top_k = o->top_k,
                                   .top_p = o->top_p,
                                   .min_p = o->min_p,
                                   .repeat_penalty = o->repeat_penalty,
                                   .repeat_last_n = o->repeat_last_n};
    return td_vocab_drafter_open(t, o->sequence, o->stream, &sampling, err);
}

static bool take_message(td_vocab_drafter *t, const td_wire_msg *m, td_err *err)
{
    switch (m->type) {
    case TD_WIRE_OPEN:
        return open_sequence(t, &m->open, err);
    case TD_WIRE_FEED:
        return td_vocab_drafter_feed(t, m->feed.sequence, m->feed.position, m->feed.ids, m->feed.n,
                                     err);
    case TD_WIRE_CLOSE:
        td_vocab_drafter_close(t, m->close.sequence);
        return true;
    default:
        return true;
    }
}

/* False only when the device failed; a senseless message is the peer's fault and is dropped. */
static bool perform(worker *w, const td_work *work)
{
    td_err err = {0};
    bool is_ok = true;
    switch (work->kind) {
    case TD_WORK_RESET:
        w->has_dropped = false;
        td_vocab_drafter_reset(w->translator);
        break;
    case TD_WORK_MESSAGE:
        is_ok = take_message(w->translator, work->message, &err);
        break;
    case TD_WORK_BEGIN:
        is_ok = td_vocab_drafter_begin(w->translator, work->jobs[0], &err);
        break;
    case TD_WORK_STEP:
        is_ok = td_vocab_drafter_step(w->translator, work->jobs, work->n_jobs, &err);
        break;
    }
    if (!is_ok && err.code == TD_E_DATA) {
        /* Once a session: where one is dropped, as of a sequence too many, there are thousands. */
        td_log_write(w->has_dropped ? TD_LOG_DEBUG : TD_LOG_WARN,
                     "draft worker: messages dropped, the first because %s", err.message);
        w->has_dropped = true;
        return true;
    }
    if (!is_ok) {
        pthread_mutex_lock(&w->lock);
        w->err = err;
        pthread_mutex_unlock(&w->lock);
    }
    return is_ok;
}

static void *compute_main(void *arg)
{
    worker *w = arg;
    td_work work;
    for (bool is_ok = true; is_ok;) {
        pthread_mutex_lock(&w->lock);
        while (!w->is_stopping && !td_requests_next(w->requests, &work))
            pthread_cond_wait(&w->filled, &w->lock);
        bool is_stopping = w->is_stopping;
        pthread_mutex_unlock(&w->lock);
        if (is_stopping)
            break;
        is_ok = perform(w, &work);
        pthread_mutex_lock(&w->lock);
        td_requests_done(w->requests);
        w->progress++;
        bool is_told = td_requests_answer(w->requests) || !is_ok;
        pthread_mutex_unlock(&w->lock);
        if (is_told)
            tell(w);
    }
    return NULL;
}

/* -- the link's thread ----------------------------------------------------------------------- */

/* Sends finished proposals, as far as the session takes them. */
static void send_answers(worker *w, td_peer *peer)
{
    td_peer_info info = td_peer_get_info(peer);
    const td_proposal *p;
    pthread_mutex_lock(&w->lock);
    uint64_t progress = w->progress;
    uint32_t n_waiting = td_requests_n_waiting(w->requests);
    while ((p = td_requests_answer(w->requests))) {
        td_err err = {0};
        uint32_t n = 0;
        while (n < p->n && p->ids[n] < info.n_vocab) /* padding of ours that the other end lacks */
            n++;
        td_wire_msg msg = {.type = TD_WIRE_DRAFT,
                           .draft = {.sequence = p->sequence,
                                     .epoch = p->epoch,
                                     .position = p->position,
                                     .n = n,
                                     .busy_us = p->busy_us,
                                     .ids = p->ids}};
        if (info.is_joined && !td_peer_send(peer, &msg, &err)) {
            if (err.code == TD_E_AGAIN)
                break; /* the coordinator is slow: keep it */
            td_log_warn("draft worker: %s", err.message);
        }
        td_requests_pop(w->requests);
    }
    pthread_mutex_unlock(&w->lock);
    td_peer_set_progress(peer, progress, n_waiting);
}

static bool has_room(worker *w)
{
    pthread_mutex_lock(&w->lock);
    bool is_so = td_requests_has_room(w->requests);
    pthread_mutex_unlock(&w->lock);
    return is_so;
}

static void put(worker *w, const td_wire_msg *msg_or_reset)
{
    pthread_mutex_lock(&w->lock);
    if (msg_or_reset)
        td_requests_put(w->requests, msg_or_reset);
    else
        td_requests_reset(w->requests);
    pthread_cond_signal(&w->filled);
    pthread_mutex_unlock(&w->lock);
}

/* Takes events until there are none or no room for their work. */
static bool take_events(worker *w, td_peer *peer, td_err *err)
{
    td_peer_event event;
    while (has_room(w)) {
        if (!td_peer_step(peer, &event, err))
            return false;
        switch (event.type) {
        case TD_PEER_NONE:
            return true;
        case TD_PEER_JOINED:
            put(w, NULL);
            if (!w->params->is_here)
                td_log_info("draft worker: a coordinator joined");
            break;
        case TD_PEER_LOST:
            put(w, NULL);
            if (!w->params->is_here)
                td_log_info("draft worker: the coordinator left: %s", event.reason);
            break;
        case TD_PEER_REFUSED:
            td_log_warn("draft worker: refused a coordinator: %s", event.reason);
            break;
        case TD_PEER_MESSAGE:
            put(w, &event.msg);
            break;
        }
    }
    return true;
}

static uint64_t cpu_us(void)
{
    struct timespec t = {0};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

/* One piece of work in the link's own thread; false when there is none. */
static bool compute_here(worker *w)
{
    td_work work;
    if (!td_requests_next(w->requests, &work))
        return false;
    uint64_t start_us = w->params->computing_us ? cpu_us() : 0;
    perform(w, &work); /* what fails is seen in w->err */
    td_requests_done(w->requests);
    w->progress++;
    if (w->params->computing_us)
        atomic_fetch_add(w->params->computing_us, cpu_us() - start_us);
    return true;
}

static bool serve(worker *w, td_link *link, td_peer *peer, const td_clock *clock, td_err *err)
{
    while (true) {
        send_answers(w, peer); /* first, so that a ping is told the progress of now */
        if (!take_events(w, peer, err))
            return false;
        pthread_mutex_lock(&w->lock);
        if (w->err.code != TD_OK)
            td_err_set(err, w->err.code, "%s", w->err.message);
        bool has_failed = w->err.code != TD_OK;
        pthread_mutex_unlock(&w->lock);
        if (has_failed)
            return false;
        uint64_t now = td_clock_now_us(clock), next = td_peer_next_us(peer);
        int64_t wait_us = next == UINT64_MAX ? 1000000 : next > now ? (int64_t)(next - now) : 0;
        if (w->params->is_here && compute_here(w)) {
            struct pollfd stop = {.fd = w->params->stop_fd, .events = POLLIN};
            if (poll(&stop, 1, 0) > 0)
                return true;
            continue;
        }
        td_link_poll_item items[] = {
            {.link = link}, {.fd = w->params->stop_fd}, {.fd = w->done_fd}};
        if (!td_link_poll(items, TD_COUNT(items), wait_us, err))
            return false;
        if (items[1].is_readable)
            return true;
        uint64_t count;
        if (items[2].is_readable && read(w->done_fd, &count, sizeof count) < 0 && errno != EAGAIN)
            return td_err_set(err, TD_E_IO, "eventfd: %s", strerror(errno));
    }
}

bool td_draft_worker_run(const td_draft_worker_params *params, td_err *err)
{
    worker w = {.params = params, .done_fd = -1};
    td_clock clock = td_clock_real();
    td_link *link = NULL;
    td_peer *peer = NULL;
    pthread_t thread;
    bool is_thread = false, is_ok = false;
    pthread_mutex_init(&w.lock, NULL);
    pthread_cond_init(&w.filled, NULL);
    w.translator = td_vocab_drafter_create(params->drafter, params->map, err);
    if (!w.translator)
        goto done;
    w.requests = td_requests_create(err);
    w.done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!w.requests || w.done_fd < 0) {
        td_err_set(err, TD_E_IO, "eventfd: %s", strerror(errno));
        goto done;
    }
    link = td_link_open(params->transport, params->endpoint, TD_LINK_BIND, err);
    if (!link)
        goto done;
    if (params->title)
        td_log_info("draft worker: %s at %s", params->title, params->endpoint);
    peer = td_peer_create(
        &(td_peer_params){.is_worker = true,
                          .n_vocab = td_tokenizer_get_info(params->tokenizer)->n_vocab,
                          .n_ctx = td_drafter_n_ctx(params->drafter),
                          .max_draft = TD_WIRE_DRAFT_MAX,
                          .build = "tandem " TD_VERSION,
                          .hash = td_draft_vocab_hash,
                          .hash_user = (void *)(uintptr_t)params->tokenizer},
        link, &clock, err);
    if (!peer)
        goto done;
    is_thread = !params->is_here && !pthread_create(&thread, NULL, compute_main, &w);
    is_ok = is_thread || params->is_here ? serve(&w, link, peer, &clock, err)
                                         : td_err_set(err, TD_E_NOMEM, "draft worker: no thread");
    if (is_ok)
        td_peer_bye(peer);
    else /* at once, or every new sequence would wait for it until its deadline */
        td_peer_fail(peer, err ? err->message : "it failed");
done:
    if (is_thread) {
        pthread_mutex_lock(&w.lock);
        w.is_stopping = true;
        pthread_cond_signal(&w.filled);
        pthread_mutex_unlock(&w.lock);
        pthread_join(thread, NULL);
    }
    td_peer_destroy(&peer);
    td_link_close(&link, true); /* also what it says when it failed shall arrive */
    if (w.done_fd >= 0)
        close(w.done_fd);
    td_vocab_drafter_destroy(&w.translator);
    td_requests_destroy(&w.requests);
    pthread_mutex_destroy(&w.lock);
    pthread_cond_destroy(&w.filled);
    return is_ok;
}
