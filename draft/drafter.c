/* A sequence is a slot of the cache and the tokens it stands for: tokens[0..n_cached-1] always are
 * those whose keys and values are there. Feeding compares with them, so what stays need not be
 * computed again, be it the tail that was right or what another sequence left in the slot. */
#include "draft/drafter.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/mem.h"
#include "model/prefix.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    bool is_open;
    uint32_t sequence;
    uint64_t stream;
    td_sampling_params sampling;
    const uint32_t *noise_ids; /* [n_vocab], borrowed, or NULL */
    int64_t noise_shift;
    bool is_read;         /* the last token took the logits: steps ahead would be for nothing */
    uint32_t *tokens;     /* [n_ctx + 1]: committed ones, then the tail */
    uint32_t n_tokens;    /* known */
    uint32_t n_committed; /* of these */
    uint32_t n_cached;    /* above n_tokens: left there by the slot's last sequence */
    uint32_t told_other;  /* the first position at which another token was told than proposed */
    uint64_t closed_at;   /* orders free slots by age */
} drafter_sequence;

/* Read by another thread than the drafter's. */
typedef struct {
    _Atomic uint64_t n_proposals, n_tokens, n_fed, n_evaluated, n_shared, n_restored, n_runs,
        n_read, busy_us;
} counters;

struct td_drafter {
    td_drafter_params params;
    td_device *dev;
    td_forward *forward;
    td_sampler *sampler;
    td_cache *cache;   /* of forward */
    td_prefix *prefix; /* NULL: no prompts are kept */
    uint32_t n_chunk;  /* positions of what is kept as one */
    uint32_t n_ctx, n_vocab, n_steps;
    uint64_t n_closed;
    drafter_sequence *sequences; /* [n_slots], the slot is the index */
    counters counts;
    td_drafter_stats stats; /* as last asked for */
};

/* A proposal in a step. */
typedef struct {
    td_proposal *p;
    drafter_sequence *s;
} decode_job;

static td_forward_params forward_params(const td_drafter *d)
{
    return td_forward_drafting(d->params.model, d->dev, &d->params.kv, d->params.n_slots, d->n_ctx);
}

/* The model's context, halved until it fits. */
static bool choose_context(td_drafter *d, td_err *err)
{
    uint64_t used, budget, wanted;
    td_device_memory(d->dev, &used, &budget);
    d->n_ctx = d->params.n_ctx ? d->params.n_ctx : td_model_hparams(d->params.model)->n_ctx_train;
    while (true) {
        td_forward_params params = forward_params(d);
        wanted = td_forward_bytes(&params);
        if (used + wanted <= budget)
            break;
        if (d->params.n_ctx || d->n_ctx <= TD_PREFILL_ROWS_MAX)
            return td_err_set(err, TD_E_NOMEM, "%s: the draft needs %llu MiB, %llu MiB are free",
                              d->params.spec, (unsigned long long)(wanted >> 20),
                              (unsigned long long)(budget > used ? (budget - used) >> 20 : 0));
        d->n_ctx /= 2;
    }
    return true;
}

/* Everything that a chunk's bits depend on. */
static bool keep_prompts(td_drafter *d, td_err *err)
{
    char kind[TD_DEVICE_KIND_BYTES], kv[TD_CACHE_TYPES_TEXT], what[TD_PREFIX_WHAT_BYTES];
    char said[sizeof kind + sizeof kv + 160], *identity = NULL;
    const td_model *model = d->params.model;
    const td_cache *caches[] = {d->cache};
    if (!d->params.prompts)
        return true;
    bool is_host = td_device_get_info(d->dev)->kind == TD_DEVICE_HOST;
    bool is_long = d->n_ctx > td_model_hparams(model)->rope_orig_ctx;
    d->n_chunk = is_host ? TD_PAGE_POSITIONS : TD_PREFILL_ROWS_MAX;
    td_device_write_kind(td_device_get_info(d->dev), kind, sizeof kind);
    td_cache_types_write(&d->params.kv, kv);
    snprintf(what, sizeof what, "draft, %.79s on %.150s", kv, kind);
    snprintf(said, sizeof said, "draft; tandem=%s; model=%016llx; cache=%s; chunk=%u; %s; rope=%s",
             TD_VERSION, (unsigned long long)td_gguf_hash(td_model_gguf(model)), kv, d->n_chunk,
             kind, is_long ? "long" : "short");
    if (!td_prefix_write_identity(said, caches, TD_COUNT(caches), &identity, err))
        return false;
    d->prefix = td_prefix_create(
        &(td_prefix_params){.store = d->params.prompts,
                            .identity = identity,
                            .model = td_model_name(model),
                            .what = what,
                            .chunk_rows = d->n_chunk,
                            .chunk_bytes = td_cache_chunk_bytes_max(d->cache, d->n_chunk),
                            .n_slots = d->params.n_slots,
                            .n_ctx = d->n_ctx,
                            .n_reading = 1},
        err);
    td_free(identity);
    return d->prefix;
}

