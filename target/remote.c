/* Sessions with stage workers, and the streams through them.
 *
 * A worker's session goes from greeting to planning, loading and streaming; each step is asked for
 * by the target's caller and answered by a message. Before streaming, waiting is done by stepping
 * the links in the caller's own thread; from load on a thread does it. */
#include "target/remote.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "target/stage_stream.h"
#include "transport/keys.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#define JOIN_US   5000000u    /* until all workers have greeted */
#define RETRY_US  1000000u    /* between greetings */
#define PLAN_US   3600000000u /* to open devices and count, and once to read the model's file */
#define PING_US   1000000u
#define SILENT_US 4000000u /* without a word: lost */
#define STEP_US   100000u
#define ASTRAY_US 30000000u  /* a batch is under way, and no worker has any */
#define HUNG_US   300000000u /* a worker has one, and does not get on */

typedef enum {
    SESSION_GREETING,
    SESSION_IDLE,
    SESSION_PLANNING,
    SESSION_PLANNED,
    SESSION_LOADING,
    SESSION_READY,
    SESSION_LOST
} session_state;

typedef struct {
    char name[TD_HOST_NAME_MAX], endpoint[TD_STAGE_ENDPOINT_MAX + 1];
    td_link *link;
    td_stage_way way;
    uint64_t n_seen, heard_us, next_us; /* next_us: the next greeting or ping */
    session_state state;
    td_stage_hello_ok hello;
    td_stage_planned planned;
    td_stage_ready ready;
    td_stage_loading loading;
    int64_t clock_us; /* its clock less ours, by the quickest ping so far */
    uint64_t trip_us; /* which took so long; 0: none yet */
    uint64_t progress;
    uint32_t n_pending; /* by its last word: batches done, and held */
    td_err err;         /* of a lost one */
} session;

typedef struct {
    td_remote_run at;
    uint32_t first_stage, end_stage;
    bool is_first, is_last; /* of the model's layers */
    job *head, *tail;       /* in transit, in order */
    uint64_t moved_us;      /* when something last got on, or nothing was in transit */
    job *unsent;            /* of those the first that the stream did not take yet; or NULL */
    td_stage_out out;
    td_stage_in in;
    td_remotes *all;
} run;

struct td_remotes {
    td_transport *transport;
    td_clock clock;
    uint32_t n_sessions, n_runs;
    session sessions[TD_STAGES_MAX];
    run *runs; /* [n_runs] */
    td_stage_plan plans[TD_STAGES_MAX];
    int fd; /* wakes the thread */
    pthread_t thread;
    bool is_thread;
    atomic_bool is_stopping;
    /* What the thread tells the caller, under the lock. */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint32_t n_ready;
    td_err err; /* of the first that was lost */
    uint8_t bytes[TD_WIRE_MESSAGE_MAX];
};

static uint64_t now_us(const td_remotes *r) { return td_clock_now_us(&r->clock); }

static bool draw(uint64_t *out, td_err *err)
{
    *out = 0;
    while (*out == 0)
        if (getrandom(out, sizeof *out, 0) != sizeof *out && errno != EINTR)
            return td_err_set(err, TD_E_IO, "no randomness from the system: %s", strerror(errno));
    return true;
}

void td_remotes_wake(void *remotes)
{
    const td_remotes *r = remotes;
    uint64_t one = 1;
    ssize_t n = write(r->fd, &one, sizeof one);
    (void)n; /* the counter cannot overflow: the thread drains it */
}

/* -- losing ------------------------------------------------------------------------------------ */

static void pass_on(td_remotes *r);

static void lose(td_remotes *r, session *s, const char *reason)
{
    if (s->state == SESSION_LOST)
        return;
    s->state = SESSION_LOST;
    td_err_set(&s->err, TD_E_UNAVAILABLE, "host %s (%s): %s", s->name, s->endpoint, reason);
    pthread_mutex_lock(&r->lock);
    td_err_set(&r->err, s->err.code, "%s", s->err.message);
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
    pass_on(r);
}

