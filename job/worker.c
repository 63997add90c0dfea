#include "job/worker.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/signals.h"
#include "job/spool.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#define LOOK_US       1000000u  /* where there is nothing to take, lines may come back */
#define RETRY_US_MIN  200000u   /* a database that is gone is tried again after so long */
#define RETRY_US_MAX  10000000u /* growing to this */
#define BATCH_US      100000u /* results wait so long for others, to be handed in with them */
#define LINES_MAX     128u /* taken at once */
#define HOLD_GROWTH   4u   /* so many times n_hold where lines are short: */
#define CLAIM_US      100000u /* those of a claim are to last so long */
#define PREFIX_RUN    256u   /* lines of one prefix in a row, before others have their turn */
#define NEXT_WAIT_NS  50000000l /* how often a reader looks whether it is to stop */

typedef struct result {
    struct result *next;
    td_job_result r; /* its texts lie behind */
    bool is_kept;    /* on the disk too */
    uint64_t put_us;
    size_t n_bytes;
    char texts[];
} result;

typedef struct {
    char id[TD_JOB_ID_MAX + 1];
    int64_t n, epoch; /* n 0: a free place */
} held;

struct td_worker {
    td_worker_params params;
    char name[TD_JOB_WORKER_MAX + 1];
    td_job_settings settings;
    td_clock clock;
    int fd;
    pthread_t thread;
    bool is_running;
    /* The thread's, once it runs: */
    td_db *db;
    td_spool *spool;
    uint64_t retry_at_us, retry_us, renew_at_us, look_at_us, claimed_us, prefix;
    uint32_t n_prefix;
    bool has_told, has_told_disk; /* that the database is gone, and results cannot be kept */
    pthread_mutex_t lock;
    pthread_cond_t to_thread, to_reader;
    /* Under the lock: */
    held *held; /* [HOLD_GROWTH * n_hold] */
    uint32_t n_held, hold; /* how many there are, are to be */
    td_job_line *ready; /* [HOLD_GROWTH * n_hold], in order */
    uint32_t n_ready;
    result *first, *last;
    size_t n_bytes; /* of results that wait */
    uint32_t n_results;
    bool is_wanted, is_ended, is_stopping;
    uint64_t stop_at_us;
    td_err failure; /* latched */
};

static uint64_t now_us(const td_worker *w) { return td_clock_now_us(&w->clock); }

static void tell(td_worker *w)
{
    uint64_t one = 1;
    ssize_t n = write(w->fd, &one, sizeof one);
    (void)n; /* it can only be full, which is readable too */
}

static void choose_name(char name[TD_JOB_WORKER_MAX + 1])
{
    char host[64] = "";
    uint32_t chance = 0;
    if (gethostname(host, sizeof host - 1) != 0 || !*host)
        snprintf(host, sizeof host, "host");
    for (char *c = host; *c; c++)
        if ((unsigned char)*c <= 0x20 || (unsigned char)*c >= 0x7f)
            *c = '?';
    if (getrandom(&chance, sizeof chance, GRND_NONBLOCK) != sizeof chance)
        chance = (uint32_t)td_clock_real_ns();
    snprintf(name, TD_JOB_WORKER_MAX + 1, "%s-%ld-%08x", host, (long)getpid(), chance);
}

td_worker *td_worker_open(const td_worker_params *params, td_err *err)
{
    td_worker *w = td_alloc(1, sizeof *w, err);
    if (!w)
        return NULL;
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->to_thread, &attributes);
    pthread_cond_init(&w->to_reader, &attributes);
    pthread_condattr_destroy(&attributes);
    w->params = *params;
    w->clock = td_clock_real();
    choose_name(w->name);
    w->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (w->fd < 0)
        td_err_set(err, TD_E_IO, "eventfd: %s", strerror(errno));
    bool is_ok = w->fd >= 0;
    w->hold = params->n_hold;
    size_t n_most = (size_t)HOLD_GROWTH * params->n_hold;
    is_ok = is_ok && (w->held = td_alloc(n_most, sizeof *w->held, err));
    is_ok = is_ok && (w->ready = td_alloc(n_most, sizeof *w->ready, err));
    is_ok = is_ok && (w->spool = td_spool_create(params->url, err));
    is_ok = is_ok && (w->db = td_db_open(params->url, false, err));
    if (!is_ok || !td_job_open(w->db, &w->settings, err))
        td_worker_close(&w, 0, NULL);
    return w;
}

