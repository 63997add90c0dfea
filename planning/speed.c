/* The search. A cut is good by one of two measures: the sum of the stages' times (a stream) or the
 * slowest stage (full pipelines), and how many rows are in a pass depends on drafts and on how many
 * stages there are. So the best cut by each measure, for some numbers of rows and each number of
 * stages, is found by dynamic programming over layers and devices; these few, and the placements
 * that use one device, are then predicted in full and compared. */
#include "planning/speed.h"

#include "base/check.h"
#include "base/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double part_us(const td_speed_device *d, uint32_t first, uint32_t last, double n_rows)
{
    td_cost cost = td_costs_part(d->costs, first, last);
    return td_cost_rows(&cost, n_rows);
}

/* -- prediction -------------------------------------------------------------------------------- */

double td_speed_expected(double a, uint32_t k)
{
    double sum = 0, p = 1;
    for (uint32_t i = 0; i <= k; i++, p *= a)
        sum += p;
    return sum;
}

/* The hop from a device to the next. */
static td_speed_hop find_hop(const td_speed_use *use, const td_speed_device *a,
                             const td_speed_device *b)
{
    for (uint32_t i = 0; i < use->n_hops; i++)
        if (use->hops[i].from == a->machine && use->hops[i].to == b->machine)
            return use->hops[i];
    if (a->machine == b->machine)
        return (td_speed_hop){.way_us = use->hop_us};
    return (td_speed_hop){.way_us = fmax(a->way_us, b->way_us),
                          .row_us = fmax(a->row_us, b->row_us)};
}

/* What a round over machines takes beside ways and stages. */
static double round_us(const td_speed_device *devices, const td_speed_use *use,
                       const td_speed_row *row)
{
    bool is_far = false;
    for (uint32_t i = 0; i < row->n_stages; i++)
        is_far |= devices[row->stages[i].device].machine != 0;
    return is_far ? use->round_us : 0;
}

/* From stage to stage, the whole way there and back: to the first one and from the last one few
 * bytes go. */
static double way_us(const td_speed_device *devices, const td_speed_use *use,
                     const td_speed_row *row, double n_rows)
{
    const td_speed_device *last = &devices[row->stages[row->n_stages - 1].device];
    double sum = devices[row->stages[0].device].way_us +
                 (last->machine ? last->way_us : use->hop_us) + round_us(devices, use, row);
    for (uint32_t i = 1; i < row->n_stages; i++) {
        td_speed_hop hop =
            find_hop(use, &devices[row->stages[i - 1].device], &devices[row->stages[i].device]);
        sum += hop.way_us + n_rows * hop.row_us;
    }
    return sum;
}

/* The busiest link of a row. */
static double busiest_link_us(const td_speed_device *devices, const td_speed_use *use,
                              const td_speed_row *row, double n_rows)
{
    double most = 0;
    for (uint32_t i = 1; i < row->n_stages; i++)
        most = fmax(most, n_rows * find_hop(use, &devices[row->stages[i - 1].device],
                                            &devices[row->stages[i].device])
                                       .row_us);
    return most;
}

static double draft_link_us(const td_speed_draft *draft, const td_speed_use *use)
{
    return draft->link_us > 0 ? draft->link_us : use->link_us;
}

/* Whether one of the row's stages is on the draft's device; which (or UINT32_MAX). */
static uint32_t find_shared(const td_speed_device *devices, const td_speed_draft *draft,
                            const td_speed_row *row)
{
    for (uint32_t i = 0; draft && i < row->n_stages; i++)
        if (devices[row->stages[i].device].unit == draft->unit)
            return i;
    return UINT32_MAX;
}

/* Tokens of a round with drafts of k; the probability that one more would have been right. */
static double expected(const td_speed_use *use, uint32_t k)
{
    double sum = 1;
    for (uint32_t i = 0; use->survival && i < k; i++)
        sum += use->survival[i];
    return use->survival ? sum : td_speed_expected(use->acceptance, k);
}

static double hit(const td_speed_use *use, uint32_t k)
{
    return use->survival ? use->survival[k] : pow(use->acceptance, k + 1);
}

