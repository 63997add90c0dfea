/* Rigs of the ops that choose tokens (builders.h). What lies in top's parts is top's own affair, so
 * pick reads them; pick itself gets parts that the scalar device made. */
#include "check/builders.h"

#include "base/check.h"

#include <string.h>

#define LOG2_E 1.44269504f

/* Rows are greedy, a race at temperature 0.8, a list of 40 for top-k, and all at once, for top-p
 * with penalized tokens. */
static td_draw *make_draws(td_rig *r, uint32_t n)
{
    td_draw *draws = td_rig_alloc(r, n, sizeof *draws);
    for (uint32_t i = 0; draws && i < n; i++) {
        bool is_list = i % 4 == 2, is_all = i % 4 == 3;
        draws[i] = (td_draw){.kind = is_list  ? TD_DRAW_LIST
                                     : i % 2 ? TD_DRAW_RACE
                                             : TD_DRAW_GREEDY,
                             .scale = LOG2_E / 0.8f,
                             .stream = {77 + i, 3},
                             .position = {i, 0},
                             .n_list = is_list ? 40 : is_all ? TD_TOP_LIST : 0,
                             .has_mass = is_all,
                             .top_k = is_list ? 40 : 0,
                             .top_p = is_all ? 0.95f : 1.0f,
                             .penalty = is_all ? 1.2f : 1.0f,
                             .n_recent_max = is_all ? TD_TOP_RECENT : 0};
        for (uint32_t k = 0; k < 70; k++)
            td_draw_push(&draws[i], k * k);
    }
    return draws;
}

static const float *make_logits(td_rig *r, const td_case *c)
{
    return td_rig_random(r, (size_t)c->n_data * c->n[0], 131, 9.0f);
}

static uint32_t part_words(const td_case *c)
{
    return td_div_up(c->n[0], TD_TOP_CHUNK) * TD_PART_WORDS;
}

/* How many candidates there are, whether all is finite, the best and the token are the same on
 * every device; behind those come scores. */
static void output_picks(td_rig *r, td_tensor *picks)
{
    td_rig_output_of(r, td_all(picks), -1);
    td_rig_output_of(r, td_columns(picks, 0, 5), 0);
}

bool td_build_top(td_rig *r, td_device *dev, const td_case *c, td_err *err)
{
    r->is_out = true;
    td_rig_begin(r, dev, c->mode, c->n_data, err);
    td_tensor *logits = td_rig_rows(r, TD_ELEM_F32, TD_ROWS_OUT, c->n[0]);
    td_tensor *draws = td_rig_rows(r, TD_ELEM_I32, TD_ROWS_OUT, TD_DRAW_WORDS);
    td_tensor *parts = td_rig_rows(r, TD_ELEM_I32, TD_ROWS_OUT, part_words(c));
    td_tensor *picks = td_rig_rows(r, TD_ELEM_I32, TD_ROWS_OUT, TD_PICK_WORDS);
    const float *values = make_logits(r, c);
    const td_draw *chosen = make_draws(r, c->n_data);
    r->reader = td_rig_program(r, c->mode, c->n_data);
    if (!r->is_ok)
        return false;
    td_rig_input_of(r, td_all(logits), values);
    td_rig_input_of(r, td_all(draws), chosen);
    td_rig_output_of(r, td_all(parts), -1);
    output_picks(r, picks);
    td_op_top(r->p, td_all(logits), draws, parts);
    td_op_pick(r->reader, td_all(logits), parts, draws, picks);
    return td_rig_end(r);
}