const td_job_settings *td_worker_settings(const td_worker *w) { return &w->settings; }

const char *td_worker_name(const td_worker *w) { return w->name; }

/* -- results ----------------------------------------------------------------------------------- */

static char *put_text(char **at, const char *text)
{
    char *to = *at;
    size_t n = strlen(text) + 1;
    memcpy(to, text, n);
    *at += n;
    return to;
}

static bool enqueue(td_worker *w, const td_job_result *r, td_err *err)
{
    size_t n_bytes = strlen(r->result) + strlen(r->config_sha) + strlen(r->answer_sha) +
                     strlen(r->worker) + 4;
    result *q = td_alloc(1, sizeof *q + n_bytes, err);
    if (!q)
        return false;
    char *at = q->texts;
    q->r = *r;
    q->n_bytes = n_bytes;
    q->put_us = now_us(w);
    q->r.result = put_text(&at, r->result);
    q->r.config_sha = put_text(&at, r->config_sha);
    q->r.answer_sha = put_text(&at, r->answer_sha);
    q->r.worker = put_text(&at, r->worker);
    pthread_mutex_lock(&w->lock);
    *(w->last ? &w->last->next : &w->first) = q;
    w->last = q;
    w->n_bytes += n_bytes;
    w->n_results++;
    pthread_cond_signal(&w->to_thread);
    pthread_mutex_unlock(&w->lock);
    return true;
}

static bool adopt(void *user, const td_job_result *r, td_err *err) { return enqueue(user, r, err); }

/* The first ones, which nobody else takes off, and how many. */
static uint32_t first_results(td_worker *w, result **out)
{
    uint32_t n = 0;
    pthread_mutex_lock(&w->lock);
    for (result *q = w->first; q && n < TD_JOB_PUT_MAX; q = q->next)
        out[n++] = q;
    pthread_mutex_unlock(&w->lock);
    return n;
}

static void take_off(td_worker *w, uint32_t n)
{
    pthread_mutex_lock(&w->lock);
    bool had_room = w->n_bytes < TD_WORKER_ROOM;
    for (; n; n--) {
        result *q = w->first;
        w->first = q->next;
        if (!w->first)
            w->last = NULL;
        w->n_bytes -= q->n_bytes;
        w->n_results--;
        td_free(q);
    }
    if (!had_room && w->n_bytes < TD_WORKER_ROOM)
        tell(w);
    pthread_mutex_unlock(&w->lock);
}

/* In one transaction, which is nothing or all of them. */
static bool hand_in(td_worker *w, result **results, uint32_t n, td_err *err)
{
    td_job_taken taken[TD_JOB_PUT_MAX];
    const td_job_result *these[TD_JOB_PUT_MAX];
    for (uint32_t i = 0; i < n; i++)
        these[i] = &results[i]->r;
    if (!td_db_begin(w->db, err) || !td_job_put(w->db, these, n, taken, err) ||
        !td_db_commit(w->db, err)) {
        td_db_rollback(w->db);
        return false;
    }
    for (uint32_t i = 0; i < n; i++)
        if (taken[i] == TD_RESULT_DIFFERENT)
            td_log_error("line %lld: another worker with the same arithmetic has found another "
                         "text: one of the two devices is broken (`tandem check`)",
                         (long long)results[i]->r.n);
    return true;
}

/* When results are to be handed in; UINT64_MAX: there are none. */
static uint64_t hand_in_at(const td_worker *w)
{
    if (!w->first)
        return UINT64_MAX;
    return w->n_results >= TD_JOB_PUT_MAX || w->is_stopping ? 0 : w->first->put_us + BATCH_US;
}

static bool send_results(td_worker *w, bool *has_sent, td_err *err)
{
    result *results[TD_JOB_PUT_MAX];
    pthread_mutex_lock(&w->lock);
    bool is_due = hand_in_at(w) <= now_us(w);
    pthread_mutex_unlock(&w->lock);
    if (!is_due)
        return true;
    for (uint32_t n; (n = first_results(w, results)) > 0;) {
        if (!hand_in(w, results, n, err))
            return false;
        take_off(w, n);
        *has_sent = true;
    }
    td_spool_clear(w->spool);
    return true;
}