td_drafter *td_drafter_create(const td_drafter_params *params, td_err *err)
{
    td_drafter *d = td_alloc(1, sizeof *d, err);
    if (!d)
        return NULL;
    d->params = *params;
    d->n_vocab = td_model_hparams(params->model)->n_vocab;
    d->dev = td_device_create(params->spec, err);
    if (!d->dev)
        goto fail;
    if (!choose_context(d, err))
        goto fail;
    td_forward_params forward = forward_params(d);
    d->n_steps = forward.n_steps_max;
    d->forward = td_forward_create(&forward, err);
    d->cache = d->forward ? td_forward_cache(d->forward) : NULL;
    d->sampler = d->forward ? td_sampler_create(d->n_vocab, err) : NULL;
    d->sequences = td_alloc(params->n_slots, sizeof *d->sequences, err);
    if (!d->sampler || !d->sequences)
        goto fail;
    for (uint32_t i = 0; i < params->n_slots; i++)
        if (!(d->sequences[i].tokens = td_alloc((size_t)d->n_ctx + 1, sizeof(uint32_t), err)))
            goto fail;
    if (!keep_prompts(d, err))
        goto fail;
    return d;
fail:
    td_err_prepend(err, "draft");
    td_drafter_destroy(&d);
    return NULL;
}

void td_drafter_destroy(td_drafter **drafter)
{
    td_drafter *d = *drafter;
    if (!d)
        return;
    if (d->sequences)
        for (uint32_t i = 0; i < d->params.n_slots; i++)
            td_free(d->sequences[i].tokens);
    td_free(d->sequences);
    td_prefix_destroy(&d->prefix);
    td_sampler_destroy(&d->sampler);
    td_forward_destroy(&d->forward);
    td_device_destroy(&d->dev);
    td_free(d);
    *drafter = NULL;
}

uint32_t td_drafter_n_ctx(const td_drafter *d) { return d->n_ctx; }
uint32_t td_drafter_n_slots(const td_drafter *d) { return d->params.n_slots; }
const td_device_info *td_drafter_device(const td_drafter *d) { return td_device_get_info(d->dev); }

const td_drafter_stats *td_drafter_get_stats(td_drafter *d)
{
    const counters *c = &d->counts;
    d->stats = (td_drafter_stats){.n_proposals = c->n_proposals,
                                  .n_tokens = c->n_tokens,
                                  .n_fed = c->n_fed,
                                  .n_evaluated = c->n_evaluated,
                                  .n_shared = c->n_shared,
                                  .n_restored = c->n_restored,
                                  .n_runs = c->n_runs,
                                  .n_read = c->n_read,
                                  .busy_us = c->busy_us};
    return &d->stats;
}

static uint32_t slot_of(const td_drafter *d, const drafter_sequence *s)
{
    return (uint32_t)(s - d->sequences);
}

/* Drops the cache beyond the first n positions, and more where it cannot go back to just that. */
static void roll_back(td_drafter *d, drafter_sequence *s, uint32_t n)
{
    uint32_t slot = slot_of(d, s);
    if (s->n_cached <= n)
        return;
    s->n_cached = n;
    if (n >= td_cache_committed(d->cache, slot)) {
        td_cache_truncate(d->cache, slot, n);
    } else if (td_cache_forgets(d->cache)) {
        td_cache_clear(d->cache, slot);
        s->n_cached = 0;
    } else {
        s->n_cached = n - n % TD_PAGE_POSITIONS;
        td_cache_rewind(d->cache, slot, s->n_cached);
    }
}

/* The first n tokens are there to stay. */
static void commit(td_drafter *d, drafter_sequence *s, uint32_t n)
{
    n = td_min_u32(n, s->n_cached);
    if (n > td_cache_committed(d->cache, slot_of(d, s)))
        td_cache_commit(d->cache, slot_of(d, s), n);
}