/* -- what comes -------------------------------------------------------------------------------- */

static void greet(td_remotes *r, session *s)
{
    td_stage_msg m = {.type = TD_STAGE_HELLO, .hello = {.protocol = TD_STAGE_PROTOCOL}};
    snprintf(m.hello.build, sizeof m.hello.build, "tandem " TD_VERSION);
    s->next_us = now_us(r) + RETRY_US;
    td_link_reset(s->link, NULL); /* what was said before is another session's */
    s->way = (td_stage_way){.link = s->link};
    s->n_seen = 0;
    if (draw(&s->way.session, NULL))
        td_stage_way_send(&s->way, &m, NULL); /* not there yet: the next one */
}

static void take_hello(td_remotes *r, session *s, const td_stage_hello_ok *h)
{
    char why[128];
    if (h->protocol != TD_STAGE_PROTOCOL) {
        snprintf(why, sizeof why, "it speaks protocol %u of stages; allowed: %u", h->protocol,
                 TD_STAGE_PROTOCOL);
        lose(r, s, why);
        return;
    }
    s->hello = *h;
    s->state = SESSION_IDLE;
    s->next_us = now_us(r);
}

static void take_pong(td_remotes *r, session *s, const td_stage_ping *p)
{
    uint64_t now = now_us(r);
    for (uint32_t k = 0; k < r->n_runs && p->progress != s->progress; k++)
        r->runs[k].moved_us = now;
    s->progress = p->progress;
    s->n_pending = p->n_pending;
    if (p->echo_us > now)
        return;
    uint64_t trip = now - p->echo_us;
    if (s->trip_us && trip > s->trip_us)
        return;
    s->trip_us = trip ? trip : 1;
    s->clock_us = (int64_t)(p->now_us - (p->echo_us + trip / 2));
}

/* The run whose results this worker brings; NULL: none. */
static run *run_of(td_remotes *r, const session *s)
{
    uint32_t i = (uint32_t)(s - r->sessions);
    for (uint32_t k = 0; k < r->n_runs; k++)
        if (i == r->runs[k].at.first + r->runs[k].at.n - 1)
            return &r->runs[k];
    return NULL;
}

static void take_stream(td_remotes *r, session *s, const td_stage_msg *m)
{
    run *at = run_of(r, s);
    td_err err = {0};
    if (!at || s->state != SESSION_READY)
        td_err_set(&err, TD_E_DATA, "a %s at the wrong time", td_stage_type_name(m->type));
    else
        td_stage_in_take(&at->in, m, &err);
    if (err.code != TD_OK)
        lose(r, s, err.message);
}

