/* Sessions with stage workers, and what their caller waits for.
 *
 * A worker's session goes from greeting to planning, loading and streaming; each step is asked for
 * by the target's caller and answered by a message. One thread owns the links, from the first
 * greeting on, so that workers hear from us whatever the caller is busy with. */
#include "target/remote.h"

#include "base/check.h"
#include "base/mem.h"
#include "base/signals.h"
#include "target/remote_impl.h"
#include "target/target.h"
#include "transport/keys.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#define RETRY_US  1000000u    /* between greetings */
#define BUSY_US   200000u     /* after one that it answered, and was not free */
#define PLAN_US   3600000000u /* to open devices and count, and once to read the model's file */
#define LOAD_US   86400000000ull
#define PING_US   1000000u
#define TRACE_US  250000u  /* the same while there is a trace, with what was done since */
#define SILENT_US 4000000u /* without a word: lost */
#define STEP_US   100000u
#define FULL_US   200    /* a link had no room: when to try again */
#define LOOK_US   200000 /* between two looks at whether a signal came */
#define NO_ANSWER "no answer (is `tandem stage` there?)"
#define NOT_FREE  "; it was not free"

static uint64_t now_us(const td_remotes *r) { return td_clock_now_us(&r->clock); }

bool td_remote_draw(uint64_t *out, td_err *err)
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

void td_remote_lose(td_remotes *r, session *s, const char *reason)
{
    if (s->state == SESSION_LOST)
        return;
    td_err_set(&s->err, s->state > SESSION_GREETING ? TD_E_DEVICE_LOST : TD_E_UNAVAILABLE,
               "host %s (%s): %s", s->name, s->endpoint, reason);
    s->state = SESSION_LOST;
    td_err_set(&r->err, s->err.code, "%s", s->err.message);
    pthread_cond_broadcast(&r->changed);
    td_remote_pass_on(r);
}

/* -- what comes -------------------------------------------------------------------------------- */

static void greet(td_remotes *r, session *s)
{
    td_stage_msg m = {.type = r->is_draft ? TD_STAGE_HELLO_DRAFT : TD_STAGE_HELLO,
                      .hello = {.protocol = TD_STAGE_PROTOCOL}};
    snprintf(m.hello.build, sizeof m.hello.build, "tandem " TD_VERSION);
    s->next_us = now_us(r) + RETRY_US;
    td_link_reset(s->link, NULL); /* what was said before is another session's */
    s->way = (td_stage_way){.link = s->link};
    s->lend.n = 0;
    s->n_seen = 0;
    if (td_remote_draw(&s->way.session, NULL))
        td_stage_way_send(&s->way, &m, NULL); /* not there yet: the next one */
}

static void take_hello(td_remotes *r, session *s, const td_stage_hello_ok *h)
{
    char why[128];
    if (h->protocol != TD_STAGE_PROTOCOL) {
        snprintf(why, sizeof why, "it speaks protocol %u of stages; allowed: %u", h->protocol,
                 TD_STAGE_PROTOCOL);
        td_remote_lose(r, s, why);
        return;
    }
    s->hello = *h;
    s->state = SESSION_IDLE;
    pthread_cond_broadcast(&r->changed);
    s->next_us = now_us(r);
}

static void take_pong(td_remotes *r, session *s, const td_stage_ping *p)
{
    uint64_t now = now_us(r);
    for (uint32_t k = 0; k < r->n_runs && p->progress != s->progress; k++)
        r->runs[k].moved_us = now;
    s->progress = p->progress;
    s->n_pending = p->n_pending;
    td_remote_clock_add(&s->clock, p->echo_us, p->now_us, now);
    td_remote_offset at = td_remote_clock_find(&s->clock, now);
    int64_t off_us = at.offset_us - s->clock_us;
    if ((uint64_t)(off_us < 0 ? -off_us : off_us) > at.uncertainty_us)
        s->clock_us = at.offset_us;
}

static void set_state(td_remotes *r, session *s, session_state from, session_state to)
{
    if (s->state != from) {
        td_remote_lose(r, s, "it answers what was not asked");
        return;
    }
    s->state = to;
    pthread_cond_broadcast(&r->changed);
}

static void probe(td_remotes *r, session *s)
{
    td_err err = {0};
    if (s->state != SESSION_PROBING)
        return;
    if (!td_probes_send(&s->probes, &s->way, &err))
        td_remote_lose(r, s, err.message);
    else if (td_probes_is_over(&s->probes))
        set_state(r, s, SESSION_PROBING, SESSION_IDLE);
}

