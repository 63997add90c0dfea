/* Performs jobs. Rows of a cancelled batch that this stage had not begun are missing in its cache
 * from then on, and in those of all later stages: their sequences have a hole until they are
 * truncated or opened anew. Rows behind a hole are dead by the caller's word, but may share a batch
 * with live rows of other sequences; they are taken out of it.
 *
 * Of jobs from another machine nothing is taken on trust: what a cache or a sampler would hold for
 * a bug of ours is held against the caches as they are, and fails the stage. */
#include "target/stage_head.h"

#include "base/check.h"
#include "base/clock.h"
#include "transport/stage_wire.h"

#include <string.h>

/* What the last stage chooses tokens by. History is what the rows themselves say: a drafted row is
 * verified under the assumption that all rows before it stand, which is when it counts. */
static void prepare_rows(stage *s, micro_batch *b)
{
    for (uint32_t i = 0; i < b->n_rows; i++) {
        td_forward_row *r = &b->rows[i];
        struct stage_slot *slot = &s->slots[r->slot];
        slot->tokens[r->position] = r->token;
        r->history = slot->tokens;
        r->sampling = &slot->sampling;
        r->stream = slot->stream;
    }
}

/* Chooses the token after each output row. */
static bool choose_rows(stage *s, micro_batch *b)
{
    uint32_t n_out = 0;
    for (uint32_t i = 0; i < b->n_rows; i++) {
        const td_forward_row *r = &b->rows[i];
        if (!r->is_output)
            continue;
        bool is_finite;
        if (!td_forward_choose(s->forward, n_out, r, s->sampler, &b->chosen[b->i_out[i]],
                               &is_finite, &b->err))
            return false;
        if (!is_finite)
            b->bad[b->n_bad++] = r->sequence;
        n_out++;
    }
    return true;
}

/* Whether anything of the batch is left to do; takes dead rows out. */
static bool take_out_dead(stage *s, micro_batch *b)
{
    if (!b->is_skipped && atomic_load_explicit(&b->is_cancelled, memory_order_acquire))
        b->is_skipped = true;
    uint32_t n = 0;
    size_t n_embd = s->n_embd;
    for (uint32_t i = 0; i < b->n_rows; i++) {
        struct stage_slot *slot = &s->slots[b->rows[i].slot];
        slot->has_hole |= b->is_skipped;
        if (slot->has_hole)
            continue;
        if (n < i) {
            b->rows[n] = b->rows[i];
            b->i_out[n] = b->i_out[i];
            if (!td_forward_is_first(s->forward))
                memcpy(b->activations + n * n_embd, b->activations + i * n_embd,
                       n_embd * sizeof(float));
        }
        n++;
    }
    if (!b->is_skipped) /* else later stages shall see all its rows */
        b->n_rows = n;
    return n > 0;
}

/* Whether the rows can be run: each where its sequence ends, of sequences that were opened. */
static bool check_rows(const stage *s, const micro_batch *b, td_err *err)
{
    const td_cache *cache = td_forward_cache(s->forward);
    uint32_t next[TD_STAGE_SLOTS_MAX];
    for (uint32_t i = 0; i < s->n_slots; i++)
        next[i] = td_cache_length(cache, i);
    for (uint32_t i = 0; i < b->n_rows; i++) {
        const td_forward_row *r = &b->rows[i];
        uint32_t committed = td_cache_committed(cache, r->slot);
        bool is_near = b->mode == TD_MODE_PREFILL || !td_cache_forgets(cache) ||
                       r->position < committed + TD_TARGET_FLIGHT_MAX;
        if (r->position != next[r->slot]++ || !s->slots[r->slot].is_open || !is_near)
            return td_err_set(
                err, TD_E_DATA,
                "a row of slot %u at position %u; allowed: %u, of a sequence that was "
                "opened, with %u committed",
                r->slot, r->position, next[r->slot] - 1, committed);
    }
    return true;
}

/* Whether a job other than a batch can be done. */
static bool check_job(const stage *s, const job *j, td_err *err)
{
    const td_cache *cache = td_forward_cache(s->forward);
    uint32_t there = td_cache_committed(cache, j->kind == JOB_OPEN ? j->from_slot : j->slot);
    bool is_ok = true;
    if (j->kind == JOB_OPEN && j->length)
        is_ok =
            !td_cache_forgets(cache) && j->length % TD_PAGE_POSITIONS == 0 && j->length <= there;
    else if (j->kind == JOB_TRUNCATE)
        is_ok = j->length >= there;
    return is_ok ||
           td_err_set(err, TD_E_DATA, "a sequence is %s with %u positions, where %u are committed",
                      j->kind == JOB_OPEN ? "opened" : "truncated", j->length, there);
}

