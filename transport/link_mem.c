/* td_link in memory: two ends and the messages between them, under a clock that may be simulated.
 * Every message draws its fate (dropped, doubled, delayed, overtaken) from a counter-based
 * generator keyed by the seed and its number, so that a run replays from its seed alone. Without
 * faults the order of messages is kept, also when delays differ: a message is never due before the
 * one sent before it, unless its fate says that it is overtaken. */
#include "base/check.h"
#include "base/mem.h"
#include "base/rng.h"
#include "transport/link_impl.h"
#include "transport/wire.h"

#include <string.h>

typedef struct {
    bool is_used;
    uint64_t due_us;
    uint64_t number; /* order of sending, breaks ties */
    size_t n_bytes, capacity;
    uint8_t *bytes; /* kept for the next user of the slot */
} slot;

typedef struct {
    slot slots[TD_LINK_MEM_MAX];
    uint32_t n_used;
    uint64_t last_due_us;
} lane; /* messages towards one end */

typedef struct {
    lane to[2];
    td_clock *clock;
    td_link_faults faults;
    uint64_t n_numbered; /* messages sent so far, either way */
    bool is_cut;
    int n_ends;
} wires;

typedef struct {
    td_link base;
    wires *w;
    int end; /* 0 or 1 */
} mem_link;

static slot *find_free(lane *way)
{
    for (size_t i = 0; i < TD_LINK_MEM_MAX; i++)
        if (!way->slots[i].is_used)
            return &way->slots[i];
    return NULL;
}

/* The slot that is due first; NULL for none. */
static slot *find_next(lane *way)
{
    slot *best = NULL;
    for (size_t i = 0; i < TD_LINK_MEM_MAX && way->n_used; i++) {
        slot *s = &way->slots[i];
        if (s->is_used && (!best || s->due_us < best->due_us ||
                           (s->due_us == best->due_us && s->number < best->number)))
            best = s;
    }
    return best;
}

uint64_t td_link_mem_next_us(const td_link *base)
{
    const mem_link *l = (const mem_link *)base;
    slot *s = find_next(&l->w->to[l->end]);
    return s ? s->due_us : UINT64_MAX;
}

/* value scaled from 32 random bits to 0..range-1; range 0 gives 0. */
static uint32_t scale(uint32_t bits, uint32_t range)
{
    return (uint32_t)(((uint64_t)bits * range) >> 32);
}

static td_link_fate draw_fate(const wires *w, uint32_t *extra_us)
{
    const td_link_faults *f = &w->faults;
    uint32_t key[2] = {(uint32_t)f->seed, (uint32_t)(f->seed >> 32)}, a[4], b[4];
    td_philox((uint32_t[4]){(uint32_t)w->n_numbered, (uint32_t)(w->n_numbered >> 32), 0, 0}, key,
              a);
    td_philox((uint32_t[4]){(uint32_t)w->n_numbered, (uint32_t)(w->n_numbered >> 32), 1, 0}, key,
              b);
    td_link_fate fate = {.n_copies = 1};
    if (scale(a[0], 1000) < f->drop_permille)
        fate.n_copies = 0;
    else if (scale(a[1], 1000) < f->duplicate_permille)
        fate.n_copies = 2;
    fate.is_overtaken = scale(a[2], 1000) < f->overtake_permille;
    fate.delay_us = f->delay_min_us;
    if (f->delay_max_us > f->delay_min_us)
        fate.delay_us += scale(a[3], f->delay_max_us - f->delay_min_us + 1);
    *extra_us = scale(b[0], f->overtake_us);
    return fate;
}

static bool put(wires *w, lane *way, uint64_t due_us, const void *bytes, size_t n_bytes,
                td_err *err)
{
    slot *s = find_free(way);
    if (!s)
        return td_err_set(err, TD_E_AGAIN, "in-memory link: %u messages are under way; allowed: %u",
                          TD_LINK_MEM_MAX, TD_LINK_MEM_MAX);
    if (s->capacity < n_bytes) {
        uint8_t *grown = td_alloc(n_bytes, 1, err);
        if (!grown)
            return false;
        td_free(s->bytes);
        s->bytes = grown;
        s->capacity = n_bytes;
    }
    memcpy(s->bytes, bytes, n_bytes);
    s->n_bytes = n_bytes;
    s->due_us = due_us;
    s->number = w->n_numbered;
    s->is_used = true;
    way->n_used++;
    return true;
}

