/* Builds the chain (devices, placement, parts, threads) and feeds it. Jobs and batches come from
 * fixed pools and return to them when the last stage is done, so nothing is allocated per round. */
#include "target/target.h"

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "target/stage.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define N_JOBS    512u                        /* in the chain at once */
#define N_BATCHES (TD_TARGET_BATCHES_MAX + 1) /* one more is in the caller's hands */

struct td_target {
    td_chain *chain;
    uint32_t n_stages, n_slots;
    stage stages[TD_STAGES_MAX];
    td_queue done;
    int fd;
    job *jobs;            /* [N_JOBS] */
    job *free_jobs;       /* owned by the calling thread */
    micro_batch *batches; /* [N_BATCHES] */
    micro_batch *free_batches;
    micro_batch *results, *last_result; /* finished, not yet polled */
    micro_batch *polled;                /* handed out, freed by the next poll */
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
    j->item.next = t->free_jobs ? &t->free_jobs->item : NULL;
    t->free_jobs = j;
}

static void take_all_back(td_target *t)
{
    for (job *j; (j = (job *)td_queue_try_pop(&t->done));)
        take_back(t, j);
}

static void submit(td_target *t, const job *what)
{
    take_all_back(t);
    while (!t->free_jobs)
        take_back(t, (job *)td_queue_pop(&t->done));
    job *j = t->free_jobs;
    t->free_jobs = (job *)j->item.next;
    *j = *what;
    td_queue_push(&t->stages[0].in, &j->item);
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
    b->is_skipped = false;
    atomic_store_explicit(&b->is_cancelled, false, memory_order_relaxed);
    memcpy(b->rows, rows, n_rows * sizeof *rows);
    for (uint32_t i = 0; i < n_rows; i++) {
        b->i_out[i] = (uint16_t)b->n_out;
        b->n_out += rows[i].is_output;
    }
    memset(b->chosen, 0, b->n_out * sizeof *b->chosen);
    submit(t, &(job){.kind = JOB_FORWARD, .batch = b});
}

/* Those that are finished are left as they are: the mark would come too late. */
void td_target_cancel(td_target *t, uint64_t id)
{
    for (uint32_t i = 0; i < N_BATCHES; i++)
        if (t->batches[i].is_in_flight && t->batches[i].id == id)
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
                              .spans = b->spans};
    for (uint32_t i = 0; i < t->n_stages; i++) {
        uint64_t us = b->spans[i].end_us - b->spans[i].start_us;
        out->sum_us += us;
        out->max_us = us > out->max_us ? us : out->max_us;
    }
    return true;
}

/* -- building ------------------------------------------------------------------------------ */

static bool build_stage(td_target *t, uint32_t i, const td_hparams *h, td_err *err)
{
    stage *s = &t->stages[i];
    const td_layout_part *part = &t->chain->layout->parts[i];
    s->forward = t->chain->forwards[i];
    s->index = i;
    s->n_embd = h->n_embd;
    s->n_vocab = h->n_vocab;
    s->n_slots = t->n_slots;
    s->info.first = part->first;
    s->info.last = part->last;
    s->info.n_bytes = part->n_bytes;
    s->info.n_usable_bytes = part->budget_bytes;
    s->info.n_experts_bytes = part->experts_bytes;
    if (part->experts_dev)
        snprintf(s->info.experts_spec, sizeof s->info.experts_spec, "%s",
                 td_device_get_info(part->experts_dev)->spec);
    td_forward_get_load(s->forward, &s->info.n_file_bytes, &s->info.load_us);
    memcpy(s->info.spec, part->spec, sizeof s->info.spec);
    s->info.device = td_device_get_info(part->dev);
    s->info.experts_device = part->experts_dev ? td_device_get_info(part->experts_dev) : NULL;
    memcpy(s->info.name, s->info.device->name, sizeof s->info.name);
    s->slots = td_alloc(s->n_slots, sizeof *s->slots, err);
    if (!s->slots)
        return false;
    bool is_last = i + 1 == t->n_stages;
    if (is_last) {
        s->sampler = td_sampler_create(h->n_vocab, err);
        if (!s->sampler)
            return false;
        for (uint32_t k = 0; k < s->n_slots; k++)
            if (!(s->slots[k].tokens =
                      td_alloc((size_t)t->chain->layout->n_ctx + 1, sizeof(uint32_t), err)))
                return false;
        s->wake = wake;
        s->user = t;
    }
    s->out = is_last ? &t->done : &t->stages[i + 1].in;
    return true;
}

