/* Sampling as a race: every token draws exponential noise E and the smallest E / p wins, which is
 * an exact sample of p. Only ratios of p matter, so the race runs on weights w = exp((x - max) / T)
 * (the largest is 1, and the division by their sum is saved).
 *
 * A vocabulary has 150,000 tokens and nearly all of them have no chance. Two bounds keep their cost
 * to a few instructions and change no result:
 *   - E >= u >= 2^-(z+1), where z is the number of leading zero bits of u's 32 bits; so a token
 *     with w < 2^-(z+1) / best has lost before exp() and log1p() are computed;
 *   - z <= 32: below 2^-33 / best not even the noise bits are needed.
 * Truncation does not sort the vocabulary either: top-k keeps a heap of k; top-p finds by a
 * histogram of log p the narrow bin in which the mass is reached and sorts only that. Masses are
 * whole numbers, so that their sums depend on no order: what shortlist.c makes of a few tokens is
 * the same. */
#include "model/sampling_private.h"

#include "base/check.h"
#include "base/mem.h"
#include "base/rng.h"

#include <math.h>
#include <string.h>

#define LOG2_E       1.4426950408889634
#define N_BINS       4096
#define BINS_PER_NAT 128.0 /* so the bins before the last reach down to e^-32 */
#define NOISE_LOG2   (-33) /* log2 of the smallest u */
#define BOUND_MARGIN 1e-6  /* in log2 units; far above what the bound's own arithmetic rounds off */

struct td_sampler {
    uint32_t n_vocab;
    double *logits;      /* [n_vocab] after penalties; -inf = out of the race; the max is finite */
    double *weights;     /* [n_vocab] by id, of the kept ones */
    uint64_t *bins;      /* [N_BINS] mass by log p */
    uint32_t *kept;      /* [n_vocab] ids that survive truncation, n_kept of them */
    uint32_t *penalized; /* [n_vocab] generation in which a token was penalized */
    uint32_t n_kept;
    uint32_t generation;
    uint32_t i_max; /* lowest id with the largest logit */
    double max;
    const uint32_t *noise_ids; /* see td_sampler_set_noise */
    int64_t noise_shift;
};

static bool check_float(const char *name, float value, double min, double max, td_err *err)
{
    if ((double)value >= min && (double)value <= max)
        return true;
    return td_err_set(err, TD_E_USAGE, "%s is %g; allowed: %g..%g", name, (double)value, min, max);
}

bool td_sampling_check(const td_sampling_params *params, td_err *err)
{
    if (!check_float("temperature", params->temperature, 0, 100, err) ||
        !check_float("top_p", params->top_p, 0, 1, err) ||
        !check_float("min_p", params->min_p, 0, 1, err) ||
        !check_float("repeat_penalty", params->repeat_penalty, 0.01f, 100, err))
        return false;
    if (params->top_p <= 0)
        return td_err_set(err, TD_E_USAGE, "top_p is 0; it must be above 0 (1 keeps all tokens)");
    if (params->min_p >= 1)
        return td_err_set(err, TD_E_USAGE, "min_p is 1; it must be below 1 (0 keeps all tokens)");
    return true;
}

td_sampler *td_sampler_create(uint32_t n_vocab, td_err *err)
{
    if (n_vocab < 1 || n_vocab > TD_SAMPLER_VOCAB_MAX) {
        td_err_set(err, TD_E_DATA, "a vocabulary of %u tokens; allowed: 1..%u", n_vocab,
                   TD_SAMPLER_VOCAB_MAX);
        return NULL;
    }
    td_sampler *s = td_alloc(1, sizeof(*s), err);
    if (!s)
        return NULL;
    s->n_vocab = n_vocab;
    s->logits = td_alloc(n_vocab, sizeof(*s->logits), err);
    s->weights = td_alloc(n_vocab, sizeof(*s->weights), err);
    s->bins = td_alloc(N_BINS, sizeof(*s->bins), err);
    s->kept = td_alloc(n_vocab, sizeof(*s->kept), err);
    s->penalized = td_alloc(n_vocab, sizeof(*s->penalized), err);
    if (!s->logits || !s->weights || !s->bins || !s->kept || !s->penalized)
        td_sampler_destroy(&s);
    return s;
}

