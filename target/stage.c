#include "target/stage.h"

#include "base/check.h"
#include "base/clock.h"

#include <string.h>

/* Chooses the token after each output row. History is what the rows themselves say: a drafted row
 * is verified under the assumption that all rows before it stand, which is when it counts. */
static bool choose_rows(stage *s, batch *b)
{
    uint32_t n_out = 0;
    for (uint32_t i = 0; i < b->n_rows; i++) {
        const td_forward_row *r = &b->rows[i];
        struct stage_slot *slot = &s->slots[r->slot];
        slot->tokens[r->position] = r->token;
        if (!r->is_output)
            continue;
        bool is_finite;
        if (!td_forward_choose(s->forward, n_out, r, slot->tokens, s->sampler, &b->chosen[n_out],
                               &is_finite, &b->err))
            return false;
        if (!is_finite)
            b->bad_slots |= 1ull << r->slot;
        n_out++;
    }
    return true;
}

static void run_batch(stage *s, batch *b)
{
    /* A batch that fails anywhere leaves holes in the caches from there on, so every later one
     * fails as well. */
    if (b->err.code == TD_OK)
        b->err = s->failure;
    if (b->err.code != TD_OK) {
        s->failure = b->err;
        return;
    }
    const td_clock clock = td_clock_real();
    uint64_t start = td_clock_now_us(&clock);
    if (!td_forward_is_first(s->forward))
        td_forward_copy_input(s->forward, b->activations, b->n_rows);
    bool is_last = td_forward_is_last(s->forward);
    for (uint32_t i = 0; is_last && i < b->n_rows; i++) {
        b->rows[i].sampling = &s->slots[b->rows[i].slot].sampling;
        b->rows[i].stream = s->slots[b->rows[i].slot].stream;
    }
    if (!td_forward_run(s->forward, b->mode, b->rows, b->n_rows, &b->err) ||
        (is_last && !choose_rows(s, b))) {
        s->failure = b->err;
        return;
    }
    if (!is_last)
        memcpy(b->activations, td_forward_output(s->forward),
               (size_t)b->n_rows * s->n_embd * sizeof(float));
    uint64_t busy_us = td_clock_now_us(&clock) - start;
    td_stage_info *info = &s->info;
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

static void perform(stage *s, job *j)
{
    td_cache *cache = td_forward_cache(s->forward);
    switch (j->kind) {
    case JOB_FORWARD:
        run_batch(s, j->batch);
        break;
    case JOB_OPEN:
        td_cache_clear(cache, j->slot);
        s->slots[j->slot].stream = j->stream;
        s->slots[j->slot].sampling = j->sampling;
        break;
    case JOB_TRUNCATE:
        td_cache_truncate(cache, j->slot, j->length);
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
        break;
    case JOB_STOP:
        break;
    }
}

static void *stage_main(void *arg)
{
    stage *s = arg;
    for (bool is_stopped = false; !is_stopped;) {
        job *j = queue_pop(&s->in);
        perform(s, j);
        is_stopped = j->kind == JOB_STOP;
        queue_push(s->out, j);
        if (s->wake)
            s->wake(s->user);
    }
    return NULL;
}

bool stage_start(stage *s, td_err *err)
{
    int rc = pthread_create(&s->thread, NULL, stage_main, s);
    if (rc)
        return td_err_set(err, TD_E_NOMEM, "stage thread: %s", strerror(rc));
    s->is_running = true;
    return true;
}

void stage_stop(stage *s)
{
    if (s->is_running)
        pthread_join(s->thread, NULL);
    s->is_running = false;
}
