#include "target/remote_draft.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/signals.h"
#include "target/cache_wire.h"
#include "target/models.h"
#include "target/split.h"
#include "target/target.h"
#include "transport/peer.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#define LOOK_US    200000u /* between two looks at whether somebody wants to stop, or it was lost */
#define RETRY_US   500000u /* between two tries to have it back */
#define LOAD_TRIES 4u      /* at the start */

struct td_remote_draft {
    td_remote_draft_params params;
    td_host host;
    td_device_spec spec;
    uint64_t seed;
    uint8_t model_id[TD_STAGE_HASH_BYTES];
    char device[sizeof((td_device_spec *)0)->host + sizeof((td_device_info *)0)->spec];
    td_device_info info;
    td_stage_planned planned;
    td_remotes *remotes; /* the session, planned; or NULL. The thread's once that runs */
    pthread_t thread;
    bool is_thread;
    atomic_bool is_stopping;
};

static bool show(void *user, uint64_t done, uint64_t total)
{
    const td_remote_draft *d = user;
    return !atomic_load(&d->is_stopping) &&
           (!d->params.progress || d->params.progress(d->params.user, done, total));
}

static void make_plan(const td_remote_draft *d, uint8_t device, td_stage_plan *p)
{
    const td_model *m = d->params.model;
    *p = (td_stage_plan){.n_parts = 1,
                         .experts_device = TD_STAGE_ANY,
                         .n_slots = (uint8_t)d->params.n_slots,
                         .kv = td_cache_to_wire(&d->params.kv),
                         .n_ctx = d->params.n_ctx,
                         .parts = {{device, 0, (uint16_t)(td_model_hparams(m)->n_layer - 1)}}};
    td_models_describe(m, d->model_id, p);
}

/* In pieces, so that a run that ends meanwhile does not wait. */
static bool join(td_remote_draft *d, td_err *err)
{
    const uint32_t most_us = TD_TARGET_PATIENCE_US;
    for (uint32_t us = 0; us < most_us && !atomic_load(&d->is_stopping); us += LOOK_US) {
        td_remotes_await(d->remotes, 1, LOOK_US);
        if (td_signals_pending())
            return td_err_set(err, TD_E_AGAIN, "stopped by a signal");
        td_err why = {0};
        if (td_remotes_find(d->remotes, 0, &why))
            return true;
        if (why.code == TD_E_DEVICE_LOST) /* it was there: it takes another session */
            return td_err_set(err, why.code, "%s", why.message);
        if (us + LOOK_US >= most_us)
            return td_err_set(err, TD_E_UNAVAILABLE, "%s within %u s", why.message,
                              most_us / 1000000);
    }
    return td_err_set(err, TD_E_AGAIN, "stopped");
}

static bool plan_now(td_remote_draft *d, td_err *err)
{
    td_stage_plan plan;
    td_device_info info;
    uint8_t device;
    const td_layout_params lent = {.model = d->params.model, .progress = show, .user = d};
    if (!join(d, err) ||
        !td_split_find_device(d->spec.host, d->spec.device, td_remotes_hello(d->remotes, 0),
                              d->params.is_trusting, &info, &device, err))
        return false;
    if (!d->device[0]) { /* else others look at it by now */
        d->info = info;
        snprintf(d->device, sizeof d->device, "%s/%s", d->spec.host, info.spec);
    }
    make_plan(d, device, &plan);
    return td_remotes_plan(d->remotes, &plan, &lent, &d->planned, err);
}

/* A session with the draft planned: what it takes is known, here and at the worker. One that got
 * less far is none: a worker that greets a little later has planned nothing. */
static bool plan_it(td_remote_draft *d, td_err *err)
{
    td_remotes_destroy(&d->remotes);
    d->remotes = td_remotes_create_draft(&d->host, d->params.key, err);
    bool is_ok = d->remotes && plan_now(d, err);
    if (!is_ok)
        td_remotes_destroy(&d->remotes);
    return is_ok;
}

/* The same with the draft loaded. */
static bool load(td_remote_draft *d, td_err *err)
{
    td_remotes_load_draft(d->remotes, td_min_u32(d->params.n_ctx, d->planned.n_ctx),
                          td_peer_name(d->seed));
    return td_remotes_wait(d->remotes, show, d, err);
}

