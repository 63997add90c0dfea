/* td_op_top and td_op_pick: with what they give, the caller chooses exactly the token that
 * td_sample chooses of the whole row, by every chain, on every device, for logits of every kind, or
 * knows that it must read the row. And td_op_feed: a row of picks becomes the next step's input. */
#include "op_common.h"

#include "model/shortlist.h"

enum { N_ROWS = 5, N_HISTORY = 80 };

typedef struct {
    bench b;
    uint32_t n_vocab;
    td_tensor *logits, *draws, *picks;
} fixture;

static fixture make(td_device *dev, uint32_t n_vocab)
{
    fixture f = {.b = bench_begin(dev, TD_MODE_VERIFY, N_ROWS, N_ROWS), .n_vocab = n_vocab};
    uint32_t n_parts = td_div_up(n_vocab, TD_TOP_CHUNK);
    td_tensor *whole = bench_tensor(&f.b, TD_ELEM_F32, TD_ROWS_OUT, N_ROWS, n_vocab + 3);
    f.logits = whole;
    f.draws = bench_tensor(&f.b, TD_ELEM_I32, TD_ROWS_OUT, N_ROWS, TD_DRAW_WORDS);
    td_tensor *parts =
        bench_tensor(&f.b, TD_ELEM_I32, TD_ROWS_OUT, N_ROWS, n_parts * TD_PART_WORDS);
    f.picks = bench_tensor(&f.b, TD_ELEM_I32, TD_ROWS_OUT, N_ROWS, TD_PICK_WORDS);
    td_op_top(f.b.p, td_columns(whole, 2, n_vocab), f.draws, parts);
    td_op_pick(f.b.p, td_columns(whole, 2, n_vocab), parts, f.draws, f.picks);
    bench_end(&f.b);
    return f;
}

static float *row_of(fixture *f, uint32_t row)
{
    return view_row(td_columns(f->logits, 2, f->n_vocab), row);
}

static const td_pick *pick_of(fixture *f, uint32_t row)
{
    return (const td_pick *)(const void *)(i32_data(f->picks) + row * TD_PICK_WORDS);
}

typedef struct {
    const td_pick *pick;
    const td_draw *draw;
    const float *x; /* the row */
    uint32_t n_vocab;
    char what[160];
} sight;

static bool is_recent(const sight *s, uint32_t id)
{
    for (uint32_t i = 0; i < s->draw->n_recent; i++)
        if (s->draw->recent[i] == id)
            return true;
    return false;
}

/* Does top-p or min-p end with the last of the list? mass: of all that are not recent. Penalties
 * are left to the comparison of tokens. */
static bool ends_within(const sight *s, double mass)
{
    const td_draw *d = s->draw;
    double listed = 0, w = 0;
    for (uint32_t i = 0; i < s->pick->n_list; i++) {
        w = exp2(((double)s->pick->list[i].logit - (double)s->pick->max) * (double)d->scale);
        listed += w;
    }
    return !d->top_k && (w < (double)d->min_p || (d->has_mass && listed > (double)d->top_p * mass));
}

/* The list is what it says: the largest of all that are not recent, in order. */
static void check_list(const sight *s)
{
    const td_pick *pick = s->pick;
    uint32_t n_others = 0, n_listed = pick->n_list;
    double mass = 0;
    assert_true(n_listed <= TD_TOP_LIST);
    for (uint32_t i = 0; i < n_listed; i++) {
        uint32_t id = pick->list[i].id;
        if (id >= s->n_vocab || pick->list[i].logit != s->x[id] || is_recent(s, id))
            fail_msg("%s: entry %u of the list is token %u", s->what, i, id);
        bool is_after =
            i == 0 || pick->list[i].logit < pick->list[i - 1].logit ||
            (pick->list[i].logit == pick->list[i - 1].logit && id > pick->list[i - 1].id);
        if (!is_after)
            fail_msg("%s: entry %u of the list is out of order", s->what, i);
    }
    td_top_logit last = n_listed ? pick->list[n_listed - 1] : (td_top_logit){0, 0};
    uint32_t n_before = 0;
    for (uint32_t i = 0; i < s->n_vocab; i++) {
        if (is_recent(s, i))
            continue;
        n_others++;
        n_before += s->x[i] > last.logit || (s->x[i] == last.logit && i <= last.id);
        mass += exp2(((double)s->x[i] - (double)pick->max) * (double)s->draw->scale);
    }
    if (n_listed && n_before != n_listed)
        fail_msg("%s: %u tokens are listed, %u should be", s->what, n_listed, n_before);
    if (n_listed && n_listed < s->draw->n_list && n_listed != n_others && !ends_within(s, mass))
        fail_msg("%s: only %u tokens are listed", s->what, n_listed);
    if (s->draw->has_mass && fabs((double)pick->mass / mass - 1) > (double)TD_TOP_MASS_ERROR / 4)
        fail_msg("%s: mass %.9g, should be %.9g", s->what, (double)pick->mass, mass);
    for (uint32_t i = 0; i < s->draw->n_recent; i++)
        if (s->draw->recent[i] < s->n_vocab)
            assert_true(is_same_bits(&pick->recent[i], &s->x[s->draw->recent[i]], 1));
}