static void set_state(td_remotes *r, session *s, session_state from, session_state to)
{
    if (s->state != from) {
        lose(r, s, "it answers what was not asked");
        return;
    }
    s->state = to;
    if (to != SESSION_READY)
        return;
    pthread_mutex_lock(&r->lock);
    r->n_ready++;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

static void take_message(td_remotes *r, session *s, const td_stage_msg *m)
{
    uint32_t n_parts = r->plans[s - r->sessions].n_parts;
    switch (m->type) {
    case TD_STAGE_HELLO_OK:
        if (s->state == SESSION_GREETING)
            take_hello(r, s, &m->hello_ok);
        break;
    case TD_STAGE_FAIL:
        if (s->state == SESSION_GREETING && m->fail.code == TD_STAGE_FAIL_BUSY)
            break; /* it may be free soon: the next greeting */
        lose(r, s, m->fail.reason);
        break;
    case TD_STAGE_PLANNED:
        s->planned = m->planned;
        if (m->planned.n_parts == n_parts)
            set_state(r, s, SESSION_PLANNING, SESSION_PLANNED);
        else
            lose(r, s, "it plans other parts than it was asked");
        break;
    case TD_STAGE_LOADING:
        pthread_mutex_lock(&r->lock);
        s->loading = m->loading;
        pthread_cond_broadcast(&r->changed);
        pthread_mutex_unlock(&r->lock);
        break;
    case TD_STAGE_READY:
        s->ready = m->ready;
        if (m->ready.n_parts == n_parts)
            set_state(r, s, SESSION_LOADING, SESSION_READY);
        else
            lose(r, s, "it loaded other parts than it was asked");
        break;
    case TD_STAGE_STREAM:
    case TD_STAGE_PIECE:
        take_stream(r, s, m);
        break;
    case TD_STAGE_PONG:
        take_pong(r, s, &m->ping);
        break;
    case TD_STAGE_BYE:
        lose(r, s, "the worker was stopped");
        break;
    default:
        lose(r, s, "a message that a worker does not send");
    }
}

static void receive(td_remotes *r, session *s)
{
    bool was_cut = td_link_was_cut(s->link); /* what it still brought is there, and goes first */
    while (s->state != SESSION_LOST) {
        size_t n_bytes;
        td_route route;
        td_stage_msg m;
        td_err err = {0};
        if (!td_link_recv(s->link, r->bytes, &n_bytes, &route, &err)) {
            lose(r, s, err.message);
            return;
        }
        if (!n_bytes)
            break;
        if (!td_stage_decode(r->bytes, n_bytes, &m, &err)) {
            lose(r, s, err.message);
        } else if (m.session != s->way.session) {
            continue; /* of a greeting before */
        } else if (m.seq != s->n_seen + 1) {
            lose(r, s, "messages were lost");
        } else {
            s->n_seen = m.seq;
            s->heard_us = now_us(r);
            take_message(r, s, &m);
        }
    }
    if (was_cut && s->state > SESSION_GREETING)
        lose(r, s, "the connection broke");
}

/* -- jobs -------------------------------------------------------------------------------------- */

static bool is_lost(const run *at)
{
    for (uint32_t i = 0; i < at->at.n; i++)
        if (at->all->sessions[at->at.first + i].state == SESSION_LOST)
            return true;
    return false;
}

static const td_err *error_of(const run *at)
{
    for (uint32_t i = 0; i < at->at.n; i++)
        if (at->all->sessions[at->at.first + i].state == SESSION_LOST)
            return &at->all->sessions[at->at.first + i].err;
    return NULL;
}

/* A batch that the workers will not answer: one that failed before, or all when one is lost. */
static bool is_over(const run *at, const micro_batch *b)
{
    return b->err.code != TD_OK || is_lost(at);
}

/* Gives the next stage what nothing waits for any more; `answered` has just come back. */
static void pass_run(run *at, const micro_batch *answered)
{
    while (at->head) {
        job *j = at->head;
        bool is_batch = j->kind == JOB_FORWARD;
        if (is_batch && j->batch != answered) {
            if (!is_over(at, j->batch))
                return;
            const td_err *why = error_of(at);
            if (j->batch->err.code == TD_OK)
                j->batch->err = *why;
        }
        if (j == at->unsent && !is_lost(at) && !(is_batch && j->batch->err.code))
            return;
        at->head = (job *)j->item.next;
        at->unsent = at->unsent == j ? at->head : at->unsent;
        if (!at->head)
            at->tail = NULL;
        bool is_awaited = is_batch || j->kind == JOB_STOP;
        td_queue_push(at->at.out, &j->item);
        if (is_awaited && at->at.wake)
            at->at.wake(at->at.user);
    }
}

static void pass_on(td_remotes *r)
{
    for (uint32_t i = 0; i < r->n_runs; i++)
        pass_run(&r->runs[i], NULL);
}

/* The oldest batch in transit, which is the one that comes back. */
static micro_batch *begin_back(void *user, const td_stage_batch *told, td_err *err)
{
    const run *at = user;
    const job *j = at->head;
    while (j && j->kind != JOB_FORWARD)
        j = (const job *)j->item.next;
    bool is_known = j && j->batch->id == told->id && j->batch->is_sent && at->out.b != j->batch &&
                    told->n_out == j->batch->n_out && told->n_rows <= j->batch->n_rows &&
                    told->n_spans == at->end_stage &&
                    told->is_prefill == (j->batch->mode == TD_MODE_PREFILL);
    if (!is_known) {
        td_err_set(err, TD_E_DATA, "it answers batch %llu; allowed: %llu, as it was sent",
                   (unsigned long long)told->id, j ? (unsigned long long)j->batch->id : 0);
        return NULL;
    }
    for (uint32_t i = at->first_stage; i < at->end_stage; i++) { /* by our clock */
        uint32_t w = at->at.first;
        while (i >= at->all->plans[w].first_stage + (uint32_t)at->all->plans[w].n_parts)
            w++;
        uint64_t clock = (uint64_t)at->all->sessions[w].clock_us;
        j->batch->spans[i] =
            (td_target_span){told->spans[i].start_us - clock, told->spans[i].end_us - clock};
    }
    return j->batch;
}

static bool end_back(void *user, const job *j, td_err *err)
{
    run *at = user;
    if (j->kind != JOB_FORWARD)
        return td_err_set(err, TD_E_DATA, "it sends a job; allowed: answers");
    at->moved_us = now_us(at->all);
    pass_run(at, j->batch);
    return true;
}

/* Sends jobs in transit that are not sent yet, as far as the link takes them. */
static void send_jobs(run *at)
{
    session *s = &at->all->sessions[at->at.first];
    td_err err = {0};
    const td_stage_form form = {.n_embd = at->is_first ? 0 : at->in.limits.n_embd,
                                .n_spans = at->first_stage};
    while (at->unsent) {
        job *j = at->unsent;
        bool is_sent = is_lost(at) || j->kind == JOB_STOP ||
                       (j->kind == JOB_FORWARD && j->batch->err.code != TD_OK);
        if (!is_sent) {
            is_sent = td_stage_out_put(&at->out, j, &form);
            if (is_sent && j->kind == JOB_FORWARD)
                j->batch->is_sent = true;
            if (!td_stage_out_flush(&at->out, &err)) {
                lose(at->all, s, err.message);
                return;
            }
            if (!is_sent && !td_stage_out_is_idle(&at->out))
                return;
            if (!is_sent)
                continue; /* there is room now */
        }
        at->unsent = (job *)j->item.next;
        pass_run(at, NULL);
    }
    if (!is_lost(at) && !td_stage_out_flush(&at->out, &err))
        lose(at->all, s, err.message);
}

static void take_jobs(run *at)
{
    for (job *j; (j = (job *)td_queue_try_pop(at->at.in));) {
        j->item.next = NULL;
        if (at->tail)
            at->tail->item.next = &j->item;
        else
            at->head = j;
        at->tail = j;
        at->unsent = at->unsent ? at->unsent : j;
    }
    send_jobs(at);
    pass_run(at, NULL);
}

/* Tells the workers of batches that were cancelled after they were sent. */
static void send_cancels(run *at)
{
    for (job *j = at->head; j && j != at->unsent && !is_lost(at); j = (job *)j->item.next) {
        bool is_due = j->kind == JOB_FORWARD && !j->batch->is_cancel_sent &&
                      atomic_load_explicit(&j->batch->is_cancelled, memory_order_acquire);
        for (uint32_t i = 0; is_due && i < at->at.n; i++) {
            td_stage_msg m = {.type = TD_STAGE_CANCEL, .cancel = j->batch->id};
            td_stage_way_send(&at->all->sessions[at->at.first + i].way, &m, NULL);
        }
        if (is_due)
            j->batch->is_cancel_sent = true; /* what was not sent only costs time */
    }
}

/* -- stepping ---------------------------------------------------------------------------------- */

static void mind_time(td_remotes *r, session *s)
{
    uint64_t now = now_us(r);
    if (s->state == SESSION_LOST)
        return;
    if (s->state > SESSION_GREETING && now - s->heard_us > SILENT_US) {
        lose(r, s, "no word from it for 4 s");
        return;
    }
    if (now < s->next_us)
        return;
    if (s->state == SESSION_GREETING) {
        greet(r, s);
        return;
    }
    td_stage_msg m = {.type = TD_STAGE_PING, .ping = {.echo_us = now}};
    td_stage_way_send(&s->way, &m, NULL);
    s->next_us = now + PING_US;
}

/* The transport may stand, and pings be answered, and a batch be lost or a device hang all the
 * same. */
static void mind_progress(run *at)
{
    td_remotes *r = at->all;
    uint64_t now = now_us(r);
    bool is_any_pending = false;
    for (uint32_t i = 0; i < at->at.n; i++)
        is_any_pending |= r->sessions[at->at.first + i].n_pending > 0;
    if (!at->head || is_lost(at))
        at->moved_us = now;
    else if (now - at->moved_us > (is_any_pending ? HUNG_US : ASTRAY_US))
        lose(r, &r->sessions[at->at.first],
             is_any_pending ? "a worker does not get on" : "a batch was lost on its way");
}

/* Waits for whatever comes first, and takes it. */
static bool step(td_remotes *r, td_err *err)
{
    td_link_poll_item items[TD_STAGES_MAX + 1] = {{.fd = r->fd}};
    uint64_t now = now_us(r), next = now + STEP_US;
    for (uint32_t i = 0; i < r->n_sessions; i++) {
        items[i + 1] = (td_link_poll_item){.link = r->sessions[i].link};
        if (r->sessions[i].state != SESSION_LOST && r->sessions[i].next_us < next)
            next = r->sessions[i].next_us;
    }
    bool is_any_due = false;
    for (uint32_t i = 0; i < r->n_runs; i++)
        is_any_due |= !is_lost(&r->runs[i]) && !td_stage_out_is_idle(&r->runs[i].out);
    int64_t wait_us = next > now ? (int64_t)(next - now) : 0;
    if (is_any_due && wait_us > 200) /* the link had no room: soon again */
        wait_us = 200;
    if (!td_link_poll(items, r->n_sessions + 1, wait_us, err))
        return false;
    uint64_t count;
    if (items[0].is_readable && read(r->fd, &count, sizeof count) < 0 && errno != EAGAIN)
        return td_err_set(err, TD_E_IO, "eventfd: %s", strerror(errno));
    for (uint32_t i = 0; i < r->n_sessions; i++) {
        if (items[i + 1].is_readable)
            receive(r, &r->sessions[i]);
        mind_time(r, &r->sessions[i]);
    }
    for (uint32_t i = 0; i < r->n_runs; i++) {
        take_jobs(&r->runs[i]);
        send_cancels(&r->runs[i]);
        mind_progress(&r->runs[i]);
    }
    return true;
}

static void *remotes_main(void *arg)
{
    td_remotes *r = arg;
    td_err err = {0};
    while (!atomic_load(&r->is_stopping))
        if (!step(r, &err)) {
            for (uint32_t i = 0; i < r->n_sessions; i++)
                lose(r, &r->sessions[i], err.message);
            td_err_clear(&err);
        }
    return NULL;
}

/* Steps in the caller's thread until all are in a state, for at most so long. */
static bool wait_for(td_remotes *r, session_state state, uint64_t most_us, const char *what,
                     td_err *err)
{
    for (uint64_t end = now_us(r) + most_us;;) {
        const session *slow = NULL;
        for (uint32_t i = 0; i < r->n_sessions; i++) {
            const session *s = &r->sessions[i];
            if (s->state == SESSION_LOST)
                return td_err_set(err, s->err.code, "%s", s->err.message);
            if (s->state < state)
                slow = s;
        }
        if (!slow)
            return true;
        if (now_us(r) > end)
            return td_err_set(err, TD_E_UNAVAILABLE, "host %s (%s): %s within %u s", slow->name,
                              slow->endpoint, what, (unsigned)(most_us / 1000000));
        if (!step(r, err))
            return false;
    }
}

/* -- from outside ------------------------------------------------------------------------------ */

td_remotes *td_remotes_create(const td_host *hosts, uint32_t n_hosts, const char *key, td_err *err)
{
    TD_ASSERT(n_hosts >= 1 && n_hosts <= TD_STAGES_MAX);
    td_remotes *r = td_alloc(1, sizeof *r, err);
    if (!r)
        return NULL;
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->changed, NULL);
    r->clock = td_clock_real();
    r->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    r->transport = td_transport_create(err);
    if (r->fd < 0)
        td_err_set(err, TD_E_IO, "eventfd: %s", strerror(errno));
    bool is_ok = r->transport && r->fd >= 0;
    if (is_ok)
        td_transport_set_key(r->transport, key);
    for (uint32_t i = 0; is_ok && i < n_hosts; i++) {
        session *s = &r->sessions[i];
        snprintf(s->name, sizeof s->name, "%s", hosts[i].name);
        snprintf(s->endpoint, sizeof s->endpoint, "%s", hosts[i].endpoint);
        s->link = td_link_open(r->transport, hosts[i].endpoint, TD_LINK_CONNECT, err);
        is_ok = s->link || td_err_prepend(err, "host %s", s->name);
        s->next_us = now_us(r);
        s->way.link = s->link;
        r->n_sessions++;
    }
    if (!is_ok ||
        !wait_for(r, SESSION_IDLE, JOIN_US, "no answer (is `tandem stage` there, and free?)", err))
        td_remotes_destroy(&r);
    return r;
}

