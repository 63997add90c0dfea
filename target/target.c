/* Builds the chain (devices, placement, parts, threads) and feeds it. Jobs and batches come from
 * fixed pools and return to them when the last stage is done, so nothing is allocated per round.
 *
 * Stages on other machines stand in the same row: where a stage's neighbour is elsewhere, its jobs
 * go to the queue of a run of remote stages (remote.h) and come back from there. */
#include "target/target.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "target/prompts.h"
#include "target/remote.h"
#include "target/ring.h"
#include "target/split.h"
#include "target/stage_head.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define N_JOBS 512u /* in the chain at once */
/* Of a worker: small jobs do not wait for an answer where they come from, so all that a full set of
 * batches may have between them has room. */
#define N_JOBS_SERVING (8u * N_JOBS)
#define N_BATCHES      (TD_TARGET_BATCHES_MAX + 1) /* one more is in the caller's hands */
#define N_DRAFTS       64u /* batches of proposals; a sequence is in few of them */

struct td_target {
    td_layout_params params;
    td_split *split;   /* where stages are; NULL: all here, by the layout */
    td_layout *layout; /* of the stages here, until the chain has it; NULL: none is here */
    td_chain *chain;   /* of the stages here; or NULL */
    td_remotes *remotes;
    uint32_t n_stages, n_local, n_slots, n_ctx, n_pages, n_jobs;
    bool forgets, is_started;
    td_prompts *prompts;                       /* NULL: none are kept */
    stage stages[TD_STAGES_MAX];               /* here, [n_local] */
    td_queue runs[TD_STAGES_MAX];              /* of remote runs, into which their jobs go */
    td_stage_info remote_infos[TD_STAGES_MAX]; /* by stage */
    td_queue *first;                           /* where jobs go in */
    td_queue done;
    int fd;
    job *jobs;            /* [n_jobs] */
    job *free_jobs;       /* owned by the calling thread */
    micro_batch *batches; /* [N_BATCHES] */
    void *room;           /* for their activations, in it what stages' homes are made of */
    micro_batch *free_batches;
    micro_batch *results, *last_result; /* finished, not yet polled */
    micro_batch *polled;                /* handed out, freed by the next poll */
    draft_batch *drafts;                /* [N_DRAFTS] with a head */
    draft_batch *free_drafts;
    draft_batch *drafted, *last_drafted; /* finished, not handed out */
};

static void wake(void *user)
{
    const td_target *t = user;
    uint64_t one = 1;
    ssize_t n = write(t->fd, &one, sizeof one);
    (void)n; /* the counter cannot overflow: it is drained at every poll */
}

static void free_batch(td_target *t, micro_batch *b)
{
    b->next = t->free_batches;
    t->free_batches = b;
}

/* Takes one finished job back; batches become results, in order. */
static void take_back(td_target *t, job *j)
{
    if (j->kind == JOB_FORWARD) {
        j->batch->is_in_flight = false;
        j->batch->next = NULL;
        if (t->last_result)
            t->last_result->next = j->batch;
        else
            t->results = j->batch;
        t->last_result = j->batch;
    }
    if (j->kind == JOB_DRAFT) {
        j->drafts->next = NULL;
        if (t->last_drafted)
            t->last_drafted->next = j->drafts;
        else
            t->drafted = j->drafts;
        t->last_drafted = j->drafts;
    }
    j->item.next = t->free_jobs ? &t->free_jobs->item : NULL;
    t->free_jobs = j;
}

static void take_all_back(td_target *t)
{
    for (job *j; (j = (job *)td_queue_try_pop(&t->done));)
        take_back(t, j);
}

bool td_ring_push(td_target *t, const job *what)
{
    job *j = t->free_jobs;
    if (!j)
        return false;
    const td_clock clock = td_clock_real();
    t->free_jobs = (job *)j->item.next;
    *j = *what;
    if (j->kind == JOB_FORWARD)
        j->batch->came_us = td_clock_now_us(&clock);
    td_queue_push(t->first, &j->item);
    return true;
}