static void take_probed(td_remotes *r, session *s)
{
    if (s->state != SESSION_PROBING || !td_probes_take(&s->probes))
        td_remote_lose(r, s, "it answers what was not asked");
    else
        probe(r, s);
}

static void take_want(td_remotes *r, session *s, const td_stage_data *want)
{
    td_err err = {0};
    if (s->state != SESSION_PLANNING && s->state != SESSION_MEASURING)
        td_remote_lose(r, s, "it wants weights at the wrong time");
    else if (!td_lend_take(&s->lend, r->gguf, want, &err))
        td_remote_lose(r, s, err.message);
}

static void take_message(td_remotes *r, session *s, const td_stage_msg *m)
{
    uint32_t n_parts = s->plan.n_parts;
    switch (m->type) {
    case TD_STAGE_HELLO_OK:
        if (s->state == SESSION_GREETING)
            take_hello(r, s, &m->hello_ok);
        break;
    case TD_STAGE_FAIL:
        if (s->state == SESSION_GREETING && m->fail.code == TD_STAGE_FAIL_BUSY) {
            memcpy(s->busy, m->fail.reason, sizeof s->busy);
            s->next_us = now_us(r) + BUSY_US; /* it may be free soon: the next greeting */
            break;
        }
        if (m->fail.code == TD_STAGE_FAIL_MODEL || m->fail.code == TD_STAGE_FAIL_MEMORY ||
            s->state == SESSION_CHECKING || s->state == SESSION_MEASURING)
            td_err_set(&s->err, TD_E_UNAVAILABLE, "host %s (%s): %s", s->name, s->endpoint,
                       m->fail.reason); /* asking again would not help */
        td_remote_lose(r, s, m->fail.reason);
        break;
    case TD_STAGE_PLANNED:
        s->planned = m->planned;
        if (m->planned.n_parts == n_parts)
            set_state(r, s, SESSION_PLANNING, SESSION_PLANNED);
        else
            td_remote_lose(r, s, "it plans other parts than it was asked");
        break;
    case TD_STAGE_WANT:
        take_want(r, s, &m->data);
        break;
    case TD_STAGE_LOADING:
        s->loading = m->loading;
        pthread_cond_broadcast(&r->changed);
        break;
    case TD_STAGE_READY:
        s->ready = m->ready;
        if (m->ready.n_parts == n_parts)
            set_state(r, s, SESSION_LOADING, SESSION_READY);
        else
            td_remote_lose(r, s, "it loaded other parts than it was asked");
        break;
    case TD_STAGE_CHECKING:
        memcpy(s->checking, m->checking, sizeof s->checking);
        pthread_cond_broadcast(&r->changed);
        break;
    case TD_STAGE_REPORT:
        s->report.n_bytes = m->stream.n; /* within its limit, as was decoded */
        memcpy(s->report.bytes, m->stream.bytes, m->stream.n);
        set_state(r, s, s->state == SESSION_MEASURING ? SESSION_MEASURING : SESSION_CHECKING,
                  SESSION_IDLE);
        break;
    case TD_STAGE_PROBED:
        take_probed(r, s);
        break;
    case TD_STAGE_MET:
        s->met = m->met;
        set_state(r, s, SESSION_MEETING, SESSION_IDLE);
        break;
    case TD_STAGE_KEPT:
        td_remote_take_kept(r, s, m->kept);
        break;
    case TD_STAGE_FOUND:
        td_remote_take_found(r, s, &m->found);
        break;
    case TD_STAGE_EVENTS:
        td_remote_take_events(r, s, &m->events);
        break;
    case TD_STAGE_STREAM:
    case TD_STAGE_PIECE:
        td_remote_take_stream(r, s, m);
        break;
    case TD_STAGE_PONG:
        take_pong(r, s, &m->ping);
        break;
    case TD_STAGE_BYE:
        td_remote_lose(r, s, "the worker was stopped");
        break;
    default:
        td_remote_lose(r, s, "a message that a worker does not send");
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
            td_remote_lose(r, s, err.message);
            return;
        }
        if (!n_bytes)
            break;
        if (!td_stage_decode(r->bytes, n_bytes, &m, &err)) {
            td_remote_lose(r, s, err.message);
        } else if (m.session != s->way.session) {
            continue; /* of a greeting before */
        } else if (m.seq != s->n_seen + 1 && s->state == SESSION_GREETING) {
            continue; /* the answer was lost: there will be another greeting */
        } else if (m.seq != s->n_seen + 1) {
            td_remote_lose(r, s, "messages were lost");
        } else {
            s->n_seen = m.seq;
            s->heard_us = now_us(r);
            take_message(r, s, &m);
        }
    }
    if (was_cut && s->state > SESSION_GREETING)
        td_remote_lose(r, s, "the connection broke");
}