static drafter_sequence *find(td_drafter *d, uint32_t sequence)
{
    for (uint32_t i = 0; i < d->params.n_slots; i++)
        if (d->sequences[i].is_open && d->sequences[i].sequence == sequence)
            return &d->sequences[i];
    return NULL;
}

static bool find_open(td_drafter *d, uint32_t sequence, drafter_sequence **s, td_err *err)
{
    *s = find(d, sequence);
    return *s || td_err_set(err, TD_E_DATA, "sequence %u is not open", sequence);
}

/* What is in the cache stays, for whoever begins alike. */
void td_drafter_close(td_drafter *d, uint32_t sequence)
{
    drafter_sequence *s = find(d, sequence);
    if (!s)
        return;
    s->is_open = false;
    s->closed_at = ++d->n_closed;
    if (td_cache_forgets(d->cache))
        roll_back(d, s, 0);
    else
        commit(d, s, s->n_cached);
}

void td_drafter_reset(td_drafter *d)
{
    for (uint32_t i = 0; i < d->params.n_slots; i++)
        if (d->sequences[i].is_open)
            td_drafter_close(d, d->sequences[i].sequence);
}

/* The free slot that was left longest ago. */
static drafter_sequence *find_free(td_drafter *d)
{
    drafter_sequence *best = NULL;
    for (uint32_t i = 0; i < d->params.n_slots; i++) {
        drafter_sequence *s = &d->sequences[i];
        if (!s->is_open && (!best || s->closed_at < best->closed_at))
            best = s;
    }
    return best;
}

bool td_drafter_open(td_drafter *d, uint32_t sequence, uint64_t stream,
                     const td_sampling_params *sampling, td_err *err)
{
    td_err why = {0};
    if (!td_sampling_check(sampling, &why))
        return td_err_set(err, TD_E_DATA, "sequence %u: %s", sequence, why.message);
    td_drafter_close(d, sequence);
    drafter_sequence *s = find_free(d);
    if (!s)
        return td_err_set(err, TD_E_DATA, "sequence %u: all %u slots are taken (--parallel)",
                          sequence, d->params.n_slots);
    s->is_open = true;
    s->sequence = sequence;
    s->stream = stream;
    s->sampling = *sampling;
    s->noise_ids = NULL;
    s->noise_shift = 0;
    s->is_read = false;
    s->n_tokens = s->n_committed = 0;
    s->told_other = UINT32_MAX;
    return true;
}

void td_drafter_set_noise(td_drafter *d, uint32_t sequence, const uint32_t *ids, int64_t shift)
{
    drafter_sequence *s = find(d, sequence);
    if (!s)
        return;
    s->noise_ids = ids;
    s->noise_shift = shift;
}

bool td_drafter_feed(td_drafter *d, uint32_t sequence, uint32_t position, const uint32_t *ids,
                     uint32_t n_ids, td_err *err)
{
    drafter_sequence *s;
    if (!find_open(d, sequence, &s, err))
        return false;
    /* Past the draft's own context it knows nothing more and proposes nothing. */
    if (position >= d->n_ctx && s->n_tokens == d->n_ctx)
        return true;
    if (position > s->n_tokens)
        return td_err_set(err, TD_E_DATA, "sequence %u: fed at position %u, known are %u tokens",
                          sequence, position, s->n_tokens);
    for (uint32_t i = 0; i < n_ids; i++)
        if (ids[i] >= d->n_vocab)
            return td_err_set(err, TD_E_DATA, "token %u at position %u; allowed: below %u", ids[i],
                              position + i, d->n_vocab);
    d->counts.n_fed += n_ids;
    uint32_t end = position + td_min_u32(n_ids, d->n_ctx - position);
    uint32_t n_held = td_max_u32(s->n_tokens, s->n_cached), n_equal = position;
    while (n_equal < end && n_equal < n_held && s->tokens[n_equal] == ids[n_equal - position])
        n_equal++;
    if (n_equal < td_min_u32(end, s->n_tokens))
        s->told_other = td_min_u32(s->told_other, n_equal);
    if (n_equal < end) { /* a difference, or nothing more to compare with */
        roll_back(d, s, n_equal);
        if (d->prefix) /* names of chunks go by these tokens */
            td_prefix_open(d->prefix, slot_of(d, s), slot_of(d, s), n_equal);
        for (uint32_t i = n_equal; i < end; i++)
            s->tokens[i] = ids[i - position];
        s->n_tokens = end;
    }
    bool is_changed = n_equal < s->n_committed && n_equal < end;
    s->n_committed = is_changed ? end : td_max_u32(s->n_committed, end);
    s->n_tokens = td_max_u32(s->n_tokens, end);
    commit(d, s, s->n_committed ? s->n_committed - 1 : 0);
    return true;
}