static void submit(td_target *t, const job *what)
{
    take_all_back(t);
    while (!td_ring_push(t, what))
        take_back(t, (job *)td_queue_pop(&t->done));
    if (t->first == &t->runs[0] && job_is_awaited(what->kind))
        td_remotes_wake(t->remotes);
}

void td_target_open_sequence(td_target *t, uint32_t slot, uint32_t from_slot, uint32_t length,
                             uint64_t stream, const td_sampling_params *sampling)
{
    TD_ASSERT(slot < t->n_slots && from_slot < t->n_slots);
    TD_ASSERT(length % TD_PAGE_POSITIONS == 0 && !(length && td_target_forgets(t)));
    submit(t, &(job){.kind = JOB_OPEN,
                     .slot = slot,
                     .from_slot = from_slot,
                     .length = length,
                     .stream = stream,
                     .sampling = *sampling});
}

void td_target_truncate(td_target *t, uint32_t slot, uint32_t length)
{
    submit(t, &(job){.kind = JOB_TRUNCATE, .slot = slot, .length = length});
}

void td_target_commit(td_target *t, uint32_t slot, uint32_t length)
{
    submit(t, &(job){.kind = JOB_COMMIT, .slot = slot, .length = length});
}

void td_target_close_sequence(td_target *t, uint32_t slot)
{
    submit(t, &(job){.kind = JOB_CLOSE, .slot = slot});
}

void td_target_forward(td_target *t, uint64_t id, bool is_prefill, const td_forward_row *rows,
                       uint32_t n_rows)
{
    TD_ASSERT(n_rows >= 1 && n_rows <= (is_prefill ? TD_PREFILL_ROWS_MAX : TD_VERIFY_ROWS_MAX));
    while (!t->free_batches && !t->results)
        take_back(t, (job *)td_queue_pop(&t->done));
    TD_ASSERT(t->free_batches); /* the caller polls before it submits more than it may */
    micro_batch *b = t->free_batches;
    t->free_batches = b->next;
    b->id = id;
    b->mode = is_prefill ? TD_MODE_PREFILL : TD_MODE_VERIFY;
    b->n_rows = n_rows;
    b->n_out = 0;
    b->n_bad = 0;
    b->err.code = TD_OK;
    b->is_in_flight = true;
    b->activations = b->room;
    b->is_skipped = b->is_sent = b->is_cancel_sent = b->is_restored = false;
    b->chunk = NULL;
    atomic_store_explicit(&b->is_cancelled, false, memory_order_relaxed);
    memcpy(b->rows, rows, n_rows * sizeof *rows);
    for (uint32_t i = 0; i < n_rows; i++) {
        b->i_out[i] = (uint16_t)b->n_out;
        b->n_out += rows[i].is_output;
    }
    memset(b->chosen, 0, b->n_out * sizeof *b->chosen);
    submit(t, &(job){.kind = JOB_FORWARD, .batch = b});
}

bool td_target_propose(td_target *t, const td_proposal *proposals, const uint32_t *slots,
                       const uint32_t *tokens, uint32_t n)
{
    draft_batch *b = t->free_drafts;
    TD_ASSERT(n >= 1 && n <= TD_VERIFY_ROWS_MAX);
    if (!b)
        return false;
    t->free_drafts = b->next;
    b->n = n;
    b->n_taken = 0;
    b->is_sent = false;
    memcpy(b->proposals, proposals, n * sizeof *proposals);
    memcpy(b->slots, slots, n * sizeof *slots);
    memcpy(b->tokens, tokens, n * sizeof *tokens);
    submit(t, &(job){.kind = JOB_DRAFT, .drafts = b});
    return true;
}

bool td_target_next_proposal(td_target *t, td_proposal *out)
{
    draft_batch *b = t->drafted;
    if (!b)
        return false;
    const td_split_stage *last = t->split ? &t->split->stages[t->n_stages - 1] : NULL;
    *out = b->proposals[b->n_taken++];
    if (last && last->is_remote) {
        td_stage_info *info = &t->remote_infos[t->n_stages - 1];
        info->busy_draft_us += out->busy_us;
        info->n_draft_asks++;
        info->n_draft_tokens += out->n;
    }
    if (b->n_taken < b->n)
        return true;
    t->drafted = b->next;
    if (!t->drafted)
        t->last_drafted = NULL;
    b->next = t->free_drafts;
    t->free_drafts = b;
    return true;
}