/* -- the thread -------------------------------------------------------------------------------- */

static void mind_time(td_remotes *r, session *s)
{
    uint64_t now = now_us(r);
    td_err err = {0};
    if (s->state == SESSION_LOST)
        return;
    if (s->state > SESSION_GREETING && now - s->heard_us > SILENT_US) {
        td_remote_lose(r, s, "no word from it for 4 s");
        return;
    }
    if (s->is_due) {
        s->is_due = !td_stage_way_send(&s->way, &s->due, &err);
        if (s->is_due && s->due.type == TD_STAGE_FIND && err.code == TD_E_AGAIN)
            return; /* the stream has filled the link: later */
        if (s->is_due)
            td_remote_lose(r, s, err.message);
        s->is_due = false;
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
    td_remote_ask_events(r, s);
    s->next_us = now + (r->events ? TRACE_US : PING_US);
}

static void lend(td_remotes *r, session *s)
{
    td_err err = {0};
    bool is_lending = s->state == SESSION_PLANNING || s->state == SESSION_MEASURING;
    if (is_lending && !td_lend_send(&s->lend, r->gguf, &s->way, &err))
        td_remote_lose(r, s, err.message);
}

/* What to wait for, and how long. */
static int64_t look(const td_remotes *r, td_link_poll_item *items)
{
    uint64_t now = now_us(r), next = now + STEP_US;
    items[0] = (td_link_poll_item){.fd = r->fd};
    for (uint32_t i = 0; i < r->n_sessions; i++) {
        const session *s = &r->sessions[i];
        bool is_lost = s->state == SESSION_LOST; /* nobody reads what it still sends */
        items[i + 1] =
            is_lost ? (td_link_poll_item){.fd = -1} : (td_link_poll_item){.link = s->link};
        if (!is_lost && s->next_us < next)
            next = s->next_us;
        if (!is_lost && s->lend.n && now + FULL_US < next)
            next = now + FULL_US;
    }
    int64_t wait_us = next > now ? (int64_t)(next - now) : 0;
    for (uint32_t i = 0; i < r->n_runs; i++)
        if (td_remote_is_sending(&r->runs[i]) && wait_us > FULL_US)
            wait_us = FULL_US;
    return wait_us;
}

/* Waits for whatever comes first, and takes it. */
static bool step(td_remotes *r, td_err *err)
{
    td_link_poll_item items[TD_STAGES_MAX + 1];
    uint64_t count;
    pthread_mutex_lock(&r->lock);
    int64_t wait_us = look(r, items);
    pthread_mutex_unlock(&r->lock);
    if (!td_link_poll(items, r->n_sessions + 1, wait_us, err))
        return false;
    if (items[0].is_readable && read(r->fd, &count, sizeof count) < 0 && errno != EAGAIN)
        return td_err_set(err, TD_E_IO, "eventfd: %s", strerror(errno));
    pthread_mutex_lock(&r->lock);
    for (uint32_t i = 0; i < r->n_sessions; i++) {
        if (items[i + 1].is_readable)
            receive(r, &r->sessions[i]);
        mind_time(r, &r->sessions[i]);
        lend(r, &r->sessions[i]);
        probe(r, &r->sessions[i]);
    }
    for (uint32_t i = 0; i < r->n_runs; i++)
        td_remote_step_run(&r->runs[i]);
    pthread_mutex_unlock(&r->lock);
    return true;
}

static void *remotes_main(void *arg)
{
    td_remotes *r = arg;
    td_err err = {0};
    while (!atomic_load(&r->is_stopping)) {
        if (step(r, &err))
            continue;
        pthread_mutex_lock(&r->lock);
        for (uint32_t i = 0; i < r->n_sessions; i++)
            td_remote_lose(r, &r->sessions[i], err.message);
        pthread_mutex_unlock(&r->lock);
        td_err_clear(&err);
    }
    return NULL;
}

static bool start_thread(td_remotes *r, td_err *err)
{
    sigset_t signals, before; /* those are the main thread's */
    sigfillset(&signals);
    pthread_sigmask(SIG_SETMASK, &signals, &before);
    int rc = pthread_create(&r->thread, NULL, remotes_main, r);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    r->is_thread = rc == 0;
    return r->is_thread || td_err_set(err, TD_E_NOMEM, "remote stages: %s", strerror(rc));
}

/* -- from outside ------------------------------------------------------------------------------ */

typedef struct {
    bool (*progress)(void *user, uint64_t done, uint64_t total); /* of loading; or NULL */
    void *user;
} teller;

static struct timespec after(uint64_t us)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    uint64_t ns = (uint64_t)t.tv_nsec + us % 1000000 * 1000;
    t.tv_sec += (time_t)(us / 1000000 + ns / 1000000000);
    t.tv_nsec = (long)(ns % 1000000000);
    return t;
}