static bool has_other_noise(const drafter_sequence *s) { return s->noise_ids || s->noise_shift; }

/* Row i of a sequence; the last known token is the output. */
static td_forward_row row_of(const td_drafter *d, const drafter_sequence *s, uint32_t i)
{
    return (td_forward_row){.slot = slot_of(d, s),
                            .position = i,
                            .token = s->tokens[i],
                            .is_output = i + 1 == s->n_tokens,
                            .sampling = &s->sampling,
                            .stream = s->stream,
                            .history = s->tokens,
                            .has_other_noise = has_other_noise(s)};
}

/* Rows to be run before there is a next token: always the last one, for its logits. */
static uint32_t n_unread(const drafter_sequence *s) { return s->n_tokens - s->n_cached; }

static bool run(td_drafter *d, td_mode mode, const td_forward_row *rows, uint32_t n_rows,
                td_err *err)
{
    bool is_ok = td_forward_run(d->forward, mode, rows, n_rows, err);
    d->counts.n_runs++;
    for (uint32_t i = 0; i < n_rows; i++) {
        drafter_sequence *s = &d->sequences[rows[i].slot];
        if (is_ok)
            s->n_cached++;
        else /* the cache has grown by rows that hold nothing */
            td_cache_truncate(d->cache, rows[i].slot, s->n_cached);
    }
    d->counts.n_evaluated += is_ok ? n_rows : 0;
    return is_ok;
}

/* Takes over the longest beginning in whole pages that another slot has, if that is more than what
 * is there. */
static void share(td_drafter *d, drafter_sequence *s)
{
    const drafter_sequence *from = NULL;
    uint32_t n_best = s->n_cached;
    for (uint32_t i = 0; !td_cache_forgets(d->cache) && i < d->params.n_slots; i++) {
        const drafter_sequence *other = &d->sequences[i];
        uint32_t n = 0, n_max = td_min_u32(td_cache_committed(d->cache, i), s->n_committed - 1);
        while (other != s && n < n_max && other->tokens[n] == s->tokens[n])
            n++;
        n -= n % TD_PAGE_POSITIONS;
        if (n > n_best) {
            n_best = n;
            from = other;
        }
    }
    if (!from)
        return;
    td_cache_clear(d->cache, slot_of(d, s));
    td_cache_share(d->cache, slot_of(d, from), slot_of(d, s), n_best);
    d->counts.n_shared += n_best - s->n_cached;
    s->n_cached = n_best;
}

static bool compute(td_drafter *d, drafter_sequence *s, td_mode mode, uint32_t n_rows, td_err *err)
{
    td_forward_row rows[TD_PREFILL_ROWS_MAX];
    for (uint32_t i = 0; i < n_rows; i++)
        rows[i] = row_of(d, s, s->n_cached + i);
    if (!run(d, mode, rows, n_rows, err))
        return false;
    commit(d, s, s->n_committed - 1);
    return true;
}

/* A chunk of what is committed, from the disk, or computed by one prefill and kept there. */
static bool read_kept(td_drafter *d, drafter_sequence *s, td_err *err)
{
    uint32_t slot = slot_of(d, s), first = s->n_cached, end = first + d->n_chunk;
    td_prefix_name(d->prefix, slot, s->tokens, first);
    td_prefix_blob *chunk = td_prefix_find(d->prefix, slot, first, s->tokens + first,
                                           td_cache_chunk_bytes(d->cache, first, end), true);
    bool is_found = chunk && chunk->is_loaded, is_whole = false, is_ok;
    if (is_found) {
        is_ok = td_cache_write_chunk(d->cache, slot, first, end, chunk->bytes, err);
        s->n_cached = is_ok ? end : first;
        d->counts.n_restored += is_ok ? d->n_chunk : 0;
        commit(d, s, s->n_committed - 1);
    } else {
        is_ok = compute(d, s, TD_MODE_PREFILL, d->n_chunk, err);
        is_whole =
            is_ok && chunk && td_cache_read_chunk(d->cache, slot, first, end, chunk->bytes, NULL);
    }
    td_prefix_done(d->prefix, &chunk, is_whole);
    return is_ok;
}

