#include "target/prompts.h"

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

typedef struct { /* for a batch that is to come; no blob: free */
    uint64_t batch;
    td_prefix_blob *blob;
} held;

struct td_prompts {
    td_prompts_params at;
    td_prefix *prefix;
    pthread_t thread;
    bool is_thread;
    /* A gate's. */
    td_queue in;
    bool is_over, has_told; /* nobody is asked any more; of damage */
    /* A worker's, under the lock. */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    td_stage_find find;
    td_stage_found found;
    bool is_asked, is_answered, is_stopping;
    held *helds;
    uint32_t n_helds;
};

static uint64_t chunk_bytes(const td_prompts *p, uint32_t first)
{
    uint64_t n_bytes = p->at.row_bytes;
    for (uint32_t i = 0; i < p->at.n_parts; i++)
        n_bytes += td_cache_chunk_bytes(p->at.parts[i], first, first + p->at.chunk_rows);
    return n_bytes;
}

/* -- a gate ------------------------------------------------------------------------------------ */

static bool is_chunk(const td_prompts *p, const micro_batch *b)
{
    bool is_so = b->mode == TD_MODE_PREFILL && b->n_rows == p->at.chunk_rows &&
                 b->rows[0].position % b->n_rows == 0 &&
                 !atomic_load_explicit(&b->is_cancelled, memory_order_acquire);
    for (uint32_t i = 1; is_so && i < b->n_rows; i++)
        is_so =
            b->rows[i].slot == b->rows[0].slot && b->rows[i].position == b->rows[0].position + i;
    return is_so;
}

/* Whether all workers have it. */
static bool hear(td_prompts *p)
{
    const char *damaged, *late;
    bool is_there = td_remotes_found_chunk(p->at.remotes, &damaged, &late);
    if (damaged && !p->has_told)
        td_log_warn("host %s: a prompt kept there is damaged; it is computed", damaged);
    p->has_told |= damaged != NULL;
    if (late)
        td_log_warn("host %s: its disk is too slow for kept prompts; they are computed", late);
    p->is_over |= late != NULL;
    return is_there;
}

static void look(td_prompts *p, micro_batch *b)
{
    uint32_t first = b->rows[0].position, n = p->at.chunk_rows;
    td_stage_find find = {.batch = b->id, .first = first, .n = (uint16_t)n};
    td_prefix_head head;
    bool is_wanted = b->n_out == 0; /* else its rows have to be run anyway */
    b->chunk_at = 0;
    if (p->is_over || !is_chunk(p, b))
        return;
    for (uint32_t i = 0; i < n; i++)
        find.tokens[i] = b->rows[i].token;
    if (!td_prefix_ask(p->prefix, b->rows[0].slot, first, find.tokens, &head))
        return;
    memcpy(find.before, head.before, sizeof find.before);
    if (p->at.remotes)
        td_remotes_find_chunk(p->at.remotes, &find);
    b->chunk = td_prefix_look(p->prefix, &head, chunk_bytes(p, first), is_wanted);
    bool is_here = !p->at.n_parts || (b->chunk && b->chunk->is_loaded);
    bool is_there = !p->at.remotes || hear(p);
    b->is_restored = is_wanted && is_here && is_there;
    if (!b->is_restored && b->chunk && b->chunk->is_loaded)
        td_prefix_done(p->prefix, &b->chunk, false);
}

static void *gate_main(void *arg)
{
    td_prompts *p = arg;
    for (bool is_stopped = false; !is_stopped;) {
        job *j = (job *)td_queue_pop(&p->in);
        is_stopped = j->kind == JOB_STOP;
        bool is_awaited = job_is_awaited(j->kind);
        if (j->kind == JOB_OPEN)
            td_prefix_open(p->prefix, j->slot, j->from_slot, j->length);
        else if (j->kind == JOB_FORWARD)
            look(p, j->batch);
        td_queue_push(p->at.out, &j->item); /* the job is another's from here on */
        if (p->at.wake && is_awaited)
            p->at.wake(p->at.user);
    }
    return NULL;
}

/* -- a worker's -------------------------------------------------------------------------------- */