void td_remotes_destroy(td_remotes **remotes)
{
    td_remotes *r = *remotes;
    if (!r)
        return;
    atomic_store(&r->is_stopping, true);
    if (r->is_thread) {
        td_remotes_wake(r);
        pthread_join(r->thread, NULL);
    }
    for (uint32_t i = 0; i < r->n_sessions; i++) {
        session *s = &r->sessions[i];
        bool is_there = s->link && s->state > SESSION_GREETING && s->state != SESSION_LOST;
        if (is_there)
            td_stage_way_send(&s->way, &(td_stage_msg){.type = TD_STAGE_BYE}, NULL);
        td_link_close(&s->link, is_there);
    }
    td_transport_destroy(&r->transport);
    if (r->fd >= 0)
        close(r->fd);
    pthread_mutex_destroy(&r->lock);
    pthread_cond_destroy(&r->changed);
    td_free(r->runs);
    td_free(r);
    *remotes = NULL;
}

const td_stage_hello_ok *td_remotes_hello(const td_remotes *r, uint32_t worker)
{
    return &r->sessions[worker].hello;
}

const td_stage_ready *td_remotes_ready(const td_remotes *r, uint32_t worker)
{
    return &r->sessions[worker].ready;
}

bool td_remotes_plan(td_remotes *r, const td_stage_plan *plans, td_stage_planned *out, td_err *err)
{
    for (uint32_t i = 0; i < r->n_sessions; i++) {
        session *s = &r->sessions[i];
        td_stage_msg m = {.type = TD_STAGE_PLAN, .plan = plans[i]};
        r->plans[i] = plans[i];
        s->state = SESSION_PLANNING;
        if (!td_stage_way_send(&s->way, &m, err))
            return td_err_prepend(err, "host %s", s->name);
    }
    if (!wait_for(r, SESSION_PLANNED, PLAN_US, "no plan", err))
        return false;
    for (uint32_t i = 0; i < r->n_sessions; i++)
        out[i] = r->sessions[i].planned;
    return true;
}

