#include "model/seats.h"

#include "base/check.h"
#include "base/mem.h"
#include "kernels/pool.h"

#include <string.h>

#define N_MODES 2u /* td_mode */

typedef struct {
    uint16_t row, i, expert; /* the i-th expert that the row asks, by its place on the seat */
} pair;

typedef struct {
    td_tensor **slot;
    td_tensor_params params;
    bool is_wanted;
} seat_tensor;
#define SEAT_TENSORS 7u

typedef struct {
    td_device *dev;
    td_weights *weights, *own; /* own: of seats but 0, whose are the part's */
    /* A row for each pair. */
    td_tensor *in;                  /* [pairs][n_embd] */
    td_tensor *experts;             /* I32 [pairs][1] */
    td_tensor *scales;              /* [pairs][1], where the router's weight scales the input */
    td_tensor *gate_up, *gated;     /* [pairs][2 * n_ff_expert], [pairs][n_ff_expert] */
    td_tensor *factor;              /* [pairs][1] */
    td_tensor *out;                 /* [pairs][n_embd] */
    td_program **programs[N_MODES]; /* [n_layers] */
    pair *pairs;                    /* [n_pairs] of this turn, by expert, rows ascending */
    uint32_t n_pairs;
    td_err err; /* of this turn */
} seat;

struct td_seats {
    const td_hparams *h;
    uint32_t n, n_layers; /* layers that have experts */
    uint32_t first;       /* of the part */
    uint16_t *places;     /* [n_layers][n_expert] of an expert on its seat */
    uint32_t *layers;     /* [n_layers] of the model */
    const td_dealing *dealing;
    uint32_t *begin; /* [n_expert + 1] scratch */
    pair *sorted;    /* [TD_PREFILL_ROWS_MAX * n_expert_used] */
    uint64_t *asked; /* [n_layer][n_expert] rows of all runs that asked it */
    uint64_t done[TD_SEATS_MAX];
    td_pool *pool;
    seat seats[TD_SEATS_MAX];
};

static void list_tensors(const td_forward_params *p, seat *s, seat_tensor out[SEAT_TENSORS])
{
    const td_hparams *h = td_model_hparams(p->model);
    bool is_scaled = td_model_arch(p->model)->is_expert_input_scaled;
    const seat_tensor rows[SEAT_TENSORS] = {
        {&s->in, {"seat in", TD_ELEM_F32, TD_ROWS_BATCH, 0, h->n_embd, TD_HOST_WRITES}, true},
        {&s->experts, {"seat experts", TD_ELEM_I32, TD_ROWS_BATCH, 0, 1, TD_HOST_WRITES}, true},
        {&s->scales, {"seat scales", TD_ELEM_F32, TD_ROWS_BATCH, 0, 1, TD_HOST_WRITES}, is_scaled},
        {&s->gate_up,
         {"seat gate_up", TD_ELEM_F32, TD_ROWS_BATCH, 0, 2 * h->n_ff_expert, TD_HOST_NONE},
         true},
        {&s->gated,
         {"seat gated", TD_ELEM_F32, TD_ROWS_BATCH, 0, h->n_ff_expert, TD_HOST_NONE},
         true},
        {&s->factor, {"seat factor", TD_ELEM_F32, TD_ROWS_BATCH, 0, 1, TD_HOST_NONE}, true},
        {&s->out, {"seat out", TD_ELEM_F32, TD_ROWS_BATCH, 0, h->n_embd, TD_HOST_READS}, true},
    };
    memcpy(out, rows, sizeof rows);
    for (uint32_t i = 0; i < SEAT_TENSORS; i++)
        out[i].params.n_rows = TD_PREFILL_ROWS_MAX;
}

static td_weights_params weights_params(const td_forward_params *p, uint32_t i)
{
    return (td_weights_params){.model = p->model,
                               .dev = p->seats[i],
                               .first = p->first,
                               .last = p->last,
                               .share = TD_SHARE_EXPERTS,
                               .dealing = p->dealing,
                               .seat = i};
}

uint64_t td_seats_bytes(const td_forward_params *p, uint32_t i)
{
    seat s;
    seat_tensor rows[SEAT_TENSORS];
    td_weights_params weights = weights_params(p, i);
    uint64_t n_bytes = 0;
    list_tensors(p, &s, rows);
    for (uint32_t k = 0; k < SEAT_TENSORS; k++)
        n_bytes += rows[k].is_wanted ? td_tensor_bytes(p->seats[i], &rows[k].params) : 0;
    for (uint32_t k = p->first; i && k <= p->last; k++)
        n_bytes += td_weights_bytes_of(&weights, p->model, k);
    return n_bytes;
}

/* -- creating ---------------------------------------------------------------------------------- */

