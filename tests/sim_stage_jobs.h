/* What stages do, held against what the coordinator told its target: they perform its jobs, each
 * once, in their order, with nothing changed but rows that are dead; what their caches hold is what
 * was committed by them; and no batch comes back before each stage has begun it, with all before it
 * done. Calls between the program's parts lead here by the linker, and go on from here.
 *
 * Include after sim_threads.h. One program includes it once. */
#ifndef TD_TESTS_SIM_STAGE_JOBS_H
#define TD_TESTS_SIM_STAGE_JOBS_H

#include "sim_threads.h"

#include "target/ring.h"
#include "target/stage.h"

#define N_LIVES     256u /* of targets */
#define N_SLOTS_MAX 8u

typedef struct {
    job_kind kind;
    uint32_t slot, from_slot, length;
    uint64_t batch;
    uint32_t n_rows;
    td_forward_row *rows;
    uint32_t committed[N_SLOTS_MAX]; /* before it */
} told;                              /* a job as the coordinator gave it to its target */

/* A target of the coordinator's, from its making on. */
typedef struct {
    told *jobs;
    uint32_t n_jobs, capacity;
    uint32_t n_begun[TD_STAGES_MAX]; /* of them, by each stage */
} life;

typedef struct {
    stage *s; /* NULL: free */
    uint32_t life, n_jobs, machine;
    bool is_failed; /* or dropped: what its cache holds is nothing to anybody */
} known_stage;

static struct {
    life lives[N_LIVES];
    uint32_t n_lives;
    known_stage stages[N_THREADS];
    uint64_t n_jobs, n_cancelled; /* so far, of all worlds */
} told_of;

static life *life_now(void) { return &told_of.lives[told_of.n_lives - 1]; }

static told *tell(const told *what)
{
    life *l = life_now();
    if (l->n_jobs == l->capacity) {
        l->capacity = l->capacity ? 2 * l->capacity : 256;
        l->jobs = realloc(l->jobs, l->capacity * sizeof *l->jobs);
        CHECK(l->jobs);
    }
    told *t = &l->jobs[l->n_jobs++];
    *t = *what;
    memset(t->committed, 0, sizeof t->committed);
    if (l->n_jobs < 2)
        return t;
    const told *before = t - 1;
    memcpy(t->committed, before->committed, sizeof t->committed);
    if (before->kind == JOB_OPEN || before->kind == JOB_COMMIT)
        t->committed[before->slot] = before->length;
    else if (before->kind == JOB_CLOSE)
        t->committed[before->slot] = 0;
    return t;
}

static void begin_life(void)
{
    CHECK(told_of.n_lives < N_LIVES);
    told_of.lives[told_of.n_lives++] = (life){0};
}

static void end_lives(void)
{
    for (uint32_t i = 0; i < told_of.n_lives; i++) {
        for (uint32_t k = 0; k < told_of.lives[i].n_jobs; k++)
            free(told_of.lives[i].jobs[k].rows);
        free(told_of.lives[i].jobs);
    }
    told_of.n_lives = 0;
}

td_target *__real_td_target_open(const td_layout_params *params, td_err *err);
td_target *__wrap_td_target_open(const td_layout_params *params, td_err *err);
td_target *__wrap_td_target_open(const td_layout_params *params, td_err *err)
{
    if (!params->is_partial)
        begin_life();
    return __real_td_target_open(params, err);
}

td_target *__real_td_target_create(const td_layout_params *params, td_err *err);
td_target *__wrap_td_target_create(const td_layout_params *params, td_err *err);
td_target *__wrap_td_target_create(const td_layout_params *params, td_err *err)
{
    begin_life();
    return __real_td_target_create(params, err);
}

void __real_td_target_open_sequence(td_target *t, uint32_t slot, uint32_t from_slot,
                                    uint32_t length, uint64_t stream,
                                    const td_sampling_params *sampling);
void __wrap_td_target_open_sequence(td_target *t, uint32_t slot, uint32_t from_slot,
                                    uint32_t length, uint64_t stream,
                                    const td_sampling_params *sampling);
void __wrap_td_target_open_sequence(td_target *t, uint32_t slot, uint32_t from_slot,
                                    uint32_t length, uint64_t stream,
                                    const td_sampling_params *sampling)
{
    tell(&(told){.kind = JOB_OPEN, .slot = slot, .from_slot = from_slot, .length = length});
    __real_td_target_open_sequence(t, slot, from_slot, length, stream, sampling);
}

void __real_td_target_forward(td_target *t, uint64_t batch, bool is_prefill,
                              const td_forward_row *rows, uint32_t n_rows);
void __wrap_td_target_forward(td_target *t, uint64_t batch, bool is_prefill,
                              const td_forward_row *rows, uint32_t n_rows);
void __wrap_td_target_forward(td_target *t, uint64_t batch, bool is_prefill,
                              const td_forward_row *rows, uint32_t n_rows)
{
    told *j = tell(&(told){.kind = JOB_FORWARD, .batch = batch, .n_rows = n_rows});
    j->rows = malloc(n_rows * sizeof *rows);
    CHECK(j->rows);
    memcpy(j->rows, rows, n_rows * sizeof *rows);
    __real_td_target_forward(t, batch, is_prefill, rows, n_rows);
}

void __real_td_target_truncate(td_target *t, uint32_t slot, uint32_t length);
void __wrap_td_target_truncate(td_target *t, uint32_t slot, uint32_t length);
void __wrap_td_target_truncate(td_target *t, uint32_t slot, uint32_t length)
{
    tell(&(told){.kind = JOB_TRUNCATE, .slot = slot, .length = length});
    __real_td_target_truncate(t, slot, length);
}