/* Where a worker's neighbour finds it: with the key itself where we have a name or a file for it,
 * which mean nothing there. */
static bool write_next(const session *s, char out[TD_STAGE_ENDPOINT_MAX + 1], td_err *err)
{
    const char *comma = !strncmp(s->endpoint, "tcp://", 6) ? strchr(s->endpoint, ',') : NULL;
    int n = comma ? (int)(comma - s->endpoint) : (int)strlen(s->endpoint);
    char key[TD_KEY_TEXT] = "";
    if (comma && !td_keys_read_public(comma + 1, key, err))
        return false;
    n = snprintf(out, TD_STAGE_ENDPOINT_MAX + 1, "%.*s%s%s", n, s->endpoint, comma ? ",=" : "",
                 key);
    return n <= (int)TD_STAGE_ENDPOINT_MAX ||
           td_err_set(err, TD_E_USAGE, "its endpoint has %d bytes; allowed: %u", n,
                      TD_STAGE_ENDPOINT_MAX);
}

/* Where the session's stream comes from and goes: neighbours in a run talk to each other. */
static bool send_load(td_remotes *r, const run *at, uint32_t i, uint32_t n_ctx, uint32_t n_pages,
                      uint64_t *ticket, td_err *err)
{
    session *s = &r->sessions[at->at.first + i];
    td_stage_msg m = {.type = TD_STAGE_LOAD, .load = {.n_ctx = n_ctx, .n_pages = n_pages}};
    m.load.ticket = *ticket;
    *ticket = 0;
    if (i + 1 < at->at.n) {
        if (!draw(ticket, err))
            return false;
        m.load.next_ticket = *ticket;
        if (!write_next(&s[1], m.load.next, err))
            return td_err_prepend(err, "host %s", s[1].name);
    }
    s->state = SESSION_LOADING;
    return td_stage_way_send(&s->way, &m, err) || td_err_prepend(err, "host %s", s->name);
}