void td_stage_add_busy(td_stage_info *info, const micro_batch *b, uint64_t busy_us)
{
    if (b->mode == TD_MODE_PREFILL) {
        info->busy_prefill_us += busy_us;
        info->n_prefill_rows += b->n_rows;
        info->n_prefills++;
    } else {
        info->busy_verify_us += busy_us;
        info->n_verify_rows += b->n_rows;
        info->n_verifies++;
    }
}

static bool is_forward(const td_queue_item *item)
{
    return ((const job *)item)->kind == JOB_FORWARD;
}

/* The next batch, if it waits here already, is prepared for while this one runs. */
static void expect_next(stage *s)
{
    const job *next = (const job *)td_queue_find(&s->in, is_forward);
    const micro_batch *b = next ? next->batch : NULL;
    if (b && b->n_rows)
        td_forward_expect(s->forward, b->mode, b->n_rows, td_min_u32(b->n_out, b->n_rows));
}

/* Has the part read the activations where they lie, if its device reaches that, and write its own
 * where the next one may. */
static void take_activations(stage *s, micro_batch *b)
{
    const char *home = s->home ? td_home_data(s->home) : NULL;
    bool is_there = home && (const char *)b->activations == home + b->home_offset;
    td_forward_place(s->forward, is_there ? s->home : NULL, s->home, b->home_offset);
    if (is_there || td_forward_is_first(s->forward))
        return;
    td_forward_copy_input(s->forward, b->activations, b->n_rows);
    s->info.n_copied_bytes += 4ull * b->n_rows * s->n_embd;
}

static void hand_on_activations(stage *s, micro_batch *b)
{
    if (s->home) {
        b->activations = (float *)(void *)((char *)td_home_data(s->home) + b->home_offset);
        return;
    }
    memcpy(b->activations, td_forward_output(s->forward),
           (size_t)b->n_rows * s->n_embd * sizeof(float));
    s->info.n_copied_bytes += 4ull * b->n_rows * s->n_embd;
}

/* -- chunks of prompts on the disk (target/prompts.h) -------------------------------------------
 * What was found is put into the caches, stage by stage; what was not is computed and taken out of
 * them, stage by stage, to be written when the last one here is done. */

/* What the head goes on with behind a chunk. */
static void move_row(stage *s, micro_batch *b, uint32_t end)
{
    uint32_t slot = b->rows[0].slot, n_bytes = s->n_embd * (uint32_t)sizeof(float);
    uint8_t *bytes = b->chunk->bytes + b->chunk_at;
    TD_ASSERT(b->chunk_at + n_bytes <= b->chunk->head.n_bytes);
    if (b->is_restored)
        td_stage_head_restore(s, slot, end, bytes);
    else
        memcpy(bytes, td_stage_head_row(s, slot, end - 1), n_bytes);
    b->chunk_at += n_bytes;
}

/* The stage's part of a chunk that was found, or of one that was not. One that cannot be taken out
 * is not kept. */
static bool move_chunk(stage *s, micro_batch *b)
{
    td_cache *cache = td_forward_cache(s->forward);
    uint32_t slot = b->rows[0].slot, first = b->rows[0].position, end = first + b->n_rows;
    uint64_t n_bytes = td_cache_chunk_bytes(cache, first, end);
    uint8_t *bytes = b->chunk->bytes + b->chunk_at;
    TD_ASSERT(b->chunk_at + n_bytes <= b->chunk->head.n_bytes);
    if (b->is_restored && !td_cache_write_chunk(cache, slot, first, end, bytes, &b->err))
        return false;
    if (!b->is_restored && !td_cache_read_chunk(cache, slot, first, end, bytes, NULL))
        return true;
    b->chunk_at += n_bytes;
    if (s->head)
        move_row(s, b, end);
    return true;
}

static void end_chunk(stage *s, micro_batch *b)
{
    bool is_whole = b->chunk && b->chunk_at == b->chunk->head.n_bytes && b->err.code == TD_OK;
    if (b->chunk && s->prefix)
        td_prefix_done(s->prefix, &b->chunk, is_whole);
}

static bool compute(stage *s, micro_batch *b)
{
    bool is_last = td_forward_is_last(s->forward);
    take_activations(s, b);
    expect_next(s);
    if (!td_forward_run(s->forward, b->mode, b->rows, b->n_rows, &b->err) ||
        (is_last && !choose_rows(s, b)))
        return false;
    if (s->head)
        td_stage_head_take(s, b->mode, b->rows, b->n_rows);
    if (!is_last)
        hand_on_activations(s, b);
    return true;
}