/* The parts of all rows, [n_data][part_words], as the scalar device makes them. */
static uint32_t *make_parts(td_rig *r, const td_case *c)
{
    td_rig maker = {.is_oracle = true};
    uint32_t n_words = part_words(c);
    uint32_t *parts = td_rig_alloc(r, (size_t)c->n_data * n_words, sizeof *parts);
    uint32_t *rows = td_rig_alloc(r, c->n_data, sizeof *rows);
    td_device *scalar = r->is_ok ? td_device_create("scalar", r->err) : NULL;
    for (uint32_t i = 0; scalar && i < c->n_data; i++)
        rows[i] = i;
    r->is_ok = scalar && td_build_top(&maker, scalar, c, r->err) &&
               td_rig_run(&maker, rows, c->n_data);
    for (uint32_t i = 0; r->is_ok && i < c->n_data; i++)
        memcpy(parts + (size_t)i * n_words, td_rig_row(&maker, 0, i), (size_t)n_words * 4);
    td_rig_destroy(&maker);
    td_device_destroy(&scalar);
    return parts;
}

bool td_build_pick(td_rig *r, td_device *dev, const td_case *c, td_err *err)
{
    r->is_out = true;
    td_rig_begin(r, dev, c->mode, c->n_data, err);
    const uint32_t *values = make_parts(r, c);
    td_tensor *logits = td_rig_rows(r, TD_ELEM_F32, TD_ROWS_OUT, c->n[0]);
    td_tensor *draws = td_rig_rows(r, TD_ELEM_I32, TD_ROWS_OUT, TD_DRAW_WORDS);
    td_tensor *parts = td_rig_rows(r, TD_ELEM_I32, TD_ROWS_OUT, part_words(c));
    td_tensor *picks = td_rig_rows(r, TD_ELEM_I32, TD_ROWS_OUT, TD_PICK_WORDS);
    const td_draw *chosen = make_draws(r, c->n_data);
    const float *x = make_logits(r, c);
    if (!r->is_ok)
        return false;
    td_rig_input_of(r, td_all(logits), x);
    td_rig_input_of(r, td_all(parts), values);
    td_rig_input_of(r, td_all(draws), chosen);
    output_picks(r, picks);
    td_op_pick(r->p, td_all(logits), parts, draws, picks);
    return td_rig_end(r);
}

/* One step of a draft: a row of picks, whose draw moves on. */
bool td_build_feed(td_rig *r, td_device *dev, const td_case *c, td_err *err)
{
    uint32_t n_ctx = c->n[0], n_rot = c->n[1];
    td_rig_begin(r, dev, c->mode, 1, err);
    const td_feed_tensors f = {
        .picks = td_rig_rows(r, TD_ELEM_I32, TD_ROWS_OUT, TD_PICK_WORDS),
        .draws = td_rig_rows(r, TD_ELEM_I32, TD_ROWS_OUT, TD_DRAW_WORDS),
        .ids = td_rig_rows(r, TD_ELEM_I32, TD_ROWS_BATCH, 1),
        .positions = td_rig_rows(r, TD_ELEM_I32, TD_ROWS_BATCH, 1),
        .cos_sin = td_rig_rows(r, TD_ELEM_F32, TD_ROWS_BATCH, n_rot),
        .trail = td_rig_fixed(r, TD_ELEM_I32, 4, TD_PICK_WORDS),
        .table = td_rig_weight(r, "F32", n_ctx, n_rot, 0, 141),
    };
    td_pick *pick = td_rig_alloc(r, 1, sizeof *pick);
    td_draw *draw = make_draws(r, 1);
    if (!r->is_ok)
        return false;
    *pick = (td_pick){.n = 1, .is_finite = 1, .token = 1234};
    draw->position[0] = n_ctx - 2;
    td_rig_input_of(r, td_all(f.picks), pick);
    td_rig_input_of(r, td_all(f.draws), draw);
    td_rig_output_of(r, td_all(f.draws), 0);
    td_rig_output_of(r, td_all(f.ids), 0);
    td_rig_output_of(r, td_all(f.positions), 0);
    td_rig_output_of(r, td_all(f.cos_sin), 0);
    td_rig_output_of(r, td_all(f.trail), 0);
    td_op_feed(r->p, &f);
    return td_rig_end(r);
}