/* A chunk of more rows than a batch takes. The last row is not among them, nor any of the tail in a
 * prefill: both may be run again, td_cache_forgets. */
static bool read_chunk(td_drafter *d, drafter_sequence *s, td_err *err)
{
    share(d, s);
    if (n_unread(s) <= TD_VERIFY_ROWS_MAX)
        return true;
    uint32_t n_rows = td_min_u32(n_unread(s) - 1, TD_PREFILL_ROWS_MAX);
    uint32_t n_stay = s->n_committed > s->n_cached + 1 ? s->n_committed - 1 - s->n_cached : 0;
    uint32_t n_begun = d->prefix ? s->n_cached % d->n_chunk : 0;
    if (d->prefix && n_begun == 0 && n_stay >= d->n_chunk)
        return read_kept(d, s, err);
    n_rows = td_max_u32(td_min_u32(n_rows, n_stay), TD_VERIFY_ROWS_MAX);
    n_rows = td_min_u32(n_rows, n_unread(s) - 1);
    if (n_begun) /* as far as the next chunk that may be there */
        n_rows = td_min_u32(n_rows, d->n_chunk - n_begun);
    td_mode mode = n_rows > TD_VERIFY_ROWS_MAX ? TD_MODE_PREFILL : TD_MODE_VERIFY;
    return compute(d, s, mode, n_rows, err);
}

static void append(td_drafter *d, decode_job *j, uint32_t token)
{
    j->s->tokens[j->s->n_tokens++] = token;
    j->p->ids[j->p->n++] = token;
    j->p->is_done = j->p->n == j->p->k;
    d->counts.n_tokens++;
}

/* A token for as many as have their rows in one batch. */
static bool step_all(td_drafter *d, decode_job *jobs, uint32_t n_jobs, td_err *err)
{
    td_forward_row rows[TD_VERIFY_ROWS_MAX];
    uint32_t n_rows = 0, n_taken = 0, taken[TD_VERIFY_ROWS_MAX];
    for (uint32_t i = 0; i < n_jobs; i++) {
        drafter_sequence *s = jobs[i].s;
        if (n_unread(s) > TD_VERIFY_ROWS_MAX - n_rows)
            continue;
        for (uint32_t k = s->n_cached; k < s->n_tokens; k++)
            rows[n_rows++] = row_of(d, s, k);
        taken[n_taken++] = i;
    }
    if (!n_rows)
        return true;
    if (!run(d, TD_MODE_VERIFY, rows, n_rows, err))
        return false;
    for (uint32_t i = 0; i < n_taken; i++) {
        decode_job *j = &jobs[taken[i]];
        td_forward_row row = row_of(d, j->s, j->s->n_tokens - 1);
        uint32_t token;
        uint64_t n_read = td_forward_rows_read(d->forward);
        td_sampler_set_noise(d->sampler, j->s->noise_ids, j->s->noise_shift);
        if (!td_forward_choose(d->forward, i, &row, d->sampler, &token, NULL, err))
            return false;
        commit(d, j->s, j->s->n_committed - 1);
        append(d, j, token);
        d->counts.n_read = td_forward_rows_read(d->forward);
        j->s->is_read = d->counts.n_read > n_read;
    }
    return true;
}

/* Several tokens at once; none when the device cannot tell the first one. */
static bool step_ahead(td_drafter *d, decode_job *j, td_err *err)
{
    td_forward_row rows[TD_VERIFY_ROWS_MAX];
    uint32_t tokens[TD_DRAFT_STEPS], n_tokens = 0, slot = slot_of(d, j->s), n_rows = n_unread(j->s);
    for (uint32_t i = 0; i < n_rows; i++)
        rows[i] = row_of(d, j->s, j->s->n_cached + i);
    uint32_t k = td_min_u32(j->p->k - j->p->n, d->n_steps);
    td_sampler_set_noise(d->sampler, j->s->noise_ids, j->s->noise_shift);
    if (!td_forward_draft(d->forward, rows, n_rows, k, d->sampler, tokens, &n_tokens, err)) {
        td_cache_truncate(d->cache, slot, j->s->n_cached);
        return false;
    }
    if (td_cache_length(d->cache, slot) != j->s->n_cached) {
        d->counts.n_evaluated += n_rows + k - 1;
        d->counts.n_runs++;
    }
    j->s->n_cached = td_cache_length(d->cache, slot);
    commit(d, j->s, j->s->n_committed - 1);
    j->s->is_read = n_tokens == 0;
    for (uint32_t i = 0; i < n_tokens; i++)
        append(d, j, tokens[i]);
    return true;
}