/* What cannot be handed in now outlives this process. */
static void keep_results(td_worker *w)
{
    pthread_mutex_lock(&w->lock);
    result *q = w->first;
    pthread_mutex_unlock(&w->lock);
    while (q) {
        td_err err = {0};
        if (!q->is_kept && !td_spool_add(w->spool, &q->r, &err)) {
            if (!w->has_told_disk)
                td_log_warn("%s; results wait in memory alone", err.message);
            w->has_told_disk = true;
            return;
        }
        q->is_kept = true;
        pthread_mutex_lock(&w->lock);
        q = q->next;
        pthread_mutex_unlock(&w->lock);
    }
}

/* -- the thread -------------------------------------------------------------------------------- */

static bool is_passing(const td_err *err)
{
    return err->code == TD_E_UNAVAILABLE || err->code == TD_E_AGAIN;
}

static void take_ready(td_worker *w, td_job_line *lines, uint32_t n)
{
    pthread_mutex_lock(&w->lock);
    for (uint32_t i = 0, at = 0; i < n; i++) {
        while (w->held[at].n)
            at++;
        memcpy(w->held[at].id, lines[i].id, sizeof w->held[at].id);
        w->held[at].n = lines[i].n;
        w->held[at].epoch = lines[i].epoch;
        w->ready[w->n_ready++] = lines[i];
        w->n_held++;
    }
    pthread_cond_signal(&w->to_reader);
    pthread_mutex_unlock(&w->lock);
}

static void remember_prefix(td_worker *w, const td_job_line *lines, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        w->n_prefix = lines[i].prefix == w->prefix ? w->n_prefix + 1 : 0;
        w->prefix = lines[i].prefix;
    }
    if (w->n_prefix >= PREFIX_RUN)
        w->prefix = w->n_prefix = 0;
}

/* Several at a time: a quarter of what is held, so that there is always some ahead. */
static bool is_taking(const td_worker *w)
{
    return w->is_wanted && w->n_ready == 0 && !w->is_stopping && !w->is_ended &&
           w->n_held <= w->hold - (w->hold + 3) / 4;
}

/* A claim costs the same for many lines as for few: where those of the last one were soon begun,
 * more are taken ahead, and fewer again where they last. */
static void adapt_hold(td_worker *w)
{
    uint64_t now = now_us(w), us = now - w->claimed_us;
    w->claimed_us = now;
    pthread_mutex_lock(&w->lock);
    if (us < CLAIM_US && w->hold < HOLD_GROWTH * w->params.n_hold)
        w->hold *= 2;
    else if (us > 4 * CLAIM_US && w->hold > w->params.n_hold)
        w->hold /= 2;
    pthread_mutex_unlock(&w->lock);
}

static bool take_lines(td_worker *w, td_err *err)
{
    td_job_line lines[LINES_MAX];
    pthread_mutex_lock(&w->lock);
    uint32_t room = is_taking(w) ? w->hold - w->n_held : 0;
    pthread_mutex_unlock(&w->lock);
    if (!room || now_us(w) < w->look_at_us)
        return true;
    room = room < LINES_MAX ? room : LINES_MAX;
    uint32_t n = 0;
    uint64_t n_open = 1;
    memset(lines, 0, sizeof lines);
    bool is_ok = td_job_claim(w->db, w->name, w->params.lease_s, w->prefix, lines, room, &n, err);
    if (!is_ok) {
        for (uint32_t i = 0; i < LINES_MAX; i++)
            td_job_line_free(&lines[i]);
        return false;
    }
    remember_prefix(w, lines, n);
    take_ready(w, lines, n);
    if (n) {
        adapt_hold(w);
        return true;
    }
    w->look_at_us = now_us(w) + LOOK_US;
    if (!td_job_count_open(w->db, &n_open, err))
        return false;
    pthread_mutex_lock(&w->lock);
    w->is_ended = n_open == 0;
    pthread_cond_signal(&w->to_reader);
    pthread_mutex_unlock(&w->lock);
    return true;
}

/* Everything that is due. */
static bool step(td_worker *w, td_err *err)
{
    bool has_sent = false;
    if (!send_results(w, &has_sent, err))
        return false;
    if (has_sent)
        w->look_at_us = 0; /* it may have been the last one */
    if (now_us(w) >= w->renew_at_us) {
        if (!td_job_renew(w->db, w->name, w->params.lease_s, err))
            return false;
        w->renew_at_us = now_us(w) + (uint64_t)(w->params.lease_s * 1e6 / 3);
    }
    return take_lines(w, err);
}