typedef struct {
    uint32_t n, n_decided, n_chosen; /* rows; without being read; the device chose the same */
    uint32_t n_close;                /* more than one candidate */
} tally;

/* Runs n_out rows and checks each. */
static void check(fixture *f, td_sampler *s, uint32_t n_out, const td_sampling_params *params,
                  uint64_t stream, uint32_t position, const char *what, tally *t)
{
    static uint32_t history[N_HISTORY + 4000];
    td_draw draws[N_ROWS];
    assert_true(position <= TD_COUNT(history));
    for (uint32_t i = 0; i < position; i++) /* some twice, some beyond the vocabulary */
        history[i] = (uint32_t)(stream + i * i * 7) % (f->n_vocab + f->n_vocab / 16 + 1);
    for (uint32_t r = 0; r < n_out; r++) {
        draws[r] = td_shortlist_draw(params, f->n_vocab, stream + r, position, history, false);
        memcpy(i32_data(f->draws) + r * TD_DRAW_WORDS, &draws[r], sizeof draws[r]);
    }
    bench_run(&f->b, N_ROWS, n_out);
    for (uint32_t r = 0; r < n_out; r++) {
        const td_pick *pick = pick_of(f, r);
        sight seen = {pick, &draws[r], row_of(f, r), f->n_vocab, ""};
        snprintf(seen.what, sizeof seen.what,
                 "%s: %s: row %u (T %g, k %u, p %g, min %g, penalty %g)", device_spec(f->b.dev),
                 what, r, (double)params->temperature, params->top_k, (double)params->top_p,
                 (double)params->min_p, (double)params->repeat_penalty);
        uint32_t want = td_sample(s, params, seen.x, history, position, stream + r, position),
                 got = want;
        if (pick->is_finite != td_logits_finite(seen.x, f->n_vocab))
            fail_msg("%s: finite %u", seen.what, pick->is_finite);
        if (pick->token >= f->n_vocab)
            fail_msg("%s: token %u", seen.what, pick->token);
        if (pick->is_finite && draws[r].kind >= TD_DRAW_RACE)
            check_list(&seen);
        t->n_decided += td_shortlist_choose(s, params, f->n_vocab, &draws[r], pick, &got);
        if (got != want)
            fail_msg("%s: token %u, td_sample says %u (%u candidates, %u listed)", seen.what, got,
                     want, pick->n, pick->n_list);
        t->n++;
        t->n_chosen += pick->token == want;
        t->n_close += draws[r].kind == TD_DRAW_RACE && pick->n > 1;
    }
}

static td_sampling_params plain(float temperature)
{
    td_sampling_params params = TD_SAMPLING_DEFAULTS;
    params.temperature = temperature;
    return params;
}

/* In brief, the first N_BRIEF of each: one row within a part, one beyond it, many parts. */
enum { N_BRIEF = 3 };
static const uint32_t sizes[] = {1, 4097, 20000, 3, 5, 4095, 4096};
static const float temperatures[] = {0, 0.01f, 0.8f, 5, 100};