bool td_drafter_begin(td_drafter *d, td_proposal *p, td_err *err)
{
    drafter_sequence *s;
    p->n = 0;
    p->is_done = true;
    if (!find_open(d, p->sequence, &s, err))
        return false;
    d->counts.n_proposals++;
    if (p->goes_on)
        td_proposal_resume(p, s->n_tokens, s->n_committed, s->told_other);
    s->told_other = UINT32_MAX;
    if (p->position < 1 || (p->position < s->n_committed && !p->goes_on) ||
        p->position > s->n_tokens)
        return true;
    uint32_t end = td_min_u32(d->n_ctx, s->n_committed + TD_DRAFTER_AHEAD_MAX);
    p->k = td_min_u32(p->k, end > p->position ? end - p->position : 0);
    p->n = td_min_u32(p->k, s->n_tokens - p->position);
    memcpy(p->ids, s->tokens + p->position, p->n * sizeof *p->ids);
    d->counts.n_tokens += p->n;
    p->is_done = p->n == p->k;
    return true;
}

static void share_time(td_proposal *const *proposals, uint32_t n, uint64_t us)
{
    for (uint32_t i = 0; i < n; i++) {
        uint64_t sum = proposals[i]->busy_us + us / n + (i < us % n);
        proposals[i]->busy_us = sum < UINT32_MAX ? (uint32_t)sum : UINT32_MAX;
    }
}

bool td_drafter_step(td_drafter *d, td_proposal *const *proposals, uint32_t n_proposals,
                     td_err *err)
{
    const td_clock clock = td_clock_real();
    uint64_t start = td_clock_now_us(&clock);
    decode_job jobs[TD_VERIFY_ROWS_MAX]; /* those behind wait */
    uint32_t n_jobs = 0;
    for (uint32_t i = 0; i < n_proposals && n_jobs < TD_COUNT(jobs); i++) {
        decode_job *j = &jobs[n_jobs];
        *j = (decode_job){proposals[i], find(d, proposals[i]->sequence)};
        TD_ASSERT(j->s && !j->p->is_done && j->s->n_tokens == j->p->position + j->p->n);
        roll_back(d, j->s, j->s->n_tokens - 1);
        n_jobs++;
    }
    bool is_ok = true;
    for (uint32_t i = 0; i < n_jobs; i++)
        if (n_unread(jobs[i].s) > TD_VERIFY_ROWS_MAX) {
            is_ok = read_chunk(d, jobs[i].s, err);
            break;
        }
    bool is_alone = d->n_steps && n_jobs == 1 && n_unread(jobs[0].s) <= TD_VERIFY_ROWS_MAX &&
                    !jobs[0].s->is_read &&
                    (jobs[0].s->sampling.temperature == 0.0f || !has_other_noise(jobs[0].s));
    uint32_t n_before = n_jobs ? jobs[0].p->n : 0;
    is_ok = is_ok && (!is_alone || step_ahead(d, &jobs[0], err));
    if (is_ok && !(is_alone && jobs[0].p->n > n_before))
        is_ok = step_all(d, jobs, n_jobs, err);
    uint64_t us = td_clock_now_us(&clock) - start;
    d->counts.busy_us += us;
    share_time(proposals, n_proposals, us);
    return is_ok;
}

bool td_drafter_propose(td_drafter *d, uint32_t sequence, uint32_t position, uint32_t k,
                        uint32_t *ids, uint32_t *n_ids, td_err *err)
{
    td_proposal p = {.sequence = sequence, .position = position, .k = k}, *jobs[] = {&p};
    TD_ASSERT(k <= TD_WIRE_DRAFT_MAX);
    *n_ids = 0;
    if (!td_drafter_begin(d, &p, err))
        return false;
    while (!p.is_done)
        if (!td_drafter_step(d, jobs, 1, err))
            return false;
    memcpy(ids, p.ids, p.n * sizeof *ids);
    *n_ids = p.n;
    return true;
}