/* The database is gone, or has no room: results go to the disk, and it is tried again. */
static void fall_back(td_worker *w, const td_err *err)
{
    keep_results(w);
    w->retry_us = w->retry_us ? 2 * w->retry_us : RETRY_US_MIN;
    w->retry_us = w->retry_us < RETRY_US_MAX ? w->retry_us : RETRY_US_MAX;
    w->retry_at_us = now_us(w) + w->retry_us;
    if (!w->has_told)
        td_log_warn("%s; what was begun goes on, results wait until it is back", err->message);
    w->has_told = true;
}

static void come_back(td_worker *w)
{
    if (w->has_told)
        td_log_info("%s is back", td_db_name(w->db));
    w->has_told = false;
    w->retry_us = w->retry_at_us = 0;
}

/* Waits until there is something to do. */
static void wait_for_work(td_worker *w)
{
    uint64_t next = w->retry_at_us ? w->retry_at_us : w->renew_at_us;
    pthread_mutex_lock(&w->lock);
    if (!w->retry_at_us && is_taking(w) && w->look_at_us < next)
        next = w->look_at_us;
    if (!w->retry_at_us && hand_in_at(w) < next)
        next = hand_in_at(w);
    if (w->is_stopping && w->stop_at_us < next)
        next = w->stop_at_us;
    bool is_due = next <= now_us(w);
    if (!is_due && !(w->is_stopping && !w->first)) {
        struct timespec until = {(time_t)(next / 1000000), (long)(next % 1000000) * 1000};
        pthread_cond_timedwait(&w->to_thread, &w->lock, &until);
    }
    pthread_mutex_unlock(&w->lock);
}

static bool is_over(td_worker *w)
{
    pthread_mutex_lock(&w->lock);
    bool is_over = w->failure.code != TD_OK ||
                   (w->is_stopping && (!w->first || now_us(w) >= w->stop_at_us));
    pthread_mutex_unlock(&w->lock);
    return is_over;
}

static void latch(td_worker *w, const td_err *err)
{
    pthread_mutex_lock(&w->lock);
    w->failure = *err;
    tell(w);
    pthread_cond_signal(&w->to_reader);
    pthread_mutex_unlock(&w->lock);
}

static void *work_main(void *arg)
{
    td_worker *w = arg;
    while (!is_over(w)) {
        td_err err = {0};
        bool is_ok = true;
        if (now_us(w) >= w->retry_at_us) {
            is_ok = td_db_is_connected(w->db) || td_db_reconnect(w->db, &err);
            is_ok = is_ok && step(w, &err);
            if (is_ok)
                come_back(w);
            else if (is_passing(&err))
                fall_back(w, &err);
            else
                latch(w, &err);
        } else {
            keep_results(w);
        }
        wait_for_work(w);
    }
    keep_results(w);
    return NULL;
}

bool td_worker_begin(td_worker *w, const char *sha, const char *identity, char *demanded,
                     size_t n_demanded, td_err *err)
{
    if (!td_job_enter(w->db, w->name, sha, identity, demanded, n_demanded, err) ||
        !td_spool_adopt(w->spool, adopt, w, err))
        return false;
    w->is_running = !pthread_create(&w->thread, NULL, work_main, w);
    return w->is_running || td_err_set(err, TD_E_NOMEM, "no thread for the job's database");
}

/* -- the reader and the event loop ------------------------------------------------------------- */

static bool is_asked_to_stop(int stop_fd)
{
    struct pollfd p = {.fd = stop_fd, .events = POLLIN};
    return td_signals_pending() || (stop_fd >= 0 && poll(&p, 1, 0) > 0);
}

bool td_worker_next(td_worker *w, td_job_line *line, int stop_fd, td_err *err)
{
    bool is_stop = false;
    pthread_mutex_lock(&w->lock);
    w->is_wanted = true;
    pthread_cond_signal(&w->to_thread);
    while (!w->n_ready && !w->is_ended && w->failure.code == TD_OK && !is_stop) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += NEXT_WAIT_NS;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&w->to_reader, &w->lock, &until);
        is_stop = is_asked_to_stop(stop_fd);
    }
    bool has_line = w->n_ready > 0 && !is_stop;
    if (has_line) {
        *line = w->ready[0];
        memmove(w->ready, w->ready + 1, --w->n_ready * sizeof *w->ready);
    } else if (w->failure.code != TD_OK) {
        td_err_set(err, w->failure.code, "%s", w->failure.message);
    }
    w->is_wanted = false;
    pthread_mutex_unlock(&w->lock);
    return has_line;
}