/* Those that are finished are left as they are: the mark would come too late. */
bool td_ring_cancel(td_target *t, uint64_t id)
{
    bool is_there = false;
    for (uint32_t i = 0; i < N_BATCHES; i++)
        if (t->batches[i].is_in_flight && t->batches[i].id == id) {
            atomic_store_explicit(&t->batches[i].is_cancelled, true, memory_order_release);
            is_there = true;
        }
    return is_there;
}

void td_target_cancel(td_target *t, uint64_t id)
{
    if (td_ring_cancel(t, id) && t->remotes)
        td_remotes_wake(t->remotes);
}

/* -- for a worker ------------------------------------------------------------------------------ */

micro_batch *td_ring_take_batch(td_target *t)
{
    micro_batch *b = t->free_batches;
    if (!b)
        return NULL;
    t->free_batches = b->next;
    b->n_bad = 0;
    b->err.code = TD_OK;
    b->is_in_flight = true;
    b->activations = b->room;
    b->chunk = NULL;
    b->is_restored = false;
    memset(b->chosen, 0, sizeof b->chosen);
    memset(b->spans, 0, sizeof b->spans);
    atomic_store_explicit(&b->is_cancelled, false, memory_order_relaxed);
    return b;
}

bool td_ring_ask(td_target *t, const draft_batch *what)
{
    draft_batch *b = t->free_drafts;
    if (!b || !t->free_jobs)
        return false;
    t->free_drafts = b->next;
    *b = *what;
    return td_ring_push(t, &(job){.kind = JOB_DRAFT, .drafts = b});
}

job *td_ring_next(td_target *t)
{
    uint64_t count;
    job *j = (job *)td_queue_try_pop(&t->done);
    if (j || read(t->fd, &count, sizeof count) < 0)
        return j;
    return (job *)td_queue_try_pop(&t->done); /* one that came before the descriptor was emptied */
}

void td_ring_give_back(td_target *t, job *j)
{
    if (j->kind == JOB_FORWARD) {
        j->batch->is_in_flight = false;
        free_batch(t, j->batch);
    }
    if (j->kind == JOB_DRAFT) {
        j->drafts->next = t->free_drafts;
        t->free_drafts = j->drafts;
    }
    j->kind = JOB_STOP; /* no batch to take back with it */
    take_back(t, j);
}

void td_ring_set_pages(td_target *t, uint32_t n_pages)
{
    if (n_pages && (!t->n_pages || n_pages < t->n_pages))
        t->n_pages = t->layout->n_pages = n_pages;
}

const td_model *td_target_model(const td_target *t) { return t->params.model; }
const td_layout *td_ring_layout(const td_target *t) { return t->layout; }

void td_ring_drop(td_target *t)
{
    for (uint32_t i = 0; t->batches && i < N_BATCHES; i++)
        atomic_store_explicit(&t->batches[i].is_cancelled, true, memory_order_release);
}

int td_target_fd(const td_target *t) { return t->fd; }

bool td_target_poll(td_target *t, td_target_result *out)
{
    if (t->polled)
        free_batch(t, t->polled);
    t->polled = NULL;
    if (!t->results)
        take_all_back(t);
    if (!t->results) { /* fd stays readable until here, where none is left but what comes now */
        uint64_t count;
        ssize_t n = read(t->fd, &count, sizeof count);
        (void)n; /* not blocking: nothing to read is fine */
        take_all_back(t);
    }
    micro_batch *b = t->results;
    if (!b)
        return false;
    t->results = b->next;
    if (!t->results)
        t->last_result = NULL;
    t->polled = b;
    *out = (td_target_result){.batch = b->id,
                              .err = b->err,
                              .chosen = b->chosen,
                              .n_out = b->n_out,
                              .bad = b->bad,
                              .n_bad = b->n_bad,
                              .is_cancelled = b->is_skipped,
                              .n_restored = b->is_restored && !b->is_skipped ? b->n_rows : 0,
                              .spans = b->spans};
    for (uint32_t i = 0; i < t->n_stages; i++) {
        uint64_t us = b->spans[i].end_us - b->spans[i].start_us;
        if (us && t->split && t->split->stages[i].is_remote && !b->is_restored)
            td_stage_add_busy(&t->remote_infos[i], b, us);
        out->sum_us += us;
        out->waited_us += b->spans[i].waited_us;
        out->max_us = us > out->max_us ? us : out->max_us;
    }
    return true;
}