static bool record(const td_seats *seats, seat *s, const td_model *m, td_mode mode, td_err *err)
{
    const td_expert_tensors t = {.n_used = 1,
                                 .in = s->in,
                                 .experts = s->experts,
                                 .weights = s->scales,
                                 .gate_up = s->gate_up,
                                 .gated = s->gated,
                                 .parts = s->out,
                                 .factor = s->factor};
    const td_program_params params = {
        .name = mode == TD_MODE_PREFILL ? "experts, prefill" : "experts",
        .mode = mode,
        .n_rows_max = mode == TD_MODE_PREFILL ? TD_PREFILL_ROWS_MAX : TD_VERIFY_ROWS_MAX,
        .n_out_max = 1};
    s->programs[mode] = td_alloc(seats->n_layers, sizeof(td_program *), err);
    for (uint32_t i = 0; s->programs[mode] && i < seats->n_layers; i++) {
        td_program *p = td_program_begin(s->dev, &params, err);
        if (!p)
            return false;
        s->programs[mode][i] = p;
        td_forward_record_experts(p, m, s->weights->layers[seats->layers[i] - seats->first], &t);
        if (!td_program_end(p, err))
            return false;
    }
    return s->programs[mode];
}

static bool create_seat(td_seats *seats, td_forward *f, uint32_t i, td_err *err)
{
    const td_forward_params *p = &f->params;
    seat *s = &seats->seats[i];
    seat_tensor rows[SEAT_TENSORS];
    td_weights_params weights = weights_params(p, i);
    s->dev = p->seats[i];
    s->weights = i ? s->own = td_weights_load(&weights, err) : f->weights;
    if (!s->weights)
        return false;
    list_tensors(p, s, rows);
    for (uint32_t k = 0; k < SEAT_TENSORS; k++)
        if (rows[k].is_wanted && !(*rows[k].slot = td_tensor_create(s->dev, &rows[k].params, err)))
            return false;
    s->pairs = td_alloc((size_t)TD_PREFILL_ROWS_MAX * seats->h->n_expert_used, sizeof(pair), err);
    return s->pairs && record(seats, s, p->model, TD_MODE_VERIFY, err) &&
           record(seats, s, p->model, TD_MODE_PREFILL, err);
}

/* Which layers have experts, and where each expert stands on its seat. */
static bool list_layers(td_seats *seats, const td_forward_params *p, td_err *err)
{
    uint32_t n_expert = seats->h->n_expert, n = p->last - p->first + 1;
    seats->layers = td_alloc(n, sizeof *seats->layers, err);
    seats->places = td_alloc((size_t)n * n_expert, sizeof *seats->places, err);
    if (!seats->layers || !seats->places)
        return false;
    for (uint32_t k = p->first; k <= p->last; k++) {
        if (!td_layer_has_experts(p->model, k))
            continue;
        uint16_t n_on[TD_SEATS_MAX] = {0};
        const uint8_t *of = td_dealing_layer(p->dealing, k);
        for (uint32_t e = 0; e < n_expert; e++)
            seats->places[(size_t)seats->n_layers * n_expert + e] = n_on[of[e]]++;
        seats->layers[seats->n_layers++] = k;
    }
    return true;
}

td_seats *td_seats_create(td_forward *f, td_err *err)
{
    const td_forward_params *p = &f->params;
    td_seats *seats = td_alloc(1, sizeof *seats, err);
    if (!seats)
        return NULL;
    seats->h = f->h;
    seats->first = p->first;
    seats->dealing = p->dealing;
    seats->n = p->dealing->n_seats;
    seats->begin = td_alloc(f->h->n_expert + 1, sizeof *seats->begin, err);
    seats->sorted = td_alloc((size_t)TD_PREFILL_ROWS_MAX * f->h->n_expert_used, sizeof(pair), err);
    seats->asked =
        td_alloc((size_t)p->dealing->n_layer * f->h->n_expert, sizeof *seats->asked, err);
    bool is_ok = seats->begin && seats->sorted && seats->asked && list_layers(seats, p, err) &&
                 (seats->pool = td_pool_create(seats->n, err));
    for (uint32_t i = 0; is_ok && i < seats->n; i++)
        is_ok = create_seat(seats, f, i, err);
    if (!is_ok)
        td_seats_destroy(&seats);
    return seats;
}

static void destroy_seat(seat *s, uint32_t n_layers)
{
    td_tensor **tensors[] = {&s->in,    &s->experts, &s->scales, &s->gate_up,
                             &s->gated, &s->factor,  &s->out};
    for (uint32_t mode = 0; mode < N_MODES; mode++) {
        for (uint32_t i = 0; s->programs[mode] && i < n_layers; i++)
            td_program_destroy(&s->programs[mode][i]);
        td_free(s->programs[mode]);
    }
    for (size_t i = 0; i < TD_COUNT(tensors); i++)
        td_tensor_destroy(tensors[i]);
    td_weights_destroy(&s->own);
    td_free(s->pairs);
}

void td_seats_destroy(td_seats **seats)
{
    td_seats *s = *seats;
    if (!s)
        return;
    td_pool_destroy(&s->pool);
    for (uint32_t i = 0; i < s->n; i++)
        destroy_seat(&s->seats[i], s->n_layers);
    td_free(s->places);
    td_free(s->layers);
    td_free(s->begin);
    td_free(s->sorted);
    td_free(s->asked);
    td_free(s);
    *seats = NULL;
}