static const td_sampling_params chains[] = {
    {0.8f, 40, 0.95f, 0, 1, 64},     {1.0f, 0, 0.95f, 0, 1, 64},
    {0.6f, 20, 0.95f, 0.05f, 1, 64}, {1.0f, 0, 1, 0.1f, 1, 64},
    {0.8f, 0, 1, 0, 1.1f, 64},       {0.8f, 40, 0.95f, 0, 1.1f, 64},
    {0, 0, 1, 0, 1.3f, 64},          {1.5f, 0, 0.9f, 0, 0.5f, 64},
    {1.0f, 256, 1, 0, 1, 64},        {1.0f, 257, 0.5f, 0, 1, 64},
    {0.7f, 1, 1, 0, 1.2f, 7},        {100, 0, 0.3f, 0.01f, 1.1f, 64},
    {1e-4f, 0, 1, 0, 1, 64},         {1e-5f, 5, 0.9f, 0, 1.5f, 64},
    {2, 100, 1, 0.001f, 100, 64},    {1, 0, 1e-6f, 0, 0.01f, 64},
    {1, 0, 0.999999f, 0, 1.05f, 64}, {0.8f, 40, 0.95f, 0, 1.1f, 65},
    {0.8f, 0, 0.95f, 0.02f, 1.1f, 1}};

static void fill_row(float *x, uint32_t n, uint64_t seed, float spread)
{
    for (uint32_t k = 0; k < n; k++)
        x[k] = spread * test_random(seed, k) - 7;
}

static void test_random_logits_give_the_sampler_s_token(void **state)
{
    (void)state;
    td_err err = {0};
    for (size_t d = 0; d < n_test_devices; d++)
        for (size_t i = 0; i < (wants_brief() ? N_BRIEF : TD_COUNT(sizes)); i++) {
            fixture f = make(test_devices[d], sizes[i]);
            td_sampler *s = td_sampler_create(sizes[i], &err);
            tally t = {0};
            for (uint64_t seed = 0; seed < 12; seed++) {
                float spread = seed % 4 == 0 ? 0 : seed % 4 == 1 ? 1 : seed % 4 == 2 ? 12 : 3e4f;
                for (uint32_t r = 0; r < N_ROWS; r++)
                    fill_row(row_of(&f, r), sizes[i], seed * 100 + r, spread);
                td_sampling_params params = plain(temperatures[seed % TD_COUNT(temperatures)]);
                check(&f, s, N_ROWS, &params, seed * 0x9e3779b97f4a7c15u, (uint32_t)seed * 31,
                      "random", &t);
            }
            assert_true(t.n_decided == t.n); /* a race too close to call is rarer than that */
            td_sampler_destroy(&s);
            bench_destroy(&f.b);
        }
}

/* Like a model's: a few tokens far above the rest, in all shades. */
static void fill_peaked(float *x, uint32_t n, uint64_t seed)
{
    float power = 1 + (float)(seed % 5);
    for (uint32_t k = 0; k < n; k++) {
        float u = test_random(seed, k);
        x[k] = 4 * u * fabsf(u) - power * 3 * log2f(1e-6f + fabsf(test_random(seed + 7, k)));
    }
}

static void test_chains_give_the_sampler_s_token(void **state)
{
    static const uint32_t n_vocabs[] = {32, 2048, 9000, 300, 1025, 4096, 151936};
    (void)state;
    td_err err = {0};
    for (size_t d = 0; d < n_test_devices; d++)
        for (size_t i = 0; i < (wants_brief() ? N_BRIEF : TD_COUNT(n_vocabs)); i++) {
            fixture f = make(test_devices[d], n_vocabs[i]);
            td_sampler *s = td_sampler_create(n_vocabs[i], &err);
            tally all = {0};
            uint32_t n_seeds = n_vocabs[i] > 100000 ? 1 : is_vulkan(test_devices[d]) ? 2 : 6;
            for (size_t c = 0; c < TD_COUNT(chains); c++) {
                tally t = {0};
                for (uint32_t seed = 0; seed < n_seeds; seed++) {
                    for (uint32_t r = 0; r < N_ROWS; r++)
                        if (seed % 2)
                            fill_row(row_of(&f, r), n_vocabs[i], seed * 100 + r,
                                     5.0f * (float)(r + 1));
                        else
                            fill_peaked(row_of(&f, r), n_vocabs[i], seed * 10 + r + c);
                    check(&f, s, N_ROWS, &chains[c], seed + 99 * c, seed * 37, "chains", &t);
                }
                if (getenv("TD_TEST_TALLY"))
                    printf("%s: vocabulary %u, chain %zu: %u rows, %u decided, %u chosen alike\n",
                           device_spec(f.b.dev), n_vocabs[i], c, t.n, t.n_decided, t.n_chosen);
                if (chains[c].top_k && chains[c].top_k <= TD_TOP_LIST &&
                    chains[c].repeat_last_n <= 64)
                    assert_true(t.n_decided == t.n && t.n_chosen + t.n / 10 >= t.n);
                all.n += t.n;
                all.n_decided += t.n_decided;
                all.n_chosen += t.n_chosen;
            }
            assert_true(all.n_decided > all.n * 3 / 4 && all.n_chosen > all.n * 3 / 4);
            td_sampler_destroy(&s);
            bench_destroy(&f.b);
        }
}