static bool build_pools(td_target *t, uint32_t n_embd, td_err *err)
{
    t->jobs = td_alloc(N_JOBS, sizeof *t->jobs, err);
    t->batches = td_alloc(N_BATCHES, sizeof *t->batches, err);
    if (!t->jobs || !t->batches)
        return false;
    for (uint32_t i = 0; i < N_JOBS; i++) {
        t->jobs[i].kind = JOB_STOP; /* no batch to take back with it */
        take_back(t, &t->jobs[i]);
    }
    for (uint32_t i = 0; i < N_BATCHES; i++) {
        micro_batch *b = &t->batches[i];
        if (t->n_stages > 1 &&
            !(b->activations = td_alloc((size_t)TD_PREFILL_ROWS_MAX * n_embd, sizeof(float), err)))
            return false;
        free_batch(t, b);
    }
    return true;
}

td_target *td_target_create(const td_layout_params *params, td_err *err)
{
    td_target *t = td_alloc(1, sizeof *t, err);
    if (!t)
        return NULL;
    TD_ASSERT(params->n_slots >= 1 && params->n_slots <= 64);
    td_layout_params chain_params = *params;
    chain_params.is_choosing = true;
    const td_hparams *h = td_model_hparams(params->model);
    t->n_slots = params->n_slots;
    for (uint32_t i = 0; i < TD_STAGES_MAX; i++)
        td_queue_init(&t->stages[i].in);
    td_queue_init(&t->done);
    t->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (t->fd < 0)
        td_err_set(err, TD_E_IO, "eventfd: %s", strerror(errno));
    else
        t->chain = td_chain_create(&chain_params, err);
    if (!t->chain)
        goto fail;
    t->n_stages = t->chain->layout->n_parts;
    /* A GPU's stage only waits for its GPU, which may share its power with the CPU. */
    for (uint32_t i = 0; i < t->n_stages && t->n_stages > 1; i++)
        if (td_device_get_info(t->chain->layout->parts[i].dev)->kind == TD_DEVICE_HOST)
            td_queue_stay_awake(&t->stages[i].in);
    for (uint32_t i = 0; i < t->n_stages; i++)
        if (!build_stage(t, i, h, err))
            goto fail;
    if (!build_pools(t, h->n_embd, err))
        goto fail;
    for (uint32_t i = 0; i < t->n_stages; i++)
        if (!td_stage_start(&t->stages[i], err))
            goto fail;
    return t;
fail:
    td_err_prepend(err, "target");
    td_target_destroy(&t);
    return NULL;
}

void td_target_destroy(td_target **target)
{
    td_target *t = *target;
    if (!t)
        return;
    if (t->stages[0].is_running) /* a started prefix of the chain passes the stop along */
        submit(t, &(job){.kind = JOB_STOP});
    for (uint32_t i = 0; i < TD_STAGES_MAX; i++)
        td_stage_stop(&t->stages[i]);
    for (uint32_t i = 0; i < t->n_stages; i++) {
        stage *s = &t->stages[i];
        td_sampler_destroy(&s->sampler);
        if (s->slots)
            for (uint32_t k = 0; k < s->n_slots; k++)
                td_free(s->slots[k].tokens);
        td_free(s->slots);
    }
    td_chain_destroy(&t->chain);
    if (t->batches)
        for (uint32_t i = 0; i < N_BATCHES; i++)
            td_free(t->batches[i].activations);
    td_free(t->batches);
    td_free(t->jobs);
    for (uint32_t i = 0; i < TD_STAGES_MAX; i++)
        td_queue_destroy(&t->stages[i].in);
    td_queue_destroy(&t->done);
    if (t->fd >= 0)
        close(t->fd);
    td_free(t);
    *target = NULL;
}

uint32_t td_target_n_ctx(const td_target *t) { return t->chain->layout->n_ctx; }
uint32_t td_target_n_pages(const td_target *t) { return t->chain->layout->n_pages; }
uint32_t td_target_n_stages(const td_target *t) { return t->n_stages; }
bool td_target_forgets(const td_target *t) { return td_chain_forgets(t->chain); }

void td_target_get_stage_info(const td_target *t, uint32_t stage_index, td_stage_info *out)
{
    TD_ASSERT(stage_index < t->n_stages);
    *out = t->stages[stage_index].info;
}

void td_target_add_figures(td_target *t, uint32_t stage_index, const td_stage_info *before)
{
    TD_ASSERT(stage_index < t->n_stages);
    td_stage_info *info = &t->stages[stage_index].info;
    info->busy_prefill_us += before->busy_prefill_us;
    info->busy_verify_us += before->busy_verify_us;
    info->n_prefill_rows += before->n_prefill_rows;
    info->n_verify_rows += before->n_verify_rows;
    info->n_prefills += before->n_prefills;
    info->n_verifies += before->n_verifies;
}
