#include "draft/worker.h"

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "draft/translator.h"
#include "transport/peer.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define N_ITEMS 64u /* messages taken from the link and not yet done */

/* A message of the session, or "forget everything" when a session began or was lost. */
typedef struct {
    bool is_reset;
    td_wire_msg msg;
    uint32_t ids[TD_WIRE_IDS_MAX];
} item;

typedef struct {
    uint32_t sequence, epoch, position, n;
    uint64_t session;
    uint32_t ids[TD_WIRE_DRAFT_MAX];
} answer;

/* Two rings between the link's thread (l) and the computing one (c). */
typedef struct {
    const td_draft_worker_params *params;
    td_translator *translator; /* the computing thread's */
    pthread_mutex_t lock;
    pthread_cond_t filled;
    item *items; /* [N_ITEMS]; head..tail-1 wait */
    uint64_t head, tail;
    answer *answers; /* [N_ITEMS] */
    uint64_t answer_head, answer_tail;
    bool is_stopping;
    uint64_t progress; /* pieces of work done */
    int done_fd;
    td_err err; /* of the computing thread */
} worker;

uint64_t td_draft_vocab_hash(void *tokenizer, uint32_t a, uint32_t b)
{
    return td_tokenizer_hash(tokenizer, a, b);
}

/* -- the computing thread -------------------------------------------------------------------- */

/* Has the sequence of the proposal at the head been fed, closed or reset by a later message? */
static bool is_overtaken(worker *w, const item *proposal)
{
    bool is_so = false;
    pthread_mutex_lock(&w->lock);
    for (uint64_t i = w->head + 1; i < w->tail && !is_so; i++) {
        const item *later = &w->items[i % N_ITEMS];
        const td_wire_msg *m = &later->msg;
        is_so = later->is_reset ||
                (m->type == TD_WIRE_FEED && m->feed.sequence == proposal->msg.propose.sequence) ||
                (m->type == TD_WIRE_CLOSE && m->close.sequence == proposal->msg.propose.sequence);
    }
    pthread_mutex_unlock(&w->lock);
    return is_so;
}

static void push_answer(worker *w, const answer *a)
{
    pthread_mutex_lock(&w->lock);
    /* As many answers as proposals can be unsent; the link's thread takes them soon. */
    if (w->answer_tail - w->answer_head < N_ITEMS)
        w->answers[w->answer_tail++ % N_ITEMS] = *a;
    pthread_mutex_unlock(&w->lock);
}