bool td_target_trace(td_target *t, td_err *err)
{
    return !t->remotes || td_remotes_trace(t->remotes, err);
}

uint32_t td_target_n_hosts(const td_target *t) { return t->split ? t->split->n_workers : 0; }

void td_target_get_clock(const td_target *t, uint32_t host, td_target_clock *out)
{
    td_remotes_get_clock(t->remotes, host, out);
}

bool td_target_next_event(td_target *t, td_target_event *out)
{
    return t->remotes && td_remotes_next_event(t->remotes, out);
}

bool td_target_await_events(td_target *t, uint64_t within_us)
{
    return t->remotes && td_remotes_await_events(t->remotes, within_us);
}

/* -- building ------------------------------------------------------------------------------ */

/* Whatever comes after stage i - 1: stage i's queue, its run's, or that of what is done. */
static td_queue *queue_of(td_target *t, uint32_t i)
{
    if (i == t->n_stages)
        return &t->done;
    if (!t->split)
        return &t->stages[i].in;
    const td_split_stage *s = &t->split->stages[i];
    return s->is_remote ? &t->runs[s->run] : &t->stages[s->local].in;
}

static void (*wake_of(td_target *t, uint32_t i, void **user))(void *)
{
    bool is_end = i == t->n_stages;
    bool is_remote = !is_end && t->split && t->split->stages[i].is_remote;
    *user = is_end ? (void *)t : (void *)t->remotes;
    return is_end ? wake : is_remote ? td_remotes_wake : NULL;
}

static bool build_stage(td_target *t, uint32_t k, const td_hparams *h, td_err *err)
{
    stage *s = &t->stages[k];
    const td_layout_part *part = &t->chain->layout->parts[k];
    uint32_t i = t->split ? td_split_stage_of(t->split, k) : k; /* among all */
    s->forward = t->chain->forwards[k];
    s->index = t->params.first_stage + i;
    s->n_embd = h->n_embd;
    s->n_vocab = h->n_vocab;
    s->n_slots = t->n_slots;
    s->is_serving = t->params.is_partial || t->split;
    s->info.first = part->first;
    s->info.last = part->last;
    s->info.n_bytes = part->n_bytes;
    s->info.n_usable_bytes = part->budget_bytes;
    s->info.n_experts_bytes = part->experts_bytes;
    if (part->experts_dev)
        snprintf(s->info.experts_spec, sizeof s->info.experts_spec, "%s",
                 td_device_get_info(part->experts_dev)->spec);
    s->info.asked = td_forward_asked(s->forward);
    s->info.dealt = td_forward_dealt(s->forward);
    s->info.deal = t->chain->layout->deal.dealing ? &t->chain->layout->deal : NULL;
    td_forward_get_load(s->forward, &s->info.n_file_bytes, &s->info.load_us);
    memcpy(s->info.spec, part->spec, sizeof s->info.spec);
    s->info.device = td_device_get_info(part->dev);
    s->info.experts_device = part->experts_dev ? td_device_get_info(part->experts_dev) : NULL;
    memcpy(s->info.name, s->info.device->name, sizeof s->info.name);
    s->slots = td_alloc(s->n_slots, sizeof *s->slots, err);
    if (!s->slots)
        return false;
    if (td_forward_is_last(s->forward)) {
        s->sampler = td_sampler_create(h->n_vocab, err);
        if (!s->sampler)
            return false;
        for (uint32_t n = 0; n < s->n_slots; n++)
            if (!(s->slots[n].tokens = td_alloc((size_t)t->n_ctx + 1, sizeof(uint32_t), err)))
                return false;
        if (t->params.head && !td_stage_head_create(s, t->n_ctx, err))
            return false;
    }
    s->out = queue_of(t, i + 1);
    s->wake = wake_of(t, i + 1, &s->user);
    return true;
}