/* Under the lock. */
static held *find_held(td_prompts *p, uint64_t batch)
{
    for (uint32_t i = 0; i < p->n_helds; i++)
        if (p->helds[i].blob && p->helds[i].batch == batch)
            return &p->helds[i];
    return NULL;
}

/* Under the lock. There is a place for every blob. */
static void hold(td_prompts *p, uint64_t batch, td_prefix_blob *blob)
{
    held *h = p->helds;
    while (h->blob)
        h++;
    TD_ASSERT(h < p->helds + p->n_helds);
    *h = (held){batch, blob};
}

static void *reader_main(void *arg)
{
    td_prompts *p = arg;
    pthread_mutex_lock(&p->lock);
    while (true) {
        while (!p->is_stopping && !(p->is_asked && !p->is_answered))
            pthread_cond_wait(&p->changed, &p->lock);
        if (p->is_stopping)
            break;
        const td_stage_find *f = &p->find; /* no other comes until it is answered */
        td_prefix_head head;
        pthread_mutex_unlock(&p->lock);
        td_prefix_behind(p->prefix, f->before, f->first, f->tokens, &head);
        td_prefix_blob *b = td_prefix_look(p->prefix, &head, chunk_bytes(p, f->first), true);
        pthread_mutex_lock(&p->lock);
        p->found = (td_stage_found){.batch = f->batch,
                                    .what = b && b->is_loaded      ? TD_STAGE_THERE
                                            : b && b->is_replacing ? TD_STAGE_DAMAGED
                                                                   : TD_STAGE_MISSING};
        p->is_answered = true;
        if (b && p->is_stopping)
            td_prefix_done(p->prefix, &b, false);
        else if (b)
            hold(p, f->batch, b);
        if (p->at.wake)
            p->at.wake(p->at.user);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

bool td_prompts_ask(td_prompts *p, const td_stage_find *f, td_err *err)
{
    uint32_t n = p->at.chunk_rows;
    pthread_mutex_lock(&p->lock);
    bool is_ok = !p->is_asked && f->n == n && f->first % n == 0 && f->first <= p->at.n_ctx - n &&
                 !find_held(p, f->batch);
    if (is_ok) {
        p->find = *f;
        p->is_asked = true;
        pthread_cond_signal(&p->changed);
    } else {
        td_err_set(err, TD_E_DATA,
                   "a chunk of %u at position %u is asked for; allowed: one at a time, of %u at "
                   "multiples of that, within %u",
                   f->n, f->first, n, p->at.n_ctx);
    }
    pthread_mutex_unlock(&p->lock);
    return is_ok;
}

bool td_prompts_answer(td_prompts *p, td_stage_found *out)
{
    pthread_mutex_lock(&p->lock);
    bool is_there = p->is_asked && p->is_answered;
    *out = p->found;
    if (is_there)
        p->is_asked = p->is_answered = false;
    pthread_mutex_unlock(&p->lock);
    return is_there;
}

/* Whether a batch is of the chunk that was asked for. */
static bool is_of(const micro_batch *b, const td_prefix_head *h)
{
    bool is_so = b->mode == TD_MODE_PREFILL && b->n_rows == h->n_tokens && !b->is_skipped;
    for (uint32_t i = 0; is_so && i < b->n_rows; i++)
        is_so = b->rows[i].slot == b->rows[0].slot && b->rows[i].position == h->first + i &&
                b->rows[i].token == h->tokens[i];
    return is_so;
}

bool td_prompts_join(td_prompts *p, micro_batch *b, td_err *err)
{
    pthread_mutex_lock(&p->lock);
    held *h = find_held(p, b->id);
    b->chunk_at = 0;
    b->chunk = h ? h->blob : NULL;
    if (h)
        h->blob = NULL;
    pthread_mutex_unlock(&p->lock);
    bool is_found = b->chunk && b->chunk->is_loaded, is_right = h && is_of(b, &b->chunk->head);
    bool is_ok = !b->is_restored || b->is_skipped || (is_found && is_right);
    if (b->chunk && (!is_right || is_found != b->is_restored))
        td_prefix_done(p->prefix, &b->chunk, false);
    return is_ok ||
           td_err_set(err, TD_E_DATA, "batch %llu says that its chunk was found, which is not so",
                      (unsigned long long)b->id);
}

/* -- both -------------------------------------------------------------------------------------- */

td_prefix *td_prompts_prefix(td_prompts *p) { return p->prefix; }
td_queue *td_prompts_in(td_prompts *p) { return &p->in; }

static bool start(td_prompts *p, td_err *err)
{
    sigset_t signals, before; /* those are the main thread's */
    sigfillset(&signals);
    pthread_sigmask(SIG_SETMASK, &signals, &before);
    int rc = pthread_create(&p->thread, NULL, p->at.out ? gate_main : reader_main, p);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    p->is_thread = rc == 0;
    return p->is_thread || td_err_set(err, TD_E_NOMEM, "kept prompts: %s", strerror(rc));
}

td_prompts *td_prompts_create(const td_prompts_params *at, td_err *err)
{
    td_prompts *p = td_alloc(1, sizeof *p, err);
    char *identity = NULL;
    if (!p)
        return NULL;
    p->at = *at;
    td_queue_init(&p->in);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->changed, NULL);
    td_prefix_params params = {.store = at->store,
                               .model = at->model,
                               .what = at->what,
                               .chunk_rows = at->chunk_rows,
                               .n_slots = at->n_slots,
                               .n_ctx = at->n_ctx,
                               .n_reading = at->n_stages + 1};
    params.chunk_bytes = at->row_bytes;
    for (uint32_t i = 0; i < at->n_parts; i++)
        params.chunk_bytes += td_cache_chunk_bytes_max(at->parts[i], at->chunk_rows);
    p->n_helds = params.n_reading + TD_PREFIX_WRITING;
    p->helds = td_alloc(p->n_helds, sizeof *p->helds, err);
    bool is_ok =
        p->helds && td_prefix_write_identity(at->identity, at->parts, at->n_parts, &identity, err);
    params.identity = identity;
    p->prefix = is_ok ? td_prefix_create(&params, err) : NULL;
    p->at.identity = p->at.model = p->at.what = NULL;
    td_free(identity);
    if (!p->prefix || !start(p, err))
        td_prompts_destroy(&p);
    return p;
}

void td_prompts_destroy(td_prompts **prompts)
{
    td_prompts *p = *prompts;
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->is_stopping = true;
    for (uint32_t i = 0; p->helds && i < p->n_helds; i++) /* nothing comes for them any more */
        if (p->helds[i].blob)
            td_prefix_done(p->prefix, &p->helds[i].blob, false);
    pthread_cond_signal(&p->changed);
    pthread_mutex_unlock(&p->lock);
    if (p->is_thread)
        pthread_join(p->thread, NULL);
    td_prefix_destroy(&p->prefix);
    td_free(p->helds);
    td_queue_destroy(&p->in);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->changed);
    td_free(p);
    *prompts = NULL;
}

bool td_prompts_describe(const td_layout *l, const td_model *model, const td_cache_types *kv,
                         char **out, td_err *err)
{
    char kind[TD_DEVICE_KIND_BYTES], experts[TD_DEVICE_KIND_BYTES], types[TD_CACHE_TYPES_TEXT];
    size_t room = sizeof types + 160 + l->n_parts * (2 * sizeof kind + 64), n;
    char *text = td_alloc(room, 1, err);
    if (!text)
        return false;
    td_cache_types_write(kv, types);
    n = (size_t)snprintf(text, room,
                         "stage; tandem=%s; model=%016llx; cache=%s; layers=", TD_VERSION,
                         (unsigned long long)td_gguf_hash(td_model_gguf(model)), types);
    for (uint32_t i = 0; i < l->n_parts; i++) {
        const td_layout_part *part = &l->parts[i];
        td_device_write_kind(td_device_get_info(part->dev), kind, sizeof kind);
        experts[0] = 0;
        if (part->experts_dev)
            td_device_write_kind(td_device_get_info(part->experts_dev), experts, sizeof experts);
        n += (size_t)snprintf(text + n, room - n, "%u-%u on %s with experts on %s, ", part->first,
                              part->last, kind, experts);
    }
    *out = text;
    return true;
}