/* Values that sit at the edges: ties, signed zeros, subnormals, NaN and infinities. */
static void fill_hostile(float *x, uint32_t n, uint32_t kind)
{
    static const float odd[] = {0.0f, -0.0f, 1e-45f, -1e-45f, 1e-39f, 2e-39f};
    for (uint32_t i = 0; i < n; i++)
        x[i] = kind == 0   ? 1.5f
               : kind == 1 ? odd[(i * 7 + 1) % 6]
               : kind == 2 ? -1e-45f * (float)(1 + i % 3)
               : kind == 3 ? (float)(i % 5)
               : kind == 4 ? -3.4e38f + 1e37f * (float)(i % 4)
               : kind == 5 ? NAN
               : kind == 6 ? -INFINITY
                           : (float)(i % 11) - 5;
    uint32_t middle = n / 2, last = n - 1;
    if (kind == 7)
        x[middle] = NAN;
    if (kind == 8)
        x[middle] = -INFINITY;
    if (kind == 9)
        x[last] = INFINITY;
    if (kind == 10) {
        x[last] = INFINITY;
        x[middle] = INFINITY;
        x[0] = -NAN;
    }
    if (kind == 11)
        for (uint32_t i = 0; i < n; i++)
            x[i] = i == last ? -INFINITY : NAN;
    if (kind == 12)
        x[0] = 3.4e38f;
}

static void test_hostile_logits_give_the_sampler_s_token(void **state)
{
    (void)state;
    td_err err = {0};
    for (size_t d = 0; d < n_test_devices; d++)
        for (size_t i = 0; i < (wants_brief() ? N_BRIEF : TD_COUNT(sizes)); i++) {
            fixture f = make(test_devices[d], sizes[i]);
            td_sampler *s = td_sampler_create(sizes[i], &err);
            tally t = {0};
            for (uint32_t kind = 0; kind <= 12; kind++) {
                char what[32];
                snprintf(what, sizeof what, "hostile %u of %u", kind, sizes[i]);
                for (uint32_t r = 0; r < N_ROWS; r++)
                    fill_hostile(row_of(&f, r), sizes[i], r == 0 ? kind : (kind + r) % 13);
                for (uint32_t i_t = 0; i_t < TD_COUNT(temperatures); i_t++) {
                    td_sampling_params params = plain(temperatures[i_t]);
                    check(&f, s, N_ROWS, &params, 77 + kind, 5 + i_t, what, &t);
                }
                for (uint32_t c = 0; c < TD_COUNT(chains); c++)
                    check(&f, s, N_ROWS, &chains[c], 77 + kind, 5 + 40 * (c % 2), what, &t);
            }
            td_sampler_destroy(&s);
            bench_destroy(&f.b);
        }
}

/* Many positions of one flat distribution: the noise decides, and now and then two tokens are too
 * close for the device, which then names both. */
static void test_close_races_are_left_to_the_caller(void **state)
{
    (void)state;
    td_err err = {0};
    for (size_t d = 0; d < n_test_devices; d++) {
        fixture f = make(test_devices[d], 300);
        td_sampler *s = td_sampler_create(300, &err);
        uint32_t n = is_vulkan(test_devices[d]) ? 400 : 1000;
        td_sampling_params params = plain(1);
        tally t = {0};
        for (uint32_t r = 0; r < N_ROWS; r++)
            fill_random(row_of(&f, r), 300, r);
        for (uint32_t i = 0; i < n; i++)
            check(&f, s, N_ROWS, &params, 9, i, "flat", &t);
        assert_true(t.n_close >= 1 && t.n_close < n / 10);
        td_sampler_destroy(&s);
        bench_destroy(&f.b);
    }
}