double td_speed_verify_us(const td_speed_device *devices, const td_speed_use *use,
                          const td_speed_row *row, uint32_t n_rows)
{
    double us = way_us(devices, use, row, n_rows);
    for (uint32_t i = 0; i < row->n_stages; i++)
        us += part_us(&devices[row->stages[i].device], row->stages[i].first, row->stages[i].last,
                      n_rows);
    return us;
}

/* Microseconds a token, one sequence, drafts of k. */
static double stream_us(const td_speed_device *devices, const td_speed_draft *draft,
                        const td_speed_use *use, const td_speed_row *row, uint32_t k)
{
    double tv = td_speed_verify_us(devices, use, row, k + 1);
    if (!k)
        return tv;
    double td = td_cost_rows(&draft->step, 1), h = hit(use, k);
    double apart = k * td + draft_link_us(draft, use) + tv;
    double together = fmax((k + 1) * td, tv);
    double round =
        find_shared(devices, draft, row) != UINT32_MAX ? apart : h * together + (1 - h) * apart;
    return round / expected(use, k);
}

/* The time of the busiest unit, given the stages' times. */
static double find_slowest(const td_speed_device *devices, const td_speed_row *row,
                           const double *times)
{
    double slowest = 0;
    for (uint32_t i = 0; i < row->n_stages; i++) {
        double busy = 0;
        for (uint32_t j = 0; j < row->n_stages; j++)
            if (devices[row->stages[j].device].unit == devices[row->stages[i].device].unit)
                busy += times[j];
        slowest = fmax(slowest, busy);
    }
    return slowest;
}

/* Microseconds a token of n sequences together. */
static double batch_us(const td_speed_device *devices, const td_speed_draft *draft,
                       const td_speed_use *use, const td_speed_row *row, uint32_t k)
{
    double n = use->n_sequences, groups = fmin(n, row->n_stages);
    double n_rows = n / groups, slowest = 0, sum = way_us(devices, use, row, n_rows * (k + 1));
    uint32_t shared = find_shared(devices, draft, row);
    double drafting = k ? k * td_cost_rows(&draft->step, n_rows) : 0;
    double times[TD_SPEED_DEVICES_MAX] = {0};
    for (uint32_t i = 0; i < row->n_stages; i++) {
        times[i] = part_us(&devices[row->stages[i].device], row->stages[i].first,
                           row->stages[i].last, n_rows * (k + 1));
        sum += times[i];
    }
    if (shared != UINT32_MAX)
        times[shared] += drafting;
    slowest = fmax(find_slowest(devices, row, times),
                   busiest_link_us(devices, use, row, n_rows * (k + 1)));
    slowest = fmax(slowest, round_us(devices, use, row)); /* one coordinator for all groups */
    if (k && shared == UINT32_MAX)
        slowest = fmax(slowest, drafting);
    sum += k ? drafting + draft_link_us(draft, use) : 0;
    /* With a draft of its own device half the sequences can be drafted while the others are
     * verified; the way of one group is hidden when there are two. */
    double round = fmax(groups * slowest, groups > 1 || !k || shared != UINT32_MAX ? sum : slowest);
    return round / (n * expected(use, k));
}

static bool is_all_host(const td_speed_device *devices, const td_speed_row *row)
{
    for (uint32_t i = 0; i < row->n_stages; i++)
        if (!devices[row->stages[i].device].is_host)
            return false;
    return true;
}

/* Microseconds for a prompt, chunks[] being the stages' times for a chunk: alone its chunks follow
 * each other through the stages; of many prompts only the busiest unit counts. */
static double read_us(const td_speed_device *devices, const td_speed_use *use,
                      const td_speed_row *row, const double *chunks)
{
    double n_rows = is_all_host(devices, row) ? TD_HOST_CHUNK_ROWS : TD_PREFILL_ROWS_MAX;
    double slowest =
        fmax(find_slowest(devices, row, chunks), busiest_link_us(devices, use, row, n_rows));
    double sum = way_us(devices, use, row, n_rows);
    for (uint32_t i = 0; i < row->n_stages; i++)
        sum += chunks[i];
    double n_chunks = use->n_prompt / n_rows;
    return use->use == TD_FOR_BATCH || n_chunks < 1 ? n_chunks * (n_chunks < 1 ? sum : slowest)
                                                    : sum + (n_chunks - 1) * slowest;
}

