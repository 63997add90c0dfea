#include "draft/drafter.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/mem.h"

#include <string.h>

#define STEPS_MAX 16u /* of the model, in one submission */

typedef struct {
    bool is_open;
    uint32_t sequence;
    uint64_t stream;
    td_sampling_params sampling;
    const uint32_t *noise_ids; /* [n_vocab], borrowed, or NULL */
    int64_t noise_shift;
    uint32_t *tokens;  /* [n_ctx + 1]: committed ones, then what was proposed */
    uint32_t n_tokens; /* known */
    uint32_t n_cached; /* positions whose keys and values are in the cache, of these tokens */
} sequence_state;

struct td_drafter {
    td_drafter_params params;
    td_device *dev;
    td_forward *forward;
    td_sampler *sampler;
    uint32_t n_ctx, n_vocab;
    uint64_t n_bytes;
    sequence_state *sequences; /* [n_slots], the slot is the index */
    td_drafter_stats stats;
};

static td_forward_params forward_params(const td_drafter *d)
{
    return (td_forward_params){.model = d->params.model,
                               .dev = d->dev,
                               .first = 0,
                               .last = td_model_hparams(d->params.model)->n_layer - 1,
                               .type_k = d->params.type_k,
                               .type_v = d->params.type_v,
                               .n_slots = d->params.n_slots,
                               .n_ctx = d->n_ctx,
                               .n_flight = TD_VERIFY_ROWS_MAX + STEPS_MAX,
                               .is_choosing = true,
                               .n_steps_max = STEPS_MAX};
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
    d->n_bytes = wanted;
    return true;
}

td_drafter *td_drafter_create(const td_drafter_params *params, td_err *err)
{
    td_drafter *d = td_alloc(1, sizeof *d, err);
    if (!d)
        return NULL;
    d->params = *params;
    d->n_vocab = td_model_hparams(params->model)->n_vocab;
    d->dev = td_device_create(params->spec, err);
    if (!d->dev || !choose_context(d, err))
        goto fail;
    td_forward_params forward = forward_params(d);
    d->forward = td_forward_create(&forward, err);
    d->sampler = d->forward ? td_sampler_create(d->n_vocab, err) : NULL;
    d->sequences = td_alloc(params->n_slots, sizeof *d->sequences, err);
    if (!d->sampler || !d->sequences)
        goto fail;
    for (uint32_t i = 0; i < params->n_slots; i++)
        if (!(d->sequences[i].tokens = td_alloc((size_t)d->n_ctx + 1, sizeof(uint32_t), err)))
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
    td_sampler_destroy(&d->sampler);
    td_forward_destroy(&d->forward);
    td_device_destroy(&d->dev);
    td_free(d);
    *drafter = NULL;
}

uint32_t td_drafter_n_ctx(const td_drafter *d) { return d->n_ctx; }
uint32_t td_drafter_n_slots(const td_drafter *d) { return d->params.n_slots; }
uint64_t td_drafter_bytes(const td_drafter *d) { return d->n_bytes; }
const td_device_info *td_drafter_device(const td_drafter *d) { return td_device_get_info(d->dev); }
const td_drafter_stats *td_drafter_get_stats(const td_drafter *d) { return &d->stats; }

/* Drops the cache beyond the first n positions: all of it where it cannot go back so far. */
static void roll_back(td_drafter *d, sequence_state *s, uint32_t n)
{
    td_cache *cache = td_forward_cache(d->forward);
    uint32_t slot = (uint32_t)(s - d->sequences);
    if (s->n_cached <= n)
        return;
    if (n < td_cache_committed(cache, slot)) {
        td_cache_clear(cache, slot);
        s->n_cached = 0;
        return;
    }
    td_cache_truncate(cache, slot, n);
    s->n_cached = n;
}

/* Of `position` committed tokens all but the last are there to stay: that one is run again. */
static void commit(td_drafter *d, sequence_state *s, uint32_t position)
{
    td_cache *cache = td_forward_cache(d->forward);
    uint32_t slot = (uint32_t)(s - d->sequences), n = td_min_u32(s->n_cached, position - 1);
    if (n > td_cache_committed(cache, slot))
        td_cache_commit(cache, slot, n);
}