void td_sampler_destroy(td_sampler **sampler)
{
    td_sampler *s = *sampler;
    if (!s)
        return;
    td_free(s->logits);
    td_free(s->weights);
    td_free(s->bins);
    td_free(s->kept);
    td_free(s->penalized);
    td_free(s);
    *sampler = NULL;
}

/* Each distinct recent token once, however often it occurred. */
static void apply_penalty(td_sampler *s, const td_sampling_params *params, const uint32_t *history,
                          uint32_t n_history)
{
    if (params->repeat_penalty == 1.0f)
        return;
    if (++s->generation == 0) { /* wrapped: old marks would look new */
        memset(s->penalized, 0, s->n_vocab * sizeof(*s->penalized));
        s->generation = 1;
    }
    double penalty = (double)params->repeat_penalty;
    for (uint32_t i = n_history - td_min_u32(n_history, params->repeat_last_n); i < n_history;
         ++i) {
        uint32_t id = history[i];
        if (id >= s->n_vocab || s->penalized[id] == s->generation)
            continue;
        s->penalized[id] = s->generation;
        s->logits[id] = td_sampling_penalized(s->logits[id], penalty);
    }
}

/* Makes the largest logit finite and NaN absent, see the header. */
static void settle_non_finite(td_sampler *s, uint32_t n_numbers)
{
    double *x = s->logits;
    for (uint32_t i = 0; i < s->n_vocab; ++i) {
        if (n_numbers == 0)
            x[i] = 0;
        else if (isinf(s->max))
            x[i] = x[i] == s->max ? 0 : -HUGE_VAL;
        else if (isnan(x[i]))
            x[i] = -HUGE_VAL;
    }
    if (n_numbers == 0)
        s->i_max = 0;
    if (n_numbers == 0 || isinf(s->max))
        s->max = 0;
}

static void load_logits(td_sampler *s, const td_sampling_params *params, const float *logits,
                        const uint32_t *history, uint32_t n_history)
{
    for (uint32_t i = 0; i < s->n_vocab; ++i)
        s->logits[i] = (double)logits[i];
    apply_penalty(s, params, history, n_history);
    uint32_t n_numbers = 0;
    for (uint32_t i = 0; i < s->n_vocab; ++i) {
        double x = s->logits[i];
        if (isnan(x))
            continue;
        if (n_numbers++ == 0 || x > s->max) {
            s->max = x;
            s->i_max = i;
        }
    }
    if (n_numbers < s->n_vocab || isinf(s->max))
        settle_non_finite(s, n_numbers);
}

static double weight_of(const td_sampler *s, const td_sampling_params *params, uint32_t id)
{
    return td_sampling_weight(params, s->logits[id], s->max);
}

/* Is a more probable than b? */
static bool is_before(const td_sampler *s, uint32_t a, uint32_t b)
{
    double xa = s->logits[a], xb = s->logits[b];
    return xa > xb || (xa == xb && a < b);
}

/* Restores a heap whose item i may be misplaced: heap[0] is the most probable of n (is_best_first)
 * or the least probable. */
static void sift_down(const td_sampler *s, uint32_t *heap, uint32_t i, uint32_t n,
                      bool is_best_first)
{
    uint32_t id = heap[i];
    for (uint32_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && is_before(s, heap[child + 1], heap[child]) == is_best_first)
            ++child;
        if (is_before(s, heap[child], id) != is_best_first)
            break;
        heap[i] = heap[child];
    }
    heap[i] = id;
}

static void build_heap(const td_sampler *s, uint32_t *heap, uint32_t n, bool is_best_first)
{
    for (uint32_t i = n / 2; i-- > 0;)
        sift_down(s, heap, i, n, is_best_first);
}

/* The k most probable: a heap of the best k so far, its worst at the root. */
static void keep_top_k(td_sampler *s, uint32_t k)
{
    for (uint32_t i = 0; i < k; ++i)
        s->kept[i] = i;
    build_heap(s, s->kept, k, false);
    for (uint32_t i = k; i < s->n_vocab; ++i) {
        if (s->logits[i] > s->logits[s->kept[0]]) { /* ids ascend, so a tie keeps the older one */
            s->kept[0] = i;
            sift_down(s, s->kept, 0, k, false);
        }
    }
    s->n_kept = k;
}