void td_speed_predict(const td_speed_device *devices, const td_speed_draft *draft,
                      const td_speed_use *use, td_speed_row *row)
{
    double best = HUGE_VAL, chunks[TD_SPEED_DEVICES_MAX];
    uint32_t k_max = draft ? td_min_u32(use->draft_max, TD_SPEED_DRAFT_MAX) : 0;
    for (uint32_t k = draft && use->is_draft_fixed ? k_max : 0; k <= k_max; k++) {
        double us = use->use == TD_FOR_STREAM ? stream_us(devices, draft, use, row, k)
                                              : batch_us(devices, draft, use, row, k);
        if (us < best) {
            best = us;
            row->k = k;
        }
    }
    bool is_short = is_all_host(devices, row);
    double work[TD_SPEED_DEVICES_MAX], sum = 0;
    for (uint32_t i = 0; i < row->n_stages; i++) {
        const td_speed_device *d = &devices[row->stages[i].device];
        td_cost cost = td_costs_part(d->costs, row->stages[i].first, row->stages[i].last);
        chunks[i] = is_short ? cost.chunk_us : cost.prefill_us;
        work[i] =
            chunks[i] * use->n_prompt / (is_short ? TD_HOST_CHUNK_ROWS : TD_PREFILL_ROWS_MAX) +
            td_cost_rows(&cost, 1) * use->n_predict;
        sum += work[i];
    }
    row->busiest = find_slowest(devices, row, work) / sum;
    row->verify_us = td_speed_verify_us(devices, use, row, 1);
    row->takes_turns = find_shared(devices, draft, row) != UINT32_MAX;
    double prompt_us = read_us(devices, use, row, chunks);
    row->decode_per_s = 1e6 / best;
    row->prefill_per_s = use->n_prompt * 1e6 / prompt_us;
    row->tokens_per_s = use->n_predict * 1e6 / (prompt_us + use->n_predict * best);
}

/* -- memory ------------------------------------------------------------------------------------ */

static uint64_t part_bytes(const td_place_device *d, uint32_t first, uint32_t last,
                           uint32_t n_layers)
{
    uint64_t n = d->fixed_bytes + (first == 0 ? d->first_bytes : 0) +
                 (last + 1 == n_layers ? d->last_bytes : 0);
    for (uint32_t i = first; i <= last; i++)
        n += d->layer_bytes[i];
    return n;
}

/* The budget of all devices that share memory with d: each has its part of it. *shared: what of it
 * is the system's. */
static uint64_t budget_of(const td_speed_device *devices, uint32_t n_devices, uint32_t d,
                          uint64_t *shared)
{
    uint64_t sum = 0;
    *shared = 0;
    for (uint32_t i = 0; i < n_devices; i++)
        if (devices[i].memory == devices[d].memory) {
            sum += devices[i].place->budget_bytes;
            *shared += devices[i].place->shared_bytes;
        }
    return sum;
}

/* Takes n_bytes of d's memory, one n_same-th of which is there for them, and what of it is the
 * system's of *left. */
static bool take(const td_speed_device *devices, uint32_t n_devices, uint32_t d, uint32_t n_same,
                 uint64_t n_bytes, uint64_t *left)
{
    uint64_t shared, budget = budget_of(devices, n_devices, d, &shared);
    td_place_device part = {.budget_bytes = budget / n_same, .shared_bytes = shared / n_same};
    uint64_t of_system = td_place_system_bytes(&part, n_bytes);
    if (n_bytes > part.budget_bytes || of_system > *left)
        return false;
    *left -= of_system;
    return true;
}