const uint64_t *td_seats_asked(const td_seats *seats) { return seats->asked; }

const uint64_t *td_seats_done(const td_seats *seats) { return seats->done; }

void td_seats_add_load(const td_seats *seats, uint64_t *n_file_bytes)
{
    for (uint32_t i = 1; i < seats->n; i++)
        *n_file_bytes += seats->seats[i].own->n_file_bytes;
}

/* -- a turn ------------------------------------------------------------------------------------ */

typedef struct {
    td_forward *f;
    td_seats *seats;
    td_mode mode;
    uint32_t i; /* layer */
    td_program *beside;
    uint32_t n_rows;
} turn;

/* Every pair goes to the seat of its expert, those of one expert together, so that its weights are
 * read once. */
static void deal(const turn *t)
{
    td_seats *s = t->seats;
    uint32_t n_used = s->h->n_expert_used, n_expert = s->h->n_expert, *begin = s->begin;
    const int32_t *chosen = td_tensor_data(t->f->experts);
    const uint16_t *places = s->places + (size_t)t->i * n_expert;
    const uint8_t *of = td_dealing_layer(s->dealing, s->layers[t->i]);
    memset(begin, 0, (n_expert + 1) * sizeof *begin);
    for (uint32_t k = 0; k < t->n_rows * n_used; k++) {
        TD_ASSERT(chosen[k] >= 0 && (uint32_t)chosen[k] < n_expert);
        begin[chosen[k] + 1]++;
    }
    uint64_t *asked = s->asked + (size_t)s->layers[t->i] * n_expert;
    for (uint32_t e = 0; e < n_expert; e++) {
        asked[e] += begin[e + 1];
        begin[e + 1] += begin[e];
    }
    for (uint32_t k = 0; k < t->n_rows * n_used; k++) {
        uint32_t e = (uint32_t)chosen[k];
        s->sorted[begin[e]++] = (pair){(uint16_t)(k / n_used), (uint16_t)(k % n_used), (uint16_t)e};
    }
    for (uint32_t i = 0; i < s->n; i++)
        s->seats[i].n_pairs = 0;
    for (uint32_t k = 0; k < t->n_rows * n_used; k++) {
        pair p = s->sorted[k];
        seat *to = &s->seats[of[p.expert]];
        p.expert = places[p.expert];
        to->pairs[to->n_pairs++] = p;
    }
}

/* n of a seat's pairs, as many as a program takes. */
static bool run_pairs(const turn *t, seat *s, const pair *pairs, uint32_t n)
{
    uint32_t n_embd = t->seats->h->n_embd, n_used = t->seats->h->n_expert_used;
    const float *handed = td_tensor_data(t->f->handed);
    const float *weights = td_tensor_data(t->f->expert_weights);
    float *in = td_tensor_data(s->in), *parts = td_tensor_data(t->f->expert_out);
    float *scales = s->scales ? td_tensor_data(s->scales) : NULL;
    int32_t *experts = td_tensor_data(s->experts);
    for (uint32_t k = 0; k < n; k++) {
        memcpy(in + (size_t)k * n_embd, handed + (size_t)pairs[k].row * n_embd,
               n_embd * sizeof *in);
        experts[k] = pairs[k].expert;
        if (scales)
            scales[k] = weights[pairs[k].row * n_used + pairs[k].i];
    }
    if (!td_program_run(s->programs[t->mode][t->i], n, 0, &s->err))
        return false;
    const float *out = td_tensor_data(s->out);
    for (uint32_t k = 0; k < n; k++)
        memcpy(parts + ((size_t)pairs[k].row * n_used + pairs[k].i) * n_embd,
               out + (size_t)k * n_embd, n_embd * sizeof *out);
    return true;
}

static void run_seat(void *arg, uint32_t phase, uint32_t i)
{
    const turn *t = arg;
    seat *s = &t->seats->seats[i];
    uint32_t most = t->mode == TD_MODE_PREFILL ? TD_PREFILL_ROWS_MAX : TD_VERIFY_ROWS_MAX;
    bool is_ok = i || !t->beside || td_program_run(t->beside, t->n_rows, 0, &s->err);
    (void)phase;
    for (uint32_t k = 0, n; is_ok && k < s->n_pairs; k += n) {
        n = td_min_u32(most, s->n_pairs - k);
        is_ok = run_pairs(t, s, s->pairs + k, n);
        t->seats->done[i] += is_ok ? n : 0;
    }
}

bool td_seats_run(td_forward *f, td_mode mode, uint32_t i, td_program *beside, uint32_t n_rows,
                  td_err *err)
{
    turn t = {f, f->seats, mode, i, beside, n_rows};
    deal(&t);
    td_pool_run(f->seats->pool, 1, run_seat, &t);
    for (uint32_t k = 0; k < f->seats->n; k++) {
        td_err *why = &f->seats->seats[k].err;
        if (why->code != TD_OK) {
            td_err_set(err, why->code, "%s", why->message);
            td_err_clear(why);
            return false;
        }
    }
    return true;
}