static sequence_state *find(td_drafter *d, uint32_t sequence)
{
    for (uint32_t i = 0; i < d->params.n_slots; i++)
        if (d->sequences[i].is_open && d->sequences[i].sequence == sequence)
            return &d->sequences[i];
    return NULL;
}

static bool find_open(td_drafter *d, uint32_t sequence, sequence_state **s, td_err *err)
{
    *s = find(d, sequence);
    return *s || td_err_set(err, TD_E_DATA, "sequence %u is not open", sequence);
}

void td_drafter_close(td_drafter *d, uint32_t sequence)
{
    sequence_state *s = find(d, sequence);
    if (!s)
        return;
    roll_back(d, s, 0);
    s->is_open = false;
}

void td_drafter_reset(td_drafter *d)
{
    for (uint32_t i = 0; i < d->params.n_slots; i++)
        if (d->sequences[i].is_open)
            td_drafter_close(d, d->sequences[i].sequence);
}

bool td_drafter_open(td_drafter *d, uint32_t sequence, uint64_t stream,
                     const td_sampling_params *sampling, td_err *err)
{
    td_err why = {0};
    if (!td_sampling_check(sampling, &why))
        return td_err_set(err, TD_E_DATA, "sequence %u: %s", sequence, why.message);
    td_drafter_close(d, sequence);
    for (uint32_t i = 0; i < d->params.n_slots; i++) {
        sequence_state *s = &d->sequences[i];
        if (s->is_open)
            continue;
        s->is_open = true;
        s->sequence = sequence;
        s->stream = stream;
        s->sampling = *sampling;
        s->noise_ids = NULL;
        s->noise_shift = 0;
        s->n_tokens = s->n_cached = 0;
        return true;
    }
    return td_err_set(err, TD_E_DATA, "sequence %u: all %u slots are taken", sequence,
                      d->params.n_slots);
}

void td_drafter_set_noise(td_drafter *d, uint32_t sequence, const uint32_t *ids, int64_t shift)
{
    sequence_state *s = find(d, sequence);
    if (!s)
        return;
    TD_ASSERT(s->sampling.temperature == 0.0f || !td_sampling_is_plain(&s->sampling, d->n_vocab));
    s->noise_ids = ids;
    s->noise_shift = shift;
}

bool td_drafter_feed(td_drafter *d, uint32_t sequence, uint32_t position, const uint32_t *ids,
                     uint32_t n_ids, td_err *err)
{
    sequence_state *s;
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
    d->stats.n_fed += n_ids;
    uint32_t n = td_min_u32(n_ids, d->n_ctx - position);
    uint32_t n_equal = 0;
    while (n_equal < n && position + n_equal < s->n_tokens &&
           s->tokens[position + n_equal] == ids[n_equal])
        n_equal++;
    roll_back(d, s, position + n_equal);
    for (uint32_t i = n_equal; i < n; i++)
        s->tokens[position + i] = ids[i];
    s->n_tokens = position + n;
    return true;
}

/* Row i of a sequence; `n` tokens are known, so the last row's token is wanted. */
static td_forward_row row_of(const td_drafter *d, const sequence_state *s, uint32_t i, uint32_t n)
{
    return (td_forward_row){.slot = (uint32_t)(s - d->sequences),
                            .position = i,
                            .token = s->tokens[i],
                            .is_output = i + 1 == n,
                            .sampling = &s->sampling,
                            .stream = s->stream};
}

/* Runs rows s->n_cached .. n-1 of the known tokens; the last one is then the output. It is never
 * run as prefill, so that it can be run again: td_cache_forgets. */
static bool evaluate(td_drafter *d, sequence_state *s, uint32_t n, td_err *err)
{
    td_forward_row rows[TD_PREFILL_ROWS_MAX];
    while (s->n_cached < n) {
        uint32_t n_rows = n - s->n_cached;
        if (n_rows > TD_VERIFY_ROWS_MAX)
            n_rows = td_min_u32(n_rows - 1, TD_PREFILL_ROWS_MAX);
        for (uint32_t i = 0; i < n_rows; i++)
            rows[i] = row_of(d, s, s->n_cached + i, n);
        td_mode mode = n_rows > TD_VERIFY_ROWS_MAX ? TD_MODE_PREFILL : TD_MODE_VERIFY;
        if (!td_forward_run(d->forward, mode, rows, n_rows, err)) {
            /* The cache has grown by rows that hold nothing. */
            td_cache_truncate(td_forward_cache(d->forward), (uint32_t)(s - d->sequences),
                              s->n_cached);
            return false;
        }
        s->n_cached += n_rows;
        d->stats.n_evaluated += n_rows;
    }
    return true;
}