/* Plans, and loads when it is time. A worker may be lost meanwhile, as later. */
static bool begin_first(td_remote_draft *d, bool is_loading, td_err *err)
{
    td_err lost = {0};
    for (uint32_t i = 0; i < LOAD_TRIES; i++) {
        bool is_planned = d->remotes && td_remotes_find(d->remotes, 0, NULL);
        if (lost.code != TD_OK)
            td_log_warn("draft: %s; trying again", lost.message);
        td_err_clear(&lost);
        if ((is_planned || plan_it(d, &lost)) && (!is_loading || load(d, &lost)))
            return true;
        if (lost.code != TD_E_DEVICE_LOST)
            break;
    }
    return td_err_set(err, lost.code, "%s", lost.message);
}

static void rest(uint64_t us)
{
    struct timespec t = {.tv_nsec = (long)us * 1000};
    nanosleep(&t, NULL);
}

/* Watches the session, and begins another when it is lost. */
static void *draft_main(void *arg)
{
    td_remote_draft *d = arg;
    bool is_there = true, was_told = false;
    while (!atomic_load(&d->is_stopping)) {
        td_err why = {0};
        if (is_there && td_remotes_find(d->remotes, 0, &why)) {
            rest(LOOK_US);
            continue;
        }
        td_err_clear(&why);
        is_there = plan_it(d, &why) && load(d, &why);
        if (!is_there && !atomic_load(&d->is_stopping)) {
            td_log_write(was_told ? TD_LOG_DEBUG : TD_LOG_WARN, "draft: %s; trying again",
                         why.message);
            was_told = true;
            rest(RETRY_US);
        }
        was_told = was_told && !is_there;
    }
    return NULL;
}

static bool start(td_remote_draft *d, td_err *err)
{
    sigset_t signals, before; /* those are the main thread's */
    sigfillset(&signals);
    pthread_sigmask(SIG_SETMASK, &signals, &before);
    int rc = pthread_create(&d->thread, NULL, draft_main, d);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    d->is_thread = rc == 0;
    return d->is_thread || td_err_set(err, TD_E_NOMEM, "%s", strerror(rc));
}

static bool check_spec(const td_remote_draft *d, td_err *err)
{
    return !d->spec.is_pinned || td_err_set(err, TD_E_USAGE,
                                            "%s: a draft is not split; allowed: %s/%s without "
                                            "layers",
                                            d->params.spec, d->spec.host, d->spec.device);
}

static bool draw(uint64_t *out, td_err *err)
{
    *out = 0;
    while (*out == 0)
        if (getrandom(out, sizeof *out, 0) != sizeof *out && errno != EINTR)
            return td_err_set(err, TD_E_IO, "no randomness from the system: %s", strerror(errno));
    return true;
}

td_remote_draft *td_remote_draft_create(const td_remote_draft_params *params, td_err *err)
{
    TD_ASSERT(params->n_ctx >= 1 && params->n_slots >= 1 && params->n_slots <= TD_STAGE_SLOTS_MAX);
    td_remote_draft *d = td_alloc(1, sizeof *d, err);
    if (!d)
        return NULL;
    d->params = *params;
    const td_layout_params hosts = {.hosts = params->hosts, .n_hosts = params->n_hosts};
    bool is_ok = td_device_spec_parse(params->spec, &d->spec, err) && check_spec(d, err) &&
                 td_split_find_host(&hosts, d->spec.host, &d->host, err) && draw(&d->seed, err) &&
                 td_models_id(params->model, d->model_id, err) && begin_first(d, false, err);
    if (!is_ok)
        td_remote_draft_destroy(&d);
    return d;
}

bool td_remote_draft_load(td_remote_draft *d, uint32_t n_ctx, td_err *err)
{
    TD_ASSERT(n_ctx >= 1 && !d->is_thread);
    d->params.n_ctx = td_min_u32(d->params.n_ctx, n_ctx);
    if (!begin_first(d, true, err))
        return false;
    d->params.progress = NULL; /* nobody looks any more */
    return start(d, err);
}

uint64_t td_remote_draft_bytes(const td_remote_draft *d) { return d->planned.parts[0].n_bytes; }

void td_remote_draft_destroy(td_remote_draft **draft)
{
    td_remote_draft *d = *draft;
    if (!d)
        return;
    atomic_store(&d->is_stopping, true);
    if (d->is_thread)
        pthread_join(d->thread, NULL);
    td_remotes_destroy(&d->remotes);
    td_free(d);
    *draft = NULL;
}

const char *td_remote_draft_endpoint(const td_remote_draft *d) { return d->host.endpoint; }
uint64_t td_remote_draft_seed(const td_remote_draft *d) { return d->seed; }
const char *td_remote_draft_device(const td_remote_draft *d) { return d->device; }
const td_device_info *td_remote_draft_info(const td_remote_draft *d) { return &d->info; }
