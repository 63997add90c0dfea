/* The head reads pairs: the token of a position and the trunk's hidden row of the one before. Of a
 * prompt it reads them chunk by chunk behind the trunk, so that what is shared or kept on the disk
 * has its keys and values too. Of verified rows the hidden ones are kept, and their pairs are read
 * when a proposal is asked for, together with the pair that it begins with: those that were
 * rejected are never read. Before they are too many they are read without being asked for.
 *
 * A proposal goes on from guess to guess with the head's own rows; the pairs that were made of
 * these are behind the sequence's end in the cache, which is cut back to it: they are read anew,
 * with the trunk's rows, when they have been verified. */
#include "target/stage_head.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"

#include <string.h>

/* Hidden rows kept of a sequence: of those in flight, which may be cut back, and as many before. */
#define RING    (2 * TD_VERIFY_ROWS_MAX)
#define LAG_MAX TD_VERIFY_ROWS_MAX /* pairs that wait to be read */

struct stage_head {
    uint32_t n_ctx, n_pages; /* n_pages: of a sequence */
    uint32_t *n_paired;      /* [n_slots] positions whose pairs are in the cache */
    float *rows;             /* [n_slots][RING][n_embd] by position */
    float *page_rows;        /* [n_slots][n_pages][n_embd] of pages' last positions, behind which
                              * another may go on; NULL: none does */
    float *in;               /* [TD_PREFILL_ROWS_MAX][n_embd] */
    bool has_failed;
};

bool td_stage_head_create(stage *s, uint32_t n_ctx, td_err *err)
{
    stage_head *h = td_alloc(1, sizeof *h, err);
    if (!h)
        return false;
    s->head = h;
    h->n_ctx = n_ctx;
    h->n_pages = td_div_up(n_ctx, TD_PAGE_POSITIONS);
    size_t row = s->n_embd * sizeof(float);
    bool is_shared = !td_cache_forgets(td_forward_cache(s->forward));
    h->n_paired = td_alloc(s->n_slots, sizeof *h->n_paired, err);
    h->rows = td_alloc((size_t)s->n_slots * RING, row, err);
    h->in = td_alloc(TD_PREFILL_ROWS_MAX, row, err);
    if (is_shared)
        h->page_rows = td_alloc((size_t)s->n_slots * h->n_pages, row, err);
    return h->n_paired && h->rows && h->in && (h->page_rows || !is_shared);
}

void td_stage_head_destroy(stage *s)
{
    if (!s->head)
        return;
    td_free(s->head->n_paired);
    td_free(s->head->rows);
    td_free(s->head->page_rows);
    td_free(s->head->in);
    td_free(s->head);
    s->head = NULL;
}

static float *row_at(const stage *s, uint32_t slot, uint32_t position)
{
    return s->head->rows + ((size_t)slot * RING + position % RING) * s->n_embd;
}

static float *page_row_at(const stage *s, uint32_t slot, uint32_t page)
{
    TD_ASSERT(page < s->head->n_pages);
    return s->head->page_rows + ((size_t)slot * s->head->n_pages + page) * s->n_embd;
}

static void keep_row(const stage *s, uint32_t slot, uint32_t position, const void *row)
{
    size_t n_bytes = s->n_embd * sizeof(float);
    memcpy(row_at(s, slot, position), row, n_bytes);
    if (s->head->page_rows && (position + 1) % TD_PAGE_POSITIONS == 0)
        memcpy(page_row_at(s, slot, position / TD_PAGE_POSITIONS), row, n_bytes);
}

void td_stage_head_open(stage *s, uint32_t slot, uint32_t from_slot, uint32_t length)
{
    s->head->n_paired[slot] = length;
    if (!length)
        return;
    TD_ASSERT(s->head->page_rows && length % TD_PAGE_POSITIONS == 0);
    uint32_t n_pages = length / TD_PAGE_POSITIONS;
    size_t row = s->n_embd * sizeof(float);
    if (from_slot != slot)
        memcpy(page_row_at(s, slot, 0), page_row_at(s, from_slot, 0), n_pages * row);
    memcpy(row_at(s, slot, length - 1), page_row_at(s, slot, n_pages - 1), row);
}

void td_stage_head_truncate(stage *s, uint32_t slot, uint32_t length)
{
    s->head->n_paired[slot] = td_min_u32(s->head->n_paired[slot], length);
}

const float *td_stage_head_row(stage *s, uint32_t slot, uint32_t position)
{
    return row_at(s, slot, position);
}

void td_stage_head_restore(stage *s, uint32_t slot, uint32_t length, const void *row)
{
    keep_row(s, slot, length - 1, row);
    s->head->n_paired[slot] = length;
}