bool td_speed_fits(const td_speed_device *devices, uint32_t n_devices, const td_speed_draft *draft,
                   const td_speed_row *row)
{
    uint64_t left = 0; /* of the system's memory */
    bool has_draft = draft && draft->device >= 0, is_system = false;
    for (uint32_t i = 0; i < n_devices; i++)
        if (devices[i].place->shared_bytes) {
            is_system = true;
            left = devices[i].place->system_bytes;
        }
    if (draft && !has_draft && is_system) {
        if (draft->n_bytes > left)
            return false;
        left -= draft->n_bytes;
    }
    for (uint32_t i = 0; i < row->n_stages; i++) {
        uint32_t d = row->stages[i].device, n_same = 0;
        for (uint32_t j = 0; j < row->n_stages; j++)
            n_same += devices[row->stages[j].device].memory == devices[d].memory;
        uint64_t n_bytes = part_bytes(devices[d].place, row->stages[i].first, row->stages[i].last,
                                      devices[d].costs->n_layers);
        if (draft && draft->device >= 0 && devices[draft->device].memory == devices[d].memory) {
            n_bytes += draft->n_bytes;
            has_draft = false;
        }
        if (!take(devices, n_devices, d, n_same, n_bytes, &left))
            return false;
    }
    return !has_draft ||
           take(devices, n_devices, (uint32_t)draft->device, 1, draft->n_bytes, &left);
}

/* -- search ------------------------------------------------------------------------------------ */

typedef struct {
    const td_speed_device *devices;
    uint32_t n_devices, n_layers;
    bool is_all_host;
    const td_speed_draft *draft;
    double *sums;    /* [n_devices][n_layers + 1] of layers' times before a layer */
    uint64_t *bytes; /* the same of their bytes */
    double *best;    /* [n_devices + 1][n_layers + 1][2], of the devices from i on, by turns */
    uint16_t *ends;  /* [n_stages][n_devices][n_layers]: first layer behind device i's; 0: skip */
} search;

/* A row count that stands for a prompt's chunk. */
#define CHUNK 0.0

static double cost_us(const search *s, const td_cost *cost, double n_rows)
{
    if (n_rows != CHUNK)
        return td_cost_rows(cost, n_rows);
    return s->is_all_host ? cost->chunk_us : cost->prefill_us;
}

static void fill_sums(search *s, double n_rows)
{
    for (uint32_t d = 0; d < s->n_devices; d++) {
        double *sums = s->sums + (size_t)d * (s->n_layers + 1);
        uint64_t *bytes = s->bytes + (size_t)d * (s->n_layers + 1);
        sums[0] = 0;
        bytes[0] = 0;
        for (uint32_t i = 0; i < s->n_layers; i++) {
            sums[i + 1] = sums[i] + cost_us(s, &s->devices[d].costs->layers[i], n_rows);
            bytes[i + 1] = bytes[i] + s->devices[d].place->layer_bytes[i];
        }
    }
}

/* Time of device d with layers first..end-1 and the way to it, HUGE_VAL if they do not fit. */
static double segment_us(const search *s, uint32_t d, uint32_t first, uint32_t end, double n_rows)
{
    const td_place_device *place = s->devices[d].place;
    const td_costs *costs = s->devices[d].costs;
    size_t row = (size_t)d * (s->n_layers + 1);
    uint64_t n_bytes = place->fixed_bytes + s->bytes[row + end] - s->bytes[row + first];
    double us = cost_us(s, &costs->pass, n_rows) + s->sums[row + end] - s->sums[row + first] +
                s->devices[d].way_us;
    if (first == 0) {
        n_bytes += place->first_bytes;
        us += cost_us(s, &costs->first, n_rows);
    }
    if (end == s->n_layers) {
        n_bytes += place->last_bytes;
        us += cost_us(s, &costs->last, n_rows);
    }
    if (s->draft && s->draft->device == (int32_t)d)
        n_bytes += s->draft->n_bytes;
    uint64_t shared;
    return n_bytes <= budget_of(s->devices, s->n_devices, d, &shared) ? us : HUGE_VAL;
}