void td_remote_wait(td_remotes *r, uint64_t us)
{
    struct timespec soon = after(us < LOOK_US ? us : LOOK_US);
    pthread_cond_timedwait(&r->changed, &r->lock, &soon);
}

/* Under the lock: waits until all are in a state, for at most so long since bytes last came. A
 * signal ends it (TD_E_AGAIN). */
static bool wait_for(td_remotes *r, session_state state, uint64_t most_us, const char *what,
                     teller t, td_err *err)
{
    uint64_t before = UINT64_MAX, end_us = 0;
    for (;;) {
        const session *slow = NULL;
        uint64_t done = 0, total = 0;
        if (r->err.code != TD_OK)
            return td_err_set(err, r->err.code, "%s", r->err.message);
        for (uint32_t i = 0; i < r->n_sessions; i++) {
            const session *s = &r->sessions[i];
            slow = s->state < state ? s : slow;
            done += s->loading.done;
            total += s->loading.total;
        }
        if (t.progress && total && !t.progress(t.user, done, total))
            return td_err_set(err, TD_E_AGAIN, "loading was stopped");
        if (done != before) {
            end_us = now_us(r) + most_us;
            before = done;
        }
        if (!slow)
            return true;
        if (td_signals_pending())
            return td_err_set(err, TD_E_AGAIN, "stopped by a signal");
        bool is_busy = slow->state == SESSION_GREETING && slow->busy[0];
        if (now_us(r) > end_us)
            return td_err_set(err, TD_E_UNAVAILABLE, "host %s (%s): %s%s within %u s", slow->name,
                              slow->endpoint, is_busy ? slow->busy : what, is_busy ? NOT_FREE : "",
                              (unsigned)(most_us / 1000000));
        td_remote_wait(r, LOOK_US);
    }
}

bool td_remote_wait_idle(td_remotes *r, bool (*tell)(void *user, const session *s), void *user,
                         td_err *err)
{
    const session *s = &r->sessions[0];
    while (r->err.code == TD_OK && s->state < SESSION_IDLE) {
        if (td_signals_pending())
            return td_err_set(err, TD_E_AGAIN, "stopped by a signal");
        if (tell && !tell(user, s))
            return td_err_set(err, TD_E_AGAIN, "stopped");
        td_remote_wait(r, LOOK_US);
    }
    return r->err.code == TD_OK || td_err_set(err, r->err.code, "%s", r->err.message);
}

static td_remotes *create(const td_host *hosts, uint32_t n_hosts, bool is_draft, const char *key,
                          td_err *err)
{
    TD_ASSERT(n_hosts >= 1 && n_hosts <= TD_STAGES_MAX);
    td_remotes *r = td_alloc(1, sizeof *r, err);
    if (!r)
        return NULL;
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->changed, NULL);
    r->clock = td_clock_real();
    r->is_draft = is_draft;
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
    is_ok = is_ok && start_thread(r, err);
    if (!is_ok)
        td_remotes_destroy(&r);
    return r;
}

td_remotes *td_remotes_create(const td_host *hosts, uint32_t n_hosts, const char *key, td_err *err)
{
    return create(hosts, n_hosts, false, key, err);
}

td_remotes *td_remotes_create_draft(const td_host *host, const char *key, td_err *err)
{
    return create(host, 1, true, key, err);
}

bool td_remotes_join(td_remotes *r, td_err *err)
{
    pthread_mutex_lock(&r->lock);
    bool is_ok = wait_for(r, SESSION_IDLE, TD_TARGET_PATIENCE_US, NO_ANSWER, (teller){0}, err);
    pthread_mutex_unlock(&r->lock);
    return is_ok;
}

void td_remotes_await(td_remotes *r, uint32_t n_needed, uint64_t within_us)
{
    uint64_t end_us = now_us(r) + within_us;
    pthread_mutex_lock(&r->lock);
    for (uint64_t now; !td_signals_pending() && (now = now_us(r)) < end_us;) {
        uint32_t n_there = 0;
        for (uint32_t i = 0; i < n_needed; i++)
            n_there += r->sessions[i].state == SESSION_IDLE;
        if (n_there == n_needed)
            break;
        td_remote_wait(r, end_us - now);
    }
    pthread_mutex_unlock(&r->lock);
}