void __real_td_target_commit(td_target *t, uint32_t slot, uint32_t length);
void __wrap_td_target_commit(td_target *t, uint32_t slot, uint32_t length);
void __wrap_td_target_commit(td_target *t, uint32_t slot, uint32_t length)
{
    tell(&(told){.kind = JOB_COMMIT, .slot = slot, .length = length});
    __real_td_target_commit(t, slot, length);
}

void __real_td_target_close_sequence(td_target *t, uint32_t slot);
void __wrap_td_target_close_sequence(td_target *t, uint32_t slot);
void __wrap_td_target_close_sequence(td_target *t, uint32_t slot)
{
    tell(&(told){.kind = JOB_CLOSE, .slot = slot});
    __real_td_target_close_sequence(t, slot);
}

bool __real_td_stage_start(stage *s, td_err *err);
bool __wrap_td_stage_start(stage *s, td_err *err);
bool __wrap_td_stage_start(stage *s, td_err *err)
{
    uint32_t i = 0;
    while (told_of.stages[i].s)
        CHECK(++i < N_THREADS);
    /* A worker loads for the target that is there now, or for one that is lost and is silent. */
    told_of.stages[i] =
        (known_stage){.s = s, .life = told_of.n_lives - 1, .machine = sim.running->machine};
    CHECK(s->n_slots <= N_SLOTS_MAX);
    return __real_td_stage_start(s, err);
}

void __real_td_stage_stop(stage *s);
void __wrap_td_stage_stop(stage *s);
void __wrap_td_stage_stop(stage *s)
{
    __real_td_stage_stop(s);
    for (uint32_t i = 0; i < N_THREADS; i++)
        if (told_of.stages[i].s == s)
            told_of.stages[i].s = NULL;
}

void __real_td_ring_drop(td_target *t);
void __wrap_td_ring_drop(td_target *t);
void __wrap_td_ring_drop(td_target *t)
{
    __real_td_ring_drop(t);
    for (uint32_t i = 0; i < N_THREADS; i++) /* a worker has one session at a time */
        told_of.stages[i].is_failed |= told_of.stages[i].machine == sim.running->machine;
}

/* Rows are those that were told; later stages may lack some. */
static void check_batch(const stage *s, const told *t, const micro_batch *b)
{
    CHECK(t->batch == b->id);
    CHECK(b->n_rows <= t->n_rows && (b->n_rows == t->n_rows || s->index > 0));
    uint32_t at = 0;
    for (uint32_t i = 0; i < b->n_rows; i++, at++) {
        const td_forward_row *r = &b->rows[i];
        while (at < t->n_rows &&
               (t->rows[at].slot != r->slot || t->rows[at].position != r->position))
            at++;
        CHECK(at < t->n_rows && t->rows[at].token == r->token &&
              t->rows[at].sequence == r->sequence && t->rows[at].is_output == r->is_output);
    }
}

/* What all jobs before this one have left. */
static void check_caches(const stage *s, const told *t)
{
    const td_cache *cache = td_forward_cache(s->forward);
    for (uint32_t i = 0; i < s->n_slots; i++)
        CHECK_SAYING(td_cache_committed(cache, i) == t->committed[i],
                     "stage %u has committed %u positions of slot %u; it was told %u", s->index,
                     td_cache_committed(cache, i), i, t->committed[i]);
}

static void check_job(known_stage *k, const job *j)
{
    const stage *s = k->s;
    life *l = &told_of.lives[k->life];
    if (j->kind == JOB_STOP)
        return;
    CHECK(k->n_jobs < l->n_jobs && k->n_jobs == l->n_begun[s->index]++);
    const told *t = &l->jobs[k->n_jobs++];
    told_of.n_jobs++;
    CHECK(t->kind == j->kind);
    if (j->kind == JOB_FORWARD)
        check_batch(s, t, j->batch);
    else
        CHECK(t->slot == j->slot && t->length == j->length);
    if (j->kind == JOB_OPEN)
        CHECK(t->from_slot == j->from_slot);
    k->is_failed |= s->failure.code || (j->kind == JOB_FORWARD && j->batch->err.code);
    if (!k->is_failed)
        check_caches(s, t);
}

td_queue_item *__real_td_queue_pop(td_queue *q);
td_queue_item *__wrap_td_queue_pop(td_queue *q);
td_queue_item *__wrap_td_queue_pop(td_queue *q)
{
    td_queue_item *item = __real_td_queue_pop(q);
    for (uint32_t i = 0; i < N_THREADS; i++)
        if (told_of.stages[i].s && &told_of.stages[i].s->in == q)
            check_job(&told_of.stages[i], (const job *)item);
    return item;
}

/* A batch that came back went through every stage, behind all that was told before it. */
static void check_answer(uint64_t batch, uint32_t n_stages)
{
    const life *l = life_now();
    uint32_t i = l->n_jobs;
    while (i > 0 && (l->jobs[i - 1].kind != JOB_FORWARD || l->jobs[i - 1].batch != batch))
        i--;
    CHECK(i > 0);
    for (uint32_t k = 0; k < n_stages; k++)
        CHECK(l->n_begun[k] >= i);
}

bool __real_td_target_poll(td_target *t, td_target_result *out);
bool __wrap_td_target_poll(td_target *t, td_target_result *out);
bool __wrap_td_target_poll(td_target *t, td_target_result *out)
{
    bool is_any = __real_td_target_poll(t, out);
    if (is_any && !out->err.code)
        check_answer(out->batch, td_target_n_stages(t));
    told_of.n_cancelled += is_any && out->is_cancelled;
    return is_any;
}

static bool is_stage(const td_forward *f)
{
    bool is_so = false;
    for (uint32_t i = 0; i < N_THREADS; i++)
        is_so |= told_of.stages[i].s && told_of.stages[i].s->forward == f;
    return is_so;
}

#endif