static bool fail(stage *s, const td_err *err)
{
    td_log_warn("the head for multi-token prediction: %s; going on without it", err->message);
    s->head->has_failed = true;
    return false;
}

/* Runs pairs whose hidden rows are in `in`. */
static bool run_pairs(stage *s, td_mode mode, const td_forward_row *rows, uint32_t n)
{
    td_err err = {0};
    return td_forward_run_head(s->forward, mode, rows, s->head->in, n, &err) || fail(s, &err);
}

/* The row of the position before, of zeros where there is none. */
static void fill_in(stage *s, uint32_t i, uint32_t slot, uint32_t position)
{
    float *to = s->head->in + (size_t)i * s->n_embd;
    if (position)
        memcpy(to, row_at(s, slot, position - 1), s->n_embd * sizeof *to);
    else
        memset(to, 0, s->n_embd * sizeof *to);
}

/* Adds the pairs up to position end - 1 that are not in the cache. */
static uint32_t add_pairs(stage *s, uint32_t slot, uint32_t end, td_forward_row *rows, uint32_t n)
{
    const struct stage_slot *of = &s->slots[slot];
    for (uint32_t p = s->head->n_paired[slot]; p < end; p++) {
        TD_ASSERT(n < TD_VERIFY_ROWS_MAX);
        fill_in(s, n, slot, p);
        rows[n++] = (td_forward_row){.slot = slot, .position = p, .token = of->tokens[p]};
    }
    return n;
}

/* Reads the pairs up to position end - 1. */
static bool catch_up(stage *s, uint32_t slot, uint32_t end)
{
    td_forward_row rows[TD_VERIFY_ROWS_MAX];
    while (s->head->n_paired[slot] < end) {
        uint32_t to = td_min_u32(end, s->head->n_paired[slot] + TD_VERIFY_ROWS_MAX);
        uint32_t n = add_pairs(s, slot, to, rows, 0);
        if (!run_pairs(s, TD_MODE_VERIFY, rows, n))
            return false;
        s->head->n_paired[slot] = to;
    }
    return true;
}

static void take_chunk(stage *s, const td_forward_row *rows, uint32_t n_rows)
{
    td_forward_row pairs[TD_PREFILL_ROWS_MAX];
    const float *hidden = td_forward_hidden(s->forward);
    uint32_t slot = rows[0].slot, first = rows[0].position;
    if (!catch_up(s, slot, first))
        return;
    fill_in(s, 0, slot, first);
    memcpy(s->head->in + s->n_embd, hidden, (size_t)(n_rows - 1) * s->n_embd * sizeof *hidden);
    for (uint32_t i = 0; i < n_rows; i++) {
        pairs[i] = rows[i];
        pairs[i].is_output = false;
        keep_row(s, slot, first + i, hidden + (size_t)i * s->n_embd);
    }
    if (run_pairs(s, TD_MODE_PREFILL, pairs, n_rows))
        s->head->n_paired[slot] = first + n_rows;
}

void td_stage_head_take(stage *s, td_mode mode, const td_forward_row *rows, uint32_t n_rows)
{
    if (s->head->has_failed)
        return;
    if (mode == TD_MODE_PREFILL) {
        take_chunk(s, rows, n_rows);
        return;
    }
    const float *hidden = td_forward_hidden(s->forward);
    for (uint32_t i = 0; i < n_rows; i++)
        keep_row(s, rows[i].slot, rows[i].position, hidden + (size_t)i * s->n_embd);
    for (uint32_t i = 0; i < n_rows; i++) {
        bool is_last = i + 1 == n_rows || rows[i + 1].slot != rows[i].slot;
        uint32_t slot = rows[i].slot, end = rows[i].position + 1;
        if (is_last && end >= s->head->n_paired[slot] + LAG_MAX && !catch_up(s, slot, end))
            return;
    }
}

/* -- proposals --------------------------------------------------------------------------------- */

typedef struct {
    td_proposal *p;
    uint32_t slot, length; /* of its cache: the position of the first pair */
} chain;

/* Room behind the sequence's end for the pairs of the chain; false: nothing can be proposed. */
static bool begin(stage *s, chain *c, uint32_t token)
{
    td_cache *cache = td_forward_cache(s->forward);
    struct stage_slot *of = &s->slots[c->slot];
    c->p->n = c->p->busy_us = 0;
    c->length = td_cache_length(cache, c->slot);
    if (!of->is_open || of->has_hole || c->p->position != c->length + 1 ||
        c->length >= s->head->n_ctx)
        return false;
    c->p->k = td_min_u32(c->p->k, s->head->n_ctx - c->length);
    if (!c->p->k || !td_cache_reserve(cache, c->slot, c->length + c->p->k, NULL))
        return false;
    of->tokens[c->length] = token;
    s->head->n_paired[c->slot] = td_min_u32(s->head->n_paired[c->slot], c->length);
    return true;
}