/* False only when the device failed; a senseless message is the peer's fault and is dropped. */
static bool perform(worker *w, item *it)
{
    td_translator *d = w->translator;
    td_err err = {0};
    const td_wire_msg *m = &it->msg;
    bool is_ok = true;
    if (it->is_reset) {
        td_translator_reset(d);
        return true;
    }
    switch (m->type) {
    case TD_WIRE_OPEN: {
        td_sampling_params sampling = {.temperature = m->open.temperature,
                                       .top_k = m->open.top_k,
                                       .top_p = m->open.top_p,
                                       .min_p = m->open.min_p,
                                       .repeat_penalty = m->open.repeat_penalty,
                                       .repeat_last_n = m->open.repeat_last_n};
        is_ok = td_translator_open(d, m->open.sequence, m->open.stream, &sampling, &err);
        break;
    }
    case TD_WIRE_FEED:
        is_ok = td_translator_feed(d, m->feed.sequence, m->feed.position, it->ids, m->feed.n, &err);
        break;
    case TD_WIRE_PROPOSE: {
        const td_wire_propose *p = &m->propose;
        answer a = {.sequence = p->sequence,
                    .epoch = p->epoch,
                    .position = p->position,
                    .session = m->session};
        if (!is_overtaken(w, it))
            is_ok = td_translator_propose(d, p->sequence, p->position,
                                          td_min_u32(p->k, TD_WIRE_DRAFT_MAX), a.ids, &a.n, &err);
        push_answer(w, &a);
        break;
    }
    case TD_WIRE_CLOSE:
        td_translator_close(d, m->close.sequence);
        break;
    default:
        break;
    }
    if (!is_ok && err.code == TD_E_DATA) {
        td_log_warn("draft worker: message dropped: %s", err.message);
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
    for (bool is_ok = true; is_ok;) {
        pthread_mutex_lock(&w->lock);
        while (w->head == w->tail && !w->is_stopping)
            pthread_cond_wait(&w->filled, &w->lock);
        bool is_stopping = w->is_stopping;
        pthread_mutex_unlock(&w->lock);
        if (is_stopping)
            break;
        is_ok = perform(w, &w->items[w->head % N_ITEMS]);
        pthread_mutex_lock(&w->lock);
        w->head++;
        w->progress++;
        pthread_mutex_unlock(&w->lock);
        uint64_t one = 1;
        ssize_t n = write(w->done_fd, &one, sizeof one);
        (void)n;
    }
    return NULL;
}

/* -- the link's thread ----------------------------------------------------------------------- */

static uint32_t n_waiting(worker *w)
{
    pthread_mutex_lock(&w->lock);
    uint32_t n = (uint32_t)(w->tail - w->head);
    pthread_mutex_unlock(&w->lock);
    return n;
}

/* There is room: the caller asked. */
static void push_item(worker *w, const td_wire_msg *msg)
{
    item *it = &w->items[w->tail % N_ITEMS]; /* nobody else writes or reads this place now */
    it->is_reset = !msg;
    if (msg) {
        it->msg = *msg;
        if (msg->type == TD_WIRE_FEED)
            memcpy(it->ids, msg->feed.ids, msg->feed.n * sizeof *it->ids);
    }
    pthread_mutex_lock(&w->lock);
    w->tail++;
    pthread_cond_signal(&w->filled);
    pthread_mutex_unlock(&w->lock);
}

/* Sends finished drafts. Those of an older session have nobody to go to. */
static void send_answers(worker *w, td_peer *peer)
{
    td_peer_info info = td_peer_get_info(peer);
    pthread_mutex_lock(&w->lock);
    uint64_t progress = w->progress;
    uint32_t n_pending = (uint32_t)(w->tail - w->head);
    while (w->answer_head < w->answer_tail) {
        answer *a = &w->answers[w->answer_head % N_ITEMS];
        for (uint32_t i = 0; i < a->n; i++)
            if (a->ids[i] >= info.n_vocab) /* padding of ours that the other end lacks */
                a->n = i;
        if (info.is_joined && a->session == info.session) {
            td_err err = {0};
            td_wire_msg msg = {.type = TD_WIRE_DRAFT,
                               .draft = {a->sequence, a->epoch, a->position, a->n, a->ids}};
            if (!td_peer_send(peer, &msg, &err)) {
                if (err.code == TD_E_AGAIN)
                    break; /* the coordinator is slow: keep it */
                td_log_warn("draft worker: %s", err.message);
            }
        }
        w->answer_head++;
    }
    pthread_mutex_unlock(&w->lock);
    td_peer_set_progress(peer, progress, n_pending);
}

/* Takes events until there are none or no room for their work. Two places are kept for resets. */
static bool take_events(worker *w, td_peer *peer, td_err *err)
{
    td_peer_event event;
    while (n_waiting(w) + 2 < N_ITEMS) {
        if (!td_peer_step(peer, &event, err))
            return false;
        switch (event.type) {
        case TD_PEER_NONE:
            return true;
        case TD_PEER_JOINED:
            push_item(w, NULL);
            if (!w->params->is_quiet)
                td_log_info("draft worker: a coordinator joined");
            break;
        case TD_PEER_LOST:
            push_item(w, NULL);
            if (!w->params->is_quiet)
                td_log_info("draft worker: the coordinator left: %s", event.reason);
            break;
        case TD_PEER_REFUSED:
            td_log_warn("draft worker: refused a coordinator: %s", event.reason);
            break;
        case TD_PEER_MESSAGE:
            push_item(w, &event.msg);
            break;
        }
    }
    return true;
}

static bool serve(worker *w, td_link *link, td_peer *peer, const td_clock *clock, td_err *err)
{
    while (true) {
        if (!take_events(w, peer, err))
            return false;
        send_answers(w, peer);
        pthread_mutex_lock(&w->lock);
        if (w->err.code != TD_OK)
            td_err_set(err, w->err.code, "%s", w->err.message);
        bool has_failed = w->err.code != TD_OK;
        pthread_mutex_unlock(&w->lock);
        if (has_failed)
            return false;
        uint64_t now = td_clock_now_us(clock), next = td_peer_next_us(peer);
        int64_t wait_us = next == UINT64_MAX ? 1000000 : next > now ? (int64_t)(next - now) : 0;
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
    w.translator = td_translator_create(params->drafter, params->map, err);
    if (!w.translator)
        goto done;
    w.items = td_alloc(N_ITEMS, sizeof *w.items, err);
    w.answers = td_alloc(N_ITEMS, sizeof *w.answers, err);
    w.done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!w.items || !w.answers || w.done_fd < 0) {
        td_err_set(err, TD_E_IO, "eventfd: %s", strerror(errno));
        goto done;
    }
    link = td_link_open(params->transport, params->endpoint, TD_LINK_BIND, err);
    if (!link)
        goto done;
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
    is_thread = !pthread_create(&thread, NULL, compute_main, &w);
    is_ok = is_thread ? serve(&w, link, peer, &clock, err)
                      : td_err_set(err, TD_E_NOMEM, "draft worker: no thread");
    if (is_ok)
        td_peer_bye(peer);
done:
    if (is_thread) {
        pthread_mutex_lock(&w.lock);
        w.is_stopping = true;
        pthread_cond_signal(&w.filled);
        pthread_mutex_unlock(&w.lock);
        pthread_join(thread, NULL);
    }
    td_peer_destroy(&peer);
    td_link_close(&link, is_ok);
    if (w.done_fd >= 0)
        close(w.done_fd);
    td_translator_destroy(&w.translator);
    td_free(w.items);
    td_free(w.answers);
    pthread_mutex_destroy(&w.lock);
    pthread_cond_destroy(&w.filled);
    return is_ok;
}