static void append(sequence_state *s, uint32_t token, uint32_t *ids, uint32_t *n_ids)
{
    s->tokens[s->n_tokens++] = token;
    ids[(*n_ids)++] = token;
}

/* One token after all that are known. */
static bool propose_one(td_drafter *d, sequence_state *s, uint32_t *ids, uint32_t *n_ids,
                        td_err *err)
{
    uint32_t n = s->n_tokens, token;
    roll_back(d, s, n - 1);
    if (!evaluate(d, s, n, err))
        return false;
    td_forward_row row = row_of(d, s, n - 1, n);
    td_sampler_set_noise(d->sampler, s->noise_ids, s->noise_shift);
    if (!td_forward_choose(d->forward, 0, &row, s->tokens, d->sampler, &token, NULL, err))
        return false;
    append(s, token, ids, n_ids);
    return true;
}

/* Several at once; none when the device cannot tell the first one. */
static bool propose_some(td_drafter *d, sequence_state *s, uint32_t k, uint32_t *ids,
                         uint32_t *n_ids, td_err *err)
{
    td_forward_row rows[TD_VERIFY_ROWS_MAX];
    uint32_t tokens[STEPS_MAX], n_tokens = 0;
    if (s->n_tokens - s->n_cached > TD_VERIFY_ROWS_MAX && !evaluate(d, s, s->n_tokens - 1, err))
        return false;
    uint32_t n_rows = s->n_tokens - s->n_cached;
    for (uint32_t i = 0; i < n_rows; i++)
        rows[i] = row_of(d, s, s->n_cached + i, s->n_tokens);
    k = td_min_u32(td_min_u32(k, STEPS_MAX), d->n_ctx - s->n_tokens);
    if (!td_forward_draft(d->forward, rows, n_rows, k, tokens, &n_tokens, err)) {
        td_cache_truncate(td_forward_cache(d->forward), rows[0].slot, s->n_cached);
        return false;
    }
    if (td_cache_length(td_forward_cache(d->forward), rows[0].slot) != s->n_cached)
        d->stats.n_evaluated += n_rows + k - 1;
    s->n_cached = td_cache_length(td_forward_cache(d->forward), rows[0].slot);
    for (uint32_t i = 0; i < n_tokens; i++)
        append(s, tokens[i], ids, n_ids);
    return true;
}

bool td_drafter_propose(td_drafter *d, uint32_t sequence, uint32_t position, uint32_t k,
                        uint32_t *ids, uint32_t *n_ids, td_err *err)
{
    *n_ids = 0;
    sequence_state *s;
    if (!find_open(d, sequence, &s, err))
        return false;
    if (position < 1 || position > s->n_tokens) {
        if (position >= d->n_ctx)
            return true; /* beyond this draft's context: no proposal, no error */
        return td_err_set(err, TD_E_DATA, "sequence %u: proposal at %u; allowed: 1..%u", sequence,
                          position, s->n_tokens);
    }
    const td_clock clock = td_clock_real();
    uint64_t start = td_clock_now_us(&clock);
    /* The logits of the last known position are wanted again, so that row is run again. */
    roll_back(d, s, position - 1);
    commit(d, s, position);
    s->n_tokens = position;
    bool is_plain = td_sampling_is_plain(&s->sampling, d->n_vocab);
    while (*n_ids < k && s->n_tokens < d->n_ctx) {
        uint32_t n_before = *n_ids;
        if (is_plain && !propose_some(d, s, k - n_before, ids, n_ids, err))
            return false;
        if (*n_ids == n_before && !propose_one(d, s, ids, n_ids, err))
            return false;
    }
    d->stats.n_proposals++;
    d->stats.n_tokens += *n_ids;
    d->stats.busy_us += td_clock_now_us(&clock) - start;
    return true;
}