bool td_worker_poll(td_worker *w, td_err *err)
{
    uint64_t count;
    ssize_t n = read(w->fd, &count, sizeof count);
    (void)n; /* not blocking: nothing to read is fine */
    pthread_mutex_lock(&w->lock);
    bool is_ok =
        w->failure.code == TD_OK || td_err_set(err, w->failure.code, "%s", w->failure.message);
    pthread_mutex_unlock(&w->lock);
    return is_ok;
}

bool td_worker_put(td_worker *w, const char *id, const td_job_result *r, td_err *err)
{
    td_job_result mine = *r;
    pthread_mutex_lock(&w->lock);
    uint32_t i = 0;
    uint32_t n_most = HOLD_GROWTH * w->params.n_hold;
    while (i < n_most && (!w->held[i].n || strcmp(w->held[i].id, id) != 0))
        i++;
    bool is_held = i < n_most;
    if (is_held) {
        mine.n = w->held[i].n;
        mine.epoch = w->held[i].epoch;
        w->held[i].n = 0;
        w->n_held--;
    }
    pthread_mutex_unlock(&w->lock);
    mine.worker = w->name;
    return (is_held || td_err_set(err, TD_E_BUG, "%s: a result of no line that is held", id)) &&
           enqueue(w, &mine, err) && td_worker_poll(w, err);
}

bool td_worker_has_room(td_worker *w)
{
    pthread_mutex_lock(&w->lock);
    bool has_room = w->n_bytes < TD_WORKER_ROOM;
    pthread_mutex_unlock(&w->lock);
    return has_room;
}

int td_worker_fd(const td_worker *w) { return w->fd; }

/* Frees what waits; how many that was. */
static uint64_t free_results(td_worker *w)
{
    uint64_t n = 0;
    for (result *q = w->first, *next; q; q = next, n++) {
        next = q->next;
        td_free(q);
    }
    return n;
}

bool td_worker_close(td_worker **worker, double patience_s, td_err *err)
{
    td_worker *w = *worker;
    if (!w)
        return true;
    if (w->is_running) {
        pthread_mutex_lock(&w->lock);
        w->is_stopping = true;
        w->stop_at_us = now_us(w) + (uint64_t)(patience_s * 1e6);
        pthread_cond_signal(&w->to_thread);
        pthread_mutex_unlock(&w->lock);
        pthread_join(w->thread, NULL);
        td_err left = {0};
        uint64_t n_back = 0;
        if (w->failure.code == TD_OK && !td_job_leave(w->db, w->name, &n_back, &left))
            td_log_warn("%s; lines that were not finished wait for their lease to end",
                        left.message);
        if (n_back)
            td_log_info("%llu lines were given back", (unsigned long long)n_back);
    }
    bool is_ok =
        w->failure.code == TD_OK || td_err_set(err, w->failure.code, "%s", w->failure.message);
    bool is_kept = w->spool && !td_spool_is_empty(w->spool);
    uint64_t n_left = free_results(w);
    if (n_left && is_ok)
        is_ok = td_err_set(err, TD_E_AGAIN,
                           is_kept ? "%llu results could not be handed in; they are kept in %s, and "
                                     "the next worker of this job on this machine hands them in"
                                   : "%llu results could not be handed in; their lines are run "
                                     "again%s",
                           (unsigned long long)n_left, is_kept ? td_spool_path(w->spool) : "");
    for (uint32_t i = 0; i < w->n_ready; i++)
        td_job_line_free(&w->ready[i]);
    td_spool_destroy(&w->spool);
    td_db_close(&w->db);
    td_job_settings_free(&w->settings);
    td_free(w->held);
    td_free(w->ready);
    if (w->fd >= 0)
        close(w->fd);
    pthread_cond_destroy(&w->to_reader);
    pthread_cond_destroy(&w->to_thread);
    pthread_mutex_destroy(&w->lock);
    td_free(w);
    *worker = NULL;
    return is_ok;
}