static void run_batch(stage *s, micro_batch *b)
{
    const td_clock clock = td_clock_real();
    uint64_t start = td_clock_now_us(&clock);
    b->spans[s->index] = (td_target_span){start, start, start - b->came_us};
    b->came_us = start; /* to the next, where nothing is done here */
    /* A batch that fails anywhere leaves holes in the caches from there on, so every later one
     * fails as well. */
    if (b->err.code != TD_OK)
        s->failure = b->err;
    if (b->err.code != TD_OK || !take_out_dead(s, b))
        return;
    b->err = s->failure;
    if (b->err.code != TD_OK)
        return;
    if (s->is_serving && !check_rows(s, b, &b->err)) {
        s->failure = b->err;
        return;
    }
    if (td_forward_is_last(s->forward))
        prepare_rows(s, b);
    if ((!b->is_restored && !compute(s, b)) || (b->chunk && !move_chunk(s, b))) {
        s->failure = b->err;
        return;
    }
    uint64_t end = td_clock_now_us(&clock);
    b->spans[s->index].end_us = b->came_us = end;
    if (!b->is_restored)
        td_stage_add_busy(&s->info, b, end - start);
}

static void open_slot(stage *s, const job *j)
{
    td_cache *cache = td_forward_cache(s->forward);
    struct stage_slot *to = &s->slots[j->slot];
    uint32_t length = j->length;
    if (s->failure.code != TD_OK) /* what was to be committed there may be missing */
        length = 0;
    bool is_other = j->from_slot != j->slot;
    if (length && !is_other)
        td_cache_rewind(cache, j->slot, length);
    else
        td_cache_clear(cache, j->slot);
    if (length && is_other)
        td_cache_share(cache, j->from_slot, j->slot, length);
    if (length && is_other && to->tokens)
        memcpy(to->tokens, s->slots[j->from_slot].tokens, length * sizeof *to->tokens);
    if (s->head)
        td_stage_head_open(s, j->slot, j->from_slot, length);
    to->has_hole = false;
    to->is_open = true;
    to->stream = j->stream;
    to->sampling = j->sampling;
}

static void perform(stage *s, job *j)
{
    td_cache *cache = td_forward_cache(s->forward);
    if (s->is_serving && !check_job(s, j, &s->failure))
        return;
    switch (j->kind) {
    case JOB_FORWARD:
        run_batch(s, j->batch);
        end_chunk(s, j->batch);
        break;
    case JOB_OPEN:
        open_slot(s, j);
        break;
    case JOB_TRUNCATE:
        td_cache_truncate(cache, j->slot, j->length);
        s->slots[j->slot].has_hole = false;
        if (s->head)
            td_stage_head_truncate(s, j->slot, j->length);
        break;
    case JOB_COMMIT: {
        /* After a failed batch the cache may be shorter than what was committed elsewhere; and a
         * prefill may have committed itself (forward.h). */
        uint32_t length = td_min_u32(j->length, td_cache_length(cache, j->slot));
        if (length > td_cache_committed(cache, j->slot))
            td_cache_commit(cache, j->slot, length);
        break;
    }
    case JOB_CLOSE:
        td_cache_clear(cache, j->slot);
        s->slots[j->slot].has_hole = false;
        if (s->head)
            td_stage_head_open(s, j->slot, j->slot, 0);
        break;
    case JOB_DRAFT:
        if (s->head)
            td_stage_head_propose(s, j->drafts);
        break;
    case JOB_STOP:
        break;
    }
}

static void *stage_main(void *arg)
{
    stage *s = arg;
    for (bool is_stopped = false; !is_stopped;) {
        job *j = (job *)td_queue_pop(&s->in);
        perform(s, j);
        is_stopped = j->kind == JOB_STOP;
        bool is_awaited = job_is_awaited(j->kind);
        td_queue_push(s->out, &j->item); /* the job is another's from here on */
        if (s->wake && is_awaited)
            s->wake(s->user);
    }
    return NULL;
}

bool td_stage_start(stage *s, td_err *err)
{
    int rc = pthread_create(&s->thread, NULL, stage_main, s);
    if (rc)
        return td_err_set(err, TD_E_NOMEM, "stage thread: %s", strerror(rc));
    s->is_running = true;
    return true;
}

void td_stage_stop(stage *s)
{
    if (s->is_running)
        pthread_join(s->thread, NULL);
    s->is_running = false;
}