/* Room for the activations of all batches, and the stages' homes there. One that cannot be is done
 * without: then the stage copies. */
static bool build_rooms(td_target *t, uint32_t n_embd, td_err *err)
{
    if (t->n_stages == 1 && !t->params.is_partial)
        return true;
    const uint64_t mask = TD_HOME_ALIGNMENT - 1, batch = 4ull * TD_PREFILL_ROWS_MAX * n_embd;
    uint64_t n_bytes = (N_BATCHES * batch + mask) & ~mask;
    t->room = td_alloc(n_bytes + TD_HOME_ALIGNMENT, 1, err);
    if (!t->room)
        return false;
    char *first = (char *)t->room + (-(uintptr_t)t->room & mask);
    for (uint32_t i = 0; i < N_BATCHES; i++) {
        t->batches[i].home_offset = i * batch;
        t->batches[i].room = (float *)(void *)(first + i * batch);
    }
    for (uint32_t i = 0; i < t->n_local; i++)
        t->stages[i].home = td_home_create(t->chain->layout->parts[i].dev, first, n_bytes, NULL);
    return true;
}

static bool build_pools(td_target *t, uint32_t n_embd, td_err *err)
{
    t->n_jobs = t->params.is_partial ? N_JOBS_SERVING : N_JOBS;
    t->jobs = td_alloc(t->n_jobs, sizeof *t->jobs, err);
    t->batches = td_alloc(N_BATCHES, sizeof *t->batches, err);
    if (!t->jobs || !t->batches)
        return false;
    for (uint32_t i = 0; i < t->n_jobs; i++) {
        t->jobs[i].kind = JOB_STOP; /* no batch to take back with it */
        take_back(t, &t->jobs[i]);
    }
    for (uint32_t i = 0; i < N_BATCHES; i++)
        free_batch(t, &t->batches[i]);
    if (t->params.head && !(t->drafts = td_alloc(N_DRAFTS, sizeof *t->drafts, err)))
        return false;
    for (uint32_t i = 0; t->drafts && i < N_DRAFTS; i++) {
        t->drafts[i].next = t->free_drafts;
        t->free_drafts = &t->drafts[i];
    }
    return build_rooms(t, n_embd, err);
}

/* What is known of the stages elsewhere. */
static void describe_remote(td_target *t)
{
    for (uint32_t i = 0; i < t->n_stages; i++) {
        const td_split_stage *s = &t->split->stages[i];
        if (!s->is_remote)
            continue;
        const td_stage_ready *ready = td_remotes_ready(t->remotes, s->worker);
        uint32_t k = i - t->split->workers[s->worker].first_stage;
        t->forgets |= ready->forgets;
        td_stage_info *info = &t->remote_infos[i];
        *info = (td_stage_info){.device = &s->device_info,
                                .host = t->split->workers[s->worker].host.name,
                                .first = s->spec.first,
                                .last = s->spec.last,
                                .n_bytes = s->n_bytes,
                                .n_usable_bytes = s->n_usable_bytes,
                                .n_experts_bytes = s->n_experts_bytes,
                                .n_file_bytes = ready->parts[k].file_bytes,
                                .load_us = ready->parts[k].load_us};
        snprintf(info->spec, sizeof info->spec, "%.31s/%.90s", info->host, s->device_info.spec);
        memcpy(info->name, s->device_info.name, sizeof info->name);
    }
}