/* The best cut into n_stages stages for n_rows rows: the least sum, or the least slowest stage. */
static bool find_cut(search *s, uint32_t n_stages, double n_rows, bool is_sum, td_speed_row *out)
{
    const uint32_t n = s->n_layers, width = n + 1;
    fill_sums(s, n_rows);
    /* best[i][k]: layers k.. on the devices i.., in j stages; j counts up. */
    double *now = s->best, *next = s->best + (size_t)(s->n_devices + 1) * width;
    for (size_t i = 0; i < (size_t)(s->n_devices + 1) * width; i++)
        now[i] = i % width == n ? 0 : HUGE_VAL;
    for (uint32_t j = 0; j < n_stages; j++) {
        for (uint32_t k = 0; k < width; k++)
            next[(size_t)s->n_devices * width + k] = HUGE_VAL;
        for (uint32_t d = s->n_devices; d-- > 0;) {
            next[(size_t)d * width + n] = HUGE_VAL;
            for (uint32_t k = 0; k < n; k++) {
                double least = next[(size_t)(d + 1) * width + k];
                uint32_t least_end = 0;
                for (uint32_t end = k + 1; end <= n; end++) {
                    double rest = now[(size_t)(d + 1) * width + end];
                    if (rest == HUGE_VAL)
                        continue;
                    double us = segment_us(s, d, k, end, n_rows);
                    us = is_sum ? us + rest : fmax(us, rest);
                    if (us < least) {
                        least = us;
                        least_end = end;
                    }
                }
                next[(size_t)d * width + k] = least;
                s->ends[((size_t)j * s->n_devices + d) * n + k] = (uint16_t)least_end;
            }
        }
        double *swap = now;
        now = next;
        next = swap;
    }
    if (now[0] == HUGE_VAL)
        return false;
    *out = (td_speed_row){.i_draft = -1};
    for (uint32_t j = n_stages, d = 0, k = 0; j > 0;) {
        uint32_t end = s->ends[((size_t)(j - 1) * s->n_devices + d) * n + k];
        if (end) {
            out->stages[out->n_stages].device = d;
            out->stages[out->n_stages].first = k;
            out->stages[out->n_stages++].last = end - 1;
            k = end;
            j--;
        }
        d++;
    }
    return true;
}

/* The same placement; where drafts do not pay, it does not matter where they would run. */
static bool is_same(const td_speed_row *a, const td_speed_row *b)
{
    return a->n_stages == b->n_stages && (a->i_draft == b->i_draft || (!a->k && !b->k)) &&
           !memcmp(a->stages, b->stages, a->n_stages * sizeof *a->stages);
}

static bool is_alone(const td_speed_row *r) { return r->n_stages == 1; }

typedef struct {
    td_speed_row rows[TD_SPEED_ROWS_MAX];
    uint32_t n;
} candidates;

/* Predicts a placement and takes it up; where there is no room, in place of the worst that is not
 * on one device. */
static void consider(search *s, candidates *c, td_speed_row *row, int32_t i_draft,
                     const td_speed_use *use)
{
    row->i_draft = i_draft;
    if (!td_speed_fits(s->devices, s->n_devices, s->draft, row))
        return;
    td_speed_predict(s->devices, s->draft, use, row);
    uint32_t worst = UINT32_MAX;
    for (uint32_t i = 0; i < c->n; i++) {
        if (is_same(&c->rows[i], row))
            return;
        if (!is_alone(&c->rows[i]) &&
            (worst == UINT32_MAX || c->rows[i].tokens_per_s < c->rows[worst].tokens_per_s))
            worst = i;
    }
    if (c->n < TD_SPEED_ROWS_MAX)
        c->rows[c->n++] = *row;
    else if (worst != UINT32_MAX &&
             (is_alone(row) || c->rows[worst].tokens_per_s < row->tokens_per_s))
        c->rows[worst] = *row;
}