static void test_rows_that_are_not_drawn_are_to_be_read(void **state)
{
    (void)state;
    for (size_t d = 0; d < n_test_devices; d++) {
        fixture f = make(test_devices[d], 100);
        memset(td_tensor_data(f.draws), 0, N_ROWS * TD_DRAW_WORDS * 4);
        fill_random(row_of(&f, 0), 100, 1);
        bench_run(&f.b, N_ROWS, 1);
        assert_true(pick_of(&f, 0)->n > TD_TOP_CANDIDATES && pick_of(&f, 0)->is_finite);
        td_err err = {0};
        const float *row = td_tensor_read(f.logits, 0, 1, &err);
        must(row != NULL, &err);
        check_same_bits(row + 2, row_of(&f, 0), 100, "read", f.b.dev);
        bench_destroy(&f.b);
    }
}

static void test_feed_makes_the_next_step(void **state)
{
    (void)state;
    enum { N_POSITIONS = 6, N_ROT = 70, N_STEPS = 3 };
    for (size_t d = 0; d < n_test_devices; d++) {
        bench b = bench_begin(test_devices[d], TD_MODE_VERIFY, 2, 2);
        float *table = new_random(N_POSITIONS * N_ROT, 3);
        td_feed_tensors f = {
            .picks = bench_tensor(&b, TD_ELEM_I32, TD_ROWS_OUT, 2, TD_PICK_WORDS),
            .draws = bench_tensor(&b, TD_ELEM_I32, TD_ROWS_OUT, 2, TD_DRAW_WORDS),
            .ids = bench_tensor(&b, TD_ELEM_I32, TD_ROWS_BATCH, 2, 1),
            .positions = bench_tensor(&b, TD_ELEM_I32, TD_ROWS_BATCH, 2, 1),
            .cos_sin = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, 2, N_ROT),
            .trail = bench_tensor(&b, TD_ELEM_I32, TD_ROWS_FIXED, N_STEPS, TD_PICK_WORDS),
            .table = bench_weight(&b, td_type_find(TD_TYPE_F32), N_POSITIONS, N_ROT, table),
        };
        td_op_feed(b.p, &f);
        bench_end(&b);
        td_pick *pick = td_tensor_data(f.picks);
        td_draw *draw = td_tensor_data(f.draws);
        const td_pick *trail = td_tensor_data(f.trail);
        *draw = (td_draw){
            .kind = TD_DRAW_GREEDY, .position = {3, 8}, .stream = {1, 2}, .n_recent_max = 3};
        td_draw_push(draw, 7);
        td_draw_push(draw, 9);
        for (uint32_t step = 0; step < 5; step++) { /* past the trail and the table */
            pick->n = 1;
            pick->token = 40 + step;
            pick->candidates[3].id = 90 + step;
            pick->recent[63] = (float)step;
            td_draw pushed = *draw;
            td_draw_push(&pushed, pick->token);
            bench_run(&b, 1, 1);
            assert_int_equal(draw->n_recent, 3);
            assert_int_equal(draw->i_next, step % 3);
            assert_memory_equal(draw->recent, pushed.recent, sizeof pushed.recent);
            assert_int_equal(draw->step, step + 1);
            assert_int_equal(draw->position[0], 4 + step);
            assert_true(draw->position[1] == 8 && draw->stream[1] == 2 && draw->kind == 1);
            uint32_t at = td_min_u32(3 + step, N_POSITIONS - 1);
            assert_int_equal(i32_data(f.positions)[0], at);
            assert_int_equal(i32_data(f.ids)[0], 40 + at - 3);
            check_same_bits(f32_data(f.cos_sin), table + at * N_ROT, N_ROT, "cos_sin", b.dev);
        }
        for (uint32_t step = 0; step < N_STEPS; step++)
            assert_true(trail[step].token == 40 + step &&
                        trail[step].candidates[3].id == 90 + step &&
                        trail[step].recent[63] == (float)step);
        free(table);
        bench_destroy(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_logits_give_the_sampler_s_token),
        cmocka_unit_test(test_chains_give_the_sampler_s_token),
        cmocka_unit_test(test_hostile_logits_give_the_sampler_s_token),
        cmocka_unit_test(test_close_races_are_left_to_the_caller),
        cmocka_unit_test(test_rows_that_are_not_drawn_are_to_be_read),
        cmocka_unit_test(test_feed_makes_the_next_step),
    };
    return TEST_MAIN(tests);
}