/* Where all is here: the layout. Else the stages elsewhere are asked as well. */
static bool lay_out(td_target *t, td_err *err)
{
    td_layout_params *p = &t->params;
    if (!td_split_create(p, &t->split, err))
        return false;
    bool is_elsewhere = t->split && t->split->stages[t->split->n_stages - 1].is_remote;
    if (is_elsewhere && p->head && p->head != p->model)
        return td_err_set(err, TD_E_USAGE,
                          "a head of another file drafts beside the target's last layers; allowed "
                          "with it: those on this machine");
    if (t->split) {
        td_host hosts[TD_STAGES_MAX];
        for (uint32_t i = 0; i < t->split->n_workers; i++)
            hosts[i] = t->split->workers[i].host;
        t->remotes = td_remotes_create(hosts, t->split->n_workers, p->host_key, err);
        td_split_plan plan;
        if (!t->remotes || !td_remotes_join(t->remotes, err) ||
            !td_split_lay_out(t->split, p, t->remotes, &plan, err))
            return false;
        t->layout = plan.layout;
        t->n_ctx = plan.n_ctx;
        t->n_pages = plan.n_pages;
        t->n_stages = t->split->n_stages;
        t->n_local = t->layout ? t->layout->n_parts : 0;
        return true;
    }
    if (p->made) {
        t->layout = *p->made;
        *p->made = NULL;
    } else {
        t->layout = td_layout_create(p, err);
    }
    if (!t->layout)
        return false;
    t->n_ctx = t->layout->n_ctx;
    t->n_pages = t->layout->n_pages;
    t->n_stages = t->n_local = t->layout->n_parts;
    return true;
}

td_target *td_target_open(const td_layout_params *params, td_err *err)
{
    td_target *t = td_alloc(1, sizeof *t, err);
    if (!t)
        return NULL;
    TD_ASSERT(params->n_slots >= 1 && params->n_slots <= 64);
    t->params = *params;
    t->params.is_choosing = true;
    t->n_slots = params->n_slots;
    for (uint32_t i = 0; i < TD_STAGES_MAX; i++) {
        td_queue_init(&t->stages[i].in);
        td_queue_init(&t->runs[i]);
    }
    td_queue_init(&t->done);
    t->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (t->fd < 0)
        td_err_set(err, TD_E_IO, "eventfd: %s", strerror(errno));
    if (t->fd < 0 || !lay_out(t, err)) {
        td_err_prepend(err, "target");
        td_target_destroy(&t);
    }
    return t;
}

/* Here and elsewhere at the same time. */
static bool load_stages(td_target *t, td_err *err)
{
    td_layout_params p = t->params;
    td_remote_run runs[TD_STAGES_MAX];
    if (t->split) {
        for (uint32_t k = 0; k < t->split->n_runs; k++) {
            const td_split_run *r = &t->split->runs[k];
            runs[k] = (td_remote_run){.first = r->first_worker,
                                      .n = r->n_workers,
                                      .in = &t->runs[k],
                                      .out = queue_of(t, r->end_stage)};
            runs[k].wake = wake_of(t, r->end_stage, &runs[k].user);
        }
        const td_hparams *h = td_model_hparams(p.model);
        td_stage_limits limits = {.n_slots = t->n_slots,
                                  .n_ctx = t->n_ctx,
                                  .n_vocab = h->n_vocab,
                                  .n_embd = h->n_embd,
                                  .wire = p.wire ? (uint8_t)p.wire->id : TD_STAGE_F32,
                                  .has_head = p.head != NULL};
        if (!td_remotes_load(t->remotes, t->n_ctx, t->n_pages, runs, t->split->n_runs, &limits,
                             t->n_stages, err))
            return false;
    }
    if (t->layout) {
        p.made = &t->layout;
        t->chain = td_chain_create(&p, err);
        t->forgets |= t->chain && td_chain_forgets(t->chain);
        if (!t->chain)
            return false;
    }
    if (t->split && !td_remotes_wait(t->remotes, p.progress, p.user, err))
        return false;
    if (t->split)
        describe_remote(t);
    return true;
}

bool td_target_load(td_target *t, td_err *err)
{
    const td_hparams *h = td_model_hparams(t->params.model);
    if (!load_stages(t, err))
        goto fail;
    /* A GPU's stage only waits for its GPU, which may share its power with the CPU. */
    for (uint32_t i = 0; i < t->n_local && t->n_stages > 1; i++)
        if (td_device_get_info(t->chain->layout->parts[i].dev)->kind == TD_DEVICE_HOST)
            td_queue_stay_awake(&t->stages[i].in);
    for (uint32_t i = 0; i < t->n_local; i++)
        if (!build_stage(t, i, h, err))
            goto fail;
    t->first = queue_of(t, 0);
    if (!build_pools(t, h->n_embd, err))
        goto fail;
    for (uint32_t i = 0; i < t->n_local; i++)
        if (!td_stage_start(&t->stages[i], err))
            goto fail;
    t->is_started = true;
    return true;
fail:
    return td_err_prepend(err, "target");
}