static void search_draft(search *s, candidates *c, int32_t i_draft, const td_speed_use *use)
{
    td_speed_row row;
    for (uint32_t d = 0; d < s->n_devices; d++) {
        row = (td_speed_row){.n_stages = 1};
        row.stages[0].device = d;
        row.stages[0].last = s->n_layers - 1;
        consider(s, c, &row, i_draft, use);
    }
    uint32_t most = td_min_u32(s->n_devices, s->n_layers);
    static const double ks[] = {1, 5, 9}; /* rows of a round of one sequence */
    for (uint32_t n_stages = td_max_u32(use->n_stages_min, 2); n_stages <= most; n_stages++)
        for (uint32_t i = 0; i < (s->draft ? TD_COUNT(ks) : 1); i++) {
            double n = use->use == TD_FOR_BATCH ? fmax(1, use->n_sequences / (double)n_stages) : 1;
            if (find_cut(s, n_stages, n * ks[i], true, &row))
                consider(s, c, &row, i_draft, use);
            if (find_cut(s, n_stages, n * ks[i], false, &row))
                consider(s, c, &row, i_draft, use);
        }
    for (uint32_t n_stages = td_max_u32(use->n_stages_min, 2); n_stages <= most; n_stages++)
        if (find_cut(s, n_stages, CHUNK, false, &row))
            consider(s, c, &row, i_draft, use);
}

static int by_speed(const void *a, const void *b)
{
    double x = ((const td_speed_row *)a)->tokens_per_s, y = ((const td_speed_row *)b)->tokens_per_s;
    return (x < y) - (x > y);
}

bool td_speed_search(const td_speed_device *devices, uint32_t n_devices,
                     const td_speed_draft *drafts, uint32_t n_drafts, uint32_t n_layers,
                     const td_speed_use *use, td_speed_row *rows, uint32_t *n, td_err *err)
{
    TD_ASSERT(n_devices >= 1 && n_devices <= TD_SPEED_DEVICES_MAX && n_layers >= 1);
    const size_t width = n_layers + 1;
    search s = {
        .devices = devices, .n_devices = n_devices, .n_layers = n_layers, .is_all_host = true};
    for (uint32_t i = 0; i < n_devices; i++)
        s.is_all_host &= devices[i].is_host;
    candidates c = {.n = 0};
    s.sums = td_alloc(n_devices * width, sizeof *s.sums, err);
    s.bytes = td_alloc(n_devices * width, sizeof *s.bytes, err);
    s.best = td_alloc(2 * (n_devices + 1) * width, sizeof *s.best, err);
    s.ends = td_alloc((size_t)n_devices * n_devices * n_layers, sizeof *s.ends, err);
    bool is_ok = s.sums && s.bytes && s.best && s.ends;
    for (uint32_t i = 0; is_ok && i < td_max_u32(n_drafts, 1); i++) {
        s.draft = n_drafts ? &drafts[i] : NULL;
        search_draft(&s, &c, n_drafts ? (int32_t)i : -1, use);
    }
    if (is_ok) {
        qsort(c.rows, c.n, sizeof *c.rows, by_speed);
        memcpy(rows, c.rows, c.n * sizeof *rows);
        *n = c.n;
    }
    td_free(s.sums);
    td_free(s.bytes);
    td_free(s.best);
    td_free(s.ends);
    return is_ok;
}

static bool has_same_devices(const td_speed_row *a, const td_speed_row *b)
{
    bool is_same = a->n_stages == b->n_stages && (a->i_draft == b->i_draft || (!a->k && !b->k));
    for (uint32_t i = 0; is_same && i < a->n_stages; i++)
        is_same = a->stages[i].device == b->stages[i].device;
    return is_same;
}

uint32_t td_speed_choose(const td_speed_row *rows, uint32_t n, uint32_t n_stages_min)
{
    uint32_t first = 0;
    while (first < n && rows[first].n_stages < n_stages_min)
        first++;
    if (first == n) /* all of them have no room: then the fastest */
        first = 0;
    uint32_t best = first;
    for (uint32_t i = first + 1; i < n; i++)
        if (has_same_devices(&rows[i], &rows[first]) && rows[i].busiest < rows[best].busiest &&
            rows[i].tokens_per_s >= rows[first].tokens_per_s * (1 - TD_SPEED_ERROR))
            best = i;
    return best;
}