/* Bins of equal width in log p, the most probable first; the last one takes the whole rest. */
static uint32_t bin_of(const td_sampler *s, const td_sampling_params *params, uint32_t id)
{
    double bin = (s->max - s->logits[id]) / (double)params->temperature * BINS_PER_NAT;
    return bin < N_BINS - 1 ? (uint32_t)bin : N_BINS - 1;
}

/* Moves the kept ids whose bin is at most `last` to the front, and cuts the others off. */
static uint32_t count_to_front(const td_sampler *s, const td_sampling_params *params, uint32_t n,
                               uint32_t last)
{
    uint32_t n_front = 0;
    for (uint32_t i = 0; i < n; ++i) {
        uint32_t id = s->kept[i];
        if (bin_of(s, params, id) > last)
            continue;
        s->kept[i] = s->kept[n_front];
        s->kept[n_front++] = id;
    }
    return n_front;
}

/* Of the bin in which the mass is reached, the most probable ids are popped until it is. They
 * gather behind the heap and are then moved before it. */
static void keep_top_p(td_sampler *s, const td_sampling_params *params)
{
    uint64_t total = 0, mass = 0;
    memset(s->bins, 0, N_BINS * sizeof(*s->bins));
    for (uint32_t i = 0; i < s->n_kept; ++i)
        s->bins[bin_of(s, params, s->kept[i])] += td_sampling_mass(s->weights[s->kept[i]]);
    for (uint32_t i = 0; i < N_BINS; ++i)
        total += s->bins[i];
    double wanted = (double)params->top_p * (double)total;
    uint32_t edge = 0; /* the bin */
    while (edge < N_BINS - 1 && (double)(mass + s->bins[edge]) < wanted)
        mass += s->bins[edge++];
    uint32_t n_edge = count_to_front(s, params, s->n_kept, edge);
    uint32_t n_sure = edge > 0 ? count_to_front(s, params, n_edge, edge - 1) : 0;
    uint32_t *heap = s->kept + n_sure;
    n_edge -= n_sure;
    uint32_t n = n_edge;
    build_heap(s, heap, n, true);
    while (n > 0 && (double)mass < wanted) {
        uint32_t best = heap[0];
        mass += td_sampling_mass(s->weights[best]);
        heap[0] = heap[--n];
        heap[n] = best;
        if (n > 0)
            sift_down(s, heap, 0, n, true);
    }
    memmove(heap, heap + n, (n_edge - n) * sizeof(*heap));
    s->n_kept = n_sure + n_edge - n;
}

static bool is_truncating(const td_sampler *s, const td_sampling_params *params)
{
    return (params->top_k > 0 && params->top_k < s->n_vocab) || params->top_p < 1.0f;
}

/* Fills kept and weights by the whole chain. */
static void truncate_to_kept(td_sampler *s, const td_sampling_params *params)
{
    if (params->top_k > 0 && params->top_k < s->n_vocab) {
        keep_top_k(s, params->top_k);
    } else {
        for (uint32_t i = 0; i < s->n_vocab; ++i)
            s->kept[i] = i;
        s->n_kept = s->n_vocab;
    }
    for (uint32_t i = 0; i < s->n_kept; ++i)
        s->weights[s->kept[i]] = weight_of(s, params, s->kept[i]);
    if (params->top_p < 1.0f)
        keep_top_p(s, params);
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_kept; ++i) {
        double w = s->weights[s->kept[i]];
        if (w > 0 && w >= (double)params->min_p)
            s->kept[n++] = s->kept[i];
    }
    s->n_kept = n;
    TD_ASSERT(n > 0); /* the most probable token has weight 1 */
}

td_race td_sampler_race(const td_sampler *s, uint64_t stream, uint64_t position)
{
    return (td_race){.stream = stream,
                     .position = position + (uint64_t)s->noise_shift,
                     .noise_ids = s->noise_ids,
                     .best = HUGE_VAL,
                     .id = UINT32_MAX};
}