/* The first pair stays, as nothing of it is a guess; unless the page goes that it begins. */
static void end(stage *s, const chain *c)
{
    td_cache_truncate(td_forward_cache(s->forward), c->slot, c->length);
    if (s->head->n_paired[c->slot] > c->length && c->length % TD_PAGE_POSITIONS == 0)
        s->head->n_paired[c->slot] = c->length;
}

/* The rows of a step: at first all pairs that have not been read, later that of the last guess. */
static uint32_t list_step(stage *s, const chain *chains, uint32_t n, uint32_t step,
                          td_forward_row *rows)
{
    uint32_t n_rows = 0;
    for (uint32_t i = 0; i < n; i++) {
        const chain *c = &chains[i];
        const struct stage_slot *of = &s->slots[c->slot];
        if (step) {
            /* its hidden row is there: the one that came out of the step before */
            rows[n_rows++] = (td_forward_row){.slot = c->slot,
                                              .position = c->length + step,
                                              .token = of->tokens[c->length + step]};
        } else {
            n_rows = add_pairs(s, c->slot, c->length + 1, rows, n_rows);
        }
        td_forward_row *last = &rows[n_rows - 1];
        last->is_output = true;
        last->sampling = &of->sampling;
        last->stream = of->stream;
        last->history = of->tokens;
    }
    return n_rows;
}

/* A guess more for each; those that have enough leave. */
static bool take_step(stage *s, chain *chains, uint32_t *n, uint32_t step,
                      const td_forward_row *rows, uint32_t n_rows)
{
    uint32_t n_out = 0, n_left = 0;
    td_err err = {0};
    for (uint32_t i = 0; i < n_rows; i++) {
        if (!rows[i].is_output)
            continue;
        chain c = chains[n_out];
        uint32_t token;
        if (!td_forward_choose(s->forward, n_out, &rows[i], s->sampler, &token, NULL, &err))
            return fail(s, &err);
        if (!step)
            s->head->n_paired[c.slot] = c.length + 1;
        c.p->ids[c.p->n++] = token;
        s->slots[c.slot].tokens[c.length + step + 1] = token;
        if (c.p->n < c.p->k) {
            memcpy(s->head->in + (size_t)n_left * s->n_embd,
                   td_forward_head_hidden(s->forward) + (size_t)n_out * s->n_embd,
                   s->n_embd * sizeof(float));
            chains[n_left++] = c;
        } else {
            end(s, &c);
        }
        n_out++;
    }
    *n = n_left;
    return true;
}

void td_stage_head_propose(stage *s, struct draft_batch *b)
{
    const td_clock clock = td_clock_real();
    uint64_t start = td_clock_now_us(&clock);
    chain chains[TD_VERIFY_ROWS_MAX];
    td_forward_row rows[TD_VERIFY_ROWS_MAX];
    uint32_t n = 0, n_rows = 0;
    for (uint32_t i = 0; i < b->n; i++) {
        chains[n] = (chain){.p = &b->proposals[i], .slot = b->slots[i]};
        bool is_ok = !s->head->has_failed && begin(s, &chains[n], b->tokens[i]);
        n += is_ok;
        n_rows += is_ok ? chains[n - 1].length + 1 - s->head->n_paired[b->slots[i]] : 0;
    }
    bool is_ok = true;
    for (uint32_t i = 0; i < n && n_rows > TD_VERIFY_ROWS_MAX && is_ok; i++) {
        n_rows -= chains[i].length - s->head->n_paired[chains[i].slot];
        is_ok = catch_up(s, chains[i].slot, chains[i].length);
    }
    uint32_t n_jobs = n;
    for (uint32_t step = 0; n && is_ok; step++) {
        n_rows = list_step(s, chains, n, step, rows);
        is_ok = run_pairs(s, TD_MODE_VERIFY, rows, n_rows) &&
                take_step(s, chains, &n, step, rows, n_rows);
    }
    for (uint32_t i = 0; i < n; i++) /* of which something failed */
        end(s, &chains[i]);
    uint64_t us = td_clock_now_us(&clock) - start;
    s->info.busy_draft_us += us;
    s->info.n_draft_asks += b->n;
    for (uint32_t i = 0; i < b->n; i++) {
        s->info.n_draft_tokens += b->proposals[i].n;
        if (b->proposals[i].n)
            b->proposals[i].busy_us = (uint32_t)td_min_u64(us / n_jobs + 1, UINT32_MAX);
    }
}