bool td_remotes_load(td_remotes *r, uint32_t n_ctx, uint32_t n_pages, const td_remote_run *runs,
                     uint32_t n_runs, const td_stage_limits *limits, uint32_t n_stages, td_err *err)
{
    r->runs = td_alloc(n_runs, sizeof *r->runs, err);
    if (!r->runs)
        return false;
    for (uint32_t k = 0; k < n_runs; k++) {
        run *at = &r->runs[k];
        uint32_t last = runs[k].first + runs[k].n - 1;
        uint64_t ticket = 0;
        at->at = runs[k];
        at->all = r;
        at->first_stage = r->plans[runs[k].first].first_stage;
        at->end_stage = r->plans[last].first_stage + (uint32_t)r->plans[last].n_parts;
        at->is_first = at->first_stage == 0;
        at->is_last = at->end_stage == n_stages;
        td_stage_out_begin(&at->out, &r->sessions[runs[k].first].way);
        at->in = (td_stage_in){.limits = *limits,
                               .is_of_results = at->is_last,
                               .begin = begin_back,
                               .done = end_back,
                               .user = at};
        for (uint32_t i = 0; i < runs[k].n; i++)
            if (!send_load(r, at, i, n_ctx, n_pages, &ticket, err))
                return false;
    }
    r->n_runs = n_runs;
    sigset_t signals, before; /* those are the main thread's */
    sigfillset(&signals);
    pthread_sigmask(SIG_SETMASK, &signals, &before);
    int rc = pthread_create(&r->thread, NULL, remotes_main, r);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    r->is_thread = rc == 0;
    return r->is_thread || td_err_set(err, TD_E_NOMEM, "remote stages: %s", strerror(rc));
}

bool td_remotes_wait(td_remotes *r, void (*progress)(void *user, uint64_t done, uint64_t total),
                     void *user, td_err *err)
{
    pthread_mutex_lock(&r->lock);
    while (r->n_ready < r->n_sessions && r->err.code == TD_OK) {
        uint64_t done = 0, total = 0;
        for (uint32_t i = 0; i < r->n_sessions; i++) {
            done += r->sessions[i].loading.done;
            total += r->sessions[i].loading.total;
        }
        if (progress && total)
            progress(user, done, total);
        pthread_cond_wait(&r->changed, &r->lock);
    }
    bool is_ok = r->err.code == TD_OK || td_err_set(err, r->err.code, "%s", r->err.message);
    pthread_mutex_unlock(&r->lock);
    return is_ok;
}