bool td_race_enter(td_race *r, uint32_t id, double weight)
{
    uint32_t noise_id = r->noise_ids ? r->noise_ids[id] : id;
    double time = td_noise_exponential(r->stream, r->position, noise_id) / weight;
    if (time > r->best || (time == r->best && id > r->id))
        return false;
    r->best = time;
    r->id = id;
    return true;
}

static uint32_t race_of_kept(const td_sampler *s, td_race *r)
{
    for (uint32_t i = 0; i < s->n_kept; ++i)
        td_race_enter(r, s->kept[i], s->weights[s->kept[i]]);
    return r->id;
}

/* All tokens (but for min-p), with the bounds of this file's head. The likeliest token goes first,
 * so that `best` is small from the start. */
static uint32_t race_of_all(const td_sampler *s, const td_sampling_params *params, td_race *r)
{
    const double scale = LOG2_E / (double)params->temperature, min_p = (double)params->min_p;
    const uint32_t key[2] = {(uint32_t)r->stream, (uint32_t)(r->stream >> 32)};
    td_race_enter(r, s->i_max, 1.0);
    double slack = log2(r->best) + BOUND_MARGIN;
    for (uint32_t first = 0; first < s->n_vocab; first += 4) {
        uint32_t n = td_min_u32(4, s->n_vocab - first);
        uint32_t bits[4];
        bool has_bits = false;
        for (uint32_t i = 0; i < n; ++i) {
            uint32_t id = first + i;
            double bound = (s->logits[id] - s->max) * scale + slack;
            if (bound < NOISE_LOG2 || id == s->i_max)
                continue;
            if (r->noise_ids) {
                bits[i] = td_noise_bits(r->stream, r->position, r->noise_ids[id]);
            } else if (!has_bits) { /* the four words of one block, as td_noise_bits deals them */
                const uint32_t counter[4] = {first / 4, (uint32_t)r->position,
                                             (uint32_t)(r->position >> 32), 0};
                td_philox(counter, key, bits);
                has_bits = true;
            }
            int n_zeros = bits[i] ? __builtin_clz(bits[i]) : 32;
            if (bound < -(n_zeros + 1))
                continue;
            double w = weight_of(s, params, id);
            if (w > 0 && w >= min_p && td_race_enter(r, id, w))
                slack = log2(r->best) + BOUND_MARGIN;
        }
    }
    return r->id;
}

void td_sampler_set_noise(td_sampler *s, const uint32_t *ids, int64_t shift)
{
    s->noise_ids = ids;
    s->noise_shift = shift;
}

uint32_t td_sample(td_sampler *s, const td_sampling_params *params, const float *logits,
                   const uint32_t *history, uint32_t n_history, uint64_t stream, uint64_t position)
{
    TD_ASSERT(td_sampling_check(params, NULL));
    load_logits(s, params, logits, history, n_history);
    if (params->temperature == 0.0f)
        return s->i_max;
    td_race r = td_sampler_race(s, stream, position);
    if (!is_truncating(s, params))
        return race_of_all(s, params, &r);
    truncate_to_kept(s, params);
    return race_of_kept(s, &r);
}

void td_sample_distribution(td_sampler *s, const td_sampling_params *params, const float *logits,
                            const uint32_t *history, uint32_t n_history, double *p)
{
    TD_ASSERT(td_sampling_check(params, NULL));
    load_logits(s, params, logits, history, n_history);
    memset(p, 0, s->n_vocab * sizeof(*p));
    if (params->temperature == 0.0f) {
        p[s->i_max] = 1;
        return;
    }
    truncate_to_kept(s, params);
    double total = 0;
    for (uint32_t i = 0; i < s->n_kept; ++i)
        total += s->weights[s->kept[i]];
    for (uint32_t i = 0; i < s->n_kept; ++i)
        p[s->kept[i]] = s->weights[s->kept[i]] / total;
}

bool td_logits_finite(const float *logits, uint32_t n_vocab)
{
    for (uint32_t i = 0; i < n_vocab; ++i)
        if (!isfinite(logits[i]))
            return false;
    return true;
}