const td_stage_hello_ok *td_remotes_find(td_remotes *r, uint32_t worker, td_err *why)
{
    pthread_mutex_lock(&r->lock);
    const session *s = &r->sessions[worker];
    bool is_there = s->state != SESSION_GREETING && s->state != SESSION_LOST;
    if (s->state == SESSION_LOST)
        td_err_set(why, s->err.code, "%s", s->err.message);
    else if (!is_there)
        td_err_set(why, TD_E_UNAVAILABLE, "host %s (%s): %s%s", s->name, s->endpoint,
                   s->busy[0] ? s->busy : NO_ANSWER, s->busy[0] ? NOT_FREE : "");
    pthread_mutex_unlock(&r->lock);
    return is_there ? &s->hello : NULL;
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
    td_free(r->events);
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

bool td_remotes_plan(td_remotes *r, const td_stage_plan *plans, const td_layout_params *params,
                     td_stage_planned *out, td_err *err)
{
    const teller t = {params->progress, params->user};
    pthread_mutex_lock(&r->lock);
    for (uint32_t i = 0; i < r->n_sessions; i++) {
        session *s = &r->sessions[i];
        s->plan = plans[i];
        s->loading = (td_stage_loading){0};
        s->due = (td_stage_msg){.type = TD_STAGE_PLAN, .plan = plans[i]};
        s->is_due = true;
        if (s->state != SESSION_LOST)
            s->state = SESSION_PLANNING;
    }
    r->gguf = td_model_gguf(params->model);
    td_remotes_wake(r);
    bool is_ok = wait_for(r, SESSION_PLANNED, PLAN_US, "no plan", t, err);
    for (uint32_t i = 0; i < r->n_sessions; i++)
        out[i] = r->sessions[i].planned;
    pthread_mutex_unlock(&r->lock);
    return is_ok;
}

bool td_remote_write_next(const session *s, char out[TD_STAGE_ENDPOINT_MAX + 1], td_err *err)
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
static bool make_load(const td_remotes *r, const td_remote_run *at, uint32_t i, uint64_t *ticket,
                      td_stage_load *load, td_err *err)
{
    const session *s = &r->sessions[at->first + i];
    load->ticket = *ticket;
    *ticket = 0;
    if (i + 1 == at->n)
        return true;
    if (!td_remote_draw(ticket, err) || !td_remote_write_next(&s[1], load->next, err))
        return td_err_prepend(err, "host %s", s[1].name);
    load->next_ticket = *ticket;
    return true;
}

bool td_remotes_load(td_remotes *r, uint32_t n_ctx, uint32_t n_pages, const td_remote_run *runs,
                     uint32_t n_runs, const td_stage_limits *limits, uint32_t n_stages, td_err *err)
{
    bool is_ok = true;
    run *set = td_alloc(n_runs, sizeof *set, err);
    if (!set)
        return false;
    pthread_mutex_lock(&r->lock);
    for (uint32_t k = 0; is_ok && k < n_runs; k++) {
        uint64_t ticket = 0;
        td_remote_begin_run(r, &set[k], &runs[k], limits, n_stages);
        for (uint32_t i = 0; is_ok && i < runs[k].n; i++) {
            session *s = &r->sessions[runs[k].first + i];
            s->due =
                (td_stage_msg){.type = TD_STAGE_LOAD, .load = {.n_ctx = n_ctx, .n_pages = n_pages}};
            is_ok = make_load(r, &runs[k], i, &ticket, &s->due.load, err);
            s->is_due = is_ok;
            s->loading = (td_stage_loading){0};
            if (s->state != SESSION_LOST)
                s->state = SESSION_LOADING;
        }
    }
    r->runs = set;
    r->n_runs = n_runs;
    pthread_mutex_unlock(&r->lock);
    td_remotes_wake(r);
    return is_ok;
}

void td_remotes_load_draft(td_remotes *r, uint32_t n_ctx, uint64_t ticket)
{
    session *s = &r->sessions[0];
    pthread_mutex_lock(&r->lock);
    s->due = (td_stage_msg){.type = TD_STAGE_LOAD, .load = {.n_ctx = n_ctx, .ticket = ticket}};
    s->is_due = true;
    if (s->state != SESSION_LOST)
        s->state = SESSION_LOADING;
    pthread_mutex_unlock(&r->lock);
    td_remotes_wake(r);
}

bool td_remotes_wait(td_remotes *r, bool (*progress)(void *user, uint64_t done, uint64_t total),
                     void *user, td_err *err)
{
    pthread_mutex_lock(&r->lock);
    bool is_ok = wait_for(r, SESSION_READY, LOAD_US, "not loaded", (teller){progress, user}, err);
    pthread_mutex_unlock(&r->lock);
    return is_ok;
}