/* What both ends have in common. */
static bool keep_prompts(td_target *t, td_prompts_params *p, td_err *err)
{
    p->model = td_model_name(t->params.model);
    p->n_slots = t->n_slots;
    p->n_ctx = t->n_ctx;
    p->n_stages = t->n_stages;
    p->n_parts = t->n_local;
    for (uint32_t i = 0; i < t->n_local; i++) {
        p->parts[i] = td_forward_cache(t->stages[i].forward);
        p->row_bytes = t->stages[i].head ? t->stages[i].n_embd * (uint32_t)sizeof(float) : 0;
    }
    TD_ASSERT(!t->prompts && p->chunk_rows % TD_PAGE_POSITIONS == 0);
    t->prompts = td_prompts_create(p, err);
    if (t->prompts && t->n_local) /* it waits for its first job */
        t->stages[t->n_local - 1].prefix = td_prompts_prefix(t->prompts);
    return t->prompts;
}

/* What was said, and which layers are here, where others are elsewhere: of those there is nothing
 * in a chunk that is kept here. */
static char *describe_here(const td_target *t, const char *said, td_err *err)
{
    size_t n = strlen(said), room = n + 16 + TD_STAGES_MAX * 24;
    char *text = td_alloc(room, 1, err);
    if (!text)
        return NULL;
    n = (size_t)snprintf(text, room, "%s%s", said, t->split ? "; here=" : "");
    for (uint32_t i = 0; t->split && i < t->n_local; i++)
        n += (size_t)snprintf(text + n, room - n, "%u-%u,", t->stages[i].info.first,
                              t->stages[i].info.last);
    return text;
}

bool td_target_keep_prompts(td_target *t, td_prefix_store *store, const char *identity,
                            const char *what, uint32_t chunk_rows, const char **without,
                            td_err *err)
{
    td_prompts_params p = {.store = store,
                           .what = what,
                           .chunk_rows = chunk_rows,
                           .remotes = t->remotes,
                           .out = t->first};
    TD_ASSERT(!t->params.is_partial);
    *without = NULL;
    if (t->remotes && !td_remotes_keep(t->remotes, chunk_rows, without, err))
        return false;
    if (*without)
        return true;
    p.wake = wake_of(t, 0, &p.user);
    char *here = describe_here(t, identity, err);
    p.identity = here;
    bool is_ok = here && keep_prompts(t, &p, err);
    td_free(here);
    if (is_ok)
        t->first = td_prompts_in(t->prompts);
    return is_ok;
}

bool td_ring_keep(td_target *t, td_prefix_store *store, uint32_t chunk_rows, td_err *err)
{
    td_prompts_params p = {.store = store, .chunk_rows = chunk_rows, .wake = wake, .user = t};
    char *identity = NULL, what[TD_PREFIX_WHAT_BYTES];
    const td_layout *l = t->chain->layout;
    if (!td_prompts_describe(l, t->params.model, &t->params.kv, &identity, err))
        return false;
    snprintf(what, sizeof what, "layers %u..%u on %.120s", l->parts[0].first,
             l->parts[l->n_parts - 1].last, td_device_get_info(l->parts[0].dev)->name);
    p.identity = identity;
    p.what = what;
    bool is_ok = keep_prompts(t, &p, err);
    td_free(identity);
    return is_ok;
}

bool td_ring_find(td_target *t, const td_stage_find *find, td_err *err)
{
    return (t->prompts || td_err_set(err, TD_E_DATA, "a chunk is asked for where none is kept")) &&
           td_prompts_ask(t->prompts, find, err);
}

bool td_ring_found(td_target *t, td_stage_found *out)
{
    return t->prompts && td_prompts_answer(t->prompts, out);
}