static bool mem_link_send(td_link *base, td_route route, const void *bytes, size_t n_bytes,
                          bool may_queue, td_err *err)
{
    (void)may_queue; /* the lane is the queue */
    (void)route;
    mem_link *l = (mem_link *)base;
    wires *w = l->w;
    lane *way = &w->to[!l->end];
    w->n_numbered++;
    uint32_t extra_us;
    td_link_fate fate = draw_fate(w, &extra_us);
    if (w->faults.hook)
        w->faults.hook(w->faults.user, l->end, bytes, n_bytes, &fate);
    if (w->is_cut || w->n_ends < 2)
        fate.n_copies = 0;
    uint64_t due_us = td_clock_now_us(w->clock) + fate.delay_us;
    if (due_us < way->last_due_us)
        due_us = way->last_due_us;
    if (!fate.is_overtaken)
        way->last_due_us = due_us;
    else
        due_us += extra_us;
    for (uint32_t i = 0; i < fate.n_copies; i++)
        if (!put(w, way, due_us, bytes, n_bytes, i ? NULL : err))
            return i > 0; /* a second copy that finds no room is no failure of the sender's */
    base->stats.n_sent++;
    return true;
}

static bool mem_link_recv(td_link *base, void *buffer, size_t *n_bytes, td_route *route,
                          td_err *err)
{
    (void)err;
    (void)route; /* 0: there is one peer */
    mem_link *l = (mem_link *)base;
    slot *s = find_next(&l->w->to[l->end]);
    if (!s || s->due_us > td_clock_now_us(l->w->clock))
        return true;
    memcpy(buffer, s->bytes, s->n_bytes);
    *n_bytes = s->n_bytes;
    s->is_used = false;
    l->w->to[l->end].n_used--;
    base->stats.n_received++;
    return true;
}

static bool mem_link_reset(td_link *base, td_err *err)
{
    (void)base;
    (void)err;
    return true;
}

static void mem_link_flush(td_link *base) { (void)base; }

static void mem_link_close(td_link *base, bool is_clean)
{
    (void)is_clean;
    mem_link *l = (mem_link *)base;
    wires *w = l->w;
    if (--w->n_ends == 0) {
        for (int end = 0; end < 2; end++)
            for (size_t i = 0; i < TD_LINK_MEM_MAX; i++)
                td_free(w->to[end].slots[i].bytes);
        td_free(w);
    }
    td_free(l);
}

static const td_link_ops mem_ops = {
    .send = mem_link_send,
    .recv = mem_link_recv,
    .reset = mem_link_reset,
    .flush = mem_link_flush,
    .close = mem_link_close,
};

bool td_link_pair(td_clock *clock, const td_link_faults *faults, td_link *pair[2], td_err *err)
{
    pair[0] = pair[1] = NULL;
    wires *w = td_alloc(1, sizeof *w, err);
    mem_link *a = td_alloc(1, sizeof *a, err), *b = td_alloc(1, sizeof *b, err);
    if (!w || !a || !b) {
        td_free(w);
        td_free(a);
        td_free(b);
        return false;
    }
    w->clock = clock;
    w->n_ends = 2;
    if (faults)
        w->faults = *faults;
    *a = (mem_link){.base = {.ops = &mem_ops, .clock = clock}, .w = w, .end = 0};
    *b = (mem_link){.base = {.ops = &mem_ops, .clock = clock}, .w = w, .end = 1};
    pair[0] = &a->base;
    pair[1] = &b->base;
    return true;
}

void td_link_cut(td_link *end, bool is_cut)
{
    TD_ASSERT(end->ops == &mem_ops);
    wires *w = ((mem_link *)end)->w;
    w->is_cut = is_cut;
    for (int i = 0; i < 2 && is_cut; i++) {
        w->to[i].n_used = 0;
        for (size_t j = 0; j < TD_LINK_MEM_MAX; j++)
            w->to[i].slots[j].is_used = false;
    }
}