bool td_ring_join(td_target *t, micro_batch *b, td_err *err)
{
    if (!t->free_jobs) /* what it is given would be lost */
        return td_err_set(err, TD_E_DATA, "more jobs than batches can need");
    if (t->prompts)
        return td_prompts_join(t->prompts, b, err);
    return !b->is_restored ||
           td_err_set(err, TD_E_DATA, "a chunk that was found, where none is kept");
}

uint64_t td_target_n_unkept(const td_target *t)
{
    return t->prompts ? td_prefix_n_dropped(td_prompts_prefix(t->prompts)) : 0;
}

td_target *td_target_create(const td_layout_params *params, td_err *err)
{
    td_target *t = td_target_open(params, err);
    if (t && !td_target_load(t, err))
        td_target_destroy(&t);
    return t;
}

void td_target_destroy(td_target **target)
{
    td_target *t = *target;
    if (!t)
        return;
    if (t->is_started || t->stages[0].is_running) /* a started prefix passes the stop along */
        submit(t, &(job){.kind = JOB_STOP});
    for (uint32_t i = 0; i < TD_STAGES_MAX; i++)
        td_stage_stop(&t->stages[i]);
    td_prompts_destroy(&t->prompts); /* it wakes the remotes */
    td_remotes_destroy(&t->remotes);
    bool is_left = true; /* by devices */
    for (uint32_t i = 0; i < t->n_local; i++) {
        stage *s = &t->stages[i];
        is_left &= td_home_destroy(&s->home);
        td_sampler_destroy(&s->sampler);
        td_stage_head_destroy(s);
        if (s->slots)
            for (uint32_t k = 0; k < s->n_slots; k++)
                td_free(s->slots[k].tokens);
        td_free(s->slots);
    }
    td_chain_destroy(&t->chain);
    td_layout_destroy(&t->layout);
    td_split_destroy(&t->split);
    if (is_left)
        td_free(t->room);
    td_free(t->batches);
    td_free(t->drafts);
    td_free(t->jobs);
    for (uint32_t i = 0; i < TD_STAGES_MAX; i++) {
        td_queue_destroy(&t->stages[i].in);
        td_queue_destroy(&t->runs[i]);
    }
    td_queue_destroy(&t->done);
    if (t->fd >= 0)
        close(t->fd);
    td_free(t);
    *target = NULL;
}

uint32_t td_target_n_ctx(const td_target *t) { return t->n_ctx; }
uint32_t td_target_n_pages(const td_target *t) { return t->n_pages; }
uint32_t td_target_n_stages(const td_target *t) { return t->n_stages; }
bool td_target_forgets(const td_target *t) { return t->forgets; }
uint64_t td_target_draft_bytes(const td_target *t)
{
    const td_layout *l = t->layout ? t->layout : t->chain ? t->chain->layout : NULL;
    return l ? l->draft_bytes : 0;
}

static td_stage_info *info_of(td_target *t, uint32_t i)
{
    TD_ASSERT(i < t->n_stages);
    if (t->split && t->split->stages[i].is_remote)
        return &t->remote_infos[i];
    return &t->stages[t->split ? t->split->stages[i].local : i].info;
}

void td_target_get_stage_info(const td_target *t, uint32_t i, td_stage_info *out)
{
    *out = *info_of((td_target *)(uintptr_t)t, i);
}

void td_target_add_figures(td_target *t, uint32_t stage_index, const td_stage_info *before)
{
    td_stage_info *info = info_of(t, stage_index);
    info->busy_prefill_us += before->busy_prefill_us;
    info->busy_verify_us += before->busy_verify_us;
    info->n_prefill_rows += before->n_prefill_rows;
    info->n_verify_rows += before->n_verify_rows;
    info->n_prefills += before->n_prefills;
    info->n_verifies += before->n_verifies;
    info->n_copied_bytes += before->n_copied_bytes;
    info->busy_draft_us += before->busy_draft_us;
    info->n_draft_asks += before->n_draft_asks;
    info->n_draft_tokens += before->n_draft_tokens;
}
